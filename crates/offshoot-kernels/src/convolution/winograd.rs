//! Convolution by a window of 3x3 that moves by one pixel, with 16 multiplications for every 4 outputs instead of 36.
//!
//! F(2x2, 3x3) of Lavin and Gray (2016): tiles of 2x2 outputs see tiles of 4x4 inputs. Sums and differences make 16 numbers of an
//! input tile and of a window; sums over channels of their products are 16 matrix products over all tiles; and sums and
//! differences of those are the outputs. The gradient of the weight goes the same way back. Whatever is not a number, or so
//! large that a sum could overflow, would spread over its tile: such layers are left to the columns.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::Layout;
use crate::gemm::{Matrix, Threads, note, outer_product, product_in_rows};
use crate::vector::{LANES, arch, build, build_in_turn, vectorised, with_scratch, zeroed};

/// Values of tiles and of what they become, of those images that are worked on together: they are to stay in the last cache.
const TOGETHER: usize = 2 << 20;
/// Channels below which sums and differences cost more than the products that they save.
const CHANNELS: usize = 16;
/// The same where tiles fill less than half of a vector.
const CHANNELS_OF_SMALL: usize = 128;
/// Tiles of all images below which the numbers of windows cost more than the products that they save.
const TILES: usize = 24;
/// From here on a sum could overflow that does not by the definition.
const LIMIT: f32 = 1e15;

type Vector = [f32; LANES];

/// Images of one channel that are cut into tiles.
#[derive(Clone, Copy)]
struct Tiled {
    size: [usize; 2],
    /// Zeros before the first pixel.
    padding: [usize; 2],
    /// Tiles of one image.
    tiles: [usize; 2],
    /// Images that are worked on together.
    images: usize,
}

/// Sixteen neighbouring values.
#[inline(always)]
fn vector(values: &[f32], at: usize) -> &Vector {
    values[at..]
        .first_chunk()
        .expect("lines are filled up to whole vectors")
}

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Vector {
    // Not by `from_fn`, whose closure is not compiled for the vectors.
    let mut all = [0.0; LANES];
    for (l, value) in all.iter_mut().enumerate() {
        *value = f(l);
    }
    all
}

/// Where a vector is written to.
#[inline(always)]
fn place(values: &mut [f32], at: usize) -> &mut Vector {
    values[at..]
        .first_chunk_mut()
        .expect("rows are filled up to whole vectors")
}

/// `B^T` of four vectors: the differences of a tile of inputs along one dimension.
#[inline(always)]
fn of_inputs([a, b, c, d]: [&Vector; 4], out: &mut [Vector; 4]) {
    for l in 0..LANES {
        out[0][l] = a[l] - c[l];
        out[1][l] = b[l] + c[l];
        out[2][l] = c[l] - b[l];
        out[3][l] = b[l] - d[l];
    }
}

/// `A` of two vectors: what the gradients of a tile of outputs add to the products, along one dimension.
#[inline(always)]
fn of_gradients([a, b]: [&Vector; 2], out: &mut [Vector; 4]) {
    for l in 0..LANES {
        out[0][l] = a[l];
        out[1][l] = a[l] + b[l];
        out[2][l] = a[l] - b[l];
        out[3][l] = -b[l];
    }
}

/// `G` of three vectors: a window along one dimension.
#[inline(always)]
fn of_window([a, b, c]: [&Vector; 3]) -> [Vector; 4] {
    [
        *a,
        each(|l| 0.5 * (a[l] + b[l] + c[l])),
        each(|l| 0.5 * (a[l] - b[l] + c[l])),
        *c,
    ]
}

/// `G^T` of four vectors: the gradient of a window along one dimension.
#[inline(always)]
fn to_window([a, b, c, d]: [&Vector; 4]) -> [Vector; 3] {
    [
        each(|l| a[l] + 0.5 * (b[l] + c[l])),
        each(|l| 0.5 * (b[l] - c[l])),
        each(|l| 0.5 * (b[l] + c[l]) + d[l]),
    ]
}

/// Whether all numbers are small enough for sums of their products.
#[inline(always)]
fn fit(values: &[f32]) -> bool {
    // Bits without the sign are in the order of sizes, infinity and NaN above all.
    let largest = values
        .iter()
        .fold(0, |most: u32, x| most.max(x.to_bits() & 0x7fff_ffff));
    largest < LIMIT.to_bits()
}

impl Tiled {
    fn tiles_of_image(&self) -> usize {
        self.tiles[0] * self.tiles[1]
    }

    /// Tiles in a row, filled up to whole vectors.
    fn filled(&self) -> usize {
        self.tiles[1].next_multiple_of(LANES)
    }

    /// Columns of the matrices: tiles, and what the last vector of the last row is longer.
    fn columns(&self) -> usize {
        self.images * self.tiles_of_image() + self.filled() - self.tiles[1]
    }

    /// Memory for one channel of an image by [`lines`](Self::lines), and a line more.
    fn scratch(&self) -> usize {
        (2 * self.tiles[0] + 3) * 2 * (self.filled() + LANES)
    }

    /// The rows of one channel with their padding, pixels at even places before those at odd ones. False if some do not
    /// [`fit`].
    #[inline(always)]
    fn lines(&self, plane: &[f32], scratch: &mut [f32]) -> bool {
        let length = 2 * (self.filled() + LANES);
        let (padded, lines) = scratch.split_at_mut(length);
        padded.fill(0.0);
        for (row, line) in lines.chunks_exact_mut(length).enumerate() {
            let Some(row) = row.checked_sub(self.padding[0]).filter(|&row| row < self.size[0]) else {
                line.fill(0.0);
                continue;
            };
            let row = &plane[row * self.size[1]..][..self.size[1]];
            padded[self.padding[1]..][..row.len()].copy_from_slice(row);
            let (even, odd) = line.split_at_mut(length / 2);
            let (pairs, _) = padded.as_chunks::<{ 2 * LANES }>();
            let both = even
                .as_chunks_mut::<LANES>()
                .0
                .iter_mut()
                .zip(odd.as_chunks_mut::<LANES>().0);
            for ((even, odd), pairs) in both.zip(pairs) {
                for l in 0..LANES {
                    even[l] = pairs[2 * l];
                    odd[l] = pairs[2 * l + 1];
                }
            }
        }
        fit(plane)
    }

    /// The 16 numbers of each tile of one channel in some images, whose pixels are `planes`: 16 rows of
    /// [`columns`](Self::columns). They are those of tiles of gradients, or of inputs.
    #[inline(always)]
    fn spread<const GRADIENTS: bool>(&self, planes: &[f32], scratch: &mut [f32], out: &mut [f32]) -> bool {
        let columns = self.columns();
        let length = 2 * (self.filled() + LANES);
        let mut fits = true;
        for i in 0..self.images {
            let plane = self.size[0] * self.size[1];
            fits &= self.lines(&planes[i * plane..][..plane], scratch);
            for row in 0..self.tiles[0] {
                let lines = &scratch[(2 * row + 1) * length..][..4 * length];
                for tile in (0..self.tiles[1]).step_by(LANES) {
                    let at = i * self.tiles_of_image() + row * self.tiles[1] + tile;
                    // Not by a function that is handed in: it would not be compiled for the vectors.
                    if GRADIENTS {
                        Self::gradients(lines, tile, &mut out[at..], columns);
                    } else {
                        Self::inputs(lines, tile, &mut out[at..], columns);
                    }
                }
            }
        }
        fits
    }

    /// The numbers of input tiles.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "several lists are read at the same place")]
    fn inputs(lines: &[f32], tile: usize, out: &mut [f32], columns: usize) {
        let length = lines.len() / 4;
        let mut rows = [[[0.0; LANES]; 4]; 4];
        for (line, row) in lines.chunks_exact(length).zip(&mut rows) {
            let (even, odd) = line.split_at(length / 2);
            let [a, b] = [vector(even, tile), vector(odd, tile)];
            let [c, d] = [vector(even, tile + 1), vector(odd, tile + 1)];
            of_inputs([a, b, c, d], row);
        }
        let mut numbers = [[0.0; LANES]; 4];
        for c in 0..4 {
            of_inputs([&rows[0][c], &rows[1][c], &rows[2][c], &rows[3][c]], &mut numbers);
            for (r, numbers) in numbers.iter().enumerate() {
                *place(out, (4 * r + c) * columns) = *numbers;
            }
        }
    }

    /// The numbers of tiles of gradients.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "several lists are read at the same place")]
    fn gradients(lines: &[f32], tile: usize, out: &mut [f32], columns: usize) {
        let length = lines.len() / 4;
        let mut rows = [[[0.0; LANES]; 4]; 2];
        for (line, row) in lines.chunks_exact(length).zip(&mut rows) {
            let (even, odd) = line.split_at(length / 2);
            of_gradients([vector(even, tile), vector(odd, tile)], row);
        }
        let mut numbers = [[0.0; LANES]; 4];
        for c in 0..4 {
            of_gradients([&rows[0][c], &rows[1][c]], &mut numbers);
            for (r, numbers) in numbers.iter().enumerate() {
                *place(out, (4 * r + c) * columns) = *numbers;
            }
        }
    }

    /// One channel of one image of outputs, from its 16 rows in matrices that are `apart`.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "several lists are read at the same place")]
    fn gather(&self, matrices: &[f32], apart: usize, bias: f32, scratch: &mut [f32], out: &mut [f32]) {
        let [height, width] = self.size;
        let (above, below) = scratch[..4 * self.filled()].split_at_mut(2 * self.filled());
        for row in 0..self.tiles[0] {
            for tile in (0..self.tiles[1]).step_by(LANES) {
                let at = row * self.tiles[1] + tile;
                let mut rows = [[[0.0; LANES]; 4]; 2];
                for c in 0..4 {
                    let m = [0, 4, 8, 12].map(|k| vector(matrices, (k + c) * apart + at));
                    for l in 0..LANES {
                        rows[0][c][l] = m[0][l] + m[1][l] + m[2][l];
                        rows[1][c][l] = m[1][l] - m[2][l] - m[3][l];
                    }
                }
                for (row, line) in rows.iter().zip([&mut *above, &mut *below]) {
                    let pairs: &mut [f32; 2 * LANES] = line[2 * tile..].first_chunk_mut().expect("a whole line");
                    for l in 0..LANES {
                        pairs[2 * l] = row[0][l] + row[1][l] + row[2][l] + bias;
                        pairs[2 * l + 1] = row[1][l] - row[2][l] - row[3][l] + bias;
                    }
                }
            }
            for (r, line) in [&*above, &*below].into_iter().enumerate() {
                if 2 * row + r < height {
                    out[(2 * row + r) * width..][..width].copy_from_slice(&line[..width]);
                }
            }
        }
    }
}

/// Writes the windows of `[outputs, channels, 3, 3]` as 16 numbers each, `[outputs, 16, channels]`. False if some do not [`fit`].
fn windows(weight: &[f32], channels: usize, out: &mut [f32]) -> bool {
    let fits = AtomicBool::new(true);
    let arch = arch();
    let windows = out.par_chunks_exact_mut(16 * channels);
    windows
        .zip(weight.par_chunks_exact(9 * channels))
        .for_each(|(out, weight)| {
            vectorised!(arch, {
                if !fit(weight) {
                    fits.store(false, Ordering::Relaxed);
                }
                for first in (0..channels).step_by(LANES) {
                    let count = LANES.min(channels - first);
                    let mut taps = [[0.0; LANES]; 9];
                    for (l, window) in weight[first * 9..].as_chunks::<9>().0.iter().take(count).enumerate() {
                        for (tap, value) in taps.iter_mut().zip(window) {
                            tap[l] = *value;
                        }
                    }
                    let row = |r: usize| of_window([&taps[3 * r], &taps[3 * r + 1], &taps[3 * r + 2]]);
                    let rows = [row(0), row(1), row(2)];
                    for c in 0..4 {
                        let column = of_window([&rows[0][c], &rows[1][c], &rows[2][c]]);
                        for (r, numbers) in column.iter().enumerate() {
                            out[(4 * r + c) * channels + first..][..count].copy_from_slice(&numbers[..count]);
                        }
                    }
                }
            });
        });
    fits.into_inner()
}

impl Layout {
    /// Whether a convolution goes by tiles.
    pub(super) fn tiled(&self) -> bool {
        let least = if self.out_size[1] > LANES - 4 {
            CHANNELS
        } else {
            CHANNELS_OF_SMALL
        };
        self.kernel == [3, 3]
            && self.stride == 1
            && self.channels.min(self.outputs) >= least
            && self.images * self.out_size.iter().map(|size| size.div_ceil(2)).product::<usize>() >= TILES
            && self.out_size.iter().all(|&size| size > 1)
    }

    /// Inputs that are cut into tiles, in runs of a few images.
    fn tiled_inputs(&self) -> Tiled {
        let tiles = self.out_size.map(|size| size.div_ceil(2));
        let of_image = 16 * tiles[0] * tiles[1] * (self.channels + self.outputs);
        Tiled {
            size: self.size,
            padding: self.padding,
            tiles,
            images: (TOGETHER / of_image).clamp(1, self.images),
        }
    }

    /// Writes the numbers of all tiles of a run of images, from the image `first` on, `[channels, 16, columns]`. False if some do
    /// not [`fit`].
    fn spread<const GRADIENTS: bool>(&self, values: &[f32], tiled: Tiled, first: usize, out: &mut [f32]) -> bool {
        let plane = tiled.size[0] * tiled.size[1];
        let fits = AtomicBool::new(true);
        let arch = arch();
        let lines = out.par_chunks_exact_mut(16 * tiled.columns()).enumerate();
        lines.for_each(|(channel, out)| {
            let planes = &values[(channel * self.images + first) * plane..][..tiled.images * plane];
            with_scratch(tiled.scratch(), |scratch| {
                // What the last vector is longer than the tiles is written with them, and never read as one.
                if !vectorised!(arch, tiled.spread::<GRADIENTS>(planes, scratch, out)) {
                    fits.store(false, Ordering::Relaxed);
                }
            });
        });
        fits.into_inner()
    }

    /// The runs of images that are worked on together.
    fn runs(&self, whole: Tiled) -> Vec<Tiled> {
        let starts = (0..self.images).step_by(whole.images);
        let run = |first: usize| Tiled {
            images: whole.images.min(self.images - first),
            ..whole
        };
        starts.map(run).collect()
    }

    /// The convolution of `x` with a weight of `[outputs, channels, 3, 3]`, or the gradient of an input from the gradient `x` and a
    /// weight of `[channels, outputs, 3, 3]`, whose windows are turned. None if some numbers do not [`fit`].
    pub(super) fn forward_tiled(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        turned: bool,
    ) -> Option<Vec<f32>> {
        let (channels, outputs, plane) = (self.channels, self.outputs, self.out_plane());
        let whole = self.tiled_inputs();
        let runs = self.runs(whole);
        note(
            (outputs, channels, self.images * whole.tiles_of_image()),
            (false, false),
            16,
        );
        let arch = arch();
        let of_windows = 16 * outputs * channels;
        let of_tiles = 16 * channels * whole.columns();
        let memory = of_windows + of_tiles + 16 * outputs * whole.columns();
        with_scratch(memory, |scratch| {
            let (held, scratch) = scratch.split_at_mut(of_windows);
            let (rows, width) = if turned {
                (channels, outputs)
            } else {
                (outputs, channels)
            };
            let mut fits = windows(weight, width, held);
            let held = &*held;
            let windows = |k: usize| {
                let of = |k| Matrix::strided(&held[k * width..], (rows, width), (16 * width, 1));
                if !turned {
                    return of(k);
                }
                // A window that is turned has the same numbers with the first and the last of each dimension swapped.
                let swapped = |i: usize| [3, 1, 2, 0][i];
                of(4 * swapped(k / 4) + swapped(k % 4)).transposed()
            };
            let sizes: Vec<[usize; 1]> = (0..outputs)
                .flat_map(|_| runs.iter().map(|run| [run.images * plane]))
                .collect();
            let [y] = build_in_turn(
                &sizes,
                runs.len(),
                |piece| piece % runs.len(),
                |run, pieces| {
                    let (first, tiled) = (run * whole.images, runs[run]);
                    let columns = tiled.columns();
                    let (tiles, products) = scratch.split_at_mut(16 * channels * columns);
                    let products = &mut products[..16 * outputs * columns];
                    fits = fits && self.spread::<false>(x, tiled, first, tiles);
                    if fits {
                        let products = products.par_chunks_exact_mut(outputs * columns).enumerate();
                        products.for_each(|(k, products)| {
                            let tiles = Matrix::strided(&tiles[k * columns..], (channels, columns), (16 * columns, 1));
                            product_in_rows((products, columns), false, windows(k), tiles, Threads::One);
                        });
                    }
                    let out = Tiled {
                        size: self.out_size,
                        ..tiled
                    };
                    let planes = pieces.into_par_iter().enumerate().map(|(output, [blank])| {
                        let y = zeroed(blank);
                        if fits {
                            let bias = bias.map_or(0.0, |bias| bias[output]);
                            with_scratch(4 * out.filled(), |scratch| {
                                for (image, y) in y.chunks_exact_mut(plane).enumerate() {
                                    let products = &products[output * columns + image * out.tiles_of_image()..];
                                    vectorised!(arch, out.gather(products, outputs * columns, bias, scratch, y));
                                }
                            });
                        }
                        [y]
                    });
                    planes.collect()
                },
            );
            fits.then_some(y)
        })
    }

    /// The gradient of the weight, `[outputs, channels, 3, 3]`; none if some numbers do not [`fit`].
    pub(super) fn weight_gradient_tiled(&self, x: &[f32], dy: &[f32]) -> Option<Vec<f32>> {
        let (channels, outputs) = (self.channels, self.outputs);
        let whole = self.tiled_inputs();
        note(
            (outputs, self.images * whole.tiles_of_image(), channels),
            (false, true),
            16,
        );
        let of_sums = 16 * outputs * channels;
        let memory = of_sums + 16 * (channels + outputs) * whole.columns();
        with_scratch(memory, |scratch| {
            let (sums, scratch) = scratch.split_at_mut(of_sums);
            let fits = self.runs(whole).into_iter().enumerate().all(|(run, tiled)| {
                let first = run * whole.images;
                let of_outputs = Tiled {
                    size: self.out_size,
                    padding: [0; 2],
                    ..tiled
                };
                let columns = tiled.columns();
                let (tiles, gradients) = scratch.split_at_mut(16 * channels * columns);
                let gradients = &mut gradients[..16 * outputs * columns];
                let fits = self.spread::<false>(x, tiled, first, tiles)
                    && self.spread::<true>(dy, of_outputs, first, gradients);
                if fits {
                    // Without what the last vector is longer than the tiles.
                    let inner = tiled.images * tiled.tiles_of_image();
                    let sums = sums.par_chunks_exact_mut(outputs * channels).enumerate();
                    sums.for_each(|(k, sums)| {
                        let gradients = Matrix::strided(&gradients[k * columns..], (outputs, inner), (16 * columns, 1));
                        let tiles = Matrix::strided(&tiles[k * columns..], (channels, inner), (16 * columns, 1));
                        outer_product(sums, run > 0, gradients, tiles);
                    });
                }
                fits
            });
            fits.then(|| self.windows_of(sums))
        })
    }

    /// The gradient of a weight from the sums of the 16 products, `[16, outputs, channels]`.
    fn windows_of(&self, sums: &[f32]) -> Vec<f32> {
        let (channels, outputs) = (self.channels, self.outputs);
        let arch = arch();
        let size = outputs * channels;
        build(9 * size, 9 * channels, |output, blank| {
            let out = zeroed(blank);
            vectorised!(arch, {
                for first in (0..channels).step_by(LANES) {
                    let count = LANES.min(channels - first);
                    let mut numbers = [[0.0; LANES]; 16];
                    for (k, numbers) in numbers.iter_mut().enumerate() {
                        let sums = &sums[k * size + output * channels + first..][..count];
                        numbers[..count].copy_from_slice(sums);
                    }
                    let row = |r: usize| {
                        let r = 4 * r;
                        to_window([&numbers[r], &numbers[r + 1], &numbers[r + 2], &numbers[r + 3]])
                    };
                    let rows = [row(0), row(1), row(2), row(3)];
                    let column = |c: usize| to_window([&rows[0][c], &rows[1][c], &rows[2][c], &rows[3][c]]);
                    let columns = [column(0), column(1), column(2)];
                    for (l, window) in out[first * 9..]
                        .as_chunks_mut::<9>()
                        .0
                        .iter_mut()
                        .take(count)
                        .enumerate()
                    {
                        for (tap, value) in window.iter_mut().enumerate() {
                            *value = columns[tap % 3][tap / 3][l];
                        }
                    }
                }
            });
            out
        })
    }
}
