//! A client's way to its agent: a connection over it is made for the calls, for each watch and for each tunnel.

use std::fmt;
use std::io;
use std::path::PathBuf;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::limits;
use super::link::{Carries, Link, tune, tune_for_calls};
use super::tls::{ClientTls, TlsAddress, explained};

/// Where the agent is, and how one gets there.
#[derive(Clone)]
pub(super) enum Way {
    /// On this host.
    Socket(PathBuf),
    /// On any host.
    Tls(TlsAddress, ClientTls),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tls(address, _) => address.fmt(f),
        }
    }
}

impl Way {
    /// A connection. Over TLS the agent has shown who it is, but has not said yet whether it lets us in.
    pub async fn connect(&self, carries: Carries) -> io::Result<Link> {
        let connected = timeout(limits::CONNECT_LIMIT, async {
            match self {
                Self::Socket(path) => Ok(Link::Socket(UnixStream::connect(path).await?)),
                Self::Tls(address, tls) => over_tls(address, tls, carries).await,
            }
        });
        connected.await.unwrap_or_else(|_elapsed| {
            let limit = limits::CONNECT_LIMIT.as_secs();
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("{self} does not take a connection within {limit} s")))
        })
    }
}

async fn over_tls(address: &TlsAddress, tls: &ClientTls, carries: Carries) -> io::Result<Link> {
    let because = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    let stream = TcpStream::connect((address.host(), address.port)).await.map_err(because)?;
    tune(&stream)?;
    match carries {
        Carries::Calls => tune_for_calls(&stream)?,
        Carries::Tunnel => {}
    }
    let connector = TlsConnector::from(tls.config(carries));
    let stream = connector.connect(address.name.clone(), stream).await.map_err(explained).map_err(because)?;
    if stream.get_ref().1.alpn_protocol() != Some(carries.alpn()) {
        return Err(because(io::Error::other("what listens there is no agent: it does not speak its protocol")));
    }
    Ok(Link::Tls(Box::new(stream.into())))
}
