//! Pre-training of a language model as a learner: network, sub-networks, optimizer and windows, one step at a time.

use std::collections::BTreeMap;

use offshoot_data::text::{Batches, Corpus, Tokenizer};
use offshoot_data::{DataError, Split};
use offshoot_eval::{Means, Perplexity, Sliding, TextScorer};
use offshoot_family::{Shape, Space};
use offshoot_zoo::generate::{Generator, Sampling};
use offshoot_zoo::materialize::{Plan, compile, materialize};
use offshoot_zoo::network::{self, Network};
use offshoot_zoo::tensor::{Device, kernels};
use offshoot_zoo::{DecoderNetwork, TensorSpec, Weights};

use super::cost::Predicted;
use super::recipe::{Draws, LanguageRecipe};
use super::step::{Child, Objective};
use crate::elastic::recipe::RecipeProblem;
use crate::train::error::LearnerError;
use crate::train::optimizer::{self, AdamW, Gradients, Rate};
use crate::train::state::TrainState;
use crate::train::trainer::{Clock, Learner, MAX_SKIPPED, StepReport};

/// A sub-network as training needs it.
struct Cut {
    network: DecoderNetwork,
    plan: Plan,
}

/// Weights and optimizer of a run.
pub struct LanguageLearner {
    recipe: LanguageRecipe,
    network: DecoderNetwork,
    specs: BTreeMap<String, TensorSpec>,
    space: Space,
    draws: Draws,
    /// The sub-networks met so far.
    children: BTreeMap<Shape, Cut>,
    weights: Weights,
    adam: AdamW,
    /// Steps in a row that were skipped.
    skipped: u64,
    /// What was predicted in all steps; none after a checkpoint that did not count it.
    predicted: Option<Predicted>,
    /// Whether it starts from weights that the recipe alone does not give.
    taken_over: bool,
    batches: Batches,
    /// What probes score.
    val: Vec<Document>,
    /// What samples begin with, and its tokens.
    prompts: Vec<(String, Vec<u32>)>,
}

impl LanguageLearner {
    /// A learner at step 0 of a resolved recipe, on `batches`; probes score documents of the val part of the same corpus. All of the
    /// corpus is read once, to see that it is what its fingerprint says: opening it does not, and a run must not go on with other
    /// tokens than those that it started with.
    ///
    /// # Errors
    /// If the recipe's numbers or the space do not work, the corpus was changed, documents cannot be read, or a prompt leaves no room
    /// for a sample.
    pub fn new(recipe: &LanguageRecipe, batches: Batches, device: &Device) -> Result<Self, LearnerError> {
        let corpus = batches.windows().corpus();
        corpus.verify().map_err(LearnerError::Corpus)?;
        let network = recipe.network()?;
        let specs = network.specs();
        let space = recipe.space()?;
        let optim = &recipe.optim;
        Ok(Self {
            draws: recipe.draws(&space)?,
            space,
            children: BTreeMap::new(),
            weights: offshoot_zoo::initialise(&specs, recipe.seed, device),
            specs: specs.into_iter().map(|spec| (spec.name.clone(), spec)).collect(),
            adam: AdamW::new(optim.beta1, optim.beta2, optim.epsilon),
            skipped: 0,
            predicted: Some(Predicted::default()),
            taken_over: false,
            val: spread(
                corpus,
                recipe.probe.documents,
                network.decoder().context,
                begin(recipe, corpus.tokenizer()),
            )?,
            prompts: prompts(recipe, corpus.tokenizer(), network.decoder().context)?,
            batches,
            network,
            recipe: recipe.clone(),
        })
    }

    /// Takes over `weights` instead of the fresh ones. To be called before the first step; the first checkpoint is then written
    /// before it, so that a run needs them only once.
    ///
    /// # Errors
    /// If they are not those of the recipe's network.
    pub fn start_from(&mut self, weights: Weights) -> Result<(), LearnerError> {
        if let Some(problem) = weights.mismatch(&self.network.specs()) {
            return Err(LearnerError::State(problem));
        }
        self.weights = weights;
        self.taken_over = true;
        Ok(())
    }

    /// The intact network.
    pub fn network(&self) -> &DecoderNetwork {
        &self.network
    }

    /// What was predicted in all steps that are done, if it was counted from the first on.
    pub fn predicted(&self) -> Option<Predicted> {
        self.predicted
    }

    /// Its weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Makes the network and plan of the child of `shape` if they were not made before.
    fn meet(&mut self, shape: &Shape) -> Result<(), LearnerError> {
        if !self.children.contains_key(shape) {
            let mut view = self.network.child(shape, "")?;
            if !self.recipe.space.alpha {
                view.gains.clear();
            }
            let opened = offshoot_zoo::open(&view.child)?;
            let network = network::decoder(opened.as_ref())?.clone();
            let plan = compile(&self.network.specs(), Some(&network.specs()), &view)?;
            self.children.insert(shape.clone(), Cut { network, plan });
        }
        Ok(())
    }

    /// Clips, updates; what was wrong with the gradients, if anything was, and then nothing is changed.
    fn update(&mut self, step: u64, gradients: Gradients, values: &mut Vec<(String, f64)>) -> Option<String> {
        let [norm] = optimizer::norms(&gradients, |_| 0);
        values.push(("gradient_norm".into(), norm));
        if !norm.is_finite() {
            return Some("the gradient is not finite".into());
        }
        let gradient_scale = optimizer::clip(norm, self.recipe.optim.clip);
        let (recipe, specs) = (&self.recipe, &self.specs);
        self.adam.update(&mut self.weights, gradients, |name| Rate {
            gradient_scale,
            ..recipe.rate(&specs[name], step)
        });
        None
    }

    /// How well the child of `shape` predicts the documents that probes score, of each of their domains in order.
    fn validate(&self, shape: &Shape) -> Result<Vec<(usize, Perplexity)>, LearnerError> {
        let Cut { network, plan } = &self.children[shape];
        let weights = materialize(&self.weights, plan);
        let context = network.decoder().context;
        let sliding = Sliding::new(context, None, context)?;
        let begin = begin(&self.recipe, self.batches.windows().corpus().tokenizer());
        let mut found = Vec::new();
        for documents in self.val.chunk_by(|a, b| a.domain == b.domain) {
            let mut scorer = TextScorer::new(network, &weights, sliding, begin)?;
            for document in documents {
                scorer.add(&document.tokens, document.bytes)?;
            }
            found.push((documents[0].domain, scorer.finish()?));
        }
        Ok(found)
    }

    fn domain_name(&self, domain: usize) -> &str {
        &self.batches.windows().corpus().facts().domains[domain].name
    }
}

/// A held-out document that probes score.
struct Document {
    /// Its domain's number in the corpus.
    domain: usize,
    /// Its first tokens, as many as fit a window with the token that begins a text, if one does.
    tokens: Vec<u32>,
    /// UTF-8 bytes of the whole document.
    bytes: u64,
}

/// The token that each document of a run begins with, if one does.
fn begin(recipe: &LanguageRecipe, tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.begin_of_text().filter(|_| recipe.begins())
}

/// The beginnings of at most `limit` documents of the val part of each domain, evenly spaced, so long that each fills a window of
/// `context` tokens with `begin` in front and needs no second one.
fn spread(corpus: &Corpus, limit: u64, context: usize, begin: Option<u32>) -> Result<Vec<Document>, DataError> {
    let lead = usize::from(begin.is_some());
    let most = context.saturating_sub(lead) as u64;
    let mut chosen = Vec::new();
    for domain in 0..corpus.facts().domains.len() {
        let Some(part) = corpus.part(domain, Split::Val) else {
            continue;
        };
        let count = part.documents();
        let taken = count.min(limit);
        for number in (0..taken).map(|i| i * count / taken) {
            let mut tokens = Vec::new();
            let span = part.span(number);
            part.read(span.start..span.end.min(span.start.saturating_add(most)), &mut tokens)?;
            // The first token of a window has nothing before it to be predicted from.
            if lead + tokens.len() > 1 {
                chosen.push(Document {
                    domain,
                    tokens,
                    bytes: part.document_bytes(number),
                });
            }
        }
    }
    Ok(chosen)
}

/// The prompts of samples with their tokens. An empty one is the token that stands between documents; without such a token there is
/// nothing to go on from, and no sample of it.
fn prompts(
    recipe: &LanguageRecipe,
    tokenizer: &Tokenizer,
    context: usize,
) -> Result<Vec<(String, Vec<u32>)>, LearnerError> {
    let mut found = Vec::new();
    for prompt in &recipe.probe.prompts {
        let mut tokens: Vec<u32> = begin(recipe, tokenizer).into_iter().collect();
        tokens.extend(tokenizer.encode_prompt(prompt)?);
        if tokens.is_empty() {
            tokens.extend(tokenizer.end_of_text());
        }
        if tokens.len() >= context {
            let reason = format!(
                "{} tokens leave no room for a sample in a context of {context}; give a shorter prompt",
                tokens.len()
            );
            return Err(LearnerError::Recipe(RecipeProblem::Value {
                key: "probe.prompts",
                value: prompt.clone(),
                reason,
            }));
        }
        if !tokens.is_empty() {
            found.push((prompt.clone(), tokens));
        }
    }
    Ok(found)
}

/// The text that the tokens `made` add to that of `read`: what stands before a token decides whether its text begins with a space.
fn continuation(tokenizer: &Tokenizer, read: &[u32], made: &[u32]) -> Result<String, DataError> {
    let mut decoding = tokenizer.decoding(false);
    for &token in read {
        decoding.push(token)?;
    }
    let mut text = String::new();
    for &token in made {
        text.push_str(&decoding.push(token)?);
    }
    text.push_str(&decoding.finish()?);
    Ok(text)
}

impl Learner for LanguageLearner {
    type Error = LearnerError;

    fn steps(&self) -> u64 {
        self.recipe.train.steps
    }

    fn taken_over(&self) -> bool {
        self.taken_over
    }

    fn start(&mut self, _: u64) -> Result<(), LearnerError> {
        Ok(())
    }

    fn step(&mut self, step: u64, clock: &dyn Clock) -> Result<StepReport, LearnerError> {
        let asked = clock.elapsed();
        let windows = self.batches.batch(step)?;
        let waited = clock.elapsed().saturating_sub(asked);
        let tokens: Vec<&[u32]> = windows.iter().map(|window| &window.tokens[..]).collect();
        let predicted: usize = tokens.iter().map(|window| window.len() - 1).sum();
        let shapes = self.draws.at(step);
        for shape in &shapes {
            self.meet(shape)?;
        }
        let cuts = shapes.iter().map(|shape| &self.children[shape]);
        let children: Vec<Child<'_>> = cuts
            .map(|cut| Child {
                network: &cut.network,
                plan: &cut.plan,
            })
            .collect();
        let objective = Objective {
            network: &self.network,
            children: &children,
            distillation: self.recipe.distillation(),
            recompute: self.recipe.train.recompute,
        };
        let at_once = self.recipe.train.at_once.value().copied().unwrap_or(1);
        let weights = &self.weights;
        let outcome = kernels::on_workers(|| objective.step(weights, &tokens, at_once, predicted));
        let mut values = vec![("loss".to_owned(), outcome.loss)];
        let named = shapes.iter().zip(&outcome.children);
        values.extend(named.map(|(shape, loss)| (format!("loss/{shape}"), *loss)));
        let finite = values.iter().all(|(_, value)| value.is_finite());
        let skipped = if finite {
            self.update(step, outcome.gradients, &mut values)
        } else {
            Some("the loss is not finite".into())
        };
        self.skipped = if skipped.is_some() { self.skipped + 1 } else { 0 };
        if self.skipped >= MAX_SKIPPED {
            return Err(LearnerError::Diverged {
                steps: self.skipped,
                last: step,
            });
        }
        if let Some(counted) = &mut self.predicted {
            tokens.iter().for_each(|window| counted.add(window.len() - 1));
            values.push(("tokens_seen".into(), counted.tokens as f64));
        }
        values.extend([
            ("learning_rate".into(), self.recipe.learning_rate(step)),
            ("tokens".into(), predicted as f64),
            ("skipped".into(), f64::from(u8::from(skipped.is_some()))),
        ]);
        Ok(StepReport {
            values,
            examples: predicted,
            waited,
            skipped,
        })
    }

    /// Perplexity on val of the smallest, the middle and the intact network, macro-averaged over domains; and of the intact one each
    /// domain's, where there are several.
    fn probe(&mut self) -> Result<Vec<(String, f64)>, LearnerError> {
        let intact = self.space.intact();
        let mut shapes = vec![self.space.smallest(), self.space.middle(), intact.clone()];
        shapes.dedup();
        let mut values = Vec::new();
        if self.val.is_empty() {
            return Ok(values);
        }
        let mut domains = Vec::new();
        for shape in shapes {
            self.meet(&shape)?;
            let found = self.validate(&shape)?;
            if let Some(means) = Means::of(found.iter().map(|(_, perplexity)| perplexity)) {
                values.push((format!("perplexity/{shape}"), means.per_token));
            }
            if shape == intact && found.len() > 1 {
                domains = found;
            }
        }
        let each = domains.into_iter();
        values.extend(each.map(|(domain, perplexity)| {
            (
                format!("perplexity/{intact}/{}", self.domain_name(domain)),
                perplexity.per_token(),
            )
        }));
        Ok(values)
    }

    /// What the intact network writes behind each prompt.
    fn samples(&mut self) -> Result<Vec<(String, String)>, LearnerError> {
        let probe = &self.recipe.probe;
        let tokenizer = self.batches.windows().corpus().tokenizer();
        let sampling = Sampling {
            temperature: probe.temperature,
            seed: self.recipe.seed,
            ..Sampling::default()
        };
        let ends: Vec<u32> = tokenizer.end_of_text().into_iter().collect();
        let mut samples = Vec::new();
        for (number, (prompt, read)) in self.prompts.iter().enumerate() {
            // Room for no more than is asked for: that of a long context can be larger than the model.
            let room = read.len().saturating_add(probe.tokens);
            let mut generator = Generator::new(&self.network, &self.weights, room)?;
            generator.read(read)?;
            let mut made = Vec::new();
            generator.generate(&sampling, number as u64, probe.tokens, &ends, &mut |token| {
                made.push(token);
                true
            })?;
            samples.push((prompt.clone(), continuation(tokenizer, read, &made)?));
        }
        Ok(samples)
    }

    fn state(&self) -> TrainState {
        let mut state = TrainState::default();
        state.put("student", &self.weights);
        self.adam.put(&mut state);
        state.counts.insert("skipped".into(), self.skipped);
        if let Some(Predicted { tokens, pairs }) = self.predicted {
            state.counts.insert("tokens".into(), tokens);
            state.counts.insert("token_pairs".into(), pairs);
        }
        state
    }

    fn restore(&mut self, state: TrainState) -> Result<(), LearnerError> {
        let specs: Vec<TensorSpec> = self.specs.values().cloned().collect();
        let weights = state.role("student");
        if let Some(problem) = weights.mismatch(&specs) {
            return Err(LearnerError::State(problem));
        }
        self.weights = weights;
        let elements = |name: &str| self.specs.get(name).map(TensorSpec::elements);
        self.adam.take(&state, elements).map_err(LearnerError::State)?;
        self.skipped = state.counts.get("skipped").copied().unwrap_or(0);
        let count = |name: &str| state.counts.get(name).copied();
        self.predicted = count("tokens")
            .zip(count("token_pairs"))
            .map(|(tokens, pairs)| Predicted { tokens, pairs });
        Ok(())
    }
}
