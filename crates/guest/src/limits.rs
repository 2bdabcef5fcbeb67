//! Every limit of the guest agent's processes and wire, with its unit and its reason. Those of its files are in
//! `envd/files_limits.rs`.

use std::time::Duration;

/// TCP connections at a time. A host keeps a few; each can hold up to about 300 KiB of unsent bytes.
pub const CONNECTIONS_MAX: usize = 1024;

/// How long a client may take to send the head of a request.
pub const REQUEST_HEAD_TIME_MAX: Duration = Duration::from_secs(20);

/// Bytes of a connection's buffers: a request's head must fit, and answers wait here when the client does not read.
pub const CONNECTION_BUFFER_BYTES: usize = 128 * 1024;

/// Requests at a time on one HTTP/2 connection.
pub const HTTP2_STREAMS_MAX: u32 = 256;

/// Bytes of one request's body that an HTTP/2 client may send ahead of us.
pub const HTTP2_WINDOW_BYTES: u32 = 256 * 1024;

/// How long the peer may leave what we sent unacknowledged: a host that is gone without a word.
pub const UNACKNOWLEDGED_TIME_MAX: Duration = Duration::from_secs(60);

/// How long a connection may be silent before the kernel asks the peer's whether it still knows it. A peer that does not
/// ends it at once; one that does not answer ends it after [`UNACKNOWLEDGED_TIME_MAX`].
pub const SILENCE_BEFORE_PROBE: Duration = Duration::from_secs(30);

/// Between two such questions without an answer.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// A Connect message other than input, in bytes: a command with all its arguments and environment (the kernel takes
/// about 2 MiB of both), with room for JSON.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A Connect message with input for a process, in bytes: 6 MiB of input as base64. Larger input is sent in pieces.
pub const INPUT_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The body of a host call, in bytes: tokens and environment variables.
pub const HOST_CALL_BYTES_MAX: usize = 1024 * 1024;

/// Running processes started through envd. Each costs it about six descriptors and some KiB.
pub const PROCESSES_MAX: usize = 1024;

/// Environment variables of one process: the kernel takes about 2 MiB of them in all.
pub const VARIABLES_MAX: usize = 4096;

/// How long a finished process can still be asked for its end (E2B's contract).
pub const FINISHED_KEPT: Duration = Duration::from_secs(30);

/// Finished processes kept at a time: a host that runs hundreds of commands a second must not fill our memory.
pub const FINISHED_MAX: usize = 256;

/// Bytes of one stdout or stderr event (E2B's contract).
pub const PIPE_EVENT_BYTES_MAX: usize = 32 * 1024;

/// Bytes of one terminal event (E2B's contract).
pub const PTY_EVENT_BYTES_MAX: usize = 16 * 1024;

/// Output of one process kept for clients that come back, in bytes.
pub const RING_BYTES_MAX: usize = 1024 * 1024;

/// Output of all processes kept, in bytes.
pub const RINGS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Output an attached client has not taken yet before the process is made to wait, in bytes.
pub const UNREAD_BYTES_MAX: usize = 256 * 1024;

/// The same when [`RINGS_BYTES_MAX`] is used up.
pub const UNREAD_BYTES_LEAST: usize = 32 * 1024;

/// What a piece of kept output costs beside its bytes.
pub const CHUNK_OVERHEAD_BYTES: usize = 96;

/// From this size on a piece of output is passed on in the buffer it was read into; smaller ones would waste most of it
/// and are collected.
pub const CHUNK_SHARED_BYTES: usize = PIPE_EVENT_BYTES_MAX / 2;

/// How long a client may take nothing while the process waits for it.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(30);

/// Clients attached to one process.
pub const READERS_MAX: usize = 64;

/// Bytes a pipe holds: a process that floods is woken less often.
pub const PIPE_BYTES: usize = 256 * 1024;

/// How long a finished process's streams may be silent, with somebody else holding them open, before they count as done.
pub const DRAIN_SILENCE: Duration = Duration::from_millis(100);

/// How long they are listened to in all.
pub const DRAIN_TIME_MAX: Duration = Duration::from_millis(500);

/// Calls waiting to write to one process.
pub const WRITERS_MAX: usize = 64;

/// Input on its way to all processes, in bytes: it waits in memory until they read it.
pub const INPUT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long a kill waits to see the process gone before it answers anyway.
pub const KILL_SEEN_WITHIN: Duration = Duration::from_secs(2);

/// Between two keepalive events when the client does not say (E2B's contract).
pub const KEEPALIVE_DEFAULT: Duration = Duration::from_secs(90);

/// Least time between two keepalive events.
pub const KEEPALIVE_LEAST: Duration = Duration::from_secs(1);

/// How long the user cgroup may take to be frozen or thawed.
pub const FREEZE_TIME_MAX: Duration = Duration::from_secs(5);

/// How long writing the disk's caches back may take when the host asks for no more than that.
pub const SYNC_TIME_MAX: Duration = Duration::from_secs(60);

/// The same and freezing the root filesystem. The users' processes may stand still meanwhile.
pub const DISK_FREEZE_TIME_MAX: Duration = Duration::from_secs(15);

/// How long thawing it may take: one freeze that still goes on is waited for.
pub const DISK_THAW_TIME_MAX: Duration = Duration::from_secs(20);

/// How long all hooks together may take: nobody's program runs meanwhile.
pub const HOOKS_TIME_MAX: Duration = Duration::from_secs(10);

/// The whole of /resumed: the hooks, the end of one that hangs, and some small files.
pub const RESUMED_TIME_MAX: Duration = Duration::from_secs(15);

/// Hooks in a folder: their names are in the answer.
pub const HOOKS_MAX: usize = 64;

/// What is kept of a hook's complaints, in bytes: the last lines of a traceback, and not more than a host repeats.
pub const HOOK_STDERR_BYTES_MAX: usize = 1024;

/// Open files of envd itself: six per process, one per connection, and room.
pub const OWN_FILES_MAX: u64 = 16_384;

/// Open files of a user's process: the soft limit that select() and old programs can stand, and what they may raise it to.
pub const USER_FILES_SOFT: u64 = 1024;

/// See [`USER_FILES_SOFT`].
pub const USER_FILES_HARD: u64 = 524_288;

/// What the out-of-memory killer adds to a user's process (E2B's contract): they go before envd does.
pub const USER_OOM_SCORE: i32 = 100;

/// Processes being started at a time: while the users' cgroup is frozen each keeps a thread.
pub const STARTS_AT_ONCE_MAX: usize = 16;

/// Threads for calls that block; the first ones are made when needed and end after idling.
pub const BLOCKING_THREADS_MAX: usize = 32;

const _: () = assert!(UNREAD_BYTES_MAX < RING_BYTES_MAX, "what an attached client has not read must fit the ring");
const _: () = assert!(PIPE_EVENT_BYTES_MAX <= UNREAD_BYTES_LEAST);
const _: () = assert!(OWN_FILES_MAX as usize > PROCESSES_MAX * 6 + CONNECTIONS_MAX * 2);
const _: () = assert!(STARTS_AT_ONCE_MAX < BLOCKING_THREADS_MAX, "the host's own calls need threads too");
const _: () = assert!(DISK_THAW_TIME_MAX.as_secs() > DISK_FREEZE_TIME_MAX.as_secs());
const _: () = assert!(RESUMED_TIME_MAX.as_secs() > HOOKS_TIME_MAX.as_secs() + KILL_SEEN_WITHIN.as_secs());
const _: () = assert!(PROBE_INTERVAL.as_secs() < UNACKNOWLEDGED_TIME_MAX.as_secs());
const _: () = assert!(INPUT_BYTES_MAX >= 4 * INPUT_MESSAGE_BYTES_MAX);
