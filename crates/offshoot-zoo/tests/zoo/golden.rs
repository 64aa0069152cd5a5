//! Small networks against PyTorch: features and gradients that timm and transformers compute (tests/fixtures/README.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offshoot_family::Shape;
use offshoot_zoo::checkpoint::{self, Checkpoint, WEIGHTS};
use offshoot_zoo::layout::Layout;
use offshoot_zoo::materialize::{compile, materialize};
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::safetensors::SafetensorsFile;
use offshoot_zoo::tensor::{Bool, Device, Tensor, TensorData};
use offshoot_zoo::{Features, Network, TensorSpec, Weight, Weights, open};
use serde_json::Value;

/// Largest difference of a feature, and largest error of a gradient over its norm.
const LIMIT: f64 = 1e-4;

/// Gradients by tensor, on the host.
type Gradients = BTreeMap<String, Vec<f32>>;

/// A folder of tests/fixtures and what is expected of the network in it.
struct Fixture {
    folder: PathBuf,
    expected: SafetensorsFile,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let expected = SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap();
        Self { folder, expected }
    }

    fn images(&self, name: &str) -> Tensor<4> {
        let dims: [usize; 4] = self.expected.shape(name).unwrap().try_into().unwrap();
        let data = TensorData::new(self.expected.read(name).unwrap(), dims);
        Tensor::from_data(data, &Device::flex())
    }

    fn masks(&self, name: &str) -> Tensor<2, Bool> {
        let dims: [usize; 2] = self.expected.shape(name).unwrap().try_into().unwrap();
        let marks: Vec<bool> = self
            .expected
            .read_bytes(name)
            .unwrap()
            .iter()
            .map(|&m| m != 0)
            .collect();
        Tensor::from_data(TensorData::new(marks, dims), &Device::flex())
    }

    fn check_features(&self, what: &str, ours: Tensor<2>, theirs: &[f32]) {
        let ours: Vec<f32> = ours.into_data().try_to_vec().unwrap();
        assert_eq!(ours.len(), theirs.len(), "{what}");
        let apart = ours
            .iter()
            .zip(theirs)
            .map(|(a, b)| f64::from((a - b).abs()))
            .fold(0.0, f64::max);
        assert!(apart <= LIMIT, "{what}: {apart:e} apart");
    }

    /// Gradients of the tensors `specs` in row `case` of those that are stored, under the names of a layout.
    fn check_gradients(&self, (what, case): (&str, usize), layout: &Layout, specs: &[TensorSpec], ours: &Gradients) {
        for spec in specs {
            let none = vec![0.0; spec.elements()];
            let gradient = ours.get(&spec.name).unwrap_or(&none);
            let mut parts: Vec<(String, Vec<usize>, &[f32])> = Vec::new();
            for part in layout.tensors.iter().filter(|part| part.tensor == spec.name) {
                let (start, end, of) = part.rows.unwrap_or((0, 1, 1));
                let row = gradient.len() / of;
                parts.push((part.name.clone(), part.shape.clone(), &gradient[start * row..end * row]));
            }
            if parts.is_empty() {
                parts.push((spec.name.clone(), spec.shape(), gradient));
            }
            for (name, shape, gradient) in parts {
                if spec.frozen {
                    assert!(!ours.contains_key(&spec.name), "{what}: {name} is never trained");
                    continue;
                }
                let (theirs, of_rows) = self.gradient(&name, case);
                let ours: Vec<f64> = if of_rows {
                    gradient.chunks(gradient.len() / shape[0]).map(row_sum).collect()
                } else {
                    gradient.iter().copied().map(f64::from).collect()
                };
                assert_eq!(ours.len(), theirs.len(), "{what}: {name}");
                let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
                let size = norm(&mut theirs.iter().copied());
                let error = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b));
                assert!(error <= LIMIT * size + 1e-5, "{what}: {name}: {error:e} of {size:e}");
                assert!(size > 0.0 || error == 0.0, "{what}: {name} is no part of it");
            }
        }
    }

    /// The stored gradient of a tensor in row `case`, and whether it is sums of rows.
    fn gradient(&self, name: &str, case: usize) -> (Vec<f64>, bool) {
        let whole = format!("grad.{name}");
        let of_rows = self.expected.shape(&whole).is_none();
        let stored = if of_rows { format!("{whole}.rows") } else { whole };
        let cases = self.expected.shape(&stored).unwrap_or_else(|| panic!("no {stored}"))[0];
        let all = self.expected.read(&stored).unwrap();
        let one = all.len() / cases;
        let values = all[case * one..(case + 1) * one].iter().copied().map(f64::from);
        (values.collect(), of_rows)
    }
}

/// The sum of a row's elements under the weights of the fixtures.
fn row_sum(row: &[f32]) -> f64 {
    let terms = row
        .iter()
        .enumerate()
        .map(|(j, &v)| f64::from(v) * (1.5 + (j as f64).cos()));
    terms.sum()
}

/// The weights of `network` from a file under its layout's names; what the layout leaves out from `others`.
fn weights_of(network: &dyn Network, file: &SafetensorsFile, others: &SafetensorsFile) -> Weights {
    let layout = network.layout();
    let mut weights = Weights::new();
    for spec in network.specs() {
        let parts = layout.tensors.iter().filter(|part| part.tensor == spec.name);
        let mut values: Vec<f32> = parts.flat_map(|part| file.read(&part.name).unwrap()).collect();
        if values.is_empty() {
            let there = others.shape(&spec.name).is_some();
            values = if there {
                others.read(&spec.name).unwrap()
            } else {
                vec![0.0; spec.elements()]
            };
        }
        weights.insert(&spec.name, Weight::from_values(values, spec.shape(), &Device::flex()));
    }
    weights
}

/// The number whose gradient is stored: features times cotangents that follow from their place.
fn objective(features: &Features) -> Tensor<1> {
    let cotangents = |n: usize, f: &dyn Fn(f64) -> f64| (0..n).map(|k| f(k as f64).cos() as f32).collect::<Vec<f32>>();
    let cls = features.cls.dims();
    let patches = features.patches.dims();
    let on_cls = TensorData::new(cotangents(cls.iter().product(), &|k| k), cls);
    let on_patches = TensorData::new(cotangents(patches.iter().product(), &|k| k / 2.0 + 1.0), patches);
    let device = Device::flex();
    (features.cls.clone() * Tensor::<2>::from_data(on_cls, &device)).sum()
        + (features.patches.clone() * Tensor::<3>::from_data(on_patches, &device)).sum()
}

/// The gradients of the leaves `tracked`, on the host.
fn gradients(features: &Features, tracked: &Weights) -> Gradients {
    let mut all = objective(features).backward();
    let host = |g: Tensor<1>| g.into_data_as::<f32>().try_to_vec().unwrap();
    let found = tracked.gradients(&mut all);
    found
        .into_iter()
        .map(|(name, gradient)| (name, host(gradient)))
        .collect()
}

/// `[b, g, g, d]` with every cell twice in each direction, flat.
fn doubled(map: &[f32], [batch, side, _, channels]: [usize; 4]) -> Vec<f32> {
    let mut all = Vec::with_capacity(4 * map.len());
    for (image, row) in (0..batch).flat_map(|b| (0..2 * side).map(move |y| (b, y / 2))) {
        for column in (0..2 * side).map(|x| x / 2) {
            let cell = ((image * side + row) * side + column) * channels;
            all.extend(&map[cell..cell + channels]);
        }
    }
    all
}

/// The axes of a child of the fixtures: `depths` are those of the second stage and on, `depth` is that of the third.
fn shape(child: &Value) -> Shape {
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let mut axes = vec![("width".to_owned(), number(&child["width"]))];
    match child.get("depths").and_then(Value::as_array) {
        Some(depths) => axes.extend(
            depths
                .iter()
                .enumerate()
                .map(|(i, d)| (format!("depth{}", i + 2), number(d))),
        ),
        None => axes.push(("depth3".to_owned(), number(&child["depth"]))),
    }
    Shape::new(axes)
}

/// Every case of an elastic fixture: features of the child, and gradients of all tensors of the parent.
fn elastic(name: &str) {
    let fixture = Fixture::open(name);
    let about = std::fs::read(fixture.folder.join("cases.json")).unwrap();
    let about: Value = serde_json::from_slice(&about).unwrap();
    let folder = fixture.folder.join("parent");
    let parent = Checkpoint::open(&folder).unwrap();
    let network = parent.network();
    let file = SafetensorsFile::open(&folder.join(WEIGHTS)).unwrap();
    let weights = weights_of(network, &file, &fixture.expected);
    let cases = about["cases"].as_array().unwrap();
    assert!(
        cases.len() >= 12,
        "the intact network and three children, each in three cases"
    );
    for case in cases {
        let what = case["name"].as_str().unwrap();
        let view = network
            .child(&shape(&about["children"][case["child"].as_str().unwrap()]), "")
            .unwrap();
        let child = open(&view.child).unwrap();
        let plan = compile(&network.specs(), Some(&child.specs()), &view).unwrap();
        let tracked = weights.tracked();
        let images = fixture.images(case["images"].as_str().unwrap());
        let masks = case["masks"].as_str().map(|name| fixture.masks(name));
        let features = child.forward(&materialize(&tracked, &plan), images, masks, &mut KeepAll);
        let cls = fixture.expected.read(&format!("{what}.cls")).unwrap();
        fixture.check_features(&format!("{what}, cls"), features.cls.clone(), &cls);
        let map = format!("{what}.map");
        let dims: [usize; 4] = fixture.expected.shape(&map).unwrap().try_into().unwrap();
        let patches = doubled(&fixture.expected.read(&map).unwrap(), dims);
        let rows = [dims[0] * 4 * dims[1] * dims[2], dims[3]];
        fixture.check_features(
            &format!("{what}, patches"),
            features.patches.clone().reshape(rows),
            &patches,
        );
        if let Some(row) = case["gradient"].as_u64() {
            let case = (what, usize::try_from(row).unwrap());
            fixture.check_gradients(
                case,
                &network.layout(),
                &network.specs(),
                &gradients(&features, &tracked),
            );
        }
    }
}

#[test]
fn an_elastic_resnet_is_timms_in_features_and_gradients() {
    elastic("resnet");
}

/// BatchNorm with statistics that are given, stride in the first convolution, no convolution in the first stage's shortcut.
#[test]
fn a_resnet_that_strides_first_is_transformers_in_features_and_gradients() {
    let fixture = Fixture::open("import/resnet-strides-first");
    let network = open(&checkpoint::architecture(&fixture.folder).unwrap()).unwrap();
    let file = SafetensorsFile::open(&fixture.folder.join(WEIGHTS)).unwrap();
    let tracked = weights_of(network.as_ref(), &file, &fixture.expected).tracked();
    let features = network.forward(&tracked, fixture.images("images"), None, &mut KeepAll);
    let theirs = |name: &str| fixture.expected.read(name).unwrap();
    fixture.check_features("cls", features.cls.clone(), &theirs("cls"));
    let [batch, patches, channels] = features.patches.dims();
    let rows = features.patches.clone().reshape([batch * patches, channels]);
    fixture.check_features("patches", rows, &theirs("patches"));
    let ours = gradients(&features, &tracked);
    // The layout has no mask token, and nothing was masked.
    assert!(!ours.contains_key("mask_token"));
    let mut specs = network.specs();
    specs.retain(|spec| spec.name != "mask_token");
    fixture.check_gradients(("strides first", 0), &network.layout(), &specs, &ours);
}
