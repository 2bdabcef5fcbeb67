//! `wrenn run`: the whole system in one command. Create, run with live output, exit with the command's code, destroy.
//!
//! ```text
//!            ┌ an agent runs: connect ─► create, bound to us ┐
//!   which? ──┤                                               ├─► execute ─► destroy ─► exit code
//!            └ else: open ─► sweep ─► create ────────────────┘      │
//!                                        └── signal: taken down     └ signal, trouble, broken pipe: the end all the same
//! ```
//!
//! Whatever happens after `create` began, the sandbox is destroyed before this returns; if this is killed, the agent destroys
//! it, or without one the next `wrenn` does. Who asks for particular drivers gets a sandbox of their own, whatever an agent
//! uses.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use wrenn_agent::envd_client::{EnvdClient, EnvdError};
use wrenn_agent::guest_link;
use wrenn_agent::host_agent::{Code, Created, HostAgent, Start, View};
use wrenn_agent::reconcile;
use wrenn_agent::sandbox::{self, CreateError, Owner, Sandbox, Stopwatch, Timing, Trouble};
use wrenn_engine::storage::Backend;
use wrenn_engine::vmm::Description;

use crate::cli::{Programs, RunArgs};
use crate::execution::{
    self, Captured, Execution, ExecutionError, Keeper, OnGap, OnSignal, Outcome, Ran, Signals, Sink, Source, has_any,
    is_detached,
};
use crate::place::Place;
use crate::sandbox::{Link, Through, find};
use crate::words::millis;
use crate::{EXIT_FAILED, host};

/// What there is instead.
const WITH_A_SERVER: &str = "use `wrenn sandbox create`, `wrenn sandbox exec` and `wrenn sandbox rm`";

/// Runs a command in a new sandbox.
pub fn run(place: &Place, programs: &Programs, args: RunArgs) -> anyhow::Result<ExitCode> {
    place.demand_local("`wrenn run`", WITH_A_SERVER)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run_in(place, programs, args));
    // Not waited for: a thread may be in a write to a terminal that nobody reads.
    runtime.shutdown_background();
    outcome.map(ExitCode::from)
}

async fn run_in(place: &Place, programs: &Programs, args: RunArgs) -> anyhow::Result<u8> {
    let signals = Signals::new()?;
    let mut watch = Stopwatch::default();
    if !args.drivers.are_chosen()
        && let Some(link) = find(place).await?
    {
        watch.lap("connect");
        return run_through(link, args, signals, watch).await;
    }
    run_alone(&place.dir, programs, args, signals, watch).await
}

// ---- with an agent ---------------------------------------------------------------------------------------------------

async fn run_through(link: Link, args: RunArgs, mut signals: Signals, watch: Stopwatch) -> anyhow::Result<u8> {
    let mut watch = watch;
    let agent = link.agent_arc();
    let created = tokio::select! {
        created = agent.create(args.wanted.request()?) => created?,
        // Hanging up is all it takes.
        signal = signals.next() => return Ok(Outcome::Interrupted(signal).exit_code()),
    };
    let Created { changed, bond } = created;
    let view = changed.view;
    let mut timings = watch.timings().to_vec();
    timings.extend(changed.timings);
    watch.lap("create");
    let mut report = Report::new(&args, Made::of_view(&view));
    let envd = guest_link::guest(link.agent_arc(), &view);
    let mut keeper = Through { link, id: view.id.clone(), is_bound: true };
    let ran = execute(&mut keeper, &envd, &args, &mut signals, &mut report).await;
    watch.lap("exec");
    timings.extend(watch.timings().last().cloned());
    timings.extend(destroy(&*agent, &view).await);
    drop(bond);
    report.timings = timings;
    report.print(&args, ran)
}

/// Takes the sandbox down. One that cannot be told to go goes with its bond.
async fn destroy(agent: &dyn HostAgent, view: &View) -> Vec<Timing> {
    match agent.destroy(&view.id).await {
        Ok(changed) => changed.timings,
        // It is gone already, or goes with the agent.
        Err(error) if matches!(error.code, Code::NotFound | Code::Destroyed | Code::Unavailable) => Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "cannot destroy the sandbox; the agent does when this is gone");
            Vec::new()
        }
    }
}

// ---- alone -----------------------------------------------------------------------------------------------------------

async fn run_alone(
    dir: &Path,
    programs: &Programs,
    args: RunArgs,
    mut signals: Signals,
    mut watch: Stopwatch,
) -> anyhow::Result<u8> {
    let host = Arc::new(host::open(dir, programs, &args.drivers.wishes()).await?);
    watch.lap("open");
    reconcile::sweep(&host).await.context("cannot remove what an earlier run left behind")?;
    watch.lap("sweep");

    let (cancel, cancelled) = watch::channel(false);
    let creation = sandbox::create(&host, args.wanted.request()?, Owner::Process, cancelled);
    tokio::pin!(creation);
    let mut interrupted = None;
    let created = tokio::select! {
        created = &mut creation => created,
        signal = signals.next() => {
            interrupted = Some(signal);
            cancel.send_replace(true);
            creation.await
        }
    };
    let mut sandbox = match (created, interrupted) {
        (Err(CreateError::Cancelled), Some(signal)) => return Ok(Outcome::Interrupted(signal).exit_code()),
        (created, _) => created?,
    };
    let mut report = Report::new(&args, Made::of_sandbox(&sandbox));
    let ran = match interrupted {
        Some(signal) => Ok(Outcome::Interrupted(signal)),
        None => {
            let envd = sandbox.envd().clone();
            execute(&mut Own(&mut sandbox), &envd, &args, &mut signals, &mut report).await
        }
    };
    sandbox.lap("exec");
    report.timings = watch.timings().iter().cloned().chain(sandbox.destroy().await).collect();
    report.print(&args, ran)
}

/// A sandbox of this process.
struct Own<'a>(&'a mut Sandbox);

impl Keeper for Own<'_> {
    async fn trouble(&mut self) -> anyhow::Error {
        self.0.trouble().await.into()
    }

    async fn after_break(
        &mut self,
        broke: EnvdError,
        _: Option<execution::Place>,
    ) -> Result<EnvdClient, ExecutionError> {
        // A guest that stands still does not answer; that is not its fault.
        if self.0.is_lacking_room() {
            return Err(ExecutionError::Sandbox(Trouble::DiskFull.into()));
        }
        if is_detached(&broke) { Ok(self.0.envd().clone()) } else { Err(broke.into()) }
    }
}

// ---- both ------------------------------------------------------------------------------------------------------------

async fn execute(
    keeper: &mut impl Keeper,
    envd: &EnvdClient,
    args: &RunArgs,
    signals: &mut Signals,
    report: &mut Report,
) -> Result<Outcome, ExecutionError> {
    let execution = Execution {
        keeper,
        signals,
        sink: &mut report.sink,
        source: Source::pipe(),
        on_signal: OnSignal::End,
        on_gap: OnGap::Fail,
    };
    let Ran { outcome, note, .. } = execution.run(envd, args.command.command(has_any())).await?;
    report.note = note;
    Ok(outcome)
}

/// What a run prints beside the command's own output.
struct Report {
    sink: Sink,
    made: Made,
    note: Option<String>,
    timings: Vec<Timing>,
}

impl Report {
    fn new(args: &RunArgs, made: Made) -> Self {
        let sink = if args.json { Sink::captured() } else { Sink::live() };
        Self { sink, made, note: None, timings: Vec::new() }
    }

    fn print(self, args: &RunArgs, ran: Result<Outcome, ExecutionError>) -> anyhow::Result<u8> {
        if args.timing {
            eprint!("{}", timing_table(&self.timings));
        }
        let code = ran.as_ref().map_or(EXIT_FAILED, |outcome| outcome.exit_code());
        if let Sink::Captured(captured) = self.sink {
            let error = ran.err().map(|error| crate::causes(&error.into())).or(self.note);
            println!("{}", json(&self.made, code, error, &captured, &self.timings));
            return Ok(code);
        }
        if let Some(note) = self.note {
            eprintln!("wrenn: {note}");
        }
        ran?;
        Ok(code)
    }
}

/// Which sandbox it was, and what it was made with.
struct Made {
    id: String,
    vmm: Description,
    storage: Backend,
    start: Start,
}

impl Made {
    fn of_sandbox(sandbox: &Sandbox) -> Self {
        Self {
            id: sandbox.id().to_string(),
            vmm: sandbox.vmm().clone(),
            storage: sandbox.storage(),
            start: sandbox.start(),
        }
    }

    fn of_view(view: &View) -> Self {
        Self { id: view.id.to_string(), vmm: view.vmm.clone(), storage: view.storage, start: view.start }
    }
}

fn json(made: &Made, exit_code: u8, error: Option<String>, output: &Captured, timings: &[Timing]) -> serde_json::Value {
    let timings: serde_json::Map<_, _> =
        timings.iter().map(|timing| (timing.phase.clone().into_owned(), millis(timing.took).into())).collect();
    serde_json::json!({
        "id": made.id,
        "vmm": made.vmm,
        "storage": made.storage,
        "start": made.start,
        "exit_code": exit_code,
        "error": error,
        "stdout": output.stdout.json(),
        "stderr": output.stderr.json(),
        "timings_ms": timings,
    })
}

fn timing_table(timings: &[Timing]) -> String {
    let total: Duration = timings.iter().map(|timing| timing.took).sum();
    let row = |name: &str, took: Duration| format!("{name:<12} {:>10.1} ms\n", took.as_secs_f64() * 1e3);
    let rows: String = timings.iter().map(|timing| row(&timing.phase, timing.took)).collect();
    format!("{rows}{}", row("total", total))
}
