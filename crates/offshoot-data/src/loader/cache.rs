//! Decoded images kept in memory, for data sets small enough.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::DataError;
use crate::image::Image;
use crate::source::Source;

/// The most that decoded images may take, in bytes (256 MiB). A data set expected to take more is not kept at all.
const MAX_BYTES: usize = 256 << 20;
/// Images looked at for the expectation.
const PROBES: usize = 8;

/// Reads through a source, and keeps what it read if all of it will fit.
pub(super) struct Cache {
    kept: Vec<OnceLock<Arc<Image>>>,
    bytes: AtomicUsize,
}

impl Cache {
    /// Decides by the mean size of a few of the examples `train`.
    pub(super) fn new(source: &dyn Source, train: &[usize]) -> Self {
        let step = (train.len() / PROBES).max(1);
        let probes = train.iter().step_by(step).take(PROBES);
        let sizes: Vec<usize> = probes
            .filter_map(|&i| source.read(i).ok())
            .map(|image| image.pixels.len())
            .collect();
        let expected = sizes.iter().sum::<usize>() as u128 * train.len() as u128;
        let fits = !sizes.is_empty() && expected <= MAX_BYTES as u128 * sizes.len() as u128;
        let mut kept = Vec::new();
        if fits {
            kept.resize_with(source.len(), OnceLock::new);
        }
        Self {
            kept,
            bytes: AtomicUsize::new(0),
        }
    }

    pub(super) fn read(&self, source: &dyn Source, index: usize) -> Result<Arc<Image>, DataError> {
        let slot = self.kept.get(index);
        if let Some(image) = slot.and_then(OnceLock::get) {
            return Ok(Arc::clone(image));
        }
        let image = Arc::new(source.read(index)?);
        if let Some(slot) = slot {
            // The expectation may have been wrong; the limit is not.
            let size = image.pixels.len();
            if self.bytes.fetch_add(size, Ordering::Relaxed) + size <= MAX_BYTES {
                let _ = slot.set(Arc::clone(&image));
            }
        }
        Ok(image)
    }
}
