//! Writing to a process: to a pipe or a terminal, in the order of the calls.
//!
//! A write waits for the process to read. It ends with the process, and it is not taken back half-way: whoever calls
//! does so from a task that outlives its client.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, Semaphore, watch};

use super::pty::{self, Size};
use crate::limits;

/// What kind of input bytes are meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Standard input, a pipe.
    Stdin,
    /// A terminal.
    Terminal,
}

/// Why input did not reach the process.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// Bytes for a terminal, and the process has a pipe; or the other way round.
    #[error("the process has {has}, not {wanted}")]
    Kind {
        /// What it has.
        has: &'static str,
        /// What the bytes were meant for.
        wanted: &'static str,
    },
    /// It was started without, or the input was closed by either side, or the process ended.
    #[error("the process's input is closed")]
    Closed,
    /// A terminal cannot be closed.
    #[error("a terminal's input cannot be closed; send 0x04 (end of transmission) instead")]
    TerminalClose,
    /// There is no terminal whose size could be changed.
    #[error("the process has no terminal")]
    NoTerminal,
    /// Too much is waiting already.
    #[error(
        "the process does not read its input: {} calls or {} bytes are waiting",
        limits::WRITERS_MAX,
        limits::INPUT_BYTES_MAX
    )]
    Full,
    /// The kernel refused.
    #[error("cannot {verb} the process's input")]
    System {
        /// What was tried.
        verb: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Our end of a process's input.
#[derive(Debug)]
pub struct Input {
    kind: Kind,
    /// None is closed.
    fd: std::sync::Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    /// The queue of writers.
    turn: Mutex<()>,
    writers: Semaphore,
    /// Becomes true when the process has ended.
    ended: watch::Sender<bool>,
}

impl Input {
    /// Input through a descriptor that does not block; none is no input at all.
    pub fn new(kind: Kind, fd: Option<Arc<AsyncFd<OwnedFd>>>) -> Self {
        Self {
            kind,
            fd: std::sync::Mutex::new(fd),
            turn: Mutex::new(()),
            writers: Semaphore::new(limits::WRITERS_MAX),
            ended: watch::Sender::new(false),
        }
    }

    /// Writes all of it. `budget` counts the bytes that wait in all processes.
    pub async fn write(&self, wanted: Kind, bytes: &[u8], budget: &Semaphore) -> Result<(), InputError> {
        self.expect(wanted)?;
        let _place = self.writers.try_acquire().map_err(|_| InputError::Full)?;
        let size = u32::try_from(bytes.len()).map_err(|_| InputError::Full)?;
        let _share = budget.try_acquire_many(size).map_err(|_| InputError::Full)?;
        let mut ended = self.ended.subscribe();
        tokio::select! {
            biased;
            done = self.write_all(bytes) => done,
            _ = ended.wait_for(|ended| *ended) => Err(InputError::Closed),
        }
    }

    async fn write_all(&self, bytes: &[u8]) -> Result<(), InputError> {
        let _turn = self.turn.lock().await;
        let Some(fd) = self.fd() else { return Err(InputError::Closed) };
        let mut rest = bytes;
        while !rest.is_empty() {
            match fd.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?)).await {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A pipe that nobody reads, or a terminal that nobody holds.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe || is_eio(&error) => {
                    self.set_closed();
                    return Err(InputError::Closed);
                }
                Err(source) => return Err(InputError::System { verb: "write to", source }),
            }
        }
        Ok(())
    }

    /// Closes a pipe after everything that waits was written; the process reads end-of-file. Closing twice is fine.
    pub async fn close(&self) -> Result<(), InputError> {
        match self.kind {
            Kind::Stdin => {
                let mut ended = self.ended.subscribe();
                tokio::select! {
                    _turn = self.turn.lock() => {}
                    _ = ended.wait_for(|ended| *ended) => {}
                }
                self.set_closed();
                Ok(())
            }
            Kind::Terminal => Err(InputError::TerminalClose),
        }
    }

    /// Changes the terminal's size. Does not wait for writers.
    pub fn resize(&self, size: Size) -> Result<(), InputError> {
        match (self.kind, self.fd()) {
            (Kind::Terminal, Some(master)) => pty::resize(master.get_ref(), size)
                .map_err(|source| InputError::System { verb: "resize the terminal of", source }),
            (Kind::Terminal, None) => Err(InputError::Closed),
            (Kind::Stdin, _) => Err(InputError::NoTerminal),
        }
    }

    /// Ends every waiting write and closes: the process has ended.
    pub fn end(&self) {
        self.set_closed();
        self.ended.send_replace(true);
    }

    fn fd(&self) -> Option<Arc<AsyncFd<OwnedFd>>> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_closed(&self) {
        *self.fd.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn expect(&self, wanted: Kind) -> Result<(), InputError> {
        if self.kind == wanted {
            return Ok(());
        }
        let name = |kind| match kind {
            Kind::Stdin => "standard input",
            Kind::Terminal => "a terminal",
        };
        Err(InputError::Kind { has: name(self.kind), wanted: name(wanted) })
    }
}

fn is_eio(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
