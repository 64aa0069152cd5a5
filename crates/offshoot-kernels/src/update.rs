//! AdamW, norms and moving averages: one pass over all tensors of a network.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex};
use burn::tensor::Shape;
use rayon::prelude::*;

use crate::slices::{all_f32, contiguous, owned, values};
use crate::vector::{PIECE, arch, sum_of, vectorised};

/// Numbers of one AdamW update of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Decay of the first moment. In double precision, as what is left of 1 matters too.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Factor on the gradient, such as that of clipping.
    pub gradient_scale: f32,
    /// Factor on the weight: 1 less learning rate times weight decay.
    pub keep: f32,
    /// Learning rate over the correction of the first moment; 0 leaves the weight as it is.
    pub rate: f32,
    /// Reciprocal root of the correction of the second moment.
    pub root_correction: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
}

/// Pieces of the elements of several tensors at once, each with the number of its tensor.
fn pieces(tensors: &mut [FloatTensor<Flex>]) -> Vec<Vec<&mut [f32]>> {
    tensors
        .iter_mut()
        .map(|tensor| tensor.storage_mut::<f32>().chunks_mut(PIECE).collect())
        .collect()
}

/// [`Kernels::adamw`](crate::Kernels::adamw) on the CPU, in the memory of weights and moments where nothing else holds it.
pub(crate) fn adamw(steps: &[AdamStep], mut tensors: Vec<FloatTensor<Flex>>) -> Vec<FloatTensor<Flex>> {
    if !all_f32(&tensors) {
        return plain_adamw::<Flex>(steps, tensors);
    }
    let n = steps.len();
    let gradients: Vec<_> = tensors.split_off(3 * n).into_iter().map(contiguous).collect();
    let mut tensors: Vec<_> = tensors.into_iter().map(|tensor| owned(contiguous(tensor))).collect();
    let arch = arch();
    {
        let (weights, moments) = tensors.split_at_mut(n);
        let (first, second) = moments.split_at_mut(n);
        let work: Vec<_> = pieces(weights)
            .into_iter()
            .zip(pieces(first))
            .zip(pieces(second))
            .zip(gradients.iter().zip(steps))
            .flat_map(|(((w, m), v), (gradient, step))| {
                let gradient = values(gradient).chunks(PIECE);
                w.into_iter()
                    .zip(m)
                    .zip(v)
                    .zip(gradient)
                    .map(move |piece| (piece, *step))
            })
            .collect();
        work.into_par_iter().for_each(|((((w, m), v), g), step)| {
            vectorised!(arch, update(step, w, m, v, g));
        });
    }
    tensors
}

#[inline(always)]
fn update(step: AdamStep, weights: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
    let (old_m, new_m) = (step.beta1 as f32, (1.0 - step.beta1) as f32);
    let (old_v, new_v) = (step.beta2 as f32, (1.0 - step.beta2) as f32);
    for (((w, m), v), g) in weights.iter_mut().zip(first).zip(second).zip(gradient) {
        let g = g * step.gradient_scale;
        *m = *m * old_m + g * new_m;
        *v = *v * old_v + g * g * new_v;
        if step.rate != 0.0 {
            let denominator = v.sqrt() * step.root_correction + step.epsilon;
            *w = *w * step.keep - *m / denominator * step.rate;
        }
    }
}

/// [`Kernels::square_sums`](crate::Kernels::square_sums) on the CPU.
pub(crate) fn square_sums(tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
    if !all_f32(&tensors) {
        return plain_square_sums::<Flex>(tensors);
    }
    let tensors: Vec<_> = tensors.into_iter().map(contiguous).collect();
    let arch = arch();
    let pieces: Vec<(usize, &[f32])> = tensors
        .iter()
        .enumerate()
        .flat_map(|(i, tensor)| values(tensor).chunks(PIECE).map(move |piece| (i, piece)))
        .collect();
    let sums: Vec<(usize, f32)> = pieces
        .into_par_iter()
        .map(|(i, piece)| {
            (
                i,
                vectorised!(
                    arch,
                    sum_of(
                        piece,
                        #[inline(always)]
                        |x| x * x
                    )
                ),
            )
        })
        .collect();
    let mut totals = vec![0.0; tensors.len()];
    for (i, sum) in sums {
        totals[i] += sum;
    }
    let n = totals.len();
    crate::slices::tensor(totals, [n])
}

/// [`Kernels::average`](crate::Kernels::average) on the CPU, in the memory of the averages where nothing else holds it.
pub(crate) fn average(momentum: f64, mut tensors: Vec<FloatTensor<Flex>>) -> Vec<FloatTensor<Flex>> {
    if !all_f32(&tensors) {
        return plain_average::<Flex>(momentum, tensors);
    }
    let n = tensors.len() / 2;
    let weights: Vec<_> = tensors.split_off(n).into_iter().map(contiguous).collect();
    let mut averages: Vec<_> = tensors.into_iter().map(|tensor| owned(contiguous(tensor))).collect();
    let (old, new) = (momentum as f32, (1.0 - momentum) as f32);
    let arch = arch();
    let work: Vec<_> = pieces(&mut averages)
        .into_iter()
        .zip(&weights)
        .flat_map(|(averages, weights)| averages.into_iter().zip(values(weights).chunks(PIECE)))
        .collect();
    work.into_par_iter().for_each(|(average, weights)| {
        vectorised!(arch, {
            for (a, w) in average.iter_mut().zip(weights) {
                *a = *a * old + w * new;
            }
        });
    });
    averages
}

/// [`Kernels::adamw`](crate::Kernels::adamw) in plain operations.
pub(crate) fn plain_adamw<B: Backend>(steps: &[AdamStep], mut tensors: Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
    let n = steps.len();
    let gradients = tensors.split_off(3 * n);
    let second = tensors.split_off(2 * n);
    let first = tensors.split_off(n);
    let (mut weights, mut firsts, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
    for ((((w, m), v), g), step) in tensors.into_iter().zip(first).zip(second).zip(gradients).zip(steps) {
        let scaled = |x: FloatTensor<B>, factor: f32| B::float_mul_scalar(x, factor.into());
        let g = scaled(g, step.gradient_scale);
        let mixed = |old, beta: f64, new| B::float_add(scaled(old, beta as f32), scaled(new, (1.0 - beta) as f32));
        let m = mixed(m, step.beta1, g.clone());
        let v = mixed(v, step.beta2, B::float_mul(g.clone(), g));
        weights.push(if step.rate == 0.0 {
            w
        } else {
            let root = scaled(B::float_sqrt(v.clone()), step.root_correction);
            let change = B::float_div(m.clone(), B::float_add_scalar(root, step.epsilon.into()));
            B::float_sub(scaled(w, step.keep), scaled(change, step.rate))
        });
        firsts.push(m);
        seconds.push(v);
    }
    weights.into_iter().chain(firsts).chain(seconds).collect()
}

/// [`Kernels::square_sums`](crate::Kernels::square_sums) in plain operations.
pub(crate) fn plain_square_sums<B: Backend>(tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    let sum = |x: FloatTensor<B>| B::float_reshape(B::float_sum(B::float_mul(x.clone(), x)), Shape::new([1]));
    B::float_cat(tensors.into_iter().map(sum).collect(), 0)
}

/// [`Kernels::average`](crate::Kernels::average) in plain operations.
pub(crate) fn plain_average<B: Backend>(momentum: f64, mut tensors: Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
    let weights = tensors.split_off(tensors.len() / 2);
    let scaled = |x: FloatTensor<B>, factor: f32| B::float_mul_scalar(x, factor.into());
    let pairs = tensors.into_iter().zip(weights);
    pairs
        .map(|(a, w)| B::float_add(scaled(a, momentum as f32), scaled(w, (1.0 - momentum) as f32)))
        .collect()
}
