//! How far a copy is, as people watch it.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on standard error, where that is a terminal.
pub struct Progress(ProgressBar);

impl Progress {
    /// Nothing is shown where the bytes themselves may go to the same terminal.
    pub fn new(to_stdout: bool) -> Self {
        let is_in_the_way = to_stdout && std::io::stdout().is_terminal();
        if is_in_the_way || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{msg:40!} {wide_bar} {bytes} of {total_bytes}  {bytes_per_sec}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }

    /// A file begins, of so many bytes if that is known.
    pub fn file(&self, name: &str, size: Option<u64>) {
        self.0.reset();
        self.0.set_message(crate::words::printable_line(name));
        self.0.set_length(size.unwrap_or_default());
    }

    /// So many bytes of it are done.
    pub fn add(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }

    /// For who passes bytes on elsewhere.
    pub fn handle(&self) -> impl Fn(usize) + Send + Sync + 'static {
        let bar = self.0.clone();
        move |bytes| bar.inc(bytes as u64)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
