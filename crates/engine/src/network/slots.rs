//! Slots, leased host-wide: which instance uses which.
//!
//! A slot is a file, `/run/wrenn/slots/N`, and three things tell its state:
//!
//! ```text
//!   locked    text     in use by the instance named in it
//!   unlocked  text     its owner ended without releasing it: its VM may live on (a later agent adopts it) or its objects
//!                      are left over (a sweep by the same instance removes them); nobody else touches it
//!   unlocked  empty    free
//!   locked    empty    being taken or released right now
//! ```
//!
//! The text is written before the first host object is made and removed after the last one is gone. The files stay: removing
//! a file that others lock would give one slot to two owners. Taking and releasing, and everything that depends on "is
//! this the last one", happens under one host-wide lock, held for milliseconds.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::names::{InstanceTag, Slot};

/// How long others may hold the host's lock. They do for some milliseconds.
const HOST_LOCK_LIMIT: Duration = Duration::from_secs(20);
/// How often a busy host lock is tried.
const HOST_LOCK_PAUSE: Duration = Duration::from_millis(2);
/// Longest record of a slot, in bytes: it holds one path.
const RECORD_BYTES_MAX: u64 = 8 * 1024;

/// Why slots cannot be leased.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// A file operation failed.
    #[error("cannot {step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Somebody holds the host's lock for far too long.
    #[error("another process has held {path} for {} s; is a wrenn process stopped or stuck?", HOST_LOCK_LIMIT.as_secs())]
    HostLocked {
        /// The lock file.
        path: PathBuf,
    },
}

/// Who uses a slot, and what of its host objects does not follow from its number.
///
/// Unknown fields are passed over: instances of several versions share these files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The instance.
    pub tag: InstanceTag,
    /// Its folder, for people.
    pub wrenn_dir: PathBuf,
    /// Where the slot's DNS goes.
    pub resolver: Option<Ipv4Addr>,
    /// Inode of the network namespace that counts as the host's for it: forwarding is a setting of a namespace.
    #[serde(default)]
    pub host_netns: u64,
    /// It is being released: whoever releases another one need not count it as in use.
    #[serde(default)]
    pub ending: bool,
}

/// What a slot's file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nobody's.
    Empty,
    /// This instance's.
    Owned(Record),
    /// Somebody's, in words that are not understood here; never touched.
    Unreadable,
}

impl Content {
    /// Whether it is `tag`'s.
    pub fn is_of(&self, tag: InstanceTag) -> bool {
        match self {
            Self::Owned(record) => record.tag == tag,
            Self::Empty | Self::Unreadable => false,
        }
    }

    /// Whether it needs the forwarding of the namespace `host_netns`; what is not understood may.
    pub fn needs_forwarding_of(&self, host_netns: u64) -> bool {
        match self {
            Self::Owned(record) => record.host_netns == host_netns,
            Self::Unreadable => true,
            Self::Empty => false,
        }
    }

    /// Whether `tag` uses the slot and is not just releasing it.
    pub fn is_in_use_by(&self, tag: InstanceTag) -> bool {
        match self {
            Self::Owned(record) => record.tag == tag && !record.ending,
            Self::Empty | Self::Unreadable => false,
        }
    }
}

/// The host's slots.
#[derive(Clone, Debug)]
pub struct Slots {
    run_dir: PathBuf,
}

impl Slots {
    /// The slots of the host whose shared folder is `run_dir`; makes the folders.
    pub fn open(run_dir: &Path) -> Result<Self, SlotError> {
        for dir in [run_dir.join("slots"), run_dir.join("netns")] {
            DirBuilder::new().recursive(true).mode(0o755).create(&dir).map_err(failed("make", &dir))?;
        }
        Ok(Self { run_dir: run_dir.to_owned() })
    }

    /// Takes the host's lock; dropping it gives it back.
    pub fn lock_host(&self) -> Result<HostLock, SlotError> {
        let path = self.run_dir.join("network.lock");
        let file = open_file(&path)?;
        let deadline = Instant::now() + HOST_LOCK_LIMIT;
        while !try_lock(&file).map_err(failed("lock", &path))? {
            if Instant::now() >= deadline {
                return Err(SlotError::HostLocked { path });
            }
            std::thread::sleep(HOST_LOCK_PAUSE);
        }
        Ok(HostLock(file))
    }

    /// Locks a slot, whatever its content; `None` if somebody has it.
    pub fn try_lock(&self, slot: Slot) -> Result<Option<SlotLock>, SlotError> {
        let path = self.path(slot);
        let file = open_file(&path)?;
        let locked = try_lock(&file).map_err(failed("lock", &path))?;
        Ok(locked.then_some(SlotLock { file, path, slot }))
    }

    /// What a slot's file says, without locking it.
    pub fn peek(&self, slot: Slot) -> Result<Content, SlotError> {
        let path = self.path(slot);
        match File::open(&path) {
            Ok(file) => read_content(file).map_err(failed("read", &path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Content::Empty),
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    /// All slots that have an owner, in use or left over.
    pub fn owned(&self) -> Result<Vec<(Slot, Content)>, SlotError> {
        let dir = self.run_dir.join("slots");
        let mut owned = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let entry = entry.map_err(failed("list", &dir))?;
            let name = entry.file_name();
            let slot = name.to_str().and_then(|name| name.parse().ok()).and_then(Slot::new);
            // A file of another name is none of ours; an empty one has no owner.
            let Some(slot) = slot else { continue };
            if entry.metadata().map_err(failed("examine", &dir))?.len() > 0 {
                owned.push((slot, self.peek(slot)?));
            }
        }
        owned.sort_by_key(|(slot, _)| *slot);
        Ok(owned)
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.run_dir.join("slots").join(slot.to_string())
    }
}

/// The host's lock, held.
#[derive(Debug)]
#[must_use = "dropping it gives the lock back"]
pub struct HostLock(File);

impl Drop for HostLock {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

/// A slot, locked by this process until it is dropped. Dropping changes nothing of its content.
#[derive(Debug)]
#[must_use = "dropping it gives the lock back"]
pub struct SlotLock {
    file: File,
    path: PathBuf,
    slot: Slot,
}

impl SlotLock {
    /// Which slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// What its file says.
    pub fn content(&self) -> Result<Content, SlotError> {
        let file = File::open(&self.path).map_err(failed("open", &self.path))?;
        read_content(file).map_err(failed("read", &self.path))
    }

    /// Says who uses it from now on.
    pub fn write(&mut self, record: &Record) -> Result<(), SlotError> {
        let text = serde_json::to_vec(record).expect("a record is JSON");
        self.replace(&text).map_err(failed("write", &self.path))
    }

    /// Says that it is free.
    pub fn clear(&mut self) -> Result<(), SlotError> {
        self.replace(&[]).map_err(failed("empty", &self.path))
    }

    fn replace(&mut self, text: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text)
    }
}

impl Drop for SlotLock {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// Unlocks explicitly: a child that another thread is just starting may hold a copy of the descriptor, which would keep
/// the lock until its exec. There is nothing to be done about a failure; the lock ends with its descriptor then.
fn unlock(file: &File) {
    flock(file, FlockOperation::Unlock).ok();
}

fn open_file(path: &Path) -> Result<File, SlotError> {
    let options = OpenOptions::new().read(true).write(true).create(true).mode(0o600).to_owned();
    options.open(path).map_err(failed("open", path))
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read_content(file: File) -> io::Result<Content> {
    let mut text = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut text)?;
    Ok(match (text.is_empty(), serde_json::from_slice(&text)) {
        (true, _) => Content::Empty,
        (false, Ok(record)) => Content::Owned(record),
        (false, Err(_not_ours)) => Content::Unreadable,
    })
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SlotError {
    let path = path.to_owned();
    move |source| SlotError::Io { step, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tag: &str) -> Record {
        Record {
            tag: tag.parse().unwrap(),
            wrenn_dir: "/var/lib/wrenn".into(),
            resolver: None,
            host_netns: 7,
            ending: false,
        }
    }

    #[test]
    fn a_slot_is_locked_once_and_tells_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (slots, slot) = (Slots::open(dir.path()).unwrap(), Slot::new(7).unwrap());
        let mut lock = slots.try_lock(slot).unwrap().unwrap();
        assert!(slots.try_lock(slot).unwrap().is_none(), "locked by another descriptor of the same process");
        lock.write(&record("abcd")).unwrap();
        assert_eq!(slots.peek(slot).unwrap(), Content::Owned(record("abcd")));
        drop(lock);
        let mut lock = slots.try_lock(slot).unwrap().expect("unlocked, but not free");
        assert!(lock.content().unwrap().is_of("abcd".parse().unwrap()));
        lock.clear().unwrap();
        assert_eq!(lock.content().unwrap(), Content::Empty);
        assert_eq!(slots.owned().unwrap(), []);
    }

    #[test]
    fn strange_files_are_nobodys_to_take() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::open(dir.path()).unwrap();
        for (name, text) in [("3", "not json"), ("4", r#"{"tag":"TOO LONG"}"#), ("x", "?"), ("99999", "?")] {
            fs::write(dir.path().join("slots").join(name), text).unwrap();
        }
        fs::write(dir.path().join("slots/5"), r#"{"tag":"abcd","wrenn_dir":"/d","resolver":null,"new":1}"#).unwrap();
        let owned: Vec<_> = slots.owned().unwrap().into_iter().map(|(slot, content)| (slot.index(), content)).collect();
        assert!(matches!(
            &owned[..],
            [(3, Content::Unreadable), (4, Content::Unreadable), (5, Content::Owned(record))]
                if record.wrenn_dir == Path::new("/d")
        ));
    }

    #[test]
    fn the_host_has_one_lock() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::open(dir.path()).unwrap();
        let held = slots.lock_host().unwrap();
        assert!(!try_lock(&open_file(&dir.path().join("network.lock")).unwrap()).unwrap());
        drop(held);
        let _again = slots.lock_host().unwrap();
    }
}
