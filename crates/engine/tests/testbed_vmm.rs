//! The VMM drivers against the real VMMs on a host with KVM: Firecracker in its jail, QEMU with a block device.
//!
//! Needs root, `/dev/kvm`, loop devices, the images that `cargo xtask test` builds (`WRENN_TEST_IMAGES`), QEMU in PATH, and
//! for Firecracker's tests a release of it (`WRENN_FIRECRACKER`, else `firecracker` in PATH).

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use wrenn_engine::names::SandboxId;
use wrenn_engine::network::GUEST_MAC;
use wrenn_engine::network::addresses::{GATEWAY, GUEST, GUEST_PREFIX, TAP, TAP_MAC};
use wrenn_engine::network::links::Netlink;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::firecracker::api::{
    Action, Balloon, BalloonChange, BalloonStatisticsChange, BootSource, CacheType, Change, DeviceId, Drive,
    DriveChange, Entropy, GetBalloon, GetBalloonStatistics, GetInstance, GetMachineConfig, GetMmds, GetVersion,
    InstanceState, IoEngine, LogLevel, Logger, MachineConfig, MemoryBackend, MemoryBackendType, Metrics, MmdsConfig,
    MmdsVersion, NetworkInterface, NetworkInterfaceChange, NetworkOverride, RateLimiter, SnapshotCreate, SnapshotLoad,
    SnapshotType, TokenBucket, VmState,
};
use wrenn_engine::vmm::firecracker::version::OLDEST;
use wrenn_engine::vmm::firecracker::{Client, Firecracker};
use wrenn_engine::vmm::qemu::Qemu;
use wrenn_engine::vmm::seccomp::{self, Confinement, ThreadFilter};
use wrenn_engine::vmm::{
    Accel, Boot, DiskFile, HostFile, Incident, Launch, Plan, RunState, Tap, VmSpec, Vmm, VmmError,
};
use wrenn_proto::shim;
use wrenn_sys::loopdev::{LoopDevice, Options};
use wrenn_sys::netns::NetNs;
use wrenn_sys::spawn::{Child, Credentials, Jail, JailEntry, Spawn, find_program};
use wrenn_sys::tap;

/// Guest memory.
const MEMORY: Mib = Mib(256);
/// A user who owns nothing else.
const UID: u32 = 0x7000_1234;
/// Where envd listens in the guest.
const ENVD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(GUEST), 49983);
/// A guest of an emulated host on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// The rest of what the guest's init needs to come up.
const INIT_ARGUMENTS: &str = "wrenn.key=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \
                              wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns=169.254.0.22 \
                              wrenn.root=/dev/vda";
const DISK: DeviceId = DeviceId::new("root");
const ETH0: DeviceId = DeviceId::new("eth0");

fn in_path(name: &str) -> Option<PathBuf> {
    find_program(OsStr::new(name), &env::var_os("PATH").unwrap_or_default(), Path::new("/")).ok()
}

/// Whatever version is said here: the driver asks the program itself before it tells it anything.
fn firecracker() -> Firecracker {
    let found = env::var_os("WRENN_FIRECRACKER").map(PathBuf::from).or_else(|| in_path("firecracker"));
    let found = found.expect("no Firecracker: name a release in WRENN_FIRECRACKER, or put `firecracker` into PATH");
    Firecracker::new(found, OLDEST).unwrap()
}

fn qemu() -> Qemu {
    let program = in_path("qemu-system-x86_64").expect("QEMU is not installed");
    Qemu::new(program, "unknown".to_owned(), Accel::Kvm, None)
}

/// The newest file of this name in a folder of `images`.
fn image(folder: &str, name: &str) -> PathBuf {
    let images = env::var_os("WRENN_TEST_IMAGES").expect("WRENN_TEST_IMAGES is not set");
    let entries = fs::read_dir(Path::new(&images).join(folder)).expect("the images are built");
    let files = entries.map(|entry| entry.unwrap().path().join(name)).filter(|path| path.is_file());
    files.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).expect("an image of that name")
}

/// What a sandbox has on the host: network, disk, folder.
struct World {
    netns: NetNs,
    disk: LoopDevice,
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The VMM finds its folder through no path, but the tests' parent folder is closed to its user.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let netns = NetNs::anonymous().expect("this test needs root");
        netns.run(make_tap).unwrap().unwrap();
        Self { netns, disk: make_disk(dir.path()), dir }
    }

    fn run_dir(&self, name: &str) -> PathBuf {
        let run_dir = self.dir.path().join(name);
        fs::create_dir(&run_dir).unwrap();
        run_dir
    }

    fn spec(&self, driver: &dyn Vmm, run_dir: &Path) -> VmSpec {
        let id = SandboxId::from_random([7; 18]);
        VmSpec {
            command_line: format!("{} wrenn.id={id} {INIT_ARGUMENTS}", driver.kernel_arguments()),
            id,
            uid: UID,
            run_dir: run_dir.to_owned(),
            vcpus: 1,
            memory: MEMORY,
            memory_base: self.zero_memory().into(),
            kernel: HostFile::open(&image("kernels", "vmlinux")).unwrap(),
            initramfs: HostFile::open(&image("kernels", "initrd.img")).unwrap(),
            disk: vec![DiskFile::live(&self.disk.path(), false).unwrap()],
            tap: Tap { name: TAP, queue: self.netns.run(|| tap::open(TAP, Some(UID))).unwrap().unwrap() },
            guest_mac: GUEST_MAC.to_string(),
        }
    }

    fn zero_memory(&self) -> File {
        let path = self.dir.path().join("zero");
        File::create(&path).unwrap().set_len(MEMORY.bytes()).unwrap();
        File::open(path).unwrap()
    }

    /// Plans and starts a VMM, as its shim would.
    fn launch(&self, driver: &dyn Vmm, run_dir: &Path) -> (Process, Box<dyn Boot>) {
        let Plan { launch, boot } = driver.plan(self.spec(driver, run_dir)).unwrap();
        (Process::start(launch, &self.netns), boot)
    }

    /// Whether the guest's envd says that it is well.
    fn is_healthy(&self, limit: Duration) -> bool {
        self.netns.run(|| healthy(limit)).unwrap().is_ok()
    }

    fn await_healthy(&self, process: &Process) {
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

/// A copy of the smallest template behind a loop device.
fn make_disk(dir: &Path) -> LoopDevice {
    let path = dir.join("disk");
    fs::copy(image("templates", "rootfs.ext4"), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    LoopDevice::attach(file.as_fd(), Options { read_only: false, direct_io: false, autoclear: true }).unwrap()
}

fn healthy(limit: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&ENVD, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: envd\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    if answer == *b"HTTP/1.1 204" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// A VMM; it is killed and reaped at the end.
struct Process {
    child: Child,
    console: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    fn start(launch: Launch, netns: &NetNs) -> Self {
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

    fn console(&self) -> String {
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

/// From nothing to the end, the same for every driver. Answers which system call filters were in force.
async fn live(driver: &dyn Vmm) -> Vec<ThreadFilter> {
    let world = World::new();
    let run_dir = world.run_dir("a");
    let started = Instant::now();
    let (process, boot) = world.launch(driver, &run_dir);
    let mut machine = boot.boot().await.unwrap_or_else(|error| panic!("{error}; it said: {}", process.console()));
    println!("{}: under control after {} ms", driver.describe().driver, started.elapsed().as_millis());
    world.await_healthy(&process);
    println!("envd answers after {} ms", started.elapsed().as_millis());
    let threads = seccomp::filters(process.child.pid()).unwrap();

    machine.freeze().await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
    assert!(!world.is_healthy(Duration::from_millis(500)), "a frozen guest answers");
    drop(machine);
    // A later agent.
    let mut machine = driver.attach(&run_dir).await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
    machine.thaw().await.unwrap();
    world.await_healthy(&process);

    machine.stop().await.unwrap();
    machine.stop().await.expect("stopping what has ended is fine");
    assert_eq!(machine.incident().await, Incident::Ended);
    assert!(driver.attach(&run_dir).await.is_err());
    threads
}

#[tokio::test]
async fn testbed_a_firecracker_lives_in_its_jail_under_its_filter() {
    let threads = live(&firecracker()).await;
    println!("system call filters in force: {threads:?}");
    assert!(matches!(seccomp::confinement(&threads), Confinement::Filtered { threads: 3.. }), "{threads:?}");
}

#[tokio::test]
async fn testbed_a_qemu_lives_on_a_block_device_with_kvm() {
    let threads = live(&qemu()).await;
    println!("system call filters in force: {threads:?}");
    assert!(matches!(seccomp::confinement(&threads), Confinement::Filtered { .. }), "{threads:?}");
}

/// Firecracker dies by itself while the agent listens for an incident.
#[tokio::test]
async fn testbed_the_end_of_a_vmm_is_an_incident() {
    let world = World::new();
    let (process, boot) = world.launch(&firecracker(), &world.run_dir("a"));
    let mut machine = boot.boot().await.unwrap();
    let quiet = tokio::time::timeout(Duration::from_secs(2), machine.incident()).await;
    assert!(quiet.is_err(), "an idle connection says {quiet:?}");
    assert_eq!(machine.run_state().await.unwrap(), RunState::Running, "it stays open when it is idle");
    process.child.signal(rustix::process::Signal::KILL).unwrap();
    assert_eq!(machine.incident().await, Incident::Ended);
    assert!(matches!(machine.freeze().await.unwrap_err(), VmmError::Gone { command: "pause" }));
}

fn limiter(size: u64) -> Option<RateLimiter> {
    let bucket = |one_time_burst| Some(TokenBucket { size, one_time_burst, refill_time: 100 });
    Some(RateLimiter { bandwidth: bucket(Some(size)), ops: bucket(None) })
}

/// Everything that can be told before the start.
fn before_the_start(spec: &VmSpec) -> Vec<Change> {
    vec![
        Change::Logger(Logger {
            log_path: Some("/run/log".to_owned()),
            level: Some(LogLevel::Warning),
            show_level: Some(true),
            show_log_origin: Some(false),
        }),
        Change::Metrics(Metrics { metrics_path: "/run/metrics".to_owned() }),
        Change::MachineConfig(MachineConfig { vcpu_count: 1, mem_size_mib: 256, smt: false, track_dirty_pages: true }),
        Change::BootSource(BootSource {
            kernel_image_path: "/kernel".to_owned(),
            initrd_path: Some("/initramfs".to_owned()),
            boot_args: Some(spec.command_line.clone()),
        }),
        Change::Drive(Drive {
            drive_id: DISK,
            is_root_device: false,
            cache_type: CacheType::Writeback,
            is_read_only: false,
            path_on_host: "/disk".to_owned(),
            io_engine: IoEngine::Sync,
            rate_limiter: limiter(1 << 30),
        }),
        Change::NetworkInterface(NetworkInterface {
            iface_id: ETH0,
            host_dev_name: TAP.to_owned(),
            guest_mac: Some(spec.guest_mac.clone()),
            rx_rate_limiter: limiter(1 << 30),
            tx_rate_limiter: limiter(1 << 30),
        }),
        Change::MmdsConfig(MmdsConfig {
            version: MmdsVersion::V2,
            network_interfaces: vec![ETH0],
            ipv4_address: Some(Ipv4Addr::new(169, 254, 169, 254)),
        }),
        Change::Balloon(Balloon { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 1 }),
        Change::Entropy(Entropy { rate_limiter: limiter(1 << 20) }),
        Change::MmdsPut(json!({ "a": 1, "b": 2 })),
        Change::MmdsPatch(json!({ "b": null })),
        Change::Action(Action::InstanceStart),
    ]
}

/// Everything that can be told afterwards; the VM is paused in the end.
fn after_the_start() -> Vec<Change> {
    let snapshot = |snapshot_type| {
        Change::SnapshotCreate(SnapshotCreate {
            snapshot_type,
            snapshot_path: "/run/state".to_owned(),
            mem_file_path: "/run/memory".to_owned(),
        })
    };
    vec![
        Change::DriveChange(DriveChange { drive_id: DISK, path_on_host: None, rate_limiter: limiter(1 << 29) }),
        Change::NetworkInterfaceChange(NetworkInterfaceChange {
            iface_id: ETH0,
            rx_rate_limiter: limiter(1 << 29),
            tx_rate_limiter: None,
        }),
        Change::MmdsPatch(json!({ "c": 3 })),
        Change::Action(Action::FlushMetrics),
        Change::Vm(VmState::Paused),
        snapshot(SnapshotType::Full),
        Change::Vm(VmState::Resumed),
        Change::Vm(VmState::Paused),
        snapshot(SnapshotType::Diff),
    ]
}

fn load(backend_type: MemoryBackendType, backend_path: &str) -> Change {
    Change::SnapshotLoad(SnapshotLoad {
        snapshot_path: "/run/state".to_owned(),
        mem_backend: MemoryBackend { backend_type, backend_path: backend_path.to_owned() },
        track_dirty_pages: true,
        resume_vm: false,
        network_overrides: vec![NetworkOverride { iface_id: ETH0, host_dev_name: TAP.to_owned() }],
    })
}

async fn tell(client: &mut Client, changes: &[Change]) {
    for change in changes {
        let told = client.change(change).await;
        told.unwrap_or_else(|error| panic!("{change:?}: {error}"));
    }
}

/// Our types are what the real one reads and answers, call by call.
#[tokio::test]
async fn testbed_every_call_is_understood_by_a_real_firecracker() {
    let (world, driver) = (World::new(), firecracker());
    let run_dir = world.run_dir("a");
    let changes = before_the_start(&world.spec(&driver, &run_dir));
    let (process, _not_this_time) = world.launch(&driver, &run_dir);
    for file in ["log", "metrics"] {
        let path = run_dir.join("vmm").join(file);
        File::create(&path).unwrap();
        std::os::unix::fs::chown(path, Some(UID), Some(UID)).unwrap();
    }
    let mut client = driver.client(&run_dir).await.unwrap();
    let version = client.ask::<GetVersion>().await.unwrap().firecracker_version;
    println!("Firecracker {version}");
    assert_eq!(client.ask::<GetInstance>().await.unwrap().state, InstanceState::NotStarted);
    refuses_the_wrong_order(&mut client).await;
    tell(&mut client, &changes).await;

    let info = client.ask::<GetInstance>().await.unwrap();
    assert_eq!((info.state, info.vmm_version), (InstanceState::Running, version));
    assert!(client.ask::<GetMachineConfig>().await.unwrap().track_dirty_pages);
    assert_eq!(client.ask::<GetBalloon>().await.unwrap().stats_polling_interval_s, 1);
    assert_eq!(client.ask::<GetMmds>().await.unwrap(), json!({ "a": 1 }));
    world.await_healthy(&process);
    uses_the_balloon(&mut client).await;
    tell(&mut client, &after_the_start()).await;
    assert_eq!(client.ask::<GetInstance>().await.unwrap().state, InstanceState::Paused);
    drop(process);
    assert!(fs::metadata(run_dir.join("vmm/metrics")).unwrap().len() > 0);

    goes_on_elsewhere(&world, &driver, &run_dir).await;
}

async fn refuses_the_wrong_order(client: &mut Client) {
    for change in [Change::Vm(VmState::Paused), Change::Action(Action::InstanceStart)] {
        let error = client.change(&change).await.unwrap_err();
        println!("{change:?}: {error}");
        assert!(matches!(&error, VmmError::Refused { status: Some(400), detail, .. } if !detail.is_empty()), "{error}");
    }
}

/// Our guest has no driver for it, so the requests are understood and then refused.
async fn uses_the_balloon(client: &mut Client) {
    let changes = [
        Change::BalloonChange(BalloonChange { amount_mib: 1 }),
        Change::BalloonStatisticsChange(BalloonStatisticsChange { stats_polling_interval_s: 2 }),
    ];
    let mut errors = vec![client.ask::<GetBalloonStatistics>().await.map(drop)];
    for change in &changes {
        errors.push(client.change(change).await);
    }
    for error in errors.into_iter().filter_map(Result::err) {
        println!("balloon: {error}");
        let VmmError::Refused { status: Some(400), detail, .. } = error else { panic!("{error}") };
        assert!(detail.contains("not activated"), "{detail}");
    }
}

/// The snapshot of one jail is loaded in another one: the paths are the same.
async fn goes_on_elsewhere(world: &World, driver: &Firecracker, from: &Path) {
    let run_dir = world.run_dir("b");
    let (process, _not_this_time) = world.launch(driver, &run_dir);
    for file in ["state", "memory"] {
        fs::rename(from.join("vmm").join(file), run_dir.join("vmm").join(file)).unwrap();
    }
    let mut client = driver.client(&run_dir).await.unwrap();
    tell(&mut client, &[load(MemoryBackendType::File, "/run/memory")]).await;
    assert_eq!(client.ask::<GetInstance>().await.unwrap().state, InstanceState::Paused);
    tell(&mut client, &[Change::Vm(VmState::Resumed)]).await;
    world.await_healthy(&process);
    tell(&mut client, &[Change::Action(Action::SendCtrlAltDel)]).await;
    drop(process);

    let run_dir_of_uffd = world.run_dir("c");
    let (_process, _not_this_time) = world.launch(driver, &run_dir_of_uffd);
    fs::rename(run_dir.join("vmm/state"), run_dir_of_uffd.join("vmm/state")).unwrap();
    let mut client = driver.client(&run_dir_of_uffd).await.unwrap();
    // Nobody serves page faults there: it gets as far as looking for the socket.
    let error = client.change(&load(MemoryBackendType::Uffd, "/run/nobody")).await.unwrap_err();
    println!("page faults: {error}");
    assert!(matches!(&error, VmmError::Refused { status: Some(400), .. }), "{error}");
}

#[tokio::test]
async fn testbed_a_firecracker_that_cannot_start_its_vm_says_why() {
    let (world, driver) = (World::new(), firecracker());
    let run_dir = world.run_dir("a");
    let kernel = HostFile::open(Path::new("/etc/passwd")).unwrap();
    let Plan { launch, boot } = driver.plan(VmSpec { kernel, ..world.spec(&driver, &run_dir) }).unwrap();
    let _process = Process::start(launch, &world.netns);
    let error = boot.boot().await.map(|_| ()).unwrap_err();
    println!("{error}");
    assert!(matches!(&error, VmmError::Refused { command: "start", status: Some(400), .. }), "{error}");
}
