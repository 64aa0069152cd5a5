//! Projection heads: from features to prototype logits (POA section 3.2; elastic.md 2.5).

use offshoot_zoo::tensor::{Linear, Tensor};
use offshoot_zoo::{Dim, Init, TensorSpec, Weights};

/// Several separate heads, shared between class tokens and patch tokens. A narrower student uses the same heads: only the
/// first layer reads the feature axis, and it is cut by the student's view like any other matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Heads {
    /// The feature dimension that the first layer reads.
    pub feature: Dim,
    /// Width of the two hidden layers.
    pub hidden: usize,
    /// Width of the L2-normalised bottleneck.
    pub bottleneck: usize,
    /// Prototypes of each head.
    pub prototypes: Vec<usize>,
}

/// Smallest norm that the bottleneck is divided by (fp32).
const NORM_EPS: f64 = 1e-12;

impl Heads {
    /// Every tensor of every head, under `heads.<i>.`.
    pub fn specs(&self) -> Vec<TensorSpec> {
        let matrix = |name: String, dims| TensorSpec::new(name, dims).init(Init::TruncatedNormal(0.02));
        let bias = |name: String, size| TensorSpec::new(name, vec![Dim::fixed(size)]).undecayed();
        let mut specs = Vec::new();
        for (i, &prototypes) in self.prototypes.iter().enumerate() {
            let name = |leaf: &str| format!("heads.{i}.{leaf}");
            let (hidden, bottleneck) = (self.hidden, self.bottleneck);
            // PyTorch's default for a linear layer: kaiming-uniform with a = sqrt(5), that is 1 / sqrt(fan in).
            let direction = Init::Uniform((bottleneck as f32).sqrt().recip());
            specs.extend([
                matrix(name("mlp.0.weight"), vec![Dim::fixed(hidden), self.feature.clone()]),
                bias(name("mlp.0.bias"), hidden),
                matrix(name("mlp.2.weight"), vec![Dim::fixed(hidden), Dim::fixed(hidden)]),
                bias(name("mlp.2.bias"), hidden),
                matrix(name("mlp.4.weight"), vec![Dim::fixed(bottleneck), Dim::fixed(hidden)]),
                bias(name("mlp.4.bias"), bottleneck),
                // Direction and gain of the weight-normalised last layer; both are decayed, and both are frozen at first.
                TensorSpec::new(
                    name("last_layer.weight_v"),
                    vec![Dim::fixed(prototypes), Dim::fixed(bottleneck)],
                )
                .init(direction),
                TensorSpec::new(name("last_layer.weight_g"), vec![Dim::fixed(prototypes)]).init(Init::Constant(1.0)),
            ]);
        }
        specs
    }

    /// Whether `name` is the last layer of a head, which is frozen at the start of training.
    pub fn is_last_layer(name: &str) -> bool {
        name.starts_with("heads.") && name.contains(".last_layer.")
    }

    /// `[rows, dim]` features to the `[rows, bottleneck]` unit vectors of head `i`.
    pub fn bottleneck(&self, weights: &Weights, i: usize, features: Tensor<2>) -> Tensor<2> {
        let layer = |n: usize| {
            let weight = weights.tensor(&format!("heads.{i}.mlp.{n}.weight"));
            Linear::new(weight).bias(weights.tensor(&format!("heads.{i}.mlp.{n}.bias")))
        };
        let hidden = layer(0).forward(features);
        let hidden = layer(2).gelu().forward(hidden);
        unit_rows(layer(4).gelu().forward(hidden), NORM_EPS)
    }

    /// The `[prototypes, bottleneck]` matrix of head `i`: gain times unit direction. It does not depend on the features, so
    /// both students of a step share one.
    pub fn prototypes(&self, weights: &Weights, i: usize) -> Tensor<2> {
        let direction = weights.tensor::<2>(&format!("heads.{i}.last_layer.weight_v"));
        let gain = weights.tensor::<1>(&format!("heads.{i}.last_layer.weight_g"));
        unit_rows(direction, 0.0) * gain.unsqueeze_dim(1)
    }

    /// `[rows, dim]` features to `[rows, prototypes]` logits of head `i`: gain times cosine.
    pub fn logits(&self, weights: &Weights, i: usize, features: Tensor<2>) -> Tensor<2> {
        Linear::new(self.prototypes(weights, i)).forward(self.bottleneck(weights, i, features))
    }
}

/// Rows divided by their L2 norm, or by `eps` where the norm is smaller.
pub(crate) fn unit_rows(x: Tensor<2>, eps: f64) -> Tensor<2> {
    let norm = x.clone().square().sum_dim(1).sqrt();
    let norm = if eps > 0.0 { norm.clamp_min(eps) } else { norm };
    x / norm
}

#[cfg(test)]
mod tests {
    use super::*;

    /// elastic.md section 5: four heads on 1024 channels.
    #[test]
    fn paper_heads_have_58_860_544_parameters() {
        let heads = Heads {
            feature: Dim::reads("residual", 1024),
            hidden: 2048,
            bottleneck: 256,
            prototypes: vec![8192, 16384, 32768, 65536],
        };
        let specs = heads.specs();
        assert_eq!(offshoot_zoo::spec::parameters(&specs), 58_860_544);
        let each = [8_925_440, 11_030_784, 15_241_472, 23_662_848];
        for (i, expected) in each.into_iter().enumerate() {
            let own = specs.iter().filter(|s| s.name.starts_with(&format!("heads.{i}.")));
            assert_eq!(own.map(|s| s.elements()).sum::<usize>(), expected);
        }
    }
}
