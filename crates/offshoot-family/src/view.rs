//! How one child's tensors follow from its parent's: `W_child = gain * D * W * R`, as plain data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;

/// A linear map of one axis instance from the parent's size to the child's. Where a tensor writes the axis it is applied to
/// the rows, where it reads the axis to the columns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Operator {
    /// Every entry: the identity.
    All,
    /// The first `size` entries (POA's ordered slicing).
    Prefix {
        /// Entries kept.
        size: usize,
    },
    /// The entries `indices`, in this order.
    Select {
        /// Kept entries of the parent's axis.
        indices: Vec<usize>,
    },
    /// One entry made of all, each times its weight: on the axis of experts, whose entries are their codes, one-hot weights are an
    /// expert, and others a blend of several. The matrices that the code mixes follow from it.
    Mix {
        /// A weight for each entry.
        weights: Vec<f32>,
    },
}

impl Operator {
    /// Entries that are left of an axis of `parent` entries.
    pub fn size(&self, parent: usize) -> usize {
        match self {
            Self::All => parent,
            Self::Prefix { size } => *size,
            Self::Select { indices } => indices.len(),
            Self::Mix { .. } => 1,
        }
    }

    /// Whether the operator can be applied to an axis of `parent` entries.
    pub fn fits(&self, parent: usize) -> bool {
        match self {
            Self::All => true,
            Self::Prefix { size } => (1..=parent).contains(size),
            Self::Select { indices } => !indices.is_empty() && indices.iter().all(|&i| i < parent),
            Self::Mix { weights } => weights.len() == parent && weights.iter().all(|weight| weight.is_finite()),
        }
    }

    /// The kept entries of an axis of `parent` entries, as ascending-by-position runs `[start, end)`. A mix keeps none as it was.
    pub fn runs(&self, parent: usize) -> Vec<(usize, usize)> {
        match self {
            Self::Mix { .. } => Vec::new(),
            Self::All => vec![(0, parent)],
            Self::Prefix { size } => vec![(0, *size)],
            Self::Select { indices } => {
                let mut runs: Vec<(usize, usize)> = Vec::new();
                for &index in indices {
                    match runs.last_mut() {
                        Some(run) if run.1 == index => run.1 += 1,
                        _ => runs.push((index, index + 1)),
                    }
                }
                runs
            }
        }
    }
}

/// How one child's tensors follow from its parent's.
///
/// Axis instances that are not named keep every entry, blocks are kept as `blocks` says, and a tensor that `gains` does not
/// name has gain 1 (biases, norms, LayerScale, tokens and input embeddings always do).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// Content hash of the parent's weights, hex.
    pub parent: String,
    /// The child's architecture.
    pub child: Architecture,
    /// One operator per axis instance, such as `residual`, `blocks.3.heads` or `blocks.3.ffn`; block numbers are the parent's.
    pub axes: BTreeMap<String, Operator>,
    /// The parent's blocks that the child keeps, in the child's order.
    pub blocks: Vec<usize>,
    /// Gain per axis instance, applied once for every *read* of that axis by a matrix: POA's `alpha = D_max / D_i`.
    pub gains: BTreeMap<String, f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_neighbours_and_keep_order() {
        assert_eq!(Operator::All.runs(4), [(0, 4)]);
        assert_eq!(Operator::Prefix { size: 3 }.runs(4), [(0, 3)]);
        let op = Operator::Select {
            indices: vec![5, 6, 1, 2, 3, 9],
        };
        assert_eq!(op.runs(10), [(5, 7), (1, 4), (9, 10)]);
        assert_eq!(op.size(10), 6);
        assert!(op.fits(10) && !op.fits(9));
        assert!(!Operator::Prefix { size: 0 }.fits(3) && !Operator::Prefix { size: 4 }.fits(3));
    }
}
