//! What every database must do.

use std::collections::BTreeSet;
use std::time::Duration;

use wrenn_client::types::{Code, ErrorBody, Exit, NewTemplate, OperationState, Why};

use super::*;

pub(super) async fn keys_are_found_used_and_revoked(url: &DatabaseUrl) {
    let database = open(url).await;
    assert!(!database.has_keys().await.unwrap());
    let mut key = key(1);
    database.add_key(&key, &digest(1)).await.unwrap();
    assert!(database.has_keys().await.unwrap());
    assert_eq!(database.find_key(&digest(1)).await.unwrap().as_ref(), Some(&key));
    assert_eq!(database.key(&key.id).await.unwrap().as_ref(), Some(&key));
    assert_eq!(database.find_key(&digest(2)).await.unwrap(), None);
    assert_eq!(database.key("ky").await.unwrap(), None);

    for (unix_ms, noted) in [(70_000, 70_000), (129_999, 70_000), (60_000, 70_000), (130_000, 130_000)] {
        database.note_key_use(&key.id, unix_ms).await.unwrap();
        key.last_used_unix_ms = Some(noted);
        assert_eq!(database.key(&key.id).await.unwrap().as_ref(), Some(&key), "used at {unix_ms}");
    }
    key.revoked_unix_ms = Some(200_000);
    assert_eq!(database.revoke_key(&key.id, 200_000).await.unwrap().as_ref(), Some(&key));
    assert_eq!(database.revoke_key(&key.id, 300_000).await.unwrap().as_ref(), Some(&key), "the first time counts");
    assert_eq!(database.find_key(&digest(1)).await.unwrap(), Some(key));
    assert_eq!(database.revoke_key("ky", 1).await.unwrap(), None);
    assert!(!database.has_keys().await.unwrap());
}

pub(super) async fn keys_come_in_pages(url: &DatabaseUrl) {
    let database = open(url).await;
    for number in [3, 1, 2, 5, 4] {
        let mut key = key(number);
        // Two of them at the same time.
        key.created_unix_ms = if number == 4 { 1_000_003 } else { key.created_unix_ms };
        database.add_key(&key, &digest(number)).await.unwrap();
    }
    let mut seen = Vec::new();
    loop {
        let after = seen.last().cloned();
        let page = database.keys(after.as_deref(), 2).await.unwrap();
        seen.extend(page.iter().map(|key| key.id.clone()));
        if page.len() < 2 {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5].map(|number| key(number).id));
    assert_eq!(database.keys(None, u32::MAX).await.unwrap().len(), 5);
    assert_eq!(database.keys(Some("ky"), 9).await.unwrap(), [], "after nobody comes nobody");
}

pub(super) async fn a_key_has_one_secret_and_a_secret_one_key(url: &DatabaseUrl) {
    let database = open(url).await;
    database.add_key(&key(1), &digest(1)).await.unwrap();
    for (number, secret) in [(1, 2), (2, 1)] {
        let refused = database.add_key(&key(number), &digest(secret)).await.unwrap_err();
        assert!(matches!(refused, DbError::Query { .. }), "{refused:?}");
        assert!(!refused.is_unavailable());
    }
    assert_eq!(database.keys(None, 9).await.unwrap(), [key(1)]);
}

pub(super) async fn what_was_done_is_recorded_in_order(url: &DatabaseUrl) {
    let database = open(url).await;
    database.record(&[]).await.unwrap();
    database.record(&[entry(1, "a"), entry(2, "b")]).await.unwrap();
    database.record(&[entry(3, "a")]).await.unwrap();
    let numbers = async |tenant, before, limit| {
        let entries = database.audit(tenant, before, limit).await.unwrap();
        entries.iter().map(|entry| (entry.id, entry.unix_ms)).collect::<Vec<_>>()
    };
    assert_eq!(numbers(None, None, 10).await, [(3, 3), (2, 2), (1, 1)]);
    assert_eq!(numbers(None, None, 1).await, [(3, 3)]);
    assert_eq!(numbers(None, Some(3), 1).await, [(2, 2)]);
    assert_eq!(numbers(Some("a"), Some(3), 10).await, [(1, 1)]);
    assert_eq!(numbers(Some("a"), Some(u64::MAX), 10).await, [(3, 3), (1, 1)]);
    assert_eq!(numbers(Some("c"), None, 10).await, []);
    let first = database.audit(None, Some(2), 1).await.unwrap().remove(0);
    let expected = entry(1, "a");
    assert_eq!((first.key_id, first.tenant), (expected.key_id, expected.tenant));
    assert_eq!((first.action, first.object), (expected.action, None));
    assert_eq!((first.outcome, first.request_id), (expected.outcome, expected.request_id));
    assert_eq!(first.remote, expected.remote);
}

pub(super) async fn a_record_is_all_or_nothing(url: &DatabaseUrl) {
    let database = open(url).await;
    database.record(&[entry(1, "a")]).await.unwrap();
    run_beside(
        url,
        "INSERT INTO audit (id, unix_ms, action, outcome, request_id) VALUES (3, 0, 'in the way', 'ok', '')",
    )
    .await;
    let refused = database.record(&[entry(2, "a"), entry(3, "a")]).await.unwrap_err();
    assert!(matches!(refused, DbError::Query { .. }), "{refused:?}");
    run_beside(url, "DELETE FROM audit WHERE id = 3").await;
    database.record(&[entry(4, "a")]).await.unwrap();
    let entries = database.audit(None, None, 10).await.unwrap();
    let numbers: Vec<_> = entries.iter().map(|entry| (entry.id, entry.unix_ms)).collect();
    assert_eq!(numbers, [(2, 4), (1, 1)], "without a hole");
}

pub(super) async fn the_record_is_trimmed_to_its_end(url: &DatabaseUrl) {
    let database = open(url).await;
    assert_eq!(database.trim_audit(0).await.unwrap(), 0);
    let entries: Vec<_> = (1..=700).map(|number| entry(number, "a")).collect();
    database.record(&entries).await.unwrap();
    assert_eq!(database.trim_audit(u64::MAX).await.unwrap(), 0);
    assert_eq!(database.trim_audit(100).await.unwrap(), 600);
    assert_eq!(database.trim_audit(100).await.unwrap(), 0);
    let left = database.audit(None, None, 1000).await.unwrap();
    assert_eq!((left.len(), left[0].id, left[99].id), (100, 700, 601));
    assert_eq!(database.trim_audit(0).await.unwrap(), 100);
    database.record(&[entry(1, "a")]).await.unwrap();
    assert_eq!(database.audit(None, None, 9).await.unwrap()[0].id, 701, "numbers are not used twice");
}

pub(super) async fn texts_of_others_do_no_harm(url: &DatabaseUrl) {
    let database = open(url).await;
    let texts = ["a\0b", "'; DROP TABLE audit; --", "$1 ? %s \\ \"", "käse 🧀 \u{202e}", "\u{1b}[31m\r\n"];
    for text in texts {
        let object = Some(text.to_owned());
        database.record(&[NewAuditEntry { object, ..entry(1, "a") }]).await.unwrap();
        let kept = database.audit(None, None, 1).await.unwrap().remove(0).object.unwrap();
        assert_eq!(kept, text.replace('\0', "\u{fffd}"));
    }
    let action = "ä".repeat(limits::AUDIT_TEXT_BYTES_MAX);
    database.record(&[NewAuditEntry { action, ..entry(1, "a") }]).await.unwrap();
    let kept = database.audit(None, None, 1).await.unwrap().remove(0).action;
    assert_eq!(kept, "ä".repeat(limits::AUDIT_TEXT_BYTES_MAX / 2));
}

pub(super) async fn an_operation_ends_once(url: &DatabaseUrl) {
    let database = open(url).await;
    let new = operation(1, "a", Some("once"));
    assert_eq!(database.begin_operation(&new).await.unwrap(), Begun::New);
    let running = database.operation(&new.id).await.unwrap().unwrap();
    assert_eq!(running.operation.state, OperationState::Running);
    assert_eq!((&running.tenant, &running.key_id), (&new.tenant, &new.key_id));
    assert_eq!((&running.idempotency_key, &running.request_digest), (&new.idempotency_key, &new.request_digest));
    assert_eq!(database.running_operations().await.unwrap(), [running]);

    let error = ErrorBody { code: Code::Exhausted, message: "no \"room\"\0".to_owned(), remedy: None };
    let failed = OperationEnd::Failed(error.clone());
    assert!(database.end_operation(&new.id, &failed, 5).await.unwrap());
    let succeeded = OperationEnd::Succeeded { sandbox: Some("sb1".to_owned()), template: None };
    assert!(!database.end_operation(&new.id, &succeeded, 6).await.unwrap());
    assert!(!database.end_operation("op", &succeeded, 6).await.unwrap());
    let ended = database.operation(&new.id).await.unwrap().unwrap().operation;
    assert_eq!((ended.state, ended.ended_unix_ms), (OperationState::Failed, Some(5)));
    assert_eq!((ended.error, ended.sandbox), (Some(error), None));
    assert_eq!(database.running_operations().await.unwrap(), []);

    let wanted = NewTemplate { snapshot: Some("one \"of\" \0".to_owned()), ..NewTemplate::default() };
    let other = NewOperation { wanted: Some(wanted.clone()), ..operation(2, "a", None) };
    database.begin_operation(&other).await.unwrap();
    assert_eq!(database.operation(&other.id).await.unwrap().unwrap().wanted, Some(wanted));
    assert!(database.end_operation(&other.id, &succeeded, 7).await.unwrap());
    let ended = database.operation(&other.id).await.unwrap().unwrap().operation;
    assert_eq!((ended.state, ended.sandbox.as_deref()), (OperationState::Succeeded, Some("sb1")));
    assert_eq!(database.operation("op").await.unwrap(), None);
}

pub(super) async fn operations_come_in_pages(url: &DatabaseUrl) {
    let database = open(url).await;
    for number in 1..=3 {
        database.begin_operation(&operation(number, "a", None)).await.unwrap();
        database.begin_operation(&operation(number, "b", None)).await.unwrap();
    }
    let ids = async |tenant, before: Option<&str>, limit| {
        let rows = database.operations(tenant, before, limit).await.unwrap();
        rows.into_iter().map(|row| row.operation.id).collect::<Vec<_>>()
    };
    let id = |tenant, number| operation(number, tenant, None).id;
    assert_eq!(ids(Some("a"), None, 9).await, [id("a", 3), id("a", 2), id("a", 1)]);
    assert_eq!(ids(Some("a"), Some(&id("a", 3)), 1).await, [id("a", 2)]);
    assert_eq!(ids(None, Some(&id("b", 3)), 2).await, [id("a", 3), id("b", 2)]);
    assert_eq!(ids(None, Some("op"), 9).await, [""; 0]);
}

pub(super) async fn old_operations_are_forgotten(url: &DatabaseUrl) {
    let database = open(url).await;
    let done = OperationEnd::Succeeded { sandbox: None, template: Some("t".to_owned()) };
    for (number, ended) in [(1, Some(10)), (2, Some(20)), (3, None)] {
        let new = operation(number, "a", Some(&format!("key {number}")));
        database.begin_operation(&new).await.unwrap();
        if let Some(unix_ms) = ended {
            database.end_operation(&new.id, &done, unix_ms).await.unwrap();
        }
    }
    assert_eq!(database.forget_operations(10).await.unwrap(), 0);
    assert_eq!(database.forget_operations(20).await.unwrap(), 1);
    assert_eq!(database.operations(None, None, 9).await.unwrap().len(), 2);
    let again = operation(4, "a", Some("key 1"));
    assert_eq!(database.begin_operation(&again).await.unwrap(), Begun::New, "its idempotency key is free again");
    assert_eq!(database.forget_operations(u64::MAX).await.unwrap(), 1, "what runs stays");
}

pub(super) async fn of_many_with_an_idempotency_key_one_is_first(url: &DatabaseUrl) {
    let database = open(url).await;
    for round in 0..5 {
        let name = format!("round {round}");
        let mut racers = tokio::task::JoinSet::new();
        for number in 0..16 {
            let (database, new) = (database.clone(), operation(round * 100 + number, "a", Some(&name)));
            racers.spawn(async move { (new.id.clone(), database.begin_operation(&new).await.unwrap()) });
        }
        let (mut first, mut told) = (Vec::new(), BTreeSet::new());
        for (id, begun) in racers.join_all().await {
            match begun {
                Begun::New => first.push(id),
                Begun::Known(row) => drop(told.insert(row.operation.id)),
            }
        }
        assert_eq!(first.len(), 1);
        assert_eq!(told, first.into_iter().collect(), "the others were told of the first");
    }
    let others = operation(1000, "b", Some("round 0"));
    assert_eq!(database.begin_operation(&others).await.unwrap(), Begun::New, "each tenant has its own");
}

pub(super) async fn requests_without_an_idempotency_key_never_meet(url: &DatabaseUrl) {
    let database = open(url).await;
    for number in 0..3 {
        assert_eq!(database.begin_operation(&operation(number, "a", None)).await.unwrap(), Begun::New);
    }
    let twice = database.begin_operation(&operation(0, "a", Some("new"))).await.unwrap_err();
    assert!(matches!(twice, DbError::Query { .. }), "an id is used once: {twice:?}");
}

pub(super) async fn progress_is_bounded_and_loses_nothing(url: &DatabaseUrl) {
    let database = open(url).await;
    let new = operation(1, "a", None);
    database.begin_operation(&new).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (database, id) = (database.clone(), new.id.clone());
        writers.spawn(async move { database.progress_operation(&id, &format!("line {number}")).await.unwrap() });
    }
    assert!(writers.join_all().await.into_iter().all(|running| running));
    let lines = async || database.operation(&new.id).await.unwrap().unwrap().operation.progress;
    let seen: BTreeSet<String> = lines().await.into_iter().collect();
    assert_eq!(seen, (0..20).map(|number| format!("line {number}")).collect());

    for number in 0..limits::PROGRESS_LINES_MAX {
        database.progress_operation(&new.id, &format!("later {number}")).await.unwrap();
    }
    let kept = lines().await;
    assert_eq!((kept.len(), kept[0].as_str()), (limits::PROGRESS_LINES_MAX, "later 0"));
    database.progress_operation(&new.id, &"x\0".repeat(limits::PROGRESS_LINE_BYTES_MAX)).await.unwrap();
    assert_eq!(lines().await.last().unwrap().chars().count(), limits::PROGRESS_LINE_BYTES_MAX);

    let done = OperationEnd::Succeeded { sandbox: None, template: None };
    database.end_operation(&new.id, &done, 1).await.unwrap();
    assert!(!database.progress_operation(&new.id, "too late").await.unwrap());
    assert!(!database.progress_operation("op", "of nothing").await.unwrap());
}

pub(super) async fn sandboxes_only_grow_newer(url: &DatabaseUrl) {
    let database = open(url).await;
    let row = |revision, state| SandboxRow { state, ..sandbox_row(1, "h", revision) };
    let id = row(1, State::Running).id;
    for (put, stays) in [
        (row(3, State::Running), row(3, State::Running)),
        (row(2, State::Creating), row(3, State::Running)),
        (row(3, State::Paused), row(3, State::Paused)),
        (row(u64::MAX >> 1, State::Running), row(u64::MAX >> 1, State::Running)),
    ] {
        database.put_sandboxes(&[put]).await.unwrap();
        assert_eq!(database.sandbox(&id).await.unwrap(), Some(stays));
    }
    let both = [row(5, State::Running), row(4, State::Running), sandbox_row(2, "h", 1), sandbox_row(2, "other", 1)];
    database.put_sandboxes(&both).await.unwrap();
    assert_eq!(database.live_sandboxes("h").await.unwrap(), [id, sandbox_row(2, "h", 1).id]);
    assert_eq!(database.live_sandboxes("nowhere").await.unwrap(), [""; 0]);
    assert_eq!(database.sandbox("sb").await.unwrap(), None);
}

pub(super) async fn the_first_end_of_a_sandbox_counts(url: &DatabaseUrl) {
    let database = open(url).await;
    let row = sandbox_row(1, "h", 3);
    assert!(!database.end_sandbox("h", &row.id, Why::Requested, 5).await.unwrap(), "nothing is known of it");
    database.put_sandboxes(std::slice::from_ref(&row)).await.unwrap();
    assert!(!database.end_sandbox("other", &row.id, Why::Requested, 5).await.unwrap());
    assert!(database.end_sandbox("h", &row.id, Why::TimedOut, 5).await.unwrap());
    assert!(!database.end_sandbox("h", &row.id, Why::Unknown, 6).await.unwrap());
    let ended = SandboxRow { ended: Some((Why::TimedOut, 5)), ..row.clone() };
    assert_eq!(database.sandbox(&row.id).await.unwrap(), Some(ended.clone()));
    let late = SandboxRow { ended: Some((Why::Unknown, 9)), revision: 4, ..row.clone() };
    for told in [SandboxRow { revision: 4, ..row.clone() }, late] {
        database.put_sandboxes(&[told]).await.unwrap();
        let stays = SandboxRow { revision: 4, ..ended.clone() };
        assert_eq!(database.sandbox(&row.id).await.unwrap(), Some(stays));
    }
    assert_eq!(database.live_sandboxes("h").await.unwrap(), [""; 0]);
    assert_eq!(database.forget_sandboxes(5).await.unwrap(), 0);
    assert_eq!(database.forget_sandboxes(6).await.unwrap(), 1);
    assert_eq!(database.sandbox(&row.id).await.unwrap(), None);
}

pub(super) async fn many_sandboxes_are_indexed_and_forgotten(url: &DatabaseUrl) {
    let database = open(url).await;
    let gone = |number| SandboxRow { ended: Some((Why::Requested, 1)), ..sandbox_row(number, "h", 1) };
    let rows: Vec<_> = (0..1000).map(gone).chain((1000..2000).map(|number| sandbox_row(number, "h", 1))).collect();
    database.put_sandboxes(&rows).await.unwrap();
    assert_eq!(database.live_sandboxes("h").await.unwrap().len(), 1000);
    assert_eq!(database.forget_sandboxes(2).await.unwrap(), 1000);
    assert_eq!(database.live_sandboxes("h").await.unwrap().len(), 1000);
}

pub(super) async fn commands_are_kept_as_they_were_seen_last(url: &DatabaseUrl) {
    let database = open(url).await;
    let first = exec_row(1, "sb1");
    let same_time = ExecRow { exec: LoggedExec { pid: 99, ..first.exec.clone() }, ..first.clone() };
    database.put_execs(&[first.clone(), same_time.clone(), exec_row(2, "sb2")]).await.unwrap();
    assert_eq!(database.execs("sb1").await.unwrap(), [first.clone(), same_time.clone()]);
    for exit in [Exit::Exited { code: -1 }, Exit::Signalled { signal: 9 }, Exit::TimedOut, Exit::Unknown] {
        let exec =
            LoggedExec { exit: Some(exit), ended_unix_ms: Some(u64::MAX >> 1), output_bytes: 7, ..first.exec.clone() };
        let ended = ExecRow { exec, ..first.clone() };
        database.put_execs(std::slice::from_ref(&ended)).await.unwrap();
        assert_eq!(database.execs("sb1").await.unwrap(), [ended, same_time.clone()]);
    }
    assert_eq!(database.execs("sb").await.unwrap(), []);
}

pub(super) async fn of_a_sandbox_the_last_commands_are_kept(url: &DatabaseUrl) {
    let database = open(url).await;
    let rows: Vec<_> = (0..limits::EXECS_KEPT + 300).map(|number| exec_row(number, "sb1")).collect();
    database.put_execs(&[exec_row(0, "sb2")]).await.unwrap();
    database.put_execs(&rows).await.unwrap();
    assert_eq!(database.execs("sb1").await.unwrap(), rows[300..]);
    assert_eq!(database.execs("sb2").await.unwrap().len(), 1, "each sandbox has its own");
}

pub(super) async fn commands_go_with_their_sandbox(url: &DatabaseUrl) {
    let database = open(url).await;
    let elsewhere = ExecRow { host: "other".to_owned(), ..exec_row(1, "sb3") };
    database.put_execs(&[exec_row(1, "sb2"), exec_row(1, "sb1"), exec_row(2, "sb1"), elsewhere]).await.unwrap();
    assert_eq!(database.sandboxes_with_execs("h").await.unwrap(), ["sb1", "sb2"]);
    assert_eq!(database.forget_execs("sb1").await.unwrap(), 2);
    assert_eq!(database.forget_execs("sb1").await.unwrap(), 0);
    assert_eq!(database.sandboxes_with_execs("h").await.unwrap(), ["sb2"]);
}

pub(super) async fn opening_twice_changes_nothing(url: &DatabaseUrl) {
    let first = open(url).await;
    first.add_key(&key(1), &digest(1)).await.unwrap();
    let second = open(url).await;
    assert_eq!(second.keys(None, 9).await.unwrap(), [key(1)]);
    second.add_key(&key(2), &digest(2)).await.unwrap();
    assert_eq!(first.keys(None, 9).await.unwrap(), [key(1), key(2)]);
    first.close().await;
    second.close().await;
    assert_eq!(open(url).await.keys(None, 9).await.unwrap(), [key(1), key(2)]);
}

pub(super) async fn two_may_make_the_same_database(url: &DatabaseUrl) {
    let mut openers = tokio::task::JoinSet::new();
    for number in 0..4 {
        let url = url.clone();
        openers.spawn(async move { open(&url).await.add_key(&key(number), &digest(number)).await.unwrap() });
    }
    openers.join_all().await;
    assert_eq!(open(url).await.keys(None, 9).await.unwrap().len(), 4);
}

pub(super) async fn a_newer_version_s_database_is_refused(url: &DatabaseUrl) {
    open(url).await.close().await;
    run_beside(
        url,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         SELECT 9999, 'of tomorrow', success, checksum, execution_time FROM _sqlx_migrations WHERE version = 1",
    )
    .await;
    let refused = Database::open(url).await.err().unwrap();
    assert!(matches!(refused, DbError::Newer { version: 9999, .. }), "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains("newer version") && said.contains("restore a backup"), "{said}");
    run_beside(url, "DELETE FROM _sqlx_migrations WHERE version = 9999").await;
    open(url).await;
}

pub(super) async fn a_newer_version_s_rows_are_told(url: &DatabaseUrl) {
    let database = open(url).await;
    database.add_key(&key(1), &digest(1)).await.unwrap();
    for (change, column) in [
        ("UPDATE keys SET scope = 'emperor'", "scope"),
        ("UPDATE keys SET scope = 'read', sandboxes_max = -1", "sandboxes_max"),
    ] {
        run_beside(url, change).await;
        match database.find_key(&digest(1)).await.unwrap_err() {
            DbError::Unreadable { table: "keys", column: told, .. } => assert_eq!(told, column),
            other => panic!("{other:?}"),
        }
    }
}

pub(super) async fn two_writers_do_not_disturb_each_other(url: &DatabaseUrl) {
    let databases = [open(url).await, open(url).await];
    let mut writers = tokio::task::JoinSet::new();
    for (writer, database) in databases.iter().cloned().enumerate() {
        writers.spawn(async move {
            for number in 0..50 {
                database.record(&[entry(number, "a"), entry(number, "b")]).await.unwrap();
                let id = writer as u64 * 100 + number;
                database.add_key(&key(id), &digest(id)).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let entries = databases[0].audit(None, None, 1000).await.unwrap();
    let numbers: Vec<u64> = entries.iter().map(|entry| entry.id).collect();
    assert_eq!(numbers, (1..=200).rev().collect::<Vec<_>>());
    let pairs = entries.chunks(2).all(|pair| pair[0].unix_ms == pair[1].unix_ms);
    assert!(pairs, "what is recorded together stays together");
    assert_eq!(databases[1].keys(None, 1000).await.unwrap().len(), 100);
}

pub(super) async fn whoever_stops_waiting_leaves_nothing_behind(url: &DatabaseUrl) {
    let database = open(url).await;
    let entries: Vec<_> = (0..10).map(|number| entry(number, "a")).collect();
    for micros in (0..6000).step_by(200) {
        let waited = tokio::time::timeout(Duration::from_micros(micros), database.record(&entries)).await;
        if let Ok(done) = waited {
            done.unwrap();
        }
    }
    database.record(&entries).await.unwrap();
    let kept = database.audit(None, None, 1000).await.unwrap();
    assert!(!kept.is_empty() && kept.len() % 10 == 0, "{} entries of whole records", kept.len());
    assert_eq!(kept[0].id as usize, kept.len(), "no number is lost");
}

pub(super) async fn a_closed_database_is_unavailable(url: &DatabaseUrl) {
    let database = open(url).await;
    assert!(database.is_alive().await);
    database.close().await;
    database.close().await;
    assert!(!database.is_alive().await);
    assert!(database.keys(None, 1).await.unwrap_err().is_unavailable());
}
