//! Decoders against numbers computed in float64 by transformers: logits, loss and gradients of one batch.
//!
//! Each folder `lm-*` under `tests/fixtures` holds a checkpoint as transformers writes it, tokens, and the expected numbers.
//! `OFFSHOOT_FIXTURE=DIR` replays that folder instead. The program that makes such folders and their format are described in
//! `tests/fixtures/README.md`. With `--nocapture` it says how far off each number was.

#![expect(clippy::print_stdout, reason = "how far off it was, for whoever replays a fixture")]

use std::path::{Path, PathBuf};

use offshoot_family::Projected;
use offshoot_methods::language::step::{Batch, Distillation, ExpertObjective, Objective, Outcome};
use offshoot_methods::train::optimizer::Gradients;
use offshoot_zoo::decoder::Tokens;
use offshoot_zoo::layout::LayoutTensor;
use offshoot_zoo::materialize::{Plan, compile, materialize};
use offshoot_zoo::projected::CODES;
use offshoot_zoo::safetensors::SafetensorsFile;
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{Checkpoint, Network, ProjectedNetwork, Weight, Weights};
use serde_json::Value;

/// Largest difference of a logit, and of a gradient over the largest of its tensor.
const TOLERANCE: f32 = 1e-4;

struct Fixture {
    case: Value,
    checkpoint: Checkpoint,
    weights: Weights,
    windows: Vec<Vec<u32>>,
    expected: SafetensorsFile,
    /// Experts, where it has any.
    projected: Option<Experts>,
}

/// A projected network that the fixture's checkpoint is one expert's shape of.
struct Experts {
    network: ProjectedNetwork,
    weights: Weights,
    plans: Vec<Plan>,
    /// Which expert reads each window.
    of_windows: Vec<usize>,
    /// The matrices that are projected, as the checkpoint has them.
    matrices: Vec<LayoutTensor>,
}

impl Experts {
    fn open(folder: &Path, count: usize, checkpoint: &Checkpoint, dense: &Weights, of_windows: Vec<usize>) -> Self {
        let file = SafetensorsFile::open(&folder.join("pn.safetensors")).unwrap();
        let decoder = checkpoint.decoder().unwrap().decoder().clone();
        let projected = Projected {
            decoder,
            experts: count,
            codes: 0,
            slices: 0,
            blocks: Vec::new(),
        };
        let projected = projected.filled();
        projected.check().unwrap();
        let network = ProjectedNetwork::new(projected);
        let layout = checkpoint.network().layout().tensors;
        let is_projected = |tensor: &&LayoutTensor| tensor.name.contains(".mlp.") && tensor.name.ends_with("weight");
        let matrices: Vec<LayoutTensor> = layout.iter().filter(is_projected).cloned().collect();
        let device = Device::flex();
        let mut weights = Weights::new();
        for spec in network.specs() {
            let values = if spec.name == CODES {
                file.read(CODES).unwrap()
            } else if let Some(matrix) = spec.name.strip_suffix(".slices") {
                // Slice by slice; in each, the parts of our matrix lie one after the other.
                let mut values = Vec::new();
                for slice in 0..count {
                    for part in parts_of(&matrices, matrix) {
                        let all = file.read(&format!("{}.slices", part.name)).unwrap();
                        let size = all.len() / count;
                        values.extend(part.of_file(all[slice * size..(slice + 1) * size].to_vec()));
                    }
                }
                values
            } else if let Some(matrix) = spec.name.strip_suffix(".mix") {
                let parts = parts_of(&matrices, matrix);
                parts
                    .flat_map(|part| file.read(&format!("{}.mix", part.name)).unwrap())
                    .collect()
            } else {
                dense.get(&spec.name).unwrap().values()
            };
            weights.insert(&spec.name, Weight::from_values(values, spec.shape(), &device));
        }
        let specs = network.specs();
        let own = network.decoder().specs();
        let plan = |expert| compile(&specs, Some(&own), &network.expert(expert, "").unwrap()).unwrap();
        Self {
            plans: (0..count).map(plan).collect(),
            weights,
            of_windows,
            matrices,
            network,
        }
    }

    /// Our gradients under the checkpoint's names, and those of what is not in a checkpoint under the fixture's.
    fn named(&self, gradients: &Gradients, layout: &[LayoutTensor]) -> Vec<(String, Vec<f32>)> {
        let ours = |name: &str| -> Vec<f32> { gradients[name].to_data().try_to_vec().unwrap() };
        let mut found = vec![(CODES.to_owned(), ours(CODES))];
        for tensor in layout {
            if !self.matrices.contains(tensor) {
                found.push((tensor.name.clone(), tensor.to_file(&ours(&tensor.tensor))));
                continue;
            }
            let matrix = tensor.tensor.strip_suffix(".weight").unwrap();
            let parts: Vec<&LayoutTensor> = parts_of(&self.matrices, matrix).collect();
            let section = parts.iter().position(|part| part.name == tensor.name).unwrap();
            let factors = ours(&format!("{matrix}.mix"));
            let size = factors.len() / parts.len();
            found.push((
                format!("{}.mix", tensor.name),
                factors[section * size..(section + 1) * size].to_vec(),
            ));
            let slices = ours(&format!("{matrix}.slices"));
            let count = self.network.projected().slices;
            let each = slices.chunks_exact(slices.len() / count);
            found.push((
                format!("{}.slices", tensor.name),
                each.flat_map(|slice| tensor.to_file(slice)).collect(),
            ));
        }
        found
    }
}

/// The checkpoint's parts of one of our matrices, in the order of its rows.
fn parts_of<'a>(matrices: &'a [LayoutTensor], matrix: &str) -> impl Iterator<Item = &'a LayoutTensor> {
    let name = format!("{matrix}.weight");
    matrices.iter().filter(move |tensor| tensor.tensor == name)
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
        let weights = checkpoint.weights(&Device::flex()).unwrap();
        let count = case["experts"].as_u64().unwrap_or(0) as usize;
        let projected = (count > 0).then(|| {
            let ids = inputs.read_bytes("experts").unwrap();
            let experts = ids
                .chunks_exact(8)
                .map(|id| i64::from_le_bytes(id.try_into().unwrap()) as usize);
            Experts::open(folder, count, &checkpoint, &weights, experts.collect())
        });
        Self {
            projected,
            weights,
            windows: ids.chunks(*tokens).map(<[u32]>::to_vec).collect(),
            expected: SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap(),
            checkpoint,
            case,
        }
    }

    /// Loss and gradients, with blocks kept or run again, in one piece or in several.
    fn run(&self, recompute: bool, windows_at_once: usize) -> Outcome {
        let count = Batch::new(&self.windows).predicted();
        if let Some(experts) = &self.projected {
            let objective = ExpertObjective {
                network: experts.network.decoder(),
                experts: &experts.plans,
                recompute,
            };
            let of_windows = &experts.of_windows;
            return objective.step(&experts.weights, &self.windows, of_windows, windows_at_once, count);
        }
        let objective = Objective {
            network: self.checkpoint.decoder().unwrap(),
            children: &[],
            distillation: Distillation {
                share: 1.0,
                temperature: 1.0,
            },
            recompute,
        };
        objective.step(&self.weights, &self.windows, windows_at_once, count)
    }

    fn check_logits(&self) {
        let decoder = self.checkpoint.decoder().unwrap();
        let expert = self.projected.as_ref().map(|e| materialize(&e.weights, &e.plans[0]));
        let weights = expert.as_ref().unwrap_or(&self.weights);
        let logits = decoder.logits(weights, &Tokens::new(&self.windows[..1]));
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
        let plain = |tensor: &LayoutTensor| {
            let ours: Vec<f32> = gradients[&tensor.tensor].to_data().try_to_vec().unwrap();
            (tensor.name.clone(), tensor.to_file(&ours))
        };
        let named = match &self.projected {
            Some(experts) => experts.named(gradients, &layout.tensors),
            None => layout.tensors.iter().map(plain).collect(),
        };
        assert_eq!(wanted.len(), named.len(), "every tensor has a gradient");
        let mut largest = (0.0f32, String::new());
        for (name, found) in named {
            let expected = self.expected.read(&format!("grad.{name}")).unwrap();
            assert_eq!(found.len(), expected.len(), "{name}");
            let scale = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            // The bias of the keys moves no score against another: its gradient is rounding, beside those of queries and values.
            let relative = worst(&found, &expected) / scale.max(1e-7);
            assert!(relative <= TOLERANCE, "{name}: {relative:e} of {scale:e}");
            if relative > largest.0 {
                largest = (relative, name);
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
