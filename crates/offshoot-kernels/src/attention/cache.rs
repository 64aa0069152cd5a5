//! Attention of new tokens over all before them, whose keys and values are kept: what generation runs on.
//!
//! The CPU keeps one block of memory for each head of keys of each sequence: its keys turned, `[head_dim, capacity]`, and its values,
//! `[capacity, head_dim]`. New tokens are written behind the others in place. Few new tokens over many kept ones are split by runs
//! of keys, whose softmaxes are put together in the end (Dao et al. 2023, "Flash-Decoding").

use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata};
use burn::tensor::{Shape, Tensor};
use pulp::Arch;
use rayon::prelude::*;

use super::tile::{Part, Rows, multiply, padded, turn};
use super::{Attention, QUERIES, Scene, probabilities, repeated, slice};
use crate::slices::{contiguous, owned, tensor, values};
use crate::vector::{
    Blank, LANES, PIECE, arch, build, build_in_turn, build_pieces, exp_negative, largest, rows_of, sum_of, vectorised,
    with_scratch, zeroed,
};
use crate::{Kernels, Tensors};

/// New tokens that are few: their work is split by keys, not by queries.
const FEW: usize = 16;
/// Keys of one run, a multiple of the vector width.
const RUN: usize = 512;
/// Multiply-adds of two products that are not worth a second thread.
const LEAST: usize = 1 << 19;
/// Tokens that there is room for at first.
const ROOM: usize = 64;

/// Keys and values of one layer, for one or several sequences of equal length: all that the tokens to come need of those before
/// them. A clone is a cache of its own.
#[derive(Clone, Debug, Default)]
pub struct KeyValues {
    tokens: usize,
    room: usize,
    /// Sequences, heads of keys and numbers of a head, from the first tokens on.
    size: Option<[usize; 3]>,
    stored: Vec<FloatTensor<Dispatch>>,
}

impl KeyValues {
    /// An empty cache that grows by half its size at a time.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty cache with room for some number of tokens of each sequence; it grows beyond.
    pub fn with_capacity(tokens: usize) -> Self {
        Self {
            room: tokens,
            ..Self::default()
        }
    }

    /// Tokens of each sequence.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Forgets all tokens but the first ones, and keeps the memory.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn truncate(&mut self, tokens: usize) {
        assert!(tokens <= self.tokens, "{tokens} of {} kept tokens", self.tokens);
        self.tokens = tokens;
    }

    /// [`cached_attention`](crate::cached_attention()).
    pub(crate) fn attend(&mut self, form: Attention, packed: Tensor<2>) -> Tensor<2> {
        let [(count, new)] = form.sequences[..] else {
            panic!("a cache is for sequences of one length")
        };
        assert!(
            form.causal,
            "tokens to come see those before them: attention over a cache is causal"
        );
        form.check(&packed.shape(), None);
        let size = [count, form.kv_heads, form.head_dim];
        let own = *self.size.get_or_insert(size);
        assert_eq!(
            own, size,
            "sequences, heads of keys and numbers of a head that are kept, and new ones"
        );
        if packed.shape().num_elements() == 0 {
            self.tokens += new;
            return Tensor::zeros([count * new, form.out_width()], &packed.device());
        }
        let mut tensors = vec![packed.without_autodiff().into_dispatch()];
        tensors.append(&mut self.stored);
        let room = self.room.max(ROOM);
        let mut found = <Dispatch as Kernels>::cached_attention(form, self.tokens, room, Tensors(tensors)).into_iter();
        let out = found.next().expect("the result");
        self.stored = found.collect();
        self.tokens += new;
        Tensor::from_dispatch(out)
    }
}

/// Attention in operations that every backend has: packed rows, and keys and values of `[sequences, kv_heads, tokens, head_dim]`
/// where there are some before; gives the result, and keys and values with the new ones.
pub(crate) fn plain<B: Backend>(form: &Attention, before: usize, tensors: Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
    let (count, new) = form.sequences[0];
    let (heads, kv_heads, dim) = (form.heads, form.kv_heads, form.head_dim);
    let mut tensors = tensors.into_iter();
    let packed = tensors.next().expect("packed rows");
    let rows = B::float_reshape(packed, Shape::new([count, new, heads + 2 * kv_heads, dim]));
    let rows = B::float_swap_dims(rows, 1, 2);
    let queries = slice::<B>(rows.clone(), 1, 0, heads);
    let [keys, values] = [heads, heads + kv_heads].map(|first| {
        let new = slice::<B>(rows.clone(), 1, first, kv_heads);
        match tensors.next() {
            Some(kept) if before > 0 => B::float_cat(vec![slice::<B>(kept, 2, 0, before), new], 2),
            _ => new,
        }
    });
    let shared = [&keys, &values].map(|x| repeated::<B>(form, x.clone()));
    let [shared_keys, shared_values] = shared;
    let mixed = B::float_matmul(probabilities::<B>(form, queries, shared_keys, None), shared_values);
    let out = Shape::new([count * new, form.out_width()]);
    vec![B::float_reshape(B::float_swap_dims(mixed, 1, 2), out), keys, values]
}

/// The same on the CPU: what is kept is one tensor, `[sequences * kv_heads, 2 * head_dim, capacity]`.
pub(crate) fn attend(form: &Attention, before: usize, room: usize, tensors: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let mut tensors = tensors.into_iter();
    let packed = contiguous(tensors.next().expect("packed rows"));
    let cache = Cache::new(form, before, room, tensors.next(), &packed);
    let (_, new) = form.sequences[0];
    let out = if new > FEW {
        cache.many(&packed)
    } else {
        cache.few(&packed)
    };
    let rows = packed.shape()[0];
    vec![tensor(out, [rows, form.out_width()]), cache.stored]
}

/// What is kept with the new tokens behind it.
struct Cache<'a> {
    form: &'a Attention,
    before: usize,
    capacity: usize,
    stored: FlexTensor,
}

impl<'a> Cache<'a> {
    /// Adds the keys and values of `packed` to what is `kept`, in place where there is room and nothing else holds it.
    fn new(form: &'a Attention, before: usize, room: usize, kept: Option<FlexTensor>, packed: &FlexTensor) -> Self {
        let (count, new) = form.sequences[0];
        let (dim, width) = (form.head_dim, form.width());
        let capacity_of = |stored: &FlexTensor| stored.shape()[2];
        let mut stored = match kept {
            Some(kept) if before + new <= capacity_of(&kept) => owned(kept),
            kept => {
                let grown = kept.as_ref().map_or(0, |kept| capacity_of(kept) * 3 / 2);
                let capacity = padded(room.max(before + new).max(grown));
                let old = kept.as_ref().map(|kept| (values(kept), capacity_of(kept)));
                let piece = 2 * dim * capacity;
                let moved = build(count * form.kv_heads * piece, piece, |i, blank| {
                    let piece = zeroed(blank);
                    if let Some((old, old_capacity)) = old {
                        let old = &old[i * 2 * dim * old_capacity..][..2 * dim * old_capacity];
                        let (keys, all) = piece.split_at_mut(dim * capacity);
                        let (old_keys, old_values) = old.split_at(dim * old_capacity);
                        for (row, old) in keys.chunks_exact_mut(capacity).zip(old_keys.chunks_exact(old_capacity)) {
                            row[..before].copy_from_slice(&old[..before]);
                        }
                        all[..before * dim].copy_from_slice(&old_values[..before * dim]);
                    }
                    piece
                });
                tensor(moved, [count * form.kv_heads, 2 * dim, capacity])
            }
        };
        let capacity = capacity_of(&stored);
        let rows = values(packed);
        let arch = arch();
        let add = |(place, piece): (usize, &mut [f32])| {
            let (sequence, kv) = (place / form.kv_heads, place % form.kv_heads);
            let rows = &rows[sequence * new * width..][..new * width];
            let (keys, all) = piece.split_at_mut(dim * capacity);
            let [_, k, v] = form.head(kv * (form.heads / form.kv_heads));
            let part = Rows {
                values: &rows[k..],
                stride: width,
            };
            vectorised!(arch, turn(part, new, dim, 1.0, &mut keys[before..], capacity));
            let to = all[before * dim..].chunks_exact_mut(dim);
            for (to, row) in to.zip(rows.chunks_exact(width)) {
                to.copy_from_slice(&row[v..v + dim]);
            }
        };
        let pieces = stored.storage_mut::<f32>();
        if rows.len() <= PIECE {
            pieces.chunks_exact_mut(2 * dim * capacity).enumerate().for_each(add);
        } else {
            pieces
                .par_chunks_exact_mut(2 * dim * capacity)
                .enumerate()
                .for_each(add);
        }
        Self {
            form,
            before,
            capacity,
            stored,
        }
    }

    /// Turned keys and values of one place, from key `first` on.
    fn at(&self, place: usize, first: usize) -> [Rows<'_>; 2] {
        let (dim, capacity) = (self.form.head_dim, self.capacity);
        let piece = &values(&self.stored)[place * 2 * dim * capacity..][..2 * dim * capacity];
        let (keys, values) = piece.split_at(dim * capacity);
        [
            Rows {
                values: &keys[first..],
                stride: capacity,
            },
            Rows {
                values: &values[first * dim..],
                stride: dim,
            },
        ]
    }

    /// The result for many new tokens, in blocks of queries.
    fn many(&self, packed: &FlexTensor) -> Vec<f32> {
        let (form, dim) = (self.form, self.form.head_dim);
        let (count, new) = form.sequences[0];
        let (width, out_width) = (form.width(), form.out_width());
        let total = self.before + new;
        // Blocks of equal work for more than one thread.
        let size = new.div_ceil(8).clamp(FEW, QUERIES).next_multiple_of(4);
        let blocks: Vec<(usize, usize)> = (0..count)
            .flat_map(|sequence| (0..new).step_by(size).map(move |first| (sequence, first)))
            .collect();
        let sizes: Vec<[usize; 1]> = blocks
            .iter()
            .map(|(_, first)| [size.min(new - first) * out_width])
            .collect();
        let rows = values(packed);
        let arch = arch();
        let [out] = build_pieces(&sizes, |b, [blank]| {
            let (sequence, first) = blocks[b];
            let out = zeroed(blank);
            let block = size.min(new - first);
            let rows = &rows[(sequence * new + first) * width..][..block * width];
            let scene = Scene {
                first: self.before + first,
                keys: total,
                causal: true,
                bias: None,
            };
            with_scratch(block * (dim + padded(total)), |scratch| {
                let (queries, scores) = scratch.split_at_mut(block * dim);
                for head in 0..form.heads {
                    let [q, ..] = form.head(head);
                    scaled(rows, width, q, form.scale(), queries, dim);
                    let kv = head * form.kv_heads / form.heads;
                    let [keys, values] = self.at(sequence * form.kv_heads + kv, 0);
                    let queries = Rows {
                        values: queries,
                        stride: dim,
                    };
                    let out = (&mut out[head * dim..], out_width);
                    scene.attend(arch, (queries, keys, values), (block, dim), scores, out);
                }
            });
            [out]
        });
        out
    }

    /// The result for few new tokens, in runs of keys.
    fn few(&self, packed: &FlexTensor) -> Vec<f32> {
        let (form, dim) = (self.form, self.form.head_dim);
        let (count, new) = form.sequences[0];
        let out_width = form.out_width();
        let each = form.heads / form.kv_heads;
        let (places, queries) = (count * form.kv_heads, each * new);
        // The last run holds all new tokens: those before it are seen by all of them.
        let runs = self.before.div_ceil(RUN).max(1);
        let sizes = vec![[queries * (dim + 2)]; places * runs];
        let rows = values(packed);
        let arch = arch();
        let work = 2 * places * queries * (self.before + new) * dim;
        let [found] = if work < LEAST {
            build_in_turn(
                &sizes,
                sizes.len(),
                |i| i,
                |i, pieces| {
                    let one = |[blank]: [_; 1]| [self.run(arch, i, runs, rows, blank)];
                    pieces.into_iter().map(one).collect()
                },
            )
        } else {
            build_pieces(&sizes, |i, [blank]| [self.run(arch, i, runs, rows, blank)])
        };
        let piece = rows_of(out_width);
        build(count * new * out_width, piece * out_width, |i, blank| {
            let out = zeroed(blank);
            vectorised!(arch, {
                for (r, out) in out.chunks_exact_mut(out_width).enumerate() {
                    let (sequence, token) = ((i * piece + r) / new, (i * piece + r) % new);
                    for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                        let place = sequence * form.kv_heads + head / each;
                        let parts = &found[place * runs * queries * (dim + 2)..][..runs * queries * (dim + 2)];
                        together(parts, (queries, dim), head % each * new + token, out);
                    }
                }
            });
            out
        })
    }

    /// What the new tokens find in run `i % runs` of the keys of place `i / runs`, for all queries that these keys have: sums of values
    /// by weights, the largest score, and the sums of the weights.
    fn run<'o>(&self, arch: Arch, i: usize, runs: usize, rows: &[f32], blank: &'o mut Blank) -> &'o mut [f32] {
        let (form, dim, before) = (self.form, self.form.head_dim, self.before);
        let (new, width) = (form.sequences[0].1, form.width());
        let each = form.heads / form.kv_heads;
        let queries = each * new;
        let (place, run) = (i / runs, i % runs);
        let (sequence, kv) = (place / form.kv_heads, place % form.kv_heads);
        let (first, last) = (run * RUN, run + 1 == runs);
        let keys = if last { before + new - first } else { RUN };
        let found = zeroed(blank);
        let (mixed, rest) = found.split_at_mut(queries * dim);
        let (most, sums) = rest.split_at_mut(queries);
        let rows = &rows[sequence * new * width..][..new * width];
        let stride = padded(keys);
        with_scratch(queries * (dim + stride), |scratch| {
            let (asked, scores) = scratch.split_at_mut(queries * dim);
            // Head by head, so that the rows of each are one after the other.
            for (h, asked) in asked.chunks_exact_mut(new * dim).enumerate() {
                let [q, ..] = form.head(kv * each + h);
                scaled(rows, width, q, form.scale(), asked, dim);
            }
            let [turned, all] = self.at(place, first);
            let size = (queries, dim, keys.next_multiple_of(LANES));
            multiply(
                arch,
                (scores, stride, false),
                (asked, (dim, 1)),
                turned,
                size,
                Part::Whole,
            );
            let seen = |r: usize| if last { before - first + r % new + 1 } else { keys };
            vectorised!(arch, {
                for (r, row) in scores.chunks_exact_mut(stride).enumerate() {
                    let row = &mut row[..seen(r)];
                    most[r] = largest(row);
                    // Where all are negative infinity there is nothing above it.
                    let shift = if most[r] == f32::NEG_INFINITY { 0.0 } else { most[r] };
                    for score in row.iter_mut() {
                        *score = exp_negative(*score - shift);
                    }
                    sums[r] = sum_of(
                        row,
                        #[inline(always)]
                        |x| x,
                    );
                }
            });
            if last && new > 1 {
                let heads = mixed.chunks_exact_mut(new * dim).zip(scores.chunks_exact(new * stride));
                for (mixed, scores) in heads {
                    let part = Part::ByQuery { first: before - first };
                    let size = (new, keys, dim);
                    multiply(arch, (mixed, dim, false), (scores, (stride, 1)), all, size, part);
                }
            } else {
                let size = (queries, keys, dim);
                multiply(arch, (mixed, dim, false), (scores, (stride, 1)), all, size, Part::Whole);
            }
        });
        found
    }
}

/// Writes `factor` times the numbers at `place` of each row to rows of `out`.
fn scaled(rows: &[f32], width: usize, place: usize, factor: f32, out: &mut [f32], dim: usize) {
    for (out, row) in out.chunks_exact_mut(dim).zip(rows.chunks_exact(width)) {
        for (out, value) in out.iter_mut().zip(&row[place..]) {
            *out = factor * value;
        }
    }
}

/// The mean of the values of query `r` over all runs of keys, from what each found: weighted sums of `dim` values, then maxima, then
/// sums of weights, for all `queries`.
#[inline(always)]
fn together(parts: &[f32], (queries, dim): (usize, usize), r: usize, out: &mut [f32]) {
    let parts = || parts.chunks_exact(queries * (dim + 2));
    let most_of = |part: &[f32]| part[queries * dim + r];
    let mut most = f32::NEG_INFINITY;
    for part in parts() {
        most = if most_of(part) > most { most_of(part) } else { most };
    }
    let mut sum = 0.0;
    for part in parts() {
        let weight = exp_negative(most_of(part) - most);
        sum += weight * part[queries * (dim + 1) + r];
        for (out, mixed) in out.iter_mut().zip(&part[r * dim..][..dim]) {
            *out = mixed.mul_add(weight, *out);
        }
    }
    let factor = 1.0 / sum;
    out.iter_mut().for_each(|out| *out *= factor);
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::slices::only;
    use crate::tests::{Way, result};
    use crate::vector::{Path, with_path};

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        let one = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
        (0..n).map(one).collect()
    }

    fn form(count: usize, new: usize, [heads, kv_heads, head_dim]: [usize; 3]) -> Attention {
        Attention {
            sequences: vec![(count, new)],
            heads,
            kv_heads,
            head_dim,
            causal: true,
        }
    }

    /// Tokens `first..first + new` of sequences of `tokens` rows.
    fn part(x: &[f32], width: usize, tokens: usize, first: usize, new: usize) -> Vec<f32> {
        let sequences = x.chunks_exact(tokens * width);
        sequences
            .flat_map(|rows| rows[first * width..][..new * width].to_vec())
            .collect()
    }

    /// Attention of whole sequences and, after it, the same over a cache in steps of these sizes.
    fn whole_and_in_steps(way: Way, count: usize, sizes: [usize; 3], steps: &[usize], x: &[f32]) -> [Vec<f32>; 2] {
        let tokens: usize = steps.iter().sum();
        let whole = form(count, tokens, sizes);
        let (width, out_width) = (whole.width(), whole.out_width());
        let packed = tensor(x.to_vec(), [count * tokens, width]);
        let expected = contiguous(result(way, whole, vec![packed]));
        let mut found = vec![0.0; count * tokens * out_width];
        let (mut before, mut kept) = (0, Vec::new());
        for &new in steps {
            let form = form(count, new, sizes);
            let mut tensors = vec![tensor(part(x, width, tokens, before, new), [count * new, width])];
            tensors.append(&mut kept);
            kept = match way {
                Way::Ours => attend(&form, before, 1, tensors),
                Way::Plain => plain::<Flex>(&form, before, tensors),
            };
            let out = contiguous(kept.remove(0));
            for (sequence, out) in values(&out).chunks_exact(new * out_width).enumerate() {
                found[(sequence * tokens + before) * out_width..][..out.len()].copy_from_slice(out);
            }
            before += new;
        }
        [values(&expected).to_vec(), found]
    }

    #[test]
    fn steps_over_a_cache_give_what_the_whole_sequence_gives() {
        let shapes = [(1, [1, 1, 1]), (3, [4, 2, 7]), (2, [3, 3, 33]), (1, [6, 2, 64])];
        let steps: [&[usize]; 6] = [
            &[1, 1, 1, 1, 1],
            &[37],
            &[2, 16, 17, 1, 1, 5],
            &[63, 1, 1, 1, 30, 3],
            &[200, 1, 1],
            &[511, 1, 1, 16, 520, 1, 9],
        ];
        for (count, sizes) in shapes {
            for steps in steps {
                let [heads, kv_heads, dim] = sizes;
                let tokens: usize = steps.iter().sum();
                let x = numbers(count * tokens * (heads + 2 * kv_heads) * dim, 1);
                let ways = if tokens < 300 {
                    &[Way::Ours, Way::Plain][..]
                } else {
                    &[Way::Ours]
                };
                for &way in ways {
                    let [expected, found] = whole_and_in_steps(way, count, sizes, steps, &x);
                    for (e, (a, b)) in found.iter().zip(&expected).enumerate() {
                        assert!(
                            (a - b).abs() <= 1e-6,
                            "{way:?}, {count} x {sizes:?}, {steps:?}, {e}: {a} for {b}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn neither_threads_nor_vectors_change_a_bit() {
        let (sizes, steps) = ([6, 2, 37], [900, 1, 1, 16, 400, 1]);
        let x = numbers(2 * 1319 * 10 * 37, 1);
        let bits = || {
            whole_and_in_steps(Way::Ours, 2, sizes, &steps, &x)[1]
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>()
        };
        let expected = with_path(Path::Plain, bits);
        for path in Path::ALL.into_iter().filter(|path| path.is_available()) {
            assert!(with_path(path, bits) == expected, "{}", path.name());
        }
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(bits) == expected, "{threads} threads");
        }
    }

    #[test]
    fn new_tokens_take_the_memory_behind_the_others() {
        let form = form(2, 3, [2, 1, 8]);
        let new = || tensor(numbers(6 * 32, 1), [6, 32]);
        let mut kept = attend(&form, 0, 100, vec![new()]);
        let mut place = None;
        for step in 1..33 {
            let cache = kept.remove(1);
            let before = values(&cache).as_ptr() as usize;
            assert_eq!(*place.get_or_insert(before), before, "step {step}");
            kept = attend(&form, 3 * step, 100, vec![new(), cache]);
        }
        // Room for 112 tokens, an odd number of vectors: the next do not fit.
        assert_eq!(kept[1].shape()[2], 112);
        for step in 33..39 {
            kept = attend(&form, 3 * step, 100, vec![new(), kept.remove(1)]);
        }
        assert_eq!(kept[1].shape()[2], 176);
    }

    #[test]
    fn later_tokens_of_one_call_do_not_reach_those_before_them() {
        for new in [5, 16, 40] {
            let (sizes, width) = ([4, 2, 9], 72);
            let form = form(1, new, sizes);
            let kept = || {
                let before = tensor(numbers(20 * width, 1), [20, width]);
                attend(&self::form(1, 20, sizes), 0, 1, vec![before]).remove(1)
            };
            let x = numbers(new * width, 2);
            let run = |x: Vec<f32>| only(attend(&form, 20, 1, vec![tensor(x, [new, width]), kept()]));
            let expected = run(x.clone());
            for from in 1..new {
                let mut x = x.clone();
                x[from * width..].fill(f32::NAN);
                let found = run(x);
                assert_eq!(values(&found)[..from * 36], values(&expected)[..from * 36]);
            }
        }
    }

    #[test]
    fn a_cache_can_be_cut_back_cloned_and_reused() {
        let device = Device::flex();
        let form = |new| form(2, new, [2, 1, 4]);
        let rows = |new: usize, seed| {
            Tensor::<2>::from_data(TensorData::new(numbers(2 * new * 16, seed), [2 * new, 16]), &device)
        };
        let values = |x: Tensor<2>| x.into_data().try_to_vec::<f32>().unwrap();
        let mut cache = KeyValues::with_capacity(5);
        assert_eq!(values(cache.attend(form(0), rows(0, 1))), vec![0.0; 0]);
        cache.attend(form(9), rows(9, 1));
        let mut copy = cache.clone();
        let one = values(copy.attend(form(1), rows(1, 2)));
        assert_eq!((cache.tokens(), copy.tokens()), (9, 10));
        assert_eq!(values(cache.attend(form(1), rows(1, 2))), one);
        copy.attend(form(3), rows(3, 3));
        copy.truncate(9);
        assert_eq!(values(copy.attend(form(1), rows(1, 2))), one);
        let mut other = KeyValues::new();
        let first = values(other.attend(form(9), rows(9, 1)));
        cache.truncate(0);
        assert_eq!(values(cache.attend(form(9), rows(9, 1))), first);
    }

    #[test]
    #[should_panic(expected = "that are kept, and new ones")]
    fn rows_of_other_heads_are_refused() {
        let mut cache = KeyValues::new();
        cache.attend(form(1, 1, [2, 1, 4]), Tensor::zeros([1, 16], &Device::flex()));
        cache.attend(form(1, 1, [2, 2, 4]), Tensor::zeros([1, 24], &Device::flex()));
    }

    #[test]
    #[should_panic(expected = "attention over a cache is causal")]
    fn attention_that_sees_later_tokens_is_refused() {
        let form = Attention {
            causal: false,
            ..form(1, 1, [1, 1, 4])
        };
        KeyValues::new().attend(form, Tensor::zeros([1, 12], &Device::flex()));
    }
}
