//! The agent, or the server alone, killed in the midst of each call.
//!
//! The agent's death is that of the whole service, which is started again; a server is started again by its agent, which goes on with
//! what it was asked. After each of them the call's outcome can be asked for and is one that the call could have had, what sandboxes
//! knew is there, the same call works, and nothing is left behind. Sampled: a soak runs the whole of the matrix.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wrenn_client::Client;
use wrenn_client::CommandEvent;
use wrenn_testworld::api::{Api, nothing};

use super::life::{create, sh};
use super::server::{Service, run, until};
use super::streams::noise;
use crate::chance::Chance;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The whole service.
    Agent,
    /// The server alone.
    Server,
}

/// What is asked for meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Create,
    Pause,
    Resume,
    Fork,
    Snapshot,
    Rollback,
    Timeout,
    Exec,
    Upload,
    Download,
    Template,
    Destroy,
    RemoveSnapshot,
    Warm,
}

impl Call {
    const ALL: [Self; 14] = [
        Self::Create,
        Self::Pause,
        Self::Resume,
        Self::Fork,
        Self::Snapshot,
        Self::Rollback,
        Self::Timeout,
        Self::Exec,
        Self::Upload,
        Self::Download,
        Self::Template,
        Self::Destroy,
        Self::RemoveSnapshot,
        Self::Warm,
    ];

    /// About how long it takes by translation, in ms.
    fn takes_ms(self) -> u64 {
        match self {
            Self::Timeout | Self::RemoveSnapshot => 15,
            Self::Download => 120,
            Self::Pause | Self::Destroy => 200,
            Self::Resume | Self::Snapshot | Self::Upload => 300,
            Self::Create | Self::Exec | Self::Template => 400,
            Self::Rollback => 450,
            Self::Fork => 700,
            Self::Warm => 3000,
        }
    }
}

/// One cell of the matrix: who dies in which call, after how long.
#[derive(Clone, Copy, Debug)]
struct Cell {
    call: Call,
    victim: Victim,
    after: Duration,
}

/// How many cells a run has that is no soak.
const SAMPLE: usize = 8;
/// How often a soak does all of the matrix, however many rounds it has: each takes a minute.
const SOAK_ROUNDS_MAX: u64 = 20;

/// All of the matrix again and again in a soak, each time with other moments; else some cells that a seed chooses.
fn cells() -> Vec<Cell> {
    let chance = Chance::of_this_run();
    let all = Call::ALL.into_iter().flat_map(|call| [(call, Victim::Server), (call, Victim::Agent)]);
    let cell = |(salt, (call, victim)): (u64, (Call, Victim))| {
        let after = Duration::from_millis(chance.pick(salt, call.takes_ms()));
        Cell { call, victim, after }
    };
    if let Some(rounds) = chance.soak_rounds() {
        let rounds = rounds.min(SOAK_ROUNDS_MAX);
        return (0..rounds).flat_map(|round| (round * 100..).zip(all.clone()).map(cell)).collect();
    }
    let mut cells: Vec<Cell> = (0..).zip(all).map(cell).collect();
    while cells.len() > SAMPLE {
        cells.remove(chance.pick(1000 + cells.len() as u64, cells.len() as u64) as usize);
    }
    cells
}

/// What came of a request in whose midst somebody was killed: nothing that can be relied on, where its connection broke.
type Answered = Option<(StatusCode, Bytes)>;

/// A service with one sandbox that knows something, and a snapshot of it.
struct Stage {
    service: Service,
    api: Api,
    id: String,
    /// How many snapshots' folders there are at rest.
    snapshots: usize,
    round: u64,
}

/// What is written in files, so that they can be told from others.
const KNOWN: &str = "on disk\nin memory\n";
/// Bytes of the files that are sent.
const FILE_BYTES: usize = 6_000_000;

impl Stage {
    async fn begin() -> Self {
        let service = Service::begin();
        let api = service.api().await;
        let id = create(&api, json!({ "memory_mib": 128 })).await;
        let script = format!(
            "echo on disk > /root/file; echo in memory > /dev/shm/file; head -c {FILE_BYTES} /dev/urandom > /root/down; \
             echo old > /root/up; sync"
        );
        assert_eq!(sh(&api, &id, &script).await.0, 0);
        api.post("/v1/snapshots", json!({ "sandbox": id, "name": "then" })).await.ok();
        Self { service, api, id, snapshots: 1, round: 0 }
    }

    fn path(&self) -> String {
        format!("/v1/sandboxes/{}", self.id)
    }

    /// Sends a request, kills somebody in its midst, and waits until all is there again.
    async fn strike(&mut self, request: RequestBuilder, cell: Cell) -> Answered {
        let sent = tokio::spawn(async move {
            let answer = request.send().await?;
            let status = answer.status();
            Ok::<_, reqwest::Error>((status, answer.bytes().await?))
        });
        // Any moment is one of those that are tested.
        tokio::time::sleep(cell.after).await;
        self.kill(cell.victim).await;
        let answered = sent.await.unwrap().ok()?;
        if answered.0.is_success() {
            return Some(answered);
        }
        let refused: Value = serde_json::from_slice(&answered.1).unwrap();
        let code = refused["error"]["code"].as_str().unwrap().to_owned();
        assert!(["unavailable", "failed"].contains(&code.as_str()), "{cell:?}: {refused:#}");
        None
    }

    async fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Agent => {
                self.service.kill();
                self.service.start();
            }
            Victim::Server => self.service.kill_server(),
        }
        self.api.until_ready().await;
    }

    fn post(&self, path: &str, body: Value) -> RequestBuilder {
        self.api.request(Method::POST, path).json(&body)
    }

    /// The state of the sandbox once nothing is under way with it.
    async fn settled(&self) -> String {
        loop {
            let state = self.api.get(&self.path()).await.ok()["state"].as_str().unwrap().to_owned();
            if !["pausing", "resuming", "capturing", "rolling_back"].contains(&state.as_str()) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// It is in one of these states, and runs afterwards with all that it knew.
    async fn check(&self, cell: Cell, states: &[&str]) -> String {
        // A sandbox does one thing after the other: what was asked before has been done when this is answered.
        self.api.get(&format!("{}/logs", self.path())).await.ok();
        let cat = json!({ "command": ["cat", "/root/file", "/dev/shm/file"] });
        loop {
            let state = self.settled().await;
            assert!(states.contains(&state.as_str()), "{cell:?}: {state}\n{}", self.service.words());
            if state == "paused" {
                let resumed = self.api.post(&format!("{}/resume", self.path()), nothing()).await;
                assert!(resumed.status.is_success() || resumed.code() == "conflict", "{cell:?}: {resumed:?}");
            }
            // The server may hear of what happened a moment later than of this.
            let said = self.api.post(&format!("{}/exec", self.path()), cat.clone()).await;
            if said.status.is_success() || said.code() != "conflict" {
                assert_eq!(said.ok()["stdout"]["data"], KNOWN, "{cell:?}");
                return state;
            }
        }
    }

    /// Sandboxes with this label.
    async fn labelled(&self, label: &str) -> Vec<Value> {
        let listed = self.api.get(&format!("/v1/sandboxes?metadata=round%3D{label}")).await.ok();
        listed["items"].as_array().unwrap().clone()
    }

    /// Folders of snapshots, those among them that are being made.
    fn snapshot_folders(&self) -> usize {
        std::fs::read_dir(self.service.dir().join("snapshots")).map_or(0, Iterator::count)
    }

    /// Nothing but what was there at the beginning is there or under way.
    async fn at_rest(&self, cell: Cell) {
        until("that no operation runs", || async {
            let operations = self.api.get("/v1/operations?limit=1000").await.ok();
            operations["items"].as_array().unwrap().iter().all(|operation| operation["state"] != "running")
        })
        .await;
        until("that no capture is under way", || async { self.snapshot_folders() == self.snapshots }).await;
        let listed = self.api.get("/v1/sandboxes").await.ok();
        let ids: Vec<&Value> = listed["items"].as_array().unwrap().iter().map(|sandbox| &sandbox["id"]).collect();
        assert_eq!(ids, [&json!(self.id)], "{cell:?}");
        let kept = self.api.get("/v1/snapshots").await.ok();
        assert_eq!(kept["items"].as_array().unwrap().len(), 1, "{cell:?}: {kept:#}");
    }

    async fn remove(&self, id: &str) {
        self.api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    }
}

#[test]
fn whoever_is_killed_at_any_moment_of_a_call_its_outcome_can_be_asked_for() {
    let mut outcomes = Vec::new();
    let mut stage = run(Stage::begin());
    for cell in cells() {
        let begun = std::time::Instant::now();
        stage.round += 1;
        let outcome = run(play(&mut stage, cell));
        outcomes.push(format!("{cell:?} -> {outcome}, {} ms", begun.elapsed().as_millis()));
        println!("{}", outcomes.last().unwrap());
    }
    run(async {
        stage.remove(&stage.id).await;
        stage.api.delete("/v1/snapshots/then").await.ok();
    });
    stage.service.end();
}

#[test]
fn an_address_that_is_just_being_given_up_is_waited_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // As the server of a service that was killed has it.
    let given_up = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        drop(listener);
    });
    let service = Service::at(address.clone(), None);
    given_up.join().unwrap();
    assert_eq!(service.url(), format!("http://{address}"));
    service.end();
}

async fn play(stage: &mut Stage, cell: Cell) -> String {
    let outcome = match cell.call {
        Call::Create => creation(stage, cell).await,
        Call::Pause => pause(stage, cell).await,
        Call::Resume => resume(stage, cell).await,
        Call::Fork => fork(stage, cell).await,
        Call::Snapshot => snapshot(stage, cell).await,
        Call::Rollback => rollback(stage, cell).await,
        Call::Timeout => timeout(stage, cell).await,
        Call::Exec => exec(stage, cell).await,
        Call::Upload => upload(stage, cell).await,
        Call::Download => download(stage, cell).await,
        Call::Template => template(stage, cell).await,
        Call::Destroy => destroy(stage, cell).await,
        Call::RemoveSnapshot => remove_snapshot(stage, cell).await,
        Call::Warm => warm(stage, cell).await,
    };
    stage.check(cell, &["running"]).await;
    stage.at_rest(cell).await;
    outcome
}

fn told(answered: &Answered) -> &'static str {
    if answered.is_some() { "answered" } else { "broken off" }
}

async fn creation(stage: &mut Stage, cell: Cell) -> String {
    let label = stage.round.to_string();
    let wanted = json!({ "memory_mib": 128, "metadata": { "round": label } });
    let key = format!("key {label}");
    let request = |stage: &Stage| stage.post("/v1/sandboxes", wanted.clone()).header("idempotency-key", &key);
    let answered = stage.strike(request(stage), cell).await;
    // The same request again is asking for the outcome.
    let again = stage.api.answer("post", "/v1/sandboxes", request(stage)).await;
    let there = stage.labelled(&label).await;
    if !again.status.is_success() {
        assert!(again.code() == "failed" && answered.is_none(), "{cell:?}: {again:?}");
        assert!(there.is_empty(), "{cell:?}: {there:#?}");
        let next = create(&stage.api, wanted).await;
        stage.remove(&next).await;
        return "failed".to_owned();
    }
    let again = again.ok();
    let id = again["sandbox"]["id"].as_str().unwrap();
    assert_eq!(there.len(), 1, "{cell:?}: one sandbox for one request: {there:#?}");
    assert_eq!((&there[0]["id"], &there[0]["state"]), (&json!(id), &json!("running")), "{cell:?}");
    if let Some((_, body)) = &answered {
        assert_eq!(serde_json::from_slice::<Value>(body).unwrap()["sandbox"]["id"], id, "{cell:?}");
    }
    assert_eq!(sh(&stage.api, id, "echo well").await.1, "well\n", "{cell:?}");
    stage.remove(id).await;
    told(&answered).to_owned()
}

async fn pause(stage: &mut Stage, cell: Cell) -> String {
    let path = format!("{}/pause", stage.path());
    let answered = stage.strike(stage.post(&path, nothing()), cell).await;
    let states: &[&str] = if answered.is_some() { &["paused"] } else { &["paused", "running"] };
    let state = stage.check(cell, states).await;
    assert_eq!(stage.api.post(&path, nothing()).await.ok()["sandbox"]["state"], "paused", "{cell:?}");
    stage.check(cell, &["paused"]).await;
    format!("{}, {state}", told(&answered))
}

async fn resume(stage: &mut Stage, cell: Cell) -> String {
    let (pause, path) = (format!("{}/pause", stage.path()), format!("{}/resume", stage.path()));
    stage.api.post(&pause, nothing()).await.ok();
    let answered = stage.strike(stage.post(&path, nothing()), cell).await;
    let states: &[&str] = if answered.is_some() { &["running"] } else { &["paused", "running"] };
    let state = stage.check(cell, states).await;
    stage.api.post(&pause, nothing()).await.ok();
    assert_eq!(stage.api.post(&path, nothing()).await.ok()["sandbox"]["state"], "running", "{cell:?}");
    format!("{}, {state}", told(&answered))
}

async fn fork(stage: &mut Stage, cell: Cell) -> String {
    let (path, label) = (format!("{}/fork", stage.path()), stage.round.to_string());
    let wanted = json!({ "count": 2, "metadata": { "round": label } });
    let answered = stage.strike(stage.post(&path, wanted.clone()), cell).await;
    stage.check(cell, &["running"]).await;
    until("that the fork is over", || async { stage.snapshot_folders() == stage.snapshots }).await;
    until("that no fork is being made", || async {
        stage.labelled(&label).await.iter().all(|fork| fork["state"] != "creating")
    })
    .await;
    let forks = stage.labelled(&label).await;
    assert!(forks.len() <= 2 && (answered.is_none() || forks.len() == 2), "{cell:?}: {forks:#?}");
    stage.api.post(&path, wanted).await.ok();
    let all = stage.labelled(&label).await;
    assert_eq!(all.len(), forks.len() + 2, "{cell:?}");
    for fork in &all {
        assert_eq!(fork["state"], "running", "{cell:?}: {fork:#}");
        let id = fork["id"].as_str().unwrap();
        assert_eq!(sh(&stage.api, id, "cat /root/file /dev/shm/file").await.1, KNOWN, "{cell:?}");
        stage.remove(id).await;
    }
    format!("{}, {} forks", told(&answered), forks.len())
}

async fn snapshot(stage: &mut Stage, cell: Cell) -> String {
    let name = format!("kept-{}", stage.round);
    let wanted = json!({ "sandbox": stage.id, "name": name });
    let answered = stage.strike(stage.post("/v1/snapshots", wanted.clone()), cell).await;
    // There is one of a name: the same request again is asking for the outcome.
    let again = stage.api.post("/v1/snapshots", wanted).await;
    assert!(again.status.is_success() || again.code() == "invalid", "{cell:?}: {again:?}");
    assert!(answered.is_none() || !again.status.is_success(), "{cell:?}: two of one name");
    stage.check(cell, &["running"]).await;
    until("that the captures are over", || async { stage.snapshot_folders() == stage.snapshots + 1 }).await;
    let from = create(&stage.api, json!({ "snapshot": name })).await;
    assert_eq!(sh(&stage.api, &from, "cat /root/file /dev/shm/file").await.1, KNOWN, "{cell:?}");
    stage.remove(&from).await;
    stage.api.delete(&format!("/v1/snapshots/{name}")).await.ok();
    let made = if again.status.is_success() { "not made" } else { "made" };
    format!("{}, {made}", told(&answered))
}

async fn rollback(stage: &mut Stage, cell: Cell) -> String {
    let path = format!("{}/rollback", stage.path());
    let wanted = json!({ "snapshot": "then" });
    assert_eq!(sh(&stage.api, &stage.id, "echo later > /dev/shm/later").await.0, 0);
    let answered = stage.strike(stage.post(&path, wanted.clone()), cell).await;
    let states: &[&str] = if answered.is_some() { &["running"] } else { &["paused", "running"] };
    let state = stage.check(cell, states).await;
    let (code, _) = sh(&stage.api, &stage.id, "test -e /dev/shm/later").await;
    assert!(answered.is_none() || code == 1, "{cell:?}: it was told to be back");
    stage.api.post(&path, wanted).await.ok();
    stage.check(cell, &["running"]).await;
    assert_eq!(sh(&stage.api, &stage.id, "test -e /dev/shm/later").await.0, 1, "{cell:?}");
    format!("{}, {state}, {}", told(&answered), if code == 1 { "back" } else { "as it was" })
}

async fn timeout(stage: &mut Stage, cell: Cell) -> String {
    let path = format!("{}/timeout", stage.path());
    let (wanted, none) = (json!({ "timeout_s": 3600 }), json!({ "timeout_s": null }));
    let answered = stage.strike(stage.post(&path, wanted.clone()), cell).await;
    let deadline = stage.api.get(&stage.path()).await.ok()["deadline_unix_ms"].clone();
    assert!(answered.is_none() || deadline.is_u64(), "{cell:?}: {deadline}");
    assert!(stage.api.post(&path, wanted).await.ok()["deadline_unix_ms"].is_u64(), "{cell:?}");
    assert!(stage.api.post(&path, none).await.ok()["deadline_unix_ms"].is_null(), "{cell:?}");
    format!("{}, {}", told(&answered), if deadline.is_u64() { "set" } else { "not set" })
}

async fn exec(stage: &mut Stage, cell: Cell) -> String {
    let file = format!("/root/exec-{}", stage.round);
    let script = format!("echo begun >> {file}; sleep 0.2; echo done >> {file}; echo told; exit 3");
    let path = format!("{}/exec", stage.path());
    let wanted = json!({ "command": ["sh", "-c", script] });
    let answered = stage.strike(stage.post(&path, wanted), cell).await;
    if answered.is_none() {
        come_back_to(stage, &file, cell).await;
    }
    let written = || async { sh(&stage.api, &stage.id, &format!("cat {file} 2>/dev/null")).await.1 };
    until("that the command is over", || async { written().await != "begun\n" }).await;
    let written = written().await;
    let whole = written == "begun\ndone\n";
    assert!(whole || (answered.is_none() && written.is_empty()), "{cell:?}: {written}");
    format!("{}, {}", told(&answered), if whole { "done" } else { "not begun" })
}

/// A command that was lost is found in the list, and its output and end are heard.
async fn come_back_to(stage: &Stage, file: &str, cell: Cell) {
    let running = stage.api.get(&format!("{}/exec", stage.path())).await.ok();
    let is_it = |process: &&Value| process["command"].to_string().contains(file);
    let Some(process) = running["items"].as_array().unwrap().iter().find(is_it) else { return };
    let pid = u32::try_from(process["pid"].as_u64().unwrap()).unwrap();
    let client = Client::new(&stage.service.url(), Some(&stage.service.key)).unwrap();
    let mut stream = client.attach(&stage.id, pid, Some(0)).await.unwrap();
    let mut output = Vec::new();
    let exit = loop {
        match stream.output.next().await.unwrap().expect("an end comes before the stream's") {
            CommandEvent::Started { .. } => {}
            CommandEvent::Gap { bytes } => panic!("{cell:?}: {bytes} bytes are gone"),
            CommandEvent::Output { bytes, .. } => output.extend_from_slice(&bytes),
            CommandEvent::Exit(exit) => break exit,
        }
    };
    assert_eq!((output.as_slice(), exit), (&b"told\n"[..], wrenn_client::types::Exit::Exited { code: 3 }), "{cell:?}");
}

async fn upload(stage: &mut Stage, cell: Cell) -> String {
    let place = format!("{}/files?path=/root/up", stage.path());
    let bytes = noise(FILE_BYTES);
    let sum = hex::encode(Sha256::digest(&bytes));
    sh(&stage.api, &stage.id, "echo old > /root/up").await;
    let put = |stage: &Stage| stage.api.request(Method::PUT, &place).body(bytes.clone());
    let answered = stage.strike(put(stage), cell).await;
    let now = sh(&stage.api, &stage.id, "sha256sum < /root/up").await.1;
    let whole = now.starts_with(&sum);
    let old = hex::encode(Sha256::digest(b"old\n"));
    assert!(whole || (answered.is_none() && now.starts_with(&old)), "{cell:?}: neither the old file nor the new one");
    let hidden = || async { sh(&stage.api, &stage.id, "ls -A /root | grep '^[.]wrenn'").await.1 };
    until("that nothing stays of it", || async { hidden().await.is_empty() }).await;
    stage.api.answer("put", &place, put(stage)).await.ok();
    assert!(sh(&stage.api, &stage.id, "sha256sum < /root/up").await.1.starts_with(&sum), "{cell:?}");
    format!("{}, {}", told(&answered), if whole { "whole" } else { "as it was" })
}

async fn download(stage: &mut Stage, cell: Cell) -> String {
    let place = format!("{}/files?path=/root/down", stage.path());
    let request = stage.api.request(Method::GET, &place);
    let reading = tokio::spawn(async move {
        let mut had = Vec::new();
        let Ok(answer) = request.send().await.and_then(reqwest::Response::error_for_status) else { return had };
        let mut body = answer.bytes_stream();
        while let Some(Ok(bytes)) = body.next().await {
            had.extend_from_slice(&bytes);
        }
        had
    });
    tokio::time::sleep(cell.after).await;
    stage.kill(cell.victim).await;
    let mut had = reading.await.unwrap();
    let first = had.len();
    if first < FILE_BYTES {
        let request = stage.api.request(Method::GET, &place).header("range", format!("bytes={first}-"));
        had.extend_from_slice(&request.send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap());
    }
    let sum = sh(&stage.api, &stage.id, "sha256sum < /root/down").await.1;
    assert!(sum.starts_with(&hex::encode(Sha256::digest(&had))), "{cell:?}: {first} and {} bytes", had.len());
    format!("{first} bytes, then the rest")
}

async fn template(stage: &mut Stage, cell: Cell) -> String {
    let name = format!("made-{}", stage.round);
    let wanted = json!({ "snapshot": "then", "name": name });
    let before = stage.api.get("/v1/operations?limit=1").await.ok()["items"].clone();
    let answered = stage.strike(stage.post("/v1/templates", wanted.clone()), cell).await;
    let last = || async { stage.api.get("/v1/operations?limit=1").await.ok()["items"].clone() };
    until("its end", || async { last().await[0]["state"] != "running" }).await;
    let last = last().await;
    let there = stage.api.get(&format!("/v1/templates/{name}")).await;
    let made = last != before && last[0]["state"] == "succeeded";
    assert!(made || (answered.is_none() && last == before), "{cell:?}: a template is seen through: {last:#}");
    assert_eq!(there.status.is_success(), made, "{cell:?}: {there:?}");
    let template = match made {
        true => there.ok(),
        false => stage.api.post("/v1/templates", wanted).await.ok(),
    };
    assert!(!made || template["id"] == last[0]["template"], "{cell:?}");
    let from = create(&stage.api, json!({ "template": name, "memory_mib": 128 })).await;
    assert_eq!(sh(&stage.api, &from, "cat /root/file").await.1, "on disk\n", "{cell:?}");
    stage.remove(&from).await;
    stage.api.delete(&format!("/v1/templates/{name}")).await.ok();
    format!("{}, {}", told(&answered), if made { "made" } else { "not begun" })
}

async fn destroy(stage: &mut Stage, cell: Cell) -> String {
    let path = format!("/v1/sandboxes/{}", create(&stage.api, json!({ "memory_mib": 128 })).await);
    let answered = stage.strike(stage.api.request(Method::DELETE, &path), cell).await;
    let there = || async { stage.api.get(&path).await };
    until("that nothing is under way", || async { there().await.body["state"] != "destroying" }).await;
    let was_gone = !there().await.status.is_success();
    assert!(answered.is_none() || was_gone, "{cell:?}");
    if !was_gone {
        assert_eq!(there().await.ok()["state"], "running", "{cell:?}");
        stage.api.delete(&path).await.ok();
    }
    // Why it ended is known, or that nobody knows.
    until("the record", || async {
        let message = there().await.body["error"]["message"].as_str().unwrap().to_owned();
        message.contains("is gone (requested") || (was_gone && message.contains("is gone (unknown"))
    })
    .await;
    assert_eq!(stage.api.delete(&path).await.code(), "not_found", "{cell:?}");
    format!("{}, {}", told(&answered), if was_gone { "gone" } else { "as it was" })
}

async fn remove_snapshot(stage: &mut Stage, cell: Cell) -> String {
    let name = format!("short-{}", stage.round);
    let path = format!("/v1/snapshots/{name}");
    stage.api.post("/v1/snapshots", json!({ "sandbox": stage.id, "name": name })).await.ok();
    let answered = stage.strike(stage.api.request(Method::DELETE, &path), cell).await;
    let there = stage.api.get(&path).await;
    let was_gone = !there.status.is_success();
    assert!(answered.is_none() || was_gone, "{cell:?}");
    if !was_gone {
        let from = create(&stage.api, json!({ "snapshot": name })).await;
        assert_eq!(sh(&stage.api, &from, "cat /root/file /dev/shm/file").await.1, KNOWN, "{cell:?}");
        stage.remove(&from).await;
        stage.api.delete(&path).await.ok();
    }
    assert_eq!(stage.api.get(&path).await.code(), "not_found", "{cell:?}");
    format!("{}, {}", told(&answered), if was_gone { "gone" } else { "as it was" })
}

async fn warm(stage: &mut Stage, cell: Cell) -> String {
    // A size that is not warm yet.
    let memory_mib = 129 + stage.round;
    let (path, wanted) = ("/v1/templates/minimal/warm", json!({ "memory_mib": memory_mib }));
    let answered = stage.strike(stage.post(path, wanted.clone()), cell).await;
    let again = stage.api.post(path, wanted).await.ok();
    assert!(answered.is_none() || again["made"] == false, "{cell:?}: {again:#}");
    let template = stage.api.get("/v1/templates/minimal").await.ok();
    let images = template["warm"].as_array().unwrap().iter().filter(|warm| warm["memory_mib"] == memory_mib);
    assert_eq!(images.count(), 1, "{cell:?}: {template:#}");
    until("that what was booted for it is gone", || async {
        stage.api.get("/v1/sandboxes").await.ok()["items"].as_array().unwrap().len() == 1
    })
    .await;
    format!("{}, {}", told(&answered), if again["made"] == false { "made" } else { "made again" })
}
