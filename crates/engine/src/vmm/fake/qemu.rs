//! A QEMU that runs nothing: its control protocol alone.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Failure, Fault, Next, Record, Speaker};

/// Longest command in bytes.
const COMMAND_MAX: usize = 64 * 1024;
/// Events waiting to be said.
const EVENTS_MAX: usize = 16;

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
    pub fn start(control: OwnedFd, failure: Option<Failure>) -> Self {
        let listener = std::os::unix::net::UnixListener::from(control);
        listener.set_nonblocking(true).expect("it is a socket");
        let listener = UnixListener::from_std(listener).expect("it listens");
        let record = Arc::new(Record::default());
        let (events, said) = mpsc::channel(EVENTS_MAX);
        let machine = Machine { failure, running: true, negotiating: true, events: said, record: Arc::clone(&record) };
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

struct Machine {
    failure: Option<Failure>,
    running: bool,
    negotiating: bool,
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
        let greeting = json!({ "QMP": { "version": { "qemu": { "major": 10 } }, "capabilities": ["oob"] } });
        let mut next = self.step(speaker, "greeting", greeting, None).await;
        let mut buffer = Vec::new();
        while next == Next::Go {
            next = tokio::select! {
                biased;
                Some(event) = self.events.recv() => speaker.say(&line(&event)).await,
                command = next_command(speaker, &mut buffer) => match command {
                    Some(command) => self.exchange(speaker, &command).await,
                    None => Next::HangUp,
                },
            };
        }
        next
    }

    async fn exchange(&mut self, speaker: &mut Speaker, command: &Value) -> Next {
        let name = command["execute"].as_str().unwrap_or_default().to_owned();
        let id = command.get("id").cloned();
        let (events, mut answer) = self.answer(&name);
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
    fn answer(&mut self, command: &str) -> (Vec<Value>, Value) {
        let refused = |class: &str, desc: &str| json!({ "error": { "class": class, "desc": desc } });
        let done = json!({ "return": {} });
        let event = |name: &str| vec![json!({ "event": name, "timestamp": { "seconds": 1, "microseconds": 0 } })];
        match (command, self.negotiating) {
            ("qmp_capabilities", true) => {
                self.negotiating = false;
                (Vec::new(), done)
            }
            (_, true) => (Vec::new(), refused("CommandNotFound", "capabilities were not negotiated")),
            ("query-status", false) => {
                let status = if self.running { "running" } else { "paused" };
                (Vec::new(), json!({ "return": { "running": self.running, "status": status } }))
            }
            ("stop", false) => (if std::mem::take(&mut self.running) { event("STOP") } else { Vec::new() }, done),
            ("cont", false) => {
                (if std::mem::replace(&mut self.running, true) { Vec::new() } else { event("RESUME") }, done)
            }
            ("quit", false) => (Vec::new(), done),
            (_, false) => (Vec::new(), refused("CommandNotFound", "no such command")),
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

/// The next command; `None` when the other side hung up or sent something else. Cancel safe.
async fn next_command(speaker: &mut Speaker, buffer: &mut Vec<u8>) -> Option<Value> {
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let command: Vec<u8> = buffer.drain(..=end).collect();
            return serde_json::from_slice(&command).ok();
        }
        if buffer.len() > COMMAND_MAX || speaker.stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
