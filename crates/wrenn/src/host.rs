//! Opening a host: what it can do decides which drivers run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use wrenn_agent::host::{Host, install_shim};
use wrenn_agent::instance::Instance;
use wrenn_engine::image::ImageStore;
use wrenn_engine::network::{Network, NetworkConfig};
use wrenn_engine::probe::{self, Depth, Options, StorageKind, VmmKind, Wishes};
use wrenn_engine::storage::Storage;
use wrenn_engine::storage::qcow2::Qcow2;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::Vmm;
use wrenn_engine::vmm::qemu::Qemu;

use crate::cli::Programs;
use crate::embedded;

/// How long the CPU's time stamp counter is measured; it happens while the host is looked at.
const TSC_WINDOW: Duration = Duration::from_millis(20);

/// What the probe is asked about.
pub fn options(dir: &Path, programs: &Programs, depth: Depth) -> Options {
    Options {
        data_dir: dir.to_owned(),
        qemu: programs.qemu.clone(),
        firecracker: programs.firecracker.clone().or_else(|| in_path("firecracker")),
        network: NetworkConfig::default(),
        depth,
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// Opens the instance in `dir` with the drivers this host can run.
pub async fn open(dir: &Path, programs: &Programs) -> Result<Host> {
    let shim = embedded::SHIM.context(NOT_EMBEDDED)?;
    let instance = Instance::open(dir)?;
    let images = open_images(dir)?;
    let tsc = std::thread::spawn(|| wrenn_sys::tsc::khz(TSC_WINDOW));
    let capabilities = probe::look(&options(dir, programs, Depth::Choose)).await;
    let chosen = capabilities.choose(&Wishes::default())?;
    let storage: Arc<dyn Storage> = match chosen.storage.value {
        StorageKind::Qcow2 => Arc::new(Qcow2),
        StorageKind::DeviceMapper => bail!("device-mapper storage is not in this version of Wrenn"),
    };
    let vmm: Box<dyn Vmm> = match chosen.vmm.value {
        VmmKind::Qemu => {
            let found = capabilities.qemu().context("QEMU was chosen but is not there")?;
            // A thread that only reads a counter does not panic; without its answer the guest measures for itself.
            let tsc_khz = tsc.join().ok().flatten();
            Box::new(Qemu::new(found.path.clone(), found.version.to_string(), chosen.accel.value, tsc_khz))
        }
        VmmKind::Firecracker => bail!("the Firecracker driver is not in this version of Wrenn"),
    };
    Ok(Host {
        images,
        network: Network::open(instance.tag(), instance.dir(), NetworkConfig::default())?,
        storage,
        vmm,
        shim_program: install_shim(&instance, shim)?,
        memory: Mib::holding(capabilities.memory_total()),
        instance,
    })
}

/// Opens the kernels and templates of `dir`.
pub fn open_images(dir: &Path) -> Result<ImageStore> {
    let guest = embedded::ENVD.context(NOT_EMBEDDED)?;
    Ok(ImageStore::open(dir, guest)?)
}

const NOT_EMBEDDED: &str = "this wrenn was built without its guest; build it with `cargo xtask build`";
