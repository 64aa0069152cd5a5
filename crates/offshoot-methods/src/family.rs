//! The family of a finished run: the parent's checkpoint, one view a child, and the catalog, written last.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use offshoot_family::catalog::{ChildSource, DataRef, FORMAT};
use offshoot_family::files::write_atomic;
use offshoot_family::{Catalog, CatalogError, Child, ParentRef, Shape, Space, TrainingCost, View};
use offshoot_zoo::checkpoint::{self, Checkpoint, CheckpointError};
use offshoot_zoo::network::NetworkError;
use offshoot_zoo::{Network, Preparation, Weights, spec};

/// Name of the metric that children are compared by: of images with and without labels, and of text.
pub fn score_name(data: &DataRef) -> &'static str {
    match data {
        DataRef::Images(images) if images.labels => "knn@20",
        DataRef::Images(_) => "agreement@20",
        DataRef::Text(_) => "perplexity",
    }
}

/// Why a family cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FamilyError {
    /// The parent's checkpoint cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A child cannot be cut.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The catalog cannot be written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A view cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a family is besides its parent.
#[derive(Clone, Debug)]
pub struct Made<'a> {
    /// The method that made it.
    pub method: &'a str,
    /// The shapes of its children.
    pub space: &'a Space,
    /// Whether slices are scaled: children are what they were in training.
    pub alpha: bool,
    /// What it was trained and is measured on.
    pub data: DataRef,
    /// Seed of the run.
    pub seed: u64,
    /// What its training cost, where that was counted.
    pub cost: Option<Cost>,
}

/// What a run cost, and what it would have cost with one of its shapes as the only network.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// The whole run.
    pub run: TrainingCost,
    /// Floating-point operations of each shape alone, for as many as it can be said of.
    pub alone: BTreeMap<Shape, f64>,
}

/// Writes `parent/`, `views/` and, last, `catalog.json` into `folder`. Every child of the space is entered with what it costs;
/// nothing is measured yet.
///
/// # Errors
/// If a file cannot be written.
pub fn write(
    folder: &Path,
    network: &dyn Network,
    parent: &Weights,
    preparation: &Preparation,
    made: Made<'_>,
) -> Result<Catalog, FamilyError> {
    checkpoint::save(network, parent, preparation, &folder.join("parent"))?;
    enter(folder, made)
}

/// Enters the children of the parent that lies in `folder/parent` already: `views/` and, last, `catalog.json`.
///
/// # Errors
/// If the parent cannot be read, or a file cannot be written.
pub fn enter(folder: &Path, made: Made<'_>) -> Result<Catalog, FamilyError> {
    let Made {
        method,
        space,
        alpha,
        data,
        seed,
        cost,
    } = made;
    let saved = Checkpoint::open(&folder.join("parent"))?;
    let hash = saved.hash()?;
    let mut children = Vec::with_capacity(space.count());
    for shape in space.iter() {
        // The saved parent, not the one in training: positions of an exported model follow transformers' rule.
        let mut view = saved.network().child(&shape, &hash)?;
        if !alpha {
            view.gains.clear();
        }
        let child = offshoot_zoo::open(&view.child)?;
        let id = shape.id();
        let file = format!("views/{id}.json");
        write_view(&folder.join(&file), &view)?;
        children.push(Child {
            name: child.familiar_name().map(str::to_owned),
            parameters: spec::parameters(&child.specs()),
            macs: child.example_macs(),
            bytes: child.layout().bytes(),
            training_flops_alone: cost.as_ref().and_then(|cost| cost.alone.get(&shape).copied()),
            source: ChildSource::View(file),
            scorecards: Vec::new(),
            shape,
            id,
        });
    }
    let catalog = Catalog {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        method: method.into(),
        seed,
        parent: ParentRef {
            path: "parent".into(),
            hash,
            architecture: saved.network().architecture(),
        },
        space: Some(space.clone()),
        score: score_name(&data).into(),
        data,
        cost: cost.map(|cost| cost.run),
        children,
    };
    catalog.save(folder)?;
    Ok(catalog)
}

fn write_view(path: &Path, view: &View) -> Result<(), FamilyError> {
    write_atomic(path, |w| Ok(serde_json::to_writer(w, view)?)).map_err(|source| FamilyError::Io {
        path: path.to_owned(),
        source,
    })
}
