//! `wrenn serve` as its users see it: REST, streams, ports, pages, keys, and what faults leave of it.
//!
//! Answers are held against the server's own OpenAPI document ([`wrenn_testworld::api`]).

mod browser;
mod commands;
mod database;
mod faults;
mod hosts;
mod keys;
mod large_files;
mod life;
mod server;
mod streams;
mod templates;
mod traces;
