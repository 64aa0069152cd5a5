//! Options of `offshoot cluster` and `offshoot bench cluster`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Compute;

/// `offshoot cluster`.
#[derive(Debug, Args)]
pub struct Cluster {
    /// The corpus.
    pub corpus: PathBuf,
    /// Folder to make.
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,
    /// Clusters; several numbers make a tree, such as 16,16,4 for 1,024 of them.
    #[arg(long, value_name = "K,K", value_delimiter = ',', default_value = "16")]
    pub k: Vec<usize>,
    /// Assign the windows to the clusters of this folder instead of making new ones; they are cut as those were.
    #[arg(long, value_name = "CLUSTERS", conflicts_with_all = ["k", "context", "packing", "begin_of_text", "sample", "steps", "balance", "dimensions", "seed"])]
    pub assign: Option<PathBuf>,
    /// Folder of a sentence encoder, such as all-MiniLM-L6-v2; without one texts are compared by their terms (tf-idf and SVD).
    /// With --assign it is only needed where the folder was moved.
    #[arg(long, value_name = "DIR")]
    pub encoder: Option<PathBuf>,
    /// Part of the corpus.
    #[arg(long, value_enum, default_value_t = CorpusPart::Train)]
    pub part: CorpusPart,
    /// Go on with what was stopped in the folder.
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace the clusters that are in the folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Keep the vectors of all windows: fp32, 4 bytes a number.
    #[arg(long)]
    pub keep_embeddings: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Tokens of a window, at most.
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Windows")]
    pub context: usize,
    /// Join documents and cut them into windows of exactly that many tokens.
    #[arg(long, help_heading = "Windows")]
    pub packing: bool,
    /// Begin each document with the begin-of-text token.
    #[arg(long, help_heading = "Windows")]
    pub begin_of_text: bool,
    /// Windows of a step of k-means; 6,400 by default, or 64 for each cluster of a split where that is more.
    #[arg(long, value_name = "N", help_heading = "Clusters")]
    pub sample: Option<usize>,
    /// Steps of k-means.
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Clusters")]
    pub steps: usize,
    /// The largest share of a cluster in a step before it is split with the smallest, times the number of clusters; inf for plain
    /// k-means.
    #[arg(long, value_name = "X", default_value_t = 1.5, help_heading = "Clusters")]
    pub balance: f64,
    /// Directions that terms are reduced to.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100,
        help_heading = "Clusters",
        conflicts_with = "encoder"
    )]
    pub dimensions: usize,
    /// Decides all that is random.
    #[arg(long, default_value_t = 0, help_heading = "Clusters")]
    pub seed: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}

/// Parts of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CorpusPart {
    /// What is trained on.
    Train,
    /// What models are chosen by.
    Val,
    /// What models are judged by.
    Test,
}

/// `offshoot bench cluster`.
#[derive(Debug, Args)]
pub struct BenchCluster {
    /// Vectors: fp32, little-endian, one after the other, as `offshoot cluster --keep-embeddings` leaves them.
    pub vectors: PathBuf,
    /// Numbers of a vector.
    #[arg(long, value_name = "N", default_value_t = 384)]
    pub width: usize,
    /// Clusters.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub k: usize,
    /// Vectors of a step.
    #[arg(long, value_name = "N")]
    pub sample: Option<usize>,
    /// Steps.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub steps: usize,
    /// As for `offshoot cluster`.
    #[arg(long, value_name = "X", default_value_t = 1.5)]
    pub balance: f64,
    /// Seed of the first pass; each pass has the next one.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Timed passes.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub passes: usize,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}
