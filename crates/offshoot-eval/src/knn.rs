//! Nearest neighbours by cosine, and DINO's weighted vote among them.

use std::ops::Range;

use offshoot_zoo::tensor::{Device, Tensor};
use rayon::prelude::*;

use crate::error::{EvalError, enough, same};
use crate::features::{FeatureMatrix, Labelled, check_labels, matrix, normalise};

/// The ks of DINO's protocol.
pub const KS: [usize; 4] = [10, 20, 100, 200];
/// The temperature of DINO's protocol.
pub const TEMPERATURE: f64 = 0.07;

/// Most queries, and most references, that are held normalised at once.
const BLOCK: usize = 1 << 13;
/// Most values of each of the two: 16 MiB.
const BLOCK_VALUES: usize = 1 << 22;
/// Queries of one product on the CPU: a multiple of what the library's kernels take, and few enough for it to copy little.
const ROWS: usize = 48;
/// Similarities that are compared with the floor at once.
const LANES: usize = 16;

/// The nearest references of each query, nearest first; of equal similarities the lower index comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    /// Queries.
    pub queries: usize,
    /// Neighbours of each query.
    pub k: usize,
    /// Rows of the references, `[queries, k]`.
    pub indices: Vec<u32>,
    /// Cosine similarities, `[queries, k]`.
    pub similarities: Vec<f32>,
}

/// The `k` references most similar to each query by the cosine of their features; all of them where there are fewer.
///
/// Memory beyond the result does not grow with the number of images: 32 MiB of features, for each thread a product of at most
/// 400 KiB (16 MiB on other devices), and 16 bytes for each neighbour of 8192 queries. On the CPU equal features have equal
/// similarities, and the result does not depend on the number of threads.
///
/// # Errors
/// If there are no references or queries, sizes do not agree, a feature is not finite, or `k` is 0.
pub fn neighbours(
    references: &FeatureMatrix,
    queries: &FeatureMatrix,
    k: usize,
    device: &Device,
) -> Result<Neighbours, EvalError> {
    references.check("references")?;
    queries.check("queries")?;
    same("channels of the queries", queries.dim, references.dim)?;
    nearest(references, queries, k, false, device)
}

/// The `k` other images most similar to each image; all the others where there are fewer.
///
/// # Errors
/// If there are fewer than two images, a feature is not finite, or `k` is 0.
pub fn neighbours_within(features: &FeatureMatrix, k: usize, device: &Device) -> Result<Neighbours, EvalError> {
    features.check("features")?;
    enough("images to be compared with each other", features.rows, 2)?;
    nearest(features, features, k, true, device)
}

fn nearest(
    references: &FeatureMatrix,
    queries: &FeatureMatrix,
    k: usize,
    skip_self: bool,
    device: &Device,
) -> Result<Neighbours, EvalError> {
    if k == 0 {
        return Err(EvalError::setting("k", k, "at least one neighbour is needed"));
    }
    if u32::try_from(references.rows).is_err() {
        return Err(EvalError::setting(
            "references",
            references.rows,
            "at most 2^32 - 1 images can be searched",
        ));
    }
    let k = k.min(references.rows - usize::from(skip_self));
    let device = device.clone().without_autodiff();
    let dim = references.dim;
    let sizes = Sizes::new(dim, device == Device::flex());
    let mut indices = Vec::with_capacity(queries.rows * k);
    let mut similarities = Vec::with_capacity(queries.rows * k);
    for (b, block) in queries.values.chunks(sizes.queries * dim).enumerate() {
        let rows = pieces(block, dim, sizes.rows, |piece| matrix(piece, sizes.rows, dim, &device));
        let mut found: Vec<Nearest> = (0..block.len() / dim)
            .map(|_| Nearest::new(k, references.rows))
            .collect();
        for (t, tile) in references.values.chunks(sizes.references * dim).enumerate() {
            let columns = pieces(tile, dim, sizes.columns, |piece| {
                matrix(transposed(&piece, dim), dim, sizes.columns, &device)
            });
            let compare = |(r, (rows, found)): (usize, (&Tensor<2>, &mut [Nearest]))| {
                let own = skip_self.then_some(b * sizes.queries + r * sizes.rows);
                columns.iter().enumerate().try_for_each(|(c, columns)| {
                    let first = t * sizes.references + c * sizes.columns;
                    let end = references.rows.min(first + sizes.columns);
                    scan(rows.clone().matmul(columns.clone()), first..end, own, found)
                })
            };
            rows.par_iter()
                .zip(found.par_chunks_mut(sizes.rows))
                .with_min_len(sizes.in_turn)
                .enumerate()
                .try_for_each(compare)?;
        }
        let sorted: Vec<(f32, u32)> = found.into_par_iter().flat_map_iter(Nearest::sorted).collect();
        similarities.extend(sorted.iter().map(|pair| pair.0));
        indices.extend(sorted.iter().map(|pair| pair.1));
    }
    Ok(Neighbours {
        queries: queries.rows,
        k,
        indices,
        similarities,
    })
}

/// How the work is cut: by the channels and the device alone, so that the result depends on nothing else.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Queries of one product.
    rows: usize,
    /// References of one product.
    columns: usize,
    /// Queries that are held normalised at once: whole products.
    queries: usize,
    /// References that are held normalised at once: whole products.
    references: usize,
    /// Products of different queries that one thread makes one after the other.
    in_turn: usize,
}

impl Sizes {
    fn new(dim: usize, on_cpu: bool) -> Self {
        let (rows, columns, in_turn) = if on_cpu {
            // A product a thread, small enough to stay in its cache until it is scanned. From 192^3 multiply-adds on the library
            // itself would split the product over threads, which then wait for each other.
            let most = (192usize.pow(3) - 1) / ROWS / dim;
            (ROWS, 1 << most.clamp(64, 2048).ilog2(), 1)
        } else {
            (512, 8192, BLOCK)
        };
        let block = BLOCK.min(BLOCK_VALUES / dim);
        Self {
            rows,
            columns,
            queries: (block / rows).max(1) * rows,
            references: (block / columns).max(1) * columns,
            in_turn,
        }
    }
}

/// What `make` makes of the normalised rows, `size` at a time. Rows of zeros fill up the last: a product of another shape would
/// be summed in another order, and equal features at its end would not have equal similarities.
fn pieces(values: &[f32], dim: usize, size: usize, make: impl Fn(Vec<f32>) -> Tensor<2> + Sync) -> Vec<Tensor<2>> {
    let piece = |rows: &[f32]| {
        let mut piece = Vec::with_capacity(size * dim);
        piece.extend_from_slice(rows);
        normalise(&mut piece, dim);
        piece.resize(size * dim, 0.0);
        make(piece)
    };
    values.par_chunks(size * dim).map(piece).collect()
}

/// `[rows, dim]` as `[dim, rows]`, the order in which the library's kernels read it.
fn transposed(values: &[f32], dim: usize) -> Vec<f32> {
    let n = values.len() / dim;
    let mut columns = vec![0.0; values.len()];
    // As many rows at a time as fill a line of the cache.
    for (group, rows) in values.chunks(16 * dim).enumerate() {
        for channel in 0..dim {
            let column = &mut columns[channel * n + group * 16..];
            for (value, row) in column.iter_mut().zip(rows.chunks_exact(dim)) {
                *value = row[channel];
            }
        }
    }
    columns
}

/// Offers each row's similarities to these references to the row's query. Where queries are references, `own` is the one of the
/// first row, and no query is offered itself.
fn scan(
    similarities: Tensor<2>,
    references: Range<usize>,
    own: Option<usize>,
    found: &mut [Nearest],
) -> Result<(), EvalError> {
    let [_, columns] = similarities.dims();
    let data = similarities
        .try_into_data_as::<f32>()
        .map_err(|e| EvalError::Device(e.to_string()))?;
    // Read where it lies.
    let values: &[f32] = data.as_slice().map_err(|e| EvalError::Device(e.to_string()))?;
    let offer = |(i, (found, row)): (usize, (&mut Nearest, &[f32]))| {
        let first = references.start;
        let row = &row[..references.len()];
        match own.map(|own| own + i).filter(|own| references.contains(own)) {
            Some(own) => {
                found.offer(&row[..own - first], first);
                found.offer(&row[own - first + 1..], own + 1);
            }
            None => found.offer(row, first),
        }
    };
    // On the CPU all of them: there are other queries for the other threads.
    let rows = found.par_iter_mut().zip(values.par_chunks_exact(columns));
    rows.with_min_len(ROWS).enumerate().for_each(offer);
    Ok(())
}

/// The `keep` nearest of what was offered so far, and about as many again that are not yet sorted out.
struct Nearest {
    keep: usize,
    /// Keys; from `count` on they mean nothing.
    found: Vec<i64>,
    count: usize,
    /// Nothing at or below it can still be among the nearest: indices are offered in ascending order.
    floor: f32,
}

impl Nearest {
    /// For the `keep` nearest of at most `offers`.
    fn new(keep: usize, offers: usize) -> Self {
        Self {
            keep,
            found: vec![0; offers.min(2 * keep) + LANES],
            count: 0,
            floor: f32::NEG_INFINITY,
        }
    }

    /// Offers the similarities to the references from `first` on.
    fn offer(&mut self, similarities: &[f32], first: usize) {
        let (blocks, rest) = similarities.as_chunks::<LANES>();
        for (b, block) in blocks.iter().enumerate() {
            // Few blocks have one above it, and without branches these are a few vector instructions.
            if block.iter().fold(false, |any, &s| any | (s > self.floor)) {
                self.take(block, first + b * LANES);
            }
        }
        self.take(rest, first + blocks.len() * LANES);
    }

    /// Takes what is above the floor of at most `LANES` similarities: writes all, and counts those.
    fn take(&mut self, similarities: &[f32], first: usize) {
        let free = &mut self.found[self.count..][..LANES];
        let mut taken = 0;
        for (i, &similarity) in similarities.iter().enumerate() {
            free[taken] = key(similarity, (first + i) as u32);
            taken += usize::from(similarity > self.floor);
        }
        self.count += taken;
        if self.count + LANES > self.found.len() {
            self.prune();
        }
    }

    fn prune(&mut self) {
        if self.count >= self.keep {
            let (_, &mut last, _) = self.found[..self.count].select_nth_unstable(self.keep - 1);
            self.floor = similarity_and_index(last).0;
            self.count = self.keep;
        }
    }

    /// Similarities and indices, the nearest first.
    fn sorted(mut self) -> impl Iterator<Item = (f32, u32)> {
        self.prune();
        self.found.truncate(self.count);
        self.found.sort_unstable();
        self.found.into_iter().map(similarity_and_index)
    }
}

/// One number that is smaller the nearer a reference is: the more similar, then the lower index.
fn key(similarity: f32, index: u32) -> i64 {
    // Zero is added to make the two zeros equal.
    i64::from(!in_order((similarity + 0.0).to_bits() as i32)) << 32 | i64::from(index)
}

fn similarity_and_index(key: i64) -> (f32, u32) {
    (f32::from_bits(in_order(!(key >> 32) as i32) as u32), key as u32)
}

/// The bits of a number as an integer in the same order, and back.
fn in_order(bits: i32) -> i32 {
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// The outcome of [`knn`].
#[derive(Clone, Debug, PartialEq)]
pub struct Knn {
    /// One for each k asked for, in that order.
    pub scores: Vec<KnnScore>,
    /// Divisor of the similarities in the weights of the vote.
    pub temperature: f64,
    /// Labelled images that voted.
    pub references: usize,
    /// Images that were classified.
    pub queries: usize,
    /// Classes that could be voted for.
    pub classes: usize,
}

/// How many queries a vote of k neighbours classified right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KnnScore {
    /// Neighbours asked for.
    pub k: usize,
    /// Neighbours that voted: fewer where there are fewer references.
    pub used: usize,
    /// Share of the queries whose class won, in 0..1.
    pub accuracy: f64,
}

/// DINO's weighted k-NN classification (elastic.md section 6.1; `eval_knn.py` of DINO).
///
/// Features are L2-normalised, the similarity is the cosine, and each of a query's k nearest references votes for its class
/// with the weight `exp(similarity / temperature)`. The protocol's softmax over the 200 nearest divides all weights of a
/// query by the same number and so elects the same class. Of classes with equal votes the lowest wins. The protocol takes
/// [`KS`] and [`TEMPERATURE`].
///
/// # Errors
/// If there are no references or queries, sizes do not agree, a feature is not finite, a label is no class, a k is 0, or
/// the temperature is not a positive number.
pub fn knn(
    references: Labelled<'_, FeatureMatrix>,
    queries: Labelled<'_, FeatureMatrix>,
    classes: usize,
    ks: &[usize],
    temperature: f64,
    device: &Device,
) -> Result<Knn, EvalError> {
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(EvalError::setting(
            "temperature",
            temperature,
            "must be a positive number; DINO's is 0.07",
        ));
    }
    if ks.contains(&0) {
        return Err(EvalError::setting("k", 0, "at least one neighbour is needed"));
    }
    check_labels(
        "labels of the references",
        references.labels,
        references.features.rows,
        classes,
    )?;
    check_labels("labels of the queries", queries.labels, queries.features.rows, classes)?;
    let most = ks.iter().copied().max().unwrap_or(1);
    let nearest = neighbours(references.features, queries.features, most, device)?;
    let mut ascending = ks.to_vec();
    ascending.sort_unstable();
    ascending.dedup();
    let right: Vec<usize> = nearest
        .indices
        .par_chunks(nearest.k)
        .zip(nearest.similarities.par_chunks(nearest.k))
        .zip(queries.labels)
        .map_init(
            || vec![0.0; classes],
            |votes, ((indices, similarities), &label)| {
                votes.fill(0.0);
                let labels = indices.iter().map(|&i| references.labels[i as usize]);
                let mut voters = labels.zip(similarities);
                let mut voted = 0;
                ascending
                    .iter()
                    .map(|&k| {
                        for (class, &similarity) in voters.by_ref().take(k - voted) {
                            // Relative to the nearest, so that no temperature overflows.
                            let distance = f64::from(similarity) - f64::from(similarities[0]);
                            votes[class as usize] += (distance / temperature).exp();
                        }
                        voted = k;
                        usize::from(winner(votes) == label as usize)
                    })
                    .collect()
            },
        )
        .reduce(
            || vec![0; ascending.len()],
            |a: Vec<usize>, b| a.iter().zip(b).map(|(a, b)| a + b).collect(),
        );
    let total = queries.features.rows;
    let scores = ks.iter().map(|&k| {
        let right = ascending.iter().position(|&other| other == k).map_or(0, |i| right[i]);
        KnnScore {
            k,
            used: k.min(nearest.k),
            accuracy: right as f64 / total as f64,
        }
    });
    Ok(Knn {
        scores: scores.collect(),
        temperature,
        references: references.features.rows,
        queries: total,
        classes,
    })
}

/// The index of the largest vote; the first of equals.
fn winner(votes: &[f64]) -> usize {
    votes
        .iter()
        .enumerate()
        .fold(0, |best, (i, &vote)| if vote > votes[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use offshoot_data::Rng;

    use super::*;

    fn cpu() -> Device {
        offshoot_zoo::tensor::device("cpu").unwrap()
    }

    fn features(dim: usize, values: &[f32]) -> FeatureMatrix {
        FeatureMatrix::new(values.len() / dim, dim, values.to_vec()).unwrap()
    }

    fn random(rows: usize, dim: usize, seed: u64) -> FeatureMatrix {
        let mut rng = Rng::for_example(seed, "test", 0, 0);
        features(dim, &(0..rows * dim).map(|_| rng.normal() as f32).collect::<Vec<_>>())
    }

    /// Unit vectors at these cosines to (1, 0).
    fn at_cosines(cosines: &[f32]) -> FeatureMatrix {
        features(
            2,
            &cosines
                .iter()
                .flat_map(|&c| [c, (1.0 - c * c).sqrt()])
                .collect::<Vec<_>>(),
        )
    }

    fn accuracies(
        references: (&FeatureMatrix, &[u32]),
        queries: (&FeatureMatrix, &[u32]),
        classes: usize,
        ks: &[usize],
        temperature: f64,
    ) -> Vec<f64> {
        let references = Labelled {
            features: references.0,
            labels: references.1,
        };
        let queries = Labelled {
            features: queries.0,
            labels: queries.1,
        };
        let knn = knn(references, queries, classes, ks, temperature, &cpu()).unwrap();
        knn.scores.iter().map(|s| s.accuracy).collect()
    }

    /// One near neighbour of class 1 and two farther ones of class 0. At 0.07: exp(0.9 / 0.07) = 3.8e5 against
    /// 2 exp(0.8 / 0.07) = 1.8e5, so the near one wins; at 1: 2.46 against 4.45, so the two win.
    #[test]
    fn the_temperature_flips_a_vote() {
        let (references, query) = (at_cosines(&[0.9, 0.8, 0.8, -0.5]), at_cosines(&[1.0]));
        let vote = |k, t| accuracies((&references, &[1, 0, 0, 1]), (&query, &[1]), 2, &[k], t)[0];
        assert_eq!(vote(3, 0.07), 1.0);
        assert_eq!(vote(3, 1.0), 0.0);
        assert_eq!(vote(1, 1.0), 1.0);
        // exp(-0.1 / T) = 1/2 at T = 0.144: just above and below it.
        assert_eq!(vote(3, 0.14), 1.0);
        assert_eq!(vote(3, 0.15), 0.0);
        assert_eq!(vote(3, 1e-300), 1.0);
    }

    #[test]
    fn lengths_do_not_matter_and_each_class_finds_its_own() {
        let references = features(2, &[100.0, 1.0, 1e-3, 1e-4, 0.1, 9.0, 2.0, 50.0]);
        let queries = features(2, &[7.0, 0.5, 0.0, 1e-5, 3.0, 3.1]);
        // The last query lies at 46 degrees: 40 and 45 from the two of class 0, 42 and 43 from those of class 1.
        let all = accuracies(
            (&references, &[0, 0, 1, 1]),
            (&queries, &[0, 1, 0]),
            2,
            &[1, 2, 4],
            0.07,
        );
        assert_eq!(all, [1.0; 3]);
        let all = accuracies(
            (&references, &[0, 0, 1, 1]),
            (&queries, &[1, 1, 0]),
            2,
            &[1, 2, 4],
            0.07,
        );
        assert_eq!(all, [2.0 / 3.0; 3]);
    }

    #[test]
    fn constant_features_elect_the_first_references() {
        let references = features(3, &[0.5; 15]);
        let queries = features(3, &[0.25; 12]);
        let nearest = neighbours(&references, &queries, 2, &cpu()).unwrap();
        assert_eq!(nearest.indices, [0, 1, 0, 1, 0, 1, 0, 1]);
        let labels = [2, 2, 0, 0, 0];
        let all = accuracies((&references, &labels), (&queries, &[0, 1, 2, 2]), 3, &[1, 2, 5], 0.07);
        assert_eq!(all, [0.5, 0.5, 0.25]);
        // Two classes with one vote each: the lower class.
        assert_eq!(
            accuracies(
                (&references, &[1, 0, 0, 0, 0]),
                (&queries, &[0, 0, 0, 1]),
                2,
                &[2],
                0.07
            ),
            [0.75]
        );
        let zeros = features(3, &[0.0; 15]);
        assert_eq!(neighbours(&zeros, &queries, 1, &cpu()).unwrap().indices, [0; 4]);
    }

    #[test]
    fn random_features_score_chance() {
        let mut rng = Rng::for_example(3, "labels", 0, 0);
        let mut labels = |n: usize| (0..n).map(|_| rng.below(4) as u32).collect::<Vec<_>>();
        let (a, b) = (labels(1000), labels(1000));
        let all = accuracies(
            (&random(1000, 16, 1), &a),
            (&random(1000, 16, 2), &b),
            4,
            &KS,
            TEMPERATURE,
        );
        assert!(all.iter().all(|a| (a - 0.25).abs() < 0.05), "{all:?}");
    }

    #[test]
    fn more_neighbours_than_references_are_clamped_and_reported() {
        let references = random(30, 5, 1);
        let labels: Vec<u32> = (0..30).map(|i| i % 3).collect();
        let both = Labelled {
            features: &references,
            labels: &labels,
        };
        let knn = knn(both, both, 3, &[200, 10, 100, 10], 0.07, &cpu()).unwrap();
        let ks: Vec<(usize, usize)> = knn.scores.iter().map(|s| (s.k, s.used)).collect();
        assert_eq!(ks, [(200, 30), (10, 10), (100, 30), (10, 10)]);
        assert_eq!(knn.scores[0].accuracy, knn.scores[2].accuracy);
        assert_eq!((knn.references, knn.queries, knn.classes), (30, 30, 3));
    }

    /// Against all cosines in f64, for every `step`th query: nothing nearer is missing, and the order is the documented one.
    fn check(references: &FeatureMatrix, queries: &FeatureMatrix, k: usize, within: bool, step: usize) {
        let found = if within {
            neighbours_within(references, k, &cpu()).unwrap()
        } else {
            neighbours(references, queries, k, &cpu()).unwrap()
        };
        let (n, dim) = (references.rows, references.dim);
        let used = k.min(n - usize::from(within));
        assert_eq!((found.queries, found.k), (queries.rows, used));
        assert_eq!(
            (found.indices.len(), found.similarities.len()),
            (queries.rows * used, queries.rows * used)
        );
        let length = |row: &[f32]| row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let lengths: Vec<f64> = references.values.chunks(dim).map(length).collect();
        for (q, query) in queries.values.chunks(dim).enumerate().step_by(step) {
            let cosines: Vec<f64> = references
                .values
                .chunks(dim)
                .zip(&lengths)
                .map(|(row, l)| {
                    let dot: f64 = row.iter().zip(query).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    dot / l / length(query)
                })
                .collect();
            let indices = &found.indices[q * used..][..used];
            let similarities = &found.similarities[q * used..][..used];
            let mut left = vec![true; n];
            if within {
                left[q] = false;
            }
            for (&index, &similarity) in indices.iter().zip(similarities) {
                assert!(std::mem::take(&mut left[index as usize]), "{index} twice, or itself");
                assert!((f64::from(similarity) - cosines[index as usize]).abs() < 1e-6);
            }
            let last = f64::from(similarities[used - 1]);
            assert!((0..n).all(|i| !left[i] || cosines[i] < last + 1e-6));
            for i in 1..used {
                let (a, b) = (similarities[i - 1], similarities[i]);
                assert!(a > b || a == b && indices[i - 1] < indices[i]);
            }
        }
    }

    #[test]
    fn all_cosines_in_float64_have_the_same_neighbours() {
        // References, queries, channels, k: one and few, primes, all references.
        for (n, m, dim, k) in [
            (1, 1, 1, 1),
            (1, 50, 3, 7),
            (7, 3, 5, 4),
            (17, 16, 2, 15),
            (127, 53, 31, 127),
            (1009, 101, 13, 1008),
            (1009, 7, 13, 5000),
        ] {
            check(&random(n, dim, 5), &random(m, dim, 6), k, false, 1);
        }
        // Around the limits of products and blocks.
        for (dim, k) in [(3, 9), (384, 20), (1999, 2)] {
            let sizes = Sizes::new(dim, true);
            for (n, m) in [
                (sizes.columns - 1, sizes.rows + 1),
                (sizes.columns, sizes.rows),
                (sizes.columns + 1, sizes.rows - 1),
                (2 * sizes.columns + 17, 2 * sizes.rows + 1),
                (sizes.references, 5),
                (sizes.references + 1, 2),
                (2 * sizes.references - 1, 1),
                (67, sizes.queries + 1),
            ] {
                let step = (n * m * dim / 4_000_000).clamp(1, m);
                check(&random(n, dim, 7), &random(m, dim, 8), k, false, step);
            }
        }
        check(&random(8193, 7, 1), &random(514, 7, 2), 200, false, 37);
    }

    #[test]
    fn all_other_images_in_float64_are_the_same_neighbours() {
        let sizes = Sizes::new(5, true);
        for (n, k) in [
            (2, 1),
            (3, 20),
            (sizes.rows + 1, 48),
            (sizes.columns + 1, 20),
            (sizes.queries + 3, 3),
            (sizes.references + 1, 200),
        ] {
            let all = random(n, 5, 9);
            check(&all, &all, k, true, n.div_ceil(100));
        }
    }

    /// Eleven directions, each many times, up to the last and incomplete product.
    #[test]
    fn equal_images_come_in_the_order_of_their_indices_wherever_they_stand() {
        for (n, dim, k) in [(8192 + 257, 384, 2000), (16385, 6, 4000), (1000, 33, 1000)] {
            let (kinds, queries) = (random(11, dim, 3), random(97, dim, 4));
            let kind = |i: usize| i * i % 11;
            let values = (0..n).flat_map(|i| kinds.values[kind(i) * dim..][..dim].iter().copied());
            let references = features(dim, &values.collect::<Vec<_>>());
            let found = neighbours(&references, &queries, k, &cpu()).unwrap();
            let rank = neighbours(&kinds, &queries, 11, &cpu()).unwrap();
            for (indices, rank) in found.indices.chunks(k).zip(rank.indices.chunks(11)) {
                let expected = rank
                    .iter()
                    .flat_map(|&r| (0..n).filter(move |&i| kind(i) == r as usize));
                assert!(expected.take(k).eq(indices.iter().map(|&i| i as usize)));
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let (references, queries) = (random(8500, 96, 1), random(1111, 96, 2));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| {
                [
                    neighbours(&references, &queries, 20, &cpu()).unwrap(),
                    neighbours_within(&queries, 200, &cpu()).unwrap(),
                ]
            });
            found.map(|f| {
                (
                    f.indices,
                    f.similarities.iter().map(|s| s.to_bits()).collect::<Vec<_>>(),
                )
            })
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(3));
    }

    #[test]
    fn what_is_held_does_not_grow_with_the_images() {
        for dim in [1, 2, 63, 384, 768, 1536, 4096, BLOCK_VALUES, 2 * BLOCK_VALUES] {
            for on_cpu in [true, false] {
                let s = Sizes::new(dim, on_cpu);
                // Both are held in whole products, so at least one.
                assert!(s.queries <= BLOCK.max(s.rows) && s.references <= BLOCK.max(s.columns));
                assert!(s.queries * dim <= BLOCK_VALUES.max(s.rows * dim));
                assert!(s.references * dim <= BLOCK_VALUES.max(s.columns * dim));
                assert!(s.queries.is_multiple_of(s.rows) && s.references.is_multiple_of(s.columns));
                assert!(s.columns.is_multiple_of(LANES));
                assert!(s.rows * s.columns * size_of::<f32>() <= if on_cpu { 400 << 10 } else { 16 << 20 });
            }
        }
        // The worst order: each is nearer than all before.
        let mut nearest = Nearest::new(20, 1 << 20);
        for i in 0..10_000 {
            nearest.offer(&[0, 1, 2].map(|j| (3 * i + j) as f32), 3 * i);
            assert_eq!(nearest.found.len(), 2 * 20 + LANES);
        }
        assert!(nearest.sorted().map(|(_, index)| index).eq((29_980..30_000).rev()));
    }

    #[test]
    fn keys_are_in_the_order_of_similarities_then_indices() {
        let similarities = [1.0f32, 0.5, 1e-40, 0.0, -1e-40, -0.5, -1.0];
        let keys: Vec<i64> = similarities
            .iter()
            .flat_map(|&s| [key(s, 0), key(s, 1), key(s, u32::MAX)])
            .collect();
        assert!(keys.is_sorted_by(|a, b| a < b));
        for s in similarities {
            assert_eq!(similarity_and_index(key(s, u32::MAX - 1)), (s, u32::MAX - 1));
        }
        assert_eq!(key(-0.0, 3), key(0.0, 3));
    }

    #[test]
    fn it_is_deterministic_and_leaves_itself_out() {
        let all = random(700, 9, 4);
        let once = neighbours_within(&all, 20, &cpu()).unwrap();
        assert_eq!(once, neighbours_within(&all, 20, &cpu()).unwrap());
        for (i, row) in once.indices.chunks(20).enumerate() {
            assert!(row.iter().all(|&j| j as usize != i));
        }
        let two = neighbours_within(&random(2, 3, 0), 20, &cpu()).unwrap();
        assert_eq!((two.k, two.indices), (1, vec![1, 0]));
    }

    #[test]
    fn bad_input_is_an_error() {
        let (good, labels) = (random(4, 2, 0), [0, 1, 0, 1]);
        let ask = |f: &FeatureMatrix, labels: &[u32], classes, k, t| {
            let references = Labelled { features: f, labels };
            let queries = Labelled {
                features: &good,
                labels: &[0, 1, 0, 1],
            };
            knn(references, queries, classes, &[k], t, &cpu())
        };
        assert!(ask(&good, &labels, 2, 1, 0.07).is_ok());
        assert!(matches!(
            ask(&good, &labels, 2, 0, 0.07),
            Err(EvalError::Setting { .. })
        ));
        for t in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(ask(&good, &labels, 2, 1, t), Err(EvalError::Setting { .. })));
        }
        assert!(matches!(
            ask(&good, &[0, 1, 2, 0], 2, 1, 0.07),
            Err(EvalError::Label { row: 2, label: 2, .. })
        ));
        assert!(matches!(ask(&good, &[0], 2, 1, 0.07), Err(EvalError::Size { .. })));
        let wide = random(4, 3, 0);
        assert!(matches!(ask(&wide, &labels, 2, 1, 0.07), Err(EvalError::Size { .. })));
        let empty = FeatureMatrix {
            rows: 0,
            dim: 2,
            values: vec![],
        };
        assert!(matches!(ask(&empty, &[], 2, 1, 0.07), Err(EvalError::TooFew { .. })));
        let flat = FeatureMatrix {
            rows: 4,
            dim: 0,
            values: vec![],
        };
        assert!(matches!(ask(&flat, &labels, 2, 1, 0.07), Err(EvalError::TooFew { .. })));
        let mut broken = good.clone();
        broken.values[5] = f32::NAN;
        assert!(matches!(
            ask(&broken, &labels, 2, 1, 0.07),
            Err(EvalError::NotFinite { row: 2, .. })
        ));
        assert!(matches!(
            neighbours_within(&random(1, 2, 0), 1, &cpu()),
            Err(EvalError::TooFew { .. })
        ));
    }
}
