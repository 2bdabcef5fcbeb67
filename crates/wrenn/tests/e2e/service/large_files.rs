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

/// What is sent: by translation a guest's disk takes it in half a minute.
const FILE_MIB: u64 = 2048;
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

    fn end(self, what: &str, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        println!("{what}: {FILE_MIB} MiB in {seconds:.1} s, {:.0} MiB/s", FILE_MIB as f64 / seconds);
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
fn a_file_of_two_gigabytes_passes_in_constant_memory() {
    let service = Service::begin();
    run(async {
        let api = service.api().await;
        // The file that comes down is sparse, the one that goes up is not.
        let id = create(&api, json!({ "disk_mib": FILE_MIB + 512 })).await;
        let files = format!("/v1/sandboxes/{id}/files");
        assert_eq!(sh(&api, &id, &format!("truncate -s {FILE_MIB}M /root/down")).await.0, 0);
        let (watch, begun) = (Watch::begin(&service), Instant::now());
        let answer = request(&api, Method::GET, &format!("{files}?path=/root/down")).send().await.unwrap();
        let mut body = answer.error_for_status().unwrap().bytes_stream();
        let mut had = 0;
        while let Some(bytes) = body.next().await {
            had += bytes.unwrap().len() as u64;
        }
        assert_eq!(had, FILE_MIB * MIB);
        watch.end("down", begun);

        let chunk = Bytes::from(noise(CHUNK));
        let chunks = FILE_MIB * MIB / CHUNK as u64;
        let sent = stream::iter((0..chunks).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
        let (watch, begun) = (Watch::begin(&service), Instant::now());
        let put = request(&api, Method::PUT, &format!("{files}?path=/root/up")).body(reqwest::Body::wrap_stream(sent));
        let written = put.send().await.unwrap().error_for_status().unwrap().json::<serde_json::Value>().await.unwrap();
        assert_eq!(written, json!({ "path": "/root/up", "size": FILE_MIB * MIB }));
        watch.end("up", begun);
        let script =
            "stat -c %s /root/up; head -c 262144 /root/up > /a; tail -c 262144 /root/up | cmp - /a && echo same";
        assert_eq!(sh(&api, &id, script).await.1, format!("{}\nsame\n", FILE_MIB * MIB));
        api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    });
    service.end();
}
