//! Why a GGUF file cannot be used.

use std::io;
use std::path::PathBuf;

use super::kind::{TensorType, names};

/// Why a GGUF file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a GGUF file of another version, or none.
    #[error("{path}: {reason}")]
    Version {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// It is not what its header promises.
    #[error("{path}: not a usable GGUF file: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is not there.
    #[error("{path}: no tensor `{name}`")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor asked for.
        name: String,
    },
    /// A tensor has a type that is not read as numbers.
    #[error("{path}: tensor `{name}` is {kind}; {} are read as numbers", names(&TensorType::READ))]
    Kind {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        kind: TensorType,
    },
    /// What is to be written has no place in the format.
    #[error("{path}: cannot be written as GGUF: {reason}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What, and why not.
        reason: String,
    },
    /// A tensor has numbers that the type asked for cannot hold.
    #[error("{path}: tensor `{name}` has {value}, which {kind} cannot hold")]
    Range {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The first such number.
        value: f32,
        /// The type asked for.
        kind: TensorType,
    },
}

impl GgufError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Version { .. } => Some(
                "versions 2 and 3 in little-endian order are read: convert the model again with a newer program".into(),
            ),
            Self::Invalid { .. } => {
                Some("the file is damaged or was not fully copied: compare its size with the original's".into())
            }
            Self::Kind { .. } => Some("take the same model in one of these types, such as F16 or Q8_0".into()),
            Self::Range { .. } => Some("write the model as F32".into()),
            _ => None,
        }
    }
}
