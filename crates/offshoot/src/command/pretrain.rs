//! `offshoot pretrain`: from a recipe and images to a run folder with a family in it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use offshoot_data::{DataError, Dataset, Prepared, SplitShares};
use offshoot_family::Catalog;
use offshoot_family::catalog::DataRef;
use offshoot_family::recipe::{self, Auto};
use offshoot_methods::elastic::cost;
use offshoot_methods::elastic::family;
use offshoot_methods::elastic::pretrain::{ElasticLearner, ProbeImages};
use offshoot_methods::elastic::recipe::{DataFacts, ElasticRecipe};
use offshoot_methods::elastic::sampling::Sampler;
use offshoot_methods::train::run::RunFolder;
use offshoot_methods::train::trainer::{self, Clock, Observer, Outcome, StepReport, train};
use offshoot_zoo::spec;

use super::family::short;
use super::images;
use super::init::Start;
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
        let recipe: ElasticRecipe = read_recipe(&folder.join("recipe.toml"), &[])?;
        // Later its weights are in the checkpoints.
        let unsaved = offshoot_methods::train::state::list(&run.checkpoints()).is_empty();
        let start = (unsaved && !recipe.init.path.is_empty())
            .then(|| Start::again(&recipe.init))
            .transpose()?;
        return go(args, Ready::new(args, recipe, start.as_ref())?, &run);
    }
    let Some((path, overrides)) = args.recipe.split_first() else {
        return Err(Failure::input(
            "no recipe was given",
            "such as: offshoot pretrain recipes/poa-vit-l16.toml --dry-run",
        ));
    };
    let (recipe, start) = new_recipe(args, Path::new(path), overrides)?;
    if args.dry_run {
        dry_run(recipe, args.rate)?;
        return Ok(Exit::Done);
    }
    let Some(out) = &args.out else {
        return Err(Failure::input(
            "no run folder was given",
            "add `--out DIR`, or `--dry-run` to only look",
        ));
    };
    if args.overwrite {
        // What is there is only taken away for a run that can start.
        let ready = Ready::new(args, recipe, start.as_ref())?;
        return go(args, ready, &RunFolder::create(out, true)?);
    }
    // Look at the folder first: a used one is refused before minutes are spent on the data.
    let run = RunFolder::create(out, false)?;
    match Ready::new(args, recipe, start.as_ref()) {
        Ok(ready) => go(args, ready, &run),
        Err(failure) => {
            run.abandon();
            Err(failure)
        }
    }
}

/// The recipe of a new run, and the model that it starts from: the option's, or the recipe's own.
fn new_recipe(args: &Pretrain, path: &Path, overrides: &[String]) -> Result<(ElasticRecipe, Option<Start>), Failure> {
    let text = std::fs::read_to_string(path).with_context(|| format!("recipe {}", path.display()))?;
    let named = recipe::given(&text, overrides, "init.path").filter(|path| !path.is_empty());
    let Some(init) = args.init.clone().or(named.map(Into::into)) else {
        return Ok((read_recipe(path, overrides)?, None));
    };
    let start = Start::open(&init)?;
    let recipe = start.recipe(&text, &path.display().to_string(), overrides)?;
    Ok((recipe, Some(start)))
}

/// Reads a recipe file with overrides, over the defaults of the family that it names.
pub fn read_recipe(path: &Path, overrides: &[String]) -> Result<ElasticRecipe, Failure> {
    let text = std::fs::read_to_string(path).with_context(|| format!("recipe {}", path.display()))?;
    let origin = path.display().to_string();
    let family = recipe::given(&text, overrides, "parent.family");
    let default = match &family {
        None => ElasticRecipe::default(),
        Some(family) => ElasticRecipe::of_family(family).ok_or_else(|| {
            let known = offshoot_zoo::registry::FAMILIES.join(", ");
            Failure::input(
                format!("{origin}: `parent.family`: there is no architecture `{family}`"),
                format!("there are {known}"),
            )
        })?,
    };
    Ok(recipe::load(&default, &text, &origin, overrides)?)
}

/// Where a recipe's test part lies, if it is apart.
fn test_path(recipe: &ElasticRecipe) -> Option<&str> {
    Some(recipe.data.test_path.as_str()).filter(|path| !path.is_empty())
}

/// Opens the data of a recipe.
fn open_data(recipe: &ElasticRecipe) -> Result<Dataset, Failure> {
    if recipe.data.path.is_empty() {
        return Err(Failure::input(
            "the recipe names no data",
            "add `data.path=DIR` to the command or to the recipe",
        ));
    }
    let shares = SplitShares {
        val: recipe.data.val,
        test: recipe.data.test,
    };
    let test = test_path(recipe);
    let dataset = images::open_split(&recipe.data.path, test, recipe.data.labels, recipe.seed, shares)?;
    if recipe
        .data
        .fingerprint
        .value()
        .is_some_and(|known| *known != dataset.fingerprint)
    {
        return Err(Failure::input(
            format!(
                "{} is not the data that the recipe was resolved with: its content has changed",
                recipe.data.path
            ),
            "put the files back as they were, or start a new run with `data.fingerprint=auto`",
        ));
    }
    let (val, test) = (dataset.splits.val.len(), dataset.splits.test.len());
    if val < 2 || test < 2 || dataset.splits.train.is_empty() {
        return Err(Failure::input(
            format!(
                "{} images are too few: {} to train on, {val} to choose and {test} to judge by",
                dataset.source.len(),
                dataset.splits.train.len()
            ),
            "at least one image to train on and two in each held-out part are needed: add images, or raise `data.val` and `data.test`",
        ));
    }
    Ok(dataset)
}

/// What the data says about a recipe's open values.
pub fn facts(dataset: &Dataset) -> Result<DataFacts, Failure> {
    let measured = dataset.measure()?;
    Ok(DataFacts {
        channels: measured.channels,
        mean: measured.mean,
        std: measured.std,
        train: dataset.splits.train.len(),
        side: measured.side,
    })
}

/// A run that can start: nothing of it is on disk yet.
struct Ready {
    machine: Machine,
    recipe: ElasticRecipe,
    dataset: Dataset,
    data: DataRef,
    learner: ElasticLearner,
}

impl Ready {
    /// Resolves the recipe on its data and makes everything that a step needs.
    fn new(args: &Pretrain, mut recipe: ElasticRecipe, start: Option<&Start>) -> Result<Self, Failure> {
        let machine = Machine::new(&args.compute.device, args.compute.threads)?;
        // Numbers that cannot work are told before minutes are spent on the data.
        recipe.clone().resolve(None, machine.threads)?;
        let dataset = open_data(&recipe)?;
        recipe.data.path = dataset.path.display().to_string();
        if let Some(test) = test_path(&recipe) {
            recipe.data.test_path = std::path::absolute(test)
                .context("data.test_path")?
                .display()
                .to_string();
        }
        recipe.data.fingerprint = Auto::Value(dataset.fingerprint.clone());
        recipe.resolve(Some(&facts(&dataset)?), machine.threads)?;
        let open = recipe::unresolved(&recipe);
        if !open.is_empty() {
            let open = format!("values could not be worked out: {}", open.join(", "));
            return Err(Failure::input(open, "give them in the recipe"));
        }
        if machine.name == "cpu" {
            check_memory(&recipe)?;
        }
        let data = data_ref(&recipe, &dataset)?;
        let probe = probe_images(&recipe, &dataset, &data)?;
        let train_on = dataset.splits.train.clone();
        let mut learner = ElasticLearner::new(&recipe, Arc::clone(&dataset.source), train_on, probe, &machine.device)?;
        if let Some(start) = start {
            learner.start_from(&start.weights(&recipe, &machine.device)?)?;
        }
        Ok(Self {
            machine,
            recipe,
            dataset,
            data,
            learner,
        })
    }
}

/// Trains and writes the family.
fn go(args: &Pretrain, ready: Ready, run: &RunFolder) -> Result<Exit, Failure> {
    let Ready {
        machine,
        recipe,
        dataset,
        data,
        mut learner,
    } = ready;
    let text = recipe::to_toml(&recipe)?;
    run.write_text("recipe.toml", &text)?;
    announce(&recipe, &dataset, run.path());
    watch_interrupts();
    STOP.store(false, Ordering::Relaxed);
    let clock = ProcessClock::start();
    let recipe_hash = blake3::hash(text.as_bytes()).to_hex();
    let context = trainer::Context {
        run,
        cadence: &recipe.cadence(),
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
    summarise(&observer.inner, &learner, clock.elapsed());
    match outcome {
        Outcome::Interrupted(done) => {
            complain(&format!("stopped after step {done}; everything is saved. Go on with:"));
            complain(&format!("  offshoot pretrain --resume {}", run.path().display()));
            let asked = args.stop_after.is_some_and(|after| done >= after);
            Ok(if asked { Exit::Done } else { Exit::Interrupted })
        }
        Outcome::Finished => {
            let space = recipe.space()?;
            let catalog = family::write(
                run.path(),
                learner.network(),
                &learner.parent(),
                &space,
                recipe.space.alpha,
                data,
                recipe.seed,
            )?;
            finished(&catalog, run.path())?;
            Ok(Exit::Done)
        }
    }
}

fn announce(recipe: &ElasticRecipe, dataset: &Dataset, run: &Path) {
    let splits = &dataset.splits;
    let (train, val, test) = (splits.train.len(), splits.val.len(), splits.test.len());
    complain(&format!(
        "{} images: {train} to train on, {val} to choose by, {test} to judge by",
        dataset.source.len()
    ));
    let children = recipe.space().map_or(0, |space| space.count());
    complain(&format!(
        "{} steps of {} images for {children} children; run folder {}",
        recipe.steps(),
        recipe.train.batch,
        run.display()
    ));
}

/// Says where the time went and what could not be read.
fn summarise(progress: &TrainingProgress, learner: &ElasticLearner, elapsed: Duration) {
    let (steps, waited) = (progress.totals.0.as_secs_f64(), progress.totals.1.as_secs_f64());
    let share = 100.0 * waited / steps.max(1e-9);
    complain(&format!(
        "trained for {}; {share:.1} % of it waiting for data",
        duration(elapsed.as_secs_f64())
    ));
    images::tell_damaged(&learner.damaged(), "replaced by others");
    if progress.skipped > 0 {
        complain(&format!("{} updates were skipped", progress.skipped));
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

fn data_ref(recipe: &ElasticRecipe, dataset: &Dataset) -> Result<DataRef, Failure> {
    let preprocessing = recipe
        .preprocessing()
        .context("a resolved recipe says how images are prepared")?;
    Ok(DataRef {
        path: recipe.data.path.clone(),
        test_path: test_path(recipe).map(str::to_owned),
        labels: recipe.data.labels,
        fingerprint: dataset.fingerprint.clone(),
        split_seed: recipe.seed,
        val: recipe.data.val,
        test: recipe.data.test,
        preprocessing,
    })
}

/// The images that probes during training look at: val, never test.
fn probe_images(recipe: &ElasticRecipe, dataset: &Dataset, data: &DataRef) -> Result<ProbeImages, Failure> {
    let prepare =
        |indices: &[usize], limit| Prepared::new(dataset, &images::at_most(indices, limit), &data.preprocessing);
    let queries = prepare(&dataset.splits.val, recipe.probe.queries)?;
    let references = recipe
        .data
        .labels
        .then(|| prepare(&dataset.splits.train, recipe.probe.references))
        .transpose()?;
    let all = references.iter().chain([&queries]);
    let damaged: Vec<_> = all.flat_map(|prepared| prepared.damaged.iter().cloned()).collect();
    let (limit, of) = (recipe.data.max_damaged, dataset.source.len());
    if damaged.len() as f64 > limit * of as f64 {
        let first = damaged
            .iter()
            .take(5)
            .map(|(name, reason)| format!("{name} ({reason})"))
            .collect();
        return Err(DataError::TooManyDamaged {
            damaged: damaged.len(),
            of,
            limit,
            first,
        }
        .into());
    }
    images::tell_damaged(&damaged, "left out of the probes");
    Ok(ProbeImages {
        references,
        queries,
        classes: dataset.source.classes().len(),
    })
}

fn check_memory(recipe: &ElasticRecipe) -> Result<(), Failure> {
    let needed = cost::of_recipe(recipe)?.bytes();
    if let Some(free) = available_memory().filter(|&free| needed > free as f64) {
        return Err(Failure::input(
            format!(
                "a step needs about {} of memory, and {} are free",
                short(needed, "B"),
                short(free as f64, "B")
            ),
            "lower `train.batch`, the crops or the prototypes, or use a machine with more memory",
        ));
    }
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

    fn saved(&mut self, done: u64) {
        self.inner.saved(done);
    }

    fn noted(&mut self, text: &str) {
        self.inner.noted(text);
    }
}

/// Prints what a run would be, do and cost. No model is allocated.
fn dry_run(mut recipe: ElasticRecipe, rate: f64) -> Result<(), Failure> {
    if !(rate.is_finite() && rate > 0.0) {
        return Err(Failure::input(
            format!("--rate {rate} is no rate"),
            "give TFLOP/s above 0, such as 100",
        ));
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut known = None;
    if Path::new(&recipe.data.path).exists() && !recipe.data.path.is_empty() {
        known = Some(facts(&open_data(&recipe)?)?);
    }
    recipe.resolve(known.as_ref(), cores)?;
    let network = recipe.network()?;
    let heads = recipe.projection_heads(network.as_ref());
    let space = recipe.space()?;
    let sampler = Sampler::new(
        &space,
        &network.sampling_groups(&space),
        recipe.space.sampling_scale,
        recipe.seed,
    )?;
    let mut lines = vec![format!("{} sub-networks (cycle {})", space.count(), sampler.cycle())];
    let mut shown = vec![space.smallest(), space.middle(), space.intact()];
    shown.dedup();
    for shape in &shown {
        let child = offshoot_zoo::open(&network.child(shape, "")?.child)?;
        let name = child.familiar_name().map_or(String::new(), |n| format!(" ({n})"));
        let parameters = thousands(spec::parameters(&child.specs()));
        let macs = short(child.macs(child.image().1) as f64, "");
        lines.push(format!(
            "  {shape}{name}: {parameters} parameters, {macs} multiply-adds"
        ));
    }
    for named in space.iter() {
        let child = offshoot_zoo::open(&network.child(&named, "")?.child)?;
        if let (Some(name), false) = (child.familiar_name(), shown.contains(&named)) {
            lines.push(format!(
                "  {named} ({name}): {} parameters",
                thousands(spec::parameters(&child.specs()))
            ));
        }
    }
    lines.push(format!(
        "{} parameters in the heads",
        thousands(spec::parameters(&heads.specs()))
    ));
    schedule_lines(&recipe, &mut lines);
    let cost = cost::of_recipe(&recipe)?;
    lines.push(format!("{:.3e} FLOPs a step", cost.flops));
    lines.push(format!(
        "{} of memory a step without recomputation: {} of weights, averages, moments and gradients, {} of activations",
        short(cost.bytes(), "B"),
        short(cost.state_bytes, "B"),
        short(cost.activation_bytes, "B")
    ));
    let steps = recipe.steps();
    if steps > 0 {
        let hours = cost.flops * steps as f64 / (rate * 1e12) / 3600.0;
        lines.push(format!("{steps} steps: {hours:.1} hours at {rate} TFLOP/s (--rate)"));
    }
    let open = recipe::unresolved(&recipe);
    if !open.is_empty() {
        lines.push(format!(
            "worked out from the data before the first step: {}",
            open.join(", ")
        ));
    }
    say(&lines.join("\n"))?;
    Ok(())
}

/// The schedules at the iterations where something happens.
fn schedule_lines(recipe: &ElasticRecipe, lines: &mut Vec<String>) {
    let (schedules, steps) = (recipe.schedules(), recipe.steps());
    if steps == 0 {
        lines.push("schedules: unknown until the length of an epoch is (train.steps_per_epoch)".into());
        return;
    }
    let warm_ups = [schedules.learning_rate.warmup, schedules.teacher_temperature.warmup];
    let mut at: Vec<u64> = warm_ups.iter().flat_map(|&w| [w / 2, w.saturating_sub(1), w]).collect();
    // Round numbers on the way: a power of ten of which at least two fit.
    let round = 10u64.pow(steps.ilog10());
    let round = if steps / round >= 2 {
        round
    } else {
        (round / 10).max(1) * 5
    };
    at.extend((1..=steps / round).map(|i| i * round));
    at.extend([0, steps - 1]);
    at.retain(|&i| i < steps);
    at.sort_unstable();
    at.dedup();
    lines.push("iteration  learning rate  weight decay  momentum  teacher temperature".into());
    for i in at {
        lines.push(format!(
            "{i:>9}  {:>13.5e}  {:>12.6}  {:>8.6}  {:>19.7}",
            schedules.learning_rate.at(i),
            schedules.weight_decay.at(i),
            schedules.momentum.at(i),
            schedules.teacher_temperature.at(i)
        ));
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
