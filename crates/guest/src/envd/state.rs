//! What envd knows of its sandbox: who it is, who may call, and what the host's last /init said; /resumed may make it another.
//!
//! One value, shared by every handler. Before the first /init there is no token, so that every guarded route refuses;
//! that is on purpose, see [`auth`](super::auth). Locks are held for a copy, never across an await.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::arrivals::Arrivals;
use super::cgroup::UserCgroup;
use super::host_calls::Verifier;
use super::lane::Lane;
use super::metrics::CpuMeter;
use super::process::Registry;

/// The user whose name stands in for a missing one until the host has named another.
const DEFAULT_USER: &str = "root";

/// What processes get as PATH when envd itself was given none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the host sets with /init and may set again, also with /resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What guarded requests must carry; none means that none is let in.
    pub token: Option<Arc<str>>,
    /// Environment of every process, under what its request asks for.
    pub env: BTreeMap<String, String>,
    /// The user of a request that names none.
    pub default_user: String,
    /// The working directory of a request that names none; the user's home without it.
    pub default_workdir: Option<PathBuf>,
}

/// Where this envd runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// In a guest: PID 1 is ours and takes orders, and the machine is the host's to stop, set and change.
    Guest,
    /// Anywhere else, a developer's machine for example, which is none of ours.
    Other,
}

/// A call that changes the whole machine, and this is no guest.
#[derive(Debug, thiserror::Error)]
#[error("this envd does not run in a guest: {0}")]
pub struct NoGuest(&'static str);

impl Machine {
    /// Refuses with this reason outside of a guest.
    pub fn expect_guest(self, reason: &'static str) -> Result<(), NoGuest> {
        match self {
            Self::Guest => Ok(()),
            Self::Other => Err(NoGuest(reason)),
        }
    }
}

/// Where the host's calls that may hang have their turns.
#[derive(Debug, Default)]
pub struct Lanes {
    /// /sync.
    pub sync: Lane,
    /// /fsfreeze and /fsthaw.
    pub disk: Lane,
    /// /resumed.
    pub resumed: Lane,
}

/// The sandbox as envd knows it.
#[derive(Debug)]
pub struct State {
    /// Checks the host's signed calls.
    pub verifier: Verifier,
    /// Where processes are born and frozen; none outside of a guest.
    pub cgroup: Option<UserCgroup>,
    /// The processes.
    pub processes: Arc<Registry>,
    /// Between two looks at the CPU's counters.
    pub cpu: CpuMeter,
    /// What it runs on.
    pub machine: Machine,
    /// For calls that may hang.
    pub lanes: Lanes,
    /// The connections.
    pub arrivals: Arrivals,
    /// PATH of processes that bring none.
    pub path: String,
    /// A memory was restored, and the guest was not made fit to go on.
    unfit: AtomicBool,
    settings: RwLock<Settings>,
}

impl State {
    /// A sandbox before its first /init; `id` is the sandbox's.
    pub fn new(id: &str, verifier: Verifier, cgroup: Option<UserCgroup>, machine: Machine) -> Self {
        let path = std::env::var("PATH").ok().filter(|path| !path.is_empty());
        Self {
            verifier,
            cgroup,
            processes: Arc::new(Registry::new()),
            cpu: CpuMeter::new(),
            machine,
            lanes: Lanes::default(),
            arrivals: Arrivals::default(),
            path: path.unwrap_or_else(|| DEFAULT_PATH.to_owned()),
            unfit: AtomicBool::new(false),
            settings: RwLock::new(Settings {
                token: None,
                env: own_env(id),
                default_user: DEFAULT_USER.to_owned(),
                default_workdir: None,
            }),
        }
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The access token, once there is one.
    pub fn token(&self) -> Option<Arc<str>> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).token.clone()
    }

    /// Whether the users' processes may run.
    pub fn is_fit(&self) -> bool {
        !self.unfit.load(Ordering::Relaxed)
    }

    /// Says whether they may.
    pub fn set_fit(&self, fit: bool) {
        self.unfit.store(!fit, Ordering::Relaxed);
    }

    /// Changes the settings in one step that no request sees half done.
    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What programs written for E2B look for.
pub fn own_env(id: &str) -> BTreeMap<String, String> {
    let own = [("E2B_SANDBOX", "true"), ("E2B_SANDBOX_ID", id)];
    own.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.into(), value.into())).collect()
}
