//! `wrenn`: sandboxes in microVMs, self-hosted, from one binary.
//!
//! This crate reads the command line and the environment, and prints; what happens is decided in `wrenn-agent`.

mod agent_cmd;
mod cli;
mod doctor;
mod embedded;
mod execution;
mod forkcheck;
mod host;
mod run;
mod sandbox;
mod serve;
mod snapshot;
mod template;
mod words;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use wrenn_engine::probe::Depth;

use cli::{Cli, DbVerb, Verb};

/// The exit code when Wrenn itself failed, as `docker run` and `env` use it: a command's own codes stay apart.
pub const EXIT_FAILED: u8 = 125;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.verbose);
    let outcome = match cli.verb {
        Verb::Run(args) => run::run(&cli.dir, &cli.programs, args),
        Verb::Agent(args) => agent_cmd::run(&cli.dir, &cli.programs, args),
        Verb::Serve(args) => serve::run(&cli.dir, &cli.programs, *args),
        Verb::Server(args) => serve::run_worker(&cli.dir, args),
        Verb::Db(DbVerb::Backup { file, database }) => serve::backup(&cli.dir, &file, database.as_deref()),
        Verb::Sandbox(verb) => sandbox::run(&cli.dir, verb),
        Verb::Shell(args) => sandbox::shell(&cli.dir, args),
        Verb::Repair(args) => sandbox::repair(&cli.dir, args),
        Verb::Snapshot(verb) => snapshot::run(&cli.dir, verb),
        Verb::Forkcheck(args) => forkcheck::run(&cli.dir, args),
        Verb::Template(verb) => template::run(&cli.dir, verb),
        Verb::Doctor(args) => doctor::run(&host::options(&cli.dir, &cli.programs, Depth::All), args.json),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("wrenn: {}", causes(&error));
        ExitCode::from(EXIT_FAILED)
    })
}

/// The error and its causes on one line.
fn causes(error: &anyhow::Error) -> String {
    wrenn_agent::host_agent::with_causes(error.as_ref())
}

/// Warnings by default, so that a command's own output stays clean; `-v` tells what happens, `-vv` how.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _more => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        // A log in a file is for people with grep.
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}
