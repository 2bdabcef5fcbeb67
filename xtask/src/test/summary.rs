//! The test runner's summary, held back so that it can be the last thing printed.

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
            ("     Summary [   0.015s] 3 tests run: 3 passed, 0 skipped", (3, 0)),
            ("     Summary [   9.015s] 5 tests run: 2 passed (1 slow), 2 failed, 1 timed out, 7 skipped", (2, 3)),
            ("     Summary [   0.015s] 0 tests run: 0 passed, 4 skipped", (0, 0)),
        ] {
            let mut summary = Summary::default();
            assert!(summary.holds_back(line));
            assert_eq!(summary.counts(), wanted, "{line}");
        }
    }
}
