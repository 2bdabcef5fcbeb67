//! Every limit of the host side in one place, with its unit and its reason.
//!
//! Limits of the guest side are in `crates/guest/src/limits.rs`; the two meet only on the wire.

use crate::units::Mib;

/// Virtual CPUs of one sandbox. QEMU's microvm machine and Firecracker both stop at 32.
pub const VCPUS_MAX: u32 = 32;

/// Least memory of a sandbox: the kernel, its initramfs and envd need about 60 MiB to come up.
pub const MEMORY_MIN: Mib = Mib(128);

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

/// What a sandbox commonly has; for saying how many of them fit into a host's memory.
pub const SANDBOX_MEMORY_TYPICAL: Mib = Mib(256);

/// Free disk space below which no sandbox is started: its disk would fill up under it.
pub const DISK_FREE_LEAST: Mib = Mib(512);

/// Free disk space that lets templates be built and sandboxes write: two Debian images and some room.
pub const DISK_FREE_WANTED: Mib = Mib(4096);

const _: () = assert!(SLOTS_MAX as u32 <= (1 << 15) / 2, "each slot takes two addresses of a /17");
