//! Every limit of the database's side in one place, with its unit and its reason.

use std::time::Duration;

/// What one call may take, all in all: a request waits for some of them, and its client for ten seconds or more.
pub const CALL: Duration = Duration::from_secs(5);

/// How long of that a call may wait for its turn and for a connection.
pub const START: Duration = Duration::from_secs(2);

/// How long SQLite waits for a lock that another program holds, and PostgreSQL lets one statement run.
pub const LOCK: Duration = Duration::from_secs(2);

/// What opening may take: migrations of a large database among it.
pub const OPEN: Duration = Duration::from_secs(60);

/// How often opening is tried: two programs that make the same new database disturb each other once or twice.
pub const OPEN_ATTEMPTS: usize = 5;

/// The pause between two of these.
pub const OPEN_PAUSE: Duration = Duration::from_millis(200);

/// What closing may take before connections are dropped as they are.
pub const CLOSE: Duration = Duration::from_secs(5);

/// How often it is looked whether all are closed.
pub const CLOSE_PAUSE: Duration = Duration::from_millis(5);

/// What a backup may take: gigabytes on a slow disk.
pub const BACKUP: Duration = Duration::from_secs(600);

/// Connections to SQLite: readers beside the one that writes.
pub const SQLITE_CONNECTIONS: u32 = 4;

/// Connections to PostgreSQL, which has 100 for everybody unless told otherwise.
pub const POSTGRES_CONNECTIONS: u32 = 8;

/// Rows of one page of a list: a page of the API, and the one more that tells whether there is a next.
pub const PAGE_ROWS_MAX: u32 = 1001;

/// Rows that are written or removed in one transaction: with PostgreSQL on another machine, half a second.
pub const TRANSACTION_ROWS: usize = 256;

/// How far behind a key's last use may be, in milliseconds: it is told to the minute, and not each request is a write.
pub const KEY_USE_GRAIN_MS: u64 = 60_000;

/// Longest text of an audit entry, in bytes; the rest is cut off. Clients choose most of them.
pub const AUDIT_TEXT_BYTES_MAX: usize = 1024;

/// Lines of an operation's progress that are kept: the last ones. Building a template says some fifty.
pub const PROGRESS_LINES_MAX: usize = 200;

/// Longest of these lines, in bytes; the rest is cut off.
pub const PROGRESS_LINE_BYTES_MAX: usize = 1024;

/// Commands of one sandbox that are kept: the last ones.
pub const EXECS_KEPT: u64 = 100;

/// Longest text that names a database, in bytes.
pub const URL_BYTES_MAX: usize = 4096;

const _: () =
    assert!(LOCK.as_millis() < CALL.as_millis(), "a lock is reported before the call gives up on its connection");
const _: () =
    assert!(START.as_millis() + LOCK.as_millis() < CALL.as_millis(), "no statement waits on when its call has ended");
const _: () = assert!(CALL.as_millis() < OPEN.as_millis());
