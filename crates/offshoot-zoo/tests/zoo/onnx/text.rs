//! Decoders as ONNX: what they compute for any batch and length, run by tract, and what their files declare and hold.

use std::path::Path;

use offshoot_family::{Decoder, DecoderKind, RopeScaling, Shape};
use offshoot_zoo::checkpoint::{self, Checkpoint};
use offshoot_zoo::decoder::Tokens;
use offshoot_zoo::materialize::materialize;
use offshoot_zoo::onnx::{self, About};
use offshoot_zoo::{DecoderNetwork, Network, Preparation, TokenizerFiles, Weights, network};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Side;

use super::file::{Compiled, Model, declared, floats};
use crate::{bits, lively, numbers};

fn gpt2() -> Decoder {
    Decoder {
        kind: DecoderKind::Gpt2,
        width: 12,
        depth: 3,
        heads: 3,
        kv_heads: 3,
        head_dim: 4,
        hidden: 20,
        vocabulary: 29,
        context: 11,
        norm_eps: 1e-5,
        tied: true,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    }
}

/// Heads are twice as wide as the residual stream, and two of them share keys and values.
fn llama() -> Decoder {
    Decoder {
        kind: DecoderKind::Llama,
        heads: 6,
        hidden: 10,
        ..gpt2()
    }
}

fn preparation() -> Preparation {
    let (begin, end) = ((3, "<s>".to_owned()), (7, "</s>".to_owned()));
    let json = br#"{"version": "1.0"}"#.to_vec();
    Preparation::Text(TokenizerFiles::new(json, Some(begin), Some(end), 11))
}

fn parent(folder: &Path, network: &dyn Network, weights: &Weights) -> Checkpoint {
    checkpoint::save(network, weights, &preparation(), folder).unwrap();
    Checkpoint::open(folder).unwrap()
}

/// Sequences of tokens without pattern.
fn sequences(seed: u64, count: usize, length: usize, vocabulary: usize) -> Vec<Vec<u32>> {
    let ids: Vec<u32> = numbers(seed, count * length)
        .into_iter()
        .map(|v| ((v + 1.0) / 2.0 * vocabulary as f32) as u32)
        .collect();
    ids.chunks(length).map(<[u32]>::to_vec).collect()
}

/// Largest difference between the logits of `model` and those of `network`, over batches and lengths that share no factor; and the
/// largest logit.
fn difference(model: &Compiled, network: &DecoderNetwork, weights: &Weights) -> (f32, f32) {
    let Decoder {
        vocabulary, context, ..
    } = *network.decoder();
    let (mut worst, mut largest) = (0.0, 0.0);
    for (count, length) in [(1, 1), (1, 7), (3, 5), (5, 1), (2, context)] {
        let tokens = sequences((count * length) as u64, count, length, vocabulary);
        let theirs = model.read(&tokens).unwrap();
        assert!(theirs.keys().eq(&["logits"]));
        assert_eq!(theirs["logits"].shape(), [count, length, vocabulary]);
        let ours = network.logits(weights, &Tokens::new(&tokens)).into_data();
        for (a, b) in ours.try_to_vec::<f32>().unwrap().iter().zip(floats(&theirs["logits"])) {
            // Written so that a NaN stays.
            let off = (a - b).abs();
            worst = if off <= worst { worst } else { off };
            largest = f32::max(largest, b.abs());
        }
    }
    (worst, largest)
}

#[test]
fn an_exported_decoder_computes_what_the_child_does_for_any_batch_and_length() {
    let shape = |width: usize, depth: usize| Shape::new([("width", width), ("depth", depth)]);
    let own = |width: usize, hidden: usize, depth: usize| {
        Shape::new([("width", width), ("hidden", hidden), ("depth", depth)])
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8,
    };
    let cases = vec![
        (gpt2(), vec![shape(12, 3), shape(8, 2), own(4, 13, 1)]),
        (llama(), vec![shape(12, 3), shape(8, 2), own(4, 3, 1)]),
        // One head of keys for all, an output layer of its own, stretched positions.
        (
            Decoder {
                heads: 5,
                kv_heads: 1,
                head_dim: 6,
                tied: false,
                rope_scaling: RopeScaling::Linear { factor: 4.0 },
                norm_eps: 1e-3,
                ..llama()
            },
            vec![shape(12, 3), own(12, 7, 2)],
        ),
        // As many as queries, the narrowest heads there are.
        (
            Decoder {
                heads: 4,
                kv_heads: 4,
                head_dim: 2,
                tied: false,
                rope_theta: 5e5,
                rope_scaling: llama3,
                context: 32,
                ..llama()
            },
            vec![shape(12, 3), shape(9, 2), own(3, 10, 3)],
        ),
    ];
    for (number, (decoder, shapes)) in cases.into_iter().enumerate() {
        let base = tempfile::tempdir().unwrap();
        decoder.check().unwrap();
        let network = DecoderNetwork::new(decoder);
        let weights = lively(&network.specs(), 60 + number as u64);
        let parent = parent(&base.path().join("parent"), &network, &weights);
        let hash = parent.hash().unwrap();
        for shape in shapes {
            let view = parent.network().child(&shape, &hash).unwrap();
            let (child, plan) = parent.plan(&view).unwrap();
            let id = format!("{number}-{shape}");
            let about = About {
                id: &id,
                parent: &hash,
                preparation: &preparation(),
            };
            let folder = base.path().join(&id);
            onnx::export(&parent, &view, &about, &folder, onnx::EMBEDDED).unwrap();
            let model = Model::open(&folder).compile();
            let child = network::decoder(child.as_ref()).unwrap();
            let (worst, largest) = difference(&model, child, &materialize(&weights, &plan));
            assert!(largest > 0.5, "{id}: logits of {largest}");
            assert!(worst < 3e-5, "{id}: {worst:e}");
            // Learned positions end; turned ones do not.
            let longer = sequences(5, 1, child.decoder().context + 1, child.decoder().vocabulary);
            let learned = child.decoder().kind == DecoderKind::Gpt2;
            assert_eq!(model.read(&longer).is_none(), learned, "{id}");
        }
    }
}

#[test]
fn a_model_of_text_says_what_goes_in_and_out_and_has_its_tokenizer_beside_it() {
    let base = tempfile::tempdir().unwrap();
    for tied in [true, false] {
        let network = DecoderNetwork::new(Decoder { tied, ..llama() });
        let weights = lively(&network.specs(), 3);
        let parent = parent(&base.path().join(format!("parent-{tied}")), &network, &weights);
        let hash = parent.hash().unwrap();
        let shape = Shape::new([("width", 8), ("depth", 2)]);
        let view = parent.network().child(&shape, &hash).unwrap();
        let prepared = preparation();
        let about = About {
            id: "8x2",
            parent: &hash,
            preparation: &prepared,
        };
        let folder = base.path().join(tied.to_string());
        onnx::export(&parent, &view, &about, &folder, onnx::EMBEDDED).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let beside = [
            "generation_config.json",
            "model.onnx",
            "tokenizer.json",
            "tokenizer_config.json",
        ];
        assert_eq!(names, beside);
        let Preparation::Text(tokenizer) = &prepared else {
            unreachable!("a tokenizer was given")
        };
        assert_eq!(std::fs::read(folder.join("tokenizer.json")).unwrap(), tokenizer.json());
        let model = Model::open(&folder);
        let sides = |last: &[i64]| -> Vec<Side> {
            let open = ["batch", "sequence"].map(|name| Side::DimParam(name.into()));
            open.into_iter()
                .chain(last.iter().map(|n| Side::DimValue(*n)))
                .collect()
        };
        let inputs: Vec<_> = model.graph().input.iter().map(declared).collect();
        assert_eq!(inputs, [("input_ids", sides(&[]))]);
        let outputs: Vec<_> = model.graph().output.iter().map(declared).collect();
        assert_eq!(outputs, [("logits", sides(&[29]))]);
        let metadata = model.metadata();
        let said = |key: &str| metadata[key];
        assert_eq!((said("id"), said("parent")), ("8x2", &hash[..]));
        assert_eq!((said("vocabulary"), said("context")), ("29", "11"));
        assert_eq!((said("bos_token_id"), said("eos_token_id")), ("3", "7"));
        assert_eq!(said("tokenizer"), blake3::hash(tokenizer.json()).to_hex().as_str());
        assert!(
            said("architecture").contains(r#""kv_heads":2"#),
            "{}",
            said("architecture")
        );
        // Every weight by our name, once, packed as ours are: a tied output layer is no second one.
        let (child, plan) = parent.plan(&view).unwrap();
        let folded = materialize(&weights, &plan);
        let initializers = model.initializers();
        for spec in child.specs() {
            let stored = &initializers[&spec.name[..]];
            assert_eq!(stored.shape(), spec.shape(), "{}", spec.name);
            let ours = folded.get(&spec.name).unwrap().values();
            assert_eq!(bits(floats(stored)), bits(&ours), "{}", spec.name);
        }
        let large = initializers.values().filter(|stored| stored.shape() == [29, 8]).count();
        assert_eq!(large, if tied { 1 } else { 2 });
    }
}

#[test]
fn nothing_in_a_model_grows_with_the_context_of_turned_positions() {
    let base = tempfile::tempdir().unwrap();
    let bytes = [100, 100_000].map(|context| {
        let network = DecoderNetwork::new(Decoder { context, ..llama() });
        let weights = lively(&network.specs(), 9);
        let about = About {
            id: "12x3",
            parent: "",
            preparation: &preparation(),
        };
        let folder = base.path().join(context.to_string());
        onnx::write(&network, &about, &folder, onnx::EMBEDDED, |name| {
            Ok::<_, onnx::OnnxError>(weights.get(name).unwrap().values())
        })
        .unwrap();
        std::fs::metadata(folder.join(onnx::MODEL)).unwrap().len()
    });
    // The number itself, twice: in the architecture and by itself.
    assert!(bytes[1] <= bytes[0] + 6, "{bytes:?}");
}
