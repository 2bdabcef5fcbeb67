//! Stand-ins for VMMs, in this process, that keep a VMM's state machine and fail when they are told to.
//!
//! For what a real one will not do on demand: a [`Fault`] at the n-th thing it is asked. They listen where the real ones
//! do, so the drivers run unchanged. A fault strikes once; what comes after it is answered as if it had not been.

mod firecracker;
mod qemu;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

pub use firecracker::{FAKE_MEMORY_BYTES, FakeFirecracker};
pub use qemu::{FakeQemu, FakeStart};

/// How long an answer without an end is, in bytes, if nobody stops reading.
const HUGE_BYTES: u64 = 1 << 30;

/// What a fake writes as the state of its devices.
pub const FAKE_DEVICES: &[u8] = b"the state of devices, or something like it";

/// What can go wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The command is refused.
    Refuse,
    /// The connection ends in the middle of the answer, and the VMM with it.
    CutOff,
    /// An answer of 1 GiB that says so beforehand, where the protocol can.
    Huge,
    /// An answer of which no end is in sight.
    Endless,
    /// Bytes that are not the protocol.
    Nonsense,
    /// No answer; the connection stays.
    Silence,
    /// The VMM ends instead of answering.
    Exit,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Refuse, Self::CutOff, Self::Huge, Self::Endless, Self::Nonsense, Self::Silence, Self::Exit];
}

/// When something goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// At which request, from 0.
    pub at: usize,
    /// How.
    pub fault: Fault,
}

/// What a fake has seen and said; shared with the test.
#[derive(Debug, Default)]
struct Record {
    asked: Mutex<Vec<String>>,
    sent_bytes: AtomicU64,
}

impl Record {
    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a request; answers its number.
    fn note(&self, request: &str) -> usize {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(request.to_owned());
        asked.len() - 1
    }

    fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }
}

/// Whether the fake goes on after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// With this connection.
    Go,
    /// With the next connection.
    HangUp,
    /// Not at all.
    End,
}

/// A connection that counts what is sent.
#[derive(Debug)]
struct Speaker {
    stream: UnixStream,
    record: Arc<Record>,
}

impl Speaker {
    async fn say(&mut self, bytes: &[u8]) -> Next {
        match self.stream.write_all(bytes).await {
            Ok(()) => {
                self.record.sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Next::Go
            }
            Err(_the_other_side_hung_up) => Next::HangUp,
        }
    }

    /// Says `byte` until nobody listens any more, at most for a GiB.
    async fn flood(&mut self, byte: u8) -> Next {
        let chunk = [byte; 16 * 1024];
        for _ in 0..HUGE_BYTES / chunk.len() as u64 {
            if self.say(&chunk).await != Next::Go {
                break;
            }
        }
        Next::HangUp
    }
}
