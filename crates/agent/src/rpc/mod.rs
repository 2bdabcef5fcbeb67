//! The wire to the agent: its interface for other processes, over a Unix socket for those of its host, over TLS for others.
//!
//! ```text
//!   Remote ── Connect RPC over HTTP/2 ────────────┐       ┌─ agent.sock ─┐
//!     │                                           ├─ Way ─┤              ├─ Door ─► serve ─► dyn HostAgent
//!     └ dial ── HTTP/1.1 Upgrade, then raw bytes ─┘       └─ TLS 1.3 ────┘   │         └ each call that changes something
//!                                                                            │           is a task of its own
//!                             only root and the agent's own user get in; over TLS only who has a certificate of our CA
//! ```
//!
//! Both carry the same: nothing beyond a `Link` knows which of them it came through.
//!
//! A call outlives its client: what was begun is finished. The one exception is a sandbox that was asked for as bound:
//! it is held by the stream of the call that made it, and goes with it. Errors keep their code and their text on the way.
//!
//! The wire's types are generated from `proto/hostagent`; nobody outside of this module sees them.

mod door;
mod limits;
mod link;
mod remote;
mod server;
mod service;
mod stream;
mod tls;
mod tunnel;
mod way;
mod wire;

#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

pub use remote::Remote;
pub use server::{serve, serve_for_user, serve_tls};
pub use tls::{
    ClientTls, ServerTls, TlsAddress, TlsAddressError, TlsError, TlsFiles, TlsHandover, TlsIdentity, TlsProblem,
};

/// Why the agent's socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent serves this instance.
    #[error("another agent already listens on {path}; there is one for each WRENN_DIR")]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The host refused.
    #[error("cannot {step} the agent's socket {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// There is an agent, and it does not take connections.
    #[error("the agent behind {path} does not take a connection within {} s; is it stuck?", limits::CONNECT_LIMIT.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
}

fn socket_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { step, path, source }
}

/// Makes the agent's socket, mode 0600, in place of one that a killed agent left behind. Its folder must be private: between
/// the socket's birth and its mode others could open it. The caller holds the instance's agent lock.
pub async fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    if reach(path).await?.is_some() {
        return Err(SocketError::Taken { path: path.to_owned() });
    }
    match std::fs::remove_file(path) {
        Ok(()) => tracing::debug!(path = %path.display(), "removed the socket of an agent that was killed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(socket_error("remove", path)(error)),
    }
    let listener = UnixListener::bind(path).map_err(socket_error("make", path))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(socket_error("set the mode of", path))?;
    Ok(listener)
}

/// As [`listen`], for processes of the user `uid`, who owns the folder.
pub async fn listen_for_user(path: &Path, uid: u32) -> Result<UnixListener, SocketError> {
    let listener = listen(path).await?;
    std::os::unix::fs::chown(path, Some(uid), Some(uid)).map_err(socket_error("set the owner of", path))?;
    Ok(listener)
}

/// The agent that listens on `socket`; `None` when nobody does.
pub async fn connect(socket: &Path) -> Result<Option<Remote>, SocketError> {
    Ok(reach(socket).await?.map(|_there| Remote::at(socket)))
}

/// Ready when the agent ends, or is gone already. Cancel safe.
async fn ends(ending: &mut watch::Receiver<bool>) {
    drop(ending.wait_for(|ending| *ending).await);
}

/// A connection, or `None` when nobody listens.
async fn reach(path: &Path) -> Result<Option<UnixStream>, SocketError> {
    match timeout(limits::CONNECT_LIMIT, UnixStream::connect(path)).await {
        Err(_elapsed) => Err(SocketError::Silent { path: path.to_owned() }),
        Ok(Ok(stream)) => Ok(Some(stream)),
        Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Ok(Err(error)) => Err(socket_error("connect to", path)(error)),
    }
}
