//! The agent's side of the socket: who gets in, what they reach, how it ends.
//!
//! ```text
//!   accept ─► whose process is it? ─► HTTP/2: calls      ends: no new connections; bound sandboxes and tunnels are let go;
//!                                     HTTP/1.1: tunnels        calls under way are finished and answered
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::routing::{any_service, get};
use connectrpc::{Limits, Router as ConnectRouter};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::service::Service;
use super::{limits, tunnel};
use crate::host_agent::HostAgent;

/// Serves `agent` on `listener` until `shutdown` is ready. Then nobody gets in any more and the socket's file is gone; bonds
/// and tunnels are dropped; calls under way are waited for, which is up to the agent.
pub async fn serve(agent: Arc<dyn HostAgent>, listener: UnixListener, shutdown: impl Future<Output = ()>) {
    serve_for(agent, listener, shutdown, Peers::of_this_process()).await;
}

/// As [`serve`], for processes of the user `uid` and of root.
pub async fn serve_for_user(
    agent: Arc<dyn HostAgent>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
    uid: u32,
) {
    serve_for(agent, listener, shutdown, Peers { own_uid: uid, root_uid: 0 }).await;
}

pub(super) async fn serve_for(
    agent: Arc<dyn HostAgent>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
    peers: Peers,
) {
    let (end, ending) = watch::channel(false);
    let calls = Arc::new(Semaphore::new(limits::CALLS_MAX as usize));
    let router = router(agent, &calls, &ending);
    let builder = Arc::new(builder());
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_ended) = connections.join_next() => {}
            (stream, place) = accept(&listener, &places, peers) => {
                let connection = connection(stream, Arc::clone(&builder), router.clone(), ending.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
        }
    }
    remove_socket(&listener);
    drop(listener);
    end.send_replace(true);
    finish(&calls, connections).await;
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

fn remove_socket(listener: &UnixListener) {
    let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(PathBuf::from));
    let Some(path) = path else { return };
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove the agent's socket"),
    }
}

/// Whose processes get in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peers {
    /// The agent's own user, beside root.
    pub own_uid: u32,
    /// Root, but for tests.
    pub root_uid: u32,
}

impl Peers {
    fn of_this_process() -> Self {
        Self { own_uid: rustix::process::geteuid().as_raw(), root_uid: 0 }
    }

    fn admit(self, stream: &UnixStream) -> bool {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == self.own_uid || peer.uid() == self.root_uid => true,
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a process of another user");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "refused a process whose user the kernel does not tell");
                false
            }
        }
    }
}

/// The next connection of somebody who may have one. Cancel safe.
async fn accept(listener: &UnixListener, places: &Arc<Semaphore>, peers: Peers) -> (UnixStream, OwnedSemaphorePermit) {
    loop {
        // Waiting here leaves further clients in the kernel's queue.
        let place = Arc::clone(places).acquire_owned().await.expect("this semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _address)) if peers.admit(&stream) => return (stream, place),
            Ok(_refused) => {}
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
    stream: UnixStream,
    builder: Arc<Builder<TokioExecutor>>,
    router: Router,
    mut ending: watch::Receiver<bool>,
) {
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
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
