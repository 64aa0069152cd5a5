//! GGUF files one tensor at a time: the header is checked against the file's length before anything is allocated, and memory
//! stays near one tensor.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::error::GgufError;
use super::kind::TensorType;
use super::quant;
use super::value::{ARRAY, Array, BOOL, Metadata, Strings, TEXT, Value, numbers};

/// The first four bytes of every file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub(crate) const VERSION: u32 = 3;
/// The metadata that says where tensors may start.
pub(crate) const ALIGNMENT: &str = "general.alignment";
/// Where tensors may start unless the metadata says something else: at multiples of this many bytes.
pub(crate) const DEFAULT_ALIGNMENT: u32 = 32;
/// Longest name of a tensor in bytes; ggml keeps a zero behind it in 64.
pub(crate) const MAX_NAME: usize = 63;
/// Longest name of a value in bytes, as the format says.
pub(crate) const MAX_KEY: u64 = 65_535;
/// Most dimensions of a tensor, as the format says.
pub(crate) const MAX_DIMENSIONS: u32 = 4;

/// Largest header that is read, in bytes: a vocabulary of a million tokens, its merges and its `tokenizer.json` have room.
const MAX_HEADER: u64 = 1 << 28;
/// Most values, tensors and nested arrays of a file: they take more memory than in the file.
const MAX_VALUES: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 20;
const MAX_NESTED: usize = 1 << 16;
/// Arrays in arrays in arrays.
const MAX_DEPTH: usize = 8;
/// Bytes of a tensor that are decoded at a time; a multiple of every block's.
const PIECE: u64 = 1 << 20;

/// What a file says about one tensor.
#[derive(Clone, Debug)]
struct Info {
    name: String,
    /// Outermost dimension first, as everywhere in this program.
    shape: Vec<usize>,
    kind: TensorType,
    /// From the start of the tensors.
    start: u64,
    bytes: u64,
}

/// An open GGUF file: its header in memory, its tensors on disk.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: Mutex<File>,
    version: u32,
    data_start: u64,
    metadata: Metadata,
    tensors: Vec<Info>,
    places: HashMap<String, usize>,
}

/// The format has the innermost dimension first, this program the outermost. The elements lie in the same order in both.
pub(crate) fn reversed<T: Copy>(dimensions: &[T]) -> Vec<T> {
    dimensions.iter().rev().copied().collect()
}

impl GgufFile {
    /// Opens `path` and checks its header against the file's length: versions 2 and 3 in little-endian order, no name twice, all
    /// tensors of known types, aligned, inside the file and apart from each other.
    ///
    /// # Errors
    /// Says what is wrong with the file.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut header = Header {
            reader: BufReader::new(&file),
            path,
            left: length.min(MAX_HEADER),
            read: 0,
            length,
            nested: 0,
        };
        let (version, metadata, tensors) = header.header()?;
        let alignment = alignment(&metadata).map_err(|reason| GgufError::Invalid {
            path: path.to_owned(),
            reason,
        })?;
        let data_start = header.read.next_multiple_of(alignment.into());
        check_places(&tensors, alignment.into(), data_start, length).map_err(|reason| GgufError::Invalid {
            path: path.to_owned(),
            reason,
        })?;
        let places = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            version,
            data_start,
            metadata,
            tensors,
            places,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format that it is in.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What it says about the model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What it says about the model, which it then forgets: a tokenizer is large, and the tensors do not need it.
    pub(crate) fn take_metadata(&mut self) -> Metadata {
        std::mem::take(&mut self.metadata)
    }

    /// Names of the tensors, in the order of the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// Shape of the tensor `name`, outermost dimension first, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.info(name).map(|t| &t.shape[..])
    }

    /// Type of the tensor `name`, if it is there.
    pub fn kind(&self, name: &str) -> Option<TensorType> {
        self.info(name).map(|t| t.kind)
    }

    fn info(&self, name: &str) -> Option<&Info> {
        self.places.get(name).map(|&place| &self.tensors[place])
    }

    /// Makes sure that the tensor `name` is there and of a type that [`read`](Self::read) takes.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, name: &str) -> Result<(), GgufError> {
        self.readable(name).map(|_| ())
    }

    fn readable(&self, name: &str) -> Result<&Info, GgufError> {
        let (path, place) = (self.path.clone(), name.to_owned());
        match self.info(name) {
            Some(info) if TensorType::READ.contains(&info.kind) => Ok(info),
            Some(info) => Err(GgufError::Kind {
                path,
                name: place,
                kind: info.kind,
            }),
            None => Err(GgufError::Missing { path, name: place }),
        }
    }

    /// The elements of the tensor `name` as f32, row-major; what is stored in fewer bits is converted.
    ///
    /// # Errors
    /// If it is not there, of a type that is not read, or cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let info = self.readable(name)?;
        let (_, block) = info.kind.block();
        let mut values = Vec::with_capacity(info.shape.iter().product());
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut read = || {
            file.seek(SeekFrom::Start(self.data_start + info.start))?;
            let piece = PIECE / block * block;
            let mut bytes = vec![0; info.bytes.min(piece) as usize];
            let mut left = info.bytes;
            while left > 0 {
                let now = &mut bytes[..left.min(piece) as usize];
                file.read_exact(now)?;
                quant::decode(info.kind, now, &mut values);
                left -= now.len() as u64;
            }
            Ok(())
        };
        read().map_err(|source| GgufError::Io {
            path: self.path.clone(),
            source,
        })?;
        Ok(values)
    }
}

/// Where tensors may start: at multiples of this many bytes.
pub(crate) fn alignment(metadata: &Metadata) -> Result<u32, String> {
    match metadata.get(ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(bytes)) if bytes.is_power_of_two() => Ok(bytes),
        Some(&Value::U32(bytes)) => Err(format!("`{ALIGNMENT}` is {bytes}, which is no power of two")),
        Some(_) => Err(format!("`{ALIGNMENT}` is not of type u32")),
    }
}

/// Makes sure that the tensors are aligned, inside the file, and apart from each other.
fn check_places(tensors: &[Info], alignment: u64, data_start: u64, length: u64) -> Result<(), String> {
    let data = length.saturating_sub(data_start);
    for tensor in tensors {
        let Info { name, start, bytes, .. } = tensor;
        if start % alignment != 0 {
            return Err(format!(
                "tensor `{name}` starts at byte {start}, no multiple of {alignment}"
            ));
        }
        if start.checked_add(*bytes).is_none_or(|end| end > data) {
            return Err(format!(
                "tensor `{name}` has {bytes} bytes from byte {start} on, but the file has {data} bytes of tensors; it may be \
                 truncated"
            ));
        }
    }
    let mut order: Vec<&Info> = tensors.iter().collect();
    order.sort_by_key(|t| t.start);
    match order
        .windows(2)
        .find(|pair| pair[0].start + pair[0].bytes > pair[1].start)
    {
        Some(pair) => Err(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name)),
        None => Ok(()),
    }
}

/// A reader of a header, which knows how much of it there can be.
struct Header<'a> {
    reader: BufReader<&'a File>,
    path: &'a Path,
    /// Bytes that may still be asked for.
    left: u64,
    read: u64,
    /// Of the file.
    length: u64,
    /// Nested arrays so far.
    nested: usize,
}

impl Header<'_> {
    fn invalid(&self, reason: String) -> GgufError {
        GgufError::Invalid {
            path: self.path.to_owned(),
            reason,
        }
    }

    /// Takes `bytes` from what is left, for `what`.
    fn claim(&mut self, bytes: u64, what: &str) -> Result<(), GgufError> {
        if bytes <= self.left {
            self.left -= bytes;
            self.read += bytes;
            return Ok(());
        }
        let reason = if self.read.saturating_add(bytes) > self.length {
            format!(
                "{what} claims {bytes} bytes, but behind byte {} the file has {}; it may be truncated",
                self.read,
                self.length - self.read
            )
        } else {
            format!("{what} goes beyond {} MiB of header", MAX_HEADER >> 20)
        };
        Err(self.invalid(reason))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        self.reader.read_exact(bytes).map_err(|source| GgufError::Io {
            path: self.path.to_owned(),
            source,
        })
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        self.claim(N as u64, what)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A text of at most `most` bytes.
    fn text(&mut self, most: u64, what: &str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        if length > most {
            return Err(self.invalid(format!("{what} claims {length} bytes; at most {most} are allowed")));
        }
        self.claim(length, what)?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.invalid(format!("{what} is not UTF-8")))
    }

    /// `count` things of at least `size` bytes each must fit into what is left.
    fn room(&self, count: u64, size: u64, what: &str) -> Result<(), GgufError> {
        if count.checked_mul(size).is_some_and(|bytes| bytes <= self.left) {
            return Ok(());
        }
        Err(self.invalid(format!(
            "{what} claims {count} elements, which do not fit into the {} bytes left; it may be truncated",
            self.left
        )))
    }

    fn header(&mut self) -> Result<(u32, Metadata, Vec<Info>), GgufError> {
        let other = |reason: String| GgufError::Version {
            path: self.path.to_owned(),
            reason,
        };
        if self.length < 24 {
            let length = self.length;
            return Err(self.invalid(format!("{length} bytes; even an empty one has 24")));
        }
        if self.bytes("its magic number")? != MAGIC {
            return Err(other("not a GGUF file: it does not start with `GGUF`".into()));
        }
        let version = self.u32("its version")?;
        match version {
            2 | 3 => (),
            1 => return Err(other("GGUF of version 1".into())),
            swapped if (1..=0xffff).contains(&swapped.swap_bytes()) => {
                return Err(other(format!(
                    "GGUF of version {} in big-endian order",
                    swapped.swap_bytes()
                )));
            }
            newer => return Err(other(format!("GGUF of version {newer}"))),
        }
        let tensors = self.u64("the number of tensors")?;
        let values = self.u64("the number of values")?;
        for (what, count, most) in [("values", values, MAX_VALUES), ("tensors", tensors, MAX_TENSORS)] {
            if count > most {
                return Err(self.invalid(format!("it claims {count} {what}; at most {most} are read")));
            }
        }
        // A value has at least the length of its name, one letter of it, its type and a byte.
        self.room(values, 8 + 1 + 4 + 1, "the metadata")?;
        let mut metadata = Metadata::new();
        for _ in 0..values {
            let key = self.text(MAX_KEY, "the name of a value")?;
            if key.is_empty() {
                return Err(self.invalid("a value has no name".into()));
            }
            let what = format!("`{key}`");
            let kind = self.u32(&what)?;
            let value = self.value(&what, kind)?;
            if metadata.set(&key, value).is_some() {
                return Err(self.invalid(format!("the value `{key}` comes twice")));
            }
        }
        // A tensor has at least the length of its name, one letter of it, a dimension, its type and its place.
        self.room(tensors, 8 + 1 + 4 + 8 + 4 + 8, "the list of tensors")?;
        let mut infos = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..tensors {
            let info = self.tensor()?;
            if !names.insert(info.name.clone()) {
                return Err(self.invalid(format!("the tensor `{}` comes twice", info.name)));
            }
            infos.push(info);
        }
        Ok((version, metadata, infos))
    }

    fn value(&mut self, what: &str, kind: u32) -> Result<Value, GgufError> {
        macro_rules! scalar {
            ($($variant:ident $type:ident $id:literal;)*) => {
                match kind {
                    $($id => Value::$variant($type::from_le_bytes(self.bytes(what)?)),)*
                    BOOL => {
                        let [byte] = self.bytes(what)?;
                        Value::Bool(self.flag(byte, what)?)
                    }
                    TEXT => Value::Text(self.text(MAX_HEADER, what)?),
                    ARRAY => Value::Array(self.array(what, 1)?),
                    other => return Err(self.invalid(format!("{what} is of type {other}, which the format does not have"))),
                }
            };
        }
        Ok(numbers!(scalar))
    }

    fn flag(&self, byte: u8, what: &str) -> Result<bool, GgufError> {
        match byte {
            0 | 1 => Ok(byte == 1),
            _ => Err(self.invalid(format!("{what} has the truth value {byte}; 0 and 1 are allowed"))),
        }
    }

    fn array(&mut self, what: &str, depth: usize) -> Result<Array, GgufError> {
        let kind = self.u32(what)?;
        let count = self.u64(what)?;
        macro_rules! array {
            ($($variant:ident $type:ident $id:literal;)*) => {
                match kind {
                    $($id => Array::$variant(self.plain(count, what, $type::from_le_bytes)?),)*
                    BOOL => {
                        let bytes: Vec<u8> = self.plain(count, what, |[byte]| byte)?;
                        Array::Bool(bytes.into_iter().map(|byte| self.flag(byte, what)).collect::<Result<_, _>>()?)
                    }
                    TEXT => Array::Text(self.strings(count, what)?),
                    ARRAY => Array::Nested(self.arrays(count, what, depth)?),
                    other => return Err(self.invalid(format!("{what} is an array of type {other}, which the format does not have"))),
                }
            };
        }
        Ok(numbers!(array))
    }

    /// `count` numbers of `N` bytes each, which are in the file.
    fn plain<T, const N: usize>(&mut self, count: u64, what: &str, of: fn([u8; N]) -> T) -> Result<Vec<T>, GgufError> {
        self.room(count, N as u64, what)?;
        self.claim(count * N as u64, what)?;
        let mut values = Vec::with_capacity(count as usize);
        let mut bytes = [0; N];
        for _ in 0..count {
            self.fill(&mut bytes)?;
            values.push(of(bytes));
        }
        Ok(values)
    }

    fn strings(&mut self, count: u64, what: &str) -> Result<Strings, GgufError> {
        // Each has at least its length.
        self.room(count, 8, what)?;
        let mut strings = Strings::default();
        for _ in 0..count {
            strings.push(&self.text(MAX_HEADER, what)?);
        }
        Ok(strings)
    }

    fn arrays(&mut self, count: u64, what: &str, depth: usize) -> Result<Vec<Array>, GgufError> {
        // Each has at least its type and its length.
        self.room(count, 12, what)?;
        let mut arrays = Vec::new();
        for _ in 0..count {
            self.nested += 1;
            if self.nested > MAX_NESTED {
                return Err(self.invalid(format!("{what}: more than {MAX_NESTED} nested arrays")));
            }
            if depth == MAX_DEPTH {
                return Err(self.invalid(format!("{what}: arrays nested deeper than {MAX_DEPTH}")));
            }
            arrays.push(self.array(what, depth + 1)?);
        }
        Ok(arrays)
    }

    fn tensor(&mut self) -> Result<Info, GgufError> {
        let name = self.text(MAX_NAME as u64, "the name of a tensor")?;
        if name.is_empty() {
            return Err(self.invalid("a tensor has no name".into()));
        }
        let what = format!("tensor `{name}`");
        let count = self.u32(&what)?;
        if count == 0 || count > MAX_DIMENSIONS {
            return Err(self.invalid(format!(
                "{what} has {count} dimensions; 1 to {MAX_DIMENSIONS} are allowed"
            )));
        }
        let dimensions = (0..count).map(|_| self.u64(&what)).collect::<Result<Vec<_>, _>>()?;
        let id = self.u32(&what)?;
        let start = self.u64(&what)?;
        let Some(kind) = TensorType::from_id(id) else {
            return Err(self.invalid(format!("{what} is of type {id}, which is not known")));
        };
        if dimensions.contains(&0) {
            return Err(self.invalid(format!("{what} has a dimension of 0: {dimensions:?}")));
        }
        let elements = dimensions.iter().try_fold(1u64, |product, &d| product.checked_mul(d));
        let bytes = elements.and_then(|elements| kind.bytes(dimensions[0], elements));
        let Some(bytes) = bytes.filter(|&bytes| bytes <= self.length) else {
            return Err(self.invalid(format!(
                "{what} of type {kind} and dimensions {dimensions:?} does not fit into the file, or its rows are not \
                 whole blocks"
            )));
        };
        let sizes = dimensions
            .iter()
            .map(|&d| usize::try_from(d))
            .collect::<Result<Vec<_>, _>>();
        let shape = sizes.map_err(|_| self.invalid(format!("{what} is larger than memory can be")))?;
        Ok(Info {
            name,
            shape: reversed(&shape),
            kind,
            start,
            bytes,
        })
    }
}
