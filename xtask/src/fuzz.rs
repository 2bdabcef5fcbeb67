//! Input that nobody thought of: fuzz targets of what reads bytes from strangers, and the whole REST API by its own document.
//!
//! | target | tool | what |
//! |---|---|---|
//! | `host`, `cursor`, `frames`, `shim_frames` | cargo-fuzz | decoders: `fuzz/` |
//! | `api` | schemathesis | a real `wrenn serve`: no answer is a 500, and each is as the document says ([`api`]) |
//!
//! The tools are installed into the target folder when they are first needed; neither is part of `test`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::ui::Step;

mod api;

/// Compiling a tool or the targets on a small machine.
const BUILD_DEADLINE: Duration = Duration::from_secs(40 * 60);

/// What to feed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these
    targets: Vec<Target>,
    /// How long each decoder is fed, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// How many examples of each request of the API
    #[arg(long, default_value_t = 30)]
    examples: u32,
    /// Repeat a run of the API that printed this seed
    #[arg(long)]
    seed: Option<u64>,
}

/// What can be fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    Host,
    Cursor,
    Frames,
    ShimFrames,
    Api,
}

impl Target {
    const ALL: [Self; 5] = [Self::Host, Self::Cursor, Self::Frames, Self::ShimFrames, Self::Api];

    /// The decoder's program in `fuzz/`.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Host => Some("host"),
            Self::Cursor => Some("cursor"),
            Self::Frames => Some("frames"),
            Self::ShimFrames => Some("shim_frames"),
            Self::Api => None,
        }
    }
}

/// Feeds everything that was asked for; all are tried, and the error says which failed.
pub fn run(args: &Args) -> Result<()> {
    let targets = if args.targets.is_empty() { Target::ALL.to_vec() } else { args.targets.clone() };
    let mut failed = Vec::new();
    // Last of all what leaves this host's network: the others may have to fetch something.
    for target in targets.iter().filter(|target| target.program().is_some()) {
        failed.extend(decoder(*target, args.seconds).err().map(|error| format!("{target:?}: {error:#}")));
    }
    if targets.contains(&Target::Api) {
        failed.extend(api::run(args.examples, args.seed).err().map(|error| format!("{:?}: {error:#}", Target::Api)));
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Feeds one decoder.
fn decoder(target: Target, seconds: u32) -> Result<()> {
    let name = target.program().context("no decoder")?;
    let tool = cargo_fuzz()?;
    let step = Step::start_loud(format!("fuzz: {name}, {seconds} s"));
    let corpus = folder(&format!("fuzz/corpus/{name}"))?;
    let findings = folder(&format!("fuzz/findings/{name}"))?;
    let build = folder("fuzz/build")?;
    let (tool, limit) = (with_path(&tool)?, BUILD_DEADLINE + Duration::from_secs(seconds.into()));
    // No sanitizer: what is fed forbids `unsafe`, and one would need another compiler.
    let fuzz = |verb: &str| {
        let job = cargo::job(["fuzz", verb, "--sanitizer", "none", "--target-dir"]).args([&build]).args([name]);
        job.env("PATH", &tool).within(limit)
    };
    // First, so that what does not compile is not taken for a finding.
    fuzz("build").show()?;
    let run = fuzz("run").args([&corpus]).args(["--", &format!("-max_total_time={seconds}")]);
    let run = run.args([format!("-artifact_prefix={}/", findings.display())]);
    run.quiet(str::to_owned).with_context(|| format!("what it found is in {}", findings.display()))?;
    step.done("nothing found");
    Ok(())
}

/// The folder of `cargo-fuzz`, which is installed if it is not there.
fn cargo_fuzz() -> Result<PathBuf> {
    let root = folder("tools")?;
    let programs = root.join("bin");
    if !programs.join("cargo-fuzz").exists() {
        let step = Step::start("installing cargo-fuzz");
        let job = cargo::job(["install", "--locked", "cargo-fuzz", "--root"]).args([&root]);
        job.within(BUILD_DEADLINE).show()?;
        step.done("installed");
    }
    Ok(programs)
}

/// A folder of the target folder.
fn folder(name: &str) -> Result<PathBuf> {
    let path = cargo::target_dir().join(name);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

fn with_path(first: &std::path::Path) -> Result<std::ffi::OsString> {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(first.to_owned()).chain(std::env::split_paths(&rest));
    std::env::join_paths(paths).context("PATH cannot be put together")
}
