//! How many sandboxes of which kind wait for somebody who wants them.
//!
//! What was wanted the last times is what is kept ready: of as many wishes as may wait, one for each. So a kind that everybody
//! wants has them all, and one that nobody wants any more gives its place up.
//!
//! ```text
//!   create ─► take(kind): one that waits, or none ─► created ─► wish(kind) ─┐
//!                                                                           ▼
//!                              filler: gives up what nobody wishes, makes what lacks, one at a time
//! ```
//!
//! Those that wait have memory set aside, as if they ran. Whoever needs it and finds none has it: they all give up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::seats::{Seat, Seats};
use crate::host::Host;
use crate::sandbox::Standby;
use crate::snapshot::Key;

/// The sandboxes of one agent that wait.
pub(super) struct Reserve {
    supply: Arc<Supply>,
    stop: watch::Sender<bool>,
    filler: Mutex<Option<JoinHandle<()>>>,
}

struct Supply {
    host: Arc<Host>,
    seats: Arc<Seats>,
    shelf: Mutex<Shelf<Waiting>>,
    wished: Notify,
    /// Held while one is made, until it waits or is gone.
    making: tokio::sync::Mutex<()>,
}

/// A sandbox that waits, and the memory that is set aside for it.
type Waiting = (Standby, Seat);

impl Reserve {
    /// One in which `size` may wait.
    pub(super) fn new(host: &Arc<Host>, seats: &Arc<Seats>, size: usize) -> Self {
        let supply = Arc::new(Supply {
            host: Arc::clone(host),
            seats: Arc::clone(seats),
            shelf: Mutex::new(Shelf::new(size)),
            wished: Notify::new(),
            making: tokio::sync::Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let filler = tokio::spawn(fill(Arc::clone(&supply), stopped));
        Self { supply, stop, filler: Mutex::new(Some(filler)) }
    }

    /// One of this kind, and the memory that was set aside for it.
    pub(super) async fn take(&self, key: &Key) -> Option<(Standby, Seat)> {
        loop {
            let (mut standby, seat) = self.supply.shelf().take(key)?;
            if standby.waits() {
                tracing::info!(sandbox = %standby.id(), "what was made ahead is taken");
                return Some((standby, seat));
            }
            tracing::warn!(sandbox = %standby.id(), "a VM that waited for somebody to want it has ended");
            destroy(vec![(standby, seat)]).await;
        }
    }

    /// Somebody has just got one of this kind: others may want one too.
    pub(super) fn wish(&self, key: Key) {
        self.supply.shelf().wish(key);
        self.supply.wished.notify_one();
    }

    /// None of these waits any more, and none is made before somebody has wanted one again.
    pub(super) async fn give_up(&self, which: impl Fn(&Key) -> bool) {
        self.supply.shelf().forget(&which);
        let _none_is_made = self.supply.making.lock().await;
        let given_up = self.supply.shelf().surplus();
        destroy(given_up).await;
    }

    /// Nothing waits any more, and nothing is made.
    pub(super) async fn close(&self) {
        self.stop.send_replace(true);
        let filler = self.filler.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(filler) = filler
            && let Err(failed) = filler.await
        {
            std::panic::resume_unwind(failed.into_panic());
        }
        self.give_up(|_| true).await;
    }
}

impl Supply {
    fn shelf(&self) -> MutexGuard<'_, Shelf<Waiting>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one that lacks; whether there may be more to do.
    async fn make_one(&self, stopped: &watch::Receiver<bool>) -> bool {
        let _making = self.making.lock().await;
        let Some(key) = self.shelf().lacking() else { return false };
        let Ok(seat) = self.seats.take(self.host.vmm.memory(key.memory)) else { return false };
        match Standby::make(&self.host, &key, stopped.clone()).await {
            Ok(Some(standby)) => {
                tracing::info!(sandbox = %standby.id(), "made ahead");
                self.shelf().waiting.push((key, (standby, seat)));
                true
            }
            // Nothing to make it from.
            Ok(None) => {
                self.shelf().forget(|wish| *wish == key);
                true
            }
            Err(error) => {
                if !*stopped.borrow() {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot make a sandbox ahead");
                }
                false
            }
        }
    }
}

/// What was wished, and what waits for it.
struct Shelf<T> {
    size: usize,
    /// The kinds that were wanted last, the newest at the end.
    wishes: VecDeque<Key>,
    waiting: Vec<(Key, T)>,
}

impl<T> Shelf<T> {
    fn new(size: usize) -> Self {
        Self { size, wishes: VecDeque::new(), waiting: Vec::new() }
    }

    fn wish(&mut self, key: Key) {
        self.wishes.push_back(key);
        while self.wishes.len() > self.size {
            self.wishes.pop_front();
        }
    }

    fn forget(&mut self, which: impl Fn(&Key) -> bool) {
        self.wishes.retain(|key| !which(key));
    }

    fn take(&mut self, key: &Key) -> Option<T> {
        let index = self.waiting.iter().position(|(waiting, _)| waiting == key)?;
        Some(self.waiting.swap_remove(index).1)
    }

    /// A kind of which fewer wait than were wished.
    fn lacking(&self) -> Option<Key> {
        self.wishes.iter().rev().find(|key| self.waiting_of(key) < self.wishes_of(key)).cloned()
    }

    /// Those that nobody has wished.
    fn surplus(&mut self) -> Vec<T> {
        let mut surplus = Vec::new();
        let is_surplus = |shelf: &Self| {
            let mut kinds = shelf.waiting.iter().map(|(key, _)| key);
            kinds.position(|key| shelf.waiting_of(key) > shelf.wishes_of(key))
        };
        while let Some(index) = is_surplus(self) {
            surplus.push(self.waiting.swap_remove(index).1);
        }
        surplus
    }

    fn waiting_of(&self, key: &Key) -> usize {
        self.waiting.iter().filter(|(waiting, _)| waiting == key).count()
    }

    fn wishes_of(&self, key: &Key) -> usize {
        self.wishes.iter().filter(|wish| *wish == key).count()
    }
}

async fn fill(supply: Arc<Supply>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = supply.wished.notified() => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        let surplus = supply.shelf().surplus();
        destroy(surplus).await;
        while !*stopped.borrow() && supply.make_one(&stopped).await {}
    }
}

/// Nothing is left of them, also when nobody waits for it any more.
async fn destroy(given_up: Vec<Waiting>) {
    let destroyed = tokio::spawn(async move {
        for (standby, seat) in given_up {
            tracing::info!(sandbox = %standby.id(), "what was made ahead is given up");
            standby.destroy().await;
            drop(seat);
        }
    });
    destroyed.await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()));
}

#[cfg(test)]
mod tests {
    use wrenn_engine::units::Mib;

    use super::*;
    use crate::snapshot::any_key;

    #[test]
    fn what_was_wanted_last_is_what_waits() {
        let (small, large) = (Key { memory: Mib(128), ..any_key() }, Key { memory: Mib(512), ..any_key() });
        let mut shelf = Shelf::new(2);
        assert_eq!(shelf.lacking(), None);
        shelf.wish(small.clone());
        assert_eq!(shelf.lacking().as_ref(), Some(&small));
        shelf.waiting.push((small.clone(), 1));
        assert_eq!(shelf.lacking(), None);
        shelf.wish(small.clone());
        shelf.waiting.push((small.clone(), 2));
        assert_eq!((shelf.lacking(), shelf.surplus()), (None, vec![]));

        shelf.wish(large.clone());
        assert_eq!(shelf.lacking().as_ref(), Some(&large), "one of the two places is for the other kind now");
        assert_eq!(shelf.surplus().len(), 1);
        assert_eq!(shelf.take(&large), None);
        shelf.waiting.push((large.clone(), 3));
        assert_eq!(shelf.take(&large), Some(3));

        shelf.forget(|key| *key == small);
        assert_eq!(shelf.surplus().len(), 1, "what is not wished any more goes");
        assert_eq!(shelf.lacking().as_ref(), Some(&large));
        assert!(shelf.waiting.is_empty());
    }
}
