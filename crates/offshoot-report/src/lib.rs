//! A catalog in, one self-contained HTML page out.
//!
//! [`render`] is a pure function: it reads no file and no clock, asks the network for nothing and neither does its page.
//! It computes no metric: a number in the page is a number in a scorecard, in the catalog or in the run's metrics, in
//! readable units, with the exact number in the `title` beside it where the two differ.
//!
//! ```
//! # use offshoot_family::catalog::{Catalog, DataRef, ImagesRef, ParentRef, Preprocessing};
//! # use offshoot_family::{Architecture, Vit};
//! # let parent = Vit { width: 64, depth: 4, head_dim: 32, mlp_ratio: 4, patch: 8, image: 32, channels: 3,
//! #     position_offset: 0.0, norm_eps: 1e-6, layer_scale: 1e-5, classes: 0 };
//! # let catalog = Catalog {
//! #     format: 2, cost: None, version: "0.1.0".into(), method: "elastic".into(), seed: 0, space: None, score: "knn@20".into(),
//! #     parent: ParentRef { path: "parent".into(), hash: "00".into(), architecture: Architecture::Vit(parent) },
//! #     data: DataRef::Images(ImagesRef { path: "/data".into(), test_path: None, labels: true, fingerprint: "00".into(), split_seed: 0,
//! #         val: 0.1, test: 0.1, preprocessing: Preprocessing { resize: 32, crop: 32, channels: 3, mean: vec![], std: vec![] } }),
//! #     children: vec![],
//! # };
//! use offshoot_report::{RunFacts, render};
//!
//! let page = render(&catalog, &RunFacts { title: "A small family".into(), ..RunFacts::default() })?;
//! assert!(page.starts_with("<!doctype html>"));
//! # Ok::<(), offshoot_report::ReportError>(())
//! ```

mod card;
mod chart;
mod curves;
mod figures;
mod heat;
mod labels;
mod lines;
mod page;
mod plan;
mod provenance;
mod samples;
mod scatter;
mod score;
mod spending;
mod table;
mod units;

pub use card::{CardFacts, OpenedBy, model_card};
use offshoot_family::Catalog;
pub use plan::{MethodFacts, PlanFacts};
use serde_json::{Map, Value};

/// What the page tells of a run beside its catalog.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunFacts {
    /// Heading of the page.
    pub title: String,
    /// Lines of `metrics.jsonl`: each has `step` and numeric fields; `metric@k/child` is a probe of one child, `metric/child/domain` one
    /// of it on a domain; `tokens_seen` counts the tokens up to the step.
    pub metrics: Vec<Map<String, Value>>,
    /// Lines of `samples.jsonl`: each has `step`, `prompt` and `text`.
    pub samples: Vec<Map<String, Value>>,
    /// The resolved recipe, as it lies in the run folder; empty where there is none.
    pub recipe_toml: String,
    /// How it was made, as names and texts: version, seed, machine, hours, data fingerprint, command.
    pub notes: Vec<(String, String)>,
    /// Id of the child that was picked, and why.
    pub picked: Option<(String, String)>,
}

/// Why a page cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The template refuses what it is given: a fault of this crate, not of the catalog.
    #[error("the report's template failed")]
    Template(#[from] minijinja::Error),
}

/// Makes the page. The same input gives the same bytes.
///
/// # Errors
/// Only if the page's own template fails; an odd catalog gives a page that says what is missing.
pub fn render(catalog: &Catalog, run: &RunFacts) -> Result<String, ReportError> {
    page::render(catalog, run)
}

/// Makes the page of a plan: which method to take under which budgets, and what each would cost over more and fewer domains. The same
/// input gives the same bytes.
///
/// # Errors
/// Only if the page's own template fails.
pub fn render_plan(plan: &PlanFacts) -> Result<String, ReportError> {
    page::render_plan(plan)
}
