//! Training curves: one small chart per quantity of the run's metrics, its probes of one kind together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use offshoot_family::Catalog;
use serde::Serialize;
use serde_json::{Map, Value};

use offshoot_family::scorecard::is_perplexity;

use crate::chart::{Anchor, Frame, Scale, Svg};
use crate::units::{Unit, metric_name, significant};

/// Most points of one curve: lowest and highest of each of half as many stretches.
const MOST_POINTS: usize = 400;
/// Most curves of one chart.
pub(crate) const MOST_SERIES: usize = 6;
/// Most charts; what is beyond them is counted.
const MOST_PANELS: usize = 36;
/// Fields that say when, not what.
const CLOCKS: [&str; 9] = [
    "step",
    "tokens_seen",
    "epoch",
    "time",
    "seconds",
    "elapsed",
    "elapsed_s",
    "timestamp",
    "wall_s",
];

/// One chart of the page.
#[derive(Serialize)]
pub(crate) struct Panel {
    /// What it shows.
    pub(crate) title: String,
    /// The element.
    pub(crate) svg: String,
    /// Its curves.
    pub(crate) series: Vec<Legend>,
}

/// One curve beside its chart.
#[derive(Serialize)]
pub(crate) struct Legend {
    /// Class of its colour and dashes.
    pub(crate) class: String,
    /// Its name; empty where the title says it.
    pub(crate) name: String,
    /// Its last value, as logged.
    pub(crate) last: String,
    /// The same, exactly, with its step.
    pub(crate) exact: String,
}

/// All charts of a run, and how many quantities found no room.
pub(crate) struct Curves {
    /// The charts, the loss first.
    pub(crate) panels: Vec<Panel>,
    /// Quantities beyond them.
    pub(crate) left_out: usize,
}

/// A curve: steps and values.
pub(crate) type Points = Vec<(f64, f64)>;
/// A chart to be: its place in the page, its quantity, its curves by name.
type Group<'a> = (usize, &'a str, Vec<(&'a str, Points)>);

/// The losses of sub-networks, which share a chart: a name that no field can have.
const OF_CHILDREN: &str = "loss/";

/// Which chart a field belongs to, and what it is called there.
fn place<'a>(field: &'a str, is_child: &dyn Fn(&str) -> bool) -> (&'a str, &'a str) {
    match field.split_once('/') {
        Some(("loss", name)) if is_child(name) => (OF_CHILDREN, name),
        // A term of the loss has a scale and so a chart of its own.
        None | Some(("loss", _)) => (field, ""),
        // `perplexity/48x3/log` is one curve of `perplexity/48x3`, `knn@20/384x12` one of `knn@20`.
        Some((group, name)) => match name.split_once('/') {
            Some((child, domain)) if is_child(child) => (&field[..group.len() + 1 + child.len()], domain),
            _ => (group, name),
        },
    }
}

/// As many as fit one chart, evenly spaced in the order of the children; the number of those that are left out.
fn spread(series: &mut Vec<(&str, Points)>, order: &dyn Fn(&str) -> usize) -> usize {
    series.sort_by_key(|(name, _)| order(name));
    let n = series.len();
    if n <= MOST_SERIES {
        return 0;
    }
    let keep: BTreeSet<usize> = (0..MOST_SERIES).map(|i| i * (n - 1) / (MOST_SERIES - 1)).collect();
    let mut place = 0..n;
    series.retain(|_| place.next().is_some_and(|place| keep.contains(&place)));
    n - series.len()
}

/// Makes the charts; of probes of the family's score none where they are `drawn` elsewhere. Lines without a `step` and fields that are no finite numbers are passed over; of two lines with one
/// step, as a resumed run leaves them, the later counts.
pub(crate) fn curves(catalog: &Catalog, metrics: &[Map<String, Value>], drawn: bool) -> Curves {
    let number: BTreeMap<&str, usize> = catalog
        .children
        .iter()
        .enumerate()
        .map(|(i, c)| (c.id.as_str(), i))
        .collect();
    let is_child = |name: &str| number.contains_key(name);
    let mut fields: Vec<(&str, Points)> = Vec::new();
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for line in metrics {
        let Some(step) = line.get("step").and_then(Value::as_f64).filter(|step| step.is_finite()) else {
            continue;
        };
        for (field, value) in line {
            let Some(value) = value.as_f64().filter(|value| value.is_finite()) else {
                continue;
            };
            if CLOCKS.contains(&field.as_str()) {
                continue;
            }
            let index = *known.entry(field).or_insert_with(|| {
                fields.push((field, Vec::new()));
                fields.len() - 1
            });
            fields[index].1.push((step, value));
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    for (field, points) in fields {
        let points = ordered(points);
        // Whether an update was skipped is worth a chart if one was.
        if field == "skipped" && points.iter().all(|point| point.1 == 0.0) {
            continue;
        }
        let (group, name) = place(field, &is_child);
        if drawn && group == catalog.score && is_child(name) {
            continue;
        }
        let room = |series: &Vec<_>| group == OF_CHILDREN || series.len() < MOST_SERIES;
        match groups
            .iter_mut()
            .find(|(_, known, series)| *known == group && room(series))
        {
            Some((_, _, series)) if !name.is_empty() => series.push((name, points)),
            _ => groups.push((rank(field), group, vec![(name, points)])),
        }
    }
    groups.sort_by_key(|(rank, ..)| *rank);
    let order = |name: &str| number.get(name).copied().unwrap_or(usize::MAX);
    let of_children = groups.iter_mut().find(|(_, group, _)| *group == OF_CHILDREN);
    let rest = of_children.map_or(0, |(_, _, series)| spread(series, &order));
    let left_out = rest + groups.len().saturating_sub(MOST_PANELS);
    groups.truncate(MOST_PANELS);
    let panels = groups
        .iter()
        .enumerate()
        .map(|(i, (_, group, series))| panel(i, group, series))
        .collect();
    Curves { panels, left_out }
}

/// Ascending in step, one point per step.
pub(crate) fn ordered(points: Points) -> Points {
    let mut sorted: Vec<(usize, (f64, f64))> = points.into_iter().enumerate().collect();
    sorted.sort_by(|(i, a), (j, b)| a.0.total_cmp(&b.0).then(j.cmp(i)));
    sorted.dedup_by(|later, kept| later.1.0 == kept.1.0);
    sorted.into_iter().map(|(_, point)| point).collect()
}

/// At most [`MOST_POINTS`] of the points, none of them new: the ends, and of each stretch the lowest and the highest.
fn thinned(points: &Points) -> Points {
    if points.len() <= MOST_POINTS {
        return points.clone();
    }
    let stretch = points.len().div_ceil(MOST_POINTS / 2 - 1);
    let mut keep = BTreeSet::from([0, points.len() - 1]);
    for start in (0..points.len()).step_by(stretch) {
        let range = start..(start + stretch).min(points.len());
        keep.extend(range.clone().min_by(|&a, &b| points[a].1.total_cmp(&points[b].1)));
        keep.extend(range.max_by(|&a, &b| points[a].1.total_cmp(&points[b].1)));
    }
    keep.into_iter().map(|i| points[i]).collect()
}

/// Where a quantity stands in the page.
fn rank(field: &str) -> usize {
    match field {
        "loss" | "loss/total" => 0,
        "lr" | "learning_rate" => 3,
        "momentum" => 4,
        "weight_decay" => 5,
        "teacher_temp" => 6,
        "grad_norm" | "gradient_norm" => 7,
        _ if field.starts_with("gradient_norm/") => 7,
        _ if is_perplexity(field) => 2,
        _ if field.starts_with("loss") || field.ends_with("_loss") => 1,
        _ if field.contains('@') => 2,
        _ => 8,
    }
}

fn title(field: &str) -> String {
    match field {
        "loss" | "loss/total" => "Loss".into(),
        "lr" | "learning_rate" => "Learning rate".into(),
        "momentum" => "Teacher momentum".into(),
        "weight_decay" => "Weight decay".into(),
        "teacher_temp" => "Teacher temperature".into(),
        "grad_norm" | "gradient_norm" => "Gradient norm".into(),
        "tokens" => "Predicted tokens of a step".into(),
        OF_CHILDREN => "Loss of sub-networks".into(),
        _ if is_perplexity(field) => match field.split_once('/') {
            Some((metric, child)) => format!("Probe: {} of {child} by domain", metric_name(metric)),
            None => format!("Probe: {}", metric_name(field)),
        },
        _ if field.contains('@') => format!("Probe: {}", metric_name(field)),
        _ => match field.strip_prefix("loss/").or_else(|| field.strip_prefix("loss_")) {
            Some(term) if !term.is_empty() => format!("Loss term: {}", term.replace('_', " ")),
            _ => field.replace('_', " "),
        },
    }
}

fn panel(index: usize, group: &str, series: &[(&str, Points)]) -> Panel {
    let unit = Unit::of_metric(group);
    let title = title(group);
    let series: Vec<(&str, Points)> = series.iter().map(|(name, points)| (*name, thinned(points))).collect();
    let (width, height) = (340.0, 190.0);
    let frame = Frame {
        left: 52.0,
        right: width - 14.0,
        top: 12.0,
        bottom: height - 24.0,
    };
    let values: Vec<f64> = series
        .iter()
        .flat_map(|(_, points)| points.iter().map(|point| point.1))
        .collect();
    let steps = series.iter().flat_map(|(_, points)| points.iter().map(|point| point.0));
    let x = Scale::exact(steps, (frame.left, frame.right));
    let y = match unit {
        Unit::Share | Unit::Perplexity => Scale::of_scores(&values, unit, (frame.bottom, frame.top)),
        _ => Scale::fitting(&values, 1000.0, (frame.bottom, frame.top)),
    };
    let log = if y.is_log() { ", log scale" } else { "" };
    let names: Vec<&str> = series
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !name.is_empty())
        .collect();
    let of = if names.is_empty() {
        String::new()
    } else {
        format!(" of {}", names.join(", "))
    };
    let description = format!("{title}{of} over training steps{log}.");
    let mut svg = Svg::new(
        &format!("curve-{index}"),
        "panel",
        (width, height),
        &title,
        &description,
    );
    frame.draw(&mut svg, (&x, Unit::Count, ""), (&y, unit, ""), (4, 4));
    svg.text("name", (frame.left - 7.0, frame.bottom + 17.0), Anchor::End, "step");
    if !log.is_empty() {
        svg.text("name", (frame.right, 10.0), Anchor::End, "log scale");
    }
    let mut legends = Vec::new();
    for (i, (name, points)) in series.iter().enumerate() {
        let placed: Vec<(f64, f64)> = points.iter().map(|&(step, value)| (x.at(step), y.at(value))).collect();
        match placed.as_slice() {
            [point] => svg.circle(&format!("point c{i}"), *point, 3.0, ""),
            _ => svg.polyline(&format!("curve c{i}"), &placed, &exact(name, points, unit)),
        }
        if let Some(&(step, value)) = points.last() {
            legends.push(Legend {
                class: format!("c{i}"),
                name: (*name).to_owned(),
                last: unit.with_unit(value),
                exact: format!("{value} at step {step}"),
            });
        }
    }
    let mut title = title;
    title.push_str(unit.suffix());
    Panel {
        title,
        svg: svg.finish(),
        series: legends,
    }
}

/// The values of a curve for the tooltip: `step value` pairs, and its name.
fn exact(name: &str, points: &Points, unit: Unit) -> String {
    let mut out = format!("data-name=\"{}\" data-v=\"", crate::chart::escaped(name));
    for (i, &(step, value)) in points.iter().enumerate() {
        let space = if i == 0 { "" } else { " " };
        let value = match unit {
            Unit::Share => significant(value * 100.0, 4),
            Unit::Perplexity => unit.bare(value),
            _ => significant(value, 4),
        };
        let _ = write!(out, "{space}{step} {value}");
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: f64, fields: &[(&str, f64)]) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("step".into(), step.into());
        for (name, value) in fields {
            map.insert((*name).into(), (*value).into());
        }
        map
    }

    fn family(ids: &[&str]) -> Catalog {
        let child = |id: &&str| serde_json::json!({"id": id, "shape": {"depth": 1}, "source": {"view": "v"}, "parameters": 1, "macs": 1, "bytes": 1});
        let children: Vec<Value> = ids.iter().map(child).collect();
        let vit = offshoot_family::Vit {
            width: 64,
            depth: 4,
            head_dim: 32,
            mlp_ratio: 4,
            patch: 8,
            image: 32,
            channels: 3,
            position_offset: 0.0,
            norm_eps: 1e-6,
            layer_scale: 1e-5,
            classes: 0,
        };
        let catalog = serde_json::json!({
            "format": 2, "version": "0", "method": "language", "seed": 0, "space": null, "score": "perplexity",
            "parent": {"path": "parent", "hash": "00", "architecture": offshoot_family::Architecture::Vit(vit)},
            "data": {"text": {"corpus": "", "domains": [], "fingerprint": "", "tokenizer": "", "split_seed": 0, "val": 0.1,
                "test": 0.1, "context": 8}},
            "children": children,
        });
        serde_json::from_value(catalog).unwrap()
    }

    #[test]
    fn losses_of_sub_networks_share_a_chart_and_domains_do() {
        let ids: Vec<String> = (1..=9).map(|i| format!("{i}x1")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut fields: Vec<(String, f64)> = ids.iter().map(|id| (format!("loss/{id}"), 2.0)).collect();
        for name in [
            "loss",
            "loss/koleo",
            "gradient_norm",
            "tokens",
            "tokens_seen",
            "skipped",
            "perplexity/9x1",
        ] {
            fields.push((name.into(), 0.0));
        }
        fields.extend(["a", "b"].map(|domain| (format!("perplexity/9x1/{domain}"), 3.0)));
        let fields: Vec<(&str, f64)> = fields.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let metrics = [line(1.0, &fields), line(2.0, &fields)];
        let charts = curves(&family(&ids), &metrics, false);
        let titles: Vec<(&str, usize)> = charts
            .panels
            .iter()
            .map(|p| (p.title.as_str(), p.series.len()))
            .collect();
        assert_eq!(
            titles,
            [
                ("Loss", 1),
                ("Loss of sub-networks", 6),
                ("Loss term: koleo", 1),
                ("Probe: perplexity", 1),
                ("Probe: perplexity of 9x1 by domain", 2),
                ("Gradient norm", 1),
                ("Predicted tokens of a step", 1)
            ]
        );
        let names: Vec<&str> = charts.panels[1]
            .series
            .iter()
            .map(|series| series.name.as_str())
            .collect();
        assert_eq!((names[0], names[5], charts.left_out), ("1x1", "9x1", 3));
        let drawn = curves(&family(&ids), &metrics, true);
        assert_eq!(drawn.panels.len(), charts.panels.len() - 1);
        let mut skipped = metrics.to_vec();
        skipped.push(line(3.0, &[("skipped", 1.0)]));
        assert_eq!(curves(&family(&ids), &skipped, true).panels.len(), charts.panels.len());
    }

    #[test]
    fn curves_are_thinned_to_points_that_are_there_with_their_extremes() {
        let points: Points = (0..100_000)
            .map(|i| (f64::from(i), f64::from((i * 7919) % 1000)))
            .collect();
        let thin = thinned(&points);
        assert!(thin.len() <= 500, "{}", thin.len());
        assert!(thin.iter().all(|point| points[point.0 as usize] == *point));
        assert_eq!((thin[0], thin[thin.len() - 1]), (points[0], points[points.len() - 1]));
        assert!(thin.iter().any(|point| point.1 == 0.0) && thin.iter().any(|point| point.1 == 999.0));
    }

    #[test]
    fn probes_share_a_chart_and_the_loss_comes_first() {
        let metrics = [
            line(
                0.0,
                &[
                    ("other", 1.0),
                    ("lr", 0.1),
                    ("knn@20/64x2", 0.1),
                    ("loss/koleo", 1.0),
                    ("loss", 9.0),
                ],
            ),
            line(1.0, &[("knn@20/64x2", 0.2), ("knn@20/128x4", 0.3), ("loss", 8.0)]),
            line(1.0, &[("loss", 7.5)]),
        ];
        let curves = curves(&family(&[]), &metrics, false);
        let titles: Vec<&str> = curves.panels.iter().map(|p| p.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "Loss",
                "Loss term: koleo",
                "Probe: k-NN accuracy (k = 20), %",
                "Learning rate",
                "other"
            ]
        );
        assert_eq!(curves.panels[2].series.len(), 2);
        assert_eq!(curves.panels[0].series[0].exact, "7.5 at step 1");
        assert_eq!(curves.left_out, 0);
    }

    #[test]
    fn odd_metrics_make_no_odd_charts() {
        let mut odd = line(2.0, &[]);
        odd.insert("loss".into(), Value::Null);
        odd.insert("note".into(), "text".into());
        let mut stepless = Map::new();
        stepless.insert("loss".into(), 1.0.into());
        assert!(curves(&family(&[]), &[odd, stepless], false).panels.is_empty());
        let many: Vec<(String, f64)> = (0..60).map(|i| (format!("field_{i}"), 1.0)).collect();
        let many: Vec<(&str, f64)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(
            curves(&family(&[]), &[line(0.0, &many)], false).left_out,
            60 - MOST_PANELS
        );
    }
}
