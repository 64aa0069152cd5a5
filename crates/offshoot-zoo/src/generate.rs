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
mod tests {
    use offshoot_family::{Decoder, DecoderKind, RopeScaling};

    use super::*;
    use crate::tensor::device;
    use crate::weights::Weight;

    const VOCABULARY: usize = 61;

    fn network(kind: DecoderKind, context: usize) -> DecoderNetwork {
        let decoder = Decoder {
            kind,
            width: 24,
            depth: 2,
            heads: 6,
            kv_heads: if kind == DecoderKind::Llama { 2 } else { 6 },
            head_dim: 4,
            hidden: 40,
            vocabulary: VOCABULARY,
            context,
            norm_eps: 1e-5,
            tied: true,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
        };
        decoder.check().unwrap();
        DecoderNetwork::new(decoder)
    }

    /// Weights large enough that predictions differ.
    fn weights(network: &DecoderNetwork) -> Weights {
        let device = device("cpu").unwrap();
        crate::initialise(&network.specs(), 3, &device).map(|w| {
            let values = w.values().into_iter().map(|v| 8.0 * v).collect();
            Weight::from_values(values, w.shape().to_vec(), &device)
        })
    }

    fn generator<'a>(network: &'a DecoderNetwork, weights: &Weights, room: usize) -> Generator<'a> {
        Generator::new(network, weights, room).unwrap()
    }

    /// The scores behind `tokens`, by the whole network on all of them.
    fn whole(network: &DecoderNetwork, weights: &Weights, tokens: &[u32]) -> Vec<f32> {
        let logits = network.logits(weights, &Tokens::new(&[tokens]));
        let all = logits.try_into_vec_as::<f32>().unwrap();
        all[(tokens.len() - 1) * VOCABULARY..].to_vec()
    }

    /// What is generated behind `prompt`, and why it ended.
    fn text(
        generator: &mut Generator,
        prompt: &[u32],
        sampling: &Sampling,
        sample: u64,
        most: usize,
    ) -> (Vec<u32>, Stop) {
        generator.rewind(0);
        generator.read(prompt).unwrap();
        let mut found = Vec::new();
        let stop = generator.generate(sampling, sample, most, &[], &mut |token| {
            found.push(token);
            true
        });
        (found, stop.unwrap())
    }

    #[test]
    fn a_token_after_the_other_scores_as_the_whole_text_does() {
        for kind in [DecoderKind::Gpt2, DecoderKind::Llama] {
            let network = network(kind, 32);
            let weights = weights(&network);
            let tokens: Vec<u32> = (0..32).map(|i| i * 17 % VOCABULARY as u32).collect();
            for prompt in [1, 2, 7, 31, 32] {
                let mut generator = generator(&network, &weights, 32);
                generator.read(&tokens[..prompt]).unwrap();
                for read in prompt..=32 {
                    let expected = whole(&network, &weights, &tokens[..read]);
                    let largest = expected.iter().fold(0.0f32, |most, score| most.max(score.abs()));
                    assert_eq!(generator.scores().len(), expected.len());
                    for (a, b) in generator.scores().iter().zip(&expected) {
                        let off = (a - b).abs() / largest;
                        assert!(off < 2e-5, "{kind:?} {prompt} {read}: {a} {b} of {largest}");
                    }
                    if read < 32 {
                        generator.read(&tokens[read..=read]).unwrap();
                    }
                }
                assert_eq!(generator.tokens(), tokens);
            }
        }
    }

    #[test]
    fn greedy_text_is_that_of_a_loop_without_a_cache() {
        for kind in [DecoderKind::Gpt2, DecoderKind::Llama] {
            let network = network(kind, 48);
            let weights = weights(&network);
            let mut generator = generator(&network, &weights, 48);
            for prompt in [vec![5], vec![1, 2, 3], vec![60; 20]] {
                let mut all = prompt.clone();
                while all.len() < 40 {
                    all.push(best(&whole(&network, &weights, &all)).unwrap().0);
                }
                let most = 40 - prompt.len();
                let (found, stop) = text(&mut generator, &prompt, &Sampling::greedy(), 0, most);
                assert_eq!((&found[..], stop), (&all[prompt.len()..], Stop::Tokens));
                let only = Sampling {
                    top_k: 1,
                    ..Sampling::default()
                };
                assert_eq!(text(&mut generator, &prompt, &only, 5, most).0, found);
                let sure = Sampling {
                    top_p: 1e-9,
                    top_k: 0,
                    ..Sampling::default()
                };
                assert_eq!(text(&mut generator, &prompt, &sure, 5, most).0, found);
            }
        }
    }

    #[test]
    fn seed_and_sample_decide_the_text() {
        let network = network(DecoderKind::Llama, 40);
        let weights = weights(&network);
        let mut generator = generator(&network, &weights, 40);
        let mut run = |seed, sample| {
            let sampling = Sampling {
                seed,
                temperature: 2.0,
                ..Sampling::default()
            };
            text(&mut generator, &[1, 2], &sampling, sample, 30).0
        };
        let first = run(7, 0);
        assert_ne!(first, run(7, 1));
        assert_ne!(first, run(8, 0));
        assert_eq!(first, run(7, 0));
    }

    #[test]
    fn a_text_ends_with_its_end_its_count_its_context_or_its_taker() {
        let network = network(DecoderKind::Gpt2, 12);
        let weights = weights(&network);
        let mut generator = generator(&network, &weights, 100);
        let (whole_text, stop) = text(&mut generator, &[1, 2, 3], &Sampling::greedy(), 0, 50);
        assert_eq!((whole_text.len(), stop), (9, Stop::Context));
        let end = whole_text[4];
        generator.rewind(0);
        generator.read(&[1, 2, 3]).unwrap();
        let mut found = Vec::new();
        let stop = generator.generate(&Sampling::greedy(), 0, 50, &[99, end], &mut |token| {
            found.push(token);
            true
        });
        let at = whole_text.iter().position(|token| *token == end).unwrap();
        assert_eq!((stop.unwrap(), &found[..]), (Stop::End(end), &whole_text[..at]));
        generator.rewind(2);
        generator.read(&[3]).unwrap();
        let stop = generator.generate(&Sampling::greedy(), 0, 50, &[], &mut |_| false);
        assert_eq!(stop.unwrap(), Stop::Taker);
        let none = generator.generate(&Sampling::greedy(), 0, 0, &[], &mut |_| true);
        assert_eq!(none.unwrap(), Stop::Tokens);
    }

    #[test]
    fn what_cannot_be_read_or_sampled_is_refused() {
        let network = network(DecoderKind::Gpt2, 12);
        let weights = weights(&network);
        let mut generator = generator(&network, &weights, 100);
        let greedy = Sampling::greedy();
        let nothing = generator.generate(&greedy, 0, 1, &[], &mut |_| true);
        assert_eq!(nothing, Err(GenerateError::Empty));
        let outside = generator.read(&[3, 61]).unwrap_err();
        assert_eq!(outside.to_string(), "token 61 lies beyond the model's vocabulary of 61");
        assert!(outside.hint().unwrap().contains("tokenizer.json"));
        assert!(matches!(
            generator.read(&[0; 13]),
            Err(GenerateError::Room {
                tokens: 13,
                context: 12
            })
        ));
        assert!(generator.tokens().is_empty());
        let good = Sampling::default();
        for (name, wrong) in [
            (
                "temperature",
                Sampling {
                    temperature: -1.0,
                    ..good
                },
            ),
            (
                "temperature",
                Sampling {
                    temperature: f64::NAN,
                    ..good
                },
            ),
            ("top_p", Sampling { top_p: 0.0, ..good }),
            ("top_p", Sampling { top_p: 1.1, ..good }),
            (
                "repetition_penalty",
                Sampling {
                    repetition_penalty: 0.0,
                    ..good
                },
            ),
        ] {
            assert!(matches!(wrong.check(), Err(GenerateError::Setting { name: found, .. }) if found == name));
        }
        for scores in [[1.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            assert_eq!(
                good.choose(&scores, &[], 0, 7),
                Err(GenerateError::NotFinite { position: 7 })
            );
        }
        let other = Generator::new(&network, &Weights::new(), 5);
        assert!(matches!(other.err(), Some(GenerateError::Weights(_))));
    }

    /// How often each token is drawn, of 20,000.
    fn shares(sampling: &Sampling, scores: &[f32], seen: &[u32]) -> Vec<f64> {
        let mut counts = vec![0.0; scores.len()];
        for sample in 0..20_000 {
            counts[sampling.choose(scores, seen, sample, 3).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    /// Probabilities of `scores` of which only `kept` are left, in f64.
    fn softmax(scores: &[f64], kept: &[usize]) -> Vec<f64> {
        let weight = |i: usize| if kept.contains(&i) { scores[i].exp() } else { 0.0 };
        let total: f64 = (0..scores.len()).map(weight).sum();
        (0..scores.len()).map(|i| weight(i) / total).collect()
    }

    #[test]
    fn draws_follow_penalty_temperature_top_k_and_top_p_in_transformers_order() {
        let scores = [1.0f32, -0.5, 2.0, 0.3, 2.0, -3.0];
        let free = Sampling {
            top_k: 0,
            ..Sampling::default()
        };
        let all = [0, 1, 2, 3, 4, 5];
        let wide = |f: &dyn Fn(f64) -> f64| scores.map(|score| f(f64::from(score)));
        let penalised = [1.0 / 1.5, -0.5 * 1.5, 2.0, 0.3, 2.0, -3.0];
        // The probabilities of the six are .139, .031, .379, .069, .379 and .003.
        let cases: [(Sampling, &[u32], Vec<f64>); 8] = [
            (free, &[], softmax(&wide(&|s| s), &all)),
            (
                Sampling {
                    temperature: 0.5,
                    ..free
                },
                &[],
                softmax(&wide(&|s| 2.0 * s), &all),
            ),
            (Sampling { top_k: 3, ..free }, &[], softmax(&wide(&|s| s), &[0, 2, 4])),
            (
                Sampling {
                    top_k: 3,
                    repetition_penalty: 2.0,
                    ..free
                },
                &[0],
                softmax(&[0.5, -0.5, 2.0, 0.3, 2.0, -3.0], &[0, 2, 4]),
            ),
            (Sampling { top_k: 99, ..free }, &[], softmax(&wide(&|s| s), &all)),
            (Sampling { top_p: 0.8, ..free }, &[], softmax(&wide(&|s| s), &[2, 4, 0])),
            // At half the temperature the best two have .919 of the probability.
            (
                Sampling {
                    top_p: 0.8,
                    temperature: 0.5,
                    ..free
                },
                &[],
                softmax(&wide(&|s| 2.0 * s), &[2, 4]),
            ),
            (
                Sampling {
                    repetition_penalty: 1.5,
                    ..free
                },
                &[1, 0, 1, 77],
                softmax(&penalised, &all),
            ),
        ];
        for (number, (sampling, seen, expected)) in cases.iter().enumerate() {
            let found = shares(sampling, &scores, seen);
            for (found, expected) in found.iter().zip(expected) {
                // Five deviations of a share of 20,000 draws.
                let allowed = 5.0 * (expected * (1.0 - expected) / 20_000.0).sqrt();
                assert!((found - expected).abs() <= allowed, "case {number}: {found} {expected}");
            }
        }
    }

    #[test]
    fn top_p_finds_its_set_among_many_candidates() {
        // Nearly even: half of the probability takes about half of the tokens, far more than are sorted at first.
        let scores: Vec<f32> = (0..5000).map(|i| 1e-4 * ((i * 7919) % 5000) as f32).collect();
        let sampling = Sampling {
            top_k: 0,
            top_p: 0.5,
            ..Sampling::default()
        };
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let candidate = |(id, score): (usize, &f32)| Candidate {
            id: id as u32,
            score: score - most,
        };
        let mut left: Vec<Candidate> = scores.iter().enumerate().map(candidate).collect();
        sampling.keep_top_p(&mut left);
        let mut sorted: Vec<f64> = scores.iter().map(|&score| f64::from(score - most).exp()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let (half, mut above, mut expected) = (sorted.iter().sum::<f64>() / 2.0, 0.0, 0);
        while above < half {
            above += sorted[expected];
            expected += 1;
        }
        assert!(expected > SORTED && left.len() == expected, "{} {expected}", left.len());
        assert!(left.windows(2).all(|pair| pair[0].score >= pair[1].score));
    }

    #[test]
    fn draws_are_spread_evenly() {
        let mean = (0..10_000).map(|i| uniform(1, i, 2)).sum::<f64>() / 10_000.0;
        // The mean of 10,000 uniform numbers has a deviation of 0.0029.
        assert!((mean - 0.5).abs() < 0.015, "{mean}");
        assert_eq!(uniform(1, 2, 3), uniform(1, 2, 3));
        assert_ne!(uniform(1, 2, 3), uniform(1, 3, 2));
    }

    #[test]
    fn what_ends_a_text_is_read_as_transformers_does() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert!(end_tokens(folder.path()).is_err());
        write("config.json", r#"{ "eos_token_id": 7 }"#);
        assert_eq!(end_tokens(folder.path()).unwrap(), [7]);
        write("generation_config.json", r#"{ "bos_token_id": 1 }"#);
        assert!(end_tokens(folder.path()).unwrap().is_empty());
        write("generation_config.json", r#"{ "eos_token_id": [3, 4] }"#);
        assert_eq!(end_tokens(folder.path()).unwrap(), [3, 4]);
        write("generation_config.json", "{");
        assert!(end_tokens(folder.path()).is_err());
    }
}
