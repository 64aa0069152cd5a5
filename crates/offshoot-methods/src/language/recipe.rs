//! The recipe of a language model's pre-training: every number of it, with the small model of "Need a Small Specialized Language
//! Model? Plan Early!" as the default (specialize.md section 2).

use std::collections::BTreeMap;

use offshoot_family::recipe::Auto;
use offshoot_family::{Architecture, Decoder, DecoderKind, RopeScaling, Shape, Space};
use offshoot_zoo::network::{Network, NetworkError, SpaceBounds};
use offshoot_zoo::{DecoderNetwork, TensorSpec};
use serde::{Deserialize, Serialize};

use super::step::Distillation;
use crate::elastic::recipe::{InitRecipe, LARGEST_BATCH, RecipeProblem, check_adam};
use crate::elastic::sampling::{Sampler, SamplingError};
use crate::train::optimizer::Rate;
use crate::train::schedule::{TruncatedCosine, WarmupConstant};
use crate::train::trainer::Cadence;

/// The method's name.
pub const METHOD: &str = "language";

/// Everything a run needs. `auto` values are worked out before the first step and saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageRecipe {
    /// The method: `language`.
    pub method: String,
    /// Seed of weights, split, data order, sub-networks and samples.
    pub seed: u64,
    /// Where the parent starts.
    pub init: InitRecipe,
    /// The text.
    pub data: DataRecipe,
    /// The network that is trained whole.
    pub parent: Architecture,
    /// Its sub-networks.
    pub space: SpaceRecipe,
    /// How sub-networks are trained with it.
    pub elastic: ElasticRecipe,
    /// Optimizer and schedule.
    pub optim: OptimRecipe,
    /// Length and batches.
    pub train: TrainRecipe,
    /// Measuring and sampling during training.
    pub probe: ProbeRecipe,
}

/// Where text comes from, how it is tokenized, split and cut into windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// A corpus that `offshoot tokenize` made; empty to make one of the domains, in the run folder.
    pub corpus: String,
    /// Text, JSONL, Parquet or folders of those, by name of the domain.
    pub domains: BTreeMap<String, String>,
    /// Share of windows from each domain, by name; only ratios count, and without any each domain gives what it has.
    pub weights: BTreeMap<String, f64>,
    /// A `tokenizer.json`, or a folder with one; empty for the corpus's, the initial model's, or one trained on the domains.
    pub tokenizer: String,
    /// Kind of a tokenizer that is trained: `bpe` or `unigram`.
    pub algorithm: TokenizerKind,
    /// Tokens of a tokenizer that is trained.
    pub vocabulary: usize,
    /// Fingerprint of the corpus. auto: whatever is found; a run is only ever resumed on the same content.
    pub fingerprint: Auto<String>,
    /// Share of the documents held out for choosing.
    pub val: f64,
    /// Share of the documents held out for the final number.
    pub test: f64,
    /// Share of damaged documents above which the run stops.
    pub max_damaged: f64,
    /// Whether training documents that nearly equal a held-out one are removed.
    pub near_duplicates: bool,
    /// Whether documents are joined and cut into windows of exactly the context.
    pub packing: bool,
    /// Whether each document begins with the begin-of-text token. auto: if the tokenizer puts it before a text.
    pub begin_of_text: Auto<bool>,
    /// Whether each document ends with the end-of-text token. auto: if the tokenizer has one.
    pub end_of_text: Auto<bool>,
}

/// Kind of a tokenizer that is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// Byte-level BPE.
    Bpe,
    /// Unigram with byte fallback.
    Unigram,
}

/// The sub-networks that are trained and derived; zeros leave an axis whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceRecipe {
    /// Smallest width, with heads and hidden channels in proportion.
    pub min_width: usize,
    /// Distance of two widths. auto: one head of keys and values with its share of the width.
    pub width_step: Auto<usize>,
    /// Smallest hidden size of the feed-forward layers, cut by itself.
    pub min_hidden: usize,
    /// Distance of two hidden sizes. auto: a quarter of the parent's.
    pub hidden_step: Auto<usize>,
    /// Smallest depth.
    pub min_depth: usize,
    /// Distance of two depths.
    pub depth_step: usize,
    /// Whether slices are scaled by the share that is kept, in training and in the family.
    pub alpha: bool,
}

/// Which sub-networks are trained in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// The smallest, and some at random (the sandwich rule, Yu and Huang 2019, section 3.2).
    Sandwich,
    /// One, smaller shapes more often (POA section 3.3).
    Poa,
}

/// How sub-networks are trained with the intact network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElasticRecipe {
    /// Which are trained in a step.
    pub rule: Rule,
    /// Sub-networks of a step besides the smallest, for the sandwich rule.
    pub random: usize,
    /// How much oftener the smallest size of an axis is drawn than the largest.
    pub sampling_scale: f64,
    /// Share of the intact network's distribution in a sub-network's target; the rest is the next token (in-place distillation,
    /// Yu and Huang 2019, section 3.3).
    pub distillation: f64,
    /// Temperature of both distributions.
    pub temperature: f64,
}

/// How the learning rate goes on behind its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Half a cosine down to `final_lr` at the last step.
    Cosine,
}

/// AdamW and its schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimRecipe {
    /// Peak learning rate.
    pub lr: f64,
    /// How it goes on behind the warm-up.
    pub schedule: Schedule,
    /// Learning rate at the end of a cosine.
    pub final_lr: f64,
    /// Steps of linear warm-up from 0.
    pub warmup_steps: u64,
    /// Weight decay of matrices and embeddings.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Largest L2 norm of the gradient.
    pub clip: f64,
}

/// Length and batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Windows of one step.
    pub batch: usize,
    /// Windows that run at once; gradients of a step are accumulated over them. auto: 16 at most.
    pub at_once: Auto<usize>,
    /// Whether blocks are run again for the gradient, so that a forward pass keeps one tensor a block.
    pub recompute: bool,
    /// Steps.
    pub steps: u64,
    /// Steps between two lines of the log.
    pub log_every: u64,
    /// Steps between two checkpoints. auto: a twentieth of the run, at least 100.
    pub checkpoint_every: Auto<u64>,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// Steps between two probes: perplexity on val, and samples; 0 for none but the last. auto: a twentieth of the run.
    pub probe_every: Auto<u64>,
}

/// Measuring and sampling during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecipe {
    /// Documents of the val split of each domain whose first window a probe scores, at most.
    pub documents: u64,
    /// What samples begin with; none for no samples.
    pub prompts: Vec<String>,
    /// Tokens of a sample.
    pub tokens: usize,
    /// Temperature of samples.
    pub temperature: f64,
}

impl Default for LanguageRecipe {
    /// The paper's small model, SLM (specialize.md sections 2.1 and 2.2), for text that must be named.
    fn default() -> Self {
        Self {
            method: METHOD.into(),
            seed: 0,
            init: InitRecipe::default(),
            data: DataRecipe {
                corpus: String::new(),
                domains: BTreeMap::new(),
                weights: BTreeMap::new(),
                tokenizer: String::new(),
                algorithm: TokenizerKind::Bpe,
                vocabulary: 32_768,
                fingerprint: Auto::Auto,
                val: 0.01,
                test: 0.01,
                max_damaged: 0.01,
                near_duplicates: true,
                packing: false,
                begin_of_text: Auto::Auto,
                end_of_text: Auto::Auto,
            },
            parent: Architecture::Decoder(Decoder {
                kind: DecoderKind::Gpt2,
                width: 1024,
                depth: 7,
                heads: 8,
                kv_heads: 0,
                head_dim: 0,
                hidden: 0,
                vocabulary: 0,
                context: 1024,
                norm_eps: 1e-5,
                tied: true,
                rope_theta: 1e4,
                rope_scaling: RopeScaling::None,
            }),
            space: SpaceRecipe {
                min_width: 0,
                width_step: Auto::Auto,
                min_hidden: 0,
                hidden_step: Auto::Auto,
                min_depth: 0,
                depth_step: 1,
                alpha: false,
            },
            elastic: ElasticRecipe {
                rule: Rule::Sandwich,
                random: 1,
                sampling_scale: 1.0,
                distillation: 1.0,
                temperature: 1.0,
            },
            optim: OptimRecipe {
                lr: 1e-4,
                schedule: Schedule::Constant,
                final_lr: 1e-5,
                warmup_steps: 1000,
                weight_decay: 0.0,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                clip: 5.0,
            },
            train: TrainRecipe {
                batch: 128,
                at_once: Auto::Auto,
                recompute: false,
                steps: 100_000,
                log_every: 10,
                checkpoint_every: Auto::Auto,
                keep: 2,
                probe_every: Auto::Auto,
            },
            probe: ProbeRecipe {
                documents: 100,
                prompts: vec![String::new()],
                tokens: 64,
                temperature: 0.8,
            },
        }
    }
}

/// What a corpus says about the values that depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusFacts {
    /// Ids that its tokenizer may give.
    pub vocabulary: usize,
    /// Whether its tokenizer puts the token that begins a text before it.
    pub begin_of_text: bool,
    /// Whether its tokenizer has a token that ends a text.
    pub end_of_text: bool,
    /// Its fingerprint.
    pub fingerprint: String,
}

fn value(key: &'static str, value: impl ToString, reason: impl Into<String>) -> RecipeProblem {
    RecipeProblem::Value {
        key,
        value: value.to_string(),
        reason: reason.into(),
    }
}

impl LanguageRecipe {
    /// Works out every `auto` value that `corpus` (if known) allows, fills in what is usual, and checks the numbers.
    ///
    /// # Errors
    /// Names the first key with a value that cannot work.
    pub fn resolve(&mut self, corpus: Option<&CorpusFacts>) -> Result<(), RecipeProblem> {
        self.check()?;
        let decoder = self.decoder()?.clone().filled();
        self.parent = Architecture::Decoder(decoder);
        if let Some(corpus) = corpus {
            self.take(corpus)?;
        }
        let batch = self.train.batch;
        self.train.at_once.resolve(|| batch.min(16));
        let steps = self.train.steps;
        self.train.checkpoint_every.resolve(|| (steps / 20).max(100));
        self.train.probe_every.resolve(|| (steps / 20).max(1));
        let network = self.network()?;
        self.space.width_step.resolve(|| network.width_step());
        let quarter = network.decoder().hidden.div_ceil(4);
        self.space.hidden_step.resolve(|| quarter);
        self.space()?;
        Ok(())
    }

    fn take(&mut self, corpus: &CorpusFacts) -> Result<(), RecipeProblem> {
        let known = corpus.vocabulary;
        let mut decoder = self.decoder()?.clone();
        if decoder.vocabulary == 0 {
            decoder.vocabulary = known;
        }
        if decoder.vocabulary < known {
            let reason = format!("the tokenizer has {known} tokens; leave it out, or give at least as many");
            return Err(value("parent.vocabulary", decoder.vocabulary, reason));
        }
        self.parent = Architecture::Decoder(decoder);
        self.data.begin_of_text.resolve(|| corpus.begin_of_text);
        self.data.end_of_text.resolve(|| corpus.end_of_text);
        self.data.fingerprint.resolve(|| corpus.fingerprint.clone());
        if self.data.end_of_text.value() == Some(&true) && !corpus.end_of_text {
            return Err(value(
                "data.end_of_text",
                true,
                "the tokenizer has no token that ends a text",
            ));
        }
        Ok(())
    }

    /// Whether documents begin with the begin-of-text token.
    pub fn begins(&self) -> bool {
        self.data.begin_of_text.value() == Some(&true)
    }

    fn check(&self) -> Result<(), RecipeProblem> {
        if self.method != METHOD {
            return Err(value(
                "method",
                &self.method,
                "this is a recipe of the method `language`",
            ));
        }
        for (key, count, least, most) in [
            ("train.batch", self.train.batch as u64, 1, LARGEST_BATCH as u64),
            ("train.steps", self.train.steps, 1, 1 << 40),
            (
                "train.at_once",
                self.train.at_once.value().map_or(1, |&n| n as u64),
                1,
                LARGEST_BATCH as u64,
            ),
            ("space.depth_step", self.space.depth_step as u64, 1, 1 << 40),
            ("elastic.random", self.elastic.random as u64, 0, 1 << 20),
        ] {
            if !(least..=most).contains(&count) {
                return Err(value(
                    key,
                    count,
                    format!("must be at least {least}, and at most {most}"),
                ));
            }
        }
        if !(0.0..=1.0).contains(&self.elastic.distillation) {
            let reason = "must lie between 0 and 1";
            return Err(value("elastic.distillation", self.elastic.distillation, reason));
        }
        check_adam(self.optim.beta1, self.optim.beta2, self.optim.epsilon)?;
        for (key, positive) in [
            ("elastic.temperature", self.elastic.temperature),
            ("optim.clip", self.optim.clip),
        ] {
            if !(positive.is_finite() && positive > 0.0) {
                return Err(value(key, positive, "must be above 0"));
            }
        }
        for (key, number) in [
            ("optim.lr", self.optim.lr),
            ("optim.final_lr", self.optim.final_lr),
            ("optim.weight_decay", self.optim.weight_decay),
            ("probe.temperature", self.probe.temperature),
        ] {
            if !(number.is_finite() && number >= 0.0) {
                return Err(value(key, number, "must be a number, not negative"));
            }
        }
        let weights = self.data.weights.values();
        if let Some(wrong) = weights.clone().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
            return Err(value("data.weights", wrong, "must be numbers, not negative"));
        }
        let total: f64 = weights.sum();
        let is_shared = self.data.weights.is_empty() || total > 0.0;
        if !is_shared || total.is_infinite() {
            return Err(value(
                "data.weights",
                total,
                "one must be above 0, and their sum a number",
            ));
        }
        let names = self.data.domains.keys();
        if let Some((name, _)) = self
            .data
            .weights
            .iter()
            .find(|(name, _)| !self.data.domains.is_empty() && !names.clone().any(|known| known == *name))
        {
            return Err(value(
                "data.weights",
                name,
                "there is no domain of this name in `data.domains`",
            ));
        }
        Ok(())
    }

    /// The numbers of the intact network.
    ///
    /// # Errors
    /// If it is no decoder.
    pub fn decoder(&self) -> Result<&Decoder, RecipeProblem> {
        match &self.parent {
            Architecture::Decoder(decoder) => Ok(decoder),
            other => Err(value(
                "parent",
                other.summary(),
                "a language model is a decoder: `family = \"decoder\"`",
            )),
        }
    }

    /// The intact network. A vocabulary that is not known yet counts as that of a tokenizer to be trained.
    ///
    /// # Errors
    /// If its numbers make none.
    pub fn network(&self) -> Result<DecoderNetwork, RecipeProblem> {
        let mut decoder = self.decoder()?.clone().filled();
        if decoder.vocabulary == 0 {
            decoder.vocabulary = self.data.vocabulary;
        }
        decoder.check().map_err(NetworkError::from)?;
        Ok(DecoderNetwork::new(decoder))
    }

    /// The space of sub-networks.
    ///
    /// # Errors
    /// If its bounds do not fit the network.
    pub fn space(&self) -> Result<Space, RecipeProblem> {
        let network = self.network()?;
        Ok(network.space(SpaceBounds {
            min_width: self.space.min_width,
            width_step: self.space.width_step.value().copied().unwrap_or(0),
            min_depths: vec![self.space.min_depth],
            depth_step: self.space.depth_step,
            min_hidden: self.space.min_hidden,
            hidden_step: self.space.hidden_step.value().copied().unwrap_or(0),
        })?)
    }

    /// Which sub-networks are trained when.
    ///
    /// # Errors
    /// If the space cannot be sampled.
    pub fn draws(&self, space: &Space) -> Result<Draws, SamplingError> {
        let groups: Vec<Vec<usize>> = (0..space.axes.len()).map(|axis| vec![axis]).collect();
        Ok(Draws {
            sampler: Sampler::new(space, &groups, self.elastic.sampling_scale, self.seed)?,
            smallest: (self.elastic.rule == Rule::Sandwich).then(|| space.smallest()),
            random: match self.elastic.rule {
                Rule::Sandwich => self.elastic.random as u64,
                Rule::Poa => 1,
            },
        })
    }

    /// What sub-networks are trained on.
    pub fn distillation(&self) -> Distillation {
        Distillation {
            share: self.elastic.distillation,
            temperature: self.elastic.temperature,
        }
    }

    /// Learning rate at `step`.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let optim = &self.optim;
        match optim.schedule {
            Schedule::Constant => WarmupConstant {
                start: 0.0,
                base: optim.lr,
                warmup: optim.warmup_steps,
            }
            .at(step),
            Schedule::Cosine => TruncatedCosine {
                base: optim.lr,
                last: optim.final_lr,
                warmup: optim.warmup_steps,
                start: 0.0,
                total: self.train.steps,
                stretch: 1.0,
            }
            .at(step),
        }
    }

    /// What the update of `step` does to a tensor, its gradient as it is.
    pub fn rate(&self, spec: &TensorSpec, step: u64) -> Rate {
        Rate {
            learning_rate: self.learning_rate(step),
            weight_decay: if spec.decay { self.optim.weight_decay } else { 0.0 },
            gradient_scale: 1.0,
        }
    }

    /// How often things happen.
    pub fn cadence(&self) -> Cadence {
        Cadence {
            log_every: self.train.log_every,
            checkpoint_every: self.train.checkpoint_every.value().copied().unwrap_or(0),
            keep: self.train.keep,
            probe_every: self.train.probe_every.value().copied().unwrap_or(0),
        }
    }
}

/// The sub-networks of every step: a pure function of the step.
#[derive(Clone, Debug)]
pub struct Draws {
    sampler: Sampler,
    /// The shape that is in every step, if one is.
    smallest: Option<Shape>,
    random: u64,
}

impl Draws {
    /// The shapes of `step`, each once; none where there is only the intact one.
    pub fn at(&self, step: u64) -> Vec<Shape> {
        if self.sampler.cycle() == 0 {
            return Vec::new();
        }
        let mut shapes: Vec<Shape> = self.smallest.iter().cloned().collect();
        for i in 0..self.random {
            let shape = self.sampler.draw(step * self.random + i);
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        shapes
    }

    /// Each shape and how often it is trained in a step, on average.
    pub fn shares(&self) -> Vec<(Shape, f64)> {
        let cycle = self.sampler.cycle() as f64;
        let drawn = |copies: usize| 1.0 - (1.0 - copies as f64 / cycle).powf(self.random as f64);
        let each = self.sampler.multiplicities().iter();
        each.map(|(shape, copies)| {
            let always = self.smallest.as_ref() == Some(shape);
            (shape.clone(), if always { 1.0 } else { drawn(*copies) })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> LanguageRecipe {
        let mut recipe = LanguageRecipe::default();
        recipe.parent = Architecture::Decoder(Decoder {
            width: 64,
            depth: 4,
            heads: 4,
            context: 32,
            ..recipe.decoder().unwrap().clone()
        });
        recipe.data.vocabulary = 300;
        recipe
    }

    /// specialize.md 2.1: 120.94M with a vocabulary of 32,000 and no positions; V = 32,768 with 4,096 positions gives 125.92M.
    #[test]
    fn the_papers_models_have_the_derived_parameters() {
        let count = |width: usize, heads: usize, vocabulary: usize, context: usize| {
            let mut recipe = LanguageRecipe::default();
            recipe.parent = Architecture::Decoder(Decoder {
                width,
                heads,
                context,
                vocabulary,
                ..recipe.decoder().unwrap().clone()
            });
            offshoot_zoo::spec::parameters(&recipe.network().unwrap().specs())
        };
        let closest = |found: u64, millions: f64| assert_eq!((found as f64 / 1e4).round() / 100.0, millions);
        closest(count(1024, 8, 32_768, 4096), 125.92);
        closest(count(2816, 22, 32_768, 4096), 770.18);
        // The default: 1,024 positions, which the paper states.
        closest(count(1024, 8, 32_768, 1024), 122.78);
    }

    #[test]
    fn open_values_follow_from_the_corpus() {
        let mut recipe = small();
        let corpus = CorpusFacts {
            vocabulary: 257,
            begin_of_text: false,
            end_of_text: true,
            fingerprint: "f00d".into(),
        };
        recipe.resolve(Some(&corpus)).unwrap();
        assert!(offshoot_family::recipe::unresolved(&recipe).is_empty());
        let decoder = recipe.decoder().unwrap();
        assert_eq!((decoder.vocabulary, decoder.hidden, decoder.head_dim), (257, 256, 16));
        assert_eq!(recipe.space().unwrap().count(), 1);
        let mut narrow = small();
        if let Architecture::Decoder(decoder) = &mut narrow.parent {
            decoder.vocabulary = 100;
        }
        let error = narrow.resolve(Some(&corpus)).unwrap_err().to_string();
        assert!(
            error.contains("parent.vocabulary = 100") && error.contains("257"),
            "{error}"
        );
    }

    #[test]
    fn numbers_beyond_all_use_are_refused_by_the_name_of_their_key() {
        let refused = |change: &dyn Fn(&mut LanguageRecipe), says: &str| {
            let mut recipe = small();
            change(&mut recipe);
            let error = recipe.resolve(None).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        let large = 1 << 20;
        refused(&|r| r.train.batch = large + 1, "train.batch = 1048577");
        refused(&|r| r.train.batch = 0, "train.batch = 0");
        refused(&|r| r.train.at_once = Auto::Value(large + 1), "train.at_once = 1048577");
        refused(&|r| r.elastic.random = large + 1, "elastic.random = 1048577");
        refused(&|r| r.optim.beta1 = 1.0, "optim.beta1 = 1");
        refused(&|r| r.optim.beta2 = 1.0, "optim.beta2 = 1");
        refused(&|r| r.optim.beta2 = f64::NAN, "optim.beta2 = NaN");
        refused(&|r| r.optim.epsilon = 0.0, "optim.epsilon = 0");
        let weigh = |r: &mut LanguageRecipe, weights: &[f64]| {
            for (name, weight) in ["a", "b"].into_iter().zip(weights) {
                r.data.weights.insert(name.into(), *weight);
            }
        };
        refused(&|r| weigh(r, &[1.0, -1.0]), "data.weights = -1");
        refused(&|r| weigh(r, &[f64::INFINITY]), "data.weights = inf");
        refused(&|r| weigh(r, &[0.0, 0.0]), "data.weights = 0");
        refused(&|r| weigh(r, &[f64::MAX, f64::MAX]), "data.weights = inf");
        let mut most = small();
        (most.train.batch, most.elastic.random) = (large, 0);
        (most.optim.beta1, most.optim.beta2) = (0.0, 0.0);
        most.resolve(None).unwrap();
    }

    #[test]
    fn the_sandwich_has_the_smallest_and_poa_one_at_a_time() {
        let mut recipe = small();
        (recipe.space.min_width, recipe.space.min_depth) = (16, 2);
        recipe.elastic.random = 2;
        recipe.resolve(None).unwrap();
        let space = recipe.space().unwrap();
        assert_eq!(space.count(), 12);
        let draws = recipe.draws(&space).unwrap();
        for step in 0..50 {
            let shapes = draws.at(step);
            assert_eq!(shapes[0], space.smallest());
            assert!((1..=3).contains(&shapes.len()) && !shapes.contains(&space.intact()));
            assert_eq!(shapes, draws.at(step));
        }
        recipe.elastic.rule = Rule::Poa;
        let draws = recipe.draws(&space).unwrap();
        let mut seen: Vec<Shape> = (0..11).flat_map(|step| draws.at(step)).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 11, "a cycle has every shape but the intact one");
        let total: f64 = draws.shares().iter().map(|(_, share)| share).sum();
        assert!((total - 1.0).abs() < 1e-12);
    }

    #[test]
    fn warm_up_then_constant_or_half_a_cosine() {
        let mut recipe = small();
        (recipe.optim.warmup_steps, recipe.train.steps) = (11, 101);
        assert_eq!((recipe.learning_rate(0), recipe.learning_rate(10)), (0.0, 1e-4));
        assert_eq!(recipe.learning_rate(1_000_000), 1e-4);
        recipe.optim.schedule = Schedule::Cosine;
        assert_eq!(recipe.learning_rate(11), 1e-4);
        let middle = recipe.learning_rate(56);
        assert!((middle - 0.55e-4).abs() < 1e-9, "{middle}");
        assert!(recipe.learning_rate(100) < 1.01e-5);
    }
}
