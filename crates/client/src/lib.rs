//! The REST API of Wrenn as other programs see it: its [`types`], and a client that speaks it.
//!
//! Nothing here needs Linux, and nothing here knows how a server does what it is asked: a program on any system talks to
//! sandboxes with this crate alone. What is said here is what the server's OpenAPI document is generated from.

pub mod types;
