//! Keys: what each may, and how they end.

use serde_json::json;
use wrenn_testworld::api::nothing;

use super::life::create;
use super::server::{Service, run};

#[test]
fn a_tenant_has_its_own_sandboxes_and_its_quota() {
    let service = Service::begin();
    run(async {
        let admin = service.api().await;
        let key = |request: serde_json::Value| {
            let admin = admin.clone();
            async move { admin.post("/v1/keys", request).await.ok() }
        };
        let acme = key(json!({ "name": "acme", "tenant": "acme", "sandboxes_max": 1, "memory_mib_max": 300 })).await;
        let reader = key(json!({ "scope": "read", "tenant": "acme" })).await;
        let other = key(json!({ "tenant": "other" })).await;
        let with = |key: &serde_json::Value| admin.with_key(Some(key["secret"].as_str().unwrap()));
        let (acme_api, reader_api, other_api) = (with(&acme), with(&reader), with(&other));

        assert_eq!(acme_api.post("/v1/sandboxes", json!({ "memory_mib": 301 })).await.code(), "quota_exceeded");
        let id = create(&acme_api, nothing()).await;
        let path = format!("/v1/sandboxes/{id}");
        assert_eq!(acme_api.post("/v1/sandboxes", nothing()).await.code(), "quota_exceeded");

        assert!(reader_api.get(&path).await.ok()["access_token"].is_null());
        assert!(acme_api.get(&path).await.ok()["access_token"].is_string());
        assert_eq!(reader_api.post(&format!("{path}/pause"), nothing()).await.code(), "forbidden");
        assert_eq!(acme_api.get("/v1/keys").await.code(), "forbidden");
        for (method, route, body) in [
            ("GET", path.clone(), None),
            ("GET", format!("{path}/files?path=/etc/passwd"), None),
            ("GET", format!("{path}/events"), None),
            ("DELETE", path.clone(), None),
            ("POST", format!("{path}/pause"), Some(nothing())),
            ("POST", format!("{path}/exec"), Some(json!({ "command": ["true"] }))),
            ("POST", "/v1/snapshots".to_owned(), Some(json!({ "sandbox": id }))),
        ] {
            let answer = match (method, body) {
                ("GET", _) => other_api.get(&route).await,
                ("DELETE", _) => other_api.delete(&route).await,
                (_, body) => other_api.post(&route, body.unwrap()).await,
            };
            assert_eq!(answer.code(), "not_found", "{method} {route} of another tenant");
        }
        assert_eq!(other_api.get("/v1/sandboxes").await.ok()["items"], json!([]));
        assert_eq!(admin.get("/v1/sandboxes").await.ok()["items"].as_array().unwrap().len(), 1);

        admin.delete(&format!("/v1/keys/{}", acme["key"]["id"].as_str().unwrap())).await.ok();
        assert_eq!(acme_api.get(&path).await.code(), "unauthenticated");
        assert_eq!(admin.with_key(None).get(&path).await.code(), "unauthenticated");
        admin.delete(&path).await.ok();
    });
    service.end();
}
