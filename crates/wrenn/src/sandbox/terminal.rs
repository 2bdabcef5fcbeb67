//! Our terminal in raw mode: every key goes to the sandbox, Ctrl-C too, and nothing is echoed or changed on this side.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Raw until it is dropped, also by a panic. A signal that ends this process must be taken, as [`crate::execution::Signals`]
/// does, or the terminal stays raw.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal of our standard input raw.
    pub fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // What was typed ahead is kept: it is meant for the shell.
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before) {
            // A terminal that hung up needs no restoring.
            tracing::debug!(%error, "the terminal cannot be restored");
        }
    }
}
