//! A list of 1,000 sandboxes over REST. No machine here has room for so many: the server is the real one, in this process on
//! threads of its own, and its agent a fake, which is never asked for a list.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wrenn_agent::fake::Fake;
use wrenn_client::types::{NewKeyRequest, Scope};
use wrenn_server::app::{self, Running};
use wrenn_server::config::Config;
use wrenn_server::db::{Database, DatabaseUrl};
use wrenn_server::{http, new_key, route};

use crate::Round;
use crate::http::Http;
use crate::setting::Setting;
use crate::warm::median_ms;

/// How many sandboxes.
const SANDBOXES: usize = 1000;
/// How often they are listed.
const LISTS: usize = 50;

/// Values of one round.
pub fn take(_setting: &Setting, round: &mut Round) -> Result<()> {
    round.doing("start a server with a fake agent");
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let url = format!("sqlite:{}", folder.path().join("server.db").display()).parse()?;
    let server = runtime.block_on(Server::start(url))?;
    let taken = lists(&server, round);
    runtime.block_on(server.end()).and(taken)
}

fn lists(server: &Server, round: &mut Round) -> Result<()> {
    round.doing("create 1,000 sandboxes of a fake");
    let mut http = Http::over(TcpStream::connect(server.address)?, &[("x-api-key", &server.key)])?;
    for _ in 0..SANDBOXES {
        http.ask("POST", "/v1/sandboxes", "{}")?;
    }
    round.doing("list them");
    let path = format!("/v1/sandboxes?limit={SANDBOXES}");
    let mut times = Vec::new();
    for _ in 0..LISTS {
        let begun = Instant::now();
        let answer = http.get(&path)?;
        times.push(begun.elapsed());
        let answer: Value = serde_json::from_slice(&answer)?;
        let listed = answer["items"].as_array().context("a list of an unknown shape")?.len();
        ensure!(listed == SANDBOXES, "{listed} sandboxes were listed");
    }
    round.value("list-1000", "ms", median_ms(times));
    Ok(())
}

/// A server that runs on threads of this process.
struct Server {
    address: SocketAddr,
    key: String,
    running: Running,
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(url: DatabaseUrl) -> Result<Self> {
        let db = Database::open(&url).await?;
        let wanted = NewKeyRequest { scope: Scope::Admin, ..NewKeyRequest::default() };
        let key = new_key::make(&db, wanted).await.map_err(|error| anyhow::anyhow!(error.body.message))?.secret;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let config = Config { rate: u32::MAX, ..Config::default() };
        let running = app::start(Arc::new(Fake::default()), db, config);
        running.app.world.synced().await;
        let (end, ended) = oneshot::channel::<()>();
        // A sender that is gone is an end as well.
        let task = tokio::spawn(http::serve(listener, route::router(&running.app), async { drop(ended.await) }));
        Ok(Self { address, key, running, end, task })
    }

    async fn end(self) -> Result<()> {
        drop(self.end);
        self.task.await?;
        self.running.finish().await;
        Ok(())
    }
}
