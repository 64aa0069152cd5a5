//! Training batches in a fixed order, made by worker threads, the same bytes for any number of them.

mod cache;
pub mod evaluation;
mod making;
mod order;
mod queue;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::augment::MultiCrop;
use crate::error::DataError;
use crate::mask::BlockMasks;
use crate::source::Source;
use making::{Made, Maker};
use queue::Queue;

/// The largest batch, in bytes of its crops (16 GiB).
const MAX_BATCH_BYTES: u128 = 16 << 30;
/// How many damaged images an error names.
const NAMED: usize = 5;
/// The most worker threads.
const MAX_WORKERS: usize = 1024;

/// How a [`Loader`] makes batches.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderConfig {
    /// Images a batch: B.
    pub batch: usize,
    /// Decides order, crops and masks.
    pub seed: u64,
    /// The augmentation.
    pub crops: MultiCrop,
    /// Patch masks of the global crops; none gives batches without masks.
    pub masks: Option<BlockMasks>,
    /// Worker threads. With 0 each batch is made by the thread that asks for it. The number changes no byte.
    pub workers: usize,
    /// Batches that may be in work or waiting at any time; at least 1. It bounds the memory.
    pub prefetch: usize,
    /// The share of the training images that may be damaged before loading stops with an error.
    pub max_damaged: f64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            batch: 64,
            seed: 0,
            crops: MultiCrop::default(),
            masks: None,
            workers: 1,
            prefetch: 2,
            max_damaged: 0.01,
        }
    }
}

/// One training batch of B images with G global and V local crops each. Crops are stacked crop-major: crop 0 of all
/// images, then crop 1 of all images, ...
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The global step.
    pub step: u64,
    /// Images: B.
    pub batch: usize,
    /// Global crops `[G * B, channels, px, px]`, normalised.
    pub globals: Vec<f32>,
    /// Local crops `[V * B, channels, px, px]`, normalised.
    pub locals: Vec<f32>,
    /// Patch masks of the global crops `[G * B, N]`, 1 where a patch is hidden; empty if none are configured.
    pub masks: Vec<u8>,
    /// The examples in the source, `[B]`; where an image is damaged, the one that stands in for it.
    pub indices: Vec<usize>,
    /// How many batches were ready when this one was asked for, itself included: 0 means that loading holds up
    /// training. It is the one thing here that depends on timing.
    pub ready: usize,
}

/// Gives the batches of a training run, from any step on.
///
/// The batches of step s depend on the seed, the training split, the configuration and s alone. An epoch is a
/// permutation of the training split by (seed, epoch), of which a partial last batch is dropped. Where there are fewer
/// images than one batch holds, an epoch is one step, and batches run on through one permutation after the other, so
/// that one image may be met several times in a batch, each time with other crops.
///
/// A damaged image is replaced by another of the training split, chosen by (seed, epoch, image). Decoded images are
/// kept in memory where all of them together are expected to take no more than 256 MiB.
pub struct Loader {
    maker: Arc<Maker>,
}

impl Loader {
    /// A loader over the examples `train` of a source.
    ///
    /// # Errors
    /// [`DataError::Config`] where `train` is empty or beyond the source, or a setting cannot work.
    pub fn new(source: Arc<dyn Source>, train: Vec<usize>, config: LoaderConfig) -> Result<Self, DataError> {
        config.check()?;
        if train.is_empty() {
            return Err(DataError::config(
                "train",
                "no image is left for training; lower the shares held out",
            ));
        }
        if let Some(index) = train.iter().find(|&&index| index >= source.len()) {
            let reason = format!("example {index} is beyond the {} of the source", source.len());
            return Err(DataError::config("train", reason));
        }
        Ok(Self {
            maker: Arc::new(Maker::new(source, train, config)),
        })
    }

    /// Whole batches in an epoch, at least 1. Epoch e starts at step `e * steps_per_epoch()`.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.maker.order.steps_per_epoch()
    }

    /// Starts the workers and gives the batches of `first_step`, `first_step + 1`, ... without end. Dropping it stops
    /// the workers.
    #[must_use]
    pub fn start(&self, first_step: u64) -> Batches {
        let queue = Arc::new(Queue::new(first_step, self.maker.config.prefetch.max(1)));
        let mut workers = Vec::new();
        for number in 0..self.maker.config.workers {
            let (maker, queue) = (Arc::clone(&self.maker), Arc::clone(&queue));
            let builder = thread::Builder::new().name(format!("loader {number}"));
            // Where the system gives no more threads, those there are do the work, or the asking thread does.
            match builder.spawn(move || work(&maker, &queue)) {
                Ok(worker) => workers.push(worker),
                Err(_) => break,
            }
        }
        Batches {
            maker: Arc::clone(&self.maker),
            queue,
            workers,
            next: first_step,
            seen: BTreeSet::new(),
            damaged: Vec::new(),
            failed: false,
        }
    }
}

impl LoaderConfig {
    /// Says what cannot work.
    ///
    /// # Errors
    /// [`DataError::Config`] with the setting's name.
    pub fn check(&self) -> Result<(), DataError> {
        self.crops.check()?;
        if self.batch == 0 {
            return Err(DataError::config("batch", "must be at least 1"));
        }
        if self.workers > MAX_WORKERS {
            return Err(DataError::config(
                "workers",
                format!("{} is more than {MAX_WORKERS}", self.workers),
            ));
        }
        if !(0.0..=1.0).contains(&self.max_damaged) {
            return Err(DataError::config(
                "max_damaged",
                format!("{} is not within 0 to 1", self.max_damaged),
            ));
        }
        let (crops, batch) = (&self.crops, self.batch as u128);
        let bytes = |spec: crate::augment::CropSpec| 4 * batch * (spec.count * crops.crop_len(spec)) as u128;
        let mut total = bytes(crops.globals) + bytes(crops.locals);
        if let Some(masks) = &self.masks {
            masks.check()?;
            total += batch * (crops.globals.count * masks.patches()) as u128;
        }
        if total > MAX_BATCH_BYTES {
            let reason = format!("{} images take {} GiB a batch", self.batch, total >> 30);
            return Err(DataError::config(
                "batch",
                format!("{reason}, more than {} GiB", MAX_BATCH_BYTES >> 30),
            ));
        }
        Ok(())
    }
}

fn work(maker: &Maker, queue: &Queue) {
    while let Some(step) = queue.claim() {
        let made = make(maker, step, queue);
        queue.deliver(step, made);
    }
}

/// One batch; a panic on the way becomes an error.
fn make(maker: &Maker, step: u64, queue: &Queue) -> Made {
    let run = std::panic::AssertUnwindSafe(|| maker.make(step, &|| queue.is_stopped()));
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
        let reason = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let reason = reason.unwrap_or_else(|| "it panicked".into());
        Made {
            damaged: Vec::new(),
            batch: Err(DataError::Worker { step, reason }),
        }
    })
}

/// The batches of a run, in order; see [`Loader::start`]. It ends only after an error.
pub struct Batches {
    maker: Arc<Maker>,
    queue: Arc<Queue>,
    workers: Vec<JoinHandle<()>>,
    next: u64,
    seen: BTreeSet<usize>,
    damaged: Vec<(String, String)>,
    failed: bool,
}

impl Batches {
    /// Name and reason of each damaged image met so far, in the order they were met, each once.
    #[must_use]
    pub fn damaged(&self) -> &[(String, String)] {
        &self.damaged
    }

    /// Adds what a batch met; an error where that is too much.
    fn count_damaged(&mut self, damaged: Vec<(usize, String)>) -> Result<(), DataError> {
        for (index, reason) in damaged {
            if self.seen.insert(index) {
                self.damaged.push((self.maker.source.name(index), reason));
            }
        }
        let of = self.maker.order.train().len();
        let limit = self.maker.config.max_damaged;
        if self.damaged.len() as f64 <= limit * of as f64 {
            return Ok(());
        }
        let first = self
            .damaged
            .iter()
            .take(NAMED)
            .map(|(name, reason)| format!("{name} ({reason})"))
            .collect();
        Err(DataError::TooManyDamaged {
            damaged: self.damaged.len(),
            of,
            limit,
            first,
        })
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let (made, ready) = match self.workers.is_empty() {
            true => (make(&self.maker, self.next, &self.queue), 0),
            false => self.queue.take(self.next),
        };
        self.next += 1;
        let result = self
            .count_damaged(made.damaged)
            .and(made.batch)
            .map(|batch| Batch { ready, ..batch });
        if result.is_err() {
            self.failed = true;
            self.queue.stop();
        }
        Some(result)
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.queue.stop();
        for worker in self.workers.drain(..) {
            // A worker hands its panics over as errors; there is nothing left to tell.
            let _ = worker.join();
        }
    }
}
