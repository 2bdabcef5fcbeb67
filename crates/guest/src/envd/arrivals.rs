//! Connections in the order of their arrival, so that those of another time can be ended.
//!
//! A guest that comes back still has the connections of its capture. Their other ends are gone, and the host's firewall says
//! nothing to what it does not know: without this a process would wait for half a minute for a reader that is no more, and
//! a connection with nothing to say would stay for as long.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// When a connection arrived, in relation to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(u64);

/// All that ever arrived.
#[derive(Debug)]
pub struct Arrivals {
    next: AtomicU64,
    /// Connections that arrived before this one are over.
    first: watch::Sender<Arrival>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { next: AtomicU64::new(0), first: watch::Sender::new(Arrival(0)) }
    }
}

impl Arrivals {
    /// A new one.
    pub fn arrive(&self) -> Arrival {
        Arrival(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Ends all that came before this one.
    pub fn end_before(&self, arrival: Arrival) {
        self.first.send_if_modified(|first| {
            let is_later = arrival > *first;
            *first = arrival.max(*first);
            is_later
        });
    }

    /// Waits until this one is to end.
    pub async fn over(&self, arrival: Arrival) {
        let mut first = self.first.subscribe();
        // The sender lives as long as we do.
        first.wait_for(|first| arrival < *first).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn only_what_came_before_is_over() {
        let arrivals = Arrivals::default();
        let [first, second, third] = [(); 3].map(|()| arrivals.arrive());
        let over = || [first, second, third].map(|arrival| arrivals.over(arrival).now_or_never().is_some());
        assert_eq!(over(), [false; 3]);
        arrivals.end_before(second);
        assert_eq!(over(), [true, false, false]);
        arrivals.end_before(first);
        assert_eq!(over(), [true, false, false], "nothing comes back");
    }
}
