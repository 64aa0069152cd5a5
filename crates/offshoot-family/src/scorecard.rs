//! What was measured of one child, with how: metric, split, data, seed and machine.

use serde::{Deserialize, Serialize};

use crate::quantity::proportion;

/// Which part of the data a number was measured on. Parts are made by content hash before training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What training sees.
    Train,
    /// What choices are made on.
    Val,
    /// What the final number is measured on, once.
    Test,
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        })
    }
}

/// What is measured, whatever of and with: `perplexity` of `perplexity/pubmed`.
fn kind(metric: &str) -> &str {
    metric.split(['@', '/']).next().unwrap_or_default()
}

/// Whether less of a metric is better.
pub fn lower_is_better(metric: &str) -> bool {
    is_perplexity(metric) || kind(metric) == "latency_ms"
}

/// Whether a metric is a perplexity, per token or per byte.
pub fn is_perplexity(metric: &str) -> bool {
    ["perplexity", "byte_perplexity"].contains(&kind(metric))
}

/// `value` of `metric` as a number of which more is better.
pub fn merit(metric: &str, value: f64) -> f64 {
    if lower_is_better(metric) { -value } else { value }
}

/// `value` of `metric` as it is written in a line or a table: perplexities with four digits (`12.34`, `1,234`), all else with four
/// decimals.
pub fn written(metric: &str, value: f64) -> String {
    if is_perplexity(metric) {
        proportion(value, 4)
    } else {
        format!("{value:.4}")
    }
}

/// One measured number of one child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scorecard {
    /// What was measured: `knn@20`, `agreement@20`, `linear` (shares in 0..1, higher is better), `perplexity`, `byte_perplexity`, each
    /// also of one domain (`perplexity/pubmed`), or `latency_ms` (lower is better).
    pub metric: String,
    /// The number.
    pub value: f64,
    /// The part of the data that was scored; none for measurements without data, such as latency.
    pub split: Option<Split>,
    /// Fingerprint of the data; none as above.
    pub data: Option<String>,
    /// Examples that were scored.
    pub examples: usize,
    /// Seed of whatever is random in the measurement.
    pub seed: u64,
    /// CPU or GPU, threads, and kernel path.
    pub machine: String,
    /// Version of offshoot.
    pub version: String,
    /// How: temperature, references, and for a grid every cell of it.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub details: serde_json::Map<String, serde_json::Value>,
}

impl Scorecard {
    /// Whether `self` and `other` measured the same thing in the same way, so that the newer replaces the older.
    pub fn same_measurement(&self, other: &Self) -> bool {
        self.metric == other.metric && self.split == other.split && self.data == other.data
    }
}
