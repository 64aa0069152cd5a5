//! Fused tensor operations for the CPU behind one small face, each with a plain fallback for other devices.
//!
//! An operation is here because a profile asked for it; what it bought is in `docs/log`. [`Kernels`] is an extension of the
//! tensor library's backends: the CPU backend has its own code, every other backend the plain operations of the trait's
//! defaults, and gradients are written once for all of them. Results do not depend on the number of threads.

mod attention;
mod gelu;
pub mod gemm;
mod linear;
mod norm;
mod slices;
mod tensors;
mod vector;

pub use attention::Attention;
pub use linear::{Entry, Form, Wanted};
pub use tensors::Tensors;
pub use vector::{PATH_VARIABLE, Path, with_path};

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

/// The operations, with plain fallbacks.
#[backend_extension(
    Autodiff,
    Flex,
    Cube: cfg(any(feature = "vulkan", feature = "metal", feature = "cuda"))
)]
pub trait Kernels: Backend {
    /// Exact GELU: `x * Phi(x)`.
    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gelu(x)
    }

    /// The gradient of [`exact_gelu`](Self::exact_gelu) at `x`, times `gradient`.
    fn exact_gelu_backward(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gelu_backward(x, gradient)
    }

    /// A fused linear layer, see [`Form`]; the result is `[rows, out]`.
    fn fused_linear(form: Form, #[extension_type] tensors: Tensors<Self>) -> FloatTensor<Self> {
        linear::plain::<Self>(form, tensors.0)
    }

    /// The gradients of [`fused_linear`](Self::fused_linear) for its `tensors`, all but the residual, whose gradient is `gradient`.
    fn fused_linear_backward(
        form: Form,
        #[extension_type] tensors: Tensors<Self>,
        gradient: FloatTensor<Self>,
        wanted: Wanted,
    ) -> Vec<Option<FloatTensor<Self>>> {
        linear::plain_backward::<Self>(form, tensors.0, gradient, wanted)
    }

    /// Softmax attention of packed queries, keys and values, see [`Attention`]; the result is `[rows, heads * head_dim]`.
    fn fused_attention(form: Attention, #[extension_type] tensors: Tensors<Self>) -> FloatTensor<Self> {
        attention::plain::<Self>(form, tensors.0)
    }

    /// The gradients of [`fused_attention`](Self::fused_attention) for its `tensors`.
    fn fused_attention_backward(
        form: Attention,
        #[extension_type] tensors: Tensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> Vec<FloatTensor<Self>> {
        attention::plain_backward::<Self>(form, tensors.0, gradient)
    }
}

impl Kernels for Flex {
    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::forward(x)
    }

    fn exact_gelu_backward(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::backward(x, gradient)
    }

    fn fused_linear(form: Form, tensors: Tensors<Self>) -> FloatTensor<Self> {
        linear::forward(form, tensors.0)
    }

    fn fused_linear_backward(
        form: Form,
        tensors: Tensors<Self>,
        gradient: FloatTensor<Self>,
        wanted: Wanted,
    ) -> Vec<Option<FloatTensor<Self>>> {
        linear::backward(form, tensors.0, gradient, wanted)
    }

    fn fused_attention(form: Attention, tensors: Tensors<Self>) -> FloatTensor<Self> {
        attention::forward(form, tensors.0)
    }

    fn fused_attention_backward(
        form: Attention,
        tensors: Tensors<Self>,
        gradient: FloatTensor<Self>,
    ) -> Vec<FloatTensor<Self>> {
        attention::backward(form, tensors.0, gradient)
    }
}

#[cfg(any(feature = "vulkan", feature = "metal", feature = "cuda"))]
impl Kernels for burn::backend::Cube {}

impl<B: Backend + Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::tracked::<B, C>(x)
    }

    fn exact_gelu_backward(_: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        unimplemented_twice("exact_gelu")
    }

    fn fused_linear(form: Form, tensors: Tensors<Self>) -> FloatTensor<Self> {
        linear::tracked::<B, C>(form, tensors.0)
    }

    fn fused_linear_backward(
        _: Form,
        _: Tensors<Self>,
        _: FloatTensor<Self>,
        _: Wanted,
    ) -> Vec<Option<FloatTensor<Self>>> {
        unimplemented_twice("fused_linear")
    }

    fn fused_attention(form: Attention, tensors: Tensors<Self>) -> FloatTensor<Self> {
        attention::tracked::<B, C>(form, tensors.0)
    }

    fn fused_attention_backward(_: Attention, _: Tensors<Self>, _: FloatTensor<Self>) -> Vec<FloatTensor<Self>> {
        unimplemented_twice("fused_attention")
    }
}

/// Second derivatives are not part of any method here.
fn unimplemented_twice<T>(operation: &str) -> T {
    panic!("the gradient of {operation} cannot be differentiated again")
}

/// Exact GELU of `x`, any shape: `x * Phi(x)` with the normal distribution function to 4e-7 relative in fp32.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Kernels>::exact_gelu(x.into_dispatch()))
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

    /// Applies exact GELU to the input first.
    #[must_use]
    pub fn gelu(mut self) -> Self {
        self.form.entry = Entry::Gelu;
        self.norm.clear();
        self
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

    /// Runs the layer on `x`, `[rows, in]`; the result is `[rows, out]`.
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
        Tensor::from_dispatch(<Dispatch as Kernels>::fused_linear(form, Tensors(tensors)))
    }
}

/// Softmax attention of packed queries, keys and values of `[rows, (heads + 2 kv_heads) * head_dim]`, with a bias of
/// `[groups, heads, tokens, tokens]` on the scores, see [`Attention`]; the result is `[rows, heads * head_dim]`.
pub fn attention(form: Attention, packed: Tensor<2>, bias: Option<Tensor<4>>) -> Tensor<2> {
    let tensors = [Some(packed.into_dispatch()), bias.map(Tensor::into_dispatch)];
    let tensors = Tensors(tensors.into_iter().flatten().collect());
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_attention(form, tensors))
}
