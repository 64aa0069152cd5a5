//! LayerNorm and RMSNorm of rows, forward and backward in one pass each; what a row's statistics were is found again, not kept.

use crate::vector::{dot, sum_of};

/// Which statistics a row is normalised by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Norm {
    /// Whether the mean is subtracted: LayerNorm does, RMSNorm does not.
    pub(crate) centred: bool,
    /// Added to the variance.
    pub(crate) epsilon: f32,
}

impl Norm {
    /// Mean and reciprocal deviation of a row.
    #[inline(always)]
    fn statistics(self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = if self.centred {
            sum_of(row.len(), |i| row[i]) / n
        } else {
            0.0
        };
        let variance = sum_of(row.len(), |i| (row[i] - mean) * (row[i] - mean)) / n;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }

    /// Rows of `x` as `(x - mean) / deviation * scale + shift`.
    #[inline(always)]
    pub(crate) fn forward(self, x: &[f32], scale: &[f32], shift: Option<&[f32]>, out: &mut [f32]) {
        let width = scale.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let (mean, factor) = self.statistics(x);
            match shift {
                Some(shift) => {
                    for (((y, &x), &scale), &shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                        *y = ((x - mean) * factor).mul_add(scale, shift);
                    }
                }
                None => {
                    for ((y, &x), &scale) in out.iter_mut().zip(x).zip(scale) {
                        *y = (x - mean) * factor * scale;
                    }
                }
            }
        }
    }

    /// Turns the `gradient` of the result into that of `x`, and adds those of scale and shift to `d_scale` and `d_shift`. Where
    /// it is given, `out` becomes the result itself once more.
    #[inline(always)]
    pub(crate) fn backward(
        self,
        x: &[f32],
        (scale, shift): (&[f32], Option<&[f32]>),
        gradient: &mut [f32],
        (d_scale, d_shift): (&mut [f32], &mut [f32]),
        mut out: Option<&mut [f32]>,
    ) {
        let width = scale.len();
        let n = width as f32;
        for (r, (x, g)) in x.chunks_exact(width).zip(gradient.chunks_exact_mut(width)).enumerate() {
            let (mean, factor) = self.statistics(x);
            if let Some(out) = &mut out {
                let out = &mut out[r * width..][..width];
                for i in 0..width {
                    let y = (x[i] - mean) * factor * scale[i];
                    out[i] = shift.map_or(y, |shift| y + shift[i]);
                }
            }
            for i in 0..width {
                d_scale[i] += g[i] * ((x[i] - mean) * factor);
                d_shift[i] += g[i];
                g[i] *= scale[i];
            }
            let along = dot_normal(g, x, mean) * factor / n;
            let common = if self.centred { sum_of(width, |i| g[i]) / n } else { 0.0 };
            for i in 0..width {
                g[i] = (g[i] - common - (x[i] - mean) * factor * along) * factor;
            }
        }
    }
}

/// The product of `g` and `x - mean`.
#[inline(always)]
fn dot_normal(g: &[f32], x: &[f32], mean: f32) -> f32 {
    if mean == 0.0 {
        return dot(g, x);
    }
    sum_of(g.len(), |i| g[i] * (x[i] - mean))
}
