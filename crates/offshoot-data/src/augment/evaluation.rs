//! The one deterministic view of an image that evaluation uses.

use std::borrow::Cow;

use fast_image_resize::Resizer;
use offshoot_family::catalog::Preprocessing;

use super::geometry::{Rect, resize_box, resize_crop};
use super::{check_normalisation, normalise};
use crate::error::DataError;
use crate::image::Image;

/// An image as evaluation sees it: the shorter side resized (bicubic, antialiased), the centre cut out, normalised.
pub trait Prepare {
    /// Says what cannot work: a crop of zero, or larger than what it is cut from, or means that do not fit.
    ///
    /// # Errors
    /// [`DataError::Config`] with the setting's name.
    fn check(&self) -> Result<(), DataError>;

    /// The view of one image: `[channels, crop, crop]`, normalised.
    ///
    /// Only what is cut out is ever computed, so that an extremely long image costs no more than others.
    fn view(&self, image: &Image) -> Vec<f32>;
}

impl Prepare for Preprocessing {
    fn check(&self) -> Result<(), DataError> {
        if self.crop == 0 || self.crop > self.resize || self.resize > crate::image::MAX_SIDE {
            let reason = format!("crop {} must lie within 1 and resize {}", self.crop, self.resize);
            return Err(DataError::config("crop", reason));
        }
        check_normalisation(&self.mean, &self.std, self.channels)
    }

    fn view(&self, image: &Image) -> Vec<f32> {
        let image = match image.channels == self.channels {
            true => Cow::Borrowed(image),
            false => Cow::Owned(image.with_channels(self.channels)),
        };
        let crop = self.crop.clamp(1, self.resize.max(1));
        let (width, height) = (u64::from(image.width.max(1)), u64::from(image.height.max(1)));
        let long = u64::from(self.resize) * width.max(height) / width.min(height);
        let (new_width, new_height) = if width <= height {
            (u64::from(self.resize), long)
        } else {
            (long, u64::from(self.resize))
        };
        let mut resizer = Resizer::new();
        let pixels = if (new_width, new_height) == (u64::from(crop), u64::from(crop)) {
            let whole = Rect {
                left: 0,
                top: 0,
                width: image.width,
                height: image.height,
            };
            resize_crop(&image, whole, crop, crop, &mut resizer)
        } else {
            // torchvision's rounding of the offsets, then back to the original's pixels.
            let offset = |new: u64| (new.saturating_sub(u64::from(crop)) as f64 / 2.0).round_ties_even();
            let (across, down) = (width as f64 / new_width as f64, height as f64 / new_height as f64);
            let size = f64::from(crop);
            let place = [
                offset(new_width) * across,
                offset(new_height) * down,
                size * across,
                size * down,
            ];
            resize_box(&image, place, (crop, crop), &mut resizer)
        };
        let mut out = vec![0.0; usize::from(self.channels) * crop as usize * crop as usize];
        normalise(&pixels, self.channels, &self.mean, &self.std, &mut out);
        out
    }
}
