//! What a sandbox has on the host, made by hand: network, disk, folders, a VMM without its shim.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wrenn_engine::names::{DiskName, SandboxId};
use wrenn_engine::network::GUEST_MAC;
use wrenn_engine::network::addresses::{GATEWAY, GUEST, GUEST_PREFIX, TAP, TAP_MAC};
use wrenn_engine::network::links::Netlink;
use wrenn_engine::storage::qcow2::Qcow2;
use wrenn_engine::storage::{self, Layer, LayerFormat, Place, Storage};
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::firecracker::Firecracker;
use wrenn_engine::vmm::firecracker::version::OLDEST;
use wrenn_engine::vmm::qemu::Qemu;
use wrenn_engine::vmm::{Accel, Boot, DiskFile, Folders, HostFile, Launch, Plan, Start, Tap, VmSpec, Vmm};
use wrenn_proto::shim;
use wrenn_sys::loopdev::{LoopDevice, Options};
use wrenn_sys::netns::NetNs;
use wrenn_sys::spawn::{Child, Credentials, Jail, JailEntry, Spawn, find_program};
use wrenn_sys::tap;

/// Guest memory.
pub const MEMORY: Mib = Mib(256);
/// A user who owns nothing else.
pub const UID: u32 = 0x7000_1234;
/// Where envd listens in the guest.
pub const ENVD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(GUEST), 49983);
/// A guest of an emulated host on a busy machine.
pub const READY_LIMIT: Duration = Duration::from_secs(60);
/// The rest of what the guest's init needs to come up.
const INIT_ARGUMENTS: &str = "wrenn.key=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \
                              wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns=169.254.0.22 \
                              wrenn.root=/dev/vda";

fn in_path(name: &str) -> Option<PathBuf> {
    find_program(OsStr::new(name), &env::var_os("PATH").unwrap_or_default(), Path::new("/")).ok()
}

/// Whatever version is said here: the driver asks the program itself before it tells it anything.
pub fn firecracker() -> Firecracker {
    let found = env::var_os("WRENN_FIRECRACKER").map(PathBuf::from).or_else(|| in_path("firecracker"));
    let found = found.expect("no Firecracker: name a release in WRENN_FIRECRACKER, or put `firecracker` into PATH");
    Firecracker::new(found, OLDEST).unwrap()
}

pub fn qemu(accel: Accel) -> Qemu {
    let program = in_path("qemu-system-x86_64").expect("QEMU is not installed");
    let tsc_khz = wrenn_sys::tsc::khz(Duration::from_millis(20));
    Qemu::new(program, "unknown".to_owned(), accel, tsc_khz)
}

/// The newest file of this name in a folder of `images`.
fn image(folder: &str, name: &str) -> PathBuf {
    let images = env::var_os("WRENN_TEST_IMAGES").expect("WRENN_TEST_IMAGES is not set");
    let entries = fs::read_dir(Path::new(&images).join(folder)).expect("the images are built");
    let files = entries.map(|entry| entry.unwrap().path().join(name)).filter(|path| path.is_file());
    files.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).expect("an image of that name")
}

/// What a sandbox has on the host: network, disk, folder.
pub struct World {
    pub netns: NetNs,
    disk: Disk,
    capture_dir: PathBuf,
    dir: TempDir,
}

/// What the VM's disk is on the host.
enum Disk {
    Device(LoopDevice),
    Overlay(storage::Disk),
}

impl World {
    /// With a loop device as the disk.
    pub fn new() -> Self {
        Self::with(|dir| Disk::Device(make_device(dir)))
    }

    /// With an overlay as the disk, for a host without loop devices.
    pub fn with_overlay() -> Self {
        Self::with(|dir| Disk::Overlay(make_overlay(dir)))
    }

    fn with(make_disk: impl FnOnce(&Path) -> Disk) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The VMM finds its folder through no path, but the tests' parent folder is closed to its user.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let netns = NetNs::anonymous().expect("this test needs root");
        netns.run(make_tap).unwrap().unwrap();
        Self { netns, disk: make_disk(dir.path()), capture_dir: dir.path().join("capture"), dir }
    }

    /// A new folder of that name.
    pub fn run_dir(&self, name: &str) -> PathBuf {
        let run_dir = self.dir.path().join(name);
        fs::create_dir(&run_dir).unwrap();
        run_dir
    }

    pub fn folders<'a>(&'a self, run: &'a Path) -> Folders<'a> {
        Folders { run, capture: &self.capture_dir }
    }

    /// A VM that boots.
    pub fn spec(&self, driver: &dyn Vmm, run_dir: &Path) -> VmSpec {
        let id = SandboxId::from_random([7; 18]);
        VmSpec {
            command_line: format!("{} wrenn.id={id} {INIT_ARGUMENTS}", driver.kernel_arguments()),
            id,
            uid: UID,
            run_dir: run_dir.to_owned(),
            capture_dir: self.capture_dir.clone(),
            start: Start::Boot,
            vcpus: 1,
            memory: MEMORY,
            memory_base: HostFile::open(&self.zero_memory()).unwrap(),
            kernel: HostFile::open(&image("kernels", "vmlinux")).unwrap(),
            initramfs: HostFile::open(&image("kernels", "initrd.img")).unwrap(),
            disk: self.disk_files(),
            tap: Tap { name: TAP, queue: self.netns.run(|| tap::open(TAP, Some(UID))).unwrap().unwrap() },
            guest_mac: GUEST_MAC.to_string(),
        }
    }

    fn disk_files(&self) -> Vec<DiskFile> {
        match &self.disk {
            Disk::Device(device) => vec![DiskFile::live(&device.path(), false).unwrap()],
            Disk::Overlay(disk) => {
                let beneath = disk.layers.iter().rev().map(|layer| DiskFile::layer(&layer.path, false));
                [DiskFile::live(&disk.path, true)].into_iter().chain(beneath).collect::<Result<_, _>>().unwrap()
            }
        }
    }

    /// What the memory of a VM that boots is mapped over.
    pub fn zero_memory(&self) -> PathBuf {
        let path = self.dir.path().join("zero");
        File::create(&path).unwrap().set_len(MEMORY.bytes()).unwrap();
        path
    }

    /// Plans and starts the VMM of a VM that boots, as its shim would.
    pub fn launch(&self, driver: &dyn Vmm, run_dir: &Path) -> (Process, Box<dyn Boot>) {
        self.launch_as(driver, self.spec(driver, run_dir))
    }

    pub fn launch_as(&self, driver: &dyn Vmm, spec: VmSpec) -> (Process, Box<dyn Boot>) {
        let Plan { launch, boot } = driver.plan(spec).unwrap();
        (Process::start(launch, &self.netns), boot)
    }

    /// Whether the guest's envd says that it is well.
    pub fn is_healthy(&self, limit: Duration) -> bool {
        self.netns.run(|| healthy(limit)).unwrap().is_ok()
    }

    pub fn await_healthy(&self, process: &Process) {
        let deadline = Instant::now() + READY_LIMIT;
        while !self.is_healthy(Duration::from_secs(1)) {
            assert!(Instant::now() < deadline, "the guest is not up; its console:\n{}", process.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn make_tap() -> io::Result<()> {
    tap::open(TAP, Some(UID))?;
    let mut netlink = Netlink::open()?;
    let link = netlink.index(TAP)?.expect("just made");
    netlink.set_up(link, Some(TAP_MAC))?;
    netlink.add_address(link, GATEWAY, GUEST_PREFIX)?;
    netlink.pin_neighbour(link, GUEST, GUEST_MAC)
}

/// An overlay over the smallest template.
fn make_overlay(dir: &Path) -> storage::Disk {
    let template = image("templates", "rootfs.ext4");
    let size_bytes = template.metadata().unwrap().len();
    let base = Layer { path: template, format: LayerFormat::Raw, size_bytes };
    let name = DiskName { tag: "test".parse().unwrap(), sandbox: SandboxId::from_random([7; 18]) };
    Qcow2.create(&Place { path: dir.join("disk"), name }, &[base], size_bytes).unwrap()
}

/// A copy of the smallest template behind a loop device.
fn make_device(dir: &Path) -> LoopDevice {
    let path = dir.join("disk");
    fs::copy(image("templates", "rootfs.ext4"), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    LoopDevice::attach(file.as_fd(), Options { read_only: false, direct_io: false, autoclear: true }).unwrap()
}

fn healthy(limit: Duration) -> io::Result<()> {
    Conversation::begin(limit)?.ask()
}

/// A connection to the guest's envd that stays open. Its other end is in the guest's memory.
pub struct Conversation(BufReader<TcpStream>);

impl Conversation {
    /// In the guest's network namespace.
    pub fn begin(limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&ENVD, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Whether it is well.
    pub fn ask(&mut self) -> io::Result<()> {
        self.0.get_mut().write_all(b"GET /health HTTP/1.1\r\nHost: envd\r\n\r\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let is_well = line.starts_with("HTTP/1.1 204 ");
        while line != "\r\n" {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if is_well { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// A VMM; it is killed and reaped at the end.
pub struct Process {
    pub child: Child,
    console: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    pub fn start(launch: Launch, netns: &NetNs) -> Self {
        let (reader, writer) = io::pipe().unwrap();
        let console = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&console);
        std::thread::spawn(move || drain(reader, &sink));
        let mut spawn = Spawn::new(launch.program).args(launch.args);
        for (fd, number) in &launch.descriptors {
            spawn = spawn.fd(fd.as_fd(), *number);
        }
        if let Some(jail) = launch.jail {
            spawn = spawn.jail(jail_of(jail));
        }
        let child = spawn
            .credentials(Credentials { uid: UID, gid: UID, groups: Vec::new() })
            .drop_capabilities()
            .no_new_privs()
            .netns(netns.as_fd())
            .fd(writer.as_fd(), 1)
            .fd(writer.as_fd(), 2)
            .umask(0o077)
            .start()
            .unwrap();
        Self { child, console }
    }

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.console.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

fn drain(mut reader: PipeReader, sink: &Mutex<Vec<u8>>) {
    let mut chunk = [0; 4096];
    while let Ok(read) = reader.read(&mut chunk)
        && read > 0
    {
        sink.lock().unwrap_or_else(PoisonError::into_inner).extend(&chunk[..read]);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then only the reaping is left.
        self.child.signal(rustix::process::Signal::KILL).ok();
        self.child.wait().ok();
    }
}

fn jail_of(jail: shim::Jail) -> Jail {
    let entry = |entry| match entry {
        shim::JailEntry::Device { path, source } => JailEntry::Device { path, source },
        shim::JailEntry::ReadOnly { path, source } => JailEntry::ReadOnly { path, source },
        shim::JailEntry::Writable { path, source } => JailEntry::Writable { path, source },
    };
    Jail { mount_point: jail.mount_point, entries: jail.entries.into_iter().map(entry).collect() }
}
