//! Keys: what each may do, whose things it sees, and that all of it is written down.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};
use wrenn_agent::fake::Fake;
use wrenn_agent::host_agent::{AgentError, Code, HostAgent as _};
use wrenn_testworld::api::{Answer, Api};

use crate::document::{Operation, operations};
use crate::server::{Server, sandbox, until};

/// Operations that need more than their method says: the least scope.
const NEEDS: [(&str, &str); 12] = [
    ("post /v1/keys", "admin"),
    ("get /v1/keys", "admin"),
    ("delete /v1/keys/{id}", "admin"),
    ("post /v1/templates", "admin"),
    ("delete /v1/templates/{template}", "admin"),
    ("get /v1/sandboxes/{id}/exec/stream", "write"),
    ("get /v1/sandboxes/{id}/exec/{pid}/stream", "write"),
    ("get /v1/sandboxes/{id}/pty", "write"),
    ("get /v1/sandboxes/{id}/tunnel/{port}", "write"),
    ("get /v1/audit", "read"),
    ("get /v1/events", "read"),
    ("get /v1/host", "read"),
];

fn needs(operation: &Operation) -> &'static str {
    let said = NEEDS.iter().find(|(name, _)| *name == operation.name());
    match said {
        Some((_, scope)) => scope,
        None if operation.method == "get" => "read",
        None => "write",
    }
}

/// Asks with nothing but what the path says; of somebody's sandbox.
async fn ask(api: &Api, operation: &Operation, sandbox: &str) -> Answer {
    let path = operation.path.replace("/v1/sandboxes/{id}", &format!("/v1/sandboxes/{sandbox}"));
    let path = path.replace("{pid}", "7").replace("{port}", "80").replace("{snapshot}", "snap");
    let path = path.replace("{template}", "minimal").replace("{id}", "xx0123456789abcdefgh");
    let needed = operation.parameters("query").into_iter().filter(|parameter| parameter["required"] == true);
    let query: String = needed.map(|parameter| format!("{}=a&", parameter["name"].as_str().unwrap())).collect();
    let path = format!("{path}?{query}");
    let request = api.request(operation.method.to_uppercase().parse().unwrap(), &path);
    let request = match good_body(&operation.path, sandbox) {
        Some(body) if operation.body().is_some() => request.json(&body),
        Some(_) | None => request,
    };
    api.answer(&operation.method, &path, request).await
}

/// A body that would do something, if it were not for the key.
fn good_body(path: &str, sandbox: &str) -> Option<Value> {
    Some(match path.rsplit('/').next()? {
        "exec" => json!({"command": ["true"]}),
        "signal" => json!({"signal": 15}),
        "mkdir" | "remove" => json!({"path": "/a"}),
        "move" => json!({"from": "/a", "to": "/b"}),
        "rollback" => json!({"snapshot": "snap"}),
        "timeout" => json!({"timeout_s": 60}),
        "snapshots" => json!({"sandbox": sandbox}),
        "templates" => json!({"build": "minimal"}),
        _others => json!({}),
    })
}

fn guarded(server: &Server) -> Vec<Operation> {
    operations(server.api.document()).into_iter().filter(Operation::is_guarded).collect()
}

#[tokio::test]
async fn nothing_is_told_without_a_key() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    let good = server.api.key.clone().unwrap();
    let never_made = format!("wrn_{}", "0".repeat(40));
    for shown in [None, Some(""), Some("nonsense"), Some(never_made.as_str()), Some(&good.to_uppercase()[..])] {
        let api = server.api.with_key(shown);
        for operation in guarded(&server).iter().take(if shown.is_none() { 100 } else { 3 }) {
            assert_eq!(ask(&api, operation, &id).await.code(), "unauthenticated", "{} {shown:?}", operation.name());
        }
    }
    assert_eq!(server.agent.count(), 1);
}

#[tokio::test]
async fn each_operation_needs_its_scope() {
    let server = Server::start().await.ready().await;
    let names: Vec<String> = guarded(&server).iter().map(Operation::name).collect();
    assert!(NEEDS.iter().all(|(name, _)| names.contains(&(*name).to_owned())), "NEEDS names what is not there");
    for (scope, allowed) in [("read", &["read"][..]), ("write", &["read", "write"])] {
        let (_, api) = server.key(json!({"scope": scope})).await;
        let id = sandbox(&server.api).await;
        let before = server.agent.count();
        for operation in guarded(&server).iter().filter(|operation| !allowed.contains(&needs(operation))) {
            assert_eq!(ask(&api, operation, &id).await.code(), "forbidden", "{} with {scope}", operation.name());
        }
        assert_eq!(server.agent.count(), before, "nothing happened");
        assert_eq!(api.get("/metrics").await.code(), "forbidden");
    }
    let (_, reader) = server.key(json!({"scope": "read"})).await;
    // Those that are streams are never answered, and those of a guest need one.
    let plain = |operation: &Operation| !operation.is_events() && !operation.path.contains("{id}/");
    for operation in guarded(&server).iter().filter(|operation| needs(operation) == "read" && plain(operation)) {
        let answer = ask(&reader, operation, "sb0123456789abcdefgh").await;
        assert!(answer.status.is_success() || answer.code() == "not_found", "{}: {answer:?}", operation.name());
    }
}

#[tokio::test]
async fn what_is_somebody_elses_looks_as_if_it_were_not_there() {
    let server = Server::start().await.ready().await;
    let (ours, theirs) = (server.tenant("ours").await, server.tenant("theirs").await);
    let id = sandbox(&theirs).await;
    theirs.post("/v1/snapshots", json!({"sandbox": id, "name": "snap"})).await.ok();
    let of_one = |operation: &Operation| operation.path.contains("/v1/sandboxes/{id}") && !operation.is_socket();
    for operation in guarded(&server).iter().filter(|operation| of_one(operation)) {
        let (real, none) = (ask(&ours, operation, &id).await, ask(&ours, operation, "sb000000000000000000").await);
        assert_eq!((real.code(), none.code()), ("not_found", "not_found"), "{}", operation.name());
        let message = |answer: &Answer| answer.body["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(message(&real), message(&none).replace("sb000000000000000000", &id), "{}", operation.name());
    }
    for (method, path) in [("get", "/v1/snapshots/snap"), ("delete", "/v1/snapshots/snap")] {
        let request = ours.request(method.to_uppercase().parse().unwrap(), path);
        assert_eq!(ours.answer(method, path, request).await.code(), "not_found");
    }
    assert_eq!(ours.post("/v1/sandboxes", json!({"snapshot": "snap"})).await.code(), "not_found");
    let own = sandbox(&ours).await;
    let rollback = format!("/v1/sandboxes/{own}/rollback");
    assert_eq!(ours.post(&rollback, json!({"snapshot": "snap"})).await.code(), "not_found");
    for path in ["/v1/sandboxes", "/v1/snapshots", "/v1/operations"] {
        let items = ours.get(path).await.ok()["items"].clone();
        assert!(items.as_array().unwrap().iter().all(|item| item["id"] == own.as_str()), "{path}: {items}");
    }
    assert_eq!(theirs.get(&format!("/v1/sandboxes/{id}")).await.ok()["tenant"], "theirs");
    assert_eq!(server.api.get("/v1/sandboxes").await.ok()["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn names_of_snapshots_are_each_tenants_own() {
    let server = Server::start().await.ready().await;
    let (ours, theirs) = (server.tenant("ours").await, server.tenant("theirs").await);
    let mut kept = Vec::new();
    for api in [&ours, &theirs, &server.api] {
        let id = sandbox(api).await;
        let made = api.post("/v1/snapshots", json!({"sandbox": id, "name": "before"})).await.ok();
        assert_eq!(made["snapshot"]["name"], "before");
        kept.push((id.clone(), made["snapshot"]["id"].clone()));
        let again = api.post("/v1/snapshots", json!({"sandbox": id, "name": "before"})).await;
        assert_eq!(again.code(), "invalid");
        let told = again.body["error"]["message"].as_str().unwrap();
        assert!(told.contains("`before`") && !told.contains('/'), "the client's own word: {told}");
    }
    for (api, (sandbox, snapshot)) in [&ours, &theirs, &server.api].into_iter().zip(&kept) {
        assert_eq!(api.get("/v1/snapshots/before").await.ok()["id"], *snapshot);
        let rolled = api.post(&format!("/v1/sandboxes/{sandbox}/rollback"), json!({"snapshot": "before"})).await;
        assert_eq!(rolled.ok()["sandbox"]["id"], sandbox.as_str());
        let from = api.post("/v1/sandboxes", json!({"snapshot": "before"})).await.ok();
        assert_eq!(from["sandbox"]["state"], "running");
    }
    let listed = theirs.get("/v1/snapshots").await.ok()["items"].clone();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &kept[1].1));
    let all = server.api.get("/v1/snapshots").await.ok()["items"].clone();
    assert!(all.as_array().unwrap().iter().all(|one| one["name"] == "before"), "{all:#}");
    let tenants: Vec<_> = all.as_array().unwrap().iter().map(|one| one["tenant"].as_str().unwrap()).collect();
    assert_eq!(tenants, ["ours", "theirs", "default"]);

    // What is another's is removed by nobody else's name, also by who sees all.
    ours.delete("/v1/snapshots/before").await.ok();
    assert_eq!(ours.get("/v1/snapshots/before").await.code(), "not_found");
    server.api.delete("/v1/snapshots/before").await.ok();
    assert_eq!(server.api.delete("/v1/snapshots/before").await.code(), "not_found");
    assert_eq!(theirs.get("/v1/snapshots/before").await.ok()["id"], kept[1].1);
    server.api.delete(&format!("/v1/snapshots/{}", kept[1].1.as_str().unwrap())).await.ok();
    for name in ["theirs/before", "a/../b"] {
        let odd = ours.post_odd("/v1/snapshots", json!({"sandbox": kept[0].0, "name": name})).await;
        assert_eq!(odd.code(), "invalid");
    }
    assert!(server.agent.snapshots().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_reader_is_told_no_secrets() {
    let server = Server::start().await.ready().await;
    let (_, reader) = server.key(json!({"scope": "read"})).await;
    let (_, writer) = server.key(json!({})).await;
    let made = writer.post("/v1/sandboxes", json!({"traffic_token": true})).await.ok()["sandbox"].clone();
    assert!(made["traffic_token"].is_string() && made["access_token"].is_string());
    let path = format!("/v1/sandboxes/{}", made["id"].as_str().unwrap());
    let shown = reader.get(&path).await.ok();
    assert_eq!((&shown["traffic_token"], &shown["access_token"]), (&Value::Null, &Value::Null));
    assert_eq!(reader.get("/v1/sandboxes").await.ok()["items"][0], shown);
}

#[tokio::test]
async fn forks_that_are_made_together_have_each_a_token_of_its_own() {
    // Nothing answers at any port: what gets there is a 502.
    let server = Server::with(Fake::with_dialer(Arc::new(|_id, _port| {
        let refused = AgentError { code: Code::Failed, message: "connection refused".to_owned() };
        Box::pin(std::future::ready(Err(refused)))
    })))
    .await
    .ready()
    .await;
    let made = server.api.post("/v1/sandboxes", json!({"traffic_token": true})).await.ok()["sandbox"].clone();
    let path = format!("/v1/sandboxes/{}", made["id"].as_str().unwrap());
    let forked = server.api.post(&format!("{path}/fork"), json!({"count": 3})).await.ok();
    let forks = forked["forks"].as_array().unwrap().iter().map(|fork| &fork["sandbox"]);
    let mut tokens: Vec<String> =
        forks.clone().chain([&made]).map(|one| one["traffic_token"].as_str().unwrap().to_owned()).collect();
    let fork = forks.clone().next().unwrap();
    let id = fork["id"].as_str().unwrap();
    assert_eq!(server.api.get(&format!("/v1/sandboxes/{id}")).await.ok(), *fork, "it stays the same");
    let ask = |token: String| {
        let url = format!("http://{}/proxy/80-{id}/", server.address);
        reqwest::Client::new().get(url).header("x-wrenn-traffic-token", token).send()
    };
    assert_eq!(ask(tokens[1].clone()).await.unwrap().status(), 401, "another fork's token");
    assert_eq!(ask(tokens[0].clone()).await.unwrap().status(), 502, "its own");
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 4, "{tokens:?}");
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once() {
    let server = Server::start().await.ready().await;
    let (key, api) = server.key(json!({"name": "short"})).await;
    assert_eq!(api.get("/v1/whoami").await.ok()["name"], "short");
    let path = format!("/v1/keys/{}", key["id"].as_str().unwrap());
    assert!(server.api.delete(&path).await.ok()["revoked_unix_ms"].is_u64());
    assert_eq!(api.get("/v1/whoami").await.code(), "unauthenticated");
    assert_eq!(api.post("/v1/sandboxes", json!({})).await.code(), "unauthenticated");
    assert_eq!(server.api.delete("/v1/keys/ky000000000000000000").await.code(), "not_found");
}

#[tokio::test]
async fn who_guesses_keys_is_slowed_down_and_nobody_else() {
    let server = Server::start().await.ready().await;
    let guessing = server.api.with_key(Some("wrn_0000000000000000000000000000000000000000"));
    let mut refused = guessing.get("/v1/whoami").await;
    for _ in 0..200 {
        if refused.code() == "rate_limited" {
            break;
        }
        refused = guessing.get("/v1/whoami").await;
    }
    assert_eq!((refused.code(), refused.status.as_u16()), ("rate_limited", 429));
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    server.api.get("/v1/whoami").await.ok();
}

#[tokio::test]
async fn a_key_that_asks_too_often_waits_and_no_other() {
    let server = Server::new(Default::default(), |config| config.rate = 5).await.ready().await;
    let (_, api) = server.key(json!({})).await;
    let mut answers = Vec::new();
    for _ in 0..15 {
        answers.push(api.get("/v1/whoami").await);
    }
    let refused: Vec<&Answer> = answers.iter().filter(|answer| !answer.status.is_success()).collect();
    assert!(!refused.is_empty());
    for answer in refused {
        assert_eq!((answer.status.as_u16(), answer.code()), (429, "rate_limited"));
        assert_eq!(answer.headers["retry-after"], "1");
    }
    server.api.get("/v1/whoami").await.ok();
}

async fn audit(api: &Api) -> Vec<Value> {
    api.get("/v1/audit?limit=1000").await.ok()["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn whatever_changes_something_is_written_down_also_where_it_is_refused() {
    let server = Server::start().await.ready().await;
    let (key, api) = server.key(json!({"tenant": "acme", "scope": "read"})).await;
    let id = sandbox(&server.api).await;
    let changing: Vec<Operation> = guarded(&server).into_iter().filter(|operation| operation.method != "get").collect();
    let mut ids = Vec::new();
    for operation in &changing {
        let answer = ask(&api, operation, &id).await;
        ids.push((answer.headers["x-request-id"].to_str().unwrap().to_owned(), answer.code().to_owned()));
    }
    until("the audit", || async { audit(&api).await.len() >= changing.len() }).await;
    let entries = audit(&api).await;
    for (operation, (request, code)) in changing.iter().zip(&ids) {
        let entry = entries.iter().find(|entry| entry["request_id"] == request.as_str()).unwrap();
        let action = format!("{} {}", operation.method.to_uppercase(), operation.path);
        assert_eq!((&entry["action"], &entry["outcome"]), (&json!(action), &json!(code)), "{entry}");
        assert_eq!((&entry["tenant"], &entry["key_id"]), (&json!("acme"), &key["id"]));
        assert_eq!(entry["remote"], "127.0.0.1");
    }
    assert!(entries.iter().all(|entry| entry["tenant"] == "acme"), "no one else's");
    let all = audit(&server.api).await;
    assert!(all.iter().any(|entry| entry["action"] == "POST /v1/sandboxes" && entry["outcome"] == "ok"));
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains(api.key.as_deref().unwrap()), "no secrets");
}

#[tokio::test]
async fn a_key_is_shown_in_other_ways_too() {
    let server = Server::start().await.ready().await;
    let key = server.api.key.clone().unwrap();
    let nobody = server.api.with_key(None);
    for (name, value) in [
        ("authorization", format!("Bearer {key}")),
        ("x-api-key", key.replace("wrn_", "e2b_")),
        ("sec-websocket-protocol", format!("wrenn.v1, key.{key}")),
    ] {
        let request = nobody.request(Method::GET, "/v1/whoami").header(name, value);
        assert_eq!(nobody.answer("get", "/v1/whoami", request).await.ok()["name"], "first", "{name}");
    }
}
