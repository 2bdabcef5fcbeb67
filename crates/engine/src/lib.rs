//! The engine: *how* a host runs microVMs, never *whether* one should run.
//!
//! Each module owns one kind of host resource and knows nothing of the others: [`vmm`], [`storage`], [`memory`],
//! [`network`], [`cgroup`] and [`image`] never import each other; the agent composes them. What they share is here: names of
//! host objects ([`names`]), units ([`units`]), words ([`words`]), limits ([`limits`]), files with holes ([`sparse`]), the one
//! command runner ([`command`]) and what this host can do ([`probe`]).

pub mod cgroup;
pub mod command;
pub mod image;
pub mod limits;
pub mod memory;
pub mod names;
pub mod network;
pub mod probe;
pub mod sparse;
pub mod storage;
pub mod units;
pub mod vmm;
pub mod words;
