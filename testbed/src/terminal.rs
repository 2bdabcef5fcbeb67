//! This terminal, handed to a job.

use std::io;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in raw mode; as it was before when dropped.
#[derive(Debug)]
pub struct Terminal {
    before: Termios,
}

impl Terminal {
    /// Puts the terminal on standard input into raw mode.
    pub fn raw() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("a shell needs a terminal on its standard input")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("cannot put the terminal into raw mode")?;
        Ok(Self { before })
    }

    /// Rows and columns.
    pub fn size(&self) -> (u16, u16) {
        // A terminal that does not know its size is taken for a common one.
        tcgetwinsize(io::stdin()).map_or((24, 80), |size| (size.ws_row, size.ws_col))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.before) {
            eprintln!("testbed: cannot reset the terminal: {error}");
        }
    }
}
