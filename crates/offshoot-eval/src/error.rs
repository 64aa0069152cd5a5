//! Why a child cannot be measured, and what to do about it.

use offshoot_data::DataError;

/// Why a child cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The images cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// There is too little to measure on.
    #[error("{what}: {found}, at least {needed} needed")]
    TooFew {
        /// What there is too little of.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much there must be.
        needed: usize,
    },
    /// Two sizes that must agree do not.
    #[error("{what}: {found}, expected {expected}")]
    Size {
        /// What was counted.
        what: &'static str,
        /// What was found.
        found: usize,
        /// What it should have been.
        expected: usize,
    },
    /// A feature is infinite or not a number.
    #[error("{what}: the features of image {row} are not finite")]
    NotFinite {
        /// Which features.
        what: &'static str,
        /// Row of the first image concerned.
        row: usize,
    },
    /// The loss of a text is infinite or not a number.
    #[error("the loss of document {document} is not finite")]
    Loss {
        /// Number of the document of its domain, from 0: one of those that were scored together.
        document: u64,
    },
    /// The tokenizer is another model's.
    #[error("document {document} has token {token}, beyond the model's vocabulary of {vocabulary}")]
    Token {
        /// Number of the document of its domain, from 0.
        document: u64,
        /// The first such token of it.
        token: u32,
        /// Tokens that the model knows.
        vocabulary: usize,
    },
    /// A label is no class.
    #[error("{what}: image {row} has label {label}, but there are {classes} classes")]
    Label {
        /// Which labels.
        what: &'static str,
        /// Row of the first image concerned.
        row: usize,
        /// Its label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// A setting makes no measurement.
    #[error("{name} = {value}: {reason}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it and what would do.
        reason: String,
    },
    /// The weights are not those of the network.
    #[error("weights: {0}")]
    Weights(String),
    /// The device did not give its results back.
    #[error("device: {0}")]
    Device(String),
}

impl EvalError {
    pub(crate) fn setting(name: &'static str, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Setting {
            name,
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Data(error) => error.hint().map(str::to_owned),
            Self::TooFew { .. } => Some("hold out a larger share of the data, or give more of it".into()),
            Self::NotFinite { .. } => {
                Some("the child's weights or inputs are damaged, or its training diverged: check its loss".into())
            }
            Self::Loss { .. } => {
                Some("the model's weights are damaged, or its training diverged: check its loss".into())
            }
            Self::Token { .. } => Some(
                "the tokenizer belongs to another model: put the model's own tokenizer.json into its folder".into(),
            ),
            Self::Label { .. } => Some("count the classes over all parts of the data".into()),
            _ => None,
        }
    }
}

/// Errors unless `found` is `expected`.
pub(crate) fn same(what: &'static str, found: usize, expected: usize) -> Result<(), EvalError> {
    if found == expected {
        Ok(())
    } else {
        Err(EvalError::Size { what, found, expected })
    }
}

/// Errors if there are fewer than `needed`.
pub(crate) fn enough(what: &'static str, found: usize, needed: usize) -> Result<(), EvalError> {
    if found >= needed {
        Ok(())
    } else {
        Err(EvalError::TooFew { what, found, needed })
    }
}
