//! The operations once more, in float64 and in loops that follow their definitions.

use offshoot_kernels::{Attention, Entry, Form, GroupNorm, Rotary, SoftTargets};

/// `phi(x)`, the density of the normal distribution.
fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// `Phi(x)`: `1/2 + phi(x) (x + x^3 / 3 + x^5 / (3 5) + ...)` (Abramowitz and Stegun 26.2.11).
fn distribution(x: f64) -> f64 {
    let (mut term, mut sum, mut k) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        k += 2.0;
        term *= x * x / k;
        sum += term;
    }
    0.5 + density(x) * sum
}

pub(crate) fn gelu(x: f64) -> f64 {
    x * distribution(x)
}

/// With the constants of transformers' `gelu_new`.
fn gelu_tanh(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + u.tanh())
}

/// A row as the product of a linear layer sees it.
fn entered(form: Form, x: &[f64], scale: &[f64], shift: &[f64]) -> Vec<f64> {
    let n = x.len() as f64;
    let (mean, epsilon) = match form.entry {
        Entry::Plain => return x.to_vec(),
        Entry::Gelu => return x.iter().map(|&x| gelu(x)).collect(),
        Entry::GeluTanh => return x.iter().map(|&x| gelu_tanh(x)).collect(),
        Entry::SwiGlu => {
            let (gate, up) = x.split_at(x.len() / 2);
            let one = |(gate, up): (&f64, &f64)| gate / (1.0 + (-gate).exp()) * up;
            return gate.iter().zip(up).map(one).collect();
        }
        Entry::LayerNorm { epsilon } => (x.iter().sum::<f64>() / n, epsilon),
        Entry::RmsNorm { epsilon } => (0.0, epsilon),
    };
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    let normal = x.iter().map(|x| (x - mean) / (variance + epsilon).sqrt());
    let shift = shift.iter().copied().chain(std::iter::repeat(0.0));
    normal
        .zip(scale)
        .zip(shift)
        .map(|((x, scale), shift)| x * scale + shift)
        .collect()
}

/// Sizes of the tensors of a linear layer, in their order.
pub(crate) fn linear_sizes(form: Form, [rows, inputs, outputs]: [usize; 3]) -> Vec<usize> {
    let norm = match form.entry {
        Entry::Plain | Entry::Gelu | Entry::GeluTanh | Entry::SwiGlu => 0,
        Entry::RmsNorm { .. } => 1,
        Entry::LayerNorm { .. } => 2,
    };
    let branches = if form.entry == Entry::SwiGlu { 2 } else { 1 };
    let mut sizes = vec![rows * branches * inputs, outputs * inputs];
    sizes.extend(form.bias.then_some(outputs));
    sizes.extend(vec![inputs; norm]);
    sizes.extend(form.layer_scale.then_some(outputs));
    sizes.extend(form.residual.then_some(rows * outputs));
    sizes
}

pub(crate) fn linear(form: Form, [rows, inputs, outputs]: [usize; 3], tensors: &[Vec<f64>]) -> Vec<f64> {
    let mut rest = tensors[2..].iter();
    let mut next = |there: bool| if there { rest.next().unwrap().as_slice() } else { &[] };
    let bias = next(form.bias);
    let scale = next(matches!(form.entry, Entry::LayerNorm { .. } | Entry::RmsNorm { .. }));
    let shift = next(matches!(form.entry, Entry::LayerNorm { .. }));
    let layer_scale = next(form.layer_scale);
    let residual = next(form.residual);
    let mut all = Vec::new();
    for r in 0..rows {
        let width = tensors[0].len() / rows;
        let x = entered(form, &tensors[0][r * width..][..width], scale, shift);
        for o in 0..outputs {
            let mut y: f64 = x.iter().zip(&tensors[1][o * inputs..]).map(|(x, w)| x * w).sum();
            y += bias.get(o).unwrap_or(&0.0);
            y *= layer_scale.get(o).unwrap_or(&1.0);
            all.push(y + residual.get(r * outputs + o).unwrap_or(&0.0));
        }
    }
    all
}

pub(crate) fn softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - most).exp()).sum();
    x.iter().map(|x| (x - most).exp() / sum).collect()
}

pub(crate) fn attention(form: &Attention, tensors: &[Vec<f64>]) -> Vec<f64> {
    let (heads, dim) = (form.heads, form.head_dim);
    let width = (heads + 2 * form.kv_heads) * dim;
    let part = |row: usize, slot: usize| &tensors[0][row * width + slot * dim..][..dim];
    let (mut first, mut number) = (0, 0);
    let mut all = Vec::new();
    for &(count, tokens) in &form.sequences {
        for _ in 0..count {
            for query in 0..tokens {
                for head in 0..heads {
                    let kv = head / (heads / form.kv_heads);
                    let seen = if form.causal { query + 1 } else { tokens };
                    let score = |key: usize| {
                        let (q, k) = (part(first + query, head), part(first + key, heads + kv));
                        let product: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                        let bias = tensors.get(1).map_or(0.0, |bias| {
                            let group = number % (bias.len() / (heads * tokens * tokens));
                            bias[((group * heads + head) * tokens + query) * tokens + key]
                        });
                        product / (dim as f64).sqrt() + bias
                    };
                    let p = softmax(&(0..seen).map(score).collect::<Vec<_>>());
                    for d in 0..dim {
                        let value = |key: usize| part(first + key, heads + form.kv_heads + kv)[d];
                        all.push((0..seen).map(|key| p[key] * value(key)).sum());
                    }
                }
            }
            first += tokens;
            number += 1;
        }
    }
    all
}

/// As in transformers' Llama: `x * cos + rotate_half(x) * sin`, where the halves of a head change places and the second one its
/// sign, and each half has the same angles.
pub(crate) fn rotary(form: &Rotary, x: &[f64]) -> Vec<f64> {
    let (dim, half) = (form.head_dim, form.head_dim / 2);
    let width = (form.heads + 2 * form.kv_heads) * dim;
    let runs = form.sequences.iter();
    let tokens: Vec<usize> = runs
        .flat_map(|&(count, tokens)| (0..count).flat_map(move |_| 0..tokens))
        .collect();
    let element = |at: usize| {
        let (row, i) = (at / width, at % width % dim);
        if at % width / dim >= form.heads + form.kv_heads {
            return x[at];
        }
        let position = (form.first + tokens[row]) as f64;
        let angle = position * f64::from(form.frequencies[i % half]);
        let other = if i < half { -x[at + half] } else { x[at - half] };
        x[at] * angle.cos() + other * angle.sin()
    };
    (0..x.len()).map(element).collect()
}

/// Of the logits and, after them, the targets of each set.
pub(crate) fn soft_cross_entropy(form: &SoftTargets, columns: usize, tensors: &[Vec<f64>]) -> Vec<f64> {
    let mut all = Vec::new();
    for (asked, targets) in form.rows.iter().zip(&tensors[1..]) {
        for (row, logits) in asked.iter().zip(tensors[0].chunks_exact(columns)) {
            let scaled: Vec<f64> = logits.iter().map(|x| x / form.temperature).collect();
            let most = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let normaliser = most + scaled.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
            all.push(row.map_or(0.0, |row| {
                let targets = &targets[row as usize * columns..][..columns];
                targets.iter().zip(&scaled).map(|(t, x)| t * (normaliser - x)).sum()
            }));
        }
    }
    all
}

/// `ln sum exp` of some numbers.
fn log_sum(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = x.clone().fold(f64::NEG_INFINITY, f64::max);
    most + x.map(|x| (x - most).exp()).sum::<f64>().ln()
}

/// On logarithms: in float64 too the exponentials of logits far apart do not exist.
pub(crate) fn sinkhorn(logits: &[f64], columns: usize, temperature: f64, rounds: usize) -> Vec<f64> {
    let mut q: Vec<f64> = logits.iter().map(|x| x / temperature).collect();
    for _ in 0..rounds {
        for k in 0..columns {
            let sum = log_sum(q[k..].iter().step_by(columns).copied());
            q[k..].iter_mut().step_by(columns).for_each(|q| *q -= sum);
        }
        for row in q.chunks_exact_mut(columns) {
            let sum = log_sum(row.iter().copied());
            row.iter_mut().for_each(|q| *q -= sum);
        }
    }
    q.into_iter().map(f64::exp).collect()
}

/// Rows of a matrix as they are asked for, zeros where none is.
pub(crate) fn gathered(sources: &[Option<u32>], width: usize, x: &[f64]) -> Vec<f64> {
    let element = |at: usize| sources[at / width].map_or(0.0, |source| x[source as usize * width + at % width]);
    (0..sources.len() * width).map(element).collect()
}

/// GroupNorm of images of `[channels, batch, height, width]`, scale, shift and maybe a residual.
pub(crate) fn group_norm(form: GroupNorm, shape: [usize; 4], tensors: &[Vec<f64>]) -> Vec<f64> {
    let [channels, images, height, width] = shape;
    let plane = height * width;
    let together = channels / form.groups;
    let x = &tensors[0];
    let element = |at: usize| {
        let (channel, image) = (at / plane / images, at / plane % images);
        let first = channel / together * together;
        let places =
            (first..first + together).flat_map(|c| (c * images + image) * plane..(c * images + image + 1) * plane);
        let group: Vec<f64> = places.map(|place| x[place]).collect();
        let n = group.len() as f64;
        let mean = group.iter().sum::<f64>() / n;
        let variance = group.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        let normal = (x[at] - mean) / (variance + form.epsilon).sqrt();
        let residual = tensors.get(3).map_or(0.0, |residual| residual[at]);
        let sum = normal * tensors[1][channel] + tensors[2][channel] + residual;
        if form.relu { sum.max(0.0) } else { sum }
    };
    (0..x.len()).map(element).collect()
}
