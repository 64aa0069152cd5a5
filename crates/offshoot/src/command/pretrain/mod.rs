//! `offshoot pretrain`: from a recipe and data to a run folder with a family in it.

mod images;
mod text;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use offshoot_family::{Catalog, recipe};
use offshoot_methods::language::recipe as language;
use offshoot_methods::train::run::{self, RunFolder};
use offshoot_methods::train::trainer::{
    self, Cadence, Clock, Learner, Observer, Outcome, StepReport, TrainError, train,
};
use serde::Serialize;

pub use images::{facts, read_recipe};

use super::family::short;
use crate::args::Pretrain;
use crate::failure::{Exit, Failure};
use crate::machine::{Machine, ProcessClock, available_memory};
use crate::progress::{TrainingProgress, duration};
use crate::terminal::{complain, say};

/// Set by the first Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);
/// Whether there is a step to finish before stopping.
static TRAINING: AtomicBool = AtomicBool::new(false);
/// How often Ctrl-C was pressed.
static PRESSED: AtomicU32 = AtomicU32::new(0);

/// Runs the command.
pub fn run(args: &Pretrain) -> Result<Exit, Failure> {
    if let Some(folder) = &args.resume {
        let run = RunFolder::resume(folder)?;
        if folder.join("catalog.json").is_file() {
            say(&format!("{} is finished: offshoot family {0}", folder.display()))?;
            return Ok(Exit::Done);
        }
        let path = folder.join("recipe.toml");
        let text = read(&path)?;
        return match recipe::given(&text, &[], "method").as_deref() {
            Some(language::METHOD) => text::resume(args, &run, &text),
            _ => images::resume(args, &run),
        };
    }
    let Some((path, overrides)) = args.recipe.split_first() else {
        return Err(Failure::input(
            "no recipe was given",
            "such as: offshoot pretrain recipes/poa-vit-l16.toml --dry-run",
        ));
    };
    let path = Path::new(path);
    let text = read(path)?;
    match recipe::given(&text, overrides, "method").as_deref() {
        Some(language::METHOD) => text::run(args, path, &text, overrides),
        None | Some("elastic") => images::run(args, path, overrides),
        Some(other) => Err(Failure::input(
            format!("{}: there is no method `{other}`", path.display()),
            "there are `elastic`, for images, and `language`, for text",
        )),
    }
}

/// The text of a recipe.
fn read(path: &Path) -> Result<String, Failure> {
    Ok(std::fs::read_to_string(path).with_context(|| format!("recipe {}", path.display()))?)
}

/// Writes the family of a finished run.
type Family<L> = Box<dyn FnOnce(&L, &RunFolder) -> Result<Catalog, Failure>>;

/// A run that can start.
struct Ready<L> {
    machine: Machine,
    /// The resolved recipe, as TOML.
    recipe: String,
    cadence: Cadence,
    /// What is said before the first step.
    announcement: Vec<String>,
    learner: L,
    family: Family<L>,
    /// Says what training left to tell.
    tell: fn(&L),
}

/// Makes the run folder and what a step needs, and trains: what `check` refuses costs nothing, and `ready` may write into the folder.
/// The folder is not emptied of `inputs`, which both read.
fn launch<C, L: Learner>(
    args: &Pretrain,
    inputs: &[PathBuf],
    check: impl FnOnce() -> Result<C, Failure>,
    ready: impl FnOnce(C, &Path) -> Result<Ready<L>, Failure>,
) -> Result<Exit, Failure>
where
    TrainError<L::Error>: Into<anyhow::Error>,
{
    let Some(out) = &args.out else {
        return Err(Failure::input(
            "no run folder was given",
            "add `--out DIR`, or `--dry-run` to only look",
        ));
    };
    run::keeps(out, inputs)?;
    let (run, made) = if args.overwrite {
        // What is there is only taken away for a run that can start.
        let checked = check()?;
        let run = RunFolder::create(out, true, inputs)?;
        let made = ready(checked, run.path());
        (run, made)
    } else {
        // Look at the folder first: a used one is refused before minutes are spent on the data.
        let run = RunFolder::create(out, false, inputs)?;
        let made = check().and_then(|checked| ready(checked, run.path()));
        (run, made)
    };
    match made {
        Ok(ready) => go(args, ready, &run),
        Err(failure) => {
            run.abandon();
            Err(failure)
        }
    }
}

/// What a run reads of the model that it starts from; an empty path is none. That of a run lies in its parent's folder.
fn initial(path: &str) -> impl Iterator<Item = PathBuf> {
    let path = Some(path).filter(|path| !path.is_empty()).map(PathBuf::from);
    path.into_iter().flat_map(|path| [path.join("parent"), path])
}

/// Trains and writes the family.
fn go<L: Learner>(args: &Pretrain, ready: Ready<L>, run: &RunFolder) -> Result<Exit, Failure>
where
    TrainError<L::Error>: Into<anyhow::Error>,
{
    let Ready {
        machine,
        recipe,
        cadence,
        announcement,
        mut learner,
        family,
        tell,
    } = ready;
    run.write_text("recipe.toml", &recipe)?;
    for line in announcement {
        complain(&line);
    }
    complain(&format!("run folder {}", run.path().display()));
    watch_interrupts();
    STOP.store(false, Ordering::Relaxed);
    let clock = ProcessClock::start();
    let recipe_hash = blake3::hash(recipe.as_bytes()).to_hex();
    let context = trainer::Context {
        run,
        cadence: &cadence,
        recipe: recipe_hash.as_str(),
        machine: &machine.description(),
        clock: &clock,
        stop: &STOP,
    };
    let mut observer = Stopping {
        inner: TrainingProgress::new(),
        after: args.stop_after,
    };
    TRAINING.store(true, Ordering::Relaxed);
    let outcome = train(&mut learner, &context, &machine.device, &mut observer);
    TRAINING.store(false, Ordering::Relaxed);
    let outcome = outcome?;
    observer.inner.finish();
    summarise(&observer.inner, clock.elapsed());
    tell(&learner);
    match outcome {
        Outcome::Interrupted(done) => {
            complain(&format!("stopped after step {done}; everything is saved. Go on with:"));
            complain(&format!("  offshoot pretrain --resume {}", run.path().display()));
            let asked = args.stop_after.is_some_and(|after| done >= after);
            Ok(if asked { Exit::Done } else { Exit::Interrupted })
        }
        Outcome::Finished => {
            let catalog = family(&learner, run)?;
            finished(&catalog, run.path())?;
            Ok(Exit::Done)
        }
    }
}

/// Says where the time went.
fn summarise(progress: &TrainingProgress, elapsed: Duration) {
    let (steps, waited) = (progress.totals.0.as_secs_f64(), progress.totals.1.as_secs_f64());
    let share = 100.0 * waited / steps.max(1e-9);
    complain(&format!(
        "trained for {}; {share:.1} % of it waiting for data",
        duration(elapsed.as_secs_f64())
    ));
    if progress.skipped > 0 {
        complain(&format!("{} updates were skipped", progress.skipped));
    }
}

/// Refuses a rate that is none.
fn check_rate(rate: f64) -> Result<(), Failure> {
    if rate.is_finite() && rate > 0.0 {
        return Ok(());
    }
    Err(Failure::input(
        format!("--rate {rate} is no rate"),
        "give TFLOP/s above 0, such as 100",
    ))
}

/// Refuses a recipe that leaves something open.
fn refuse_open(recipe: &impl Serialize) -> Result<(), Failure> {
    let open = recipe::unresolved(recipe);
    if open.is_empty() {
        return Ok(());
    }
    let open = format!("values could not be worked out: {}", open.join(", "));
    Err(Failure::input(open, "give them in the recipe"))
}

/// Refuses a step that needs more memory than is free.
fn check_memory(needed: f64, hint: &str) -> Result<(), Failure> {
    match available_memory().filter(|&free| needed > free as f64) {
        None => Ok(()),
        Some(free) => Err(Failure::input(
            format!(
                "a step needs about {} of memory, and {} are free",
                short(needed, "B"),
                short(free as f64, "B")
            ),
            hint,
        )),
    }
}

fn finished(catalog: &Catalog, run: &Path) -> Result<(), Failure> {
    let (run, score) = (run.display(), catalog.score.split('@').next().unwrap_or_default());
    let count = match catalog.children.len() {
        1 => "1 child".to_owned(),
        n => format!("{n} children"),
    };
    say(&format!("a family of {count} is in {run}"))?;
    // A budget that leaves some out.
    let mut sizes: Vec<u64> = catalog.children.iter().map(|child| child.parameters).collect();
    sizes.sort_unstable();
    let budget = sizes.get(sizes.len() / 2).map_or(0, |&n| n.div_ceil(1000));
    say(&format!(
        "next: offshoot eval {score} {run}; offshoot pick {run} --params {budget}k; offshoot report {run}"
    ))?;
    Ok(())
}

/// The first Ctrl-C asks the loop to stop after the step in hand; a second one, or one with no step in hand, ends the process
/// at once.
fn watch_interrupts() {
    // A second call in one process keeps the first handler, which does the same.
    let _ = ctrlc::set_handler(|| {
        if TRAINING.load(Ordering::Relaxed) && PRESSED.fetch_add(1, Ordering::Relaxed) == 0 {
            STOP.store(true, Ordering::Relaxed);
            complain("\nstopping after this step; press Ctrl-C again to stop at once");
        } else {
            #[expect(
                clippy::exit,
                reason = "there is nothing to wait for, or the user will not; what is on disk is whole"
            )]
            std::process::exit(Exit::Interrupted as i32);
        }
    });
}

/// Progress that also stops after a number of steps.
struct Stopping {
    inner: TrainingProgress,
    after: Option<u64>,
}

impl Observer for Stopping {
    fn stepped(&mut self, done: u64, of: u64, report: &StepReport, took: Duration) {
        self.inner.stepped(done, of, report, took);
        if self.after.is_some_and(|after| done >= after) {
            STOP.store(true, Ordering::Relaxed);
        }
    }

    fn probed(&mut self, done: u64, values: &[(String, f64)]) {
        self.inner.probed(done, values);
    }

    fn sampled(&mut self, done: u64, samples: &[(String, String)]) {
        self.inner.sampled(done, samples);
    }

    fn saved(&mut self, done: u64) {
        self.inner.saved(done);
    }

    fn noted(&mut self, text: &str) {
        self.inner.noted(text);
    }
}

/// `21,675,264`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|g| std::str::from_utf8(g).unwrap_or(""))
        .collect();
    groups.join(",")
}
