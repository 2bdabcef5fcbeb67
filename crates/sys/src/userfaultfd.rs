//! Page faults that are answered in user space: userfaultfd, from the side of who answers.
//!
//! ```text
//!   a thread touches a page that is not there ─► sleeps ─► Event::Fault ─► copy or zero ─► it goes on
//!   memory is given back (MADV_DONTNEED)      ─► sleeps ─► Event::Removed, read ─────────► it goes on
//! ```
//!
//! The descriptor belongs to the address space of the process that made it, and works from wherever it is held. A page that
//! is there is never overwritten. From a removal on until its event was read and the remover has gone on, the kernel fills
//! nothing at all ([`Filled::Changing`]).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::mapping::PrivateMapping;

/// Most events that one [`Userfaultfd::read`] takes.
pub const EVENTS_MAX: usize = 64;

/// Bytes of a page, the unit of everything here.
const PAGE_BYTES: u64 = 4096;
/// size_of(struct uffd_msg).
const MESSAGE_BYTES: usize = 32;
/// Events, from linux/userfaultfd.h.
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;
/// The interface, which is also the family of its ioctls.
const API: u64 = 0xaa;
/// That removals are told.
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// That faults on pages which are not there are told.
const REGISTER_MODE_MISSING: u64 = 1;

/// The requests, with the numbers and structures of linux/userfaultfd.h; all fields have 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// start, length, mode, ioctls.
    Register,
    /// start, length.
    Wake,
    /// destination, source, length, mode, copied.
    Copy,
    /// start, length, mode, zeroed.
    Zeropage,
    /// version, features, ioctls.
    Api,
}

impl Request {
    /// Direction (2 is from the kernel's answer alone, 3 is both), number, fields.
    const fn shape(self) -> (u32, u32, usize) {
        match self {
            Self::Register => (3, 0x00, 4),
            Self::Wake => (2, 0x02, 2),
            Self::Copy => (3, 0x03, 5),
            Self::Zeropage => (3, 0x04, 4),
            Self::Api => (3, 0x3f, 3),
        }
    }
}

/// What happened in the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread sleeps because this address is not there.
    Fault {
        /// The address, of a byte or of its page.
        address: u64,
    },
    /// Memory is given back: what is read there from now on is not what was there before.
    Removed {
        /// The first address.
        start: u64,
        /// The one after the last.
        end: u64,
    },
    /// Something that nobody asked to be told.
    Other(u8),
}

/// How far a request to fill pages went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// To its end.
    All,
    /// So many bytes from its start on, whole pages; who wants the rest asks again.
    Partly(u64),
    /// Nothing: the first page is there already. Nobody was woken.
    Present,
    /// Nothing: memory is being removed. There is an event to read, or its remover has not gone on yet.
    Changing,
    /// Nothing: the process has ended.
    Gone,
}

/// An address space whose faults are answered here.
#[derive(Debug)]
pub struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// One of this process, which is told of removals. An error means that this host or user has none.
    pub fn create() -> io::Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
        // _IO(0xaa, 0x00): USERFAULTFD_IOC_NEW.
        let (number, flags) = (0xaa00_u64, libc::O_CLOEXEC | libc::O_NONBLOCK);
        // SAFETY: takes plain flags, gives a new descriptor or an error.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), number, flags) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, for us alone.
        let made = Self(unsafe { OwnedFd::from_raw_fd(made) });
        made.request(Request::Api, &mut [API, FEATURE_EVENT_REMOVE, 0])?;
        Ok(made)
    }

    /// One that was handed over by the process it belongs to; an error for a descriptor of something else.
    pub fn received(descriptor: OwnedFd) -> io::Result<Self> {
        let kind = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?;
        if kind.as_os_str() != "anon_inode:[userfaultfd]" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a userfaultfd"));
        }
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self(descriptor))
    }

    /// Has faults in all of `mapping` answered here.
    pub fn register(&self, mapping: &PrivateMapping) -> io::Result<()> {
        self.request(Request::Register, &mut [mapping.address(), mapping.bytes() as u64, REGISTER_MODE_MISSING, 0])
    }

    /// Adds the events that wait to `events`, at most [`EVENTS_MAX`]; none when none wait.
    pub fn read(&self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut bytes = [0; EVENTS_MAX * MESSAGE_BYTES];
        let read = match rustix::io::read(&self.0, &mut bytes) {
            Ok(read) => read,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        events.extend(bytes[..read].chunks_exact(MESSAGE_BYTES).map(event));
        Ok(())
    }

    /// Fills pages from `start` on with `bytes`, and wakes who waits for them.
    pub fn copy(&self, start: u64, bytes: &[u8]) -> io::Result<Filled> {
        let length = bytes.len() as u64;
        let mut fields = [start, bytes.as_ptr() as u64, length, 0, 0];
        let result = self.request(Request::Copy, &mut fields);
        filled(result, fields[4])
    }

    /// Lets `length` bytes from `start` on be zero, which takes no memory until they are written, and wakes who waits for
    /// them.
    pub fn zero(&self, start: u64, length: u64) -> io::Result<Filled> {
        let mut fields = [start, length, 0, 0];
        let result = self.request(Request::Zeropage, &mut fields);
        filled(result, fields[3])
    }

    /// Wakes who waits for the page at `start`: it looks again whether that is there.
    pub fn wake(&self, start: u64) -> io::Result<()> {
        self.request(Request::Wake, &mut [start, PAGE_BYTES])
    }

    /// The one place that calls the kernel.
    fn request<const N: usize>(&self, request: Request, fields: &mut [u64; N]) -> io::Result<()> {
        let (direction, number, count) = request.shape();
        assert!(count == N, "the structure of {request:?}");
        let number = direction << 30 | (N as u32 * 8) << 16 | (API as u32) << 8 | number;
        // SAFETY: the kernel reads and writes the structure alone, which has the size that the number says (asserted) and is
        // borrowed by us alone. Through it, `Copy` reads `length` bytes from a slice that its caller borrows. What it fills
        // are pages that are not there of memory that was registered: in another process, or here a `PrivateMapping`, to
        // which no references exist. The descriptor is a userfaultfd: we made it, or it was looked at when it was received.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), number.into(), fields.as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor can be handed on.
impl From<Userfaultfd> for OwnedFd {
    fn from(userfaultfd: Userfaultfd) -> Self {
        userfaultfd.0
    }
}

/// `done` is what the kernel says it did: bytes, or an error as a negative number.
fn filled(result: io::Result<()>, done: u64) -> io::Result<Filled> {
    let Err(error) = result else { return Ok(Filled::All) };
    match (error.raw_os_error(), done.cast_signed()) {
        (Some(libc::EAGAIN), 1..) => Ok(Filled::Partly(done)),
        (Some(libc::EAGAIN), _) => Ok(Filled::Changing),
        (Some(libc::EEXIST), _) => Ok(Filled::Present),
        (Some(libc::ESRCH), _) => Ok(Filled::Gone),
        _other_errors => Err(error),
    }
}

/// Reads struct uffd_msg: the event in its first byte, its arguments from the eighth on.
fn event(message: &[u8]) -> Event {
    let number = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("eight bytes"));
    match message[0] {
        EVENT_PAGEFAULT => Event::Fault { address: number(16) },
        EVENT_REMOVE => Event::Removed { start: number(8), end: number(16) },
        other => Event::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    const PAGE: usize = PAGE_BYTES as usize;

    /// The next events; fails when none come.
    fn next(faults: &Userfaultfd) -> Vec<Event> {
        let limit = Timespec::try_from(Duration::from_secs(30)).unwrap();
        assert_eq!(poll(&mut [PollFd::new(faults, PollFlags::IN)], Some(&limit)).unwrap(), 1, "nothing happens");
        let mut events = Vec::new();
        faults.read(&mut events).unwrap();
        events
    }

    fn registered(pages: usize) -> (Userfaultfd, PrivateMapping) {
        let faults = Userfaultfd::create().expect("this test needs root and /dev/userfaultfd");
        let mapping = PrivateMapping::anonymous(pages * PAGE).unwrap();
        faults.register(&mapping).unwrap();
        (faults, mapping)
    }

    #[test]
    fn root_faults_and_removals_are_told_and_answered() {
        let (faults, mut mapping) = registered(4);
        let start = mapping.address();
        let mut none = Vec::new();
        faults.read(&mut none).unwrap();
        assert_eq!(none, []);
        let reader = std::thread::spawn(move || {
            let mut byte = [0; 3];
            mapping.read(PAGE + 7, &mut byte[..1]);
            mapping.read(2 * PAGE, &mut byte[1..2]);
            mapping.discard(PAGE, PAGE).unwrap();
            mapping.read(PAGE, &mut byte[2..]);
            (mapping, byte)
        });
        let page = |number: u64| start + number * PAGE_BYTES;
        let Event::Fault { address } = next(&faults)[0] else { panic!("no fault") };
        assert_eq!(address & !(PAGE_BYTES - 1), page(1));
        assert_eq!(faults.copy(page(1), &[9; PAGE]).unwrap(), Filled::All);
        assert_eq!(faults.copy(page(1), &[8; PAGE]).unwrap(), Filled::Present);
        assert_eq!(faults.zero(page(0), 2 * PAGE_BYTES).unwrap(), Filled::Partly(PAGE_BYTES));
        next(&faults);
        assert_eq!(faults.zero(page(2), 2 * PAGE_BYTES).unwrap(), Filled::All);

        // The event is read by the first who looks; until then nothing can be filled.
        let limit = Timespec::try_from(Duration::from_secs(30)).unwrap();
        assert_eq!(poll(&mut [PollFd::new(&faults, PollFlags::IN)], Some(&limit)).unwrap(), 1);
        assert_eq!(faults.copy(page(1), &[7; PAGE]).unwrap(), Filled::Changing);
        assert_eq!(next(&faults), [Event::Removed { start: page(1), end: page(2) }]);
        assert!(matches!(next(&faults)[..], [Event::Fault { .. }]));
        assert_eq!(faults.zero(page(1), PAGE_BYTES).unwrap(), Filled::All);
        faults.wake(page(1)).unwrap();
        let (_mapping, seen) = reader.join().unwrap();
        assert_eq!(seen, [9, 0, 0]);
    }

    #[test]
    fn root_what_is_not_registered_and_no_userfaultfd_at_all_are_errors() {
        let (faults, _mapping) = registered(1);
        assert_eq!(faults.zero(PAGE_BYTES, PAGE_BYTES).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let refused = Userfaultfd::received(tempfile::tempfile().unwrap().into()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        Userfaultfd::received(OwnedFd::from(faults)).unwrap();
    }
}
