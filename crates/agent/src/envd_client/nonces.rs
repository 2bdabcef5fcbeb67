//! The numbers that make every signed call one of a kind.
//!
//! A guest takes a call only if its number is larger than the last one's. They follow the host's clock, so that an agent that
//! starts anew need not know where the last one was; but a clock may be set back, so none is ever given twice or out of
//! order while this value lives, and beyond that for as long as its owner remembers the [`Nonces::ceiling`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A source of nonces for one guest; its clones share it.
#[derive(Clone, Debug, Default)]
pub struct Nonces(Arc<AtomicU64>);

impl Nonces {
    /// A source whose nonces are all larger than `floor`.
    pub fn starting_above(floor: u64) -> Self {
        Self(Arc::new(AtomicU64::new(floor)))
    }

    /// A number that every nonce given so far is below. A source that starts above it goes on where this one is now.
    pub fn ceiling(&self) -> u64 {
        self.0.load(Ordering::Relaxed).saturating_add(1)
    }

    /// The next one: nanoseconds since 1970 where the clock has gone on, else one more than the last.
    pub(super) fn next(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        self.next_at(now)
    }

    fn next_at(&self, now: u64) -> u64 {
        let after = |last: u64| last.saturating_add(1).max(now);
        // The closure always has an answer, so that either arm is the last one.
        let (Ok(last) | Err(last)) =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last)));
        after(last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn they_follow_the_clock_and_never_go_back_with_it() {
        let nonces = Nonces::default();
        let given = [100, 200, 150, 0, 200, 300].map(|now| nonces.next_at(now));
        assert_eq!(given, [100, 200, 201, 202, 203, 300]);
        assert!(Nonces::default().next() > 1_700_000_000_000_000_000);
    }

    #[test]
    fn who_remembers_the_ceiling_goes_on_from_there() {
        let first = Nonces::default();
        let last = first.next_at(1000);
        assert!(first.ceiling() > last);
        let second = Nonces::starting_above(first.ceiling());
        assert!(second.next_at(5) > first.ceiling(), "the clock was set back in between");
        assert_eq!(second.next_at(5000), 5000);
    }

    #[test]
    fn clones_on_many_threads_never_get_the_same() {
        let nonces = Nonces::default();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let nonces = nonces.clone();
                std::thread::spawn(move || (0..1000).map(|_| nonces.next()).collect::<Vec<_>>())
            })
            .collect();
        let mut all: Vec<u64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4000);
    }

    proptest! {
        #[test]
        fn any_clock_gives_ever_larger_numbers(floor in 0..1_u64 << 62, clock in prop::collection::vec(0..1_u64 << 62, 1..50)) {
            let nonces = Nonces::starting_above(floor);
            let mut last = floor;
            for now in clock {
                let next = nonces.next_at(now);
                prop_assert!(next > last && next < nonces.ceiling());
                last = next;
            }
        }
    }
}
