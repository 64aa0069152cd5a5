//! Whole models: what is exported opens as the same network with the same tokenizer, its tensors lie where llama.cpp looks for them, and
//! files of others are understood.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::f16;
use offshoot_family::{Architecture, Decoder, DecoderKind, RopeScaling, Shape, View};
use offshoot_zoo::gguf::{self, GgufError, GgufFile, Metadata, Opened, Tensor, TensorType, write};
use offshoot_zoo::import;
use offshoot_zoo::materialize::materialize;
use offshoot_zoo::network::SpaceBounds;
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{Checkpoint, DecoderNetwork, Network, Preparation, TokenizerFiles, Weights, checkpoint};
use serde_json::Value;

use super::fixture;
use super::tokenizer::comes_back;
use crate::{all_bits, bits, lively, numbers};

/// A Llama whose heads together are wider than the residual stream, three queries to a key.
fn llama() -> Decoder {
    Decoder {
        kind: DecoderKind::Llama,
        width: 48,
        depth: 3,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        hidden: 40,
        vocabulary: 401,
        context: 32,
        norm_eps: 1e-5,
        tied: false,
        rope_theta: 5e5,
        rope_scaling: RopeScaling::None,
    }
}

/// The same with as many keys as queries: nothing but their place tells them apart.
fn unshared() -> Decoder {
    Decoder {
        heads: 3,
        kv_heads: 3,
        tied: true,
        ..llama()
    }
}

/// A GPT-2 with more rows of embeddings than tokens.
pub(super) fn gpt2() -> Decoder {
    Decoder {
        kind: DecoderKind::Gpt2,
        kv_heads: 6,
        head_dim: 8,
        vocabulary: 416,
        norm_eps: 1e-6,
        tied: true,
        rope_theta: 1e4,
        ..llama()
    }
}

fn stretched(rope_scaling: RopeScaling) -> Decoder {
    Decoder {
        rope_scaling,
        ..llama()
    }
}

fn llama3(factor: f64, original_context: usize) -> RopeScaling {
    RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context,
    }
}

const TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}{% endfor %}\n";

/// A byte-level tokenizer of 401 tokens that `interop/fixtures.py` wrote, with a token for every task.
fn files(context: usize) -> TokenizerFiles {
    let json = std::fs::read(fixture("byte-level.json")).unwrap();
    let end = || Some((0, "<|endoftext|>".to_owned()));
    let fills = Some((400, "<|im_start|>".to_owned()));
    TokenizerFiles::new(json, end(), end(), context).with(fills, end(), Some(TEMPLATE.into()))
}

/// A checkpoint folder of a decoder.
pub(super) struct Saved {
    base: tempfile::TempDir,
    network: DecoderNetwork,
    weights: Weights,
    parent: Checkpoint,
}

impl Saved {
    pub(super) fn new(decoder: &Decoder) -> Self {
        let network = DecoderNetwork::new(decoder.clone());
        let weights = lively(&network.specs(), 7);
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("parent");
        std::fs::create_dir(&folder).unwrap();
        let preparation = Preparation::Text(files(decoder.context));
        checkpoint::save(&network, &weights, &preparation, &folder).unwrap();
        Self {
            parent: Checkpoint::open(&folder).unwrap(),
            base,
            network,
            weights,
        }
    }

    fn view(&self, shape: &Shape) -> View {
        self.network.child(shape, &self.parent.hash().unwrap()).unwrap()
    }

    fn export(&self, view: &View, kind: TensorType) -> PathBuf {
        let folder = self.base.path().join("exported");
        std::fs::create_dir_all(&folder).unwrap();
        let tokenizer = TokenizerFiles::open(&self.base.path().join("parent")).unwrap();
        let notes = gguf::export(&self.parent, view, &tokenizer, ("a name", kind), &folder).unwrap();
        assert_eq!(notes, []);
        folder.join(gguf::MODEL)
    }

    /// The whole network in 32 bits.
    pub(super) fn whole(&self) -> PathBuf {
        let intact = self.network.space(SpaceBounds::default()).unwrap().intact();
        self.export(&self.view(&intact), TensorType::F32)
    }
}

/// All that a file says, to be changed and written again.
pub(super) struct Parts {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<(Tensor, Vec<f32>)>,
}

impl Parts {
    pub(super) fn of(path: &Path) -> Self {
        let file = GgufFile::open(path).unwrap();
        let tensor = |name: &str| {
            let (name, shape) = (name.to_owned(), file.shape(name).unwrap().to_vec());
            let (kind, values) = (file.kind(&name).unwrap(), file.read(&name).unwrap());
            (Tensor { name, shape, kind }, values)
        };
        Self {
            metadata: file.metadata().clone(),
            tensors: file.names().map(tensor).collect(),
        }
    }

    /// Leaves out all values whose names begin like this.
    pub(super) fn without(&mut self, start: &str) {
        let mut kept = Metadata::new();
        for (key, value) in self.metadata.iter().filter(|(key, _)| !key.starts_with(start)) {
            kept.set(key, value.clone());
        }
        self.metadata = kept;
    }

    pub(super) fn tensor(&mut self, name: &str) -> &mut (Tensor, Vec<f32>) {
        self.tensors.iter_mut().find(|(tensor, _)| tensor.name == name).unwrap()
    }

    pub(super) fn write(&self, path: &Path) {
        let infos: Vec<_> = self.tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
        write(path, &self.metadata, &infos, |i| {
            Ok::<_, GgufError>(self.tensors[i].1.clone())
        })
        .unwrap();
    }

    fn opened(&self, path: &Path) -> Result<Opened, String> {
        self.write(path);
        gguf::open(path).map_err(|e| {
            assert!(e.to_string().contains(path.to_str().unwrap()), "{e}");
            e.to_string()
        })
    }
}

fn same_weights(found: &Checkpoint, wanted: &Weights) {
    let found = all_bits(&found.weights(&Device::flex()).unwrap());
    let wanted = all_bits(wanted);
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, (shape, bits)) in &wanted {
        assert!(found[name] == (shape.clone(), bits.clone()), "`{name}` differs");
    }
}

fn same_tokenizer(found: &TokenizerFiles) {
    assert_eq!((found.bos, found.eos), (Some(0), Some(0)));
    assert_eq!(found.chat_template(), Some(TEMPLATE));
    let said = found.config().unwrap();
    for (key, token) in [
        ("bos_token", "<|endoftext|>"),
        ("eos_token", "<|endoftext|>"),
        ("unk_token", "<|endoftext|>"),
        ("pad_token", "<|im_start|>"),
    ] {
        assert_eq!(said[key], token, "{key}");
    }
    assert_eq!(said["model_max_length"], 32);
    let original: Value = serde_json::from_slice(files(32).json()).unwrap();
    let back: Value = serde_json::from_slice(found.json()).unwrap();
    comes_back(&back, &original);
    assert_eq!(back["model"]["merges"], original["model"]["merges"]);
}

#[test]
fn an_exported_model_opens_as_the_same_network_with_the_same_tokenizer() {
    let halved = Decoder {
        head_dim: 8,
        tied: true,
        norm_eps: 9.999_999_747_378_752e-6,
        rope_theta: 123_456.7,
        ..llama()
    };
    let cases = [
        ("gpt2", gpt2()),
        ("shared keys, own output", llama()),
        ("shared keys, tied", halved),
        ("own keys", unshared()),
        ("linear", stretched(RopeScaling::Linear { factor: 2.3 })),
        ("Llama 3's rule", stretched(llama3(8.0, 8192))),
        (
            "one like it",
            stretched(RopeScaling::Llama3 {
                factor: 5.3,
                low_freq_factor: 1.7,
                high_freq_factor: 3.1,
                original_context: 1000,
            }),
        ),
    ];
    for (what, decoder) in cases {
        let saved = Saved::new(&decoder);
        let path = saved.whole();
        let opened = gguf::open(&path).unwrap();
        // What 32 bits hold of a number, as its shortest decimal.
        let wanted = Decoder {
            norm_eps: if what == "gpt2" { 1e-6 } else { 1e-5 },
            ..decoder
        };
        let found = opened.checkpoint.network().architecture();
        assert_eq!(found, Architecture::Decoder(wanted), "{what}");
        assert_eq!((opened.name.as_deref(), &opened.notes[..]), (Some("a name"), &[][..]));
        same_weights(&opened.checkpoint, &saved.weights);
        same_tokenizer(&opened.tokenizer);
        // As a command takes it, and as the folder that it makes of it.
        let imported = import::open(&path, None).unwrap();
        assert_eq!(imported.origin, "a GGUF file called a name");
        assert!(imported.notes.is_empty(), "{:?}", imported.notes);
        let ignored: Vec<_> = imported.ignored.iter().map(|(name, _)| name.as_str()).collect();
        let factors = matches!(found, Architecture::Decoder(d) if matches!(d.rope_scaling, RopeScaling::Llama3 { .. }));
        assert_eq!(
            ignored,
            ["rope_freqs.weight"]
                .iter()
                .filter(|_| factors)
                .copied()
                .collect::<Vec<_>>()
        );
        let folder = saved.base.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        imported.save(&folder).unwrap();
        same_weights(&Checkpoint::open(&folder).unwrap(), &saved.weights);
        same_tokenizer(&TokenizerFiles::open(&folder).unwrap());
    }
}

#[test]
fn an_exported_child_has_the_weights_that_its_view_makes() {
    for decoder in [gpt2(), llama(), unshared()] {
        let saved = Saved::new(&decoder);
        let bounds = SpaceBounds {
            min_width: saved.network.width_step(),
            min_depths: vec![1],
            min_hidden: 10,
            hidden_step: 10,
            ..SpaceBounds::default()
        };
        let space = saved.network.space(bounds).unwrap();
        let shapes: Vec<Shape> = space.iter().collect();
        for shape in [&shapes[0], &shapes[shapes.len() / 2]] {
            let view = saved.view(shape);
            let (child, plan) = saved.parent.plan(&view).unwrap();
            let cut = materialize(&saved.weights, &plan);
            let opened = gguf::open(&saved.export(&view, TensorType::F32)).unwrap();
            assert_eq!(opened.checkpoint.network().architecture(), child.architecture());
            same_weights(&opened.checkpoint, &cut);
            // In 16 bits, matrices are rounded, and norms, biases and positions are not.
            let opened = gguf::open(&saved.export(&view, TensorType::F16)).unwrap();
            let halves = opened.checkpoint.weights(&Device::flex()).unwrap();
            for (name, wanted) in cut.iter() {
                let exact = wanted.shape().len() == 1 || name == "pos_embed";
                let round = |v: f32| if exact { v } else { f16::from_f32(v).to_f32() };
                let wanted: Vec<f32> = wanted.values().into_iter().map(round).collect();
                assert!(bits(&halves.get(name).unwrap().values()) == bits(&wanted), "{name}");
            }
        }
    }
}

/// Rows of a matrix of ours, by their numbers.
fn rows(values: &[f32], columns: usize, numbers: &[usize]) -> Vec<f32> {
    numbers
        .iter()
        .flat_map(|row| values[row * columns..][..columns].to_vec())
        .collect()
}

/// The rows of `heads` heads from row `first` on, as llama.cpp's `llama` has them: it turns channels 2 i and 2 i + 1 of a head, we i and
/// i + half a head.
fn turned(heads: usize, head: usize, first: usize) -> Vec<usize> {
    let pair = |h: usize, i: usize| [first + h * head + i, first + h * head + i + head / 2];
    (0..heads)
        .flat_map(|h| (0..head / 2).flat_map(move |i| pair(h, i)))
        .collect()
}

/// Names and elements of a file's tensors, without anything of the exporter.
fn by_hand(d: &Decoder, weights: &Weights) -> BTreeMap<String, Vec<f32>> {
    let values = |name: &str| weights.get(name).unwrap().values();
    let mut tensors = BTreeMap::new();
    let mut put = |theirs: String, values: Vec<f32>| assert!(tensors.insert(theirs, values).is_none());
    put("token_embd.weight".into(), values("embed.weight"));
    put("output_norm.weight".into(), values("norm.weight"));
    let gpt2 = d.kind == DecoderKind::Gpt2;
    if gpt2 {
        put("position_embd.weight".into(), values("pos_embed"));
        put("output_norm.bias".into(), values("norm.bias"));
    }
    if !d.tied {
        put("output.weight".into(), values("head.weight"));
    }
    let all: Vec<(&str, &str)> = match gpt2 {
        true => vec![
            ("attn_norm", "norm1"),
            ("attn_qkv", "attn.qkv"),
            ("attn_output", "attn.proj"),
            ("ffn_norm", "norm2"),
            ("ffn_up", "mlp.fc1"),
            ("ffn_down", "mlp.fc2"),
        ],
        false => vec![
            ("attn_norm", "norm1"),
            ("attn_output", "attn.proj"),
            ("ffn_norm", "norm2"),
            ("ffn_down", "mlp.down"),
        ],
    };
    for block in 0..d.depth {
        for (theirs, ours) in &all {
            for leaf in ["weight", "bias"].into_iter().take(if gpt2 { 2 } else { 1 }) {
                put(
                    format!("blk.{block}.{theirs}.{leaf}"),
                    values(&format!("blocks.{block}.{ours}.{leaf}")),
                );
            }
        }
        if gpt2 {
            continue;
        }
        let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
        let qkv = values(&format!("blocks.{block}.attn.qkv.weight"));
        let both = values(&format!("blocks.{block}.mlp.gate_up.weight"));
        let mut part = |theirs: &str, ours: &[f32], numbers: &[usize]| {
            put(format!("blk.{block}.{theirs}.weight"), rows(ours, d.width, numbers));
        };
        part("attn_q", &qkv, &turned(d.heads, d.head_dim, 0));
        part("attn_k", &qkv, &turned(d.kv_heads, d.head_dim, queries));
        let after = queries + keys;
        part("attn_v", &qkv, &(after..after + keys).collect::<Vec<_>>());
        part("ffn_gate", &both, &(0..d.hidden).collect::<Vec<_>>());
        part("ffn_up", &both, &(d.hidden..2 * d.hidden).collect::<Vec<_>>());
    }
    tensors
}

#[test]
fn tensors_lie_in_a_file_where_llama_cpp_looks_for_them() {
    for decoder in [gpt2(), llama(), unshared()] {
        let saved = Saved::new(&decoder);
        let file = GgufFile::open(&saved.whole()).unwrap();
        let expected = by_hand(&decoder, &saved.weights);
        let mut names: Vec<_> = file.names().collect();
        names.sort_unstable();
        assert_eq!(names, expected.keys().collect::<Vec<_>>());
        for (name, values) in &expected {
            assert!(bits(&file.read(name).unwrap()) == bits(values), "{name}");
        }
        assert_eq!(file.metadata().text("tokenizer.chat_template"), Ok(Some(TEMPLATE)));
        assert_eq!(file.metadata().size("tokenizer.ggml.padding_token_id"), Ok(Some(400)));
    }
}

#[test]
fn the_rule_of_rotary_positions_is_found_in_files_of_others() {
    let decoder = stretched(llama3(32.0, 8192));
    let saved = Saved::new(&decoder);
    let path = saved.whole();
    let honest = || {
        let mut parts = Parts::of(&path);
        parts.without("offshoot.");
        parts
    };
    assert_eq!(Parts::of(&path).metadata.len(), honest().metadata.len() + 4);
    let other = saved.base.path().join("other.gguf");
    let found = honest().opened(&other).unwrap();
    assert_eq!(
        found.checkpoint.network().architecture(),
        Architecture::Decoder(decoder)
    );
    let refused = |change: fn(&mut Parts)| {
        let mut parts = honest();
        change(&mut parts);
        parts.opened(&other).err().unwrap()
    };
    let text = refused(|parts| parts.tensor("rope_freqs.weight").1[6] = 3.0);
    assert!(
        text.contains("up to 32") && text.contains("folder of transformers"),
        "{text}"
    );
    let text = refused(|parts| parts.tensor("rope_freqs.weight").1[2] = f32::NAN);
    assert!(text.contains("rope_freqs.weight"), "{text}");
    let text = refused(|parts| {
        let (tensor, values) = parts.tensor("rope_freqs.weight");
        tensor.shape = vec![9];
        values.push(32.0);
    });
    assert!(text.contains("[9]") && text.contains("each of 8 frequencies"), "{text}");
    let text = refused(|parts| {
        parts.metadata.set("llama.rope.scaling.factor", 2f32);
    });
    assert!(text.contains("stretched twice"), "{text}");
}

#[test]
fn a_gpt2_that_has_its_embedding_twice_is_taken_and_another_output_layer_is_not() {
    let decoder = gpt2();
    let saved = Saved::new(&decoder);
    let path = saved.whole();
    let other = saved.base.path().join("other.gguf");
    let with = |kind: TensorType, change: fn(&mut Tensor, &mut Vec<f32>)| {
        let mut parts = Parts::of(&path);
        let (tensor, mut values) = parts.tensor("token_embd.weight").clone();
        let name = "output.weight".into();
        let mut tensor = Tensor { name, kind, ..tensor };
        change(&mut tensor, &mut values);
        parts.tensors.push((tensor, values));
        parts
    };
    for (kind, notes) in [(TensorType::F32, 0), (TensorType::F16, 1)] {
        let opened = with(kind, |_, _| ()).opened(&other).unwrap();
        let found = opened.checkpoint.network().architecture();
        assert_eq!(found, Architecture::Decoder(decoder.clone()));
        same_weights(&opened.checkpoint, &saved.weights);
        assert_eq!(opened.notes.len(), notes, "{:?}", opened.notes);
        assert!(
            opened
                .notes
                .iter()
                .all(|note| note.contains("as F32") && note.contains("as F16"))
        );
        let imported = import::open(&other, None).unwrap();
        assert_eq!(imported.ignored, [("output.weight".to_owned(), "it is the embedding")]);
        assert_eq!(imported.notes, opened.notes);
    }
    let one: fn(&mut Tensor, &mut Vec<f32>) = |_, values| values[77] += 1.0;
    let all: fn(&mut Tensor, &mut Vec<f32>) = |_, values| *values = numbers(1, values.len());
    let fewer: fn(&mut Tensor, &mut Vec<f32>) = |tensor, values| {
        tensor.shape[0] -= 1;
        values.truncate(tensor.shape.iter().product());
    };
    for (kind, change, reason) in [
        (TensorType::F32, one, "is not the embedding"),
        (TensorType::F16, all, "is not the embedding"),
        (TensorType::F32, fewer, "another shape than the embedding"),
    ] {
        let text = with(kind, change).opened(&other).err().unwrap();
        assert!(text.contains("`output.weight`") && text.contains(reason), "{text}");
    }
}
