//! What went wrong, what to do about it, and whose mistake it was.

use std::io;

use anyhow::Error;
use offshoot_data::DataError;
use offshoot_eval::EvalError;
use offshoot_family::CatalogError;
use offshoot_family::ledger::LedgerError;
use offshoot_family::quantity::QuantityError;
use offshoot_family::recipe::RecipeError;
use offshoot_methods::family::FamilyError;
use offshoot_methods::specialize::cluster::ClusterError;
use offshoot_methods::specialize::costs::CostsError;
use offshoot_methods::specialize::histogram::HistogramError;
use offshoot_methods::specialize::plan::PlanError;
use offshoot_methods::train::error::LearnerError;
use offshoot_methods::train::events::EventsError;
use offshoot_methods::train::metrics::MetricsError;
use offshoot_methods::train::run::RunError;
use offshoot_methods::train::state::StateError;
use offshoot_methods::train::trainer::TrainError;
use offshoot_report::ReportError;
use offshoot_zoo::CheckpointError;
use offshoot_zoo::generate::GenerateError;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The user's input cannot be used.
    Input = 1,
    /// A mistake of ours.
    Internal = 2,
    /// Interrupted, with everything saved.
    Interrupted = 130,
}

/// An error with a hint and an exit code.
#[derive(Debug)]
pub struct Failure {
    /// What, and where.
    pub error: Error,
    /// What to do next.
    pub hint: Option<String>,
    /// Whose mistake it was.
    pub exit: Exit,
}

impl Failure {
    /// The user's mistake, with a hint.
    pub fn input(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            error: Error::msg(message.into()),
            hint: Some(hint.into()),
            exit: Exit::Input,
        }
    }

    /// What went wrong, from the whole to its cause; a cause that was told already is not told again.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for cause in self.error.chain().map(ToString::to_string) {
            if text.is_empty() {
                text = cause;
            } else if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        text
    }

    /// Whether somebody closed the pipe that was written to, as `head` does.
    pub fn is_broken_pipe(&self) -> bool {
        let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
        self.error.chain().any(|cause| cause.downcast_ref().is_some_and(broken))
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let hint = error
            .chain()
            .find_map(hint)
            .or_else(|| error.chain().find_map(system_hint));
        // A template that does not render is nothing a user can mend.
        let ours = error.chain().any(|cause| cause.is::<ReportError>());
        Self {
            error,
            hint,
            exit: if ours { Exit::Internal } else { Exit::Input },
        }
    }
}

/// The hint of an error that has one.
fn hint(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    macro_rules! of {
        ($($kind:ty),* $(,)?) => {
            $(if let Some(error) = cause.downcast_ref::<$kind>() {
                return error.hint().map(Into::into);
            })*
        };
    }
    of!(
        RecipeError,
        CatalogError,
        LedgerError,
        QuantityError,
        CheckpointError,
        DataError,
        RunError,
        StateError,
        MetricsError,
        EventsError,
        LearnerError,
        EvalError,
        GenerateError,
        PlanError,
        CostsError,
    );
    match cause.downcast_ref::<TrainError<LearnerError>>() {
        Some(TrainError::Learner(error)) => return error.hint(),
        Some(TrainError::State(error)) => return error.hint(),
        _ => {}
    }
    if let Some(error) = cause.downcast_ref::<ClusterError>() {
        return error.hint();
    }
    if let Some(error) = cause.downcast_ref::<HistogramError>() {
        return Some(error.hint());
    }
    if let Some(FamilyError::Checkpoint(error)) = cause.downcast_ref() {
        return error.hint();
    }
    None
}

/// What to do where the system refused and nothing closer to the cause knows better.
fn system_hint(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    use io::ErrorKind::{
        AlreadyExists, FileTooLarge, IsADirectory, NotADirectory, NotFound, PermissionDenied, QuotaExceeded,
        ReadOnlyFilesystem, StorageFull,
    };
    let hint = match cause.downcast_ref::<io::Error>()?.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            "make room and try again; a run that was stopped goes on by `offshoot pretrain --resume DIR`"
        }
        NotFound => "check the path, and that nothing was taken out of the folder",
        IsADirectory => "that is a folder; name a file",
        NotADirectory | AlreadyExists => "that is a file; name a folder",
        PermissionDenied | ReadOnlyFilesystem => "choose another place, or give this user the right to use this one",
        _ => return None,
    };
    Some(hint.into())
}
