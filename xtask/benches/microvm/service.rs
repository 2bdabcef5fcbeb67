//! `wrenn serve` as a process under measurement: an agent like any other, and beside it the server with its REST API.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wrenn_agent::host_agent::View;

use crate::agent::{ANSWER_LIMIT, ASK_EVERY, Agent, Started};
use crate::http::Http;
use crate::program::{children, pss, rss, wrenn_output};
use crate::setting::Setting;

/// What it says when requests get in.
const SERVING: &str = "serving on http://";
/// No key is to be refused for its haste.
const RATE: &str = "1000000";

/// A service that answers. It is to be [ended](Service::end).
pub struct Service {
    /// Its agent.
    pub agent: Agent,
    address: String,
    key: Key,
}

/// A key of its own, which is revoked in the end.
struct Key {
    id: String,
    secret: String,
}

impl Service {
    /// Starts one; and how long that took, until it says that it is ready.
    pub async fn start(setting: &Setting) -> Result<(Self, Duration)> {
        let mut agent = Agent::spawn(setting, &["serve", "--listen", "127.0.0.1:0", "--rate", RATE])?;
        match Self::ready(&mut agent).await {
            Ok((address, took)) => {
                let agent = agent.answered(setting).await?;
                let key = Key::make(setting).context("cannot make a key")?;
                Ok((Self { agent, address, key }, took))
            }
            Err(error) => Err(error.context(agent.words())),
        }
    }

    /// Its address, and how long after its start it said that it is ready.
    async fn ready(agent: &mut Started) -> Result<(String, Duration)> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            ensure!(!agent.has_ended()?, "the service ended early");
            ensure!(Instant::now() < deadline, "the service is not ready within {ANSWER_LIMIT:?}");
            if let Some(address) = address(&agent.words()) {
                // Refused until the server knows what the agent has.
                if Http::over(TcpStream::connect(&address)?, &[])?.get("/healthz").is_ok() {
                    return Ok((address, agent.since()));
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// A connection to it, with its key.
    pub fn http(&self) -> Result<Http> {
        let stream = TcpStream::connect(&self.address).context("cannot reach the server")?;
        Http::over(stream, &[("x-api-key", &self.key.secret)])
    }

    /// The server's own process.
    pub fn server_pid(&self) -> Result<u32> {
        let is_server = |pid: &u32| {
            // One that has ended meanwhile has none.
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("\0server\0")
        };
        children(self.agent.pid())?.into_iter().find(is_server).context("the service has no server")
    }

    /// Memory that agent and server have resident now, in bytes.
    pub fn rss(&self) -> Result<(u64, u64)> {
        Ok((self.agent.rss()?, rss(self.server_pid()?)?))
    }

    /// The same of both, in bytes, with what others have too counted in parts.
    pub fn pss(&self) -> Result<u64> {
        Ok(pss(self.agent.pid())? + pss(self.server_pid()?)?)
    }

    /// A new sandbox, made over REST, and what the agent says of it.
    pub async fn create(&self, setting: &Setting) -> Result<View> {
        let wanted = json!({ "template": crate::setting::TEMPLATE, "metadata": Agent::label() });
        let made: Value = serde_json::from_slice(&self.http()?.ask("POST", "/v1/sandboxes", &wanted.to_string())?)?;
        let id = made["sandbox"]["id"].as_str().context("a new sandbox without an id")?.to_owned();
        let views = self.agent.sandboxes().await?;
        let view = views.into_iter().find(|view| view.id.as_str() == id);
        view.with_context(|| format!("{} does not have {id}", setting.data.display()))
    }

    /// Removes its sandboxes and its key, and ends it in order. What was `taken` before counts more than how this went.
    pub async fn end<T>(self, taken: Result<T>) -> Result<T> {
        let revoked = self.revoke();
        self.agent.end(taken.and_then(|taken| revoked.map(|()| taken))).await
    }

    /// Ends it in order; its sandboxes stay as they are.
    pub fn leave(self) -> Result<()> {
        self.revoke()?;
        self.agent.leave()
    }

    fn revoke(&self) -> Result<()> {
        self.http()?.ask("DELETE", &format!("/v1/keys/{}", self.key.id), "").context("cannot revoke the key")?;
        Ok(())
    }
}

/// Where it says that it serves.
fn address(words: &str) -> Option<String> {
    let rest = words.split_once(SERVING)?.1;
    // A line that is not whole yet ends with the text.
    rest.split_once(' ').map(|(address, _)| address.to_owned())
}

impl Key {
    fn make(setting: &Setting) -> Result<Self> {
        let words = ["key", "create", "--name", "bench", "--scope", "admin", "--json"];
        let made: Value = serde_json::from_str(&wrenn_output(setting, &words)?)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a key of an unknown shape");
        Ok(Self { id: text(&made["id"])?, secret: text(&made["secret"])? })
    }
}
