//! A contact sheet: what training will see, as one picture, and a PNG writer that never leaves half a file.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use fast_image_resize::Resizer;

use crate::augment::geometry::{Rect, resize_crop};
use crate::augment::{Crops, MultiCrop, denormalise};
use crate::error::DataError;
use crate::image::{Image, MAX_DECODED_BYTES, MAX_SIDE};
use crate::loader::LoaderConfig;
use crate::rng::Rng;
use crate::source::Source;

/// Pixels between tiles.
const GAP: usize = 4;
/// Tiles smaller than this are enlarged by a whole factor.
const MIN_TILE: u32 = 96;
/// The sheet's background, and the shade over hidden patches.
const BACKGROUND: u8 = 255;
const SHADE: u8 = 96;

/// Draws the sheet `[height, width, channels]`: one row an image with the original, its global crops (patches that
/// would be hidden are shaded, as if masks were active from the start) and its local crops, all as a loader with this
/// configuration and `seed` makes them in its first epoch. The images are a random choice by `seed`; damaged ones are
/// left out.
///
/// # Errors
/// Where a setting cannot work, no image can be read, or the sheet would be larger than an image may be.
pub fn contact_sheet(
    source: &dyn Source,
    config: &LoaderConfig,
    n_images: usize,
    seed: u64,
) -> Result<Image, DataError> {
    config.check()?;
    let images = choose(source, n_images.max(1), seed)?;
    let crops = &config.crops;
    let masks = config.masks.as_ref().map(|masks| {
        let drawn = masks.draw(
            images.len() * crops.globals.count,
            &mut Rng::for_example(seed, "masks", 0, 0),
        );
        (masks.grid, drawn)
    });
    let tile = crops.globals.px * MIN_TILE.div_ceil(crops.globals.px).max(1);
    let local_tile = crops.locals.px.max(1) * (tile / crops.locals.px.max(1)).max(1);
    let (step, local_step) = (tile as usize + GAP, local_tile as usize + GAP);
    let width = GAP + step * (1 + crops.globals.count) + local_step * crops.locals.count;
    let height = GAP + (tile.max(local_tile) as usize + GAP) * images.len();
    let bytes = width as u64 * height as u64 * u64::from(crops.channels);
    if width > MAX_SIDE as usize || height > MAX_SIDE as usize || bytes > MAX_DECODED_BYTES {
        let reason = format!("a sheet of {width} x {height} pixels is too large; ask for fewer");
        return Err(DataError::config("n_images", reason));
    }
    let mut sheet = Sheet::new(width, height, crops.channels);
    for (row, (index, image)) in images.iter().enumerate() {
        let mut rng = Rng::for_example(seed, "crops", 0, *index as u64);
        let Crops { globals, locals } = crops.crops(image, &mut rng);
        let top = GAP + row * (tile.max(local_tile) as usize + GAP);
        sheet.place(GAP, top, &fit(&image.with_channels(crops.channels), tile));
        let mut left = GAP + step;
        for (number, crop) in globals.iter().enumerate() {
            let mut tile_image = picture(crop, crops, crops.globals.px, tile);
            if let Some((grid, masks)) = &masks {
                let at = (number * images.len() + row) * grid.0 * grid.1;
                shade(&mut tile_image, *grid, &masks[at..at + grid.0 * grid.1]);
            }
            sheet.place(left, top, &tile_image);
            left += step;
        }
        for crop in &locals {
            sheet.place(left, top, &picture(crop, crops, crops.locals.px, local_tile));
            left += local_step;
        }
    }
    Ok(sheet.image)
}

/// Up to `count` images that can be read, in an order by the seed.
fn choose(source: &dyn Source, count: usize, seed: u64) -> Result<Vec<(usize, Image)>, DataError> {
    let mut order: Vec<usize> = (0..source.len()).collect();
    Rng::for_example(seed, "sheet", 0, 0).shuffle(&mut order);
    let mut images = Vec::new();
    let mut last = None;
    for index in order {
        if images.len() == count {
            break;
        }
        match source.read(index) {
            Ok(image) => images.push((index, image)),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) if images.is_empty() => Err(error),
        _ => Ok(images),
    }
}

/// The largest size of an image within a square of `side` that keeps its shape, at least one pixel each way.
fn fit(image: &Image, side: u32) -> Image {
    let (width, height) = (u64::from(image.width), u64::from(image.height));
    let scaled = |length: u64| (length * u64::from(side) / width.max(height)).max(1) as u32;
    let (new_width, new_height) = (scaled(width), scaled(height));
    let whole = Rect {
        left: 0,
        top: 0,
        width: image.width,
        height: image.height,
    };
    let pixels = resize_crop(image, whole, new_width, new_height, &mut Resizer::new());
    Image {
        width: new_width,
        height: new_height,
        channels: image.channels,
        pixels,
    }
}

/// A normalised crop as a picture, enlarged by a whole factor to `tile` pixels.
fn picture(crop: &[f32], crops: &MultiCrop, px: u32, tile: u32) -> Image {
    let small = denormalise(crop, crops.channels, &crops.mean, &crops.std);
    let (px, tile, channels) = (px as usize, tile as usize, usize::from(crops.channels));
    let factor = tile / px;
    let pixel = |at: usize| {
        let (x, y) = (at % tile / factor, at / tile / factor);
        let start = (y * px + x) * channels;
        small[start..start + channels].iter().copied()
    };
    let pixels = (0..tile * tile).flat_map(pixel).collect();
    Image {
        width: tile as u32,
        height: tile as u32,
        channels: crops.channels,
        pixels,
    }
}

/// Darkens the hidden patches of a picture.
fn shade(image: &mut Image, grid: (usize, usize), mask: &[u8]) {
    let (width, height, channels) = (image.width as usize, image.height as usize, usize::from(image.channels));
    for y in 0..height {
        for x in 0..width {
            if mask[y * grid.0 / height * grid.1 + x * grid.1 / width] == 1 {
                let start = (y * width + x) * channels;
                for value in &mut image.pixels[start..start + channels] {
                    *value = *value / 4 + SHADE / 2;
                }
            }
        }
    }
}

struct Sheet {
    image: Image,
}

impl Sheet {
    fn new(width: usize, height: usize, channels: u8) -> Self {
        let pixels = vec![BACKGROUND; width * height * usize::from(channels)];
        Self {
            image: Image {
                width: width as u32,
                height: height as u32,
                channels,
                pixels,
            },
        }
    }

    fn place(&mut self, left: usize, top: usize, tile: &Image) {
        let channels = usize::from(tile.channels);
        let row_len = tile.width as usize * channels;
        for (y, row) in tile.pixels.chunks_exact(row_len).enumerate() {
            let start = ((top + y) * self.image.width as usize + left) * channels;
            self.image.pixels[start..start + row_len].copy_from_slice(row);
        }
    }
}

/// Writes an image as PNG, to a temporary file beside `path` first, which then takes its name: `path` is never half
/// written.
///
/// # Errors
/// Where the image cannot be encoded, or the system refuses to write.
pub fn write_png(image: &Image, path: &Path) -> Result<(), DataError> {
    let colour = if image.channels == 3 {
        ::image::ExtendedColorType::Rgb8
    } else {
        ::image::ExtendedColorType::L8
    };
    let place = path.display().to_string();
    let expected = u128::from(image.width) * u128::from(image.height) * u128::from(image.channels);
    if expected != image.pixels.len() as u128 {
        return Err(DataError::damaged(place, "the image's sizes do not fit its pixels"));
    }
    let mut png = Cursor::new(Vec::new());
    let encoder = ::image::codecs::png::PngEncoder::new(&mut png);
    ::image::ImageEncoder::write_image(encoder, &image.pixels, image.width, image.height, colour)
        .map_err(|e| DataError::damaged(place, format!("cannot be encoded as PNG: {e}")))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = fs::write(&temporary, png.into_inner()).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|e| {
        // Best effort: the error worth telling is the first one.
        let _ = fs::remove_file(&temporary);
        DataError::io(path, e)
    })
}
