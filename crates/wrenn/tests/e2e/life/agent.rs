//! `wrenn agent` as a process of a test, and what its sandboxes are asked.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::{LIMIT, World, eventually, finish, signal, text};

/// An instance with one agent from begin to end; a [`World`] in all else.
pub struct AgentWorld {
    world: World,
    agent: Agent,
}

impl AgentWorld {
    /// An empty instance, whose agent is started with these arguments.
    pub fn begin(args: &[&str]) -> Self {
        Self::of(World::new(), args)
    }

    /// In a file system of its own, of `mib` MiB.
    pub fn on_small_disk(mib: u64) -> Self {
        Self::of(World::on_small_disk(mib), &[])
    }

    fn of(world: World, args: &[&str]) -> Self {
        let agent = world.agent(args);
        Self { world, agent }
    }

    /// Ends the agent in order; nothing of the instance may be left then.
    pub fn end(self) {
        self.agent.stop();
        self.world.finish_agent();
    }
}

impl std::ops::Deref for AgentWorld {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

/// An agent that runs.
pub struct Agent {
    log: PathBuf,
    child: Child,
    /// How long it took until it answered.
    pub ready_after: Duration,
}

impl World {
    /// Starts the agent of this instance; answers when it answers.
    pub fn agent(&self, args: &[&str]) -> Agent {
        let log = File::options().create(true).append(true).open(self.agent_log()).unwrap();
        let begun = Instant::now();
        let mut command = self.wrenn(&[&["-v", "agent"], args].concat());
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut agent = Agent { log: self.agent_log(), child, ready_after: Duration::ZERO };
        while !self.output(&["sandbox", "ls"]).status.success() {
            let ended = agent.child.try_wait().unwrap();
            assert!(ended.is_none(), "the agent ended early ({ended:?}): {}", self.agent_words());
            assert!(begun.elapsed() < LIMIT, "the agent does not answer: {}", self.agent_words());
            std::thread::sleep(Duration::from_millis(10));
        }
        agent.ready_after = begun.elapsed();
        agent
    }

    fn agent_log(&self) -> PathBuf {
        self.beside().join("agent.log")
    }

    /// All that the agents of this instance have said.
    pub fn agent_words(&self) -> String {
        std::fs::read_to_string(self.agent_log()).unwrap_or_default()
    }

    /// `wrenn sandbox ARGS --json`, which must succeed.
    #[track_caller]
    pub fn sandbox(&self, args: &[&str]) -> Value {
        let output = self.try_sandbox(args);
        assert!(output.status.success(), "sandbox {args:?}: {}\n{}", text(&output.stderr), self.agent_words());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `wrenn sandbox ARGS --json`.
    pub fn try_sandbox(&self, args: &[&str]) -> Output {
        self.output(&[&["sandbox"], args, &["--json"]].concat())
    }

    /// A new sandbox; its id.
    #[track_caller]
    pub fn create(&self, args: &[&str]) -> String {
        self.sandbox(&[&["create"], args].concat())["id"].as_str().unwrap().to_owned()
    }

    /// The state of a sandbox; `gone` if there is none.
    #[track_caller]
    pub fn state(&self, id: &str) -> String {
        let all = self.sandbox(&["ls"]);
        let found = all.as_array().unwrap().iter().find(|view| view["id"] == id);
        found.map_or("gone".to_owned(), |view| view["state"].as_str().unwrap().to_owned())
    }

    /// Waits until a sandbox is in a state.
    #[track_caller]
    pub fn await_state(&self, id: &str, state: &str) {
        eventually(&format!("{id} is {state}"), || self.state(id) == state);
    }

    /// Runs a shell script in a sandbox, which must succeed; what it printed.
    #[track_caller]
    pub fn sh(&self, id: &str, script: &str) -> String {
        let output = self.exec(id, script);
        assert!(output.status.success(), "{script}: {:?} {}", output.status.code(), text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a shell script in a sandbox.
    pub fn exec(&self, id: &str, script: &str) -> Output {
        self.output(&["sandbox", "exec", id, "--", "sh", "-c", script])
    }

    /// Starts a shell script in a sandbox and leaves it there; its pid.
    #[track_caller]
    pub fn detach(&self, id: &str, script: &str) -> String {
        let started = self.output(&["sandbox", "exec", "--detach", "--json", id, "--", "sh", "-c", script]);
        assert!(started.status.success(), "{script}: {}", text(&started.stderr));
        let started: Value = serde_json::from_slice(&started.stdout).unwrap();
        started["pid"].to_string()
    }
}

impl Agent {
    /// `kill -9`.
    pub fn kill(mut self) {
        signal(self.child.id(), "KILL");
        self.child.wait().unwrap();
    }

    /// Waits until it has been killed.
    pub fn await_death(mut self) {
        eventually("the agent dies", || self.child.try_wait().unwrap().is_some());
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Ends it in order.
    pub fn stop(self) {
        signal(self.child.id(), "TERM");
        let output = finish(self.child);
        let words = || std::fs::read_to_string(&self.log).unwrap_or_default();
        assert!(output.status.success(), "{:?}: {}", output.status, words());
    }
}
