//! QMP: QEMU's control protocol, one JSON object per line, with typed messages.
//!
//! Greeting, `qmp_capabilities`, then command and answer; events come in between at any time and are kept for
//! [`Machine::incident`]. Commands are numbered: the late answer to one that was given up is no answer to the next. QEMU
//! may be taken over by its guest: a line is bounded, and so is what is kept of it.

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

use crate::vmm::{Incident, Machine, RunState, VmmError, excerpt};

/// How long QEMU has for the greeting: it answers only once its machine is built.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// How long QEMU has for one command; `stop` waits for the guest's writes.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Longest line taken, in bytes; the longest of the answers used here is under 1 KiB.
const LINE_MAX: usize = 64 * 1024;
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

#[derive(Debug, Serialize)]
struct Numbered {
    #[serde(flatten)]
    command: Command,
    id: u64,
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
        id: Option<u64>,
    },
    Refused {
        error: Refusal,
        id: Option<u64>,
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
    commands: u64,
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
        let mut qmp =
            Self { reader: BufReader::new(reader), writer, line: Vec::new(), incidents: VecDeque::new(), commands: 0 };
        qmp.greeting().await?;
        qmp.execute(Command::Capabilities).await?;
        Ok(qmp)
    }

    async fn greeting(&mut self) -> Result<(), VmmError> {
        let command = "greet";
        match timeout(GREETING_LIMIT, self.message(command)).await {
            Err(_elapsed) => Err(VmmError::Deadline { command, limit: GREETING_LIMIT }),
            Ok(Ok(Message::Greeting { .. })) => Ok(()),
            Ok(Ok(other)) => Err(VmmError::Protocol { command, detail: excerpt(format!("{other:?}").as_bytes()) }),
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
        self.commands += 1;
        let number = self.commands;
        let mut line = serde_json::to_vec(&Numbered { command, id: number }).expect("a command is JSON");
        line.push(b'\n');
        self.writer.write_all(&line).await.map_err(|_broken_pipe| VmmError::Gone { command: name })?;
        loop {
            match self.message(name).await? {
                Message::Done { value, id } if id == Some(number) => return Ok(value),
                Message::Refused { error: Refusal { class, desc }, id } if id == Some(number) || id.is_none() => {
                    let detail = excerpt(format!("{class}: {desc}").as_bytes());
                    return Err(VmmError::Refused { command: name, status: None, detail });
                }
                // The late answer to a command that was given up.
                Message::Done { .. } | Message::Refused { .. } => {}
                Message::Event { event, data } => self.note(&event, data),
                Message::Greeting { .. } => {
                    return Err(VmmError::Protocol { command: name, detail: "a second greeting".to_owned() });
                }
            }
        }
    }

    /// The next message. Cancel safe: a line that is half read stays in `self.line`.
    async fn message(&mut self, command: &'static str) -> Result<Message, VmmError> {
        let room = LINE_MAX.saturating_sub(self.line.len()) as u64;
        let mut bounded = (&mut self.reader).take(room);
        let read = bounded.read_until(b'\n', &mut self.line).await;
        if !self.line.ends_with(b"\n") {
            return Err(match read {
                Ok(_) if self.line.len() >= LINE_MAX => VmmError::TooLong { command, limit: LINE_MAX },
                Ok(_) | Err(_) if self.line.is_empty() => VmmError::Gone { command },
                Ok(_) | Err(_) => VmmError::CutOff { command },
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
            Ok(_) | Err(VmmError::Gone { .. } | VmmError::CutOff { .. }) => Ok(()),
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
                Err(VmmError::Gone { .. } | VmmError::CutOff { .. }) => return Incident::Ended,
                Err(error) => return Incident::Broken(error.to_string()),
            }
        }
    }
}
