//! The domain's types on the wire and back. What comes from the wire is checked here, all problems at once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use connectrpc::{ConnectError, ErrorCode, ErrorDetail};
use wrenn_engine::names::SandboxId;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::Description;
use wrenn_proto::hostagent as wire;

use super::limits;
use crate::host_agent::{
    AgentError, Changed, Code, CreateRequest, OnTimeout, Phase, ResumeOptions, Stat, Timeout, View,
};
use crate::sandbox::{Shape, Timing};

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

// ---- enums -----------------------------------------------------------------------------------------------------------

impl From<OnTimeout> for wire::OnTimeout {
    fn from(on_timeout: OnTimeout) -> Self {
        match on_timeout {
            OnTimeout::Pause => Self::ON_TIMEOUT_PAUSE,
            OnTimeout::Destroy => Self::ON_TIMEOUT_DESTROY,
        }
    }
}

/// `None` where it was not said.
fn on_timeout(number: i32) -> Result<Option<OnTimeout>, Malformed> {
    match number {
        0 => Ok(None),
        1 => Ok(Some(OnTimeout::Pause)),
        2 => Ok(Some(OnTimeout::Destroy)),
        unknown => Err(malformed("on_timeout", unknown)),
    }
}

impl From<Phase> for wire::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Creating => Self::PHASE_CREATING,
            Phase::Running => Self::PHASE_RUNNING,
            Phase::Pausing => Self::PHASE_PAUSING,
            Phase::Paused => Self::PHASE_PAUSED,
            Phase::Resuming => Self::PHASE_RESUMING,
            Phase::Stopped => Self::PHASE_STOPPED,
            Phase::NeedsRepair => Self::PHASE_NEEDS_REPAIR,
            Phase::Destroying => Self::PHASE_DESTROYING,
        }
    }
}

fn phase(number: i32) -> Result<Phase, Malformed> {
    match number {
        1 => Ok(Phase::Creating),
        2 => Ok(Phase::Running),
        3 => Ok(Phase::Pausing),
        4 => Ok(Phase::Paused),
        5 => Ok(Phase::Resuming),
        6 => Ok(Phase::Stopped),
        7 => Ok(Phase::NeedsRepair),
        8 => Ok(Phase::Destroying),
        unknown => Err(malformed("phase", unknown)),
    }
}

// ---- answers ---------------------------------------------------------------------------------------------------------

impl From<View> for wire::Sandbox {
    fn from(view: View) -> Self {
        Self {
            id: view.id.to_string(),
            revision: view.revision,
            phase: wire::Phase::from(view.phase).into(),
            reason: view.reason,
            created_unix_ms: view.created_unix_ms,
            deadline_unix_ms: view.deadline_unix_ms,
            on_timeout: wire::OnTimeout::from(view.on_timeout).into(),
            template: view.template,
            kernel: view.kernel,
            vcpus: view.vcpus,
            memory_mib: view.memory.0,
            disk_mib: view.disk.0,
            vmm: wire::Vmm {
                driver: view.vmm.driver.to_string(),
                version: view.vmm.version,
                accel: view.vmm.accel.to_string(),
            }
            .into(),
            storage: view.storage.to_string(),
            metadata: view.metadata.into_iter().collect(),
            access_token: view.access_token,
        }
    }
}

/// The sandbox that an answer must hold.
pub(super) fn view(sandbox: Option<wire::Sandbox>) -> Result<View, AgentError> {
    Ok(checked_view(sandbox.ok_or_else(|| missing("sandbox"))?)?)
}

fn checked_view(sandbox: wire::Sandbox) -> Result<View, Malformed> {
    let vmm = sandbox.vmm.into_option().ok_or_else(|| missing("vmm"))?;
    Ok(View {
        id: parse("id", &sandbox.id)?,
        revision: sandbox.revision,
        phase: phase(sandbox.phase.to_i32())?,
        reason: sandbox.reason,
        created_unix_ms: sandbox.created_unix_ms,
        deadline_unix_ms: sandbox.deadline_unix_ms,
        on_timeout: on_timeout(sandbox.on_timeout.to_i32())?.ok_or_else(|| missing("on_timeout"))?,
        template: sandbox.template,
        kernel: sandbox.kernel,
        vcpus: sandbox.vcpus,
        memory: Mib(sandbox.memory_mib),
        disk: Mib(sandbox.disk_mib),
        vmm: Description {
            driver: parse("vmm.driver", &vmm.driver)?,
            version: vmm.version,
            accel: parse("vmm.accel", &vmm.accel)?,
        },
        storage: parse("storage", &sandbox.storage)?,
        metadata: sandbox.metadata.into_iter().collect(),
        access_token: sandbox.access_token,
    })
}

impl From<Changed> for wire::Changed {
    fn from(changed: Changed) -> Self {
        let timing = |timing: Timing| wire::Timing {
            phase: timing.phase.into_owned(),
            took_us: u64::try_from(timing.took.as_micros()).unwrap_or(u64::MAX),
        };
        Self {
            sandbox: wire::Sandbox::from(changed.view).into(),
            timings: changed.timings.into_iter().map(timing).collect(),
        }
    }
}

/// The change that an answer must hold.
pub(super) fn changed(changed: Option<wire::Changed>) -> Result<Changed, AgentError> {
    let changed = changed.ok_or_else(|| missing("changed"))?;
    let timing =
        |timing: wire::Timing| Timing { phase: timing.phase.into(), took: Duration::from_micros(timing.took_us) };
    Ok(Changed {
        view: view(changed.sandbox.into_option())?,
        timings: changed.timings.into_iter().map(timing).collect(),
    })
}

impl From<Stat> for wire::StatResponse {
    fn from(stat: Stat) -> Self {
        Self {
            memory_bytes: stat.memory_bytes,
            cpu_ms: stat.cpu_ms,
            disk_own_bytes: stat.disk_own_bytes,
            disk_shared_bytes: stat.disk_shared_bytes,
            memory_file_bytes: stat.memory_file_bytes,
            vmm_pid: stat.vmm_pid,
        }
    }
}

impl From<wire::StatResponse> for Stat {
    fn from(stat: wire::StatResponse) -> Self {
        Self {
            memory_bytes: stat.memory_bytes,
            cpu_ms: stat.cpu_ms,
            disk_own_bytes: stat.disk_own_bytes,
            disk_shared_bytes: stat.disk_shared_bytes,
            memory_file_bytes: stat.memory_file_bytes,
            vmm_pid: stat.vmm_pid,
        }
    }
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

/// The sandbox that a request names.
pub(super) fn sandbox_id(text: &str) -> Result<SandboxId, AgentError> {
    text.parse().map_err(|error: wrenn_engine::names::NameError| invalid(error.to_string()))
}

/// The request as it goes out; a path that is no text cannot.
pub(super) fn create_request(request: CreateRequest) -> Result<wire::CreateRequest, AgentError> {
    let kernel = request.kernel.map(|path| path.into_os_string().into_string()).transpose();
    let kernel = kernel.map_err(|path| invalid(format!("the kernel's path {} is not UTF-8", path.display())))?;
    Ok(wire::CreateRequest {
        template: request.template,
        kernel,
        vcpus: request.shape.vcpus,
        memory_mib: request.shape.memory.0,
        disk_mib: request.shape.disk.map(|disk| disk.0),
        env: request.env.into_iter().collect(),
        metadata: request.metadata.into_iter().collect(),
        timeout_ms: request.timeout.map(millis),
        on_timeout: wire::OnTimeout::from(request.on_timeout).into(),
        ready_limit_ms: millis(request.ready_limit),
        bound: request.bound,
    })
}

/// The request as it came in, checked.
pub(super) fn checked_create(request: wire::CreateRequest) -> Result<CreateRequest, AgentError> {
    let mut problems = Problems::default();
    let request = CreateRequest {
        template: request.template,
        kernel: request.kernel.map(PathBuf::from),
        shape: Shape { vcpus: request.vcpus, memory: Mib(request.memory_mib), disk: request.disk_mib.map(Mib) },
        env: request.env.into_iter().collect(),
        metadata: request.metadata.into_iter().collect(),
        timeout: request.timeout_ms.map(Duration::from_millis),
        on_timeout: problems.take(on_timeout(request.on_timeout.to_i32())).unwrap_or_default(),
        ready_limit: Duration::from_millis(request.ready_limit_ms),
        bound: request.bound,
    };
    problems.check((1..=limits::TEMPLATE_BYTES_MAX).contains(&request.template.len()), || {
        format!("a template's name of {} bytes: it has 1 to {}", request.template.len(), limits::TEMPLATE_BYTES_MAX)
    });
    if let Some(kernel) = &request.kernel {
        problems.check(kernel.is_absolute() && kernel.as_os_str().len() <= limits::PATH_BYTES_MAX, || {
            format!("the kernel's path must be absolute and at most {} bytes long", limits::PATH_BYTES_MAX)
        });
    }
    check_env(&mut problems, &request.env);
    check_labels(&mut problems, &request.metadata);
    check_timeout(&mut problems, request.timeout);
    problems.at_most("a boot timeout", request.ready_limit, limits::READY_LIMIT_MAX);
    problems.into_result()?;
    Ok(request)
}

fn check_env(problems: &mut Problems, env: &BTreeMap<String, String>) {
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    problems.check(env.len() <= limits::ENV_MAX, || {
        format!("{} environment variables: {} are the most", env.len(), limits::ENV_MAX)
    });
    problems.check(bytes <= limits::ENV_BYTES_MAX, || {
        format!("an environment of {bytes} bytes: {} are the most", limits::ENV_BYTES_MAX)
    });
    let usable =
        |(name, value): (&String, &String)| !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
    problems.check(env.iter().all(usable), || {
        "an environment variable needs a name without `=`, and neither may hold a NUL".to_owned()
    });
}

fn check_labels(problems: &mut Problems, labels: &BTreeMap<String, String>) {
    problems.check(labels.len() <= limits::LABELS_MAX, || {
        format!("{} labels: {} are the most", labels.len(), limits::LABELS_MAX)
    });
    let fits = |(key, value): (&String, &String)| {
        (1..=limits::LABEL_KEY_BYTES_MAX).contains(&key.len()) && value.len() <= limits::LABEL_VALUE_BYTES_MAX
    };
    problems.check(labels.iter().all(fits), || {
        format!(
            "a label has a key of 1 to {} bytes and a value of at most {}",
            limits::LABEL_KEY_BYTES_MAX,
            limits::LABEL_VALUE_BYTES_MAX
        )
    });
}

fn check_timeout(problems: &mut Problems, timeout: Option<Duration>) {
    if let Some(timeout) = timeout {
        problems.at_most("a timeout", timeout, limits::TIMEOUT_MAX);
    }
}

/// How a sandbox is to be resumed, as it goes out.
pub(super) fn resume_request(id: &SandboxId, options: ResumeOptions) -> wire::ResumeRequest {
    wire::ResumeRequest {
        id: id.to_string(),
        ready_limit_ms: millis(options.ready_limit),
        timeout_ms: options.timeout.map(millis),
    }
}

/// How a sandbox is to be resumed, as it came in, checked.
pub(super) fn checked_resume(request: &wire::ResumeRequest) -> Result<ResumeOptions, AgentError> {
    let options = ResumeOptions {
        ready_limit: Duration::from_millis(request.ready_limit_ms),
        timeout: request.timeout_ms.map(Duration::from_millis),
    };
    let mut problems = Problems::default();
    check_timeout(&mut problems, options.timeout);
    problems.at_most("a boot timeout", options.ready_limit, limits::READY_LIMIT_MAX);
    problems.into_result()?;
    Ok(options)
}

/// Another timeout, as it goes out.
pub(super) fn timeout_request(id: &SandboxId, timeout: Timeout) -> wire::SetTimeoutRequest {
    let on_timeout = timeout.on_timeout.map_or(wire::OnTimeout::ON_TIMEOUT_UNSPECIFIED, wire::OnTimeout::from);
    wire::SetTimeoutRequest { id: id.to_string(), after_ms: timeout.after.map(millis), on_timeout: on_timeout.into() }
}

/// Another timeout, as it came in, checked.
pub(super) fn checked_timeout(request: &wire::SetTimeoutRequest) -> Result<Timeout, AgentError> {
    let mut problems = Problems::default();
    let timeout = Timeout {
        after: request.after_ms.map(Duration::from_millis),
        on_timeout: problems.take(on_timeout(request.on_timeout.to_i32())),
    };
    check_timeout(&mut problems, timeout.after);
    problems.into_result()?;
    Ok(timeout)
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
    let message = error.message.unwrap_or_default();
    if let Some(code) = error.details.iter().find_map(failure) {
        return AgentError { code, message };
    }
    match error.code {
        ErrorCode::InvalidArgument | ErrorCode::Unimplemented | ErrorCode::ResourceExhausted => AgentError {
            code: Code::Failed,
            message: format!("the agent does not understand this wrenn ({message}); are they of the same version?"),
        },
        _other_codes => AgentError {
            code: Code::Unavailable,
            message: format!("the agent is gone, or it ended meanwhile: {message}"),
        },
    }
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

    fn request() -> wire::CreateRequest {
        wire::CreateRequest { template: "minimal".into(), vcpus: 1, memory_mib: 256, ..Default::default() }
    }

    #[test]
    fn everything_wrong_with_a_request_is_told_at_once() {
        let long = "x".repeat(limits::LABEL_VALUE_BYTES_MAX + 1);
        let asked = wire::CreateRequest {
            template: String::new(),
            kernel: Some("vmlinuz".to_owned()),
            env: (0..=limits::ENV_MAX).map(|n| (format!("A={n}"), "x".repeat(1024))).collect(),
            metadata: (0..=limits::LABELS_MAX).map(|n| (n.to_string(), long.clone())).collect(),
            timeout_ms: Some(u64::MAX),
            on_timeout: 9.into(),
            ready_limit_ms: u64::MAX,
            ..request()
        };
        let error = checked_create(asked).unwrap_err();
        assert_eq!(error.code, Code::Invalid);
        for part in [
            "on_timeout: 9",
            "a template's name of 0 bytes",
            "the kernel's path must be absolute",
            "257 environment variables: 256 are the most",
            "an environment of ",
            "without `=`",
            "65 labels: 64 are the most",
            "a value of at most 4096",
            "a timeout of ",
            "a boot timeout of ",
        ] {
            assert!(error.message.contains(part), "{part} is not in: {}", error.message);
        }
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        let value = "x".repeat(limits::LABEL_VALUE_BYTES_MAX);
        let key = |n: usize| format!("{n:0width$}", width = limits::LABEL_KEY_BYTES_MAX);
        let per_variable = limits::ENV_BYTES_MAX / limits::ENV_MAX;
        let asked = wire::CreateRequest {
            env: (0..limits::ENV_MAX).map(|n| (format!("{n:04}"), "x".repeat(per_variable - 4))).collect(),
            metadata: (0..limits::LABELS_MAX).map(|n| (key(n), value.clone())).collect(),
            ..request()
        };
        assert_eq!(checked_create(asked).unwrap().metadata.len(), limits::LABELS_MAX);
    }

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

    #[test]
    fn an_answer_from_another_version_is_named() {
        let error = view(Some(wire::Sandbox { vmm: wire::Vmm::default().into(), ..Default::default() })).unwrap_err();
        assert!(error.message.contains("id: `` is not a sandbox id") && error.message.contains("version"), "{error}");
    }
}
