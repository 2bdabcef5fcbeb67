//! The control plane: what turns a host with an agent into a service for many.
//!
//! ```text
//!   connection ─► http: limits, request id ─► route: by host name, by path
//!                   │                            ├─ proxy    a port of a sandbox
//!                   │                            ├─ ui       the test page, the documentation
//!                   ▼                            └─ api      /v1: key ─► rate ─► handler ─► audit
//!                 App ── agent   dyn HostAgent: does everything            world   what it has, as it says itself
//!                     ── db      keys, audit, operations, why things ended
//! ```
//!
//! It runs as a user of its own and never touches the host: all that it does to sandboxes it asks the agent for, and the agent's
//! word is the truth about them. What is here of sandboxes ([`world`]) is an index, filled by [`world`]'s watch and made anew at
//! every start. The database is the truth for keys, the audit log, operations, and why a sandbox ended.
//!
//! Reading order: [`config`], [`app`] (what there is), [`http`] (how a request gets in), [`route`] (where it goes), [`auth`] (who
//! asks), [`api`] (what can be asked), [`world`], [`operations`], [`proxy`], [`ui`], [`traces`].

pub mod api;
pub mod app;
pub mod attributes;
pub mod audit;
pub mod auth;
pub mod config;
pub mod convert;
pub mod db;
pub mod error;
pub mod exec_log;
pub mod extract;
pub mod http;
pub mod ids;
pub mod limits;
pub mod making;
pub mod metrics;
pub mod new_key;
pub mod operations;
pub mod proxy;
pub mod quota;
pub mod rate;
pub mod record;
pub mod route;
pub mod samples;
pub mod snapshot_names;
pub mod time;
pub mod traces;
pub mod ui;
pub mod ways;
pub mod world;
