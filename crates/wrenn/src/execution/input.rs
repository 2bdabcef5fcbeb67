//! Passing our standard input on to a command.
//!
//! It is read on a plain thread: a read from a terminal cannot be cancelled, and the program must be able to end while one
//! is under way.

use std::io::Read;

use bytes::Bytes;
use rustix::fs::{FileType, fstat};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use wrenn_agent::envd_client::{EnvdError, Input};

use super::terminal_size;

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks read ahead of the command.
const CHUNKS_AHEAD: usize = 4;
/// The device number of /dev/null.
const NULL_DEVICE: (u32, u32) = (1, 3);

/// Whether there can be anything to read: not when it is closed or /dev/null.
pub fn has_any() -> bool {
    let Ok(stat) = fstat(std::io::stdin()) else { return false };
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    !(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && device == NULL_DEVICE)
}

/// What a command is given to read.
pub enum Source {
    /// Nothing, or nothing more.
    Nothing,
    /// Our standard input, on its own.
    Pipe(Reader),
    /// Our terminal: what is typed, and its size.
    Terminal {
        /// What is typed.
        typed: Reader,
        /// Told when the size has changed.
        resized: Signal,
    },
}

/// Our standard input, read ahead.
pub struct Reader {
    chunks: mpsc::Receiver<Bytes>,
    /// What the command was given last, until it is known to have it.
    under_way: Option<usize>,
}

/// Why a source gives no more.
enum Stop {
    /// It is at its end.
    End,
    /// The command takes no more.
    NotTaken,
    /// Nobody knows: the connection broke.
    Broke,
}

impl Source {
    /// Our standard input, if there can be anything to read.
    pub fn pipe() -> Self {
        if has_any() { Self::Pipe(Reader::new()) } else { Self::Nothing }
    }

    /// Our terminal.
    pub fn terminal() -> std::io::Result<Self> {
        Ok(Self::Terminal { typed: Reader::new(), resized: signal(SignalKind::window_change())? })
    }

    /// Bytes that were given away when it was last dropped in the middle, of which nobody knows whether they arrived.
    pub fn under_way(&self) -> Option<usize> {
        match self {
            Self::Nothing => None,
            Self::Pipe(reader) | Self::Terminal { typed: reader, .. } => reader.under_way,
        }
    }

    /// Passes everything on, then closes the command's input. Ends early when the command does not take it any more, or the
    /// connection breaks.
    pub async fn pass_on(&mut self, input: &Input) {
        let stopped = match self {
            Self::Nothing => return,
            Self::Pipe(reader) => {
                let stopped = reader.write(|chunk| input.write(chunk)).await;
                if matches!(stopped, Stop::End) {
                    close(input).await;
                }
                stopped
            }
            Self::Terminal { typed, resized } => {
                // It may have changed while nobody was connected.
                resize(input).await;
                let resizing = async {
                    while resized.recv().await.is_some() {
                        resize(input).await;
                    }
                };
                tokio::select! {
                    stopped = typed.write(|chunk| input.type_in(chunk)) => stopped,
                    () = resizing => Stop::End,
                }
            }
        };
        match stopped {
            Stop::End | Stop::NotTaken => *self = Self::Nothing,
            Stop::Broke => {}
        }
    }
}

impl Reader {
    fn new() -> Self {
        Self { chunks: read_ahead(), under_way: None }
    }

    async fn write<F: Future<Output = Result<(), EnvdError>>>(&mut self, write: impl Fn(Bytes) -> F) -> Stop {
        while let Some(chunk) = self.chunks.recv().await {
            self.under_way = Some(chunk.len());
            match write(chunk).await {
                Ok(()) => self.under_way = None,
                Err(error @ EnvdError::Refused { .. }) => {
                    // The command has closed its input or has ended: its own end says more than this.
                    tracing::debug!(%error, "the command takes no more input");
                    self.under_way = None;
                    return Stop::NotTaken;
                }
                Err(error) => {
                    tracing::debug!(%error, "the command's input cannot be reached");
                    return Stop::Broke;
                }
            }
        }
        Stop::End
    }
}

async fn close(input: &Input) {
    if let Err(error) = input.close().await {
        tracing::debug!(%error, "the command's input cannot be closed");
    }
}

async fn resize(input: &Input) {
    if let Err(error) = input.resize(terminal_size()).await {
        tracing::debug!(%error, "the command's terminal cannot be resized");
    }
}

fn read_ahead() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot read standard input; the command sees its end here");
                    return;
                }
            }
        }
    });
    receiver
}
