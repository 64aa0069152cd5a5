//! Families made up for tests and for looking at the page: the k-NN table of POA's ViT-L/16, invented latency and curves; and a family
//! of language models whose perplexities follow a power law.

#![allow(dead_code, reason = "each program that includes this file uses its own part of it")]

use offshoot_family::catalog::{
    ChildSource, DataRef, DomainRef, ImagesRef, ParentRef, Preprocessing, TextRef, TrainingCost,
};
use offshoot_family::{
    Architecture, Axis, Catalog, Child, Decoder, DecoderKind, RopeScaling, Scorecard, Shape, Space, Split, Vit,
};
use offshoot_report::RunFacts;
use serde_json::{Map, Value, json};

/// k-NN accuracy in percent (POA, tables 13 to 15): one row per depth from 12 to 24, one column per width from 384 to 1024.
pub(crate) const KNN: [[f64; 11]; 13] = [
    [
        76.78, 78.42, 79.17, 79.78, 80.27, 80.68, 80.86, 81.02, 81.10, 81.14, 81.09,
    ],
    [
        76.84, 78.37, 79.17, 79.85, 80.83, 80.66, 80.93, 81.23, 81.24, 81.12, 81.15,
    ],
    [
        77.59, 78.95, 79.69, 80.26, 80.69, 81.04, 81.25, 81.36, 81.52, 81.60, 81.59,
    ],
    [
        77.89, 79.16, 79.86, 80.35, 80.75, 81.16, 81.40, 81.62, 81.62, 81.63, 81.58,
    ],
    [
        78.15, 79.30, 80.13, 80.75, 81.06, 81.36, 81.55, 81.78, 81.92, 81.77, 81.85,
    ],
    [
        78.34, 79.65, 80.26, 80.76, 81.11, 81.54, 81.63, 81.76, 82.02, 81.92, 81.88,
    ],
    [
        78.58, 79.75, 80.43, 80.92, 81.28, 81.69, 81.72, 81.99, 82.04, 82.02, 82.05,
    ],
    [
        78.62, 79.90, 80.52, 80.98, 81.32, 81.57, 81.83, 82.13, 82.09, 82.14, 82.12,
    ],
    [
        78.93, 79.97, 80.61, 81.17, 81.45, 81.79, 81.98, 82.17, 82.22, 82.15, 82.17,
    ],
    [
        78.99, 80.21, 80.73, 81.31, 81.49, 81.86, 82.05, 82.18, 82.32, 82.22, 82.20,
    ],
    [
        79.25, 80.25, 80.89, 81.36, 81.63, 81.87, 82.10, 82.31, 82.34, 82.36, 82.41,
    ],
    [
        79.37, 80.30, 80.89, 81.35, 81.73, 81.93, 82.19, 82.37, 82.41, 82.41, 82.39,
    ],
    [
        79.33, 80.28, 80.90, 81.33, 81.65, 81.90, 82.15, 82.35, 82.42, 82.28, 82.27,
    ],
];

/// A share measured on `split`.
pub(crate) fn score(metric: &str, split: Split, value: f64) -> Scorecard {
    Scorecard {
        metric: metric.into(),
        value,
        split: Some(split),
        data: Some("b3:5f1c0de2a97d44e0b3c6".into()),
        examples: 50_000,
        seed: 7,
        machine: "CPU, 2 threads, avx512".into(),
        version: "0.1.0".into(),
        details: object(json!({"temperature": 0.07, "references": 1_281_167, "cells": [1, 2]})),
    }
}

/// A latency.
pub(crate) fn latency(value: f64) -> Scorecard {
    Scorecard {
        metric: "latency_ms".into(),
        split: None,
        data: None,
        examples: 1,
        ..score("", Split::Val, value)
    }
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// A child without scorecards whose costs follow from `size`.
pub(crate) fn child(shape: Shape, parameters: u64, macs: u64) -> Child {
    let id = shape.id();
    let source = ChildSource::View(format!("views/{id}.json"));
    Child {
        id,
        name: None,
        shape,
        source,
        parameters,
        macs,
        bytes: 4 * parameters + 4096,
        training_flops_alone: None,
        scorecards: Vec::new(),
    }
}

/// A family of `space` with no children yet.
pub(crate) fn empty(space: Option<Space>) -> Catalog {
    Catalog {
        format: 2,
        version: "0.1.0".into(),
        method: "elastic".into(),
        seed: 7,
        parent: ParentRef {
            path: "parent".into(),
            hash: "9d2f6f0a4b1c77e6f6f1d2b0e3a1c8d75e44".into(),
            architecture: Architecture::Vit(Vit {
                width: 1024,
                depth: 24,
                head_dim: 64,
                mlp_ratio: 4,
                patch: 16,
                image: 224,
                channels: 3,
                position_offset: 0.1,
                layer_scale: 1e-5,
                classes: 0,
                norm_eps: 1e-6,
            }),
        },
        space,
        data: DataRef::Images(ImagesRef {
            path: "/data/imagenet-1k".into(),
            test_path: None,
            labels: true,
            fingerprint: "b3:5f1c0de2a97d44e0b3c6".into(),
            split_seed: 0,
            val: 0.05,
            test: 0.05,
            preprocessing: Preprocessing {
                resize: 256,
                crop: 224,
                channels: 3,
                mean: vec![0.485, 0.456, 0.406],
                std: vec![0.229, 0.224, 0.225],
            },
        }),
        score: "knn@20".into(),
        cost: None,
        children: Vec::new(),
    }
}

/// A space over named axes.
pub(crate) fn space(axes: &[(&str, Vec<usize>)]) -> Space {
    Space {
        axes: axes
            .iter()
            .map(|(name, sizes)| Axis {
                name: (*name).into(),
                sizes: sizes.clone(),
            })
            .collect(),
    }
}

/// The 143 children of an elastic ViT-L/16, all scored on val, three on test, a third of them timed.
pub(crate) fn vit_family() -> Catalog {
    let axes = [
        ("width", (0..11).map(|i| 384 + 64 * i).collect()),
        ("depth", (12..=24).collect()),
    ];
    let mut catalog = empty(Some(space(&axes)));
    let shapes: Vec<Shape> = catalog.space.iter().flat_map(Space::iter).collect();
    for (index, shape) in shapes.into_iter().enumerate() {
        let (w, l) = (384 + 64 * (index / 13), 12 + index % 13);
        let (width, depth) = (w as u64, l as u64);
        let parameters = 12 * width * width * depth + 13 * width * depth + (768 + 197 + 2) * width;
        let macs = 197 * 12 * width * width * depth + 2 * 197 * 197 * width * depth + 196 * 768 * width;
        let mut child = child(shape, parameters, macs);
        child.name = match (w, l) {
            (384, 12) => Some("vit-s".into()),
            (768, 12) => Some("vit-b".into()),
            (1024, 24) => Some("vit-l".into()),
            _ => None,
        };
        let value = KNN[l - 12][index / 13] / 100.0;
        child.record(score("knn@20", Split::Val, value));
        if child.name.is_some() {
            child.record(score("knn@20", Split::Test, value - 0.003));
            child.record(score("linear", Split::Val, value + 0.012));
        }
        if index % 3 == 0 || child.name.is_some() {
            let noise = ((index * 7919) % 17) as f64 / 100.0;
            child.record(latency(macs as f64 / 1.1e8 * (1.0 + noise) + 1.3 * l as f64));
        }
        catalog.children.push(child);
    }
    catalog
}

/// A family over three axes in the manner of an elastic ResNet: 465 children.
pub(crate) fn resnet_family() -> Catalog {
    let axes = [
        ("mid", vec![64, 96, 128]),
        ("n2", (4..=8).collect()),
        ("n3", (6..=36).collect()),
    ];
    let mut catalog = empty(Some(space(&axes)));
    let shapes: Vec<Shape> = catalog.space.iter().flat_map(Space::iter).collect();
    for (index, shape) in shapes.into_iter().enumerate() {
        let size = |name| shape.get(name).unwrap_or(1) as u64;
        let (mid, blocks) = (size("mid"), size("n2") / 2 + size("n3"));
        let parameters = mid * mid * blocks * 290 + 2_000_000;
        let mut child = child(shape, parameters, parameters * 190);
        let value = 0.70 + 0.011 * (parameters as f64 / 1e7).ln_1p() * 2.0 + ((index * 31) % 13) as f64 * 1e-4;
        child.record(score("knn@20", Split::Val, value));
        catalog.children.push(child);
    }
    catalog
}

/// A family along one axis of `n` sizes.
pub(crate) fn line_family(n: usize) -> Catalog {
    let mut catalog = empty(Some(space(&[("depth", (1..=n).map(|d| 4 * d).collect())])));
    for d in 1..=n as u64 {
        let mut child = child(Shape::new([("depth", 4 * d as usize)]), 1_000_000 * d, 200_000_000 * d);
        child.record(score("knn@20", Split::Val, 0.5 + 0.1 * (d as f64).ln()));
        catalog.children.push(child);
    }
    catalog
}

/// Metrics of a training run of `steps`, every `every`th logged.
pub(crate) fn metrics(steps: u32, every: u32) -> Vec<Map<String, Value>> {
    let mut lines = Vec::new();
    for step in (0..steps).step_by(every.max(1) as usize) {
        let t = f64::from(step) / f64::from(steps);
        let noise = (f64::from(step) * 12.9898).sin() * 0.12;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * t).cos());
        let mut line = object(json!({
            "step": step,
            "loss": 4.0 + 6.0 * (-6.0 * t).exp() + noise,
            "loss/intact_local": 2.2 + 3.0 * (-5.0 * t).exp() + noise * 0.5,
            "loss/elastic_local": 2.6 + 3.2 * (-4.0 * t).exp() - noise * 0.4,
            "loss/koleo": 0.4 + 0.5 * (-9.0 * t).exp() + noise * 0.1,
            "lr": if t < 0.05 { 0.005 * t / 0.05 } else { 2e-5 + 0.00498 * cosine },
            "momentum": 0.9999 - 0.0079 * cosine,
            "weight_decay": 0.4 - 0.36 * cosine,
            "teacher_temp": 0.04 + 0.03 * (t / 0.1).min(1.0),
            "grad_norm": 0.8 + 3000.0 * (-30.0 * t).exp() + noise,
            "images_per_second": 61.0 + 8.0 * noise,
        }));
        if step % (every * 25) == 0 {
            for (child, top) in [("384x12", 0.767), ("704x18", 0.812), ("1024x24", 0.823)] {
                line.insert(format!("knn@20/{child}"), (top * (1.0 - (-5.0 * t).exp() * 0.9)).into());
            }
        }
        lines.push(line);
    }
    lines
}

/// Facts of a finished run.
pub(crate) fn facts() -> RunFacts {
    let note = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    RunFacts {
        title: "ViT-L/16 on ImageNet-1k".into(),
        metrics: metrics(276_800, 100),
        samples: Vec::new(),
        recipe_toml: "seed = 7\n\n[parent]\nname = \"vit-l16\"\n\n[train]\nepochs = 346\nbatch = 1600\nlr = 0.005\n"
            .into(),
        notes: vec![
            note("Version", "offshoot 0.1.0"),
            note("Command", "offshoot pretrain vit-l16 --data /data/imagenet-1k --seed 7"),
            note("Machine", "CPU, 2 threads, avx512"),
            note("Hours", "86.2"),
        ],
        picked: Some(("640x18".into(), "the best child of at most 100 M parameters".into())),
    }
}

/// Domains of the made-up text.
pub(crate) const DOMAINS: [&str; 3] = ["pubmed", "email", "kernel docs"];
/// Steps of the made-up training of language models, and predicted tokens of each.
const LANGUAGE: (u32, u64) = (2000, 3900);

/// A perplexity after a share of the training, of a model of so many parameters.
fn perplexity(parameters: u64, done: f64) -> f64 {
    let best = 14.0 * (5_868_800.0 / parameters as f64).powf(0.22);
    best * (1.0 + 280.0 * (-40.0 * done).exp() + 0.9 * (-4.0 * done).exp() - 0.9 * (-4.0_f64).exp())
}

/// Twelve decoders, all scored on val by perplexity per token and per byte and on three domains, one on test, half of them timed.
pub(crate) fn language_family() -> Catalog {
    let axes = [("width", vec![128, 192, 256]), ("depth", vec![3, 4, 5, 6])];
    let mut catalog = empty(Some(space(&axes)));
    catalog.method = "language".into();
    catalog.score = "perplexity".into();
    catalog.parent.architecture = Architecture::Decoder(Decoder {
        kind: DecoderKind::Llama,
        width: 256,
        depth: 6,
        heads: 4,
        kv_heads: 4,
        head_dim: 64,
        hidden: 704,
        vocabulary: 4096,
        context: 256,
        norm_eps: 1e-5,
        tied: true,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    });
    catalog.data = DataRef::Text(TextRef {
        corpus: "corpus".into(),
        domains: DOMAINS
            .iter()
            .map(|name| DomainRef {
                name: (*name).into(),
                path: format!("/data/{name}.jsonl"),
            })
            .collect(),
        fingerprint: "b3:5f1c0de2a97d44e0b3c6".into(),
        tokenizer: "77aa0de2a97d44e0b3c6".into(),
        split_seed: 7,
        val: 0.05,
        test: 0.05,
        context: 256,
    });
    let tokens = u64::from(LANGUAGE.0) * LANGUAGE.1;
    let shapes: Vec<Shape> = catalog.space.iter().flat_map(Space::iter).collect();
    let mut flops = 0.0;
    for (index, shape) in shapes.into_iter().enumerate() {
        let size = |name| shape.get(name).unwrap_or(1) as u64;
        let (width, depth) = (size("width"), size("depth"));
        let block = 4 * width * width + 3 * width * (width * 11 / 4);
        let parameters = depth * (block + 2 * width) + 4096 * width + width;
        let macs = depth * (block + 256 * width) + 4096 * width;
        let mut child = child(shape, parameters, macs);
        let alone = 6.0 * macs as f64 * tokens as f64;
        child.training_flops_alone = Some(alone);
        flops += alone * if index == 11 || index == 0 { 1.0 } else { 0.1 };
        let value = perplexity(parameters, 1.0) * (1.0 + ((index * 31) % 7) as f64 * 0.01);
        let mut record = |metric: &str, split, value| {
            child.record(Scorecard {
                examples: 1234,
                details: object(json!({"context": 256, "stride": 255, "tokens": 812_345, "domains": DOMAINS})),
                ..score(metric, split, value)
            });
        };
        record("perplexity", Split::Val, value);
        record("byte_perplexity", Split::Val, value.powf(0.27));
        for (name, factor) in DOMAINS.iter().zip([0.8, 1.1, 1.0 / 0.88]) {
            record(&format!("perplexity/{name}"), Split::Val, value * factor);
            record(
                &format!("byte_perplexity/{name}"),
                Split::Val,
                (value * factor).powf(0.27),
            );
        }
        if (width, depth) == (192, 5) {
            record("perplexity", Split::Test, value * 1.02);
        }
        if index % 2 == 0 || index == 11 {
            child.record(latency(macs as f64 / 4.0e6 + 0.05 * depth as f64));
        }
        catalog.children.push(child);
    }
    catalog.cost = Some(TrainingCost {
        steps: u64::from(LANGUAGE.0),
        tokens,
        flops,
    });
    catalog
}

/// Metrics of the training of [`language_family`]: every tenth step, and a probe every hundred.
pub(crate) fn language_metrics() -> Vec<Map<String, Value>> {
    let (catalog, (steps, tokens)) = (language_family(), LANGUAGE);
    let mut lines = Vec::new();
    for step in (10..=steps).step_by(10) {
        let t = f64::from(step) / f64::from(steps);
        let noise = (f64::from(step) * 12.9898).sin() * 0.08;
        let mut line = object(json!({
            "step": step,
            "loss": perplexity(5_868_800, t).ln() + noise,
            "loss/128x3": perplexity(1_127_296, t).ln() + noise,
            "gradient_norm": 0.8 + 3.0 * (-30.0 * t).exp() + noise,
            "tokens_seen": u64::from(step) * tokens,
            "learning_rate": 1e-4 + 4.5e-4 * (1.0 + (std::f64::consts::PI * t).cos()),
            "tokens": tokens,
            "skipped": 0.0,
        }));
        let drawn = &catalog.children[1 + (step as usize / 10 * 7) % 10].id;
        line.insert(format!("loss/{drawn}"), (perplexity(2_600_000, t).ln() + noise).into());
        lines.push(line);
        if step % 100 == 0 {
            let mut probe = object(json!({ "step": step }));
            for (id, parameters) in [("128x3", 1_127_296), ("192x4", 2_594_496), ("256x6", 5_868_800)] {
                probe.insert(format!("perplexity/{id}"), perplexity(parameters, t).into());
            }
            for (name, factor) in DOMAINS.iter().zip([0.8, 1.1, 1.0 / 0.88]) {
                probe.insert(
                    format!("perplexity/256x6/{name}"),
                    (perplexity(5_868_800, t) * factor).into(),
                );
            }
            lines.push(probe);
        }
    }
    lines
}

/// Facts of a finished run of language models.
pub(crate) fn language_facts() -> RunFacts {
    let samples = (1..=6).map(|i| {
        let text = "the patients were treated with the same dose of the drug, and no difference was seen ".repeat(i);
        object(json!({"step": 300 * i, "prompt": "The ", "text": text}))
    });
    RunFacts {
        title: "Small decoders on three domains".into(),
        metrics: language_metrics(),
        samples: samples.collect(),
        recipe_toml: "method = \"language\"\nseed = 7\n".into(),
        notes: vec![("Training time".into(), "1.4 h (2000 steps of 2.52 s)".into())],
        picked: Some(("192x5".into(), "the best child of at most 4 M parameters".into())),
    }
}
