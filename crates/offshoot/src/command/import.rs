//! `offshoot import`: a model of others, checked, and made a run with one child.

use std::path::{Path, PathBuf};

use offshoot_data::SplitShares;
use offshoot_family::architecture::LARGEST_IMAGE;
use offshoot_family::catalog::{DataRef, ImagesRef, Preprocessing, TextRef};
use offshoot_family::{Architecture, recipe};
use offshoot_methods::elastic::recipe::usual_resize;
use offshoot_methods::family::{self, Made};
use offshoot_methods::train::run::RunFolder;
use offshoot_zoo::import::{self, Import as Model};
use offshoot_zoo::network::SpaceBounds;
use offshoot_zoo::{Preparation, TokenizerFiles, network, spec};
use serde::Serialize;

use super::images;
use super::pretrain::thousands;
use super::text;
use crate::args::Import;
use crate::failure::Failure;
use crate::terminal::say;

/// Ignored tensors of one reason that are named.
const NAMED: usize = 2;

/// What is kept of how a run was made: `recipe.toml`.
#[derive(Serialize)]
struct ImportRecipe {
    method: &'static str,
    path: String,
    origin: String,
    weights: String,
}

/// Runs the command.
pub fn run(args: &Import) -> Result<(), Failure> {
    let mut model = import::open(&args.path, args.arch.as_deref())?;
    if let Some(px) = args.px {
        set_side(&mut model, px)?;
    }
    set_values(&mut model, args)?;
    if let Preparation::Text(tokenizer) = &model.preparation {
        let decoder = network::decoder(model.checkpoint.network())?.decoder();
        text::tokenizer(tokenizer, &args.path, decoder.vocabulary)?;
    }
    tell(&model)?;
    let Some(out) = &args.out else {
        say("it fits: add `-o DIR` to make a run of it")?;
        return Ok(());
    };
    // What is in the folder is only taken away for a run that can be made.
    let data = match &model.preparation {
        Preparation::Images(how) => DataRef::Images(images_ref(args, how.clone())?),
        Preparation::Text(tokenizer) => DataRef::Text(text_ref(args, &model, tokenizer)?),
    };
    let space = model.network()?.space(SpaceBounds::default())?;
    let weights = model.checkpoint.hash()?;
    let inputs: Vec<PathBuf> = [&args.path].into_iter().chain(&args.data).cloned().collect();
    let run = RunFolder::create(out, args.overwrite, &inputs)?;
    let made = ImportRecipe {
        method: "import",
        path: absolute(&args.path),
        origin: model.origin.clone(),
        weights,
    };
    run.write_text("recipe.toml", &recipe::to_toml(&made)?)?;
    model.save(&run.path().join("parent"))?;
    let unscored = !data.is_given();
    let made = Made {
        method: "import",
        space: &space,
        alpha: true,
        data,
        seed: args.seed,
        cost: None,
    };
    let catalog = family::enter(run.path(), made)?;
    let (run, score) = (
        run.path().display(),
        catalog.score.split('@').next().unwrap_or_default(),
    );
    say(&format!("wrote {run}: {} as the only child", catalog.children[0].id))?;
    let text = matches!(model.preparation, Preparation::Text(_));
    say(&if text {
        format!(
            "next: offshoot eval perplexity {run} --data NAME=PATH; offshoot generate {run} --prompt TEXT; \
             offshoot pretrain RECIPE --init {run} --out DIR, with a recipe such as recipes/continue-lm.toml"
        )
    } else if unscored {
        format!(
            "next: offshoot pretrain RECIPE --init {run} --out DIR, with a recipe such as recipes/continue.toml; with --data PATH it could be \
             scored, too"
        )
    } else {
        format!(
            "next: offshoot eval {score} {run}; offshoot pretrain RECIPE --init {run} --out DIR, with a recipe such as recipes/continue.toml"
        )
    })?;
    Ok(())
}

/// The path from the root; as it was given where the system does not tell.
pub fn absolute(path: &Path) -> String {
    std::path::absolute(path)
        .unwrap_or_else(|_| path.to_owned())
        .display()
        .to_string()
}

/// Images of another side.
fn set_side(model: &mut Model, px: u32) -> Result<(), Failure> {
    let (stride, most) = (model.checkpoint.backbone()?.stride() as u32, LARGEST_IMAGE as u32);
    if px > most {
        return Err(Failure::input(
            format!("--px {px} is too large"),
            format!("images have at most {most} pixels on a side"),
        ));
    }
    if px == 0 || !px.is_multiple_of(stride) {
        let below = (px / stride).max(1) * stride;
        return Err(Failure::input(
            format!("--px {px} is no multiple of {stride}"),
            format!("the nearest are {below} and {}", below + stride),
        ));
    }
    model.set_side(px)?;
    Ok(())
}

/// Another mean and deviation.
fn set_values(model: &mut Model, args: &Import) -> Result<(), Failure> {
    if args.mean.is_none() && args.std.is_none() {
        return Ok(());
    }
    let how = model.preprocessing_mut()?;
    let channels = usize::from(how.channels);
    let given = [
        ("--mean", &args.mean, &mut how.mean),
        ("--std", &args.std, &mut how.std),
    ];
    for (option, values, place) in given {
        let Some(values) = values else { continue };
        let good = |v: &f32| v.is_finite() && (option != "--std" || *v > 0.0);
        if ![1, channels].contains(&values.len()) || !values.iter().all(good) {
            return Err(Failure::input(
                format!("{option} {values:?} is not one number for each of {channels} channels"),
                "they are those of values in 0..1, with commas: 0.485,0.456,0.406",
            ));
        }
        *place = values.iter().copied().cycle().take(channels).collect();
    }
    Ok(())
}

/// Says what the model is, and what of the file is not used.
fn tell(model: &Model) -> Result<(), Failure> {
    let network = model.checkpoint.network();
    let architecture = network.architecture();
    say(&format!("{}: {}", model.origin, architecture.summary()))?;
    say(&format!("  {}", numbers(&architecture)))?;
    let parameters = thousands(spec::parameters(&network.specs()));
    match &model.preparation {
        Preparation::Images(how) => {
            let (channels, side) = architecture.input();
            let classes = match architecture.classes() {
                0 => "no classifier".into(),
                n => format!("{n} classes"),
            };
            say(&format!(
                "  {parameters} parameters; images of {channels} x {side} x {side}; {classes}"
            ))?;
            say(&format!(
                "  images: shorter side to {}, centre of {}, mean {:?}, deviation {:?} of values in 0..1",
                how.resize, how.crop, how.mean, how.std
            ))?;
        }
        Preparation::Text(tokenizer) => {
            let token = |id: Option<u32>| id.map_or("none".into(), |id| id.to_string());
            say(&format!(
                "  {parameters} parameters; a text begins with token {}, ends with {}",
                token(tokenizer.bos),
                token(tokenizer.eos)
            ))?;
        }
    }
    let mut told: Vec<&str> = Vec::new();
    for (_, why) in &model.ignored {
        if told.contains(why) {
            continue;
        }
        told.push(why);
        let names: Vec<&str> = (model.ignored.iter())
            .filter(|(_, other)| other == why)
            .map(|(name, _)| name.as_str())
            .collect();
        let shown = names.iter().take(NAMED).map(|n| format!("`{n}`")).collect::<Vec<_>>();
        let more = match names.len() - shown.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        say(&format!("  ignored ({why}): {}{more}", shown.join(", ")))?;
    }
    for note in &model.notes {
        say(&format!("  note: {note}"))?;
    }
    Ok(())
}

/// Every number of an architecture, as recipes have them.
fn numbers(architecture: &Architecture) -> String {
    let value = serde_json::to_value(architecture).unwrap_or_default();
    let all = value.as_object().into_iter().flatten();
    let shown = all.map(|(key, value)| match value.as_str() {
        Some(word) => format!("{key} {word}"),
        None => format!("{key} {value}"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// The images to score on; a reference to none without.
fn images_ref(args: &Import, preprocessing: Preprocessing) -> Result<ImagesRef, Failure> {
    let mut preprocessing = preprocessing;
    let (path, fingerprint) = match &args.data {
        None => (String::new(), String::new()),
        Some(path) => {
            let shares = SplitShares {
                val: args.val,
                test: args.test,
            };
            let dataset = images::open_split(&path.display().to_string(), None, args.labels, args.seed, shares)?;
            // Of another side than its own, the model is given images as a run on this data would.
            if let Some(px) = args.px {
                preprocessing.resize = usual_resize(dataset.measure()?.side, px);
            }
            (dataset.path.display().to_string(), dataset.fingerprint)
        }
    };
    Ok(ImagesRef {
        path,
        test_path: None,
        labels: args.labels,
        fingerprint,
        split_seed: args.seed,
        val: args.val,
        test: args.test,
        preprocessing,
    })
}

/// An imported language model is scored on text that is named when it is.
fn text_ref(args: &Import, model: &Model, tokenizer: &TokenizerFiles) -> Result<TextRef, Failure> {
    if args.data.is_some() {
        return Err(Failure::input(
            "--data is for images here, and this is a language model",
            "import it without, and name the text when it is scored: offshoot eval perplexity RUN --data NAME=PATH",
        ));
    }
    let decoder = network::decoder(model.checkpoint.network())?.decoder();
    Ok(TextRef {
        corpus: String::new(),
        domains: Vec::new(),
        fingerprint: String::new(),
        tokenizer: blake3::hash(tokenizer.json()).to_hex().to_string(),
        split_seed: args.seed,
        val: args.val,
        test: args.test,
        context: decoder.context,
    })
}
