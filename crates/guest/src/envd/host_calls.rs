//! What only the host may ask.
//!
//! ```text
//!   /init              settings   token, environment, clock
//!   /freeze /thaw      cgroup     the users' processes
//!   /sync              disk       the root filesystem's caches
//!   /fsfreeze /fsthaw  disk       the root filesystem
//!   /clock             clock      what time it is here; a step
//!   /resumed           resumed    a memory was restored: clock, entropy, identity, hooks
//!   /poweroff
//! ```
//! Each call is signed with the host's Ed25519 key, whose public half came with the boot, over sandbox, nonce, path and
//! body ([`Verifier`]). Whoever has no such signature, a program of the guest above all, is told that there is no such
//! route. Calls answer while the users' processes are frozen, and while the root filesystem is.

mod clock;
mod disk;
mod resumed;
mod settings;
mod verifier;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{Method, StatusCode};
use rustix::process::{Pid, Signal};
use serde::de::DeserializeOwned;
use wrenn_proto::envd::VERSION_HEADER;

use super::VERSION;
use super::arrivals::Arrival;
use super::cgroup::{CgroupError, Motion};
use super::lane::LaneError;
use super::server::{error_response, json_response, not_found};
use super::state::{Machine, NoGuest, State};
use crate::limits;
use resumed::ResumedError;
pub use verifier::{KeyError, Verifier};

/// Between the answer to /poweroff and the deed: the answer must leave the machine.
const POWER_OFF_DELAY: Duration = Duration::from_millis(50);

/// The calls that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostCall {
    Init,
    Freeze,
    Thaw,
    Sync,
    DiskFreeze,
    DiskThaw,
    Clock,
    Resumed,
    PowerOff,
}

impl HostCall {
    const ALL: [(&'static str, Self); 9] = [
        ("/init", Self::Init),
        ("/freeze", Self::Freeze),
        ("/thaw", Self::Thaw),
        ("/sync", Self::Sync),
        ("/fsfreeze", Self::DiskFreeze),
        ("/fsthaw", Self::DiskThaw),
        ("/clock", Self::Clock),
        ("/resumed", Self::Resumed),
        ("/poweroff", Self::PowerOff),
    ];
}

/// Why a call of the host failed.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("the body is not what this call's should be")]
    Body(#[source] serde_json::Error),
    #[error("`{0}` is no RFC 3339 timestamp")]
    Timestamp(String),
    #[error("cannot set the clock")]
    Clock(#[source] io::Error),
    #[error(transparent)]
    NoGuest(#[from] NoGuest),
    #[error("this envd runs without a cgroup")]
    NoCgroup,
    #[error("the guest's memory was restored, and it was not made fit to go on")]
    Unfit,
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot write the disk's caches back")]
    Sync(#[source] io::Error),
    #[error("cannot write the disk's caches back")]
    SyncLane(#[source] LaneError),
    #[error("cannot {verb} the root filesystem")]
    Disk { verb: &'static str, source: io::Error },
    #[error("cannot {verb} the root filesystem")]
    DiskLane { verb: &'static str, source: LaneError },
    #[error(transparent)]
    Resumed(#[from] ResumedError),
    #[error("cannot make the guest fit to go on")]
    ResumedLane(#[source] LaneError),
}

impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Body(_) | Self::Timestamp(_) => StatusCode::BAD_REQUEST,
            Self::Resumed(error) if error.is_request() => StatusCode::BAD_REQUEST,
            Self::Clock(_) | Self::Sync(_) | Self::Disk { .. } | Self::Resumed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoGuest(_) | Self::NoCgroup | Self::Cgroup(_) | Self::Unfit => StatusCode::SERVICE_UNAVAILABLE,
            Self::SyncLane(_) | Self::DiskLane { .. } | Self::ResumedLane(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        error_response(status, &super::files::with_causes(&self))
    }
}

/// When a call came, by the clock of that moment, and on which connection.
#[derive(Debug, Clone, Copy)]
struct Received {
    at: SystemTime,
    by: Option<Arrival>,
}

/// The routes of the host's calls.
pub fn routes(state: Arc<State>) -> Router {
    HostCall::ALL.into_iter().fold(Router::new(), |router, (path, call)| {
        let state = Arc::clone(&state);
        router.route(path, any(move |request| answer(Shared(state), call, path, request)))
    })
}

async fn answer(Shared(state): Shared<Arc<State>>, call: HostCall, path: &'static str, request: Request) -> Response {
    // Before the signature is looked at, which takes a while in a guest that has just been restored.
    let at = SystemTime::now();
    let (parts, body) = request.into_parts();
    let Some(body) = bounded(body).await else { return not_found() };
    if parts.method != Method::POST || !state.verifier.accept(&parts.headers, path, &body) {
        return not_found();
    }
    let received = Received { at, by: parts.extensions.get().copied() };
    // A task of its own: the host's hanging up must not leave half of it undone.
    let done = tokio::spawn(async move { act(&state, call, received, &body).await }).await;
    match done {
        Ok(Ok(answer)) => ([(VERSION_HEADER, VERSION)], answer).into_response(),
        Ok(Err(error)) => error.into_response(),
        Err(_) => error_response(StatusCode::INTERNAL_SERVER_ERROR, "the call was aborted inside of envd"),
    }
}

async fn bounded(body: Body) -> Option<Bytes> {
    axum::body::to_bytes(body, limits::HOST_CALL_BYTES_MAX).await.ok()
}

async fn act(state: &State, call: HostCall, received: Received, body: &[u8]) -> Result<Response, CallError> {
    let done = |()| StatusCode::NO_CONTENT.into_response();
    match call {
        HostCall::Init => settings::apply(state, parsed(body)?).map(done),
        HostCall::Freeze => move_to(state, Motion::Frozen).await.map(done),
        HostCall::Thaw if !state.is_fit() => Err(CallError::Unfit),
        HostCall::Thaw => move_to(state, Motion::Thawed).await.map(done),
        HostCall::Sync => disk::sync(state).await.map(done),
        HostCall::DiskFreeze => disk::freeze(state).await.map(done),
        HostCall::DiskThaw => disk::thaw(state).await.map(done),
        HostCall::Clock => Ok(json_response(StatusCode::OK, &clock::step_and_read(state.machine, parsed(body)?)?)),
        HostCall::Resumed => {
            let answer = resumed::come_back(state, received, parsed(body)?).await?;
            Ok(json_response(StatusCode::OK, &answer))
        }
        HostCall::PowerOff => {
            tokio::spawn(power_off(state.machine));
            Ok(done(()))
        }
    }
}

/// No body is an empty one.
fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, CallError> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(CallError::Body)
}

async fn move_to(state: &State, wanted: Motion) -> Result<(), CallError> {
    Ok(state.cgroup.as_ref().ok_or(CallError::NoCgroup)?.set(wanted).await?)
}

async fn power_off(machine: Machine) {
    tokio::time::sleep(POWER_OFF_DELAY).await;
    match machine {
        // wrenn-init ends the machine in order on this signal.
        Machine::Guest => {
            if let Err(errno) = rustix::process::kill_process(Pid::INIT, Signal::TERM) {
                eprintln!("envd: cannot tell init to power off: {errno}");
            }
        }
        Machine::Other => std::process::exit(0),
    }
}
