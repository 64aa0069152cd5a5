//! What a run will cost before anything is allocated: multiply-adds of a step, and memory.

use offshoot_family::Space;
use offshoot_zoo::network::NetworkError;
use offshoot_zoo::{Backbone, spec};

use super::heads::Heads;
use super::recipe::ElasticRecipe;
use super::sampling::{Sampler, SamplingError};

/// Sizes of the crops of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepShape {
    /// Images.
    pub images: usize,
    /// Side of a global crop, in pixels.
    pub global_px: usize,
    /// Side of a local crop, in pixels.
    pub local_px: usize,
    /// Local crops an image.
    pub views: usize,
    /// Masked patches of the step, on average.
    pub masked: f64,
}

/// Predicted cost of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCost {
    /// Floating-point operations, two for a multiply-add: the teacher's forward pass, and forward and backward (twice the
    /// forward) of the students, backbone and heads. Loss, optimizer and average are not counted.
    pub flops: f64,
    /// Bytes of weights, averages, moments and gradients in fp32.
    pub state_bytes: f64,
    /// Bytes of activations kept for the backward pass in fp32, and of logits.
    pub activation_bytes: f64,
}

impl StepCost {
    /// All bytes together.
    pub fn bytes(&self) -> f64 {
        self.state_bytes + self.activation_bytes
    }
}

/// The cost of one step in which the elastic student is, on average, `elastic`: a list of networks and their shares, empty
/// where the intact one trains alone.
pub fn step(network: &dyn Backbone, heads: &Heads, shape: StepShape, elastic: &[(Box<dyn Backbone>, f64)]) -> StepCost {
    let globals = 2.0 * shape.images as f64;
    let locals = (shape.views * shape.images) as f64;
    let backbone = |network: &dyn Backbone| {
        let local = if locals > 0.0 {
            locals * network.macs(shape.local_px) as f64
        } else {
            0.0
        };
        globals * network.macs(shape.global_px) as f64 + local
    };
    let rows = globals + shape.masked + locals;
    let head = |dim: usize| -> f64 {
        let inner = (dim * heads.hidden + heads.hidden * heads.hidden + heads.hidden * heads.bottleneck) as f64;
        heads
            .prototypes
            .iter()
            .map(|&k| inner + (heads.bottleneck * k) as f64)
            .sum()
    };
    let dim = network.feature().size;
    let teacher = globals * network.macs(shape.global_px) as f64 + (globals + shape.masked) * head(dim);
    let intact = 3.0 * (backbone(network) + rows * head(dim));
    let slim: f64 = elastic
        .iter()
        .map(|(child, share)| share * 3.0 * (backbone(child.as_ref()) + rows * head(child.feature().size)))
        .sum();
    let parameters = (spec::parameters(&network.specs()) + spec::parameters(&heads.specs())) as f64;
    let activations = |network: &dyn Backbone| {
        let at = |crops: f64, px: usize| {
            if crops > 0.0 {
                crops * network.activations(px) as f64
            } else {
                0.0
            }
        };
        at(globals, shape.global_px) + at(locals, shape.local_px)
    };
    let slim_activations: f64 = elastic
        .iter()
        .map(|(child, share)| share * activations(child.as_ref()))
        .sum();
    let prototypes: f64 = heads.prototypes.iter().map(|&k| k as f64).sum();
    // Logits of both students, the intact one's probabilities, and the targets of the teacher.
    let (students, compared) = if elastic.is_empty() { (1.0, 1.0) } else { (2.0, 3.0) };
    let logits = prototypes * (compared * rows + globals + shape.masked + shape.images as f64);
    // Two hidden layers before GELU, and the bottleneck before and after it is brought to unit length.
    let inner = 2 * heads.hidden + 4 * heads.bottleneck;
    let hidden = rows * (inner * heads.prototypes.len()) as f64;
    StepCost {
        flops: 2.0 * (teacher + intact + slim),
        state_bytes: 4.0 * 5.0 * parameters,
        activation_bytes: 4.0 * (activations(network) + slim_activations + logits + students * hidden),
    }
}

/// Why a cost cannot be predicted.
#[derive(Debug, thiserror::Error)]
pub enum CostError {
    /// A network cannot be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The space cannot be sampled.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}

/// The cost of an average step of a recipe, with iBOT on.
///
/// # Errors
/// If the recipe's networks cannot be made.
pub fn of_recipe(recipe: &ElasticRecipe) -> Result<StepCost, CostError> {
    let network = recipe.network()?;
    let space: Space = recipe.space()?;
    let sampler = Sampler::new(
        &space,
        &network.sampling_groups(&space),
        recipe.space.sampling_scale,
        recipe.seed,
    )?;
    let mut elastic = Vec::new();
    for (child, copies) in sampler.multiplicities() {
        let view = network.child(child, "")?;
        elastic.push((
            offshoot_zoo::backbone(&view.child)?,
            *copies as f64 / sampler.cycle() as f64,
        ));
    }
    let images = recipe.train.batch;
    let masks = &recipe.masks;
    let share = f64::from(masks.probability) * f64::from(masks.ratio.0 + masks.ratio.1) / 2.0;
    let shape = StepShape {
        images,
        global_px: recipe.crops.globals.px as usize,
        local_px: recipe.crops.locals.px as usize,
        views: recipe.crops.locals.count,
        masked: (2 * images * network.mask_grid().pow(2)) as f64 * share,
    };
    Ok(step(
        network.as_ref(),
        &recipe.projection_heads(network.as_ref()),
        shape,
        &elastic,
    ))
}

#[cfg(test)]
mod tests {
    use offshoot_family::Architecture;
    use offshoot_zoo::spec;

    use super::*;
    use crate::elastic::recipe::PerStage;

    /// 12 images, two crops of 17 tokens and four of 5, in a net of 32 channels and 2 blocks with a head of 16, 8 and 10.
    #[test]
    fn a_network_alone_costs_the_teachers_pass_and_three_of_its_own() {
        let mut recipe = ElasticRecipe::default();
        if let Architecture::Vit(vit) = &mut recipe.parent {
            (vit.width, vit.depth, vit.head_dim, vit.patch) = (32, 2, 16, 4);
        }
        (recipe.space.min_width, recipe.space.min_depth) = (32, PerStage::One(2));
        (recipe.crops.globals.px, recipe.crops.locals.px) = (16, 8);
        recipe.crops.locals.count = 4;
        (recipe.heads.hidden, recipe.heads.bottleneck) = (16, 8);
        recipe.heads.prototypes = vec![10];
        recipe.masks.probability = 0.0;
        recipe.train.batch = 12;
        recipe.resolve(None, 1).unwrap();
        let alone = of_recipe(&recipe).unwrap();
        let network = recipe.network().unwrap();
        let (global, local) = (network.macs(16) as f64, network.macs(8) as f64);
        let head = (32 * 16 + 16 * 16 + 16 * 8 + 8 * 10) as f64;
        let teacher = 24.0 * (global + head);
        let student = 24.0 * (global + head) + 48.0 * (local + head);
        assert_eq!(alone.flops, 2.0 * (teacher + 3.0 * student));
        // A space with one more shape pays for an elastic student as well.
        recipe.space.min_depth = PerStage::One(1);
        let family = of_recipe(&recipe).unwrap();
        assert!(family.flops > 1.3 * alone.flops && family.activation_bytes > 1.3 * alone.activation_bytes);
        let specs = [network.specs(), recipe.projection_heads(network.as_ref()).specs()].concat();
        assert_eq!(alone.state_bytes, 20.0 * spec::parameters(&specs) as f64);
        assert_eq!(alone.state_bytes, family.state_bytes);
    }
}
