//! A second vision transformer in plain f64 loops: it runs a sub-network by scaling inputs and indexing the parent's weights,
//! where the zoo folds the gains into the weights of an ordinary network.

use std::collections::BTreeMap;

use offshoot_family::Vit;
use offshoot_zoo::Weights;

pub(crate) struct Reference {
    pub(crate) vit: Vit,
    pub(crate) weights: BTreeMap<String, Vec<f64>>,
}

/// What one forward pass is run on.
pub(crate) struct Input<'a> {
    /// `[batch, channels, side, side]`.
    pub(crate) images: &'a [f32],
    pub(crate) batch: usize,
    pub(crate) side: usize,
    /// `[batch, patches]`.
    pub(crate) masks: Option<&'a [bool]>,
    /// The images of each residual branch, as stochastic depth draws them.
    pub(crate) subsets: &'a dyn Fn(usize) -> Option<Vec<usize>>,
}

impl Reference {
    pub(crate) fn new(vit: &Vit, weights: &Weights) -> Self {
        let weights = weights
            .iter()
            .map(|(n, w)| (n.into(), w.values().into_iter().map(f64::from).collect()))
            .collect();
        Self {
            vit: vit.clone(),
            weights,
        }
    }

    fn w(&self, name: &str) -> &[f64] {
        &self.weights[name]
    }

    /// `y[o] = sum_i alpha * x[i] * W[rows[o], i] + b[rows[o]]`, with `W` of `of` columns.
    fn linear(&self, name: &str, x: &[f64], alpha: f64, rows: &[usize], of: usize) -> Vec<f64> {
        let (matrix, bias) = (self.w(&format!("{name}.weight")), self.w(&format!("{name}.bias")));
        let row = |r: usize| {
            x.iter()
                .enumerate()
                .map(|(i, v)| alpha * v * matrix[r * of + i])
                .sum::<f64>()
                + bias[r]
        };
        rows.iter().map(|&r| row(r)).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (gamma, beta) = (self.w(&format!("{name}.weight")), self.w(&format!("{name}.bias")));
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let scale = (variance + self.vit.norm_eps).sqrt().recip();
        x.iter()
            .enumerate()
            .map(|(i, v)| (v - mean) * scale * gamma[i] + beta[i])
            .collect()
    }

    /// The position of patch `(y, x)` of a grid of `side`, channel `c`: sixteen taps of cubic convolution, a = -0.75.
    fn position(&self, side: usize, (y, x): (usize, usize), c: usize) -> f64 {
        let (n, width) = (self.vit.grid(), self.vit.width);
        let at = |row: usize, col: usize| self.w("pos_embed")[(1 + row * n + col) * width + c];
        if side == n {
            return at(y, x);
        }
        let cubic = |t: f64| {
            let (a, t) = (-0.75, t.abs());
            if t <= 1.0 {
                (a + 2.0) * t.powi(3) - (a + 3.0) * t.powi(2) + 1.0
            } else if t < 2.0 {
                a * t.powi(3) - 5.0 * a * t.powi(2) + 8.0 * a * t - 4.0 * a
            } else {
                0.0
            }
        };
        let source = |o: usize| (o as f64 + 0.5) * n as f64 / (side as f64 + self.vit.position_offset) - 0.5;
        let (sy, sx) = (source(y), source(x));
        let clamp = |i: i64| i.clamp(0, n as i64 - 1) as usize;
        let mut sum = 0.0;
        for i in sy.floor() as i64 - 1..=sy.floor() as i64 + 2 {
            for j in sx.floor() as i64 - 1..=sx.floor() as i64 + 2 {
                sum += cubic(sy - i as f64) * cubic(sx - j as f64) * at(clamp(i), clamp(j));
            }
        }
        sum
    }

    fn embed(&self, image: &[f32], side: usize, mask: Option<&[bool]>, width: usize) -> Vec<Vec<f64>> {
        let Vit { patch, channels, .. } = self.vit;
        let grid = side / patch;
        let (kernel, bias) = (self.w("patch_embed.proj.weight"), self.w("patch_embed.proj.bias"));
        let all = self.vit.width;
        let mut tokens = vec![
            (0..width)
                .map(|d| self.w("cls_token")[d] + self.w("pos_embed")[d])
                .collect::<Vec<f64>>(),
        ];
        for (gy, gx) in (0..grid * grid).map(|p| (p / grid, p % grid)) {
            let embedding = |d: usize| {
                if mask.is_some_and(|m| m[gy * grid + gx]) {
                    return self.w("mask_token")[d];
                }
                let mut sum = bias[d];
                for (c, i, j) in triples(channels, patch, patch) {
                    let pixel = image[(c * side + gy * patch + i) * side + gx * patch + j];
                    sum += f64::from(pixel) * kernel[((d * channels + c) * patch + i) * patch + j];
                }
                sum
            };
            tokens.push(
                (0..width)
                    .map(|d| embedding(d) + self.position(grid, (gy, gx), d))
                    .collect(),
            );
        }
        assert!(width <= all);
        tokens
    }

    fn attention(&self, block: &str, x: &[Vec<f64>], alpha: f64, width: usize) -> Vec<Vec<f64>> {
        let (all, head_dim) = (self.vit.width, self.vit.head_dim);
        let part = |g: usize| -> Vec<Vec<f64>> {
            let rows: Vec<usize> = (0..width).map(|r| g * all + r).collect();
            x.iter()
                .map(|x| self.linear(&format!("{block}.attn.qkv"), x, alpha, &rows, all))
                .collect()
        };
        let [q, k, v] = [0, 1, 2].map(part);
        let mut mixed = vec![vec![0.0; width]; x.len()];
        for head in (0..width).step_by(head_dim) {
            let channels = head..head + head_dim;
            for (i, row) in mixed.iter_mut().enumerate() {
                let score =
                    |j: usize| channels.clone().map(|c| q[i][c] * k[j][c]).sum::<f64>() / (head_dim as f64).sqrt();
                let scores: Vec<f64> = (0..x.len()).map(|j| score(j).exp()).collect();
                let total: f64 = scores.iter().sum();
                for c in channels.clone() {
                    row[c] = scores.iter().zip(&v).map(|(s, v)| s / total * v[c]).sum();
                }
            }
        }
        let rows: Vec<usize> = (0..width).collect();
        mixed
            .iter()
            .map(|x| self.linear(&format!("{block}.attn.proj"), x, alpha, &rows, all))
            .collect()
    }

    fn feed_forward(&self, block: &str, x: &[Vec<f64>], alpha: f64, width: usize) -> Vec<Vec<f64>> {
        let (all, ratio) = (self.vit.width, self.vit.mlp_ratio);
        let (hidden, rows): (Vec<usize>, Vec<usize>) = ((0..width * ratio).collect(), (0..width).collect());
        let layer = |x: &Vec<f64>| {
            let h = self.linear(&format!("{block}.mlp.fc1"), x, alpha, &hidden, all);
            let h: Vec<f64> = h.into_iter().map(|v| 0.5 * v * (1.0 + erf(v / 2f64.sqrt()))).collect();
            self.linear(&format!("{block}.mlp.fc2"), &h, alpha, &rows, all * ratio)
        };
        x.iter().map(layer).collect()
    }

    /// `[batch, 1 + patches, width]`: the class token and the patches after the last norm.
    pub(crate) fn forward(&self, (width, depth): (usize, usize), input: &Input<'_>) -> Vec<f64> {
        let alpha = self.vit.width as f64 / width as f64;
        let one = input.images.len() / input.batch;
        let patches = (input.side / self.vit.patch).pow(2);
        let mut tokens: Vec<Vec<Vec<f64>>> = (0..input.batch)
            .map(|b| {
                let mask = input.masks.map(|m| &m[b * patches..(b + 1) * patches]);
                self.embed(&input.images[b * one..(b + 1) * one], input.side, mask, width)
            })
            .collect();
        for j in 0..depth {
            let kept = if depth == 1 {
                0
            } else {
                (self.vit.depth - 1) * j / (depth - 1)
            };
            let block = format!("blocks.{kept}");
            for half in 0..2 {
                let subset = (input.subsets)(2 * j + half);
                let factor = subset.as_ref().map_or(1.0, |s| input.batch as f64 / s.len() as f64);
                for b in subset.unwrap_or_else(|| (0..input.batch).collect()) {
                    let normed: Vec<Vec<f64>> = tokens[b]
                        .iter()
                        .map(|x| self.norm(&format!("{block}.norm{}", half + 1), x))
                        .collect();
                    let change = match half {
                        0 => self.attention(&block, &normed, alpha, width),
                        _ => self.feed_forward(&block, &normed, alpha, width),
                    };
                    let scale = self.w(&format!("{block}.ls{}.gamma", half + 1));
                    for (x, change) in tokens[b].iter_mut().zip(change) {
                        x.iter_mut()
                            .zip(change)
                            .zip(scale)
                            .for_each(|((x, c), s)| *x += factor * s * c);
                    }
                }
            }
        }
        tokens.iter().flatten().flat_map(|x| self.norm("norm", x)).collect()
    }
}

fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |n| (n / (b * c), n / c % b, n % c))
}

/// The error function by Kummer's series, all of whose terms have one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// Abramowitz and Stegun, table 7.1.
#[test]
fn erf_has_the_tabled_values() {
    for (x, expected) in [
        (0.5, 0.520_499_877_8),
        (1.0, 0.842_700_792_9),
        (2.0, 0.995_322_265_0),
        (0.0, 0.0),
    ] {
        assert!((erf(x) - expected).abs() < 1e-10 && (erf(-x) + expected).abs() < 1e-10);
    }
}
