//! Why a corpus cannot be clustered or its clusters not used, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use offshoot_data::DataError;
use offshoot_zoo::CheckpointError;
use offshoot_zoo::safetensors::SafetensorsError;

/// Why a corpus cannot be clustered, or its clusters not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// The corpus or a tokenizer cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The encoder cannot be opened.
    #[error(transparent)]
    Encoder(#[from] CheckpointError),
    /// Centroids or an encoder of ours cannot be read or written.
    #[error(transparent)]
    Tensors(#[from] SafetensorsError),
    /// An encoder folder has no tokenizer that it can be used with.
    #[error("{folder}: {reason}")]
    Tokenizer {
        /// The encoder's folder.
        folder: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A setting that cannot work.
    #[error("setting `{field}`: {reason}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// Why it cannot work.
        reason: String,
    },
    /// Nothing to cluster.
    #[error("{place}: the {part} part has no window of 2 tokens or more")]
    NoWindows {
        /// The corpus.
        place: PathBuf,
        /// Train, val or test.
        part: &'static str,
    },
    /// More clusters than windows.
    #[error("{k} clusters of {windows} windows")]
    TooFew {
        /// Clusters asked for.
        k: usize,
        /// Windows that there are.
        windows: u64,
    },
    /// An embedding holds NaN or infinity.
    #[error("the embedding of window {window} (domain `{domain}`) is not finite")]
    NotFinite {
        /// The window's number.
        window: u64,
        /// Its domain.
        domain: String,
    },
    /// No text that tf-idf could tell apart.
    #[error("no term of the {documents} windows looked at occurs in two of them")]
    NoTerms {
        /// Windows that the vocabulary was to be made of.
        documents: usize,
    },
    /// The device failed.
    #[error("the encoder failed: {0}")]
    Device(String),
    /// The folder already holds clusters.
    #[error("{0} already holds clusters")]
    Used(PathBuf),
    /// The folder holds a clustering that was stopped.
    #[error("{0} holds a clustering that was not finished")]
    Unfinished(PathBuf),
    /// A clustering to go on with was begun with other settings.
    #[error("{folder} was begun with another {what}")]
    OtherRequest {
        /// The folder.
        folder: PathBuf,
        /// The first difference.
        what: String,
    },
    /// Nothing to go on with.
    #[error("{0} holds no clustering to resume")]
    NothingToResume(PathBuf),
    /// The folder holds files of somebody else.
    #[error("{folder} is not empty, and no clustering was begun in it (there is `{found}`)")]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// Another process uses the folder.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A format that this version does not know yet.
    #[error("{path}: its format {found} is newer than {known}, the newest that this version reads")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format's number.
        found: u64,
        /// The newest number known.
        known: u64,
    },
    /// Clusters of other windows than those at hand.
    #[error("{folder} has the clusters of other windows: {difference}")]
    OtherWindows {
        /// The folder of the clusters.
        folder: PathBuf,
        /// The first difference.
        difference: String,
    },
    /// An encoder other than the one that the centroids were made with.
    #[error("{folder}: its clusters were made with the encoder {wanted}, and {found} was given")]
    OtherEncoder {
        /// The folder of the clusters.
        folder: PathBuf,
        /// Hash of the encoder that it was.
        wanted: String,
        /// What is given now.
        found: String,
    },
    /// Clusters without centroids.
    #[error("{0} holds the clusters of a corpus that was assigned to the centroids of another folder")]
    NoCentroids(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ClusterError {
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn setting(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Setting {
            field,
            reason: reason.into(),
        }
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Data(error) => return error.hint().map(Into::into),
            Self::Encoder(error) => return error.hint(),
            Self::Tokenizer { .. } => {
                "an encoder folder holds config.json, model.safetensors and tokenizer.json, as sentence-transformers writes it".into()
            }
            Self::Setting { .. } => "change the option of that name".into(),
            Self::NoWindows { .. } => "cluster a part that has text, or make the corpus with a smaller share held out".into(),
            Self::TooFew { windows, .. } => {
                format!("ask for at most {windows} clusters, take a shorter --context, or give more text")
            }
            Self::NotFinite { .. } => {
                "the encoder's weights are damaged or overflow: compare the file with the original's".into()
            }
            Self::NoTerms { .. } => {
                "tf-idf needs words that come again; give more text, or an encoder by --encoder FOLDER".into()
            }
            Self::Used(_) => "choose another folder, or replace it by `--overwrite`".into(),
            Self::Unfinished(_) => "go on by `--resume`, start anew by `--overwrite`, or choose another folder".into(),
            Self::OtherRequest { .. } => {
                "resume with the corpus, encoder and options that it was begun with, or start anew by `--overwrite`".into()
            }
            Self::NothingToResume(_) => "leave `--resume` out to start".into(),
            Self::Foreign { .. } => "choose an empty folder; `--overwrite` only ever replaces clusters".into(),
            Self::Locked(_) => "wait for it, or choose another folder".into(),
            Self::NewerFormat { .. } => "use a newer version of offshoot, or cluster again with this one".into(),
            Self::Damaged { .. } => "cluster again, or fetch the folder again".into(),
            Self::OtherWindows { .. } => {
                "give the corpus, context and packing that were clustered, or cluster again: numbers of windows mean nothing else".into()
            }
            Self::OtherEncoder { .. } => "give the encoder that the clusters were made with by --encoder".into(),
            Self::NoCentroids(_) => "name the folder that `offshoot cluster --k` made".into(),
            Self::Device(_) | Self::Tensors(_) | Self::Io { .. } => return None,
        })
    }
}
