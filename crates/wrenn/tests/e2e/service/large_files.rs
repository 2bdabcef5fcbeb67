//! Files of gigabytes: through agent and server in constant memory.

use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use reqwest::Method;
use serde_json::json;
use wrenn_testworld::api::Api;

use super::life::{create, sh};
use super::server::{Service, run};
use super::streams::noise;
use crate::chance::Chance;

/// What is sent in a soak: by translation it takes a quarter of a minute down and more than half of one up, and minutes on a machine
/// that does much else.
const SOAK_MIB: u64 = 2048;
/// What is sent otherwise: five times what a process may grow.
const SAMPLE_MIB: u64 = 256;
const MIB: u64 = 1024 * 1024;
/// How much either process may grow meanwhile.
const GROWTH_MAX: u64 = 50 * MIB;
const CHUNK: usize = 256 * 1024;

/// The resident memory of a process, and the most that it ever was, in bytes.
fn resident(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    };
    (bytes("VmRSS:"), bytes("VmHWM:"))
}

/// Processes whose growth is watched from here on.
struct Watch(Vec<(&'static str, u32, u64)>);

impl Watch {
    fn begin(service: &Service) -> Self {
        let pids = [("server", service.server_pid()), ("agent", service.agent_pid())];
        let begin = |(name, pid): (&'static str, u32)| {
            // The most that it ever was is forgotten.
            std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
            (name, pid, resident(pid).0)
        };
        Self(pids.map(begin).to_vec())
    }

    fn end(self, what: &str, mib: u64, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        println!("{what}: {mib} MiB in {seconds:.1} s, {:.0} MiB/s", mib as f64 / seconds);
        for (name, pid, before) in self.0 {
            let grown = resident(pid).1.saturating_sub(before);
            println!("{what}: the {name} had {before} bytes and grew by {grown}");
            assert!(grown <= GROWTH_MAX, "{what}: the {name} grew by {grown} bytes");
        }
    }
}

/// A file's place; it takes longer than other calls may.
fn request(api: &Api, method: Method, path: &str) -> reqwest::RequestBuilder {
    let client = reqwest::Client::builder().build().unwrap();
    client.request(method, format!("{}{path}", api.base)).header("x-api-key", api.key.as_deref().unwrap())
}

#[test]
fn a_large_file_passes_in_constant_memory_one_of_two_gigabytes_in_a_soak() {
    let mib = Chance::of_this_run().soak_rounds().map_or(SAMPLE_MIB, |_rounds| SOAK_MIB);
    let service = Service::begin();
    run(async {
        let api = service.api().await;
        // The file that comes down is sparse, the one that goes up is not.
        let id = create(&api, json!({ "disk_mib": mib + 512 })).await;
        let files = format!("/v1/sandboxes/{id}/files");
        assert_eq!(sh(&api, &id, &format!("truncate -s {mib}M /root/down")).await.0, 0);
        let (watch, begun) = (Watch::begin(&service), Instant::now());
        let answer = request(&api, Method::GET, &format!("{files}?path=/root/down")).send().await.unwrap();
        let mut body = answer.error_for_status().unwrap().bytes_stream();
        let mut had = 0;
        while let Some(bytes) = body.next().await {
            had += bytes.unwrap().len() as u64;
        }
        assert_eq!(had, mib * MIB);
        watch.end("down", mib, begun);

        let chunk = Bytes::from(noise(CHUNK));
        let chunks = mib * MIB / CHUNK as u64;
        let sent = stream::iter((0..chunks).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
        let (watch, begun) = (Watch::begin(&service), Instant::now());
        let put = request(&api, Method::PUT, &format!("{files}?path=/root/up")).body(reqwest::Body::wrap_stream(sent));
        let written = put.send().await.unwrap().error_for_status().unwrap().json::<serde_json::Value>().await.unwrap();
        assert_eq!(written, json!({ "path": "/root/up", "size": mib * MIB }));
        watch.end("up", mib, begun);
        let script =
            "stat -c %s /root/up; head -c 262144 /root/up > /a; tail -c 262144 /root/up | cmp - /a && echo same";
        assert_eq!(sh(&api, &id, script).await.1, format!("{}\nsame\n", mib * MIB));
        api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    });
    service.end();
}
