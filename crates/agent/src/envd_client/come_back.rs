//! A guest whose memory was restored is brought back: over one connection, by one call, as far as that will do.
//!
//! ```text
//!   connect, in short attempts ─► /resumed: clock, entropy, identity, hooks ─► is the clock certainly right? ─► /thaw
//!                                                                                 └ no: /clock until it is ┘
//! ```
//! Whether the guest is up is not asked: that the connection stands shows that its kernel is, and its agent ran when it was
//! captured. In an emulated guest everything that is done for the first time since the restore takes many times as long as
//! later, so each kind of call and each connection that is not needed counts.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::TryFutureExt as _;
use wrenn_engine::names::SandboxId;
use wrenn_proto::envd::host_calls::{self as wire, ResumedAnswer};

use super::clock::{Answered, ClockReading, told_unix_ns, unix_ns};
use super::host_call::{HostKey, HostLine, RESUMED, Timed, parsed};
use super::{ATTEMPT_LIMIT, EnvdClient, EnvdError, repeated, words};

/// What a guest is told whose memory was restored.
#[derive(Clone)]
pub struct Resumed {
    /// Random bytes that no other guest was or will be given.
    pub entropy: [u8; 64],
    /// Who it is from now on; who it was if `None`.
    pub identity: Option<Identity>,
}

/// Who a guest is, of several that began as one memory.
///
/// The nonces of its calls go on where those of the captured guest were: a client of the new one starts above all that were
/// used for the old one until it was captured.
#[derive(Clone)]
pub struct Identity {
    /// Whom calls are meant for from then on.
    pub id: SandboxId,
    /// What guards its calls from then on.
    pub access_token: String,
    /// Environment of every process in it, beside what it has already.
    pub env_vars: BTreeMap<String, String>,
    /// Its host name.
    pub hostname: String,
    /// Its machine id, 32 hex digits in lower case.
    pub machine_id: String,
    /// Its boot id, a UUID in lower case.
    pub boot_id: String,
}

/// A guest that is fit to go on; its users' processes still stand still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameBack {
    /// How right its clock is.
    pub clock: ClockReading,
    /// Names of the hooks that were run, in the guest's words.
    pub hooks: Vec<String>,
}

impl Resumed {
    fn to_wire(&self, now: SystemTime) -> wire::Resumed {
        wire::Resumed {
            host_unix_ns: unix_ns(now).to_string(),
            entropy: BASE64.encode(self.entropy),
            identity: self.identity.as_ref().map(Identity::to_wire),
        }
    }
}

impl Identity {
    fn to_wire(&self) -> wire::Identity {
        wire::Identity {
            sandbox_id: self.id.to_string(),
            access_token: self.access_token.clone(),
            env_vars: self.env_vars.clone(),
            hostname: self.hostname.clone(),
            machine_id: self.machine_id.clone(),
            boot_id: self.boot_id.clone(),
        }
    }
}

impl EnvdClient {
    /// Connects to a guest whose memory was restored, within `limit`. Nothing is said yet.
    pub async fn reach(&self, limit: Duration) -> Result<HostLine, EnvdError> {
        let attempt = || self.connect(ATTEMPT_LIMIT).map_err(EnvdError::Unreachable);
        self.host_line(repeated(limit, attempt).await?).await
    }
}

impl HostLine {
    /// Makes a guest whose memory was restored fit to go on, before its users' processes do: it sets its clock, feeds and
    /// reseeds its random generator, becomes who it is to be, and runs the hooks in its `/etc/wrenn/resume.d`. All its other
    /// connections are ended. Its clock is certainly off by less than `within` afterwards; where that takes more than this
    /// one call, it may take `limit` more.
    ///
    /// The call is meant for whom `host` names; all later ones for who the guest has become. One that fails here must not
    /// run on: it may be half of each.
    pub async fn come_back(
        &mut self,
        host: HostKey<'_>,
        resumed: &Resumed,
        within: Duration,
        limit: Duration,
    ) -> Result<CameBack, EnvdError> {
        let body = serde_json::to_vec(&resumed.to_wire(SystemTime::now())).expect("strings are JSON");
        let Timed { answer, sent, took } = self.timed(host, &RESUMED, body).await?;
        let answer: ResumedAnswer = parsed(RESUMED.name, &answer)?;
        let guest = Answered {
            arrived_ns: told_unix_ns(RESUMED.name, &answer.arrived_unix_ns)?,
            answered_ns: told_unix_ns(RESUMED.name, &answer.answered_unix_ns)?,
        };
        let id = resumed.identity.as_ref().map_or(host.id, |identity| &identity.id);
        let clock = match ClockReading::new(sent, took, guest) {
            Some(reading) if reading.off_by_at_most() < within => reading,
            Some(_) | None => self.set_clock(HostKey { id, ..host }, within, limit).await?,
        };
        Ok(CameBack { clock, hooks: answer.hooks.iter().map(|hook| words(hook)).collect() })
    }
}
