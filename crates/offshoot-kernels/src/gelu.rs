//! Exact GELU, forward and backward in one pass each: one exponential serves the distribution function and the density.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};

use crate::operation::{Gelu, Kernel};
use crate::slices::{self, only, owned, tensor};
use crate::vector::{self, exp_negative};

/// `Phi(-z) * exp(z^2 / 2) = t * (C[0] + C[1] t + ...)` with `t = 1 / (1 + P z)` for `z >= 0`: fitted to 1.6e-8 relative
/// over 0..14, beyond which `Phi(-z)` is zero in fp32 sums. Unlike `1 + erf`, it loses nothing to cancellation in the tail.
const P: f32 = 0.21;
const C: [f32; 9] = [
    0.083_711_57,
    0.085_068_956,
    0.069_191_52,
    0.124_875_11,
    -0.093_930_535,
    0.349_408_4,
    -0.330_259_6,
    0.283_591_48,
    -0.071_656_89,
];
/// 1 / sqrt(2 pi).
const DENSITY: f32 = 0.398_942_3;

/// The normal distribution function at `x`, and `exp(-x^2 / 2)`.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let bell = exp_negative(-0.5 * x * x);
    let t = 1.0 / P.mul_add(x.abs(), 1.0);
    let mut series = C[8];
    for c in C[..8].iter().rev() {
        series = series.mul_add(t, *c);
    }
    let tail = bell * series * t;
    (if x < 0.0 { tail } else { 1.0 - tail }, bell)
}

/// `x * Phi(x)` of each element.
#[inline(always)]
pub(crate) fn values(x: &[f32], out: &mut [f32]) {
    for (y, &x) in out.iter_mut().zip(x) {
        *y = x * normal(x).0;
    }
}

/// Multiplies `gradient` by `Phi(x) + x * phi(x)`; `out`, where it is given, becomes `x * Phi(x)` from the same exponential.
#[inline(always)]
pub(crate) fn gradient(x: &[f32], gradient: &mut [f32], out: Option<&mut [f32]>) {
    match out {
        Some(out) => {
            for ((g, y), &x) in gradient.iter_mut().zip(out).zip(x) {
                let (distribution, bell) = normal(x);
                *y = x * distribution;
                *g *= (DENSITY * x).mul_add(bell, distribution);
            }
        }
        None => {
            for (g, &x) in gradient.iter_mut().zip(x) {
                let (distribution, bell) = normal(x);
                *g *= (DENSITY * x).mul_add(bell, distribution);
            }
        }
    }
}

impl Kernel for Gelu {
    #[expect(
        clippy::redundant_closure,
        reason = "a function as such is not inlined into the vectorised loop"
    )]
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        let x = &tensors[0];
        let y = vector::map(
            slices::values(x),
            #[inline(always)]
            |x, y| values(x, y),
        );
        tensor(y, x.shape())
    }

    /// In the gradient's memory where nothing else holds it.
    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        d: FloatTensor<Flex>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let x = slices::values(&tensors[0]);
        let mut d = owned(d);
        vector::update(
            d.storage_mut(),
            #[inline(always)]
            |start, d| gradient(&x[start..][..d.len()], d, None),
        );
        vec![Some(d)]
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        B::gelu(only(tensors))
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        vec![Some(B::gelu_backward(only(tensors), gradient))]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData, activation};

    use crate::gelu;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    fn grid() -> Tensor<1> {
        let x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 3.7e-4).collect();
        let n = x.len();
        Tensor::from_data(TensorData::new(x, [n]), &Device::flex())
    }

    /// Against the tensor library's own, which is libm's erf.
    #[test]
    fn values_and_gradients_are_those_of_the_plain_operation() {
        let track = |x: Tensor<1>| x.autodiff().require_grad();
        let (ours, plain) = (track(grid()), track(grid()));
        let (y, expected) = (gelu(ours.clone()), activation::gelu(plain.clone()));
        let worst = |a: Vec<f32>, b: Vec<f32>| {
            a.iter()
                .zip(&b)
                .map(|(a, b)| (a - b).abs() / b.abs().max(1.0))
                .fold(0.0, f32::max)
        };
        assert!(worst(values(y.clone().inner()), values(expected.clone().inner())) < 5e-7);
        // A gradient that differs from element to element.
        let weight = grid().cos();
        let mut gradients = (y * weight.clone().autodiff()).sum().backward();
        let mut expected_gradients = (expected * weight.autodiff()).sum().backward();
        let ours = values(ours.grad_remove(&mut gradients).unwrap());
        let plain = values(plain.grad_remove(&mut expected_gradients).unwrap());
        assert!(worst(ours, plain) < 1e-6);
    }

    #[test]
    fn the_tail_keeps_its_digits() {
        // x * Phi(x) in float64 at -3, -5 and -8.
        let x = Tensor::<1>::from_data([-3.0f32, -5.0, -8.0], &Device::flex());
        for (y, exact) in values(gelu(x))
            .into_iter()
            .zip([-4.049_694e-3, -1.433_257_9e-6, -4.976_768_5e-15f64])
        {
            assert!(((f64::from(y) - exact) / exact).abs() < 2e-6, "{y:e} against {exact:e}");
        }
    }

    #[test]
    fn shapes_strides_and_parts_do_not_matter() {
        let x = grid().reshape([200, 400]);
        let expected = values(activation::gelu(x.clone().transpose()));
        let ours = values(gelu(x.clone().transpose()));
        assert!(ours.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 5e-6));
        let part = x.clone().slice([10..20, 0..400]);
        assert_eq!(values(gelu(part)), values(gelu(x).slice([10..20, 0..400])));
        assert!(values(gelu(Tensor::<1>::from_data([f32::NAN], &Device::flex())))[0].is_nan());
        let ends = values(gelu(Tensor::<1>::from_data(
            [f32::INFINITY, 0.0, -0.0, 1e30],
            &Device::flex(),
        )));
        assert_eq!(ends, [f32::INFINITY, 0.0, 0.0, 1e30]);
    }
}
