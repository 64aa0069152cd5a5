//! Sentence encoders in the folders of sentence-transformers: a BERT, how its tokens become one vector, and how many it reads.

use std::path::Path;

use offshoot_family::files::content_hash;
use serde_json::Value;

use crate::bert::BertNetwork;
use crate::checkpoint::{CheckpointError, WEIGHTS, read_json};
use crate::decoder::Tokens;
use crate::layout::config::Config;
use crate::tensor::Device;
use crate::weights::Weights;

/// Rows of one pass through the network, at most, unless a single sequence has more: 25 MiB of hidden channels of MiniLM.
const ROWS: usize = 4096;

/// How the tokens of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean, those that begin and end the text included.
    Mean,
    /// The first one, `[CLS]`.
    First,
}

/// A sentence encoder: token ids in, one vector of length 1 a text out.
pub struct SentenceEncoder {
    network: BertNetwork,
    weights: Weights,
    pooling: Pooling,
    max_tokens: usize,
    lowercase: bool,
    hash: String,
}

impl std::fmt::Debug for SentenceEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SentenceEncoder")
            .field("bert", self.network.bert())
            .field("pooling", &self.pooling)
            .field("max_tokens", &self.max_tokens)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

impl SentenceEncoder {
    /// Opens a folder of transformers with a `BertModel`. Where sentence-transformers' files are there they are followed:
    /// `modules.json` and the pooling folder that it names, and `sentence_bert_config.json` for the longest text. Without them the
    /// mean over as many tokens as there are positions is taken. Vectors always have length 1, whether or not `Normalize`
    /// is among the modules: clusters are made of directions.
    ///
    /// # Errors
    /// If the network is no BERT, a tensor does not fit, or a module does what is not known here.
    pub fn open(folder: &Path, device: &Device) -> Result<Self, CheckpointError> {
        let (network, weights) = BertNetwork::open(folder, device)?;
        let pooling = pooling(folder)?;
        let positions = network.bert().positions;
        let path = folder.join("sentence_bert_config.json");
        let (mut max_tokens, mut lowercase) = (positions, false);
        if path.is_file() {
            let value = read_json(&path)?;
            let config = Config(&value);
            let wrong = |reason: String| CheckpointError::Config {
                path: path.clone(),
                reason,
            };
            max_tokens = config
                .size("max_seq_length", Some(positions))
                .map_err(wrong)?
                .min(positions);
            lowercase = config.flag("do_lower_case", false).map_err(wrong)?;
        }
        let weights_path = folder.join(WEIGHTS);
        let file = content_hash(&weights_path).map_err(|source| CheckpointError::Io {
            path: weights_path,
            source,
        })?;
        let numbers = format!("{file} {:?} {pooling:?} {max_tokens} {lowercase}", network.bert());
        Ok(Self {
            network,
            weights,
            pooling,
            max_tokens,
            lowercase,
            hash: blake3::hash(numbers.as_bytes()).to_hex().to_string(),
        })
    }

    /// Channels of a vector.
    #[must_use]
    pub fn width(&self) -> usize {
        self.network.bert().width
    }

    /// Tokens of a text that are read, at most, those that begin and end it included.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokens that have an embedding.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.network.bert().vocabulary
    }

    /// Whether texts are to be put into lower case before they are tokenized.
    #[must_use]
    pub fn lowercase(&self) -> bool {
        self.lowercase
    }

    /// A hash of weights, numbers, pooling and longest text, hex. The tokenizer has its own.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Multiply-adds of a text of `tokens` tokens.
    #[must_use]
    pub fn macs(&self, tokens: usize) -> u64 {
        self.network.bert().sequence_macs(tokens)
    }

    /// The vectors of `texts`, `[texts, width]` row-major, each of length 1: pooled, then divided by the norm or by 1e-12 where that is
    /// larger. A text is its tokens with those that begin and end it.
    ///
    /// Texts go through the network in groups that are cut by their lengths alone, so the bytes do not depend on threads.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If a text is empty or longer than [`max_tokens`](Self::max_tokens), or a token has no embedding.
    pub fn embed(&self, texts: &[Vec<u32>]) -> Result<Vec<f32>, String> {
        let mut vectors = Vec::with_capacity(texts.len() * self.width());
        let mut first = 0;
        while first < texts.len() {
            let (mut end, mut rows) = (first, 0);
            while end < texts.len() && (end == first || rows + texts[end].len() <= ROWS) {
                assert!(texts[end].len() <= self.max_tokens, "a text is cut to the longest");
                rows += texts[end].len();
                end += 1;
            }
            self.embed_together(&texts[first..end], &mut vectors)?;
            first = end;
        }
        Ok(vectors)
    }

    fn embed_together(&self, texts: &[Vec<u32>], vectors: &mut Vec<f32>) -> Result<(), String> {
        let width = self.width();
        let hidden = self.network.hidden(&self.weights, &Tokens::new(texts));
        let hidden = hidden.try_into_vec_as::<f32>().map_err(|e| e.to_string())?;
        let mut rows = hidden.chunks_exact(width);
        let mut sums = vec![0.0f64; width];
        for text in texts {
            sums.fill(0.0);
            let read = match self.pooling {
                Pooling::Mean => text.len(),
                Pooling::First => 1,
            };
            for (at, row) in rows.by_ref().take(text.len()).enumerate() {
                if at < read {
                    sums.iter_mut()
                        .zip(row)
                        .for_each(|(sum, &value)| *sum += f64::from(value));
                }
            }
            sums.iter_mut().for_each(|sum| *sum /= read as f64);
            let norm = sums.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
            vectors.extend(sums.iter().map(|v| (v / norm) as f32));
        }
        Ok(())
    }
}

/// What the modules of a folder make of the tokens.
fn pooling(folder: &Path) -> Result<Pooling, CheckpointError> {
    let path = folder.join("modules.json");
    if !path.is_file() {
        return Ok(Pooling::Mean);
    }
    let unsupported = |reason: String| CheckpointError::Unsupported {
        path: path.clone(),
        reason,
        hint: "encoders of transformer, mean or CLS pooling, and normalisation are read; all-MiniLM-L6-v2 is one"
            .into(),
    };
    let modules = read_json(&path)?;
    let modules = modules
        .as_array()
        .ok_or_else(|| unsupported("not a list of modules".into()))?;
    let mut found = Pooling::Mean;
    for (at, module) in modules.iter().enumerate() {
        let word = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = word("type").rsplit('.').next().unwrap_or_default();
        match (at, kind) {
            (0, "Transformer") if word("path").is_empty() || word("path") == "." => {}
            (1.., "Normalize") => {}
            (1, "Pooling") => {
                let place = word("path");
                let is_inside = !place.contains("..") && Path::new(place).is_relative();
                if !is_inside {
                    return Err(unsupported(format!(
                        "module {at} lies outside of the folder, at `{place}`"
                    )));
                }
                found = pooling_mode(&folder.join(place).join("config.json"))?;
            }
            _ => return Err(unsupported(format!("module {at} is `{}`", word("type")))),
        }
    }
    Ok(found)
}

fn pooling_mode(path: &Path) -> Result<Pooling, CheckpointError> {
    let value = read_json(path)?;
    let wrong = |reason: String| CheckpointError::Config {
        path: path.to_owned(),
        reason,
    };
    let keys = value.as_object().ok_or_else(|| wrong("not an object".into()))?;
    let modes = keys
        .iter()
        .filter(|(key, on)| key.starts_with("pooling_mode_") && on.as_bool() == Some(true));
    let modes: Vec<&str> = modes.map(|(key, _)| key.as_str()).collect();
    // Newer files have one word instead of a flag for each.
    let word = value.get("pooling_mode").and_then(Value::as_str);
    match (&modes[..], word) {
        (["pooling_mode_mean_tokens"], _) | ([], Some("mean")) => Ok(Pooling::Mean),
        (["pooling_mode_cls_token"], _) | ([], Some("cls")) => Ok(Pooling::First),
        _ => Err(wrong(format!(
            "pooling by {modes:?}; the mean of all tokens, or the first one, is supported"
        ))),
    }
}
