//! What a network says of each of its tensors: name, labelled dimensions, start value and how the optimizer treats it.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use crate::tensor::Device;
use crate::weights::{Weight, Weights};

/// One dimension of a tensor. With an axis, its size is `groups * entries-of-the-axis * entry`: the rows of a fused qkv matrix
/// are 3 groups of heads of `head_dim` rows each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dim {
    /// Size in the tensor.
    pub size: usize,
    /// The axis instance it belongs to, such as `residual` or `blocks.3.heads`; none where it is never cut.
    pub axis: Option<String>,
    /// Repetitions of the whole axis, one after the other.
    pub groups: usize,
    /// Consecutive positions that make one entry of the axis.
    pub entry: usize,
    /// Whether the tensor reads the axis (a matrix' input) rather than writes it.
    pub reads: bool,
}

impl Dim {
    /// A dimension that is never cut.
    pub fn fixed(size: usize) -> Self {
        Self { size, axis: None, groups: 1, entry: 1, reads: false }
    }

    /// A dimension along `axis` that the tensor writes.
    pub fn writes(axis: impl Into<String>, size: usize) -> Self {
        Self { size, axis: Some(axis.into()), groups: 1, entry: 1, reads: false }
    }

    /// A dimension along `axis` that the tensor reads.
    pub fn reads(axis: impl Into<String>, size: usize) -> Self {
        Self { reads: true, ..Self::writes(axis, size) }
    }

    /// The same with `entry` consecutive positions to one entry of the axis.
    #[must_use]
    pub fn entry(self, entry: usize) -> Self {
        Self { entry, ..self }
    }

    /// The same with the whole axis repeated `groups` times.
    #[must_use]
    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Entries of the axis.
    pub fn entries(&self) -> usize {
        self.size / (self.groups * self.entry)
    }
}

/// How a tensor starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All the same.
    Constant(f32),
    /// Normal with this standard deviation, cut off at two absolute units as PyTorch's `trunc_normal_` is.
    TruncatedNormal(f32),
    /// Normal with this standard deviation.
    Normal(f32),
    /// Uniform in plus or minus this bound.
    Uniform(f32),
}

/// One tensor of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name, the same in memory and in training checkpoints.
    pub name: String,
    /// Dimensions in order; matrices are (out, in).
    pub dims: Vec<Dim>,
    /// Start value.
    pub init: Init,
    /// The block it belongs to, counted through the network; none outside the blocks.
    pub block: Option<usize>,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Layer number for layer-wise learning-rate decay, 0 at the input. None: the top, factor 1.
    pub layer: Option<usize>,
    /// Whether it belongs to the patch embedding, whose learning rate has a factor of its own.
    pub patch_embed: bool,
}

impl TensorSpec {
    /// A tensor outside the blocks that is decayed and starts at zero.
    pub fn new(name: impl Into<String>, dims: Vec<Dim>) -> Self {
        Self {
            name: name.into(),
            dims,
            init: Init::Constant(0.0),
            block: None,
            decay: true,
            layer: None,
            patch_embed: false,
        }
    }

    /// The same with a start value.
    #[must_use]
    pub fn init(self, init: Init) -> Self {
        Self { init, ..self }
    }

    /// The same without weight decay.
    #[must_use]
    pub fn undecayed(self) -> Self {
        Self { decay: false, ..self }
    }

    /// Whether it is a LayerScale, whose start value is a matter of the run's length.
    pub fn is_layer_scale(&self) -> bool {
        self.name.ends_with(".gamma")
    }

    /// Its shape.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().map(|d| d.size).collect()
    }

    /// Its number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().map(|d| d.size).product()
    }
}

/// Elements of all tensors together.
pub fn parameters(specs: &[TensorSpec]) -> u64 {
    specs.iter().map(|s| s.elements() as u64).sum()
}

/// Fresh weights for `specs`. Each tensor draws from a stream of its own, keyed by `(seed, name)`, so that a tensor starts
/// the same whatever else the network has.
pub fn initialise(specs: &[TensorSpec], seed: u64, device: &Device) -> Weights {
    let mut weights = Weights::new();
    for spec in specs {
        let key = blake3::Hasher::new()
            .update(b"offshoot weights")
            .update(&seed.to_le_bytes())
            .update(spec.name.as_bytes())
            .finalize();
        let mut rng = ChaCha8Rng::from_seed(*key.as_bytes());
        let values = draw(spec.init, spec.elements(), &mut rng);
        weights.insert(&spec.name, Weight::from_values(values, spec.shape(), device));
    }
    weights
}

fn draw(init: Init, n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    // 53 bits, in (0, 1): the logarithm below never sees a zero.
    let mut unit = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    match init {
        Init::Constant(value) => vec![value; n],
        Init::Uniform(bound) => (0..n).map(|_| ((2.0 * unit() - 1.0) * f64::from(bound)) as f32).collect(),
        Init::Normal(sigma) => {
            (0..n).map(|_| (box_muller(unit(), unit()) * f64::from(sigma)) as f32).collect()
        }
        Init::TruncatedNormal(sigma) => (0..n)
            .map(|_| loop {
                let value = box_muller(unit(), unit()) * f64::from(sigma);
                if value.abs() <= 2.0 {
                    break value as f32;
                }
            })
            .collect(),
    }
}

/// A standard normal number from two uniform ones in (0, 1).
fn box_muller(a: f64, b: f64) -> f64 {
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}
