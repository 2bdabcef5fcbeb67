//! Who may reach a port of a sandbox, and how: what the proxy asks before it forwards.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, StatusCode};
use subtle::ConstantTimeEq as _;
use wrenn_agent::host_agent::policy::{self, Verb};
use wrenn_agent::host_agent::{HostAgent, Phase, ResumeOptions, Tunnel, View};
use wrenn_client::types::Code;

use crate::app::no_sandbox;
use crate::attributes::Attributes;
use crate::db::Database;
use crate::error::ApiError;
use crate::limits;
use crate::proxy::{Admitted, Refused, Target, Ways};
use crate::quota::Claims;
use crate::world::World;

/// Headers that carry a sandbox's traffic token: ours, and that of E2B's clients.
pub const TRAFFIC_TOKEN_HEADERS: [&str; 2] = ["x-wrenn-traffic-token", "e2b-traffic-access-token"];

/// To the ports of the sandboxes that the agent has.
pub struct PortWays {
    agent: Arc<dyn HostAgent>,
    world: Arc<World>,
    db: Database,
    claims: Claims,
}

impl PortWays {
    /// Those of one agent. Who is brought back counts for a quota, as everybody who runs.
    pub fn new(agent: Arc<dyn HostAgent>, world: Arc<World>, db: Database, claims: Claims) -> Self {
        Self { agent, world, db, claims }
    }

    async fn reachable(&self, target: &Target, headers: &HeaderMap) -> Result<Arc<View>, ApiError> {
        let view = self.world.get(&target.id)?.ok_or_else(|| no_sandbox(&target.id))?;
        let attributes = Attributes::read(&view.attributes);
        if let Some(traffic) = &attributes.traffic {
            check_token(headers, &traffic.token(&target.id))?;
        }
        if view.phase == Phase::Paused && attributes.auto_resume {
            return self.resume(&view).await;
        }
        policy::check(view.phase, Verb::Use)
            .map_err(|denied| ApiError::from(wrenn_agent::host_agent::AgentError::from(denied)))?;
        Ok(view)
    }

    /// Brings a paused sandbox back for its traffic. Of several who want to, one does it.
    async fn resume(&self, view: &Arc<View>) -> Result<Arc<View>, ApiError> {
        let _claim = self.claims.claim_resumed(&self.db, &self.world, view).await?;
        let ready_limit = Duration::from_secs(limits::BOOT_TIMEOUT_S);
        match self.agent.resume(&view.id, ResumeOptions { ready_limit, timeout: None }).await {
            Ok(changed) => {
                self.world.note_changed(&changed);
                Ok(Arc::new(changed.view))
            }
            Err(error) => match self.agent.get(&view.id).await {
                Ok(now) if now.phase == Phase::Running => Ok(Arc::new(now)),
                _otherwise => Err(error.into()),
            },
        }
    }
}

fn check_token(headers: &HeaderMap, token: &str) -> Result<(), ApiError> {
    let shown = TRAFFIC_TOKEN_HEADERS.iter().filter_map(|name| headers.get(*name));
    let is_right = |value: &http::HeaderValue| bool::from(value.as_bytes().ct_eq(token.as_bytes()));
    if shown.into_iter().any(is_right) {
        return Ok(());
    }
    let message = "traffic to this sandbox needs its token, and this request shows none that is right";
    let remedy = "send it as X-Wrenn-Traffic-Token; GET /v1/sandboxes/{id} tells it";
    Err(ApiError::new(Code::Unauthenticated, message).remedy(remedy))
}

fn refused(error: ApiError) -> Refused {
    let status = match error.body.code {
        // Whoever asks for a page is told that what is behind it does not answer.
        Code::Conflict | Code::Failed | Code::NeedsRepair => StatusCode::BAD_GATEWAY,
        Code::Invalid
        | Code::Unauthenticated
        | Code::Forbidden
        | Code::NotFound
        | Code::MethodNotAllowed
        | Code::Destroyed
        | Code::TooLarge
        | Code::UnsupportedMediaType
        | Code::RangeNotSatisfiable
        | Code::QuotaExceeded
        | Code::RateLimited
        | Code::Unavailable
        | Code::Exhausted => error.status(),
    };
    Refused {
        status,
        code: error.body.code,
        message: error.body.message,
        remedy: error.body.remedy,
        retry_after_s: error.retry_after_s,
    }
}

#[async_trait]
impl Ways for PortWays {
    async fn admit(&self, target: &Target, headers: &HeaderMap) -> Result<Admitted, Refused> {
        let view = self.reachable(target, headers).await.map_err(refused)?;
        // Each start of a VM is written into the manifest, so a later life has a greater revision; so has a changed timeout,
        // which costs no more than a connection made anew.
        Ok(Admitted { life: view.revision })
    }

    async fn dial(&self, target: &Target, limit: Duration) -> Result<Tunnel, Refused> {
        self.agent.dial(&target.id, target.port, limit).await.map_err(|error| refused(error.into()))
    }
}
