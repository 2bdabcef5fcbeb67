//! What sandboxes take of their host over time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::time::{Instant, sleep};
use wrenn_agent::host_agent::{HostAgent, Stat};
use wrenn_client::types::Sample;
use wrenn_engine::names::SandboxId;

use crate::convert;
use crate::limits;
use crate::time::now_unix_ms;
use crate::world::World;

/// The last hour of each sandbox.
#[derive(Default)]
pub struct Samples(Mutex<BTreeMap<SandboxId, Series>>);

#[derive(Default)]
struct Series {
    samples: VecDeque<Sample>,
    /// When the last sample was taken.
    measured: Option<Instant>,
    /// CPU time at the last sample, and when that was.
    cpu: Option<(u64, Instant)>,
}

impl Series {
    fn add(&mut self, stat: &Stat, at: Instant) {
        let cpu_percent = match (self.cpu, stat.cpu_ms) {
            (Some((before_ms, then)), Some(now_ms)) if at > then => {
                let passed_ms = at.duration_since(then).as_secs_f64() * 1e3;
                Some(now_ms.saturating_sub(before_ms) as f64 / passed_ms * 100.0)
            }
            _first_or_at_rest => None,
        };
        self.measured = Some(at);
        self.cpu = stat.cpu_ms.map(|ms| (ms, at));
        self.samples.push_back(convert::sample(stat, now_unix_ms(), cpu_percent));
        while self.samples.len() > limits::SAMPLES_KEPT {
            self.samples.pop_front();
        }
    }
}

impl Samples {
    fn map(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Series>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of one sandbox that are not older than this.
    pub fn of(&self, id: &SandboxId, since_unix_ms: u64) -> Vec<Sample> {
        let map = self.map();
        let series = map.get(id).into_iter().flat_map(|series| &series.samples);
        series.filter(|sample| sample.unix_ms >= since_unix_ms).cloned().collect()
    }

    /// What was just measured.
    pub fn add(&self, id: &SandboxId, stat: &Stat) {
        self.map().entry(id.clone()).or_default().add(stat, Instant::now());
    }

    /// Whether the sandbox was measured within a period.
    fn is_fresh(&self, id: &SandboxId) -> bool {
        let measured = self.map().get(id).and_then(|series| series.measured);
        measured.is_some_and(|at| at.elapsed() < limits::SAMPLE_EVERY)
    }

    /// Measures a sandbox for who looks at it now, unless that was just done.
    pub async fn refresh(&self, id: &SandboxId, agent: &dyn HostAgent) {
        if !self.is_fresh(id) {
            self.measure(id, agent).await;
        }
    }

    async fn measure(&self, id: &SandboxId, agent: &dyn HostAgent) {
        // One that is gone meanwhile is no matter.
        match agent.stat(id).await {
            Ok(stat) => self.add(id, &stat),
            Err(error) => tracing::debug!(sandbox = %id, %error, "cannot be measured"),
        }
    }

    /// Only these are there.
    fn keep(&self, ids: &BTreeSet<SandboxId>) {
        self.map().retain(|id, _| ids.contains(id));
    }

    /// The sandbox is gone.
    pub fn forget(&self, id: &SandboxId) {
        self.map().remove(id);
    }
}

/// Measures for as long as the server runs. Never ends by itself.
pub async fn measure(samples: Arc<Samples>, world: Arc<World>, agent: Arc<dyn HostAgent>) {
    loop {
        world.synced().await;
        let ids: Vec<SandboxId> = world.last_known().iter().map(|view| view.id.clone()).collect();
        let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let (all, agent) = (&samples, agent.as_ref());
        let measuring = ids.into_iter().map(|id| async move { all.measure(&id, agent).await });
        // A guest that does not say what it takes keeps a few others waiting, but not all.
        stream::iter(measuring).buffer_unordered(limits::SAMPLED_AT_ONCE).collect::<()>().await;
        // Whoever was measured while it went is forgotten here.
        samples.keep(&world.last_known().iter().map(|view| view.id.clone()).collect());
        let cost = limits::SAMPLE_COST.saturating_mul(count);
        sleep(cost.clamp(limits::SAMPLE_EVERY, Duration::from_secs(60))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_cpu_needs_two_measurements() {
        let stat = |cpu_ms| Stat { cpu_ms, ..Stat::default() };
        let (mut series, start) = (Series::default(), Instant::now());
        series.add(&stat(Some(1000)), start);
        series.add(&stat(Some(1500)), start + Duration::from_secs(1));
        series.add(&stat(None), start + Duration::from_secs(2));
        series.add(&stat(Some(10)), start + Duration::from_secs(3));
        let percents: Vec<_> = series.samples.iter().map(|sample| sample.cpu_percent).collect();
        assert_eq!(percents, [None, Some(50.0), None, None]);
    }
}
