//! GGUF, the file format of llama.cpp: files read and written, with the names and the tokenizer that its documents describe.

mod error;
mod file;
mod kind;
mod quant;
mod value;
mod write;

pub use error::GgufError;
pub use file::GgufFile;
pub use kind::TensorType;
pub use value::{Array, Metadata, MetadataError, Sizes, Strings, Value};
pub use write::{Tensor, file_bytes, write};
