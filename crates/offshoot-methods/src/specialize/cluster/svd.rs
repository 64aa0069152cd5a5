//! The largest singular vectors of a sparse matrix, by random projections.

use offshoot_data::Rng;
use rayon::prelude::*;

/// Directions beyond those that are wanted, which make these exact.
const OVERSAMPLING: usize = 10;
/// Times that the matrix and its transpose are applied before the directions are kept.
const ITERATIONS: usize = 4;
/// Rows that one thread works on in turn.
const PIECE: usize = 1024;

/// A matrix of few numbers that are not zero, row by row.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    /// Columns.
    pub(super) width: usize,
    /// Where the numbers of each row end.
    ends: Vec<usize>,
    /// Column and number.
    entries: Vec<(u32, f32)>,
}

impl Sparse {
    pub(super) fn new(width: usize) -> Self {
        Self {
            width,
            ..Self::default()
        }
    }

    pub(super) fn push(&mut self, row: &[(u32, f32)]) {
        self.entries.extend_from_slice(row);
        self.ends.push(self.entries.len());
    }

    pub(super) fn rows(&self) -> usize {
        self.ends.len()
    }

    fn row(&self, i: usize) -> &[(u32, f32)] {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.entries[start..self.ends[i]]
    }

    fn transposed(&self) -> Self {
        let mut counts = vec![0usize; self.width + 1];
        self.entries
            .iter()
            .for_each(|(column, _)| counts[*column as usize + 1] += 1);
        for column in 0..self.width {
            counts[column + 1] += counts[column];
        }
        let ends = counts[1..].to_vec();
        let mut places = counts;
        let mut entries = vec![(0, 0.0); self.entries.len()];
        for i in 0..self.rows() {
            for &(column, value) in self.row(i) {
                let place = &mut places[column as usize];
                entries[*place] = (i as u32, value);
                *place += 1;
            }
        }
        Self {
            width: self.rows(),
            ends,
            entries,
        }
    }

    /// The product with a dense matrix, `[width, n]` row-major; `[rows, n]`.
    fn times(&self, dense: &[f64], n: usize) -> Vec<f64> {
        let mut out = vec![0.0; self.rows() * n];
        out.par_chunks_mut(n).enumerate().with_min_len(16).for_each(|(i, out)| {
            for &(column, value) in self.row(i) {
                let row = &dense[column as usize * n..][..n];
                out.iter_mut()
                    .zip(row)
                    .for_each(|(sum, x)| *sum += f64::from(value) * x);
            }
        });
        out
    }
}

/// The right singular vectors of the `rank` largest singular values, the largest first, as columns of `[width, rank]`, row-major:
/// randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4). Columns beyond the matrix's rank are zeros. The
/// bytes do not depend on threads.
pub(super) fn right_vectors(matrix: &Sparse, rank: usize, seed: u64) -> Vec<f32> {
    let (rows, width) = (matrix.rows(), matrix.width);
    let n = (rank + OVERSAMPLING).min(rows).min(width);
    let turned = matrix.transposed();
    let mut start = vec![0.0; width * n];
    start.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        let mut rng = Rng::for_example(seed, "directions", 0, i as u64);
        row.iter_mut().for_each(|x| *x = rng.normal());
    });
    let mut left = orthonormal(&matrix.times(&start, n), n);
    for _ in 0..ITERATIONS {
        let right = orthonormal(&turned.times(&left, n), n);
        left = orthonormal(&matrix.times(&right, n), n);
    }
    let small = turned.times(&left, n);
    let (values, vectors) = eigen(gram(&small, n), n);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let largest = order.first().map_or(0.0, |&i| values[i].max(0.0).sqrt());
    let mut out = vec![0.0f32; width * rank];
    out.par_chunks_mut(rank)
        .zip(small.par_chunks(n))
        .for_each(|(out, row)| {
            for (out, &j) in out.iter_mut().zip(&order) {
                let scale = values[j].max(0.0).sqrt();
                if scale > 1e-9 * largest {
                    let sum: f64 = row.iter().enumerate().map(|(i, x)| x * vectors[i * n + j]).sum();
                    *out = (sum / scale) as f32;
                }
            }
        });
    out
}

/// `A^T A` of `[m, n]` row-major; each entry is summed in the order of the rows.
fn gram(a: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    out.par_chunks_mut(n).enumerate().for_each(|(i, out)| {
        for row in a.chunks_exact(n) {
            out.iter_mut().zip(row).for_each(|(sum, x)| *sum += row[i] * x);
        }
    });
    out
}

fn turned(a: &[f64], n: usize) -> Vec<Vec<f64>> {
    (0..n)
        .into_par_iter()
        .map(|j| a.iter().skip(j).step_by(n).copied().collect())
        .collect()
}

/// An orthonormal basis of the columns of `[m, n]` row-major, by Gram and Schmidt's method done twice; columns that depend on those
/// before them become zeros.
fn orthonormal(a: &[f64], n: usize) -> Vec<f64> {
    let mut columns = turned(a, n);
    for j in 0..n {
        let (before, rest) = columns.split_at_mut(j);
        let own = &mut rest[0];
        let original = norm(own);
        for _ in 0..2 {
            let along: Vec<f64> = before.par_iter().map(|other| dot(other, own)).collect();
            own.par_chunks_mut(PIECE).enumerate().for_each(|(piece, own)| {
                for (other, along) in before.iter().zip(&along) {
                    let other = &other[piece * PIECE..][..own.len()];
                    own.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
                }
            });
        }
        let left = norm(own);
        let factor = if left > 1e-10 * original { 1.0 / left } else { 0.0 };
        own.iter_mut().for_each(|x| *x *= factor);
    }
    let mut out = vec![0.0; a.len()];
    out.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        row.iter_mut().zip(&columns).for_each(|(x, column)| *x = column[i]);
    });
    out
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// In eight sums, which the compiler turns into vectors.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (eights, rest) = a.as_chunks::<8>();
    let (others, other_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (x, y) in eights.iter().zip(others) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f64>() + rest.iter().zip(other_rest).map(|(x, y)| x * y).sum::<f64>()
}

/// Eigenvalues and, as columns, eigenvectors of a symmetric matrix, by Jacobi's rotations.
fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    const SWEEPS: usize = 50;
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for _ in 0..SWEEPS {
        let off: f64 = (0..n)
            .flat_map(|p| (0..p).map(move |q| (p, q)))
            .map(|(p, q)| a[p * n + q].powi(2))
            .sum();
        let scale: f64 = (0..n).map(|p| a[p * n + p].powi(2)).sum();
        if off <= 1e-28 * scale {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let between = a[p * n + q];
                if between == 0.0 {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * between);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
                    let (x, y) = (vectors[k * n + p], vectors[k * n + q]);
                    (vectors[k * n + p], vectors[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_a_known_matrix_are_found() {
        // U diag(9, 4, 1, 0..) V^T with orthonormal columns drawn at random.
        let (rows, width) = (60, 40);
        let mut rng = Rng::for_example(5, "test", 0, 0);
        let mut random = |m: usize| orthonormal(&(0..3 * m).map(|_| rng.normal()).collect::<Vec<_>>(), 3);
        let (u, v) = (random(rows), random(width));
        let mut matrix = Sparse::new(width);
        for i in 0..rows {
            let value = |j: usize| {
                (0..3)
                    .map(|r| [9.0, 4.0, 1.0][r] * u[3 * i + r] * v[3 * j + r])
                    .sum::<f64>()
            };
            let row: Vec<(u32, f32)> = (0..width).map(|j| (j as u32, value(j) as f32)).collect();
            matrix.push(&row);
        }
        let found = right_vectors(&matrix, 3, 0);
        for r in 0..3 {
            let along: f64 = (0..width).map(|j| v[3 * j + r] * f64::from(found[3 * j + r])).sum();
            assert!((along.abs() - 1.0).abs() < 1e-5, "vector {r}: {along}");
        }
        // Beyond the rank, but for the rounding of the entries, there is nothing.
        let five = right_vectors(&matrix, 5, 0);
        assert_eq!(five.len(), 5 * width);
        assert!(five.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn eigenvectors_of_a_symmetric_matrix() {
        let (values, vectors) = eigen(vec![2.0, 1.0, 1.0, 2.0], 2);
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        assert!((sorted[0] - 1.0).abs() < 1e-12 && (sorted[1] - 3.0).abs() < 1e-12);
        let first = (vectors[0] * vectors[0] - 0.5).abs();
        assert!(first < 1e-12);
    }
}
