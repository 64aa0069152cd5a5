//! Hugging Face folders: how a network's tensors are named and cut there, and the JSON files beside them.

mod config;
mod swin;
mod vit;

pub(crate) use swin::swin_layout;
pub(crate) use vit::vit_layout;

use offshoot_family::Architecture;
use offshoot_family::catalog::Preprocessing;
use serde_json::{Value, json};

/// One tensor as a Hugging Face file has it: some rows of one of ours, perhaps under another shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutTensor {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// Our tensor that it is part of.
    pub tensor: String,
    /// Which rows of ours, `[start, end)`, and of how many; none for all of it.
    pub rows: Option<(usize, usize, usize)>,
}

/// A network as a Hugging Face folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Every tensor of `model.safetensors`. Parts of one of our tensors stand next to each other, in row order.
    pub tensors: Vec<LayoutTensor>,
    /// `config.json`.
    pub config: Value,
    /// The transformers class that opens the folder.
    pub class: &'static str,
}

impl Layout {
    /// Names and shapes in the file, in its order.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect()
    }

    /// Bytes of the exported fp32 weights file.
    pub fn bytes(&self) -> u64 {
        crate::safetensors::file_bytes(self.tensors.iter().map(|t| (t.name.as_str(), &t.shape[..])))
    }
}

/// The architecture that a `config.json` describes.
///
/// # Errors
/// Names the key that is missing or has a value that no network here takes.
pub fn architecture(config: &Value) -> Result<Architecture, String> {
    let kind = config
        .get("model_type")
        .and_then(Value::as_str)
        .ok_or("`model_type` is missing")?;
    match kind {
        "dinov2" => vit::vit_architecture(config).map(Architecture::Vit),
        "swin" => swin::swin_architecture(config).map(Architecture::Swin),
        other => Err(format!("`model_type` is `{other}`; this version opens dinov2 and swin")),
    }
}

/// `preprocessor_config.json` for transformers' `BitImageProcessor`.
pub fn preprocessor(preprocessing: &Preprocessing) -> Value {
    json!({
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": preprocessing.channels == 3,
        "do_resize": true,
        "size": { "shortest_edge": preprocessing.resize },
        "resample": 3,
        "do_center_crop": true,
        "crop_size": { "height": preprocessing.crop, "width": preprocessing.crop },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std
    })
}
