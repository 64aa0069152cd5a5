//! Slices of a weight as a weight of their own: copied once, and nothing but the slice.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::{Shape, Slice};

use crate::operation::Kernel;
use crate::slices::{only, tensor, values};
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

impl Cut {
    /// # Panics
    /// If there are not as many elements as are kept.
    pub(crate) fn check_gradient(&self, elements: usize) {
        let (rows, columns) = self.kept();
        assert_eq!(rows * columns, elements, "elements of the gradient of a cut");
    }
}

impl Kernel for Cut {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        let whole = values(&tensors[0]);
        self.check(whole.len());
        let (kept_rows, kept_columns) = self.kept();
        let kept: Vec<usize> = self.rows.iter().flat_map(|&(start, end)| start..end).collect();
        let piece = rows_of(kept_columns);
        let part = build(kept_rows * kept_columns, piece * kept_columns, |i, blank| {
            let part = zeroed(blank);
            for (row, out) in kept[i * piece..].iter().zip(part.chunks_exact_mut(kept_columns)) {
                let row = &whole[row * self.size.1..][..self.size.1];
                let mut at = 0;
                for &(start, end) in &self.columns {
                    for (out, value) in out[at..].iter_mut().zip(&row[start..end]) {
                        *out = self.gain * value;
                    }
                    at += end - start;
                }
            }
            part
        });
        tensor(part, [kept_rows * kept_columns])
    }

    fn backward(
        self,
        _: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let gradient = values(&gradient);
        let (rows, columns) = self.size;
        let (_, kept_columns) = self.kept();
        // Where each row of the whole went, in the order of the slices.
        let mut places: Vec<Vec<usize>> = vec![Vec::new(); rows];
        let kept = self.rows.iter().flat_map(|&(start, end)| start..end);
        kept.enumerate().for_each(|(place, row)| places[row].push(place));
        let piece = rows_of(columns);
        let whole = build(rows * columns, piece * columns, |i, blank| {
            let whole = zeroed(blank);
            for (places, out) in places[i * piece..].iter().zip(whole.chunks_exact_mut(columns.max(1))) {
                for place in places {
                    let row = &gradient[place * kept_columns..][..kept_columns];
                    let mut at = 0;
                    for &(start, end) in &self.columns {
                        for (out, value) in out[start..end].iter_mut().zip(&row[at..]) {
                            *out += self.gain * value;
                        }
                        at += end - start;
                    }
                }
            }
            whole
        });
        vec![Some(tensor(whole, [rows * columns]))]
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let (rows, columns) = self.kept();
        let mut matrix = B::float_reshape(only(tensors), Shape::new([self.size.0, self.size.1]));
        for (dim, runs) in [&self.rows, &self.columns].into_iter().enumerate() {
            let run = |&(start, end): &(usize, usize)| {
                let mut slices = [Slice::full(), Slice::full()];
                slices[dim] = Slice::from(start..end);
                B::float_slice(matrix.clone(), &slices)
            };
            matrix = B::float_cat(runs.iter().map(run).collect(), dim);
        }
        let matrix = B::float_mul_scalar(matrix, self.gain.into());
        B::float_reshape(matrix, Shape::new([rows * columns]))
    }

    fn plain_backward<B: Backend>(
        self,
        _: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let (rows, columns) = self.kept();
        let device = gradient.device();
        let dtype = gradient.dtype();
        let mut matrix = B::float_mul_scalar(
            B::float_reshape(gradient, Shape::new([rows, columns])),
            self.gain.into(),
        );
        let sizes = [self.size.0, self.size.1];
        for (dim, runs) in [&self.rows, &self.columns].into_iter().enumerate() {
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
        vec![Some(B::float_reshape(matrix, Shape::new([sizes[0] * sizes[1]])))]
    }

    /// The gradient needs nothing but the size.
    fn kept(&self, _: usize) -> usize {
        0
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
            assert_eq!(super::values(&form.clone().plain::<Flex>(vec![flex(inner)])), expected);
            let found = form.plain_backward::<Flex>(Vec::new(), flex(weights), &[true]);
            assert_eq!(super::values(&only(found).unwrap()), gradient);
        }
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_run_outside_is_refused() {
        cut(form(&[(0, 6)], &[(0, 4)]), Tensor::zeros([20], &Device::flex()));
    }
}
