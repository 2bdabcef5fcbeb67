//! What only the host may tell a guest's agent: calls signed with the instance's Ed25519 key.
//!
//! The signature covers sandbox id, nonce, path and body, so that no call can be replayed, moved to another sandbox or
//! turned into another. The guest knows the public half from its kernel command line.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use http::Request;
use http_body_util::Full;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wrenn_engine::names::SandboxId;
use wrenn_proto::envd::{NONCE_HEADER, SIGNATURE_HEADER, host_call_message};

use super::http1::Line;
use super::{CONNECT_LIMIT, EnvdClient, EnvdError, Nonces, words};
use crate::host_agent::Tunnel;

/// One of the calls.
pub(super) struct HostCall {
    path: &'static str,
    /// As errors say it.
    pub(super) name: &'static str,
    /// How long the guest has: more than it gives itself, so that it is the one to say what is wrong.
    limit: Duration,
}

impl HostCall {
    const fn new(path: &'static str, name: &'static str, limit_s: u64) -> Self {
        Self { path, name, limit: Duration::from_secs(limit_s) }
    }
}

const INIT: HostCall = HostCall::new("/init", "POST /init", 10);
const FREEZE: HostCall = HostCall::new("/freeze", "POST /freeze", 10);
const THAW: HostCall = HostCall::new("/thaw", "POST /thaw", 10);
const SYNC: HostCall = HostCall::new("/sync", "POST /sync", 60);
const FS_FREEZE: HostCall = HostCall::new("/fsfreeze", "POST /fsfreeze", 20);
const FS_THAW: HostCall = HostCall::new("/fsthaw", "POST /fsthaw", 25);
pub(super) const RESUMED: HostCall = HostCall::new("/resumed", "POST /resumed", 20);
pub(super) const CLOCK: HostCall = HostCall::new("/clock", "POST /clock", 5);
const POWER_OFF: HostCall = HostCall::new("/poweroff", "POST /poweroff", 10);

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

/// A connection for several signed calls, one after the other. After an error it is of no use any more.
pub struct HostLine {
    line: Line,
    nonces: Nonces,
}

impl EnvdClient {
    /// Gives the guest its token, environment and clock.
    pub async fn init(&self, host: HostKey<'_>, init: &Init) -> Result<(), EnvdError> {
        let body = serde_json::to_vec(init).expect("a map of strings is JSON");
        self.host_call(host, &INIT, body).await.map(drop)
    }

    /// Stops the users' processes, all of them or none. Fine if they stand still already.
    pub async fn freeze(&self, host: HostKey<'_>) -> Result<(), EnvdError> {
        self.host_call(host, &FREEZE, Vec::new()).await.map(drop)
    }

    /// Lets the users' processes run again.
    pub async fn thaw(&self, host: HostKey<'_>) -> Result<(), EnvdError> {
        self.host_call(host, &THAW, Vec::new()).await.map(drop)
    }

    /// Writes the guest's root filesystem back, within `limit`.
    pub async fn sync(&self, host: HostKey<'_>, limit: Duration) -> Result<(), EnvdError> {
        self.host_call(host, &HostCall { limit, ..SYNC }, Vec::new()).await.map(drop)
    }

    /// Writes the guest's root filesystem back and keeps everybody from writing. Stop the users' processes first: one that
    /// waits to write can be stopped by nobody. Whatever the error, [`EnvdClient::fs_thaw`] is safe and needed afterwards.
    pub async fn fs_freeze(&self, host: HostKey<'_>) -> Result<(), EnvdError> {
        self.host_call(host, &FS_FREEZE, Vec::new()).await.map(drop)
    }

    /// Lets the guest's root filesystem be written. Fine if it is not frozen.
    pub async fn fs_thaw(&self, host: HostKey<'_>) -> Result<(), EnvdError> {
        self.host_call(host, &FS_THAW, Vec::new()).await.map(drop)
    }

    /// Has the guest switch itself off, in order. It has only begun to when this returns.
    pub async fn power_off(&self, host: HostKey<'_>) -> Result<(), EnvdError> {
        self.host_call(host, &POWER_OFF, Vec::new()).await.map(drop)
    }

    async fn host_call(&self, host: HostKey<'_>, call: &HostCall, body: Vec<u8>) -> Result<Bytes, EnvdError> {
        let stream = self.connect(CONNECT_LIMIT).await.map_err(EnvdError::Unreachable)?;
        self.host_line(stream).await?.call(host, call, body).await
    }

    pub(super) async fn host_line(&self, stream: Tunnel) -> Result<HostLine, EnvdError> {
        Ok(HostLine { line: Line::open(stream, "a signed call").await?, nonces: self.nonces.clone() })
    }
}

impl HostLine {
    /// Lets the users' processes run again.
    pub async fn thaw(&mut self, host: HostKey<'_>) -> Result<(), EnvdError> {
        self.call(host, &THAW, Vec::new()).await.map(drop)
    }

    pub(super) async fn call(&mut self, host: HostKey<'_>, call: &HostCall, body: Vec<u8>) -> Result<Bytes, EnvdError> {
        Ok(self.timed(host, call, body).await?.answer)
    }

    /// The same, for who wants to know when it was sent and how long it took: without the signing, which takes long where
    /// everything does.
    pub(super) async fn timed(
        &mut self,
        host: HostKey<'_>,
        call: &HostCall,
        body: Vec<u8>,
    ) -> Result<Timed, EnvdError> {
        let request = signed(host, self.nonces.next(), call.path, body);
        let (sent, begun) = (SystemTime::now(), Instant::now());
        let answer = self.line.ask(request, call.name, call.limit).await?;
        Ok(Timed { answer, sent, took: begun.elapsed() })
    }
}

/// An answer, and the times of its call by the host's clock.
pub(super) struct Timed {
    pub answer: Bytes,
    pub sent: SystemTime,
    pub took: Duration,
}

/// An answer that is JSON; anything else breaks the protocol.
pub(super) fn parsed<T: DeserializeOwned>(call: &'static str, answer: &[u8]) -> Result<T, EnvdError> {
    serde_json::from_slice(answer).map_err(|error| EnvdError::Protocol { call, detail: words(&error.to_string()) })
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
