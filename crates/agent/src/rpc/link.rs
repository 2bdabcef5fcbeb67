//! One connection between a client and its agent, of either kind and at either end; and what a TCP connection is told so that
//! a dead peer is noticed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use super::limits;
use super::tls::explained;

/// A connection whose other end has been let in.
pub(super) enum Link {
    /// Of this host.
    Socket(UnixStream),
    /// Of whoever has a certificate.
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a connection carries. This is also what it says of itself in TLS (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    /// Calls, over HTTP/2.
    Calls,
    /// One tunnel, over HTTP/1.1.
    Tunnel,
}

impl Carries {
    pub const ALL: [Self; 2] = [Self::Calls, Self::Tunnel];

    /// Its name in TLS.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Calls => b"h2",
            Self::Tunnel => b"http/1.1",
        }
    }
}

/// Small messages leave at once, and a peer that is silent is asked whether it is there.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, limits::KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepintvl(stream, limits::PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, limits::PROBES_MAX)?;
    Ok(())
}

/// As [`tune`], also for what is under way: the kernel does not ask while it waits for a receipt. Not for a tunnel: its reader
/// may rest for as long as it likes, which the kernel would count as well.
pub(super) fn tune_for_calls(stream: &TcpStream) -> io::Result<()> {
    let millis = u32::try_from(limits::RECEIPT_LIMIT.as_millis()).expect("half a minute");
    Ok(sockopt::set_tcp_user_timeout(stream, millis)?)
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_fd(),
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_read(cx, buf),
            // Whether this side was let in is told with the first answer.
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf).map_err(explained),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
