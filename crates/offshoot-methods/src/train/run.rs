//! Run folders: made, refused when used, taken over, locked while in use.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use offshoot_family::files::write_atomic;

/// What a run writes into its folder; `--overwrite` removes these and nothing else.
const OWN: [&str; 11] = [
    "recipe.toml",
    "metrics.jsonl",
    "timing.jsonl",
    "checkpoints",
    "parent",
    "views",
    "catalog.json",
    "report.html",
    "corpus",
    "samples.jsonl",
    "lock",
];

/// Why a folder cannot hold a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It already holds a run.
    #[error("{0} already holds a run")]
    Used(PathBuf),
    /// It holds files of somebody else.
    #[error("{folder} is not empty and holds no run (there is `{found}`)")]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// There is no run to go on with.
    #[error("{0} holds no run to resume: it has no recipe.toml")]
    NoRun(PathBuf),
    /// Another process is using it.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl RunError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Used(_) => {
                Some("replace it by `--overwrite`, or choose another folder; training goes on by `--resume`".into())
            }
            Self::Foreign { .. } => Some("choose an empty folder; `--overwrite` only ever replaces a run".into()),
            Self::NoRun(_) => Some("start one with a recipe: `offshoot pretrain RECIPE --out DIR`".into()),
            Self::Locked(_) => Some("wait for it, or choose another folder".into()),
            Self::Io { .. } => None,
        }
    }
}

/// A folder that holds one execution, locked for this process as long as this value lives.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Whether it was not there before.
    made: bool,
    _lock: File,
}

impl RunFolder {
    /// Makes a new run folder. A folder that holds a run is refused, or emptied of that run with `overwrite`; a folder that
    /// holds anything else is refused always.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, RunError> {
        let io = |source| RunError::Io {
            path: path.to_owned(),
            source,
        };
        let made = !path.exists();
        std::fs::create_dir_all(path).map_err(io)?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(io)? {
            names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        let is_run = names.iter().any(|n| n == "recipe.toml");
        let foreign = names.iter().find(|n| !own(n));
        match (is_run, foreign) {
            (true, _) if !overwrite => return Err(RunError::Used(path.to_owned())),
            (false, Some(found)) => {
                return Err(RunError::Foreign {
                    folder: path.to_owned(),
                    found: found.clone(),
                });
            }
            _ => {}
        }
        let folder = Self {
            made,
            ..Self::lock(path)?
        };
        for name in names.iter().filter(|n| own(n) && *n != "lock") {
            remove(path.join(name))?;
        }
        Ok(folder)
    }

    /// Opens the run folder at `path` to go on with it. Half-written leftovers of a killed process are removed.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn resume(path: &Path) -> Result<Self, RunError> {
        if !path.join("recipe.toml").is_file() {
            return Err(RunError::NoRun(path.to_owned()));
        }
        let folder = Self::lock(path)?;
        for place in [
            path.to_owned(),
            folder.checkpoints(),
            path.join("parent"),
            path.join("views"),
        ] {
            let Ok(entries) = std::fs::read_dir(&place) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().starts_with(".writing-") {
                    remove(entry.path())?;
                }
            }
        }
        Ok(folder)
    }

    fn lock(path: &Path) -> Result<Self, RunError> {
        let file = path.join("lock");
        let lock = File::create(&file).map_err(|source| RunError::Io {
            path: file.clone(),
            source,
        })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                made: false,
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(RunError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(RunError::Io { path: file, source }),
        }
    }

    /// Takes back what [`create`](Self::create) made, and what was prepared in it, for a run that could not start: nothing is left of
    /// a folder that was not there.
    pub fn abandon(self) {
        let nothing = !self.path.join("recipe.toml").exists();
        if nothing {
            // What cannot be removed is left of a run that never was, and the next one replaces it.
            for name in OWN {
                let path = self.path.join(name);
                if path.exists() {
                    let _ = remove(path);
                }
            }
        }
        if nothing && self.made {
            let _ = std::fs::remove_dir(&self.path);
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Writes a text file into it, whole or not at all.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write_text(&self, name: &str, text: &str) -> Result<(), RunError> {
        let path = self.path.join(name);
        write_atomic(&path, |w| w.write_all(text.as_bytes())).map_err(|source| RunError::Io { path, source })
    }
}

/// Removes a file or a whole folder.
fn remove(path: PathBuf) -> Result<(), RunError> {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(&path)
    } else {
        std::fs::remove_file(&path)
    };
    removed.map_err(|source| RunError::Io { path, source })
}

/// Whether a run writes an entry of this name.
fn own(name: &str) -> bool {
    OWN.contains(&name) || name.starts_with("events.out.tfevents.") || name.starts_with(".writing-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_folder_is_refused_and_overwritten_only_on_demand() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run");
        let run = RunFolder::create(&path, false).unwrap();
        assert!(
            matches!(RunFolder::create(&path, false), Err(RunError::Locked(_))),
            "in use"
        );
        run.write_text("recipe.toml", "seed = 0\n").unwrap();
        run.write_text("metrics.jsonl", "{}\n").unwrap();
        drop(run);
        assert!(matches!(RunFolder::create(&path, false), Err(RunError::Used(_))));
        assert!(RunFolder::resume(&path).is_ok());
        std::fs::write(path.join("notes.txt"), "mine").unwrap();
        drop(RunFolder::create(&path, true).unwrap());
        assert!(!path.join("metrics.jsonl").exists());
        assert_eq!(
            std::fs::read(path.join("notes.txt")).unwrap(),
            b"mine",
            "strangers' files stay"
        );
    }

    #[test]
    fn a_folder_of_other_files_is_never_taken() {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("thesis.tex"), "").unwrap();
        assert!(matches!(
            RunFolder::create(base.path(), true),
            Err(RunError::Foreign { .. })
        ));
        assert!(matches!(RunFolder::resume(base.path()), Err(RunError::NoRun(_))));
    }
}
