//! Automation of the Wrenn project, in Rust: `cargo xtask COMMAND`.
//!
//! [`setup`] makes the machine ready, [`build`] makes the one binary, [`demo`] shows it; [`check`] holds the code to
//! its rules, [`mod@test`] runs everything that must pass, [`testbed`] what needs another host, [`fuzz`] what nobody thought of, [`mod@bench`] measures. [`process`] alone starts programs.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod build;
mod cargo;
mod check;
mod demo;
mod fuzz;
mod process;
mod setup;
mod test;
mod testbed;
mod ui;
mod web;

/// Automation of the Wrenn project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what this machine lacks, and say which and why
    Setup {
        /// Only what building and running needs, not what checks and tests need
        #[arg(long)]
        minimal: bool,
    },
    /// Build wrenn with its guest inside, and install it
    Build,
    /// Set up, build, and run a command in a microVM
    Demo,
    /// Formatting, lints, the architecture's negative invariants, documentation
    Check,
    /// Everything that must pass: set-up, checks, build, all tests, the leak sweep
    Test(test::Args),
    /// The whole of the fault matrix that `test` samples
    Soak(test::SoakArgs),
    /// Run something in an emulated host that has KVM, device-mapper and cgroups
    #[command(subcommand)]
    Testbed(testbed::Command),
    /// Feed decoders and the whole API what nobody thought of
    Fuzz(fuzz::Args),
    /// Measure, as a table and as JSON
    Bench(bench::Args),
    /// Run a test program where nothing can reach a real network, and sweep for leaks (used by `test`)
    #[command(hide = true)]
    Isolated {
        /// The program and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup { minimal } => {
            setup::run(if minimal { setup::Scope::Use } else { setup::Scope::Develop })?;
        }
        Command::Build => {
            build::install(&build::run(build::Profile::Release)?)?;
        }
        Command::Demo => demo::run()?,
        Command::Check => check::run()?,
        Command::Test(args) => return test::run(&args),
        Command::Soak(args) => return test::soak(&args),
        Command::Testbed(command) => return testbed::run(&command),
        Command::Fuzz(args) => fuzz::run(&args)?,
        Command::Bench(args) => bench::run(&args)?,
        Command::Isolated { command } => return test::isolated(&command),
    }
    Ok(ExitCode::SUCCESS)
}
