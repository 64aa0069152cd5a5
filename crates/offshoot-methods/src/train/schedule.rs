//! Values that change with the iteration: the truncated cosine with warm-up, and the warm-up to a constant.

use serde::{Deserialize, Serialize};

/// `linspace(start, stop, points)[index]` of numpy, both ends included, for `index < points`.
fn linspace(start: f64, stop: f64, points: u64, index: u64) -> f64 {
    if points <= 1 {
        start
    } else if index + 1 >= points {
        stop
    } else {
        index as f64 * ((stop - start) / (points - 1) as f64) + start
    }
}

/// A linear warm-up followed by a cosine that is laid out over `total / stretch` iterations and used for `total` of them, so
/// that with a stretch below 1 it stops before it reaches `last` (POA's `iter_num_scale`; schedules of its code, which the
/// learning rate, weight decay and teacher momentum follow).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TruncatedCosine {
    /// Value at the end of the warm-up, where the cosine starts.
    pub base: f64,
    /// Value that the whole cosine would end at.
    pub last: f64,
    /// Iterations of the warm-up, both its ends included: the last of them has `base` already.
    pub warmup: u64,
    /// Value at the first iteration of the warm-up; not used without one.
    pub start: f64,
    /// Iterations of the run, the warm-up among them.
    pub total: u64,
    /// Share of the laid-out schedule that is run, in (0, 1]: 0.78 for POA's ViT, 0.9 for Swin, 1 for ResNet.
    pub stretch: f64,
}

impl TruncatedCosine {
    /// The value at `iteration`, the first being 0. At and after `total` it is the last iteration's value. A run that is
    /// shorter than its warm-up sees the beginning of the warm-up; a cosine of no iterations is constant at `base`.
    pub fn at(&self, iteration: u64) -> f64 {
        let iteration = iteration.min(self.total.saturating_sub(1));
        if iteration < self.warmup {
            return linspace(self.start, self.base, self.warmup, iteration);
        }
        // A cast of a float saturates: no stretch makes this panic.
        let length = ((self.total as f64 / self.stretch) as u64).saturating_sub(self.warmup);
        if length == 0 {
            return self.base;
        }
        let position = (iteration - self.warmup).min(length);
        let angle = std::f64::consts::PI * position as f64 / length as f64;
        self.last + 0.5 * (self.base - self.last) * (1.0 + angle.cos())
    }
}

/// A linear warm-up and a constant behind it: the teacher's temperature (POA section 4; 0.04 to 0.07 over 30 epochs).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupConstant {
    /// Value at the first iteration of the warm-up; not used without one.
    pub start: f64,
    /// Value from the last iteration of the warm-up on.
    pub base: f64,
    /// Iterations of the warm-up, both its ends included.
    pub warmup: u64,
}

impl WarmupConstant {
    /// The value at `iteration`, the first being 0.
    pub fn at(&self, iteration: u64) -> f64 {
        if iteration < self.warmup {
            linspace(self.start, self.base, self.warmup, iteration)
        } else {
            self.base
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three recipes of the paper's code: iterations, warm-up iterations, stretch, images of one step.
    const VIT: (u64, u64, f64, f64) = (346 * 800, 10 * 800, 0.78, 1600.0);
    const SWIN: (u64, u64, f64, f64) = (346 * 625, 30 * 625, 0.9, 2048.0);
    const RESNET: (u64, u64, f64, f64) = (692 * 1000, 30 * 1000, 1.0, 1280.0);

    fn rate((total, warmup, stretch, batch): (u64, u64, f64, f64)) -> TruncatedCosine {
        TruncatedCosine {
            base: 0.004 * (batch / 1024.0).sqrt(),
            last: 2e-5,
            warmup,
            start: 0.0,
            total,
            stretch,
        }
    }

    fn decay((total, _, stretch, _): (u64, u64, f64, f64)) -> TruncatedCosine {
        TruncatedCosine {
            base: 0.04,
            last: 0.4,
            warmup: 0,
            start: 0.0,
            total,
            stretch,
        }
    }

    fn momentum((total, _, stretch, _): (u64, u64, f64, f64)) -> TruncatedCosine {
        TruncatedCosine {
            base: 0.992,
            last: 0.9999,
            warmup: 0,
            start: 0.0,
            total,
            stretch,
        }
    }

    /// Equal to as many digits as `text` is written with.
    fn assert_prints(value: f64, text: &str) {
        let wanted: f64 = text.parse().unwrap();
        let mantissa = text.split('e').next().unwrap();
        let decimals = mantissa.split_once('.').map_or(0, |(_, d)| d.len()) as i32;
        let exponent: i32 = text.split_once('e').map_or(0, |(_, e)| e.parse().unwrap());
        let half = 0.5 * 10f64.powi(exponent - decimals);
        assert!((value - wanted).abs() <= half * 1.000_001, "{value} is not {text}");
    }

    fn assert_close(value: f64, wanted: f64) {
        assert!(
            (value - wanted).abs() <= 1e-13 * wanted.abs(),
            "{value} is not {wanted}"
        );
    }

    #[test]
    fn vit_learning_rate_is_the_papers() {
        let lr = rate(VIT);
        assert_eq!(lr.at(0), 0.0);
        assert_prints(lr.at(4000), "0.00250031");
        assert_eq!(lr.at(7999), 0.005);
        assert_eq!(lr.at(8000), 0.005);
        assert_prints(lr.at(100_000), "0.00418448");
        assert_prints(lr.at(200_000), "0.00209331");
        assert_prints(lr.at(276_799), "6.16970e-4");
        // The same in full, from the formula in Python.
        assert_close(lr.at(1), 6.250781347668459e-07);
        assert_close(lr.at(4_000), 0.0025003125390673834);
        assert_close(lr.at(100_000), 0.004184479920946573);
        assert_close(lr.at(200_000), 0.0020933069272928992);
        assert_close(lr.at(276_799), 0.0006169703662038682);
    }

    #[test]
    fn vit_weight_decay_and_momentum_are_the_papers() {
        let (wd, m) = (decay(VIT), momentum(VIT));
        assert_close(wd.at(0), 0.04);
        assert_prints(wd.at(100_000), "0.106047");
        assert_prints(wd.at(200_000), "0.255718");
        assert_close(m.at(0), 0.992);
        assert_prints(m.at(100_000), "0.993449");
        assert_prints(m.at(200_000), "0.996734");
        assert_close(wd.at(100_000), 0.10604653297795896);
        assert_close(m.at(100_000), 0.993449354473683);
        assert_close(wd.at(200_000), 0.2557178594850735);
        assert_close(m.at(200_000), 0.9967338085831446);
        assert_close(wd.at(276_799), 0.3586919977196868);
        assert_close(m.at(276_799), 0.9989935188388487);
    }

    #[test]
    fn every_recipe_ends_where_the_papers_does() {
        for (recipe, lr, wd, m) in [
            (VIT, "6.1697e-4", "0.35869", "0.998994"),
            (SWIN, "1.8205e-4", "0.39119", "0.999707"),
            (RESNET, "2.0e-5", "0.4", "0.9999"),
        ] {
            let end = recipe.0 - 1;
            assert_prints(rate(recipe).at(end), lr);
            assert_prints(decay(recipe).at(end), wd);
            assert_prints(momentum(recipe).at(end), m);
        }
        assert_prints(rate(SWIN).base, "0.0056569");
        assert_prints(rate(RESNET).base, "0.0044721");
        assert_eq!(rate(SWIN).at(18_749), rate(SWIN).base);
    }

    #[test]
    fn teacher_temperature_warms_up_and_stays() {
        let tau = WarmupConstant {
            start: 0.04,
            base: 0.07,
            warmup: 30 * 800,
        };
        assert_eq!(tau.at(0), 0.04);
        assert_prints(tau.at(12_000), "0.0550006");
        assert_eq!(tau.at(23_999), 0.07);
        assert_eq!(tau.at(24_000), 0.07);
        assert_eq!(tau.at(u64::MAX), 0.07);
        assert_eq!(WarmupConstant { warmup: 0, ..tau }.at(0), 0.07);
        assert_eq!(WarmupConstant { warmup: 1, ..tau }.at(0), 0.04);
        assert_eq!(WarmupConstant { warmup: 1, ..tau }.at(1), 0.07);
    }

    #[test]
    fn tiny_runs_have_values_too() {
        let tiny = TruncatedCosine {
            base: 1.0,
            last: 0.1,
            warmup: 0,
            start: 0.0,
            total: 10,
            stretch: 1.0,
        };
        assert_eq!(tiny.at(0), 1.0);
        assert!(tiny.at(9) > 0.1 && tiny.at(9) == tiny.at(10) && tiny.at(9) == tiny.at(u64::MAX));
        // A warm-up of one iteration is its start; numpy's linspace of one point.
        let one = TruncatedCosine { warmup: 1, ..tiny };
        assert_eq!((one.at(0), one.at(1)), (0.0, 1.0));
        let two = TruncatedCosine { warmup: 2, ..tiny };
        assert_eq!((two.at(0), two.at(1), two.at(2)), (0.0, 1.0, 1.0));
        // The run ends within its warm-up.
        let short = TruncatedCosine { warmup: 21, ..tiny };
        assert_eq!((short.at(0), short.at(9), short.at(500)), (0.0, 0.45, 0.45));
        let even = TruncatedCosine { warmup: 10, ..tiny };
        assert_eq!((even.at(9), even.at(10)), (1.0, 1.0));
        for total in [0, 1] {
            assert_eq!(TruncatedCosine { total, ..tiny }.at(5), 1.0);
            assert_eq!(
                TruncatedCosine {
                    total,
                    warmup: 1,
                    ..tiny
                }
                .at(5),
                0.0
            );
        }
    }

    #[test]
    fn no_numbers_panic_or_leave_the_range() {
        let sizes = [0, 1, 2, 7, 1000, u64::MAX / 2, u64::MAX];
        for stretch in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 0.5, 1.0, 7.0] {
            for (total, warmup, i) in sizes
                .iter()
                .flat_map(|&t| sizes.iter().flat_map(move |&w| sizes.map(|i| (t, w, i))))
            {
                let value = TruncatedCosine {
                    base: 1.0,
                    last: 0.25,
                    warmup,
                    start: 0.0,
                    total,
                    stretch,
                }
                .at(i);
                assert!((0.0..=1.0).contains(&value), "{total} {warmup} {i} {stretch}: {value}");
            }
        }
    }
}
