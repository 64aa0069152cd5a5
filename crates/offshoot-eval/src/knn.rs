//! Nearest neighbours by cosine, and DINO's weighted vote among them.

use std::cmp::Ordering;

use offshoot_zoo::tensor::Device;
use rayon::prelude::*;

use crate::error::{EvalError, enough, same};
use crate::features::{FeatureMatrix, Labelled, check_labels, matrix, normalise, read};

/// The ks of DINO's protocol.
pub const KS: [usize; 4] = [10, 20, 100, 200];
/// The temperature of DINO's protocol.
pub const TEMPERATURE: f64 = 0.07;

/// References and queries that are compared at once; their similarities take 16 MiB.
const TILE: usize = 8192;
const CHUNK: usize = 512;

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
/// Memory beyond the result stays within a few tens of MiB, however many images there are.
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
    let upload = |rows: &[f32]| {
        let mut rows = rows.to_vec();
        normalise(&mut rows, dim);
        let n = rows.len() / dim;
        matrix(rows, n, dim, &device)
    };
    let mut found: Vec<Nearest> = (0..queries.rows).map(|_| Nearest::new(k)).collect();
    for (t, tile) in references.values.chunks(TILE * dim).enumerate() {
        let (first, n) = (t * TILE, tile.len() / dim);
        let columns = upload(tile).transpose();
        for (c, (rows, found)) in queries
            .values
            .chunks(CHUNK * dim)
            .zip(found.chunks_mut(CHUNK))
            .enumerate()
        {
            let similarities = read(upload(rows).matmul(columns.clone()))?;
            found
                .par_iter_mut()
                .zip(similarities.par_chunks(n))
                .enumerate()
                .for_each(|(i, (found, row))| {
                    let own = c * CHUNK + i;
                    for (j, &similarity) in row.iter().enumerate() {
                        if !(skip_self && first + j == own) {
                            found.offer(similarity, (first + j) as u32);
                        }
                    }
                });
        }
    }
    let sorted: Vec<(f32, u32)> = found.into_par_iter().flat_map_iter(Nearest::sorted).collect();
    let (similarities, indices) = sorted.into_iter().unzip();
    Ok(Neighbours {
        queries: queries.rows,
        k,
        indices,
        similarities,
    })
}

/// The `keep` best of what was offered so far, and up to as many again that are not yet sorted out.
struct Nearest {
    keep: usize,
    found: Vec<(f32, u32)>,
    /// Nothing at or below it can still be among the best: indices are offered in ascending order.
    floor: f32,
}

impl Nearest {
    fn new(keep: usize) -> Self {
        Self {
            keep,
            found: Vec::new(),
            floor: f32::NEG_INFINITY,
        }
    }

    fn offer(&mut self, similarity: f32, index: u32) {
        if similarity > self.floor {
            self.found.push((similarity, index));
            if self.found.len() >= 2 * self.keep {
                self.prune();
            }
        }
    }

    fn prune(&mut self) {
        if self.found.len() >= self.keep {
            self.floor = self.found.select_nth_unstable_by(self.keep - 1, nearer).1.0;
            self.found.truncate(self.keep);
        }
    }

    fn sorted(mut self) -> Vec<(f32, u32)> {
        self.prune();
        self.found.sort_unstable_by(nearer);
        self.found
    }
}

/// The more similar first, then the lower index.
fn nearer(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
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

    /// The whole matrix in f64 and a full sort, at sizes around the tiles and chunks.
    #[test]
    fn a_simple_loop_finds_the_same() {
        for (n, m, dim, k) in [
            (1, 1, 1, 1),
            (7, 3, 5, 4),
            (513, 511, 3, 9),
            (8193, 514, 7, 200),
            (16385, 2, 4, 33),
        ] {
            let (references, queries) = (random(n, dim, 5).normalised(), random(m, dim, 6).normalised());
            let fast = neighbours(&references, &queries, k, &cpu()).unwrap();
            assert_eq!((fast.k, fast.indices.len()), (k.min(n), m * k.min(n)));
            for (q, query) in queries.values.chunks(dim).enumerate().step_by(37) {
                let cosine = |r: usize| -> f64 {
                    let row = &references.values[r * dim..][..dim];
                    row.iter().zip(query).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
                };
                let mut all: Vec<f64> = (0..n).map(cosine).collect();
                all.sort_unstable_by(|a, b| b.total_cmp(a));
                let row = q * fast.k..(q + 1) * fast.k;
                for (i, (&index, &similarity)) in fast.indices[row.clone()]
                    .iter()
                    .zip(&fast.similarities[row])
                    .enumerate()
                {
                    assert!((cosine(index as usize) - all[i]).abs() < 1e-6);
                    assert!((f64::from(similarity) - all[i]).abs() < 1e-6);
                }
            }
        }
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
