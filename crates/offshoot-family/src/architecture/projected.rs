//! Projected networks by their numbers: many decoders whose feed-forward matrices are mixes of the same slices.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{ArchitectureError, Decoder, positive};

/// The numbers of a projected network (SLM-pn, arXiv 2402.01093 v2 section 5.1; specialize.md section 5): expert `i` has the matrices
/// `W = sum_r c_r T_r` with `c = E_i M`, where the code `E_i` is one for all matrices, and `M` and the slices `T` are each matrix' own.
/// Everything else is shared by all experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projected {
    /// What every expert is.
    pub decoder: Decoder,
    /// Experts: `k`.
    pub experts: usize,
    /// Numbers of an expert's code: `m`. 0 in a recipe: as many as experts.
    #[serde(default)]
    pub codes: usize,
    /// Slices of each matrix: `h`. 0 in a recipe: as many as experts.
    #[serde(default)]
    pub slices: usize,
    /// Blocks whose feed-forward matrices are projected. Empty in a recipe: all of them.
    #[serde(default)]
    pub blocks: Vec<usize>,
}

impl Projected {
    /// The same with what is usual in place of zeros.
    #[must_use]
    pub fn filled(mut self) -> Self {
        self.decoder = self.decoder.filled();
        for number in [&mut self.codes, &mut self.slices] {
            if *number == 0 {
                *number = self.experts;
            }
        }
        if self.blocks.is_empty() {
            self.blocks = (0..self.decoder.depth).collect();
        }
        self
    }

    /// Checks that the numbers make a network.
    ///
    /// # Errors
    /// Names the first number that does not fit the others.
    pub fn check(&self) -> Result<(), ArchitectureError> {
        self.decoder.check()?;
        positive(&[
            ("experts", self.experts),
            ("codes", self.codes),
            ("slices", self.slices),
        ])?;
        let distinct: BTreeSet<_> = self.blocks.iter().collect();
        let fit = distinct.len() == self.blocks.len() && self.blocks.iter().all(|&b| b < self.decoder.depth);
        if self.blocks.is_empty() || !fit {
            let reason = format!("must be some of the {} blocks, each once", self.decoder.depth);
            return Err(ArchitectureError::new("blocks", format!("{:?}", self.blocks), reason));
        }
        Ok(())
    }
}
