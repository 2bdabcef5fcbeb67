//! Hooks: programs of the template or the user that are run before a resumed sandbox's processes go on.
//!
//! ```text
//!   /etc/wrenn/resume.d ─► executable files, by name ─► one after the other ─► exited with 0 ─► next
//!                                                         └─ anything else: the whole ends with an error that names it
//! ```
//! A hook runs as root beside envd, not among the users' processes, which stand still meanwhile. It has nothing but its
//! environment: no input, its output is dropped, of its complaints the end is kept for the error. When it ends, or its
//! time does, its whole process group is killed: nothing that it started runs on, unless it made a session of its own.
//!
//! Plain blocking code, for a thread that may wait.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use wrenn_sys::spawn::{Child, ExitStatus, Spawn, SpawnError};

use crate::limits;

/// Where they are.
pub const FOLDER: &str = "/etc/wrenn/resume.d";

/// Why not all hooks have done their work. Those after the one that is named did not run.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Nobody knows which there are.
    #[error("cannot list the hooks in {}", folder.display())]
    List {
        /// The folder.
        folder: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// More than anybody needs.
    #[error("more than {max} hooks are in {}", .0.display(), max = limits::HOOKS_MAX)]
    TooMany(PathBuf),
    /// It does not run.
    #[error("cannot start the hook {hook}")]
    Start {
        /// Its file's name.
        hook: String,
        /// Why.
        source: SpawnError,
    },
    /// What becomes of it cannot be seen.
    #[error("cannot watch the hook {hook}")]
    Watch {
        /// Its file's name.
        hook: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It said that it failed, or was killed.
    #[error("the hook {hook} {}{}", ended(*.status), said(.stderr))]
    Failed {
        /// Its file's name.
        hook: String,
        /// How it ended.
        status: ExitStatus,
        /// The last it said on its standard error.
        stderr: String,
    },
    /// Time was up; it was killed.
    #[error("the hook {hook} was killed when the time for all hooks was up{}", said(.stderr))]
    Late {
        /// Its file's name.
        hook: String,
        /// The last it said on its standard error.
        stderr: String,
    },
}

fn ended(status: ExitStatus) -> String {
    match status {
        ExitStatus::Exited(code) => format!("exited with {code}"),
        ExitStatus::Signalled(signal) => format!("was ended by signal {signal}"),
    }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; the end of its stderr: {stderr}") }
}

/// Runs the hooks in `folder`, with exactly this environment, all together within `limit`. Answers their names. A folder
/// that is not there has none.
pub fn run_all(folder: &Path, env: &[(&str, String)], limit: Duration) -> Result<Vec<String>, HookError> {
    let deadline = Instant::now() + limit;
    list(folder)?.into_iter().map(|hook| run(&folder.join(&hook), env, deadline)).collect()
}

/// The names of the hooks, in their order.
fn list(folder: &Path) -> Result<Vec<OsString>, HookError> {
    let failed = |source| HookError::List { folder: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        match std::fs::metadata(entry.path()) {
            Ok(found) if is_hook(&found) => hooks.push(entry.file_name()),
            Ok(_other) => {}
            // A link to nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if hooks.len() > limits::HOOKS_MAX {
            return Err(HookError::TooMany(folder.to_owned()));
        }
    }
    hooks.sort_unstable();
    Ok(hooks)
}

fn is_hook(found: &Metadata) -> bool {
    found.is_file() && found.permissions().mode() & 0o111 != 0
}

/// Runs one to its end; its name if that was a good one.
fn run(program: &Path, env: &[(&str, String)], deadline: Instant) -> Result<String, HookError> {
    let hook = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let watch_failed = |source| HookError::Watch { hook: hook.clone(), source };
    let (stderr, theirs) = stderr_pipe().map_err(watch_failed)?;
    let spawn = Spawn::new(program).envs(env.iter().map(|(name, value)| (*name, value)));
    let spawn = spawn.fd(theirs.as_fd(), 2).session().oom_score_adj(limits::USER_OOM_SCORE);
    let child = spawn.start().map_err(|source| HookError::Start { hook: hook.clone(), source })?;
    drop(theirs);
    let mut stderr = Stderr { pipe: Some(stderr), tail: Vec::new() };
    let status = see_through(&child, &mut stderr, deadline).map_err(watch_failed)?;
    let stderr = stderr.into_text();
    match status {
        Some(ExitStatus::Exited(0)) => Ok(hook),
        Some(status) => Err(HookError::Failed { hook, status, stderr }),
        None => Err(HookError::Late { hook, stderr }),
    }
}

/// Ours to read from, which does not block, and the hook's.
fn stderr_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&ours, OFlags::NONBLOCK)?;
    Ok((ours, theirs))
}

/// Waits for its end; none when there was none in time. Of its process group nobody is left.
fn see_through(child: &Child, stderr: &mut Stderr, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let in_time = has_ended(child, stderr, deadline);
    // Before the process is reaped: until then its number means its group.
    child.signal_group(Signal::KILL)?;
    let in_time = in_time?;
    if !in_time && !has_ended(child, stderr, Instant::now() + limits::KILL_SEEN_WITHIN)? {
        // In the kernel's hands for longer; it ends later, and is init's to reap when envd is gone.
        return Ok(None);
    }
    let status = child.wait()?;
    stderr.take_what_is_there();
    Ok(in_time.then_some(status))
}

/// Waits until the process has ended, reading what it says; `false` when that takes too long.
fn has_ended(child: &Child, stderr: &mut Stderr, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = vec![PollFd::new(child, PollFlags::IN)];
        polled.extend(stderr.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match rustix::event::poll(&mut polled, Some(&Timespec::try_from(left).map_err(io::Error::other)?)) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let ended = !polled[0].revents().is_empty();
        if polled.get(1).is_some_and(|pipe| !pipe.revents().is_empty()) {
            stderr.take();
        }
        if ended || left.is_zero() {
            return Ok(ended);
        }
    }
}

/// A hook's standard error; of what it said the end is kept.
struct Stderr {
    /// None when it is at its end.
    pipe: Option<OwnedFd>,
    tail: Vec<u8>,
}

impl Stderr {
    /// Reads once; `false` when there is nothing, now or ever.
    fn take(&mut self) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        let mut buffer = [0; 4096];
        match rustix::io::read(pipe, &mut buffer) {
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            // Nothing else is known to happen to a pipe.
            Ok(0) | Err(_) => {
                self.pipe = None;
                false
            }
            Ok(read) => {
                self.tail.extend_from_slice(&buffer[..read]);
                let too_many = self.tail.len().saturating_sub(limits::HOOK_STDERR_BYTES_MAX);
                self.tail.drain(..too_many);
                true
            }
        }
    }

    /// Reads what was written before the end, and no more: somebody else may hold the pipe and write on.
    fn take_what_is_there(&mut self) {
        let mut left = self.pipe.as_ref().map_or(0, |pipe| rustix::io::ioctl_fionread(pipe).unwrap_or(0));
        while left > 0 && self.take() {
            left = left.saturating_sub(4096);
        }
    }

    fn into_text(self) -> String {
        String::from_utf8_lossy(&self.tail).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// A folder of hooks: name, mode, and text of a shell script.
    fn folder(hooks: &[(&str, u32, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode, script) in hooks {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(*mode)).unwrap();
        }
        folder
    }

    fn run(folder: &tempfile::TempDir, limit: Duration) -> Result<Vec<String>, HookError> {
        let log = folder.path().join("log").to_string_lossy().into_owned();
        let env = [("PATH", "/usr/bin:/bin".to_owned()), ("LOG", log)];
        run_all(folder.path(), &env, limit)
    }

    fn log(folder: &tempfile::TempDir) -> String {
        std::fs::read_to_string(folder.path().join("log")).unwrap_or_default()
    }

    #[test]
    fn they_run_by_name_and_whatever_is_no_executable_file_does_not() {
        let folder = folder(&[
            ("20-second", 0o755, "echo second >> $LOG"),
            ("10-first", 0o700, "echo first >> $LOG"),
            ("15-not-executable", 0o644, "echo never >> $LOG"),
            ("30-third.sh", 0o755, "echo third >> $LOG"),
        ]);
        std::fs::create_dir(folder.path().join("00-folder")).unwrap();
        std::os::unix::fs::symlink("/no/such/file", folder.path().join("01-dangling")).unwrap();
        std::os::unix::fs::symlink("20-second", folder.path().join("40-link")).unwrap();
        let (mode, fifo) = (rustix::fs::Mode::from_raw_mode(0o777), folder.path().join("02-fifo"));
        rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(run(&folder, LONG).unwrap(), ["10-first", "20-second", "30-third.sh", "40-link"]);
        assert_eq!(log(&folder), "first\nsecond\nthird\nsecond\n");
    }

    #[test]
    fn no_folder_and_an_empty_one_have_no_hooks_and_a_file_is_no_folder() {
        let empty = folder(&[("file", 0o644, "")]);
        assert_eq!(run(&empty, LONG).unwrap(), Vec::<String>::new());
        assert_eq!(run_all(Path::new("/no/such/folder"), &[], LONG).unwrap(), Vec::<String>::new());
        let error = run_all(&empty.path().join("file"), &[], LONG).unwrap_err();
        assert!(matches!(error, HookError::List { .. }), "{error}");
    }

    #[test]
    fn a_hook_has_its_environment_its_session_and_no_input() {
        let script = "env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= | sort >> $LOG; readlink /proc/self/fd/0 >> $LOG
            pwd >> $LOG; ps -o pgid=,sid= -p $$ | tr -d ' ' >> $LOG; echo $$$$ >> $LOG; cat /proc/self/oom_score_adj >> $LOG";
        let folder = folder(&[("10", 0o755, script)]);
        run(&folder, LONG).unwrap();
        let log = log(&folder);
        let lines: Vec<&str> = log.lines().collect();
        assert!(lines[0].starts_with("LOG="), "{log}");
        assert_eq!(&lines[1..4], ["PATH=/usr/bin:/bin", "/dev/null", "/"], "{log}");
        assert_eq!((lines[4], lines[6]), (lines[5], "100"), "{log}");
    }

    #[test]
    fn the_first_bad_end_is_told_and_ends_it() {
        let ends_itself = HookError::Failed { hook: "20".into(), status: ExitStatus::Signalled(9), stderr: "".into() };
        for (script, expected) in [
            ("echo why >&2; exit 3", "the hook 20 exited with 3; the end of its stderr: why".to_owned()),
            ("kill -9 $$", ends_itself.to_string()),
            ("exit 255", "the hook 20 exited with 255".to_owned()),
        ] {
            let folder = folder(&[
                ("10", 0o755, "echo ran >> $LOG"),
                ("20", 0o755, script),
                ("30", 0o755, "echo never >> $LOG"),
            ]);
            assert_eq!(run(&folder, LONG).unwrap_err().to_string(), expected);
            assert_eq!(log(&folder), "ran\n");
        }
    }

    #[test]
    fn what_cannot_be_started_is_named() {
        let folder = folder(&[]);
        let path = folder.path().join("10-nonsense");
        std::fs::write(&path, "\x7fELF nonsense").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let error = run(&folder, LONG).unwrap_err();
        assert!(matches!(&error, HookError::Start { hook, .. } if hook == "10-nonsense"), "{error}");
    }

    #[test]
    fn one_that_hangs_is_killed_with_all_it_started() {
        let folder = folder(&[
            ("10", 0o755, "echo ran >> $LOG"),
            ("20", 0o755, "sleep 1000 & echo $! > $LOG; echo x >&2; wait"),
        ]);
        let begun = Instant::now();
        let error = run(&folder, Duration::from_secs(2)).unwrap_err();
        assert!(matches!(&error, HookError::Late { hook, stderr } if hook == "20" && stderr == "x"), "{error}");
        assert!(begun.elapsed() >= Duration::from_secs(2) && begun.elapsed() < LONG, "{:?}", begun.elapsed());
        gone(log(&folder).trim());
    }

    #[test]
    fn the_limit_is_one_for_all() {
        let slow = "sleep 0.4";
        let folder = folder(&[("10", 0o755, slow), ("20", 0o755, slow), ("30", 0o755, slow), ("40", 0o755, slow)]);
        let error = run(&folder, Duration::from_millis(1000)).unwrap_err();
        assert!(matches!(&error, HookError::Late { .. }), "{error}");
    }

    #[test]
    fn what_it_leaves_behind_is_killed_and_not_waited_for() {
        let folder = folder(&[("10", 0o755, "sleep 1000 & echo $! > $LOG"), ("20", 0o755, "true")]);
        let begun = Instant::now();
        assert_eq!(run(&folder, LONG).unwrap(), ["10", "20"]);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        gone(log(&folder).trim());
    }

    /// An orphan is reaped by whoever is its init; until then it is a zombie.
    fn gone(pid: &str) {
        let begun = Instant::now();
        let runs = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        while runs() {
            assert!(begun.elapsed() < Duration::from_secs(10), "process {pid} still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn of_ten_megabytes_of_complaints_the_end_is_kept() {
        let script = "head -c 10000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1";
        let folder = folder(&[("10", 0o755, script)]);
        let HookError::Failed { status, stderr, .. } = run(&folder, LONG).unwrap_err() else { panic!("not that") };
        assert_eq!(status, ExitStatus::Exited(1));
        assert!(stderr.ends_with("xxxthe end"), "{stderr}");
        assert!(stderr.len() <= limits::HOOK_STDERR_BYTES_MAX && stderr.len() > 500, "{}", stderr.len());
        // The same with success is nobody's business.
        let folder = self::folder(&[("10", 0o755, "head -c 10000000 /dev/zero >&2")]);
        assert_eq!(run(&folder, LONG).unwrap(), ["10"]);
    }

    #[test]
    fn a_closed_standard_error_is_no_end() {
        let folder = folder(&[("10", 0o755, "exec 2>&-; sleep 0.2; exit 4")]);
        let error = run(&folder, LONG).unwrap_err();
        assert!(matches!(error, HookError::Failed { status: ExitStatus::Exited(4), .. }), "{error}");
    }

    #[test]
    fn more_than_anybody_needs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..=limits::HOOKS_MAX {
            let path = folder.path().join(index.to_string());
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        assert!(matches!(run(&folder, LONG), Err(HookError::TooMany(_))));
    }
}
