//! `wrenn agent`: the agent of one instance, until a signal ends it.
//!
//! ```text
//!   open the host ─► start the manager (takes over what is there) ─► listen ─► serve ── signal ─► stop listening
//!                                                                                                 │ the manager ends:
//!                                                                                                 ▼ VMs left, paused, destroyed
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wrenn_agent::manager::{Manager, Shutdown, Sizes};
use wrenn_agent::rpc::{self, ServerTls, TlsIdentity};
use wrenn_engine::names::InstanceTag;
use wrenn_engine::network::Pool;
use wrenn_engine::probe::Wishes;
use wrenn_engine::units::Mib;

use crate::cli::{AgentArgs, LoneAgentArgs, Programs, TlsArgs};
use crate::execution::Signals;
use crate::host;

/// What becomes of the sandboxes when the agent ends.
fn at_end(args: &AgentArgs) -> Shutdown {
    match (args.pause_all, args.destroy_all) {
        (_, true) => Shutdown::DestroyAll,
        (true, false) => Shutdown::PauseAll,
        (false, false) => Shutdown::Leave,
    }
}

/// Is the agent.
pub fn run(dir: &Path, programs: &Programs, args: LoneAgentArgs) -> Result<ExitCode> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(dir, programs, args))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(dir: &Path, programs: &Programs, args: LoneAgentArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    // First of all what a person can get wrong.
    let entrance = Entrance::open(args.tls).await?;
    let agent = Agent::start(dir, programs, args.agent).await?;
    eprintln!("wrenn: the agent of {} listens on {}", dir.display(), agent.socket.display());
    let served = entrance.map(|entrance| entrance.serve(&agent.manager));
    let signal = signals.next().await;
    tracing::info!(signal, "the agent ends");
    let finishing = served.map(Served::end);
    let finished = agent.finish().await;
    if let Some(serving) = finishing {
        serving.await.context("the agent's server for other hosts made a mistake")?;
    }
    finished
}

/// Where clients on other hosts will come in.
struct Entrance {
    listener: TcpListener,
    at: SocketAddr,
    tls: ServerTls,
}

impl Entrance {
    /// Nobody is served yet; `None` when it is not asked for.
    async fn open(args: TlsArgs) -> Result<Option<Self>> {
        let Some((listen, files)) = args.wanted() else { return Ok(None) };
        let identity = TlsIdentity::read(&files)?;
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot listen on {listen}; is another program there? --listen-tls takes another address")
        })?;
        let at = listener.local_addr().context("the listener has no address")?;
        Ok(Some(Self { listener, at, tls: ServerTls::from(&identity) }))
    }

    fn serve(self, manager: &Manager) -> Served {
        eprintln!("wrenn: it listens on {} as well, for those with a certificate", self.at);
        let (end, ended) = oneshot::channel::<()>();
        let manager = Arc::new(manager.clone());
        // A sender that is gone is an end as well.
        let serving = tokio::spawn(rpc::serve_tls(manager, self.listener, self.tls, async { drop(ended.await) }));
        Served { end, serving }
    }
}

/// Clients on other hosts are served.
struct Served {
    end: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Served {
    /// Nobody gets in any more. The rest is over soon after the manager is.
    fn end(self) -> JoinHandle<()> {
        drop(self.end);
        self.serving
    }
}

/// An agent that serves its socket.
pub struct Agent {
    /// It.
    pub manager: Manager,
    /// Of its instance.
    pub tag: InstanceTag,
    /// Where it listens.
    pub socket: PathBuf,
    at_end: Shutdown,
    end: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Agent {
    /// Takes over what is there, and listens.
    pub async fn start(dir: &Path, programs: &Programs, mut args: AgentArgs) -> Result<Self> {
        let wishes = Wishes { despite_shortage: true, ..args.drivers.wishes() };
        let mut host = host::open(dir, programs, &wishes).await?;
        host.faults = args.fault.take().unwrap_or_default();
        host.pool = args.pool.filter(|size| *size > 0).map(|size| Pool::new(host.network.clone(), size.into()));
        let (tag, socket) = (host.instance.tag(), host.instance.agent_socket());
        let sizes = Sizes { memory: args.memory.map(Mib), standby: args.standby.into() };
        let manager = Manager::start(Arc::new(host), sizes).await?;
        let listener = rpc::listen(&socket).await?;
        let (end, ended) = oneshot::channel::<()>();
        // A sender that is gone is an end as well.
        let serving = tokio::spawn(rpc::serve(Arc::new(manager.clone()), listener, async { drop(ended.await) }));
        Ok(Self { manager, tag, socket, at_end: at_end(&args), end, serving })
    }

    /// Ends it.
    pub async fn finish(self) -> Result<()> {
        drop(self.end);
        // First of all nobody gets in any more; calls under way end because the manager does.
        let stopped = self.manager.shutdown(self.at_end).await;
        self.serving.await.context("the agent's server made a mistake")?;
        Ok(stopped?)
    }
}

/// Each tunnel takes two descriptors, and each sandbox some; the usual soft limit of 1024 is for programs that use select().
pub fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vms_are_left_running_unless_it_is_said_otherwise() {
        let at_end = |pause_all, destroy_all| at_end(&AgentArgs { pause_all, destroy_all, ..AgentArgs::default() });
        assert_eq!(at_end(false, false), Shutdown::Leave);
        assert_eq!(at_end(true, false), Shutdown::PauseAll);
        assert_eq!(at_end(false, true), Shutdown::DestroyAll);
    }
}
