//! Products of small matrices in tiles that stay in vector registers: those of one head, of which causal attention needs half.

use pulp::{Arch, Simd, WithSimd};

use crate::vector::LANES;

/// Rows of one tile.
const TALL: usize = 4;

/// The next odd multiple of the vector width: rows so far apart do not push each other out of the cache.
pub(super) fn padded(n: usize) -> usize {
    (n.div_ceil(LANES) | 1) * LANES
}

/// Rows with a distance between them.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
}

/// Which terms of a product `c = a b` there are, where a query sees only the keys before it, and its own: query 0 is at the place
/// of key `first`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    /// All of them.
    Whole,
    /// Rows of `c` are queries and columns are keys: columns that a query does not see may hold anything.
    Scores { first: usize },
    /// Rows of `c` are queries, the inner dimension is keys.
    ByQuery { first: usize },
    /// Rows of `c` are keys, the inner dimension is queries.
    ByKey { first: usize },
}

impl Part {
    /// Whether the term of row `i` and inner index `x` is there.
    #[inline(always)]
    fn has(self, i: usize, x: usize) -> bool {
        match self {
            Self::Whole | Self::Scores { .. } => true,
            Self::ByQuery { first } => x <= first + i,
            Self::ByKey { first } => i <= first + x,
        }
    }

    /// For rows `i..i + tall`: the first inner index that one of them has, the first and the last that all of them have, and the
    /// last that one of them has; ends are exclusive.
    #[inline(always)]
    fn range(self, i: usize, tall: usize, inner: usize) -> [usize; 4] {
        let [one, all, all_end, end] = match self {
            Self::Whole | Self::Scores { .. } => [0, 0, inner, inner],
            Self::ByQuery { first } => [0, 0, first + i + 1, first + i + tall],
            Self::ByKey { first } => [
                i.saturating_sub(first),
                (i + tall - 1).saturating_sub(first),
                inner,
                inner,
            ],
        };
        let [all, end] = [all, end].map(|x| x.min(inner));
        [one.min(all), all, all_end.clamp(all, end), end]
    }

    /// Columns that the rows before row `end` need.
    #[inline(always)]
    fn columns(self, end: usize) -> usize {
        match self {
            Self::Scores { first } => first + end,
            _ => usize::MAX,
        }
    }

    /// The first row that needs one of the columns from `j` on.
    #[inline(always)]
    fn first_row(self, j: usize) -> usize {
        match self {
            Self::Scores { first } => j.saturating_sub(first),
            _ => 0,
        }
    }
}

/// `c = a b`, or `c += a b`, for `size.0` rows and `size.2` columns of `c`, which are `c_stride` apart, where the element `(i, x)`
/// of `a` is `a[i * strides.0 + x * strides.1]`. Each element is summed in the order of `x`, whatever the vectors.
struct Multiply<'a> {
    c: &'a mut [f32],
    c_stride: usize,
    added: bool,
    a: &'a [f32],
    strides: (usize, usize),
    b: Rows<'a>,
    /// Rows, inner size, columns.
    size: (usize, usize, usize),
    part: Part,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (_, _, columns) = self.size;
        let lanes = S::F32_LANES;
        let mut j = 0;
        // Sixteen registers hold two vectors of four rows, thirty-two hold four.
        while lanes == LANES && j + 4 * lanes <= columns {
            self.panel::<S, 4>(simd, j);
            j += 4 * lanes;
        }
        while j + 2 * lanes <= columns {
            self.panel::<S, 2>(simd, j);
            j += 2 * lanes;
        }
        while j + lanes <= columns {
            self.panel::<S, 1>(simd, j);
            j += lanes;
        }
        self.rest(j);
    }
}

impl Multiply<'_> {
    /// `V` vectors of columns from `j` on, all rows.
    #[inline(always)]
    fn panel<S: Simd, const V: usize>(&mut self, simd: S, j: usize) {
        let rows = self.size.0;
        let mut i = self.part.first_row(j).min(rows) / TALL * TALL;
        while i < rows {
            // Of a tile on the diagonal the left part is enough.
            match (
                rows - i,
                self.part.columns(i + TALL).saturating_sub(j).div_ceil(S::F32_LANES),
            ) {
                (1, _) => i += self.tile::<S, 1, V>(simd, i, j),
                (2 | 3, _) => i += self.tile::<S, 2, V>(simd, i, j),
                (_, 0 | 1) => i += self.tile::<S, TALL, 1>(simd, i, j),
                (_, 2) if V > 2 => i += self.tile::<S, TALL, 2>(simd, i, j),
                _ => i += self.tile::<S, TALL, V>(simd, i, j),
            }
        }
    }

    /// `R` rows of `V` vectors from row `i` and column `j`, summed in registers; gives `R`.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, i: usize, j: usize) -> usize {
        let width = V * S::F32_LANES;
        let a = &self.a[i * self.strides.0..];
        let (part, strides, b) = (self.part, self.strides, self.b);
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        let [one, all, all_end, end] = part.range(i, R, self.size.1);
        for x in one..all {
            let row = S::as_simd_f32s(&b.values[x * b.stride + j..][..width]).0;
            for (r, sums) in sums.iter_mut().enumerate() {
                if part.has(i + r, x) {
                    add_product(simd, sums, a[r * strides.0 + x * strides.1], row);
                }
            }
        }
        for x in all..all_end {
            let row = S::as_simd_f32s(&b.values[x * b.stride + j..][..width]).0;
            for (r, sums) in sums.iter_mut().enumerate() {
                add_product(simd, sums, a[r * strides.0 + x * strides.1], row);
            }
        }
        for x in all_end..end {
            let row = S::as_simd_f32s(&b.values[x * b.stride + j..][..width]).0;
            for (r, sums) in sums.iter_mut().enumerate() {
                if part.has(i + r, x) {
                    add_product(simd, sums, a[r * strides.0 + x * strides.1], row);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let c = &mut self.c[(i + r) * self.c_stride + j..][..width];
            let c = S::as_mut_simd_f32s(c).0;
            for (c, sum) in c.iter_mut().zip(sums) {
                *c = if self.added { simd.add_f32s(*c, *sum) } else { *sum };
            }
        }
        R
    }

    /// The columns from `j` on one by one: what is left of a head whose size is no multiple of the vector.
    #[inline(always)]
    fn rest(&mut self, j: usize) {
        let (rows, inner, columns) = self.size;
        for i in 0..rows {
            let [_, all, all_end, _] = self.part.range(i, 1, inner);
            for j in j..columns {
                let mut sum = 0.0;
                for x in all..all_end {
                    let factor = self.a[i * self.strides.0 + x * self.strides.1];
                    sum = factor.mul_add(self.b.values[x * self.b.stride + j], sum);
                }
                let c = &mut self.c[i * self.c_stride + j];
                *c = if self.added { *c + sum } else { sum };
            }
        }
    }
}

/// Adds `factor` times some vectors to others.
#[inline(always)]
fn add_product<S: Simd, const V: usize>(simd: S, sums: &mut [S::f32s; V], factor: f32, row: &[S::f32s]) {
    let factor = simd.splat_f32s(factor);
    for (sum, column) in sums.iter_mut().zip(row) {
        *sum = simd.mul_add_f32s(factor, *column, *sum);
    }
}

/// Writes the product of `a`, whose element `(i, x)` is `a[i * strides.0 + x * strides.1]`, and `b` to rows of `c`, or adds it if
/// what is there is to be `kept`, for `size` rows, inner size and columns.
///
/// # Panics
/// If one of the slices is too short.
#[inline(always)]
pub(super) fn multiply(
    arch: Arch,
    (c, c_stride, kept): (&mut [f32], usize, bool),
    (a, strides): (&[f32], (usize, usize)),
    b: Rows<'_>,
    size: (usize, usize, usize),
    part: Part,
) {
    arch.dispatch(Multiply {
        c,
        c_stride,
        added: kept,
        a,
        strides,
        b,
        size,
        part,
    });
}

/// `out[x][i] = factor * rows[i][x]` for `count` rows of `size` numbers, rows of `out` `stride` apart.
#[inline(always)]
pub(super) fn turn(rows: Rows<'_>, count: usize, size: usize, factor: f32, out: &mut [f32], stride: usize) {
    for row in (0..count).step_by(LANES) {
        let high = LANES.min(count - row);
        for column in (0..size).step_by(LANES) {
            let wide = LANES.min(size - column);
            // Whole lines of the cache at once.
            let mut tile = [[0.0; LANES]; LANES];
            for (r, line) in tile.iter_mut().enumerate().take(high) {
                let values = &rows.values[(row + r) * rows.stride + column..];
                match values.first_chunk() {
                    Some(values) if wide == LANES => *line = *values,
                    _ => line[..wide].copy_from_slice(&values[..wide]),
                }
            }
            for c in 0..wide {
                let out = &mut out[(column + c) * stride + row..];
                match out.first_chunk_mut::<LANES>() {
                    Some(out) if high == LANES => {
                        for (out, line) in out.iter_mut().zip(&tile) {
                            *out = factor * line[c];
                        }
                    }
                    _ => {
                        for (out, line) in out[..high].iter_mut().zip(&tile) {
                            *out = factor * line[c];
                        }
                    }
                }
            }
        }
    }
}
