//! How a build goes on, as people watch it.

use std::io::IsTerminal as _;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use wrenn_engine::image::{self, Progress, Reporter};

/// A bar on a terminal, a line per step elsewhere; on stderr either way.
pub fn reporter() -> Reporter {
    if std::io::stderr().is_terminal() { Arc::new(Bar::new()) } else { image::lines(|line| eprintln!("{line}")) }
}

struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{msg:40} {wide_bar} {percent:>3} %  {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }
}

impl Progress for Bar {
    fn report(&self, step: &str, done: u64, total: u64) {
        self.0.set_message(step.to_owned());
        self.0.set_length(total.max(1));
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
