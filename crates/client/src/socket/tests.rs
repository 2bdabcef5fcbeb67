use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, RawQuery};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::*;
use crate::Client;
use crate::client::TerminalRequest;
use crate::testing::{KEY, serve};
use crate::types::{Code, Exit, ServerMessage, StreamKind, StreamRequest, TerminalSize};

const SOON: Duration = Duration::from_secs(10);

/// A server whose WebSockets at `route` are in the hands of `hold`.
async fn server<F>(route: &str, hold: fn(WebSocket, String) -> F) -> Client
where
    F: Future<Output = ()> + Send + 'static,
{
    let take = move |headers: HeaderMap, RawQuery(query): RawQuery, upgrade: WebSocketUpgrade| async move {
        assert_eq!(headers["x-api-key"], KEY);
        let mut answer = upgrade.on_upgrade(move |socket| hold(socket, query.unwrap_or_default()));
        answer.headers_mut().insert("x-request-id", "req5".parse().unwrap());
        answer
    };
    serve(Router::new().route(route, any(take))).await
}

fn say(message: &ServerMessage) -> Message {
    Message::text(serde_json::to_string(message).unwrap())
}

fn output(kind: StreamKind, offset: u64, bytes: &[u8]) -> Message {
    Message::binary(kind.frame(offset, bytes))
}

/// Says back what it is told, until its input is closed.
async fn echo(mut socket: WebSocket, query: String) {
    let mut offset = 0;
    let mut write = async |socket: &mut WebSocket, kind, bytes: &[u8]| {
        socket.send(output(kind, offset, bytes)).await.unwrap();
        offset += bytes.len() as u64;
    };
    socket.send(say(&ServerMessage::Started { pid: 77 })).await.unwrap();
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    write(&mut socket, StreamKind::Stderr, query.as_bytes()).await;
    while let Some(message) = socket.recv().await {
        match message.unwrap() {
            Message::Binary(bytes) => write(&mut socket, StreamKind::Stdout, &bytes).await,
            Message::Text(text) if text.contains("close_stdin") => break,
            Message::Text(text) => write(&mut socket, StreamKind::Terminal, text.as_bytes()).await,
            Message::Pong(bytes) => write(&mut socket, StreamKind::Stderr, &bytes).await,
            Message::Ping(_) | Message::Close(_) => panic!("unexpected"),
        }
    }
    socket.send(say(&ServerMessage::Gap { bytes: 5 })).await.unwrap();
    socket.send(say(&ServerMessage::Exit { exit: Exit::Exited { code: 3 } })).await.unwrap();
    socket.send(Message::Close(None)).await.unwrap();
}

async fn next(output: &mut CommandOutput) -> CommandEvent {
    timeout(SOON, output.next()).await.unwrap().unwrap().unwrap()
}

fn written(stream: StreamKind, offset: u64, bytes: &[u8]) -> CommandEvent {
    CommandEvent::Output { stream, offset, bytes: Bytes::copy_from_slice(bytes) }
}

#[tokio::test]
async fn a_command_is_fed_and_followed() {
    let client = server("/v1/sandboxes/sb1/exec/stream", echo).await;
    let request = StreamRequest { command: vec!["cat".to_owned()], stdin: true, ..StreamRequest::default() };
    let CommandStream { mut input, mut output } = client.exec_stream("sb1", &request).await.unwrap();
    assert_eq!(next(&mut output).await, CommandEvent::Started { pid: 77 });
    assert_eq!(next(&mut output).await, written(StreamKind::Stderr, 0, b""));
    let asked = serde_json::to_string(&request).unwrap();
    assert_eq!(
        next(&mut output).await,
        written(StreamKind::Terminal, 0, asked.as_bytes()),
        "what is to run is said first"
    );
    let place = asked.len() as u64;
    assert_eq!(next(&mut output).await, written(StreamKind::Stderr, place, b"there?"), "a ping is answered");
    input.write(Bytes::from_static(b"\xff\0")).await.unwrap();
    assert_eq!(next(&mut output).await, written(StreamKind::Stdout, place + 6, b"\xff\0"));
    input.signal(15).await.unwrap();
    input.resize(TerminalSize { cols: 100, rows: 30 }).await.unwrap();
    assert_eq!(next(&mut output).await, written(StreamKind::Terminal, place + 8, br#"{"type":"signal","signal":15}"#));
    let CommandEvent::Output { bytes, .. } = next(&mut output).await else { panic!("no output") };
    assert_eq!(bytes, r#"{"type":"resize","cols":100,"rows":30}"#);
    input.close().await.unwrap();
    assert_eq!(next(&mut output).await, CommandEvent::Gap { bytes: 5 });
    assert_eq!(next(&mut output).await, CommandEvent::Exit(Exit::Exited { code: 3 }));
    assert_eq!(output.next().await.unwrap(), None);
}

#[tokio::test]
async fn much_goes_both_ways_at_once() {
    const TOTAL: usize = 4 << 20;
    let client = server("/v1/sandboxes/sb1/exec/77/stream", echo).await;
    let CommandStream { mut input, mut output } = client.attach("sb1", 77, Some(9)).await.unwrap();
    assert_eq!(next(&mut output).await, CommandEvent::Started { pid: 77 });
    assert_eq!(next(&mut output).await, written(StreamKind::Stderr, 0, b"offset=9"));
    let feeding = tokio::spawn(async move {
        input.write(vec![7; TOTAL].into()).await.unwrap();
        input.close().await.unwrap();
    });
    let mut read = 0;
    loop {
        match next(&mut output).await {
            CommandEvent::Output { stream: StreamKind::Stdout, bytes, .. } => read += bytes.len(),
            CommandEvent::Exit(_) => break,
            CommandEvent::Output { .. } | CommandEvent::Gap { .. } | CommandEvent::Started { .. } => {}
        }
    }
    assert_eq!(read, TOTAL);
    feeding.await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_a_size() {
    let client = server("/v1/sandboxes/sb1/pty", echo).await;
    let size = TerminalSize { cols: 80, rows: 24 };
    let request = TerminalRequest { size, user: Some("root".to_owned()), workdir: None };
    let CommandStream { mut output, .. } = client.pty("sb1", &request).await.unwrap();
    assert_eq!(next(&mut output).await, CommandEvent::Started { pid: 77 });
    assert_eq!(next(&mut output).await, written(StreamKind::Stderr, 0, b"cols=80&rows=24&user=root"));
}

async fn end_badly(mut socket: WebSocket, query: String) {
    let error = crate::types::ErrorBody { code: Code::Destroyed, message: "gone".to_owned(), remedy: None };
    match query.as_str() {
        "offset=1" => socket.send(say(&ServerMessage::Error { error })).await.unwrap(),
        "offset=2" => socket.send(Message::Close(Some(CloseFrame { code: 1011, reason: "why".into() }))).await.unwrap(),
        "offset=3" => socket.send(Message::text("hm")).await.unwrap(),
        "offset=4" => socket.send(Message::binary(b"\x09".to_vec())).await.unwrap(),
        _cut => {}
    }
}

#[tokio::test]
async fn an_end_is_never_invented() {
    let client = server("/v1/sandboxes/sb1/exec/7/stream", end_badly).await;
    let fail = async |offset| {
        let mut command = client.attach("sb1", 7, Some(offset)).await.unwrap();
        let error = timeout(SOON, command.output.next()).await.unwrap().unwrap_err();
        assert!(matches!(command.output.next().await, Ok(None) | Err(_)));
        error
    };
    let refused = fail(1).await;
    assert_eq!((refused.code(), refused.request_id()), (Some(Code::Destroyed), Some("req5")));
    assert!(matches!(fail(2).await, ClientError::Broke { source, .. } if source.to_string() == "why"));
    assert!(matches!(fail(3).await, ClientError::Protocol { .. }));
    assert!(matches!(fail(4).await, ClientError::Protocol { .. }));
    assert!(matches!(fail(5).await, ClientError::Broke { .. }), "cut off");
}

#[tokio::test]
async fn a_handshake_that_is_refused_says_why() {
    let refuse = |Path(port): Path<String>| async move {
        match port.as_str() {
            "1" => {
                let error = json!({ "code": "conflict", "message": "it is paused", "remedy": "resume it" });
                (StatusCode::CONFLICT, Json(json!({ "error": error }))).into_response()
            }
            _other => Response::new("hello".into()),
        }
    };
    let client = serve(Router::new().route("/v1/sandboxes/sb1/tunnel/{port}", any(refuse))).await;
    let refused = client.tunnel("sb1", 1).await.unwrap_err();
    assert_eq!((refused.code(), refused.to_string().as_str()), (Some(Code::Conflict), "it is paused; resume it"));
    assert!(matches!(client.tunnel("sb1", 2).await, Err(ClientError::Protocol { .. })));
}

/// Gives back what comes; says that it ends when the other side does, then says one word more in vain.
async fn reflect(mut socket: WebSocket, _query: String) {
    while let Some(Ok(message)) = socket.recv().await {
        match message {
            Message::Text(text) => {
                assert_eq!(text.as_str(), r#"{"type":"close_write"}"#);
                socket.send(Message::Ping(Bytes::new())).await.unwrap();
                socket.send(Message::binary(b" the end".to_vec())).await.unwrap();
                socket.send(Message::text(r#"{"type":"close_write"}"#)).await.unwrap();
                socket.send(Message::Close(None)).await.unwrap();
            }
            bytes @ Message::Binary(_) => socket.send(bytes).await.unwrap(),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => {}
        }
    }
}

#[tokio::test]
async fn one_direction_of_a_tunnel_ends_without_the_other() {
    let client = server("/v1/sandboxes/sb1/tunnel/80", reflect).await;
    let tunnel = client.tunnel("sb1", 80).await.unwrap();
    let (mut from, mut to) = tokio::io::split(tunnel);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let expected = [&sent[..], b" the end"].concat();
    let writing = tokio::spawn(async move {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
        to.shutdown().await.unwrap();
        assert_eq!(to.write(b"more").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    });
    let mut read = Vec::new();
    timeout(SOON, from.read_to_end(&mut read)).await.unwrap().unwrap();
    assert!(read == expected, "{} of {} bytes", read.len(), expected.len());
    writing.await.unwrap();
}

async fn hang_up(mut socket: WebSocket, _query: String) {
    let first = socket.recv().await.unwrap().unwrap();
    socket.send(Message::binary(b"part".to_vec())).await.unwrap();
    match first.into_text().unwrap().as_str() {
        "normal" => socket.send(Message::Close(Some(CloseFrame { code: 1000, reason: "".into() }))).await.unwrap(),
        "error" => socket.send(Message::Close(Some(CloseFrame { code: 1011, reason: "reset".into() }))).await.unwrap(),
        "nonsense" => socket.send(Message::text("what?")).await.unwrap(),
        _cut => {}
    }
}

#[tokio::test]
async fn a_tunnel_that_is_cut_is_no_end() {
    let client = server("/v1/sandboxes/sb1/tunnel/80", hang_up).await;
    let read = async |how: &'static str| {
        let mut tunnel = client.tunnel("sb1", 80).await.unwrap();
        tunnel.write_all(how.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        let end = timeout(SOON, tunnel.read_to_end(&mut read)).await.unwrap();
        assert_eq!(read, b"part", "{how}");
        end
    };
    assert_eq!(read("normal").await.unwrap(), 4);
    assert_eq!(read("error").await.unwrap_err().to_string(), "reset");
    assert!(read("nonsense").await.is_err());
    assert!(read("cut").await.is_err());
}
