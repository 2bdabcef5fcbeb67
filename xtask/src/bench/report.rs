//! What was measured, as a table and as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::stats::{Series, Summary, ratios};
use super::{Ratio, Target};

/// The outcome of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    host: Host,
    rows: Vec<Row>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
struct Host {
    kernel: String,
    cpus: usize,
}

/// One measurement or ratio.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    unit: &'static str,
    rounds: usize,
    #[serde(flatten)]
    summary: Summary,
    /// Such as `<= 1.15`.
    target: Option<String>,
    /// Whether the median meets the target.
    met: Option<bool>,
    values: Vec<f64>,
}

impl Report {
    /// The report of these series and of the ratios between them; a ratio of what was not measured is left out.
    pub fn new(series: &[Series], between: &[Ratio]) -> Self {
        let measured =
            series.iter().filter_map(|each| Row::new(each.name, each.unit, each.target, each.values.clone()));
        let values = |name: &str| series.iter().find(|each| each.name == name).map(|each| each.values.as_slice());
        let compared = between.iter().filter_map(|ratio| {
            Row::new(ratio.name, "x", Some(ratio.target), ratios(values(ratio.of)?, values(ratio.to)?))
        });
        Self { host: Host::this(), rows: measured.chain(compared).collect() }
    }

    /// The table, a line per measurement.
    pub fn table(&self) -> String {
        let mut table = format!("{} CPUs, Linux {}\n", self.host.cpus, self.host.kernel);
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max("measurement".len());
        let mut line = |cells: [&str; 5]| {
            let [name, median, least, most, target] = cells;
            let text = format!("{name:<width$}  {median:>12}  {least:>12}  {most:>12}  {target}");
            // Writing to a String cannot fail.
            writeln!(table, "{}", text.trim_end()).expect("memory");
        };
        line(["measurement", "median", "least", "most", "target"]);
        for row in &self.rows {
            let number = |value: f64| format!("{value:.2} {}", row.unit);
            let (median, least, most) = (row.summary.median, row.summary.least, row.summary.most);
            line([row.name, &number(median), &number(least), &number(most), &row.verdict()]);
        }
        table
    }
}

impl Row {
    fn new(name: &'static str, unit: &'static str, target: Option<Target>, values: Vec<f64>) -> Option<Self> {
        let summary = Summary::of(&values)?;
        let met = target.map(|target| target.is_met(summary.median));
        let target = target.map(|target| match target {
            Target::AtMost(limit) => format!("<= {limit}"),
            Target::AtLeast(limit) => format!(">= {limit}"),
        });
        Some(Self { name, unit, rounds: values.len(), summary, target, met, values })
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
    fn this() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        Self { kernel, cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &'static str, values: &[f64], target: Option<Target>) -> Series {
        Series { name, unit: "ms", target, values: values.to_vec() }
    }

    #[test]
    fn says_what_met_its_target() {
        let series = [series("ours", &[11.0, 12.0], Some(Target::AtMost(60.0))), series("plain", &[10.0, 10.0], None)];
        let ratio = |name, target| Ratio { name, of: "ours", to: "plain", target };
        let between = [ratio("met", Target::AtMost(1.15)), ratio("missed", Target::AtLeast(1.2))];
        let report = Report::new(&series, &between);
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 6, "{table}");
        assert!(lines[2].starts_with("ours") && lines[2].ends_with("<= 60 met"), "{table}");
        assert!(lines[3].ends_with("10.00 ms"), "{table}");
        assert!(lines[4].contains("1.15 x") && lines[4].ends_with("<= 1.15 met"), "{table}");
        assert!(lines[5].ends_with(">= 1.2 MISSED"), "{table}");
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rows"][0]["median"], 11.5);
        assert_eq!(json["rows"][3]["met"], false);
    }

    #[test]
    fn leaves_out_what_was_not_measured() {
        let ratio = Ratio { name: "r", of: "ours", to: "gone", target: Target::AtMost(1.0) };
        assert_eq!(Report::new(&[series("ours", &[1.0], None)], &[ratio]).rows.len(), 1);
    }
}
