//! The agent's door: where clients come in, and who does.
//!
//! ```text
//!   Door ── accept ─► Knock ── admit ─► Link
//!    ├ Socket: processes of root and of one user          in a task of its own: nobody waits for another's handshake
//!    └ Tls: who has a certificate that the CA signed
//! ```

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::limits;
use super::link::{Carries, Link, tune, tune_for_calls};
use super::tls::ServerTls;

/// Where clients come in.
pub(super) enum Door {
    /// For processes of this host.
    Socket(UnixListener, Peers),
    /// For clients of any host.
    Tls(TcpListener, ServerTls),
}

impl Door {
    /// The next client, whoever it is. Cancel safe.
    pub async fn accept(&self) -> io::Result<Knock> {
        match self {
            Self::Socket(listener, peers) => Ok(Knock::Socket(listener.accept().await?.0, *peers)),
            Self::Tls(listener, tls) => {
                let (stream, from) = listener.accept().await?;
                Ok(Knock::Tls { stream, from, acceptor: TlsAcceptor::from(tls.0.clone()) })
            }
        }
    }

    /// Nobody comes in any more.
    pub fn close(self) {
        match self {
            Self::Socket(listener, _) => remove_socket(&listener),
            Self::Tls(listener, _) => drop(listener),
        }
    }
}

fn remove_socket(listener: &UnixListener) {
    let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(PathBuf::from));
    let Some(path) = path else { return };
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove the agent's socket"),
    }
}

/// A client that is not in yet.
pub(super) enum Knock {
    /// A process of this host.
    Socket(UnixStream, Peers),
    /// Anybody.
    Tls {
        /// The connection.
        stream: TcpStream,
        /// Where it comes from.
        from: SocketAddr,
        /// Who finds out who it is.
        acceptor: TlsAcceptor,
    },
}

impl Knock {
    /// The client's connection, if it may come in.
    pub async fn admit(self) -> Option<Link> {
        match self {
            Self::Socket(stream, peers) => peers.admit(&stream).then_some(Link::Socket(stream)),
            Self::Tls { stream, from, acceptor } => {
                let shaken = timeout(limits::HANDSHAKE_LIMIT, shake_hands(stream, acceptor)).await;
                let error = match shaken {
                    Ok(Ok(link)) => return Some(link),
                    Ok(Err(error)) => error,
                    Err(_elapsed) => io::ErrorKind::TimedOut.into(),
                };
                // Not a warning: who has no certificate could fill the log with them.
                tracing::info!(%from, %error, "refused a TLS client");
                None
            }
        }
    }
}

async fn shake_hands(stream: TcpStream, acceptor: TlsAcceptor) -> io::Result<Link> {
    tune(&stream)?;
    let stream = acceptor.accept(stream).await?;
    let (tcp, session) = stream.get_ref();
    if session.alpn_protocol() != Some(Carries::Tunnel.alpn()) {
        tune_for_calls(tcp)?;
    }
    Ok(Link::Tls(Box::new(stream.into())))
}

/// Those at the door. When there are too many, who has been there longest has to go: clients that begin a handshake and leave
/// it at that keep nobody out.
#[derive(Default)]
pub(super) struct Porch(VecDeque<oneshot::Sender<Infallible>>);

impl Porch {
    /// One more. What is returned is ready when it has to go, and is dropped once it is in.
    pub fn step_on(&mut self) -> oneshot::Receiver<Infallible> {
        self.0.retain(|waits| !waits.is_closed());
        if self.0.len() >= limits::HANDSHAKES_MAX {
            self.0.pop_front();
        }
        let (waits, has_to_go) = oneshot::channel();
        self.0.push_back(waits);
        has_to_go
    }
}

/// Whose processes get in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peers {
    /// The agent's own user, beside root.
    pub own_uid: u32,
    /// Root, but for tests.
    pub root_uid: u32,
}

impl Peers {
    pub fn of_this_process() -> Self {
        Self { own_uid: rustix::process::geteuid().as_raw(), root_uid: 0 }
    }

    fn admit(self, stream: &UnixStream) -> bool {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == self.own_uid || peer.uid() == self.root_uid => true,
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a process of another user");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "refused a process whose user the kernel does not tell");
                false
            }
        }
    }
}
