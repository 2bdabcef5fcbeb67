//! Loop devices: a file as a block device.
//!
//! [`LoopDevice::attach`] takes a free device and gives it its file and all of its settings in one step (LOOP_CONFIGURE), so
//! that nobody ever sees a half-made one. With [`Options::autoclear`] the kernel detaches it when its last user closes
//! it; a device-mapper table that names it is a user. So: attach, keep the handle until the table is in place, close it;
//! from then on the loop device lives exactly as long as what stands on it, whoever gets killed.
//!
//! The kernel tells of each device which file is behind it, by device and inode number: also when the file has no name
//! any more. Which number a device gets is the kernel's choice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use crate::blockdev::DeviceNumber;

/// Where free devices are asked for.
const CONTROL: &str = "/dev/loop-control";
/// Tries to get a free device before somebody else does: each loss means that another one got his.
const ATTACH_TRIES: u32 = 64;
/// A pause after a lost try; the winner is done long before.
const ATTACH_PAUSE: Duration = Duration::from_millis(1);
/// What a device's blocks are to those who use it, whatever the file system beneath has.
const BLOCK_BYTES: u32 = 512;

/// Why a loop device is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control device or a device's node cannot be opened.
    #[error("cannot open {path}; is the loop driver in this kernel, and loaded?")]
    Open {
        /// The node.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The kernel said no.
    #[error("cannot {step} the loop device {path}")]
    Refused {
        /// What was being done.
        step: &'static str,
        /// To which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Others took each free device first.
    #[error("no free loop device was to be had in {ATTACH_TRIES} tries; others take them all")]
    Contended,
    /// The list of devices cannot be read.
    #[error("cannot list the loop devices in /sys/block")]
    List(#[source] io::Error),
}

impl Error {
    /// Whether the device is in use by somebody else.
    pub fn is_busy(&self) -> bool {
        self.errno() == Some(libc::EBUSY)
    }

    /// Whether there is no such device, or no file behind it.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(libc::ENXIO | libc::ENOENT | libc::ENODEV))
    }

    fn errno(&self) -> Option<i32> {
        match self {
            Self::Open { source, .. } | Self::Refused { source, .. } => source.raw_os_error(),
            Self::Contended | Self::List(_) => None,
        }
    }
}

/// How a file is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Writes are refused.
    pub read_only: bool,
    /// The file's page cache is passed by, where its file system can.
    pub direct_io: bool,
    /// Detached when the last user closes it.
    pub autoclear: bool,
}

/// What is behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The file system the file is in.
    pub backing_device: DeviceNumber,
    /// The file's inode in it.
    pub backing_inode: u64,
    /// Where in the file the device begins, in bytes.
    pub offset: u64,
    /// Where it ends, in bytes from there; 0 is the end of the file.
    pub size_limit: u64,
    /// How it is attached. `direct_io` says what is really done.
    pub options: Options,
}

/// An attached device that this process holds open.
#[derive(Debug)]
pub struct LoopDevice {
    number: u32,
    device: DeviceNumber,
    file: File,
}

impl LoopDevice {
    /// Attaches `backing`, all of it, to a free device. `backing` must be open for writing unless it is read-only.
    pub fn attach(backing: BorrowedFd<'_>, options: Options) -> Result<Self, Error> {
        let control = open(Path::new(CONTROL), false)?;
        for _ in 0..ATTACH_TRIES {
            let number = free_number(&control)?;
            let device = Self::open(number, options.read_only)?;
            match device.configure(backing, options) {
                Ok(()) => return Ok(device),
                Err(error) if error.is_busy() => std::thread::sleep(ATTACH_PAUSE),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Contended)
    }

    /// Opens the device of this number, whatever is behind it. While it is open it is not detached.
    pub fn open(number: u32, read_only: bool) -> Result<Self, Error> {
        let path = node(number);
        let file = open(&path, !read_only)?;
        let device = DeviceNumber::of(&file).map_err(|source| Error::Open { path, source })?;
        Ok(Self { number, device, file })
    }

    /// The device's place among the loop devices.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The device's number among all devices.
    pub fn device(&self) -> DeviceNumber {
        self.device
    }

    /// The device's node.
    pub fn path(&self) -> PathBuf {
        node(self.number)
    }

    /// What is behind it; absent when there is nothing.
    pub fn status(&self) -> Result<Status, Error> {
        let mut info = LoopInfo::default();
        // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64, which `info` is; borrowed by us alone, plain integers.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_GET_STATUS64, ptr::from_mut(&mut info)) };
        self.check("look at", result)?;
        Ok(info.into())
    }

    /// Detaches the file now; when others still use the device, as soon as they do not.
    pub fn detach(self) -> Result<(), Error> {
        // SAFETY: LOOP_CLR_FD takes no argument.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_CLR_FD, 0) };
        self.check("detach", result)
    }

    fn configure(&self, backing: BorrowedFd<'_>, options: Options) -> Result<(), Error> {
        let mut config =
            LoopConfig { fd: backing.as_raw_fd() as u32, block_size: BLOCK_BYTES, ..LoopConfig::default() };
        config.info.flags = options.bits();
        // SAFETY: LOOP_CONFIGURE reads one struct loop_config, which `config` is and which outlives the call; the descriptor
        // in it is borrowed, and so open.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_CONFIGURE, ptr::from_ref(&config)) };
        self.check("attach a file to", result)
    }

    fn check(&self, step: &'static str, result: libc::c_int) -> Result<(), Error> {
        if result < 0 {
            return Err(Error::Refused { step, path: self.path(), source: io::Error::last_os_error() });
        }
        Ok(())
    }
}

/// A device that has a file, as /sys/block tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its number.
    pub number: u32,
    /// The file's path as it was seen when it was attached; the kernel adds ` (deleted)` to one that has none any more. Only
    /// a hint: [`LoopDevice::status`] knows the file.
    pub backing: PathBuf,
}

/// The devices that have a file, lowest number first; read as the iterator goes.
pub fn attached() -> Result<impl Iterator<Item = Attached>, Error> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/sys/block").map_err(Error::List)? {
        let name = entry.map_err(Error::List)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix("loop")?.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers.into_iter().filter_map(|number| Some(Attached { number, backing: backing_path(number)? })))
}

/// `None` for a device without a file, or one that is being detached.
fn backing_path(number: u32) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut text = std::fs::read(format!("/sys/block/loop{number}/loop/backing_file")).ok()?;
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    Some(std::ffi::OsString::from_vec(text).into())
}

fn node(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn open(path: &Path, write: bool) -> Result<File, Error> {
    let opened = OpenOptions::new().read(true).write(write).open(path);
    opened.map_err(|source| Error::Open { path: path.to_owned(), source })
}

fn free_number(control: &File) -> Result<u32, Error> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0) };
    u32::try_from(number).map_err(|_| Error::Refused {
        step: "find",
        path: CONTROL.into(),
        source: io::Error::last_os_error(),
    })
}

// From linux/loop.h; these numbers carry no size.
const LOOP_CLR_FD: libc::c_ulong = 0x4c01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_DIRECT_IO: u32 = 16;

impl Options {
    fn bits(self) -> u32 {
        let bit = |wanted, bit| if wanted { bit } else { 0 };
        bit(self.read_only, FLAG_READ_ONLY) | bit(self.direct_io, FLAG_DIRECT_IO) | bit(self.autoclear, FLAG_AUTOCLEAR)
    }
}

/// struct loop_info64.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// struct loop_config.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

impl Default for LoopInfo {
    fn default() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

impl From<LoopInfo> for Status {
    fn from(info: LoopInfo) -> Self {
        let has = |flag| info.flags & flag != 0;
        Self {
            backing_device: DeviceNumber::from_kernel(info.device),
            backing_inode: info.inode,
            offset: info.offset,
            size_limit: info.size_limit,
            options: Options {
                read_only: has(FLAG_READ_ONLY),
                direct_io: has(FLAG_DIRECT_IO),
                autoclear: has(FLAG_AUTOCLEAR),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn backing() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"hello", 0).unwrap();
        file
    }

    fn behind(device: &LoopDevice, file: &File) -> bool {
        let (status, metadata) = (device.status().unwrap(), file.metadata().unwrap());
        (status.backing_device, status.backing_inode) == (DeviceNumber::from_stat(metadata.dev()), metadata.ino())
    }

    #[test]
    fn root_all_settings_are_there_at_once_and_the_last_user_takes_it_away() {
        let file = backing();
        let wanted = Options { read_only: true, direct_io: false, autoclear: true };
        let device = LoopDevice::attach(file.as_fd(), wanted).expect("this test needs root and loop devices");
        let status = device.status().unwrap();
        assert_eq!((status.options, status.offset, status.size_limit), (wanted, 0, 0));
        assert!(behind(&device, &file));
        let mut bytes = [0; 5];
        device.file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"hello");
        assert!(OpenOptions::new().write(true).open(device.path()).and_then(|it| it.write_at(b"x", 0)).is_err());

        let number = device.number();
        assert!(attached().unwrap().any(|it| it.number == number));
        let second = LoopDevice::open(number, true).unwrap();
        drop(device);
        assert!(behind(&second, &file), "the second user keeps it");
        drop(second);
        let left = LoopDevice::open(number, true).and_then(|device| device.status());
        assert!(left.is_err_and(|error| error.is_absent()) || !attached().unwrap().any(|it| it.number == number));
    }

    #[test]
    fn root_a_device_without_autoclear_is_detached_by_hand() {
        let file = backing();
        let options = Options { read_only: false, direct_io: false, autoclear: false };
        let device = LoopDevice::attach(file.as_fd(), options).expect("this test needs root and loop devices");
        device.file.write_all_at(b"HELLO", 0).unwrap();
        device.file.sync_all().unwrap();
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"HELLO");
        device.detach().unwrap();
    }

    #[test]
    fn root_many_at_once_get_a_device_each() {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(|| {
                    let file = backing();
                    let options = Options { read_only: true, direct_io: false, autoclear: true };
                    let device =
                        LoopDevice::attach(file.as_fd(), options).expect("this test needs root and loop devices");
                    assert!(behind(&device, &file));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
