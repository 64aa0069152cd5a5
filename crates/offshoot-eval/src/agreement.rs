//! How far a child sees the same neighbours as its parent: a score that needs no labels.

use offshoot_zoo::tensor::Device;

use crate::error::{EvalError, same};
use crate::features::FeatureMatrix;
use crate::knn::{Neighbours, neighbours_within};

/// The usual number of neighbours.
pub const K: usize = 20;

/// The outcome of [`agreement`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Mean share of the parent's neighbours that the child finds too, in 0..1.
    pub value: f64,
    /// Neighbours asked for.
    pub k: usize,
    /// Neighbours compared: one less than there are images where those are too few.
    pub used: usize,
    /// Images compared.
    pub images: usize,
}

impl Agreement {
    /// What unrelated features are expected to reach: `used / (images - 1)`.
    pub fn chance(&self) -> f64 {
        self.used as f64 / self.images.saturating_sub(1).max(1) as f64
    }
}

/// Over the same held-out images, the mean share of the `k` nearest neighbours by the parent's CLS features (cosine, the
/// image itself left out) that are among the child's `k` nearest too. The two may have different numbers of channels. A
/// parent against itself gives exactly 1. Our own measure, for data without labels.
///
/// # Errors
/// If there are fewer than two images or not the same number, a feature is not finite, or `k` is 0.
pub fn agreement(
    parent: &FeatureMatrix,
    child: &FeatureMatrix,
    k: usize,
    device: &Device,
) -> Result<Agreement, EvalError> {
    same("images of the child", child.rows, parent.rows)?;
    let parent = neighbours_within(parent, k, device)?;
    let child = neighbours_within(child, k, device)?;
    Ok(Agreement {
        k,
        ..overlap(&parent, &child)?
    })
}

/// [`agreement`] from neighbours that were found before, so that a whole family is compared with its parent's once.
///
/// # Errors
/// If the two are not about the same number of images and neighbours, or are empty.
pub fn overlap(parent: &Neighbours, child: &Neighbours) -> Result<Agreement, EvalError> {
    let (images, k) = (parent.queries, parent.k);
    same("images of the child", child.queries, images)?;
    same("neighbours of the child", child.k, k)?;
    let size = images.saturating_mul(k);
    same("neighbours of the parent", parent.indices.len(), size)?;
    same("neighbours of the child", child.indices.len(), size)?;
    if size == 0 {
        return Err(EvalError::TooFew {
            what: "images to be compared with each other",
            found: images,
            needed: 2,
        });
    }
    let mut common = 0usize;
    let mut theirs = Vec::with_capacity(k);
    for (parent, child) in parent.indices.chunks(k).zip(child.indices.chunks(k)) {
        theirs.clear();
        theirs.extend_from_slice(child);
        theirs.sort_unstable();
        common += parent.iter().filter(|i| theirs.binary_search(i).is_ok()).count();
    }
    Ok(Agreement {
        value: common as f64 / size as f64,
        k,
        used: k,
        images,
    })
}

#[cfg(test)]
mod tests {
    use offshoot_data::Rng;

    use super::*;

    fn cpu() -> Device {
        offshoot_zoo::tensor::device("cpu").unwrap()
    }

    fn random(rows: usize, dim: usize, seed: u64) -> FeatureMatrix {
        let mut rng = Rng::for_example(seed, "test", 0, 0);
        FeatureMatrix::new(rows, dim, (0..rows * dim).map(|_| rng.normal() as f32).collect()).unwrap()
    }

    #[test]
    fn a_parent_agrees_with_itself_wholly() {
        for (n, dim) in [(2, 1), (21, 4), (600, 13)] {
            let parent = random(n, dim, 1);
            assert_eq!(agreement(&parent, &parent, K, &cpu()).unwrap().value, 1.0);
        }
        // Constant features: all ties, the same on both sides.
        let constant = FeatureMatrix::new(50, 3, vec![0.1; 150]).unwrap();
        assert_eq!(agreement(&constant, &constant, K, &cpu()).unwrap().value, 1.0);
    }

    #[test]
    fn unrelated_features_agree_by_chance() {
        let found = agreement(&random(500, 32, 1), &random(500, 48, 2), K, &cpu()).unwrap();
        assert!((found.value - found.chance()).abs() < 0.01, "{found:?}");
        assert_eq!(found.chance(), 20.0 / 499.0);
    }

    /// Angles of four images in degrees; the nearest other image of each by hand.
    #[test]
    fn a_case_counted_by_hand() {
        let at = |degrees: [f32; 4]| {
            let values = degrees
                .iter()
                .flat_map(|d| [d.to_radians().cos(), d.to_radians().sin()])
                .collect();
            FeatureMatrix::new(4, 2, values).unwrap()
        };
        // One neighbour. Parent: 0-1, 1-0, 2-3, 3-2. Child: 0-1, 1-0, 2-1, 3-2: three of four are the same.
        let (parent, child) = (at([0.0, 10.0, 50.0, 55.0]), at([0.0, 10.0, 22.0, 40.0]));
        assert_eq!(agreement(&parent, &child, 1, &cpu()).unwrap().value, 0.75);
        // Two neighbours: 0-{1,2}, 1-{0,2}, 2-{1,3}, 3-{1,2} for both.
        assert_eq!(agreement(&parent, &child, 2, &cpu()).unwrap().value, 1.0);
    }

    #[test]
    fn few_images_reduce_k_and_one_is_an_error() {
        let found = agreement(&random(5, 3, 1), &random(5, 3, 2), 20, &cpu()).unwrap();
        assert_eq!((found.k, found.used, found.images, found.value), (20, 4, 5, 1.0));
        for n in [0, 1] {
            let few = random(n, 3, 1);
            assert!(matches!(
                agreement(&few, &few, 20, &cpu()),
                Err(EvalError::TooFew { .. })
            ));
        }
        assert!(agreement(&random(5, 3, 1), &random(4, 3, 1), 20, &cpu()).is_err());
        assert!(agreement(&random(5, 3, 1), &random(5, 3, 1), 0, &cpu()).is_err());
        let broken = Neighbours {
            queries: 2,
            k: 1,
            indices: vec![1],
            similarities: vec![],
        };
        assert!(overlap(&broken, &broken).is_err());
        let none = Neighbours {
            queries: 0,
            k: 0,
            indices: vec![],
            similarities: vec![],
        };
        assert!(overlap(&none, &none).is_err());
    }
}
