//! Bodies that are large, slow, or given up half-way.

use futures::StreamExt as _;

use super::*;

const PIECE: Bytes = Bytes::from_static(&[7; 64 * 1024]);
/// In pieces: 64 MiB.
const PIECES: usize = 1024;
/// What may be under way between two ends of which one stands still, in bytes: two streams in memory, a few buffers.
const UNDER_WAY_MAX: usize = 2 * 1024 * 1024;

/// A body that counts what was taken of it.
fn counted(taken: &Arc<AtomicUsize>) -> Body {
    let taken = Arc::clone(taken);
    let pieces = futures::stream::iter(0..PIECES).map(move |_| {
        taken.fetch_add(PIECE.len(), Ordering::SeqCst);
        Ok::<_, Infallible>(PIECE)
    });
    Body::from_stream(pieces)
}

#[tokio::test]
async fn a_large_body_waits_for_its_reader_both_ways() {
    let sent = Arc::new(AtomicUsize::new(0));
    let guest_sent = Arc::clone(&sent);
    let world = World::http1(move |request| {
        let sent = Arc::clone(&guest_sent);
        async move {
            let mut read = 0;
            let mut body = request.into_body();
            // Long enough for whatever is not held back to come.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let before = sent.swap(0, Ordering::SeqCst);
            assert!(before < UNDER_WAY_MAX, "{before} bytes were taken of a body that nobody reads");
            while let Some(frame) = body.frame().await {
                read += frame.unwrap().into_data().unwrap().len();
            }
            assert_eq!(read, PIECES * PIECE.len());
            sent.store(0, Ordering::SeqCst);
            Response::new(counted(&sent))
        }
    });
    let mut client = world.client().await;
    let response = client.send_request(post("/", counted(&sent))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let taken = sent.load(Ordering::SeqCst);
    assert!(taken < UNDER_WAY_MAX, "{taken} bytes were taken of an answer that nobody reads");
    let mut body = response.into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(read, PIECES * PIECE.len());
}

#[tokio::test]
async fn each_event_comes_when_it_is_said() {
    let (say, said) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let said = Arc::new(std::sync::Mutex::new(Some(said)));
    let world = World::http1(move |_request| {
        let said = said.lock().unwrap().take().unwrap();
        let events =
            futures::stream::unfold(said, |mut said| async { Some((Ok::<_, Infallible>(said.recv().await?), said)) });
        async {
            Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(events)).unwrap()
        }
    });
    let mut client = world.client().await;
    let mut body = client.send_request(get("/events")).await.unwrap().into_body();
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        say.send(event).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
    }
    drop(say);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_client_that_hangs_up_is_missed_by_the_guest() {
    let (gone, mut went) = tokio::sync::mpsc::unbounded_channel();
    let world = World::raw(move |mut stream| {
        let gone = gone.clone();
        async move {
            let head = read_head(&mut stream).await.unwrap();
            if head.starts_with("GET /begun") {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await.unwrap();
            }
            assert!(read_head(&mut stream).await.is_none());
            gone.send(()).unwrap();
        }
    });
    for path in ["/waits", "/begun"] {
        let mut client = world.connect();
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        if path == "/begun" {
            read_head(&mut client).await.unwrap();
        }
        settle().await;
        drop(client);
        tokio::time::timeout(Duration::from_secs(5), went.recv()).await.expect(path).unwrap();
        settle().await;
        assert_eq!(world.proxy.places.taken(), 0);
        assert_eq!(world.proxy.pool.count(), 0);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_whole() {
    for words in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n",
    ] {
        let world = World::saying(words, true);
        let mut client = world.client().await;
        let response = client.send_request(get("/")).await.unwrap();
        assert!(response.into_body().collect().await.is_err(), "{words}");
    }
}

#[tokio::test]
async fn an_answer_before_the_whole_body_came_is_an_answer() {
    for then in ["Connection: close\r\n", ""] {
        let world = World::raw(move |mut stream| async move {
            read_head(&mut stream).await.unwrap();
            let words = format!("HTTP/1.1 413 Too Large\r\n{then}Content-Length: 2\r\n\r\nno");
            stream.write_all(words.as_bytes()).await.unwrap();
        });
        for _ in 0..20 {
            let sent = Arc::new(AtomicUsize::new(0));
            let answer = world.forward(post("/", counted(&sent))).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (413, "no"));
        }
    }
}
