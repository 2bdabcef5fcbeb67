//! The sandboxes of one instance, and who may do what with them when.
//!
//! ```text
//!   HostAgent ─► Manager ─┬─ map of handles      locked for a look-up, never while anything is done
//!                         ├─ one actor per sandbox: owns it; requests queue there ([`actor`])
//!                         ├─ announcer: tells who watches ([`crate::changes`])
//!                         ├─ builds: templates that are being built ([`builds`])
//!                         ├─ seats: memory that the VMs that run may take together ([`seats`])
//!                         └─ reserve: sandboxes made ahead, that wait for somebody ([`reserve`])
//! ```
//!
//! At its start it takes over what an earlier agent left ([`crate::sandbox`]'s `adopt`), all sandboxes at once, and then
//! removes what belongs to nobody. At its end it leaves VMs running, unless it is asked not to.

mod actor;
mod builds;
mod captures;
mod found;
mod guest_stat;
mod reserve;
mod seats;
mod templates;
mod tunnel;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use wrenn_engine::names::SandboxId;
use wrenn_engine::network::Connector;
use wrenn_engine::storage::{StorageError, space};
use wrenn_engine::units::Mib;

use self::actor::{Actor, Body, Mailbox, Request};
use self::builds::Builds;
use self::reserve::Reserve;
use self::seats::{Seat, Seats};
use crate::changes::Announcer;
use crate::host::Host;
use crate::host_agent::{
    AgentError, Bond, Change, Changed, Changes, Code, CreateRequest, Created, Departure, Ended, ForkRequest, Forked,
    Fresh, HostAgent, HostView, PauseOptions, Progress, ResumeOptions, SnapshotRequest, SnapshotView, Snapshotted,
    Source, Stat, TemplateView, Timeout, Tunnel, View, Warmed,
};
use crate::instance::{InstanceError, io_error};
use crate::lock::Lock;
use crate::manifest::unix_ms;
use crate::policy::{self, Verb};
use crate::reconcile::{self, SweepError};
use crate::sandbox::adopt::{Adopted, adopt};
use crate::sandbox::{self, Begun, Checked, CreateError, Owner, Trouble, blocking};
use crate::snapshot::Key;

#[cfg(test)]
pub(crate) use self::actor::view_of;

/// Requests that may wait for one sandbox.
const QUEUE: usize = 64;

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is one already.
    #[error("an agent runs for {} already", .dir.display())]
    Runs {
        /// The instance's folder.
        dir: std::path::PathBuf,
    },
    /// The instance's files.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// What belongs to nobody cannot be removed.
    #[error("cannot remove what belongs to nobody")]
    Sweep(#[from] SweepError),
}

/// What becomes of the sandboxes when the agent ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shutdown {
    /// Their VMs go on running, and the next agent takes them over.
    #[default]
    Leave,
    /// Those that run are paused.
    PauseAll,
    /// All are destroyed.
    DestroyAll,
}

/// What an agent may use, and what it makes ahead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// What all VMs that run may have together; by default what the host has, less a reserve.
    pub memory: Option<Mib>,
    /// How many sandboxes wait, loaded and with their networks, for somebody who wants one of their kind.
    pub standby: usize,
}

/// The agent of this process.
#[derive(Clone)]
pub struct Manager {
    shared: Arc<Shared>,
}

struct Shared {
    host: Arc<Host>,
    sandboxes: Mutex<BTreeMap<SandboxId, Handle>>,
    announcer: Announcer,
    builds: Builds,
    seats: Arc<Seats>,
    /// Without it nothing is made ahead.
    reserve: Option<Reserve>,
    /// Held while a snapshot gets its name.
    naming: Mutex<()>,
    /// Objects of nobody that were removed.
    swept: AtomicU64,
    /// Held for as long as this agent lives.
    _lock: Lock,
}

/// The way to one sandbox's actor.
#[derive(Clone)]
struct Handle {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<View>,
    live: watch::Receiver<Option<Live>>,
    /// Turns true when somebody wants it destroyed: whatever waits for long notices.
    unwanted: Arc<watch::Sender<bool>>,
    /// Why the first who wants it destroyed does.
    why: Arc<OnceLock<Ended>>,
}

/// The way into a guest that runs.
#[derive(Clone, Debug)]
struct Live {
    connector: Connector,
    /// Closed when the VM is no more.
    cut: watch::Receiver<()>,
}

impl Manager {
    /// Takes over what is there of the instance, and removes what belongs to nobody.
    pub async fn start(host: Arc<Host>, sizes: Sizes) -> Result<Self, StartError> {
        let path = host.instance.agent_lock();
        let lock = Lock::try_acquire(&path).map_err(io_error("lock", &path))?;
        let lock = lock.ok_or_else(|| StartError::Runs { dir: host.instance.dir().to_owned() })?;
        let seats = Arc::new(Seats::new(sizes.memory.unwrap_or_else(|| seats::most(host.memory))));
        let reserve = (sizes.standby > 0).then(|| Reserve::new(&host, &seats, sizes.standby));
        let shared = Shared {
            host: Arc::clone(&host),
            sandboxes: Mutex::default(),
            announcer: Announcer::default(),
            builds: Builds::default(),
            seats,
            reserve,
            naming: Mutex::default(),
            swept: AtomicU64::new(0),
            _lock: lock,
        };
        let manager = Self { shared: Arc::new(shared) };
        manager.adopt_all().await?;
        let swept = reconcile::sweep(&host).await?.count() + host.snapshots.sweep() + host.warm.sweep();
        manager.shared.swept.fetch_add(swept as u64, Ordering::Relaxed);
        Ok(manager)
    }

    /// All at once: most of it is waiting for files and for guests.
    async fn adopt_all(&self) -> Result<(), StartError> {
        let mut adoptions = JoinSet::new();
        for id in reconcile::sandboxes(&self.shared.host.instance)? {
            let host = Arc::clone(&self.shared.host);
            adoptions.spawn(async move {
                match found::take(&host, &id)? {
                    Some(parts) => Ok::<_, InstanceError>(adopt(parts).await),
                    None => Ok(Adopted::Gone),
                }
            });
        }
        while let Some(adopted) = adoptions.join_next().await {
            let adopted = adopted.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()));
            match adopted? {
                Adopted::Runs(sandbox) => drop(self.enrol(Body::Runs(sandbox))),
                Adopted::Rests(parts) => drop(self.enrol(Body::Rests(parts))),
                Adopted::Gone => {}
            }
        }
        Ok(())
    }

    /// A sandbox gets its actor, and is in the list from here on.
    fn enrol(&self, body: Body) -> Handle {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (unwanted, is_unwanted) = watch::channel(false);
        let why = Arc::<OnceLock<Ended>>::default();
        let mailbox = Mailbox { requests: queue, unwanted: is_unwanted, why: Arc::clone(&why) };
        let (actor, view, live) = Actor::new(Arc::clone(&self.shared), body, mailbox);
        let handle = Handle { requests, view, live, unwanted: Arc::new(unwanted), why };
        self.shared.announcer.tell(|| {
            let view = handle.view.borrow().clone();
            self.shared.sandboxes().insert(view.id.clone(), handle.clone());
            Some(Change::Is(view))
        });
        tokio::spawn(actor.run());
        handle
    }

    /// Ends this agent.
    pub async fn shutdown(self, how: Shutdown) -> Result<(), AgentError> {
        self.shared.builds.close();
        if let Some(reserve) = &self.shared.reserve {
            reserve.close().await;
        }
        let handles: Vec<Handle> = self.shared.sandboxes().values().cloned().collect();
        let mut ends = JoinSet::new();
        for handle in handles {
            ends.spawn(async move { handle.shut_down(how).await });
        }
        let mut first = Ok(());
        while let Some(end) = ends.join_next().await {
            first = first.and(end.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic())));
        }
        self.shared.announcer.close();
        match &self.shared.host.pool {
            Some(pool) => first.and(pool.close().await.map_err(|error| AgentError::of(Code::Failed, &error))),
            None => first,
        }
    }

    /// Memory that all VMs that run may have together.
    pub fn memory(&self) -> Mib {
        self.shared.seats.most()
    }

    /// A new sandbox with so much memory, begun by `begin`, is brought up.
    async fn raise(
        &self,
        memory: Mib,
        bound: bool,
        begin: impl FnOnce(&Arc<Host>) -> Result<Begun, CreateError> + Send + 'static,
    ) -> Result<Created, AgentError> {
        let seat = self.shared.seat(memory).await?;
        let host = Arc::clone(&self.shared.host);
        // Reads images and writes files.
        let begun: Begun = blocking(move || begin(&host)).await.map_err(|error| create_error(&error))?;
        self.bring_up(begun, seat, bound).await
    }

    /// What was begun gets its actor, which brings it up.
    async fn bring_up(&self, begun: Begun, seat: Seat, bound: bool) -> Result<Created, AgentError> {
        let id = begun.id().clone();
        let (reply, answer) = oneshot::channel();
        let handle = self.enrol(Body::Begun(Box::new(begun), seat, reply));
        // From here on whoever goes away leaves nothing: the bond destroys what is bound.
        let bond = bound.then(|| Bond::new(Guard { handle: handle.clone() }));
        let changed = answer.await.unwrap_or_else(|_gone| Err(AgentError::unknown(&id)))?;
        Ok(Created { changed, bond })
    }

    /// One that waits, if there is one of this kind; else it is made now.
    async fn create_fresh(&self, fresh: Fresh, request: CreateRequest) -> Result<Created, AgentError> {
        let memory = fresh.shape.memory;
        let reserve = self.shared.reserve.as_ref().filter(|_| !fresh.cold);
        let Some(reserve) = reserve else { return self.begin_and_raise(memory, request).await };
        let host = Arc::clone(&self.shared.host);
        let key = blocking(move || Checked::of(&host, &fresh)?.warm_key(&host)).await;
        let key = key.map_err(|error: CreateError| create_error(&error))?;
        let created = match self.take_ahead(reserve, &key, &request).await {
            Some(created) => created,
            None => self.begin_and_raise(memory, request).await,
        };
        if created.is_ok() {
            reserve.wish(key);
        }
        created
    }

    /// `None` if none waits, or the one that did cannot go on: another can be made.
    async fn take_ahead(
        &self,
        reserve: &Reserve,
        key: &Key,
        request: &CreateRequest,
    ) -> Option<Result<Created, AgentError>> {
        let (standby, seat) = reserve.take(key).await?;
        match self.bring_up(standby.begin(&request.wishes), seat, request.wishes.bound).await {
            Err(error) if error.code == Code::Failed => {
                tracing::warn!(%error, "what was made ahead does not go on; another one is made");
                None
            }
            created => Some(created),
        }
    }

    async fn begin_and_raise(&self, memory: Mib, request: CreateRequest) -> Result<Created, AgentError> {
        let bound = request.wishes.bound;
        self.raise(memory, bound, move |host| sandbox::begin(host, request, Owner::Instance)).await
    }

    fn handle(&self, id: &SandboxId) -> Result<Handle, AgentError> {
        self.shared.sandboxes().get(id).cloned().ok_or_else(|| AgentError::unknown(id))
    }

    async fn ask<T>(
        &self,
        id: &SandboxId,
        request: impl FnOnce(oneshot::Sender<Result<T, AgentError>>) -> Request,
    ) -> Result<T, AgentError> {
        self.handle(id)?.ask(request).await.unwrap_or_else(|| Err(AgentError::unknown(id)))
    }
}

impl Shared {
    /// Memory for another VM. What is set aside for those that nobody has wanted yet is for those that somebody wants.
    async fn seat(&self, memory: Mib) -> Result<Seat, AgentError> {
        let memory = self.host.vmm.memory(memory);
        match (self.seats.take(memory), &self.reserve) {
            (Err(_no_memory), Some(reserve)) => {
                reserve.give_up(|_| true).await;
                self.seats.take(memory)
            }
            (seat, _) => seat,
        }
    }

    /// The sandbox is in the list no more: it was left, or it is gone for this reason.
    fn remove(&self, id: &SandboxId, why: Option<Ended>) {
        self.announcer.tell(|| {
            self.sandboxes().remove(id);
            why.map(|why| Change::Gone(Departure { id: id.clone(), why, at_unix_ms: unix_ms() }))
        });
    }

    /// All that are there, as they are shown.
    fn views(&self) -> Vec<View> {
        let mut views: Vec<View> = self.sandboxes().values().map(|handle| handle.view.borrow().clone()).collect();
        views.sort_by_key(|view| (view.created_unix_ms, view.id.clone()));
        views
    }

    /// Asks the file system.
    fn host_view(&self) -> Result<HostView, AgentError> {
        let (host, dir) = (&self.host, self.host.instance.dir());
        let disk = space::capacity(dir).map_err(io_error("ask the free space of", dir));
        let disk = disk.map_err(|error| AgentError::of(Code::Failed, &error))?;
        Ok(HostView {
            host: host.instance.tag().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
            memory: self.seats.most(),
            memory_taken: self.seats.taken(),
            disk_free_bytes: disk.available_bytes,
            disk_total_bytes: disk.total_bytes,
            vmm: host.vmm.describe().clone(),
            storage: host.storage.backend(),
            swept: self.swept.load(Ordering::Relaxed),
        })
    }

    /// The map; a panic elsewhere leaves it usable, each change is one call.
    fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Handle>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// `None` if the sandbox was destroyed before it got to the request.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, AgentError>>) -> Request,
    ) -> Option<Result<T, AgentError>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Destroys it, whatever it is doing. One that is gone is fine.
    async fn destroy(&self, why: Ended) -> Option<Result<Changed, AgentError>> {
        self.unwant(why);
        self.ask(Request::Destroy).await
    }

    /// Somebody wants it destroyed.
    fn unwant(&self, why: Ended) {
        self.why.get_or_init(|| why);
        self.unwanted.send_replace(true);
    }

    async fn shut_down(&self, how: Shutdown) -> Result<(), AgentError> {
        let phase = self.view.borrow().phase;
        let done = match how {
            Shutdown::Leave => Ok(()),
            Shutdown::PauseAll if policy::check(phase, Verb::Pause).is_err() => Ok(()),
            Shutdown::PauseAll => self
                .ask(|reply| Request::Pause(PauseOptions::default(), reply))
                .await
                .map_or(Ok(()), |paused| paused.map(drop)),
            Shutdown::DestroyAll => {
                return self.destroy(Ended::HostEnded).await.map_or(Ok(()), |destroyed| destroyed.map(drop));
            }
        };
        // One that is gone has nothing to leave.
        self.ask(Request::Leave).await;
        done
    }
}

/// Has a bound sandbox destroyed.
struct Guard {
    handle: Handle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let handle = self.handle.clone();
        handle.unwant(Ended::Unbound);
        tokio::spawn(async move { handle.ask(Request::Destroy).await });
    }
}

#[async_trait]
impl HostAgent for Manager {
    async fn create(&self, request: CreateRequest) -> Result<Created, AgentError> {
        match &request.source {
            Source::Template(fresh) => self.create_fresh(fresh.clone(), request).await,
            Source::Snapshot(snapshot) => self.begin_and_raise(self.memory_of(snapshot)?, request).await,
        }
    }

    async fn list(&self) -> Result<Vec<View>, AgentError> {
        Ok(self.shared.views())
    }

    async fn watch(&self) -> Result<Changes, AgentError> {
        self.shared.announcer.watch(|| self.shared.views())
    }

    async fn get(&self, id: &SandboxId) -> Result<View, AgentError> {
        Ok(self.handle(id)?.view.borrow().clone())
    }

    async fn pause(&self, id: &SandboxId, options: PauseOptions) -> Result<Changed, AgentError> {
        self.ask(id, |reply| Request::Pause(options, reply)).await
    }

    async fn resume(&self, id: &SandboxId, options: ResumeOptions) -> Result<Changed, AgentError> {
        self.ask(id, |reply| Request::Resume(options, reply)).await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        let handle = self.handle(id)?;
        // One that goes before it gets to the request, for any reason, is gone as was wished.
        let gone = || Changed { view: handle.view.borrow().clone(), timings: Vec::new() };
        handle.destroy(Ended::Requested).await.unwrap_or_else(|| Ok(gone()))
    }

    async fn set_timeout(&self, id: &SandboxId, timeout: Timeout) -> Result<View, AgentError> {
        self.ask(id, |reply| Request::SetTimeout(timeout, reply)).await
    }

    async fn repair(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        self.ask(id, Request::Repair).await
    }

    async fn snapshot(&self, id: &SandboxId, request: SnapshotRequest) -> Result<Snapshotted, AgentError> {
        self.keep(id, request).await
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotView>, AgentError> {
        let snapshots = self.shared.host.snapshots.clone();
        Ok(blocking(move || snapshots.list()).await)
    }

    async fn remove_snapshot(&self, snapshot: &str) -> Result<SnapshotView, AgentError> {
        self.forget(snapshot).await
    }

    async fn fork(&self, id: &SandboxId, request: ForkRequest) -> Result<Forked, AgentError> {
        self.multiply(id, request).await
    }

    async fn rollback(&self, id: &SandboxId, snapshot: &str, options: ResumeOptions) -> Result<Changed, AgentError> {
        let stored = self.snapshot_of(id, snapshot)?;
        self.ask(id, |reply| Request::RollBack(stored, options, reply)).await
    }

    async fn templates(&self) -> Result<Vec<TemplateView>, AgentError> {
        self.list_templates().await
    }

    async fn build_template(&self, recipe: &str, progress: Progress) -> Result<TemplateView, AgentError> {
        self.build(recipe, progress).await
    }

    async fn warm(&self, fresh: Fresh, ready_limit: Duration) -> Result<Warmed, AgentError> {
        self.make_warm(fresh, ready_limit).await
    }

    async fn remove_template(&self, template: &str) -> Result<TemplateView, AgentError> {
        self.forget_template(template).await
    }

    async fn template_from_snapshot(&self, snapshot: &str, name: &str) -> Result<TemplateView, AgentError> {
        self.flatten(snapshot, name).await
    }

    async fn host(&self) -> Result<HostView, AgentError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.host_view()).await
    }

    async fn stat(&self, id: &SandboxId) -> Result<Stat, AgentError> {
        let stat = self.ask(id, Request::Stat).await?;
        let guest = match stat.vmm_pid {
            Some(_runs) => guest_stat::ask(&self.handle(id)?).await,
            None => None,
        };
        Ok(Stat { guest, ..stat })
    }

    async fn console(&self, id: &SandboxId, bytes_max: u32) -> Result<Vec<u8>, AgentError> {
        self.ask(id, |reply| Request::Console(bytes_max, reply)).await
    }

    async fn dial(&self, id: &SandboxId, port: u16, limit: Duration) -> Result<Tunnel, AgentError> {
        let handle = self.handle(id)?;
        policy::check(handle.view.borrow().phase, Verb::Use)?;
        let live = handle.live.borrow().clone();
        let live = live.ok_or_else(|| AgentError::unknown(id))?;
        tunnel::open(live, port, limit).await
    }
}

/// The kind of a failed creation.
fn create_error(error: &CreateError) -> AgentError {
    let code = match error {
        CreateError::Shape(_) => Code::Invalid,
        CreateError::Storage(StorageError::Full { .. })
        | CreateError::Trouble(Trouble::DiskFull)
        | CreateError::Network(_) => Code::Exhausted,
        CreateError::Cancelled => Code::Destroyed,
        CreateError::Snapshot(error) => return captures::snapshot_error(error),
        CreateError::Image(error) => return templates::image_error(error),
        CreateError::Instance(_)
        | CreateError::Manifest(_)
        | CreateError::Storage(_)
        | CreateError::Cgroup(_)
        | CreateError::Launch(_)
        | CreateError::Vmm(_)
        | CreateError::Memory(_)
        | CreateError::Trouble(_)
        | CreateError::Guest { .. }
        | CreateError::Ended { .. }
        | CreateError::Captured(_)
        | CreateError::Injected(_) => Code::Failed,
    };
    AgentError::of(code, error)
}

#[cfg(test)]
mod tests {
    use wrenn_engine::image::{ImageError, TemplateError};

    use super::*;

    #[test]
    fn a_name_that_is_none_is_the_fault_of_who_gave_it() {
        let unknown = TemplateError::Unknown { name: "new".to_owned(), known: Vec::new() };
        for (error, code) in [(TemplateError::BadName("New".to_owned()), Code::Invalid), (unknown, Code::NotFound)] {
            assert_eq!(create_error(&CreateError::Image(ImageError::Template(error))).code, code);
        }
    }
}
