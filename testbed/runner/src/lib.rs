//! What the testbed and the first process of its emulated host say to each other.
//!
//! ```text
//!   testbed (here)                                   runner (PID 1 of the emulated host)
//!                  ◄────────── Ready ───────────────
//!     Input* InputEnd Window ─►                          job.json on the supplies disk says what to run
//!                  ◄──── Output* Errors* ───────────
//!                  ◄────────── Alive* ──────────────     every few seconds, whatever the job does
//!                  ◄── File FileData* FileEnd ──────     for each file the job was told to bring back
//!                  ◄── Ended | Failed ──────────────     the last frame; then the host switches itself off
//! ```
//!
//! Frames go over a virtio serial port: one byte of kind, four of length (little endian), then so many bytes.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest payload of a frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// How often the first process says that the emulated host still runs.
pub const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// The serial number of the disk that is the emulated host's root.
pub const ROOT_DISK: &str = "testbed-root";
/// The serial number of the disk with what a job needs.
pub const SUPPLIES_DISK: &str = "testbed-job";
/// Where the supplies disk is mounted in the emulated host.
pub const SUPPLIES_PLACE: &str = "/mnt/supplies";
/// The job's description, on the supplies disk.
pub const JOB_FILE: &str = "job.json";

/// What to run in the emulated host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Program and arguments; the program is looked for in `PATH` of `env`.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: PathBuf,
    /// Things of the supplies disk and where they are to appear.
    pub binds: Vec<Bind>,
    /// Files that are brought back when the job has ended; those that are not there are left out.
    pub bring: Vec<PathBuf>,
    /// Whether the job gets a terminal instead of pipes.
    pub terminal: bool,
}

/// Something of the supplies disk that appears elsewhere in the emulated host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Its name on the supplies disk.
    pub from: PathBuf,
    /// Absolute path in the emulated host.
    pub to: PathBuf,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
}

impl End {
    /// The code a shell reports.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => 128 + signal,
        }
    }
}

/// One thing said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The emulated host is up; milliseconds since its kernel began.
    Ready(u64),
    /// The job's standard output, or its terminal's.
    Output(Vec<u8>),
    /// The job's standard error.
    Errors(Vec<u8>),
    /// A file that was asked for begins; its path.
    File(String),
    /// More of it.
    FileData(Vec<u8>),
    /// It is complete.
    FileEnd,
    /// The job has ended; nothing follows.
    Ended(End),
    /// The job was not run; why. Nothing follows.
    Failed(String),
    /// For the job's standard input.
    Input(Vec<u8>),
    /// The standard input has ended.
    InputEnd,
    /// The terminal's size: rows, columns.
    Window(u16, u16),
    /// The emulated host still runs.
    Alive,
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Ready(_) => 1,
            Self::Output(_) => 2,
            Self::Errors(_) => 3,
            Self::File(_) => 4,
            Self::FileData(_) => 5,
            Self::FileEnd => 6,
            Self::Ended(_) => 7,
            Self::Failed(_) => 8,
            Self::Input(_) => 9,
            Self::InputEnd => 10,
            Self::Window(..) => 11,
            Self::Alive => 12,
        }
    }

    fn payload(&self) -> Vec<u8> {
        match self {
            Self::Ready(milliseconds) => milliseconds.to_le_bytes().to_vec(),
            Self::Output(bytes) | Self::Errors(bytes) | Self::FileData(bytes) | Self::Input(bytes) => bytes.clone(),
            Self::File(text) | Self::Failed(text) => text.as_bytes().to_vec(),
            Self::FileEnd | Self::InputEnd | Self::Alive => Vec::new(),
            Self::Ended(end) => serde_json::to_vec(end).expect("an end is JSON"),
            Self::Window(rows, columns) => [rows.to_le_bytes(), columns.to_le_bytes()].concat(),
        }
    }

    fn parse(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        let nonsense = || io::Error::new(io::ErrorKind::InvalidData, format!("a frame of kind {kind} makes no sense"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(match kind {
            1 => Self::Ready(u64::from_le_bytes(payload.try_into().map_err(|_| nonsense())?)),
            2 => Self::Output(payload),
            3 => Self::Errors(payload),
            4 => Self::File(text(&payload)),
            5 => Self::FileData(payload),
            6 => Self::FileEnd,
            7 => Self::Ended(serde_json::from_slice(&payload).map_err(|_| nonsense())?),
            8 => Self::Failed(text(&payload)),
            9 => Self::Input(payload),
            10 => Self::InputEnd,
            11 => match payload[..] {
                [a, b, c, d] => Self::Window(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])),
                _ => return Err(nonsense()),
            },
            12 => Self::Alive,
            _ => return Err(nonsense()),
        })
    }

    /// Writes the frame whole.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let payload = self.payload();
        assert!(payload.len() <= FRAME_BYTES_MAX, "who sends more sends several frames");
        let mut bytes = vec![self.kind()];
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(payload);
        to.write_all(&bytes)
    }

    /// Reads a frame; `None` at the end of the stream.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        if let Err(error) = from.read_exact(&mut head) {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
        }
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Self::parse(head[0], payload).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            any::<u64>().prop_map(Frame::Ready),
            bytes().prop_map(Frame::Output),
            bytes().prop_map(Frame::Errors),
            "[a-z/]{0,40}".prop_map(Frame::File),
            bytes().prop_map(Frame::FileData),
            Just(Frame::FileEnd),
            any::<i32>().prop_map(|code| Frame::Ended(End::Exited(code))),
            any::<i32>().prop_map(|signal| Frame::Ended(End::Signalled(signal))),
            "[ -~]{0,40}".prop_map(Frame::Failed),
            bytes().prop_map(Frame::Input),
            Just(Frame::InputEnd),
            any::<(u16, u16)>().prop_map(|(rows, columns)| Frame::Window(rows, columns)),
            Just(Frame::Alive),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_comes_back(sent in proptest::collection::vec(frames(), 0..20)) {
            let mut wire = Vec::new();
            for frame in &sent {
                frame.write(&mut wire).unwrap();
            }
            let mut wire = &wire[..];
            for frame in sent {
                prop_assert_eq!(Frame::read(&mut wire).unwrap(), Some(frame));
            }
            prop_assert_eq!(Frame::read(&mut wire).unwrap(), None);
        }

        #[test]
        fn nonsense_is_refused_and_never_panics(wire in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut wire = &wire[..];
            while let Ok(Some(_)) = Frame::read(&mut wire) {}
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_read() {
        let wire = [2, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(Frame::read(&mut &wire[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
