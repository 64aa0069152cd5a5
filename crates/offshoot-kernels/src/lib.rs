//! Fused tensor operations for the CPU behind one small face, each with a plain fallback for other devices.
//!
//! An operation is here because a profile asked for it; what it bought is in `docs/log`. [`Kernels`] is an extension of the
//! tensor library's backends: the CPU backend has its own code, every other backend the plain operations of the trait's
//! defaults, and gradients are written once for all of them. Results depend neither on the number of threads nor on the vector
//! instructions, in no bit.
//!
//! NaN and infinities come out of the kernels where they come out of the plain operations. Two gradients only promise to be not
//! finite in the same places, infinity for NaN or the other way round, as they sum in another order: those of a [`Linear`] with a
//! LayerScale, of [`soft_cross_entropy`], and of [`group_norm`](crate::group_norm()). And in causal attention what a token does not
//! see does not reach it, whatever it holds, where the plain operations take it times zero.

mod attention;
mod autodiff;
mod convolution;
mod cross_entropy;
mod cut;
mod gather;
mod gelu;
mod gelu_tanh;
pub mod gemm;
mod gemv;
mod group_norm;
mod linear;
mod memory;
mod mix;
mod next_token;
mod norm;
mod operation;
mod rotary;
mod slices;
mod swiglu;
mod tensors;
#[cfg(test)]
mod tests;
mod update;
mod vector;

pub use attention::Attention;
pub use attention::cache::KeyValues;
pub use convolution::Window;
pub use cross_entropy::SoftTargets;
pub use cut::Cut;
pub use gather::{Gather, Rows};
pub use group_norm::GroupNorm;
pub use linear::{Entry, Form};
pub use memory::keep_freed_memory;
pub use mix::Mix;
pub use operation::{Gelu, NextToken, Operation};
pub use rotary::Rotary;
pub use tensors::Tensors;
pub use update::AdamStep;
pub use vector::{PATH_VARIABLE, Path, on_workers, with_path};

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use crate::operation::Kernel;
use crate::slices::{all_f32, contiguous};

/// The operations, with plain fallbacks.
#[backend_extension(
    Autodiff,
    Flex,
    Cube: cfg(any(feature = "vulkan", feature = "metal", feature = "cuda"))
)]
pub trait Kernels: Backend {
    /// Runs an operation.
    fn run(operation: Operation, #[extension_type] tensors: Tensors<Self>) -> FloatTensor<Self> {
        operation.plain::<Self>(tensors.0)
    }

    /// The gradients of an operation for the tensors that are `wanted`, and maybe others: from the tensors that the operation
    /// says its gradient needs, and from the `gradient` of its result.
    fn gradients(
        operation: Operation,
        #[extension_type] tensors: Tensors<Self>,
        gradient: FloatTensor<Self>,
        wanted: Vec<bool>,
    ) -> Vec<Option<FloatTensor<Self>>> {
        operation.plain_backward::<Self>(tensors.0, gradient, &wanted)
    }

    /// Attention of new tokens over those that are kept, `before` of each sequence, see [`cached_attention`](crate::cached_attention()):
    /// packed rows and what is kept (nothing at first) in, the result and what is kept out. `room` tokens are to be expected. It is
    /// no part of a gradient.
    fn cached_attention(
        form: Attention,
        before: usize,
        room: usize,
        #[extension_type] tensors: Tensors<Self>,
    ) -> Vec<FloatTensor<Self>> {
        let _ = room;
        attention::cache::plain::<Self>(&form, before, tensors.0)
    }

    /// Softmax of the rows of `[rows, columns]` logits over a temperature. It is no part of a gradient.
    fn tempered_softmax(logits: FloatTensor<Self>, temperature: f64) -> FloatTensor<Self> {
        cross_entropy::plain_softmax::<Self>(logits, temperature)
    }

    /// Sinkhorn-Knopp targets of `[rows, columns]` logits. They are no part of a gradient.
    fn sinkhorn(logits: FloatTensor<Self>, temperature: f64, rounds: usize) -> FloatTensor<Self> {
        cross_entropy::plain_sinkhorn::<Self>(logits, temperature, rounds)
    }

    /// AdamW of as many tensors as there are `steps`: weights, first moments, second moments and gradients, in and (but for the
    /// gradients) out.
    fn adamw(steps: Vec<AdamStep>, #[extension_type] tensors: Tensors<Self>) -> Vec<FloatTensor<Self>> {
        update::plain_adamw::<Self>(&steps, tensors.0)
    }

    /// The sum of squares of each tensor, `[tensors]`.
    fn square_sums(#[extension_type] tensors: Tensors<Self>) -> FloatTensor<Self> {
        update::plain_square_sums::<Self>(tensors.0)
    }

    /// `momentum * average + (1 - momentum) * weight` of averages and, after them, as many weights.
    fn average(momentum: f64, #[extension_type] tensors: Tensors<Self>) -> Vec<FloatTensor<Self>> {
        update::plain_average::<Self>(momentum, tensors.0)
    }
}

impl Kernels for Flex {
    fn run(operation: Operation, tensors: Tensors<Self>) -> FloatTensor<Self> {
        if all_f32(&tensors.0) {
            operation.forward(tensors.0.into_iter().map(contiguous).collect())
        } else {
            operation.plain::<Self>(tensors.0)
        }
    }

    fn gradients(
        operation: Operation,
        tensors: Tensors<Self>,
        gradient: FloatTensor<Self>,
        wanted: Vec<bool>,
    ) -> Vec<Option<FloatTensor<Self>>> {
        if all_f32(tensors.0.iter().chain([&gradient])) {
            let tensors = tensors.0.into_iter().map(contiguous).collect();
            operation.backward(tensors, contiguous(gradient), &wanted)
        } else {
            operation.plain_backward::<Self>(tensors.0, gradient, &wanted)
        }
    }

    fn cached_attention(form: Attention, before: usize, room: usize, tensors: Tensors<Self>) -> Vec<FloatTensor<Self>> {
        if all_f32(&tensors.0) {
            attention::cache::attend(&form, before, room, tensors.0)
        } else {
            attention::cache::plain::<Self>(&form, before, tensors.0)
        }
    }

    fn tempered_softmax(logits: FloatTensor<Self>, temperature: f64) -> FloatTensor<Self> {
        cross_entropy::softmax(logits, temperature)
    }

    fn sinkhorn(logits: FloatTensor<Self>, temperature: f64, rounds: usize) -> FloatTensor<Self> {
        cross_entropy::sinkhorn(logits, temperature, rounds)
    }

    fn adamw(steps: Vec<AdamStep>, tensors: Tensors<Self>) -> Vec<FloatTensor<Self>> {
        update::adamw(&steps, tensors.0)
    }

    fn square_sums(tensors: Tensors<Self>) -> FloatTensor<Self> {
        update::square_sums(tensors.0)
    }

    fn average(momentum: f64, tensors: Tensors<Self>) -> Vec<FloatTensor<Self>> {
        update::average(momentum, tensors.0)
    }
}

#[cfg(any(feature = "vulkan", feature = "metal", feature = "cuda"))]
impl Kernels for burn::backend::Cube {}

impl<B: Backend + Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn run(operation: Operation, tensors: Tensors<Self>) -> FloatTensor<Self> {
        autodiff::tracked::<B, C>(operation, tensors.0)
    }

    /// Second derivatives are not part of any method here.
    fn gradients(_: Operation, _: Tensors<Self>, _: FloatTensor<Self>, _: Vec<bool>) -> Vec<Option<FloatTensor<Self>>> {
        panic!("the gradient of an operation cannot be differentiated again")
    }

    fn cached_attention(_: Attention, _: usize, _: usize, _: Tensors<Self>) -> Vec<FloatTensor<Self>> {
        untracked("cached_attention")
    }

    fn tempered_softmax(_: FloatTensor<Self>, _: f64) -> FloatTensor<Self> {
        untracked("tempered_softmax")
    }

    fn sinkhorn(_: FloatTensor<Self>, _: f64, _: usize) -> FloatTensor<Self> {
        untracked("sinkhorn")
    }

    fn adamw(_: Vec<AdamStep>, _: Tensors<Self>) -> Vec<FloatTensor<Self>> {
        untracked("adamw")
    }

    fn square_sums(_: Tensors<Self>) -> FloatTensor<Self> {
        untracked("square_sums")
    }

    fn average(_: f64, _: Tensors<Self>) -> Vec<FloatTensor<Self>> {
        untracked("average")
    }
}

/// What is called outside of gradients is called on tensors without them.
fn untracked<T>(operation: &str) -> T {
    panic!("{operation} is no part of a gradient: call it on untracked tensors")
}

/// Runs an operation on tensors of any number of dimensions.
fn run<const D: usize>(operation: impl Into<Operation>, tensors: Vec<FloatTensor<Dispatch>>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Kernels>::run(operation.into(), Tensors(tensors)))
}

/// Exact GELU of `x`, any shape: `x * Phi(x)` with the normal distribution function to 4e-7 relative in fp32.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    run(Gelu, vec![x.into_dispatch()])
}

/// A linear layer with what stands before and after it: `residual + layer_scale * (entry(x) weight^T + bias)`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor<2>,
    form: Form,
    bias: Option<Tensor<1>>,
    norm: Vec<Tensor<1>>,
    layer_scale: Option<Tensor<1>>,
    residual: Option<Tensor<2>>,
}

impl Linear {
    /// The product with an `[out, in]` weight.
    pub fn new(weight: Tensor<2>) -> Self {
        Self {
            weight,
            form: Form::default(),
            bias: None,
            norm: Vec::new(),
            layer_scale: None,
            residual: None,
        }
    }

    /// Adds a bias of `[out]`.
    #[must_use]
    pub fn bias(self, bias: Tensor<1>) -> Self {
        Self {
            bias: Some(bias),
            ..self
        }
    }

    /// Normalises each row of the input first (Ba et al. 2016), with a scale and a shift of `[in]`.
    #[must_use]
    pub fn layer_norm(mut self, scale: Tensor<1>, shift: Tensor<1>, epsilon: f64) -> Self {
        self.form.entry = Entry::LayerNorm { epsilon };
        self.norm = vec![scale, shift];
        self
    }

    /// Divides each row of the input by its root mean square first (Zhang and Sennrich 2019), with a scale of `[in]`.
    #[must_use]
    pub fn rms_norm(mut self, scale: Tensor<1>, epsilon: f64) -> Self {
        self.form.entry = Entry::RmsNorm { epsilon };
        self.norm = vec![scale];
        self
    }

    /// Does to the input what needs no vectors.
    fn entered_by(mut self, entry: Entry) -> Self {
        self.form.entry = entry;
        self.norm.clear();
        self
    }

    /// Applies exact GELU to the input first.
    #[must_use]
    pub fn gelu(self) -> Self {
        self.entered_by(Entry::Gelu)
    }

    /// Applies GELU by a hyperbolic tangent to the input first: GPT-2's, `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    #[must_use]
    pub fn gelu_tanh(self) -> Self {
        self.entered_by(Entry::GeluTanh)
    }

    /// Makes `silu(gate) * up` (SwiGLU, Shazeer 2020) of the input first, which then is `[rows, 2 * in]`: in each row the gate's
    /// numbers, then the others.
    #[must_use]
    pub fn swiglu(self) -> Self {
        self.entered_by(Entry::SwiGlu)
    }

    /// Multiplies the result by a LayerScale of `[out]` (Touvron et al. 2021).
    #[must_use]
    pub fn layer_scale(self, factors: Tensor<1>) -> Self {
        Self {
            layer_scale: Some(factors),
            ..self
        }
    }

    /// Adds the result to `residual`, `[rows, out]`.
    #[must_use]
    pub fn residual(self, residual: Tensor<2>) -> Self {
        Self {
            residual: Some(residual),
            ..self
        }
    }

    /// Runs the layer on `x`, `[rows, in]` (`[rows, 2 * in]` for SwiGLU); the result is `[rows, out]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn forward(self, x: Tensor<2>) -> Tensor<2> {
        let form = Form {
            bias: self.bias.is_some(),
            layer_scale: self.layer_scale.is_some(),
            residual: self.residual.is_some(),
            ..self.form
        };
        let vectors = self.bias.into_iter().chain(self.norm).chain(self.layer_scale);
        let mut tensors = vec![x.into_dispatch(), self.weight.into_dispatch()];
        tensors.extend(vectors.map(Tensor::into_dispatch));
        tensors.extend(self.residual.map(Tensor::into_dispatch));
        run(form, tensors)
    }
}

/// Softmax attention of packed queries, keys and values of `[rows, (heads + 2 kv_heads) * head_dim]`, with a bias of
/// `[groups, heads, tokens, tokens]` on the scores, see [`Attention`]; the result is `[rows, heads * head_dim]`.
pub fn attention(form: Attention, packed: Tensor<2>, bias: Option<Tensor<4>>) -> Tensor<2> {
    let mut tensors = vec![packed.into_dispatch()];
    tensors.extend(bias.map(Tensor::into_dispatch));
    run(form, tensors)
}

/// Softmax attention of new tokens over those in `cache` and themselves: `packed` holds their queries, keys and values as for
/// [`attention`], positions and all, and the keys and values are added to the cache. The result, `[rows, heads * head_dim]`, has no
/// gradient, and is what [`attention`] gives for these tokens at the end of the whole sequences.
///
/// # Panics
/// If the form is not causal or has sequences of several lengths, if its rows do not fit, or if the cache holds keys and values of
/// other sizes.
pub fn cached_attention(form: Attention, packed: Tensor<2>, cache: &mut KeyValues) -> Tensor<2> {
    cache.attend(form, packed)
}

/// Turns the queries and keys of packed rows, `[rows, (heads + 2 kv_heads) * head_dim]`, by their positions, see [`Rotary`]. The
/// result takes the memory of `packed` where nothing else holds it.
///
/// # Panics
/// If the shapes do not fit, or if there is not one frequency for each pair of a head's numbers.
pub fn rotary(form: Rotary, packed: Tensor<2>) -> Tensor<2> {
    form.check(packed.dims());
    run(form, vec![packed.into_dispatch()])
}

/// Cross-entropy of `[rows, columns]` logits against each tensor of targets, `[any, columns]`, see [`SoftTargets`]: for row `r`
/// and target row `t` it is `-sum_k t_k log softmax(logits_r / temperature)_k`. The result is `[sets, rows]`; targets are
/// constants.
pub fn soft_cross_entropy(form: SoftTargets, logits: Tensor<2>, targets: Vec<Tensor<2>>) -> Tensor<2> {
    let mut tensors = vec![logits.into_dispatch()];
    tensors.extend(
        targets
            .into_iter()
            .map(|targets| targets.without_autodiff().into_dispatch()),
    );
    run(form, tensors)
}

/// Cross-entropy of the rows of `[rows, vocabulary]` logits against one index each, `-log softmax(logits_r)[targets[r]]`. The
/// result is `[rows]`; a row without a target loses nothing and gets no gradient, whatever it holds. For a mean, divide the sum
/// by the number of rows that have one.
///
/// # Panics
/// If there is not one target for each row, or if one lies outside the vocabulary.
pub fn next_token_cross_entropy(logits: Tensor<2>, targets: impl Into<Arc<[Option<u32>]>>) -> Tensor<1> {
    let targets = targets.into();
    next_token::check(&targets, logits.dims());
    run(NextToken(targets), vec![logits.into_dispatch()])
}

/// Convolution of images of `[in, batch, height, width]` with a weight of `[out, in, window height, window width]` and a bias of
/// `[out]`, all channels with all: no groups, no dilation. The window moves by `stride` pixels over images with `padding` zeros
/// on every side; the result is `[out, batch, height, width]` with `(size + 2 padding - window) / stride + 1` pixels, rounded
/// down, along each dimension.
///
/// # Panics
/// If the shapes do not fit, if the stride is 0, or if the window is larger than a padded image.
pub fn convolution(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: usize,
) -> Tensor<4> {
    let window = Window { stride, padding };
    window.check(x.dims(), weight.dims(), bias.as_ref().map(|bias| bias.dims()[0]));
    let mut tensors = vec![x.into_dispatch(), weight.into_dispatch()];
    tensors.extend(bias.map(Tensor::into_dispatch));
    run(window, tensors)
}

/// Softmax of the rows of `logits / temperature`, as constants.
pub fn tempered_softmax(logits: Tensor<2>, temperature: f64) -> Tensor<2> {
    let logits = logits.without_autodiff().into_dispatch();
    Tensor::from_dispatch(<Dispatch as Kernels>::tempered_softmax(logits, temperature))
}

/// Sinkhorn-Knopp targets of `[rows, columns]` logits, as constants: `rounds` rounds that even out the columns of
/// `exp(logits / temperature)`, then its rows. Every row of the result sums to 1; adding a number to all logits changes nothing.
pub fn sinkhorn(logits: Tensor<2>, temperature: f64, rounds: usize) -> Tensor<2> {
    let logits = logits.without_autodiff().into_dispatch();
    Tensor::from_dispatch(<Dispatch as Kernels>::sinkhorn(logits, temperature, rounds))
}

/// Slices of the matrix whose elements are `whole`, row by row, times a factor, see [`Cut`]; flat, too.
///
/// # Panics
/// If `whole` has not as many elements, or a run lies outside.
pub fn cut(form: Cut, whole: Tensor<1>) -> Tensor<1> {
    run(form, vec![whole.into_dispatch()])
}

/// The matrices of some experts, one after the other, flat, as mixes of the same slices, see [`Mix`]: `coefficients` are
/// `[experts, sections, slices]`, `slices` the elements of one slice after the other, both flat.
///
/// # Panics
/// If the numbers of elements do not fit.
pub fn mix(form: Mix, coefficients: Tensor<1>, slices: Tensor<1>) -> Tensor<1> {
    form.check(coefficients.dims()[0], slices.dims()[0]);
    run(form, vec![coefficients.into_dispatch(), slices.into_dispatch()])
}

/// The gradients of coefficients and slices of [`mix`] for `gradient` of its result; they are no part of a gradient themselves.
///
/// # Panics
/// If the numbers of elements do not fit.
pub fn mix_gradients(form: Mix, coefficients: Tensor<1>, slices: Tensor<1>, gradient: Tensor<1>) -> [Tensor<1>; 2] {
    form.check(coefficients.dims()[0], slices.dims()[0]);
    let tensors = gathered([coefficients, slices]);
    let gradient = gradient.into_dispatch();
    let found = <Dispatch as Kernels>::gradients(form.into(), tensors, gradient, vec![true; 2]);
    let mut found = found.into_iter().flatten().map(Tensor::from_dispatch);
    std::array::from_fn(|_| found.next().expect("both are wanted"))
}

/// [`mix`] of one expert on the host, to the same bits as on the CPU device.
///
/// # Panics
/// If the numbers of elements do not fit.
pub fn mixed_on_host(form: Mix, coefficients: &[f32], slices: &[f32]) -> Vec<f32> {
    form.mixed(coefficients, slices)
}

/// The gradient of the whole of [`cut`] for `gradient` of the slices; it is no part of a gradient itself.
///
/// # Panics
/// If `gradient` has not as many elements as the slices.
pub fn cut_gradient(form: Cut, gradient: Tensor<1>) -> Tensor<1> {
    form.check_gradient(gradient.dims()[0]);
    let found = <Dispatch as Kernels>::gradients(form.into(), gathered([]), gradient.into_dispatch(), vec![true]);
    let whole = found.into_iter().flatten().next().expect("it is wanted");
    Tensor::from_dispatch(whole)
}

/// Rows of `x`, `[n, width]`, as they are asked for: row `i` of the result, `[rows, width]`, is row `rows[i]` of `x`, or zeros
/// where that is none. The gradients of a row that is used several times are added in the order of `i`. Steps that gather the
/// same rows should share one [`Rows`].
///
/// # Panics
/// If a row lies outside `x`.
pub fn gather_rows(x: Tensor<2>, rows: impl Into<Rows>) -> Tensor<2> {
    let form = Gather::new(rows.into(), x.dims());
    run(form, vec![x.into_dispatch()])
}

/// GroupNorm of `x`, `[channels, batch, height, width]`, with a scale and a shift of `[channels]`; then `residual`, which has the
/// shape of `x`, is added, and then comes the ReLU, each where there is one.
///
/// # Panics
/// If the shapes do not fit, or if the channels cannot be split into groups of equal size.
pub fn group_norm(
    form: GroupNorm,
    x: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
) -> Tensor<4> {
    let [scales, shifts] = [&scale, &shift].map(|vector| vector.dims()[0]);
    form.check(x.dims(), scales, shifts, residual.as_ref().map(Tensor::dims));
    let mut tensors = vec![x.into_dispatch(), scale.into_dispatch(), shift.into_dispatch()];
    tensors.extend(residual.map(Tensor::into_dispatch));
    run(form, tensors)
}

/// Several untracked tensors as one argument.
fn gathered(tensors: impl IntoIterator<Item = Tensor<1>>) -> Tensors<Dispatch> {
    Tensors(tensors.into_iter().map(Tensor::into_dispatch).collect())
}

/// One AdamW update of as many tensors as there are `steps`; gives weights, first and second moments.
pub fn adamw(
    steps: Vec<AdamStep>,
    weights: Vec<Tensor<1>>,
    moments: [Vec<Tensor<1>>; 2],
    gradients: Vec<Tensor<1>>,
) -> [Vec<Tensor<1>>; 3] {
    let n = steps.len();
    if n == 0 {
        return Default::default();
    }
    let tensors = gathered(
        weights
            .into_iter()
            .chain(moments.into_iter().flatten())
            .chain(gradients),
    );
    let updated = <Dispatch as Kernels>::adamw(steps, tensors);
    let mut updated = updated.into_iter().map(Tensor::from_dispatch);
    std::array::from_fn(|_| updated.by_ref().take(n).collect())
}

/// The sum of squares of each tensor, `[tensors]`.
///
/// # Panics
/// If there are none.
pub fn square_sums(tensors: Vec<Tensor<1>>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as Kernels>::square_sums(gathered(tensors)))
}

/// `momentum * average + (1 - momentum) * weight` of each pair.
pub fn average(momentum: f64, averages: Vec<Tensor<1>>, weights: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
    if averages.is_empty() {
        return averages;
    }
    let tensors = gathered(averages.into_iter().chain(weights));
    let averages = <Dispatch as Kernels>::average(momentum, tensors);
    averages.into_iter().map(Tensor::from_dispatch).collect()
}
