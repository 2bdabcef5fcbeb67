//! Requests and answers, and the connections that they share.

use super::*;

/// Says what it was asked, and with how much of a body.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut response = ok(format!("{} {} {}", head.method, head.uri, String::from_utf8_lossy(&body)));
    response.headers_mut().insert("x-guest", "yes".parse().unwrap());
    response
}

#[tokio::test]
async fn requests_pass_and_answers_come_back() {
    let world = World::http1(echo);
    let mut client = world.client().await;
    let answer = Answer::of(client.send_request(get("/a/%2F?b=c%20d")).await.unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "GET /a/%2F?b=c%20d "));
    assert_eq!(answer.headers["x-guest"], "yes");
    let answer = Answer::of(client.send_request(post("/", "a body")).await.unwrap()).await;
    assert_eq!(answer.text(), "POST / a body");
    assert_eq!(world.dialled(), 1, "the second request goes over the first one's connection");
}

#[tokio::test]
async fn a_connection_that_the_guest_closes_is_not_used_again() {
    for words in [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.0 200 OK\r\n\r\nhi",
    ] {
        let world = World::saying(words, true);
        for count in 1..=3 {
            let answer = world.forward(get("/")).await;
            assert_eq!((answer.text(), world.dialled()), ("hi", count), "{words}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_does_not_wait_for_ever() {
    let world = World::http1(echo);
    world.forward(get("/")).await;
    settle().await;
    assert_eq!(world.proxy.pool.count(), 1);
    tokio::time::sleep(crate::proxy::limits::IDLE_TIME_MAX + Duration::from_millis(10)).await;
    assert_eq!(world.proxy.pool.count(), 0);
    world.forward(get("/")).await;
    assert_eq!(world.dialled(), 2);
}

#[tokio::test]
async fn another_life_has_other_connections() {
    let world = World::http1(echo);
    world.forward(get("/")).await;
    world.forward(get("/")).await;
    assert_eq!(world.dialled(), 1);
    world.house.life.store(2, Ordering::SeqCst);
    world.forward(get("/")).await;
    assert_eq!(world.dialled(), 2);
    settle().await;
    assert_eq!(world.proxy.pool.count(), 1);
}

#[tokio::test]
async fn only_so_many_connections_wait() {
    let world = World::http1(echo);
    let at_once = crate::proxy::limits::IDLE_PER_TARGET_MAX + 3;
    let answers = futures::future::join_all((0..at_once).map(|_| world.forward(get("/")))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    settle().await;
    assert_eq!(world.dialled(), at_once);
    assert_eq!(world.proxy.pool.count(), crate::proxy::limits::IDLE_PER_TARGET_MAX);
}

/// A guest that answers once on each connection, and takes the next request's head without a word: `dies` says on which
/// connections.
fn dying(dies: impl Fn(usize) -> bool + Send + Sync + 'static) -> World {
    let count = Arc::new(AtomicUsize::new(0));
    let dies = Arc::new(dies);
    World::raw(move |mut stream| {
        let (number, dies) = (count.fetch_add(1, Ordering::SeqCst), Arc::clone(&dies));
        async move {
            let mut answered = false;
            while read_head(&mut stream).await.is_some() {
                if answered && dies(number) {
                    return;
                }
                answered = true;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
            }
        }
    })
}

#[tokio::test]
async fn what_is_safe_is_asked_again_over_a_new_connection() {
    let world = dying(|number| number == 0);
    assert_eq!(world.forward(get("/")).await.text(), "hi");
    assert_eq!(world.forward(get("/")).await.text(), "hi", "the guest hung up on it, and it is asked again");
    assert_eq!(world.dialled(), 2);
}

#[tokio::test]
async fn what_may_have_been_done_is_not_asked_again() {
    let world = dying(|_| true);
    assert_eq!(world.forward(get("/")).await.text(), "hi");
    let answer = world.forward(post("/", Body::empty())).await;
    assert!(answer.is_refusal(502), "{answer:?}");
    assert_eq!(world.dialled(), 1);
    assert_eq!(world.forward(get("/")).await.text(), "hi");
    let answer = world.forward(post("/", "taken")).await;
    assert!(answer.is_refusal(502), "{answer:?}");
    assert_eq!(world.dialled(), 2);
}

#[tokio::test]
async fn a_connection_that_died_while_it_waited_is_not_noticed_by_anybody() {
    // Answers once, says that the connection stays, and hangs up.
    let world = World::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", true);
    for _ in 0..3 {
        assert_eq!(world.forward(post("/", "a body")).await.text(), "hi");
        settle().await;
    }
    assert_eq!(world.dialled(), 3);
}

#[tokio::test]
async fn answers_without_bodies_have_none() {
    for (method, words, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", Some("12345")),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n", None),
    ] {
        let world = World::saying(words, false);
        let mut client = world.client().await;
        for _ in 0..2 {
            let mut request = get("/");
            *request.method_mut() = method.parse().unwrap();
            let answer = Answer::of(client.send_request(request).await.unwrap()).await;
            assert!(answer.body.is_empty());
            assert_eq!(answer.headers.get("content-length").map(|it| it.to_str().unwrap()), length, "{words}");
        }
        assert_eq!(world.dialled(), 1, "{words}");
    }
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let world = World::http1(|request| async {
        let answer = Answer::of(Response::new(request.into_body())).await;
        let sum = answer.trailers.as_ref().map(|trailers| trailers["x-sum"].clone());
        let mut trailers = HeaderMap::new();
        trailers.insert("x-seen", sum.unwrap_or("none".parse().unwrap()));
        // Of a length that is not known, or there would be no room for trailers.
        let body = Body::from_stream(futures::stream::iter([Ok::<_, Infallible>(answer.body)]));
        let mut response = Response::new(Body::new(body.with_trailers(async { Some(Ok(trailers)) })));
        response.headers_mut().insert("trailer", "x-seen".parse().unwrap());
        response
    });
    let said = world
        .say(
            b"POST / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
              3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n",
        )
        .await;
    assert!(said.contains("\r\n5\r\nabcde\r\n0\r\nx-seen: 5\r\n\r\n"), "{said}");
}

#[tokio::test]
async fn a_client_that_waits_with_its_body_is_told_by_the_guest() {
    let world = World::raw(|mut stream| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.contains("expect: 100-continue"), "{head}");
        if head.starts_with("PUT /refused") {
            stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            assert!(read_head(&mut stream).await.is_none(), "the body does not come");
            return;
        }
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await.unwrap();
        stream.write_all(&body).await.unwrap();
    });
    let mut client = world.connect();
    client.write_all(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 100"));
    client.write_all(b"body").await.unwrap();
    assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 200"));

    let mut client = world.connect();
    let head = b"PUT /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    client.write_all(head).await.unwrap();
    assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 413"));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_says_continue_gets_the_body_all_the_same() {
    let world = World::raw(|mut stream| async move {
        read_head(&mut stream).await.unwrap();
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    });
    let mut client = world.client().await;
    let mut request = post("/", "body");
    request.headers_mut().insert("expect", "100-continue".parse().unwrap());
    assert_eq!(client.send_request(request).await.unwrap().status(), 200);
}
