//! Descriptors that were here before the program started.
//!
//! Who starts a program can hand it descriptors by number. Turning a number into an owner is where double closes come
//! from, so it is done once, for all of them, before the program opens anything itself.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The descriptors a program was started with, other than stdin, stdout and stderr, by number. Those that nobody takes
/// are closed when this is dropped. All are close-on-exec from here on.
#[derive(Debug)]
pub struct Inherited(BTreeMap<RawFd, OwnedFd>);

/// Whether [`Inherited::take_all`] was called; a second owner of the same descriptors would close them twice.
static TAKEN: AtomicBool = AtomicBool::new(false);

impl Inherited {
    /// Takes ownership of every inherited descriptor. To be the first thing `main` does, because whatever is open by
    /// then is taken for inherited.
    ///
    /// # Panics
    /// On a second call.
    pub fn take_all() -> io::Result<Self> {
        assert!(!TAKEN.swap(true, Ordering::SeqCst), "inherited descriptors can be taken only once");
        let numbers = open_numbers()?;
        numbers.into_iter().filter(|number| *number > 2).filter_map(|number| own(number).transpose()).collect()
    }

    /// The descriptor of this number, if it was inherited and not taken yet.
    pub fn take(&mut self, number: RawFd) -> Option<OwnedFd> {
        self.0.remove(&number)
    }
}

impl FromIterator<(RawFd, OwnedFd)> for Inherited {
    fn from_iter<T: IntoIterator<Item = (RawFd, OwnedFd)>>(descriptors: T) -> Self {
        Self(descriptors.into_iter().collect())
    }
}

fn open_numbers() -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    Ok(numbers)
}

/// `None` for a number that is not open any more: that of the folder which was read to list them.
fn own(number: RawFd) -> io::Result<Option<(RawFd, OwnedFd)>> {
    // SAFETY: plain numbers; a closed descriptor is an error, nothing else.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EBADF) { Ok(None) } else { Err(error) };
    }
    // SAFETY: it is open, and was before the program opened anything; `take_all` runs once, so this is its one owner.
    Ok(Some((number, unsafe { OwnedFd::from_raw_fd(number) })))
}
