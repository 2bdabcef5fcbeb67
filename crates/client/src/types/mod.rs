//! The shapes of `/v1`, as JSON has them.
//!
//! Requests refuse fields that they do not know: a misspelt option must not be a silent default. Answers are read tolerantly,
//! so that an older client understands a newer server. Times are Unix milliseconds (`_unix_ms`) or seconds (`_s`), sizes
//! have their unit in their name.

mod error;
mod event;
mod exec;
mod file;
mod host;
mod key;
mod operation;
mod page;
mod sandbox;
mod snapshot;
mod stream;
mod template;

pub use error::{Code, ErrorBody, Refusal};
pub use event::{Departure, Why};
pub use exec::{Bytes, Encoding, Exec, ExecRequest, Exit, Process, ProcessList, SignalRequest};
pub use file::{EntryKind, FileEntry, FileList, MakeDirRequest, MoveRequest, RemoveRequest, Written};
pub use host::{Health, HealthStatus, Host};
pub use key::{AuditEntry, Key, NewKey, NewKeyRequest, Scope};
pub use operation::{Operation, OperationKind, OperationState};
pub use page::Page;
pub use sandbox::{
    Changed, CreateSandbox, Fork, ForkRequest, Forked, GuestSample, LoggedExec, Logs, Metrics, OnTimeout, PauseRequest,
    RepairRequest, ResumeRequest, RollbackRequest, Sample, Sandbox, Start, State, TimeoutRequest, Timing, Vmm,
};
pub use snapshot::{NewSnapshot, Snapshot, SnapshotRequest};
pub use stream::{ClientMessage, HEADER_BYTES, ServerMessage, StreamKind, StreamRequest, TerminalSize, TunnelMessage};
pub use template::{NewTemplate, Template, Warm, WarmRequest, Warmed};
