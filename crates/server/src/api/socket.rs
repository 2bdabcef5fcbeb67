//! A WebSocket as the streams use it: bounded in what it takes, in how long it may be silent, and in how long it may not read.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use crate::error::ApiError;
use crate::limits;

/// The subprotocol that is answered to who asks for one: a browser that brings its key as another one needs an answer.
const PROTOCOL: &str = "wrenn.v1";

/// Accepts a WebSocket, and has `serve` do the rest.
pub fn accept<F>(upgrade: WebSocketUpgrade, serve: impl FnOnce(Socket) -> F + Send + 'static) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    upgrade
        .protocols([PROTOCOL])
        .max_message_size(limits::FRAME_BYTES_MAX)
        .max_frame_size(limits::FRAME_BYTES_MAX)
        .on_upgrade(|socket| serve(Socket::new(socket)))
}

/// The sending half.
pub struct Out(SplitSink<WebSocket, Message>);

/// The receiving half, and the clock of its silence.
pub struct In {
    source: SplitStream<WebSocket>,
    heard: Instant,
    tick: Interval,
}

/// Both.
pub struct Socket {
    /// To the client.
    pub out: Out,
    /// From the client.
    pub incoming: In,
}

/// What a client does.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It sent bytes.
    Binary(Bytes),
    /// It sent text.
    Text(String),
    /// Nothing was heard for a while: it is to be asked whether it is there.
    Quiet,
    /// It is gone, or says that it goes.
    Gone,
}

/// The client does not take what is sent.
#[derive(Debug)]
pub struct Stalled;

impl Socket {
    fn new(socket: WebSocket) -> Self {
        let (sink, source) = socket.split();
        let mut tick = interval(limits::PING_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        Self { out: Out(sink), incoming: In { source, heard: Instant::now(), tick } }
    }
}

impl In {
    /// What the client does next. Cancel safe.
    pub async fn next(&mut self) -> Heard {
        loop {
            tokio::select! {
                message = self.source.next() => {
                    self.heard = Instant::now();
                    match message {
                        Some(Ok(Message::Binary(bytes))) => return Heard::Binary(bytes),
                        Some(Ok(Message::Text(text))) => return Heard::Text(text.as_str().to_owned()),
                        // The library answers pings.
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return Heard::Gone,
                    }
                }
                _ = self.tick.tick() => {
                    return if self.heard.elapsed() > limits::SILENCE_MAX { Heard::Gone } else { Heard::Quiet };
                }
            }
        }
    }

    /// The first text, within its limit; `None` if there is none.
    pub async fn first_text(&mut self) -> Option<String> {
        let first = timeout(limits::FIRST_MESSAGE_LIMIT, async {
            loop {
                match self.next().await {
                    Heard::Text(text) => return Some(text),
                    Heard::Quiet => {}
                    Heard::Binary(_) | Heard::Gone => return None,
                }
            }
        });
        first.await.ok().flatten()
    }
}

impl Out {
    async fn send(&mut self, message: Message) -> Result<(), Stalled> {
        match timeout(limits::STALL_MAX, self.0.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Stalled),
        }
    }

    /// Sends bytes.
    pub async fn binary(&mut self, bytes: impl Into<Bytes>) -> Result<(), Stalled> {
        self.send(Message::Binary(bytes.into())).await
    }

    /// Sends a message of ours.
    pub async fn text(&mut self, message: &impl Serialize) -> Result<(), Stalled> {
        let text = serde_json::to_string(message).expect("messages of ours are JSON");
        self.send(Message::Text(text.into())).await
    }

    /// Asks whether the client is there.
    pub async fn ping(&mut self) -> Result<(), Stalled> {
        self.send(Message::Ping(Bytes::new())).await
    }

    /// Ends it well.
    pub async fn close(self) {
        self.end(close_code::NORMAL, Utf8Bytes::from_static("")).await;
    }

    /// Ends it because something went wrong.
    pub async fn fail(self, error: &ApiError) {
        self.end(close_code::ERROR, Utf8Bytes::from(error.body.code.as_str())).await;
    }

    async fn end(mut self, code: u16, reason: Utf8Bytes) {
        // A client that is gone needs no farewell.
        let farewell = async {
            drop(self.0.send(Message::Close(Some(CloseFrame { code, reason }))).await);
            drop(self.0.close().await);
        };
        drop(timeout(Duration::from_secs(2), farewell).await);
    }
}
