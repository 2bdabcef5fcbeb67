//! Passing our standard input on to a command.
//!
//! It is read on a plain thread: a read from a terminal cannot be cancelled, and the program must be able to end while one
//! is under way.

use std::io::Read;

use bytes::Bytes;
use rustix::fs::{FileType, fstat};
use tokio::sync::mpsc;
use wrenn_agent::envd_client::Input;

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

/// Passes everything on, then closes the command's input. Ends early when the command does not take it any more.
pub async fn pump(input: Input) {
    if !has_any() {
        return;
    }
    let mut chunks = read_ahead();
    while let Some(chunk) = chunks.recv().await {
        if let Err(error) = input.write(chunk).await {
            // The command has closed its input or has ended: its own end says more than this.
            tracing::debug!(%error, "the command takes no more input");
            return;
        }
    }
    if let Err(error) = input.close().await {
        tracing::debug!(%error, "the command's input cannot be closed");
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
