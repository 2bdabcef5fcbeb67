//! Traces of a service, as its collector gets them.

use std::fs::File;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use wrenn_testworld::api::Api;

use super::server::run;
use crate::world::{LIMIT, World, finish, signal, text};

/// What the server says when requests get in.
const SERVING: &str = "wrenn: serving on ";

type Batches = Arc<Mutex<Vec<Bytes>>>;

async fn take(State(batches): State<Batches>, batch: Bytes) {
    batches.lock().unwrap().push(batch);
}

fn holds(batch: &Bytes, word: &str) -> bool {
    batch.windows(word.len()).any(|bytes| bytes == word.as_bytes())
}

#[test]
fn a_collector_gets_the_spans_also_those_of_the_last_moment() {
    let world = World::new();
    let batches = Batches::default();
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = format!("http://{}/below", listener.local_addr().unwrap());
        let router = Router::new().route("/below/v1/traces", post(take)).with_state(Arc::clone(&batches));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let log = world.beside().join("service.log");
        let words = || std::fs::read(&log).map(|bytes| text(&bytes)).unwrap_or_default();
        let mut command = world.wrenn(&["serve", "--listen", "127.0.0.1:0"]);
        let command = command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector).stdout(Stdio::null());
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let begun = Instant::now();
        let url = loop {
            if let Some((_, rest)) = words().split_once(SERVING) {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
            assert!(begun.elapsed() < LIMIT, "{}", words());
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let answer = Api::open(&url, None).await.get("/v1/host").await;
        assert_eq!(answer.code(), "unauthenticated");
        let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
        signal(child.id(), "TERM");
        let output = tokio::task::spawn_blocking(move || finish(child)).await.unwrap();
        assert!(output.status.success(), "{:?}\n{}", output.status, words());
        let batches = batches.lock().unwrap();
        let has_it = batches.iter().any(|batch| holds(batch, "GET /v1/host") && holds(batch, &id));
        assert!(has_it, "{} batches without it\n{}", batches.len(), words());
    });
    let left = world.left_behind_by_agent();
    assert!(left.is_empty(), "left behind: {left:#?}");
}
