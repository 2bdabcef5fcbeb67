//! What the agent knows about a sandbox, durable: the truth for its existence, its state and what it holds on the host.
//!
//! It is written *before* each side effect, so that whoever finds it can undo or finish what was begun. It holds the
//! access token: mode 0600 in a folder of mode 0700. The revision before the last is kept beside it: a manifest that a disk
//! has damaged does not take the sandbox with it ([`Manifest::read_previous`]).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use wrenn_engine::names::{LayerId, SandboxId, Slot};
use wrenn_engine::storage::Backend;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::Description;

use crate::durable::{self, SealError};
use crate::generation::Number;
use crate::host_agent::{OnTimeout, Phase, Start};

/// Version of manifest.json that is written here.
pub const FORMAT: u32 = 4;
/// The oldest that is read: version 3 lacks `attributes`; version 2 also `start`, and never had layers beneath a disk.
const OLDEST: u32 = 2;
/// Longest manifest taken, in bytes: environment, labels and attributes as long as a call may be, and blanks.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Where in its life a sandbox is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum State {
    /// Being built; nothing has run in it yet.
    Creating,
    /// Its guest is ready.
    Running,
    /// Being put to rest.
    Pausing {
        /// As which generation.
        generation: Number,
        /// How far it is: decides whether a crash undoes or finishes it.
        progress: Progress,
    },
    /// At rest.
    Paused {
        /// As this generation.
        generation: Number,
    },
    /// Coming back from rest; this generation stays valid until it has.
    Resuming {
        /// The generation.
        generation: Number,
    },
    /// Coming back from `Stopped`: being booted from its live disk.
    Booting {
        /// Why it had stopped.
        reason: String,
    },
    /// Going back to a snapshot, whose files are this generation by now: what the VM was since is given up.
    RollingBack {
        /// The generation.
        generation: Number,
    },
    /// Its VM ended without having been asked to. Its disk is kept.
    Stopped {
        /// How.
        reason: String,
    },
    /// A step could be neither finished nor undone.
    NeedsRepair {
        /// Which one, and why.
        reason: String,
        /// What it was in the middle of.
        was: Box<State>,
    },
    /// Being taken down; never comes back.
    Destroying,
}

/// How far a pause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// The VM is there, and can go on.
    Capturing,
    /// All that is to be kept of the VM is durable, and the VM is ended: there is no way back.
    Captured,
}

impl State {
    /// As it is shown.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Creating => Phase::Creating,
            Self::Running => Phase::Running,
            Self::Pausing { .. } => Phase::Pausing,
            Self::Paused { .. } => Phase::Paused,
            Self::Resuming { .. } | Self::Booting { .. } => Phase::Resuming,
            Self::RollingBack { .. } => Phase::RollingBack,
            Self::Stopped { .. } => Phase::Stopped,
            Self::NeedsRepair { .. } => Phase::NeedsRepair,
            Self::Destroying => Phase::Destroying,
        }
    }

    /// The generation that it is, becomes, or comes back from.
    pub fn generation(&self) -> Option<Number> {
        match self {
            Self::Pausing { generation, .. }
            | Self::Paused { generation }
            | Self::Resuming { generation }
            | Self::RollingBack { generation } => Some(*generation),
            Self::NeedsRepair { was, .. } => was.generation(),
            Self::Creating | Self::Running | Self::Booting { .. } | Self::Stopped { .. } | Self::Destroying => None,
        }
    }

    /// Why it is so, where nobody asked for it.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Stopped { reason } | Self::NeedsRepair { reason, .. } => Some(reason),
            Self::Creating
            | Self::Running
            | Self::Pausing { .. }
            | Self::Paused { .. }
            | Self::Resuming { .. }
            | Self::Booting { .. }
            | Self::RollingBack { .. }
            | Self::Destroying => None,
        }
    }
}

/// What the memory of the VM that runs is mapped over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryBase {
    /// Nothing but zeroes: it was booted.
    Zero,
    /// The memory of this generation.
    Generation(Number),
}

/// What the live disk is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveDisk {
    /// Layers between the template's image and the live file, lowest first.
    pub beneath: Vec<LayerId>,
    /// Its size as the guest sees it, in bytes.
    pub size_bytes: u64,
}

/// One sandbox, as it is kept in manifest.json.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub version: u32,
    /// Grows by one with each write.
    pub revision: u64,
    /// Which sandbox.
    pub id: SandboxId,
    /// Where in its life it is.
    pub state: State,
    /// Unix time of its creation, in milliseconds.
    pub created_unix_ms: u64,
    /// When its time is up, Unix milliseconds; counts while it runs.
    pub deadline_unix_ms: Option<u64>,
    /// How long it had at its last start, for the next one.
    pub timeout_ms: Option<u64>,
    /// What happens when its time is up.
    pub on_timeout: OnTimeout,
    /// Whether it goes with whoever asked for it: nobody can ask for it any more once that agent is gone.
    pub bound: bool,
    /// Id of the template its disk stands on.
    pub template: String,
    /// Id of the kernel it boots.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory_mib: Mib,
    /// Size of its disk.
    pub disk_mib: Mib,
    /// Which VMM runs it.
    pub vmm: Description,
    /// What its disk is made of.
    pub storage: Backend,
    /// How its VM began the last time.
    #[serde(default = "cold")]
    pub start: Start,
    /// Environment of every process in it.
    pub env: BTreeMap<String, String>,
    /// Labels, which mean nothing here.
    pub metadata: BTreeMap<String, String>,
    /// What whoever asked for it keeps with it; means nothing here either.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// The slot it holds: network, addresses and the VMM's uid follow from it. `None` until one is leased.
    pub slot: Option<Slot>,
    /// Its live disk; `None` while there is none.
    pub disk: Option<LiveDisk>,
    /// What its VM's memory is mapped over, while there is one.
    pub memory_base: Option<MemoryBase>,
    /// The number of its newest generation, also of one that was never finished.
    pub newest_generation: Number,
    /// What the guest's agent asks of who wants to use it.
    pub access_token: String,
    /// Every number that was used for signed calls to the guest is below this one.
    pub nonces_below: u64,
}

/// Why a manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file operation failed.
    #[error("cannot {step} the manifest {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The manifest.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is no manifest.
    #[error("the manifest {path} is damaged")]
    Damaged {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SealError,
    },
    /// Another version of wrenn wrote it.
    #[error(
        "the manifest {path} has version {found}; this wrenn reads versions up to {FORMAT}, use the one that wrote it"
    )]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It is another sandbox's.
    #[error("the manifest {path} is of the sandbox {found}: it was moved or copied")]
    Foreign {
        /// The manifest.
        path: PathBuf,
        /// Whose it is.
        found: SandboxId,
    },
}

impl Manifest {
    /// Writes it durably at `path`, under the next revision. From the third time on that takes no room.
    pub fn write(&mut self, path: &Path) -> Result<(), ManifestError> {
        self.revision += 1;
        assert_eq!(self.version, FORMAT, "only this version's manifests are made");
        let failed = |source| ManifestError::Io { step: "write", path: path.to_owned(), source };
        durable::rotate(path, &previous(path), &durable::seal(self)).map_err(failed)
    }

    /// Reads the manifest at `path`; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, ManifestError> {
        let failed = |source| ManifestError::Io { step: "read", path: path.to_owned(), source };
        let Some(text) = durable::read(path, BYTES_MAX).map_err(failed)? else { return Ok(None) };
        let damaged = |source| ManifestError::Damaged { path: path.to_owned(), source };
        // The version is looked at first: the fields of another version may be other fields.
        let Version { version } = durable::unseal(&text).map_err(damaged)?;
        if !(OLDEST..=FORMAT).contains(&version) {
            return Err(ManifestError::Version { path: path.to_owned(), found: version });
        }
        let manifest: Self = durable::unseal(&text).map_err(damaged)?;
        Ok(Some(Self { version: FORMAT, ..manifest }))
    }

    /// Reads the revision before the one at `path`, for when that is damaged; `None` when there is none.
    pub fn read_previous(path: &Path) -> Result<Option<Self>, ManifestError> {
        Self::read(&previous(path))
    }

    /// As [`Manifest::read`], and that it is the one of `id`.
    pub fn read_of(path: &Path, id: &SandboxId) -> Result<Option<Self>, ManifestError> {
        match Self::read(path)? {
            Some(manifest) if manifest.id != *id => {
                Err(ManifestError::Foreign { path: path.to_owned(), found: manifest.id })
            }
            found => Ok(found),
        }
    }
}

/// Before there were warm starts.
fn cold() -> Start {
    Start::Cold
}

fn previous(path: &Path) -> PathBuf {
    path.with_extension("previous.json")
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
pub(crate) mod tests {
    use wrenn_engine::vmm::{Accel, DriverKind};

    use super::*;

    /// A manifest of a sandbox that was just begun.
    pub(crate) fn manifest() -> Manifest {
        Manifest {
            version: FORMAT,
            revision: 0,
            id: SandboxId::from_random([7; 18]),
            state: State::Creating,
            created_unix_ms: 1,
            deadline_unix_ms: None,
            timeout_ms: None,
            on_timeout: OnTimeout::Destroy,
            bound: false,
            template: "t".to_owned(),
            kernel: "k".to_owned(),
            vcpus: 1,
            memory_mib: Mib(256),
            disk_mib: Mib(64),
            vmm: Description { driver: DriverKind::Qemu, version: "10.0.2".to_owned(), accel: Accel::Tcg },
            storage: Backend::Qcow2,
            start: Start::Cold,
            env: BTreeMap::new(),
            metadata: BTreeMap::from([("who".to_owned(), "me".to_owned())]),
            attributes: BTreeMap::from([("owner".to_owned(), "them".to_owned())]),
            slot: Slot::new(3),
            disk: None,
            memory_base: None,
            newest_generation: Number::NONE,
            access_token: "secret".to_owned(),
            nonces_below: 0,
        }
    }

    #[test]
    fn comes_back_as_it_was_written_and_keeps_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        assert_eq!(Manifest::read(&path).unwrap(), None);
        let mut manifest = manifest();
        manifest.write(&path).unwrap();
        let first = manifest.clone();
        manifest.state = State::Pausing { generation: Number::FIRST, progress: Progress::Captured };
        manifest.write(&path).unwrap();
        assert_eq!(manifest.revision, 2);
        assert_eq!(Manifest::read(&path).unwrap(), Some(manifest.clone()));
        assert_eq!(Manifest::read_previous(&path).unwrap(), Some(first));
        assert_eq!(Manifest::read_of(&path, &manifest.id).unwrap(), Some(manifest));
        let other = SandboxId::from_random([8; 18]);
        assert!(matches!(Manifest::read_of(&path, &other), Err(ManifestError::Foreign { .. })));
    }

    #[test]
    fn tells_damage_from_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Damaged { .. })));
        std::fs::write(&path, durable::seal(&serde_json::json!({"version": FORMAT + 1, "new": true}))).unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Version { found, .. }) if found == FORMAT + 1));
    }

    #[test]
    fn an_older_manifest_is_read_and_has_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        let wanted = Manifest { attributes: BTreeMap::new(), ..manifest() };
        let mut older = serde_json::to_value(&wanted).unwrap();
        for (version, lacks) in [(3, "attributes"), (2, "start")] {
            older.as_object_mut().unwrap().remove(lacks).unwrap();
            older["version"] = version.into();
            std::fs::write(&path, durable::seal(&older)).unwrap();
            assert_eq!(Manifest::read(&path).unwrap().as_ref(), Some(&wanted), "version {version}");
        }
        older["version"] = (OLDEST - 1).into();
        std::fs::write(&path, durable::seal(&older)).unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Version { .. })));
    }
}
