//! Checkpoint folders in the layouts of other programs: opened with every name and shape checked, written one tensor at a time.

use std::io::Read;
use std::path::{Path, PathBuf};

use offshoot_family::files::write_atomic;
use offshoot_family::{Architecture, View};
use serde_json::Value;

use crate::decoder::DecoderNetwork;
use crate::gguf::{self, GgufError};
use crate::layout::{self, Dialect, Program};
use crate::materialize::{self, Plan, TensorPlan, ViewError};
use crate::network::{self, Backbone, Network, NetworkError};
use crate::onnx::{self, OnnxError};
use crate::preparation;
pub use crate::preparation::{Preparation, TokenizerFiles};
use crate::registry::open;
use crate::safetensors::{self, SafetensorsError};
use crate::start;
use crate::tensor::Device;
use crate::weight_files::WeightFiles;
use crate::weights::{Weight, Weights};

/// Name of the weights file in a folder.
pub const WEIGHTS: &str = "model.safetensors";
/// Name of the file that says which of several files a tensor is in.
pub const INDEX: &str = "model.safetensors.index.json";
/// Largest JSON file of a checkpoint that is read, in bytes: room for the names of tens of thousands of classes.
const MAX_JSON: u64 = 1 << 22;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration is not one.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The weights file is not one.
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    /// The weights are not those that the configuration asks for.
    #[error("{path}: {reason}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The first few differences.
        reason: String,
    },
    /// It is nothing that can be opened here, or not without being told more.
    #[error("{path}: {reason}")]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// The numbers make no network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A view does not fit the parent.
    #[error(transparent)]
    View(#[from] ViewError),
    /// An ONNX file cannot be written.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// A GGUF file is not one, or cannot be written.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A view was made for other weights.
    #[error("the view was made for parent {wanted}, but {path} is {found}")]
    OtherParent {
        /// The weights file at hand.
        path: PathBuf,
        /// Hash in the view.
        wanted: String,
        /// Hash of the file.
        found: String,
    },
}

impl CheckpointError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("a checkpoint folder holds config.json and model.safetensors".into())
            }
            Self::Weights(SafetensorsError::Invalid { .. }) => {
                Some("the file is damaged or was not fully copied: compare its size with the original's".into())
            }
            Self::Unsupported { hint, .. } => Some(hint.clone()),
            Self::Gguf(error) => error.hint(),
            Self::Mismatch { .. } => Some("config.json and the weights belong to different models".into()),
            Self::OtherParent { .. } => {
                Some("the parent was changed after the family was made: restore it or make the family again".into())
            }
            _ => None,
        }
    }
}

/// An opened checkpoint: its network, and its weights still on disk.
pub struct Checkpoint {
    network: Box<dyn Network>,
    dialect: Dialect,
    files: WeightFiles,
}

impl Checkpoint {
    /// Opens `folder`, checking names and shapes of all tensors against its configuration before anything is loaded.
    ///
    /// # Errors
    /// Says which file is wrong and in what.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join("config.json");
        let config = read_json(&path)?;
        let architecture = layout::architecture(&config).map_err(|reason| CheckpointError::Config { path, reason })?;
        let network = open(&architecture)?;
        let files = weights_of(folder)?;
        check_layers(network.as_ref(), &files)?;
        let dialect = layout::dialect(&config, network.as_ref(), &files);
        Self::of(network, dialect, files)
    }

    /// The checkpoint of `network` that `files` holds in `dialect`.
    ///
    /// # Errors
    /// Names the first few tensors that do not fit.
    pub(crate) fn of(network: Box<dyn Network>, dialect: Dialect, files: WeightFiles) -> Result<Self, CheckpointError> {
        dialect.check(&files).map_err(|reason| CheckpointError::Mismatch {
            path: files.path().to_owned(),
            reason,
        })?;
        Ok(Self {
            network,
            dialect,
            files,
        })
    }

    /// Its weights files.
    pub fn files(&self) -> &WeightFiles {
        &self.files
    }

    /// How its files are read.
    pub fn dialect(&self) -> &Dialect {
        &self.dialect
    }

    /// What it is.
    pub fn network(&self) -> &dyn Network {
        self.network.as_ref()
    }

    /// It as a network of images.
    ///
    /// # Errors
    /// If it is none.
    pub fn backbone(&self) -> Result<&dyn Backbone, NetworkError> {
        network::backbone(self.network())
    }

    /// It as a decoder of text.
    ///
    /// # Errors
    /// If it is none.
    pub fn decoder(&self) -> Result<&DecoderNetwork, NetworkError> {
        network::decoder(self.network())
    }

    /// Content hash of its weights file, hex.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn hash(&self) -> Result<String, CheckpointError> {
        self.files.hash()
    }

    /// All its weights on `device`, under our names.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn weights(&self, device: &Device) -> Result<Weights, CheckpointError> {
        let mut weights = Weights::new();
        for spec in self.network.specs() {
            weights.insert(
                &spec.name,
                Weight::from_values(self.tensor(&spec.name)?, spec.shape(), device),
            );
        }
        Ok(weights)
    }

    /// The elements of our tensor `name`, put together from its parts in the files.
    fn tensor(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        if let Some(missing) = self.dialect.missing.iter().find(|spec| spec.name == name) {
            return Ok(start::drawn(missing, 0));
        }
        let mut parts = self
            .dialect
            .tensors
            .iter()
            .filter(|t| t.tensor == name)
            .map(|t| Ok::<_, CheckpointError>(t.of_file(self.files.read(&t.name)?)));
        let mut values = parts
            .next()
            .unwrap_or_else(|| panic!("the dialect has no tensor `{name}`"))?;
        for part in parts {
            values.extend(part?);
        }
        Ok(values)
    }

    /// The plan of the child that `view` makes of this parent, and its network.
    ///
    /// # Errors
    /// If the view does not fit.
    pub fn plan(&self, view: &View) -> Result<(Box<dyn Network>, Plan), CheckpointError> {
        let child = open(&view.child)?;
        // Before the child's specs are made: a view may name any depth.
        if child.layers() > self.network.layers() + view.blocks.len() {
            let asked = format!("{} layers", child.layers());
            return Err(ViewError::Child {
                name: "blocks".into(),
                given: vec![view.blocks.len()],
                asked,
            }
            .into());
        }
        let plan = materialize::compile(&self.network.specs(), Some(&child.specs()), view)?;
        Ok((child, plan))
    }

    /// The elements of one of a child's tensors, row-major, read from the parent's file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn child_tensor(&self, entry: &TensorPlan) -> Result<Vec<f32>, CheckpointError> {
        let whole = match &entry.mixed {
            Some(mix) => mix.on_host(&entry.parent, |name| self.tensor(name))?,
            None => self.tensor(&entry.parent)?,
        };
        Ok(entry.on_host(&whole))
    }

    /// Writes the child that `view` makes of this parent as a folder of its own for `program`, one tensor at a time from file to
    /// file. What was exported to the folder before is removed, and the weights file is written before `config.json`: a folder
    /// with a configuration is whole.
    ///
    /// # Errors
    /// If the view does not fit, the program has no such network, or a file cannot be read or written.
    pub fn export_child(
        &self,
        view: &View,
        program: Program,
        preparation: &Preparation,
        folder: &Path,
    ) -> Result<(), CheckpointError> {
        let (child, plan) = self.plan(view)?;
        let layout = layout::of(child.as_ref(), program)?;
        clear(folder)?;
        // The parts of one tensor stand next to each other: remember the last one made.
        let mut last: Option<(String, Vec<f32>)> = None;
        safetensors::write(&folder.join(WEIGHTS), &layout.shapes(), |i| {
            let part = &layout.tensors[i];
            if last.as_ref().is_none_or(|(name, _)| *name != part.tensor) {
                let entry = plan.iter().find(|entry| entry.name == part.tensor);
                let entry = entry.unwrap_or_else(|| panic!("the plan has no tensor `{}`", part.tensor));
                last = None;
                last = Some((part.tensor.clone(), self.child_tensor(entry)?));
            }
            let (_, values) = last.as_ref().expect("it was just made");
            Ok::<_, CheckpointError>(part.to_file(values))
        })?;
        preparation.write(folder)?;
        write_json(&folder.join("config.json"), &layout.config(preparation))
    }
}

/// Removes whatever an export may have left in `folder`, the file that says that it is whole first.
pub(crate) fn clear(folder: &Path) -> Result<(), CheckpointError> {
    let models = ["config.json", onnx::MODEL, WEIGHTS, onnx::DATA, gguf::MODEL];
    for name in models.into_iter().chain(preparation::files()) {
        let path = folder.join(name);
        onnx::remove(&path).map_err(|source| CheckpointError::Io { path, source })?;
    }
    Ok(())
}

/// Writes `weights` as a checkpoint folder of `network`.
///
/// # Errors
/// If a file cannot be written.
pub fn save(
    network: &dyn Network,
    weights: &Weights,
    preparation: &Preparation,
    folder: &Path,
) -> Result<(), CheckpointError> {
    let layout = network.layout();
    safetensors::write(&folder.join(WEIGHTS), &layout.shapes(), |i| {
        let part = &layout.tensors[i];
        let weight = weights
            .get(&part.tensor)
            .unwrap_or_else(|| panic!("no weight `{}`", part.tensor));
        Ok::<_, CheckpointError>(part.to_file(&weight.values()))
    })?;
    preparation.write(folder)?;
    write_json(&folder.join("config.json"), &layout.config(preparation))
}

/// Reads a JSON file of a checkpoint, bounded in size.
pub(crate) fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let config = |reason: String| CheckpointError::Config {
        path: path.to_owned(),
        reason,
    };
    let mut text = Vec::new();
    std::fs::File::open(path)
        .map_err(io)?
        .take(MAX_JSON + 1)
        .read_to_end(&mut text)
        .map_err(io)?;
    if text.len() as u64 > MAX_JSON {
        return Err(config(format!("larger than {} MiB", MAX_JSON >> 20)));
    }
    serde_json::from_slice(&text).map_err(|e| config(format!("not JSON: {e}")))
}

/// Writes a JSON file of a checkpoint, whole or not at all.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<(), CheckpointError> {
    write_atomic(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    })
    .map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    })
}

/// The weights files of a folder.
pub(crate) fn weights_of(folder: &Path) -> Result<WeightFiles, CheckpointError> {
    let index = folder.join(INDEX);
    if !folder.join(WEIGHTS).exists() && index.is_file() {
        return WeightFiles::indexed(&index);
    }
    WeightFiles::single(&folder.join(WEIGHTS))
}

/// Refuses more layers than there are tensors, before the layout is made: a configuration may name any depth.
pub(crate) fn check_layers(network: &dyn Network, files: &WeightFiles) -> Result<(), CheckpointError> {
    let (layers, tensors) = (network.layers(), files.count());
    if layers <= tensors + 1 {
        return Ok(());
    }
    let reason = format!("the configuration asks for {layers} layers, but there are only {tensors} tensors");
    Err(CheckpointError::Mismatch {
        path: files.path().to_owned(),
        reason,
    })
}

/// The architecture a checkpoint folder holds, from its configuration alone.
///
/// # Errors
/// If the configuration cannot be read or describes no network here.
pub fn architecture(folder: &Path) -> Result<Architecture, CheckpointError> {
    let path = folder.join("config.json");
    layout::architecture(&read_json(&path)?).map_err(|reason| CheckpointError::Config { path, reason })
}
