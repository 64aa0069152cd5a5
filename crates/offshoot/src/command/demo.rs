//! `offshoot demo`: the commands that a user would type, one after the other, on images that come along.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use offshoot_family::files::write_atomic;

use crate::args::{Arguments, Demo};
use crate::failure::{Exit, Failure};
use crate::progress::duration;
use crate::terminal::{complain, say};

/// Ten thousand grey images of clothes, 28 x 28 (Fashion-MNIST's test set; Zalando SE, MIT licence).
const IMAGES: &[u8] = include_bytes!("../../data/t10k-images-idx3-ubyte.gz");
const LABELS: &[u8] = include_bytes!("../../data/t10k-labels-idx1-ubyte.gz");
const RECIPE: &str = include_str!("../../../../recipes/demo.toml");
/// The budget that the demo picks for.
const BUDGET: &str = "250k";

/// Runs the command.
pub fn run(args: &Demo) -> Result<Exit, Failure> {
    let began = Instant::now();
    let out = &args.out;
    refuse_used(out, args.overwrite)?;
    for (name, bytes) in [
        ("data/t10k-images-idx3-ubyte.gz", IMAGES),
        ("data/t10k-labels-idx1-ubyte.gz", LABELS),
        ("demo.toml", RECIPE.as_bytes()),
    ] {
        let path = out.join(name);
        write_atomic(&path, |w| w.write_all(bytes)).with_context(|| path.display().to_string())?;
    }
    let place = |name: &str| out.join(name).display().to_string();
    let (recipe, data, run, child) = (place("demo.toml"), place("data"), place("run"), place("child"));
    let compute = [
        "--device".into(),
        args.compute.device.clone(),
        "--threads".into(),
        args.compute.threads.to_string(),
    ];
    let data_override = format!("data.path={data}");
    let (labels, score) = if args.without_labels {
        ("data.labels=false", "agreement")
    } else {
        ("data.labels=true", "knn")
    };

    let mut pretrain = words(&["pretrain", &recipe, &data_override, labels, "--out", &run]);
    if args.overwrite {
        pretrain.push("--overwrite".into());
    }
    if let Some(steps) = args.steps {
        pretrain.extend(["train.epochs=1".into(), format!("train.steps_per_epoch={steps}")]);
    }
    let sheet = place("contact-sheet.png");
    let commands = [
        words(&["data", &data, "--labels", "--recipe", &recipe, "--sheet", &sheet]),
        [pretrain, compute.to_vec()].concat(),
        [words(&["eval", score, &run]), compute.to_vec()].concat(),
        [words(&["eval", "latency", &run]), compute.to_vec()].concat(),
        [words(&["pick", &run, "--params", BUDGET]), compute.to_vec()].concat(),
    ];
    for command in commands {
        let exit = perform(&command)?;
        if exit != Exit::Done {
            return Ok(exit);
        }
    }
    let picked = picked(Path::new(&run), score)?;
    perform(&words(&[
        "export",
        &run,
        "--child",
        &picked,
        "-o",
        &child,
        "--check",
        "--overwrite",
    ]))?;
    let page = place("report.html");
    perform(&words(&["report", &run, "-o", &page]))?;
    say(&format!(
        "\nIn {} offshoot made, in {}:\n  {run}  one run: parent, views, catalog, logs\n  {child}  {picked}, an ordinary model folder\n  {page}  the report: open it in a browser",
        duration(began.elapsed().as_secs_f64()),
        out.display(),
    ))?;
    say(&format!(
        "\nNext:\n  offshoot family {run} --sort -{score}\n  offshoot pick {run} --ms 5\n  offshoot pretrain {recipe} data.path=YOUR/IMAGES --out my-run",
        score = score_column(score)
    ))?;
    Ok(Exit::Done)
}

/// The column that `family` sorts the score by.
fn score_column(score: &str) -> String {
    format!("{score}@20")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&w| w.to_owned()).collect()
}

/// Shows a command and does what the binary would do for it.
fn perform(words: &[String]) -> Result<Exit, Failure> {
    complain("");
    say(&format!("$ offshoot {}", words.join(" ")))?;
    let arguments = Arguments::try_parse_from(std::iter::once(&"offshoot".to_owned()).chain(words))?;
    super::run(arguments)
}

/// The child that `pick` chose: the one that was scored on the test split.
fn picked(run: &Path, score: &str) -> Result<String, Failure> {
    let catalog = offshoot_family::Catalog::open(run)?;
    let metric = score_column(score);
    let scored = catalog
        .children
        .iter()
        .find(|c| c.score(&metric, offshoot_family::Split::Test).is_some());
    Ok(scored
        .map(|c| c.id.clone())
        .context("pick scores its child on the test split")?)
}

fn refuse_used(out: &Path, overwrite: bool) -> Result<(), Failure> {
    let used = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if used && !overwrite {
        return Err(Failure::input(
            format!("{} is not empty", out.display()),
            "choose another folder with `--out DIR`, or make the demo again with `--overwrite`",
        ));
    }
    Ok(())
}
