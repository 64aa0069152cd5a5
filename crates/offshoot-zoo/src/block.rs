//! What networks share inside: patch embedding, transformer blocks, residual branches on a subset of a batch, and the linear
//! classifier.

use crate::network::{DropPath, Subset};
use crate::onnx;
use crate::spec::{Dim, Init, TensorSpec};
use crate::tensor::{Bool, Int, Linear, Tensor, TensorData};
use crate::weights::Weights;

/// The tensors of one pre-norm transformer block: attention and a feed-forward layer.
pub(crate) struct BlockSpecs {
    /// Name of the block, in front of the names of its tensors.
    pub(crate) name: String,
    /// Its number, counted through the network.
    pub(crate) number: usize,
    /// Axis of the residual stream it is on.
    pub(crate) residual: String,
    /// Channels of that stream.
    pub(crate) width: usize,
    /// Channels of one head.
    pub(crate) head_dim: usize,
    /// Hidden channels of the feed-forward layer.
    pub(crate) hidden: usize,
    /// Start value of LayerScale; 0 for none.
    pub(crate) layer_scale: f64,
}

impl BlockSpecs {
    /// The axis of the block's heads.
    pub(crate) fn heads_axis(number: usize) -> String {
        format!("blocks.{number}.heads")
    }

    /// The axis of the block's hidden channels.
    pub(crate) fn ffn_axis(number: usize) -> String {
        format!("blocks.{number}.ffn")
    }

    /// The tensors in order of the forward pass.
    pub(crate) fn specs(&self) -> Vec<TensorSpec> {
        let (width, hidden) = (self.width, self.hidden);
        let (heads, ffn) = (Self::heads_axis(self.number), Self::ffn_axis(self.number));
        let residual = || Dim::writes(&self.residual, width);
        let reads = || Dim::reads(&self.residual, width);
        let qkv = || Dim::writes(&heads, 3 * width).sections(&[self.head_dim; 3]);
        let mixed = || Dim::reads(&heads, width).entry(self.head_dim);
        let matrix = |leaf: &str, dims| TensorSpec::new(leaf, dims).init(Init::TruncatedNormal(0.02));
        let vector = |leaf: &str, dim| TensorSpec::new(leaf, vec![dim]).undecayed();
        let scale = Init::Constant(self.layer_scale as f32);
        let specs = [
            vector("norm1.weight", residual()).init(Init::Constant(1.0)),
            vector("norm1.bias", residual()),
            matrix("attn.qkv.weight", vec![qkv(), reads()]),
            vector("attn.qkv.bias", qkv()),
            matrix("attn.proj.weight", vec![residual(), mixed()]),
            vector("attn.proj.bias", residual()),
            vector("ls1.gamma", residual()).init(scale),
            vector("norm2.weight", residual()).init(Init::Constant(1.0)),
            vector("norm2.bias", residual()),
            matrix("mlp.fc1.weight", vec![Dim::writes(&ffn, hidden), reads()]),
            vector("mlp.fc1.bias", Dim::writes(&ffn, hidden)),
            matrix("mlp.fc2.weight", vec![residual(), Dim::reads(&ffn, hidden)]),
            vector("mlp.fc2.bias", residual()),
            vector("ls2.gamma", residual()).init(scale),
        ];
        let kept = specs
            .into_iter()
            .filter(|spec| self.layer_scale > 0.0 || !spec.name.ends_with(".gamma"));
        kept.map(|spec| TensorSpec {
            name: format!("{}.{}", self.name, spec.name),
            block: Some(self.number),
            layer: Some(self.number + 1),
            ..spec
        })
        .collect()
    }
}

/// One pre-norm transformer block with its weights. Each branch is given up to its last layer, so that the residual can be
/// added within that.
pub(crate) struct Block<'a> {
    /// All weights.
    pub(crate) weights: &'a Weights,
    /// Name of the block.
    pub(crate) name: &'a str,
    /// Epsilon of the norms.
    pub(crate) norm_eps: f64,
    /// Whether there is a LayerScale.
    pub(crate) layer_scale: bool,
}

impl Block<'_> {
    /// A vector of the block.
    pub(crate) fn vector(&self, leaf: &str) -> Tensor<1> {
        self.weights.tensor(&format!("{}.{leaf}", self.name))
    }

    fn layer(&self, leaf: &str) -> Linear {
        let weight = self.weights.tensor(&format!("{}.{leaf}.weight", self.name));
        Linear::new(weight).bias(self.vector(&format!("{leaf}.bias")))
    }

    fn after_norm(&self, leaf: &str, norm: &str) -> Linear {
        let (scale, shift) = (
            self.vector(&format!("{norm}.weight")),
            self.vector(&format!("{norm}.bias")),
        );
        self.layer(leaf).layer_norm(scale, shift, self.norm_eps)
    }

    fn scaled(&self, linear: Linear, leaf: &str) -> Linear {
        if self.layer_scale {
            linear.layer_scale(self.vector(leaf))
        } else {
            linear
        }
    }

    /// Packed queries, keys and values of the normalised rows of `x`, `[rows, 3 * width]`.
    pub(crate) fn qkv(&self, x: Tensor<2>) -> Tensor<2> {
        self.after_norm("attn.qkv", "norm1").forward(x)
    }

    /// The last layer of the attention branch.
    pub(crate) fn projection(&self) -> Linear {
        self.scaled(self.layer("attn.proj"), "ls1.gamma")
    }

    /// The last layer of the feed-forward branch, and what goes into it.
    pub(crate) fn feed_forward(&self, x: Tensor<2>) -> (Linear, Tensor<2>) {
        let hidden = self.after_norm("mlp.fc1", "norm2").forward(x);
        (self.scaled(self.layer("mlp.fc2").gelu(), "ls2.gamma"), hidden)
    }
}

/// One pre-norm transformer block as nodes of an ONNX graph, over rows.
pub(crate) struct BlockGraph {
    /// Name of the block.
    pub(crate) name: String,
    /// Epsilon of the norms.
    pub(crate) norm_eps: f64,
    /// Whether there is a LayerScale.
    pub(crate) layer_scale: bool,
}

impl BlockGraph {
    fn leaf(&self, leaf: &str) -> String {
        format!("{}.{leaf}", self.name)
    }

    fn residual(&self, graph: &mut onnx::Graph, x: onnx::Value, inner: onnx::Value, gamma: &str) -> onnx::Value {
        if !self.layer_scale {
            return graph.add(x, inner);
        }
        let gamma = graph.weight(&self.leaf(gamma));
        let inner = graph.multiply(inner, gamma);
        graph.add(x, inner)
    }

    /// [`Block::qkv`].
    pub(crate) fn qkv(&self, graph: &mut onnx::Graph, x: onnx::Value) -> onnx::Value {
        let inner = graph.layer_norm(x, &self.leaf("norm1"), self.norm_eps);
        graph.linear(inner, &self.leaf("attn.qkv"))
    }

    /// [`Block::projection`] of `mixed`, added to `x`.
    pub(crate) fn projection(&self, graph: &mut onnx::Graph, x: onnx::Value, mixed: onnx::Value) -> onnx::Value {
        let inner = graph.linear(mixed, &self.leaf("attn.proj"));
        self.residual(graph, x, inner, "ls1.gamma")
    }

    /// The feed-forward branch, added to `x`.
    pub(crate) fn feed_forward(&self, graph: &mut onnx::Graph, x: onnx::Value) -> onnx::Value {
        let inner = graph.layer_norm(x, &self.leaf("norm2"), self.norm_eps);
        let inner = graph.linear(inner, &self.leaf("mlp.fc1"));
        let inner = graph.gelu(inner);
        let inner = graph.linear(inner, &self.leaf("mlp.fc2"));
        self.residual(graph, x, inner, "ls2.gamma")
    }
}

/// The tensors of a patch embedding that writes `residual`: a convolution as wide as its stride.
pub(crate) fn embed_specs(residual: Dim, channels: usize, patch: usize) -> [TensorSpec; 2] {
    // PyTorch's default for a convolution: kaiming-uniform with a = sqrt(5), that is 1 / sqrt(fan in), for the bias too.
    let fan_in = (channels * patch * patch) as f32;
    let embed = |leaf: &str, dims| TensorSpec {
        patch_embed: true,
        layer: Some(0),
        ..TensorSpec::new(format!("patch_embed.proj.{leaf}"), dims).init(Init::Uniform(fan_in.sqrt().recip()))
    };
    let kernel = vec![
        residual.clone(),
        Dim::fixed(channels),
        Dim::fixed(patch),
        Dim::fixed(patch),
    ];
    [embed("weight", kernel), embed("bias", vec![residual]).undecayed()]
}

/// `[b, c, s, s]` images to the rows of their patches, `[b * patches, width]`. A stride as large as the kernel makes the
/// convolution one matrix product over unfolded patches.
pub(crate) fn embed_patches(weights: &Weights, images: Tensor<4>, patch: usize) -> Tensor<2> {
    let [batch, channels, height, side] = images.dims();
    assert!(
        height == side && side % patch == 0,
        "images of {height} x {side} pixels for patches of {patch}"
    );
    let grid = side / patch;
    let columns = images
        .reshape([batch, channels, grid, patch, grid, patch])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch * grid * grid, channels * patch * patch]);
    Linear::new(weights.tensor("patch_embed.proj.weight"))
        .bias(weights.tensor("patch_embed.proj.bias"))
        .forward(columns)
}

/// Adds residual branch `branch` to `x`, the rows of `tokens` tokens an image: on all images of the batch, or on those that
/// `drop_path` leaves. `run` gives, for rows of so many images, the branch's last layer and what goes into it.
pub(crate) fn add_branch(
    x: Tensor<2>,
    [batch, tokens, width]: [usize; 3],
    branch: usize,
    drop_path: &mut dyn DropPath,
    run: impl FnOnce(usize, Tensor<2>) -> (Linear, Tensor<2>),
) -> Tensor<2> {
    match drop_path.subset(branch, batch) {
        None => {
            let (last, inner) = run(batch, x.clone());
            last.residual(x).forward(inner)
        }
        Some(subset) => on_subset(x, [batch, tokens, width], subset, run),
    }
}

/// Adds a branch to the images of a subset only, scaled as the subset says: stochastic depth that computes nothing in vain.
fn on_subset(
    x: Tensor<2>,
    [batch, tokens, width]: [usize; 3],
    Subset { images, scale }: Subset,
    run: impl FnOnce(usize, Tensor<2>) -> (Linear, Tensor<2>),
) -> Tensor<2> {
    let kept = images.len();
    if kept == 0 {
        return x;
    }
    let rows: Vec<i64> = images.iter().map(|&i| i as i64).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [kept]), &x.device());
    let x = x.reshape([batch, tokens * width]);
    let part = x.clone().select(0, rows.clone()).reshape([kept * tokens, width]);
    let (last, inner) = run(kept, part);
    let change = last.forward(inner).mul_scalar(scale);
    let change = change.reshape([kept, tokens * width]);
    x.select_assign(0, rows, change, burn::tensor::IndexingUpdateOp::Add)
        .reshape([batch * tokens, width])
}

/// Marks on a grid of `grid` cells a side, `[b, grid * grid]`, as marks on one of `factor` times as many: each cell becomes
/// `factor x factor` equal ones.
pub(crate) fn upsample_marks(marks: Tensor<2, Bool>, grid: usize, factor: usize) -> Tensor<2, Bool> {
    let [batch, _] = marks.dims();
    let side = grid * factor;
    marks
        .reshape([batch, grid, 1, grid, 1])
        .expand([batch, grid, factor, grid, factor])
        .reshape([batch, side * side])
}

/// A map of `[b, side * side, dim]` tokens with each token repeated `factor x factor` times, row-major.
pub(crate) fn upsample_tokens(map: Tensor<3>, side: usize, factor: usize) -> Tensor<3> {
    let [batch, _, dim] = map.dims();
    map.reshape([batch, side, 1, side, 1, dim])
        .expand([batch, side, factor, side, factor, dim])
        .reshape([batch, side * side * factor * factor, dim])
}

/// The token of a map of `side` that stands at each place of the map with every token doubled both ways, row-major.
pub(crate) fn doubled(side: usize) -> Vec<usize> {
    let twice = 2 * side;
    (0..twice * twice)
        .map(|at| at / twice / 2 * side + at % twice / 2)
        .collect()
}

/// The tensors of a linear classifier of `classes` classes on features of dimension `feature`; none for 0 classes.
pub(crate) fn head_specs(classes: usize, feature: Dim) -> Vec<TensorSpec> {
    if classes == 0 {
        return Vec::new();
    }
    let weight = TensorSpec::new("head.weight", vec![Dim::fixed(classes), feature]);
    let bias = TensorSpec::new("head.bias", vec![Dim::fixed(classes)]);
    vec![weight.init(Init::TruncatedNormal(0.02)), bias.undecayed()]
}

/// `[batch, classes]` logits of `[batch, dim]` features; none for 0 classes.
pub(crate) fn logits(weights: &Weights, classes: usize, features: &Tensor<2>) -> Option<Tensor<2>> {
    (classes > 0).then(|| {
        Linear::new(weights.tensor("head.weight"))
            .bias(weights.tensor("head.bias"))
            .forward(features.clone())
    })
}
