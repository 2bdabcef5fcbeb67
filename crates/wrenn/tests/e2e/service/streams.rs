//! What is streamed: commands, files, events, ports.

use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wrenn_testworld::api::nothing;

use super::life::{create, sh};
use super::server::{Service, run};

/// Bytes that look random, and are the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
    .collect()
}

#[test]
fn files_go_through_whole_and_in_parts() {
    let service = Service::begin();
    run(async {
        let api = service.api().await;
        let id = create(&api, nothing()).await;
        let files = format!("/v1/sandboxes/{id}/files");
        let bytes = noise(3_000_001);
        let place = format!("{files}?path=/root/deep/down/a%20file.bin");
        let put = api.request(Method::PUT, &place).body(bytes.clone());
        let written = api.answer("put", &files, put).await.ok();
        assert_eq!(written, json!({ "path": "/root/deep/down/a file.bin", "size": bytes.len() }));
        let sum = hex::encode(Sha256::digest(&bytes));
        assert_eq!(sh(&api, &id, "sha256sum < '/root/deep/down/a file.bin'").await.1, format!("{sum}  -\n"));
        assert_eq!(sh(&api, &id, "ls -A /root/deep/down").await.1, "a file.bin\n", "no temporary file stays");

        let whole = api.request(Method::GET, &place).send().await.unwrap();
        assert_eq!(whole.headers()["accept-ranges"], "bytes");
        assert_eq!(whole.bytes().await.unwrap(), bytes);
        let part = api.request(Method::GET, &place).header("range", "bytes=1000000-1999999").send().await.unwrap();
        assert_eq!(part.status().as_u16(), 206);
        assert_eq!(part.bytes().await.unwrap(), bytes[1_000_000..2_000_000]);
        let beyond = api.request(Method::GET, &place).header("range", "bytes=9000000-");
        assert_eq!(api.answer("get", &files, beyond).await.code(), "range_not_satisfiable");

        let listed = api.get(&format!("{files}/list?path=/root/deep/down")).await.ok();
        assert_eq!(
            (listed["entries"][0]["name"].as_str(), listed["entries"][0]["size"].as_u64()),
            (Some("a file.bin"), Some(3_000_001))
        );
        api.post(&format!("{files}/mkdir"), json!({ "path": "/root/new" })).await.ok();
        let moved = json!({ "from": "/root/deep/down/a file.bin", "to": "/root/new/../new/b" });
        api.post(&format!("{files}/move"), moved).await.ok();
        api.post(&format!("{files}/remove"), json!({ "path": "/root/deep" })).await.ok();
        assert_eq!(sh(&api, &id, "find /root/deep /root/new 2>/dev/null").await.1, "/root/new\n/root/new/b\n");
        let absent = api.get(&format!("{files}?path=/nowhere")).await;
        assert_eq!(absent.code(), "not_found");

        // A client that hangs up in the middle leaves what was there.
        let broken = futures::stream::iter([Ok(Bytes::from(noise(100_000))), Err(std::io::Error::other("gone"))]);
        let put =
            api.request(Method::PUT, &format!("{files}?path=/root/new/b")).body(reqwest::Body::wrap_stream(broken));
        put.send().await.unwrap_err();
        for _ in 0..100 {
            if sh(&api, &id, "ls -A /root/new").await.1 == "b\n" {
                break;
            }
        }
        assert_eq!(sh(&api, &id, "ls -A /root/new; sha256sum < /root/new/b").await.1, format!("b\n{sum}  -\n"));
        api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    });
    service.end();
}

#[test]
fn events_tell_a_life_in_order() {
    let service = Service::begin();
    run(async {
        let api = service.api().await;
        let mut events = Events::open(api.request(Method::GET, "/v1/events")).await;
        assert_eq!(events.next().await.0, "complete");
        let id = create(&api, nothing()).await;
        api.post(&format!("/v1/sandboxes/{id}/pause"), nothing()).await.ok();
        api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
        let mut states = Vec::new();
        let gone = loop {
            let (name, data) = events.next().await;
            match name.as_str() {
                "sandbox" => states.push(data["state"].as_str().unwrap().to_owned()),
                "gone" => break data,
                other => panic!("{other}: {data}"),
            }
        };
        states.dedup();
        assert_eq!((gone["id"].as_str(), gone["why"].as_str()), (Some(id.as_str()), Some("requested")));
        let told = ["creating", "running", "pausing", "paused"];
        assert_eq!(states[..4], told, "{states:?}");
    });
    service.end();
}

/// A stream of events that is read.
struct Events {
    body: futures::stream::BoxStream<'static, reqwest::Result<Bytes>>,
    text: String,
}

impl Events {
    async fn open(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.bytes_stream().boxed(), text: String::new() }
    }

    async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    event.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned())
                };
                let (name, data) = (field("event:"), field("data:"));
                self.text = rest.to_owned();
                match (name, data) {
                    (Some(name), Some(data)) => return (name, serde_json::from_str(&data).unwrap()),
                    _comment => continue,
                }
            }
            let more = self.body.next().await.expect("the stream goes on").unwrap();
            self.text.push_str(std::str::from_utf8(&more).unwrap());
        }
    }
}

#[test]
fn a_port_of_a_sandbox_is_reached_by_path_and_by_host_name() {
    let service = Service::begin();
    run(async {
        let api = service.api().await;
        let id = create(&api, json!({ "auto_resume": true })).await;
        let script = "mkdir -p /www && echo served > /www/page && cd /www && httpd -p 8000 -h /www";
        assert_eq!(sh(&api, &id, script).await.0, 0);
        let client = reqwest::Client::new();
        let by_path = format!("{}/proxy/8000-{id}/page", service.url());
        assert_eq!(client.get(&by_path).send().await.unwrap().text().await.unwrap(), "served\n");
        let by_host = client.get(format!("{}/page", service.url())).header("host", format!("8000-{id}.localhost"));
        assert_eq!(by_host.send().await.unwrap().text().await.unwrap(), "served\n");
        api.post(&format!("/v1/sandboxes/{id}/pause"), nothing()).await.ok();
        assert_eq!(client.get(&by_path).send().await.unwrap().text().await.unwrap(), "served\n", "traffic resumes it");
        let closed = client.get(format!("{}/proxy/8001-{id}/", service.url())).send().await.unwrap();
        assert_eq!(closed.status().as_u16(), 502);
        assert!(closed.headers().contains_key("x-wrenn-proxy-error"));
        api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    });
    service.end();
}
