//! The real envd on loopback, its generated client, and plain sockets for what no client would send.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use connectrpc::client::{CallOptions, ClientConfig, HttpClient, ServerStream};
use connectrpc::{ConnectError, StreamMessage};
use ed25519_dalek::{Signer as _, SigningKey};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wrenn_proto::envd::process::process_event::{EndEvent, Event, data_event::Output};
use wrenn_proto::envd::process::{
    ConnectRequest, ConnectResponse, PTY, ProcessClient, ProcessConfig, ProcessEvent, ProcessInput, ProcessSelector,
    SendInputRequest, SendSignalRequest, StartRequest, StartResponse, process_input, process_selector, pty,
};
use wrenn_proto::envd::{NONCE_HEADER, SIGNATURE_HEADER, TOKEN_HEADER, host_call_message};
use wrenn_sys::spawn::{Child, Spawn};

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// One running envd; dropping it ends it and everything it started, by whatever parent.
pub struct Envd {
    child: Child,
    /// No other envd has it: it is in the environment of everything that this one starts.
    pub id: String,
    pub address: SocketAddr,
    key: SigningKey,
    nonce: AtomicU64,
}

/// How a client talks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Http1Json,
    Http1Proto,
    Http2Json,
    Http2Proto,
}

pub const WIRES: [Wire; 4] = [Wire::Http1Json, Wire::Http1Proto, Wire::Http2Json, Wire::Http2Proto];

pub type Client = ProcessClient<HttpClient>;

/// An answer to a plain request.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Envd {
    /// An envd that no /init has reached.
    pub fn new() -> Self {
        Self::with_args(&["--no-cgroup"])
    }

    pub fn with_args(args: &[&str]) -> Self {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let key = SigningKey::from_bytes(&[42; 32]);
        let id = format!("sb{:010}{:08}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let stderr =
            File::options().write(true).open("/dev/stderr").or_else(|_| File::options().write(true).open("/dev/null"));
        let child = Spawn::new(env!("CARGO_BIN_EXE_envd"))
            .args(["--port", "0", "--address", "127.0.0.1", "--id", &id, "--key"])
            .arg(hex::encode(key.verifying_key().as_bytes()))
            .args(args.iter().copied())
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("SECRET_OF_ENVD", "not inherited")
            .fd(write.as_fd(), 1)
            .fd(stderr.unwrap().as_fd(), 2)
            .parent_death_signal(Signal::KILL)
            .start()
            .unwrap();
        drop(write);
        let mut line = String::new();
        BufReader::new(File::from(read)).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("envd: listening on ").expect("the line of a started envd");
        Self { child, id, address: address.parse().unwrap(), key, nonce: AtomicU64::new(1) }
    }

    /// An envd with a token.
    pub async fn ready() -> Self {
        let envd = Self::new();
        envd.init(&format!("{{\"accessToken\":\"{TOKEN}\"}}")).await;
        envd
    }

    pub async fn init(&self, body: &str) {
        let answer = self.host_call("/init", body).await;
        assert_eq!(answer.status, 204, "{answer:?}");
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// What the host signs with.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Waits for envd's own end.
    pub fn wait(&self) -> wrenn_sys::spawn::ExitStatus {
        self.child.wait().unwrap()
    }

    pub async fn host_call(&self, path: &str, body: &str) -> Answer {
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed);
        self.signed(path, nonce, body).await
    }

    pub async fn signed(&self, path: &str, nonce: u64, body: &str) -> Answer {
        let signature = self.key.sign(&host_call_message(&self.id, nonce, path, body.as_bytes()));
        let signature = STANDARD.encode(signature.to_bytes());
        let headers = [(NONCE_HEADER, nonce.to_string()), (SIGNATURE_HEADER, signature)];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.request("POST", path, &headers, body.as_bytes()).await
    }

    /// A plain request on a connection of its own.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: envd\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.raw(&[head.as_bytes(), body].concat()).await
    }

    /// The same with the token.
    pub async fn authorized(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.request(method, path, &[headers, &[(TOKEN_HEADER, TOKEN)]].concat(), body).await
    }

    /// Sends these bytes and reads until the connection ends.
    pub async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // A refusal may come, and the connection go, before all was sent.
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        parse_answer(&answer)
    }

    pub fn client(&self, wire: Wire) -> Client {
        let http = match wire {
            Wire::Http1Json | Wire::Http1Proto => HttpClient::plaintext(),
            Wire::Http2Json | Wire::Http2Proto => HttpClient::plaintext_http2_only(),
        };
        let config = ClientConfig::new(format!("http://{}", self.address).parse().unwrap());
        let config = match wire {
            Wire::Http1Json | Wire::Http2Json => config.json(),
            Wire::Http1Proto | Wire::Http2Proto => config.proto(),
        };
        ProcessClient::new(http, config.with_default_header(TOKEN_HEADER, TOKEN))
    }

    pub fn default_client(&self) -> Client {
        self.client(Wire::Http2Proto)
    }
}

impl Drop for Envd {
    fn drop(&mut self) {
        // First who might start more.
        self.child.signal(Signal::KILL).ok();
        self.child.wait().ok();
        // A process of the last moment may start another before it ends.
        while !kill_all_with(&format!("E2B_SANDBOX_ID={}", self.id)) {}
    }
}

/// Kills every process with this line in its environment; true when there was none.
fn kill_all_with(line: &str) -> bool {
    let mut found = false;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let pid = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
        if let Some(pid) = pid.filter(|_| environment.split(|byte| *byte == 0).any(|known| known == line.as_bytes())) {
            found = true;
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
    }
    !found
}

fn parse_answer(answer: &[u8]) -> Answer {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.get(end + 4..).unwrap_or_default();
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Answer { status, head, body: if is_chunked { dechunk(body) } else { body.to_vec() } }
}

fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap().trim(), 16).unwrap();
        let chunk = &body[end + 2..];
        if size == 0 || chunk.len() < size {
            break;
        }
        whole.extend_from_slice(&chunk[..size]);
        body = &chunk[(size + 2).min(chunk.len())..];
    }
    whole
}

/// `program args...` as a request.
pub fn command(program: &str, args: &[&str]) -> StartRequest {
    let config = ProcessConfig {
        cmd: program.to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..Default::default()
    };
    StartRequest { process: config.into(), stdin: Some(false), ..Default::default() }
}

/// A shell script as a request.
pub fn sh(script: &str) -> StartRequest {
    command("/bin/sh", &["-c", script])
}

pub fn with_stdin(mut request: StartRequest) -> StartRequest {
    request.stdin = None;
    request
}

pub fn with_pty(mut request: StartRequest, cols: u32, rows: u32) -> StartRequest {
    request.pty = to_pty(cols, rows).into();
    request
}

pub fn to_pty(cols: u32, rows: u32) -> PTY {
    PTY { size: pty::Size { cols, rows }.into() }
}

pub fn by_pid(pid: u32) -> ProcessSelector {
    ProcessSelector { selector: Some(process_selector::Selector::Pid(pid)) }
}

pub fn by_tag(tag: &str) -> ProcessSelector {
    ProcessSelector { selector: Some(process_selector::Selector::Tag(tag.to_owned())) }
}

pub fn connect_request(pid: u32, offset: Option<u64>) -> ConnectRequest {
    ConnectRequest { process: by_pid(pid).into(), offset }
}

pub fn signal_request(pid: u32, signal: i32) -> SendSignalRequest {
    SendSignalRequest { process: by_pid(pid).into(), signal: signal.into() }
}

pub fn stdin(bytes: &[u8]) -> ProcessInput {
    ProcessInput { input: Some(process_input::Input::Stdin(bytes.to_vec().into())) }
}

pub fn typed(bytes: &[u8]) -> ProcessInput {
    ProcessInput { input: Some(process_input::Input::Pty(bytes.to_vec().into())) }
}

pub fn input_request(pid: u32, input: ProcessInput) -> SendInputRequest {
    SendInputRequest { process: by_pid(pid).into(), input: input.into() }
}

pub fn as_user(name: &str) -> CallOptions {
    CallOptions::default().with_header("authorization", format!("Basic {}", STANDARD.encode(format!("{name}:"))))
}

/// A time limit for the command, which the client itself does not enforce.
pub fn time_limit(limit: Duration) -> CallOptions {
    CallOptions::default().with_header("connect-timeout-ms", limit.as_millis().to_string())
}

/// A stream of Start or Connect, as events.
pub struct Events {
    inner: Inner,
}

type Body = <HttpClient as connectrpc::client::ClientTransport>::ResponseBody;

enum Inner {
    Start(ServerStream<Body, wrenn_proto::envd::process::__buffa::view::StartResponseView<'static>>),
    Connect(ServerStream<Body, wrenn_proto::envd::process::__buffa::view::ConnectResponseView<'static>>),
}

/// Everything a process did, as one client saw it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    pub gap: u64,
    pub keepalives: usize,
    /// The largest event of output.
    pub largest: usize,
    /// Where the next byte would be.
    pub position: u64,
    /// The same, once anything came.
    expected: Option<u64>,
    pub end: Option<EndEvent>,
    pub error: Option<ConnectError>,
}

impl Seen {
    pub fn end(&self) -> &EndEvent {
        self.end.as_ref().unwrap_or_else(|| panic!("no end: {:?}", self.error))
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

pub async fn start(client: &Client, request: StartRequest) -> Result<Events, ConnectError> {
    start_with(client, request, CallOptions::default()).await
}

pub async fn start_with(client: &Client, request: StartRequest, options: CallOptions) -> Result<Events, ConnectError> {
    Ok(Events { inner: Inner::Start(client.start_with_options(request, options).await?) })
}

pub async fn connect(client: &Client, request: ConnectRequest) -> Result<Events, ConnectError> {
    Ok(Events { inner: Inner::Connect(client.connect(request).await?) })
}

/// Starts and sees it through; refusals are in `error`.
pub async fn run(client: &Client, request: StartRequest) -> Seen {
    run_with(client, request, CallOptions::default()).await
}

pub async fn run_with(client: &Client, request: StartRequest, options: CallOptions) -> Seen {
    match start_with(client, request, options).await {
        Ok(events) => events.rest().await,
        Err(error) => Seen { error: Some(error), ..Default::default() },
    }
}

/// Why a command was refused.
pub async fn refusal(client: &Client, request: StartRequest, options: CallOptions) -> (String, String) {
    let error = run_with(client, request, options).await.error.expect("a refusal");
    (error.code.as_str().to_owned(), error.message.unwrap_or_default())
}

impl Events {
    pub async fn next(&mut self) -> Result<Option<Event>, ConnectError> {
        let wrapped: Option<ProcessEvent> = match &mut self.inner {
            Inner::Start(stream) => {
                let message: Option<StreamMessage<StartResponse>> = stream.message().await?;
                message.and_then(|message| message.to_owned_message().event.into_option())
            }
            Inner::Connect(stream) => {
                let message: Option<StreamMessage<ConnectResponse>> = stream.message().await?;
                message.and_then(|message| message.to_owned_message().event.into_option())
            }
        };
        Ok(wrapped.and_then(|event| event.event))
    }

    /// The pid in the first event.
    pub async fn pid(&mut self) -> u32 {
        match self.next().await.unwrap() {
            Some(Event::Start(start)) => start.pid,
            other => panic!("the first event is {other:?}"),
        }
    }

    /// Reads until `enough`, or the end.
    pub async fn until(&mut self, seen: &mut Seen, enough: impl Fn(&Seen) -> bool) {
        while !enough(seen) {
            match self.next().await {
                Ok(Some(event)) => seen.take(event),
                Ok(None) => return,
                Err(error) => {
                    seen.error = Some(error);
                    return;
                }
            }
        }
    }

    pub async fn rest(mut self) -> Seen {
        let mut seen = Seen::default();
        self.until(&mut seen, |_| false).await;
        seen
    }
}

impl Seen {
    fn take(&mut self, event: Event) {
        assert!(self.end.is_none(), "{event:?} after the end");
        match event {
            Event::Start(start) => self.pid = start.pid,
            Event::Keepalive(_) => self.keepalives += 1,
            Event::End(end) => self.end = Some(*end),
            Event::Gap(gap) => {
                self.gap += gap.bytes;
                self.expected = self.expected.map(|expected| expected + gap.bytes);
            }
            Event::Data(data) => {
                let (bytes, into) = match data.output.expect("data has output") {
                    Output::Stdout(bytes) => (bytes, &mut self.stdout),
                    Output::Stderr(bytes) => (bytes, &mut self.stderr),
                    Output::Pty(bytes) => (bytes, &mut self.pty),
                };
                assert_eq!(data.offset, self.expected.unwrap_or(data.offset), "a hole that nobody told of");
                self.position = data.offset + bytes.len() as u64;
                self.expected = Some(self.position);
                self.largest = self.largest.max(bytes.len());
                into.extend_from_slice(&bytes);
            }
        }
    }
}

/// Whether a process is there, also as a zombie.
pub fn is_there(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits for something that comes without an event, for ten seconds at most.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
