//! `wrenn forkcheck`: do forks have anything in common that they must not?
//!
//! ```text
//!   create a sandbox ─► put a witness and a hook into it ─► fork it N times ─► ask each, and the parent ─► verdict
//!                         │                                    └ failed forks are a check that failed
//!                         └ the witness runs on in every fork, and tells what it saw        all of it is destroyed
//! ```
//!
//! The sandbox is bound to this process, where that is possible, and all have a time limit: they go also when this is killed. What is asked is
//! in [`guest`], what is made of the answers in [`verdict`], which is pure.

mod clock;
mod guest;
mod verdict;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use wrenn_agent::envd_client::Command;
use wrenn_agent::guest_link;
use wrenn_agent::host_agent::{
    AgentError, CreateRequest, Created, ForkRequest, Fresh, HostAgent, Source, View, Wishes,
};
use wrenn_agent::sandbox::Shape;
use wrenn_engine::units::Mib;

use crate::cli::ForkcheckArgs;
use crate::execution::{Execution, OnGap, OnSignal, Outcome, Signals, Sink, Source as Stdin};
use crate::place::Place;
use crate::sandbox::{Link, Through, block_on};

use guest::Facts;
use verdict::{Answer, Verdict};

/// How long a fork lives at most when nobody is left to destroy it: far longer than it takes to ask a thousand.
const LIFE: Duration = Duration::from_secs(60 * 60);
/// How long a guest may take over one script.
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);
const EXIT_NOT_PASSED: u8 = 1;

/// Does the whole check.
pub fn run(place: &Place, args: ForkcheckArgs) -> Result<ExitCode> {
    block_on(async {
        let mut signals = Signals::new()?;
        let link = Link::require(place).await?;
        let is_bound = place.server().is_none();
        let agent = link.agent_arc();
        let Created { changed, bond } = tokio::select! {
            created = agent.create(parent_request(&args, is_bound)) => created?,
            // Hanging up is all it takes; at a server its time limit ends it.
            signal = signals.next() => return Ok(interrupted(signal)),
        };
        let parent = changed.view;
        let through = Through { link, id: parent.id.clone(), is_bound };
        let mut check = Check { agent, through, is_bound, signals, sandboxes: vec![parent] };
        let judged = check.judge(&args).await;
        let destroyed = check.destroy().await;
        drop(bond);
        let verdict = match judged {
            Ok(verdict) => verdict,
            Err(Stop::Signal(signal)) => return destroyed.map(|()| interrupted(signal)),
            Err(Stop::Failed(error)) => return Err(error),
        };
        if args.json {
            println!("{}", verdict.json());
        } else {
            print!("{verdict}");
        }
        destroyed?;
        Ok(if verdict.passed() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NOT_PASSED) })
    })
}

fn interrupted(signal: i32) -> ExitCode {
    ExitCode::from(Outcome::Interrupted(signal).exit_code())
}

fn parent_request(args: &ForkcheckArgs, bound: bool) -> CreateRequest {
    CreateRequest {
        source: Source::Template(Fresh {
            template: args.template.clone(),
            kernel: None,
            shape: Shape { vcpus: 1, memory: Mib(args.memory), disk: None },
            cold: false,
        }),
        wishes: Wishes { timeout: Some(LIFE), bound, ..Wishes::bound(args.boot_timeout) },
    }
}

/// Why there is no verdict.
enum Stop {
    /// Somebody wants us to end.
    Signal(i32),
    /// Wrenn failed.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A check that is under way.
struct Check {
    agent: Arc<dyn HostAgent>,
    through: Through,
    /// Whether the parent goes with this process.
    is_bound: bool,
    signals: Signals,
    /// What was made so far: the parent, then its forks.
    sandboxes: Vec<View>,
}

impl Check {
    async fn judge(&mut self, args: &ForkcheckArgs) -> Result<Verdict, Stop> {
        let parent = self.sandboxes[0].clone();
        self.sh(&parent, guest::PREPARE).await?;
        self.start_witness(&parent).await?;
        self.sh(&parent, guest::AWAIT_WITNESS).await?;
        let failures = self.fork(&parent, args).await?;
        let mut answers = Vec::new();
        for view in self.sandboxes.clone() {
            answers.push(self.ask(&view).await?);
        }
        let mut answers = answers.into_iter();
        let parents = answers.next().expect("the parent is the first of the sandboxes");
        Ok(Verdict::of(&parent, parents, answers.collect(), &failures))
    }

    /// What runs before the fork, and goes on in each.
    async fn start_witness(&mut self, parent: &View) -> Result<(), Stop> {
        let envd = guest_link::guest(Arc::clone(&self.agent), parent);
        let witness = envd.start(command(guest::WITNESS, None)).await.context("cannot start the witness")?;
        tracing::debug!(pid = witness.pid(), "the witness runs");
        Ok(())
    }

    /// Makes the forks; answers why some of them could not be made. Not cut off by a signal: who was made must be known.
    async fn fork(&mut self, parent: &View, args: &ForkcheckArgs) -> Result<Vec<AgentError>, Stop> {
        let request = ForkRequest {
            count: args.count,
            ready_limit: args.boot_timeout,
            timeout: Some(LIFE),
            metadata: [("forkcheck".to_owned(), parent.id.to_string())].into(),
            attributes: BTreeMap::new(),
        };
        let forked = self.agent.fork(&parent.id, request).await?;
        let (made, failed): (Vec<_>, Vec<_>) = forked.children.into_iter().partition(Result::is_ok);
        self.sandboxes.extend(made.into_iter().flatten().map(|changed| changed.view));
        Ok(failed.into_iter().filter_map(Result::err).collect())
    }

    /// What one sandbox tells. One that cannot be asked has told nothing: that is for the verdict.
    async fn ask(&mut self, view: &View) -> Result<Answer, Stop> {
        let told = match self.sh(view, guest::TELL).await {
            Ok(told) => Ok(Facts::parse(&told)),
            Err(Stop::Failed(error)) => Err(crate::causes(&error)),
            Err(Stop::Signal(signal)) => return Err(Stop::Signal(signal)),
        };
        let envd = guest_link::guest(Arc::clone(&self.agent), view);
        let clock = tokio::select! {
            clock = clock::measure(&envd) => clock.map_err(|error| crate::causes(&error)),
            signal = self.signals.next() => return Err(Stop::Signal(signal)),
        };
        Ok(Answer { id: view.id.clone(), token: view.access_token.clone(), told, clock })
    }

    /// Runs a script in a sandbox, as `wrenn sandbox exec` does; what it printed.
    async fn sh(&mut self, view: &View, script: &str) -> Result<String, Stop> {
        self.through.is_bound = self.is_bound && view.id == self.sandboxes[0].id;
        self.through.id = view.id.clone();
        let envd = guest_link::guest(Arc::clone(&self.agent), view);
        let mut sink = Sink::captured();
        let execution = Execution {
            keeper: &mut self.through,
            signals: &mut self.signals,
            sink: &mut sink,
            source: Stdin::Nothing,
            on_signal: OnSignal::End,
            on_gap: OnGap::Fail,
        };
        let ran = execution.run(&envd, command(script, Some(SCRIPT_LIMIT))).await?;
        if let Outcome::Interrupted(signal) = ran.outcome {
            return Err(Stop::Signal(signal));
        }
        let (stdout, stderr) = match &sink {
            Sink::Captured(captured) => (captured.stdout.text(), captured.stderr.text()),
            Sink::Live(_) => (String::new(), String::new()),
        };
        match ran.outcome.exit_code() {
            0 => Ok(stdout),
            code => Err(Stop::Failed(said(view, code, &stderr))),
        }
    }

    /// Destroys all that was made. Each is tried, whatever becomes of another.
    async fn destroy(&self) -> Result<()> {
        let mut left = Vec::new();
        for view in self.sandboxes.iter().rev() {
            match self.agent.destroy(&view.id).await {
                Ok(_destroyed) => {}
                Err(error) if error.says_gone() => {}
                Err(error) => left.push(format!("{}: {error}", view.id)),
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        bail!("not all sandboxes of the check could be destroyed: {}", left.join("; "))
    }
}

fn command(script: &str, timeout: Option<Duration>) -> Command {
    Command {
        program: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        user: Some("root".to_owned()),
        timeout,
        ..Command::default()
    }
}

fn said(view: &View, code: u8, stderr: &str) -> anyhow::Error {
    let stderr = crate::words::printable_line(stderr.trim());
    anyhow::anyhow!("a script of the check in {} exited with {code}: {stderr}", view.id)
}
