//! What the server keeps with a sandbox or a snapshot at the agent: opaque there, and durable with it.
//!
//! It is kept there so that nothing here has to be believed about a sandbox: an empty database and the agent's list give the
//! same sandboxes to the same tenants.

use std::collections::BTreeMap;

/// Tenant of what was made on the host itself, without a server. No key has it.
pub const LOCAL: &str = "local";

const TENANT: &str = "tenant";
const KEY: &str = "key";
const OPERATION: &str = "operation";
const CLAIM: &str = "claim";
const AUTO_RESUME: &str = "auto_resume";
const TRAFFIC_TOKEN: &str = "traffic_token";

/// It, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Whose it is.
    pub tenant: Option<String>,
    /// Id of the key that it was made with, which it counts for.
    pub key: Option<String>,
    /// Id of the operation that made it.
    pub operation: Option<String>,
    /// Id of the claim on the quota of its key that it was made under.
    pub claim: Option<String>,
    /// Whether traffic resumes it.
    pub auto_resume: bool,
    /// What traffic to its ports has to carry.
    pub traffic_token: Option<String>,
}

impl Attributes {
    /// As the agent has it. What is not understood is left out.
    pub fn read(map: &BTreeMap<String, String>) -> Self {
        Self {
            tenant: map.get(TENANT).cloned(),
            key: map.get(KEY).cloned(),
            operation: map.get(OPERATION).cloned(),
            claim: map.get(CLAIM).cloned(),
            auto_resume: map.get(AUTO_RESUME).is_some_and(|value| value == "true"),
            traffic_token: map.get(TRAFFIC_TOKEN).cloned(),
        }
    }

    /// As the agent is given it.
    pub fn write(self) -> BTreeMap<String, String> {
        let Self { tenant, key, operation, claim, auto_resume, traffic_token } = self;
        let texts =
            [(TENANT, tenant), (KEY, key), (OPERATION, operation), (CLAIM, claim), (TRAFFIC_TOKEN, traffic_token)];
        let texts = texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let flags = auto_resume.then(|| (AUTO_RESUME.to_owned(), "true".to_owned()));
        texts.chain(flags).collect()
    }

    /// Whose it is; what has no tenant was made on the host itself.
    pub fn owner(&self) -> &str {
        self.tenant.as_deref().unwrap_or(LOCAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let attributes = Attributes {
            tenant: Some("acme".to_owned()),
            key: Some("ky1".to_owned()),
            operation: None,
            claim: Some("cl1".to_owned()),
            auto_resume: true,
            traffic_token: Some("secret".to_owned()),
        };
        assert_eq!(Attributes::read(&attributes.clone().write()), attributes);
        assert_eq!(Attributes::read(&BTreeMap::new()).owner(), LOCAL);
    }
}
