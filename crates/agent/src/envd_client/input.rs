//! The way to a process: what it reads, its terminal's size, signals.

use bytes::Bytes;
use wrenn_proto::envd::process::{
    CloseStdinRequest, PTY, ProcessInput, SendInputRequest, SendSignalRequest, Signal, UpdateRequest, process_input,
    pty,
};

use super::process::{Client, by_pid, refused, within};
use super::{EnvdClient, EnvdError};

/// What a terminal takes for the end of its input, at the beginning of a line.
const END_OF_TRANSMISSION: &[u8] = &[4];

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Of a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

impl TerminalSize {
    pub(super) fn to_wire(self) -> PTY {
        PTY { size: pty::Size { cols: self.cols.into(), rows: self.rows.into() }.into() }
    }
}

/// The way to a process's input and signals. Cheap to clone. A process has either a standard input ([`Input::write`],
/// [`Input::close`]) or a terminal ([`Input::type_in`], [`Input::type_end`], [`Input::resize`]); the guest refuses the other.
#[derive(Clone)]
pub struct Input {
    pid: u32,
    process: Client,
}

impl EnvdClient {
    /// The way to the process `pid`, whether or not somebody reads its output.
    pub fn input(&self, pid: u32) -> Input {
        Input::new(pid, self.process_client())
    }
}

impl Input {
    pub(super) fn new(pid: u32, process: Client) -> Self {
        Self { pid, process }
    }

    /// Writes to the command's standard input; answers when all of it is written.
    pub async fn write(&self, bytes: Bytes) -> Result<(), EnvdError> {
        self.send(process_input::Input::Stdin(bytes)).await
    }

    /// Closes the command's standard input: it reads end-of-file.
    pub async fn close(&self) -> Result<(), EnvdError> {
        let request = CloseStdinRequest { process: by_pid(self.pid).into() };
        within("Process/CloseStdin", self.process.close_stdin(request)).await.map(drop)
    }

    /// Types on the command's terminal; answers when the terminal has taken all of it.
    pub async fn type_in(&self, bytes: Bytes) -> Result<(), EnvdError> {
        self.send(process_input::Input::Pty(bytes)).await
    }

    /// Types the end of input, which a terminal has no other way to say: at the beginning of a line, and unless the command
    /// has set its terminal differently, it reads end-of-file.
    pub async fn type_end(&self) -> Result<(), EnvdError> {
        self.type_in(Bytes::from_static(END_OF_TRANSMISSION)).await
    }

    /// Changes the size of the command's terminal.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), EnvdError> {
        let request = UpdateRequest { process: by_pid(self.pid).into(), pty: size.to_wire().into() };
        within("Process/Update", self.process.update(request)).await.map(drop)
    }

    /// Asks the command and what it started to end.
    pub async fn terminate(&self) -> Result<(), EnvdError> {
        self.signal(Signal::SIGNAL_SIGTERM as i32).await
    }

    /// Kills the command and what it started.
    pub async fn kill(&self) -> Result<(), EnvdError> {
        self.signal(Signal::SIGNAL_SIGKILL as i32).await
    }

    /// Sends the signal of this Linux number, 1 to 31, to the command and what it started.
    pub async fn signal(&self, number: i32) -> Result<(), EnvdError> {
        let request = SendSignalRequest { process: by_pid(self.pid).into(), signal: number.into() };
        within("Process/SendSignal", self.process.send_signal(request)).await.map(drop)
    }

    async fn send(&self, input: process_input::Input) -> Result<(), EnvdError> {
        let input = ProcessInput { input: Some(input) };
        let request = SendInputRequest { process: by_pid(self.pid).into(), input: input.into() };
        // Without a limit: a command may take its time to read.
        self.process.send_input(request).await.map(drop).map_err(|error| refused("Process/SendInput", &error))
    }
}
