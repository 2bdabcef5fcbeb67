//! The domain's types on the wire and back. What comes from the wire is checked here, all problems at once.
//!
//! Here is what they have in common: what is malformed, what is too much, and errors.

mod host;
mod sandbox;
mod snapshot;
mod template;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use connectrpc::{ConnectError, ErrorCode, ErrorDetail};
use wrenn_engine::names::SnapshotId;
use wrenn_engine::vmm::Description;
use wrenn_proto::hostagent as wire;

use super::limits;
use crate::host_agent::{AgentError, Code, with_causes};
use crate::sandbox::Timing;
use crate::snapshot::check_name;

pub(super) use host::host_view;
pub(super) use sandbox::{
    change, change_event, changed, checked_create, checked_resume, checked_timeout, create_request, resume_request,
    sandbox_id, timeout_request, view,
};
pub(super) use snapshot::{
    Forks, checked_fork, checked_rollback, checked_snapshot, fork_events, fork_request, rollback_request,
    snapshot_name, snapshot_request, snapshot_view, snapshotted,
};
pub(super) use template::{checked_from_snapshot, checked_warm, template_name, template_view, warm_request, warmed};

/// A message that is none of this protocol's, or of a newer one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed(String);

impl From<Malformed> for AgentError {
    /// On the side of who asked.
    fn from(malformed: Malformed) -> Self {
        let message = format!("the agent's answer is not understood ({}); is it of another version?", malformed.0);
        Self { code: Code::Failed, message }
    }
}

fn malformed(what: &str, error: impl fmt::Display) -> Malformed {
    Malformed(format!("{what}: {error}"))
}

fn missing(what: &str) -> Malformed {
    malformed(what, "missing")
}

fn parse<T: FromStr<Err: fmt::Display>>(what: &str, text: &str) -> Result<T, Malformed> {
    text.parse().map_err(|error| malformed(what, error))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// ---- parts of several answers ----------------------------------------------------------------------------------------

fn vmm_out(vmm: Description) -> wire::Vmm {
    wire::Vmm { driver: vmm.driver.to_string(), version: vmm.version, accel: vmm.accel.to_string() }
}

fn vmm_in(vmm: Option<wire::Vmm>) -> Result<Description, Malformed> {
    let vmm = vmm.ok_or_else(|| missing("vmm"))?;
    Ok(Description {
        driver: parse("vmm.driver", &vmm.driver)?,
        version: vmm.version,
        accel: parse("vmm.accel", &vmm.accel)?,
    })
}

fn timings_out(timings: Vec<Timing>) -> Vec<wire::Timing> {
    let timing = |timing: Timing| wire::Timing {
        phase: timing.phase.into_owned(),
        took_us: u64::try_from(timing.took.as_micros()).unwrap_or(u64::MAX),
    };
    timings.into_iter().map(timing).collect()
}

fn timings_in(timings: Vec<wire::Timing>) -> Vec<Timing> {
    let timing =
        |timing: wire::Timing| Timing { phase: timing.phase.into(), took: Duration::from_micros(timing.took_us) };
    timings.into_iter().map(timing).collect()
}

// ---- requests --------------------------------------------------------------------------------------------------------

/// Everything that is wrong with a request.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.0.push(problem());
        }
    }

    /// The value, or a default that nobody will see.
    fn take<T: Default>(&mut self, value: Result<T, Malformed>) -> T {
        value.unwrap_or_else(|Malformed(problem)| {
            self.0.push(problem);
            T::default()
        })
    }

    fn at_most(&mut self, what: &str, duration: Duration, most: Duration) {
        self.check(duration <= most, || format!("{what} of {}: {} is the most", human(duration), human(most)));
    }

    fn check_env(&mut self, env: &BTreeMap<String, String>) {
        let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.check(env.len() <= limits::ENV_MAX, || {
            format!("{} environment variables: {} are the most", env.len(), limits::ENV_MAX)
        });
        self.check(bytes <= limits::ENV_BYTES_MAX, || {
            format!("an environment of {bytes} bytes: {} are the most", limits::ENV_BYTES_MAX)
        });
        let usable = |(name, value): (&String, &String)| {
            !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
        };
        self.check(env.iter().all(usable), || {
            "an environment variable needs a name without `=`, and neither may hold a NUL".to_owned()
        });
    }

    fn check_labels(&mut self, labels: &BTreeMap<String, String>) {
        self.check_texts(["labels", "a label"], labels);
    }

    fn check_attributes(&mut self, attributes: &BTreeMap<String, String>) {
        self.check_texts(["attributes", "an attribute"], attributes);
    }

    fn check_texts(&mut self, [many, one]: [&str; 2], texts: &BTreeMap<String, String>) {
        self.check(texts.len() <= limits::LABELS_MAX, || {
            format!("{} {many}: {} are the most", texts.len(), limits::LABELS_MAX)
        });
        let fits = |(key, value): (&String, &String)| {
            (1..=limits::LABEL_KEY_BYTES_MAX).contains(&key.len()) && value.len() <= limits::LABEL_VALUE_BYTES_MAX
        };
        self.check(texts.iter().all(fits), || {
            format!(
                "{one} has a key of 1 to {} bytes and a value of at most {}",
                limits::LABEL_KEY_BYTES_MAX,
                limits::LABEL_VALUE_BYTES_MAX
            )
        });
    }

    /// A name for a new snapshot.
    fn check_name(&mut self, name: &str) {
        if let Err(error) = check_name(name) {
            self.0.push(error.to_string());
        }
    }

    /// What a snapshot is found by: its name or its id.
    fn check_snapshot(&mut self, wanted: &str) {
        if wanted.parse::<SnapshotId>().is_err() {
            self.check_name(wanted);
        }
    }

    fn check_timeout(&mut self, timeout: Option<Duration>) {
        if let Some(timeout) = timeout {
            self.at_most("a timeout", timeout, limits::TIMEOUT_MAX);
        }
    }

    fn check_ready_limit(&mut self, ready_limit: Duration) {
        self.at_most("a boot timeout", ready_limit, limits::READY_LIMIT_MAX);
    }

    fn into_result(self) -> Result<(), AgentError> {
        if self.0.is_empty() { Ok(()) } else { Err(invalid(self.0.join("; "))) }
    }
}

fn human(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

fn invalid(message: String) -> AgentError {
    AgentError { code: Code::Invalid, message }
}

// ---- errors ----------------------------------------------------------------------------------------------------------

/// The code that those see who know Connect and not us.
fn error_code(code: Code) -> ErrorCode {
    match code {
        Code::NotFound => ErrorCode::NotFound,
        Code::Denied => ErrorCode::FailedPrecondition,
        Code::Invalid => ErrorCode::InvalidArgument,
        Code::Exhausted => ErrorCode::ResourceExhausted,
        Code::Failed => ErrorCode::Internal,
        Code::NeedsRepair => ErrorCode::DataLoss,
        Code::Unavailable => ErrorCode::Unavailable,
        Code::Destroyed => ErrorCode::Aborted,
    }
}

/// The agent's word for a kind of error, read back.
pub(super) fn code(word: &str) -> Option<Code> {
    Code::ALL.into_iter().find(|code| code.as_str() == word)
}

impl From<AgentError> for ConnectError {
    fn from(error: AgentError) -> Self {
        let failure = wire::Failure { code: error.code.as_str().to_owned() };
        let detail = ErrorDetail::from_message(wire::FAILURE_TYPE, &failure);
        let mut connect = Self::new(error_code(error.code), error.message);
        connect.details.push(detail);
        connect
    }
}

/// The agent's own error, or what the lack of one means.
pub(super) fn agent_error(error: ConnectError) -> AgentError {
    let causes = std::error::Error::source(&error).map(with_causes);
    let message = error.message.unwrap_or_default();
    if let Some(code) = error.details.iter().find_map(failure) {
        return AgentError { code, message };
    }
    match error.code {
        ErrorCode::InvalidArgument | ErrorCode::Unimplemented | ErrorCode::ResourceExhausted => AgentError {
            code: Code::Failed,
            message: format!("the agent does not understand this wrenn ({message}); are they of the same version?"),
        },
        _other_codes => gone(&causes.unwrap_or(message)),
    }
}

/// There is no answer, because of `causes`.
pub(super) fn gone(causes: &str) -> AgentError {
    AgentError { code: Code::Unavailable, message: format!("the agent is gone, or it ended meanwhile: {causes}") }
}

fn failure(detail: &ErrorDetail) -> Option<Code> {
    if detail.type_url != wire::FAILURE_TYPE {
        return None;
    }
    let bytes = BASE64.decode(detail.value.as_deref()?.trim_end_matches('=')).ok()?;
    code(&wire::decode::<wire::Failure>(&bytes).ok()?.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_comes_back_as_it_went() {
        for code in Code::ALL {
            let error = AgentError { code, message: format!("told: {}", code.as_str()) };
            assert_eq!(agent_error(error.clone().into()), error);
        }
    }

    #[test]
    fn an_error_that_is_not_the_agents_is_a_broken_connection_or_another_version() {
        let of = |code| agent_error(ConnectError::new(code, "why")).code;
        assert_eq!(of(ErrorCode::Unavailable), Code::Unavailable);
        assert_eq!(of(ErrorCode::Internal), Code::Unavailable);
        assert_eq!(of(ErrorCode::Unimplemented), Code::Failed);
    }
}
