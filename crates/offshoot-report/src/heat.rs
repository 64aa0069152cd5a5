//! Score over two axes as a table of coloured cells, one table per size of a third axis.

use offshoot_family::Axis;
use offshoot_family::quantity::proportion;

use crate::chart::{Anchor, SHADES, Svg, shade};
use crate::units::{Unit, axis_words};

/// What one cell shows.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    /// Its score, where it was measured.
    pub(crate) value: Option<f64>,
    /// What is said of it when it is pointed at.
    pub(crate) tip: String,
    /// Whether it lies on the front of score over parameters.
    pub(crate) front: bool,
    /// Whether it is the child that was picked.
    pub(crate) picked: bool,
}

/// A heat map over two axes.
pub(crate) struct Heat<'a> {
    /// Id of the element, unique in the page.
    pub(crate) id: String,
    /// Its title.
    pub(crate) title: String,
    /// What it shows, in words.
    pub(crate) description: String,
    /// The two axes.
    pub(crate) axes: [&'a Axis; 2],
    /// The cell at a size of each axis, where there is a child.
    pub(crate) cell: &'a dyn Fn(usize, usize) -> Option<Cell>,
    /// The colour scale.
    pub(crate) colours: &'a Colours,
}

/// The colour scale of scores: from the worst to the best, of perplexities by their ratios.
pub(crate) struct Colours {
    /// Lowest and highest value.
    pub(crate) range: (f64, f64),
    /// How values are written.
    pub(crate) unit: Unit,
    /// Whether less is better.
    pub(crate) lower: bool,
}

impl Colours {
    /// The step of `value`.
    fn shade(&self, value: f64) -> usize {
        let (low, high) = self.range;
        let place = |value: f64| {
            if self.unit == Unit::Perplexity && low > 0.0 {
                value.ln()
            } else {
                value
            }
        };
        let (worst, best) = if self.lower { (high, low) } else { (low, high) };
        shade(place(value), place(worst), place(best))
    }
}

impl Heat<'_> {
    /// Draws it for a page `width`; `class` is the caller's own word.
    pub(crate) fn draw(&self, class: &str, width: f64) -> String {
        let narrow = width < 420.0;
        let [first, second] = [self.axes[0].sizes.len(), self.axes[1].sizes.len()];
        // A wide page takes the long axis across, a narrow one takes it down.
        let swapped = if narrow {
            first > 14 && second < first
        } else {
            second * 2 > first * 3
        };
        let (across, down) = if swapped {
            (self.axes[1], self.axes[0])
        } else {
            (self.axes[0], self.axes[1])
        };
        let (columns, rows) = (across.sizes.len().max(1), down.sizes.len().max(1));
        let longest = down.sizes.iter().map(|size| size.to_string().len()).max().unwrap_or(1);
        let left = (longest as f64 * 7.0 + 10.0).max(if narrow { 30.0 } else { 40.0 });
        let top = 24.0;
        let cell_width = ((width - left - 2.0) / columns as f64).min(92.0);
        let cell_height = if narrow { 24.0 } else { 28.0 };
        let bottom = top + rows as f64 * cell_height;
        let size = (width, bottom + 40.0);
        let id = format!("{}-{class}", self.id);
        let mut svg = Svg::new(&id, class, size, &self.title, &self.description);
        svg.text(
            "name",
            (0.0, 12.0),
            Anchor::Start,
            &format!("{} ↑", axis_words(&down.name)),
        );
        let (font, decimals) = self.fit(cell_width);
        let mut outlined = Vec::new();
        for (r, &row_size) in down.sizes.iter().rev().enumerate() {
            let y = top + r as f64 * cell_height;
            svg.text(
                "tick",
                (left - 8.0, y + cell_height / 2.0 + 4.0),
                Anchor::End,
                &row_size.to_string(),
            );
            for (c, &column_size) in across.sizes.iter().enumerate() {
                let x = left + c as f64 * cell_width;
                let cell = if swapped {
                    (self.cell)(row_size, column_size)
                } else {
                    (self.cell)(column_size, row_size)
                };
                let area = ((x + 0.5, y + 0.5), (cell_width - 1.0, cell_height - 1.0));
                let Some(cell) = cell else { continue };
                let Some(value) = cell.value else {
                    svg.rect("cell blank", area.0, area.1, &cell.tip);
                    continue;
                };
                let q = self.colours.shade(value);
                svg.rect(&format!("cell q{q}"), area.0, area.1, &cell.tip);
                if let (Some(font), Some(decimals)) = (font, decimals) {
                    let class = format!("in{font} {}", ink(q));
                    let middle = (x + cell_width / 2.0, y + cell_height / 2.0 + f64::from(font) * 0.36);
                    svg.text(&class, middle, Anchor::Middle, &self.written(value, decimals));
                }
                if cell.front || cell.picked {
                    outlined.push((area, cell.picked));
                }
            }
        }
        for (((x, y), (w, h)), picked) in outlined {
            let class = if picked { "outline picked" } else { "outline" };
            svg.rect(class, (x + 0.5, y + 0.5), (w - 1.0, h - 1.0), "");
        }
        let widest = across
            .sizes
            .iter()
            .map(|size| size.to_string().len())
            .max()
            .unwrap_or(1) as f64
            * 6.6
            + 5.0;
        let stride = (widest / cell_width).ceil().max(1.0) as usize;
        for (c, size) in across.sizes.iter().enumerate().step_by(stride) {
            let x = left + (c as f64 + 0.5) * cell_width;
            svg.text("tick", (x, bottom + 16.0), Anchor::Middle, &size.to_string());
        }
        let right = left + columns as f64 * cell_width;
        // A single narrow column has no room to end its name under itself.
        let (at, anchor) = if right < 120.0 {
            (0.0, Anchor::Start)
        } else {
            (right, Anchor::End)
        };
        svg.text(
            "name",
            (at, bottom + 33.0),
            anchor,
            &format!("{} →", axis_words(&across.name)),
        );
        svg.finish()
    }

    /// The largest type and the most decimals with which every value fits its cell; none where none do.
    fn fit(&self, cell_width: f64) -> (Option<u8>, Option<usize>) {
        for decimals in [2, 1, 0] {
            for font in [12, 11, 10, 9] {
                let longest = [self.colours.range.0, self.colours.range.1]
                    .map(|value| self.written(value, decimals).chars().count())
                    .into_iter()
                    .fold(0, usize::max);
                if longest as f64 * f64::from(font) * 0.6 <= cell_width - 3.0 {
                    return (Some(font), Some(decimals));
                }
            }
        }
        (None, None)
    }

    fn written(&self, value: f64, decimals: usize) -> String {
        match self.colours.unit {
            Unit::Share => format!("{:.decimals$}", value * 100.0),
            Unit::Perplexity => proportion(value, decimals + 2),
            unit => unit.bare(value),
        }
    }
}

/// The class of text that is legible on a step of the colour scale, in light and in dark.
fn ink(q: usize) -> &'static str {
    match q {
        0..=6 => "lo",
        7..=8 => "mid",
        _ => "hi",
    }
}

/// The colour scale with its worst and its best value.
pub(crate) fn legend(id: &str, title: &str, colours: &Colours) -> String {
    let mut svg = Svg::new(
        id,
        "legend",
        (300.0, 36.0),
        title,
        "Colour scale, from the worst to the best value.",
    );
    let step = 300.0 / SHADES as f64;
    for q in 0..SHADES {
        svg.rect(&format!("q{q}"), (q as f64 * step, 0.0), (step + 0.2, 12.0), "");
    }
    let (low, high) = colours.range;
    let unit = colours.unit;
    if low < high {
        let (worst, best) = if colours.lower { (high, low) } else { (low, high) };
        svg.text("tick", (0.0, 28.0), Anchor::Start, &unit.with_unit(worst));
        svg.text("tick", (300.0, 28.0), Anchor::End, &unit.with_unit(best));
    } else {
        svg.text("tick", (150.0, 28.0), Anchor::Middle, &unit.with_unit(low));
    }
    svg.finish()
}
