//! The same tests over each transport.

use std::io;
use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::net::TcpListener;

use super::certificates::Ca;
use super::{Door, Peers, listen, socket};
use crate::rpc::way::Way;
use crate::rpc::{ClientTls, ServerTls, TlsAddress};

/// Which transport.
#[derive(Clone, Copy, Debug)]
pub(super) enum Via {
    Socket,
    Tls,
}

impl Via {
    /// That a tunnel was not ended by its other end: TLS tells the two apart.
    pub fn assert_cut_off(self, read: io::Result<usize>) {
        match self {
            Self::Socket => assert_eq!(read.unwrap(), 0),
            Self::Tls => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof),
        }
    }
}

/// Makes two tests of each function: `over_socket::NAME` and `over_tls::NAME`. One that is left out is never used, which the
/// compiler tells.
macro_rules! over_each_transport {
    ($($name:ident),* $(,)?) => {
        mod over_socket {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Via::Socket).await;
            })*
        }
        mod over_tls {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Via::Tls).await;
            })*
        }
    };
}
pub(super) use over_each_transport;

/// Where an agent can be served, one after the other.
pub(super) enum Place {
    Socket(TempDir),
    Tls { at: SocketAddr, server: ServerTls, client: ClientTls },
}

impl Place {
    pub async fn new(via: Via) -> Self {
        match via {
            Via::Socket => Self::Socket(tempfile::tempdir().unwrap()),
            Via::Tls => {
                let ca = Ca::new();
                let (server, client) = (ca.server("localhost"), ca.client());
                // The port is ours as long as nobody else takes it, which is short.
                let at = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
                Self::Tls { at, server, client }
            }
        }
    }

    pub async fn door(&self) -> Door {
        match self {
            Self::Socket(dir) => Door::Socket(listen(&socket(dir)).await.unwrap(), Peers::of_this_process()),
            Self::Tls { at, server, .. } => Door::Tls(TcpListener::bind(at).await.unwrap(), server.clone()),
        }
    }

    pub fn way(&self) -> Way {
        match self {
            Self::Socket(dir) => Way::Socket(socket(dir)),
            Self::Tls { at, client, .. } => Way::Tls(address("localhost", at.port()), client.clone()),
        }
    }
}

pub(super) fn address(host: &str, port: u16) -> TlsAddress {
    format!("{host}:{port}").parse().unwrap()
}
