//! Kernels against the plain operations on shapes that no loop is made for.

use proptest::prelude::*;

use super::*;

/// Tests of each property; a failure is found again from the numbers that it prints.
fn few() -> ProptestConfig {
    ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// One, primes, and both sides of a vector and of two.
fn width() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 2, 3, 5, 7, 13, 15, 16, 17, 31, 32, 33, 48, 61, 67])
}

/// None, few, and both sides of the blocks of 64 to 512 rows.
fn rows() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![0, 1, 2, 3, 11, 63, 64, 65, 127, 129, 511, 512, 513, 1031])
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn linear_layers_agree(form in prop::sample::select(forms()), n in rows(), i in width(), o in width(), seed: u64) {
        linear(form, [n, i, o], seed).agrees(1e-5);
    }

    #[test]
    fn attention_agrees(
        sequences in prop::collection::vec((0..4usize, 1..131usize), 1..4),
        kv_heads in 1..4usize,
        shared in 1..4usize,
        head_dim in prop::sample::select(vec![1, 5, 7, 16, 33]),
        causal: bool,
        seed: u64,
    ) {
        let heads = kv_heads * shared;
        attention(Attention { sequences, heads, kv_heads, head_dim, causal }, 0, seed).agrees(1e-5);
    }

    #[test]
    fn attention_with_a_bias_agrees(
        (groups, times) in (1..4usize, 1..12usize),
        tokens in prop::sample::select(vec![1, 2, 15, 16, 17, 95, 96, 97, 130]),
        heads in 1..4usize,
        head_dim in prop::sample::select(vec![1, 5, 7, 16, 33]),
        causal: bool,
        seed: u64,
    ) {
        let times = if tokens > 90 { 1 } else { times };
        let sequences = vec![(groups * times, tokens)];
        attention(Attention { sequences, heads, kv_heads: heads, head_dim, causal }, groups, seed).agrees(1e-5);
    }

    #[test]
    fn rotary_positions_agree(
        sequences in prop::collection::vec((0..4usize, 0..131usize), 1..4),
        (heads, kv_heads) in (1..4usize, 0..4usize),
        head_dim in prop::sample::select(vec![0, 2, 6, 16, 34, 64]),
        first in 0..2000usize,
        seed: u64,
    ) {
        let form = Attention { sequences, heads, kv_heads, head_dim, causal: true };
        rotary(form, first, seed).agrees(1e-6);
    }

    #[test]
    fn mixes_agree(
        (experts, slices, sections) in (1..5usize, 1..7usize, 1..4usize),
        section in prop::sample::select(vec![1, 2, 15, 17, 100, 2047, 2048, 2049, 5003]),
        seed: u64,
    ) {
        mix(Mix { experts, slices, sections }, section, seed).agrees(1e-5);
    }

    #[test]
    fn cross_entropy_agrees(
        rows in prop::sample::select(vec![0, 1, 2, 9, 33]),
        columns in prop::sample::select(vec![1, 2, 7, 16, 17, 100, 1009, 16_384, 16_385, 20_011]),
        sets in 1..3usize,
        own in 1..5usize,
        temperature in prop::sample::select(vec![0.05, 0.1, 1.0]),
        seed: u64,
    ) {
        soft_cross_entropy([rows, columns, sets, own], temperature, seed).agrees(1e-5);
    }

    #[test]
    fn softmax_agrees(
        rows in prop::sample::select(vec![0, 1, 2, 9, 33, 5000]),
        columns in prop::sample::select(vec![1, 2, 7, 16, 17, 100]),
        seed: u64,
    ) {
        tempered_softmax([rows, columns], 0.07, seed).agrees(1e-5);
        // The plain operation sums one after the other, which costs it digits in long rows.
        tempered_softmax([rows.min(9), 170 * columns], 0.07, seed).agrees(5e-5);
    }

    #[test]
    fn sinkhorn_agrees(
        rows in prop::sample::select(vec![0, 1, 2, 9, 16, 17, 33, 130]),
        columns in prop::sample::select(vec![1, 2, 7, 16, 17, 100, 1009]),
        rounds in 0..5usize,
        seed: u64,
    ) {
        sinkhorn([rows, columns], (1.0, 0.05), rounds, seed).agrees(2e-5);
    }

    #[test]
    fn gelu_agrees(rows in prop::sample::select(vec![0, 1, 7, 1031]), columns in width(), seed: u64) {
        gelu(&[rows, columns], seed).agrees(1e-6);
    }

    #[test]
    fn gathered_rows_agree(
        rows in prop::sample::select(vec![0, 1, 2, 33, 1031]),
        height in prop::sample::select(vec![0, 1, 2, 31, 517]),
        columns in prop::sample::select(vec![0, 1, 7, 16, 67]),
        seed: u64,
    ) {
        gather([rows, height, columns], seed).agrees(1e-6);
    }

    #[test]
    fn updates_agree(sizes in prop::collection::vec(prop::sample::select(vec![0, 1, 15, 17, 16_384, 16_385]), 1..5), seed: u64) {
        adamw(&sizes, seed).agrees(1e-6);
        square_sums(&sizes, seed).agrees(1e-5);
        average(&sizes, seed).agrees(1e-6);
    }
}

/// Blocks have 64 rows where they are this wide.
#[test]
fn wide_linear_layers_agree() {
    for (i, form) in forms().into_iter().enumerate() {
        let rows = [1, 63, 64, 65, 127, 129][i % 6];
        linear(form, [rows, 2053, 3], i as u64).agrees(1e-5);
        linear(form, [rows, 3, 2053], i as u64).agrees(1e-5);
    }
}

#[test]
fn the_usual_forms_agree() {
    for case in all().into_iter().chain(large()) {
        case.agrees(2e-5);
    }
}

/// Not of any numbers: where a result is almost zero, roundings decide whether the ReLU lets it through.
#[test]
fn group_norms_agree() {
    let shapes = [
        (1, [1, 1, 1, 2]),
        (3, [3, 2, 1, 5]),
        (1, [7, 2, 4, 4]),
        (7, [7, 9, 4, 4]),
        (4, [8, 3, 7, 7]),
        (2, [4, 2, 56, 55]),
        (32, [64, 2, 9, 9]),
        (2, [4, 0, 3, 3]),
        (2, [4, 3, 0, 3]),
    ];
    for (seed, (groups, shape)) in shapes.into_iter().enumerate() {
        for case in group_norms(groups, shape, seed as u64) {
            case.agrees(1e-5);
        }
    }
}
