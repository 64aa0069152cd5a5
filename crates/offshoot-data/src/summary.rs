//! What a source holds: counts, sizes, classes, damage and a fingerprint.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::source::Source;
use crate::split::content_hash;

/// Examples looked at between two reports of progress.
const CHUNK: usize = 512;

/// What [`summarize`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The source's format.
    pub kind: String,
    /// Examples, damaged ones included.
    pub count: usize,
    /// Files or members that are no examples.
    pub skipped: usize,
    /// Sizes of the images that could be decoded; none where none could.
    pub sizes: Option<Sizes>,
    /// Grey images.
    pub grey: usize,
    /// Colour images.
    pub colour: usize,
    /// Each class's name and number of examples, in the order of their numbers; empty without labels.
    pub classes: Vec<(String, usize)>,
    /// Examples whose content an earlier one has too.
    pub duplicates: usize,
    /// Name and reason of each example that cannot be read or decoded, in the source's order.
    pub damaged: Vec<(String, String)>,
    /// The blake3 hash, in hex, over the sorted content hashes of all examples ([`fingerprint`] of
    /// [`content_hashes`](crate::split::content_hashes)): names, order and labels do not change it, content does.
    pub fingerprint: String,
}

/// Image sizes (width, height) in pixels, ordered by area and then by width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// The smallest.
    pub min: (u32, u32),
    /// The one in the middle (the lower of two).
    pub median: (u32, u32),
    /// The largest.
    pub max: (u32, u32),
    /// How many different sizes there are.
    pub distinct: usize,
}

struct Seen {
    hash: [u8; 32],
    image: Result<(u32, u32, u8), String>,
}

/// Reads and decodes every example once, in parallel, and tells what there is. The result does not depend on the
/// number of threads. `progress` is called on this thread with the number of examples done.
#[must_use]
pub fn summarize(source: &dyn Source, progress: Option<&dyn Fn(usize)>) -> Summary {
    let count = source.len();
    let mut hashes = Vec::new();
    let mut sizes: BTreeMap<(u64, u32, u32), usize> = BTreeMap::new();
    let mut classes: Vec<(String, usize)> = source.classes().iter().map(|name| (name.clone(), 0)).collect();
    let (mut grey, mut colour) = (0, 0);
    let mut damaged = Vec::new();
    for start in (0..count).step_by(CHUNK) {
        let chunk = start..count.min(start + CHUNK);
        let seen: Vec<Seen> = chunk.clone().into_par_iter().map(|index| look(source, index)).collect();
        for (index, Seen { hash, image }) in chunk.clone().zip(seen) {
            hashes.push(hash);
            match image {
                Ok((width, height, channels)) => {
                    *sizes
                        .entry((u64::from(width) * u64::from(height), width, height))
                        .or_default() += 1;
                    if channels == 1 { grey += 1 } else { colour += 1 }
                }
                Err(reason) => damaged.push((source.name(index), reason)),
            }
            if let Some(class) = source.label(index).and_then(|label| classes.get_mut(label as usize)) {
                class.1 += 1;
            }
        }
        if let Some(progress) = progress {
            progress(chunk.end);
        }
    }
    hashes.par_sort_unstable();
    let duplicates = hashes.windows(2).filter(|pair| pair[0] == pair[1]).count();
    Summary {
        kind: source.kind().to_string(),
        count,
        skipped: source.skipped(),
        sizes: size_range(&sizes),
        grey,
        colour,
        classes,
        duplicates,
        damaged,
        fingerprint: fingerprint(&hashes),
    }
}

/// The fingerprint of a data set: the blake3 hash, in hex, of its content hashes in sorted order.
#[must_use]
pub fn fingerprint(hashes: &[[u8; 32]]) -> String {
    let mut sorted: Vec<&[u8; 32]> = hashes.iter().collect();
    sorted.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for hash in sorted {
        hasher.update(hash);
    }
    hasher.finalize().to_hex().to_string()
}

fn look(source: &dyn Source, index: usize) -> Seen {
    let bytes = source.bytes(index);
    let hash = content_hash(source, index, &bytes);
    let image = bytes.and_then(|_| source.read(index));
    let size = image.map(|image| (image.width, image.height, image.channels));
    Seen {
        hash,
        image: size.map_err(|error| error.to_string()),
    }
}

fn size_range(sizes: &BTreeMap<(u64, u32, u32), usize>) -> Option<Sizes> {
    let total: usize = sizes.values().sum();
    let mut before = 0;
    let median = sizes.iter().find(|(_, count)| {
        before += **count;
        2 * before >= total
    });
    let size = |key: &(u64, u32, u32)| (key.1, key.2);
    Some(Sizes {
        min: size(sizes.first_key_value()?.0),
        median: size(median?.0),
        max: size(sizes.last_key_value()?.0),
        distinct: sizes.len(),
    })
}
