//! Templates that are built through a server.

use serde_json::{Value, json};
use wrenn_testworld::api::Api;

use super::life::{create, sh};
use super::server::{Service, run};
use crate::world::{World, assert_failed, text};

/// How an operation ended.
async fn ended(api: &Api, id: &str) -> Value {
    loop {
        let now = api.get(&format!("/v1/operations/{id}")).await.ok();
        if now["state"] != "running" {
            return now;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[test]
fn a_template_is_built_used_removed_and_built_again() {
    let service = Service::of(World::without_templates(), Vec::new());
    let key = service.key.clone();
    run(async {
        let api = service.api().await;
        assert_eq!(api.get("/v1/templates").await.ok()["items"], json!([]));
        assert_eq!(api.post("/v1/sandboxes", json!({})).await.code(), "not_found");
        assert_eq!(api.post("/v1/templates", json!({ "build": "nothing" })).await.code(), "invalid");

        let begun = api.post("/v1/templates?wait=false", json!({ "build": "minimal" })).await;
        assert_eq!((begun.status.as_u16(), &begun.body["kind"]), (202, &json!("template_build")));
        // Who asks for the same meanwhile gets what is being made.
        let joined = api.post("/v1/templates", json!({ "build": "minimal" })).await;
        assert_eq!(joined.status.as_u16(), 201, "{:#}", joined.body);
        let built = ended(&api, begun.body["id"].as_str().unwrap()).await;
        assert_eq!((&built["state"], &built["template"]), (&json!("succeeded"), &joined.body["id"]), "{built:#}");
        assert!(!built["progress"].as_array().unwrap().is_empty(), "it tells its steps: {built:#}");

        let id = create(&api, json!({ "template": "minimal", "memory_mib": 128 })).await;
        assert!(sh(&api, &id, "cat /etc/os-release").await.1.contains("wrenn-minimal"));
        let refused = api.delete("/v1/templates/minimal").await;
        assert_eq!(refused.code(), "conflict");
        assert!(refused.body["error"]["message"].as_str().unwrap().contains(&id), "{:#}", refused.body);
        api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
        api.delete("/v1/templates/minimal").await.ok();
        assert_eq!(api.get("/v1/templates/minimal").await.code(), "not_found");
        assert_eq!(api.get("/v1/templates").await.ok()["items"], json!([]));
    });

    let url = service.url();
    let wrenn = |args: &[&str]| service.output(&[&["--url", &url, "--key", &key, "template"], args].concat());
    let built = wrenn(&["build", "minimal"]);
    assert!(built.status.success(), "{}", text(&built.stderr));
    assert!(text(&built.stdout).starts_with("template minimal is ready ("), "{}", text(&built.stdout));
    assert!(text(&built.stderr).lines().count() > 1, "it tells its steps: {}", text(&built.stderr));
    let listed: Value = serde_json::from_slice(&wrenn(&["ls", "--json"]).stdout).unwrap();
    assert_eq!(listed["templates"][0]["name"], "minimal", "{listed:#}");
    assert_failed(&wrenn(&["build", "minimal", "--refresh"]), &["leave --refresh out"]);
    assert!(wrenn(&["rm", "minimal"]).status.success());
    service.end();
}
