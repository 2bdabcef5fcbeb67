//! `wrenn`: sandboxes in microVMs, self-hosted, from one binary.
//!
//! This crate reads the command line and the environment, and prints; what happens is decided in `wrenn-agent`.

mod cli;
mod doctor;
mod embedded;
mod host;
mod run;
mod template;

use std::process::ExitCode;

use clap::Parser as _;
use wrenn_engine::probe::Depth;

use cli::{Cli, Verb};

/// The exit code when Wrenn itself failed, as `docker run` and `env` use it: a command's own codes stay apart.
pub const EXIT_FAILED: u8 = 125;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.verbose);
    let outcome = match cli.verb {
        Verb::Run(args) => run::run(&cli.dir, &cli.programs, args),
        Verb::Template(verb) => template::run(&cli.dir, verb),
        Verb::Doctor(args) => doctor::run(&host::options(&cli.dir, &cli.programs, Depth::All), args.json),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("wrenn: {}", causes(&error));
        ExitCode::from(EXIT_FAILED)
    })
}

/// The error and its causes on one line; a source's text that its parent repeats is left out.
fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
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
        .without_time()
        .with_target(false)
        .init();
}
