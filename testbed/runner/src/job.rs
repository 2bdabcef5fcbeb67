//! Running the one job, and passing everything it says on.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, wait};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::time::{ClockId, clock_gettime};
use wrenn_sys::spawn::{Child, Spawn, find_program};
use wrenn_testbed_runner::{ALIVE_EVERY, End, FRAME_BYTES_MAX, Frame, Job};

/// How long output is still passed on after the job has ended, should something it left behind hold its pipes.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// The port, written to by several threads.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn say(&self, frame: &Frame) -> io::Result<()> {
        frame.write(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs the job and says how it ended.
pub fn run(job: &Job, port: &File) -> Result<()> {
    let said = Port(Arc::new(Mutex::new(port.try_clone()?)));
    said.say(&Frame::Ready(uptime_ms())).context("cannot say that the host is ready")?;
    stay_alive(said.clone());
    let (child, streams) = start(job)?;
    let outputs = pass_on(&said, streams.outputs);
    take_in(port.try_clone()?, streams.input, streams.terminal);
    let end = wait_for_end(&child)?;
    drain(&outputs);
    for path in &job.bring {
        bring(&said, path).with_context(|| format!("cannot bring {} back", path.display()))?;
    }
    said.say(&Frame::Ended(end)).context("cannot say how the job ended")
}

/// Says again and again that this host runs, from a thread that ends with the machine.
fn stay_alive(port: Port) {
    std::thread::spawn(move || {
        while port.say(&Frame::Alive).is_ok() {
            std::thread::sleep(ALIVE_EVERY);
        }
    });
}

fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// A stream of the job's, and what its bytes are sent as.
type OutputStream = (OwnedFd, fn(Vec<u8>) -> Frame);

/// The ends of the job's streams that are ours.
struct Streams {
    input: Option<OwnedFd>,
    outputs: Vec<OutputStream>,
    terminal: Option<OwnedFd>,
}

fn start(job: &Job) -> Result<(Child, Streams)> {
    let (name, args) = job.command.split_first().context("the job has no command")?;
    let path = job.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
    let program = find_program(OsStr::new(name), OsStr::new(path), &job.cwd)
        .with_context(|| format!("cannot find the program {name}"))?;
    let spawn = Spawn::new(program).args(args).envs(job.env.iter().cloned()).cwd(&job.cwd).session();
    if job.terminal { start_on_terminal(spawn) } else { start_on_pipes(spawn) }
}

fn start_on_pipes(spawn: Spawn<'_>) -> Result<(Child, Streams)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe");
    let ((stdin, input), (output, stdout), (errors, stderr)) = (pipe()?, pipe()?, pipe()?);
    let child = spawn.fd(stdin.as_fd(), 0).fd(stdout.as_fd(), 1).fd(stderr.as_fd(), 2).start()?;
    let outputs: Vec<OutputStream> = vec![(output, Frame::Output), (errors, Frame::Errors)];
    Ok((child, Streams { input: Some(input), outputs, terminal: None }))
}

fn start_on_terminal(spawn: Spawn<'_>) -> Result<(Child, Streams)> {
    let ours =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context("cannot make a terminal")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new()).context("the terminal has no name")?;
    let theirs = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .context("cannot open the terminal")?;
    let (end, copy) = (theirs.as_fd(), ours.try_clone()?);
    let child = spawn.fd(end, 0).fd(end, 1).fd(end, 2).controlling_terminal().start()?;
    let input = ours.try_clone()?;
    Ok((child, Streams { input: Some(input), outputs: vec![(copy, Frame::Output)], terminal: Some(ours) }))
}

/// Passes each stream on from a thread of its own; the channel closes when all have ended.
fn pass_on(port: &Port, outputs: Vec<OutputStream>) -> Receiver<()> {
    let (done, all_done) = channel();
    for (stream, frame) in outputs {
        let (port, done) = (port.clone(), done.clone());
        std::thread::spawn(move || {
            let mut stream = File::from(stream);
            let mut buffer = vec![0; FRAME_BYTES_MAX];
            // A terminal whose last user is gone answers with an error: that is its end.
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                if port.say(&frame(buffer[..count].to_vec())).is_err() {
                    break;
                }
            }
            drop(done);
        });
    }
    all_done
}

/// Waits until all streams have ended, but not for ever.
fn drain(outputs: &Receiver<()>) {
    match outputs.recv_timeout(DRAIN_LIMIT) {
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
        Err(RecvTimeoutError::Timeout) => println!("testbed: something the job left behind still holds its output"),
    }
}

/// Feeds the job what the testbed sends, from a thread that ends with the machine.
fn take_in(mut port: File, input: Option<OwnedFd>, terminal: Option<OwnedFd>) {
    std::thread::spawn(move || {
        let mut input = input.map(File::from);
        while let Ok(Some(frame)) = Frame::read(&mut port) {
            match frame {
                Frame::Input(bytes) => {
                    // A job that has closed its input wants no more of it.
                    if input.as_mut().is_some_and(|input| input.write_all(&bytes).is_err()) {
                        input = None;
                    }
                }
                Frame::InputEnd => input = None,
                Frame::Window(rows, columns) => {
                    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                    if let Some(Err(error)) = terminal.as_ref().map(|terminal| tcsetwinsize(terminal, size)) {
                        println!("testbed: cannot set the terminal's size: {error}");
                    }
                }
                Frame::Ready(_)
                | Frame::Output(_)
                | Frame::Errors(_)
                | Frame::File(_)
                | Frame::FileData(_)
                | Frame::FileEnd
                | Frame::Ended(_)
                | Frame::Failed(_)
                | Frame::Alive => println!("testbed: a frame that only we may send"),
            }
        }
    });
}

/// Reaps everything, as the first process must, until the job itself has ended.
fn wait_for_end(child: &Child) -> Result<End> {
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty()).context("cannot wait for the job")? else { continue };
        if pid.as_raw_nonzero().get() as u32 == child.pid() {
            let end = status.exit_status().map(End::Exited).or(status.terminating_signal().map(End::Signalled));
            return end.context("the job neither exited nor was ended by a signal");
        }
    }
}

fn bring(port: &Port, path: &PathBuf) -> Result<()> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    port.say(&Frame::File(Path::new(path).display().to_string()))?;
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => port.say(&Frame::FileData(buffer[..count].to_vec()))?,
        }
    }
    Ok(port.say(&Frame::FileEnd)?)
}
