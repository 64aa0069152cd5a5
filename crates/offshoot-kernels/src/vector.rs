//! Loops over long slices: vectorised for the CPU at hand, and split over its cores by one rule.

use pulp::Arch;
use rayon::prelude::*;

/// Elements of one piece of work. Pieces are cut by this number alone, so that results do not depend on the number of threads.
const PIECE: usize = 1 << 14;

/// Runs `piece` on matching pieces of `output` and `input`.
pub(crate) fn map(input: &[f32], output: &mut [f32], piece: impl Fn(&[f32], &mut [f32]) + Sync) {
    let arch = Arch::new();
    output
        .par_chunks_mut(PIECE)
        .zip(input.par_chunks(PIECE))
        .for_each(|(output, input)| {
            arch.dispatch(
                #[inline(always)]
                || piece(input, output),
            );
        });
}

/// Bits of 1.5 * 2^23: adding it to a small number rounds that to a whole one in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `exp(x)` for `x <= 0`, to about 1e-7 relative; 0 below -87. Without branches, so that loops over it become vectors.
#[inline(always)]
pub(crate) fn exp_negative(x: f32) -> f32 {
    let clamped = x.max(-87.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n * ln 2 is exact in the first.
    let r = n.mul_add(-0.693_145_75, clamped);
    let r = n.mul_add(-1.428_606_8e-6, r);
    let p = r.mul_add(1.388_888_9e-3, 8.333_334e-3);
    let p = p.mul_add(r, 4.166_666_8e-2);
    let p = p.mul_add(r, 1.666_666_7e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    // 2^n by its exponent bits; the low bits of `shifted` hold n.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = 0.0f64;
        while x > -86.9 {
            let (ours, exact) = (f64::from(exp_negative(x as f32)), f64::from(x as f32).exp());
            assert!(
                (ours - exact).abs() <= 2.5e-7 * exact,
                "exp({x}): {ours:e} against {exact:e}"
            );
            x -= 0.001_37;
        }
        assert_eq!(exp_negative(-100.0), 0.0);
        assert_eq!(exp_negative(f32::NEG_INFINITY), 0.0);
    }
}
