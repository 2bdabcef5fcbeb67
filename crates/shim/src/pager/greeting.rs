//! What a VMM says first: where its guest's memory lies in its address space, and the descriptor that faults there are told
//! on. Firecracker's form of it: one message, a JSON list with the descriptor beside it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Deserialize;
use wrenn_proto::shim::pages::{PAGE_BYTES, Span};
use wrenn_sys::userfaultfd::Userfaultfd;

use super::PagerError;
use crate::limits::{GREETING_BYTES, REGIONS_MAX};

/// One region as the VMM says it.
#[derive(Debug, Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    /// In bytes.
    page_size: Option<u64>,
    /// The same, in bytes as well, from versions that had only this.
    page_size_kib: Option<u64>,
}

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// Its first address in the VMM.
    address: u64,
    /// Its pages in the memory.
    span: Span,
}

/// Where guest memory lies, region by region in the order of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regions(Vec<Region>);

impl Regions {
    /// What the VMM says, if it is of a memory of so many pages.
    fn parse(json: &[u8], pages: u32) -> Result<Self, PagerError> {
        let mappings: Vec<Mapping> = serde_json::from_slice(json)?;
        let refused = |why: String| Err(PagerError::Mappings(why));
        if mappings.len() > REGIONS_MAX {
            return refused(format!("{} regions", mappings.len()));
        }
        let mut regions = mappings.iter().map(region).collect::<Result<Vec<_>, _>>()?;
        regions.sort_by_key(|region| region.span.first);
        let mut end = 0;
        for region in &regions {
            if region.span.first != end {
                return refused(format!("nothing lies at page {end}, or something twice"));
            }
            end = region.span.end();
        }
        if end != pages {
            return refused(format!("it has {end} pages, and {pages} are here"));
        }
        Ok(Self(regions))
    }

    /// The page at `address`.
    pub fn page(&self, address: u64) -> Option<u32> {
        let inside = |region: &&Region| (region.address..region.end()).contains(&address);
        let region = self.0.iter().find(inside)?;
        Some(region.span.first + ((address - region.address) / PAGE_BYTES) as u32)
    }

    /// Where `page` lies, and the pages of its region.
    pub fn place(&self, page: u32) -> (u64, Span) {
        let index = self.0.partition_point(|region| region.span.end() <= page);
        let region = &self.0[index];
        (region.address + u64::from(page - region.span.first) * PAGE_BYTES, region.span)
    }

    /// The pages between two addresses.
    pub fn pages_between(&self, start: u64, end: u64) -> impl Iterator<Item = Span> {
        self.0.iter().filter_map(move |region| {
            let (from, to) = (start.max(region.address), end.min(region.end()));
            let page = |address: u64| region.span.first + ((address - region.address) / PAGE_BYTES) as u32;
            (from < to).then(|| Span::between(page(from), page(to - 1) + 1))
        })
    }
}

impl Region {
    /// The address after its last.
    fn end(&self) -> u64 {
        self.address + u64::from(self.span.count) * PAGE_BYTES
    }
}

fn region(mapping: &Mapping) -> Result<Region, PagerError> {
    let Mapping { base_host_virt_addr: address, size, offset, page_size, page_size_kib } = *mapping;
    let whole = [address, size, offset].iter().all(|number| number.is_multiple_of(PAGE_BYTES));
    let page_bytes = page_size.or(page_size_kib).unwrap_or(PAGE_BYTES);
    let (first, count) = (u32::try_from(offset / PAGE_BYTES), u32::try_from(size / PAGE_BYTES));
    match (first, count, address.checked_add(size)) {
        (Ok(first), Ok(count @ 1..), Some(_))
            if whole && page_bytes == PAGE_BYTES && first.checked_add(count).is_some() =>
        {
            Ok(Region { address, span: Span { first, count } })
        }
        _cannot_be => Err(PagerError::Mappings(format!(
            "{size} bytes at address {address:#x}, from byte {offset} on, in pages of {page_bytes} bytes"
        ))),
    }
}

/// All that a VMM says.
#[derive(Debug)]
pub(super) struct Greeting {
    pub regions: Regions,
    pub faults: Userfaultfd,
}

impl Greeting {
    /// Takes it from a non-blocking stream, if it is there, for a memory of so many pages.
    pub fn receive(stream: &UnixStream, pages: u32) -> Result<Option<Self>, PagerError> {
        let mut bytes = [0; GREETING_BYTES];
        let (read, descriptor) = match receive(stream, &mut bytes) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(PagerError::Greeting(error)),
        };
        let regions = Regions::parse(&bytes[..read], pages)?;
        let descriptor = descriptor.ok_or_else(|| PagerError::Mappings("it comes without a descriptor".to_owned()))?;
        let faults = Userfaultfd::received(descriptor).map_err(PagerError::Events)?;
        Ok(Some(Self { regions, faults }))
    }
}

/// One message: how many bytes it has, and the descriptor that came with it.
fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _other_messages => None,
    });
    Ok((message.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Regions, PagerError> {
        Regions::parse(json.as_bytes(), 6)
    }

    #[test]
    fn every_versions_form_is_read() {
        let regions = Regions(vec![
            Region { address: 0x10000, span: Span { first: 0, count: 4 } },
            Region { address: 0x8000, span: Span { first: 4, count: 2 } },
        ]);
        for size in
            ["", r#","page_size":4096"#, r#","page_size_kib":4096"#, r#","page_size":4096,"page_size_kib":4096"#]
        {
            let json = format!(
                r#"[{{"base_host_virt_addr":32768,"size":8192,"offset":16384{size}}},
                    {{"base_host_virt_addr":65536,"size":16384,"offset":0,"new":"field"{size}}}]"#
            );
            assert_eq!(parse(&json).unwrap(), regions, "{size}");
        }
        assert_eq!(
            [0xffff, 0x10000, 0x10fff, 0x9fff, 0xa000, 0x14000].map(|at| regions.page(at)),
            [None, Some(0), Some(0), Some(5), None, None]
        );
        assert_eq!(regions.place(5), (0x9000, Span { first: 4, count: 2 }));
        let between = |start, end| regions.pages_between(start, end).collect::<Vec<_>>();
        assert_eq!(between(0x9000, 0x11000), [Span::between(0, 1), Span::between(5, 6)]);
        assert_eq!(between(0, u64::MAX), [Span::between(0, 4), Span::between(4, 6)]);
        assert_eq!(between(0xa000, 0x10000), []);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let one = |address: u64, size: u64, offset: u64, page: u64| {
            format!(r#"{{"base_host_virt_addr":{address},"size":{size},"offset":{offset},"page_size":{page}}}"#)
        };
        let whole = one(4096, 6 * 4096, 0, 4096);
        parse(&format!("[{whole}]")).unwrap();
        for json in [
            "[]".to_owned(),
            format!("[{whole},{whole}]"),
            format!("[{}]", one(4096, 5 * 4096, 0, 4096)),
            format!("[{}]", one(4096, 7 * 4096, 0, 4096)),
            format!("[{}]", one(4096, 6 * 4096, 4096, 4096)),
            format!("[{}]", one(4097, 6 * 4096, 0, 4096)),
            format!("[{}]", one(u64::MAX - 4095, 6 * 4096, 0, 4096)),
            format!("[{}]", one(0, u64::MAX - 4095, 0, 4096)),
            format!("[{}]", one(0, 4096, u64::MAX - 4095, 4096)),
            format!("[{}]", one(4096, 6 * 4096, 0, 2 << 20)),
            format!("[{}]", vec![whole.as_str(); 17].join(",")),
        ] {
            assert!(matches!(parse(&json), Err(PagerError::Mappings(_))), "{json}");
        }
        for json in ["", "{}", "[1]", r#"[{"base_host_virt_addr":-1,"size":1,"offset":0}]"#] {
            assert!(matches!(parse(json), Err(PagerError::Json(_))), "{json}");
        }
    }
}
