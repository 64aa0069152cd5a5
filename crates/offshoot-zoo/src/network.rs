//! What every architecture answers: its tensors, its space, its children, its forward pass and what it costs.

use offshoot_family::{Architecture, Shape, Space, View};

use crate::hf::Layout;
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
}

/// Which images each residual branch runs on: POA's (DINOv2's) batch-subset form of stochastic depth.
///
/// A branch runs on a random subset of `max(int(batch * (1 - rate)), 1)` images; its output is scaled by
/// `batch / subset` and added to those rows only.
pub trait DropPath {
    /// The images that residual branch `branch` (two a block, in order) of a batch of `batch` runs on; none for all of them.
    fn subset(&mut self, branch: usize, batch: usize) -> Option<Vec<usize>>;
}

/// No stochastic depth: every branch runs on every image.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepAll;

impl DropPath for KeepAll {
    fn subset(&mut self, _: usize, _: usize) -> Option<Vec<usize>> {
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
}

/// Bounds of an elastic space; a bound of zero stands for the architecture's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceBounds {
    /// Smallest width, in channels.
    pub min_width: usize,
    /// Distance of two widths, in channels.
    pub width_step: usize,
    /// Smallest depth, in blocks.
    pub min_depth: usize,
    /// Distance of two depths, in blocks.
    pub depth_step: usize,
}

/// One architecture with its numbers. It holds no weights: they are an argument of every call.
pub trait Network: Send + Sync {
    /// The numbers.
    fn architecture(&self) -> Architecture;

    /// Every tensor it has, in order of the forward pass.
    fn specs(&self) -> Vec<TensorSpec>;

    /// The dimension of its features as a matrix that reads them has it; its axis is cut with the network.
    fn feature(&self) -> Dim;

    /// Native image: channels and side in pixels.
    fn image(&self) -> (usize, usize);

    /// Side of the grid of maskable patches of a native image.
    fn mask_grid(&self) -> usize;

    /// Number of layers for layer-wise learning-rate decay: a tensor of layer `id` has the factor `decay^(layers - id)`.
    fn layers(&self) -> usize;

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

    /// Multiply-adds of one image of side `image` pixels through the whole network.
    fn macs(&self, image: usize) -> u64;

    /// Numbers that a forward pass of one image of side `image` pixels keeps for the backward pass.
    fn activations(&self, image: usize) -> u64;

    /// How its weights are named and described in a Hugging Face folder.
    fn layout(&self) -> Layout;

    /// The forward pass of native images as an ONNX graph, in the same steps and with weights by the same names: from `pixels`,
    /// `[batch, channels, side, side]`, to what [`forward`](Self::forward) gives.
    fn graph(&self, graph: &mut onnx::Graph, pixels: onnx::Value) -> onnx::Outputs;
}
