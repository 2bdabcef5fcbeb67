//! `wrenn snapshot …`: what sandboxes were, kept by the agent under a name.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use wrenn_agent::host_agent::{AgentError, SnapshotRequest, SnapshotView, Snapshotted};
use wrenn_engine::names::SandboxId;

use crate::EXIT_FAILED;
use crate::cli::SnapshotVerb;
use crate::place::Place;
use crate::sandbox::{Link, block_on};
use crate::words::{bytes, columns, now_unix_ms, printable_line, short, since, timings_json};

/// Does one of the verbs.
pub fn run(place: &Place, verb: SnapshotVerb) -> Result<ExitCode> {
    block_on(async {
        let link = Link::require(place).await?;
        match verb {
            SnapshotVerb::Create { id, name, json } => create(&link, &id, name, json).await,
            SnapshotVerb::Ls { json } => list(&link, json).await,
            SnapshotVerb::Rm { snapshots, json } => remove(&link, &snapshots, json).await,
        }
    })
}

async fn create(link: &Link, id: &SandboxId, name: Option<String>, json: bool) -> Result<ExitCode> {
    let request = SnapshotRequest { name, ..SnapshotRequest::default() };
    let made = link.agent().snapshot(id, request).await?;
    if json {
        println!("{}", made_json(&made));
    } else {
        println!("{}", made.view.id);
        let took: Duration = made.timings.iter().map(|timing| timing.took).sum();
        eprintln!("wrenn: {} goes on ({} ms)", made.view.sandbox, took.as_millis());
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(link: &Link, json: bool) -> Result<ExitCode> {
    let views = link.agent().snapshots().await?;
    if json {
        println!("{}", views.iter().map(view_json).collect::<Value>());
    } else {
        print!("{}", table(&views, now_unix_ms()));
    }
    Ok(ExitCode::SUCCESS)
}

/// All of them are tried, whatever becomes of one.
async fn remove(link: &Link, snapshots: &[String], json: bool) -> Result<ExitCode> {
    let mut answers = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for snapshot in snapshots {
        let answer = link.agent().remove_snapshot(snapshot).await;
        if answer.is_err() {
            code = ExitCode::from(EXIT_FAILED);
        }
        match answer {
            answer if json => answers.push(removed_json(snapshot, &answer)),
            Ok(removed) => println!("snapshot {} is removed", called(&removed)),
            Err(error) => eprintln!("wrenn: {error}"),
        }
    }
    if json {
        println!("{}", Value::from(answers));
    }
    Ok(code)
}

/// Its name and id, or the id alone.
fn called(view: &SnapshotView) -> String {
    match &view.name {
        Some(name) => format!("{} ({})", printable_line(name), view.id),
        None => view.id.to_string(),
    }
}

/// Snapshots, a line each.
fn table(views: &[SnapshotView], now_unix_ms: u64) -> String {
    let row = |view: &SnapshotView| {
        [
            view.id.to_string(),
            view.name.as_deref().map_or_else(|| "-".to_owned(), printable_line),
            since(view.created_unix_ms, now_unix_ms),
            view.sandbox.to_string(),
            short(&view.template),
            view.vcpus.to_string(),
            view.memory.to_string(),
            view.disk.to_string(),
            if view.has_memory { "memory+disk" } else { "disk" }.to_owned(),
            format!("{}+{}", view.vmm.driver, view.vmm.accel),
            bytes(view.own_bytes),
            bytes(view.shared_bytes),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    let head = ["ID", "NAME", "AGE", "SANDBOX", "TEMPLATE", "VCPUS", "MEMORY", "DISK", "KEEPS", "VMM", "OWN", "SHARED"];
    columns(head, &rows)
}

fn view_json(view: &SnapshotView) -> Value {
    json!({
        "id": view.id.as_str(),
        "name": view.name,
        "created_unix_ms": view.created_unix_ms,
        "sandbox": view.sandbox.as_str(),
        "template": view.template,
        "kernel": view.kernel,
        "vcpus": view.vcpus,
        "memory_mib": view.memory,
        "disk_mib": view.disk,
        "vmm": view.vmm,
        "has_memory": view.has_memory,
        "own_bytes": view.own_bytes,
        "shared_bytes": view.shared_bytes,
    })
}

fn made_json(made: &Snapshotted) -> Value {
    let mut value = view_json(&made.view);
    value["timings_ms"] = timings_json(&made.timings);
    value
}

fn removed_json(asked: &str, answer: &Result<SnapshotView, AgentError>) -> Value {
    match answer {
        Ok(view) => json!({ "asked": asked, "id": view.id.as_str(), "name": view.name, "error": null }),
        Err(error) => {
            json!({ "asked": asked, "id": null, "name": null, "error": { "code": error.code, "message": error.message } })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wrenn_agent::host_agent::Code;
    use wrenn_agent::sandbox::Timing;
    use wrenn_engine::units::Mib;
    use wrenn_engine::vmm::{Accel, Description, DriverKind};

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn view() -> SnapshotView {
        SnapshotView {
            id: "snabcdefghijklmnopqr".parse().unwrap(),
            name: Some("before".to_owned()),
            created_unix_ms: NOW - 200_000,
            sandbox: "sbabcdefghijklmnopqr".parse().unwrap(),
            template: "0123456789abcdef0123".to_owned(),
            kernel: "6.12.9".to_owned(),
            vcpus: 2,
            memory: Mib(512),
            disk: Mib(4096),
            vmm: Description { driver: DriverKind::Qemu, version: "10.0.2".to_owned(), accel: Accel::Tcg },
            has_memory: true,
            own_bytes: 5 << 20,
            shared_bytes: 3 << 30,
            attributes: BTreeMap::new(),
        }
    }

    #[test]
    fn snapshots_are_a_line_each() {
        let nameless = SnapshotView {
            id: "sn000000000000000000".parse().unwrap(),
            name: None,
            has_memory: false,
            own_bytes: 0,
            ..view()
        };
        assert_eq!(
            format!("\n{}", table(&[view(), nameless], NOW)),
            "
ID                    NAME    AGE  SANDBOX               TEMPLATE      VCPUS  MEMORY   DISK      KEEPS        VMM       OWN      SHARED
snabcdefghijklmnopqr  before  3m   sbabcdefghijklmnopqr  0123456789ab  2      512 MiB  4096 MiB  memory+disk  qemu+tcg  5.0 MiB  3.0 GiB
sn000000000000000000  -       3m   sbabcdefghijklmnopqr  0123456789ab  2      512 MiB  4096 MiB  disk         qemu+tcg  0 B      3.0 GiB
"
        );
    }

    #[test]
    fn every_answer_has_the_id() {
        let timings = vec![Timing { phase: "capture".into(), took: Duration::from_micros(1_234_567) }];
        let made = made_json(&Snapshotted { view: view(), timings });
        assert_eq!(
            made,
            json!({
                "id": "snabcdefghijklmnopqr",
                "name": "before",
                "created_unix_ms": NOW - 200_000,
                "sandbox": "sbabcdefghijklmnopqr",
                "template": "0123456789abcdef0123",
                "kernel": "6.12.9",
                "vcpus": 2,
                "memory_mib": 512,
                "disk_mib": 4096,
                "vmm": { "driver": "qemu", "version": "10.0.2", "accel": "tcg" },
                "has_memory": true,
                "own_bytes": 5 << 20,
                "shared_bytes": 3_u64 << 30,
                "timings_ms": { "capture": 1234.567 },
            })
        );
        assert_eq!(removed_json("before", &Ok(view()))["id"], "snabcdefghijklmnopqr");
        let refused = removed_json("after", &Err(AgentError { code: Code::NotFound, message: "why".to_owned() }));
        assert_eq!((&refused["asked"], &refused["error"]["code"]), (&json!("after"), &json!("not_found")));
        assert_eq!(called(&view()), "before (snabcdefghijklmnopqr)");
    }
}
