//! The client against guests that are late, silent, lying or hostile. What a good guest does is tested with the real one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wrenn_engine::names::SandboxId;
use wrenn_proto::envd::host_calls::Clock;

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
    guest_saying(answer).await.clock(HostKey { key: &key, id: &id }).await.unwrap_err()
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
    let error = guest_saying(b"").await.clock(host).await.unwrap_err();
    assert!(matches!(error, EnvdError::Deadline { call: "POST /clock", .. }), "{error:?}");
    let limit = Duration::from_secs(2);
    let error = guest_saying(b"").await.set_clock(host, SOON, limit).await.unwrap_err();
    assert!(matches!(error, EnvdError::Deadline { limit: told, .. } if told == limit), "{error:?}");
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"unix_ns\":";
    let error = guest_saying(half).await.clock(host).await.unwrap_err();
    assert!(matches!(error, EnvdError::Deadline { .. }), "{error:?}");
    for (what, error) in [
        ("freeze", guest_saying(b"").await.freeze(host).await),
        ("thaw", guest_saying(b"").await.thaw(host).await),
        ("sync", guest_saying(b"").await.sync(host, limit).await),
        ("fs_freeze", guest_saying(b"").await.fs_freeze(host).await),
        ("fs_thaw", guest_saying(b"").await.fs_thaw(host).await),
        ("power_off", guest_saying(b"").await.power_off(host).await),
        ("resumed", guest_saying(b"").await.resumed(host, &resumed()).await.map(drop)),
    ] {
        assert!(matches!(error, Err(EnvdError::Deadline { .. })), "{what}: {error:?}");
    }
}

fn resumed() -> Resumed {
    Resumed { entropy: [7; 64], hostname: None, machine_id: None }
}

#[tokio::test]
async fn hooks_are_the_guests_words_and_their_complaints_arrive() {
    let (key, id) = signer();
    let host = HostKey { key: &key, id: &id };
    let said = answer("200 OK", "{\"hooks\":[\"10-a\",\"b\\u001b[2J\"]}");
    let hooks = guest_saying(said).await.resumed(host, &resumed()).await;
    assert_eq!(hooks.unwrap(), ["10-a", "b\u{fffd}[2J"]);
    for said in [
        &b"HTTP/1.1 204 No Content\r\n\r\n"[..],
        answer("200 OK", "{\"hooks\":5}"),
        answer("200 OK", "{\"hooks\":[5]}"),
        ENDLESS_BODY,
    ] {
        let error = guest_saying(said).await.resumed(host, &resumed()).await.unwrap_err();
        assert!(matches!(error, EnvdError::Protocol { .. }), "{error:?}");
    }
    let body = r#"{"code":500,"message":"the hook 10 exited with 3; its stderr: no such"}"#;
    let said = answer("500 Internal Server Error", body);
    let error = guest_saying(said).await.resumed(host, &resumed()).await.unwrap_err();
    assert!(error.to_string().ends_with("the hook 10 exited with 3; its stderr: no such"), "{error}");
}

/// A guest whose clock is `behind` ours in milliseconds, which takes `slow` to answer, and does as it is told or not.
async fn guest_with_clock(behind_ms: i64, slow: Duration, obeys: bool) -> EnvdClient {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let offset_ns = Arc::new(AtomicI64::new(-behind_ms * 1_000_000));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = move |request: Request<Incoming>| {
            let offset_ns = Arc::clone(&offset_ns);
            async move {
                let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                let step: Clock = serde_json::from_slice(&body).unwrap();
                let step = step.step_ns.filter(|_| obeys).unwrap_or_default();
                let offset = offset_ns.fetch_add(step, Ordering::Relaxed) + step;
                sleep(slow).await;
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as i64;
                let text = format!("{{\"unix_ns\":\"{}\"}}", now + offset);
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            }
        };
        // It ends when the client hangs up.
        drop(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await,
        );
    });
    client(address)
}

const WITHIN: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_clock_that_is_off_is_set() {
    let (key, id) = signer();
    let host = HostKey { key: &key, id: &id };
    for behind_ms in [0, 40, 3_600_000, -3_600_000, 1_000_000_000_000] {
        let guest = guest_with_clock(behind_ms, Duration::ZERO, true).await;
        let reading = guest.set_clock(host, WITHIN, LONG).await.unwrap();
        assert!(reading.off_by_at_most() < WITHIN, "{behind_ms}: {reading:?}");
    }
}

#[tokio::test]
async fn a_clock_that_nobody_can_be_sure_of_is_an_error_with_the_best_reading() {
    let (key, id) = signer();
    let host = HostKey { key: &key, id: &id };
    let disobedient = guest_with_clock(5000, Duration::ZERO, false).await;
    let error = disobedient.set_clock(host, WITHIN, LONG).await.unwrap_err();
    let EnvdError::ClockOff { within: WITHIN, best } = &error else { panic!("{error:?}") };
    assert!((-5_100_000_000..-4_900_000_000).contains(&best.offset_ns), "{best:?}");
    // Its answers are right, but how old they are nobody knows.
    let slow = guest_with_clock(0, Duration::from_millis(200), true).await;
    let begun = Instant::now();
    let error = slow.set_clock(host, WITHIN, Duration::from_secs(1)).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let EnvdError::ClockOff { best, .. } = &error else { panic!("{error:?}") };
    assert!(best.round_trip >= Duration::from_millis(200), "{best:?}");
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
