//! One decoded image, and the decoder with its limits.

use std::io::Cursor;

use image::error::ImageError;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use crate::error::DataError;

/// The largest width or height that is decoded, in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// The largest image that is decoded, in bytes of its decoded pixels (256 MiB).
pub const MAX_DECODED_BYTES: u64 = 256 << 20;
/// The largest encoded image that is read, in bytes (256 MiB).
pub const MAX_ENCODED_BYTES: u64 = 256 << 20;

/// An image of 8-bit pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: u8,
    /// `[height, width, channels]`, row by row.
    pub pixels: Vec<u8>,
}

impl Image {
    /// An image of the given pixels `[height, width, channels]`, if they are as many as the sizes say.
    ///
    /// # Errors
    /// [`DataError::Damaged`] at `place` where a size is zero, `channels` is neither 1 nor 3, or the count is wrong.
    pub fn new(width: u32, height: u32, channels: u8, pixels: Vec<u8>, place: &str) -> Result<Self, DataError> {
        let expected = u128::from(width) * u128::from(height) * u128::from(channels);
        if !matches!(channels, 1 | 3) || expected == 0 || expected != pixels.len() as u128 {
            let reason = format!("{} bytes are no image of {width} x {height} x {channels}", pixels.len());
            return Err(DataError::damaged(place, reason));
        }
        Ok(Self {
            width,
            height,
            channels,
            pixels,
        })
    }

    /// Decodes an encoded image (jpg, png, webp, bmp, gif, tiff, pnm; recognized by content). Grey stays grey, alpha
    /// is dropped, palettes become colours, 16 bits become 8, of an animation the first frame is taken, and EXIF
    /// orientation is not applied: what PIL and torchvision do.
    ///
    /// # Errors
    /// [`DataError::TooLarge`] beyond [`MAX_SIDE`] or [`MAX_DECODED_BYTES`], judged from the header alone;
    /// [`DataError::Damaged`] where the bytes are no image or end early.
    pub fn decode(bytes: &[u8], place: &str) -> Result<Self, DataError> {
        let damaged = |reason: String| DataError::damaged(place, reason);
        if bytes.is_empty() {
            return Err(damaged("the file is empty (0 bytes)".into()));
        }
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|e| damaged(format!("cannot be read as an image: {e}")))?;
        if reader.format() == Some(image::ImageFormat::Jpeg) && !jpeg_is_whole(bytes) {
            return Err(damaged(format!(
                "truncated JPEG: no end marker within its {} bytes",
                bytes.len()
            )));
        }
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(2 * MAX_DECODED_BYTES);
        reader.limits(limits);
        let convert = |error: ImageError| match error {
            ImageError::Limits(_) => too_large(place, "the decoder asks for too much memory".into()),
            other => damaged(format!(
                "cannot be decoded as an image ({} bytes): {other}",
                bytes.len()
            )),
        };
        let decoder = reader.into_decoder().map_err(convert)?;
        let (width, height) = decoder.dimensions();
        if width > MAX_SIDE || height > MAX_SIDE || decoder.total_bytes() > MAX_DECODED_BYTES {
            return Err(too_large(place, format!("an image of {width} x {height} pixels")));
        }
        let decoded = DynamicImage::from_decoder(decoder).map_err(convert)?;
        if decoded.color().has_color() {
            Self::new(width, height, 3, decoded.into_rgb8().into_raw(), place)
        } else {
            Self::new(width, height, 1, decoded.into_luma8().into_raw(), place)
        }
    }

    /// The same image with 1 or 3 channels: grey is repeated, colour becomes luma (ITU-R 601-2, as PIL rounds it).
    #[must_use]
    pub fn with_channels(&self, channels: u8) -> Self {
        let pixels = match (self.channels, channels) {
            (1, 3) => self.pixels.iter().flat_map(|&p| [p; 3]).collect(),
            (3, 1) => self.pixels.chunks_exact(3).map(|p| luma(p[0], p[1], p[2])).collect(),
            _ => return self.clone(),
        };
        Self {
            width: self.width,
            height: self.height,
            channels,
            pixels,
        }
    }
}

/// The luma of a colour: PIL's integer form of 0.299 R + 0.587 G + 0.114 B.
pub(crate) fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

fn too_large(place: &str, what: String) -> DataError {
    let limit = format!("{MAX_SIDE} pixels a side and {} MiB decoded", MAX_DECODED_BYTES >> 20);
    DataError::TooLarge {
        place: place.into(),
        what,
        limit,
    }
}

/// Whether a JPEG reaches its end marker. The decoder fills a missing rest with grey instead of failing, and an image
/// that is half grey would poison training unseen.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xFF, marker]) = bytes.get(at..at + 2) {
        match marker {
            0xFF => at += 1,
            0xD9 => return true,
            0x01 | 0xD0..=0xD8 => at += 2,
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else {
                    return false;
                };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                if marker == 0xDA {
                    // Within a scan 0xFF is always escaped, so the marker found is a marker.
                    return bytes
                        .get(at..)
                        .is_some_and(|scan| scan.windows(2).any(|pair| pair == [0xFF, 0xD9]));
                }
            }
        }
    }
    // No marker where one must stand: let the decoder say what is wrong.
    at < bytes.len()
}
