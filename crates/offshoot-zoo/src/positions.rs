//! Learned positions at another image size: bicubic resampling as a fixed matrix, so that it is exact and differentiable.

/// Weights of the four taps around a source position with fraction `t`: cubic convolution with a = -0.75, as PyTorch has it.
fn taps(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

/// The `[side, n]` matrix that resamples `n` positions on a line to `side`: no antialias, borders repeated.
///
/// With an offset the scale handed to the resampler is `(side + offset) / n` (DINO's "+0.1" trick), hence the source
/// coordinate `(o + 0.5) * n / (side + offset) - 0.5`; with offset 0 it is the plain ratio (transformers' rule).
fn line(n: usize, side: usize, offset: f64) -> Vec<f64> {
    let mut matrix = vec![0.0; side * n];
    let step = n as f64 / (side as f64 + offset);
    for o in 0..side {
        let source = (o as f64 + 0.5) * step - 0.5;
        let floor = source.floor();
        for (k, tap) in taps(source - floor).into_iter().enumerate() {
            let at = (floor as i64 + k as i64 - 1).clamp(0, n as i64 - 1) as usize;
            matrix[o * n + at] += tap;
        }
    }
    matrix
}

/// The `[side * side, n * n]` matrix that resamples an `n x n` grid of positions to `side x side`, row-major.
pub fn bicubic(n: usize, side: usize, offset: f64) -> Vec<f32> {
    let line = line(n, side, offset);
    let mut matrix = vec![0.0; side * side * n * n];
    for (y, row) in line.chunks(n).enumerate() {
        for (x, column) in line.chunks(n).enumerate() {
            let out = &mut matrix[(y * side + x) * n * n..][..n * n];
            for (r, a) in row.iter().enumerate().filter(|(_, a)| **a != 0.0) {
                for (c, b) in column.iter().enumerate() {
                    out[r * n + c] = (a * b) as f32;
                }
            }
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sum_to_one_and_the_same_grid_is_the_identity() {
        for (n, side, offset) in [(14, 6, 0.1), (3, 2, 0.1), (37, 16, 0.0), (2, 5, 0.0), (1, 3, 0.1)] {
            for row in bicubic(n, side, offset).chunks(n * n) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
        let identity = bicubic(4, 4, 0.0);
        for (i, v) in identity.iter().enumerate() {
            assert_eq!(*v, if i / 16 == i % 16 { 1.0 } else { 0.0 });
        }
    }

    #[test]
    fn the_offset_moves_the_source_as_elastic_md_says() {
        // 14 -> 6 with +0.1: the first source coordinate is 0.5 * 14 / 6.1 - 0.5 = 0.647541.
        let row = line(14, 6, 0.1);
        let expected = taps(0.5 * 14.0 / 6.1 - 0.5);
        // The tap left of the border lands on column 0.
        assert!((row[0] - (expected[0] + expected[1])).abs() < 1e-12);
        assert!((row[1] - expected[2]).abs() < 1e-12 && (row[2] - expected[3]).abs() < 1e-12);
    }
}
