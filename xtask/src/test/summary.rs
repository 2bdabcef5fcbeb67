//! The test runner's summary, held back so that it can be the last thing printed; and the sum of several runs.

use std::time::Duration;

/// What the runner printed from its summary on.
#[derive(Debug, Default)]
pub struct Summary {
    held: Vec<String>,
}

impl Summary {
    /// Whether this line belongs to the summary, which is then kept for later.
    pub fn holds_back(&mut self, line: &str) -> bool {
        let begins = without_colours(line).trim_start().starts_with("Summary [");
        let held = begins || !self.held.is_empty();
        if held {
            self.held.push(line.to_owned());
        }
        held
    }

    /// Prints it; with leaks, which the runner knows nothing of, a line counts them as one failure more.
    pub fn print(&self, leaks: usize) {
        for line in &self.held {
            eprintln!("{line}");
        }
        if leaks > 0 {
            let (passed, failed) = self.counts();
            eprintln!("{passed} passed, {} failed", failed + 1);
        }
    }

    /// How many tests passed and how many did not.
    fn counts(&self) -> (u64, u64) {
        let line = self.held.first().map_or_else(String::new, |line| without_colours(line));
        let words: Vec<&str> = line.split([' ', ',', '(', ')']).filter(|word| !word.is_empty()).collect();
        let count = |wanted: &str| {
            let at = words.windows(2).find(|pair| pair[1] == wanted);
            at.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
        };
        (count("passed"), count("failed") + count("timed") + count("exec"))
    }
}

/// How one rung of the tests went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// What ran, and where.
    pub rung: String,
    /// How it went.
    pub outcome: Outcome,
}

/// How a rung went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to its end.
    Ran {
        /// Tests that passed.
        passed: u64,
        /// Tests that did not, and other failures such as a leak.
        failed: u64,
        /// How long it took.
        took: Duration,
    },
    /// It did not run here, and why.
    NotRun(String),
}

impl Tally {
    /// Whether nothing failed. What did not run has not failed; it is said loudly.
    pub fn is_good(&self) -> bool {
        match &self.outcome {
            Outcome::Ran { failed, .. } => *failed == 0,
            Outcome::NotRun(_) => true,
        }
    }
}

/// Listens to the output of one rung, which it passes on: at once, or in one piece at its end.
#[derive(Debug, Default)]
pub struct Rung {
    summary: Summary,
    failures: Vec<String>,
    /// What is passed on at the end.
    held: Option<Vec<String>>,
}

impl Rung {
    /// One that runs beside others: its output would be torn apart by theirs.
    pub fn in_one_piece() -> Self {
        Self { held: Some(Vec::new()), ..Self::default() }
    }

    /// One line of it.
    pub fn line(&mut self, line: &str) {
        match &mut self.held {
            Some(held) => held.push(line.to_owned()),
            None => eprintln!("{line}"),
        }
        self.summary.holds_back(line);
        if without_colours(line).contains("LEFT BEHIND") {
            self.failures.push(line.to_owned());
        }
    }

    /// Its tally; a rung that failed without a failed test has failed once.
    pub fn finish(self, rung: &str, success: bool, took: Duration) -> Tally {
        if let Some(held) = self.held {
            eprintln!("{}", held.join("\n"));
        }
        let (passed, failed) = self.summary.counts();
        let leaked = u64::from(!self.failures.is_empty());
        let failed = (failed + leaked).max(u64::from(!success));
        Tally { rung: rung.to_owned(), outcome: Outcome::Ran { passed, failed, took } }
    }
}

/// Prints a line for each rung and the sum, in the runner's own form.
pub fn print(tallies: &[Tally]) {
    eprintln!("────────────\n==> what ran");
    let (mut all_passed, mut all_failed, mut all_took) = (0, 0, Duration::ZERO);
    for Tally { rung, outcome } in tallies {
        match outcome {
            Outcome::Ran { passed, failed, took } => {
                eprintln!("    {rung:<32} {passed} passed, {failed} failed ({:.0} s)", took.as_secs_f64());
                (all_passed, all_failed, all_took) = (all_passed + passed, all_failed + failed, all_took + *took);
            }
            Outcome::NotRun(why) => eprintln!("    {rung:<32} *** DID NOT RUN: {why} ***"),
        }
    }
    let run = all_passed + all_failed;
    let seconds = all_took.as_secs_f64();
    eprintln!("     Summary [{seconds:>8.3}s] {run} tests run: {all_passed} passed, {all_failed} failed");
}

/// The text without escape sequences for colours (`ESC [ … m`).
fn without_colours(line: &str) -> String {
    let mut pieces = line.split("\x1b[");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + piece.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_back_from_the_summary_on() {
        let mut summary = Summary::default();
        let lines =
            ["  PASS a", "------", "\x1b[32m     Summary\x1b[0m [   0.01s] 3 tests run: 2 passed, 1 failed", "FAIL b"];
        let held = lines.map(|line| summary.holds_back(line));
        // A colour in front of the word does not hide it.
        assert_eq!(held, [false, false, true, true]);
    }

    #[test]
    fn counts_what_the_runner_counted() {
        for (line, wanted) in [
            ("     Summary [   9.015s] 5/7 tests run: 4 passed, 1 failed, 2 skipped", (4, 1)),
            ("     Summary [   0.015s] 3 tests run: 3 passed, 0 skipped", (3, 0)),
            ("     Summary [   9.015s] 5 tests run: 2 passed (1 slow), 2 failed, 1 timed out, 7 skipped", (2, 3)),
            ("     Summary [   0.015s] 0 tests run: 0 passed, 4 skipped", (0, 0)),
        ] {
            let mut summary = Summary::default();
            assert!(summary.holds_back(line));
            assert_eq!(summary.counts(), wanted, "{line}");
        }
    }

    #[test]
    fn a_rung_that_failed_without_a_failed_test_has_failed() {
        let run = |lines: &[&str], success| {
            let mut rung = Rung::default();
            lines.iter().for_each(|line| rung.line(line));
            match rung.finish("a", success, Duration::ZERO).outcome {
                Outcome::Ran { passed, failed, .. } => (passed, failed),
                Outcome::NotRun(why) => panic!("{why}"),
            }
        };
        let summary = "     Summary [   0.015s] 3 tests run: 3 passed, 0 skipped";
        assert_eq!(run(&[summary], true), (3, 0));
        assert_eq!(run(&["    LEFT BEHIND file /x", summary], false), (3, 1));
        assert_eq!(run(&[], false), (0, 1));
    }
}
