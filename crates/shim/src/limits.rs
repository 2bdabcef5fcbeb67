//! Every limit of the shim, with its unit and its reason.

use std::time::Duration;

use wrenn_proto::shim::FRAME_MAX;
use wrenn_proto::shim::pages::PAGE_BYTES;

/// Clients at once: an agent, its successor during an upgrade, and people who look.
pub const CLIENTS_MAX: usize = 16;

/// Requests of one client that are answered only when the VMM has ended.
pub const PENDING_MAX: usize = 16;

/// Bytes of answers that wait for one client, beyond which its requests are not read any more.
pub const ANSWERS_HIGH_BYTES: usize = FRAME_MAX;

/// How long a client may leave its answers unread, or a frame incomplete, before it is dropped.
pub const CLIENT_STALL: Duration = Duration::from_secs(5);

/// Bytes read from a socket at once. Requests have less than 100.
pub const CLIENT_READ_BYTES: usize = 4096;

/// Bytes read from the console or stderr at once: what a pipe holds.
pub const PIPE_READ_BYTES: usize = 64 * 1024;

/// How long a pipe that was read empty is left alone. A serial console comes byte by byte; this makes it at most a
/// hundred wake-ups a second.
pub const PIPE_REST: Duration = Duration::from_millis(10);

/// Least bytes the throttle lets through at once, so that a throttled console does not wake us for a byte.
pub const THROTTLE_QUANTUM_BYTES: u64 = 4096;

/// How fast the VMM's stderr is drained, bytes per second; a guest may be able to make its VMM complain.
pub const VMM_LOG_BYTES_PER_SECOND: u32 = 64 * 1024;

/// Most that is read from a pipe after the VMM has ended: a full pipe, and what other holders of its end may add to it.
pub const LAST_WORDS_BYTES: usize = 4 * PIPE_READ_BYTES;

/// Between SIGTERM and SIGKILL to the VMM when the shim itself got SIGTERM.
pub const TERMINATION_GRACE: Duration = Duration::from_secs(2);

/// How long a shim that leaves waits for its clients to take their last answers.
pub const FAREWELL: Duration = Duration::from_secs(1);

/// Pages that a fault has served at once where there is data: 64 KiB, aligned to that. What a guest wants next is often
/// near, and what it does not want takes memory of its own all the same.
pub const FAULT_BLOCK_PAGES: u32 = 16;

/// The same where all is zero: 2 MiB. Such pages take no memory before they are written.
pub const ZERO_BLOCK_PAGES: u32 = 512;

/// Most pages that are read at once: 256 KiB, the pager's only large buffer.
pub const PAGER_BUFFER_PAGES: u32 = 64;

/// Pages that are served ahead before the loop looks whether something else is wanted: 1 MiB, about a millisecond.
pub const PREFETCH_PAGES: u32 = 256;

/// Pages that the host is told to read before they are served ahead: 8 MiB, so that a disk always has something to do.
pub const READ_AHEAD_PAGES: u32 = 2048;

/// How often the pager looks for new faults before the loop goes on.
pub const FAULT_ROUNDS: usize = 8;

/// How long the pager waits for a thread that gives memory back, and has been heard, to go on.
pub const PAGER_RETRY: Duration = Duration::from_millis(1);

/// How long it is recorded which pages are wanted, from the first on: a guest on a slow host has answered by then.
pub const RECORD_FOR: Duration = Duration::from_secs(10);

/// The share of memory that is recorded at most: one in so many pages, of those that are read from files. More is not needed
/// to go on, and would be all of it in the end.
pub const RECORD_SHARE: u32 = 5;

/// Regions that guest memory lies in: two with a gap for devices, and some.
pub const REGIONS_MAX: usize = 16;

/// Longest list of them that a VMM sends, in bytes; each takes about 150.
pub const GREETING_BYTES: usize = 8 * 1024;

const _: () = assert!(FAULT_BLOCK_PAGES <= PAGER_BUFFER_PAGES, "a block is read at once");
const _: () = assert!(PAGER_BUFFER_PAGES as u64 * PAGE_BYTES == 256 * 1024);
