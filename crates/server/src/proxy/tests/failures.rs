//! Guests that do not answer as they should, and limits.

use wrenn_agent::host_agent::{AgentError, Code};

use super::*;
use crate::proxy::limits;

/// Ways to a port of this host on which nothing listens.
struct Nowhere;

#[async_trait]
impl Ways for Nowhere {
    async fn admit(&self, _target: &Target, _headers: &HeaderMap) -> Result<Admitted, Refused> {
        Ok(Admitted { life: 1 })
    }

    async fn dial(&self, target: &Target, _limit: Duration) -> Result<Tunnel, Refused> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = tokio::net::TcpStream::connect(address).await.unwrap_err();
        Err(Refused::dial(target, &AgentError::of(Code::Failed, &error)))
    }
}

#[tokio::test]
async fn a_port_on_which_nothing_listens_is_told_of() {
    let world = World::saying("", true);
    let proxy = Proxy::new(Arc::new(Nowhere));
    let answer = Answer::of(proxy.forward(world.target.clone(), get("/")).await).await;
    assert!(answer.is_refusal(502), "{answer:?}");
    assert_eq!(answer.headers[super::super::PROXY_ERROR_HEADER], "unavailable");
    let refusal: wrenn_client::types::Refusal = serde_json::from_slice(&answer.body).unwrap();
    assert!(refusal.error.message.starts_with("nothing answers on port 8080 of sandbox sb0123456789abcdefgh: "));
    assert!(refusal.error.message.contains("refused"), "{}", refusal.error.message);
    assert!(refusal.error.remedy.unwrap().contains("listens on port 8080"));
}

#[tokio::test]
async fn a_guest_that_answers_nonsense_is_a_bad_gateway() {
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 * limits::ANSWER_HEAD_BYTES_MAX));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(10_000));
    for words in [
        "",
        "\r\n",
        "SSH-2.0-OpenSSH_9.9\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 200",
        "hello, who is there?",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        large.leak(),
        many.leak(),
    ] {
        let world = World::saying(words, true);
        let answer = tokio::time::timeout(Duration::from_secs(20), world.forward(get("/"))).await.expect(words);
        let start = &words[..words.len().min(60)];
        assert!(answer.is_refusal(502), "{start:?}: {answer:?}");
        assert!(answer.text().contains("port 8080 of sandbox sb0123456789abcdefgh"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_guest_that_says_continue_without_end_is_left() {
    let world = World::raw(|mut stream| async move {
        read_head(&mut stream).await.unwrap();
        for _ in 0..1000 {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
    });
    assert_eq!(world.forward(get("/")).await.text(), "hi");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_begin_an_answer_is_given_up() {
    let world = World::raw(|mut stream| async move {
        read_head(&mut stream).await.unwrap();
        // Nothing more, until the proxy hangs up.
        assert!(read_head(&mut stream).await.is_none());
    });
    let before = tokio::time::Instant::now();
    let answer = world.forward(get("/")).await;
    assert!(answer.is_refusal(504), "{answer:?}");
    assert_eq!(before.elapsed().as_secs(), limits::ANSWER_HEAD_LIMIT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_moves_may_take_longer_than_an_answer() {
    let world = World::http1(|request| async {
        let read = request.into_body().collect().await.unwrap().to_bytes().len();
        ok(read.to_string())
    });
    let pieces = futures::stream::unfold(0, |number| async move {
        tokio::time::sleep(limits::ANSWER_HEAD_LIMIT / 2).await;
        (number < 10).then_some((Ok::<_, Infallible>("x"), number + 1))
    });
    assert_eq!(world.forward(post("/", Body::from_stream(pieces))).await.text(), "10");
}

/// Ways that end nowhere.
struct Endless;

#[async_trait]
impl Ways for Endless {
    async fn admit(&self, _target: &Target, _headers: &HeaderMap) -> Result<Admitted, Refused> {
        Ok(Admitted { life: 1 })
    }

    async fn dial(&self, _target: &Target, _limit: Duration) -> Result<Tunnel, Refused> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_way_that_ends_nowhere_is_given_up() {
    let target = World::saying("", true).target;
    let answer = Answer::of(Proxy::new(Arc::new(Endless)).forward(target, get("/")).await).await;
    assert!(answer.is_refusal(504), "{answer:?}");
}

#[tokio::test]
async fn one_sandbox_gets_its_share_and_no_more() {
    let world = World::raw(|mut stream| async move {
        read_head(&mut stream).await.unwrap();
        assert!(read_head(&mut stream).await.is_none());
    });
    let mut waiting: Vec<_> =
        (0..limits::REQUESTS_PER_SANDBOX_MAX).map(|_| Box::pin(world.forward(get("/")))).collect();
    for request in &mut waiting {
        assert!(futures::poll!(request).is_pending());
    }
    let refused = world.forward(get("/")).await;
    assert!(refused.is_refusal(503), "{refused:?}");
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(world.dialled(), limits::REQUESTS_PER_SANDBOX_MAX);
    waiting.pop();
    let mut another = Box::pin(world.forward(get("/")));
    assert!(futures::poll!(&mut another).is_pending());
}

#[tokio::test]
async fn heads_and_methods_that_do_not_pass_are_refused() {
    let world = World::saying("", true);
    let mut large = get("/");
    for number in 0..3 {
        let name: http::HeaderName = format!("x-{number}").parse().unwrap();
        large.headers_mut().insert(name, "x".repeat(limits::REQUEST_HEAD_BYTES_MAX / 2).parse().unwrap());
    }
    assert!(world.forward(large).await.is_refusal(431));
    let connect = Request::connect("x:80").body(Body::empty()).unwrap();
    assert!(world.forward(connect).await.is_refusal(405));
    assert_eq!(world.dialled(), 0);
}

#[tokio::test]
async fn a_refusal_of_the_ways_is_the_answer() {
    struct Closed;
    #[async_trait]
    impl Ways for Closed {
        async fn admit(&self, _target: &Target, _headers: &HeaderMap) -> Result<Admitted, Refused> {
            Err(Refused::new(wrenn_client::types::Code::Forbidden, "the traffic token is missing"))
        }

        async fn dial(&self, _target: &Target, _limit: Duration) -> Result<Tunnel, Refused> {
            unreachable!("it was not admitted")
        }
    }
    let target = World::saying("", true).target;
    let answer = Answer::of(Proxy::new(Arc::new(Closed)).forward(target, get("/")).await).await;
    assert!(answer.is_refusal(403));
    assert!(
        answer
            .text()
            .contains(r#"{"error":{"code":"forbidden","message":"the traffic token is missing","remedy":null}}"#)
    );
}
