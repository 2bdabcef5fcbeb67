//! A client, this proxy and a guest in one process, over streams in memory: the clock can be wound on.

mod failures;
mod heads;
mod http2;
mod plain;
mod streams;
mod upgrades;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2 as client_http2};
use hyper::server::conn::http1 as server_http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use wrenn_agent::host_agent::Tunnel;

use super::{Admitted, Proxy, Refused, Target, Ways};

/// What a stream in memory holds before its writer has to wait.
const STREAM_BYTES: usize = 16 * 1024;

type Guest = Arc<dyn Fn(DuplexStream) -> BoxFuture<'static, ()> + Send + Sync>;

/// The ways to one guest.
struct House {
    guest: Guest,
    life: AtomicU64,
    admitted: AtomicUsize,
    dialled: AtomicUsize,
}

#[async_trait]
impl Ways for House {
    async fn admit(&self, _target: &Target, _headers: &HeaderMap) -> Result<Admitted, Refused> {
        self.admitted.fetch_add(1, Ordering::SeqCst);
        Ok(Admitted { life: self.life.load(Ordering::SeqCst) })
    }

    async fn dial(&self, _target: &Target, _limit: Duration) -> Result<Tunnel, Refused> {
        self.dialled.fetch_add(1, Ordering::SeqCst);
        let (ours, theirs) = duplex(STREAM_BYTES);
        tokio::spawn((self.guest)(theirs));
        Ok(Box::new(ours))
    }
}

struct World {
    house: Arc<House>,
    proxy: Proxy,
    target: Target,
}

impl World {
    /// With a guest that does this with each connection.
    fn raw<F: Future<Output = ()> + Send + 'static>(guest: impl Fn(DuplexStream) -> F + Send + Sync + 'static) -> Self {
        let house = Arc::new(House {
            guest: Arc::new(move |stream| guest(stream).boxed()),
            life: AtomicU64::new(1),
            admitted: AtomicUsize::new(0),
            dialled: AtomicUsize::new(0),
        });
        let target = Target { id: "sb0123456789abcdefgh".parse().unwrap(), port: 8080 };
        Self { proxy: Proxy::new(Arc::clone(&house) as Arc<dyn Ways>), house, target }
    }

    /// With a guest that is an HTTP/1.1 server.
    fn http1<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::raw(move |stream| serve_http1(stream, answer.clone()))
    }

    /// With a guest that says this to every request, and hangs up when `then_ends`.
    fn saying(words: &'static str, then_ends: bool) -> Self {
        Self::raw(move |mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                // Who has read enough hangs up.
                if stream.write_all(words.as_bytes()).await.is_err() || then_ends {
                    return;
                }
            }
        })
    }

    fn dialled(&self) -> usize {
        self.house.dialled.load(Ordering::SeqCst)
    }

    /// A connection to a server that passes everything on.
    fn connect(&self) -> DuplexStream {
        let (client, server) = duplex(STREAM_BYTES);
        let (proxy, target) = (self.proxy.clone(), self.target.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (proxy, target) = (proxy.clone(), target.clone());
            async move { Ok::<_, Infallible>(proxy.forward(target, request.map(Body::new)).await) }
        });
        tokio::spawn(async move {
            let server_side = auto::Builder::new(TokioExecutor::new());
            drop(server_side.serve_connection_with_upgrades(TokioIo::new(server), service).await);
        });
        client
    }

    async fn client(&self) -> http1::SendRequest<Body> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect())).await.unwrap();
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
        sender
    }

    async fn http2_client(&self) -> client_http2::SendRequest<Body> {
        let stream = TokioIo::new(self.connect());
        let (sender, connection) = client_http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        sender
    }

    /// Asks without a server between.
    async fn forward(&self, request: Request<Body>) -> Answer {
        Answer::of(self.proxy.forward(self.target.clone(), request).await).await
    }

    /// What a server says to these bytes until it closes, or has said nothing for a second.
    async fn say(&self, words: &[u8]) -> String {
        let mut client = self.connect();
        client.write_all(words).await.unwrap();
        let mut said = Vec::new();
        drop(tokio::time::timeout(Duration::from_secs(1), client.read_to_end(&mut said)).await);
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// An answer with all of its body.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

impl Answer {
    async fn of<B: http_body::Body<Data = Bytes>>(response: Response<B>) -> Self
    where
        B::Error: std::fmt::Debug,
    {
        let (head, body) = response.into_parts();
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        Self { status: head.status, headers: head.headers, body: collected.to_bytes(), trailers }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Whether it is the proxy's own, with this status.
    fn is_refusal(&self, status: u16) -> bool {
        self.status == status && self.headers.contains_key(super::PROXY_ERROR_HEADER)
    }
}

async fn serve_http1<F>(stream: DuplexStream, answer: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| answer(request).map(Ok::<_, Infallible>));
    drop(server_http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "8080-sb0123456789abcdefgh.example.org").body(Body::empty()).unwrap()
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header("host", "8080-sb0123456789abcdefgh.example.org");
    request.body(body.into()).unwrap()
}

fn ok(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Body::new(Full::new(text.into())))
}

/// Reads to the end of a head; `None` when the other side sends no more.
async fn read_head(stream: &mut DuplexStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Lets everything that can go on go on.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
