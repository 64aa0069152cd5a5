//! Where examples come from: one trait, one file per format, and the function that finds out which it is.

pub mod cifar;
pub mod folder;
pub mod idx;
pub mod joined;
pub mod parquet;
mod random_access;
pub mod webdataset;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::image::Image;

/// The most examples one source may hold.
pub const MAX_EXAMPLES: u64 = 1 << 32;

/// A numbered collection of images, read in any order and from many threads.
pub trait Source: Send + Sync {
    /// The format: `folder`, `idx`, `cifar`, `parquet` or `webdataset`.
    fn kind(&self) -> &'static str;

    /// How many examples there are; at least 1.
    fn len(&self) -> usize;

    /// Whether there are no examples. No source that [`open`] gives is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The content of one example as it is stored: an encoded file, or raw pixels where the format stores those. It is
    /// what content hashes are made of; names and labels are not part of it.
    ///
    /// # Errors
    /// Where it cannot be read, or `index` is not below [`Source::len`].
    fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError>;

    /// One example, decoded.
    ///
    /// # Errors
    /// Where it cannot be read or decoded, or `index` is not below [`Source::len`].
    fn read(&self, index: usize) -> Result<Image, DataError>;

    /// What to call one example in messages: a path, `x.parquet#12`, `shard.tar!cat/1.jpg`.
    fn name(&self, index: usize) -> String;

    /// The class of one example, an index into [`Source::classes`]; none unless labels were asked for.
    fn label(&self, index: usize) -> Option<u32>;

    /// The class names; empty unless labels were asked for. Formats without names number their classes.
    fn classes(&self) -> &[String];

    /// How many files or members were passed over because they are no examples.
    fn skipped(&self) -> usize {
        0
    }
}

/// Whether the labels that data carries are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Every label is none, and nothing is said where labels are missing.
    Ignore,
    /// Every example must have one.
    Use,
}

/// Opens what lies at `path`, by content and name:
/// a folder of parquet files (or with `data/*.parquet`), of tar shards, of IDX files, of CIFAR binary files (or with one
/// of their usual sub-folders), and otherwise of images; or a single file of any of these.
///
/// # Errors
/// Where there is nothing to read at `path`, or it is damaged or unsafe, or labels are asked for and missing.
pub fn open(path: &Path, labels: Labels) -> Result<Box<dyn Source>, DataError> {
    let metadata = fs::metadata(path).map_err(|e| DataError::io(path, e))?;
    if metadata.is_dir() {
        open_folder(path, labels)
    } else {
        open_file(path, labels)
    }
}

fn open_folder(path: &Path, labels: Labels) -> Result<Box<dyn Source>, DataError> {
    let mut files = files_of(path)?;
    if !files.iter().any(|f| has_extension(f, &["parquet"])) {
        let data = path.join("data");
        if data.is_dir() {
            files.extend(files_of(&data)?.into_iter().filter(|f| has_extension(f, &["parquet"])));
        }
    }
    let of = |wanted: fn(&Path) -> bool| -> Vec<PathBuf> { files.iter().filter(|f| wanted(f)).cloned().collect() };
    let shards = of(|f| has_extension(f, &["parquet"]));
    if !shards.is_empty() {
        return Ok(Box::new(parquet::Parquet::open(&shards, labels)?));
    }
    let shards = of(|f| has_extension(f, &["tar"]));
    if !shards.is_empty() {
        return Ok(Box::new(webdataset::WebDataset::open(&shards, labels)?));
    }
    let parts = of(idx::is_images_name);
    if !parts.is_empty() {
        return Ok(Box::new(idx::Idx::open(&parts, labels)?));
    }
    for folder in [
        path.to_path_buf(),
        path.join("cifar-10-batches-bin"),
        path.join("cifar-100-binary"),
    ] {
        let parts: Vec<PathBuf> = match folder.is_dir() {
            true => files_of(&folder)?
                .into_iter()
                .filter(|f| cifar::layout_by_name(f).is_some())
                .collect(),
            false => Vec::new(),
        };
        if !parts.is_empty() {
            return Ok(Box::new(cifar::Cifar::open(&parts, labels)?));
        }
    }
    Ok(Box::new(folder::Folder::open(path, labels)?))
}

fn open_file(path: &Path, labels: Labels) -> Result<Box<dyn Source>, DataError> {
    let mut head = Vec::with_capacity(512);
    let file = fs::File::open(path).map_err(|e| DataError::io(path, e))?;
    file.take(512)
        .read_to_end(&mut head)
        .map_err(|e| DataError::io(path, e))?;
    let one = [path.to_path_buf()];
    let place = path.display().to_string();
    if head.is_empty() {
        return Err(DataError::damaged(place, "the file is empty (0 bytes)"));
    }
    if head.starts_with(b"PAR1") || has_extension(path, &["parquet"]) {
        return Ok(Box::new(parquet::Parquet::open(&one, labels)?));
    }
    if head.get(257..262) == Some(b"ustar") || has_extension(path, &["tar"]) {
        return Ok(Box::new(webdataset::WebDataset::open(&one, labels)?));
    }
    let is_gzip = head.starts_with(&[0x1F, 0x8B]);
    if idx::is_images_name(path) || matches!(head[..], [0, 0, 8, 3 | 4, ..]) || (is_gzip && !is_tarball(path)) {
        return Ok(Box::new(idx::Idx::open(&one, labels)?));
    }
    if cifar::layout_by_name(path).is_some() || has_extension(path, &["bin"]) {
        return Ok(Box::new(cifar::Cifar::open(&one, labels)?));
    }
    if has_extension(path, folder::EXTENSIONS) || ::image::guess_format(&head).is_ok() {
        return Ok(Box::new(folder::Folder::single(path, labels)?));
    }
    Err(DataError::Unrecognized { place })
}

fn is_tarball(path: &Path) -> bool {
    file_name(path).contains(".tar.") || has_extension(path, &["tgz"])
}

/// The plain files directly in a folder, hidden ones left out, sorted by name.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| DataError::io(folder, e))? {
        let path = entry.map_err(|e| DataError::io(folder, e))?.path();
        if path.is_file() && !file_name(&path).starts_with('.') {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A path's last component, for names and messages.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// Whether a path ends in one of the extensions, in any case.
pub(crate) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension()
        .is_some_and(|own| extensions.iter().any(|e| own.eq_ignore_ascii_case(e)))
}

/// Class names for a format that only numbers its classes: one for each number up to the largest label.
fn numbered_classes(labels: &[u32]) -> Vec<String> {
    labels.iter().max().map_or_else(Vec::new, |&largest| {
        (0..=largest).map(|class| class.to_string()).collect()
    })
}

/// The largest class number that is believed; a larger one means that the column or file is no label.
const MAX_CLASS: i64 = 1 << 20;

/// A label as a class number.
fn class_number(value: i64, place: impl FnOnce() -> String) -> Result<u32, DataError> {
    if (0..=MAX_CLASS).contains(&value) {
        return Ok(value as u32);
    }
    let reason = format!("{value} is no class number (0 to {MAX_CLASS})");
    Err(DataError::LabelsMissing { place: place(), reason })
}

/// The error for an example number that is too large.
fn out_of_range(place: &Path, index: usize, len: usize) -> DataError {
    DataError::OutOfRange {
        place: place.display().to_string(),
        index,
        len,
    }
}
