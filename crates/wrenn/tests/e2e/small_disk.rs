//! A file system of a test's own, which it can fill up to the last block.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Bytes of a block: as on a host's own disk.
pub const BLOCK: u64 = 4096;
/// How often it is looked at how much room there is, while something is measured.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A small ext4 in an image behind a loop device, mounted until this is dropped.
pub struct SmallDisk {
    image: PathBuf,
    mount_point: PathBuf,
}

impl SmallDisk {
    /// One of `mib` MiB, in `folder`.
    pub fn new(folder: &Path, mib: u64) -> Self {
        let disk = Self { image: folder.join("small.ext4"), mount_point: folder.join("small") };
        File::create(&disk.image).unwrap().set_len(mib << 20).unwrap();
        std::fs::create_dir(&disk.mount_point).unwrap();
        // Nothing is kept back for root: what is free is free for everybody.
        let block = BLOCK.to_string();
        run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-b", &block, "-m", "0"]).arg(&disk.image));
        run(Command::new("mount").args(["-o", "loop"]).args([&disk.image, &disk.mount_point]));
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Whether a line about a mount or a loop device tells of this one.
    pub fn is_in(&self, line: &str) -> bool {
        let mounted = format!(" {} ", self.mount_point.display());
        line.contains(&mounted) || line.contains(&*self.image.to_string_lossy())
    }

    /// Bytes that are free.
    pub fn available(&self) -> u64 {
        let statistics = rustix::fs::statvfs(&self.mount_point).unwrap();
        statistics.f_bavail * statistics.f_frsize
    }

    /// Fills it up until no more than these bytes are free.
    pub fn leave(&self, bytes: u64) {
        let options = File::options().create(true).truncate(false).write(true).open(self.filler()).unwrap();
        // What waits in the page cache takes its place first, and the filler's own tables take some.
        rustix::fs::sync();
        while self.available() > bytes {
            let (filled, surplus) = (options.metadata().unwrap().len(), self.available() - bytes);
            let some = rustix::fs::FallocateFlags::empty();
            // The rest in blocks: allocated at once it could take a table more than there is room for.
            let step = if surplus > 64 * BLOCK { surplus - 32 * BLOCK } else { BLOCK };
            rustix::fs::fallocate(&options, some, filled, step).unwrap();
        }
    }

    /// Takes the filler away.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.mount_point.join("filler")
    }

    /// What `work` takes of it at most, at any moment, in bytes.
    pub fn most_taken_by(&self, work: impl FnOnce()) -> u64 {
        rustix::fs::sync();
        let before = self.available();
        std::thread::scope(|scope| {
            let (running, ended) = channel::<()>();
            let least = scope.spawn(move || {
                let mut least = before;
                while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                    least = least.min(self.available());
                }
                least
            });
            work();
            drop(running);
            before - least.join().unwrap()
        })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A test that failed may have left processes in it, which the sweep after all tests tells of.
        let lazily = std::thread::panicking().then_some("-l");
        let unmounted = Command::new("umount").args(lazily).arg(&self.mount_point).output().unwrap();
        assert!(std::thread::panicking() || unmounted.status.success(), "{unmounted:?}");
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
