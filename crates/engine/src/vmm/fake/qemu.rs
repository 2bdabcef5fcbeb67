//! A QEMU that runs nothing: its control protocol alone.
//!
//! As the real one it takes descriptors along with commands, writes the state of its devices into one, and waits for such a
//! state when it was started that way: `inmigrate` ─migrate-incoming─► `paused` ◄─stop, cont─► `running`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{FAKE_DEVICES, Failure, Fault, Next, Record, Speaker};

/// Longest command in bytes.
const COMMAND_MAX: usize = 64 * 1024;
/// Events waiting to be said.
const EVENTS_MAX: usize = 16;

/// The one set of descriptors that it keeps.
const SET: u64 = 7;

/// How a fake was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeStart {
    /// Its guest runs.
    Boot,
    /// It waits for a state, which is good or not.
    Restore {
        /// Whether it can take the state up.
        good: bool,
    },
}

/// A running fake; it ends when this is dropped.
#[derive(Debug)]
pub struct FakeQemu {
    record: Arc<Record>,
    events: mpsc::Sender<Value>,
    task: JoinHandle<()>,
}

impl FakeQemu {
    /// One on the listening `control` socket that a driver made for it; it fails as told. Step 0 is its greeting. Panics
    /// if that is no listening socket. Needs a runtime.
    pub fn start(control: OwnedFd, start: FakeStart, failure: Option<Failure>) -> Self {
        let listener = std::os::unix::net::UnixListener::from(control);
        listener.set_nonblocking(true).expect("it is a socket");
        let listener = UnixListener::from_std(listener).expect("it listens");
        let record = Arc::new(Record::default());
        let (events, said) = mpsc::channel(EVENTS_MAX);
        let machine = Machine {
            failure,
            state: match start {
                FakeStart::Boot => State::Running,
                FakeStart::Restore { good } => State::Waiting { good },
            },
            negotiating: true,
            descriptor: None,
            events: said,
            record: Arc::clone(&record),
        };
        Self { record, events, task: tokio::spawn(machine.serve(listener)) }
    }

    /// Says `event` before the next answer, or at once if it is not asked anything.
    pub async fn say(&self, event: Value) {
        self.events.send(event).await.expect("the fake runs");
    }

    /// What it was asked, the greeting included.
    pub fn asked(&self) -> Vec<String> {
        self.record.asked()
    }

    /// How much it has said, in bytes.
    pub fn sent_bytes(&self) -> u64 {
        self.record.sent_bytes()
    }
}

impl Drop for FakeQemu {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    /// For what it is to go on from.
    Waiting {
        good: bool,
    },
    /// It was told from what, and is asked how far it is for the first time.
    TakingUp {
        good: bool,
    },
    /// It could not.
    Failed,
}

impl State {
    /// As QEMU says it.
    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Waiting { .. } | Self::TakingUp { .. } | Self::Failed => "inmigrate",
        }
    }
}

struct Machine {
    failure: Option<Failure>,
    state: State,
    negotiating: bool,
    /// What came with `add-fd`.
    descriptor: Option<OwnedFd>,
    events: mpsc::Receiver<Value>,
    record: Arc<Record>,
}

impl Machine {
    async fn serve(mut self, listener: UnixListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let mut speaker = Speaker { stream, record: Arc::clone(&self.record) };
            if self.converse(&mut speaker).await == Next::End {
                return;
            }
        }
    }

    async fn converse(&mut self, speaker: &mut Speaker) -> Next {
        self.negotiating = true;
        let greeting =
            json!({ "QMP": { "version": { "qemu": { "major": 10, "minor": 0 } }, "capabilities": ["oob"] } });
        let mut next = self.step(speaker, "greeting", greeting, None).await;
        let mut heard = Heard::default();
        while next == Next::Go {
            next = tokio::select! {
                biased;
                Some(event) = self.events.recv() => speaker.say(&line(&event)).await,
                command = heard.next_command(&speaker.stream) => match command {
                    Some(command) => self.exchange(speaker, &command, heard.descriptors.pop_front()).await,
                    None => Next::HangUp,
                },
            };
        }
        next
    }

    async fn exchange(&mut self, speaker: &mut Speaker, command: &Value, descriptor: Option<OwnedFd>) -> Next {
        let name = command["execute"].as_str().unwrap_or_default().to_owned();
        let id = command.get("id").cloned();
        let (events, mut answer) = self.answer(&name, &command["arguments"], descriptor);
        if let Some(id) = &id {
            answer["id"] = id.clone();
        }
        for event in events {
            speaker.say(&line(&event)).await;
        }
        let next = self.step(speaker, &name, answer, id).await;
        if name == "quit" && next == Next::Go { Next::End } else { next }
    }

    /// Events that come first, and the answer.
    fn answer(&mut self, command: &str, arguments: &Value, descriptor: Option<OwnedFd>) -> (Vec<Value>, Value) {
        let event = |name: &str| vec![json!({ "event": name, "timestamp": { "seconds": 1, "microseconds": 0 } })];
        let quiet = |answer: Value| (Vec::new(), answer);
        match (command, self.negotiating) {
            ("qmp_capabilities", true) => {
                self.negotiating = false;
                quiet(done())
            }
            (_, true) => quiet(refused("CommandNotFound", "capabilities were not negotiated")),
            ("query-status", false) => {
                let running = self.state == State::Running;
                quiet(json!({ "return": { "running": running, "status": self.state.word() } }))
            }
            ("stop", false) => match self.state {
                State::Running => {
                    self.state = State::Paused;
                    (event("STOP"), done())
                }
                State::Paused | State::Waiting { .. } | State::TakingUp { .. } | State::Failed => quiet(done()),
            },
            ("cont", false) => match self.state {
                State::Paused => {
                    self.state = State::Running;
                    (event("RESUME"), done())
                }
                State::Running => quiet(done()),
                State::Waiting { .. } | State::TakingUp { .. } | State::Failed => {
                    quiet(refused("GenericError", "there is no guest yet"))
                }
            },
            ("quit", false) => quiet(done()),
            ("add-fd", false) => quiet(self.add_descriptor(descriptor)),
            ("remove-fd", false) => quiet(match self.descriptor.take() {
                Some(_) if arguments["fdset-id"] == SET => done(),
                Some(_) | None => refused("GenericError", "no such set"),
            }),
            ("xen-save-devices-state", false) => quiet(self.save(arguments)),
            ("migrate-incoming", false) => quiet(self.take_up(arguments)),
            ("query-migrate", false) => quiet(json!({ "return": self.progress() })),
            (_, false) => quiet(refused("CommandNotFound", "no such command")),
        }
    }

    fn add_descriptor(&mut self, descriptor: Option<OwnedFd>) -> Value {
        if descriptor.is_none() {
            return refused("GenericError", "No file descriptor supplied via SCM_RIGHTS");
        }
        self.descriptor = descriptor;
        json!({ "return": { "fdset-id": SET, "fd": 30 } })
    }

    /// A running one would be stopped for it; we never ask that.
    fn save(&mut self, arguments: &Value) -> Value {
        let named = arguments["filename"] == format!("/dev/fdset/{SET}") && arguments["live"] == false;
        match (&self.descriptor, self.state) {
            (Some(descriptor), State::Paused) if named => {
                let written = descriptor.try_clone().and_then(|copy| File::from(copy).write_all(FAKE_DEVICES));
                written.map_or_else(|error| refused("GenericError", &error.to_string()), |()| done())
            }
            (Some(_), State::Paused) => refused("GenericError", "Could not open the file"),
            (None, _) => refused("GenericError", "no such set"),
            (Some(_), State::Running | State::Waiting { .. } | State::TakingUp { .. } | State::Failed) => {
                refused("GenericError", "not in this state")
            }
        }
    }

    fn take_up(&mut self, arguments: &Value) -> Value {
        let named = arguments["uri"].as_str().is_some_and(|uri| uri.starts_with("file:/dev/fdset/"));
        match self.state {
            State::Waiting { good } if named && arguments["exit-on-error"] == false => {
                self.state = State::TakingUp { good };
                done()
            }
            State::Waiting { .. } => refused("GenericError", "unknown arguments"),
            State::Running | State::Paused | State::TakingUp { .. } | State::Failed => {
                refused("GenericError", "'-incoming' was not specified on the command line")
            }
        }
    }

    /// It takes as long as to be asked once.
    fn progress(&mut self) -> Value {
        match self.state {
            State::TakingUp { good } => {
                self.state = if good { State::Paused } else { State::Failed };
                json!({ "status": "active" })
            }
            State::Failed => json!({ "status": "failed", "error-desc": "load of migration failed: the fake's state" }),
            State::Paused => json!({ "status": "completed" }),
            State::Running | State::Waiting { .. } => json!({}),
        }
    }

    async fn step(&mut self, speaker: &mut Speaker, name: &str, answer: Value, id: Option<Value>) -> Next {
        let number = self.record.note(name);
        match self.failure.filter(|failure| failure.at == number).map(|failure| failure.fault) {
            None => speaker.say(&line(&answer)).await,
            Some(Fault::Refuse) => {
                let error = json!({ "class": "GenericError", "desc": "the fake was told to refuse" });
                speaker.say(&line(&json!({ "error": error, "id": id }))).await
            }
            Some(Fault::CutOff) => {
                let whole = line(&answer);
                speaker.say(&whole[..whole.len() / 2]).await;
                Next::End
            }
            Some(Fault::Huge) => {
                speaker.say(b"{\"return\": \"").await;
                speaker.flood(b'x').await
            }
            Some(Fault::Endless) => speaker.flood(b' ').await,
            Some(Fault::Nonsense) => speaker.say(b"SSH-2.0-OpenSSH_9.2\r\n").await,
            Some(Fault::Silence) => silence(speaker).await,
            Some(Fault::Exit) => Next::End,
        }
    }
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\r\n").into_bytes()
}

/// Reads on, without an answer, until the other side hangs up.
async fn silence(speaker: &mut Speaker) -> Next {
    let mut ignored = [0; 1024];
    while matches!(speaker.stream.read(&mut ignored).await, Ok(read) if read > 0) {}
    Next::HangUp
}

fn done() -> Value {
    json!({ "return": {} })
}

fn refused(class: &str, desc: &str) -> Value {
    json!({ "error": { "class": class, "desc": desc } })
}

/// What came so far and is no whole command yet, and the descriptors that came with it.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Heard {
    /// The next command; `None` when the other side hung up or sent something else. Cancel safe.
    async fn next_command(&mut self, stream: &UnixStream) -> Option<Value> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let command: Vec<u8> = self.bytes.drain(..=end).collect();
                return serde_json::from_slice(&command).ok();
            }
            let heard = stream.async_io(Interest::READABLE, || self.hear(stream)).await;
            if self.bytes.len() > COMMAND_MAX || heard.ok()? == 0 {
                return None;
            }
        }
    }

    fn hear(&mut self, stream: &UnixStream) -> io::Result<usize> {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(stream, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.bytes.extend(&chunk[..received.bytes]);
        Ok(received.bytes)
    }
}
