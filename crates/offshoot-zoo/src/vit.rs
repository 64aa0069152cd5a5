//! The vision transformer: pre-norm blocks with LayerScale, learned positions, a class token and a mask token.
//!
//! The layout is DINOv2's (Hugging Face `Dinov2Model`); the elastic space and its slices follow POA section 3.1. A child is a
//! plain ViT of its own numbers: nothing in the forward pass knows that it was cut out of a larger one.

use std::collections::BTreeMap;

use offshoot_family::{Architecture, Operator, Shape, Space, View, Vit};

use crate::block::{self, Block, BlockGraph, BlockSpecs, add_branch};
use crate::layout::{Layout, vit_layout};
use crate::network::{Backbone, DropPath, Features, Network, NetworkError, SpaceBounds, StochasticDepth, kept_blocks};
use crate::onnx;
use crate::positions;
use crate::spec::{Dim, Init, TensorSpec};
use crate::tensor::{Attention, Bool, Linear, Tensor, TensorData, attention, module};
use crate::weights::Weights;

/// A vision transformer's forward pass and space.
#[derive(Clone, Debug)]
pub struct VitNetwork {
    vit: Vit,
}

/// Axis of the residual stream, shared by the whole network.
const RESIDUAL: &str = "residual";

impl VitNetwork {
    /// The network of checked numbers.
    pub fn new(vit: Vit) -> Self {
        Self { vit }
    }

    /// `[b, c, s, s]` images to `[b, patches, width]`.
    fn embed(&self, weights: &Weights, images: Tensor<4>) -> Tensor<3> {
        let [batch, ..] = images.dims();
        let rows = block::embed_patches(weights, images, self.vit.patch);
        let patches = rows.dims()[0] / batch;
        rows.reshape([batch, patches, self.vit.width])
    }

    /// `[1, 1 + side * side, width]` positions for a grid of `side`.
    fn positions(&self, weights: &Weights, side: usize) -> Tensor<3> {
        let (grid, width) = (self.vit.grid(), self.vit.width);
        let all = weights.tensor::<2>("pos_embed");
        if side == grid {
            return all.unsqueeze();
        }
        let matrix = positions::bicubic(grid, side, self.vit.position_offset);
        let matrix = Tensor::<2>::from_data(TensorData::new(matrix, [side * side, grid * grid]), &all.device());
        let resampled = matrix.matmul(all.clone().slice([1..1 + grid * grid, 0..width]));
        Tensor::cat(vec![all.slice([0..1, 0..width]), resampled], 0).unsqueeze()
    }

    /// One branch of a block on `x`, `[rows, width]`: attention over `sequences` (0) or the feed-forward layer (1), up to its last
    /// layer and what goes into that, so that the residual can be added within it.
    fn branch(
        &self,
        weights: &Weights,
        block: &str,
        branch: usize,
        sequences: Vec<(usize, usize)>,
        x: Tensor<2>,
    ) -> (Linear, Tensor<2>) {
        let block = Block {
            weights,
            name: block,
            norm_eps: self.vit.norm_eps,
            layer_scale: self.vit.layer_scale > 0.0,
        };
        if branch == 1 {
            return block.feed_forward(x);
        }
        let heads = self.vit.heads();
        let form = Attention {
            sequences,
            heads,
            kv_heads: heads,
            head_dim: self.vit.head_dim,
            causal: false,
        };
        (block.projection(), attention(form, block.qkv(x), None))
    }

    fn norm(&self, weights: &Weights, name: &str, x: Tensor<3>) -> Tensor<3> {
        let gamma = weights.tensor(&format!("{name}.weight"));
        let beta = weights.tensor(&format!("{name}.bias"));
        module::layer_norm(x, gamma, Some(beta), self.vit.norm_eps)
    }
}

impl Network for VitNetwork {
    fn architecture(&self) -> Architecture {
        Architecture::Vit(self.vit.clone())
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let Vit {
            width,
            depth,
            patch,
            channels,
            ..
        } = self.vit;
        let residual = || Dim::writes(RESIDUAL, width);
        let input = |spec: TensorSpec| TensorSpec { layer: Some(0), ..spec };
        let positions = vec![Dim::fixed(1 + self.vit.patches()), residual()];
        let mut specs = vec![
            input(TensorSpec::new("cls_token", vec![residual()]).init(Init::Normal(1e-6))),
            input(TensorSpec::new("mask_token", vec![residual()])),
            input(TensorSpec::new("pos_embed", positions).init(Init::TruncatedNormal(0.02))),
        ];
        specs.extend(block::embed_specs(residual(), channels, patch));
        for i in 0..depth {
            let block = BlockSpecs {
                name: format!("blocks.{i}"),
                number: i,
                residual: RESIDUAL.into(),
                width,
                head_dim: self.vit.head_dim,
                hidden: width * self.vit.mlp_ratio,
                layer_scale: self.vit.layer_scale,
            };
            specs.extend(block.specs());
        }
        specs.push(
            TensorSpec::new("norm.weight", vec![residual()])
                .init(Init::Constant(1.0))
                .undecayed(),
        );
        specs.push(TensorSpec::new("norm.bias", vec![residual()]).undecayed());
        specs.extend(block::head_specs(self.vit.classes, self.feature()));
        specs
    }

    fn as_backbone(&self) -> Option<&dyn Backbone> {
        Some(self)
    }

    fn width_step(&self) -> usize {
        self.vit.head_dim
    }

    fn layers(&self) -> usize {
        self.vit.depth + 1
    }

    fn space(&self, bounds: SpaceBounds) -> Result<Space, NetworkError> {
        let depth = [self.vit.depth];
        let min = bounds.depths(&depth)?[0];
        Ok(Space {
            axes: vec![
                bounds.width(self.vit.width, self.vit.head_dim, "heads of")?,
                bounds.depth("depth".into(), min, depth[0])?,
            ],
        })
    }

    fn child(&self, shape: &Shape, parent: &str) -> Result<View, NetworkError> {
        let bad = || NetworkError::Shape(shape.id());
        let (width, depth) = (shape.get("width").ok_or_else(bad)?, shape.get("depth").ok_or_else(bad)?);
        let fits = width > 0 && width <= self.vit.width && depth > 0 && depth <= self.vit.depth;
        if !fits || !width.is_multiple_of(self.vit.head_dim) {
            return Err(bad());
        }
        let child = Vit {
            width,
            depth,
            ..self.vit.clone()
        };
        let blocks = kept_blocks(self.vit.depth, depth);
        let mut axes = BTreeMap::new();
        let mut gains = BTreeMap::new();
        if width < self.vit.width {
            let alpha = self.vit.width as f64 / width as f64;
            let heads = child.heads();
            let mut cut = |axis: String, size: usize| {
                axes.insert(axis.clone(), Operator::Prefix { size });
                gains.insert(axis, alpha);
            };
            cut(RESIDUAL.into(), width);
            for block in &blocks {
                cut(format!("blocks.{block}.heads"), heads);
                cut(format!("blocks.{block}.ffn"), width * self.vit.mlp_ratio);
            }
        }
        Ok(View {
            parent: parent.into(),
            child: Architecture::Vit(child),
            axes,
            blocks,
            gains,
        })
    }

    fn familiar_name(&self) -> Option<&'static str> {
        if self.vit.head_dim != 64 {
            return None;
        }
        match (self.vit.width, self.vit.depth) {
            (192, 12) => Some("vit-ti"),
            (384, 12) => Some("vit-s"),
            (768, 12) => Some("vit-b"),
            (1024, 24) => Some("vit-l"),
            _ => None,
        }
    }

    fn layout(&self) -> Layout {
        vit_layout(&self.vit)
    }

    fn example_macs(&self) -> u64 {
        self.macs(self.image().1)
    }
}

impl Backbone for VitNetwork {
    fn feature(&self) -> Dim {
        Dim::reads(RESIDUAL, self.vit.width)
    }

    fn image(&self) -> (usize, usize) {
        (self.vit.channels, self.vit.image)
    }

    fn mask_grid(&self) -> usize {
        self.vit.grid()
    }

    fn stride(&self) -> usize {
        self.vit.patch
    }

    fn stochastic_depth(&self) -> StochasticDepth {
        StochasticDepth::Subset
    }

    fn forward(
        &self,
        weights: &Weights,
        images: Tensor<4>,
        masks: Option<Tensor<2, Bool>>,
        drop_path: &mut dyn DropPath,
    ) -> Features {
        let width = self.vit.width;
        let mut x = self.embed(weights, images);
        let [batch, patches, _] = x.dims();
        if let Some(masks) = masks {
            let token = weights.tensor::<3>("mask_token").expand([batch, patches, width]);
            x = x.mask_where(masks.unsqueeze_dim::<3>(2).expand([batch, patches, width]), token);
        }
        let cls = weights.tensor::<3>("cls_token").expand([batch, 1, width]);
        let side = patches.isqrt();
        let x = Tensor::cat(vec![cls, x], 1) + self.positions(weights, side);
        let tokens = 1 + patches;
        let mut x = x.reshape([batch * tokens, width]);
        for i in 0..self.vit.depth {
            let block = format!("blocks.{i}");
            for branch in 0..2 {
                let run = |images: usize, x: Tensor<2>| self.branch(weights, &block, branch, vec![(images, tokens)], x);
                x = add_branch(x, [batch, tokens, width], 2 * i + branch, drop_path, run);
            }
        }
        let x = x.reshape([batch, tokens, width]);
        let x = self.norm(weights, "norm", x);
        let cls = x.clone().slice([0..batch, 0..1, 0..width]).squeeze_dim::<2>(1);
        Features {
            logits: block::logits(weights, self.vit.classes, &cls),
            cls,
            patches: x.slice([0..batch, 1..1 + patches, 0..width]),
        }
    }

    fn macs(&self, image: usize) -> u64 {
        let Vit {
            width,
            depth,
            patch,
            channels,
            mlp_ratio,
            ..
        } = self.vit;
        let patches = (image / patch).pow(2) as u64;
        let tokens = patches + 1;
        let (width, depth) = (width as u64, depth as u64);
        let embed = patches * width * (channels * patch * patch) as u64;
        let matrices = tokens * width * width * (4 + 2 * mlp_ratio as u64);
        let attention = 2 * tokens * tokens * width;
        embed + depth * (matrices + attention)
    }

    fn activations(&self, image: usize) -> u64 {
        let tokens = (image / self.vit.patch).pow(2) as u64 + 1;
        let (width, ratio) = (self.vit.width as u64, self.vit.mlp_ratio as u64);
        // Of one block: what goes into either branch, qkv, the mixed heads, and the hidden layer before GELU.
        let block = tokens * width * (6 + ratio);
        self.vit.depth as u64 * block
    }

    fn graph(&self, graph: &mut onnx::Graph, pixels: onnx::Value) -> onnx::Outputs {
        use onnx::Extent::{Batch, Fixed};
        let Vit { width, patch, .. } = self.vit;
        let (patches, epsilon) = (self.vit.patches(), self.vit.norm_eps);
        let tokens = 1 + patches;
        let sliding = onnx::Sliding {
            stride: patch,
            padding: 0,
        };
        let x = graph.convolution(pixels, "patch_embed.proj", sliding);
        let x = graph.reshape(x, &[Batch(1), Fixed(width), Fixed(patches)]);
        let x = graph.transpose(x, &[0, 2, 1]);
        let cls = graph.weight("cls_token");
        let cls = graph.for_each_image(cls, &[1, width]);
        let x = graph.concat(&[cls, x], 1);
        // The native grid: positions as they are.
        let positions = graph.weight("pos_embed");
        let x = graph.add(x, positions);
        let mut x = graph.reshape(x, &[Batch(tokens), Fixed(width)]);
        let form = onnx::Heads {
            tokens,
            heads: self.vit.heads(),
            head_dim: self.vit.head_dim,
        };
        for i in 0..self.vit.depth {
            let block = BlockGraph {
                name: format!("blocks.{i}"),
                norm_eps: epsilon,
                layer_scale: self.vit.layer_scale > 0.0,
            };
            graph.at(&block.name);
            let qkv = block.qkv(graph, x);
            let mixed = graph.attention(qkv, form, None);
            x = block.projection(graph, x, mixed);
            x = block.feed_forward(graph, x);
        }
        graph.at("");
        let x = graph.layer_norm(x, "norm", epsilon);
        let x = graph.reshape(x, &[Batch(1), Fixed(tokens), Fixed(width)]);
        let cls = graph.slice(x, 1, 0, 1);
        let cls = graph.reshape(cls, &[Batch(1), Fixed(width)]);
        onnx::Outputs {
            cls,
            patches: graph.slice(x, 1, 1, tokens),
            logits: (self.vit.classes > 0).then(|| graph.linear(cls, "head")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vit(width: usize, depth: usize) -> VitNetwork {
        VitNetwork::new(Vit {
            width,
            depth,
            head_dim: 64,
            mlp_ratio: 4,
            patch: 16,
            image: 224,
            channels: 3,
            position_offset: 0.1,
            norm_eps: 1e-6,
            layer_scale: 1e-5,
            classes: 0,
        })
    }

    /// elastic.md section 5, exact.
    #[test]
    fn parameter_counts_of_vit_s_b_l() {
        for (width, depth, parameters) in [(384, 12, 21_675_264), (768, 12, 85_817_856), (1024, 24, 303_351_808)] {
            assert_eq!(crate::spec::parameters(&vit(width, depth).specs()), parameters);
        }
    }

    /// elastic.md section 2.2, the whole depth table.
    #[test]
    fn depth_rule_keeps_the_tabled_blocks() {
        assert_eq!(kept_blocks(24, 12), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23]);
        assert_eq!(kept_blocks(24, 13), [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]);
        assert_eq!(kept_blocks(24, 14), [0, 1, 3, 5, 7, 8, 10, 12, 14, 15, 17, 19, 21, 23]);
        assert_eq!(
            kept_blocks(24, 15),
            [0, 1, 3, 4, 6, 8, 9, 11, 13, 14, 16, 18, 19, 21, 23]
        );
        let skipped: [(usize, &[usize]); 9] = [
            (16, &[2, 5, 8, 11, 14, 17, 20, 22]),
            (17, &[3, 6, 9, 13, 16, 19, 22]),
            (18, &[3, 7, 11, 15, 19, 22]),
            (19, &[4, 9, 13, 18, 22]),
            (20, &[5, 11, 17, 22]),
            (21, &[7, 15, 22]),
            (22, &[11, 22]),
            (23, &[22]),
            (24, &[]),
        ];
        for (depth, skipped) in skipped {
            let kept = kept_blocks(24, depth);
            assert_eq!(
                (0..24).filter(|b| !kept.contains(b)).collect::<Vec<_>>(),
                skipped,
                "depth {depth}"
            );
        }
        assert_eq!(kept_blocks(5, 1), [0]);
    }

    #[test]
    fn the_paper_space_has_143_children_with_the_tabled_gains() {
        let parent = vit(1024, 24);
        let space = parent
            .space(SpaceBounds {
                min_width: 384,
                min_depths: vec![12],
                ..Default::default()
            })
            .unwrap();
        assert_eq!(space.count(), 143);
        let alpha = [
            2.666667, 2.285714, 2.0, 1.777778, 1.6, 1.454545, 1.333333, 1.230769, 1.142857, 1.066667,
        ];
        for (size, alpha) in space.axes[0].sizes.iter().zip(alpha) {
            let view = parent
                .child(&Shape::new([("width", *size), ("depth", 12)]), "")
                .unwrap();
            assert!((view.gains["residual"] - alpha).abs() < 1e-6);
        }
        let intact = parent.child(&space.intact(), "").unwrap();
        assert!(intact.axes.is_empty() && intact.gains.is_empty());
        // elastic.md pitfall 14: a step that misses the parent's width does not lose the parent.
        let coarse = SpaceBounds {
            min_width: 384,
            width_step: 192,
            min_depths: vec![12],
            ..Default::default()
        };
        assert_eq!(parent.space(coarse).unwrap().axes[0].sizes, [384, 576, 768, 960, 1024]);
        assert!(
            parent
                .space(SpaceBounds {
                    min_width: 400,
                    ..Default::default()
                })
                .is_err()
        );
        assert!(
            parent
                .space(SpaceBounds {
                    min_width: 2048,
                    ..Default::default()
                })
                .is_err()
        );
    }
}
