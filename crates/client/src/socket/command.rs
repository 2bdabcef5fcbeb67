//! A command, or a terminal: its input, and what it does.

use std::fmt;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use reqwest::Upgraded;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::Socket;
use crate::client::Asked;
use crate::error::ClientError;
use crate::limits;
use crate::types::{ClientMessage, Exit, HEADER_BYTES, ServerMessage, StreamKind, StreamRequest, TerminalSize};

/// A command, both ways. Dropping both leaves the command alone: it goes on.
#[derive(Debug)]
pub struct CommandStream {
    /// What it is given.
    pub input: CommandInput,
    /// What it does.
    pub output: CommandOutput,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandEvent {
    /// It runs.
    Started {
        /// Its pid in the sandbox.
        pid: u32,
    },
    /// It wrote something.
    Output {
        /// Where.
        stream: StreamKind,
        /// Its place in the command's whole output, in bytes.
        offset: u64,
        /// What.
        bytes: Bytes,
    },
    /// This many bytes of its output are gone: nobody was attached, and it wrote more than is kept.
    Gap {
        /// How many.
        bytes: u64,
    },
    /// It ended; nothing comes after.
    Exit(Exit),
}

impl CommandStream {
    /// Of a socket on which nothing has to be said first.
    pub(crate) fn of(Socket { frames, asked }: Socket) -> Self {
        let (sink, stream) = frames.split();
        let input = CommandInput { sink, asked: asked.clone() };
        Self { input, output: CommandOutput { stream, asked, has_ended: false } }
    }

    /// Of a socket on which the command has to be named first.
    pub(crate) async fn begin(socket: Socket, request: &StreamRequest) -> Result<Self, ClientError> {
        let mut command = Self::of(socket);
        let request = serde_json::to_string(request).expect("requests are maps with texts as keys");
        command.input.send(Message::text(request)).await?;
        Ok(command)
    }
}

/// What a command is given.
pub struct CommandInput {
    sink: SplitSink<WebSocketStream<Upgraded>, Message>,
    asked: Asked,
}

impl CommandInput {
    /// Bytes for its standard input or terminal. Waits while the command reads slower than it is written to.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(limits::TUNNEL_MESSAGE_BYTES_MAX));
            self.send(Message::Binary(piece)).await?;
        }
        Ok(())
    }

    /// Nothing more comes for its standard input.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        self.say(ClientMessage::CloseStdin).await
    }

    /// A signal for the command and all that it started.
    pub async fn signal(&mut self, signal: u32) -> Result<(), ClientError> {
        self.say(ClientMessage::Signal { signal }).await
    }

    /// The terminal has another size.
    pub async fn resize(&mut self, TerminalSize { cols, rows }: TerminalSize) -> Result<(), ClientError> {
        self.say(ClientMessage::Resize { cols, rows }).await
    }

    async fn say(&mut self, message: ClientMessage) -> Result<(), ClientError> {
        let text = serde_json::to_string(&message).expect("messages are maps with texts as keys");
        self.send(Message::text(text)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        self.sink.send(message).await.map_err(|error| self.asked.broke(error))
    }
}

impl fmt::Debug for CommandInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandInput").field("asked", &self.asked).finish_non_exhaustive()
    }
}

/// What a command does, as it does it.
pub struct CommandOutput {
    stream: SplitStream<WebSocketStream<Upgraded>>,
    asked: Asked,
    has_ended: bool,
}

impl CommandOutput {
    /// The next thing that it does, without limit; `None` after its end. A connection that ends before the command does is
    /// an error: come back to it. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<CommandEvent>, ClientError> {
        while !self.has_ended {
            let message = match self.stream.next().await {
                Some(message) => message.map_err(|error| self.broke(error))?,
                None => return Err(self.broke(Error::ConnectionClosed)),
            };
            let event = match message {
                Message::Binary(frame) => Some(self.output(&frame)?),
                Message::Text(text) => Some(self.told(text.as_str())?),
                Message::Close(frame) => return Err(self.closed(frame.map(|frame| frame.reason.to_string()))),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => None,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    fn output(&self, frame: &Bytes) -> Result<CommandEvent, ClientError> {
        let read = StreamKind::read(frame);
        let (stream, offset, _) = read.ok_or_else(|| self.asked.protocol("a frame of no stream of a command's"))?;
        Ok(CommandEvent::Output { stream, offset, bytes: frame.slice(HEADER_BYTES..) })
    }

    fn told(&mut self, text: &str) -> Result<CommandEvent, ClientError> {
        match serde_json::from_str(text).map_err(|error| self.asked.protocol(error))? {
            ServerMessage::Started { pid } => Ok(CommandEvent::Started { pid }),
            ServerMessage::Gap { bytes } => Ok(CommandEvent::Gap { bytes }),
            ServerMessage::Exit { exit } => {
                self.has_ended = true;
                Ok(CommandEvent::Exit(exit))
            }
            ServerMessage::Error { error } => {
                self.has_ended = true;
                Err(self.asked.refused_later(error))
            }
        }
    }

    fn broke(&mut self, error: Error) -> ClientError {
        self.has_ended = true;
        self.asked.broke(error)
    }

    fn closed(&mut self, reason: Option<String>) -> ClientError {
        self.has_ended = true;
        let reason = reason.filter(|reason| !reason.is_empty());
        self.asked.broke(reason.unwrap_or_else(|| "the server closed it before the command ended".to_owned()))
    }
}

impl fmt::Debug for CommandOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandOutput").field("asked", &self.asked).finish_non_exhaustive()
    }
}
