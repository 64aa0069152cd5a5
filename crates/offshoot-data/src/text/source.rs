//! The documents of a path, one after the other, in bounded memory.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use crate::error::DataError;
use crate::source::parquet::{Part, Rows, open_text};
use crate::source::{folder, has_extension};

/// The longest document, and the longest line of a file of JSON lines, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 20;
/// How many damaged documents an error names.
const NAMED: usize = 5;
/// Bytes of a file that are read at a time.
const BUFFER: usize = 1 << 18;

/// A document and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its text, as it is: nothing is trimmed or normalised, but a byte-order mark at the start of a plain file is left out.
    pub text: String,
    /// Where it is from.
    pub place: Place,
}

/// Where a document is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// Where in the file.
    pub at: At,
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The file is one document.
    Whole,
    /// A line of a file of JSON lines, from 1.
    Line(u64),
    /// A row of a Parquet file, from 0.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.at {
            At::Whole => write!(f, "{file}"),
            At::Line(line) => write!(f, "{file}:{line}"),
            At::Row(row) => write!(f, "{file}#{row}"),
        }
    }
}

/// What was read so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Documents that were given out.
    pub documents: u64,
    /// Their UTF-8 bytes.
    pub bytes: u64,
    /// Documents without any character but white space, left out.
    pub empty: u64,
    /// Documents that are no UTF-8 text, lines that are no object with a string `text`, and rows without text, left out.
    pub damaged: u64,
    /// `place (reason)` of the first few damaged ones.
    pub first_damaged: Vec<String>,
}

/// The documents of a file, or of all files below a folder in the order of their paths.
///
/// | name ends in | documents |
/// | --- | --- |
/// | `.txt`, `.text` | the file is one |
/// | `.jsonl`, `.jsonlines`, `.ndjson` | one a line, in the field `text` of an object; blank lines are nothing |
/// | `.parquet` | one a row, in the column `text` |
///
/// Plain files and JSON lines may be compressed (`.gz`, `.zst`). Other files of a folder, and hidden ones, are passed
/// over. At most one document and a buffer are in memory.
///
/// Documents of white space alone are left out and counted; so are damaged ones ([`Counts`]). After the last document
/// there is one error more where the damaged ones exceed their share. After an error there is nothing.
pub struct Documents {
    root: PathBuf,
    files: Vec<FoundFile>,
    next: usize,
    current: Option<Current>,
    counts: Counts,
    max_damaged: f64,
    done: Arc<AtomicU64>,
    total: u64,
    skipped: usize,
    has_ended: bool,
}

struct FoundFile {
    path: Arc<Path>,
    bytes: u64,
    kind: Kind,
    packing: Packing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Lines,
    Parquet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

/// The file that is being read.
enum Current {
    Plain(Arc<Path>, Box<dyn BufRead + Send>),
    Lines {
        file: Arc<Path>,
        reader: Box<dyn BufRead + Send>,
        line: u64,
    },
    Rows {
        file: Arc<Path>,
        part: Box<Part>,
        bytes: u64,
        group: usize,
        rows: Option<Box<Rows>>,
        row: u64,
    },
}

/// What a file gave.
enum Found {
    Text(String, Place),
    Damaged(Place, String),
    End,
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

impl Documents {
    /// Opens a file, or a folder of files. More than the share `max_damaged` of damaged documents is an error in the end.
    ///
    /// # Errors
    /// Where the path cannot be read, or no file there is one of the known kinds.
    pub fn open(path: &Path, max_damaged: f64) -> Result<Self, DataError> {
        check_share(max_damaged)?;
        let (paths, skipped) = if path.is_dir() {
            let listing = folder::list(path, &|path| kind(path).is_some())?;
            let files = listing.files.iter().map(|file| path.join(file)).collect();
            (files, listing.skipped)
        } else {
            (vec![path.to_path_buf()], 0)
        };
        let mut files = Vec::new();
        for path in paths {
            let bytes = fs::metadata(&path).map_err(|e| DataError::io(&path, e))?.len();
            let Some((kind, packing)) = kind(&path) else {
                let found = "the name of the file says of no known format".into();
                let place = path.display().to_string();
                return Err(DataError::NoText { place, found });
            };
            files.push(FoundFile {
                path: path.into(),
                bytes,
                kind,
                packing,
            });
        }
        if files.is_empty() {
            return Err(DataError::NoText {
                place: path.display().to_string(),
                found: format!("{skipped} other files"),
            });
        }
        let mut documents = Self::empty(path, max_damaged);
        documents.total = files.iter().map(|file| file.bytes).sum();
        documents.files = files;
        documents.skipped = skipped;
        Ok(documents)
    }

    /// JSON lines from any reader, under a name for messages.
    ///
    /// # Errors
    /// Where the share is none.
    pub fn lines(name: &Path, reader: impl BufRead + Send + 'static, max_damaged: f64) -> Result<Self, DataError> {
        check_share(max_damaged)?;
        let mut documents = Self::empty(name, max_damaged);
        documents.current = Some(Current::Lines {
            file: name.into(),
            reader: Box::new(reader),
            line: 0,
        });
        Ok(documents)
    }

    fn empty(root: &Path, max_damaged: f64) -> Self {
        Self {
            root: root.to_path_buf(),
            files: Vec::new(),
            next: 0,
            current: None,
            counts: Counts::default(),
            max_damaged,
            done: Arc::new(AtomicU64::new(0)),
            total: 0,
            skipped: 0,
            has_ended: false,
        }
    }

    /// What was read so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Bytes read of the files so far, as they lie on the disk.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes of all files, as they lie on the disk.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Files of the folder that were passed over.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    fn advance(&mut self) -> Result<Option<Document>, DataError> {
        loop {
            let Some(current) = &mut self.current else {
                let Some(file) = self.files.get(self.next) else {
                    return self.finish();
                };
                self.current = Some(open(file, &self.done)?);
                self.next += 1;
                continue;
            };
            match current.next(&self.done)? {
                Found::End => self.current = None,
                Found::Damaged(place, reason) => {
                    self.counts.damaged += 1;
                    if self.counts.first_damaged.len() < NAMED {
                        self.counts.first_damaged.push(format!("{place} ({reason})"));
                    }
                }
                Found::Text(text, _) if text.trim().is_empty() => self.counts.empty += 1,
                Found::Text(text, place) => {
                    self.counts.documents += 1;
                    self.counts.bytes += text.len() as u64;
                    return Ok(Some(Document { text, place }));
                }
            }
        }
    }

    fn finish(&self) -> Result<Option<Document>, DataError> {
        let counts = &self.counts;
        let of = counts.documents + counts.empty + counts.damaged;
        if counts.damaged as f64 > self.max_damaged * of as f64 {
            return Err(DataError::TooManyDamagedDocuments {
                place: self.root.display().to_string(),
                damaged: counts.damaged,
                of,
                limit: self.max_damaged,
                first: counts.first_damaged.clone(),
            });
        }
        Ok(None)
    }
}

impl Iterator for Documents {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let found = self.advance();
        self.has_ended = !matches!(found, Ok(Some(_)));
        found.transpose()
    }
}

pub(super) fn check_share(max_damaged: f64) -> Result<(), DataError> {
    if (0.0..=1.0).contains(&max_damaged) {
        return Ok(());
    }
    Err(DataError::config(
        "max_damaged",
        format!("{max_damaged} is no share from 0 to 1"),
    ))
}

/// What a file holds, by its name.
fn kind(path: &Path) -> Option<(Kind, Packing)> {
    let (packing, inner) = if has_extension(path, &["gz"]) {
        (Packing::Gzip, path.file_stem().map(Path::new)?)
    } else if has_extension(path, &["zst"]) {
        (Packing::Zstd, path.file_stem().map(Path::new)?)
    } else {
        (Packing::None, path)
    };
    let kind = if has_extension(inner, &["txt", "text"]) {
        Kind::Plain
    } else if has_extension(inner, &["jsonl", "jsonlines", "ndjson"]) {
        Kind::Lines
    } else if has_extension(inner, &["parquet"]) && packing == Packing::None {
        Kind::Parquet
    } else {
        return None;
    };
    Some((kind, packing))
}

fn open(found: &FoundFile, done: &Arc<AtomicU64>) -> Result<Current, DataError> {
    let file = Arc::clone(&found.path);
    if found.kind == Kind::Parquet {
        return Ok(Current::Rows {
            part: Box::new(open_text(&file)?),
            file,
            bytes: found.bytes,
            group: 0,
            rows: None,
            row: 0,
        });
    }
    let raw = File::open(&file).map_err(|e| DataError::io(&file, e))?;
    let raw = BufReader::with_capacity(
        BUFFER,
        Counted {
            reader: raw,
            done: Arc::clone(done),
        },
    );
    let reader: Box<dyn BufRead + Send> = match found.packing {
        Packing::None => Box::new(raw),
        Packing::Gzip => Box::new(BufReader::with_capacity(
            BUFFER,
            flate2::bufread::MultiGzDecoder::new(raw),
        )),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(|e| DataError::io(&file, e))?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
    };
    Ok(match found.kind {
        Kind::Plain => Current::Plain(file, reader),
        _ => Current::Lines { file, reader, line: 0 },
    })
}

impl Current {
    fn next(&mut self, done: &AtomicU64) -> Result<Found, DataError> {
        match self {
            Self::Plain(file, reader) => {
                let mut bytes = Vec::new();
                reader
                    .take(MAX_DOCUMENT_BYTES as u64 + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|e| unreadable(file, e))?;
                if bytes.len() > MAX_DOCUMENT_BYTES {
                    return Err(too_large(&whole(file), "a document"));
                }
                let place = whole(file);
                *self = Self::Plain(Arc::clone(&place.file), Box::new(io::empty()));
                if bytes.is_empty() {
                    return Ok(Found::End);
                }
                Ok(decoded(strip_mark(bytes), place))
            }
            Self::Lines { file, reader, line } => {
                let mut bytes = Vec::new();
                loop {
                    *line += 1;
                    let place = Place {
                        file: Arc::clone(file),
                        at: At::Line(*line),
                    };
                    match read_line(reader, MAX_DOCUMENT_BYTES, &mut bytes).map_err(|e| unreadable(file, e))? {
                        Ended::File => return Ok(Found::End),
                        Ended::Limit => return Err(too_large(&place, "a line")),
                        Ended::Line => {}
                    }
                    if *line == 1 {
                        bytes = strip_mark(bytes);
                    }
                    if bytes.iter().all(u8::is_ascii_whitespace) {
                        continue;
                    }
                    return Ok(match serde_json::from_slice::<Line>(&bytes) {
                        Ok(found) if bytes.trim_ascii_start().first() == Some(&b'{') => Found::Text(found.text, place),
                        Ok(_) => Found::Damaged(place, "not an object with a string `text`".into()),
                        Err(error) => Found::Damaged(place, format!("not an object with a string `text`: {error}")),
                    });
                }
            }
            Self::Rows {
                file,
                part,
                bytes,
                group,
                rows,
                row,
            } => loop {
                let Some(reader) = rows else {
                    if *group == part.groups.len() {
                        return Ok(Found::End);
                    }
                    *rows = Some(Box::new(Rows::open(part, *group)?));
                    continue;
                };
                let place = Place {
                    file: Arc::clone(file),
                    at: At::Row(*row),
                };
                let Some(value) = reader.next(file)? else {
                    let (groups, before) = (part.groups.len() as u64, *group as u64);
                    let share = |group: u64| (u128::from(*bytes) * u128::from(group) / u128::from(groups)) as u64;
                    done.fetch_add(share(before + 1) - share(before), Ordering::Relaxed);
                    *rows = None;
                    *group += 1;
                    continue;
                };
                *row += 1;
                return match value {
                    None => Ok(Found::Damaged(place, "the row holds no text".into())),
                    Some(value) if value.len() > MAX_DOCUMENT_BYTES => Err(too_large(&place, "a document")),
                    Some(value) => Ok(decoded(value.data().to_vec(), place)),
                };
            },
        }
    }
}

fn whole(file: &Arc<Path>) -> Place {
    Place {
        file: Arc::clone(file),
        at: At::Whole,
    }
}

fn decoded(bytes: Vec<u8>, place: Place) -> Found {
    match String::from_utf8(bytes) {
        Ok(text) => Found::Text(text, place),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            Found::Damaged(place, format!("not UTF-8 text at byte {at}"))
        }
    }
}

fn strip_mark(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        bytes.drain(..3);
    }
    bytes
}

fn too_large(place: &Place, what: &str) -> DataError {
    DataError::TooLarge {
        place: place.to_string(),
        what: format!("{what} of more than {MAX_DOCUMENT_BYTES} bytes"),
        limit: format!("{} MiB", MAX_DOCUMENT_BYTES >> 20),
    }
}

/// A compressed file that ends early or is corrupt is damaged; anything else is the operating system's.
fn unreadable(file: &Path, error: io::Error) -> DataError {
    let is_content = error.raw_os_error().is_none()
        && matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::InvalidData
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::Other
        );
    if is_content {
        return DataError::damaged(file.display().to_string(), format!("truncated or corrupt: {error}"));
    }
    DataError::io(file, error)
}

/// How a line ended.
enum Ended {
    Line,
    File,
    Limit,
}

/// Reads one line without its newline; no more than `limit` bytes of it, and a buffer.
fn read_line(reader: &mut dyn BufRead, limit: usize, line: &mut Vec<u8>) -> io::Result<Ended> {
    line.clear();
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok(if line.is_empty() { Ended::File } else { Ended::Line });
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let taken = end.unwrap_or(buffer.len());
        if line.len() + taken > limit {
            return Ok(Ended::Limit);
        }
        line.extend_from_slice(&buffer[..taken]);
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(Ended::Line);
        }
    }
}

/// A file that counts what is read of it.
struct Counted {
    reader: File,
    done: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.done.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
