//! Decoders as GGUF files: which of our tensors each of a file's is, and a model with its tokenizer in one file.

use std::path::Path;

use offshoot_family::{Decoder, DecoderKind, RopeScaling, View};
use serde_json::Value;

use super::GgufFile;
use super::keys::{Numbers, Scaling, file_type};
use super::kind::TensorType;
use super::names::{Leaf, Model, Part, Role};
use super::rope;
use super::tokenizer::{Note, Special, TokenizerError, key, tokenizer_json, tokenizer_metadata};
use super::value::{Metadata, Sizes, Strings};
use super::write::{Tensor, write};
use crate::checkpoint::{Checkpoint, CheckpointError, clear};
use crate::layout::{Dialect, Ignored, LayoutTensor, Order};
use crate::network;
use crate::preparation::TokenizerFiles;
use crate::registry;
use crate::weight_files::WeightFiles;

/// Name of the model's file in a folder.
pub const MODEL: &str = "model.gguf";

/// The tensor of a file at `role`; none where a file of such a network has none there.
fn tensor(d: &Decoder, role: Role) -> Option<LayoutTensor> {
    use DecoderKind::{Gpt2, Llama};
    let gpt2 = d.kind == Gpt2;
    let name = role.name();
    let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let whole = |shape: Vec<usize>, ours: String| Some(LayoutTensor::whole(name.clone(), shape, ours));
    let (block, part, leaf) = match role {
        Role::Tokens => return whole(vec![d.vocabulary, d.width], "embed.weight".into()),
        Role::Positions if gpt2 => return whole(vec![d.context, d.width], "pos_embed".into()),
        Role::Output if !d.tied => return whole(vec![d.vocabulary, d.width], "head.weight".into()),
        Role::OutputNorm(leaf) if gpt2 || leaf == Leaf::Weight => {
            return whole(vec![d.width], format!("norm.{}", leaf_name(leaf)));
        }
        Role::Block(block, part, leaf) if gpt2 || leaf == Leaf::Weight => (block, part, leaf),
        _ => return None,
    };
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
    match (d.kind, part) {
        (_, Part::AttentionNorm) => whole(vec![d.width], of("norm1")),
        (_, Part::FeedForwardNorm) => whole(vec![d.width], of("norm2")),
        (_, Part::AttentionOutput) => whole(shape(d.width, queries), of("attn.proj")),
        (Gpt2, Part::Qkv) => whole(shape(d.qkv(), d.width), of("attn.qkv")),
        (Gpt2, Part::Up) => whole(shape(d.hidden, d.width), of("mlp.fc1")),
        (Gpt2, Part::Down) => whole(shape(d.width, d.hidden), of("mlp.fc2")),
        (Llama, Part::Query) => rows("attn.qkv", (0, queries, d.qkv()), Order::Pairs(d.heads)),
        (Llama, Part::Key) => rows("attn.qkv", (queries, keys, d.qkv()), Order::Pairs(d.kv_heads)),
        (Llama, Part::Value) => rows("attn.qkv", (queries + keys, keys, d.qkv()), Order::Same),
        (Llama, Part::Gate) => rows("mlp.gate_up", (0, d.hidden, 2 * d.hidden), Order::Same),
        (Llama, Part::Up) => rows("mlp.gate_up", (d.hidden, d.hidden, 2 * d.hidden), Order::Same),
        (Llama, Part::Down) => whole(shape(d.width, d.hidden), of("mlp.down")),
        (Gpt2, Part::Query | Part::Key | Part::Value | Part::Gate) | (Llama, Part::Qkv) => None,
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
    let placed = Role::all(d.depth).filter_map(|role| Some((role, tensor(d, role)?)));
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

/// A number that was written in 32 bits as the shortest decimal that is the same in 32 bits: 1e-5, not 9.999999747378752e-6. It is what
/// the number was before, if it was a short decimal, and computes alike if not.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().expect("a number is one")
}

/// The decoder of a file's numbers and tensors.
fn decoder(numbers: &Numbers, metadata: &Metadata, file: &GgufFile) -> Result<Decoder, CheckpointError> {
    let wrong = |reason: String| CheckpointError::Config {
        path: file.path().to_owned(),
        reason,
    };
    let mut decoder = unstretched(numbers, file).map_err(wrong)?;
    decoder.check().map_err(|e| wrong(e.to_string()))?;
    decoder.rope_scaling = stretching(numbers).map_err(wrong)?;
    let name = Role::RopeFactors.name();
    if let Some(shape) = file.shape(&name).filter(|_| numbers.model == Model::Llama) {
        if decoder.rope_scaling != RopeScaling::None {
            return Err(wrong(format!("rotary positions are stretched twice, by `{name}`, too")));
        }
        // Before it is read: it has the size of half a head.
        if shape != [decoder.head_dim / 2] {
            let half = decoder.head_dim / 2;
            return Err(wrong(format!(
                "`{name}` is {shape:?}, not one factor for each of {half} frequencies"
            )));
        }
        let (head, base) = (decoder.head_dim, decoder.rope_theta);
        decoder.rope_scaling = rope::rule(&file.read(&name)?, metadata, head, base).map_err(wrong)?;
    }
    decoder.check().map_err(|e| wrong(e.to_string()))?;
    Ok(decoder)
}

/// The rule of rotary positions that a file's numbers say.
fn stretching(numbers: &Numbers) -> Result<RopeScaling, String> {
    match &numbers.rope_scaling {
        None => Ok(RopeScaling::None),
        Some(scaling) if scaling.kind == "none" => Ok(RopeScaling::None),
        Some(Scaling {
            kind,
            factor: Some(factor),
            ..
        }) if kind == "linear" => Ok(RopeScaling::Linear {
            factor: decimal(*factor),
        }),
        Some(scaling) => Err(format!("rotary positions stretched by `{}`", scaling.kind)),
    }
}

/// The decoder of a file's numbers and shapes, without a rule that stretches positions.
fn unstretched(numbers: &Numbers, file: &GgufFile) -> Result<Decoder, String> {
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
    // What the embedding has, whatever the file says of it.
    let vocabulary = file
        .shape(&Role::Tokens.name())
        .and_then(|shape| shape.first().copied());
    let gpt2 = numbers.model == Model::Gpt2;
    Ok(Decoder {
        kind: if gpt2 { DecoderKind::Gpt2 } else { DecoderKind::Llama },
        width,
        depth: size(numbers.block_count)?,
        heads,
        kv_heads,
        head_dim,
        hidden: same("hidden channels", &numbers.feed_forward_length)?,
        vocabulary: vocabulary.ok_or("there is no `token_embd.weight`")?,
        context: size(numbers.context_length)?,
        norm_eps: decimal(numbers.norm_epsilon),
        tied: gpt2 || file.shape(&Role::Output.name()).is_none(),
        rope_theta: decimal(numbers.rope_freq_base.unwrap_or(1e4)),
        rope_scaling: RopeScaling::None,
    })
}

/// Largest distance of a GPT-2's own output layer from its embedding, of the embedding's length, at which it is taken for the same in
/// other bits. What two or three bits a number lose is below 0.3; unrelated matrices are 1.4 apart.
const SAME: f64 = 0.5;

/// Files of GPT-2 by older converters have the embedding once more, as an output layer: makes sure that it is no other. Returns what there
/// is to say about it.
fn output_is_embedding(files: &WeightFiles, kinds: [TensorType; 2]) -> Result<Option<String>, CheckpointError> {
    let (tokens, output) = (Role::Tokens.name(), Role::Output.name());
    let wrong = |reason: &str| CheckpointError::Config {
        path: files.path().to_owned(),
        reason: format!("`{output}` {reason}, and a GPT-2 has no output layer of its own"),
    };
    if files.shape(&tokens) != files.shape(&output) {
        return Err(wrong("has another shape than the embedding"));
    }
    let (embedding, output) = (files.read(&tokens)?, files.read(&output)?);
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let apart = squares(&mut embedding.iter().zip(&output).map(|(a, b)| a - b));
    let [ours, theirs] = kinds;
    if ours == theirs {
        let same = embedding.iter().zip(&output).all(|(a, b)| a.to_bits() == b.to_bits());
        return if same {
            Ok(None)
        } else {
            Err(wrong("is not the embedding"))
        };
    }
    if apart.sqrt() <= SAME * squares(&mut embedding.iter().copied()).sqrt() {
        return Ok(Some(format!(
            "the embedding is stored twice, as {ours} and for the output layer as {theirs}: the first is taken for both, where \
             llama.cpp takes each in its place"
        )));
    }
    Err(wrong("is not the embedding"))
}

/// A model in a GGUF file.
pub struct Opened {
    /// Its network and weights.
    pub checkpoint: Checkpoint,
    /// Its tokenizer.
    pub tokenizer: TokenizerFiles,
    /// What it is called.
    pub name: Option<String>,
    /// What is otherwise here than in llama.cpp.
    pub notes: Vec<String>,
}

/// Opens a GGUF file as a checkpoint: everything is checked, no tensor is kept.
///
/// # Errors
/// Says what is wrong with the file, or what no network here has.
pub fn open(path: &Path) -> Result<Opened, CheckpointError> {
    let mut file = GgufFile::open(path)?;
    let metadata = file.take_metadata();
    let wrong = |reason: String| CheckpointError::Config {
        path: path.to_owned(),
        reason,
    };
    let numbers = Numbers::of(&metadata).map_err(|e| wrong(e.to_string()))?;
    let decoder = decoder(&numbers, &metadata, &file)?;
    let network = registry::open(&offshoot_family::Architecture::Decoder(decoder.clone()))?;
    let mut dialect = Dialect::exact(tensors(&decoder).into_iter().map(|(_, tensor)| tensor).collect());
    if decoder.kind == DecoderKind::Llama {
        dialect.ignored.push(Ignored {
            names: "rope_freqs.",
            why: "follows from the rule of the rotary positions",
        });
    } else {
        dialect.ignored.push(Ignored {
            names: "output.",
            why: "it is the embedding",
        });
    }
    let kinds = [Role::Tokens, Role::Output].map(|role| file.kind(&role.name()));
    // Names, shapes and sizes before the tokenizer: it is made of what the header says, and may be large.
    let checkpoint = Checkpoint::of(network, dialect, WeightFiles::gguf(file))?;
    let mut notes = Vec::new();
    if let (DecoderKind::Gpt2, [Some(embedding), Some(output)]) = (decoder.kind, kinds) {
        notes.extend(output_is_embedding(checkpoint.files(), [embedding, output])?);
    }
    let (tokenizer, of_tokenizer) = tokenizer(&metadata, &decoder).map_err(|e| wrong(e.to_string()))?;
    notes.extend(of_tokenizer.iter().map(ToString::to_string));
    Ok(Opened {
        checkpoint,
        tokenizer,
        name: numbers.name,
        notes,
    })
}

/// The tokenizer of a file of `decoder`, as the files of a folder.
fn tokenizer(metadata: &Metadata, decoder: &Decoder) -> Result<(TokenizerFiles, Vec<Note>), TokenizerError> {
    let tokens = metadata.texts(key::TOKENS)?;
    let (count, rows) = (tokens.map_or(0, Strings::len), decoder.vocabulary);
    if count > rows {
        return Err(TokenizerError::Rows { token: count - 1, rows });
    }
    let (json, special, notes) = tokenizer_json(metadata)?;
    let named = |id: Option<u32>| Some((id?, tokens?.get(id? as usize)?.to_owned()));
    let files = TokenizerFiles::new(
        serde_json::to_vec(&json).expect("text and numbers serialize"),
        named(special.bos),
        named(special.eos),
        decoder.context,
    );
    let files = files.with(named(special.padding), named(special.unknown), special.chat_template);
    Ok((files, notes))
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
    let named = Special::of_files(&json, tokenizer.config().as_ref(), tokenizer.chat_template());
    let special = Special {
        bos: tokenizer.bos.or(named.bos),
        eos: tokenizer.eos.or(named.eos),
        ..named
    };
    let numbers = numbers(d, name, kind);
    let mut metadata = numbers.metadata().map_err(|e| wrong(e.to_string()))?;
    let (tokens, notes) = tokenizer_metadata(&json, &special, Some(d.vocabulary)).map_err(|e| wrong(e.to_string()))?;
    metadata.extend(tokens);
    rope::say(d.rope_scaling, &mut metadata);
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
    let factors = rope::factors(d.rope_scaling, d.head_dim, d.rope_theta);
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

/// A GGUF file is told by its ending or its first bytes.
pub(crate) fn is_gguf(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start));
    path.is_file() && read.is_ok() && start == *b"GGUF"
}
