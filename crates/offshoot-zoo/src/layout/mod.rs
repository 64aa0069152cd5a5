//! Folders of other programs: how a network's tensors are named and cut there, and the JSON files beside them.

pub(crate) mod config;
mod decoder;
mod dialect;
mod projected;
mod resnet;
mod swin;
mod usage;
mod vit;

pub(crate) use decoder::decoder_layout;
pub use dialect::{Dialect, Ignored};
pub(crate) use projected::projected_layout;
pub(crate) use resnet::{resnet_layout, timm_architecture as timm_resnet, timm_layout};
pub(crate) use swin::swin_layout;
pub use usage::Usage;
pub(crate) use vit::vit_layout;

use offshoot_family::Architecture;
use offshoot_family::catalog::Preprocessing;
use serde_json::{Value, json};

use crate::checkpoint::Preparation;
use crate::gguf;
use crate::network::{Network, NetworkError};
use crate::weight_files::WeightFiles;

/// In which order the elements of one of our matrices lie in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Ours: (out, in), row by row.
    #[default]
    Same,
    /// (in, out): GPT-2's `Conv1D`.
    Transposed,
    /// Within each of so many heads the two channels that rotary positions turn together stand next to each other: GGUF's `llama`.
    Pairs(usize),
}

impl Order {
    /// Our elements of a matrix of the file's `shape` as the file has them.
    fn to_file(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match (self, shape) {
            (Self::Transposed, &[inputs, outputs]) => transposed(&values, outputs, inputs),
            (Self::Pairs(heads), &[rows, ..]) => gguf::pairs(&values, rows, heads),
            _ => values,
        }
    }

    /// The elements of a matrix of the file's `shape` as we have them.
    fn of_file(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match (self, shape) {
            (Self::Transposed, &[inputs, outputs]) => transposed(&values, inputs, outputs),
            (Self::Pairs(heads), &[rows, ..]) => gguf::halves(&values, rows, heads),
            _ => values,
        }
    }
}

/// `[columns, rows]` from `[rows, columns]`, in tiles that fit the cache.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut turned = vec![0.0; values.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_column in (0..columns).step_by(TILE) {
            for row in first_row..rows.min(first_row + TILE) {
                for column in first_column..columns.min(first_column + TILE) {
                    turned[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    turned
}

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
    /// In which order their elements lie.
    pub order: Order,
}

impl LayoutTensor {
    /// All of our `tensor` under a name and shape of the file's.
    pub fn whole(name: impl Into<String>, shape: Vec<usize>, tensor: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            shape,
            tensor: tensor.into(),
            rows: None,
            order: Order::Same,
        }
    }

    /// Its elements in the file from all of our tensor's.
    pub fn to_file(&self, values: &[f32]) -> Vec<f32> {
        let part = match self.rows {
            None => values,
            Some((start, end, of)) => {
                let row = values.len() / of;
                &values[start * row..end * row]
            }
        };
        self.order.to_file(part.to_vec(), &self.shape)
    }

    /// Its part of our tensor's elements from those of the file.
    pub fn of_file(&self, values: Vec<f32>) -> Vec<f32> {
        self.order.of_file(values, &self.shape)
    }
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

    /// `config.json` for examples prepared in this way; where it has a place for that, it says so.
    pub fn config(&self, preparation: &Preparation) -> Value {
        let mut config = self.config.clone();
        let preprocessing = match preparation {
            Preparation::Images(preprocessing) => preprocessing,
            Preparation::Text(tokenizer) => {
                config["bos_token_id"] = json!(tokenizer.bos);
                config["eos_token_id"] = tokenizer.ends();
                return config;
            }
        };
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
        (Some("gpt2"), _) => decoder::gpt2_architecture(config).map(Architecture::Decoder),
        (Some("llama"), _) => decoder::llama_architecture(config).map(Architecture::Decoder),
        (Some(projected::KIND), _) => projected::architecture(config).map(Architecture::Projected),
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
pub(crate) fn dialect(config: &Value, network: &dyn Network, files: &WeightFiles) -> Dialect {
    let tensors = match network.architecture() {
        Architecture::ResNet(net) if config.get("model_type").is_some() => resnet::transformers_tensors(&net),
        Architecture::ResNet(net) => resnet::timm_tensors(&net),
        _ => network.layout().tensors,
    };
    Dialect::of_layout(tensors, network, files)
}

/// Values of `model_type` that are opened.
const KINDS: [&str; 6] = ["dinov2", "vit", "swin", "resnet", "gpt2", "llama"];

/// What it is about another `model_type` that no network here has.
fn unsupported(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "dinov2_with_registers" => "register tokens",
        "dinov3_vit" => "register tokens and rotary positions",
        "deit" => "a distillation token",
        "swinv2" => "cosine attention with continuous positions",
        "vit_hybrid" => "a convolutional stem",
        "vit_msn" | "vit_mae" | "ijepa" | "beit" | "data2vec-vision" => "another transformer than `ViTModel`",
        "mistral" | "gemma2" | "gemma3" | "gemma3_text" => "sliding windows of attention",
        "qwen2" => "biases of queries, keys and values",
        "qwen3" | "olmo2" => "norms of queries and keys",
        "gemma" => "norms and embeddings that are scaled otherwise",
        "gpt_neox" | "gptj" | "phi" => "attention and feed-forward layer side by side",
        "opt" | "bloom" | "gpt_neo" | "mixtral" => "another decoder than GPT-2 and Llama",
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
    let part = |(leaf, shape)| LayoutTensor::whole(format!("classifier.{leaf}"), shape, format!("head.{leaf}"));
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
            order: Order::Same,
        })
        .collect()
}
