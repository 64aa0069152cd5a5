//! What a family cost, phase by phase, on disk: `ledger.json` beside the catalog.
//!
//! A catalog holds only what recipe, seed and data decide, so that the same run gives the same bytes. Seconds differ from run to run; they
//! are here, with tokens and operations. Comparisons at equal cost add up the ledgers of all that a model needed: its parent's, its
//! teacher's, its clustering ([`Ledger::inherit`]).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::write_atomic;

/// The format that this version writes; a reader refuses a newer one.
pub const FORMAT: u32 = 1;
/// Largest ledger that is read, in bytes: ten thousand experts stay far below it.
pub const MAX_BYTES: u64 = 16 << 20;
/// The file's name in a run folder.
pub const FILE: &str = "ledger.json";

/// What was worked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Embedding and clustering of generic text.
    Clustering,
    /// Training before a domain is known: pretraining on generic text, a teacher's included.
    Generic,
    /// Training for one domain: on resampled generic text, and on its own.
    Specialization,
    /// Use: forward passes alone, as those that score or that ask a teacher.
    Inference,
}

impl Phase {
    /// All of them, in the order of time.
    pub const ALL: [Self; 4] = [Self::Clustering, Self::Generic, Self::Specialization, Self::Inference];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clustering => "clustering",
            Self::Generic => "generic",
            Self::Specialization => "specialization",
            Self::Inference => "inference",
        }
    }
}

/// What one piece of work cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// What it was worked for.
    pub phase: Phase,
    /// On what, in words that tell it apart: `parent`, `expert 3`, `teacher/parent`.
    pub what: String,
    /// Tokens that were read or predicted; one that came twice counts twice.
    pub tokens: u64,
    /// Floating-point operations, two for a multiply-add.
    pub flops: f64,
    /// Seconds of work, without reading data and saving; none where nobody timed it. Of training, the mean of the logged steps times their
    /// number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The machine that took them; empty where nobody timed it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine: String,
}

/// The sum of some pieces of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Tokens.
    pub tokens: u64,
    /// Floating-point operations.
    pub flops: f64,
    /// Seconds; none if one of the pieces was not timed.
    pub seconds: Option<f64>,
}

/// All that a family cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Format number, [`FORMAT`] when written by this version.
    pub format: u32,
    /// Pieces of work, in the order of time.
    pub spent: Vec<Spent>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            format: FORMAT,
            spent: Vec::new(),
        }
    }
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not a ledger.
    #[error("{path}: not a ledger of costs: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the place.
        reason: String,
    },
    /// It was written by a newer version.
    #[error("{path}: ledger format {found}; this version reads up to {FORMAT}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format number.
        found: u64,
    },
}

impl LedgerError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Newer { .. } => Some("install a newer offshoot".into()),
            Self::Invalid { .. } => {
                Some("remove the file to go on without what it says; no model depends on it".into())
            }
            Self::Io { .. } => None,
        }
    }
}

impl Ledger {
    /// Reads `folder/ledger.json`; an empty ledger where there is none.
    ///
    /// # Errors
    /// Says whether it is too new, unreadable, or holds what cannot be a cost, and where.
    pub fn open(folder: &Path) -> Result<Self, LedgerError> {
        let path = folder.join(FILE);
        let io = |source| LedgerError::Io {
            path: path.clone(),
            source,
        };
        let invalid = |reason: String| LedgerError::Invalid {
            path: path.clone(),
            reason,
        };
        if !path.is_file() {
            return Ok(Self::default());
        }
        let bytes = std::fs::metadata(&path).map_err(io)?.len();
        if bytes > MAX_BYTES {
            return Err(invalid(format!("{bytes} bytes; at most {MAX_BYTES} are read")));
        }
        let value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).map_err(io)?).map_err(|e| invalid(e.to_string()))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            None => return Err(invalid("no `format` number".into())),
            Some(found) if found > u64::from(FORMAT) => return Err(LedgerError::Newer { path, found }),
            Some(_) => {}
        }
        let ledger: Self = serde_json::from_value(value).map_err(|e| invalid(e.to_string()))?;
        let odd = |value: f64| !value.is_finite() || value < 0.0;
        if let Some(spent) = ledger.spent.iter().find(|s| odd(s.flops) || s.seconds.is_some_and(odd)) {
            return Err(invalid(format!("`{}` has a cost that is below zero", spent.what)));
        }
        Ok(ledger)
    }

    /// Writes `folder/ledger.json`, whole or not at all.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn save(&self, folder: &Path) -> Result<(), LedgerError> {
        let path = folder.join(FILE);
        write_atomic(&path, |w| {
            serde_json::to_writer_pretty(&mut *w, self)?;
            w.write_all(b"\n")
        })
        .map_err(|source| LedgerError::Io { path, source })
    }

    /// Enters a piece of work, in place of the same one if it is there.
    pub fn record(&mut self, spent: Spent) {
        let same = |old: &&mut Spent| old.phase == spent.phase && old.what == spent.what;
        match self.spent.iter_mut().find(same) {
            Some(old) => *old = spent,
            None => self.spent.push(spent),
        }
    }

    /// Enters all of another family's work, each piece under `whose/`: what a child was tuned from, a teacher, clusters.
    pub fn inherit(&mut self, whose: &str, other: &Self) {
        for spent in &other.spent {
            self.record(Spent {
                what: format!("{whose}/{}", spent.what),
                ..spent.clone()
            });
        }
    }

    /// What was spent in these phases together.
    pub fn sum(&self, phases: &[Phase]) -> Sum {
        let mut sum = Sum {
            seconds: Some(0.0),
            ..Sum::default()
        };
        for spent in self.spent.iter().filter(|s| phases.contains(&s.phase)) {
            sum.tokens = sum.tokens.saturating_add(spent.tokens);
            sum.flops += spent.flops;
            sum.seconds = sum.seconds.zip(spent.seconds).map(|(sum, more)| sum + more);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(phase: Phase, what: &str, tokens: u64, seconds: Option<f64>) -> Spent {
        Spent {
            phase,
            what: what.into(),
            tokens,
            flops: tokens as f64 * 10.0,
            seconds,
            machine: String::new(),
        }
    }

    #[test]
    fn a_teachers_work_is_counted_with_the_students() {
        let mut teacher = Ledger::default();
        teacher.record(spent(Phase::Generic, "parent", 100, Some(2.0)));
        let mut student = Ledger::default();
        student.record(spent(Phase::Generic, "parent", 30, Some(1.0)));
        student.inherit("teacher", &teacher);
        student.record(spent(Phase::Specialization, "law", 5, None));
        // The same again is not another one.
        student.record(spent(Phase::Generic, "parent", 40, Some(1.5)));
        let generic = student.sum(&[Phase::Generic]);
        assert_eq!(
            (generic.tokens, generic.flops, generic.seconds),
            (140, 1400.0, Some(3.5))
        );
        let all = student.sum(&Phase::ALL);
        assert_eq!((all.tokens, all.seconds), (145, None), "one piece was not timed");
        assert_eq!(student.spent[1].what, "teacher/parent");
        assert_eq!(student.sum(&[Phase::Inference]).seconds, Some(0.0));
    }

    #[test]
    fn a_ledger_reads_back_and_odd_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Ledger::open(folder.path()).unwrap(), Ledger::default());
        let mut ledger = Ledger::default();
        for phase in Phase::ALL {
            ledger.record(spent(phase, phase.name(), 7, Some(0.5)));
        }
        ledger.save(folder.path()).unwrap();
        assert_eq!(Ledger::open(folder.path()).unwrap(), ledger);
        let entry =
            |more: &str| format!(r#"{{"format": 1, "spent": [{{"phase": "generic", "what": "parent", {more}}}]}}"#);
        for (text, part) in [
            ("{".to_owned(), "not a ledger"),
            ("{}".into(), "no `format` number"),
            (r#"{"format": 2, "spent": [], "more": 1}"#.into(), "ledger format 2"),
            (r#"{"format": 1, "spent": [], "more": 1}"#.into(), "more"),
            (entry(r#""tokens": 1"#), "flops"),
            (entry(r#""tokens": -1, "flops": 1"#), "-1"),
            (entry(r#""tokens": 1, "flops": -1"#), "`parent` has a cost"),
            (
                entry(r#""tokens": 1, "flops": 1, "seconds": -1"#),
                "`parent` has a cost",
            ),
        ] {
            std::fs::write(folder.path().join(FILE), &text).unwrap();
            let error = Ledger::open(folder.path()).unwrap_err();
            assert!(
                error.to_string().contains(part) && error.to_string().contains(FILE),
                "{text}: {error}"
            );
            assert!(error.hint().is_some());
        }
    }
}
