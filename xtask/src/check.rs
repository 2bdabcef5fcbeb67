//! The rules of the code, checked: formatting, lints, the architecture's negative invariants, documentation.
//!
//! Everything is checked even after something failed, so that one run shows it all.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::ui::Step;

mod crates;
mod docs;
mod invariants;
mod machine;
mod tree;

/// Documentation of the whole workspace, lints of the whole workspace: minutes when cold.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// Lines after which a file should become two.
const LINES_MANY: usize = 800;

/// Something that breaks a rule, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, from the workspace's root.
    pub path: String,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// Which rule, and what breaks it.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Checks everything; the error names what failed.
pub fn run() -> Result<()> {
    let checks = [
        ("rules of the tree", rules as fn() -> Result<()>),
        ("formatting", formatting),
        ("lints (clippy, warnings denied)", lints),
        ("the pages (types, unit tests)", crate::web::check),
        ("documentation (rustdoc, warnings denied)", documentation),
    ];
    let mut failed = Vec::new();
    for (title, check) in checks {
        let step = Step::start_loud(format!("check: {title}"));
        match check() {
            Ok(()) => step.done("ok"),
            Err(error) => {
                eprintln!("    {error:#}");
                step.done("FAILED");
                failed.push(title);
            }
        }
    }
    if !failed.is_empty() {
        bail!("check failed: {}", failed.join(", "));
    }
    Ok(())
}

fn formatting() -> Result<()> {
    cargo::job(["fmt", "--all", "--check"]).show().context("remedy: cargo fmt --all")
}

fn lints() -> Result<()> {
    let args =
        ["clippy", "--locked", "--workspace", "--all-targets", "--keep-going", "--quiet", "--", "--deny", "warnings"];
    cargo::job(args).within(DEADLINE).show()
}

fn documentation() -> Result<()> {
    let args = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items", "--keep-going", "--quiet"];
    // The documentation is for those who work on Wrenn: it has the private items, so links to them lead somewhere.
    let flags = "--deny warnings --allow rustdoc::private_intra_doc_links";
    cargo::job(args).env("RUSTDOCFLAGS", flags).within(DEADLINE).show()
}

/// What only we can check: the invariants of ARCHITECTURE.md, as code.
fn rules() -> Result<()> {
    let files = tree::read(cargo::root())?;
    for file in files.iter().filter(|file| file.is_rust() && file.text.lines().count() > LINES_MANY) {
        eprintln!("    note: {} has more than {LINES_MANY} lines: what is the second file called?", file.path);
    }
    let mut findings = invariants::findings(&files);
    findings.extend(docs::broken_links(&files));
    findings.extend(machine::findings(&files, &machine::Machine::this()));
    findings.extend(crates::findings(&crates::edges()?));
    if findings.is_empty() {
        return Ok(());
    }
    let list: String = findings.iter().map(|finding| format!("\n    {finding}")).collect();
    bail!("{} broken rules:{list}", findings.len())
}
