//! Why a learner of any method cannot start or go on, and what to do about it.

use offshoot_data::DataError;
use offshoot_eval::EvalError;
use offshoot_zoo::generate::GenerateError;
use offshoot_zoo::materialize::ViewError;
use offshoot_zoo::network::NetworkError;

use crate::elastic::recipe::RecipeProblem;
use crate::elastic::sampling::SamplingError;

/// Why pre-training cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LearnerError {
    /// The recipe's numbers do not work.
    #[error(transparent)]
    Recipe(#[from] RecipeProblem),
    /// The network cannot be made or cut.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The space cannot be sampled.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A view does not fit.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The images or the text cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The corpus of a run is not what it was written as.
    #[error(transparent)]
    Corpus(DataError),
    /// A sub-network cannot be measured.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A sample cannot be made.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A checkpoint is not one of this run.
    #[error("the checkpoint does not belong to this run: {0}")]
    State(String),
    /// Training diverged.
    #[error("{steps} steps in a row had no finite loss or gradient; the last was step {last}")]
    Diverged {
        /// How many.
        steps: u64,
        /// The last of them.
        last: u64,
    },
}

impl LearnerError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Data(error) => error.hint().map(Into::into),
            Self::Corpus(_) => {
                Some("put the files of the corpus back as they were, or make it again and start a new run".into())
            }
            Self::Sampling(error) => error.hint(),
            Self::Eval(error) => error.hint(),
            Self::Generate(error) => error.hint(),
            Self::Diverged { .. } => {
                Some("lower `optim.lr`, or warm up for longer, and resume from an earlier checkpoint".into())
            }
            _ => None,
        }
    }
}
