//! The two pipes from the VMM: the serial console, kept in a ring file, and stderr, of which the last bytes stay in memory.
//!
//! Both are drained at a limited rate. Who prints faster fills the pipe and waits: the flood costs the guest its own
//! time, not the shim's CPU.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use wrenn_proto::shim::ring::{self, RingWriter};
use wrenn_proto::shim::{Tail, VMM_LOG_BYTES};

use crate::complain;
use crate::limits::{LAST_WORDS_BYTES, PIPE_READ_BYTES, PIPE_REST};
use crate::throttle::Throttle;

/// Where drained bytes go. They cannot be refused: the VMM must be able to go on.
pub trait Sink {
    /// Takes the bytes.
    fn put(&mut self, bytes: &[u8]);
}

/// A pipe that is drained into a sink.
#[derive(Debug)]
pub struct Drain<S> {
    /// `None` once every writer has closed it.
    pipe: Option<PipeReader>,
    throttle: Throttle,
    rest_until: Instant,
    throttled: u64,
    /// Where the bytes go.
    pub sink: S,
}

impl<S: Sink> Drain<S> {
    /// The pipe must be non-blocking.
    pub fn new(pipe: PipeReader, throttle: Throttle, sink: S) -> Self {
        Self { pipe: Some(pipe), throttle, rest_until: Instant::now(), throttled: 0, sink }
    }

    /// The pipe to wait for, if it may be read now.
    pub fn wanted(&mut self, now: Instant) -> Option<BorrowedFd<'_>> {
        let may = now >= self.rest_until && self.throttle.available(now) > 0;
        self.pipe.as_ref().filter(|_| may).map(AsFd::as_fd)
    }

    /// When it may be read (again); `None` if never.
    pub fn wanted_at(&self) -> Option<Instant> {
        self.pipe.as_ref().map(|_| self.rest_until.max(self.throttle.available_at()))
    }

    /// How often it had to wait because the VMM wrote faster than allowed.
    pub fn throttled(&self) -> u64 {
        self.throttled
    }

    /// Reads once, as much as is there and allowed.
    pub fn read(&mut self, buffer: &mut [u8; PIPE_READ_BYTES], now: Instant) {
        let most = self.throttle.available(now).min(PIPE_READ_BYTES as u64) as usize;
        if most == 0 {
            return;
        }
        let count = self.read_most(&mut buffer[..most]);
        self.throttle.take(count as u64);
        if self.throttle.available(now) == 0 {
            self.throttled += 1;
        }
        if count < most {
            self.rest_until = now + PIPE_REST;
        }
    }

    /// Reads what is left after the VMM's end, without regard to the rate, and closes the pipe.
    pub fn finish(&mut self, buffer: &mut [u8; PIPE_READ_BYTES]) {
        let mut left = LAST_WORDS_BYTES;
        while left > 0 {
            let most = left.min(PIPE_READ_BYTES);
            match self.read_most(&mut buffer[..most]) {
                0 => break,
                count => left -= count,
            }
        }
        self.pipe = None;
    }

    /// Answers 0 if there is nothing (now or any more).
    fn read_most(&mut self, buffer: &mut [u8]) -> usize {
        let Some(pipe) = &mut self.pipe else { return 0 };
        match pipe.read(buffer) {
            Ok(0) => self.pipe = None,
            Ok(count) => {
                self.sink.put(&buffer[..count]);
                return count;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // Cannot happen to a pipe; if it does, going on without it beats spinning.
            Err(_) => self.pipe = None,
        }
        0
    }
}

/// The console's ring file.
#[derive(Debug)]
pub struct Ring {
    writer: RingWriter,
    /// Bytes that could not be kept (a full disk); they count as printed.
    lost: u64,
}

impl Ring {
    /// Writes to this ring.
    pub fn new(writer: RingWriter) -> Self {
        Self { writer, lost: 0 }
    }

    /// Bytes printed so far.
    pub fn total(&self) -> u64 {
        self.writer.position() + self.lost
    }

    /// The last bytes that were kept.
    pub fn tail(&self, most: u64) -> Result<Tail, ring::RingError> {
        ring::read_tail(self.writer.path(), most)
    }
}

impl Sink for Ring {
    fn put(&mut self, bytes: &[u8]) {
        if let Err(error) = self.writer.write(bytes) {
            if self.lost == 0 {
                complain(&crate::with_causes(&error));
            }
            self.lost += bytes.len() as u64;
        }
    }
}

/// The last bytes of stderr.
#[derive(Debug, Default)]
pub struct Log {
    last: VecDeque<u8>,
    total: u64,
}

impl Log {
    /// Bytes written so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What is kept.
    pub fn tail(&self) -> Tail {
        Tail { offset: self.total - self.last.len() as u64, data: self.last.iter().copied().collect() }
    }
}

impl Sink for Log {
    fn put(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(VMM_LOG_BYTES)..];
        let surplus = (self.last.len() + kept.len()).saturating_sub(VMM_LOG_BYTES);
        self.last.drain(..surplus);
        self.last.extend(kept);
        self.total += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_last_bytes() {
        let mut log = Log::default();
        let mut all = Vec::new();
        for length in [0, 1, 5000, 12_000, 3, 16_384, 40_000, 7] {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            log.put(&bytes);
            all.extend_from_slice(&bytes);
            let kept = all.len().min(VMM_LOG_BYTES);
            assert_eq!(log.tail(), Tail { offset: (all.len() - kept) as u64, data: all[all.len() - kept..].to_vec() });
        }
    }
}
