//! Sandboxes as they are printed: aligned tables for people, JSON for programs. Pure.

use serde_json::{Value, json};
use wrenn_agent::envd_client::RunningProcess;
use wrenn_agent::host_agent::{AgentError, Changed, Forked, GuestStat, OnTimeout, Stat, View};
use wrenn_engine::names::SandboxId;

use crate::words::{bytes, columns, printable_line, short, since, timings_json};

/// Longest command line shown in a table, in characters.
const COMMAND_CHARS_MAX: usize = 100;

/// Whether the secret that opens a guest is in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// It is.
    Shown,
    /// It is not.
    Hidden,
}

/// Sandboxes, a line each.
pub fn table(views: &[View], now_unix_ms: u64) -> String {
    let row = |view: &View| {
        [
            view.id.to_string(),
            view.phase.to_string(),
            since(view.created_unix_ms, now_unix_ms),
            deadline(view, now_unix_ms),
            short(&view.template),
            view.vcpus.to_string(),
            view.memory.to_string(),
            view.disk.to_string(),
            format!("{}+{}+{}", view.vmm.driver, view.vmm.accel, view.storage),
            printable_line(&remarks(view)),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    columns(["ID", "STATE", "AGE", "TIME LEFT", "TEMPLATE", "VCPUS", "MEMORY", "DISK", "STACK", "REMARKS"], &rows)
}

/// One sandbox, a line for each of its properties.
pub fn details(view: &View, now_unix_ms: u64) -> String {
    let mut rows = vec![
        ["id", view.id.as_str()].map(str::to_owned),
        ["state".to_owned(), view.phase.to_string()],
        ["age".to_owned(), since(view.created_unix_ms, now_unix_ms)],
        ["time left".to_owned(), deadline(view, now_unix_ms)],
        ["template", &view.template].map(str::to_owned),
        ["kernel", &view.kernel].map(str::to_owned),
        ["vcpus".to_owned(), view.vcpus.to_string()],
        ["memory".to_owned(), view.memory.to_string()],
        ["disk".to_owned(), format!("{} ({})", view.disk, view.storage)],
        ["vmm".to_owned(), format!("{} {} ({})", view.vmm.driver, view.vmm.version, view.vmm.accel)],
        ["start".to_owned(), view.start.to_string()],
    ];
    if let Some(reason) = &view.reason {
        rows.insert(2, ["reason".to_owned(), printable_line(reason)]);
    }
    rows.extend(
        view.metadata.iter().map(|(key, value)| ["label".to_owned(), printable_line(&format!("{key}={value}"))]),
    );
    let width = rows.iter().map(|[name, _]| name.len()).max().unwrap_or_default();
    rows.iter().map(|[name, value]| format!("{name:<width$}  {value}\n")).collect()
}

/// The reason of its state, then its labels.
fn remarks(view: &View) -> String {
    let labels = view.metadata.iter().map(|(key, value)| format!("{key}={value}"));
    view.reason.iter().cloned().chain(labels).collect::<Vec<_>>().join(", ")
}

fn deadline(view: &View, now_unix_ms: u64) -> String {
    match view.deadline_unix_ms {
        None => "-".to_owned(),
        Some(deadline) => format!("{} ({})", since(now_unix_ms, deadline), on_timeout(view.on_timeout)),
    }
}

/// When a sandbox's time is up, in a sentence.
pub fn deadline_sentence(view: &View, now_unix_ms: u64) -> String {
    match (view.deadline_unix_ms, view.on_timeout) {
        (None, _) => format!("{} runs without end", view.id),
        (Some(deadline), OnTimeout::Pause) => format!("{} is paused in {}", view.id, since(now_unix_ms, deadline)),
        (Some(deadline), OnTimeout::Destroy) => format!("{} is destroyed in {}", view.id, since(now_unix_ms, deadline)),
    }
}

fn on_timeout(on_timeout: OnTimeout) -> &'static str {
    match on_timeout {
        OnTimeout::Pause => "pause",
        OnTimeout::Destroy => "destroy",
    }
}

/// What a sandbox takes.
pub fn stat(stat: &Stat) -> String {
    // A server does not tell everything of one that runs.
    let why = if stat.memory_bytes.is_some() { "not told" } else { "at rest" };
    let absent = || format!("- ({why})");
    let rows = [
        ("memory", stat.memory_bytes.map_or_else(absent, bytes)),
        ("cpu time", stat.cpu_ms.map_or_else(absent, |ms| format!("{:.1} s", ms as f64 / 1e3))),
        ("disk, its own", bytes(stat.disk_own_bytes)),
        ("  of it memory", bytes(stat.memory_file_bytes)),
        ("disk, shared", bytes(stat.disk_shared_bytes)),
        ("network, in", stat.network_rx_bytes.map_or_else(absent, bytes)),
        ("network, out", stat.network_tx_bytes.map_or_else(absent, bytes)),
        ("vmm pid", stat.vmm_pid.map_or_else(absent, |pid| pid.to_string())),
    ];
    let guest = stat.guest.as_ref().map(guest_rows).into_iter().flatten();
    rows.into_iter().chain(guest).map(|(name, value)| format!("{name:<14}  {value}\n")).collect()
}

/// What a guest says of itself.
fn guest_rows(guest: &GuestStat) -> [(&'static str, String); 3] {
    let part = |used, total| format!("{} of {}", bytes(used), bytes(total));
    [
        ("guest, cpus", format!("{:.1} % of {}", guest.cpu_percent, guest.cpus)),
        ("guest, memory", part(guest.memory_used_bytes, guest.memory_total_bytes)),
        ("guest, disk", part(guest.disk_used_bytes, guest.disk_total_bytes)),
    ]
}

/// Commands that run in a sandbox. What they are called is the guest's word.
pub fn process_table(processes: &[RunningProcess]) -> String {
    let row = |process: &RunningProcess| {
        let command: String = process.command.join(" ").chars().take(COMMAND_CHARS_MAX).collect();
        let tag = process.tag.as_deref().unwrap_or("-");
        [process.pid.to_string(), printable_line(tag), printable_line(&command)]
    };
    let rows: Vec<_> = processes.iter().map(row).collect();
    columns(["PID", "TAG", "COMMAND"], &rows)
}

/// A command that runs, for programs.
pub fn process_json(id: &SandboxId, process: &RunningProcess) -> Value {
    json!({ "id": id.as_str(), "pid": process.pid, "tag": process.tag, "command": process.command })
}

/// A sandbox, for programs.
pub fn view_json(view: &View, token: Token) -> Value {
    let mut value = json!({
        "id": view.id.as_str(),
        "state": view.phase,
        "reason": view.reason,
        "revision": view.revision,
        "created_unix_ms": view.created_unix_ms,
        "deadline_unix_ms": view.deadline_unix_ms,
        "on_timeout": view.on_timeout,
        "template": view.template,
        "kernel": view.kernel,
        "vcpus": view.vcpus,
        "memory_mib": view.memory,
        "disk_mib": view.disk,
        "vmm": view.vmm,
        "storage": view.storage,
        "start": view.start,
        "metadata": view.metadata,
    });
    match token {
        Token::Shown => value["access_token"] = view.access_token.as_str().into(),
        Token::Hidden => {}
    }
    value
}

/// A sandbox after a change, for programs.
pub fn changed_json(changed: &Changed, token: Token) -> Value {
    let mut value = view_json(&changed.view, token);
    value["timings_ms"] = timings_json(&changed.timings);
    value
}

/// Forks, for programs: for each either the sandbox or the error.
pub fn forked_json(parent: &SandboxId, forked: &Forked) -> Value {
    let child = |child: &Result<Changed, AgentError>| match child {
        Ok(changed) => json!({ "sandbox": changed_json(changed, Token::Shown), "error": null }),
        Err(error) => json!({ "sandbox": null, "error": { "code": error.code, "message": error.message } }),
    };
    json!({
        "id": parent.as_str(),
        "forks": forked.children.iter().map(child).collect::<Value>(),
        "timings_ms": timings_json(&forked.timings),
    })
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use wrenn_agent::host_agent::{Code, Phase, Start};
    use wrenn_agent::sandbox::Timing;
    use wrenn_engine::storage::Backend;
    use wrenn_engine::units::Mib;
    use wrenn_engine::vmm::{Accel, Description, DriverKind};

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    pub fn view() -> View {
        View {
            id: "sbabcdefghijklmnopqr".parse().unwrap(),
            revision: 4,
            phase: Phase::Running,
            reason: None,
            created_unix_ms: NOW - 200_000,
            deadline_unix_ms: Some(NOW + 600_000),
            on_timeout: OnTimeout::Pause,
            template: "0123456789abcdef0123".to_owned(),
            kernel: "6.12.9".to_owned(),
            vcpus: 2,
            memory: Mib(512),
            disk: Mib(4096),
            vmm: Description { driver: DriverKind::Qemu, version: "10.0.2".to_owned(), accel: Accel::Tcg },
            storage: Backend::Qcow2,
            start: Start::Warm,
            metadata: BTreeMap::from([("owner".to_owned(), "me".to_owned())]),
            attributes: BTreeMap::new(),
            access_token: "secret".to_owned(),
        }
    }

    #[test]
    fn sandboxes_are_a_line_each() {
        let stopped = View {
            id: "sb000000000000000000".parse().unwrap(),
            phase: Phase::NeedsRepair,
            reason: Some("the disk\u{1b}[2J is busy".to_owned()),
            created_unix_ms: NOW - 400_000_000,
            deadline_unix_ms: None,
            metadata: BTreeMap::new(),
            ..view()
        };
        assert_eq!(
            format!("\n{}", table(&[view(), stopped], NOW)),
            "
ID                    STATE         AGE  TIME LEFT    TEMPLATE      VCPUS  MEMORY   DISK      STACK           REMARKS
sbabcdefghijklmnopqr  running       3m   10m (pause)  0123456789ab  2      512 MiB  4096 MiB  qemu+tcg+qcow2  owner=me
sb000000000000000000  needs_repair  4d   -            0123456789ab  2      512 MiB  4096 MiB  qemu+tcg+qcow2  the disk\u{fffd}[2J is busy
"
        );
    }

    #[test]
    fn one_sandbox_is_a_line_for_each_property() {
        assert_eq!(
            format!("\n{}", details(&View { reason: Some("why".to_owned()), ..view() }, NOW)),
            "
id         sbabcdefghijklmnopqr
state      running
reason     why
age        3m
time left  10m (pause)
template   0123456789abcdef0123
kernel     6.12.9
vcpus      2
memory     512 MiB
disk       4096 MiB (qcow2)
vmm        qemu 10.0.2 (tcg)
start      warm
label      owner=me
"
        );
        assert_eq!(deadline_sentence(&view(), NOW), "sbabcdefghijklmnopqr is paused in 10m");
    }

    #[test]
    fn what_a_sandbox_takes() {
        let running = Stat {
            memory_bytes: Some(230 << 20),
            cpu_ms: Some(12_340),
            disk_own_bytes: 5 << 20,
            disk_shared_bytes: 3 << 30,
            memory_file_bytes: 0,
            vmm_pid: Some(4711),
            network_rx_bytes: Some(7 << 20),
            network_tx_bytes: Some(0),
            guest: Some(GuestStat {
                cpus: 2,
                cpu_percent: 12.34,
                memory_total_bytes: 240 << 20,
                memory_used_bytes: 60 << 20,
                disk_total_bytes: 1 << 30,
                disk_used_bytes: 512 << 20,
                ..GuestStat::default()
            }),
        };
        assert_eq!(
            format!("\n{}", stat(&running)),
            "
memory          230.0 MiB
cpu time        12.3 s
disk, its own   5.0 MiB
  of it memory  0 B
disk, shared    3.0 GiB
network, in     7.0 MiB
network, out    0 B
vmm pid         4711
guest, cpus     12.3 % of 2
guest, memory   60.0 MiB of 240.0 MiB
guest, disk     512.0 MiB of 1.0 GiB
"
        );
        assert!(stat(&Stat::default()).starts_with("memory          - (at rest)\n"));
        let through_a_server = stat(&Stat { vmm_pid: None, ..running });
        assert!(through_a_server.contains("vmm pid         - (not told)\n"), "{through_a_server}");
    }

    #[test]
    fn commands_are_the_guests_words() {
        let processes = [
            RunningProcess { pid: 77, tag: None, command: vec!["sleep".into(), "1\u{1b}[H".into()] },
            RunningProcess { pid: 1234, tag: Some("web".into()), command: vec!["x".repeat(200)] },
        ];
        let expected =
            format!("PID   TAG  COMMAND\n77    -    sleep 1\u{fffd}[H\n1234  web  {}\n", "x".repeat(COMMAND_CHARS_MAX));
        assert_eq!(process_table(&processes), expected);
    }

    #[test]
    fn programs_get_the_secret_only_where_they_need_it() {
        let changed = Changed {
            view: view(),
            timings: vec![Timing { phase: "boot".into(), took: Duration::from_micros(1_234_567) }],
        };
        let mut expected = json!({
            "id": "sbabcdefghijklmnopqr",
            "state": "running",
            "reason": null,
            "revision": 4,
            "created_unix_ms": NOW - 200_000,
            "deadline_unix_ms": NOW + 600_000,
            "on_timeout": "pause",
            "template": "0123456789abcdef0123",
            "kernel": "6.12.9",
            "vcpus": 2,
            "memory_mib": 512,
            "disk_mib": 4096,
            "vmm": { "driver": "qemu", "version": "10.0.2", "accel": "tcg" },
            "storage": "qcow2",
            "start": "warm",
            "metadata": { "owner": "me" },
            "timings_ms": { "boot": 1234.567 },
        });
        assert_eq!(changed_json(&changed, Token::Hidden), expected);
        expected["access_token"] = "secret".into();
        assert_eq!(changed_json(&changed, Token::Shown), expected);
    }

    #[test]
    fn each_fork_is_a_sandbox_or_an_error() {
        let made = Changed { view: view(), timings: Vec::new() };
        let error = AgentError { code: Code::Exhausted, message: "no room".to_owned() };
        let timings = vec![Timing { phase: "capture".into(), took: Duration::from_millis(5) }];
        let forked = Forked { children: vec![Ok(made.clone()), Err(error)], timings };
        assert_eq!(
            forked_json(&"sb000000000000000000".parse().unwrap(), &forked),
            json!({
                "id": "sb000000000000000000",
                "forks": [
                    { "sandbox": changed_json(&made, Token::Shown), "error": null },
                    { "sandbox": null, "error": { "code": "exhausted", "message": "no room" } },
                ],
                "timings_ms": { "capture": 5.0 },
            })
        );
    }
}
