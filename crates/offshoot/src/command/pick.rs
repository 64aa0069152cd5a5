//! `offshoot pick`: the best child within a budget, and why not the others.

use std::path::Path;

use offshoot_family::budget;
use offshoot_family::quantity::{parse_bytes, parse_count, parse_milliseconds};
use offshoot_family::scorecard::written;
use offshoot_family::{Budget, Catalog, Child, Split};
use serde_json::json;

use super::eval::{LATENCY, Measure, measure_children};
use super::family::short;
use super::images;
use crate::args::Pick;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::terminal::say;

/// Runs the command.
pub fn run(args: &Pick) -> Result<(), Failure> {
    let budget = Budget {
        parameters: args.params.as_deref().map(parse_count).transpose()?,
        bytes: args.bytes.as_deref().map(parse_bytes).transpose()?,
        macs: args.macs.as_deref().map(parse_count).transpose()?,
        milliseconds: args.ms.as_deref().map(parse_milliseconds).transpose()?,
    };
    if budget.is_empty() {
        return Err(Failure::input(
            "no budget was given",
            "give at least one of --params, --bytes, --macs and --ms",
        ));
    }
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    let mut catalog = Catalog::open(&args.run)?;
    let metric = args.by.clone().unwrap_or_else(|| catalog.score.clone());
    if budget.milliseconds.is_some() {
        measure_latencies(&args.run, &catalog, &budget, &machine)?;
        catalog = Catalog::open(&args.run)?;
    }
    let chosen = choose(&catalog, &budget, &metric, &args.run)?;
    // The number that is printed: measured on examples that no choice was made on.
    let measure = Measure::of_metric(&metric).ok_or_else(|| unknown(&metric))?;
    measure_children(
        &args.run,
        std::slice::from_ref(&chosen),
        &measure,
        Split::Test,
        0,
        &machine,
    )?;
    let catalog = Catalog::open(&args.run)?;
    let pick = budget::pick(&catalog, &budget, &metric, Split::Val);
    print(args, &catalog, catalog.child(&chosen)?, &metric, &pick)
}

fn unknown(metric: &str) -> Failure {
    let hint = "choose by knn@10, knn@20, knn@100, knn@200, linear or agreement@20; of language models by perplexity or byte_perplexity, also of one domain: perplexity/NAME";
    Failure::input(format!("no measurement gives `{metric}`"), hint)
}

/// The id of the best child.
fn choose(catalog: &Catalog, budget: &Budget, metric: &str, run: &Path) -> Result<String, Failure> {
    if Measure::of_metric(metric).is_none_or(|m| matches!(m, Measure::Latency { .. })) {
        return Err(unknown(metric));
    }
    if let Some(child) = budget::pick(catalog, budget, metric, Split::Val).chosen {
        return Ok(child.id.clone());
    }
    let fits = catalog.children.iter().any(|child| budget.broken_by(child).is_none());
    if fits {
        images::given(&catalog.data)?;
        let command = format!(
            "offshoot eval {} {}",
            metric
                .split(['@', '/'])
                .next()
                .unwrap_or_default()
                .trim_start_matches("byte_"),
            run.display()
        );
        return Err(Failure::input(
            format!("no child within the budget was measured by {metric} on val"),
            format!("measure first: {command}"),
        ));
    }
    let smallest = catalog.children.iter().min_by_key(|c| c.parameters);
    let hint = smallest.map_or(String::new(), |c| {
        let (parameters, bytes, macs) = (c.parameters as f64, c.bytes as f64, c.macs as f64);
        let (p, b, m) = (short(parameters, ""), short(bytes, "B"), short(macs, ""));
        let time = c
            .latency_ms()
            .map_or(String::new(), |ms| format!(" and takes {ms:.3} ms"));
        format!(
            "the smallest child, {}, has {p} parameters, {b} and {m} multiply-adds{time}",
            c.id
        )
    });
    Err(Failure::input("no child fits the budget", hint))
}

/// Times the children that the rest of the budget leaves and that have no time from this machine yet.
fn measure_latencies(run: &Path, catalog: &Catalog, budget: &Budget, machine: &Machine) -> Result<(), Failure> {
    let rest = Budget {
        milliseconds: None,
        ..budget.clone()
    };
    let here = machine.description();
    let timed = |c: &Child| {
        c.scorecards
            .iter()
            .any(|s| s.metric == "latency_ms" && s.machine == here)
    };
    let ids: Vec<String> = catalog
        .children
        .iter()
        .filter(|c| rest.broken_by(c).is_none() && !timed(c))
        .map(|c| c.id.clone())
        .collect();
    if !ids.is_empty() {
        measure_children(run, &ids, &LATENCY, Split::Val, 0, machine)?;
    }
    Ok(())
}

fn print(args: &Pick, catalog: &Catalog, child: &Child, metric: &str, pick: &budget::Pick) -> Result<(), Failure> {
    let score = |split| child.scorecard(metric, split);
    if args.json {
        let losers: Vec<_> = pick
            .losers
            .iter()
            .map(|(c, why)| json!({ "child": c.id, "reason": why.to_string() }))
            .collect();
        let chosen = json!({
            "child": child.id, "name": child.name, "parameters": child.parameters, "bytes": child.bytes,
            "macs": child.macs, "latency_ms": child.latency_ms(), "metric": metric,
            "val": score(Split::Val).map(|s| s.value), "test": score(Split::Test).map(|s| s.value), "losers": losers,
        });
        say(&serde_json::to_string_pretty(&chosen)?)?;
        return Ok(());
    }
    let name = child.name.as_ref().map_or(String::new(), |n| format!(" ({n})"));
    let (parameters, bytes, macs) = (child.parameters as f64, child.bytes as f64, child.macs as f64);
    let latency = child.latency_ms().map_or(String::new(), |ms| format!(", {ms:.2} ms"));
    let (p, m, b) = (short(parameters, ""), short(macs, ""), short(bytes, "B"));
    say(&format!(
        "{}{name}: {p} parameters, {m} multiply-adds, {b}{latency}",
        child.id
    ))?;
    let examples = catalog.data.examples();
    if let Some(card) = score(Split::Test) {
        say(&format!(
            "{metric} {} on {} test {examples}, measured after the choice",
            written(metric, card.value),
            card.examples
        ))?;
    }
    if let Some(card) = score(Split::Val) {
        let within = pick.runners_up().count() + 1;
        say(&format!(
            "chosen by {} on {} val {examples}, the best of {within} within the budget",
            written(metric, card.value),
            card.examples
        ))?;
    }
    if args.show > 0 && !pick.losers.is_empty() {
        say("why not the others:")?;
        for (loser, reason) in pick.losers.iter().take(args.show) {
            say(&format!("  {:>9}  {reason}", loser.id))?;
        }
        let more = pick.losers.len().saturating_sub(args.show);
        if more > 0 {
            say(&format!("  and {more} more (--show {})", catalog.children.len()))?;
        }
    }
    say(&format!(
        "next: offshoot export {} --child {} -o {}",
        args.run.display(),
        child.id,
        child.id
    ))?;
    Ok(())
}
