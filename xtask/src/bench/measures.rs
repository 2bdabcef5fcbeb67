//! What is measured.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Measure, Ratio};
use crate::build::Profile;
use crate::process::Job;
use crate::{build, cargo, demo};

/// One sandbox, from start to end.
const RUN_DEADLINE: Duration = Duration::from_secs(3 * 60);

/// Everything that is measured, in the table's order.
pub const MEASURES: &[Measure] = &[
    Measure { name: "start-of-wrenn", unit: "ms", at_most: None, take: start_of_wrenn },
    Measure { name: "cold-run-of-true", unit: "ms", at_most: None, take: cold_run },
];

/// Everything that is compared.
pub const RATIOS: &[Ratio] = &[];

/// What the measurements use: a release build and a data folder with the template `minimal`.
pub struct Bench {
    wrenn: String,
    data: PathBuf,
}

impl Bench {
    /// Builds what is measured.
    pub fn prepare() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "sandboxes need root: run `cargo xtask bench` as root");
        let wrenn = build::run(Profile::Release)?;
        let data = cargo::root().join("target/test-data");
        demo::template_job(&wrenn, "minimal")?.env("WRENN_DIR", &data).show()?;
        Ok(Self { wrenn: wrenn.to_str().context("the path of wrenn is not UTF-8")?.to_owned(), data })
    }

    fn wrenn(&self, args: &[&str]) -> Job {
        Job::new(self.wrenn.clone()).args(args).env("WRENN_DIR", &self.data).within(RUN_DEADLINE)
    }
}

fn start_of_wrenn(bench: &Bench) -> Result<f64> {
    timed(bench.wrenn(&["--version"]))
}

fn cold_run(bench: &Bench) -> Result<f64> {
    timed(bench.wrenn(&["run", "-t", "minimal", "--", "true"]))
}

/// The wall time of a job, in milliseconds.
fn timed(job: Job) -> Result<f64> {
    let started = Instant::now();
    job.quiet(str::to_owned)?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}
