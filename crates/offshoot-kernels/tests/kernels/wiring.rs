//! Gradients go to the tensors that are tracked, and to no others.

use burn::tensor::Tensor;
use offshoot_kernels::gemm::recorded;
use offshoot_kernels::{Attention, Linear, SoftTargets, attention, gelu, soft_cross_entropy};

use crate::numbers::{matrix, numbers, values, vector};

const NAMES: [&str; 7] = ["x", "weight", "bias", "scale", "shift", "layer_scale", "residual"];
/// Rows, inputs and outputs.
const SIZE: [usize; 3] = [23, 29, 31];

/// A layer with everything, its tensors tracked where `tracked` says so by their order in [`NAMES`].
fn tensors(tracked: impl Fn(usize) -> bool) -> Vec<Tensor<1>> {
    let [rows, inputs, outputs] = SIZE;
    let sizes = [
        rows * inputs,
        outputs * inputs,
        outputs,
        inputs,
        inputs,
        outputs,
        rows * outputs,
    ];
    let one = |(i, n): (usize, usize)| {
        let x = vector(&numbers(i as u64, n, 1.0)).autodiff();
        if tracked(i) { x.require_grad() } else { x }
    };
    sizes.into_iter().enumerate().map(one).collect()
}

/// The gradients of the tensors, each where there is one, and that of the output.
fn gradients(all: &[Tensor<1>]) -> (Vec<Option<Vec<f32>>>, Vec<f32>) {
    let [rows, inputs, outputs] = SIZE;
    let flat = |i: usize| all[i].clone();
    let output = numbers(50, rows * outputs, 1.0);
    let y = Linear::new(flat(1).reshape([outputs, inputs]))
        .bias(flat(2))
        .layer_norm(flat(3), flat(4), 1e-5)
        .layer_scale(flat(5))
        .residual(flat(6).reshape([rows, outputs]))
        .forward(flat(0).reshape([rows, inputs]));
    let mut gradients = (y * matrix(&output, [rows, outputs]).autodiff()).sum().backward();
    let found = all.iter().map(|t| t.grad_remove(&mut gradients).map(values)).collect();
    (found, output)
}

#[test]
fn only_tracked_parents_of_a_linear_layer_get_gradients_and_the_same_ones() {
    let (full, output) = gradients(&tensors(|_| true));
    assert_eq!(full[6].as_ref(), Some(&output), "a residual's gradient is the output's");
    for (which, name) in NAMES.iter().enumerate() {
        let alone = tensors(|i| i == which);
        let (found, _) = gradients(&alone);
        for (i, found) in found.into_iter().enumerate() {
            let expected = if i == which { full[i].clone() } else { None };
            assert!(found == expected, "{} where only {name} is tracked", NAMES[i]);
        }
        let (found, _) = gradients(&tensors(|i| i != which));
        for (i, found) in found.into_iter().enumerate() {
            let expected = if i == which { None } else { full[i].clone() };
            assert!(
                found == expected,
                "{} where all but {} are tracked",
                NAMES[i],
                NAMES[which]
            );
        }
    }
}

#[test]
fn attention_and_cross_entropy_give_gradients_to_what_is_tracked() {
    let form = Attention {
        sequences: vec![(4, 3)],
        heads: 2,
        kv_heads: 2,
        head_dim: 5,
        causal: false,
    };
    let found = |tracked: [bool; 2]| {
        let leaf = |x: Tensor<1>, tracked| {
            if tracked {
                x.autodiff().require_grad()
            } else {
                x.autodiff()
            }
        };
        let packed = leaf(vector(&numbers(1, 360, 1.0)), tracked[0]);
        let bias = leaf(vector(&numbers(2, 36, 1.0)), tracked[1]);
        let y = attention(
            form.clone(),
            packed.clone().reshape([12, 30]),
            Some(bias.clone().reshape([2, 2, 3, 3])),
        );
        let weight = matrix(&numbers(3, 120, 1.0), [12, 10]).autodiff();
        let mut gradients = (y * weight).sum().backward();
        [packed, bias].map(|t| t.grad_remove(&mut gradients).map(values))
    };
    let full = found([true, true]);
    assert!(full.iter().all(Option::is_some));
    assert_eq!(found([true, false]), [full[0].clone(), None]);
    assert_eq!(found([false, true]), [None, full[1].clone()]);

    // Targets are constants, tracked or not.
    let logits = matrix(&numbers(4, 14, 1.0), [2, 7]).autodiff().require_grad();
    let targets = matrix(&numbers(5, 14, 1.0), [2, 7]).autodiff().require_grad();
    let form = SoftTargets {
        temperature: 0.5,
        rows: vec![vec![Some(1), Some(0)]].into(),
    };
    let mut gradients = soft_cross_entropy(form, logits.clone(), vec![targets.clone()])
        .sum()
        .backward();
    assert!(logits.grad_remove(&mut gradients).is_some());
    assert!(targets.grad_remove(&mut gradients).is_none());
}

/// What is used twice gets the sum of both gradients, and its values stay as they are.
#[test]
fn tensors_that_are_used_twice_keep_their_values() {
    let x = numbers(6, 14, 1.0);
    let logits = matrix(&x, [2, 7]).autodiff().require_grad();
    let form = SoftTargets {
        temperature: 0.5,
        rows: vec![vec![Some(1), Some(0)]].into(),
    };
    let targets = matrix(&numbers(7, 14, 1.0), [2, 7]).autodiff();
    let gradient = |times: usize| {
        let one = || {
            soft_cross_entropy(form.clone(), logits.clone(), vec![targets.clone()]).sum() + gelu(logits.clone()).sum()
        };
        let sum = (1..times).fold(one(), |sum, _| sum + one());
        let mut gradients = sum.backward();
        values(logits.grad_remove(&mut gradients).unwrap())
    };
    let (once, twice) = (gradient(1), gradient(2));
    for (a, b) in once.iter().zip(&twice) {
        assert!((2.0 * a - b).abs() < 1e-6, "{b} is not twice {a}");
    }
    assert_eq!(values(logits.inner()), x);
}

/// The record is the whole process's: no other test here has these sizes, or records.
#[test]
fn products_for_parents_that_are_not_tracked_are_not_made() {
    let [rows, inputs, outputs] = [37, 41, 43];
    let counted = |tracked: [bool; 2]| {
        let leaf = |x: Tensor<2>, tracked| {
            if tracked {
                x.autodiff().require_grad()
            } else {
                x.autodiff()
            }
        };
        let x = leaf(matrix(&numbers(1, rows * inputs, 1.0), [rows, inputs]), tracked[0]);
        let weight = leaf(
            matrix(&numbers(2, outputs * inputs, 1.0), [outputs, inputs]),
            tracked[1],
        );
        let (_, counts) = recorded(|| Linear::new(weight).gelu().forward(x).sum().backward());
        let of = |size: (usize, usize, usize)| {
            counts
                .iter()
                .filter(|(p, _)| p.size == size)
                .map(|(_, n)| n)
                .sum::<usize>()
        };
        [
            (rows, inputs, outputs),
            (rows, outputs, inputs),
            (outputs, rows, inputs),
        ]
        .map(of)
    };
    assert_eq!(counted([true, true]), [1, 1, 1]);
    assert_eq!(counted([true, false]), [1, 1, 0]);
    assert_eq!(counted([false, true]), [1, 0, 1]);
}
