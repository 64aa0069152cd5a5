//! Models of others: what transformers and timm compute, ours do from the same files; and what is refused.

use std::path::{Path, PathBuf};

use offshoot_family::catalog::Preprocessing;
use offshoot_family::{Architecture, ResNetNorm, StrideOn, View, Vit};
use offshoot_zoo::checkpoint::{self, Checkpoint, CheckpointError, WEIGHTS};
use offshoot_zoo::import::{self, Import};
use offshoot_zoo::layout::Program;
use offshoot_zoo::network::{KeepAll, SpaceBounds};
use offshoot_zoo::safetensors::{self, SafetensorsError, SafetensorsFile};
use offshoot_zoo::tensor::{Device, Tensor, TensorData};
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Backbone, Network, Preparation, Weights, onnx, start};
use serde_json::{Value, json};

use crate::checkpoint::raw;
use crate::{lively, preparation, small};

/// Every fixture, with the classes of its classifier.
const FIXTURES: [(&str, usize); 11] = [
    ("vit", 0),
    ("vit-classifier", 5),
    ("vit-timm", 5),
    ("dinov2", 0),
    ("dinov2-timm", 0),
    ("swin-classifier", 5),
    ("swin-timm", 5),
    ("resnet-classifier", 5),
    ("resnet-timm", 5),
    ("resnet-strides-first", 0),
    ("resnet", 0),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/import")
        .join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A fixture as a folder that can be opened: bare files of timm get the `config.json` that timm writes beside them.
fn folder(name: &str, base: &Path) -> PathBuf {
    if !name.ends_with("-timm") {
        return fixture(name);
    }
    let about = json_of(&fixture(name).join("about.json"));
    let config = json!({ "architecture": about["model"], "model_args": about["args"] });
    let folder = base.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let file = fixture(name).join(format!("{name}.safetensors"));
    std::fs::copy(file, folder.join(WEIGHTS)).unwrap();
    folder
}

/// Largest difference of what `network` computes from `expected.safetensors` of a fixture.
fn difference(name: &str, network: &dyn Backbone, weights: &Weights) -> f32 {
    let expected = SafetensorsFile::open(&fixture(name).join("expected.safetensors")).unwrap();
    let shape: [usize; 4] = expected.shape("images").unwrap().try_into().unwrap();
    let images = TensorData::new(expected.read("images").unwrap(), shape);
    let features = network.forward(weights, Tensor::from_data(images, &Device::flex()), None, &mut KeepAll);
    let patches = features.patches.into_data().try_to_vec::<f32>().unwrap();
    // Maps of a network in stages are stored twice as large, as our patches have them.
    let mut found = vec![
        ("cls", features.cls.into_data().try_to_vec::<f32>().unwrap()),
        ("patches", patches),
    ];
    if let Some(logits) = features.logits {
        found.push(("logits", logits.into_data().try_to_vec::<f32>().unwrap()));
    }
    assert_eq!(found.len() == 3, expected.shape("logits").is_some(), "{name}");
    let mut worst = 0.0f32;
    for (key, values) in found {
        let wanted = expected.read(key).unwrap();
        assert_eq!(values.len(), wanted.len(), "{name}: {key}");
        for (a, b) in values.iter().zip(&wanted) {
            let gap = (a - b).abs();
            worst = if gap.is_nan() { f32::INFINITY } else { worst.max(gap) };
        }
    }
    worst
}

fn opened(name: &str, base: &Path) -> Import {
    import::open(&folder(name, base), None).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// How the model wants its images.
fn images(model: &Import) -> Preprocessing {
    match &model.preparation {
        Preparation::Images(how) => how.clone(),
        Preparation::Text(_) => panic!("{} takes text", model.origin),
    }
}

/// The model as its own child.
fn whole(model: &Import) -> View {
    let network = model.checkpoint.network();
    let intact = network.space(SpaceBounds::default()).unwrap().intact();
    network.child(&intact, "").unwrap()
}

#[test]
fn imported_models_compute_what_their_own_libraries_do() {
    let base = tempfile::tempdir().unwrap();
    for (name, classes) in FIXTURES {
        let model = opened(name, base.path());
        let weights = model.checkpoint.weights(&Device::flex()).unwrap();
        let worst = difference(name, model.checkpoint.backbone().unwrap(), &weights);
        assert!(worst < 2e-5, "{name}: {worst:e}");
        let found = match model.checkpoint.network().architecture() {
            Architecture::Vit(vit) => vit.classes,
            Architecture::Swin(swin) => swin.classes,
            Architecture::ResNet(net) => net.classes,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, classes, "{name}");
    }
}

/// The way of `offshoot import -o`: the whole model as its own child, written in our layout.
#[test]
fn an_imported_model_written_again_computes_the_same() {
    let base = tempfile::tempdir().unwrap();
    for (name, _) in FIXTURES {
        let model = opened(name, base.path());
        let network = model.checkpoint.network();
        let parent = base.path().join(format!("{name}-parent"));
        model.save(&parent).unwrap();
        let saved = Checkpoint::open(&parent).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(saved.network().architecture(), network.architecture(), "{name}");
        let weights = saved.weights(&Device::flex()).unwrap();
        assert!(difference(name, saved.backbone().unwrap(), &weights) < 2e-5, "{name}");
        // And it is something that can be imported itself, with the same preparation of images.
        let again = import::open(&parent, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (again, how) = (images(&again), images(&model));
        assert_eq!(again.crop, how.crop, "{name}");
        for (a, b) in again.mean.iter().zip(&how.mean) {
            assert!((a - b).abs() < 1e-6, "{name}");
        }
    }
}

#[test]
fn what_a_file_has_beside_the_weights_is_named_and_ignored() {
    let base = tempfile::tempdir().unwrap();
    let ignored = |name| opened(name, base.path()).ignored;
    let pooled: Vec<String> = ignored("vit").into_iter().map(|(name, _)| name).collect();
    assert_eq!(pooled, ["pooler.dense.bias", "pooler.dense.weight"]);
    assert!(
        ignored("resnet-classifier")
            .iter()
            .all(|(name, _)| name.ends_with("num_batches_tracked"))
    );
    assert!(!ignored("resnet-classifier").is_empty() && ignored("dinov2").is_empty());
    let notes = opened("resnet-classifier", base.path()).notes.join("; ");
    assert!(notes.contains("statistics"), "{notes}");
    let notes = opened("vit-timm", base.path()).notes.join("; ");
    assert!(
        notes.contains("`mask_token` is not in the file: all 0") && notes.contains("0.5") && notes.contains("--mean"),
        "{notes}"
    );
    let strides = |name| match opened(name, base.path()).checkpoint.network().architecture() {
        Architecture::ResNet(net) => (net.stride_on, net.norm),
        other => panic!("{other:?}"),
    };
    assert_eq!(strides("resnet-classifier"), (StrideOn::Second, ResNetNorm::Batch));
    assert_eq!(strides("resnet-strides-first"), (StrideOn::First, ResNetNorm::Batch));
}

/// A file of `tensors`, all zeros.
fn zeros(path: &Path, tensors: &[(&str, &[usize])]) {
    let tensors: Vec<(String, Vec<usize>)> = tensors.iter().map(|(n, s)| ((*n).to_owned(), s.to_vec())).collect();
    safetensors::write(path, &tensors, |i| {
        Ok::<_, SafetensorsError>(vec![0.0; tensors[i].1.iter().product()])
    })
    .unwrap();
}

fn refused(path: &Path, name: Option<&str>) -> CheckpointError {
    let error = import::open(path, name).map(|_| ()).expect_err("must be refused");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    error
}

#[test]
fn a_bare_file_needs_a_name_and_says_what_it_looks_like() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("weights.safetensors");
    zeros(
        &path,
        &[
            ("pos_embed", &[1, 197, 192]),
            ("patch_embed.proj.weight", &[192, 3, 16, 16]),
            ("blocks.0.norm1.weight", &[192]),
            ("blocks.0.ls1.gamma", &[192]),
        ],
    );
    let hint = refused(&path, None).hint().unwrap();
    assert!(
        hint.contains("width 192 and depth 1 with LayerScale") && hint.contains("no name"),
        "{hint}"
    );
    let error = refused(&path, Some("vit_tiny_patch16_224")).to_string();
    assert!(error.contains("13 layers") && error.contains("4 tensors"), "{error}");
    zeros(
        &path,
        &[
            ("layer1.0.conv3.weight", &[1]),
            ("layer1.0.conv1.weight", &[128, 1, 1, 1]),
        ],
    );
    assert!(
        refused(&path, None)
            .hint()
            .unwrap()
            .contains("residual network of width 128")
    );
    zeros(&path, &[("something", &[1])]);
    assert!(refused(&path, None).hint().unwrap().contains("--arch NAME"));
    for (name, why) in [
        ("vit_small_patch14_reg4_dinov2", "register"),
        ("vit_giant_patch14_dinov2", "SwiGLU"),
        ("vit_base_patch16_clip_224", "norm before"),
        ("vit_base_patch16_224_miil", "without bias"),
        ("resnet18", "basic blocks"),
        ("resnet50d", "stem"),
        ("resnext50_32x4d", "grouped"),
        ("swinv2_tiny_window8_256", "cosine"),
        ("efficientnet_b0", "no name that is known"),
        ("vit_base_patch16_99999999999999999999", "no name that is known"),
        ("vit_base_patch99999999999999999999_224", "no name that is known"),
        ("vit_base_patch0_224", "patch"),
        ("swin_tiny_patch4_window0_224", "window"),
        ("", "no name that is known"),
    ] {
        let error = refused(&path, Some(name)).to_string();
        assert!(error.contains(why), "{name}: {error}");
    }
}

#[test]
fn names_without_a_configuration_open_when_the_shapes_are_theirs() {
    let base = tempfile::tempdir().unwrap();
    let vit = Vit {
        width: 192,
        depth: 12,
        head_dim: 64,
        mlp_ratio: 4,
        patch: 16,
        image: 32,
        channels: 3,
        position_offset: 0.0,
        norm_eps: 1e-6,
        layer_scale: 0.0,
        classes: 2,
    };
    let path = base.path().join("w.safetensors");
    let specs = VitNetwork::new(vit.clone()).specs();
    let tensors: Vec<(String, Vec<usize>)> = specs
        .iter()
        .filter(|spec| spec.name != "mask_token")
        .map(|spec| {
            let ones = match &spec.name[..] {
                "cls_token" => 2,
                "pos_embed" => 1,
                _ => 0,
            };
            (spec.name.clone(), [vec![1; ones], spec.shape()].concat())
        })
        .collect();
    safetensors::write(&path, &tensors, |i| {
        Ok::<_, SafetensorsError>(vec![0.0; tensors[i].1.iter().product()])
    })
    .unwrap();
    let model = import::open(&path, Some("vit_tiny_patch16_32.made_up")).unwrap();
    assert_eq!(model.checkpoint.network().architecture(), Architecture::Vit(vit));
    let error = refused(&path, Some("vit_tiny_patch16_224")).to_string();
    assert!(
        error.contains("`pos_embed` is [1, 5, 192], the configuration asks for [1, 197, 192]"),
        "{error}"
    );
}

#[test]
fn pickles_are_refused_with_a_line_that_converts_them() {
    let base = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("model.pth", &b"whatever"[..]),
        ("model.bin", b"PK\x03\x04 and more"),
        ("zip", b"PK\x03\x04 and more"),
        ("weights.safetensors", b"PK\x03\x04 and more"),
        ("pickle", b"\x80\x02}q\x00X\x01\x00"),
    ] {
        let path = base.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = refused(&path, None);
        assert!(error.to_string().contains("pickle"), "{name}: {error}");
        assert!(error.hint().unwrap().contains("save_file"), "{name}");
    }
    let folder = base.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.json"), r#"{"model_type":"vit"}"#).unwrap();
    std::fs::write(folder.join("pytorch_model.bin"), b"PK").unwrap();
    assert!(refused(&folder, None).to_string().contains("pickle"));
}

/// A configuration with one key changed, beside honest weights.
fn changed(name: &str, key: &str, value: Value) -> CheckpointError {
    let base = tempfile::tempdir().unwrap();
    let mut config = json_of(&folder(name, base.path()).join("config.json"));
    match key.split_once('.') {
        Some((table, key)) => config[table][key] = value,
        None => config[key] = value,
    }
    let copy = base.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(folder(name, base.path()).join(WEIGHTS), copy.join(WEIGHTS)).unwrap();
    std::fs::write(copy.join("config.json"), config.to_string()).unwrap();
    refused(&copy, None)
}

/// A network that both programs have is written for transformers, or for timm if that is asked for.
#[test]
fn a_residual_network_goes_to_either_program() {
    let base = tempfile::tempdir().unwrap();
    let model = opened("resnet-timm", base.path());
    let view = whole(&model);
    for (program, key) in [(Program::Usual, "model_type"), (Program::Timm, "architecture")] {
        let out = base.path().join(key);
        let export = |program, folder: &Path| {
            model
                .checkpoint
                .export_child(&view, program, &model.preparation, folder)
        };
        export(program, &out).unwrap();
        assert!(json_of(&out.join("config.json"))[key].is_string(), "{key}");
        let again = Checkpoint::open(&out).unwrap();
        let weights = again.weights(&Device::flex()).unwrap();
        assert!(
            difference("resnet-timm", again.backbone().unwrap(), &weights) < 2e-5,
            "{key}"
        );
    }
    let vit = opened("vit", base.path());
    let view = whole(&vit);
    let refused = vit
        .checkpoint
        .export_child(&view, Program::Timm, &vit.preparation, &base.path().join("vit"));
    assert!(refused.unwrap_err().to_string().contains("timm"));
    assert!(!base.path().join("vit").exists());
}

/// What is written is the network of the images that it is given: it says so, and computes what the model does with them.
#[test]
fn a_model_given_images_of_another_side_is_written_for_them() {
    let base = tempfile::tempdir().unwrap();
    for (name, _) in FIXTURES {
        let mut model = opened(name, base.path());
        let network = model.checkpoint.backbone().unwrap();
        let ((channels, side), stride) = (network.image(), network.stride());
        let px = side + stride;
        model.set_side(px as u32).unwrap();
        assert!(
            model.notes.iter().any(|note| note.contains(&format!("--px {side}"))),
            "{name}"
        );
        let parent = base.path().join(format!("{name}-{px}"));
        model.save(&parent).unwrap();
        let saved = Checkpoint::open(&parent).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(saved.backbone().unwrap().image(), (channels, px), "{name}");
        let images = crate::numbers(5, channels * px * px);
        let images = || Tensor::<4>::from_data(TensorData::new(images.clone(), [1, channels, px, px]), &Device::flex());
        let [ours, theirs] = [&model.checkpoint, &saved].map(|checkpoint| {
            let weights = checkpoint.weights(&Device::flex()).unwrap();
            let network = checkpoint.backbone().unwrap();
            let features = network.forward(&weights, images(), None, &mut KeepAll);
            features.patches.into_data().try_to_vec::<f32>().unwrap()
        });
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() < 2e-5, "{name}: {a} against {b}");
        }
        model.set_side(side as u32).unwrap();
        assert!(model.notes.iter().all(|note| !note.contains("--px")), "{name}");
    }
}

/// A network in stages that starts from zeros under a norm has gradients without bounds there.
#[test]
fn a_mask_token_that_is_not_in_the_file_starts_as_in_a_fresh_network() {
    let base = tempfile::tempdir().unwrap();
    for (name, zero) in [
        ("swin-classifier", false),
        ("resnet-classifier", true),
        ("vit-timm", true),
    ] {
        let weights = opened(name, base.path()).checkpoint.weights(&Device::flex()).unwrap();
        let token = weights.get("mask_token").unwrap().values();
        assert_eq!(token.iter().all(|v| *v == 0.0), zero, "{name}");
    }
}

/// Thousands of classes make no configuration that is too large to be read again.
#[test]
fn a_classifier_of_many_classes_is_written_and_read() {
    let base = tempfile::tempdir().unwrap();
    let vit = Vit {
        layer_scale: 0.0,
        classes: 50_000,
        ..small()
    };
    let network = VitNetwork::new(vit);
    let weights = lively(&network.specs(), 3);
    checkpoint::save(&network, &weights, &preparation(&network), base.path()).unwrap();
    assert!(std::fs::metadata(base.path().join("config.json")).unwrap().len() < 4096);
    let again = Checkpoint::open(base.path()).unwrap();
    assert_eq!(again.network().architecture().classes(), 50_000);
}

#[test]
fn preparations_that_no_image_can_be_given_are_refused() {
    for (key, value) in [
        ("image_mean", json!([1e300, 0.5, 0.5])),
        ("image_std", json!([1e-300, 0.5, 0.5])),
        ("rescale_factor", json!(1e-320)),
    ] {
        let base = tempfile::tempdir().unwrap();
        let whole = fixture("vit");
        for file in ["config.json", WEIGHTS] {
            std::fs::copy(whole.join(file), base.path().join(file)).unwrap();
        }
        let mut said = json!({ "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5] });
        said[key] = value;
        std::fs::write(base.path().join("preprocessor_config.json"), said.to_string()).unwrap();
        let error = refused(base.path(), None).to_string();
        assert!(error.contains("preprocessor_config.json"), "{key}: {error}");
    }
}

#[test]
fn an_export_leaves_nothing_of_the_one_before() {
    let base = tempfile::tempdir().unwrap();
    let model = opened("vit", base.path());
    let view = whole(&model);
    let out = base.path().join("out");
    let folder = || {
        model
            .checkpoint
            .export_child(&view, Program::Usual, &model.preparation, &out)
            .unwrap();
    };
    let about = onnx::About {
        id: "whole",
        parent: "",
        preparation: &model.preparation,
    };
    let graph = || onnx::export(&model.checkpoint, &view, &about, &out, onnx::EMBEDDED).unwrap();
    folder();
    graph();
    assert!(!out.join("config.json").exists() && !out.join(WEIGHTS).exists() && out.join(onnx::MODEL).exists());
    folder();
    assert!(out.join("config.json").exists() && out.join(WEIGHTS).exists() && !out.join(onnx::MODEL).exists());
}

#[test]
fn configurations_that_no_network_here_fits_are_refused_by_their_key() {
    for (name, key, value) in [
        ("vit", "model_type", json!("dinov2_with_registers")),
        ("vit", "qkv_bias", json!(false)),
        ("vit", "hidden_act", json!("quick_gelu")),
        ("vit", "num_attention_heads", json!(5)),
        ("vit", "intermediate_size", json!(97)),
        ("dinov2", "use_swiglu_ffn", json!(true)),
        ("swin-classifier", "use_absolute_embeddings", json!(true)),
        ("swin-classifier", "model_type", json!("swinv2")),
        ("swin-classifier", "num_heads", json!([1, 3, 4, 8])),
        ("resnet-classifier", "layer_type", json!("basic")),
        ("resnet-classifier", "downsample_in_bottleneck", json!(7)),
        ("vit-timm", "model_args.class_token", json!(false)),
        ("vit-timm", "model_args.reg_tokens", json!(4)),
        ("vit-timm", "model_args.num_heads", json!(5)),
        ("swin-timm", "model_args.ape", json!(true)),
        ("resnet-timm", "model_args.cardinality", json!(32)),
        ("resnet-timm", "model_args.stem_type", json!("deep")),
    ] {
        let told = changed(name, key, value).to_string();
        let leaf = key.rsplit('.').next().unwrap();
        assert!(told.contains(leaf), "{name} {key}: {told}");
    }
}

#[test]
fn configurations_that_lie_are_errors_and_no_panic() {
    let values = [
        json!(0),
        json!(-1),
        json!(1 << 20),
        json!(u64::MAX),
        json!(1e300),
        json!("12"),
        json!([]),
        json!({}),
        json!([1u64 << 40, 1, 1]),
    ];
    for (name, _) in FIXTURES {
        let base = tempfile::tempdir().unwrap();
        let whole = folder(name, base.path());
        let config = json_of(&whole.join("config.json"));
        let table = if name.ends_with("-timm") { "/model_args" } else { "" };
        let keys: Vec<String> = config
            .pointer(table)
            .unwrap()
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        let copy = base.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(whole.join(WEIGHTS), copy.join(WEIGHTS)).unwrap();
        for key in keys {
            for value in &values {
                let mut lie = config.clone();
                lie.pointer_mut(table).unwrap()[&key] = value.clone();
                std::fs::write(copy.join("config.json"), lie.to_string()).unwrap();
                let opened = std::panic::catch_unwind(|| import::open(&copy, None).map(|_| ()));
                // Many keys mean nothing here; those that do are told with the folder.
                match opened {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => assert!(
                        error.to_string().contains(copy.to_str().unwrap()),
                        "{name} {key}: {error}"
                    ),
                    Err(_) => panic!("{name}: {key} = {value} panics"),
                }
            }
        }
    }
}

#[test]
fn a_model_in_several_files_opens_like_one_and_an_index_that_lies_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let network = VitNetwork::new(small());
    let weights = lively(&network.specs(), 3);
    let (whole, parts) = (base.path().join("whole"), base.path().join("parts"));
    checkpoint::save(&network, &weights, &preparation(&VitNetwork::new(small())), &whole).unwrap();
    std::fs::create_dir(&parts).unwrap();
    std::fs::copy(whole.join("config.json"), parts.join("config.json")).unwrap();
    let file = SafetensorsFile::open(&whole.join(WEIGHTS)).unwrap();
    let names = file.names();
    let mut map = serde_json::Map::new();
    for (number, half) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let shard = format!("model-{number}.safetensors");
        let tensors: Vec<(String, Vec<usize>)> = half
            .iter()
            .map(|name| (name.clone(), file.shape(name).unwrap().to_vec()))
            .collect();
        safetensors::write(&parts.join(&shard), &tensors, |i| file.read(&tensors[i].0)).unwrap();
        map.extend(half.iter().map(|name| (name.clone(), json!(shard))));
    }
    let index = parts.join("model.safetensors.index.json");
    let write = |map: &serde_json::Map<String, Value>| {
        std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    };
    write(&map);
    let weights_of = |folder: &Path| {
        let opened = import::open(folder, None).unwrap();
        crate::all_bits(&opened.checkpoint.weights(&Device::flex()).unwrap())
    };
    assert_eq!(weights_of(&parts), weights_of(&whole));
    for (shard, what) in [
        (json!("../whole/model.safetensors"), "no file of the same folder"),
        (json!("/etc/passwd"), "no file of the same folder"),
        (json!(".."), "no file of the same folder"),
        (json!("model-1.safetensors"), "is not in"),
        (json!("model-7.safetensors"), "model-7"),
        (json!(7), "no file name"),
    ] {
        let mut lie = map.clone();
        lie.insert(names[0].clone(), shard.clone());
        write(&lie);
        let error = import::open(&parts, None).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(what), "{shard}: {error}");
    }
    let mut lie = map.clone();
    lie.remove(&names[0]);
    write(&lie);
    assert!(import::open(&parts, None).is_err());
    std::fs::write(&index, "{}").unwrap();
    assert!(import::open(&parts, None).is_err());
    write(&serde_json::Map::new());
    assert!(import::open(&parts, None).is_err());
}

/// The type is found before anything is loaded.
#[test]
fn tensors_that_are_no_numbers_are_refused_when_a_model_is_opened() {
    let base = tempfile::tempdir().unwrap();
    let network = VitNetwork::new(small());
    checkpoint::save(
        &network,
        &lively(&network.specs(), 3),
        &preparation(&VitNetwork::new(small())),
        base.path(),
    )
    .unwrap();
    let mut end = 0;
    let infos: Vec<String> = network
        .layout()
        .shapes()
        .into_iter()
        .map(|(name, shape)| {
            let start = end;
            end += shape.iter().product::<usize>();
            format!(r#""{name}":{{"dtype":"I8","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    std::fs::write(
        base.path().join(WEIGHTS),
        raw(&format!("{{{}}}", infos.join(",")), &vec![0; end]),
    )
    .unwrap();
    assert!(refused(base.path(), None).to_string().contains("I8"));
}

/// (255 v - 123.68) / 1 is (v - 123.68 / 255) / (1 / 255).
#[test]
fn preparations_in_other_units_are_the_same_in_ours() {
    let base = tempfile::tempdir().unwrap();
    let network = VitNetwork::new(Vit { channels: 3, ..small() });
    checkpoint::save(
        &network,
        &lively(&network.specs(), 3),
        &preparation(&network),
        base.path(),
    )
    .unwrap();
    let with = |said: Value| {
        std::fs::write(base.path().join("preprocessor_config.json"), said.to_string()).unwrap();
        import::open(base.path(), None)
    };
    let keras = json!({
        "image_processor_type": "ConvNextImageProcessor", "size": { "shortest_edge": 6 }, "crop_pct": 1.0, "resample": 2,
        "do_rescale": true, "rescale_factor": 1.0, "do_normalize": true,
        "image_mean": [123.68, 116.779, 103.939], "image_std": [1.0, 1.0, 1.0]
    });
    let how = images(&with(keras.clone()).unwrap());
    assert_eq!((how.resize, how.crop, how.channels), (6, 6, 3));
    for (channel, mean) in [123.68, 116.779, 103.939].into_iter().enumerate() {
        for byte in [0.0, 17.0, 255.0] {
            let ours = (byte / 255.0 - f64::from(how.mean[channel])) / f64::from(how.std[channel]);
            assert!((ours - (byte - mean)).abs() < 1e-4, "{ours}");
        }
    }
    let half = json!({ "size": { "height": 6, "width": 6 }, "image_mean": 0.5, "image_std": [0.5, 0.5, 0.5], "do_normalize": true });
    let model = with(half).unwrap();
    let how = images(&model);
    assert_eq!((how.mean, how.resize), (vec![0.5; 3], 6));
    assert!(model.notes.join(";").contains("square"));
    for (key, value) in [
        ("rescale_factor", json!(0)),
        ("rescale_factor", json!("x")),
        ("image_mean", json!([1.0])),
        ("image_std", json!([1.0, 0.0, 1.0])),
        ("image_std", json!([1.0, 2.0])),
        ("size", json!({ "shortest_edge": -3 })),
        ("size", json!({ "height": 6, "width": 7 })),
        ("size", json!(u64::MAX)),
    ] {
        let mut said = keras.clone();
        said[key] = value.clone();
        match with(said) {
            // One mean stands for every channel.
            Ok(_) => assert_eq!((key, &value), ("image_mean", &json!([1.0]))),
            Err(error) => assert!(error.to_string().contains(key), "{key} = {value}: {error}"),
        }
    }
}

/// Positions taken over to another grid give the features that the model itself has at that size.
#[test]
fn a_model_taken_over_to_another_grid_has_the_features_of_the_old_one_there() {
    let base = tempfile::tempdir().unwrap();
    for name in ["dinov2", "vit-classifier"] {
        let model = opened(name, base.path());
        let parent = model.checkpoint.backbone().unwrap();
        let weights = model.checkpoint.weights(&Device::flex()).unwrap();
        let Architecture::Vit(vit) = parent.architecture() else {
            panic!("{name} is no ViT")
        };
        let smaller = VitNetwork::new(Vit {
            image: 8,
            classes: 0,
            ..vit
        });
        let taken = start::taken_over(parent, &weights, &smaller, &Device::flex());
        assert_eq!(taken.mismatch(&smaller.specs()), None);
        let pixels = crate::numbers(9, 2 * 3 * 64);
        let images = || Tensor::<4>::from_data(TensorData::new(pixels.clone(), [2, 3, 8, 8]), &Device::flex());
        let old = parent.forward(&weights, images(), None, &mut KeepAll).cls;
        let new = smaller.forward(&taken, images(), None, &mut KeepAll);
        assert!(new.logits.is_none());
        let gap = (old - new.cls).abs().max().into_scalar::<f32>();
        assert!(gap < 1e-5, "{name}: {gap:e}");
    }
}
