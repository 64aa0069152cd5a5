//! What every architecture answers: its tensors, its space, its children, its forward pass and what it costs.

use offshoot_family::{Architecture, Axis, Shape, Space, View};

use crate::decoder::DecoderNetwork;
use crate::layout::Layout;
use crate::onnx;
use crate::spec::{Dim, TensorSpec};
use crate::tensor::{Bool, Tensor};
use crate::weights::Weights;

/// What a forward pass gives.
#[derive(Clone, Debug)]
pub struct Features {
    /// One vector an image, `[batch, dim]`: what children are compared by and what heads read.
    pub cls: Tensor<2>,
    /// One vector a patch, `[batch, patches, dim]`, in row-major order of the patch grid.
    pub patches: Tensor<3>,
    /// Scores of the classes, `[batch, classes]`, of a network with a classifier.
    pub logits: Option<Tensor<2>>,
}

/// The images that a residual branch runs on, of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Their positions in the batch, ascending; possibly none.
    pub images: Vec<usize>,
    /// Factor on the branch's output for them, so that its expectation over draws is that of the whole batch.
    pub scale: f64,
}

/// Which images each residual branch runs on: stochastic depth, computed for the images that are left only.
pub trait DropPath {
    /// The images that residual branch `branch` (two a block, in order) of a batch of `batch` runs on; none for all of them.
    fn subset(&mut self, branch: usize, batch: usize) -> Option<Subset>;
}

/// The rule by which an architecture drops residual branches in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StochasticDepth {
    /// It does not.
    None,
    /// Every branch runs on a random subset of `max(int(batch * (1 - rate)), 1)` images, scaled by `batch / subset`: DINOv2's form
    /// (Oquab et al. 2023, section 5).
    Subset,
    /// Every image drops a branch by itself, scaled by one over the share that is kept; the rate grows linearly with the block,
    /// from 0 at the first of the intact network to the full rate at its last.
    Linear,
}

/// No stochastic depth: every branch runs on every image.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepAll;

impl DropPath for KeepAll {
    fn subset(&mut self, _: usize, _: usize) -> Option<Subset> {
        None
    }
}

/// Why a network cannot be made or cut.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The numbers do not make a network.
    #[error(transparent)]
    Architecture(#[from] offshoot_family::architecture::ArchitectureError),
    /// The wanted space does not fit the parent.
    #[error("space: {0}")]
    Space(String),
    /// The parent has no such child.
    #[error("no child of shape {0} can be cut from this parent")]
    Shape(String),
    /// It was to do what only networks of another kind do.
    #[error("{found} is no network of {wanted}")]
    Kind {
        /// What it is.
        found: String,
        /// What was to be read: `images` or `text`.
        wanted: &'static str,
    },
    /// A program was asked for that has no such network.
    #[error("timm has no layout for {0} here: leave out `--format timm`")]
    Layout(String),
}

/// Bounds of an elastic space; a bound of zero stands for the architecture's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpaceBounds {
    /// Smallest width, in channels.
    pub min_width: usize,
    /// Distance of two widths, in channels.
    pub width_step: usize,
    /// Smallest depth in blocks, of each stage; one number for a network that is not in stages.
    pub min_depths: Vec<usize>,
    /// Distance of two depths, in blocks.
    pub depth_step: usize,
    /// Smallest hidden size of the feed-forward layers, in channels, where it is cut by itself; 0 where it follows the width.
    pub min_hidden: usize,
    /// Distance of two hidden sizes, in channels; 0 for halves of the parent's.
    pub hidden_step: usize,
}

impl SpaceBounds {
    /// The axis `width` up to `max`; a smallest width and a distance must be multiples of `unit`, which is the default distance.
    ///
    /// # Errors
    /// Says which bound does not fit.
    pub(crate) fn width(&self, max: usize, unit: usize, what: &str) -> Result<Axis, NetworkError> {
        let step = if self.width_step == 0 { unit } else { self.width_step };
        let min = if self.min_width == 0 { max } else { self.min_width };
        for (name, value) in [("width_step", step), ("min_width", min)] {
            if !value.is_multiple_of(unit) {
                return Err(NetworkError::Space(format!(
                    "{name} {value} is no whole number of {what} {unit}"
                )));
            }
        }
        axis("width".into(), "min_width", min, max, step)
    }

    /// The smallest depths, one for each of the parent's stages.
    ///
    /// # Errors
    /// If there are more or fewer.
    pub(crate) fn depths(&self, parent: &[usize]) -> Result<Vec<usize>, NetworkError> {
        if self.min_depths.is_empty() {
            return Ok(parent.to_vec());
        }
        if self.min_depths.len() != parent.len() {
            return Err(NetworkError::Space(format!(
                "min_depth {:?} must be {} numbers, one for each stage: the parent has {parent:?}",
                self.min_depths,
                parent.len()
            )));
        }
        let or = |(&min, &max): (&usize, &usize)| if min == 0 { max } else { min };
        Ok(self.min_depths.iter().zip(parent).map(or).collect())
    }

    /// The axis `name` of depths from `min` to `max`.
    ///
    /// # Errors
    /// Says which bound does not fit.
    pub(crate) fn depth(&self, name: String, min: usize, max: usize) -> Result<Axis, NetworkError> {
        axis(name, "min_depth", min, max, self.depth_step.max(1))
    }

    /// The axes `depth1`, `depth2`, ... of the stages that can be cut.
    ///
    /// # Errors
    /// Says which bound does not fit.
    pub(crate) fn stages(&self, parent: &[usize]) -> Result<Vec<Axis>, NetworkError> {
        let min = self.depths(parent)?;
        let cut = (0..parent.len()).filter(|&stage| min[stage] != parent[stage]);
        cut.map(|stage| self.depth(format!("depth{}", stage + 1), min[stage], parent[stage]))
            .collect()
    }
}

pub(crate) fn axis(name: String, bound: &str, min: usize, max: usize, step: usize) -> Result<Axis, NetworkError> {
    if min > max || min == 0 {
        return Err(NetworkError::Space(format!(
            "{bound} {min} must lie between 1 and the parent's {max}"
        )));
    }
    // From below, so that the smallest is always there; the parent itself always is, whatever the step (elastic.md pitfall 14).
    let mut sizes: Vec<usize> = (min..=max).step_by(step).collect();
    if sizes.last() != Some(&max) {
        sizes.push(max);
    }
    Ok(Axis { name, sizes })
}

/// Block ids kept at `depth` of `parent` blocks: `floor((parent - 1) * j / (depth - 1))`, evenly spaced, with the first and
/// the last block always among them (POA section 3.1). One block: the first.
pub fn kept_blocks(parent: usize, depth: usize) -> Vec<usize> {
    if depth <= 1 {
        return (0..depth).collect();
    }
    (0..depth).map(|j| (parent - 1) * j / (depth - 1)).collect()
}

/// The blocks kept of a parent in stages, each stage by [`kept_blocks`], counted through the whole network.
pub fn kept_in_stages(parent: &[usize], child: &[usize]) -> Vec<usize> {
    let mut first = 0;
    let mut kept = Vec::new();
    for (&parent, &child) in parent.iter().zip(child) {
        kept.extend(kept_blocks(parent, child).into_iter().map(|block| first + block));
        first += parent;
    }
    kept
}

/// The depths that `shape` asks for of a parent in stages: `depth2` is that of the second, stages that it does not name are
/// whole. None if one is not there or larger than the parent's.
pub(crate) fn depths_of(shape: &Shape, parent: &[usize]) -> Option<Vec<usize>> {
    let depth = |(stage, &max): (usize, &usize)| {
        let depth = shape.get(&format!("depth{}", stage + 1)).unwrap_or(max);
        (1..=max).contains(&depth).then_some(depth)
    };
    parent.iter().enumerate().map(depth).collect()
}

/// One architecture with its numbers: what every network answers, whatever it reads. It holds no weights: they are an argument of
/// every call. What it computes is a [`Backbone`]'s or a [`DecoderNetwork`]'s to say.
pub trait Network: Send + Sync {
    /// The numbers.
    fn architecture(&self) -> Architecture;

    /// Every tensor it has, in order of the forward pass.
    fn specs(&self) -> Vec<TensorSpec>;

    /// It as a network of images, if it is one.
    fn as_backbone(&self) -> Option<&dyn Backbone> {
        None
    }

    /// It as a decoder of text, if it is one.
    fn as_decoder(&self) -> Option<&DecoderNetwork> {
        None
    }

    /// What a width must be a multiple of, in channels.
    fn width_step(&self) -> usize;

    /// Which axes of `space` decide together how often a shape is drawn in elastic training: the shapes of one group of axes are
    /// ranked by the sum of their sizes, and an axis in no group plays no part (POA equation 14, as the code has it for each
    /// architecture; elastic.md 4.5).
    fn sampling_groups(&self, space: &Space) -> Vec<Vec<usize>> {
        (0..space.axes.len()).map(|axis| vec![axis]).collect()
    }

    /// Number of layers for layer-wise learning-rate decay: a tensor of layer `id` has the factor `decay^(layers - id)`.
    fn layers(&self) -> usize;

    /// The elastic space within these bounds.
    ///
    /// # Errors
    /// Says which bound does not fit.
    fn space(&self, bounds: SpaceBounds) -> Result<Space, NetworkError>;

    /// The architecture and view of the child of `shape`; `parent` is the content hash of this network's weights.
    ///
    /// # Errors
    /// If the shape is larger than the network or not valid.
    fn child(&self, shape: &Shape, parent: &str) -> Result<View, NetworkError>;

    /// The familiar name of a network of these numbers, such as `vit-s`.
    fn familiar_name(&self) -> Option<&'static str>;

    /// Multiply-adds of one example through the whole network: an image of native side, or a token of text at the mean of a full
    /// context's positions.
    fn example_macs(&self) -> u64;

    /// How its weights are named and described in the folder of another program.
    fn layout(&self) -> Layout;

    /// The layout of timm where a network has one; [`layout`](Self::layout) may be another program's.
    fn timm_layout(&self) -> Option<Layout> {
        None
    }
}

/// A network of images.
pub trait Backbone: Network {
    /// The dimension of its features as a matrix that reads them has it; its axis is cut with the network.
    fn feature(&self) -> Dim;

    /// Native image: channels and side in pixels.
    fn image(&self) -> (usize, usize);

    /// Side of the grid of maskable patches of a native image.
    fn mask_grid(&self) -> usize;

    /// What the side of an image must be a multiple of, in pixels.
    fn stride(&self) -> usize;

    /// The rule of its stochastic depth.
    fn stochastic_depth(&self) -> StochasticDepth;

    /// `[batch, channels, side, side]` images to features. `masks`, `[batch, patches]`, marks the patches whose embedding the
    /// mask token replaces.
    ///
    /// # Panics
    /// If the image side is no multiple of the patch, or weights do not match the specs.
    fn forward(
        &self,
        weights: &Weights,
        images: Tensor<4>,
        masks: Option<Tensor<2, Bool>>,
        drop_path: &mut dyn DropPath,
    ) -> Features;

    /// Multiply-adds of one image of side `image` pixels through the whole network.
    fn macs(&self, image: usize) -> u64;

    /// Numbers that a forward pass of one image of side `image` pixels keeps for the backward pass.
    fn activations(&self, image: usize) -> u64;

    /// The forward pass of native images as an ONNX graph, in the same steps and with weights by the same names: from `pixels`,
    /// `[batch, channels, side, side]`, to what [`forward`](Self::forward) gives.
    fn graph(&self, graph: &mut onnx::Graph, pixels: onnx::Value) -> onnx::Outputs;
}

fn other_kind(network: &dyn Network, wanted: &'static str) -> NetworkError {
    NetworkError::Kind {
        found: network.architecture().summary(),
        wanted,
    }
}

/// `network` as one of images.
///
/// # Errors
/// If it is none.
pub fn backbone(network: &dyn Network) -> Result<&dyn Backbone, NetworkError> {
    network.as_backbone().ok_or_else(|| other_kind(network, "images"))
}

/// `network` as a decoder of text.
///
/// # Errors
/// If it is none.
pub fn decoder(network: &dyn Network) -> Result<&DecoderNetwork, NetworkError> {
    network.as_decoder().ok_or_else(|| other_kind(network, "text"))
}
