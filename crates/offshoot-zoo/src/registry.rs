//! Which code runs which architecture: the one place that tells architectures apart.

use offshoot_family::Architecture;

use crate::network::{Network, NetworkError};
use crate::vit::VitNetwork;

/// The network of an architecture.
///
/// # Errors
/// If its numbers do not make one.
pub fn open(architecture: &Architecture) -> Result<Box<dyn Network>, NetworkError> {
    match architecture {
        Architecture::Vit(vit) => {
            vit.check()?;
            Ok(Box::new(VitNetwork::new(vit.clone())))
        }
        other => Err(NetworkError::Space(format!(
            "this version has no network for {other:?}"
        ))),
    }
}
