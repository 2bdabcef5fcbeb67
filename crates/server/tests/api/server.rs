//! A server, and what tests do with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wrenn_agent::fake::Fake;
use wrenn_agent::host_agent::{AgentError, Code, HostAgent};
use wrenn_client::types::{NewKeyRequest, Scope};
use wrenn_server::app::{self, Running};
use wrenn_server::config::Config;
use wrenn_server::db::{Database, DatabaseUrl};
use wrenn_server::{http, new_key, route};
use wrenn_testworld::api::Api;

/// How long a test waits for what is to happen at once, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that runs.
pub struct Server {
    /// Its agent, if that is a fake in this process.
    pub agent: Arc<Fake>,
    /// Its API, with a key that may do everything.
    pub api: Api,
    /// Where it listens.
    pub address: SocketAddr,
    /// What there is of it.
    pub running: Running,
    folder: TempDir,
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    /// With nothing in it.
    pub async fn start() -> Self {
        Self::with(Fake::default()).await
    }

    /// With this agent.
    pub async fn with(agent: Fake) -> Self {
        Self::new(agent, |_config| {}).await
    }

    /// With this agent, and otherwise than usual.
    pub async fn new(agent: Fake, change: impl FnOnce(&mut Config)) -> Self {
        let agent = Arc::new(agent);
        Self::open(Arc::clone(&agent), agent, tempfile::tempdir().unwrap(), None, change).await
    }

    /// With an agent that is reached in this way.
    pub async fn over(agent: Arc<dyn HostAgent>) -> Self {
        Self::open(Arc::default(), agent, tempfile::tempdir().unwrap(), None, |_config| {}).await
    }

    async fn open(
        fake: Arc<Fake>,
        agent: Arc<dyn HostAgent>,
        folder: TempDir,
        secret: Option<String>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let url = database(&folder);
        let db = Database::open(&url).await.unwrap();
        let secret = match secret {
            Some(secret) => secret,
            None => first_key(&db).await,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // A test is faster than any client.
        let mut config = Config { rate: 1_000_000, ..Config::default() };
        change(&mut config);
        let running = app::start(agent, db, config);
        let router = route::router(&running.app);
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(http::serve(listener, router, async { drop(ended.await) }));
        let api = Api::open(&format!("http://{address}"), Some(&secret)).await;
        Self { agent: fake, api, address, running, folder, end, task }
    }

    /// Waits until it believes what it knows of the agent.
    pub async fn ready(self) -> Self {
        self.running.app.world.synced().await;
        self
    }

    /// Kills it, and starts it again with the same database and the same agent.
    pub async fn restart(self) -> Self {
        self.restart_after(|_agent| {}).await
    }

    /// The same, after this has happened while there was none.
    pub async fn restart_after(self, meanwhile: impl FnOnce(&Fake)) -> Self {
        let Self { agent, api, running, folder, task, .. } = self;
        task.abort();
        drop(task.await);
        drop(running);
        meanwhile(&agent);
        Self::open(Arc::clone(&agent), agent, folder, api.key, |_config| {}).await.ready().await
    }

    /// Ends it well.
    pub async fn finish(self) -> TempDir {
        let Self { running, folder, end, task, .. } = self;
        end.send(()).unwrap();
        task.await.unwrap();
        running.finish().await;
        folder
    }

    /// The database's file.
    pub fn database_file(&self) -> std::path::PathBuf {
        self.folder.path().join("server.db")
    }

    /// A new key, and the API with it.
    pub async fn key(&self, wanted: Value) -> (Value, Api) {
        let made = self.api.post("/v1/keys", wanted).await.ok();
        let api = self.api.with_key(made["secret"].as_str());
        (made["key"].clone(), api)
    }

    /// The API for somebody else.
    pub async fn tenant(&self, name: &str) -> Api {
        self.key(json!({"tenant": name})).await.1
    }

    /// What is asked of the agent fails.
    pub fn fail(&self, code: Code, message: &str) {
        let failure = AgentError { code, message: message.to_owned() };
        // More than one: the server measures sandboxes by the way.
        self.agent.failures.lock().unwrap().extend([failure.clone(), failure.clone(), failure]);
    }

    /// It fails no more.
    pub fn fail_no_more(&self) {
        self.agent.failures.lock().unwrap().clear();
    }

    /// Sends these bytes, and reads the answer to the end of its head.
    pub async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        within("an answer", head(&mut stream)).await
    }
}

/// Reads a head, or what there is before the connection ends.
pub async fn head(stream: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    let mut byte = [0];
    while !heard.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte).await {
            Ok(0) | Err(_) => break,
            Ok(_) => heard.extend_from_slice(&byte),
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

fn database(folder: &TempDir) -> DatabaseUrl {
    format!("sqlite:{}", folder.path().join("server.db").display()).parse().unwrap()
}

async fn first_key(db: &Database) -> String {
    let wanted = NewKeyRequest { name: "first".to_owned(), scope: Scope::Admin, ..NewKeyRequest::default() };
    new_key::make(db, wanted).await.unwrap().secret
}

/// What must happen soon.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_elapsed| panic!("{what} does not come"))
}

/// Waits until something is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    let waiting = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, waiting).await;
}

/// Makes a sandbox, and answers its id.
pub async fn sandbox(api: &Api) -> String {
    sandbox_as(api, json!({})).await
}

/// Makes such a sandbox, and answers its id.
pub async fn sandbox_as(api: &Api, wanted: Value) -> String {
    let made = api.post("/v1/sandboxes", wanted).await.ok();
    made["sandbox"]["id"].as_str().unwrap().to_owned()
}
