//! Run folders: made, refused when used, taken over, locked while in use.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use offshoot_family::files::write_atomic;

/// What stands in a folder from the moment that a run is made in it: other entries of [`OWN`]'s names are somebody else's without it.
const LOCK: &str = "lock";
/// What a run writes into its folder; `--overwrite` removes these and nothing else.
const OWN: [&str; 12] = [
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
    "ledger.json",
    LOCK,
];

/// Why a folder cannot hold a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It already holds a run.
    #[error("{0} already holds a run")]
    Used(PathBuf),
    /// It holds files of somebody else.
    #[error("{folder} is not empty, and no run was started in it (there is `{found}`)")]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// Something that the new run reads would go with the old one.
    #[error(
        "{input} lies where a run in {folder} keeps its own files: a new run there would remove it before it is read"
    )]
    Input {
        /// The folder.
        folder: PathBuf,
        /// What is read.
        input: PathBuf,
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
            Self::Input { input, .. } => Some(format!(
                "choose another folder for the run, or move {} out of it first",
                input.display()
            )),
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
    /// Makes a new run folder. A folder that holds a run is refused, or emptied of that run with `overwrite`; a folder in which no
    /// run was started is refused unless it is empty, and so is one where any of `inputs`, which the run reads, would be removed.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn create(path: &Path, overwrite: bool, inputs: &[PathBuf]) -> Result<Self, RunError> {
        keeps(path, inputs)?;
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
        let has = |name: &str| names.iter().any(|n| n == name);
        let (is_run, is_ours) = (has("recipe.toml"), has(LOCK));
        // A recipe that lies beside somebody's files makes no run of them.
        let foreign = names.iter().find(|n| !is_ours || !(is_run || own(n)));
        match foreign {
            Some(found) => {
                return Err(RunError::Foreign {
                    folder: path.to_owned(),
                    found: found.clone(),
                });
            }
            None if is_run && !overwrite => return Err(RunError::Used(path.to_owned())),
            None => {}
        }
        let folder = Self {
            made,
            ..Self::lock(path)?
        };
        for name in names.iter().filter(|n| own(n) && *n != LOCK) {
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
        let file = path.join(LOCK);
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
        if self.path.join("recipe.toml").exists() {
            return;
        }
        let mut is_clean = true;
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if own(&name.to_string_lossy()) && name != LOCK {
                is_clean &= remove(entry.path()).is_ok();
            }
        }
        // What cannot be removed is left of a run that never was: with its lock, the next one replaces it.
        if is_clean {
            let _ = remove(self.path.join(LOCK));
        }
        if self.made {
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

/// Whether making a run in `folder` leaves all of `inputs` where they are.
///
/// # Errors
/// [`RunError::Input`] with the first that it would remove.
pub fn keeps(folder: &Path, inputs: &[PathBuf]) -> Result<(), RunError> {
    match inputs.iter().find(|input| removes(folder, input)) {
        None => Ok(()),
        Some(input) => Err(RunError::Input {
            folder: folder.to_owned(),
            input: input.clone(),
        }),
    }
}

/// Whether emptying `folder` of a run removes `input`, or a link on the way to it.
fn removes(folder: &Path, input: &Path) -> bool {
    let (Ok(folder), Ok(input)) = (folder.canonicalize(), std::path::absolute(input)) else {
        return false;
    };
    let steps = input.ancestors().filter_map(|step| {
        let place = step.parent()?.canonicalize().ok()?;
        Some(place.join(step.file_name()?))
    });
    steps.chain(input.canonicalize()).any(|place| {
        let below = place.strip_prefix(&folder).ok();
        let entry = below.and_then(|below| below.components().next());
        entry.is_some_and(|entry| own(&entry.as_os_str().to_string_lossy()))
    })
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
        let run = RunFolder::create(&path, false, &[]).unwrap();
        assert!(
            matches!(RunFolder::create(&path, false, &[]), Err(RunError::Locked(_))),
            "in use"
        );
        run.write_text("recipe.toml", "seed = 0\n").unwrap();
        run.write_text("metrics.jsonl", "{}\n").unwrap();
        drop(run);
        assert!(matches!(RunFolder::create(&path, false, &[]), Err(RunError::Used(_))));
        assert!(RunFolder::resume(&path).is_ok());
        std::fs::write(path.join("notes.txt"), "mine").unwrap();
        drop(RunFolder::create(&path, true, &[]).unwrap());
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
            RunFolder::create(base.path(), true, &[]),
            Err(RunError::Foreign { .. })
        ));
        assert!(matches!(RunFolder::resume(base.path()), Err(RunError::NoRun(_))));
    }

    /// Names that a run has, too, are no proof of one: somebody's corpus or recipe stays.
    #[test]
    fn a_folder_without_a_lock_is_somebody_elses_whatever_its_entries_are_called() {
        for entries in [
            &["corpus", "parent"][..],
            &["recipe.toml", "corpus"],
            &["recipe.toml"],
            &["views"],
        ] {
            let base = tempfile::tempdir().unwrap();
            for name in entries {
                std::fs::create_dir(base.path().join(name)).unwrap();
            }
            for overwrite in [false, true] {
                let refused = RunFolder::create(base.path(), overwrite, &[]);
                assert!(matches!(refused, Err(RunError::Foreign { .. })), "{entries:?}");
            }
            let left = std::fs::read_dir(base.path()).unwrap().count();
            assert_eq!(left, entries.len(), "{entries:?}");
        }
        // What a killed run left before its recipe was written has the lock, and is replaced.
        let base = tempfile::tempdir().unwrap();
        drop(RunFolder::create(base.path(), false, &[]).unwrap());
        std::fs::create_dir(base.path().join("corpus")).unwrap();
        RunFolder::create(base.path(), false, &[]).unwrap().abandon();
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_the_new_run_reads_is_not_removed_with_the_old_one() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run");
        let run = RunFolder::create(&path, false, &[]).unwrap();
        run.write_text("recipe.toml", "seed = 0\n").unwrap();
        drop(run);
        for folder in ["corpus/domains", "notes"] {
            std::fs::create_dir_all(path.join(folder)).unwrap();
        }
        let refused = |input: PathBuf| {
            for overwrite in [false, true] {
                let error = RunFolder::create(&path, overwrite, &[base.path().to_owned(), input.clone()]).unwrap_err();
                assert!(matches!(error, RunError::Input { .. }), "{}: {error}", input.display());
            }
            assert!(path.join("corpus/domains").is_dir());
        };
        refused(path.join("corpus"));
        refused(path.join("corpus/domains/a/train.tokens"));
        refused(base.path().join("run/../run/./corpus"));
        #[cfg(unix)]
        {
            let link = |to: &Path, name: PathBuf| std::os::unix::fs::symlink(to, name).unwrap();
            link(&path.join("corpus"), base.path().join("to-corpus"));
            link(&path, base.path().join("to-run"));
            link(&path.join("notes"), path.join("views"));
            refused(base.path().join("to-corpus"));
            refused(base.path().join("to-run/corpus"));
            refused(path.join("views"));
        }
        let others = ["run/notes", "corpus", "run2/corpus"].map(|name| base.path().join(name));
        drop(RunFolder::create(&path, true, &others).unwrap());
        assert!(!path.join("corpus").exists() && path.join("notes").is_dir());
    }
}
