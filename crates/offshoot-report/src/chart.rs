//! The small SVG writer: marks and text with everything escaped, scales with nice ticks, axes.

use std::fmt::Write as _;

use crate::units::Unit;

/// Steps of the sequential colour scale `--q0` to `--q15`.
pub(crate) const SHADES: usize = 16;

/// Text that is safe inside an element and inside a quoted attribute.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters are no XML; a name that holds one is odd enough without them.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A coordinate with one decimal, and never anything that is not a number.
pub(crate) fn coordinate(value: f64) -> String {
    if !value.is_finite() {
        return "0".into();
    }
    let text = format!("{value:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".into() } else { text.to_owned() }
}

/// Where text hangs at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// It begins there.
    Start,
    /// It is centred there.
    Middle,
    /// It ends there.
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// An SVG element under construction.
pub(crate) struct Svg {
    out: String,
}

impl Svg {
    /// Begins a picture of `width` by `height` units with a title and a description for those who do not see it. `id` is
    /// unique in the page; `class` and `id` are the caller's own words.
    pub(crate) fn new(id: &str, class: &str, (width, height): (f64, f64), title: &str, description: &str) -> Self {
        let (w, h) = (coordinate(width), coordinate(height));
        let mut out = String::new();
        let _ = write!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"{class}\" viewBox=\"0 0 {w} {h}\" role=\"img\" \
             aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
            escaped(title),
            escaped(description)
        );
        Self { out }
    }

    /// A straight line.
    pub(crate) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(coordinate);
        let _ = write!(
            self.out,
            "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"
        );
    }

    /// A rectangle, with a tooltip unless it is empty.
    pub(crate) fn rect(&mut self, class: &str, (x, y): (f64, f64), (w, h): (f64, f64), tip: &str) {
        let [x, y, w, h] = [x, y, w, h].map(coordinate);
        let _ = write!(
            self.out,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\""
        );
        self.end_with_tip("rect", tip);
    }

    /// A dot, with a tooltip unless it is empty.
    pub(crate) fn circle(&mut self, class: &str, (x, y): (f64, f64), r: f64, tip: &str) {
        let [x, y, r] = [x, y, r].map(coordinate);
        let _ = write!(self.out, "<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"{r}\"");
        self.end_with_tip("circle", tip);
    }

    /// A square on its corner, with a tooltip unless it is empty.
    pub(crate) fn diamond(&mut self, class: &str, (x, y): (f64, f64), r: f64, tip: &str) {
        let [left, right, top, bottom, x, y] = [x - r, x + r, y - r, y + r, x, y].map(coordinate);
        let _ = write!(
            self.out,
            "<path class=\"{class}\" d=\"M{left} {y}L{x} {top}L{right} {y}L{x} {bottom}Z\""
        );
        self.end_with_tip("path", tip);
    }

    fn end_with_tip(&mut self, element: &str, tip: &str) {
        if tip.is_empty() {
            self.out.push_str("/>");
        } else {
            let _ = write!(self.out, "><title>{}</title></{element}>", escaped(tip));
        }
    }

    /// A line through points; `attributes` are the caller's own words.
    pub(crate) fn polyline(&mut self, class: &str, points: &[(f64, f64)], attributes: &str) {
        let _ = write!(self.out, "<polyline class=\"{class}\" points=\"");
        for (i, &(x, y)) in points.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            let _ = write!(self.out, "{space}{},{}", coordinate(x), coordinate(y));
        }
        let _ = write!(self.out, "\" {attributes}/>");
    }

    /// A word or a number.
    pub(crate) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let [x, y] = [x, y].map(coordinate);
        let anchor = anchor.name();
        let text = escaped(text);
        let _ = write!(
            self.out,
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// The finished element.
    pub(crate) fn finish(mut self) -> String {
        self.out.push_str("</svg>");
        self.out
    }
}

/// The step of the sequential colour scale for `value` in `low..=high`; the middle one where all values are equal.
pub(crate) fn shade(value: f64, low: f64, high: f64) -> usize {
    let share = (value - low) / (high - low);
    if share.is_finite() {
        (share * (SHADES - 1) as f64).round().clamp(0.0, (SHADES - 1) as f64) as usize
    } else {
        SHADES / 2
    }
}

/// A map from values to coordinates, linear or logarithmic.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
    log: bool,
}

impl Scale {
    /// A linear scale over `values`, with air on both sides. Values that are no numbers are passed over.
    pub(crate) fn linear(values: impl IntoIterator<Item = f64>, (start, end): (f64, f64)) -> Self {
        let (low, high) = extent(values).unwrap_or((0.0, 1.0));
        let air = (high - low) * 0.05;
        // All values equal: one unit of their own size around them.
        let air = if air > 0.0 && air.is_finite() {
            air
        } else {
            (low.abs() * 0.05).clamp(1e-12, 1e300)
        };
        Self {
            low: low - air,
            high: high + air,
            start,
            end,
            log: false,
        }
    }

    /// A linear scale from the lowest to the highest value, with no air.
    pub(crate) fn exact(values: impl IntoIterator<Item = f64>, (start, end): (f64, f64)) -> Self {
        let (low, high) = extent(values).unwrap_or((0.0, 1.0));
        let high = if high > low { high } else { low + low.abs().max(1.0) };
        Self {
            low,
            high,
            start,
            end,
            log: false,
        }
    }

    /// A logarithmic scale where all values are positive and the largest is over `ratio` times the smallest, a linear one
    /// elsewhere.
    pub(crate) fn fitting(values: &[f64], ratio: f64, (start, end): (f64, f64)) -> Self {
        match extent(values.iter().copied()) {
            // A ratio or an end beyond the largest number has no logarithm to draw.
            Some((low, high)) if low > 0.0 && high / low > ratio && (high * (high / low).powf(0.05)).is_finite() => {
                let air = (high / low).powf(0.05);
                Self {
                    low: low / air,
                    high: high * air,
                    start,
                    end,
                    log: true,
                }
            }
            _ => Self::linear(values.iter().copied(), (start, end)),
        }
    }

    /// A scale of scores: of perplexities, whose ratios count, a logarithmic one as soon as they span much.
    pub(crate) fn of_scores(values: &[f64], unit: Unit, ends: (f64, f64)) -> Self {
        if unit == Unit::Perplexity {
            Self::fitting(values, 4.0, ends)
        } else {
            Self::linear(values.iter().copied(), ends)
        }
    }

    /// Whether it is logarithmic.
    pub(crate) fn is_log(&self) -> bool {
        self.log
    }

    /// The coordinate of `value`.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        let share = if share.is_finite() { share } else { 0.5 };
        self.start + share * (self.end - self.start)
    }

    /// About `wanted` round values inside the scale, ascending.
    pub(crate) fn ticks(&self, wanted: usize) -> Vec<f64> {
        if self.log {
            let sets: [&[f64]; 4] = [
                &[1.0],
                &[1.0, 3.0],
                &[1.0, 2.0, 5.0],
                &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
            ];
            let mut best = Vec::new();
            for set in sets {
                let ticks = self.log_ticks(set);
                if ticks.len() > wanted + 1 {
                    if best.len() < 2 {
                        best = ticks;
                    }
                    break;
                }
                best = ticks;
            }
            let stride = best.len().div_ceil(wanted.max(1) + 1).max(1);
            return best.into_iter().step_by(stride).collect();
        }
        let raw = (self.high - self.low) / wanted.max(1) as f64;
        let magnitude = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .map(|m| m * magnitude)
            .into_iter()
            .min_by(|a, b| (a / raw).ln().abs().total_cmp(&(b / raw).ln().abs()))
            .unwrap_or(raw);
        let (first, last) = ((self.low / step).ceil(), (self.high / step).floor());
        if !(step > 0.0 && first.is_finite() && last - first < 100.0) {
            return Vec::new();
        }
        (0..=(last - first).max(0.0) as usize)
            .map(|i| (first + i as f64) * step)
            .collect()
    }

    fn log_ticks(&self, set: &[f64]) -> Vec<f64> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let all = (first..=last).flat_map(|power| set.iter().map(move |m| m * 10f64.powi(power)));
        all.filter(|&tick| tick >= self.low && tick <= self.high).collect()
    }
}

/// The least and the greatest of the finite values.
pub(crate) fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .into_iter()
        .filter(|v| v.is_finite())
        .fold(None, |seen, v| match seen {
            None => Some((v, v)),
            Some((low, high)) => Some((f64::min(low, v), f64::max(high, v))),
        })
}

/// The frame of a chart: its plot area, grid lines, ticks and axis names.
pub(crate) struct Frame {
    /// Left edge of the plot.
    pub(crate) left: f64,
    /// Right edge of the plot.
    pub(crate) right: f64,
    /// Upper edge of the plot.
    pub(crate) top: f64,
    /// Lower edge of the plot.
    pub(crate) bottom: f64,
}

impl Frame {
    /// Draws grid, ticks and the names of both axes.
    pub(crate) fn draw(&self, svg: &mut Svg, x: (&Scale, Unit, &str), y: (&Scale, Unit, &str), wanted: (usize, usize)) {
        let (y_scale, y_unit, y_label) = y;
        for tick in y_scale.ticks(wanted.1) {
            let at = y_scale.at(tick);
            svg.line("grid", (self.left, at), (self.right, at));
            svg.text("tick", (self.left - 7.0, at + 4.0), Anchor::End, &y_unit.tick(tick));
        }
        let (x_scale, x_unit, x_label) = x;
        for tick in x_scale.ticks(wanted.0) {
            let at = x_scale.at(tick);
            svg.line("axis", (at, self.bottom), (at, self.bottom + 4.0));
            svg.text("tick", (at, self.bottom + 17.0), Anchor::Middle, &x_unit.tick(tick));
        }
        svg.line("axis", (self.left, self.bottom), (self.right, self.bottom));
        if !x_label.is_empty() {
            svg.text("name", (self.right, self.bottom + 34.0), Anchor::End, x_label);
        }
        if !y_label.is_empty() {
            svg.text("name", (0.0, 12.0), Anchor::Start, y_label);
        }
    }

    /// Writes names beside the right edge, each at the height of its line's end, moved apart from the top down.
    pub(crate) fn name_ends(&self, svg: &mut Svg, mut ends: Vec<(f64, &str)>) {
        // Least distance of two names.
        const LINE: f64 = 14.0;
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut lowest = f64::NEG_INFINITY;
        for (at, name) in ends {
            let at = at.max(lowest + LINE);
            lowest = at;
            svg.text("label named", (self.right + 8.0, at + 4.0), Anchor::Start, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::linear([0.7678, 0.8242], (0.0, 100.0));
        let ticks: Vec<String> = scale.ticks(6).into_iter().map(|t| Unit::Share.tick(t)).collect();
        assert_eq!(ticks, ["77", "78", "79", "80", "81", "82"]);
        let scale = Scale::fitting(&[2.1e7, 3.04e8], 8.0, (0.0, 100.0));
        assert!(scale.is_log());
        let ticks: Vec<String> = scale.ticks(6).into_iter().map(|t| Unit::Count.tick(t)).collect();
        assert_eq!(ticks, ["20 M", "50 M", "100 M", "200 M"]);
        assert!(!Scale::fitting(&[0.0, 3.04e8], 8.0, (0.0, 100.0)).is_log());
    }

    #[test]
    fn odd_ranges_stay_finite() {
        for values in [
            vec![],
            vec![0.0],
            vec![5.0, 5.0],
            vec![-1e308, 1e308],
            vec![f64::NAN],
            vec![1e-300, 1e300],
            vec![1e306, 1.7e308],
            vec![f64::MAX],
        ] {
            for scale in [
                Scale::linear(values.clone(), (0.0, 10.0)),
                Scale::exact(values.clone(), (0.0, 10.0)),
                Scale::fitting(&values, 8.0, (0.0, 10.0)),
            ] {
                let ticks = scale.ticks(6);
                assert!(ticks.len() < 30, "{values:?}: {ticks:?}");
                assert!(values.iter().all(|&v| scale.at(v).is_finite()), "{values:?}");
            }
        }
    }

    #[test]
    fn shades_span_the_scale_and_equal_values_get_the_middle() {
        assert_eq!(shade(0.0, 0.0, 1.0), 0);
        assert_eq!(shade(1.0, 0.0, 1.0), SHADES - 1);
        assert_eq!(shade(1.0, 1.0, 1.0), SHADES / 2);
        assert_eq!(shade(f64::NAN, 0.0, 1.0), SHADES / 2);
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escaped("<a b=\"c\">&'\u{1}"), "&lt;a b=&quot;c&quot;&gt;&amp;&#39; ");
        assert_eq!(coordinate(-0.01), "0");
        assert_eq!(coordinate(f64::INFINITY), "0");
    }
}
