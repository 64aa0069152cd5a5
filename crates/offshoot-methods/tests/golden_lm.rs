//! Decoders against numbers computed in float64 by transformers: logits, loss and gradients of one batch.
//!
//! Each folder `lm-*` under `tests/fixtures` holds a checkpoint as transformers writes it, tokens, and the expected numbers.
//! `OFFSHOOT_FIXTURE=DIR` replays that folder instead. The program that makes such folders and their format are described in
//! `tests/fixtures/README.md`. With `--nocapture` it says how far off each number was.

#![expect(clippy::print_stdout, reason = "how far off it was, for whoever replays a fixture")]

use std::path::{Path, PathBuf};

use offshoot_methods::language::step::{Batch, Distillation, Objective, Outcome};
use offshoot_methods::train::optimizer::Gradients;
use offshoot_zoo::decoder::Tokens;
use offshoot_zoo::safetensors::SafetensorsFile;
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{Checkpoint, Weights};
use serde_json::Value;

/// Largest difference of a logit, and of a gradient over the largest of its tensor.
const TOLERANCE: f32 = 1e-4;

struct Fixture {
    case: Value,
    checkpoint: Checkpoint,
    weights: Weights,
    windows: Vec<Vec<u32>>,
    expected: SafetensorsFile,
}

impl Fixture {
    fn open(folder: &Path) -> Self {
        let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        let checkpoint = Checkpoint::open(&folder.join("hf")).unwrap();
        let inputs = SafetensorsFile::open(&folder.join("inputs.safetensors")).unwrap();
        let [_, tokens] = inputs.shape("tokens").unwrap() else {
            panic!("tokens are [batch, tokens]")
        };
        let ids = inputs.read_bytes("tokens").unwrap();
        let ids: Vec<u32> = (ids.chunks_exact(8))
            .map(|id| u32::try_from(i64::from_le_bytes(id.try_into().unwrap())).unwrap())
            .collect();
        Self {
            weights: checkpoint.weights(&Device::flex()).unwrap(),
            windows: ids.chunks(*tokens).map(<[u32]>::to_vec).collect(),
            expected: SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap(),
            checkpoint,
            case,
        }
    }

    /// Loss and gradients, with blocks kept or run again, in one piece or in several.
    fn run(&self, recompute: bool, windows_at_once: usize) -> Outcome {
        let objective = Objective {
            network: self.checkpoint.decoder().unwrap(),
            children: &[],
            distillation: Distillation {
                share: 1.0,
                temperature: 1.0,
            },
            recompute,
        };
        let count = Batch::new(&self.windows).predicted();
        objective.step(&self.weights, &self.windows, windows_at_once, count)
    }

    fn check_logits(&self) {
        let decoder = self.checkpoint.decoder().unwrap();
        let logits = decoder.logits(&self.weights, &Tokens::new(&self.windows[..1]));
        let found: Vec<f32> = logits.into_data().try_to_vec().unwrap();
        let expected = self.expected.read("logits").unwrap();
        assert_eq!(found.len(), expected.len());
        let worst = worst(&found, &expected);
        assert!(worst <= TOLERANCE, "logits differ by {worst:e}");
        println!("logits {worst:.1e}");
    }

    fn check_gradients(&self, gradients: &Gradients) {
        let layout = self.checkpoint.network().layout();
        let names = self.expected.names();
        let wanted: Vec<&String> = names.iter().filter(|name| name.starts_with("grad.")).collect();
        assert_eq!(wanted.len(), layout.tensors.len(), "every tensor has a gradient");
        let mut largest = (0.0f32, String::new());
        for tensor in &layout.tensors {
            let ours: Vec<f32> = gradients[&tensor.tensor].to_data().try_to_vec().unwrap();
            let found = tensor.to_file(&ours);
            let expected = self.expected.read(&format!("grad.{}", tensor.name)).unwrap();
            assert_eq!(found.len(), expected.len(), "{}", tensor.name);
            let scale = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            // The bias of the keys moves no score against another: its gradient is rounding, beside those of queries and values.
            let relative = worst(&found, &expected) / scale.max(1e-7);
            assert!(relative <= TOLERANCE, "{}: {relative:e} of {scale:e}", tensor.name);
            if relative > largest.0 {
                largest = (relative, tensor.name.clone());
            }
        }
        println!("gradients {:.1e} ({})", largest.0, largest.1);
    }

    fn check(&self) {
        self.check_logits();
        let expected = self.case["loss"].as_f64().unwrap();
        for (recompute, at_once) in [(false, usize::MAX), (true, usize::MAX), (false, 1), (true, 3)] {
            let outcome = self.run(recompute, at_once);
            let off = (outcome.loss - expected).abs();
            assert!(off <= 1e-4, "loss {} for {expected}", outcome.loss);
            println!("recompute {recompute}, {at_once} windows at once: loss {off:.1e}");
            self.check_gradients(&outcome.gradients);
        }
    }
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most, d| if d.is_nan() { f32::INFINITY } else { most.max(d) })
}

/// The folders to replay.
fn folders() -> Vec<PathBuf> {
    if let Ok(folder) = std::env::var("OFFSHOOT_FIXTURE") {
        return vec![folder.into()];
    }
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries = std::fs::read_dir(all).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("lm-");
    let mut found: Vec<PathBuf> = entries.filter(named).collect();
    found.sort();
    found
}

#[test]
fn logits_loss_and_gradients_are_the_reference_programs() {
    let folders = folders();
    assert!(!folders.is_empty());
    for folder in folders {
        println!("{}", folder.display());
        Fixture::open(&folder).check();
    }
}
