//! /resumed: the guest's memory was restored, and maybe in other guests too. Nobody's programs run yet.
//!
//! ```text
//!   check ─► clock ─► entropy, credited ─► reseed ─► a fork's names and ids ─► hooks ─► token, environment, id ─► answer
//!     │        └────────┴──────────────────┴──────────┴──────────────────────────┤
//!     └─ a failure: nothing was done        a failure: the call fails, and so does /thaw from then on
//! ```
//! Two guests of one memory would draw the same random numbers. So the kernel's generator gets bytes that no other guest
//! gets, and is made to use them at once. What programs keep of their own is for the [`hooks`] to renew.
//!
//! Who may call changes last and at once: until everything has succeeded, this is the guest that was captured, and can be
//! told the same again. Then it is another one, with the nonces of the old one.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wrenn_proto::envd::host_calls::{ENTROPY_BYTES, Identity, Resumed, ResumedAnswer};
use wrenn_sys::random;

use super::clock::unix_ns;
use super::{CallError, Received};
use crate::envd::arrivals::Arrival;
use crate::envd::hooks::{self, HookError};
use crate::envd::state::{State, own_env};
use crate::identity::{self, IdentityError};
use crate::limits;

/// The variable of the settings that names the sandbox, also when /init has renamed it.
const ID_VARIABLE: &str = "E2B_SANDBOX_ID";

/// Why the guest is not fit to go on.
#[derive(Debug, thiserror::Error)]
pub enum ResumedError {
    /// The body's entropy is none.
    #[error("`entropy` is not Base64 of {} to {} bytes", ENTROPY_BYTES.start(), ENTROPY_BYTES.end())]
    Entropy,
    /// The body's time is none.
    #[error("`host_unix_ns` is not a number of nanoseconds that the clock could be set to")]
    Time,
    /// The body's sandbox is none.
    #[error("`sandbox_id` is not 1 to 64 characters of [a-z0-9-]")]
    SandboxId,
    /// The body's token is none.
    #[error("`access_token` is empty")]
    Token,
    /// The body's name is none.
    #[error("`hostname` is not 1 to 64 characters of [a-z0-9-]")]
    Hostname,
    /// The body's id is none.
    #[error("`machine_id` is not 32 hex digits in lower case")]
    MachineId,
    /// The body's id is none.
    #[error("`boot_id` is not a UUID in lower case")]
    BootId,
    /// The kernel did not set it.
    #[error("cannot set the clock")]
    Clock(#[source] io::Error),
    /// The kernel did not take it.
    #[error("cannot feed the kernel's random generator")]
    Feed(#[source] io::Error),
    /// The kernel did not do it.
    #[error("cannot reseed the kernel's random generator")]
    Reseed(#[source] io::Error),
    /// It is still who it was.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
}

impl ResumedError {
    /// The host's fault: nothing was done.
    pub fn is_request(&self) -> bool {
        match self {
            Self::Entropy | Self::Time | Self::SandboxId | Self::Token => true,
            Self::Hostname | Self::MachineId | Self::BootId => true,
            Self::Clock(_) | Self::Feed(_) | Self::Reseed(_) | Self::Identity(_) | Self::Hook(_) => false,
        }
    }
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// By how much the clock is wrong.
    step_ns: i64,
    entropy: Vec<u8>,
    identity: Option<Identity>,
}

/// Makes the guest one of its own and runs its hooks. Who is connected otherwise than by this call's connection is cut off.
pub async fn come_back(state: &State, received: Received, request: Resumed) -> Result<ResumedAnswer, CallError> {
    let Plan { step_ns, entropy, identity } = plan(received.at, request)?;
    state.machine.expect_guest("this machine was not restored")?;
    state.set_fit(false);
    wrenn_sys::clock::step(step_ns).map_err(ResumedError::Clock)?;
    let env = environment(state, identity.as_ref());
    let machine = identity.clone();
    let work = move || -> Result<Vec<String>, ResumedError> {
        random::add_entropy(&entropy).map_err(ResumedError::Feed)?;
        random::reseed().map_err(ResumedError::Reseed)?;
        machine.as_ref().map_or(Ok(()), rename_machine)?;
        Ok(hooks::run_all(Path::new(hooks::FOLDER), &env, limits::HOOKS_TIME_MAX)?)
    };
    let hooks =
        state.lanes.resumed.run(limits::RESUMED_TIME_MAX, work, drop).await.map_err(CallError::ResumedLane)??;
    settle(state, received.by, identity);
    Ok(ResumedAnswer {
        arrived_unix_ns: (unix_ns(received.at) + i128::from(step_ns)).to_string(),
        hooks,
        answered_unix_ns: unix_ns(SystemTime::now()).to_string(),
    })
}

/// What is to be done, if all of it makes sense.
fn plan(received: SystemTime, request: Resumed) -> Result<Plan, ResumedError> {
    let entropy = STANDARD.decode(request.entropy).map_err(|_| ResumedError::Entropy)?;
    if !ENTROPY_BYTES.contains(&entropy.len()) {
        return Err(ResumedError::Entropy);
    }
    let step_ns =
        i64::try_from(host_time(&request.host_unix_ns)? - unix_ns(received)).map_err(|_| ResumedError::Time)?;
    request.identity.as_ref().map_or(Ok(()), check)?;
    Ok(Plan { step_ns, entropy, identity: request.identity })
}

fn host_time(text: &str) -> Result<i128, ResumedError> {
    // `parse` alone would take "+1" and "-1".
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().ok_or(ResumedError::Time)
}

fn check(identity: &Identity) -> Result<(), ResumedError> {
    let rules = [
        (identity::is_name(&identity.sandbox_id), ResumedError::SandboxId),
        (!identity.access_token.is_empty(), ResumedError::Token),
        (identity::is_name(&identity.hostname), ResumedError::Hostname),
        (identity::is_machine_id(&identity.machine_id), ResumedError::MachineId),
        (identity::is_boot_id(&identity.boot_id), ResumedError::BootId),
    ];
    rules.into_iter().try_for_each(|(holds, error)| if holds { Ok(()) } else { Err(error) })
}

/// What the machine calls itself.
fn rename_machine(identity: &Identity) -> Result<(), IdentityError> {
    identity::set_hostname(&identity.hostname)?;
    identity::set_machine_id(&identity.machine_id)?;
    identity::set_boot_id(&identity.boot_id)
}

/// From here on this is who it is told to be, and its users' processes may run.
fn settle(state: &State, by: Option<Arrival>, identity: Option<Identity>) {
    if let Some(identity) = identity {
        state.change_settings(|settings| {
            settings.token = Some(identity.access_token.into());
            settings.env.extend(own_env(&identity.sandbox_id));
            settings.env.extend(identity.env_vars);
        });
        state.verifier.rename(identity.sandbox_id);
    }
    // After the token has changed: nobody comes in by the old one behind its back.
    if let Some(arrival) = by {
        state.arrivals.end_all_but(arrival);
    }
    state.set_fit(true);
}

/// Root's, and which sandbox this is.
fn environment(state: &State, identity: Option<&Identity>) -> Vec<(&'static str, String)> {
    let told = |identity: &Identity| identity.env_vars.get(ID_VARIABLE).unwrap_or(&identity.sandbox_id).clone();
    let known = || state.settings().env.remove(ID_VARIABLE).unwrap_or_else(|| state.verifier.sandbox_id());
    vec![
        ("PATH", state.path.clone()),
        ("HOME", "/root".to_owned()),
        ("USER", "root".to_owned()),
        ("LOGNAME", "root".to_owned()),
        ("WRENN_SANDBOX_ID", identity.map_or_else(known, told)),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;
    use crate::envd::host_calls::Verifier;
    use crate::envd::state::Machine;

    const NOW_NS: u64 = 1_800_000_000_000_000_000;

    fn received() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(NOW_NS)
    }

    fn request(entropy: usize) -> Resumed {
        Resumed { host_unix_ns: NOW_NS.to_string(), entropy: STANDARD.encode(vec![7; entropy]), identity: None }
    }

    fn identity() -> Identity {
        Identity {
            sandbox_id: "sb2".into(),
            access_token: "new".into(),
            env_vars: [("A".to_owned(), "2".to_owned())].into(),
            hostname: "fork".into(),
            machine_id: "0123456789abcdef".repeat(2),
            boot_id: "01234567-89ab-cdef-0123-456789abcdef".into(),
        }
    }

    fn state() -> State {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let state = State::new("sb1", Verifier::new("sb1", key).unwrap(), None, Machine::Other);
        state.change_settings(|settings| {
            settings.token = Some("old".into());
            settings.env.extend([("A".into(), "1".into()), ("B".into(), "1".into())]);
        });
        state
    }

    #[test]
    fn the_clock_is_stepped_by_how_far_it_was_off_when_the_call_arrived() {
        for (host_ns, step_ns) in [
            (NOW_NS.to_string(), Some(0)),
            ((NOW_NS + 5).to_string(), Some(5)),
            ((NOW_NS - 3_600_000_000_000).to_string(), Some(-3_600_000_000_000)),
            ("0".into(), Some(-1_800_000_000_000_000_000)),
            (u128::MAX.to_string(), None),
            (u64::MAX.to_string() + "000", None),
            (format!("+{NOW_NS}"), None),
            ("-1".into(), None),
            (String::new(), None),
        ] {
            let planned = plan(received(), Resumed { host_unix_ns: host_ns.clone(), ..request(32) });
            match step_ns {
                Some(step_ns) => assert_eq!(planned.unwrap().step_ns, step_ns, "{host_ns}"),
                None => assert!(matches!(planned, Err(ResumedError::Time)), "{host_ns}"),
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_done() {
        let planned = plan(received(), Resumed { identity: Some(identity()), ..request(512) }).unwrap();
        assert_eq!(planned, Plan { step_ns: 0, entropy: vec![7; 512], identity: Some(identity()) });
        for bytes in [0, 31, 513] {
            assert!(matches!(plan(received(), request(bytes)), Err(ResumedError::Entropy)), "{bytes}");
        }
        let nonsense = Resumed { entropy: "!".repeat(64), ..request(32) };
        assert!(matches!(plan(received(), nonsense), Err(ResumedError::Entropy)));
        for (wrong, field) in [
            (Identity { sandbox_id: "../x".into(), ..identity() }, "sandbox_id"),
            (Identity { access_token: String::new(), ..identity() }, "access_token"),
            (Identity { hostname: "a.b".into(), ..identity() }, "hostname"),
            (Identity { machine_id: "0123".into(), ..identity() }, "machine_id"),
            (Identity { boot_id: "0123".into(), ..identity() }, "boot_id"),
        ] {
            let error = plan(received(), Resumed { identity: Some(wrong), ..request(32) }).unwrap_err();
            assert!(error.is_request() && error.to_string().starts_with(&format!("`{field}` ")), "{field}: {error}");
        }
    }

    #[test]
    fn a_resumed_guest_stays_who_it_is_and_a_fork_becomes_another() {
        for identity in [None, Some(identity())] {
            let (state, is_fork) = (state(), identity.is_some());
            let [before, this, since] = [(); 3].map(|()| state.arrivals.arrive());
            state.set_fit(false);
            settle(&state, Some(this), identity);
            assert!(state.is_fit());
            let ended = |arrival| state.arrivals.over(arrival).now_or_never().is_some();
            assert_eq!([before, this, since].map(ended), [true, false, true]);
            let settings = state.settings();
            let env = |name: &str| settings.env[name].clone();
            let told =
                [&settings.token.clone().unwrap(), &*state.verifier.sandbox_id(), &env("E2B_SANDBOX_ID"), &env("A")]
                    .map(str::to_owned);
            assert_eq!(told, if is_fork { ["new", "sb2", "sb2", "2"] } else { ["old", "sb1", "sb1", "1"] });
            assert_eq!(env("B"), "1", "what is not named stays");
        }
    }

    #[test]
    fn hooks_are_told_the_new_name() {
        let name = |identity: Option<&Identity>| environment(&state(), identity).pop().unwrap();
        assert_eq!(name(None), ("WRENN_SANDBOX_ID", "sb1".to_owned()));
        assert_eq!(name(Some(&identity())), ("WRENN_SANDBOX_ID", "sb2".to_owned()));
        let named = Identity { env_vars: [(ID_VARIABLE.to_owned(), "alias".to_owned())].into(), ..identity() };
        assert_eq!(name(Some(&named)), ("WRENN_SANDBOX_ID", "alias".to_owned()));
    }
}
