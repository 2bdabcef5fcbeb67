//! QMP: QEMU's control protocol, one JSON object per line, with typed messages.
//!
//! Greeting, `qmp_capabilities`, then command and answer; events come in between at any time and are kept for
//! [`Machine::incident`]. QEMU may be taken over by its guest: a line is bounded, and so is what is kept of it.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::vmm::{Incident, Machine, RunState, VmmError};

/// How long QEMU has for the greeting: it answers only once its machine is built.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// How long QEMU has for one command; `stop` waits for the guest's writes.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Longest line taken, in bytes; the longest of the answers used here is under 1 KiB.
const LINE_MAX: u64 = 64 * 1024;
/// Incidents kept until somebody asks; later ones are dropped, the first say what happened.
const INCIDENTS_MAX: usize = 16;

/// A command of ours to QEMU.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "execute")]
enum Command {
    #[serde(rename = "qmp_capabilities")]
    Capabilities,
    #[serde(rename = "query-status")]
    QueryStatus,
    #[serde(rename = "stop")]
    Stop,
    #[serde(rename = "cont")]
    Continue,
    #[serde(rename = "quit")]
    Quit,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::QueryStatus => "query-status",
            Self::Stop => "stop",
            Self::Continue => "cont",
            Self::Quit => "quit",
        }
    }
}

/// What QEMU says; fields not listed are ignored.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _qmp: Value,
    },
    Event {
        event: String,
        #[serde(default)]
        data: Value,
    },
    Done {
        #[serde(rename = "return")]
        value: Value,
    },
    Refused {
        error: Refusal,
    },
}

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

#[derive(Debug, Deserialize)]
struct Status {
    running: bool,
}

#[derive(Debug, Deserialize)]
struct BlockIoError {
    #[serde(default)]
    nospace: bool,
    #[serde(default)]
    reason: String,
}

/// A connection to one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    line: Vec<u8>,
    incidents: VecDeque<Incident>,
}

impl Qmp {
    /// Connects, waits for the greeting and leaves the negotiation mode.
    pub(super) async fn connect(path: &Path) -> Result<Self, VmmError> {
        let stream = UnixStream::connect(path).await.map_err(|source| VmmError::Socket {
            step: "reach",
            path: path.to_owned(),
            source,
        })?;
        let (reader, writer) = stream.into_split();
        let mut qmp = Self { reader: BufReader::new(reader), writer, line: Vec::new(), incidents: VecDeque::new() };
        qmp.greeting().await?;
        qmp.execute(Command::Capabilities).await?;
        Ok(qmp)
    }

    async fn greeting(&mut self) -> Result<(), VmmError> {
        let command = "greet";
        match timeout(GREETING_LIMIT, self.message(command)).await {
            Err(_elapsed) => Err(VmmError::Deadline { command, limit: GREETING_LIMIT }),
            Ok(Ok(Message::Greeting { .. })) => Ok(()),
            Ok(Ok(other)) => Err(VmmError::Protocol { command, detail: format!("{other:?}") }),
            Ok(Err(error)) => Err(error),
        }
    }

    async fn execute(&mut self, command: Command) -> Result<Value, VmmError> {
        let name = command.name();
        timeout(COMMAND_LIMIT, self.exchange(command))
            .await
            .unwrap_or(Err(VmmError::Deadline { command: name, limit: COMMAND_LIMIT }))
    }

    async fn exchange(&mut self, command: Command) -> Result<Value, VmmError> {
        let name = command.name();
        let mut line = serde_json::to_vec(&command)
            .map_err(|error| VmmError::Protocol { command: name, detail: error.to_string() })?;
        line.push(b'\n');
        self.writer.write_all(&line).await.map_err(|_broken_pipe| VmmError::Gone { command: name })?;
        loop {
            match self.message(name).await? {
                Message::Done { value } => return Ok(value),
                Message::Refused { error: Refusal { class, desc } } => {
                    return Err(VmmError::Refused { command: name, detail: format!("{class}: {desc}") });
                }
                Message::Event { event, data } => self.note(&event, data),
                Message::Greeting { .. } => {
                    return Err(VmmError::Protocol { command: name, detail: "a second greeting".to_owned() });
                }
            }
        }
    }

    /// The next message. Cancel safe: a line that is half read stays in `self.line`.
    async fn message(&mut self, command: &'static str) -> Result<Message, VmmError> {
        let room = LINE_MAX.saturating_sub(self.line.len() as u64);
        let mut bounded = (&mut self.reader).take(room);
        let read = bounded.read_until(b'\n', &mut self.line).await;
        if !self.line.ends_with(b"\n") {
            return Err(match read {
                Ok(_) if self.line.len() as u64 >= LINE_MAX => {
                    VmmError::Protocol { command, detail: format!("a line of more than {LINE_MAX} bytes") }
                }
                Ok(_) | Err(_) => VmmError::Gone { command },
            });
        }
        let line = std::mem::take(&mut self.line);
        serde_json::from_slice(&line)
            .map_err(|error| VmmError::Protocol { command, detail: format!("{error}: {}", excerpt(&line)) })
    }

    fn note(&mut self, event: &str, data: Value) {
        if let Some(incident) = incident_of(event, data)
            && self.incidents.len() < INCIDENTS_MAX
        {
            self.incidents.push_back(incident);
        }
    }
}

/// What an event means to us; most mean nothing.
fn incident_of(event: &str, data: Value) -> Option<Incident> {
    if event != "BLOCK_IO_ERROR" {
        return None;
    }
    let error: BlockIoError = serde_json::from_value(data).ok()?;
    Some(if error.nospace { Incident::DiskFull } else { Incident::DiskError(error.reason.chars().take(200).collect()) })
}

fn excerpt(line: &[u8]) -> String {
    line.escape_ascii().take(200).map(char::from).collect()
}

#[async_trait]
impl Machine for Qmp {
    async fn run_state(&mut self) -> Result<RunState, VmmError> {
        let command = Command::QueryStatus;
        let status: Status = serde_json::from_value(self.execute(command).await?)
            .map_err(|error| VmmError::Protocol { command: command.name(), detail: error.to_string() })?;
        Ok(if status.running { RunState::Running } else { RunState::Frozen })
    }

    async fn freeze(&mut self) -> Result<(), VmmError> {
        self.execute(Command::Stop).await.map(drop)
    }

    async fn thaw(&mut self) -> Result<(), VmmError> {
        self.execute(Command::Continue).await.map(drop)
    }

    async fn stop(&mut self) -> Result<(), VmmError> {
        match self.execute(Command::Quit).await {
            // It may be gone before it has answered.
            Ok(_) | Err(VmmError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn incident(&mut self) -> Incident {
        loop {
            if let Some(incident) = self.incidents.pop_front() {
                return incident;
            }
            match self.message("report").await {
                Ok(Message::Event { event, data }) => self.note(&event, data),
                Ok(Message::Greeting { .. } | Message::Done { .. } | Message::Refused { .. }) => {}
                Err(_) => return Incident::Ended,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// A QEMU that says `script`: the greeting first, then one entry per command it is sent; after the last it ends.
    async fn with_qemu_saying(script: &'static [&'static str]) -> Result<Qmp, VmmError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let mut commands = BufReader::new(reader).lines();
            for (index, lines) in script.iter().enumerate() {
                if index > 0 && commands.next_line().await.unwrap().is_none() {
                    return;
                }
                writer.write_all(format!("{lines}\n").as_bytes()).await.unwrap();
            }
        });
        Qmp::connect(&path).await
    }

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;
    const DONE: &str = r#"{"return": {}}"#;

    #[tokio::test]
    async fn events_between_command_and_answer_are_kept() {
        let mut qmp = with_qemu_saying(&[
            GREETING,
            DONE,
            "{\"event\":\"BLOCK_IO_ERROR\",\"data\":{\"nospace\":true,\"reason\":\"x\"}}\n{\"event\":\"STOP\"}\n{\"return\":{\"running\":false,\"status\":\"io-error\"}}",
        ])
        .await
        .unwrap();
        assert_eq!(qmp.run_state().await.unwrap(), RunState::Frozen);
        assert_eq!(qmp.incident().await, Incident::DiskFull);
        assert_eq!(qmp.incident().await, Incident::Ended);
    }

    #[tokio::test]
    async fn a_refusal_keeps_qemus_words() {
        let mut qmp =
            with_qemu_saying(&[GREETING, DONE, r#"{"error":{"class":"GenericError","desc":"no such thing"}}"#])
                .await
                .unwrap();
        let error = qmp.freeze().await.unwrap_err();
        assert_eq!(error.to_string(), "the VMM refused `stop`: GenericError: no such thing");
    }

    #[tokio::test]
    async fn the_end_of_qemu_is_told_apart_from_nonsense() {
        let gone = with_qemu_saying(&[GREETING, DONE]).await.unwrap().freeze().await.unwrap_err();
        assert!(matches!(gone, VmmError::Gone { command: "stop" }), "{gone}");
        let nonsense = with_qemu_saying(&["hello"]).await.unwrap_err();
        assert!(matches!(nonsense, VmmError::Protocol { command: "greet", .. }), "{nonsense}");
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let flood = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        let error = Qmp::connect(&path).await.unwrap_err();
        assert!(matches!(error, VmmError::Protocol { .. }), "{error}");
        flood.await.unwrap();
    }
}
