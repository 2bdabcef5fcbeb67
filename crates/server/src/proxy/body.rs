//! Bodies on their way: nothing is kept, each piece is asked for when the other side can take it.
//!
//! An [`Upload`] is a request's body. Its connection reads it, and whoever sent the request keeps a hand on it: to see that it
//! moves, to hold it back until the guest says `100 Continue`, and to take it back unread from a connection that was dead.
//! A [`Download`] is an answer's body. It holds what its request holds (the connection, the place) until it has ended, or its
//! client is gone.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::limits;
use super::line::Line;
use super::places::Place;
use super::pool::Pool;
use super::target::Target;

// ---- requests --------------------------------------------------------------------------------------------------------

/// A request's body; all clones are the same one.
#[derive(Clone)]
pub struct Upload(Arc<Mutex<Uploading>>);

struct Uploading {
    /// `None` once it was taken back.
    body: Option<Body>,
    gate: Option<BoxFuture<'static, ()>>,
    moved: Instant,
    touched: bool,
}

impl Upload {
    /// Of which nothing was read yet.
    pub fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Uploading { body: Some(body), gate: None, moved: Instant::now(), touched: false })))
    }

    /// Holds it back until the answer says that it is wanted, or for as long as is sensible.
    pub fn wait_for_continue(&self) -> Arc<Notify> {
        let wanted = Arc::new(Notify::new());
        let told = Arc::clone(&wanted);
        let gate = async move { drop(timeout(limits::CONTINUE_LIMIT, told.notified()).await) };
        self.lock().gate = Some(gate.boxed());
        wanted
    }

    /// When a piece of it was taken last.
    pub fn moved(&self) -> Instant {
        self.lock().moved
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.is_end_stream()
    }

    /// The body again, if none of it was taken.
    pub fn take_back(&self) -> Option<Body> {
        let mut uploading = self.lock();
        if uploading.touched { None } else { uploading.body.take() }
    }

    fn lock(&self) -> MutexGuard<'_, Uploading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut uploading = self.lock();
        if let Some(gate) = &mut uploading.gate {
            std::task::ready!(gate.poll_unpin(context));
            uploading.gate = None;
        }
        // Whoever took it back has done with this connection, which must not take it for an end.
        let Some(body) = &mut uploading.body else { return Poll::Pending };
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        uploading.touched = true;
        uploading.moved = Instant::now();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

// ---- answers ---------------------------------------------------------------------------------------------------------

/// What a request holds until its answer has ended.
pub struct Held {
    /// The connection that the answer comes over.
    pub line: Line,
    /// Whose.
    pub target: Target,
    /// Where the connection goes when it can be used again.
    pub pool: Arc<Pool>,
    /// The request's own.
    pub place: Place,
}

impl Held {
    fn give_back(self) {
        let Self { line, target, pool, place } = self;
        Pool::give(&pool, target, line, place);
    }
}

/// An answer's body.
pub struct Download {
    body: Incoming,
    held: Option<Held>,
}

impl Download {
    /// Of an answer whose head has come.
    pub fn new(body: Incoming, held: Held) -> Self {
        Self { body, held: Some(held) }
    }

    fn end(&mut self) {
        if let Some(held) = self.held.take() {
            held.give_back();
        }
    }
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            None => self.end(),
            Some(Ok(_)) if self.body.is_end_stream() => self.end(),
            Some(Ok(_)) => {}
            // What broke is of no use to anybody: the connection is closed, and the client sees that the answer is not whole.
            Some(Err(_)) => self.held = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Download {
    /// An answer without a body is never read. Of any other the client has hung up: dropping the connection tells the guest.
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.end();
        }
    }
}
