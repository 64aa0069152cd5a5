//! Fresh weights for a network: every tensor from a random stream of its own.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use offshoot_family::Architecture;

use crate::network::Network;
use crate::positions;
use crate::spec::{Init, TensorSpec};
use crate::tensor::Device;
use crate::weights::{Weight, Weights};

/// Fresh weights for `specs`. Each tensor draws from a stream of its own, keyed by `(seed, name)`, so that a tensor starts
/// the same whatever else the network has.
pub fn initialise(specs: &[TensorSpec], seed: u64, device: &Device) -> Weights {
    let mut weights = Weights::new();
    for spec in specs {
        weights.insert(&spec.name, Weight::from_values(drawn(spec, seed), spec.shape(), device));
    }
    weights
}

/// The elements of one fresh tensor, from its own stream.
pub(crate) fn drawn(spec: &TensorSpec, seed: u64) -> Vec<f32> {
    let key = blake3::Hasher::new()
        .update(b"offshoot weights")
        .update(&seed.to_le_bytes())
        .update(spec.name.as_bytes())
        .finalize();
    let mut rng = ChaCha8Rng::from_seed(*key.as_bytes());
    draw(spec.init, spec.elements(), &mut rng)
}

/// The weights of `parent` for `network`, which is the same but for its image side and classifier: learned positions are resampled
/// to its grid (transformers' rule, offset 0), and a classifier that it does not have is left out.
///
/// # Panics
/// If the weights are not the parent's.
pub fn taken_over(parent: &dyn Network, weights: &Weights, network: &dyn Network, device: &Device) -> Weights {
    let grids = match (parent.architecture(), network.architecture()) {
        (Architecture::Vit(from), Architecture::Vit(to)) => Some((from.grid(), to.grid())),
        _ => None,
    };
    let mut taken = Weights::new();
    for spec in network.specs() {
        let Some(weight) = weights.get(&spec.name) else {
            continue;
        };
        let weight = match grids {
            Some((from, to)) if spec.name == "pos_embed" && from != to => {
                Weight::from_values(resampled(&weight.values(), from, to), spec.shape(), device)
            }
            _ => weight.clone(),
        };
        taken.insert(&spec.name, weight);
    }
    taken
}

/// Positions of a class token and a grid of `from`, row-major, for a grid of `to`.
fn resampled(values: &[f32], from: usize, to: usize) -> Vec<f32> {
    let width = values.len() / (1 + from * from);
    let (class, grid) = values.split_at(width);
    let mut all = class.to_vec();
    for row in positions::bicubic(from, to, 0.0).chunks(from * from) {
        let mut sum = vec![0.0; width];
        for (&tap, position) in row.iter().zip(grid.chunks(width)).filter(|(tap, _)| **tap != 0.0) {
            for (sum, value) in sum.iter_mut().zip(position) {
                *sum += f64::from(tap) * f64::from(*value);
            }
        }
        all.extend(sum.into_iter().map(|v| v as f32));
    }
    all
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
