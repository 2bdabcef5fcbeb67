//! Every limit of the server, with its unit and its reason. Those of the database and of the proxy are in their own modules.

use std::time::Duration;

/// Largest body of a JSON request, in bytes: an environment and labels as large as allowed, twice.
pub const JSON_BYTES_MAX: usize = 1024 * 1024;

/// Largest input that one exec request may bring along, in bytes of its JSON: it is held in memory.
pub const EXEC_JSON_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long a JSON body may take to arrive.
pub const JSON_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a client may take over the head of a request.
pub const REQUEST_HEAD_TIME_MAX: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes.
pub const REQUEST_HEAD_BYTES_MAX: usize = 64 * 1024;

/// Connections at once: each costs a descriptor and some buffers.
pub const CONNECTIONS_MAX: usize = 8192;

/// How long a connection may be silent before the kernel asks whether its client is there, also when nothing is sent to it.
pub const TCP_SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often it is asked again.
pub const TCP_PROBE_EVERY: Duration = Duration::from_secs(10);
/// How often it is before the connection ends: a client that is gone holds its place for a minute.
pub const TCP_PROBES_MAX: u32 = 3;

const _: () = assert!(
    TCP_SILENCE_MAX.as_secs() + TCP_PROBE_EVERY.as_secs() * TCP_PROBES_MAX as u64 <= SILENCE_MAX.as_secs(),
    "no worse than where WebSockets and HTTP/2 ask by themselves"
);

/// Requests at once on one HTTP/2 connection.
pub const STREAMS_MAX: u32 = 256;

/// How long requests that are under way have to finish when the server ends.
pub const END_LIMIT: Duration = Duration::from_secs(10);

/// Entries of a page, if nothing is said, and at most.
pub const PAGE_DEFAULT: usize = 100;
/// Entries of a page at most.
pub const PAGE_MAX: usize = 1000;

/// Longest cursor, in bytes.
pub const CURSOR_BYTES_MAX: usize = 256;

/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

/// Longest query of a URL, in bytes: two paths, percent-encoded.
pub const QUERY_BYTES_MAX: usize = 32 * 1024;

/// Longest path of a guest's file, in bytes (PATH_MAX).
pub const PATH_BYTES_MAX: usize = 4096;

/// Longest name of a user of a guest, in bytes.
pub const USER_BYTES_MAX: usize = 256;

/// Arguments of a command.
pub const ARGUMENTS_MAX: usize = 4096;
/// Bytes of all of a command's arguments and environment: the kernel takes 2 MiB of them.
pub const ARGUMENT_BYTES_MAX: usize = 1024 * 1024;

/// Longest time limit of a command: a day.
pub const EXEC_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What is collected of each stream of a command, in bytes; the rest is read and dropped.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Largest frame that a client may send over a WebSocket, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// How often a WebSocket on which nothing happens is asked whether its client is there.
pub const PING_EVERY: Duration = Duration::from_secs(20);
/// How long a client may be silent: two pings and some.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a client may take nothing of what is sent to it, or send nothing of a file that it writes: as a guest's agent detaches one.
pub const STALL_MAX: Duration = Duration::from_secs(30);

/// How long a client has for the first message of a WebSocket.
pub const FIRST_MESSAGE_LIMIT: Duration = Duration::from_secs(10);

/// How often a stream of events on which nothing happens says that it is alive.
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// Events that a client of a stream may be behind; it is cut off beyond, and asks again.
pub const EVENTS_BEHIND_MAX: usize = 1024;

/// Longest timeout of a sandbox, in seconds (366 days): who wants more wants none. The agent's own limit.
pub const TIMEOUT_S_MAX: u64 = 366 * 24 * 60 * 60;

/// How long a guest may take to become ready, in seconds, if nothing is said.
pub const BOOT_TIMEOUT_S: u64 = 60;
/// The same at most.
pub const BOOT_TIMEOUT_S_MAX: u64 = 60 * 60;

/// Forks of one request.
pub const FORKS_MAX: u32 = 64;

/// Virtual CPUs, if nothing is said.
pub const VCPUS: u32 = 1;
/// Memory, in MiB, if nothing is said.
pub const MEMORY_MIB: u32 = 256;
/// The template, if nothing is said.
pub const TEMPLATE: &str = "minimal";

/// Longest name of a template, in bytes. The agent's own limit.
pub const TEMPLATE_BYTES_MAX: usize = 256;

/// How long a key that was looked up is believed: so long at most does one that was revoked by somebody else go on.
pub const KEY_BELIEVED_FOR: Duration = Duration::from_secs(2);

/// Keys that are remembered; all are forgotten beyond.
pub const KEYS_REMEMBERED_MAX: usize = 4096;

/// Requests per second of one key, if nothing is said.
pub const RATE_DEFAULT: u32 = 1000;
/// Requests with a wrong key, per second of one address: who guesses is slowed down, who mistyped is not.
pub const WRONG_KEYS_PER_S: u32 = 20;
/// Keys and addresses whose rate is remembered; those at rest are forgotten beyond.
pub const RATES_REMEMBERED_MAX: usize = 16_384;

/// Audit entries that wait for the database; more are dropped, counted, and logged.
pub const AUDIT_QUEUE: usize = 4096;
/// Audit entries of one transaction.
pub const AUDIT_BATCH: usize = 256;
/// Audit entries that are kept.
pub const AUDIT_KEPT: u64 = 1_000_000;

/// Departures that are remembered in memory; the database has the rest.
pub const DEPARTURES_REMEMBERED_MAX: usize = 10_000;

/// Commands of one sandbox that are remembered: as many as the database keeps.
pub const EXECS_LOGGED_MAX: usize = crate::db::limits::EXECS_KEPT as usize;
/// What is kept of a command's words, in bytes.
pub const EXEC_LINE_BYTES_MAX: usize = 4096;
/// How often the log of commands is written, at best: one that prints all the time is written that often.
pub const EXECS_WRITTEN_EVERY: Duration = Duration::from_secs(1);

/// The most of a console that an answer holds, in bytes: the agent's whole ring.
pub const CONSOLE_BYTES_MAX: u32 = 256 * 1024;

/// How often sandboxes are measured, at best.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// What measuring one may take of that: with more of them it is done less often.
pub const SAMPLE_COST: Duration = Duration::from_millis(5);
/// Sandboxes that are measured at once.
pub const SAMPLED_AT_ONCE: usize = 8;
/// Measurements of one sandbox that are kept: an hour.
pub const SAMPLES_KEPT: usize = 720;

/// How long the server waits for the agent to come back before it looks again.
pub const AGENT_RETRY: Duration = Duration::from_millis(200);

/// How long a question for the health of the server may take.
pub const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// How long a connection to a guest's port may take.
pub const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// How long it is remembered why a sandbox ended.
pub const ENDS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long operations are remembered once they ended.
pub const OPERATIONS_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How much of a file is on its way at once, in bytes, each way.
pub const FILE_BUFFER_BYTES: usize = 256 * 1024;
/// How long a guest may take over one call about its files.
pub const FILE_CALL_LIMIT: Duration = Duration::from_secs(60);

/// Spans that wait to be sent to a collector; more are lost. One takes about a kilobyte.
pub const SPANS_QUEUED_MAX: usize = 4096;
/// Spans of one batch.
pub const SPANS_AT_ONCE_MAX: usize = 512;
/// How often they are sent, if there are not enough for a batch before.
pub const SPANS_SENT_EVERY: Duration = Duration::from_secs(2);
/// How long a collector has to take a batch: it is on this host, or near it.
pub const SPANS_SENT_WITHIN: Duration = Duration::from_secs(5);
/// How often it is said that a collector does not take what it is sent.
pub const TRACES_TROUBLE_SAID_EVERY: Duration = Duration::from_secs(60);
/// Longest answer of a collector, in bytes: it says how many spans it did not like, and why.
pub const COLLECTOR_ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Entries of a listing: what fits an answer that a browser still shows.
pub const ENTRIES_MAX: usize = 10_000;
