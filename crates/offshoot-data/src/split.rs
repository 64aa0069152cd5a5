//! Training, validation and test parts, decided by each example's content.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::source::Source;

/// How much of the data is held out; the rest is for training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SplitShares {
    /// The share for validation, 0 to 1.
    pub val: f64,
    /// The share for the final test, 0 to 1.
    pub test: f64,
}

/// Example numbers of each part, ascending. Every example is in exactly one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Splits {
    /// For training.
    pub train: Vec<usize>,
    /// For choosing among models while training or searching.
    pub val: Vec<usize>,
    /// For the numbers that are reported.
    pub test: Vec<usize>,
}

/// A part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// For training.
    Train,
    /// For choosing among models while training or searching.
    Val,
    /// For the numbers that are reported.
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// Its name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

impl SplitShares {
    /// Whether the shares can be met.
    ///
    /// # Errors
    /// [`DataError::Config`] where one is negative or both together exceed 1.
    pub fn check(self) -> Result<(), DataError> {
        let Self { val, test } = self;
        if val >= 0.0 && test >= 0.0 && val + test <= 1.0 {
            return Ok(());
        }
        let reason = format!("val {val} and test {test} must not be negative, nor exceed 1 together");
        Err(DataError::config("split", reason))
    }

    /// The part of content with this hash.
    pub(crate) fn split_of(self, hash: &[u8; 32], seed: u64) -> Split {
        let at = unit(b"offshoot split 1", seed, hash);
        if at < self.val {
            Split::Val
        } else if at < self.val + self.test {
            Split::Test
        } else {
            Split::Train
        }
    }
}

/// A number in `[0, 1)` that depends on content, seed and purpose alone.
pub(crate) fn unit(purpose: &[u8], seed: u64, hash: &[u8; 32]) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose).update(&seed.to_le_bytes()).update(hash);
    let mut word = [0; 8];
    word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(word) >> 11) as f64 / (1u64 << 53) as f64
}

/// Divides examples by their content hashes.
///
/// Each example falls on its side by its own content, the seed and the shares alone: equal contents are never on two
/// sides, and adding or removing files moves no other. The parts' sizes are therefore as large as their shares on
/// average only; a part of a small data set may be empty.
///
/// # Errors
/// [`DataError::Config`] where a share is negative or both together exceed 1.
pub fn split(hashes: &[[u8; 32]], seed: u64, shares: SplitShares) -> Result<Splits, DataError> {
    shares.check()?;
    let mut splits = Splits::default();
    for (index, hash) in hashes.iter().enumerate() {
        match shares.split_of(hash, seed) {
            Split::Train => splits.train.push(index),
            Split::Val => splits.val.push(index),
            Split::Test => splits.test.push(index),
        }
    }
    Ok(splits)
}

/// The blake3 hash of each example's content ([`Source::bytes`]), in order, computed in parallel. An example whose
/// content cannot be read takes the hash of its name and the word `unreadable`, so that it still has a side; a loader
/// then counts it as damaged.
#[must_use]
pub fn content_hashes(source: &dyn Source) -> Vec<[u8; 32]> {
    (0..source.len())
        .into_par_iter()
        .map(|index| content_hash(source, index, &source.bytes(index)))
        .collect()
}

/// One example's hash, given its content or why that cannot be read.
pub(crate) fn content_hash(source: &dyn Source, index: usize, bytes: &Result<Vec<u8>, DataError>) -> [u8; 32] {
    match bytes {
        Ok(bytes) => *blake3::hash(bytes).as_bytes(),
        Err(_) => *blake3::hash(format!("unreadable {}", source.name(index)).as_bytes()).as_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(range: std::ops::Range<u32>) -> Vec<[u8; 32]> {
        range.map(|i| *blake3::hash(&i.to_le_bytes()).as_bytes()).collect()
    }

    const SHARES: SplitShares = SplitShares { val: 0.1, test: 0.2 };

    #[test]
    fn shares_are_met_and_every_example_has_one_side() {
        let splits = split(&hashes(0..20_000), 1, SHARES).unwrap();
        assert!((1_800..2_200).contains(&splits.val.len()), "{}", splits.val.len());
        assert!((3_800..4_200).contains(&splits.test.len()), "{}", splits.test.len());
        let mut all = [splits.train, splits.val, splits.test].concat();
        all.sort_unstable();
        assert_eq!(all, (0..20_000).collect::<Vec<_>>());
    }

    #[test]
    fn adding_files_moves_no_other_and_equal_content_stays_together() {
        let few = split(&hashes(0..500), 7, SHARES).unwrap();
        let mut more = hashes(0..500);
        more.extend(hashes(0..1000));
        let more = split(&more, 7, SHARES).unwrap();
        for (few, more) in [
            (&few.train, &more.train),
            (&few.val, &more.val),
            (&few.test, &more.test),
        ] {
            let first: Vec<usize> = more.iter().copied().filter(|&i| i < 500).collect();
            let copies: Vec<usize> = more
                .iter()
                .filter(|&&i| (500..1000).contains(&i))
                .map(|i| i - 500)
                .collect();
            assert_eq!(*few, first);
            assert_eq!(*few, copies);
        }
        assert_ne!(split(&hashes(0..500), 8, SHARES).unwrap(), few);
    }

    #[test]
    fn impossible_shares_are_refused() {
        for (val, test) in [(-0.1, 0.0), (0.6, 0.6), (f64::NAN, 0.0)] {
            assert!(split(&[], 0, SplitShares { val, test }).is_err());
        }
        assert_eq!(
            split(&hashes(0..9), 0, SplitShares { val: 0.0, test: 0.0 })
                .unwrap()
                .train
                .len(),
            9
        );
    }
}
