//! Writes a corpus: streams documents, divides them, leaves out duplicates of held-out ones, and encodes the rest.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use offshoot_family::files::write_atomic;
use rayon::prelude::*;

use super::block::{Block, Blocks, Limits};
use super::corpus::{Corpus, DomainFacts, FACTS, FORMAT, Facts, PartFacts, Removed, SplitFacts, TokenizerFacts};
use super::corpus::{index_file, tokens_file};
use super::minhash::{HeldOut, Likeness, Sketch, THRESHOLD, sketch};
use super::source::{Documents, check_share};
use super::tokenizer::{FILE as TOKENIZER, Tokenizer};
use crate::error::DataError;
use crate::split::{Split, SplitShares};

/// Text of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// A name of its own: up to 64 letters, digits, `-`, `_` and `.`, not `.` first.
    pub name: String,
    /// A file, or a folder of files; see [`Documents`].
    pub path: PathBuf,
}

impl Domain {
    /// Checks the name.
    ///
    /// # Errors
    /// [`DataError::Config`] where it is none.
    pub fn check(&self) -> Result<(), DataError> {
        check_name(&self.name)
    }
}

/// How a corpus is made.
#[derive(Debug, Clone, PartialEq)]
pub struct CorpusOptions {
    /// Decides, with its content, the part that a document falls into.
    pub seed: u64,
    /// The shares held out.
    pub shares: SplitShares,
    /// The share of damaged documents of a domain that is allowed.
    pub max_damaged: f64,
    /// Whether training documents that nearly equal a held-out one are removed. Those with the same words always are.
    pub near_duplicates: bool,
    /// UTF-8 bytes of documents that are in work at a time, but for one document; it bounds the memory and changes no byte.
    pub block_bytes: u64,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            shares: SplitShares { val: 0.01, test: 0.01 },
            max_damaged: 0.01,
            near_duplicates: true,
            block_bytes: 8 << 20,
        }
    }
}

impl CorpusOptions {
    /// Whether a corpus of these domains can be made; no text is read.
    ///
    /// # Errors
    /// [`DataError::Config`] where shares cannot be met, or names of domains are none or there twice.
    pub fn check(&self, domains: &[Domain]) -> Result<(), DataError> {
        self.shares.check()?;
        check_share(self.max_damaged)?;
        if self.block_bytes == 0 {
            return Err(DataError::config("block_bytes", "must be at least 1"));
        }
        if domains.is_empty() {
            return Err(DataError::config("domains", "name at least one"));
        }
        let mut names = BTreeSet::new();
        for domain in domains {
            check_name(&domain.name)?;
            if !names.insert(domain.name.to_ascii_lowercase()) {
                return Err(DataError::config(
                    "domains",
                    format!("two are called `{}`", domain.name),
                ));
            }
        }
        Ok(())
    }
}

/// Makes a corpus of domains in a new folder. `progress` hears of the bytes of files read, and of all.
///
/// Text is read twice: to sketch the documents that are held out, and to encode. In memory are a block of text and its
/// tokens, 780 bytes for each held-out document, and 8 bytes for each document of a domain. The folder is whole or not
/// there. Its bytes depend on text, tokenizer and options alone, not on threads or blocks.
///
/// # Errors
/// Where a domain has no document, text cannot be read, changes meanwhile, or is damaged, the folder exists or cannot be
/// written.
pub fn build(
    folder: &Path,
    domains: &[Domain],
    tokenizer: &Tokenizer,
    options: &CorpusOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Corpus, DataError> {
    options.check(domains)?;
    if folder.exists() {
        return Err(DataError::Exists {
            place: folder.display().to_string(),
        });
    }
    let is_held_out = options.shares.val + options.shares.test > 0.0;
    let mut total = 0;
    for domain in domains {
        total += Documents::open(&domain.path, options.max_damaged)?.total_bytes();
    }
    let mut work = Work {
        tokenizer,
        options,
        held_out: HeldOut::default(),
    };
    let mut progress = Progress {
        done: 0,
        total: total * if is_held_out { 2 } else { 1 },
        tell: progress,
    };
    let mut seen = Vec::new();
    if is_held_out {
        let mut sketches = Vec::new();
        for domain in domains {
            seen.push(work.survey(domain, &mut sketches, &mut progress)?);
        }
        work.held_out = HeldOut::new(sketches);
    }
    let unfinished = Unfinished::new(folder)?;
    let mut written = Vec::new();
    for (number, domain) in domains.iter().enumerate() {
        let facts = work.write(domain, &unfinished.folder, &mut progress)?;
        if seen.get(number).is_some_and(|before| *before != facts.fingerprint) {
            return Err(DataError::Changed {
                place: domain.path.display().to_string(),
            });
        }
        written.push(facts);
    }
    tokenizer.save(&unfinished.folder.join(TOKENIZER))?;
    let mut facts = Facts {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        fingerprint: String::new(),
        tokenizer: TokenizerFacts {
            hash: tokenizer.hash().into(),
            vocabulary: tokenizer.vocabulary(),
            begin_of_text: tokenizer.begin_of_text(),
            end_of_text: tokenizer.end_of_text(),
        },
        token_bytes: token_bytes(tokenizer),
        split: SplitFacts {
            seed: options.seed,
            shares: options.shares,
        },
        near_duplicates: options.near_duplicates.then_some(THRESHOLD),
        domains: written,
    };
    facts.fingerprint = facts.computed_fingerprint();
    let path = unfinished.folder.join(FACTS);
    write_atomic(&path, |file| {
        serde_json::to_writer_pretty(&mut *file, &facts)?;
        file.write_all(b"\n")
    })
    .map_err(|e| DataError::io(&path, e))?;
    unfinished.finish(folder)?;
    Corpus::open(folder)
}

/// A domain's name is that of a folder on any file system.
pub(super) fn check_name(name: &str) -> Result<(), DataError> {
    let is_known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&name.len()) && name.chars().all(is_known) && !name.starts_with('.') && !name.ends_with('.') {
        return Ok(());
    }
    let reason =
        format!("`{name}` is no name: use 1 to 64 letters, digits, `-`, `_` and `.`, `.` neither first nor last");
    Err(DataError::config("domains", reason))
}

fn token_bytes(tokenizer: &Tokenizer) -> u8 {
    if tokenizer.vocabulary() <= 1 << 16 { 2 } else { 4 }
}

/// The part of a document of this text.
#[must_use]
pub fn split_of(text: &str, shares: SplitShares, seed: u64) -> Split {
    shares.split_of(&content_hash(text), seed)
}

/// White space at the ends is no content.
fn content_hash(text: &str) -> [u8; 32] {
    *blake3::hash(text.trim().as_bytes()).as_bytes()
}

/// What is known of a document from its content.
struct Known {
    hash: [u8; 32],
    split: Split,
}

struct Work<'w> {
    tokenizer: &'w Tokenizer,
    options: &'w CorpusOptions,
    held_out: HeldOut,
}

/// Bytes of files read before the one that is being read, and of all.
struct Progress<'p> {
    done: u64,
    total: u64,
    tell: &'p mut dyn FnMut(u64, u64),
}

impl Progress<'_> {
    fn tell(&mut self, of_this: u64) {
        (self.tell)(self.done + of_this, self.total);
    }
}

/// What a block becomes.
struct Made {
    known: Vec<Known>,
    /// Why a document is left out.
    likeness: Vec<Option<Likeness>>,
    /// The tokens of those that stay, in order.
    tokens: Vec<Vec<u32>>,
}

impl Work<'_> {
    fn open(&self, domain: &Domain) -> Result<Documents, DataError> {
        Documents::open(&domain.path, self.options.max_damaged)
    }

    fn limits(&self) -> Limits {
        Limits {
            bytes: self.options.block_bytes,
            ..Limits::default()
        }
    }

    fn know(&self, text: &str) -> Known {
        let hash = content_hash(text);
        let split = self.options.shares.split_of(&hash, self.options.seed);
        Known { hash, split }
    }

    /// The first reading: sketches of what is held out, and the domain's fingerprint.
    fn survey(
        &self,
        domain: &Domain,
        sketches: &mut Vec<Sketch>,
        progress: &mut Progress,
    ) -> Result<String, DataError> {
        let mut source = self.open(domain)?;
        let mut fingerprint = blake3::Hasher::new();
        let mut blocks = Blocks::new(&mut source, self.limits());
        while let Some(block) = blocks.next()? {
            let found: Vec<([u8; 32], Option<Sketch>)> = block
                .documents
                .par_iter()
                .map(|document| {
                    let known = self.know(&document.text);
                    let is_held_out = known.split != Split::Train;
                    (known.hash, is_held_out.then(|| sketch(&document.text)).flatten())
                })
                .collect();
            for (hash, sketch) in found {
                fingerprint.update(&hash);
                sketches.extend(sketch);
            }
            progress.tell(blocks.done_bytes());
        }
        progress.done += source.total_bytes();
        Ok(fingerprint.finalize().to_hex().to_string())
    }

    fn make(&self, block: &Block) -> Result<Made, DataError> {
        let (known, likeness): (Vec<Known>, Vec<Option<Likeness>>) = block
            .documents
            .par_iter()
            .map(|document| {
                let known = self.know(&document.text);
                let is_sought = known.split == Split::Train && !self.held_out.is_empty();
                let found = is_sought.then(|| sketch(&document.text)).flatten();
                let likeness = found.and_then(|sketch| self.held_out.find(&sketch));
                let likeness = likeness.filter(|l| self.options.near_duplicates || *l == Likeness::Equal);
                (known, likeness)
            })
            .unzip();
        let texts: Vec<&str> = block
            .documents
            .iter()
            .zip(&likeness)
            .filter(|(_, likeness)| likeness.is_none())
            .map(|(document, _)| document.text.as_str())
            .collect();
        let tokens = self.tokenizer.encode_all(&texts)?;
        Ok(Made {
            known,
            likeness,
            tokens,
        })
    }

    /// The second reading: encodes and writes a domain.
    fn write(&self, domain: &Domain, folder: &Path, progress: &mut Progress) -> Result<DomainFacts, DataError> {
        let folder = folder.join("domains").join(&domain.name);
        fs::create_dir_all(&folder).map_err(|e| DataError::io(&folder, e))?;
        let width = token_bytes(self.tokenizer);
        let mut writers = Split::ALL
            .map(|split| Writer::new(&folder, split, width))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        let mut source = self.open(domain)?;
        let mut fingerprint = blake3::Hasher::new();
        let mut removed = Removed::default();
        let mut contents: Vec<u64> = Vec::new();
        let mut blocks = Blocks::new(&mut source, self.limits());
        let mut next = blocks.next()?;
        while let Some(block) = next {
            // The next block is read while this one is encoded.
            let (made, read) = rayon::join(|| self.make(&block), || blocks.next());
            let made = made?;
            let mut tokens = made.tokens.into_iter();
            for ((document, known), likeness) in block.documents.iter().zip(&made.known).zip(&made.likeness) {
                fingerprint.update(&known.hash);
                let mut word = [0; 8];
                word.copy_from_slice(&known.hash[..8]);
                contents.push(u64::from_le_bytes(word));
                match likeness {
                    Some(Likeness::Equal) => removed.exact_duplicates += 1,
                    Some(Likeness::Near) => removed.near_duplicates += 1,
                    None => {
                        let tokens = tokens.next().unwrap_or_default();
                        writers[known.split as usize].write(&tokens, document.text.len() as u64)?;
                    }
                }
            }
            next = read?;
            progress.tell(blocks.done_bytes());
        }
        progress.done += source.total_bytes();
        let counts = source.counts();
        (removed.empty, removed.damaged) = (counts.empty, counts.damaged);
        removed.first_damaged.clone_from(&counts.first_damaged);
        if counts.documents == 0 {
            return Err(DataError::NoText {
                place: domain.path.display().to_string(),
                found: format!("{} blank and {} damaged documents", counts.empty, counts.damaged),
            });
        }
        contents.sort_unstable();
        let repeated = contents.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
        let mut parts = writers.into_iter().map(Writer::finish);
        let mut part = || parts.next().unwrap_or_else(|| Ok(PartFacts::default()));
        Ok(DomainFacts {
            name: domain.name.clone(),
            path: domain.path.display().to_string(),
            fingerprint: fingerprint.finalize().to_hex().to_string(),
            documents: counts.documents,
            bytes: counts.bytes,
            repeated,
            removed,
            train: part()?,
            val: part()?,
            test: part()?,
        })
    }
}

/// The two files of a part.
struct Writer {
    tokens: HashedFile,
    index: HashedFile,
    width: u8,
    facts: PartFacts,
}

impl Writer {
    fn new(folder: &Path, split: Split, width: u8) -> Result<Self, DataError> {
        Ok(Self {
            tokens: HashedFile::new(folder.join(tokens_file(split)))?,
            index: HashedFile::new(folder.join(index_file(split)))?,
            width,
            facts: PartFacts::default(),
        })
    }

    fn write(&mut self, tokens: &[u32], bytes: u64) -> Result<(), DataError> {
        let encoded: Vec<u8> = if self.width == 2 {
            tokens.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect()
        } else {
            tokens.iter().flat_map(|id| id.to_le_bytes()).collect()
        };
        self.tokens.write(&encoded)?;
        self.facts.documents += 1;
        self.facts.bytes += bytes;
        self.facts.tokens += tokens.len() as u64;
        self.index.write(&self.facts.tokens.to_le_bytes())?;
        self.index.write(&bytes.to_le_bytes())
    }

    fn finish(mut self) -> Result<PartFacts, DataError> {
        self.facts.hash = part_hash(&self.tokens.finish()?, &self.index.finish()?);
        Ok(self.facts)
    }
}

/// The hash of a part, given those of its two files.
pub(super) fn part_hash(tokens: &blake3::Hash, index: &blake3::Hash) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tokens.as_bytes()).update(index.as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// A new file and the hash of what is written to it.
struct HashedFile {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
}

impl HashedFile {
    fn new(path: PathBuf) -> Result<Self, DataError> {
        let file = File::create_new(&path).map_err(|e| DataError::io(&path, e))?;
        Ok(Self {
            path,
            file: BufWriter::with_capacity(1 << 18, file),
            hasher: blake3::Hasher::new(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|e| DataError::io(&self.path, e))
    }

    fn finish(mut self) -> Result<blake3::Hash, DataError> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        flushed.map_err(|e| DataError::io(&self.path, e))?;
        Ok(self.hasher.finalize())
    }
}

/// A folder under a temporary name beside the one that it is to be, of this process alone; removed unless it is finished.
struct Unfinished {
    folder: PathBuf,
    lock: PathBuf,
    _held: File,
}

impl Unfinished {
    /// What an earlier, killed process left under the name is removed.
    fn new(target: &Path) -> Result<Self, DataError> {
        let name = target.file_name().unwrap_or(target.as_os_str()).to_string_lossy();
        let folder = target.with_file_name(format!(".writing-{name}"));
        let lock = target.with_file_name(format!(".writing-{name}.lock"));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|e| DataError::io(parent, e))?;
        }
        let held = File::create(&lock).map_err(|e| DataError::io(&lock, e))?;
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DataError::Busy {
                    place: target.display().to_string(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(DataError::io(&lock, e)),
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|e| DataError::io(&folder, e))?;
        }
        fs::create_dir(&folder).map_err(|e| DataError::io(&folder, e))?;
        Ok(Self {
            folder,
            lock,
            _held: held,
        })
    }

    fn finish(self, target: &Path) -> Result<(), DataError> {
        fs::rename(&self.folder, target).map_err(|e| DataError::io(target, e))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Renamed, it is not there any more; an error on the way here is the one to tell of.
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_file(&self.lock);
    }
}
