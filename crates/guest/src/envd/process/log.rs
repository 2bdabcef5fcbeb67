//! A process's output log: what it wrote, for whoever reads now and for whoever comes back.
//!
//! ```text
//!            dropped        kept (at most 1 MiB)
//!   0 ─────────────────┬──────────────────────────────┬─► position, all streams counted together
//!                   start        ▲ reader             end
//!                                └── unread: at most 256 KiB, then the process waits
//! ```
//! - Bytes are kept in the order in which they were read; the end of the process comes after the last byte.
//! - What an attached reader has not taken is never dropped: the writer waits ([`Log::room`]). A reader that makes it
//!   wait for 30 seconds is detached.
//! - With nobody attached the writer never waits; the oldest bytes go. A reader that asks for them is told how many.
//! - All logs together keep 16 MiB ([`Pool`]); beyond that the log with the most to spare gives.
//!
//! Small pieces are collected into one allocation, large ones are shared with the readers as they came.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::limits;

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, a pipe.
    Stdout,
    /// Standard error, a pipe.
    Stderr,
    /// Both, a terminal.
    Pty,
}

impl Stream {
    /// Bytes of one piece at most.
    pub fn event_bytes_max(self) -> usize {
        match self {
            Self::Stdout | Self::Stderr => limits::PIPE_EVENT_BYTES_MAX,
            Self::Pty => limits::PTY_EVENT_BYTES_MAX,
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// Somebody else reaped it: nobody knows.
    Unknown,
}

/// Output as a reader gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Position of the first byte in the log.
    pub offset: u64,
    /// Where it came from.
    pub stream: Stream,
    /// The bytes, never none.
    pub bytes: Bytes,
}

/// What a reader gets, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Output.
    Output(Piece),
    /// This many bytes are gone.
    Gap(u64),
    /// The process ended and all its output was given.
    End(End),
    /// The reader took nothing for too long; it can come back with this position.
    Detached(u64),
}

/// Too many readers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{} clients are attached to this process already; detach one", limits::READERS_MAX)]
pub struct TooManyReaders;

/// Bytes of one stream, contiguous in the log.
#[derive(Debug)]
struct Chunk {
    offset: u64,
    stream: Stream,
    bytes: Store,
}

/// Collected bytes may still grow; shared ones are as they were read.
#[derive(Debug)]
enum Store {
    Collected(Vec<u8>),
    Shared(Bytes),
}

impl Chunk {
    fn len(&self) -> usize {
        match &self.bytes {
            Store::Collected(bytes) => bytes.len(),
            Store::Shared(bytes) => bytes.len(),
        }
    }

    fn end(&self) -> u64 {
        self.offset + self.len() as u64
    }

    fn cost(&self) -> usize {
        self.len() + limits::CHUNK_OVERHEAD_BYTES
    }

    fn from(&self, position: u64) -> Bytes {
        let skip = usize::try_from(position.saturating_sub(self.offset)).unwrap_or(usize::MAX).min(self.len());
        match &self.bytes {
            Store::Collected(bytes) => Bytes::copy_from_slice(&bytes[skip..]),
            Store::Shared(bytes) => bytes.slice(skip..),
        }
    }
}

#[derive(Debug)]
struct Seat {
    id: u64,
    position: u64,
    /// When it last took something, or last had nothing to take.
    progress: Instant,
}

#[derive(Debug, Default)]
struct Kept {
    chunks: VecDeque<Chunk>,
    end: u64,
    cost: usize,
    ended: Option<End>,
    seats: Vec<Seat>,
    seats_made: u64,
}

impl Kept {
    fn start(&self) -> u64 {
        self.chunks.front().map_or(self.end, |chunk| chunk.offset)
    }

    /// The first position that some reader still needs.
    fn needed(&self) -> u64 {
        self.seats.iter().map(|seat| seat.position).min().unwrap_or(self.end)
    }

    fn unread(&self) -> u64 {
        self.end - self.needed()
    }

    fn seat(&mut self, id: u64) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|seat| seat.id == id)
    }

    /// Moves the end; who had nothing to take until now starts to count as slow now.
    fn extend(&mut self, bytes: usize) -> u64 {
        let (offset, now) = (self.end, Instant::now());
        self.seats.iter_mut().filter(|seat| seat.position == offset).for_each(|seat| seat.progress = now);
        self.end += bytes as u64;
        offset
    }

    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let room = stream.event_bytes_max();
        let offset = self.extend(bytes.len());
        if let Some(Chunk { stream: last, bytes: Store::Collected(collected), .. }) = self.chunks.back_mut()
            && *last == stream
            && collected.len() + bytes.len() <= room
        {
            collected.extend_from_slice(bytes);
            self.cost += bytes.len();
            return;
        }
        self.add(Chunk { offset, stream, bytes: Store::Collected(bytes.to_vec()) });
    }

    fn push_shared(&mut self, stream: Stream, bytes: Bytes) {
        let offset = self.extend(bytes.len());
        self.add(Chunk { offset, stream, bytes: Store::Shared(bytes) });
    }

    fn add(&mut self, chunk: Chunk) {
        self.cost += chunk.cost();
        self.chunks.push_back(chunk);
    }

    /// Drops the oldest chunks nobody needs until what is kept costs at most `cost`.
    fn trim(&mut self, cost: usize) {
        let needed = self.needed();
        while self.cost > cost && self.chunks.front().is_some_and(|chunk| chunk.end() <= needed) {
            if let Some(chunk) = self.chunks.pop_front() {
                self.cost -= chunk.cost();
            }
        }
    }

    /// What the oldest chunks that nobody needs cost.
    fn spare(&self) -> usize {
        let needed = self.needed();
        self.chunks.iter().take_while(|chunk| chunk.end() <= needed).map(Chunk::cost).sum()
    }

    /// What a reader at `position` gets next, and where it is then.
    fn next(&self, position: u64) -> Option<(Item, u64)> {
        if position < self.start() {
            return Some((Item::Gap(self.start() - position), self.start()));
        }
        if position == self.end {
            return self.ended.map(|end| (Item::End(end), position));
        }
        let at = self.chunks.partition_point(|chunk| chunk.end() <= position);
        let chunk = self.chunks.get(at)?;
        let piece = Piece { offset: position, stream: chunk.stream, bytes: chunk.from(position) };
        Some((Item::Output(piece), chunk.end()))
    }
}

/// What all logs share: how much they may keep together.
#[derive(Debug)]
pub struct Pool {
    used: AtomicUsize,
    limit: usize,
    logs: Mutex<Vec<Weak<Log>>>,
}

impl Pool {
    /// A pool for `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit, logs: Mutex::new(Vec::new()) })
    }

    /// A new log that counts here.
    pub fn log(self: &Arc<Self>) -> Arc<Log> {
        let log = Arc::new(Log {
            kept: Mutex::new(Kept::default()),
            news: Notify::new(),
            room: Notify::new(),
            pool: Arc::clone(self),
        });
        let mut logs = lock(&self.logs);
        logs.retain(|log| log.strong_count() > 0);
        logs.push(Arc::downgrade(&log));
        log
    }

    /// What is kept now, in bytes.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.used() > self.limit
    }

    fn account(&self, before: usize, after: usize) {
        // Wraps when it falls, which is what adding modulo 2^64 is for.
        self.used.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Lets the logs with the most to spare give until the limit holds, or nobody has any.
    fn reclaim(&self) {
        while self.is_full() {
            let logs: Vec<Arc<Log>> = lock(&self.logs).iter().filter_map(Weak::upgrade).collect();
            let Some((spare, log)) = logs.iter().map(|log| (log.lock().spare(), log)).max_by_key(|(spare, _)| *spare)
            else {
                return;
            };
            if spare == 0 {
                return;
            }
            // Half at a time: so that whoever floods cannot take all from those who keep little.
            log.change(|kept| kept.trim(kept.cost - spare.div_ceil(2)));
        }
    }
}

/// One process's output. See the module's text.
#[derive(Debug)]
pub struct Log {
    kept: Mutex<Kept>,
    /// Something was added, or a reader was detached.
    news: Notify,
    /// A reader took something, or went.
    room: Notify,
    pool: Arc<Pool>,
}

impl Log {
    /// Adds bytes that were copied out of a small buffer. Never waits: see [`Log::room`].
    pub fn push(&self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.change(|kept| {
            kept.push(stream, bytes);
            kept.trim(limits::RING_BYTES_MAX);
        });
        self.announce();
    }

    /// Adds bytes that readers may share.
    pub fn push_shared(&self, stream: Stream, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.change(|kept| {
            kept.push_shared(stream, bytes);
            kept.trim(limits::RING_BYTES_MAX);
        });
        self.announce();
    }

    /// Says how the process ended; nothing may be added afterwards.
    pub fn finish(&self, end: End) {
        self.change(|kept| kept.ended = Some(end));
        self.news.notify_waiters();
    }

    /// Attaches a reader at a position, or at the end. A position beyond the end is the end.
    pub fn attach(self: &Arc<Self>, position: Option<u64>) -> Result<Reader, TooManyReaders> {
        let mut kept = self.lock();
        if kept.seats.len() >= limits::READERS_MAX {
            return Err(TooManyReaders);
        }
        let id = kept.seats_made;
        kept.seats_made += 1;
        let position = position.unwrap_or(u64::MAX).min(kept.end);
        let lost = kept.start().saturating_sub(position);
        let seat = Seat { id, position: position + lost, progress: Instant::now() };
        kept.seats.push(seat);
        drop(kept);
        Ok(Reader { log: Arc::clone(self), id, gap: (lost > 0).then_some(lost), position: position + lost })
    }

    /// Waits until there is room for more output: at once when nobody is attached. Detaches readers that stall.
    pub async fn room(&self) {
        loop {
            let mut changed = std::pin::pin!(self.room.notified());
            changed.as_mut().enable();
            let Some(patience) = self.patience() else { return };
            // An elapsed patience is not an error but the moment to look again.
            if tokio::time::timeout_at(patience, changed).await.is_err() {
                self.detach_stalled();
            }
        }
    }

    /// Until when the slowest readers may still stall; none when there is room.
    fn patience(&self) -> Option<Instant> {
        let kept = self.lock();
        let most = if self.pool.is_full() { limits::UNREAD_BYTES_LEAST } else { limits::UNREAD_BYTES_MAX };
        if kept.unread() < most as u64 {
            return None;
        }
        let needed = kept.needed();
        let slowest = kept.seats.iter().filter(|seat| seat.position == needed);
        slowest.map(|seat| seat.progress + limits::STALL_TIME_MAX).min()
    }

    /// Detaches every reader that has something to take and has not for too long.
    pub fn detach_stalled(&self) {
        let now = Instant::now();
        self.change(|kept| {
            let end = kept.end;
            kept.seats.retain(|seat| seat.position == end || seat.progress + limits::STALL_TIME_MAX > now);
        });
        self.announce();
        self.room.notify_waiters();
    }

    fn take(&self, id: u64, position: u64) -> Option<(Item, u64)> {
        let mut kept = self.lock();
        if kept.seat(id).is_none() {
            return Some((Item::Detached(position), position));
        }
        let next = kept.next(position);
        if let Some(seat) = kept.seat(id) {
            seat.progress = Instant::now();
            seat.position = next.as_ref().map_or(position, |(_, after)| *after);
        }
        drop(kept);
        self.room.notify_waiters();
        next
    }

    fn leave(&self, id: u64) {
        self.change(|kept| kept.seats.retain(|seat| seat.id != id));
        self.room.notify_waiters();
    }

    fn announce(&self) {
        self.news.notify_waiters();
        if self.pool.is_full() {
            self.pool.reclaim();
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        let mut kept = self.lock();
        let before = kept.cost;
        let answer = change(&mut kept);
        self.pool.account(before, kept.cost);
        answer
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let cost = lock(&self.kept).cost;
        self.pool.account(cost, 0);
    }
}

/// A panic while a lock is held leaves data that is whole: every change is made of single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody who reads a log. Dropping it detaches.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    id: u64,
    gap: Option<u64>,
    position: u64,
}

impl Reader {
    /// What comes next; waits for it. After an end or a detachment the same again. Safe to drop half-way.
    pub async fn next(&mut self) -> Item {
        if let Some(bytes) = self.gap.take() {
            return Item::Gap(bytes);
        }
        loop {
            let log = Arc::clone(&self.log);
            let mut news = std::pin::pin!(log.news.notified());
            news.as_mut().enable();
            if let Some((item, position)) = log.take(self.id, self.position) {
                self.position = position;
                return item;
            }
            news.await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.log.leave(self.id);
    }
}

#[cfg(test)]
mod tests;
