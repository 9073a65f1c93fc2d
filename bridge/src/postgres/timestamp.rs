//! The time a payload says of itself: ISO-8601 text, or a number of seconds, milliseconds, microseconds or
//! nanoseconds since 1970.
//!
//! Which unit a number has is decided by its magnitude: the four ranges touch and each covers 1973 to 5138. What lies
//! outside them, or after the year 2200, is an unset clock or no time at all, and the caller takes the time of receipt.

/// 1973-03-03T09:46:40Z. A clock that says less has never been set; a smaller number is an uptime.
const EARLIEST_S: i64 = 100_000_000;
/// 2201-01-01T00:00:00Z.
const LATEST_S: i64 = 7_289_654_400;
const MICROS: i64 = 1_000_000;

/// Microseconds since the Unix epoch that `text` stands for: ISO-8601 (without a zone it is UTC), or a number.
pub(super) fn from_text(text: &str) -> Option<i64> {
    let text = text.trim();
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return from_number(text);
    }
    iso_8601(text.as_bytes()).or_else(|| other_iso_8601(text)).filter(|&micros| is_plausible(micros))
}

/// Microseconds since the Unix epoch that the number written as `literal` stands for.
pub(super) fn from_number(literal: &str) -> Option<i64> {
    if let Ok(whole) = literal.parse::<i64>() {
        let micros = match whole {
            100_000_000..100_000_000_000 => whole * MICROS,
            100_000_000_000..100_000_000_000_000 => whole * 1_000,
            100_000_000_000_000..100_000_000_000_000_000 => whole,
            100_000_000_000_000_000.. => whole / 1_000,
            _ => return None,
        };
        return Some(micros).filter(|&micros| is_plausible(micros));
    }
    let number = literal.parse::<f64>().ok()?;
    let factor = match number {
        1e8..1e11 => 1e6,
        1e11..1e14 => 1e3,
        1e14..1e17 => 1.0,
        1e17..1e20 => 1e-3,
        _ => return None,
    };
    // In range: the largest product is 1e17.
    Some((number * factor).round() as i64).filter(|&micros| is_plausible(micros))
}

fn is_plausible(micros: i64) -> bool {
    (EARLIEST_S * MICROS..LATEST_S * MICROS).contains(&micros)
}

/// The common form, `2025-07-27T14:30:00[.123][Z|+02:00]`, without a date library in the way.
fn iso_8601(bytes: &[u8]) -> Option<i64> {
    let (date_time, rest) = bytes.split_at_checked(19)?;
    let separators = [date_time[4], date_time[7], date_time[13], date_time[16]];
    if separators != *b"--::" || !matches!(date_time[10], b'T' | b't' | b' ') {
        return None;
    }
    let year = digits(&date_time[..4])?;
    let (month, day) = (digits(&date_time[5..7])?, digits(&date_time[8..10])?);
    let (hour, minute) = (digits(&date_time[11..13])?, digits(&date_time[14..16])?);
    let second = digits(&date_time[17..19])?;
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (fraction, zone) = fraction(rest)?;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds - zone_seconds(zone)?) * MICROS + fraction)
}

/// Forms that few devices send: without seconds, basic format, a date alone, a leap second.
fn other_iso_8601(text: &str) -> Option<i64> {
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Some(instant.as_microsecond());
    }
    let local = text.parse::<jiff::civil::DateTime>().ok()?;
    Some(local.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_microsecond())
}

fn digits(bytes: &[u8]) -> Option<i64> {
    bytes
        .iter()
        .try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

/// Microseconds of a fraction, if there is one, and what follows it. Digits beyond the sixth are cut off.
fn fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some((b'.' | b',', after)) = rest.split_first() else {
        return Some((0, rest));
    };
    let length = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if length == 0 {
        return None;
    }
    let kept = length.min(6);
    let micros = digits(&after[..kept])? * 10_i64.pow(6 - u32::try_from(kept).expect("at most 6"));
    Some((micros, &after[length..]))
}

/// Seconds east of UTC.
fn zone_seconds(zone: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match zone {
        [] | [b'Z' | b'z'] => return Some(0),
        [sign @ (b'+' | b'-'), hours @ ..] if hours.len() == 2 => (*sign, hours, &b"00"[..]),
        [sign @ (b'+' | b'-'), digits @ ..] if digits.len() == 4 => (*sign, &digits[..2], &digits[2..]),
        [sign @ (b'+' | b'-'), digits @ ..] if digits.len() == 5 && digits[2] == b':' => {
            (*sign, &digits[..2], &digits[3..])
        }
        _ => return None,
    };
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    if hours > 18 || minutes > 59 {
        return None;
    }
    let seconds = hours * 3_600 + minutes * 60;
    Some(if sign == b'-' { -seconds } else { seconds })
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. Counting years from March puts the leap day last, so
/// that the days before a month are a straight line: (153 m + 2) / 5.
const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2025-07-27T14:30:00Z
    const THEN: i64 = 1_753_626_600 * MICROS;

    #[test]
    fn text_and_numbers_become_the_time_they_mean() {
        for (text, expected) in [
            ("2025-07-27T14:30:00Z", Some(THEN)),
            ("2025-07-27t14:30:00z", Some(THEN)),
            (" 2025-07-27 14:30:00 ", Some(THEN)),
            ("2025-07-27T14:30:00", Some(THEN)),
            ("2025-07-27T16:30:00+02:00", Some(THEN)),
            ("2025-07-27T16:30:00+0200", Some(THEN)),
            ("2025-07-27T16:30:00+02", Some(THEN)),
            ("2025-07-27T09:00:00-05:30", Some(THEN)),
            ("2025-07-27T14:30:00.5Z", Some(THEN + 500_000)),
            ("2025-07-27T14:30:00,123456789", Some(THEN + 123_456)),
            ("2025-07-27T14:30Z", Some(THEN)),
            ("20250727T143000Z", Some(THEN)),
            ("2025-07-27", Some(THEN - 52_200 * MICROS)),
            ("2024-02-29T00:00:00Z", Some(1_709_164_800 * MICROS)),
            ("2025-02-29T00:00:00Z", None),
            ("2025-13-01T00:00:00Z", None),
            ("2025-07-27T14:30:00.Z", None),
            ("2025-07-27T14:30:00+99:00", None),
            ("2025-07-27T24:30:00Z", None),
            ("1969-12-31T23:59:59Z", None),
            ("1970-01-01T00:00:12Z", None),
            ("2201-01-01T00:00:00Z", None),
            ("2200-12-31T23:59:59Z", Some(LATEST_S * MICROS - MICROS)),
            ("", None),
            (".", None),
            ("yesterday", None),
            ("1753626600", Some(THEN)),
            ("1753626600.25", Some(THEN + 250_000)),
            ("1753626600000", Some(THEN)),
            ("1753626600000000", Some(THEN)),
            ("1753626600000000000", Some(THEN)),
            ("0", None),
            ("99999999", None),
            ("100000000", Some(EARLIEST_S * MICROS)),
            ("7289654400", None),
            ("9223372036854775807", None),
            ("99999999999999999999999", None),
            ("-1753626600", None),
        ] {
            assert_eq!(from_text(text), expected, "{text:?}");
        }
        assert_eq!(from_number("1.7536266e9"), Some(THEN));
        assert_eq!(from_number("1e400"), None);
        assert_eq!(from_number("-5"), None);
    }

    #[test]
    fn the_calendar_agrees_with_a_date_library() {
        for days in (0..84_000).step_by(13) {
            let date = jiff::civil::date(1970, 1, 1) + jiff::Span::new().days(days);
            let (year, month, day) = (date.year().into(), date.month().into(), date.day().into());
            assert_eq!(days_since_1970(year, month, day), days, "{date}");
            assert_eq!(days_in(year, month), i64::from(date.days_in_month()), "{date}");
        }
    }
}
