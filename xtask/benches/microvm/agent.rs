//! `wrenn agent` as a process under measurement, and the sandboxes that it is asked for.
//!
//! It is asked over its socket, as `wrenn sandbox` asks it, but without the start of a program for each question. Its
//! sandboxes carry a label, so that nobody else's are touched, and those of a run that was cut off are removed by the next.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use tokio::time::sleep;
use wrenn_agent::envd_client::{Command, EnvdClient, ExecEnd, ExecEvent};
use wrenn_agent::guest_link;
use wrenn_agent::host_agent::{Changed, CreateRequest, HostAgent as _, Phase, View};
use wrenn_agent::rpc::{self, Remote};
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::DriverKind;
use wrenn_sys::spawn::{ExitStatus, Spawn};

use crate::program::{Running, children, rss};
use crate::setting::Setting;

/// The label of what is measured.
const LABEL: (&str, &str) = ("made-by", "wrenn-bench");
/// How long an agent may take to answer, and how often it is asked: it looks after what it finds first.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);
pub const ASK_EVERY: Duration = Duration::from_millis(2);

/// An agent that answers. It is to be [ended](Agent::end); dropping it kills it and leaves its sandboxes.
pub struct Agent {
    running: Running,
    remote: Remote,
}

/// An agent's process, which may not answer yet; dropping it kills it.
pub struct Started {
    running: Running,
    log: File,
}

impl Started {
    /// Whether it has ended.
    pub fn has_ended(&self) -> Result<bool> {
        self.running.has_ended()
    }

    /// How long ago it was started.
    pub fn since(&self) -> Duration {
        self.running.started().elapsed()
    }

    /// All that it has said.
    pub fn words(&mut self) -> String {
        let mut text = String::new();
        match self.log.rewind().and_then(|()| self.log.read_to_string(&mut text)) {
            Ok(_) => format!("the agent said: {}", text.trim_start()),
            Err(error) => format!("what the agent said cannot be read: {error}"),
        }
    }

    /// Waits until it answers.
    pub async fn answered(mut self, setting: &Setting) -> Result<Agent> {
        match answering(setting, &self.running).await {
            Ok(remote) => Ok(Agent { running: self.running, remote }),
            Err(error) => Err(error.context(self.words())),
        }
    }
}

impl Agent {
    /// Starts one with the drivers of everything else that is measured.
    pub async fn start(setting: &Setting) -> Result<Self> {
        Self::start_with(setting, &[]).await
    }

    /// The same with these arguments.
    pub async fn start_with(setting: &Setting, args: &[&str]) -> Result<Self> {
        Self::spawn(setting, &[&["agent"], args].concat())?.answered(setting).await
    }

    /// Starts the program with these arguments, which make it an agent.
    pub fn spawn(setting: &Setting, args: &[&str]) -> Result<Started> {
        let log = tempfile::tempfile()?;
        let vmm = setting.host.vmm.describe();
        let spawn = Spawn::new(&setting.wrenn)
            .args(args.iter().copied())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("WRENN_DIR", &setting.data)
            .env("WRENN_VMM", vmm.driver.to_string())
            .env("WRENN_ACCEL", vmm.accel.to_string())
            .env("WRENN_STORAGE", setting.host.storage.backend().to_string())
            .env(program_variable(vmm.driver), &setting.vmm_program);
        let running = Running::start(spawn.fd(log.as_fd(), 2))?;
        Ok(Started { running, log })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// The way to it.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Memory it has resident now, in bytes.
    pub fn rss(&self) -> Result<u64> {
        rss(self.running.pid())
    }

    /// A new sandbox with that much memory.
    pub async fn create(&self, setting: &Setting, memory: Mib) -> Result<View> {
        Ok(self.create_as(setting.request_of(memory)).await?.view)
    }

    /// A new sandbox as asked for, with the label.
    pub async fn create_as(&self, mut request: CreateRequest) -> Result<Changed> {
        request.wishes.metadata = Self::label();
        Ok(self.remote.create(request).await?.changed)
    }

    /// The labels of what is measured.
    pub fn label() -> BTreeMap<String, String> {
        BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())])
    }

    /// The shim of a sandbox that runs: it has the sandbox's folder in its command line.
    pub fn shim_pid(&self, view: &View) -> Result<u32> {
        let shim = processes_with(view.id.as_str())?.into_iter().find(|(_, line)| line.contains("shim.json"));
        Ok(shim.with_context(|| format!("{} has no shim", view.id))?.0)
    }

    /// The VMM of a sandbox that runs: its shim's child.
    pub fn vmm_pid(&self, view: &View) -> Result<u32> {
        children(self.shim_pid(view)?)?.first().copied().with_context(|| format!("{} has no VMM", view.id))
    }

    /// The guest of a sandbox.
    pub fn guest(&self, view: &View) -> EnvdClient {
        guest_link::guest(Arc::new(self.remote.clone()), view)
    }

    /// Runs a command in a sandbox, which must succeed.
    pub async fn exec(&self, view: &View, words: &[&str]) -> Result<()> {
        let (program, args) = words.split_first().context("no command")?;
        let command = Command {
            program: (*program).to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            user: Some("root".to_owned()),
            ..Command::default()
        };
        let mut exec = self.guest(view).start(command).await?;
        loop {
            match exec.next().await? {
                ExecEvent::End(ExecEnd::Exited(0)) => return Ok(()),
                ExecEvent::End(end) => bail!("`{program}` ended with {end:?}"),
                ExecEvent::Stdout(_) | ExecEvent::Stderr(_) | ExecEvent::Terminal(_) | ExecEvent::Gap { .. } => {}
            }
        }
    }

    /// Those of its sandboxes that were made here.
    pub async fn sandboxes(&self) -> Result<Vec<View>> {
        let is_ours = |view: &View| view.metadata.get(LABEL.0).is_some_and(|value| value == LABEL.1);
        Ok(self.remote.list().await?.into_iter().filter(is_ours).collect())
    }

    /// Removes the sandboxes that were made here.
    pub async fn clear(&self) -> Result<()> {
        for view in self.sandboxes().await? {
            self.remote.destroy(&view.id).await?;
        }
        Ok(())
    }

    /// `kill -9`; its sandboxes go on.
    pub fn kill(self) -> Result<()> {
        ensure!(self.running.signal(Signal::KILL)?, "the agent had ended already");
        self.running.wait()?;
        Ok(())
    }

    /// Removes its sandboxes and ends it in order. What was `taken` before counts more than how this went.
    pub async fn end<T>(self, taken: Result<T>) -> Result<T> {
        let ended = self.finish().await.context("the agent does not end in order");
        taken.and_then(|taken| ended.map(|()| taken))
    }

    async fn finish(self) -> Result<()> {
        self.clear().await?;
        self.leave()
    }

    /// Ends it in order; its sandboxes go on.
    pub fn leave(self) -> Result<()> {
        ensure!(self.running.signal(Signal::TERM)?, "it had ended already");
        let ended = self.running.wait()?;
        ensure!(ended.status == ExitStatus::Exited(0), "it ended with {:?}", ended.status);
        Ok(())
    }
}

/// The processes that have `word` in their command lines.
fn processes_with(word: &str) -> Result<Vec<(u32, String)>> {
    let pids = std::fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that has ended meanwhile has none.
    let lines = pids.map(|pid: u32| (pid, std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()));
    Ok(lines.filter(|(_, line)| line.contains(word)).collect())
}

/// Whether all of these run.
pub fn all_run(views: &[View], count: usize) -> bool {
    views.len() == count && views.iter().all(|view| view.phase == Phase::Running)
}

/// Waits until the agent answers.
async fn answering(setting: &Setting, running: &Running) -> Result<Remote> {
    let socket = setting.host.instance.agent_socket();
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        ensure!(!running.has_ended()?, "the agent ended early");
        if let Some(remote) = rpc::connect(&socket).await? {
            remote.list().await?;
            return Ok(remote);
        }
        ensure!(Instant::now() < deadline, "the agent does not answer within {ANSWER_LIMIT:?}");
        sleep(ASK_EVERY).await;
    }
}

/// The variable that names the VMM's program.
fn program_variable(driver: DriverKind) -> &'static str {
    match driver {
        DriverKind::Qemu => "WRENN_QEMU",
        DriverKind::Firecracker => "WRENN_FIRECRACKER",
    }
}
