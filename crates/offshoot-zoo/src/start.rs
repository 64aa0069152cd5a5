//! Fresh weights for a network: every tensor from a random stream of its own.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use crate::spec::{Init, TensorSpec};
use crate::tensor::Device;
use crate::weights::{Weight, Weights};

/// Fresh weights for `specs`. Each tensor draws from a stream of its own, keyed by `(seed, name)`, so that a tensor starts
/// the same whatever else the network has.
pub fn initialise(specs: &[TensorSpec], seed: u64, device: &Device) -> Weights {
    let mut weights = Weights::new();
    for spec in specs {
        let key = blake3::Hasher::new()
            .update(b"offshoot weights")
            .update(&seed.to_le_bytes())
            .update(spec.name.as_bytes())
            .finalize();
        let mut rng = ChaCha8Rng::from_seed(*key.as_bytes());
        let values = draw(spec.init, spec.elements(), &mut rng);
        weights.insert(&spec.name, Weight::from_values(values, spec.shape(), device));
    }
    weights
}

fn draw(init: Init, n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    // 53 bits, in (0, 1): the logarithm below never sees a zero.
    let mut unit = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    match init {
        Init::Constant(value) => vec![value; n],
        Init::Uniform(bound) => (0..n)
            .map(|_| ((2.0 * unit() - 1.0) * f64::from(bound)) as f32)
            .collect(),
        Init::Normal(sigma) => (0..n)
            .map(|_| (box_muller(unit(), unit()) * f64::from(sigma)) as f32)
            .collect(),
        Init::TruncatedNormal(sigma) => (0..n)
            .map(|_| {
                loop {
                    let value = box_muller(unit(), unit()) * f64::from(sigma);
                    if value.abs() <= 2.0 {
                        break value as f32;
                    }
                }
            })
            .collect(),
    }
}

/// A standard normal number from two uniform ones in (0, 1).
fn box_muller(a: f64, b: f64) -> f64 {
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}
