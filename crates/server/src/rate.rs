//! How often somebody may ask: a token bucket for each key, and for each address that shows wrong keys.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits;

/// Buckets by who draws from them.
pub struct Buckets<K> {
    per_s: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Each is refilled with so many tokens a second, and holds those of two.
    pub fn new(per_s: u32) -> Self {
        Self { per_s: f64::from(per_s.max(1)), buckets: Mutex::default() }
    }

    /// Takes one token; else says after how long there is one.
    pub fn take(&self, who: K, now: Instant) -> Result<(), Duration> {
        let most = 2.0 * self.per_s;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= limits::RATES_REMEMBERED_MAX {
            buckets.retain(|_, bucket| bucket.filled(now, self.per_s) < most);
        }
        let bucket = buckets.entry(who).or_insert(Bucket { tokens: most, at: now });
        let tokens = bucket.filled(now, self.per_s).min(most);
        if tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - tokens) / self.per_s));
        }
        *bucket = Bucket { tokens: tokens - 1.0, at: now };
        Ok(())
    }
}

impl Bucket {
    fn filled(self, now: Instant, per_s: f64) -> f64 {
        self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_too_often_waits_and_nobody_else() {
        let (buckets, start) = (Buckets::new(10), Instant::now());
        for _ in 0..20 {
            buckets.take("a", start).unwrap();
        }
        let wait = buckets.take("a", start).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        buckets.take("b", start).unwrap();
        buckets.take("a", start + wait + Duration::from_millis(1)).unwrap();
        assert!(buckets.take("a", start + wait + Duration::from_millis(1)).is_err());
    }

    #[test]
    fn those_at_rest_are_forgotten() {
        let (buckets, start) = (Buckets::new(1), Instant::now());
        for who in 0..limits::RATES_REMEMBERED_MAX {
            buckets.take(who, start).unwrap();
        }
        buckets.take(usize::MAX, start + Duration::from_secs(60)).unwrap();
        assert_eq!(buckets.buckets.lock().unwrap().len(), 1);
    }
}
