//! AdamW with a rate and a decay for each tensor, gradient clipping by group, and moving averages of weights.
//!
//! The tensor library's own optimizers work on its modules; here weights are a map of names, every tensor has a learning-rate
//! factor of its own, and the state must survive a restart to the byte.

use std::collections::BTreeMap;

use offshoot_zoo::Weights;
use offshoot_zoo::tensor::Tensor;

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

/// Learning rate and weight decay of one tensor at one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
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
        for (name, gradient) in gradients {
            let (beta1, beta2) = (self.beta1, self.beta2);
            let moments = match self.moments.remove(&name) {
                None => Moments {
                    first: gradient.clone() * (1.0 - beta1),
                    second: gradient.square() * (1.0 - beta2),
                    updates: 1,
                },
                Some(old) => Moments {
                    first: old.first * beta1 + gradient.clone() * (1.0 - beta1),
                    second: old.second * beta2 + gradient.square() * (1.0 - beta2),
                    updates: old.updates + 1,
                },
            };
            let Rate {
                learning_rate,
                weight_decay,
            } = rate(&name);
            if learning_rate != 0.0 {
                let correction = |beta: f64| 1.0 - beta.powf(moments.updates as f64);
                let denominator = moments.second.clone().sqrt() / correction(beta2).sqrt() + self.epsilon;
                let change = moments.first.clone() / denominator * (learning_rate / correction(beta1));
                weights.modify(&name, |w| w * (1.0 - learning_rate * weight_decay) - change);
            }
            self.moments.insert(name, moments);
        }
    }
}

/// L2 norm of all gradients whose name `belongs`; 0 if there are none.
pub fn norm(gradients: &Gradients, belongs: impl Fn(&str) -> bool) -> f64 {
    let squares: Vec<Tensor<1>> = gradients
        .iter()
        .filter(|(name, _)| belongs(name))
        .map(|(_, g)| g.clone().square().sum())
        .collect();
    if squares.is_empty() {
        return 0.0;
    }
    f64::from(Tensor::cat(squares, 0).sum().sqrt().into_scalar::<f32>())
}

/// Scales the gradients whose name `belongs`, of L2 norm `norm`, down to `limit`, as PyTorch's `clip_grad_norm_` does.
pub fn clip(gradients: &mut Gradients, norm: f64, limit: f64, belongs: impl Fn(&str) -> bool) {
    let factor = limit / (norm + 1e-6);
    if factor >= 1.0 {
        return;
    }
    for (name, gradient) in gradients.iter_mut() {
        if belongs(name) {
            *gradient = gradient.clone() * factor;
        }
    }
}

/// `average <- momentum * average + (1 - momentum) * weights`, for every tensor (elastic.md 4.4).
pub fn average(average: &mut Weights, weights: &Weights, momentum: f64) {
    for (name, weight) in weights.iter() {
        average.modify(name, |a| a * momentum + weight.flat().clone() * (1.0 - momentum));
    }
}

#[cfg(test)]
mod tests {
    use offshoot_zoo::Weight;
    use offshoot_zoo::tensor::Device;

    use super::*;

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
        let rate = |_: &str| Rate {
            learning_rate: 0.1,
            weight_decay: 0.5,
        };
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
            weight_decay: 1.0,
        });
        assert_eq!(weights.get("w").unwrap().values(), [1.0]);
        assert_eq!(adam.moments["w"].updates, 1);
    }

    #[test]
    fn clipping_is_by_group_and_never_scales_up() {
        let mut gradients = gradient(3.0);
        gradients.insert("h".into(), Tensor::from_data([4.0f32], &Device::flex()));
        let heads = |n: &str| n == "h";
        assert!((norm(&gradients, |_| true) - 5.0).abs() < 1e-6);
        assert!((norm(&gradients, heads) - 4.0).abs() < 1e-6);
        clip(&mut gradients, 4.0, 1.5, heads);
        clip(&mut gradients, 1.0, 1.5, |n| n == "w");
        let values: Vec<f32> = gradients.values().map(|g| g.clone().into_scalar::<f32>()).collect();
        assert!((values[0] - 1.5).abs() < 1e-5 && values[1] == 3.0, "{values:?}");
    }

    #[test]
    fn averages_move_by_one_minus_momentum() {
        let mut teacher = one(1.0);
        average(&mut teacher, &one(2.0), 0.75);
        assert_eq!(teacher.get("w").unwrap().values(), [1.25]);
    }
}
