//! Connections that wait for their next request. A dead one is found out when it is taken; one that nobody takes is closed when
//! its time is over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, sleep_until, timeout};

use super::head::Protocol;
use super::limits;
use super::line::Line;
use super::places::Place;
use super::target::Target;

/// All of them.
#[derive(Default)]
pub struct Pool(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// The last is the freshest. No list is empty.
    lines: HashMap<(Target, Protocol), Vec<Idle>>,
    count: usize,
    /// Whether somebody looks after them.
    swept: bool,
}

struct Idle {
    line: Line,
    until: Instant,
}

impl Pool {
    /// The freshest connection to the port that can be used, if there is one. Those of another life are closed.
    pub fn take(&self, target: &Target, protocol: Protocol, life: u64) -> Option<Line> {
        let mut waiting = self.lock();
        let key = (target.clone(), protocol);
        let mut idle = waiting.lines.remove(&key)?;
        waiting.count -= idle.len();
        let now = Instant::now();
        idle.retain(|idle| idle.line.life == life && idle.line.is_ready() && now < idle.until);
        let taken = idle.pop().map(|idle| idle.line);
        waiting.put(key, idle);
        taken
    }

    /// Takes a connection whose answer is complete, once its request is, too, and unless the guest closes it. Until then it keeps
    /// its place.
    pub fn give(pool: &Arc<Self>, target: Target, mut line: Line, place: Place) {
        if line.is_ready() {
            return Self::keep(pool, target, line);
        }
        // Bodies are dropped wherever they were read; without a runtime the connection is just closed.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let pool = Arc::clone(pool);
        runtime.spawn(async move {
            if timeout(limits::SETTLE_LIMIT, line.settle()).await == Ok(true) {
                Self::keep(&pool, target, line);
            }
            drop(place);
        });
    }

    fn keep(pool: &Arc<Self>, target: Target, line: Line) {
        let mut waiting = pool.lock();
        let key = (target, line.protocol());
        let here = waiting.lines.get(&key).map_or(0, Vec::len);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if here >= limits::IDLE_PER_TARGET_MAX || waiting.count >= limits::IDLE_MAX {
            return;
        }
        waiting.put(key, vec![Idle { line, until: Instant::now() + limits::IDLE_TIME_MAX }]);
        if !waiting.swept {
            waiting.swept = true;
            runtime.spawn(sweep(Arc::clone(pool)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.lock().count
    }
}

impl Waiting {
    fn put(&mut self, key: (Target, Protocol), idle: Vec<Idle>) {
        if !idle.is_empty() {
            self.count += idle.len();
            self.lines.entry(key).or_default().extend(idle);
        }
    }

    /// Closes those whose time is over, or that are dead; when the next one's is.
    fn sweep(&mut self, now: Instant) -> Option<Instant> {
        self.lines.retain(|_key, idle| {
            idle.retain(|idle| now < idle.until && idle.line.is_ready());
            !idle.is_empty()
        });
        self.count = self.lines.values().map(Vec::len).sum();
        self.lines.values().flatten().map(|idle| idle.until).min()
    }
}

/// Looks after them until there are none.
async fn sweep(pool: Arc<Pool>) {
    loop {
        let next = {
            let mut waiting = pool.lock();
            let next = waiting.sweep(Instant::now());
            waiting.swept = next.is_some();
            next
        };
        let Some(next) = next else { return };
        sleep_until(next).await;
    }
}
