//! A token bucket: how much may be drained now, and if nothing, when.
//!
//! Pure: the time is an argument. A token is a byte.

use std::time::{Duration, Instant};

use crate::limits::THROTTLE_QUANTUM_BYTES;

/// Fills at a constant rate up to a burst; taking may not overdraw.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: u64,
    burst: u64,
    /// Least that is given at once, so that a slow stream does not cost a wake-up per byte.
    quantum: u64,
    tokens: u64,
    filled_at: Instant,
}

impl Throttle {
    /// A full bucket. Both numbers are at least 1.
    pub fn new(bytes_per_second: u32, burst_bytes: u32, now: Instant) -> Self {
        let burst = u64::from(burst_bytes.max(1));
        Self {
            bytes_per_second: u64::from(bytes_per_second.max(1)),
            burst,
            quantum: burst.min(THROTTLE_QUANTUM_BYTES),
            tokens: burst,
            filled_at: now,
        }
    }

    /// How many bytes may be taken now; 0 if it is less than a quantum.
    pub fn available(&mut self, now: Instant) -> u64 {
        self.fill(now);
        if self.tokens >= self.quantum { self.tokens } else { 0 }
    }

    /// Takes what was found available.
    pub fn take(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.tokens, "took more than was available");
        self.tokens = self.tokens.saturating_sub(bytes);
    }

    /// When a quantum is there; in the past if it is already.
    pub fn available_at(&self) -> Instant {
        let missing = self.quantum.saturating_sub(self.tokens);
        self.filled_at + self.time_for(missing)
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at);
        let earned = elapsed.as_nanos() * u128::from(self.bytes_per_second) / 1_000_000_000;
        if earned >= u128::from(self.burst - self.tokens) {
            self.tokens = self.burst;
            self.filled_at = now;
        } else {
            // Only the time that made whole tokens is spent; the rest counts next time. Less than `burst`, so it fits.
            self.tokens += earned as u64;
            self.filled_at += self.time_for(earned as u64);
        }
    }

    /// Rounded up, so that the tokens are really there then. At most 2^32 s: both numbers are of 32 bits.
    fn time_for(&self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_second));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_burst_then_the_rate() {
        let start = Instant::now();
        let mut throttle = Throttle::new(10_000, 50_000, start);
        assert_eq!(throttle.available(start), 50_000);
        throttle.take(50_000);
        assert_eq!(throttle.available(start), 0);
        assert_eq!(throttle.available(start + Duration::from_millis(100)), 0, "1000 bytes are less than a quantum");
        assert_eq!(throttle.available(start + Duration::from_millis(500)), 5000);
        assert_eq!(throttle.available(start + Duration::from_secs(3600)), 50_000);
    }

    #[test]
    fn is_available_exactly_when_it_says() {
        for (rate, burst) in [(1, 1), (3, 10), (1000, 70_000), (7_777_777, 4096), (u32::MAX, u32::MAX)] {
            let start = Instant::now();
            let mut throttle = Throttle::new(rate, burst, start);
            throttle.take(u64::from(burst));
            let at = throttle.available_at();
            assert!(throttle.available(at) > 0, "{rate} {burst}");
        }
    }

    #[test]
    fn many_small_looks_lose_no_time() {
        let start = Instant::now();
        let mut throttle = Throttle::new(1000, 100_000, start);
        throttle.take(100_000);
        for millis in (0..=20_000).step_by(7) {
            throttle.available(start + Duration::from_millis(millis));
        }
        let tokens = throttle.available(start + Duration::from_secs(20));
        assert!((19_900..=20_000).contains(&tokens), "{tokens}");
    }

    #[test]
    fn never_gives_more_than_burst_and_rate_allow() {
        let start = Instant::now();
        let mut throttle = Throttle::new(1_000_000, 10_000, start);
        let mut taken = 0;
        for micros in (0..2_000_000).step_by(333) {
            let available = throttle.available(start + Duration::from_micros(micros));
            throttle.take(available);
            taken += available;
        }
        assert!(taken <= 2_010_000, "{taken}");
        assert!(taken >= 1_900_000, "{taken}");
    }
}
