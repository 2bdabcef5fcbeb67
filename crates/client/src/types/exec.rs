//! Commands in sandboxes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How bytes are written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// They are text.
    Utf8,
    /// They are not, and are written in base64.
    Base64,
}

/// Bytes of a guest: text where they are text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Bytes {
    /// How `data` is written.
    pub encoding: Encoding,
    /// The bytes.
    pub data: String,
    /// Whether there were more than are kept.
    pub truncated: bool,
}

impl Bytes {
    /// These bytes.
    pub fn of(bytes: &[u8], truncated: bool) -> Self {
        use base64::Engine as _;
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { encoding: Encoding::Utf8, data: text.to_owned(), truncated },
            Err(_not_text) => {
                let data = base64::engine::general_purpose::STANDARD.encode(bytes);
                Self { encoding: Encoding::Base64, data, truncated }
            }
        }
    }

    /// What they stand for; `None` if that is no base64.
    pub fn decode(&self) -> Option<Vec<u8>> {
        use base64::Engine as _;
        match self.encoding {
            Encoding::Utf8 => Some(self.data.clone().into_bytes()),
            Encoding::Base64 => base64::engine::general_purpose::STANDARD.decode(&self.data).ok(),
        }
    }
}

/// A command whose output is collected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments. No shell: `["sh", "-c", "…"]` is one.
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 4096))]
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
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86400))]
    pub timeout_s: Option<u64>,
    /// Its standard input, as text.
    #[serde(default)]
    pub stdin: Option<String>,
    /// Its standard input, as base64. Not together with `stdin`.
    #[serde(default)]
    pub stdin_base64: Option<String>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Exit {
    /// With an exit code.
    Exited {
        /// It.
        code: i32,
    },
    /// By a signal.
    Signalled {
        /// Its number.
        signal: i32,
    },
    /// It was killed at its time limit.
    TimedOut,
    /// The guest cannot tell; it is never invented.
    Unknown,
}

/// A command that has ended, and its output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Exec {
    /// Its pid in the sandbox.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
    /// Its standard output; the first 8 MiB of it.
    pub stdout: Bytes,
    /// Its standard error; the first 8 MiB of it.
    pub stderr: Bytes,
}

/// A command that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Process {
    /// Its pid in the sandbox.
    pub pid: u32,
    /// Its name, if it was given one.
    pub tag: Option<String>,
    /// Program and arguments, as they were asked for.
    pub command: Vec<String>,
}

/// The commands that run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProcessList {
    /// In the order of their pids.
    pub items: Vec<Process>,
}

/// A signal for a command and all that it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// Its number: 15 asks to end, 9 ends.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 64))]
    pub signal: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_bytes() {
        for bytes in [&b""[..], b"text\n", b"\xff\x00\xfe", "ä\u{1b}[0m".as_bytes()] {
            assert_eq!(Bytes::of(bytes, false).decode().unwrap(), bytes);
        }
        assert_eq!(Bytes::of(b"\xff", true).encoding, Encoding::Base64);
        let broken = Bytes { encoding: Encoding::Base64, data: "%".to_owned(), truncated: false };
        assert_eq!(broken.decode(), None);
    }
}
