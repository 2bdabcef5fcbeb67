//! Clients and guests that speak HTTP/2.

use hyper::server::conn::http2 as server_http2;

use super::*;

/// A guest that speaks nothing else, and answers as gRPC does: it says all it was told, and a status at the end.
fn grpc() -> World {
    World::raw(|stream| async move {
        let service = service_fn(|request: Request<Incoming>| async {
            assert_eq!(request.headers()["te"], "trailers");
            assert!(!request.headers().contains_key("host") && !request.headers().contains_key("connection"));
            assert_eq!(request.uri().to_string(), "http://localhost:8080/a.B/C");
            let told = request.into_body();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let body = Body::new(told.with_trailers(async { Some(Ok(trailers)) }));
            Ok::<_, Infallible>(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
        });
        let server = server_http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(TokioIo::new(stream), service).await);
    })
}

fn call(body: Body) -> Request<Body> {
    let request = Request::post("http://8080-x.example.org/a.B/C").version(http::Version::HTTP_2);
    request.header("content-type", "application/grpc").header("te", "trailers").body(body).unwrap()
}

#[tokio::test]
async fn a_client_may_speak_http2_to_a_guest_that_does_not() {
    let world = World::http1(|request| async move {
        let host = format!("{:?} {:?}", request.headers()["host"], request.headers()["x-forwarded-host"]);
        ok(format!("{} {:?} {host}", request.uri(), request.version()))
    });
    let mut client = world.http2_client().await;
    let ask = |number: usize| Request::get(format!("http://8080-x.example.org/{number}")).body(Body::empty()).unwrap();
    let answers = futures::future::join_all((0..20).map(|number| client.send_request(ask(number)))).await;
    for (number, answer) in answers.into_iter().enumerate() {
        let answer = Answer::of(answer.unwrap()).await;
        assert_eq!(answer.text(), format!("/{number} HTTP/1.1 \"localhost:8080\" \"8080-x.example.org\""));
    }
}

#[tokio::test]
async fn answers_without_bodies_have_none_over_http2() {
    let world = World::saying("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nConnection: keep-alive\r\n\r\n", false);
    let mut client = world.http2_client().await;
    let request = Request::head("http://x/").body(Body::empty()).unwrap();
    let answer = Answer::of(client.send_request(request).await.unwrap()).await;
    assert_eq!((answer.headers["content-length"].to_str().unwrap(), answer.body.len()), ("12345", 0));
}

#[tokio::test]
async fn grpc_passes_with_its_trailers() {
    let world = grpc();
    let mut client = world.http2_client().await;
    for _ in 0..3 {
        let answer = Answer::of(client.send_request(call(Body::from("a message"))).await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "a message"));
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
        settle().await;
    }
    assert_eq!(world.dialled(), 1);
}

#[tokio::test]
async fn grpc_is_spoken_to_the_guest_however_it_came() {
    let mut request = call(Body::from("a message"));
    *request.version_mut() = http::Version::HTTP_11;
    request.headers_mut().insert("host", "8080-x.example.org".parse().unwrap());
    request.headers_mut().insert("connection", "keep-alive, TE".parse().unwrap());
    let answer = grpc().forward(request).await;
    assert_eq!(answer.text(), "a message");
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_call_streams_both_ways_at_once() {
    let world = grpc();
    let mut client = world.http2_client().await;
    let (say, said) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let said =
        futures::stream::unfold(said, |mut said| async { Some((Ok::<_, Infallible>(said.recv().await?), said)) });
    let mut body = client.send_request(call(Body::from_stream(said))).await.unwrap().into_body();
    for message in ["one", "two", "three"] {
        say.send(message).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), message);
    }
    drop(say);
    assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_call_that_is_given_up_is_given_up_in_the_guest() {
    let (gone, mut went) = tokio::sync::mpsc::unbounded_channel();
    let world = World::raw(move |stream| {
        let gone = gone.clone();
        async move {
            let service =
                service_fn(|_request: Request<Incoming>| std::future::pending::<Result<Response<Body>, Infallible>>());
            let server = server_http2::Builder::new(TokioExecutor::new());
            drop(server.serve_connection(TokioIo::new(stream), service).await);
            gone.send(()).unwrap();
        }
    });
    let mut client = world.http2_client().await;
    let mut waiting = Box::pin(client.send_request(call(Body::empty())));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_err());
    drop(waiting);
    tokio::time::timeout(Duration::from_secs(5), went.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_guest_that_does_not_speak_http2_is_told_of() {
    let world = World::saying("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", true);
    let answer = tokio::time::timeout(Duration::from_secs(5), world.forward(call(Body::empty()))).await.unwrap();
    assert!(answer.is_refusal(502), "{answer:?}");
    assert!(answer.text().contains("HTTP/2"), "{answer:?}");
}
