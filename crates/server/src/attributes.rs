//! What the server keeps with a sandbox or a snapshot at the agent: opaque there, and durable with it.
//!
//! It is kept there so that nothing here has to be believed about a sandbox: an empty database and the agent's list give the
//! same sandboxes to the same tenants.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use wrenn_engine::names::SandboxId;

/// Tenant of what was made on the host itself, without a server. No key has it.
pub const LOCAL: &str = "local";

const TENANT: &str = "tenant";
const KEY: &str = "key";
const OPERATION: &str = "operation";
const CLAIM: &str = "claim";
const AUTO_RESUME: &str = "auto_resume";
const TRAFFIC_TOKEN: &str = "traffic_token";
const TRAFFIC_SECRET: &str = "traffic_secret";

/// Length of a token that comes of a secret, in bytes: as long as one that was made by itself.
const TOKEN_BYTES: usize = 16;

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
    /// What traffic to its ports has to carry, or what that comes of.
    pub traffic: Option<Traffic>,
}

/// What traffic to the ports of a sandbox has to carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// This token.
    Token(String),
    /// A token that comes of this secret and the sandbox's id: those that are made together have attributes together, and yet
    /// each a token of its own.
    Secret(String),
}

impl Traffic {
    /// The token of a sandbox.
    pub fn token(&self, id: &SandboxId) -> String {
        match self {
            Self::Token(token) => token.clone(),
            Self::Secret(secret) => {
                let digest = Sha256::digest(format!("wrenn traffic token\0{secret}\0{id}"));
                hex::encode(&digest[..TOKEN_BYTES])
            }
        }
    }
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
            traffic: map
                .get(TRAFFIC_SECRET)
                .cloned()
                .map(Traffic::Secret)
                .or_else(|| map.get(TRAFFIC_TOKEN).cloned().map(Traffic::Token)),
        }
    }

    /// As the agent is given it.
    pub fn write(self) -> BTreeMap<String, String> {
        let Self { tenant, key, operation, claim, auto_resume, traffic } = self;
        let traffic = traffic.map(|traffic| match traffic {
            Traffic::Token(token) => (TRAFFIC_TOKEN, Some(token)),
            Traffic::Secret(secret) => (TRAFFIC_SECRET, Some(secret)),
        });
        let texts = [(TENANT, tenant), (KEY, key), (OPERATION, operation), (CLAIM, claim)].into_iter().chain(traffic);
        let texts = texts.filter_map(|(name, value)| Some((name.to_owned(), value?)));
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
            traffic: Some(Traffic::Token("secret".to_owned())),
        };
        assert_eq!(Attributes::read(&attributes.clone().write()), attributes);
        let attributes = Attributes { traffic: Some(Traffic::Secret("secret".to_owned())), ..attributes };
        assert_eq!(Attributes::read(&attributes.clone().write()), attributes);
        assert_eq!(Attributes::read(&BTreeMap::new()).owner(), LOCAL);
    }

    #[test]
    fn a_secret_gives_each_sandbox_a_token_of_its_own() {
        let token = |secret: &str, id: &str| Traffic::Secret(secret.to_owned()).token(&id.parse().unwrap());
        let (one, other) = ("sb000000000000000001", "sb000000000000000002");
        assert_eq!(token("a", one), token("a", one));
        assert_eq!(token("a", one).len(), 2 * TOKEN_BYTES);
        assert_ne!(token("a", one), token("a", other));
        assert_ne!(token("a", one), token("b", one));
    }
}
