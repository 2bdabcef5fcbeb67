//! What the agent has, as it says itself: an index in memory that follows the agent's watch.
//!
//! ```text
//!   agent ── watch: full state, complete, changes ──► follow ─► World ─┬─► look-ups, lists
//!     └───── answers to calls ─────────────────────────► note ───────► │
//!                                                                      └─► events (SSE), departures (database)
//! ```
//!
//! A change is taken when its revision is not older than what is known: an answer and the watch may overtake each other. Nothing
//! is concluded from an absence: what a full state does not have is asked for by its id, and only the agent's own "there is no
//! such sandbox" ends it here. While the agent is not there, the index is not believed: look-ups are refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use futures::StreamExt as _;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::sleep;
use wrenn_agent::host_agent::{AgentError, Change, Changed, Code, HostAgent, View};
use wrenn_client::types::{self, Departure, Why};
use wrenn_engine::names::SandboxId;

use crate::convert;
use crate::error::ApiError;
use crate::limits;
use crate::time::now_unix_ms;

/// What happens to sandboxes.
#[derive(Clone, Debug)]
pub enum Event {
    /// A sandbox is this now.
    Is(Arc<View>),
    /// One is gone for good; this is what it was last.
    Gone(Departure, Arc<View>),
}

/// The index.
pub struct World {
    host: RwLock<String>,
    inner: Mutex<Inner>,
    events: broadcast::Sender<Event>,
    /// Whether the index is what the agent has.
    synced: watch::Sender<bool>,
    /// For the database: it keeps what happened to sandboxes.
    record: mpsc::UnboundedSender<Event>,
}

#[derive(Default)]
struct Inner {
    sandboxes: BTreeMap<SandboxId, Arc<View>>,
    /// Ids are never used again: what is here stays gone, whatever arrives late.
    departed: BTreeMap<SandboxId, Departure>,
    /// The same, the oldest first.
    departures: VecDeque<SandboxId>,
}

impl World {
    /// An empty index, not to be believed yet. What happens is told to `record`, too.
    pub fn new(record: mpsc::UnboundedSender<Event>) -> Self {
        let (events, _nobody_yet) = broadcast::channel(limits::EVENTS_BEHIND_MAX);
        Self { host: RwLock::default(), inner: Mutex::default(), events, synced: watch::channel(false).0, record }
    }

    /// The host's name; empty until the agent has told it.
    pub fn host(&self) -> String {
        self.host.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the index is what the agent has.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Ready when the index is what the agent has. Cancel safe.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        synced.wait_for(|synced| *synced).await.expect("its sender is in self");
    }

    /// Ready when the index is not what the agent has any more. Cancel safe.
    pub async fn lost(&self) {
        let mut synced = self.synced.subscribe();
        synced.wait_for(|synced| !*synced).await.expect("its sender is in self");
    }

    fn believed(&self) -> Result<MutexGuard<'_, Inner>, ApiError> {
        if self.is_synced() {
            return Ok(self.inner());
        }
        let error = AgentError { code: Code::Unavailable, message: "the host's agent does not answer".to_owned() };
        Err(error.into())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One sandbox; `None` if there is none.
    pub fn get(&self, id: &SandboxId) -> Result<Option<Arc<View>>, ApiError> {
        Ok(self.believed()?.sandboxes.get(id).cloned())
    }

    /// How one ended, if that was not long ago.
    pub fn departure(&self, id: &SandboxId) -> Option<Departure> {
        self.inner().departed.get(id).cloned()
    }

    /// All of them, by their ids.
    pub fn all(&self) -> Result<Vec<Arc<View>>, ApiError> {
        Ok(self.believed()?.sandboxes.values().cloned().collect())
    }

    /// All of them as last known, for who only counts.
    pub fn last_known(&self) -> Vec<Arc<View>> {
        self.inner().sandboxes.values().cloned().collect()
    }

    /// All of them, and what happens from now on: nothing is missed in between.
    pub fn subscribe(&self) -> Result<(Vec<Arc<View>>, broadcast::Receiver<Event>), ApiError> {
        let inner = self.believed()?;
        Ok((inner.sandboxes.values().cloned().collect(), self.events.subscribe()))
    }

    /// An answer to a call says what a sandbox is now.
    pub fn note(&self, view: &View) {
        let is_news = |known: &View| view.revision > known.revision;
        self.take(view, is_news);
    }

    /// An answer to a call says what a sandbox is now.
    pub fn note_changed(&self, changed: &Changed) {
        self.note(&changed.view);
    }

    /// A sandbox is gone for good.
    pub fn note_gone(&self, departure: Departure) {
        let Ok(id) = departure.id.parse::<SandboxId>() else { return };
        let mut inner = self.inner();
        let Some(view) = inner.sandboxes.remove(&id) else {
            inner.depart(id, departure);
            return;
        };
        inner.depart(id, departure.clone());
        self.tell(Event::Gone(departure, view));
    }

    fn take(&self, view: &View, is_news: impl Fn(&View) -> bool) {
        let mut inner = self.inner();
        if inner.departed.contains_key(&view.id) || inner.sandboxes.get(&view.id).is_some_and(|known| !is_news(known)) {
            return;
        }
        let view = Arc::new(view.clone());
        inner.sandboxes.insert(view.id.clone(), Arc::clone(&view));
        // Under the lock, so that events have the order of what they tell.
        self.tell(Event::Is(view));
    }

    fn tell(&self, event: Event) {
        // The database's writer ends only with the server.
        if self.record.send(event.clone()).is_err() {
            tracing::debug!("nobody records what happens any more");
        }
        // Nobody may be listening.
        drop(self.events.send(event));
    }
}

impl Inner {
    fn depart(&mut self, id: SandboxId, departure: Departure) {
        if self.departed.insert(id.clone(), departure).is_none() {
            self.departures.push_back(id);
        }
        while self.departures.len() > limits::DEPARTURES_REMEMBERED_MAX {
            if let Some(oldest) = self.departures.pop_front() {
                self.departed.remove(&oldest);
            }
        }
    }
}

/// Follows the agent for as long as the server runs. Never ends by itself.
pub async fn follow(world: Arc<World>, agent: Arc<dyn HostAgent>) {
    let mut told = None;
    loop {
        let ended = follow_once(&world, &agent).await;
        if world.synced.send_replace(false) {
            told = None;
            tracing::warn!(error = %ended, "lost the agent; sandboxes go on, and are looked at again when it is back");
        } else if told.as_ref() != Some(&ended) {
            tracing::warn!(error = %ended, "the agent cannot be reached; it is tried again until it can");
            told = Some(ended);
        }
        sleep(limits::AGENT_RETRY).await;
    }
}

/// Follows one watch to its end; why it ended.
async fn follow_once(world: &World, agent: &Arc<dyn HostAgent>) -> AgentError {
    match run(world, agent).await {
        Ok(()) => AgentError { code: Code::Unavailable, message: "the agent's watch ended".to_owned() },
        Err(error) => error,
    }
}

async fn run(world: &World, agent: &Arc<dyn HostAgent>) -> Result<(), AgentError> {
    let host = agent.host().await?;
    *world.host.write().unwrap_or_else(PoisonError::into_inner) = host.host;
    let mut changes = agent.watch().await?;
    let mut told = BTreeSet::new();
    while let Some(change) = changes.next().await {
        match change? {
            Change::Is(view) => {
                if !world.is_synced() {
                    told.insert(view.id.clone());
                }
                world.take(&view, |known| view.revision >= known.revision);
            }
            Change::Complete => {
                settle(world, agent, &std::mem::take(&mut told)).await?;
                world.synced.send_replace(true);
            }
            Change::Gone(departure) => world.note_gone(convert::departure(&departure)),
        }
    }
    Ok(())
}

/// Asks after each sandbox that is known here and was not told of.
async fn settle(world: &World, agent: &Arc<dyn HostAgent>, told: &BTreeSet<SandboxId>) -> Result<(), AgentError> {
    let silent: Vec<SandboxId> = world.inner().sandboxes.keys().filter(|id| !told.contains(*id)).cloned().collect();
    for id in silent {
        match agent.get(&id).await {
            Ok(view) => world.note(&view),
            Err(error) if error.says_gone() => {
                world.note_gone(types::Departure {
                    id: id.to_string(),
                    why: Why::Unknown,
                    ended_unix_ms: now_unix_ms(),
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
