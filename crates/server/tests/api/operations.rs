//! Work that goes on without a client, and requests that are sent twice.

use std::sync::Arc;

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_agent::fake::Fake;
use wrenn_agent::host_agent::Code;
use wrenn_testworld::api::{Answer, Api};

use crate::server::{Server, sandbox, until, within};

async fn create(api: &Api, key: &str, body: Value) -> Answer {
    let request = api.request(Method::POST, "/v1/sandboxes").header("idempotency-key", key).json(&body);
    api.answer("post", "/v1/sandboxes", request).await
}

#[tokio::test]
async fn of_many_requests_with_one_key_one_is_done() {
    let server = Server::start().await.ready().await;
    let answers = join_all((0..16).map(|_| create(&server.api, "once", json!({"vcpus": 2})))).await;
    let ids: Vec<Value> = answers.into_iter().map(|answer| answer.ok()["sandbox"]["id"].clone()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(server.agent.count(), 1);
    assert_eq!(create(&server.api, "once", json!({"vcpus": 3})).await.code(), "conflict");
    create(&server.api, "twice", json!({"vcpus": 2})).await.ok();
    assert_eq!(server.agent.count(), 2);
}

#[tokio::test]
async fn a_key_is_a_tenants_own() {
    let server = Server::start().await.ready().await;
    let (ours, theirs) = (server.tenant("ours").await, server.tenant("theirs").await);
    let one = create(&ours, "once", json!({})).await.ok();
    let other = create(&theirs, "once", json!({"vcpus": 2})).await.ok();
    assert_ne!(one["sandbox"]["id"], other["sandbox"]["id"]);
}

#[tokio::test]
async fn a_failure_is_answered_again() {
    let server = Server::start().await.ready().await;
    server.fail(Code::Failed, "the guest did not come up");
    let first = create(&server.api, "once", json!({})).await;
    server.fail_no_more();
    let again = create(&server.api, "once", json!({})).await;
    assert_eq!((first.code(), &first.body), ("failed", &again.body));
    assert_eq!(server.agent.count(), 0, "it was not tried again");
    create(&server.api, "twice", json!({})).await.ok();
}

#[tokio::test]
async fn a_repetition_needs_no_more_than_its_key() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    server.api.post("/v1/snapshots", json!({"sandbox": id, "name": "snap"})).await.ok();
    let first = create(&server.api, "once", json!({"snapshot": "snap"})).await.ok();
    server.api.delete("/v1/snapshots/snap").await.ok();
    let again = create(&server.api, "once", json!({"snapshot": "snap"})).await.ok();
    assert_eq!(first["sandbox"]["id"], again["sandbox"]["id"]);
}

async fn operation(api: &Api, id: &str) -> Value {
    api.get(&format!("/v1/operations/{id}")).await.ok()
}

#[tokio::test]
async fn nobody_needs_to_wait() {
    let server = Server::with(Fake::gated()).await.ready().await;
    let begun = server.api.post("/v1/sandboxes?wait=false", json!({})).await;
    let (status, place) = (begun.status, begun.headers["location"].to_str().unwrap().to_owned());
    let begun = begun.ok();
    let id = begun["id"].as_str().unwrap().to_owned();
    assert_eq!((status.as_u16(), place), (202, format!("/v1/operations/{id}")));
    assert_eq!((&begun["state"], &begun["sandbox"]), (&json!("running"), &Value::Null));
    within("the agent's turn", server.agent.at_gate.notified()).await;
    server.agent.gate.as_ref().unwrap().notify_one();
    until("its end", || async { operation(&server.api, &id).await["state"] == "succeeded" }).await;
    let made = operation(&server.api, &id).await["sandbox"].as_str().unwrap().to_owned();
    server.api.get(&format!("/v1/sandboxes/{made}")).await.ok();
    let stranger = server.tenant("stranger").await;
    assert_eq!(stranger.get(&format!("/v1/operations/{id}")).await.code(), "not_found");
}

#[tokio::test]
async fn a_client_that_hangs_up_changes_nothing() {
    let server = Server::with(Fake::gated()).await.ready().await;
    let api = server.api.clone();
    let asking = tokio::spawn(async move { api.post("/v1/sandboxes", json!({})).await });
    within("the agent's turn", server.agent.at_gate.notified()).await;
    asking.abort();
    drop(asking.await);
    server.agent.gate.as_ref().unwrap().notify_one();
    let is_there = || async { server.api.get("/v1/sandboxes").await.ok()["items"].as_array().unwrap().len() == 1 };
    until("the sandbox", is_there).await;
}

#[tokio::test]
async fn an_operation_outlives_its_server() {
    let server = Server::with(Fake::gated()).await.ready().await;
    let api = server.api.clone();
    let begun = create_async(&api, "once").await.ok();
    let id = begun["id"].as_str().unwrap().to_owned();
    within("the agent's turn", server.agent.at_gate.notified()).await;
    let server = server.restart().await;
    assert_eq!(operation(&server.api, &id).await["state"], "running");
    // The agent never heard that the server had gone.
    server.agent.gate.as_ref().unwrap().notify_one();
    until("its end", || async { operation(&server.api, &id).await["state"] == "succeeded" }).await;
    let made = operation(&server.api, &id).await["sandbox"].clone();
    let again = create(&server.api, "once", json!({})).await.ok();
    assert_eq!(again["sandbox"]["id"], made);
    assert_eq!(server.agent.count(), 1);
}

async fn create_async(api: &Api, key: &str) -> Answer {
    let path = "/v1/sandboxes?wait=false";
    let request = api.request(Method::POST, path).header("idempotency-key", key).json(&json!({}));
    api.answer("post", path, request).await
}

#[tokio::test]
async fn a_template_tells_how_far_it_is() {
    let server = Server::with(Fake::gated()).await.ready().await;
    let begun = server.api.post("/v1/templates?wait=false", json!({"build": "minimal"})).await.ok();
    let id = begun["id"].as_str().unwrap().to_owned();
    within("the agent's turn", server.agent.at_gate.notified()).await;
    let steps = wrenn_agent::fake::BUILD_STEPS;
    until("the first step", || async { operation(&server.api, &id).await["progress"] == json!([steps[0]]) }).await;
    server.agent.gate.as_ref().unwrap().notify_one();
    until("its end", || async { operation(&server.api, &id).await["state"] == "succeeded" }).await;
    assert_eq!(operation(&server.api, &id).await["template"], "id-of-minimal");
}

#[tokio::test]
async fn a_template_that_was_being_made_is_what_the_agent_made_of_it() {
    let server = Server::with(Fake::gated()).await.ready().await;
    let id = made_meanwhile(&server).await;
    server.api.post("/v1/snapshots", json!({"sandbox": id, "name": "snap"})).await.ok();
    let mut begun = Vec::new();
    for wanted in
        [json!({"build": "minimal"}), json!({"snapshot": "snap", "name": "mine"}), json!({"build": "unheard-of"})]
    {
        let operation = server.api.post("/v1/templates?wait=false", wanted).await.ok();
        begun.push(operation["id"].as_str().unwrap().to_owned());
    }
    let server = server.restart().await;
    // The agent never heard that the server had gone, and is asked again.
    for (operation_id, end) in begun.iter().zip([Ok("id-of-minimal"), Ok("id-of-mine"), Err("invalid")]) {
        let has_ended = || async {
            server.agent.gate.as_ref().unwrap().notify_waiters();
            operation(&server.api, operation_id).await["state"] != "running"
        };
        until("its end", has_ended).await;
        let ended = operation(&server.api, operation_id).await;
        match end {
            Ok(template) => assert_eq!((&ended["state"], &ended["template"]), (&json!("succeeded"), &json!(template))),
            Err(code) => assert_eq!((&ended["state"], &ended["error"]["code"]), (&json!("failed"), &json!(code))),
        }
    }
}

/// A sandbox, made by an agent that has to be let through.
async fn made_meanwhile(server: &Server) -> String {
    let through = async {
        within("the agent's turn", server.agent.at_gate.notified()).await;
        server.agent.gate.as_ref().unwrap().notify_one();
    };
    tokio::join!(sandbox(&server.api), through).0
}

#[tokio::test]
async fn an_operation_ends_when_its_database_is_back() {
    let server = Server::with(Fake::gated()).await.ready().await;
    let begun = create_async(&server.api, "once").await.ok();
    let id = begun["id"].as_str().unwrap().to_owned();
    within("the agent's turn", server.agent.at_gate.notified()).await;
    let (file, away) = (server.database_file(), server.database_file().with_extension("away"));
    std::fs::rename(&file, &away).unwrap();
    server.agent.gate.as_ref().unwrap().notify_one();
    until("the sandbox", || async { server.agent.count() == 1 }).await;
    assert_eq!(server.api.get(&format!("/v1/operations/{id}")).await.code(), "unavailable");
    std::fs::rename(&away, &file).unwrap();
    until("its end", || async { operation(&server.api, &id).await["state"] == "succeeded" }).await;
}

#[tokio::test]
async fn pages_are_stable_while_things_come_and_go() {
    let server = Server::start().await.ready().await;
    let mut ids = Vec::new();
    for _ in 0..25 {
        ids.push(sandbox(&server.api).await);
    }
    let (mut seen, mut path) = (Vec::new(), "/v1/sandboxes?limit=10".to_owned());
    loop {
        let page = server.api.get(&path).await.ok();
        let of_page: Vec<String> =
            page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect();
        assert!(of_page.len() <= 10);
        // One that was seen goes, one comes that is later than all.
        server.api.delete(&format!("/v1/sandboxes/{}", of_page[0])).await.ok();
        if seen.len() < 20 {
            ids.push(sandbox(&server.api).await);
        }
        seen.extend(of_page);
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/sandboxes?limit=10&cursor={cursor}");
    }
    assert_eq!(seen, ids);
    for path in ["/v1/operations", "/v1/keys", "/v1/audit", "/v1/snapshots", "/v1/templates"] {
        let odd = server.api.get(&format!("{path}?cursor=bm90aGluZw")).await;
        assert!(odd.status.is_success() || odd.code() == "invalid", "{path}: {odd:?}");
    }
}

#[tokio::test]
async fn parallel_calls_about_one_sandbox_end_in_an_answer_each() {
    let server = Arc::new(Server::start().await.ready().await);
    let id = sandbox(&server.api).await;
    let calls = (0..30).map(|n| {
        let (api, verb) = (server.api.clone(), ["pause", "resume", "fork"][n % 3]);
        let path = format!("/v1/sandboxes/{id}/{verb}");
        async move { api.post(&path, json!({})).await }
    });
    for answer in join_all(calls).await {
        assert!(answer.status.is_success() || answer.code() == "conflict", "{answer:?}");
    }
}
