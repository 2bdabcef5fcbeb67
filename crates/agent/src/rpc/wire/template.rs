//! Templates and their warm images.

use std::path::PathBuf;
use std::time::Duration;

use wrenn_engine::units::Mib;
use wrenn_proto::hostagent as wire;

use super::{Malformed, Problems, invalid, millis, missing, timings_in, timings_out, vmm_in, vmm_out};
use crate::host_agent::{AgentError, Fresh, TemplateView, WarmView, Warmed};
use crate::rpc::limits;
use crate::sandbox::Shape;

// ---- a template to start from ----------------------------------------------------------------------------------------

/// As it goes out; a path that is no text cannot.
pub(super) fn fresh_out(fresh: Fresh) -> Result<wire::Fresh, AgentError> {
    let kernel = fresh.kernel.map(|path| path.into_os_string().into_string()).transpose();
    let kernel = kernel.map_err(|path| invalid(format!("the kernel's path {} is not UTF-8", path.display())))?;
    Ok(wire::Fresh {
        template: fresh.template,
        kernel,
        vcpus: fresh.shape.vcpus,
        memory_mib: fresh.shape.memory.0,
        disk_mib: fresh.shape.disk.map(|disk| disk.0),
        cold: fresh.cold,
    })
}

/// As it came in.
pub(super) fn fresh_in(problems: &mut Problems, fresh: wire::Fresh) -> Fresh {
    let fresh = Fresh {
        template: fresh.template,
        kernel: fresh.kernel.map(PathBuf::from),
        shape: Shape { vcpus: fresh.vcpus, memory: Mib(fresh.memory_mib), disk: fresh.disk_mib.map(Mib) },
        cold: fresh.cold,
    };
    check_template(problems, &fresh.template);
    if let Some(kernel) = &fresh.kernel {
        problems.check(kernel.is_absolute() && kernel.as_os_str().len() <= limits::PATH_BYTES_MAX, || {
            format!("the kernel's path must be absolute and at most {} bytes long", limits::PATH_BYTES_MAX)
        });
    }
    fresh
}

/// Which template there is, and what else could be meant, the images know better.
fn check_template(problems: &mut Problems, name: &str) {
    problems.check((1..=limits::TEMPLATE_BYTES_MAX).contains(&name.len()), || {
        format!("a template's name of {} bytes: it has 1 to {}", name.len(), limits::TEMPLATE_BYTES_MAX)
    });
}

// ---- answers ---------------------------------------------------------------------------------------------------------

impl From<TemplateView> for wire::Template {
    fn from(view: TemplateView) -> Self {
        Self {
            id: view.id,
            name: view.name,
            created: view.created,
            size_bytes: view.size_bytes,
            own_bytes: view.own_bytes,
            warm: view.warm.into_iter().map(Into::into).collect(),
        }
    }
}

/// The template that an answer must hold.
pub(in crate::rpc) fn template_view(template: Option<wire::Template>) -> Result<TemplateView, AgentError> {
    let template = template.ok_or_else(|| missing("template"))?;
    Ok(TemplateView {
        id: template.id,
        name: template.name,
        created: template.created,
        size_bytes: template.size_bytes,
        own_bytes: template.own_bytes,
        warm: template.warm.into_iter().map(warm_view).collect::<Result<_, _>>()?,
    })
}

impl From<WarmView> for wire::WarmImage {
    fn from(view: WarmView) -> Self {
        Self {
            key: view.key,
            vcpus: view.vcpus,
            memory_mib: view.memory.0,
            disk_mib: view.disk.0,
            kernel: view.kernel,
            vmm: vmm_out(view.vmm).into(),
            own_bytes: view.own_bytes,
        }
    }
}

fn warm_view(image: wire::WarmImage) -> Result<WarmView, Malformed> {
    Ok(WarmView {
        key: image.key,
        vcpus: image.vcpus,
        memory: Mib(image.memory_mib),
        disk: Mib(image.disk_mib),
        kernel: image.kernel,
        vmm: vmm_in(image.vmm.into_option())?,
        own_bytes: image.own_bytes,
    })
}

impl From<Warmed> for wire::warm_response::Warmed {
    fn from(warmed: Warmed) -> Self {
        Self {
            image: wire::WarmImage::from(warmed.view).into(),
            made: warmed.made,
            timings: timings_out(warmed.timings),
        }
    }
}

/// The warm image that an answer must hold.
pub(in crate::rpc) fn warmed(warmed: wire::warm_response::Warmed) -> Result<Warmed, AgentError> {
    let image = warmed.image.into_option().ok_or_else(|| missing("image"))?;
    Ok(Warmed { view: warm_view(image)?, made: warmed.made, timings: timings_in(warmed.timings) })
}

// ---- requests --------------------------------------------------------------------------------------------------------

/// What is to be warm, as it goes out.
pub(in crate::rpc) fn warm_request(fresh: Fresh, ready_limit: Duration) -> Result<wire::WarmRequest, AgentError> {
    Ok(wire::WarmRequest { fresh: fresh_out(fresh)?.into(), ready_limit_ms: millis(ready_limit) })
}

/// What is to be warm, as it came in, checked.
pub(in crate::rpc) fn checked_warm(request: wire::WarmRequest) -> Result<(Fresh, Duration), AgentError> {
    let fresh = request.fresh.into_option().ok_or_else(|| invalid("no template to make warm".to_owned()))?;
    let mut problems = Problems::default();
    let fresh = fresh_in(&mut problems, fresh);
    let ready_limit = Duration::from_millis(request.ready_limit_ms);
    problems.check_ready_limit(ready_limit);
    problems.into_result()?;
    Ok((fresh, ready_limit))
}

/// The template that a request names, by name or id.
pub(in crate::rpc) fn template_name(name: &str) -> Result<String, AgentError> {
    let mut problems = Problems::default();
    check_template(&mut problems, name);
    problems.into_result()?;
    Ok(name.to_owned())
}

/// The snapshot that becomes a template, and the template's name, checked.
pub(in crate::rpc) fn checked_from_snapshot(
    request: wire::TemplateFromSnapshotRequest,
) -> Result<(String, String), AgentError> {
    let mut problems = Problems::default();
    problems.check_snapshot(&request.snapshot);
    check_template(&mut problems, &request.name);
    problems.into_result()?;
    Ok((request.snapshot, request.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_agent::Code;

    #[test]
    fn everything_wrong_with_what_is_to_be_warm_is_told_at_once() {
        let fresh = wire::Fresh { kernel: Some("vmlinuz".to_owned()), ..Default::default() };
        let error = checked_warm(wire::WarmRequest { fresh: fresh.into(), ready_limit_ms: u64::MAX }).unwrap_err();
        for part in ["a template's name of 0 bytes", "must be absolute", "a boot timeout of "] {
            assert!(error.message.contains(part), "{part} is not in: {}", error.message);
        }
        assert_eq!(checked_warm(wire::WarmRequest::default()).unwrap_err().code, Code::Invalid);
    }

    #[test]
    fn both_names_of_a_new_template_are_looked_at() {
        let request = wire::TemplateFromSnapshotRequest { snapshot: "/".to_owned(), name: String::new() };
        let error = checked_from_snapshot(request).unwrap_err();
        assert!(error.message.contains("a snapshot's name") && error.message.contains("a template's name"), "{error}");
        assert!(template_name("").is_err() && template_name(&"x".repeat(257)).is_err());
    }

    #[test]
    fn a_template_from_another_version_is_named() {
        let template = wire::Template { warm: vec![wire::WarmImage::default()], ..Default::default() };
        assert!(template_view(Some(template)).unwrap_err().message.contains("vmm: missing"));
        assert!(template_view(None).unwrap_err().message.contains("template: missing"));
        assert!(warmed(wire::warm_response::Warmed::default()).unwrap_err().message.contains("image: missing"));
    }
}
