//! envd: the agent in a sandbox, an HTTP server that the host (and, through it, its users) talks to.
//!
//! ```text
//!  connection ─► server ─► auth ─┬─► process.Process        process::service
//!                                ├─► filesystem.Filesystem  filesystem
//!                                ├─► /files                 files
//!                                ├─► /metrics /envs /health server
//!                                └─► /init /freeze ...      host_calls
//! ```
//! It is wire-compatible with E2B's envd. One thread runs everything that does not block: a guest often has one CPU, and
//! what is not waited for needs no lock. It trusts its host, by signature and token, and nobody in the guest.

mod arrivals;
pub mod auth;
pub mod cgroup;
mod entry;
mod files;
mod files_limits;
mod filesystem;
mod hooks;
pub mod host_calls;
mod lane;
mod metrics;
mod paths;
mod process;
pub mod server;
mod signature;
pub mod state;
mod timestamp;
mod users;
mod watch;

/// The version of E2B's envd whose features are here: files' metadata (0.6.2) is, watching with entries (0.6.3) is not.
pub const VERSION: &str = "0.6.2";
