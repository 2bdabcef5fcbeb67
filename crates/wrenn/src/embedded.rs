//! The programs that `wrenn` carries inside: the guest's and the one beside each VMM, both static.
//!
//! `cargo xtask build` builds them first and then `wrenn` around them; a plain `cargo build` finds none, embeds none,
//! and makes a `wrenn` that can only say so.

/// The guest's program: wrenn-init as PID 1, envd otherwise.
pub const ENVD: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/envd.rs"));

/// The program that is each VMM's parent.
pub const SHIM: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/wrenn-shim.rs"));
