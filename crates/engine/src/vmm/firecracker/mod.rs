//! The Firecracker driver.
//!
//! ```text
//!   plan   jail (pure) + command line          boot   wait for its socket ─► version ─► machine, boot source, disk,
//!          + what to tell it, as data                 interface, entropy ─► InstanceStart
//!                                                      or: load the snapshot
//! ```
//!
//! Its memory is a file that it maps, or is served by its shim: it connects to the shim's socket and hands over the
//! descriptor on which the kernel tells of pages that are not there.
//!
//! It writes captures itself, into files that were made for it ([`files`]).
//!
//! Firecracker opens everything by name, in a root of its own that the shim builds ([`jail`]): the same names in every
//! sandbox. It runs as the sandbox's user, under its own system call filter ([`super::seccomp`] reads it back), and all of
//! its API is [`api`]. It has no events; how its end is noticed is told in [`control`].

pub mod api;
mod control;
mod files;
mod http;
mod jail;
mod socket;
pub mod version;

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use object::Endianness;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};
use rustix::fs::{Mode, fstat};

use self::api::{
    Action, BootSource, CacheType, Change, DeviceId, Drive, Entropy, GetVersion, IoEngine, MachineConfig,
    MemoryBackend, MemoryBackendType, NetworkInterface, NetworkOverride, SnapshotLoad,
};
pub use self::control::Client;
use self::control::Microvm;
use self::jail::Snapshot;
pub use self::version::RefusedVersion;
use super::{
    Accel, Boot, Description, DiskForm, DriverKind, Folders, GuestCpu, HostFile, Launch, Machine, MemoryBacking, Pager,
    Plan, Start, VmSpec, Vmm, VmmError,
};
use crate::probe::Version;
use crate::units::Mib;

/// The root disk.
const DISK: DeviceId = DeviceId::new("root");
/// The network interface.
const INTERFACE: DeviceId = DeviceId::new("eth0");
/// Where the jail is mounted, in the sandbox's run folder; nobody but Firecracker sees it.
const MOUNT_POINT: &str = "jail";

/// The folder where the shim listens that serves memory; Firecracker sees it and cannot write there.
const PAGER: &str = "pager";
/// The socket in there, under its name in the jail as well.
const PAGER_SOCKET: &str = "pager.sock";

/// What the guest's kernel is told: the serial console is the only one, and a guest that ends must not start again.
///
/// Resetting the machine by its keyboard controller (`reboot=k`) is what Firecracker takes for the guest's end; the kernel
/// need not look for a mouse behind it, nor talk to a keyboard. What ACPI says of it stays, it names the right interrupt.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 reboot=k panic=-1 quiet cryptomgr.notests i8042.noaux i8042.dumbkbd";

/// Firecracker on this host.
#[derive(Clone, Debug)]
pub struct Firecracker {
    program: PathBuf,
    description: Description,
}

impl Firecracker {
    /// The driver for the Firecracker at `program`, whose `version` the probe found. Refuses one with a known escape.
    pub fn new(program: PathBuf, version: Version) -> Result<Self, RefusedVersion> {
        let version = version::check(version)?.to_string();
        let description = Description { driver: DriverKind::Firecracker, version, accel: Accel::Kvm };
        Ok(Self { program, description })
    }

    /// All of the API of the Firecracker whose sandbox has `run_dir`, for what [`Machine`] does not know. Waits until it
    /// listens.
    pub async fn client(&self, run_dir: &Path) -> Result<Client, VmmError> {
        Client::await_listening(&socket::folder(run_dir)).await
    }
}

#[async_trait]
impl Vmm for Firecracker {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn memory(&self, asked: Mib) -> Mib {
        asked
    }

    fn kernel_arguments(&self) -> String {
        KERNEL_ARGUMENTS.to_owned()
    }

    fn enters_any_elf(&self) -> bool {
        true
    }

    /// The descriptors of `vm` are closed: Firecracker opens by name, and a TAP has one queue only.
    fn plan(&self, vm: VmSpec) -> Result<Plan, VmmError> {
        let disk = block_device(&vm)?;
        let pager_folder = vm.run_dir.join(PAGER);
        let origin = origin(&vm, &pager_folder)?;
        let userfaultfd = Path::new(jail::USERFAULTFD).exists();
        let capture = files::of(&vm.capture_dir);
        let libraries = self.libraries()?;
        let control = socket::folder(&vm.run_dir);
        let mount_point = vm.run_dir.join(MOUNT_POINT);
        let jail = jail::plan(jail::Parts {
            mount_point: &mount_point,
            program: &self.program,
            libraries: &libraries,
            origin,
            capture: Snapshot { devices: &capture.devices, memory: &capture.memory },
            disk,
            control: &control,
            userfaultfd,
        });
        socket::make_folder(&control, Some(vm.uid))?;
        socket::make_folder(&mount_point, None)?;
        files::prepare(&vm.capture_dir, vm.uid)?;
        let changes = configuration(&vm, &Paths::IN_JAIL);
        Ok(Plan {
            launch: Launch {
                program: PathBuf::from(jail::PROGRAM),
                args: arguments(jail::SOCKET, vm.id.as_str()),
                descriptors: Vec::new(),
                jail: Some(jail),
                pager: pager(vm.start, &pager_folder)?,
            },
            boot: Box::new(Configure { folder: control, changes, capture_dir: vm.capture_dir }),
        })
    }

    fn cpu(&self) -> Result<GuestCpu, VmmError> {
        GuestCpu::of_this_host(self.description.accel, None)
    }

    async fn attach(&self, folders: Folders<'_>) -> Result<Box<dyn Machine>, VmmError> {
        let client = Client::connect(&socket::folder(folders.run)).await?;
        let mut machine = Microvm::new(client, folders.capture.to_owned());
        machine.run_state().await?;
        Ok(Box::new(machine))
    }
}

impl Firecracker {
    /// The folders of libraries its program needs: none for a release, which is linked statically.
    fn libraries(&self) -> Result<Vec<PathBuf>, VmmError> {
        let failed = |source| VmmError::File { path: self.program.clone(), source };
        if !is_dynamic(&self.program).map_err(failed)? {
            return Ok(Vec::new());
        }
        Ok(jail::LIBRARIES.map(PathBuf::from).into_iter().filter(|folder| folder.is_dir()).collect())
    }
}

/// Whether a program names an interpreter, and so needs libraries.
pub fn is_dynamic(program: &Path) -> io::Result<bool> {
    let program = File::open(program)?;
    let not_elf = |error: object::Error| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let data = ReadCache::new(program);
    let header = FileHeader64::<Endianness>::parse(&data).map_err(not_elf)?;
    let endian = header.endian().map_err(not_elf)?;
    let segments = header.program_headers(endian, &data).map_err(not_elf)?;
    Ok(segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP))
}

/// The log goes where the serial console goes, and a guest can fill it with warnings: only errors are logged.
fn arguments(socket: &str, id: &str) -> Vec<String> {
    ["--api-sock", socket, "--id", id, "--level", "Error"].map(str::to_owned).to_vec()
}

fn block_device(vm: &VmSpec) -> Result<&Path, VmmError> {
    let refused = |found| Err(VmmError::Disk { driver: DriverKind::Firecracker, found });
    match vm.disk.first().map(|disk| (disk.form, &disk.file.path)) {
        Some((DiskForm::BlockDevice, path)) => Ok(path),
        Some((DiskForm::Overlay, _)) => refused("a qcow2 overlay"),
        Some((DiskForm::Raw, _)) => refused("a plain file"),
        None => refused("no disk"),
    }
}

/// What the VM begins with, which its user must be able to open.
fn origin<'a>(vm: &'a VmSpec, pager: &'a Path) -> Result<jail::Origin<'a>, VmmError> {
    let readable = |file| check_readable(file, vm.uid);
    match &vm.start {
        Start::Boot => {
            [&vm.kernel, &vm.initramfs].into_iter().try_for_each(readable)?;
            Ok(jail::Origin::Boot { kernel: &vm.kernel.path, initramfs: &vm.initramfs.path })
        }
        Start::Restore { devices, memory: MemoryBacking::File } => {
            [devices, &vm.memory_base].into_iter().try_for_each(readable)?;
            Ok(jail::Origin::Restore(Snapshot { devices: &devices.path, memory: &vm.memory_base.path }))
        }
        Start::Restore { devices, memory: MemoryBacking::Uffd(_) } => {
            let path = PathBuf::from(jail::USERFAULTFD);
            if !path.exists() {
                return Err(VmmError::NoUserfaultfd { path });
            }
            readable(devices)?;
            Ok(jail::Origin::RestoreServed { devices: &devices.path, pager })
        }
    }
}

/// What the shim serves, and the folder for its socket, which all may pass: nobody comes that far but root and the jailed.
fn pager(start: Start, folder: &Path) -> Result<Option<Pager>, VmmError> {
    let Start::Restore { memory: MemoryBacking::Uffd(pages), .. } = start else { return Ok(None) };
    socket::make_folder(folder, None)?;
    let opened = std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711));
    opened.map_err(|source| VmmError::Socket { step: "open the folder of", path: folder.to_owned(), source })?;
    Ok(Some(Pager { socket: folder.join(PAGER_SOCKET), pages }))
}

fn check_readable(file: &HostFile, uid: u32) -> Result<(), VmmError> {
    let stat = fstat(&file.file).map_err(|errno| VmmError::File { path: file.path.clone(), source: errno.into() })?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.contains(Mode::ROTH) || stat.st_uid == uid {
        Ok(())
    } else {
        Err(VmmError::Unreadable { path: file.path.clone() })
    }
}

/// The paths under which Firecracker finds a VM's parts.
#[derive(Clone, Copy, Debug)]
struct Paths<'a> {
    kernel: &'a str,
    initramfs: &'a str,
    disk: &'a str,
}

impl Paths<'static> {
    const IN_JAIL: Self = Self { kernel: jail::KERNEL, initramfs: jail::INITRAMFS, disk: jail::DISK };
}

/// Everything Firecracker must be told, in order.
///
/// Which pages a capture has to hold is known in two ways. The memory of a VM that boots is its own: pages that were never
/// touched are not there, and the kernel can tell (mincore). That of a restored one is a file's, whose pages are all there, or
/// is served, also where nothing is written: so KVM logs what is written, which costs a fault for each page once. What the
/// shim puts there is not logged.
fn configuration(vm: &VmSpec, paths: &Paths<'_>) -> Vec<Change> {
    match &vm.start {
        Start::Boot => cold(vm, paths),
        Start::Restore { memory, .. } => vec![Change::SnapshotLoad(SnapshotLoad {
            snapshot_path: jail::SNAPSHOT.devices.to_owned(),
            mem_backend: backend(memory),
            track_dirty_pages: true,
            resume_vm: false,
            network_overrides: vec![NetworkOverride { iface_id: INTERFACE, host_dev_name: vm.tap.name.to_owned() }],
        })],
    }
}

fn backend(memory: &MemoryBacking) -> MemoryBackend {
    let (backend_type, path) = match memory {
        MemoryBacking::File => (MemoryBackendType::File, jail::SNAPSHOT.memory),
        MemoryBacking::Uffd(_) => (MemoryBackendType::Uffd, jail::PAGER_SOCKET),
    };
    MemoryBackend { backend_type, backend_path: path.to_owned() }
}

/// The last of it starts the guest.
fn cold(vm: &VmSpec, paths: &Paths<'_>) -> Vec<Change> {
    vec![
        Change::MachineConfig(MachineConfig {
            vcpu_count: vm.vcpus,
            mem_size_mib: vm.memory.0,
            smt: false,
            track_dirty_pages: false,
        }),
        Change::BootSource(BootSource {
            kernel_image_path: paths.kernel.to_owned(),
            initrd_path: Some(paths.initramfs.to_owned()),
            boot_args: Some(vm.command_line.clone()),
        }),
        Change::Drive(Drive {
            drive_id: DISK,
            // The kernel's command line names it, on every driver in the same way.
            is_root_device: false,
            // A guest that syncs its disk has it on the host's, as on QEMU.
            cache_type: CacheType::Writeback,
            is_read_only: false,
            path_on_host: paths.disk.to_owned(),
            io_engine: IoEngine::Sync,
            rate_limiter: None,
        }),
        Change::NetworkInterface(NetworkInterface {
            iface_id: INTERFACE,
            host_dev_name: vm.tap.name.to_owned(),
            guest_mac: Some(vm.guest_mac.clone()),
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }),
        Change::Entropy(Entropy::default()),
        Change::Action(Action::InstanceStart),
    ]
}

/// The boot of a Firecracker: all that it is told.
#[derive(Debug)]
struct Configure {
    folder: PathBuf,
    changes: Vec<Change>,
    capture_dir: PathBuf,
}

#[async_trait]
impl Boot for Configure {
    async fn boot(self: Box<Self>) -> Result<Box<dyn Machine>, VmmError> {
        let mut client = Client::await_listening(&self.folder).await?;
        check_version(&mut client).await?;
        for change in &self.changes {
            client.change(change).await.map_err(|error| blamed(change, error))?;
        }
        Ok(Box::new(Microvm::new(client, self.capture_dir)))
    }
}

/// A state that is refused is one that cannot be restored.
fn blamed(change: &Change, error: VmmError) -> VmmError {
    match (change, error) {
        (Change::SnapshotLoad(_), VmmError::Refused { detail, .. }) => VmmError::Restore { detail },
        (_, error) => error,
    }
}

/// The program may have been replaced since the probe looked at it.
async fn check_version(client: &mut Client) -> Result<(), VmmError> {
    let text = client.ask::<GetVersion>().await?.firecracker_version;
    let version = Version::in_text(&text).ok_or_else(|| VmmError::Protocol {
        command: "tell its version",
        detail: format!("`{}` is no version", super::excerpt(text.as_bytes())),
    })?;
    version::check(version)?;
    Ok(())
}

#[cfg(test)]
mod tests;
