//! Decoders: children by index arithmetic written out by hand, sequences that do not see each other, and folders read back.

use std::collections::BTreeMap;

use offshoot_family::{Architecture, Decoder, DecoderKind, RopeScaling, Shape};
use offshoot_zoo::checkpoint;
use offshoot_zoo::decoder::Tokens;
use offshoot_zoo::layout::{Layout, Program};
use offshoot_zoo::materialize::{compile, materialize};
use offshoot_zoo::network::SpaceBounds;
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{Checkpoint, DecoderNetwork, Network, Preparation, TokenizerFiles, Weights, open};
use proptest::prelude::*;

use crate::{all_bits, bits, lively};

/// Decoders of odd sizes: 1 to 3 heads of keys and values, each for 1 to 3 heads of queries of 2 to 8 channels.
fn decoders() -> impl Strategy<Value = Decoder> {
    let heads = (1..=3usize, 1..=3usize, 1..=4usize);
    let rest = (
        1..=4usize,
        1..=9usize,
        2..=40usize,
        0..=3usize,
        any::<bool>(),
        any::<bool>(),
    );
    (heads, rest).prop_map(
        |((kv_heads, each, half), (depth, hidden, vocabulary, wider, gpt2, tied))| {
            let (kind, each) = if gpt2 {
                (DecoderKind::Gpt2, 1)
            } else {
                (DecoderKind::Llama, each)
            };
            let (heads, head_dim) = (kv_heads * each, 2 * half);
            // The residual stream of a Llama need not be as wide as its heads together.
            let wider = if gpt2 { 0 } else { wider * kv_heads };
            Decoder {
                kind,
                width: heads * head_dim + wider,
                depth,
                heads,
                kv_heads,
                head_dim,
                hidden,
                vocabulary,
                context: 12,
                norm_eps: 1e-5,
                tied: gpt2 || tied,
                rope_theta: 1e4,
                rope_scaling: RopeScaling::None,
            }
        },
    )
}

/// Every width, hidden size and depth.
fn shapes(network: &DecoderNetwork) -> Vec<Shape> {
    let bounds = |min_hidden| SpaceBounds {
        min_width: network.width_step(),
        min_depths: vec![1],
        min_hidden,
        hidden_step: 3,
        ..SpaceBounds::default()
    };
    let following = network.space(bounds(0)).unwrap();
    let own = network.space(bounds(1)).unwrap();
    following.iter().chain(own.iter()).collect()
}

/// Rows and columns of a matrix, in that order, times a factor.
fn pick(matrix: &[f32], of: usize, rows: &[usize], columns: &[usize], gain: f32) -> Vec<f32> {
    let row = |r: &usize| {
        columns
            .iter()
            .map(move |c| matrix[r * of + c] * gain)
            .collect::<Vec<_>>()
    };
    rows.iter().flat_map(row).collect()
}

/// The tensors of a child that keeps `groups` heads of keys and values, the first `width` channels, `hidden` hidden channels and
/// these blocks, without specs and plans.
fn by_hand(
    d: &Decoder,
    weights: &Weights,
    (width, groups, hidden): (usize, usize, usize),
    blocks: &[usize],
) -> BTreeMap<String, Vec<f32>> {
    let values = |name: &str| weights.get(name).unwrap().values();
    let first = |n: usize| -> Vec<usize> { (0..n).collect() };
    let gain = |of: usize, kept: usize| {
        if kept < of {
            (of as f64 / kept as f64) as f32
        } else {
            1.0
        }
    };
    let residual = first(width);
    let mut child = BTreeMap::new();
    let gpt2 = d.kind == DecoderKind::Gpt2;
    let vector = |child: &mut BTreeMap<String, Vec<f32>>, from: &str, to: &str| {
        child.insert(to.to_owned(), pick(&values(from), 1, &residual, &[0], 1.0));
    };
    vector(&mut child, "norm.weight", "norm.weight");
    if gpt2 {
        vector(&mut child, "norm.bias", "norm.bias");
        child.insert(
            "pos_embed".into(),
            pick(&values("pos_embed"), d.width, &first(d.context), &residual, 1.0),
        );
    }
    let embedding = pick(&values("embed.weight"), d.width, &first(d.vocabulary), &residual, 1.0);
    child.insert("embed.weight".into(), embedding);
    let reads = gain(d.width, width);
    if !d.tied {
        let head = pick(&values("head.weight"), d.width, &first(d.vocabulary), &residual, reads);
        child.insert("head.weight".into(), head);
    }
    let each = d.heads / d.kv_heads;
    let dim = d.head_dim;
    // Of a packed row: the queries of the kept groups, then their keys, then their values.
    let queries = first(groups * each * dim);
    let keys: Vec<usize> = first(groups * dim).iter().map(|c| d.heads * dim + c).collect();
    let values_of: Vec<usize> = first(groups * dim)
        .iter()
        .map(|c| (d.heads + d.kv_heads) * dim + c)
        .collect();
    let qkv = [queries.clone(), keys, values_of].concat();
    let both = [first(hidden), first(hidden).iter().map(|c| d.hidden + c).collect()].concat();
    for (to, from) in blocks.iter().enumerate() {
        let (ours, theirs) = (
            |leaf: &str| format!("blocks.{to}.{leaf}"),
            |leaf: &str| format!("blocks.{from}.{leaf}"),
        );
        let mut put = |leaf: &str, values: Vec<f32>| child.insert(ours(leaf), values);
        let of = |leaf: &str| values(&theirs(leaf));
        put("norm1.weight", pick(&of("norm1.weight"), 1, &residual, &[0], 1.0));
        put("norm2.weight", pick(&of("norm2.weight"), 1, &residual, &[0], 1.0));
        put(
            "attn.qkv.weight",
            pick(&of("attn.qkv.weight"), d.width, &qkv, &residual, reads),
        );
        let mixed = gain(d.kv_heads, groups);
        put(
            "attn.proj.weight",
            pick(&of("attn.proj.weight"), d.heads * dim, &residual, &queries, mixed),
        );
        let last = gain(d.hidden, hidden);
        if gpt2 {
            for leaf in ["norm1.bias", "norm2.bias", "attn.proj.bias", "mlp.fc2.bias"] {
                put(leaf, pick(&of(leaf), 1, &residual, &[0], 1.0));
            }
            put("attn.qkv.bias", pick(&of("attn.qkv.bias"), 1, &qkv, &[0], 1.0));
            put(
                "mlp.fc1.weight",
                pick(&of("mlp.fc1.weight"), d.width, &first(hidden), &residual, reads),
            );
            put("mlp.fc1.bias", pick(&of("mlp.fc1.bias"), 1, &first(hidden), &[0], 1.0));
            put(
                "mlp.fc2.weight",
                pick(&of("mlp.fc2.weight"), d.hidden, &residual, &first(hidden), last),
            );
        } else {
            put(
                "mlp.gate_up.weight",
                pick(&of("mlp.gate_up.weight"), d.width, &both, &residual, reads),
            );
            put(
                "mlp.down.weight",
                pick(&of("mlp.down.weight"), d.hidden, &residual, &first(hidden), last),
            );
        }
    }
    child
}

/// `tokens` tokens without pattern.
fn text(vocabulary: usize, tokens: usize, seed: usize) -> Vec<u32> {
    (0..tokens)
        .map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % vocabulary) as u32)
        .collect()
}

fn logits(network: &DecoderNetwork, weights: &Weights, windows: &[Vec<u32>]) -> Vec<f32> {
    let found = network.logits(weights, &Tokens::new(windows));
    found.into_data().try_to_vec().unwrap()
}

fn files() -> Preparation {
    Preparation::Text(TokenizerFiles::new(b"{}".to_vec(), None, Some((1, "<end>".into())), 12))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_child_of_a_decoder_is_its_slices(decoder in decoders(), seed in any::<u64>()) {
        prop_assert!(decoder.check().is_ok());
        let network = DecoderNetwork::new(decoder.clone());
        let weights = lively(&network.specs(), seed);
        for shape in shapes(&network) {
            let (width, depth) = (shape.get("width").unwrap(), shape.get("depth").unwrap());
            let view = network.child(&shape, "p").unwrap();
            let Architecture::Decoder(child) = &view.child else { panic!("{view:?}") };
            prop_assert!(child.check().is_ok());
            let groups = decoder.kv_heads * width / decoder.width;
            let hidden = shape.get("hidden").unwrap_or((decoder.hidden * width / decoder.width).max(1));
            prop_assert_eq!((child.kv_heads, child.hidden, child.depth), (groups, hidden, depth));
            let opened = open(&view.child).unwrap();
            let plan = compile(&network.specs(), Some(&opened.specs()), &view).unwrap();
            let from = |j: usize| if depth == 1 { 0 } else { (decoder.depth - 1) * j / (depth - 1) };
            let blocks: Vec<usize> = (0..depth).map(from).collect();
            let expected = by_hand(&decoder, &weights, (width, groups, hidden), &blocks);
            let cut = materialize(&weights, &plan);
            prop_assert!(cut.mismatch(&opened.specs()).is_none());
            prop_assert_eq!(cut.len(), expected.len());
            for entry in &plan {
                let host = entry.on_host(&weights.get(&entry.parent).unwrap().values());
                prop_assert!(bits(&host) == bits(&expected[&entry.name]), "host: {}", entry.name);
                let device = cut.get(&entry.name).unwrap().values();
                prop_assert!(bits(&device) == bits(&expected[&entry.name]), "device: {}", entry.name);
            }
            // A child is a decoder like any other.
            let own = opened.as_decoder().unwrap();
            let tokens = Tokens::new(&[text(decoder.vocabulary, 5, 1)]);
            let found: Vec<f32> = own.logits(&cut, &tokens).into_data().try_to_vec().unwrap();
            prop_assert!(found.iter().all(|v| v.is_finite()));
            if width == decoder.width && depth == decoder.depth && hidden == decoder.hidden {
                prop_assert_eq!(all_bits(&cut), all_bits(&weights));
            }
        }
    }

    #[test]
    fn sequences_of_a_batch_and_tokens_to_come_are_not_seen(decoder in decoders(), seed in any::<u64>()) {
        let network = DecoderNetwork::new(decoder.clone());
        let weights = lively(&network.specs(), seed);
        let windows: Vec<Vec<u32>> = [3, 12, 12, 1, 7].iter().enumerate().map(|(i, &n)| text(decoder.vocabulary, n, i)).collect();
        let together = logits(&network, &weights, &windows);
        let alone: Vec<f32> = windows.iter().flat_map(|window| logits(&network, &weights, std::slice::from_ref(window))).collect();
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + a.abs()));
        prop_assert!(close(&together, &alone));
        let mut changed = windows[1].clone();
        changed[8] = (changed[8] + 1) % decoder.vocabulary as u32;
        let [before, after] = [&windows[1], &changed].map(|window| logits(&network, &weights, std::slice::from_ref(window)));
        let seen = 8 * decoder.vocabulary;
        prop_assert!(close(&before[..seen], &after[..seen]));
    }

    #[test]
    fn a_folder_holds_what_was_saved_and_a_child_streamed_from_it_is_the_one_in_memory(decoder in decoders(), seed in any::<u64>()) {
        let network = DecoderNetwork::new(decoder);
        let weights = lively(&network.specs(), seed);
        let base = tempfile::tempdir().unwrap();
        let parent = base.path().join("parent");
        std::fs::create_dir(&parent).unwrap();
        checkpoint::save(&network, &weights, &files(), &parent).unwrap();
        let opened = Checkpoint::open(&parent).unwrap();
        prop_assert_eq!(opened.network().architecture(), network.architecture());
        prop_assert_eq!(all_bits(&opened.weights(&Device::flex()).unwrap()), all_bits(&weights));
        let bytes = std::fs::metadata(parent.join("model.safetensors")).unwrap().len();
        prop_assert_eq!(network.layout().bytes(), bytes);
        prop_assert_eq!(TokenizerFiles::open(&parent).unwrap().eos, Some(1));
        let shape = shapes(&network).swap_remove(0);
        let view = network.child(&shape, &opened.hash().unwrap()).unwrap();
        let folder = base.path().join("child");
        std::fs::create_dir(&folder).unwrap();
        opened.export_child(&view, Program::Usual, &files(), &folder).unwrap();
        let child = Checkpoint::open(&folder).unwrap();
        let plan = compile(&network.specs(), Some(&child.network().specs()), &view).unwrap();
        prop_assert_eq!(all_bits(&child.weights(&Device::flex()).unwrap()), all_bits(&materialize(&weights, &plan)));
    }
}

/// The numbers that transformers' `save_pretrained` gives a GPT-2 of 2 blocks: 2 + 2 * 12 + 2 tensors, `Conv1D` (in, out).
#[test]
fn gpt2s_matrices_are_turned_in_the_file_and_nothing_elses() {
    let decoder = Decoder {
        kind: DecoderKind::Gpt2,
        width: 4,
        depth: 2,
        heads: 2,
        kv_heads: 2,
        head_dim: 2,
        hidden: 6,
        vocabulary: 7,
        context: 5,
        norm_eps: 1e-5,
        tied: true,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    };
    let network = DecoderNetwork::new(decoder);
    let Layout { tensors, .. } = network.layout();
    assert_eq!(tensors.len(), 28);
    let named = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap();
    let shape = |name: &str| named(name).shape.clone();
    assert_eq!(shape("transformer.h.1.attn.c_attn.weight"), [4, 12]);
    assert_eq!(shape("transformer.h.1.mlp.c_proj.weight"), [6, 4]);
    assert_eq!(shape("transformer.wte.weight"), [7, 4]);
    let ours: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let first = named("transformer.h.0.mlp.c_fc.weight");
    // Ours is [6, 4]: the first row of the file has the first of each of our rows.
    assert_eq!(first.to_file(&ours)[..6], [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]);
    assert_eq!(first.of_file(first.to_file(&ours)), ours);
    let vector = named("transformer.h.0.mlp.c_fc.bias");
    assert_eq!(vector.to_file(&ours[..6]), ours[..6]);
}
