//! What a server is started with, checked.

use std::net::SocketAddr;

use crate::db::DatabaseUrl;
use crate::limits;
use crate::traces::Endpoint;

/// How this server is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The database.
    pub database: DatabaseUrl,
    /// Where it listens, as clients see it: for what it tells them.
    pub listen: SocketAddr,
    /// Domains whose hosts `<port>-<id>.<domain>` are ports of sandboxes.
    pub domains: Vec<String>,
    /// Requests per second of one key.
    pub rate: u32,
    /// The collector that traces are sent to, if they are.
    pub traces: Option<Endpoint>,
}

impl Config {
    /// With the usual rest.
    pub fn new(database: DatabaseUrl, listen: SocketAddr) -> Self {
        Self { database, listen, domains: vec!["localhost".to_owned()], rate: limits::RATE_DEFAULT, traces: None }
    }
}
