//! A connection to a guest that ends with its VM, not some time later.
//!
//! A VM that was paused takes its end of a connection along. Nobody would tell our end: it would wait for an answer for as long
//! as it likes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use wrenn_engine::network::ConnectError;

use super::Live;
use crate::host_agent::{AgentError, Code, Tunnel};

/// Connects to a port of the guest.
pub(super) async fn open(live: Live, port: u16, limit: Duration) -> Result<Tunnel, AgentError> {
    let connected = live.connector.connect(port, limit).await;
    let stream = connected.map_err(|error: ConnectError| AgentError::of(Code::Failed, &error))?;
    let mut cut = live.cut;
    // An error says that the VM is no more, which is all there is to be said.
    let cut = Box::pin(async move { drop(cut.changed().await) });
    Ok(Box::new(Mortal { stream, cut }))
}

struct Mortal {
    stream: TcpStream,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Mortal {
    fn is_cut(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => {
                // It is asked again, and must not be polled once it has ended.
                self.cut = Box::pin(std::future::ready(()));
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the sandbox runs no more"))
            }
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Mortal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_cut(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_cut(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
