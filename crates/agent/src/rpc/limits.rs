//! Every limit of the wire to the agent, with its unit and its reason. Who speaks here is root; the limits keep a mistake
//! of theirs from becoming the agent's.

use std::time::Duration;

use wrenn_engine::limits::{CONSOLE_RING_BYTES, WARM_IMAGES_MAX};

/// Connections at once: each command line has one, and one for each tunnel.
pub const CONNECTIONS_MAX: usize = 2048;

/// Calls at once on one connection; a bound sandbox is a call that lasts.
pub const STREAMS_MAX: u32 = 1024;

/// Calls that are carried out at once; more wait.
pub const CALLS_MAX: u32 = 256;

/// Tunnels at once. Each costs two sockets, a third descriptor and two small buffers.
pub const TUNNELS_MAX: u32 = 1024;

/// TLS clients at once of whom it is not known yet who they are; one more, and the oldest has to go.
pub const HANDSHAKES_MAX: usize = 256;

const _: () =
    assert!(TUNNELS_MAX as usize + HANDSHAKES_MAX < CONNECTIONS_MAX, "or tunnels and strangers keep calls out");

/// Largest message, in bytes: a request with all of its environment, labels and attributes, or a console's whole ring.
pub const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What a message may take in memory once it is read, in bytes.
pub const MESSAGE_MEMORY_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// Longest name of a template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 256;

/// Longest path of a kernel, in bytes (PATH_MAX).
pub const PATH_BYTES_MAX: usize = 4096;

/// Labels of one sandbox; and of a sandbox or a snapshot as many attributes, which have the same limits.
pub const LABELS_MAX: usize = 64;
/// Longest key of a label, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 256;
/// Longest value of a label, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 4096;

/// Environment variables of one sandbox.
pub const ENV_MAX: usize = 256;
/// Names and values of all of them, in bytes: what a kernel gives one string (MAX_ARG_STRLEN), and far below what it gives all.
pub const ENV_BYTES_MAX: usize = 128 * 1024;

const _: () = assert!(
    ENV_BYTES_MAX + 2 * LABELS_MAX * (LABEL_KEY_BYTES_MAX + LABEL_VALUE_BYTES_MAX) < MESSAGE_BYTES_MAX / 2,
    "a request with all that is allowed fits a message"
);
const _: () = assert!(
    WARM_IMAGES_MAX * 1024 < MESSAGE_BYTES_MAX / 2,
    "a template with all warm images fits a message: each has hashes, a version and a few numbers"
);
const _: () = assert!(CONSOLE_RING_BYTES < MESSAGE_BYTES_MAX as u64 / 2, "a console fits a message");

/// Longest timeout of a sandbox: who wants more wants none.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Longest time a guest may be given to become ready, or to accept a connection.
pub const READY_LIMIT_MAX: Duration = Duration::from_secs(60 * 60);

/// How often a stream on which nothing happens says that it is alive.
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// Lines about how a call goes on that wait for its client; it misses those that find no room. A build has some dozens.
pub const PROGRESS_LINES_MAX: usize = 256;

/// How long a client may take over the head of a request.
pub const REQUEST_HEAD_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a TLS client may take to show who it is: some round trips of a slow network.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Largest file of certificates or keys, in bytes: hundreds of them.
pub const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// How often the kernel asks the other end of a TCP connection that has been silent for [`KEEPALIVE_EVERY`].
pub const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How often it does before it gives up.
pub const PROBES_MAX: u32 = 3;

/// How long the other end's kernel may leave calls and answers without a receipt: as long as silence lasts before it is given up.
pub const RECEIPT_LIMIT: Duration = Duration::from_secs(30);

const _: () = assert!(RECEIPT_LIMIT.as_secs() == KEEPALIVE_EVERY.as_secs() + PROBE_EVERY.as_secs() * PROBES_MAX as u64);

/// How long a connection to the agent may take: it takes from its queue at once. With the handshake, where there is one.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long calls that are under way have to finish when the agent ends; their own steps have shorter limits, all but a boot.
pub const CALLS_END_LIMIT: Duration = Duration::from_secs(120);

/// How long the last answers have to get out then.
pub const ANSWERS_LIMIT: Duration = Duration::from_secs(2);

/// How often a tunnel whose client sends no more is asked whether the client is there at all.
pub const HANG_UP_LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is read of the text of a refused tunnel, in bytes.
pub const REFUSAL_BYTES_MAX: usize = 64 * 1024;
