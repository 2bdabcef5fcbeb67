//! QMP: QEMU's control protocol, one JSON object per line, with typed messages.
//!
//! Greeting, `qmp_capabilities`, then command and answer; events come in between at any time and are kept for
//! [`Machine::incident`]. Commands are numbered: the late answer to one that was given up is no answer to the next. QEMU
//! may be taken over by its guest: a line is bounded, and so is what is kept of it.
//!
//! ```text
//!   capture   query-status: stands still? ─► add-fd, with a file in memory ─► xen-save-devices-state ─► remove-fd ─► copy
//!   restore   migrate-incoming from an inherited file ─► query-migrate until completed ─► query-status: stands still?
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

use crate::vmm::{Captured, DEVICES, Incident, Machine, RunState, Then, VmmError, capture, excerpt};

/// How long QEMU has for the greeting: it answers only once its machine is built.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// How long QEMU has for one command; `stop` waits for the guest's writes.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// How long QEMU has to take up a captured state: a few milliseconds on an idle host.
const RESTORE_LIMIT: Duration = Duration::from_secs(30);
/// The first and the longest pause between two looks at how far it is.
const RESTORE_PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));
/// The oldest QEMU, major and minor, that stays to tell why it cannot take up a state; an older one ends.
const TELLS_WHY: (u32, u32) = (9, 1);
/// Longest line taken, in bytes; the longest of the answers used here is under 1 KiB.
const LINE_MAX: usize = 64 * 1024;
/// Incidents kept until somebody asks; later ones are dropped, the first say what happened.
const INCIDENTS_MAX: usize = 16;

/// A command of ours to QEMU.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "execute", content = "arguments")]
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
    /// Takes the descriptor that is sent with it.
    #[serde(rename = "add-fd")]
    AddFd,
    #[serde(rename = "remove-fd")]
    RemoveFd {
        #[serde(rename = "fdset-id")]
        set: u64,
    },
    /// Needs no Xen: everything but guest memory goes into the file.
    #[serde(rename = "xen-save-devices-state")]
    SaveDevices { filename: String, live: bool },
    #[serde(rename = "migrate-incoming")]
    Restore {
        uri: String,
        /// Known from [`TELLS_WHY`] on.
        #[serde(rename = "exit-on-error", skip_serializing_if = "Option::is_none")]
        exit_on_error: Option<bool>,
    },
    #[serde(rename = "query-migrate")]
    QueryRestore,
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::QueryStatus => "query-status",
            Self::Stop => "stop",
            Self::Continue => "cont",
            Self::Quit => "quit",
            Self::AddFd => "add-fd",
            Self::RemoveFd { .. } => "remove-fd",
            Self::SaveDevices { .. } => "xen-save-devices-state",
            Self::Restore { .. } => "migrate-incoming",
            Self::QueryRestore => "query-migrate",
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
        qmp: Greeting,
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
struct Greeting {
    version: GreetingVersion,
}

#[derive(Debug, Deserialize)]
struct GreetingVersion {
    qemu: QemuVersion,
}

#[derive(Debug, Deserialize)]
struct QemuVersion {
    major: u32,
    #[serde(default)]
    minor: u32,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

#[derive(Debug, Deserialize)]
struct Status {
    running: bool,
    status: Condition,
}

/// What the machine as a whole is doing, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Condition {
    Running,
    /// Stopped by us.
    Paused,
    /// Stopped by an error of its disk; what it wanted of it is part of its state.
    IoError,
    /// Waits for its captured state.
    Inmigrate,
    /// Broken, switched off, or something else that only looks like standing still.
    #[serde(untagged)]
    Other(String),
}

impl Condition {
    fn word(&self) -> String {
        match self {
            Self::Running => "running".to_owned(),
            Self::Paused => "paused".to_owned(),
            Self::IoError => "io-error".to_owned(),
            Self::Inmigrate => "inmigrate".to_owned(),
            Self::Other(word) => excerpt(word.as_bytes()),
        }
    }
}

#[derive(Debug, Deserialize)]
struct AddedFd {
    #[serde(rename = "fdset-id")]
    set: u64,
}

/// How far a restore is; it has no status before it began.
#[derive(Debug, Deserialize)]
struct Restoring {
    status: Option<Progress>,
    #[serde(rename = "error-desc", default)]
    error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Progress {
    Completed,
    Failed,
    /// `setup`, `active`, and what else there is on the way.
    #[serde(other)]
    UnderWay,
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
    /// Major and minor.
    version: (u32, u32),
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
        let mut qmp = Self {
            reader: BufReader::new(reader),
            writer,
            line: Vec::new(),
            incidents: VecDeque::new(),
            commands: 0,
            version: (0, 0),
        };
        let QemuVersion { major, minor } = qmp.greeting().await?.version.qemu;
        qmp.version = (major, minor);
        qmp.execute(Command::Capabilities).await?;
        Ok(qmp)
    }

    async fn greeting(&mut self) -> Result<Greeting, VmmError> {
        let command = "greet";
        match timeout(GREETING_LIMIT, self.message(command)).await {
            Err(_elapsed) => Err(VmmError::Deadline { command, limit: GREETING_LIMIT }),
            Ok(Ok(Message::Greeting { qmp })) => Ok(qmp),
            Ok(Ok(other)) => Err(VmmError::Protocol { command, detail: excerpt(format!("{other:?}").as_bytes()) }),
            Ok(Err(error)) => Err(error),
        }
    }

    /// Has QEMU take up the captured state in `file`; its CPUs stand still afterwards.
    pub(super) async fn restore(&mut self, file: &str) -> Result<(), VmmError> {
        let exit_on_error = (self.version >= TELLS_WHY).then_some(false);
        let command = Command::Restore { uri: format!("file:{file}"), exit_on_error };
        let late = VmmError::Deadline { command: command.name(), limit: RESTORE_LIMIT };
        self.execute(command).await?;
        timeout(RESTORE_LIMIT, self.restored()).await.unwrap_or(Err(late))?;
        match self.status().await?.status {
            Condition::Paused | Condition::IoError => Ok(()),
            other @ (Condition::Running | Condition::Inmigrate | Condition::Other(_)) => {
                Err(VmmError::Restore { detail: format!("it is `{}` afterwards", other.word()) })
            }
        }
    }

    async fn restored(&mut self) -> Result<(), VmmError> {
        let (mut pause, longest) = RESTORE_PAUSES;
        loop {
            let restoring: Restoring = self.ask(Command::QueryRestore).await?;
            match restoring.status {
                Some(Progress::Completed) => return Ok(()),
                Some(Progress::Failed) => {
                    return Err(VmmError::Restore { detail: excerpt(restoring.error.as_bytes()) });
                }
                Some(Progress::UnderWay) | None => sleep(pause).await,
            }
            pause = longest.min(pause * 2);
        }
    }

    async fn status(&mut self) -> Result<Status, VmmError> {
        self.ask(Command::QueryStatus).await
    }

    /// The state of CPUs and devices, in a file that exists in memory only.
    async fn devices(&mut self) -> Result<File, VmmError> {
        let failed = |source| VmmError::Capture { step: "make a file in memory for", path: DEVICES.into(), source };
        let (file, writer) = memory_file().map_err(failed)?;
        let AddedFd { set } = self.ask_with(Command::AddFd, Some(writer.as_fd())).await?;
        let filename = format!("/dev/fdset/{set}");
        let saved = self.execute(Command::SaveDevices { filename, live: false }).await;
        // Also after a refusal; one that does not answer at all does not answer this either.
        let removed = self.execute(Command::RemoveFd { set }).await;
        saved.and(removed).map(|_nothing| file)
    }

    async fn execute(&mut self, command: Command) -> Result<Value, VmmError> {
        self.ask(command).await
    }

    async fn ask<T: DeserializeOwned>(&mut self, command: Command) -> Result<T, VmmError> {
        self.ask_with(command, None).await
    }

    async fn ask_with<T: DeserializeOwned>(
        &mut self,
        command: Command,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<T, VmmError> {
        let name = command.name();
        let answer = timeout(COMMAND_LIMIT, self.exchange(command, descriptor))
            .await
            .unwrap_or(Err(VmmError::Deadline { command: name, limit: COMMAND_LIMIT }))?;
        serde_json::from_value(answer)
            .map_err(|error| VmmError::Protocol { command: name, detail: excerpt(error.to_string().as_bytes()) })
    }

    /// Sends `line`, and with its first byte the descriptor.
    async fn send(&mut self, line: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let sent = match descriptor {
            None => 0,
            Some(descriptor) => {
                let stream: &UnixStream = self.writer.as_ref();
                stream.async_io(Interest::WRITABLE, || send_with(stream, line, descriptor)).await?
            }
        };
        self.writer.write_all(&line[sent..]).await
    }

    async fn exchange(&mut self, command: Command, descriptor: Option<BorrowedFd<'_>>) -> Result<Value, VmmError> {
        let name = command.name();
        self.commands += 1;
        let number = self.commands;
        let mut line = serde_json::to_vec(&Numbered { command, id: number }).expect("a command is JSON");
        line.push(b'\n');
        self.send(&line, descriptor).await.map_err(|_broken_pipe| VmmError::Gone { command: name })?;
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

fn send_with(stream: &UnixStream, line: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is room for one");
    Ok(sendmsg(stream, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// A file in memory, and a descriptor of it that can only be written to: QEMU takes no other for writing.
fn memory_file() -> io::Result<(File, File)> {
    let file = File::from(memfd_create("wrenn-devices", MemfdFlags::CLOEXEC)?);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let writer = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((file, writer.into()))
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
        Ok(if self.status().await?.running { RunState::Running } else { RunState::Frozen })
    }

    async fn freeze(&mut self) -> Result<(), VmmError> {
        self.execute(Command::Stop).await.map(drop)
    }

    /// It saves the devices' state as the end of a migration does: after memory.
    fn keeps_memory(&self) -> bool {
        true
    }

    /// Both ways are one here: QEMU keeps nothing of the file.
    async fn capture(&mut self, into: &Path, _then: Then) -> Result<Captured, VmmError> {
        match self.status().await?.status {
            Condition::Paused | Condition::IoError => {}
            other @ (Condition::Running | Condition::Inmigrate | Condition::Other(_)) => {
                return Err(VmmError::NotFrozen { state: other.word() });
            }
        }
        let target = capture::absent(into, DEVICES)?;
        let devices = self.devices().await?;
        capture::copy_devices(&devices, &target)?;
        Ok(Captured::InProcess)
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
