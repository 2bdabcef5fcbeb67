//! What a sandbox was at one moment, kept apart from it: under a name, as a warm image, or just long enough for forks.
//!
//! ```text
//!   snapshots/sn….new/            being made: thrown away by the next agent
//!   snapshots/sn…/
//!     snapshot.json               what it is of; sealed
//!     generation/                 as one of a sandbox (see crate::generation), whole by itself
//!     layers/                     what its disk stands on (see crate::layers)
//!   warm/KEY/                     the same, of a VM that had just become ready (see warm)
//! ```
//!
//! It is complete: all that it needs but template and kernel is in its folder, as names for files that sandboxes and other
//! snapshots may have names for too. So it can be removed at any time, and whoever was started from it keeps what it needs.
//! A new sandbox that goes on from it is *placed*: it gets names for the same files as its first generation.

mod store;
mod warm;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wrenn_engine::names::{SandboxId, SnapshotId};
use wrenn_engine::units::Mib;

use crate::durable::{self, SealError};
use crate::generation::{Allocated, Folder, Generation, GenerationError, Generations, Number};
use crate::host_agent::{OnTimeout, SnapshotRequest, SnapshotView};
use crate::instance::random_bytes;
use crate::layers::{Layers, Share};
use crate::lock::Lock;
use crate::manifest::{Manifest, unix_ms};

pub use store::{Snapshots, check_name};
#[cfg(test)]
pub(crate) use warm::any_key;
pub use warm::{Key, WarmImages};

/// Version of snapshot.json that is written here.
const FORMAT: u32 = 2;
/// The oldest that is read: version 1 lacks `attributes`.
const OLDEST: u32 = 1;
/// Longest snapshot.json taken, in bytes: environment, labels and attributes as long as a call may be.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What was captured, as it is kept in snapshot.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// Which snapshot.
    pub id: SnapshotId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Unix time of its capture, in milliseconds.
    pub created_unix_ms: u64,
    /// The sandbox that was captured: who the guest takes itself for.
    pub sandbox: SandboxId,
    /// Id of the template its disk stands on.
    pub template: String,
    /// Size of its disk.
    pub disk_mib: Mib,
    /// Environment of every process in it.
    pub env: BTreeMap<String, String>,
    /// Labels of the sandbox.
    pub metadata: BTreeMap<String, String>,
    /// What whoever asked for it keeps with it; the sandbox's stay the sandbox's.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// How long the sandbox had, from its start.
    pub timeout_ms: Option<u64>,
    /// What was to happen then.
    pub on_timeout: OnTimeout,
    /// Every number that was used for signed calls to the guest is below this one.
    pub nonces_below: u64,
}

impl Record {
    /// The record of what a sandbox is now, under an id of its own, with no name and no attributes.
    pub fn of(manifest: &Manifest, nonces_below: u64) -> Self {
        Self {
            version: FORMAT,
            id: SnapshotId::from_random(random_bytes()),
            name: None,
            created_unix_ms: unix_ms(),
            sandbox: manifest.id.clone(),
            template: manifest.template.clone(),
            disk_mib: manifest.disk_mib,
            env: manifest.env.clone(),
            metadata: manifest.metadata.clone(),
            attributes: BTreeMap::new(),
            timeout_ms: manifest.timeout_ms,
            on_timeout: manifest.on_timeout,
            nonces_below,
        }
    }

    /// The same under this id, as it was asked for.
    #[must_use]
    pub fn wanted(self, id: SnapshotId, request: SnapshotRequest) -> Self {
        let SnapshotRequest { name, attributes } = request;
        Self { id, name, attributes, ..self }
    }

    /// The same of a disk that stands on `template`, made now, under an id of its own, with no name and no attributes.
    #[must_use]
    pub fn on(self, template: &str) -> Self {
        let (id, created_unix_ms) = (SnapshotId::from_random(random_bytes()), unix_ms());
        let attributes = BTreeMap::new();
        Self { id, name: None, created_unix_ms, template: template.to_owned(), attributes, ..self }
    }
}

/// Why a snapshot cannot be kept or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
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
    /// Its record is not readable.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SealError,
    },
    /// Another version of wrenn wrote it.
    #[error("{path} has version {found}; this wrenn reads versions up to {FORMAT}, use the one that wrote it")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// There is none.
    #[error("there is no snapshot `{0}`; `wrenn snapshot ls` lists them")]
    Unknown(String),
    /// Another one has the name.
    #[error("there is a snapshot `{0}` already; remove it, or choose another name")]
    NameTaken(String),
    /// A name that can be none.
    #[error("`{0}` cannot be a snapshot's name: 1 to 64 characters of [a-z0-9._-], beginning with a letter or digit")]
    BadName(String),
    /// Its files.
    #[error(transparent)]
    Generation(#[from] GenerationError),
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { step, path, source }
}

/// The folder of one snapshot or warm image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored(PathBuf);

impl Stored {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its files.
    pub fn generation(&self) -> Folder {
        Folder::at(self.0.join("generation"))
    }

    /// What its disk stands on.
    pub fn layers(&self) -> Layers {
        Layers::of(&self.0)
    }

    fn record_path(&self) -> PathBuf {
        self.0.join("snapshot.json")
    }

    /// What it is of.
    pub fn record(&self) -> Result<Record, SnapshotError> {
        let path = self.record_path();
        let text = durable::read(&path, BYTES_MAX).map_err(io_error("read", &path))?;
        let Some(text) = text else {
            return Err(GenerationError::Missing { path }.into());
        };
        let damaged = |source| SnapshotError::Damaged { path: path.clone(), source };
        let Version { version } = durable::unseal(&text).map_err(damaged)?;
        if !(OLDEST..=FORMAT).contains(&version) {
            return Err(SnapshotError::Version { path, found: version });
        }
        let record: Record = durable::unseal(&text).map_err(damaged)?;
        Ok(Record { version: FORMAT, ..record })
    }

    /// Writes what it is of, durably.
    pub fn write(&self, record: &Record) -> Result<(), SnapshotError> {
        let path = self.record_path();
        durable::replace(&path, &durable::seal(record)).map_err(io_error("write", &path))
    }

    /// Makes this one, whose folders are there and empty, hold what the sandbox in `dir` rests as.
    pub fn take(&self, dir: &Path, number: Number) -> Result<(), SnapshotError> {
        let (from, to) = (Generations::of(dir).folder(number), self.generation());
        let description = Generation::read(&from)?;
        self.layers().share(&Layers::of(dir), &description.disk.beneath)?;
        to.share(&from)?;
        Ok(description.write(&to)?)
    }

    /// Makes it the generation `number` of the sandbox `id` in `dir`, whole and durable.
    pub fn place(&self, id: &SandboxId, dir: &Path, number: Number) -> Result<(), SnapshotError> {
        let from = self.generation();
        let description = Generation { sandbox: id.clone(), number, ..Generation::read(&from)? };
        let generations = Generations::of(dir);
        let to = generations.begin(number)?;
        Layers::of(dir).share(&self.layers(), &description.disk.beneath)?;
        to.share(&from)?;
        description.write(&to)?;
        generations.commit(number)?;
        Ok(())
    }

    /// As it is shown.
    pub fn view(&self) -> Result<SnapshotView, SnapshotError> {
        let (record, generation) = (self.record()?, Generation::read(&self.generation())?);
        let Share { own_bytes, shared_bytes } = self.allocated();
        Ok(SnapshotView {
            id: record.id,
            name: record.name,
            created_unix_ms: record.created_unix_ms,
            sandbox: record.sandbox,
            template: record.template,
            kernel: generation.kernel,
            vcpus: generation.vcpus,
            memory: generation.memory_mib,
            disk: record.disk_mib,
            vmm: generation.vmm,
            has_memory: generation.memory.is_some(),
            own_bytes,
            shared_bytes,
            attributes: record.attributes,
        })
    }

    /// What it takes on the host.
    pub fn allocated(&self) -> Share {
        let Allocated { disk, memory } = self.generation().allocated();
        disk.plus(memory).plus(self.layers().allocated())
    }

    /// Makes its folders.
    fn make(&self) -> Result<(), SnapshotError> {
        Ok(self.generation().make()?)
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// One that is being made; thrown away unless it is committed.
#[derive(Debug)]
pub struct Unfinished {
    shelf: Shelf,
    name: String,
    stored: Stored,
    /// Keeps others from making the same one, where several processes may.
    _lock: Option<Lock>,
}

impl Unfinished {
    /// Where it is made.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Makes it findable, durably.
    pub fn commit(self, record: &Record) -> Result<Stored, SnapshotError> {
        self.stored.write(record)?;
        for folder in [self.stored.generation().path(), self.stored.path()] {
            durable::sync_folder(folder).map_err(io_error("sync", folder))?;
        }
        self.shelf.rename(&self.stored, &self.name)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // A committed one has another name by now. What stays is swept by the next agent.
        if let Err(error) = remove(self.stored.path()) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(path = %self.stored.path().display(), error, "cannot remove half a snapshot");
        }
    }
}

/// A folder in which each entry is one of them; one that is being made ends in `.new`, one that is being removed in `.gone`.
#[derive(Clone, Debug)]
struct Shelf(PathBuf);

impl Shelf {
    const UNFINISHED: &str = ".new";
    const REMOVED: &str = ".gone";

    fn at(&self, name: &str) -> Stored {
        Stored(self.0.join(name))
    }

    /// Begins the one called `name`; what an earlier attempt left is thrown away.
    fn begin(&self, name: &str, lock: Option<Lock>) -> Result<Unfinished, SnapshotError> {
        let stored = self.at(&format!("{name}{}", Self::UNFINISHED));
        remove(stored.path())?;
        // It is there before its folders are: if only some of them can be made, these go with it.
        let unfinished = Unfinished { shelf: self.clone(), name: name.to_owned(), stored, _lock: lock };
        unfinished.stored.make()?;
        Ok(unfinished)
    }

    fn rename(&self, from: &Stored, name: &str) -> Result<Stored, SnapshotError> {
        let to = self.at(name);
        fs::rename(from.path(), to.path()).map_err(io_error("rename", from.path()))?;
        durable::sync_folder(&self.0).map_err(io_error("sync", &self.0))?;
        Ok(to)
    }

    /// Those that are whole.
    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let folders = entries.flatten().filter(|entry| entry.path().is_dir());
        let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| !name.ends_with(Self::UNFINISHED) && !name.ends_with(Self::REMOVED)).collect()
    }

    /// Removes one. From its first moment on nobody finds it any more.
    fn remove(&self, name: &str) -> Result<(), SnapshotError> {
        let (from, gone) = (self.at(name), format!("{name}{}", Self::REMOVED));
        remove(self.at(&gone).path())?;
        remove(self.rename(&from, &gone)?.path())
    }

    /// Throws away what was begun and what was half removed, but for what `lock` does not let have: somebody is making it. What
    /// cannot be removed is logged, and tried again the next time. Answers how much it was.
    fn sweep<T>(&self, lock: impl Fn(&str) -> Option<T>) -> usize {
        let Ok(entries) = fs::read_dir(&self.0) else { return 0 };
        let mut swept = 0;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let half = |end| name.to_str().and_then(|name| name.strip_suffix(end));
            let unfinished = half(Self::UNFINISHED).map(&lock);
            let is_half = matches!(unfinished, Some(Some(_))) || half(Self::REMOVED).is_some();
            if !is_half {
                continue;
            }
            match remove(&entry.path()) {
                Ok(()) => swept += 1,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(path = %entry.path().display(), error, "cannot remove half a snapshot");
                }
            }
        }
        swept
    }
}

/// A folder is gone afterwards; already gone is fine.
fn remove(path: &Path) -> Result<(), SnapshotError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;

    fn stored(dir: &tempfile::TempDir) -> Stored {
        Stored(dir.path().to_owned())
    }

    #[test]
    fn what_is_kept_with_a_snapshot_is_what_was_asked_for_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::of(&manifest(), 7);
        assert!(record.attributes.is_empty() && !manifest().attributes.is_empty(), "the sandbox's stay the sandbox's");
        let attributes = BTreeMap::from([("owner".to_owned(), "me".to_owned())]);
        let request = SnapshotRequest { name: Some("a".to_owned()), attributes: attributes.clone() };
        let record = record.wanted(SnapshotId::from_random([1; 18]), request);
        stored(&dir).write(&record).unwrap();
        let read = stored(&dir).record().unwrap();
        assert_eq!((&read, &read.attributes), (&record, &attributes));
        assert!(read.on("another").attributes.is_empty());
    }

    #[test]
    fn an_older_record_is_read_and_a_newer_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::of(&manifest(), 7);
        let mut other = serde_json::to_value(&record).unwrap();
        let mut read = |version: u32| {
            other["version"] = version.into();
            std::fs::write(stored(&dir).record_path(), durable::seal(&other)).unwrap();
            stored(&dir).record()
        };
        assert!(matches!(read(FORMAT + 1), Err(SnapshotError::Version { found, .. }) if found == FORMAT + 1));
        other.as_object_mut().unwrap().remove("attributes").unwrap();
        other["version"] = OLDEST.into();
        std::fs::write(stored(&dir).record_path(), durable::seal(&other)).unwrap();
        assert_eq!(stored(&dir).record().unwrap(), record);
    }
}
