//! `wrenn port-forward`: ports of a sandbox, behind ports of this host that only this host reaches.
//!
//! Each connection that comes in is a tunnel of its own. One that cannot be made is told of, and closes the connection; the
//! others go on, and so does the listening: a sandbox that was paused may be resumed.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use wrenn_agent::host_agent::HostAgent;
use wrenn_engine::names::SandboxId;

use crate::cli::{ForwardArgs, PortPair};
use crate::execution::Signals;
use crate::place::Place;
use crate::sandbox::{Link, block_on, usable};

/// How long a connection to the guest may take.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// Connections at once: far more than a browser makes, and few enough for an ordinary limit of open files.
const CONNECTIONS_MAX: usize = 256;
/// The pause after a connection could not be taken; the usual reason is that no descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Passes connections on until a signal.
pub fn run(place: &Place, args: ForwardArgs) -> Result<ExitCode> {
    block_on(async {
        let mut signals = Signals::new()?;
        let link = Link::require(place).await?;
        usable(&link, &args.id).await?;
        let forward =
            Forward { agent: link.agent_arc(), id: args.id, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
        let mut listening = JoinSet::new();
        for listener in listen(&args.ports).await? {
            let (listener, pair) = listener;
            println!("127.0.0.1:{} -> {}:{}", pair.local, forward.id, pair.remote);
            listening.spawn(forward.clone().accept(listener, pair.remote));
        }
        // Whoever waits for the line may read through a pipe.
        std::io::stdout().flush()?;
        signals.next().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// All of them, or none: each with the port it really has.
async fn listen(ports: &[PortPair]) -> Result<Vec<(TcpListener, PortPair)>> {
    let mut listeners = Vec::new();
    for pair in ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, pair.local)).await.with_context(|| {
            format!("cannot listen on port {0}; give another: `LOCAL:{1}`, or `0:{1}` for any", pair.local, pair.remote)
        })?;
        let local = listener.local_addr()?.port();
        listeners.push((listener, PortPair { local, ..*pair }));
    }
    Ok(listeners)
}

#[derive(Clone)]
struct Forward {
    agent: Arc<dyn HostAgent>,
    id: SandboxId,
    places: Arc<Semaphore>,
}

impl Forward {
    async fn accept(self, listener: TcpListener, port: u16) {
        let mut carried = JoinSet::new();
        loop {
            let place = Arc::clone(&self.places).acquire_owned().await;
            match listener.accept().await {
                Ok((client, _whoever)) => {
                    let forward = self.clone();
                    carried.spawn(async move {
                        forward.carry(client, port).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
            while carried.try_join_next().is_some() {}
        }
    }

    async fn carry(&self, mut client: TcpStream, port: u16) {
        let mut guest = match self.agent.dial(&self.id, port, DIAL_LIMIT).await {
            Ok(guest) => guest,
            Err(error) => {
                tracing::warn!("cannot reach port {port} of {}: {error}", self.id);
                return;
            }
        };
        if let Err(error) = copy_bidirectional(&mut client, &mut guest).await {
            tracing::debug!(%error, port, "a connection broke");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn listening_is_on_this_host_alone_and_for_all_or_none() {
        let pair = |local| PortPair { local, remote: 80 };
        let listeners = listen(&[pair(0), pair(0)]).await.unwrap();
        for (listener, pair) in &listeners {
            let address = listener.local_addr().unwrap();
            assert!(address.ip().is_loopback() && address.port() == pair.local && pair.local != 0);
        }
        let taken = listeners[0].1.local;
        let error = listen(&[pair(0), pair(taken)]).await.unwrap_err().to_string();
        assert!(error.contains(&taken.to_string()) && error.contains("0:80"), "{error}");
    }
}
