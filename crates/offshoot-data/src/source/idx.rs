//! IDX files (the MNIST format), plain or gzipped: unsigned bytes of rank 3 (grey) or rank 4 (colour, channels last).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::random_access::RandomAccess;
use super::{Labels, MAX_EXAMPLES, Source, class_number, file_name, numbered_classes, out_of_range};
use crate::error::DataError;
use crate::image::{Image, MAX_DECODED_BYTES, MAX_SIDE};

/// The most that one gzipped IDX file may hold inflated, in bytes (4 GiB), since it is inflated into memory.
pub const MAX_INFLATED_BYTES: u64 = 4 << 30;

/// Deflate cannot shrink more than this: a promise beyond it is false, and is refused before any inflation.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// One or several IDX image files with, where asked for, their label files.
pub struct Idx {
    parts: Vec<Part>,
    labels: Vec<u32>,
    classes: Vec<String>,
}

struct Part {
    path: PathBuf,
    count: usize,
    width: u32,
    height: u32,
    channels: u8,
    body: Body,
}

enum Body {
    /// A plain file, read where needed; pixels start at the offset.
    File(RandomAccess, u64),
    /// An inflated file, without its header.
    Memory(Vec<u8>),
}

/// Whether a file is named as IDX images are: `train-images-idx3-ubyte`, `t10k-images.idx3-ubyte.gz`, ...
pub(crate) fn is_images_name(path: &Path) -> bool {
    let name = file_name(path);
    name.contains("images") && (name.contains("idx3-ubyte") || name.contains("idx4-ubyte"))
}

impl Idx {
    /// Opens image files in the given order. With [`Labels::Use`] each must have its label file beside it, of the same
    /// name but for `images` -> `labels` and `idx3`/`idx4` -> `idx1`, plain or gzipped.
    ///
    /// # Errors
    /// Where a header does not fit its file, a gzip stream holds more or less than its header promises, sizes are
    /// beyond the limits, or labels are asked for and missing or not as many as the images.
    pub fn open(images: &[PathBuf], labels: Labels) -> Result<Self, DataError> {
        let parts = images
            .iter()
            .map(|path| open_images(path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut found = Self {
            parts,
            labels: Vec::new(),
            classes: Vec::new(),
        };
        if found.len() == 0 {
            let place = images.first().map_or_else(String::new, |p| p.display().to_string());
            return Err(DataError::Empty {
                place,
                found: "an IDX header that counts 0 images".into(),
            });
        }
        if labels == Labels::Use {
            for part in &found.parts {
                found.labels.extend(open_labels(part)?);
            }
            found.classes = numbered_classes(&found.labels);
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
        Err(out_of_range(&self.parts[0].path, index, self.len()))
    }
}

impl Source for Idx {
    fn kind(&self) -> &'static str {
        "idx"
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.count).sum()
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let (part, row) = self.locate(index)?;
        let size = part.width as usize * part.height as usize * usize::from(part.channels);
        match &part.body {
            Body::File(file, start) => file.read_at(start + row as u64 * size as u64, size),
            Body::Memory(pixels) => Ok(pixels[row * size..(row + 1) * size].to_vec()),
        }
    }

    fn read(&self, index: usize) -> Result<Image, DataError> {
        let (part, _) = self.locate(index)?;
        Image::new(
            part.width,
            part.height,
            part.channels,
            self.bytes(index)?,
            &self.name(index),
        )
    }

    fn name(&self, index: usize) -> String {
        self.locate(index).map_or_else(
            |_| String::new(),
            |(part, row)| format!("{}#{row}", file_name(&part.path)),
        )
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }
}

/// What an IDX header says: the size of each dimension, and how many bytes header and content take.
struct Header {
    dims: Vec<u64>,
    header_bytes: u64,
    content_bytes: u64,
}

fn read_header(reader: &mut impl Read, place: &str) -> Result<Header, DataError> {
    let damaged = |reason: String| DataError::damaged(place, reason);
    let mut magic = [0; 4];
    reader
        .read_exact(&mut magic)
        .map_err(|e| damaged(format!("truncated or corrupt within the IDX header: {e}")))?;
    let [0, 0, kind, rank] = magic else {
        return Err(damaged(format!(
            "not an IDX file: it starts with {magic:02x?} instead of 00 00"
        )));
    };
    if kind != 0x08 {
        return Err(damaged(format!(
            "IDX element type 0x{kind:02x}; only unsigned bytes (0x08) are images or labels"
        )));
    }
    if !(1..=4).contains(&rank) {
        return Err(damaged(format!("IDX rank {rank}; images have 3 or 4, labels 1")));
    }
    let mut dims = Vec::with_capacity(4);
    let mut content_bytes = 1u64;
    for place in 0..rank {
        let mut size = [0; 4];
        reader.read_exact(&mut size).map_err(|e| {
            damaged(format!(
                "truncated or corrupt within the IDX header, dimension {place}: {e}"
            ))
        })?;
        dims.push(u64::from(u32::from_be_bytes(size)));
        content_bytes = content_bytes
            .checked_mul(u64::from(u32::from_be_bytes(size)))
            .ok_or_else(|| damaged(format!("the IDX header's sizes overflow: {dims:?} ...")))?;
    }
    Ok(Header {
        dims,
        header_bytes: 4 + 4 * u64::from(rank),
        content_bytes,
    })
}

fn is_gzip(path: &Path) -> Result<bool, DataError> {
    let mut head = [0; 2];
    let mut file = File::open(path).map_err(|e| DataError::io(path, e))?;
    Ok(file.read_exact(&mut head).is_ok() && head == [0x1F, 0x8B])
}

/// Reads a header and gives the body, checked to be exactly as long as the header says.
fn open_body(path: &Path) -> Result<(Header, Body), DataError> {
    let place = path.display().to_string();
    let file = RandomAccess::open(path)?;
    if file.len() == 0 {
        return Err(DataError::damaged(place, "the file is empty (0 bytes)"));
    }
    if is_gzip(path)? {
        return inflate(path, &place, file.len());
    }
    let head = file.read_at(0, file.len().min(20) as usize)?;
    let header = read_header(&mut &head[..], &place)?;
    let (promised, present) = (header.content_bytes, file.len() - header.header_bytes);
    if promised != present {
        let what = if present < promised { "truncated" } else { "too long" };
        let reason = format!(
            "{what}: the IDX header promises {promised} bytes ({:?}), {present} follow",
            header.dims
        );
        return Err(DataError::damaged(place, reason));
    }
    let start = header.header_bytes;
    Ok((header, Body::File(file, start)))
}

fn inflate(path: &Path, place: &str, compressed: u64) -> Result<(Header, Body), DataError> {
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let mut stream = MultiGzDecoder::new(BufReader::new(file));
    let header = read_header(&mut stream, place)?;
    let promised = header.content_bytes;
    if promised > compressed.saturating_mul(MAX_DEFLATE_RATIO) {
        let reason = format!(
            "the IDX header promises {promised} bytes ({:?}), more than {compressed} bytes of gzip can hold",
            header.dims
        );
        return Err(DataError::damaged(place, reason));
    }
    if promised > MAX_INFLATED_BYTES {
        let what = format!("{promised} bytes inflated");
        let limit = format!("{} GiB; unpack it with gunzip", MAX_INFLATED_BYTES >> 30);
        return Err(DataError::TooLarge {
            place: place.into(),
            what,
            limit,
        });
    }
    let mut content = Vec::new();
    // One byte more than promised shows a stream that goes on, and makes the checksum be read where it does not.
    let result = stream.take(promised + 1).read_to_end(&mut content);
    let present = content.len() as u64;
    if let Err(error) = result {
        let reason = format!("truncated or corrupt gzip after {present} of {promised} bytes: {error}");
        return Err(DataError::damaged(place, reason));
    }
    if present != promised {
        let more = if present > promised {
            "goes on after"
        } else {
            "ends before"
        };
        let reason = format!("the gzip stream {more} the {promised} bytes that its IDX header promises");
        return Err(DataError::damaged(place, reason));
    }
    content.shrink_to_fit();
    Ok((header, Body::Memory(content)))
}

fn open_images(path: &Path) -> Result<Part, DataError> {
    let place = path.display().to_string();
    let (header, body) = open_body(path)?;
    let (count, height, width, channels) = match header.dims[..] {
        [count, height, width] => (count, height, width, 1),
        [count, height, width, channels @ (1 | 3)] => (count, height, width, channels as u8),
        _ => {
            let reason = format!(
                "IDX sizes {:?} are no images: [count, height, width] or [count, height, width, 3] are",
                header.dims
            );
            return Err(DataError::damaged(place, reason));
        }
    };
    let side = u64::from(MAX_SIDE);
    if width > side || height > side || width * height * u64::from(channels) > MAX_DECODED_BYTES {
        let what = format!("images of {width} x {height} pixels");
        let limit = format!("{MAX_SIDE} pixels a side and {} MiB", MAX_DECODED_BYTES >> 20);
        return Err(DataError::TooLarge { place, what, limit });
    }
    // With sides of zero any count would fit an empty file.
    if width == 0 || height == 0 || count > MAX_EXAMPLES {
        return Err(DataError::damaged(
            place,
            format!("IDX sizes {:?} are no images", header.dims),
        ));
    }
    let (width, height) = (width as u32, height as u32);
    Ok(Part {
        path: path.to_path_buf(),
        count: count as usize,
        width,
        height,
        channels,
        body,
    })
}

fn open_labels(images: &Part) -> Result<Vec<u32>, DataError> {
    let missing = |reason: String| DataError::LabelsMissing {
        place: images.path.display().to_string(),
        reason,
    };
    let name = file_name(&images.path);
    let plain = name
        .replace("images", "labels")
        .replace("idx3", "idx1")
        .replace("idx4", "idx1");
    let stem = plain.strip_suffix(".gz").unwrap_or(&plain).to_string();
    let path = [stem.clone(), format!("{stem}.gz")]
        .into_iter()
        .map(|candidate| images.path.with_file_name(candidate))
        .find(|path| *path != images.path && path.is_file())
        .ok_or_else(|| missing(format!("there is no {stem}[.gz] beside it")))?;
    let (header, body) = open_body(&path)?;
    if header.dims[..] != [images.count as u64] {
        let found = &header.dims;
        return Err(missing(format!(
            "{} holds {found:?} labels for {} images",
            path.display(),
            images.count
        )));
    }
    let bytes = match body {
        Body::Memory(bytes) => bytes,
        Body::File(file, start) => file.read_at(start, images.count)?,
    };
    bytes
        .iter()
        .map(|&label| class_number(i64::from(label), || path.display().to_string()))
        .collect()
}
