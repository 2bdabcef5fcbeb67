//! An agent without a host, for tests: sandboxes, snapshots and templates are entries of maps, guests echo what they are sent.
//!
//! It answers, refuses and tells who watches as the real one does, but that nothing takes any time and nothing happens by itself:
//! what would is done by the test ([`Fake::become_phase`], [`Fake::gone`]). The next calls fail if a test wants them to, and those
//! that may take long wait if it wants that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::{Notify, mpsc};
use wrenn_engine::image::{Recipe, UnknownRecipe};
use wrenn_engine::names::{SandboxId, SnapshotId};
use wrenn_engine::storage::Backend;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::{Accel, Description, DriverKind};

use crate::changes::Announcer;
use crate::host_agent::{
    AgentError, Bond, Change, Changed, Changes, Code, CreateRequest, Created, Departure, Ended, ForkRequest, Forked,
    Fresh, GuestStat, HostAgent, HostView, PauseOptions, Phase, Progress, ResumeOptions, SnapshotRequest, SnapshotView,
    Snapshotted, Source, Start, Stat, TemplateView, Timeout, Tunnel, View, WarmView, Warmed,
};
use crate::policy::{self, Verb};
use crate::sandbox::{Shape, Timing};

/// When everything was made, but for what is told apart by it.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// How a build goes on.
pub const BUILD_STEPS: [&str; 2] = ["fetch packages ...", "make the file system ..."];

/// Makes the connections to guests' ports.
pub type Dialer = Arc<dyn Fn(&SandboxId, u16) -> BoxFuture<'static, Result<Tunnel, AgentError>> + Send + Sync>;

/// The agent, and what tests see and do behind its back.
#[derive(Default)]
pub struct Fake {
    inner: Arc<Inner>,
    /// What the next calls fail with.
    pub failures: Mutex<VecDeque<AgentError>>,
    /// What was asked for last.
    pub asked: Mutex<Option<CreateRequest>>,
    /// Sandboxes that there is room for; a fork beyond them is refused.
    room: Option<usize>,
    /// What may take long waits until it is let through, if it is to.
    pub gate: Option<Notify>,
    /// Told whenever a call comes to the gate.
    pub at_gate: Notify,
    /// The guests' ends of tunnels, when a test plays the guest.
    pub guests: Option<mpsc::UnboundedSender<DuplexStream>>,
    /// What answers at the guests' ports, when a test says so.
    pub dialer: Option<Dialer>,
    /// What sandboxes take, where it is not [`stat`].
    pub stats: Mutex<BTreeMap<SandboxId, Stat>>,
}

#[derive(Default)]
struct Inner {
    sandboxes: Mutex<BTreeMap<SandboxId, View>>,
    snapshots: Mutex<BTreeMap<SnapshotId, SnapshotView>>,
    /// By name. Sandboxes start from others too, which are never told of.
    templates: Mutex<BTreeMap<String, TemplateView>>,
    /// Told whenever a bond was dropped.
    released: Notify,
    announcer: Announcer,
    /// How many sandboxes and snapshots were ever made: none has the id of another.
    sandboxes_made: AtomicU32,
    snapshots_made: AtomicU32,
}

impl Inner {
    fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<SandboxId, View>> {
        self.sandboxes.lock().unwrap()
    }

    /// A new sandbox.
    fn add(&self, view: View) {
        self.announcer.tell(|| {
            self.sandboxes().insert(view.id.clone(), view.clone());
            Some(Change::Is(view))
        });
    }

    /// What becomes of a sandbox, if it may.
    fn change(
        &self,
        id: &SandboxId,
        verb: Verb,
        phase: Phase,
        amend: impl FnOnce(&mut View),
    ) -> Result<View, AgentError> {
        let mut changed = Err(AgentError::unknown(id));
        self.announcer.tell(|| {
            let mut sandboxes = self.sandboxes();
            let view = sandboxes.get_mut(id)?;
            changed = policy::check(view.phase, verb).map_err(AgentError::from).map(|()| {
                view.phase = phase;
                view.revision += 1;
                amend(view);
                view.clone()
            });
            changed.as_ref().ok().cloned().map(Change::Is)
        });
        changed
    }

    /// A sandbox is gone.
    fn remove(&self, id: &SandboxId, why: Ended) {
        self.announcer.tell(|| {
            let view = self.sandboxes().remove(id)?;
            Some(Change::Gone(Departure { id: view.id, why, at_unix_ms: EPOCH_MS }))
        });
    }
}

/// Destroys its sandbox when it is dropped.
struct Guard(Arc<Inner>, SandboxId);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.remove(&self.1, Ended::Unbound);
        self.0.released.notify_one();
    }
}

impl Fake {
    /// One that holds back what may take long.
    pub fn gated() -> Self {
        Self { gate: Some(Notify::new()), ..Self::default() }
    }

    /// One whose guests are played by who has the other end.
    pub fn with_guests(guests: mpsc::UnboundedSender<DuplexStream>) -> Self {
        Self { guests: Some(guests), ..Self::default() }
    }

    /// One that has room for so many sandboxes.
    pub fn with_room(room: usize) -> Self {
        Self { room: Some(room), ..Self::default() }
    }

    /// Waits until a bond was dropped.
    pub async fn released(&self) {
        self.inner.released.notified().await;
    }

    /// How many sandboxes there are.
    pub fn count(&self) -> usize {
        self.inner.sandboxes().len()
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

    /// One at whose guests' ports `dialer` answers.
    pub fn with_dialer(dialer: Dialer) -> Self {
        Self { dialer: Some(dialer), ..Self::default() }
    }

    /// What nobody asked for happens to a sandbox.
    ///
    /// # Panics
    /// If there is no such sandbox.
    pub fn become_phase(&self, id: &SandboxId, phase: Phase, reason: Option<&str>) {
        // Whatever it is doing, this may happen.
        let become_it = self.inner.change(id, Verb::Destroy, phase, |view| view.reason = reason.map(str::to_owned));
        become_it.expect("there is such a sandbox");
    }

    /// A sandbox is gone for a reason that is none of a call's.
    pub fn gone(&self, id: &SandboxId, why: Ended) {
        self.inner.remove(id, why);
    }

    /// The agent ends: nothing happens any more.
    pub fn end(&self) {
        self.inner.announcer.close();
    }

    fn change(
        &self,
        id: &SandboxId,
        verb: Verb,
        phase: Phase,
        amend: impl FnOnce(&mut View),
    ) -> Result<Changed, AgentError> {
        self.failure()?;
        let view = self.inner.change(id, verb, phase, amend)?;
        Ok(Changed { view, timings: vec![timing(phase.as_str())] })
    }

    /// As it comes back from rest, or from a snapshot.
    fn come_back(&self, id: &SandboxId, verb: Verb, options: ResumeOptions) -> Result<Changed, AgentError> {
        self.change(id, verb, Phase::Running, |view| {
            view.deadline_unix_ms = options.timeout.map(deadline);
            view.reason = Some(format!("ready within {:?}", options.ready_limit));
        })
    }

    /// The sandbox, if it can be captured now.
    fn captured(&self, id: &SandboxId) -> Result<View, AgentError> {
        self.failure()?;
        let view = self.inner.sandboxes().get(id).cloned().ok_or_else(|| AgentError::unknown(id))?;
        policy::check(view.phase, Verb::Capture)?;
        Ok(view)
    }

    fn found(&self, snapshot: &str) -> Result<SnapshotView, AgentError> {
        let snapshots = self.inner.snapshots.lock().unwrap();
        let is_meant = |view: &&SnapshotView| view.id.as_str() == snapshot || view.name.as_deref() == Some(snapshot);
        let found = snapshots.values().find(is_meant).cloned();
        found.ok_or_else(|| unknown("snapshot", snapshot))
    }

    fn lock_templates(&self) -> MutexGuard<'_, BTreeMap<String, TemplateView>> {
        self.inner.templates.lock().unwrap()
    }

    fn has_warm(&self, fresh: &Fresh) -> bool {
        self.lock_templates()
            .get(&fresh.template)
            .is_some_and(|view| view.warm.iter().any(|warm| fits(warm, &fresh.shape)))
    }

    /// The next child of `parent`.
    fn child(&self, parent: &View, request: &ForkRequest) -> Result<Changed, AgentError> {
        if self.room.is_some_and(|room| self.count() >= room) {
            return Err(AgentError { code: Code::Exhausted, message: "no room".to_owned() });
        }
        let number = self.inner.sandboxes_made.fetch_add(1, Ordering::Relaxed);
        let metadata = if request.metadata.is_empty() { &parent.metadata } else { &request.metadata };
        let view = View {
            id: SandboxId::from_random(digits(number)),
            revision: 1,
            phase: Phase::Running,
            created_unix_ms: EPOCH_MS + u64::from(number),
            deadline_unix_ms: request.timeout.map(deadline),
            start: Start::Warm,
            metadata: metadata.clone(),
            attributes: request.attributes.clone(),
            access_token: format!("secret {number}"),
            ..parent.clone()
        };
        self.inner.add(view.clone());
        Ok(Changed { view, timings: vec![timing("restore")] })
    }
}

/// What makes an id of a number: of two numbers the smaller one makes the one that is first in order.
fn digits(number: u32) -> [u8; 18] {
    const LETTERS: u32 = 26;
    let mut digits = [0; 18];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = (rest % LETTERS) as u8;
        rest /= LETTERS;
    }
    digits
}

fn deadline(timeout: Duration) -> u64 {
    EPOCH_MS + timeout.as_millis() as u64
}

fn timing(phase: &'static str) -> Timing {
    Timing { phase: phase.into(), took: Duration::from_micros(1234) }
}

fn unknown(what: &str, name: &str) -> AgentError {
    AgentError { code: Code::NotFound, message: format!("there is no {what} `{name}`") }
}

fn fits(warm: &WarmView, shape: &Shape) -> bool {
    (warm.vcpus, warm.memory, warm.disk) == (shape.vcpus, shape.memory, shape.disk.unwrap_or(Mib(64)))
}

fn vmm() -> Description {
    Description { driver: DriverKind::Qemu, version: "10.0".to_owned(), accel: Accel::Tcg }
}

/// A sandbox as it was asked for; from a snapshot everything is the snapshot's that is not said here.
pub fn view(number: u32, request: &CreateRequest) -> View {
    let (template, shape) = match &request.source {
        Source::Template(fresh) => (fresh.template.clone(), fresh.shape.clone()),
        Source::Snapshot(_) => (String::new(), Shape { vcpus: 1, memory: Mib(0), disk: None }),
    };
    View {
        id: SandboxId::from_random(digits(number)),
        revision: 1,
        phase: Phase::Running,
        reason: None,
        created_unix_ms: EPOCH_MS + u64::from(number),
        deadline_unix_ms: request.wishes.timeout.map(deadline),
        on_timeout: request.wishes.on_timeout,
        template,
        kernel: "6.12".to_owned(),
        vcpus: shape.vcpus,
        memory: shape.memory,
        disk: shape.disk.unwrap_or(Mib(64)),
        vmm: vmm(),
        storage: Backend::Qcow2,
        start: Start::Cold,
        metadata: request.wishes.metadata.clone(),
        attributes: request.wishes.attributes.clone(),
        access_token: "secret".to_owned(),
    }
}

/// What a sandbox takes.
pub fn stat(view: &View) -> Stat {
    let runs = matches!(view.phase, Phase::Running | Phase::Capturing);
    Stat {
        memory_bytes: runs.then_some(1 << 40),
        cpu_ms: runs.then_some(1500),
        disk_own_bytes: 4096,
        disk_shared_bytes: 8192,
        memory_file_bytes: if runs { 0 } else { 1024 },
        vmm_pid: runs.then_some(77),
        network_rx_bytes: runs.then_some(u64::MAX),
        network_tx_bytes: runs.then_some(0),
        guest: runs.then(guest_stat),
    }
}

/// What a guest says of itself.
pub fn guest_stat() -> GuestStat {
    GuestStat {
        unix_ms: EPOCH_MS,
        cpus: 2,
        cpu_percent: 12.5,
        memory_total_bytes: 256 << 20,
        memory_used_bytes: 40 << 20,
        disk_total_bytes: 1 << 30,
        disk_used_bytes: 3 << 20,
    }
}

/// A snapshot of a sandbox.
pub fn snapshot_view(number: u32, of: &View, request: &SnapshotRequest) -> SnapshotView {
    SnapshotView {
        id: SnapshotId::from_random(digits(number)),
        name: request.name.clone(),
        created_unix_ms: EPOCH_MS + u64::from(number),
        sandbox: of.id.clone(),
        template: of.template.clone(),
        kernel: of.kernel.clone(),
        vcpus: of.vcpus,
        memory: of.memory,
        disk: of.disk,
        vmm: of.vmm.clone(),
        has_memory: of.phase == Phase::Running,
        own_bytes: 4096,
        shared_bytes: 1 << 40,
        attributes: request.attributes.clone(),
    }
}

/// A template that was made from a snapshot.
pub fn template_view(name: &str, of: &SnapshotView) -> TemplateView {
    TemplateView {
        id: format!("id-of-{name}"),
        name: name.to_owned(),
        created: "2026-01-02T03:04:05Z".to_owned(),
        size_bytes: of.disk.bytes(),
        own_bytes: 1 << 20,
        warm: of.has_memory.then(|| warm_view(of.vcpus, of.memory, of.disk)).into_iter().collect(),
    }
}

/// A template that was built.
pub fn built_view(recipe: Recipe) -> TemplateView {
    TemplateView {
        id: format!("id-of-{}", recipe.name()),
        name: recipe.name().to_owned(),
        created: "2026-01-02T03:04:05Z".to_owned(),
        size_bytes: Mib(64).bytes(),
        own_bytes: 2 << 20,
        warm: Vec::new(),
    }
}

/// The host, of which so much memory is taken.
pub fn host_view(memory_taken: Mib) -> HostView {
    HostView {
        host: "fake".to_owned(),
        version: "0.0.0-fake".to_owned(),
        cpus: 8,
        memory: Mib(64 * 1024),
        memory_taken,
        disk_free_bytes: 300 << 30,
        disk_total_bytes: 1 << 40,
        vmm: vmm(),
        storage: Backend::Qcow2,
        swept: 3,
    }
}

/// A warm image.
pub fn warm_view(vcpus: u32, memory: Mib, disk: Mib) -> WarmView {
    let key = format!("{vcpus}-{memory}-{disk}");
    WarmView { key, vcpus, memory, disk, kernel: "6.12".to_owned(), vmm: vmm(), own_bytes: 4096 }
}

#[async_trait]
impl HostAgent for Fake {
    async fn create(&self, request: CreateRequest) -> Result<Created, AgentError> {
        self.failure()?;
        self.pass_gate().await;
        let number = self.inner.sandboxes_made.fetch_add(1, Ordering::Relaxed);
        let mut view = view(number, &request);
        match &request.source {
            Source::Template(fresh) if !fresh.cold && self.has_warm(fresh) => view.start = Start::Warm,
            Source::Template(_) => {}
            Source::Snapshot(snapshot) => {
                let SnapshotView { template, vcpus, memory, disk, .. } = self.found(snapshot)?;
                view = View { template, vcpus, memory, disk, start: Start::Warm, ..view };
            }
        }
        self.inner.add(view.clone());
        let bond = request.wishes.bound.then(|| Bond::new(Guard(Arc::clone(&self.inner), view.id.clone())));
        *self.asked.lock().unwrap() = Some(request);
        Ok(Created { changed: Changed { view, timings: vec![timing("disk"), timing("boot")] }, bond })
    }

    async fn list(&self) -> Result<Vec<View>, AgentError> {
        self.failure()?;
        Ok(self.inner.sandboxes().values().cloned().collect())
    }

    async fn watch(&self) -> Result<Changes, AgentError> {
        self.failure()?;
        self.inner.announcer.watch(|| self.inner.sandboxes().values().cloned().collect())
    }

    async fn get(&self, id: &SandboxId) -> Result<View, AgentError> {
        self.failure()?;
        self.inner.sandboxes().get(id).cloned().ok_or_else(|| AgentError::unknown(id))
    }

    async fn pause(&self, id: &SandboxId, options: PauseOptions) -> Result<Changed, AgentError> {
        self.pass_gate().await;
        self.change(id, Verb::Pause, Phase::Paused, |view| {
            view.deadline_unix_ms = None;
            view.reason = options.disk_only.then(|| "disk only".to_owned());
        })
    }

    async fn resume(&self, id: &SandboxId, options: ResumeOptions) -> Result<Changed, AgentError> {
        self.come_back(id, Verb::Resume, options)
    }

    async fn destroy(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        let changed = self.change(id, Verb::Destroy, Phase::Destroying, |_| {})?;
        self.inner.remove(id, Ended::Requested);
        Ok(changed)
    }

    async fn set_timeout(&self, id: &SandboxId, timeout: Timeout) -> Result<View, AgentError> {
        let changed = self.change(id, Verb::SetTimeout, Phase::Running, |view| {
            view.deadline_unix_ms = timeout.after.map(deadline);
            view.on_timeout = timeout.on_timeout.unwrap_or(view.on_timeout);
        });
        Ok(changed?.view)
    }

    async fn repair(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        self.change(id, Verb::Repair, Phase::Paused, |view| view.reason = None)
    }

    async fn snapshot(&self, id: &SandboxId, request: SnapshotRequest) -> Result<Snapshotted, AgentError> {
        let captured = self.captured(id)?;
        if let Some(name) = request.name.as_deref().filter(|name| self.found(name).is_ok()) {
            return Err(AgentError { code: Code::Invalid, message: format!("there is a snapshot `{name}`") });
        }
        let mut snapshots = self.inner.snapshots.lock().unwrap();
        let view = snapshot_view(self.inner.snapshots_made.fetch_add(1, Ordering::Relaxed), &captured, &request);
        snapshots.insert(view.id.clone(), view.clone());
        Ok(Snapshotted { view, timings: vec![timing("capture")] })
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotView>, AgentError> {
        self.failure()?;
        Ok(self.inner.snapshots.lock().unwrap().values().cloned().collect())
    }

    async fn remove_snapshot(&self, snapshot: &str) -> Result<SnapshotView, AgentError> {
        self.failure()?;
        let view = self.found(snapshot)?;
        self.inner.snapshots.lock().unwrap().remove(&view.id);
        Ok(view)
    }

    async fn fork(&self, id: &SandboxId, request: ForkRequest) -> Result<Forked, AgentError> {
        self.pass_gate().await;
        let parent = self.captured(id)?;
        let children = (0..request.count).map(|_| self.child(&parent, &request)).collect();
        Ok(Forked { children, timings: vec![timing("capture")] })
    }

    async fn rollback(&self, id: &SandboxId, snapshot: &str, options: ResumeOptions) -> Result<Changed, AgentError> {
        let found = self.found(snapshot)?;
        if found.sandbox != *id {
            return Err(AgentError { code: Code::Invalid, message: format!("`{snapshot}` is none of {id}") });
        }
        self.come_back(id, Verb::RollBack, options)
    }

    async fn templates(&self) -> Result<Vec<TemplateView>, AgentError> {
        self.failure()?;
        Ok(self.lock_templates().values().cloned().collect())
    }

    async fn build_template(&self, recipe: &str, progress: Progress) -> Result<TemplateView, AgentError> {
        let recipe: Recipe =
            recipe.parse().map_err(|unknown: UnknownRecipe| AgentError::of(Code::Invalid, &unknown))?;
        progress(BUILD_STEPS[0]);
        self.pass_gate().await;
        self.failure()?;
        progress(BUILD_STEPS[1]);
        let mut templates = self.lock_templates();
        Ok(templates.entry(recipe.name().to_owned()).or_insert_with(|| built_view(recipe)).clone())
    }

    async fn warm(&self, fresh: Fresh, _ready_limit: Duration) -> Result<Warmed, AgentError> {
        self.pass_gate().await;
        self.failure()?;
        let mut templates = self.lock_templates();
        let template = templates.get_mut(&fresh.template).ok_or_else(|| unknown("template", &fresh.template))?;
        let shape = &fresh.shape;
        if let Some(view) = template.warm.iter().find(|warm| fits(warm, shape)) {
            return Ok(Warmed { view: view.clone(), made: false, timings: Vec::new() });
        }
        let view = warm_view(shape.vcpus, shape.memory, shape.disk.unwrap_or(Mib(64)));
        template.warm.push(view.clone());
        Ok(Warmed { view, made: true, timings: vec![timing("boot")] })
    }

    async fn remove_template(&self, template: &str) -> Result<TemplateView, AgentError> {
        self.failure()?;
        self.lock_templates().remove(template).ok_or_else(|| unknown("template", template))
    }

    async fn template_from_snapshot(&self, snapshot: &str, name: &str) -> Result<TemplateView, AgentError> {
        self.pass_gate().await;
        self.failure()?;
        let view = template_view(name, &self.found(snapshot)?);
        self.lock_templates().insert(name.to_owned(), view.clone());
        Ok(view)
    }

    async fn host(&self) -> Result<HostView, AgentError> {
        self.failure()?;
        let takes = |view: &View| matches!(view.phase, Phase::Running | Phase::Capturing).then_some(view.memory.0);
        let taken = self.inner.sandboxes().values().filter_map(takes).fold(0, u32::saturating_add);
        Ok(host_view(Mib(taken)))
    }

    async fn stat(&self, id: &SandboxId) -> Result<Stat, AgentError> {
        let view = self.get(id).await?;
        Ok(self.stats.lock().unwrap().get(id).cloned().unwrap_or_else(|| stat(&view)))
    }

    async fn console(&self, id: &SandboxId, bytes_max: u32) -> Result<Vec<u8>, AgentError> {
        self.get(id).await?;
        let text = b"\xffboot\nlogin: ";
        Ok(text[text.len().saturating_sub(bytes_max as usize)..].to_vec())
    }

    async fn dial(&self, id: &SandboxId, port: u16, _limit: Duration) -> Result<Tunnel, AgentError> {
        policy::check(self.get(id).await?.phase, Verb::Use)?;
        if let Some(dialer) = &self.dialer {
            return dialer(id, port).await;
        }
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

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;
    use crate::host_agent::Wishes;

    fn request() -> CreateRequest {
        let shape = Shape { vcpus: 1, memory: Mib(256), disk: None };
        let fresh = Fresh { template: "minimal".to_owned(), kernel: None, shape, cold: false };
        CreateRequest {
            source: Source::Template(fresh),
            wishes: Wishes { bound: false, ..Wishes::bound(Duration::ZERO) },
        }
    }

    async fn create(fake: &Fake) -> View {
        fake.create(request()).await.unwrap().changed.view
    }

    #[tokio::test]
    async fn it_holds_a_thousand_sandboxes_and_no_id_comes_again() {
        let fake = Fake::default();
        let mut made = Vec::new();
        for _ in 0..1000 {
            made.push(create(&fake).await);
        }
        assert_eq!(fake.list().await.unwrap(), made, "the oldest first");
        let told: Vec<_> = fake.watch().await.unwrap().take(1001).map(Result::unwrap).collect().await;
        assert_eq!(told[..1000], made.iter().cloned().map(Change::Is).collect::<Vec<_>>());
        assert_eq!(told[1000], Change::Complete);
        fake.destroy(&made[999].id).await.unwrap();
        let another = create(&fake).await;
        assert!(made.iter().all(|view| view.id < another.id));
    }

    #[tokio::test]
    async fn what_happens_by_itself_is_told() {
        let fake = Fake::default();
        let view = create(&fake).await;
        let mut changes = fake.watch().await.unwrap().skip(2);
        fake.become_phase(&view.id, Phase::Stopped, Some("the VM ended"));
        fake.gone(&view.id, Ended::TimedOut);
        let Change::Is(stopped) = changes.next().await.unwrap().unwrap() else { panic!("it is there") };
        assert_eq!((stopped.phase, stopped.reason.as_deref()), (Phase::Stopped, Some("the VM ended")));
        let Change::Gone(departure) = changes.next().await.unwrap().unwrap() else { panic!("it is gone") };
        assert_eq!((departure.id, departure.why), (view.id, Ended::TimedOut));
        assert_eq!(fake.count(), 0);
    }

    #[tokio::test]
    async fn a_test_answers_at_the_guests_ports() {
        let fake = Fake::with_dialer(Arc::new(|id, port| {
            let text = format!("{id}:{port}");
            Box::pin(async move {
                let (ours, mut guests) = duplex(1024);
                guests.write_all(text.as_bytes()).await.unwrap();
                Ok(Box::new(ours) as Tunnel)
            })
        }));
        let id = create(&fake).await.id;
        let mut tunnel = fake.dial(&id, 8080, Duration::ZERO).await.unwrap();
        let mut heard = String::new();
        tunnel.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, format!("{id}:8080"));
        fake.pause(&id, PauseOptions::default()).await.unwrap();
        assert_eq!(fake.dial(&id, 8080, Duration::ZERO).await.err().unwrap().code, Code::Denied);
    }

    #[tokio::test]
    async fn a_sandbox_takes_what_a_test_says() {
        let fake = Fake::default();
        let view = create(&fake).await;
        assert_eq!(fake.stat(&view.id).await.unwrap(), stat(&view));
        let wanted = Stat { cpu_ms: Some(3), ..stat(&view) };
        fake.stats.lock().unwrap().insert(view.id.clone(), wanted.clone());
        assert_eq!(fake.stat(&view.id).await.unwrap(), wanted);
    }
}
