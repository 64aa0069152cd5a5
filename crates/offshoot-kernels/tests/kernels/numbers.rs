//! Numbers for tests, and how far two lists of them are apart.

use burn::tensor::{Device, Tensor, TensorData};

/// `n` numbers that only depend on a seed (SplitMix64), even in `-range..range`.
pub(crate) fn numbers(seed: u64, n: usize, range: f32) -> Vec<f32> {
    let number = |i: u64| {
        let z = seed
            .wrapping_mul(0x1_0000_0001)
            .wrapping_add(i)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * range
    };
    (1..=n as u64).map(number).collect()
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

pub(crate) fn vector(values: &[f32]) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Device::flex())
}

pub(crate) fn matrix(values: &[f32], [rows, columns]: [usize; 2]) -> Tensor<2> {
    vector(values).reshape([rows, columns])
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Fails unless all of `ours` are within `tolerance` of the largest of `exact`.
pub(crate) fn near(ours: &[f32], exact: &[f64], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), exact.len(), "{what}");
    let largest = exact.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    for (i, (a, b)) in ours.iter().zip(exact).enumerate() {
        assert!(
            (f64::from(*a) - b).abs() <= tolerance * largest,
            "{what}, element {i}: {a:e} against {b:e}"
        );
    }
}
