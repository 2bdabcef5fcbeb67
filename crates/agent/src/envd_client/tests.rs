//! The client against guests that are late, silent, lying or hostile. What a good guest does is tested with the real one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const SOON: Duration = Duration::from_millis(300);

#[derive(Debug)]
struct Loopback(SocketAddr);

#[async_trait]
impl Dial for Loopback {
    async fn dial(&self, _port: u16, limit: Duration) -> io::Result<TcpStream> {
        let connect = TcpStream::connect(self.0);
        tokio::time::timeout(limit, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

fn client(address: SocketAddr) -> EnvdClient {
    EnvdClient::new(Arc::new(Loopback(address)), "token".to_owned())
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
