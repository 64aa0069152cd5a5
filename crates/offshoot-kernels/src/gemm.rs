//! Matrix products on slices: a checked face of the `gemm` crate, which the tensor library's own products use too.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::vector::{Blank, LANES, arch, vectorised, with_scratch};

/// A matrix in someone's memory, with the distance between neighbours along each dimension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    size: (usize, usize),
    strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `columns` values each, one after the other.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, (rows, columns), (columns, 1))
    }

    /// Any strides.
    ///
    /// # Panics
    /// If an element would lie outside `values`.
    pub(crate) fn strided(values: &'a [f32], size: (usize, usize), strides: (usize, usize)) -> Self {
        let (rows, columns) = size;
        if rows > 0 && columns > 0 {
            let last = (rows - 1)
                .checked_mul(strides.0)
                .zip((columns - 1).checked_mul(strides.1));
            let last = last.and_then(|(a, b)| a.checked_add(b));
            assert!(
                last.is_some_and(|last| last < values.len()),
                "a {rows} x {columns} matrix of strides {strides:?} in {} values",
                values.len()
            );
        }
        Self { values, size, strides }
    }

    /// Rows as columns.
    pub(crate) fn transposed(self) -> Self {
        Self {
            values: self.values,
            size: (self.size.1, self.size.0),
            strides: (self.strides.1, self.strides.0),
        }
    }
}

/// Writes `values`, rows of `width` that begin `stride` apart, to `out` as columns: element `(r, c)` to `out[c * rows + r]`.
///
/// # Panics
/// If one of the slices is too short.
#[inline(always)]
pub(crate) fn turn(values: &[f32], (rows, width, stride): (usize, usize, usize), out: &mut [f32]) {
    for row in (0..rows).step_by(LANES) {
        let high = LANES.min(rows - row);
        for column in (0..width).step_by(LANES) {
            let wide = LANES.min(width - column);
            if high < LANES || wide < LANES {
                for r in row..row + high {
                    let values = &values[r * stride + column..][..wide];
                    for (c, value) in values.iter().enumerate() {
                        out[(column + c) * rows + r] = *value;
                    }
                }
                continue;
            }
            // Whole lines of the cache at once: rows are often a power of two apart, and then push each other out.
            let mut tile = [[0.0; LANES]; LANES];
            for (r, line) in tile.iter_mut().enumerate() {
                let values = &values[(row + r) * stride + column..];
                *line = *values.first_chunk().expect("a whole line");
            }
            for c in 0..LANES {
                let out = &mut out[(column + c) * rows + row..];
                let out: &mut [f32; LANES] = out.first_chunk_mut().expect("a whole line");
                for (out, line) in out.iter_mut().zip(&tile) {
                    *out = line[c];
                }
            }
        }
    }
}

/// Writes `a b^T` to `out`, row by row, on the caller's thread, or adds it to what is there if that is to be `kept`; `a` and `b`
/// have rows of neighbouring values. Put the one with fewer rows second: it is turned, some of its columns at a time, because a
/// product that finds it by rows takes up to three times as long.
///
/// # Panics
/// If the sizes do not fit, or the values of a row do not lie side by side.
pub(crate) fn outer_product(out: &mut [f32], kept: bool, a: Matrix<'_>, b: Matrix<'_>) {
    const TOGETHER: usize = 512;
    let (rows, inner) = b.size;
    assert_eq!(inner, a.size.1, "inner sizes of a product");
    assert!(inner < 2 || (a.strides.1, b.strides.1) == (1, 1), "rows that lie apart");
    if inner == 0 && !kept {
        out.fill(0.0);
    }
    let arch = arch();
    with_scratch(rows * TOGETHER.min(inner), |turned| {
        for first in (0..inner).step_by(TOGETHER) {
            let count = TOGETHER.min(inner - first);
            let turned = &mut turned[..count * rows];
            vectorised!(arch, turn(&b.values[first..], (rows, count, b.strides.0), turned));
            let b = Matrix::new(turned, count, rows);
            let a = Matrix::strided(&a.values[first..], (a.size.0, count), a.strides);
            product_in_rows((&mut *out, rows), kept || first > 0, a, b, Threads::One);
        }
    });
}

/// Writes the products of each row of `a` with each row of `b` to `out`, on the caller's thread: `out[i * m + j]` is row `i` of `a` by
/// row `j` of the `m` rows of `b`. Rows are `width` numbers each. Put the matrix with fewer rows second, see above.
///
/// A product's order of summation depends on the sizes alone, so equal sizes give equal bytes whatever the number of threads.
///
/// # Panics
/// If `a`, `b` and `out` do not fit.
pub fn row_products(a: &[f32], b: &[f32], width: usize, out: &mut [f32]) {
    let width = width.max(1);
    assert!(a.len().is_multiple_of(width), "rows of the first matrix");
    assert!(b.len().is_multiple_of(width), "rows of the second matrix");
    let (rows, columns) = (a.len() / width, b.len() / width);
    assert_eq!(out.len(), rows * columns, "products of rows");
    outer_product(out, false, Matrix::new(a, rows, width), Matrix::new(b, columns, width));
}

/// Threads of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The caller's: it is one of many pieces of work.
    One,
    /// All there are. Each element of a product is summed in the same order whatever their number.
    All,
}

/// Writes `a b` to `out`, row by row.
pub(crate) fn product<'o>(out: &'o mut Blank, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) -> &'o mut [f32] {
    let (size, columns) = (out.len(), b.size.1);
    let out = out.as_mut_ptr();
    // SAFETY: `out` is exclusive memory for all elements of the product, all of which are written and none is read.
    #[allow(
        unsafe_code,
        reason = "the product is written to memory that nothing was written to yet"
    )]
    unsafe {
        raw(out, size, columns, false, a, b, threads);
        std::slice::from_raw_parts_mut(out.cast(), size)
    }
}

/// Adds `a b` to `out`, row by row.
#[cfg(test)]
fn add_product(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, threads: Threads) {
    let (size, columns) = (out.len(), b.size.1);
    // SAFETY: `out` is exclusive memory for all elements of the product, with values in it.
    #[allow(unsafe_code, reason = "the crate takes pointers")]
    unsafe {
        raw(out.as_mut_ptr().cast(), size, columns, true, a, b, threads);
    }
}

/// Writes `a b` to rows of `out` that begin `stride` values apart, or adds it to what is there if that is to be `kept`.
///
/// # Panics
/// If rows would overlap, or the last one would end outside `out`.
pub(crate) fn product_in_rows(
    (out, stride): (&mut [f32], usize),
    kept: bool,
    a: Matrix<'_>,
    b: Matrix<'_>,
    threads: Threads,
) {
    let (rows, columns) = (a.size.0, b.size.1);
    if rows == 0 || columns == 0 {
        return;
    }
    let end = (rows - 1)
        .checked_mul(stride)
        .and_then(|last| last.checked_add(columns));
    assert!(
        columns <= stride && end.is_some_and(|end| end <= out.len()),
        "{rows} rows of {columns}, {stride} apart, in {} values",
        out.len()
    );
    // SAFETY: `out` is exclusive memory with values in it, and all rows were just found to lie inside it.
    #[allow(unsafe_code, reason = "the crate takes pointers")]
    unsafe {
        raw(out.as_mut_ptr().cast(), rows * columns, stride, kept, a, b, threads);
    }
}

/// # Safety
/// `out` must be valid for writes of `size` elements in rows that begin `stride` apart, and for reads if they are to be `kept`.
#[allow(unsafe_code, reason = "the crate takes pointers")]
unsafe fn raw(
    out: *mut MaybeUninit<f32>,
    size: usize,
    stride: usize,
    kept: bool,
    a: Matrix<'_>,
    b: Matrix<'_>,
    threads: Threads,
) {
    let (m, k) = a.size;
    let (inner, n) = b.size;
    assert_eq!(k, inner, "inner sizes of a product");
    assert_eq!(size, m * n, "elements of a {m} x {n} product");
    // Below, handing out work costs more than the work.
    const LEAST: usize = 96 * 96 * 96;
    let parallelism = match threads {
        Threads::All if m * n * k >= LEAST => gemm::Parallelism::Rayon(0),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: both matrices were checked against their slices when they were made; `out` is the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.cast::<f32>(),
            1,
            stride as isize,
            kept,
            a.values.as_ptr(),
            a.strides.1 as isize,
            a.strides.0 as isize,
            b.values.as_ptr(),
            b.strides.1 as isize,
            b.strides.0 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The sizes of a product of two matrices that some operation needs, and which of them lie transposed in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Product {
    /// Rows of the left matrix, inner size, columns of the right matrix.
    pub size: (usize, usize, usize),
    /// Whether the left and the right matrix are stored by columns.
    pub transposed: (bool, bool),
    /// Equal products done by one operation, such as one a head.
    pub batch: usize,
}

impl Product {
    /// Floating-point operations, two for a multiply-add.
    pub fn flops(&self) -> f64 {
        2.0 * (self.size.0 * self.size.1 * self.size.2 * self.batch) as f64
    }

    /// The bare product on matrices of ones, on all threads, as often as it is called: what a benchmark times.
    pub fn bare(&self) -> impl FnMut() {
        use rayon::prelude::*;
        let (m, k, n) = self.size;
        let (batch, transposed) = (self.batch, self.transposed);
        let (a, b) = (vec![1.0; batch * m * k], vec![1.0; batch * k * n]);
        let mut out = vec![0.0; batch * m * n];
        move || {
            let matrix = |values, rows, columns, transposed| match transposed {
                false => Matrix::new(values, rows, columns),
                true => Matrix::new(values, columns, rows).transposed(),
            };
            let one = |i: usize, out: &mut [f32], threads| {
                let a = matrix(&a[i * m * k..][..m * k], m, k, transposed.0);
                let b = matrix(&b[i * k * n..][..k * n], k, n, transposed.1);
                // SAFETY: `out` has values in it.
                #[allow(unsafe_code, reason = "the crate takes pointers")]
                unsafe {
                    raw(out.as_mut_ptr().cast(), m * n, n, false, a, b, threads);
                }
            };
            match batch {
                1 => one(0, &mut out, Threads::All),
                _ => out
                    .par_chunks_mut((m * n).max(1))
                    .enumerate()
                    .for_each(|(i, out)| one(i, out, Threads::One)),
            }
        }
    }
}

static RECORDING: AtomicBool = AtomicBool::new(false);
static RECORDED: Mutex<BTreeMap<Product, usize>> = Mutex::new(BTreeMap::new());

/// Runs `work` and counts the products that this crate's operations need meanwhile, in the whole process.
pub fn recorded<T>(work: impl FnOnce() -> T) -> (T, BTreeMap<Product, usize>) {
    let take = || std::mem::take(&mut *RECORDED.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    take();
    RECORDING.store(true, Ordering::SeqCst);
    let result = work();
    RECORDING.store(false, Ordering::SeqCst);
    (result, take())
}

/// Counts a product for [`recorded`].
pub(crate) fn note(size: (usize, usize, usize), transposed: (bool, bool), batch: usize) {
    if RECORDING.load(Ordering::Relaxed) {
        let mut counts = RECORDED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let product = Product {
            size,
            transposed,
            batch,
        };
        *counts.entry(product).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::build;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37) % 11) as f32 - 5.0).collect()
    }

    /// Whole numbers, so that every order of summation gives the same.
    #[test]
    fn products_are_exact_for_all_layouts_and_odd_sizes() {
        for (m, k, n) in [
            (1, 1, 1),
            (3, 5, 7),
            (17, 1, 2),
            (65, 32, 65),
            (130, 97, 101),
            (4, 0, 3),
            (0, 3, 2),
        ] {
            let (a, b) = (numbers(m * k), numbers(k * n));
            for transposed in [(false, false), (true, false), (false, true), (true, true)] {
                let left = match transposed.0 {
                    false => Matrix::new(&a, m, k),
                    true => Matrix::new(&a, k, m).transposed(),
                };
                let right = match transposed.1 {
                    false => Matrix::new(&b, k, n),
                    true => Matrix::new(&b, n, k).transposed(),
                };
                let element = |i: usize, j: usize| -> f32 {
                    (0..k)
                        .map(|x| {
                            let l = if transposed.0 { a[x * m + i] } else { a[i * k + x] };
                            let r = if transposed.1 { b[j * k + x] } else { b[x * n + j] };
                            l * r
                        })
                        .sum()
                };
                let expected: Vec<f32> = (0..m * n).map(|e| element(e / n.max(1), e % n.max(1))).collect();
                for threads in [Threads::One, Threads::All] {
                    let mut out = build(m * n, m * n, |_, blank| product(blank, left, right, threads));
                    assert_eq!(out, expected, "{m} x {k} x {n}, {transposed:?}");
                    add_product(&mut out, left, right, threads);
                    assert_eq!(out, expected.iter().map(|v| 2.0 * v).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn outer_products_are_exact_whatever_the_sizes_and_strides() {
        for (m, k, n) in [
            (1, 1, 1),
            (3, 5, 7),
            (17, 513, 33),
            (40, 1100, 16),
            (16, 32, 48),
            (5, 0, 4),
        ] {
            for apart in [0, 3] {
                let stride = k + apart;
                let (a, b) = (numbers(m * stride), numbers(n * stride));
                let left = Matrix::strided(&a, (m, k), (stride, 1));
                let right = Matrix::strided(&b, (n, k), (stride, 1));
                for kept in [false, true] {
                    let mut out = vec![2.0; m * n];
                    outer_product(&mut out, kept, left, right);
                    for (at, found) in out.iter().enumerate() {
                        let (a, b) = (&a[at / n * stride..][..k], &b[at % n * stride..][..k]);
                        let expected: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                        let before = if kept { 2.0 } else { 0.0 };
                        assert_eq!(*found, expected + before, "{m} x {k} x {n}, {apart} between rows");
                    }
                }
            }
        }
    }

    #[test]
    fn a_product_in_rows_leaves_what_lies_between_them() {
        let (m, k, n, stride) = (5, 7, 3, 4);
        let (a, b) = (numbers(m * k), numbers(k * n));
        let (left, right) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
        let exact = build(m * n, m * n, |_, blank| product(blank, left, right, Threads::One));
        for kept in [false, true] {
            let mut out = vec![10.0; (m - 1) * stride + n];
            product_in_rows((&mut out, stride), kept, left, right, Threads::One);
            for (i, row) in out.chunks(stride).enumerate() {
                let base = if kept { 10.0 } else { 0.0 };
                let expected: Vec<f32> = exact[i * n..][..n].iter().map(|v| v + base).collect();
                assert_eq!(row[..n], expected);
                assert!(row[n..].iter().all(|&v| v == 10.0));
            }
        }
    }

    #[test]
    #[should_panic(expected = "2 rows of 3, 4 apart, in 6 values")]
    fn rows_beyond_their_memory_are_refused() {
        let (a, b) = ([1.0; 2], [1.0; 3]);
        product_in_rows(
            (&mut [0.0; 6], 4),
            false,
            Matrix::new(&a, 2, 1),
            Matrix::new(&b, 1, 3),
            Threads::One,
        );
    }

    #[test]
    #[should_panic(expected = "in 5 values")]
    fn a_matrix_beyond_its_memory_is_refused() {
        Matrix::new(&[0.0; 5], 2, 3);
    }

    #[test]
    fn products_are_counted_while_recording() {
        let (_, counts) = recorded(|| {
            note((2, 3, 4), (false, true), 1);
            note((2, 3, 4), (false, true), 1);
        });
        // Other tests of this process may have added theirs.
        let ours = counts.iter().find(|(p, _)| p.size == (2, 3, 4)).unwrap();
        assert_eq!((ours.0.flops(), *ours.1), (48.0, 2));
        ours.0.bare()();
    }
}
