//! Networks of sandboxes: a slot of the host each, taken, lent to one sandbox, and given back without a trace.
//!
//! ```text
//!  guest 169.254.0.21                    namespace wrn-TAG-SLOT                         host
//!  ┌──────────┐ frames ┌─────────────────────────────────────────────┐        ┌──────────────────────────────┐
//!  │ eth0     │◄──────►│ tap0 169.254.0.22   SNAT   veth0 10.12.0.2i+1│◄──────►│ wvTAGSLOT 10.12.0.2i         │
//!  └──────────┘ (VMM)  │ :53 ─DNAT► the host's resolver              │        │ MASQUERADE ─► uplink ─► world │
//!                      │ 10.11.x.y ─DNAT► guest   IPv6 off           │        │ 10.11.x.y via veth0          │
//!                      └─────────────────────────────────────────────┘        └──────────────────────────────┘
//! ```
//!
//! **States of a slot.** free ─`acquire`► leased ─`destroy`► free. A process that ends without `destroy` leaves the slot
//! *left over*: the next process of the same instance either [`Network::adopt`]s it (its VM lives on) or removes it in
//! [`Network::sweep`]. Everything can be found again from tag and slot: see [`crate::names`] and [`slots`].
//!
//! **Invariants.** The slot's owner is on record before its first host object exists and until its last one is gone. Rules
//! stand before a link is up. An object that carries another instance's tag, or no name of ours, is never touched. When the
//! host's last slot is released, its rules, routes and settings are as they were.
//!
//! **Control traffic** to a guest goes through a socket that was made inside its namespace ([`Connector`]), so that no
//! firewall of the host can cut it and no other traffic can take its place.
//!
//! What this module does not know: VMs, disks, sandboxes. The work is blocking system calls of some milliseconds; it runs
//! on threads of its own, and goes on to its end when the caller no longer waits.

pub mod addresses;
mod build;
mod capabilities;
mod connect;
mod conntrack;
pub mod forwarding;
mod lease;
pub mod links;
pub mod nft;
mod pool;
pub mod resolvers;
pub mod rules;
pub mod slots;
mod sweep;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub use addresses::{Addresses, GUEST_MAC, Ipv4Range, NetworkConfig};
pub use build::Step;
pub use capabilities::{NetworkCapabilities, capabilities};
pub use connect::{ConnectError, Connector};
pub use lease::Lease;
pub use pool::Pool;
pub use resolvers::Dns;
pub use sweep::{HostObject, SweepReport};
pub use traffic::Traffic;

use tokio::sync::{Semaphore, oneshot};

use crate::command::CommandError;
use crate::limits;
use crate::names::{InstanceTag, Slot};
use forwarding::ForwardingError;
use slots::{SlotError, Slots};

/// Why a network cannot be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Leases cannot be kept.
    #[error("cannot lease a network slot")]
    Slots(#[from] SlotError),
    /// All slots of the host are taken.
    #[error(
        "all {slots} network slots of this host are taken; destroy sandboxes, or widen the ranges in the configuration"
    )]
    NoFreeSlot {
        /// How many there are.
        slots: u16,
    },
    /// Something has a name that would be ours.
    #[error(
        "network slot {slot} is taken: {object} exists already and is not in use by this instance; {}",
        sweep::REMEDY
    )]
    SlotTaken {
        /// The slot.
        slot: Slot,
        /// The object.
        object: HostObject,
    },
    /// The slot belongs to somebody else, or is left over.
    #[error("network slot {slot} belongs to {owner}")]
    SlotOwned {
        /// The slot.
        slot: Slot,
        /// Who has it.
        owner: String,
    },
    /// The host uses addresses that sandboxes would get.
    #[error(
        "the addresses of network slot {slot} ({address}) fall under the host's route {route}{}; choose other ranges in \
         the configuration (network.links, network.guests)", link.as_ref().map(|link| format!(" ({link})")).unwrap_or_default()
    )]
    RangeConflict {
        /// The slot.
        slot: Slot,
        /// The address that is the host's already.
        address: Ipv4Addr,
        /// The route it falls under.
        route: Ipv4Range,
        /// The link that route leads to.
        link: Option<String>,
    },
    /// A step of making a network failed; what was made before is gone again.
    #[error("cannot make the network of slot {slot} (step: {step}){}", .step.remedy())]
    Build {
        /// The slot.
        slot: Slot,
        /// The step.
        step: Step,
        /// What the host said.
        #[source]
        source: BuildError,
    },
    /// A part of a slot could not be removed; the slot stays on record for the next sweep.
    #[error("cannot remove {object}; it stays on record and the next sweep tries again")]
    Remove {
        /// What is left.
        object: HostObject,
        /// What the host said.
        #[source]
        source: BuildError,
    },
    /// A slot that should be adopted is not whole.
    #[error("network slot {slot} cannot be adopted: {missing} is gone; sweep it")]
    Incomplete {
        /// The slot.
        slot: Slot,
        /// What is not there any more.
        missing: HostObject,
    },
    /// The host's objects cannot be listed.
    #[error("cannot list the host's {what}")]
    List {
        /// Which ones.
        what: &'static str,
        /// What the host said.
        #[source]
        source: BuildError,
    },
    /// The host's forwarding cannot be put back.
    #[error("cannot put the host's ip_forward back")]
    Forwarding(#[from] ForwardingError),
    /// The thread that did the work is gone.
    #[error("the thread that worked on the network panicked; what it left is removed by the next sweep")]
    Worker,
}

/// What a step of building or removing can fail with.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A system call.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// `nft`.
    #[error(transparent)]
    Rules(#[from] CommandError),
    /// The host's forwarding.
    #[error(transparent)]
    Forwarding(#[from] ForwardingError),
    /// Asked for by a test.
    #[error("failed on request")]
    OnRequest,
}

/// The networks of one instance on this host. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Network(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tag: InstanceTag,
    wrenn_dir: PathBuf,
    config: NetworkConfig,
    slots: Slots,
    state: Mutex<State>,
    /// Bounds the work at once: more only wait for each other in the kernel, each with threads and an `nft`.
    turns: Arc<Semaphore>,
    /// Told whenever work has ended.
    idle: Condvar,
    /// Held while elements of several slots are put into the table, or a slot's are removed for good: who renews the
    /// table must not bring back those of a slot that is just released.
    renewal: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Slots this process holds, with the resolver their rules name.
    held: BTreeMap<Slot, Option<Ipv4Addr>>,
    /// Whether the instance's table was brought up to date by this process.
    table_ready: bool,
    /// Work under way on threads of its own.
    busy: usize,
    /// Threads that clean up after leases that were dropped.
    reaping: Vec<JoinHandle<()>>,
    /// The step that a test wants to fail.
    failing: Option<Step>,
}

impl Network {
    /// Opens the networks of the instance `tag` in `wrenn_dir`. Makes folders under the run folder, nothing else.
    pub fn open(tag: InstanceTag, wrenn_dir: &Path, config: NetworkConfig) -> Result<Self, NetworkError> {
        let slots = Slots::open(&config.run_dir)?;
        let (wrenn_dir, state) = (wrenn_dir.to_owned(), Mutex::default());
        let (idle, renewal) = (Condvar::new(), Mutex::default());
        let turns = Arc::new(Semaphore::new(limits::NETWORK_CHANGES_AT_ONCE));
        Ok(Self(Arc::new(Shared { tag, wrenn_dir, config, slots, state, turns, idle, renewal })))
    }

    /// What a sandbox made now gets for DNS; the host's list is read anew each time.
    pub fn dns(&self) -> Dns {
        resolvers::choose(&self.0.config.resolv_conf)
    }

    /// Takes the first free slot and makes its network.
    pub async fn acquire(&self) -> Result<Lease, NetworkError> {
        self.blocking(|shared| build::acquire(&shared, None)).await
    }

    /// Takes this slot and makes its network.
    pub async fn acquire_slot(&self, slot: Slot) -> Result<Lease, NetworkError> {
        self.blocking(move |shared| build::acquire(&shared, Some(slot))).await
    }

    /// Takes over a slot whose owner, an earlier process of this instance, ended without releasing it.
    pub async fn adopt(&self, slot: Slot) -> Result<Lease, NetworkError> {
        self.blocking(move |shared| build::adopt(&shared, slot)).await
    }

    /// Removes every object of this instance whose slot nobody holds and that is not among `kept`, which somebody will adopt.
    pub async fn sweep(&self, kept: &BTreeSet<Slot>) -> Result<SweepReport, NetworkError> {
        let kept = kept.clone();
        self.blocking(move |shared| sweep::sweep(&shared, &kept)).await
    }

    /// Every object of this instance on the host, in use or left over.
    pub async fn inventory(&self) -> Result<Vec<HostObject>, NetworkError> {
        self.blocking(|shared| sweep::inventory(&shared)).await
    }

    /// Waits until nothing of this process is under way: work whose caller stopped waiting, and the clean-up after leases
    /// that were dropped instead of destroyed. For the end of a program.
    pub async fn settle(&self) -> Result<(), NetworkError> {
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || shared.settle()).await.map_err(|_panic| NetworkError::Worker)
    }

    /// Makes every later `acquire` fail at this step, to show that nothing is left then.
    #[doc(hidden)]
    pub fn fail_at(&self, step: Option<Step>) {
        self.0.state().failing = step;
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Shared>) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        Shared::blocking(&self.0, work).await
    }
}

impl Shared {
    /// Runs `work` to its end on a thread of its own, also if nobody waits for it any more: then its result is dropped,
    /// which takes down what it made, before [`Network::settle`] says that all is done.
    async fn blocking<T: Send + 'static>(
        this: &Arc<Self>,
        work: impl FnOnce(Arc<Self>) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        // The semaphore is never closed.
        let turn = Arc::clone(&this.turns).acquire_owned().await.map_err(|_closed| NetworkError::Worker)?;
        let (give, take) = oneshot::channel();
        let shared = Arc::clone(this);
        let busy = Busy::new(Arc::clone(this));
        tokio::task::spawn_blocking(move || {
            drop(give.send(work(shared)));
            drop((turn, busy));
        });
        take.await.map_err(|_panicked| NetworkError::Worker)?
    }

    fn settle(&self) {
        let mut state = self.state();
        while state.busy > 0 || !state.reaping.is_empty() {
            if let Some(reaper) = state.reaping.pop() {
                drop(state);
                // A reaper that panicked has left its slot on record; the next sweep removes it.
                reaper.join().unwrap_or_else(|_panic| tracing::error!("a network's reaper panicked"));
                state = self.state();
            } else {
                state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// The state; a panic elsewhere leaves it usable, each change is one assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renewing(&self) -> MutexGuard<'_, ()> {
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn netns_path(&self, name: &str) -> PathBuf {
        self.config.run_dir.join("netns").join(name)
    }
}

/// Counts as work under way until it is dropped.
struct Busy(Arc<Shared>);

impl Busy {
    fn new(shared: Arc<Shared>) -> Self {
        shared.state().busy += 1;
        Self(shared)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state().busy -= 1;
        self.0.idle.notify_all();
    }
}
