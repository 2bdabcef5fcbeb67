//! What exists of a sandbox on the host, and taking it down.

use std::path::Path;
use std::sync::Arc;

use wrenn_engine::cgroup::{Cgroup, OutOfMemory};
use wrenn_engine::network::Lease;
use wrenn_engine::storage::{Backend, Disk, Storage};
use wrenn_engine::vmm::Shim;
use wrenn_proto::shim::ring;

use super::Stopwatch;
use crate::instance::Places;
use crate::lock::Lock;
use crate::manifest::{Manifest, State};

/// What exists of a sandbox. The order of the fields is the order of teardown: the VM holds disk and network.
pub struct Parts {
    pub(super) shim: Option<Shim>,
    /// Where the VM runs: whatever is in there is killed before disk and network go.
    pub(super) cgroup: Option<Cgroup>,
    pub(super) disk: Option<Disk>,
    pub(super) lease: Option<Lease>,
    pub(super) places: Places,
    pub(super) manifest: Manifest,
    storage: Arc<dyn Storage>,
    /// Held until the last file is gone: who finds the lock free finds an orphan.
    _lock: Lock,
}

impl Parts {
    /// What its disk is made of.
    pub(super) fn storage(&self) -> Backend {
        self.storage.backend()
    }

    /// A sandbox that has its folders and its manifest, and nothing else yet.
    pub(super) fn new(storage: Arc<dyn Storage>, places: Places, manifest: Manifest, lock: Lock) -> Self {
        Self { shim: None, cgroup: None, disk: None, lease: None, places, manifest, storage, _lock: lock }
    }

    /// Takes down what is there. What fails is logged; what is left then is in the folder, whose lock is free once this
    /// returns, and the next start tries again. So the folder stays as long as anything else does.
    pub async fn destroy(mut self, watch: &mut Stopwatch) {
        self.manifest.state = State::Destroying;
        if let Err(error) = self.manifest.write(&self.places.manifest()) {
            tracing::warn!(%error, "cannot note that a sandbox is being destroyed");
        }
        if let Some(shim) = self.shim.take() {
            blocking(move || shim.end()).await;
        }
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = blocking(move || cgroup.destroy()).await
        {
            tracing::error!(sandbox = %self.manifest.id, %error, "cannot remove the control group of a sandbox");
            return;
        }
        watch.lap("end vmm");
        if let Some(lease) = self.lease.take()
            && let Err(error) = lease.destroy().await
        {
            tracing::error!(sandbox = %self.manifest.id, %error, "cannot take down the network of a sandbox");
            return;
        }
        watch.lap("end network");
        if let Some(disk) = self.disk.take() {
            let storage = Arc::clone(&self.storage);
            if let Err(error) = blocking(move || storage.remove(&disk)).await {
                tracing::error!(sandbox = %self.manifest.id, %error, "cannot remove the disk of a sandbox");
                return;
            }
        }
        watch.lap("end disk");
        Self::remove_folders(&self.places);
        watch.lap("end files");
    }

    /// Removes both folders of a sandbox; the one with the manifest last.
    pub(crate) fn remove_folders(places: &Places) {
        for folder in [&places.run_dir, &places.dir] {
            if let Err(error) = remove_folder(folder) {
                tracing::warn!(path = %folder.display(), %error, "cannot remove a sandbox's folder");
            }
        }
    }

    /// Whether the kernel has killed the VM for want of memory.
    pub(super) fn out_of_memory(&self) -> Option<OutOfMemory> {
        match self.cgroup.as_ref()?.out_of_memory() {
            Ok(shortage) => shortage,
            Err(error) => {
                tracing::warn!(sandbox = %self.manifest.id, %error, "cannot find out whether a VM ended for want of memory");
                None
            }
        }
    }

    pub(super) fn console_tail(&self, bytes_max: u64) -> Vec<u8> {
        ring::read_tail(&self.places.console(), bytes_max).map(|tail| tail.data).unwrap_or_default()
    }
}

fn remove_folder(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Runs what blocks where blocking is fine. A panic in there is passed on.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
