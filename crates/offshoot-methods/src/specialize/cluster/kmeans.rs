//! Balanced k-means on fresh samples: greedy k-means++, assignment by matrix products, and one rule against large clusters.

use offshoot_data::Rng;
use offshoot_zoo::tensor::kernels::gemm::row_products;
use rayon::prelude::*;

use super::error::ClusterError;

/// Vectors of one matrix product: what the products' kernels take whole.
const TILE: usize = 48;
/// Vectors that one thread looks at in turn.
const PIECE: usize = 10 * TILE;

/// What decides the clusters of one split, besides the vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Vectors of each step. Where there are no more than this, each step takes them all.
    pub sample: usize,
    /// Steps, at most: fewer where all vectors are in every step and no assignment changes.
    pub steps: usize,
    /// The largest cluster of a step is split while it has more than `balance / k` of the assignments; infinite for plain k-means.
    pub balance: f64,
    /// Decides samples, starts and splits.
    pub seed: u64,
}

impl Settings {
    /// The recipe's numbers (Hierarchical memories, appendix C): 20 steps of 6,400 vectors, or of 64 for each cluster where that is
    /// more, and no cluster with more than 1.5 times its equal share.
    #[must_use]
    pub fn new(k: usize, seed: u64) -> Self {
        Self {
            sample: 6400.max(64 * k),
            steps: 20,
            balance: 1.5,
            seed,
        }
    }
}

/// Vectors to sample from, by number. They may lie on disk.
pub trait Vectors: Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers of one vector.
    fn width(&self) -> usize;

    /// Writes vector `number` to `row`, which has [`width`](Self::width) places.
    fn read(&self, number: u64, row: &mut [f32]);
}

/// What [`fit`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// `[k, width]`, row-major. With fewer vectors than clusters, one for each vector.
    pub centroids: Vec<f32>,
    /// Steps that were made.
    pub steps: usize,
}

/// Clusters of vectors: `k` centroids by expectation maximisation on a fresh sample in each step, from a greedy k-means++ start
/// on the first sample (Arthur and Vassilvitskii 2007; of `2 + ln k` candidates the best, as scikit-learn does).
///
/// A step assigns its sample, splits the largest cluster evenly at random with the smallest one while it has more than
/// `balance / k` of the sample, and takes the mean of each cluster; a cluster without vectors keeps its centroid. Samples
/// are passes over all vectors, each in an order of its own. `purpose` names the split: it and the seed decide all that is random. The
/// bytes depend neither on threads nor on where the vectors lie.
///
/// # Errors
/// [`ClusterError::Setting`] where a setting cannot work or there are no vectors.
pub fn fit(vectors: &impl Vectors, k: usize, settings: &Settings, purpose: &str) -> Result<Fit, ClusterError> {
    let (n, width) = (vectors.len(), vectors.width());
    if k == 0 || n == 0 || width == 0 {
        let reason = format!("{k} clusters of {n} vectors of {width} numbers");
        return Err(ClusterError::setting("k", reason));
    }
    if settings.steps == 0 {
        return Err(ClusterError::setting("steps", "must be at least 1"));
    }
    // At or below 1 the rule could never be met.
    if settings.balance.is_nan() || settings.balance <= 1.0 {
        let reason = format!("{} times the equal share; it must be more than 1", settings.balance);
        return Err(ClusterError::setting("balance", reason));
    }
    let k = k.min(usize::try_from(n).unwrap_or(usize::MAX));
    if settings.sample < k {
        let reason = format!("{} vectors in a step for {k} clusters", settings.sample);
        return Err(ClusterError::setting("sample", reason));
    }
    let is_all = n <= settings.sample as u64;
    let size = n.min(settings.sample as u64) as usize;
    let draw = |step: usize| -> Vec<f32> {
        let mut rows = vec![0.0; size * width];
        rows.par_chunks_mut(width).enumerate().for_each(|(i, row)| {
            let place = step as u128 * size as u128 + i as u128;
            let number = if is_all {
                i as u64
            } else {
                offshoot_data::text::permuted(settings.seed, purpose, place, n)
            };
            vectors.read(number, row);
        });
        rows
    };
    let mut rows = draw(0);
    let mut centroids = start(&rows, width, k, &mut Rng::for_example(settings.seed, purpose, 0, 1));
    let mut before: Option<Vec<u32>> = None;
    for step in 0..settings.steps {
        if step > 0 && !is_all {
            rows = draw(step);
        }
        let mut labels: Vec<u32> = nearest(&rows, &centroids, width)
            .into_iter()
            .map(|(label, _)| label)
            .collect();
        let mut rng = Rng::for_example(settings.seed, purpose, step as u64, 2);
        let split = balance(&mut labels, k, settings.balance, &mut rng);
        if is_all && !split && before.as_ref() == Some(&labels) {
            return Ok(Fit { centroids, steps: step });
        }
        move_centroids(&rows, &labels, width, &mut centroids);
        before = Some(labels);
    }
    Ok(Fit {
        centroids,
        steps: settings.steps,
    })
}

/// The nearest of `centroids`, `[k, width]`, to each of `rows`, `[n, width]`, with the squared Euclidean distance; of equally near ones
/// the first. `[n]`.
pub(super) fn nearest(rows: &[f32], centroids: &[f32], width: usize) -> Vec<(u32, f32)> {
    let norms = square_norms(centroids, width);
    let k = norms.len();
    let mut found = vec![(0, 0.0); rows.len() / width];
    found
        .par_chunks_mut(PIECE)
        .zip(rows.par_chunks(PIECE * width))
        .for_each(|(found, rows)| {
            let mut products = vec![0.0; TILE * k];
            for (found, rows) in found.chunks_mut(TILE).zip(rows.chunks(TILE * width)) {
                let products = &mut products[..found.len() * k];
                row_products(rows, centroids, width, products);
                let each = found
                    .iter_mut()
                    .zip(rows.chunks_exact(width))
                    .zip(products.chunks_exact(k));
                for ((found, row), products) in each {
                    let mut best = (0, f32::INFINITY);
                    for (cluster, (&norm, &product)) in norms.iter().zip(products).enumerate() {
                        let distance = norm - 2.0 * product;
                        if distance < best.1 {
                            best = (cluster as u32, distance);
                        }
                    }
                    *found = (best.0, (best.1 + square_norm(row)).max(0.0));
                }
            }
        });
    found
}

fn square_norms(rows: &[f32], width: usize) -> Vec<f32> {
    rows.chunks_exact(width).map(square_norm).collect()
}

/// In eight sums, which the compiler turns into vectors, and which are the same for any vector width.
fn square_norm(row: &[f32]) -> f32 {
    let (eights, rest) = row.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for eight in eights {
        for (sum, value) in sums.iter_mut().zip(eight) {
            *sum += value * value;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>()
}

/// Greedy k-means++: `k` of the rows, `[k, width]`.
fn start(rows: &[f32], width: usize, k: usize, rng: &mut Rng) -> Vec<f32> {
    let n = rows.len() / width;
    let row = |i: usize| &rows[i * width..][..width];
    let trials = 2 + (k as f64).ln() as usize;
    let norms: Vec<f32> = rows.par_chunks(width).map(square_norm).collect();
    let mut centroids = Vec::with_capacity(k * width);
    let mut closest = vec![f32::INFINITY; n];
    let mut candidates = vec![rng.range(0..n)];
    let mut chosen = vec![false; n];
    loop {
        let tried: Vec<f32> = candidates.iter().flat_map(|&c| row(c)).copied().collect();
        let (best, distances) = best_candidate(rows, &norms, &closest, &tried, width);
        closest = distances;
        chosen[candidates[best]] = true;
        centroids.extend_from_slice(row(candidates[best]));
        if centroids.len() == k * width {
            return centroids;
        }
        // Far rows are likely; rows that were chosen have no distance, but for rounding.
        let mut sums = Vec::with_capacity(n);
        let mut total = 0.0;
        for (distance, chosen) in closest.iter().zip(&chosen) {
            total += if *chosen { 0.0 } else { f64::from(*distance) };
            sums.push(total);
        }
        candidates = (0..trials)
            .map(|_| {
                if total > 0.0 {
                    let place = rng.unit() * total;
                    sums.partition_point(|&sum| sum <= place).min(n - 1)
                } else {
                    // All rows are centroids already: any other will do.
                    let free = chosen.iter().filter(|chosen| !**chosen).count() as u64;
                    let wanted = rng.below(free) as usize;
                    (0..n).filter(|&i| !chosen[i]).nth(wanted).unwrap_or(0)
                }
            })
            .collect();
    }
}

/// Which of the rows `tried` leaves the smallest sum of distances to the nearest centroid, and those distances.
fn best_candidate(rows: &[f32], norms: &[f32], closest: &[f32], tried: &[f32], width: usize) -> (usize, Vec<f32>) {
    let trials = tried.len() / width;
    let tried_norms = square_norms(tried, width);
    // For each piece: the sums of all candidates, then the distances to each.
    let pieces: Vec<(Vec<f64>, Vec<f32>)> = rows
        .par_chunks(PIECE * width)
        .zip(norms.par_chunks(PIECE))
        .zip(closest.par_chunks(PIECE))
        .map(|((rows, norms), closest)| {
            let mut products = vec![0.0; norms.len() * trials];
            row_products(rows, tried, width, &mut products);
            let mut sums = vec![0.0; trials];
            let each = products.chunks_exact_mut(trials).zip(norms).zip(closest);
            for ((products, norm), closest) in each {
                for ((product, own), sum) in products.iter_mut().zip(&tried_norms).zip(&mut sums) {
                    *product = (norm + own - 2.0 * *product).max(0.0).min(*closest);
                    *sum += f64::from(*product);
                }
            }
            (sums, products)
        })
        .collect();
    let sum = |trial: usize| pieces.iter().map(|(sums, _)| sums[trial]).sum::<f64>();
    let sums: Vec<f64> = (0..trials).map(sum).collect();
    let best = (1..trials).fold(0, |best, trial| if sums[trial] < sums[best] { trial } else { best });
    let column = pieces
        .iter()
        .flat_map(|(_, distances)| distances.iter().skip(best).step_by(trials));
    (best, column.copied().collect())
}

/// While a cluster has more than `limit / k` of the labels, gives as many of its vectors to the smallest cluster, drawn at random, as
/// make the two equal. Whether any was split.
pub(super) fn balance(labels: &mut [u32], k: usize, limit: f64, rng: &mut Rng) -> bool {
    let most = limit / k as f64 * labels.len() as f64;
    let mut counts = vec![0usize; k];
    labels.iter().for_each(|&label| counts[label as usize] += 1);
    let mut split = false;
    // Each split brings two clusters nearer to the mean; far fewer are needed than this.
    for _ in 0..8 * k {
        let largest = (0..k).rev().max_by_key(|&c| counts[c]).unwrap_or(0);
        let smallest = (0..k).min_by_key(|&c| counts[c]).unwrap_or(0);
        let moved = (counts[largest] - counts[smallest]) / 2;
        if counts[largest] as f64 <= most || moved == 0 {
            break;
        }
        let mut own: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] as usize == largest).collect();
        rng.shuffle(&mut own);
        own[..moved].iter().for_each(|&i| labels[i] = smallest as u32);
        counts[largest] -= moved;
        counts[smallest] += moved;
        split = true;
    }
    split
}

/// Puts each centroid in the middle of its rows; without rows it stays.
fn move_centroids(rows: &[f32], labels: &[u32], width: usize, centroids: &mut [f32]) {
    let mut members = vec![Vec::new(); centroids.len() / width];
    for (i, &label) in labels.iter().enumerate() {
        members[label as usize].push(i);
    }
    centroids
        .par_chunks_mut(width)
        .zip(&members)
        .for_each(|(centroid, members)| {
            if members.is_empty() {
                return;
            }
            let mut sums = vec![0.0f64; width];
            for &i in members {
                let row = &rows[i * width..][..width];
                sums.iter_mut()
                    .zip(row)
                    .for_each(|(sum, &value)| *sum += f64::from(value));
            }
            let count = members.len() as f64;
            centroid
                .iter_mut()
                .zip(&sums)
                .for_each(|(value, sum)| *value = (sum / count) as f32);
        });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rows(Vec<f32>, usize);

    impl Vectors for Rows {
        fn len(&self) -> u64 {
            (self.0.len() / self.1) as u64
        }

        fn width(&self) -> usize {
            self.1
        }

        fn read(&self, number: u64, row: &mut [f32]) {
            row.copy_from_slice(&self.0[number as usize * self.1..][..self.1]);
        }
    }

    /// `per` points around each of four corners, at most .1 away along each axis, in turns.
    fn corners(per: usize) -> Rows {
        let mut rng = Rng::for_example(1, "points", 0, 0);
        let points = (0..4 * per).flat_map(|i| {
            let corner = [i % 2, i / 2 % 2].map(|c| 10.0 * c as f32);
            corner.map(|c| c + rng.uniform_f32(-0.1, 0.1))
        });
        Rows(points.collect(), 2)
    }

    #[test]
    fn separated_points_are_found_exactly() {
        let points = corners(50);
        let found = fit(&points, 4, &Settings::new(4, 0), "test").unwrap();
        assert!(found.steps < 20, "{} steps", found.steps);
        let mut each = [(0.0f64, 0.0f64, 0u32); 4];
        for (i, point) in points.0.chunks(2).enumerate() {
            let sum = &mut each[i % 4];
            *sum = (sum.0 + f64::from(point[0]), sum.1 + f64::from(point[1]), sum.2 + 1);
        }
        let means: Vec<(f32, f32)> = each
            .iter()
            .map(|s| ((s.0 / 50.0) as f32, (s.1 / 50.0) as f32))
            .collect();
        for centroid in found.centroids.chunks(2) {
            assert!(means.contains(&(centroid[0], centroid[1])), "{centroid:?} {means:?}");
        }
        let labels = nearest(&points.0, &found.centroids, 2);
        for (i, (label, distance)) in labels.iter().enumerate() {
            assert_eq!(label, &labels[i % 4].0);
            let [x, y] = [0, 1].map(|d| points.0[2 * i + d] - found.centroids[2 * *label as usize + d]);
            assert!((distance - (x * x + y * y)).abs() < 1e-3);
        }
    }

    #[test]
    fn fresh_samples_find_the_same_and_any_number_of_threads_the_same_bytes() {
        let points = corners(5000);
        let settings = Settings {
            sample: 400,
            ..Settings::new(4, 3)
        };
        let found: Vec<Fit> = [1, 2, 5]
            .into_iter()
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| fit(&points, 4, &settings, "test").unwrap())
            })
            .collect();
        assert!(found.iter().all(|one| one == &found[0]));
        assert_eq!(found[0].steps, 20);
        let mut near: Vec<[i32; 2]> = found[0]
            .centroids
            .chunks(2)
            .map(|c| [c[0].round() as i32, c[1].round() as i32])
            .collect();
        near.sort_unstable();
        assert_eq!(near, [[0, 0], [0, 10], [10, 0], [10, 10]]);
        let other = fit(&points, 4, &Settings { seed: 4, ..settings }, "test").unwrap();
        assert_ne!(other, found[0]);
    }

    #[test]
    fn a_cluster_above_its_share_is_halved_with_the_smallest() {
        // 90, 6 and 4 of 100, at most 50 each: the first gives 43 to the third.
        let labels: Vec<u32> = (0..100)
            .map(|i| {
                if i < 90 {
                    0
                } else if i < 96 {
                    1
                } else {
                    2
                }
            })
            .collect();
        let mut balanced = labels.clone();
        assert!(balance(&mut balanced, 3, 1.5, &mut Rng::for_example(0, "t", 0, 0)));
        let count = |label| balanced.iter().filter(|&&l| l == label).count();
        assert_eq!([count(0), count(1), count(2)], [47, 6, 47]);
        assert!(balanced[90..].iter().zip(&labels[90..]).all(|(a, b)| a == b));
        // Half of them at random, not the first half.
        assert!(balanced[..45].contains(&0) && balanced[..45].contains(&2));
        let mut even = vec![0, 1, 2, 0, 1, 2];
        assert!(!balance(&mut even, 3, 1.5, &mut Rng::for_example(0, "t", 0, 0)));
        for k in 1..20 {
            let mut all = vec![0; 1000];
            balance(&mut all, k, 1.5, &mut Rng::for_example(0, "t", 0, 0));
            let largest = (0..k as u32)
                .map(|c| all.iter().filter(|&&l| l == c).count())
                .max()
                .unwrap();
            assert!(
                largest as f64 <= 1.5 / k as f64 * 1000.0,
                "{largest} of 1000 in one of {k}"
            );
        }
    }

    #[test]
    fn points_that_are_all_the_same_and_fewer_points_than_clusters_are_no_trouble() {
        let same = Rows(vec![0.5; 60], 3);
        let found = fit(&same, 4, &Settings::new(4, 0), "test").unwrap();
        assert_eq!(found.centroids, vec![0.5; 12]);
        let few = Rows(vec![1.0, 2.0, 3.0], 1);
        let found = fit(&few, 8, &Settings::new(8, 0), "test").unwrap();
        let mut centroids = found.centroids;
        centroids.sort_by(f32::total_cmp);
        assert_eq!(centroids, [1.0, 2.0, 3.0]);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let points = corners(5);
        let refused = |k, settings: Settings| fit(&points, k, &settings, "test").unwrap_err().to_string();
        let usual = Settings::new(4, 0);
        assert!(refused(0, usual).contains("0 clusters"));
        assert!(refused(4, Settings { steps: 0, ..usual }).contains("`steps`"));
        assert!(refused(4, Settings { sample: 3, ..usual }).contains("3 vectors in a step for 4 clusters"));
        for balance in [1.0, 0.0, f64::NAN] {
            assert!(refused(4, Settings { balance, ..usual }).contains("`balance`"));
        }
    }
}
