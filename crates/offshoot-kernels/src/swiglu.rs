//! SwiGLU (Shazeer 2020): `silu(gate) * up` with `silu(x) = x * sigmoid(x)`, forward and backward in one pass each. A row holds
//! the gate's numbers, then as many of the other branch.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{Shape, Slice};

use crate::vector::exp_negative;

/// `silu(x)` and its slope.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let e = exp_negative(-x.abs());
    let share = 1.0 / (1.0 + e);
    let lower = e * share;
    let sigmoid = if x < 0.0 { lower } else { share };
    (x * sigmoid, x.mul_add(lower * share, sigmoid))
}

/// `silu(gate) * up` of rows of `2 * width` numbers.
#[inline(always)]
pub(crate) fn values(x: &[f32], width: usize, out: &mut [f32]) {
    for (x, out) in x
        .chunks_exact((2 * width).max(1))
        .zip(out.chunks_exact_mut(width.max(1)))
    {
        let (gate, up) = x.split_at(width);
        for ((y, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *y = silu(gate).0 * up;
        }
    }
}

/// The gradients of gates and others for `d_out`, to `dx` in rows like those of `x`; `out`, where it is given, becomes
/// `silu(gate) * up` from the same exponential.
#[inline(always)]
pub(crate) fn gradient(x: &[f32], width: usize, d_out: &[f32], dx: &mut [f32], mut out: Option<&mut [f32]>) {
    let rows = x.chunks_exact((2 * width).max(1)).zip(d_out.chunks_exact(width.max(1)));
    for (r, ((x, d_out), dx)) in rows.zip(dx.chunks_exact_mut((2 * width).max(1))).enumerate() {
        let ((gate, up), (d_gate, d_up)) = (x.split_at(width), dx.split_at_mut(width));
        if let Some(out) = &mut out {
            let out = &mut out[r * width..][..width];
            let rows = d_gate.iter_mut().zip(d_up).zip(out).zip(gate).zip(up).zip(d_out);
            for (((((d_gate, d_up), y), &gate), &up), &d) in rows {
                let (silu, slope) = silu(gate);
                *y = silu * up;
                *d_gate = d * up * slope;
                *d_up = d * silu;
            }
        } else {
            let rows = d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(d_out);
            for ((((d_gate, d_up), &gate), &up), &d) in rows {
                let (silu, slope) = silu(gate);
                *d_gate = d * up * slope;
                *d_up = d * silu;
            }
        }
    }
}

/// Gates and others of `[rows, 2 * width]`.
fn halves<B: Backend>(x: FloatTensor<B>) -> [FloatTensor<B>; 2] {
    let [rows, columns] = x.shape().dims();
    let width = columns / 2;
    if rows == 0 {
        // A part of nothing lies outside it, for some backends.
        return [(); 2].map(|()| B::float_reshape(x.clone(), Shape::new([0, width])));
    }
    [0, width].map(|first| B::float_slice(x.clone(), &[Slice::full(), Slice::from(first..first + width)]))
}

/// The function in plain operations.
pub(crate) fn plain<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [gate, up] = halves::<B>(x);
    B::float_mul(B::float_mul(gate.clone(), B::sigmoid(gate)), up)
}

/// The gradient of `x` for that of the function, in plain operations.
pub(crate) fn plain_backward<B: Backend>(x: FloatTensor<B>, d_out: FloatTensor<B>) -> FloatTensor<B> {
    let [gate, up] = halves::<B>(x);
    let sigmoid = B::sigmoid(gate.clone());
    let rest = B::float_add_scalar(B::float_neg(sigmoid.clone()), 1.0.into());
    let silu = B::float_mul(gate.clone(), sigmoid.clone());
    let slope = B::float_mul(B::float_mul(gate, sigmoid.clone()), rest);
    let slope = B::float_add(slope, sigmoid);
    let d_gate = B::float_mul(B::float_mul(d_out.clone(), up), slope);
    B::float_cat(vec![d_gate, B::float_mul(d_out, silu)], 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_and_its_slope_are_exact_to_a_few_units_in_the_last_place() {
        for i in -80_000..80_000i32 {
            let x = i as f32 * 1e-3;
            let wide = f64::from(x);
            let sigmoid = 1.0 / (1.0 + (-wide).exp());
            let (value, slope) = (wide * sigmoid, sigmoid * (1.0 + wide * (1.0 - sigmoid)));
            let ours = silu(x);
            assert!((f64::from(ours.0) - value).abs() <= 4e-7 * value.abs(), "{x}: {ours:?}");
            assert!((f64::from(ours.1) - slope).abs() <= 4e-7, "{x}: {ours:?}");
        }
        assert_eq!(silu(1e30), (1e30, 1.0));
        assert_eq!(silu(-1e30), (0.0, 0.0));
        assert!(silu(f32::NEG_INFINITY).0.is_nan() && silu(f32::NAN).0.is_nan());
    }
}
