//! POA's multi-crop: two large and several small random crops of an image, each distorted in its own way.

pub mod blur;
pub mod colour;
pub mod evaluation;
pub mod geometry;

use std::borrow::Cow;

use fast_image_resize::Resizer;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::image::Image;
use crate::rng::Rng;

/// ImageNet's mean of each channel, of values in 0..1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's standard deviation of each channel, of values in 0..1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The largest side of a crop, in pixels.
const MAX_CROP: u32 = 2048;
/// The most crops of one kind.
const MAX_COUNT: usize = 64;

/// One kind of crops.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CropSpec {
    /// The side of the square that crops are resized to, in pixels.
    pub px: u32,
    /// Smallest and largest share of the image's area.
    pub scale: (f32, f32),
    /// How many for each image.
    pub count: usize,
}

/// How often crops are blurred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Blur {
    /// What the released code of DINOv2 and POA does: first global never, second 0.9, locals 0.5.
    #[default]
    Code,
    /// What the papers list: first global always, second 0.1, locals 0.5.
    Paper,
    /// Never.
    Off,
}

/// The augmentation of one image into several crops. The default is POA's for ImageNet.
///
/// Each crop is cut and resized (bicubic, antialiased), flipped, jittered in colour, perhaps turned grey, blurred and
/// solarized, each step on 8-bit pixels with torchvision's and PIL's arithmetic, and normalised last.
///
/// In a recipe, channels and normalisation are facts of the data: they are filled in after the rest was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiCrop {
    /// The large crops.
    pub globals: CropSpec,
    /// The small crops.
    pub locals: CropSpec,
    /// How often a crop is mirrored.
    pub hflip: f32,
    /// How often a crop's colours are jittered; then all four of the following are, in random order.
    pub jitter_p: f32,
    /// Brightness is multiplied by a factor within 1 +- this.
    pub brightness: f32,
    /// Contrast is multiplied by a factor within 1 +- this.
    pub contrast: f32,
    /// Saturation is multiplied by a factor within 1 +- this. Nothing happens to grey images.
    pub saturation: f32,
    /// The hue is turned by up to this share of a full turn, at most 0.5. Nothing happens to grey images.
    pub hue: f32,
    /// How often a crop loses its colours.
    pub gray_p: f32,
    /// How often crops are blurred.
    pub blur: Blur,
    /// How often the second global crop is solarized (pixels from 128 on are inverted); others never are.
    pub solarize_p: f32,
    /// The mean of each channel that is subtracted, of values in 0..1. One value stands for every channel.
    #[serde(skip)]
    pub mean: Vec<f32>,
    /// The standard deviation of each channel that values are divided by. One value stands for every channel.
    #[serde(skip)]
    pub std: Vec<f32>,
    /// 1 or 3. With 1, colour images become grey; with 3, grey images are repeated.
    #[serde(skip)]
    pub channels: u8,
}

impl Default for MultiCrop {
    fn default() -> Self {
        Self {
            globals: CropSpec {
                px: 224,
                scale: (0.32, 1.0),
                count: 2,
            },
            locals: CropSpec {
                px: 96,
                scale: (0.05, 0.32),
                count: 8,
            },
            hflip: 0.5,
            jitter_p: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.2,
            hue: 0.1,
            gray_p: 0.2,
            blur: Blur::Code,
            solarize_p: 0.2,
            mean: IMAGENET_MEAN.to_vec(),
            std: IMAGENET_STD.to_vec(),
            channels: 3,
        }
    }
}

/// The crops of one image, normalised, each `[channels, px, px]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Crops {
    /// The large ones.
    pub globals: Vec<Vec<f32>>,
    /// The small ones.
    pub locals: Vec<Vec<f32>>,
}

/// What a crop is, which decides how often it is blurred and solarized.
#[derive(Debug, Clone, Copy)]
enum View {
    Global(usize),
    Local,
}

impl MultiCrop {
    /// Says what cannot work: sizes of zero or beyond 2048 px, more than 64 crops of a kind, shares outside of 0..1,
    /// means or deviations that do not fit the channels.
    ///
    /// # Errors
    /// [`DataError::Config`] with the setting's name.
    pub fn check(&self) -> Result<(), DataError> {
        for (field, spec) in [("globals", self.globals), ("locals", self.locals)] {
            if spec.count > 0 && !(1..=MAX_CROP).contains(&spec.px) {
                return Err(DataError::config(
                    field,
                    format!("px = {} is not within 1 to {MAX_CROP}", spec.px),
                ));
            }
            if spec.count > MAX_COUNT {
                return Err(DataError::config(
                    field,
                    format!("count = {} is more than {MAX_COUNT}", spec.count),
                ));
            }
            let (low, high) = spec.scale;
            if !(low > 0.0 && low <= high && high <= 1.0) {
                return Err(DataError::config(
                    field,
                    format!("scale = ({low}, {high}) is no range within 0 to 1"),
                ));
            }
        }
        if self.globals.count == 0 {
            return Err(DataError::config("globals", "count must be at least 1"));
        }
        let shares = [
            ("hflip", self.hflip),
            ("jitter_p", self.jitter_p),
            ("gray_p", self.gray_p),
            ("solarize_p", self.solarize_p),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
            ("hue", 2.0 * self.hue),
        ];
        for (field, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(DataError::config(field, format!("{value} is not within its range")));
            }
        }
        check_normalisation(&self.mean, &self.std, self.channels)
    }

    /// Draws the crops of one image: first the globals, then the locals.
    ///
    /// Settings that [`MultiCrop::check`] refuses give crops of no use, but no panic.
    pub fn crops(&self, image: &Image, rng: &mut Rng) -> Crops {
        let buffers = |spec: CropSpec| vec![vec![0.0; self.crop_len(spec)]; spec.count];
        let mut crops = Crops {
            globals: buffers(self.globals),
            locals: buffers(self.locals),
        };
        let mut globals: Vec<&mut [f32]> = crops.globals.iter_mut().map(Vec::as_mut_slice).collect();
        let mut locals: Vec<&mut [f32]> = crops.locals.iter_mut().map(Vec::as_mut_slice).collect();
        self.draw(image, rng, &mut Resizer::new(), &mut globals, &mut locals);
        crops
    }

    /// Numbers in one crop: channels x px x px.
    pub(crate) fn crop_len(&self, spec: CropSpec) -> usize {
        usize::from(self.channels) * spec.px as usize * spec.px as usize
    }

    /// [`MultiCrop::crops`] into the places given, each of [`MultiCrop::crop_len`] numbers.
    pub(crate) fn draw<'a>(
        &self,
        image: &Image,
        rng: &mut Rng,
        resizer: &mut Resizer,
        globals: &mut [&'a mut [f32]],
        locals: &mut [&'a mut [f32]],
    ) {
        let image = match image.channels == self.channels {
            true => Cow::Borrowed(image),
            false => Cow::Owned(image.with_channels(self.channels)),
        };
        let globals = globals
            .iter_mut()
            .enumerate()
            .map(|(k, out)| (View::Global(k), self.globals, out));
        let locals = locals.iter_mut().map(|out| (View::Local, self.locals, out));
        for (view, spec, out) in globals.chain(locals) {
            let crop = self.distort(&image, view, spec, rng, resizer);
            normalise(&crop, self.channels, &self.mean, &self.std, out);
        }
    }

    /// One crop, before it is normalised: `[px, px, channels]`.
    fn distort(&self, image: &Image, view: View, spec: CropSpec, rng: &mut Rng, resizer: &mut Resizer) -> Vec<u8> {
        let place = geometry::random_crop(image.width, image.height, spec.scale, rng);
        let mut pixels = geometry::resize_crop(image, place, spec.px, spec.px, resizer);
        if rng.chance(self.hflip.into()) {
            geometry::mirror(&mut pixels, spec.px, self.channels);
        }
        if rng.chance(self.jitter_p.into()) {
            self.jitter(&mut pixels, rng);
        }
        if rng.chance(self.gray_p.into()) && self.channels == 3 {
            colour::grayscale(&mut pixels);
        }
        if rng.chance(self.blur_probability(view)) {
            let sigma = rng.uniform_f32(0.1, 2.0);
            blur::gaussian(&mut pixels, spec.px, spec.px, self.channels, sigma);
        }
        let solarize_p = if matches!(view, View::Global(1)) {
            self.solarize_p
        } else {
            0.0
        };
        if rng.chance(solarize_p.into()) {
            colour::solarize(&mut pixels);
        }
        pixels
    }

    /// How often a view is blurred. Globals beyond the second are treated as the second.
    fn blur_probability(&self, view: View) -> f64 {
        match (self.blur, view) {
            (Blur::Off, _) => 0.0,
            (_, View::Local) => 0.5,
            (Blur::Code, View::Global(0)) => 0.0,
            (Blur::Code, View::Global(_)) => 0.9,
            (Blur::Paper, View::Global(0)) => 1.0,
            (Blur::Paper, View::Global(_)) => 0.1,
        }
    }

    fn jitter(&self, pixels: &mut [u8], rng: &mut Rng) {
        let mut order = [0, 1, 2, 3];
        rng.shuffle(&mut order);
        let mut factor = |width: f32| rng.uniform_f32((1.0 - width).max(0.0), 1.0 + width);
        let (brightness, contrast, saturation) =
            (factor(self.brightness), factor(self.contrast), factor(self.saturation));
        let hue = rng.uniform_f32(-self.hue, self.hue);
        for step in order {
            match step {
                0 => colour::brightness(pixels, brightness),
                1 => colour::contrast(pixels, self.channels, contrast),
                2 if self.channels == 3 => colour::saturation(pixels, saturation),
                3 if self.channels == 3 => colour::hue(pixels, hue),
                _ => {}
            }
        }
    }
}

pub(crate) fn check_normalisation(mean: &[f32], std: &[f32], channels: u8) -> Result<(), DataError> {
    if !matches!(channels, 1 | 3) {
        return Err(DataError::config("channels", format!("{channels} is neither 1 nor 3")));
    }
    for (field, values) in [("mean", mean), ("std", std)] {
        if values.len() != 1 && values.len() != usize::from(channels) {
            let reason = format!("{} values for {channels} channels", values.len());
            return Err(DataError::config(field, reason));
        }
        if values.iter().any(|v| !v.is_finite() || (field == "std" && *v <= 0.0)) {
            return Err(DataError::config(field, format!("{values:?} cannot be used")));
        }
    }
    Ok(())
}

/// The setting of a channel: its own value, or the only one.
fn channel_value(values: &[f32], channel: usize, missing: f32) -> f32 {
    values.get(channel).or(values.first()).copied().unwrap_or(missing)
}

/// Pixels `[h, w, channels]` as numbers `[channels, h, w]`: (pixel / 255 - mean) / std.
pub(crate) fn normalise(pixels: &[u8], channels: u8, mean: &[f32], std: &[f32], out: &mut [f32]) {
    let channels = usize::from(channels.max(1));
    let plane = (out.len() / channels).max(1);
    for (channel, out) in out.chunks_mut(plane).enumerate() {
        let (mean, std) = (channel_value(mean, channel, 0.0), channel_value(std, channel, 1.0));
        let mut table = [0.0; 256];
        for (value, entry) in table.iter_mut().enumerate() {
            *entry = (value as f32 / 255.0 - mean) / std;
        }
        for (out, pixel) in out.iter_mut().zip(pixels.iter().skip(channel).step_by(channels)) {
            *out = table[usize::from(*pixel)];
        }
    }
}

/// The reverse of [`normalise`], rounded and cut to 0..=255.
pub(crate) fn denormalise(values: &[f32], channels: u8, mean: &[f32], std: &[f32]) -> Vec<u8> {
    let channels = usize::from(channels.max(1));
    let plane = values.len() / channels;
    (0..plane * channels)
        .map(|i| {
            let channel = i % channels;
            let value = values[channel * plane + i / channels];
            let value = value * channel_value(std, channel, 1.0) + channel_value(mean, channel, 0.0);
            (value * 255.0).round().clamp(0.0, 255.0) as u8
        })
        .collect()
}
