//! Waiting for signals instead of being interrupted by them: for processes whose whole life is such a wait (PID 1).
//!
//! The set is blocked for the calling thread and every thread it starts later; a [`Blocked`] value is the proof, and the
//! only way to wait. Programs started by [`crate::spawn`] get an empty mask again.

use std::io;
use std::mem::MaybeUninit;

use rustix::process::Signal;

/// A set of signals that is blocked in this thread and can be waited for.
#[derive(Clone, Copy)]
pub struct Blocked {
    set: libc::sigset_t,
}

impl Blocked {
    /// Blocks `signals`. Call it before the first thread is started, or other threads may take them.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let set = set_of(signals)?;
        // SAFETY: `set` was initialised by `set_of`; the old mask is not asked for, which a null pointer says.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => Ok(Self { set }),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Waits for the next signal of the set. Several of one kind may arrive as one.
    pub fn wait(&self) -> io::Result<Signal> {
        loop {
            // SAFETY: the set is initialised, and a null `info` asks for nothing but the number.
            let number = unsafe { libc::sigwaitinfo(&self.set, std::ptr::null_mut()) };
            if let Some(signal) = Signal::from_named_raw(number) {
                return Ok(signal);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

fn set_of(signals: &[Signal]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset writes the whole set, which is ours.
    if unsafe { libc::sigemptyset(set.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for signal in signals {
        // SAFETY: the set was initialised by sigemptyset above; the number comes from a `Signal`.
        if unsafe { libc::sigaddset(set.as_mut_ptr(), signal.as_raw()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: initialised by sigemptyset.
    Ok(unsafe { set.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_waited_for_and_not_acted_on() {
        let blocked = Blocked::new(&[Signal::TERM, Signal::CHILD]).unwrap();
        // SAFETY: the signal goes to this thread, in which it is blocked.
        assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) }, 0);
        assert_eq!(blocked.wait().unwrap(), Signal::TERM);
    }
}
