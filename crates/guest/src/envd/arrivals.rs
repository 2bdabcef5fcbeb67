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
    over: watch::Sender<Over>,
}

/// Which connections are over.
#[derive(Debug, Clone, Copy)]
struct Over {
    /// Those that arrived before this one,
    before: Arrival,
    /// but for this one.
    spared: Option<Arrival>,
}

impl Over {
    fn includes(self, arrival: Arrival) -> bool {
        arrival < self.before && self.spared != Some(arrival)
    }
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { next: AtomicU64::new(0), over: watch::Sender::new(Over { before: Arrival(0), spared: None }) }
    }
}

impl Arrivals {
    /// A new one.
    pub fn arrive(&self) -> Arrival {
        Arrival(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Ends all that are there but this one.
    pub fn end_all_but(&self, spared: Arrival) {
        let before = Arrival(self.next.load(Ordering::Relaxed));
        self.over.send_replace(Over { before, spared: Some(spared) });
    }

    /// Waits until this one is to end.
    pub async fn over(&self, arrival: Arrival) {
        let mut over = self.over.subscribe();
        // The sender lives as long as we do.
        over.wait_for(|over| over.includes(arrival)).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn all_that_are_there_are_over_but_one_and_who_comes_later() {
        let arrivals = Arrivals::default();
        let [first, second, third] = [(); 3].map(|()| arrivals.arrive());
        let over = |arrival| arrivals.over(arrival).now_or_never().is_some();
        assert_eq!([first, second, third].map(over), [false; 3]);
        arrivals.end_all_but(second);
        assert_eq!([first, second, third].map(over), [true, false, true]);
        let fourth = arrivals.arrive();
        assert!(!over(fourth));
        arrivals.end_all_but(fourth);
        assert_eq!([first, second, third, fourth].map(over), [true, true, true, false], "spared once is not for ever");
    }
}
