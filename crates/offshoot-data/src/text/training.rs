//! Trains tokenizers, the same bytes for any number of threads.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use rayon::prelude::*;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::normalizers::Replace;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{
    AddedToken, DecoderWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
};

use super::block::{Blocks, Limits};
use super::build::split_of;
use super::source::Documents;
use super::tokenizer::{Tokenizer, guarded};
use crate::error::DataError;
use crate::split::{Split, SplitShares, unit};

/// The most text that is counted, in bytes: the trainers count pairs in 31 bits.
pub const MAX_SAMPLE_BYTES: u64 = 1 << 30;
/// The most bytes of distinct words that BPE is trained on; the most frequent ones stay.
const MAX_BPE_BYTES: usize = 128 << 20;
/// The same for unigram, whose candidates are in a suffix array of twice the words.
const MAX_UNIGRAM_BYTES: usize = 8 << 20;
/// Longer words are cut, in bytes: a trainer's time is quadratic in the longest one.
const MAX_WORD: usize = 256;
/// Documents are counted in pieces of about this many bytes.
const PIECE: usize = 1 << 20;
/// The share of all characters that a unigram vocabulary holds at least; rarer ones are spelled in bytes. SentencePiece's.
const COVERAGE: f64 = 0.9995;
/// The score of tokens that no text is to be matched with: far below any path of characters.
const UNMATCHED: f64 = -1000.0;
/// What a space is in a unigram vocabulary.
const SPACE: char = '\u{2581}';
/// By how much more likely the unigram trainer makes each further character that its model lost.
const STEP_OF_LOST: f64 = 0.0001;

/// Which kind of model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Byte-level BPE, as GPT-2 has: words split by GPT-2's pattern, all 256 bytes in the vocabulary, so that any text is
    /// encoded without loss.
    Bpe,
    /// A unigram language model with byte fallback, as SentencePiece trains: any text is encoded without loss, but that
    /// U+2581 becomes a space.
    Unigram,
}

/// How a tokenizer is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// The kind of model.
    pub algorithm: Algorithm,
    /// Tokens to have, special ones and bytes included. Text too small for as many gives fewer.
    pub vocabulary: usize,
    /// Special tokens, which get the first ids.
    pub special: Vec<String>,
    /// At most about this much text is counted, in bytes, up to [`MAX_SAMPLE_BYTES`]. Of more text each document is taken
    /// with the same probability, by its content and the seed.
    pub sample_bytes: u64,
    /// Chooses the documents of a sample, and with `shares` those that are held out.
    pub seed: u64,
    /// The shares of documents that a corpus of this seed holds out, as [`build`](super::build()) divides them: these are not
    /// counted. Without any, as from the start, all are.
    pub shares: SplitShares,
    /// The share of damaged documents that is allowed.
    pub max_damaged: f64,
}

impl Training {
    /// Byte-level BPE with `<|endoftext|>`, or unigram with `<unk>`, `<s>` and `</s>`; from up to 512 MiB of text.
    #[must_use]
    pub fn new(algorithm: Algorithm, vocabulary: usize) -> Self {
        let special: &[&str] = match algorithm {
            Algorithm::Bpe => &["<|endoftext|>"],
            Algorithm::Unigram => &["<unk>", "<s>", "</s>"],
        };
        Self {
            algorithm,
            vocabulary,
            special: special.iter().map(|&name| name.to_owned()).collect(),
            sample_bytes: 512 << 20,
            seed: 0,
            shares: SplitShares { val: 0.0, test: 0.0 },
            max_damaged: 0.01,
        }
    }

    fn holds_out(&self) -> bool {
        self.shares.val + self.shares.test > 0.0
    }

    /// Whether a document is one to train on.
    fn counts(&self, text: &str) -> bool {
        !self.holds_out() || split_of(text, self.shares, self.seed) == Split::Train
    }

    /// The tokens that are there whatever the text.
    fn fixed(&self) -> usize {
        self.special.len() + 256
    }

    /// Whether a tokenizer can be trained like this; no text is read.
    ///
    /// # Errors
    /// [`DataError::Config`] with the number or name that cannot work.
    pub fn check(&self) -> Result<(), DataError> {
        self.shares.check()?;
        let fixed = self.fixed();
        if !(fixed..=1 << 24).contains(&self.vocabulary) {
            let reason = format!(
                "{} is not between {fixed} (256 bytes and the special tokens) and {}",
                self.vocabulary,
                1 << 24
            );
            return Err(DataError::config("vocabulary", reason));
        }
        if self.special.iter().collect::<BTreeSet<_>>().len() != self.special.len()
            || self.special.iter().any(|name| name.trim().is_empty())
        {
            return Err(DataError::config("special", "names must differ, and none may be blank"));
        }
        if self.algorithm == Algorithm::Bpe {
            for name in &self.special {
                let mut split = PreTokenizedString::from(name.as_str());
                guarded(|| splitter(self.algorithm).pre_tokenize(&mut split))?;
                if split.get_splits(OffsetReferential::Original, OffsetType::None).len() < 2 {
                    let reason = format!("`{name}` could be a word of a text; add signs, as in `<|name|>`");
                    return Err(DataError::config("special", reason));
                }
            }
        }
        if self.algorithm == Algorithm::Unigram && !self.special.iter().any(|name| name == "<unk>") {
            return Err(DataError::config("special", "a unigram model needs `<unk>`"));
        }
        if !(1..=MAX_SAMPLE_BYTES).contains(&self.sample_bytes) {
            let reason = format!("{} is not between 1 and {MAX_SAMPLE_BYTES}", self.sample_bytes);
            return Err(DataError::config("sample_bytes", reason));
        }
        Ok(())
    }
}

impl Tokenizer {
    /// Trains a tokenizer on the documents of all paths. `progress` hears of the bytes of files read, and of all.
    ///
    /// Text is read twice: to measure it, and to count its words, in blocks and in parallel. What is kept in memory is
    /// the distinct words. Words of more than 256 bytes are cut, and the most frequent 128 MiB of words count, of a
    /// unigram tokenizer 8 MiB.
    ///
    /// # Errors
    /// Where text cannot be read, there is none, or it cannot give a tokenizer of the size asked for.
    pub fn train(
        paths: &[PathBuf],
        training: &Training,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, DataError> {
        training.check()?;
        let mut sources = Vec::new();
        for path in paths {
            sources.push(Documents::open(path, training.max_damaged)?);
        }
        let total: u64 = sources.iter().map(Documents::total_bytes).sum::<u64>() * 2;
        let (mut text_bytes, mut done) = (0, 0);
        for mut source in sources {
            let mut blocks = Blocks::new(&mut source, Limits::default());
            while let Some(block) = blocks.next()? {
                let texts = block.documents.par_iter().map(|document| document.text.as_str());
                let counted = texts.filter(|text| training.counts(text));
                text_bytes += counted.map(|text| text.len() as u64).sum::<u64>();
                progress(done + blocks.done_bytes(), total);
            }
            done += source.total_bytes();
        }
        if text_bytes == 0 {
            let place = paths
                .first()
                .map_or_else(String::new, |path| path.display().to_string());
            return Err(DataError::NoText {
                place,
                found: if training.holds_out() {
                    "no document that is neither blank nor held out".into()
                } else {
                    "no document that is not blank".into()
                },
            });
        }
        let share = training.sample_bytes as f64 / text_bytes as f64;
        let splitter = splitter(training.algorithm);
        let mut counts = HashMap::new();
        let mut taken = 0;
        for path in paths {
            let mut source = Documents::open(path, training.max_damaged)?;
            let mut blocks = Blocks::new(&mut source, Limits::default());
            while let Some(block) = blocks.next()? {
                let sample: Vec<&str> = block
                    .documents
                    .iter()
                    .map(|document| document.text.as_str())
                    .filter(|text| training.counts(text))
                    .filter(|text| {
                        let is_taken = is_sampled(text, training.seed, share) && taken < MAX_SAMPLE_BYTES;
                        taken += if is_taken { text.len() as u64 } else { 0 };
                        is_taken
                    })
                    .flat_map(pieces)
                    .collect();
                count(&sample, &splitter, &mut counts)?;
                progress(done + blocks.done_bytes(), total);
            }
            done += source.total_bytes();
        }
        let inner = match training.algorithm {
            Algorithm::Bpe => train_bpe(frequent(counts, MAX_BPE_BYTES), training)?,
            Algorithm::Unigram => train_unigram(frequent(counts, MAX_UNIGRAM_BYTES), training)?,
        };
        let content = guarded(|| inner.to_string(true))?;
        Self::from_bytes(content.into_bytes(), "the trained tokenizer")
    }
}

/// Whether a document is in the sample: by its content and the seed alone.
fn is_sampled(text: &str, seed: u64, share: f64) -> bool {
    share >= 1.0 || unit(b"offshoot sample 1", seed, blake3::hash(text.as_bytes()).as_bytes()) < share
}

/// Cuts a document before spaces, where both ways of splitting into words begin one.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > PIECE {
        let from = rest.ceil_char_boundary(PIECE);
        let Some(space) = rest[from..].find(' ') else { break };
        let (piece, after) = rest.split_at(from + space);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

fn splitter(algorithm: Algorithm) -> PreTokenizerWrapper {
    match algorithm {
        Algorithm::Bpe => ByteLevel::new(false, true, true).into(),
        Algorithm::Unigram => Metaspace::new(SPACE, PrependScheme::Never, true).into(),
    }
}

/// Adds the words of some texts to the counts. Sums of whole numbers are the same in any order.
fn count(texts: &[&str], splitter: &PreTokenizerWrapper, counts: &mut HashMap<String, u64>) -> Result<(), DataError> {
    let merge = |mut into: HashMap<String, u64>, from: HashMap<String, u64>| {
        from.into_iter()
            .for_each(|(word, count)| *into.entry(word).or_default() += count);
        into
    };
    let found = texts
        .par_iter()
        .try_fold(HashMap::new, |mut counts: HashMap<String, u64>, text| {
            let mut split = PreTokenizedString::from(*text);
            guarded(|| splitter.pre_tokenize(&mut split))?;
            for (word, ..) in split.get_splits(OffsetReferential::Original, OffsetType::None) {
                let mut rest = word;
                while !rest.is_empty() {
                    let (word, after) = rest.split_at(rest.floor_char_boundary(MAX_WORD));
                    match counts.get_mut(word) {
                        Some(count) => *count += 1,
                        None => {
                            counts.insert(word.to_owned(), 1);
                        }
                    }
                    rest = after;
                }
            }
            Ok::<_, DataError>(counts)
        })
        .try_reduce(HashMap::new, |a, b| {
            Ok(if a.len() < b.len() { merge(b, a) } else { merge(a, b) })
        })?;
    *counts = merge(std::mem::take(counts), found);
    Ok(())
}

/// The most frequent words, up to `most` bytes of them, in the order of their letters.
fn frequent(counts: HashMap<String, u64>, most: usize) -> Vec<(String, u64)> {
    let mut words: Vec<(String, u64)> = counts.into_iter().collect();
    words.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
    let mut bytes = 0;
    let kept = words.iter().take_while(|(word, _)| {
        bytes += word.len();
        bytes <= most
    });
    let kept = kept.count();
    words.truncate(kept);
    words.sort_unstable();
    words
}

fn special_tokens(training: &Training) -> Vec<AddedToken> {
    let of = |name: &String| AddedToken::from(name.clone(), true);
    training.special.iter().map(of).collect()
}

fn train_bpe(words: Vec<(String, u64)>, training: &Training) -> Result<tokenizers::Tokenizer, DataError> {
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(training.vocabulary)
        .min_frequency(2)
        .special_tokens(special_tokens(training))
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut model = BPE::default();
    // Merges are chosen by count and, among equals, by ids, which follow from the merges before: the order of words in
    // the map decides nothing.
    let words = words
        .into_iter()
        .map(|(word, count)| (word.as_str().into(), count))
        .collect();
    guarded(|| trainer.do_train(&words, &mut model))?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(splitter(training.algorithm)));
    inner.with_post_processor(Some(ByteLevel::new(true, false, true)));
    inner.with_decoder(Some(ByteLevel::new(true, true, true)));
    guarded(|| inner.add_special_tokens(special_tokens(training)))?;
    Ok(inner)
}

fn train_unigram(words: Vec<(String, u64)>, training: &Training) -> Result<tokenizers::Tokenizer, DataError> {
    let room = training.vocabulary - training.fixed();
    let characters = characters(&words, room);
    if characters.len() >= room {
        let least = training.fixed() + characters.len() + 1;
        let reason = format!(
            "{} is too small: a unigram vocabulary of this text needs at least {least}",
            training.vocabulary
        );
        return Err(DataError::config("vocabulary", reason));
    }
    // A word is cut where a character is rare.
    let mut words: Vec<(String, u64)> = words
        .iter()
        .flat_map(|(word, count)| {
            let parts = word.split(|character| !characters.contains(&character));
            parts
                .filter(|part| !part.is_empty())
                .map(|part| (part.to_owned(), *count))
        })
        .collect();
    words.sort_unstable();
    words.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        if is_same {
            kept.1 += next.1;
        }
        is_same
    });
    let fixed = training.special.iter().cloned();
    let fixed: Vec<String> = fixed.chain((0..=255u8).map(|byte| format!("<0x{byte:02X}>"))).collect();
    let mut pieces = unigram_pieces(words, characters, room)?;
    pieces.retain(|(piece, _)| !fixed.contains(piece));
    let fixed = fixed.into_iter().map(|name| (name, UNMATCHED));
    let vocabulary: Vec<(String, f64)> = fixed.chain(pieces).collect();
    let unknown = training.special.iter().position(|name| name == "<unk>");
    let model = guarded(|| Unigram::from(vocabulary, unknown, true))?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(splitter(training.algorithm)));
    let space = guarded(|| Replace::new(SPACE.to_string(), " "))?;
    inner.with_decoder(Some(Sequence::new(vec![
        DecoderWrapper::Replace(space),
        DecoderWrapper::ByteFallback(ByteFallback::default()),
        DecoderWrapper::Fuse(Fuse::default()),
    ])));
    guarded(|| inner.add_special_tokens(special_tokens(training)))?;
    Ok(inner)
}

/// At most `room` pieces with their log-probabilities, the most likely first; each of `characters` is one of them.
///
/// The trainer of the `tokenizers` crate cuts its sums by the number of threads and goes through a hash map, in another order each
/// time, for the characters that its model lost. So it has one thread here, and its pieces are put into an order. Its candidates are
/// strings that occur twice before different characters, so a word that others do not go on from would be none, however frequent: a
/// word that occurs twice is also given before a space, as one that never occurred.
fn unigram_pieces(
    words: Vec<(String, u64)>,
    characters: BTreeSet<char>,
    room: usize,
) -> Result<Vec<(String, f64)>, DataError> {
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(u32::try_from(room).expect("a vocabulary was checked to be smaller"))
        .initial_alphabet(characters.into_iter().collect())
        .build();
    let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
    let twice = |(word, n): (String, u64)| {
        let followed = (n > 1).then(|| (format!("{word}{SPACE}"), 0));
        std::iter::once((word, count(n))).chain(followed)
    };
    let words = words.into_iter().flat_map(twice).collect();
    let mut model = Unigram::default();
    guarded(|| {
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        alone.install(|| trainer?.do_train(words, &mut model))
    })?;
    Ok(in_order(model.iter().cloned().collect()))
}

/// Pieces from the most likely on, the same whatever order the trainer went in.
///
/// Where characters were lost, the least likely piece is one of them, and each further one is [`STEP_OF_LOST`] more likely.
fn in_order(mut pieces: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let least = pieces.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let mut lost = Vec::new();
    let mut more = 0.0;
    loop {
        let before = lost.len();
        let is_next = |(piece, score): &(String, f64)| *score == least + more && piece.chars().nth(1).is_none();
        lost.extend((0..pieces.len()).filter(|&i| is_next(&pieces[i])));
        if lost.len() == before {
            break;
        }
        more += STEP_OF_LOST;
    }
    for i in lost {
        pieces[i].1 = least;
    }
    pieces.sort_unstable_by(|(a, m), (b, n)| n.total_cmp(m).then_with(|| a.cmp(b)));
    pieces
}

/// The characters that get a token: those of ASCII that are printed, so that names of special tokens can be spelled, and
/// the most frequent others up to [`COVERAGE`], but no more than half of the room.
fn characters(words: &[(String, u64)], room: usize) -> BTreeSet<char> {
    let mut counts: HashMap<char, u64> = HashMap::new();
    for (word, count) in words {
        for character in word.chars() {
            *counts.entry(character).or_default() += count;
        }
    }
    let mut kept: BTreeSet<char> = ('!'..='~').chain([SPACE]).collect();
    let mut counts: Vec<(char, u64)> = counts.into_iter().collect();
    counts.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let mut covered = 0;
    for (character, count) in counts {
        if covered as f64 >= COVERAGE * total as f64 || kept.len() >= room / 2 {
            break;
        }
        covered += count;
        kept.insert(character);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces as the trainer gives them: the lost characters in some order, each more likely than the one before.
    fn pieces(lost: &[char]) -> Vec<(String, f64)> {
        let mut pieces = vec![("the".to_owned(), -2.0), ("b".to_owned(), -3.0), ("a".to_owned(), -3.0)];
        let mut more = 0.0;
        for character in lost {
            pieces.push((character.to_string(), -9.0 + more));
            more += STEP_OF_LOST;
        }
        pieces
    }

    #[test]
    fn the_order_of_a_hash_map_leaves_no_trace() {
        let expected = ["the", "a", "b", "x", "y", "z"];
        for lost in [['x', 'y', 'z'], ['z', 'y', 'x'], ['y', 'x', 'z']] {
            let ordered = in_order(pieces(&lost));
            assert!(ordered.iter().map(|(piece, _)| piece).eq(expected));
            assert!(ordered[3..].iter().all(|(_, score)| *score == -9.0));
        }
        assert!(in_order(Vec::new()).is_empty());
    }
}
