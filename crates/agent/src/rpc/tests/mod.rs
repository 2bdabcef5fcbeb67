//! Every call, every error and a tunnel's bytes over a real Unix socket and over TLS, with an agent that is a map.

mod certificates;
mod snapshots;
mod templates;
mod tls;
mod transport;
mod watching;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use wrenn_engine::names::SandboxId;
use wrenn_engine::units::Mib;

use self::transport::{Place, Via, over_each_transport};
use super::door::{Door, Peers};
use super::link::Carries;
use super::server::serve_at;
use super::*;
use crate::fake::{self, Fake};
use crate::host_agent::{
    AgentError, Code, CreateRequest, Fresh, HostAgent, OnTimeout, PauseOptions, Phase, ResumeOptions, Source, Timeout,
    View, Wishes,
};
use crate::policy::Denied;
use crate::sandbox::Shape;

over_each_transport! {
    a_request_and_its_answer_arrive_whole,
    every_call_reaches_the_agent,
    errors_keep_their_code_and_their_text,
    what_is_beyond_the_limits_is_refused_and_nothing_is_made,
    a_bound_sandbox_lives_as_long_as_its_bond,
    a_client_that_is_gone_before_its_bound_sandbox_is_there_leaves_none,
    what_was_begun_is_finished_without_its_client,
    an_agent_that_ends_finishes_what_it_does_and_lets_go_of_the_rest,
    the_same_remote_finds_the_next_agent,
    the_same_remote_finds_the_agent_after_one_that_was_killed,
    a_tunnel_carries_every_byte_and_the_end_of_each_direction,
    a_guest_that_says_no_more_can_still_be_told,
    a_client_that_is_gone_takes_its_tunnel_along_once_all_was_delivered,
    a_client_that_only_sends_no_more_keeps_its_tunnel,
    a_guest_that_is_gone_ends_the_tunnel,
    refused_tunnels_say_why,
    what_is_no_tunnel_and_no_call_is_refused,
    tunnels_are_bounded_and_a_place_comes_back,
}

const SOON: Duration = Duration::from_secs(10);

/// An agent that is served, and the way to it.
struct World {
    place: Place,
    fake: Arc<Fake>,
    remote: Remote,
    end: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl World {
    async fn of(via: Via, fake: Fake) -> Self {
        let place = Place::new(via).await;
        let fake = Arc::new(fake);
        let (end, serving) = serve_fake(&place, &fake).await;
        let remote = Remote::new(place.way());
        Self { place, fake, remote, end: Some(end), serving }
    }

    async fn serve_again(&self) -> (oneshot::Sender<()>, JoinHandle<()>) {
        serve_fake(&self.place, &self.fake).await
    }

    async fn new(via: Via) -> Self {
        Self::of(via, Fake::default()).await
    }

    async fn create(&self) -> View {
        self.remote.create(request()).await.unwrap().changed.view
    }

    fn end(&mut self) {
        self.end.take().unwrap().send(()).unwrap();
    }
}

async fn serve_fake(place: &Place, fake: &Arc<Fake>) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let door = place.door().await;
    let (end, ended) = oneshot::channel();
    let agent: Arc<dyn HostAgent> = Arc::clone(fake) as _;
    (end, tokio::spawn(serve_at(agent, door, async { ended.await.unwrap() })))
}

fn socket(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("agent.sock")
}

fn fresh() -> Fresh {
    Fresh {
        template: "minimal".to_owned(),
        kernel: Some("/boot/vmlinuz".into()),
        shape: Shape { vcpus: 2, memory: Mib(256), disk: Some(Mib(2048)) },
        cold: false,
    }
}

fn request() -> CreateRequest {
    CreateRequest { source: Source::Template(fresh()), wishes: wishes() }
}

fn wishes() -> Wishes {
    Wishes {
        env: BTreeMap::from([("A".to_owned(), "b=c".to_owned())]),
        metadata: BTreeMap::from([("owner".to_owned(), "ü".to_owned())]),
        attributes: BTreeMap::from([("tenant".to_owned(), "ä".to_owned())]),
        timeout: Some(Duration::from_millis(90_500)),
        on_timeout: OnTimeout::Pause,
        ready_limit: Duration::from_secs(60),
        bound: false,
    }
}

fn wishing(wishes: Wishes) -> CreateRequest {
    CreateRequest { wishes, ..request() }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("this takes no time")
}

fn nobody() -> SandboxId {
    SandboxId::from_random([35; 18])
}

async fn a_request_and_its_answer_arrive_whole(via: Via) {
    let world = World::new(via).await;
    let created = world.remote.create(request()).await.unwrap();
    assert!(created.bond.is_none());
    assert_eq!(created.changed.view, fake::view(0, &request()));
    let timings: Vec<_> = created.changed.timings.iter().map(|timing| (&*timing.phase, timing.took)).collect();
    assert_eq!(timings, [("disk", Duration::from_micros(1234)), ("boot", Duration::from_micros(1234))]);
    let asked = world.fake.asked.lock().unwrap().take().unwrap();
    assert_eq!(format!("{asked:?}"), format!("{:?}", request()));
}

async fn every_call_reaches_the_agent(via: Via) {
    let world = World::new(via).await;
    let (one, two) = (world.create().await, world.create().await);
    let remote = &world.remote;
    assert_eq!(remote.list().await.unwrap(), [one.clone(), two.clone()]);
    assert_eq!(remote.get(&two.id).await.unwrap(), two);
    assert_eq!(remote.host().await.unwrap(), fake::host_view(Mib(512)));
    assert_eq!(remote.stat(&one.id).await.unwrap(), fake::stat(&one));
    assert_eq!(remote.console(&one.id, 7).await.unwrap(), b"login: ");
    assert_eq!(remote.console(&one.id, u32::MAX).await.unwrap(), b"\xffboot\nlogin: ");
    let after = Timeout { after: Some(Duration::from_secs(3)), on_timeout: Some(OnTimeout::Destroy) };
    let view = remote.set_timeout(&one.id, after).await.unwrap();
    assert_eq!((view.deadline_unix_ms, view.on_timeout), (Some(1_700_000_003_000), OnTimeout::Destroy));
    let view = remote.set_timeout(&one.id, Timeout::default()).await.unwrap();
    assert_eq!((view.deadline_unix_ms, view.on_timeout), (None, OnTimeout::Destroy), "as it was");
    let changed = remote.pause(&one.id, PauseOptions { disk_only: true }).await.unwrap();
    assert_eq!((changed.view.phase, changed.view.reason.as_deref()), (Phase::Paused, Some("disk only")));
    assert_eq!(remote.stat(&one.id).await.unwrap(), fake::stat(&changed.view));
    assert_eq!(remote.stat(&one.id).await.unwrap().network_rx_bytes, None, "it is at rest");
    let options = ResumeOptions { ready_limit: Duration::from_secs(7), timeout: Some(Duration::from_secs(9)) };
    let view = remote.resume(&one.id, options).await.unwrap().view;
    assert_eq!((view.deadline_unix_ms, view.reason.as_deref()), (Some(1_700_000_009_000), Some("ready within 7s")));
    assert_eq!(remote.destroy(&one.id).await.unwrap().view.phase, Phase::Destroying);
    assert_eq!(remote.list().await.unwrap(), [two]);
}

async fn errors_keep_their_code_and_their_text(via: Via) {
    let world = World::new(via).await;
    let view = world.create().await;
    let id = &view.id;
    assert_eq!(world.remote.get(&nobody()).await, Err(AgentError::unknown(&nobody())));
    assert_eq!(world.remote.repair(id).await.unwrap_err(), Denied::NothingToRepair(Phase::Running).into());
    for code in Code::ALL {
        let error = AgentError { code, message: format!("cannot do it: \"{}\"\n ü", code.as_str()) };
        // One for each call: also those that answer with a stream, and a tunnel.
        world.fake.failures.lock().unwrap().extend(std::iter::repeat_n(error.clone(), 5));
        assert_eq!(world.remote.create(request()).await.err(), Some(error.clone()));
        assert_eq!(world.remote.list().await.unwrap_err(), error);
        assert_eq!(world.remote.stat(id).await.unwrap_err(), error);
        assert_eq!(world.remote.destroy(id).await.unwrap_err(), error);
        assert_eq!(world.remote.dial(id, 80, SOON).await.err(), Some(error));
    }
}

async fn what_is_beyond_the_limits_is_refused_and_nothing_is_made(via: Via) {
    let world = World::new(via).await;
    let beyond = [
        CreateRequest { source: Source::Template(Fresh { template: String::new(), ..fresh() }), ..request() },
        CreateRequest { source: Source::Template(Fresh { kernel: Some("vmlinuz".into()), ..fresh() }), ..request() },
        CreateRequest { source: Source::Snapshot("No name".to_owned()), ..request() },
        wishing(Wishes { metadata: (0..65).map(|n| (n.to_string(), String::new())).collect(), ..wishes() }),
        wishing(Wishes { metadata: BTreeMap::from([("k".repeat(257), String::new())]), ..wishes() }),
        wishing(Wishes { metadata: BTreeMap::from([("k".to_owned(), "v".repeat(4097))]), ..wishes() }),
        wishing(Wishes { attributes: (0..65).map(|n| (n.to_string(), String::new())).collect(), ..wishes() }),
        wishing(Wishes { attributes: BTreeMap::from([("k".to_owned(), "v".repeat(4097))]), ..wishes() }),
        wishing(Wishes { env: (0..257).map(|n| (n.to_string(), String::new())).collect(), ..wishes() }),
        wishing(Wishes { env: BTreeMap::from([("E".to_owned(), "v".repeat(128 * 1024))]), ..wishes() }),
        wishing(Wishes { env: BTreeMap::from([("A=B".to_owned(), String::new())]), ..wishes() }),
        wishing(Wishes { timeout: Some(Duration::MAX), ..wishes() }),
        wishing(Wishes { ready_limit: Duration::from_secs(3601), ..wishes() }),
    ];
    for request in beyond {
        assert_eq!(world.remote.create(request).await.unwrap_err().code, Code::Invalid);
    }
    let huge = wishing(Wishes { env: BTreeMap::from([("E".to_owned(), "v".repeat(2 << 20))]), ..wishes() });
    assert!(world.remote.create(huge).await.is_err());
    assert_eq!(world.fake.count(), 0);
}

async fn a_bound_sandbox_lives_as_long_as_its_bond(via: Via) {
    let world = World::new(via).await;
    let created = world.remote.create(wishing(Wishes { bound: true, ..wishes() })).await.unwrap();
    let bond = created.bond.unwrap();
    assert!(bond.is_held());
    // Other calls go over the same connection meanwhile.
    assert_eq!(world.remote.list().await.unwrap().len(), 1);
    drop(bond);
    soon(world.fake.released()).await;
    assert_eq!(world.fake.count(), 0);
    assert_eq!(world.remote.list().await.unwrap(), []);
}

async fn a_client_that_is_gone_before_its_bound_sandbox_is_there_leaves_none(via: Via) {
    let world = World::of(via, Fake::gated()).await;
    let remote = Remote::new(world.place.way());
    let making = tokio::spawn(async move { remote.create(wishing(Wishes { bound: true, ..wishes() })).await.is_ok() });
    soon(world.fake.at_gate.notified()).await;
    making.abort();
    assert!(making.await.unwrap_err().is_cancelled());
    world.fake.gate.as_ref().unwrap().notify_one();
    soon(world.fake.released()).await;
    assert_eq!(world.fake.count(), 0);
}

async fn what_was_begun_is_finished_without_its_client(via: Via) {
    let world = World::of(via, Fake::gated()).await;
    let remote = world.remote.clone();
    let making = tokio::spawn(async move { remote.create(request()).await.is_ok() });
    soon(world.fake.at_gate.notified()).await;
    making.abort();
    world.fake.gate.as_ref().unwrap().notify_one();
    soon(async {
        while world.fake.count() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn an_agent_that_ends_finishes_what_it_does_and_lets_go_of_the_rest(via: Via) {
    let mut world = World::of(via, Fake::gated()).await;
    let gate = world.fake.gate.as_ref().unwrap();
    gate.notify_one();
    let held = world.remote.create(wishing(Wishes { bound: true, ..wishes() })).await.unwrap();
    gate.notify_one();
    let free = world.create().await;
    let mut tunnel = world.remote.dial(&free.id, 80, SOON).await.unwrap();
    let remote = world.remote.clone();
    let id = free.id.clone();
    let pausing = tokio::spawn(async move { remote.pause(&id, PauseOptions::default()).await });
    soon(async {
        // The two creations have told already.
        world.fake.at_gate.notified().await;
        world.fake.at_gate.notified().await;
    })
    .await;

    world.end();
    soon(world.fake.released()).await;
    via.assert_cut_off(soon(tunnel.read(&mut [0; 1])).await);
    let way = world.place.way();
    assert!(soon(way.connect(Carries::Calls)).await.is_err(), "nobody gets in any more");
    assert!(!world.serving.is_finished());
    world.fake.gate.as_ref().unwrap().notify_one();
    assert_eq!(soon(pausing).await.unwrap().unwrap().view.phase, Phase::Paused);
    soon(world.serving).await.unwrap();
    drop(held);
    assert_eq!(world.remote.list().await.unwrap_err().code, Code::Unavailable);
}

async fn the_same_remote_finds_the_next_agent(via: Via) {
    let mut world = World::new(via).await;
    world.create().await;
    world.end();
    soon(&mut world.serving).await.unwrap();
    for _ in 0..3 {
        assert_eq!(world.remote.list().await.unwrap_err().code, Code::Unavailable);
    }
    let (_end, _serving) = world.serve_again().await;
    assert_eq!(soon(world.remote.list()).await.unwrap().len(), 1);
}

async fn the_same_remote_finds_the_agent_after_one_that_was_killed(via: Via) {
    let mut world = World::new(via).await;
    let id = world.create().await.id;
    let mut tunnel = world.remote.dial(&id, 80, SOON).await.unwrap();
    let mut changes = world.remote.watch().await.unwrap();
    world.serving.abort();
    assert!(soon(&mut world.serving).await.unwrap_err().is_cancelled());
    soon(async { while let Some(Ok(_)) = futures::StreamExt::next(&mut changes).await {} }).await;
    assert_eq!(world.remote.list().await.unwrap_err().code, Code::Unavailable);
    let (_end, _serving) = world.serve_again().await;
    assert_eq!(soon(world.remote.list()).await.unwrap().len(), 1);
    via.assert_cut_off(soon(tunnel.read(&mut [0; 1])).await);
    soon(world.remote.dial(&id, 80, SOON)).await.unwrap();
}

#[tokio::test]
async fn one_agent_at_a_time_and_a_killed_ones_socket_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = listen(&socket(&dir)).await.unwrap();
    assert!(matches!(listen(&socket(&dir)).await, Err(SocketError::Taken { .. })));
    let mode = std::fs::metadata(socket(&dir)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let dir = tempfile::tempdir().unwrap();
    assert!(connect(&socket(&dir)).await.unwrap().is_none());
    drop(listen(&socket(&dir)).await.unwrap());
    assert!(socket(&dir).exists(), "as after kill -9");
    assert!(connect(&socket(&dir)).await.unwrap().is_none());
    listen(&socket(&dir)).await.unwrap();
}

#[tokio::test]
async fn processes_of_other_users_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let listener = listen(&socket(&dir)).await.unwrap();
    let strangers = Peers { own_uid: u32::MAX - 1, root_uid: u32::MAX - 1 };
    let agent: Arc<dyn HostAgent> = Arc::new(Fake::default());
    tokio::spawn(serve_at(agent, Door::Socket(listener, strangers), std::future::pending()));
    let remote = connect(&socket(&dir)).await.unwrap().unwrap();
    assert_eq!(soon(remote.list()).await.unwrap_err().code, Code::Unavailable);
    assert_eq!(soon(remote.dial(&nobody(), 1, SOON)).await.err().unwrap().code, Code::Unavailable);
}

// ---- tunnels ---------------------------------------------------------------------------------------------------------

/// A world whose guests are played by the test, with a sandbox.
async fn guest_world(via: Via) -> (World, SandboxId, mpsc::UnboundedReceiver<DuplexStream>) {
    let (sender, guests) = mpsc::unbounded_channel();
    let world = World::of(via, Fake::with_guests(sender)).await;
    let id = world.create().await.id;
    (world, id, guests)
}

async fn a_tunnel_carries_every_byte_and_the_end_of_each_direction(via: Via) {
    let world = World::new(via).await;
    let id = world.create().await.id;
    let tunnel = world.remote.dial(&id, 49_983, SOON).await.unwrap();
    let (mut read, mut write) = tokio::io::split(tunnel);
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    // The guest answers only when it has seen the end of what it is sent.
    soon(writing).await;
    let mut heard = Vec::new();
    soon(read.read_to_end(&mut heard)).await.unwrap();
    assert!(heard == sent);
}

async fn a_guest_that_says_no_more_can_still_be_told(via: Via) {
    let (world, id, mut guests) = guest_world(via).await;
    let mut tunnel = world.remote.dial(&id, 80, SOON).await.unwrap();
    let mut guest = guests.recv().await.unwrap();
    guest.write_all(b"bye").await.unwrap();
    guest.shutdown().await.unwrap();
    let mut heard = Vec::new();
    soon(tunnel.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"bye");
    tunnel.write_all(b"wait").await.unwrap();
    let mut told = [0; 4];
    soon(guest.read_exact(&mut told)).await.unwrap();
    assert_eq!(&told, b"wait");
    drop(tunnel);
    assert_eq!(soon(guest.read(&mut told)).await.unwrap(), 0);
}

async fn a_client_that_is_gone_takes_its_tunnel_along_once_all_was_delivered(via: Via) {
    let (world, id, mut guests) = guest_world(via).await;
    let mut tunnel = world.remote.dial(&id, 80, SOON).await.unwrap();
    let mut guest = guests.recv().await.unwrap();
    tunnel.write_all(b"last words").await.unwrap();
    drop(tunnel);
    let mut heard = Vec::new();
    soon(guest.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"last words");
    // A guest that keeps its end open does not keep the tunnel.
    let written = soon(async {
        loop {
            match guest.write_all(b"x").await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => break error,
            }
        }
    });
    assert_eq!(written.await.kind(), ErrorKind::BrokenPipe);
}

async fn a_client_that_only_sends_no_more_keeps_its_tunnel(via: Via) {
    let (world, id, mut guests) = guest_world(via).await;
    let mut tunnel = world.remote.dial(&id, 80, SOON).await.unwrap();
    let mut guest = guests.recv().await.unwrap();
    tunnel.shutdown().await.unwrap();
    assert_eq!(soon(guest.read(&mut [0; 1])).await.unwrap(), 0);
    tokio::time::sleep(limits::HANG_UP_LOOK_EVERY * 3).await;
    guest.write_all(b"late").await.unwrap();
    drop(guest);
    let mut heard = Vec::new();
    soon(tunnel.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"late");
}

async fn a_guest_that_is_gone_ends_the_tunnel(via: Via) {
    let (world, id, mut guests) = guest_world(via).await;
    let mut tunnel = world.remote.dial(&id, 80, SOON).await.unwrap();
    drop(guests.recv().await.unwrap());
    assert_eq!(soon(tunnel.read(&mut [0; 1])).await.unwrap(), 0);
    let error = soon(async {
        loop {
            if let Err(error) = tunnel.write_all(&[0; 4096]).await {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(matches!(error.await.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset));
}

async fn refused_tunnels_say_why(via: Via) {
    let world = World::new(via).await;
    let id = world.create().await.id;
    world.remote.pause(&id, PauseOptions::default()).await.unwrap();
    let refused = world.remote.dial(&id, 80, SOON).await.err().unwrap();
    assert_eq!(refused, Denied::AtRest(Phase::Paused).into());
    let refused = world.remote.dial(&nobody(), 80, SOON).await.err().unwrap();
    assert_eq!(refused, AgentError::unknown(&nobody()));
    assert_eq!(world.remote.dial(&id, 0, SOON).await.err().unwrap().code, Code::Invalid);
}

async fn what_is_no_tunnel_and_no_call_is_refused(via: Via) {
    let world = World::new(via).await;
    let id = world.create().await.id;
    let asked = [
        (format!("GET /tunnel/{id}/80 HTTP/1.1\r\nwrenn-dial-limit-ms: 9\r\n"), "400 Bad Request"),
        (
            format!(
                "GET /tunnel/{id}/80 HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\nwrenn-dial-limit-ms: 9\r\n"
            ),
            "400",
        ),
        (format!("GET /tunnel/{id}/80 HTTP/1.1\r\nupgrade: wrenn-tunnel\r\nconnection: upgrade\r\n"), "400"),
        ("GET /tunnel/../80 HTTP/1.1\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\n".to_owned(), "404"),
        ("POST /hostagent.HostAgent/Nothing HTTP/1.1\r\ncontent-type: application/proto\r\n".to_owned(), "404"),
        ("nonsense\r\n".to_owned(), "400"),
    ];
    for (head, status) in asked {
        let mut stream = world.place.way().connect(Carries::Tunnel).await.unwrap();
        stream.write_all(format!("{head}host: agent\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = [0; 64];
        let read = soon(stream.read(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
    }
}

async fn tunnels_are_bounded_and_a_place_comes_back(via: Via) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let (world, id, mut guests) = guest_world(via).await;
    let mut tunnels = Vec::new();
    for _ in 0..limits::TUNNELS_MAX {
        tunnels.push(world.remote.dial(&id, 80, SOON).await.unwrap());
    }
    let refused = world.remote.dial(&id, 80, SOON).await.err().unwrap();
    assert_eq!(refused.code, Code::Exhausted);
    tunnels.clear();
    guests.close();
    while guests.recv().await.is_some() {}
    soon(async {
        while world.remote.dial(&id, 80, SOON).await.is_err_and(|error| error.code == Code::Exhausted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
