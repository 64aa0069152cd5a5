//! Text for language models: documents, tokenizers, tokenised corpora on disk, and windows of tokens.
//!
//! The way of a text: [`Documents`] streams what a path holds, [`Tokenizer`] turns it into ids, [`build`] writes a
//! [`Corpus`] of several domains, split by content and cleared of duplicates of held-out documents, and [`Windows`] cuts a
//! split into what a model sees, from which [`Batches`] draws. Formats and rules are in `docs/text.md`.

mod block;
mod build;
mod corpus;
mod minhash;
mod source;
mod tokenizer;
mod training;
mod windows;

pub use build::{CorpusOptions, Domain, build, split_of};
pub use corpus::{Corpus, DomainFacts, Facts, Part, PartFacts, Removed, SplitFacts, TokenizerFacts};
pub use minhash::{HASHES, THRESHOLD};
pub use source::{At, Counts, Document, Documents, MAX_DOCUMENT_BYTES, Place};
pub use tokenizer::{Decoding, FILE as TOKENIZER_FILE, Tokenizer};
pub use training::{Algorithm, MAX_SAMPLE_BYTES, Training};
pub use windows::{Batches, Draw, Window, WindowOptions, Windows, permuted};
