//! Tokenizers between Hugging Face's `tokenizer.json` and the metadata `tokenizer.ggml.*` of a GGUF file.
//!
//! Three kinds are known: byte-level BPE (`gpt2`), BPE of characters with a byte for what is not among them (`llama`), and unigram
//! (`t5`). llama.cpp's keys say less than a `tokenizer.json`. What they do not say becomes a [`Note`]; and where they do not bring
//! the same tokenizer back, the `tokenizer.json` comes along as `tokenizer.huggingface.json`, a key of the format, which is
//! preferred when the file is read.

mod canonical;
mod merges;
mod pre;
mod read;
mod spaces;
mod special;
mod template;
mod write;

use std::fmt;

use serde_json::Value;

use super::value::MetadataError;

pub use read::tokenizer_json;
pub use special::Special;
pub use write::tokenizer_metadata;

/// Keys of the metadata.
pub(crate) mod key {
    pub(crate) const MODEL: &str = "tokenizer.ggml.model";
    pub(crate) const PRE: &str = "tokenizer.ggml.pre";
    pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
    pub(crate) const TYPES: &str = "tokenizer.ggml.token_type";
    pub(crate) const SCORES: &str = "tokenizer.ggml.scores";
    pub(crate) const MERGES: &str = "tokenizer.ggml.merges";
    pub(crate) const BOS: &str = "tokenizer.ggml.bos_token_id";
    pub(crate) const EOS: &str = "tokenizer.ggml.eos_token_id";
    pub(crate) const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
    pub(crate) const PADDING: &str = "tokenizer.ggml.padding_token_id";
    pub(crate) const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
    pub(crate) const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    pub(crate) const ADD_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
    pub(crate) const REMOVE_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
    pub(crate) const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
    pub(crate) const HUGGING_FACE: &str = "tokenizer.huggingface.json";
    pub(crate) const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
}

/// What stands for a space in the tokens of `llama` and `t5`.
pub(crate) const SPACE: &str = "\u{2581}";

/// The type of a token, as the format numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    const ALL: [(Self, i32); 6] = [
        (Self::Normal, 1),
        (Self::Unknown, 2),
        (Self::Control, 3),
        (Self::UserDefined, 4),
        (Self::Unused, 5),
        (Self::Byte, 6),
    ];

    fn id(self) -> i32 {
        let pair = Self::ALL.iter().find(|(kind, _)| *kind == self);
        pair.expect("all are listed").1
    }

    fn of_id(id: i32) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, number)| *number == id)
            .map(|(kind, _)| *kind)
    }
}

/// The name of a row of the embeddings that no token has.
fn padding(id: usize) -> String {
    format!("[PAD{id}]")
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Where the two programs part although all that one can say to the other was said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// Text is cut into words in a way that llama.cpp has no name for, or that has no counterpart here.
    PreTokenizer {
        /// What cuts it.
        found: String,
        /// The way that was written or read instead.
        instead: &'static str,
    },
    /// Text is changed before it is cut, which llama.cpp does not do.
    Normalizer {
        /// What changes it.
        found: String,
    },
    /// Merges other than every way to put every token together, in an order of tokens: llama.cpp's scores of tokens cannot say that.
    Merges,
    /// A text that starts with a space gets another in front by llama.cpp.
    Prefix,
    /// Unigram with bytes for what it does not know; llama.cpp has one unknown token for it.
    Bytes,
    /// More is put around a text than one token in front and one behind.
    Template {
        /// What is put around it.
        found: String,
    },
    /// Tokens that take spaces around them, or whole words only, which llama.cpp does not know of.
    AddedTokens {
        /// The first.
        first: String,
        /// How many.
        count: usize,
    },
    /// Nothing says which token ends a text; llama.cpp then takes the token of this number.
    NoEnd {
        /// What it takes.
        taken: u32,
    },
    /// A `tokenizer.json` in the file has other tokens than the file's own list, which is what was read.
    Embedded,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PreTokenizer { found, instead } => {
                write!(
                    f,
                    "the pre-tokenizer {found} is not known: `{instead}` stands for it, which may cut other words"
                )
            }
            Self::Normalizer { found } => write!(f, "llama.cpp does not normalise text as {found} does"),
            Self::Merges => {
                f.write_str("llama.cpp has scores instead of merges; it may take other tokens of this vocabulary")
            }
            Self::Prefix => f.write_str("llama.cpp puts a space in front of a text that starts with one, too"),
            Self::Bytes => f.write_str("llama.cpp takes the unknown token where this unigram tokenizer has bytes"),
            Self::Template { found } => write!(
                f,
                "llama.cpp adds no more than one token at either end of a text, not {found}"
            ),
            Self::AddedTokens { first, count } => write!(
                f,
                "llama.cpp knows no spaces or word boundaries of added tokens: `{first}` is one of {count} that have them"
            ),
            Self::NoEnd { taken } => write!(f, "no token is known to end a text; llama.cpp takes number {taken}"),
            Self::Embedded => {
                f.write_str("the file's tokenizer.json has other tokens than its own list; it was passed over")
            }
        }
    }
}

/// Why a tokenizer cannot be translated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A value of the metadata is missing or of another type.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A part of it is missing or is not what it should be.
    #[error("tokenizer: {0}")]
    Invalid(String),
    /// It is of a kind that has no counterpart.
    #[error("tokenizer: {0}")]
    Unsupported(String),
    /// It has more tokens than there are embeddings.
    #[error("the tokenizer has the token {token}, but the embeddings have {rows} rows")]
    Rows {
        /// The largest number of a token.
        token: usize,
        /// Rows of the embeddings.
        rows: usize,
    },
}

impl TokenizerError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unsupported(_) => {
                Some("byte-level BPE, BPE with bytes for unknown characters, and unigram tokenizers are translated")
            }
            Self::Rows { .. } => Some("the tokenizer and the weights belong to different models"),
            _ => None,
        }
    }
}

fn invalid(reason: impl Into<String>) -> TokenizerError {
    TokenizerError::Invalid(reason.into())
}

/// A part of a `tokenizer.json`, short enough for a sentence.
fn brief(part: &Value) -> String {
    const MOST: usize = 120;
    let text = part.to_string();
    match text.char_indices().nth(MOST) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokens_have_two_hexadecimal_digits() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0xff>"), Some(255));
        for other in ["<0x+1>", "<0x1>", "<0x100>", "0x10", "<0x\u{e9}>", ""] {
            assert_eq!(byte_of(other), None, "{other}");
        }
    }
}
