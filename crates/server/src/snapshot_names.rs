//! Names of snapshots, each tenant's own. The one place that knows how.
//!
//! The agent has one space of names for all, and is the one who says whether a name is free. A tenant's name is `TENANT/NAME` there,
//! so two tenants never meet, and none is told of another's; a name without a `/` was given on the host itself.

use wrenn_agent::host_agent::{AgentError, SnapshotView};
use wrenn_engine::names::SnapshotId;

use crate::attributes::Attributes;
use crate::error::{ApiError, shown};

/// What neither a tenant's name nor a snapshot's has.
const SEPARATOR: char = '/';
/// Longest name, in bytes. The agent's own limit for each part.
const BYTES_MAX: usize = 64;

/// The agent's name for what a tenant calls `name`.
pub fn at_agent(tenant: &str, name: &str) -> Result<String, ApiError> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    // What has the form of an id is looked up as one.
    let is_id = name.parse::<SnapshotId>().is_ok();
    if begins_well && name.len() <= BYTES_MAX && name.chars().all(is_part) && !is_id {
        return Ok(format!("{tenant}{SEPARATOR}{name}"));
    }
    let form = format!("1 to {BYTES_MAX} characters of [a-z0-9._-], beginning with a letter or digit");
    Err(ApiError::invalid(format!("`{}` cannot be a snapshot's name: {form}", shown(name))))
}

/// What its owner calls a snapshot.
pub fn own(view: &SnapshotView) -> Option<&str> {
    let name = view.name.as_deref()?;
    let attributes = Attributes::read(&view.attributes);
    let own = name.strip_prefix(attributes.owner()).and_then(|rest| rest.strip_prefix(SEPARATOR));
    Some(own.unwrap_or(name))
}

/// Whether this is what a tenant calls so.
pub fn is_called(view: &SnapshotView, tenant: &str, name: &str) -> bool {
    Attributes::read(&view.attributes).owner() == tenant && own(view) == Some(name)
}

/// An error of the agent's, in the words of who asked by `name`.
pub fn in_own_words(error: AgentError, tenant: &str, name: Option<&str>) -> AgentError {
    let Some(name) = name else { return error };
    let message = error.message.replace(&format!("{tenant}{SEPARATOR}{name}"), name);
    AgentError { message, ..error }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wrenn_agent::fake;
    use wrenn_agent::host_agent::{Code, CreateRequest, SnapshotRequest, Source, Wishes};

    use super::*;

    fn view(tenant: Option<&str>, name: Option<&str>) -> SnapshotView {
        let from = CreateRequest { source: Source::Snapshot(String::new()), wishes: Wishes::bound(Duration::ZERO) };
        let attributes = Attributes { tenant: tenant.map(str::to_owned), ..Attributes::default() };
        let request = SnapshotRequest { name: name.map(str::to_owned), attributes: attributes.write() };
        fake::snapshot_view(1, &fake::view(1, &from), &request)
    }

    #[test]
    fn what_a_tenant_names_is_found_by_that_name_and_by_nobody_else() {
        let name = at_agent("acme", "before-1.0_x").unwrap();
        let kept = view(Some("acme"), Some(&name));
        assert_eq!(own(&kept), Some("before-1.0_x"));
        assert!(is_called(&kept, "acme", "before-1.0_x") && !is_called(&kept, "acme", &name));
        assert!(!is_called(&kept, "ac", "before-1.0_x") && !is_called(&kept, "other", "before-1.0_x"));
        assert_eq!(own(&view(Some("acme"), None)), None);
        // Two tenants, of whom one is called as the other one begins.
        assert_ne!(at_agent("a", "b").unwrap(), at_agent("a-b", "b").unwrap());
    }

    #[test]
    fn what_was_named_on_the_host_is_called_as_it_is() {
        for name in ["before", "acme/before"] {
            assert_eq!(own(&view(None, Some(name))), Some(name));
            assert!(!is_called(&view(None, Some(name)), "acme", "before"));
        }
    }

    #[test]
    fn a_name_is_no_path_and_no_id() {
        let id = SnapshotId::from_random([3; 18]);
        for bad in ["", "-a", ".", "..", "a/b", "other/a", "A", "a b", "ä", &"a".repeat(65), id.as_str()] {
            assert!(at_agent("acme", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_has_the_words_of_who_asked() {
        let error = AgentError { code: Code::Invalid, message: "there is a snapshot `acme/x` already".to_owned() };
        assert_eq!(in_own_words(error.clone(), "acme", Some("x")).message, "there is a snapshot `x` already");
        assert_eq!(in_own_words(error.clone(), "acme", None), error);
    }
}
