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

use crate::checkpoint::{self, Checkpoint, CheckpointError, INDEX, WEIGHTS, check_layers, read_json, weights_of};
use crate::gguf;
use crate::layout::{self, Ignored, Program};
use crate::network::{Backbone, Network, NetworkError, SpaceBounds};
use crate::preparation::{Preparation, TokenizerFiles};
use crate::registry;
use crate::spec::Init;
use crate::start;
use crate::tensor::Device;
use crate::weight_files::WeightFiles;

/// Endings of files that hold Python objects.
const PICKLES: [&str; 5] = ["bin", "pth", "pt", "ckpt", "tar"];

/// A model of others, checked and not loaded yet.
pub struct Import {
    /// Its network and weights.
    pub checkpoint: Checkpoint,
    /// How it wants its images, or its text.
    pub preparation: Preparation,
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
    if gguf::is_gguf(path) {
        return of_gguf(path, name);
    }
    refuse_pickle(path)?;
    if !path.is_dir() {
        return file(path, name);
    }
    let config_path = path.join("config.json");
    if !config_path.is_file() && (path.join(WEIGHTS).is_file() || path.join(INDEX).is_file()) {
        // A folder that holds weights and nothing that says what they are is the file that it holds.
        return of_timm(path, weights_of(path)?, name, &Value::Null);
    }
    if path.join("catalog.json").is_file() {
        return Err(CheckpointError::Unsupported {
            path: path.to_owned(),
            reason: "a run of offshoot, which needs no import".into(),
            hint: format!("start from it by `offshoot pretrain RECIPE --init {}`", path.display()),
        });
    }
    let config = read_json(&config_path)?;
    let architecture = config.get("architecture").and_then(Value::as_str);
    let transformers = config.get("model_type").is_some();
    // A configuration that says nothing is as good as none where a name is given.
    if let Some(name) = name.or(architecture).filter(|_| !transformers) {
        return of_timm(&config_path, weights_of(path)?, Some(name), &config);
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
    of_timm(path, WeightFiles::single(path)?, name, &Value::Null)
}

fn of_gguf(path: &Path, name: Option<&str>) -> Result<Import, CheckpointError> {
    if let Some(name) = name {
        return Err(CheckpointError::Unsupported {
            path: path.to_owned(),
            reason: "says itself what the model is".into(),
            hint: format!("leave out `--arch {name}`"),
        });
    }
    let opened = gguf::open(path)?;
    let notes = opened.notes.iter().map(ToString::to_string).collect();
    let called = opened.name.map_or(String::new(), |name| format!(" called {name}"));
    Import::new(
        opened.checkpoint,
        Preparation::Text(opened.tokenizer),
        format!("a GGUF file{called}"),
        notes,
    )
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
    let mut notes = Vec::new();
    let preparation = match network.as_backbone() {
        Some(backbone) => Preparation::Images(preprocessor(folder, backbone, &mut notes)?),
        None => Preparation::Text(TokenizerFiles::open(folder)?),
    };
    let checkpoint = Checkpoint::of(network, dialect, files)?;
    Import::new(checkpoint, preparation, format!("{class} of transformers"), notes)
}

/// How a folder of transformers wants its images.
fn preprocessor(
    folder: &Path,
    backbone: &dyn Backbone,
    notes: &mut Vec<String>,
) -> Result<Preprocessing, CheckpointError> {
    let path = folder.join("preprocessor_config.json");
    let said = if path.is_file() { Some(read_json(&path)?) } else { None };
    let input = (backbone.image(), backbone.stride());
    match &said {
        Some(said) => preprocessing::of_transformers(said, input, notes)
            .map_err(|reason| CheckpointError::Config { path, reason }),
        None => Ok(preprocessing::usual(input.0, false, notes)),
    }
}

/// `place` is the file that says what the model is, or the weights where only `name` does.
fn of_timm(place: &Path, files: WeightFiles, name: Option<&str>, config: &Value) -> Result<Import, CheckpointError> {
    let Some(name) = name else {
        let (reason, hint) = recognise::unnamed(&files);
        return Err(CheckpointError::Unsupported {
            path: place.to_owned(),
            reason,
            hint,
        });
    };
    let said = |reason: String| CheckpointError::Config {
        path: place.to_owned(),
        reason,
    };
    let architecture = match timm::architecture(name, config, &files) {
        Some(found) => found.map_err(said)?,
        None => {
            return Err(CheckpointError::Unsupported {
                path: place.to_owned(),
                reason: timm::unknown(name),
                hint: format!("supported are {}", timm::SUPPORTED),
            });
        }
    };
    let network = registry::backbone(&architecture).map_err(|e| said(e.to_string()))?;
    check_layers(network.as_ref(), &files)?;
    let dialect = timm::dialect(network.as_ref(), &files);
    let mut notes = Vec::new();
    let input = (network.image(), network.stride());
    let preprocessing = match config.get("pretrained_cfg").or(config.get("mean").map(|_| config)) {
        Some(trained) => preprocessing::of_timm(trained, input, &mut notes).map_err(said)?,
        None => preprocessing::usual(input.0, timm::halves(name), &mut notes),
    };
    let looks = recognise::unnamed(&files).1;
    let checkpoint = Checkpoint::of(network, dialect, files).map_err(|error| match error {
        CheckpointError::Mismatch { path, reason } if config.is_null() => CheckpointError::Unsupported {
            path,
            reason: format!("it is no {name}: {reason}"),
            hint: looks,
        },
        other => other,
    })?;
    let preparation = Preparation::Images(preprocessing);
    Import::new(checkpoint, preparation, format!("{name} of timm"), notes)
}

impl Import {
    fn new(
        checkpoint: Checkpoint,
        preparation: Preparation,
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
        notes.extend(checkpoint.dialect().missing.iter().map(|spec| {
            let start = match spec.init {
                Init::Constant(value) => format!("all {value}"),
                _ => "drawn at random, as in a fresh network".into(),
            };
            format!("`{}` is not in the file: {start}", spec.name)
        }));
        if let (Some(backbone), Preparation::Images(how)) = (checkpoint.network().as_backbone(), &preparation) {
            let (side, crop) = (backbone.image().1, how.crop as usize);
            if side != crop {
                notes.push(resized(side, crop));
            }
        }
        if let Architecture::ResNet(net) = checkpoint.network().architecture()
            && net.norm == offshoot_family::ResNetNorm::Batch
        {
            notes
                .push("running statistics of BatchNorm are kept and never updated; children get slices of them".into());
        }
        Ok(Self {
            checkpoint,
            preparation,
            origin,
            ignored,
            notes,
        })
    }
}

/// Whether a file is called as such files are.
fn is_pickle(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    PICKLES.contains(&ending)
}

/// What it means that a network of images of `side` pixels is given others.
fn resized(side: usize, crop: usize) -> String {
    format!(
        "made for images of {side} pixels, given {crop}: learned positions are resampled to their grid; `--px {side}` keeps them"
    )
}

impl Import {
    /// Prepares images of `px` pixels instead, in the usual proportion of resize and crop.
    ///
    /// # Errors
    /// If it takes none.
    pub fn set_side(&mut self, px: u32) -> Result<(), CheckpointError> {
        let side = self.checkpoint.backbone()?.image().1;
        let how = self.preprocessing_mut()?;
        let before = resized(side, how.crop as usize);
        how.resize = (px * 256).div_ceil(224);
        how.crop = px;
        self.notes.retain(|note| *note != before);
        if side != px as usize {
            self.notes.push(resized(side, px as usize));
        }
        Ok(())
    }

    /// How its images are prepared.
    ///
    /// # Errors
    /// If it takes none.
    pub fn preprocessing_mut(&mut self) -> Result<&mut Preprocessing, CheckpointError> {
        let found = self.checkpoint.network().architecture().summary();
        match &mut self.preparation {
            Preparation::Images(how) => Ok(how),
            Preparation::Text(_) => Err(NetworkError::Kind {
                found,
                wanted: "images",
            }
            .into()),
        }
    }

    /// The network of the images that it is given, whatever the side that it was made for; a decoder is as it was made.
    ///
    /// # Errors
    /// If no such network can be given images of that side.
    pub fn network(&self) -> Result<Box<dyn Network>, CheckpointError> {
        let mut architecture = self.checkpoint.network().architecture();
        if let Preparation::Images(how) = &self.preparation {
            let (channels, _) = architecture.input();
            architecture = architecture.with_input(channels, how.crop as usize);
        }
        Ok(registry::open(&architecture)?)
    }

    /// Writes the model as a folder, as a network of the images that it is given.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn save(&self, folder: &Path) -> Result<(), CheckpointError> {
        let network = self.network()?;
        if network.architecture() == self.checkpoint.network().architecture() {
            let space = network.space(SpaceBounds::default())?;
            let whole = network.child(&space.intact(), "")?;
            return self
                .checkpoint
                .export_child(&whole, Program::Usual, &self.preparation, folder);
        }
        let device = Device::flex();
        let weights = self.checkpoint.weights(&device)?;
        let weights = start::taken_over(self.checkpoint.network(), &weights, network.as_ref(), &device);
        checkpoint::save(network.as_ref(), &weights, &self.preparation, folder)
    }
}

/// Refuses files of Python objects: reading one runs whatever it says.
fn refuse_pickle(path: &Path) -> Result<(), CheckpointError> {
    let refused = |file: &Path| {
        let shown = file.display();
        let beside = file.with_file_name("model.safetensors");
        Err(CheckpointError::Unsupported {
            path: file.to_owned(),
            reason: "a pickle: it holds Python objects, and reading it would run them".into(),
            hint: format!(
                "write its tensors anew where you trust it: python -c \"import torch, safetensors.torch as s; \
                 s.save_file(torch.load('{shown}', weights_only=True), '{}')\"",
                beside.display()
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
            // Nothing but such files, whatever they are called.
            (false, ..) => {
                let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
                let mut found: Vec<_> = entries.map(|e| e.path()).filter(|p| is_pickle(p)).collect();
                found.sort();
                found.first().map_or(Ok(()), |file| refused(file))
            }
            _ => Ok(()),
        };
    }
    if path.is_file() && is_pickle(path) {
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
