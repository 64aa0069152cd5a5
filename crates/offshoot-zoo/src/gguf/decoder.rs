//! Decoders as GGUF files: which of our tensors each of a file's is, and a model with its tokenizer in one file.

use std::path::Path;

use offshoot_family::{Decoder, DecoderKind, RopeScaling, View};
use serde_json::Value;

use super::GgufFile;
use super::keys::{Numbers, Scaling, file_type, llama3_factors};
use super::kind::TensorType;
use super::names::{Leaf, Model, Part, Presence, Role};
use super::tokenizer::{Note, Special, tokenizer_json, tokenizer_metadata};
use super::value::Sizes;
use super::write::{Tensor, write};
use crate::checkpoint::{Checkpoint, CheckpointError, clear};
use crate::layout::{Dialect, LayoutTensor, Order};
use crate::network;
use crate::preparation::TokenizerFiles;
use crate::registry;
use crate::weight_files::WeightFiles;

/// Name of the model's file in a folder.
pub const MODEL: &str = "model.gguf";

/// The tensor of a file at `role`; none where a file of such a network has none there.
fn tensor(d: &Decoder, role: Role) -> Option<LayoutTensor> {
    let model = model(d);
    if model.presence(role) == Presence::Absent || role == Role::RopeFactors {
        return None;
    }
    let name = role.name();
    let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let whole = |shape: Vec<usize>, ours: String| Some(LayoutTensor::whole(name.clone(), shape, ours));
    let (block, part, leaf) = match role {
        Role::Tokens => return whole(vec![d.vocabulary, d.width], "embed.weight".into()),
        Role::Positions => return whole(vec![d.context, d.width], "pos_embed".into()),
        Role::OutputNorm(leaf) => return whole(vec![d.width], format!("norm.{}", leaf_name(leaf))),
        Role::Output if d.tied => return None,
        Role::Output => return whole(vec![d.vocabulary, d.width], "head.weight".into()),
        Role::RopeFactors => return None,
        Role::Block(block, part, leaf) => (block, part, leaf),
    };
    let gpt2 = d.kind == DecoderKind::Gpt2;
    if !gpt2 && (leaf == Leaf::Bias || part == Part::Qkv) {
        return None;
    }
    let of = |ours: &str| format!("blocks.{block}.{ours}.{}", leaf_name(leaf));
    let shape = |rows: usize, columns: usize| match leaf {
        Leaf::Weight => vec![rows, columns],
        Leaf::Bias => vec![rows],
    };
    // Rows of a packed tensor of ours: first, how many, of how many.
    let rows = |ours: &str, (first, count, total): (usize, usize, usize), order| {
        Some(LayoutTensor {
            rows: Some((first, first + count, total)),
            order,
            ..LayoutTensor::whole(name.clone(), shape(count, d.width), of(ours))
        })
    };
    match part {
        Part::AttentionNorm => whole(vec![d.width], of("norm1")),
        Part::FeedForwardNorm => whole(vec![d.width], of("norm2")),
        Part::Qkv => whole(shape(d.qkv(), d.width), of("attn.qkv")),
        Part::Query => rows("attn.qkv", (0, queries, d.qkv()), Order::Pairs(d.heads)),
        Part::Key => rows("attn.qkv", (queries, keys, d.qkv()), Order::Pairs(d.kv_heads)),
        Part::Value => rows("attn.qkv", (queries + keys, keys, d.qkv()), Order::Same),
        Part::AttentionOutput => whole(shape(d.width, queries), of("attn.proj")),
        Part::Gate => rows("mlp.gate_up", (0, d.hidden, 2 * d.hidden), Order::Same),
        Part::Up if gpt2 => whole(shape(d.hidden, d.width), of("mlp.fc1")),
        Part::Up => rows("mlp.gate_up", (d.hidden, d.hidden, 2 * d.hidden), Order::Same),
        Part::Down if gpt2 => whole(shape(d.width, d.hidden), of("mlp.fc2")),
        Part::Down => whole(shape(d.width, d.hidden), of("mlp.down")),
    }
}

fn leaf_name(leaf: Leaf) -> &'static str {
    match leaf {
        Leaf::Weight => "weight",
        Leaf::Bias => "bias",
    }
}

fn model(d: &Decoder) -> Model {
    match d.kind {
        DecoderKind::Gpt2 => Model::Gpt2,
        DecoderKind::Llama => Model::Llama,
    }
}

/// Every tensor of the file of a decoder. Parts of one of ours stand in row order.
fn tensors(d: &Decoder) -> Vec<(Role, LayoutTensor)> {
    let placed = Role::all(model(d), d.depth).filter_map(|role| Some((role, tensor(d, role)?)));
    let mut placed: Vec<(Role, LayoutTensor)> = placed.collect();
    // Stable, so that different tensors of ours keep the order of the file's.
    placed.sort_by_key(|(role, tensor)| match role {
        Role::Block(block, ..) => (block + 1, tensor.tensor.clone(), tensor.rows),
        _ => (0, String::new(), None),
    });
    placed
}

/// The numbers of a decoder as a file says them.
fn numbers(d: &Decoder, name: &str, kind: TensorType) -> Numbers {
    let llama = d.kind == DecoderKind::Llama;
    let own_heads = llama && d.heads * d.head_dim != d.width;
    let head = d.head_dim as u64;
    Numbers {
        model: model(d),
        name: Some(name.to_owned()),
        context_length: d.context as u64,
        embedding_length: d.width as u64,
        block_count: d.depth as u64,
        feed_forward_length: Sizes::All(d.hidden as u64),
        head_count: Sizes::All(d.heads as u64),
        head_count_kv: llama.then_some(Sizes::All(d.kv_heads as u64)),
        key_length: own_heads.then_some(head),
        value_length: own_heads.then_some(head),
        norm_epsilon: d.norm_eps as f32,
        rope_dimension_count: llama.then_some(head),
        rope_freq_base: llama.then_some(d.rope_theta as f32),
        rope_scaling: match d.rope_scaling {
            RopeScaling::Linear { factor } => Some(Scaling {
                factor: Some(factor as f32),
                ..Scaling::of("linear")
            }),
            RopeScaling::None | RopeScaling::Llama3 { .. } => None,
        },
        vocab_size: Some(d.vocabulary as u64),
        file_type: file_type(kind),
    }
}

/// The decoder of a file's numbers and tensors.
fn decoder(numbers: &Numbers, file: &GgufFile) -> Result<Decoder, String> {
    let size = |value: u64| usize::try_from(value).map_err(|e| e.to_string());
    let same = |what: &str, sizes: &Sizes| -> Result<usize, String> {
        let first = sizes.at(0);
        let blocks = 0..numbers.block_count as usize;
        if blocks.map(|block| sizes.at(block)).any(|other| other != first) {
            return Err(format!("{what} differ from block to block, which no network here has"));
        }
        size(first)
    };
    let heads = same("heads", &numbers.head_count)?;
    let kv_heads = match &numbers.head_count_kv {
        Some(sizes) => same("heads of keys and values", sizes)?,
        None => heads,
    };
    let width = size(numbers.embedding_length)?;
    let head_dim = numbers.key_length.map_or(Ok(width / heads), size)?;
    if numbers.value_length.is_some_and(|value| value != head_dim as u64) {
        return Err("keys and values of different widths, which no network here has".into());
    }
    let rotated = numbers.rope_dimension_count;
    if rotated.is_some_and(|rotated| rotated != head_dim as u64) {
        return Err(format!("heads of {head_dim} channels of which only some are rotated"));
    }
    if file.shape(&Role::RopeFactors.name()).is_some() {
        return Err(
            "rotary positions with factors of their own: take the model as a folder of transformers, which says their rule".into(),
        );
    }
    let rope_scaling = match &numbers.rope_scaling {
        None => RopeScaling::None,
        Some(scaling) if scaling.kind == "none" => RopeScaling::None,
        Some(Scaling {
            kind,
            factor: Some(factor),
            ..
        }) if kind == "linear" => RopeScaling::Linear {
            factor: f64::from(*factor),
        },
        Some(scaling) => return Err(format!("rotary positions stretched by `{}`", scaling.kind)),
    };
    // What the embedding has, whatever the file says of it.
    let vocabulary = file
        .shape(&Role::Tokens.name())
        .and_then(|shape| shape.first().copied());
    let decoder = Decoder {
        kind: match numbers.model {
            Model::Gpt2 => DecoderKind::Gpt2,
            Model::Llama => DecoderKind::Llama,
        },
        width,
        depth: size(numbers.block_count)?,
        heads,
        kv_heads,
        head_dim,
        hidden: same("hidden channels", &numbers.feed_forward_length)?,
        vocabulary: vocabulary.ok_or("there is no `token_embd.weight`")?,
        context: size(numbers.context_length)?,
        norm_eps: f64::from(numbers.norm_epsilon),
        tied: file.shape(&Role::Output.name()).is_none(),
        rope_theta: f64::from(numbers.rope_freq_base.unwrap_or(1e4)),
        rope_scaling,
    };
    decoder.check().map_err(|e| e.to_string())?;
    Ok(decoder)
}

/// A model in a GGUF file.
pub struct Opened {
    /// Its network and weights.
    pub checkpoint: Checkpoint,
    /// Its tokenizer.
    pub tokenizer: TokenizerFiles,
    /// What it is called.
    pub name: Option<String>,
    /// What of the tokenizer is otherwise here than in llama.cpp.
    pub notes: Vec<Note>,
}

/// Opens a GGUF file as a checkpoint: everything is checked, no tensor is loaded.
///
/// # Errors
/// Says what is wrong with the file, or what no network here has.
pub fn open(path: &Path) -> Result<Opened, CheckpointError> {
    let file = GgufFile::open(path)?;
    let wrong = |reason: String| CheckpointError::Config {
        path: path.to_owned(),
        reason,
    };
    let numbers = Numbers::of(file.metadata()).map_err(|e| wrong(e.to_string()))?;
    let decoder = decoder(&numbers, &file).map_err(wrong)?;
    let (json, special, notes) = tokenizer_json(file.metadata()).map_err(|e| wrong(e.to_string()))?;
    let tokenizer = TokenizerFiles::new(
        serde_json::to_vec(&json).map_err(|e| wrong(e.to_string()))?,
        named(special.bos, file.metadata()),
        named(special.eos, file.metadata()),
        decoder.context,
    );
    let network = registry::open(&offshoot_family::Architecture::Decoder(decoder.clone()))?;
    let dialect = Dialect::exact(tensors(&decoder).into_iter().map(|(_, tensor)| tensor).collect());
    let checkpoint = Checkpoint::of(network, dialect, WeightFiles::gguf(file))?;
    Ok(Opened {
        checkpoint,
        tokenizer,
        name: numbers.name,
        notes,
    })
}

/// A token of the file's list by its number.
fn named(id: Option<u32>, metadata: &super::Metadata) -> Option<(u32, String)> {
    let tokens = metadata.texts(super::tokenizer::key::TOKENS).ok()??;
    let id = id?;
    Some((id, tokens.get(id as usize)?.to_owned()))
}

/// Writes the child that `view` makes of `parent`, with its tokenizer, to [`MODEL`] in `folder`, matrices as `kind`; one tensor at a
/// time. What was exported to the folder before is removed.
///
/// # Errors
/// If it is no decoder, the view does not fit, the format has no place for the tokenizer, or a file cannot be read or written.
pub fn export(
    parent: &Checkpoint,
    view: &View,
    tokenizer: &TokenizerFiles,
    (name, kind): (&str, TensorType),
    folder: &Path,
) -> Result<Vec<Note>, CheckpointError> {
    let path = folder.join(MODEL);
    let wrong = |reason: String| CheckpointError::Config {
        path: path.clone(),
        reason,
    };
    let (child, plan) = parent.plan(view)?;
    let d = network::decoder(child.as_ref())?.decoder();
    let json: Value = serde_json::from_slice(tokenizer.json()).map_err(|e| wrong(format!("tokenizer.json: {e}")))?;
    let config = tokenizer.config();
    let special = Special {
        bos: tokenizer.bos,
        eos: tokenizer.eos,
        ..Special::of_files(&json, None, config.as_ref())
    };
    let numbers = numbers(d, name, kind);
    let mut metadata = numbers.metadata().map_err(|e| wrong(e.to_string()))?;
    let (tokens, notes) = tokenizer_metadata(&json, &special, Some(d.vocabulary)).map_err(|e| wrong(e.to_string()))?;
    metadata.extend(tokens);
    let placed = tensors(d);
    let mut listed: Vec<Tensor> = placed
        .iter()
        .map(|(role, tensor)| {
            // Blocks of a quantised row must be whole.
            let whole = kind.bytes(*tensor.shape.last().unwrap_or(&1) as u64, 0).is_some();
            let exact = role.stays_exact() || !whole;
            Tensor {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                kind: if exact { TensorType::F32 } else { kind },
            }
        })
        .collect();
    let factors = factors(d);
    if let Some(factors) = &factors {
        listed.push(Tensor {
            name: Role::RopeFactors.name(),
            shape: vec![factors.len()],
            kind: TensorType::F32,
        });
    }
    clear(folder)?;
    // The parts of one tensor stand next to each other: remember the last one made.
    let mut last: Option<(String, Vec<f32>)> = None;
    write(&path, &metadata, &listed, |i| {
        let Some((_, part)) = placed.get(i) else {
            return Ok(factors.clone().unwrap_or_default());
        };
        if last.as_ref().is_none_or(|(name, _)| *name != part.tensor) {
            let entry = plan.iter().find(|entry| entry.name == part.tensor);
            let entry = entry.unwrap_or_else(|| panic!("the plan has no tensor `{}`", part.tensor));
            last = None;
            last = Some((part.tensor.clone(), parent.child_tensor(entry)?));
        }
        let (_, values) = last.as_ref().expect("it was just made");
        Ok::<_, CheckpointError>(part.to_file(values))
    })?;
    Ok(notes)
}

/// What frequencies of rotary positions are divided by, where that is a tensor of the file.
fn factors(d: &Decoder) -> Option<Vec<f32>> {
    match d.rope_scaling {
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } if d.kind == DecoderKind::Llama => Some(llama3_factors(
            d.head_dim,
            d.rope_theta,
            original_context as u64,
            factor,
            low_freq_factor,
            high_freq_factor,
        )),
        _ => None,
    }
}

/// A GGUF file is told by its ending or its first bytes.
pub(crate) fn is_gguf(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start));
    path.is_file() && read.is_ok() && start == *b"GGUF"
}
