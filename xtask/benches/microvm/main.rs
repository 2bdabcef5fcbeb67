//! Measures sandboxes: the program behind `cargo xtask bench`, which prepares what it needs, starts it where there is no
//! way out to any network, and makes a table of what it says.
//!
//! It is a program of its own because it drives the host agent in its own process ([`warm`]) and plain QEMU through the
//! engine ([`cold`]), while xtask must build before a machine has what the engine needs to build.
//!
//! ```text
//!   round ─► cold: a plain VMM, `wrenn run -- true`         one after the other, first and second in turn
//!         ─► load: `wrenn run` with 100 MB of output, its peak memory; then its VMM is killed
//!         ─► warm: one sandbox in this process: idle memory, exec, output, each beside its bare counterpart
//!         ─► disk: a device-mapper disk made and removed, and the same by programs
//!         ─► life: an agent's memory, a sandbox paused and resumed, each beside its bare parts
//!         ─► branch: warm creates, one that waited, forks, each beside a plain VMM that goes on from the same state
//!         ─► on-demand: memory that a Firecracker's shim serves, beside memory that is mapped
//!         ─► serve: a service over REST and by its proxy, each beside the same without it
//!         ─► list: 1,000 sandboxes of a fake agent, listed over REST
//!         ─► depth: the 50th resume of a sandbox beside its first                                           only when asked for
//!         ─► crowd: 32 `wrenn run -- true` at once                                                          likewise
//!         ─► crowd-life: an agent with 20 sandboxes, its memory, and the next agent that takes them over       likewise
//!         ─► serve-crowd: a service that finds 100 sandboxes at rest                                           likewise
//! ```
//!
//! Standard output is one [`Record`] per line. A part that fails is said and the next one is taken; the exit code tells.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

mod agent;
mod branch;
mod cold;
mod crowd;
mod crowd_life;
mod depth;
mod disk;
mod http;
mod life;
mod list;
mod load;
mod on_demand;
mod plain;
mod program;
#[path = "../../src/bench/record.rs"]
mod record;
mod serve;
mod serve_crowd;
mod service;
mod setting;
mod warm;

use record::Record;
use setting::Setting;

/// What xtask says.
#[derive(Debug, Parser)]
pub struct Args {
    /// The wrenn to measure
    #[arg(long)]
    wrenn: PathBuf,
    /// The folder of the static guest and shim that are inside of it
    #[arg(long)]
    guest_dir: PathBuf,
    /// The data folder; it has the template `minimal`
    #[arg(long)]
    data: PathBuf,
    /// How often
    #[arg(long)]
    rounds: usize,
    /// The Firecracker to measure, where it is the host's best VMM
    #[arg(long)]
    firecracker: Option<PathBuf>,
    /// Only these parts of each round: cold, load, warm, disk, life, branch, on-demand, serve, list, depth, crowd,
    /// crowd-life, serve-crowd
    #[arg(long)]
    only: Vec<String>,
    /// Cargo's own mark of a bench run
    #[arg(long, hide = true)]
    bench: bool,
}

/// Takes the values of one part of a round.
type Take = fn(&Setting, &mut Round) -> Result<()>;

const PARTS: [(&str, Take); 13] = [
    ("cold", cold::take),
    ("load", load::take),
    ("warm", warm::take),
    ("disk", disk::take),
    ("life", life::take),
    ("branch", branch::take),
    ("on-demand", on_demand::take),
    ("serve", serve::take),
    ("list", list::take),
    ("depth", depth::take),
    ("crowd", crowd::take),
    ("crowd-life", crowd_life::take),
    ("serve-crowd", serve_crowd::take),
];

/// What takes minutes and is not part of a round by itself.
const ON_DEMAND: [&str; 4] = ["depth", "crowd", "crowd-life", "serve-crowd"];

/// Where the values of a round go.
#[derive(Debug)]
pub struct Round {
    number: usize,
}

impl Round {
    /// From 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Says what is being done.
    pub fn doing(&self, what: &str) {
        say(&Record::Doing(format!("round {}: {what}", self.number)));
    }

    /// A value was measured.
    pub fn value(&mut self, name: &str, unit: &str, value: f64) {
        say(&Record::Value { round: self.number, name: name.to_owned(), unit: unit.to_owned(), value });
    }
}

fn main() -> ExitCode {
    if std::env::args().len() <= 2 {
        // `cargo bench` of the whole workspace comes by here.
        eprintln!("nothing measured: run `cargo xtask bench`, which prepares what this needs");
        return ExitCode::SUCCESS;
    }
    // What `strace` counts: no other part of this program.
    let words: Vec<String> = std::env::args().collect();
    if let [_program, verb, folder, count] = words.as_slice()
        && verb == "disk-cycles"
    {
        return disk::cycles_by_name(folder, count).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    match measure(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything could be measured.
fn measure(args: &Args) -> Result<bool> {
    let setting = Setting::open(args).context("cannot open the instance to measure")?;
    say(&Record::Vmm(setting.vmm_words()));
    let mut whole = true;
    for number in 1..=args.rounds {
        let wanted = |part: &str| match args.only.as_slice() {
            [] => !ON_DEMAND.contains(&part),
            only => only.iter().any(|each| each == part),
        };
        for (part, take) in PARTS.into_iter().filter(|(part, _)| wanted(part)) {
            if let Err(error) = take(&setting, &mut Round { number }) {
                whole = false;
                say(&Record::Failed { round: number, part: part.to_owned(), why: format!("{error:#}") });
            }
        }
    }
    Ok(whole)
}

fn say(record: &Record) {
    println!("{}", serde_json::to_string(record).expect("a record is JSON"));
}
