//! A family on disk: `catalog.json` names the parent, the space, the data and every child with its scorecards.
//!
//! The catalog is written last and atomically; whatever it names exists. Paths in it are relative to its folder, except for
//! the data's, which is the user's. `family`, `eval`, `pick`, `export` and `report` take any folder that holds one.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::files::write_atomic;
use crate::scorecard::{Scorecard, Split, merit};
use crate::space::{Shape, Space};

/// The format that this version writes; a reader refuses a newer one.
pub const FORMAT: u32 = 2;
/// Largest catalog that is read, in bytes: a thousand children with full linear-probe grids stay far below it.
pub const MAX_BYTES: u64 = 256 << 20;

/// A family: one parent, its children and what is known of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Format number, [`FORMAT`] when written by this version.
    pub format: u32,
    /// Version of offshoot that wrote it.
    pub version: String,
    /// The method that made the family: `elastic`, `language` or `import`.
    pub method: String,
    /// Seed of the run that made it.
    pub seed: u64,
    /// The trained weights that children are views of.
    pub parent: ParentRef,
    /// The shapes there are; none where the family is not a grid.
    pub space: Option<Space>,
    /// The data the family was trained and is measured on.
    pub data: DataRef,
    /// The metric that children are compared by: `knn@20` with labels, `agreement@20` without, `perplexity` of text.
    pub score: String,
    /// What the training that made it cost, where it was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<TrainingCost>,
    /// Every child, in the order of the space.
    pub children: Vec<Child>,
}

/// What one training run cost, as recipe, seed and data decide it: no times, which lie in `timing.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingCost {
    /// Steps.
    pub steps: u64,
    /// Tokens that the intact network learnt to predict; one that came twice counts twice.
    pub tokens: u64,
    /// Floating-point operations, two for a multiply-add: forward and backward passes of the intact network and its sub-networks.
    pub flops: f64,
}

/// Where the parent's weights are and how to know them again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParentRef {
    /// Checkpoint folder, relative to the catalog's.
    pub path: String,
    /// blake3 of its `model.safetensors`, hex.
    pub hash: String,
    /// What it is.
    pub architecture: Architecture,
}

/// The data of a family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataRef {
    /// Images.
    Images(ImagesRef),
    /// Text.
    Text(TextRef),
}

impl DataRef {
    /// Fingerprint of the content; empty where there is none to score on.
    pub fn fingerprint(&self) -> &str {
        match self {
            Self::Images(images) => &images.fingerprint,
            Self::Text(text) => &text.fingerprint,
        }
    }

    /// Seed of the split by content hash.
    pub fn split_seed(&self) -> u64 {
        match self {
            Self::Images(images) => images.split_seed,
            Self::Text(text) => text.split_seed,
        }
    }

    /// The images, if it is images.
    pub fn images(&self) -> Option<&ImagesRef> {
        match self {
            Self::Images(images) => Some(images),
            Self::Text(_) => None,
        }
    }

    /// The text, if it is text.
    pub fn text(&self) -> Option<&TextRef> {
        match self {
            Self::Images(_) => None,
            Self::Text(text) => Some(text),
        }
    }

    /// What its examples are called: what a score is measured on.
    pub fn examples(&self) -> &'static str {
        match self {
            Self::Images(_) => "images",
            Self::Text(_) => "documents",
        }
    }

    /// What costs are counted for: one image, or one token.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Images(_) => "image",
            Self::Text(_) => "token",
        }
    }

    /// Whether there is anything to score on: an imported model may have nothing.
    pub fn is_given(&self) -> bool {
        match self {
            Self::Images(images) => !images.path.is_empty(),
            Self::Text(text) => !text.corpus.is_empty(),
        }
    }
}

/// Text: where it is, how it is told apart, split and cut into windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextRef {
    /// Folder of the tokenized corpus, absolute or relative to the catalog's; empty for none.
    pub corpus: String,
    /// Where the text came from.
    pub domains: Vec<DomainRef>,
    /// Fingerprint of content, tokenizer and how documents were split.
    pub fingerprint: String,
    /// Content hash of the tokenizer, hex.
    pub tokenizer: String,
    /// Seed of the split by content hash.
    pub split_seed: u64,
    /// Share of the documents held out for choosing.
    pub val: f64,
    /// Share of the documents held out for the final number.
    pub test: f64,
    /// Tokens of one window.
    pub context: usize,
}

/// A domain of text: a name and a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainRef {
    /// Its name.
    pub name: String,
    /// Path as the user gave it, made absolute.
    pub path: String,
}

/// Images: where they are, how they are told apart, split and prepared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesRef {
    /// Path as the user gave it, made absolute.
    pub path: String,
    /// Where the test part lies, if the data has a split of its own; absolute too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_path: Option<String>,
    /// Whether its labels are used.
    pub labels: bool,
    /// Fingerprint of the content.
    pub fingerprint: String,
    /// Seed of the split by content hash.
    pub split_seed: u64,
    /// Share of the examples held out for choosing.
    pub val: f64,
    /// Share of the examples held out for the final number.
    pub test: f64,
    /// How an image becomes a child's input.
    pub preprocessing: Preprocessing,
}

/// How an image becomes a network's input: the shorter side resized (bicubic), the centre cropped, scaled to 0..1, normalised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Shorter side after resizing, in pixels.
    pub resize: u32,
    /// Side of the centre crop, in pixels.
    pub crop: u32,
    /// 1 (grey) or 3 (colour).
    pub channels: u8,
    /// Mean per channel, of values in 0..1. One value stands for every channel.
    pub mean: Vec<f32>,
    /// Standard deviation per channel, of values in 0..1. One value stands for every channel.
    pub std: Vec<f32>,
}

impl Default for Preprocessing {
    /// The usual one for ImageNet: 256, then 224.
    fn default() -> Self {
        Self {
            resize: 256,
            crop: 224,
            channels: 3,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
        }
    }
}

/// One child: what it is, where it comes from, what it costs and what was measured of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Child {
    /// Readable, unique and safe as a file name: `384x12`.
    pub id: String,
    /// A familiar name where it has one: `vit-s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its cell of the space.
    pub shape: Shape,
    /// Where its weights come from.
    pub source: ChildSource,
    /// Number of parameters.
    pub parameters: u64,
    /// Multiply-adds of one image at native size, or of one token of text on average over a full context.
    pub macs: u64,
    /// Size of the exported fp32 weights file.
    pub bytes: u64,
    /// Floating-point operations that training would have cost with this child as the only network, on the same examples; none where
    /// that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_flops_alone: Option<f64>,
    /// What was measured of it.
    #[serde(default)]
    pub scorecards: Vec<Scorecard>,
}

/// Where a child's weights come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum ChildSource {
    /// A view of the parent: its JSON file, relative to the catalog.
    View(String),
    /// A checkpoint folder of its own, relative to the catalog.
    Checkpoint(String),
}

impl Child {
    /// The scorecard of `metric` on `split`, if it was measured.
    pub fn scorecard(&self, metric: &str, split: Split) -> Option<&Scorecard> {
        self.scorecards
            .iter()
            .find(|s| s.metric == metric && s.split == Some(split))
    }

    /// The value of `metric` on `split`, if it was measured.
    pub fn score(&self, metric: &str, split: Split) -> Option<f64> {
        self.scorecard(metric, split).map(|s| s.value)
    }

    /// The value of `metric` on `split` as a number of which more is better, if it was measured.
    pub fn merit(&self, metric: &str, split: Split) -> Option<f64> {
        self.score(metric, split).map(|value| merit(metric, value))
    }

    /// Median latency of one image, or one token of text, in milliseconds, if it was measured.
    pub fn latency_ms(&self) -> Option<f64> {
        self.scorecards
            .iter()
            .find(|s| s.metric == "latency_ms")
            .map(|s| s.value)
    }

    /// Adds a scorecard in place of an older one of the same measurement.
    pub fn record(&mut self, scorecard: Scorecard) {
        self.scorecards.retain(|s| !s.same_measurement(&scorecard));
        self.scorecards.push(scorecard);
    }
}

/// Why a catalog cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// There is none.
    #[error("{0} has no catalog.json")]
    Missing(PathBuf),
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not a catalog.
    #[error("{path}: not a catalog: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the place.
        reason: String,
    },
    /// It was written by a newer version.
    #[error("{path}: catalog format {found}; this version reads up to {FORMAT}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format number.
        found: u64,
    },
    /// No child answers to a name.
    #[error("no child `{wanted}` in this family")]
    NoChild {
        /// What was asked for.
        wanted: String,
        /// What is nearest to it.
        nearest: Option<String>,
    },
}

impl CatalogError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing(path) => Some(format!(
                "a finished run has one: go on with an unfinished one by `offshoot pretrain --resume {}`; make one of a model in a \
                 folder by `offshoot import`",
                path.display()
            )),
            Self::Newer { .. } => Some("install a newer offshoot".into()),
            Self::NoChild { nearest, .. } => Some(match nearest {
                Some(id) => format!("the nearest is `{id}`; `offshoot family RUN` lists them all"),
                None => "`offshoot family RUN` lists them all".into(),
            }),
            _ => None,
        }
    }
}

impl Catalog {
    /// Reads `folder/catalog.json`.
    ///
    /// # Errors
    /// Says whether it is missing, too new, unreadable or inconsistent, and where.
    pub fn open(folder: &Path) -> Result<Self, CatalogError> {
        let path = folder.join("catalog.json");
        let io = |source| CatalogError::Io {
            path: path.clone(),
            source,
        };
        let invalid = |reason: String| CatalogError::Invalid {
            path: path.clone(),
            reason,
        };
        if !path.is_file() {
            return Err(CatalogError::Missing(folder.to_owned()));
        }
        let bytes = std::fs::metadata(&path).map_err(io)?.len();
        if bytes > MAX_BYTES {
            return Err(invalid(format!("{bytes} bytes; at most {MAX_BYTES} are read")));
        }
        let mut value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).map_err(io)?).map_err(|e| invalid(e.to_string()))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            None => return Err(invalid("no `format` number".into())),
            Some(found) if found > u64::from(FORMAT) => return Err(CatalogError::Newer { path, found }),
            // Before there was text, data was images.
            Some(1) => {
                let images = value["data"].take();
                value["data"] = serde_json::json!({ "images": images });
                value["format"] = FORMAT.into();
            }
            Some(_) => {}
        }
        let catalog: Self = serde_json::from_value(value).map_err(|e| invalid(e.to_string()))?;
        catalog.check().map_err(invalid)?;
        Ok(catalog)
    }

    /// Ids are unique and safe as file names, and every path stays inside the catalog's folder.
    fn check(&self) -> Result<(), String> {
        let inside = |text: &str| {
            !text.is_empty()
                && Path::new(text)
                    .components()
                    .all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
        };
        let mut seen = HashSet::new();
        for child in &self.children {
            let safe = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
            if child.id.is_empty() || child.id.starts_with('.') || !child.id.chars().all(safe) {
                return Err(format!("child id `{}` is not safe as a file name", child.id));
            }
            if !seen.insert(&child.id) {
                return Err(format!("child `{}` is there twice", child.id));
            }
            let (ChildSource::View(path) | ChildSource::Checkpoint(path)) = &child.source;
            if !inside(path) {
                return Err(format!("child `{}`: path `{path}` leaves the folder", child.id));
            }
        }
        Ok(())
    }

    /// Writes `folder/catalog.json`, whole or not at all.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn save(&self, folder: &Path) -> Result<(), CatalogError> {
        let path = folder.join("catalog.json");
        write_atomic(&path, |w| {
            serde_json::to_writer_pretty(&mut *w, self)?;
            w.write_all(b"\n")
        })
        .map_err(|source| CatalogError::Io { path, source })
    }

    /// The child with this id or familiar name.
    ///
    /// # Errors
    /// Names the nearest id.
    pub fn child(&self, wanted: &str) -> Result<&Child, CatalogError> {
        let known = |c: &&Child| c.id == wanted || c.name.as_deref() == Some(wanted);
        self.children.iter().find(known).ok_or_else(|| {
            let names = self.children.iter().flat_map(|c| c.name.iter().chain([&c.id]));
            let nearest = names
                .min_by_key(|name| strsim::damerau_levenshtein(name, wanted))
                .cloned();
            CatalogError::NoChild {
                wanted: wanted.into(),
                nearest,
            }
        })
    }

    /// The children that no other child beats: none has at most the cost and more of the merit. Ascending in cost. Where less of a
    /// score is better, its merit is [`Child::merit`].
    pub fn pareto(&self, cost: impl Fn(&Child) -> Option<f64>, merit: impl Fn(&Child) -> Option<f64>) -> Vec<&Child> {
        let mut measured: Vec<(f64, f64, &Child)> = self
            .children
            .iter()
            .filter_map(|c| Some((cost(c)?, merit(c)?, c)))
            .collect();
        measured.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let mut best = f64::NEG_INFINITY;
        measured.retain(|&(_, score, _)| {
            let better = score > best;
            best = best.max(score);
            better
        });
        measured.into_iter().map(|(_, _, child)| child).collect()
    }
}
