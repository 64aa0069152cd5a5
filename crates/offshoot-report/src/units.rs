//! Numbers as people read them, and the exact numbers to stand beside them.

/// How the values of a quantity are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A share in 0..1, written in percent.
    Share,
    /// A count, with an SI prefix.
    Count,
    /// Bytes, with an SI prefix.
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Anything else.
    Plain,
}

impl Unit {
    /// The unit of a scorecard's or a probe's metric.
    pub(crate) fn of_metric(metric: &str) -> Self {
        if metric.starts_with("knn@") || metric.starts_with("agreement@") || metric.starts_with("linear") {
            Self::Share
        } else if metric.ends_with("_ms") {
            Self::Milliseconds
        } else {
            Self::Plain
        }
    }

    /// `value` with its unit: `82.42 %`, `303 M`, `12.3 ms`.
    pub(crate) fn with_unit(self, value: f64) -> String {
        match self {
            Self::Share => format!("{} %", self.bare(value)),
            Self::Milliseconds => format!("{} ms", self.bare(value)),
            Self::Bytes => {
                let text = si(value, 3, true);
                if text.ends_with(char::is_alphabetic) {
                    format!("{text}B")
                } else {
                    format!("{text} B")
                }
            }
            Self::Count | Self::Plain => self.bare(value),
        }
    }

    /// `value` for a column whose heading names the unit.
    pub(crate) fn bare(self, value: f64) -> String {
        match self {
            Self::Share => format!("{:.2}", value * 100.0),
            Self::Count => si(value, 3, true),
            Self::Bytes => self.with_unit(value),
            Self::Milliseconds => padded_to(value, 3),
            Self::Plain => significant(value, 4),
        }
    }

    /// `value` at a tick of an axis.
    pub(crate) fn tick(self, value: f64) -> String {
        match self {
            Self::Share => shortest(value * 100.0),
            Self::Count | Self::Bytes => si(value, 4, false),
            Self::Milliseconds | Self::Plain => shortest(value),
        }
    }

    /// What follows the name of an axis or column: `, %`.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Share => ", %",
            Self::Milliseconds => ", ms",
            Self::Count | Self::Bytes | Self::Plain => "",
        }
    }
}

/// A count with an SI prefix and `digits` significant digits: `21.7 M`; trailing zeros only where it is `padded`.
fn si(value: f64, digits: usize, padded: bool) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E"];
    let mut power = 0;
    let mut scaled = value;
    // 999.6 k would be written 1000 k; it is 1 M.
    while power + 1 < prefixes.len() && scaled.abs() >= 999.5 {
        scaled /= 1000.0;
        power += 1;
    }
    if power == 0 {
        return shortest(scaled);
    }
    let text = if padded {
        padded_to(scaled, digits)
    } else {
        significant(scaled, digits)
    };
    format!("{text} {}", prefixes[power])
}

/// `value` rounded to `digits` significant digits with its trailing zeros, so that a column of them lines up.
fn padded_to(value: f64, digits: usize) -> String {
    let short = significant(value, digits);
    if value == 0.0 || short.contains('e') || !value.is_finite() {
        return short;
    }
    // Rounding may have raised the magnitude: 9.999 becomes 10.0.
    let rounded: f64 = short.parse().unwrap_or(value);
    let decimals = (digits as f64 - 1.0 - rounded.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    format!("{rounded:.decimals$}")
}

/// `value` rounded to `digits` significant digits, trailing zeros kept off, in powers of ten where it is tiny or huge.
pub(crate) fn significant(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "not finite".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..7.0).contains(&magnitude) {
        let text = format!("{value:.*e}", digits.saturating_sub(1));
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", trimmed(mantissa));
    }
    let decimals = (digits as f64 - 1.0 - magnitude).clamp(0.0, 12.0) as usize;
    trimmed(&format!("{value:.decimals$}")).to_owned()
}

/// `value` without the noise of its last binary digits: what a tick or a whole number wants.
pub(crate) fn shortest(value: f64) -> String {
    significant(value, 10)
}

fn trimmed(text: &str) -> &str {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        text
    }
}

/// A whole number with its thousands set apart: `303,301,632`.
pub(crate) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count and its noun: `1 child`, `4 children`.
pub(crate) fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n as u64), if n == 1 { one } else { many })
}

/// What a metric is called in a sentence.
pub(crate) fn metric_name(metric: &str) -> String {
    match metric.split_once('@') {
        Some(("knn", k)) => format!("k-NN accuracy (k = {k})"),
        Some(("agreement", k)) => format!("neighbour agreement (k = {k})"),
        _ if metric == "linear" => "linear-probe accuracy".into(),
        _ if metric == "latency_ms" => "latency".into(),
        _ => metric.to_owned(),
    }
}

/// The name of an axis of a space for readers: `depth3` is the depth of a network's third stage.
pub(crate) fn axis_words(name: &str) -> String {
    match name.strip_prefix("depth").map(str::parse::<usize>) {
        Some(Ok(stage)) => format!("stage {stage} depth"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(Unit::Share.with_unit(0.8242), "82.42 %");
        assert_eq!(Unit::Count.with_unit(21_665_664.0), "21.7 M");
        assert_eq!(Unit::Count.with_unit(303_301_632.0), "303 M");
        assert_eq!(Unit::Count.with_unit(999_700.0), "1.00 M");
        assert_eq!(Unit::Count.with_unit(27_000_000.0), "27.0 M");
        assert_eq!(Unit::Count.with_unit(9_999_000.0), "10.0 M");
        assert_eq!(Unit::Count.with_unit(12.0), "12");
        assert_eq!(Unit::Bytes.with_unit(86_662_656.0), "86.7 MB");
        assert_eq!(Unit::Bytes.with_unit(12.0), "12 B");
        assert_eq!(Unit::Milliseconds.with_unit(12.345), "12.3 ms");
        assert_eq!(Unit::Milliseconds.with_unit(105.0), "105 ms");
        assert_eq!(Unit::Milliseconds.with_unit(0.0), "0 ms");
        assert_eq!(Unit::Count.tick(2e7), "20 M");
        assert_eq!(Unit::Share.tick(0.7_f64 + 0.1), "80");
        assert_eq!(significant(6.1697e-5, 3), "6.17e-5");
        assert_eq!(significant(0.0, 3), "0");
        assert_eq!(significant(f64::NAN, 3), "not finite");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(counted(1, "child", "children"), "1 child");
    }
}
