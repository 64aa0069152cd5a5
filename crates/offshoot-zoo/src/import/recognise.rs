//! What a file of tensors looks like to somebody who has to name it.

use super::timm;
use crate::weight_files::WeightFiles;

/// Why a file without a configuration cannot be opened, and what its tensors look like.
pub(super) fn unnamed(files: &WeightFiles) -> (String, String) {
    let reason = "no config.json says which model it is".to_owned();
    let hint = match guess(files) {
        Some((looks, Some(name))) => format!("it looks like {looks}: try `--arch {name}`"),
        Some((looks, None)) => format!(
            "it looks like {looks}, which has no name at timm: put a config.json beside it, as timm writes one, with its numbers \
             in `model_args`"
        ),
        None => format!("say which by `--arch NAME`; supported are {}", timm::SUPPORTED),
    };
    (reason, hint)
}

/// What it looks like, and a name for that, if there is one.
fn guess(files: &WeightFiles) -> Option<(String, Option<String>)> {
    let dim = |name: &str, dim: usize| files.shape(name).and_then(|shape| shape.get(dim).copied());
    // Blocks are numbered from 0 without a gap.
    let count = |name: &dyn Fn(usize) -> String| (0..).take_while(|&i| files.shape(&name(i)).is_some()).count();
    if files.shape("pos_embed").is_some() && files.shape("blocks.0.norm1.weight").is_some() {
        let (width, patch) = (dim("patch_embed.proj.weight", 0)?, dim("patch_embed.proj.weight", 2)?);
        let depth = count(&|i| format!("blocks.{i}.norm1.weight"));
        let scaled = files.shape("blocks.0.ls1.gamma").is_some();
        let image = dim("pos_embed", 1)?.saturating_sub(1).isqrt().saturating_mul(patch);
        let size = match (width, depth) {
            (192, 12) => "tiny",
            (384, 12) => "small",
            (768, 12) => "base",
            (1024, 24) => "large",
            (1280, 32) => "huge",
            _ => "",
        };
        let end = if scaled { "dinov2".into() } else { image.to_string() };
        let scale = if scaled { "with" } else { "without" };
        return Some((
            format!("a vision transformer of width {width} and depth {depth} {scale} LayerScale"),
            (!size.is_empty()).then(|| format!("vit_{size}_patch{patch}_{end}")),
        ));
    }
    if files.shape("layers.0.blocks.0.norm1.weight").is_some() {
        let (width, patch) = (dim("patch_embed.proj.weight", 0)?, dim("patch_embed.proj.weight", 2)?);
        let third = count(&|i| format!("layers.2.blocks.{i}.norm1.weight"));
        let side = dim("layers.0.blocks.0.attn.relative_position_bias_table", 0)?.isqrt();
        let size = match (width, third) {
            (96, 6) => "tiny",
            (96, 18) => "small",
            (128, 18) => "base",
            (192, 18) => "large",
            _ => "",
        };
        let window = side.div_ceil(2);
        let pixels = if window == 12 { 384 } else { 224 };
        return Some((
            format!("a Swin transformer of width {width} with {third} blocks in its third stage"),
            (!size.is_empty()).then(|| format!("swin_{size}_patch{patch}_window{window}_{pixels}")),
        ));
    }
    if files.shape("layer1.0.conv3.weight").is_some() {
        let depths: Vec<usize> = (1..=4)
            .map(|stage| count(&|i| format!("layer{stage}.{i}.conv1.weight")))
            .collect();
        let width = dim("layer1.0.conv1.weight", 0)?;
        let batch = files.shape("bn1.running_mean").is_some();
        let name = match (&depths[..], width, batch) {
            ([3, 4, 6, 3], 64, false) => Some("resnet50_gn"),
            ([2, 2, 2, 2], 64, true) => Some("resnet26"),
            ([3, 4, 6, 3], 64, true) => Some("resnet50"),
            ([3, 4, 23, 3], 64, true) => Some("resnet101"),
            ([3, 8, 36, 3], 64, true) => Some("resnet152"),
            ([3, 4, 6, 3], 128, true) => Some("wide_resnet50_2"),
            ([3, 4, 23, 3], 128, true) => Some("wide_resnet101_2"),
            _ => None,
        };
        return Some((
            format!("a residual network of width {width} with {depths:?} blocks in its stages"),
            name.map(str::to_owned),
        ));
    }
    None
}
