//! Which sub-network the elastic student is at each step: every shape of a space as often per cycle as its weight says.
//!
//! Follows POA's equation 14 as its code rounds it: smaller shapes are drawn more often, the intact one never, and a cycle
//! walks all copies without replacement before it is shuffled anew.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use offshoot_family::{Shape, Space};

/// Most shapes that a space may have to be walked.
pub const MAX_SHAPES: usize = 1 << 20;
/// Most draws of one cycle.
pub const MAX_CYCLE: usize = 1 << 24;

/// Why a space cannot be sampled.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// The space has no shapes.
    #[error("{0}")]
    Empty(String),
    /// The space or its cycle is too large to be walked.
    #[error("the space has {what} more than {limit}, too many to be walked without replacement")]
    TooLarge {
        /// Shapes or draws of a cycle.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// The scale is no weight.
    #[error("sampling scale {0}: must be a number of at least 1")]
    Scale(f64),
}

impl SamplingError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Empty(_) => "give every axis of the space at least one size".into(),
            Self::TooLarge { .. } => {
                "widen the intervals between the sizes of the axes, or lower the sampling scale".into()
            }
            Self::Scale(_) => "3 is the paper's for a ViT; 1 draws every shape equally often".into(),
        })
    }
}

/// Draws one shape for each step: a pure function of the seed and the step, so that nothing needs to be kept in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    intact: Shape,
    multiplicities: Vec<(Shape, usize)>,
    /// For every copy in a cycle, the index of its shape.
    copies: Vec<u32>,
    seed: u64,
}

impl Sampler {
    /// A sampler over `space` without its intact shape. Within each of `groups` of axes, shapes are ranked by the sum of their
    /// sizes, and the weight falls from `scale` for the least to 1 for the largest in equal steps (an axis of a single size weighs
    /// `scale`, as numpy's `linspace` has it); a cycle holds each shape as often as the product of its weights, rounded half to
    /// even, says (POA equation 14 and its code). Runs that share a step but should draw different shapes, such as the ranks of one
    /// job, take different seeds.
    ///
    /// # Panics
    /// If a group names an axis that the space does not have.
    ///
    /// # Errors
    /// If the space has no shapes or too many, or the scale is below 1.
    pub fn new(space: &Space, groups: &[Vec<usize>], scale: f64, seed: u64) -> Result<Self, SamplingError> {
        if space.axes.is_empty() {
            return Err(SamplingError::Empty("the space has no axes".into()));
        }
        if let Some(axis) = space.axes.iter().find(|axis| axis.sizes.is_empty()) {
            return Err(SamplingError::Empty(format!(
                "axis `{}` of the space has no sizes",
                axis.name
            )));
        }
        if !(scale.is_finite() && scale >= 1.0) {
            return Err(SamplingError::Scale(scale));
        }
        let count = space
            .axes
            .iter()
            .try_fold(1usize, |n, axis| n.checked_mul(axis.sizes.len()));
        if count.is_none_or(|count| count > MAX_SHAPES) {
            return Err(SamplingError::TooLarge {
                what: "shapes",
                limit: MAX_SHAPES,
            });
        }
        let mut weights = vec![1.0; space.count()];
        for group in groups {
            let sub = Space {
                axes: group.iter().map(|&axis| space.axes[axis].clone()).collect(),
            };
            let along = ranked(&sub, scale);
            for (weight, shape) in weights.iter_mut().zip(space.iter()) {
                let sizes = sub
                    .axes
                    .iter()
                    .map(|axis| shape.get(&axis.name).expect("an axis of the space"));
                let at = sub.axes.iter().zip(sizes).fold(0, |at, (axis, size)| {
                    let place = axis.sizes.iter().position(|&s| s == size).expect("a size of the axis");
                    at * axis.sizes.len() + place
                });
                *weight *= along[at];
            }
        }
        let intact = space.intact();
        let mut multiplicities = Vec::with_capacity(weights.len());
        let mut copies = Vec::new();
        for (shape, weight) in space.iter().zip(weights) {
            if shape == intact {
                continue;
            }
            // A cast of a float saturates: a product beyond all numbers is too large as well.
            let multiplicity = weight.round_ties_even() as usize;
            if multiplicity > MAX_CYCLE - copies.len() {
                return Err(SamplingError::TooLarge {
                    what: "draws in a cycle",
                    limit: MAX_CYCLE,
                });
            }
            let index = multiplicities.len() as u32;
            copies.extend(std::iter::repeat_n(index, multiplicity));
            multiplicities.push((shape, multiplicity));
        }
        Ok(Self {
            intact,
            multiplicities,
            copies,
            seed,
        })
    }

    /// Draws after which every shape was drawn exactly as often as its multiplicity; 0 if there is only the intact shape.
    pub fn cycle(&self) -> usize {
        self.copies.len()
    }

    /// How often each shape is drawn in a cycle, in the order of the space; the intact shape, which never is, is left out.
    pub fn multiplicities(&self) -> &[(Shape, usize)] {
        &self.multiplicities
    }

    /// The intact shape: what the other student always is.
    pub fn intact(&self) -> &Shape {
        &self.intact
    }

    /// The shape of the elastic student at `step`; the intact shape if there is no other. It shuffles a whole cycle, which
    /// takes microseconds for a few hundred copies.
    pub fn draw(&self, step: u64) -> Shape {
        if self.copies.is_empty() {
            return self.intact.clone();
        }
        let cycle = self.copies.len() as u64;
        let mut copies = self.copies.clone();
        shuffle(&mut copies, &mut self.generator(step / cycle));
        let copy = copies[(step % cycle) as usize];
        self.multiplicities[copy as usize].0.clone()
    }

    /// The random numbers of one pass over the cycle.
    fn generator(&self, pass: u64) -> ChaCha8Rng {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(b"elastic.sampling");
        hasher.update(&pass.to_le_bytes());
        ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
    }
}

/// The weight of each shape of `space`: from `scale` for the least sum of sizes to 1 for the largest, in equal steps. Shapes of
/// equal sums keep their order.
fn ranked(space: &Space, scale: f64) -> Vec<f64> {
    let sum = |index: &usize| -> usize { space.at(*index).iter().map(|(_, size)| size).sum() };
    let mut order: Vec<usize> = (0..space.count()).collect();
    order.sort_by_key(sum);
    let mut weights = vec![0.0; order.len()];
    for (index, weight) in order.into_iter().zip(falling(scale, space.count())) {
        weights[index] = weight;
    }
    weights
}

/// `linspace(scale, 1, points)` in the arithmetic of numpy, whose rounding decides some multiplicities.
fn falling(scale: f64, points: usize) -> Vec<f64> {
    if points == 1 {
        return vec![scale];
    }
    let step = (1.0 - scale) / (points - 1) as f64;
    (0..points)
        .map(|i| if i + 1 == points { 1.0 } else { i as f64 * step + scale })
        .collect()
}

/// A uniform permutation (Fisher-Yates, from the end).
fn shuffle<T>(items: &mut [T], random: &mut impl Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(last as u64 + 1, random) as usize);
    }
}

/// A uniform number below `bound`, which is not 0: draws that would favour small remainders are thrown away.
fn below(bound: u64, random: &mut impl Rng) -> u64 {
    // 2^64 mod bound: as many numbers at the end of the range belong to an incomplete round.
    let incomplete = (u64::MAX % bound + 1) % bound;
    loop {
        let draw = random.next_u64();
        if draw <= u64::MAX - incomplete {
            return draw % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use offshoot_family::Axis;

    use super::*;

    fn space(widths: impl IntoIterator<Item = usize>, depths: impl IntoIterator<Item = usize>) -> Space {
        let axis = |name: &str, sizes: Vec<usize>| Axis {
            name: name.into(),
            sizes,
        };
        Space {
            axes: vec![
                axis("width", widths.into_iter().collect()),
                axis("depth", depths.into_iter().collect()),
            ],
        }
    }

    /// Every axis weighs by itself, as for a ViT and a Swin.
    fn each_axis(space: &Space, scale: f64, seed: u64) -> Result<Sampler, SamplingError> {
        let each: Vec<Vec<usize>> = (0..space.axes.len()).map(|axis| vec![axis]).collect();
        Sampler::new(space, &each, scale, seed)
    }

    fn vit_l() -> Space {
        space((384..=1024).step_by(64), 12..=24)
    }

    fn shape(width: usize, depth: usize) -> Shape {
        Shape::new([("width", width), ("depth", depth)])
    }

    #[test]
    fn vit_multiplicities_are_the_papers_codes() {
        let table = [
            [9, 8, 8, 8, 7, 7, 6, 6, 5, 4, 4, 4, 3],
            [8, 8, 7, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3],
            [8, 7, 7, 6, 6, 6, 5, 5, 4, 4, 3, 3, 3],
            [7, 7, 6, 6, 6, 5, 5, 4, 4, 4, 3, 3, 2],
            [7, 6, 6, 6, 5, 5, 4, 4, 4, 3, 3, 3, 2],
            [6, 6, 5, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2],
            [5, 5, 5, 4, 4, 4, 4, 3, 3, 3, 2, 2, 2],
            [5, 5, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2],
            [4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 1],
            [4, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 1, 1],
            [3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 1, 1, 0],
        ];
        let sampler = each_axis(&vit_l(), 3.0, 0).unwrap();
        let found: BTreeMap<Shape, usize> = sampler.multiplicities().iter().cloned().collect();
        for (i, row) in table.iter().enumerate() {
            for (j, &multiplicity) in row.iter().enumerate() {
                let shape = shape(384 + 64 * i, 12 + j);
                assert_eq!(found.get(&shape).copied().unwrap_or(0), multiplicity, "{shape}");
            }
        }
        assert_eq!(sampler.multiplicities().len(), 142);
        assert_eq!(sampler.intact(), &shape(1024, 24));
        assert!(!found.contains_key(sampler.intact()));
        assert_eq!(found[&shape(384, 17)], 7);
        assert_eq!((found[&shape(384, 12)], sampler.cycle()), (9, 572));
        assert_eq!(found[&shape(768, 12)], 5);
    }

    #[test]
    fn cycles_are_as_long_as_the_papers() {
        for (scale, cycle) in [(3.0, 572), (2.0, 322), (1.0, 142)] {
            assert_eq!(each_axis(&vit_l(), scale, 0).unwrap().cycle(), cycle);
        }
        let swin = each_axis(&space([96, 112, 128], 6..=18), 2.0, 0).unwrap();
        assert_eq!(swin.cycle(), 88);
        let rows: Vec<usize> = swin.multiplicities().iter().map(|&(_, n)| n).collect();
        assert_eq!(rows[..13], [4, 4, 4, 4, 3, 3, 3, 3, 3, 2, 2, 2, 2]);
        assert_eq!(rows[13..26], [3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(rows[26..], [2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1]);
    }

    /// elastic.md 4.5: ranked by total blocks, no weight for the width; 698 = 3 * 233 - 1 draws a cycle.
    #[test]
    fn a_resnets_depths_are_ranked_together_and_its_width_does_not_weigh() {
        let axis = |name: &str, sizes: Vec<usize>| Axis {
            name: name.into(),
            sizes,
        };
        let space = Space {
            axes: vec![
                axis("width", vec![64, 96, 128]),
                axis("depth2", (4..=8).collect()),
                axis("depth3", (6..=36).collect()),
            ],
        };
        let sampler = Sampler::new(&space, &[vec![1, 2]], 2.0, 0).unwrap();
        assert_eq!((sampler.multiplicities().len(), sampler.cycle()), (464, 698));
        for (shape, n) in sampler.multiplicities() {
            let blocks = shape.get("depth2").unwrap() + shape.get("depth3").unwrap();
            assert!(
                if blocks < 26 { *n == 2 } else { blocks < 29 || *n == 1 },
                "{shape}: {n}"
            );
        }
    }

    #[test]
    fn every_pass_draws_each_shape_as_often_as_it_should() {
        let sampler = each_axis(&vit_l(), 3.0, 7).unwrap();
        let wanted: BTreeMap<Shape, usize> = sampler.multiplicities().iter().cloned().collect();
        let cycle = sampler.cycle() as u64;
        let mut passes = Vec::new();
        for pass in [0, 1, 2, 1 << 40] {
            let draws: Vec<Shape> = (0..cycle).map(|i| sampler.draw(pass * cycle + i)).collect();
            let mut found = BTreeMap::new();
            for shape in &draws {
                *found.entry(shape.clone()).or_insert(0) += 1;
            }
            assert_eq!(found, wanted);
            passes.push(draws);
        }
        assert!(passes[0] != passes[1] && passes[1] != passes[2]);
    }

    #[test]
    fn draws_follow_from_seed_and_step_alone() {
        let sampler = each_axis(&vit_l(), 3.0, 7).unwrap();
        let again = each_axis(&vit_l(), 3.0, 7).unwrap();
        let other = each_axis(&vit_l(), 3.0, 8).unwrap();
        let steps = [0, 1, 571, 572, 573, 100_000, u64::MAX];
        assert!(steps.iter().rev().all(|&step| sampler.draw(step) == again.draw(step)));
        assert!((0..50).any(|step| sampler.draw(step) != other.draw(step)));
        // These ids must never change: a resumed run of an older version depends on them.
        let first: Vec<String> = (0..6).map(|step| sampler.draw(step).id()).collect();
        assert_eq!(first, ["704x16", "576x17", "640x20", "768x13", "640x12", "384x17"]);
    }

    #[test]
    fn positions_are_uniform() {
        // 3 copies of 3 shapes of an axis (scale 1) in 30 000 passes: 10 000 each at the first place, sigma 82.
        let axis = Axis {
            name: "width".into(),
            sizes: vec![1, 2, 3, 4],
        };
        let sampler = each_axis(&Space { axes: vec![axis] }, 1.0, 3).unwrap();
        let mut found = [0i64; 3];
        for pass in 0..30_000 {
            found[sampler.draw(3 * pass).get("width").unwrap() - 1] += 1;
        }
        assert!(found.iter().all(|n| (n - 10_000).abs() < 410), "{found:?}");
    }

    #[test]
    fn a_space_of_one_shape_draws_it() {
        let sampler = each_axis(&space([64], [2]), 3.0, 0).unwrap();
        assert_eq!((sampler.cycle(), sampler.multiplicities().len()), (0, 0));
        assert_eq!(sampler.draw(0), shape(64, 2));
        assert_eq!(sampler.draw(u64::MAX), shape(64, 2));
    }

    #[test]
    fn an_axis_of_one_size_never_draws_the_intact_shape() {
        let sampler = each_axis(&space([64], [1, 2]), 3.0, 0).unwrap();
        assert_eq!(sampler.multiplicities(), [(shape(64, 1), 9)]);
        assert!((0..20).all(|step| sampler.draw(step) == shape(64, 1)));
    }

    #[test]
    fn what_cannot_be_sampled_is_refused() {
        assert!(matches!(
            each_axis(&Space { axes: vec![] }, 3.0, 0),
            Err(SamplingError::Empty(_))
        ));
        assert!(matches!(
            each_axis(&space([], [1]), 3.0, 0),
            Err(SamplingError::Empty(_))
        ));
        for scale in [0.0, 0.99, -1.0, f64::NAN, f64::INFINITY] {
            let error = each_axis(&vit_l(), scale, 0).unwrap_err();
            assert!(error.to_string().contains("at least 1") && error.hint().is_some());
        }
        assert!(matches!(
            each_axis(&vit_l(), 1e200, 0),
            Err(SamplingError::TooLarge { .. })
        ));
        assert!(matches!(
            each_axis(&vit_l(), 2000.0, 0),
            Err(SamplingError::TooLarge { .. })
        ));
        let axis = |_| Axis {
            name: "a".into(),
            sizes: (1..=1000).collect(),
        };
        let vast = Space {
            axes: (0..7).map(axis).collect(),
        };
        assert!(matches!(each_axis(&vast, 1.0, 0), Err(SamplingError::TooLarge { .. })));
    }
}
