//! The serial console and stderr: kept, bounded, throttled.

use std::time::{Duration, Instant};

use wrenn_proto::shim::ring::{HEADER_BYTES, read_tail};
use wrenn_proto::shim::{CONSOLE_TAIL_MAX, End, Ready, VMM_LOG_BYTES, VmmStatus};

use crate::harness::{PATIENCE, Plan, until};

/// What `seq 1 N` prints.
fn seq(last: u32) -> String {
    (1..=last).map(|n| format!("{n}\n")).collect()
}

#[test]
fn ten_megabytes_leave_their_end_in_a_file_that_never_outgrows_its_size() {
    let expected = seq(1_400_000);
    assert!(expected.len() > 10_000_000);
    let shim = Plan::program("/usr/bin/seq", &["1", "1400000"]).start();
    let mut client = shim.client();
    let most = shim.spec.console.bytes;
    until("the VMM ends", || {
        assert!(std::fs::metadata(&shim.spec.console.path).unwrap().len() <= most);
        matches!(client.status().unwrap().vmm, VmmStatus::Ended(_))
    });
    assert_eq!(client.status().unwrap().console_bytes, expected.len() as u64);
    assert_eq!(std::fs::metadata(&shim.spec.console.path).unwrap().len(), most);

    let tail = read_tail(&shim.spec.console.path, u64::MAX).unwrap();
    assert_eq!(tail.data.len() as u64, most - HEADER_BYTES);
    assert_eq!(&tail.data, &expected.as_bytes()[tail.offset as usize..]);
    let tail = client.console_tail(u32::MAX).unwrap();
    assert_eq!(tail.data.len(), CONSOLE_TAIL_MAX as usize);
    assert_eq!(&tail.data, &expected.as_bytes()[tail.offset as usize..]);
    assert_eq!(client.console_tail(8).unwrap().data, b"1400000\n");
}

#[test]
fn bytes_are_kept_as_they_are() {
    let shim = Plan::script(r"printf 'a\0\377\033[31m\r\nz'").start();
    shim.wait();
    assert_eq!(shim.client().console_tail(100).unwrap().data, b"a\0\xff\x1b[31m\r\nz");
}

#[test]
fn the_last_words_are_there_when_the_end_is_told() {
    for _ in 0..20 {
        let shim = Plan::script("echo out; echo err >&2").start();
        let mut client = shim.client();
        client.wait(Some(PATIENCE)).unwrap();
        assert_eq!(client.console_tail(100).unwrap().data, b"out\n");
        assert_eq!(client.vmm_log().unwrap().data, b"err\n");
    }
}

#[test]
fn a_flooding_console_blocks_itself_and_costs_the_shim_nothing() {
    const RATE: u32 = 200_000;
    const BURST: u32 = 100_000;
    let mut plan = Plan::program("/usr/bin/yes", &["a flood of the serial console"]);
    plan.spec.console.bytes_per_second = RATE;
    plan.spec.console.burst_bytes = BURST;
    let before = Instant::now();
    let shim = plan.start();
    let mut client = shim.client();
    until("the flood is throttled", || client.status().unwrap().console_bytes > u64::from(BURST + RATE));
    let ticks_before = shim.cpu_ticks();
    let (from, started) = (client.status().unwrap().console_bytes, Instant::now());
    // Time has to pass for CPU time to be compared with it.
    std::thread::sleep(Duration::from_secs(2));
    let ticks = shim.cpu_ticks() - ticks_before;
    let status = client.status().unwrap();
    let allowed = f64::from(BURST) + f64::from(RATE) * before.elapsed().as_secs_f64();
    assert!((status.console_bytes as f64) <= allowed, "{} of {allowed}", status.console_bytes);
    assert!(status.console_bytes > from, "it is slowed, not stopped ({:?})", started.elapsed());
    assert!(status.console_throttled > 0);
    assert!(ticks <= 20, "{ticks} ticks of 10 ms in two seconds");
}

#[test]
fn a_byte_at_a_time_does_not_wake_the_shim_for_each() {
    let started = Instant::now();
    let shim = Plan::program("/bin/dd", &["if=/dev/zero", "bs=1", "count=200000", "status=none"]).start();
    let mut client = shim.client();
    client.wait(Some(PATIENCE)).unwrap();
    assert_eq!(client.status().unwrap().console_bytes, 200_000);
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.child.pid())).unwrap();
    let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    let switches: u128 = switches.trim().parse().unwrap();
    // Once in ten milliseconds for the bytes, and some for the start, the client and the end.
    let allowed = 50 + started.elapsed().as_millis() / 5;
    assert!(switches <= allowed, "{switches} wake-ups, {allowed} allowed");
}

#[test]
fn a_vmm_that_closes_its_console_does_not_make_the_shim_spin() {
    let shim = Plan::script("exec >&- 2>&-; exec sleep 600").start();
    until("both ends are closed", || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", shim.vmm_pid())).unwrap();
        !fds.flatten().any(|fd| fd.file_name() == "1" || fd.file_name() == "2")
    });
    let before = shim.cpu_ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(shim.cpu_ticks() - before <= 5);
    assert!(matches!(shim.client().status().unwrap().vmm, VmmStatus::Running { .. }));
}

#[test]
fn stderr_is_kept_to_its_last_bytes() {
    let shim = Plan::script("seq 1 9000 >&2").start();
    let mut client = shim.client();
    client.wait(Some(PATIENCE)).unwrap();
    let expected = seq(9000);
    let tail = client.vmm_log().unwrap();
    assert_eq!(tail.data.len(), VMM_LOG_BYTES);
    assert_eq!(&tail.data, &expected.as_bytes()[tail.offset as usize..]);
    assert_eq!(client.status().unwrap().vmm_log_bytes, expected.len() as u64);
}

#[test]
fn a_ring_that_cannot_be_made_stops_the_start() {
    let mut plan = Plan::script("echo must not run");
    plan.spec.console.path = "/proc/self/no-such-ring".into();
    let shim = plan.launch(&[]);
    assert!(
        matches!(&shim.ready, Some(Ready::Failed { message }) if message.contains("no-such-ring")),
        "{:?}",
        shim.ready
    );
    assert!(!shim.spec.socket.exists());
}

/// A file system of 16 KiB; unmounted when dropped.
struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", folder.path(), "tmpfs", flags, c"size=16k").unwrap();
        Self(folder)
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn root_a_full_disk_does_not_stop_the_vmm() {
    assert!(rustix::process::getuid().is_root(), "this test mounts a small file system: run it as root");
    let disk = TinyDisk::mount();
    let mut plan = Plan::script("seq 1 20000; exit 6");
    plan.spec.console.path = disk.0.path().join("console");
    let mut shim = plan.start();
    assert_eq!(shim.wait().end, End::Exited { code: 6 });
    let mut client = shim.client();
    assert_eq!(client.status().unwrap().console_bytes, seq(20_000).len() as u64, "counted, if not kept");
    client.console_tail(100).unwrap();
    client.shutdown(false, PATIENCE).unwrap();
    shim.ended();
    assert!(shim.errors().contains("console ring"));
}
