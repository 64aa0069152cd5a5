//! Gaussian blur as torchvision's `GaussianBlur(9)` computes it: separable, edges reflected, rounded once at the end.

/// Half of the kernel of 9 pixels, without its middle.
const REACH: usize = 4;

/// Blurs pixels `[height, width, channels]`. The kernel reaches 4 pixels to each side, or as far as an axis has
/// pixels to reflect (its length minus 1), so that crops below 5 pixels are blurred with a shorter kernel.
pub fn gaussian(pixels: &mut [u8], width: u32, height: u32, channels: u8, sigma: f32) {
    let (width, height, channels) = (width as usize, height as usize, usize::from(channels));
    if pixels.is_empty() || pixels.len() != width * height * channels {
        return;
    }
    let stride = width * channels;
    // Rows first: each row is padded by reflection, so that the inner loops run over plain slices.
    let kernel = weights(sigma, REACH.min(width - 1));
    let reach = kernel.len() / 2;
    let mut padded = vec![0.0f32; stride + 2 * reach * channels];
    let mut rows = vec![0.0f32; pixels.len()];
    for (from, to) in pixels.chunks_exact(stride).zip(rows.chunks_exact_mut(stride)) {
        for (x, out) in padded.chunks_exact_mut(channels).enumerate() {
            let at = reflect(x as isize - reach as isize, width) * channels;
            for (out, value) in out.iter_mut().zip(&from[at..at + channels]) {
                *out = f32::from(*value);
            }
        }
        for (k, weight) in kernel.iter().enumerate() {
            add_scaled(to, &padded[k * channels..k * channels + stride], *weight);
        }
    }
    let kernel = weights(sigma, REACH.min(height - 1));
    let reach = (kernel.len() / 2) as isize;
    let mut sums = vec![0.0f32; stride];
    for (y, out) in pixels.chunks_exact_mut(stride).enumerate() {
        sums.fill(0.0);
        for (k, weight) in kernel.iter().enumerate() {
            let at = reflect(y as isize + k as isize - reach, height) * stride;
            add_scaled(&mut sums, &rows[at..at + stride], *weight);
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = sum.round_ties_even() as u8;
        }
    }
}

fn add_scaled(to: &mut [f32], from: &[f32], weight: f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += weight * from;
    }
}

/// The position that `at` stands for when a line of `len` is mirrored at its first and last pixel.
fn reflect(at: isize, len: usize) -> usize {
    let last = len as isize - 1;
    let folded = if at < 0 { -at } else { at };
    (if folded > last { 2 * last - folded } else { folded }).clamp(0, last) as usize
}

/// The normal density at whole distances up to `reach`, scaled to a sum of 1.
fn weights(sigma: f32, reach: usize) -> Vec<f32> {
    let reach = reach as i32;
    let density: Vec<f32> = (-reach..=reach)
        .map(|x| (-0.5 * (x as f32 / sigma).powi(2)).exp())
        .collect();
    let sum: f32 = density.iter().sum();
    density.into_iter().map(|value| value / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_image_stays_flat_and_a_narrow_kernel_changes_nothing() {
        for (w, h) in [(1, 1), (1, 7), (2, 3), (16, 16)] {
            let mut flat = vec![93; w * h * 3];
            gaussian(&mut flat, w as u32, h as u32, 3, 2.0);
            assert!(flat.iter().all(|&p| p == 93));
            let original: Vec<u8> = (0..w * h).map(|i| (i * 37 % 256) as u8).collect();
            let mut pixels = original.clone();
            gaussian(&mut pixels, w as u32, h as u32, 1, 0.1);
            assert_eq!(pixels, original);
        }
    }

    #[test]
    fn one_bright_pixel_becomes_the_kernel() {
        let mut pixels = vec![0; 21 * 21];
        pixels[10 * 21 + 10] = 255;
        gaussian(&mut pixels, 21, 21, 1, 1.0);
        let kernel = weights(1.0, 4);
        for y in 0..9 {
            for x in 0..9 {
                let expected = (255.0 * kernel[x] * kernel[y]).round_ties_even() as u8;
                assert_eq!(pixels[(6 + y) * 21 + 6 + x], expected);
            }
        }
    }

    #[test]
    fn edges_are_mirrored_without_repeating_the_edge() {
        let positions: Vec<usize> = (-4..9).map(|at| reflect(at, 5)).collect();
        assert_eq!(positions, [4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0]);
    }
}
