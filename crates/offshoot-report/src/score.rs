//! Which scorecards the page speaks of: the family's score, on the split that most of it was measured on.

use offshoot_family::scorecard::{lower_is_better, merit};
use offshoot_family::{Axis, Catalog, Child, Scorecard, Shape, Split, TrainingCost};

use crate::units::{Unit, metric_name};

/// The family's score as the page shows it.
pub(crate) struct Score<'a> {
    /// The metric.
    pub(crate) metric: &'a str,
    /// The split of the charts: val where anything was scored on it; none where nothing was scored.
    pub(crate) split: Option<Split>,
    /// How its values are written.
    pub(crate) unit: Unit,
    /// Its name in a sentence.
    pub(crate) name: String,
    /// Whether less of it is better.
    pub(crate) lower: bool,
}

impl<'a> Score<'a> {
    /// The score of `catalog`.
    pub(crate) fn of(catalog: &'a Catalog) -> Self {
        let metric = catalog.score.as_str();
        let split = [Split::Val, Split::Test, Split::Train].into_iter().find(|&split| {
            catalog
                .children
                .iter()
                .any(|child| finite_score(child, metric, split).is_some())
        });
        Self {
            metric,
            split,
            unit: Unit::of_metric(metric),
            name: metric_name(metric),
            lower: lower_is_better(metric),
        }
    }

    /// The scorecard behind a child's place in the charts.
    pub(crate) fn card<'c>(&self, child: &'c Child) -> Option<&'c Scorecard> {
        child
            .scorecard(self.metric, self.split?)
            .filter(|card| card.value.is_finite())
    }

    /// Its value.
    pub(crate) fn value(&self, child: &Child) -> Option<f64> {
        self.card(child).map(|card| card.value)
    }

    /// `value` as a number of which more is better.
    pub(crate) fn merit(&self, value: f64) -> f64 {
        merit(self.metric, value)
    }

    /// The value with what it is, as in a line of its own: `82.42 %`, `perplexity 12.34`.
    pub(crate) fn told(&self, value: f64) -> String {
        if self.unit.suffix().is_empty() {
            format!("{} {}", self.name, self.unit.with_unit(value))
        } else {
            self.unit.with_unit(value)
        }
    }

    /// Name, split, unit and direction, as at an axis: `k-NN accuracy (k = 20) on val, %`, `perplexity on val, less is better`.
    pub(crate) fn axis_label(&self) -> String {
        let direction = if self.lower { ", less is better" } else { "" };
        match self.split {
            Some(split) => format!("{} on {split}{}{direction}", self.name, self.unit.suffix()),
            None => format!("{}{}{direction}", self.name, self.unit.suffix()),
        }
    }
}

/// A child's value of `metric` on `split`, unless it is not a number.
pub(crate) fn finite_score(child: &Child, metric: &str, split: Split) -> Option<f64> {
    child.score(metric, split).filter(|value| value.is_finite())
}

/// A child's latency, unless it is not a number.
pub(crate) fn finite_latency(child: &Child) -> Option<f64> {
    child.latency_ms().filter(|value| value.is_finite())
}

/// What training cost, where the catalog says so and it is a cost.
pub(crate) fn training_cost(catalog: &Catalog) -> Option<TrainingCost> {
    catalog
        .cost
        .filter(|cost| cost.tokens > 0 && cost.flops.is_finite() && cost.flops > 0.0)
}

/// What the horizontal axis of a chart can cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// Parameters.
    Parameters,
    /// Multiply-adds of one image or token.
    Macs,
    /// Milliseconds of one image or token.
    Latency,
}

impl Cost {
    /// All of them, in the order of the page.
    pub(crate) const ALL: [Self; 3] = [Self::Parameters, Self::Macs, Self::Latency];

    /// A child's cost.
    pub(crate) fn of(self, child: &Child) -> Option<f64> {
        match self {
            Self::Parameters => Some(child.parameters as f64),
            Self::Macs => Some(child.macs as f64),
            Self::Latency => finite_latency(child),
        }
    }

    /// How it is written.
    pub(crate) fn unit(self) -> Unit {
        if self == Self::Latency {
            Unit::Milliseconds
        } else {
            Unit::Count
        }
    }

    /// Its name in a sentence.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Macs => "multiply-adds",
            Self::Latency => "latency",
        }
    }

    /// Name and unit at an axis; costs are those of one `example`, an image or a token.
    pub(crate) fn axis_label(self, example: &str) -> String {
        match self {
            Self::Parameters => "parameters".into(),
            Self::Macs => format!("multiply-adds of one {example}"),
            Self::Latency => format!("latency of one {example}, ms"),
        }
    }

    /// One letter, for the table.
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::Parameters => "P",
            Self::Macs => "M",
            Self::Latency => "L",
        }
    }
}

/// Indices into `catalog.children` of the front of score over `cost`, ascending in cost.
pub(crate) fn front(catalog: &Catalog, score: &Score, cost: Cost) -> Vec<usize> {
    let place = |child: &Child| catalog.children.iter().position(|other| std::ptr::eq(other, child));
    catalog
        .pareto(
            |child| cost.of(child),
            |child| score.value(child).map(|value| score.merit(value)),
        )
        .into_iter()
        .filter_map(place)
        .collect()
}

/// The axes of the family: the space's, or for a family without one those that all shapes share, with the sizes seen.
pub(crate) fn axes(catalog: &Catalog) -> Vec<Axis> {
    if let Some(space) = &catalog.space {
        return space.axes.clone();
    }
    let Some(first) = catalog.children.first() else {
        return Vec::new();
    };
    let mut axes = Vec::new();
    for (name, _) in first.shape.iter() {
        let mut sizes: Vec<usize> = catalog
            .children
            .iter()
            .filter_map(|child| child.shape.get(name))
            .collect();
        if sizes.len() == catalog.children.len() {
            sizes.sort_unstable();
            sizes.dedup();
            axes.push(Axis {
                name: name.to_owned(),
                sizes,
            });
        }
    }
    axes
}

/// The place of the intact parent among the children, where the space has one.
pub(crate) fn intact(catalog: &Catalog) -> Option<usize> {
    let space = catalog.space.as_ref()?;
    let sizes: Option<Vec<(&str, usize)>> = space
        .axes
        .iter()
        .map(|axis| Some((axis.name.as_str(), *axis.sizes.last()?)))
        .collect();
    let shape = Shape::new(sizes.filter(|sizes| !sizes.is_empty())?);
    catalog.children.iter().position(|child| child.shape == shape)
}
