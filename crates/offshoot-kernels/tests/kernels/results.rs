//! Results of operations that have no gradient, against float64.

use offshoot_kernels::{AdamStep, adamw, average, sinkhorn, square_sums, tempered_softmax};

use crate::numbers::{matrix, near, numbers, values, vector, wide};
use crate::reference;

#[test]
fn softmax_is_exact_over_long_rows_too() {
    for (rows, columns) in [(1, 1), (3, 7), (5, 1009), (2, 17_000)] {
        for temperature in [0.04, 1.0] {
            let logits = numbers(1, rows * columns, 1.0);
            let ours = values(tempered_softmax(matrix(&logits, [rows, columns]), temperature));
            let scaled: Vec<f64> = wide(&logits).iter().map(|x| x / temperature).collect();
            let exact: Vec<f64> = scaled.chunks_exact(columns).flat_map(reference::softmax).collect();
            near(&ours, &exact, 3e-6, &format!("{rows} x {columns} at {temperature}"));
        }
    }
}

#[test]
fn sinkhorn_is_exact_for_logits_far_apart_too() {
    for (rows, columns) in [(1, 1), (1, 7), (7, 1), (3, 5), (17, 33), (64, 257)] {
        for rounds in 1..=4 {
            // The exponents of the last go up to 300, of which a float has 1.5e-5 left.
            for (range, temperature, tolerance) in [
                (1.0, 0.04, 2e-5),
                (1.0, 1.0, 2e-6),
                (4.0, 0.04, 5e-5),
                (12.0, 0.04, 1e-4),
            ] {
                let logits = numbers(rounds as u64, rows * columns, range);
                let ours = values(sinkhorn(matrix(&logits, [rows, columns]), temperature, rounds));
                let exact = reference::sinkhorn(&wide(&logits), columns, temperature, rounds);
                let what = format!("{rounds} rounds of {rows} x {columns}, +-{range} at {temperature}");
                near(&ours, &exact, tolerance, &what);
                for row in ours.chunks_exact(columns) {
                    assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-4, "{what}: a row sums to 1");
                }
            }
        }
    }
}

#[test]
fn updates_are_those_of_their_definitions() {
    let (n, beta1, beta2, scale, keep, rate, root, epsilon) = (1003, 0.9, 0.99, 0.5, 0.98, 0.01, 3.0, 1e-8);
    let [w, m, g] = [1, 2, 3].map(|seed| numbers(seed, n, 1.0));
    let v: Vec<f32> = numbers(4, n, 1.0).iter().map(|x| x * x).collect();
    let step = AdamStep {
        beta1,
        beta2,
        gradient_scale: scale as f32,
        keep: keep as f32,
        rate: rate as f32,
        root_correction: root as f32,
        epsilon: epsilon as f32,
    };
    let still = AdamStep { rate: 0.0, ..step };
    let twice = |x: &[f32]| vec![vector(x), vector(x)];
    let [weights, firsts, seconds] = adamw(vec![step, still], twice(&w), [twice(&m), twice(&v)], twice(&g));
    let mut exact = [Vec::new(), Vec::new(), Vec::new()];
    for i in 0..n {
        let [w, m, v, g] = [w[i], m[i], v[i], g[i]].map(f64::from);
        let g = g * scale;
        let m = beta1 * m + (1.0 - beta1) * g;
        let v = beta2 * v + (1.0 - beta2) * g * g;
        exact[0].push(keep * w - rate * m / (root * v.sqrt() + epsilon));
        exact[1].push(m);
        exact[2].push(v);
    }
    let updated = [weights, firsts, seconds].map(|pair| pair.into_iter().map(values).collect::<Vec<_>>());
    for (updated, exact) in updated.iter().zip(&exact) {
        near(&updated[0], exact, 1e-6, "AdamW");
    }
    assert_eq!(updated[0][1], w, "a rate of zero leaves the weight");
    near(&updated[1][1], &exact[1], 1e-6, "its first moment");
    near(&updated[2][1], &exact[2], 1e-6, "its second moment");

    let sums = values(square_sums(vec![vector(&w), vector(&v), vector(&[])]));
    let exact = [&w, &v].map(|x| wide(x).iter().map(|x| x * x).sum::<f64>());
    near(&sums, &[exact[0], exact[1], 0.0], 1e-6, "sums of squares");

    let averages = average(0.99, vec![vector(&w), vector(&m)], vec![vector(&g), vector(&v)]);
    for (ours, (a, b)) in averages.into_iter().zip([(&w, &g), (&m, &v)]) {
        let exact: Vec<f64> = wide(a).iter().zip(wide(b)).map(|(a, b)| 0.99 * a + 0.01 * b).collect();
        near(&values(ours), &exact, 1e-6, "average");
    }
}
