//! The terms of POA's loss: Sinkhorn-Knopp targets, cross-entropy against them, and KoLeo (elastic.md section 3).

use offshoot_zoo::tensor::{Tensor, activation};

use super::heads::unit_rows;

/// Sinkhorn-Knopp targets for `[rows, prototypes]` teacher logits: three (or `iterations`) rounds that even out prototypes,
/// then samples. The temperature is inside the exponential and no softmax follows (the code's form, elastic.md section 9).
/// Every row of the result sums to 1; adding a constant to all logits changes nothing.
pub fn sinkhorn(logits: Tensor<2>, temperature: f64, iterations: usize) -> Tensor<2> {
    let [rows, prototypes] = logits.dims();
    if rows == 0 {
        return logits;
    }
    let scaled = logits.div_scalar(temperature);
    // exp overflows above 88; the largest logit is subtracted, which the normalisation below cancels.
    let mut q = (scaled.clone() - scaled.max().unsqueeze()).exp();
    q = q.clone() / q.sum().unsqueeze();
    for _ in 0..iterations {
        q = q.clone() / q.sum_dim(0) / prototypes as f64;
        q = q.clone() / q.sum_dim(1) / rows as f64;
    }
    q * rows as f64
}

/// `log softmax(logits / temperature)` by row.
pub fn log_probabilities(logits: Tensor<2>, temperature: f64) -> Tensor<2> {
    activation::log_softmax(logits.div_scalar(temperature), 1)
}

/// `-sum_k target * log p` for each row, `[rows, 1]`.
pub fn cross_entropy(targets: Tensor<2>, log_probabilities: Tensor<2>) -> Tensor<2> {
    (targets * log_probabilities).sum_dim(1).neg()
}

/// KoLeo of `[n, dim]` features: `-mean log` of each unit vector's distance to its nearest neighbour. One image has no
/// neighbour and adds nothing.
pub fn koleo(features: Tensor<2>) -> Tensor<1> {
    const EPS: f64 = 1e-8;
    let [n, _] = features.dims();
    if n < 2 {
        return features.sum().mul_scalar(0.0);
    }
    let x = unit_rows(features, EPS);
    let plain = x.clone().detach();
    // A vector is not its own neighbour: its cosine of 1 is moved below the smallest possible.
    let cosines = plain.clone().matmul(plain.transpose());
    let nearest = (cosines.clone() - Tensor::eye(n, &cosines.device()).mul_scalar(3.0))
        .argmax(1)
        .flatten::<1>(0, 1);
    let gap = x.clone() - x.select(0, nearest) + EPS;
    (gap.square().sum_dim(1).sqrt() + EPS).log().mean().neg()
}

#[cfg(test)]
mod tests {
    use offshoot_zoo::tensor::Device;

    use super::*;

    fn close(tensor: Tensor<2>, expected: &[f32]) {
        let values: Vec<f32> = tensor.into_data().try_to_vec().unwrap();
        for (value, expected) in values.iter().zip(expected) {
            assert!(
                (value - expected).abs() < 2e-6 * expected.max(1.0),
                "{values:?} against {expected}"
            );
        }
    }

    /// elastic.md 8.2.
    #[test]
    fn sinkhorn_gives_the_oracle() {
        let rows = [
            [0.30, 0.10, -0.20],
            [0.25, 0.05, 0.00],
            [0.28, -0.10, 0.15],
            [0.20, 0.15, 0.10],
        ];
        let logits = Tensor::<2>::from_data(rows, &Device::flex());
        let at_007 = [
            0.559331, 0.432718, 0.007951, 0.438742, 0.339426, 0.221832, 0.258623, 0.015291, 0.726086, 0.084006,
            0.553956, 0.362039,
        ];
        let at_004 = [
            0.635776, 0.363917, 0.000307, 0.548565, 0.313998, 0.137437, 0.165602, 0.001053, 0.833345, 0.027784,
            0.676230, 0.295986,
        ];
        close(sinkhorn(logits.clone(), 0.07, 3), &at_007);
        close(sinkhorn(logits.clone(), 0.04, 3), &at_004);
        close(sinkhorn(logits + 3.0, 0.04, 3), &at_004);
        close(sinkhorn(Tensor::zeros([5, 4], &Device::flex()), 0.04, 3), &[0.25; 20]);
        // A gain of 12 at 0.04 is 300 in the exponent.
        let large = sinkhorn(
            Tensor::<2>::from_data([[12.0, -12.0], [-12.0, 12.0]], &Device::flex()),
            0.04,
            3,
        );
        assert!(
            large
                .into_data()
                .try_to_vec::<f32>()
                .unwrap()
                .iter()
                .all(|v| v.is_finite())
        );
    }

    /// elastic.md 8.2.
    #[test]
    fn koleo_gives_the_oracle() {
        let device = Device::flex();
        let orthonormal = koleo(Tensor::eye(4, &device)).into_scalar::<f32>();
        // Neighbours at a distance of sqrt 2.
        assert!((orthonormal + 2f32.sqrt().ln()).abs() < 1e-6, "{orthonormal}");
        let antipodal = koleo(Tensor::<2>::from_data([[1.0, 0.0], [-1.0, 0.0]], &device)).into_scalar::<f32>();
        assert!((antipodal + std::f32::consts::LN_2).abs() < 1e-6, "{antipodal}");
        assert_eq!(
            koleo(Tensor::<2>::from_data([[1.0, 0.0]], &device)).into_scalar::<f32>(),
            0.0
        );
    }

    /// elastic.md 8.2: a cross-entropy of zero logits is the log of the number of prototypes.
    #[test]
    fn cross_entropy_of_zero_logits_is_ln_k() {
        for (k, expected) in [
            (8192, 9.010913),
            (16384, 9.704061),
            (32768, 10.397208),
            (65536, 11.090355),
        ] {
            let zeros = Tensor::<2>::zeros([2, k], &Device::flex());
            let targets = zeros.ones_like() / k as f64;
            close(cross_entropy(targets, log_probabilities(zeros, 0.1)), &[expected; 2]);
        }
    }
}
