//! What Prometheus is told: how requests and lives go, what the host has.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use wrenn_agent::host_agent::{HostView, Timing, View};
use wrenn_client::types::State;

use crate::convert;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    method: String,
    /// As the API names it, not as it was asked for: there are few of them.
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Step {
    op: String,
    step: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InState {
    state: String,
}

type Seconds = Gauge<f64, AtomicU64>;

/// All of them. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Family<Request, Histogram>,
    steps: Family<Step, Histogram>,
    sandboxes: Family<InState, Gauge>,
    audit_dropped: Counter,
    agent_up: Gauge,
    cpus: Gauge,
    memory: Gauge,
    memory_taken: Gauge,
    disk: Gauge,
    disk_free: Gauge,
    swept: Gauge,
    resident: Gauge,
}

fn request_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
}

fn step_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("wrenn");
        let requests = Family::<Request, Histogram>::new_with_constructor(request_seconds);
        let steps = Family::<Step, Histogram>::new_with_constructor(step_seconds);
        let sandboxes = Family::<InState, Gauge>::default();
        registry.register_with_unit("http_request_duration", "Requests, by route", Unit::Seconds, requests.clone());
        registry.register_with_unit(
            "lifecycle_step_duration",
            "Steps of a sandbox's life",
            Unit::Seconds,
            steps.clone(),
        );
        registry.register("sandboxes", "Sandboxes, by state", sandboxes.clone());
        let audit_dropped = Counter::default();
        registry.register("audit_entries_dropped", "Audit entries that were lost", audit_dropped.clone());
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let agent_up = gauge("agent_up", "Whether the host's agent answers");
        let cpus = gauge("host_cpus", "CPUs of the host");
        let memory = gauge("host_memory_bytes", "Memory that all VMs may have together");
        let memory_taken = gauge("host_memory_taken_bytes", "What of it is taken");
        let disk = gauge("host_disk_bytes", "Size of the file system with the sandboxes");
        let disk_free = gauge("host_disk_free_bytes", "What of it is free");
        let swept = gauge("host_swept_objects", "Host objects that belonged to nobody and were removed");
        let resident = gauge("server_resident_bytes", "Resident memory of the server");
        let began = Seconds::default();
        registry.register("server_start_time_seconds", "When the server began, Unix time", began.clone());
        began.set(crate::time::now_unix_ms() as f64 / 1e3);
        Self(Arc::new(Inner {
            registry,
            requests,
            steps,
            sandboxes,
            audit_dropped,
            agent_up,
            cpus,
            memory,
            memory_taken,
            disk,
            disk_free,
            swept,
            resident,
        }))
    }

    /// A request was answered.
    pub fn request(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = Request { method: known(method).to_owned(), route: route.to_owned(), status };
        self.0.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An operation was done, step by step.
    pub fn lifecycle(&self, op: &str, timings: &[Timing]) {
        for timing in timings {
            let labels = Step { op: op.to_owned(), step: timing.phase.to_string() };
            self.0.steps.get_or_create(&labels).observe(timing.took.as_secs_f64());
        }
    }

    /// An audit entry was lost.
    pub fn audit_dropped(&self) {
        self.0.audit_dropped.inc();
    }

    /// What there is now, before it is asked for.
    pub fn look<'a>(&self, views: impl IntoIterator<Item = &'a View>, host: Option<&HostView>) {
        let mut counts = [0i64; State::ALL.len()];
        for view in views {
            let state = convert::state(view.phase);
            let at = State::ALL.iter().position(|each| *each == state).expect("all states are in ALL");
            counts[at] += 1;
        }
        for (state, count) in State::ALL.iter().zip(counts) {
            self.0.sandboxes.get_or_create(&InState { state: state.as_str().to_owned() }).set(count);
        }
        self.0.resident.set(resident_bytes().and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(0));
        self.0.agent_up.set(host.is_some().into());
        let Some(host) = host else { return };
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.0.cpus.set(host.cpus.into());
        self.0.memory.set(bytes(host.memory.bytes()));
        self.0.memory_taken.set(bytes(host.memory_taken.bytes()));
        self.0.disk.set(bytes(host.disk_total_bytes));
        self.0.disk_free.set(bytes(host.disk_free_bytes));
        self.0.swept.set(bytes(host.swept));
    }

    /// All of it as text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A method's name; clients can make any up, and each would be a label that stays.
pub fn known(method: &str) -> &str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
    if KNOWN.contains(&method) { method } else { "other" }
}

/// Resident memory of this process; `None` where /proc does not tell.
fn resident_bytes() -> Option<u64> {
    const PAGE_BYTES: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told() {
        let metrics = Metrics::new();
        metrics.request("GET", "/v1/sandboxes", 200, Duration::from_millis(3));
        metrics.request("MADEUP", "other", 405, Duration::from_millis(3));
        metrics.audit_dropped();
        metrics.look([], None);
        let text = metrics.text().unwrap();
        assert!(
            text.contains(
                r#"wrenn_http_request_duration_seconds_count{method="GET",route="/v1/sandboxes",status="200"} 1"#
            ),
            "{text}"
        );
        assert!(!text.contains("MADEUP") && text.contains(r#"{method="other",route="other",status="405"}"#), "{text}");
        assert!(text.contains("wrenn_audit_entries_dropped_total 1"), "{text}");
        assert!(text.contains(r#"wrenn_sandboxes{state="running"} 0"#), "{text}");
        assert!(text.contains("wrenn_agent_up 0"), "{text}");
    }
}
