//! One row times a weight of `[outputs, inputs]`: what a decoder does with every matrix for every token that it generates.
//!
//! Each number of the weight is read once and used once, so nothing but the memory's speed counts; a product of the `gemm` crate
//! reads it on one thread.

use crate::vector::{PIECE, arch, build, dot, vectorised, zeroed};

/// Weights of one piece of work.
const WEIGHTS: usize = 2 * PIECE;

/// The products of `x` with each row of `weight`, a piece of them at a time handed to `leave` with the number of its first. Each is
/// summed in the same order whatever the number of threads and the width of vectors.
///
/// # Panics
/// If the weight has not `outputs` rows of the length of `x`.
pub(crate) fn row_product(
    x: &[f32],
    weight: &[f32],
    outputs: usize,
    leave: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let inputs = x.len();
    assert_eq!(weight.len(), outputs * inputs, "{outputs} rows of {inputs} inputs");
    let rows = (WEIGHTS / inputs.max(1)).max(1);
    let arch = arch();
    build(outputs, rows, |i, blank| {
        let first = i * rows;
        let y = zeroed(blank);
        vectorised!(arch, {
            for (r, y) in y.iter_mut().enumerate() {
                *y = dot(x, &weight[(first + r) * inputs..][..inputs]);
            }
            leave(first, y);
        });
        y
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::{Path, with_path};

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0)
            .collect()
    }

    #[test]
    fn each_number_is_the_float64_product_of_the_row() {
        for (inputs, outputs) in [
            (0, 3),
            (1, 1),
            (7, 5),
            (64, 0),
            (288, 33),
            (577, 129),
            (1, 70_000),
            (70_000, 3),
        ] {
            let (x, weight) = (numbers(inputs, 1), numbers(inputs * outputs, 2));
            let y = row_product(&x, &weight, outputs, |first, y| {
                y.iter_mut().enumerate().for_each(|(r, y)| *y += (first + r) as f32);
            });
            assert_eq!(y.len(), outputs);
            for (r, y) in y.iter().enumerate() {
                let row = &weight[r * inputs..][..inputs];
                let terms = x.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                let expected = sum + r as f64;
                let allowed = 1e-6 * (size + expected.abs()) + 1e-6;
                assert!((f64::from(*y) - expected).abs() <= allowed, "{inputs} x {outputs}, {r}");
            }
        }
    }

    #[test]
    fn the_bytes_depend_neither_on_threads_nor_on_vectors() {
        let (x, weight) = (numbers(577, 3), numbers(577 * 999, 4));
        let run = || row_product(&x, &weight, 999, |_, _| {});
        let first = run();
        for path in Path::ALL.into_iter().filter(|path| path.is_available()) {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(
                    pool.install(|| with_path(path, run)),
                    first,
                    "{path:?}, {threads} threads"
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "3 rows of 2 inputs")]
    fn a_weight_of_another_size_is_refused() {
        row_product(&[1.0; 2], &[1.0; 5], 3, |_, _| {});
    }
}
