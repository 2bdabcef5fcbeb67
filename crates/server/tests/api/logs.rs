//! The log of commands: nobody waits for it, and it outlives the server.

use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use wrenn_client::types::{Exit, LoggedExec};
use wrenn_engine::names::SandboxId;
use wrenn_server::db::{Database, DatabaseUrl, ExecRow};
use wrenn_server::exec_log::Entry;

use crate::server::{Server, sandbox, until, within};

fn begin(server: &Server, id: &str, pid: u32) -> Entry {
    server.running.app.execs.begin(&id.parse().unwrap(), pid, vec!["sleep".to_owned(), pid.to_string()])
}

async fn execs(server: &Server, id: &str) -> Vec<Value> {
    let logs = server.api.get(&format!("/v1/sandboxes/{id}/logs")).await.ok();
    logs["execs"].as_array().unwrap().clone()
}

/// Waits until the database has so many commands of a sandbox, of which so many have ended.
async fn kept(server: &Server, id: &str, all: usize, ended: usize) {
    let has_them = || async {
        let rows = server.running.app.db.execs(id).await.unwrap();
        (rows.len(), rows.iter().filter(|row| row.exec.exit.is_some()).count()) == (all, ended)
    };
    until("the log of commands", has_them).await;
}

#[tokio::test]
async fn it_outlives_a_server_that_is_killed_and_invents_no_end() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    let (done, under_way) = (begin(&server, &id, 7), begin(&server, &id, 8));
    under_way.wrote(5);
    done.ended(Exit::Exited { code: 3 });
    let told = execs(&server, &id).await;
    assert_eq!((&told[0]["exit"], &told[1]["exit"]), (&json!({"kind": "exited", "code": 3}), &Value::Null));
    kept(&server, &id, 2, 1).await;
    let server = server.restart().await;
    let again = execs(&server, &id).await;
    assert_eq!(again[0], told[0]);
    assert_eq!(
        again[1],
        json!({
            "pid": 8, "command": ["sleep", "8"], "started_unix_ms": told[1]["started_unix_ms"], "ended_unix_ms": null,
            "exit": {"kind": "unknown"}, "output_bytes": 5,
        })
    );
    // What this one runs is told from what the other one ran, also when the database has both.
    let _new = begin(&server, &id, 9);
    kept(&server, &id, 3, 1).await;
    let now = execs(&server, &id).await;
    assert_eq!((&now[2]["pid"], &now[2]["exit"]), (&json!(9), &Value::Null));
}

#[tokio::test]
async fn a_server_that_ends_well_has_written_all_of_it() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    begin(&server, &id, 7).ended(Exit::Signalled { signal: 9 });
    let folder = server.finish().await;
    let url: DatabaseUrl = format!("sqlite:{}", folder.path().join("server.db").display()).parse().unwrap();
    let rows = Database::open(&url).await.unwrap().execs(&id).await.unwrap();
    assert_eq!((rows.len(), rows[0].exec.exit), (1, Some(Exit::Signalled { signal: 9 })));
}

#[tokio::test]
async fn a_database_that_is_locked_keeps_no_command_waiting_and_loses_none() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    let mut other = SqliteConnection::connect(&format!("sqlite://{}", server.database_file().display())).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let began = std::time::Instant::now();
    for pid in 1..=250 {
        begin(&server, &id, pid).ended(Exit::TimedOut);
    }
    assert!(began.elapsed().as_secs() < 1, "{:?}", began.elapsed());
    let told = execs(&server, &id).await;
    assert_eq!((told.len(), &told[0]["pid"], &told[99]["pid"]), (100, &json!(151), &json!(250)));
    other.execute("ROLLBACK").await.unwrap();
    kept(&server, &id, 100, 100).await;
    assert_eq!(execs(&server, &id).await, told);
}

#[tokio::test]
async fn it_goes_with_its_sandbox_also_with_one_that_went_while_no_server_was_there() {
    let server = Server::start().await.ready().await;
    let (id, gone) = (sandbox(&server.api).await, SandboxId::from_random([25; 18]).to_string());
    let entry = begin(&server, &id, 7);
    kept(&server, &id, 1, 0).await;
    let exec = LoggedExec {
        pid: 1,
        command: Vec::new(),
        started_unix_ms: 1,
        ended_unix_ms: None,
        exit: None,
        output_bytes: 0,
    };
    let row = ExecRow { sandbox: gone.clone(), host: "fake".to_owned(), run: "before".to_owned(), exec };
    let elsewhere = ExecRow { host: "other".to_owned(), sandbox: "sbelsewhere".to_owned(), ..row.clone() };
    server.running.app.db.put_execs(&[row, elsewhere]).await.unwrap();
    let server = server.restart().await;
    kept(&server, &gone, 0, 0).await;
    kept(&server, "sbelsewhere", 1, 0).await;
    kept(&server, &id, 1, 0).await;
    server.api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    kept(&server, &id, 0, 0).await;
    entry.ended(Exit::TimedOut);
    within("the end", server.finish()).await;
}
