//! What goes to and comes from `/dev/mapper/control`: `struct dm_ioctl` and what follows it, and the one ioctl.
//!
//! A message is one buffer: a header of 312 bytes and a payload, the same buffer for the request and for the answer. When
//! an answer does not fit, the kernel says so, and the request is made again with a larger buffer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::DmName;
use crate::blockdev::DeviceNumber;

/// What can be asked; the numbers are those of linux/dm-ioctl.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Version = 0,
    List = 2,
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Status = 7,
    Load = 9,
    TableStatus = 12,
    TargetVersion = 17,
}

/// Flags of a message, from linux/dm-ioctl.h.
pub(super) mod flag {
    pub const READ_ONLY: u32 = 1 << 0;
    pub const SUSPEND: u32 = 1 << 1;
    pub const STATUS_TABLE: u32 = 1 << 4;
    pub const ACTIVE_PRESENT: u32 = 1 << 5;
    pub const INACTIVE_PRESENT: u32 = 1 << 6;
    pub const BUFFER_FULL: u32 = 1 << 8;
    pub const SKIP_LOCKFS: u32 = 1 << 10;
    pub const NO_FLUSH: u32 = 1 << 11;
}

/// The interface whose structures these are; the kernel refuses another major version, and serves older minor ones.
const VERSION: [u32; 3] = [4, 0, 0];
/// size_of(struct dm_ioctl).
const HEADER_BYTES: usize = 312;
/// A first buffer in which most answers fit.
const BUFFER_BYTES: usize = 16 * 1024;
/// The largest buffer: a list of some 20 000 devices.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;
/// How often a request is made again that a signal interrupted.
const INTERRUPTED_MAX: u32 = 16;

/// Where the fields of struct dm_ioctl are.
mod at {
    pub const VERSION: usize = 0;
    pub const DATA_SIZE: usize = 12;
    pub const DATA_START: usize = 16;
    pub const TARGET_COUNT: usize = 20;
    pub const OPEN_COUNT: usize = 24;
    pub const FLAGS: usize = 28;
    pub const EVENT_NUMBER: usize = 32;
    pub const DEVICE: usize = 40;
    pub const NAME: usize = 48;
}

/// A request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub command: Command,
    pub name: Option<&'a DmName>,
    pub flags: u32,
    /// For requests that raise a uevent: what udev is told beside it.
    pub event: u32,
    pub target_count: u32,
    pub payload: &'a [u8],
}

impl<'a> Request<'a> {
    pub fn new(command: Command, name: Option<&'a DmName>) -> Self {
        Self { command, name, flags: 0, event: 0, target_count: 0, payload: &[] }
    }

    fn encode(&self, bytes: usize) -> Buffer {
        let mut buffer = Buffer(vec![0; bytes.div_ceil(8)]);
        for (index, part) in VERSION.into_iter().enumerate() {
            buffer.put_u32(at::VERSION + 4 * index, part);
        }
        buffer.put_u32(at::DATA_SIZE, (buffer.0.len() * 8) as u32);
        buffer.put_u32(at::DATA_START, HEADER_BYTES as u32);
        buffer.put_u32(at::TARGET_COUNT, self.target_count);
        buffer.put_u32(at::FLAGS, self.flags);
        buffer.put_u32(at::EVENT_NUMBER, self.event);
        if let Some(name) = self.name {
            buffer.put(at::NAME, name.as_str().as_bytes());
        }
        buffer.put(HEADER_BYTES, self.payload);
        buffer
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub version: [u32; 3],
    pub flags: u32,
    pub open_count: u32,
    pub target_count: u32,
    pub device: DeviceNumber,
    pub payload: Vec<u8>,
}

impl Answer {
    fn decode(buffer: &Buffer) -> Self {
        let bytes: Vec<u8> = buffer.0.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let word = |offset| buffer.u32(offset);
        let (start, end) = (word(at::DATA_START) as usize, word(at::DATA_SIZE) as usize);
        Self {
            version: [0, 1, 2].map(|index| word(at::VERSION + 4 * index)),
            flags: word(at::FLAGS),
            open_count: word(at::OPEN_COUNT),
            target_count: word(at::TARGET_COUNT),
            device: DeviceNumber::from_kernel(buffer.0[at::DEVICE / 8]),
            payload: bytes.get(start..end.min(bytes.len())).unwrap_or_default().to_vec(),
        }
    }
}

/// Words, so that the kernel's structure is aligned.
struct Buffer(Vec<u64>);

impl Buffer {
    /// Native byte order, as a structure in memory has it.
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            let mut word = self.0[(offset + index) / 8].to_ne_bytes();
            word[(offset + index) % 8] = *byte;
            self.0[(offset + index) / 8] = u64::from_ne_bytes(word);
        }
    }

    fn put_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_ne_bytes());
    }

    fn u32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4));
        let word = self.0[offset / 8].to_ne_bytes();
        let half = offset % 8;
        u32::from_ne_bytes([word[half], word[half + 1], word[half + 2], word[half + 3]])
    }
}

/// Asks the kernel, with a buffer that grows until the answer fits. Bounded: an answer of more than 1 MiB is refused with
/// `OutOfMemory`.
pub(super) fn ask(control: BorrowedFd<'_>, request: &Request<'_>) -> io::Result<Answer> {
    let mut bytes = BUFFER_BYTES.max(HEADER_BYTES + request.payload.len());
    while bytes <= BUFFER_BYTES_MAX {
        let mut buffer = request.encode(bytes);
        call_patiently(control, request.command, &mut buffer)?;
        if buffer.u32(at::FLAGS) & flag::BUFFER_FULL == 0 {
            return Ok(Answer::decode(&buffer));
        }
        bytes *= 2;
    }
    Err(io::Error::new(io::ErrorKind::OutOfMemory, "device-mapper's message takes more than 1 MiB"))
}

/// Suspending waits for I/O and may be interrupted by a signal, without having changed anything.
fn call_patiently(control: BorrowedFd<'_>, command: Command, buffer: &mut Buffer) -> io::Result<()> {
    for _ in 0..INTERRUPTED_MAX {
        match call(control, command, buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// The one place that calls device-mapper.
fn call(control: BorrowedFd<'_>, command: Command, buffer: &mut Buffer) -> io::Result<()> {
    // _IOWR(0xfd, command, struct dm_ioctl).
    let number: u32 = 3 << 30 | (HEADER_BYTES as u32) << 16 | 0xfd << 8 | command as u32;
    assert!(buffer.0.len() * 8 >= HEADER_BYTES && buffer.u32(at::DATA_SIZE) as usize == buffer.0.len() * 8);
    // SAFETY: the kernel reads and writes at most `data_size` bytes from the pointer on, which is the buffer's length (just
    // asserted); the buffer is aligned for u64, borrowed by us alone, and plain integers, valid with any bits.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), number.into(), buffer.0.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_lies_where_the_kernel_reads_it() {
        let name: DmName = "abc".parse().unwrap();
        let request = Request {
            flags: 5,
            event: 7,
            target_count: 1,
            payload: b"xyz",
            ..Request::new(Command::Load, Some(&name))
        };
        let buffer = request.encode(400);
        assert_eq!(buffer.u32(12), 400);
        assert_eq!(buffer.u32(16), 312);
        assert_eq!((buffer.u32(20), buffer.u32(28), buffer.u32(32)), (1, 5, 7));
        let answer = Answer::decode(&buffer);
        assert_eq!(&answer.payload[..4], b"xyz\0");
        assert_eq!(answer.payload.len(), 88);
        assert_eq!(buffer.0[6].to_ne_bytes(), *b"abc\0\0\0\0\0");
    }
}
