//! What only the host may ask: /init, /freeze, /thaw, /sync, /poweroff.
//!
//! Each call is signed with the host's Ed25519 key, whose public half came with the boot, over sandbox, nonce, path and
//! body; nonces only grow. Whoever has no such signature, a program of the guest above all, is told that there is no such
//! route. A nonce counts as used only when its signature holds, so that nobody else can use one up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use http::{HeaderMap, Method, StatusCode};
use rustix::process::{Pid, Signal};
use rustix::time::{ClockId, Timespec};
use serde::Deserialize;
use wrenn_proto::envd::{NONCE_HEADER, SIGNATURE_HEADER, VERSION_HEADER, host_call_message};

use super::cgroup::{CgroupError, Motion};
use super::server::{error_response, not_found};
use super::state::{PowerOff, State};
use super::{VERSION, timestamp};
use crate::limits;

/// How far our clock may be ahead of the host's call, which took a moment to arrive, before it is set back.
const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(1);

/// Between the answer to /poweroff and the deed: the answer must leave the machine.
const POWER_OFF_DELAY: Duration = Duration::from_millis(50);

/// A text is not the public half of an Ed25519 key.
#[derive(Debug, thiserror::Error)]
#[error("the host's key is not an Ed25519 public key in 64 hex digits")]
pub struct KeyError;

/// Checks the host's signatures.
#[derive(Debug)]
pub struct Verifier {
    sandbox_id: String,
    key: VerifyingKey,
    last_nonce: Mutex<u64>,
}

impl Verifier {
    /// A verifier for calls to this sandbox, by the key's 64 hex digits.
    pub fn new(sandbox_id: &str, key: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(key, &mut bytes).map_err(|_| KeyError)?;
        let key = VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak()).ok_or(KeyError)?;
        Ok(Self { sandbox_id: sandbox_id.to_owned(), key, last_nonce: Mutex::new(0) })
    }

    /// Whether the host made this call, and for the first time.
    fn accept(&self, headers: &HeaderMap, path: &str, body: &[u8]) -> bool {
        let Some((nonce, signature)) = credentials(headers) else { return false };
        let message = host_call_message(&self.sandbox_id, nonce, path, body);
        if self.key.verify_strict(&message, &signature).is_err() {
            return false;
        }
        let mut last = self.last_nonce.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = nonce > *last;
        *last = nonce.max(*last);
        is_new
    }
}

fn credentials(headers: &HeaderMap) -> Option<(u64, Signature)> {
    let nonce = headers.get(NONCE_HEADER)?.to_str().ok()?;
    // `parse` alone would take "+1" for another writing of "1".
    let nonce = nonce.bytes().all(|byte| byte.is_ascii_digit()).then(|| nonce.parse().ok()).flatten()?;
    let signature = STANDARD.decode(headers.get(SIGNATURE_HEADER)?.as_bytes()).ok()?;
    Some((nonce, Signature::from_slice(&signature).ok()?))
}

/// The calls that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostCall {
    Init,
    Freeze,
    Thaw,
    Sync,
    PowerOff,
}

impl HostCall {
    const ALL: [(&'static str, Self); 5] = [
        ("/init", Self::Init),
        ("/freeze", Self::Freeze),
        ("/thaw", Self::Thaw),
        ("/sync", Self::Sync),
        ("/poweroff", Self::PowerOff),
    ];
}

/// Why a call of the host failed.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the body of /init is not what it should be")]
    Body(#[source] serde_json::Error),
    #[error("`{0}` is no RFC 3339 timestamp")]
    Timestamp(String),
    #[error("cannot set the clock")]
    Clock(#[source] rustix::io::Errno),
    #[error("this envd runs without a cgroup")]
    NoCgroup,
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot write the disk's caches back")]
    Sync(#[source] std::io::Error),
}

impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Body(_) | Self::Timestamp(_) => StatusCode::BAD_REQUEST,
            Self::Clock(_) | Self::Sync(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoCgroup | Self::Cgroup(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        error_response(status, &super::files::with_causes(&self))
    }
}

/// The routes of the host's calls.
pub fn routes(state: Arc<State>) -> Router {
    HostCall::ALL.into_iter().fold(Router::new(), |router, (path, call)| {
        let state = Arc::clone(&state);
        router.route(path, any(move |request| answer(Shared(state), call, path, request)))
    })
}

async fn answer(Shared(state): Shared<Arc<State>>, call: HostCall, path: &'static str, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Some(body) = bounded(body).await else { return not_found() };
    if parts.method != Method::POST || !state.verifier.accept(&parts.headers, path, &body) {
        return not_found();
    }
    // A task of its own: the host's hanging up must not leave half of it undone.
    let done = tokio::spawn(async move { act(&state, call, &body).await }).await;
    match done {
        Ok(Ok(())) => (StatusCode::NO_CONTENT, [(VERSION_HEADER, VERSION)]).into_response(),
        Ok(Err(error)) => error.into_response(),
        Err(_) => error_response(StatusCode::INTERNAL_SERVER_ERROR, "the call was aborted inside of envd"),
    }
}

async fn bounded(body: Body) -> Option<Bytes> {
    axum::body::to_bytes(body, limits::HOST_CALL_BYTES_MAX).await.ok()
}

async fn act(state: &Arc<State>, call: HostCall, body: &[u8]) -> Result<(), CallError> {
    match call {
        HostCall::Init => init(state, body),
        HostCall::Freeze => move_to(state, Motion::Frozen).await,
        HostCall::Thaw => move_to(state, Motion::Thawed).await,
        HostCall::Sync => sync().await,
        HostCall::PowerOff => {
            tokio::spawn(power_off(state.power_off));
            Ok(())
        }
    }
}

/// The body of /init. Fields that E2B's host sends and we have no use for are ignored, and so are unknown ones.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Init {
    access_token: Option<String>,
    env_vars: Option<std::collections::BTreeMap<String, String>>,
    timestamp: Option<String>,
    default_user: Option<String>,
    default_workdir: Option<String>,
}

/// Sets what the body names and leaves the rest. Environment variables are added to those of earlier calls.
fn init(state: &State, body: &[u8]) -> Result<(), CallError> {
    let body = if body.is_empty() { b"{}" } else { body };
    let init: Init = serde_json::from_slice(body).map_err(CallError::Body)?;
    if let Some(text) = init.timestamp {
        let host = timestamp::parse(&text).ok_or(CallError::Timestamp(text))?;
        if is_off(SystemTime::now(), host) {
            set_clock(host).map_err(CallError::Clock)?;
        }
    }
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (token, user, workdir) = (filled(init.access_token), filled(init.default_user), filled(init.default_workdir));
    state.change_settings(|settings| {
        settings.token = token.map(Arc::from).or(settings.token.take());
        settings.env.extend(init.env_vars.unwrap_or_default());
        settings.default_workdir = workdir.map(Into::into).or(settings.default_workdir.take());
        if let Some(user) = user {
            settings.default_user = user;
        }
    });
    Ok(())
}

/// Our clock is behind the host's, or clearly ahead of it.
fn is_off(ours: SystemTime, host: SystemTime) -> bool {
    ours.duration_since(host).map_or(true, |ahead| ahead > CLOCK_AHEAD_MAX)
}

fn set_clock(now: SystemTime) -> rustix::io::Result<()> {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since_epoch.as_secs()).map_err(|_| rustix::io::Errno::INVAL)?;
    rustix::time::clock_settime(
        ClockId::Realtime,
        Timespec { tv_sec: seconds, tv_nsec: since_epoch.subsec_nanos().into() },
    )
}

async fn move_to(state: &State, wanted: Motion) -> Result<(), CallError> {
    Ok(state.cgroup.as_ref().ok_or(CallError::NoCgroup)?.set(wanted).await?)
}

/// Writes the root file system's caches back.
async fn sync() -> Result<(), CallError> {
    let done = tokio::task::spawn_blocking(|| {
        let root = std::fs::File::open("/")?;
        Ok(rustix::fs::syncfs(root)?)
    });
    done.await.map_err(std::io::Error::other).and_then(|done| done).map_err(CallError::Sync)
}

async fn power_off(how: PowerOff) {
    tokio::time::sleep(POWER_OFF_DELAY).await;
    match how {
        // wrenn-init ends the machine in order on this signal.
        PowerOff::TellInit => {
            if let Err(errno) = rustix::process::kill_process(Pid::INIT, Signal::TERM) {
                eprintln!("envd: cannot tell init to power off: {errno}");
            }
        }
        PowerOff::Exit => std::process::exit(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    const ID: &str = "sb0123456789abcdefgh";

    fn host() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn verifier() -> Verifier {
        Verifier::new(ID, &hex::encode(host().verifying_key().as_bytes())).unwrap()
    }

    fn signed(key: &SigningKey, id: &str, nonce: u64, path: &str, body: &[u8]) -> HeaderMap {
        let signature = key.sign(&host_call_message(id, nonce, path, body));
        headers(&nonce.to_string(), &STANDARD.encode(signature.to_bytes()))
    }

    fn headers(nonce: &str, signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(NONCE_HEADER, nonce.parse().unwrap());
        headers.insert(SIGNATURE_HEADER, signature.parse().unwrap());
        headers
    }

    #[test]
    fn the_host_is_believed_once_per_nonce() {
        let verifier = verifier();
        let call = |nonce| verifier.accept(&signed(&host(), ID, nonce, "/init", b"{}"), "/init", b"{}");
        assert!(call(5));
        assert!(!call(5), "replayed");
        assert!(!call(4), "older");
        assert!(call(6));
        assert!(call(u64::MAX));
    }

    #[test]
    fn everything_that_is_signed_counts() {
        let verifier = verifier();
        let other = SigningKey::from_bytes(&[8; 32]);
        let good = signed(&host(), ID, 9, "/init", b"{}");
        for (what, headers, path, body) in [
            ("another key", signed(&other, ID, 9, "/init", b"{}"), "/init", &b"{}"[..]),
            ("another sandbox", signed(&host(), "sbother", 9, "/init", b"{}"), "/init", b"{}"),
            ("another path", good.clone(), "/freeze", b"{}"),
            ("another body", good.clone(), "/init", b"{ }"),
            ("another nonce", headers("10", good[SIGNATURE_HEADER].to_str().unwrap()), "/init", b"{}"),
            ("a nonce's other writing", headers("+9", good[SIGNATURE_HEADER].to_str().unwrap()), "/init", b"{}"),
            ("no number", headers("x", good[SIGNATURE_HEADER].to_str().unwrap()), "/init", b"{}"),
            ("no signature", headers("9", ""), "/init", b"{}"),
            ("half a signature", headers("9", "AAAA"), "/init", b"{}"),
            ("nothing", HeaderMap::new(), "/init", b"{}"),
        ] {
            assert!(!verifier.accept(&headers, path, body), "{what}");
        }
        assert!(verifier.accept(&good, "/init", b"{}"), "none of them used the nonce up");
    }

    #[test]
    fn the_clock_is_set_when_it_is_behind_or_clearly_ahead() {
        let host = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let millis = Duration::from_millis;
        assert!(is_off(host - millis(1), host));
        assert!(!is_off(host, host));
        assert!(!is_off(host + millis(1000), host), "the call took a moment");
        assert!(is_off(host + millis(1001), host));
    }

    #[test]
    fn a_key_is_64_hex_digits_of_a_point() {
        for key in [
            "",
            "00",
            "zz",
            &"0".repeat(63),
            &"g".repeat(64),
            &format!("02{}", "0".repeat(62)),
            &format!("01{}", "0".repeat(62)),
        ] {
            assert!(Verifier::new(ID, key).is_err(), "{key}");
        }
    }
}
