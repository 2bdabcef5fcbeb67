//! Connections to a guest, from inside its namespace.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};
use tokio::net::{TcpSocket, TcpStream};
use wrenn_sys::netns::NetNs;

use super::addresses::GUEST;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No socket can be made in the namespace.
    #[error("cannot open a socket in the sandbox's network namespace")]
    Socket(#[source] io::Error),
    /// The guest does not answer.
    #[error("the guest does not answer on port {port} within {} ms", limit.as_millis())]
    Timeout {
        /// The port.
        port: u16,
        /// How long it had.
        limit: Duration,
    },
    /// The guest refused, or the way there is broken.
    #[error("cannot connect to port {port} of the guest")]
    Refused {
        /// The port.
        port: u16,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Makes TCP connections to one guest. A socket lives in the namespace in which it was made, so only its making needs a
/// thread inside (about 50 µs); everything after is the caller's runtime's.
#[derive(Clone, Debug)]
pub struct Connector(Arc<NetNs>);

impl Connector {
    pub(super) fn new(netns: Arc<NetNs>) -> Self {
        Self(netns)
    }

    /// Connects to a TCP port of the guest within `limit`. Cancel safe.
    pub async fn connect(&self, port: u16, limit: Duration) -> Result<TcpStream, ConnectError> {
        let netns = Arc::clone(&self.0);
        let made = tokio::task::spawn_blocking(move || netns.run(tcp_socket).and_then(|socket| socket)).await;
        let socket = made.map_err(io::Error::other).and_then(|socket| socket).map_err(ConnectError::Socket)?;
        let socket = TcpSocket::from_std_stream(StdTcpStream::from(socket));
        match tokio::time::timeout(limit, socket.connect(SocketAddr::from((GUEST, port)))).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(ConnectError::Refused { port, source }),
            Err(_elapsed) => Err(ConnectError::Timeout { port, limit }),
        }
    }
}

fn tcp_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}
