//! Set-up: what this machine lacks to build, run and test Wrenn is found, named with its reason, and installed.
//!
//! Found by looking for the programs themselves ([`needs`]), so that a machine that has everything is done in
//! milliseconds, without apt and without network. What is missing comes from Debian's packages ([`apt`]) and, for
//! what Rust brings itself, from cargo and rustup. The plan is pure and tested without root; /etc stays as it is.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::process::{Job, find_program};
use crate::ui::Step;

mod apt;
mod needs;
mod redact;
mod sources;

use needs::Need;
pub use needs::Scope;

/// Building cargo-nextest from source takes minutes on a small machine.
const CARGO_INSTALL_DEADLINE: Duration = Duration::from_secs(45 * 60);
const RUSTUP_DEADLINE: Duration = Duration::from_secs(10 * 60);

/// Installs what is missing for this scope and says which and why.
pub fn run(scope: Scope) -> Result<()> {
    let step = Step::start("set-up: what this machine lacks");
    let missing = needs::missing(scope, needs::on_this_machine);
    for need in &missing {
        step.note(&format!("missing: {} ({})", need.package, need.why));
    }
    if !missing.is_empty() {
        install_packages(&missing, &step)?;
    }
    let tools = match scope {
        Scope::Use => 0,
        Scope::Develop => install_tools(&step)?,
    };
    match missing.len() + tools {
        0 => step.done("nothing missing"),
        count => step.done(&format!("{count} installed")),
    }
    Ok(())
}

fn install_packages(missing: &[&Need], step: &Step) -> Result<()> {
    let names = missing.iter().map(|need| need.package).collect::<Vec<_>>().join(" ");
    if find_program("apt-get").is_none() {
        bail!("this machine lacks {names} and has no apt-get: install the programs they hold by hand, then try again");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("this machine lacks {names}; installing them needs root: run the same command as root");
    }
    apt::install(missing, step)?;
    match needs::still_missing(missing, needs::on_this_machine) {
        None => Ok(()),
        Some(need) => {
            bail!("{} was installed, but what it is needed for is still not there ({})", need.package, need.why)
        }
    }
}

/// Installs cargo's own tools that the tests use; returns how many.
fn install_tools(step: &Step) -> Result<usize> {
    let mut installed = 0;
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if !cargo::job([tool, "--version"]).succeeds() {
            step.note(&format!("missing: {component} (cargo xtask check runs cargo {tool})"));
            Job::new("rustup")
                .args(["component", "add", component])
                .within(RUSTUP_DEADLINE)
                .quiet(redact::hosts)
                .with_context(|| {
                    format!("cannot install {component}; with rustup: rustup component add {component}")
                })?;
            installed += 1;
        }
    }
    if !cargo::job(["nextest", "--version"]).succeeds() {
        step.note("missing: cargo-nextest (runs the tests, a process each); building it takes some minutes");
        cargo::job(["install", "cargo-nextest", "--locked"])
            .within(CARGO_INSTALL_DEADLINE)
            .quiet(redact::hosts)
            .context("cannot install cargo-nextest; by hand: cargo install cargo-nextest --locked")?;
        installed += 1;
    }
    Ok(installed)
}
