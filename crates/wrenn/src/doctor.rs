//! `wrenn doctor`: what this host can do, one line each, and the remedy for what it cannot.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;
use wrenn_engine::probe::{self, Capabilities, Capability, Choice, Chosen, Lacks, Options, State, Wishes};

/// Looks at the host and prints what it can do; success if sandboxes can run.
pub fn run(options: &Options, json: bool) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let host = runtime.block_on(probe::look(options));
    // A guest that hangs in the kernel keeps its thread; it must not keep us.
    runtime.shutdown_background();
    let chosen = host.choose(&Wishes::default());
    let text = if json {
        serde_json::to_string_pretty(&Report::of(&host, chosen.as_ref())).context("cannot write the report as JSON")?
            + "\n"
    } else {
        text(&host, chosen.as_ref(), io::stdout().is_terminal())
    };
    io::stdout().write_all(text.as_bytes()).context("cannot print the report")?;
    Ok(if host.can_run() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(host: &Capabilities, chosen: Result<&Chosen, &Lacks>, colours: bool) -> String {
    let width = host.list().iter().map(|each| each.name.as_str().len()).max().unwrap_or(0);
    let line = |each: &Capability| line(each, host.requires(each.name), width, colours);
    let mut text: String = host.list().iter().map(line).collect();
    match chosen {
        Ok(chosen) => {
            text.push_str("\nSandboxes can run here, with\n");
            for (what, value, reason) in rows(chosen) {
                // Writing to a String cannot fail.
                writeln!(text, "  {what:<8} {value:<11} ({reason})").expect("memory");
            }
        }
        Err(lacks) => {
            let names: Vec<&str> = lacks.0.iter().map(|lack| lack.what.as_str()).collect();
            writeln!(text, "\nSandboxes cannot run here before this is there: {}", names.join(", ")).expect("memory");
        }
    }
    text
}

fn line(capability: &Capability, required: bool, width: usize, colours: bool) -> String {
    let (mark, colour) = match (&capability.state, required) {
        (State::Ready, _) => ("ok  ", 32),
        (State::Degraded { .. }, _) => ("warn", 33),
        (State::Missing { .. }, false) => ("none", 33),
        (State::Missing { .. }, true) => ("FAIL", 31),
    };
    let mark = if colours { format!("\x1b[{colour}m{mark}\x1b[0m") } else { mark.to_owned() };
    let remedy = capability.state.remedy().map(|remedy| format!("; remedy: {remedy}")).unwrap_or_default();
    format!("{mark}  {:<width$}  {}{remedy}\n", capability.name.as_str(), capability.detail)
}

/// What was chosen, as text: what, which, why.
fn rows(chosen: &Chosen) -> [(&'static str, String, &str); 6] {
    fn row<'a, T: ToString>(what: &'static str, choice: &'a Choice<T>) -> (&'static str, String, &'a str) {
        (what, choice.value.to_string(), &choice.reason)
    }
    [
        row("vmm", &chosen.vmm),
        row("accel", &chosen.accel),
        row("storage", &chosen.storage),
        row("memory", &chosen.restore),
        row("cgroup", &chosen.cgroup),
        row("jail", &chosen.jail),
    ]
}

/// The report as JSON. Field names, capability names and state words are stable; texts are not.
#[derive(Serialize)]
struct Report<'a> {
    /// Whether sandboxes can run.
    ok: bool,
    version: &'static str,
    capabilities: Vec<JsonCapability<'a>>,
    /// By what is chosen (`vmm`, `accel`, …); empty when sandboxes cannot run.
    chosen: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize)]
struct JsonCapability<'a> {
    name: &'static str,
    /// `ready`, `degraded` or `missing`.
    state: &'static str,
    /// Whether no sandbox runs without it.
    required: bool,
    detail: &'a str,
    remedy: Option<&'a str>,
}

impl<'a> Report<'a> {
    fn of(host: &'a Capabilities, chosen: Result<&Chosen, &Lacks>) -> Self {
        let capabilities = host.list().iter().map(|each| JsonCapability {
            name: each.name.as_str(),
            state: each.state.word(),
            required: host.requires(each.name),
            detail: &each.detail,
            remedy: each.state.remedy(),
        });
        let chosen = chosen.map(rows).into_iter().flatten();
        let chosen = chosen
            .map(|(what, value, reason)| (what.to_owned(), serde_json::json!({ "value": value, "reason": reason })));
        Self {
            ok: host.can_run(),
            version: env!("CARGO_PKG_VERSION"),
            capabilities: capabilities.collect(),
            chosen: chosen.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Capabilities {
        let options = Options {
            data_dir: "/".into(),
            qemu: None,
            firecracker: None,
            network: wrenn_engine::network::NetworkConfig::default(),
            depth: probe::Depth::Choose,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(probe::look(&options))
    }

    #[test]
    fn every_capability_has_a_line_and_what_lacks_has_a_remedy() {
        let host = host();
        let chosen = host.choose(&Wishes::default());
        let text = text(&host, chosen.as_ref(), false);
        for capability in host.list() {
            let line = text.lines().find(|line| line.contains(&format!("  {} ", capability.name))).unwrap();
            assert_eq!(line.contains("; remedy: "), capability.state != State::Ready, "{line}");
        }
        assert_eq!(text.contains("Sandboxes can run here"), host.can_run());
    }

    #[test]
    fn the_json_has_stable_names() {
        let host = host();
        let chosen = host.choose(&Wishes::default());
        let json = serde_json::to_value(Report::of(&host, chosen.as_ref())).unwrap();
        assert_eq!(json["ok"], host.can_run());
        let names: Vec<&str> =
            json["capabilities"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
        let wanted = [
            "root",
            "kernel",
            "qemu",
            "firecracker",
            "kvm",
            "network_namespaces",
            "tun",
            "veth",
            "nftables",
            "firewall",
            "dns",
            "cgroup_v2",
            "device_mapper",
            "loop_devices",
            "userfaultfd",
            "memory",
            "swap",
            "disk",
        ];
        assert_eq!(names, wanted);
        assert_eq!(json["capabilities"][0]["required"], true);
        if host.can_run() {
            let keys: Vec<&String> = json["chosen"].as_object().unwrap().keys().collect();
            assert_eq!(keys, ["accel", "cgroup", "jail", "memory", "storage", "vmm"]);
        }
    }
}
