//! What can go wrong between a file and a batch, each case with its place and the way out.

use std::io;
use std::path::Path;

/// An error of this crate. `place` is always a path, an archive member (`shard.tar!cat/1.jpg`) or a row
/// (`train.parquet#12`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused to read or write.
    #[error("{place}: {source}")]
    Io {
        /// The path.
        place: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A place that should hold examples holds none.
    #[error("{place}: no images found ({found})")]
    Empty {
        /// The path.
        place: String,
        /// What was found instead.
        found: String,
    },
    /// A place that should hold documents holds none.
    #[error("{place}: no text found ({found})")]
    NoText {
        /// The path.
        place: String,
        /// What was found instead.
        found: String,
    },
    /// More damaged documents than the settings allow.
    #[error(
        "{place}: {damaged} of {of} documents are damaged, more than the share of {limit} that is allowed; the first: {}",
        first.join("; ")
    )]
    TooManyDamagedDocuments {
        /// The path that the documents were read from.
        place: String,
        /// Damaged documents.
        damaged: u64,
        /// All documents, empty ones among them.
        of: u64,
        /// The share allowed.
        limit: f64,
        /// `place (reason)` of the first few.
        first: Vec<String>,
    },
    /// A tokenizer that cannot be read, trained or used.
    #[error("{place}: {reason}")]
    Tokenizer {
        /// The file, or the text that was to be encoded.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A file of a format that this version does not know yet.
    #[error("{place}: its format {found} is newer than {known}, the newest that this version reads")]
    NewerFormat {
        /// The file.
        place: String,
        /// The format's number.
        found: u64,
        /// The newest number known.
        known: u64,
    },
    /// A folder that is to be written already holds something.
    #[error("{place}: already exists")]
    Exists {
        /// The path.
        place: String,
    },
    /// A folder that another process is writing.
    #[error("{place}: another process is writing it")]
    Busy {
        /// The path.
        place: String,
    },
    /// Text that changed between two readings of it.
    #[error("{place}: changed while it was read")]
    Changed {
        /// The path.
        place: String,
    },
    /// A path whose content is none of the known formats.
    #[error("{place}: not a format that can be read")]
    Unrecognized {
        /// The path.
        place: String,
    },
    /// Bytes that contradict their format: truncated, corrupt, or not an image.
    #[error("{place}: {reason}")]
    Damaged {
        /// The path, member or row.
        place: String,
        /// What is wrong, with offsets where they are known.
        reason: String,
    },
    /// A size beyond the documented limits, refused before anything of that size is allocated.
    #[error("{place}: {what}, over the limit of {limit}")]
    TooLarge {
        /// The path, member or row.
        place: String,
        /// The size found.
        what: String,
        /// The limit it broke.
        limit: String,
    },
    /// An archive member whose name points outside of the archive.
    #[error("{archive}: member `{member}` points outside of the archive")]
    UnsafeMember {
        /// The archive's path.
        archive: String,
        /// The member's name.
        member: String,
    },
    /// Labels were asked for and are not there.
    #[error("{place}: labels were asked for, but {reason}")]
    LabelsMissing {
        /// The path, member or row.
        place: String,
        /// What is missing.
        reason: String,
    },
    /// A setting that cannot work.
    #[error("setting `{field}`: {reason}")]
    Config {
        /// The name of the setting.
        field: &'static str,
        /// Why it cannot work.
        reason: String,
    },
    /// An example number beyond the source's length.
    #[error("{place}: example {index} of {len}")]
    OutOfRange {
        /// The source.
        place: String,
        /// The number asked for.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// More damaged images than the settings allow.
    #[error(
        "{damaged} of {of} images are damaged, more than the share of {limit} that is allowed; the first: {}",
        first.join("; ")
    )]
    TooManyDamaged {
        /// Distinct damaged images seen so far.
        damaged: usize,
        /// Images in the training split.
        of: usize,
        /// The share allowed.
        limit: f64,
        /// `name (reason)` of the first few.
        first: Vec<String>,
    },
    /// A loader thread failed in a way that is a defect of this program.
    #[error("the loader failed while making step {step}: {reason}")]
    Worker {
        /// The global step.
        step: u64,
        /// The panic's message.
        reason: String,
    },
}

impl DataError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            place: path.display().to_string(),
            source,
        }
    }

    pub(crate) fn damaged(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged {
            place: place.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn config(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Config {
            field,
            reason: reason.into(),
        }
    }

    /// What to do next, in one sentence, where there is something to do.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        Some(match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "check the path; nothing is downloaded",
                io::ErrorKind::PermissionDenied => "give this user the right to read it",
                _ => return None,
            },
            Self::Empty { .. } => {
                "give a folder of images (jpg, png, webp, bmp, gif, tiff, pnm), IDX files, CIFAR binary files, parquet \
                 files or tar shards; archives such as .zip must be unpacked first"
            }
            Self::NoText { .. } => {
                "give a .txt, .jsonl (each line an object with `text`), .jsonl.gz, .jsonl.zst or .parquet file (column \
                 `text`), or a folder of them; one plain file is one document, and blank documents do not count"
            }
            Self::TooManyDamagedDocuments { .. } => {
                "look at the places named: text is UTF-8, and each JSON line an object with a string `text`; or allow a \
                 larger share of damaged documents"
            }
            Self::Tokenizer { .. } => {
                "give a tokenizer.json of the tokenizers library, or train one with `offshoot tokenizer train`"
            }
            Self::NewerFormat { .. } => "use a newer version of offshoot, or make the files again with this one",
            Self::Exists { .. } => "choose another folder, or remove this one first",
            Self::Busy { .. } => "wait until it is done, or choose another folder",
            Self::Changed { .. } => "wait until nothing writes to it, then start again",
            Self::Unrecognized { .. } => {
                "give an image folder, an IDX images file, a CIFAR .bin file, a .parquet file or a .tar shard (not compressed)"
            }
            Self::Damaged { .. } => "fetch the file again, or take it out of the data",
            Self::TooLarge { .. } => "shrink the file, or take it out of the data",
            Self::UnsafeMember { .. } => "do not trust this archive; pack it again with relative names",
            Self::LabelsMissing { .. } => "add the labels, or open the data without labels",
            Self::Config { .. } => "change the setting in the recipe",
            Self::OutOfRange { .. } => return None,
            Self::TooManyDamaged { .. } => {
                "look at the files named, fetch them again, or allow a larger share of damaged images"
            }
            Self::Worker { .. } => "please report this with the message above",
        })
    }
}
