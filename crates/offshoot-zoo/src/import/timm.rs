//! timm's models: what a name says, what a file's shapes say, and what our tensors are called there.

use offshoot_family::{Architecture, ResNet, Swin, Vit};
use serde_json::{Map, Value, json};

use crate::layout::{self, Dialect};
use crate::network::Network;
use crate::weight_files::WeightFiles;

/// Names that are known, for hints.
pub(super) const SUPPORTED: &str = "vit_SIZE_patchN_PIXELS and deit_SIZE_patchN_PIXELS (tiny, small, base, large, huge), \
                                    vit_SIZE_patch14_dinov2, swin_SIZE_patch4_windowN_PIXELS, resnet26, resnet50, resnet101, \
                                    resnet152, wide_resnet50_2, wide_resnet101_2 and resnet50_gn";

/// LayerScale's start value in timm's DINOv2 models.
const LAYER_SCALE: f64 = 1e-5;

/// Sizes of vision transformers: name, width, depth, heads.
const VITS: [(&str, usize, usize, usize); 5] = [
    ("tiny", 192, 12, 3),
    ("small", 384, 12, 6),
    ("base", 768, 12, 12),
    ("large", 1024, 24, 16),
    ("huge", 1280, 32, 16),
];

/// Sizes of Swin transformers: name, width, blocks of the third stage (the others have two), heads of the first stage.
const SWINS: [(&str, usize, usize, usize); 4] = [
    ("tiny", 96, 6, 3),
    ("small", 96, 18, 3),
    ("base", 128, 18, 4),
    ("large", 192, 18, 6),
];

/// Residual networks.
const RESNETS: [&str; 7] = [
    "resnet26",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet50_gn",
    "wide_resnet50_2",
    "wide_resnet101_2",
];

/// Parts of names, and what no network here has of such a model; the first that fits is told.
const UNSUPPORTED: [(&str, &str); 34] = [
    ("dinov3", "rotary positions"),
    ("_rope", "rotary positions"),
    ("_reg", "register tokens"),
    ("_clip", "a norm before the blocks"),
    ("_siglip", "no class token"),
    ("_gap", "no class token"),
    ("relpos", "relative positions in a vision transformer"),
    ("_distilled", "a distillation token"),
    ("_miil", "queries, keys and values without bias"),
    ("_r26", "a convolutional stem"),
    ("_r50", "a convolutional stem"),
    ("_r_s16", "a convolutional stem"),
    ("vit_base_resnet", "a convolutional stem"),
    ("vit_small_resnet", "a convolutional stem"),
    ("18x2", "parallel blocks"),
    ("36x1", "another LayerScale in each block"),
    ("vit_giant_patch14_dinov2", "SwiGLU"),
    ("vit_giant", "a hidden layer that is no whole number of widths"),
    ("vit_gigantic", "a hidden layer that is no whole number of widths"),
    ("vit_so400m", "a hidden layer that is no whole number of widths"),
    ("swinv2", "cosine attention with continuous positions"),
    ("swin_s3", "windows of several sizes"),
    ("resnetv2", "norms before the convolutions"),
    ("resnetrs", "a deep stem and squeeze-and-excitation"),
    ("seresne", "squeeze-and-excitation"),
    ("resnext", "grouped convolutions"),
    ("resnetaa", "anti-aliased strides"),
    ("resnetblur", "blurred strides"),
    ("resnet10", "basic blocks or a deep stem"),
    ("resnet14", "a deep stem"),
    ("resnet18", "basic blocks"),
    ("resnet34", "basic blocks"),
    ("resnet26", "a deep stem"),
    ("resnet50", "another stem or head than `resnet50`"),
];

/// Settings of timm that change nothing in a trained model.
const HARMLESS: [&str; 10] = [
    "drop_rate",
    "drop_path_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_block_rate",
    "weight_init",
    "zero_init_last",
    "dynamic_img_size",
];

/// What a timm folder says beside the name: `model_args`, each taken once, so that what is left over is not supported.
struct Args<'a> {
    args: Map<String, Value>,
    files: &'a WeightFiles,
}

impl Args<'_> {
    fn take(&mut self, key: &str) -> Option<Value> {
        self.args.remove(key).filter(|value| !value.is_null())
    }

    /// A whole number; a list of equal ones is one too.
    fn size(&mut self, key: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let number = match &value {
            Value::Array(several) if several.windows(2).all(|pair| pair[0] == pair[1]) => several.first(),
            one => Some(one),
        };
        let whole = number
            .and_then(|n| n.as_f64())
            .filter(|n| n.fract() == 0.0 && (0.0..1e9).contains(n));
        whole
            .map(|n| Some(n as usize))
            .ok_or(format!("`{key}` is {value}, not a whole number"))
    }

    fn sizes(&mut self, key: &str) -> Result<Option<Vec<usize>>, String> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let list = value.as_array().map(|list| list.iter().map(Value::as_u64).collect());
        let list: Option<Vec<u64>> = list.flatten();
        let list = list.filter(|list| list.iter().all(|&n| n < 1 << 30));
        list.map(|list| Some(list.into_iter().map(|n| n as usize).collect()))
            .ok_or(format!("`{key}` is {value}, not a list of whole numbers"))
    }

    /// Refuses what was not taken.
    fn finish(mut self) -> Result<(), String> {
        for key in HARMLESS {
            self.args.remove(key);
        }
        match self.args.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => Err(format!(
                "`model_args` has `{key}` = {value}, which no network here knows"
            )),
        }
    }

    /// Refuses another value of `key` than `only`.
    fn only(&mut self, key: &str, only: &Value) -> Result<(), String> {
        match self.take(key) {
            Some(value) if value != *only => Err(format!("`{key}` is {value}; only {only} is supported")),
            _ => Ok(()),
        }
    }

    /// Size of dimension `dim` of the tensor `name`, where it has as many.
    fn dim(&self, name: &str, dim: usize) -> Option<usize> {
        self.files.shape(name)?.get(dim).copied()
    }

    /// Classes: what is said, or what the classifier `head` has.
    fn classes(&mut self, head: &str) -> Result<usize, String> {
        let said = self.size("num_classes")?;
        Ok(said.or(self.dim(head, 0)).unwrap_or(0))
    }

    /// Channels: what is said, or what the convolution `stem` reads; colour where neither tells.
    fn channels(&mut self, stem: &str) -> Result<usize, String> {
        let said = self.size("in_chans")?;
        Ok(said.or(self.dim(stem, 1)).unwrap_or(3))
    }
}

/// Why no network here is timm's model `name`.
pub(super) fn unknown(name: &str) -> String {
    let why = UNSUPPORTED.iter().find(|(part, _)| model_of(name).contains(part));
    let why = why.map_or("is no name that is known here".to_owned(), |(_, why)| {
        format!("has {why}, which no network here has")
    });
    format!("`{name}` {why}")
}

/// Whether models of such a name mostly want values around 0.5, within 0.5.
pub(super) fn halves(name: &str) -> bool {
    let others = [".dino", ".mae", "dinov2"];
    name.starts_with("vit_") && !others.iter().any(|other| name.contains(other))
}

/// What follows a dot names the training, not the model.
fn model_of(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

/// The architecture of timm's model `name` in `files`, with what its folder's `config` says beside; none if the name is not known.
///
/// # Errors
/// Says which number makes none.
pub(super) fn architecture(name: &str, config: &Value, files: &WeightFiles) -> Option<Result<Architecture, String>> {
    let mut args = config
        .get("model_args")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    // A folder says the number of classes apart from the arguments.
    if let Some(classes) = config.get("num_classes").filter(|_| !args.contains_key("num_classes")) {
        args.insert("num_classes".into(), classes.clone());
    }
    let mut args = Args { args, files };
    let model = model_of(name);
    let found = vit(model, &mut args).map(|vit| vit.map(Architecture::Vit));
    let found = found.or_else(|| swin(model, &mut args).map(|swin| swin.map(Architecture::Swin)));
    let found = found.or_else(|| resnet(model, config, &mut args).map(|net| net.map(Architecture::ResNet)))?;
    Some(found.and_then(|found| args.finish().map(|()| found)))
}

/// `text` as a number of two to four digits.
fn pixels(text: &str) -> Option<usize> {
    let digits = (2..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// A vision transformer; none if the name is no such name.
fn vit(model: &str, args: &mut Args) -> Option<Result<Vit, String>> {
    let mut parts = model.split('_');
    let kind = parts.next().filter(|kind| ["vit", "deit"].contains(kind))?;
    let size = parts.next()?;
    let patch = parts.next()?.strip_prefix("patch")?.parse().ok()?;
    let rest = parts.next()?;
    let &(_, width, depth, heads) = VITS.iter().find(|(name, ..)| *name == size)?;
    let scaled = rest == "dinov2" && kind == "vit";
    let image = pixels(rest);
    if parts.next().is_some() || (image.is_none() && !scaled) {
        return None;
    }
    Some(vit_of([width, depth, heads, patch], image, scaled, args))
}

fn vit_of(
    [width, depth, heads, patch]: [usize; 4],
    image: Option<usize>,
    scaled: bool,
    args: &mut Args,
) -> Result<Vit, String> {
    args.only("global_pool", &"token".into())?;
    args.only("class_token", &true.into())?;
    args.only("qkv_bias", &true.into())?;
    let width = args.size("embed_dim")?.unwrap_or(width);
    let heads = args.size("num_heads")?.unwrap_or(heads);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("`embed_dim` {width} is no multiple of `num_heads` {heads}"));
    }
    let patch = args.size("patch_size")?.unwrap_or(patch);
    // One position is the class token's.
    let grid = args.dim("pos_embed", 1).map(|n| n.saturating_sub(1).isqrt());
    let image = match (args.size("img_size")?, image, grid) {
        // A name without a size, or none in the arguments of a folder whose weights were made for another: the shape tells.
        (Some(image), ..) | (None, Some(image), _) => image,
        (None, None, Some(grid)) => grid.saturating_mul(patch),
        (None, None, None) => return Err("`pos_embed` is missing, whose shape tells the image side".into()),
    };
    let mut layer_scale = if scaled { LAYER_SCALE } else { 0.0 };
    if let Some(value) = args.take("init_values") {
        layer_scale = value
            .as_f64()
            .ok_or(format!("`init_values` is {value}, not a number"))?;
    }
    let classes = args.classes("head.weight")?;
    Ok(Vit {
        width,
        depth: args.size("depth")?.unwrap_or(depth),
        head_dim: width / heads,
        mlp_ratio: args.size("mlp_ratio")?.unwrap_or(4),
        patch,
        image,
        channels: args.channels("patch_embed.proj.weight")?,
        position_offset: 0.0,
        norm_eps: 1e-6,
        layer_scale,
        // A head behind LayerScale is left out, and said to be.
        classes: if layer_scale > 0.0 { 0 } else { classes },
    })
}

/// A Swin transformer; none if the name is no such name.
fn swin(model: &str, args: &mut Args) -> Option<Result<Swin, String>> {
    let mut parts = model.split('_');
    parts.next().filter(|kind| *kind == "swin")?;
    let &(_, width, third, heads) = SWINS.iter().find(|(name, ..)| parts.clone().next() == Some(name))?;
    parts.next();
    let patch = parts.next()?.strip_prefix("patch")?.parse().ok()?;
    let window = parts.next()?.strip_prefix("window")?.parse().ok()?;
    let image = pixels(parts.next()?)?;
    if parts.next().is_some() {
        return None;
    }
    Some(swin_of(width, third, heads, [patch, window, image], args))
}

fn swin_of(
    width: usize,
    third: usize,
    heads: usize,
    [patch, window, image]: [usize; 3],
    args: &mut Args,
) -> Result<Swin, String> {
    args.only("global_pool", &"avg".into())?;
    args.only("qkv_bias", &true.into())?;
    let width = args.size("embed_dim")?.unwrap_or(width);
    let depths = args.sizes("depths")?.unwrap_or(vec![2, 2, third, 2]);
    let heads = args
        .sizes("num_heads")?
        .unwrap_or((0..4).map(|stage| heads << stage).collect());
    let first = heads.first().copied().unwrap_or(0);
    let doubles = heads
        .iter()
        .enumerate()
        .all(|(stage, &h)| Some(h) == first.checked_shl(stage as u32));
    if first == 0 || !width.is_multiple_of(first) || !doubles || heads.len() != depths.len() {
        return Err(format!(
            "`num_heads` {heads:?} must double from stage to stage of `depths` {depths:?} and divide `embed_dim` {width}"
        ));
    }
    Ok(Swin {
        width,
        depths,
        head_dim: width / first,
        window: args.size("window_size")?.unwrap_or(window),
        mlp_ratio: args.size("mlp_ratio")?.unwrap_or(4),
        patch: args.size("patch_size")?.unwrap_or(patch),
        image: args.size("img_size")?.unwrap_or(image),
        channels: args.channels("patch_embed.proj.weight")?,
        norm_eps: 1e-5,
        classes: args.classes("head.fc.weight")?,
    })
}

/// A residual network; none if the name is no such name.
fn resnet(model: &str, config: &Value, args: &mut Args) -> Option<Result<ResNet, String>> {
    RESNETS.contains(&model).then(|| resnet_of(model, config, args))
}

fn resnet_of(model: &str, config: &Value, args: &mut Args) -> Result<ResNet, String> {
    for (key, only) in [
        ("global_pool", "avg".into()),
        ("cardinality", 1.into()),
        ("output_stride", 32.into()),
        ("stem_type", "".into()),
    ] {
        args.only(key, &only)?;
    }
    for key in HARMLESS {
        args.args.remove(key);
    }
    // What nothing says, the shapes do.
    let classes = args.classes("fc.weight")?;
    let channels = args.channels("conv1.weight")?;
    let mut said = if config.is_object() { config.clone() } else { json!({}) };
    said["num_classes"] = json!(classes);
    if said.pointer("/pretrained_cfg/input_size").is_none() {
        said["pretrained_cfg"] = json!({ "input_size": [channels, 224, 224] });
    }
    let mut rest = std::mem::take(&mut args.args);
    rest.insert("in_chans".into(), json!(channels));
    said["model_args"] = Value::Object(rest);
    layout::timm_resnet(model, &said)
}

/// How a file of timm has the tensors of `network`.
pub(super) fn dialect(network: &dyn Network, files: &WeightFiles) -> Dialect {
    match network.architecture() {
        // Written as timm has it.
        Architecture::ResNet(_) => layout::dialect(&Value::Null, network, files),
        // timm halves the map where a stage begins, we where the one before ends.
        Architecture::Swin(_) => Dialect::timm(network, swin_name, files),
        _ => Dialect::timm(network, str::to_owned, files),
    }
}

fn swin_name(ours: &str) -> String {
    if let Some(rest) = ours.strip_prefix("stages.") {
        let (stage, leaf) = rest.split_once('.').unwrap_or((rest, ""));
        let stage: usize = stage.parse().unwrap_or(0);
        let stage = stage + usize::from(leaf.starts_with("downsample."));
        let leaf = leaf.replace("attn.relative_position", "attn.relative_position_bias_table");
        return format!("layers.{stage}.{leaf}");
    }
    ours.strip_prefix("head.")
        .map_or(ours.to_owned(), |leaf| format!("head.fc.{leaf}"))
}
