//! Cross-entropy of rows of logits against one index each: what a decoder language model is trained by.
//!
//! Nothing of the size of the logits is written in the forward pass. The gradient goes to the memory of the logits themselves
//! where nothing else holds it, and finds the exponentials again: one for each element in either direction.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::{IndexingUpdateOp, Shape, TensorData};

use crate::operation::{Kernel, NextToken};
use crate::slices::{only, owned, tensor, values};
use crate::vector::{arch, build, exp_negative, largest, rows_of, sum_of, update_rows, vectorised, zeroed};

/// # Panics
/// If there is not one target for each row of `[rows, vocabulary]` logits, or if one lies outside the vocabulary.
pub(crate) fn check(targets: &[Option<u32>], [rows, vocabulary]: [usize; 2]) {
    assert_eq!(targets.len(), rows, "one target for each row of logits");
    let outside = targets.iter().enumerate().find_map(|(row, target)| {
        target
            .filter(|&target| target as usize >= vocabulary)
            .map(|target| (row, target))
    });
    if let Some((row, target)) = outside {
        panic!("target {target} of row {row} lies outside a vocabulary of {vocabulary}");
    }
}

/// The targets as indices of `[rows, 1]`, 0 where there is none, and where that is.
fn indices<B: Backend>(targets: &[Option<u32>], logits: &FloatTensor<B>) -> (IntTensor<B>, BoolTensor<B>) {
    let device = logits.device();
    let shape = [targets.len(), 1];
    let index: Vec<i64> = targets.iter().map(|target| i64::from(target.unwrap_or(0))).collect();
    let none: Vec<bool> = targets.iter().map(Option::is_none).collect();
    (
        B::int_from_data(TensorData::new(index, shape), &device),
        B::bool_from_data(TensorData::new(none, shape), &device),
    )
}

impl Kernel for NextToken {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        let logits = &tensors[0];
        let [rows, vocabulary] = logits.shape().dims();
        let x = values(logits);
        let piece = rows_of(vocabulary);
        let arch = arch();
        let losses = build(rows, piece, |i, blank| {
            let losses = zeroed(blank);
            vectorised!(arch, {
                for (j, loss) in losses.iter_mut().enumerate() {
                    let r = i * piece + j;
                    if let Some(target) = self.0[r] {
                        let x = &x[r * vocabulary..][..vocabulary];
                        let most = largest(x);
                        let sum = sum_of(
                            x,
                            #[inline(always)]
                            |x| exp_negative(x - most),
                        );
                        // The difference first, so that no digits are lost to large logits.
                        *loss = (most - x[target as usize]) + sum.ln();
                    }
                }
            });
            losses
        });
        tensor(losses, [rows])
    }

    /// In the memory of the logits where nothing else holds it.
    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let mut logits = owned(only(tensors));
        let [_, vocabulary] = logits.shape().dims();
        let gradient = values(&gradient);
        let arch = arch();
        update_rows(logits.storage_mut(), vocabulary, |first, logits| {
            vectorised!(arch, {
                for (j, x) in logits.chunks_exact_mut(vocabulary).enumerate() {
                    let r = first + j;
                    let Some(target) = self.0[r] else {
                        x.fill(0.0);
                        continue;
                    };
                    let most = largest(x);
                    x.iter_mut().for_each(|x| *x = exp_negative(*x - most));
                    let share = gradient[r]
                        / sum_of(
                            x,
                            #[inline(always)]
                            |x| x,
                        );
                    x.iter_mut().for_each(|p| *p *= share);
                    x[target as usize] -= gradient[r];
                }
            });
        });
        vec![Some(logits)]
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let logits = only(tensors);
        let [rows, vocabulary] = logits.shape().dims();
        if rows * vocabulary == 0 {
            return B::float_zeros(Shape::new([rows]), &logits.device(), logits.dtype().into());
        }
        let (index, none) = indices::<B>(&self.0, &logits);
        let losses = B::float_neg(B::float_gather(1, B::log_softmax(logits, 1), index));
        B::float_reshape(B::float_mask_fill(losses, none, 0.0f32.into()), Shape::new([rows]))
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let logits = only(tensors);
        let [rows, vocabulary] = logits.shape().dims();
        if rows * vocabulary == 0 {
            return vec![Some(logits)];
        }
        let (index, none) = indices::<B>(&self.0, &logits);
        let gradient = B::float_reshape(gradient, Shape::new([rows, 1]));
        let d = B::float_mul(B::softmax(logits, 1), gradient.clone());
        let d = B::float_scatter(1, d, index, B::float_neg(gradient), IndexingUpdateOp::Add);
        let none = B::bool_expand(none, Shape::new([rows, vocabulary]));
        vec![Some(B::float_mask_fill(d, none, 0.0f32.into()))]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;
    use crate::slices::contiguous;
    use crate::tests::{Way, gradients, result};
    use crate::vector::{Path, with_path};

    type Targets = std::sync::Arc<[Option<u32>]>;

    fn numbers(n: usize, seed: usize, scale: f32) -> Vec<f32> {
        let one = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
        (0..n).map(|i| one(i) * scale).collect()
    }

    /// Every third row has none.
    fn some(rows: usize, vocabulary: usize) -> Targets {
        (0..rows)
            .map(|r| (r % 3 != 2).then_some((r * 31 % vocabulary.max(1)) as u32))
            .collect()
    }

    /// Losses and the gradient for a gradient, in float64.
    fn exact(x: &[f32], targets: &[Option<u32>], gradient: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let vocabulary = x.len() / targets.len().max(1);
        let mut losses = vec![0.0; targets.len()];
        let mut d = vec![0.0; x.len()];
        for (r, target) in targets.iter().enumerate() {
            let Some(target) = *target else { continue };
            let row: Vec<f64> = x[r * vocabulary..][..vocabulary]
                .iter()
                .map(|&x| f64::from(x))
                .collect();
            let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
            losses[r] = most + sum.ln() - row[target as usize];
            for (k, x) in row.iter().enumerate() {
                let hit = if k == target as usize { 1.0 } else { 0.0 };
                d[r * vocabulary + k] = f64::from(gradient[r]) * ((x - most).exp() / sum - hit);
            }
        }
        (losses, d)
    }

    fn run(way: Way, x: &[f32], targets: &Targets, gradient: &[f32]) -> [Vec<f32>; 2] {
        let (rows, vocabulary) = (targets.len(), x.len() / targets.len().max(1));
        let logits = tensor(x.to_vec(), [rows, vocabulary]);
        let losses = result(way, NextToken(targets.clone()), vec![logits.clone()]);
        assert_eq!(losses.shape().dims(), [rows]);
        let d = gradient_of(way, targets, &logits, tensor(gradient.to_vec(), [rows]));
        assert_eq!(d.shape().dims(), [rows, vocabulary]);
        let same = values(&logits).iter().zip(x).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "logits that someone else holds");
        [losses, d].map(|t| values(&contiguous(t)).to_vec())
    }

    fn gradient_of(
        way: Way,
        targets: &Targets,
        logits: &FloatTensor<Flex>,
        gradient: FloatTensor<Flex>,
    ) -> FloatTensor<Flex> {
        only(gradients(
            way,
            NextToken(targets.clone()),
            vec![logits.clone()],
            gradient,
        ))
    }

    fn check(found: &[Vec<f32>; 2], x: &[f32], targets: &Targets, gradient: &[f32]) {
        let (losses, d) = exact(x, targets, gradient);
        for (found, exact) in found[0].iter().zip(&losses) {
            assert!(
                (f64::from(*found) - exact).abs() <= 1e-6 * (1.0 + exact.abs()),
                "{found} for {exact}"
            );
        }
        for (found, exact) in found[1].iter().zip(&d) {
            assert!((f64::from(*found) - exact).abs() <= 1e-6, "{found} for {exact}");
        }
    }

    #[test]
    fn losses_and_gradients_are_those_of_loops_in_float64_on_every_path() {
        for (rows, vocabulary) in [(1, 1), (3, 2), (5, 17), (40, 1000), (3, 40_001)] {
            for scale in [1.0, 30.0, 1000.0] {
                let (x, g) = (numbers(rows * vocabulary, 1, scale), numbers(rows, 2, 1.0));
                let targets = some(rows, vocabulary);
                for path in Path::ALL.into_iter().filter(|path| path.is_available()) {
                    with_path(path, || check(&run(Way::Ours, &x, &targets, &g), &x, &targets, &g));
                }
            }
            let (x, g) = (numbers(rows * vocabulary, 1, 10.0), numbers(rows, 2, 1.0));
            let targets = some(rows, vocabulary);
            check(&run(Way::Plain, &x, &targets, &g), &x, &targets, &g);
        }
    }

    proptest! {
        #[test]
        fn any_rows_are_those_of_loops_in_float64(
            rows in 0..20usize, vocabulary in 1..300usize, seed in 0..1000usize, scale in 0.0..50.0f32, all: bool,
        ) {
            let (x, g) = (numbers(rows * vocabulary, seed, scale), numbers(rows, seed + 1, 1.0));
            let targets = match all {
                true => (0..rows).map(|r| Some(((r * seed) % vocabulary) as u32)).collect(),
                false => some(rows, vocabulary),
            };
            check(&run(Way::Ours, &x, &targets, &g), &x, &targets, &g);
            check(&run(Way::Plain, &x, &targets, &g), &x, &targets, &g);
        }
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let (rows, vocabulary) = (4, 9);
        let (x, targets) = (numbers(rows * vocabulary, 5, 2.0), some(rows, vocabulary));
        let [_, d] = run(Way::Ours, &x, &targets, &[1.0; 4]);
        for (at, d) in d.iter().enumerate() {
            let loss = |by: f32| {
                let mut x = x.clone();
                x[at] += by;
                run(Way::Ours, &x, &targets, &[1.0; 4])[0]
                    .iter()
                    .map(|&v| f64::from(v))
                    .sum::<f64>()
            };
            let slope = (loss(0.01) - loss(-0.01)) / 0.02;
            assert!((slope - f64::from(*d)).abs() < 2e-4, "{slope} against {d}");
        }
    }

    #[test]
    fn no_rows_and_no_vocabulary_give_no_losses_and_zeros() {
        for way in [Way::Ours, Way::Plain] {
            for (rows, vocabulary) in [(0, 5), (0, 0), (3, 0)] {
                let targets: Targets = vec![None; rows].into();
                let logits = tensor(Vec::new(), [rows, vocabulary]);
                let losses = result(way, NextToken(targets.clone()), vec![logits.clone()]);
                assert_eq!(values(&losses), vec![0.0; rows]);
                let d = gradient_of(way, &targets, &logits, tensor(vec![1.0; rows], [rows]));
                assert_eq!(d.shape().dims(), [rows, vocabulary]);
            }
        }
    }

    #[test]
    fn what_is_no_number_goes_where_the_plain_operation_carries_it() {
        let kind = |v: &f32| {
            if v.is_nan() {
                9.0
            } else if v.is_finite() {
                0.0
            } else {
                v.signum()
            }
        };
        let (rows, vocabulary) = (6, 37);
        let targets = some(rows, vocabulary);
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // Beside the target, at the target, all of a row, and in a row without a target.
            for (row, columns) in [(0, 5..6), (1, 31..32), (3, 0..37), (2, 3..9)] {
                let (mut x, g) = (numbers(rows * vocabulary, 1, 3.0), numbers(rows, 2, 1.0));
                x[row * vocabulary..][columns].fill(wrong);
                let kinds = [Way::Ours, Way::Plain]
                    .map(|way| run(way, &x, &targets, &g).map(|values| values.iter().map(kind).collect::<Vec<f32>>()));
                assert_eq!(kinds[0], kinds[1], "{wrong} in row {row}");
                assert!(row != 2 || kinds[0].iter().flatten().all(|&kind| kind == 0.0));
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let (rows, vocabulary) = (50, 1003);
        let (x, g, targets) = (
            numbers(rows * vocabulary, 1, 9.0),
            numbers(rows, 2, 1.0),
            some(rows, vocabulary),
        );
        let bytes = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| run(Way::Ours, &x, &targets, &g));
            found.map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let one = bytes(1);
        assert!(one == bytes(2) && one == bytes(3));
    }

    #[test]
    fn the_gradient_takes_the_memory_of_logits_that_nothing_else_holds() {
        let logits = tensor(numbers(20, 1, 1.0), [4, 5]);
        let place = values(&logits).as_ptr();
        let d = gradients(
            Way::Ours,
            NextToken(some(4, 5)),
            vec![logits],
            tensor(vec![1.0; 4], [4]),
        )
        .remove(0);
        assert_eq!(values(&d).as_ptr(), place);
    }

    #[test]
    fn tracked_logits_in_any_order_get_their_gradient() {
        let device = Device::flex().autodiff();
        let (rows, vocabulary) = (7, 33);
        let (x, g, targets) = (
            numbers(rows * vocabulary, 1, 4.0),
            numbers(rows, 2, 1.0),
            some(rows, vocabulary),
        );
        let leaf = Tensor::<2>::from_data(TensorData::new(x.clone(), [rows, vocabulary]), &device).require_grad();
        let logits = leaf.clone().swap_dims(0, 1).mul_scalar(1.0).swap_dims(0, 1);
        let losses = crate::next_token_cross_entropy(logits, targets.clone());
        let weights = Tensor::<1>::from_data(TensorData::new(g.clone(), [rows]), &device);
        let gradients = (losses.clone() * weights).sum().backward();
        let found = [losses.into_data(), leaf.grad(&gradients).unwrap().into_data()];
        check(&found.map(|data| data.try_to_vec().unwrap()), &x, &targets, &g);
    }

    #[test]
    #[should_panic(expected = "target 5 of row 1 lies outside a vocabulary of 5")]
    fn a_target_outside_the_vocabulary_is_refused() {
        let logits = Tensor::<2>::zeros([3, 5], &Device::flex());
        crate::next_token_cross_entropy(logits, vec![Some(4), Some(5), None]);
    }

    #[test]
    #[should_panic(expected = "one target for each row of logits")]
    fn targets_for_other_rows_are_refused() {
        let logits = Tensor::<2>::zeros([3, 5], &Device::flex());
        crate::next_token_cross_entropy(logits, vec![None; 2]);
    }
}
