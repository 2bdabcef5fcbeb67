//! The suite with PostgreSQL, and what goes wrong with a server.
//!
//! The server is this test's own: its files are in a temporary folder, it listens on a socket in there alone, it runs as a user
//! without rights, and it ends with the test, or with the thread that started it however that ends (`setpriv --pdeathsig`).

#![allow(clippy::disallowed_methods, reason = "the PostgreSQL server is what these tests need beside them")]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::*;

/// What starting, ending and each wait for the server may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who runs the server when we are root, in this order: PostgreSQL refuses to be root.
const USERS: [&str; 2] = ["postgres", "nobody"];

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_works_with_postgresql() {
    if std::env::var_os("WRENN_TEST_NO_POSTGRES").is_some() {
        println!("left out: WRENN_TEST_NO_POSTGRES is set");
        return;
    }
    let mut server = Server::start();
    on_postgres(&server).await;
    a_backup_is_pg_dump_s(&server).await;
    a_lock_is_waited_for_but_not_for_ever(&server).await;
    a_lost_connection_is_replaced(&server).await;
    a_frozen_server_is_unavailable_until_it_goes_on(&server).await;
    a_stopped_server_is_unavailable_until_it_is_back(&mut server).await;
    what_is_not_there_is_told(&server).await;
    a_server_without_tls_is_not_talked_to_in_the_clear(&server).await;
    tls_is_what_the_url_says(&mut server).await;
}

async fn a_backup_is_pg_dump_s(server: &Server) {
    let database = open(&server.new_database().await).await;
    let error = database.backup(Path::new("/nowhere/copy.db")).await.unwrap_err();
    assert!(error.to_string().contains("pg_dump"), "{error}");
}

async fn a_lock_is_waited_for_but_not_for_ever(server: &Server) {
    let url = server.new_database().await;
    let database = open(&url).await;
    let mut other = beside(&url).await;
    query("BEGIN").execute(&mut other).await.unwrap();
    query("LOCK TABLE keys").execute(&mut other).await.unwrap();
    let begun = Instant::now();
    let error = database.add_key(&key(1), &digest(1)).await.unwrap_err();
    assert!(error.is_unavailable() && begun.elapsed() < limits::CALL + Duration::from_secs(1), "{error:?}");
    query("COMMIT").execute(&mut other).await.unwrap();
    database.add_key(&key(1), &digest(1)).await.unwrap();
}

async fn a_lost_connection_is_replaced(server: &Server) {
    let url = server.new_database().await;
    let database = open(&url).await;
    for number in 0..3 {
        run_beside(
            &url,
            "SELECT CAST(count(pg_terminate_backend(pid)) AS BIGINT) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
        database.add_key(&key(number), &digest(number)).await.unwrap();
    }
}

async fn a_frozen_server_is_unavailable_until_it_goes_on(server: &Server) {
    let database = open(&server.new_database().await).await;
    server.signal_all(Signal::STOP);
    let begun = Instant::now();
    let mut waiters = tokio::task::JoinSet::new();
    for number in 0..20 {
        let database = database.clone();
        waiters.spawn(async move { database.add_key(&key(number), &digest(number)).await });
    }
    let refused = waiters.join_all().await;
    let took = begun.elapsed();
    server.signal_all(Signal::CONT);
    assert!(refused.iter().all(|done| done.as_ref().is_err_and(DbError::is_unavailable)), "{refused:?}");
    assert!(took < limits::CALL + Duration::from_secs(1), "{took:?}");
    database.add_key(&key(100), &digest(100)).await.unwrap();
}

async fn a_stopped_server_is_unavailable_until_it_is_back(server: &mut Server) {
    let database = open(&server.new_database().await).await;
    database.add_key(&key(1), &digest(1)).await.unwrap();
    server.stop();
    for _ in 0..2 {
        let begun = Instant::now();
        let error = database.find_key(&digest(1)).await.unwrap_err();
        assert!(error.is_unavailable() && begun.elapsed() < limits::CALL + Duration::from_secs(1), "{error:?}");
    }
    server.run();
    assert_eq!(database.find_key(&digest(1)).await.unwrap(), Some(key(1)));
    database.add_key(&key(2), &digest(2)).await.unwrap();
}

async fn what_is_not_there_is_told(server: &Server) {
    let error = Database::open(&server.url("no_such_database")).await.err().unwrap();
    assert!(error.is_unavailable() && format!("{error:?}").contains("does not exist"), "{error:?}");
}

async fn a_server_without_tls_is_not_talked_to_in_the_clear(server: &Server) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // What a server without TLS says to who asks for it.
    let refusing = thread::spawn(move || {
        for _ in 0..limits::OPEN_ATTEMPTS {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            stream.write_all(b"N").unwrap();
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "nothing is said in the clear");
        }
    });
    untrusted(&format!("postgres://wrenn@127.0.0.1:{port}/postgres?sslmode=require")).await;
    refusing.join().unwrap();
    assert!(encryption(&server.url("postgres")).await.contains("false"));
}

async fn tls_is_what_the_url_says(server: &mut Server) {
    server.stop();
    let (ca, other) = (Ca::new(&server.folder, "ca"), Ca::new(&server.folder, "other"));
    server.tls = Some(Tls::new(server, &ca, "localhost"));
    server.run();
    let port = server.tls.as_ref().unwrap().port;
    let url = |host: &str, rest: &str| format!("postgres://wrenn@{host}:{port}/postgres?{rest}");
    let verified = |ca: &Ca| format!("sslmode=verify-full&sslrootcert={}", ca.file.display());
    for good in [url("127.0.0.1", "sslmode=require"), url("localhost", &verified(&ca))] {
        let url: DatabaseUrl = good.parse().unwrap();
        assert!(encryption(&url).await.contains("true"), "{good}");
        open(&url).await.close().await;
    }
    untrusted(&url("localhost", &verified(&other))).await;
    untrusted(&url("localhost", "sslmode=verify-full")).await;
    untrusted(&url("127.0.0.1", &verified(&ca))).await;
}

/// That a database is not opened, and that it is said why.
async fn untrusted(url: &str) {
    let error = Database::open(&url.parse().unwrap()).await.err().unwrap();
    assert!(matches!(error, DbError::Untrusted { .. }) && error.is_unavailable(), "{url}: {error:?}");
}

/// What the server says of a connection's encryption.
async fn encryption(url: &DatabaseUrl) -> String {
    let mut connection = beside(url).await;
    let select = "SELECT CAST(ssl AS TEXT) FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let said = sqlx::query_scalar(select).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    said
}

/// An authority.
struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Ca {
    fn new(folder: &tempfile::TempDir, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = folder.path().join(format!("{name}.pem"));
        fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file }
    }
}

/// What a server needs for TLS.
struct Tls {
    port: u16,
    cert: PathBuf,
    key: PathBuf,
}

impl Tls {
    fn new(server: &Server, ca: &Ca, host: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &ca.issuer).unwrap();
        // It is ours as long as nobody else takes it, which is short.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = |name: &str, text: String| {
            let path = server.folder.path().join(name);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            if let Some((uid, gid)) = server.user {
                chown(&path, Some(uid), Some(gid)).unwrap();
            }
            path
        };
        Self { port, cert: file("server.pem", cert.pem()), key: file("server.key", key.serialize_pem()) }
    }

    fn options(&self) -> Vec<String> {
        let Self { port, cert, key } = self;
        let (cert, key) = (cert.display(), key.display());
        let options = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={cert}"),
            format!("ssl_key_file={key}"),
        ];
        options.into_iter().flat_map(|option| ["-c".to_owned(), option]).collect()
    }
}

/// A PostgreSQL server of our own.
pub(super) struct Server {
    /// Ended before its folder goes.
    running: Option<Child>,
    programs: PathBuf,
    /// Whom it runs as, when we are root.
    user: Option<(u32, u32)>,
    databases: AtomicU32,
    /// It is reached over TLS, and not only over its socket.
    tls: Option<Tls>,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("wrenn-pg-").tempdir().unwrap();
        let user = geteuid().is_root().then(unprivileged);
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).unwrap();
        }
        let (programs, databases) = (programs(), AtomicU32::new(0));
        let mut server = Self { running: None, programs, user, databases, tls: None, folder };
        server.initdb();
        server.run();
        server
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn initdb(&self) {
        let mut initdb = Command::new(self.programs.join("initdb"));
        initdb.args(["--username=wrenn", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]);
        initdb
            .arg(self.data())
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.folder.path());
        initdb.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some((uid, gid)) = self.user {
            initdb.uid(uid).gid(gid);
        }
        let mut child = initdb.spawn().unwrap();
        assert!(ended(&mut child).success(), "initdb failed");
    }

    /// Starts it and waits until it answers.
    fn run(&mut self) {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--pdeathsig", "QUIT"]);
        if let Some((uid, gid)) = self.user {
            command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
        }
        command.arg("--").arg(self.programs.join("postgres")).arg("-D").arg(self.data());
        command.arg("-k").arg(self.folder.path());
        command.args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"]);
        command.args(self.tls.iter().flat_map(Tls::options));
        command.env_clear().env("LC_ALL", "C").current_dir(self.folder.path());
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.running = Some(child);
        self.wait_until_ready();
    }

    /// The last line of its `postmaster.pid` says whether it answers.
    fn wait_until_ready(&mut self) {
        let begun = Instant::now();
        loop {
            let said = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            if said.lines().last().is_some_and(|line| line.trim() == "ready") {
                return;
            }
            let gone = self.running.as_mut().unwrap().try_wait().unwrap().is_some();
            assert!(!gone && begun.elapsed() < PATIENCE, "PostgreSQL does not start:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.running.as_ref().unwrap())
    }

    /// Ends it, and with it every connection.
    fn stop(&mut self) {
        kill_process(self.pid(), Signal::INT).unwrap();
        ended(self.running.as_mut().unwrap());
        self.running = None;
    }

    /// To it and all of its processes.
    fn signal_all(&self, signal: Signal) {
        let pid = self.pid();
        let number = pid.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap();
        for child in children.split_whitespace() {
            // One that ended meanwhile needs no signal.
            kill_process(Pid::from_raw(child.parse().unwrap()).unwrap(), signal).ok();
        }
        kill_process(pid, signal).unwrap();
    }

    fn url(&self, database: &str) -> DatabaseUrl {
        let socket = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://wrenn@{socket}/{database}").parse().unwrap()
    }

    /// An empty database that nobody else has.
    pub(super) async fn new_database(&self) -> DatabaseUrl {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        run_beside(&self.url("postgres"), &format!("CREATE DATABASE {name}")).await;
        self.url(&name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(child) = &mut self.running else { return };
        // At once: nothing of it is needed any more. Its own processes end with it.
        kill_process(Pid::from_child(child), Signal::QUIT).ok();
        let begun = Instant::now();
        while child.try_wait().is_ok_and(|status| status.is_none()) && begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
        }
        // It has ended, or it never will.
        child.kill().ok();
        child.wait().ok();
    }
}

fn ended(child: &mut Child) -> std::process::ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "a program does not end");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The folder of the newest PostgreSQL's programs.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(Result::ok);
    let found = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").is_file());
    let number = |bin: &PathBuf| bin.parent().and_then(|of| of.file_name()?.to_str()?.parse::<u32>().ok());
    found.max_by_key(number).expect(
        "PostgreSQL is not installed: apt-get install postgresql, or set WRENN_TEST_NO_POSTGRES to leave this test out",
    )
}

fn unprivileged() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    USERS.iter().find_map(|name| ids(name)).expect("there is a user without rights")
}
