//! Numbers as people read them, and the exact numbers to stand beside them.

pub(crate) use offshoot_family::quantity::grouped;
use offshoot_family::quantity::proportion;
use offshoot_family::scorecard::is_perplexity;

/// How the values of a quantity are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A share in 0..1, written in percent.
    Share,
    /// A perplexity: four digits, thousands set apart.
    Perplexity,
    /// A count, with an SI prefix.
    Count,
    /// Bytes, with an SI prefix.
    Bytes,
    /// Floating-point operations, with an SI prefix.
    Flops,
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
        } else if is_perplexity(metric) {
            Self::Perplexity
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
            Self::Bytes => prefixed(value, "B"),
            Self::Flops => prefixed(value, "FLOP"),
            Self::Count | Self::Perplexity | Self::Plain => self.bare(value),
        }
    }

    /// `value` for a column whose heading names the unit.
    pub(crate) fn bare(self, value: f64) -> String {
        match self {
            Self::Share => format!("{:.2}", value * 100.0),
            Self::Count => si(value, 3, true),
            Self::Bytes | Self::Flops => self.with_unit(value),
            Self::Perplexity => proportion(value, 4),
            Self::Milliseconds => padded_to(value, 3),
            Self::Plain => significant(value, 4),
        }
    }

    /// `value` at a tick of an axis.
    pub(crate) fn tick(self, value: f64) -> String {
        match self {
            Self::Share => shortest(value * 100.0),
            Self::Count | Self::Bytes | Self::Flops => si(value, 4, false),
            Self::Perplexity if (1000.0..1e7).contains(&value) => grouped(value.round() as u64),
            Self::Perplexity | Self::Milliseconds | Self::Plain => shortest(value),
        }
    }

    /// What follows the name of an axis or column: `, %`.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Share => ", %",
            Self::Milliseconds => ", ms",
            Self::Count | Self::Perplexity | Self::Bytes | Self::Flops | Self::Plain => "",
        }
    }
}

/// A number with an SI prefix of its `unit`: `86.7 MB`, `12 B`.
fn prefixed(value: f64, unit: &str) -> String {
    let text = si(value, 3, true);
    if text.ends_with(char::is_alphabetic) {
        format!("{text}{unit}")
    } else {
        format!("{text} {unit}")
    }
}

/// A count with an SI prefix and `digits` significant digits: `21.7 M`; trailing zeros only where it is `padded`.
fn si(value: f64, digits: usize, padded: bool) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
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

/// A count and its noun: `1 child`, `4 children`.
pub(crate) fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n as u64), if n == 1 { one } else { many })
}

/// What a metric is called in a sentence.
pub(crate) fn metric_name(metric: &str) -> String {
    if is_perplexity(metric) {
        let (kind, domain) = metric.split_once('/').unwrap_or((metric, ""));
        let name = if kind == "byte_perplexity" {
            "perplexity per byte"
        } else {
            "perplexity"
        };
        return match domain {
            "" => name.into(),
            domain => format!("{name} of {domain}"),
        };
    }
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
        assert_eq!(Unit::Flops.with_unit(1.5e15), "1.50 PFLOP");
        assert_eq!(Unit::Flops.with_unit(2.3e21), "2.30 ZFLOP");
        assert_eq!(Unit::Flops.with_unit(12.0), "12 FLOP");
        assert_eq!(Unit::Perplexity.with_unit(12.344), "12.34");
        assert_eq!(Unit::Perplexity.bare(1234.4), "1,234");
        assert_eq!(Unit::Perplexity.tick(30.0), "30");
        assert_eq!(Unit::Perplexity.tick(10_000.0), "10,000");
        assert_eq!(Unit::of_metric("byte_perplexity/pubmed"), Unit::Perplexity);
        assert_eq!(metric_name("byte_perplexity/pubmed"), "perplexity per byte of pubmed");
        assert_eq!(metric_name("perplexity"), "perplexity");
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
