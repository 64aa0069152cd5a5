//! Batches for evaluation: every example once, in order, without any chance.

use rayon::prelude::*;

use crate::augment::evaluation::Evaluation;
use crate::error::DataError;
use crate::source::Source;

/// Batches of [`Evaluation::view`]s, in the order of the indices; see [`evaluation_batches`].
pub struct EvaluationBatches<'a> {
    source: &'a dyn Source,
    indices: &'a [usize],
    evaluation: &'a Evaluation,
    batch: usize,
}

/// The views of the examples `indices`, in that order, `batch` at a time (the last batch may be smaller), each computed
/// in parallel. Yields the numbers `[n, channels, crop, crop]` and the n indices they belong to. A damaged example is an
/// error, since a score over fewer examples is another score.
#[must_use]
pub fn evaluation_batches<'a>(
    source: &'a dyn Source,
    indices: &'a [usize],
    evaluation: &'a Evaluation,
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
