//! The client against guests that are late, silent, lying or hostile. What a good guest does is tested with the real one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use ::http::{Request, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ed25519_dalek::{Signature, SigningKey};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wrenn_engine::names::SandboxId;
use wrenn_proto::envd::host_calls::{self as wire, Clock};
use wrenn_proto::envd::{NONCE_HEADER, SIGNATURE_HEADER, host_call_message};

use super::*;

const SOON: Duration = Duration::from_millis(300);

#[derive(Debug)]
struct Loopback(SocketAddr);

#[async_trait]
impl Dial for Loopback {
    async fn dial(&self, _port: u16, limit: Duration) -> io::Result<Tunnel> {
        let connect = TcpStream::connect(self.0);
        let stream =
            tokio::time::timeout(limit, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(Box::new(stream))
    }
}

fn client(address: SocketAddr) -> EnvdClient {
    EnvdClient::new(Arc::new(Loopback(address)), "token".to_owned(), Nonces::default())
}

/// A guest that says `bytes` on each connection, after it was asked something, and then keeps silent.
async fn guest_saying(bytes: &'static [u8]) -> EnvdClient {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 1024];
                if stream.read(&mut request).await.is_ok() && stream.write_all(bytes).await.is_ok() {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    client(address)
}

#[tokio::test]
async fn nobody_there_is_not_reachable() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = client(free).wait_ready(SOON).await.unwrap_err();
    let EnvdError::NotReady { limit, last } = &error else { panic!("{error:?}") };
    assert_eq!(*limit, SOON);
    assert!(matches!(**last, EnvdError::Unreachable(_)), "{last:?}");
}

#[tokio::test]
async fn what_a_guest_says_of_itself_is_brought_within_bounds() {
    let body = r#"{"ts":18446744073709551615,"cpu_count":2,"cpu_used_pct":1e300,"mem_total":7,"mem_used":18446744073709551615,
        "mem_cache":"?","more":{},"disk_total":0,"disk_used":1}"#;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let guest = guest_saying(answer.leak().as_bytes()).await;
    let stat = guest.metrics(SOON).await.unwrap();
    assert_eq!((stat.unix_ms, stat.cpus, stat.cpu_percent), (u64::MAX, 2, 100.0));
    assert_eq!((stat.memory_total_bytes, stat.memory_used_bytes, stat.disk_used_bytes), (7, 7, 0));
}

#[tokio::test]
async fn a_guest_that_says_nothing_of_itself_costs_little() {
    let begun = Instant::now();
    let silent = guest_saying(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").await.metrics(SOON).await.unwrap_err();
    assert!(matches!(silent, EnvdError::Deadline { .. }), "{silent:?}");
    assert!(begun.elapsed() < SOON * 3, "{:?}", begun.elapsed());
    for lie in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"ts\":-1}   ",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ] {
        let error = guest_saying(lie).await.metrics(SOON).await.unwrap_err();
        assert!(matches!(error, EnvdError::Protocol { .. } | EnvdError::Deadline { .. }), "{error:?}");
    }
    let refusal = guest_saying(b"HTTP/1.1 401 no\r\ncontent-length: 0\r\n\r\n").await.metrics(SOON).await.unwrap_err();
    assert!(matches!(refusal, EnvdError::Refused { .. }), "{refusal:?}");
}

#[tokio::test]
async fn silence_is_not_ready() {
    let begun = Instant::now();
    let error = guest_saying(b"").await.wait_ready(SOON).await.unwrap_err();
    assert!(matches!(error, EnvdError::NotReady { .. }), "{error:?}");
    assert!(begun.elapsed() < SOON * 4, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_guest_that_comes_late_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let late = tokio::spawn(async move {
        sleep(Duration::from_millis(100)).await;
        let listener = TcpListener::bind(address).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let read = stream.read(&mut request).await.unwrap();
        assert!(request[..read].starts_with(b"GET /health HTTP/1.1\r\n"));
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    });
    client(address).wait_ready(Duration::from_secs(10)).await.unwrap();
    late.await.unwrap();
}

#[tokio::test]
async fn a_refusal_keeps_the_guests_words_and_cannot_drive_a_terminal() {
    let answer =
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 40\r\n\r\n{\"code\":400,\"message\":\"bad \\u001b[31m!\"}";
    let client = guest_saying(answer).await;
    let stream = client.connect(SOON).await.unwrap();
    let error = http1::get_health(stream).await.unwrap_err();
    let EnvdError::Refused { code, message, .. } = &error else { panic!("{error:?}") };
    assert_eq!((code.as_str(), message.as_str()), ("400", "bad \u{fffd}[31m!"));
}

#[tokio::test]
async fn nonsense_and_endless_answers_break_the_protocol() {
    for answer in [&b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..], ENDLESS_HEAD] {
        let client = guest_saying(answer).await;
        let stream = client.connect(SOON).await.unwrap();
        let error = http1::get_health(stream).await.unwrap_err();
        assert!(matches!(error, EnvdError::Protocol { .. }), "{error:?}");
    }
}

/// A header section of more than a client takes.
const ENDLESS_HEAD: &[u8] = &{
    let mut head = [b'a'; 600_000];
    let start = *b"HTTP/1.1 200 OK\r\n";
    let mut at = 0;
    while at < start.len() {
        head[at] = start[at];
        at += 1;
    }
    head
};

/// Bytes that are repeated for ever.
struct Endless(Bytes);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(self.0.clone()))))
    }
}

/// A guest that answers every Connect call with a stream whose body is made by `body`.
async fn guest_streaming<B>(body: impl Fn() -> B + Copy + Send + Sync + 'static) -> EnvdClient
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = move |_: Request<Incoming>| async move {
            Ok::<_, Infallible>(
                Response::builder().header("content-type", "application/connect+proto").body(body()).unwrap(),
            )
        };
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        // It ends when the client hangs up.
        drop(connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
    });
    client(address)
}

async fn start(client: &EnvdClient) -> EnvdError {
    let begun = Instant::now();
    let command = Command { program: "true".to_owned(), ..Command::default() };
    let Err(error) = client.start(command).await else { panic!("it started") };
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    error
}

#[tokio::test]
async fn a_frame_longer_than_its_limit_is_refused_before_it_is_read() {
    let error = start(&guest_streaming(|| Endless(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]))).await).await;
    let EnvdError::Refused { code, .. } = &error else { panic!("{error:?}") };
    assert_eq!(code, "resource_exhausted");
}

#[tokio::test]
async fn endless_and_malformed_frames_are_refused() {
    // Frames of one byte that is no message; and empty frames, which are messages without an event.
    for frame in [&[0, 0, 0, 0, 1, 0xff][..], &[0, 0, 0, 0, 0]] {
        let error = start(&guest_streaming(move || Endless(Bytes::from_static(frame))).await).await;
        let known = matches!(error, EnvdError::Protocol { .. } | EnvdError::Refused { .. });
        assert!(known, "{error:?}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_the_command_is_no_end() {
    let error = start(&guest_streaming(|| Full::new(Bytes::new())).await).await;
    assert!(matches!(error, EnvdError::Protocol { .. }), "{error:?}");
    // An end-of-stream frame without any event before it.
    let error = start(&guest_streaming(|| Full::new(Bytes::from_static(&[2, 0, 0, 0, 2, b'{', b'}']))).await).await;
    assert!(matches!(error, EnvdError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn a_guest_that_does_not_speak_http2_is_not_waited_for() {
    let error = start(&guest_saying(b"HTTP/1.1 400 Bad Request\r\n\r\n").await).await;
    assert!(matches!(error, EnvdError::Unreachable(_) | EnvdError::Protocol { .. }), "{error:?}");
}

/// An answer with this body.
fn answer(status: &str, body: &str) -> &'static [u8] {
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    Vec::leak(text.into_bytes())
}

/// Signs for a guest that does not look.
fn signer() -> (SigningKey, SandboxId) {
    (SigningKey::from_bytes(&[9; 32]), SandboxId::from_random([1; 18]))
}

/// A guest that answers a signed call with these bytes.
async fn clock_of(answer: &'static [u8]) -> EnvdError {
    let (key, id) = signer();
    line(&guest_saying(answer).await).await.clock(HostKey { key: &key, id: &id }).await.unwrap_err()
}

async fn line(client: &EnvdClient) -> HostLine {
    client.reach(Duration::from_secs(5)).await.unwrap()
}

#[tokio::test]
async fn an_answer_that_is_no_time_breaks_the_protocol() {
    for said in [
        answer("200 OK", ""),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        answer("200 OK", "{}"),
        answer("200 OK", "{\"unix_ns\":5}"),
        answer("200 OK", "{\"unix_ns\":\"\"}"),
        answer("200 OK", "{\"unix_ns\":\"+5\"}"),
        answer("200 OK", "{\"unix_ns\":\"-5\"}"),
        answer("200 OK", "{\"unix_ns\":\"18446744073709551616\"}  "),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense",
        ENDLESS_HEAD,
        ENDLESS_BODY,
    ] {
        let error = clock_of(said).await;
        assert!(
            matches!(error, EnvdError::Protocol { .. }),
            "{}: {error:?}",
            said[..60.min(said.len())].escape_ascii()
        );
    }
}

/// A body of more than a client takes.
const ENDLESS_BODY: &[u8] = &{
    let mut answer = [b' '; 200_000];
    let start = *b"HTTP/1.1 200 OK\r\n\r\n";
    let mut at = 0;
    while at < start.len() {
        answer[at] = start[at];
        at += 1;
    }
    answer
};

#[tokio::test]
async fn an_older_guest_does_not_know_the_call() {
    let said = answer("404 Not Found", r#"{"code":404,"message":"there is nothing here"}"#);
    let error = clock_of(said).await;
    assert!(matches!(&error, EnvdError::Refused { code, .. } if code == "404"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_is_not_waited_for() {
    let (key, id) = signer();
    let host = HostKey { key: &key, id: &id };
    let error = line(&guest_saying(b"").await).await.clock(host).await.unwrap_err();
    assert!(matches!(error, EnvdError::Deadline { call: "POST /clock", .. }), "{error:?}");
    let limit = Duration::from_secs(2);
    let error = line(&guest_saying(b"").await).await.set_clock(host, SOON, limit).await.unwrap_err();
    assert!(matches!(error, EnvdError::Deadline { limit: told, .. } if told == limit), "{error:?}");
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"unix_ns\":";
    let error = line(&guest_saying(half).await).await.clock(host).await.unwrap_err();
    assert!(matches!(error, EnvdError::Deadline { .. }), "{error:?}");
    for (what, error) in [
        ("freeze", guest_saying(b"").await.freeze(host).await),
        ("thaw", guest_saying(b"").await.thaw(host).await),
        ("sync", guest_saying(b"").await.sync(host, limit).await),
        ("fs_freeze", guest_saying(b"").await.fs_freeze(host).await),
        ("fs_thaw", guest_saying(b"").await.fs_thaw(host).await),
        ("power_off", guest_saying(b"").await.power_off(host).await),
        ("come_back", come_back(&guest_saying(b"").await, &resumed()).await.map(drop)),
    ] {
        assert!(matches!(error, Err(EnvdError::Deadline { .. })), "{what}: {error:?}");
    }
}

fn resumed() -> Resumed {
    Resumed { entropy: [7; 64], identity: None }
}

async fn come_back(client: &EnvdClient, resumed: &Resumed) -> Result<CameBack, EnvdError> {
    let (key, id) = signer();
    line(client).await.come_back(HostKey { key: &key, id: &id }, resumed, CERTAINTY, LONG).await
}

#[tokio::test]
async fn what_is_no_answer_of_a_restored_guest_breaks_the_protocol() {
    for said in [
        &b"HTTP/1.1 204 No Content\r\n\r\n"[..],
        answer("200 OK", "{}"),
        answer("200 OK", r#"{"arrived_unix_ns":"1","answered_unix_ns":"1"}"#),
        answer("200 OK", r#"{"arrived_unix_ns":"1","hooks":[]}"#),
        answer("200 OK", r#"{"arrived_unix_ns":1,"answered_unix_ns":"1","hooks":[]}"#),
        answer("200 OK", r#"{"arrived_unix_ns":"-1","answered_unix_ns":"1","hooks":[]}"#),
        answer("200 OK", r#"{"arrived_unix_ns":"1","answered_unix_ns":"18446744073709551616","hooks":[]}"#),
        answer("200 OK", r#"{"arrived_unix_ns":"1","answered_unix_ns":"1","hooks":[5]}"#),
        ENDLESS_BODY,
    ] {
        let error = come_back(&guest_saying(said).await, &resumed()).await.unwrap_err();
        assert!(matches!(error, EnvdError::Protocol { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_hook_s_complaints_arrive() {
    let body = r#"{"code":500,"message":"the hook 10 exited with 3; its stderr: no such"}"#;
    let said = answer("500 Internal Server Error", body);
    let error = come_back(&guest_saying(said).await, &resumed()).await.unwrap_err();
    assert!(error.to_string().ends_with("the hook 10 exited with 3; its stderr: no such"), "{error}");
}

#[tokio::test]
async fn a_guest_that_cannot_be_reached_was_not_ready() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let Err(error) = client(free).reach(SOON).await else { panic!("nobody is there") };
    assert!(matches!(&error, EnvdError::NotReady { limit: SOON, last } if matches!(**last, EnvdError::Unreachable(_))));
}

/// A guest on one connection. It believes everything, and tells what it was asked for.
struct Guest {
    /// By how much its clock is ahead of ours.
    offset_ns: AtomicI64,
    /// How long it takes to arrive, and to answer.
    slow: Duration,
    /// How long its hooks take.
    hooks: Duration,
    /// Whether it sets its clock when it is told to.
    obeys: bool,
    asked: Mutex<Vec<Asked>>,
}

/// A call, as it arrived.
struct Asked {
    path: String,
    nonce: u64,
    signature: Signature,
    body: Bytes,
}

impl Asked {
    fn is_meant_for(&self, id: &SandboxId) -> bool {
        let message = host_call_message(id.as_str(), self.nonce, &self.path, &self.body);
        signer().0.verifying_key().verify_strict(&message, &self.signature).is_ok()
    }
}

impl Guest {
    fn behind(ms: i64) -> Self {
        let (slow, hooks) = (Duration::ZERO, Duration::ZERO);
        Self { offset_ns: AtomicI64::new(-ms * 1_000_000), slow, hooks, obeys: true, asked: Mutex::default() }
    }

    /// Serves the first connection until its client hangs up.
    async fn served(self) -> (Arc<Self>, EnvdClient) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let guest = Arc::new(self);
        let serving = Arc::clone(&guest);
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = move |request| {
                let guest = Arc::clone(&serving);
                async move { Ok::<_, Infallible>(guest.answer(request).await) }
            };
            let connection = hyper::server::conn::http1::Builder::new();
            drop(connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
        });
        (guest, client(address))
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        sleep(self.slow).await;
        let nonce = request.headers()[NONCE_HEADER].to_str().unwrap().parse().unwrap();
        let signature = BASE64.decode(&request.headers()[SIGNATURE_HEADER]).unwrap();
        let (signature, path) = (Signature::from_slice(&signature).unwrap(), request.uri().path().to_owned());
        let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
        self.asked.lock().unwrap().push(Asked { path: path.clone(), nonce, signature, body: body.clone() });
        let text = match path.as_str() {
            "/clock" => self.clock(serde_json::from_slice(&body).unwrap()),
            "/resumed" => self.resumed(serde_json::from_slice(&body).unwrap()).await,
            _ => String::new(),
        };
        sleep(self.slow).await;
        Response::new(Full::new(Bytes::from(text)))
    }

    fn now(&self) -> i64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as i64;
        now + self.offset_ns.load(Ordering::Relaxed)
    }

    fn step(&self, step_ns: i64) {
        self.offset_ns.fetch_add(if self.obeys { step_ns } else { 0 }, Ordering::Relaxed);
    }

    fn clock(&self, request: Clock) -> String {
        self.step(request.step_ns.unwrap_or_default());
        format!("{{\"unix_ns\":\"{}\"}}", self.now())
    }

    async fn resumed(&self, request: wire::Resumed) -> String {
        self.step(request.host_unix_ns.parse::<i64>().unwrap() - self.now());
        let arrived = self.now();
        sleep(self.hooks).await;
        let answered = self.now();
        format!(
            "{{\"arrived_unix_ns\":\"{arrived}\",\"answered_unix_ns\":\"{answered}\",\"hooks\":[\"10-a\",\"b\\u001b[2J\"]}}"
        )
    }

    fn paths(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.path.clone()).collect()
    }
}

const WITHIN: Duration = Duration::from_millis(50);
/// As close as a clock can be known to be also on a busy host.
const CERTAINTY: Duration = Duration::from_secs(1);
/// What a call may take to arrive, and its answer: too long to be certain of a clock that says when the call was sent, and
/// not of one that is right.
const LATE: Duration = Duration::from_millis(550);
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_clock_that_is_off_is_set() {
    let (key, id) = signer();
    let host = HostKey { key: &key, id: &id };
    for behind_ms in [0, 40, 3_600_000, -3_600_000, 1_000_000_000_000] {
        let (_guest, client) = Guest::behind(behind_ms).served().await;
        let reading = line(&client).await.set_clock(host, WITHIN, LONG).await.unwrap();
        assert!(reading.off_by_at_most() < WITHIN, "{behind_ms}: {reading:?}");
    }
}

#[tokio::test]
async fn a_clock_that_nobody_can_be_sure_of_is_an_error_with_the_best_reading() {
    let (key, id) = signer();
    let host = HostKey { key: &key, id: &id };
    let (_guest, client) = Guest { obeys: false, ..Guest::behind(5000) }.served().await;
    let error = line(&client).await.set_clock(host, WITHIN, LONG).await.unwrap_err();
    let EnvdError::ClockOff { within: WITHIN, best } = &error else { panic!("{error:?}") };
    assert!((-5_100_000_000..-4_900_000_000).contains(&best.offset_ns), "{best:?}");
    // Its answers are right, but how old they are nobody knows.
    let (_guest, client) = Guest { slow: Duration::from_millis(100), ..Guest::behind(0) }.served().await;
    let begun = Instant::now();
    let error = line(&client).await.set_clock(host, WITHIN, Duration::from_secs(1)).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let EnvdError::ClockOff { best, .. } = &error else { panic!("{error:?}") };
    assert!(best.round_trip >= Duration::from_millis(200), "{best:?}");
}

#[tokio::test]
async fn a_guest_comes_back_by_one_call_however_long_its_hooks_take() {
    for behind_ms in [0, 3_600_000, -3_600_000] {
        let (guest, client) = Guest { hooks: CERTAINTY, ..Guest::behind(behind_ms) }.served().await;
        let back = come_back(&client, &resumed()).await.unwrap();
        assert!(back.clock.off_by_at_most() < CERTAINTY, "{behind_ms}: {back:?}");
        assert_eq!(back.hooks, ["10-a", "b\u{fffd}[2J"], "in the guest's words");
        assert_eq!(guest.paths(), ["/resumed"]);
    }
}

#[tokio::test]
async fn where_one_call_leaves_the_clock_in_doubt_it_is_measured_again() {
    // It ignores what /resumed says of the time; nor does it obey afterwards.
    let (guest, client) = Guest { obeys: false, ..Guest::behind(5000) }.served().await;
    let error = come_back(&client, &resumed()).await.unwrap_err();
    assert!(matches!(error, EnvdError::ClockOff { within: CERTAINTY, .. }), "{error:?}");
    assert_eq!(guest.paths()[..3], ["/resumed", "/clock", "/clock"]);
    // It says when the call was sent, which was some time ago.
    let (guest, client) = Guest { slow: LATE, ..Guest::behind(5000) }.served().await;
    let back = come_back(&client, &resumed()).await.unwrap();
    assert!(back.clock.off_by_at_most() < CERTAINTY && guest.paths().len() > 1, "{back:?} {:?}", guest.paths());
}

#[tokio::test]
async fn a_fork_is_spoken_to_by_its_new_name_after_the_call_that_gives_it() {
    let (key, id) = signer();
    let other = SandboxId::from_random([2; 18]);
    let identity = Identity {
        id: other.clone(),
        access_token: "new".to_owned(),
        env_vars: BTreeMap::new(),
        hostname: "fork".to_owned(),
        machine_id: "0123456789abcdef".repeat(2),
        boot_id: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
    };
    let fork = Resumed { identity: Some(identity), ..resumed() };
    let (guest, client) = Guest { slow: LATE, ..Guest::behind(5000) }.served().await;
    let mut line = line(&client).await;
    line.come_back(HostKey { key: &key, id: &id }, &fork, CERTAINTY, LONG).await.unwrap();
    line.thaw(HostKey { key: &key, id: &other }).await.unwrap();
    let asked = guest.asked.lock().unwrap();
    let (first, later) = asked.split_first().unwrap();
    assert!(first.path == "/resumed" && first.is_meant_for(&id));
    assert!(later.len() > 1 && later.iter().all(|asked| asked.is_meant_for(&other)));
    assert!(asked.is_sorted_by(|one, next| one.nonce < next.nonce), "nobody would take them else");
}

#[tokio::test]
async fn an_attached_stream_is_as_little_trusted_as_a_started_one() {
    // Frames of one byte that is no message; empty ones; a stream that ends before the command does.
    for frame in [&[0, 0, 0, 0, 1, 0xff][..], &[0, 0, 0, 0, 0], &[0, 0xff, 0xff, 0xff, 0xff]] {
        let guest = guest_streaming(move || Endless(Bytes::from_static(frame))).await;
        let Err(error) = guest.attach(7, Some(0)).await else { panic!("it is attached") };
        assert!(matches!(error, EnvdError::Protocol { .. } | EnvdError::Refused { .. }), "{error:?}");
    }
    // `start` of process 8.
    const OTHER: &[u8] = &[0, 0, 0, 0, 6, 0x0a, 0x04, 0x0a, 0x02, 0x08, 0x08];
    let guest = guest_streaming(|| Endless(Bytes::from_static(OTHER))).await;
    let Err(error) = guest.attach(7, None).await else { panic!("it is attached") };
    assert!(error.to_string().contains("process 8, not 7"), "{error}");
    // The same again where output should be.
    let guest = guest_streaming(|| Endless(Bytes::from_static(OTHER))).await;
    let mut exec = guest.attach(8, None).await.unwrap();
    assert!(matches!(exec.next().await, Err(EnvdError::Protocol { call: "Process/Connect", .. })));
}

#[tokio::test]
async fn a_list_is_bounded() {
    let guest = guest_streaming(|| Endless(Bytes::from(vec![0; 65_536]))).await;
    let error = guest.list().await.unwrap_err();
    assert!(matches!(error, EnvdError::Protocol { .. } | EnvdError::Refused { .. }), "{error:?}");
}
