//! Folders of other programs: how a network's tensors are named and cut there, and the JSON files beside them.

mod config;
mod resnet;
mod swin;
mod vit;

pub(crate) use resnet::resnet_layout;
pub(crate) use swin::swin_layout;
pub(crate) use vit::vit_layout;

use offshoot_family::Architecture;
use offshoot_family::catalog::Preprocessing;
use serde_json::{Value, json};

/// One tensor as a file has it: some rows of one of ours, perhaps under another shape.
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

/// A network as a folder that another program opens: transformers, or timm.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Every tensor of `model.safetensors`. Parts of one of our tensors stand next to each other, in row order. A tensor of ours
    /// that is not among them is left out of the file, and is its start value when the file is read.
    pub tensors: Vec<LayoutTensor>,
    /// `config.json`.
    pub config: Value,
    /// What opens the folder: a class of transformers, or a call.
    pub class: &'static str,
}

impl Layout {
    /// Names and shapes in the file, in its order.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect()
    }

    /// `config.json` for images prepared in this way; where it has a place for that, it says so.
    pub fn config(&self, preprocessing: &Preprocessing) -> Value {
        let mut config = self.config.clone();
        if let Some(Value::Object(timm)) = config.get_mut("pretrained_cfg") {
            timm.insert("mean".into(), json!(preprocessing.mean));
            timm.insert("std".into(), json!(preprocessing.std));
            let share = f64::from(preprocessing.crop) / f64::from(preprocessing.resize.max(1));
            timm.insert("crop_pct".into(), json!(share));
        }
        config
    }

    /// Bytes of the exported fp32 weights file.
    pub fn bytes(&self) -> u64 {
        crate::safetensors::file_bytes(self.tensors.iter().map(|t| (t.name.as_str(), &t.shape[..])))
    }
}

/// The architecture that a `config.json` describes: transformers' by its `model_type`, timm's by its `architecture`.
///
/// # Errors
/// Names the key that is missing or has a value that no network here takes.
pub fn architecture(config: &Value) -> Result<Architecture, String> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    match (text("model_type"), text("architecture")) {
        (Some("dinov2"), _) => vit::vit_architecture(config).map(Architecture::Vit),
        (Some("swin"), _) => swin::swin_architecture(config).map(Architecture::Swin),
        (Some("resnet"), _) => resnet::transformers_architecture(config).map(Architecture::ResNet),
        (Some(other), _) => Err(format!(
            "`model_type` is `{other}`; this version opens dinov2, swin and resnet"
        )),
        (None, Some(name)) => resnet::timm_architecture(name, config).map(Architecture::ResNet),
        (None, None) => Err("`model_type` is missing, and so is timm's `architecture`".into()),
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
