//! The model that a pre-training run starts from, and what it says of the recipe.

use std::path::{Path, PathBuf};

use offshoot_family::catalog::Preprocessing;
use offshoot_family::recipe::{self, Auto};
use offshoot_family::{Architecture, Catalog};
use offshoot_methods::elastic::recipe::{ElasticRecipe, InitRecipe};
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{Checkpoint, CheckpointError, Preparation, Weights, import, start};
use serde_json::Value;

use super::images;
use super::import::absolute;
use crate::failure::Failure;
use crate::terminal::complain;

/// A model to start from, checked and not loaded yet.
pub struct Start {
    path: PathBuf,
    checkpoint: Checkpoint,
    preprocessing: Preprocessing,
    hash: String,
}

impl Start {
    /// Opens a run folder, or whatever `offshoot import` opens without being told a name.
    ///
    /// # Errors
    /// If it is no such model.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let (checkpoint, preprocessing) = if path.join("catalog.json").is_file() {
            let catalog = Catalog::open(path)?;
            (
                images::checked_parent(path, &catalog)?,
                preprocessing(&images::preparation(path, &catalog)?, path)?,
            )
        } else {
            let model = import::open(path, None).map_err(|error| match error {
                CheckpointError::Unsupported {
                    path: place,
                    reason,
                    hint,
                } if !path.is_dir() => {
                    // It has no option to say what a file is; the recognised name, if there is one, goes to the command that has.
                    let name = hint
                        .split('`')
                        .find(|word| word.starts_with("--arch "))
                        .unwrap_or("--arch NAME")
                        .to_owned();
                    Failure::input(
                        format!("{}: {reason}", place.display()),
                        format!(
                            "import it first: offshoot import {} {name} -o base; then --init base",
                            path.display()
                        ),
                    )
                }
                other => other.into(),
            })?;
            let how = preprocessing(&model.preparation, path)?;
            (model.checkpoint, how)
        };
        Ok(Self {
            path: path.to_owned(),
            hash: checkpoint.hash()?,
            checkpoint,
            preprocessing,
        })
    }

    /// Opens it again for a run that was stopped before its first checkpoint.
    ///
    /// # Errors
    /// If it is gone or another.
    pub fn again(init: &InitRecipe) -> Result<Self, Failure> {
        let start = Self::open(Path::new(&init.path))?;
        if start.hash != init.hash {
            return Err(Failure::input(
                format!(
                    "{} is not the model that the run was started from: its content has changed",
                    init.path
                ),
                "put it back as it was, or start a new run",
            ));
        }
        Ok(start)
    }

    /// Reads a recipe over the defaults that follow from the model: its numbers, and how its images are prepared.
    ///
    /// # Errors
    /// If the recipe sets other numbers of the parent.
    pub fn recipe(&self, text: &str, origin: &str, overrides: &[String]) -> Result<ElasticRecipe, Failure> {
        let parent = self.parent();
        let described = describe(&parent);
        let family = described.get("family").and_then(Value::as_str).unwrap_or_default();
        let refuse = |what: &[String]| {
            Failure::input(
                format!(
                    "{origin} or its overrides: {}, but {} has others",
                    what.join(", "),
                    self.path.display()
                ),
                "leave these out: with --init the parent's numbers are the model's",
            )
        };
        if let Some(asked) = recipe::given(text, overrides, "parent.family").filter(|asked| asked != family) {
            return Err(refuse(&[format!("parent.family = {asked}")]));
        }
        let mut default = ElasticRecipe::of_family(family).ok_or_else(|| {
            let known = offshoot_zoo::registry::FAMILIES.join(", ");
            Failure::input(
                format!("a {family} cannot be trained here"),
                format!("there are {known}"),
            )
        })?;
        // Down to half of it: the paper's spaces end where the usual models are.
        let native = self.checkpoint.network().architecture();
        let bounds = offshoot_zoo::registry::half(&native).map_err(CheckpointError::from)?;
        default.space.min_width = bounds.min_width;
        default.space.min_depth = bounds.min_depths[..].into();
        default.parent = parent;
        default.init = InitRecipe {
            path: absolute(&self.path),
            hash: self.hash.clone(),
        };
        let how = &self.preprocessing;
        default.data.channels = Auto::Value(how.channels);
        default.data.mean = Auto::Value(how.mean.clone());
        default.data.std = Auto::Value(how.std.clone());
        let mut recipe = recipe::load(&default, text, origin, overrides)?;
        if recipe.init.hash != default.init.hash {
            return Err(Failure::input(
                format!(
                    "{} is not the model that `init.hash` is of: its content is another",
                    self.path.display()
                ),
                "leave the hash out to start from this one, or name the model that it belongs to",
            ));
        }
        recipe.init.path.clone_from(&default.init.path);
        let mut others: Vec<String> = Vec::new();
        if let (Value::Object(own), Value::Object(set)) = (&described, describe(&recipe.parent)) {
            // The side is the crops', and how positions are resampled is a matter of training.
            let free = |key: &str| ["image", "position_offset"].contains(&key);
            let differs = set
                .iter()
                .filter(|(key, value)| !free(key) && own.get(*key) != Some(*value));
            others.extend(differs.map(|(key, value)| format!("parent.{key} = {value}")));
        }
        if recipe
            .data
            .channels
            .value()
            .is_some_and(|&channels| channels != how.channels)
        {
            others.extend(
                recipe
                    .data
                    .channels
                    .value()
                    .map(|channels| format!("data.channels = {channels}")),
            );
        }
        if !others.is_empty() {
            return Err(refuse(&others));
        }
        complain(&format!(
            "the parent's numbers, and mean and deviation of its images, are those of {}: {}",
            self.path.display(),
            recipe.parent.summary()
        ));
        Ok(recipe)
    }

    /// The architecture as a recipe has it: without a classifier, its image side left to the crops.
    fn parent(&self) -> Architecture {
        let network = self.checkpoint.network();
        let (channels, _) = network.architecture().input();
        network.architecture().with_input(channels, 0).headless()
    }

    /// Its weights for the network of a resolved recipe.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn weights(&self, recipe: &ElasticRecipe, device: &Device) -> Result<Weights, Failure> {
        let weights = self.checkpoint.weights(device)?;
        let network = recipe.network()?;
        Ok(start::taken_over(
            self.checkpoint.network(),
            &weights,
            network.as_ref(),
            device,
        ))
    }
}

/// How a model to start from wants its images.
fn preprocessing(preparation: &Preparation, path: &Path) -> Result<Preprocessing, Failure> {
    match preparation {
        Preparation::Images(how) => Ok(how.clone()),
        Preparation::Text(_) => Err(Failure::input(
            format!("{} is a language model, and the recipe is for images", path.display()),
            "start from it with a recipe of `method = \"language\"`",
        )),
    }
}

fn describe(architecture: &Architecture) -> Value {
    serde_json::to_value(architecture).unwrap_or_default()
}
