//! What a guest says of itself: `GET /metrics`.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde::Deserialize;
use tokio::time::timeout;
use wrenn_proto::envd::TOKEN_HEADER;

use super::host_call::parsed;
use super::{EnvdClient, EnvdError, http1};
use crate::host_agent::GuestStat;

const CALL: &str = "GET /metrics";

/// The part of its answer that is of use. It may say any numbers.
#[derive(Deserialize)]
struct Answer {
    ts: u64,
    cpu_count: u32,
    cpu_used_pct: f64,
    mem_total: u64,
    mem_used: u64,
    disk_total: u64,
    disk_used: u64,
}

impl EnvdClient {
    /// What it says of itself, within `limit` in all. Its numbers are brought within bounds: no part is more than its whole.
    pub async fn metrics(&self, limit: Duration) -> Result<GuestStat, EnvdError> {
        let request = Request::get("/metrics").header("host", "guest").header(TOKEN_HEADER, &self.access_token);
        let request = request.body(Full::default()).expect("a constant request, and a token of hexadecimal digits");
        let asking = async {
            let stream = self.connect(limit).await.map_err(EnvdError::Unreachable)?;
            http1::exchange(stream, request, CALL, limit).await
        };
        let answer = timeout(limit, asking).await.map_err(|_elapsed| EnvdError::Deadline { call: CALL, limit })??;
        Ok(bounded(parsed(CALL, &answer)?))
    }
}

fn bounded(said: Answer) -> GuestStat {
    GuestStat {
        unix_ms: said.ts.saturating_mul(1000),
        cpus: said.cpu_count,
        // JSON knows no infinities, but large numbers.
        cpu_percent: said.cpu_used_pct.clamp(0.0, 100.0),
        memory_total_bytes: said.mem_total,
        memory_used_bytes: said.mem_used.min(said.mem_total),
        disk_total_bytes: said.disk_total,
        disk_used_bytes: said.disk_used.min(said.disk_total),
    }
}
