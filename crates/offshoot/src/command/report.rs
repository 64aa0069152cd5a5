//! `offshoot report`: one HTML page about a run.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use offshoot_family::files::write_atomic;
use offshoot_family::scorecard::written;
use offshoot_family::{Catalog, Child, Split};
use offshoot_methods::train::metrics;
use offshoot_report::RunFacts;

use crate::args::Report;
use crate::failure::Failure;
use crate::terminal::say;

/// Runs the command.
pub fn run(args: &Report) -> Result<(), Failure> {
    let path = write(&args.run, args.out.clone())?;
    say(&format!("wrote {}", path.display()))?;
    Ok(())
}

/// The child that `pick` chose and why: the only one that was scored on the test split.
fn picked(catalog: &Catalog) -> Option<(String, String)> {
    let score = |child: &Child| child.score(&catalog.score, Split::Test);
    let mut scored = catalog.children.iter().filter(|child| score(child).is_some());
    let child = scored.next().filter(|_| scored.next().is_none())?;
    let (name, value) = (&catalog.score, score(child)?);
    Some((
        child.id.clone(),
        format!(
            "chosen on val; {name} on test, measured after the choice: {}",
            written(name, value)
        ),
    ))
}

/// Writes the page and says where.
fn write(run: &Path, out: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let catalog = Catalog::open(run)?;
    let log = run.join("metrics.jsonl");
    let samples = run.join("samples.jsonl");
    let recipe = run.join("recipe.toml");
    let notes = hours(run).map(|hours| ("Training time".to_owned(), hours));
    let facts = RunFacts {
        title: run
            .file_name()
            .map_or_else(|| "A family".into(), |name| name.to_string_lossy().into_owned()),
        metrics: if log.is_file() {
            metrics::read(&log)?
        } else {
            Vec::new()
        },
        // Lines with a step, too, of which the last may be half written.
        samples: if samples.is_file() {
            metrics::read(&samples)?
        } else {
            Vec::new()
        },
        recipe_toml: if recipe.is_file() {
            std::fs::read_to_string(&recipe).with_context(|| recipe.display().to_string())?
        } else {
            String::new()
        },
        notes: notes.into_iter().collect(),
        picked: picked(&catalog),
    };
    let page = offshoot_report::render(&catalog, &facts)?;
    let path = out.unwrap_or_else(|| run.join("report.html"));
    write_atomic(&path, |w: &mut dyn Write| w.write_all(page.as_bytes()))
        .with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Steps of training, and seconds of one: the mean of the logged ones.
pub fn timed_steps(run: &Path) -> Option<(f64, f64)> {
    let lines = metrics::read(&run.join("timing.jsonl")).ok()?;
    let seconds: Vec<f64> = lines
        .iter()
        .filter_map(|l| l.get("step_seconds").and_then(metrics::number))
        .collect();
    let steps = lines.last()?.get("step").and_then(metrics::number)?;
    Some((steps, seconds.iter().sum::<f64>() / seconds.len().max(1) as f64))
}

/// Time in training steps.
fn hours(run: &Path) -> Option<String> {
    let (steps, mean) = timed_steps(run)?;
    Some(format!(
        "{} ({steps} steps of {mean:.2} s)",
        crate::progress::duration(mean * steps)
    ))
}
