//! A second residual network in plain f64 loops: it runs a sub-network by scaling inputs and indexing the parent's weights, where
//! the zoo folds the gains into the weights of an ordinary network.

use std::collections::BTreeMap;

use offshoot_family::{Architecture, ResNet, ResNetNorm, Shape, StrideOn};
use offshoot_zoo::Weights;

use crate::forward::{child_of, close, run, tokens};
use crate::reference::Input;
use crate::{all_networks, lively, numbers, whole_space};

struct Residual {
    net: ResNet,
    weights: BTreeMap<String, Vec<f64>>,
}

/// A map of one image: channels, side, and the values channel by channel.
#[derive(Clone)]
struct Map {
    channels: usize,
    side: usize,
    values: Vec<f64>,
}

impl Map {
    /// The value at a cell, zero outside.
    fn at(&self, channel: usize, y: i64, x: i64) -> f64 {
        let side = self.side as i64;
        if !(0..side).contains(&y) || !(0..side).contains(&x) {
            return 0.0;
        }
        self.values[(channel * self.side + y as usize) * self.side + x as usize]
    }

    fn relu(mut self) -> Self {
        self.values.iter_mut().for_each(|v| *v = v.max(0.0));
        self
    }
}

impl Residual {
    fn new(net: &ResNet, weights: &Weights) -> Self {
        let host = |w: &offshoot_zoo::Weight| w.values().into_iter().map(f64::from).collect();
        Self {
            net: net.clone(),
            weights: weights.iter().map(|(name, w)| (name.to_owned(), host(w))).collect(),
        }
    }

    /// The first `out` outputs of a convolution of `alpha` times `x`, whose inputs are the first of the weight's `of`.
    fn convolution(
        &self,
        name: &str,
        x: &Map,
        (out, of): (usize, usize),
        alpha: f64,
        (k, stride): (usize, usize),
    ) -> Map {
        let weight = &self.weights[&format!("{name}.weight")];
        let side = x.side.div_ceil(stride);
        let pad = (k / 2) as i64;
        let mut values = Vec::with_capacity(out * side * side);
        for (o, y, column) in (0..out * side * side).map(|i| (i / (side * side), i / side % side, i % side)) {
            let mut sum = 0.0;
            for (c, i, j) in (0..x.channels * k * k).map(|n| (n / (k * k), n / k % k, n % k)) {
                let (row, col) = ((y * stride + i) as i64 - pad, (column * stride + j) as i64 - pad);
                sum += alpha * x.at(c, row, col) * weight[((o * of + c) * k + i) * k + j];
            }
            values.push(sum);
        }
        Map {
            channels: out,
            side,
            values,
        }
    }

    fn norm(&self, name: &str, mut x: Map) -> Map {
        let of = |leaf: &str| &self.weights[&format!("{name}.{leaf}")];
        let plane = x.side * x.side;
        let group = match self.net.norm {
            ResNetNorm::Group => x.channels / self.net.groups,
            ResNetNorm::Batch => 1,
        };
        for (g, values) in x.values.chunks_mut(group * plane).enumerate() {
            let (mean, variance) = match self.net.norm {
                ResNetNorm::Group => {
                    let n = values.len() as f64;
                    let mean = values.iter().sum::<f64>() / n;
                    (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
                }
                ResNetNorm::Batch => (of("mean")[g], of("variance")[g]),
            };
            for (i, v) in values.iter_mut().enumerate() {
                let channel = g * group + i / plane;
                *v = (*v - mean) / (variance + self.net.norm_eps).sqrt() * of("weight")[channel] + of("bias")[channel];
            }
        }
        x
    }

    fn stem(&self, image: &[f32], side: usize, mask: Option<&[bool]>) -> Map {
        let image = Map {
            channels: self.net.channels,
            side,
            values: image.iter().copied().map(f64::from).collect(),
        };
        let x = self.convolution("stem.conv", &image, (self.net.stem, self.net.channels), 1.0, (7, 2));
        let x = self.norm("stem.norm", x).relu();
        let map = side / 4;
        let mut pooled = Map {
            channels: x.channels,
            side: map,
            values: Vec::new(),
        };
        for (c, row, column) in (0..x.channels * map * map).map(|i| (i / (map * map), i / map % map, i % map)) {
            // After ReLU nothing is below the zeros outside.
            let near = (0..9).map(|n| x.at(c, (2 * row + n / 3) as i64 - 1, (2 * column + n % 3) as i64 - 1));
            let hidden = mask.is_some_and(|mask| mask[row / 4 * (map / 4) + column / 4]);
            let token = self.weights["mask_token"][c];
            pooled
                .values
                .push(if hidden { token } else { near.fold(0.0, f64::max) });
        }
        pooled
    }

    /// `[batch, 1 + patches, channels]`: pooled, and the last map twice in each direction.
    fn forward(&self, shape: &Shape, input: &Input<'_>) -> Vec<f64> {
        let width = shape.get("width").unwrap();
        let alpha = self.net.width as f64 / width as f64;
        let one = input.images.len() / input.batch;
        let cells = input.masks.map_or(0, |masks| masks.len() / input.batch);
        let mut all = Vec::new();
        for b in 0..input.batch {
            let mask = input.masks.map(|masks| &masks[b * cells..(b + 1) * cells]);
            let mut x = self.stem(&input.images[b * one..(b + 1) * one], input.side, mask);
            for (stage, &of) in self.net.depths.iter().enumerate() {
                let depth = shape.get(&format!("depth{}", stage + 1)).unwrap_or(of);
                for j in 0..depth {
                    let kept = if depth == 1 { 0 } else { (of - 1) * j / (depth - 1) };
                    x = self.block(stage, kept, &x, width << stage, alpha);
                }
            }
            let plane = x.side * x.side;
            all.extend(
                x.values
                    .chunks(plane)
                    .map(|channel| channel.iter().sum::<f64>() / plane as f64),
            );
            for (row, column) in (0..4 * plane).map(|i| (i / (2 * x.side) / 2, i % (2 * x.side) / 2)) {
                all.extend((0..x.channels).map(|c| x.at(c, row as i64, column as i64)));
            }
        }
        all
    }

    fn block(&self, stage: usize, block: usize, x: &Map, mid: usize, alpha: f64) -> Map {
        let name = |leaf: &str| format!("stages.{stage}.blocks.{block}.{leaf}");
        let (all, outputs) = (self.net.width << stage, self.net.outputs << stage);
        let stride = if stage > 0 && block == 0 { 2 } else { 1 };
        let (first, second) = match self.net.stride_on {
            StrideOn::First => (stride, 1),
            StrideOn::Second => (1, stride),
        };
        let shortcut = if self.weights.contains_key(&name("shortcut.conv.weight")) {
            let across = self.convolution(&name("shortcut.conv"), x, (outputs, x.channels), 1.0, (1, stride));
            self.norm(&name("shortcut.norm"), across)
        } else {
            x.clone()
        };
        let y = self.convolution(&name("conv1"), x, (mid, x.channels), 1.0, (1, first));
        let y = self.norm(&name("norm1"), y).relu();
        let y = self.convolution(&name("conv2"), &y, (mid, all), alpha, (3, second));
        let y = self.norm(&name("norm2"), y).relu();
        let mut y = self.norm(
            &name("norm3"),
            self.convolution(&name("conv3"), &y, (outputs, all), alpha, (1, 1)),
        );
        y.values.iter_mut().zip(&shortcut.values).for_each(|(y, s)| *y += s);
        y.relu()
    }
}

/// elastic.md 8.2, fold equivalence.
#[test]
fn folded_gains_of_a_resnet_equal_scaled_inputs() {
    for network in all_networks() {
        let Architecture::ResNet(net) = network.architecture() else {
            continue;
        };
        let weights = lively(&network.specs(), 50);
        let reference = Residual::new(&net, &weights);
        let space = whole_space(network.as_ref());
        let shapes = (0..space.count() - 1).step_by(5).map(|i| space.at(i));
        for shape in shapes.chain([space.intact()]) {
            let (child, folded) = child_of(network.as_ref(), &weights, &shape);
            for (side, masked) in [(32, true), (64, false)] {
                let images = numbers(51, 2 * net.channels * side * side);
                let marks: Vec<bool> = numbers(52, 2 * (side / 16).pow(2))
                    .into_iter()
                    .map(|v| v > 0.2)
                    .collect();
                let input = Input {
                    images: &images,
                    batch: 2,
                    side,
                    masks: masked.then_some(&marks[..]),
                    subsets: &|_| None,
                };
                let ours = tokens(run(child.as_ref(), &folded, &input));
                let what = format!("{:?}, {:?}: {shape} at {side} pixels", net.norm, net.stride_on);
                close(&what, &ours, &reference.forward(&shape, &input));
            }
        }
    }
}
