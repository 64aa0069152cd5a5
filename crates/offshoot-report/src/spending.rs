//! The score over what training cost: the probes of a run, over the floating-point operations spent until each.

use offshoot_family::{Catalog, TrainingCost};
use serde_json::{Map, Value};

use crate::chart::{Frame, Scale, Svg};
use crate::curves::{MOST_SERIES, Points, ordered};
use crate::figures::{Figure, capitalised};
use crate::score::{Score, training_cost};
use crate::units::{Unit, grouped, significant};

/// Most points of a curve.
const MOST_POINTS: usize = 60;

/// The probes of one child.
struct Probed<'a> {
    child: &'a str,
    /// What was spent, the score, and the step.
    points: Vec<(f64, f64, f64)>,
}

/// The chart, where the catalog knows what the run cost and the run was probed for the family's score.
pub(crate) fn spending(catalog: &Catalog, score: &Score, metrics: &[Map<String, Value>]) -> Option<Figure> {
    let cost = training_cost(catalog)?;
    let seen = field(metrics, "tokens_seen");
    let flops_of_token = cost.flops / cost.tokens as f64;
    let mut probed: Vec<Probed> = Vec::new();
    for child in &catalog.children {
        let scores = field(metrics, &format!("{}/{}", score.metric, child.id));
        let points: Vec<(f64, f64, f64)> = scores
            .into_iter()
            .filter_map(|(step, value)| Some((tokens_at(&seen, step)? * flops_of_token, value, step)))
            .collect();
        if points.len() > 1 && probed.len() < MOST_SERIES {
            probed.push(Probed {
                child: &child.id,
                points: thinned(points),
            });
        }
    }
    if probed.is_empty() {
        return None;
    }
    let title = format!("{} over training cost", capitalised(&score.name));
    let names: Vec<&str> = probed.iter().map(|probed| probed.child).collect();
    let description = format!(
        "{title}: probes of {} over the operations spent until each.",
        names.join(", ")
    );
    let draw = |class: &str, size| chart(&probed, score, (&title, &description), flops_of_token, class, size);
    Some(Figure {
        wide: vec![draw("wide", (1040.0, 380.0))],
        narrow: vec![draw("narrow", (340.0, 300.0))],
        caption: caption(catalog, &cost),
        title,
        ..Figure::default()
    })
}

fn caption(catalog: &Catalog, cost: &TrainingCost) -> String {
    let million = Unit::Flops.with_unit(cost.flops / cost.tokens as f64 * 1e6);
    let mut text = format!(
        "Probes during training, of a part of val; the scores of the whole are in the table. One run trains all children, so the cost is \
         the whole family's: {million} for a million tokens, {} for all {}.",
        Unit::Flops.with_unit(cost.flops),
        grouped(cost.tokens)
    );
    let last = catalog.children.iter().max_by_key(|child| child.parameters);
    if let Some((child, alone)) = last
        .filter(|_| catalog.children.len() > 1)
        .and_then(|child| Some((child, child.training_flops_alone?)))
    {
        text.push_str(&format!(
            " {} alone would have cost {} on the same tokens, so the family cost {} times its largest child.",
            child.id,
            Unit::Flops.with_unit(alone),
            significant(cost.flops / alone, 3)
        ));
    }
    text
}

/// The finite values of a field, ascending in step.
fn field(metrics: &[Map<String, Value>], name: &str) -> Points {
    let value =
        |line: &Map<String, Value>, name: &str| line.get(name).and_then(Value::as_f64).filter(|v| v.is_finite());
    ordered(
        metrics
            .iter()
            .filter_map(|line| Some((value(line, "step")?, value(line, name)?)))
            .collect(),
    )
}

/// Tokens seen up to `step`: as logged, or in between on a straight line.
fn tokens_at(seen: &Points, step: f64) -> Option<f64> {
    let after = seen.partition_point(|point| point.0 < step);
    let next = seen.get(after)?;
    let before = if after == 0 { (0.0, 0.0) } else { seen[after - 1] };
    let share = (step - before.0) / (next.0 - before.0);
    Some(if share.is_finite() {
        before.1 + share * (next.1 - before.1)
    } else {
        next.1
    })
}

/// At most about [`MOST_POINTS`] of the points, evenly spaced, the ends among them.
fn thinned(points: Vec<(f64, f64, f64)>) -> Vec<(f64, f64, f64)> {
    let last = points.len() - 1;
    let stride = points.len().div_ceil(MOST_POINTS);
    let kept = points.into_iter().enumerate();
    kept.filter(|(i, _)| (last - i).is_multiple_of(stride) || *i == 0)
        .map(|(_, point)| point)
        .collect()
}

fn chart(
    probed: &[Probed],
    score: &Score,
    (title, description): (&str, &str),
    flops_of_token: f64,
    class: &str,
    (width, height): (f64, f64),
) -> String {
    let narrow = width < 420.0;
    let longest = probed
        .iter()
        .map(|probed| probed.child.chars().count())
        .max()
        .unwrap_or(0);
    let frame = Frame {
        left: 44.0,
        right: width - 14.0 - (longest.min(12) as f64 * 7.0),
        top: 30.0,
        bottom: height - 44.0,
    };
    let all = || probed.iter().flat_map(|probed| &probed.points);
    let x = Scale::exact(all().map(|point| point.0).chain([0.0]), (frame.left, frame.right));
    let scores: Vec<f64> = all().map(|point| point.1).collect();
    let y = Scale::of_scores(&scores, score.unit, (frame.bottom, frame.top));
    let mut svg = Svg::new(&format!("spending-{class}"), class, (width, height), title, description);
    let log = if y.is_log() { " (log scale)" } else { "" };
    let direction = if score.lower { ", less is better" } else { "" };
    let y_name = format!("{}{}{direction}{log}", score.name, score.unit.suffix());
    frame.draw(
        &mut svg,
        (&x, Unit::Flops, "training so far, FLOP"),
        (&y, score.unit, &y_name),
        (if narrow { 3 } else { 8 }, (height / 60.0) as usize),
    );
    for (i, Probed { child, points }) in probed.iter().enumerate() {
        let placed: Vec<(f64, f64)> = points.iter().map(|&(at, value, _)| (x.at(at), y.at(value))).collect();
        svg.polyline(&format!("curve c{i}"), &placed, "");
        for (&(flops, value, step), at) in points.iter().zip(placed) {
            let tip = format!(
                "{child} · {} · {} · {} tokens · step {}",
                score.told(value),
                Unit::Flops.with_unit(flops),
                Unit::Count.bare((flops / flops_of_token).round()),
                grouped(step as u64)
            );
            svg.circle(&format!("dot point c{i}"), at, if narrow { 2.0 } else { 3.0 }, &tip);
        }
    }
    let ends = probed
        .iter()
        .filter_map(|probed| Some((y.at(probed.points.last()?.1), probed.child)))
        .collect();
    frame.name_ends(&mut svg, ends);
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_between_logged_steps_lie_on_a_line_and_none_are_beyond() {
        let seen = vec![(10.0, 1000.0), (20.0, 1800.0)];
        let at = |step| tokens_at(&seen, step);
        assert_eq!((at(10.0), at(20.0)), (Some(1000.0), Some(1800.0)));
        assert_eq!((at(5.0), at(15.0), at(21.0)), (Some(500.0), Some(1400.0), None));
        assert_eq!(tokens_at(&Vec::new(), 3.0), None);
    }

    #[test]
    fn long_curves_keep_their_ends() {
        let points: Vec<(f64, f64, f64)> = (0..1000).map(|i| (f64::from(i), 1.0, 2.0)).collect();
        let thin = thinned(points);
        assert!(
            thin.len() <= MOST_POINTS + 1 && thin.len() > MOST_POINTS / 2,
            "{}",
            thin.len()
        );
        assert_eq!((thin[0].0, thin[thin.len() - 1].0), (0.0, 999.0));
    }
}
