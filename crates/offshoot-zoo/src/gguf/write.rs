//! Writes GGUF files one tensor at a time, whole or not at all.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use offshoot_family::files::write_atomic;

use super::error::GgufError;
use super::file::{MAGIC, MAX_DIMENSIONS, MAX_KEY, MAX_NAME, VERSION, alignment, reversed};
use super::kind::{TensorType, names};
use super::quant;
use super::value::{Array, Metadata, Value, numbers};

/// Elements of a tensor that are converted at a time; a multiple of every block's.
const PIECE: usize = 1 << 16;

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub kind: TensorType,
}

impl Tensor {
    /// Elements of one row, and of all.
    fn sizes(&self) -> (u64, u64) {
        let row = self.shape.last().copied().unwrap_or(1);
        (row as u64, self.shape.iter().product::<usize>() as u64)
    }

    fn bytes(&self) -> u64 {
        let (row, elements) = self.sizes();
        self.kind.bytes(row, elements).expect("it was checked")
    }
}

/// Bytes of the file that [`write()`] makes of these.
///
/// # Errors
/// As those of [`write()`], in words.
pub fn file_bytes(metadata: &Metadata, tensors: &[Tensor]) -> Result<u64, String> {
    let (header, alignment) = header(metadata, tensors)?;
    let padded = tensors.iter().map(|t| t.bytes().next_multiple_of(alignment));
    Ok(header.len() as u64 + padded.sum::<u64>())
}

/// Writes `tensors` to `path`, version 3, whole or not at all; `values(i)` is asked for one tensor at a time, in order, as
/// row-major elements.
///
/// # Errors
/// The error of `values`; metadata or tensors that have no place in the format; numbers that the type asked for cannot hold; or
/// the file system (a full disk among them). What stood at `path` before stays.
///
/// # Panics
/// If `values(i)` has another number of elements than shape `i`.
pub fn write<E: From<GgufError>>(
    path: &Path,
    metadata: &Metadata,
    tensors: &[Tensor],
    mut values: impl FnMut(usize) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let (header, alignment) = header(metadata, tensors).map_err(|reason| GgufError::Unwritable {
        path: path.to_owned(),
        reason,
    })?;
    let mut failed = None;
    let written = write_atomic(path, |out| {
        out.write_all(&header)?;
        for (i, tensor) in tensors.iter().enumerate() {
            let values = values(i).map_err(|e| {
                failed = Some(e);
                io::Error::other("a tensor could not be made")
            })?;
            assert_eq!(values.len() as u64, tensor.sizes().1, "elements of `{}`", tensor.name);
            let mut bytes = Vec::new();
            for piece in values.chunks(PIECE) {
                bytes.clear();
                quant::encode(tensor.kind, piece, &mut bytes).map_err(|value| {
                    let (path, name, kind) = (path.to_owned(), tensor.name.clone(), tensor.kind);
                    failed = Some(
                        GgufError::Range {
                            path,
                            name,
                            value,
                            kind,
                        }
                        .into(),
                    );
                    io::Error::other("a number does not fit")
                })?;
                out.write_all(&bytes)?;
            }
            let padding = tensor.bytes().next_multiple_of(alignment) - tensor.bytes();
            io::copy(&mut io::Read::take(io::repeat(0), padding), out)?;
        }
        Ok(())
    });
    match (written, failed) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(error)) => Err(error),
        (Err(source), None) => Err(GgufError::Io {
            path: path.to_owned(),
            source,
        }
        .into()),
    }
}

/// The header with the padding behind it, and the alignment.
fn header(metadata: &Metadata, tensors: &[Tensor]) -> Result<(Vec<u8>, u64), String> {
    let alignment = u64::from(alignment(metadata)?);
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        if key.is_empty() || key.len() as u64 > MAX_KEY {
            return Err(format!(
                "the name of a value has {} bytes; 1 to {MAX_KEY} are allowed",
                key.len()
            ));
        }
        put_text(&mut out, key);
        out.extend(value.id().to_le_bytes());
        put_value(&mut out, value);
    }
    let mut seen = HashSet::new();
    let mut start = 0u64;
    for tensor in tensors {
        let Tensor { name, shape, kind } = tensor;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(format!(
                "the name `{name}` of a tensor has {} bytes; 1 to {MAX_NAME} are allowed",
                name.len()
            ));
        }
        if !seen.insert(name) {
            return Err(format!("the tensor `{name}` comes twice"));
        }
        if shape.is_empty() || shape.len() > MAX_DIMENSIONS as usize || shape.contains(&0) {
            return Err(format!(
                "tensor `{name}` has the shape {shape:?}; 1 to {MAX_DIMENSIONS} dimensions from 1 on are allowed"
            ));
        }
        if !TensorType::WRITTEN.contains(kind) {
            return Err(format!(
                "tensor `{name}` is {kind}; {} are written",
                names(&TensorType::WRITTEN)
            ));
        }
        let (row, elements) = tensor.sizes();
        let Some(bytes) = kind.bytes(row, elements) else {
            let (block, _) = kind.block();
            return Err(format!(
                "tensor `{name}` has rows of {row} elements; {kind} needs a multiple of {block}"
            ));
        };
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        out.extend(reversed(shape).into_iter().flat_map(|d| (d as u64).to_le_bytes()));
        out.extend(kind.id().to_le_bytes());
        out.extend(start.to_le_bytes());
        start += bytes.next_multiple_of(alignment);
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    Ok((out, alignment))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    macro_rules! put {
        ($($variant:ident $type:ident $id:literal;)*) => {
            match value {
                $(Value::$variant(v) => out.extend(v.to_le_bytes()),)*
                Value::Bool(v) => out.push((*v).into()),
                Value::Text(text) => put_text(out, text),
                Value::Array(array) => put_array(out, array),
            }
        };
    }
    numbers!(put);
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    macro_rules! put {
        ($($variant:ident $type:ident $id:literal;)*) => {
            match array {
                $(Array::$variant(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),)*
                Array::Bool(flags) => out.extend(flags.iter().map(|&flag| u8::from(flag))),
                Array::Text(texts) => texts.iter().for_each(|text| put_text(out, text)),
                Array::Nested(arrays) => arrays.iter().for_each(|array| put_array(out, array)),
            }
        };
    }
    numbers!(put);
}
