//! Memory on demand: serves a restored VM's memory page by page, from files that nobody writes.
//!
//! ```text
//!   Listening ─(the VMM connects)─► Greeting ─(its addresses, its userfaultfd)─► Serving ─(it has ended)─► Over
//!                                                                                  │
//!        a fault ─► the block around it ─► a file's bytes, or zero ────────────────┤ noted in order, on first use
//!        the working set of the first use ─► the same, before it is asked for ─────┤
//!        memory that is given back ─► zero from now on ────────────────────────────┘
//! ```
//!
//! A page is filled from the files once at most. From then on, and once it was given back, it is *settled*: should a thread
//! wait for it, it is zero, or there already because two threads had waited. In which order removals and faults are heard
//! makes no difference then.
//!
//! All of it happens in the shim's one loop: a turn serves what waits, then a slice of what is served ahead. Reading blocks,
//! for one block at a time. A page that cannot be served is the end of the VM, which else would wait for it for ever; the
//! exit record says why.

mod greeting;
mod layers;
mod server;
mod settled;
mod working_set;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use wrenn_proto::shim::pages::PagesError;
use wrenn_proto::shim::{self, Credentials};
use wrenn_sys::fds::Inherited;

use crate::setup::{SetupError, Socket};
use greeting::Greeting;
use layers::Layers;
use server::{Served, Server};
use working_set::WorkingSet;

/// Why a page cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A file of the memory cannot be read.
    #[error("cannot read {path} at byte {offset}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the memory is shorter than it was.
    #[error("{path} was cut short: it has {found} bytes, and at least {wanted} are needed", path = path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// The end of what was wanted of it.
        wanted: u64,
    },
    /// The VMM did not say what is to be served.
    #[error("the VMM does not say which memory is to be served")]
    Greeting(#[source] io::Error),
    /// The VMM said something else.
    #[error("what the VMM says of its memory is not understood")]
    Json(#[from] serde_json::Error),
    /// What it said cannot be.
    #[error("what the VMM says of its memory cannot be: {0}")]
    Mappings(String),
    /// The kernel told of something that is none of the VM's memory.
    #[error("the kernel tells of {0}, which nobody asked for")]
    Stray(String),
    /// The kernel does not take pages.
    #[error("the kernel refuses to {what} page {page}")]
    Refused {
        /// What it was asked.
        what: &'static str,
        /// Which page, or the first of them.
        page: u32,
        /// What it said.
        source: io::Error,
    },
    /// The kernel does not tell of faults.
    #[error("cannot learn which pages are wanted")]
    Events(#[source] io::Error),
}

/// What the memory of one VM is served with.
#[derive(Debug)]
struct Memory {
    layers: Layers,
    working_set: WorkingSet,
}

/// The pager of one VM.
#[derive(Debug)]
pub struct Pager(State);

#[derive(Debug)]
enum State {
    Listening { socket: Socket, memory: Memory },
    Greeting { stream: UnixStream, memory: Memory },
    Serving(Box<Server>),
    Over,
}

impl Pager {
    /// Listens for the VMM that runs as `user`. Damage that is seen already is refused before anything is started.
    pub fn set_up(
        spec: &shim::Pager,
        user: Option<&Credentials>,
        inherited: &mut Inherited,
    ) -> Result<Self, SetupError> {
        let mut take = |number| inherited.take(number).ok_or(SetupError::Descriptor { number });
        let files = spec.file_fds.iter().map(|number| take(*number)).collect::<Result<Vec<_>, _>>()?;
        let layers = Layers::new(take(spec.table_fd)?.into(), files).map_err(SetupError::Pages)?;
        let working_set = match spec.working_set_fd {
            Some(number) => WorkingSet::open(take(number)?.into(), layers.table()),
            None => WorkingSet::Unwanted,
        };
        let socket = Socket::bind(&spec.socket)?;
        if let Some(Credentials { uid, gid, .. }) = user {
            let given = std::os::unix::fs::chown(&spec.socket, Some(*uid), Some(*gid));
            given.map_err(|source| SetupError::Socket { path: spec.socket.clone(), source })?;
        }
        Ok(Self(State::Listening { socket, memory: Memory { layers, working_set } }))
    }

    /// What to wait for; `None` once it is over.
    pub fn handle(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            State::Listening { socket, .. } => Some(socket.listener.as_fd()),
            State::Greeting { stream, .. } => Some(stream.as_fd()),
            State::Serving(server) => Some(server.handle()),
            State::Over => None,
        }
    }

    /// When it has something to do without being asked; not after `now` if that is now.
    pub fn wanted_at(&self, now: Instant) -> Option<Instant> {
        match &self.0 {
            State::Serving(server) => server.wanted_at(now),
            State::Listening { .. } | State::Greeting { .. } | State::Over => None,
        }
    }

    /// Does what is to be done, as far as that goes within a turn. After an error there is nothing left but to end the VM.
    pub fn serve(&mut self, now: Instant) -> Result<(), PagerError> {
        self.0 = match std::mem::replace(&mut self.0, State::Over) {
            State::Listening { socket, memory } => match socket.listener.accept() {
                // The socket is gone with this: nobody else is served.
                Ok((stream, _)) => greet(stream, memory)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => State::Listening { socket, memory },
                Err(error) => return Err(PagerError::Greeting(error)),
            },
            State::Greeting { stream, memory } => greet(stream, memory)?,
            State::Serving(mut server) => match server.serve(now)? {
                Served::GoesOn => State::Serving(server),
                Served::VmmEnded => {
                    server.finish();
                    State::Over
                }
            },
            State::Over => State::Over,
        };
        Ok(())
    }

    /// The VMM has ended: what was learned is kept, everything else let go.
    pub fn finish(&mut self) {
        if let State::Serving(server) = std::mem::replace(&mut self.0, State::Over) {
            server.finish();
        }
    }
}

fn greet(stream: UnixStream, memory: Memory) -> Result<State, PagerError> {
    stream.set_nonblocking(true).map_err(PagerError::Greeting)?;
    match Greeting::receive(&stream, memory.layers.table().pages())? {
        Some(greeting) => Ok(State::Serving(Box::new(Server::new(greeting, memory)))),
        None => Ok(State::Greeting { stream, memory }),
    }
}

/// Why there is no memory to serve.
#[derive(Debug, thiserror::Error)]
#[error("the table of the memory's pages cannot be used")]
pub struct NoPages(#[from] PagesError);

#[cfg(test)]
mod tests;
