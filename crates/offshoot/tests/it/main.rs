//! Drives the real binary from outside, as its users do: files and options in; files, text and exit codes out.

mod ablations;
mod bench;
mod cluster;
mod data;
mod demo;
mod disk;
mod family_refusals;
mod folder;
mod import;
mod language;
mod manners;
mod onnx;
mod plan;
mod refusals;
mod residual;
mod resume;
mod support;
mod text_eval;
mod whole_path;
