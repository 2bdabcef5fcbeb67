//! Where a command's output goes: through, live and byte for byte, or into one JSON object.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, Stderr, Stdout};

/// What is kept of each stream for `--json`, in bytes; more is counted and said to be missing.
const CAPTURE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Takes a command's output.
pub enum Sink {
    /// To our own stdout and stderr.
    Live(Box<(Stdout, Stderr)>),
    /// Kept until the end.
    Captured(Captured),
}

impl Sink {
    /// Passes output through.
    pub fn live() -> Self {
        Self::Live(Box::new((tokio::io::stdout(), tokio::io::stderr())))
    }

    /// Keeps output.
    pub fn captured() -> Self {
        Self::Captured(Captured::default())
    }

    /// Takes what the command wrote to its stdout.
    pub async fn stdout(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Live(streams) => write(&mut streams.0, bytes).await,
            Self::Captured(captured) => captured.stdout.push(bytes),
        }
    }

    /// Takes what the command wrote to its stderr.
    pub async fn stderr(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Live(streams) => write(&mut streams.1, bytes).await,
            Self::Captured(captured) => captured.stderr.push(bytes),
        }
    }
}

/// Flushed each time: output is live, and what comes on the two streams keeps its order.
async fn write(stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Both streams of a command.
#[derive(Debug, Default)]
pub struct Captured {
    /// Standard output.
    pub stdout: Kept,
    /// Standard error.
    pub stderr: Kept,
}

/// The beginning of one stream.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: Vec<u8>,
    total: u64,
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let room = CAPTURE_BYTES_MAX - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.total += bytes.len() as u64;
        Ok(())
    }

    /// As text; what is none is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// `text` when it is UTF-8, `base64` otherwise; `bytes` is how many there were, `truncated` whether some are missing.
    pub fn json(&self) -> Value {
        let truncated = self.total > self.bytes.len() as u64;
        match std::str::from_utf8(&self.bytes) {
            Ok(text) => json!({ "text": text, "bytes": self.total, "truncated": truncated }),
            Err(_) => json!({ "base64": BASE64.encode(&self.bytes), "bytes": self.total, "truncated": truncated }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_stay_bytes() {
        let mut kept = Kept::default();
        kept.push(b"a\xff").unwrap();
        assert_eq!(kept.json(), json!({ "base64": "Yf8=", "bytes": 2, "truncated": false }));
    }

    #[test]
    fn says_when_something_is_missing() {
        let mut kept = Kept::default();
        for _ in 0..9 {
            kept.push(&[b'x'; 1024 * 1024]).unwrap();
        }
        let json = kept.json();
        assert_eq!(json["bytes"], 9 * 1024 * 1024);
        assert_eq!(json["truncated"], true);
        assert_eq!(json["text"].as_str().unwrap().len(), CAPTURE_BYTES_MAX);
    }
}
