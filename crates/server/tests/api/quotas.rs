//! How much a key may have: also of what is being made, forked, and brought back.

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_agent::fake::Fake;
use wrenn_testworld::api::Answer;

use crate::server::{Server, sandbox, sandbox_as, within};

#[tokio::test]
async fn of_many_at_once_as_many_are_made_as_may_be() {
    let server = Server::start().await.ready().await;
    let (_, api) = server.key(json!({"sandboxes_max": 3})).await;
    let answers = join_all((0..10).map(|_| api.post("/v1/sandboxes", json!({})))).await;
    let (made, refused): (Vec<Answer>, Vec<Answer>) =
        answers.into_iter().partition(|answer| answer.status.is_success());
    assert_eq!((made.len(), server.agent.count()), (3, 3));
    assert!(refused.iter().all(|answer| (answer.code(), answer.status.as_u16()) == ("quota_exceeded", 429)));
    let id = made[0].body["sandbox"]["id"].as_str().unwrap();
    api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    sandbox(&api).await;
    assert_eq!(api.post("/v1/sandboxes", json!({})).await.code(), "quota_exceeded");
}

#[tokio::test]
async fn what_is_being_made_counts_once() {
    let server = Server::with(Fake::gated()).await.ready().await;
    let (_, api) = server.key(json!({"sandboxes_max": 1})).await;
    let making = tokio::spawn({
        let api = api.clone();
        async move { api.post("/v1/sandboxes", json!({})).await }
    });
    within("the agent's turn", server.agent.at_gate.notified()).await;
    assert_eq!(api.post("/v1/sandboxes", json!({})).await.code(), "quota_exceeded");
    server.agent.gate.as_ref().unwrap().notify_one();
    making.await.unwrap().ok();
}

#[tokio::test]
async fn forks_and_sizes_count() {
    let server = Server::start().await.ready().await;
    let (_, api) = server.key(json!({"sandboxes_max": 4, "vcpus_max": 6, "memory_mib_max": 2048})).await;
    assert_eq!(api.post("/v1/sandboxes", json!({"vcpus": 7})).await.code(), "quota_exceeded");
    assert_eq!(api.post("/v1/sandboxes", json!({"memory_mib": 2049})).await.code(), "quota_exceeded");
    let id = sandbox_as(&api, json!({"vcpus": 2})).await;
    let fork = format!("/v1/sandboxes/{id}/fork");
    assert_eq!(api.post(&fork, json!({"count": 4})).await.code(), "quota_exceeded");
    assert_eq!(api.post(&fork, json!({"count": 3})).await.code(), "quota_exceeded", "too many CPUs");
    let forks = api.post(&fork, json!({"count": 2})).await.ok()["forks"].clone();
    assert_eq!(forks.as_array().unwrap().len(), 2);
    assert_eq!(api.post("/v1/sandboxes", json!({})).await.code(), "quota_exceeded");
    assert_eq!(server.agent.count(), 3);
}

#[tokio::test]
async fn what_rests_takes_no_cpus_until_it_comes_back_in_whatever_way() {
    let server = Server::start().await.ready().await;
    let (_, api) = server.key(json!({"vcpus_max": 1})).await;
    let id = sandbox_as(&api, json!({"auto_resume": true})).await;
    let path = format!("/v1/sandboxes/{id}");
    api.post("/v1/snapshots", json!({"sandbox": id, "name": "snap"})).await.ok();
    api.post(&format!("{path}/pause"), json!({})).await.ok();
    let other = sandbox(&api).await;
    assert_eq!(api.post(&format!("{path}/resume"), json!({})).await.code(), "quota_exceeded");
    assert_eq!(api.post(&format!("{path}/rollback"), json!({"snapshot": "snap"})).await.code(), "quota_exceeded");
    assert_eq!(api.post(&format!("{path}/exec"), json!({"command": ["true"]})).await.code(), "quota_exceeded");
    assert_eq!(api.get(&format!("{path}/files/list")).await.code(), "quota_exceeded");
    // Somebody else's key does not help: it counts for the key that made it.
    assert_eq!(server.api.post(&format!("{path}/resume"), json!({})).await.code(), "quota_exceeded");
    let proxied = format!("/proxy/8080-{id}/");
    let answer = server.api.request(Method::GET, &proxied).send().await.unwrap();
    let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
    assert_eq!((status, &body["error"]["code"]), (429, &json!("quota_exceeded")));
    assert_eq!(api.get(&path).await.ok()["state"], "paused");
    api.delete(&format!("/v1/sandboxes/{other}")).await.ok();
    api.post(&format!("{path}/resume"), json!({})).await.ok();
    api.post(&format!("{path}/rollback"), json!({"snapshot": "snap"})).await.ok();
}
