//! Every limit of the host side in one place, with its unit and its reason.
//!
//! Limits of the guest side are in `crates/guest/src/limits.rs`; the two meet only on the wire.

use std::time::Duration;

use crate::units::Mib;

/// Virtual CPUs of one sandbox. QEMU's microvm machine and Firecracker both stop at 32.
pub const VCPUS_MAX: u32 = 32;

/// Least memory of a sandbox: the kernel, its initramfs and envd need about 60 MiB to come up.
pub const MEMORY_MIN: Mib = Mib(128);

/// Longest file whose checksums are kept, in bytes: a VM's memory, or the largest disk with its tables. Page numbers then fit
/// 32 bits with room for a flag.
pub const MEMORY_BYTES_MAX: u64 = 1 << 42;

/// Longest `/proc/PID/maps` that is read, in bytes: the kernel's default limit of 65 530 mappings at 128 bytes each.
pub const PROCESS_MAPS_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What a capture holds back from being written until the VM may go on, in bytes: twice what a pause soon after a resume
/// changes. What is more is written while the VM stands still, so that many captures at once do not fill the host's memory.
pub const CAPTURE_HELD_BYTES_MAX: usize = 32 << 20;

/// Files of memory whose check is remembered in a process: one for each VM that runs, and some.
pub const MEMORY_VERIFIED_MAX: usize = 4096;

/// Largest disk of a sandbox.
pub const DISK_MAX: Mib = Mib(1024 * 1024);

/// Slots (networks, and so sandboxes) of one host: as many as 10.12.0.0/17 has /31 pairs.
pub const SLOTS_MAX: u16 = 16_384;

/// Networks of one process that are made or removed at once. The kernel does these one after the other anyway.
pub const NETWORK_CHANGES_AT_ONCE: usize = 8;

/// Longest network interface name the kernel takes (IFNAMSIZ less the NUL).
pub const INTERFACE_NAME_MAX: usize = 15;

/// Longest Unix socket path the kernel takes (sun_path less the NUL).
pub const SOCKET_PATH_MAX: usize = 107;

/// What is kept of a sandbox's serial console, in bytes.
pub const CONSOLE_RING_BYTES: u64 = 256 * 1024;

/// How fast a serial console is drained in the long run: a guest that floods it waits, and costs the host little.
pub const CONSOLE_BYTES_PER_SECOND: u32 = 1024 * 1024;

/// How much a serial console may print at once after a quiet time, in bytes: a kernel's whole boot log.
pub const CONSOLE_BURST_BYTES: u32 = 256 * 1024;

/// The user and group of slot 0's VMM; slot n has the n-th after it. Above what users, containers and systemd take.
pub const VMM_UID_BASE: u32 = 0x7000_0000;

/// The user and group of the server of the first of all instance tags; each tag has its own after it, 36^4 of them.
pub const SERVER_UID_BASE: u32 = 0x7100_0000;

const _: () = assert!(VMM_UID_BASE + (SLOTS_MAX as u32) < SERVER_UID_BASE, "no VMM runs as a server");
const _: () =
    assert!(SERVER_UID_BASE + 36 * 36 * 36 * 36 < i32::MAX as u32, "some programs take a user for a signed number");

/// What a sandbox commonly has; for saying how many of them fit into a host's memory.
pub const SANDBOX_MEMORY_TYPICAL: Mib = Mib(256);

/// Free disk space below which no sandbox is started: its disk would fill up under it.
pub const DISK_FREE_LEAST: Mib = Mib(512);

/// Free disk space that lets templates be built and sandboxes write: two Debian images and some room.
pub const DISK_FREE_WANTED: Mib = Mib(4096);

/// Layers that one disk may stand on: each is a device and a look-up of its own on the way of every read.
pub const DISK_LAYERS_MAX: usize = 16;

/// Layers above which a new live disk copies the topmost instead of standing on it, so that a chain does not grow for ever.
pub const DISK_LAYERS_STACKED_MAX: usize = 12;
const _: () = assert!(DISK_LAYERS_STACKED_MAX < DISK_LAYERS_MAX);

/// Layers between template and disk that a snapshot keeps as they are; more of them are made one while it is taken. Each is looked
/// through on the way of a read, and all are read once to be made one.
pub const DISK_LAYERS_KEPT_MAX: usize = 3;
const _: () = assert!(DISK_LAYERS_KEPT_MAX < DISK_LAYERS_STACKED_MAX);

/// What a captured disk may take for a new live disk to copy it: up to here a copy costs less than a layer more on every read.
pub const DISK_COPY_MAX: Mib = Mib(32);

/// Forks that may be asked for at once: as many as there are seats in no host we know.
pub const FORKS_MAX: u32 = 1024;

/// Changes of sandboxes that wait for one who watches them, before that one has to begin anew: a few for each sandbox of a large
/// host, all of which are paused at once. One that waits takes as much as what is shown of a sandbox.
pub const CHANGES_WAITING_MAX: usize = 8192;

/// Snapshots that one instance keeps: each is looked at when they are listed.
pub const SNAPSHOTS_MAX: usize = 4096;

/// Warm images that one instance keeps, of all templates and sizes: each takes what a guest has written when it has booted.
pub const WARM_IMAGES_MAX: usize = 16;

/// Tries to remove a device that is in use. A VMM that was just ended, or udev, lets go of it within a moment.
pub const DEVICE_REMOVAL_TRIES: u32 = 5;

/// The pause between two of them.
pub const DEVICE_REMOVAL_PAUSE: Duration = Duration::from_millis(200);

/// How long somebody else may be at attaching the same image: a few system calls, on a host that is overloaded.
pub const IMAGE_LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Free space under the sandboxes' disks below which their CPUs stand still. A disk that finds no room loses all that it
/// holds. This is what a host writes until the next look; what waits in its page cache is counted as written.
pub const SPACE_RESERVE: Mib = Mib(512);

/// Free space at which they go on. Apart from the reserve, or they would stop and go with every block.
pub const SPACE_AMPLE: Mib = Mib(768);

/// The reserve of even the smallest file system: a sandbox's own files take less.
pub const SPACE_RESERVE_LEAST: Mib = Mib(1);

/// How long a sandbox stands still for want of space before it is given up: enough for a person who sees the warning to
/// remove something, and not for ever, because whoever waits for its command learns nothing meanwhile.
pub const SPACE_WAIT: Duration = Duration::from_secs(30);

/// How often the free space is looked at (one system call): at 1 GiB/s a quarter of the reserve is written in between.
pub const SPACE_LOOK_EVERY: Duration = Duration::from_millis(125);

const _: () = assert!(MEMORY_BYTES_MAX >= 2 * ((DISK_MAX.0 as u64) << 20), "or the largest disk cannot be kept");
const _: () = assert!(SPACE_AMPLE.0 > SPACE_RESERVE.0, "or there is no hysteresis");
const _: () = assert!(DISK_FREE_LEAST.0 >= SPACE_RESERVE.0, "or a sandbox is started only to stand still");

/// What of a host's memory no sandbox may have, in percent: for the host itself, its page cache and the agents.
pub const HOST_MEMORY_RESERVE_PERCENT: u32 = 10;

/// And the least of it, on small hosts.
pub const HOST_MEMORY_RESERVE_LEAST: Mib = Mib(256);

/// Memory that a VMM commonly takes beyond its guest's, for telling how many fit into a host: between Firecracker's 5 MiB and
/// QEMU's 100.
pub const VMM_MEMORY_TYPICAL: Mib = Mib(48);

/// Memory a sandbox may take beyond its guest's: the VMM itself (5 MiB for Firecracker, 100 for QEMU), the page tables of
/// the guest's memory, kernel buffers. Cached parts of files count too, but give way.
pub const VMM_MEMORY_OVERHEAD: Mib = Mib(160);

/// Memory that QEMU may keep translated code in when there is no hardware virtualization; more than its default.
pub const VMM_TRANSLATION_MEMORY: Mib = Mib(1024);

/// CPU time a VMM may take beside its vCPUs, in microseconds per 100 ms: half a CPU for disk, network and console.
pub const VMM_CPU_OVERHEAD_US: u64 = 50_000;

/// Threads a VMM may have: its vCPUs, its I/O workers (64 at most), its main loop, and what KVM starts in its name.
pub const VMM_THREADS_MAX: u32 = 64 + 32 + VCPUS_MAX;

const _: () = assert!(SLOTS_MAX as u32 <= (1 << 15) / 2, "each slot takes two addresses of a /17");
