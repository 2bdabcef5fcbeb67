//! Making an ext4 image from a folder, in user space: `mke2fs -d`, nothing is mounted.
//!
//! Every parameter is given, so that neither this host's mke2fs.conf nor the version of e2fsprogs decides. The reserved
//! descriptor blocks let the filesystem grow online to a terabyte; the inode tables count as written (they are zeros, and
//! the file is sparse), so that no guest does it in the background.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::files::{FileError, at};
use super::tree::Summary;
use crate::command::{Command, CommandError};
use crate::units::Mib;

/// Changes whenever the same tree would become another image.
pub const FORMAT: u32 = 1;

const BLOCK: u64 = 4096;
const INODE: u64 = 256;
/// One inode for so many bytes: mke2fs' own ratio for disks of this kind.
const BYTES_PER_INODE: u64 = 16384;
/// Blocks of the largest filesystem it can grow to: 1 TiB.
const BLOCKS_MAX: u64 = (1 << 40) / BLOCK;
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// The same in every image: nothing may depend on it, and images of the same content should be the same.
const UUID: &str = "77726e6e-0000-4000-8000-657874340001";
/// 2025-01-01, as the files have it.
const TIME: &str = "1735689600";
/// debugfs repeats every command it is given.
const DEBUGFS_OUTPUT_MAX: usize = 64 << 20;
/// A Debian tree takes about two seconds.
const TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// How large an image is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Least size of the filesystem.
    pub least: Mib,
    /// Free space beyond its content.
    pub free: Mib,
    /// Size of the journal.
    pub journal: Mib,
}

/// Size of the filesystem and number of its inodes, for a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    /// Bytes, a multiple of 4 MiB.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// mke2fs failed.
    #[error("cannot make the filesystem of {mib}", mib = Mib::holding(*bytes))]
    Mke2fs {
        /// Its size in bytes.
        bytes: u64,
        /// Why.
        #[source]
        source: CommandError,
    },
}

/// The geometry that holds a tree and leaves the room asked for.
fn geometry(tree: &Summary, room: Room) -> Geometry {
    let content = tree.bytes + tree.bytes / 64 + room.journal.bytes() + room.free.bytes();
    let inodes_for = |bytes: u64| (bytes / BYTES_PER_INODE).max(tree.inodes * 2);
    // The tables are part of the size, and grow with it: one round is enough at 1/64.
    let tables = inodes_for(content) * INODE;
    let bytes = (content + tables + tables / 32).max(room.least.bytes()).next_multiple_of(4 << 20);
    Geometry { bytes, inodes: inodes_for(bytes) }
}

/// Makes the image file `image`, which must not exist, from the folder `tree`, which `summary` sums up.
pub async fn make(image: &Path, tree: &Path, summary: &Summary, room: Room) -> Result<(), Ext4Error> {
    let geometry = geometry(summary, room);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(image);
    file.and_then(|file| file.set_len(geometry.bytes)).map_err(at("make the image", image))?;
    let failed = |source| Ext4Error::Mke2fs { bytes: geometry.bytes, source };
    Command::new("mke2fs")
        .args(arguments(geometry, room))
        .arg("-d")
        .arg(tree)
        .arg(image)
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .env("SOURCE_DATE_EPOCH", TIME)
        .timeout(TIMEOUT)
        .run()
        .await
        .map_err(failed)?;
    Command::new("debugfs")
        .args(["-w", "-f", "/dev/stdin"])
        .arg(image)
        .stdin(change_times(summary.inodes))
        .stdout_max(DEBUGFS_OUTPUT_MAX)
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .timeout(TIMEOUT)
        .run()
        .await
        .map_err(failed)?;
    Ok(())
}

/// Commands for debugfs that set the time of change of every inode: no file has a settable one, so that mke2fs copied when
/// the tree was built. It numbers inodes one after the other: the root folder is 2, lost+found 11, the rest follows.
fn change_times(inodes: u64) -> String {
    let last = 11 + inodes.saturating_sub(1);
    let command = |inode: u64| format!("set_inode_field <{inode}> ctime @{TIME}\n");
    std::iter::once(2).chain(11..=last).map(command).collect()
}

fn arguments(geometry: Geometry, room: Room) -> Vec<String> {
    let extended =
        format!("lazy_itable_init=0,lazy_journal_init=1,resize={BLOCKS_MAX},root_owner=0:0,hash_seed={UUID},nodiscard");
    let options = [
        ("-t", "ext4".to_owned()),
        ("-b", BLOCK.to_string()),
        ("-I", INODE.to_string()),
        ("-N", geometry.inodes.to_string()),
        ("-O", FEATURES.to_owned()),
        ("-J", format!("size={}", room.journal.0)),
        ("-U", UUID.to_owned()),
        ("-E", extended),
        // Nothing is kept back for root: everyone is, or can become, root in a sandbox.
        ("-m", "0".to_owned()),
        ("-L", "wrenn".to_owned()),
    ];
    let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    ["-q", "-F"].map(str::to_owned).into_iter().chain(options).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: Room = Room { least: Mib(64), free: Mib(32), journal: Mib(4) };

    proptest! {
        #[test]
        fn the_geometry_holds_the_tree(bytes in 0..1_u64 << 34, inodes in 1..1_000_000_u64, free in 0..1024_u32) {
            let room = Room { free: Mib(free), ..ROOM };
            let tree = Summary { digest: String::new(), bytes, inodes };
            let found = geometry(&tree, room);
            prop_assert_eq!(found.bytes % (4 << 20), 0);
            prop_assert!(found.bytes >= room.least.bytes());
            prop_assert!(found.inodes >= inodes * 2);
            prop_assert!(found.bytes >= bytes + found.inodes * INODE + room.journal.bytes() + room.free.bytes());
        }
    }

    #[tokio::test]
    async fn an_image_holds_its_tree_and_is_sparse() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("greeting"), "hello from ext4").unwrap();
        let image = folder.path().join("rootfs.ext4");
        let summary = Summary { digest: String::new(), bytes: 8192, inodes: 2 };
        make(&image, &tree, &summary, ROOM).await.unwrap();
        let metadata = std::fs::metadata(&image).unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 < 8 << 20, "not sparse");
        let found = Command::new("debugfs").args(["-R", "cat greeting"]).arg(&image).run().await.unwrap();
        assert_eq!(found.text(), "hello from ext4");
        Command::new("e2fsck").args(["-fn"]).arg(&image).run().await.unwrap();
        let stat = Command::new("debugfs").args(["-R", "stat greeting"]).arg(&image).run().await.unwrap().text();
        assert!(stat.contains("ctime: 0x67748580:"), "{stat}");
    }

    #[tokio::test]
    async fn a_tree_that_does_not_fit_is_an_error_with_mke2fs_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("big"), vec![1; 20 << 20]).unwrap();
        let summary = Summary { digest: String::new(), bytes: 4096, inodes: 2 };
        let room = Room { least: Mib(16), free: Mib(0), ..ROOM };
        let error = make(&folder.path().join("i"), &tree, &summary, room).await.unwrap_err();
        assert!(matches!(error, Ext4Error::Mke2fs { .. }), "{error:?}");
    }
}
