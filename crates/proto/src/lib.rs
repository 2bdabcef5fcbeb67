//! The wires that two sides of Wrenn compile, and nothing else: no policy, and no I/O but the shim's client and files.
//!
//! - [`envd`] (feature `envd`): Connect RPC between a host and the agent in its guests, generated from
//!   `proto/envd/*.proto`: messages and server traits; with the feature `envd-client` the clients too.
//! - [`hostagent`] (feature `hostagent`): Connect RPC between a host's agent and who uses it, from
//!   `proto/hostagent/*.proto`; with the feature `hostagent-client` its client too.
//! - [`shim`]: the protocol of the small process beside each microVM, its files, and a small blocking client.

#[cfg(feature = "envd")]
pub mod envd;
#[cfg(feature = "hostagent")]
pub mod hostagent;
pub mod shim;
