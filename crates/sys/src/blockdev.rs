//! Block devices: their numbers, their unit, and their nodes.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The number of a block device, as the kernel knows it: `7:0` is the first loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the form that `stat` has.
    pub fn from_stat(number: u64) -> Self {
        Self { major: rustix::fs::major(number), minor: rustix::fs::minor(number) }
    }

    /// From the form that ioctls have (`huge_encode_dev` in the kernel): 12 bits of the major number between 20 of the minor.
    pub(crate) fn from_kernel(number: u64) -> Self {
        let (low, high) = (number & 0xff, (number >> 12) & 0xf_ff00);
        Self { major: ((number >> 8) & 0xfff) as u32, minor: (low | high) as u32 }
    }

    /// The number of the block device that is open as `file`; an error when it is something else.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a block device"));
        }
        Ok(Self::from_stat(metadata.rdev()))
    }

    /// The device's node in `/dev`, for drivers that name theirs by the minor number; `None` when there is none, or one of
    /// another device.
    pub fn node(self, prefix: &str) -> Option<PathBuf> {
        let path = Path::new("/dev").join(format!("{prefix}{}", self.minor));
        // A node that cannot be looked at is as good as none.
        let metadata = std::fs::metadata(&path).ok()?;
        let fits = metadata.file_type().is_block_device() && Self::from_stat(metadata.rdev()) == self;
        fits.then_some(path)
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Text that is no device number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a device number such as 7:0")]
pub struct NotADeviceNumber(String);

impl FromStr for DeviceNumber {
    type Err = NotADeviceNumber;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (major, minor) = text.split_once(':')?;
            let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(major) || !digits(minor) {
                return None;
            }
            Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
        };
        parse().ok_or_else(|| NotADeviceNumber(text.chars().take(40).collect()))
    }
}

/// An amount of 512 bytes each, the unit of the block layer whatever a device's own block size is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sectors(pub u64);

impl Sectors {
    /// Bytes in a sector.
    pub const BYTES: u64 = 512;

    /// As many sectors as `bytes` are; `None` when that is no whole number.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        if bytes.is_multiple_of(Self::BYTES) { Some(Self(bytes / Self::BYTES)) } else { None }
    }

    /// The same in bytes; saturates.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(Self::BYTES)
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_number_are_read() {
        assert_eq!(DeviceNumber::from_kernel(0x0700), DeviceNumber { major: 7, minor: 0 });
        assert_eq!(DeviceNumber::from_kernel(0x10fd05), DeviceNumber { major: 253, minor: 0x105 });
        assert_eq!(DeviceNumber::from_stat(0x0703), DeviceNumber { major: 7, minor: 3 });
        assert_eq!("253:261".parse(), Ok(DeviceNumber { major: 253, minor: 261 }));
        for text in ["", "7", "7:", ":1", "7:+1", "a:b", "7:0:1", "4294967296:0"] {
            assert!(text.parse::<DeviceNumber>().is_err(), "{text}");
        }
    }

    #[test]
    fn sectors_are_never_rounded() {
        assert_eq!(Sectors::from_bytes(1024), Some(Sectors(2)));
        assert_eq!(Sectors::from_bytes(1000), None);
        assert_eq!(Sectors(3).bytes(), 1536);
    }
}
