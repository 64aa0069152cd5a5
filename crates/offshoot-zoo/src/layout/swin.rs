//! The Swin transformer as transformers' `SwinModel`, or `SwinForImageClassification` with a classifier.

use offshoot_family::Swin;
use serde_json::{Value, json};

use super::config::Config;
use super::usage::{OF_A_MAP, Usage};
use super::{Layout, LayoutTensor, classes, classifier, label, separate_qkv};

/// The layout of transformers' `SwinModel`.
pub(crate) fn swin_layout(swin: &Swin) -> Layout {
    let prefix = if swin.classes > 0 { "swin." } else { "" };
    let mut tensors = Vec::new();
    let mut whole = |name: String, shape: Vec<usize>, tensor: String| {
        tensors.push(LayoutTensor::whole(format!("{prefix}{name}"), shape, tensor));
    };
    let (width, patch, last) = (swin.width, swin.patch, swin.feature_width());
    whole("embeddings.mask_token".into(), vec![1, 1, width], "mask_token".into());
    let kernel = vec![width, swin.channels, patch, patch];
    let projection = "embeddings.patch_embeddings.projection";
    whole(format!("{projection}.weight"), kernel, "patch_embed.proj.weight".into());
    whole(
        format!("{projection}.bias"),
        vec![width],
        "patch_embed.proj.bias".into(),
    );
    for leaf in ["weight", "bias"] {
        whole(
            format!("embeddings.norm.{leaf}"),
            vec![width],
            format!("patch_embed.norm.{leaf}"),
        );
        whole(format!("layernorm.{leaf}"), vec![last], format!("norm.{leaf}"));
    }
    for stage in 0..swin.depths.len() - 1 {
        let (theirs, ours) = (
            format!("encoder.layers.{stage}.downsample"),
            format!("stages.{stage}.downsample"),
        );
        let joined = 4 * swin.stage_width(stage);
        for leaf in ["weight", "bias"] {
            whole(
                format!("{theirs}.norm.{leaf}"),
                vec![joined],
                format!("{ours}.norm.{leaf}"),
            );
        }
        let reduction = vec![swin.stage_width(stage + 1), joined];
        whole(
            format!("{theirs}.reduction.weight"),
            reduction,
            format!("{ours}.reduction.weight"),
        );
    }
    for (stage, &depth) in swin.depths.iter().enumerate() {
        for place in 0..depth {
            tensors.extend(block(swin, prefix, stage, place));
        }
    }
    tensors.extend(classifier(swin.classes, last));
    Layout {
        tensors,
        config: config(swin),
        class: class(swin),
        usage: Usage::transformers(swin.classes, OF_A_MAP, ".mean(1)"),
    }
}

fn class(swin: &Swin) -> &'static str {
    if swin.classes > 0 {
        "SwinForImageClassification"
    } else {
        "SwinModel"
    }
}

/// One block: our fused qkv is three tensors there.
fn block(swin: &Swin, prefix: &str, stage: usize, place: usize) -> Vec<LayoutTensor> {
    let width = swin.stage_width(stage);
    let (hidden, heads) = (width * swin.mlp_ratio, width / swin.head_dim);
    let theirs = |leaf: &str| format!("{prefix}encoder.layers.{stage}.blocks.{place}.{leaf}");
    let ours = |leaf: &str| format!("stages.{stage}.blocks.{place}.{leaf}");
    let table = vec![(2 * swin.window - 1).pow(2), heads];
    let mut tensors: Vec<LayoutTensor> = [
        ("layernorm_before.weight", vec![width], "norm1.weight"),
        ("layernorm_before.bias", vec![width], "norm1.bias"),
        (
            "attention.self.relative_position_bias_table",
            table,
            "attn.relative_position",
        ),
        ("attention.output.dense.weight", vec![width, width], "attn.proj.weight"),
        ("attention.output.dense.bias", vec![width], "attn.proj.bias"),
        ("layernorm_after.weight", vec![width], "norm2.weight"),
        ("layernorm_after.bias", vec![width], "norm2.bias"),
        ("intermediate.dense.weight", vec![hidden, width], "mlp.fc1.weight"),
        ("intermediate.dense.bias", vec![hidden], "mlp.fc1.bias"),
        ("output.dense.weight", vec![width, hidden], "mlp.fc2.weight"),
        ("output.dense.bias", vec![width], "mlp.fc2.bias"),
    ]
    .into_iter()
    .map(|(name, shape, tensor)| LayoutTensor::whole(theirs(name), shape, ours(tensor)))
    .collect();
    tensors.extend(separate_qkv(
        width,
        |layer| theirs(&format!("attention.self.{layer}")),
        ours,
    ));
    tensors
}

fn config(swin: &Swin) -> Value {
    let heads: Vec<usize> = (0..swin.depths.len())
        .map(|stage| swin.stage_width(stage) / swin.head_dim)
        .collect();
    let mut config = json!({
        "architectures": [class(swin)],
        "model_type": "swin",
        "embed_dim": swin.width,
        "hidden_size": swin.feature_width(),
        "depths": swin.depths,
        "num_heads": heads,
        "window_size": swin.window,
        "mlp_ratio": swin.mlp_ratio,
        "image_size": swin.image,
        "patch_size": swin.patch,
        "num_channels": swin.channels,
        "layer_norm_eps": swin.norm_eps,
        "hidden_act": "gelu",
        "qkv_bias": true,
        "use_absolute_embeddings": false,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "initializer_range": 0.02,
        "encoder_stride": swin.stride(),
        "dtype": "float32",
        "torch_dtype": "float32"
    });
    label(&mut config, swin.classes);
    config
}

/// The numbers that a `config.json` of `model_type` `swin` describes.
///
/// # Errors
/// Names the key that is missing or has a value that no network here takes.
pub(super) fn swin_architecture(config: &Value) -> Result<Swin, String> {
    let config = Config(config);
    config.only(&[
        ("hidden_act", json!("gelu")),
        ("qkv_bias", json!(true)),
        ("use_absolute_embeddings", json!(false)),
    ])?;
    let (width, heads) = (config.size("embed_dim", Some(96))?, config.sizes("num_heads")?);
    let depths = config.sizes("depths")?;
    let first = heads.first().copied().unwrap_or(0);
    if first == 0 || !width.is_multiple_of(first) {
        return Err(format!(
            "`embed_dim` {width} is no multiple of the first of `num_heads` {heads:?}"
        ));
    }
    let doubled = heads
        .iter()
        .enumerate()
        .all(|(stage, &h)| Some(h) == first.checked_shl(stage as u32));
    if heads.len() != depths.len() || !doubled {
        return Err(format!(
            "`num_heads` {heads:?} does not double from stage to stage of `depths` {depths:?}"
        ));
    }
    let swin = Swin {
        width,
        depths,
        head_dim: width / first,
        window: config.size("window_size", Some(7))?,
        mlp_ratio: config.size("mlp_ratio", Some(4))?,
        patch: config.size("patch_size", Some(4))?,
        image: config.size("image_size", Some(224))?,
        channels: config.size("num_channels", Some(3))?,
        norm_eps: config.number("layer_norm_eps", 1e-5)?,
        classes: classes(config.0)?,
    };
    swin.check().map_err(|e| e.to_string())?;
    Ok(swin)
}
