//! The limits a user states (parameters, bytes, multiply-adds, milliseconds), how they are written, and the best child
//! within them.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Child};
use crate::scorecard::Split;

/// Limits that a child must keep; none where a field is none. A child exactly at a limit keeps it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Most parameters.
    pub parameters: Option<u64>,
    /// Most bytes of the exported fp32 weights file.
    pub bytes: Option<u64>,
    /// Most multiply-adds of one image at native size.
    pub macs: Option<u64>,
    /// Most milliseconds for one image, measured on this machine.
    pub milliseconds: Option<f64>,
}

impl Budget {
    /// Whether no limit is stated, so that every child keeps it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Every limit that `child` breaks, with both numbers. A child whose latency was not measured breaks a limit of
    /// milliseconds.
    pub fn excesses(&self, child: &Child) -> Vec<Excess> {
        let over = |limit: Option<u64>, actual: u64| limit.filter(|&limit| actual > limit).map(|limit| (actual, limit));
        let mut excesses = Vec::new();
        if let Some((actual, limit)) = over(self.parameters, child.parameters) {
            excesses.push(Excess::Parameters { actual, limit });
        }
        if let Some((actual, limit)) = over(self.bytes, child.bytes) {
            excesses.push(Excess::Bytes { actual, limit });
        }
        if let Some((actual, limit)) = over(self.macs, child.macs) {
            excesses.push(Excess::Macs { actual, limit });
        }
        if let Some(limit) = self.milliseconds {
            let actual = child.latency_ms().filter(|ms| !ms.is_nan());
            if actual.is_none_or(|ms| ms > limit) {
                excesses.push(Excess::Milliseconds { actual, limit });
            }
        }
        excesses
    }

    /// Which limits `child` breaks, in words with both numbers; none if it keeps them all. A child whose latency was not
    /// measured breaks a limit of milliseconds.
    pub fn broken_by(&self, child: &Child) -> Option<String> {
        let excesses = self.excesses(child);
        (!excesses.is_empty()).then(|| joined(&excesses))
    }
}

/// One limit that a child breaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Excess {
    /// Too many parameters.
    Parameters {
        /// The child's.
        actual: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Too many bytes of exported fp32 weights.
    Bytes {
        /// The child's.
        actual: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Too many multiply-adds of one image.
    Macs {
        /// The child's.
        actual: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Too many milliseconds for one image, or nobody measured how many.
    Milliseconds {
        /// The child's; none if it was not measured.
        actual: Option<f64>,
        /// The most allowed.
        limit: f64,
    },
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counted = |actual: u64, limit: u64, unit: &str| {
            write!(
                f,
                "{} {unit}, {} over the limit of {}",
                grouped(actual),
                grouped(actual - limit),
                grouped(limit)
            )
        };
        match *self {
            Self::Parameters { actual, limit } => counted(actual, limit.min(actual), "parameters"),
            Self::Bytes { actual, limit } => counted(actual, limit.min(actual), "bytes"),
            Self::Macs { actual, limit } => counted(actual, limit.min(actual), "multiply-adds"),
            Self::Milliseconds { actual: None, limit } => write!(f, "latency not measured, the limit is {limit} ms"),
            Self::Milliseconds {
                actual: Some(actual),
                limit,
            } => {
                // Three decimals, unless they would hide the difference.
                let rounded = (actual * 1000.0).round() / 1000.0;
                let shown = if rounded > limit { rounded } else { actual };
                write!(f, "{shown} ms, over the limit of {limit} ms")
            }
        }
    }
}

fn joined(excesses: &[Excess]) -> String {
    excesses.iter().map(Excess::to_string).collect::<Vec<_>>().join("; ")
}

/// Digits in groups of three: `21,675,264`.
fn grouped(number: u64) -> String {
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

/// Why a child was not picked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// It keeps the budget and another scores higher.
    LowerScore {
        /// The child's score.
        score: f64,
        /// The chosen one's score.
        best: f64,
    },
    /// It keeps the budget, scores the same as the chosen one and has more parameters, or as many and a later id.
    Tied {
        /// The score of both.
        score: f64,
        /// The child's parameters.
        parameters: u64,
        /// The chosen one's parameters.
        chosen: u64,
    },
    /// It keeps the budget, and the metric was not measured on that part of the data (or is not a number).
    NotMeasured {
        /// The metric asked for.
        metric: String,
        /// The part of the data asked for.
        split: Split,
    },
    /// It breaks these limits.
    OverBudget(Vec<Excess>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LowerScore { score, best } => {
                // Four decimals, unless they would hide the difference.
                let short = (format!("{score:.4}"), format!("{best:.4}"));
                if short.0 == short.1 {
                    write!(f, "scores {score}, the best scores {best}")
                } else {
                    write!(f, "scores {}, the best scores {}", short.0, short.1)
                }
            }
            Self::Tied { parameters, chosen, .. } if parameters == chosen => {
                f.write_str("same score and as many parameters; the first id was taken")
            }
            Self::Tied { parameters, chosen, .. } => {
                let (more, fewer) = (grouped(*parameters), grouped(*chosen));
                write!(f, "same score with {more} parameters instead of {fewer}")
            }
            Self::NotMeasured { metric, split } => write!(f, "{metric} was not measured on {split}"),
            Self::OverBudget(excesses) => f.write_str(&joined(excesses)),
        }
    }
}

/// The outcome of [`pick`].
#[derive(Clone, Debug, PartialEq)]
pub struct Pick<'a> {
    /// The best measured child within the budget; none if there is none.
    pub chosen: Option<&'a Child>,
    /// Every other child with why it lost: first the runners-up, best first; then those not measured; then those over the
    /// budget, best first.
    pub losers: Vec<(&'a Child, Reason)>,
}

impl<'a> Pick<'a> {
    /// The children within the budget that were measured and lost, best first.
    pub fn runners_up(&self) -> impl Iterator<Item = &'a Child> + '_ {
        let ran = |reason: &Reason| matches!(reason, Reason::LowerScore { .. } | Reason::Tied { .. });
        self.losers
            .iter()
            .filter(move |(_, reason)| ran(reason))
            .map(|&(child, _)| child)
    }
}

/// The child of `catalog` that keeps `budget` and has the highest `metric` on `split`, and why not the others. Of equal
/// scores the one with fewer parameters wins, then the smaller id. A score that is not a number counts as not measured.
pub fn pick<'a>(catalog: &'a Catalog, budget: &Budget, metric: &str, split: Split) -> Pick<'a> {
    let score = |child: &Child| child.score(metric, split).filter(|score| !score.is_nan());
    let best_first = |a: &&Child, b: &&Child| {
        // `None` is below every score, so that what was not measured comes last.
        let by_score = score(b).partial_cmp(&score(a)).unwrap_or(Ordering::Equal);
        by_score
            .then(a.parameters.cmp(&b.parameters))
            .then_with(|| a.id.cmp(&b.id))
    };
    let mut children: Vec<&Child> = catalog.children.iter().collect();
    children.sort_by(best_first);
    let (within, over): (Vec<&Child>, Vec<&Child>) = children.into_iter().partition(|c| budget.excesses(c).is_empty());
    let mut losers = Vec::with_capacity(catalog.children.len());
    let mut chosen: Option<(&Child, f64)> = None;
    for child in within {
        let reason = match (score(child), chosen) {
            (None, _) => Reason::NotMeasured {
                metric: metric.to_owned(),
                split,
            },
            (Some(score), None) => {
                chosen = Some((child, score));
                continue;
            }
            (Some(score), Some((winner, best))) if score == best => Reason::Tied {
                score,
                parameters: child.parameters,
                chosen: winner.parameters,
            },
            (Some(score), Some((_, best))) => Reason::LowerScore { score, best },
        };
        losers.push((child, reason));
    }
    losers.extend(
        over.into_iter()
            .map(|child| (child, Reason::OverBudget(budget.excesses(child)))),
    );
    Pick {
        chosen: chosen.map(|(child, _)| child),
        losers,
    }
}

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::architecture::{Architecture, Vit};
    use crate::catalog::{ChildSource, DataRef, FORMAT, ParentRef, Preprocessing};
    use crate::scorecard::Scorecard;
    use crate::space::Shape;

    fn card(metric: &str, value: f64, split: Option<Split>) -> Scorecard {
        Scorecard {
            metric: metric.into(),
            value,
            split,
            data: None,
            examples: 10,
            seed: 0,
            machine: "test".into(),
            version: "0".into(),
            details: serde_json::Map::new(),
        }
    }

    fn child(width: usize, parameters: u64, scores: &[Scorecard]) -> Child {
        let shape = Shape::new([("width", width)]);
        Child {
            id: shape.id(),
            name: None,
            source: ChildSource::View(format!("views/{width}.json")),
            shape,
            parameters,
            macs: parameters * 200,
            bytes: parameters * 4,
            scorecards: scores.to_vec(),
        }
    }

    fn catalog(children: Vec<Child>) -> Catalog {
        let vit = Vit {
            width: 64,
            depth: 2,
            head_dim: 16,
            mlp_ratio: 4,
            patch: 4,
            image: 32,
            channels: 3,
            position_offset: 0.0,
            norm_eps: 1e-6,
        };
        Catalog {
            format: FORMAT,
            version: "0".into(),
            method: "elastic".into(),
            seed: 0,
            parent: ParentRef {
                path: "parent".into(),
                hash: String::new(),
                architecture: Architecture::Vit(vit),
            },
            space: None,
            data: DataRef {
                path: "/data".into(),
                labels: true,
                fingerprint: String::new(),
                split_seed: 0,
                val: 0.1,
                test: 0.1,
                preprocessing: Preprocessing {
                    resize: 32,
                    crop: 32,
                    channels: 3,
                    mean: vec![0.5; 3],
                    std: vec![0.5; 3],
                },
            },
            score: "knn@20".into(),
            children,
        }
    }

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
            let _ = (parse_count(&text), parse_bytes(&text), parse_milliseconds(&text));
        }

        #[test]
        fn every_whole_number_is_read_as_it_is(value: u64) {
            prop_assert_eq!(parse_count(&value.to_string()), Ok(value));
            prop_assert_eq!(parse_bytes(&format!("{value} B")), Ok(value));
        }
    }

    #[test]
    fn a_budget_names_every_broken_limit_with_both_numbers() {
        let it = child(384, 21_675_264, &[card("latency_ms", 6.2034, None)]);
        assert!(Budget::default().is_empty());
        assert_eq!(Budget::default().broken_by(&it), None);
        let exact = Budget {
            parameters: Some(21_675_264),
            milliseconds: Some(6.2034),
            ..Budget::default()
        };
        assert!(!exact.is_empty());
        assert_eq!(exact.broken_by(&it), None);
        let tight = Budget {
            parameters: Some(5_000_000),
            bytes: Some(20_000_000),
            macs: Some(1),
            milliseconds: Some(5.0),
        };
        assert_eq!(
            tight.broken_by(&it).unwrap(),
            "21,675,264 parameters, 16,675,264 over the limit of 5,000,000; \
             86,701,056 bytes, 66,701,056 over the limit of 20,000,000; \
             4,335,052,800 multiply-adds, 4,335,052,799 over the limit of 1; \
             6.203 ms, over the limit of 5 ms"
        );
        let unmeasured = child(384, 1, &[]);
        assert_eq!(
            tight.broken_by(&unmeasured).unwrap(),
            "200 multiply-adds, 199 over the limit of 1; latency not measured, the limit is 5 ms"
        );
        let close = Budget {
            milliseconds: Some(6.2033),
            ..Budget::default()
        };
        assert_eq!(close.broken_by(&it).unwrap(), "6.2034 ms, over the limit of 6.2033 ms");
    }

    #[test]
    fn pick_orders_the_losers_and_says_why() {
        let knn = |value| card("knn@20", value, Some(Split::Val));
        let family = catalog(vec![
            child(10, 100, &[knn(0.5)]),
            child(20, 200, &[knn(0.8)]),
            child(25, 200, &[knn(0.8)]),
            child(30, 300, &[knn(0.8)]),
            child(40, 400, &[]),
            child(45, 400, &[knn(f64::NAN)]),
            child(48, 450, &[card("knn@20", 0.9, Some(Split::Test))]),
            child(50, 5000, &[knn(0.9)]),
            child(60, 6000, &[knn(0.95)]),
        ]);
        let budget = Budget {
            parameters: Some(1000),
            ..Budget::default()
        };
        let picked = pick(&family, &budget, "knn@20", Split::Val);
        assert_eq!(picked.chosen.unwrap().id, "20");
        let order: Vec<&str> = picked.losers.iter().map(|(c, _)| c.id.as_str()).collect();
        assert_eq!(order, ["25", "30", "10", "40", "45", "48", "60", "50"]);
        let ran: Vec<&str> = picked.runners_up().map(|c| c.id.as_str()).collect();
        assert_eq!(ran, ["25", "30", "10"]);
        let why: Vec<String> = picked.losers.iter().map(|(_, r)| r.to_string()).collect();
        assert_eq!(why[0], "same score and as many parameters; the first id was taken");
        assert_eq!(why[1], "same score with 300 parameters instead of 200");
        assert_eq!(why[2], "scores 0.5000, the best scores 0.8000");
        assert_eq!(why[4], "knn@20 was not measured on val");
        assert_eq!(why[6], "6,000 parameters, 5,000 over the limit of 1,000");
        let close = Reason::LowerScore {
            score: 0.800_001,
            best: 0.800_002,
        };
        assert_eq!(close.to_string(), "scores 0.800001, the best scores 0.800002");

        let none = pick(
            &family,
            &Budget {
                bytes: Some(0),
                ..Budget::default()
            },
            "knn@20",
            Split::Val,
        );
        assert!(none.chosen.is_none());
        assert_eq!(none.losers.len(), family.children.len());
        assert_eq!(
            pick(&catalog(vec![]), &budget, "knn@20", Split::Val),
            Pick {
                chosen: None,
                losers: vec![]
            }
        );
    }
}
