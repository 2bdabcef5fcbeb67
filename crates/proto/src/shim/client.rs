//! A small blocking client. Async callers use it on a blocking thread.
//!
//! One request at a time; an answer to a request that was given up (a [`Client::wait`] that timed out) is recognised by
//! its number and dropped when it comes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{
    Answer, AnswerFrame, Decoder, ErrorCode, ExitRecord, FrameError, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, Reply,
    Request, RequestFrame, Status, Tail, frame,
};

/// Bytes read from the socket at once.
const READ_BYTES: usize = 4096;

/// Shortest timeout the system takes for "now or never"; zero would mean "for ever".
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Why a shim could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the shim has ended or was killed; the exit record tells which.
    #[error("cannot connect to the shim at {path}", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("cannot {verb} the shim's connection")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The shim hung up.
    #[error("the shim closed the connection")]
    Closed,
    /// No answer in time. The connection is still good; a request that changes something may have been done.
    #[error("no answer from the shim within {limit:?}")]
    TimedOut {
        /// The time given.
        limit: Duration,
    },
    /// What came is no frame of the protocol.
    #[error("the shim's answer is not understood")]
    Frame(#[from] FrameError),
    /// An answer of another kind than the request's.
    #[error("the shim answered {request:?} with something else")]
    WrongReply {
        /// What was asked.
        request: Request,
    },
    /// The shim said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl ClientError {
    /// The code of a refusal.
    pub fn refusal(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Connect { .. }
            | Self::Io { .. }
            | Self::Closed
            | Self::TimedOut { .. }
            | Self::Frame(_)
            | Self::WrongReply { .. } => None,
        }
    }
}

/// Who answers, as it introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The protocol version of this connection.
    pub version: u32,
    /// The sandbox the shim belongs to.
    pub sandbox: String,
    /// The shim's pid.
    pub pid: u32,
}

/// A connection to a shim.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    limit: Duration,
    last_id: u64,
    peer: Peer,
}

impl Client {
    /// Connects and agrees on a version. `limit` is for each answer, except that of [`Client::wait`].
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self, ClientError> {
        let stream =
            UnixStream::connect(socket).map_err(|source| ClientError::Connect { path: socket.to_owned(), source })?;
        let peer = Peer { version: 0, sandbox: String::new(), pid: 0 };
        let mut client = Self { stream, decoder: Decoder::new(), limit, last_id: 0, peer };
        let request = Request::Hello { min: PROTOCOL_MIN, max: PROTOCOL_MAX };
        let Reply::Hello { version, sandbox, pid } = client.ask(request)? else {
            return Err(ClientError::WrongReply { request });
        };
        client.peer = Peer { version, sandbox, pid };
        Ok(client)
    }

    /// Who answers.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// How things are.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        let request = Request::Status;
        let Reply::Status(status) = self.ask(request)? else { return Err(ClientError::WrongReply { request }) };
        Ok(status)
    }

    /// The last bytes of the serial console, at most [`super::CONSOLE_TAIL_MAX`].
    pub fn console_tail(&mut self, bytes: u32) -> Result<Tail, ClientError> {
        let request = Request::ConsoleTail { bytes };
        let Reply::Console(tail) = self.ask(request)? else { return Err(ClientError::WrongReply { request }) };
        Ok(tail)
    }

    /// The last bytes of the VMM's stderr.
    pub fn vmm_log(&mut self) -> Result<Tail, ClientError> {
        let request = Request::VmmLog;
        let Reply::VmmLog(tail) = self.ask(request)? else { return Err(ClientError::WrongReply { request }) };
        Ok(tail)
    }

    /// Sends the VMM a signal.
    pub fn signal(&mut self, signal: i32) -> Result<(), ClientError> {
        self.ask_done(Request::Signal { signal }, self.limit)
    }

    /// Ends the VMM: SIGKILL at once, or SIGTERM and after `grace` SIGKILL. Does not wait for the end.
    pub fn stop(&mut self, grace: Duration) -> Result<(), ClientError> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.ask_done(Request::Stop { grace_ms }, self.limit)
    }

    /// Waits until the VMM has ended; `None` waits for ever. After [`ClientError::TimedOut`] it can be called again.
    pub fn wait(&mut self, limit: Option<Duration>) -> Result<ExitRecord, ClientError> {
        let request = Request::Wait;
        let Reply::Ended(record) = self.ask_within(request, limit)? else {
            return Err(ClientError::WrongReply { request });
        };
        Ok(record)
    }

    /// Ends the shim; with `kill` its VMM first, if it runs. `limit` also covers the VMM's end.
    pub fn shutdown(mut self, kill: bool, limit: Duration) -> Result<(), ClientError> {
        self.ask_done(Request::Shutdown { kill }, limit)
    }

    fn ask_done(&mut self, request: Request, limit: Duration) -> Result<(), ClientError> {
        let Reply::Done = self.ask_within(request, Some(limit))? else {
            return Err(ClientError::WrongReply { request });
        };
        Ok(())
    }

    fn ask(&mut self, request: Request) -> Result<Reply, ClientError> {
        self.ask_within(request, Some(self.limit))
    }

    fn ask_within(&mut self, request: Request, limit: Option<Duration>) -> Result<Reply, ClientError> {
        self.last_id += 1;
        let id = self.last_id;
        let bytes = frame::encode(&RequestFrame { id, request })?;
        self.set_write_timeout()?;
        self.stream.write_all(&bytes).map_err(|source| self.broken("write to", source))?;
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let answer: AnswerFrame = frame::decode(&self.next_frame(deadline, limit.unwrap_or_default())?)?;
            // 0: the shim could not read the number, or refused before there was one.
            if answer.id == id || answer.id == 0 {
                return match answer.answer {
                    Answer::Ok(reply) => Ok(reply),
                    Answer::Error(refusal) => Err(refusal.into()),
                };
            }
        }
    }

    fn next_frame(&mut self, deadline: Option<Instant>, limit: Duration) -> Result<Vec<u8>, ClientError> {
        loop {
            if let Some(json) = self.decoder.next_frame()? {
                return Ok(json);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(ClientError::TimedOut { limit });
            }
            let timeout = left.map(|left| left.max(TIMEOUT_MIN));
            self.stream.set_read_timeout(timeout).map_err(|source| ClientError::Io { verb: "set up", source })?;
            self.read_some()?;
        }
    }

    /// Reads what there is; nothing on a timeout, which the caller's deadline decides about.
    fn read_some(&mut self) -> Result<(), ClientError> {
        let mut bytes = [0; READ_BYTES];
        let room = self.decoder.room().min(READ_BYTES);
        match self.stream.read(&mut bytes[..room]) {
            Ok(0) => Err(ClientError::Closed),
            Ok(count) => {
                self.decoder.push(&bytes[..count]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(source) => Err(self.broken("read from", source)),
        }
    }

    fn set_write_timeout(&self) -> Result<(), ClientError> {
        let timeout = Some(self.limit.max(TIMEOUT_MIN));
        self.stream.set_write_timeout(timeout).map_err(|source| ClientError::Io { verb: "set up", source })
    }

    fn broken(&self, verb: &'static str, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed,
            io::ErrorKind::WouldBlock => ClientError::TimedOut { limit: self.limit },
            _ => ClientError::Io { verb, source },
        }
    }
}
