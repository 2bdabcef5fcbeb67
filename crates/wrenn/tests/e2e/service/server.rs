//! `wrenn serve` as a process of a test.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use wrenn_testworld::api::Api;

use crate::world::{LIMIT, World, eventually, finish, signal, text};

/// What the server says when requests get in.
const SERVING: &str = "wrenn: serving on ";
/// What it says before the first key.
const FIRST_KEY: &str = "wrenn: the first key, told this once: ";

/// An instance with a service from begin to end; a [`World`] in all else.
pub struct Service {
    world: World,
    /// What it is told beside where to listen.
    args: Vec<String>,
    child: Option<Child>,
    listen: String,
    /// The URL of its database, if it is not SQLite in the instance.
    database: Option<String>,
    /// Its first key.
    pub key: String,
}

impl Service {
    /// An empty instance that is served.
    pub fn begin() -> Self {
        Self::with(None)
    }

    /// The same, with this database.
    pub fn with(database: Option<String>) -> Self {
        Self::at("127.0.0.1:0".to_owned(), database)
    }

    /// The same, which listens there.
    pub fn at(listen: String, database: Option<String>) -> Self {
        Self::new(World::new(), Vec::new(), listen, database)
    }

    /// An empty instance that is served with these arguments.
    pub fn of(world: World, args: Vec<String>) -> Self {
        Self::new(world, args, "127.0.0.1:0".to_owned(), None)
    }

    fn new(world: World, args: Vec<String>, listen: String, database: Option<String>) -> Self {
        let mut service = Self { world, args, child: None, listen, database, key: String::new() };
        service.start();
        service.key = service.said(FIRST_KEY).expect("an empty database gets a first key");
        service
    }

    /// Starts it; answers when requests get in. It listens where it did the last time.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let already = self.words().matches(SERVING).count();
        let mut command = self.world.wrenn(&["-v", "serve", "--listen", &self.listen]);
        command.args(&self.args);
        if let Some(database) = &self.database {
            command.env("WRENN_DATABASE", database);
        }
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let begun = Instant::now();
        while self.words().matches(SERVING).count() == already {
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < LIMIT,
                "the service does not come up: {ended:?}\n{}",
                self.words()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child = Some(child);
        self.listen = self.url().trim_start_matches("http://").to_owned();
    }

    fn log(&self) -> PathBuf {
        self.world.beside().join("service.log")
    }

    /// All that it has said.
    pub fn words(&self) -> String {
        std::fs::read(self.log()).map(|bytes| text(&bytes)).unwrap_or_default()
    }

    /// What it said last after these words, up to a blank.
    fn said(&self, words: &str) -> Option<String> {
        let all = self.words();
        let rest = all.rsplit_once(words)?.1;
        Some(rest.split_whitespace().next()?.to_owned())
    }

    /// Where it is.
    pub fn url(&self) -> String {
        self.said(SERVING).expect("it has said where")
    }

    /// Its API, with the first key.
    pub async fn api(&self) -> Api {
        let api = self.api_as_it_is().await;
        api.until_ready().await;
        api
    }

    /// The same, also while the server lacks something.
    pub async fn api_as_it_is(&self) -> Api {
        Api::open(&self.url(), Some(&self.key)).await
    }

    /// The server's own process.
    pub fn server_pid(&self) -> u32 {
        let pids = self.server_pids();
        assert_eq!(pids.len(), 1, "one server: {pids:?}");
        pids[0]
    }

    fn server_pids(&self) -> Vec<u32> {
        self.world.pids(" server --parent ")
    }

    /// The agent's process, which has the server started.
    pub fn agent_pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Kills the agent's process, and with it the server's.
    pub fn kill(&mut self) {
        let child = self.child.take().expect("it runs");
        signal(child.id(), "KILL");
        finish(child);
        eventually("the server ends with its parent", || self.server_pids().is_empty());
    }

    /// Kills the server's process alone; answers when another one is there.
    pub fn kill_server(&self) {
        let killed = self.server_pid();
        signal(killed, "KILL");
        eventually("another server is started", || self.server_pids().iter().any(|pid| *pid != killed));
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        let child = self.child.take().expect("it runs");
        signal(child.id(), "TERM");
        let output = finish(child);
        assert!(output.status.success(), "{:?}\n{}", output.status, self.words());
    }

    /// Ends it in order; nothing of the instance may be left then.
    pub fn end(mut self) {
        self.stop();
        let left = self.world.left_behind_by_agent();
        assert!(left.is_empty(), "left behind: {left:#?}\n{}", self.words());
    }
}

impl std::ops::Deref for Service {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

/// Sees `work` through.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Waits until a condition holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    let begun = Instant::now();
    while !is().await {
        assert!(begun.elapsed() < LIMIT, "{what} did not come true within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
