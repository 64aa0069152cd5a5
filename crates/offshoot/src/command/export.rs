//! `offshoot export`: children as ordinary folders, streamed from file to file; the only way out.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use offshoot_data::Prepared;
use offshoot_family::files::write_atomic;
use offshoot_family::{Catalog, Child, Split, View};
use offshoot_report::{CardFacts, OpenedBy};
use offshoot_zoo::layout::{self, Program};
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::tensor::{Device, Tensor, TensorData};
use offshoot_zoo::{Backbone, Checkpoint, CheckpointError, Preparation, Weights, checkpoint, gguf, network, onnx};

use super::images::{self, Family};
use crate::args::{Export, Format, Stored};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::terminal::{complain, say};

/// Images that a folder is checked with.
const CHECKED: usize = 64;
/// Largest difference of a feature between the family's child and the folder read back.
const TOLERANCE: f32 = 1e-5;

/// Runs the command.
pub fn run(args: &Export) -> Result<(), Failure> {
    if args.check && args.format == Format::Onnx {
        return Err(Failure::input(
            "`--check` cannot read ONNX models: offshoot writes them and has nothing that runs them",
            "leave it out, and compare with onnxruntime by interop/check_onnx.py; or export with `--format hf --check`",
        ));
    }
    let catalog = Catalog::open(&args.run)?;
    if args.check && catalog.data.text().is_some() {
        return Err(Failure::input(
            "`--check` compares features of held-out images, and this is a family of language models",
            "leave it out, and score what was written: offshoot eval perplexity FOLDER --data NAME=PATH",
        ));
    }
    if args.check {
        images::given(&catalog.data)?;
    }
    let children = children(args, &catalog)?;
    let several = args.what.all || args.what.pareto;
    let target = |child: &Child| {
        if several {
            args.out.join(&child.id)
        } else {
            args.out.clone()
        }
    };
    for child in &children {
        let folder = target(child);
        refuse_parent(&folder, &args.run.join(&catalog.parent.path))?;
        refuse_used(&folder, args.overwrite)?;
    }
    let parent = images::checked_parent(&args.run, &catalog)?;
    let preparation = images::preparation(&args.run, &catalog)?;
    let tokenizer = match &preparation {
        Preparation::Text(tokenizer) => Some(tokenizer),
        Preparation::Images(_) if args.format == Format::Gguf => {
            return Err(Failure::input(
                "GGUF files are of language models here, and this is a family of networks of images",
                "export with `--format hf` or `--format onnx`",
            ));
        }
        Preparation::Images(_) => None,
    };
    let mut progress = Progress::new("export", 0, children.len() as u64, "children");
    for (done, child) in children.iter().enumerate() {
        let folder = target(child);
        let view = images::view(&args.run, &catalog, child)?;
        match args.format {
            Format::Hf | Format::Timm => parent.export_child(&view, program(args.format), &preparation, &folder)?,
            Format::Onnx => {
                let about = onnx::About {
                    id: &child.id,
                    parent: &catalog.parent.hash,
                    preparation: &preparation,
                };
                onnx::export(&parent, &view, &about, &folder, onnx::EMBEDDED)?;
            }
            Format::Gguf => {
                let tokenizer = tokenizer.context("a language model has a tokenizer")?;
                let notes = gguf::export(&parent, &view, tokenizer, (&child.id, stored(args.stored)), &folder)?;
                notes.iter().for_each(|note| complain(&format!("note: {note}")));
            }
        }
        // Last: beside a model that could not be written there is no card of one.
        write_card(&folder, &catalog, child, &view, args.format)?;
        if several {
            progress.at(done as u64 + 1, &child.id);
        }
    }
    progress.finish();
    for child in children.iter().take(if several { 0 } else { 1 }) {
        let folder = target(child);
        let bytes = match args.format {
            Format::Hf | Format::Timm => size(&folder.join(checkpoint::WEIGHTS))?,
            Format::Gguf => size(&folder.join(gguf::MODEL))?,
            Format::Onnx => {
                let data = folder.join(onnx::DATA);
                let beside = if data.exists() { size(&data)? } else { 0 };
                size(&folder.join(onnx::MODEL))? + beside
            }
        };
        say(&format!(
            "wrote {} to {} ({bytes} bytes of weights)",
            child.id,
            folder.display()
        ))?;
    }
    if several {
        let (n, noun) = (children.len(), if children.len() == 1 { "child" } else { "children" });
        say(&format!("wrote {n} {noun} to {}", args.out.display()))?;
    }
    if args.check {
        let machine = Machine::new(&args.compute.device, args.compute.threads)?;
        let worst = check(&args.run, &children, target, &machine.device)?;
        say(&format!(
            "read back: features differ by at most {worst:.1e} on held-out images"
        ))?;
    }
    Ok(())
}

/// The children that were asked for.
fn children<'a>(args: &Export, catalog: &'a Catalog) -> Result<Vec<&'a Child>, Failure> {
    let what = &args.what;
    if what.all {
        return Ok(catalog.children.iter().collect());
    }
    if what.pareto {
        let front = catalog.pareto(|c| Some(c.parameters as f64), |c| c.merit(&catalog.score, Split::Val));
        if front.is_empty() {
            images::given(&catalog.data)?;
            let verb = catalog.score.split('@').next().unwrap_or_default();
            let hint = format!("measure first: offshoot eval {verb} {}", args.run.display());
            return Err(Failure::input(
                format!("no child was measured by {} on val", catalog.score),
                hint,
            ));
        }
        return Ok(front);
    }
    if let (Some(size), Some(space)) = (&what.size, &catalog.space) {
        let shape = space
            .parse(size)
            .map_err(|e| Failure::input(e, "`offshoot family RUN` lists all children"))?;
        return Ok(vec![catalog.child(&shape.id())?]);
    }
    let wanted = what.size.as_ref().or(what.name.as_ref()).or(what.child.as_ref());
    Ok(vec![catalog.child(wanted.map_or("", String::as_str))?])
}

fn refuse_used(folder: &Path, overwrite: bool) -> Result<(), Failure> {
    let used = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if used && !overwrite {
        return Err(Failure::input(
            format!("{} is not empty", folder.display()),
            "choose another folder, or replace what is there by `--overwrite`",
        ));
    }
    Ok(())
}

/// The parent is what every child is cut from: no child is ever written over it.
fn refuse_parent(folder: &Path, parent: &Path) -> Result<(), Failure> {
    let same = std::fs::canonicalize(folder).is_ok_and(|f| std::fs::canonicalize(parent).is_ok_and(|p| f == p));
    if same {
        return Err(Failure::input(
            format!("{} is the family's parent", folder.display()),
            "choose another folder",
        ));
    }
    Ok(())
}

/// Bytes of a file that was just written.
fn size(path: &Path) -> anyhow::Result<u64> {
    let found = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(found.len())
}

/// Whom the folders are for.
fn program(format: Format) -> Program {
    match format {
        Format::Timm => Program::Timm,
        Format::Hf | Format::Onnx | Format::Gguf => Program::Usual,
    }
}

fn stored(how: Stored) -> gguf::TensorType {
    match how {
        Stored::F32 => gguf::TensorType::F32,
        Stored::F16 => gguf::TensorType::F16,
        Stored::Q8 => gguf::TensorType::Q8_0,
    }
}

fn write_card(folder: &Path, catalog: &Catalog, child: &Child, view: &View, format: Format) -> Result<(), Failure> {
    let network = offshoot_zoo::open(&view.child).map_err(CheckpointError::from)?;
    let layout = layout::of(network.as_ref(), program(format)).map_err(CheckpointError::from)?;
    let usage = layout.usage;
    let python = usage.python(&child.id);
    let facts = CardFacts {
        task: usage.task,
        features: usage.features,
        opened_by: match format {
            Format::Hf | Format::Timm => OpenedBy::Library {
                name: usage.library,
                python: &python,
            },
            Format::Onnx => OpenedBy::Onnx,
            Format::Gguf => OpenedBy::Gguf { file: gguf::MODEL },
        },
    };
    let card = offshoot_report::model_card(catalog, child, &facts);
    let path = folder.join("README.md");
    write_atomic(&path, |w: &mut dyn Write| w.write_all(card.as_bytes()))
        .with_context(|| path.display().to_string())?;
    Ok(())
}

/// Reads every folder back and compares its features with the family's child; the largest difference.
fn check(run: &Path, children: &[&Child], target: impl Fn(&Child) -> PathBuf, device: &Device) -> Result<f32, Failure> {
    let family = Family::open(run, device)?;
    let data = images::of(&family.catalog.data)?;
    let dataset = images::open(&family.catalog.data)?;
    let held_out = images::at_most(&dataset.splits.val, CHECKED);
    let prepared = Prepared::new(&dataset, &held_out, &data.preprocessing)?;
    let mut worst = 0.0;
    for child in children {
        let (network, weights) = family.child(run, child)?;
        let folder = target(child);
        let back = Checkpoint::open(&folder)?;
        let back_weights = back.weights(device)?;
        for batch in prepared.batches() {
            let (values, images) = batch?;
            let ours = features(network::backbone(network.as_ref())?, &weights, &values, images, device);
            let theirs = features(back.backbone()?, &back_weights, &values, images, device);
            let difference = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            if difference.is_nan() || difference > TOLERANCE {
                return Err(Failure::input(
                    format!(
                        "{}: features differ by {difference:e} from the family's",
                        folder.display()
                    ),
                    "the folder was changed, or the disk is failing: export it again",
                ));
            }
            worst = f32::max(worst, difference);
        }
    }
    Ok(worst)
}

/// Class-token features of one batch.
fn features(network: &dyn Backbone, weights: &Weights, values: &[f32], images: usize, device: &Device) -> Vec<f32> {
    let (channels, _) = network.image();
    let side = (values.len() / (images * channels).max(1)).isqrt();
    let data = TensorData::new(values.to_vec(), [images, channels, side, side]);
    let features = network.forward(weights, Tensor::from_data(data, device), None, &mut KeepAll);
    features.cls.into_data().try_to_vec().unwrap_or_default()
}
