//! Small words that several verbs print.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use wrenn_agent::sandbox::Timing;

/// What is shown of an id that is a hash, in characters.
const ID_CHARS: usize = 12;

/// A duration in milliseconds, to the microsecond.
pub fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

/// Text that others wrote, fit for a terminal: it may break lines, and do nothing else.
pub fn printable(text: &str) -> String {
    text.chars()
        .filter(|character| *character != '\r')
        .map(|character| if character.is_control() && !"\n\t".contains(character) { '\u{fffd}' } else { character })
        .collect()
}

/// The same on one line.
pub fn printable_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// Bytes in JSON: `text` when they are UTF-8, `base64` otherwise.
pub fn kept(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => json!({ "base64": BASE64.encode(bytes) }),
    }
}

/// How long something is or was, in its largest unit: `3m`.
pub fn age(duration: Duration) -> String {
    const UNITS: [(u64, char); 3] = [(24 * 60 * 60, 'd'), (60 * 60, 'h'), (60, 'm')];
    let seconds = duration.as_secs();
    UNITS
        .iter()
        // Two of a unit and more: a minute and a half is better said in seconds.
        .find(|(unit, _)| seconds >= 2 * unit)
        .map_or_else(|| format!("{seconds}s"), |(unit, letter)| format!("{}{letter}", seconds / unit))
}

/// How long ago something was, in its largest unit.
pub fn since(then_unix_ms: u64, now_unix_ms: u64) -> String {
    age(Duration::from_millis(now_unix_ms.saturating_sub(then_unix_ms)))
}

/// Now.
pub fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The beginning of a long id is enough for people.
pub fn short(id: &str) -> String {
    printable_line(&id.chars().take(ID_CHARS).collect::<String>())
}

/// How long each step took, for programs.
pub fn timings_json(timings: &[Timing]) -> Value {
    let timings = timings.iter().map(|timing| (timing.phase.clone().into_owned(), millis(timing.took).into()));
    Value::Object(timings.collect::<Map<_, _>>())
}

/// An amount of memory or disk in its largest unit: `1.5 GiB`.
pub fn bytes(amount: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    UNITS
        .iter()
        .find(|(unit, _)| amount >= *unit)
        .map_or_else(|| format!("{amount} B"), |(unit, name)| format!("{:.1} {name}", amount as f64 / *unit as f64))
}

/// Rows as aligned columns, two spaces apart; the last column is not padded.
pub fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    std::iter::once(line(head)).chain(rows.iter().map(|row| line(row.each_ref().map(String::as_str)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_their_largest_unit() {
        for (seconds, words) in [
            (0, "0s"),
            (59, "59s"),
            (119, "119s"),
            (120, "2m"),
            (3600, "60m"),
            (7200, "2h"),
            (172_799, "47h"),
            (172_800, "2d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), words);
        }
    }

    #[test]
    fn amounts_are_in_their_largest_unit() {
        for (amount, words) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(bytes(amount), words);
        }
    }

    #[test]
    fn what_others_wrote_cannot_drive_a_terminal() {
        assert_eq!(printable("a\u{1b}[2J\r\n\tb\u{9b}"), "a\u{fffd}[2J\n\tb\u{fffd}");
        assert_eq!(printable_line("a\nb"), "a\u{fffd}b");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "bb".to_owned()], ["cccc".to_owned(), String::new()]];
        assert_eq!(columns(["X", "Y"], &rows), "X     Y\na     bb\ncccc\n");
        assert_eq!(columns(["X", "Y"], &[]), "X  Y\n");
    }
}
