//! Templates and their warm images.

use wrenn_engine::image::Recipe;
use wrenn_engine::limits::WARM_IMAGES_MAX;

use super::*;
use crate::host_agent::{Progress, SnapshotRequest, Start, TemplateView};

over_each_transport! {
    a_template_is_made_listed_warmed_and_removed,
    a_build_tells_how_it_goes_on_and_what_it_made,
    a_template_has_all_the_warm_images_that_are_kept,
    refusals_keep_their_code_and_their_text,
    what_is_beyond_the_limits_never_reaches_the_agent,
}

/// A template `own`, from a snapshot of a sandbox.
async fn own(world: &World) -> TemplateView {
    let id = world.create().await.id;
    let snapshot = world.remote.snapshot(&id, SnapshotRequest::default()).await.unwrap().view;
    let made = world.remote.template_from_snapshot(snapshot.id.as_str(), "own").await.unwrap();
    assert_eq!(made, fake::template_view("own", &snapshot));
    made
}

fn of_own(vcpus: u32) -> Fresh {
    let shape = Shape { vcpus, memory: Mib(256), disk: Some(Mib(2048)) };
    Fresh { template: "own".to_owned(), kernel: None, shape, cold: false }
}

fn create(fresh: Fresh) -> CreateRequest {
    CreateRequest { source: Source::Template(fresh), ..request() }
}

async fn a_template_is_made_listed_warmed_and_removed(via: Via) {
    let world = World::new(via).await;
    let remote = &world.remote;
    assert_eq!(remote.templates().await.unwrap(), []);
    let made = own(&world).await;
    assert_eq!(made.warm.len(), 1);
    assert_eq!(remote.templates().await.unwrap(), [made]);

    let there = remote.warm(of_own(2), SOON).await.unwrap();
    assert_eq!((there.view, there.made), (fake::warm_view(2, Mib(256), Mib(2048)), false));
    let another = remote.warm(of_own(4), SOON).await.unwrap();
    assert_eq!((another.view.vcpus, another.made, &*another.timings[0].phase), (4, true, "boot"));

    assert_eq!(remote.create(create(of_own(4))).await.unwrap().changed.view.start, Start::Warm);
    assert_eq!(remote.create(create(of_own(3))).await.unwrap().changed.view.start, Start::Cold);
    let cold = Fresh { cold: true, ..of_own(4) };
    assert_eq!(remote.create(create(cold)).await.unwrap().changed.view.start, Start::Cold);

    assert_eq!(remote.remove_template("own").await.unwrap().warm.len(), 2);
    assert_eq!(remote.remove_template("own").await.unwrap_err().code, Code::NotFound);
    assert_eq!(remote.warm(of_own(1), SOON).await.unwrap_err().message, "there is no template `own`");
}

async fn a_build_tells_how_it_goes_on_and_what_it_made(via: Via) {
    let world = World::of(via, Fake::gated()).await;
    let (lines, mut heard) = mpsc::unbounded_channel();
    let progress: Progress = Arc::new(move |line| lines.send(line.to_owned()).unwrap());
    let remote = world.remote.clone();
    let building = tokio::spawn(async move { remote.build_template("minimal", progress).await });
    assert_eq!(soon(heard.recv()).await.unwrap(), fake::BUILD_STEPS[0], "before it is done");
    world.fake.gate.as_ref().unwrap().notify_one();
    assert_eq!(soon(building).await.unwrap(), Ok(fake::built_view(Recipe::Minimal)));
    assert_eq!(heard.recv().await.unwrap(), fake::BUILD_STEPS[1]);
    assert_eq!(heard.recv().await, None);
    assert_eq!(world.remote.templates().await.unwrap(), [fake::built_view(Recipe::Minimal)]);
}

async fn a_template_has_all_the_warm_images_that_are_kept(via: Via) {
    let world = World::new(via).await;
    own(&world).await;
    for vcpus in 3..2 + u32::try_from(WARM_IMAGES_MAX).unwrap() {
        world.fake.warm(of_own(vcpus), SOON).await.unwrap();
    }
    let warm = &world.remote.templates().await.unwrap()[0].warm;
    assert_eq!((warm.len(), warm.last().unwrap().vcpus), (WARM_IMAGES_MAX, 17));
}

async fn refusals_keep_their_code_and_their_text(via: Via) {
    let world = World::new(via).await;
    let remote = &world.remote;
    own(&world).await;
    assert_eq!(remote.template_from_snapshot("none", "a").await.unwrap_err().message, "there is no snapshot `none`");
    let silent: Progress = Arc::new(|_| {});
    let unknown = remote.build_template("nothing", Arc::clone(&silent)).await.unwrap_err();
    assert!(unknown.code == Code::Invalid && unknown.message.contains("`minimal` and `base`"), "{unknown}");
    for code in Code::ALL {
        let error = AgentError { code, message: format!("cannot do it: \"{}\"\n ü", code.as_str()) };
        world.fake.failures.lock().unwrap().extend(std::iter::repeat_n(error.clone(), 5));
        assert_eq!(remote.build_template("base", Arc::clone(&silent)).await.unwrap_err(), error);
        assert_eq!(remote.templates().await.unwrap_err(), error);
        assert_eq!(remote.warm(of_own(1), SOON).await.unwrap_err(), error);
        assert_eq!(remote.remove_template("own").await.unwrap_err(), error);
        assert_eq!(remote.template_from_snapshot("a", "b").await.unwrap_err(), error);
    }
    assert_eq!(remote.templates().await.unwrap()[0].warm.len(), 1, "nothing was changed");
}

async fn what_is_beyond_the_limits_never_reaches_the_agent(via: Via) {
    let world = World::new(via).await;
    let remote = &world.remote;
    own(&world).await;
    for (fresh, limit) in [
        (Fresh { template: String::new(), ..of_own(1) }, SOON),
        (Fresh { template: "x".repeat(257), ..of_own(1) }, SOON),
        (Fresh { kernel: Some("vmlinuz".into()), ..of_own(1) }, SOON),
        (of_own(1), Duration::from_secs(3601)),
    ] {
        assert_eq!(remote.warm(fresh, limit).await.unwrap_err().code, Code::Invalid);
    }
    for (snapshot, name) in [("", "a"), ("a", ""), ("/", "a"), ("A", "a"), ("a", &"x".repeat(257))] {
        let refused = remote.template_from_snapshot(snapshot, name).await.unwrap_err();
        assert_eq!(refused.code, Code::Invalid, "{snapshot} {name}");
    }
    for name in ["", &"x".repeat(257)] {
        assert_eq!(remote.build_template(name, Arc::new(|_| {})).await.unwrap_err().code, Code::Invalid);
        assert_eq!(remote.remove_template(name).await.unwrap_err().code, Code::Invalid);
    }
    assert_eq!(remote.templates().await.unwrap()[0].warm.len(), 1);
}
