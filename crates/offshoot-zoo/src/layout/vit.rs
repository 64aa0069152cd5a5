//! The vision transformer as transformers' `Dinov2Model`, or without LayerScale as `ViTModel` and `ViTForImageClassification`.

use offshoot_family::Vit;
use serde_json::{Value, json};

use super::config::Config;
use super::usage::{OF_TOKENS, Usage};
use super::{Layout, LayoutTensor, classes, classifier, label, separate_qkv};

/// The layout of transformers' `Dinov2Model`; without LayerScale, of `ViTModel`, or of `ViTForImageClassification` with a
/// classifier.
pub(crate) fn vit_layout(vit: &Vit) -> Layout {
    let width = vit.width;
    let scaled = vit.layer_scale > 0.0;
    let prefix = if vit.classes > 0 { "vit." } else { "" };
    let mut tensors = Vec::new();
    let mut whole = |name: &str, shape: Vec<usize>, tensor: &str| {
        tensors.push(LayoutTensor::whole(format!("{prefix}{name}"), shape, tensor));
    };
    let kernel = vec![width, vit.channels, vit.patch, vit.patch];
    let mask_token = if scaled { vec![1, width] } else { vec![1, 1, width] };
    whole("embeddings.cls_token", vec![1, 1, width], "cls_token");
    whole("embeddings.mask_token", mask_token, "mask_token");
    let positions = vec![1, 1 + vit.patches(), width];
    whole("embeddings.position_embeddings", positions, "pos_embed");
    let projection = "embeddings.patch_embeddings.projection";
    whole(&format!("{projection}.weight"), kernel, "patch_embed.proj.weight");
    whole(&format!("{projection}.bias"), vec![width], "patch_embed.proj.bias");
    whole("layernorm.weight", vec![width], "norm.weight");
    whole("layernorm.bias", vec![width], "norm.bias");
    for i in 0..vit.depth {
        tensors.extend(vit_block(vit, prefix, i));
    }
    tensors.extend(classifier(vit.classes, width));
    Layout {
        tensors,
        config: if scaled { vit_config(vit) } else { plain_config(vit) },
        class: class(vit),
        usage: Usage::transformers(vit.classes, OF_TOKENS, "[:, 0]"),
    }
}

fn class(vit: &Vit) -> &'static str {
    match (vit.layer_scale > 0.0, vit.classes > 0) {
        (true, _) => "Dinov2Model",
        (false, false) => "ViTModel",
        (false, true) => "ViTForImageClassification",
    }
}

/// Block `i` of a ViT: our fused qkv is three tensors there.
fn vit_block(vit: &Vit, prefix: &str, i: usize) -> Vec<LayoutTensor> {
    let (width, hidden) = (vit.width, vit.width * vit.mlp_ratio);
    let theirs = |leaf: &str| format!("{prefix}encoder.layer.{i}.{leaf}");
    let ours = |leaf: &str| format!("blocks.{i}.{leaf}");
    let scaled = vit.layer_scale > 0.0;
    // What the two classes call the same layer.
    let [norm1, norm2, fc1, fc2] = if scaled {
        ["norm1", "norm2", "mlp.fc1", "mlp.fc2"]
    } else {
        [
            "layernorm_before",
            "layernorm_after",
            "intermediate.dense",
            "output.dense",
        ]
    };
    let parts: [(&str, &str, &str, Vec<usize>); 12] = [
        (norm1, ".weight", "norm1.weight", vec![width]),
        (norm1, ".bias", "norm1.bias", vec![width]),
        (
            "attention.output.dense",
            ".weight",
            "attn.proj.weight",
            vec![width, width],
        ),
        ("attention.output.dense", ".bias", "attn.proj.bias", vec![width]),
        ("layer_scale1", ".lambda1", "ls1.gamma", vec![width]),
        (norm2, ".weight", "norm2.weight", vec![width]),
        (norm2, ".bias", "norm2.bias", vec![width]),
        (fc1, ".weight", "mlp.fc1.weight", vec![hidden, width]),
        (fc1, ".bias", "mlp.fc1.bias", vec![hidden]),
        (fc2, ".weight", "mlp.fc2.weight", vec![width, hidden]),
        (fc2, ".bias", "mlp.fc2.bias", vec![width]),
        ("layer_scale2", ".lambda1", "ls2.gamma", vec![width]),
    ];
    let mut tensors: Vec<LayoutTensor> = parts
        .into_iter()
        .filter(|(_, leaf, ..)| scaled || *leaf != ".lambda1")
        .map(|(layer, leaf, tensor, shape)| LayoutTensor::whole(theirs(&format!("{layer}{leaf}")), shape, ours(tensor)))
        .collect();
    tensors.extend(separate_qkv(
        width,
        |layer| theirs(&format!("attention.attention.{layer}")),
        ours,
    ));
    tensors
}

/// `config.json` of a vision transformer without LayerScale.
fn plain_config(vit: &Vit) -> Value {
    let mut config = json!({
        "architectures": [class(vit)],
        "model_type": "vit",
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads(),
        "intermediate_size": vit.width * vit.mlp_ratio,
        "image_size": vit.image,
        "patch_size": vit.patch,
        "num_channels": vit.channels,
        "layer_norm_eps": vit.norm_eps,
        "hidden_act": "gelu",
        "qkv_bias": true,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "encoder_stride": vit.patch,
        "dtype": "float32",
        "torch_dtype": "float32"
    });
    label(&mut config, vit.classes);
    config
}

fn vit_config(vit: &Vit) -> Value {
    json!({
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": vit.width,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads(),
        "mlp_ratio": vit.mlp_ratio,
        "image_size": vit.image,
        "patch_size": vit.patch,
        "num_channels": vit.channels,
        "layer_norm_eps": vit.norm_eps,
        "hidden_act": "gelu",
        "qkv_bias": true,
        "use_swiglu_ffn": false,
        "use_mask_token": true,
        "layerscale_value": vit.layer_scale,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "initializer_range": 0.02,
        "apply_layernorm": true,
        "reshape_hidden_states": true,
        "dtype": "float32",
        "torch_dtype": "float32"
    })
}

/// The numbers that a `config.json` of `model_type` `dinov2` describes.
///
/// # Errors
/// Names the key that is missing or has a value that no network here takes.
pub(super) fn vit_architecture(config: &Value) -> Result<Vit, String> {
    let config = Config(config);
    config.only(&[
        ("hidden_act", json!("gelu")),
        ("use_swiglu_ffn", json!(false)),
        ("qkv_bias", json!(true)),
    ])?;
    let (width, heads) = (
        config.size("hidden_size", Some(768))?,
        config.size("num_attention_heads", Some(12))?,
    );
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!(
            "`hidden_size` {width} is no multiple of `num_attention_heads` {heads}"
        ));
    }
    let vit = Vit {
        width,
        depth: config.size("num_hidden_layers", Some(12))?,
        head_dim: width / heads,
        mlp_ratio: config.size("mlp_ratio", Some(4))?,
        patch: config.size("patch_size", Some(14))?,
        image: config.size("image_size", Some(224))?,
        channels: config.size("num_channels", Some(3))?,
        position_offset: 0.0,
        norm_eps: config.number("layer_norm_eps", 1e-6)?,
        layer_scale: config.number("layerscale_value", 1.0)?,
        classes: 0,
    };
    vit.check().map_err(|e| e.to_string())?;
    Ok(vit)
}

/// The numbers that a `config.json` of `model_type` `vit` describes.
///
/// # Errors
/// Names the key that is missing or has a value that no network here takes.
pub(super) fn plain_architecture(config: &Value) -> Result<Vit, String> {
    let config = Config(config);
    config.only(&[("hidden_act", json!("gelu")), ("qkv_bias", json!(true))])?;
    let (width, heads) = (
        config.size("hidden_size", Some(768))?,
        config.size("num_attention_heads", Some(12))?,
    );
    let hidden = config.size("intermediate_size", Some(3072))?;
    for (key, number, name, of) in [
        ("hidden_size", width, "num_attention_heads", heads),
        ("intermediate_size", hidden, "hidden_size", width),
    ] {
        if of == 0 || !number.is_multiple_of(of) {
            return Err(format!("`{key}` {number} is no multiple of `{name}` {of}"));
        }
    }
    let vit = Vit {
        width,
        depth: config.size("num_hidden_layers", Some(12))?,
        head_dim: width / heads,
        mlp_ratio: hidden / width,
        patch: config.size("patch_size", Some(16))?,
        image: config.size("image_size", Some(224))?,
        channels: config.size("num_channels", Some(3))?,
        position_offset: 0.0,
        norm_eps: config.number("layer_norm_eps", 1e-12)?,
        layer_scale: 0.0,
        classes: classes(config.0)?,
    };
    vit.check().map_err(|e| e.to_string())?;
    Ok(vit)
}
