//! One connection to a guest's port. It carries one request at a time, over HTTP/2 as well: no answer stands behind
//! another's, and hanging up is the one way to call a request off that every guest understands.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;
use wrenn_agent::host_agent::{Tunnel, with_causes};

use super::body::Upload;
use super::head::Protocol;
use super::limits;

/// A connection, and the tasks that drive it; they end with it.
pub struct Line {
    sender: Sender,
    tasks: Tasks,
    /// Of the sandbox, when it was made.
    pub life: u64,
}

enum Sender {
    Http1(http1::SendRequest<Upload>),
    Http2(http2::SendRequest<Upload>),
}

/// Why there is no answer.
#[derive(Debug)]
pub struct SendError {
    source: hyper::Error,
    /// Nothing of it was sent.
    pub unsent: bool,
}

impl From<hyper::Error> for SendError {
    fn from(source: hyper::Error) -> Self {
        Self { source, unsent: false }
    }
}

impl SendError {
    /// It, with its causes. None of it is the guest's.
    pub fn words(&self) -> String {
        with_causes(&self.source)
    }

    /// Whether the connection was dead before an answer began; not a guest that answered with nonsense.
    pub fn is_dead_line(&self) -> bool {
        !self.source.is_parse() && !self.source.is_user()
    }

    /// Whether it is the client's own body that broke off.
    pub fn is_client(&self) -> bool {
        self.source.is_user()
    }
}

impl Line {
    /// Over a fresh stream; over HTTP/1.1 nothing is sent yet.
    pub async fn open(stream: Tunnel, protocol: Protocol, life: u64) -> hyper::Result<Self> {
        let tasks = Tasks::default();
        let sender = match protocol {
            Protocol::Http1 => Sender::Http1(open_http1(stream, &tasks).await?),
            Protocol::Http2 => Sender::Http2(open_http2(stream, &tasks).await?),
        };
        Ok(Self { sender, tasks, life })
    }

    /// How it is spoken over.
    pub fn protocol(&self) -> Protocol {
        match self.sender {
            Sender::Http1(_) => Protocol::Http1,
            Sender::Http2(_) => Protocol::Http2,
        }
    }

    /// Whether a request can be sent at once.
    pub fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2(sender) => sender.is_ready(),
        }
    }

    /// Waits until a request can be sent, or none ever: then it is false.
    pub async fn settle(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Sends a request, until the answer's head is there.
    pub async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, SendError> {
        let answer = match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        answer.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            SendError { source: error.into_error(), unsent }
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.tasks.end();
    }
}

async fn open_http1(stream: Tunnel, tasks: &Tasks) -> hyper::Result<http1::SendRequest<Upload>> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(limits::ANSWER_HEAD_BYTES_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tasks.run(async move { note_end(connection.with_upgrades().await) });
    Ok(sender)
}

async fn open_http2(stream: Tunnel, tasks: &Tasks) -> hyper::Result<http2::SendRequest<Upload>> {
    let mut builder = http2::Builder::new(tasks.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES)
        .max_header_list_size(limits::ANSWER_HEAD_BYTES_MAX as u32)
        .max_send_buf_size(limits::SEND_AHEAD_BYTES_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tasks.run(async move { note_end(connection.await) });
    Ok(sender)
}

/// The request that it breaks says how it ended; without one it is of no interest.
fn note_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to a guest's port ended");
    }
}

/// The tasks of one connection. They know each other, so that new ones can be started; ended they are by their line.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.run(task);
    }
}
