//! The host.

use wrenn_engine::units::Mib;
use wrenn_proto::hostagent as wire;

use super::{Malformed, parse, vmm_in, vmm_out};
use crate::host_agent::{AgentError, HostView};

impl From<HostView> for wire::HostResponse {
    fn from(view: HostView) -> Self {
        Self {
            host: view.host,
            version: view.version,
            cpus: view.cpus,
            memory_mib: view.memory.0,
            memory_taken_mib: view.memory_taken.0,
            disk_free_bytes: view.disk_free_bytes,
            disk_total_bytes: view.disk_total_bytes,
            vmm: vmm_out(view.vmm).into(),
            storage: view.storage.to_string(),
            swept: view.swept,
        }
    }
}

/// The host as an answer tells of it.
pub(in crate::rpc) fn host_view(answer: wire::HostResponse) -> Result<HostView, AgentError> {
    Ok(checked_view(answer)?)
}

fn checked_view(answer: wire::HostResponse) -> Result<HostView, Malformed> {
    Ok(HostView {
        host: answer.host,
        version: answer.version,
        cpus: answer.cpus,
        memory: Mib(answer.memory_mib),
        memory_taken: Mib(answer.memory_taken_mib),
        disk_free_bytes: answer.disk_free_bytes,
        disk_total_bytes: answer.disk_total_bytes,
        vmm: vmm_in(answer.vmm.into_option())?,
        storage: parse("storage", &answer.storage)?,
        swept: answer.swept,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_another_version_is_named() {
        let error = host_view(wire::HostResponse::default()).unwrap_err();
        assert!(error.message.contains("vmm: missing") && error.message.contains("version"), "{error}");
        let vmm = wire::Vmm { driver: "qemu".to_owned(), accel: "tcg".to_owned(), ..Default::default() };
        let error = host_view(wire::HostResponse { vmm: vmm.into(), ..Default::default() }).unwrap_err();
        assert!(error.message.contains("storage"), "{error}");
    }
}
