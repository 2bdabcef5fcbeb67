//! The service without its database: gone, and locked. No sandbox is touched, what is asked for is refused clearly, and all goes on by
//! itself when it is back.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use wrenn_client::types::StreamRequest;
use wrenn_client::{Client, CommandEvent, CommandStream};
use wrenn_testworld::api::{Api, nothing};
use wrenn_testworld::postgres::Postgres;

use super::life::{create, sh};
use super::server::{Service, run, until};
use crate::chance::Chance;

/// How long a database is gone in a soak; else as long as it takes to see what that does.
const GONE_FOR: Duration = Duration::from_secs(30);
/// What a call may take that is refused: the database's own limit, on a machine that does much else.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// A command that says something again and again, as a stream that has begun.
async fn ticking(service: &Service, id: &str) -> (u32, CommandStream) {
    let client = Client::new(&service.url(), Some(&service.key)).unwrap();
    let script = "while :; do echo tick; sleep 0.2; done".to_owned();
    let request = StreamRequest { command: vec!["sh".to_owned(), "-c".to_owned(), script], ..StreamRequest::default() };
    let mut stream = client.exec_stream(id, &request).await.unwrap();
    let CommandEvent::Started { pid } = stream.output.next().await.unwrap().unwrap() else { panic!("not started") };
    (pid, stream)
}

/// It goes on: it says something that it had not said yet.
async fn goes_on(stream: &mut CommandStream) {
    let begun = Instant::now();
    // What is on its way was said before.
    while begun.elapsed() < Duration::from_millis(500) {
        let event = stream.output.next().await.unwrap().unwrap();
        assert!(matches!(event, CommandEvent::Output { .. }), "{event:?}");
    }
}

/// An operation that takes a while: a sandbox that has to boot.
async fn begin_creation(api: &Api) -> String {
    let wanted = json!({ "cold": true, "memory_mib": 128 });
    let begun = api.post("/v1/sandboxes?wait=false", wanted).await.ok();
    begun["id"].as_str().unwrap().to_owned()
}

async fn assert_refused(api: &Api, id: &str) {
    let path = format!("/v1/sandboxes/{id}");
    for (method, path, body) in [
        ("get", "/v1/sandboxes", None),
        ("get", path.as_str(), None),
        ("get", "/v1/keys", None),
        ("post", "/v1/sandboxes", Some(nothing())),
        ("post", &format!("{path}/pause"), Some(nothing())),
        ("delete", path.as_str(), None),
    ] {
        let begun = Instant::now();
        let mut request = api.request(method.to_uppercase().parse().unwrap(), path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let refused = api.answer(method, path, request).await;
        assert_eq!((refused.code(), refused.status.as_u16()), ("unavailable", 503), "{method} {path}");
        let error = &refused.body["error"];
        assert!(error["message"].as_str().unwrap().contains("database"), "{error}");
        assert!(error["remedy"].as_str().unwrap().contains("no sandbox is touched"), "{error}");
        assert!(refused.headers.contains_key("retry-after"));
        assert!(begun.elapsed() < REFUSED_WITHIN, "{method} {path}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_database_that_is_gone_touches_no_sandbox_and_all_recovers_after_longer_in_a_soak() {
    let Some(mut postgres) = Postgres::start_unless_left_out() else { return };
    let gone_for = Chance::of_this_run().soak_rounds().map_or(Duration::ZERO, |_rounds| GONE_FOR);
    let service = Service::with(Some(postgres.new_database()));
    run(async {
        let api = service.api().await;
        let id = create(&api, nothing()).await;
        let (pid, mut stream) = ticking(&service, &id).await;
        let before = api.get(&format!("/v1/sandboxes/{id}")).await.ok();
        let operation = begin_creation(&api).await;

        postgres.stop();
        let begun = Instant::now();
        until("that the key is looked up anew", || async { !api.get("/v1/whoami").await.status.is_success() }).await;
        loop {
            assert_refused(&api, &id).await;
            let health = api.get("/healthz").await;
            assert_eq!((health.status.as_u16(), &health.body["database"]), (503, &json!(false)));
            assert_eq!(health.body["agent"], true);
            goes_on(&mut stream).await;
            if begun.elapsed() >= gone_for {
                break;
            }
        }
        postgres.run();
        api.until_ready().await;
        goes_on(&mut stream).await;
        assert_eq!(api.get(&format!("/v1/sandboxes/{id}")).await.ok(), before);
        assert_eq!(sh(&api, &id, &format!("kill -0 {pid}")).await.0, 0, "it is the same one");
        let asked = || async { api.get(&format!("/v1/operations/{operation}")).await.ok() };
        until("the operation's end", || async { asked().await["state"] != "running" }).await;
        let ended = asked().await;
        assert_eq!(ended["state"], "succeeded", "{ended:#}");

        // A server that is started while the database is gone waits for it.
        postgres.stop();
        service.kill_server();
        postgres.run();
        api.until_ready().await;
        for id in [id.as_str(), ended["sandbox"].as_str().unwrap()] {
            assert_eq!(sh(&api, id, "echo well").await.1, "well\n");
            api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
        }
        let is_told = |audit: &Value| audit["items"].to_string().matches("DELETE /v1/sandboxes/{id}").count() >= 2;
        until("the audit", || async { is_told(&api.get("/v1/audit").await.ok()) }).await;
    });
    service.end();
}

#[test]
fn a_database_that_is_locked_is_read_and_sandboxes_are_used() {
    let service = Service::begin();
    run(async {
        let api = service.api().await;
        let id = create(&api, nothing()).await;
        let path = format!("/v1/sandboxes/{id}");
        let file = service.dir().join("server/wrenn.db");
        let mut other = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await.unwrap();
        other.execute("BEGIN EXCLUSIVE").await.unwrap();

        api.get("/v1/keys").await.ok();
        assert_eq!(sh(&api, &id, "echo well").await.1, "well\n");
        assert_eq!(api.post(&format!("{path}/pause"), nothing()).await.ok()["sandbox"]["state"], "paused");
        assert_eq!(api.post(&format!("{path}/resume"), nothing()).await.ok()["sandbox"]["state"], "running");
        let begun = Instant::now();
        // What has to be written down before it begins is not begun.
        let request = |key: &str| api.request(Method::POST, "/v1/sandboxes").header("idempotency-key", key.to_owned());
        let refused = api.answer("post", "/v1/sandboxes", request("once").json(&nothing())).await;
        assert_eq!((refused.code(), refused.status.as_u16()), ("unavailable", 503));
        assert_eq!(api.post("/v1/keys", nothing()).await.code(), "unavailable");
        assert!(begun.elapsed() < 2 * REFUSED_WITHIN, "{:?}", begun.elapsed());
        assert_eq!(api.get("/v1/sandboxes").await.ok()["items"].as_array().unwrap().len(), 1);

        other.execute("ROLLBACK").await.unwrap();
        other.close().await.unwrap();
        let made = api.answer("post", "/v1/sandboxes", request("once").json(&nothing())).await.ok();
        let made = made["sandbox"]["id"].as_str().unwrap().to_owned();
        api.post("/v1/keys", nothing()).await.ok();
        let is_told = |audit: &Value| audit["items"].to_string().contains("POST /v1/sandboxes/{id}/pause");
        until("the audit of what was done meanwhile", || async { is_told(&api.get("/v1/audit").await.ok()) }).await;
        for id in [id, made] {
            api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
        }
    });
    service.end();
}
