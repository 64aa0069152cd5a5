//! Clusters of a corpus: windows to vectors, vectors to a tree of centroids, and what is kept of both on disk.
//!
//! An [`Encoder`] makes a vector of length 1 of the text of each window. Balanced k-means (arXiv 2402.01093 v2, section 3.1; its later
//! recipe: Hierarchical memories, arXiv 2510.02375, appendix C) makes a [`Tree`] of centroids of a sample of them, level by level, and
//! every window belongs to the leaf that greedy descent finds. [`build()`] does all of this over a corpus of any size and can be
//! stopped anywhere; [`Clusters`] opens what it wrote.

mod build;
mod encoder;
mod error;
mod folder;
mod kmeans;
mod members;
mod stop_words;
mod svd;
mod tfidf;
mod tree;

pub use build::{Outcome, Phase, Request, Watch, assign, build};
pub use encoder::Encoder;
pub use error::ClusterError;
pub use folder::{ClusterFolder, Clusters, CorpusFacts, DomainHistogram, EncoderFacts, Facts, LevelFacts, WindowFacts};
pub use kmeans::{Fit, Settings, Vectors, fit};
pub use members::Members;
pub use tfidf::{TfIdf, TfIdfSettings};
pub use tree::{Level, Tree};
