//! Terminals: a master for us, a slave for the process, owned by its user.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

impl From<Size> for Winsize {
    fn from(size: Size) -> Self {
        Self { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
    }
}

/// Both ends of a new terminal.
#[derive(Debug)]
pub struct Terminal {
    /// Ours: what the process writes is read here, what is written here is typed. Does not block.
    pub master: OwnedFd,
    /// The process's.
    pub slave: OwnedFd,
}

/// Makes a terminal that belongs to user `uid` and group `gid`. Needs /dev/ptmx and a devpts.
pub fn open(size: Size, uid: u32, gid: u32) -> io::Result<Terminal> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    give_to(&slave, uid, gid)?;
    resize(&master, size)?;
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
    Ok(Terminal { master, slave })
}

/// Tells the terminal and whoever runs in it its new size.
pub fn resize(master: impl AsFd, size: Size) -> io::Result<()> {
    Ok(rustix::termios::tcsetwinsize(master, size.into())?)
}

/// Programs open their own terminal by its name (`/dev/tty`, `ttyname`), as their user. Others may only `write` to it.
fn give_to(slave: &OwnedFd, uid: u32, gid: u32) -> io::Result<()> {
    match rustix::fs::fchown(slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
        // Without root it is ours already, and so is the process.
        Err(rustix::io::Errno::PERM) => Ok(()),
        answer => Ok(answer.and_then(|()| rustix::fs::fchmod(slave, Mode::from_raw_mode(0o620)))?),
    }
}
