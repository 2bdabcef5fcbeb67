//! `wrenn shell`: a terminal in a sandbox, on ours.

use std::process::ExitCode;

use anyhow::{Result, bail};
use wrenn_agent::envd_client::Command;
use wrenn_agent::guest_link;

use super::terminal::Raw;
use super::{Link, Through, usable};
use crate::cli::ShellArgs;
use crate::execution::{Execution, OnGap, OnSignal, Signals, Sink, Source, terminal_size};

/// What finds the best shell there is, and becomes it.
const LOGIN_SHELL: [&str; 3] =
    ["/bin/sh", "-c", "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi"];

/// Opens a terminal.
pub async fn shell(link: Link, args: ShellArgs) -> Result<ExitCode> {
    if !rustix::termios::isatty(std::io::stdin()) {
        bail!(
            "standard input is no terminal; `wrenn shell` needs one. To run a command without, use \
             `wrenn sandbox exec {} -- COMMAND`",
            args.id
        );
    }
    let mut signals = Signals::new()?;
    let view = usable(&link, &args.id).await?;
    let envd = guest_link::guest(link.agent_arc(), &view);
    let command = command(&args);
    let mut keeper = Through { link, id: args.id, is_bound: false };
    let mut sink = Sink::live();
    let raw = Raw::begin()?;
    let execution = Execution {
        keeper: &mut keeper,
        signals: &mut signals,
        sink: &mut sink,
        source: Source::terminal()?,
        on_signal: OnSignal::HangUp,
        on_gap: OnGap::Tell,
    };
    let ran = execution.run(&envd, command).await;
    // Before anything else is printed.
    drop(raw);
    let ran = ran?;
    if let Some(note) = ran.note {
        eprintln!("wrenn: {note}");
    }
    Ok(ExitCode::from(ran.outcome.exit_code()))
}

fn command(args: &ShellArgs) -> Command {
    let mut words: Vec<String> = args.command.clone();
    if words.is_empty() {
        words = LOGIN_SHELL.map(str::to_owned).to_vec();
    }
    let program = words.remove(0);
    let kind = std::env::var("TERM").ok().filter(|kind| !kind.is_empty()).unwrap_or_else(|| "xterm".to_owned());
    let mut env = vec![("TERM".to_owned(), kind)];
    env.extend(args.env.iter().cloned());
    Command {
        program,
        args: words,
        env,
        workdir: args.workdir.clone(),
        user: Some(args.user.clone()),
        terminal: Some(terminal_size()),
        stdin: true,
        timeout: None,
        tag: None,
    }
}
