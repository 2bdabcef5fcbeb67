//! The drivers against the real VMMs on a host with KVM: Firecracker in its jail, QEMU with a block device.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use wrenn_engine::network::addresses::TAP;
use wrenn_engine::vmm::firecracker::api::{
    Action, Balloon, BalloonChange, BalloonStatisticsChange, BootSource, CacheType, Change, DeviceId, Drive,
    DriveChange, Entropy, GetBalloon, GetBalloonStatistics, GetInstance, GetMachineConfig, GetMmds, GetVersion,
    InstanceState, IoEngine, LogLevel, Logger, MachineConfig, MemoryBackend, MemoryBackendType, Metrics, MmdsConfig,
    MmdsVersion, NetworkInterface, NetworkInterfaceChange, NetworkOverride, RateLimiter, SnapshotCreate, SnapshotLoad,
    SnapshotType, TokenBucket, VmState,
};
use wrenn_engine::vmm::firecracker::{Client, Firecracker};
use wrenn_engine::vmm::seccomp::{self, Confinement, ThreadFilter};
use wrenn_engine::vmm::{Accel, HostFile, Incident, Plan, RunState, VmSpec, Vmm, VmmError};

use crate::world::{Process, UID, World, firecracker, qemu};

const DISK: DeviceId = DeviceId::new("root");
const ETH0: DeviceId = DeviceId::new("eth0");

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
    let mut machine = driver.attach(world.folders(&run_dir)).await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
    machine.thaw().await.unwrap();
    world.await_healthy(&process);

    machine.stop().await.unwrap();
    machine.stop().await.expect("stopping what has ended is fine");
    assert_eq!(machine.incident().await, Incident::Ended);
    assert!(driver.attach(world.folders(&run_dir)).await.is_err());
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
    let threads = live(&qemu(Accel::Kvm)).await;
    println!("system call filters in force: {threads:?}");
    assert!(matches!(seccomp::confinement(&threads), Confinement::Filtered { .. }), "{threads:?}");
}

/// Firecracker dies by itself while the agent listens for an incident.
#[tokio::test]
async fn testbed_the_end_of_a_firecracker_is_an_incident() {
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
