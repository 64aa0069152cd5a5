//! Training checkpoints: everything that a step depends on, in one folder a step, whole or not there at all.

use std::io;
use std::path::{Path, PathBuf};

use offshoot_family::files::{content_hash, write_atomic};
use offshoot_zoo::safetensors::{self, SafetensorsError, SafetensorsFile};
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{Weight, Weights};
use serde::{Deserialize, Serialize};

/// Format that this version writes; a reader refuses a newer one.
const FORMAT: u32 = 1;
const TENSORS: &str = "state.safetensors";
const FACTS: &str = "state.json";

/// What a learner needs to go on: tensors by name, and the counts that are no tensors.
#[derive(Clone, Debug, Default)]
pub struct TrainState {
    /// Weights, averages and moments.
    pub tensors: Weights,
    /// Updates of each optimizer moment, and whatever else is counted.
    pub counts: std::collections::BTreeMap<String, u64>,
}

impl TrainState {
    /// Adds weights under a role: `student`, `teacher`.
    pub fn put(&mut self, role: &str, weights: &Weights) {
        for (name, weight) in weights.iter() {
            self.tensors.insert(format!("{role}.{name}"), weight.clone());
        }
    }

    /// The weights that were put in under a role.
    pub fn role(&self, role: &str) -> Weights {
        let prefix = format!("{role}.");
        let mut weights = Weights::new();
        for (name, weight) in self.tensors.iter() {
            if let Some(name) = name.strip_prefix(&prefix) {
                weights.insert(name, weight.clone());
            }
        }
        weights
    }
}

/// What a checkpoint says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFacts {
    format: u32,
    /// Steps that are done.
    pub step: u64,
    /// Version of offshoot that wrote it.
    pub version: String,
    /// CPU or GPU, threads and kernel path: elsewhere, bytes may differ.
    pub machine: String,
    /// Hash of the resolved recipe it belongs to.
    pub recipe: String,
    tensors: String,
    counts: std::collections::BTreeMap<String, u64>,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its tensors are not what its facts say.
    #[error("{path}: the checkpoint is damaged: {reason}")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It belongs to another recipe.
    #[error("{path}: the checkpoint was written under another recipe than the run's recipe.toml")]
    OtherRecipe {
        /// The folder.
        path: PathBuf,
    },
    /// The tensors cannot be written or read.
    #[error(transparent)]
    Tensors(#[from] SafetensorsError),
}

impl StateError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Damaged { path, .. } => Some(format!(
                "remove {} to go on from the checkpoint before it",
                path.display()
            )),
            Self::OtherRecipe { .. } => {
                Some("put recipe.toml back as it was, or start a run of its own with the changed recipe".into())
            }
            _ => None,
        }
    }
}

/// The checkpoints of a run, oldest first: steps done and folder.
pub fn list(checkpoints: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(checkpoints) else {
        return Vec::new();
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// Writes the checkpoint of `step` under a temporary name, renames it, and removes all but the newest `keep`.
///
/// # Errors
/// If a file cannot be written; what was there before stays.
pub fn save(
    checkpoints: &Path,
    step: u64,
    state: &TrainState,
    recipe: &str,
    machine: &str,
    keep: usize,
) -> Result<(), StateError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| StateError::Io { path, source }
    };
    let target = checkpoints.join(format!("step-{step:08}"));
    let temporary = checkpoints.join(format!(".writing-{step:08}"));
    if temporary.exists() {
        std::fs::remove_dir_all(&temporary).map_err(io(&temporary))?;
    }
    std::fs::create_dir_all(&temporary).map_err(io(&temporary))?;
    let tensors: Vec<(String, Vec<usize>)> = state
        .tensors
        .iter()
        .map(|(name, w)| (name.to_owned(), w.shape().to_vec()))
        .collect();
    let path = temporary.join(TENSORS);
    safetensors::write(&path, &tensors, |i| {
        let weight = state.tensors.get(&tensors[i].0).expect("the name is from the same map");
        Ok::<_, SafetensorsError>(weight.values())
    })?;
    let facts = StateFacts {
        format: FORMAT,
        step,
        version: env!("CARGO_PKG_VERSION").into(),
        machine: machine.into(),
        recipe: recipe.into(),
        tensors: content_hash(&path).map_err(io(&path))?,
        counts: state.counts.clone(),
    };
    let path = temporary.join(FACTS);
    write_atomic(&path, |w| Ok(serde_json::to_writer_pretty(w, &facts)?)).map_err(io(&path))?;
    if target.exists() {
        std::fs::remove_dir_all(&target).map_err(io(&target))?;
    }
    std::fs::rename(&temporary, &target).map_err(io(&target))?;
    prune(checkpoints, keep)
}

/// Removes all checkpoints but the newest `keep` (at least one).
///
/// # Errors
/// If one cannot be removed.
pub fn prune(checkpoints: &Path, keep: usize) -> Result<(), StateError> {
    let all = list(checkpoints);
    for (_, old) in &all[..all.len().saturating_sub(keep.max(1))] {
        std::fs::remove_dir_all(old).map_err(|source| StateError::Io {
            path: old.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Reads the checkpoint in `folder`, which must belong to the recipe of hash `recipe`.
///
/// # Errors
/// If it is damaged, too new, of another recipe, or cannot be read.
pub fn load(folder: &Path, recipe: &str, device: &Device) -> Result<(StateFacts, TrainState), StateError> {
    let damaged = |reason: String| StateError::Damaged {
        path: folder.to_owned(),
        reason,
    };
    let path = folder.join(FACTS);
    let text = std::fs::read(&path).map_err(|source| StateError::Io { path, source })?;
    let facts: StateFacts = serde_json::from_slice(&text).map_err(|e| damaged(format!("{FACTS}: {e}")))?;
    if facts.format > FORMAT {
        return Err(damaged(format!(
            "format {} is newer than this version reads",
            facts.format
        )));
    }
    if facts.recipe != recipe {
        return Err(StateError::OtherRecipe {
            path: folder.to_owned(),
        });
    }
    let path = folder.join(TENSORS);
    let hash = content_hash(&path).map_err(|source| StateError::Io {
        path: path.clone(),
        source,
    })?;
    if hash != facts.tensors {
        return Err(damaged(format!("{TENSORS} is not the file that was written with it")));
    }
    let file = SafetensorsFile::open(&path)?;
    let mut tensors = Weights::new();
    for name in file.names() {
        let shape = file.shape(&name).unwrap_or_default().to_vec();
        tensors.insert(&name, Weight::from_values(file.read(&name)?, shape, device));
    }
    let counts = facts.counts.clone();
    Ok((facts, TrainState { tensors, counts }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(value: f32) -> TrainState {
        let mut state = TrainState::default();
        state.tensors.insert(
            "w",
            Weight::from_values(vec![value, -0.0, f32::MIN_POSITIVE], vec![3], &Device::flex()),
        );
        state.counts.insert("w".into(), 7);
        state
    }

    #[test]
    fn the_last_k_are_kept_and_come_back_bit_for_bit() {
        let base = tempfile::tempdir().unwrap();
        for step in 1..=5 {
            save(base.path(), step, &state(step as f32), "r", "m", 2).unwrap();
        }
        let all = list(base.path());
        assert_eq!(all.iter().map(|(s, _)| *s).collect::<Vec<_>>(), [4, 5]);
        let (facts, loaded) = load(&all[1].1, "r", &Device::flex()).unwrap();
        assert_eq!((facts.step, facts.machine.as_str()), (5, "m"));
        let bits: Vec<u32> = loaded
            .tensors
            .get("w")
            .unwrap()
            .values()
            .iter()
            .map(|v| v.to_bits())
            .collect();
        assert_eq!(bits, [5f32.to_bits(), (-0f32).to_bits(), f32::MIN_POSITIVE.to_bits()]);
        assert_eq!(loaded.counts["w"], 7);
    }

    #[test]
    fn truncated_swapped_and_foreign_checkpoints_are_refused() {
        let base = tempfile::tempdir().unwrap();
        save(base.path(), 1, &state(1.0), "r", "m", 9).unwrap();
        save(base.path(), 2, &state(2.0), "r", "m", 9).unwrap();
        let (one, two) = (base.path().join("step-00000001"), base.path().join("step-00000002"));
        assert!(matches!(
            load(&one, "other", &Device::flex()),
            Err(StateError::OtherRecipe { .. })
        ));
        std::fs::copy(two.join(TENSORS), one.join(TENSORS)).unwrap();
        assert!(
            matches!(load(&one, "r", &Device::flex()), Err(StateError::Damaged { .. })),
            "swapped"
        );
        let bytes = std::fs::read(two.join(TENSORS)).unwrap();
        std::fs::write(two.join(TENSORS), &bytes[..bytes.len() - 1]).unwrap();
        let error = load(&two, "r", &Device::flex()).unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }) && error.hint().unwrap().contains("step-00000002"));
        std::fs::write(two.join(FACTS), "{").unwrap();
        assert!(matches!(
            load(&two, "r", &Device::flex()),
            Err(StateError::Damaged { .. })
        ));
    }
}
