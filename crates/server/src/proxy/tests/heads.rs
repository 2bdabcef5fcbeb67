//! What a guest sees of a request, and a client of an answer.

use proptest::prelude::*;

use super::*;
use crate::proxy::head::{Arrival, Head, Protocol};

/// The raw head that the guest sees of a request.
async fn seen(request: Request<Body>) -> String {
    seen_at(8080, request).await
}

async fn seen_at(port: u16, request: Request<Body>) -> String {
    let world = World::raw(|mut stream| async move {
        let head = read_head(&mut stream).await.unwrap();
        let words = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        stream.write_all(words.as_bytes()).await.unwrap();
    });
    let target = Target { port, ..world.target.clone() };
    Answer::of(world.proxy.forward(target, request).await).await.text().to_ascii_lowercase()
}

fn with(headers: &[(&'static str, &str)]) -> Request<Body> {
    let mut request = get("/");
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn what_is_about_one_connection_stays_there() {
    let head = seen(with(&[
        ("connection", "close, X-Mine"),
        ("x-mine", "1"),
        ("x-other", "2"),
        ("keep-alive", "timeout=5"),
        ("proxy-authorization", "Basic x"),
        ("te", "gzip, trailers"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAA"),
    ]))
    .await;
    for gone in ["x-mine", "keep-alive", "proxy-authorization", "gzip", "upgrade", "http2", "close"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    assert!(head.contains("\r\nx-other: 2\r\n") && head.contains("\r\nte: trailers\r\n"), "{head}");
}

#[tokio::test]
async fn the_guest_is_asked_as_localhost_and_told_who_asked() {
    let mut request = with(&[
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-host", "made-up"),
        ("x-forwarded-proto", "made-up"),
        ("forwarded", "for=made-up"),
    ]);
    let peer = Some("::ffff:198.51.100.7".parse().unwrap());
    request.extensions_mut().insert(Arrival { peer, scheme: http::uri::Scheme::HTTPS });
    let head = seen(request).await;
    for line in [
        "host: localhost:8080",
        "x-forwarded-host: 8080-sb0123456789abcdefgh.example.org",
        "x-forwarded-for: 192.0.2.1, 198.51.100.7",
        "x-forwarded-proto: https",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    assert!(!head.contains("made-up"), "{head}");
    assert_eq!(head.matches("host: localhost").count(), 1);
}

#[tokio::test]
async fn our_secrets_stay_here() {
    let head = seen(with(&[
        ("x-api-key", "secret"),
        ("x-wrenn-traffic-token", "secret"),
        ("e2b-traffic-access-token", "secret"),
        ("authorization", "Bearer wrn_secret"),
        ("authorization", "bearer   e2b_secret"),
        ("authorization", "Bearer theirs"),
        ("sec-websocket-protocol", "chat, key.wrn_secret, wrenn.v1"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
    ]))
    .await;
    assert!(!head.contains("secret"), "{head}");
    for line in ["authorization: bearer theirs", "sec-websocket-protocol: chat, wrenn.v1", "cookie: a=1; b=2"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
}

#[tokio::test]
async fn the_guests_agent_is_not_called_without_its_token() {
    let port = wrenn_proto::envd::PORT;
    let world = World::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false);
    let target = Target { port, ..world.target.clone() };
    for (request, status) in [
        (get("/files?path=/etc/passwd"), 401),
        (get("/files/?signature=x"), 401),
        (get("/x?signature=x"), 401),
        (post("/health", Body::empty()), 401),
        (with(&[("connection", "x-access-token"), ("x-access-token", "t")]), 401),
    ] {
        let answer = Answer::of(world.proxy.forward(target.clone(), request).await).await;
        assert!(answer.is_refusal(status), "{answer:?}");
    }
    assert_eq!((world.dialled(), world.house.admitted.load(Ordering::SeqCst)), (0, 0));
    for request in [get("/health"), get("/files?path=a&signature=v1_x"), with(&[("x-access-token", "t")])] {
        assert_eq!(world.proxy.forward(target.clone(), request).await.status(), 200);
    }
    assert!(
        seen_at(port, with(&[("x-access-token", "the-token")])).await.contains("\r\nx-access-token: the-token\r\n")
    );
}

#[tokio::test]
async fn a_guest_does_not_speak_in_our_name() {
    let world = World::saying(
        "HTTP/1.1 503 Busy\r\nX-Wrenn-Proxy-Error: exhausted\r\nConnection: x-mine\r\nX-Mine: 1\r\nX-Other: 2\r\n\
         Keep-Alive: timeout=9\r\nContent-Length: 0\r\n\r\n",
        false,
    );
    let answer = world.forward(get("/")).await;
    assert_eq!((answer.status.as_u16(), answer.headers["x-other"].as_bytes()), (503, &b"2"[..]));
    for gone in ["x-wrenn-proxy-error", "connection", "x-mine", "keep-alive"] {
        assert!(!answer.headers.contains_key(gone), "{gone}");
    }
}

/// A guest that reads all there is, and answers each time something came to an end.
async fn raw_bytes(sent: &[u8]) -> (String, String) {
    let all = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&all);
    let world = World::raw(move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut piece).await {
                seen.lock().unwrap().extend_from_slice(&piece[..count]);
                if piece[..count].ends_with(b"\r\n\r\n") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                }
            }
        }
    });
    let said = world.say(sent).await;
    let seen = String::from_utf8_lossy(&all.lock().unwrap()).to_ascii_lowercase();
    (said, seen)
}

#[tokio::test(start_paused = true)]
async fn no_two_readers_disagree_about_where_a_request_ends() {
    let (_said, seen) = raw_bytes(
        b"POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .await;
    assert!(!seen.contains("content-length: 4"), "{seen}");
    assert!(seen.contains("transfer-encoding: chunked"), "{seen}");
    for refused in [
        &b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd"[..],
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nX-A\rB: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nX-A\x00B: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n folded: 2\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let (said, seen) = raw_bytes(refused).await;
        assert!(said.starts_with("HTTP/1.1 400") || said.is_empty(), "{said}");
        assert_eq!(seen, "", "{}", String::from_utf8_lossy(refused));
    }
}

#[tokio::test(start_paused = true)]
async fn two_requests_of_one_connection_stay_two() {
    let (said, seen) = raw_bytes(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\nGET /within HTTP/1.1\r\nHost: hidden.x\r\n\r\n\
          GET /second HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .await;
    assert_eq!(said.matches("HTTP/1.1 200").count(), 2, "{said}");
    assert!(seen.contains("content-length: 40\r\n"), "{seen}");
}

#[test]
fn grpc_is_spoken_over_http2_and_what_is_like_it_is_not() {
    let target = Target { id: "sb0123456789abcdefgh".parse().unwrap(), port: 1 };
    let protocol = |version, headers: &[(&'static str, &str)]| {
        let mut request = with(headers);
        *request.version_mut() = version;
        Head::to_guest(&request.into_parts().0, &target).unwrap().protocol
    };
    use http::Version;
    for (version, headers, wanted) in [
        (Version::HTTP_2, vec![("content-type", "application/grpc")], Protocol::Http2),
        (Version::HTTP_11, vec![("content-type", "application/grpc+proto")], Protocol::Http2),
        (Version::HTTP_2, vec![("content-type", "Application/GRPC; x=y")], Protocol::Http2),
        (Version::HTTP_2, vec![("te", "trailers")], Protocol::Http2),
        (Version::HTTP_11, vec![("te", "trailers")], Protocol::Http1),
        (Version::HTTP_2, vec![("content-type", "application/grpc-web+proto")], Protocol::Http1),
        (Version::HTTP_2, vec![("content-type", "application/json")], Protocol::Http1),
        (Version::HTTP_2, vec![], Protocol::Http1),
    ] {
        assert_eq!(protocol(version, &headers), wanted, "{version:?} {headers:?}");
    }
}

proptest! {
    #[test]
    fn any_head_is_passed_on_or_refused_and_never_with_our_secrets(
        headers in proptest::collection::vec((0..NAMES.len(), "(wrn_key|Bearer wrn_key|trailers|upgrade|te|h2c|[ -~\\u{80}-\\u{ff}]*|,| ){0,4}"), 0..12),
        http2 in any::<bool>(),
        port in 1..=u16::MAX,
    ) {
        let mut request = get("/a?b");
        for (name, value) in headers {
            let Ok(value) = http::HeaderValue::from_bytes(value.as_bytes()) else { continue };
            request.headers_mut().append(NAMES[name], value);
        }
        *request.version_mut() = if http2 { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
        let target = Target { id: "sb0123456789abcdefgh".parse().unwrap(), port };
        let Ok(head) = Head::to_guest(&request.into_parts().0, &target) else { return Ok(()) };
        let sent = head.request(());
        for gone in ["x-api-key", "x-wrenn-traffic-token", "e2b-traffic-access-token", "transfer-encoding", "keep-alive"] {
            prop_assert!(!sent.headers().contains_key(gone));
        }
        for kept in sent.headers().get_all("authorization") {
            prop_assert!(!kept.as_bytes().to_ascii_lowercase().starts_with(b"bearer wrn_"));
        }
        prop_assert_eq!(sent.headers().get_all("host").iter().count(), usize::from(head.protocol == Protocol::Http1));
        prop_assert!(head.upgrade == sent.headers().contains_key("upgrade"));
    }
}

const NAMES: [&str; 14] = [
    "x-api-key",
    "x-wrenn-traffic-token",
    "e2b-traffic-access-token",
    "authorization",
    "sec-websocket-protocol",
    "connection",
    "upgrade",
    "te",
    "transfer-encoding",
    "keep-alive",
    "cookie",
    "x-forwarded-for",
    "host",
    "content-type",
];
