//! The bytes of a TCP connection to a guest.
//!
//! ```text
//!   we ─► binary  bytes            ◄─► server
//!         text    close_write: no more bytes come from whoever says this; the other direction goes on
//!         close   both directions are over
//! ```

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures::{Sink as _, Stream as _};
use reqwest::Upgraded;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::Socket;
use crate::client::Asked;
use crate::limits;
use crate::types::TunnelMessage;

/// A connection to a port of a guest. Dropping it closes it.
pub struct Tunnel {
    frames: WebSocketStream<Upgraded>,
    asked: Asked,
    /// What has come and was not read yet.
    pending: Bytes,
    /// No more comes.
    is_read: bool,
    /// We have said that no more comes from us.
    is_written: bool,
}

impl Tunnel {
    pub(crate) fn of(Socket { frames, asked }: Socket) -> Self {
        Self { frames, asked, pending: Bytes::new(), is_read: false, is_written: false }
    }

    /// Takes in what a message says. Cut off without a word is an error, or somebody would take a part for the whole.
    fn take(&mut self, message: Option<Result<Message, Error>>) -> io::Result<()> {
        match message {
            Some(Ok(Message::Binary(bytes))) => self.pending = bytes,
            Some(Ok(Message::Text(text))) => match serde_json::from_str(text.as_str()).map_err(io::Error::other)? {
                TunnelMessage::CloseWrite => self.is_read = true,
            },
            Some(Ok(Message::Close(frame))) => {
                (self.is_read, self.is_written) = (true, true);
                if let Some(frame) = frame.filter(|frame| !is_an_end(frame.code)) {
                    let why = if frame.reason.is_empty() { frame.code.to_string() } else { frame.reason.to_string() };
                    return Err(io::Error::new(io::ErrorKind::ConnectionReset, why));
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(broke(error)),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }
}

fn is_an_end(code: CloseCode) -> bool {
    matches!(code, CloseCode::Normal | CloseCode::Status)
}

fn broke(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.pending.is_empty() && !self.is_read {
            let message = ready!(Pin::new(&mut self.frames).poll_next(context));
            self.take(message)?;
        }
        let count = self.pending.len().min(buffer.remaining());
        buffer.put_slice(&self.pending[..count]);
        self.pending.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_written {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(Pin::new(&mut self.frames).poll_ready(context)).map_err(broke)?;
        let piece = &bytes[..bytes.len().min(limits::TUNNEL_MESSAGE_BYTES_MAX)];
        Pin::new(&mut self.frames).start_send(Message::Binary(Bytes::copy_from_slice(piece))).map_err(broke)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.frames).poll_flush(context).map_err(broke)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_written {
            ready!(Pin::new(&mut self.frames).poll_ready(context)).map_err(broke)?;
            let text = serde_json::to_string(&TunnelMessage::CloseWrite).map_err(io::Error::other)?;
            Pin::new(&mut self.frames).start_send(Message::text(text)).map_err(broke)?;
            self.is_written = true;
        }
        match ready!(Pin::new(&mut self.frames).poll_flush(context)) {
            // The other side has ended both directions already.
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(broke(error))),
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("asked", &self.asked).finish_non_exhaustive()
    }
}
