//! Where a crop lies, and how it is resized.

use fast_image_resize::images::{CroppedImage, Image as Buffer, ImageRef};
use fast_image_resize::{FilterType, IntoImageView, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::image::Image;
use crate::rng::Rng;

/// Narrowest and widest crop that is drawn, as width / height.
const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);
/// Draws that may miss the image before the centre is taken.
const TRIES: usize = 10;

/// A rectangle of whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// Pixels left of it.
    pub left: u32,
    /// Pixels above it.
    pub top: u32,
    /// Its width, at least 1.
    pub width: u32,
    /// Its height, at least 1.
    pub height: u32,
}

/// torchvision's `RandomResizedCrop.get_params`: an area of `scale` of the image and a ratio log-uniform in 3/4..4/3;
/// after ten draws that do not fit, the largest centred crop within these ratios.
#[must_use]
pub fn random_crop(width: u32, height: u32, scale: (f32, f32), rng: &mut Rng) -> Rect {
    let area = f64::from(width) * f64::from(height);
    for _ in 0..TRIES {
        let target = area * rng.uniform(scale.0.into(), scale.1.into());
        let aspect = rng.uniform(RATIO.0.ln(), RATIO.1.ln()).exp();
        let w = (target * aspect).sqrt().round_ties_even();
        let h = (target / aspect).sqrt().round_ties_even();
        if w >= 1.0 && w <= f64::from(width) && h >= 1.0 && h <= f64::from(height) {
            let (w, h) = (w as u32, h as u32);
            let top = rng.below(u64::from(height - h) + 1) as u32;
            let left = rng.below(u64::from(width - w) + 1) as u32;
            return Rect {
                left,
                top,
                width: w,
                height: h,
            };
        }
    }
    let ratio = f64::from(width) / f64::from(height);
    let (w, h) = if ratio < RATIO.0 {
        (width, (f64::from(width) / RATIO.0).round_ties_even() as u32)
    } else if ratio > RATIO.1 {
        ((f64::from(height) * RATIO.1).round_ties_even() as u32, height)
    } else {
        (width, height)
    };
    let (w, h) = (w.clamp(1, width.max(1)), h.clamp(1, height.max(1)));
    Rect {
        left: width.saturating_sub(w) / 2,
        top: height.saturating_sub(h) / 2,
        width: w,
        height: h,
    }
}

/// The part `place` of an image, resized to `width` x `height` pixels `[height, width, channels]` with the bicubic
/// filter (a = -0.5) that widens where it shrinks. As in PIL, pixels outside of `place` have no influence.
#[must_use]
pub fn resize_crop(image: &Image, place: Rect, width: u32, height: u32, resizer: &mut Resizer) -> Vec<u8> {
    let kind = pixel_type(image);
    let mut target = Buffer::new(width, height, kind);
    let source = ImageRef::new(image.width, image.height, &image.pixels, kind);
    let part = source.as_ref().ok().and_then(|source| {
        let Rect {
            left,
            top,
            width,
            height,
        } = place;
        CroppedImage::new(source, left, top, width, height).ok()
    });
    if let Some(part) = part {
        let whole = [0.0, 0.0, f64::from(place.width), f64::from(place.height)];
        two_passes(&part, whole, &mut target, resizer);
    }
    target.into_vec()
}

/// The part of an image at fractional `[left, top, width, height]`, resized as [`resize_crop`] does, but with the
/// pixels around it where the filter reaches them: the same as resizing all and cutting afterwards.
pub(crate) fn resize_box(image: &Image, place: [f64; 4], size: (u32, u32), resizer: &mut Resizer) -> Vec<u8> {
    let kind = pixel_type(image);
    let mut target = Buffer::new(size.0, size.1, kind);
    if let Ok(source) = ImageRef::new(image.width, image.height, &image.pixels, kind) {
        two_passes(&source, place, &mut target, resizer);
    }
    target.into_vec()
}

fn pixel_type(image: &Image) -> PixelType {
    if image.channels == 3 {
        PixelType::U8x3
    } else {
        PixelType::U8
    }
}

/// Resizes along rows first and along columns then, as PIL does but for crops that grow in width and shrink in height,
/// where its later releases turn the order around. The order shows where values are cut off at 0 and 255 in between. Sizes that it refuses, which no [`Image`] has, leave the target black.
fn two_passes(source: &impl IntoImageView, place: [f64; 4], target: &mut Buffer<'_>, resizer: &mut Resizer) {
    let [left, top, width, height] = place;
    let (target_width, rows) = (target.width(), source.height());
    let mut between = Buffer::new(target_width, rows, target.pixel_type());
    let across = bicubic().crop(left, 0.0, width, f64::from(rows));
    let down = bicubic().crop(0.0, top, f64::from(target_width), height);
    let first = resizer.resize(source, &mut between, &across);
    let done = first.and_then(|()| resizer.resize(&between, target, &down));
    debug_assert!(done.is_ok(), "the resize was refused");
}

fn bicubic() -> ResizeOptions {
    ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
}

/// Mirrors pixels `[h, width, channels]` left to right.
pub(crate) fn mirror(pixels: &mut [u8], width: u32, channels: u8) {
    let channels = usize::from(channels);
    for row in pixels.chunks_exact_mut((width as usize * channels).max(1)) {
        let (mut left, mut right) = (0, width as usize - 1);
        while left < right {
            for c in 0..channels {
                row.swap(left * channels + c, right * channels + c);
            }
            left += 1;
            right -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_follow_scale_and_ratio() {
        let mut rng = Rng::for_example(3, "t", 0, 0);
        for _ in 0..2_000 {
            let Rect {
                left,
                top,
                width,
                height,
            } = random_crop(640, 480, (0.32, 1.0), &mut rng);
            assert!(left + width <= 640 && top + height <= 480);
            let share = f64::from(width * height) / (640.0 * 480.0);
            assert!((0.31..=1.0).contains(&share), "{share}");
            let ratio = f64::from(width) / f64::from(height);
            assert!((0.74..1.34).contains(&ratio), "{ratio}");
        }
    }

    #[test]
    fn images_too_narrow_fall_back_to_the_centre() {
        let mut rng = Rng::for_example(3, "t", 0, 0);
        let tall = random_crop(30, 3000, (0.9, 1.0), &mut rng);
        assert_eq!(
            tall,
            Rect {
                left: 0,
                top: 1480,
                width: 30,
                height: 40
            }
        );
        let wide = random_crop(3000, 30, (0.9, 1.0), &mut rng);
        assert_eq!(
            wide,
            Rect {
                left: 1480,
                top: 0,
                width: 40,
                height: 30
            }
        );
    }

    #[test]
    fn pixels_outside_of_a_crop_have_no_influence() {
        let mut pixels = vec![255; 20 * 20];
        for y in 5..15 {
            pixels[y * 20 + 5..y * 20 + 15].fill(70);
        }
        let image = Image {
            width: 20,
            height: 20,
            channels: 1,
            pixels,
        };
        let place = Rect {
            left: 5,
            top: 5,
            width: 10,
            height: 10,
        };
        for size in [4, 10, 33] {
            let out = resize_crop(&image, place, size, size, &mut Resizer::new());
            assert!(out.iter().all(|&p| p == 70));
        }
    }

    #[test]
    fn mirroring_keeps_channels_together() {
        let mut pixels = vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19];
        mirror(&mut pixels, 3, 3);
        assert_eq!(pixels, [7, 8, 9, 4, 5, 6, 1, 2, 3, 17, 18, 19, 14, 15, 16, 11, 12, 13]);
    }
}
