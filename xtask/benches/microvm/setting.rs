//! What is measured with: the instance, opened as `wrenn` opens it, and the sandbox that all measurements ask for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use wrenn_agent::faults::Faults;
use wrenn_agent::host::{Host, install_shim};
use wrenn_agent::host_agent::{CreateRequest, Fresh, Source, Wishes};
use wrenn_agent::instance::{Instance, RUN_DIR};
use wrenn_agent::sandbox::Shape;
use wrenn_agent::snapshot::{Snapshots, WarmImages};
use wrenn_engine::cgroup::Cgroups;
use wrenn_engine::image::ImageStore;
use wrenn_engine::memory::Verified;
use wrenn_engine::network::{Network, NetworkConfig};
use wrenn_engine::probe::{self, Depth, Options};
use wrenn_engine::storage::dm::Dm;
use wrenn_engine::storage::qcow2::Qcow2;
use wrenn_engine::storage::{Backend, Storage};
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::firecracker::Firecracker;
use wrenn_engine::vmm::qemu::Qemu;
use wrenn_engine::vmm::{DriverKind, Vmm};

use crate::Args;

/// The template of every measurement.
pub const TEMPLATE: &str = "minimal";
/// The virtual CPUs of every measurement: what `wrenn run` gives by itself.
pub const VCPUS: u32 = 1;
/// The memory of every measurement: what `wrenn run` gives by itself.
pub const MEMORY: Mib = Mib(256);
/// How long a guest may take to become ready.
pub const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long the CPU's time stamp counter is measured.
const TSC_WINDOW: Duration = Duration::from_millis(50);

/// What is measured with.
pub struct Setting {
    /// The instance and its drivers.
    pub host: Arc<Host>,
    /// For what is asynchronous; the same kind that `wrenn run` has.
    pub runtime: Runtime,
    /// The VMM's program.
    pub vmm_program: PathBuf,
    /// The program under test.
    pub wrenn: PathBuf,
    /// Its data folder.
    pub data: PathBuf,
    /// Size of the guest's program, in bytes.
    pub guest_bytes: u64,
}

impl Setting {
    /// Opens the instance with the drivers this host can run.
    pub fn open(args: &Args) -> Result<Self> {
        let read = |name: &str| {
            let path = args.guest_dir.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (guest, shim) = (read("envd")?, read("wrenn-shim")?);
        let guest_bytes = guest.len() as u64;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let instance = Instance::open(&args.data)?;
        let options = Options {
            data_dir: args.data.clone(),
            qemu: None,
            firecracker: args.firecracker.clone(),
            network: NetworkConfig::default(),
            depth: Depth::Choose,
        };
        let capabilities = runtime.block_on(probe::look(&options));
        let chosen = capabilities.choose(&probe::Wishes::default())?;
        let (vmm, vmm_program) = vmm(&capabilities, &chosen)?;
        let storage: Arc<dyn Storage> = match chosen.storage.value {
            Backend::DeviceMapper => Arc::new(Dm::open()?),
            Backend::Qcow2 => Arc::new(Qcow2),
        };
        let host = Host {
            images: ImageStore::open(&args.data, guest)?,
            snapshots: Snapshots::of(&args.data),
            warm: WarmImages::of(&args.data),
            restore: chosen.restore.value,
            network: Network::open(instance.tag(), instance.dir(), NetworkConfig::default())?,
            storage,
            vmm,
            // Where the host has none, as `wrenn run` does.
            cgroups: Cgroups::mounted(instance.tag(), Path::new(RUN_DIR)).ok(),
            shim_program: install_shim(&instance, &shim)?,
            memory: Mib::holding(capabilities.memory_total()),
            pool: None,
            verified: Verified::default(),
            faults: Faults::default(),
            instance,
        };
        Ok(Self {
            host: Arc::new(host),
            runtime,
            vmm_program,
            wrenn: args.wrenn.clone(),
            data: args.data.clone(),
            guest_bytes,
        })
    }

    /// What every sandbox is asked to be.
    pub fn request(&self) -> CreateRequest {
        self.request_of(MEMORY)
    }

    /// The same with another size; booted, which is what is measured.
    pub fn request_of(&self, memory: Mib) -> CreateRequest {
        let shape = Shape { vcpus: VCPUS, memory, disk: None };
        CreateRequest {
            source: Source::Template(Fresh { template: TEMPLATE.to_owned(), kernel: None, shape, cold: true }),
            wishes: Wishes { bound: false, ..Wishes::bound(READY_LIMIT) },
        }
    }

    /// VMM and storage, for people.
    pub fn vmm_words(&self) -> String {
        let vmm = self.host.vmm.describe();
        format!("{} {}, {}, {}", vmm.driver, vmm.version, vmm.accel, self.host.storage.backend())
    }
}

/// The driver `wrenn run` would take, and its program.
fn vmm(capabilities: &probe::Capabilities, chosen: &probe::Chosen) -> Result<(Box<dyn Vmm>, PathBuf)> {
    match chosen.vmm.value {
        DriverKind::Qemu => {
            let found = capabilities.qemu().context("QEMU was chosen but is not there")?;
            let tsc_khz = wrenn_sys::tsc::khz(TSC_WINDOW);
            let qemu = Qemu::new(found.path.clone(), found.version.to_string(), chosen.accel.value, tsc_khz);
            Ok((Box::new(qemu), found.path.clone()))
        }
        DriverKind::Firecracker => {
            let found = capabilities.firecracker().context("Firecracker was chosen but is not there")?;
            Ok((Box::new(Firecracker::new(found.path.clone(), found.version)?), found.path.clone()))
        }
    }
}
