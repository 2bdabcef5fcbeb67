//! The way into a guest through whoever may reach it: any agent, in this process or in another.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use wrenn_engine::names::SandboxId;

use crate::envd_client::{Dial, EnvdClient, Nonces};
use crate::host_agent::{HostAgent, Tunnel, View};

/// The guest of a sandbox, reached through `agent`. Signed calls are the agent's own business: they are not for this client.
pub fn guest(agent: Arc<dyn HostAgent>, view: &View) -> EnvdClient {
    let link = GuestLink { agent, id: view.id.clone() };
    EnvdClient::new(Arc::new(link), view.access_token.clone(), Nonces::default())
}

struct GuestLink {
    agent: Arc<dyn HostAgent>,
    id: SandboxId,
}

impl fmt::Debug for GuestLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GuestLink").field(&self.id).finish()
    }
}

#[async_trait]
impl Dial for GuestLink {
    async fn dial(&self, port: u16, limit: Duration) -> io::Result<Tunnel> {
        self.agent.dial(&self.id, port, limit).await.map_err(io::Error::other)
    }
}
