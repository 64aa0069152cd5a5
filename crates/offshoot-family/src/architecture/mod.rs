//! Families of networks by name and numbers, as plain data; what they compute is the zoo's business.

mod decoder;
mod projected;

use serde::{Deserialize, Serialize};

pub use decoder::{Decoder, DecoderKind, RopeScaling};
pub use projected::Projected;

/// A network by family name and numbers. The zoo has one module per variant and is the only place that tells them apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Architecture {
    /// A pre-norm vision transformer: the layout of Hugging Face's `Dinov2Model`, or `ViTModel` without LayerScale.
    Vit(Vit),
    /// A vision transformer of shifted windows in stages: the layout of Hugging Face's `SwinModel`.
    Swin(Swin),
    /// A residual network of bottleneck blocks: the layout of timm's `resnet`, or Hugging Face's `ResNetModel`.
    ResNet(ResNet),
    /// A decoder language model: the layout of Hugging Face's `GPT2LMHeadModel` or `LlamaForCausalLM`.
    Decoder(Decoder),
    /// Experts of one decoder's numbers, whose feed-forward matrices are mixes of shared slices. It is a parent only: an expert is a
    /// [`Decoder`](Self::Decoder).
    Projected(Projected),
}

/// The numbers of a vision transformer (POA section 3.1; DINOv2's layout).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vit {
    /// Channels of the residual stream; a whole number of heads.
    pub width: usize,
    /// Transformer blocks.
    pub depth: usize,
    /// Channels of one attention head; the attention scale is `head_dim^-1/2`.
    pub head_dim: usize,
    /// Hidden channels of the feed-forward layer over `width`.
    pub mlp_ratio: usize,
    /// Side of a square patch, in pixels.
    pub patch: usize,
    /// Native side of a square image, in pixels: the grid of the learned positions. 0 in a recipe: the global crop's.
    #[serde(default)]
    pub image: usize,
    /// Image channels: 1 (grey) or 3 (colour). 0 in a recipe: the data's.
    #[serde(default)]
    pub channels: usize,
    /// Added to the output side when positions are resampled: 0.1 for DINO's training crops, 0 for imported and exported
    /// models (transformers' rule).
    pub position_offset: f64,
    /// Epsilon of every LayerNorm.
    pub norm_eps: f64,
    /// Start value of LayerScale; 0 for blocks without one.
    #[serde(default = "paper_layer_scale")]
    pub layer_scale: f64,
    /// Classes of a linear classifier on the class token; 0 for none. Only without LayerScale.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub classes: usize,
}

/// The numbers of a Swin transformer (POA appendix A.1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swin {
    /// Channels of the first stage; every further stage has twice those of the one before. A whole number of heads.
    pub width: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Channels of one attention head, the same in all stages; the attention scale is `head_dim^-1/2`.
    pub head_dim: usize,
    /// Side of an attention window, in tokens.
    pub window: usize,
    /// Hidden channels of the feed-forward layer over those of its stage.
    pub mlp_ratio: usize,
    /// Side of a square patch, in pixels.
    pub patch: usize,
    /// Native side of a square image, in pixels. 0 in a recipe: the global crop's.
    #[serde(default)]
    pub image: usize,
    /// Image channels: 1 (grey) or 3 (colour). 0 in a recipe: the data's.
    #[serde(default)]
    pub channels: usize,
    /// Epsilon of every LayerNorm.
    pub norm_eps: f64,
    /// Classes of a linear classifier on the pooled tokens; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub classes: usize,
}

/// The numbers of a residual network of bottleneck blocks in four stages (POA appendix A.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNet {
    /// Channels between the convolutions of a bottleneck in the first stage; every further stage has twice those of the one
    /// before.
    pub width: usize,
    /// Output channels of the first stage; every further stage has twice those of the one before.
    pub outputs: usize,
    /// Channels of the stem.
    pub stem: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// How channels are normalised.
    pub norm: ResNetNorm,
    /// Groups of every GroupNorm; with BatchNorm they play no part.
    #[serde(default = "paper_groups")]
    pub groups: usize,
    /// Which convolution of a stage's first block strides.
    pub stride_on: StrideOn,
    /// Native side of a square image, in pixels. 0 in a recipe: the global crop's.
    #[serde(default)]
    pub image: usize,
    /// Image channels: 1 (grey) or 3 (colour). 0 in a recipe: the data's.
    #[serde(default)]
    pub channels: usize,
    /// Epsilon of every normalisation.
    pub norm_eps: f64,
    /// Classes of a linear classifier on the pooled channels; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub classes: usize,
}

/// How a residual network normalises channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResNetNorm {
    /// GroupNorm.
    Group,
    /// BatchNorm with the running statistics that it was imported with; they are never updated.
    Batch,
}

/// Which convolution of a stage's first block strides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StrideOn {
    /// The first, 1 x 1: He et al. 2015; transformers' `downsample_in_bottleneck`.
    First,
    /// The second, 3 x 3: torchvision's and timm's.
    Second,
}

/// LayerScale's start value in POA and DINOv2.
fn paper_layer_scale() -> f64 {
    1e-5
}

/// Groups of GroupNorm in POA, and timm's default.
fn paper_groups() -> usize {
    32
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Why an architecture's numbers do not make a network.
#[derive(Debug, thiserror::Error)]
#[error("{name} = {value}: {reason}")]
pub struct ArchitectureError {
    /// The number at fault.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it and what would do.
    pub reason: String,
}

impl ArchitectureError {
    fn new(name: &'static str, value: impl ToString, reason: impl Into<String>) -> Self {
        Self {
            name,
            value: value.to_string(),
            reason: reason.into(),
        }
    }
}

/// Largest number of anything.
const MOST: usize = 1 << 20;
/// Largest side of an image, in pixels. What follows from it alone, such as masks of windows, then fits into memory whatever a
/// configuration says.
pub const LARGEST_IMAGE: usize = 1 << 12;
/// Most stages of a network.
const STAGES: usize = 8;

fn positive(numbers: &[(&'static str, usize)]) -> Result<(), ArchitectureError> {
    match numbers.iter().find(|(_, value)| *value == 0 || *value > MOST) {
        None => Ok(()),
        Some(&(name, value)) => Err(ArchitectureError::new(
            name,
            value,
            format!("must lie between 1 and {MOST}"),
        )),
    }
}

fn heads(width: usize, head_dim: usize) -> Result<(), ArchitectureError> {
    if width.is_multiple_of(head_dim) {
        return Ok(());
    }
    let reason = format!("must be a whole number of heads of {head_dim} channels");
    Err(ArchitectureError::new("width", width, reason))
}

fn image_side(image: usize, stride: usize, what: &str) -> Result<(), ArchitectureError> {
    if image > LARGEST_IMAGE {
        let reason = format!("must be at most {LARGEST_IMAGE}");
        return Err(ArchitectureError::new("image", image, reason));
    }
    if image.is_multiple_of(stride) {
        return Ok(());
    }
    let below = (image / stride).max(1) * stride;
    let reason = format!(
        "must be a multiple of {what} {stride}; the nearest are {below} and {}",
        below + stride
    );
    Err(ArchitectureError::new("image", image, reason))
}

fn colours(channels: usize) -> Result<(), ArchitectureError> {
    match channels {
        1 | 3 => Ok(()),
        _ => Err(ArchitectureError::new(
            "channels",
            channels,
            "must be 1 (grey) or 3 (colour)",
        )),
    }
}

fn epsilon(norm_eps: f64) -> Result<(), ArchitectureError> {
    if norm_eps > 0.0 && norm_eps < 1.0 {
        return Ok(());
    }
    Err(ArchitectureError::new("norm_eps", norm_eps, "must lie between 0 and 1"))
}

fn stages(depths: &[usize]) -> Result<(), ArchitectureError> {
    let total = depths.iter().try_fold(0usize, |sum, &d| sum.checked_add(d));
    let fits = (2..=STAGES).contains(&depths.len()) && !depths.contains(&0) && total.is_some_and(|t| t <= MOST);
    if fits {
        return Ok(());
    }
    let reason = format!("must be the blocks of 2 to {STAGES} stages, at least 1 each and {MOST} together");
    Err(ArchitectureError::new("depths", format!("{depths:?}"), reason))
}

/// `width`, and twice as much in every further stage, as long as that is a sensible number.
fn doubling(name: &'static str, width: usize, stages: usize) -> Result<(), ArchitectureError> {
    if width << (stages - 1) <= MOST {
        return Ok(());
    }
    let reason = format!("doubles in each of {stages} stages, beyond {MOST}");
    Err(ArchitectureError::new(name, width, reason))
}

impl Vit {
    /// Attention heads of every block.
    pub fn heads(&self) -> usize {
        self.width / self.head_dim
    }

    /// Side of the patch grid at the native image size.
    pub fn grid(&self) -> usize {
        self.image / self.patch
    }

    /// Patches of a native image, without the class token.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Checks that the numbers make a network.
    ///
    /// # Errors
    /// Names the first number that does not fit the others.
    pub fn check(&self) -> Result<(), ArchitectureError> {
        positive(&[
            ("width", self.width),
            ("depth", self.depth),
            ("head_dim", self.head_dim),
            ("mlp_ratio", self.mlp_ratio),
            ("patch", self.patch),
            ("image", self.image),
        ])?;
        heads(self.width, self.head_dim)?;
        image_side(self.image, self.patch, "the patch")?;
        colours(self.channels)?;
        epsilon(self.norm_eps)?;
        if !(self.layer_scale.is_finite() && self.layer_scale >= 0.0) {
            let reason = "must be at least 0; 0 is for blocks without LayerScale";
            return Err(ArchitectureError::new("layer_scale", self.layer_scale, reason));
        }
        positive(&[("classes", self.classes.max(1))])?;
        if self.classes > 0 && self.layer_scale > 0.0 {
            let reason = "only a network without LayerScale has a classifier";
            return Err(ArchitectureError::new("classes", self.classes, reason));
        }
        Ok(())
    }
}

impl Swin {
    /// Channels of stage `stage`, counted from 0.
    pub fn stage_width(&self, stage: usize) -> usize {
        self.width << stage
    }

    /// Channels of the last stage: those of the features.
    pub fn feature_width(&self) -> usize {
        self.stage_width(self.depths.len() - 1)
    }

    /// Pixels that become one token of the last stage's map, on a side.
    pub fn stride(&self) -> usize {
        self.patch << (self.depths.len() - 1)
    }

    /// Side of the native map of stage `stage`, in tokens.
    pub fn map(&self, stage: usize) -> usize {
        self.image / (self.patch << stage)
    }

    /// Checks that the numbers make a network.
    ///
    /// # Errors
    /// Names the first number that does not fit the others.
    pub fn check(&self) -> Result<(), ArchitectureError> {
        positive(&[
            ("width", self.width),
            ("head_dim", self.head_dim),
            ("window", self.window),
            ("mlp_ratio", self.mlp_ratio),
            ("patch", self.patch),
            ("image", self.image),
        ])?;
        stages(&self.depths)?;
        doubling("width", self.width, self.depths.len())?;
        doubling("patch", self.patch, self.depths.len())?;
        heads(self.width, self.head_dim)?;
        image_side(self.image, self.stride(), "the last stage's stride")?;
        let last = self.map(self.depths.len() - 1);
        if last < self.window {
            let reason = format!(
                "is larger than the last stage's map of {last} x {last} tokens: images must have {} pixels or more",
                self.window.saturating_mul(self.stride())
            );
            return Err(ArchitectureError::new("window", self.window, reason));
        }
        colours(self.channels)?;
        epsilon(self.norm_eps)?;
        positive(&[("classes", self.classes.max(1))])
    }
}

impl ResNet {
    /// Checks that the numbers make a network, and one that another program opens: timm's `resnet` has a stem of 64 channels and
    /// strides in the second convolution; transformers' `ResNetModel` has any stem and strides in either, but see
    /// [`check_transformers`](Self::check_transformers).
    ///
    /// # Errors
    /// Names the first number that does not fit the others.
    pub fn check(&self) -> Result<(), ArchitectureError> {
        let channels = [("width", self.width), ("outputs", self.outputs), ("stem", self.stem)];
        positive(&channels)?;
        positive(&[("image", self.image), ("groups", self.groups)])?;
        stages(&self.depths)?;
        if self.depths.len() != 4 {
            let reason = "must be the blocks of 4 stages";
            return Err(ArchitectureError::new("depths", format!("{:?}", self.depths), reason));
        }
        doubling("width", self.width, self.depths.len())?;
        doubling("outputs", self.outputs, self.depths.len())?;
        if !self.outputs.is_multiple_of(4) {
            return Err(ArchitectureError::new(
                "outputs",
                self.outputs,
                "must be a multiple of 4",
            ));
        }
        if self.norm == ResNetNorm::Group
            && let Some((name, value)) = channels.iter().find(|(_, c)| !c.is_multiple_of(self.groups))
        {
            let reason = format!("must be a multiple of the {} groups of GroupNorm", self.groups);
            return Err(ArchitectureError::new(name, value, reason));
        }
        match self.stride_on {
            StrideOn::Second if self.stem != 64 && self.check_transformers().is_err() => {
                let reason = "must be 64: timm's resnet has no other";
                return Err(ArchitectureError::new("stem", self.stem, reason));
            }
            StrideOn::Second => {}
            StrideOn::First => self.check_transformers()?,
        }
        image_side(self.image, self.stride(), "the last stage's stride")?;
        colours(self.channels)?;
        epsilon(self.norm_eps)?;
        positive(&[("classes", self.classes.max(1))])
    }

    /// Whether transformers' `ResNetModel` is such a network: with BatchNorm, an epsilon of 1e-5, and a quarter of a stage's
    /// outputs between its convolutions.
    ///
    /// # Errors
    /// Names the first number that it does not have.
    pub fn check_transformers(&self) -> Result<(), ArchitectureError> {
        if self.norm == ResNetNorm::Group {
            let reason = "no program opens a residual network with GroupNorm that strides there: use `second`";
            return Err(ArchitectureError::new("stride_on", "first", reason));
        }
        if self.width != self.outputs / 4 {
            let reason = format!(
                "must be a quarter of outputs {} where the first convolution strides: transformers' ResNetModel has no other",
                self.outputs
            );
            return Err(ArchitectureError::new("width", self.width, reason));
        }
        if self.norm_eps != 1e-5 {
            let reason = "must be 1e-5 where the first convolution strides: transformers' ResNetModel has no other";
            return Err(ArchitectureError::new("norm_eps", self.norm_eps, reason));
        }
        Ok(())
    }

    /// Pixels that become one cell of the last stage's map, on a side: 4 in the stem, and 2 for every further stage.
    pub fn stride(&self) -> usize {
        4 << (self.depths.len() - 1)
    }

    /// Channels between the convolutions of a bottleneck of stage `stage`, counted from 0.
    pub fn stage_width(&self, stage: usize) -> usize {
        self.width << stage
    }

    /// Output channels of stage `stage`, counted from 0.
    pub fn stage_outputs(&self, stage: usize) -> usize {
        self.outputs << stage
    }

    /// Channels of the features.
    pub fn feature_width(&self) -> usize {
        self.stage_outputs(self.depths.len() - 1)
    }

    /// Whether the first block of stage `stage` has a convolution in its shortcut: where it strides or changes the channels.
    pub fn has_shortcut(&self, stage: usize) -> bool {
        stage > 0 || self.stem != self.outputs
    }
}

impl Architecture {
    /// It in words: `a vision transformer of width 384 and depth 12`.
    pub fn summary(&self) -> String {
        let blocks = |depths: &[usize]| {
            let depths: Vec<String> = depths.iter().map(usize::to_string).collect();
            depths.join(", ")
        };
        match self {
            Self::Vit(vit) => format!("a vision transformer of width {} and depth {}", vit.width, vit.depth),
            Self::Swin(swin) => format!(
                "a Swin transformer of width {} with {} blocks in its stages",
                swin.width,
                blocks(&swin.depths)
            ),
            Self::ResNet(net) => format!(
                "a residual network of width {} with {} blocks in its stages",
                net.width,
                blocks(&net.depths)
            ),
            Self::Decoder(decoder) => {
                let kind = match decoder.kind {
                    DecoderKind::Gpt2 => "GPT-2",
                    DecoderKind::Llama => "Llama",
                };
                format!(
                    "a decoder of the {kind} kind, of width {} and depth {}",
                    decoder.width, decoder.depth
                )
            }
            Self::Projected(projected) => format!(
                "{} projected experts, each {}",
                projected.experts,
                Self::Decoder(projected.decoder.clone()).summary()
            ),
        }
    }

    /// Native image: channels and side in pixels. Both are 0 where they are still to be given by a recipe's data and crops, and for
    /// a network that takes none.
    pub fn input(&self) -> (usize, usize) {
        match self {
            Self::Vit(Vit { channels, image, .. })
            | Self::Swin(Swin { channels, image, .. })
            | Self::ResNet(ResNet { channels, image, .. }) => (*channels, *image),
            Self::Decoder(_) | Self::Projected(_) => (0, 0),
        }
    }

    /// Classes of its linear classifier; 0 for none.
    pub fn classes(&self) -> usize {
        match self {
            Self::Vit(Vit { classes, .. })
            | Self::Swin(Swin { classes, .. })
            | Self::ResNet(ResNet { classes, .. }) => *classes,
            Self::Decoder(_) | Self::Projected(_) => 0,
        }
    }

    /// The same network without a classifier.
    #[must_use]
    pub fn headless(mut self) -> Self {
        match &mut self {
            Self::Vit(Vit { classes, .. })
            | Self::Swin(Swin { classes, .. })
            | Self::ResNet(ResNet { classes, .. }) => {
                *classes = 0;
            }
            Self::Decoder(_) | Self::Projected(_) => {}
        }
        self
    }

    /// The same network for images of other channels and side, if it takes any. Learned positions are another matter: see the zoo.
    #[must_use]
    pub fn with_input(mut self, channels: usize, image: usize) -> Self {
        let (c, i) = match &mut self {
            Self::Vit(vit) => (&mut vit.channels, &mut vit.image),
            Self::Swin(swin) => (&mut swin.channels, &mut swin.image),
            Self::ResNet(net) => (&mut net.channels, &mut net.image),
            Self::Decoder(_) | Self::Projected(_) => return self,
        };
        (*c, *i) = (channels, image);
        self
    }
}
