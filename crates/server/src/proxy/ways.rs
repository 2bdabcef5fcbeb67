//! What the proxy needs of the rest of the server: who may, and the way there.

use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use wrenn_agent::host_agent::Tunnel;

use super::refused::Refused;
use super::target::Target;

/// Leave to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Another one whenever the sandbox's VM is another one than before: connections of a former life are not used.
    pub life: u64,
}

/// Whether a request may pass, and the connection it passes through.
#[async_trait]
pub trait Ways: Send + Sync {
    /// Whether a request with these headers may go there. Whoever decides this also brings a sandbox back that rests, if that
    /// was asked for, and bounds how long that takes.
    async fn admit(&self, target: &Target, headers: &HeaderMap) -> Result<Admitted, Refused>;

    /// A new connection to the port; see [`Refused::dial`].
    async fn dial(&self, target: &Target, limit: Duration) -> Result<Tunnel, Refused>;
}
