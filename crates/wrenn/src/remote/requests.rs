//! What an agent is asked for, as a server is asked for it.

use std::time::Duration;

use wrenn_agent::host_agent::{
    AgentError, Code, CreateRequest, ForkRequest, Fresh, OnTimeout, ResumeOptions, Source, Timeout,
};
use wrenn_client::types;

/// A new sandbox.
pub fn create(CreateRequest { source, wishes }: CreateRequest) -> Result<types::CreateSandbox, AgentError> {
    if wishes.bound {
        return Err(no_way("a server's sandboxes do not end with who asked for them; give a timeout"));
    }
    let common = types::CreateSandbox {
        timeout_s: wishes.timeout.map(seconds),
        on_timeout: on_timeout(wishes.on_timeout),
        env: wishes.env,
        metadata: wishes.metadata,
        boot_timeout_s: Some(seconds(wishes.ready_limit)),
        ..types::CreateSandbox::default()
    };
    match source {
        Source::Snapshot(snapshot) => Ok(types::CreateSandbox { snapshot: Some(snapshot), ..common }),
        Source::Template(fresh) => {
            without_kernel(&fresh)?;
            Ok(types::CreateSandbox {
                template: Some(fresh.template),
                vcpus: Some(fresh.shape.vcpus),
                memory_mib: Some(fresh.shape.memory.0),
                disk_mib: fresh.shape.disk.map(|disk| disk.0),
                cold: fresh.cold,
                ..common
            })
        }
    }
}

/// A resume.
pub fn resume(options: ResumeOptions) -> types::ResumeRequest {
    types::ResumeRequest { timeout_s: options.timeout.map(seconds), boot_timeout_s: Some(seconds(options.ready_limit)) }
}

/// The way back to a snapshot.
pub fn rollback(snapshot: &str, options: ResumeOptions) -> types::RollbackRequest {
    let types::ResumeRequest { timeout_s, boot_timeout_s } = resume(options);
    types::RollbackRequest { snapshot: snapshot.to_owned(), timeout_s, boot_timeout_s }
}

/// Another timeout.
pub fn timeout(timeout: Timeout) -> types::TimeoutRequest {
    types::TimeoutRequest { timeout_s: timeout.after.map(seconds), on_timeout: timeout.on_timeout.map(on_timeout) }
}

/// Forks.
pub fn fork(request: ForkRequest) -> types::ForkRequest {
    types::ForkRequest {
        count: request.count,
        timeout_s: request.timeout.map(seconds),
        metadata: request.metadata,
        boot_timeout_s: Some(seconds(request.ready_limit)),
    }
}

/// A warm image, and of which template.
pub fn warm(fresh: Fresh, ready_limit: Duration) -> Result<(String, types::WarmRequest), AgentError> {
    without_kernel(&fresh)?;
    let request = types::WarmRequest {
        vcpus: Some(fresh.shape.vcpus),
        memory_mib: Some(fresh.shape.memory.0),
        disk_mib: fresh.shape.disk.map(|disk| disk.0),
        boot_timeout_s: Some(seconds(ready_limit)),
    };
    Ok((fresh.template, request))
}

fn without_kernel(fresh: &Fresh) -> Result<(), AgentError> {
    match fresh.kernel {
        Some(_) => Err(no_way("a server boots the kernels it has prepared, not one by its path; leave --kernel out")),
        None => Ok(()),
    }
}

pub fn no_way(message: &str) -> AgentError {
    AgentError { code: Code::Invalid, message: message.to_owned() }
}

fn on_timeout(on_timeout: OnTimeout) -> types::OnTimeout {
    match on_timeout {
        OnTimeout::Pause => types::OnTimeout::Pause,
        OnTimeout::Destroy => types::OnTimeout::Destroy,
    }
}

/// Whole seconds are what a server counts in: a part of one is one, so that nothing ends before its time.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
