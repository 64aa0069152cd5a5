//! One POA step against numbers computed in float64 by an independent PyTorch program.
//!
//! Each folder under `tests/fixtures` holds a configuration, weights, inputs and the expected losses, gradients, updated
//! weights and child features. `OFFSHOOT_FIXTURE=DIR` replays that folder instead. The program that makes such folders and
//! their format are described in `tests/fixtures/README.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offshoot_family::{Shape, Vit};
use offshoot_methods::elastic::heads::Heads;
use offshoot_methods::elastic::step::{Batch, Elastic, LossRecipe, Objective};
use offshoot_methods::train::optimizer::{self, AdamW, Gradients, Rate};
use offshoot_zoo::materialize::{compile, materialize};
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::safetensors::SafetensorsFile;
use offshoot_zoo::tensor::{Device, Tensor, TensorData};
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Backbone, Network, TensorSpec, Weight, Weights};
use serde_json::Value;

fn number(value: &Value, key: &str) -> usize {
    value[key].as_u64().unwrap_or_else(|| panic!("case.json: `{key}`")) as usize
}

fn numbers(value: &Value) -> Vec<usize> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as usize)
        .collect()
}

/// Our name of a tensor under the fixture's `backbone.` or `heads.heads.` name.
fn our_name(theirs: &str) -> String {
    if let Some(rest) = theirs.strip_prefix("heads.heads.") {
        let (i, leaf) = rest.split_once('.').unwrap();
        let leaf = match leaf {
            "l1_w" => "mlp.0.weight",
            "l1_b" => "mlp.0.bias",
            "l2_w" => "mlp.2.weight",
            "l2_b" => "mlp.2.bias",
            "l3_w" => "mlp.4.weight",
            "l3_b" => "mlp.4.bias",
            "v" => "last_layer.weight_v",
            "g" => "last_layer.weight_g",
            other => panic!("unknown head tensor {other}"),
        };
        return format!("heads.{i}.{leaf}");
    }
    let rest = theirs
        .strip_prefix("backbone.")
        .unwrap_or_else(|| panic!("unknown tensor {theirs}"));
    let Some(block) = rest.strip_prefix("blocks.") else {
        return match rest {
            "patch_w" => "patch_embed.proj.weight",
            "patch_b" => "patch_embed.proj.bias",
            "cls" => "cls_token",
            "mask" => "mask_token",
            "pos" => "pos_embed",
            "norm_w" => "norm.weight",
            "norm_b" => "norm.bias",
            other => panic!("unknown backbone tensor {other}"),
        }
        .into();
    };
    let (i, leaf) = block.split_once('.').unwrap();
    let leaf = match leaf {
        "n1_w" => "norm1.weight",
        "n1_b" => "norm1.bias",
        "qkv_w" => "attn.qkv.weight",
        "qkv_b" => "attn.qkv.bias",
        "out_w" => "attn.proj.weight",
        "out_b" => "attn.proj.bias",
        "ls1" => "ls1.gamma",
        "ls2" => "ls2.gamma",
        "n2_w" => "norm2.weight",
        "n2_b" => "norm2.bias",
        "fc1_w" => "mlp.fc1.weight",
        "fc1_b" => "mlp.fc1.bias",
        "fc2_w" => "mlp.fc2.weight",
        "fc2_b" => "mlp.fc2.bias",
        other => panic!("unknown block tensor {other}"),
    };
    format!("blocks.{i}.{leaf}")
}

struct Fixture {
    case: Value,
    network: VitNetwork,
    heads: Heads,
    specs: Vec<TensorSpec>,
    weights: SafetensorsFile,
    inputs: SafetensorsFile,
    expected: SafetensorsFile,
    device: Device,
}

impl Fixture {
    fn open(folder: &Path) -> Self {
        let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        let config = &case["config"];
        let inputs = SafetensorsFile::open(&folder.join("inputs.safetensors")).unwrap();
        let network = VitNetwork::new(Vit {
            width: number(config, "width"),
            depth: number(config, "depth"),
            head_dim: number(config, "head_dim"),
            mlp_ratio: 4,
            patch: number(config, "patch"),
            image: number(config, "global_px"),
            channels: inputs.shape("globals").unwrap()[1],
            position_offset: 0.1,
            layer_scale: 1e-5,
            classes: 0,
            norm_eps: 1e-6,
        });
        let heads = Heads {
            feature: network.feature(),
            hidden: number(config, "hidden"),
            bottleneck: number(config, "bottleneck"),
            prototypes: numbers(&config["prototypes"]),
        };
        let specs = [network.specs(), heads.specs()].concat();
        Self {
            network,
            heads,
            specs,
            weights: SafetensorsFile::open(&folder.join("weights.safetensors")).unwrap(),
            inputs,
            expected: SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap(),
            device: Device::flex(),
            case,
        }
    }

    /// The tensors of `file` under `prefix`, by our names, checked against the specs.
    fn tensors(&self, file: &SafetensorsFile, prefix: &str) -> Weights {
        let mut weights = Weights::new();
        for name in file.names() {
            let Some(theirs) = name.strip_prefix(prefix) else {
                continue;
            };
            let shape = file.shape(&name).unwrap().to_vec();
            weights.insert(
                our_name(theirs),
                Weight::from_values(file.read(&name).unwrap(), shape, &self.device),
            );
        }
        assert_eq!(weights.mismatch(&self.specs), None, "{prefix}");
        weights
    }

    fn crops(&self, name: &str) -> (Vec<f32>, [usize; 3]) {
        let shape = self.inputs.shape(name).unwrap();
        (self.inputs.read(name).unwrap(), [shape[1], shape[2], shape[3]])
    }

    fn batch(&self) -> Batch {
        let masks = self.inputs.read_bytes("masks").unwrap();
        let images = number(&self.case["config"], "batch");
        Batch::new(
            images,
            self.crops("globals"),
            self.crops("locals"),
            Some(&masks),
            &self.device,
        )
    }

    fn hyper(&self, key: &str) -> f64 {
        self.case["hyper"][key].as_f64().unwrap()
    }

    fn shape(&self, sizes: &Value) -> Shape {
        let sizes = numbers(sizes);
        Shape::new([("width", sizes[0]), ("depth", sizes[1])])
    }
}

/// Compares by relative norm per tensor.
fn check_relative(what: &str, ours: &BTreeMap<String, Vec<f32>>, expected: &Weights) {
    for (name, weight) in expected.iter() {
        let expected = weight.values();
        let zeros = vec![0.0; expected.len()];
        let ours = ours.get(name).unwrap_or(&zeros);
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let scale = norm(&mut expected.iter().map(|&v| f64::from(v)));
        let difference = norm(&mut ours.iter().zip(&expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
        if scale < 1e-6 {
            assert!(
                difference <= 1e-8,
                "{what} {name}: {difference:e} where the norm is {scale:e}"
            );
        } else {
            assert!(
                difference <= 1e-4 * scale,
                "{what} {name}: relative difference {:e}",
                difference / scale
            );
        }
    }
}

fn check_absolute(what: &str, ours: &Weights, expected: &Weights, tolerance: f32) {
    for (name, weight) in expected.iter() {
        let ours = ours
            .get(name)
            .unwrap_or_else(|| panic!("{what} {name} is missing"))
            .values();
        let worst = ours
            .iter()
            .zip(weight.values())
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst <= tolerance, "{what} {name}: off by {worst:e}");
    }
}

fn replay(folder: &Path) {
    let fixture = Fixture::open(folder);
    let student = fixture.tensors(&fixture.weights, "student.");
    let mut teacher = fixture.tensors(&fixture.weights, "teacher.");
    let view = fixture
        .network
        .child(&fixture.shape(&fixture.case["elastic"]), "")
        .unwrap();
    assert_eq!(view.blocks, numbers(&fixture.case["kept_blocks"]));
    let child = offshoot_zoo::backbone(&view.child).unwrap();
    let mut plan = compile(&fixture.network.specs(), Some(&child.specs()), &view).unwrap();
    plan.extend(compile(&fixture.heads.specs(), None, &view).unwrap());
    let loss = LossRecipe {
        lambda: fixture.hyper("lambda_"),
        same_view: true,
        student_temperature: fixture.hyper("temp_student"),
        ibot_weight: fixture.hyper("ibot_weight"),
        koleo_weight: fixture.hyper("koleo_weight"),
        sinkhorn_iterations: 3,
    };
    let objective = Objective {
        network: &fixture.network,
        heads: &fixture.heads,
        loss: &loss,
    };
    let elastic = Elastic {
        network: child.as_ref(),
        plan: &plan,
    };

    let tracked = student.tracked();
    let temperature = fixture.hyper("temp_teacher");
    let terms = objective.losses(
        &tracked,
        &teacher,
        Some(&elastic),
        &fixture.batch(),
        temperature,
        &mut |_| Box::new(KeepAll),
    );
    let values: BTreeMap<String, f64> = terms.values().into_iter().collect();
    let expected = fixture.case["losses"].as_object().unwrap();
    assert_eq!(values.len(), expected.len(), "{:?}", values.keys());
    for (name, expected) in expected {
        let (ours, expected) = (values[name], expected.as_f64().unwrap());
        let tolerance = if name == "koleo" {
            1e-6
        } else {
            1e-5 * expected.abs().max(1.0)
        };
        assert!(
            (ours - expected).abs() <= tolerance,
            "{name}: {ours} against {expected}"
        );
    }

    let gradients = tracked.gradients(&mut terms.total.backward());
    let ours = gradients
        .iter()
        .map(|(n, g)| (n.clone(), g.to_data().try_to_vec::<f32>().unwrap()))
        .collect();
    let expected_gradients = fixture.tensors(&fixture.expected, "grad.");
    check_relative("gradient of", &ours, &expected_gradients);

    // The fixture's own gradients: where one is zero in exact arithmetic, Adam makes a whole step of rounding noise.
    let mut stepped = student;
    let given: Gradients = expected_gradients
        .iter()
        .map(|(n, w)| (n.to_owned(), w.flat().clone()))
        .collect();
    let betas = fixture.case["hyper"]["betas"].as_array().unwrap();
    let mut adam = AdamW::new(
        betas[0].as_f64().unwrap(),
        betas[1].as_f64().unwrap(),
        fixture.hyper("eps"),
    );
    adam.update(&mut stepped, given, |name| {
        let spec = fixture.specs.iter().find(|s| s.name == name).unwrap();
        let weight_decay = if spec.decay { fixture.hyper("weight_decay") } else { 0.0 };
        Rate {
            learning_rate: fixture.hyper("lr"),
            weight_decay,
            gradient_scale: 1.0,
        }
    });
    check_absolute(
        "AdamW",
        &stepped,
        &fixture.tensors(&fixture.expected, "after.student."),
        1e-6,
    );

    for sizes in fixture.case["children"].as_array().unwrap() {
        let shape = fixture.shape(sizes);
        check_child(&fixture, &teacher, &shape);
    }
    optimizer::average(&mut teacher, &stepped, fixture.hyper("ema"));
    check_absolute(
        "average",
        &teacher,
        &fixture.tensors(&fixture.expected, "after.teacher."),
        1e-6,
    );
}

fn check_child(fixture: &Fixture, teacher: &Weights, shape: &Shape) {
    let view = fixture.network.child(shape, "").unwrap();
    let network = offshoot_zoo::backbone(&view.child).unwrap();
    let plan = compile(&fixture.network.specs(), Some(&network.specs()), &view).unwrap();
    let weights = materialize(teacher, &plan);
    let (values, [c, h, w]) = fixture.crops("globals");
    let images = Tensor::<4>::from_data(
        TensorData::new(values.clone(), [values.len() / (c * h * w), c, h, w]),
        &fixture.device,
    );
    let features = network.forward(&weights, images, None, &mut KeepAll);
    for (leaf, ours) in [
        ("cls", features.cls.into_data()),
        ("patches", features.patches.into_data()),
    ] {
        let name = format!("child.{shape}.{leaf}");
        let expected = fixture.expected.read(&name).unwrap();
        let ours: Vec<f32> = ours.try_to_vec().unwrap();
        assert_eq!(ours.len(), expected.len(), "{name}");
        let worst = ours
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst <= 1e-4, "{name}: off by {worst:e}");
    }
}

#[test]
fn one_step_gives_the_reference_numbers() {
    if let Some(folder) = std::env::var_os("OFFSHOOT_FIXTURE") {
        return replay(Path::new(&folder));
    }
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for case in ["micro-32x3", "micro-24x3", "micro-32x2"] {
        replay(&fixtures.join(case));
    }
}
