//! The routes that are WebSockets.

use super::Client;
use crate::error::ClientError;
use crate::socket::{self, CommandStream, Tunnel};
use crate::types::{StreamRequest, TerminalSize};

/// A terminal as somebody asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TerminalRequest {
    /// Its size.
    pub size: TerminalSize,
    /// Whose it is; the sandbox's default if `None`.
    pub user: Option<String>,
    /// Where its shell begins; the user's home if `None`.
    pub workdir: Option<String>,
}

impl Client {
    /// Starts a command, and stays with it.
    pub async fn exec_stream(&self, id: &str, request: &StreamRequest) -> Result<CommandStream, ClientError> {
        let socket = socket::open(self.get(&["v1", "sandboxes", id, "exec", "stream"])?).await?;
        CommandStream::begin(socket, request).await
    }

    /// Comes back to a command: its output from `offset` on, or what it writes from now on.
    pub async fn attach(&self, id: &str, pid: u32, offset: Option<u64>) -> Result<CommandStream, ClientError> {
        let call = self.get(&["v1", "sandboxes", id, "exec", &pid.to_string(), "stream"])?;
        Ok(CommandStream::of(socket::open(call.query_if("offset", offset)).await?))
    }

    /// A login shell on a terminal.
    pub async fn pty(&self, id: &str, terminal: &TerminalRequest) -> Result<CommandStream, ClientError> {
        let TerminalRequest { size, user, workdir } = terminal;
        let call = self.get(&["v1", "sandboxes", id, "pty"])?.query("cols", size.cols).query("rows", size.rows);
        let call = call.query_if("user", user.as_deref()).query_if("workdir", workdir.as_deref());
        Ok(CommandStream::of(socket::open(call).await?))
    }

    /// A connection to a TCP port of a guest.
    pub async fn tunnel(&self, id: &str, port: u16) -> Result<Tunnel, ClientError> {
        let call = self.get(&["v1", "sandboxes", id, "tunnel", &port.to_string()])?;
        Ok(Tunnel::of(socket::open(call).await?))
    }
}
