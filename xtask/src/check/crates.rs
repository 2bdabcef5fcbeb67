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
    ("wrenn-client", &[]),
    ("wrenn-server", &["wrenn-agent", "wrenn-client", "wrenn-engine", "wrenn-proto"]),
    ("wrenn", &["wrenn-agent", "wrenn-client", "wrenn-engine", "wrenn-proto", "wrenn-server", "wrenn-sys"]),
    ("wrenn-testworld", &["wrenn-engine", "wrenn-sys"]),
    ("wrenn-testbed-runner", &["wrenn-sys"]),
    ("wrenn-testbed", &["wrenn-engine", "wrenn-sys", "wrenn-testbed-runner"]),
    ("xtask", &["wrenn-sys"]),
];

/// What tests and benchmarks may use besides: the world they run in, and what they test or measure.
const TESTS_MAY_KNOW: &[&str] = &["wrenn-testworld", "wrenn-agent", "wrenn-engine", "wrenn-proto", "wrenn-sys"];

/// What the benchmarks may use besides: they measure a server, too, in their own process.
const BENCHES_MAY_KNOW: &[(&str, &[&str])] = &[("xtask", &["wrenn-client", "wrenn-server"])];

/// What runs on any system: other people's programs are built with it.
const PORTABLE: &[&str] = &["wrenn-client"];

/// What there is on Unix or on Linux alone, as the beginnings of names.
const UNPORTABLE: &[&str] =
    &["io-uring", "kvm-", "landlock", "libc", "netlink-", "nix", "procfs", "rustix", "seccomp", "vhost", "wrenn-"];

/// That one of our crates depends on another, or one that has to be portable on anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    from: String,
    to: String,
    for_tests: bool,
    is_ours: bool,
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

/// The edges between our crates, and those of the portable ones to anything, as their Cargo.toml files have them.
pub fn edges() -> Result<Vec<Edge>> {
    let text = cargo::job(["metadata", "--no-deps", "--format-version", "1"]).capture()?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata says something unexpected")?;
    let edges = metadata.packages.into_iter().flat_map(|package| {
        let is_portable = PORTABLE.contains(&package.name.as_str());
        let looked_at =
            package.dependencies.into_iter().filter(move |dependency| is_portable || dependency.path.is_some());
        looked_at.map(move |dependency| Edge {
            from: package.name.clone(),
            to: dependency.name,
            for_tests: dependency.kind.as_deref() == Some("dev"),
            is_ours: dependency.path.is_some(),
        })
    });
    Ok(edges.collect())
}

/// Every edge that must not be.
pub fn findings(edges: &[Edge]) -> Vec<Finding> {
    edges.iter().filter_map(|edge| Some((edge, fault(edge)?))).map(|(edge, what)| finding(edge, what)).collect()
}

fn finding(edge: &Edge, what: &str) -> Finding {
    Finding {
        path: format!("{} (Cargo.toml)", edge.from),
        line: 0,
        what: format!("{} {what} {} (xtask/src/check/crates.rs says who may know whom)", edge.from, edge.to),
    }
}

/// What is wrong with an edge.
fn fault(edge: &Edge) -> Option<&'static str> {
    let is_portable = PORTABLE.contains(&edge.from.as_str()) && !edge.for_tests;
    if is_portable && UNPORTABLE.iter().any(|beginning| edge.to.starts_with(beginning)) {
        return Some("has to run on any system, and must not know");
    }
    (edge.is_ours && !is_allowed(edge)).then_some("must not know")
}

fn is_allowed(edge: &Edge) -> bool {
    let is_among =
        |edges: &[(&str, &[&str])]| edges.iter().any(|(from, to)| *from == edge.from && to.contains(&edge.to.as_str()));
    let to_test = || TESTS_MAY_KNOW.contains(&edge.to.as_str()) || is_among(BENCHES_MAY_KNOW);
    is_among(MAY_KNOW) || edge.for_tests && to_test()
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
            ("xtask", "wrenn-server", true, true),
            ("xtask", "wrenn-server", false, false),
            ("wrenn-guest", "wrenn-engine", false, false),
            ("wrenn-engine", "wrenn-testworld", true, true),
            ("wrenn-engine", "wrenn-testworld", false, false),
            ("wrenn-new", "wrenn-sys", false, false),
        ] {
            let edge = Edge { from: from.to_owned(), to: to.to_owned(), for_tests, is_ours: true };
            assert_eq!(findings(&[edge]).is_empty(), allowed, "{from} -> {to}");
        }
    }

    #[test]
    fn what_is_portable_knows_nothing_of_linux() {
        for (from, to, for_tests, allowed) in [
            ("wrenn-client", "reqwest", false, true),
            ("wrenn-client", "rustix", false, false),
            ("wrenn-client", "netlink-sys", false, false),
            ("wrenn-client", "libc", false, false),
            ("wrenn-client", "wrenn-engine", false, false),
            ("wrenn-client", "wrenn-testworld", true, true),
            ("wrenn-agent", "rustix", false, true),
        ] {
            let is_ours = to.starts_with("wrenn-");
            let edge = Edge { from: from.to_owned(), to: to.to_owned(), for_tests, is_ours };
            assert_eq!(findings(&[edge]).is_empty(), allowed, "{from} -> {to}");
        }
    }

    #[test]
    fn the_real_client_is_looked_at() {
        let edges: Vec<Edge> = edges().unwrap().into_iter().filter(|edge| edge.from == "wrenn-client").collect();
        assert!(edges.iter().any(|edge| edge.to == "reqwest"), "{edges:?}");
        assert_eq!(findings(&edges), []);
    }
}
