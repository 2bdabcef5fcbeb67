//! The host agent: owns every sandbox's life.
//!
//! It composes what the engine offers (network, disk, memory, VMM) into sandboxes, and is the only one that decides *whether*
//! something happens. Reading order: [`host_agent`] (what can be asked), [`policy`] (what is allowed when), [`instance`]
//! (whose host objects are whose), [`manifest`], [`generation`] and [`layers`] (what is written down), [`sandbox`] (a life, step by
//! step), [`snapshot`] (what was captured under a name, or to start from), [`flatten`] (a template from a snapshot),
//! `changes` (who watches) and [`manager`] (who owns which sandbox, and what waits), [`reconcile`] (what nobody owns any more), [`envd_client`] and
//! [`guest_dial`] (the way into the guest); then [`rpc`] (the interface over a socket) and [`guest_link`] (the way into a guest from there). `fake` is an
//! agent without a host, for tests: also for those of other crates, with the feature `fakes`.

mod changes;
pub mod durable;
pub mod envd_client;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
pub mod faults;
pub mod flatten;
pub mod generation;
pub mod guest_dial;
pub mod guest_link;
pub mod host;
pub mod host_agent;
pub mod instance;
pub mod layers;
pub mod lock;
pub mod manager;
pub mod manifest;
pub mod policy;
pub mod reconcile;
pub mod rpc;
pub mod sandbox;
pub mod snapshot;
