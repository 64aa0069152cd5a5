//! The vision transformer as transformers' `Dinov2Model`.

use offshoot_family::Vit;
use serde_json::{Value, json};

use super::config::Config;
use super::{Layout, LayoutTensor};

/// The layout of transformers' `Dinov2Model`.
pub(crate) fn vit_layout(vit: &Vit) -> Layout {
    let width = vit.width;
    let mut tensors = Vec::new();
    let mut whole = |name: String, shape: Vec<usize>, tensor: &str| {
        tensors.push(LayoutTensor {
            name,
            shape,
            tensor: tensor.into(),
            rows: None,
        });
    };
    let kernel = vec![width, vit.channels, vit.patch, vit.patch];
    whole("embeddings.cls_token".into(), vec![1, 1, width], "cls_token");
    whole("embeddings.mask_token".into(), vec![1, width], "mask_token");
    whole(
        "embeddings.position_embeddings".into(),
        vec![1, 1 + vit.patches(), width],
        "pos_embed",
    );
    whole(
        "embeddings.patch_embeddings.projection.weight".into(),
        kernel,
        "patch_embed.proj.weight",
    );
    whole(
        "embeddings.patch_embeddings.projection.bias".into(),
        vec![width],
        "patch_embed.proj.bias",
    );
    whole("layernorm.weight".into(), vec![width], "norm.weight");
    whole("layernorm.bias".into(), vec![width], "norm.bias");
    for i in 0..vit.depth {
        tensors.extend(vit_block(vit, i));
    }
    Layout {
        tensors,
        config: vit_config(vit),
        class: "Dinov2Model",
    }
}

/// Block `i` of a ViT: our fused qkv is three tensors there.
fn vit_block(vit: &Vit, i: usize) -> Vec<LayoutTensor> {
    let (width, hidden) = (vit.width, vit.width * vit.mlp_ratio);
    let theirs = |leaf: &str| format!("encoder.layer.{i}.{leaf}");
    let ours = |leaf: &str| format!("blocks.{i}.{leaf}");
    let mut tensors: Vec<LayoutTensor> = [
        ("norm1.weight", vec![width], "norm1.weight"),
        ("norm1.bias", vec![width], "norm1.bias"),
        ("attention.output.dense.weight", vec![width, width], "attn.proj.weight"),
        ("attention.output.dense.bias", vec![width], "attn.proj.bias"),
        ("layer_scale1.lambda1", vec![width], "ls1.gamma"),
        ("norm2.weight", vec![width], "norm2.weight"),
        ("norm2.bias", vec![width], "norm2.bias"),
        ("mlp.fc1.weight", vec![hidden, width], "mlp.fc1.weight"),
        ("mlp.fc1.bias", vec![hidden], "mlp.fc1.bias"),
        ("mlp.fc2.weight", vec![width, hidden], "mlp.fc2.weight"),
        ("mlp.fc2.bias", vec![width], "mlp.fc2.bias"),
        ("layer_scale2.lambda1", vec![width], "ls2.gamma"),
    ]
    .into_iter()
    .map(|(name, shape, tensor)| LayoutTensor {
        name: theirs(name),
        shape,
        tensor: ours(tensor),
        rows: None,
    })
    .collect();
    for (leaf, shape) in [("weight", vec![width, width]), ("bias", vec![width])] {
        for (part, name) in ["query", "key", "value"].into_iter().enumerate() {
            tensors.push(LayoutTensor {
                name: theirs(&format!("attention.attention.{name}.{leaf}")),
                shape: shape.clone(),
                tensor: ours(&format!("attn.qkv.{leaf}")),
                rows: Some((part * width, (part + 1) * width, 3 * width)),
            });
        }
    }
    tensors
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
