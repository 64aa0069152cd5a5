//! Fused tensor operations for the CPU behind one small face, each with a plain fallback for other devices.
//!
//! An operation is here because a profile asked for it; what it bought is in `docs/log`. [`Kernels`] is an extension of the
//! tensor library's backends: the CPU backend has its own code, every other backend the plain operations of the trait's
//! defaults, and gradients are written once for all of them. Results do not depend on the number of threads.

mod gelu;
mod vector;

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
}

impl Kernels for Flex {
    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::forward(x)
    }

    fn exact_gelu_backward(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::backward(x, gradient)
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
}

/// Second derivatives are not part of any method here.
fn unimplemented_twice<T>(operation: &str) -> T {
    panic!("the gradient of {operation} cannot be differentiated again")
}

/// Exact GELU of `x`, any shape: `x * Phi(x)` with the normal distribution function to 4e-7 relative in fp32.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Kernels>::exact_gelu(x.into_dispatch()))
}
