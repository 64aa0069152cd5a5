//! Text to token ids and back, by any `tokenizer.json`.

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;

use offshoot_family::files::write_atomic;
use rayon::prelude::*;
use serde_json::json;
use tokenizers::models::ModelWrapper;
use tokenizers::processors::PostProcessorWrapper;

use crate::error::DataError;

/// The file's name in a checkpoint folder and in a corpus.
pub const FILE: &str = "tokenizer.json";
/// The largest `tokenizer.json`, in bytes.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// The largest id that is believed.
const MAX_ID: u32 = 1 << 24;
/// Longer documents are encoded in segments of about this many bytes.
const SEGMENT: usize = 1 << 20;
/// Bytes on each side of a cut that are encoded to see whether it changes anything.
const CUT_CONTEXT: usize = 256;
/// Cuts that are tried for each segment.
const CUTS_TRIED: usize = 16;
/// Tokens that streaming holds back for a whole character. A character has four bytes at most.
const MAX_PENDING: usize = 16;

/// Tokens that begin a text, the most telling first.
const BEGIN: &[&str] = &["<|begin_of_text|>", "<|startoftext|>", "<bos>", "<s>"];
/// Tokens that end a text.
const END: &[&str] = &["<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>"];

/// A tokenizer: the content of a `tokenizer.json` of the `tokenizers` library, ready to use.
///
/// Documents are encoded as plain text: no token is added at their ends, names of special tokens in them are text like
/// any other, and what the file says of truncation, padding and dropout is not applied.
pub struct Tokenizer {
    /// Reads special tokens in a text as text.
    plain: tokenizers::Tokenizer,
    /// Reads them as tokens; made where it is wanted.
    with_special: OnceLock<Box<tokenizers::Tokenizer>>,
    content: Vec<u8>,
    hash: String,
    vocabulary: usize,
    begin: Option<u32>,
    end: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("hash", &self.hash)
            .field("vocabulary", &self.vocabulary)
            .field("begin", &self.begin)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in a folder.
    ///
    /// # Errors
    /// Where it cannot be read, is larger than 256 MiB, or is no tokenizer.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let path = if path.is_dir() {
            path.join(FILE)
        } else {
            path.to_path_buf()
        };
        let file = File::open(&path).map_err(|e| DataError::io(&path, e))?;
        let mut content = Vec::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut content)
            .map_err(|e| DataError::io(&path, e))?;
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(DataError::TooLarge {
                place: path.display().to_string(),
                what: "a tokenizer".into(),
                limit: format!("{} MiB", MAX_FILE_BYTES >> 20),
            });
        }
        Self::from_bytes(content, &path.display().to_string())
    }

    /// A tokenizer from the content of a `tokenizer.json`; `place` is for messages.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where it is none.
    pub fn from_bytes(content: Vec<u8>, place: &str) -> Result<Self, DataError> {
        let failed = |reason: String| DataError::Tokenizer {
            place: place.into(),
            reason,
        };
        let text = std::str::from_utf8(&content).map_err(|e| failed(format!("not a tokenizer: {e}")))?;
        // `parse` is compiled with the library, its `from_bytes` would be compiled with this crate.
        let read = catch_unwind(|| text.parse::<tokenizers::Tokenizer>());
        let mut plain = read
            .map_err(|_| failed("not a tokenizer: its parts contradict each other".into()))?
            .map_err(|e| failed(format!("not a tokenizer: {e}")))?;
        plain.with_padding(None);
        plain
            .with_truncation(None)
            .map_err(|e| failed(format!("not a tokenizer: {e}")))?;
        if let ModelWrapper::BPE(model) = plain.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            plain.with_model(model);
        }
        plain.set_encode_special_tokens(true);
        let largest = plain.get_vocab(true).into_values().max();
        let largest = largest.ok_or_else(|| failed("the vocabulary is empty".into()))?;
        if largest > MAX_ID {
            return Err(failed(format!(
                "token id {largest} is beyond {MAX_ID}, the largest that is taken"
            )));
        }
        let named = |names: &[&str]| {
            let added = plain.get_added_tokens_decoder();
            let of = |name: &&str| {
                plain
                    .token_to_id(name)
                    .filter(|id| added.get(id).is_some_and(|token| token.special))
            };
            names.iter().find_map(of)
        };
        let mut read = Self {
            begin: named(BEGIN),
            end: named(END),
            hash: blake3::hash(&content).to_hex().to_string(),
            vocabulary: largest as usize + 1,
            plain,
            with_special: OnceLock::new(),
            content,
        };
        // A tokenizer that takes no letter is refused where text comes.
        read.begin = read.leading().ok().flatten().or(read.begin);
        Ok(read)
    }

    /// Names the tokens that begin and end a text, where the file does not or names others. `None` leaves a token as it
    /// was found.
    ///
    /// # Errors
    /// [`DataError::Config`] where the vocabulary has no such token.
    pub fn with_text_tokens(mut self, begin: Option<&str>, end: Option<&str>) -> Result<Self, DataError> {
        let find = |field, name: &str| {
            let id = self.plain.token_to_id(name);
            id.ok_or_else(|| DataError::config(field, format!("the vocabulary has no token `{name}`")))
        };
        let begin = begin.map(|name| find("begin_of_text", name)).transpose()?;
        let end = end.map(|name| find("end_of_text", name)).transpose()?;
        self.begin = begin.or(self.begin);
        self.end = end.or(self.end);
        Ok(self)
    }

    pub(super) fn set_text_tokens(&mut self, begin: Option<u32>, end: Option<u32>) {
        (self.begin, self.end) = (begin, end);
    }

    /// One more than the largest id: the rows that an embedding needs.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The token that begins a text, where one is known: the [leading](Tokenizer::leading) one, or an added, special token named
    /// `<s>`, `<bos>`, `<|begin_of_text|>` or `<|startoftext|>`, or what [`Tokenizer::with_text_tokens`] said.
    #[must_use]
    pub fn begin_of_text(&self) -> Option<u32> {
        self.begin
    }

    /// The token that ends a text, where one is known: an added, special token named `<|endoftext|>`,
    /// `<|end_of_text|>`, `<eos>` or `</s>`, or what [`Tokenizer::with_text_tokens`] said.
    #[must_use]
    pub fn end_of_text(&self) -> Option<u32> {
        self.end
    }

    /// The token that the file itself puts before a text where special tokens are to be added, as `transformers` asks for; none
    /// where it puts none.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where the tokenizer cannot take a letter.
    pub fn leading(&self) -> Result<Option<u32>, DataError> {
        const LETTER: &str = "a";
        let plain = encode_one(&self.plain, LETTER)?;
        let framed = guarded(|| self.plain.encode_fast(LETTER, true))?;
        let framed = framed.get_ids();
        let lead = framed.windows(plain.len().max(1)).position(|part| part == plain);
        Ok(lead.filter(|&lead| lead > 0).map(|_| framed[0]))
    }

    /// This tokenizer with a file that puts `begin` before a text, or nothing, for programs that ask the file. A file that does so
    /// already stays as it is; of another, what it put behind a text goes with what it put before.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where there is no such token.
    pub fn beginning_with(&self, begin: Option<u32>) -> Result<Self, DataError> {
        const PLACE: &str = "the tokenizer with its begin-of-text token";
        let failed = |reason: String| DataError::Tokenizer {
            place: PLACE.into(),
            reason,
        };
        let content = if self.leading()? == begin {
            self.content.clone()
        } else {
            let text = std::str::from_utf8(&self.content).map_err(|e| failed(e.to_string()))?;
            let mut inner = guarded(|| text.parse::<tokenizers::Tokenizer>())?;
            let template: Option<Result<PostProcessorWrapper, DataError>> = begin.map(|id| {
                let name = self.token(id).ok_or_else(|| failed(format!("no token has id {id}")))?;
                let token = json!({ "SpecialToken": { "id": name, "type_id": 0 } });
                let sequence = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
                let template = json!({
                    "type": "TemplateProcessing",
                    "single": [token, sequence("A")],
                    "pair": [token, sequence("A"), sequence("B")],
                    "special_tokens": { &name: { "id": name, "ids": [id], "tokens": [name] } }
                });
                serde_json::from_value(template).map_err(|e| failed(e.to_string()))
            });
            let template = template.transpose()?;
            inner.with_post_processor(template);
            guarded(|| inner.to_string(true))?.into_bytes()
        };
        let mut framed = Self::from_bytes(content, PLACE)?;
        if framed.leading()? != begin {
            return Err(failed(
                "the token at the beginning of a text cannot be told apart from the text".into(),
            ));
        }
        framed.set_text_tokens(self.begin, self.end);
        Ok(framed)
    }

    /// Whether text has the same tokens by both: they are one but for what is put [before a text](Tokenizer::beginning_with).
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where one cannot take a letter.
    pub fn reads_as(&self, other: &Self) -> Result<bool, DataError> {
        let becomes = |one: &Self, other: &Self| Ok(one.beginning_with(other.leading()?)?.hash == other.hash);
        Ok(self.hash == other.hash || becomes(self, other)? || becomes(other, self)?)
    }

    /// The blake3 hash of the file's content, hex.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The content of the `tokenizer.json`.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// The id of a token by its name in the file.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.plain.token_to_id(token)
    }

    /// The name of a token in the file; byte-level tokens have a letter for each byte.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.plain.id_to_token(id)
    }

    /// Writes the `tokenizer.json`, whole or not at all, byte for byte as it was read.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        write_atomic(path, |file| file.write_all(&self.content)).map_err(|e| DataError::io(path, e))
    }

    /// The token ids of a document.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where the tokenizer cannot take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        Ok(self.encode_all(&[text])?.pop().unwrap_or_default())
    }

    /// The token ids of many documents, in parallel. Long ones are cut where that changes no token: between the end of a
    /// word and a space, where encoding the 256 bytes on both sides together or apart gives the same.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where the tokenizer cannot take a text.
    pub fn encode_all<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<u32>>, DataError> {
        let segments: Vec<Vec<&str>> = texts
            .par_iter()
            .map(|text| self.segments(text.as_ref()))
            .collect::<Result<_, _>>()?;
        let flat: Vec<&str> = segments.iter().flatten().copied().collect();
        let mut ids = flat
            .par_iter()
            .map(|text| encode_one(&self.plain, text))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter();
        let joined = segments.iter().map(|segments| match segments.len() {
            1 => ids.next().unwrap_or_default(),
            count => ids.by_ref().take(count).flatten().collect(),
        });
        Ok(joined.collect())
    }

    /// The token ids of a prompt: names of special tokens in it are those tokens.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where the tokenizer cannot take the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let tokenizer = self.with_special.get_or_init(|| {
            let mut tokenizer = Box::new(self.plain.clone());
            tokenizer.set_encode_special_tokens(false);
            tokenizer
        });
        encode_one(tokenizer, text)
    }

    /// What the file itself puts before and after a text where special tokens are to be added, as an encoder asks for: `[CLS]` and
    /// `[SEP]` of BERT.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where the tokenizer cannot take a letter, or loses it between what it adds.
    pub fn frame(&self) -> Result<(Vec<u32>, Vec<u32>), DataError> {
        const LETTER: &str = "a";
        let plain = encode_one(&self.plain, LETTER)?;
        let framed = guarded(|| self.plain.encode_fast(LETTER, true))?;
        let framed = framed.get_ids();
        let lead = framed.windows(plain.len().max(1)).position(|part| part == plain);
        let lead = lead.ok_or_else(|| DataError::Tokenizer {
            place: "tokenizer".into(),
            reason: "what it puts before and after a text cannot be told apart from the text".into(),
        })?;
        Ok((framed[..lead].to_vec(), framed[lead + plain.len()..].to_vec()))
    }

    fn segments<'t>(&self, text: &'t str) -> Result<Vec<&'t str>, DataError> {
        let mut segments = Vec::new();
        let (mut start, mut from) = (0, SEGMENT);
        while from < text.len() {
            let places = text.as_bytes()[from..]
                .iter()
                .enumerate()
                .take(SEGMENT / 16)
                .filter(|(_, byte)| **byte == b' ')
                .map(|(at, _)| from + at)
                .filter(|&at| text[..at].ends_with(|last: char| !last.is_whitespace()));
            for at in places.take(CUTS_TRIED) {
                if self.is_cut(text, at)? {
                    segments.push(&text[start..at]);
                    start = at;
                    break;
                }
            }
            from = start.max(from) + SEGMENT;
        }
        segments.push(&text[start..]);
        Ok(segments)
    }

    /// Whether cutting before byte `at` changes no token nearby.
    fn is_cut(&self, text: &str, at: usize) -> Result<bool, DataError> {
        let first = text.floor_char_boundary(at.saturating_sub(CUT_CONTEXT));
        let last = text.ceil_char_boundary((at + CUT_CONTEXT).min(text.len()));
        let whole = encode_one(&self.plain, &text[first..last])?;
        let mut parts = encode_one(&self.plain, &text[first..at])?;
        parts.extend(encode_one(&self.plain, &text[at..last])?);
        Ok(whole == parts)
    }

    /// The text of token ids; special tokens give their names if `with_special`, and otherwise nothing. Bytes that are no
    /// UTF-8 give U+FFFD, ids that no token has give nothing.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], with_special: bool) -> Result<String, DataError> {
        guarded(|| self.plain.decode(ids, !with_special))
    }

    /// Decodes tokens as they come.
    #[must_use]
    pub fn decoding(&self, with_special: bool) -> Decoding<'_> {
        Decoding {
            tokenizer: self,
            with_special,
            ids: Vec::new(),
            given: 0,
        }
    }
}

fn encode_one(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, DataError> {
    guarded(|| tokenizer.encode_fast(text, false)).map(|encoding| encoding.get_ids().to_vec())
}

/// Runs code of the library, whose errors and panics become errors of ours.
pub(super) fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, DataError> {
    let failed = |reason| DataError::Tokenizer {
        place: "tokenizer".into(),
        reason,
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the tokenizer's parts contradict each other".into())),
    }
}

/// Token ids that come one by one, to text in whole characters.
///
/// All that was given out, joined, is the text of all tokens decoded at once, where these are UTF-8. Of other bytes at
/// most 16 tokens are held back.
pub struct Decoding<'t> {
    tokenizer: &'t Tokenizer,
    with_special: bool,
    /// The tokens given out last, which decide how the next ones begin, and those held back.
    ids: Vec<u32>,
    given: usize,
}

impl Decoding<'_> {
    /// The text that one more token completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, DataError> {
        self.ids.push(id);
        self.take(self.ids.len() - self.given > MAX_PENDING)
    }

    /// What is held back, with U+FFFD for an incomplete character.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] where the tokenizer's decoder fails.
    pub fn finish(mut self) -> Result<String, DataError> {
        self.take(true)
    }

    fn take(&mut self, is_forced: bool) -> Result<String, DataError> {
        let before = self.tokenizer.decode(&self.ids[..self.given], self.with_special)?;
        let now = self.tokenizer.decode(&self.ids, self.with_special)?;
        if !is_forced && (now.ends_with('\u{FFFD}') || !now.starts_with(&before)) {
            return Ok(String::new());
        }
        let text = now.get(now.floor_char_boundary(before.len())..).unwrap_or_default();
        let text = text.to_owned();
        if !text.is_empty() || is_forced {
            self.ids.drain(..self.given);
            self.given = self.ids.len();
        }
        Ok(text)
    }
}
