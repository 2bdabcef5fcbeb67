//! The way into a guest from its own host: sockets of the sandbox's network namespace.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use wrenn_engine::network::Connector;

use crate::envd_client::Dial;
use crate::host_agent::Tunnel;

/// Makes connections to the guest of one network.
#[derive(Debug)]
pub struct GuestDial(Connector);

impl GuestDial {
    /// Through a network's connector.
    pub fn new(connector: Connector) -> Self {
        Self(connector)
    }
}

#[async_trait]
impl Dial for GuestDial {
    async fn dial(&self, port: u16, limit: Duration) -> io::Result<Tunnel> {
        let stream = self.0.connect(port, limit).await.map_err(io::Error::other)?;
        Ok(Box::new(stream))
    }
}
