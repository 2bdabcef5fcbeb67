//! Measurements: a table for people, JSON for comparisons.
//!
//! Machines are shared and noisy, so each round takes every measurement once, one after the other, and what is compared
//! is compared within its round: a ratio is the median of the rounds' ratios, never a ratio of two runs.
//!
//! What is measured is in a program of its own, `benches/microvm`, because it needs the engine and xtask does not; it is
//! built and prepared for here, and says its values line by line ([`record`]).

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::build::Profile;
use crate::process::{Job, remember};
use crate::ui::Step;
use crate::{build, cargo, demo, test, testbed};

mod measures;
mod record;
mod report;
mod stats;

use record::Record;
use report::{Host, Report};
use stats::Series;

/// Rounds beyond this tell nothing new.
const ROUNDS_MAX: u32 = 1000;
/// What a round takes at most, on a machine that is busy with other things.
const ROUND_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// The measuring program, as cargo knows it.
const PROGRAM: &str = "microvm";
/// Where the build leaves the static guest and shim, from the workspace's root.
const GUEST_DIR: &str = "target/guest/x86_64-unknown-linux-gnu/guest";

/// What to measure and how often.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How often each measurement is taken
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Only these parts: boots, a run under load, a running sandbox, disks, pause and resume, warm starts and forks,
    /// memory on demand, a service, a long list, and, only when asked for, many resumes in a row, many boots at once, an agent
    /// with many sandboxes and a service that finds many
    #[arg(long)]
    only: Vec<Part>,
    /// Measure in an emulated host, which has KVM, device-mapper and, where there is one, this host's Firecracker
    #[arg(long)]
    testbed: bool,
    /// Data folder [default: target/test-data]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the JSON goes [default: target/bench.json]
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A part of a round.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Part {
    Cold,
    Load,
    Warm,
    Disk,
    Life,
    Branch,
    OnDemand,
    Serve,
    List,
    Depth,
    Crowd,
    CrowdLife,
    ServeCrowd,
}

/// The side of a number on which a value should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Target {
    /// Whether `value` meets it.
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// Measures and reports. A missed target is in the report; only what could not be measured is an error.
pub fn run(args: &Args) -> Result<()> {
    ensure!((1..=ROUNDS_MAX).contains(&args.rounds), "--rounds takes 1 to {ROUNDS_MAX}");
    ensure!(rustix::process::geteuid().is_root(), "sandboxes need root: run `cargo xtask bench` as root");
    let wrenn = build::run(Profile::Release)?;
    // Programs are started in `/`.
    let data = args.data.clone().unwrap_or_else(|| cargo::root().join("target/test-data"));
    let data = std::path::absolute(data).context("cannot tell where the data folder is")?;
    demo::template_job(&wrenn, "minimal")?.env("WRENN_DIR", &data).show()?;
    let program = build_program()?;
    if args.testbed {
        let job = measuring(&program, &wrenn, &data, args)?;
        return conclude(&measure(&testbed::bench(&job, &data)?, args.rounds)?, args);
    }
    // Measured where tests run: sandboxes make networks, and this host's own is not to be touched.
    test::enter_isolation()?;
    let words = measuring(&program, &wrenn, &data, args)?;
    let job = Job::new(words[0].clone()).args(&words[1..]).within(ROUND_DEADLINE * args.rounds);
    conclude(&measure(&job, args.rounds)?, args)
}

/// The table for people, the JSON for comparisons.
fn conclude(report: &Report, args: &Args) -> Result<()> {
    print!("{}", report.table());
    let path = args.json.clone().unwrap_or_else(|| cargo::target_dir().join("bench.json"));
    let json = serde_json::to_string_pretty(report).context("cannot write the report as JSON")?;
    fs::write(&path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("JSON: {}", path.display());
    ensure!(report.failures() == 0, "{} measurements could not be taken; the table says why", report.failures());
    Ok(())
}

fn build_program() -> Result<PathBuf> {
    let step = Step::start("building the measuring program");
    let args = ["bench", "--locked", "--package", "xtask", "--bench", PROGRAM, "--no-run"];
    let messages = cargo::job(args).args(["--message-format", "json-render-diagnostics"]).capture()?;
    let path = executable(&messages).context("cargo built the measuring program but does not say where")?;
    step.done("built");
    Ok(path)
}

/// Where cargo says that it put the measuring program.
fn executable(messages: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        target: Option<Built>,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Built {
        name: String,
    }
    // Cargo's messages are of many kinds; those that are not of this shape are not the one.
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages
        .filter(|message| message.target.as_ref().is_some_and(|built| built.name == PROGRAM))
        .find_map(|message| message.executable)
}

/// The measuring program and its arguments.
fn measuring(program: &Path, wrenn: &Path, data: &Path, args: &Args) -> Result<Vec<String>> {
    let guest_dir = cargo::root().join(GUEST_DIR);
    let paths = [program, Path::new("--wrenn"), wrenn, Path::new("--guest-dir"), &guest_dir, Path::new("--data"), data];
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path of the measurement is not UTF-8");
    let mut words: Vec<String> = paths.into_iter().map(text).collect::<Result<_>>()?;
    words.extend(["--rounds".to_owned(), args.rounds.to_string()]);
    for part in &args.only {
        let name = match part {
            Part::Cold => "cold",
            Part::Load => "load",
            Part::Warm => "warm",
            Part::Disk => "disk",
            Part::Life => "life",
            Part::Branch => "branch",
            Part::OnDemand => "on-demand",
            Part::Serve => "serve",
            Part::List => "list",
            Part::Depth => "depth",
            Part::Crowd => "crowd",
            Part::CrowdLife => "crowd-life",
            Part::ServeCrowd => "serve-crowd",
        };
        words.extend(["--only", name].map(str::to_owned));
    }
    Ok(words)
}

fn measure(job: &Job, rounds: u32) -> Result<Report> {
    let step = Step::start(format!("measuring, {rounds} rounds"));
    let mut host = Host::this();
    let mut series: Vec<Series> = Vec::new();
    let (mut failures, mut said) = (Vec::new(), VecDeque::new());
    let status = job.lines(|line| match serde_json::from_str(line) {
        Ok(Record::Vmm(vmm)) => host.vmm = vmm,
        Ok(Record::Doing(what)) => step.tick(&what),
        Ok(Record::Value { round, name, unit, value }) => stats::add(&mut series, name, unit, round, value),
        Ok(Record::Failed { round, part, why }) => failures.push(format!("{part}, round {round}: {why}")),
        Err(_other_words) => {
            step.note(line);
            remember(&mut said, line);
        }
    })?;
    if failures.is_empty() {
        job.demand_success(status, &said)?;
    }
    if series.is_empty() && failures.is_empty() {
        bail!("the measuring program said nothing");
    }
    host.measured();
    step.done("measured");
    Ok(Report::new(host, &series, measures::RATIOS, failures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_program_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"rustix"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"microvm"},"executable":"/t/microvm-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/microvm-1")));
        assert_eq!(executable("not JSON"), None);
    }
}
