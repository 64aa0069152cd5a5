//! Which documents are nearly those that are held out: MinHash signatures and locality-sensitive hashing.
//!
//! A. Broder, On the resemblance and containment of documents (1997); J. Leskovec, A. Rajaraman and J. Ullman, Mining of
//! Massive Datasets, chapter 3.

use std::collections::BTreeSet;

/// Hashes of a signature. The standard error of an estimated similarity s is `sqrt(s (1 - s) / 128)`: 0.035 at 0.8.
pub const HASHES: usize = 128;
/// The Jaccard similarity of 5-word shingles, as estimated, from which documents are near-duplicates.
pub const THRESHOLD: f64 = 0.8;
/// Words of a shingle.
const SHINGLE: usize = 5;
/// Hashes of a band. A pair of similarity s shares a band with probability `1 - (1 - s^4)^32`: 0.9999999 at 0.8 and 0.87
/// at 0.5.
const ROWS: usize = 4;
const BANDS: usize = HASHES / ROWS;

/// What a document looks like to the search.
pub(super) struct Sketch {
    /// A hash of its words in order.
    words: u64,
    signature: Box<[u32; HASHES]>,
}

/// How a document is like one that is held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Likeness {
    /// It has the same words in the same order.
    Equal,
    /// Its shingles are nearly the same.
    Near,
}

/// The sketch of a document; none where it has no word.
///
/// A word is a run of letters and digits, in lower case; scripts that are written without spaces have a word for each
/// character. A document of fewer than five words is one shingle.
pub(super) fn sketch(text: &str) -> Option<Sketch> {
    let words = words(text);
    if words.is_empty() {
        return None;
    }
    let mut signature = Box::new([u32::MAX; HASHES]);
    for shingle in words.windows(SHINGLE.min(words.len())) {
        let hash = shingle.iter().fold(SHINGLE as u64, |hash, word| mix(hash ^ word));
        let mut multiplier = MULTIPLIER;
        let mut shift = 0u64;
        for least in signature.iter_mut() {
            // Multiply and shift: a member of one family of hash functions each.
            multiplier = multiplier.wrapping_mul(MULTIPLIER);
            shift = shift.wrapping_add(INCREMENT);
            let own = (hash.wrapping_mul(multiplier).wrapping_add(shift) >> 32) as u32;
            *least = (*least).min(own);
        }
    }
    Some(Sketch {
        words: words.iter().fold(words.len() as u64, |hash, word| mix(hash ^ word)),
        signature,
    })
}

/// Odd and without pattern; powers of it are the multipliers (Steele and Vigna's generator constants).
const MULTIPLIER: u64 = 0xD134_2543_DE82_EF95;
const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;

/// A bijection of 64 bits that leaves no pattern (the finaliser of SplitMix64).
fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(INCREMENT);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

fn words(text: &str) -> Vec<u64> {
    let mut words = Vec::new();
    let mut current = 0u64;
    for character in text.chars() {
        if !character.is_alphanumeric() {
            words.extend((current != 0).then_some(current));
            current = 0;
            continue;
        }
        if is_word_alone(character) {
            words.extend((current != 0).then_some(current));
            current = 0;
            words.push(mix(u64::from(u32::from(character))));
            continue;
        }
        if character.is_ascii() {
            current = mix(current ^ u64::from(character.to_ascii_lowercase())) | 1;
        } else {
            for lower in character.to_lowercase() {
                current = mix(current ^ u64::from(u32::from(lower))) | 1;
            }
        }
    }
    words.extend((current != 0).then_some(current));
    words
}

/// Scripts without spaces between words: Thai and Lao, Burmese, Khmer, and the Chinese, Japanese and Yi ones.
fn is_word_alone(character: char) -> bool {
    matches!(u32::from(character), 0xE00..=0xEFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x2E80..=0xA4CF | 0xF900..=0xFAFF | 0x2_0000..=0x3_FFFF)
}

/// The documents that are held out: 780 bytes each, however long they are.
#[derive(Default)]
pub(super) struct HeldOut {
    words: Vec<u64>,
    signatures: Vec<[u32; HASHES]>,
    /// For each band, its hash and the signature that has it, sorted.
    bands: Vec<Vec<(u32, u32)>>,
}

impl HeldOut {
    /// Takes in all held-out documents. Equal signatures are kept once.
    pub(super) fn new(sketches: Vec<Sketch>) -> Self {
        let mut words: Vec<u64> = sketches.iter().map(|sketch| sketch.words).collect();
        words.sort_unstable();
        words.dedup();
        let signatures: BTreeSet<[u32; HASHES]> = sketches.into_iter().map(|sketch| *sketch.signature).collect();
        let signatures: Vec<_> = signatures.into_iter().collect();
        let bands = (0..BANDS).map(|band| {
            let numbered = signatures.iter().enumerate();
            let mut entries: Vec<(u32, u32)> = numbered.map(|(i, own)| (band_hash(own, band), i as u32)).collect();
            entries.sort_unstable();
            entries
        });
        Self {
            bands: bands.collect(),
            words,
            signatures,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.signatures.is_empty()
    }

    /// Whether a document is like one of these.
    pub(super) fn find(&self, sketch: &Sketch) -> Option<Likeness> {
        if self.words.binary_search(&sketch.words).is_ok() {
            return Some(Likeness::Equal);
        }
        let enough = (THRESHOLD * HASHES as f64).ceil() as usize;
        for (band, entries) in self.bands.iter().enumerate() {
            let hash = band_hash(&sketch.signature, band);
            let first = entries.partition_point(|(own, _)| *own < hash);
            let candidates = entries[first..].iter().take_while(|(own, _)| *own == hash);
            for (_, number) in candidates {
                let pairs = self.signatures[*number as usize].iter().zip(sketch.signature.iter());
                if pairs.filter(|(a, b)| a == b).count() >= enough {
                    return Some(Likeness::Near);
                }
            }
        }
        None
    }
}

fn band_hash(signature: &[u32; HASHES], band: usize) -> u32 {
    let rows = &signature[band * ROWS..(band + 1) * ROWS];
    (rows.iter().fold(band as u64, |hash, row| mix(hash ^ u64::from(*row))) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::rng::Rng;

    fn text(numbers: &[u64]) -> String {
        numbers.iter().map(|n| format!("word{n} ")).collect()
    }

    /// The similarity by its definition.
    fn jaccard(a: &[u64], b: &[u64]) -> f64 {
        let shingles = |numbers: &[u64]| numbers.windows(SHINGLE).map(<[u64]>::to_vec).collect::<BTreeSet<_>>();
        let (a, b) = (shingles(a), shingles(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    #[test]
    fn estimated_similarities_are_within_their_standard_error() {
        let mut rng = Rng::for_example(0, "minhash", 0, 0);
        let (mut bias, mut square, mut expected) = (0.0, 0.0, 0.0);
        let cases = 300;
        for _ in 0..cases {
            let a: Vec<u64> = (0..400).map(|_| rng.below(3000)).collect();
            let mut b = a.clone();
            for _ in 0..rng.below(25) {
                let at = rng.range(0..b.len());
                b[at] = 3000 + rng.below(1000);
            }
            let (first, second) = (sketch(&text(&a)).unwrap(), sketch(&text(&b)).unwrap());
            let equal = first
                .signature
                .iter()
                .zip(second.signature.iter())
                .filter(|(x, y)| x == y);
            let truth = jaccard(&a, &b);
            let error = equal.count() as f64 / HASHES as f64 - truth;
            bias += error / f64::from(cases);
            square += error * error;
            expected += truth * (1.0 - truth) / HASHES as f64;
        }
        // Four standard deviations of the mean, and a third more than the variance that the theory gives.
        assert!(bias.abs() < 4.0 * (expected).sqrt() / f64::from(cases), "{bias}");
        assert!(square < expected * 1.33, "{square} {expected}");
    }

    #[test]
    fn near_duplicates_are_found_and_others_are_not() {
        let mut rng = Rng::for_example(1, "minhash", 0, 0);
        let held: Vec<Vec<u64>> = (0..200).map(|_| (0..300).map(|_| rng.below(5000)).collect()).collect();
        let held_out = HeldOut::new(held.iter().map(|numbers| sketch(&text(numbers)).unwrap()).collect());
        for numbers in &held {
            let find = |numbers: &[u64]| held_out.find(&sketch(&text(numbers)).unwrap());
            assert_eq!(find(numbers), Some(Likeness::Equal));
            // Three words differ: 15 of 296 shingles, a similarity of 0.90.
            let mut near = numbers.clone();
            for at in [50, 150, 250] {
                near[at] = 9999;
            }
            assert_eq!(find(&near), Some(Likeness::Near));
            // Every twentieth word differs: 0.60.
            let far: Vec<u64> = (0..300).map(|i| if i % 20 == 0 { 9999 } else { numbers[i] }).collect();
            assert!(jaccard(numbers, &far) < 0.62);
            assert_eq!(find(&far), None);
        }
    }

    #[test]
    fn case_punctuation_and_white_space_make_no_difference() {
        let held_out = HeldOut::new(vec![
            sketch("The cat, sat on\nthe MAT; and slept.").unwrap(),
            sketch("Yes!").unwrap(),
        ]);
        let find = |text: &str| held_out.find(&sketch(text).unwrap());
        assert_eq!(find("the cat sat  on the mat and slept"), Some(Likeness::Equal));
        assert_eq!(find("yes"), Some(Likeness::Equal));
        assert_eq!(find("no"), None);
        assert_eq!(find("the cat sat"), None);
        assert!(sketch("... \u{1F600} ---").is_none());
        let chinese = HeldOut::new(vec![sketch("我们今天去公园里看花。").unwrap()]);
        assert_eq!(
            chinese.find(&sketch("我们 今天 去公园里看花").unwrap()),
            Some(Likeness::Equal)
        );
        assert_eq!(chinese.find(&sketch("你们昨天在学校里读书").unwrap()), None);
    }
}
