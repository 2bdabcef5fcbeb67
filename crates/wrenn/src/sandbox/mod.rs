//! `wrenn sandbox …`, `wrenn repair` and `wrenn shell`: what an agent can be asked for, the one of this `WRENN_DIR` or one
//! behind a server.
//!
//! Each verb asks the agent once or a few times and prints: for people a table or a sentence, with `--json` one value for
//! programs. A command in a sandbox ([`exec`]) runs through a tunnel of the agent and is seen through by
//! [`crate::execution`].

mod exec;
mod fork;
mod link;
mod shell;
mod show;
mod terminal;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use wrenn_agent::guest_link;
use wrenn_agent::host_agent::{
    AgentError, Changed, CreateRequest, PauseOptions, ResumeOptions, Source, Timeout, View, Wishes,
};
use wrenn_agent::policy::{self, Verb};
use wrenn_engine::names::SandboxId;

use crate::EXIT_FAILED;
use crate::cli::{CreateArgs, RepairArgs, SandboxVerb, ShellArgs};
use crate::place::Place;
use crate::words::{kept, now_unix_ms, printable, timings_json};

pub use link::{Link, Through, find};

/// Does one of the verbs of `wrenn sandbox`.
pub fn run(place: &Place, verb: SandboxVerb) -> Result<ExitCode> {
    block_on(async {
        let link = Link::require(place).await?;
        match verb {
            SandboxVerb::Create(args) => create(&link, args).await,
            SandboxVerb::Ls { json } => list(&link, json).await,
            SandboxVerb::Get { id, json } => get(&link, &id, json).await,
            SandboxVerb::Exec(args) => exec::exec(link, args).await,
            SandboxVerb::Attach(args) => exec::attach(link, args).await,
            SandboxVerb::Ps { id, json } => processes(&link, &id, json).await,
            SandboxVerb::Pause { id, disk_only, json } => {
                let options = PauseOptions { disk_only };
                changed(link.agent().pause(&id, options).await?, "is paused", json)
            }
            SandboxVerb::Resume { id, timeout, boot_timeout, json } => {
                let options = ResumeOptions { ready_limit: boot_timeout, timeout };
                changed(link.agent().resume(&id, options).await?, "runs", json)
            }
            SandboxVerb::Fork(args) => fork::fork(&link, args).await,
            SandboxVerb::Rollback(args) => {
                let options = ResumeOptions { ready_limit: args.boot_timeout, timeout: args.timeout };
                let back = link.agent().rollback(&args.id, &args.snapshot, options).await?;
                changed(back, &format!("is back at {}", args.snapshot), args.json)
            }
            SandboxVerb::Timeout { id, time, on_timeout, json } => {
                let timeout = Timeout { after: time.0, on_timeout: on_timeout.map(Into::into) };
                set_timeout(&link, &id, timeout, json).await
            }
            SandboxVerb::Rm { ids, json } => remove(&link, &ids, json).await,
            SandboxVerb::Logs { id, bytes, json } => logs(&link, &id, bytes, json).await,
            SandboxVerb::Stat { id, json } => stat(&link, &id, json).await,
        }
    })
}

/// `wrenn repair`.
pub fn repair(place: &Place, args: RepairArgs) -> Result<ExitCode> {
    block_on(async {
        let repaired = Link::require(place).await?.agent().repair(&args.id).await?;
        changed(repaired, "is repaired", args.json)
    })
}

/// `wrenn shell`.
pub fn shell(place: &Place, args: ShellArgs) -> Result<ExitCode> {
    block_on(async { shell::shell(Link::require(place).await?, args).await })
}

/// Sees `work` through.
pub fn block_on(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(work);
    // Not waited for: a thread may be in a write to a terminal that nobody reads.
    runtime.shutdown_background();
    code
}

/// A sandbox as the command line wants it.
fn create_request(args: CreateArgs) -> Result<CreateRequest> {
    let wanted = args.wanted.request()?;
    Ok(CreateRequest {
        source: args.snapshot.map_or(wanted.source, Source::Snapshot),
        wishes: Wishes {
            env: args.env.into_iter().collect(),
            metadata: args.metadata.into_iter().collect(),
            timeout: args.timeout,
            on_timeout: args.on_timeout.into(),
            bound: false,
            ..wanted.wishes
        },
    })
}

async fn create(link: &Link, args: CreateArgs) -> Result<ExitCode> {
    let json = args.json;
    let created = link.agent().create(create_request(args)?).await?.changed;
    if json {
        println!("{}", show::changed_json(&created, show::Token::Shown));
    } else {
        println!("{}", created.view.id);
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(link: &Link, json: bool) -> Result<ExitCode> {
    let views = link.agent().list().await?;
    if json {
        let all: Vec<Value> = views.iter().map(|view| show::view_json(view, show::Token::Hidden)).collect();
        println!("{}", Value::from(all));
    } else {
        print!("{}", show::table(&views, now_unix_ms()));
    }
    Ok(ExitCode::SUCCESS)
}

async fn get(link: &Link, id: &SandboxId, json: bool) -> Result<ExitCode> {
    let view = link.agent().get(id).await?;
    if json {
        println!("{}", show::view_json(&view, show::Token::Shown));
    } else {
        print!("{}", show::details(&view, now_unix_ms()));
    }
    Ok(ExitCode::SUCCESS)
}

fn changed(changed: Changed, what: &str, json: bool) -> Result<ExitCode> {
    if json {
        println!("{}", show::changed_json(&changed, show::Token::Hidden));
    } else {
        let took: Duration = changed.timings.iter().map(|timing| timing.took).sum();
        println!("{} {what} ({} ms)", changed.view.id, took.as_millis());
    }
    Ok(ExitCode::SUCCESS)
}

async fn set_timeout(link: &Link, id: &SandboxId, timeout: Timeout, json: bool) -> Result<ExitCode> {
    let view = link.agent().set_timeout(id, timeout).await?;
    if json {
        println!("{}", show::view_json(&view, show::Token::Hidden));
    } else {
        println!("{}", show::deadline_sentence(&view, now_unix_ms()));
    }
    Ok(ExitCode::SUCCESS)
}

/// All of them are tried, whatever becomes of one.
async fn remove(link: &Link, ids: &[SandboxId], json: bool) -> Result<ExitCode> {
    let mut answers = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        let answer = link.agent().destroy(id).await;
        if answer.is_err() {
            code = ExitCode::from(EXIT_FAILED);
        }
        if json {
            answers.push(removed_json(id, &answer));
            continue;
        }
        match answer {
            Ok(_destroyed) => println!("{id} is destroyed"),
            Err(error) => eprintln!("wrenn: {error}"),
        }
    }
    if json {
        println!("{}", Value::from(answers));
    }
    Ok(code)
}

fn removed_json(id: &SandboxId, answer: &Result<Changed, AgentError>) -> Value {
    match answer {
        Ok(changed) => json!({ "id": id.as_str(), "error": null, "timings_ms": timings_json(&changed.timings) }),
        Err(error) => json!({
            "id": id.as_str(),
            "error": { "code": error.code, "message": error.message },
            "timings_ms": {},
        }),
    }
}

async fn logs(link: &Link, id: &SandboxId, bytes: u32, json: bool) -> Result<ExitCode> {
    use std::io::{IsTerminal as _, Write as _};
    let tail = link.agent().console(id, bytes).await?;
    let mut stdout = std::io::stdout();
    if json {
        println!("{}", json!({ "id": id.as_str(), "console": kept(&tail) }));
    } else if stdout.is_terminal() {
        // What a guest prints is not to drive our terminal.
        print!("{}", printable(&String::from_utf8_lossy(&tail)));
    } else {
        stdout.write_all(&tail)?;
        stdout.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn stat(link: &Link, id: &SandboxId, json: bool) -> Result<ExitCode> {
    let stat = link.agent().stat(id).await?;
    if json {
        let mut value = serde_json::to_value(&stat)?;
        value["id"] = id.as_str().into();
        println!("{value}");
    } else {
        print!("{}", show::stat(&stat));
    }
    Ok(ExitCode::SUCCESS)
}

async fn processes(link: &Link, id: &SandboxId, json: bool) -> Result<ExitCode> {
    let view = usable(link, id).await?;
    let running = guest_link::guest(link.agent_arc(), &view).list().await?;
    if json {
        let all: Vec<Value> = running.iter().map(|process| show::process_json(id, process)).collect();
        println!("{}", Value::from(all));
    } else {
        print!("{}", show::process_table(&running));
    }
    Ok(ExitCode::SUCCESS)
}

/// The sandbox, if its guest can be reached.
pub async fn usable(link: &Link, id: &SandboxId) -> Result<View> {
    let view = link.agent().get(id).await?;
    policy::check(view.phase, Verb::Use)?;
    Ok(view)
}

#[cfg(test)]
pub mod tests {
    pub use super::show::tests::view;
}
