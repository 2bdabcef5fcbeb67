//! The demo: from a bare machine to a command's output out of a microVM.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::build::Profile;
use crate::process::Job;
use crate::setup::{self, Scope};
use crate::ui::Step;
use crate::{build, cargo};

/// Downloads a kernel package and builds a small image.
const TEMPLATE_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Boots a microVM, without hardware virtualization in a few seconds.
const RUN_DEADLINE: Duration = Duration::from_secs(3 * 60);

/// What the demo runs in the microVM.
const COMMAND: [&str; 3] =
    ["sh", "-c", "echo \"Hello from a microVM: $(uname -srm), up $(cut -d' ' -f1 /proc/uptime) s\""];

/// Sets the machine up, builds and installs Wrenn, and runs a command in a microVM.
pub fn run() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "sandboxes need root: run `cargo xtask demo` as root");
    setup::run(Scope::Use)?;
    let wrenn = build::install(&build::run(Profile::Release)?)?;
    template(&wrenn, "minimal")?;
    let step = Step::start_loud("a microVM: wrenn run -- sh -c 'echo …'");
    Job::new(path(&wrenn)?).args(["run", "-t", "minimal", "--"]).args(COMMAND).within(RUN_DEADLINE).show()?;
    step.done("it booted, ran the command, and is gone");
    eprintln!("\nNow try:\n  wrenn run -- uname -a\n  wrenn doctor\nwrenn is {}", wrenn.display());
    Ok(())
}

/// Builds a template of this name unless it is there already.
pub fn template(wrenn: &Path, name: &str) -> Result<()> {
    template_job(wrenn, name)?.show()
}

/// The job that builds a template.
pub fn template_job(wrenn: &Path, name: &str) -> Result<Job> {
    eprintln!("==> the template `{name}`");
    Ok(Job::new(path(wrenn)?).args(["template", "build", name]).dir(cargo::root()).within(TEMPLATE_DEADLINE))
}

fn path(wrenn: &Path) -> Result<&str> {
    wrenn.to_str().context("the path of wrenn is not UTF-8")
}
