//! How one batch is made.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use fast_image_resize::Resizer;

use super::cache::Cache;
use super::order::{Item, Order};
use super::{Batch, LoaderConfig};
use crate::error::DataError;
use crate::image::Image;
use crate::rng::Rng;
use crate::source::Source;

/// Images tried in the place of a damaged one.
const REPLACEMENTS: usize = 100;

/// Everything that batches are made from.
pub(super) struct Maker {
    pub(super) source: Arc<dyn Source>,
    pub(super) order: Order,
    pub(super) config: LoaderConfig,
    cache: Cache,
    /// Images known to be damaged, so that they are not decoded again and again. Knowing changes no result.
    known: Mutex<HashMap<usize, String>>,
}

/// A batch, and the damaged images met on the way.
pub(super) struct Made {
    pub(super) damaged: Vec<(usize, String)>,
    pub(super) batch: Result<Batch, DataError>,
}

impl Maker {
    pub(super) fn new(source: Arc<dyn Source>, train: Vec<usize>, config: LoaderConfig) -> Self {
        let cache = Cache::new(source.as_ref(), &train);
        let order = Order::new(config.seed, config.batch, train);
        Self {
            source,
            order,
            config,
            cache,
            known: Mutex::new(HashMap::new()),
        }
    }

    /// The batch of a step. Once `is_stopped` says so, what comes back is of no use and comes soon.
    pub(super) fn make(&self, step: u64, is_stopped: &dyn Fn() -> bool) -> Made {
        let mut damaged = Vec::new();
        let batch = self.fill(step, is_stopped, &mut damaged);
        Made { damaged, batch }
    }

    fn fill(
        &self,
        step: u64,
        is_stopped: &dyn Fn() -> bool,
        damaged: &mut Vec<(usize, String)>,
    ) -> Result<Batch, DataError> {
        let LoaderConfig { batch, seed, crops, .. } = &self.config;
        let (batch, seed) = (*batch, *seed);
        let buffer = |spec: crate::augment::CropSpec| vec![0.0; batch * spec.count * crops.crop_len(spec)];
        let (mut globals, mut locals) = (buffer(crops.globals), buffer(crops.locals));
        let global_parts = by_image(&mut globals, crops.crop_len(crops.globals), batch);
        let local_parts = by_image(&mut locals, crops.crop_len(crops.locals), batch);
        let mut indices = Vec::with_capacity(batch);
        let mut resizer = Resizer::new();
        let parts = global_parts.into_iter().zip(local_parts);
        for (item, (mut globals, mut locals)) in self.order.items(step).into_iter().zip(parts) {
            if is_stopped() {
                break;
            }
            let (index, image) = self.load(item, damaged)?;
            indices.push(index);
            let mut rng = Rng::for_example(seed, "crops", item.pass, item.index as u64);
            crops.draw(&image, &mut rng, &mut resizer, &mut globals, &mut locals);
        }
        let masks = self.masks(step, batch * crops.globals.count);
        Ok(Batch {
            step,
            batch,
            globals,
            locals,
            masks,
            indices,
            ready: 0,
        })
    }

    fn masks(&self, step: u64, images: usize) -> Vec<u8> {
        match &self.config.masks {
            None => Vec::new(),
            Some(masks) if step < masks.from_step => vec![0; images * masks.patches()],
            Some(masks) => masks.draw(images, &mut Rng::for_example(self.config.seed, "masks", 0, step)),
        }
    }

    /// An item's image, or the one that stands in for it where it is damaged.
    fn load(&self, item: Item, damaged: &mut Vec<(usize, String)>) -> Result<(usize, Arc<Image>), DataError> {
        let mut index = item.index;
        let mut rng = Rng::for_example(self.config.seed, "replacement", item.pass, item.index as u64);
        let train = self.order.train();
        for _ in 0..=REPLACEMENTS {
            match self.read(index) {
                Ok(image) => return Ok((index, image)),
                Err(reason) => damaged.push((index, reason)),
            }
            index = train[rng.range(0..train.len())];
        }
        let distinct: BTreeSet<usize> = damaged.iter().map(|(index, _)| *index).collect();
        let first = damaged
            .iter()
            .take(1)
            .map(|(index, reason)| format!("{} ({reason})", self.source.name(*index)));
        Err(DataError::TooManyDamaged {
            damaged: distinct.len(),
            of: train.len(),
            limit: self.config.max_damaged,
            first: first.collect(),
        })
    }

    fn read(&self, index: usize) -> Result<Arc<Image>, String> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = known().get(&index) {
            return Err(reason.clone());
        }
        self.cache.read(self.source.as_ref(), index).map_err(|error| {
            let reason = error.to_string();
            known().insert(index, reason.clone());
            reason
        })
    }
}

/// Each image's own parts of a crop-major buffer `[crops * batch, len]`.
fn by_image(buffer: &mut [f32], len: usize, batch: usize) -> Vec<Vec<&mut [f32]>> {
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(batch, Vec::new);
    for (number, part) in buffer.chunks_exact_mut(len.max(1)).enumerate() {
        parts[number % batch].push(part);
    }
    parts
}
