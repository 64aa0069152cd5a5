//! GGUF, the file format of llama.cpp: files read and written, with the names and the tokenizer that its documents describe.

mod decoder;
mod error;
mod file;
mod keys;
mod kind;
mod names;
mod quant;
mod rope;
pub mod tokenizer;
mod value;
mod write;

pub(crate) use decoder::is_gguf;
pub use decoder::{MODEL, Opened, export, open};
pub use error::GgufError;
pub use file::GgufFile;
pub use kind::TensorType;
pub(crate) use names::{halves, pairs};
pub use value::{Array, Metadata, MetadataError, Sizes, Strings, Value};
pub use write::{Tensor, file_bytes, write};
