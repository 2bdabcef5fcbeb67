//! Processes of this host by an identity that outlives them: pid, start time and boot.
//!
//! A pid alone names nothing for long: the kernel recycles it, and a reboot makes all of them new. What is written to
//! disk about a process is therefore an [`Identity`]; what is done to a process goes through a pidfd taken from it.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};

/// Longest `/proc/PID/stat` looked at, in bytes. The kernel's own is under 1 KiB.
const STAT_MAX: usize = 4096;

/// A process that cannot be mistaken for another one: pid, start time, boot.
///
/// Its text form, `PID:START:BOOT`, is what records keep; `START` is in clock ticks since boot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pid: u32,
    start_ticks: u64,
    boot_id: String,
}

/// Why the identity of a process could not be told.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No such process (any more).
    #[error("there is no process {pid}")]
    Gone {
        /// The pid that was asked for.
        pid: u32,
    },
    /// A file under /proc could not be read.
    #[error("cannot read {path}; is /proc mounted?")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The process is there, but no handle of it could be taken or used.
    #[error("cannot {verb} process {pid}")]
    Handle {
        /// What was tried.
        verb: &'static str,
        /// The process.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A text is not what it should be.
    #[error("`{text}` is not {wanted}")]
    Parse {
        /// The text, cut short.
        text: String,
        /// What it should have been.
        wanted: &'static str,
    },
}

impl IdentityError {
    fn parse(text: &str, wanted: &'static str) -> Self {
        Self::Parse { text: text.chars().take(120).collect(), wanted }
    }
}

impl Identity {
    /// The identity of the process that has this pid now. A zombie has one too.
    pub fn read(pid: u32) -> Result<Self, IdentityError> {
        let stat = read_stat(pid)?;
        Ok(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id()? })
    }

    /// The identity of the calling process.
    pub fn own() -> Result<Self, IdentityError> {
        Self::read(std::process::id())
    }

    /// The pid. Only a name for people: act through [`Identity::pidfd`].
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the process still runs. One that has ended but was not reaped yet does not.
    pub fn is_alive(&self) -> Result<bool, IdentityError> {
        if boot_id()? != self.boot_id {
            return Ok(false);
        }
        match read_stat(self.pid) {
            Ok(stat) => Ok(stat.start_ticks == self.start_ticks && !stat.has_ended),
            Err(IdentityError::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A handle of exactly this process, readable when it ends; `None` if it has ended.
    pub fn pidfd(&self) -> Result<Option<OwnedFd>, IdentityError> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| IdentityError::parse(&self.pid.to_string(), "a pid"))?;
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // ESRCH: gone. EINVAL: the number is now that of a thread, not of a process.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(self.handle_error("open", errno)),
        };
        // Looked at after the handle was taken: from here on the handle cannot come to mean another process.
        Ok(self.is_alive()?.then_some(pidfd))
    }

    /// Sends a signal to exactly this process. `false` if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<bool, IdentityError> {
        let Some(pidfd) = self.pidfd()? else { return Ok(false) };
        match rustix::process::pidfd_send_signal(&pidfd, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(errno) => Err(self.handle_error("signal", errno)),
        }
    }

    fn handle_error(&self, verb: &'static str, errno: rustix::io::Errno) -> IdentityError {
        IdentityError::Handle { verb, pid: self.pid, source: errno.into() }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.pid, self.start_ticks, self.boot_id)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let error = || IdentityError::parse(text, "a process identity (PID:START:BOOT)");
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or_else(error);
        let pid = next()?.parse().ok().filter(|pid| *pid > 0 && i32::try_from(*pid).is_ok()).ok_or_else(error)?;
        let start_ticks = next()?.parse().map_err(|_| error())?;
        let boot_id = next()?;
        let is_boot_id = boot_id.len() == 36 && boot_id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if is_boot_id { Ok(Self { pid, start_ticks, boot_id: boot_id.to_owned() }) } else { Err(error()) }
    }
}

/// What matters here of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    has_ended: bool,
    start_ticks: u64,
}

fn read_stat(pid: u32) -> Result<Stat, IdentityError> {
    let path = format!("/proc/{pid}/stat");
    match std::fs::read(&path) {
        Ok(bytes) => parse_stat(&bytes),
        // ESRCH: it ended between open and read.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
            Err(IdentityError::Gone { pid })
        }
        Err(source) => Err(IdentityError::Read { path, source }),
    }
}

/// The program's name, field 2, is in parentheses and may itself hold spaces, parentheses and bytes that are no UTF-8.
fn parse_stat(bytes: &[u8]) -> Result<Stat, IdentityError> {
    const STATE: usize = 3;
    const START_TIME: usize = 22;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(STAT_MAX)]);
    let error = || IdentityError::parse(&text, "a line of /proc/PID/stat");
    let (_, after_name) = text.rsplit_once(')').ok_or_else(error)?;
    let field = |number: usize| after_name.split_ascii_whitespace().nth(number - STATE).ok_or_else(error);
    let has_ended = matches!(field(STATE)?, "Z" | "X" | "x");
    let start_ticks = field(START_TIME)?.parse().map_err(|_| error())?;
    Ok(Stat { has_ended, start_ticks })
}

fn boot_id() -> Result<String, IdentityError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|source| IdentityError::Read { path: path.into(), source })?;
    Ok(text.trim_end().to_owned())
}

/// What a process takes of the host now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Memory that is resident, in bytes.
    pub resident_bytes: u64,
    /// CPU time of all its threads so far.
    pub cpu: Duration,
}

/// What process `pid` takes; fails if there is none.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's line about a process is malformed");
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let resident: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).ok_or_else(malformed)?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; user and system time are the 12th and 13th fields after it.
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest).ok_or_else(malformed)?;
    let ticks: Vec<u64> = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let [user, system] = ticks[..] else { return Err(malformed()) };
    Ok(Usage {
        resident_bytes: resident * rustix::param::page_size() as u64,
        cpu: Duration::from_millis((user + system) * 1000 / rustix::param::clock_ticks_per_second()),
    })
}

/// Makes the calling process the one that orphans among its descendants are given to.
pub fn become_subreaper() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(io::Error::from)
}

/// The signal the calling process gets when the thread that started it ends.
pub fn set_parent_death_signal(signal: Signal) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(signal)).map_err(io::Error::from)
}

/// Signals that are read from a descriptor instead of interrupting the process.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks these signals on the calling thread (and on threads it starts later) and makes them readable here.
    /// For single-threaded programs, or to be called before the first thread is started.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        // SAFETY: zero is a valid `sigset_t`; the set outlives the calls; a `Signal` is always a valid number.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            for signal in signals {
                libc::sigaddset(&mut set, signal.as_raw());
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that arrived, if one has.
    pub fn read(&self) -> io::Result<Option<i32>> {
        // SAFETY: all of `signalfd_siginfo` is plain numbers, so zero and whatever the kernel writes are valid; the
        // length passed is that of the structure.
        let (info, count) = unsafe {
            let mut info: libc::signalfd_siginfo = std::mem::zeroed();
            let pointer = (&raw mut info).cast();
            let count = libc::read(self.0.as_raw_fd(), pointer, size_of::<libc::signalfd_siginfo>());
            (info, count)
        };
        if count != -1 {
            return Ok(i32::try_from(info.ssi_signo).ok().filter(|_| count > 0));
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
    }
}

impl std::os::fd::AsFd for SignalFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn::Spawn;

    #[test]
    fn the_name_of_a_program_cannot_confuse_the_parser() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        for name in ["sh", "a b", "a) R 1 2", "((", "", "\u{fffd}"] {
            let line = format!("77 ({name}) {tail}");
            assert_eq!(parse_stat(line.as_bytes()).unwrap(), Stat { has_ended: false, start_ticks: 4242 }, "{name}");
        }
        let zombie = format!("77 (sh) {}", tail.replacen('S', "Z", 1));
        assert!(parse_stat(zombie.as_bytes()).unwrap().has_ended);
        for broken in ["", "77 (sh", "77 (sh) S 1 2", "77 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x"] {
            assert!(parse_stat(broken.as_bytes()).is_err(), "{broken}");
        }
        parse_stat(b"1 (\xff\xfe) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 9 20").unwrap();
    }

    #[test]
    fn an_identity_survives_its_text_form() {
        let own = Identity::own().unwrap();
        assert_eq!(own.to_string().parse::<Identity>().unwrap(), own);
        assert!(own.is_alive().unwrap());
        for broken in ["", "1", "1:2", "1:2:3", "0:2:00000000-0000-0000-0000-000000000000", "x:2:3", "1:-2:3"] {
            assert!(broken.parse::<Identity>().is_err(), "{broken}");
        }
    }

    #[test]
    fn a_process_of_another_start_or_boot_is_not_this_one() {
        let own = Identity::own().unwrap();
        let earlier = Identity { start_ticks: own.start_ticks - 1, ..own.clone() };
        let other_boot = Identity { boot_id: "00000000-0000-0000-0000-000000000000".into(), ..own };
        for other in [earlier, other_boot] {
            assert!(!other.is_alive().unwrap());
            assert!(other.pidfd().unwrap().is_none());
            assert!(!other.signal(Signal::KILL).unwrap(), "the test would not be here");
        }
    }

    #[test]
    fn a_zombie_is_not_alive_and_a_reaped_process_is_gone() {
        let (reader, writer) = std::io::pipe().unwrap();
        let child = Spawn::new("/bin/cat").fd(std::os::fd::AsFd::as_fd(&reader), 0).start().unwrap();
        let identity = Identity::read(child.pid()).unwrap();
        assert!(identity.is_alive().unwrap());
        let pidfd = identity.pidfd().unwrap().unwrap();
        drop((reader, writer));
        let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, None).unwrap();
        assert!(!identity.is_alive().unwrap(), "a zombie");
        child.wait().unwrap();
        assert!(!identity.is_alive().unwrap());
        assert!(matches!(Identity::read(child.pid()), Err(IdentityError::Gone { .. })));
    }

    #[test]
    fn signals_can_be_read_instead_of_felt() {
        let signals = SignalFd::new(&[Signal::TERM, Signal::HUP]).unwrap();
        assert_eq!(signals.read().unwrap(), None);
        let pid = rustix::thread::gettid();
        // SAFETY: plain numbers; the signal is blocked on this very thread.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), pid.as_raw_nonzero().get(), libc::SIGTERM) };
        assert_eq!(signals.read().unwrap(), Some(libc::SIGTERM));
        assert_eq!(signals.read().unwrap(), None);
    }

    #[test]
    fn a_process_takes_memory_and_time() {
        let own = usage(std::process::id()).unwrap();
        assert!(own.resident_bytes > 100_000, "{own:?}");
        assert_eq!(usage(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn orphans_come_to_the_subreaper() {
        become_subreaper().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let script = "/bin/sleep 60 & echo $!";
        let out = std::os::fd::AsFd::as_fd(&writer);
        let child = Spawn::new("/bin/sh").args(["-c", script]).fd(out, 1).start().unwrap();
        child.wait().unwrap();
        drop(writer);
        let mut line = [0; 16];
        let length = std::io::Read::read(&mut reader, &mut line).unwrap();
        let orphan: u32 = std::str::from_utf8(&line[..length]).unwrap().trim().parse().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap();
        let parent = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(1).unwrap().to_owned();
        assert!(Identity::read(orphan).unwrap().signal(Signal::KILL).unwrap());
        assert_eq!(parent, std::process::id().to_string());
    }
}
