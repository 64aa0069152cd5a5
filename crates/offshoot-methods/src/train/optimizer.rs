//! AdamW with a rate and a decay for each tensor, gradient clipping by group, and moving averages of weights.
//!
//! The tensor library's own optimizers work on its modules; here weights are a map of names, every tensor has a learning-rate
//! factor of its own, and the state must survive a restart to the byte.

use std::collections::BTreeMap;

use offshoot_zoo::tensor::Tensor;
use offshoot_zoo::tensor::kernels::{self, AdamStep};
use offshoot_zoo::{Weight, Weights};

use super::state::TrainState;

/// Gradients by tensor name.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// Running moments of one tensor.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Mean of gradients.
    pub first: Tensor<1>,
    /// Mean of squared gradients.
    pub second: Tensor<1>,
    /// Updates so far: a tensor whose gradients start late is corrected from its own first update.
    pub updates: u64,
}

/// AdamW (Loshchilov and Hutter 2019) as PyTorch computes it.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Moments by tensor name; a tensor that never had a gradient has none.
    pub moments: BTreeMap<String, Moments>,
}

/// What one update does to one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Factor on the gradient, that of [`clip`].
    pub gradient_scale: f64,
}

impl AdamW {
    /// No moments yet.
    pub fn new(beta1: f64, beta2: f64, epsilon: f64) -> Self {
        Self {
            beta1,
            beta2,
            epsilon,
            moments: BTreeMap::new(),
        }
    }

    /// One update of every tensor that has a gradient. A rate of zero leaves the tensor and still collects moments.
    pub fn update(&mut self, weights: &mut Weights, gradients: Gradients, rate: impl Fn(&str) -> Rate) {
        let mut steps = Vec::with_capacity(gradients.len());
        let mut updates = Vec::with_capacity(gradients.len());
        let mut moments = [Vec::new(), Vec::new()];
        let names: Vec<String> = gradients.keys().cloned().collect();
        for (name, gradient) in &gradients {
            let old = self.moments.remove(name).unwrap_or_else(|| Moments {
                first: gradient.zeros_like(),
                second: gradient.zeros_like(),
                updates: 0,
            });
            let done = old.updates + 1;
            let correction = |beta: f64| 1.0 - beta.powf(done as f64);
            let Rate {
                learning_rate,
                weight_decay,
                gradient_scale,
            } = rate(name);
            steps.push(AdamStep {
                beta1: self.beta1,
                beta2: self.beta2,
                gradient_scale: gradient_scale as f32,
                keep: (1.0 - learning_rate * weight_decay) as f32,
                rate: (learning_rate / correction(self.beta1)) as f32,
                root_correction: (1.0 / correction(self.beta2).sqrt()) as f32,
                epsilon: self.epsilon as f32,
            });
            updates.push(done);
            moments[0].push(old.first);
            moments[1].push(old.second);
        }
        weights.modify(&names, |old| {
            let gradients = gradients.into_values().collect();
            let [new, first, second] = kernels::adamw(steps, old, std::mem::take(&mut moments), gradients);
            moments = [first, second];
            new
        });
        let [first, second] = moments;
        let moments = first.into_iter().zip(second).zip(updates);
        self.moments.extend(
            names
                .into_iter()
                .zip(moments)
                .map(|(name, ((first, second), updates))| {
                    let moments = Moments { first, second, updates };
                    (name, moments)
                }),
        );
    }
}

impl AdamW {
    /// Adds the moments to a state, under the roles `first` and `second`, and the updates of each tensor to its counts.
    pub fn put(&self, state: &mut TrainState) {
        for (name, moments) in &self.moments {
            for (role, flat) in [("first", &moments.first), ("second", &moments.second)] {
                let weight = Weight::new(flat.clone(), vec![flat.dims()[0]]);
                state.tensors.insert(format!("{role}.{name}"), weight);
            }
            state.counts.insert(name.clone(), moments.updates);
        }
    }

    /// Takes the moments over from a state; `elements` says how many numbers a tensor has.
    ///
    /// # Errors
    /// Names a tensor whose moments are not whole, or that there is none of.
    pub fn take(&mut self, state: &TrainState, elements: impl Fn(&str) -> Option<usize>) -> Result<(), String> {
        let (first, second) = (state.role("first"), state.role("second"));
        self.moments.clear();
        for (name, weight) in first.iter() {
            let moment = |w: Option<&Weight>| {
                w.filter(|w| Some(w.shape()[0]) == elements(name))
                    .map(|w| w.flat().clone())
            };
            let (Some(first), Some(second), Some(&updates)) =
                (moment(Some(weight)), moment(second.get(name)), state.counts.get(name))
            else {
                return Err(format!("the moments of `{name}` are incomplete"));
            };
            self.moments.insert(name.to_owned(), Moments { first, second, updates });
        }
        Ok(())
    }
}

/// L2 norms of the gradients by `group`; 0 for a group without any.
pub fn norms<const N: usize>(gradients: &Gradients, group: impl Fn(&str) -> usize) -> [f64; N] {
    let mut sums = [0.0; N];
    if !gradients.is_empty() {
        let squares = kernels::square_sums(gradients.values().cloned().collect());
        let squares: Vec<f32> = squares.into_data().try_to_vec().expect("sums are f32");
        for (name, square) in gradients.keys().zip(squares) {
            sums[group(name)] += f64::from(square);
        }
    }
    sums.map(f64::sqrt)
}

/// The factor that brings gradients of L2 norm `norm` down to `limit`, as PyTorch's `clip_grad_norm_` does; never above 1.
pub fn clip(norm: f64, limit: f64) -> f64 {
    (limit / (norm + 1e-6)).min(1.0)
}

/// `average <- momentum * average + (1 - momentum) * weights`, for every tensor (elastic.md 4.4).
pub fn average(average: &mut Weights, weights: &Weights, momentum: f64) {
    let names: Vec<&str> = weights.iter().map(|(name, _)| name).collect();
    let new = weights.iter().map(|(_, weight)| weight.flat().clone()).collect();
    average.modify(&names, |old| kernels::average(momentum, old, new));
}

#[cfg(test)]
mod tests {
    use offshoot_zoo::tensor::Device;

    use super::*;

    const RATE: Rate = Rate {
        learning_rate: 0.1,
        weight_decay: 0.5,
        gradient_scale: 1.0,
    };

    fn one(value: f32) -> Weights {
        let mut weights = Weights::new();
        weights.insert("w", Weight::from_values(vec![value], vec![1], &Device::flex()));
        weights
    }

    fn gradient(value: f32) -> Gradients {
        Gradients::from([("w".into(), Tensor::from_data([value], &Device::flex()))])
    }

    /// Computed by hand from the update rule, two steps.
    #[test]
    fn two_updates_are_adamw() {
        let mut weights = one(1.0);
        let mut adam = AdamW::new(0.9, 0.999, 1e-8);
        let rate = |_: &str| RATE;
        adam.update(&mut weights, gradient(2.0), rate);
        // The first corrected step is lr * sign(g): 1 * 0.95 - 0.1.
        assert!((weights.get("w").unwrap().values()[0] - 0.85).abs() < 1e-6);
        adam.update(&mut weights, gradient(-1.0), rate);
        let (m, v): (f64, f64) = (0.9 * 0.2 - 0.1, 0.999 * 0.004 + 0.001);
        let expected = 0.85 * 0.95 - 0.1 * (m / 0.19) / (v / (1.0 - 0.999f64.powi(2))).sqrt();
        assert!((f64::from(weights.get("w").unwrap().values()[0]) - expected).abs() < 1e-6);
    }

    #[test]
    fn a_zero_rate_freezes_the_weight_but_collects_moments() {
        let mut weights = one(1.0);
        let mut adam = AdamW::new(0.9, 0.999, 1e-8);
        adam.update(&mut weights, gradient(2.0), |_| Rate {
            learning_rate: 0.0,
            ..RATE
        });
        assert_eq!(weights.get("w").unwrap().values(), [1.0]);
        assert_eq!(adam.moments["w"].updates, 1);
    }

    #[test]
    fn norms_are_by_group_and_clipping_never_scales_up() {
        let mut gradients = gradient(3.0);
        gradients.insert("h".into(), Tensor::from_data([4.0f32], &Device::flex()));
        assert_eq!(norms(&gradients, |_| 0), [5.0]);
        assert_eq!(norms(&gradients, |n| usize::from(n == "h")), [3.0, 4.0]);
        assert_eq!(norms(&Gradients::new(), |_| 0), [0.0]);
        assert!((clip(4.0, 1.5) - 1.5 / 4.0).abs() < 1e-6);
        assert_eq!(clip(1.0, 1.5), 1.0);
    }

    /// Moments and weight are those of a gradient of half the size.
    #[test]
    fn a_scaled_gradient_is_clipped_before_it_is_collected() {
        let run = |value: f32, gradient_scale: f64| {
            let mut weights = one(1.0);
            let mut adam = AdamW::new(0.9, 0.999, 1e-2);
            let rate = Rate { gradient_scale, ..RATE };
            adam.update(&mut weights, gradient(value), |_| rate);
            let moments = &adam.moments["w"];
            let of = |x: &Tensor<1>| x.clone().into_scalar::<f32>();
            (
                weights.get("w").unwrap().values(),
                of(&moments.first),
                of(&moments.second),
            )
        };
        assert_eq!(run(2.0, 0.5), run(1.0, 1.0));
    }

    #[test]
    fn averages_move_by_one_minus_momentum() {
        let mut teacher = one(1.0);
        average(&mut teacher, &one(2.0), 0.75);
        assert_eq!(teacher.get("w").unwrap().values(), [1.25]);
    }
}
