//! What the agent knows about a sandbox, durable: the truth for its existence, its state and what it holds on the host.
//!
//! It is written *before* each side effect, so that whoever finds it can undo or finish what was begun. It holds the
//! access token: mode 0600 in a folder of mode 0700.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use wrenn_engine::names::{SandboxId, Slot};
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::Description;

use crate::durable;

/// Version of manifest.json that is written and read here.
pub const FORMAT: u32 = 1;
/// Longest manifest taken, in bytes.
const BYTES_MAX: u64 = 64 * 1024;

/// Where in its life a sandbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being built; nothing has run in it yet.
    Creating,
    /// Its guest is ready.
    Running,
    /// Being taken down; never comes back.
    Destroying,
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
    /// The slot it holds: network, addresses and the VMM's uid follow from it. `None` until one is leased.
    pub slot: Option<Slot>,
    /// What the guest's agent asks of who wants to use it.
    pub access_token: String,
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
        source: serde_json::Error,
    },
    /// A newer wrenn wrote it.
    #[error("the manifest {path} has version {found}; this wrenn reads version {FORMAT}, use the one that wrote it")]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl Manifest {
    /// Writes it durably at `path`, under the next revision.
    pub fn write(&mut self, path: &Path) -> Result<(), ManifestError> {
        self.revision += 1;
        assert_eq!(self.version, FORMAT, "only this version's manifests are made");
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| ManifestError::Damaged { path: path.to_owned(), source })?;
        durable::replace(path, &text).map_err(|source| ManifestError::Io {
            step: "write",
            path: path.to_owned(),
            source,
        })
    }

    /// Reads the manifest at `path`; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, ManifestError> {
        let failed = |source| ManifestError::Io { step: "read", path: path.to_owned(), source };
        let Some(text) = durable::read(path, BYTES_MAX).map_err(failed)? else { return Ok(None) };
        let damaged = |source| ManifestError::Damaged { path: path.to_owned(), source };
        // The version is looked at first: the fields of another version may be other fields.
        let Version { version } = serde_json::from_slice(&text).map_err(damaged)?;
        if version != FORMAT {
            return Err(ManifestError::Version { path: path.to_owned(), found: version });
        }
        serde_json::from_slice(&text).map(Some).map_err(damaged)
    }
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
mod tests {
    use wrenn_engine::vmm::{Accel, DriverKind};

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            version: FORMAT,
            revision: 0,
            id: SandboxId::from_random([7; 18]),
            state: State::Creating,
            created_unix_ms: 1,
            template: "t".to_owned(),
            kernel: "k".to_owned(),
            vcpus: 1,
            memory_mib: Mib(256),
            disk_mib: Mib(64),
            vmm: Description { driver: DriverKind::Qemu, version: "10.0.2".to_owned(), accel: Accel::Tcg },
            slot: Slot::new(3),
            access_token: "secret".to_owned(),
        }
    }

    #[test]
    fn comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        assert_eq!(Manifest::read(&path).unwrap(), None);
        let mut manifest = manifest();
        manifest.write(&path).unwrap();
        manifest.write(&path).unwrap();
        assert_eq!(manifest.revision, 2);
        assert_eq!(Manifest::read(&path).unwrap(), Some(manifest));
    }

    #[test]
    fn tells_damage_from_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Damaged { .. })));
        std::fs::write(&path, r#"{"version": 2, "new": true}"#).unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Version { found: 2, .. })));
    }
}
