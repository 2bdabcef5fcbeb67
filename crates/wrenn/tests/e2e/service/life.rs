//! The whole life of a sandbox over REST.

use serde_json::json;
use wrenn_testworld::api::{Api, nothing};

use super::server::{Service, run};

/// Runs a shell script in a sandbox; its exit code and what it printed.
pub async fn sh(api: &Api, id: &str, script: &str) -> (i64, String) {
    let request = json!({ "command": ["sh", "-c", script] });
    let done = api.post(&format!("/v1/sandboxes/{id}/exec"), request).await.ok();
    assert_eq!(done["exit"]["kind"], "exited", "{done:#}");
    (done["exit"]["code"].as_i64().unwrap(), done["stdout"]["data"].as_str().unwrap().to_owned())
}

/// A new sandbox; its id.
pub async fn create(api: &Api, request: serde_json::Value) -> String {
    let made = api.post("/v1/sandboxes", request).await.ok();
    assert_eq!(made["sandbox"]["state"], "running");
    made["sandbox"]["id"].as_str().unwrap().to_owned()
}

/// What a sandbox that runs takes is told at once; what its guest says, as soon as that gets to answer.
async fn check_metrics(api: &Api, path: &str) {
    loop {
        let samples = api.get(&format!("{path}/metrics")).await.ok()["samples"].clone();
        let last = samples.as_array().unwrap().last().expect("it runs").clone();
        assert!(last["memory_bytes"].as_u64().unwrap() > 1 << 20, "{last:#}");
        let guest = &last["guest"];
        if guest.is_null() {
            // The machine is busy; it is asked again with the next sample.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            continue;
        }
        let number = |name: &str| guest[name].as_u64().unwrap_or_else(|| panic!("{name}: {guest:#}"));
        assert!((1 << 20..number("memory_total_bytes")).contains(&number("memory_used_bytes")), "{guest:#}");
        assert!(number("memory_total_bytes") <= 256 << 20, "{guest:#}");
        assert!((1..number("disk_total_bytes")).contains(&number("disk_used_bytes")), "{guest:#}");
        assert!((number("cpus"), guest["cpu_percent"].is_number()) == (1, true), "{guest:#}");
        assert!(number("unix_ms").abs_diff(last["unix_ms"].as_u64().unwrap()) < 60_000, "{last:#}");
        return;
    }
}

#[test]
fn a_sandbox_is_made_used_put_to_rest_branched_and_destroyed() {
    let service = Service::begin();
    run(async {
        let api = service.api().await;
        let wanted = json!({ "env": { "GREETING": "hello" }, "metadata": { "owner": "me" }, "timeout_s": 3600, "on_timeout": "pause" });
        let id = create(&api, wanted).await;
        let path = format!("/v1/sandboxes/{id}");
        let shown = api.get(&path).await.ok();
        assert_eq!((shown["metadata"]["owner"].as_str(), shown["tenant"].as_str()), (Some("me"), Some("default")));
        assert_eq!(sh(&api, &id, "echo $GREETING; echo kept > /dev/shm/note; exit 3").await, (3, "hello\n".to_owned()));

        let paused = api.post(&format!("{path}/pause"), nothing()).await.ok();
        assert_eq!(paused["sandbox"]["state"], "paused");
        assert!(!paused["timings"].as_array().unwrap().is_empty());
        let refused = api.post(&format!("{path}/exec"), json!({ "command": ["true"] })).await;
        assert_eq!(refused.code(), "conflict");
        assert_eq!(api.post(&format!("{path}/resume"), nothing()).await.ok()["sandbox"]["state"], "running");
        assert_eq!(sh(&api, &id, "cat /dev/shm/note").await, (0, "kept\n".to_owned()));

        let kept = api.post("/v1/snapshots", json!({ "sandbox": id, "name": "before" })).await;
        assert_eq!((kept.status.as_u16(), &kept.body["snapshot"]["name"]), (201, &json!("before")));
        let on_the_host = service.wrenn(&["snapshot", "ls"]).output().unwrap();
        assert!(crate::world::text(&on_the_host.stdout).contains(" default/before "), "{on_the_host:?}");
        let forked = api.post(&format!("{path}/fork"), json!({ "count": 2 })).await.ok();
        let forks: Vec<String> = forked["forks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|fork| fork["sandbox"]["id"].as_str().unwrap_or_else(|| panic!("{fork:#}")).to_owned())
            .collect();
        for fork in &forks {
            assert_eq!(sh(&api, fork, "cat /dev/shm/note; hostname").await, (0, format!("kept\n{fork}\n")));
        }
        assert_eq!(sh(&api, &id, "rm /dev/shm/note").await.0, 0);
        api.post(&format!("{path}/rollback"), json!({ "snapshot": "before" })).await.ok();
        assert_eq!(sh(&api, &id, "cat /dev/shm/note").await, (0, "kept\n".to_owned()));
        let from = create(&api, json!({ "snapshot": "before" })).await;
        assert_eq!(sh(&api, &from, "cat /dev/shm/note").await, (0, "kept\n".to_owned()));

        let listed = api.get("/v1/sandboxes?state=running&limit=3").await.ok();
        assert_eq!(listed["items"].as_array().unwrap().len(), 3);
        let cursor = listed["next_cursor"].as_str().unwrap();
        let rest = api.get(&format!("/v1/sandboxes?state=running&limit=3&cursor={cursor}")).await.ok();
        assert_eq!((rest["items"].as_array().unwrap().len(), rest["next_cursor"].is_null()), (1, true));
        let mine = api.get("/v1/sandboxes?metadata=owner%3Dme&state=running").await.ok();
        assert_eq!(mine["items"].as_array().unwrap().len(), 4, "forks and snapshots have the labels");

        let renewed = api.post(&format!("{path}/timeout"), json!({ "timeout_s": null })).await.ok();
        assert!(renewed["deadline_unix_ms"].is_null());
        let logs = api.get(&format!("{path}/logs")).await.ok();
        assert!(logs["console"]["data"].is_string(), "{logs:#}");
        let last = logs["execs"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&last["exit"]["code"], &last["output_bytes"]), (&json!(0), &json!(5)));
        check_metrics(&api, &path).await;
        let host = api.get("/v1/host").await.ok();
        assert_eq!(host["sandboxes"]["running"], 4);

        for id in forks.iter().chain([&from, &id]) {
            api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
            assert_eq!(api.get(&format!("/v1/sandboxes/{id}")).await.code(), "not_found");
        }
        api.delete("/v1/snapshots/before").await.ok();
        assert_eq!(api.get("/v1/sandboxes").await.ok()["items"], json!([]));
        let audit = api.get("/v1/audit?limit=1000").await.ok();
        let actions: Vec<&str> =
            audit["items"].as_array().unwrap().iter().map(|entry| entry["action"].as_str().unwrap()).collect();
        assert!(actions.contains(&"POST /v1/sandboxes/{id}/fork"), "{actions:?}");
    });
    service.end();
}

#[test]
fn the_same_request_makes_one_sandbox_also_when_the_server_is_killed_meanwhile() {
    let service = Service::begin();
    run(async {
        let api = service.api().await;
        let begin = |key: &'static str, body: serde_json::Value| {
            let api = api.clone();
            async move {
                let request =
                    api.request(reqwest::Method::POST, "/v1/sandboxes?wait=false").header("idempotency-key", key);
                api.answer("post", "/v1/sandboxes", request.json(&body)).await
            }
        };
        let first = begin("one", json!({ "cold": true })).await;
        assert_eq!(first.status.as_u16(), 202);
        let operation = first.body["id"].as_str().unwrap().to_owned();
        service.kill_server();
        api.until_ready().await;
        let again = begin("one", json!({ "cold": true })).await;
        assert_eq!(again.body["id"].as_str().unwrap(), operation);
        assert_eq!(begin("one", json!({})).await.code(), "conflict");
        let ended = loop {
            let now = api.get(&format!("/v1/operations/{operation}")).await.ok();
            if now["state"] != "running" {
                break now;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        let listed = api.get("/v1/sandboxes").await.ok();
        match ended["state"].as_str().unwrap() {
            "succeeded" => {
                assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed:#}");
                assert_eq!(listed["items"][0]["id"], ended["sandbox"]);
                api.delete(&format!("/v1/sandboxes/{}", ended["sandbox"].as_str().unwrap())).await.ok();
            }
            _failed => assert_eq!(listed["items"], json!([]), "{ended:#}"),
        }
    });
    service.end();
}

#[test]
fn sandboxes_go_on_when_the_whole_service_is_killed() {
    let mut service = Service::begin();
    let id = run(async {
        let api = service.api().await;
        let id = create(&api, nothing()).await;
        assert_eq!(sh(&api, &id, "echo kept > /dev/shm/note").await.0, 0);
        id
    });
    service.kill();
    service.start();
    run(async {
        let api = service.api().await;
        assert_eq!(api.get(&format!("/v1/sandboxes/{id}")).await.ok()["state"], "running");
        assert_eq!(sh(&api, &id, "cat /dev/shm/note").await, (0, "kept\n".to_owned()));
        api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    });
    service.end();
}
