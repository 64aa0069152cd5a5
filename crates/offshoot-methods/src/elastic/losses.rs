//! KoLeo, the term of POA's loss that spreads features (elastic.md section 3), and the oracles of the others.

use offshoot_zoo::tensor::Tensor;

use super::heads::unit_rows;

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
    use offshoot_zoo::tensor::kernels::{SoftTargets, sinkhorn, soft_cross_entropy};

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
            let form = SoftTargets {
                temperature: 0.1,
                rows: vec![vec![Some(0), Some(1)]].into(),
            };
            close(soft_cross_entropy(form, zeros, vec![targets]), &[expected; 2]);
        }
    }
}
