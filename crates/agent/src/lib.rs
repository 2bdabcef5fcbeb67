//! The host agent: owns every sandbox's life.
//!
//! It composes what the engine offers (network, disk, VMM) into sandboxes, and is the only one that decides *whether*
//! something happens. Reading order: [`instance`] (whose host objects are whose), [`manifest`] (what is written down
//! before each side effect), [`sandbox`] (a sandbox's birth and end), [`reconcile`] (what nobody owns any more),
//! [`envd_client`] (the way into the guest).

pub mod durable;
pub mod envd_client;
pub mod host;
pub mod instance;
pub mod lock;
pub mod manifest;
pub mod reconcile;
pub mod sandbox;
