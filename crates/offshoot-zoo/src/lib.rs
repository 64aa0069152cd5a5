//! Architectures that can be viewed: forward passes, weights in and out, and `materialize`.
//!
//! Three nouns: a [`Network`] knows the tensors of one architecture, and as a [`Backbone`] of images or a [`DecoderNetwork`] of text its
//! forward pass; [`Weights`] are its tensors by
//! name, on a device; a [`Plan`](materialize::Plan) is a view compiled to one copy per tensor, run on the device for training
//! or from file to file for export. A sub-network is never state of a network: it is other weights for the same code.
//!
//! Only this crate and the kernels name the tensor library; [`tensor`] is the door through which the methods reach it.

pub mod bert;
mod block;
pub mod checkpoint;
pub mod decoder;
pub mod generate;
pub mod gguf;
pub mod import;
pub mod layout;
pub mod materialize;
pub mod network;
pub mod onnx;
pub mod positions;
pub mod preparation;
pub mod projected;
pub mod registry;
pub mod resnet;
pub mod safetensors;
pub mod sentence;
pub mod spec;
pub mod start;
pub mod swin;
pub mod tensor;
pub mod vit;
pub mod weight_files;
pub mod weights;

pub use bert::{Bert, BertNetwork};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use decoder::DecoderNetwork;
pub use network::{Backbone, DropPath, Features, Network};
pub use preparation::{Preparation, TokenizerFiles};
pub use projected::ProjectedNetwork;
pub use registry::{backbone, open};
pub use sentence::SentenceEncoder;
pub use spec::{Dim, Init, TensorSpec};
pub use start::initialise;
pub use weights::{Weight, Weights};
