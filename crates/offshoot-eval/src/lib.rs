//! The one yardstick: a child and held-out data in, a scorecard out.
//!
//! Every child of every method is measured in the same way: [`features::extract`] runs it over images once; [`mod@knn`]
//! (DINO's weighted vote), [`linear`] (DINOv2's probe) and [`mod@agreement`] (with its parent, no labels needed) read what came
//! out; [`perplexity`] is that of a language model on documents; [`mod@latency`] times either; [`score`] writes down each number with how it was measured. The same features, labels, seed
//! and build give the same numbers. Nothing here reads the clock, prints or chooses a device.

pub mod agreement;
pub mod error;
pub mod features;
pub mod knn;
pub mod latency;
pub mod linear;
pub mod perplexity;
pub mod score;

pub use agreement::{Agreement, agreement};
pub use error::EvalError;
pub use features::{ChildFeatures, FeatureMatrix, Labelled, extract};
pub use knn::{Knn, Neighbours, knn};
pub use latency::{Latency, latency};
pub use linear::{LinearProbe, ProbeSettings, linear_probe};
pub use perplexity::{Means, Perplexity, Sliding, TextScorer};
pub use score::Provenance;
