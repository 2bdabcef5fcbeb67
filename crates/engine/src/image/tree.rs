//! A root filesystem as data, and as a folder: what every template's has in common, and a digest of all of it.
//!
//! Everything is written as root with its final owner; `mke2fs -d` copies owners, modes and extended attributes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use sha2::{Digest, Sha256};

use super::files::{FileError, at};

/// The user everything runs as unless another is asked for.
pub const USER: &str = "user";
/// Its id, and its group's.
pub const USER_ID: u32 = 1000;

/// The time all files of an image have: it must not say when the image was built. 2025-01-01.
const TIMESTAMP: i64 = 1_735_689_600;

/// Owner and mode of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner; the group has the same number.
    pub owner: u32,
}

/// root's, for everyone to read.
pub const READABLE: Attributes = Attributes { mode: 0o644, owner: 0 };
/// root's, for everyone to run or enter.
pub const RUNNABLE: Attributes = Attributes { mode: 0o755, owner: 0 };

/// One thing to put into the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder; its parents are there.
    Folder(&'static str, Attributes),
    /// A file.
    File(&'static str, Attributes, Vec<u8>),
    /// A symbolic link: its path, and where it leads.
    Link(String, String),
}

/// A text file of root's.
pub fn text(path: &'static str, content: &str) -> Node {
    Node::File(path, READABLE, content.as_bytes().to_vec())
}

/// The login profile of both templates. SDKs run every command through a login shell, so no program is started here.
pub const PROFILE: &str = "\
# Read by every login shell, and so by every command of an SDK: it starts no program.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if [ \"${PS1-}\" ]; then
  if [ \"${BASH-}\" ] && [ -f /etc/bash.bashrc ]; then . /etc/bash.bashrc; else PS1='\\w $ '; fi
fi
for file in /etc/profile.d/*.sh; do
  if [ -r \"$file\" ]; then . \"$file\"; fi
done
unset file
";

/// Puts nodes into the folder `root`; files that are there are replaced.
pub fn write(root: &Path, nodes: &[Node]) -> Result<(), FileError> {
    nodes.iter().try_for_each(|node| write_node(root, node))
}

fn write_node(root: &Path, node: &Node) -> Result<(), FileError> {
    let (path, attributes) = match node {
        Node::Folder(path, attributes) => {
            let path = root.join(path);
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(at("make the folder", &path))?,
            }
            (path, attributes)
        }
        Node::File(path, attributes, content) => {
            let path = root.join(path);
            remove_if_there(&path)?;
            fs::write(&path, content).map_err(at("write", &path))?;
            (path, attributes)
        }
        Node::Link(path, target) => {
            let path = root.join(path);
            remove_if_there(&path)?;
            return symlink(target, &path).map_err(at("make the link", &path));
        }
    };
    // The owner first: changing it clears set-user-id bits.
    chown(&path, Some(attributes.owner), Some(attributes.owner))
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(attributes.mode)))
        .map_err(at("set the owner of", &path))
}

fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("replace", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Gives a whole tree to an owner.
pub fn give(path: &Path, owner: u32) -> Result<(), FileError> {
    lchown(path, Some(owner), Some(owner)).map_err(at("set the owner of", path))?;
    if path.symlink_metadata().map_err(at("look at", path))?.is_dir() {
        for entry in fs::read_dir(path).map_err(at("list", path))? {
            give(&entry.map_err(at("list", path))?.path(), owner)?;
        }
    }
    Ok(())
}

/// What a tree amounts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Hash over paths, types, modes, owners, contents and links; times do not count. Lower case hex.
    pub digest: String,
    /// Bytes its contents take in blocks of 4 KiB.
    pub bytes: u64,
    /// Files, folders and links.
    pub inodes: u64,
}

/// Sets all times of a tree to the fixed one and sums it up.
pub fn finish(root: &Path) -> Result<Summary, FileError> {
    let mut walk = Walk { root, hasher: Sha256::new(), bytes: 0, inodes: 0, links: HashMap::new() };
    walk.visit(root)?;
    Ok(Summary { digest: hex::encode(walk.hasher.finalize()), bytes: walk.bytes, inodes: walk.inodes })
}

struct Walk<'a> {
    root: &'a Path,
    hasher: Sha256,
    bytes: u64,
    inodes: u64,
    /// First path of each file that has several.
    links: HashMap<u64, PathBuf>,
}

impl Walk<'_> {
    fn visit(&mut self, path: &Path) -> Result<(), FileError> {
        let metadata = path.symlink_metadata().map_err(at("look at", path))?;
        let kind = metadata.file_type();
        let name = path.strip_prefix(self.root).unwrap_or(path).to_owned();
        self.field(name.as_os_str().as_bytes());
        for number in [metadata.mode(), metadata.uid(), metadata.gid()] {
            self.hasher.update(number.to_le_bytes());
        }
        if kind.is_dir() {
            self.count(4096);
            for child in sorted(path)? {
                self.visit(&child)?;
            }
        } else if kind.is_symlink() {
            self.count(0);
            let target = fs::read_link(path).map_err(at("read the link", path))?;
            self.field(target.as_os_str().as_bytes());
        } else if kind.is_file() {
            self.file(path, &metadata, name)?;
        } else if kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket() {
            self.count(0);
            self.hasher.update(metadata.rdev().to_le_bytes());
        }
        set_times(path)
    }

    fn file(&mut self, path: &Path, metadata: &fs::Metadata, name: PathBuf) -> Result<(), FileError> {
        if metadata.nlink() > 1 {
            if let Some(first) = self.links.get(&metadata.ino()).cloned() {
                self.field(first.as_os_str().as_bytes());
                return Ok(());
            }
            self.links.insert(metadata.ino(), name);
        }
        self.count(metadata.len().next_multiple_of(4096));
        let content = fs::read(path).map_err(at("read", path))?;
        self.field(&content);
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.inodes += 1;
        self.bytes += bytes;
    }

    /// Adds bytes after their length, so that fields cannot run into each other.
    fn field(&mut self, bytes: &[u8]) {
        self.hasher.update((bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = fs::read_dir(folder).map_err(at("list", folder))?;
    let mut paths =
        entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(at("list", folder))?;
    paths.sort();
    Ok(paths)
}

fn set_times(path: &Path) -> Result<(), FileError> {
    let time = Timespec { tv_sec: TIMESTAMP, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| at("set the times of", path)(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Vec<Node> {
        vec![
            Node::Folder("home", RUNNABLE),
            Node::Folder("home/user", Attributes { mode: 0o750, owner: USER_ID }),
            text("etc-profile", PROFILE),
            Node::Link("sh".into(), "busybox".into()),
        ]
    }

    #[test]
    fn root_the_digest_depends_on_all_but_time() {
        assert!(rustix::process::geteuid().is_root(), "this test sets owners and needs root");
        let make = |extra: &[Node]| {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), &nodes()).unwrap();
            write(folder.path(), extra).unwrap();
            finish(folder.path()).unwrap()
        };
        let plain = make(&[]);
        assert_eq!(make(&[]), plain);
        assert_eq!(plain.inodes, 5);
        for change in [
            text("etc-profile", "other"),
            Node::File("etc-profile", RUNNABLE, PROFILE.as_bytes().to_vec()),
            Node::Folder("home/user", Attributes { mode: 0o750, owner: 0 }),
            Node::Link("sh".into(), "dash".into()),
            Node::Link("new".into(), "x".into()),
        ] {
            assert_ne!(make(std::slice::from_ref(&change)).digest, plain.digest, "{change:?}");
        }
    }

    #[test]
    fn the_profile_starts_no_program() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile");
        fs::write(&path, PROFILE).unwrap();
        for line in PROFILE.lines().filter(|line| !line.starts_with('#')) {
            assert!(!line.contains("$(") && !line.contains('`') && !line.contains('|'), "{line}");
        }
    }
}
