//! BERT, the encoder of sentences: post-norm blocks, learned positions, every token seeing every other; forward pass only.
//!
//! It is no parent: nothing is cut out of it and nothing is trained. It tells which cluster a text belongs to, see
//! [`SentenceEncoder`](crate::sentence::SentenceEncoder). Sequences of a batch may have different lengths and nothing is padded.

use std::path::{Path, PathBuf};

use crate::checkpoint::{CheckpointError, WEIGHTS, read_json};
use crate::decoder::Tokens;
use crate::layout::config::Config;
use crate::safetensors::SafetensorsFile;
use crate::tensor::{Attention, Device, Linear, Tensor, attention, gather_rows, module};
use crate::weights::{Weight, Weights};

/// Largest size of any dimension that a configuration is believed.
const MAX_SIZE: usize = 1 << 22;
/// Most blocks that a configuration is believed.
const MAX_DEPTH: usize = 1 << 10;

/// The numbers of a BERT, as `BertConfig` of transformers has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Bert {
    /// Channels of the residual stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of a block; `width / heads` channels each.
    pub heads: usize,
    /// Hidden channels of a feed-forward layer.
    pub hidden: usize,
    /// Tokens that have an embedding.
    pub vocabulary: usize,
    /// Positions that have an embedding: the longest sequence.
    pub positions: usize,
    /// Kinds of segments that have an embedding; a single text is all of kind 0.
    pub types: usize,
    /// Added to the variance in a norm.
    pub norm_eps: f64,
    /// Whether GELU is taken by a hyperbolic tangent instead of exactly.
    pub gelu_tanh: bool,
}

impl Bert {
    /// Reads the numbers of a `config.json`.
    fn read(config: Config<'_>) -> Result<Self, String> {
        config.only(&[
            ("position_embedding_type", "absolute".into()),
            ("is_decoder", false.into()),
            ("add_cross_attention", false.into()),
        ])?;
        let gelu_tanh = match config.text("hidden_act")?.unwrap_or("gelu") {
            "gelu" => false,
            "gelu_new" | "gelu_pytorch_tanh" => true,
            other => return Err(format!("`hidden_act` is `{other}`; gelu and gelu_new are supported")),
        };
        let bert = Self {
            width: config.size("hidden_size", None)?,
            depth: config.size("num_hidden_layers", None)?,
            heads: config.size("num_attention_heads", None)?,
            hidden: config.size("intermediate_size", None)?,
            vocabulary: config.size("vocab_size", None)?,
            positions: config.size("max_position_embeddings", None)?,
            types: config.size("type_vocab_size", Some(2))?,
            norm_eps: config.number("layer_norm_eps", 1e-12)?,
            gelu_tanh,
        };
        let sizes = [
            bert.width,
            bert.heads,
            bert.hidden,
            bert.vocabulary,
            bert.positions,
            bert.types,
        ];
        if sizes.iter().any(|size| !(1..=MAX_SIZE).contains(size)) || !(1..=MAX_DEPTH).contains(&bert.depth) {
            return Err(format!("sizes that make no network: {bert:?}"));
        }
        if !bert.width.is_multiple_of(bert.heads) {
            return Err(format!(
                "`hidden_size` {} is not a multiple of {} heads",
                bert.width, bert.heads
            ));
        }
        if !(bert.norm_eps >= 0.0 && bert.norm_eps.is_finite()) {
            return Err(format!("`layer_norm_eps` is {}", bert.norm_eps));
        }
        Ok(bert)
    }

    /// Multiply-adds of one sequence of `tokens` tokens through all blocks.
    #[must_use]
    pub fn sequence_macs(&self, tokens: usize) -> u64 {
        let [t, width, hidden] = [tokens, self.width, self.hidden].map(|n| n as u64);
        self.depth as u64 * (t * (4 * width * width + 2 * width * hidden) + 2 * t * t * width)
    }
}

/// A BERT's forward pass.
#[derive(Clone, Debug)]
pub struct BertNetwork {
    bert: Bert,
}

impl BertNetwork {
    /// Opens a folder of `config.json` and `model.safetensors` as `BertModel` of transformers has them, in fp32, fp16 or bf16, and
    /// puts its weights on `device`. Names may begin with `bert.`; tensors that the forward pass has no use for are not read.
    ///
    /// # Errors
    /// If it holds another architecture, or tensors that are missing or of other sizes.
    pub fn open(folder: &Path, device: &Device) -> Result<(Self, Weights), CheckpointError> {
        let path = folder.join("config.json");
        let value = read_json(&path)?;
        let wrong = |reason: String| CheckpointError::Config {
            path: path.clone(),
            reason,
        };
        let config = Config(&value);
        let kind = config.text("model_type").map_err(wrong)?.unwrap_or("nothing");
        if kind != "bert" {
            return Err(CheckpointError::Unsupported {
                path: folder.to_owned(),
                reason: format!("its `model_type` is `{kind}`; a sentence encoder has to be a `bert`"),
                hint: "take a BERT-style encoder such as all-MiniLM-L6-v2, or none: tf-idf needs no model".into(),
            });
        }
        let bert = Bert::read(config).map_err(wrong)?;
        let network = Self { bert };
        let weights = network.load(folder.join(WEIGHTS), device)?;
        Ok((network, weights))
    }

    /// The numbers.
    #[must_use]
    pub fn bert(&self) -> &Bert {
        &self.bert
    }

    fn load(&self, path: PathBuf, device: &Device) -> Result<Weights, CheckpointError> {
        let file = SafetensorsFile::open(&path)?;
        let prefix = if file.shape("bert.embeddings.word_embeddings.weight").is_some() {
            "bert."
        } else {
            ""
        };
        // Names and sizes of all before any is read.
        let tensors = self.tensors();
        for (_, parts, shape) in &tensors {
            for part in parts {
                let name = format!("{prefix}{part}");
                file.check(&name)?;
                let mut wanted = shape.clone();
                wanted[0] /= parts.len();
                if file.shape(&name) != Some(&wanted[..]) {
                    return Err(CheckpointError::Mismatch {
                        path,
                        reason: format!(
                            "tensor `{name}` is {:?}, not {wanted:?}",
                            file.shape(&name).unwrap_or_default()
                        ),
                    });
                }
            }
        }
        let mut weights = Weights::new();
        for (name, parts, shape) in tensors {
            let mut values = Vec::with_capacity(shape.iter().product());
            for part in parts {
                values.extend(file.read(&format!("{prefix}{part}"))?);
            }
            weights.insert(name, Weight::from_values(values, shape, device));
        }
        Ok(weights)
    }

    /// Our name of each tensor, the names of its parts in a file, stacked along the first dimension, and its shape.
    fn tensors(&self) -> Vec<(String, Vec<String>, Vec<usize>)> {
        let b = &self.bert;
        let mut all = Vec::new();
        let mut add =
            |name: String, parts: &[String], shape: &[usize]| all.push((name, parts.to_vec(), shape.to_vec()));
        let embeddings = |leaf: &str| [format!("embeddings.{leaf}")];
        for (name, leaf, rows) in [
            ("embed.weight", "word_embeddings.weight", b.vocabulary),
            ("pos_embed", "position_embeddings.weight", b.positions),
            ("type_embed", "token_type_embeddings.weight", b.types),
        ] {
            add(name.into(), &embeddings(leaf), &[rows, b.width]);
        }
        for end in ["weight", "bias"] {
            add(
                format!("norm.{end}"),
                &embeddings(&format!("LayerNorm.{end}")),
                &[b.width],
            );
        }
        for block in 0..b.depth {
            for (name, leaves, rows, columns) in [
                (
                    "attn.qkv",
                    &["attention.self.query", "attention.self.key", "attention.self.value"][..],
                    3 * b.width,
                    b.width,
                ),
                ("attn.proj", &["attention.output.dense"], b.width, b.width),
                ("mlp.fc1", &["intermediate.dense"], b.hidden, b.width),
                ("mlp.fc2", &["output.dense"], b.width, b.hidden),
            ] {
                let parts = |end: &str| -> Vec<String> {
                    let part = |leaf: &&str| format!("encoder.layer.{block}.{leaf}.{end}");
                    leaves.iter().map(part).collect()
                };
                add(
                    format!("blocks.{block}.{name}.weight"),
                    &parts("weight"),
                    &[rows, columns],
                );
                add(format!("blocks.{block}.{name}.bias"), &parts("bias"), &[rows]);
            }
            for (name, leaf) in [("norm1", "attention.output.LayerNorm"), ("norm2", "output.LayerNorm")] {
                for end in ["weight", "bias"] {
                    let part = format!("encoder.layer.{block}.{leaf}.{end}");
                    add(format!("blocks.{block}.{name}.{end}"), &[part], &[b.width]);
                }
            }
        }
        all
    }

    fn norm(&self, weights: &Weights, name: &str, x: Tensor<2>) -> Tensor<2> {
        let [scale, shift] = ["weight", "bias"].map(|end| weights.tensor::<1>(&format!("{name}.{end}")));
        module::layer_norm(x, scale, Some(shift), self.bert.norm_eps)
    }

    /// Tokens, those that begin and end a text included, to `last_hidden_state`, `[rows, width]`: the rows of each sequence one after
    /// the other. All tokens are of segment 0.
    ///
    /// # Panics
    /// If a token lies outside the vocabulary, or a sequence is longer than the positions.
    pub fn hidden(&self, weights: &Weights, tokens: &Tokens) -> Tensor<2> {
        let b = &self.bert;
        let x = gather_rows(weights.tensor("embed.weight"), tokens.ids.clone())
            + gather_rows(weights.tensor("pos_embed"), tokens.positions.clone())
            + weights.tensor::<2>("type_embed").slice([0..1, 0..b.width]);
        let mut x = self.norm(weights, "norm", x);
        let form = Attention {
            sequences: tokens.sequences.clone(),
            heads: b.heads,
            kv_heads: b.heads,
            head_dim: b.width / b.heads,
            causal: false,
        };
        for block in 0..b.depth {
            let name = |leaf: &str| format!("blocks.{block}.{leaf}");
            let linear = |leaf: &str| {
                Linear::new(weights.tensor(&name(&format!("{leaf}.weight"))))
                    .bias(weights.tensor(&name(&format!("{leaf}.bias"))))
            };
            let packed = linear("attn.qkv").forward(x.clone());
            let mixed = attention(form.clone(), packed, None);
            x = self.norm(weights, &name("norm1"), linear("attn.proj").residual(x).forward(mixed));
            let inner = linear("mlp.fc1").forward(x.clone());
            let last = if b.gelu_tanh {
                linear("mlp.fc2").gelu_tanh()
            } else {
                linear("mlp.fc2").gelu()
            };
            x = self.norm(weights, &name("norm2"), last.residual(x).forward(inner));
        }
        x
    }
}
