//! A Firecracker that boots nothing.
//!
//! It knows, independently of the driver's types, which requests there are, which fields they must and may have, and in
//! which state they are taken: `Not started` ─InstanceStart─► `Running` ◄──► `Paused`. As the real one it speaks
//! HTTP/1.1, keeps connections open, and refuses with 400 and a `fault_message`. It writes snapshots where the real one
//! would, if the test says what of the host its paths lead to.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::{FAKE_DEVICES, Failure, Fault, HUGE_BYTES, Next, Record, Speaker};

/// Longest request in bytes, as the real one.
const REQUEST_MAX: usize = 51_200;

/// When a request is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    BeforeStart,
    AfterStart,
    WhilePaused,
}

/// Each request: method, path (`*` stands for an id), when, fields it must have, fields it may have. `None` for a body of
/// any fields.
type Rule = (&'static str, &'static str, When, Option<(&'static [&'static str], &'static [&'static str])>);

const RULES: &[Rule] = &[
    ("GET", "/", When::Always, None),
    ("GET", "/version", When::Always, None),
    ("GET", "/machine-config", When::Always, None),
    ("GET", "/balloon", When::Always, None),
    ("GET", "/balloon/statistics", When::AfterStart, None),
    ("GET", "/mmds", When::Always, None),
    ("PUT", "/mmds", When::Always, None),
    ("PATCH", "/mmds", When::Always, None),
    ("PUT", "/boot-source", When::BeforeStart, Some((&["kernel_image_path"], &["initrd_path", "boot_args"]))),
    (
        "PUT",
        "/drives/*",
        When::BeforeStart,
        Some((
            &["drive_id", "is_root_device"],
            &["partuuid", "cache_type", "is_read_only", "path_on_host", "rate_limiter", "io_engine", "socket"],
        )),
    ),
    ("PATCH", "/drives/*", When::AfterStart, Some((&["drive_id"], &["path_on_host", "rate_limiter"]))),
    (
        "PUT",
        "/network-interfaces/*",
        When::BeforeStart,
        Some((&["iface_id", "host_dev_name"], &["guest_mac", "mtu", "rx_rate_limiter", "tx_rate_limiter"])),
    ),
    (
        "PATCH",
        "/network-interfaces/*",
        When::AfterStart,
        Some((&["iface_id"], &["rx_rate_limiter", "tx_rate_limiter"])),
    ),
    (
        "PUT",
        "/machine-config",
        When::BeforeStart,
        Some((&["vcpu_count", "mem_size_mib"], &["smt", "cpu_template", "track_dirty_pages", "huge_pages"])),
    ),
    ("PUT", "/entropy", When::BeforeStart, Some((&[], &["rate_limiter"]))),
    (
        "PUT",
        "/balloon",
        When::BeforeStart,
        Some((
            &["amount_mib", "deflate_on_oom"],
            &["stats_polling_interval_s", "free_page_hinting", "free_page_reporting"],
        )),
    ),
    ("PATCH", "/balloon", When::AfterStart, Some((&["amount_mib"], &[]))),
    ("PATCH", "/balloon/statistics", When::AfterStart, Some((&["stats_polling_interval_s"], &[]))),
    (
        "PUT",
        "/mmds/config",
        When::BeforeStart,
        Some((&["network_interfaces"], &["version", "ipv4_address", "imds_compat"])),
    ),
    ("PUT", "/metrics", When::BeforeStart, Some((&["metrics_path"], &[]))),
    (
        "PUT",
        "/logger",
        When::BeforeStart,
        Some((&[], &["log_path", "level", "show_level", "show_log_origin", "module"])),
    ),
    ("PUT", "/actions", When::Always, Some((&["action_type"], &[]))),
    ("PATCH", "/vm", When::AfterStart, Some((&["state"], &[]))),
    ("PUT", "/snapshot/create", When::WhilePaused, Some((&["snapshot_path", "mem_file_path"], &["snapshot_type"]))),
    (
        "PUT",
        "/snapshot/load",
        When::BeforeStart,
        Some((
            &["snapshot_path", "mem_backend"],
            &["track_dirty_pages", "resume_vm", "network_overrides", "vsock_override", "clock_realtime"],
        )),
    ),
];

/// The memory it says it has, in bytes.
pub const FAKE_MEMORY_BYTES: u64 = 1 << 20;

/// A running fake; it ends when this is dropped.
#[derive(Debug)]
pub struct FakeFirecracker {
    record: Arc<Record>,
    task: JoinHandle<()>,
}

impl FakeFirecracker {
    /// One that listens in the folder a driver made in `run_dir`, calls itself `version`, and fails as told. Panics if it
    /// cannot listen there. Needs a runtime.
    pub fn start(run_dir: &Path, version: &'static str, failure: Option<Failure>) -> Self {
        Self::start_with(run_dir, version, failure, None)
    }

    /// One for which `/capture` is the host's `capture_dir`.
    pub fn start_with(
        run_dir: &Path,
        version: &'static str,
        failure: Option<Failure>,
        capture_dir: Option<PathBuf>,
    ) -> Self {
        let listener = UnixListener::bind(run_dir.join("vmm/control.sock")).expect("the driver made the folder");
        let record = Arc::new(Record::default());
        let state = State { capture_dir, ..State::default() };
        let machine = Machine { version, failure, state, record: Arc::clone(&record) };
        Self { record, task: tokio::spawn(machine.serve(listener)) }
    }

    /// What it was asked, as `METHOD /path`.
    pub fn asked(&self) -> Vec<String> {
        self.record.asked()
    }

    /// How much it has said, in bytes.
    pub fn sent_bytes(&self) -> u64 {
        self.record.sent_bytes()
    }
}

impl Drop for FakeFirecracker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    NotStarted,
    Running,
    Paused,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    has_kernel: bool,
    is_configured: bool,
    machine: Option<Value>,
    balloon: Option<Value>,
    metadata: Option<Value>,
    capture_dir: Option<PathBuf>,
    /// How many snapshots were made: each changes one page more.
    snapshots: u8,
}

struct Machine {
    version: &'static str,
    failure: Option<Failure>,
    state: State,
    record: Arc<Record>,
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

impl Machine {
    async fn serve(mut self, listener: UnixListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let mut speaker = Speaker { stream, record: Arc::clone(&self.record) };
            let mut buffer = Vec::new();
            loop {
                let Some(request) = next_request(&mut speaker, &mut buffer).await else { break };
                match self.exchange(&mut speaker, &request).await {
                    Next::Go => {}
                    Next::HangUp => break,
                    Next::End => return,
                }
            }
        }
    }

    async fn exchange(&mut self, speaker: &mut Speaker, request: &Request) -> Next {
        let number = self.record.note(&format!("{} {}", request.method, request.path));
        match self.failure.filter(|failure| failure.at == number).map(|failure| failure.fault) {
            None => {
                let answer = self.answer(request);
                speaker.say(&answer.bytes()).await
            }
            Some(Fault::Refuse) => speaker.say(&Answer::fault("the fake was told to refuse").bytes()).await,
            Some(Fault::CutOff) => {
                speaker.say(b"HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n{\"half\":").await;
                Next::End
            }
            Some(Fault::Huge) => {
                speaker.say(format!("HTTP/1.1 200 \r\nContent-Length: {HUGE_BYTES}\r\n\r\n").as_bytes()).await;
                speaker.flood(b' ').await
            }
            Some(Fault::Endless) => {
                speaker.say(b"HTTP/1.1 200 \r\nX-Endless: ").await;
                speaker.flood(b'x').await
            }
            Some(Fault::Nonsense) => speaker.say(b"SSH-2.0-OpenSSH_9.2\r\n").await,
            Some(Fault::Silence) => silence(speaker).await,
            Some(Fault::Exit) => Next::End,
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let (method, path) = (request.method.as_str(), request.path.as_str());
        let rule = RULES.iter().find(|(of, pattern, _, _)| *of == method && matches(pattern, path));
        let Some((_, _, when, fields)) = rule else {
            return Answer::fault(&format!("there is no {method} {path}"));
        };
        if let Err(answer) = self.check_phase(*when) {
            return answer;
        }
        if method == "GET" {
            return self.tell(path);
        }
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            return Answer::fault("the body is no JSON");
        };
        if let Some((must, may)) = fields
            && let Err(answer) = check_fields(&body, must, may)
        {
            return answer;
        }
        self.change(method, path, body)
    }

    fn check_phase(&self, when: When) -> Result<(), Answer> {
        let started = self.state.phase != Phase::NotStarted;
        match when {
            When::Always => Ok(()),
            When::BeforeStart if started => Err(Answer::fault("not after the microVM was started")),
            When::AfterStart | When::WhilePaused if !started => {
                Err(Answer::fault("not before the microVM was started"))
            }
            When::WhilePaused if self.state.phase != Phase::Paused => Err(Answer::fault("the microVM is not paused")),
            When::BeforeStart | When::AfterStart | When::WhilePaused => Ok(()),
        }
    }

    fn tell(&self, path: &str) -> Answer {
        let value = match path {
            "/" => Some(json!({
                "id": "fake", "state": self.state.phase.word(), "vmm_version": self.version, "app_name": "Firecracker",
            })),
            "/version" => Some(json!({ "firecracker_version": self.version })),
            "/machine-config" => {
                let default = json!({ "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false });
                Some(self.state.machine.clone().unwrap_or(default))
            }
            "/balloon" => self.state.balloon.clone(),
            "/balloon/statistics" => self.state.balloon.as_ref().map(|balloon| {
                json!({ "target_pages": 0, "actual_pages": 0, "target_mib": balloon["amount_mib"], "actual_mib": 0 })
            }),
            "/mmds" => self.state.metadata.clone(),
            other => unreachable!("{other} has a rule and no answer"),
        };
        value.map_or_else(|| Answer::fault("there is none"), |value| Answer { status: 200, body: Some(value) })
    }

    fn change(&mut self, method: &str, path: &str, body: Value) -> Answer {
        match (method, path) {
            ("PUT", "/actions") => return self.act(&body["action_type"]),
            ("PATCH", "/vm") => return self.set_phase(&body["state"]),
            ("PUT", "/snapshot/load") => return self.load(&body),
            ("PUT", "/snapshot/create") => {
                return match self.snapshot(&body) {
                    Ok(()) => Answer::DONE,
                    Err(error) => Answer::fault(&error.to_string()),
                };
            }
            ("PUT", "/boot-source") => self.state.has_kernel = true,
            ("PUT", "/machine-config") => self.state.machine = Some(body),
            ("PUT", "/balloon") => self.state.balloon = Some(body),
            ("PUT", "/mmds") => self.state.metadata = Some(body),
            _ => {}
        }
        self.state.is_configured |= !matches!(path, "/metrics" | "/logger");
        Answer::DONE
    }

    fn act(&mut self, action: &Value) -> Answer {
        match (action.as_str(), self.state.phase) {
            (Some("InstanceStart"), Phase::NotStarted) if self.state.has_kernel => {
                self.state.phase = Phase::Running;
                Answer::DONE
            }
            (Some("InstanceStart"), Phase::NotStarted) => Answer::fault("there is no boot source"),
            (Some("InstanceStart"), Phase::Running | Phase::Paused) => {
                Answer::fault("not after the microVM was started")
            }
            (Some("FlushMetrics" | "SendCtrlAltDel"), Phase::Running | Phase::Paused) => Answer::DONE,
            (Some("FlushMetrics" | "SendCtrlAltDel"), Phase::NotStarted) => {
                Answer::fault("not before the microVM was started")
            }
            (_, _) => Answer::fault("no such action"),
        }
    }

    fn set_phase(&mut self, state: &Value) -> Answer {
        self.state.phase = match state.as_str() {
            Some("Paused") => Phase::Paused,
            Some("Resumed") => Phase::Running,
            _ => return Answer::fault("no such state"),
        };
        Answer::DONE
    }

    /// As the real one: the state is overwritten, and what changed since the last time is merged into the memory.
    fn snapshot(&mut self, body: &Value) -> io::Result<()> {
        let Some(folder) = &self.state.capture_dir else { return Ok(()) };
        let on_host = |field: &str| {
            let inside = body[field].as_str().and_then(|path| path.strip_prefix("/capture/"));
            inside.map(|name| folder.join(name)).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        OpenOptions::new().write(true).truncate(true).open(on_host("snapshot_path")?)?.write_all(FAKE_DEVICES)?;
        let memory = OpenOptions::new().write(true).open(on_host("mem_file_path")?)?;
        memory.set_len(FAKE_MEMORY_BYTES)?;
        self.state.snapshots += 1;
        memory.write_all_at(&[self.state.snapshots; 4096], u64::from(self.state.snapshots) * 64 * 1024)
    }

    fn load(&mut self, body: &Value) -> Answer {
        if self.state.is_configured {
            return Answer::fault("a snapshot is loaded before anything else is configured");
        }
        self.state.phase = if body["resume_vm"] == true { Phase::Running } else { Phase::Paused };
        Answer::DONE
    }
}

struct Answer {
    status: u16,
    body: Option<Value>,
}

impl Answer {
    const DONE: Self = Self { status: 204, body: None };

    fn fault(message: &str) -> Self {
        Self { status: 400, body: Some(json!({ "fault_message": message })) }
    }

    /// As the real server writes it, empty reason and all.
    fn bytes(&self) -> Vec<u8> {
        let head = format!("HTTP/1.1 {} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n", self.status);
        match &self.body {
            None => format!("{head}\r\n").into_bytes(),
            Some(body) => {
                let body = body.to_string();
                let about = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
                format!("{head}{about}\r\n{body}").into_bytes()
            }
        }
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(folder) => path.strip_prefix(folder).is_some_and(|id| !id.is_empty() && !id.contains('/')),
        None => pattern == path,
    }
}

fn check_fields(body: &Value, must: &[&str], may: &[&str]) -> Result<(), Answer> {
    let fields = body.as_object().ok_or_else(|| Answer::fault("the body is no object"))?;
    if let Some(missing) = must.iter().find(|field| !fields.contains_key(**field)) {
        return Err(Answer::fault(&format!("missing field `{missing}`")));
    }
    match fields.keys().find(|field| !must.contains(&field.as_str()) && !may.contains(&field.as_str())) {
        Some(unknown) => Err(Answer::fault(&format!("unknown field `{unknown}`"))),
        None => Ok(()),
    }
}

/// Reads on, without an answer, until the other side hangs up.
async fn silence(speaker: &mut Speaker) -> Next {
    let mut ignored = [0; 1024];
    while matches!(speaker.stream.read(&mut ignored).await, Ok(read) if read > 0) {}
    Next::HangUp
}

/// The next request; `None` when the other side hung up or sent something else.
async fn next_request(speaker: &mut Speaker, buffer: &mut Vec<u8>) -> Option<Request> {
    loop {
        if let Some((request, length)) = parse(buffer) {
            buffer.drain(..length);
            return Some(request);
        }
        if buffer.len() > REQUEST_MAX || speaker.stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

fn parse(bytes: &[u8]) -> Option<(Request, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(bytes).ok()? else { return None };
    let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.map_or(Some(0), |header| std::str::from_utf8(header.value).ok()?.parse().ok())?;
    let body = bytes.get(head..head.checked_add(length)?)?.to_vec();
    Some((Request { method: request.method?.to_owned(), path: request.path?.to_owned(), body }, head + length))
}
