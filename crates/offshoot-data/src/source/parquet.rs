//! Parquet files with encoded images: a Hugging Face image column (`{bytes, path}`) or a plain binary column.

use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use parquet::basic::{LogicalType, Type as Physical};
use parquet::column::reader::{ColumnReader, get_column_reader};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader, SerializedPageReader};

use super::{Labels, MAX_EXAMPLES, Source, class_number, file_name, numbered_classes, out_of_range};
use crate::error::DataError;
use crate::image::{Image, MAX_ENCODED_BYTES};

/// Names under which an image column is looked for first, where the file does not say which it is.
const IMAGE_NAMES: &[&str] = &[
    "image",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_bytes",
    "bytes",
    "content",
];
/// Names under which a label column is looked for, in this order.
const LABEL_NAMES: &[&str] = &["label", "labels", "fine_label", "class", "class_id", "target", "cls"];

/// Neighbouring rows are decoded together until they hold this much: about one page.
const WINDOW_BYTES: u64 = 1 << 20;
/// Decoded windows are kept up to this much in all.
const CACHE_BYTES: usize = 64 << 20;
/// The most bytes that one window may keep, whatever the file's own counts say.
const WINDOW_KEEP: usize = 4 << 20;

/// One or several parquet files, rows in order. Pages are decoded where they are needed.
pub struct Parquet {
    files: Vec<Part>,
    len: usize,
    labels: Vec<u32>,
    classes: Vec<String>,
    cache: Mutex<VecDeque<(Key, Arc<Window>)>>,
}

/// A file, and the one column of it that is read.
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    metadata: Arc<ParquetMetaData>,
    column: usize,
    pub(crate) groups: Vec<Group>,
    rows: usize,
}

pub(crate) struct Group {
    pub(crate) rows: usize,
    /// Rows a window.
    window: usize,
}

/// File, row group and window.
type Key = (usize, usize, usize);

/// Some neighbouring rows of a row group.
struct Window {
    rows: Vec<Row>,
    bytes: usize,
}

enum Row {
    Bytes(Vec<u8>),
    Null,
    TooLarge(usize),
    /// Left out to keep the window small; read alone where it is asked for.
    NotKept,
}

impl Parquet {
    /// Opens files in the given order. The image column is the one that Hugging Face's metadata names, or one with the
    /// usual names, or the only binary one; with [`Labels::Use`] the label column is found the same way.
    ///
    /// # Errors
    /// Where a file is no whole parquet file, has no image column, counts more than it can hold, or labels are asked
    /// for and a row has none.
    pub fn open(files: &[PathBuf], labels: Labels) -> Result<Self, DataError> {
        let mut found = Self {
            files: Vec::new(),
            len: 0,
            labels: Vec::new(),
            classes: Vec::new(),
            cache: Mutex::new(VecDeque::new()),
        };
        let mut names = None;
        for path in files {
            let (part, features) = guarded(path, || {
                open_part(path, |metadata, features| {
                    image_column(metadata, features)
                        .ok_or("no column holds images (a binary column, or a struct with `bytes`)")
                })
            })?;
            if labels == Labels::Use {
                let (column, own_names) = label_column(&part, &features)?;
                found.labels.extend(guarded(path, || read_labels(&part, column))?);
                names = names.or(own_names);
            }
            found.len += part.rows;
            found.files.push(part);
        }
        if found.len == 0 {
            let place = files.first().map_or_else(String::new, |p| p.display().to_string());
            return Err(DataError::Empty {
                place,
                found: "0 rows".into(),
            });
        }
        found.classes = numbered_classes(&found.labels);
        if let Some(names) = names {
            if names.len() < found.classes.len() {
                let reason = format!(
                    "label {} is beyond the {} class names",
                    found.classes.len() - 1,
                    names.len()
                );
                return Err(DataError::LabelsMissing {
                    place: files[0].display().to_string(),
                    reason,
                });
            }
            found.classes = names;
        }
        Ok(found)
    }

    /// File, row group and row within it.
    fn locate(&self, index: usize) -> Result<(usize, usize, usize), DataError> {
        let mut rest = index;
        for (number, part) in self.files.iter().enumerate() {
            if rest >= part.rows {
                rest -= part.rows;
                continue;
            }
            for (group_number, group) in part.groups.iter().enumerate() {
                if rest < group.rows {
                    return Ok((number, group_number, rest));
                }
                rest -= group.rows;
            }
        }
        Err(out_of_range(&self.files[0].path, index, self.len))
    }

    /// File and row within it.
    fn row(&self, index: usize) -> Option<(&Part, usize)> {
        let mut rest = index;
        for part in &self.files {
            if rest < part.rows {
                return Some((part, rest));
            }
            rest -= part.rows;
        }
        None
    }

    fn place(&self, index: usize) -> String {
        self.row(index)
            .map_or_else(String::new, |(part, row)| format!("{}#{row}", part.path.display()))
    }

    fn window(&self, key: Key) -> Result<Arc<Window>, DataError> {
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, window)) = lock().iter().find(|(own, _)| *own == key) {
            return Ok(Arc::clone(window));
        }
        let (part, group) = (&self.files[key.0], &self.files[key.0].groups[key.1]);
        let first = key.2 * group.window;
        let count = group.window.min(group.rows - first);
        let window = Arc::new(guarded(&part.path, || {
            read_rows(part, key.1, first, count, WINDOW_KEEP)
        })?);
        let mut cache = lock();
        cache.push_back((key, Arc::clone(&window)));
        while cache.len() > 1 && cache.iter().map(|(_, w)| w.bytes).sum::<usize>() > CACHE_BYTES {
            cache.pop_front();
        }
        Ok(window)
    }
}

impl Source for Parquet {
    fn kind(&self) -> &'static str {
        "parquet"
    }

    fn len(&self) -> usize {
        self.len
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let (file, group, row) = self.locate(index)?;
        let size = self.files[file].groups[group].window;
        let window = self.window((file, group, row / size))?;
        let alone;
        let found = match window.rows.get(row % size) {
            Some(Row::NotKept) => {
                let part = &self.files[file];
                alone = guarded(&part.path, || read_rows(part, group, row, 1, usize::MAX))?;
                alone.rows.first()
            }
            other => other,
        };
        match found {
            Some(Row::Bytes(bytes)) => Ok(bytes.clone()),
            Some(Row::TooLarge(bytes)) => Err(DataError::TooLarge {
                place: self.place(index),
                what: format!("a value of {bytes} bytes"),
                limit: format!("{} MiB", MAX_ENCODED_BYTES >> 20),
            }),
            Some(Row::Null) => Err(DataError::damaged(self.place(index), "the row holds no image bytes")),
            _ => Err(DataError::damaged(
                self.place(index),
                "the row group ends before this row",
            )),
        }
    }

    fn read(&self, index: usize) -> Result<Image, DataError> {
        Image::decode(&self.bytes(index)?, &self.place(index))
    }

    fn name(&self, index: usize) -> String {
        self.row(index)
            .map_or_else(String::new, |(part, row)| format!("{}#{row}", file_name(&part.path)))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }
}

/// Runs code of the parquet reader, whose errors, and panics over corrupt files, become errors that name the file.
pub(crate) fn guarded<T>(path: &Path, run: impl FnOnce() -> Result<T, Failure>) -> Result<T, DataError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failure::Own(error))) => Err(*error),
        Ok(Err(Failure::Parquet(error))) => Err(DataError::damaged(
            path.display().to_string(),
            format!("broken parquet: {error}"),
        )),
        Err(_) => Err(DataError::damaged(
            path.display().to_string(),
            "broken parquet: its counts contradict each other",
        )),
    }
}

/// Why a parquet file could not be read.
pub(crate) enum Failure {
    Own(Box<DataError>),
    Parquet(ParquetError),
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::Own(Box::new(error))
    }
}

impl From<ParquetError> for Failure {
    fn from(error: ParquetError) -> Self {
        Self::Parquet(error)
    }
}

/// What Hugging Face's metadata says of the columns: the image column, and the label columns with their class names.
#[derive(Default)]
struct Features {
    image: Option<String>,
    labels: Vec<(String, Vec<String>)>,
}

fn open_part(
    path: &Path,
    choose: impl Fn(&ParquetMetaData, &Features) -> Result<usize, &'static str>,
) -> Result<(Part, Features), Failure> {
    let place = path.display().to_string();
    let damaged = |reason: String| DataError::damaged(&place, reason);
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let len = file.metadata().map_err(|e| DataError::io(path, e))?.len();
    if len == 0 {
        return Err(damaged("the file is empty (0 bytes)".into()).into());
    }
    let metadata = Arc::new(SerializedFileReader::new(file)?.metadata().clone());
    let features = features(&metadata);
    let wanted = choose(&metadata, &features).map_err(|reason| damaged(reason.into()))?;
    let mut groups = Vec::new();
    let mut rows = 0u64;
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let column = group
            .columns()
            .get(wanted)
            .ok_or_else(|| damaged(format!("row group {number} lacks columns")))?;
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let sizes = [
            group.num_rows(),
            start,
            column.compressed_size(),
            column.uncompressed_size(),
        ]
        .map(u64::try_from);
        let [Ok(count), Ok(start), Ok(compressed), Ok(uncompressed)] = sizes else {
            return Err(damaged(format!("row group {number} has negative sizes")).into());
        };
        if start.checked_add(compressed).is_none_or(|end| end > len) {
            let reason = format!("truncated: row group {number} has {compressed} bytes at offset {start} of {len}");
            return Err(damaged(reason).into());
        }
        rows = rows.saturating_add(count);
        let average = (uncompressed / count.max(1)).max(1);
        let window = (WINDOW_BYTES / average).clamp(1, 4096) as usize;
        groups.push(Group {
            rows: usize::try_from(count).unwrap_or(usize::MAX),
            window,
        });
    }
    // Even a row that repeats another costs a few bits.
    if rows > MAX_EXAMPLES || rows > len.saturating_mul(16) {
        return Err(damaged(format!("its {rows} rows are more than {len} bytes can hold")).into());
    }
    Ok((
        Part {
            path: path.to_path_buf(),
            metadata,
            column: wanted,
            groups,
            rows: rows as usize,
        },
        features,
    ))
}

/// Opens a file for its column `text`: strings or plain bytes, one a row.
pub(crate) fn open_text(path: &Path) -> Result<Part, DataError> {
    guarded(path, || open_part(path, |metadata, _| text_column(metadata))).map(|(part, _)| part)
}

fn text_column(metadata: &ParquetMetaData) -> Result<usize, &'static str> {
    let schema = metadata.file_metadata().schema_descr();
    let is_text = |&number: &usize| {
        let column = schema.column(number);
        let parts = schema.columns()[number].path().parts();
        column.physical_type() == Physical::BYTE_ARRAY && column.max_rep_level() == 0 && parts == ["text"]
    };
    (0..schema.num_columns())
        .find(is_text)
        .ok_or("no column of strings is called `text`")
}

fn features(metadata: &ParquetMetaData) -> Features {
    let mut features = Features::default();
    let pairs = metadata
        .file_metadata()
        .key_value_metadata()
        .map_or(&[][..], Vec::as_slice);
    let text = pairs
        .iter()
        .find(|pair| pair.key == "huggingface")
        .and_then(|pair| pair.value.as_deref());
    let Some(value) = text.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok()) else {
        return features;
    };
    let Some(columns) = value.pointer("/info/features").and_then(|columns| columns.as_object()) else {
        return features;
    };
    for (name, feature) in columns {
        match feature.get("_type").and_then(|kind| kind.as_str()) {
            Some("Image") if features.image.is_none() => features.image = Some(name.clone()),
            Some("ClassLabel") => {
                let names = feature.get("names").and_then(|names| names.as_array());
                let names = names.map_or_else(Vec::new, |names| {
                    names
                        .iter()
                        .map(|n| n.as_str().map_or_else(|| n.to_string(), str::to_string))
                        .collect()
                });
                features.labels.push((name.clone(), names));
            }
            _ => {}
        }
    }
    features
}

/// The leaf column that holds encoded images.
fn image_column(metadata: &ParquetMetaData, features: &Features) -> Option<usize> {
    let schema = metadata.file_metadata().schema_descr();
    let candidates: Vec<(usize, &str)> = (0..schema.num_columns())
        .filter_map(|number| {
            let column = schema.column(number);
            let parts = schema.columns()[number].path().parts();
            let is_text = matches!(column.logical_type_ref(), Some(LogicalType::String | LogicalType::Json))
                || column.converted_type() == parquet::basic::ConvertedType::UTF8;
            let fits = column.physical_type() == Physical::BYTE_ARRAY && column.max_rep_level() == 0 && !is_text;
            let is_image = parts.len() == 1 || (parts.len() == 2 && parts[1] == "bytes");
            (fits && is_image).then_some((number, parts[0].as_str()))
        })
        .collect();
    let wanted = features.image.as_deref().into_iter().chain(IMAGE_NAMES.iter().copied());
    for name in wanted {
        if let Some((number, _)) = candidates.iter().find(|(_, own)| *own == name) {
            return Some(*number);
        }
    }
    match candidates[..] {
        [(number, _)] => Some(number),
        _ => None,
    }
}

/// The leaf column that holds class numbers, and its class names where the file has them.
fn label_column(part: &Part, features: &Features) -> Result<(usize, Option<Vec<String>>), DataError> {
    let schema = part.metadata.file_metadata().schema_descr();
    let find = |name: &str| {
        (0..schema.num_columns()).find(|&number| {
            let column = schema.column(number);
            let parts = schema.columns()[number].path().parts();
            let is_number = matches!(column.physical_type(), Physical::INT32 | Physical::INT64);
            is_number && column.max_rep_level() == 0 && parts.len() == 1 && parts[0] == name
        })
    };
    let named = LABEL_NAMES
        .iter()
        .copied()
        .chain(features.labels.iter().map(|(name, _)| name.as_str()));
    for name in named {
        if let Some(column) = find(name) {
            let names = features
                .labels
                .iter()
                .find(|(own, names)| own == name && !names.is_empty());
            return Ok((column, names.map(|(_, names)| names.clone())));
        }
    }
    let reason = format!("no integer column is called {}", LABEL_NAMES.join(", "));
    Err(DataError::LabelsMissing {
        place: part.path.display().to_string(),
        reason,
    })
}

/// The rows of one row group, one after the other.
pub(crate) struct Rows {
    reader: parquet::column::reader::ColumnReaderImpl<parquet::data_type::ByteArrayType>,
    max_level: i16,
    values: Vec<parquet::data_type::ByteArray>,
    levels: Vec<i16>,
}

impl Rows {
    /// The rows of row group `group`.
    pub(crate) fn open(part: &Part, group: usize) -> Result<Self, DataError> {
        guarded(&part.path, || {
            let chunk = part.metadata.row_group(group).column(part.column);
            let max_level = chunk.column_descr().max_def_level();
            let ColumnReader::ByteArrayColumnReader(reader) = column_reader(part, group, part.column)? else {
                let place = part.path.display().to_string();
                return Err(DataError::damaged(place, "the column `text` changed its type").into());
            };
            Ok(Self {
                reader,
                max_level,
                values: Vec::new(),
                levels: Vec::new(),
            })
        })
    }

    /// The next row: no row at the end, no bytes where it is null. After an error there is nothing more to read.
    pub(crate) fn next(&mut self, path: &Path) -> Result<Option<Option<parquet::data_type::ByteArray>>, DataError> {
        guarded(path, || {
            self.values.clear();
            self.levels.clear();
            let (rows, ..) = self
                .reader
                .read_records(1, Some(&mut self.levels), None, &mut self.values)?;
            if rows == 0 {
                return Ok(None);
            }
            let is_null = self.levels.first().is_some_and(|&level| level != self.max_level);
            Ok(Some(if is_null { None } else { self.values.pop() }))
        })
    }
}

/// A reader of one column of one row group with a file handle of its own, so that threads do not share an offset.
fn column_reader(part: &Part, group: usize, column: usize) -> Result<ColumnReader, Failure> {
    let file = File::open(&part.path).map_err(|e| DataError::io(&part.path, e))?;
    let chunk = part.metadata.row_group(group).column(column);
    let pages = SerializedPageReader::new(Arc::new(file), chunk, part.groups[group].rows, None)?;
    Ok(get_column_reader(chunk.column_descr_ptr(), Box::new(pages)))
}

fn read_labels(part: &Part, column: usize) -> Result<Vec<u32>, Failure> {
    let mut labels = Vec::new();
    for (number, group) in part.groups.iter().enumerate() {
        let chunk = part.metadata.row_groups()[number].columns().get(column);
        let max_level = chunk.map_or(0, |chunk| chunk.column_descr().max_def_level());
        let mut values: Vec<i64> = Vec::new();
        let mut levels = Vec::new();
        match column_reader(part, number, column)? {
            ColumnReader::Int32ColumnReader(mut reader) => {
                let mut narrow = Vec::new();
                reader.read_records(group.rows, Some(&mut levels), None, &mut narrow)?;
                values.extend(narrow.into_iter().map(i64::from));
            }
            ColumnReader::Int64ColumnReader(mut reader) => {
                reader.read_records(group.rows, Some(&mut levels), None, &mut values)?;
            }
            _ => {}
        }
        if values.len() != group.rows || levels.iter().any(|&level| level != max_level) {
            let reason = format!("row group {number} has {} labels for {} rows", values.len(), group.rows);
            return Err(DataError::LabelsMissing {
                place: part.path.display().to_string(),
                reason,
            }
            .into());
        }
        for value in values {
            let row = labels.len();
            labels.push(class_number(value, || format!("{}#{row}", part.path.display()))?);
        }
    }
    Ok(labels)
}

/// Rows `first..first + count` of a row group. Beyond `keep` bytes in all, further rows are left out.
fn read_rows(part: &Part, group: usize, first: usize, count: usize, keep: usize) -> Result<Window, Failure> {
    let max_level = part
        .metadata
        .row_group(group)
        .column(part.column)
        .column_descr()
        .max_def_level();
    let ColumnReader::ByteArrayColumnReader(mut reader) = column_reader(part, group, part.column)? else {
        return Err(DataError::damaged(part.path.display().to_string(), "the image column changed its type").into());
    };
    if reader.skip_records(first)? != first {
        return Ok(Window {
            rows: Vec::new(),
            bytes: 0,
        });
    }
    let mut window = Window {
        rows: Vec::new(),
        bytes: 0,
    };
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    for _ in 0..count {
        values.clear();
        levels.clear();
        if reader.read_records(1, Some(&mut levels), None, &mut values)?.0 == 0 {
            break;
        }
        let is_null = levels.first().is_some_and(|&level| level != max_level);
        window.rows.push(match values.first() {
            _ if is_null => Row::Null,
            None => Row::Null,
            Some(value) if value.len() as u64 > MAX_ENCODED_BYTES => Row::TooLarge(value.len()),
            Some(value) if !window.rows.is_empty() && window.bytes + value.len() > keep => Row::NotKept,
            Some(value) => {
                window.bytes += value.len();
                Row::Bytes(value.data().to_vec())
            }
        });
    }
    Ok(window)
}
