//! Networks in stages against transformers and timm: features of the intact network and of three children, and the gradients
//! of the parent's tensors through each child, from the fixtures that `interop/fixtures.py` writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offshoot_family::Shape;
use offshoot_zoo::layout::LayoutTensor;
use offshoot_zoo::materialize::{compile, materialize};
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::tensor::{Bool, Device, Tensor, TensorData};
use offshoot_zoo::{Checkpoint, Features, Weight, Weights, backbone, checkpoint};
use serde_json::Value;

/// Largest difference from PyTorch, absolute and relative.
const TOLERANCE: f64 = 1e-4;

/// A file of fixtures: header and bytes.
struct Expected {
    header: Value,
    bytes: Vec<u8>,
}

impl Expected {
    fn open(path: &Path) -> Self {
        let file = std::fs::read(path).unwrap();
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        Self {
            header: serde_json::from_slice(&file[8..header]).unwrap(),
            bytes: file[header..].to_vec(),
        }
    }

    fn raw(&self, name: &str) -> Option<(&[u8], Vec<usize>)> {
        let entry = self.header.get(name)?;
        let number = |v: &Value| v.as_u64().unwrap() as usize;
        let list = |key: &str| -> Vec<usize> { entry[key].as_array().unwrap().iter().map(number).collect() };
        let at = list("data_offsets");
        Some((&self.bytes[at[0]..at[1]], list("shape")))
    }

    fn floats(&self, name: &str) -> Option<(Vec<f64>, Vec<usize>)> {
        let (bytes, shape) = self.raw(name)?;
        let floats = bytes
            .chunks(4)
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())));
        Some((floats.collect(), shape))
    }
}

impl Expected {
    fn images(&self, name: &str) -> Tensor<4> {
        let (pixels, dims) = self.floats(name).unwrap();
        let pixels: Vec<f32> = pixels.into_iter().map(|v| v as f32).collect();
        let dims: [usize; 4] = dims.try_into().unwrap();
        Tensor::from_data(TensorData::new(pixels, dims), &Device::flex())
    }

    /// How far the gradient of a tensor of a file, part of `ours` of our tensor, is from row `row` of those that are stored.
    fn gradient_difference(&self, part: &LayoutTensor, row: usize, ours: Option<&Vec<f64>>) -> f64 {
        let elements: usize = part.shape.iter().product();
        let gradient = match (ours, part.rows) {
            (None, _) => vec![0.0; elements],
            (Some(whole), None) => whole.clone(),
            (Some(whole), Some((start, end, of))) => {
                let width = whole.len() / of;
                whole[start * width..end * width].to_vec()
            }
        };
        let key = format!("grad.{}", part.name);
        let (ours, theirs) = match self.floats(&key) {
            Some(whole) => (gradient, whole),
            None => {
                let rows = self.floats(&format!("{key}.rows"));
                let rows = rows.unwrap_or_else(|| panic!("no {key}"));
                let width = elements / part.shape[0];
                let sum = |row: &[f64]| row.iter().enumerate().map(|(j, g)| g * (1.5 + (j as f64).cos())).sum();
                (gradient.chunks(width).map(sum).collect(), rows)
            }
        };
        let all = theirs.0.len() / theirs.1[0];
        difference(&ours, &theirs.0[row * all..][..all])
    }
}

/// The axes of a child of the fixtures: `depths` are those of the second stage and on, `depth` is that of the third.
fn shape(child: &Value) -> Shape {
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let mut axes = vec![("width".to_owned(), number(&child["width"]))];
    match child.get("depths").and_then(Value::as_array) {
        Some(depths) => axes.extend((2..).zip(depths).map(|(stage, d)| (format!("depth{stage}"), number(d)))),
        None => axes.push(("depth3".to_owned(), number(&child["depth"]))),
    }
    Shape::new(axes)
}

/// Gradients of the objective of the fixtures for the leaves `tracked`.
fn gradients(features: &Features, tracked: &Weights) -> BTreeMap<String, Vec<f64>> {
    let loss = objective(&features.cls, 1.0, 0.0) + objective(&features.patches, 0.5, 1.0);
    let found = tracked.gradients(&mut loss.backward());
    found
        .into_iter()
        .map(|(name, gradient)| (name, values(gradient)))
        .collect()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The largest difference over the largest number, or over 1 where that is larger.
fn difference(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    // A NaN is the worst there is.
    worst.fold(0.0, |a, b| if b.is_nan() { f64::INFINITY } else { f64::max(a, b) }) / largest
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    let data: Vec<f32> = tensor.without_autodiff().into_data().try_to_vec().unwrap();
    data.into_iter().map(f64::from).collect()
}

/// The sum of `tensor * cos(k * pace + start)` over the flat index `k`.
fn objective<const D: usize>(tensor: &Tensor<D>, pace: f64, start: f64) -> Tensor<1> {
    let dims = tensor.dims();
    let n: usize = dims.iter().product();
    let weights: Vec<f32> = (0..n).map(|k| (k as f64 * pace + start).cos() as f32).collect();
    let weights = Tensor::<D>::from_data(TensorData::new(weights, dims), &tensor.device());
    (tensor.clone() * weights).sum()
}

/// Replays one folder of fixtures; what differed most.
fn replay(name: &str) -> BTreeMap<String, f64> {
    let device = Device::flex();
    let folder = folder(name);
    let expected = Expected::open(&folder.join("expected.safetensors"));
    let cases: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&folder.join("parent")).unwrap();
    let network = checkpoint.network();
    let mut parent = checkpoint.weights(&device).unwrap();
    if let Some((token, shape)) = expected.floats("mask_token") {
        let token = token.into_iter().map(|v| v as f32).collect();
        parent.insert("mask_token", Weight::from_values(token, shape, &device));
    }
    let mut worst = BTreeMap::new();
    for case in cases["cases"].as_array().unwrap() {
        let (name, child) = (case["name"].as_str().unwrap(), case["child"].as_str().unwrap());
        let view = network.child(&shape(&cases["children"][child]), "").unwrap();
        let cut = backbone(&view.child).unwrap();
        let plan = compile(&network.specs(), Some(&cut.specs()), &view).unwrap();
        let tracked = parent.tracked();
        let images = expected.images(case["images"].as_str().unwrap());
        let masks = case["masks"].as_str().map(|masks| {
            let (marks, dims) = expected.raw(masks).unwrap();
            let marks: Vec<bool> = marks.iter().map(|&mark| mark != 0).collect();
            Tensor::<2, Bool>::from_data(TensorData::new(marks, [dims[0], dims[1]]), &device)
        });
        let features = cut.forward(
            &materialize(&tracked, &plan),
            images.autodiff(),
            masks.map(|m| m.autodiff()),
            &mut KeepAll,
        );
        let (cls, _) = expected.floats(&format!("{name}.cls")).unwrap();
        worst.insert(format!("{name}.cls"), difference(&values(features.cls.clone()), &cls));
        let (map, dims) = expected.floats(&format!("{name}.map")).unwrap();
        let (side, dim) = (dims[1], dims[3]);
        let doubled = (0..dims[0]).flat_map(|image| {
            let map = &map;
            (0..4 * side * side).flat_map(move |at| {
                let (y, x) = (at / (2 * side) / 2, at % (2 * side) / 2);
                map[((image * side + y) * side + x) * dim..][..dim].iter().copied()
            })
        });
        let doubled: Vec<f64> = doubled.collect();
        worst.insert(
            format!("{name}.patches"),
            difference(&values(features.patches.clone()), &doubled),
        );
        let Some(row) = case["gradient"].as_u64() else { continue };
        let row = usize::try_from(row).unwrap();
        let mut gradients = gradients(&features, &tracked);
        for part in network.layout().tensors {
            let what = format!("{name} grad.{}", part.name);
            worst.insert(
                what,
                expected.gradient_difference(&part, row, gradients.get(&part.tensor)),
            );
        }
        if let Some((theirs, shape)) = expected.floats("grad.mask_token") {
            let ours = gradients
                .remove("mask_token")
                .unwrap_or_else(|| vec![0.0; shape[1..].iter().product()]);
            let all = ours.len();
            worst.insert(
                format!("{name} mask token"),
                difference(&ours, &theirs[row * all..][..all]),
            );
        }
    }
    worst
}

fn check(name: &str, numbers: usize) {
    let worst = replay(name);
    let wrong: Vec<_> = worst.iter().filter(|(_, d)| **d > TOLERANCE).collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), worst.len());
    assert!(worst.len() >= numbers, "only {} numbers were compared", worst.len());
}

#[test]
fn a_swin_and_its_children_are_transformers() {
    check("swin", 900);
}

#[test]
fn a_resnet_and_its_children_are_timms() {
    check("resnet", 600);
}

/// BatchNorm with statistics that are given, stride in the first convolution, and no convolution in the first stage's shortcut.
#[test]
fn a_resnet_that_strides_first_is_transformers() {
    let folder = folder("import/resnet-strides-first");
    let network = backbone(&checkpoint::architecture(&folder).unwrap()).unwrap();
    let expected = Expected::open(&folder.join("expected.safetensors"));
    let file = Expected::open(&folder.join(checkpoint::WEIGHTS));
    let layout = network.layout();
    let mut weights = Weights::new();
    for spec in network.specs() {
        let part = layout.tensors.iter().find(|part| part.tensor == spec.name);
        // The layout has no mask token, and nothing is masked here.
        let stored = part.map_or_else(|| vec![0.0; spec.elements()], |part| file.floats(&part.name).unwrap().0);
        let stored = stored.into_iter().map(|v| v as f32).collect();
        weights.insert(&spec.name, Weight::from_values(stored, spec.shape(), &Device::flex()));
    }
    let tracked = weights.tracked();
    let features = network.forward(&tracked, expected.images("images").autodiff(), None, &mut KeepAll);
    let apart = |name: &str, ours: Vec<f64>| difference(&ours, &expected.floats(name).unwrap().0);
    let ours = gradients(&features, &tracked);
    let mut worst = vec![
        apart("cls", values(features.cls)),
        apart("patches", values(features.patches)),
    ];
    for spec in network.specs() {
        let trained = !spec.frozen && spec.name != "mask_token";
        assert_eq!(ours.contains_key(&spec.name), trained, "gradient of {}", spec.name);
        let part = layout.tensors.iter().find(|part| trained && part.tensor == spec.name);
        worst.extend(part.map(|part| expected.gradient_difference(part, 0, ours.get(&spec.name))));
    }
    assert!(worst.len() > 80 && worst.iter().all(|d| *d <= TOLERANCE), "{worst:?}");
}
