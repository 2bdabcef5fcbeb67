//! Every limit of the shim, with its unit and its reason.

use std::time::Duration;

use wrenn_proto::shim::FRAME_MAX;

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
