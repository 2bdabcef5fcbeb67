//! `wrenn sandbox exec` and `attach`: a command in a sandbox of the agent, with the output and the exit codes of `wrenn run`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use wrenn_agent::envd_client::Exec;
use wrenn_agent::guest_link;
use wrenn_engine::names::SandboxId;

use super::{Link, Through, usable};
use crate::EXIT_FAILED;
use crate::cli::{AttachArgs, ExecArgs};
use crate::execution::{Execution, ExecutionError, OnGap, OnSignal, Outcome, Ran, Signals, Sink, Source, has_any};

/// Runs a command.
pub async fn exec(link: Link, args: ExecArgs) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let view = usable(&link, &args.id).await?;
    let envd = guest_link::guest(link.agent_arc(), &view);
    if args.detach {
        return match envd.start(args.command.command(args.stdin)).await {
            Ok(exec) => Ok(detached(&args, &exec)),
            Err(error) => not_detached(error),
        };
    }
    let (id, json) = (args.id.clone(), args.json);
    let mut keeper = Through { link, id: id.clone(), is_bound: false };
    let mut sink = if json { Sink::captured() } else { Sink::live() };
    let execution = Execution {
        keeper: &mut keeper,
        signals: &mut signals,
        sink: &mut sink,
        source: Source::pipe(),
        on_signal: OnSignal::End,
        on_gap: OnGap::Fail,
    };
    let ran = execution.run(&envd, args.command.command(has_any())).await;
    report(&id, json, sink, ran)
}

/// Comes back to a command.
pub async fn attach(link: Link, args: AttachArgs) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let view = usable(&link, &args.id).await?;
    let exec = guest_link::guest(link.agent_arc(), &view).attach(args.pid, Some(args.offset)).await?;
    let mut keeper = Through { link, id: args.id.clone(), is_bound: false };
    let mut sink = if args.json { Sink::captured() } else { Sink::live() };
    let execution = Execution {
        keeper: &mut keeper,
        signals: &mut signals,
        sink: &mut sink,
        source: if args.stdin { Source::pipe() } else { Source::Nothing },
        on_signal: OnSignal::Leave,
        on_gap: OnGap::Tell,
    };
    let mut ran = execution.follow(exec, args.offset).await;
    if let Ok(Ran { outcome: Outcome::Interrupted(_), place: Some(place), note, .. }) = &mut ran {
        let (id, pid, offset) = (&args.id, place.pid, place.offset);
        *note =
            Some(format!("the command goes on; come back with `wrenn sandbox attach {id} {pid} --offset {offset}`"));
    }
    report(&args.id, args.json, sink, ran)
}

fn detached(args: &ExecArgs, exec: &Exec) -> ExitCode {
    if args.json {
        println!("{}", json!({ "id": args.id.as_str(), "pid": exec.pid() }));
    } else {
        println!("{}", exec.pid());
    }
    ExitCode::SUCCESS
}

fn not_detached(error: wrenn_agent::envd_client::EnvdError) -> Result<ExitCode> {
    match error.not_started() {
        Some(why) => {
            eprintln!("wrenn: {}", crate::causes(&error.into()));
            Ok(ExitCode::from(Outcome::NotStarted(why).exit_code()))
        }
        None => Err(ExecutionError::Envd(error).into()),
    }
}

/// Says how it went: with `--json` all of it, else what the output does not say already.
fn report(id: &SandboxId, json: bool, sink: Sink, ran: Result<Ran, ExecutionError>) -> Result<ExitCode> {
    let code = ran.as_ref().map_or(EXIT_FAILED, |ran| ran.outcome.exit_code());
    if let (true, Sink::Captured(captured)) = (json, sink) {
        let (place, lost) = ran.as_ref().map_or((None, 0), |ran| (ran.place, ran.lost_bytes));
        let error = ran.map_or_else(|error| Some(crate::causes(&error.into())), |ran| ran.note);
        println!(
            "{}",
            json!({
                "id": id.as_str(),
                "pid": place.map(|place| place.pid),
                "offset": place.map(|place| place.offset),
                "exit_code": code,
                "error": error,
                "stdout": captured.stdout.json(),
                "stderr": captured.stderr.json(),
                "lost_bytes": lost,
            })
        );
        return Ok(ExitCode::from(code));
    }
    if let Some(note) = ran?.note {
        eprintln!("wrenn: {note}");
    }
    Ok(ExitCode::from(code))
}
