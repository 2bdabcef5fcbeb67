use serde_json::json;

use super::*;

const DISK: DeviceId = DeviceId::new("root");
const ETH0: DeviceId = DeviceId::new("eth0");

fn limiter() -> RateLimiter {
    RateLimiter {
        bandwidth: Some(TokenBucket { size: 1 << 20, one_time_burst: Some(1 << 21), refill_time: 100 }),
        ops: Some(TokenBucket { size: 1000, one_time_burst: None, refill_time: 1000 }),
    }
}

fn limiter_json() -> Value {
    json!({
        "bandwidth": { "size": 1_048_576, "one_time_burst": 2_097_152, "refill_time": 100 },
        "ops": { "size": 1000, "refill_time": 1000 },
    })
}

fn drive(rate_limiter: Option<RateLimiter>) -> Change {
    Change::Drive(Drive {
        drive_id: DISK,
        is_root_device: false,
        cache_type: CacheType::Writeback,
        is_read_only: false,
        path_on_host: "/disk".to_owned(),
        io_engine: IoEngine::Sync,
        rate_limiter,
    })
}

fn snapshot_load(backend_type: MemoryBackendType, network_overrides: Vec<NetworkOverride>) -> Change {
    Change::SnapshotLoad(SnapshotLoad {
        snapshot_path: "/run/state".to_owned(),
        mem_backend: MemoryBackend { backend_type, backend_path: "/run/memory".to_owned() },
        track_dirty_pages: true,
        resume_vm: false,
        network_overrides,
    })
}

/// Each change beside the request that Firecracker reads.
fn table() -> Vec<(Change, &'static str, Value)> {
    let boot = |initrd_path: Option<&str>, boot_args: Option<&str>| {
        Change::BootSource(BootSource {
            kernel_image_path: "/kernel".to_owned(),
            initrd_path: initrd_path.map(str::to_owned),
            boot_args: boot_args.map(str::to_owned),
        })
    };
    let interface = |rx_rate_limiter, tx_rate_limiter| {
        Change::NetworkInterface(NetworkInterface {
            iface_id: ETH0,
            host_dev_name: "tap0".to_owned(),
            guest_mac: Some("02:fc:00:00:00:05".to_owned()),
            rx_rate_limiter,
            tx_rate_limiter,
        })
    };
    vec![
        (
            boot(Some("/initramfs"), Some("quiet")),
            "PUT /boot-source",
            json!({ "kernel_image_path": "/kernel", "initrd_path": "/initramfs", "boot_args": "quiet" }),
        ),
        (boot(None, None), "PUT /boot-source", json!({ "kernel_image_path": "/kernel" })),
        (
            drive(None),
            "PUT /drives/root",
            json!({
                "drive_id": "root", "is_root_device": false, "cache_type": "Writeback", "is_read_only": false,
                "path_on_host": "/disk", "io_engine": "Sync",
            }),
        ),
        (
            drive(Some(limiter())),
            "PUT /drives/root",
            json!({
                "drive_id": "root", "is_root_device": false, "cache_type": "Writeback", "is_read_only": false,
                "path_on_host": "/disk", "io_engine": "Sync", "rate_limiter": limiter_json(),
            }),
        ),
        (
            Change::DriveChange(DriveChange {
                drive_id: DISK,
                path_on_host: Some("/disk".to_owned()),
                rate_limiter: None,
            }),
            "PATCH /drives/root",
            json!({ "drive_id": "root", "path_on_host": "/disk" }),
        ),
        (
            interface(None, Some(limiter())),
            "PUT /network-interfaces/eth0",
            json!({
                "iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "02:fc:00:00:00:05",
                "tx_rate_limiter": limiter_json(),
            }),
        ),
        (
            Change::NetworkInterfaceChange(NetworkInterfaceChange {
                iface_id: ETH0,
                rx_rate_limiter: Some(limiter()),
                tx_rate_limiter: None,
            }),
            "PATCH /network-interfaces/eth0",
            json!({ "iface_id": "eth0", "rx_rate_limiter": limiter_json() }),
        ),
        (
            Change::MachineConfig(MachineConfig {
                vcpu_count: 2,
                mem_size_mib: 256,
                smt: false,
                track_dirty_pages: true,
            }),
            "PUT /machine-config",
            json!({ "vcpu_count": 2, "mem_size_mib": 256, "smt": false, "track_dirty_pages": true }),
        ),
        (Change::Entropy(Entropy::default()), "PUT /entropy", json!({})),
        (
            Change::Balloon(Balloon { amount_mib: 8, deflate_on_oom: true, stats_polling_interval_s: 1 }),
            "PUT /balloon",
            json!({ "amount_mib": 8, "deflate_on_oom": true, "stats_polling_interval_s": 1 }),
        ),
        (Change::BalloonChange(BalloonChange { amount_mib: 16 }), "PATCH /balloon", json!({ "amount_mib": 16 })),
        (
            Change::BalloonStatisticsChange(BalloonStatisticsChange { stats_polling_interval_s: 5 }),
            "PATCH /balloon/statistics",
            json!({ "stats_polling_interval_s": 5 }),
        ),
        (
            Change::MmdsConfig(MmdsConfig {
                version: MmdsVersion::V2,
                network_interfaces: vec![ETH0],
                ipv4_address: Some(Ipv4Addr::new(169, 254, 169, 254)),
            }),
            "PUT /mmds/config",
            json!({ "version": "V2", "network_interfaces": ["eth0"], "ipv4_address": "169.254.169.254" }),
        ),
        (Change::MmdsPut(json!({ "a": 1 })), "PUT /mmds", json!({ "a": 1 })),
        (Change::MmdsPatch(json!({ "a": null })), "PATCH /mmds", json!({ "a": null })),
        (Change::Vm(VmState::Paused), "PATCH /vm", json!({ "state": "Paused" })),
        (Change::Vm(VmState::Resumed), "PATCH /vm", json!({ "state": "Resumed" })),
        (Change::Action(Action::InstanceStart), "PUT /actions", json!({ "action_type": "InstanceStart" })),
        (Change::Action(Action::FlushMetrics), "PUT /actions", json!({ "action_type": "FlushMetrics" })),
        (Change::Action(Action::SendCtrlAltDel), "PUT /actions", json!({ "action_type": "SendCtrlAltDel" })),
        (
            Change::SnapshotCreate(SnapshotCreate {
                snapshot_type: SnapshotType::Diff,
                snapshot_path: "/run/state".to_owned(),
                mem_file_path: "/run/memory".to_owned(),
            }),
            "PUT /snapshot/create",
            json!({ "snapshot_type": "Diff", "snapshot_path": "/run/state", "mem_file_path": "/run/memory" }),
        ),
        (
            snapshot_load(MemoryBackendType::File, Vec::new()),
            "PUT /snapshot/load",
            json!({
                "snapshot_path": "/run/state", "track_dirty_pages": true, "resume_vm": false,
                "mem_backend": { "backend_type": "File", "backend_path": "/run/memory" },
            }),
        ),
        (
            snapshot_load(
                MemoryBackendType::Uffd,
                vec![NetworkOverride { iface_id: ETH0, host_dev_name: "tap1".to_owned() }],
            ),
            "PUT /snapshot/load",
            json!({
                "snapshot_path": "/run/state", "track_dirty_pages": true, "resume_vm": false,
                "mem_backend": { "backend_type": "Uffd", "backend_path": "/run/memory" },
                "network_overrides": [{ "iface_id": "eth0", "host_dev_name": "tap1" }],
            }),
        ),
        (
            Change::Metrics(Metrics { metrics_path: "/run/metrics".to_owned() }),
            "PUT /metrics",
            json!({ "metrics_path": "/run/metrics" }),
        ),
        (
            Change::Logger(Logger {
                log_path: Some("/run/log".to_owned()),
                level: Some(LogLevel::Warning),
                show_level: Some(true),
                show_log_origin: None,
            }),
            "PUT /logger",
            json!({ "log_path": "/run/log", "level": "Warning", "show_level": true }),
        ),
    ]
}

#[test]
fn every_change_is_exactly_the_request_that_firecracker_reads() {
    for (change, line, body) in table() {
        let (method, path, sent) = change.request();
        assert_eq!(format!("{} {path}", method.as_str()), line);
        assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap(), body, "{line}");
    }
}

#[test]
fn answers_are_read_with_more_fields_than_we_know() {
    fn read<Q: Query>(answer: Value) -> Q::Answer {
        serde_json::from_value(answer).unwrap()
    }
    let info = read::<GetInstance>(json!({
        "app_name": "Firecracker", "id": "sb1", "state": "Not started", "vmm_version": "1.16.1", "new": {},
    }));
    assert_eq!((info.state, info.vmm_version.as_str()), (InstanceState::NotStarted, "1.16.1"));
    assert_eq!(read::<GetVersion>(json!({ "firecracker_version": "1.16.1" })).firecracker_version, "1.16.1");
    let machine = read::<GetMachineConfig>(json!({ "vcpu_count": 1, "mem_size_mib": 128, "huge_pages": "None" }));
    assert_eq!((machine.vcpu_count, machine.mem_size_mib, machine.track_dirty_pages), (1, 128, false));
    let balloon = read::<GetBalloon>(json!({ "amount_mib": 8, "deflate_on_oom": true, "free_page_hinting": false }));
    assert_eq!(balloon, Balloon { amount_mib: 8, deflate_on_oom: true, stats_polling_interval_s: 0 });
    let statistics = read::<GetBalloonStatistics>(
        json!({ "target_pages": 2048, "actual_pages": 1, "target_mib": 8, "actual_mib": 0, "free_memory": 5, "x": 1 }),
    );
    assert_eq!((statistics.free_memory, statistics.total_memory), (Some(5), None));
}
