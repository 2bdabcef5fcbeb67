//! One job from here: what it prints comes out as it is printed, what it asks for is waited for, but never for ever.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use wrenn_testbed_runner::{ALIVE_EVERY, End, FRAME_BYTES_MAX, Frame, Job};

use crate::machine::Machine;
use crate::supplies::Supply;
use crate::terminal::Terminal;

/// How long the emulated host may say nothing at all. One that is silent for longer stands still: translation does that to hosts
/// of virtual machines now and then, and no test is to blame.
const SILENCE_LIMIT: Duration = ALIVE_EVERY.saturating_mul(24);
/// How long the emulated host may take until its first process speaks: 4 s are usual, a busy machine takes longer.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// The emulated host does not run any more, and has not ended.
#[derive(Debug, thiserror::Error)]
#[error("the emulated host stands still: it has said nothing for {SILENCE_LIMIT:?}")]
pub struct StandsStill;

/// Sees the job through; answers its exit code. A job that does not come to its end is a failure, with the console's end.
pub fn run(machine: Machine, job: &Job, bring: &[Supply], limit: Duration) -> Result<u8> {
    let terminal = job.terminal.then(Terminal::raw).transpose()?;
    let outcome = machine.port.try_clone().context("cannot use the port").and_then(|port| {
        let frames = listen(port.try_clone()?);
        pass_input(port, terminal.as_ref().map(Terminal::size))?;
        follow(&frames, bring, limit)
    });
    drop(terminal);
    let console = machine.end()?;
    if outcome.is_err() {
        eprintln!("testbed: the emulated host's console ends with:\n{}\n", last_lines(&console));
    }
    Ok(u8::try_from(outcome?.shell_code()).unwrap_or(u8::MAX))
}

fn last_lines(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Frames, or why there are no more, from a thread of their own: so that waiting for them can be bounded.
fn listen(mut port: UnixStream) -> Receiver<io::Result<Frame>> {
    // Bounded: a job that prints faster than we do waits.
    let (tell, told) = sync_channel(16);
    std::thread::spawn(move || {
        loop {
            let frame = Frame::read(&mut port).transpose();
            let ended = !matches!(frame, Some(Ok(_)));
            let sent = frame.is_none_or(|frame| tell.send(frame).is_ok());
            if ended || !sent {
                return;
            }
        }
    });
    told
}

/// Passes our standard input on, from a thread that ends with this process.
fn pass_input(mut port: UnixStream, size: Option<(u16, u16)>) -> Result<()> {
    if let Some((rows, columns)) = size {
        Frame::Window(rows, columns).write(&mut port).context("cannot tell the terminal's size")?;
    }
    std::thread::spawn(move || {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            if Frame::Input(buffer[..count].to_vec()).write(&mut port).is_err() {
                return;
            }
        }
        // The machine may be gone by now, and then nobody waits for the end of input.
        drop(Frame::InputEnd.write(&mut port));
    });
    Ok(())
}

fn follow(frames: &Receiver<io::Result<Frame>>, bring: &[Supply], limit: Duration) -> Result<End> {
    follow_within(frames, bring, limit, SILENCE_LIMIT)
}

fn follow_within(
    frames: &Receiver<io::Result<Frame>>,
    bring: &[Supply],
    limit: Duration,
    silence_limit: Duration,
) -> Result<End> {
    let mut until = Instant::now() + BOOT_LIMIT;
    let mut silence = BOOT_LIMIT;
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let mut file: Option<File> = None;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let frame = match frames.recv_timeout(left.min(silence)) {
            Ok(frame) => frame.context("the emulated host says something that is not understood")?,
            Err(RecvTimeoutError::Timeout) if left > silence => return Err(StandsStill.into()),
            Err(RecvTimeoutError::Timeout) => bail!("the job hangs, or takes longer than it may; it was ended"),
            Err(RecvTimeoutError::Disconnected) => bail!("the emulated host ended before the job did"),
        };
        match frame {
            Frame::Ready(milliseconds) => {
                eprintln!("testbed: the emulated host was ready after {milliseconds} ms");
                until = Instant::now() + limit;
                silence = silence_limit;
            }
            Frame::Alive => {}
            Frame::Output(bytes) => write_all(&mut out, &bytes)?,
            Frame::Errors(bytes) => write_all(&mut err, &bytes)?,
            Frame::File(path) => file = Some(target(&path, bring)?),
            Frame::FileData(bytes) => {
                file.as_mut().context("data of no file")?.write_all(&bytes).context("cannot write a file")?;
            }
            Frame::FileEnd => file = None,
            Frame::Ended(end) => return Ok(end),
            Frame::Failed(why) => bail!("the job was not run: {why}"),
            Frame::Input(_) | Frame::InputEnd | Frame::Window(..) => bail!("the emulated host sent us input"),
        }
    }
}

fn write_all(stream: &mut impl Write, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).and_then(|()| stream.flush()).context("cannot pass the job's output on")
}

fn target(path: &str, bring: &[Supply]) -> Result<File> {
    let wanted = bring.iter().find(|file| file.source == Path::new(path)).context("a file that was not asked for")?;
    File::create(&wanted.target).with_context(|| format!("cannot make {}", wanted.target.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn told(frames: Vec<Frame>) -> Receiver<io::Result<Frame>> {
        let (tell, told) = channel();
        frames.into_iter().for_each(|frame| tell.send(Ok(frame)).unwrap());
        told
    }

    #[test]
    fn a_file_comes_back_whole_and_the_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let bring = Supply { source: "/there".into(), target: dir.path().join("here") };
        let frames = vec![
            Frame::Ready(1),
            Frame::File("/there".to_owned()),
            Frame::FileData(b"ab".to_vec()),
            Frame::FileData(b"c".to_vec()),
            Frame::FileEnd,
            Frame::Ended(End::Exited(3)),
        ];
        let end = follow(&told(frames), std::slice::from_ref(&bring), Duration::from_secs(1)).unwrap();
        assert_eq!(end, End::Exited(3));
        assert_eq!(std::fs::read(bring.target).unwrap(), b"abc");
    }

    #[test]
    fn a_host_that_ends_or_hangs_is_a_failure() {
        let ended = follow(&told(vec![Frame::Ready(1)]), &[], Duration::from_secs(60)).unwrap_err();
        assert!(ended.to_string().contains("ended before"), "{ended}");
        let (tell, told) = channel();
        tell.send(Ok(Frame::Ready(1))).unwrap();
        let hung = follow(&told, &[], Duration::from_millis(20)).unwrap_err();
        assert!(hung.to_string().contains("hangs"), "{hung}");
    }

    #[test]
    fn a_host_that_says_nothing_stands_still() {
        let (tell, told) = channel();
        tell.send(Ok(Frame::Ready(1))).unwrap();
        tell.send(Ok(Frame::Alive)).unwrap();
        let still = follow_within(&told, &[], Duration::from_secs(60), Duration::from_millis(20)).unwrap_err();
        assert!(still.is::<StandsStill>(), "{still}");
    }

    #[test]
    fn what_nobody_asked_for_is_refused() {
        for frame in [Frame::File("/etc/shadow".to_owned()), Frame::FileData(vec![1]), Frame::InputEnd] {
            assert!(follow(&told(vec![frame]), &[], Duration::from_secs(1)).is_err());
        }
    }
}
