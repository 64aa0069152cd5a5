//! Colour distortions of 8-bit pixels, with PIL's arithmetic: every step rounds down to whole values as PIL does.

use crate::image::luma;

/// PIL's blend of `from` towards `to`: linear, cut off after the point, clipped where it extrapolates.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let value = f32::from(from) + factor * (f32::from(to) - f32::from(from));
    // The conversion cuts off after the point and clips at 0 and 255.
    value as u8
}

fn map(pixels: &mut [u8], value: impl Fn(u8) -> u8) {
    let mut table = [0; 256];
    for (from, to) in (0..=u8::MAX).zip(table.iter_mut()) {
        *to = value(from);
    }
    for pixel in pixels {
        *pixel = table[usize::from(*pixel)];
    }
}

/// Multiplies every value.
pub fn brightness(pixels: &mut [u8], factor: f32) {
    map(pixels, |p| blend(0, p, factor));
}

/// Stretches values around the image's mean luma. Pixels are `[h, w, channels]`.
pub fn contrast(pixels: &mut [u8], channels: u8, factor: f32) {
    let sum: u64 = match channels {
        3 => pixels.chunks_exact(3).map(|p| u64::from(luma(p[0], p[1], p[2]))).sum(),
        _ => pixels.iter().map(|&p| u64::from(p)).sum(),
    };
    let count = (pixels.len() / usize::from(channels.max(1))).max(1);
    let mean = (sum as f64 / count as f64 + 0.5) as u8;
    map(pixels, |p| blend(mean, p, factor));
}

/// Stretches each pixel `[.., 3]` away from its luma.
pub fn saturation(pixels: &mut [u8], factor: f32) {
    for pixel in pixels.chunks_exact_mut(3) {
        let grey = luma(pixel[0], pixel[1], pixel[2]);
        for value in pixel {
            *value = blend(grey, *value, factor);
        }
    }
}

/// Turns each pixel's hue by a share of a full turn, by way of PIL's 8-bit HSV.
pub fn hue(pixels: &mut [u8], turn: f32) {
    let shift = (f64::from(turn) * 255.0) as i32 as u8;
    for pixel in pixels.chunks_exact_mut(3) {
        let [h, s, v] = to_hsv(pixel[0], pixel[1], pixel[2]);
        pixel.copy_from_slice(&from_hsv(h.wrapping_add(shift), s, v));
    }
}

/// Replaces each pixel `[.., 3]` by its luma.
pub fn grayscale(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(3) {
        pixel.fill(luma(pixel[0], pixel[1], pixel[2]));
    }
}

/// Inverts every value from 128 on.
pub fn solarize(pixels: &mut [u8]) {
    for pixel in pixels {
        *pixel = (*pixel).min(255 - *pixel);
    }
}

/// Hue, saturation and value, each in 0..=255. PIL cuts off after the point, in single precision.
fn to_hsv(r: u8, g: u8, b: u8) -> [u8; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == min {
        return [0, 0, max];
    }
    let range = f32::from(max - min);
    let [rc, gc, bc] = [r, g, b].map(|value| f32::from(max - value) / range);
    let sixths = if r == max {
        bc - gc
    } else if g == max {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let h = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
    let s = range / f32::from(max);
    [(f64::from(h) * 255.0) as u8, (f64::from(s) * 255.0) as u8, max]
}

fn from_hsv(h: u8, s: u8, v: u8) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let turned = f64::from(f32::from(h) * 6.0) / 255.0;
    let sector = turned.floor();
    let f = f64::from((turned - sector) as f32);
    let s = f64::from((f64::from(s) / 255.0) as f32);
    let v_f = f64::from(v);
    let p = (v_f * (1.0 - s)).round() as u8;
    let q = (v_f * (1.0 - s * f)).round() as u8;
    let t = (v_f * (1.0 - s * (1.0 - f))).round() as u8;
    match sector as u8 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_of_one_and_turns_of_zero_change_nothing_or_little() {
        let original: Vec<u8> = (0..=255u8)
            .flat_map(|i| [i, i.wrapping_mul(7), i.wrapping_mul(31)])
            .collect();
        let mut pixels = original.clone();
        brightness(&mut pixels, 1.0);
        contrast(&mut pixels, 3, 1.0);
        saturation(&mut pixels, 1.0);
        assert_eq!(pixels, original);
        hue(&mut pixels, 0.0);
        // 8-bit HSV has fewer colours than RGB.
        assert!(pixels.iter().zip(&original).all(|(a, b)| a.abs_diff(*b) <= 6));
    }

    #[test]
    fn distortions_give_what_pil_gives() {
        let mut pixels = vec![10, 100, 200, 0, 128, 255];
        brightness(&mut pixels, 1.37);
        assert_eq!(pixels, [13, 137, 255, 0, 175, 255]);
        let mut pixels = vec![10, 100, 200];
        contrast(&mut pixels, 1, 0.6);
        assert_eq!(pixels, [47, 101, 161]);
        let mut pixels = vec![200, 100, 50];
        grayscale(&mut pixels);
        assert_eq!(pixels, [124; 3]);
        let mut pixels = vec![0, 127, 128, 255];
        solarize(&mut pixels);
        assert_eq!(pixels, [0, 127, 127, 0]);
        let mut pixels = vec![200, 100, 50];
        saturation(&mut pixels, 0.0);
        assert_eq!(pixels, [124; 3]);
    }

    #[test]
    fn grey_has_no_hue_to_turn() {
        let mut pixels = vec![9, 9, 9, 250, 250, 250];
        hue(&mut pixels, 0.1);
        assert_eq!(pixels, [9, 9, 9, 250, 250, 250]);
    }
}
