//! Which crate may know which: the architecture's layers, as cargo sees them.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Finding;
use crate::cargo;

/// For each of our crates, those of ours it may depend on. A new crate has to be entered here: decide what it may know.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("wrenn-proto", &[]),
    ("wrenn-sys", &[]),
    ("wrenn-guest", &["wrenn-proto", "wrenn-sys"]),
    ("wrenn-shim", &["wrenn-proto", "wrenn-sys"]),
    ("wrenn-engine", &["wrenn-proto", "wrenn-sys"]),
    ("wrenn-agent", &["wrenn-engine", "wrenn-proto", "wrenn-sys"]),
    ("wrenn", &["wrenn-agent", "wrenn-engine", "wrenn-proto", "wrenn-sys"]),
    ("wrenn-testworld", &["wrenn-engine", "wrenn-sys"]),
    ("wrenn-testbed-runner", &["wrenn-sys"]),
    ("wrenn-testbed", &["wrenn-engine", "wrenn-sys", "wrenn-testbed-runner"]),
    ("xtask", &["wrenn-sys"]),
];

/// What tests and benchmarks may use besides: the world they run in, and what they test or measure.
const TESTS_MAY_KNOW: &[&str] = &["wrenn-testworld", "wrenn-agent", "wrenn-engine", "wrenn-proto", "wrenn-sys"];

/// That one of our crates depends on another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    from: String,
    to: String,
    for_tests: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// The edges between our crates, as their Cargo.toml files have them.
pub fn edges() -> Result<Vec<Edge>> {
    let text = cargo::job(["metadata", "--no-deps", "--format-version", "1"]).capture()?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata says something unexpected")?;
    let edges = metadata.packages.into_iter().flat_map(|package| {
        let ours = package.dependencies.into_iter().filter(|dependency| dependency.path.is_some());
        ours.map(move |dependency| Edge {
            from: package.name.clone(),
            to: dependency.name,
            for_tests: dependency.kind.as_deref() == Some("dev"),
        })
    });
    Ok(edges.collect())
}

/// Every edge that must not be.
pub fn findings(edges: &[Edge]) -> Vec<Finding> {
    edges
        .iter()
        .filter(|edge| !is_allowed(edge))
        .map(|edge| Finding {
            path: format!("{} (Cargo.toml)", edge.from),
            line: 0,
            what: format!("{} must not know {} (xtask/src/check/crates.rs says who may know whom)", edge.from, edge.to),
        })
        .collect()
}

fn is_allowed(edge: &Edge) -> bool {
    let by_layer = MAY_KNOW.iter().any(|(from, to)| *from == edge.from && to.contains(&edge.to.as_str()));
    by_layer || edge.for_tests && TESTS_MAY_KNOW.contains(&edge.to.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_breaks_the_layers() {
        for (from, to, for_tests, allowed) in [
            ("wrenn-agent", "wrenn-engine", false, true),
            ("wrenn-engine", "wrenn-agent", false, false),
            ("wrenn-agent", "wrenn-server", false, false),
            ("wrenn-agent", "wrenn-server", true, false),
            ("wrenn-guest", "wrenn-engine", false, false),
            ("wrenn-engine", "wrenn-testworld", true, true),
            ("wrenn-engine", "wrenn-testworld", false, false),
            ("wrenn-new", "wrenn-sys", false, false),
        ] {
            let edge = Edge { from: from.to_owned(), to: to.to_owned(), for_tests };
            assert_eq!(findings(&[edge]).is_empty(), allowed, "{from} -> {to}");
        }
    }
}
