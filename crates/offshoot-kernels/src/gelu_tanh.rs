//! GELU by a hyperbolic tangent (Hendrycks and Gimpel 2016, section 2), GPT-2's: `0.5 x (1 + tanh(u))` with
//! `u = sqrt(2 / pi) (x + 0.044715 x^3)`, forward and backward in one pass each.
//!
//! It is `x * sigmoid(2 u)`, so that `exp(-2 |u|)` serves value and slope, and nothing cancels where `tanh` is almost -1. There the
//! exponential multiplies each rounding of `u` by `2 |u|`, so `u` is found in two parts.

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

/// `2 sqrt(2 / pi) / ln 2`, and that times 0.044715, each with what it lacks: `2 u / ln 2` is `x (FIRST + THIRD x^2)`.
const FIRST: f32 = 2.302_208_2;
const FIRST_LOW: f32 = 1.294_840_2e-8;
const THIRD: f32 = 0.102_943_24;
const THIRD_LOW: f32 = -2.016_198_5e-9;
/// `2 sqrt(2 / pi)`, and that times `3 * 0.044715`: the slope of `2 u` is `SLOPE + SLOPE_SQUARE x^2`.
const SLOPE: f32 = 1.595_769;
const SLOPE_SQUARE: f32 = 0.214_064_45;
/// Beyond, the exponential is zero in fp32.
const FAR: f32 = 12.0;

/// `2^f - 1` for `-1/2 <= f <= 1/2` by powers of `f` from the first on: fitted to 1.7e-8 of `2^f`.
const POWERS: [f32; 6] = [
    std::f32::consts::LN_2,
    0.240_226_48,
    0.055_503_32,
    0.009_618_439,
    0.001_339_900_3,
    0.000_153_532_47,
];

/// `2^(whole + low)` for `whole <= 0`; 0 where `whole` is below -126, NaN of NaN.
#[inline(always)]
fn power_of_two(whole: f32, low: f32) -> f32 {
    /// Bits of 1.5 * 2^23: adding it to a small number rounds that to a whole one in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if whole < -126.0 { -126.0 } else { whole };
    let shifted = clamped + ROUND;
    let f = (clamped - (shifted - ROUND)) + low;
    let mut series = POWERS[5];
    for power in POWERS[..5].iter().rev() {
        series = series.mul_add(f, *power);
    }
    let series = series.mul_add(f, 1.0);
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if whole < -126.0 { 0.0 } else { series * scale }
}

/// `sigmoid(2 u)` and its slope.
#[inline(always)]
fn gate(x: f32) -> (f32, f32) {
    let near = x.clamp(-FAR, FAR);
    let square = near * near;
    let square_low = near.mul_add(near, -square);
    let third = THIRD * square;
    let third_low = THIRD.mul_add(square, -third);
    // The sum of both and its rounding error, whichever is larger (Knuth's TwoSum).
    let sum = FIRST + third;
    let part = sum - FIRST;
    let sum_low = (FIRST - (sum - part)) + (third - part);
    let sum_low = sum_low + THIRD.mul_add(square_low, THIRD_LOW.mul_add(square, third_low + FIRST_LOW));
    let below = -near.abs();
    let exponent = sum * below;
    let exponent_low = sum_low.mul_add(below, sum.mul_add(below, -exponent));
    let e = power_of_two(exponent, exponent_low);
    let share = 1.0 / (1.0 + e);
    let lower = e * share;
    (
        if x < 0.0 { lower } else { share },
        lower * share * SLOPE_SQUARE.mul_add(square, SLOPE),
    )
}

/// The function of each element.
#[inline(always)]
pub(crate) fn values(x: &[f32], out: &mut [f32]) {
    for (y, &x) in out.iter_mut().zip(x) {
        *y = x * gate(x).0;
    }
}

/// Multiplies `gradient` by the function's slope; `out`, where it is given, becomes the function from the same exponential.
#[inline(always)]
pub(crate) fn gradient(x: &[f32], gradient: &mut [f32], out: Option<&mut [f32]>) {
    match out {
        Some(out) => {
            for ((g, y), &x) in gradient.iter_mut().zip(out).zip(x) {
                let (gate, slope) = gate(x);
                *y = x * gate;
                *g *= x.mul_add(slope, gate);
            }
        }
        None => {
            for (g, &x) in gradient.iter_mut().zip(x) {
                let (gate, slope) = gate(x);
                *g *= x.mul_add(slope, gate);
            }
        }
    }
}

/// `(1 + tanh(u)) / 2`.
fn plain_gate<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let cube = B::float_mul(B::float_mul(x.clone(), x.clone()), x.clone());
    let u = B::float_add(x, B::float_mul_scalar(cube, 0.044715.into()));
    let tanh = B::float_tanh(B::float_mul_scalar(u, f64::from(SLOPE / 2.0).into()));
    B::float_mul_scalar(B::float_add_scalar(tanh, 1.0.into()), 0.5.into())
}

/// The function in plain operations.
pub(crate) fn plain<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_mul(x.clone(), plain_gate::<B>(x))
}

/// `gradient` times the function's slope in plain operations.
pub(crate) fn plain_backward<B: Backend>(x: FloatTensor<B>, gradient: FloatTensor<B>) -> FloatTensor<B> {
    let gate = plain_gate::<B>(x.clone());
    let rest = B::float_add_scalar(B::float_neg(gate.clone()), 1.0.into());
    // A square of large numbers must not become infinite: the gate does not move there.
    let near = B::float_clamp(x.clone(), (-FAR).into(), FAR.into());
    let slope = B::float_mul_scalar(B::float_mul(near.clone(), near), f64::from(SLOPE_SQUARE).into());
    let slope = B::float_add_scalar(slope, f64::from(SLOPE).into());
    let slope = B::float_mul(B::float_mul(gate.clone(), rest), slope);
    B::float_mul(gradient, B::float_add(gate, B::float_mul(x, slope)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Value and slope in float64.
    fn exact(x: f64) -> [f64; 2] {
        let c = (2.0 / std::f64::consts::PI).sqrt();
        let gate = 1.0 / (1.0 + (-2.0 * c * (x + 0.044715 * x.powi(3))).exp());
        let slope = 2.0 * c * (1.0 + 3.0 * 0.044715 * x * x);
        [x * gate, gate + x * gate * (1.0 - gate) * slope]
    }

    fn ours(x: f32) -> [f32; 2] {
        let (mut y, mut d) = ([0.0], [1.0]);
        values(&[x], &mut y);
        let mut again = [0.0];
        gradient(&[x], &mut d, Some(&mut again));
        assert!(y == again || y[0].is_nan() && again[0].is_nan());
        let mut alone = [1.0];
        gradient(&[x], &mut alone, None);
        assert!(d == alone || d[0].is_nan() && alone[0].is_nan());
        [y[0], d[0]]
    }

    #[test]
    fn values_keep_their_digits_far_into_the_tail() {
        for i in -94_000..200_000i32 {
            let x = i as f32 * 1e-4;
            let ([y, d], [exact_y, exact_d]) = (ours(x), exact(f64::from(x)));
            let worst = 2.5e-7 * exact_y.abs();
            assert!((f64::from(y) - exact_y).abs() <= worst, "{x}: {y:e} for {exact_y:e}");
            assert!(
                (f64::from(d) - exact_d).abs() <= 3e-7,
                "{x}: slope {d:e} for {exact_d:e}"
            );
        }
    }

    #[test]
    fn the_ends_are_those_of_the_definition() {
        assert_eq!(ours(0.0), [0.0, 0.5]);
        assert_eq!(ours(1e30), [1e30, 1.0]);
        assert_eq!(ours(-1e30), [0.0, 0.0]);
        assert_eq!(ours(f32::INFINITY)[0], f32::INFINITY);
        assert!(ours(f32::NEG_INFINITY)[0].is_nan());
        assert!(ours(f32::NAN).into_iter().all(f32::is_nan));
    }
}
