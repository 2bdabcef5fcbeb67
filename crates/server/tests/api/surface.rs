//! What there is beside the API's own answers: pages, metrics, unknown paths and methods, and hosts that are none.

use std::time::Instant;

use proptest::prelude::*;
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_agent::fake::Fake;
use wrenn_server::limits;

use crate::document::operations;
use crate::server::{Server, sandbox};

#[tokio::test]
async fn what_is_not_there_is_refused_in_the_same_form() {
    let server = Server::start().await.ready().await;
    for path in [
        "/v1",
        "/v1/",
        "/v2/sandboxes",
        "/v1/sandboxes/",
        "/nonsense",
        "/%00",
        "/%ff",
        "/..%2f..%2fetc/passwd",
        "//",
        "/v1//host",
    ] {
        assert_eq!(server.api.get(path).await.code(), "not_found", "{path}");
    }
    for path in ["/assets/../main.rs", "/assets/%2e%2e/%2e%2e/Cargo.toml", "/assets/%ff", "/assets/none.js"] {
        let answer = server.api.get(path).await;
        assert!(["not_found", "invalid"].contains(&answer.code()), "{path}");
    }
    for path in ["/proxy/", "/proxy/x", "/proxy/0-sb0123456789abcdefgh/", "/proxy/80-x/"] {
        assert_eq!(server.api.get(path).await.code(), "invalid", "{path}");
    }
}

#[tokio::test]
async fn each_path_refuses_the_methods_that_it_does_not_know() {
    let server = Server::start().await.ready().await;
    let all = operations(server.api.document());
    for operation in &all {
        let path = operation.path.replace("{id}", "sb0123456789abcdefgh").replace("{pid}", "1").replace("{port}", "1");
        let path = path.replace("{snapshot}", "x").replace("{template}", "x");
        for method in ["get", "post", "put", "patch", "delete", "options", "made-up"] {
            if all.iter().any(|other| other.path == operation.path && other.method == method) {
                continue;
            }
            let method_name: Method = method.to_uppercase().parse().unwrap();
            let answer = server.api.request(method_name, &path).send().await.unwrap();
            let what = format!("{method} {}", operation.path);
            assert_eq!(answer.status().as_u16(), 405, "{what}");
            assert!(answer.headers().contains_key("x-request-id") && answer.headers().contains_key("allow"), "{what}");
            let body: Value = answer.json().await.unwrap();
            assert_eq!(body["error"]["code"], "method_not_allowed", "{what}");
        }
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    for path in ["/v1/sandboxes", &format!("/v1/sandboxes/{id}"), "/healthz", "/openapi.json", "/v1/events"] {
        let answer = server.api.request(Method::HEAD, path).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        assert!(answer.headers().contains_key("x-request-id"), "{path}");
        assert!(answer.bytes().await.unwrap().is_empty(), "{path}");
    }
    let answer = server.api.with_key(None).request(Method::HEAD, "/v1/host").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 401);
}

#[tokio::test]
async fn each_request_has_an_id_of_its_own() {
    let server = Server::start().await.ready().await;
    let mut ids = Vec::new();
    for path in ["/healthz", "/v1/host", "/nonsense", "/openapi.json", "/test", "/v1/sandboxes/x"] {
        // One that a client brings along is not believed.
        let request = server.api.request(Method::GET, path).header("x-request-id", "mine");
        let id = request.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned();
        assert!(id.starts_with("rq") && id.len() == 20, "{path}: {id}");
        ids.push(id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
}

#[tokio::test]
async fn pages_may_load_nothing_from_elsewhere() {
    let server = Server::start().await.ready().await;
    for path in ["/test", "/docs"] {
        let answer = server.api.with_key(None).request(Method::GET, path).send().await.unwrap();
        if answer.status().as_u16() == 404 {
            // Built without its pages, it says so.
            let body: Value = answer.json().await.unwrap();
            assert!(body["error"]["remedy"].as_str().unwrap().contains("xtask"), "{body}");
            continue;
        }
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        for part in ["default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("script-src") && !policy.contains("unsafe-eval"), "{policy}");
        assert_eq!(
            (header("x-content-type-options"), header("referrer-policy")),
            ("nosniff".into(), "no-referrer".into())
        );
        assert!(header("content-type").starts_with("text/html"));
    }
}

#[tokio::test]
async fn metrics_tell_of_requests_by_route_and_of_nothing_that_clients_make_up() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    server.api.get(&format!("/v1/sandboxes/{id}")).await.ok();
    server.api.get("/nonsense/made-up-path").await;
    drop(server.api.request("MADEUP".parse().unwrap(), "/v1/host").send().await.unwrap());
    let answer = server.api.request(Method::GET, "/metrics").send().await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let text = answer.text().await.unwrap();
    for line in [
        "wrenn_agent_up 1",
        r#"wrenn_sandboxes{state="running"} 1"#,
        r#"wrenn_sandboxes{state="paused"} 0"#,
        r#"wrenn_http_request_duration_seconds_count{method="GET",route="/v1/sandboxes/{id}",status="200"} 1"#,
        r#"wrenn_http_request_duration_seconds_count{method="POST",route="/v1/sandboxes",status="201"} 1"#,
        r#"wrenn_lifecycle_step_duration_seconds_count{op="create",step="boot"} 1"#,
        "wrenn_audit_entries_dropped_total 0",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "it is OpenMetrics");
    assert!(!text.contains(&id) && !text.contains("made-up") && !text.contains("MADEUP"), "{text}");
    assert_eq!(server.api.with_key(None).get("/metrics").await.code(), "unauthenticated");
}

#[tokio::test]
async fn the_host_and_its_health_are_told() {
    let server = Server::with(Fake::default()).await.ready().await;
    sandbox(&server.api).await;
    let host = server.api.get("/v1/host").await.ok();
    assert_eq!((&host["host"], &host["sandboxes"]), (&json!("fake"), &json!({"running": 1})));
    let stranger = server.tenant("stranger").await;
    assert_eq!(stranger.get("/v1/host").await.ok()["sandboxes"], json!({}));
    let health = server.api.with_key(None).get("/healthz").await.ok();
    assert_eq!(health, json!({"status": "ok", "agent": true, "database": true}));
}

#[test]
fn whatever_a_client_says_it_is_answered() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(async {
        let server = Server::start().await.ready().await;
        sandbox(&server.api).await;
        server
    });
    let get = |path: String| runtime.block_on(async { server.api.get(&path).await });
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config.clone(), |(cursor in "[ -~]{0,300}")| {
        let cursor: String = percent_encoding::utf8_percent_encode(&cursor, percent_encoding::NON_ALPHANUMERIC).collect();
        for list in ["sandboxes", "snapshots", "templates", "operations", "keys", "audit"] {
            let answer = get(format!("/v1/{list}?cursor={cursor}"));
            prop_assert!(answer.status.is_success() || answer.code() == "invalid", "{answer:?}");
        }
    });
    proptest!(config.clone(), |(place in "\\PC{1,60}")| {
        use base64::Engine as _;
        let cursor = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(place);
        for list in ["sandboxes", "snapshots", "templates", "operations", "keys", "audit"] {
            let answer = get(format!("/v1/{list}?cursor={cursor}"));
            prop_assert!(answer.status.is_success() || answer.code() == "invalid", "{answer:?}");
        }
    });
    proptest!(config.clone(), |(host in proptest::collection::vec(0x20..=0xffu8, 0..80))| {
        let request = [b"GET /healthz HTTP/1.1\r\nHost: ", &host[..], b"\r\n\r\n"].concat();
        let answer = runtime.block_on(server.raw(&request));
        prop_assert!(answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.1 4"), "{answer}");
    });
    proptest!(config, |(body in proptest::collection::vec(any::<u8>(), 0..200))| {
        let answer = runtime.block_on(async {
            let request = server.api.request(Method::POST, "/v1/keys").header("content-type", "application/json").body(body);
            server.api.answer("post", "/v1/keys", request).await
        });
        prop_assert!(answer.status.as_u16() == 201 || answer.code() == "invalid", "{answer:?}");
    });
}

#[tokio::test]
async fn a_sandbox_is_measured_for_who_looks_at_it() {
    let (server, began) = (Server::start().await.ready().await, Instant::now());
    let id = sandbox(&server.api).await;
    let path = format!("/v1/sandboxes/{id}");
    let samples = async || server.api.get(&format!("{path}/metrics")).await.ok()["samples"].clone();
    let first = samples().await;
    let guest = &first[0]["guest"];
    assert_eq!((first.as_array().unwrap().len(), &first[0]["memory_bytes"]), (1, &json!(1u64 << 40)));
    assert_eq!((&guest["cpu_percent"], &guest["memory_used_bytes"]), (&json!(12.5), &json!(40 << 20)));
    let again = samples().await;
    // Unless this machine has stood still.
    if began.elapsed() < limits::SAMPLE_EVERY {
        assert_eq!(again, first, "who looks all the time has it measured no more often");
    }

    // One that rests is measured as well, and its guest says nothing.
    let other = sandbox(&server.api).await;
    server.api.post(&format!("/v1/sandboxes/{other}/pause"), json!({})).await.ok();
    let at_rest = server.api.get(&format!("/v1/sandboxes/{other}/metrics")).await.ok()["samples"][0].clone();
    assert_eq!((&at_rest["guest"], &at_rest["memory_bytes"]), (&Value::Null, &Value::Null));
}
