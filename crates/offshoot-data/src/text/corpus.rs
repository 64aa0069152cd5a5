//! A tokenised corpus on disk: what it says of itself, and its tokens, mapped into memory.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use filebuffer::FileBuffer;
use serde::{Deserialize, Serialize};

use super::build::{check_name, part_hash};
use super::tokenizer::{FILE as TOKENIZER, Tokenizer};
use crate::error::DataError;
use crate::split::{Split, SplitShares};

/// The name of the file that says what a corpus is.
pub(super) const FACTS: &str = "corpus.json";
/// The newest format known.
pub(super) const FORMAT: u64 = 1;
/// The largest `corpus.json`, in bytes.
const MAX_FACTS_BYTES: u64 = 64 << 20;
/// Bytes of an index entry: where a document ends in the tokens, and its UTF-8 bytes.
pub(super) const ENTRY: u64 = 16;

/// The content of `corpus.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The number of the format.
    pub format: u64,
    /// The version of offshoot that wrote it.
    pub version: String,
    /// A hash of all that decides what a model sees: tokenizer, options and tokens.
    pub fingerprint: String,
    /// The tokenizer.
    pub tokenizer: TokenizerFacts,
    /// Bytes of a token in the files: 2 or 4.
    pub token_bytes: u8,
    /// How documents were divided.
    pub split: SplitFacts,
    /// The similarity from which near-duplicates of held-out documents were removed; none where they were not sought.
    pub near_duplicates: Option<f64>,
    /// The domains, in the order that they were given.
    pub domains: Vec<DomainFacts>,
}

/// The tokenizer of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerFacts {
    /// The blake3 hash of `tokenizer.json`.
    pub hash: String,
    /// One more than the largest id.
    pub vocabulary: usize,
    /// The token that begins a text.
    pub begin_of_text: Option<u32>,
    /// The token that ends a text.
    pub end_of_text: Option<u32>,
}

/// How documents were divided.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SplitFacts {
    /// The seed.
    pub seed: u64,
    /// The shares held out.
    #[serde(flatten)]
    pub shares: SplitShares,
}

/// One domain of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainFacts {
    /// Its name, and that of its folder.
    pub name: String,
    /// Where its text was, as it was given.
    pub path: String,
    /// A hash of the content of all its documents in order, those removed as duplicates included.
    pub fingerprint: String,
    /// Documents found that are neither empty nor damaged.
    pub documents: u64,
    /// Their UTF-8 bytes.
    pub bytes: u64,
    /// Documents that equal an earlier one of the domain, and stay.
    pub repeated: u64,
    /// What was left out.
    pub removed: Removed,
    /// The training part.
    pub train: PartFacts,
    /// The part for choosing among models.
    pub val: PartFacts,
    /// The part for final numbers.
    pub test: PartFacts,
}

impl DomainFacts {
    /// What is said of one part.
    #[must_use]
    pub fn part(&self, split: Split) -> &PartFacts {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
            Split::Test => &self.test,
        }
    }
}

/// Documents of a domain that were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// White space alone.
    pub empty: u64,
    /// No text, or no line as it should be.
    pub damaged: u64,
    /// Where the first of these are, and what they are instead; not in corpora of before this was kept.
    #[serde(default)]
    pub first_damaged: Vec<String>,
    /// Training documents with the words of a held-out document of any domain, in order.
    pub exact_duplicates: u64,
    /// Other training documents that are nearly a held-out one.
    pub near_duplicates: u64,
}

/// One part of a domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartFacts {
    /// Documents.
    pub documents: u64,
    /// Their UTF-8 bytes.
    pub bytes: u64,
    /// Their tokens.
    pub tokens: u64,
    /// A hash of the tokens and the index.
    pub hash: String,
}

impl Facts {
    /// The tokens of one part of all domains.
    #[must_use]
    pub fn tokens(&self, split: Split) -> u64 {
        self.domains.iter().map(|domain| domain.part(split).tokens).sum()
    }

    /// The hash of all that decides what a model sees.
    pub(super) fn computed_fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"offshoot corpus 1");
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        add(self.tokenizer.hash.as_bytes());
        for id in [self.tokenizer.begin_of_text, self.tokenizer.end_of_text] {
            add(&id.map_or([0xFF; 8], |id| u64::from(id).to_le_bytes()));
        }
        add(&self.split.seed.to_le_bytes());
        for share in [
            self.split.shares.val,
            self.split.shares.test,
            self.near_duplicates.unwrap_or(-1.0),
        ] {
            add(&share.to_le_bytes());
        }
        for domain in &self.domains {
            add(domain.name.as_bytes());
            add(domain.fingerprint.as_bytes());
            for split in Split::ALL {
                add(domain.part(split).hash.as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// A corpus that is open for reading. Its files are mapped, not read: it may be larger than the memory. They must not
/// be cut short while it is open.
pub struct Corpus {
    folder: PathBuf,
    facts: Facts,
    tokenizer: Tokenizer,
    /// Train, val and test of each domain.
    parts: Vec<[Part; 3]>,
}

impl std::fmt::Debug for Corpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Corpus")
            .field("folder", &self.folder)
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl Corpus {
    /// Opens a corpus: reads what it says of itself and its tokenizer, maps its tokens and goes through its indices.
    ///
    /// # Errors
    /// Where a file is missing, is of a newer format, or does not fit what `corpus.json` says.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let facts = read_facts(&folder.join(FACTS))?;
        let mut tokenizer = Tokenizer::open(&folder.join(TOKENIZER))?;
        let place = folder.join(TOKENIZER).display().to_string();
        if tokenizer.hash() != facts.tokenizer.hash {
            let reason = "not the tokenizer that the corpus was made with: its hash differs";
            return Err(DataError::damaged(place, reason));
        }
        let (own, said) = (tokenizer.vocabulary(), facts.tokenizer.vocabulary);
        if own != said {
            let reason = format!("its vocabulary of {own} is not that of {said} in {FACTS}");
            return Err(DataError::damaged(place, reason));
        }
        tokenizer.set_text_tokens(facts.tokenizer.begin_of_text, facts.tokenizer.end_of_text);
        let mut parts = Vec::new();
        for domain in &facts.domains {
            let open = |split| Part::open(folder, &facts, domain, split);
            parts.push([open(Split::Train)?, open(Split::Val)?, open(Split::Test)?]);
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            facts,
            tokenizer,
            parts,
        })
    }

    /// What the corpus says of itself.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A hash of all that decides what a model sees.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.facts.fingerprint
    }

    /// Its tokenizer, with the tokens that begin and end a text as they were when the corpus was made.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The number of a domain by its name.
    #[must_use]
    pub fn domain(&self, name: &str) -> Option<usize> {
        self.facts.domains.iter().position(|domain| domain.name == name)
    }

    /// One part of a domain; none beyond the last domain.
    #[must_use]
    pub fn part(&self, domain: usize, split: Split) -> Option<&Part> {
        self.parts.get(domain).map(|parts| &parts[split as usize])
    }

    /// Reads all tokens and compares them with the hashes in `corpus.json`. Opening does not, for it would read all.
    ///
    /// # Errors
    /// [`DataError::Damaged`] where a file is another.
    pub fn verify(&self) -> Result<(), DataError> {
        for (domain, parts) in self.facts.domains.iter().zip(&self.parts) {
            for (split, part) in Split::ALL.into_iter().zip(parts) {
                let hash = part_hash(&blake3::hash(&part.tokens), &blake3::hash(&part.index));
                if hash != domain.part(split).hash {
                    let reason = "tokens or index are not what the corpus was written with: their hash differs";
                    return Err(DataError::damaged(&part.place, reason));
                }
            }
        }
        Ok(())
    }
}

fn read_facts(path: &Path) -> Result<Facts, DataError> {
    let place = path.display().to_string();
    let damaged = |reason: String| DataError::damaged(&place, reason);
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let mut content = Vec::new();
    file.take(MAX_FACTS_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(|e| DataError::io(path, e))?;
    if content.len() as u64 > MAX_FACTS_BYTES {
        return Err(DataError::TooLarge {
            place,
            what: "the description of a corpus".into(),
            limit: format!("{} MiB", MAX_FACTS_BYTES >> 20),
        });
    }
    let value: serde_json::Value = serde_json::from_slice(&content).map_err(|e| damaged(format!("not JSON: {e}")))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    match format {
        Some(FORMAT) => {}
        Some(found) if found > FORMAT => {
            return Err(DataError::NewerFormat {
                place,
                found,
                known: FORMAT,
            });
        }
        _ => return Err(damaged("no corpus: it has no format number".into())),
    }
    let facts: Facts = serde_json::from_value(value).map_err(|e| damaged(format!("no corpus of format 1: {e}")))?;
    if !matches!(facts.token_bytes, 2 | 4) {
        return Err(damaged(format!("tokens of {} bytes", facts.token_bytes)));
    }
    let largest = facts.tokenizer.begin_of_text.max(facts.tokenizer.end_of_text);
    if largest.is_some_and(|id| id as usize >= facts.tokenizer.vocabulary) {
        return Err(damaged("a token beyond the vocabulary begins or ends a text".into()));
    }
    for domain in &facts.domains {
        check_name(&domain.name).map_err(|_| damaged(format!("`{}` is no name", domain.name)))?;
    }
    if facts.computed_fingerprint() != facts.fingerprint {
        return Err(damaged("it was changed: its fingerprint is another".into()));
    }
    Ok(facts)
}

/// The tokens of one part of a domain, document by document.
pub struct Part {
    place: String,
    tokens: FileBuffer,
    index: FileBuffer,
    width: u64,
    vocabulary: u32,
    documents: u64,
    bytes: u64,
}

pub(super) fn tokens_file(split: Split) -> String {
    format!("{}.tokens", split.name())
}

pub(super) fn index_file(split: Split) -> String {
    format!("{}.index", split.name())
}

impl Part {
    fn open(folder: &Path, facts: &Facts, domain: &DomainFacts, split: Split) -> Result<Self, DataError> {
        let folder = folder.join("domains").join(&domain.name);
        let said = domain.part(split);
        let width = u64::from(facts.token_bytes);
        let map = |name: String, count: u64, size: u64| {
            let path = folder.join(name);
            let mapped = FileBuffer::open(&path).map_err(|e| DataError::io(&path, e))?;
            let expected = count.checked_mul(size);
            if expected != Some(mapped.len() as u64) {
                let reason = format!(
                    "truncated or too long: {} bytes where {FACTS} promises {count} entries of {size}",
                    mapped.len()
                );
                return Err(DataError::damaged(path.display().to_string(), reason));
            }
            Ok(mapped)
        };
        let index_name = index_file(split);
        let part = Self {
            place: folder.join(tokens_file(split)).display().to_string(),
            tokens: map(tokens_file(split), said.tokens, width)?,
            index: map(index_name.clone(), said.documents, ENTRY)?,
            width,
            vocabulary: u32::try_from(facts.tokenizer.vocabulary).unwrap_or(u32::MAX),
            documents: said.documents,
            bytes: said.bytes,
        };
        let (mut before, mut bytes) = (0, 0u64);
        for document in 0..part.documents {
            let end = part.end(document);
            if end < before || end > said.tokens {
                let reason = format!(
                    "document {document} ends at {end}, after {before} of {} tokens",
                    said.tokens
                );
                return Err(DataError::damaged(
                    folder.join(&index_name).display().to_string(),
                    reason,
                ));
            }
            before = end;
            bytes = bytes.saturating_add(part.document_bytes(document));
        }
        if before != said.tokens || bytes != said.bytes {
            let reason = format!(
                "its documents have {before} tokens and {bytes} bytes, {FACTS} says {} and {}",
                said.tokens, said.bytes
            );
            return Err(DataError::damaged(
                folder.join(&index_name).display().to_string(),
                reason,
            ));
        }
        Ok(part)
    }

    /// Documents.
    #[must_use]
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Tokens of all documents.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens.len() as u64 / self.width
    }

    /// UTF-8 bytes of all documents.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the tokens of a document lie; nothing beyond the last document.
    #[must_use]
    pub fn span(&self, document: u64) -> Range<u64> {
        if document >= self.documents {
            return self.tokens()..self.tokens();
        }
        self.start(document)..self.end(document)
    }

    /// UTF-8 bytes of a document; 0 beyond the last one.
    #[must_use]
    pub fn document_bytes(&self, document: u64) -> u64 {
        self.entry(document, 8)
    }

    /// The tokens of a document.
    ///
    /// # Errors
    /// [`DataError::Damaged`] where one is beyond the vocabulary.
    pub fn document(&self, document: u64) -> Result<Vec<u32>, DataError> {
        let mut tokens = Vec::new();
        self.read(self.span(document), &mut tokens)?;
        Ok(tokens)
    }

    /// Adds a range of the tokens of all documents, one after the other, to `tokens`; what lies beyond their end is
    /// left out.
    ///
    /// # Errors
    /// [`DataError::Damaged`] where one is beyond the vocabulary.
    pub fn read(&self, range: Range<u64>, tokens: &mut Vec<u32>) -> Result<(), DataError> {
        let end = range.end.min(self.tokens());
        let start = range.start.min(end);
        let bytes = &self.tokens[(start * self.width) as usize..(end * self.width) as usize];
        let first = tokens.len();
        if self.width == 2 {
            tokens.extend(
                bytes
                    .chunks_exact(2)
                    .map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))),
            );
        } else {
            tokens.extend(
                bytes
                    .chunks_exact(4)
                    .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            );
        }
        match tokens[first..].iter().position(|&id| id >= self.vocabulary) {
            None => Ok(()),
            Some(at) => {
                let reason = format!(
                    "token {} has the id {}, beyond the vocabulary of {}",
                    start + at as u64,
                    tokens[first + at],
                    self.vocabulary
                );
                Err(DataError::damaged(&self.place, reason))
            }
        }
    }

    /// Where the tokens of documents before this one end.
    pub(super) fn start(&self, document: u64) -> u64 {
        document.checked_sub(1).map_or(0, |before| self.end(before))
    }

    pub(super) fn end(&self, document: u64) -> u64 {
        self.entry(document, 0)
    }

    fn entry(&self, document: u64, offset: u64) -> u64 {
        if document >= self.documents {
            return 0;
        }
        let at = (document * ENTRY + offset) as usize;
        let mut word = [0; 8];
        word.copy_from_slice(&self.index[at..at + 8]);
        u64::from_le_bytes(word)
    }
}
