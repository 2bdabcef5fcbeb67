//! Reading what a process writes, into its log.
//!
//! While the process runs its streams are read as they come, for as long as the log has room. After it has ended:
//! - a stream that nobody holds open any more is read to its end, however long a reader takes;
//! - of a stream that others still hold (`sleep 1000 & echo hi`) everything that was written before the end is read, and
//!   then what still comes, until it is silent for 100 ms, or 500 ms have passed. What comes later is lost: nobody waits
//!   for a background process that nobody waits for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout, timeout_at};

use super::log::{Log, Stream};
use crate::limits;

/// A stream of output that has not ended.
#[derive(Debug)]
pub struct Source {
    stream: Stream,
    fd: Arc<AsyncFd<OwnedFd>>,
    /// For what is read next; kept only while there is something to read.
    buffer: Vec<u8>,
}

impl Source {
    /// A stream to be read from a descriptor that does not block.
    pub fn new(stream: Stream, fd: Arc<AsyncFd<OwnedFd>>) -> Self {
        Self { stream, fd, buffer: Vec::new() }
    }

    /// Reads once, when there is something; the number of bytes, 0 at the stream's end.
    fn poll_read(&mut self, log: &Log, context: &mut Context<'_>) -> Poll<usize> {
        let fd = Arc::clone(&self.fd);
        loop {
            let Ok(mut ready) = ready!(fd.poll_read_ready(context)) else { return Poll::Ready(0) };
            match self.read(log) {
                Ok(bytes) => return Poll::Ready(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.buffer = Vec::new();
                    ready.clear_ready();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // EIO is how a terminal says that everybody is gone; nothing else is known to happen.
                Err(_) => return Poll::Ready(0),
            }
        }
    }

    fn read(&mut self, log: &Log) -> io::Result<usize> {
        let most = self.stream.event_bytes_max();
        self.buffer.clear();
        self.buffer.reserve_exact(most);
        let read = rustix::io::read(self.fd.get_ref(), rustix::buffer::spare_capacity(&mut self.buffer))?;
        if read >= limits::CHUNK_SHARED_BYTES {
            log.push_shared(self.stream, Bytes::from(std::mem::take(&mut self.buffer)));
        } else {
            log.push(self.stream, &self.buffer);
        }
        Ok(read)
    }

    /// What was written and not read yet, in bytes.
    fn owed(&self) -> u64 {
        rustix::io::ioctl_fionread(self.fd.get_ref()).unwrap_or(0)
    }

    /// Nobody holds the other end: what is there is all there will be.
    fn is_abandoned(&self) -> bool {
        let mut poll = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|_| poll[0].revents().contains(PollFlags::HUP))
    }
}

/// All streams of a process that have not ended.
#[derive(Debug)]
pub struct Sources {
    sources: Vec<Source>,
    /// Where to look first: so that one busy stream does not hide the other.
    first: usize,
}

impl Sources {
    /// These streams.
    pub fn new(sources: Vec<Source>) -> Self {
        Self { sources, first: 0 }
    }

    /// Reads everything until the last stream has ended. Safe to drop half-way: nothing is lost.
    pub async fn pump(&mut self, log: &Log) {
        while !self.sources.is_empty() {
            log.room().await;
            std::future::poll_fn(|context| self.poll_any(log, context)).await;
        }
    }

    /// Reads what is left after the process has ended. See the module's text.
    pub async fn drain(mut self, log: &Log) {
        let (abandoned, mut held): (Vec<_>, Vec<_>) = self.sources.into_iter().partition(Source::is_abandoned);
        for source in &mut held {
            Self::read_bytes(source, source.owed(), log).await;
        }
        self.sources = abandoned;
        self.first = 0;
        self.pump(log).await;
        self.sources = held;
        let until = Instant::now() + limits::DRAIN_TIME_MAX;
        // An elapsed time is not an error but the end of our patience.
        timeout_at(until, self.listen(log)).await.ok();
    }

    /// Reads until silence.
    async fn listen(&mut self, log: &Log) {
        while !self.sources.is_empty() {
            log.room().await;
            let any = std::future::poll_fn(|context| self.poll_any(log, context));
            if timeout(limits::DRAIN_SILENCE, any).await.is_err() {
                return;
            }
        }
    }

    /// Reads at least this many bytes, which are there.
    async fn read_bytes(source: &mut Source, mut owed: u64, log: &Log) {
        while owed > 0 {
            log.room().await;
            let read = std::future::poll_fn(|context| source.poll_read(log, context)).await;
            owed = if read == 0 { 0 } else { owed.saturating_sub(read as u64) };
        }
    }

    /// Reads once from whichever stream has something; one that ended is removed.
    fn poll_any(&mut self, log: &Log, context: &mut Context<'_>) -> Poll<()> {
        let count = self.sources.len();
        for step in 0..count {
            let index = (self.first + step) % count;
            let Poll::Ready(read) = self.sources[index].poll_read(log, context) else { continue };
            self.first = index + 1;
            if read == 0 {
                self.sources.remove(index);
            }
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant as Clock;

    use super::*;
    use crate::envd::process::log::{End, Item, Pool, Reader};
    use crate::envd::watch::watch;
    use rustix::fs::OFlags;
    use rustix::pipe::PipeFlags;

    /// A stream, and the end that somebody still holds.
    fn stream() -> (Sources, OwnedFd) {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK).unwrap();
        let read = Arc::new(watch(read, tokio::io::Interest::READABLE).unwrap());
        (Sources::new(vec![Source::new(Stream::Stdout, read)]), write)
    }

    fn log() -> (Arc<Log>, Reader) {
        let log = Pool::new(limits::RINGS_BYTES_MAX).log();
        let reader = log.attach(Some(0)).unwrap();
        (log, reader)
    }

    async fn text(log: &Log, mut reader: Reader) -> String {
        log.finish(End::Exited(0));
        let mut bytes = Vec::new();
        while let Item::Output(piece) = reader.next().await {
            bytes.extend_from_slice(&piece.bytes);
        }
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn somebody_who_writes_a_moment_later_is_heard() {
        let ((sources, write), (log, reader)) = (stream(), log());
        rustix::io::write(&write, b"before ").unwrap();
        let late = async { rustix::io::write(&write, b"late").unwrap() };
        tokio::join!(sources.drain(&log), late);
        assert_eq!(text(&log, reader).await, "before late");
    }

    #[tokio::test]
    async fn a_stream_held_in_silence_or_flooded_ends_soon() {
        let ((sources, write), (log, reader)) = (stream(), log());
        let begun = Clock::now();
        sources.drain(&log).await;
        assert!(begun.elapsed() >= limits::DRAIN_SILENCE);
        assert_eq!(text(&log, reader).await, "");
        drop(write);

        let ((sources, write), (log, _)) = (stream(), self::log());
        rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK).unwrap();
        let begun = Clock::now();
        let flood = async {
            loop {
                // A full pipe is the point.
                rustix::io::write(&write, &[0; 4096]).ok();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = sources.drain(&log) => {}
            () = flood => {}
        }
        assert!(begun.elapsed() >= limits::DRAIN_TIME_MAX);
    }

    #[tokio::test]
    async fn an_abandoned_stream_is_read_to_its_end_at_once() {
        let ((sources, write), (log, reader)) = (stream(), log());
        rustix::io::write(&write, b"all of it").unwrap();
        drop(write);
        let begun = Clock::now();
        sources.drain(&log).await;
        assert!(begun.elapsed() < limits::DRAIN_SILENCE, "{:?}", begun.elapsed());
        assert_eq!(text(&log, reader).await, "all of it");
    }
}
