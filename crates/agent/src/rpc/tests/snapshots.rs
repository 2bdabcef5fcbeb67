//! Snapshots, forks and the way back.

use super::*;
use crate::host_agent::{Changed, ForkRequest, SnapshotRequest, Start};

over_each_transport! {
    a_snapshot_is_made_listed_started_from_and_removed,
    each_fork_is_told_of_by_itself,
    forks_that_were_begun_are_made_without_their_client,
    a_sandbox_goes_back_to_its_own_snapshots_alone,
    refusals_keep_their_code_and_their_text,
    what_is_beyond_the_limits_never_reaches_the_agent,
}

fn named(name: &str) -> SnapshotRequest {
    let attributes = BTreeMap::from([("tenant".to_owned(), "ö".to_owned())]);
    SnapshotRequest { name: Some(name.to_owned()), attributes }
}

fn forks(count: u32) -> ForkRequest {
    ForkRequest { count, ready_limit: SOON, timeout: None, metadata: BTreeMap::new(), attributes: BTreeMap::new() }
}

fn options() -> ResumeOptions {
    ResumeOptions { ready_limit: Duration::from_secs(7), timeout: Some(Duration::from_secs(9)) }
}

async fn a_snapshot_is_made_listed_started_from_and_removed(via: Via) {
    let world = World::new(via).await;
    let view = world.create().await;
    let remote = &world.remote;
    assert_eq!(remote.snapshots().await.unwrap(), []);
    let first = remote.snapshot(&view.id, named("first")).await.unwrap();
    assert_eq!(first.view, fake::snapshot_view(0, &view, &named("first")));
    assert_eq!((&*first.timings[0].phase, first.timings[0].took), ("capture", Duration::from_micros(1234)));
    remote.pause(&view.id, PauseOptions::default()).await.unwrap();
    let second = remote.snapshot(&view.id, SnapshotRequest::default()).await.unwrap().view;
    assert_eq!((second.name.as_deref(), second.has_memory), (None, false));
    assert_eq!((&first.view.attributes, second.attributes.len()), (&named("first").attributes, 0));
    assert_eq!(remote.snapshots().await.unwrap(), [first.view.clone(), second.clone()]);

    let from = CreateRequest { source: Source::Snapshot("first".to_owned()), ..request() };
    let made = remote.create(from).await.unwrap().changed.view;
    assert_eq!((made.template, made.vcpus, made.start), (view.template, view.vcpus, Start::Warm));
    assert_eq!(made.attributes, wishes().attributes);

    assert_eq!(remote.remove_snapshot("first").await.unwrap(), first.view);
    assert_eq!(remote.remove_snapshot(second.id.as_str()).await.unwrap(), second);
    assert_eq!(remote.snapshots().await.unwrap(), []);
    assert_eq!(remote.remove_snapshot("first").await.unwrap_err().code, Code::NotFound);
}

async fn each_fork_is_told_of_by_itself(via: Via) {
    let world = World::of(via, Fake::with_room(4)).await;
    let parent = world.create().await;
    let metadata = BTreeMap::from([("try".to_owned(), "1".to_owned())]);
    let attributes = BTreeMap::from([("tenant".to_owned(), "2".to_owned())]);
    let request = ForkRequest {
        timeout: Some(Duration::from_secs(1)),
        metadata: metadata.clone(),
        attributes: attributes.clone(),
        ..forks(5)
    };
    let forked = world.remote.fork(&parent.id, request).await.unwrap();
    assert_eq!(&*forked.timings[0].phase, "capture");
    let (made, refused): (Vec<_>, Vec<_>) = forked.children.into_iter().partition(Result::is_ok);
    let made: Vec<Changed> = made.into_iter().map(Result::unwrap).collect();
    assert_eq!(made.len(), 3);
    for child in &made {
        assert_eq!(world.remote.get(&child.view.id).await.unwrap(), child.view);
        assert_eq!((child.view.start, &child.view.metadata), (Start::Warm, &metadata));
        assert_eq!(child.view.attributes, attributes);
        assert_eq!((child.view.deadline_unix_ms, &*child.timings[0].phase), (Some(1_700_000_001_000), "restore"));
        assert_ne!(child.view.access_token, parent.access_token);
    }
    let no_room = AgentError { code: Code::Exhausted, message: "no room".to_owned() };
    assert_eq!(refused.into_iter().map(Result::unwrap_err).collect::<Vec<_>>(), [no_room.clone(), no_room]);
}

async fn forks_that_were_begun_are_made_without_their_client(via: Via) {
    let world = World::of(via, Fake::gated()).await;
    let gate = world.fake.gate.as_ref().unwrap();
    gate.notify_one();
    let id = world.create().await.id;
    soon(world.fake.at_gate.notified()).await;
    let remote = world.remote.clone();
    let forking = tokio::spawn(async move { remote.fork(&id, forks(2)).await.is_ok() });
    soon(world.fake.at_gate.notified()).await;
    forking.abort();
    gate.notify_one();
    soon(async {
        while world.fake.count() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn a_sandbox_goes_back_to_its_own_snapshots_alone(via: Via) {
    let world = World::new(via).await;
    let (one, two) = (world.create().await, world.create().await);
    let remote = &world.remote;
    remote.snapshot(&one.id, named("start")).await.unwrap();
    let back = remote.rollback(&one.id, "start", options()).await.unwrap();
    assert_eq!((back.view.phase, back.view.deadline_unix_ms), (Phase::Running, Some(1_700_000_009_000)));
    assert_eq!((back.view.reason.as_deref(), &*back.timings[0].phase), (Some("ready within 7s"), "running"));
    assert_eq!(remote.rollback(&two.id, "start", options()).await.unwrap_err().code, Code::Invalid);
    assert_eq!(remote.rollback(&one.id, "end", options()).await.unwrap_err().code, Code::NotFound);
}

async fn refusals_keep_their_code_and_their_text(via: Via) {
    let world = World::new(via).await;
    let id = world.create().await.id;
    let remote = &world.remote;
    remote.snapshot(&id, named("taken")).await.unwrap();
    assert_eq!(remote.snapshot(&id, named("taken")).await.unwrap_err().message, "there is a snapshot `taken`");
    assert_eq!(remote.snapshot(&nobody(), named("a")).await.unwrap_err(), AgentError::unknown(&nobody()));
    assert_eq!(remote.fork(&nobody(), forks(1)).await.unwrap_err(), AgentError::unknown(&nobody()));
    for code in Code::ALL {
        let error = AgentError { code, message: format!("cannot do it: \"{}\"\n ü", code.as_str()) };
        world.fake.failures.lock().unwrap().extend(std::iter::repeat_n(error.clone(), 5));
        assert_eq!(remote.snapshot(&id, named("a")).await.unwrap_err(), error);
        assert_eq!(remote.snapshots().await.unwrap_err(), error);
        assert_eq!(remote.remove_snapshot("taken").await.unwrap_err(), error);
        assert_eq!(remote.fork(&id, forks(1)).await.unwrap_err(), error);
        assert_eq!(remote.rollback(&id, "taken", options()).await.unwrap_err(), error);
    }
    assert_eq!(world.fake.count(), 1);
}

async fn what_is_beyond_the_limits_never_reaches_the_agent(via: Via) {
    let world = World::new(via).await;
    let id = world.create().await.id;
    let remote = &world.remote;
    for request in [
        forks(0),
        forks(wrenn_engine::limits::FORKS_MAX + 1),
        ForkRequest { ready_limit: Duration::from_secs(3601), ..forks(1) },
        ForkRequest { timeout: Some(Duration::MAX), ..forks(1) },
        ForkRequest { metadata: BTreeMap::from([("k".repeat(257), String::new())]), ..forks(1) },
        ForkRequest { attributes: BTreeMap::from([("k".repeat(257), String::new())]), ..forks(1) },
    ] {
        assert_eq!(remote.fork(&id, request).await.unwrap_err().code, Code::Invalid);
    }
    for name in ["", "../up", "Name", "sn0123456789abcdefgh", &"x".repeat(65)] {
        assert_eq!(remote.snapshot(&id, named(name)).await.unwrap_err().code, Code::Invalid, "{name}");
    }
    for name in ["", "../up", "Name", &"x".repeat(65)] {
        assert_eq!(remote.remove_snapshot(name).await.unwrap_err().code, Code::Invalid, "{name}");
        assert_eq!(remote.rollback(&id, name, options()).await.unwrap_err().code, Code::Invalid, "{name}");
    }
    let late = ResumeOptions { ready_limit: Duration::MAX, timeout: None };
    assert_eq!(remote.rollback(&id, "a", late).await.unwrap_err().code, Code::Invalid);
    assert_eq!((world.fake.count(), remote.snapshots().await.unwrap()), (1, Vec::new()));
}
