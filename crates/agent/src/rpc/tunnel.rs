//! Tunnels: the bytes of a TCP connection to a guest, over the wire to the agent, both ends of it.
//!
//! ```text
//!   client ───── a Link ─────────► agent ──── HostAgent::dial ────► guest
//!      GET /tunnel/ID/PORT   ─►   dial
//!                            ◄─   101, or a refusal with the agent's code and text
//!      bytes ◄────────────────────────────────────────────────────► bytes
//! ```
//!
//! An end of one direction is passed on and leaves the other alone. The tunnel is over when both directions are, when one
//! breaks, when its client is gone (told apart from a client that only sends no more), or when the agent ends.

use std::io::{self, Cursor};
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path as UrlPath, Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf, copy, split};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use wrenn_engine::names::SandboxId;
use wrenn_proto::hostagent::{TUNNEL_CODE_HEADER, TUNNEL_LIMIT_HEADER, TUNNEL_PROTOCOL, tunnel_path};

use super::link::{Carries, Link};
use super::way::Way;
use super::{limits, wire};
use crate::host_agent::{AgentError, Code, HostAgent, Tunnel, with_causes};

// ---- the agent's end -------------------------------------------------------------------------------------------------

/// Where tunnels come in.
pub(super) struct Entrance {
    agent: Arc<dyn HostAgent>,
    places: Arc<Semaphore>,
    ending: watch::Receiver<bool>,
}

impl Entrance {
    pub fn new(agent: Arc<dyn HostAgent>, ending: watch::Receiver<bool>) -> Self {
        Self { agent, places: Arc::new(Semaphore::new(limits::TUNNELS_MAX as usize)), ending }
    }
}

/// A request for a tunnel. A client that hangs up before the answer has changed nothing.
pub(super) async fn enter(
    State(entrance): State<Arc<Entrance>>,
    UrlPath((id, port)): UrlPath<(String, String)>,
    request: Request,
) -> Response {
    match open(&entrance, &id, &port, request).await {
        Ok(answer) => answer,
        Err(error) => refusal(error),
    }
}

async fn open(entrance: &Entrance, id: &str, port: &str, mut request: Request) -> Result<Response, AgentError> {
    let invalid = |message: &str| AgentError { code: Code::Invalid, message: message.to_owned() };
    let id = wire::sandbox_id(id)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| invalid("a port is 1 to 65535"))?;
    let limit = dial_limit(request.headers()).ok_or_else(|| invalid("the tunnel's time limit is missing"))?;
    let asks = request.headers().get(header::UPGRADE).is_some_and(|protocol| protocol == TUNNEL_PROTOCOL);
    let on_upgrade = request.extensions_mut().remove::<OnUpgrade>().filter(|_| asks);
    let on_upgrade = on_upgrade.ok_or_else(|| invalid("a tunnel is an upgrade of an HTTP/1.1 connection"))?;
    let place = Arc::clone(&entrance.places).try_acquire_owned().map_err(|_full| AgentError {
        code: Code::Exhausted,
        message: format!("there are {} connections to guests already; close some", limits::TUNNELS_MAX),
    })?;
    let guest = entrance.agent.dial(&id, port, limit).await?;
    tokio::spawn(run(on_upgrade, guest, entrance.ending.clone(), place));
    let head = [(header::CONNECTION, "upgrade"), (header::UPGRADE, TUNNEL_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, head).into_response())
}

fn dial_limit(headers: &HeaderMap) -> Option<Duration> {
    let millis = headers.get(TUNNEL_LIMIT_HEADER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis).min(limits::READY_LIMIT_MAX))
}

fn refusal(error: AgentError) -> Response {
    let status = match error.code {
        Code::NotFound | Code::Destroyed => StatusCode::NOT_FOUND,
        Code::Denied | Code::NeedsRepair => StatusCode::CONFLICT,
        Code::Invalid => StatusCode::BAD_REQUEST,
        Code::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Failed => StatusCode::BAD_GATEWAY,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, [(TUNNEL_CODE_HEADER, error.code.as_str())], error.message).into_response()
}

async fn run(on_upgrade: OnUpgrade, guest: Tunnel, mut ending: watch::Receiver<bool>, _place: OwnedSemaphorePermit) {
    let carried = tokio::select! {
        carried = async { carry(client_of(on_upgrade).await?, guest).await } => carried,
        () = super::ends(&mut ending) => return,
    };
    // Both sides see that it broke; why is only of interest to who looks for it.
    if let Err(error) = carried {
        tracing::debug!(%error, "a tunnel broke");
    }
}

/// The client's connection, and what it sent before it had our answer.
async fn client_of(on_upgrade: OnUpgrade) -> io::Result<(Link, Bytes)> {
    let upgraded = on_upgrade.await.map_err(io::Error::other)?;
    let parts = upgrade::downcast::<TokioIo<Link>>(upgraded)
        .map_err(|_other| io::Error::other("the connection is none of this server's"))?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

async fn carry((client, early): (Link, Bytes), guest: Tunnel) -> io::Result<()> {
    let watched = client.as_fd().try_clone_to_owned()?;
    let (mut from_guest, mut to_guest) = split(guest);
    let (from_client, mut to_client) = split(client);
    let mut from_client = Heard { from: from_client, broken: None };
    let up = async {
        to_guest.write_all(&early).await?;
        copy(&mut from_client, &mut to_guest).await?;
        from_client.broken.map_or(Ok(()), Err)?;
        to_guest.shutdown().await
    };
    let down = async {
        copy(&mut from_guest, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::pin!(up, down);
    tokio::select! {
        done = &mut down => {
            done?;
            up.await
        }
        done = &mut up => {
            done?;
            tokio::select! {
                done = &mut down => done,
                // All that it sent has gone to the guest, and nobody is there to take what the guest would say.
                () = hang_up(&watched) => Ok(()),
            }
        }
    }
}

/// What a client sends. Where it breaks is an end at first, so that all that came before is delivered. TLS tells apart who
/// sends no more, and says so, from who is gone.
struct Heard<R> {
    from: R,
    broken: Option<io::Error>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Heard<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let heard = self.get_mut();
        Pin::new(&mut heard.from).poll_read(cx, buf).map(|read| {
            heard.broken = read.err();
            Ok(())
        })
    }
}

/// Waits until a client that sends no more is gone altogether. The runtime does not tell these two apart: the kernel is
/// asked. Over TCP it learns that when it sends something, if only a probe.
async fn hang_up(client: &OwnedFd) {
    loop {
        let mut asked = [PollFd::new(client, PollFlags::empty())];
        match poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) if asked[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot watch a tunnel's client; the tunnel is closed");
                return;
            }
        }
        sleep(limits::HANG_UP_LOOK_EVERY).await;
    }
}

// ---- the client's end ------------------------------------------------------------------------------------------------

/// A tunnel through the agent at the end of `way`.
pub(super) async fn dial(way: &Way, id: &SandboxId, port: u16, limit: Duration) -> Result<Tunnel, AgentError> {
    let unavailable = |message: String| AgentError { code: Code::Unavailable, message };
    let gone = |error: io::Error| wire::gone(&with_causes(&error));
    let opened = timeout(limit + limits::CONNECT_LIMIT, async {
        let link = way.connect(Carries::Tunnel).await.map_err(gone)?;
        ask(link, id, port, limit).await.map_err(gone)?
    });
    opened.await.unwrap_or_else(|_elapsed| {
        Err(unavailable(format!("the agent did not open a connection to the guest within {} ms", limit.as_millis())))
    })
}

/// The outer error is the connection's, the inner one the agent's.
async fn ask(link: Link, id: &SandboxId, port: u16, limit: Duration) -> io::Result<Result<Tunnel, AgentError>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(link)).await.map_err(io::Error::other)?;
    let connection = tokio::spawn(connection.with_upgrades());
    let request = http::Request::get(tunnel_path(id.as_str(), port))
        .header(header::HOST, "agent")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, TUNNEL_PROTOCOL)
        .header(TUNNEL_LIMIT_HEADER, u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
        .body(Empty::<Bytes>::new())
        .expect("ids and numbers make a request");
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let refused = refused(answer).await;
        connection.abort();
        return Ok(Err(refused));
    }
    let upgraded = hyper::upgrade::on(answer).await.map_err(io::Error::other)?;
    let parts = upgraded
        .downcast::<TokioIo<Link>>()
        .map_err(|_other| io::Error::other("the connection is not the one that was opened"))?;
    let (read, write) = split(parts.io.into_inner());
    Ok(Ok(Box::new(tokio::io::join(Cursor::new(parts.read_buf).chain(read), write))))
}

async fn refused(answer: http::Response<Incoming>) -> AgentError {
    let status = answer.status();
    let code = answer.headers().get(TUNNEL_CODE_HEADER).and_then(|code| wire::code(code.to_str().ok()?));
    let body = Limited::new(Body::new(answer.into_body()), limits::REFUSAL_BYTES_MAX).collect().await;
    let message =
        body.map_or_else(|error| error.to_string(), |body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    match code {
        Some(code) => AgentError { code, message },
        None => AgentError {
            code: Code::Failed,
            message: format!("the agent does not understand this wrenn (HTTP {status}); are they of the same version?"),
        },
    }
}
