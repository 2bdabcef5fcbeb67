//! The emulated host for people and for `test`: builds what goes in, and says what to run there.
//!
//! The testbed itself (`testbed/`) boots the host and runs one job. Here is what a job of this project is: wrenn with its
//! images, or the tests' programs at the very paths at which they were built. Each rung is one boot:
//!
//! | rung | what runs |
//! |---|---|
//! | `parts` | tests named `testbed_*`: device-mapper, cgroups, jail, drivers |
//! | `qemu+kvm+dm` | the end-to-end tests, with these drivers; in two halves side by side where there is no Firecracker |
//! | `firecracker+kvm+dm` | the same, where a Firecracker is there; else one loud line says that it did not run |

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use crate::build::{self, Profile};
use crate::process::{Job, find_program};
use crate::test::{Outcome, Rung, Tally};
use crate::ui::Step;
use crate::{cargo, demo, setup, test};

/// Building what goes into an emulated host, and booting it.
const BOOT_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// All tests of one rung.
const RUNG_DEADLINE: Duration = Duration::from_secs(50 * 60);
/// What the testbed exits with when the emulated host stands still.
const STANDS_STILL: i32 = 124;
/// A person's job ends when the person wants.
const JOB_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the emulated host has an instance's data, as a new user would.
const WRENN_DIR: &str = "/var/lib/wrenn";
const PROGRAMS: &str = "/usr/local/bin";

/// What to do in the emulated host.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command there, with `wrenn` and its images at their places
    Run {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Run the tests that need such a host
    Test {
        /// Only tests of this nextest filter, such as `test(seal)`
        filter: Option<String>,
    },
    /// A shell there
    Shell,
}

/// Does it; the exit code is the job's.
pub fn run(command: &Command) -> Result<ExitCode> {
    setup::run(setup::Scope::Develop)?;
    match command {
        Command::Run { command } => job(command, false),
        Command::Shell => job(&["bash".to_owned(), "-l".to_owned()], true),
        Command::Test { filter } => {
            let wrenn = build::run(Profile::Dev)?;
            test::prepare_images(&wrenn)?;
            let selection = Selection { filter: filter.clone(), ..Selection::default() };
            Ok(test::conclude(&rungs(&selection)?))
        }
    }
}

/// A person's job.
fn job(command: &[String], terminal: bool) -> Result<ExitCode> {
    let wrenn = build::run(Profile::Dev)?;
    demo::template_job(&wrenn, "minimal")?.env("WRENN_DIR", test::data_dir()).show()?;
    let mut testbed = Testbed::build()?;
    testbed.put(&wrenn, Path::new(PROGRAMS).join("wrenn"));
    for images in ["kernels", "templates"] {
        testbed.put(&test::data_dir().join(images), Path::new(WRENN_DIR).join(images));
    }
    testbed.args.extend(["--volume".to_owned(), WRENN_DIR.to_owned()]);
    if let Some(firecracker) = firecracker() {
        testbed.put(&firecracker, Path::new(PROGRAMS).join("firecracker"));
    }
    if terminal {
        testbed.args.push("--terminal".to_owned());
    }
    let status = testbed.job(command, JOB_DEADLINE).with_input().show_status()?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// What of the tests runs in the emulated hosts, and how.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Only tests of this nextest filter.
    pub filter: Option<String>,
    /// nextest's profile.
    pub profile: &'static str,
    /// Environment of the tests.
    pub variables: Vec<(&'static str, String)>,
    /// For one rung.
    pub deadline: Duration,
}

impl Default for Selection {
    fn default() -> Self {
        Self { filter: None, profile: "testbed", variables: Vec::new(), deadline: RUNG_DEADLINE }
    }
}

impl Selection {
    /// The whole of what the tests of `filter` sample.
    pub fn soak(filter: &str, variables: &[(&'static str, String)]) -> Self {
        Self {
            filter: Some(filter.to_owned()),
            profile: "soak",
            variables: variables.to_vec(),
            deadline: test::SOAK_DEADLINE,
        }
    }
}

/// The rungs that need an emulated host, two at a time: each host has one CPU.
///
/// Not one host with two CPUs: in QEMU 10's translation a virtual machine that another CPU interrupts can come back with its
/// host's memory mixed up, and then the emulated host's kernel dies within a minute of two guests running.
pub fn rungs(selection: &Selection) -> Result<Vec<Tally>> {
    let step = Step::start_loud("the testbed: tests for the emulated host");
    let testbed = Testbed::build()?;
    let tests = Tests::build()?;
    step.done("built");
    let run = |lane: Vec<Which>, listener: fn() -> Rung| -> Result<Vec<Tally>> {
        lane.into_iter().map(|rung| run_rung(&testbed, &tests, rung, selection, listener)).collect()
    };
    let [beside, along] = lanes(firecracker().is_some());
    let (beside, along) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| run(beside, Rung::in_one_piece));
        let along = run(along, Rung::default);
        (beside.join().expect("a rung does not panic"), along)
    });
    let mut tallies = [along?, beside?].concat();
    if firecracker().is_none() {
        tallies.push(without_firecracker());
    }
    Ok(tallies)
}

/// What runs one after the other, on either CPU, so that both take about as long.
fn lanes(with_firecracker: bool) -> [Vec<Which>; 2] {
    if with_firecracker {
        return [vec![QEMU], vec![PARTS, FIRECRACKER]];
    }
    let half = |name, part| Which { name, part: Some(part), ..QEMU };
    let first = half("testbed: qemu+kvm+dm, first half", "count:1/2");
    let second = half("testbed: qemu+kvm+dm, second half", "count:2/2");
    [vec![first], vec![PARTS_WITHOUT_FIRECRACKER, second]]
}

/// One boot, and what runs in it.
#[derive(Clone, Copy, Debug)]
struct Which {
    name: &'static str,
    /// The drivers of the end-to-end tests.
    stack: Option<&'static str>,
    /// nextest's filter.
    tests: &'static str,
    /// nextest's part of those, if not all.
    part: Option<&'static str>,
}

const PARTS: Which = Which { name: "testbed: parts", stack: None, tests: "test(/(^|::)testbed_/)", part: None };
/// The same where there is no Firecracker: what is about it says so in its name.
const PARTS_WITHOUT_FIRECRACKER: Which = Which { tests: "test(/(^|::)testbed_/) - test(/firecracker/)", ..PARTS };
/// End-to-end tests that need no browser, and are about the host: the service is the same on every one.
const IN_HOST: &str = "binary(e2e) - test(/^service::/)";

const QEMU: Which = Which { name: "testbed: qemu+kvm+dm", stack: Some("qemu+kvm+dm"), tests: IN_HOST, part: None };
const FIRECRACKER: Which =
    Which { name: "testbed: firecracker+kvm+dm", stack: Some("firecracker+kvm+dm"), tests: IN_HOST, part: None };

fn without_firecracker() -> Tally {
    let why = "there is no Firecracker: put a release binary (1.14.4 or newer, not 1.15.0) into PATH, or name it in \
               WRENN_FIRECRACKER";
    eprintln!("*** {} DOES NOT RUN: {why} ***", FIRECRACKER.name);
    Tally { rung: FIRECRACKER.name.to_owned(), outcome: Outcome::NotRun(why.to_owned()) }
}

fn run_rung(
    testbed: &Testbed,
    tests: &Tests,
    which: Which,
    selection: &Selection,
    listener: fn() -> Rung,
) -> Result<Tally> {
    let mut testbed = testbed.clone();
    tests.pack(&mut testbed)?;
    testbed.args.extend(["--cpus", "1"].map(str::to_owned));
    if let Some(firecracker) = firecracker() {
        testbed.put(&firecracker, Path::new(PROGRAMS).join("firecracker"));
    }
    if let Some(stack) = which.stack {
        testbed.env("WRENN_TEST_STACK", stack);
    }
    for (name, value) in &selection.variables {
        testbed.env(name, value);
    }
    let filter = match &selection.filter {
        None => which.tests.to_owned(),
        Some(filter) => format!("({}) & ({filter})", which.tests),
    };
    let mut command = tests.command(&filter, selection.profile)?;
    command.extend(which.part.into_iter().flat_map(|part| ["--partition", part].map(str::to_owned)));
    let job = testbed.job(&command, selection.deadline);
    let listen = || {
        let mut rung = listener();
        rung.line(&format!("==> {}", which.name));
        rung
    };
    let (began, mut rung) = (Instant::now(), listen());
    let mut status = job.lines(|line| rung.line(line))?;
    if status.code() == Some(STANDS_STILL) {
        // Not a test's doing: the same tests, all of them, in another host. Once: what happens twice is to be looked at.
        drop(rung.finish(which.name, false, began.elapsed()));
        eprintln!("*** {}: the emulated host stood still; everything of it runs once more ***", which.name);
        rung = listen();
        status = job.lines(|line| rung.line(line))?;
    }
    Ok(rung.finish(which.name, status.success(), began.elapsed()))
}

/// The job that runs the measuring program, `words`, in an emulated host: what its arguments name is at the same paths.
pub fn bench(words: &[String], data: &Path) -> Result<Job> {
    let mut testbed = Testbed::build()?;
    let files = words.iter().map(Path::new).filter(|word| word.is_absolute() && *word != data);
    files.for_each(|file| testbed.put(file, file));
    testbed.args.extend(["--volume".to_owned(), shown(data)]);
    for images in ["kernels", "templates"] {
        testbed.put(&data.join(images), data.join(images));
    }
    let mut words = words.to_vec();
    if let Some(firecracker) = firecracker() {
        let place = Path::new(PROGRAMS).join("firecracker");
        testbed.put(&firecracker, &place);
        words.extend(["--firecracker".to_owned(), shown(&place)]);
    }
    testbed.args.extend(["--cpus", "1"].map(str::to_owned));
    Ok(testbed.job(&words, RUNG_DEADLINE))
}

/// The Firecracker of this host, where there is one.
fn firecracker() -> Option<PathBuf> {
    let named = std::env::var_os("WRENN_FIRECRACKER").map(PathBuf::from);
    named.or_else(|| find_program("firecracker")).filter(|path| path.is_file())
}

/// The testbed's program, with the arguments of a job so far.
#[derive(Clone, Debug)]
struct Testbed {
    program: PathBuf,
    args: Vec<String>,
}

impl Testbed {
    /// After the build for tests.
    fn build() -> Result<Self> {
        let runner = build::static_program("wrenn-testbed-runner", "wrenn-testbed-runner")?;
        let args = ["--cache", &shown(&cargo::target_dir().join("testbed")), "--runner", &shown(&runner)];
        Ok(Self { program: build::dev_program("wrenn-testbed"), args: args.map(str::to_owned).to_vec() })
    }

    fn put(&mut self, source: &Path, target: impl AsRef<Path>) {
        self.args.extend(["--put".to_owned(), format!("{}={}", source.display(), target.as_ref().display())]);
    }

    fn env(&mut self, name: &str, value: &str) {
        self.args.extend(["--env".to_owned(), format!("{name}={value}")]);
    }

    /// `command` there, ended after `limit` if it has not ended by then.
    fn job(&self, command: &[String], limit: Duration) -> Job {
        let seconds = limit.as_secs().to_string();
        let job = Job::new(shown(&self.program)).args(&self.args).args(["--limit-s", &seconds]);
        // The testbed says better what hangs than who waits for it.
        job.args(["--"]).args(command).within(limit + BOOT_DEADLINE)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The tests' programs and what the runner has to know of them.
#[derive(Debug)]
struct Tests {
    /// What `cargo nextest list` says of the programs.
    binaries: PathBuf,
    /// What `cargo metadata` says.
    metadata: PathBuf,
    programs: Vec<PathBuf>,
}

/// nextest's list, of which we know what names files.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct List {
    rust_binaries: BTreeMap<String, Binary>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Binary {
    binary_path: PathBuf,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

/// What of a list is of these packages, as a list, and the programs in it.
fn programs_of(listed: &str, packages: &[&str]) -> Result<(String, Vec<PathBuf>)> {
    let mut list: List = serde_json::from_str(listed).context("nextest's list is not understood")?;
    // The id of a program is its package, or begins with it: `wrenn-engine::vmm`.
    list.rust_binaries.retain(|id, _| packages.iter().any(|package| id.split("::").next() == Some(*package)));
    let programs = list.rust_binaries.values().map(|binary| binary.binary_path.clone()).collect();
    Ok((serde_json::to_string(&list)?, programs))
}

/// Packages with tests for the emulated host.
const PACKAGES: [&str; 5] = ["wrenn-sys", "wrenn-engine", "wrenn-shim", "wrenn-agent", "wrenn"];

impl Tests {
    fn build() -> Result<Self> {
        let folder = cargo::target_dir().join("testbed-list");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // Of the workspace, as everything is built: some packages alone would be built anew.
        let list = ["nextest", "list", "--locked", "--workspace", "--list-type", "binaries-only"];
        let listed = cargo::job(list).args(["--message-format", "json"]).capture()?;
        let (listed, programs) = programs_of(&listed, &PACKAGES)?;
        // Of this platform alone: what others need was never downloaded.
        let metadata =
            ["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", build::TARGET];
        let metadata = cargo::job(metadata).capture()?;
        let tests = Self { binaries: folder.join("binaries.json"), metadata: folder.join("metadata.json"), programs };
        fs::write(&tests.binaries, listed)?;
        fs::write(&tests.metadata, metadata)?;
        Ok(tests)
    }

    /// Puts everything at the paths at which it is here.
    fn pack(&self, testbed: &mut Testbed) -> Result<()> {
        let (root, target) = (cargo::root(), cargo::target_dir());
        testbed.args.extend(["--volume".to_owned(), shown(root)]);
        if !target.starts_with(root) {
            testbed.args.extend(["--volume".to_owned(), shown(&target)]);
        }
        let own = std::env::current_exe().context("cannot find xtask itself")?;
        let nextest =
            find_program("cargo-nextest").context("cargo-nextest is not installed; `cargo xtask setup` does")?;
        testbed.put(&nextest, Path::new(PROGRAMS).join("cargo-nextest"));
        for file in self.programs.iter().chain([&self.binaries, &self.metadata, &own, &target.join("debug/wrenn")]) {
            testbed.put(file, file);
        }
        for source in [".config", "crates", "Cargo.toml"] {
            testbed.put(&root.join(source), root.join(source));
        }
        for images in ["kernels", "templates"] {
            let images = test::data_dir().join(images);
            testbed.put(&images, &images);
        }
        // Empty, and beside the images: the tests link them into folders of their own.
        let scratch = cargo::target_dir().join("testbed-list/tmp");
        fs::create_dir_all(&scratch)?;
        testbed.put(&scratch, target.join("tmp"));
        testbed.env("WRENN_TEST_IMAGES", &shown(&test::data_dir()));
        testbed.args.extend(["--cwd".to_owned(), shown(root)]);
        Ok(())
    }

    fn command(&self, which: &str, profile: &str) -> Result<Vec<String>> {
        let own = std::env::current_exe().context("cannot find xtask itself")?;
        let words = [&shown(&own), "isolated", "--", "cargo-nextest", "nextest", "run", "--profile", profile];
        let list = ["--binaries-metadata", &shown(&self.binaries), "--cargo-metadata", &shown(&self.metadata)];
        // One at a time: the emulated host has one CPU.
        let tests = ["--test-threads", "1", "--ignore-default-filter", "--no-tests", "pass", "-E", which];
        Ok(words.into_iter().chain(list).chain(tests).map(str::to_owned).collect())
    }
}
