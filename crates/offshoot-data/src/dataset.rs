//! A data set as a run uses it: opened, fingerprinted, split by content, and measured where a recipe leaves values open.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::error::DataError;
use crate::source::joined::Joined;
use crate::source::{Labels, Source, open};
use crate::split::{SplitShares, Splits, content_hashes, split};
use crate::summary::fingerprint;

/// Images that [`Dataset::measure`] looks at, at most.
const MEASURED: usize = 1000;

/// An opened data set and its parts.
pub struct Dataset {
    /// The examples.
    pub source: Arc<dyn Source>,
    /// Where they are, as an absolute path.
    pub path: PathBuf,
    /// Fingerprint of the content.
    pub fingerprint: String,
    /// Which examples train, choose and judge.
    pub splits: Splits,
}

/// What the training images look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// 1 if every image is grey, else 3.
    pub channels: u8,
    /// Mean of each channel, of values in 0..1.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub std: Vec<f32>,
    /// Shorter side of the middle image, in pixels.
    pub side: u32,
}

impl Dataset {
    /// Opens `path` to train and choose on and `test`, where data has a split of its own, to judge by: every example of `test`
    /// is in the test part and no other. What lies at `path` is split by its content into the other two, less the examples
    /// whose content is in `test` too. Classes are those at `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open); also if `shares` hold out a second test part, or `test` has classes of its own.
    pub fn open_with_test(
        path: &Path,
        test: &Path,
        labels: Labels,
        seed: u64,
        shares: SplitShares,
    ) -> Result<Self, DataError> {
        if shares.test != 0.0 {
            let reason = format!(
                "{} of the training images would be a second test part beside {}: the share must be 0",
                shares.test,
                test.display()
            );
            return Err(DataError::config("data.test", reason));
        }
        let (own, of_own) = Self::hashed(path, labels, seed, shares)?;
        let judged = open(test, labels)?;
        let hashes = content_hashes(judged.as_ref());
        let known: HashSet<&[u8; 32]> = hashes.iter().collect();
        let first = own.source.len();
        let mut splits = own.splits;
        for part in [&mut splits.train, &mut splits.val] {
            part.retain(|&index| !known.contains(&of_own[index]));
        }
        splits.test = (first..first + hashes.len()).collect();
        // Which side an image is on is part of what the data is.
        let both = format!("{}\n{}", own.fingerprint, fingerprint(&hashes));
        Ok(Self {
            source: Arc::new(Joined::new(own.source, judged, test)?),
            fingerprint: blake3::hash(both.as_bytes()).to_hex().to_string(),
            splits,
            path: own.path,
        })
    }

    /// Opens `path`, hashes every example and splits them by their content, `seed` and `shares`.
    ///
    /// # Errors
    /// If the path holds no data set, or labels are asked for that are not there.
    pub fn open(path: &Path, labels: Labels, seed: u64, shares: SplitShares) -> Result<Self, DataError> {
        Ok(Self::hashed(path, labels, seed, shares)?.0)
    }

    /// The same, with the content hashes of all examples.
    fn hashed(path: &Path, labels: Labels, seed: u64, shares: SplitShares) -> Result<(Self, Vec<[u8; 32]>), DataError> {
        let absolute = std::path::absolute(path).map_err(|source| DataError::Io {
            place: path.display().to_string(),
            source,
        })?;
        let source: Arc<dyn Source> = Arc::from(open(path, labels)?);
        let hashes = content_hashes(source.as_ref());
        let splits = split(&hashes, seed, shares)?;
        let dataset = Self {
            fingerprint: fingerprint(&hashes),
            source,
            path: absolute,
            splits,
        };
        Ok((dataset, hashes))
    }

    /// The class of each of the examples `indices`; examples without one count as class 0.
    pub fn labels(&self, indices: &[usize]) -> Vec<u32> {
        indices
            .iter()
            .map(|&index| self.source.label(index).unwrap_or(0))
            .collect()
    }

    /// Channels, normalisation and size of the first thousand training images that can be read.
    ///
    /// # Errors
    /// If none can be read.
    pub fn measure(&self) -> Result<Measured, DataError> {
        let chosen = &self.splits.train[..self.splits.train.len().min(MEASURED)];
        let images: Vec<_> = chosen
            .par_iter()
            .filter_map(|&index| self.source.read(index).ok())
            .collect();
        if images.is_empty() {
            let place = self.path.display().to_string();
            return Err(DataError::Empty {
                place,
                found: "no training image can be read".into(),
            });
        }
        let channels = if images.iter().all(|image| image.channels == 1) {
            1
        } else {
            3
        };
        // Sums of whole numbers: exact, and the same in any order.
        let (mut sum, mut squares, mut pixels) = (vec![0u64; channels], vec![0u64; channels], 0u64);
        let mut sides: Vec<u32> = images.iter().map(|image| image.width.min(image.height)).collect();
        for image in &images {
            let image = image.with_channels(channels as u8);
            for pixel in image.pixels.chunks_exact(channels) {
                for (channel, &value) in pixel.iter().enumerate() {
                    sum[channel] += u64::from(value);
                    squares[channel] += u64::from(value).pow(2);
                }
            }
            pixels += u64::from(image.width) * u64::from(image.height);
        }
        sides.sort_unstable();
        let mean = |total: &u64| *total as f64 / pixels.max(1) as f64;
        let rounded = |value: f64| (value / 255.0 * 1e4).round() as f32 / 1e4;
        let spread = |(sum, squares): (&u64, &u64)| (mean(squares) - mean(sum).powi(2)).max(0.0).sqrt();
        Ok(Measured {
            channels: channels as u8,
            mean: sum.iter().map(|s| rounded(mean(s))).collect(),
            // A single flat colour has no spread: leave its values alone rather than divide by nothing.
            std: sum
                .iter()
                .zip(&squares)
                .map(|pair| rounded(spread(pair)))
                .map(|s| if s > 0.0 { s } else { 1.0 })
                .collect(),
            side: sides[(sides.len() - 1) / 2],
        })
    }
}
