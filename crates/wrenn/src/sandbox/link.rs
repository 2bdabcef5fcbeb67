//! The way to an agent, the one of this `WRENN_DIR` or one behind a server, and to it again when it was started anew.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use tokio::time::{Instant, sleep};
use wrenn_agent::envd_client::{EnvdClient, EnvdError};
use wrenn_agent::guest_link;
use wrenn_agent::host_agent::{AgentError, Code, HostAgent, Phase, View};
use wrenn_agent::instance::Instance;
use wrenn_agent::rpc;
use wrenn_engine::names::SandboxId;

use crate::execution::{self, ExecutionError, Keeper, is_detached};
use crate::place::Place;
use crate::remote::RestAgent;

/// How long an agent that is gone may take to come back, and a sandbox between two states to be in one: an agent that starts
/// looks after what it finds before it listens.
const RETURN_LIMIT: Duration = Duration::from_secs(15);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// An agent.
pub struct Link {
    place: Place,
    agent: Arc<dyn HostAgent>,
}

/// The agent at `place`, if one runs. Whether a server is there is seen when it is asked for something.
pub async fn find(place: &Place) -> Result<Option<Link>> {
    let agent: Arc<dyn HostAgent> = match place.server() {
        Some(client) => Arc::new(RestAgent::new(client.clone())),
        None => {
            let Some(socket) = Instance::find_agent_socket(&place.dir)? else { return Ok(None) };
            let Some(remote) = rpc::connect(&socket).await? else { return Ok(None) };
            Arc::new(remote)
        }
    };
    Ok(Some(Link { place: place.clone(), agent }))
}

impl Link {
    /// The agent at `place`, which must run.
    pub async fn require(place: &Place) -> Result<Self> {
        match find(place).await? {
            Some(link) => Ok(link),
            None => bail!(
                "no agent runs for WRENN_DIR {}; start one: `wrenn agent`, or name a server with --url",
                place.dir.display()
            ),
        }
    }

    /// It.
    pub fn agent(&self) -> &dyn HostAgent {
        &*self.agent
    }

    /// It, for who keeps it.
    pub fn agent_arc(&self) -> Arc<dyn HostAgent> {
        Arc::clone(&self.agent)
    }

    /// The sandbox once it is not between two states; waits for an agent that is started anew.
    async fn settled(&mut self, id: &SandboxId) -> Result<View, AgentError> {
        let deadline = Instant::now() + RETURN_LIMIT;
        loop {
            let asked = self.agent.get(id).await;
            let is_passing = match &asked {
                Ok(view) => match view.phase {
                    Phase::Creating | Phase::Pausing | Phase::Resuming | Phase::Capturing | Phase::RollingBack => true,
                    Phase::Running | Phase::Paused | Phase::Stopped | Phase::NeedsRepair | Phase::Destroying => false,
                },
                Err(error) => error.code == Code::Unavailable,
            };
            if !is_passing || Instant::now() >= deadline {
                return asked;
            }
            sleep(LOOK_EVERY).await;
            // A new agent is behind a new socket; a connection that broke is no way to it.
            if let Ok(Some(link)) = find(&self.place).await {
                *self = link;
            }
        }
    }
}

/// A sandbox of the agent, as [`crate::execution`] asks about it.
pub struct Through {
    /// The agent.
    pub link: Link,
    /// Which sandbox.
    pub id: SandboxId,
    /// Whether it lives only as long as the agent that made it for us.
    pub is_bound: bool,
}

impl Keeper for Through {
    /// The agent ends the connections to a guest that is in trouble.
    async fn trouble(&mut self) -> anyhow::Error {
        std::future::pending().await
    }

    async fn after_break(
        &mut self,
        broke: EnvdError,
        place: Option<execution::Place>,
    ) -> Result<EnvdClient, ExecutionError> {
        if is_detached(&broke) {
            tracing::info!(error = %broke, "the command's output was not read for long");
        }
        let asked =
            if self.is_bound { self.link.agent().get(&self.id).await } else { self.link.settled(&self.id).await };
        match asked {
            Ok(view) if view.phase == Phase::Running => Ok(guest_link::guest(self.link.agent_arc(), &view)),
            Ok(view) => Err(became(&self.id, &view, place).into()),
            Err(error) if self.is_bound && error.code == Code::Unavailable => {
                Err(anyhow!("the agent has ended, and the sandbox with it").into())
            }
            Err(error) => Err(lost(&self.id, error, place, self.link.place.server().is_some()).into()),
        }
    }
}

/// What became of a sandbox that runs no more.
fn became(id: &SandboxId, view: &View, place: Option<execution::Place>) -> anyhow::Error {
    let why = view.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let back = how_back(id, place);
    match view.phase {
        Phase::Paused => {
            anyhow!(
                "the sandbox was paused{why}; the command goes on when it is resumed: `wrenn sandbox resume {id}`{back}"
            )
        }
        Phase::Stopped => {
            anyhow!("the sandbox stopped{why}, and the command with it; `wrenn sandbox resume {id}` boots it again")
        }
        Phase::NeedsRepair => anyhow!("the sandbox needs a repair{why}: `wrenn repair {id}`"),
        Phase::Destroying => anyhow!("the sandbox was destroyed{why}"),
        Phase::Creating | Phase::Running | Phase::Pausing | Phase::Resuming | Phase::Capturing | Phase::RollingBack => {
            anyhow!("the sandbox is {}{why} for a long time; see `wrenn sandbox get {id}`", view.phase)
        }
    }
}

fn lost(id: &SandboxId, error: AgentError, place: Option<execution::Place>, through_server: bool) -> anyhow::Error {
    match error.code {
        Code::NotFound | Code::Destroyed => anyhow!("the sandbox was destroyed"),
        Code::Unavailable if through_server => {
            let back = how_back(id, place);
            anyhow!("the server cannot be reached any more; the sandbox may go on: wait until it can{back}")
        }
        Code::Unavailable => {
            let back = how_back(id, place);
            anyhow!("the agent is gone and has not come back; the sandbox may go on: start `wrenn agent`{back}")
        }
        Code::Denied | Code::Invalid | Code::Exhausted | Code::Failed | Code::NeedsRepair => {
            anyhow!(error).context("the connection to the sandbox broke, and the agent does not say why")
        }
    }
}

fn how_back(id: &SandboxId, place: Option<execution::Place>) -> String {
    let back = |execution::Place { pid, offset }| format!(", then `wrenn sandbox attach {id} {pid} --offset {offset}`");
    place.map(back).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::show::tests::view;
    use super::*;

    const PLACE: Option<execution::Place> = Some(execution::Place { pid: 77, offset: 123 });

    #[test]
    fn what_became_of_a_sandbox_comes_with_the_way_back() {
        let words = |phase, reason: Option<&str>, place| {
            let view = View { phase, reason: reason.map(str::to_owned), ..view() };
            became(&view.id, &view, place).to_string()
        };
        let id = view().id;
        assert_eq!(
            words(Phase::Paused, None, PLACE),
            format!(
                "the sandbox was paused; the command goes on when it is resumed: `wrenn sandbox resume {id}`, then \
                 `wrenn sandbox attach {id} 77 --offset 123`"
            )
        );
        let stopped = words(Phase::Stopped, Some("the VMM was killed"), PLACE);
        assert!(stopped.starts_with("the sandbox stopped (the VMM was killed), and the command with it"), "{stopped}");
        assert!(words(Phase::NeedsRepair, None, None).contains(&format!("`wrenn repair {id}`")));
    }

    #[test]
    fn a_lost_agent_is_told_from_a_lost_sandbox() {
        let words = |code| lost(&view().id, AgentError { code, message: "why".to_owned() }, PLACE, false).to_string();
        assert_eq!(words(Code::NotFound), "the sandbox was destroyed");
        assert!(words(Code::Unavailable).contains("start `wrenn agent`, then `wrenn sandbox attach"));
        let gone = AgentError { code: Code::Unavailable, message: "why".to_owned() };
        let words = lost(&view().id, gone, PLACE, true).to_string();
        assert!(words.contains("wait until it can, then `wrenn sandbox attach"), "{words}");
    }
}
