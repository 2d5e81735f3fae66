//! Numbers, sizes and dates for people.

/// A number with about four significant digits; empty where it is none.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return String::new();
    }
    let size = value.abs();
    if size == 0.0 {
        "0".into()
    } else if !(1e-3..1e7).contains(&size) {
        format!("{value:.2e}")
    } else {
        // Digits behind the point so that four are significant; none where the number is large.
        let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
        trim(format!("{value:.decimals$}"))
    }
}

/// Takes zeros from the end of a decimal fraction.
fn trim(text: String) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// As [`number`], for what may be missing.
pub(super) fn maybe(value: Option<f64>) -> String {
    value.map(number).unwrap_or_default()
}

/// A factor with two decimals.
pub(super) fn factor(value: f64) -> String {
    match value {
        value if !value.is_finite() => String::new(),
        value if (0.01..1000.0).contains(&value.abs()) => format!("{value:.2}x"),
        value => format!("{}x", number(value)),
    }
}

/// A fraction in percent.
pub(super) fn percent(fraction: f64) -> String {
    match fraction * 100.0 {
        value if !value.is_finite() => String::new(),
        value if value.abs() < 1000.0 => format!("{value:.1}%"),
        value => format!("{}%", number(value)),
    }
}

/// A fraction in percent with its sign.
pub(super) fn change(fraction: f64) -> String {
    let text = percent(fraction);
    if fraction > 0.0 && !text.is_empty() { format!("+{text}") } else { text }
}

const SIZES: [(f64, &str); 5] = [(1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
const PREFIXES: [(f64, &str); 5] = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];

/// Bytes in decimal units.
pub(super) fn bytes(value: f64) -> String {
    if !value.is_finite() {
        return String::new();
    }
    match SIZES.iter().find(|(size, _)| value.abs() >= *size) {
        Some((size, unit)) => format!("{} {unit}", three(value / size)),
        None => format!("{} B", number(value)),
    }
}

/// A large number with the prefix of its thousands: `12.3 G`.
pub(super) fn prefixed(value: f64) -> String {
    match PREFIXES.iter().find(|(size, _)| value.abs() >= *size) {
        Some((size, prefix)) => format!("{} {prefix}", three(value / size)),
        None => number(value),
    }
}

fn three(value: f64) -> String {
    if value.abs() >= 1e4 {
        return number(value);
    }
    let decimals = if value.abs() >= 100.0 { 0 } else { 2 - usize::from(value.abs() >= 10.0) };
    trim(format!("{value:.decimals$}"))
}

/// A time in the unit that suits it.
pub(super) fn seconds(value: f64) -> String {
    if !value.is_finite() {
        return String::new();
    }
    match value.abs() {
        size if size >= 3600.0 => format!("{} h", number(value / 3600.0)),
        size if size >= 1.0 || size == 0.0 => format!("{} s", number(value)),
        size if size >= 1e-3 => format!("{} ms", number(value * 1e3)),
        _ => format!("{} us", number(value * 1e6)),
    }
}

/// Date and time in UTC of a number of seconds since 1970.
pub(super) fn date(unix_seconds: u64) -> String {
    let days = unix_seconds / 86_400;
    // Far beyond any calendar that a reader may have.
    if days > 2_900_000 {
        return format!("{unix_seconds} seconds since 1970");
    }
    // Howard Hinnant's `civil_from_days`: eras of 400 years, which begin in March.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let second = unix_seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
}

/// A value of the settings: text without its quotes, everything else as JSON.
pub(super) fn setting(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Text on one line and without characters that steer a terminal or that no document may hold.
pub(super) fn one_line(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
        c if unfit(c) => '\u{fffd}',
        c => c,
    };
    text.chars().map(plain).collect()
}

/// Characters that no output takes: controls, non-characters, and those that turn the direction of what follows.
pub(super) fn unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fdd0}'..='\u{fdef}')
        || u32::from(c) & 0xfffe == 0xfffe
}

/// At most `limit` characters.
pub(super) fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(limit.saturating_sub(1)).collect();
    short.push('\u{2026}');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_and_no_tail() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (0.131, "0.131"),
            (0.001_234_5, "0.001234"),
            (6.158_3, "6.158"),
            (124.87, "124.9"),
            (2987.3, "2987"),
            (123_456.0, "123456"),
            (1e-300, "1.00e-300"),
            (1e300, "1.00e300"),
            (-2.5, "-2.5"),
            (f64::NAN, ""),
            (f64::INFINITY, ""),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn units_follow_size() {
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(15.282e9), "15.3 GB");
        assert_eq!(bytes(1e30), "1.00e15 PB");
        assert_eq!(prefixed(5.1e12), "5.1 T");
        assert_eq!(seconds(0.0821), "82.1 ms");
        assert_eq!(seconds(7200.0), "2 h");
        assert_eq!(factor(2.0834), "2.08x");
        assert_eq!(factor(1e-300), "1.00e-300x");
        assert_eq!(percent(0.089), "8.9%");
        assert_eq!(change(0.089), "+8.9%");
        assert_eq!(change(-0.02), "-2.0%");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_764_455_573), "2025-11-29 22:32 UTC");
        assert_eq!(date(u64::MAX), "18446744073709551615 seconds since 1970");
    }

    #[test]
    fn text_that_steers_is_made_harmless() {
        assert_eq!(one_line("a\nb\u{1b}[31mc\u{202e}"), "a b\u{fffd}[31mc\u{fffd}");
        assert_eq!(shorten("abcdef", 4), "abc\u{2026}");
        assert_eq!(shorten("abcd", 4), "abcd");
    }
}
