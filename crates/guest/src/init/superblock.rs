//! Just enough of an ext4 superblock: is it one, and does the filesystem fill its device?

/// Where the superblock begins, in bytes.
pub const OFFSET: u64 = 1024;
/// Its length in bytes.
pub const LENGTH: usize = 1024;

const MAGIC: u16 = 0xef53;
const INCOMPAT_64BIT: u32 = 0x80;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Blocks of the filesystem.
    pub blocks: u64,
    /// Bytes of a block: a power of two from 1024 to 65536.
    pub block_size: u64,
}

/// Why there is no ext4 filesystem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    #[error("it holds no ext4 filesystem (magic {0:#06x})")]
    Magic(u16),
    #[error("its ext4 superblock is damaged: {0}")]
    Damaged(&'static str),
    #[error("the filesystem needs {wanted} bytes, the device has {device}: the image was cut short")]
    TooLong { wanted: u64, device: u64 },
}

/// Reads a superblock.
pub fn parse(bytes: &[u8; LENGTH]) -> Result<Superblock, SuperblockError> {
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let magic = u16::from_le_bytes([bytes[0x38], bytes[0x39]]);
    if magic != MAGIC {
        return Err(SuperblockError::Magic(magic));
    }
    let log_block_size = u32_at(0x18);
    if log_block_size > 6 {
        return Err(SuperblockError::Damaged("impossible block size"));
    }
    let high = if u32_at(0x60) & INCOMPAT_64BIT == 0 { 0 } else { u64::from(u32_at(0x150)) };
    let blocks = high << 32 | u64::from(u32_at(0x4));
    if blocks == 0 {
        return Err(SuperblockError::Damaged("no blocks"));
    }
    Ok(Superblock { blocks, block_size: 1024 << log_block_size })
}

impl Superblock {
    /// The number of blocks to grow to on a device of `device` bytes; `None` if the filesystem fills it.
    pub fn growth(&self, device: u64) -> Result<Option<u64>, SuperblockError> {
        let fitting = device / self.block_size;
        if fitting < self.blocks {
            return Err(SuperblockError::TooLong { wanted: self.blocks.saturating_mul(self.block_size), device });
        }
        Ok((fitting > self.blocks).then_some(fitting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn superblock(blocks: u64, log_block_size: u32) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[0x4..0x8].copy_from_slice(&(blocks as u32).to_le_bytes());
        bytes[0x18..0x1c].copy_from_slice(&log_block_size.to_le_bytes());
        bytes[0x60..0x64].copy_from_slice(&INCOMPAT_64BIT.to_le_bytes());
        bytes[0x150..0x154].copy_from_slice(&((blocks >> 32) as u32).to_le_bytes());
        bytes
    }

    #[test]
    fn refuses_what_is_no_filesystem() {
        assert_eq!(parse(&[0; LENGTH]), Err(SuperblockError::Magic(0)));
        assert_eq!(parse(&superblock(5, 7)), Err(SuperblockError::Damaged("impossible block size")));
        assert_eq!(parse(&superblock(0, 2)), Err(SuperblockError::Damaged("no blocks")));
    }

    #[test]
    fn grows_to_whole_blocks_and_sees_a_cut_image() {
        let found = parse(&superblock(16384, 2)).unwrap();
        assert_eq!(found, Superblock { blocks: 16384, block_size: 4096 });
        assert_eq!(found.growth(64 << 20), Ok(None));
        assert_eq!(found.growth((64 << 20) + 4095), Ok(None));
        assert_eq!(found.growth(1 << 30), Ok(Some(262_144)));
        assert_eq!(found.growth(0), Err(SuperblockError::TooLong { wanted: 64 << 20, device: 0 }));
        assert_eq!(parse(&superblock(1 << 33, 2)).unwrap().blocks, 1 << 33);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), LENGTH), device in any::<u64>()) {
            let mut bytes: [u8; LENGTH] = bytes.try_into().unwrap();
            bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
            if let Ok(found) = parse(&bytes) && let Ok(Some(blocks)) = found.growth(device) {
                prop_assert!(blocks > found.blocks && blocks * found.block_size <= device);
            }
        }
    }
}
