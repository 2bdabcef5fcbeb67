//! What goes over the WebSocket of a command: text frames are messages, binary frames are bytes.
//!
//! ```text
//!   client ─► text    StreamRequest, first of all (not when it comes back to a command, or asks for a terminal by URL)
//!             binary  bytes for its standard input or terminal
//!             text    ClientMessage
//!   server ─► text    ServerMessage: started; gap; exit or error, after which it closes
//!             binary  1 byte StreamKind, 8 bytes place in the command's whole output (big endian), then bytes
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ErrorBody, Exit};

/// Bytes before the output in a binary frame.
pub const HEADER_BYTES: usize = 9;

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// A command whose output is streamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StreamRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment variables on top of the sandbox's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; the user's home if nothing is said.
    #[serde(default)]
    pub workdir: Option<String>,
    /// User; the sandbox's default if nothing is said.
    #[serde(default)]
    pub user: Option<String>,
    /// Kill it after this time.
    #[serde(default)]
    pub timeout_s: Option<u64>,
    /// Whether its standard input is a pipe; /dev/null otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// A terminal of this size instead of pipes.
    #[serde(default)]
    pub pty: Option<TerminalSize>,
}

/// What a client says in a text frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientMessage {
    /// A signal for the command and all that it started.
    Signal {
        /// Its number.
        signal: u32,
    },
    /// The terminal has another size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// Nothing more comes for its standard input.
    CloseStdin,
}

/// What a server says in a text frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// It runs.
    Started {
        /// Its pid in the sandbox.
        pid: u32,
    },
    /// This many bytes of its output are gone: nobody was attached, and it wrote more than is kept.
    Gap {
        /// How many.
        bytes: u64,
    },
    /// It ended; nothing comes after.
    Exit {
        /// How.
        exit: Exit,
    },
    /// The stream ends here, and the command may go on.
    Error {
        /// Why.
        error: ErrorBody,
    },
}

/// What either side of a tunnel says in a text frame; its bytes are in binary frames. A close frame ends both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum TunnelMessage {
    /// No more bytes come from whoever says this; the other direction goes on.
    CloseWrite,
}

/// Which of a command's streams a binary frame is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Its terminal.
    Terminal,
}

impl StreamKind {
    /// The first byte of a frame.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Terminal => 3,
        }
    }

    /// A frame with `bytes`, whose place in the command's output is `offset`.
    pub fn frame(self, offset: u64, bytes: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEADER_BYTES + bytes.len());
        frame.push(self.byte());
        frame.extend_from_slice(&offset.to_be_bytes());
        frame.extend_from_slice(bytes);
        frame
    }

    /// What a frame says: the stream, the place, the bytes. `None` if it is none.
    pub fn read(frame: &[u8]) -> Option<(Self, u64, &[u8])> {
        let (header, bytes) = frame.split_at_checked(HEADER_BYTES)?;
        let kind = match header[0] {
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Terminal,
            _unknown => return None,
        };
        Some((kind, u64::from_be_bytes(header[1..].try_into().ok()?), bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_made() {
        for kind in [StreamKind::Stdout, StreamKind::Stderr, StreamKind::Terminal] {
            let frame = kind.frame(0x0102_0304_0506_0708, b"\xffbytes");
            assert_eq!(StreamKind::read(&frame), Some((kind, 0x0102_0304_0506_0708, &b"\xffbytes"[..])));
        }
        assert_eq!(StreamKind::read(&StreamKind::Stdout.frame(0, b"")), Some((StreamKind::Stdout, 0, &b""[..])));
        assert_eq!(StreamKind::read(b"\x01\0\0\0\0\0\0\0"), None, "cut short");
        assert_eq!(StreamKind::read(b"\x04\0\0\0\0\0\0\0\0x"), None, "of no stream");
        assert_eq!(StreamKind::read(b""), None);
    }

    #[test]
    fn messages_have_their_type_in_them() {
        let exit = ServerMessage::Exit { exit: Exit::Exited { code: 3 } };
        assert_eq!(serde_json::to_string(&exit).unwrap(), r#"{"type":"exit","exit":{"kind":"exited","code":3}}"#);
        let close = serde_json::from_str::<ClientMessage>(r#"{"type":"close_stdin"}"#).unwrap();
        assert_eq!(close, ClientMessage::CloseStdin);
        assert_eq!(serde_json::to_string(&TunnelMessage::CloseWrite).unwrap(), r#"{"type":"close_write"}"#);
        for wrong in [r#"{"type":"explode"}"#, r#"{"type":"signal"}"#, r#"{"type":"signal","signal":-1}"#, "{}"] {
            assert!(serde_json::from_str::<ClientMessage>(wrong).is_err(), "{wrong}");
        }
    }
}
