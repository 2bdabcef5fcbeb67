//! Clients that take their time: each is cut off at its limit. The clock is wound on, nothing is waited for.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use wrenn_agent::fake::Fake;
use wrenn_server::limits;

use crate::server::{Server, head, sandbox};

/// Sends the beginning of something, and nothing more; what is answered, and after how long.
async fn stall(server: &Server, beginning: &str) -> (String, Duration) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(beginning.as_bytes()).await.unwrap();
    // The server has read it when it answers somebody who came later; and it knows the key.
    assert_answers(server).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let answer = head(&mut stream).await;
    let took = began.elapsed();
    tokio::time::resume();
    (answer, took)
}

/// On a connection of its own: those that a client keeps end, too, when the clock is wound on.
async fn assert_answers(server: &Server) {
    let key = server.api.key.as_deref().unwrap();
    let request = format!("GET /v1/whoami HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nConnection: close\r\n\r\n");
    let answer = server.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_its_connection() {
    let server = Server::start().await.ready().await;
    for beginning in ["GET /v1/host HTTP/1.1\r\nHost: x\r\nX-Slow: ", "GET", "P", "PRI * HTTP/2.0\r\n", ""] {
        let (answer, took) = stall(&server, beginning).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{beginning}: {answer}");
        assert!(took <= limits::REQUEST_HEAD_TIME_MAX * 2 + Duration::from_secs(1), "{beginning:?}: {took:?}");
    }
    assert_answers(&server).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused() {
    let server = Server::start().await.ready().await;
    let key = server.api.key.clone().unwrap();
    let beginning = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    );
    let (answer, took) = stall(&server, &beginning).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(took <= limits::JSON_TIME_MAX * 2, "{took:?}");
    assert_eq!(server.agent.count(), 0);
}

#[tokio::test]
async fn a_file_that_does_not_come_is_given_up() {
    let (guests, _come) = mpsc::unbounded_channel();
    let server = Server::with(Fake::with_guests(guests)).await.ready().await;
    let (id, key) = (sandbox(&server.api).await, server.api.key.clone().unwrap());
    let beginning = format!(
        "PUT /v1/sandboxes/{id}/files?path=/a HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nContent-Length: 100\r\n\r\nhalf"
    );
    let (answer, took) = stall(&server, &beginning).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(took <= limits::STALL_MAX * 2 + limits::FILE_CALL_LIMIT, "{took:?}");
}

#[tokio::test]
async fn a_connection_on_which_nothing_more_is_asked_for_ends() {
    let server = Server::start().await.ready().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /nonsense HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 404 "));
    tokio::time::pause();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    tokio::time::resume();
    assert!(String::from_utf8_lossy(&rest).contains("not_found"));
}

#[tokio::test]
async fn slow_clients_are_in_nobodys_way() {
    let server = Server::start().await.ready().await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /v1/host HTTP/1.1\r\nX: ").await.unwrap();
        slow.push(stream);
    }
    server.api.post("/v1/sandboxes", json!({})).await.ok();
}
