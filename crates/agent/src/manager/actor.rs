//! The one owner of a sandbox: a task that does one thing after the other.
//!
//! ```text
//!   requests ─►┐                        ┌─► view (who looks, who watches)
//!   trouble  ─►├─ policy ─► step by step┤
//!   deadline ─►┘                        └─► live (who connects)
//! ```
//!
//! Whatever is asked for is checked against the state that the sandbox has when its turn comes, not when it was asked. A wish
//! to destroy it is noticed in the middle of what waits for long. A deadline takes the same way as a request.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use wrenn_engine::names::SandboxId;

use super::seats::Seat;
use super::{Live, Shared, create_error};
use crate::host_agent::{
    AgentError, Change, Changed, Code, Ended, OnTimeout, PauseOptions, Phase, ResumeOptions, Stat, Timeout, View,
};
use crate::manifest::{Manifest, State, unix_ms};
use crate::policy::{self, Denied, Verb};
use crate::sandbox::adopt::{Adopted, repair};
use crate::sandbox::capture::{self, Uncaptured};
use crate::sandbox::pause::{self, Unpaused};
use crate::sandbox::resume::{self, ResumeError, Unresumed};
use crate::sandbox::rollback::{self, RollbackError};
use crate::sandbox::{self, Begun, Parts, Sandbox, Stopwatch, Timing, Trouble};
use crate::snapshot::{Record, Stored};

/// The longest sleep until a deadline: the host's clock may be stepped meanwhile.
const CLOCK_LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long after a failed pause at a deadline it is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// How often a disk that found no room is tried again.
const RETRY_DISK: Duration = Duration::from_secs(5);

pub(super) type Reply<T> = oneshot::Sender<Result<T, AgentError>>;

/// What can be asked of a sandbox's actor.
pub(super) enum Request {
    Pause(PauseOptions, Reply<Changed>),
    Resume(ResumeOptions, Reply<Changed>),
    Destroy(Reply<Changed>),
    /// To be kept in what was begun, and to go on.
    Capture(Stored, Reply<(Record, Vec<Timing>)>),
    /// To become what is kept there.
    RollBack(Stored, ResumeOptions, Reply<Changed>),
    SetTimeout(Timeout, Reply<View>),
    Repair(Reply<Changed>),
    Stat(Reply<Stat>),
    Console(u32, Reply<Vec<u8>>),
    /// To leave it as it is, and end.
    Leave(Reply<()>),
}

/// What there is of a sandbox.
pub(super) enum Body {
    /// To be brought up; who asked for it is told how that went.
    Begun(Box<Begun>, Seat, Reply<Changed>),
    /// Its VM runs.
    Runs(Box<Sandbox>),
    /// It has no VM under control.
    Rests(Box<Parts>),
    /// It is gone, or was left.
    Gone,
}

/// What others tell an actor.
pub(super) struct Mailbox {
    pub(super) requests: mpsc::Receiver<Request>,
    /// Whether somebody wants the sandbox destroyed.
    pub(super) unwanted: watch::Receiver<bool>,
    /// Why the first of them does.
    pub(super) why: Arc<OnceLock<Ended>>,
}

/// The owner of one sandbox.
pub(super) struct Actor {
    shared: Arc<Shared>,
    id: SandboxId,
    body: Body,
    mailbox: Mailbox,
    view: watch::Sender<View>,
    live: watch::Sender<Option<Live>>,
    /// Dropped when the VM is no more: every connection ends then.
    cut: Option<watch::Sender<()>>,
    seat: Option<Seat>,
    /// What is wrong with a sandbox that runs.
    trouble: Option<String>,
    /// Not before this time is a deadline that has passed acted upon, or a disk tried again.
    retry_at: Option<Instant>,
    /// Why the sandbox is gone, once it is.
    ended: Option<Ended>,
}

impl Actor {
    pub(super) fn new(
        shared: Arc<Shared>,
        body: Body,
        mailbox: Mailbox,
    ) -> (Self, watch::Receiver<View>, watch::Receiver<Option<Live>>) {
        let manifest = body.manifest().expect("an actor has a sandbox");
        let (id, first) = (manifest.id.clone(), view_of(manifest, None));
        let ((view, view_out), (live, live_out)) = (watch::channel(first), watch::channel(None));
        let actor = Self {
            shared,
            id,
            body,
            mailbox,
            view,
            live,
            cut: None,
            seat: None,
            trouble: None,
            retry_at: None,
            ended: None,
        };
        (actor, view_out, live_out)
    }

    pub(super) async fn run(mut self) {
        match std::mem::replace(&mut self.body, Body::Gone) {
            Body::Begun(begun, seat, reply) => self.bring_up(*begun, seat, reply).await,
            body => self.become_body(body),
        }
        while !matches!(self.body, Body::Gone) {
            self.turn().await;
        }
        self.shared.remove(&self.id, self.ended);
    }

    /// One thing that happens.
    async fn turn(&mut self) {
        let deadline = self.deadline();
        let retry_at = self.retry_at.filter(|_| self.trouble.is_some());
        tokio::select! {
            request = self.mailbox.requests.recv() => match request {
                Some(request) => self.answer(request).await,
                // Everybody who could ask is gone, the map too: the process ends.
                None => self.leave(),
            },
            trouble = trouble_of(&mut self.body) => self.on_trouble(trouble).await,
            () = until_unix_ms(deadline) => self.on_deadline().await,
            () = until(retry_at) => self.try_again().await,
        }
    }

    async fn answer(&mut self, request: Request) {
        match request {
            Request::Pause(options, reply) => {
                let done = self.pause(options).await;
                answer(reply, done);
                self.tidy().await;
            }
            Request::Resume(options, reply) => {
                let done = self.resume(options).await;
                answer(reply, done);
                self.tidy().await;
            }
            Request::Destroy(reply) => {
                let why = self.mailbox.why.get().copied();
                let done = self.destroy(why.unwrap_or(Ended::Requested)).await;
                answer(reply, done);
            }
            Request::Capture(stored, reply) => {
                let done = self.capture(&stored).await;
                answer(reply, done);
            }
            Request::RollBack(stored, options, reply) => {
                let done = self.roll_back(&stored, options).await;
                answer(reply, done);
                self.tidy().await;
            }
            Request::SetTimeout(timeout, reply) => answer(reply, self.set_timeout(timeout)),
            Request::Repair(reply) => {
                let done = self.repair().await;
                answer(reply, done);
                self.tidy().await;
            }
            Request::Stat(reply) => answer(reply, self.stat()),
            Request::Console(bytes_max, reply) => {
                let parts = self.body.parts();
                let tail = parts.map(|parts| parts.console_tail(bytes_max.into())).unwrap_or_default();
                answer(reply, Ok(tail));
            }
            Request::Leave(reply) => {
                self.leave();
                answer(reply, Ok(()));
            }
        }
    }

    fn allowed(&self, verb: Verb) -> Result<(), AgentError> {
        policy::check(self.view.borrow().phase, verb).map_err(AgentError::from)
    }

    fn changed(&self, timings: Vec<sandbox::Timing>) -> Changed {
        Changed { view: self.view.borrow().clone(), timings }
    }

    /// The sandbox is this from now on, and everybody is told.
    fn become_body(&mut self, body: Body) {
        self.body = body;
        let Some(manifest) = self.body.manifest() else { return };
        let view = view_of(manifest, self.trouble.clone());
        if let Body::Runs(sandbox) = &self.body {
            if self.cut.is_none() {
                let (cut, is_cut) = watch::channel(());
                self.cut = Some(cut);
                self.live.send_replace(sandbox.connector().map(|connector| Live { connector, cut: is_cut }));
            }
            let memory = self.shared.host.vmm.memory(sandbox.parts().manifest().memory_mib);
            self.seat.get_or_insert_with(|| self.shared.seats.insist(memory));
        } else {
            self.live.send_replace(None);
            self.cut = None;
            self.seat = None;
            self.trouble = None;
        }
        self.present(view);
    }

    /// What it is doing now is shown, while its body is elsewhere.
    fn show(&self, phase: Phase) {
        let now = self.view.borrow().clone();
        self.present(View { phase, ..now });
    }

    /// This is shown from now on to who looks, and to who watches, if it is anything new.
    fn present(&self, view: View) {
        let (from, to) = (self.view.borrow().phase, view.phase);
        self.shared.announcer.tell(|| {
            let before = self.view.send_replace(view.clone());
            (before != view).then_some(Change::Is(view))
        });
        if from != to {
            tracing::info!(sandbox = %self.id, %from, %to, "state");
        }
    }

    async fn bring_up(&mut self, begun: Begun, seat: Seat, reply: Reply<Changed>) {
        self.seat = Some(seat);
        match sandbox::finish(begun, self.mailbox.unwanted.clone()).await {
            Ok(sandbox) => {
                let timings = sandbox.timings().to_vec();
                self.become_body(Body::Runs(Box::new(sandbox)));
                answer(reply, Ok(self.changed(timings)));
            }
            // Nothing is left of it; who has asked for something meanwhile is told that it is gone.
            Err(error) => {
                self.ended = Some(self.mailbox.why.get().copied().unwrap_or(Ended::NeverRan));
                answer(reply, Err(create_error(&error)));
            }
        }
    }

    async fn pause(&mut self, options: PauseOptions) -> Result<Changed, AgentError> {
        self.allowed(Verb::Pause)?;
        let Body::Runs(sandbox) = std::mem::replace(&mut self.body, Body::Gone) else { return Err(self.gone()) };
        self.show(Phase::Pausing);
        let mut watch = Stopwatch::default();
        match pause::pause(*sandbox, options, &mut watch).await {
            Ok(parts) => {
                log_steps(&self.id, "pause", watch.timings());
                self.become_body(Body::Rests(Box::new(parts)));
                Ok(self.changed(watch.into_timings()))
            }
            Err((left, error)) => {
                let code = self.unpaused(left, &error).await;
                Err(AgentError::of(code, &error))
            }
        }
    }

    async fn unpaused(&mut self, left: Unpaused, error: &pause::PauseError) -> Code {
        match left {
            Unpaused::GoesOn(sandbox) => {
                self.become_body(Body::Runs(sandbox));
                Code::Failed
            }
            Unpaused::VmGone(mut parts) => {
                parts.stop(format!("the VM ended while it was being paused: {error}")).await;
                self.become_body(Body::Rests(parts));
                Code::Failed
            }
            Unpaused::Stuck(mut parts) => {
                parts.needs_repair(error);
                self.become_body(Body::Rests(parts));
                Code::NeedsRepair
            }
        }
    }

    async fn resume(&mut self, options: ResumeOptions) -> Result<Changed, AgentError> {
        self.allowed(Verb::Resume)?;
        let Body::Rests(parts) = std::mem::replace(&mut self.body, Body::Gone) else { return Err(self.gone()) };
        match self.shared.seat(parts.manifest().memory_mib).await {
            Ok(seat) => self.seat = Some(seat),
            Err(error) => {
                self.become_body(Body::Rests(parts));
                return Err(error);
            }
        }
        self.show(Phase::Resuming);
        let mut watch = Stopwatch::default();
        match resume::resume(*parts, options, &mut watch, self.mailbox.unwanted.clone()).await {
            Ok(sandbox) => {
                log_steps(&self.id, "resume", watch.timings());
                self.become_body(Body::Runs(Box::new(sandbox)));
                Ok(self.changed(watch.into_timings()))
            }
            Err((left, error)) => Err(self.unresumed(left, &error)),
        }
    }

    fn unresumed(&mut self, left: Unresumed, error: &ResumeError) -> AgentError {
        match left {
            Unresumed::Rests(parts) => {
                self.become_body(Body::Rests(parts));
                AgentError::of(Code::Failed, error)
            }
            Unresumed::Stuck(mut parts, failed) => {
                parts.needs_repair(&failed);
                self.become_body(Body::Rests(parts));
                AgentError::of(Code::NeedsRepair, error)
            }
        }
    }

    async fn destroy(&mut self, why: Ended) -> Result<Changed, AgentError> {
        let parts = match std::mem::replace(&mut self.body, Body::Gone) {
            Body::Runs(sandbox) => sandbox.into_parts(),
            Body::Rests(parts) => *parts,
            Body::Begun(..) | Body::Gone => return Err(self.gone()),
        };
        self.live.send_replace(None);
        self.cut = None;
        self.ended = Some(why);
        self.show(Phase::Destroying);
        let mut watch = Stopwatch::default();
        let destroyed = parts.destroy(&mut watch).await;
        log_steps(&self.id, "destroy", watch.timings());
        // What is left of it has no owner any more: the next start of an agent goes on.
        destroyed.map_err(|error| AgentError::of(Code::Failed, &error))?;
        Ok(self.changed(watch.into_timings()))
    }

    async fn capture(&mut self, stored: &Stored) -> Result<(Record, Vec<Timing>), AgentError> {
        self.allowed(Verb::Capture)?;
        match std::mem::replace(&mut self.body, Body::Gone) {
            Body::Runs(sandbox) => self.capture_running(sandbox, stored).await,
            Body::Rests(mut parts) => {
                self.show(Phase::Capturing);
                let shared = capture::share(&mut parts, stored).await;
                self.become_body(Body::Rests(parts));
                shared.map_err(|error| AgentError::of(Code::Failed, &error))
            }
            Body::Begun(..) | Body::Gone => Err(self.gone()),
        }
    }

    async fn capture_running(
        &mut self,
        mut sandbox: Box<Sandbox>,
        stored: &Stored,
    ) -> Result<(Record, Vec<Timing>), AgentError> {
        self.show(Phase::Capturing);
        match capture::capture(&mut sandbox, stored).await {
            Ok(captured) => {
                log_steps(&self.id, "capture", &captured.1);
                self.become_body(Body::Runs(sandbox));
                Ok(captured)
            }
            Err(Uncaptured::GoesOn(error)) => {
                self.become_body(Body::Runs(sandbox));
                Err(AgentError::of(Code::Failed, &error))
            }
            Err(Uncaptured::Stuck(error)) => {
                let left = pause::give_up(*sandbox).await;
                let code = self.unpaused(left, &error).await;
                Err(AgentError::of(code, &error))
            }
        }
    }

    async fn roll_back(&mut self, stored: &Stored, options: ResumeOptions) -> Result<Changed, AgentError> {
        self.allowed(Verb::RollBack)?;
        let mut watch = Stopwatch::default();
        let parts = self.body.parts_mut().expect("the policy lets nobody roll back what is not there");
        let begun = async {
            let number = rollback::begin(parts, stored, &mut watch).await?;
            rollback::decide(parts, number)?;
            Ok::<_, RollbackError>(number)
        };
        let number = begun.await.map_err(|error| AgentError::of(Code::Failed, &error))?;
        let mut parts = match std::mem::replace(&mut self.body, Body::Gone) {
            Body::Runs(sandbox) => Box::new(sandbox.into_parts()),
            Body::Rests(parts) => parts,
            Body::Begun(..) | Body::Gone => return Err(self.gone()),
        };
        self.live.send_replace(None);
        self.cut = None;
        self.show(Phase::RollingBack);
        if let Err(error) = rollback::finish(&mut parts, number, &mut watch).await {
            parts.needs_repair(&error);
            self.become_body(Body::Rests(parts));
            return Err(AgentError::of(Code::NeedsRepair, &error));
        }
        log_steps(&self.id, "rollback", watch.timings());
        self.become_body(Body::Rests(parts));
        let resumed = self.resume(options).await?;
        let timings = watch.into_timings().into_iter().chain(resumed.timings).collect();
        Ok(Changed { timings, ..resumed })
    }

    fn set_timeout(&mut self, timeout: Timeout) -> Result<View, AgentError> {
        self.allowed(Verb::SetTimeout)?;
        let Body::Runs(sandbox) = &mut self.body else { return Err(self.gone()) };
        let noted = sandbox.parts_mut().set_timeout(timeout);
        self.retry_at = None;
        let body = std::mem::replace(&mut self.body, Body::Gone);
        self.become_body(body);
        noted.map_err(|error| AgentError::of(Code::Failed, &error))?;
        Ok(self.view.borrow().clone())
    }

    async fn repair(&mut self) -> Result<Changed, AgentError> {
        self.allowed(Verb::Repair)?;
        let Body::Rests(parts) = std::mem::replace(&mut self.body, Body::Gone) else { return Err(self.gone()) };
        match repair(*parts).await {
            Adopted::Runs(sandbox) => self.become_body(Body::Runs(sandbox)),
            Adopted::Rests(parts) => self.become_body(Body::Rests(parts)),
            // It was in the middle of being destroyed, and is that now.
            Adopted::Gone => {
                self.ended = Some(Ended::Requested);
                self.show(Phase::Destroying);
            }
        }
        match self.view.borrow().clone() {
            View { phase: Phase::NeedsRepair, reason, .. } => {
                Err(AgentError { code: Code::NeedsRepair, message: reason.unwrap_or_default() })
            }
            _repaired => Ok(self.changed(Vec::new())),
        }
    }

    /// What need not be waited for: memory in one file, and nothing kept that nobody needs.
    async fn tidy(&mut self) {
        match &mut self.body {
            Body::Rests(parts) => {
                match pause::settle_memory(parts).await {
                    Ok(took) if !took.is_zero() => tracing::debug!(sandbox = %self.id, ?took, "memory is in one file"),
                    Ok(_nothing_to_do) => {}
                    // It is tried again at the resume, and told of then.
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(sandbox = %self.id, error, "cannot bring a captured memory into one file");
                    }
                }
                parts.collect_garbage();
            }
            Body::Runs(sandbox) => sandbox.parts().collect_garbage(),
            Body::Begun(..) | Body::Gone => {}
        }
    }

    async fn on_trouble(&mut self, trouble: Trouble) {
        let reason = trouble.to_string();
        tracing::warn!(sandbox = %self.id, reason, "trouble");
        match trouble {
            Trouble::DiskFull => {
                self.trouble = Some(reason);
                self.retry_at = Some(Instant::now() + RETRY_DISK);
                let body = std::mem::replace(&mut self.body, Body::Gone);
                self.become_body(body);
            }
            Trouble::VmEnded(_)
            | Trouble::Halted
            | Trouble::OutOfMemory(_)
            | Trouble::VmBroken(_)
            | Trouble::DiskError(_) => {
                let Body::Runs(sandbox) = std::mem::replace(&mut self.body, Body::Gone) else { return };
                let mut parts = Box::new(sandbox.into_parts());
                parts.stop(reason).await;
                self.become_body(Body::Rests(parts));
            }
        }
    }

    async fn try_again(&mut self) {
        self.retry_at = None;
        let Body::Runs(sandbox) = &mut self.body else { return };
        match sandbox.try_again().await {
            Ok(true) => self.trouble = None,
            Ok(false) => self.retry_at = Some(Instant::now() + RETRY_DISK),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(sandbox = %self.id, error, "a sandbox whose disk found no room cannot go on yet");
                self.retry_at = Some(Instant::now() + RETRY_DISK);
            }
        }
        let body = std::mem::replace(&mut self.body, Body::Gone);
        self.become_body(body);
    }

    /// When its time is up, while it runs.
    fn deadline(&self) -> Option<u64> {
        let Body::Runs(sandbox) = &self.body else { return None };
        let deadline = sandbox.parts().manifest().deadline_unix_ms?;
        let retry = self.retry_at.filter(|_| self.trouble.is_none());
        let retry = retry.map(|at| unix_ms() + at.saturating_duration_since(Instant::now()).as_millis() as u64);
        Some(deadline.max(retry.unwrap_or(0)))
    }

    async fn on_deadline(&mut self) {
        let Some(manifest) = self.body.manifest() else { return };
        if manifest.deadline_unix_ms.is_none_or(|deadline| deadline > unix_ms()) {
            return;
        }
        let on_timeout = manifest.on_timeout;
        tracing::info!(sandbox = %self.id, ?on_timeout, "the sandbox's time is up");
        let done = match on_timeout {
            OnTimeout::Pause => self.pause(PauseOptions::default()).await,
            OnTimeout::Destroy => self.destroy(Ended::TimedOut).await,
        };
        if let Err(error) = done {
            // Never destroyed for a pause that failed: it goes on, and it is tried again.
            tracing::warn!(sandbox = %self.id, %error, "what was to happen at the deadline has failed; it is tried again");
            self.retry_at = Some(Instant::now() + RETRY_PAUSE);
        }
        self.tidy().await;
    }

    fn stat(&self) -> Result<Stat, AgentError> {
        match &self.body {
            Body::Runs(sandbox) => sandbox.parts().stat().map_err(|error| AgentError::of(Code::Failed, &error)),
            Body::Rests(parts) => parts.stat().map_err(|error| AgentError::of(Code::Failed, &error)),
            Body::Begun(..) | Body::Gone => Err(self.gone()),
        }
    }

    fn leave(&mut self) {
        match std::mem::replace(&mut self.body, Body::Gone) {
            Body::Runs(sandbox) => sandbox.leave(),
            Body::Rests(parts) => parts.leave(),
            Body::Begun(..) | Body::Gone => {}
        }
    }

    fn gone(&self) -> AgentError {
        AgentError { code: Code::Destroyed, message: Denied::Destroying.to_string() }
    }
}

impl Body {
    fn parts(&self) -> Option<&Parts> {
        match self {
            Self::Begun(begun, ..) => Some(&begun.parts),
            Self::Runs(sandbox) => Some(sandbox.parts()),
            Self::Rests(parts) => Some(parts),
            Self::Gone => None,
        }
    }

    fn parts_mut(&mut self) -> Option<&mut Parts> {
        match self {
            Self::Begun(begun, ..) => Some(&mut begun.parts),
            Self::Runs(sandbox) => Some(sandbox.parts_mut()),
            Self::Rests(parts) => Some(parts),
            Self::Gone => None,
        }
    }

    fn manifest(&self) -> Option<&Manifest> {
        self.parts().map(Parts::manifest)
    }
}

/// Nobody may wait for the answer any more; then it is of no use.
fn answer<T>(reply: Reply<T>, answer: Result<T, AgentError>) {
    drop(reply.send(answer));
}

pub(crate) fn view_of(manifest: &Manifest, trouble: Option<String>) -> View {
    let runs = manifest.state == State::Running;
    View {
        id: manifest.id.clone(),
        revision: manifest.revision,
        phase: manifest.state.phase(),
        reason: manifest.state.reason().map(str::to_owned).or(trouble),
        created_unix_ms: manifest.created_unix_ms,
        deadline_unix_ms: manifest.deadline_unix_ms.filter(|_| runs),
        on_timeout: manifest.on_timeout,
        template: manifest.template.clone(),
        kernel: manifest.kernel.clone(),
        vcpus: manifest.vcpus,
        memory: manifest.memory_mib,
        disk: manifest.disk_mib,
        vmm: manifest.vmm.clone(),
        storage: manifest.storage,
        start: manifest.start,
        metadata: manifest.metadata.clone(),
        attributes: manifest.attributes.clone(),
        access_token: manifest.access_token.clone(),
    }
}

/// One line with the duration of each step.
fn log_steps(id: &SandboxId, op: &str, timings: &[Timing]) {
    let step = |timing: &Timing| format!("{} {:.1} ms", timing.phase, timing.took.as_secs_f64() * 1e3);
    let steps: Vec<String> = timings.iter().map(step).collect();
    tracing::info!(sandbox = %id, op, steps = steps.join(", "), "done");
}

async fn trouble_of(body: &mut Body) -> Trouble {
    match body {
        Body::Runs(sandbox) => sandbox.trouble().await,
        Body::Begun(..) | Body::Rests(_) | Body::Gone => std::future::pending().await,
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Waits for a time of the host's clock, which may be stepped meanwhile.
async fn until_unix_ms(deadline: Option<u64>) {
    let Some(deadline) = deadline else { return std::future::pending().await };
    loop {
        let left = Duration::from_millis(deadline.saturating_sub(unix_ms()));
        if left.is_zero() {
            return;
        }
        sleep(left.min(CLOCK_LOOK_EVERY)).await;
    }
}
