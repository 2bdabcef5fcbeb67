//! A server whose agent is on another host: over TLS, with certificates of one's own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use reqwest::Method;
use serde_json::{Value, json};
use wrenn_testworld::api::{Api, nothing};

use super::life::{create, sh};
use super::server::{Service, run};
use crate::world::{LIMIT, World, assert_failed, eventually, signal};

/// What the agent says when other hosts get in.
const LISTENS: &str = "wrenn: it listens on ";

/// Who signs certificates.
struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
    name: &'static str,
}

/// Files that say who one side is, and whom it believes.
struct Identity {
    cert: String,
    key: String,
    ca: String,
}

impl Ca {
    fn new(dir: &Path, name: &'static str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca = Self { issuer, dir: dir.to_owned(), name };
        std::fs::write(ca.file("ca"), ca.issuer.pem()).unwrap();
        ca
    }

    fn file(&self, of: &str) -> String {
        self.dir.join(format!("{}-{of}.pem", self.name)).display().to_string()
    }

    fn agent(&self) -> Identity {
        self.sign(
            "agent",
            CertificateParams::new(["localhost".to_owned()]).unwrap(),
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    fn server(&self) -> Identity {
        self.sign("server", CertificateParams::default(), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, name: &str, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Identity {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let files = Identity { cert: self.file(name), key: self.file(&format!("{name}-key")), ca: self.file("ca") };
        std::fs::write(&files.cert, cert.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o600)).unwrap();
        files
    }
}

impl Identity {
    /// As `wrenn agent` takes it.
    fn to_listen(&self, at: &str) -> Vec<String> {
        let Self { cert, key, ca } = self;
        ["--listen-tls", at, "--tls-cert", cert, "--tls-key", key, "--tls-ca", ca].map(str::to_owned).into()
    }

    /// As `wrenn serve` takes it.
    fn to_reach(&self, port: u16) -> Vec<String> {
        let Self { cert, key, ca } = self;
        let at = format!("localhost:{port}");
        ["--agent", &at, "--agent-tls-cert", cert, "--agent-tls-key", key, "--agent-tls-ca", ca]
            .map(str::to_owned)
            .into()
    }
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Where the agent listens for other hosts.
fn port_of(host: &World) -> u16 {
    let all = host.agent_words();
    let at = all.rsplit_once(LISTENS).expect("it has said where").1.split_whitespace().next().unwrap();
    at.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// A port that is nobody's; it is ours as long as nobody else takes it, which is short.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn health(api: &Api) -> (u16, Value) {
    let answer = api.get("/healthz").await;
    (answer.status.as_u16(), answer.body)
}

/// That the server goes on without its agent, and says so.
async fn is_without_agent(api: &Api) {
    assert_eq!(health(api).await, (503, json!({ "status": "degraded", "agent": false, "database": true })));
    assert_eq!(api.get("/v1/sandboxes").await.code(), "unavailable");
    assert_eq!(api.get("/v1/whoami").await.ok()["scope"], "admin");
}

#[test]
fn sandboxes_of_another_host_are_used_as_ones_own() {
    let host = World::new();
    let ca = Ca::new(host.beside(), "own");
    let identity = ca.agent();
    let agent = host.agent(&words(&identity.to_listen("127.0.0.1:0")));
    let at = format!("127.0.0.1:{}", port_of(&host));
    let service = Service::of(World::without_images(), ca.server().to_reach(port_of(&host)));
    let id = run(async {
        let api = service.api().await;
        let id = create(&api, json!({ "memory_mib": 128, "auto_resume": true })).await;
        assert_eq!(sh(&api, &id, "echo kept > /dev/shm/note; exit 3").await.0, 3);
        assert_eq!(host.state(&id), "running", "it is the other host's");
        files(&api, &id).await;
        port(&service, &api, &id).await;
        id
    });
    nothing_secret_is_left_open(&service, &ca);

    // Without its agent the server waits for it; the sandbox goes on meanwhile.
    agent.kill();
    run(async {
        let api = service.api_as_it_is().await;
        let begun = Instant::now();
        while health(&api).await.0 != 503 {
            assert!(begun.elapsed() < LIMIT, "it does not miss its agent");
        }
        is_without_agent(&api).await;
    });
    let agent = host.agent(&words(&identity.to_listen(&at)));
    run(async {
        let api = service.api().await;
        assert_eq!(sh(&api, &id, "cat /dev/shm/note").await, (0, "kept\n".to_owned()));
        signal(service.server_pid(), "KILL");
        api.until_ready().await;
        assert_eq!(sh(&api, &id, "cat /dev/shm/note").await, (0, "kept\n".to_owned()));
        api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
        assert_eq!(host.state(&id), "gone");
    });
    service.end();
    agent.stop();
    host.finish_agent();
}

/// A link is written through, and what is there keeps its permissions.
async fn files(api: &Api, id: &str) {
    let files = format!("/v1/sandboxes/{id}/files");
    assert_eq!(sh(api, id, "echo old > /root/script; chmod 751 /root/script; ln -s script /root/link").await.0, 0);
    let place = format!("{files}?path=/root/link");
    let written = api.answer("put", &files, api.request(Method::PUT, &place).body("new")).await.ok();
    assert_eq!(written, json!({ "path": "/root/link", "size": 3 }));
    let script = "stat -c '%F %a' /root/link /root/script; cat /root/script; ls -A /root | grep part";
    assert_eq!(sh(api, id, script).await.1, "symbolic link 777\nregular file 751\nnew");
    let read = api.request(Method::GET, &place).send().await.unwrap();
    assert_eq!(read.text().await.unwrap(), "new");
}

/// A port goes through the agent's tunnel; traffic brings the sandbox back.
async fn port(service: &Service, api: &Api, id: &str) {
    let script = "mkdir -p /www && echo served > /www/page && cd /www && httpd -p 8000 -h /www";
    assert_eq!(sh(api, id, script).await.0, 0);
    let page = format!("{}/proxy/8000-{id}/page", service.url());
    let client = reqwest::Client::new();
    let served = async || client.get(&page).send().await.unwrap().text().await.unwrap();
    assert_eq!(served().await, "served\n");
    api.post(&format!("/v1/sandboxes/{id}/pause"), nothing()).await.ok();
    assert_eq!(served().await, "served\n");
}

/// The server's process is an ordinary user that sees neither the key nor what it was handed.
fn nothing_secret_is_left_open(service: &Service, ca: &Ca) {
    let process = PathBuf::from(format!("/proc/{}", service.server_pid()));
    let open = std::fs::read_dir(process.join("fd")).unwrap().map(|entry| std::fs::read_link(entry.unwrap().path()));
    let open: Vec<String> = open.flatten().map(|path| path.display().to_string()).collect();
    assert!(open.len() > 3 && !open.iter().any(|path| path.contains("memfd") || path.contains("-key")), "{open:?}");
    for told in ["cmdline", "environ"] {
        let text = std::fs::read(process.join(told)).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains(&ca.file("server-key")), "{told}");
    }
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    assert!(status.contains("\nCapEff:\t0000000000000000\n") && !status.contains("\nUid:\t0\t"), "{status}");
}

#[test]
fn who_is_not_believed_is_told_why_and_the_server_waits() {
    let host = World::without_images();
    let (ours, theirs) = (Ca::new(host.beside(), "ours"), Ca::new(host.beside(), "theirs"));
    let port = free_port();
    // The agent is not there yet.
    let service = Service::of(World::without_images(), ours.server().to_reach(port));
    run(async { is_without_agent(&service.api_as_it_is().await).await });
    eventually("it says that nobody is there", || service.words().contains("Connection refused"));
    let agent = host.agent(&words(&ours.agent().to_listen(&format!("127.0.0.1:{port}"))));
    run(async { assert_eq!(health(&service.api().await).await.0, 200) });

    let distrustful = Identity { ca: theirs.file("ca"), ..ours.server() };
    let unknown = Identity { ca: ours.file("ca"), ..theirs.server() };
    for (identity, told) in [
        (&distrustful, ["invalid peer certificate: UnknownIssuer", "signed by the CA that is given here"]),
        (&unknown, ["received fatal alert: UnknownCA", "signed by the CA that is given there"]),
    ] {
        let service = Service::of(World::without_images(), identity.to_reach(port));
        run(async { is_without_agent(&service.api_as_it_is().await).await });
        eventually("it says why", || told.iter().all(|word| service.words().contains(word)));
        service.end();
    }

    // What a person can get wrong ends it at once; two do not serve from one folder.
    let lacking = Identity { key: "/nowhere/key.pem".to_owned(), cert: ours.file("agent-key"), ..ours.server() };
    let serve = |identity: &Identity| {
        let reach = identity.to_reach(port);
        service.output(&[&["serve", "--listen", "127.0.0.1:0"], &words(&reach)[..]].concat())
    };
    assert_failed(&serve(&lacking), &["cannot read /nowhere/key.pem", "ours-agent-key.pem has no certificate"]);
    assert_failed(&serve(&ours.server()), &["another `wrenn serve` uses"]);
    service.end();
    agent.stop();
    host.finish_agent();
}
