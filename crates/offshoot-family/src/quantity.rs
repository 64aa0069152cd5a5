//! Quantities as people write them: `5M` parameters, `20MB`, `1.5G` multiply-adds, `5ms`.

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {kind}: {reason}")]
pub struct QuantityError {
    /// The text.
    pub text: String,
    /// What it should be: `a count`, `a size in bytes`, `a time`.
    pub kind: &'static str,
    /// What is wrong with it.
    pub reason: String,
    hint: &'static str,
}

impl QuantityError {
    /// How such a quantity is written.
    pub fn hint(&self) -> Option<String> {
        Some(self.hint.to_owned())
    }
}

/// A way of writing quantities: what it is called, how to write it, and its units in lower case.
struct Notation<U: 'static> {
    kind: &'static str,
    hint: &'static str,
    units: &'static [(&'static str, U)],
}

const COUNT: Notation<u64> = Notation {
    kind: "a count",
    hint: "write a number, if you like with k, M, G (or B) or T: 5M, 1.5G, 21675264",
    units: &[
        ("", 1),
        ("k", 1_000),
        ("m", 1_000_000),
        ("g", 1_000_000_000),
        ("b", 1_000_000_000),
        ("t", 1_000_000_000_000),
    ],
};

const BYTES: Notation<u64> = Notation {
    kind: "a size in bytes",
    hint: "write a number with kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024): 20MB, 512 KiB",
    units: &[
        ("", 1),
        ("b", 1),
        ("k", 1_000),
        ("kb", 1_000),
        ("m", 1_000_000),
        ("mb", 1_000_000),
        ("g", 1_000_000_000),
        ("gb", 1_000_000_000),
        ("t", 1_000_000_000_000),
        ("tb", 1_000_000_000_000),
        ("ki", 1 << 10),
        ("kib", 1 << 10),
        ("mi", 1 << 20),
        ("mib", 1 << 20),
        ("gi", 1 << 30),
        ("gib", 1 << 30),
        ("ti", 1 << 40),
        ("tib", 1 << 40),
    ],
};

const TIME: Notation<f64> = Notation {
    kind: "a time",
    hint: "write milliseconds, or a number with us, ms or s: 5, 5ms, 0.3s",
    units: &[
        ("", 1.0),
        ("ms", 1.0),
        ("s", 1e3),
        ("us", 1e-3),
        ("µs", 1e-3),
        ("μs", 1e-3),
    ],
};

const HOURS: Notation<f64> = Notation {
    kind: "a number of hours",
    hint: "write hours, or a number with s, min, h or d: 0.5, 30min, 130h, 3d",
    units: &[
        ("", 1.0),
        ("h", 1.0),
        ("s", 1.0 / 3600.0),
        ("min", 1.0 / 60.0),
        ("d", 24.0),
    ],
};

impl<U: Copy> Notation<U> {
    fn error(&self, text: &str, reason: impl Into<String>) -> QuantityError {
        // A text of any length can be given; an error message shows its beginning.
        let mut shown: String = text.chars().take(40).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        QuantityError {
            text: shown,
            kind: self.kind,
            reason: reason.into(),
            hint: self.hint,
        }
    }

    /// Splits `text` into a plain decimal number and the unit behind it.
    fn split<'t>(&self, text: &'t str) -> Result<(Decimal<'t>, U), QuantityError> {
        let fail = |reason: String| Err(self.error(text, reason));
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return fail("it is empty".into());
        }
        if trimmed.starts_with(['-', '\u{2212}']) {
            return fail("it must not be negative".into());
        }
        let rest = trimmed.strip_prefix('+').unwrap_or(trimmed);
        let end = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '_' || c == '.'))
            .unwrap_or(rest.len());
        let (number, mut rest) = rest.split_at(end);
        if rest.starts_with(',') {
            return fail("a comma could mean thousands or decimals; write 1_000 or 0.5".into());
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') {
            return fail("it has two decimal points".into());
        }
        if !number.contains(|c: char| c.is_ascii_digit()) {
            return fail("it does not start with a number".into());
        }
        let mut exponent = 0;
        if let Some(tail) = rest.strip_prefix(['e', 'E']) {
            let digits = tail.strip_prefix(['+', '-']).unwrap_or(tail);
            let length = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            if length > 0 {
                let end = tail.len() - digits.len() + length;
                exponent = match tail[..end].parse::<i32>() {
                    Ok(exponent) if exponent.abs() <= 400 => exponent,
                    _ => return fail(format!("the exponent {} is out of range", &tail[..end.min(20)])),
                };
                rest = &tail[end..];
            }
        }
        let wanted = rest.trim();
        let lower = wanted.to_lowercase();
        match self.units.iter().find(|(name, _)| *name == lower) {
            Some(&(_, unit)) => Ok((
                Decimal {
                    whole,
                    fraction,
                    exponent,
                },
                unit,
            )),
            None => {
                let wanted: String = wanted.chars().take(20).collect();
                fail(format!("`{wanted}` is no unit"))
            }
        }
    }
}

/// A number as written: `whole.fraction * 10^exponent`.
struct Decimal<'t> {
    whole: &'t str,
    fraction: &'t str,
    exponent: i32,
}

impl Decimal<'_> {
    fn digits(&self) -> impl Iterator<Item = u8> + '_ {
        self.whole
            .bytes()
            .chain(self.fraction.bytes())
            .filter(u8::is_ascii_digit)
            .map(|b| b - b'0')
    }

    /// The number times `unit`, without what is behind the decimal point; none above `u64::MAX`.
    fn times(&self, unit: u64) -> Option<u64> {
        let decimals = self.fraction.bytes().filter(u8::is_ascii_digit).count();
        let mut power = i64::from(self.exponent) - i64::try_from(decimals).ok()?;
        let mut digits: Vec<u8> = self.digits().skip_while(|&d| d == 0).collect();
        if digits.is_empty() {
            return Some(0);
        }
        // Zeros at the end are a power of ten.
        while digits.last() == Some(&0) {
            digits.pop();
            power += 1;
        }
        // A result of at most 20 digits is cut to whole numbers: digits behind the first 24 cannot reach it.
        let kept = digits.len().min(24);
        power += i64::try_from(digits.len() - kept).ok()?;
        let mantissa = digits[..kept].iter().fold(0u128, |sum, &d| sum * 10 + u128::from(d));
        // mantissa < 1e24 and unit < 2^41 leave the product below 2^121.
        let product = mantissa * u128::from(unit);
        let scaled = if power >= 0 {
            let factor = 10u128.checked_pow(u32::try_from(power).ok()?)?;
            product.checked_mul(factor)?
        } else {
            let divisor = u32::try_from(-power).ok().and_then(|p| 10u128.checked_pow(p));
            divisor.map_or(0, |divisor| product / divisor)
        };
        u64::try_from(scaled).ok()
    }

    fn is_zero(&self) -> bool {
        self.digits().all(|d| d == 0)
    }

    fn to_f64(&self) -> Option<f64> {
        let plain = |text: &str| text.replace('_', "");
        format!("0{}.{}0e{}", plain(self.whole), plain(self.fraction), self.exponent)
            .parse()
            .ok()
    }
}

fn parse_whole(notation: &Notation<u64>, text: &str) -> Result<u64, QuantityError> {
    let (number, unit) = notation.split(text)?;
    match number.times(unit) {
        None => Err(notation.error(text, format!("it is more than {}", u64::MAX))),
        Some(0) if !number.is_zero() => Err(notation.error(text, "it is less than one")),
        Some(value) => Ok(value),
    }
}

/// Reads a number of parameters or multiply-adds: `5M`, `1.5G`, `300k`, `21675264`, `2e6`. The units k, M, G (or B) and T are
/// powers of 1000 in either case; a fraction of one is dropped.
///
/// # Errors
/// Says what is wrong with the text: empty, negative, no number, an unknown unit, or out of range.
pub fn parse_count(text: &str) -> Result<u64, QuantityError> {
    parse_whole(&COUNT, text)
}

/// Reads a size in bytes: `20MB` and `1g` are decimal, `20MiB` and `512 KiB` binary, a plain number counts bytes; a fraction of
/// a byte is dropped.
///
/// # Errors
/// As [`parse_count`].
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    parse_whole(&BYTES, text)
}

/// Reads a time in milliseconds: `5`, `5ms`, `0.3s`, `250us`.
///
/// # Errors
/// As [`parse_count`].
pub fn parse_milliseconds(text: &str) -> Result<f64, QuantityError> {
    let (number, unit) = TIME.split(text)?;
    match number.to_f64().map(|value| value * unit) {
        Some(value) if value.is_finite() => Ok(value),
        _ => Err(TIME.error(text, "it is out of range")),
    }
}

/// Reads a time in hours: `130`, `0.5`, `30min`, `3d`.
///
/// # Errors
/// As [`parse_count`].
pub fn parse_hours(text: &str) -> Result<f64, QuantityError> {
    let (number, unit) = HOURS.split(text)?;
    match number.to_f64().map(|value| value * unit) {
        Some(value) if value.is_finite() => Ok(value),
        _ => Err(HOURS.error(text, "it is out of range")),
    }
}

/// A whole number with its thousands set apart: `21,675,264`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of which its ratio to others counts, such as a perplexity, with `digits` digits and no fewer than its whole part has:
/// `2.345`, `12.34`, `1,234`; in powers of ten from ten million on.
pub fn proportion(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "not finite".into();
    }
    // The first digit as it is after rounding: 9.9996 has two of them before the point.
    let rounded: f64 = format!("{value:.*e}", digits.max(1) - 1).parse().unwrap_or(value);
    let magnitude = if rounded == 0.0 {
        0.0
    } else {
        rounded.abs().log10().floor()
    };
    if magnitude >= 7.0 {
        return format!("{value:.*e}", digits.max(1) - 1);
    }
    let decimals = (digits as f64 - 1.0 - magnitude).clamp(0.0, 12.0) as usize;
    if magnitude < 3.0 {
        return format!("{value:.decimals$}");
    }
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", grouped(value.abs().round() as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_are_decimal_in_either_case() {
        for (text, value) in [
            ("5M", 5_000_000),
            ("1.5G", 1_500_000_000),
            ("300k", 300_000),
            ("300K", 300_000),
            ("21675264", 21_675_264),
            ("21_675_264", 21_675_264),
            (" 5 m ", 5_000_000),
            ("7B", 7_000_000_000),
            ("2t", 2_000_000_000_000),
            ("2e6", 2_000_000),
            ("1E-3G", 1_000_000),
            ("+4", 4),
            (".5k", 500),
            ("5.M", 5_000_000),
            ("0", 0),
            ("0.000", 0),
            ("0.1234567M", 123_456),
            ("18446744073709551615", u64::MAX),
            ("18446744.073709551615T", u64::MAX),
            ("0000000000000000000000000000000000000000001", 1),
            ("1.0000000000000000000000000000000000000000000000000", 1),
        ] {
            assert_eq!(parse_count(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn bytes_know_decimal_and_binary_units() {
        for (text, value) in [
            ("20MB", 20_000_000),
            ("20MiB", 20 << 20),
            ("512 KiB", 512 << 10),
            ("1g", 1_000_000_000),
            ("1Gi", 1 << 30),
            ("1.5kib", 1536),
            ("20.3MiB", 21_286_092),
            ("12", 12),
            ("12B", 12),
            ("2 tib", 2 << 40),
            ("1e3 kB", 1_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn times_are_milliseconds() {
        for (text, value) in [
            ("5", 5.0),
            ("5ms", 5.0),
            ("0.3s", 300.0),
            ("250us", 0.25),
            ("250 µs", 0.25),
            (".5 MS", 0.5),
            ("1e1", 10.0),
        ] {
            let read = parse_milliseconds(text).unwrap();
            assert!((read - value).abs() <= 1e-12 * value, "{text}: {read}");
        }
    }

    #[test]
    fn long_times_are_hours() {
        for (text, value) in [
            ("130", 130.0),
            ("0.5", 0.5),
            ("30min", 0.5),
            ("3 d", 72.0),
            ("2h", 2.0),
            ("36 s", 0.01),
        ] {
            let read = parse_hours(text).unwrap();
            assert!((read - value).abs() <= 1e-12 * value, "{text}: {read}");
        }
        let month = parse_hours("5 months").unwrap_err();
        assert!(month.to_string().contains("`months` is no unit") && month.hint().unwrap().contains("30min"));
        assert!(parse_hours("-3").unwrap_err().to_string().contains("negative"));
        assert!(parse_hours("1e400").unwrap_err().to_string().contains("out of range"));
    }

    #[test]
    fn odd_input_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("   ", "empty"),
            ("-5M", "negative"),
            ("−5M", "negative"),
            ("M", "does not start with a number"),
            (".", "does not start with a number"),
            ("nan", "does not start with a number"),
            ("inf", "does not start with a number"),
            ("0x10", "`x10` is no unit"),
            ("5X", "`X` is no unit"),
            ("5MB", "`MB` is no unit"),
            ("5M5", "`M5` is no unit"),
            ("5e", "`e` is no unit"),
            ("5,000", "comma"),
            ("1.2.3", "two decimal points"),
            ("0.1", "less than one"),
            ("1e-30", "less than one"),
            ("1e-400", "less than one"),
            ("18446744073709551616", "more than 18446744073709551615"),
            ("99999999999999999999999999999999999999999999999T", "more than"),
            ("1e400", "more than"),
            ("1e99999999999", "out of range"),
            ("٣", "does not start with a number"),
            ("5🦀", "`🦀` is no unit"),
        ] {
            let error = parse_count(text).unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("5M")));
        }
        assert!(
            parse_bytes("5 parsecs")
                .unwrap_err()
                .to_string()
                .contains("`parsecs` is no unit")
        );
        assert!(
            parse_milliseconds("5 min")
                .unwrap_err()
                .to_string()
                .contains("`min` is no unit")
        );
        assert!(
            parse_milliseconds("1e400")
                .unwrap_err()
                .to_string()
                .contains("out of range")
        );
        assert!(parse_count(&"z".repeat(100_000)).unwrap_err().to_string().len() < 200);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = (parse_count(&text), parse_bytes(&text), parse_milliseconds(&text), parse_hours(&text));
        }

        #[test]
        fn every_whole_number_is_read_as_it_is(value: u64) {
            prop_assert_eq!(parse_count(&value.to_string()), Ok(value));
            prop_assert_eq!(parse_bytes(&format!("{value} B")), Ok(value));
        }
    }

    #[test]
    fn numbers_that_are_compared_by_their_ratio_have_as_many_digits_each() {
        for (value, text) in [
            (2.3449, "2.345"),
            (9.9996, "10.00"),
            (12.344, "12.34"),
            (123.44, "123.4"),
            (999.94, "999.9"),
            (999.96, "1,000"),
            (1234.4, "1,234"),
            (123_456.7, "123,457"),
            (1.0, "1.000"),
            (0.0, "0.000"),
            (0.012_344, "0.01234"),
            (12_344_000.0, "1.234e7"),
            (-1234.0, "-1,234"),
            (f64::NAN, "not finite"),
            (f64::INFINITY, "not finite"),
        ] {
            assert_eq!(proportion(value, 4), text);
        }
        assert_eq!(proportion(12.344, 2), "12");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(
            (grouped(0), grouped(999), grouped(1000)),
            ("0".into(), "999".into(), "1,000".into())
        );
    }
}
