//! CIFAR-10 and CIFAR-100 in their binary version: records of label bytes and 3 x 32 x 32 planar pixels.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::random_access::RandomAccess;
use super::{Labels, Source, file_name, has_extension, out_of_range};
use crate::error::DataError;
use crate::image::Image;

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const PIXELS: usize = 3 * PLANE;

/// How a file's records look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One label byte.
    Ten,
    /// A coarse and a fine label byte.
    Hundred,
}

impl Layout {
    fn label_bytes(self) -> usize {
        match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        }
    }

    fn record(self) -> usize {
        self.label_bytes() + PIXELS
    }

    fn classes(self) -> usize {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    fn names_file(self) -> &'static str {
        match self {
            Self::Ten => "batches.meta.txt",
            Self::Hundred => "fine_label_names.txt",
        }
    }
}

/// One or several CIFAR files.
pub struct Cifar {
    parts: Vec<Part>,
    labels: Vec<u32>,
    classes: Vec<String>,
}

struct Part {
    file: RandomAccess,
    layout: Layout,
    count: usize,
}

/// The layout that a file's usual name stands for.
pub(crate) fn layout_by_name(path: &Path) -> Option<Layout> {
    let name = file_name(path);
    match name.as_str() {
        "test_batch.bin" => Some(Layout::Ten),
        "train.bin" | "test.bin" => Some(Layout::Hundred),
        _ if name.starts_with("data_batch_") && has_extension(path, &["bin"]) => Some(Layout::Ten),
        _ => None,
    }
}

impl Cifar {
    /// Opens files in the given order. Labels are those of CIFAR-10, or the fine ones of CIFAR-100; their names come
    /// from `batches.meta.txt` or `fine_label_names.txt` beside the first file, or are numbers.
    ///
    /// # Errors
    /// Where a file's length is no whole number of records, a label is beyond its classes, or both layouts are mixed.
    pub fn open(files: &[PathBuf], labels: Labels) -> Result<Self, DataError> {
        let parts = files
            .iter()
            .map(|path| open_part(path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut found = Self {
            parts,
            labels: Vec::new(),
            classes: Vec::new(),
        };
        let Some(first) = found.parts.first() else {
            return Err(DataError::Empty {
                place: String::new(),
                found: "no files".into(),
            });
        };
        let layout = first.layout;
        if let Some(other) = found.parts.iter().find(|part| part.layout != layout) {
            let place = other.file.path().display().to_string();
            return Err(DataError::damaged(
                place,
                "CIFAR-10 and CIFAR-100 files lie in one folder",
            ));
        }
        if labels == Labels::Use {
            for part in &found.parts {
                read_labels(part, &mut found.labels)?;
            }
            found.classes = class_names(first.file.path(), layout);
        }
        Ok(found)
    }

    fn locate(&self, index: usize) -> Result<(&Part, usize), DataError> {
        let mut rest = index;
        for part in &self.parts {
            if rest < part.count {
                return Ok((part, rest));
            }
            rest -= part.count;
        }
        Err(out_of_range(self.parts[0].file.path(), index, self.len()))
    }
}

fn open_part(path: &Path) -> Result<Part, DataError> {
    let file = RandomAccess::open(path)?;
    let place = path.display().to_string();
    if file.len() == 0 {
        return Err(DataError::damaged(place, "the file is empty (0 bytes)"));
    }
    let fits = |layout: Layout| file.len().is_multiple_of(layout.record() as u64);
    let layout = match layout_by_name(path) {
        Some(layout) => layout,
        // Without a usual name the length decides; where both layouts fit, it is CIFAR-10.
        None if fits(Layout::Hundred) && !fits(Layout::Ten) => Layout::Hundred,
        None => Layout::Ten,
    };
    let record = layout.record() as u64;
    if !fits(layout) {
        let (whole, rest) = (file.len() / record, file.len() % record);
        let reason = format!("truncated: record {whole} has {rest} of {record} bytes");
        return Err(DataError::damaged(place, reason));
    }
    let count = (file.len() / record) as usize;
    Ok(Part { file, layout, count })
}

fn read_labels(part: &Part, labels: &mut Vec<u32>) -> Result<(), DataError> {
    let path = part.file.path();
    let mut reader = BufReader::new(File::open(path).map_err(|e| DataError::io(path, e))?);
    let mut record = vec![0; part.layout.record()];
    for row in 0..part.count {
        reader.read_exact(&mut record).map_err(|e| DataError::io(path, e))?;
        let label = record[part.layout.label_bytes() - 1];
        if usize::from(label) >= part.layout.classes() {
            let reason = format!(
                "label {label} in record {row}, where {} classes are known",
                part.layout.classes()
            );
            return Err(DataError::damaged(path.display().to_string(), reason));
        }
        labels.push(u32::from(label));
    }
    Ok(())
}

/// The names in the file beside the data, if it names exactly the classes; else their numbers.
fn class_names(beside: &Path, layout: Layout) -> Vec<String> {
    let mut text = String::new();
    if let Ok(file) = File::open(beside.with_file_name(layout.names_file())) {
        // Names of any sensible length fit; a file that is longer or no text is no list of names.
        if file.take(1 << 16).read_to_string(&mut text).is_err() {
            text.clear();
        }
    }
    let names: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .map(str::to_string)
        .collect();
    if names.len() == layout.classes() {
        names
    } else {
        (0..layout.classes()).map(|c| c.to_string()).collect()
    }
}

impl Source for Cifar {
    fn kind(&self) -> &'static str {
        "cifar"
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.count).sum()
    }

    /// The 3,072 pixel bytes `[3, 32, 32]` without the label.
    fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let (part, row) = self.locate(index)?;
        let start = row as u64 * part.layout.record() as u64 + part.layout.label_bytes() as u64;
        part.file.read_at(start, PIXELS)
    }

    fn read(&self, index: usize) -> Result<Image, DataError> {
        let planar = self.bytes(index)?;
        let pixels = (0..PIXELS).map(|i| planar[i % 3 * PLANE + i / 3]).collect();
        Image::new(SIDE as u32, SIDE as u32, 3, pixels, &self.name(index))
    }

    fn name(&self, index: usize) -> String {
        self.locate(index).map_or_else(
            |_| String::new(),
            |(part, row)| format!("{}#{row}", file_name(part.file.path())),
        )
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }
}
