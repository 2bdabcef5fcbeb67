//! Moments in RFC 3339, as the host writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The moment that a text like `2026-11-23T15:37:00.5Z` or `…+02:00` means; none if it means none after 1970.
pub fn parse(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = rest.split_at(zone_at);
    let (seconds, nanos) = parse_time(time)?;
    let total = days(date)? * 86_400 + seconds - parse_zone(zone)?;
    UNIX_EPOCH.checked_add(Duration::new(u64::try_from(total).ok()?, nanos))
}

/// Days since 1970 of `YYYY-MM-DD`.
fn days(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let (year, month, day) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month_index = usize::try_from(month - 1).ok()?;
    let is_date = parts.next().is_none() && (1..=*lengths.get(month_index)?).contains(&day);
    let before = year - 1;
    let leap_days = before / 4 - before / 100 + before / 400;
    let since_year_one = before * 365 + leap_days + lengths[..month_index].iter().sum::<i64>() + day - 1;
    is_date.then_some(since_year_one - 719_162)
}

/// Seconds of the day and nanoseconds of `HH:MM:SS[.fraction]`. A leap second counts as the one after it.
fn parse_time(time: &str) -> Option<(i64, u32)> {
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut parts = time.split(':');
    let (hour, minute, second) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let is_time = parts.next().is_none() && hour < 24 && minute < 60 && second <= 60;
    let is_fraction = !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit());
    (is_time && is_fraction).then(|| (hour * 3600 + minute * 60 + second, nanos(fraction)))
}

/// Nanoseconds of a fraction's digits; more than nine are cut off.
fn nanos(digits: &str) -> u32 {
    digits.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'))
}

/// How far a zone is ahead of UTC, in seconds.
fn parse_zone(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, zone) = (if zone.starts_with('-') { -1 } else { 1 }, &zone[1..]);
    let (hours, minutes) = zone.split_once(':')?;
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn number(digits: &str, length: usize) -> Option<i64> {
    let is_number = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn since_epoch(text: &str) -> Option<u128> {
        parse(text).map(|moment| moment.duration_since(UNIX_EPOCH).unwrap().as_nanos())
    }

    #[test]
    fn moments_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T01:00:00+01:00", 0),
            ("2000-02-29T12:00:00z", 951_825_600_000_000_000),
            ("2026-11-23T15:37:00.5Z", 1_795_448_220_500_000_000),
            ("2026-11-23 17:07:00.123456789123+01:30", 1_795_448_220_123_456_789),
            ("2100-03-01T00:00:00-00:00", 4_107_542_400_000_000_000),
        ] {
            assert_eq!(since_epoch(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "2026-11-23",
            "2026-11-23T15:37:00",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.xZ",
            "26-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-01-01T00:00:00+1:00",
            "2026-01-01T00:00:00+25:00",
            "2026-01-01T00:00:00Zx",
            "2026-01-01T00:00Z",
            "2026-01-01-01T00:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_harmless(text in "[0-9TZ:. +\\-ü]{0,40}") {
            parse(&text);
        }
    }
}
