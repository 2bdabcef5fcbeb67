//! Every limit of the way to guests' ports, with its unit and its reason. Both ends are strangers: whoever knows a name may
//! ask, and whatever runs in a guest may answer.

use std::time::Duration;

/// Requests at once, in all. Each has a connection to a guest, and the agent keeps 1024 of them for everybody.
pub const REQUESTS_MAX: usize = 512;
/// Requests at once to one sandbox: one that answers slowly must not keep the others' clients out.
pub const REQUESTS_PER_SANDBOX_MAX: usize = 128;

/// Upgraded connections (WebSockets) at once, in all: they last, so they have places of their own.
pub const UPGRADES_MAX: usize = 256;
/// Upgraded connections at once to one sandbox.
pub const UPGRADES_PER_SANDBOX_MAX: usize = 64;

/// Connections that wait for their next request, in all.
pub const IDLE_MAX: usize = 128;
/// Connections that wait, to one port of one sandbox.
pub const IDLE_PER_TARGET_MAX: usize = 8;

const _: () = assert!(REQUESTS_MAX + UPGRADES_MAX + IDLE_MAX <= 1024 - 128, "the API's own calls find tunnels, too");
const _: () = assert!(REQUESTS_PER_SANDBOX_MAX * 4 <= REQUESTS_MAX, "it takes several sandboxes to fill the house");
const _: () = assert!(UPGRADES_PER_SANDBOX_MAX * 4 <= UPGRADES_MAX, "it takes several sandboxes to fill the house");

/// How long a connection waits for its next request. Node and uvicorn hang up after 5 s; who is earlier never meets them at it.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(4);

/// How long a connection whose answer is complete may take over the rest of its request before it is given up.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// How long a guest may take over accepting a connection. It is on this very host: more is a guest without CPU.
pub const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// What is given to the way there besides.
pub const DIAL_GRACE: Duration = Duration::from_secs(2);

/// How long a guest may take over the head of its answer, from the moment the request's body last moved. Long on purpose: code
/// that runs for minutes and answers at its end is what sandboxes are for. Ten minutes is more than what browsers (5) and
/// most clients wait; it bounds what a guest that never answers holds.
pub const ANSWER_HEAD_LIMIT: Duration = Duration::from_secs(600);

/// How long a body waits for `100 Continue`: many guests never say it. As curl does.
pub const CONTINUE_LIMIT: Duration = Duration::from_secs(1);

/// How long the rest of an upgraded connection may lie still once one side sends no more. While both are open there is no
/// limit; afterwards a peer that went without a word cannot be told from one that waits.
pub const HALF_CLOSED_IDLE_MAX: Duration = Duration::from_secs(300);

/// Largest head of a request, in bytes: far more than browsers send, with all cookies.
pub const REQUEST_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Largest head of an answer, in bytes; also what is read ahead of a slow client.
pub const ANSWER_HEAD_BYTES_MAX: usize = 64 * 1024;

/// What a guest that speaks HTTP/2 may send ahead of its client, in bytes. On this host there is no distance to make up for.
pub const WINDOW_BYTES: u32 = 256 * 1024;
/// What is kept for a guest that speaks HTTP/2 and does not take it yet, in bytes.
pub const SEND_AHEAD_BYTES_MAX: usize = 256 * 1024;

/// Pieces in which upgraded connections are copied, in bytes; each has two.
pub const PIECE_BYTES: usize = 16 * 1024;

/// When a client that found no place should come back, in seconds.
pub const RETRY_AFTER_S: u64 = 1;
