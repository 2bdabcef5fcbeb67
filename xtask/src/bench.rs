//! Measurements: a table for people, JSON for comparisons.
//!
//! Machines are shared and noisy, so each round takes every measurement once, one after the other, and what is compared
//! is compared within its round: a ratio is the median of the rounds' ratios, never a ratio of two runs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::ui::Step;
use crate::{cargo, test};

mod measures;
mod report;
mod stats;

use report::Report;
use stats::Series;

/// Rounds beyond this tell nothing new.
const ROUNDS_MAX: usize = 1000;

/// What to measure and how often.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How often each measurement is taken
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only measurements whose name holds this
    #[arg(long, default_value = "")]
    only: String,
    /// Where the JSON goes [default: target/bench.json]
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Something that can be measured.
pub struct Measure {
    /// Its name: lower case, with dashes.
    pub name: &'static str,
    /// The unit of its values, such as `ms`.
    pub unit: &'static str,
    /// The most its median may be, in its unit.
    pub at_most: Option<f64>,
    /// Takes one value.
    pub take: fn(&measures::Bench) -> Result<f64>,
}

/// Two measurements of the same round, compared.
pub struct Ratio {
    /// Its name.
    pub name: &'static str,
    /// The measurement divided.
    pub of: &'static str,
    /// The measurement it is divided by.
    pub to: &'static str,
    /// What the median must be.
    pub target: Target,
}

/// The side of a number on which a value should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    #[cfg_attr(not(test), expect(dead_code, reason = "for throughput; no measurement of it yet"))]
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

/// Measures and reports.
pub fn run(args: &Args) -> Result<()> {
    ensure!((1..=ROUNDS_MAX).contains(&args.rounds), "--rounds takes 1 to {ROUNDS_MAX}");
    let bench = measures::Bench::prepare()?;
    let chosen: Vec<&Measure> = measures::MEASURES.iter().filter(|measure| measure.name.contains(&args.only)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = measures::MEASURES.iter().map(|measure| measure.name).collect();
        bail!("no measurement's name holds `{}`; there are: {}", args.only, names.join(", "));
    }
    // Measured where tests run: sandboxes make networks, and this host's own is not to be touched.
    test::enter_isolation()?;
    let series = take(&bench, &chosen, args.rounds)?;
    let report = Report::new(&series, measures::RATIOS);
    print!("{}", report.table());
    let path = args.json.clone().unwrap_or_else(|| cargo::target_dir().join("bench.json"));
    let json = serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?;
    fs::write(&path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("JSON: {}", path.display());
    Ok(())
}

fn take(bench: &measures::Bench, measures: &[&'static Measure], rounds: usize) -> Result<Vec<Series>> {
    let step = Step::start(format!("measuring, {rounds} rounds"));
    let mut series: Vec<Series> = measures.iter().map(|measure| Series::new(measure)).collect();
    for round in 1..=rounds {
        for (measure, series) in measures.iter().zip(&mut series) {
            step.tick(&format!("round {round}: {}", measure.name));
            series.values.push((measure.take)(bench).with_context(|| format!("cannot measure {}", measure.name))?);
        }
    }
    step.done("measured");
    Ok(series)
}
