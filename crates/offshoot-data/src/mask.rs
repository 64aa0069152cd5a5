//! Block-wise patch masks of the iBOT objective, as DINOv2 and POA draw them.

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::rng::Rng;

/// The most patches of one crop.
const MAX_PATCHES: usize = 1 << 16;
/// Tries for a block that fits before a mask is left as it is.
const TRIES: usize = 10;

/// How the patches of global crops are masked. The default is POA's for a ViT: 14 x 14 patches, half the crops
/// masked, with 10 to 50 % of their patches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockMasks {
    /// Patches of a global crop: rows, columns.
    #[serde(skip)]
    pub grid: (usize, usize),
    /// Smallest and largest share of patches that a masked crop is asked to hide.
    pub ratio: (f32, f32),
    /// The share of crops that are masked.
    pub probability: f32,
    /// Smallest and largest ratio of a block's height to its width; drawn log-uniformly.
    pub aspect: (f32, f32),
    /// The area, in patches, of the smallest block that is drawn while more than that is missing.
    pub min_block: usize,
    /// The area of the largest block, as a share of all patches.
    pub max_block: f32,
    /// The first global step with masks; before it, a loader gives zeros.
    #[serde(skip)]
    pub from_step: u64,
}

impl Default for BlockMasks {
    fn default() -> Self {
        Self {
            grid: (14, 14),
            ratio: (0.1, 0.5),
            probability: 0.5,
            aspect: (0.3, 1.0 / 0.3),
            min_block: 4,
            max_block: 0.5,
            from_step: 0,
        }
    }
}

impl BlockMasks {
    /// Says what cannot work: an empty grid or one of more than 65,536 patches, and shares that are no shares.
    ///
    /// # Errors
    /// [`DataError::Config`] with the setting's name.
    pub fn check(&self) -> Result<(), DataError> {
        let (rows, columns) = self.grid;
        if rows == 0 || columns == 0 || rows.saturating_mul(columns) > MAX_PATCHES {
            let reason = format!("{rows} x {columns} patches are not within 1 to {MAX_PATCHES}");
            return Err(DataError::config("grid", reason));
        }
        let ordered = |(low, high): (f32, f32)| low <= high && high.is_finite();
        if !(self.ratio.0 >= 0.0 && self.ratio.1 <= 1.0 && ordered(self.ratio)) {
            return Err(DataError::config(
                "ratio",
                format!("{:?} is no range within 0 to 1", self.ratio),
            ));
        }
        if !(self.aspect.0 > 0.0 && ordered(self.aspect)) {
            return Err(DataError::config(
                "aspect",
                format!("{:?} is no range above 0", self.aspect),
            ));
        }
        for (field, value) in [("probability", self.probability), ("max_block", self.max_block)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(DataError::config(field, format!("{value} is not within 0 to 1")));
            }
        }
        Ok(())
    }

    /// Patches of one crop: N.
    #[must_use]
    pub fn patches(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    /// Masks `[n_images, N]` for a batch of global crops, 1 where a patch is hidden. Of them
    /// `int(probability * n_images)` are asked to hide patches, their shares stratified over `ratio`; which crops those
    /// are is random. A mask hides at most what was asked, and less where no block fits after ten tries.
    pub fn draw(&self, n_images: usize, rng: &mut Rng) -> Vec<u8> {
        let patches = self.patches();
        let masked = (f64::from(self.probability.clamp(0.0, 1.0)) * n_images as f64) as usize;
        let mut order: Vec<usize> = (0..n_images).collect();
        rng.shuffle(&mut order);
        let mut masks = vec![0; n_images * patches];
        let (low, high) = (f64::from(self.ratio.0), f64::from(self.ratio.1));
        for (k, &image) in order[..masked].iter().enumerate() {
            let edge = |k: usize| low + (high - low) * k as f64 / masked as f64;
            let share = rng.uniform(edge(k), edge(k + 1));
            let asked = ((patches as f64 * share).max(0.0) as usize).min(patches);
            self.fill(&mut masks[image * patches..(image + 1) * patches], asked, rng);
        }
        masks
    }

    /// Hides up to `asked` patches of one crop.
    fn fill(&self, mask: &mut [u8], asked: usize, rng: &mut Rng) {
        let largest = (f64::from(self.max_block) * self.patches() as f64) as usize;
        let mut done = 0;
        while done < asked {
            match self.block(mask, (asked - done).min(largest), rng) {
                0 => return,
                added => done += added,
            }
        }
    }

    /// Hides one block with at most `most` new patches; gives how many it added, 0 where ten tries found none.
    fn block(&self, mask: &mut [u8], most: usize, rng: &mut Rng) -> usize {
        let (rows, columns) = self.grid;
        for _ in 0..TRIES {
            let area = rng.uniform(self.min_block as f64, most as f64);
            let aspect = rng
                .uniform(f64::from(self.aspect.0).ln(), f64::from(self.aspect.1).ln())
                .exp();
            let height = (area * aspect).sqrt().round() as usize;
            let width = (area / aspect).sqrt().round() as usize;
            if height >= rows || width >= columns {
                continue;
            }
            let top = rng.range(0..rows - height + 1);
            let left = rng.range(0..columns - width + 1);
            let cells = (top..top + height).flat_map(|row| (left..left + width).map(move |c| row * columns + c));
            let new = cells.clone().filter(|&cell| mask[cell] == 0).count();
            if (1..=most).contains(&new) {
                cells.for_each(|cell| mask[cell] = 1);
                return new;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    fn counts(masks: &[u8], patches: usize) -> Vec<usize> {
        masks
            .chunks(patches)
            .map(|m| m.iter().map(|&v| usize::from(v)).sum())
            .collect()
    }

    #[test]
    fn half_of_a_hundred_crops_are_masked_each_within_its_ask() {
        let masks = BlockMasks::default();
        for seed in 0..20 {
            let drawn = masks.draw(100, &mut Rng::for_example(seed, "masks", 0, 0));
            assert_eq!(drawn.len(), 100 * 196);
            let mut hidden: Vec<usize> = counts(&drawn, 196).into_iter().filter(|&n| n > 0).collect();
            assert_eq!(hidden.len(), 50);
            hidden.sort_unstable();
            for (k, &n) in hidden.iter().enumerate() {
                // Stratum k asks for less than its upper edge, and sorting cannot lift a mask over its own ask.
                let ask = (196.0 * (0.1 + 0.4 * (k + 1) as f64 / 50.0)) as usize;
                assert!(n <= ask.min(98), "mask {k} hides {n}, asked {ask}");
            }
            // Blocks nearly always reach what was asked: the mean of the asks is 58.3.
            let mean = hidden.iter().sum::<usize>() as f64 / 50.0;
            assert!((54.0..59.0).contains(&mean), "{mean}");
        }
    }

    #[test]
    fn probability_rounds_down() {
        let masks = BlockMasks {
            probability: 0.5,
            ..BlockMasks::default()
        };
        for (images, expected) in [(0, 0), (1, 0), (2, 1), (7, 3)] {
            let drawn = masks.draw(images, &mut Rng::for_example(1, "masks", 0, 0));
            assert_eq!(counts(&drawn, 196).iter().filter(|&&n| n > 0).count(), expected);
        }
        let none = BlockMasks {
            probability: 0.0,
            ..BlockMasks::default()
        };
        assert!(
            none.draw(9, &mut Rng::for_example(1, "masks", 0, 0))
                .iter()
                .all(|&v| v == 0)
        );
    }

    proptest! {
        #[test]
        fn small_grids_work(rows in 1usize..9, columns in 1usize..9, images in 0usize..12, seed in any::<u64>()) {
            let masks = BlockMasks { grid: (rows, columns), ..BlockMasks::default() };
            let drawn = masks.draw(images, &mut Rng::for_example(seed, "masks", 0, 0));
            prop_assert_eq!(drawn.len(), images * rows * columns);
            prop_assert!(drawn.iter().all(|&v| v <= 1));
            for n in counts(&drawn, rows * columns) {
                prop_assert!(2 * n <= rows * columns);
            }
        }
    }
}
