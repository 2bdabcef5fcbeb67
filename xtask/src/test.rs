//! Everything that must pass, in one run: set-up, checks, build, all tests, the leak sweep.
//!
//! What needs the network (packages, crates, the kernel of the test templates) happens first. The tests then run in a
//! network namespace with nothing but a loopback, with a `/run/wrenn` of their own: no rule they get wrong can send a
//! packet to a real network, and no instance that runs on this host is ever touched. The process that holds the
//! namespace adopts every orphan the tests leave (it is their subreaper) and looks for leftovers before and after
//! ([`sweep`]). The test runner's own summary comes last.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

use crate::build::Profile;
use crate::process::{self, Job};
use crate::setup::{self, Scope};
use crate::testbed::Selection;
use crate::ui::Step;
use crate::{build, cargo, check, demo, testbed};

mod summary;
mod sweep;

use summary::Summary;
pub use summary::{Outcome, Rung, Tally};
use sweep::World;

/// All tests together, on a small machine.
const TESTS_DEADLINE: Duration = Duration::from_secs(40 * 60);

/// The whole of what they sample, in one place.
pub const SOAK_DEADLINE: Duration = Duration::from_secs(4 * 60 * 60);

/// Where the host keeps sockets, slot leases and namespaces of all instances; tests get their own.
const RUN_DIR: &str = "/run/wrenn";

/// The rung that needs nothing: everything but what is named `testbed_*`, with the drivers that run on any machine.
const BARE: &str = "this machine: qemu+tcg+qcow2";

/// Templates that tests boot.
const TEMPLATES: [&str; 2] = ["minimal", "base"];

/// What to test, and how much around it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only build and run the tests: no set-up, no checks, no emulated host
    #[arg(long)]
    quick: bool,
    /// Further arguments of cargo nextest, such as -E 'test(root_)'
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// How long to soak.
#[derive(Debug, clap::Args)]
pub struct SoakArgs {
    /// Rounds of each fault
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Repeat a run that printed this seed
    #[arg(long)]
    seed: Option<u64>,
    /// In the emulated hosts as well
    #[arg(long)]
    testbed: bool,
    /// Only tests of this nextest filter, of those that sample
    #[arg(long)]
    filter: Option<String>,
}

/// Tests that sample a matrix, and run the whole of it in a soak.
const SAMPLED: &str = "(test(at_any_moment) | test(in_a_soak))";

/// Runs the sampled tests with many rounds; set-up and checks are `test`'s.
pub fn soak(args: &SoakArgs) -> Result<ExitCode> {
    let seed = args.seed.unwrap_or(u64::from(std::process::id()));
    let variables = [("WRENN_TEST_ROUNDS", args.rounds.to_string()), ("WRENN_TEST_SEED", seed.to_string())];
    let filter = match &args.filter {
        None => SAMPLED.to_owned(),
        Some(filter) => format!("{SAMPLED} & ({filter})"),
    };
    let nextest = ["--profile", "soak", "-E", &filter].map(str::to_owned).to_vec();
    let mut tallies = on_this_machine(&Args { quick: true, nextest }, &variables, SOAK_DEADLINE)?;
    if args.testbed {
        tallies.extend(testbed::rungs(&Selection::soak(&filter, &variables))?);
    }
    Ok(conclude(&tallies))
}

/// Runs everything; the exit code says whether it passed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut tallies = on_this_machine(args, &[], TESTS_DEADLINE)?;
    if !args.quick {
        tallies.extend(testbed::rungs(&Selection::default())?);
    }
    Ok(conclude(&tallies))
}

fn on_this_machine(args: &Args, variables: &[(&str, String)], deadline: Duration) -> Result<Vec<Tally>> {
    ensure!(rustix::process::geteuid().is_root(), "the tests boot microVMs and make networks: run them as root");
    if !args.quick {
        setup::run(Scope::Develop)?;
        check::run()?;
    }
    let wrenn = build::run(Profile::Dev)?;
    prepare_images(&wrenn)?;
    let step = Step::start_loud("building the tests");
    nextest(&["--no-run"], args).within(TESTS_DEADLINE).show()?;
    step.done("built");
    Ok(vec![run_isolated(args, variables, deadline)?])
}

/// Where the images of the tests are.
pub fn data_dir() -> PathBuf {
    cargo::target_dir().join("test-data")
}

/// Builds the templates that tests boot, where they are not there yet.
pub fn prepare_images(wrenn: &Path) -> Result<()> {
    TEMPLATES.iter().try_for_each(|template| demo::template_job(wrenn, template)?.env("WRENN_DIR", data_dir()).show())
}

/// Says what ran where, last of all; the exit code says whether everything passed.
pub fn conclude(tallies: &[Tally]) -> ExitCode {
    summary::print(tallies);
    if tallies.iter().all(Tally::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn nextest(extra: &[&str], args: &Args) -> Job {
    cargo::job(["nextest", "run", "--workspace", "--locked"]).args(extra).args(&args.nextest)
}

/// Runs the tests in a copy of ourselves that has left the host's network; the host must be as before.
fn run_isolated(args: &Args, variables: &[(&str, String)], deadline: Duration) -> Result<Tally> {
    eprintln!("==> {BARE}, with no way out to any network");
    let before = sweep::Network::observe()?;
    let scratch = tempfile::Builder::new().prefix("wt").tempdir().context("cannot make a folder for the tests")?;
    let myself = std::env::current_exe().context("cannot find xtask itself")?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let job = Job::new(myself.to_str().context("the path of xtask is not UTF-8")?)
        .args(["isolated", "--", &cargo, "nextest", "run", "--workspace", "--locked", "--offline"])
        .args(&args.nextest)
        .env("TMPDIR", scratch.path())
        .env("WRENN_TEST_IMAGES", data_dir())
        .env("CARGO_TERM_COLOR", if std::io::stderr().is_terminal() { "always" } else { "never" })
        .dir(cargo::root())
        .within(deadline);
    let (began, mut rung) = (Instant::now(), Rung::default());
    let status = variables.iter().fold(job, |job, (name, value)| job.env(name, value)).lines(|line| rung.line(line))?;
    ensure!(
        sweep::Network::observe()? == before,
        "the tests changed this host's own network: its firewall rules, routes, links or forwarding are not as before"
    );
    Ok(rung.finish(BARE, status.success(), began.elapsed()))
}

/// Runs a test program with a network and a `/run/wrenn` of its own, and sweeps for what it leaves behind.
///
/// The program's output is passed on as it comes; its summary is held back until the sweep is done, so that it is last.
pub fn isolated(command: &[String]) -> Result<ExitCode> {
    enter_isolation()?;
    let before = World::observe()?;
    let (program, args) = command.split_first().context("no test program given")?;
    let mut summary = Summary::default();
    // Whoever started this has a deadline that fits.
    let status = Job::new(program).args(args).within(SOAK_DEADLINE).lines(|line| {
        if !summary.holds_back(line) {
            eprintln!("{line}");
        }
    })?;
    let leaks = sweep::wait_until_clean(&before)?;
    for leak in &leaks {
        eprintln!("    LEFT BEHIND {leak}");
    }
    eprintln!("==> leak sweep: {}", if leaks.is_empty() { "nothing left behind" } else { "FAILED" });
    summary.print(leaks.len());
    Ok(if status.success() && leaks.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Moves the main thread, and so everything it starts from here on, to a network and a `/run/wrenn` of its own.
pub fn enter_isolation() -> Result<()> {
    fs::create_dir_all(RUN_DIR).with_context(|| format!("cannot make {RUN_DIR}"))?;
    wrenn_sys::netns::leave_host_network(true).context("cannot leave the host's network and mounts (root?)")?;
    wrenn_sys::loopback::up().context("cannot bring loopback up")?;
    mount("tmpfs", RUN_DIR, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))
        .with_context(|| format!("cannot mount a {RUN_DIR} of its own"))?;
    // Whoever the tests orphan becomes our child, and so can be found and ended.
    process::adopt_orphans()
}
