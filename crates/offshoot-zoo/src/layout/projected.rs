//! Parents that only this project has: projected networks, under our own names.

use offshoot_family::Projected;
use serde_json::{Value, json};

use super::usage::Usage;
use super::{Layout, LayoutTensor};
use crate::spec::TensorSpec;

/// Their `model_type`. No other program has one of this name, so that none opens a parent as if it were one of its experts.
pub(super) const KIND: &str = "offshoot_projected";

/// The layout of a projected network of these tensors: as they are in memory.
pub(crate) fn projected_layout(projected: &Projected, specs: &[TensorSpec]) -> Layout {
    let tensor = |spec: &TensorSpec| LayoutTensor::whole(&spec.name, spec.shape(), &spec.name);
    Layout {
        tensors: specs.iter().map(tensor).collect(),
        config: json!({ "model_type": KIND, "projected": projected, "dtype": "float32" }),
        class: "a projected parent of offshoot",
        usage: Usage::decoder(),
    }
}

/// The numbers that a `config.json` of ours describes.
///
/// # Errors
/// Says what of it is missing or does not fit.
pub(super) fn architecture(config: &Value) -> Result<Projected, String> {
    let described = config.get("projected").cloned().ok_or("`projected` is missing")?;
    let projected: Projected = serde_json::from_value(described).map_err(|e| format!("`projected`: {e}"))?;
    projected.check().map_err(|e| e.to_string())?;
    Ok(projected)
}
