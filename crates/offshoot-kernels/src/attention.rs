//! Scaled dot-product attention of many sequences, forward and backward, from and to the packed rows of its projections.
//!
//! Nothing of the size of tokens times tokens outlives a block of queries: the gradient finds the probabilities again from
//! queries and keys (FlashAttention's recomputation, Dao et al. 2022, section 3.1, without its tiles: a row of scores fits the
//! cache).

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::{Shape, Slice};
use pulp::{Arch, Simd, WithSimd};

use crate::gemm::note;
use crate::operation::Kernel;
use crate::slices::{tensor, values};
use crate::vector::{
    LANES, add_up, arch, build_bundles, build_pieces, dot, exp_negative, largest, sum_of, vectorised, with_scratch,
    zeroed,
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

    /// Counts the products of the forward pass, or of the backward pass with the scores found again.
    fn note(&self, backward: bool) {
        for &(count, t) in &self.sequences {
            let (batch, d) = (count * self.heads, self.head_dim);
            note((t, d, t), (false, true), batch);
            if backward {
                note((t, d, t), (false, true), batch);
                note((t, t, d), (true, false), batch);
                note((t, t, d), (true, false), batch);
            }
            note((t, t, d), (false, false), batch);
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

/// Shares of the sequences that the gradient of a bias is summed over, if there is one group.
const SHARES: usize = 16;

/// Queries of one block of work.
const QUERIES: usize = 96;

/// The next multiple of the vector width.
fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// Rows with a distance between them.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
}

/// `c += a b` for `size.0` rows and `size.2` columns of `c`, which are `c_stride` apart, where the element `(i, x)` of `a` is
/// `a[i * strides.0 + x * strides.1]`. Each element is summed in the order of `x`, whatever the vectors.
struct Multiply<'a> {
    c: &'a mut [f32],
    c_stride: usize,
    a: &'a [f32],
    strides: (usize, usize),
    b: Rows<'a>,
    /// Rows, inner size, columns.
    size: (usize, usize, usize),
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (rows, inner, columns) = self.size;
        if inner == 0 {
            return;
        }
        let mut i = 0;
        while i < rows {
            let a = &self.a[i * self.strides.0..];
            let c = &mut self.c[i * self.c_stride..];
            let tiles = Tiles {
                simd,
                a,
                strides: self.strides,
                b: self.b,
                inner,
            };
            match rows - i {
                1 => i += tiles.strip::<1>(c, self.c_stride, columns),
                2 | 3 => i += tiles.strip::<2>(c, self.c_stride, columns),
                _ => i += tiles.strip::<4>(c, self.c_stride, columns),
            }
        }
    }
}

/// The rows of [`Multiply`] from some row on.
#[derive(Clone, Copy)]
struct Tiles<'a, S> {
    simd: S,
    a: &'a [f32],
    strides: (usize, usize),
    b: Rows<'a>,
    inner: usize,
}

impl<S: Simd> Tiles<'_, S> {
    /// `R` rows, two vectors of columns at a time; gives `R`.
    #[inline(always)]
    fn strip<const R: usize>(self, c: &mut [f32], c_stride: usize, columns: usize) -> usize {
        let lanes = S::F32_LANES;
        let mut j = 0;
        while j + 2 * lanes <= columns {
            self.tile::<R, 2>(&mut c[j..], c_stride, j);
            j += 2 * lanes;
        }
        while j + lanes <= columns {
            self.tile::<R, 1>(&mut c[j..], c_stride, j);
            j += lanes;
        }
        // What is left of a head whose size is no multiple of the vector.
        for j in j..columns {
            for r in 0..R {
                let mut sum = 0.0;
                for x in 0..self.inner {
                    let factor = self.a[r * self.strides.0 + x * self.strides.1];
                    sum = factor.mul_add(self.b.values[x * self.b.stride + j], sum);
                }
                c[r * c_stride + j] += sum;
            }
        }
        R
    }

    /// `R` rows of `V` vectors from column `j`, summed in registers.
    #[inline(always)]
    fn tile<const R: usize, const V: usize>(self, c: &mut [f32], c_stride: usize, j: usize) {
        let (simd, lanes) = (self.simd, S::F32_LANES);
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for x in 0..self.inner {
            let row = S::as_simd_f32s(&self.b.values[x * self.b.stride + j..][..V * lanes]).0;
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = simd.splat_f32s(self.a[r * self.strides.0 + x * self.strides.1]);
                for (sum, column) in sums.iter_mut().zip(row) {
                    *sum = simd.mul_add_f32s(factor, *column, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let c = S::as_mut_simd_f32s(&mut c[r * c_stride..][..V * lanes]).0;
            for (c, sum) in c.iter_mut().zip(sums) {
                *c = simd.add_f32s(*c, *sum);
            }
        }
    }
}

/// Runs [`Multiply`] for the CPU at hand.
fn multiply(
    arch: Arch,
    (c, c_stride): (&mut [f32], usize),
    (a, strides): (&[f32], (usize, usize)),
    b: Rows<'_>,
    size: (usize, usize, usize),
) {
    arch.dispatch(Multiply {
        c,
        c_stride,
        a,
        strides,
        b,
        size,
    });
}

/// `out[x][i] = factor * rows[i][x]`, its rows `stride` apart and filled up with zeros.
#[inline(always)]
fn turn(rows: Rows<'_>, count: usize, size: usize, factor: f32, out: &mut [f32], stride: usize) {
    for x in 0..size {
        out[x * stride + count..(x + 1) * stride].fill(0.0);
    }
    for i in 0..count {
        let row = &rows.values[i * rows.stride..][..size];
        for (value, out) in row.iter().zip(out[i..].iter_mut().step_by(stride)) {
            *out = factor * value;
        }
    }
}

/// What the scores of one block of queries depend on besides queries and keys.
#[derive(Clone, Copy)]
struct Scene<'a> {
    /// The number of the block's first query in its sequence.
    first: usize,
    tokens: usize,
    causal: bool,
    /// `[tokens, tokens]` of this head.
    bias: Option<&'a [f32]>,
}

impl Scene<'_> {
    /// Turns rows of scores, `stride` apart, into exponentials of what they are above their maximum, and gives the sums' reciprocals
    /// to `then` with each row.
    #[inline(always)]
    fn soften(self, scores: &mut [f32], stride: usize, mut then: impl FnMut(usize, &mut [f32], f32)) {
        for (r, row) in scores.chunks_exact_mut(stride).enumerate() {
            let seen = if self.causal { self.first + r + 1 } else { self.tokens };
            let (row_seen, hidden) = row.split_at_mut(seen);
            hidden.fill(0.0);
            if let Some(bias) = self.bias {
                let bias = &bias[(self.first + r) * self.tokens..][..seen];
                for (score, bias) in row_seen.iter_mut().zip(bias) {
                    *score += bias;
                }
            }
            let most = largest(row_seen);
            for score in row_seen.iter_mut() {
                *score = exp_negative(*score - most);
            }
            let sum = sum_of(
                row_seen,
                #[inline(always)]
                |x| x,
            );
            then(r, row, 1.0 / sum);
        }
    }
}

#[inline(always)]
fn scene<'a>(form: &Attention, bias: Option<&'a [f32]>, sequence: Sequence, head: usize, first: usize) -> Scene<'a> {
    let square = sequence.tokens * sequence.tokens;
    Scene {
        first,
        tokens: sequence.tokens,
        causal: form.causal,
        bias: bias.map(|bias| {
            let groups = bias.len() / (form.heads * square).max(1);
            &bias[(sequence.number % groups * form.heads + head) * square..][..square]
        }),
    }
}

/// Queries, keys and values of one run of sequences as `[count, heads, tokens, head_dim]`, keys and values repeated for the
/// heads that share them.
fn unpacked<B: Backend>(form: &Attention, rows: FloatTensor<B>, count: usize, tokens: usize) -> [FloatTensor<B>; 3] {
    let dim = form.head_dim;
    let rows = B::float_reshape(rows, Shape::new([count, tokens, form.heads + 2 * form.kv_heads, dim]));
    let rows = B::float_swap_dims(rows, 1, 2);
    let part = |first: usize, heads: usize| slice::<B>(rows.clone(), 1, first, heads);
    let shared = |x: FloatTensor<B>| {
        let each = form.heads / form.kv_heads;
        let x = B::float_reshape(x, Shape::new([count, form.kv_heads, 1, tokens, dim]));
        let x = B::float_expand(x, Shape::new([count, form.kv_heads, each, tokens, dim]));
        B::float_reshape(x, Shape::new([count, form.heads, tokens, dim]))
    };
    let (q, k) = (part(0, form.heads), part(form.heads, form.kv_heads));
    [q, shared(k), shared(part(form.heads + form.kv_heads, form.kv_heads))]
}

/// `count` entries from `first` along `dim`.
fn slice<B: Backend>(x: FloatTensor<B>, dim: usize, first: usize, count: usize) -> FloatTensor<B> {
    let mut slices = vec![Slice::full(); x.shape().num_dims()];
    slices[dim] = Slice::from(first..first + count);
    B::float_slice(x, &slices)
}

/// Softmax of the scores of `[count, heads, tokens, head_dim]` queries and keys.
fn probabilities<B: Backend>(
    form: &Attention,
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let [count, heads, tokens, _] = q.shape().dims();
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
        let hidden: Vec<f32> = (0..tokens * tokens)
            .map(|i| {
                if i % tokens > i / tokens {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            })
            .collect();
        let hidden = burn::tensor::TensorData::new(hidden, [1, 1, tokens, tokens]);
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
        // A sequence's queries in blocks of about equal size.
        let blocks: Vec<(Sequence, usize, usize)> = self
            .each()
            .into_iter()
            .flat_map(|sequence| {
                let size = sequence
                    .tokens
                    .div_ceil(sequence.tokens.div_ceil(QUERIES).max(1))
                    .max(1);
                (0..sequence.tokens.div_ceil(size))
                    .map(move |b| (sequence, b * size, size.min(sequence.tokens - b * size)))
            })
            .collect();
        let sizes: Vec<[usize; 1]> = blocks.iter().map(|block| [block.2 * out_width]).collect();
        let [out] = build_pieces(&sizes, |b, [blank]| {
            let (sequence, first, count) = blocks[b];
            let out = zeroed(blank);
            let (tokens, stride) = (sequence.tokens, padded(sequence.tokens));
            let rows = &rows[sequence.first * width..][..tokens * width];
            with_scratch((dim + count) * stride, |scratch| {
                let (keys, scores) = scratch.split_at_mut(dim * stride);
                for head in 0..self.heads {
                    let [q, k, v] = self.head(head);
                    let part = |at: usize| Rows {
                        values: &rows[at..],
                        stride: width,
                    };
                    vectorised!(arch, turn(part(k), tokens, dim, self.scale(), keys, stride));
                    let keys = Rows { values: keys, stride };
                    scores.fill(0.0);
                    let queries = (&rows[first * width + q..], (width, 1));
                    multiply(arch, (scores, stride), queries, keys, (count, dim, stride));
                    let scene = scene(&self, bias, sequence, head, first);
                    vectorised!(
                        arch,
                        scene.soften(
                            scores,
                            stride,
                            #[inline(always)]
                            |_, row, factor| row.iter_mut().for_each(|p| *p *= factor),
                        )
                    );
                    let out = (&mut out[head * dim..], out_width);
                    multiply(arch, out, (scores, (stride, 1)), part(v), (count, tokens, dim));
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
        let (width, out_width, dim) = (self.width(), self.out_width(), self.head_dim);
        let arch = arch();
        let sequences = self.each();
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
                let (tokens, stride) = (sequence.tokens, padded(sequence.tokens));
                let rows = &rows[sequence.first * width..][..tokens * width];
                let d_out = &d_out[sequence.first * out_width..][..tokens * out_width];
                let block = tokens.min(QUERIES);
                with_scratch(2 * (dim + block) * stride, |scratch| {
                    let (keys, scratch) = scratch.split_at_mut(dim * stride);
                    let (turned, scratch) = scratch.split_at_mut(dim * stride);
                    for head in 0..self.heads {
                        let [q, k, v] = self.head(head);
                        let part = |at: usize| Rows {
                            values: &rows[at..],
                            stride: width,
                        };
                        vectorised!(arch, {
                            turn(part(k), tokens, dim, self.scale(), keys, stride);
                            turn(part(v), tokens, dim, 1.0, turned, stride);
                        });
                        let square = |values| Rows { values, stride };
                        let mut first = 0;
                        while first < tokens {
                            let count = block.min(tokens - first);
                            let (scores, d_scores) = scratch.split_at_mut(block * stride);
                            let (scores, d_scores) = (&mut scores[..count * stride], &mut d_scores[..count * stride]);
                            scores.fill(0.0);
                            d_scores.fill(0.0);
                            let queries = &rows[first * width + q..];
                            let d_out = &d_out[first * out_width + head * dim..];
                            let size = (count, dim, stride);
                            multiply(arch, (scores, stride), (queries, (width, 1)), square(keys), size);
                            multiply(arch, (d_scores, stride), (d_out, (out_width, 1)), square(turned), size);
                            let scene = scene(&self, bias, sequence, head, first);
                            let scale = self.scale();
                            vectorised!(
                                arch,
                                scene.soften(
                                    scores,
                                    stride,
                                    #[inline(always)]
                                    |r, row, factor| {
                                        row.iter_mut().for_each(|p| *p *= factor);
                                        let d_row = &mut d_scores[r * stride..][..stride];
                                        let common = dot(row, d_row);
                                        for (d, p) in d_row.iter_mut().zip(row) {
                                            *d = *p * (*d - common);
                                        }
                                    },
                                )
                            );
                            if bias.is_some() {
                                let d_bias = &mut d_bias[(head * tokens + first) * tokens..][..count * tokens];
                                vectorised!(arch, {
                                    let rows = d_bias.chunks_exact_mut(tokens).zip(d_scores.chunks_exact(stride));
                                    for (d_bias, d) in rows {
                                        d_bias.iter_mut().zip(d).for_each(|(sum, d)| *sum += d);
                                    }
                                });
                            }
                            vectorised!(arch, d_scores.iter_mut().for_each(|d| *d *= scale));
                            let (d_scores, scores) = (&*d_scores, &*scores);
                            let rows_of = |values, stride| Rows { values, stride };
                            let d_queries = (&mut d_rows[first * width + q..], width);
                            multiply(arch, d_queries, (d_scores, (stride, 1)), part(k), (count, tokens, dim));
                            let size = (tokens, count, dim);
                            let d_keys = (&mut d_rows[k..], width);
                            multiply(arch, d_keys, (d_scores, (1, stride)), rows_of(queries, width), size);
                            let d_values = (&mut d_rows[v..], width);
                            multiply(arch, d_values, (scores, (1, stride)), rows_of(d_out, out_width), size);
                            first += count;
                        }
                    }
                });
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
