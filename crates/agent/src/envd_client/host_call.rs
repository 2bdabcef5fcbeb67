//! What only the host may tell a guest's agent: calls signed with the instance's Ed25519 key.
//!
//! The signature covers sandbox id, nonce, path and body, so that no call can be replayed, moved to another sandbox or
//! turned into another. The guest knows the public half from its kernel command line.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use http::Request;
use http_body_util::Full;
use serde::Serialize;
use wrenn_engine::names::SandboxId;
use wrenn_proto::envd::{NONCE_HEADER, SIGNATURE_HEADER, host_call_message};

use super::{CONNECT_LIMIT, EnvdClient, EnvdError, http1};

/// How long a guest has for a host call.
const HOST_CALL_LIMIT: Duration = Duration::from_secs(10);

/// Who signs, and for which sandbox.
#[derive(Clone, Copy, Debug)]
pub struct HostKey<'a> {
    /// The instance's key.
    pub key: &'a SigningKey,
    /// The sandbox that is spoken to.
    pub id: &'a SandboxId,
}

/// What a guest is told before anything runs in it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Init {
    /// What guards its calls from then on.
    pub access_token: String,
    /// Environment of every process in it.
    pub env_vars: BTreeMap<String, String>,
    /// The time now, RFC 3339.
    pub timestamp: String,
    /// User of processes that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Working directory of processes that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
}

impl EnvdClient {
    /// Gives the guest its token, environment and clock.
    pub async fn init(&self, host: HostKey<'_>, init: &Init) -> Result<(), EnvdError> {
        let body = serde_json::to_vec(init).expect("a map of strings is JSON");
        self.host_call(host, "/init", "POST /init", body).await
    }

    async fn host_call(
        &self,
        host: HostKey<'_>,
        path: &'static str,
        call: &'static str,
        body: Vec<u8>,
    ) -> Result<(), EnvdError> {
        let request = signed(host, nonce(), path, body);
        let stream = self.connect(CONNECT_LIMIT).await.map_err(EnvdError::Unreachable)?;
        http1::exchange(stream, request, call, HOST_CALL_LIMIT).await
    }
}

/// Strictly increasing within a sandbox's life as long as the host's clock is: nanoseconds since 1970.
fn nonce() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn signed(host: HostKey<'_>, nonce: u64, path: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
    let signature = host.key.sign(&host_call_message(host.id.as_str(), nonce, path, &body));
    Request::post(path)
        .header("host", "guest")
        .header("content-type", "application/json")
        .header(NONCE_HEADER, nonce)
        .header(SIGNATURE_HEADER, BASE64.encode(signature.to_bytes()))
        .body(Full::from(body))
        .expect("constant names and ASCII values are well formed")
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::Verifier;

    use super::*;

    #[test]
    fn the_signature_covers_sandbox_nonce_path_and_body() {
        let key = SigningKey::from_bytes(&[9; 32]);
        let (one, other) = (SandboxId::from_random([1; 18]), SandboxId::from_random([2; 18]));
        let signature = key.sign(&host_call_message(one.as_str(), 5, "/init", b"{}"));
        let verify = |id, nonce, path, body: &[u8]| {
            key.verifying_key().verify(&host_call_message(id, nonce, path, body), &signature).is_ok()
        };
        assert!(verify(one.as_str(), 5, "/init", b"{}"));
        assert!(!verify(other.as_str(), 5, "/init", b"{}"));
        assert!(!verify(one.as_str(), 6, "/init", b"{}"));
        assert!(!verify(one.as_str(), 5, "/thaw", b"{}"));
        assert!(!verify(one.as_str(), 5, "/init", b"{ }"));
    }
}
