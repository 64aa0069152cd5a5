//! Scaled dot-product attention of many sequences, forward and backward, from and to the packed rows of its projections.
//!
//! Nothing of the size of tokens times tokens outlives a block of queries: the gradient finds the probabilities again from
//! queries and keys (FlashAttention's recomputation, Dao et al. 2022, section 3.1, without its tiles: a row of scores fits the
//! cache).

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::{Shape, Slice};
use pulp::Arch;

mod backward;
pub(crate) mod cache;
mod tile;

use self::backward::Target;
use self::tile::{Part, Rows, multiply, padded, turn};
use crate::gemm::note;
use crate::operation::Kernel;
use crate::slices::{tensor, values};
use crate::vector::{
    LANES, add_up, arch, build_bundles, build_pieces, exp_negative, largest, sum_of, vectorised, with_scratch, zeroed,
};

/// How the rows of packed queries, keys and values are to be read.
///
/// A row holds `heads` queries, then `kv_heads` keys, then `kv_heads` values, of `head_dim` numbers each. The rows of a sequence
/// follow each other, as do sequences. The first tensor is those rows; the second, where there is one, is a bias of
/// `[groups, heads, tokens, tokens]` that is added to the scores before softmax, that of sequence `i` at `i % groups`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Sequences and tokens of each, one pair for each run of sequences of equal length; one pair only if there is a bias.
    pub sequences: Vec<(usize, usize)>,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` heads of queries.
    pub kv_heads: usize,
    /// Numbers of one head.
    pub head_dim: usize,
    /// Whether a token sees only those before it, and itself.
    pub causal: bool,
}

impl Attention {
    /// Numbers of a row of queries, keys and values.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Numbers of a row of the result.
    fn out_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Places of the queries, keys and values of one head in a row.
    fn head(&self, head: usize) -> [usize; 3] {
        let kv = head * self.kv_heads / self.heads;
        let [q, k, v] = [head, self.heads + kv, self.heads + self.kv_heads + kv];
        [q, k, v].map(|slot| slot * self.head_dim)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// First row, tokens and number of every sequence.
    fn each(&self) -> Vec<Sequence> {
        let mut all = Vec::new();
        let mut first = 0;
        for &(count, tokens) in &self.sequences {
            for _ in 0..count {
                all.push(Sequence {
                    first,
                    tokens,
                    number: all.len(),
                });
                first += tokens;
            }
        }
        all
    }

    /// Counts the products of the forward pass, or of the backward pass with the scores found again; of causal ones the half that
    /// is seen.
    fn note(&self, backward: bool) {
        for &(count, t) in &self.sequences {
            let (batch, d) = (count * self.heads, self.head_dim);
            let seen = if self.causal { t.div_ceil(2) } else { t };
            note((t, d, seen), (false, true), batch);
            if backward {
                note((t, d, seen), (false, true), batch);
                note((t, seen, d), (true, false), batch);
                note((t, seen, d), (true, false), batch);
            }
            note((t, seen, d), (false, false), batch);
        }
    }

    /// # Panics
    /// If the tensors do not fit.
    fn check(&self, rows: &Shape, bias: Option<&Shape>) {
        let own: usize = self.sequences.iter().map(|(count, tokens)| count * tokens).sum();
        assert_eq!(
            rows.dims::<2>(),
            [own, self.width()],
            "rows of queries, keys and values"
        );
        assert!(
            self.heads.is_multiple_of(self.kv_heads),
            "heads that share keys and values"
        );
        if let Some(bias) = bias {
            assert_eq!(self.sequences.len(), 1, "a bias is for sequences of one length");
            let [groups, heads, queries, keys] = bias.dims();
            let whole = groups > 0 && self.sequences[0].0.is_multiple_of(groups);
            assert!(whole, "sequences are no multiple of the bias's {groups} groups");
            assert_eq!(
                [heads, queries, keys],
                [self.heads, self.sequences[0].1, self.sequences[0].1]
            );
        }
    }
}

#[derive(Clone, Copy)]
struct Sequence {
    first: usize,
    tokens: usize,
    number: usize,
}

impl Sequence {
    /// Queries of one block of work: about equally many in each, and whole tiles.
    fn block(self) -> usize {
        let blocks = self.tokens.div_ceil(QUERIES).max(1);
        self.tokens.div_ceil(blocks).max(1).next_multiple_of(4)
    }
}

/// Shares of the sequences that the gradient of a bias is summed over, if there is one group.
const SHARES: usize = 16;

/// Queries of one block of work.
const QUERIES: usize = 96;

/// What the scores of one block of queries depend on besides queries and keys.
#[derive(Clone, Copy)]
struct Scene<'a> {
    /// The place of the block's first query among the keys.
    first: usize,
    /// Keys that there are.
    keys: usize,
    causal: bool,
    /// `[queries, keys]` of this head, from the sequence's first query on.
    bias: Option<&'a [f32]>,
}

impl Scene<'_> {
    /// Keys that query `r` of the block sees.
    #[inline(always)]
    fn seen(self, r: usize) -> usize {
        if self.causal {
            (self.first + r + 1).min(self.keys)
        } else {
            self.keys
        }
    }

    /// The same, as parts of the products.
    fn part(self, of: impl Fn(usize) -> Part) -> Part {
        if self.causal { of(self.first) } else { Part::Whole }
    }

    /// Turns the scores that are seen, in rows that are `stride` apart, into exponentials of what they are above their maximum, and
    /// gives the sums' reciprocals to `then` with each row.
    #[inline(always)]
    fn soften(self, scores: &mut [f32], stride: usize, mut then: impl FnMut(usize, &mut [f32], f32)) {
        for (r, row) in scores.chunks_exact_mut(stride).enumerate() {
            let row = &mut row[..self.seen(r)];
            if let Some(bias) = self.bias {
                let bias = &bias[(self.first + r) * self.keys..][..row.len()];
                for (score, bias) in row.iter_mut().zip(bias) {
                    *score += bias;
                }
            }
            let most = largest(row);
            for score in row.iter_mut() {
                *score = exp_negative(*score - most);
            }
            let sum = sum_of(
                row,
                #[inline(always)]
                |x| x,
            );
            then(r, row, 1.0 / sum);
        }
    }

    /// Writes the attention of a block of `count` queries of `dim` numbers to rows of `out`: `keys` are turned and scaled, and their
    /// rows hold whole vectors. `scores` has room for the queries' rows of [`padded`] keys.
    fn attend(
        self,
        arch: Arch,
        (queries, keys, values): (Rows<'_>, Rows<'_>, Rows<'_>),
        (count, dim): (usize, usize),
        scores: &mut [f32],
        (out, out_stride): (&mut [f32], usize),
    ) {
        let seen = self.seen(count - 1);
        let stride = padded(seen);
        let scores = &mut scores[..count * stride];
        let size = (count, dim, seen.next_multiple_of(LANES));
        let part = self.part(|first| Part::Scores { first });
        let queries = (queries.values, (queries.stride, 1));
        multiply(arch, (scores, stride, false), queries, keys, size, part);
        vectorised!(
            arch,
            self.soften(
                scores,
                stride,
                #[inline(always)]
                |_, row, factor| row.iter_mut().for_each(|p| *p *= factor),
            )
        );
        let part = self.part(|first| Part::ByQuery { first });
        let scores = (&*scores, (stride, 1));
        multiply(arch, (out, out_stride, false), scores, values, (count, seen, dim), part);
    }
}

fn scene<'a>(form: &Attention, bias: Option<&'a [f32]>, sequence: Sequence, head: usize, first: usize) -> Scene<'a> {
    let square = sequence.tokens * sequence.tokens;
    Scene {
        first,
        keys: sequence.tokens,
        causal: form.causal,
        bias: bias.map(|bias| {
            let groups = bias.len() / (form.heads * square).max(1);
            &bias[(sequence.number % groups * form.heads + head) * square..][..square]
        }),
    }
}

impl Attention {
    /// Keys of each sequence and head of keys turned and scaled, `[head_dim, padded(tokens)]`, where several blocks of queries need
    /// them; and where those of each sequence begin.
    fn turned_keys(&self, rows: &[f32], sequences: &[Sequence]) -> (Vec<f32>, Vec<usize>) {
        let (width, dim) = (self.width(), self.head_dim);
        let size = |sequence: &Sequence| {
            let several = sequence.block() < sequence.tokens;
            usize::from(several) * dim * padded(sequence.tokens)
        };
        let starts = sequences.iter().scan(0, |next, sequence| {
            let start = *next;
            *next += self.kv_heads * size(sequence);
            Some(start)
        });
        let starts = starts.collect();
        let sizes: Vec<[usize; 1]> = sequences
            .iter()
            .flat_map(|sequence| std::iter::repeat_n([size(sequence)], self.kv_heads))
            .collect();
        if sizes.iter().all(|&[size]| size == 0) {
            return (Vec::new(), starts);
        }
        let arch = arch();
        let [keys] = build_pieces(&sizes, |i, [blank]| {
            let keys = zeroed(blank);
            let sequence = sequences[i / self.kv_heads];
            if !keys.is_empty() {
                let place = (self.heads + i % self.kv_heads) * dim;
                let rows = Rows {
                    values: &rows[sequence.first * width + place..],
                    stride: width,
                };
                let stride = padded(sequence.tokens);
                vectorised!(arch, turn(rows, sequence.tokens, dim, self.scale(), keys, stride));
            }
            [keys]
        });
        (keys, starts)
    }
}

/// Keys or values of `[count, kv_heads, tokens, head_dim]`, repeated for the heads that share them.
fn repeated<B: Backend>(form: &Attention, x: FloatTensor<B>) -> FloatTensor<B> {
    let [count, kv_heads, tokens, dim] = x.shape().dims();
    let each = form.heads / kv_heads;
    let x = B::float_reshape(x, Shape::new([count, kv_heads, 1, tokens, dim]));
    let x = B::float_expand(x, Shape::new([count, kv_heads, each, tokens, dim]));
    B::float_reshape(x, Shape::new([count, form.heads, tokens, dim]))
}

/// Queries, keys and values of one run of sequences as `[count, heads, tokens, head_dim]`, keys and values [`repeated`].
fn unpacked<B: Backend>(form: &Attention, rows: FloatTensor<B>, count: usize, tokens: usize) -> [FloatTensor<B>; 3] {
    let slots = form.heads + 2 * form.kv_heads;
    let rows = B::float_reshape(rows, Shape::new([count, tokens, slots, form.head_dim]));
    let rows = B::float_swap_dims(rows, 1, 2);
    let part = |first: usize, heads: usize| slice::<B>(rows.clone(), 1, first, heads);
    let [k, v] = [form.heads, form.heads + form.kv_heads].map(|first| repeated::<B>(form, part(first, form.kv_heads)));
    [part(0, form.heads), k, v]
}

/// `count` entries from `first` along `dim`.
fn slice<B: Backend>(x: FloatTensor<B>, dim: usize, first: usize, count: usize) -> FloatTensor<B> {
    let mut slices = vec![Slice::full(); x.shape().num_dims()];
    slices[dim] = Slice::from(first..first + count);
    B::float_slice(x, &slices)
}

/// Softmax of the scores of `[count, heads, tokens, head_dim]` queries and keys, of which there may be more: causal queries are those
/// of the last tokens.
fn probabilities<B: Backend>(
    form: &Attention,
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let [count, heads, tokens, _] = q.shape().dims();
    let keys = k.shape()[2];
    let device = q.device();
    let mut scores = B::float_mul_scalar(B::float_matmul(q, B::float_swap_dims(k, 2, 3)), form.scale().into());
    if let Some(bias) = bias {
        let groups = bias.shape().dims::<4>()[0];
        let grouped = Shape::new([count / groups, groups, heads, tokens, tokens]);
        let bias = B::float_reshape(bias, Shape::new([1, groups, heads, tokens, tokens]));
        scores = B::float_add(B::float_reshape(scores, grouped), bias);
        scores = B::float_reshape(scores, Shape::new([count, heads, tokens, tokens]));
    }
    if form.causal {
        let hidden: Vec<f32> = (0..tokens * keys)
            .map(|i| {
                if i % keys > keys - tokens + i / keys {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            })
            .collect();
        let hidden = burn::tensor::TensorData::new(hidden, [1, 1, tokens, keys]);
        scores = B::float_add(scores, B::float_from_data(hidden, &device));
    }
    B::softmax(scores, 3)
}

/// Rows of a run of sequences, their number, and tokens of each.
type RowsOf<B> = (FloatTensor<B>, usize, usize);

/// Each run of sequences of equal length: its rows in `x`, their number, sequences and tokens.
fn runs<B: Backend>(form: &Attention, x: &FloatTensor<B>) -> Vec<RowsOf<B>> {
    let mut first = 0;
    let run = |&(count, tokens): &(usize, usize)| {
        let rows = slice::<B>(x.clone(), 0, first, count * tokens);
        first += count * tokens;
        (rows, count, tokens)
    };
    form.sequences.iter().map(run).collect()
}

impl Kernel for Attention {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        self.check(&tensors[0].shape(), tensors.get(1).map(|bias| bias.shape()).as_ref());
        self.note(false);
        let (rows, bias) = (values(&tensors[0]), tensors.get(1).map(values));
        let (width, out_width, dim) = (self.width(), self.out_width(), self.head_dim);
        let arch = arch();
        let sequences = self.each();
        let (turned, starts) = self.turned_keys(rows, &sequences);
        let blocks: Vec<(Sequence, usize, usize)> = sequences
            .iter()
            .flat_map(|&sequence| {
                let (tokens, size) = (sequence.tokens, sequence.block());
                (0..tokens)
                    .step_by(size)
                    .map(move |first| (sequence, first, size.min(tokens - first)))
            })
            .collect();
        let sizes: Vec<[usize; 1]> = blocks.iter().map(|block| [block.2 * out_width]).collect();
        let [out] = build_pieces(&sizes, |b, [blank]| {
            let (sequence, first, count) = blocks[b];
            let out = zeroed(blank);
            let tokens = sequence.tokens;
            let rows = &rows[sequence.first * width..][..tokens * width];
            let part = |at: usize| Rows {
                values: &rows[at..],
                stride: width,
            };
            let own = if count < tokens { 0 } else { dim * padded(tokens) };
            with_scratch(own + count * padded(tokens), |scratch| {
                let (own, scores) = scratch.split_at_mut(own);
                for head in 0..self.heads {
                    let [q, k, v] = self.head(head);
                    let stride = padded(tokens);
                    let kv = head * self.kv_heads / self.heads;
                    let keys = if count < tokens {
                        &turned[starts[sequence.number] + kv * dim * stride..][..dim * stride]
                    } else {
                        if head.is_multiple_of(self.heads / self.kv_heads) {
                            vectorised!(arch, turn(part(k), tokens, dim, self.scale(), own, stride));
                        }
                        &*own
                    };
                    let three = (part(first * width + q), Rows { values: keys, stride }, part(v));
                    let out = (&mut out[head * dim..], out_width);
                    scene(&self, bias, sequence, head, first).attend(arch, three, (count, dim), scores, out);
                }
            });
            [out]
        });
        let rows = out.len() / out_width.max(1);
        tensor(out, [rows, out_width])
    }

    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        self.note(true);
        let (rows, bias, d_out) = (values(&tensors[0]), tensors.get(1).map(values), values(&gradient));
        let (width, out_width) = (self.width(), self.out_width());
        let arch = arch();
        let sequences = self.each();
        if bias.is_none() && self.by_heads(&sequences) {
            let d_rows = self.back_by_heads(&sequences, rows, d_out);
            return vec![Some(tensor(d_rows, tensors[0].shape()))];
        }
        let bias_size = bias.map_or(0, <[f32]>::len);
        // The gradient of a bias is summed over the sequences of its group: in the order of their shares, of which there are only
        // a few where there are few groups.
        let square = sequences
            .first()
            .map_or(0, |sequence| self.heads * sequence.tokens.pow(2));
        let groups = if bias_size > 0 {
            bias_size / square.max(1)
        } else {
            sequences.len()
        };
        let each = sequences.len() / groups.max(1);
        let share = each.div_ceil(SHARES.div_ceil(groups.max(1))).max(1);
        let shares = each.div_ceil(share);
        let sizes: Vec<[usize; 2]> = sequences
            .iter()
            .map(|sequence| {
                let first = bias_size > 0 && (sequence.number / groups).is_multiple_of(share);
                [sequence.tokens * width, usize::from(first) * square]
            })
            .collect();
        let bundle_of = |i: usize| i / groups / share * groups + i % groups;
        let [d_rows, d_biases] = build_bundles(&sizes, shares * groups, bundle_of, |bundle, pieces| {
            let mut numbers = (bundle / groups * share..).map(|i| i * groups + bundle % groups);
            let mut pieces: Vec<_> = pieces.into_iter().map(|piece| piece.map(zeroed)).collect();
            let d_bias = pieces
                .first_mut()
                .map(|[_, d_bias]| std::mem::take(d_bias))
                .unwrap_or_default();
            for (number, [d_rows, _]) in numbers.by_ref().zip(&mut pieces) {
                let sequence = sequences[number];
                let tokens = sequence.tokens;
                let rows = &rows[sequence.first * width..][..tokens * width];
                let d_out = &d_out[sequence.first * out_width..][..tokens * out_width];
                let mut target = Target::Rows(d_rows);
                for kv in 0..self.kv_heads {
                    self.back(arch, (sequence, kv), (rows, bias, d_out), d_bias, &mut target);
                }
            }
            if let Some([_, first]) = pieces.first_mut() {
                *first = d_bias;
            }
            pieces
        });
        let d_bias = bias.map(|_| tensor(add_up(&d_biases, bias_size), tensors[1].shape()));
        vec![Some(tensor(d_rows, tensors[0].shape())), d_bias]
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let bias = tensors.get(1);
        let one = |(rows, count, tokens)| {
            let [q, k, v] = unpacked::<B>(&self, rows, count, tokens);
            let mixed = B::float_matmul(probabilities::<B>(&self, q, k, bias.cloned()), v);
            B::float_reshape(
                B::float_swap_dims(mixed, 1, 2),
                Shape::new([count * tokens, self.out_width()]),
            )
        };
        B::float_cat(runs::<B>(&self, &tensors[0]).into_iter().map(one).collect(), 0)
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        _: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let bias = tensors.get(1);
        let (heads, dim) = (self.heads, self.head_dim);
        let mut d_bias = None;
        let runs_of_rows = runs::<B>(&self, &tensors[0])
            .into_iter()
            .zip(runs::<B>(&self, &gradient));
        let one = |((rows, count, tokens), (d_out, ..)): (RowsOf<B>, RowsOf<B>)| {
            let [q, k, v] = unpacked::<B>(&self, rows, count, tokens);
            let d_out = B::float_reshape(d_out, Shape::new([count, tokens, heads, dim]));
            let d_out = B::float_swap_dims(d_out, 1, 2);
            let p = probabilities::<B>(&self, q.clone(), k.clone(), bias.cloned());
            let d_v = B::float_matmul(B::float_swap_dims(p.clone(), 2, 3), d_out.clone());
            let d_p = B::float_matmul(d_out, B::float_swap_dims(v, 2, 3));
            let common = B::float_sum_dim(B::float_mul(p.clone(), d_p.clone()), 3);
            let d_s = B::float_mul(p, B::float_sub(d_p, common));
            if let Some(bias) = bias {
                let [groups, ..] = bias.shape().dims::<4>();
                let grouped = Shape::new([count / groups, groups * heads * tokens * tokens]);
                let sum = B::float_sum_dim(B::float_reshape(d_s.clone(), grouped), 0);
                d_bias = Some(B::float_reshape(sum, bias.shape()));
            }
            let d_s = B::float_mul_scalar(d_s, self.scale().into());
            let d_q = B::float_matmul(d_s.clone(), k);
            let d_k = B::float_matmul(B::float_swap_dims(d_s, 2, 3), q);
            let gathered = |x: FloatTensor<B>| {
                let each = self.heads / self.kv_heads;
                let x = B::float_reshape(x, Shape::new([count, self.kv_heads, each, tokens, dim]));
                B::float_reshape(B::float_sum_dim(x, 2), Shape::new([count, self.kv_heads, tokens, dim]))
            };
            let all = B::float_cat(vec![d_q, gathered(d_k), gathered(d_v)], 1);
            B::float_reshape(
                B::float_swap_dims(all, 1, 2),
                Shape::new([count * tokens, self.width()]),
            )
        };
        let d_rows = B::float_cat(runs_of_rows.map(one).collect(), 0);
        vec![Some(d_rows), d_bias]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::contiguous;
    use crate::tests::{Way, gradients, result};

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        let one = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
        (0..n).map(one).collect()
    }

    /// Two sequences of which one is split by heads of keys in the gradient, and 20 of which none is.
    #[test]
    fn what_a_token_does_not_see_does_not_reach_it_whatever_it_holds() {
        for (count, tokens) in [(2, 131), (20, 29)] {
            let form = Attention {
                sequences: vec![(count, tokens)],
                heads: 4,
                kv_heads: 2,
                head_dim: 21,
                causal: true,
            };
            let (rows, width, out_width) = (count * tokens, form.width(), form.out_width());
            let (x, d) = (numbers(rows * width, 1), numbers(rows * out_width, 2));
            let run = |x: &[f32], d: &[f32]| {
                let packed = tensor(x.to_vec(), [rows, width]);
                let y = result(Way::Ours, form.clone(), vec![packed.clone()]);
                let d = tensor(d.to_vec(), [rows, out_width]);
                let dx = gradients(Way::Ours, form.clone(), vec![packed], d).remove(0);
                [y, dx].map(|t| values(&contiguous(t)).to_vec())
            };
            let expected = run(&x, &d);
            let token = |element: usize, width: usize| element / width % tokens;
            let same = |found: &[f32], expected: &[f32], asked: &dyn Fn(usize) -> bool| {
                let all = found.iter().zip(expected).enumerate();
                all.filter(|(e, _)| asked(*e))
                    .all(|(_, (a, b))| a.to_bits() == b.to_bits())
            };
            for special in [f32::NAN, f32::INFINITY] {
                for t in [1, 2, 3, 4, 15, 16, 17, 28] {
                    // Everything from token t on.
                    let after = |x: &[f32], width: usize| -> Vec<f32> {
                        let all = x.iter().enumerate();
                        all.map(|(e, &x)| if token(e, width) >= t { special } else { x })
                            .collect()
                    };
                    let found = run(&after(&x, width), &after(&d, out_width));
                    assert!(same(&found[0], &expected[0], &|e| token(e, out_width) < t));
                    // Of the gradient that of the queries: keys and values get theirs from later tokens.
                    let query = |e: usize| e % width < out_width && token(e, width) < t;
                    assert!(same(&found[1], &expected[1], &query));

                    // Queries before token t, and the gradients of their results.
                    let queries = x.iter().enumerate().map(|(e, &x)| if query(e) { special } else { x });
                    let results = d.iter().enumerate();
                    let results = results.map(|(e, &d)| if token(e, out_width) < t { special } else { d });
                    let found = run(&queries.collect::<Vec<_>>(), &results.collect::<Vec<_>>());
                    assert!(same(&found[1], &expected[1], &|e| token(e, width) >= t));
                }
            }
        }
    }
}
