//! What a run will cost before anything is allocated, floating-point operations of a token and memory, and what it did cost.

use std::collections::BTreeMap;

use offshoot_family::{Shape, Space, TrainingCost as RunCost};
use offshoot_zoo::network::Network;
use offshoot_zoo::{DecoderNetwork, network, registry, spec};

use super::recipe::LanguageRecipe;
use crate::elastic::cost::CostError;
use crate::elastic::recipe::RecipeProblem;
use crate::family::Cost;

/// Why a cost cannot be predicted.
#[derive(Debug, thiserror::Error)]
pub enum LanguageCostError {
    /// The recipe's numbers do not work.
    #[error(transparent)]
    Recipe(#[from] RecipeProblem),
    /// A sub-network cannot be made, or the space cannot be sampled.
    #[error(transparent)]
    Cost(#[from] CostError),
}

/// Predicted cost of training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingCost {
    /// Floating-point operations a token of a full window, two for a multiply-add: forward and backward (twice the forward) of the
    /// intact network and, on average, of its sub-networks; the blocks' forward pass once more with recomputation.
    pub token_flops: f64,
    /// Of these, those of one forward pass of the intact network: what a token costs when the model is used.
    pub inference_flops: f64,
    /// Bytes of weights, moments and gradients in fp32.
    pub state_bytes: f64,
    /// Bytes of what is kept for the backward pass in fp32, and of logits.
    pub activation_bytes: f64,
}

impl TrainingCost {
    /// All bytes together.
    pub fn bytes(&self) -> f64 {
        self.state_bytes + self.activation_bytes
    }
}

/// The tokens that a run has predicted so far, and what attention sees of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Predicted {
    /// Tokens.
    pub tokens: u64,
    /// Pairs of a token and one that it attends to, itself among them: `n (n + 1) / 2` of a window of `n`.
    pub pairs: u64,
}

impl Predicted {
    /// Counts a window in which `tokens` tokens are predicted.
    pub fn add(&mut self, tokens: usize) {
        let tokens = tokens as u64;
        self.tokens += tokens;
        self.pairs += tokens * (tokens + 1) / 2;
    }

    /// One window in which `tokens` tokens are predicted.
    fn window(tokens: usize) -> Self {
        let mut window = Self::default();
        window.add(tokens);
        window
    }

    /// Multiply-adds of one forward pass over all of them.
    fn macs(self, network: &DecoderNetwork, output: bool) -> f64 {
        // What a window costs is linear in its tokens and its pairs; windows of one and of two tokens tell both factors.
        let [one, two] = [1, 2].map(|tokens| network.sequence_macs(tokens, output) as f64);
        let pair = two - 2.0 * one;
        (one - pair) * self.tokens as f64 + pair * self.pairs as f64
    }

    /// Floating-point operations of training `network` on them: a forward pass, a backward pass that costs twice as much, and with
    /// recomputation the blocks' forward pass once more.
    fn training(self, network: &DecoderNetwork, recompute: bool) -> f64 {
        let again = if recompute { self.macs(network, false) } else { 0.0 };
        2.0 * (3.0 * self.macs(network, true) + again)
    }
}

/// The sub-network of a shape.
fn sub_network(intact: &DecoderNetwork, shape: &Shape) -> Result<DecoderNetwork, CostError> {
    let child = registry::open(&intact.child(shape, "")?.child)?;
    Ok(network::decoder(child.as_ref())?.clone())
}

/// What a run of `steps` steps of a resolved recipe cost that `predicted` so many tokens: the intact network on all of them, and every
/// sub-network on the share of them that it is trained on, on average. Of each shape alone it is said only for a run that started from
/// nothing: a model to start from has the parent's shape.
///
/// # Errors
/// If its networks cannot be made.
pub fn of_run(recipe: &LanguageRecipe, steps: u64, predicted: Predicted) -> Result<Cost, LanguageCostError> {
    let intact = recipe.network()?;
    let space: Space = recipe.space()?;
    let recompute = recipe.train.recompute;
    let mut flops = predicted.training(&intact, recompute);
    let mut alone = BTreeMap::new();
    for shape in space.iter() {
        alone.insert(
            shape.clone(),
            predicted.training(&sub_network(&intact, &shape)?, recompute),
        );
    }
    for (shape, share) in recipe.draws(&space).map_err(CostError::from)?.shares() {
        flops += share * alone.get(&shape).copied().unwrap_or(0.0);
    }
    if !recipe.init.path.is_empty() {
        alone.clear();
    }
    let run = RunCost {
        steps,
        tokens: predicted.tokens,
        flops,
    };
    Ok(Cost { run, alone })
}

/// The cost of a step of a resolved recipe with windows of the whole context.
///
/// # Errors
/// If its networks cannot be made.
pub fn of_recipe(recipe: &LanguageRecipe) -> Result<TrainingCost, LanguageCostError> {
    let intact = recipe.network()?;
    let space = recipe.space()?;
    let draws = recipe.draws(&space).map_err(CostError::from)?;
    let context = intact.decoder().context;
    let at_once = recipe
        .train
        .at_once
        .value()
        .copied()
        .unwrap_or(1)
        .min(recipe.train.batch);
    let rows = (at_once * context) as f64;
    let recompute = recipe.train.recompute;
    let training = |network: &DecoderNetwork| Predicted::window(context).training(network, recompute) / context as f64;
    let kept = |network: &DecoderNetwork| {
        let d = network.decoder();
        let whole = network.token_activations() as f64;
        let of_a_block = whole / d.depth as f64;
        let blocks = if recompute {
            (d.depth * d.width) as f64 + of_a_block
        } else {
            whole
        };
        rows * blocks
    };
    let mut token_flops = training(&intact);
    let mut activations = kept(&intact);
    // Logits and their gradient share memory; the distribution that sub-networks learn from does not.
    let mut logits = rows * intact.decoder().vocabulary as f64;
    for (shape, share) in draws.shares() {
        let child = sub_network(&intact, &shape)?;
        token_flops += share * training(&child);
        activations = f64::max(activations, kept(&child));
    }
    if space.count() > 1 {
        logits *= 2.0;
    }
    let parameters = spec::parameters(&intact.specs()) as f64;
    Ok(TrainingCost {
        token_flops,
        inference_flops: 2.0 * intact.sequence_macs(context, true) as f64 / context as f64,
        state_bytes: 16.0 * parameters,
        activation_bytes: 4.0 * (activations + logits),
    })
}

#[cfg(test)]
mod tests {
    use offshoot_family::Architecture;

    use super::*;

    /// Two blocks of width 8 with 2 heads, 32 hidden channels, 11 tokens, windows of 4: by hand.
    #[test]
    fn a_small_network_costs_what_its_matrices_say() {
        let mut recipe = LanguageRecipe::default();
        if let Architecture::Decoder(d) = &mut recipe.parent {
            (d.width, d.depth, d.heads, d.hidden, d.vocabulary, d.context) = (8, 2, 2, 32, 11, 4);
        }
        recipe.train.batch = 3;
        recipe.resolve(None).unwrap();
        let cost = of_recipe(&recipe).unwrap();
        let block = 8 * 24 + 8 * 8 + 2 * 8 * 32;
        // Tokens see 1 to 4 of them: 10 scores of 8 channels, and as many sums.
        let forward = (2 * (4 * block + 2 * 10 * 8) + 4 * 8 * 11) as f64;
        assert_eq!(cost.inference_flops, 2.0 * forward / 4.0);
        assert_eq!(cost.token_flops, 3.0 * cost.inference_flops);
        let parameters = 11 * 8 + 4 * 8 + 2 * (block + 24 + 8 + 32 + 8 + 32) + 16;
        assert_eq!(cost.state_bytes, 16.0 * parameters as f64);
        recipe.train.recompute = true;
        let again = of_recipe(&recipe).unwrap();
        assert_eq!(
            again.token_flops - cost.token_flops,
            2.0 * (forward - (4 * 8 * 11) as f64) / 4.0
        );
        recipe.space.min_depth = 1;
        let family = of_recipe(&recipe).unwrap();
        assert!(family.token_flops > 1.4 * again.token_flops && family.state_bytes == again.state_bytes);
    }

    /// The same network with one block more or less to draw, on windows of 3, 1 and 2 predicted tokens: by hand.
    #[test]
    fn a_run_costs_what_its_windows_say() {
        let mut recipe = LanguageRecipe::default();
        if let Architecture::Decoder(d) = &mut recipe.parent {
            (d.width, d.depth, d.heads, d.hidden, d.vocabulary, d.context) = (8, 2, 2, 32, 11, 4);
        }
        recipe.space.min_depth = 1;
        recipe.resolve(None).unwrap();
        let mut predicted = Predicted::default();
        [3, 1, 2].into_iter().for_each(|tokens| predicted.add(tokens));
        assert_eq!((predicted.tokens, predicted.pairs), (6, 6 + 1 + 3));
        let block = 8 * 24 + 8 * 8 + 2 * 8 * 32;
        // Every pair has a score and a sum of 8 channels in every block; every token an output of 11.
        let of = |depth: u64| 6.0 * (depth * (6 * block + 10 * 2 * 8) + 6 * 8 * 11) as f64;
        let cost = of_run(&recipe, 3, predicted).unwrap();
        let alone: Vec<f64> = cost.alone.values().copied().collect();
        assert_eq!(alone, [of(1), of(2)]);
        // The smallest is in every step.
        assert_eq!((cost.run.flops, cost.run.steps, cost.run.tokens), (of(1) + of(2), 3, 6));
        recipe.init.path = "model".into();
        let again = of_run(&recipe, 3, predicted).unwrap();
        assert!(again.run == cost.run && again.alone.is_empty());
    }
}
