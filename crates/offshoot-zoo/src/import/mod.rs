//! Models of others: Hugging Face and timm folders, and bare files under timm's names, opened as checkpoints of ours.

mod preprocessing;
mod recognise;
mod timm;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use offshoot_family::Architecture;
use offshoot_family::catalog::Preprocessing;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, CheckpointError, INDEX, WEIGHTS, check_layers, read_json, weights_of};
use crate::layout::{self, Ignored};
use crate::registry;
use crate::shards::Shards;

/// Endings of files that hold Python objects.
const PICKLES: [&str; 5] = ["bin", "pth", "pt", "ckpt", "tar"];

/// A model of others, checked and not loaded yet.
pub struct Import {
    /// Its network and weights.
    pub checkpoint: Checkpoint,
    /// How it wants its images.
    pub preprocessing: Preprocessing,
    /// What it was: `ViTModel of transformers`, `resnet50 of timm`.
    pub origin: String,
    /// Names of tensors that were ignored, and why.
    pub ignored: Vec<(String, &'static str)>,
    /// What else a user should know.
    pub notes: Vec<String>,
}

/// Opens `path`: a folder with a `config.json` of transformers (`model_type`) or of timm (`architecture`), or a file of timm's
/// names, of which `name` says what it is (`vit_base_patch16_224`). Everything is checked, nothing is loaded.
///
/// # Errors
/// Says what is wrong or not supported, in which file, and what would help.
pub fn open(path: &Path, name: Option<&str>) -> Result<Import, CheckpointError> {
    refuse_pickle(path)?;
    if !path.is_dir() {
        return file(path, name);
    }
    let config_path = path.join("config.json");
    if !config_path.is_file() && (path.join(WEIGHTS).is_file() || path.join(INDEX).is_file()) {
        // A folder that holds weights and nothing that says what they are is the file that it holds.
        return of_timm(path, weights_of(path)?, name, &Value::Null);
    }
    let config = read_json(&config_path)?;
    if config.get("model_type").is_none()
        && let Some(architecture) = config.get("architecture").and_then(Value::as_str)
    {
        let files = weights_of(path)?;
        return of_timm(&config_path, files, Some(name.unwrap_or(architecture)), &config);
    }
    if let Some(name) = name {
        return Err(CheckpointError::Unsupported {
            path: config_path,
            reason: "says itself what the model is".into(),
            hint: format!("leave out `--arch {name}`"),
        });
    }
    of_transformers(path, &config)
}

fn file(path: &Path, name: Option<&str>) -> Result<Import, CheckpointError> {
    of_timm(path, Shards::single(path)?, name, &Value::Null)
}

fn of_transformers(folder: &Path, config: &Value) -> Result<Import, CheckpointError> {
    let config_path = folder.join("config.json");
    let wrong = |reason| CheckpointError::Config {
        path: config_path.clone(),
        reason,
    };
    let architecture = layout::architecture(config).map_err(wrong)?;
    let network = registry::open(&architecture)?;
    let files = weights_of(folder)?;
    check_layers(network.as_ref(), &files)?;
    let dialect = layout::dialect(config, network.as_ref(), &files);
    let class = config.pointer("/architectures/0").and_then(Value::as_str);
    let class = class.unwrap_or(network.layout().class).to_owned();
    let path = folder.join("preprocessor_config.json");
    let said = if path.is_file() { Some(read_json(&path)?) } else { None };
    let mut notes = Vec::new();
    let input = (network.image(), network.stride());
    let preprocessing = match &said {
        Some(said) => preprocessing::of_transformers(said, input, &mut notes)
            .map_err(|reason| CheckpointError::Config { path, reason })?,
        None => preprocessing::usual(input.0, &mut notes),
    };
    let checkpoint = Checkpoint::of(network, dialect, files)?;
    Import::new(checkpoint, preprocessing, format!("{class} of transformers"), notes)
}

/// `place` is the file that says what the model is, or the weights where only `name` does.
fn of_timm(place: &Path, files: Shards, name: Option<&str>, config: &Value) -> Result<Import, CheckpointError> {
    let Some(name) = name else {
        let (reason, hint) = recognise::unnamed(&files);
        return Err(CheckpointError::Unsupported {
            path: place.to_owned(),
            reason,
            hint,
        });
    };
    let wrong = |reason: String| CheckpointError::Unsupported {
        path: place.to_owned(),
        reason,
        hint: format!("supported are {}", timm::SUPPORTED),
    };
    let architecture = timm::architecture(name, config, &files).map_err(wrong)?;
    let network = registry::open(&architecture)?;
    check_layers(network.as_ref(), &files)?;
    let dialect = timm::dialect(network.as_ref(), &files);
    let mut notes = Vec::new();
    let input = (network.image(), network.stride());
    let preprocessing = match config.get("pretrained_cfg").or(config.get("mean").map(|_| config)) {
        Some(said) => preprocessing::of_timm(said, input, &mut notes).map_err(wrong)?,
        None => preprocessing::usual(input.0, &mut notes),
    };
    let checkpoint = Checkpoint::of(network, dialect, files)?;
    Import::new(checkpoint, preprocessing, format!("{name} of timm"), notes)
}

impl Import {
    fn new(
        checkpoint: Checkpoint,
        preprocessing: Preprocessing,
        origin: String,
        mut notes: Vec<String>,
    ) -> Result<Self, CheckpointError> {
        let files = checkpoint.files();
        for tensor in &checkpoint.dialect().tensors {
            files.check(&tensor.name)?;
        }
        let used = |name: &str| checkpoint.dialect().tensors.iter().any(|t| t.name == name);
        let why = |name: &str| -> Option<&Ignored> { checkpoint.dialect().ignored.iter().find(|i| i.holds(name)) };
        let ignored: Vec<(String, &'static str)> = files
            .names()
            .into_iter()
            .filter(|name| !used(name))
            .filter_map(|name| Some((name.to_owned(), why(name)?.why)))
            .collect();
        let constants = &checkpoint.dialect().constants;
        notes.extend(
            constants
                .iter()
                .map(|c| format!("`{}` is not in the file: all {}", c.tensor, c.value)),
        );
        if let Architecture::ResNet(net) = checkpoint.network().architecture()
            && net.norm == offshoot_family::ResNetNorm::Batch
        {
            notes
                .push("running statistics of BatchNorm are kept and never updated; children get slices of them".into());
        }
        Ok(Self {
            checkpoint,
            preprocessing,
            origin,
            ignored,
            notes,
        })
    }
}

/// Refuses files of Python objects: reading one runs whatever it says.
fn refuse_pickle(path: &Path) -> Result<(), CheckpointError> {
    let refused = |file: &Path| {
        let shown = file.file_name().unwrap_or_default().to_string_lossy();
        Err(CheckpointError::Unsupported {
            path: file.to_owned(),
            reason: "a pickle: it holds Python objects, and reading it would run them".into(),
            hint: format!(
                "write its tensors anew where you trust it: python -c \"import torch, safetensors.torch as s; \
                 s.save_file(torch.load('{shown}', weights_only=True), 'model.safetensors')\""
            ),
        })
    };
    if path.is_dir() {
        let safe = [WEIGHTS, INDEX].iter().any(|name| path.join(name).is_file());
        let pickle = path.join("pytorch_model.bin");
        let sharded = path.join("pytorch_model.bin.index.json");
        return match (safe, pickle.is_file(), sharded.is_file()) {
            (false, true, _) => refused(&pickle),
            (false, _, true) => refused(&sharded),
            _ => Ok(()),
        };
    }
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if PICKLES.contains(&ending) {
        return refused(path);
    }
    // Whatever they are called: a zip archive, or a pickle of protocol 2 or later. A safetensors file may begin like the second, but
    // then four zeros follow, or its header would be larger than the format allows.
    let mut start = [0; 8];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    match (read, start) {
        (Ok(()), [b'P', b'K', 3, 4, ..]) => refused(path),
        (Ok(()), [0x80, 2..=5, _, _, rest @ ..]) if rest != [0; 4] => refused(path),
        _ => Ok(()),
    }
}
