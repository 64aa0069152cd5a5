//! Cross-entropy against dense targets, softmax, and Sinkhorn-Knopp: passes over rows of prototypes that keep no logarithms.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::{Shape, TensorData};
use rayon::prelude::*;

use crate::operation::Kernel;
use crate::slices::{all_f32, contiguous, owned, tensor, values};
use crate::vector::{
    add_up, arch, build, build_pieces, dot, exp_negative, largest, rows_of, sum_of, sum_pairs, update_rows, vectorised,
    zeroed,
};

/// Which targets the rows of some logits are compared with.
#[derive(Clone, Debug)]
pub struct SoftTargets {
    /// Divides the logits.
    pub temperature: f64,
    /// For each tensor of targets the row that each row of logits is compared with; a row of logits that has none there loses
    /// nothing.
    pub rows: Arc<[Vec<Option<u32>>]>,
}

impl SoftTargets {
    /// # Panics
    /// If the tensors do not fit: a row of every target for each row of the logits that asks for one.
    fn check(&self, tensors: &[Shape]) {
        let [rows, columns] = tensors[0].dims();
        assert_eq!(self.rows.len(), tensors.len() - 1, "tensors of targets");
        for (asked, targets) in self.rows.iter().zip(&tensors[1..]) {
            let [own, width] = targets.dims();
            assert_eq!((asked.len(), width), (rows, columns), "rows and columns of targets");
            assert!(
                asked.iter().flatten().all(|&row| (row as usize) < own),
                "a row beyond the targets"
            );
        }
    }

    /// The row of targets of row `r` of the logits in set `s`.
    fn of<'a>(&self, targets: &[&'a [f32]], s: usize, r: usize, columns: usize) -> Option<&'a [f32]> {
        self.rows[s][r].map(|row| &targets[s][row as usize * columns..][..columns])
    }
}

/// Exponentials of a row of `logits` times `factor` above their maximum, in `out`; that maximum and their sum.
#[inline(always)]
fn soften(logits: &[f32], factor: f32, out: &mut [f32]) -> (f32, f32) {
    let most = largest(logits) * factor;
    for (y, &x) in out.iter_mut().zip(logits) {
        *y = exp_negative(x.mul_add(factor, -most));
    }
    (
        most,
        sum_of(
            out,
            #[inline(always)]
            |x| x,
        ),
    )
}

/// [`Kernels::tempered_softmax`](crate::Kernels::tempered_softmax) on the CPU.
pub(crate) fn softmax(logits: FloatTensor<Flex>, temperature: f64) -> FloatTensor<Flex> {
    if !all_f32([&logits]) {
        return plain_softmax::<Flex>(logits, temperature);
    }
    let logits = contiguous(logits);
    let [rows, columns] = logits.shape().dims();
    let (x, factor) = (values(&logits), (1.0 / temperature) as f32);
    let piece = rows_of(columns) * columns;
    let arch = arch();
    let out = build(rows * columns, piece, |i, blank| {
        let out = zeroed(blank);
        vectorised!(arch, {
            let x = &x[i * piece..][..out.len()];
            for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
                let (_, sum) = soften(x, factor, out);
                let share = 1.0 / sum;
                out.iter_mut().for_each(|p| *p *= share);
            }
        });
        out
    });
    tensor(out, [rows, columns])
}

/// What [`exp_negative`] leaves out of a sum of elements times factors, in units of the sum of the factors: twice `exp(-87)`, once
/// for the elements and once for the first factors of the rows, and room for seven digits. Sums below it do not go either, so
/// that no product with a factor is too small.
const LEAST: f32 = 3.3e-38 * 1e7;

/// [`Kernels::sinkhorn`](crate::Kernels::sinkhorn) on the CPU: the matrix of exponentials is written once, and the rounds only change a factor for each
/// row and one for each column. A round reads the matrix once.
///
/// Logits so far apart that a sum would lose digits to elements too small to be represented, such as those of a whole column,
/// go by the plain operations, which keep logarithms.
pub(crate) fn sinkhorn(logits: FloatTensor<Flex>, temperature: f64, rounds: usize) -> FloatTensor<Flex> {
    let [rows, columns] = logits.shape().dims();
    if !all_f32([&logits]) || rounds == 0 || rows * columns == 0 {
        return plain_sinkhorn::<Flex>(logits, temperature, rounds);
    }
    let logits = contiguous(logits);
    match scaled_sinkhorn(values(&logits), [rows, columns], temperature, rounds) {
        Some(q) => tensor(q, [rows, columns]),
        None => plain_sinkhorn::<Flex>(logits, temperature, rounds),
    }
}

/// [`sinkhorn`] by factors; none if a sum would lose digits, or is NaN.
fn scaled_sinkhorn(x: &[f32], [rows, columns]: [usize; 2], temperature: f64, rounds: usize) -> Option<Vec<f32>> {
    let factor = (1.0 / temperature) as f32;
    let arch = arch();
    // A few blocks of rows, each with sums of its own over its columns, and the sum of its rows' factors.
    let block = rows.div_ceil(16);
    let blocks = rows.div_ceil(block);
    let most = vectorised!(arch, largest(x)) * factor;
    let width = columns + 1;
    let sizes: Vec<[usize; 2]> = (0..blocks)
        .map(|b| [block.min(rows - b * block) * columns, width])
        .collect();
    // Each row is taken above its own maximum, so that none becomes nothing but zeros; what that leaves out is its first factor.
    let [mut q, mut sums] = build_pieces(&sizes, |b, [q, sums]| {
        let (q, sums) = (zeroed(q), zeroed(sums));
        vectorised!(arch, {
            let x = &x[b * block * columns..][..q.len()];
            for (x, q) in x.chunks_exact(columns).zip(q.chunks_exact_mut(columns)) {
                let (own, _) = soften(x, factor, q);
                add_row(&mut sums[..columns], q, exp_negative(own - most));
                // A first factor may itself have been too small.
                sums[columns] += 1.0;
            }
        });
        [q, sums]
    });
    let lost = AtomicBool::new(false);
    for round in 1..=rounds {
        let mut of_columns = add_up(&sums, width);
        let of_rows = of_columns.pop().expect("a sum of factors");
        // Not `<`, so that NaN is found too.
        if !of_columns.iter().all(|&sum| sum >= LEAST * of_rows.max(1.0)) {
            return None;
        }
        for sum in &mut of_columns {
            *sum = 1.0 / (*sum * columns as f32);
        }
        let least = LEAST * sum_of(&of_columns, |x| x).max(1.0);
        let of_columns = &of_columns;
        let last = round == rounds;
        let work = |(q, sums): (&mut [f32], &mut [f32])| {
            vectorised!(arch, {
                sums.fill(0.0);
                for q in q.chunks_exact_mut(columns) {
                    let sum = dot(q, of_columns);
                    if sum < least || sum.is_nan() {
                        lost.store(true, Ordering::Relaxed);
                    }
                    let of_row = 1.0 / (sum * rows as f32);
                    if last {
                        for (q, of_column) in q.iter_mut().zip(of_columns) {
                            *q *= of_row * rows as f32 * of_column;
                        }
                    } else {
                        add_row(&mut sums[..columns], q, of_row);
                        sums[columns] += of_row;
                    }
                }
            });
        };
        q.par_chunks_mut(block * columns)
            .zip(sums.par_chunks_mut(width))
            .for_each(work);
        if lost.load(Ordering::Relaxed) {
            return None;
        }
    }
    Some(q)
}

/// `sums += factor * row`.
#[inline(always)]
fn add_row(sums: &mut [f32], row: &[f32], factor: f32) {
    for (sum, value) in sums.iter_mut().zip(row) {
        *sum = factor.mul_add(*value, *sum);
    }
}

/// The rows of a set's targets that the rows of the logits are compared with, any where there are none, and which those are, as
/// `[rows, 1]`. Nothing if all are.
fn picked<B: Backend>(asked: &[Option<u32>], targets: FloatTensor<B>) -> Option<(FloatTensor<B>, BoolTensor<B>)> {
    let any = i64::from(*asked.iter().flatten().next()?);
    let device = targets.device();
    let rows: Vec<i64> = asked.iter().map(|row| row.map_or(any, i64::from)).collect();
    let without: Vec<bool> = asked.iter().map(Option::is_none).collect();
    let rows = B::int_from_data(TensorData::new(rows, [asked.len()]), &device);
    let without = B::bool_from_data(TensorData::new(without, [asked.len(), 1]), &device);
    Some((B::float_select(targets, 0, rows), without))
}

/// Zeros on the device of `like`.
fn zeros<B: Backend>(like: &FloatTensor<B>, shape: Shape) -> FloatTensor<B> {
    B::float_zeros(shape, &like.device(), like.dtype().into())
}

/// [`Kernels::tempered_softmax`](crate::Kernels::tempered_softmax) in plain operations.
pub(crate) fn plain_softmax<B: Backend>(logits: FloatTensor<B>, temperature: f64) -> FloatTensor<B> {
    B::softmax(B::float_div_scalar(logits, temperature.into()), 1)
}

/// [`Kernels::sinkhorn`](crate::Kernels::sinkhorn) in plain operations, on logarithms: `exp(logits / temperature)` overflows above 88, and under its
/// largest element whole columns may be nothing but zeros.
pub(crate) fn plain_sinkhorn<B: Backend>(logits: FloatTensor<B>, temperature: f64, rounds: usize) -> FloatTensor<B> {
    let [rows, columns] = logits.shape().dims();
    if rows * columns == 0 {
        return logits;
    }
    let log_q = B::float_div_scalar(logits, temperature.into());
    if rounds == 0 {
        let q = B::softmax(B::float_reshape(log_q, Shape::new([1, rows * columns])), 1);
        return B::float_mul_scalar(B::float_reshape(q, Shape::new([rows, columns])), rows.into());
    }
    // The sums that columns and rows are made to have are the same for all, so the rounds can make them 1.
    let q = (0..rounds).fold(log_q, |log_q, _| B::log_softmax(B::log_softmax(log_q, 0), 1));
    B::float_exp(q)
}

impl Kernel for SoftTargets {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        self.check(&tensors.iter().map(|t| t.shape()).collect::<Vec<_>>());
        let [rows, columns] = tensors[0].shape().dims();
        let sets = self.rows.len();
        let (logits, factor) = (values(&tensors[0]), (1.0 / self.temperature) as f32);
        let targets: Vec<&[f32]> = tensors[1..].iter().map(values).collect();
        let piece = rows_of(columns);
        let arch = arch();
        // Rows outside, sets inside.
        let losses = build(rows * sets, piece * sets, |i, blank| {
            let losses = zeroed(blank);
            crate::vector::with_scratch(columns, |scratch| {
                vectorised!(arch, {
                    for (j, losses) in losses.chunks_exact_mut(sets.max(1)).enumerate() {
                        let r = i * piece + j;
                        let logits = &logits[r * columns..][..columns];
                        let (most, sum) = soften(logits, factor, scratch);
                        let normaliser = most + sum.ln();
                        for (s, loss) in losses.iter_mut().enumerate() {
                            if let Some(targets) = self.of(&targets, s, r, columns) {
                                // Row by row around its own normaliser, so that no digits are lost to large logits.
                                *loss = sum_pairs(
                                    targets,
                                    logits,
                                    #[inline(always)]
                                    |t, x| t * (normaliser - x * factor),
                                );
                            }
                        }
                    }
                });
            });
            losses
        });
        let by_set = (0..sets).flat_map(|s| (0..rows).map(move |r| (s, r)));
        let losses = by_set.map(|(s, r)| losses[r * sets + s]).collect();
        tensor(losses, [sets, rows])
    }

    /// In the memory of the logits where nothing else holds it.
    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let mut tensors = tensors.into_iter();
        let mut logits = owned(tensors.next().expect("logits"));
        let targets: Vec<_> = tensors.collect();
        let targets: Vec<&[f32]> = targets.iter().map(values).collect();
        let gradient = values(&gradient);
        let [rows, columns] = logits.shape().dims();
        let factor = (1.0 / self.temperature) as f32;
        let arch = arch();
        update_rows(logits.storage_mut(), columns, |first, logits| {
            crate::vector::with_scratch(columns, |scratch| {
                vectorised!(arch, {
                    for (j, logits) in logits.chunks_exact_mut(columns).enumerate() {
                        let r = first + j;
                        let (_, sum) = soften(logits, factor, scratch);
                        logits.fill(0.0);
                        let (mut mass, mut asked) = (0.0, false);
                        for s in 0..self.rows.len() {
                            if let Some(targets) = self.of(&targets, s, r, columns) {
                                asked = true;
                                let weight = gradient[s * rows + r] * factor;
                                mass += weight
                                    * sum_of(
                                        targets,
                                        #[inline(always)]
                                        |t| t,
                                    );
                                for (d, target) in logits.iter_mut().zip(targets) {
                                    *d = (-weight).mul_add(*target, *d);
                                }
                            }
                        }
                        // A row without targets has no gradient, whatever is in it.
                        if asked {
                            let share = mass / sum;
                            for (d, p) in logits.iter_mut().zip(&*scratch) {
                                *d = share.mul_add(*p, *d);
                            }
                        }
                    }
                });
            });
        });
        vec![Some(logits)]
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let mut tensors = tensors.into_iter();
        let logits = tensors.next().expect("logits");
        let [rows, _] = logits.shape().dims();
        let log_p = B::log_softmax(B::float_div_scalar(logits.clone(), self.temperature.into()), 1);
        let one = |(asked, targets): (&Vec<Option<u32>>, FloatTensor<B>)| {
            let losses = match picked::<B>(asked, targets) {
                Some((targets, without)) => {
                    let losses = B::float_neg(B::float_sum_dim(B::float_mul(targets, log_p.clone()), 1));
                    // Not by a factor of 0, which would keep a NaN.
                    B::float_mask_fill(losses, without, 0.0.into())
                }
                None => zeros::<B>(&logits, Shape::new([rows, 1])),
            };
            B::float_reshape(losses, Shape::new([1, rows]))
        };
        B::float_cat(self.rows.iter().zip(tensors).map(one).collect(), 0)
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let mut tensors = tensors.into_iter();
        let logits = tensors.next().expect("logits");
        let [rows, columns] = logits.shape().dims();
        let mut sum = zeros::<B>(&logits, Shape::new([rows, columns]));
        let p = plain_softmax::<B>(logits, self.temperature);
        for (s, (asked, targets)) in self.rows.iter().zip(tensors).enumerate() {
            let Some((targets, without)) = picked::<B>(asked, targets) else {
                continue;
            };
            let weight = B::float_slice(gradient.clone(), &[(s..s + 1).into(), (0..rows).into()]);
            let weight = B::float_reshape(weight, Shape::new([rows, 1]));
            let mass = B::float_sum_dim(targets.clone(), 1);
            let change = B::float_mul(B::float_sub(B::float_mul(p.clone(), mass), targets), weight);
            let without = B::bool_expand(without, Shape::new([rows, columns]));
            sum = B::float_add(sum, B::float_mask_fill(change, without, 0.0.into()));
        }
        vec![Some(B::float_div_scalar(sum, self.temperature.into()))]
    }

    /// Targets are constants.
    fn tracked(&self, _: usize) -> usize {
        1
    }
}
