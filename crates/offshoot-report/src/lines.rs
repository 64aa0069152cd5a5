//! Lines of several things over one quantity, each named at its end, with places on the quantity marked.

use crate::chart::{Anchor, Frame, Scale, Svg};
use crate::curves::{MOST_SERIES, Points};
use crate::units::{Unit, significant};

/// Spread of values from which an axis is logarithmic.
const LOG_FROM: f64 = 20.0;

/// One of the things.
pub(crate) struct Line<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its class of colour, below [`MOST_SERIES`]: the same thing has the same in every chart.
    pub(crate) colour: usize,
    /// Its points, ascending.
    pub(crate) points: Points,
    /// Points that are told of when they are pointed at: where, and what.
    pub(crate) told: Vec<((f64, f64), String)>,
}

/// A chart of lines.
pub(crate) struct Lines<'a> {
    /// Id of the element, unique in the page.
    pub(crate) id: &'a str,
    /// Its title.
    pub(crate) title: &'a str,
    /// What it shows, in words.
    pub(crate) description: &'a str,
    /// Unit and name of the horizontal axis.
    pub(crate) x: (Unit, &'a str),
    /// Unit and name of the vertical axis.
    pub(crate) y: (Unit, &'a str),
    /// The lines.
    pub(crate) lines: &'a [Line<'a>],
    /// Marked places on the horizontal axis, with what they are.
    pub(crate) marks: &'a [(f64, String)],
}

impl Lines<'_> {
    /// Draws the chart at `width` by `height`; `class` is the caller's own word.
    pub(crate) fn draw(&self, class: &str, (width, height): (f64, f64)) -> String {
        let narrow = width < 420.0;
        let longest = self
            .lines
            .iter()
            .map(|line| line.name.chars().count())
            .max()
            .unwrap_or(0);
        let frame = Frame {
            left: 52.0,
            right: width - 16.0 - (longest.min(12) as f64 * 7.0),
            top: 44.0,
            bottom: height - 44.0,
        };
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let places: Vec<f64> = all().map(|point| point.0).collect();
        let values: Vec<f64> = all().map(|point| point.1).collect();
        let x = Scale::fitting(&places, LOG_FROM, (frame.left, frame.right));
        let y = match self.y.0 {
            Unit::Perplexity => Scale::of_scores(&values, self.y.0, (frame.bottom, frame.top)),
            _ => Scale::fitting(&values, LOG_FROM, (frame.bottom, frame.top)),
        };
        let id = format!("{}-{class}", self.id);
        let mut svg = Svg::new(&id, class, (width, height), self.title, self.description);
        let named = |name: &str, scale: &Scale| format!("{name}{}", if scale.is_log() { " (log scale)" } else { "" });
        let (x_name, y_name) = (named(self.x.1, &x), named(self.y.1, &y));
        let wanted = (if narrow { 4 } else { 9 }, (height / 60.0) as usize);
        frame.draw(&mut svg, (&x, self.x.0, &x_name), (&y, self.y.0, &y_name), wanted);
        for (row, (place, what)) in self.marks.iter().enumerate() {
            let at = x.at(*place);
            if !(frame.left..=frame.right).contains(&at) {
                continue;
            }
            svg.line("leader", (at, frame.top), (at, frame.bottom));
            // Two rows, so that marks beside each other do not hide each other's words.
            let anchor = if at > (frame.left + frame.right) / 2.0 {
                Anchor::End
            } else {
                Anchor::Start
            };
            svg.text("label", (at, frame.top - 4.0 - 12.0 * (row % 2) as f64), anchor, what);
        }
        for line in self.lines {
            let colour = line.colour % MOST_SERIES;
            let placed: Vec<(f64, f64)> = line.points.iter().map(|&(at, value)| (x.at(at), y.at(value))).collect();
            svg.polyline(&format!("curve c{colour}"), &placed, "");
            for ((at, value), tip) in &line.told {
                let radius = if narrow { 2.5 } else { 3.5 };
                svg.circle(&format!("dot point c{colour}"), (x.at(*at), y.at(*value)), radius, tip);
            }
        }
        // A lone point is named where it is.
        let alone = |line: &&Line<'_>| line.points.len() == 1;
        for line in self.lines.iter().filter(alone) {
            let (at, value) = line.points[0];
            svg.text(
                "label named",
                (x.at(at) + 9.0, y.at(value) + 4.0),
                Anchor::Start,
                line.name,
            );
        }
        let end = |line: &Line<'_>| line.points.last().map(|point| y.at(point.1));
        let ends = self
            .lines
            .iter()
            .filter(|line| !alone(line))
            .filter_map(|line| Some((end(line)?, line.name)))
            .collect();
        frame.name_ends(&mut svg, ends);
        svg.finish()
    }
}

/// A number of hours or domains in a tip.
pub(crate) fn plain(value: f64) -> String {
    significant(value, 4)
}
