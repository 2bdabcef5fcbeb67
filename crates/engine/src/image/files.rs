//! Files that appear whole or not at all, and folders that can be thrown away without fear.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::mount::UnmountFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// A file operation failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}{}", path.display(), hint(source))]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FileError {
    /// Whether the filesystem was full.
    pub fn is_disk_full(&self) -> bool {
        is_disk_full(&self.source)
    }
}

fn hint(source: &io::Error) -> &'static str {
    if is_disk_full(source) { " (the disk is full)" } else { "" }
}

fn is_disk_full(source: &io::Error) -> bool {
    matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Names the step and the file of an error.
pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}

/// Makes a folder and its parents, mode 0700 as everything of an instance.
pub fn make_folder(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at("make the folder", path))
}

/// Writes a file durably: temporary name, fsync, rename, fsync of the folder.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = written {
        if let Err(error) = fs::remove_file(&temporary) {
            tracing::debug!(path = %temporary.display(), %error, "no half-written file to remove");
        }
        return Err(at("write", path)(source));
    }
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Writes a value as JSON, durably.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| at("write", path)(error.into()))?;
    write_whole(path, format!("{text}\n").as_bytes(), 0o600)
}

/// Reads JSON of ours; `None` if there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(at("read", path))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| at("understand", path)(error.into()))
}

/// Makes what a folder holds durable.
pub fn sync_folder(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(at("sync", path))
}

/// Gives a finished folder its final name, durably. If the name is taken already it was made from the same inputs: that one
/// stays.
pub fn publish(made: &Path, name: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(made).map_err(at("list", made))? {
        let path = entry.map_err(at("list", made))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(at("sync", &path))?;
    }
    sync_folder(made)?;
    match fs::rename(made, name) {
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            tracing::debug!(path = %name.display(), "somebody else made the same");
        }
        renamed => renamed.map_err(at("publish", name))?,
    }
    sync_folder(name.parent().unwrap_or(Path::new("/")))
}

/// Sets a file's mode.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at("set the mode of", path))
}

/// SHA-256 of a file's whole content, in lower case hex; `step` hears the bytes read so far.
pub fn hash_file(path: &Path, mut step: impl FnMut(u64)) -> Result<String, FileError> {
    let mut file = File::open(path).map_err(at("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        match file.read(&mut buffer).map_err(at("read", path))? {
            0 => return Ok(hex::encode(hasher.finalize())),
            count => {
                hasher.update(&buffer[..count]);
                done += count as u64;
                step(done);
            }
        }
    }
}

/// SHA-256 of several parts, each preceded by its length so that parts cannot run into each other; lower case hex.
pub fn hash_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex::encode(hasher.finalize())
}

/// Held by the one process that builds images in an instance; released with its value or its process.
#[derive(Debug)]
pub struct BuildLock {
    _file: File,
}

impl BuildLock {
    /// Waits for the lock; blocks.
    pub fn acquire(path: &Path) -> Result<Self, FileError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(at("open the lock", path))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|e| at("lock", path)(e.into()))?;
        Ok(Self { _file: file })
    }
}

/// A folder to build in; removed on drop, and by the next builder if this process is killed.
#[derive(Debug)]
pub struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    /// Removes what interrupted builds left in `parent` and makes a new folder there. The build lock is held, so nobody
    /// else builds.
    pub fn new(parent: &Path, _lock: &BuildLock) -> Result<Self, FileError> {
        make_folder(parent)?;
        for entry in fs::read_dir(parent).map_err(at("list", parent))? {
            remove_tree(&entry.map_err(at("list", parent))?.path())?;
        }
        let path = parent.join(format!("build-{}", std::process::id()));
        make_folder(&path)?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if self.path.exists()
            && let Err(error) = remove_tree(&self.path)
        {
            tracing::warn!(%error, "a build's folder stays until the next build");
        }
    }
}

/// Removes a folder in which programs ran as root. Whatever they left mounted in it is detached first and not removed
/// through the mount: below may be the host's own /dev.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    let mountinfo =
        fs::read_to_string("/proc/self/mountinfo").map_err(at("read", Path::new("/proc/self/mountinfo")))?;
    for mount in mounts_below(&mountinfo, path).into_iter().rev() {
        tracing::warn!(mount = %mount.display(), "an interrupted build left a mount behind");
        rustix::mount::unmount(&mount, UnmountFlags::DETACH).map_err(|e| at("unmount", &mount)(e.into()))?;
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path).map_err(at("remove", path)),
        removed => removed.map_err(at("remove", path)),
    }
}

/// The mount points at or below `path`, in the order they were mounted.
fn mounts_below(mountinfo: &str, path: &Path) -> Vec<PathBuf> {
    let point = |line: &str| line.split(' ').nth(4).map(|text| PathBuf::from(unescaped(text)));
    mountinfo.lines().filter_map(point).filter(|point| point.starts_with(path)).collect()
}

/// Undoes the kernel's octal escapes of blanks in paths.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Fails if the filesystem of `folder` has less than `needed` bytes free.
pub fn free_bytes(folder: &Path) -> Result<u64, FileError> {
    let status = rustix::fs::statvfs(folder).map_err(|e| at("ask the free space of", folder)(e.into()))?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

/// The time as RFC 3339, in UTC, to the second.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}

/// What tells a file from every other and from itself after a change: inode, length and time of change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    inode: u64,
    size: u64,
    mtime_ns: i128,
}

impl Identity {
    /// The identity of a file now.
    pub fn of(path: &Path) -> Result<Self, FileError> {
        let metadata = fs::metadata(path).map_err(at("look at", path))?;
        let mtime_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Ok(Self { inode: metadata.ino(), size: metadata.size(), mtime_ns })
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_whole_and_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_json(&path, &vec![1, 2]).unwrap();
        write_json(&path, &vec![3]).unwrap();
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(read_json::<Vec<u32>>(&folder.path().join("b")).unwrap(), None);
    }

    #[test]
    fn a_second_publication_leaves_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("id");
        for content in ["first", "second"] {
            let made = folder.path().join("made");
            fs::create_dir_all(&made).unwrap();
            fs::write(made.join("file"), content).unwrap();
            publish(&made, &name).unwrap();
        }
        assert_eq!(fs::read_to_string(name.join("file")).unwrap(), "first");
    }

    #[test]
    fn finds_mounts_below_and_only_there() {
        let mountinfo = "22 1 0:20 / / rw - ext4 /dev/vda rw\n\
                         23 22 0:21 / /a/b rw - proc proc rw\n\
                         24 22 0:22 / /a/b/c\\040d rw - tmpfs tmpfs rw\n\
                         25 22 0:22 / /a/bc rw - tmpfs tmpfs rw\n";
        let found = mounts_below(mountinfo, Path::new("/a/b"));
        assert_eq!(found, [PathBuf::from("/a/b"), PathBuf::from("/a/b/c d")]);
    }

    #[test]
    fn root_a_tree_with_a_mount_in_it_is_removed_around_the_mount() {
        assert!(rustix::process::geteuid().is_root(), "this test mounts and needs root");
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("dev")).unwrap();
        rustix::mount::mount_bind(outside.path(), tree.join("dev")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside.path().join("precious")).unwrap(), "x");
    }

    #[test]
    fn the_lock_is_exclusive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = BuildLock::acquire(&path).unwrap();
        let other = File::open(&path).unwrap();
        assert!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(first);
        assert!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
