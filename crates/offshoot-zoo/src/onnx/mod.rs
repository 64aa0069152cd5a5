//! Networks as ONNX files: a graph from the network, weights from the parent's file, one tensor at a time.
//!
//! A network says itself what it computes ([`Backbone::graph`](crate::Backbone::graph),
//! [`DecoderNetwork::graph`](crate::DecoderNetwork::graph)), in the functions of [`Graph`]. [`write()`] puts it into `model.onnx`,
//! opset 20. Of images: input `pixel_values`, `[batch, channels, side, side]` with an open batch, outputs `cls` and `patches`. Of text:
//! input `input_ids`, `[batch, sequence]`, both open, 64-bit integers; output `logits`, `[batch, sequence, vocabulary]`, of one
//! causal pass over whole sequences, all of one length. There is no mask for padding and no cache of keys and values: to go on
//! by a token, the sequence is run again. Initialisers carry our names and hold our numbers. All sizes follow from shapes, so
//! lengths are written first and the numbers streamed behind them.

mod extent;
mod graph;
mod image;
mod proto;
mod text;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use offshoot_family::View;
use offshoot_family::files::write_atomic;
use prost::Message;

pub use extent::Extent;
pub use graph::{Graph, Heads, Outputs, Value};
pub use image::Sliding;
pub use text::{Packed, Turn};

use crate::checkpoint::{Checkpoint, CheckpointError, clear};
use crate::network::Network;
use crate::preparation::Preparation;

/// Name of the model's file in a folder.
pub const MODEL: &str = "model.onnx";
/// Name of the file that holds the weights when the model does not.
pub const DATA: &str = "model.onnx.data";
/// Bytes of weights up to which they are part of the model's file. A protobuf message ends at 2 GiB.
pub const EMBEDDED: u64 = 1 << 30;

/// `Gelu` is of opset 20 (ONNX 1.15, 2023); nothing newer is needed. onnxruntime 1.31 and tract 0.23 run it.
const OPSET: i64 = 20;
/// IR version that came with that opset.
const IR_VERSION: i64 = 9;

/// What a file says of itself.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The child's id, such as `384x12`.
    pub id: &'a str,
    /// Content hash of the parent's weights.
    pub parent: &'a str,
    /// How images become `pixel_values`, or texts `input_ids`.
    pub preparation: &'a Preparation,
}

/// Why a model cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes the child that `view` makes of `parent` as a folder with [`MODEL`] and `preprocessor_config.json`, or `tokenizer.json` and
/// what belongs to it; weights of more than `embedded` bytes (or [`EMBEDDED`], if that is less) go to [`DATA`]. The model is the last file, so a folder with one is
/// whole.
///
/// # Errors
/// If the view does not fit, or a file cannot be read or written.
pub fn export(
    parent: &Checkpoint,
    view: &View,
    about: &About<'_>,
    folder: &Path,
    embedded: u64,
) -> Result<(), CheckpointError> {
    let (child, plan) = parent.plan(view)?;
    clear(folder)?;
    about.preparation.write(folder)?;
    write(child.as_ref(), about, folder, embedded, |name| {
        let entry = plan.iter().find(|entry| entry.name == name);
        let entry = entry.unwrap_or_else(|| panic!("the plan has no tensor `{name}`"));
        parent.child_tensor(entry)
    })
}

/// The graph of a network: of one of images at its native side, of a decoder over sequences of any length.
///
/// # Panics
/// If it is neither: every network is one of them.
pub fn graph(network: &dyn Network) -> Graph {
    let mut graph = Graph::new(&network.specs());
    if let Some(backbone) = network.as_backbone() {
        let (channels, side) = backbone.image();
        let pixels = graph.pixels(channels, side);
        let outputs = backbone.graph(&mut graph, pixels);
        graph.finish(outputs);
    } else {
        let decoder = network.as_decoder().expect("a network of images or of text");
        let tokens = graph.tokens();
        let logits = decoder.graph(&mut graph, tokens);
        graph.finish_text(logits);
    }
    graph
}

/// Writes `network` to [`MODEL`] in `folder`, as [`export`] does; `values` is asked for one tensor at a time, by name.
///
/// # Errors
/// The error of `values`, or of the file system (a full disk among them). Each file is whole or as it was, and at no time does a
/// model stand beside the data of another.
///
/// # Panics
/// If `values` gives another number of elements than the network's specs say.
pub fn write<E: From<OnnxError>>(
    network: &dyn Network,
    about: &About<'_>,
    folder: &Path,
    embedded: u64,
    values: impl FnMut(&str) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let model = head(network, about);
    write_graph(&graph(network), &model, about.id, folder, embedded, values)
}

/// [`write()`] of any finished graph.
fn write_graph<E: From<OnnxError>>(
    graph: &Graph,
    model: &proto::Model,
    name: &str,
    folder: &Path,
    embedded: u64,
    mut values: impl FnMut(&str) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let weights: Vec<Weight> = weights(graph);
    let apart = weights.iter().map(|w| w.bytes).sum::<u64>() > embedded.min(EMBEDDED);
    let (path, data) = (folder.join(MODEL), folder.join(DATA));
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| OnnxError::Io { path, source }
    };
    let mut failed: Option<E> = None;
    // Whatever goes wrong is kept aside with its place; the file being written only has to know that it is not to be.
    let stop = || io::Error::other("stopped");
    let mut stream = |out: &mut dyn Write, weight: &Weight| {
        let values = values(weight.name).map_err(|e| {
            failed = Some(e);
            stop()
        })?;
        assert_eq!(values.len() as u64 * 4, weight.bytes, "bytes of `{}`", weight.name);
        crate::safetensors::write_f32(out, &values)
    };
    let mut data_failed: Option<OnnxError> = None;
    let written = write_atomic(&path, |out| {
        let mut small = graph.message(name);
        if apart {
            small.initializer.extend(weights.iter().map(Weight::pointer));
        }
        let pieces: Vec<Vec<u8>> = if apart {
            Vec::new()
        } else {
            weights.iter().map(Weight::opening).collect()
        };
        let streamed = pieces
            .iter()
            .zip(&weights)
            .map(|(opening, w)| opening.len() as u64 + w.bytes);
        let length = small.encoded_len() as u64 + streamed.sum::<u64>();
        out.write_all(&model.encode_to_vec())?;
        out.write_all(&field(proto::MODEL_GRAPH, length))?;
        out.write_all(&small.encode_to_vec())?;
        for (opening, weight) in pieces.iter().zip(&weights) {
            out.write_all(opening)?;
            stream(out, weight)?;
        }
        if !apart {
            return Ok(());
        }
        let beside = write_atomic(&data, |out| {
            let mut end = 0;
            for weight in &weights {
                io::copy(&mut io::Read::take(io::repeat(0), weight.offset - end), out)?;
                stream(out, weight)?;
                end = weight.offset + weight.bytes;
            }
            // An older model must not be found beside these weights.
            remove(&path)
        });
        beside.map_err(|source| {
            data_failed = Some(at(&data)(source));
            stop()
        })
    });
    match (written, failed, data_failed) {
        (_, Some(error), _) => Err(error),
        (_, None, Some(error)) => Err(error.into()),
        (Err(source), None, None) => Err(at(&path)(source).into()),
        (Ok(()), None, None) if apart => Ok(()),
        // The data of an older model, which nothing points to any more.
        (Ok(()), None, None) => remove(&data).map_err(|e| at(&data)(e).into()),
    }
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A weight as an initialiser: where its numbers will lie.
struct Weight<'a> {
    name: &'a str,
    shape: &'a [usize],
    bytes: u64,
    /// In the data file.
    offset: u64,
}

/// The weights of a graph in the order of the file. Offsets fall on pages, so that readers can map the file: of large tensors on
/// the 64 KiB that Windows asks for, of others on 4 KiB (`onnx.proto`, `external_data`).
fn weights(graph: &Graph) -> Vec<Weight<'_>> {
    let mut end: u64 = 0;
    let mut placed = Vec::new();
    for (name, shape) in graph.weights() {
        let bytes = 4 * shape.iter().product::<usize>() as u64;
        let offset = end.next_multiple_of(if bytes < 1 << 20 { 1 << 12 } else { 1 << 16 });
        end = offset + bytes;
        placed.push(Weight {
            name,
            shape,
            bytes,
            offset,
        });
    }
    placed
}

impl Weight<'_> {
    fn header(&self) -> proto::Tensor {
        proto::Tensor {
            dims: self.shape.iter().map(|&n| n as i64).collect(),
            data_type: proto::FLOAT,
            name: self.name.into(),
            ..proto::Tensor::default()
        }
    }

    /// An initialiser that says where in the data file its numbers are.
    fn pointer(&self) -> proto::Tensor {
        let entry = |key: &str, value: String| proto::Entry { key: key.into(), value };
        proto::Tensor {
            external_data: vec![
                entry("location", DATA.into()),
                entry("offset", self.offset.to_string()),
                entry("length", self.bytes.to_string()),
            ],
            data_location: Some(proto::EXTERNAL),
            ..self.header()
        }
    }

    /// An initialiser up to its numbers, as a field of the graph.
    fn opening(&self) -> Vec<u8> {
        let header = self.header().encode_to_vec();
        let data = field(proto::TENSOR_RAW_DATA, self.bytes);
        let mut opening = field(
            proto::GRAPH_INITIALIZER,
            (header.len() + data.len()) as u64 + self.bytes,
        );
        opening.extend(header);
        opening.extend(data);
        opening
    }
}

/// Key and length of a field: `bytes` bytes follow.
fn field(key: u8, bytes: u64) -> Vec<u8> {
    let mut start = vec![key];
    let mut rest = bytes;
    while rest >= 0x80 {
        start.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    start.push(rest as u8);
    start
}

/// Everything in front of the graph.
fn head(network: &dyn Network, about: &About<'_>) -> proto::Model {
    let json = |values: &[f32]| serde_json::to_string(values).expect("numbers serialize");
    let architecture = serde_json::to_string(&network.architecture()).expect("numbers serialize");
    let mut entries = vec![
        ("id", about.id.to_owned()),
        ("parent", about.parent.to_owned()),
        ("architecture", architecture),
    ];
    match about.preparation {
        // In the order in which they are applied.
        Preparation::Images(how) => entries.extend([
            ("resize", how.resize.to_string()),
            ("interpolation", "bicubic".to_owned()),
            ("crop", how.crop.to_string()),
            ("channels", how.channels.to_string()),
            ("rescale", "1/255".to_owned()),
            ("mean", json(&how.mean)),
            ("std", json(&how.std)),
            ("layout", "NCHW".to_owned()),
        ]),
        Preparation::Text(tokenizer) => {
            entries.push(("tokenizer", blake3::hash(tokenizer.json()).to_hex().to_string()));
            for (key, id) in [("bos_token_id", tokenizer.bos), ("eos_token_id", tokenizer.eos)] {
                entries.extend(id.map(|id| (key, id.to_string())));
            }
            if let Some(decoder) = network.as_decoder() {
                let decoder = decoder.decoder();
                entries.push(("vocabulary", decoder.vocabulary.to_string()));
                entries.push(("context", decoder.context.to_string()));
            }
        }
    }
    proto::Model {
        ir_version: IR_VERSION,
        producer_name: "offshoot".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        opset_import: vec![proto::OperatorSet {
            domain: Some(String::new()),
            version: OPSET,
        }],
        metadata_props: entries
            .into_iter()
            .map(|(key, value)| proto::Entry { key: key.into(), value })
            .collect(),
    }
}
