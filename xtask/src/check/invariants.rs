//! The negative invariants of ARCHITECTURE.md that can be read off the source: what is *not* there.
//!
//! The source is read as tokens, so that comments and strings never count.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::Finding;
use super::tree::TextFile;

/// Modules of the engine that never import each other; only the agent composes them.
const SIBLINGS: [&str; 5] = ["vmm", "storage", "network", "memory", "image"];

/// The one crate with unsafe code.
const UNSAFE_ALLOWED: &str = "crates/sys/";

/// What the server may know of the crates below it: the agent's interface and the way into a guest from there (`fake` is there for
/// tests alone), names and units. All else would be a way to the host.
const SERVER: &str = "crates/server/";
const SERVER_MAY_KNOW: [(&str, &[&str]); 2] = [
    ("wrenn_agent", &["host_agent", "rpc", "guest_link", "envd_client", "fake"]),
    ("wrenn_engine", &["names", "units"]),
];

/// Where programs may be started: the engine's runner, xtask's own, and the database that tests have beside them.
const PROGRAMS_ALLOWED: [&str; 4] = [
    "crates/engine/src/command.rs",
    "crates/engine/src/command/",
    "crates/testworld/src/postgres.rs",
    "xtask/src/process.rs",
];

/// Every place in these files that breaks an invariant.
pub fn findings(files: &[TextFile]) -> Vec<Finding> {
    files.iter().filter(|file| file.is_rust()).flat_map(findings_in).collect()
}

fn findings_in(file: &TextFile) -> Vec<Finding> {
    let Ok(tokens) = file.text.parse::<TokenStream>() else {
        return vec![Finding { path: file.path.clone(), line: 0, what: "this is not Rust".to_owned() }];
    };
    let mut scan = Scan { file, engine: EngineModule::of(&file.path), findings: Vec::new() };
    scan.tokens(tokens, 0);
    scan.findings
}

/// One of the engine's [`SIBLINGS`], and how deep in it a file's module is.
#[derive(Debug, PartialEq, Eq)]
struct EngineModule {
    name: String,
    depth: usize,
}

impl EngineModule {
    fn of(path: &str) -> Option<Self> {
        let inner = path.strip_prefix("crates/engine/src/")?.strip_suffix(".rs")?;
        let module = inner.strip_suffix("/mod").unwrap_or(inner);
        let name = module.split('/').next().filter(|name| SIBLINGS.contains(name))?;
        Some(Self { name: name.to_owned(), depth: module.split('/').count() })
    }
}

struct Scan<'a> {
    file: &'a TextFile,
    engine: Option<EngineModule>,
    findings: Vec<Finding>,
}

impl Scan<'_> {
    /// Reads a group's tokens; `inline` is how many `mod name { … }` they are in.
    fn tokens(&mut self, tokens: TokenStream, inline: usize) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => {
                    let is_module = at >= 2 && is_ident(tokens.get(at - 2), "mod");
                    self.tokens(group.stream(), inline + usize::from(is_module));
                }
                TokenTree::Ident(_) => self.ident(&tokens[..at], &tokens[at..], inline),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    fn ident(&mut self, before: &[TokenTree], from_here: &[TokenTree], inline: usize) {
        let path = &self.file.path;
        if is_ident(from_here.first(), "unsafe") && !path.starts_with(UNSAFE_ALLOWED) {
            self.report(from_here, "only crates/sys has unsafe code");
        }
        let allowed = PROGRAMS_ALLOWED.iter().any(|place| path.starts_with(place)) || is_test(path);
        if !allowed && (names_process_command(from_here) || is_ident(from_here.first(), "disallowed_methods")) {
            self.report(from_here, "only engine::command (and wrenn_sys::spawn) start programs");
        }
        if !ends_with_colons(before) {
            self.sibling(from_here, inline);
            self.server(from_here);
        }
    }

    /// Reports a path of the server's into what it must not know.
    fn server(&mut self, path: &[TokenTree]) {
        if !self.file.path.starts_with(SERVER) {
            return;
        }
        let Some((of, allowed)) = SERVER_MAY_KNOW.iter().find(|(of, _)| is_ident(path.first(), of)) else { return };
        let names = if is_colons(&path[1..]) { first_names(&path[3..]) } else { Vec::new() };
        if names.is_empty() || names.iter().any(|name| !allowed.contains(&name.as_str())) {
            self.report(path, &format!("of {of} the server may know {} alone", allowed.join(", ")));
        }
    }

    /// Reports a path from the crate's root into another of the engine's modules.
    fn sibling(&mut self, path: &[TokenTree], inline: usize) {
        let Some(engine) = &self.engine else { return };
        let supers = path.chunks(3).take_while(|step| is_ident(step.first(), "super") && is_colons(&step[1..])).count();
        let from_root = if supers > 0 {
            (supers >= engine.depth + inline).then(|| &path[supers * 3..])
        } else {
            (is_ident(path.first(), "crate") && is_colons(&path[1..])).then(|| &path[3..])
        };
        let others = |name: &String| SIBLINGS.contains(&name.as_str()) && *name != engine.name;
        let named = from_root.map(first_names).unwrap_or_default().into_iter().find(others);
        if let Some(other) = named {
            let what = format!("inside engine, `{}` must not know `{other}`: the agent composes them", engine.name);
            self.report(path, &what);
        }
    }

    fn report(&mut self, at: &[TokenTree], what: &str) {
        let line = at.first().map_or(0, |token| token.span().start().line);
        self.findings.push(Finding { path: self.file.path.clone(), line, what: what.to_owned() });
    }
}

/// Whether a file holds nothing but tests: they start what they test, and tools to judge its output by.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// The names a path goes on with: one, or each of a `{…}` list.
fn first_names(path: &[TokenTree]) -> Vec<String> {
    match path.first() {
        Some(TokenTree::Ident(name)) => vec![name.to_string()],
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let items = inner.split(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ','));
            items.filter_map(|item| item.first()).map(ToString::to_string).collect()
        }
        Some(TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_)) | None => Vec::new(),
    }
}

/// `process::Command`, of std or tokio, named in a path or in a `use` list; the engine's own `command::Command` is not it.
fn names_process_command(tokens: &[TokenTree]) -> bool {
    let from_process = is_ident(tokens.first(), "process") && is_colons(&tokens[1..]);
    from_process && first_names(&tokens[3..]).iter().any(|name| name == "Command")
}

fn is_ident(token: Option<&TokenTree>, name: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(ident)) if ident == name)
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    let colon = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':');
    tokens.len() >= 2 && tokens[..2].iter().all(colon)
}

fn ends_with_colons(tokens: &[TokenTree]) -> bool {
    tokens.len() >= 2 && is_colons(&tokens[tokens.len() - 2..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let file = TextFile { path: path.to_owned(), text: text.to_owned() };
        findings(&[file]).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn engine_modules_do_not_know_each_other() {
        for (path, text, wanted) in [
            ("vmm.rs", "use crate::network::Tap;", 1),
            ("vmm/mod.rs", "use crate::{limits, storage::Layer};", 1),
            ("vmm/qemu/args.rs", "fn f() { crate::image::x() }", 1),
            ("vmm/qemu.rs", "use super::super::network::Tap;", 1),
            ("vmm.rs", "use super::network;", 1),
            ("vmm.rs", "mod tests { use super::super::{units, memory}; }", 1),
            ("network.rs", "macro_call!(crate::storage::x);", 1),
            ("vmm.rs", "use crate::{limits, names::Slot, units};", 0),
            ("vmm.rs", "use crate::vmm::Vm; use self::memory::Base; use super::vmm::Vm;", 0),
            ("vmm/qemu.rs", "use super::memory::Base;", 0),
            ("vmm.rs", "mod tests { use super::memory::Base; }", 0),
            ("vmm.rs", "// crate::network\nconst A: &str = \"crate::network\";", 0),
            ("vmm.rs", "use other_crate::network::x; use wrenn_sys::network;", 0),
            ("probe.rs", "use crate::network::x;", 0),
        ] {
            assert_eq!(lines(&format!("crates/engine/src/{path}"), text).len(), wanted, "{path}: {text}");
        }
        assert_eq!(lines("crates/agent/src/lib.rs", "use crate::network::x;"), NONE);
    }

    #[test]
    fn the_server_knows_the_agents_interface_alone() {
        for (text, wanted) in [
            ("use wrenn_agent::host_agent::{HostAgent, View};", 0),
            ("use wrenn_agent::{guest_link, host_agent::View};", 0),
            ("use wrenn_agent::fake::Fake; use wrenn_agent::rpc::{self, Remote};", 0),
            ("use wrenn_engine::{names::SandboxId, units::Mib};", 0),
            ("fn f() -> wrenn_agent::envd_client::Entry { g() }", 0),
            ("use wrenn_agent::manager::Manager;", 1),
            ("use wrenn_agent::{host_agent::View, instance::Instance};", 1),
            ("fn f() { wrenn_agent::lock::g() }", 1),
            ("use wrenn_engine::command::Command;", 1),
            ("use wrenn_engine::{names, network};", 1),
            ("use wrenn_agent as a;", 1),
            ("use wrenn_engine::*;", 1),
            ("use crate::wrenn_engine::x; // wrenn_agent::manager", 0),
        ] {
            assert_eq!(lines("crates/server/src/app.rs", text).len(), wanted, "{text}");
            assert_eq!(lines("crates/wrenn/src/serve/mod.rs", text), NONE, "{text}");
        }
    }

    #[test]
    fn only_sys_has_unsafe() {
        let text = "fn f() {}\n\nfn g() { unsafe { h() } }\n";
        assert_eq!(lines("crates/agent/src/lib.rs", text), [3]);
        assert_eq!(lines("crates/guest/src/main.rs", "#[unsafe(no_mangle)] extern fn f() {}"), [1]);
        assert_eq!(lines("crates/sys/src/dm.rs", text), NONE);
        assert_eq!(lines("crates/agent/src/lib.rs", "// unsafe\n#![forbid(unsafe_code)]"), NONE);
    }

    #[test]
    fn one_module_starts_programs() {
        for text in [
            "fn f() { std::process::Command::new(\"ls\"); }",
            "use tokio::process::Command;",
            "use std::{io, process::{Command, Stdio}};",
        ] {
            assert_eq!(lines("crates/engine/src/image.rs", text), [1], "{text}");
            assert_eq!(lines("crates/engine/src/command.rs", text), NONE, "{text}");
            assert_eq!(lines("crates/wrenn/tests/run.rs", text), NONE, "{text}");
        }
        assert_eq!(lines("crates/agent/src/lib.rs", "#![allow(clippy::disallowed_methods)]"), [1]);
        assert_eq!(
            lines("crates/agent/src/lib.rs", "use wrenn_engine::command::Command; use std::process::ExitStatus;"),
            NONE
        );
    }
}
