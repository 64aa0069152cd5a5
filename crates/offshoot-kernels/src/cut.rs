//! Slices of a weight as a weight of their own: copied once, and nothing but the slice.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata};
use burn::tensor::{Shape, Slice};

use crate::Kernels;
use crate::slices::{all_f32, contiguous, tensor, values};
use crate::vector::{build, rows_of, zeroed};

/// Runs `[start, end)` of the rows and of the columns of a matrix, kept in this order, and a factor. A row or column that is kept
/// twice has the sum of both gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// Rows and columns of the whole.
    pub size: (usize, usize),
    /// Kept runs of rows.
    pub rows: Vec<(usize, usize)>,
    /// Kept runs of columns.
    pub columns: Vec<(usize, usize)>,
    /// Factor on every element.
    pub gain: f32,
}

/// Numbers in all `runs`.
fn length(runs: &[(usize, usize)]) -> usize {
    runs.iter().map(|(start, end)| end - start).sum()
}

impl Cut {
    fn kept(&self) -> (usize, usize) {
        (length(&self.rows), length(&self.columns))
    }

    /// # Panics
    /// If a run lies outside, or the matrix has another size.
    fn check(&self, elements: usize) {
        assert_eq!(self.size.0 * self.size.1, elements, "elements of a matrix that is cut");
        let inside = |runs: &[(usize, usize)], size| runs.iter().all(|&(start, end)| start <= end && end <= size);
        assert!(
            inside(&self.rows, self.size.0) && inside(&self.columns, self.size.1),
            "a run outside of the matrix"
        );
    }
}

/// [`Kernels::cut`] on the CPU.
pub(crate) fn forward(form: Cut, whole: FloatTensor<Flex>) -> FloatTensor<Flex> {
    if !all_f32([&whole]) {
        return plain::<Flex>(form, whole);
    }
    let whole = contiguous(whole);
    form.check(whole.shape().num_elements());
    let whole = values(&whole);
    let (kept_rows, kept_columns) = form.kept();
    let kept: Vec<usize> = form.rows.iter().flat_map(|&(start, end)| start..end).collect();
    let piece = rows_of(kept_columns);
    let part = build(kept_rows * kept_columns, piece * kept_columns, |i, blank| {
        let part = zeroed(blank);
        for (row, out) in kept[i * piece..].iter().zip(part.chunks_exact_mut(kept_columns)) {
            let row = &whole[row * form.size.1..][..form.size.1];
            let mut at = 0;
            for &(start, end) in &form.columns {
                for (out, value) in out[at..].iter_mut().zip(&row[start..end]) {
                    *out = form.gain * value;
                }
                at += end - start;
            }
        }
        part
    });
    tensor(part, [kept_rows * kept_columns])
}

/// [`Kernels::cut_backward`] on the CPU.
pub(crate) fn backward(form: Cut, gradient: FloatTensor<Flex>) -> FloatTensor<Flex> {
    if !all_f32([&gradient]) {
        return plain_backward::<Flex>(form, gradient);
    }
    let gradient = contiguous(gradient);
    let gradient = values(&gradient);
    let (rows, columns) = form.size;
    let (_, kept_columns) = form.kept();
    // Where each row of the whole went, in the order of the slices.
    let mut places: Vec<Vec<usize>> = vec![Vec::new(); rows];
    let kept = form.rows.iter().flat_map(|&(start, end)| start..end);
    kept.enumerate().for_each(|(place, row)| places[row].push(place));
    let piece = rows_of(columns);
    let whole = build(rows * columns, piece * columns, |i, blank| {
        let whole = zeroed(blank);
        for (places, out) in places[i * piece..].iter().zip(whole.chunks_exact_mut(columns.max(1))) {
            for place in places {
                let row = &gradient[place * kept_columns..][..kept_columns];
                let mut at = 0;
                for &(start, end) in &form.columns {
                    for (out, value) in out[start..end].iter_mut().zip(&row[at..]) {
                        *out += form.gain * value;
                    }
                    at += end - start;
                }
            }
        }
        whole
    });
    tensor(whole, [rows * columns])
}

/// [`Kernels::cut`] in plain operations.
pub(crate) fn plain<B: Backend>(form: Cut, whole: FloatTensor<B>) -> FloatTensor<B> {
    let (rows, columns) = form.kept();
    let mut matrix = B::float_reshape(whole, Shape::new([form.size.0, form.size.1]));
    for (dim, runs) in [&form.rows, &form.columns].into_iter().enumerate() {
        let run = |&(start, end): &(usize, usize)| {
            let mut slices = [Slice::full(), Slice::full()];
            slices[dim] = Slice::from(start..end);
            B::float_slice(matrix.clone(), &slices)
        };
        matrix = B::float_cat(runs.iter().map(run).collect(), dim);
    }
    let matrix = B::float_mul_scalar(matrix, form.gain.into());
    B::float_reshape(matrix, Shape::new([rows * columns]))
}

/// [`Kernels::cut_backward`] in plain operations.
pub(crate) fn plain_backward<B: Backend>(form: Cut, gradient: FloatTensor<B>) -> FloatTensor<B> {
    let (rows, columns) = form.kept();
    let device = gradient.device();
    let dtype = gradient.dtype();
    let mut matrix = B::float_mul_scalar(
        B::float_reshape(gradient, Shape::new([rows, columns])),
        form.gain.into(),
    );
    let sizes = [form.size.0, form.size.1];
    for (dim, runs) in [&form.rows, &form.columns].into_iter().enumerate() {
        let mut shape = matrix.shape().dims::<2>();
        shape[dim] = sizes[dim];
        let mut whole = B::float_zeros(Shape::new(shape), &device, dtype.into());
        let mut at = 0;
        for &(start, end) in runs {
            let slice = |run: std::ops::Range<usize>| {
                let mut slices = [Slice::full(), Slice::full()];
                slices[dim] = Slice::from(run);
                slices
            };
            let part = B::float_slice(matrix.clone(), &slice(at..at + end - start));
            let old = B::float_slice(whole.clone(), &slice(start..end));
            whole = B::float_slice_assign(whole, &slice(start..end), B::float_add(old, part));
            at += end - start;
        }
        matrix = whole;
    }
    B::float_reshape(matrix, Shape::new([sizes[0] * sizes[1]]))
}

/// [`Kernels::cut`] with its gradient, for any backend that has both.
pub(crate) fn tracked<B: Backend + Kernels, C: CheckpointStrategy>(
    form: Cut,
    whole: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct CutOut;

    impl<B: Backend + Kernels> Backward<B, 1> for CutOut {
        type State = Cut;

        fn backward(self, ops: Ops<Cut, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
            unary::<B, _>(ops.parents, ops.node, gradients, |gradient| {
                B::cut_backward(ops.state, gradient)
            });
        }
    }

    let (whole, node) = whole.into_parts();
    match CutOut.prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(form.clone(), B::cut(form, whole)),
        OpsKind::UnTracked(prepared) => prepared.finish(B::cut(form, whole)),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::cut;

    fn form(rows: &[(usize, usize)], columns: &[(usize, usize)]) -> Cut {
        Cut {
            size: (5, 4),
            rows: rows.to_vec(),
            columns: columns.to_vec(),
            gain: 1.5,
        }
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    /// By index arithmetic, with runs out of order and kept twice; gradients of sums are counts times the gain.
    #[test]
    fn slices_and_gradients_are_those_of_the_indices() {
        for form in [
            form(&[(0, 5)], &[(0, 4)]),
            form(&[(3, 5), (0, 2)], &[(1, 3)]),
            form(&[(1, 3), (2, 4)], &[(0, 1), (3, 4), (0, 2)]),
            form(&[], &[(0, 2)]),
        ] {
            let whole: Vec<f32> = (0..20).map(|i| i as f32).collect();
            let rows: Vec<usize> = form.rows.iter().flat_map(|&(a, b)| a..b).collect();
            let columns: Vec<usize> = form.columns.iter().flat_map(|&(a, b)| a..b).collect();
            let at: Vec<usize> = rows
                .iter()
                .flat_map(|r| columns.iter().map(move |c| r * 4 + c))
                .collect();
            let expected: Vec<f32> = at.iter().map(|&i| 1.5 * whole[i]).collect();
            let leaf = Tensor::<1>::from_data(&whole[..], &Device::flex())
                .autodiff()
                .require_grad();
            let part = cut(form.clone(), leaf.clone());
            assert_eq!(values(part.clone().inner()), expected);
            let weights: Vec<f32> = (0..at.len()).map(|i| i as f32 - 3.0).collect();
            let mut gradient = vec![0.0; 20];
            at.iter().zip(&weights).for_each(|(&i, w)| gradient[i] += 1.5 * w);
            if at.is_empty() {
                continue;
            }
            let weights = Tensor::<1>::from_data(&weights[..], &Device::flex());
            let mut gradients = (part * weights.clone().autodiff()).sum().backward();
            assert_eq!(values(leaf.grad_remove(&mut gradients).unwrap()), gradient);
            let inner = Tensor::<1>::from_data(&whole[..], &Device::flex());
            let flex = |x: Tensor<1>| tensor(values(x.clone()), [x.dims()[0]]);
            assert_eq!(super::values(&plain::<Flex>(form.clone(), flex(inner))), expected);
            assert_eq!(super::values(&plain_backward::<Flex>(form, flex(weights))), gradient);
        }
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_run_outside_is_refused() {
        cut(form(&[(0, 6)], &[(0, 4)]), Tensor::zeros([20], &Device::flex()));
    }
}
