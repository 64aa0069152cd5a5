//! `offshoot bench features`: seconds in which a child turns made-up images into features, as one line of JSON.
//!
//! The work is that of `benches/rivals/features.py`: class tokens and means of patch tokens of the same images by the same weights.

use std::path::Path;
use std::time::Instant;

use offshoot_eval::{ChildFeatures, EvalError, extract};
use offshoot_family::Architecture;
use offshoot_family::catalog::Preprocessing;
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{Backbone, Checkpoint, Preparation, Weight, Weights, checkpoint};
use serde_json::json;

use super::{Seconds, at_least_one, fits, noise, vit};
use crate::args::{BenchFeatures, Model};
use crate::failure::Failure;
use crate::machine::{Machine, peak_rss_mib};
use crate::terminal::say;

/// LayerScale of fresh models: at its usual start, 1e-5, the checksum would not see what the blocks compute.
const LAYER_SCALE: f32 = 0.5;

/// Runs the command.
pub fn run(args: &BenchFeatures) -> Result<(), Failure> {
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    for (option, value, one) in [
        ("--images", args.images, "image"),
        ("--batch", args.batch, "image"),
        ("--passes", args.passes, "pass"),
    ] {
        at_least_one(option, value, one)?;
    }
    let (name, network, weights) = subject(args, &machine.device)?;
    let (channels, side) = network.image();
    let pixels = channels * side * side;
    let numbers = args.images as f64 * (pixels + 2 * network.feature().size) as f64;
    fits(
        &format!("{name} with {} images", args.images),
        4.0 * numbers,
        "fewer --images",
    )?;
    let images: Vec<f32> = (0..args.images * pixels).map(noise).collect();
    let run = |batches: usize| {
        let batches = images.chunks(args.batch.saturating_mul(pixels)).take(batches);
        let batches = batches.map(|batch| Ok::<_, EvalError>((batch.to_vec(), batch.len() / pixels)));
        extract(
            network.as_ref(),
            &weights,
            &machine.device,
            batches,
            (channels, side),
            &mut |_| {},
        )
    };
    run(args.warmup)?;
    let (mut seconds, mut sum) = (Vec::with_capacity(args.passes), f64::NAN);
    for _ in 0..args.passes {
        let began = Instant::now();
        let features = run(usize::MAX)?;
        seconds.push(began.elapsed().as_secs_f64());
        sum = checksum(&features);
    }
    let seconds = Seconds::new(seconds);
    let line = json!({
        "model": name,
        "version": env!("CARGO_PKG_VERSION"),
        "device": machine.name,
        "threads": machine.threads,
        "dtype": "fp32",
        "images": args.images,
        "batch": args.batch,
        "passes": seconds.count(),
        "images_per_s": (args.images as f64 / seconds.median() * 1e2).round() / 1e2,
        "median_s": seconds.median(),
        "min_s": seconds.min(),
        "peak_rss_mib": peak_rss_mib(),
        "checksum": sum,
        "flops": 2.0 * args.images as f64 * network.macs(side) as f64,
    });
    say(&line.to_string())?;
    Ok(())
}

/// The model to time and its name: a folder, or a fresh one, saved if that was asked for.
fn subject(args: &BenchFeatures, device: &Device) -> Result<(String, Box<dyn Backbone>, Weights), Failure> {
    if let Some(folder) = &args.subject.child {
        let checkpoint = Checkpoint::open(folder)?;
        let network = offshoot_zoo::backbone(&checkpoint.network().architecture())?;
        return Ok((folder.display().to_string(), network, checkpoint.weights(device)?));
    }
    let case = args.subject.case.expect("clap asks for a folder or a case");
    let (name, numbers, image) = match case {
        Model::CpuS => ("cpu-s", (192, 6, 32, 4), 32),
        Model::CpuM => ("cpu-m", (384, 12, 64, 4), 32),
        Model::VitS16 => ("vit-s16", (384, 12, 64, 16), 224),
    };
    let network = offshoot_zoo::backbone(&Architecture::Vit(vit(numbers, image, 0.0)))?;
    let mut weights = offshoot_zoo::initialise(&network.specs(), 0, device);
    for spec in network.specs().iter().filter(|spec| spec.name.ends_with(".gamma")) {
        let values = vec![LAYER_SCALE; spec.elements()];
        weights.insert(&spec.name, Weight::from_values(values, spec.shape(), device));
    }
    if let Some(folder) = &args.save {
        save(network.as_ref(), &weights, image, folder)?;
    }
    Ok((name.into(), network, weights))
}

fn save(network: &dyn Backbone, weights: &Weights, image: usize, folder: &Path) -> Result<(), Failure> {
    if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        let message = format!("{} is not empty", folder.display());
        return Err(Failure::input(message, "choose another folder"));
    }
    let preprocessing = Preprocessing {
        resize: image as u32,
        crop: image as u32,
        ..Preprocessing::default()
    };
    checkpoint::save(network, weights, &Preparation::Images(preprocessing), folder)?;
    Ok(())
}

/// The features' projection on made-up numbers, over the root of how many they are: it changes with every one of them and with
/// their order, and stays near 1 however many there are.
fn checksum(features: &ChildFeatures) -> f64 {
    let all = features.cls.values.iter().chain(&features.mean_patches.values);
    let sum: f64 = all.enumerate().map(|(i, &v)| f64::from(v) * f64::from(noise(i))).sum();
    sum / ((features.cls.values.len() + features.mean_patches.values.len()) as f64).sqrt()
}
