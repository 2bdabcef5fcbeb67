//! A PostgreSQL server of a test's own.
//!
//! Its files are in a temporary folder, it listens on a socket in there alone, it runs as a user without rights, and it ends with
//! the test, or with the thread that started it however that ends (`setpriv --pdeathsig`).

#![allow(clippy::disallowed_methods, reason = "the PostgreSQL server is what these tests need beside them")]

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

/// What starting, ending and each wait for the server may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who runs the server when we are root, in this order: PostgreSQL refuses to be root.
const USERS: [&str; 2] = ["postgres", "nobody"];

/// Leaves the tests out that need PostgreSQL.
const WITHOUT: &str = "WRENN_TEST_NO_POSTGRES";

/// A PostgreSQL server of our own.
#[derive(Debug)]
pub struct Postgres {
    /// Ended before its folder goes.
    running: Option<Child>,
    programs: PathBuf,
    /// Whom it runs as, when we are root.
    user: Option<(u32, u32)>,
    databases: AtomicU32,
    /// What it is started with beside what all are.
    options: Vec<String>,
    folder: tempfile::TempDir,
}

impl Postgres {
    /// An empty one that answers; `None` where tests that need one are to be left out.
    ///
    /// # Panics
    /// If there is none: a test cannot go on without.
    pub fn start_unless_left_out() -> Option<Self> {
        if std::env::var_os(WITHOUT).is_some() {
            println!("left out: {WITHOUT} is set");
            return None;
        }
        Some(Self::start())
    }

    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("wrenn-pg-").tempdir().unwrap();
        let user = geteuid().is_root().then(unprivileged);
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).unwrap();
            // Others get to the socket; the data is in a folder of its own, which is its user's alone.
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let (programs, databases) = (programs(), AtomicU32::new(0));
        let mut server = Self { running: None, programs, user, databases, options: Vec::new(), folder };
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
    ///
    /// # Panics
    /// If it does not.
    pub fn run(&mut self) {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--pdeathsig", "QUIT"]);
        if let Some((uid, gid)) = self.user {
            command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
        }
        command.arg("--").arg(self.programs.join("postgres")).arg("-D").arg(self.data());
        command.arg("-k").arg(self.folder.path());
        command.args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"]);
        command.args(self.options.iter().flat_map(|option| ["-c", option]));
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
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&mut self) {
        kill_process(self.pid(), Signal::INT).unwrap();
        ended(self.running.as_mut().unwrap());
        self.running = None;
    }

    /// Starts it again, reached over TLS as well: with this certificate and its key, as PEM. Answers its port on loopback.
    ///
    /// # Panics
    /// If it does not end, or does not come up again.
    pub fn serve_tls(&mut self, cert: &str, key: &str) -> u16 {
        self.stop();
        // It is ours as long as nobody else takes it, which is short.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (cert, key) = (self.put("server.pem", cert), self.put("server.key", key));
        self.options = vec![
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", cert.display()),
            format!("ssl_key_file={}", key.display()),
        ];
        self.run();
        port
    }

    /// A file that is its user's alone.
    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        if let Some((uid, gid)) = self.user {
            chown(&path, Some(uid), Some(gid)).unwrap();
        }
        path
    }

    /// To it and all of its processes.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal_all(&self, signal: Signal) {
        let pid = self.pid();
        let number = pid.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap();
        for child in children.split_whitespace() {
            // One that ended meanwhile needs no signal.
            kill_process(Pid::from_raw(child.parse().unwrap()).unwrap(), signal).ok();
        }
        kill_process(pid, signal).unwrap();
    }

    /// Where a database of it is, whether or not it is there.
    pub fn url(&self, database: &str) -> String {
        let socket = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://wrenn@{socket}/{database}")
    }

    /// Where an empty database is that nobody else has.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new_database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut createdb = Command::new(self.programs.join("createdb"));
        createdb.arg("-h").arg(self.folder.path()).args(["-U", "wrenn", &name]).env_clear().stdin(Stdio::null());
        assert!(ended(&mut createdb.spawn().unwrap()).success(), "createdb failed");
        self.url(&name)
    }
}

impl Drop for Postgres {
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

fn ended(child: &mut Child) -> ExitStatus {
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
