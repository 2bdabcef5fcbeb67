//! Sandboxes as something to branch: snapshots, forks, rollbacks, warm starts, templates from snapshots.

mod fork;
mod full;
mod kill;
mod model;
mod rollback;
mod snapshot;
mod standby;
mod template;
mod warm;

use serde_json::Value;

use crate::world::{World, text};

impl World {
    /// `wrenn ARGS --json`, which must succeed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.output(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}\n{}", text(&output.stderr), self.agent_words());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A snapshot of a sandbox; its id.
    #[track_caller]
    pub fn snapshot(&self, id: &str, name: &str) -> String {
        self.json(&["snapshot", "create", id, "--name", name])["id"].as_str().unwrap().to_owned()
    }

    /// Forks of a sandbox, all of which must have been made; their ids.
    #[track_caller]
    pub fn fork(&self, id: &str, count: usize) -> Vec<String> {
        let forked = self.json(&["sandbox", "fork", id, "--count", &count.to_string()]);
        let forks = forked["forks"].as_array().unwrap();
        assert_eq!(forks.len(), count);
        forks.iter().map(|fork| fork["sandbox"]["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Removes sandboxes.
    #[track_caller]
    pub fn remove(&self, ids: &[String]) {
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        self.sandbox(&[&["rm"], &ids[..]].concat());
    }
}
