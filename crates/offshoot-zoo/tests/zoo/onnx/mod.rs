//! ONNX files: what they compute, run by tract; what they declare; and that they are whole or not there.

mod builder;
mod file;
mod text;

use std::path::Path;

use offshoot_family::{Architecture, ResNet, ResNetNorm, Shape, StrideOn, Swin, Vit};
use offshoot_zoo::checkpoint::{self, Checkpoint, CheckpointError};
use offshoot_zoo::materialize::materialize;
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::onnx::{self, About, OnnxError};
use offshoot_zoo::tensor::{Device, Tensor, TensorData};
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Backbone, Network, Weights, backbone};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Side;

use self::file::{Compiled, Model, declared, floats};
use crate::{bits, lively, numbers, preparation, shape, small, small_resnet};

/// A parent on disk.
fn parent(folder: &Path, network: &dyn Backbone, weights: &Weights) -> Checkpoint {
    checkpoint::save(network, weights, &preparation(network), folder).unwrap();
    Checkpoint::open(folder).unwrap()
}

/// Largest difference between the outputs of `model` and what `network` gives, over batches of 1, 2 and 5 images; and the largest
/// number there is.
fn difference(model: &Compiled, network: &dyn Backbone, weights: &Weights) -> (f32, f32) {
    let (channels, side) = network.image();
    let (mut worst, mut largest) = (0.0, 0.0);
    for batch in [1, 2, 5] {
        let pixels = numbers(77 + batch as u64, batch * channels * side * side);
        let shape = [batch, channels, side, side];
        let theirs = model.run(shape, &pixels);
        let images = Tensor::<4>::from_data(TensorData::new(pixels, shape), &Device::flex());
        let ours = network.forward(weights, images, None, &mut KeepAll);
        let mut expected = vec![
            ("cls", ours.cls.dims().to_vec(), ours.cls.into_data()),
            ("patches", ours.patches.dims().to_vec(), ours.patches.into_data()),
        ];
        expected.extend(ours.logits.map(|l| ("logits", l.dims().to_vec(), l.into_data())));
        let mut names: Vec<_> = expected.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        assert!(theirs.keys().eq(&names), "{names:?}");
        for (name, shape, data) in expected {
            assert_eq!(theirs[name].shape(), shape, "{name}");
            for (a, b) in data.try_to_vec::<f32>().unwrap().iter().zip(floats(&theirs[name])) {
                // Written so that a NaN stays.
                let off = (a - b).abs();
                worst = if off <= worst { worst } else { off };
                largest = f32::max(largest, b.abs());
            }
        }
    }
    (worst, largest)
}

/// Parents of every architecture, and the shapes of children that are cut out of them.
fn cases() -> Vec<(Architecture, Vec<Shape>)> {
    let vit = |vit: Vit, shapes: &[(usize, usize)]| {
        let shapes = shapes.iter().map(|&(width, depth)| shape(width, depth));
        (Architecture::Vit(vit), shapes.collect())
    };
    let staged = |architecture: Architecture, shapes: &[[usize; 3]]| {
        let shapes = shapes
            .iter()
            .map(|&[width, second, third]| Shape::new([("width", width), ("depth2", second), ("depth3", third)]));
        (architecture, shapes.collect())
    };
    let swin = Swin {
        width: 8,
        depths: vec![1, 2, 3],
        head_dim: 4,
        window: 3,
        mlp_ratio: 2,
        patch: 2,
        image: 24,
        channels: 3,
        norm_eps: 1e-5,
        classes: 0,
    };
    let batch = ResNet {
        norm: ResNetNorm::Batch,
        norm_eps: 1e-5,
        ..small_resnet()
    };
    vec![
        // Odd heads, one block, one patch, grey and colour.
        vit(small(), &[(12, 4), (9, 4), (12, 3), (3, 1)]),
        vit(
            Vit {
                width: 20,
                depth: 3,
                head_dim: 5,
                mlp_ratio: 3,
                patch: 3,
                image: 12,
                channels: 3,
                norm_eps: 1e-3,
                ..small()
            },
            &[(20, 3), (15, 2), (5, 3)],
        ),
        vit(
            Vit {
                width: 7,
                depth: 2,
                head_dim: 7,
                image: 2,
                channels: 3,
                ..small()
            },
            &[(7, 2), (7, 1)],
        ),
        // No LayerScale, and a classifier.
        vit(
            Vit {
                layer_scale: 0.0,
                position_offset: 0.0,
                classes: 5,
                ..small()
            },
            &[(12, 4), (6, 2)],
        ),
        // Maps of 12, 6 and 3: shifted windows, and a map that is one window.
        staged(Architecture::Swin(swin.clone()), &[[8, 2, 3], [4, 1, 2], [8, 2, 2]]),
        // Maps of 20, 10 and 5 under windows of 4: all but the first are padded, shifted or not; a classifier.
        staged(
            Architecture::Swin(Swin {
                window: 4,
                image: 40,
                channels: 1,
                head_dim: 2,
                width: 4,
                norm_eps: 1e-3,
                classes: 3,
                ..swin
            }),
            &[[4, 2, 3], [2, 2, 2]],
        ),
        staged(Architecture::ResNet(small_resnet()), &[[6, 2, 3], [4, 1, 2], [2, 2, 1]]),
        staged(
            Architecture::ResNet(ResNet {
                width: 8,
                groups: 4,
                channels: 3,
                classes: 3,
                ..small_resnet()
            }),
            &[[8, 2, 3], [4, 1, 1]],
        ),
        staged(
            Architecture::ResNet(ResNet {
                norm_eps: 1e-3,
                ..batch.clone()
            }),
            &[[6, 2, 3], [4, 1, 2]],
        ),
        // The first convolution strides; the width is that of the outputs.
        staged(
            Architecture::ResNet(ResNet {
                width: 2,
                stem: 8,
                stride_on: StrideOn::First,
                classes: 3,
                ..batch
            }),
            &[[2, 2, 3], [2, 1, 1]],
        ),
    ]
}

#[test]
fn an_exported_model_computes_what_the_child_does() {
    for (number, (architecture, shapes)) in cases().into_iter().enumerate() {
        let base = tempfile::tempdir().unwrap();
        let network = backbone(&architecture).unwrap();
        let weights = lively(&network.specs(), 40 + number as u64);
        let parent = parent(&base.path().join("parent"), network.as_ref(), &weights);
        let hash = parent.hash().unwrap();
        for shape in shapes {
            let view = parent.network().child(&shape, &hash).unwrap();
            let (child, plan) = parent.plan(&view).unwrap();
            let preparation = preparation(network.as_ref());
            let id = format!("{number}-{shape}");
            let about = About {
                id: &id,
                parent: &hash,
                preparation: &preparation,
            };
            let folder = base.path().join(&id);
            onnx::export(&parent, &view, &about, &folder, onnx::EMBEDDED).unwrap();
            let names: Vec<_> = std::fs::read_dir(&folder)
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            assert_eq!(names.len(), 2, "{names:?}");
            let model = Model::open(&folder);
            let (worst, largest) = difference(
                &model.compile(),
                child.as_backbone().unwrap(),
                &materialize(&weights, &plan),
            );
            assert!(largest > 0.5, "{id}: features of {largest}");
            // The largest is 7.3e-6, of a Swin of two channels.
            assert!(worst < 3e-5, "{id}: {worst:e}");
        }
    }
}

#[test]
fn the_model_says_what_goes_in_and_out_and_where_it_is_from() {
    let base = tempfile::tempdir().unwrap();
    let network = VitNetwork::new(small());
    let weights = lively(&network.specs(), 3);
    let parent = parent(&base.path().join("parent"), &network, &weights);
    let hash = parent.hash().unwrap();
    let view = parent.network().child(&shape(9, 2), &hash).unwrap();
    let about = About {
        id: "9x2",
        parent: &hash,
        preparation: &preparation(&network),
    };
    onnx::export(&parent, &view, &about, base.path(), onnx::EMBEDDED).unwrap();
    let model = Model::open(base.path());
    let proto = &model.proto;
    assert_eq!((proto.ir_version, proto.opset_import[0].version), (9, 20));
    assert_eq!(
        (&proto.producer_name[..], &proto.producer_version[..]),
        ("offshoot", env!("CARGO_PKG_VERSION"))
    );
    let sides = |sides: &[i64]| {
        let batch = std::iter::once(Side::DimParam("batch".into()));
        batch.chain(sides.iter().map(|n| Side::DimValue(*n))).collect()
    };
    let graph = model.graph();
    let inputs: Vec<_> = graph.input.iter().map(declared).collect();
    assert_eq!(inputs, [("pixel_values", sides(&[1, 6, 6]))]);
    let outputs: Vec<_> = graph.output.iter().map(declared).collect();
    assert_eq!(outputs, [("cls", sides(&[9])), ("patches", sides(&[9, 9]))]);
    let metadata = model.metadata();
    let said = |key: &str| metadata[key];
    assert_eq!((said("id"), said("parent")), ("9x2", &hash[..]));
    assert_eq!((said("resize"), said("crop"), said("channels")), ("6", "6", "1"));
    assert_eq!((said("mean"), said("std"), said("layout")), ("[0.5]", "[0.25]", "NCHW"));
    assert!(
        said("architecture").contains(r#""width":9"#),
        "{}",
        said("architecture")
    );
    // Every weight by our name, once, but for the mask token, which no image without masks meets.
    let (child, plan) = parent.plan(&view).unwrap();
    let folded = materialize(&weights, &plan);
    let initializers = model.initializers();
    for spec in child.specs() {
        let Some(stored) = initializers.get(&spec.name[..]) else {
            assert_eq!(spec.name, "mask_token");
            continue;
        };
        assert_eq!(stored.shape(), spec.shape(), "{}", spec.name);
        assert_eq!(
            bits(floats(stored)),
            bits(&folded.get(&spec.name).unwrap().values()),
            "{}",
            spec.name
        );
    }
    let names: std::collections::BTreeSet<_> = graph.node.iter().map(|n| &n.name).collect();
    assert_eq!(names.len(), graph.node.len(), "node names are unique");
}

#[test]
fn weights_in_a_file_of_their_own_are_the_same_model() {
    let base = tempfile::tempdir().unwrap();
    let vit = Vit {
        width: 24,
        mlp_ratio: 4,
        channels: 3,
        ..small()
    };
    let network = VitNetwork::new(vit);
    let weights = lively(&network.specs(), 8);
    let parent = parent(&base.path().join("parent"), &network, &weights);
    let view = parent.network().child(&shape(24, 4), "").unwrap();
    let about = About {
        id: "24x4",
        parent: "",
        preparation: &preparation(&network),
    };
    let write = |folder: &str, embedded| {
        let folder = base.path().join(folder);
        onnx::export(&parent, &view, &about, &folder, embedded).unwrap();
        Model::open(&folder)
    };
    let whole = write("whole", onnx::EMBEDDED);
    let bytes: u64 = 4 * whole
        .initializers()
        .iter()
        .filter(|(n, _)| network.specs().iter().any(|s| s.name == **n))
        .map(|(_, t)| t.len() as u64)
        .sum::<u64>();
    // The limit is the last size that is embedded.
    assert!(write("limit", bytes).external().is_empty());
    let apart = write("apart", bytes - 1);
    assert_eq!(apart.initializers(), whole.initializers());
    assert!(difference(&apart.compile(), &network, &weights).0 < 1e-5);
    let mut end = 0;
    for (name, offset, length) in apart.external() {
        assert!(offset.is_multiple_of(4096) && offset >= end, "`{name}` at {offset}");
        end = offset + length;
    }
    let data = base.path().join("apart/model.onnx.data");
    assert_eq!(std::fs::metadata(&data).unwrap().len(), end);
    assert_eq!(apart.external().len(), network.specs().len() - 1);
    let small = std::fs::metadata(base.path().join("apart/model.onnx")).unwrap().len();
    assert!(small < std::fs::metadata(base.path().join("whole/model.onnx")).unwrap().len() - bytes + 20_000);
    // Written again with the weights inside: no stale data stays behind.
    assert!(write("apart", onnx::EMBEDDED).external().is_empty());
    assert!(!data.exists());
}

/// A file is asked for its tensors one after the other, each when those before are on their way to the disk.
#[test]
fn a_model_is_written_one_tensor_at_a_time() {
    let base = tempfile::tempdir().unwrap();
    let vit = Vit {
        width: 384,
        depth: 2,
        head_dim: 64,
        mlp_ratio: 4,
        ..small()
    };
    let network = VitNetwork::new(vit);
    let sizes = |name: &str| network.specs().iter().find(|s| s.name == name).unwrap().elements();
    for embedded in [onnx::EMBEDDED, 0] {
        let folder = base.path().join(embedded.to_string());
        let about = About {
            id: "384x2",
            parent: "",
            preparation: &preparation(&network),
        };
        let mut handed_over = 0;
        onnx::write(&network, &about, &folder, embedded, |name| {
            let entries = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap());
            let files: Vec<_> = entries.map(|e| (e.file_name(), e.metadata().unwrap().len())).collect();
            assert!(
                files
                    .iter()
                    .all(|(name, _)| name.to_str().unwrap().starts_with(".writing-")),
                "{files:?}"
            );
            let on_disk: u64 = files.iter().map(|(_, bytes)| bytes).sum();
            assert!(
                on_disk + (1 << 21) >= handed_over,
                "{on_disk} bytes on disk of {handed_over}"
            );
            handed_over += 4 * sizes(name) as u64;
            Ok::<_, OnnxError>(vec![0.5; sizes(name)])
        })
        .unwrap();
        assert!(handed_over > 10 << 20);
        let model = Model::open(&folder);
        let initializers = model.initializers();
        let weight = floats(&initializers["blocks.1.mlp.fc2.weight"]);
        assert!(weight.iter().all(|v| *v == 0.5));
    }
}

#[test]
fn a_model_that_cannot_be_finished_leaves_what_was_there() {
    let base = tempfile::tempdir().unwrap();
    let network = VitNetwork::new(small());
    let weights = lively(&network.specs(), 5);
    let about = About {
        id: "12x4",
        parent: "",
        preparation: &preparation(&network),
    };
    let missing = || CheckpointError::Config {
        path: "parent".into(),
        reason: "gone".into(),
    };
    let write = |folder: &Path, embedded, fail: bool| {
        onnx::write(&network, &about, folder, embedded, |name| {
            if fail && name == "norm.bias" {
                return Err(missing());
            }
            Ok(weights.get(name).unwrap().values())
        })
    };
    let contents = |folder: &Path| -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return Vec::new();
        };
        let mut all: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        all.sort();
        all.iter()
            .map(|p| (p.file_name().unwrap().into(), std::fs::read(p).unwrap()))
            .collect()
    };
    for (number, embedded) in [onnx::EMBEDDED, 0].into_iter().enumerate() {
        let folder = base.path().join(number.to_string());
        let error = write(&folder, embedded, true).unwrap_err();
        assert!(matches!(error, CheckpointError::Config { .. }), "{error}");
        assert!(contents(&folder).is_empty(), "nothing half written");
        write(&folder, embedded, false).unwrap();
        let before = contents(&folder);
        assert_eq!(before.len(), 1 + number);
        write(&folder, embedded, true).unwrap_err();
        assert!(contents(&folder) == before, "the old model stays");
    }
    // A folder stands where the model, and then the data, should be.
    for name in [onnx::MODEL, onnx::DATA] {
        let folder = base.path().join(format!("blocked-{name}"));
        std::fs::create_dir_all(folder.join(name).join("inside")).unwrap();
        let error = write(&folder, 0, false).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        let names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, [name], "nothing temporary, and no model without its data");
    }
}
