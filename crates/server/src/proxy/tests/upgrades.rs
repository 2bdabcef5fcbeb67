//! Connections that become others.

use super::*;
use crate::proxy::limits;

const ASKED: &[u8] = b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A guest that agrees, and goes on as `then` says.
fn agreeing<F: Future<Output = ()> + Send + 'static>(
    then: impl Fn(DuplexStream) -> F + Clone + Send + Sync + 'static,
) -> World {
    World::raw(move |mut stream| {
        let then = then.clone();
        async move {
            let head = read_head(&mut stream).await.unwrap();
            for line in ["connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13"] {
                assert!(head.contains(line), "{line} in {head}");
            }
            stream.write_all(SWITCHED).await.unwrap();
            then(stream).await;
        }
    })
}

async fn upgraded(world: &World) -> DuplexStream {
    let mut client = world.connect();
    client.write_all(ASKED).await.unwrap();
    let head = read_head(&mut client).await.unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="] {
        assert!(head.contains(line), "{line} in {head}");
    }
    client
}

async fn echo(mut stream: DuplexStream) {
    let mut piece = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        stream.write_all(&piece[..count]).await.unwrap();
    }
    stream.write_all(b"bye").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bytes_go_both_ways_and_ends_are_passed_on() {
    let world = agreeing(echo);
    let mut client = upgraded(&world).await;
    for words in [&b"hello"[..], b"again"] {
        client.write_all(words).await.unwrap();
        let mut back = [0; 5];
        client.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, words);
        // Nothing happens for a day.
        tokio::time::sleep(Duration::from_secs(24 * 60 * 60)).await;
    }
    client.shutdown().await.unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye", "a client that sends no more still hears what the guest has to say");
    settle().await;
    assert_eq!(world.proxy.places.taken(), 0);
}

#[tokio::test]
async fn either_side_may_go() {
    let world = agreeing(|stream| async move { drop(stream) });
    let mut client = upgraded(&world).await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    drop(client);
    let (gone, mut went) = tokio::sync::mpsc::unbounded_channel();
    let world = agreeing(move |mut stream| {
        let gone = gone.clone();
        async move {
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            gone.send(()).unwrap();
        }
    });
    drop(upgraded(&world).await);
    went.recv().await.unwrap();
    for _ in 0..20 {
        settle().await;
    }
    assert_eq!(world.proxy.places.taken(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_sends_no_more_and_hears_nothing_is_gone() {
    let world = agreeing(|mut stream| async move {
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        // The proxy gives up on both; until then this end is open.
        let before = tokio::time::Instant::now();
        while stream.write_all(b"").await.is_ok() && before.elapsed() < 2 * limits::HALF_CLOSED_IDLE_MAX {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    });
    let mut client = upgraded(&world).await;
    client.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    settle().await;
    assert_eq!(world.proxy.places.taken(), 0);
}

#[tokio::test]
async fn what_came_right_behind_the_heads_is_not_lost() {
    let world = agreeing(|mut stream| async move {
        stream.write_all(b"first").await.unwrap();
        echo(stream).await;
    });
    let mut client = world.connect();
    client.write_all(&[ASKED, b"early"].concat()).await.unwrap();
    read_head(&mut client).await.unwrap();
    let mut both = [0; 10];
    client.read_exact(&mut both).await.unwrap();
    assert_eq!(&both, b"firstearly");
}

#[tokio::test]
async fn a_guest_may_decline() {
    let world = World::saying("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno", false);
    for _ in 0..2 {
        let said = world.say(ASKED).await;
        assert!(said.starts_with("HTTP/1.1 426") && said.ends_with("\r\n\r\nno"), "{said}");
    }
    assert_eq!(world.dialled(), 1);
    assert_eq!(world.proxy.places.taken(), 0);
}

#[tokio::test]
async fn a_websocket_stays_one() {
    use futures::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};
    let world = World::raw(|stream| async move {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let (mut socket, _) =
        tokio_tungstenite::client_async("ws://8080-x.example.org/chat", world.connect()).await.unwrap();
    for message in [Message::text("hello"), Message::binary(vec![7; 100_000])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    let frame = CloseFrame { code: 1000.into(), reason: "done".into() };
    socket.close(Some(frame.clone())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Close(Some(frame)));
    assert!(socket.next().await.is_none());
}
