//! Batches for evaluation: every example once, in order, without any chance.

use std::sync::Arc;

use offshoot_family::catalog::Preprocessing;
use rayon::prelude::*;

use crate::augment::evaluation::Prepare;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::source::Source;

/// Batches of [`Prepare::view`]s, in the order of the indices; see [`evaluation_batches`].
pub struct EvaluationBatches<'a> {
    source: &'a dyn Source,
    indices: &'a [usize],
    evaluation: &'a Preprocessing,
    batch: usize,
}

/// The views of the examples `indices`, in that order, `batch` at a time (the last batch may be smaller), each computed
/// in parallel. Yields the numbers `[n, channels, crop, crop]` and the n indices they belong to. A damaged example is an
/// error, since a score over fewer examples is another score.
#[must_use]
pub fn evaluation_batches<'a>(
    source: &'a dyn Source,
    indices: &'a [usize],
    evaluation: &'a Preprocessing,
    batch: usize,
) -> EvaluationBatches<'a> {
    EvaluationBatches {
        source,
        indices,
        evaluation,
        batch: batch.max(1),
    }
}

impl Iterator for EvaluationBatches<'_> {
    type Item = Result<(Vec<f32>, Vec<usize>), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.indices.is_empty() {
            return None;
        }
        if let Err(error) = self.evaluation.check() {
            self.indices = &[];
            return Some(Err(error));
        }
        let (now, later) = self.indices.split_at(self.batch.min(self.indices.len()));
        self.indices = later;
        let views: Vec<Result<Vec<f32>, DataError>> = now
            .par_iter()
            .map(|&index| self.source.read(index).map(|image| self.evaluation.view(&image)))
            .collect();
        let mut values = Vec::with_capacity(views.len() * views.first().map_or(0, |v| v.as_ref().map_or(0, Vec::len)));
        for view in views {
            match view {
                Ok(view) => values.extend(view),
                Err(error) => {
                    self.indices = &[];
                    return Some(Err(error));
                }
            }
        }
        Some(Ok((values, now.to_vec())))
    }
}

/// Bytes of prepared images that are kept; more are prepared again for every pass.
const MAX_KEPT: usize = 1 << 30;
/// Images of one batch.
const BATCH: usize = 64;

/// All batches of [`Prepared`] in order: `[images, channels, crop, crop]` values, and the number of images.
pub type PreparedBatches<'a> = Box<dyn Iterator<Item = Result<(Vec<f32>, usize), DataError>> + 'a>;

/// Examples that networks are measured on, for any number of passes: kept in memory where they take no more than 1 GiB,
/// prepared again for each pass where they take more. Damaged ones are left out from the start.
pub struct Prepared {
    source: Arc<dyn Source>,
    /// The sound examples.
    indices: Vec<usize>,
    preprocessing: Preprocessing,
    kept: Option<Vec<(Vec<f32>, usize)>>,
    /// Class of each example; empty where the data has no labels.
    pub labels: Vec<u32>,
    /// Name and reason of each example that was left out.
    pub damaged: Vec<(String, String)>,
}

impl Prepared {
    /// Goes once over the examples `indices`.
    ///
    /// # Errors
    /// If they cannot be prepared like that; damage to single examples is no error.
    pub fn new(dataset: &Dataset, indices: &[usize], preprocessing: &Preprocessing) -> Result<Self, DataError> {
        let source = &dataset.source;
        let mut damaged = Vec::new();
        let mut sound = Vec::with_capacity(indices.len());
        let mut kept = Some(Vec::new());
        let mut bytes = 0;
        for chunk in indices.chunks(BATCH) {
            let mut chunk = chunk.to_vec();
            let batch = match prepare(source.as_ref(), &chunk, preprocessing) {
                Ok(batch) => batch,
                Err(error) => {
                    let before = chunk.len();
                    chunk.retain(|&index| match source.read(index) {
                        Ok(_) => true,
                        Err(reason) => {
                            damaged.push((source.name(index), reason.to_string()));
                            false
                        }
                    });
                    if chunk.len() == before {
                        return Err(error);
                    }
                    prepare(source.as_ref(), &chunk, preprocessing)?
                }
            };
            bytes += batch.len() * size_of::<f32>();
            if bytes > MAX_KEPT {
                kept = None;
            }
            if let Some(kept) = kept.as_mut().filter(|_| !chunk.is_empty()) {
                kept.push((batch, chunk.len()));
            }
            sound.extend(chunk);
        }
        let labels = if source.classes().is_empty() {
            Vec::new()
        } else {
            dataset.labels(&sound)
        };
        Ok(Self {
            source: Arc::clone(source),
            indices: sound,
            preprocessing: preprocessing.clone(),
            kept,
            labels,
            damaged,
        })
    }

    /// All batches in order: `[images, channels, crop, crop]` values and the number of images.
    pub fn batches(&self) -> PreparedBatches<'_> {
        match &self.kept {
            Some(kept) => Box::new(kept.iter().cloned().map(Ok)),
            None => {
                let batches = evaluation_batches(self.source.as_ref(), &self.indices, &self.preprocessing, BATCH);
                Box::new(batches.map(|batch| batch.map(|(values, indices)| (values, indices.len()))))
            }
        }
    }
}

/// The views of `indices` as one batch.
fn prepare(source: &dyn Source, indices: &[usize], preprocessing: &Preprocessing) -> Result<Vec<f32>, DataError> {
    let mut batch = evaluation_batches(source, indices, preprocessing, indices.len());
    batch
        .next()
        .map_or(Ok(Vec::new()), |batch| batch.map(|(values, _)| values))
}
