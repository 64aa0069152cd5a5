//! Results and gradients against float64 and its central differences.

use burn::tensor::Tensor;
use offshoot_kernels::{
    Attention, Entry, Form, GroupNorm, Linear, Mix, Rotary, Rows, SoftTargets, attention, gather_rows, gelu,
    group_norm, mix, mix_gradients, mixed_on_host, rotary, soft_cross_entropy,
};

use crate::numbers::{matrix, near, numbers, values, vector, wide};
use crate::reference;

/// Of the largest element of a result, and of the largest element of a gradient.
const TOLERANCE: f64 = 5e-6;

/// Half the distance of the two points of a central difference.
const STEP: f64 = 1e-5;

/// Fails unless `ours` gives what `exact` does on the same inputs, and the sum of its elements, each times a number of its own,
/// has the same gradient for the first `tracked` inputs.
fn check<const D: usize>(
    what: &str,
    inputs: &[Vec<f32>],
    tracked: usize,
    ours: impl Fn(Vec<Tensor<1>>) -> Tensor<D>,
    exact: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let leaf = |x: &Vec<f32>| vector(x).autodiff();
    let leaves: Vec<_> = inputs[..tracked].iter().map(|x| leaf(x).require_grad()).collect();
    let constants = inputs[tracked..].iter().map(leaf);
    let y = ours(leaves.iter().cloned().chain(constants).collect());
    let mut wide_inputs: Vec<Vec<f64>> = inputs.iter().map(|x| wide(x)).collect();
    near(&values(y.clone().inner()), &exact(&wide_inputs), TOLERANCE, what);

    let weights = numbers(99, y.shape().num_elements(), 1.0);
    let weighted = y.clone() * vector(&weights).reshape(y.shape()).autodiff();
    let mut gradients = weighted.sum().backward();
    let weights = wide(&weights);
    let objective = |inputs: &[Vec<f64>]| exact(inputs).iter().zip(&weights).map(|(y, w)| y * w).sum::<f64>();
    for (i, leaf) in leaves.into_iter().enumerate() {
        let found = values(leaf.grad_remove(&mut gradients).unwrap());
        let mut expected = Vec::new();
        for e in 0..wide_inputs[i].len() {
            let middle = wide_inputs[i][e];
            let [up, down] = [STEP, -STEP].map(|step| {
                wide_inputs[i][e] = middle + step;
                objective(&wide_inputs)
            });
            wide_inputs[i][e] = middle;
            expected.push((up - down) / (2.0 * STEP));
        }
        near(&found, &expected, TOLERANCE, &format!("{what}, gradient of input {i}"));
    }
}

/// A linear layer of flat tensors in the order of its form.
fn layer(form: Form, [rows, inputs, outputs]: [usize; 3], tensors: Vec<Tensor<1>>) -> Tensor<2> {
    let mut tensors = tensors.into_iter();
    let mut next = || tensors.next().unwrap();
    let branches = if form.entry == Entry::SwiGlu { 2 } else { 1 };
    let x = next().reshape([rows, branches * inputs]);
    let mut layer = Linear::new(next().reshape([outputs, inputs]));
    if form.bias {
        layer = layer.bias(next());
    }
    layer = match form.entry {
        Entry::Plain => layer,
        Entry::Gelu => layer.gelu(),
        Entry::GeluTanh => layer.gelu_tanh(),
        Entry::SwiGlu => layer.swiglu(),
        Entry::LayerNorm { epsilon } => layer.layer_norm(next(), next(), epsilon),
        Entry::RmsNorm { epsilon } => layer.rms_norm(next(), epsilon),
    };
    if form.layer_scale {
        layer = layer.layer_scale(next());
    }
    if form.residual {
        layer = layer.residual(next().reshape([rows, outputs]));
    }
    layer.forward(x)
}

#[test]
fn linear_layers_of_every_form_have_the_gradients_of_their_definition() {
    let epsilon = 1e-5;
    for entry in [
        Entry::Plain,
        Entry::Gelu,
        Entry::GeluTanh,
        Entry::SwiGlu,
        Entry::LayerNorm { epsilon },
        Entry::RmsNorm { epsilon },
    ] {
        for extras in 0..8 {
            let form = Form {
                entry,
                bias: extras & 1 != 0,
                layer_scale: extras & 2 != 0,
                residual: extras & 4 != 0,
            };
            let sizes = [[5, 7, 3], [3, 19, 17], [1, 3, 1]];
            for size in sizes {
                let inputs = reference::linear_sizes(form, size);
                let inputs: Vec<_> = inputs
                    .into_iter()
                    .enumerate()
                    .map(|(i, n)| numbers(i as u64, n, 1.5))
                    .collect();
                let tracked = inputs.len();
                let ours = |tensors| layer(form, size, tensors);
                let exact = |tensors: &[Vec<f64>]| reference::linear(form, size, tensors);
                check(&format!("{form:?} of {size:?}"), &inputs, tracked, ours, exact);
            }
        }
    }
}

fn attention_is_exact(form: &Attention, groups: usize) {
    let width = (form.heads + 2 * form.kv_heads) * form.head_dim;
    let rows = form.sequences.iter().map(|(count, tokens)| count * tokens).sum();
    let tokens = form.sequences[0].1;
    let bias = [groups, form.heads, tokens, tokens];
    let mut inputs = vec![numbers(1, rows * width, 1.5)];
    if groups > 0 {
        inputs.push(numbers(2, bias.iter().product(), 1.5));
    }
    let tracked = inputs.len();
    let ours = |mut tensors: Vec<Tensor<1>>| {
        let bias = (groups > 0).then(|| tensors.remove(1).reshape(bias));
        attention(form.clone(), tensors.remove(0).reshape([rows, width]), bias)
    };
    let exact = |tensors: &[Vec<f64>]| reference::attention(form, tensors);
    check(&format!("{form:?} with {groups} biases"), &inputs, tracked, ours, exact);
}

#[test]
fn attention_has_the_gradients_of_its_definition() {
    for causal in [false, true] {
        for (heads, kv_heads, head_dim) in [(1, 1, 1), (2, 2, 5), (4, 2, 3), (3, 1, 2), (1, 1, 17)] {
            let form = |sequences| Attention {
                sequences,
                heads,
                kv_heads,
                head_dim,
                causal,
            };
            attention_is_exact(&form(vec![(2, 3), (1, 5), (2, 1)]), 0);
            attention_is_exact(&form(vec![(4, 3)]), 1);
            attention_is_exact(&form(vec![(4, 3)]), 2);
        }
    }
}

/// Queries of two blocks of 96, at a few of their numbers: a difference for each would take minutes.
#[test]
fn long_sequences_have_the_results_of_their_definition() {
    for causal in [false, true] {
        let form = Attention {
            sequences: vec![(1, 97), (1, 193)],
            heads: 2,
            kv_heads: 1,
            head_dim: 7,
            causal,
        };
        let packed = numbers(3, 290 * 28, 1.5);
        let ours = values(attention(form.clone(), matrix(&packed, [290, 28]), None));
        near(
            &ours,
            &reference::attention(&form, &[wide(&packed)]),
            TOLERANCE,
            "long sequences",
        );
    }
}

#[test]
fn rotary_positions_have_the_gradients_of_their_definition() {
    for (heads, kv_heads, head_dim) in [(1, 1, 2), (3, 2, 8), (2, 1, 34)] {
        let form = Rotary {
            sequences: vec![(2, 3), (1, 5), (2, 1)],
            heads,
            kv_heads,
            head_dim,
            first: 7,
            frequencies: (0..head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect(),
        };
        let width = (heads + 2 * kv_heads) * head_dim;
        let ours = |mut tensors: Vec<Tensor<1>>| rotary(form.clone(), tensors.remove(0).reshape([13, width]));
        let exact = |tensors: &[Vec<f64>]| reference::rotary(&form, &tensors[0]);
        let inputs = [numbers(1, 13 * width, 1.5)];
        check(&format!("{form:?}"), &inputs, 1, ours, exact);
    }
}

#[test]
fn cross_entropy_has_the_gradient_of_its_definition() {
    let first = vec![Some(2), None, Some(0), Some(1), None];
    let second = vec![None, None, Some(1), Some(1), Some(0)];
    for columns in [1, 7, 33] {
        for temperature in [0.1, 1.0] {
            for sets in [1, 2] {
                let form = SoftTargets {
                    temperature,
                    rows: [first.clone(), second.clone()][..sets].into(),
                };
                let mut inputs = vec![numbers(1, 5 * columns, 1.0)];
                let positive = |seed| numbers(seed, 3 * columns, 1.0).iter().map(|x| x.abs()).collect();
                inputs.extend((0..sets).map(|s| positive(2 + s as u64)));
                let ours = |tensors: Vec<Tensor<1>>| {
                    let mut all = tensors.into_iter().map(|t| {
                        let rows = t.shape().num_elements() / columns;
                        t.reshape([rows, columns])
                    });
                    soft_cross_entropy(form.clone(), all.next().unwrap(), all.collect())
                };
                let exact = |tensors: &[Vec<f64>]| reference::soft_cross_entropy(&form, columns, tensors);
                // Of one column the loss is zero, and so is its gradient but for roundings.
                if columns > 1 {
                    check(
                        &format!("{columns} columns, {sets} sets at {temperature}"),
                        &inputs,
                        1,
                        ours,
                        exact,
                    );
                } else {
                    let tensors = inputs.iter().map(|x| vector(x)).collect();
                    assert!(values(ours(tensors)).iter().all(|loss| loss.abs() < 1e-6));
                }
            }
        }
    }
}

#[test]
fn gelu_has_the_gradient_of_its_definition() {
    let x = numbers(1, 203, 6.0);
    let exact = |tensors: &[Vec<f64>]| tensors[0].iter().map(|&x| reference::gelu(x)).collect();
    check("GELU", &[x], 1, |mut tensors| gelu(tensors.remove(0)), exact);
}

#[test]
fn gathered_rows_have_the_gradients_of_their_definition() {
    // Out of order, twice, three times in a row, never, and from nowhere.
    let sources = vec![
        Some(3),
        None,
        Some(0),
        Some(3),
        Some(5),
        Some(5),
        Some(5),
        None,
        Some(1),
    ];
    for width in [1, 7, 16, 37] {
        let rows = Rows::from(sources.clone());
        let ours = |mut tensors: Vec<Tensor<1>>| gather_rows(tensors.remove(0).reshape([7, width]), rows.clone());
        let exact = |tensors: &[Vec<f64>]| reference::gathered(&sources, width, &tensors[0]);
        let inputs = [numbers(4, 7 * width, 1.0)];
        // Twice by the same rows: the second gradient finds the way back there.
        for time in 1..3 {
            check(&format!("rows of {width}, time {time}"), &inputs, 1, ours, exact);
        }
    }
}

#[test]
#[should_panic(expected = "row 7 of a matrix with 7 rows")]
fn a_row_outside_the_matrix_is_refused() {
    gather_rows(matrix(&[0.0; 14], [7, 2]), vec![Some(6), None, Some(7)]);
}

#[test]
fn group_norms_have_the_gradients_of_their_definition() {
    for (groups, shape) in [
        (1, [3, 2, 2, 3]),
        (2, [4, 2, 3, 3]),
        (6, [6, 1, 1, 5]),
        (2, [6, 2, 4, 5]),
        (2, [8, 5, 1, 1]),
    ] {
        for (relu, residual) in [(false, false), (true, false), (true, true), (false, true)] {
            let epsilon = 1e-5;
            let form = GroupNorm { groups, epsilon, relu };
            let size = shape.iter().product();
            let mut inputs = vec![
                numbers(1, size, 1.5),
                numbers(2, shape[0], 1.5),
                numbers(3, shape[0], 1.0),
            ];
            inputs.extend(residual.then(|| numbers(4, size, 1.0)));
            let ours = |tensors: Vec<Tensor<1>>| {
                let mut all = tensors.into_iter();
                let mut next = || all.next().unwrap();
                let (x, scale, shift) = (next().reshape(shape), next(), next());
                group_norm(
                    form,
                    x,
                    scale,
                    shift,
                    all.next().map(|residual| residual.reshape(shape)),
                )
            };
            let exact = |tensors: &[Vec<f64>]| reference::group_norm(form, shape, tensors);
            let what = format!("{form:?} of {shape:?}, residual {residual}");
            check(&what, &inputs, inputs.len(), ours, exact);
        }
    }
}

/// Statistics of numbers that are far from zero and close together lose no digits to their size.
#[test]
fn group_norm_of_numbers_far_from_zero_keeps_what_digits_they_have() {
    let shape = [2, 1, 57, 61];
    let size = shape.iter().product();
    let x: Vec<f32> = numbers(5, size, 1.0).iter().map(|x| x + 1000.0).collect();
    let form = GroupNorm {
        groups: 1,
        epsilon: 1e-5,
        relu: false,
    };
    let (scale, shift) = ([1.0, 2.0], [0.5, 0.0]);
    let ours = group_norm(form, vector(&x).reshape(shape), vector(&scale), vector(&shift), None);
    let exact = reference::group_norm(form, shape, &[wide(&x), wide(&scale), wide(&shift)]);
    near(&values(ours), &exact, 1e-4, "numbers around 1000");
}

#[test]
#[should_panic(expected = "6 channels in 4 groups")]
fn groups_of_unequal_size_are_refused() {
    let form = GroupNorm {
        groups: 4,
        epsilon: 1e-5,
        relu: true,
    };
    let ones = || vector(&[1.0; 6]);
    group_norm(form, ones().reshape([6, 1, 1, 1]), ones(), ones(), None);
}

#[test]
fn mixes_are_sums_of_slices_and_have_their_gradients() {
    for (experts, slices, sections, section) in [(1, 1, 1, 5), (2, 3, 1, 7), (3, 2, 2, 19)] {
        let form = Mix {
            experts,
            slices,
            sections,
        };
        let matrix = sections * section;
        let inputs = [
            numbers(1, experts * sections * slices, 1.0),
            numbers(2, slices * matrix, 1.0),
        ];
        let ours = |mut tensors: Vec<Tensor<1>>| mix(form, tensors.remove(0), tensors.remove(0));
        let exact = |tensors: &[Vec<f64>]| {
            let element = |i: usize| {
                let (expert, at) = (i / matrix, i % matrix);
                let c = |r: usize| tensors[0][(expert * sections + at / section) * slices + r];
                (0..slices).map(|r| c(r) * tensors[1][r * matrix + at]).sum::<f64>()
            };
            (0..experts * matrix).map(element).collect()
        };
        check(&format!("{form:?}"), &inputs, 2, ours, exact);
    }
}

/// The unit oracle of the method's description: two experts of two slices (h = m = k = d = 2).
#[test]
fn a_mix_of_two_slices_is_the_one_worked_out_by_hand() {
    let form = |experts| Mix {
        experts,
        slices: 2,
        sections: 1,
    };
    let slices = [1.0, 2.0, 3.0, 4.0, 0.0, 1.0, 1.0, 0.0];
    let both = mixed_on_host(form(2), &[2.0, -2.0, -0.5, 1.0], &slices);
    assert_eq!(both, [2.0, 2.0, 4.0, 8.0, -0.5, 0.0, -0.5, -2.0]);
    let identity = vector(&[1.0, 0.0, 0.0, 1.0]);
    let found = mix_gradients(form(1), vector(&[2.0, -2.0]), vector(&slices), identity);
    let [coefficients, slices] = found.map(values);
    assert_eq!(coefficients, [5.0, 0.0]);
    assert_eq!(slices, [2.0, 0.0, 0.0, 2.0, -2.0, 0.0, 0.0, -2.0]);
}
