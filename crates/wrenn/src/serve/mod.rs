//! `wrenn serve`: a host as a service.
//!
//! ```text
//!   wrenn serve (root): the agent ── socket of the server's own ──┐
//!     │ starts, and starts again                                  │
//!     └─► wrenn server (a user of its own): REST, proxy, pages ◄──┘── database
//! ```
//!
//! The server holds no sandbox: it is started again when it ends, and nobody loses anything but a connection. It ends with its
//! parent, however that ends; sandboxes go on, as they do under an agent.
//!
//! With `--agent` the agent is on another host ([`far`]): then there is none here, and the server's process goes there over TLS.

mod far;
mod room;
mod worker;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use wrenn_agent::instance::Instance;
use wrenn_agent::rpc;
use wrenn_sys::spawn::{Child, ExitStatus, Spawn};

use self::far::Far;
use self::room::Room;
use crate::agent_cmd::{Agent, raise_descriptor_limit};
use crate::cli::{Programs, ServeArgs, ServiceArgs};
use crate::execution::Signals;

pub use worker::{backup, local, make_key, run as run_worker};

/// Descriptor of the listener in the server's process.
const LISTENER_FD: i32 = 3;
/// Descriptor of who the server is to an agent on another host.
const FAR_FD: i32 = 4;
/// A server that ends sooner after its start than this did not get anywhere.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// How often that may happen one after the other.
const FAILURES_MAX: u32 = 5;
/// How long an address that somebody else listens on is tried again, and how often.
const LISTEN_LIMIT: Duration = Duration::from_secs(3);
const LISTEN_RETRY: Duration = Duration::from_millis(50);
/// How long a server has to end when it is asked to: it finishes requests.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Serves until a signal ends it.
pub fn run(dir: &Path, programs: &Programs, args: ServeArgs) -> Result<ExitCode> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(dir, programs, args))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(dir: &Path, programs: &Programs, args: ServeArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    // First of all what a person can get wrong.
    room::check_database(args.server.database.as_deref())?;
    let far = args.far.wanted().map(|(address, files)| Far::read(&address, &files)).transpose()?;
    let listener = listen(args.listen).await.with_context(|| {
        format!("cannot listen on {}; is another program there? --listen takes another address", args.listen)
    })?;
    let listen = listener.local_addr().context("the listener has no address")?;
    let server = Server { dir, args: &args.server, listener, listen, far };
    match &server.far {
        Some(far) => {
            let room = Room::ensure(dir, Instance::open(dir)?.tag())?;
            let _one_serves = room.lock()?;
            eprintln!("wrenn: the agent is the one at {}; there is none here", far.address());
            server.keep(&mut signals).await
        }
        None => beside_an_agent(server, Agent::start(dir, programs, args.agent).await?, &mut signals).await,
    }
}

/// Serves the agent of this process, and ends it.
async fn beside_an_agent(server: Server<'_>, agent: Agent, signals: &mut Signals) -> Result<()> {
    let dir = server.dir;
    let room = Room::ensure(dir, agent.tag)?;
    let _one_serves = room.lock()?;
    let socket = rpc::listen_for_user(&room.agent_socket(), room.uid).await?;
    let (end, ended) = oneshot::channel::<()>();
    let manager = Arc::new(agent.manager.clone());
    // A sender that is gone is an end as well.
    let serving = tokio::spawn(rpc::serve_for_user(manager, socket, async { drop(ended.await) }, room.uid));
    let outcome = server.keep(signals).await;
    drop(end);
    let finished = agent.finish().await;
    serving.await.context("the agent's server made a mistake")?;
    outcome.and(finished)
}

/// Listens. The server of a service that was killed has its listener for a moment longer: that is waited for.
async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < LISTEN_LIMIT => {
                sleep(LISTEN_RETRY).await;
            }
            bound => return bound,
        }
    }
}

/// The server's process, as it is started.
struct Server<'a> {
    dir: &'a Path,
    args: &'a ServiceArgs,
    listener: TcpListener,
    listen: SocketAddr,
    /// The agent, if it is on another host.
    far: Option<Far>,
}

impl Server<'_> {
    /// Has a server run until a signal comes, or until none gets anywhere.
    async fn keep(&self, signals: &mut Signals) -> Result<()> {
        let mut failures = 0;
        loop {
            let (began, child) = (Instant::now(), Arc::new(self.start()?));
            let mut ended = wait(&child);
            tokio::select! {
                status = &mut ended => {
                    let status = status.context("cannot wait for the server")??;
                    failures = if began.elapsed() > SETTLED_AFTER { 1 } else { failures + 1 };
                    if failures >= FAILURES_MAX {
                        bail!("the server has ended {failures} times right after its start, last with {status:?}; see above");
                    }
                    tracing::error!(?status, "the server has ended; it is started again, sandboxes go on");
                    sleep(Duration::from_millis(100) * failures).await;
                }
                signal = signals.next() => {
                    tracing::info!(signal, "the server ends");
                    return end(&child, ended).await;
                }
            }
        }
    }

    fn start(&self) -> Result<Child> {
        let verbose = match tracing::level_filters::LevelFilter::current() {
            level if level >= tracing::Level::DEBUG => Some("-vv"),
            level if level >= tracing::Level::INFO => Some("-v"),
            _quiet => None,
        };
        let error = std::io::stderr();
        let spawn = worker_process(self.dir, verbose, self.args.database.as_deref());
        let spawn = spawn.arg("--listen").arg(self.listen.to_string());
        let spawn = spawn.arg("--rate").arg(self.args.rate.to_string()).arg("--domain").arg(self.args.domain.join(","));
        let traces = self.args.otlp_endpoint.iter().flat_map(|to| ["--otlp-endpoint".to_owned(), to.to_string()]);
        let spawn = spawn.args(traces).fd(error.as_fd(), 2).fd(self.listener.as_fd(), LISTENER_FD);
        let handed = self.far.as_ref().map(Far::hand_over).transpose()?;
        let spawn = handed.iter().fold(spawn, |spawn, handed| spawn.fd(handed.as_fd(), FAR_FD));
        spawn.start().context("cannot start the server")
    }
}

/// A process of the server's user, which ends with this one; what it does is still to be said.
fn worker_process<'fd>(dir: &Path, verbose: Option<&str>, database: Option<&str>) -> Spawn<'fd> {
    let spawn = Spawn::new("/proc/self/exe").arg0("wrenn").arg("--dir").arg(dir).args(verbose);
    let spawn = spawn.args(["server", "--parent"]).arg(std::process::id().to_string()).umask(0o077);
    match database {
        // Not as an argument: everybody on the host may read those.
        Some(database) => spawn.env("WRENN_DATABASE", database),
        None => spawn,
    }
}

type Ended = tokio::task::JoinHandle<std::io::Result<ExitStatus>>;

/// Reaps a process when it ends.
fn wait(child: &Arc<Child>) -> Ended {
    let child = Arc::clone(child);
    tokio::task::spawn_blocking(move || child.wait())
}

/// Ends a server: asked first, killed when it does not.
async fn end(child: &Child, mut ended: Ended) -> Result<()> {
    child.signal(Signal::TERM).context("cannot end the server")?;
    if timeout(END_LIMIT, &mut ended).await.is_err() {
        tracing::warn!("the server does not end; it is killed");
        child.signal(Signal::KILL).context("cannot end the server")?;
        ended.await.context("cannot wait for the server")??;
    }
    Ok(())
}
