//! One suite for both databases, and what goes wrong with each of them.

mod postgres;
mod sqlite;
mod suite;

use wrenn_client::types::{Key, LoggedExec, OperationKind, Scope, State};

use super::*;

/// Makes a test of each of the suite's functions with SQLite, and one function that runs all of them with what it is given.
macro_rules! suite {
    ($($name:ident,)*) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    let place = super::sqlite::Place::new();
                    super::suite::$name(&place.url()).await;
                }
            )*
        }

        /// Runs the suite, each function with a database of its own.
        async fn on_postgres(server: &wrenn_testworld::postgres::Postgres) {
            $(
                println!("{}", stringify!($name));
                suite::$name(&postgres::new_database(server)).await;
            )*
        }
    };
}

suite! {
    keys_are_found_used_and_revoked,
    keys_come_in_pages,
    a_key_has_one_secret_and_a_secret_one_key,
    what_was_done_is_recorded_in_order,
    a_record_is_all_or_nothing,
    the_record_is_trimmed_to_its_end,
    texts_of_others_do_no_harm,
    an_operation_ends_once,
    operations_come_in_pages,
    old_operations_are_forgotten,
    of_many_with_an_idempotency_key_one_is_first,
    requests_without_an_idempotency_key_never_meet,
    progress_is_bounded_and_loses_nothing,
    sandboxes_only_grow_newer,
    the_first_end_of_a_sandbox_counts,
    many_sandboxes_are_indexed_and_forgotten,
    commands_are_kept_as_they_were_seen_last,
    of_a_sandbox_the_last_commands_are_kept,
    commands_go_with_their_sandbox,
    opening_twice_changes_nothing,
    two_may_make_the_same_database,
    a_newer_version_s_database_is_refused,
    a_newer_version_s_rows_are_told,
    two_writers_do_not_disturb_each_other,
    whoever_stops_waiting_leaves_nothing_behind,
    a_closed_database_is_unavailable,
}

async fn open(url: &DatabaseUrl) -> Database {
    Database::open(url).await.unwrap()
}

/// A connection beside the pool's.
async fn beside(url: &DatabaseUrl) -> AnyConnection {
    sqlx::any::install_default_drivers();
    AnyConnection::connect_with(&url.options().unwrap()).await.unwrap()
}

/// Runs a statement beside the pool.
async fn run_beside(url: &DatabaseUrl, statement: &str) {
    let mut connection = beside(url).await;
    query(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

fn key(number: u64) -> Key {
    Key {
        id: format!("ky{number:018}"),
        name: format!("key {number}"),
        prefix: "wrn_0123…".to_owned(),
        scope: Scope::Write,
        tenant: "default".to_owned(),
        created_unix_ms: 1_000_000 + number,
        last_used_unix_ms: None,
        revoked_unix_ms: None,
        sandboxes_max: Some(7),
        vcpus_max: None,
        memory_mib_max: Some(u32::MAX),
    }
}

fn digest(number: u64) -> String {
    format!("{number:064x}")
}

fn entry(number: u64, tenant: &str) -> NewAuditEntry {
    NewAuditEntry {
        unix_ms: number,
        key_id: Some("ky0".to_owned()),
        tenant: Some(tenant.to_owned()),
        action: "POST /v1/sandboxes".to_owned(),
        object: None,
        outcome: "ok".to_owned(),
        request_id: format!("request {number}"),
        remote: Some("127.0.0.1:5".to_owned()),
    }
}

fn operation(number: u64, tenant: &str, idempotency_key: Option<&str>) -> NewOperation {
    NewOperation {
        id: format!("op{tenant}{number:010}"),
        kind: OperationKind::Create,
        tenant: tenant.to_owned(),
        key_id: "ky0".to_owned(),
        idempotency_key: idempotency_key.map(str::to_owned),
        request_digest: digest(number),
        wanted: None,
        created_unix_ms: 1_000_000 + number,
    }
}

fn sandbox_row(number: u64, host: &str, revision: u64) -> SandboxRow {
    SandboxRow {
        id: format!("sb{number:018}"),
        host: host.to_owned(),
        tenant: "default".to_owned(),
        key_id: None,
        state: State::Running,
        revision,
        created_unix_ms: 1_000_000 + number,
        ended: None,
    }
}

fn exec_row(number: u64, sandbox: &str) -> ExecRow {
    let exec = LoggedExec {
        pid: u32::try_from(number % 7).unwrap(),
        command: vec!["sh".to_owned(), "-c".to_owned(), format!("echo 'nul \0' {number}")],
        started_unix_ms: 1_000_000 + number,
        ended_unix_ms: None,
        exit: None,
        output_bytes: 0,
    };
    ExecRow { sandbox: sandbox.to_owned(), host: "h".to_owned(), run: "first".to_owned(), exec }
}
