//! Text from a decoder, a token at a time: keys and values of what was read are kept, so that a new token costs one row.
//!
//! The rules of choosing are transformers', in its order: repetition penalty, temperature, top-k, top-p. What is drawn is a pure
//! function of seed, sample and position, so the same settings give the same tokens for any number of threads.

use std::collections::BTreeSet;
use std::path::Path;

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use serde_json::Value;

use crate::checkpoint::{CheckpointError, read_json};
use crate::decoder::{DecoderNetwork, Tokens};
use crate::network::Network;
use crate::tensor::kernels::on_workers;
use crate::tensor::{KeyValues, Tensor, cached_attention};
use crate::weights::Weights;

/// Candidates that top-p sorts first; more are sorted where these do not hold enough.
const SORTED: usize = 512;

/// Why no text can be generated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// There is nothing to go on from.
    #[error("the prompt has no tokens")]
    Empty,
    /// The tokenizer is another model's.
    #[error("token {token} lies beyond the model's vocabulary of {vocabulary}")]
    Token {
        /// The first such token.
        token: u32,
        /// Tokens that the model knows.
        vocabulary: usize,
    },
    /// There is no room for another token.
    #[error("{tokens} tokens leave no room in a context of {context}")]
    Room {
        /// Tokens there are.
        tokens: usize,
        /// Tokens the model can see, or that room was made for.
        context: usize,
    },
    /// A setting makes no distribution.
    #[error("{name} = {value}: {reason}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What would do.
        reason: &'static str,
    },
    /// The weights are not those of the network.
    #[error("weights: {0}")]
    Weights(String),
    /// The model's scores are infinite or not numbers.
    #[error("the scores of the token at position {position} are not finite")]
    NotFinite {
        /// The token's position.
        position: usize,
    },
    /// The device did not give its results back.
    #[error("device: {0}")]
    Device(String),
}

impl GenerateError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Empty => {
                "give at least one character to go on from, or a tokenizer with a begin-of-text token".into()
            }
            Self::Token { .. } => "tokenizer.json belongs to another model: put the model's own into its folder".into(),
            Self::Room { .. } => "give a shorter prompt".into(),
            Self::NotFinite { .. } => "the weights are damaged, or the training diverged: check its loss".into(),
            Self::Setting { .. } | Self::Weights(_) | Self::Device(_) => return None,
        })
    }
}

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the scores; 0 takes the best token always.
    pub temperature: f64,
    /// Only as many of the best tokens may be drawn, and others of the score of the last of them; 0 for all.
    pub top_k: usize,
    /// Only the smallest set of the best tokens that has this share of the probability may be drawn; 1 for all.
    pub top_p: f64,
    /// Divides positive scores of tokens that occurred, the prompt's among them, and multiplies negative ones (Keskar et al. 2019,
    /// section 4.1); 1 for none.
    pub repetition_penalty: f64,
    /// Decides all draws.
    pub seed: u64,
}

impl Default for Sampling {
    /// What transformers samples by unless it is told otherwise.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// The best token always.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Checks that the settings make a distribution.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn check(&self) -> Result<(), GenerateError> {
        let wrong = |name, value, reason| Err(GenerateError::Setting { name, value, reason });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong(
                "temperature",
                self.temperature,
                "must be 0 or more; 0 takes the best token",
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", self.top_p, "must lie above 0, and be 1 at most");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return wrong(
                "repetition_penalty",
                self.repetition_penalty,
                "must be more than 0; 1 does nothing",
            );
        }
        Ok(())
    }

    /// The token at `position` of sample `sample`, by the model's scores of every token, after the tokens `seen`.
    ///
    /// # Errors
    /// If the settings make no distribution, or the scores are not finite.
    pub fn choose(&self, scores: &[f32], seen: &[u32], sample: u64, position: usize) -> Result<u32, GenerateError> {
        self.check()?;
        let mut scores = scores.to_vec();
        if self.repetition_penalty != 1.0 {
            let penalty = self.repetition_penalty as f32;
            for id in seen.iter().copied().collect::<BTreeSet<u32>>() {
                if let Some(score) = scores.get_mut(id as usize) {
                    *score = if *score < 0.0 {
                        *score * penalty
                    } else {
                        *score / penalty
                    };
                }
            }
        }
        let Some((best, most)) = best(&scores).filter(|(_, most)| most.is_finite()) else {
            return Err(GenerateError::NotFinite { position });
        };
        let temperature = self.temperature as f32;
        if temperature == 0.0 || self.top_k == 1 {
            return Ok(best);
        }
        let mut left: Vec<Candidate> = scores
            .iter()
            .enumerate()
            // The difference first: scores beyond the largest number are no better than others.
            .map(|(id, score)| Candidate {
                id: id as u32,
                score: (score - most) / temperature,
            })
            .collect();
        self.keep_top_k(&mut left);
        self.keep_top_p(&mut left);
        let total: f64 = left.iter().map(Candidate::weight).sum();
        let mut place = uniform(self.seed, sample, position) * total;
        for candidate in &left {
            place -= candidate.weight();
            if place < 0.0 {
                return Ok(candidate.id);
            }
        }
        // What rounding left over is the last one's that could be drawn.
        let last = left.iter().rev().find(|candidate| candidate.weight() > 0.0);
        Ok(last.map_or(best, |candidate| candidate.id))
    }

    /// Leaves the best `top_k`, and those that score as the last of them does.
    fn keep_top_k(&self, left: &mut Vec<Candidate>) {
        if self.top_k == 0 || self.top_k >= left.len() {
            return;
        }
        let mut sorted: Vec<f32> = left.iter().map(|candidate| candidate.score).collect();
        let (_, least, _) = sorted.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a));
        let least = *least;
        left.retain(|candidate| candidate.score >= least);
    }

    /// Leaves those above which there is less than `top_p` of the probability, the best first; of equal ones the first.
    fn keep_top_p(&self, left: &mut Vec<Candidate>) {
        if self.top_p >= 1.0 {
            return;
        }
        let order = |a: &Candidate, b: &Candidate| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id));
        let wanted = self.top_p * left.iter().map(Candidate::weight).sum::<f64>();
        let mut sorted = SORTED.min(left.len());
        loop {
            if sorted < left.len() {
                left.select_nth_unstable_by(sorted, order);
            }
            left[..sorted].sort_unstable_by(order);
            let mut above = 0.0;
            let kept = left[..sorted].iter().take_while(|candidate| {
                let is_kept = above < wanted;
                above += candidate.weight();
                is_kept
            });
            let kept = kept.count().max(1);
            if kept < sorted || sorted == left.len() {
                left.truncate(kept);
                return;
            }
            sorted = (8 * sorted).min(left.len());
        }
    }
}

/// A token that may be drawn, and its score below the best.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    score: f32,
}

impl Candidate {
    fn weight(&self) -> f64 {
        f64::from(self.score).exp()
    }
}

/// The first of the best tokens and its score; none if one is not a number, or there is none.
fn best(scores: &[f32]) -> Option<(u32, f32)> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &score) in scores.iter().enumerate() {
        if score.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, most)| score > most) {
            best = Some((id as u32, score));
        }
    }
    best
}

/// A number in 0..1 that seed, sample and position decide.
fn uniform(seed: u64, sample: u64, position: usize) -> f64 {
    let key = blake3::Hasher::new()
        .update(b"offshoot generation")
        .update(&seed.to_le_bytes())
        .update(&sample.to_le_bytes())
        .update(&(position as u64).to_le_bytes())
        .finalize();
    let mut rng = ChaCha8Rng::from_seed(*key.as_bytes());
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// What ended a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// This token, which ends a text.
    End(u32),
    /// As many tokens were generated as were asked for.
    Tokens,
    /// The context is full.
    Context,
    /// Whoever takes the tokens wanted no more.
    Taker,
}

/// A decoder that reads and writes one text.
pub struct Generator<'a> {
    network: &'a DecoderNetwork,
    weights: Weights,
    /// Of each block.
    caches: Vec<KeyValues>,
    room: usize,
    tokens: Vec<u32>,
    /// Scores of every token as the next one; none before the first was read.
    scores: Vec<f32>,
}

impl<'a> Generator<'a> {
    /// A generator with room for `room` tokens of prompt and text together, or for as many as the network can see if that is fewer.
    /// It takes `2 * depth * kv_heads * head_dim * room` numbers of memory.
    ///
    /// # Errors
    /// If the weights are not the network's.
    pub fn new(network: &'a DecoderNetwork, weights: &Weights, room: usize) -> Result<Self, GenerateError> {
        if let Some(reason) = weights.mismatch(&network.specs()) {
            return Err(GenerateError::Weights(reason));
        }
        let room = room.clamp(1, network.decoder().context);
        let depth = network.decoder().depth;
        Ok(Self {
            network,
            weights: weights.untracked(),
            caches: vec![KeyValues::with_capacity(room); depth],
            room,
            tokens: Vec::new(),
            scores: Vec::new(),
        })
    }

    /// The tokens that were read, generated ones among them but for the last.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The scores of every token as the next one; empty before the first was read.
    #[must_use]
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// Reads `tokens` behind what was read before, all at once.
    ///
    /// # Errors
    /// If one lies beyond the vocabulary or there is no room for all; then none is read. If the device fails.
    pub fn read(&mut self, tokens: &[u32]) -> Result<(), GenerateError> {
        let vocabulary = self.network.decoder().vocabulary;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(GenerateError::Token { token, vocabulary });
        }
        let all = self.tokens.len() + tokens.len();
        if all > self.room {
            return Err(GenerateError::Room {
                tokens: all,
                context: self.room,
            });
        }
        if tokens.is_empty() {
            return Ok(());
        }
        let (network, weights, caches, read) = (self.network, &self.weights, &mut self.caches, self.tokens.len());
        let scores = on_workers(|| scores(network, weights, caches, tokens, read)).try_into_vec_as::<f32>();
        self.scores = scores.map_err(|e| GenerateError::Device(e.to_string()))?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Forgets all but the first `tokens` tokens.
    pub fn rewind(&mut self, tokens: usize) {
        self.tokens.truncate(tokens);
        for cache in &mut self.caches {
            cache.truncate(self.tokens.len());
        }
        self.scores.clear();
    }

    /// Generates up to `most` tokens behind what was read, as sample `sample` of its seed, and hands each to `taker` as it comes, until that
    /// says `false`. A token of `ends` ends the text and is not handed over.
    ///
    /// # Errors
    /// If nothing was read, the settings make no distribution, scores are not finite, or the device fails.
    pub fn generate(
        &mut self,
        sampling: &Sampling,
        sample: u64,
        most: usize,
        ends: &[u32],
        taker: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Stop, GenerateError> {
        sampling.check()?;
        for made in 0..most {
            if self.scores.is_empty() {
                return Err(GenerateError::Empty);
            }
            if self.tokens.len() >= self.room {
                return Ok(Stop::Context);
            }
            let position = self.tokens.len();
            let token = sampling.choose(&self.scores, &self.tokens, sample, position)?;
            if ends.contains(&token) {
                return Ok(Stop::End(token));
            }
            if !taker(token) {
                return Ok(Stop::Taker);
            }
            // Nobody asks for the scores behind the last one.
            if made + 1 < most {
                self.read(&[token])?;
            }
        }
        Ok(Stop::Tokens)
    }
}

/// Scores of every token behind `tokens`, which follow on `read` others: `[1, vocabulary]`.
fn scores(
    network: &DecoderNetwork,
    weights: &Weights,
    caches: &mut [KeyValues],
    tokens: &[u32],
    read: usize,
) -> Tensor<2> {
    let batch = Tokens::from_position(&[tokens], read);
    let mut x = network.embed(weights, &batch);
    for (block, cache) in caches.iter_mut().enumerate() {
        let packed = network.qkv(weights, block, &batch, x.clone());
        let mixed = cached_attention(network.form(&batch), packed, cache);
        x = network.rest(weights, block, x, mixed);
    }
    let [rows, width] = x.dims();
    network.head(weights, x.slice([rows - 1..rows, 0..width]))
}

/// The tokens that end a text by a model folder's `generation_config.json` or, as transformers has it, where there is none by its
/// `config.json`.
///
/// # Errors
/// If there is neither, or it cannot be read.
pub fn end_tokens(folder: &Path) -> Result<Vec<u32>, CheckpointError> {
    let own = folder.join("generation_config.json");
    let said = if own.is_file() { own } else { folder.join("config.json") };
    Ok(ids(read_json(&said)?.get("eos_token_id")))
}

/// One id, several or none.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(several)) => several.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
