//! The Swin transformer: attention within windows that are shifted in every second block, and maps that halve from stage to stage.
//!
//! The layout is Hugging Face's `SwinModel` (Liu et al. 2021); the elastic space and its slices follow POA appendix A.1, with three
//! deviations from its code, so that every child is a standard Swin of its own numbers:
//!
//! - The LayerNorm of the patch embedding runs over the channels that are there, not over the intact network's.
//! - A block is shifted by its place in its own network: children alternate, whichever blocks they keep.
//! - Nothing is shifted where the map is not larger than the window.
//!
//! Merged patches are ordered as there and in the authors' code: upper left, lower left, upper right, lower right.

use std::collections::BTreeMap;

use offshoot_family::{Architecture, Operator, Shape, Space, Swin, View};

use crate::block::{self, Block, BlockGraph, BlockSpecs, add_branch};
use crate::layout::{Layout, swin_layout};
use crate::network::{
    Backbone, DropPath, Features, Network, NetworkError, SpaceBounds, StochasticDepth, depths_of, kept_in_stages,
};
use crate::onnx;
use crate::spec::{Dim, Init, TensorSpec};
use crate::tensor::{Attention, Bool, Int, Linear, Tensor, TensorData, attention, gather_rows, module};
use crate::weights::Weights;

/// A Swin transformer's forward pass and space.
#[derive(Clone, Debug)]
pub struct SwinNetwork {
    swin: Swin,
}

/// Positions that a patch merging joins.
const MERGED: usize = 4;
/// Epsilon of the norms behind the patch embedding and before a merging, whatever that of the others is: transformers' rule.
const FIXED_EPS: f64 = 1e-5;
/// Added to the score of two tokens of different regions of a shifted window.
const APART: f32 = -100.0;

/// Axis of the residual stream of a stage.
fn residual(stage: usize) -> String {
    format!("stages.{stage}.residual")
}

/// How the tokens of a map are put into windows: padded at the right and the lower edge to whole windows, and rolled by `shift`
/// towards the upper left first.
struct Windows {
    /// Tokens on a side of the map.
    side: usize,
    /// Tokens on a side of a window.
    window: usize,
    /// Tokens that the map is rolled by.
    shift: usize,
}

impl Windows {
    fn new(side: usize, window: usize, odd: bool) -> Self {
        let shift = if odd && side > window { window / 2 } else { 0 };
        Self { side, window, shift }
    }

    /// Windows on a side of the padded map.
    fn count(&self) -> usize {
        self.side.div_ceil(self.window)
    }

    /// The token of the map at each place of each window, window by window; none where there is padding.
    fn tokens(&self) -> Vec<Option<usize>> {
        let padded = self.count() * self.window;
        self.places()
            .map(|(y, x)| ((y + self.shift) % padded, (x + self.shift) % padded))
            .map(|(y, x)| (y < self.side && x < self.side).then_some(y * self.side + x))
            .collect()
    }

    /// Row and column in the rolled map of each place of each window.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let (count, window) = (self.count(), self.window);
        (0..count * count).flat_map(move |at| {
            let (top, left) = (at / count * window, at % count * window);
            (0..window * window).map(move |token| (top + token / window, left + token % window))
        })
    }

    /// The place of each token of the map, counted through the windows.
    fn back(&self) -> Vec<usize> {
        let mut back = vec![0; self.side * self.side];
        for (place, token) in self.tokens().into_iter().enumerate() {
            if let Some(token) = token {
                back[token] = place;
            }
        }
        back
    }

    /// Whether the windows are the map itself.
    fn whole(&self) -> bool {
        self.side == self.window
    }

    /// What keeps tokens apart that a roll has put side by side, `windows * t * t` for windows of `t` tokens; none if nothing was
    /// rolled.
    fn apart(&self) -> Option<Vec<f32>> {
        if self.shift == 0 {
            return None;
        }
        let padded = self.count() * self.window;
        let band = |at: usize| usize::from(at >= padded - self.window) + usize::from(at >= padded - self.shift);
        let region: Vec<usize> = self.places().map(|(y, x)| 3 * band(y) + band(x)).collect();
        let apart = region.chunks(self.window * self.window).flat_map(|window| {
            let pair = move |a: usize| window.iter().map(move |&b| if a == b { 0.0 } else { APART });
            window.iter().flat_map(move |&a| pair(a))
        });
        Some(apart.collect())
    }
}

/// For each pair of tokens of a window the row of the table of relative positions: query by query, key by key.
fn relative_positions(window: usize) -> Vec<i64> {
    let token = |i: usize| ((i / window) as i64, (i % window) as i64);
    let (tokens, span) = (window * window, 2 * window as i64 - 1);
    let pairs = (0..tokens).flat_map(|query| (0..tokens).map(move |key| (token(query), token(key))));
    pairs
        .map(|((y, x), (v, u))| (y - v + window as i64 - 1) * span + x - u + window as i64 - 1)
        .collect()
}

/// Rows by number, none of them padding.
fn chosen(rows: impl Iterator<Item = usize>) -> Vec<Option<u32>> {
    rows.map(|row| Some(row as u32)).collect()
}

impl SwinNetwork {
    /// The network of checked numbers.
    pub fn new(swin: Swin) -> Self {
        Self { swin }
    }

    fn stages(&self) -> usize {
        self.swin.depths.len()
    }

    fn heads(&self, stage: usize) -> usize {
        self.swin.stage_width(stage) / self.swin.head_dim
    }

    /// Blocks before `stage`.
    fn before(&self, stage: usize) -> usize {
        self.swin.depths[..stage].iter().sum()
    }

    /// `[windows or 1, heads, t, t]` biases on the scores of a block.
    fn bias(&self, block: &Block, heads: usize, windows: &Windows) -> Tensor<4> {
        let window = self.swin.window;
        let tokens = window * window;
        let table: Tensor<2> = block.weights.tensor(&format!("{}.attn.relative_position", block.name));
        let pairs = relative_positions(window);
        let pairs = Tensor::<1, Int>::from_data(TensorData::new(pairs, [tokens * tokens]), &table.device());
        let bias = table
            .select(0, pairs)
            .swap_dims(0, 1)
            .reshape([1, heads, tokens, tokens]);
        match windows.apart() {
            None => bias,
            Some(apart) => {
                let groups = windows.count().pow(2);
                let apart = TensorData::new(apart, [groups, 1, tokens, tokens]);
                let device = bias.device();
                bias + Tensor::from_data(apart, &device)
            }
        }
    }

    /// Attention within windows on `images` maps of `x`, `[rows, width]`, up to the projection and what goes into it.
    fn attend(
        &self,
        block: &Block,
        heads: usize,
        windows: &Windows,
        images: usize,
        x: Tensor<2>,
    ) -> (Linear, Tensor<2>) {
        let [rows, width] = x.dims();
        let (tokens, groups) = (self.swin.window.pow(2), windows.count().pow(2));
        let form = Attention {
            sequences: vec![(images * groups, tokens)],
            heads,
            kv_heads: heads,
            head_dim: self.swin.head_dim,
            causal: false,
        };
        let bias = self.bias(block, heads, windows);
        let qkv = block.qkv(x);
        if windows.whole() {
            return (block.projection(), attention(form, qkv, Some(bias)));
        }
        let map = windows.side * windows.side;
        let places = windows.tokens();
        // Padding is zero after the norm, so that its queries, keys and values are the bias of their projection: one more row.
        let qkv = if places.contains(&None) {
            let bias = block.vector("attn.qkv.bias").reshape([1, 3 * width]);
            Tensor::cat(vec![qkv, bias], 0)
        } else {
            qkv
        };
        let row = |image: usize, token: &Option<usize>| token.map_or(rows, |token| image * map + token);
        let there = (0..images).flat_map(|image| places.iter().map(move |token| row(image, token)));
        let mixed = attention(form, gather_rows(qkv, chosen(there)), Some(bias));
        let (back, stride) = (windows.back(), places.len());
        let back = (0..images).flat_map(|image| back.iter().map(move |place| image * stride + place));
        (block.projection(), gather_rows(mixed, chosen(back)))
    }

    /// Joins 2 x 2 tokens to one of twice the channels: `[b * side^2, c]` to `[b * side^2 / 4, 2c]`.
    fn merge(&self, weights: &Weights, stage: usize, [batch, side]: [usize; 2], x: Tensor<2>) -> Tensor<2> {
        let [_, width] = x.dims();
        let (half, name) = (side / 2, format!("stages.{stage}.downsample"));
        let corners = (0..batch).flat_map(|image| {
            let first = image * side * side;
            (0..half * half).flat_map(corners(side)).map(move |token| first + token)
        });
        let joined = gather_rows(x, chosen(corners)).reshape([batch * half * half, MERGED * width]);
        let vector = |leaf: &str| weights.tensor::<1>(&format!("{name}.norm.{leaf}"));
        Linear::new(weights.tensor(&format!("{name}.reduction.weight")))
            .layer_norm(vector("weight"), vector("bias"), FIXED_EPS)
            .forward(joined)
    }

    /// Attention within windows as ONNX nodes, on the rows of queries, keys and values of one map an image.
    fn graph_attention(
        &self,
        graph: &mut onnx::Graph,
        block: &BlockGraph,
        windows: &Windows,
        heads: usize,
        qkv: onnx::Value,
    ) -> onnx::Value {
        use onnx::Extent::{Batch, Fixed};
        let (map, window) = (windows.side * windows.side, self.swin.window);
        let tokens = window * window;
        let width = heads * self.swin.head_dim;
        let form = onnx::Heads {
            tokens,
            heads,
            head_dim: self.swin.head_dim,
        };
        let table = graph.weight(&format!("{}.attn.relative_position", block.name));
        let pairs: Vec<usize> = relative_positions(window).into_iter().map(|at| at as usize).collect();
        let bias = graph.gather(table, 0, &pairs);
        let bias = graph.transpose(bias, &[1, 0]);
        let mut bias = graph.reshape(bias, &[Fixed(heads), Fixed(tokens), Fixed(tokens)]);
        if let Some(apart) = windows.apart() {
            let apart = graph.floats(apart, &[windows.count().pow(2), 1, tokens, tokens]);
            bias = graph.add(apart, bias);
        }
        if windows.whole() {
            return graph.attention(qkv, form, Some(bias));
        }
        let places = windows.tokens();
        let mut rows = graph.reshape(qkv, &[Batch(1), Fixed(map), Fixed(3 * width)]);
        if places.contains(&None) {
            let padding = graph.weight(&format!("{}.attn.qkv.bias", block.name));
            let padding = graph.for_each_image(padding, &[1, 3 * width]);
            rows = graph.concat(&[rows, padding], 1);
        }
        let there: Vec<usize> = places.iter().map(|token| token.unwrap_or(map)).collect();
        let rows = graph.gather(rows, 1, &there);
        let rows = graph.reshape(rows, &[Batch(places.len()), Fixed(3 * width)]);
        let mixed = graph.attention(rows, form, Some(bias));
        let mixed = graph.reshape(mixed, &[Batch(1), Fixed(places.len()), Fixed(width)]);
        let mixed = graph.gather(mixed, 1, &windows.back());
        graph.reshape(mixed, &[Batch(map), Fixed(width)])
    }

    fn norm<const D: usize>(weights: &Weights, name: &str, x: Tensor<D>, epsilon: f64) -> Tensor<D> {
        let scale = weights.tensor(&format!("{name}.weight"));
        let shift = weights.tensor(&format!("{name}.bias"));
        module::layer_norm(x, scale, Some(shift), epsilon)
    }

    /// Specs of the blocks of a stage and of the merging behind it.
    fn stage_specs(&self, stage: usize) -> Vec<TensorSpec> {
        let (width, window) = (self.swin.stage_width(stage), self.swin.window);
        let mut specs = Vec::new();
        for place in 0..self.swin.depths[stage] {
            let number = self.before(stage) + place;
            let block = BlockSpecs {
                name: format!("stages.{stage}.blocks.{place}"),
                number,
                residual: residual(stage),
                width,
                head_dim: self.swin.head_dim,
                hidden: width * self.swin.mlp_ratio,
                layer_scale: 0.0,
            };
            let heads = Dim::writes(BlockSpecs::heads_axis(number), self.heads(stage));
            let table = vec![Dim::fixed((2 * window - 1).pow(2)), heads];
            let table = TensorSpec::new(format!("{}.attn.relative_position", block.name), table);
            specs.extend(block.specs());
            specs.push(TensorSpec {
                block: Some(number),
                layer: Some(number + 1),
                ..table.init(Init::TruncatedNormal(0.02))
            });
        }
        if stage + 1 < self.stages() {
            let name = format!("stages.{stage}.downsample");
            let layer = |spec: TensorSpec| TensorSpec {
                layer: Some(self.before(stage) + 1),
                ..spec
            };
            let joined = |dim: Dim| dim.sections(&[1; MERGED]);
            let norm = |leaf: &str| {
                let dim = joined(Dim::writes(residual(stage), MERGED * width));
                layer(TensorSpec::new(format!("{name}.norm.{leaf}"), vec![dim]).undecayed())
            };
            let reduction = vec![
                Dim::writes(residual(stage + 1), 2 * width),
                joined(Dim::reads(residual(stage), MERGED * width)),
            ];
            let reduction = TensorSpec::new(format!("{name}.reduction.weight"), reduction);
            specs.push(norm("weight").init(Init::Constant(1.0)));
            specs.push(norm("bias"));
            specs.push(layer(reduction.init(Init::TruncatedNormal(0.02))));
        }
        specs
    }
}

impl Network for SwinNetwork {
    fn architecture(&self) -> Architecture {
        Architecture::Swin(self.swin.clone())
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let first = || Dim::writes(residual(0), self.swin.width);
        let input = |spec: TensorSpec| TensorSpec { layer: Some(0), ..spec };
        let norm = |name: &str, dim: fn(&Self) -> Dim, init| {
            TensorSpec::new(name, vec![dim(self)])
                .init(Init::Constant(init))
                .undecayed()
        };
        let embedded = |net: &Self| Dim::writes(residual(0), net.swin.width);
        let last = |net: &Self| Dim::writes(residual(net.stages() - 1), net.swin.feature_width());
        // Not zero: nothing is added to a map of masked tokens before its first norm, and the gradient of the norm of zeros is as
        // large as one over the root of its epsilon, block after block.
        let token = TensorSpec::new("mask_token", vec![first()]).init(Init::TruncatedNormal(0.02));
        let mut specs = vec![input(token)];
        specs.extend(block::embed_specs(first(), self.swin.channels, self.swin.patch));
        specs.push(input(norm("patch_embed.norm.weight", embedded, 1.0)));
        specs.push(input(norm("patch_embed.norm.bias", embedded, 0.0)));
        specs.extend((0..self.stages()).flat_map(|stage| self.stage_specs(stage)));
        specs.push(norm("norm.weight", last, 1.0));
        specs.push(norm("norm.bias", last, 0.0));
        specs.extend(block::head_specs(self.swin.classes, self.feature()));
        specs
    }

    fn as_backbone(&self) -> Option<&dyn Backbone> {
        Some(self)
    }

    fn width_step(&self) -> usize {
        self.swin.head_dim
    }

    fn layers(&self) -> usize {
        self.before(self.stages()) + 1
    }

    fn space(&self, bounds: SpaceBounds) -> Result<Space, NetworkError> {
        let width = bounds.width(self.swin.width, self.swin.head_dim, "heads of")?;
        let depths = bounds.stages(&self.swin.depths)?;
        Ok(Space {
            axes: [width].into_iter().chain(depths).collect(),
        })
    }

    fn child(&self, shape: &Shape, parent: &str) -> Result<View, NetworkError> {
        let bad = || NetworkError::Shape(shape.id());
        let width = shape.get("width").ok_or_else(bad)?;
        let depths = depths_of(shape, &self.swin.depths).ok_or_else(bad)?;
        if width == 0 || width > self.swin.width || !width.is_multiple_of(self.swin.head_dim) {
            return Err(bad());
        }
        let child = Self::new(Swin {
            width,
            depths,
            ..self.swin.clone()
        });
        let blocks = kept_in_stages(&self.swin.depths, &child.swin.depths);
        let mut axes = BTreeMap::new();
        let mut gains = BTreeMap::new();
        if width < self.swin.width {
            let alpha = self.swin.width as f64 / width as f64;
            let mut cut = |axis: String, size: usize| {
                axes.insert(axis.clone(), Operator::Prefix { size });
                gains.insert(axis, alpha);
            };
            for stage in 0..self.stages() {
                let width = child.swin.stage_width(stage);
                cut(residual(stage), width);
                let stage_blocks = self.before(stage)..self.before(stage + 1);
                for &block in blocks.iter().filter(|block| stage_blocks.contains(block)) {
                    cut(BlockSpecs::heads_axis(block), child.heads(stage));
                    cut(BlockSpecs::ffn_axis(block), width * self.swin.mlp_ratio);
                }
            }
        }
        Ok(View {
            parent: parent.into(),
            child: child.architecture(),
            axes,
            blocks,
            gains,
        })
    }

    fn familiar_name(&self) -> Option<&'static str> {
        match (self.swin.width, &self.swin.depths[..], self.swin.window) {
            (96, [2, 2, 6, 2], 7) => Some("swin-t"),
            (96, [2, 2, 18, 2], 7) => Some("swin-s"),
            (128, [2, 2, 18, 2], 7) => Some("swin-b"),
            (192, [2, 2, 18, 2], 7) => Some("swin-l"),
            _ => None,
        }
    }

    fn layout(&self) -> Layout {
        swin_layout(&self.swin)
    }

    fn example_macs(&self) -> u64 {
        self.macs(self.image().1)
    }
}

impl Backbone for SwinNetwork {
    fn feature(&self) -> Dim {
        Dim::reads(residual(self.stages() - 1), self.swin.feature_width())
    }

    fn image(&self) -> (usize, usize) {
        (self.swin.channels, self.swin.image)
    }

    fn mask_grid(&self) -> usize {
        2 * self.swin.image / self.swin.stride()
    }

    fn stride(&self) -> usize {
        self.swin.stride()
    }

    fn stochastic_depth(&self) -> StochasticDepth {
        StochasticDepth::Linear
    }

    fn forward(
        &self,
        weights: &Weights,
        images: Tensor<4>,
        masks: Option<Tensor<2, Bool>>,
        drop_path: &mut dyn DropPath,
    ) -> Features {
        let [batch, _, _, pixels] = images.dims();
        let mut side = pixels / self.swin.patch;
        let embedded = block::embed_patches(weights, images, self.swin.patch);
        let mut x = Self::norm(weights, "patch_embed.norm", embedded, FIXED_EPS);
        if let Some(masks) = masks {
            // Marks are those of the last map, twice as fine.
            let grid = 2 * pixels / self.swin.stride();
            let dims = x.dims();
            let marks = block::upsample_marks(masks, grid, side / grid).reshape([dims[0], 1]);
            let token = weights.tensor::<2>("mask_token").expand(dims);
            x = x.mask_where(marks.expand(dims), token);
        }
        for stage in 0..self.stages() {
            let (width, heads) = (self.swin.stage_width(stage), self.heads(stage));
            for place in 0..self.swin.depths[stage] {
                let number = self.before(stage) + place;
                let block = Block {
                    weights,
                    name: &format!("stages.{stage}.blocks.{place}"),
                    norm_eps: self.swin.norm_eps,
                    layer_scale: false,
                };
                let windows = Windows::new(side, self.swin.window, place % 2 == 1);
                for branch in 0..2 {
                    let run = |images: usize, x: Tensor<2>| match branch {
                        0 => self.attend(&block, heads, &windows, images, x),
                        _ => block.feed_forward(x),
                    };
                    x = add_branch(x, [batch, side * side, width], 2 * number + branch, drop_path, run);
                }
            }
            if stage + 1 < self.stages() {
                x = self.merge(weights, stage, [batch, side], x);
                side /= 2;
            }
        }
        let map =
            Self::norm(weights, "norm", x, self.swin.norm_eps).reshape([batch, side * side, self.swin.feature_width()]);
        let cls = map.clone().mean_dim(1).squeeze_dim::<2>(1);
        Features {
            logits: block::logits(weights, self.swin.classes, &cls),
            cls,
            patches: block::upsample_tokens(map, side, 2),
        }
    }

    fn macs(&self, image: usize) -> u64 {
        let Swin {
            width,
            patch,
            channels,
            window,
            mlp_ratio,
            ..
        } = self.swin;
        let mut side = image / patch;
        let mut macs = side * side * width * channels * patch * patch;
        for (stage, depth) in self.swin.depths.iter().enumerate() {
            let (tokens, width) = (side * side, self.swin.stage_width(stage));
            let padded = (side.div_ceil(window) * window).pow(2);
            let block = tokens * width * width * (4 + 2 * mlp_ratio) + 2 * padded * window * window * width;
            macs += depth * block;
            if stage + 1 < self.stages() {
                macs += tokens / MERGED * (MERGED * width) * (2 * width);
                side /= 2;
            }
        }
        macs as u64
    }

    fn activations(&self, image: usize) -> u64 {
        let mut side = image / self.swin.patch;
        let mut kept = 0;
        for (stage, depth) in self.swin.depths.iter().enumerate() {
            let (tokens, width) = (side * side, self.swin.stage_width(stage));
            let padded = (side.div_ceil(self.swin.window) * self.swin.window).pow(2);
            // Of one block: what goes into either branch, qkv in windows, the mixed heads, and the hidden layer before GELU.
            let block = tokens * width * (3 + self.swin.mlp_ratio) + 3 * padded * width;
            kept += depth * block;
            if stage + 1 < self.stages() {
                kept += tokens * width;
                side /= 2;
            }
        }
        kept as u64
    }

    fn graph(&self, graph: &mut onnx::Graph, pixels: onnx::Value) -> onnx::Outputs {
        use onnx::Extent::{Batch, Fixed};
        let Swin { width, patch, .. } = self.swin;
        let mut side = self.swin.map(0);
        let sliding = onnx::Sliding {
            stride: patch,
            padding: 0,
        };
        let x = graph.convolution(pixels, "patch_embed.proj", sliding);
        let x = graph.reshape(x, &[Batch(1), Fixed(width), Fixed(side * side)]);
        let x = graph.transpose(x, &[0, 2, 1]);
        let x = graph.reshape(x, &[Batch(side * side), Fixed(width)]);
        let mut x = graph.layer_norm(x, "patch_embed.norm", FIXED_EPS);
        for stage in 0..self.stages() {
            let width = self.swin.stage_width(stage);
            for place in 0..self.swin.depths[stage] {
                let block = BlockGraph {
                    name: format!("stages.{stage}.blocks.{place}"),
                    norm_eps: self.swin.norm_eps,
                    layer_scale: false,
                };
                graph.at(&block.name);
                let windows = Windows::new(side, self.swin.window, place % 2 == 1);
                let qkv = block.qkv(graph, x);
                let mixed = self.graph_attention(graph, &block, &windows, self.heads(stage), qkv);
                x = block.projection(graph, x, mixed);
                x = block.feed_forward(graph, x);
            }
            if stage + 1 < self.stages() {
                let name = format!("stages.{stage}.downsample");
                graph.at(&name);
                let corners: Vec<usize> = (0..side * side / MERGED).flat_map(corners(side)).collect();
                x = graph.reshape(x, &[Batch(1), Fixed(side * side), Fixed(width)]);
                x = graph.gather(x, 1, &corners);
                x = graph.reshape(x, &[Batch(side * side / MERGED), Fixed(MERGED * width)]);
                x = graph.layer_norm(x, &format!("{name}.norm"), FIXED_EPS);
                x = graph.linear(x, &format!("{name}.reduction"));
                side /= 2;
            }
        }
        graph.at("");
        let x = graph.layer_norm(x, "norm", self.swin.norm_eps);
        let map = graph.reshape(x, &[Batch(1), Fixed(side * side), Fixed(self.swin.feature_width())]);
        let cls = graph.mean(map, &[1]);
        onnx::Outputs {
            cls,
            patches: graph.gather(map, 1, &block::doubled(side)),
            logits: (self.swin.classes > 0).then(|| graph.linear(cls, "head")),
        }
    }
}

/// The tokens of a map of `side` that a merging joins to one, in the order of their channels.
fn corners(side: usize) -> impl Fn(usize) -> [usize; MERGED] {
    move |at| {
        let (y, x) = (at / (side / 2), at % (side / 2));
        [0, 1, 2, 3].map(|k| (2 * y + k % 2) * side + 2 * x + k / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swin(width: usize, third: usize) -> SwinNetwork {
        let architecture = crate::registry::paper("swin").unwrap().parent;
        let Architecture::Swin(swin) = architecture.with_input(3, 224) else {
            unreachable!("asked for a Swin")
        };
        SwinNetwork::new(Swin {
            width,
            depths: vec![2, 2, third, 2],
            ..swin
        })
    }

    /// POA appendix A.1 with a patch embedding that is sliced as a whole; the mask token counts.
    #[test]
    fn parameter_counts_of_swin_t_s_b() {
        for (width, third, parameters) in [(96, 6, 27_542_772), (96, 18, 48_885_012), (128, 18, 86_806_896)] {
            assert_eq!(crate::spec::parameters(&swin(width, third).specs()), parameters);
        }
    }

    /// elastic.md 2.3 and 8.2.
    #[test]
    fn the_paper_space_has_39_children_with_the_tabled_blocks_and_gains() {
        let parent = swin(128, 18);
        let bounds = crate::registry::paper("swin").unwrap().bounds;
        let space = parent.space(bounds).unwrap();
        assert_eq!(space.count(), 39);
        assert_eq!(space.smallest().id(), "96x6");
        let view = |width, depth| {
            parent
                .child(&Shape::new([("width", width), ("depth3", depth)]), "")
                .unwrap()
        };
        let third = |depth| -> Vec<usize> {
            let blocks = view(96, depth).blocks;
            assert_eq!(blocks[..4], [0, 1, 2, 3]);
            assert_eq!(blocks[blocks.len() - 2..], [22, 23]);
            blocks[4..blocks.len() - 2].iter().map(|b| b - 4).collect()
        };
        assert_eq!(third(6), [0, 3, 6, 10, 13, 17]);
        assert_eq!(third(7), [0, 2, 5, 8, 11, 14, 17]);
        assert_eq!(third(8), [0, 2, 4, 7, 9, 12, 14, 17]);
        assert_eq!(third(9), [0, 2, 4, 6, 8, 10, 12, 14, 17]);
        assert_eq!(third(10), [0, 1, 3, 5, 7, 9, 11, 13, 15, 17]);
        assert_eq!(third(17), (0..18).filter(|&b| b != 16).collect::<Vec<_>>());
        for (width, alpha) in [(96, 4.0 / 3.0), (112, 8.0 / 7.0)] {
            let gains = view(width, 12).gains;
            // Four streams, and heads and hidden channels of 18 blocks.
            assert_eq!(gains.len(), 4 + 2 * 18);
            assert!(gains.values().all(|gain| (gain - alpha).abs() < 1e-12));
        }
        let intact = parent.child(&space.intact(), "").unwrap();
        assert!(intact.axes.is_empty() && intact.gains.is_empty());
        assert!(parent.child(&Shape::new([("width", 100)]), "").is_err());
        assert!(parent.child(&Shape::new([("width", 96), ("depth3", 19)]), "").is_err());
    }

    #[test]
    fn windows_hold_every_token_once_and_give_it_back() {
        for (side, window, odd) in [
            (6, 3, false),
            (6, 3, true),
            (8, 3, true),
            (2, 3, true),
            (7, 7, true),
            (5, 2, true),
        ] {
            let windows = Windows::new(side, window, odd);
            let tokens = windows.tokens();
            assert_eq!(tokens.len(), (windows.count() * window).pow(2));
            let mut there: Vec<usize> = tokens.iter().flatten().copied().collect();
            for (token, place) in windows.back().into_iter().enumerate() {
                assert_eq!(tokens[place], Some(token));
            }
            there.sort_unstable();
            assert_eq!(there, (0..side * side).collect::<Vec<_>>());
            assert_eq!(windows.apart().is_some(), odd && side > window);
        }
        assert_eq!(Windows::new(14, 7, true).shift, 3);
    }

    /// Liu et al. 2021, table 1 and their counts: 4.5, 8.7 and 15.4 G for T, S and B, which count the same products.
    #[test]
    fn multiply_adds_are_the_published_ones() {
        for (width, third, macs) in [(96, 6, 4.5e9), (96, 18, 8.7e9), (128, 18, 15.4e9)] {
            let ours = swin(width, third).macs(224) as f64;
            assert!((ours / macs - 1.0).abs() < 0.015, "{ours}");
        }
    }
}
