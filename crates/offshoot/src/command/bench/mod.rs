//! `offshoot bench`: measures speed on made-up data, each measurement one line of JSON; one file a measurement.
//!
//! Every one has a rival in `benches/rivals/` that does the same work in other libraries, and `benches/compare.sh` runs the two
//! in turns. What both must agree on is here and in `benches/rivals/shared.py`: made-up numbers and the median.

mod cluster;
mod features;
mod knn;
mod lm;
mod step;

pub use lm::Steps;
use std::collections::BTreeMap;
use std::time::Instant;

use offshoot_family::Vit;
use offshoot_zoo::tensor::kernels::gemm::{Product, recorded};
use offshoot_zoo::tensor::kernels::on_workers;

use super::family::short;
use crate::args::Bench;
use crate::failure::Failure;
use crate::machine::{Machine, available_memory, peak_rss_mib};

/// Runs the command.
pub fn run(args: &Bench) -> Result<(), Failure> {
    match args {
        Bench::Step(args) => step::run(args),
        Bench::Lm(args) => lm::run(args),
        Bench::Features(args) => features::run(args),
        Bench::Knn(args) => knn::run(args),
        Bench::Cluster(args) => cluster::run(args),
    }
}

/// A colour vision transformer of these numbers, with the layout's usual ones for the rest.
fn vit((width, depth, head_dim, patch): (usize, usize, usize, usize), image: usize, position_offset: f64) -> Vit {
    Vit {
        width,
        depth,
        head_dim,
        mlp_ratio: 4,
        patch,
        image,
        channels: 3,
        position_offset,
        layer_scale: 1e-5,
        classes: 0,
        norm_eps: 1e-6,
    }
}

/// Errors if `value`, given by `option`, leaves nothing to time; `one` is what it counts.
fn at_least_one(option: &str, value: usize, one: &str) -> Result<(), Failure> {
    if value > 0 {
        return Ok(());
    }
    Err(Failure::input(
        format!("{option} 0 times nothing"),
        format!("ask for at least one {one}"),
    ))
}

/// Errors if this machine is known not to have the memory that `what` needs; `smaller` is what to do about it.
fn fits(what: &str, bytes: f64, smaller: &str) -> Result<(), Failure> {
    let Some(free) = available_memory().filter(|&free| bytes > free as f64) else {
        return Ok(());
    };
    let (needed, free) = (short(bytes, "B"), short(free as f64, "B"));
    Err(Failure::input(
        format!("{what} needs about {needed} of memory, and {free} are free"),
        format!("choose {smaller}, or a machine with more memory"),
    ))
}

/// Seconds of what was timed.
struct Seconds {
    sorted: Vec<f64>,
}

impl Seconds {
    /// At least one.
    fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { sorted: seconds }
    }

    fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The median; the upper one of two.
    fn median(&self) -> f64 {
        rounded(self.sorted[self.count() / 2])
    }

    fn min(&self) -> f64 {
        rounded(self.sorted[0])
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1e5).round() / 1e5
}

/// Made-up number `index`, in [-2, 2): the 24 high bits of a hash (`fmix32` of MurmurHash3), exact in 32-bit floats.
fn noise(index: usize) -> f32 {
    let mut hash = index as u32;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^= hash >> 16;
    (hash >> 8) as f32 / (1 << 22) as f32 - 2.0
}

/// Training steps that were timed.
struct Timed {
    seconds: Seconds,
    /// What the last step returned: its loss.
    last: f64,
    /// The largest resident memory, in MiB.
    peak: Option<u64>,
    floor: Option<Floor>,
}

impl Timed {
    /// Runs `one_step` some times, of which the first `warmup` do not count.
    fn new(
        machine: &Machine,
        warmup: usize,
        steps: usize,
        mut one_step: impl FnMut() -> Result<f64, Failure> + Send,
    ) -> Result<Self, Failure> {
        let mut seconds = Vec::with_capacity(steps);
        let mut last = f64::NAN;
        for step in 0..warmup + steps {
            let began = Instant::now();
            last = on_workers(&mut one_step)?;
            if step >= warmup {
                seconds.push(began.elapsed().as_secs_f64());
            }
        }
        let peak = peak_rss_mib();
        // Last, so that neither the time nor the memory of the steps has any of it.
        let floor = if machine.name == "cpu" {
            let (done, products) = recorded(one_step);
            done?;
            Some(Floor::measure(&products))
        } else {
            None
        };
        Ok(Self {
            seconds: Seconds::new(seconds),
            last,
            peak,
            floor,
        })
    }
}

/// What the bare matrix products of a step take.
struct Floor {
    flops: f64,
    seconds: f64,
}

impl Floor {
    /// Times a product of each size that a step has: the best of a few, with nothing before or after it, on all threads.
    fn measure(products: &BTreeMap<Product, usize>) -> Self {
        const ROUNDS: usize = 6;
        let mut floor = Self {
            flops: 0.0,
            seconds: 0.0,
        };
        for (product, &count) in products {
            floor.flops += count as f64 * product.flops();
            let mut run = product.bare();
            let seconds = (0..ROUNDS).map(|_| {
                let began = Instant::now();
                run();
                began.elapsed().as_secs_f64()
            });
            floor.seconds += count as f64 * seconds.fold(f64::INFINITY, f64::min);
        }
        floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from `benches/rivals/shared.py`.
    #[test]
    fn made_up_numbers_are_those_of_the_rivals() {
        let first: Vec<f32> = (0..4).map(noise).collect();
        assert_eq!(first, [-2.0, -0.729_604_7, -1.235_060_9, 0.092_816_35]);
        assert_eq!(noise(1 << 32), noise(0));
        let numbers: Vec<f64> = (0..10_000).map(|i| f64::from(noise(i))).collect();
        let mean = numbers.iter().sum::<f64>() / 1e4;
        let variance = numbers.iter().map(|v| v * v).sum::<f64>() / 1e4;
        assert!(mean.abs() < 0.03 && (variance - 4.0 / 3.0).abs() < 0.03);
        assert!(numbers.iter().all(|v| (-2.0..2.0).contains(v)));
    }

    #[test]
    fn the_median_is_the_upper_one_of_two() {
        let seconds = Seconds::new(vec![3.0, 1.0, 4.0, 2.000_001]);
        assert_eq!((seconds.count(), seconds.median(), seconds.min()), (4, 3.0, 1.0));
    }
}
