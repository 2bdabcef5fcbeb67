//! What the host's connection tracking remembers of a slot, and making it forget.
//!
//! A VM that is ended does not close its connections. The namespace's own entries go with it, but the host's, which carry
//! the masquerading, would stay for days (an established TCP connection: five), count against the host's limit, and
//! meet the slot's next sandbox. So they are deleted, by the address they came from.
//!
//! ```text
//!   dump, filtered by the kernel (5.8 and newer; older ones send all) ──► those from the address ──► delete each by its tuple
//! ```
//!
//! The messages are few and fixed, so they are written here by hand.

use std::io;
use std::net::Ipv4Addr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

/// `NFNL_SUBSYS_CTNETLINK` in a message's type.
const SUBSYSTEM: u16 = 1 << 8;
const MESSAGE_NEW: u16 = SUBSYSTEM;
const MESSAGE_GET: u16 = SUBSYSTEM | 1;
const MESSAGE_DELETE: u16 = SUBSYSTEM | 2;
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const FLAG_DUMP: u16 = 0x300;
/// A netlink header, and what follows it in this subsystem: family, version, resource.
const HEADERS: usize = 16 + 4;
const FAMILY_INET: u8 = 2;

const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_IP: u16 = 1;
const IP_V4_SOURCE: u16 = 1;
const FILTER: u16 = 25;
const FILTER_ORIGINAL_FLAGS: u16 = 1;
const FILTER_BY_SOURCE: u32 = 1;

/// Deletes every connection that was begun from `source`. Says how many there were.
pub fn forget(source: Ipv4Addr) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let tuples = dump(&socket, source)?;
    for tuple in &tuples {
        socket.send(&message(MESSAGE_DELETE, FLAG_ACK, &attribute(TUPLE_ORIGINAL | NESTED, tuple)), 0)?;
        match answers(&socket, |_, _| {}) {
            // It ended by itself meanwhile.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {}
            other => other?,
        }
    }
    Ok(tuples.len())
}

/// The original tuples of the connections from `source`, as the kernel wrote them.
fn dump(socket: &Socket, source: Ipv4Addr) -> io::Result<Vec<Vec<u8>>> {
    let address = attribute(TUPLE_IP | NESTED, &attribute(IP_V4_SOURCE, &source.octets()));
    let flags = attribute(FILTER_ORIGINAL_FLAGS, &FILTER_BY_SOURCE.to_ne_bytes());
    let filter = [attribute(TUPLE_ORIGINAL | NESTED, &address), attribute(FILTER | NESTED, &flags)].concat();
    socket.send(&message(MESSAGE_GET, FLAG_DUMP, &filter), 0)?;
    let mut tuples = Vec::new();
    answers(socket, |kind, body| {
        let tuple = find(body, TUPLE_ORIGINAL).filter(|_| kind == MESSAGE_NEW);
        tuples.extend(tuple.filter(|tuple| source_of(tuple) == Some(source)).map(<[u8]>::to_vec));
    })?;
    Ok(tuples)
}

/// Reads up to the end of a dump or an acknowledgement; each message's kind and attributes go to `each`.
fn answers(socket: &Socket, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while let Some((kind, body, tail)) = split_message(rest) {
            rest = tail;
            match kind {
                MESSAGE_DONE => return Ok(()),
                MESSAGE_ERROR => return outcome(body),
                kind => each(kind, body.get(4..).unwrap_or_default()),
            }
        }
    }
}

/// An error message begins with the negative error number; 0 is success.
fn outcome(body: &[u8]) -> io::Result<()> {
    let code = body.first_chunk().map(|code| i32::from_ne_bytes(*code));
    match code.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))? {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
    }
}

fn source_of(tuple: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = find(find(tuple, TUPLE_IP)?, IP_V4_SOURCE)?.try_into().ok()?;
    Some(octets.into())
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + attributes.len()).expect("requests are short");
    let mut message = Vec::with_capacity(HEADERS + attributes.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | FLAG_REQUEST).to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one request at a time
    message.extend([FAMILY_INET, 0, 0, 0]);
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("attributes are short");
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// Kind, body and what comes after the first message; `None` at the end, or if it is cut short.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(16..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The value of the first attribute of this kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(4..length)?;
        if kind & KIND_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tuple_tells_its_source() {
        let address = attribute(TUPLE_IP | NESTED, &attribute(IP_V4_SOURCE, &[10, 12, 0, 1]));
        let tuple = [attribute(9, b"other"), address].concat();
        assert_eq!(source_of(&tuple), Some(Ipv4Addr::new(10, 12, 0, 1)));
        assert_eq!(source_of(&attribute(TUPLE_IP, b"")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u16..4) {
            let mut rest = &bytes[..];
            while let Some((_, body, tail)) = split_message(rest) {
                prop_assert!(tail.len() < rest.len());
                find(body, kind);
                rest = tail;
            }
            find(&bytes, kind);
        }
    }
}
