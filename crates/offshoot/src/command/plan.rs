//! `offshoot plan`: which way to a small model of a domain is worth it under four budgets, and why not the others.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, TableStyle};
use offshoot_family::files::write_atomic;
use offshoot_family::quantity::{grouped, parse_count, parse_hours, proportion};
use offshoot_methods::specialize::costs::{Costs, MAX_BYTES, Measured};
use offshoot_methods::specialize::plan::{Budgets, Candidate, Decision, Method, count, plan, told};
use offshoot_methods::specialize::published::{self, Published};
use offshoot_report::{MethodFacts, PlanFacts};
use offshoot_zoo::tensor::kernels::on_workers;
use serde_json::{Value, json};

use super::bench::Steps;
use crate::args;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::terminal::{complain, say};

/// Windows of a step that is timed: enough that a step is mostly matrix products, few enough for the slowest machine.
const WINDOWS: usize = 4;
/// Least parameters of a decoder that is worth the name.
const LEAST_PARAMETERS: u64 = 10_000;
/// Whose perplexities are shown.
const PRIOR: &str = "perplexities are the paper's (arXiv 2402.01093 v2, tables 4 and 8: its models, c4 and nine domains of the Pile), not \
     measured here: a prior of which method is better";

/// Runs the command.
pub fn run(args: &args::Plan) -> Result<(), Failure> {
    let budgets = Budgets {
        inference: parse_count(&args.inference)?,
        pretraining_hours: parse_hours(&args.pretraining_hours)?,
        specialization_hours: parse_hours(&args.specialization_hours)?,
        tokens: parse_count(&args.tokens)?,
        domains: parse_count(&args.domains)?,
    };
    // Before a minute is spent on timing.
    budgets.check()?;
    let costs = costs(args, &budgets)?;
    if let Some(path) = &args.save_costs {
        let text = costs.to_toml()?;
        write_atomic(path, |w| w.write_all(text.as_bytes())).with_context(|| path.display().to_string())?;
        complain(&format!("wrote {}", path.display()));
    }
    let plan = plan(&budgets, &costs)?;
    if let Some(path) = &args.out {
        let page = offshoot_report::render_plan(&facts(&budgets, &costs, &plan))?;
        write_atomic(path, |w| w.write_all(page.as_bytes())).with_context(|| path.display().to_string())?;
        complain(&format!("wrote {}", path.display()));
    }
    if args.json {
        say(&serde_json::to_string_pretty(&as_json(&budgets, &costs, &plan))?)?;
        return Ok(());
    }
    print(&budgets, &costs, &plan)
}

/// The table of costs that is asked for.
fn costs(args: &args::Plan, budgets: &Budgets) -> Result<Costs, Failure> {
    let sized = args.small.is_some() || args.large.is_some();
    if sized && args.costs != "calibrate" {
        return Err(Failure::input(
            format!(
                "--small and --large are sizes to calibrate for, and --costs {} has its own",
                args.costs
            ),
            "leave them out, or use --costs calibrate",
        ));
    }
    match args.costs.as_str() {
        "paper" => Ok(Costs::paper()),
        "calibrate" => {
            let (small, large) = sizes(args, budgets)?;
            let machine = Machine::new(&args.compute.device, args.compute.threads)?;
            Ok(Costs::calibrated(&measured(&machine)?, small, large))
        }
        file => read(Path::new(file)),
    }
}

/// Reads a file of costs.
fn read(path: &Path) -> Result<Costs, Failure> {
    let place = path.display().to_string();
    let bytes = fs::metadata(path).with_context(|| format!("--costs {place}"))?.len();
    if bytes > MAX_BYTES {
        return Err(Failure::input(
            format!("{place}: {bytes} bytes; a table of costs has at most {MAX_BYTES}"),
            "--costs takes `paper`, `calibrate` or a TOML file as --save-costs writes it",
        ));
    }
    let text = fs::read_to_string(path).with_context(|| place.clone())?;
    Ok(Costs::parse(&text, &place)?)
}

/// Parameters of the small and the large model to calibrate for. The small one is as large as the limit allows, but where it allows the
/// paper's large one: there both are the paper's.
fn sizes(args: &args::Plan, budgets: &Budgets) -> Result<(u64, u64), Failure> {
    let paper = Costs::paper();
    let usual = if budgets.inference < paper.large.parameters {
        budgets.inference
    } else {
        paper.small.parameters
    };
    let small = args.small.as_deref().map(parse_count).transpose()?.unwrap_or(usual);
    let ratio = paper.large.parameters as f64 / paper.small.parameters as f64;
    let usual = (small as f64 * ratio) as u64;
    let large = args.large.as_deref().map(parse_count).transpose()?.unwrap_or(usual);
    if small < LEAST_PARAMETERS {
        return Err(Failure::input(
            format!(
                "{small} parameters are no decoder: the least to plan for are {}",
                grouped(LEAST_PARAMETERS)
            ),
            "give more by --inference, or by --small",
        ));
    }
    if large <= small {
        return Err(Failure::input(
            format!(
                "--large {} is not more than the small model's {}",
                grouped(large),
                grouped(small)
            ),
            "give more by --large, or leave it out for 6.1 times as many",
        ));
    }
    Ok((small, large))
}

/// Times training steps and forward passes of a small decoder: under a minute, however slow the machine is.
fn measured(machine: &Machine) -> Result<Measured, Failure> {
    complain("timing training steps and forward passes of a small decoder on this machine, for up to a minute");
    let mut steps = Steps::small(WINDOWS, &machine.device);
    let flops = steps.forward_flops();
    let training = median(Duration::from_secs(20), || steps.step().map(|_| ()))?;
    let forward = median(Duration::from_secs(8), || steps.forward())?;
    Ok(Measured {
        machine: machine.description(),
        parameters: steps.parameters(),
        training_flops: 3.0 * flops / training,
        forward_flops: flops / forward,
    })
}

/// Median seconds of a few runs, of which the first does not count if there is time for a second; stops after about `most`.
fn median(most: Duration, mut once: impl FnMut() -> Result<(), Failure> + Send) -> Result<f64, Failure> {
    const RUNS: usize = 8;
    let began = Instant::now();
    let mut seconds = Vec::new();
    while seconds.is_empty() || (seconds.len() <= RUNS && began.elapsed() < most) {
        let start = Instant::now();
        on_workers(&mut once)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    if seconds.len() > 1 {
        seconds.remove(0);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2].max(1e-9))
}

/// All methods, the one to take first.
fn all(plan: &Decision) -> impl Iterator<Item = (&Candidate, &str)> {
    let others = plan
        .others
        .iter()
        .map(|(candidate, reason)| (candidate, reason.as_str()));
    std::iter::once((&plan.chosen, "")).chain(others)
}

/// `16.95`, `~14.50`, or `-`.
fn perplexity(published: Option<Published>) -> String {
    published.map_or_else(
        || "-".into(),
        |p| format!("{}{}", if p.bound { "~" } else { "" }, proportion(p.value, 4)),
    )
}

/// How the break-even is told.
fn even(plan: &Decision) -> Option<String> {
    let even = plan.break_even?;
    Some(format!(
        "break-even at {:.1} domains: pretraining for each of them (slm-is, {} hours) costs more than one for all ({}, {} hours) from there on",
        even.domains,
        told(even.each),
        even.shared,
        told(even.generic)
    ))
}

/// What the choice is, in a sentence.
fn headline(plan: &Decision) -> String {
    let chosen = &plan.chosen;
    format!(
        "{}: {}; {} parameters in pretraining, {} to use",
        chosen.method,
        chosen.method.words(),
        count(chosen.trained),
        count(chosen.used)
    )
}

/// What it takes, in a sentence.
fn takes(budgets: &Budgets, plan: &Decision) -> String {
    let hours = plan.chosen.hours;
    let clustering = match hours.clustering {
        0.0 => String::new(),
        clustering => format!("clustering {} hours and ", told(clustering)),
    };
    let domains = if budgets.domains == 1 { "domain" } else { "domains" };
    format!(
        "{clustering}pretraining {} hours once, specialization {} hours a domain: {} hours over {} {domains}",
        told(hours.pretraining),
        told(hours.specialization),
        told(hours.total(budgets.domains as f64)),
        grouped(budgets.domains)
    )
}

fn print(budgets: &Budgets, costs: &Costs, plan: &Decision) -> Result<(), Failure> {
    say(&headline(plan))?;
    say(&takes(budgets, plan))?;
    if let Some(even) = even(plan) {
        say(&even)?;
    }
    say("")?;
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(columns(budgets));
    for (candidate, _) in all(plan) {
        table.add_row(cells(candidate, budgets));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    say(&table.trim_fmt())?;
    say("\nwhy not the others:")?;
    for (candidate, reason) in &plan.others {
        say(&format!("  {:>7}  {reason}", candidate.method))?;
    }
    say(&format!("\nhours are {}: {}", costs.unit, costs.source))?;
    say(PRIOR)?;
    for note in &plan.notes {
        say(&format!("note: {note}"))?;
    }
    Ok(())
}

/// Headings of the table.
fn columns(budgets: &Budgets) -> Vec<String> {
    let total = format!("over {}", grouped(budgets.domains));
    [
        "method",
        "trained",
        "used",
        "clustering",
        "pretraining",
        "a domain",
        &total,
        "use of 1G tokens",
        "paper's perplexity",
    ]
    .map(str::to_owned)
    .into()
}

/// A row of it; one that does not fit has no hours.
fn cells(c: &Candidate, budgets: &Budgets) -> Vec<String> {
    let mut cells = vec![c.method.to_string(), count(c.trained), count(c.used)];
    if c.misfit.is_some() {
        cells.extend(["-"; 4].map(str::to_owned));
    } else {
        let total = c.hours.total(budgets.domains as f64);
        cells.extend([c.hours.clustering, c.hours.pretraining, c.hours.specialization, total].map(told));
    }
    cells.push(told(c.inference));
    cells.push(if c.misfit.is_some() {
        "-".into()
    } else {
        perplexity(c.perplexity)
    });
    cells
}

fn as_json(budgets: &Budgets, costs: &Costs, plan: &Decision) -> Value {
    let method = |c: &Candidate| {
        json!({
            "method": c.method.name(),
            "fits": c.misfit.is_none(),
            "parameters": { "pretraining": c.trained, "inference": c.used },
            "hours": {
                "clustering": c.hours.clustering,
                "pretraining": c.hours.pretraining,
                "specialization": c.hours.specialization,
                "total": c.hours.total(budgets.domains as f64),
                "inference_per_billion_tokens": c.inference,
            },
            "pretraining_tokens": c.pretraining_tokens,
            "perplexity": c.perplexity.map(|p| json!({
                "value": p.value, "upper_bound": p.bound, "within_the_papers_range": p.inside,
            })),
        })
    };
    let others = plan.others.iter().map(|(candidate, reason)| {
        let mut other = method(candidate);
        other["reason"] = reason.as_str().into();
        other
    });
    let mut line = method(&plan.chosen);
    line["budgets"] = json!({
        "inference": budgets.inference,
        "pretraining_hours": budgets.pretraining_hours,
        "specialization_hours": budgets.specialization_hours,
        "tokens": budgets.tokens,
        "domains": budgets.domains,
    });
    line["break_even_domains"] = json!(plan.break_even.map(|even| even.domains));
    line["break_even"] = json!(plan.break_even.map(|even| json!({
        "domains": even.domains, "shared": even.shared.name(), "generic_hours": even.generic, "hours_a_domain": even.each,
    })));
    line["others"] = others.collect();
    line["notes"] = json!(plan.notes);
    line["perplexities"] = PRIOR.into();
    line["costs"] = json!(costs);
    line["version"] = env!("CARGO_PKG_VERSION").into();
    line
}

/// What the page tells.
fn facts(budgets: &Budgets, costs: &Costs, plan: &Decision) -> PlanFacts {
    // Where one curve is the paper's own, drawn over its hours, no other hours may stand beside it.
    let papers = *costs == Costs::paper();
    let curve = |method: Method| {
        let at = |hours| {
            Some((
                hours,
                published::perplexity(method, hours, budgets.tokens as f64)?.value,
            ))
        };
        published::rows(method).into_iter().filter_map(at).collect()
    };
    let methods = all(plan).map(|(c, reason)| MethodFacts {
        name: c.method.name().into(),
        words: c.method.words().into(),
        cells: cells(c, budgets).split_off(1),
        reason: reason.into(),
        generic: c.hours.clustering + c.hours.pretraining,
        each: c.hours.specialization,
        fits: c.misfit.is_none(),
        perplexities: if papers { curve(c.method) } else { Vec::new() },
        promised: match c.perplexity {
            Some(p) if papers && c.misfit.is_none() => Some((c.hours.pretraining.max(c.hours.specialization), p.value)),
            _ => None,
        },
    });
    PlanFacts {
        lead: format!("{}; {}.", headline(plan), takes(budgets, plan)),
        domains: budgets.domains,
        break_even: plan.break_even.map(|even| even.domains),
        even: even(plan),
        unit: costs.unit.clone(),
        columns: columns(budgets).split_off(1),
        methods: methods.collect(),
        budgets: vec![
            ("Inference".into(), format!("{} parameters", count(budgets.inference))),
            (
                "Pretraining".into(),
                format!("{} hours", told(budgets.pretraining_hours)),
            ),
            (
                "Specialization".into(),
                format!("{} hours a domain", told(budgets.specialization_hours)),
            ),
            ("Text of a domain".into(), format!("{} tokens", count(budgets.tokens))),
            ("Domains".into(), grouped(budgets.domains)),
            ("Costs".into(), format!("{}: {}", costs.unit, costs.source)),
        ],
        notes: std::iter::once(PRIOR.to_owned())
            .chain(plan.notes.iter().cloned())
            .collect(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}
