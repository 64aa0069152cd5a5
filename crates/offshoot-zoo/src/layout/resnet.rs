//! The residual network as transformers' `ResNetModel`, and as timm's `resnet`.

use offshoot_family::{ResNet, ResNetNorm, StrideOn};
use serde_json::{Value, json};

use super::config::Config;
use super::usage::{OF_A_MAP, Usage};
use super::{Layout, LayoutTensor, classes, label};

/// Epsilon of every norm of timm and transformers unless they are told otherwise.
const EPS: f64 = 1e-5;
/// Groups of timm's GroupNorm unless it is told otherwise.
const GROUPS: usize = 32;

/// The layout of transformers' `ResNetModel`, or that of timm's `resnet` for a network that transformers does not have. The mask
/// token is in neither: both refuse or pass over what they do not know.
pub(crate) fn resnet_layout(net: &ResNet) -> Layout {
    match net.check_transformers() {
        Ok(()) => Layout {
            tensors: transformers_tensors(net),
            config: transformers_config(net),
            class: class(net),
            usage: Usage::transformers(net.classes, OF_A_MAP, ".mean((2, 3))"),
        },
        Err(_) => timm(net),
    }
}

/// The layout of timm's `resnet`; none for a network that it does not have.
pub(crate) fn timm_layout(net: &ResNet) -> Option<Layout> {
    (net.stride_on == StrideOn::Second && net.stem == 64).then(|| timm(net))
}

fn timm(net: &ResNet) -> Layout {
    Layout {
        tensors: timm_tensors(net),
        config: timm_config(net),
        class: "ResNet",
        usage: Usage::timm(net.classes, unusual_norm(net).as_deref()),
    }
}

/// The tensors of a network under timm's names.
pub(super) fn timm_tensors(net: &ResNet) -> Vec<LayoutTensor> {
    named(net, &Names::timm())
}

/// The class of transformers.
fn class(net: &ResNet) -> &'static str {
    if net.classes > 0 {
        "ResNetForImageClassification"
    } else {
        "ResNetModel"
    }
}

/// The tensors of a network under transformers' names, whichever convolution strides.
pub(super) fn transformers_tensors(net: &ResNet) -> Vec<LayoutTensor> {
    named(net, &Names::transformers(net.classes))
}

/// All tensors of a network as `names` has them.
fn named(net: &ResNet, names: &Names) -> Vec<LayoutTensor> {
    let mut tensors = Tensors {
        batch: net.norm == ResNetNorm::Batch,
        tensors: Vec::new(),
    };
    tensors.kernel(&names.stem.0, "stem.conv", [net.stem, net.channels, 7]);
    tensors.norm(&names.stem.1, "stem.norm", net.stem);
    let mut inputs = net.stem;
    for (stage, &depth) in net.depths.iter().enumerate() {
        let (width, outputs) = (net.stage_width(stage), net.stage_outputs(stage));
        for block in 0..depth {
            let ours = format!("stages.{stage}.blocks.{block}");
            let theirs = (names.block)(stage, block);
            let mut layer = |which: usize, sizes: [usize; 3]| {
                let (conv, norm) = (names.layer)(which);
                let own = which + 1;
                tensors.kernel(&format!("{theirs}.{conv}"), &format!("{ours}.conv{own}"), sizes);
                tensors.norm(&format!("{theirs}.{norm}"), &format!("{ours}.norm{own}"), sizes[0]);
            };
            layer(0, [width, inputs, 1]);
            layer(1, [width, width, 3]);
            layer(2, [outputs, width, 1]);
            if block == 0 && net.has_shortcut(stage) {
                let (conv, norm) = &names.shortcut;
                let sizes = [outputs, inputs, 1];
                tensors.kernel(&format!("{theirs}.{conv}"), &format!("{ours}.shortcut.conv"), sizes);
                tensors.norm(&format!("{theirs}.{norm}"), &format!("{ours}.shortcut.norm"), outputs);
            }
            inputs = outputs;
        }
    }
    if net.classes > 0 {
        for (leaf, shape) in [("weight", vec![net.classes, inputs]), ("bias", vec![net.classes])] {
            tensors.whole(format!("{}.{leaf}", names.head), shape, format!("head.{leaf}"));
        }
    }
    tensors.tensors
}

/// How one program names the parts of a residual network.
struct Names {
    /// Convolution and norm of the stem.
    stem: (String, String),
    /// A block, by stage and place in it.
    block: Box<dyn Fn(usize, usize) -> String>,
    /// Convolution and norm of a block, counted from 0.
    layer: fn(usize) -> (String, String),
    /// Convolution and norm of a block's shortcut.
    shortcut: (&'static str, &'static str),
    /// The classifier.
    head: &'static str,
}

impl Names {
    fn timm() -> Self {
        Self {
            stem: ("conv1".into(), "bn1".into()),
            block: Box::new(|stage, block| format!("layer{}.{block}", stage + 1)),
            layer: |which| (format!("conv{}", which + 1), format!("bn{}", which + 1)),
            shortcut: ("downsample.0", "downsample.1"),
            head: "fc",
        }
    }

    /// With a classifier the network itself is one level down.
    fn transformers(classes: usize) -> Self {
        let root = if classes > 0 { "resnet." } else { "" };
        let stem = |leaf: &str| format!("{root}embedder.embedder.{leaf}");
        Self {
            stem: (stem("convolution"), stem("normalization")),
            block: Box::new(move |stage, block| format!("{root}encoder.stages.{stage}.layers.{block}")),
            layer: |which| {
                let part = |leaf: &str| format!("layer.{which}.{leaf}");
                (part("convolution"), part("normalization"))
            },
            shortcut: ("shortcut.convolution", "shortcut.normalization"),
            head: "classifier.1",
        }
    }
}

/// The tensors of a layout, as they are put together.
struct Tensors {
    batch: bool,
    tensors: Vec<LayoutTensor>,
}

impl Tensors {
    fn whole(&mut self, name: String, shape: Vec<usize>, tensor: String) {
        self.tensors.push(LayoutTensor::whole(name, shape, tensor));
    }

    fn kernel(&mut self, theirs: &str, ours: &str, [out, into, side]: [usize; 3]) {
        let shape = vec![out, into, side, side];
        self.whole(format!("{theirs}.weight"), shape, format!("{ours}.weight"));
    }

    /// BatchNorm's `num_batches_tracked` is left out: it is no part of what the network computes, and PyTorch takes it for 0 in a
    /// file that, like every safetensors file, does not say by which version of the module it was written.
    fn norm(&mut self, theirs: &str, ours: &str, channels: usize) {
        let leaves = [
            ("weight", "weight"),
            ("bias", "bias"),
            ("running_mean", "mean"),
            ("running_var", "variance"),
        ];
        let count = if self.batch { 4 } else { 2 };
        for (their, our) in leaves.into_iter().take(count) {
            self.whole(format!("{theirs}.{their}"), vec![channels], format!("{ours}.{our}"));
        }
    }
}

/// Whether timm's own norm has the network's numbers.
fn usual_norm(net: &ResNet) -> bool {
    net.norm_eps == EPS && (net.norm == ResNetNorm::Batch || net.groups == GROUPS)
}

/// The norm in Python, with its numbers, where they are not timm's own: a folder cannot tell timm.
fn unusual_norm(net: &ResNet) -> Option<String> {
    let (groups, eps) = (net.groups, net.norm_eps);
    let call = match net.norm {
        ResNetNorm::Group => format!("timm.layers.GroupNorm, num_groups={groups}, eps={eps:?}"),
        ResNetNorm::Batch => format!("torch.nn.BatchNorm2d, eps={eps:?}"),
    };
    (!usual_norm(net)).then_some(call)
}

fn timm_config(net: &ResNet) -> Value {
    let planes: Vec<usize> = (0..net.depths.len())
        .map(|stage| net.stage_outputs(stage) / 4)
        .collect();
    let mut config = json!({
        "architecture": "resnet50",
        "num_classes": net.classes,
        "num_features": net.feature_width(),
        "model_args": {
            "layers": net.depths,
            "channels": planes,
            "base_width": base_width(net.width, planes[0]),
            "norm_layer": match net.norm {
                ResNetNorm::Group => "groupnorm",
                ResNetNorm::Batch => "batchnorm2d",
            },
            "in_chans": net.channels,
        },
        "pretrained_cfg": {
            "input_size": [net.channels, net.image, net.image],
            "fixed_input_size": false,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": vec![0.5; net.channels],
            "std": vec![0.5; net.channels],
            "num_classes": net.classes,
            "pool_size": [net.image / net.stride(), net.image / net.stride()],
            "first_conv": "conv1",
            "classifier": "fc",
        }
    });
    // timm passes over these; whoever opens the folder must know them.
    if !usual_norm(net) {
        config["norm_eps"] = json!(net.norm_eps);
        if net.norm == ResNetNorm::Group {
            config["norm_groups"] = json!(net.groups);
        }
    }
    config
}

/// timm's `base_width` for `width` channels where `planes` are its own: it computes `floor(planes * base_width / 64)`, in every
/// stage with twice the planes. A little more than the quotient where that is no whole number, so that no rounding falls below.
fn base_width(width: usize, planes: usize) -> Value {
    if (64 * width).is_multiple_of(planes) {
        json!(64 * width / planes)
    } else {
        json!((width as f64 + 1.0 / 64.0) * 64.0 / planes as f64)
    }
}

fn transformers_config(net: &ResNet) -> Value {
    let outputs: Vec<usize> = (0..net.depths.len()).map(|stage| net.stage_outputs(stage)).collect();
    let mut config = json!({
        "architectures": [class(net)],
        "model_type": "resnet",
        "num_channels": net.channels,
        "embedding_size": net.stem,
        "hidden_sizes": outputs,
        "depths": net.depths,
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": false,
        "downsample_in_bottleneck": net.stride_on == StrideOn::First,
        // transformers has no use for it: images of any side go in.
        "image_size": net.image,
        "dtype": "float32",
        "torch_dtype": "float32"
    });
    label(&mut config, net.classes);
    config
}

/// The list of numbers at `key`, or `default` where there is none.
fn sizes(config: Config<'_>, key: &str, default: &[usize]) -> Result<Vec<usize>, String> {
    match config.0.get(key) {
        None => Ok(default.to_vec()),
        Some(_) => config.sizes(key),
    }
}

/// The first of numbers of which each must be twice the one before.
fn doubling(key: &str, numbers: &[usize]) -> Result<usize, String> {
    let doubled = numbers.windows(2).all(|pair| pair[0].checked_mul(2) == Some(pair[1]));
    match numbers.first() {
        Some(&first) if doubled => Ok(first),
        _ => Err(format!(
            "`{key}` is {numbers:?}; only numbers that double are supported"
        )),
    }
}

/// A network that was read, if its numbers make one.
fn checked(net: ResNet) -> Result<ResNet, String> {
    net.check().map_err(|e| e.to_string())?;
    Ok(net)
}

/// The numbers that timm's `config.json` for its network `name` describes.
///
/// # Errors
/// Names the key that is missing or has a value that no network here takes.
pub(crate) fn timm_architecture(name: &str, config: &Value) -> Result<ResNet, String> {
    let (depths, wide, norm) = match name {
        "resnet26" => ([2, 2, 2, 2], 64, "batchnorm2d"),
        "resnet50" => ([3, 4, 6, 3], 64, "batchnorm2d"),
        "resnet101" => ([3, 4, 23, 3], 64, "batchnorm2d"),
        "resnet152" => ([3, 8, 36, 3], 64, "batchnorm2d"),
        "resnet50_gn" => ([3, 4, 6, 3], 64, "groupnorm"),
        "wide_resnet50_2" => ([3, 4, 6, 3], 128, "batchnorm2d"),
        "wide_resnet101_2" => ([3, 4, 23, 3], 128, "batchnorm2d"),
        other => {
            return Err(format!(
                "`architecture` is `{other}`; this version opens timm's resnet26, resnet50, resnet101, resnet152, resnet50_gn, \
                 wide_resnet50_2 and wide_resnet101_2"
            ));
        }
    };
    let part = |key: &str| Config(config.get(key).unwrap_or(&Value::Null));
    let (top, args, trained) = (Config(config), part("model_args"), part("pretrained_cfg"));
    let known = ["layers", "channels", "base_width", "norm_layer", "in_chans"];
    let given = args.0.as_object();
    if let Some(other) = given.and_then(|given| given.keys().find(|key| !known.contains(&key.as_str()))) {
        return Err(format!(
            "`model_args.{other}` is not supported; {} are",
            known.join(", ")
        ));
    }
    let planes = doubling("model_args.channels", &sizes(args, "channels", &[64, 128, 256, 512])?)?;
    let base = args.number("base_width", f64::from(wide))?;
    let norm = match args.0.get("norm_layer").map_or(Some(norm), Value::as_str) {
        Some("groupnorm") => ResNetNorm::Group,
        Some("batchnorm2d" | "batchnorm") => ResNetNorm::Batch,
        _ => {
            return Err(format!(
                "`norm_layer` is {}; groupnorm and batchnorm2d are supported",
                args.0["norm_layer"]
            ));
        }
    };
    let input = sizes(trained, "input_size", &[3, 224, 224])?;
    let [channels, image, _] = input[..] else {
        return Err(format!("`input_size` is {input:?}, not channels, height and width"));
    };
    checked(ResNet {
        // Saturates: a number beyond all sense is refused by the check.
        width: (planes as f64 * (base / 64.0)).floor() as usize,
        outputs: planes.checked_mul(4).ok_or("`channels` are beyond all sense")?,
        stem: 64,
        depths: sizes(args, "layers", &depths)?,
        norm,
        groups: top.size("norm_groups", Some(GROUPS))?,
        stride_on: StrideOn::Second,
        image,
        channels: args.size("in_chans", Some(channels))?,
        norm_eps: top.number("norm_eps", EPS)?,
        classes: top.size("num_classes", Some(1000))?,
    })
}

/// The numbers that a `config.json` of `model_type` `resnet` describes.
///
/// # Errors
/// Names the key that is missing or has a value that no network here takes.
pub(super) fn transformers_architecture(config: &Value) -> Result<ResNet, String> {
    let all = Config(config);
    all.only(&[
        ("layer_type", json!("bottleneck")),
        ("hidden_act", json!("relu")),
        ("downsample_in_first_stage", json!(false)),
    ])?;
    let stride_on = match config.get("downsample_in_bottleneck").unwrap_or(&Value::Bool(false)) {
        Value::Bool(true) => StrideOn::First,
        Value::Bool(false) => StrideOn::Second,
        other => return Err(format!("`downsample_in_bottleneck` is {other}, not true or false")),
    };
    let outputs = doubling("hidden_sizes", &sizes(all, "hidden_sizes", &[256, 512, 1024, 2048])?)?;
    checked(ResNet {
        width: outputs / 4,
        outputs,
        stem: all.size("embedding_size", Some(64))?,
        depths: sizes(all, "depths", &[3, 4, 6, 3])?,
        norm: ResNetNorm::Batch,
        groups: GROUPS,
        stride_on,
        image: all.size("image_size", Some(224))?,
        channels: all.size("num_channels", Some(3))?,
        norm_eps: EPS,
        classes: classes(config)?,
    })
}
