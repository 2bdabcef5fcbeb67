//! An agent without a host: sandboxes are entries of a map, guests echo what they are sent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::{Notify, mpsc};
use wrenn_engine::names::SandboxId;
use wrenn_engine::storage::Backend;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::{Accel, Description, DriverKind};

use crate::host_agent::{
    AgentError, Bond, Changed, CreateRequest, Created, HostAgent, OnTimeout, PauseOptions, Phase, ResumeOptions, Stat,
    Timeout, Tunnel, View,
};
use crate::policy::{self, Verb};
use crate::sandbox::Timing;

/// The agent, and what tests see and do behind its back.
#[derive(Default)]
pub struct Fake {
    inner: Arc<Inner>,
    /// What the next calls fail with.
    pub failures: Mutex<VecDeque<AgentError>>,
    /// What was asked for last.
    pub asked: Mutex<Option<CreateRequest>>,
    /// Creations and pauses wait until they are let through, if they are to.
    pub gate: Option<Notify>,
    /// Told whenever a call comes to the gate.
    pub at_gate: Notify,
    /// The guests' ends of tunnels, when a test plays the guest.
    pub guests: Option<mpsc::UnboundedSender<DuplexStream>>,
}

#[derive(Default)]
struct Inner {
    sandboxes: Mutex<BTreeMap<SandboxId, View>>,
    /// Told whenever a bond was dropped.
    released: Notify,
}

/// Destroys its sandbox when it is dropped.
struct Guard(Arc<Inner>, SandboxId);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.sandboxes.lock().unwrap().remove(&self.1);
        self.0.released.notify_one();
    }
}

impl Fake {
    /// One that holds creations and pauses back.
    pub fn gated() -> Self {
        Self { gate: Some(Notify::new()), ..Self::default() }
    }

    /// One whose guests are played by who has the other end.
    pub fn with_guests(guests: mpsc::UnboundedSender<DuplexStream>) -> Self {
        Self { guests: Some(guests), ..Self::default() }
    }

    /// Waits until a bond was dropped.
    pub async fn released(&self) {
        self.inner.released.notified().await;
    }

    /// How many sandboxes there are.
    pub fn count(&self) -> usize {
        self.inner.sandboxes.lock().unwrap().len()
    }

    async fn pass_gate(&self) {
        if let Some(gate) = &self.gate {
            self.at_gate.notify_one();
            gate.notified().await;
        }
    }

    fn failure(&self) -> Result<(), AgentError> {
        self.failures.lock().unwrap().pop_front().map_or(Ok(()), Err)
    }

    fn change(&self, id: &SandboxId, verb: Verb, phase: Phase) -> Result<Changed, AgentError> {
        self.failure()?;
        let mut sandboxes = self.inner.sandboxes.lock().unwrap();
        let view = sandboxes.get_mut(id).ok_or_else(|| AgentError::unknown(id))?;
        policy::check(view.phase, verb)?;
        view.phase = phase;
        view.revision += 1;
        Ok(Changed { view: view.clone(), timings: vec![timing(phase.as_str())] })
    }
}

fn timing(phase: &'static str) -> Timing {
    Timing { phase: phase.into(), took: Duration::from_micros(1234) }
}

/// A sandbox as it was asked for.
pub fn view(number: u8, request: &CreateRequest) -> View {
    View {
        id: SandboxId::from_random([number; 18]),
        revision: 1,
        phase: Phase::Running,
        reason: None,
        created_unix_ms: 1_700_000_000_000 + u64::from(number),
        deadline_unix_ms: request.timeout.map(|timeout| 1_700_000_000_000 + timeout.as_millis() as u64),
        on_timeout: request.on_timeout,
        template: request.template.clone(),
        kernel: "6.12".to_owned(),
        vcpus: request.shape.vcpus,
        memory: request.shape.memory,
        disk: request.shape.disk.unwrap_or(Mib(64)),
        vmm: Description { driver: DriverKind::Qemu, version: "10.0".to_owned(), accel: Accel::Tcg },
        storage: Backend::Qcow2,
        metadata: request.metadata.clone(),
        access_token: "secret".to_owned(),
    }
}

#[async_trait]
impl HostAgent for Fake {
    async fn create(&self, request: CreateRequest) -> Result<Created, AgentError> {
        self.failure()?;
        self.pass_gate().await;
        let number = u8::try_from(self.count()).unwrap();
        let view = view(number, &request);
        self.inner.sandboxes.lock().unwrap().insert(view.id.clone(), view.clone());
        let bond = request.bound.then(|| Bond::new(Guard(Arc::clone(&self.inner), view.id.clone())));
        *self.asked.lock().unwrap() = Some(request);
        Ok(Created { changed: Changed { view, timings: vec![timing("disk"), timing("boot")] }, bond })
    }

    async fn list(&self) -> Result<Vec<View>, AgentError> {
        self.failure()?;
        Ok(self.inner.sandboxes.lock().unwrap().values().cloned().collect())
    }

    async fn get(&self, id: &SandboxId) -> Result<View, AgentError> {
        self.failure()?;
        self.inner.sandboxes.lock().unwrap().get(id).cloned().ok_or_else(|| AgentError::unknown(id))
    }

    async fn pause(&self, id: &SandboxId, options: PauseOptions) -> Result<Changed, AgentError> {
        self.pass_gate().await;
        let mut changed = self.change(id, Verb::Pause, Phase::Paused)?;
        changed.view.reason = options.disk_only.then(|| "disk only".to_owned());
        Ok(changed)
    }

    async fn resume(&self, id: &SandboxId, options: ResumeOptions) -> Result<Changed, AgentError> {
        let mut changed = self.change(id, Verb::Resume, Phase::Running)?;
        changed.view.deadline_unix_ms = options.timeout.map(|timeout| timeout.as_millis() as u64);
        changed.view.reason = Some(format!("ready within {:?}", options.ready_limit));
        Ok(changed)
    }

    async fn destroy(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        let changed = self.change(id, Verb::Destroy, Phase::Destroying)?;
        self.inner.sandboxes.lock().unwrap().remove(id);
        Ok(changed)
    }

    async fn set_timeout(&self, id: &SandboxId, timeout: Timeout) -> Result<View, AgentError> {
        let mut view = self.change(id, Verb::SetTimeout, Phase::Running)?.view;
        view.deadline_unix_ms = timeout.after.map(|after| after.as_millis() as u64);
        view.on_timeout = timeout.on_timeout.unwrap_or(OnTimeout::Pause);
        Ok(view)
    }

    async fn repair(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        self.change(id, Verb::Repair, Phase::Paused)
    }

    async fn stat(&self, id: &SandboxId) -> Result<Stat, AgentError> {
        self.get(id).await?;
        Ok(Stat { memory_bytes: Some(1 << 40), disk_own_bytes: 4096, vmm_pid: Some(77), ..Stat::default() })
    }

    async fn console(&self, id: &SandboxId, bytes_max: u32) -> Result<Vec<u8>, AgentError> {
        self.get(id).await?;
        let text = b"\xffboot\nlogin: ";
        Ok(text[text.len().saturating_sub(bytes_max as usize)..].to_vec())
    }

    async fn dial(&self, id: &SandboxId, _port: u16, _limit: Duration) -> Result<Tunnel, AgentError> {
        policy::check(self.get(id).await?.phase, Verb::Use)?;
        let (ours, guests) = duplex(16 * 1024);
        match &self.guests {
            Some(tests) => tests.send(guests).unwrap(),
            None => drop(tokio::spawn(echo(guests))),
        }
        Ok(Box::new(ours))
    }
}

/// Sends everything back once it has all of it.
async fn echo(mut guest: DuplexStream) {
    let mut heard = Vec::new();
    guest.read_to_end(&mut heard).await.unwrap();
    guest.write_all(&heard).await.unwrap();
    guest.shutdown().await.unwrap();
}
