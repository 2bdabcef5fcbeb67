//! Opening a host: what it can do decides which drivers run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use wrenn_agent::faults::Faults;
use wrenn_agent::host::{Host, install_shim};
use wrenn_agent::instance::{Instance, RUN_DIR};
use wrenn_agent::snapshot::{Snapshots, WarmImages};
use wrenn_engine::cgroup::Cgroups;
use wrenn_engine::image::ImageStore;
use wrenn_engine::memory::Verified;
use wrenn_engine::network::{Network, NetworkConfig};
use wrenn_engine::probe::{self, Cgroup, Depth, Options, Wishes};
use wrenn_engine::storage::dm::Dm;
use wrenn_engine::storage::qcow2::Qcow2;
use wrenn_engine::storage::{Backend, Storage};
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::firecracker::Firecracker;
use wrenn_engine::vmm::qemu::Qemu;
use wrenn_engine::vmm::{DriverKind, Vmm};

use crate::cli::Programs;
use crate::embedded;

/// How long the CPU's time stamp counter is measured.
const TSC_WINDOW: Duration = Duration::from_millis(50);

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
pub async fn open(dir: &Path, programs: &Programs, wishes: &Wishes) -> Result<Host> {
    let shim = embedded::SHIM.context(NOT_EMBEDDED)?;
    let instance = Instance::open(dir)?;
    let images = open_images(dir)?;
    let capabilities = probe::look(&options(dir, programs, Depth::Choose)).await;
    let chosen = capabilities.choose(wishes)?;
    for lack in capabilities.blockers() {
        tracing::warn!("{}: {}; {}", lack.name, lack.detail, lack.state.remedy().unwrap_or_default());
    }
    let storage: Arc<dyn Storage> = match chosen.storage.value {
        Backend::Qcow2 => Arc::new(Qcow2),
        Backend::DeviceMapper => Arc::new(Dm::open()?),
    };
    let vmm: Box<dyn Vmm> = match chosen.vmm.value {
        DriverKind::Qemu => {
            let found = capabilities.qemu().context("QEMU was chosen but is not there")?;
            let version = found.version.to_string();
            Box::new(Qemu::new(found.path.clone(), version, chosen.accel.value, tsc_khz()))
        }
        DriverKind::Firecracker => {
            let found = capabilities.firecracker().context("Firecracker was chosen but is not there")?;
            Box::new(Firecracker::new(found.path.clone(), found.version)?)
        }
    };
    let cgroups = match chosen.cgroup.value {
        Cgroup::V2 => Some(Cgroups::mounted(instance.tag(), Path::new(RUN_DIR))?),
        Cgroup::None => None,
    };
    Ok(Host {
        cgroups,
        images,
        snapshots: Snapshots::of(instance.dir()),
        warm: WarmImages::of(instance.dir()),
        network: Network::open(instance.tag(), instance.dir(), NetworkConfig::default())?,
        storage,
        vmm,
        restore: chosen.restore.value,
        shim_program: install_shim(&instance, shim)?,
        memory: Mib::holding(capabilities.memory_total()),
        pool: None,
        verified: Verified::default(),
        faults: Faults::default(),
        instance,
    })
}

/// Opens the kernels and templates of `dir`.
pub fn open_images(dir: &Path) -> Result<ImageStore> {
    let guest = embedded::ENVD.context(NOT_EMBEDDED)?;
    Ok(ImageStore::open(dir, guest)?)
}

/// The rate of the CPU's time stamp counter; measured once after each boot of the host, then read from /run.
fn tsc_khz() -> Option<u64> {
    let record = Path::new(RUN_DIR).join("tsc-khz");
    let known = std::fs::read_to_string(&record).ok().and_then(|text| text.trim().parse().ok());
    known.or_else(|| {
        let khz = wrenn_sys::tsc::khz(TSC_WINDOW)?;
        if let Err(error) = std::fs::write(&record, khz.to_string()) {
            tracing::debug!(%error, "the rate of the time stamp counter will be measured again");
        }
        Some(khz)
    })
}

const NOT_EMBEDDED: &str = "this wrenn was built without its guest; build it with `cargo xtask build`";
