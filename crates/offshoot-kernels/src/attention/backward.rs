//! The gradient of attention, head by head.

use pulp::Arch;

use super::tile::{Part, Rows, multiply, padded, turn};
use super::{Attention, SHARES, Sequence, scene};
use crate::vector::{LANES, arch, build_bundles, dot, vectorised, with_scratch, zeroed};

/// Where the gradient of one sequence's packed rows goes.
pub(super) enum Target<'a> {
    /// Whole rows, one after the other.
    Rows(&'a mut [f32]),
    /// Of each row only what belongs to one head of keys: its queries, the key and the value.
    Head(Vec<[&'a mut [f32]; 1]>),
}

impl Target<'_> {
    /// Writes `factor` times the rows of `values` to token `first` and its followers: to their queries, keys or values (0, 1 or 2),
    /// those whose `place` it is in a row of the `form`, and `among` the queries of one head of keys.
    fn write(
        &mut self,
        arch: Arch,
        form: &Attention,
        first: usize,
        (kind, place, among): (usize, usize, usize),
        values: &[f32],
        factor: f32,
    ) {
        let dim = form.head_dim;
        vectorised!(arch, {
            for (r, values) in values.chunks_exact(dim.max(1)).enumerate() {
                let row = match self {
                    Self::Rows(rows) => &mut rows[(first + r) * form.width() + place..][..dim],
                    Self::Head(parts) => &mut parts[3 * (first + r) + kind][0][among * dim..][..dim],
                };
                for (to, value) in row.iter_mut().zip(values) {
                    *to = factor * value;
                }
            }
        });
    }
}

impl Attention {
    /// Whether the gradient is found by heads of keys: there are so few sequences that each would keep one thread busy, and so long
    /// that handing out the parts of rows costs little beside.
    pub(super) fn by_heads(&self, sequences: &[Sequence]) -> bool {
        let long = sequences.iter().all(|sequence| sequence.tokens >= 64);
        self.kv_heads > 1 && sequences.len() < SHARES && long
    }

    /// The gradient of what belongs to head `kv` of the keys in one sequence, of which `rows` and `d_out` are the rows, to `target`;
    /// that of its bias is added to `d_bias`.
    pub(super) fn back(
        &self,
        arch: Arch,
        (sequence, kv): (Sequence, usize),
        (rows, bias, d_out): (&[f32], Option<&[f32]>, &[f32]),
        d_bias: &mut [f32],
        target: &mut Target<'_>,
    ) {
        let (width, out_width, dim) = (self.width(), self.out_width(), self.head_dim);
        let (tokens, stride) = (sequence.tokens, padded(sequence.tokens));
        let (block, each) = (sequence.block(), self.heads / self.kv_heads);
        let part = |at: usize| Rows {
            values: &rows[at..],
            stride: width,
        };
        let [_, k, v] = self.head(kv * each);
        with_scratch(2 * (dim + block) * stride + (2 * tokens + block) * dim, |scratch| {
            let (keys, scratch) = scratch.split_at_mut(dim * stride);
            let (turned, scratch) = scratch.split_at_mut(dim * stride);
            let (d_keys, scratch) = scratch.split_at_mut(tokens * dim);
            let (d_values, scratch) = scratch.split_at_mut(tokens * dim);
            let (d_queries, scratch) = scratch.split_at_mut(block * dim);
            vectorised!(arch, {
                turn(part(k), tokens, dim, self.scale(), keys, stride);
                turn(part(v), tokens, dim, 1.0, turned, stride);
                d_keys.fill(0.0);
                d_values.fill(0.0);
            });
            for head in kv * each..(kv + 1) * each {
                let [q, ..] = self.head(head);
                for first in (0..tokens).step_by(block) {
                    let count = block.min(tokens - first);
                    let scene = scene(self, bias, sequence, head, first);
                    let seen = scene.seen(count - 1);
                    let stride_seen = padded(seen);
                    let (scores, d_scores) = scratch[..2 * count * stride_seen].split_at_mut(count * stride_seen);
                    let queries = &rows[first * width + q..];
                    let d_out = &d_out[first * out_width + head * dim..];
                    let square = |values| Rows { values, stride };
                    let size = (count, dim, seen.next_multiple_of(LANES));
                    let half = scene.part(|first| Part::Scores { first });
                    multiply(
                        arch,
                        (scores, stride_seen, false),
                        (queries, (width, 1)),
                        square(keys),
                        size,
                        half,
                    );
                    multiply(
                        arch,
                        (d_scores, stride_seen, false),
                        (d_out, (out_width, 1)),
                        square(turned),
                        size,
                        half,
                    );
                    vectorised!(
                        arch,
                        scene.soften(
                            scores,
                            stride_seen,
                            #[inline(always)]
                            |r, row, factor| {
                                row.iter_mut().for_each(|p| *p *= factor);
                                let d_row = &mut d_scores[r * stride_seen..][..row.len()];
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
                            let rows = d_bias.chunks_exact_mut(tokens).zip(d_scores.chunks_exact(stride_seen));
                            for (r, (d_bias, d)) in rows.enumerate() {
                                let d_bias = &mut d_bias[..scene.seen(r)];
                                d_bias.iter_mut().zip(d).for_each(|(sum, d)| *sum += d);
                            }
                        });
                    }
                    let (scores, d_scores) = (&*scores, &*d_scores);
                    let rows_of = |values, stride| Rows { values, stride };
                    let half = scene.part(|first| Part::ByQuery { first });
                    let by_query = (d_scores, (stride_seen, 1));
                    multiply(
                        arch,
                        (d_queries, dim, false),
                        by_query,
                        part(k),
                        (count, seen, dim),
                        half,
                    );
                    target.write(
                        arch,
                        self,
                        first,
                        (0, q, head % each),
                        &d_queries[..count * dim],
                        self.scale(),
                    );
                    let half = scene.part(|first| Part::ByKey { first });
                    let size = (seen, count, dim);
                    let by_key = |scores| (scores, (1, stride_seen));
                    multiply(
                        arch,
                        (d_keys, dim, true),
                        by_key(d_scores),
                        rows_of(queries, width),
                        size,
                        half,
                    );
                    multiply(
                        arch,
                        (d_values, dim, true),
                        by_key(scores),
                        rows_of(d_out, out_width),
                        size,
                        half,
                    );
                }
            }
            target.write(arch, self, 0, (1, k, 0), d_keys, self.scale());
            target.write(arch, self, 0, (2, v, 0), d_values, 1.0);
        });
    }

    /// The gradient of the packed rows by heads of keys.
    pub(super) fn back_by_heads(&self, sequences: &[Sequence], rows: &[f32], d_out: &[f32]) -> Vec<f32> {
        let (width, out_width, dim, kv_heads) = (self.width(), self.out_width(), self.head_dim, self.kv_heads);
        let arch = arch();
        // What belongs to the heads of keys in a row, in its order: all queries, all keys, all values.
        let parts = [self.heads / kv_heads * dim, dim, dim];
        let row = parts.map(|part| std::iter::repeat_n([part], kv_heads));
        let row: Vec<[usize; 1]> = row.into_iter().flatten().collect();
        let owners: Vec<usize> = sequences
            .iter()
            .flat_map(|sequence| std::iter::repeat_n(sequence.number, sequence.tokens))
            .collect();
        let sizes = row.repeat(owners.len());
        let bundle_of = |i: usize| owners[i / row.len()] * kv_heads + i % kv_heads;
        let [d_rows] = build_bundles(&sizes, sequences.len() * kv_heads, bundle_of, |bundle, pieces| {
            let sequence = sequences[bundle / kv_heads];
            let rows = &rows[sequence.first * width..][..sequence.tokens * width];
            let d_out = &d_out[sequence.first * out_width..][..sequence.tokens * out_width];
            let mut target = Target::Head(pieces.into_iter().map(|piece| piece.map(zeroed)).collect());
            self.back(
                arch,
                (sequence, bundle % kv_heads),
                (rows, None, d_out),
                &mut [],
                &mut target,
            );
            match target {
                Target::Head(pieces) => pieces,
                Target::Rows(_) => unreachable!("the target was made here"),
            }
        });
        d_rows
    }
}
