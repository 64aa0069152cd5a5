//! A family opened again: its data and its parent, checked against the catalog, and its children.

use std::path::Path;

use anyhow::Context;
use offshoot_data::{DataError, Dataset, Labels, SplitShares};
use offshoot_family::catalog::{ChildSource, DataRef, ImagesRef};
use offshoot_family::{Catalog, Child, Split, View};
use offshoot_zoo::materialize::materialize;
use offshoot_zoo::preparation::TOKENIZER;
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{Checkpoint, Network, Preparation, TokenizerFiles, Weights};

use crate::failure::Failure;
use crate::terminal::complain;

/// Damaged images that are named.
const NAMED: usize = 10;

/// Opens `path`, and `test` as its test part if the data has a split of its own.
///
/// # Errors
/// If either holds no data set, or they do not fit each other.
pub fn open_split(
    path: &str,
    test: Option<&str>,
    labels: bool,
    seed: u64,
    shares: SplitShares,
) -> Result<Dataset, DataError> {
    let labels = if labels { Labels::Use } else { Labels::Ignore };
    match test {
        Some(test) => Dataset::open_with_test(Path::new(path), Path::new(test), labels, seed, shares),
        None => Dataset::open(Path::new(path), labels, seed, shares),
    }
}

/// Opens the data of a family.
///
/// # Errors
/// If it is gone, or is not what the family was made with.
pub fn open(data: &DataRef) -> Result<Dataset, Failure> {
    let data = of(data)?;
    let shares = SplitShares {
        val: data.val,
        test: data.test,
    };
    let test = data.test_path.as_deref();
    let dataset = open_split(&data.path, test, data.labels, data.split_seed, shares)?;
    if dataset.fingerprint != data.fingerprint {
        return Err(Failure::input(
            format!(
                "{} is not the data that the family was made with: its content has changed",
                data.path
            ),
            "put the files back as they were, or train again on the new data",
        ));
    }
    Ok(dataset)
}

/// Makes sure that a family has data: an imported model may have none.
///
/// # Errors
/// If it has none.
pub fn given(data: &DataRef) -> Result<(), Failure> {
    if data.is_given() {
        return Ok(());
    }
    Err(match data {
        DataRef::Images(_) => Failure::input(
            "this model was imported without images to score it on",
            "give --data PATH when it is imported: offshoot import MODEL -o RUN --overwrite --data PATH --labels",
        ),
        DataRef::Text(_) => Failure::input(
            "this model was imported without text to score it on",
            "name the text: offshoot eval perplexity RUN --data NAME=PATH",
        ),
    })
}

/// The images of a family.
///
/// # Errors
/// If it has none, or is of text.
pub fn of(data: &DataRef) -> Result<&ImagesRef, Failure> {
    given(data)?;
    data.images().ok_or_else(|| {
        Failure::input(
            "this is a family of language models, which take no images",
            "measure `offshoot eval perplexity` instead",
        )
    })
}

/// The examples of one part of the data.
pub fn part(dataset: &Dataset, split: Split) -> &[usize] {
    match split {
        Split::Train => &dataset.splits.train,
        Split::Val => &dataset.splits.val,
        Split::Test => &dataset.splits.test,
    }
}

/// At most `limit` of `indices` (0: all), evenly spaced.
pub fn at_most(indices: &[usize], limit: usize) -> Vec<usize> {
    if limit == 0 || indices.len() <= limit {
        return indices.to_vec();
    }
    (0..limit).map(|i| indices[i * indices.len() / limit]).collect()
}

/// Says how many images are damaged, what was done about it, and the first ones' names.
pub fn tell_damaged(damaged: &[(String, String)], done: &str) {
    if damaged.is_empty() {
        return;
    }
    complain(&format!("{} damaged images were {done}:", damaged.len()));
    for (name, reason) in damaged.iter().take(NAMED) {
        let named = reason.contains(name);
        complain(&if named {
            format!("  {reason}")
        } else {
            format!("  {name}: {reason}")
        });
    }
}

/// A family's parent in memory, from which its children are cut.
pub struct Family {
    /// The catalog.
    pub catalog: Catalog,
    parent: Checkpoint,
    weights: Weights,
}

impl Family {
    /// Opens the run's catalog and loads its parent.
    ///
    /// # Errors
    /// If either is missing, damaged, or not the other's.
    pub fn open(run: &Path, device: &Device) -> Result<Self, Failure> {
        let catalog = Catalog::open(run)?;
        let parent = checked_parent(run, &catalog)?;
        let weights = parent.weights(device)?;
        Ok(Self {
            catalog,
            parent,
            weights,
        })
    }

    /// The network and weights of a child.
    ///
    /// # Errors
    /// If its view is missing or does not fit.
    pub fn child(&self, run: &Path, child: &Child) -> Result<(Box<dyn Network>, Weights), Failure> {
        let (network, plan) = self.parent.plan(&view(run, &self.catalog, child)?)?;
        Ok((network, materialize(&self.weights, &plan)))
    }

    /// The parent itself.
    pub fn parent(&self) -> (&dyn Network, &Weights) {
        (self.parent.network(), &self.weights)
    }
}

/// Opens the parent of a catalog and makes sure that it is the one the catalog means.
///
/// # Errors
/// If it is missing, damaged or another.
pub fn checked_parent(run: &Path, catalog: &Catalog) -> Result<Checkpoint, Failure> {
    let parent = Checkpoint::open(&run.join(&catalog.parent.path))?;
    let hash = parent.hash()?;
    if hash != catalog.parent.hash {
        let path = run.join(&catalog.parent.path);
        return Err(offshoot_zoo::CheckpointError::OtherParent {
            path,
            wanted: catalog.parent.hash.clone(),
            found: hash,
        }
        .into());
    }
    Ok(parent)
}

/// What stands beside the weights of a family's models: how images are prepared, or the parent's tokenizer.
///
/// # Errors
/// If the tokenizer cannot be read, or is another than the family was made with.
pub fn preparation(run: &Path, catalog: &Catalog) -> Result<Preparation, Failure> {
    match &catalog.data {
        DataRef::Images(images) => Ok(Preparation::Images(images.preprocessing.clone())),
        DataRef::Text(text) => {
            let folder = run.join(&catalog.parent.path);
            let tokenizer = TokenizerFiles::open(&folder)?;
            if blake3::hash(tokenizer.json()).to_hex().as_str() != text.tokenizer {
                return Err(Failure::input(
                    format!(
                        "{} is not the tokenizer that the family was made with: its content has changed",
                        folder.join(TOKENIZER).display()
                    ),
                    "put the file back as it was: models of the family know no other tokens",
                ));
            }
            Ok(Preparation::Text(tokenizer))
        }
    }
}

/// Largest view file that is read, in bytes.
const MAX_VIEW: u64 = 64 << 20;

/// The view of a child.
///
/// # Errors
/// If it is missing, damaged, or made for another parent.
pub fn view(run: &Path, catalog: &Catalog, child: &Child) -> Result<View, Failure> {
    let ChildSource::View(file) = &child.source else {
        return Err(Failure::input(
            format!("child `{}` is no view of the parent", child.id),
            "this version reads views",
        ));
    };
    let path = run.join(file);
    let name = || path.display().to_string();
    let bytes = std::fs::metadata(&path).with_context(name)?.len();
    if bytes > MAX_VIEW {
        return Err(Failure::input(
            format!("{}: {bytes} bytes are no view", name()),
            "restore the run's views folder",
        ));
    }
    let view: View = serde_json::from_slice(&std::fs::read(&path).with_context(name)?).with_context(name)?;
    if view.parent != catalog.parent.hash {
        return Err(Failure::input(
            format!("{}: the view was made for another parent", name()),
            "restore the run's views folder, or train again",
        ));
    }
    Ok(view)
}
