//! What a network says of each of its tensors: name, labelled dimensions, start value and how the optimizer treats it.

/// One dimension of a tensor. With an axis it consists of sections, each of which holds the whole axis: the rows of a fused qkv
/// matrix are three sections of heads of `head_dim` rows each, and where heads share keys and values the entries of the first
/// section are as many times longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dim {
    /// Size in the tensor: entries of the axis times the sum of the sections.
    pub size: usize,
    /// The axis instance it belongs to, such as `residual` or `blocks.3.heads`; none where it is never cut.
    pub axis: Option<String>,
    /// Consecutive positions that make one entry of the axis, in each section.
    pub sections: Vec<usize>,
    /// Whether the tensor reads the axis (a matrix' input) rather than writes it.
    pub reads: bool,
}

impl Dim {
    /// A dimension that is never cut.
    pub fn fixed(size: usize) -> Self {
        Self {
            size,
            axis: None,
            sections: vec![1],
            reads: false,
        }
    }

    /// A dimension along `axis` that the tensor writes.
    pub fn writes(axis: impl Into<String>, size: usize) -> Self {
        Self {
            size,
            axis: Some(axis.into()),
            sections: vec![1],
            reads: false,
        }
    }

    /// A dimension along `axis` that the tensor reads.
    pub fn reads(axis: impl Into<String>, size: usize) -> Self {
        Self {
            reads: true,
            ..Self::writes(axis, size)
        }
    }

    /// The same with `entry` consecutive positions to one entry of the axis.
    #[must_use]
    pub fn entry(self, entry: usize) -> Self {
        self.sections(&[entry])
    }

    /// The same in sections of so many consecutive positions to one entry of the axis.
    #[must_use]
    pub fn sections(self, entries: &[usize]) -> Self {
        Self {
            sections: entries.to_vec(),
            ..self
        }
    }

    /// Entries of the axis.
    pub fn entries(&self) -> usize {
        self.size / self.sections.iter().sum::<usize>()
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

/// What a tensor is to matrices that are mixed of slices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mixing {
    /// Nothing: a child has it, or a part of it.
    #[default]
    None,
    /// Part of the coefficients; no child has it.
    Coefficients,
    /// Slices of a matrix, one along the first dimension; a child has their mix. The coefficients are the product of an expert's row of
    /// the tensor `codes`, `[experts, m]`, and the tensor `factors`, `[sections, m, slices]`: of each section of the matrix' rows its own.
    Slices {
        /// Name of the codes.
        codes: String,
        /// Name of the factors.
        factors: String,
        /// Sections of equal size.
        sections: usize,
    },
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
    /// Whether it is never trained and never averaged, such as the running statistics of a BatchNorm. The forward pass detaches
    /// it, so that it has no gradient.
    pub frozen: bool,
    /// What it is to matrices that are mixed of slices.
    pub mixing: Mixing,
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
            frozen: false,
            mixing: Mixing::None,
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

    /// The same, never trained.
    #[must_use]
    pub fn frozen(self) -> Self {
        Self { frozen: true, ..self }.undecayed()
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
