//! What the server needs goes away and comes back: its database, and the host's agent.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use tokio::sync::oneshot;
use wrenn_agent::fake::Fake;
use wrenn_agent::host_agent::{Code, Ended};
use wrenn_agent::rpc::{self, Remote};
use wrenn_server::limits;

use crate::server::{Server, sandbox, until, within};

/// Long enough that a key is looked up anew.
async fn until_keys_are_forgotten() {
    tokio::time::sleep(limits::KEY_BELIEVED_FOR + Duration::from_millis(50)).await;
}

#[tokio::test]
async fn a_database_that_is_gone_touches_no_sandbox_and_is_found_again() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    let (file, away) = (server.database_file(), server.database_file().with_extension("away"));
    std::fs::rename(&file, &away).unwrap();
    until_keys_are_forgotten().await;
    for refused in [
        server.api.get("/v1/sandboxes").await,
        server.api.get("/v1/keys").await,
        server.api.post("/v1/sandboxes", json!({})).await,
        server.api.delete(&format!("/v1/sandboxes/{id}")).await,
    ] {
        assert_eq!((refused.code(), refused.status.as_u16()), ("unavailable", 503));
        assert!(refused.headers.contains_key("retry-after"));
        assert!(refused.body["error"]["remedy"].as_str().unwrap().contains("no sandbox is touched"));
    }
    let health = server.api.get("/healthz").await;
    assert_eq!(
        (health.status.as_u16(), &health.body["database"], &health.body["agent"]),
        (503, &json!(false), &json!(true))
    );
    assert_eq!(server.agent.count(), 1);
    std::fs::rename(&away, &file).unwrap();
    server.api.get("/v1/keys").await.ok();
    server.api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    let is_noted = || async {
        let items = server.api.get("/v1/audit").await.ok()["items"].to_string();
        items.contains("DELETE /v1/sandboxes/{id}")
    };
    until("the audit", is_noted).await;
}

#[tokio::test]
async fn a_database_that_is_locked_is_read_and_refuses_what_must_be_written() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    let mut other = SqliteConnection::connect(&format!("sqlite://{}", server.database_file().display())).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let began = std::time::Instant::now();
    server.api.get("/v1/keys").await.ok();
    server.api.get(&format!("/v1/sandboxes/{id}")).await.ok();
    let refused = server.api.post("/v1/sandboxes?wait=false", json!({})).await;
    assert_eq!((refused.code(), refused.status.as_u16()), ("unavailable", 503));
    assert_eq!(server.api.post("/v1/keys", json!({})).await.code(), "unavailable");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(server.agent.count(), 1, "what cannot be written down is not begun");
    other.execute("ROLLBACK").await.unwrap();
    server.api.post("/v1/sandboxes?wait=false", json!({})).await.ok();
    until("the sandbox", || async { server.agent.count() == 2 }).await;
}

#[tokio::test]
async fn an_agent_that_fails_is_told_of_and_its_errors_are_ours() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    for (code, name, status) in [
        (Code::Failed, "failed", 500),
        (Code::NeedsRepair, "needs_repair", 500),
        (Code::Unavailable, "unavailable", 503),
        (Code::Exhausted, "exhausted", 503),
        (Code::Denied, "conflict", 409),
        (Code::Invalid, "invalid", 400),
        (Code::Destroyed, "destroyed", 410),
        (Code::NotFound, "not_found", 404),
    ] {
        server.fail(code, "so it is");
        let refused = server.api.post(&format!("/v1/sandboxes/{id}/pause"), json!({})).await;
        server.fail_no_more();
        assert_eq!((refused.code(), refused.status.as_u16()), (name, status));
        assert_eq!(refused.body["error"]["message"], "so it is");
    }
}

#[tokio::test]
async fn an_agent_that_is_not_there_yet_goes_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let server = Server::over(Arc::new(Remote::at(&socket))).await;
    assert_eq!(server.api.get("/v1/sandboxes").await.code(), "unavailable");
    assert_eq!(server.api.post("/v1/sandboxes", json!({})).await.code(), "unavailable");
    let health = server.api.get("/healthz").await;
    assert_eq!(
        (health.status.as_u16(), &health.body["database"], &health.body["agent"]),
        (503, &json!(true), &json!(false))
    );
    server.api.get("/v1/whoami").await.ok();
    let fake = Arc::new(Fake::default());
    let mut made = Vec::new();
    for _ in 0..2 {
        let (end, ended) = oneshot::channel::<()>();
        let listener = rpc::listen(&socket).await.unwrap();
        let serving = tokio::spawn(rpc::serve(Arc::clone(&fake) as _, listener, async { drop(ended.await) }));
        within("the agent", server.api.until_ready()).await;
        made.push(sandbox(&server.api).await);
        let items = server.api.get("/v1/sandboxes").await.ok()["items"].clone();
        assert_eq!(items.as_array().unwrap().len(), made.len(), "what was there is there");
        drop(end);
        within("its end", serving).await.unwrap();
        until("that it is gone", || async { !server.running.app.world.is_synced() }).await;
        let refused = server.api.get(&format!("/v1/sandboxes/{}", made[0])).await;
        assert_eq!((refused.code(), refused.status.as_u16()), ("unavailable", 503));
        assert!(refused.headers.contains_key("retry-after"));
    }
}

#[tokio::test]
async fn a_server_that_ends_has_written_everything_down() {
    let server = Server::start().await.ready().await;
    sandbox(&server.api).await;
    let folder = within("the end", server.finish()).await;
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["server.db"], "all is in its one file");
}

#[tokio::test]
async fn what_ended_while_there_was_no_server_is_found_out_by_the_next_one() {
    let server = Server::start().await.ready().await;
    let (gone, stays) = (sandbox(&server.api).await, sandbox(&server.api).await);
    let known = async |server: &Server| server.running.app.db.live_sandboxes("fake").await.unwrap();
    until("the record", || async { known(&server).await.len() == 2 }).await;
    let id = gone.parse().unwrap();
    let server = server.restart_after(|agent| agent.gone(&id, Ended::TimedOut)).await;
    until("the record", || async { known(&server).await == [stays.clone()] }).await;
    let refused = server.api.get(&format!("/v1/sandboxes/{gone}")).await;
    assert_eq!(refused.code(), "not_found");
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("is gone (unknown"), "{message}");
    server.api.get(&format!("/v1/sandboxes/{stays}")).await.ok();
}
