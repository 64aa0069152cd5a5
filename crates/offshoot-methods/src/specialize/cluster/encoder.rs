//! Texts to vectors of length 1: by a sentence encoder, or by weighted counts of terms.

use std::path::Path;

use offshoot_data::text::{TOKENIZER_FILE, Tokenizer};
use offshoot_zoo::SentenceEncoder;
use offshoot_zoo::tensor::Device;
use rayon::prelude::*;

use super::error::ClusterError;
use super::tfidf::TfIdf;

/// What makes a vector of a text.
#[derive(Debug)]
pub enum Encoder {
    /// A sentence encoder of others with its tokenizer.
    Sentence(Box<Sentence>),
    /// Terms of a sample of the corpus.
    TfIdf(TfIdf),
}

/// A sentence encoder with its tokenizer.
#[derive(Debug)]
pub struct Sentence {
    network: SentenceEncoder,
    tokenizer: Tokenizer,
    lead: Vec<u32>,
    tail: Vec<u32>,
    hash: String,
}

/// Vectors of some texts.
#[derive(Debug)]
pub(super) struct Embedded {
    /// `[texts, width]`, row-major.
    pub(super) vectors: Vec<f32>,
    /// Tokens that went through the network.
    pub(super) tokens: u64,
    /// Multiply-adds of the network.
    pub(super) macs: u64,
}

impl Encoder {
    /// Opens a folder of sentence-transformers with a `BertModel` and its `tokenizer.json`, see
    /// [`SentenceEncoder::open`] for what is read.
    ///
    /// # Errors
    /// If the network cannot be used, or there is no tokenizer that fits it.
    pub fn open(folder: &Path, device: &Device) -> Result<Self, ClusterError> {
        let wrong = |reason: String| ClusterError::Tokenizer {
            folder: folder.to_owned(),
            reason,
        };
        let network = SentenceEncoder::open(folder, device)?;
        if !folder.join(TOKENIZER_FILE).is_file() {
            return Err(wrong(format!("it has no {TOKENIZER_FILE}")));
        }
        let tokenizer = Tokenizer::open(folder)?;
        if tokenizer.vocabulary() > network.vocabulary() {
            return Err(wrong(format!(
                "its tokenizer has {} tokens, the network embeddings for {}",
                tokenizer.vocabulary(),
                network.vocabulary()
            )));
        }
        let (lead, tail) = tokenizer.frame()?;
        if lead.is_empty() || tail.is_empty() {
            return Err(wrong(
                "its tokenizer puts nothing before or after a text, and a BERT wants [CLS] and [SEP] there".into(),
            ));
        }
        if lead.len() + tail.len() >= network.max_tokens() {
            return Err(wrong(format!(
                "it reads {} tokens, which leaves none for a text",
                network.max_tokens()
            )));
        }
        let both = format!("{} {}", network.hash(), tokenizer.hash());
        Ok(Self::Sentence(Box::new(Sentence {
            network,
            tokenizer,
            lead,
            tail,
            hash: blake3::hash(both.as_bytes()).to_hex().to_string(),
        })))
    }

    /// `bert` or `tf-idf`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sentence(_) => "bert",
            Self::TfIdf(_) => "tf-idf",
        }
    }

    /// A hash of all that decides its vectors, hex.
    #[must_use]
    pub fn hash(&self) -> &str {
        match self {
            Self::Sentence(sentence) => &sentence.hash,
            Self::TfIdf(terms) => terms.hash(),
        }
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::Sentence(sentence) => sentence.network.width(),
            Self::TfIdf(terms) => terms.width(),
        }
    }

    /// The vectors of texts, `[texts, width]` row-major, each of length 1; by terms a text without any of them has zeros. Of a long
    /// text a sentence encoder reads the head alone: 256 tokens of its own, those of all-MiniLM-L6-v2.
    ///
    /// # Errors
    /// If a text cannot be tokenized, or the device fails.
    pub fn embed(&self, texts: &[String]) -> Result<Vec<f32>, ClusterError> {
        Ok(self.embed_counted(texts)?.vectors)
    }

    pub(super) fn embed_counted(&self, texts: &[String]) -> Result<Embedded, ClusterError> {
        match self {
            Self::TfIdf(terms) => Ok(Embedded {
                vectors: terms.embed(texts),
                tokens: 0,
                macs: 0,
            }),
            Self::Sentence(sentence) => {
                let tokens: Vec<Vec<u32>> = texts
                    .par_iter()
                    .map(|text| sentence.tokens(text))
                    .collect::<Result<_, _>>()?;
                Ok(Embedded {
                    vectors: sentence.network.embed(&tokens).map_err(ClusterError::Device)?,
                    tokens: tokens.iter().map(|tokens| tokens.len() as u64).sum(),
                    macs: tokens.iter().map(|tokens| sentence.network.macs(tokens.len())).sum(),
                })
            }
        }
    }
}

impl Sentence {
    /// The tokens of a text between those that begin and end it, cut to the longest that is read. Names of special tokens in the text
    /// are those tokens, as they are to sentence-transformers.
    fn tokens(&self, text: &str) -> Result<Vec<u32>, ClusterError> {
        let own = if self.network.lowercase() {
            self.tokenizer.encode_prompt(&text.to_lowercase())?
        } else {
            self.tokenizer.encode_prompt(text)?
        };
        let room = self.network.max_tokens() - self.lead.len() - self.tail.len();
        let own = &own[..own.len().min(room)];
        Ok([&self.lead[..], own, &self.tail].concat())
    }
}
