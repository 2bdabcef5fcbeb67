//! What xtask says: a progress bar on a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One step of the work, announced when it starts and closed with the time it took.
#[derive(Debug)]
pub struct Step {
    title: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Announces a step.
    pub fn start(title: impl Into<String>) -> Self {
        let title = title.into();
        eprintln!("==> {title}");
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(title.clone());
            bar.set_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { title, started: Instant::now(), bar }
    }

    /// Announces a step whose programs print on their own: no bar may come between.
    pub fn start_loud(title: impl Into<String>) -> Self {
        let title = title.into();
        eprintln!("==> {title}");
        Self { title, started: Instant::now(), bar: None }
    }

    /// Says something that stays: a line, above the bar where there is one.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("    {text}")),
            None => eprintln!("    {text}"),
        }
    }

    /// Says what is being done right now, in the bar; without a bar nothing.
    pub fn tick(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {text}", self.title));
        }
    }

    /// Closes the step with its outcome.
    pub fn done(self, outcome: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("    {outcome} ({})", seconds(self.started.elapsed()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:>5}").expect("the template is a constant")
}

/// A duration for people: `0.4 s`, `12 s`, `3 min 5 s`.
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        seconds @ 10..120 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (ms, text) in [(0, "0.0 s"), (440, "0.4 s"), (12_900, "12 s"), (185_000, "3 min 5 s")] {
            assert_eq!(seconds(Duration::from_millis(ms)), text);
        }
    }
}
