//! Texts to vectors without a model: weighted counts of terms, reduced to a few directions (c-BTM, arXiv 2303.14177).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use offshoot_family::files::write_atomic;
use offshoot_zoo::safetensors::{self, SafetensorsError, SafetensorsFile};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::ClusterError;
use super::stop_words::STOP_WORDS;
use super::svd::{Sparse, right_vectors};

/// Name of the file with the terms.
const TERMS: &str = "terms.json";
/// Name of the file with the numbers.
const NUMBERS: &str = "tfidf.safetensors";
/// Format of the terms.
const FORMAT: u64 = 1;
/// Texts whose terms are counted by one thread in turn.
const PIECE: usize = 256;
/// Longer terms are no words.
const MAX_TERM_BYTES: usize = 64;

/// What decides a [`TfIdf`], besides the texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TfIdfSettings {
    /// Directions that are kept.
    pub dimensions: usize,
    /// Terms, at most: those that are in the most texts.
    pub terms: usize,
    /// Decides the random projections.
    pub seed: u64,
}

impl TfIdfSettings {
    /// c-BTM's 100 directions, and 65,536 terms.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            dimensions: 100,
            terms: 1 << 16,
            seed,
        }
    }
}

/// Terms with their weights and directions.
///
/// A term is two or more letters, digits or underscores in lower case that do not begin with a digit, and no English stop word. A text's
/// counts are multiplied by `ln((1 + n) / (1 + texts with the term)) + 1` and divided by their norm, as scikit-learn's
/// `TfidfVectorizer` does, then projected on the right singular vectors of the sample's matrix and divided by the norm again.
#[derive(Clone, Debug)]
pub struct TfIdf {
    places: HashMap<String, u32>,
    /// In order.
    terms: Vec<String>,
    /// Weight of each term.
    weights: Vec<f32>,
    /// `[terms, dimensions]`, row-major.
    directions: Vec<f32>,
    dimensions: usize,
    hash: String,
}

#[derive(Serialize, Deserialize)]
struct TermsFile {
    format: u64,
    terms: Vec<String>,
}

impl TfIdf {
    /// Terms and directions of a sample of texts. Terms of one text alone are left out.
    ///
    /// # Errors
    /// [`ClusterError::NoTerms`] where no term is in two texts, [`ClusterError::Setting`] where nothing is to be kept.
    pub fn fit(texts: &[String], settings: &TfIdfSettings) -> Result<Self, ClusterError> {
        if settings.dimensions == 0 || settings.terms == 0 {
            let reason = format!("{} directions of {} terms", settings.dimensions, settings.terms);
            return Err(ClusterError::setting("dimensions", reason));
        }
        let counted: Vec<BTreeMap<String, u32>> = texts
            .par_chunks(PIECE)
            .map(|texts| {
                let mut counts = BTreeMap::new();
                for text in texts {
                    for term in counts_of(text).into_keys() {
                        *counts.entry(term).or_insert(0) += 1;
                    }
                }
                counts
            })
            .collect();
        let mut documents: BTreeMap<String, u32> = BTreeMap::new();
        for (term, count) in counted.into_iter().flatten() {
            *documents.entry(term).or_insert(0) += count;
        }
        let mut kept: Vec<(String, u32)> = documents.into_iter().filter(|(_, count)| *count > 1).collect();
        if kept.is_empty() {
            return Err(ClusterError::NoTerms { documents: texts.len() });
        }
        if kept.len() > settings.terms {
            kept.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            kept.truncate(settings.terms);
            kept.sort();
        }
        let n = texts.len() as f64;
        let weight = |count: u32| (((1.0 + n) / (1.0 + f64::from(count))).ln() + 1.0) as f32;
        let weights = kept.iter().map(|(_, count)| weight(*count)).collect();
        let terms: Vec<String> = kept.into_iter().map(|(term, _)| term).collect();
        let dimensions = settings.dimensions.min(terms.len()).min(texts.len());
        let mut fitted = Self {
            places: places(&terms),
            directions: vec![0.0; terms.len() * dimensions],
            terms,
            weights,
            dimensions,
            hash: String::new(),
        };
        let rows: Vec<Vec<(u32, f32)>> = texts.par_iter().map(|text| fitted.row(text)).collect();
        let mut matrix = Sparse::new(fitted.terms.len());
        rows.iter().for_each(|row| matrix.push(row));
        fitted.directions = right_vectors(&matrix, dimensions, settings.seed);
        fitted.hash = fitted.computed_hash();
        Ok(fitted)
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn width(&self) -> usize {
        self.dimensions
    }

    /// Terms.
    #[must_use]
    pub fn terms(&self) -> usize {
        self.terms.len()
    }

    /// A hash of terms, weights and directions, hex.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The vectors of texts, `[texts, width]` row-major, each of length 1, or zeros where a text has none of the terms.
    #[must_use]
    pub fn embed(&self, texts: &[String]) -> Vec<f32> {
        let n = self.dimensions;
        let mut out = vec![0.0; texts.len() * n];
        out.par_chunks_mut(n).zip(texts).for_each(|(out, text)| {
            let mut sums = vec![0.0f64; n];
            for (term, value) in self.row(text) {
                let direction = &self.directions[term as usize * n..][..n];
                sums.iter_mut()
                    .zip(direction)
                    .for_each(|(sum, x)| *sum += f64::from(value) * f64::from(*x));
            }
            let norm = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
            if norm > 1e-12 {
                out.iter_mut().zip(&sums).for_each(|(x, sum)| *x = (sum / norm) as f32);
            }
        });
        out
    }

    /// The weighted counts of a text, of norm 1, by the terms' order.
    fn row(&self, text: &str) -> Vec<(u32, f32)> {
        let known = counts_of(text)
            .into_iter()
            .filter_map(|(term, count)| self.places.get(&term).map(|&place| (place, count)));
        let mut row: Vec<(u32, f64)> = known
            .map(|(place, count)| (place, f64::from(count) * f64::from(self.weights[place as usize])))
            .collect();
        row.sort_unstable_by_key(|(place, _)| *place);
        let norm = row.iter().map(|(_, x)| x * x).sum::<f64>().sqrt();
        row.into_iter().map(|(place, x)| (place, (x / norm) as f32)).collect()
    }

    fn computed_hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"offshoot tf-idf 1");
        hasher.update(&(self.dimensions as u64).to_le_bytes());
        for term in &self.terms {
            hasher
                .update(&(term.len() as u64).to_le_bytes())
                .update(term.as_bytes());
        }
        for value in self.weights.iter().chain(&self.directions) {
            hasher.update(&value.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Writes it into a folder: `tfidf.safetensors` and, last, `terms.json`, each whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, folder: &Path) -> Result<(), ClusterError> {
        let tensors = [
            ("weights".to_owned(), vec![self.terms.len()]),
            ("directions".to_owned(), vec![self.terms.len(), self.dimensions]),
        ];
        safetensors::write(&folder.join(NUMBERS), &tensors, |i| {
            Ok::<_, SafetensorsError>(if i == 0 {
                self.weights.clone()
            } else {
                self.directions.clone()
            })
        })?;
        let path = folder.join(TERMS);
        let file = TermsFile {
            format: FORMAT,
            terms: self.terms.clone(),
        };
        write_atomic(&path, |out| Ok(serde_json::to_writer(out, &file)?)).map_err(ClusterError::io(&path))
    }

    /// Whether a folder holds one.
    #[must_use]
    pub fn is_in(folder: &Path) -> bool {
        folder.join(TERMS).is_file()
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// If a file is missing, of a newer format, or does not fit the other.
    pub fn open(folder: &Path) -> Result<Self, ClusterError> {
        let path = folder.join(TERMS);
        let damaged = |reason: String| ClusterError::damaged(&path, reason);
        let content = std::fs::read(&path).map_err(ClusterError::io(&path))?;
        let file: TermsFile =
            serde_json::from_slice(&content).map_err(|e| damaged(format!("no list of terms: {e}")))?;
        if file.format > FORMAT {
            return Err(ClusterError::NewerFormat {
                path,
                found: file.format,
                known: FORMAT,
            });
        }
        let numbers = SafetensorsFile::open(&folder.join(NUMBERS))?;
        let n = file.terms.len();
        let dimensions = match (numbers.shape("weights"), numbers.shape("directions")) {
            (Some(&[weights]), Some(&[rows, dimensions])) if weights == n && rows == n && dimensions > 0 => dimensions,
            _ => return Err(damaged(format!("{n} terms do not fit {NUMBERS} beside it"))),
        };
        let mut read = Self {
            places: places(&file.terms),
            terms: file.terms,
            weights: numbers.read("weights")?,
            directions: numbers.read("directions")?,
            dimensions,
            hash: String::new(),
        };
        read.hash = read.computed_hash();
        Ok(read)
    }
}

fn places(terms: &[String]) -> HashMap<String, u32> {
    terms
        .iter()
        .enumerate()
        .map(|(place, term)| (term.clone(), place as u32))
        .collect()
}

/// How often each term is in a text.
fn counts_of(text: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    for word in words {
        let starts = word.chars().next();
        if word.len() < 2 || word.len() > MAX_TERM_BYTES || starts.is_none_or(char::is_numeric) {
            continue;
        }
        let term = word.to_lowercase();
        if term.chars().nth(1).is_some() && !is_stop_word(&term) {
            *counts.entry(term).or_insert(0) += 1;
        }
    }
    counts
}

fn is_stop_word(term: &str) -> bool {
    use std::collections::HashSet;
    use std::sync::LazyLock;
    static WORDS: LazyLock<HashSet<&str>> = LazyLock::new(|| STOP_WORDS.split(' ').collect());
    WORDS.contains(term)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_words_without_numbers_and_stop_words() {
        let counts = counts_of("The cat's 2nd cat, a 4 x_y \u{c9}T\u{c9} 1984 of the CAT!");
        let found: Vec<(&str, u32)> = counts.iter().map(|(term, &n)| (term.as_str(), n)).collect();
        assert_eq!(found, [("cat", 3), ("x_y", 1), ("\u{e9}t\u{e9}", 1)]);
        assert_eq!(STOP_WORDS.split(' ').count(), 318);
    }

    #[test]
    fn texts_of_one_subject_lie_together_and_unknown_ones_are_zeros() {
        let texts: Vec<String> = (0..40)
            .map(|i| {
                if i % 2 == 0 {
                    format!("court judge appeal law statute {i} plaintiff")
                } else {
                    format!("protein cell gene enzyme {i} receptor membrane")
                }
            })
            .collect();
        let settings = TfIdfSettings {
            dimensions: 2,
            ..TfIdfSettings::new(0)
        };
        let fitted = TfIdf::fit(&texts, &settings).unwrap();
        let probe = ["the judge and the law", "a gene in a cell", "12 of 15", ""].map(String::from);
        let vectors = fitted.embed(&probe);
        let cosine = |a: usize, b: usize| (0..2).map(|d| vectors[2 * a + d] * vectors[2 * b + d]).sum::<f32>();
        assert!((cosine(0, 0) - 1.0).abs() < 1e-6 && (cosine(1, 1) - 1.0).abs() < 1e-6);
        assert!(cosine(0, 1).abs() < 1e-4, "{}", cosine(0, 1));
        assert_eq!(vectors[4..], [0.0; 4]);

        let folder = tempfile::tempdir().unwrap();
        fitted.save(folder.path()).unwrap();
        let opened = TfIdf::open(folder.path()).unwrap();
        assert_eq!(opened.hash(), fitted.hash());
        assert_eq!(opened.embed(&probe), vectors);
    }

    /// Weights by scikit-learn 1.9's formula: of 3 texts, 2 with the term, `ln(4 / 3) + 1`.
    #[test]
    fn weights_are_those_of_scikit_learn() {
        let texts = ["red green", "green blue blue", "red blue"].map(String::from);
        let fitted = TfIdf::fit(&texts, &TfIdfSettings::new(0)).unwrap();
        assert_eq!(fitted.terms, ["blue", "green", "red"]);
        assert!(fitted.weights.iter().all(|w| (w - 1.287_682).abs() < 1e-6));
        let row = fitted.row("green blue blue");
        assert!((row[0].1 - 2.0 / 5f32.sqrt()).abs() < 1e-6 && (row[1].1 - 1.0 / 5f32.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn texts_without_a_common_term_are_refused() {
        let texts = ["one word each", "nothing alike here"].map(String::from);
        let error = TfIdf::fit(&texts, &TfIdfSettings::new(0)).unwrap_err();
        assert!(matches!(error, ClusterError::NoTerms { documents: 2 }), "{error}");
    }
}
