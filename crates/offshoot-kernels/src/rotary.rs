//! Rotary positions (Su et al. 2021): pairs of numbers of queries and keys, turned by an angle for each position.
//!
//! As in transformers' Llama, a pair is number `i` of a head and number `i + head_dim / 2`. Both directions work in the memory of
//! what they turn where nothing else holds it, and the gradient, which is turned back, needs nothing of the forward pass.

use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::{Shape, Slice, TensorData};

use crate::operation::Kernel;
use crate::slices::{only, owned};
use crate::vector::{arch, update_rows, vectorised};

/// How the rows of packed queries, keys and values are to be read, as for [`Attention`](crate::Attention), and by which angles
/// they are turned. Values stay as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Sequences and tokens of each, one pair for each run of sequences of equal length.
    pub sequences: Vec<(usize, usize)>,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of one head, an even number.
    pub head_dim: usize,
    /// The position of the first token of each sequence.
    pub first: usize,
    /// The angle between neighbouring positions of each of the `head_dim / 2` pairs, in radians (transformers' `inv_freq`). A
    /// position times it is rounded to fp32, as there.
    pub frequencies: Arc<[f32]>,
}

impl Rotary {
    /// Numbers of a row of queries, keys and values.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// # Panics
    /// If rows of `[rows, width]` or the frequencies do not fit.
    pub(crate) fn check(&self, size: [usize; 2]) {
        let own: usize = self.sequences.iter().map(|(count, tokens)| count * tokens).sum();
        assert_eq!(size, [own, self.width()], "rows of queries, keys and values");
        assert_eq!(
            2 * self.frequencies.len(),
            self.head_dim,
            "numbers of a head, two for each frequency"
        );
    }

    /// Tokens of the longest sequence.
    fn longest(&self) -> usize {
        self.sequences.iter().map(|&(_, tokens)| tokens).max().unwrap_or(0)
    }

    /// Cosines and sines of `[tokens, head_dim / 2]`, the latter with the sign of the direction.
    fn angles(&self, back: bool) -> [Vec<f32>; 2] {
        let sign = if back { -1.0 } else { 1.0 };
        let angles: Vec<f32> = (0..self.longest())
            .flat_map(|token| {
                let position = (self.first + token) as f32;
                self.frequencies.iter().map(move |frequency| position * frequency)
            })
            .collect();
        let cosines = angles.iter().map(|angle| angle.cos()).collect();
        let sines = angles.iter().map(|angle| sign * angle.sin()).collect();
        [cosines, sines]
    }

    /// Turns the rows in place.
    fn turn(&self, rows: FloatTensor<Flex>, back: bool) -> FloatTensor<Flex> {
        let mut rows = owned(rows);
        let (width, half, turned) = (self.width(), self.head_dim / 2, self.heads + self.kv_heads);
        if half == 0 {
            return rows;
        }
        let [cosines, sines] = self.angles(back);
        let runs = self.sequences.iter();
        let tokens: Vec<usize> = runs
            .flat_map(|&(count, tokens)| (0..count).flat_map(move |_| 0..tokens))
            .collect();
        let arch = arch();
        update_rows(rows.storage_mut(), width, |first, rows| {
            vectorised!(arch, {
                for (row, token) in rows.chunks_exact_mut(width).zip(&tokens[first..]) {
                    let cosines = &cosines[token * half..][..half];
                    let sines = &sines[token * half..][..half];
                    for head in row.chunks_exact_mut(2 * half).take(turned) {
                        let (lower, upper) = head.split_at_mut(half);
                        for (((x, y), &cosine), &sine) in lower.iter_mut().zip(upper).zip(cosines).zip(sines) {
                            (*x, *y) = (x.mul_add(cosine, -(*y * sine)), y.mul_add(cosine, *x * sine));
                        }
                    }
                }
            });
        });
        rows
    }

    /// Turns the rows in operations that every backend has.
    fn plain_turn<B: Backend>(&self, rows: FloatTensor<B>, back: bool) -> FloatTensor<B> {
        let half = self.head_dim / 2;
        if rows.shape().num_elements() == 0 {
            return rows;
        }
        let (slots, turned) = (self.heads + 2 * self.kv_heads, self.heads + self.kv_heads);
        let angles = self
            .angles(back)
            .map(|angles| B::float_from_data(TensorData::new(angles, [1, self.longest(), 1, half]), &rows.device()));
        let part = |x: &FloatTensor<B>, dim: usize, range: std::ops::Range<usize>| {
            let mut slices = vec![Slice::full(); x.shape().num_dims()];
            slices[dim] = Slice::from(range);
            B::float_slice(x.clone(), &slices)
        };
        let mut first = 0;
        let one = |&(count, tokens): &(usize, usize)| {
            if count * tokens == 0 {
                return None;
            }
            let own = part(&rows, 0, first..first + count * tokens);
            first += count * tokens;
            let own = B::float_reshape(own, Shape::new([count, tokens, slots, self.head_dim]));
            let (both, values) = (part(&own, 2, 0..turned), part(&own, 2, turned..slots));
            let (lower, upper) = (part(&both, 3, 0..half), part(&both, 3, half..2 * half));
            let [cosines, sines] = angles.each_ref().map(|angles| part(angles, 1, 0..tokens));
            let times = |x: &FloatTensor<B>, angles: &FloatTensor<B>| B::float_mul(x.clone(), angles.clone());
            let x = B::float_sub(times(&lower, &cosines), times(&upper, &sines));
            let y = B::float_add(times(&upper, &cosines), times(&lower, &sines));
            let both = B::float_cat(vec![x, y], 3);
            let all = match self.kv_heads {
                0 => both,
                _ => B::float_cat(vec![both, values], 2),
            };
            Some(B::float_reshape(all, Shape::new([count * tokens, self.width()])))
        };
        B::float_cat(self.sequences.iter().filter_map(one).collect(), 0)
    }
}

impl Kernel for Rotary {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        self.turn(only(tensors), false)
    }

    fn backward(
        self,
        _: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        vec![Some(self.turn(gradient, true))]
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        self.plain_turn::<B>(only(tensors), false)
    }

    fn plain_backward<B: Backend>(
        self,
        _: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        vec![Some(self.plain_turn::<B>(gradient, true))]
    }

    /// The gradient needs nothing.
    fn kept(&self, _: usize) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::{tensor, values};
    use crate::tests::{Way, gradients, result};

    fn form(sequences: Vec<(usize, usize)>, first: usize) -> Rotary {
        let (heads, kv_heads, head_dim) = (3, 2, 34);
        // Llama's, as transformers has them: 1 / base^(2 i / head_dim).
        let frequency = |i: usize| 1.0 / 10_000f32.powf((2 * i) as f32 / head_dim as f32);
        Rotary {
            sequences,
            heads,
            kv_heads,
            head_dim,
            first,
            frequencies: (0..head_dim / 2).map(frequency).collect(),
        }
    }

    fn rows(form: &Rotary) -> FloatTensor<Flex> {
        let n: usize = form.sequences.iter().map(|(count, tokens)| count * tokens).sum();
        let x = (0..n * form.width()).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0);
        tensor(x.collect(), [n, form.width()])
    }

    #[test]
    fn a_cache_goes_on_where_the_sequence_stopped() {
        let whole = form(vec![(1, 9)], 5);
        let x = rows(&whole);
        let all = result(Way::Ours, whole.clone(), vec![x.clone()]);
        let later = form(vec![(1, 4)], 10);
        let part = x.narrow(0, 5, 4);
        for way in [Way::Ours, Way::Plain] {
            let part = crate::slices::contiguous(result(way, later.clone(), vec![part.clone()]));
            let same = values(&all)[5 * whole.width()..]
                .iter()
                .zip(values(&part))
                .all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(same, "{way:?}");
        }
    }

    #[test]
    fn turned_there_and_back_the_rows_are_those_of_before() {
        let form = form(vec![(2, 5), (3, 0), (1, 7)], 1000);
        let x = rows(&form);
        for way in [Way::Ours, Way::Plain] {
            let there = result(way, form.clone(), vec![x.clone()]);
            let back = gradients(way, form.clone(), vec![x.clone()], there).remove(0);
            let back = crate::slices::contiguous(back);
            for (a, b) in values(&back).iter().zip(values(&x)) {
                assert!((a - b).abs() < 1e-6, "{a} against {b}");
            }
        }
    }

    #[test]
    fn both_directions_take_the_memory_that_nothing_else_holds() {
        let form = form(vec![(2, 5)], 0);
        let mut x = owned(rows(&form));
        let place = x.storage_mut::<f32>().as_ptr();
        let there = result(Way::Ours, form.clone(), vec![x]);
        assert_eq!(values(&there).as_ptr(), place);
        let back = gradients(Way::Ours, form, vec![tensor(Vec::new(), [0])], there).remove(0);
        assert_eq!(values(&back).as_ptr(), place);
    }

    #[test]
    #[should_panic(expected = "numbers of a head, two for each frequency")]
    fn frequencies_for_heads_of_another_size_are_refused() {
        let mut form = form(vec![(1, 1)], 0);
        form.frequencies = vec![1.0; 5].into();
        form.check([1, form.width()]);
    }
}
