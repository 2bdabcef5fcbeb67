//! The real server, all but its process: on a loopback port, with a database in a file and an agent without a host.
//!
//! Each answer is held against the OpenAPI document of the very server that gave it, so that a test says only what the document
//! does not. What a route must refuse is derived from the document, too: a new route or field is tested without a test of its own.

mod bad_input;
mod database;
mod document;
mod keys;
mod logs;
mod operations;
mod quotas;
mod server;
mod slow_clients;
mod streams;
mod surface;
mod traces;
