//! The clients of the socket: bytes in, requests out; answers in, bytes out; all of it bounded.
//!
//! A client that is not read (or that never completes a frame) is dropped after a while; one that asks faster than it
//! reads is not listened to until it has read. Neither keeps the others waiting, because nothing here blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::PollFlags;
use wrenn_proto::shim::{
    Answer, AnswerFrame, Decoder, ErrorCode, ExitRecord, FRAME_MAX, FrameError, NoRequest, PROTOCOL_MAX, PROTOCOL_MIN,
    Refusal, Reply, Request, RequestFrame, frame,
};

use crate::limits::{ANSWERS_HIGH_BYTES, CLIENT_READ_BYTES, CLIENT_STALL, PENDING_MAX};
use crate::service::{Pending, Service, Verdict};

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    /// Bytes not yet sent.
    answers: Vec<u8>,
    /// Requests that are answered when the VMM has ended.
    pending: Vec<(u64, Pending)>,
    greeted: bool,
    /// No more requests; closed as soon as the answers are sent.
    closing: bool,
    /// Broken or hung up; nothing can be sent any more.
    gone: bool,
    /// Last time the client did its part.
    moved_at: Instant,
}

/// What a client's requests mean for the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Wish {
    /// To go on.
    Stay,
    /// To leave.
    Leave,
}

impl Wish {
    /// One who wishes to leave decides.
    pub fn or(self, other: Self) -> Self {
        if self == Self::Leave { self } else { other }
    }
}

impl Client {
    /// A new connection; the stream must be non-blocking.
    pub fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            decoder: Decoder::new(),
            answers: Vec::new(),
            pending: Vec::new(),
            greeted: false,
            closing: false,
            gone: false,
            moved_at: now,
        }
    }

    /// Tells one client too many so. It is not kept; if it cannot be told without waiting, it sees the end only.
    pub fn turn_away(mut stream: UnixStream) {
        let answer = refusal(0, ErrorCode::Limit, "too many clients".to_owned());
        let bytes = frame::encode(&answer).unwrap_or_default();
        stream.write_all(&bytes).ok();
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// What to wait for on the socket.
    pub fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.listens());
        flags.set(PollFlags::OUT, !self.answers.is_empty());
        flags
    }

    /// Whether it is over with this client.
    pub fn is_over(&self, now: Instant) -> bool {
        let stalled = self.stalls_at().is_some_and(|at| now >= at);
        self.gone || stalled || (self.closing && self.answers.is_empty())
    }

    /// When it will be dropped if it does nothing; `None` if it owes nothing.
    pub fn stalls_at(&self) -> Option<Instant> {
        let owes = !self.answers.is_empty() || self.decoder.is_inside_frame();
        owes.then(|| self.moved_at + CLIENT_STALL)
    }

    /// Whether every answer was sent.
    pub fn is_flushed(&self) -> bool {
        self.gone || self.answers.is_empty()
    }

    /// Reads, answers and writes, as far as that goes without waiting.
    pub fn serve(&mut self, ready: PollFlags, service: &mut Service, now: Instant) -> Wish {
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && self.listens() {
            self.receive(now);
        } else if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.gone = true;
        }
        self.send(now);
        let mut wish = Wish::Stay;
        // Again as long as sending made room: requests may be left that no further byte would remind us of.
        while let Some(each) = self.answer_some(service, now) {
            wish = wish.or(each);
            self.send(now);
        }
        wish
    }

    /// Answers everything that waited for the VMM's end.
    pub fn tell_end(&mut self, record: &ExitRecord, now: Instant) -> Wish {
        let mut wish = Wish::Stay;
        for (id, pending) in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Wait => self.push(AnswerFrame { id, answer: Answer::Ok(Reply::Ended(record.clone())) }, now),
                Pending::Shutdown => {
                    self.push(AnswerFrame { id, answer: Answer::Ok(Reply::Done) }, now);
                    wish = Wish::Leave;
                }
            }
        }
        self.send(now);
        wish
    }

    fn listens(&self) -> bool {
        !self.gone && !self.closing && self.answers.len() < ANSWERS_HIGH_BYTES && self.decoder.room() > 0
    }

    fn receive(&mut self, now: Instant) {
        let mut bytes = [0; CLIENT_READ_BYTES];
        let room = self.decoder.room().min(CLIENT_READ_BYTES);
        match self.stream.read(&mut bytes[..room]) {
            Ok(0) => self.gone = true,
            Ok(count) => {
                if !self.decoder.is_inside_frame() {
                    self.moved_at = now;
                }
                self.decoder.push(&bytes[..count]);
            }
            Err(error) if is_temporary(&error) => {}
            Err(_) => self.gone = true,
        }
    }

    /// Answers the requests that are here, until too many answers wait; `None` if there was nothing to do.
    fn answer_some(&mut self, service: &mut Service, now: Instant) -> Option<Wish> {
        let mut wish = None;
        while !self.gone && !self.closing && self.answers.len() < ANSWERS_HIGH_BYTES {
            let each = match self.decoder.next_frame() {
                Ok(Some(json)) => self.answer(&json, service, now),
                Ok(None) => break,
                Err(error) => self.refuse_stream(&error, now),
            };
            self.moved_at = now;
            wish = Some(wish.unwrap_or(Wish::Stay).or(each));
        }
        wish
    }

    fn answer(&mut self, json: &[u8], service: &mut Service, now: Instant) -> Wish {
        let RequestFrame { id, request } = match RequestFrame::parse(json) {
            Ok(frame) => frame,
            Err(NoRequest { id, refusal }) => {
                self.push(AnswerFrame { id, answer: Answer::Error(refusal) }, now);
                return Wish::Stay;
            }
        };
        if !self.greeted {
            self.greet(id, request, service, now);
            return Wish::Stay;
        }
        match service.handle(request, now) {
            Verdict::Reply(reply) => self.push(AnswerFrame { id, answer: Answer::Ok(reply) }, now),
            Verdict::Refuse(code, message) => self.push(refusal(id, code, message), now),
            Verdict::Later(_) if self.pending.len() >= PENDING_MAX => {
                self.push(refusal(id, ErrorCode::Limit, "too many pending requests".to_owned()), now);
            }
            Verdict::Later(pending) => self.pending.push((id, pending)),
            Verdict::Leave => {
                self.push(AnswerFrame { id, answer: Answer::Ok(Reply::Done) }, now);
                return Wish::Leave;
            }
        }
        Wish::Stay
    }

    fn greet(&mut self, id: u64, request: Request, service: &Service, now: Instant) {
        let answer = match request {
            Request::Hello { min, max } => match agree(min, max) {
                Some(version) => {
                    self.greeted = true;
                    let sandbox = service.sandbox.clone();
                    AnswerFrame { id, answer: Answer::Ok(Reply::Hello { version, sandbox, pid: std::process::id() }) }
                }
                None => refusal(
                    id,
                    ErrorCode::VersionMismatch,
                    format!("this shim speaks versions {PROTOCOL_MIN} to {PROTOCOL_MAX}, the client {min} to {max}"),
                ),
            },
            Request::Status
            | Request::ConsoleTail { .. }
            | Request::VmmLog
            | Request::Signal { .. }
            | Request::Stop { .. }
            | Request::Wait
            | Request::Shutdown { .. } => {
                refusal(id, ErrorCode::HelloExpected, "the first request must be hello".to_owned())
            }
        };
        self.closing = !self.greeted;
        self.push(answer, now);
    }

    /// The stream cannot be followed any further.
    fn refuse_stream(&mut self, error: &FrameError, now: Instant) -> Wish {
        self.push(refusal(0, ErrorCode::FrameTooLong, error.to_string()), now);
        self.closing = true;
        Wish::Stay
    }

    fn push(&mut self, answer: AnswerFrame, now: Instant) {
        if self.answers.is_empty() {
            self.moved_at = now;
        }
        match frame::encode(&answer) {
            Ok(bytes) => self.answers.extend_from_slice(&bytes),
            // Every answer is bounded to fit, so this is a bug; the client must not wait for ever because of it.
            Err(_) => self.gone = true,
        }
    }

    fn send(&mut self, now: Instant) {
        while !self.gone && !self.answers.is_empty() {
            match self.stream.write(&self.answers) {
                Ok(0) => self.gone = true,
                Ok(count) => {
                    self.answers.drain(..count);
                    self.moved_at = now;
                }
                Err(error) if is_temporary(&error) => return,
                Err(_) => self.gone = true,
            }
        }
        if self.answers.capacity() > CLIENT_READ_BYTES && self.answers.is_empty() {
            self.answers = Vec::new();
        }
    }
}

const _: () = assert!(ANSWERS_HIGH_BYTES >= FRAME_MAX, "the longest answer can be queued");

/// The highest version both speak.
fn agree(min: u32, max: u32) -> Option<u32> {
    let version = max.min(PROTOCOL_MAX);
    (version >= min.max(PROTOCOL_MIN)).then_some(version)
}

fn refusal(id: u64, code: ErrorCode, message: String) -> AnswerFrame {
    AnswerFrame { id, answer: Answer::Error(Refusal { code, message }) }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
