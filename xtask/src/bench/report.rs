//! What was measured, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use serde::Serialize;

use super::Target;
use super::measures::{Ratio, target};
use super::stats::{Series, Summary, ratios};

/// The outcome of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    host: Host,
    rows: Vec<Row>,
    /// What could not be measured, and why.
    failures: Vec<String>,
}

/// Where it was measured, and how busy that was.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    kernel: String,
    cpus: usize,
    /// Such as `qemu 10.0.2, tcg`.
    pub vmm: String,
    /// Load average of the last minute, before the first round.
    load_before: String,
    /// The same after the last round: the benchmark itself is most of it on a quiet machine.
    load_after: String,
}

/// One measurement or ratio.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    unit: String,
    #[serde(flatten)]
    summary: Summary,
    /// Such as `<= 1.15`.
    target: Option<String>,
    /// Whether the median meets the target.
    met: Option<bool>,
    /// By round.
    values: BTreeMap<usize, f64>,
}

impl Report {
    /// The report of these series and of the ratios between them; a ratio of what was not measured is left out.
    pub fn new(host: Host, series: &[Series], between: &[Ratio], failures: Vec<String>) -> Self {
        let measured =
            series.iter().filter_map(|each| Row::new(&each.name, &each.unit, target(&each.name), each.values.clone()));
        let values = |name: &str| series.iter().find(|each| each.name == name).map(|each| &each.values);
        let compared = between
            .iter()
            .filter_map(|ratio| Row::new(ratio.name, "x", ratio.target, ratios(values(ratio.of)?, values(ratio.to)?)));
        Self { host, rows: measured.chain(compared).collect(), failures }
    }

    /// The table, a line per measurement; those with a target come last.
    pub fn table(&self) -> String {
        let Host { kernel, cpus, vmm, load_before, load_after } = &self.host;
        let mut table = format!("{vmm}; {cpus} CPUs, Linux {kernel}; load {load_before} before, {load_after} after\n");
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max("measurement".len());
        let mut line = |cells: [&str; 5]| {
            let [name, median, least, most, target] = cells;
            let text = format!("{name:<width$}  {median:>12}  {least:>12}  {most:>12}  {target}");
            // Writing to a String cannot fail.
            writeln!(table, "{}", text.trim_end()).expect("memory");
        };
        line(["measurement", "median", "least", "most", "target"]);
        let (aimed, plain): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(|row| row.target.is_some());
        for row in plain.into_iter().chain(aimed) {
            let number = |value: f64| format!("{value:.2} {}", row.unit);
            let (median, least, most) = (row.summary.median, row.summary.least, row.summary.most);
            line([&row.name, &number(median), &number(least), &number(most), &row.verdict()]);
        }
        for failure in &self.failures {
            writeln!(table, "NOT MEASURED: {failure}").expect("memory");
        }
        table
    }

    /// How many measurements failed.
    pub fn failures(&self) -> usize {
        self.failures.len()
    }
}

impl Row {
    fn new(name: &str, unit: &str, target: Option<Target>, values: BTreeMap<usize, f64>) -> Option<Self> {
        let summary = Summary::of(&values.values().copied().collect::<Vec<_>>())?;
        let met = target.map(|target| target.is_met(summary.median));
        let target = target.map(|target| match target {
            Target::AtMost(limit) => format!("<= {limit}"),
            Target::AtLeast(limit) => format!(">= {limit}"),
        });
        Some(Self { name: name.to_owned(), unit: unit.to_owned(), summary, target, met, values })
    }

    fn verdict(&self) -> String {
        match (&self.target, self.met) {
            (Some(target), Some(true)) => format!("{target} met"),
            (Some(target), Some(false) | None) => format!("{target} MISSED"),
            (None, _) => String::new(),
        }
    }
}

impl Host {
    /// This host, now.
    pub fn this() -> Self {
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            vmm: String::new(),
            load_before: load(),
            load_after: String::new(),
        }
    }

    /// Notes how busy it is once all is measured.
    pub fn measured(&mut self) {
        self.load_after = load();
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, values: &[f64]) -> Series {
        Series { name: name.to_owned(), unit: "ms".to_owned(), values: (1..).zip(values.iter().copied()).collect() }
    }

    #[test]
    fn says_what_met_its_target() {
        let series = [series("own-wall", &[11.0, 12.0]), series("plain", &[10.0, 10.0])];
        let ratio = |name, target| Ratio { name, of: "own-wall", to: "plain", target };
        let between = [
            ratio("met", Some(Target::AtMost(1.15))),
            ratio("missed", Some(Target::AtLeast(1.2))),
            ratio("told", None),
        ];
        let report = Report::new(Host::this(), &series, &between, vec!["warm: no".to_owned()]);
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 8, "{table}");
        assert!(lines[2].starts_with("plain") && lines[2].ends_with("10.00 ms"), "{table}");
        assert!(lines[3].starts_with("told") && lines[3].ends_with("1.20 x"), "{table}");
        assert!(lines[4].starts_with("own-wall") && lines[4].ends_with("<= 60 met"), "{table}");
        assert!(lines[5].contains("1.15 x") && lines[5].ends_with("<= 1.15 met"), "{table}");
        assert!(lines[6].ends_with(">= 1.2 MISSED"), "{table}");
        assert_eq!(lines[7], "NOT MEASURED: warm: no");
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rows"][0]["median"], 11.5);
        assert_eq!(json["rows"][0]["values"]["2"], 12.0);
        assert_eq!(json["rows"][3]["met"], false);
    }

    #[test]
    fn leaves_out_what_was_not_measured() {
        let ratio = Ratio { name: "r", of: "ours", to: "gone", target: None };
        let report = Report::new(Host::this(), &[series("ours", &[1.0])], &[ratio], Vec::new());
        assert_eq!(report.rows.len(), 1);
        assert_eq!(report.failures(), 0);
    }
}
