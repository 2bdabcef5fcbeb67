//! Who gets in over TLS, and who does not.

use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, SupportedProtocolVersion, version};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::certificates::Ca;
use super::transport::address;
use super::*;
use crate::rpc::door::Knock;
use crate::rpc::link::Link;
use crate::rpc::way::Way;

/// An agent on `localhost` that believes `ca`.
async fn serve_with(ca: &Ca) -> (Arc<Fake>, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let fake = Arc::new(Fake::default());
    let agent: Arc<dyn HostAgent> = Arc::clone(&fake) as _;
    tokio::spawn(serve_tls(agent, listener, ca.server("localhost"), std::future::pending()));
    (fake, port)
}

fn client(files: &TlsFiles) -> ClientTls {
    ClientTls::from(&TlsIdentity::read(files).unwrap())
}

/// What a client is told that does not get in, and that this is so.
async fn refused(host: &str, port: u16, client: ClientTls) -> String {
    let remote = Remote::over_tls(address(host, port), client);
    let error = soon(remote.create(request())).await.unwrap_err();
    let dialed = soon(remote.dial(&nobody(), 1, SOON)).await.err().unwrap();
    assert_eq!((error.code, dialed.code), (Code::Unavailable, Code::Unavailable), "{error} {dialed}");
    format!("{error}\n{dialed}")
}

#[tokio::test]
async fn who_has_no_certificate_that_is_good_now_and_for_this_does_not_get_in() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (fake, port) = serve_with(&ca).await;
    let stranger = TlsFiles { ca: ca.file("ca.pem"), ..other.visitor() };
    for (files, alert) in [
        (stranger, "UnknownCA"),
        (ca.late_visitor(), "CertificateExpired"),
        (ca.agent("localhost"), "received fatal alert"),
    ] {
        let message = refused("localhost", port, client(&files)).await;
        let says = |line: &str| line.contains(alert) && line.contains("has to be a client's, valid now");
        assert!(message.lines().all(says), "{message}");
    }
    assert_eq!(fake.count(), 0);
    Remote::over_tls(address("localhost", port), ca.client()).create(request()).await.unwrap();
    assert_eq!(fake.count(), 1);
}

#[tokio::test]
async fn an_agent_that_is_not_who_it_should_be_is_not_asked() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (_fake, port) = serve_with(&ca).await;
    let message = refused("127.0.0.1", port, ca.client()).await;
    assert!(message.contains(&format!("127.0.0.1:{port}: invalid peer certificate")), "{message}");
    assert!(message.contains("has to be of the host that is asked for"), "{message}");
    let distrustful = TlsFiles { ca: other.file("ca.pem"), ..ca.visitor() };
    let message = refused("localhost", port, client(&distrustful)).await;
    assert!(message.contains("localhost") && message.contains("invalid peer certificate"), "{message}");
}

/// All that a client hears of an agent that was sent a request over `stream`.
async fn heard(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Vec<u8> {
    // A refusal may come first.
    drop(stream.write_all(b"GET / HTTP/1.1\r\nhost: agent\r\n\r\n").await);
    let mut heard = Vec::new();
    drop(soon(stream.read_to_end(&mut heard)).await);
    heard
}

/// A handshake of a client without a certificate.
async fn shake_hands(ca: &Ca, port: u16, version: &'static SupportedProtocolVersion) -> io::Result<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(ca.roots())
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    Ok(heard(TlsConnector::from(Arc::new(config)).connect(name, stream).await?).await)
}

#[tokio::test]
async fn who_shows_no_certificate_or_speaks_no_tls_or_an_older_one_learns_nothing() {
    let ca = Ca::new();
    let (_fake, port) = serve_with(&ca).await;
    // The client has heard who the agent is when its own part is looked at.
    assert_eq!(soon(shake_hands(&ca, port, &version::TLS13)).await.unwrap(), b"");
    let error = soon(shake_hands(&ca, port, &version::TLS12)).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    let alert = heard(TcpStream::connect(("127.0.0.1", port)).await.unwrap()).await;
    assert!(alert.is_empty() || (alert[0] == 21 && alert.len() == 7), "{alert:?}");
}

#[tokio::test]
async fn who_stalls_in_the_handshake_keeps_nobody_out_and_the_oldest_has_to_go() {
    let ca = Ca::new();
    let (_fake, port) = serve_with(&ca).await;
    let mut stalling = Vec::new();
    for _ in 0..limits::HANDSHAKES_MAX + 1 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // The head of a record that does not come.
        stream.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
        stalling.push(stream);
    }
    let remote = Remote::over_tls(address("localhost", port), ca.client());
    assert_eq!(soon(remote.list()).await.unwrap(), []);
    let closed = soon(stalling[0].read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    let waits = timeout(Duration::from_millis(50), stalling.last_mut().unwrap().read(&mut [0; 1])).await;
    assert!(waits.is_err(), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_come_to_its_end_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let door = Door::Tls(listener, Ca::new().server("localhost"));
    let knock = door.accept().await.unwrap();
    assert!(matches!(knock, Knock::Tls { .. }));
    let begun = tokio::time::Instant::now();
    assert!(knock.admit().await.is_none());
    assert!(begun.elapsed() >= limits::HANDSHAKE_LIMIT);
}

#[tokio::test]
async fn a_dead_peer_is_noticed_at_both_ends() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let door = Door::Tls(listener, ca.server("localhost"));
    let way = Way::Tls(address("localhost", port), ca.client());
    let receipt = u32::try_from(limits::RECEIPT_LIMIT.as_millis()).unwrap();
    for (carries, receipt) in [(Carries::Calls, receipt), (Carries::Tunnel, 0)] {
        let admitted = async { door.accept().await.unwrap().admit().await.unwrap() };
        let (client, agent) = tokio::join!(way.connect(carries), admitted);
        let ends: [Link; 2] = [client.unwrap(), agent];
        for end in &ends {
            assert!(sockopt::socket_keepalive(end).unwrap());
            assert_eq!(sockopt::tcp_keepidle(end).unwrap(), limits::KEEPALIVE_EVERY);
            assert_eq!(sockopt::tcp_user_timeout(end).unwrap(), receipt, "{carries:?}");
        }
    }
}

#[test]
fn all_that_is_wrong_with_the_files_is_said_at_once() {
    let ca = Ca::new();
    let good = ca.visitor();
    std::fs::write(ca.file("damaged"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    let wrong = TlsFiles { cert: ca.file("none"), key: good.cert.clone(), ca: ca.file("damaged") };
    let TlsError(problems) = TlsIdentity::read(&wrong).unwrap_err();
    assert!(
        matches!(
            &*problems,
            [
                TlsProblem::Unreadable { .. },
                TlsProblem::Missing { what: "private key", .. },
                TlsProblem::Missing { .. }
            ]
        ),
        "{problems:?}"
    );
    for (problem, file) in problems.iter().zip([&wrong.cert, &wrong.key, &wrong.ca]) {
        let text = problem.to_string();
        assert!(text.contains(file.to_str().unwrap()) && text.contains("it has to be"), "{text}");
    }

    let handed = serde_json::to_vec(&TlsHandover::read(&good).unwrap()).unwrap();
    let handed: TlsHandover = serde_json::from_slice(&handed).unwrap();
    assert!(!format!("{handed:?}").contains("pem:"), "{handed:?}");
    std::fs::rename(&good.key, ca.file("gone.key")).unwrap();
    assert!(TlsIdentity::try_from(handed).is_ok(), "what was read once is not read again");
    std::fs::rename(ca.file("gone.key"), &good.key).unwrap();
    let TlsError(problems) = TlsHandover::read(&wrong).unwrap_err();
    assert_eq!(problems.len(), 3, "{problems:?}");

    let swapped = TlsFiles { key: ca.late_visitor().key, ..good.clone() };
    let text = TlsIdentity::read(&swapped).unwrap_err().to_string();
    assert!(text.contains("late.key does not go with the certificate") && text.contains("client.pem"), "{text}");
    std::fs::write(ca.file("ca.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let TlsError(problems) = TlsIdentity::read(&good).unwrap_err();
    assert!(matches!(&*problems, [TlsProblem::Ca { .. }]), "{problems:?}");
    std::fs::File::create(ca.file("huge")).unwrap().set_len(limits::PEM_BYTES_MAX + 1).unwrap();
    let TlsError(problems) = TlsIdentity::read(&TlsFiles { key: ca.file("huge"), ..good }).unwrap_err();
    assert!(matches!(&*problems, [TlsProblem::TooLarge { .. }, TlsProblem::Ca { .. }]), "{problems:?}");
}
