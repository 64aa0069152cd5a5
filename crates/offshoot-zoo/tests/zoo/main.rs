//! What the zoo promises: views, forward passes and their gradients, checkpoint folders, and refusals of bad files.

mod bert;
mod checkpoint;
mod decoder;
mod forward;
mod gguf;
mod golden;
mod gradients;
mod hostile;
mod import;
mod onnx;
mod positions;
mod projected;
mod reference;
mod residual;
mod view;

use std::collections::BTreeMap;

use offshoot_family::catalog::Preprocessing;
use offshoot_family::{Architecture, ResNet, ResNetNorm, Shape, Space, StrideOn, Swin, Vit};
use offshoot_zoo::network::SpaceBounds;
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{Backbone, Network, Preparation, TensorSpec, Weight, Weights, backbone};

/// A small vision transformer with grey images of a 3 x 3 grid.
fn small() -> Vit {
    Vit {
        width: 12,
        depth: 4,
        head_dim: 3,
        mlp_ratio: 2,
        patch: 2,
        image: 6,
        channels: 1,
        position_offset: 0.1,
        layer_scale: 1e-5,
        classes: 0,
        norm_eps: 1e-6,
    }
}

/// A small residual network with GroupNorm of 2 groups.
fn small_resnet() -> ResNet {
    ResNet {
        width: 6,
        outputs: 8,
        stem: 64,
        depths: vec![1, 2, 3, 1],
        norm: ResNetNorm::Group,
        groups: 2,
        stride_on: StrideOn::Second,
        image: 32,
        channels: 1,
        norm_eps: 1e-5,
        classes: 0,
    }
}

/// Small networks of images of all architectures, in their variants.
fn all_networks() -> Vec<Box<dyn Backbone>> {
    let architectures = [
        Architecture::Vit(small()),
        Architecture::Vit(Vit {
            channels: 3,
            head_dim: 4,
            mlp_ratio: 3,
            ..small()
        }),
        Architecture::Swin(Swin {
            width: 4,
            depths: vec![1, 2, 3, 1],
            head_dim: 2,
            window: 2,
            mlp_ratio: 2,
            patch: 2,
            image: 32,
            channels: 1,
            norm_eps: 1e-5,
            classes: 3,
        }),
        Architecture::ResNet(small_resnet()),
        // A quarter of these outputs is no whole multiple of the widths.
        Architecture::ResNet(ResNet {
            outputs: 20,
            norm: ResNetNorm::Batch,
            groups: 32,
            norm_eps: 1e-3,
            channels: 3,
            classes: 3,
            ..small_resnet()
        }),
        Architecture::ResNet(ResNet {
            width: 2,
            stem: 8,
            norm: ResNetNorm::Batch,
            groups: 32,
            stride_on: StrideOn::First,
            classes: 3,
            ..small_resnet()
        }),
    ];
    architectures
        .iter()
        .map(|architecture| backbone(architecture).unwrap())
        .collect()
}

/// Numbers without pattern in -1..1: splitmix64 over `seed`.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..n)
        .map(|_| ((next() >> 40) as f32 / (1u64 << 23) as f32) - 1.0)
        .collect()
}

/// Weights under which every tensor matters: matrices of the size that keeps activations near 1, norms near 1, no zeros.
fn lively(specs: &[TensorSpec], seed: u64) -> Weights {
    let mut weights = Weights::new();
    for (i, spec) in specs.iter().enumerate() {
        let shape = spec.shape();
        let reads: usize = shape.iter().skip(1).product();
        let near_one = spec.name.contains("norm") && spec.name.ends_with("weight")
            || spec.name.ends_with("gamma")
            || spec.name.ends_with("variance");
        let scale = if reads > 1 { (reads as f32).sqrt().recip() } else { 0.3 };
        let values = numbers(seed.wrapping_mul(1000).wrapping_add(i as u64), spec.elements());
        let values = values
            .into_iter()
            .map(|v| v * scale + if near_one { 0.8 } else { 0.0 })
            .collect();
        weights.insert(&spec.name, Weight::from_values(values, shape, &Device::flex()));
    }
    weights
}

/// Every width and every depth that a network can be cut to.
fn whole_space(network: &dyn Network) -> Space {
    let (min_width, stages) = match network.architecture() {
        Architecture::Vit(vit) => (vit.head_dim, 1),
        Architecture::ResNet(net) if net.stride_on == StrideOn::First => (net.width, net.depths.len()),
        Architecture::ResNet(net) => (network.width_step(), net.depths.len()),
        Architecture::Swin(swin) => (swin.head_dim, swin.depths.len()),
        other => panic!("{other:?}"),
    };
    let bounds = SpaceBounds {
        min_width,
        min_depths: vec![1; stages],
        ..SpaceBounds::default()
    };
    network.space(bounds).unwrap()
}

fn shape(width: usize, depth: usize) -> Shape {
    Shape::new([("width", width), ("depth", depth)])
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// All bits of all weights, by name.
fn all_bits(weights: &Weights) -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    weights
        .iter()
        .map(|(name, w)| (name.to_owned(), (w.shape().to_vec(), bits(&w.values()))))
        .collect()
}

/// How images become the input of a network.
fn preparation(network: &dyn Backbone) -> Preparation {
    let (channels, image) = network.image();
    Preparation::Images(Preprocessing {
        resize: image as u32,
        crop: image as u32,
        channels: channels as u8,
        mean: vec![0.5; channels],
        std: vec![0.25; channels],
    })
}
