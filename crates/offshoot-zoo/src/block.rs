//! What networks share inside: residual branches on a subset of a batch, and the linear classifier.

use crate::network::Subset;
use crate::spec::{Dim, Init, TensorSpec};
use crate::tensor::{Int, Linear, Tensor, TensorData};
use crate::weights::Weights;

/// Adds a branch to the images of `subset` only, as much stronger as there are fewer of them (stochastic depth by sub-batch,
/// Oquab et al. 2023, section 5).
pub(crate) fn on_subset(
    x: Tensor<2>,
    [batch, tokens, width]: [usize; 3],
    Subset { images, scale }: Subset,
    run: impl FnOnce(usize, Tensor<2>) -> (Linear, Tensor<2>),
) -> Tensor<2> {
    let kept = images.len();
    if kept == 0 {
        return x;
    }
    let rows: Vec<i64> = images.iter().map(|&i| i as i64).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [kept]), &x.device());
    let x = x.reshape([batch, tokens * width]);
    let part = x.clone().select(0, rows.clone()).reshape([kept * tokens, width]);
    let (last, inner) = run(kept, part);
    let change = last.forward(inner).mul_scalar(scale);
    let change = change.reshape([kept, tokens * width]);
    x.select_assign(0, rows, change, burn::tensor::IndexingUpdateOp::Add)
        .reshape([batch * tokens, width])
}

/// The tensors of a linear classifier of `classes` classes on features of dimension `feature`; none for 0 classes.
pub(crate) fn head_specs(classes: usize, feature: Dim) -> Vec<TensorSpec> {
    if classes == 0 {
        return Vec::new();
    }
    let weight = TensorSpec::new("head.weight", vec![Dim::fixed(classes), feature]);
    let bias = TensorSpec::new("head.bias", vec![Dim::fixed(classes)]);
    vec![weight.init(Init::TruncatedNormal(0.02)), bias.undecayed()]
}

/// `[batch, classes]` logits of `[batch, dim]` features; none for 0 classes.
pub(crate) fn logits(weights: &Weights, classes: usize, features: &Tensor<2>) -> Option<Tensor<2>> {
    (classes > 0).then(|| {
        Linear::new(weights.tensor("head.weight"))
            .bias(weights.tensor("head.bias"))
            .forward(features.clone())
    })
}
