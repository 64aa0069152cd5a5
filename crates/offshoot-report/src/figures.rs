//! What the sections say of a family: its numbers in a sentence and in tiles, its charts at both sizes.

use offshoot_family::catalog::DataRef;
use offshoot_family::{Axis, Catalog, Child};
use serde::Serialize;

use crate::chart::extent;
use crate::heat::{Cell, Colours, Heat, legend};
use crate::provenance::Source;
use crate::scatter::{Dot, Scatter};
use crate::score::{Cost, Score, finite_latency, training_cost};
use crate::units::{Unit, axis_words, counted, grouped, significant};

/// Most tables of a heat map, one per size of the third axis.
const MOST_FACETS: usize = 12;

/// A number at the head of the page.
#[derive(Serialize)]
pub(crate) struct Tile {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) detail: String,
    pub(crate) exact: String,
}

/// The child that was picked.
#[derive(Serialize)]
pub(crate) struct Picked<'a> {
    id: &'a str,
    why: &'a str,
    pub(crate) facts: String,
    pub(crate) anchor: Option<String>,
}

/// A chart at two sizes, or the sentence that stands in its place.
#[derive(Default, Serialize)]
pub(crate) struct Figure {
    pub(crate) title: String,
    pub(crate) wide: Vec<String>,
    pub(crate) narrow: Vec<String>,
    pub(crate) legend: String,
    pub(crate) caption: String,
    pub(crate) absent: String,
}

/// A colour of the dots.
#[derive(Serialize)]
pub(crate) struct Swatch {
    pub(crate) class: String,
    pub(crate) name: String,
}

/// A catalog with what the sections share.
pub(crate) struct Family<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) score: &'a Score<'a>,
    pub(crate) fronts: &'a [Vec<usize>; 3],
    pub(crate) axes: &'a [Axis],
    pub(crate) intact: Option<usize>,
    pub(crate) picked: Option<&'a str>,
}

impl Family<'_> {
    fn children(&self) -> &[Child] {
        &self.catalog.children
    }

    /// How many children have a value.
    fn count(&self, value: impl Fn(&Child) -> Option<f64>) -> usize {
        self.children().iter().filter(|child| value(child).is_some()).count()
    }

    /// The one sentence at the top, with the real numbers.
    pub(crate) fn lead(&self) -> String {
        let n = self.children().len();
        let parent = self.catalog.parent.architecture.summary();
        let size = self.intact.map(|i| {
            format!(
                " ({} parameters)",
                Unit::Count.bare(self.children()[i].parameters as f64)
            )
        });
        let (was, it) = if n == 1 { ("was", "it") } else { ("were", "they") };
        let scored = self.count(|child| self.score.value(child));
        let scores = match self.score.split {
            None if n == 1 => format!("its score, {}, has not been measured", self.score.name),
            None => format!("their score, {}, has not been measured", self.score.name),
            Some(split) if scored == n => format!("{it} {was} scored by {} on the {split} split", self.score.name),
            Some(split) => {
                format!(
                    "{} of them scored by {} on the {split} split",
                    grouped(scored as u64),
                    self.score.name
                )
            }
        };
        if self.catalog.method == "import" {
            return format!(
                "One model, {parent}{}, was imported; {scores}.",
                size.unwrap_or_default()
            );
        }
        format!(
            "One parent, {parent}{}, was trained once on {}; {} {was} derived from it by the {} method, and {scores}.",
            size.unwrap_or_default(),
            self.data(),
            counted(n, "child", "children"),
            self.catalog.method,
        )
    }

    /// What the parent was trained on, in words.
    fn data(&self) -> String {
        match &self.catalog.data {
            DataRef::Images(images) => images.path.clone(),
            DataRef::Text(text) => {
                let names: Vec<&str> = text.domains.iter().map(|domain| domain.name.as_str()).collect();
                format!("text of {}", names.join(", "))
            }
        }
    }

    /// What costs are counted for: an image, or a token.
    fn example(&self) -> &'static str {
        self.catalog.data.unit()
    }

    /// What training cost, and what it would have cost for every child by itself.
    fn training(&self) -> Vec<Tile> {
        let Some(cost) = training_cost(self.catalog) else {
            return Vec::new();
        };
        let mut tiles = vec![Tile {
            name: "Training".into(),
            value: Unit::Flops.with_unit(cost.flops),
            detail: format!(
                "{} tokens in {} steps, the whole family",
                Unit::Count.bare(cost.tokens as f64),
                grouped(cost.steps)
            ),
            exact: cost.flops.to_string(),
        }];
        let alone: Option<f64> = self.children().iter().map(|child| child.training_flops_alone).sum();
        if let Some(alone) = alone.filter(|alone| alone.is_finite() && self.children().len() > 1) {
            tiles.push(Tile {
                name: "Each child trained alone".into(),
                value: Unit::Flops.with_unit(alone),
                detail: format!(
                    "all {} on the same tokens: {} times the family",
                    grouped(self.children().len() as u64),
                    significant(alone / cost.flops, 2)
                ),
                exact: alone.to_string(),
            });
        }
        tiles
    }

    pub(crate) fn tiles(&self) -> Vec<Tile> {
        let mut tiles = Vec::new();
        let n = self.children().len();
        let timed = self.count(finite_latency);
        let scored = self.count(|child| self.score.value(child));
        let detail = format!("{} scored, {} timed", grouped(scored as u64), grouped(timed as u64));
        tiles.push(Tile {
            name: "Children".into(),
            value: grouped(n as u64),
            detail,
            exact: String::new(),
        });
        let values = |value: &dyn Fn(&Child) -> Option<f64>| extent(self.children().iter().filter_map(value));
        let mut range = |name: &str, unit: Unit, ends: Option<(f64, f64)>, detail: String| {
            let (value, exact) = match ends {
                None => ("not measured".into(), String::new()),
                Some((low, high)) if low == high => (unit.with_unit(low), low.to_string()),
                Some((low, high)) => {
                    let low_text = if unit.suffix().is_empty() {
                        unit.with_unit(low)
                    } else {
                        unit.bare(low)
                    };
                    (
                        format!("{low_text} – {}", unit.with_unit(high)),
                        format!("{low} – {high}"),
                    )
                }
            };
            tiles.push(Tile {
                name: name.into(),
                value,
                detail,
                exact,
            });
        };
        let best = self
            .children()
            .iter()
            .filter_map(|c| Some((self.score.value(c)?, c)))
            .fold(None, |best, next| match best {
                Some((value, _)) if self.score.merit(value) >= self.score.merit(next.0) => best,
                _ => Some(next),
            });
        let detail = best
            .map(|(_, child)| format!("best: {}", display_name(child)))
            .unwrap_or_default();
        let metric = match self.score.split {
            Some(split) => format!("{} on {split}", capitalised(&self.score.name)),
            None => capitalised(&self.score.name),
        };
        range(&metric, self.score.unit, values(&|c| self.score.value(c)), detail);
        range(
            "Parameters",
            Unit::Count,
            values(&|c| Some(c.parameters as f64)),
            "smallest to largest child".into(),
        );
        range(
            "Multiply-adds",
            Unit::Count,
            values(&|c| Some(c.macs as f64)),
            format!("of one {}", self.example()),
        );
        range(
            "Latency",
            Unit::Milliseconds,
            values(&finite_latency),
            if timed == 0 {
                String::new()
            } else {
                format!("median of one {}", self.example())
            },
        );
        let front = self.fronts[0].len();
        if front > 0 {
            let detail = "no smaller child scores as well".into();
            tiles.push(Tile {
                name: "On the front".into(),
                value: grouped(front as u64),
                detail,
                exact: String::new(),
            });
        }
        tiles.extend(self.training());
        tiles
    }

    pub(crate) fn picked<'p>(&self, id: &'p str, why: &'p str) -> Picked<'p> {
        let found = self.children().iter().position(|child| child.id == id);
        let facts = match found {
            Some(index) => self.tip(&self.children()[index]),
            None => "this catalog does not list it".into(),
        };
        Picked {
            id,
            why,
            facts,
            anchor: found.map(|index| format!("child-{index}")),
        }
    }

    /// A child in one line.
    fn tip(&self, child: &Child) -> String {
        let mut parts = vec![display_name(child)];
        if let Some(value) = self.score.value(child) {
            parts.push(self.score.told(value));
        }
        parts.push(format!("{} parameters", Unit::Count.bare(child.parameters as f64)));
        parts.push(format!("{} MACs", Unit::Count.bare(child.macs as f64)));
        if let Some(latency) = finite_latency(child) {
            parts.push(Unit::Milliseconds.with_unit(latency));
        }
        parts.join(" · ")
    }

    /// The axis that colours the dots: the first along which the family varies.
    fn shade_axis(&self) -> Option<&Axis> {
        self.axes.iter().find(|axis| axis.sizes.len() > 1)
    }

    /// The step of the colour scale of the size at `index` of `n`; the palest ones would be lost on paper.
    fn dot_shade(index: usize, n: usize) -> usize {
        if n < 2 {
            10
        } else {
            3 + (index * 12 + (n - 1) / 2) / (n - 1)
        }
    }

    pub(crate) fn swatches(&self) -> (Vec<Swatch>, String) {
        let Some(axis) = self.shade_axis() else {
            return (Vec::new(), String::new());
        };
        let n = axis.sizes.len();
        let stride = n.div_ceil(14).max(1);
        let shown = (0..n).filter(|i| i % stride == 0 || i + 1 == n);
        let swatches = shown.map(|i| Swatch {
            class: format!("q{}", Self::dot_shade(i, n)),
            name: axis.sizes[i].to_string(),
        });
        (swatches.collect(), axis_words(&axis.name))
    }

    fn dot(&self, index: usize, cost: Cost) -> Option<Dot> {
        let child = self.children().get(index)?;
        let axis = self.shade_axis();
        let place = axis.and_then(|axis| {
            axis.sizes
                .iter()
                .position(|&size| Some(size) == child.shape.get(&axis.name))
        });
        let shade = Self::dot_shade(place.unwrap_or(0), axis.map_or(0, |axis| axis.sizes.len()));
        let intact = self.intact == Some(index);
        let picked = self.picked == Some(child.id.as_str());
        let mut name: Vec<&str> = child.name.as_deref().into_iter().collect();
        if intact {
            name.push("parent");
        }
        if picked {
            name.push("picked");
            if child.name.is_none() {
                name.insert(0, &child.id);
            }
        }
        Some(Dot {
            x: cost.of(child)?,
            y: self.score.value(child)?,
            shade,
            tip: self.tip(child),
            id: child.id.clone(),
            name: (!name.is_empty()).then(|| name.join(", ")),
            intact,
            picked,
        })
    }

    pub(crate) fn scatter(&self, cost: Cost, front: &[usize]) -> Figure {
        let title = format!("{} over {}", capitalised(&self.score.name), cost.name());
        let measured: Vec<(usize, Dot)> = (0..self.children().len())
            .filter_map(|index| Some((index, self.dot(index, cost)?)))
            .collect();
        if measured.is_empty() {
            let absent = format!("The {} of no scored child has been measured.", cost.name());
            return Figure {
                title,
                absent,
                ..Figure::default()
            };
        }
        let front: Vec<usize> = front
            .iter()
            .filter_map(|child| measured.iter().position(|(index, _)| index == child))
            .collect();
        let on_front: Vec<String> = front.iter().map(|&i| measured[i].1.id.clone()).collect();
        let dots: Vec<Dot> = measured.into_iter().map(|(_, dot)| dot).collect();
        let missing = self.children().len() - dots.len();
        let mut caption = format!("{} on the front", counted(front.len(), "child", "children"));
        if missing > 0 {
            caption.push_str(&format!("; {} not measured", counted(missing, "child", "children")));
        }
        caption.push('.');
        let description = format!(
            "{} of {}. On the Pareto front, from the cheapest: {}.",
            title,
            counted(dots.len(), "child", "children"),
            on_front.join(", ")
        );
        let id = cost.name();
        let y = self.score.axis_label();
        let chart = Scatter {
            id,
            title: &title,
            description: &description,
            x: (cost.unit(), &cost.axis_label(self.example())),
            y: (self.score.unit, &y),
            dots: &dots,
            front: &front,
            joined: false,
            lower: self.score.lower,
        };
        let wide = if cost == Cost::Parameters {
            (1040.0, 460.0)
        } else {
            (504.0, 360.0)
        };
        let (wide, narrow) = (
            vec![chart.draw("wide", wide)],
            vec![chart.draw("narrow", (340.0, 320.0))],
        );
        Figure {
            title,
            wide,
            narrow,
            caption,
            ..Figure::default()
        }
    }

    /// Score over the family's axes: a heat map of two, one per size of a third, a curve along one.
    pub(crate) fn map(&self) -> (String, Figure) {
        let varying: Vec<&Axis> = self.axes.iter().filter(|axis| axis.sizes.len() > 1).collect();
        let names: Vec<String> = varying.iter().map(|axis| axis_words(&axis.name)).collect();
        let over = match names.as_slice() {
            [] => "shape".into(),
            [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
            [only, ..] => only.clone(),
        };
        let title = format!("{} over {over}", capitalised(&self.score.name));
        let absent = |absent: &str| {
            (
                title.clone(),
                Figure {
                    absent: absent.into(),
                    ..Figure::default()
                },
            )
        };
        let figure = match varying.as_slice() {
            [] => return absent("There is one shape only, so there is nothing to compare."),
            [axis] => self.along(axis),
            [first, second] if self.catalog.space.is_some() => self.heat(&[first, second], None),
            [first, second, third] if self.catalog.space.is_some() => {
                let mut axes = [*first, *second, *third];
                // The axis with the fewest sizes parts the tables.
                axes.sort_by_key(|axis| std::cmp::Reverse(axis.sizes.len()));
                if axes[2].sizes.len() > MOST_FACETS {
                    return absent("The three axes have too many sizes to be drawn; the table has every child.");
                }
                let apart = axes[2];
                let rest: Vec<&Axis> = varying.iter().copied().filter(|axis| axis.name != apart.name).collect();
                self.heat(&rest, Some(apart))
            }
            _ if self.catalog.space.is_none() => {
                return absent("The shapes of this family are not a grid; the table has every child.");
            }
            _ => return absent("The family has more than three axes; the table has every child."),
        };
        (title.clone(), Figure { title, ..figure })
    }

    /// A family along one axis: its score as a curve.
    fn along(&self, axis: &Axis) -> Figure {
        let dots: Vec<Dot> = (0..self.children().len())
            .filter_map(|index| {
                let dot = self.dot(index, Cost::Parameters)?;
                Some(Dot {
                    x: self.children()[index].shape.get(&axis.name)? as f64,
                    ..dot
                })
            })
            .collect();
        let title = format!("{} over {}", capitalised(&self.score.name), axis_words(&axis.name));
        let description = format!("{title} of {}.", counted(dots.len(), "child", "children"));
        let y = self.score.axis_label();
        let chart = Scatter {
            id: "along",
            title: &title,
            description: &description,
            x: (Unit::Count, &axis_words(&axis.name)),
            y: (self.score.unit, &y),
            dots: &dots,
            front: &[],
            joined: true,
            lower: self.score.lower,
        };
        let (wide, narrow) = (
            chart.draw("wide", (1040.0, 360.0)),
            chart.draw("narrow", (340.0, 300.0)),
        );
        Figure {
            wide: vec![wide],
            narrow: vec![narrow],
            ..Figure::default()
        }
    }

    fn heat(&self, axes: &[&Axis], apart: Option<&Axis>) -> Figure {
        let &[first, second] = axes else {
            return Figure::default();
        };
        let values = self.children().iter().filter_map(|child| self.score.value(child));
        let Some(range) = extent(values) else {
            return Figure::default();
        };
        let colours = Colours {
            range,
            unit: self.score.unit,
            lower: self.score.lower,
        };
        let mut figure = Figure::default();
        let sizes: Vec<Option<usize>> = apart.map_or(vec![None], |axis| axis.sizes.iter().map(|&s| Some(s)).collect());
        for (facet, size) in sizes.into_iter().enumerate() {
            let cell = |x: usize, y: usize| {
                let fits = |child: &Child| {
                    child.shape.get(&first.name) == Some(x)
                        && child.shape.get(&second.name) == Some(y)
                        && apart.is_none_or(|axis| child.shape.get(&axis.name) == size)
                };
                let index = self.children().iter().position(fits)?;
                let child = &self.children()[index];
                Some(Cell {
                    value: self.score.value(child),
                    tip: self.tip(child),
                    front: self.fronts[0].contains(&index),
                    picked: self.picked == Some(child.id.as_str()),
                })
            };
            let of = match (apart, size) {
                (Some(axis), Some(size)) => format!(", {} {size}", axis_words(&axis.name)),
                _ => String::new(),
            };
            let title = format!(
                "{} over {} and {}{of}",
                capitalised(&self.score.name),
                axis_words(&first.name),
                axis_words(&second.name)
            );
            let heat = Heat {
                id: format!("map-{facet}"),
                description: format!(
                    "{title}: one cell per child, its value printed where it fits. The table has the numbers."
                ),
                title,
                axes: [first, second],
                cell: &cell,
                colours: &colours,
            };
            let heading = match (apart, size) {
                (Some(axis), Some(size)) => format!("{} {size}", axis_words(&axis.name)),
                _ => String::new(),
            };
            for (charts, class, width) in [
                (&mut figure.wide, "wide", 1040.0),
                (&mut figure.narrow, "narrow", 340.0),
            ] {
                let chart = heat.draw(class, width);
                charts.push(match heading.as_str() {
                    "" => chart,
                    text => format!("<h4 class=\"{class}\">{}</h4>{chart}", crate::chart::escaped(text)),
                });
            }
        }
        figure.legend = legend("map-legend", &format!("Colours of {}", self.score.name), &colours);
        if self.score.lower {
            figure.caption = "Less is better: colours run from the highest to the lowest. ".into();
        }
        figure.caption += "Cells with an outline are on the front of score over parameters";
        figure.caption.push_str(if self.picked.is_some() {
            "; the thick one is the child that was picked."
        } else {
            "."
        });
        figure
    }

    /// Whether scores that stand side by side in the charts were measured in more than one way.
    pub(crate) fn mixed(&self, sources: &[Source]) -> bool {
        let split = self.score.split.map(|split| split.to_string()).unwrap_or_default();
        sources
            .iter()
            .filter(|source| source.key == self.score.metric && source.split == split)
            .count()
            > 1
    }
}

/// A child's id, with its familiar name where it has one.
fn display_name(child: &Child) -> String {
    match &child.name {
        Some(name) => format!("{} ({name})", child.id),
        None => child.id.clone(),
    }
}

/// The text with its first letter capital, but for words that are spelt with a small one.
pub(crate) fn capitalised(text: &str) -> String {
    if text.starts_with("k-NN") {
        return text.to_owned();
    }
    let mut letters = text.chars();
    letters
        .next()
        .map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
