//! Bounds of what a client waits for and keeps.

use std::time::Duration;

/// How long a connection to the server may take to stand: the slowest networks, and a server that is gone is not waited for.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How often a connection that is silent is probed, so that a server whose host is gone is noticed within minutes.
pub const KEEPALIVE: Duration = Duration::from_secs(20);

/// The largest answer that is read: both outputs of a command, 8 MiB each, of which JSON makes up to six times as much.
pub const ANSWER_BYTES_MAX: usize = 128 << 20;

/// What is read of an answer that is an error.
pub const REFUSAL_BYTES_MAX: usize = 1 << 20;

/// The largest event: a sandbox with all the labels it may have, 64 of 4 KiB, of which JSON makes up to six times as much.
pub const EVENT_BYTES_MAX: usize = 4 << 20;

/// Events are silent for at most 15 s (comment lines come then); three of these missing in a row are a connection that broke.
pub const EVENTS_SILENCE_MAX: Duration = Duration::from_secs(45);

/// The largest message of a WebSocket; the server's own are a fraction of it.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Bytes of a tunnel that go into one message: few enough to be passed on soon, so many that a message's head is nothing.
pub const TUNNEL_MESSAGE_BYTES_MAX: usize = 64 << 10;

/// What may wait to be written to a WebSocket before whoever writes has to wait.
pub const WRITE_BUFFER_BYTES_MAX: usize = 4 * TUNNEL_MESSAGE_BYTES_MAX;

/// Bytes of a file that are read and sent at once.
pub const UPLOAD_CHUNK_BYTES: usize = 64 << 10;

/// Items of a page when all of a list are asked for: the most that the server gives.
pub const PAGE_ITEMS_MAX: u32 = 1000;

const _: () = assert!(TUNNEL_MESSAGE_BYTES_MAX < WRITE_BUFFER_BYTES_MAX);
const _: () = assert!(WRITE_BUFFER_BYTES_MAX < MESSAGE_BYTES_MAX);
