//! Who watches.

use futures::StreamExt as _;

use super::*;
use crate::host_agent::{Change, Changes, Departure, Ended};

over_each_transport! {
    what_is_there_and_what_happens_is_told_in_order,
    a_bound_sandbox_goes_by_that_name,
    errors_keep_their_code_and_their_text,
    a_watch_ends_with_the_agent_and_begins_anew_with_the_next,
    who_does_not_read_keeps_nobody_from_being_answered_and_is_told_that_it_was_too_slow,
}

/// What is told next.
async fn next(changes: &mut Changes) -> Change {
    soon(changes.next()).await.unwrap().unwrap()
}

/// What a watch that ends is told at last.
async fn end(mut changes: Changes) -> AgentError {
    let error = soon(changes.next()).await.unwrap().unwrap_err();
    assert!(soon(changes.next()).await.is_none(), "nothing comes after an error");
    error
}

fn gone(id: SandboxId, why: Ended) -> Change {
    Change::Gone(Departure { id, why, at_unix_ms: 1_700_000_000_000 })
}

async fn what_is_there_and_what_happens_is_told_in_order(via: Via) {
    let world = World::new(via).await;
    let (one, two) = (world.create().await, world.create().await);
    let remote = &world.remote;
    let mut changes = remote.watch().await.unwrap();
    assert_eq!(next(&mut changes).await, Change::Is(one.clone()));
    assert_eq!(next(&mut changes).await, Change::Is(two.clone()));
    assert_eq!(next(&mut changes).await, Change::Complete);

    let paused = remote.pause(&one.id, PauseOptions::default()).await.unwrap().view;
    let timeout = remote.set_timeout(&two.id, Timeout::default()).await.unwrap();
    let made = world.create().await;
    let destroyed = remote.destroy(&two.id).await.unwrap().view;
    for change in [paused, timeout, made, destroyed].map(Change::Is) {
        assert_eq!(next(&mut changes).await, change);
    }
    assert_eq!(next(&mut changes).await, gone(two.id, Ended::Requested));
}

async fn a_bound_sandbox_goes_by_that_name(via: Via) {
    let world = World::new(via).await;
    let mut changes = world.remote.watch().await.unwrap();
    assert_eq!(next(&mut changes).await, Change::Complete);
    let created = world.remote.create(wishing(Wishes { bound: true, ..wishes() })).await.unwrap();
    assert_eq!(next(&mut changes).await, Change::Is(created.changed.view.clone()));
    drop(created.bond);
    assert_eq!(next(&mut changes).await, gone(created.changed.view.id, Ended::Unbound));
}

async fn errors_keep_their_code_and_their_text(via: Via) {
    let world = World::new(via).await;
    for code in Code::ALL {
        let error = AgentError { code, message: format!("cannot do it: \"{}\"\n ü", code.as_str()) };
        world.fake.failures.lock().unwrap().push_back(error.clone());
        assert_eq!(world.remote.watch().await.err(), Some(error));
    }
    let mut changes = world.remote.watch().await.unwrap();
    assert_eq!(next(&mut changes).await, Change::Complete);
    world.fake.end();
    assert_eq!(end(changes).await, AgentError::ending());
}

async fn a_watch_ends_with_the_agent_and_begins_anew_with_the_next(via: Via) {
    let mut world = World::new(via).await;
    let view = world.create().await;
    let mut changes = world.remote.watch().await.unwrap();
    assert_eq!(next(&mut changes).await, Change::Is(view.clone()));
    assert_eq!(next(&mut changes).await, Change::Complete);
    world.end();
    assert_eq!(end(changes).await, AgentError::ending());
    soon(&mut world.serving).await.unwrap();
    assert_eq!(world.remote.watch().await.err().unwrap().code, Code::Unavailable);

    let (_end, _serving) = world.serve_again().await;
    let mut changes = soon(world.remote.watch()).await.unwrap();
    assert_eq!(next(&mut changes).await, Change::Is(view));
}

async fn who_does_not_read_keeps_nobody_from_being_answered_and_is_told_that_it_was_too_slow(via: Via) {
    let world = World::new(via).await;
    let id = world.create().await.id;
    let mut changes = world.remote.watch().await.unwrap();
    // More than the queue and all buffers on the way hold.
    for _ in 0..4 * wrenn_engine::limits::CHANGES_WAITING_MAX {
        world.fake.set_timeout(&id, Timeout::default()).await.unwrap();
    }
    assert_eq!(soon(world.remote.list()).await.unwrap().len(), 1);
    let error = soon(async {
        loop {
            match changes.next().await.unwrap() {
                Ok(_read) => {}
                Err(error) => return error,
            }
        }
    });
    let error = error.await;
    assert!(error.code == Code::Unavailable && error.message.contains("too slow"), "{error}");
}
