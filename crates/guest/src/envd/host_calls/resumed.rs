//! /resumed: the guest's memory was restored, and maybe in other guests too. Nobody's programs run yet.
//!
//! ```text
//!   check ─► old connections end ─► entropy, credited ─► reseed ─► name, machine id (a fork's) ─► hooks ─► their names
//!      └───────────────────────────────┴──────────────────┴──────────┴── any failure: the call fails, no later step is taken
//! ```
//! Two guests of one memory would draw the same random numbers. So the kernel's generator gets bytes that no other guest
//! gets, and is made to use them at once. What programs keep of their own is for the [`hooks`] to renew.

use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wrenn_proto::envd::host_calls::{ENTROPY_BYTES, Resumed, ResumedAnswer};
use wrenn_sys::random;

use super::CallError;
use crate::envd::arrivals::Arrival;
use crate::envd::hooks::{self, HookError};
use crate::envd::state::State;
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
    /// The body's name is none.
    #[error("`hostname` is not 1 to 64 characters of [a-z0-9-]")]
    Hostname,
    /// The body's id is none.
    #[error("`machine_id` is not 32 hex digits in lower case")]
    MachineId,
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
            Self::Entropy | Self::Hostname | Self::MachineId => true,
            Self::Feed(_) | Self::Reseed(_) | Self::Identity(_) | Self::Hook(_) => false,
        }
    }
}

/// Something to do before the hooks.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Feed(Vec<u8>),
    Reseed,
    Rename(String),
    Identify(String),
}

/// Makes the guest one of its own and runs its hooks. Who connected before this call's connection did is cut off.
pub async fn come_back(state: &State, arrival: Option<Arrival>, request: Resumed) -> Result<ResumedAnswer, CallError> {
    let steps = plan(request)?;
    state.machine.expect_guest("this machine was not restored")?;
    if let Some(arrival) = arrival {
        state.arrivals.end_before(arrival);
    }
    let env = environment(state);
    let work = move || -> Result<Vec<String>, ResumedError> {
        steps.into_iter().try_for_each(take)?;
        Ok(hooks::run_all(Path::new(hooks::FOLDER), &env, limits::HOOKS_TIME_MAX)?)
    };
    let hooks =
        state.lanes.resumed.run(limits::RESUMED_TIME_MAX, work, drop).await.map_err(CallError::ResumedLane)??;
    Ok(ResumedAnswer { hooks })
}

/// What is to be done, if all of it makes sense.
fn plan(request: Resumed) -> Result<Vec<Step>, ResumedError> {
    let entropy = STANDARD.decode(request.entropy).map_err(|_| ResumedError::Entropy)?;
    if !ENTROPY_BYTES.contains(&entropy.len()) {
        return Err(ResumedError::Entropy);
    }
    let mut steps = vec![Step::Feed(entropy), Step::Reseed];
    if let Some(name) = request.hostname {
        steps.push(identity::is_name(&name).then_some(Step::Rename(name)).ok_or(ResumedError::Hostname)?);
    }
    if let Some(id) = request.machine_id {
        steps.push(identity::is_machine_id(&id).then_some(Step::Identify(id)).ok_or(ResumedError::MachineId)?);
    }
    Ok(steps)
}

fn take(step: Step) -> Result<(), ResumedError> {
    match step {
        Step::Feed(entropy) => random::add_entropy(&entropy).map_err(ResumedError::Feed),
        Step::Reseed => random::reseed().map_err(ResumedError::Reseed),
        Step::Rename(name) => Ok(identity::set_hostname(&name)?),
        Step::Identify(id) => Ok(identity::set_machine_id(&id)?),
    }
}

/// Root's, and which sandbox this is.
fn environment(state: &State) -> Vec<(&'static str, String)> {
    let id = state.settings().env.remove(ID_VARIABLE).unwrap_or_else(|| state.verifier.sandbox_id().to_owned());
    vec![
        ("PATH", state.path.clone()),
        ("HOME", "/root".to_owned()),
        ("USER", "root".to_owned()),
        ("LOGNAME", "root".to_owned()),
        ("WRENN_SANDBOX_ID", id),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(entropy: usize) -> Resumed {
        Resumed { entropy: STANDARD.encode(vec![7; entropy]), ..Resumed::default() }
    }

    #[test]
    fn entropy_comes_first_and_a_fork_gets_its_name_and_id() {
        assert_eq!(plan(request(32)).unwrap(), [Step::Feed(vec![7; 32]), Step::Reseed]);
        let id = "0123456789abcdef".repeat(2);
        let fork = Resumed { hostname: Some("sb1".into()), machine_id: Some(id.clone()), ..request(512) };
        let steps = [Step::Feed(vec![7; 512]), Step::Reseed, Step::Rename("sb1".into()), Step::Identify(id)];
        assert_eq!(plan(fork).unwrap(), steps);
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_done() {
        for bytes in [0, 31, 513] {
            assert!(matches!(plan(request(bytes)), Err(ResumedError::Entropy)), "{bytes}");
        }
        assert!(matches!(plan(Resumed { entropy: "!".repeat(64), ..request(32) }), Err(ResumedError::Entropy)));
        let named = |name: &str| plan(Resumed { hostname: Some(name.into()), ..request(32) });
        assert!(matches!(named("a.b"), Err(ResumedError::Hostname)));
        let identified = |id: &str| plan(Resumed { machine_id: Some(id.into()), ..request(32) });
        assert!(matches!(identified("0123"), Err(ResumedError::MachineId)));
        assert!(plan(Resumed { hostname: Some(String::new()), ..request(32) }).is_err_and(|error| error.is_request()));
    }
}
