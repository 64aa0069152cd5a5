//! safetensors files one tensor at a time: headers are checked before anything is allocated, and memory stays near one tensor.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use offshoot_family::files::write_atomic;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Largest header that is read, in bytes; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Why a safetensors file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what its header promises.
    #[error("{path}: not a usable safetensors file: {reason}")]
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
    #[error("{path}: tensor `{name}` is {dtype}; F32, F16, BF16 and F64 are read as numbers")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
}

/// An open safetensors file: its header in memory, its tensors on disk.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    data_start: u64,
    header: Metadata,
}

impl SafetensorsFile {
    /// Opens `path` and checks its header against the file's length: no name twice, no overlap, no gap, no tensor outside
    /// the file.
    ///
    /// # Errors
    /// Says what is wrong with the file.
    pub fn open(path: &Path) -> Result<Self, SafetensorsError> {
        let io = |source| SafetensorsError::Io {
            path: path.to_owned(),
            source,
        };
        let invalid = |reason: String| SafetensorsError::Invalid {
            path: path.to_owned(),
            reason,
        };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length < 8 {
            return Err(invalid(format!("{length} bytes; even an empty one has 8")));
        }
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(io)?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER || size > length - 8 {
            return Err(invalid(format!(
                "the header claims {size} bytes in a file of {length}; it may be truncated"
            )));
        }
        let mut text = vec![0; size as usize];
        file.read_exact(&mut text).map_err(io)?;
        let malformed = |e: serde_json::Error| invalid(format!("header: {e}"));
        let DistinctNames = serde_json::from_slice(&text).map_err(malformed)?;
        let header: Metadata = serde_json::from_slice(&text).map_err(malformed)?;
        let promised = (8 + size).checked_add(header.data_len() as u64);
        if promised != Some(length) {
            return Err(invalid(format!(
                "its header promises {} bytes of tensors, the file holds {}; it may be truncated",
                header.data_len(),
                length - 8 - size
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            data_start: 8 + size,
            header,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Free-form text from the header, such as `format`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Shape of the tensor `name`, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| &info.shape[..])
    }

    /// Makes sure that the tensor `name` is there and of a type that [`read`](Self::read) takes.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, name: &str) -> Result<(), SafetensorsError> {
        let (path, place) = (self.path.clone(), name.to_owned());
        match self.header.info(name).map(|info| info.dtype) {
            Some(Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) => Ok(()),
            Some(other) => Err(SafetensorsError::Dtype {
                path,
                name: place,
                dtype: format!("{other:?}"),
            }),
            None => Err(SafetensorsError::Missing { path, name: place }),
        }
    }

    /// The elements of the tensor `name` as f32, row-major. F16, BF16 and F64 are converted.
    ///
    /// # Errors
    /// If it is not there, not numbers, or cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, SafetensorsError> {
        let bytes = self.read_bytes(name)?;
        let dtype = self.header.info(name).expect("it was just read").dtype;
        let values = match dtype {
            Dtype::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
                .collect(),
            Dtype::F64 => bytes
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes")) as f32)
                .collect(),
            Dtype::BF16 => bytes
                .chunks_exact(2)
                .map(|b| f32::from_bits(u32::from_le_bytes([0, 0, b[0], b[1]])))
                .collect(),
            Dtype::F16 => bytes
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            other => {
                let (path, name) = (self.path.clone(), name.to_owned());
                return Err(SafetensorsError::Dtype {
                    path,
                    name,
                    dtype: format!("{other:?}"),
                });
            }
        };
        Ok(values)
    }

    /// The raw bytes of the tensor `name`.
    ///
    /// # Errors
    /// If it is not there or cannot be read.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, SafetensorsError> {
        let Some(info) = self.header.info(name) else {
            return Err(SafetensorsError::Missing {
                path: self.path.clone(),
                name: name.into(),
            });
        };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| SafetensorsError::Io {
                path: self.path.clone(),
                source,
            })?;
        Ok(bytes)
    }
}

/// A header in which no name comes twice. The format forbids it, and of two tensors of one name each reader may take another.
struct DistinctNames;

impl<'de> Deserialize<'de> for DistinctNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = DistinctNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensor names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DistinctNames, A::Error> {
                let mut names = HashSet::new();
                while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    if let Some(twice) = names.replace(name) {
                        return Err(A::Error::custom(format_args!("the name `{twice}` comes twice")));
                    }
                }
                Ok(DistinctNames)
            }
        }
        deserializer.deserialize_map(Names)
    }
}

/// Bytes of a file of fp32 tensors with these names and shapes, header included.
pub fn file_bytes<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> u64 {
    let (header, data) = header(tensors);
    8 + header.len() as u64 + data
}

/// The padded JSON header and the number of data bytes behind it.
fn header<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> (Vec<u8>, u64) {
    let mut end = 0;
    let infos = tensors.into_iter().map(|(name, shape)| {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        (
            name.to_owned(),
            TensorInfo {
                dtype: Dtype::F32,
                shape: shape.to_vec(),
                data_offsets: (start, end),
            },
        )
    });
    // The one key that stock readers ask for; with more than one, a hash map's order would reach the file.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect()).expect("offsets are made contiguous");
    let mut text = serde_json::to_vec(&metadata).expect("names and numbers serialize");
    text.resize(text.len().next_multiple_of(8), b' ');
    (text, end as u64)
}

/// Writes fp32 tensors to `path`, whole or not at all; `values(i)` is asked for one tensor at a time, in order.
///
/// # Errors
/// The error of `values`, or of the file system (a full disk among them). What stood at `path` before stays.
///
/// # Panics
/// If `values(i)` has another number of elements than shape `i`.
pub fn write<E: From<SafetensorsError>>(
    path: &Path,
    tensors: &[(String, Vec<usize>)],
    mut values: impl FnMut(usize) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let (header, _) = header(tensors.iter().map(|(name, shape)| (name.as_str(), &shape[..])));
    let mut failed = None;
    let written = write_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (i, (name, shape)) in tensors.iter().enumerate() {
            let values = values(i).map_err(|e| {
                failed = Some(e);
                io::Error::other("a tensor could not be made")
            })?;
            assert_eq!(values.len(), shape.iter().product::<usize>(), "elements of `{name}`");
            write_f32(out, &values)?;
        }
        Ok(())
    });
    match (written, failed) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(error)) => Err(error),
        (Err(source), None) => Err(SafetensorsError::Io {
            path: path.to_owned(),
            source,
        }
        .into()),
    }
}

/// Little-endian bytes of `values`, in pieces.
pub(crate) fn write_f32(out: &mut dyn Write, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 * values.len().min(1 << 16));
    for piece in values.chunks(1 << 16) {
        bytes.clear();
        bytes.extend(piece.iter().flat_map(|v| v.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}
