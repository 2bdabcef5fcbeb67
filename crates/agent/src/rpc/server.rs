//! The agent's side of the wire: what those reach who get in, and how it ends.
//!
//! ```text
//!   accept ─► who is it? (door) ─► HTTP/2: calls         ends: no new connections; bound sandboxes and tunnels are let go;
//!                                  HTTP/1.1: tunnels           calls under way are finished and answered
//! ```

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::routing::{any_service, get};
use connectrpc::{Limits, Router as ConnectRouter};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::door::{Door, Knock, Peers, Porch};
use super::link::Link;
use super::service::Service;
use super::tls::ServerTls;
use super::{limits, tunnel};
use crate::host_agent::HostAgent;

/// Serves `agent` on `listener` until `shutdown` is ready. Then nobody gets in any more and the socket's file is gone; bonds
/// and tunnels are dropped; calls under way are waited for, which is up to the agent.
pub async fn serve(agent: Arc<dyn HostAgent>, listener: UnixListener, shutdown: impl Future<Output = ()>) {
    serve_at(agent, Door::Socket(listener, Peers::of_this_process()), shutdown).await;
}

/// As [`serve`], for processes of the user `uid` and of root.
pub async fn serve_for_user(
    agent: Arc<dyn HostAgent>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
    uid: u32,
) {
    serve_at(agent, Door::Socket(listener, Peers { own_uid: uid, root_uid: 0 }), shutdown).await;
}

/// As [`serve`], for whoever has a certificate that the CA signed: they can do all that root can through the socket.
pub async fn serve_tls(
    agent: Arc<dyn HostAgent>,
    listener: TcpListener,
    tls: ServerTls,
    shutdown: impl Future<Output = ()>,
) {
    serve_at(agent, Door::Tls(listener, tls), shutdown).await;
}

pub(super) async fn serve_at(agent: Arc<dyn HostAgent>, door: Door, shutdown: impl Future<Output = ()>) {
    let (end, ending) = watch::channel(false);
    let calls = Arc::new(Semaphore::new(limits::CALLS_MAX as usize));
    let router = router(agent, &calls, &ending);
    let builder = Arc::new(builder());
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let mut porch = Porch::default();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_ended) = connections.join_next() => {}
            (knock, place) = accept(&door, &places) => {
                let link = admit(knock, porch.step_on());
                let (builder, router, ending) = (Arc::clone(&builder), router.clone(), ending.clone());
                connections.spawn(async move {
                    if let Some(link) = link.await {
                        connection(link, builder, router, ending).await;
                    }
                    drop(place);
                });
            }
        }
    }
    door.close();
    drop(porch);
    end.send_replace(true);
    finish(&calls, connections).await;
}

/// The client's connection, unless it has to go before it is known who it is.
async fn admit(knock: Knock, has_to_go: oneshot::Receiver<Infallible>) -> Option<Link> {
    tokio::select! {
        link = knock.admit() => link,
        Err(_to_go) = has_to_go => None,
    }
}

/// Lets calls that are under way end and their answers out.
async fn finish(calls: &Semaphore, mut connections: JoinSet<()>) {
    let finished = timeout(limits::CALLS_END_LIMIT, calls.acquire_many(limits::CALLS_MAX)).await;
    // Later calls, on connections that are still there, are refused.
    calls.close();
    if finished.is_err() {
        tracing::warn!("calls are still under way while the agent ends; they are left to the next one");
    }
    let answered = timeout(limits::ANSWERS_LIMIT, async { while connections.join_next().await.is_some() {} }).await;
    if answered.is_err() {
        connections.shutdown().await;
    }
}

/// The next client, and its place. Cancel safe.
async fn accept(door: &Door, places: &Arc<Semaphore>) -> (Knock, OwnedSemaphorePermit) {
    loop {
        // Waiting here leaves further clients in the kernel's queue.
        let place = Arc::clone(places).acquire_owned().await.expect("this semaphore is never closed");
        match door.accept().await {
            Ok(knock) => return (knock, place),
            Err(error) => rest_after(&error).await,
        }
    }
}

/// A client that gave up costs nothing; a lack of descriptors or memory does not pass in no time.
async fn rest_after(error: &io::Error) {
    if error.kind() != io::ErrorKind::ConnectionAborted {
        tracing::warn!(%error, "cannot accept a connection");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

fn router(agent: Arc<dyn HostAgent>, calls: &Arc<Semaphore>, ending: &watch::Receiver<bool>) -> Router {
    let messages = Limits::default()
        .with_max_message_size(limits::MESSAGE_BYTES_MAX)
        .with_max_request_body_size(limits::MESSAGE_BYTES_MAX)
        .with_element_memory_limit(limits::MESSAGE_MEMORY_MAX);
    let service = Service::new(Arc::clone(&agent), Arc::clone(calls), ending.clone());
    let rpc = ConnectRouter::new().add_service(Arc::new(service)).into_axum_service().with_limits(messages);
    let tunnels = Arc::new(tunnel::Entrance::new(agent, ending.clone()));
    Router::new()
        .route("/hostagent.HostAgent/{method}", any_service(rpc))
        .route("/tunnel/{id}/{port}", get(tunnel::enter).with_state(tunnels))
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits::REQUEST_HEAD_TIME_MAX);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(limits::STREAMS_MAX);
    builder
}

async fn connection(
    link: Link,
    builder: Arc<Builder<TokioExecutor>>,
    router: Router,
    mut ending: watch::Receiver<bool>,
) {
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(link), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = super::ends(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // How a connection ends is its client's business.
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
