//! Folders of other programs: how a network's tensors are named and cut there, and the JSON files beside them.

mod config;
mod dialect;
mod resnet;
mod swin;
mod usage;
mod vit;

pub use dialect::{Dialect, Ignored};
pub(crate) use resnet::{resnet_layout, timm_architecture as timm_resnet, timm_layout};
pub(crate) use swin::swin_layout;
pub use usage::Usage;
pub(crate) use vit::vit_layout;

use offshoot_family::Architecture;
use offshoot_family::catalog::Preprocessing;
use serde_json::{Value, json};

use crate::network::{Network, NetworkError};
use crate::shards::Shards;

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

/// Whom a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// transformers where it has such a network, and timm otherwise.
    Usual,
    /// timm.
    Timm,
}

/// The layout of `network` for `program`.
///
/// # Errors
/// If the program has no such network.
pub fn of(network: &dyn Network, program: Program) -> Result<Layout, NetworkError> {
    match program {
        Program::Usual => Ok(network.layout()),
        Program::Timm => network
            .timm_layout()
            .ok_or_else(|| NetworkError::Layout(network.architecture().summary())),
    }
}

/// A network as a folder that another program opens: transformers, or timm.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Every tensor of `model.safetensors`. Parts of one of our tensors stand next to each other, in row order. A tensor of ours
    /// that is not among them is left out of the file, and is its start value when the file is read.
    pub tensors: Vec<LayoutTensor>,
    /// `config.json`.
    pub config: Value,
    /// What opens the folder: a class of transformers, or timm's network.
    pub class: &'static str,
    /// How the folder is used.
    pub usage: Usage,
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
        (Some("vit"), _) => vit::plain_architecture(config).map(Architecture::Vit),
        (Some("swin"), _) => swin::swin_architecture(config).map(Architecture::Swin),
        (Some("resnet"), _) => resnet::transformers_architecture(config).map(Architecture::ResNet),
        (Some(other), _) => {
            let known = KINDS.join(", ");
            let why = unsupported(other).map_or(String::new(), |why| format!(" ({why})"));
            Err(format!("`model_type` is `{other}`{why}; this version opens {known}"))
        }
        (None, Some(name)) => resnet::timm_architecture(name, config).map(Architecture::ResNet),
        (None, None) => Err("`model_type` is missing, and so is timm's `architecture`".into()),
    }
}

/// How a file of transformers has the tensors of `network`; of our own, where `config` is timm's.
pub(crate) fn dialect(config: &Value, network: &dyn Network, files: &Shards) -> Dialect {
    let tensors = match network.architecture() {
        Architecture::ResNet(net) if config.get("model_type").is_some() => resnet::transformers_tensors(&net),
        Architecture::ResNet(net) => resnet::timm_tensors(&net),
        _ => network.layout().tensors,
    };
    Dialect::of_layout(tensors, network, files)
}

/// Values of `model_type` that are opened.
const KINDS: [&str; 4] = ["dinov2", "vit", "swin", "resnet"];

/// What it is about another `model_type` that no network here has.
fn unsupported(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "dinov2_with_registers" => "register tokens",
        "dinov3_vit" => "register tokens and rotary positions",
        "deit" => "a distillation token",
        "swinv2" => "cosine attention with continuous positions",
        "vit_hybrid" => "a convolutional stem",
        "vit_msn" | "vit_mae" | "ijepa" | "beit" | "data2vec-vision" => "another transformer than `ViTModel`",
        "convnext" | "convnextv2" | "regnet" | "bit" => "another convolutional network than `ResNetModel`",
        _ => return None,
    })
}

/// Classes of the classifier that a `config.json` announces; 0 where its class has none.
///
/// # Errors
/// If it announces one of a size that cannot be.
fn classes(config: &Value) -> Result<usize, String> {
    let classifies = |class: &Value| class.as_str().is_some_and(|c| c.ends_with("ForImageClassification"));
    let named = config.get("architectures").and_then(Value::as_array);
    if !named.is_some_and(|classes| classes.iter().any(classifies)) {
        return Ok(0);
    }
    let classes = match config.get("id2label").and_then(Value::as_object) {
        Some(labels) => labels.len(),
        // transformers' own default is two labels.
        None => config::Config(config).size("num_labels", Some(2))?,
    };
    match classes {
        0 => Err("`num_labels` is 0, but the class has a classifier".into()),
        _ => Ok(classes),
    }
}

/// Writes the size of a classifier into a configuration. transformers makes up labels for it.
fn label(config: &mut Value, classes: usize) {
    if classes > 0 {
        config["num_labels"] = json!(classes);
    }
}

/// A linear classifier of `classes` classes as transformers names it; nothing for none.
fn classifier(classes: usize, width: usize) -> Vec<LayoutTensor> {
    let parts = [("weight", vec![classes, width]), ("bias", vec![classes])];
    let part = |(leaf, shape)| LayoutTensor {
        name: format!("classifier.{leaf}"),
        shape,
        tensor: format!("head.{leaf}"),
        rows: None,
    };
    parts.into_iter().filter(|_| classes > 0).map(part).collect()
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

/// Our fused queries, keys and values of one block as the three layers that transformers has: `theirs` names a layer there,
/// `ours` a tensor of the block.
fn separate_qkv(width: usize, theirs: impl Fn(&str) -> String, ours: impl Fn(&str) -> String) -> Vec<LayoutTensor> {
    let leaves = [("weight", vec![width, width]), ("bias", vec![width])];
    let layers = ["query", "key", "value"];
    leaves
        .into_iter()
        .flat_map(|(leaf, shape)| {
            layers
                .iter()
                .enumerate()
                .map(move |(part, layer)| (leaf, shape.clone(), part, layer))
        })
        .map(|(leaf, shape, part, layer)| LayoutTensor {
            name: format!("{}.{leaf}", theirs(layer)),
            shape,
            tensor: ours(&format!("attn.qkv.{leaf}")),
            rows: Some((part * width, (part + 1) * width, 3 * width)),
        })
        .collect()
}
