//! A host as the agent uses it: the instance, and one driver of each kind, chosen from what the host can do.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use wrenn_engine::cgroup::Cgroups;
use wrenn_engine::image::ImageStore;
use wrenn_engine::memory::Verified;
use wrenn_engine::network::{Lease, Network, NetworkError, Pool};
use wrenn_engine::probe::Restore;
use wrenn_engine::storage::Storage;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::{HostFile, Vmm};

use crate::faults::Faults;
use crate::instance::{Instance, InstanceError, io_error};
use crate::snapshot::{Snapshots, WarmImages};

/// What sandboxes are made with.
pub struct Host {
    /// Whose sandboxes they are.
    pub instance: Instance,
    /// Kernels and templates.
    pub images: ImageStore,
    /// What sandboxes were, under names.
    pub snapshots: Snapshots,
    /// What templates are when they have booted.
    pub warm: WarmImages,
    /// Slots, namespaces, rules.
    pub network: Network,
    /// Disks.
    pub storage: Arc<dyn Storage>,
    /// The VMM driver.
    pub vmm: Box<dyn Vmm>,
    /// How a captured VM comes by its memory.
    pub restore: Restore,
    /// What sandboxes may use at most; `None` on a host without control groups of version 2.
    pub cgroups: Option<Cgroups>,
    /// The shim's binary, unpacked.
    pub shim_program: PathBuf,
    /// Memory the host has in all.
    pub memory: Mib,
    /// Networks made ahead; without them each is made when it is needed.
    pub pool: Option<Pool>,
    /// Which captured memories were checked already.
    pub verified: Verified,
    /// What a test wants to go wrong.
    pub faults: Faults,
}

impl Host {
    /// A network for a sandbox.
    pub async fn lease(&self) -> Result<Lease, NetworkError> {
        match &self.pool {
            Some(pool) => pool.take().await,
            None => self.network.acquire().await,
        }
    }
}

/// Unpacks the shim's binary into the instance under the hash of its content, once. An upgrade adds another one: the old
/// one stays for the sandboxes that run under it.
pub fn install_shim(instance: &Instance, shim: &[u8]) -> Result<PathBuf, InstanceError> {
    let folder = instance.dir().join("bin");
    std::fs::create_dir_all(&folder).map_err(io_error("make the folder", &folder))?;
    let hash = hex::encode(&Sha256::digest(shim)[..8]);
    let path = folder.join(format!("wrenn-shim-{hash}"));
    place(&path, 0o700, |file| std::io::Write::write_all(file, shim))?;
    Ok(path)
}

/// The file that `memory` of guest memory is mapped over before the guest wrote anything: sparse, immutable, all zero.
pub fn zero_memory(instance: &Instance, memory: Mib) -> Result<HostFile, InstanceError> {
    let folder = instance.dir().join("memory");
    std::fs::create_dir_all(&folder).map_err(io_error("make the folder", &folder))?;
    let path = folder.join(format!("zero-{}", memory.0));
    // Readable by any VMM user: there is nothing in it.
    place(&path, 0o444, |file| file.set_len(memory.bytes()))?;
    HostFile::open(&path).map_err(io_error("open", &path))
}

/// Makes the file `path` with what `fill` writes, whole or not at all; one that is there already is right.
fn place(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<(), InstanceError> {
    if path.exists() {
        return Ok(());
    }
    // Several processes may do this at once: each under a name of its own, and the last rename wins with the same bytes.
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    let filled = fill(&mut file)
        .and_then(|()| file.set_permissions(PermissionsExt::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path));
    if filled.is_err()
        && let Err(error) = std::fs::remove_file(&temporary)
    {
        tracing::warn!(path = %temporary.display(), %error, "cannot remove a half-made file");
    }
    filled.map_err(io_error("write", path))
}
