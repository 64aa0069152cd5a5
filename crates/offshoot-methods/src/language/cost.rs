//! What a run will cost before anything is allocated: floating-point operations of a token, and memory.

use offshoot_zoo::network::Network;
use offshoot_zoo::{DecoderNetwork, network, registry, spec};

use super::recipe::LanguageRecipe;
use crate::elastic::cost::CostError;
use crate::elastic::recipe::RecipeProblem;

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
    let training = |network: &DecoderNetwork| {
        let again = if recompute {
            network.sequence_macs(context, false)
        } else {
            0
        };
        2.0 * (3 * network.sequence_macs(context, true) + again) as f64 / context as f64
    };
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
        let view = intact.child(&shape, "").map_err(CostError::from)?;
        let child = registry::open(&view.child).map_err(CostError::from)?;
        let child = network::decoder(child.as_ref()).map_err(CostError::from)?;
        token_flops += share * training(child);
        activations = f64::max(activations, kept(child));
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
}
