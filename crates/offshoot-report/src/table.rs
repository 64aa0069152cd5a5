//! The table of all children: readable numbers in the cells, exact ones beside them.

use offshoot_family::catalog::DataRef;
use offshoot_family::scorecard::lower_is_better;
use offshoot_family::{Catalog, Child, Split};
use serde::Serialize;

use crate::score::{Cost, Score, finite_score};
use crate::units::{Unit, axis_words, grouped, metric_name};

/// Most metrics beyond the score that get a column.
const MOST_EXTRA: usize = 6;

/// A heading.
#[derive(Serialize)]
pub(crate) struct Column {
    /// Its text.
    pub(crate) text: String,
    /// What it means in full; empty where the text says it.
    pub(crate) title: String,
    /// Whether it heads numbers.
    pub(crate) number: bool,
    /// Whether the least of its numbers is the best.
    pub(crate) lower: bool,
}

/// A cell.
#[derive(Default, Serialize)]
pub(crate) struct Cell {
    /// Its text.
    pub(crate) text: String,
    /// The exact number; empty where the text is exact.
    pub(crate) title: String,
    /// What it is sorted by; empty where nothing was measured.
    pub(crate) sort: String,
    /// Whether it is a number.
    pub(crate) number: bool,
}

/// A child.
#[derive(Serialize)]
pub(crate) struct Row {
    /// Id of the row in the page.
    pub(crate) anchor: String,
    /// Its cells, one per column.
    pub(crate) cells: Vec<Cell>,
    /// On which fronts it lies: letters of [`Cost`].
    pub(crate) fronts: String,
    /// Its parameters, for the filter.
    pub(crate) parameters: u64,
    /// Whether it is the child that was picked.
    pub(crate) picked: bool,
}

/// The whole table.
#[derive(Serialize)]
pub(crate) struct Table {
    /// Headings.
    pub(crate) columns: Vec<Column>,
    /// Children, in the order of the catalog.
    pub(crate) rows: Vec<Row>,
    /// Metrics that found no column.
    pub(crate) left_out: usize,
}

fn words(text: &str) -> Cell {
    Cell {
        text: text.to_owned(),
        sort: text.to_owned(),
        ..Cell::default()
    }
}

fn whole(value: u64, unit: Unit, noun: &str) -> Cell {
    Cell {
        text: unit.bare(value as f64),
        title: format!("{} {noun}", grouped(value)),
        sort: value.to_string(),
        number: true,
    }
}

/// A measured number; a dash where there is none or it is not finite.
fn measured(value: Option<f64>, unit: Unit) -> Cell {
    match value {
        None => Cell {
            text: "–".into(),
            title: "not known".into(),
            number: true,
            ..Cell::default()
        },
        Some(value) if !value.is_finite() => Cell {
            text: "–".into(),
            title: "its scorecard holds no finite number".into(),
            number: true,
            ..Cell::default()
        },
        Some(value) => Cell {
            text: unit.bare(value),
            title: value.to_string(),
            sort: format!("{value:e}"),
            number: true,
        },
    }
}

/// What is measured on one split, or without data.
type Measure = (String, Option<Split>);

/// The value of a measure, finite or not.
fn value_of(child: &Child, (metric, split): &Measure) -> Option<f64> {
    child
        .scorecards
        .iter()
        .find(|card| card.metric == *metric && card.split == *split)
        .map(|card| card.value)
}

/// Columns of measured numbers: the score on val and, where measured, on other splits; latency; then the other metrics.
fn measures(catalog: &Catalog, score: &Score) -> (Vec<Measure>, usize) {
    let mut seen: Vec<Measure> = Vec::new();
    for card in catalog.children.iter().flat_map(|child| &child.scorecards) {
        if !seen
            .iter()
            .any(|(metric, split)| *metric == card.metric && *split == card.split)
        {
            seen.push((card.metric.clone(), card.split));
        }
    }
    let mut kept: Vec<Measure> = vec![(score.metric.to_owned(), Some(Split::Val))];
    for split in [Split::Test, Split::Train] {
        if catalog
            .children
            .iter()
            .any(|child| finite_score(child, score.metric, split).is_some())
        {
            kept.push((score.metric.to_owned(), Some(split)));
        }
    }
    if let Some(latency) = seen.iter().find(|(metric, _)| metric == "latency_ms") {
        kept.push(latency.clone());
    }
    let mut extra: Vec<Measure> = seen.into_iter().filter(|measure| !kept.contains(measure)).collect();
    // The score of each domain before the others, and what choices are made on before the rest.
    let part = format!("{}/", score.metric);
    extra.sort_by_key(|(metric, split)| (!metric.starts_with(&part), *split != Some(Split::Val)));
    let left_out = extra.len().saturating_sub(MOST_EXTRA);
    kept.extend(extra.into_iter().take(MOST_EXTRA));
    (kept, left_out)
}

/// Makes the table; `fronts` are the indices of the children on the front of each [`Cost::ALL`].
pub(crate) fn table(
    catalog: &Catalog,
    score: &Score,
    axes: &[String],
    fronts: &[Vec<usize>; 3],
    picked: Option<&str>,
) -> Table {
    let column = |text: &str, title: &str, number| Column {
        text: text.into(),
        title: title.into(),
        number,
        lower: false,
    };
    let named = catalog.children.iter().any(|child| child.name.is_some());
    let (measures, left_out) = measures(catalog, score);
    let mut columns = vec![column("id", "", false)];
    if named {
        columns.push(column("name", "familiar name", false));
    }
    columns.extend(axes.iter().map(|axis| column(axis, &axis_words(axis), true)));
    columns.push(column("parameters", "", true));
    let macs = match &catalog.data {
        DataRef::Images(_) => "multiply-adds of one image at native size",
        DataRef::Text(_) => "multiply-adds of one token, on average over a full context",
    };
    columns.push(column("MACs", macs, true));
    columns.push(column("file", "size of the exported fp32 weights file", true));
    let alone = catalog
        .children
        .iter()
        .any(|child| child.training_flops_alone.is_some());
    if alone {
        let title = "what training would have cost with this child as the only network, on the same tokens";
        columns.push(column("alone", title, true));
    }
    for (metric, split) in &measures {
        let unit = Unit::of_metric(metric).suffix();
        let short = if metric == "latency_ms" { "latency" } else { metric };
        let on = split.map(|split| format!(" {split}")).unwrap_or_default();
        let title = match split {
            Some(split) => format!("{} on the {split} split", metric_name(metric)),
            None => metric_name(metric),
        };
        columns.push(Column {
            text: format!("{short}{on}{unit}"),
            title,
            number: true,
            lower: lower_is_better(metric),
        });
    }
    columns.push(column(
        "front",
        "on the Pareto front over P parameters, M multiply-adds, L latency",
        false,
    ));

    let rows = catalog.children.iter().enumerate().map(|(index, child)| {
        let mut cells = vec![words(&child.id)];
        if named {
            cells.push(words(child.name.as_deref().unwrap_or_default()));
        }
        for axis in axes {
            let size = child.shape.get(axis).map(|size| size.to_string()).unwrap_or_default();
            cells.push(Cell {
                text: size.clone(),
                sort: size,
                title: String::new(),
                number: true,
            });
        }
        cells.push(whole(child.parameters, Unit::Count, "parameters"));
        cells.push(whole(child.macs, Unit::Count, "multiply-adds"));
        cells.push(whole(child.bytes, Unit::Bytes, "bytes"));
        if alone {
            cells.push(measured(child.training_flops_alone, Unit::Flops));
        }
        for measure in &measures {
            cells.push(measured(value_of(child, measure), Unit::of_metric(&measure.0)));
        }
        let on: Vec<&str> = Cost::ALL
            .into_iter()
            .zip(fronts)
            .filter(|(_, front)| front.contains(&index))
            .map(|(cost, _)| cost.letter())
            .collect();
        let fronts = on.join(" ");
        let sort = if fronts.is_empty() {
            String::new()
        } else {
            format!("{}{fronts}", 3 - on.len())
        };
        cells.push(Cell {
            text: fronts.clone(),
            sort,
            ..Cell::default()
        });
        Row {
            anchor: format!("child-{index}"),
            cells,
            fronts,
            parameters: child.parameters,
            picked: picked == Some(child.id.as_str()),
        }
    });
    Table {
        rows: rows.collect(),
        columns,
        left_out,
    }
}
