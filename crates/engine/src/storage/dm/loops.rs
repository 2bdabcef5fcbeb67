//! Which loop device is behind which file.
//!
//! ```text
//!   template image ◄── loop, read-only, one for all ◄─┬─ table of a disk
//!                                                     └─ table of another disk           (any process, any instance)
//!   sealed layer   ◄── loop, read-only, one per disk ◄── table of that disk
//!   live file      ◄── loop, read-write, one per disk ◄── table of that disk
//! ```
//!
//! **The kernel counts the users.** Every device here is attached with autoclear: it exists as long as somebody has it
//! open, and a table that names it has it open. A handle ([`LoopDevice`]) keeps it until the table is in place. So there
//! is no count of ours that a killed process could leave wrong, and nothing to clean up.
//!
//! **Who looks for an image's device finds the one there is**: by the path the kernel tells, then, holding the device open
//! (so that it cannot go away), by the file's device and inode number. To attach a second one at the same moment is
//! prevented by a lock on the image itself, which the kernel releases with its holder.
//!
//! A *sealed layer* is not shared: two snapshots of one origin with one exception store are for device-mapper an old and
//! a new table of the same device, and it hands the exceptions over from one to the other.
//!
//! An image is read through the host's page cache, which all disks on it share; so is a sealed layer. A live file is not:
//! the device above it has a cache already.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use wrenn_sys::blockdev::DeviceNumber;
use wrenn_sys::loopdev::{self, LoopDevice, Options, Status};

use crate::limits;
use crate::storage::StorageError;

/// How often a locked image is tried again. There is no way to wait for a lock with a deadline but to ask.
const LOCK_RETRY: Duration = Duration::from_millis(1);

const IMAGE: Options = Options { read_only: true, direct_io: false, autoclear: true };
const LIVE: Options = Options { read_only: false, direct_io: true, autoclear: true };

/// A file, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId {
    device: DeviceNumber,
    inode: u64,
}

impl FileId {
    /// Which file is open.
    pub(super) fn of(file: &File, path: &Path) -> Result<Self, StorageError> {
        let metadata = file.metadata().map_err(StorageError::io("look at", path))?;
        Ok(Self { device: DeviceNumber::from_stat(metadata.dev()), inode: metadata.ino() })
    }

    /// Whether a loop device has this file, all of it.
    pub(super) fn is_behind(self, status: &Status) -> bool {
        let whole = status.offset == 0 && status.size_limit == 0;
        whole && (status.backing_device, status.backing_inode) == (self.device, self.inode)
    }
}

/// The shared loop devices of images. Holds no device: it only remembers where one was seen last.
#[derive(Debug, Default)]
pub struct LoopRegistry {
    seen: Mutex<BTreeMap<FileId, u32>>,
}

impl LoopRegistry {
    /// The loop device of the image at `path`, read-only: the one that there is, or else a new one. It stays as long as the
    /// handle, and as long as a table names it.
    pub fn image(&self, path: &Path) -> Result<LoopDevice, StorageError> {
        let image = open_image(path)?;
        let id = FileId::of(&image, path)?;
        let _one_attaches = lock_image(path)?;
        if let Some(device) = self.seen(id).or(search(id, path)?) {
            self.remember(id, &device);
            return Ok(device);
        }
        let device = LoopDevice::attach(image.as_fd(), IMAGE)?;
        self.remember(id, &device);
        Ok(device)
    }

    fn seen(&self, id: FileId) -> Option<LoopDevice> {
        let number = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&id).copied()?;
        open_if(number, id)
    }

    fn remember(&self, id: FileId, device: &LoopDevice) {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(id, device.number());
    }
}

/// A loop device of its own for the sealed layer at `path`.
pub(super) fn sealed(path: &Path) -> Result<LoopDevice, StorageError> {
    Ok(LoopDevice::attach(open_image(path)?.as_fd(), IMAGE)?)
}

/// A loop device for the live file at `path`.
pub(super) fn live(file: &File) -> Result<LoopDevice, StorageError> {
    Ok(LoopDevice::attach(file.as_fd(), LIVE)?)
}

/// The image's device by the path that the kernel tells, which finds it unless the image is known by several.
fn search(id: FileId, path: &Path) -> Result<Option<LoopDevice>, StorageError> {
    // What the kernel tells has no symbolic links in it.
    let path = path.canonicalize().map_err(StorageError::io("resolve", path))?;
    Ok(loopdev::attached()?.filter(|attached| attached.backing == path).find_map(|it| open_if(it.number, id)))
}

/// The device of this number, if it is there for all disks on the file `id`. Once it is open it cannot go away, so what is
/// seen then is true.
fn open_if(number: u32, id: FileId) -> Option<LoopDevice> {
    // A device that is being detached, or has another file by now, is not the one; that is no error.
    let device = LoopDevice::open(number, true).ok()?;
    let status = device.status().ok()?;
    (id.is_behind(&status) && status.options == IMAGE).then_some(device)
}

fn open_image(path: &Path) -> Result<File, StorageError> {
    File::open(path).map_err(StorageError::io("open", path))
}

/// The lock is on a descriptor of its own: the loop device keeps the other one, and would keep the lock with it.
fn lock_image(path: &Path) -> Result<File, StorageError> {
    let file = open_image(path)?;
    let deadline = Instant::now() + limits::IMAGE_LOCK_LIMIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
            Err(Errno::WOULDBLOCK) => return Err(StorageError::ImageLocked { path: path.to_owned() }),
            Err(error) => return Err(StorageError::io("lock", path)(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &tempfile::TempDir) -> std::path::PathBuf {
        let path = dir.path().join("image");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    fn count(path: &Path) -> usize {
        loopdev::attached().unwrap().filter(|it| it.backing == path).count()
    }

    #[test]
    fn root_everybody_gets_the_same_device_and_it_goes_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir).canonicalize().unwrap();
        // Registries of their own are what other processes have.
        let devices: Vec<LoopDevice> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| LoopRegistry::default().image(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(devices.iter().all(|device| device.number() == devices[0].number()));
        assert_eq!(count(&path), 1);
        drop(devices);
        assert_eq!(count(&path), 0);
    }

    #[test]
    fn root_another_file_in_the_same_place_is_another_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir);
        let registry = LoopRegistry::default();
        let first = registry.image(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        image(&dir);
        let second = registry.image(&path).unwrap();
        assert_ne!(first.number(), second.number());
    }

    #[test]
    fn root_a_device_that_somebody_else_made_is_not_shared() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let theirs = LoopDevice::attach(file.as_fd(), Options { autoclear: false, ..IMAGE }).unwrap();
        let ours = LoopRegistry::default().image(&path).unwrap();
        assert_ne!(theirs.number(), ours.number());
        theirs.detach().unwrap();
    }

    #[test]
    fn root_a_remembered_number_is_believed_only_while_it_is_true() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir);
        let registry = LoopRegistry::default();
        let number = registry.image(&path).unwrap().number();
        // Somebody else's file may have the number now; either way the image gets a device that is its own.
        let other = tempfile::tempfile().unwrap();
        other.set_len(1 << 20).unwrap();
        let _other = LoopDevice::attach(other.as_fd(), IMAGE).unwrap();
        let device = registry.image(&path).unwrap();
        let id = FileId::of(&File::open(&path).unwrap(), &path).unwrap();
        assert!(id.is_behind(&device.status().unwrap()), "loop{number}");
    }
}
