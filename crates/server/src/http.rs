//! How requests get in: connections, their limits, and how they end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt as _;

use crate::limits;

/// Serves `router` on `listener` until `shutdown` is ready; then requests that are under way are finished, within a limit.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let (end, ending) = watch::channel(false);
    let builder = Arc::new(builder());
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_ended) = connections.join_next() => {}
            (stream, remote, place) = accept(&listener, &places) => {
                let connection = connection(stream, remote, Arc::clone(&builder), router.clone(), ending.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    end.send_replace(true);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(limits::END_LIMIT, finished).await.is_err() {
        tracing::info!("connections are still open while the server ends; they are cut");
        connections.shutdown().await;
    }
}

/// The next connection. Cancel safe.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        // Waiting here leaves further clients in the kernel's queue.
        let place = Arc::clone(places).acquire_owned().await.expect("this semaphore is never closed");
        match listener.accept().await {
            Ok((stream, remote)) => {
                if let Err(error) = tune(&stream) {
                    tracing::debug!(%error, "a connection is used as it is");
                }
                return (stream, remote, place);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // A lack of descriptors or memory does not pass in no time.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Small messages leave at once, and a client that is silent is asked whether it is there. It may be a whole download, a
/// terminal, or a port of a sandbox: of all of them nobody else would notice that their client is gone.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, limits::TCP_SILENCE_MAX)?;
    sockopt::set_tcp_keepintvl(stream, limits::TCP_PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, limits::TCP_PROBES_MAX)?;
    Ok(())
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::REQUEST_HEAD_TIME_MAX)
        .max_buf_size(limits::REQUEST_HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS_MAX)
        .max_header_list_size(limits::REQUEST_HEAD_BYTES_MAX as u32)
        // A client that is gone is noticed.
        .keep_alive_interval(limits::PING_EVERY)
        .keep_alive_timeout(limits::SILENCE_MAX);
    builder
}

/// Ready when the server ends. Cancel safe.
async fn ends(ending: &mut watch::Receiver<bool>) {
    drop(ending.wait_for(|ending| *ending).await);
}

/// Ready when nothing was asked for in time. What is spoken, and the head's own limit, is known only after the first bytes: who
/// sends fewer than those would hold a place for ever.
async fn silence(asked: &mut watch::Receiver<bool>) {
    // It is dropped with its service alone, when the connection has ended.
    if timeout(limits::REQUEST_HEAD_TIME_MAX * 2, asked.wait_for(|asked| *asked)).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    builder: Arc<Builder<TokioExecutor>>,
    router: Router,
    mut ending: watch::Receiver<bool>,
) {
    let (asks, mut asked) = watch::channel(false);
    let service = router.map_request(move |mut request: Request<Incoming>| {
        asks.send_replace(true);
        request.extensions_mut().insert(ConnectInfo(remote));
        request
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silence(&mut asked) => {
            tracing::debug!(%remote, "a connection is cut on which nothing was asked for");
            return;
        }
        () = ends(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // How a connection ends is its client's business.
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_is_gone_is_noticed_also_when_nothing_is_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _, _place) = accept(&listener, &Arc::new(Semaphore::new(1))).await;
        assert!(stream.nodelay().unwrap() && sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), limits::TCP_SILENCE_MAX);
        assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), limits::TCP_PROBE_EVERY);
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), limits::TCP_PROBES_MAX);
    }
}
