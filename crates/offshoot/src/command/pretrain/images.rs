//! Pre-training of networks of images: from a recipe and images to what the loop needs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use offshoot_data::{DataError, Dataset, Prepared, SplitShares};
use offshoot_family::Catalog;
use offshoot_family::catalog::{DataRef, ImagesRef};
use offshoot_family::recipe::{self, Auto};
use offshoot_methods::elastic::cost;
use offshoot_methods::elastic::pretrain::{ElasticLearner, ProbeImages};
use offshoot_methods::elastic::recipe::{DataFacts, ElasticRecipe};
use offshoot_methods::elastic::sampling::Sampler;
use offshoot_methods::family::{self, Made};
use offshoot_methods::train::run::RunFolder;
use offshoot_zoo::{Preparation, spec};

use super::{Ready, thousands};
use crate::args::Pretrain;
use crate::command::family::short;
use crate::command::images;
use crate::command::init::Start;
use crate::failure::{Exit, Failure};
use crate::machine::Machine;
use crate::terminal::say;

/// A new run of the recipe at `path`.
///
/// # Errors
/// If the recipe, the model that it starts from, or the images cannot be used.
pub fn run(args: &Pretrain, path: &Path, overrides: &[String]) -> Result<Exit, Failure> {
    let (recipe, start) = new_recipe(args, path, overrides)?;
    if args.dry_run {
        dry_run(recipe, args.rate)?;
        return Ok(Exit::Done);
    }
    let data = [recipe.data.path.as_str()].into_iter().chain(test_path(&recipe));
    let data = data.filter(|path| !path.is_empty()).map(PathBuf::from);
    let inputs: Vec<PathBuf> = super::initial(&recipe.init.path).chain(data).collect();
    super::launch(
        args,
        &inputs,
        || ready(args, recipe, start.as_ref()),
        |ready, _| Ok(ready),
    )
}

/// The run in `run` again.
///
/// # Errors
/// If it cannot go on.
pub fn resume(args: &Pretrain, run: &RunFolder) -> Result<Exit, Failure> {
    let recipe: ElasticRecipe = read_recipe(&run.path().join("recipe.toml"), &[])?;
    // Later its weights are in the checkpoints.
    let unsaved = offshoot_methods::train::state::list(&run.checkpoints()).is_empty();
    let start = (unsaved && !recipe.init.path.is_empty())
        .then(|| Start::again(&recipe.init))
        .transpose()?;
    super::go(args, ready(args, recipe, start.as_ref())?, run)
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
                format!("{origin}: `parent.family`: there is no architecture `{family}` for images"),
                format!("there are {known}; a decoder is trained by `method = \"language\"`"),
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

/// Resolves a recipe on its data and makes everything that a step needs.
fn ready(args: &Pretrain, mut recipe: ElasticRecipe, start: Option<&Start>) -> Result<Ready<ElasticLearner>, Failure> {
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
    super::refuse_open(&recipe)?;
    if machine.name == "cpu" {
        let hint = "lower `train.batch`, the crops or the prototypes, or use a machine with more memory";
        super::check_memory(cost::of_recipe(&recipe)?.bytes(), hint)?;
    }
    let data = images_ref(&recipe, &dataset)?;
    let probe = probe_images(&recipe, &dataset, &data)?;
    let train_on = dataset.splits.train.clone();
    let mut learner = ElasticLearner::new(&recipe, Arc::clone(&dataset.source), train_on, probe, &machine.device)?;
    if let Some(start) = start {
        learner.start_from(&start.weights(&recipe, &machine.device)?)?;
    }
    Ok(Ready {
        machine,
        recipe: recipe::to_toml(&recipe)?,
        cadence: recipe.cadence(),
        announcement: announcement(&recipe, &dataset),
        learner,
        family: Box::new(move |learner: &ElasticLearner, run: &RunFolder| write(&recipe, data, learner, run)),
        tell: |learner| images::tell_damaged(&learner.damaged(), "replaced by others"),
    })
}

/// Writes the family of a finished run.
fn write(
    recipe: &ElasticRecipe,
    data: ImagesRef,
    learner: &ElasticLearner,
    run: &RunFolder,
) -> Result<Catalog, Failure> {
    let preparation = Preparation::Images(data.preprocessing.clone());
    let made = Made {
        method: "elastic",
        space: &recipe.space()?,
        alpha: recipe.space.alpha,
        data: DataRef::Images(data),
        seed: recipe.seed,
        cost: None,
    };
    Ok(family::write(
        run.path(),
        learner.network(),
        &learner.parent(),
        &preparation,
        made,
    )?)
}

fn announcement(recipe: &ElasticRecipe, dataset: &Dataset) -> Vec<String> {
    let splits = &dataset.splits;
    let (train, val, test) = (splits.train.len(), splits.val.len(), splits.test.len());
    let children = recipe.space().map_or(0, |space| space.count());
    vec![
        format!(
            "{} images: {train} to train on, {val} to choose by, {test} to judge by",
            dataset.source.len()
        ),
        format!(
            "{} steps of {} images for {children} children",
            recipe.steps(),
            recipe.train.batch
        ),
    ]
}

fn images_ref(recipe: &ElasticRecipe, dataset: &Dataset) -> Result<ImagesRef, Failure> {
    let preprocessing = recipe
        .preprocessing()
        .context("a resolved recipe says how images are prepared")?;
    Ok(ImagesRef {
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
fn probe_images(recipe: &ElasticRecipe, dataset: &Dataset, data: &ImagesRef) -> Result<ProbeImages, Failure> {
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

/// Prints what a run would be, do and cost. No model is allocated.
fn dry_run(mut recipe: ElasticRecipe, rate: f64) -> Result<(), Failure> {
    super::check_rate(rate)?;
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
        let macs = short(child.example_macs() as f64, "");
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
