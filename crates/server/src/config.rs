//! What a server is started with, checked.

use crate::limits;
use crate::traces::Endpoint;

/// How this server is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Domains whose hosts `<port>-<id>.<domain>` are ports of sandboxes.
    pub domains: Vec<String>,
    /// Requests per second of one key.
    pub rate: u32,
    /// The collector that traces are sent to, if they are.
    pub traces: Option<Endpoint>,
}

impl Default for Config {
    fn default() -> Self {
        Self { domains: vec!["localhost".to_owned()], rate: limits::RATE_DEFAULT, traces: None }
    }
}
