//! The REST API of Wrenn as other programs see it: its [`types`], and a client that speaks it.
//!
//! ```text
//!   Client ─┬─ client/   a method for each route: JSON there and back, lists page by page, files as streams
//!           ├─ events    what happens, as Server-Sent Events (sse reads their lines)
//!           └─ socket/   WebSockets: a command's streams, a terminal, a tunnel to a port of a guest
//! ```
//!
//! Nothing here needs Linux, and nothing here knows how a server does what it is asked: a program on any system talks to
//! sandboxes with this crate alone. What is said here is what the server's OpenAPI document is generated from.
//!
//! No redirect is followed: it would take the key to somebody else. No call has a time limit of its own, because what is
//! asked for may take minutes; who wants one stops waiting, and a server that is gone is noticed by the connection.

mod client;
mod error;
mod events;
mod limits;
mod socket;
mod sse;
#[cfg(test)]
mod testing;
pub mod types;

pub use client::{Client, Download, FileRange, FileTarget, ListQuery, SandboxQuery, SnapshotQuery, TerminalRequest};
pub use error::ClientError;
pub use events::{Event, Events};
pub use socket::{CommandEvent, CommandInput, CommandOutput, CommandStream, Tunnel};
