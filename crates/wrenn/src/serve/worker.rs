//! The server's own process: becomes its user, opens the database, serves. And what else needs the database as that user.

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};
use wrenn_agent::host_agent::HostAgent;
use wrenn_agent::instance::Instance;
use wrenn_agent::rpc::Remote;
use wrenn_client::types::{NewKey, NewKeyRequest, Scope};
use wrenn_server::config::Config;
use wrenn_server::db::{Database, DatabaseUrl};
use wrenn_server::{app, http, new_key, route};
use wrenn_sys::fds::Inherited;
use wrenn_sys::spawn::ExitStatus;

use super::far::Far;
use super::room::{self, Room};
use super::{FAR_FD, LISTENER_FD, worker_process};
use crate::agent_cmd::raise_descriptor_limit;
use crate::cli::{ServiceArgs, WorkerArgs};
use crate::execution::Signals;

/// How long a database that is not there is waited for, and how often it is tried: it may be started anew just now. After that the
/// server ends, and its parent, which does not take that for a failed start, starts it again.
const DATABASE_AWAITED: Duration = Duration::from_secs(60);
const DATABASE_RETRY: Duration = Duration::from_secs(1);

/// Serves until its parent ends it.
pub fn run(dir: &Path, args: WorkerArgs) -> Result<ExitCode> {
    // Before anything opens something: what is open now was handed over.
    let mut inherited = Inherited::take_all().context("cannot see what the server was handed over")?;
    let listener = inherited.take(LISTENER_FD);
    let far = inherited.take(FAR_FD).map(Far::receive).transpose()?;
    drop(inherited);
    raise_descriptor_limit();
    let instance = Instance::open(dir)?;
    let room = Room::ensure(dir, instance.tag())?;
    let database = room.database(args.server.database.as_deref())?;
    room.enter(Some(args.parent))?;
    drop(instance);
    if let Some(name) = &args.backup {
        return write_backup(&database, name);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build()?;
    let listener = listener.context("the server was started without its listener")?;
    runtime.block_on(serve(args, &database, listener, far))?;
    Ok(ExitCode::SUCCESS)
}

/// Threads that answer requests: a server waits for others most of its time.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

async fn serve(args: WorkerArgs, database: &DatabaseUrl, listener: OwnedFd, far: Option<Far>) -> Result<()> {
    let mut signals = Signals::new()?;
    let listener = listening(listener)?;
    let db = opened(database, &mut signals).await?;
    first_key(&db).await?;
    let ServiceArgs { domain, rate, otlp_endpoint, .. } = args.server;
    let config = Config { domains: domain, rate, traces: otlp_endpoint };
    let agent: Arc<dyn HostAgent> = match far {
        Some(far) => Arc::new(far.agent()?),
        None => Arc::new(Remote::at(&room::agent_socket())),
    };
    let running = app::start(agent, db, config);
    let router = route::router(&running.app);
    // A service manager's log and a person both find it here.
    eprintln!("wrenn: serving on http://{} (pages: /test, /docs)", args.listen);
    http::serve(listener, router, async {
        let signal = signals.next().await;
        tracing::info!(signal, "the server ends");
    })
    .await;
    running.finish().await;
    Ok(())
}

/// Opens the database; one that is not there just now is waited for. Whoever has named a wrong one reads so.
async fn opened(url: &DatabaseUrl, signals: &mut Signals) -> Result<Database> {
    let begun = Instant::now();
    loop {
        let error = match Database::open(url).await {
            Err(error) if error.is_unavailable() && begun.elapsed() < DATABASE_AWAITED => error,
            opened => return Ok(opened?),
        };
        tracing::warn!(error = &error as &dyn std::error::Error, "the database is waited for");
        tokio::select! {
            () = sleep(DATABASE_RETRY) => {}
            signal = signals.next() => bail!("{signal} came while the database was waited for"),
        }
    }
}

fn listening(fd: OwnedFd) -> Result<tokio::net::TcpListener> {
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(true).context("cannot use the listener")?;
    tokio::net::TcpListener::from_std(listener).context("cannot use the listener")
}

/// A database without keys is one that nobody can use: it gets one, which is told this once.
async fn first_key(db: &Database) -> Result<()> {
    if db.has_keys().await? {
        return Ok(());
    }
    let wanted = NewKeyRequest { name: "first".to_owned(), scope: Scope::Admin, ..NewKeyRequest::default() };
    let made = make_key(db, wanted).await?;
    eprintln!("wrenn: the first key, told this once: {}", made.secret);
    Ok(())
}

/// Makes a key in the database itself.
pub async fn make_key(db: &Database, wanted: NewKeyRequest) -> Result<NewKey> {
    new_key::make(db, wanted).await.map_err(|error| anyhow!(error.body.message))
}

/// Does something with the database of the instance in `dir`, as the server's user; this process is nobody else any more.
pub fn local<T>(dir: &Path, url: Option<&str>, work: impl AsyncFnOnce(&Database) -> Result<T>) -> Result<T> {
    let tag = Instance::open(dir)?.tag();
    let room = Room::ensure(dir, tag)?;
    let database = room.database(url)?;
    room.enter(None)?;
    current_thread()?.block_on(async {
        let db = Database::open(&database).await?;
        let done = work(&db).await;
        db.close().await;
        done
    })
}

fn current_thread() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// `wrenn db backup`: the server's user writes the copy into its own folder, and root takes it from there.
pub fn backup(dir: &Path, to: &Path, url: Option<&str>) -> Result<ExitCode> {
    if fs::symlink_metadata(to).is_ok() {
        bail!("{} is there already; a backup replaces nothing", to.display());
    }
    let instance = Instance::open(dir)?;
    let room = Room::ensure(dir, instance.tag())?;
    let name = format!("backup-{}.db", std::process::id());
    let error = std::io::stderr();
    let spawn = worker_process(dir, None, url).args(["--listen", "127.0.0.1:0", "--backup", &name]);
    let spawn = spawn.fd(error.as_fd(), 2);
    let status = spawn.start().context("cannot start the server's process")?.wait()?;
    if status != ExitStatus::Exited(0) {
        bail!("no backup was written; see above");
    }
    let written = room.path(&name);
    room::take_over(&written)?;
    move_file(&written, to).with_context(|| format!("cannot write {}", to.display()))?;
    println!("{}", to.display());
    Ok(ExitCode::SUCCESS)
}

/// Moves a file, also to another file system; durable when it is done, and nothing is left where it was.
fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    if fs::hard_link(from, to).is_err() {
        let mut source = fs::File::open(from)?;
        let mut target = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        std::io::copy(&mut source, &mut target)?;
        target.sync_all()?;
    }
    fs::remove_file(from)
}

fn write_backup(database: &DatabaseUrl, name: &str) -> Result<ExitCode> {
    current_thread()?.block_on(async {
        let db = Database::open(database).await?;
        let written = db.backup(&room::inside(name)).await;
        db.close().await;
        written
    })?;
    Ok(ExitCode::SUCCESS)
}
