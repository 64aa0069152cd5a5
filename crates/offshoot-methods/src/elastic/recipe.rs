//! The recipe of an elastic pre-training run: every number of it, with POA's ViT-L/16 run as the default.

use offshoot_data::{BlockMasks, MultiCrop};
use offshoot_family::catalog::Preprocessing;
use offshoot_family::recipe::Auto;
use offshoot_family::{Architecture, Space};
use offshoot_zoo::network::{NetworkError, SpaceBounds, StochasticDepth};
use offshoot_zoo::{Backbone, TensorSpec};
use serde::{Deserialize, Serialize};

use super::heads::Heads;
use super::step::LossRecipe;
use crate::train::optimizer::Rate;
use crate::train::schedule::{TruncatedCosine, WarmupConstant};
use crate::train::trainer::Cadence;

/// Everything a run needs. `auto` values are worked out before the first step and saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElasticRecipe {
    /// The method: `elastic`.
    pub method: String,
    /// Seed of weights, data order, crops, masks, sub-networks and stochastic depth.
    pub seed: u64,
    /// Where the parent starts.
    pub init: InitRecipe,
    /// The images.
    pub data: DataRecipe,
    /// The network that is trained whole. Its image side and channels are those of the global crops and of the data, and are
    /// filled in.
    pub parent: Architecture,
    /// Its sub-networks.
    pub space: SpaceRecipe,
    /// Multi-crop augmentation.
    pub crops: MultiCrop,
    /// Block-wise masks.
    pub masks: BlockMasks,
    /// Projection heads.
    pub heads: HeadsRecipe,
    /// The loss.
    pub loss: LossRecipe,
    /// Optimizer and schedules.
    pub optim: OptimRecipe,
    /// Length and batches.
    pub train: TrainRecipe,
    /// Measuring children during and after training.
    pub probe: ProbeRecipe,
}

/// Weights that a run starts from instead of fresh ones. Once it has started, they are in its checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitRecipe {
    /// A run folder, an exported child, or a folder of transformers or timm; empty for fresh weights.
    pub path: String,
    /// Content hash of its weights, filled in.
    pub hash: String,
}

/// Where images come from and how they are split and normalised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// A folder, an IDX, CIFAR, Parquet or tar file, or a folder of those.
    pub path: String,
    /// The test part, where the data has a split of its own: the same kinds of places. None if empty; `test` is 0 with it.
    pub test_path: String,
    /// Fingerprint of the content. auto: whatever is found; a run is only ever resumed on the same content.
    pub fingerprint: Auto<String>,
    /// Whether labels are used, for scores only: training never sees them.
    pub labels: bool,
    /// Share of the images held out for choosing.
    pub val: f64,
    /// Share of the images held out for the final number.
    pub test: f64,
    /// Share of damaged images above which the run stops.
    pub max_damaged: f64,
    /// 1 (grey) or 3 (colour). auto: grey if every image is.
    pub channels: Auto<u8>,
    /// Mean per channel. auto: measured on 1,000 training images.
    pub mean: Auto<Vec<f32>>,
    /// Standard deviation per channel. auto: measured on the same images.
    pub std: Auto<Vec<f32>>,
    /// Threads that prepare batches. auto: one per core. Results do not depend on it.
    pub workers: Auto<usize>,
    /// Shorter side before the centre crop when children are measured. auto: 256 for crops of 224, in proportion
    /// else (a whole crop where the images themselves are no larger).
    pub resize: Auto<u32>,
}

/// The sub-networks that are trained and derived.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceRecipe {
    /// Smallest width.
    pub min_width: usize,
    /// Distance of two widths. auto: the least there can be: one head, or as many channels as GroupNorm has groups.
    pub width_step: Auto<usize>,
    /// Smallest depth; of a network in stages, one number a stage: those that fall short of the parent's can be cut.
    pub min_depth: PerStage,
    /// Distance of two depths.
    pub depth_step: usize,
    /// How much oftener the smallest size of an axis is drawn than the largest.
    pub sampling_scale: f64,
    /// Whether slices are scaled by D_max / D_i, in training and in the family (the paper's ablation turns it off).
    pub alpha: bool,
}

/// One number, or one for each stage of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a whole number, or a list of one a stage")]
pub enum PerStage {
    /// A network that is not in stages.
    One(usize),
    /// One for each stage.
    Each(Vec<usize>),
}

impl PerStage {
    fn numbers(&self) -> Vec<usize> {
        match self {
            Self::One(number) => vec![*number],
            Self::Each(numbers) => numbers.clone(),
        }
    }
}

impl From<&[usize]> for PerStage {
    fn from(numbers: &[usize]) -> Self {
        match numbers {
            [one] => Self::One(*one),
            each => Self::Each(each.to_vec()),
        }
    }
}

/// Projection heads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadsRecipe {
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Width of the bottleneck.
    pub bottleneck: usize,
    /// Prototypes of each head.
    pub prototypes: Vec<usize>,
}

/// Optimizer and schedules. Epochs are `train.steps_per_epoch` steps; parts of one are allowed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimRecipe {
    /// Peak learning rate. auto: 0.004 * sqrt(batch / 1024).
    pub lr: Auto<f64>,
    /// Learning rate that the whole cosine would end at.
    pub final_lr: f64,
    /// Epochs of linear warm-up.
    pub warmup_epochs: f64,
    /// Weight decay at the start.
    pub weight_decay: f64,
    /// Weight decay that the whole cosine would end at.
    pub final_weight_decay: f64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's epsilon.
    pub epsilon: f64,
    /// Largest L2 norm of the gradients, of backbone and heads each on their own (the code's rule, elastic.md section 9).
    pub clip: f64,
    /// Factor on the learning rate for every layer below the top.
    pub layer_decay: f64,
    /// Further factor for the patch embedding.
    pub patch_embed_factor: f64,
    /// Epochs with the last layer of every head frozen.
    pub freeze_last_layer_epochs: f64,
    /// Momentum of the teacher's average at the start.
    pub momentum: f64,
    /// Momentum that the whole cosine would end at.
    pub final_momentum: f64,
    /// Teacher temperature at the start.
    pub teacher_temperature_start: f64,
    /// Teacher temperature after its warm-up.
    pub teacher_temperature: f64,
    /// Epochs of the teacher temperature's warm-up.
    pub teacher_temperature_warmup_epochs: f64,
    /// Epochs before masked patches are trained on.
    pub ibot_start_epochs: f64,
    /// Share of the laid-out cosines that is run (the code's `iter_num_scale`).
    pub stretch: f64,
    /// Rate of stochastic depth in the students.
    pub drop_path: f64,
}

/// Length and batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Images of one step.
    pub batch: usize,
    /// Epochs.
    pub epochs: u64,
    /// Steps of one epoch. auto: whole batches in the training images.
    pub steps_per_epoch: Auto<u64>,
    /// Steps between two lines of the log.
    pub log_every: u64,
    /// Steps between two checkpoints. auto: one epoch, at least 100.
    pub checkpoint_every: Auto<u64>,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// Steps between two probes of the smallest, middle and largest child; 0 for none. auto: a twentieth of the run.
    pub probe_every: Auto<u64>,
}

/// Measuring children.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecipe {
    /// Training images that vote in a probe's k-NN, at most.
    pub references: usize,
    /// Validation images that a probe scores, at most.
    pub queries: usize,
}

impl Default for ElasticRecipe {
    /// POA's ViT-L/16 run (paper Table 6, the code's `vit_ee1200`; elastic.md section 4.1), for data that must be named.
    fn default() -> Self {
        Self::of_family("vit").expect("there is a vit")
    }
}

impl ElasticRecipe {
    /// The default recipe with the paper's parent, space, sampling and stochastic depth of another family of architectures; none if
    /// there is no such family. What else that parent's run had is in its ready recipe.
    pub fn of_family(family: &str) -> Option<Self> {
        let paper = offshoot_zoo::registry::paper(family)?;
        Some(Self {
            method: "elastic".into(),
            seed: 0,
            init: InitRecipe::default(),
            data: DataRecipe {
                path: String::new(),
                test_path: String::new(),
                fingerprint: Auto::Auto,
                labels: false,
                val: 0.05,
                test: 0.05,
                max_damaged: 0.01,
                channels: Auto::Auto,
                mean: Auto::Auto,
                std: Auto::Auto,
                workers: Auto::Auto,
                resize: Auto::Auto,
            },
            parent: paper.parent,
            space: SpaceRecipe {
                min_width: paper.bounds.min_width,
                width_step: Auto::Auto,
                min_depth: paper.bounds.min_depths[..].into(),
                depth_step: 1,
                sampling_scale: paper.sampling_scale,
                alpha: true,
            },
            crops: MultiCrop::default(),
            masks: BlockMasks::default(),
            heads: HeadsRecipe {
                hidden: 2048,
                bottleneck: 256,
                prototypes: vec![8192, 16384, 32768, 65536],
            },
            loss: LossRecipe::default(),
            optim: OptimRecipe {
                lr: Auto::Auto,
                final_lr: 2e-5,
                warmup_epochs: 10.0,
                weight_decay: 0.04,
                final_weight_decay: 0.4,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                clip: 1.5,
                layer_decay: 0.9,
                patch_embed_factor: 0.2,
                freeze_last_layer_epochs: 1.0,
                momentum: 0.992,
                final_momentum: 0.9999,
                teacher_temperature_start: 0.04,
                teacher_temperature: 0.07,
                teacher_temperature_warmup_epochs: 30.0,
                ibot_start_epochs: 30.0,
                stretch: 0.78,
                drop_path: paper.drop_path,
            },
            train: TrainRecipe {
                batch: 1600,
                epochs: 346,
                steps_per_epoch: Auto::Auto,
                log_every: 10,
                checkpoint_every: Auto::Auto,
                keep: 2,
                probe_every: Auto::Auto,
            },
            probe: ProbeRecipe {
                references: 10_000,
                queries: 2_000,
            },
        })
    }
}

/// Shorter side before a centre crop of `crop` pixels, of images whose own is `side`: 256 for crops of 224, in proportion else; the
/// whole crop where the images are no larger.
pub fn usual_resize(side: u32, crop: u32) -> u32 {
    if side <= crop { crop } else { (crop * 256).div_ceil(224) }
}

/// What is wrong with a recipe's numbers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeProblem {
    /// One number cannot work.
    #[error("recipe: {key} = {value}: {reason}")]
    Value {
        /// Dotted key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        reason: String,
    },
    /// The network or its space cannot be made.
    #[error("recipe: {0}")]
    Network(#[from] NetworkError),
}

/// Most examples of one step, of images as of text.
pub(crate) const LARGEST_BATCH: usize = 1 << 20;

/// Refuses numbers of AdamW that end in a division by zero: it divides by `1 - beta` and, where no gradient was, by epsilon in fp32.
pub(crate) fn check_adam(beta1: f64, beta2: f64, epsilon: f64) -> Result<(), RecipeProblem> {
    let problem = |key, value: f64, reason: &str| RecipeProblem::Value {
        key,
        value: value.to_string(),
        reason: reason.into(),
    };
    for (key, beta) in [("optim.beta1", beta1), ("optim.beta2", beta2)] {
        if !(0.0..1.0).contains(&beta) {
            return Err(problem(key, beta, "must lie between 0 and 1, 1 excluded"));
        }
    }
    if !(epsilon.is_finite() && epsilon as f32 > 0.0) {
        return Err(problem("optim.epsilon", epsilon, "must be above 0, in fp32 too"));
    }
    Ok(())
}

/// What the data says about the `auto` values that depend on it.
#[derive(Clone, Debug, PartialEq)]
pub struct DataFacts {
    /// 1 if every image is grey, else 3.
    pub channels: u8,
    /// Mean per channel, for that number of channels.
    pub mean: Vec<f32>,
    /// Standard deviation per channel.
    pub std: Vec<f32>,
    /// Images to train on.
    pub train: usize,
    /// Shorter side of the median image, in pixels.
    pub side: u32,
}

impl ElasticRecipe {
    /// Works out every `auto` value that `data` (if known) and `cores` allow, fills in what the sections say of each other, and
    /// checks the numbers.
    ///
    /// # Errors
    /// Names the first key with a value that cannot work.
    pub fn resolve(&mut self, data: Option<&DataFacts>, cores: usize) -> Result<(), RecipeProblem> {
        let batch = self.train.batch;
        self.check()?;
        self.data.workers.resolve(|| cores.max(1));
        self.optim.lr.resolve(|| 0.004 * (batch as f64 / 1024.0).sqrt());
        if let Some(data) = data {
            self.data.channels.resolve(|| data.channels);
            self.data.mean.resolve(|| data.mean.clone());
            self.data.std.resolve(|| data.std.clone());
            self.train
                .steps_per_epoch
                .resolve(|| (data.train / batch).max(1) as u64);
            let crop = self.crops.globals.px;
            self.data.resize.resolve(|| usual_resize(data.side, crop));
        }
        if let Some(&epoch) = self.train.steps_per_epoch.value() {
            self.train.checkpoint_every.resolve(|| epoch.max(100));
            let steps = self.train.epochs * epoch;
            self.train.probe_every.resolve(|| (steps / 20).max(1));
        }
        self.fill_in()?;
        self.space()?;
        Ok(())
    }

    /// What sections say of each other: channels and normalisation of the crops, image of the parent, smallest distance of two
    /// widths, grid and start of the masks.
    fn fill_in(&mut self) -> Result<(), RecipeProblem> {
        if let (Some(&channels), Some(mean), Some(std)) = (
            self.data.channels.value(),
            self.data.mean.value(),
            self.data.std.value(),
        ) {
            self.crops.channels = channels;
            self.crops.mean.clone_from(mean);
            self.crops.std.clone_from(std);
        }
        let (channels, image) = self.parent.input();
        let px = self.crops.globals.px as usize;
        if image != 0 && image != px {
            return Err(RecipeProblem::Value {
                key: "parent.image",
                value: image.to_string(),
                reason: format!("the global crops have {px} pixels; leave it out"),
            });
        }
        // Channels that are not known yet count as three.
        let known = self.data.channels.value().map(|&c| usize::from(c));
        if let Some(known) = known.filter(|&known| channels != 0 && channels != known) {
            return Err(RecipeProblem::Value {
                key: "parent.channels",
                value: channels.to_string(),
                reason: format!("the data has {known}; leave it out"),
            });
        }
        let network = match offshoot_zoo::backbone(&self.parent.clone().with_input(known.unwrap_or(3), px)) {
            // The image is the global crop: named by the key that sets it.
            Err(NetworkError::Architecture(e)) if e.name == "image" => {
                return Err(RecipeProblem::Value {
                    key: "crops.globals.px",
                    value: e.value,
                    reason: e.reason,
                });
            }
            opened => opened?,
        };
        if known.is_some() {
            self.parent = network.architecture();
        }
        self.space.width_step.resolve(|| network.width_step());
        let grid = network.mask_grid();
        self.masks.grid = (grid, grid);
        self.masks.from_step = self.epochs(self.optim.ibot_start_epochs);
        let stride = network.stride() as u32;
        for (key, px) in [
            ("crops.globals.px", self.crops.globals.px),
            ("crops.locals.px", self.crops.locals.px),
        ] {
            if px == 0 || !px.is_multiple_of(stride) {
                let below = (px / stride).max(1) * stride;
                let reason = format!(
                    "must be a multiple of {stride}; the nearest are {below} and {}",
                    below + stride
                );
                return Err(RecipeProblem::Value {
                    key,
                    value: px.to_string(),
                    reason,
                });
            }
        }
        if self.optim.drop_path > 0.0 && network.stochastic_depth() == StochasticDepth::None {
            return Err(RecipeProblem::Value {
                key: "optim.drop_path",
                value: self.optim.drop_path.to_string(),
                reason: "this architecture has no stochastic depth: set it to 0".into(),
            });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), RecipeProblem> {
        let bad = |key, value: String, reason: &str| {
            Err(RecipeProblem::Value {
                key,
                value,
                reason: reason.into(),
            })
        };
        if self.method != "elastic" {
            return bad(
                "method",
                self.method.clone(),
                "this is a recipe of the method `elastic`",
            );
        }
        if self.crops.globals.count != 2 {
            return bad(
                "crops.globals.count",
                self.crops.globals.count.to_string(),
                "the loss compares two global crops",
            );
        }
        if self.train.batch == 0 || self.train.epochs == 0 {
            return bad(
                "train.batch",
                self.train.batch.to_string(),
                "batch and epochs must be at least 1",
            );
        }
        if self.train.batch > LARGEST_BATCH || self.train.epochs > 1 << 30 {
            return bad(
                "train.epochs",
                self.train.epochs.to_string(),
                "batch and epochs beyond all use",
            );
        }
        let heads = &self.heads;
        if heads.prototypes.is_empty() || heads.prototypes.contains(&0) || heads.hidden == 0 || heads.bottleneck == 0 {
            return bad(
                "heads.prototypes",
                format!("{:?}", heads.prototypes),
                "at least one head, and no size of 0",
            );
        }
        for (key, share) in [
            ("loss.lambda", self.loss.lambda),
            ("optim.momentum", self.optim.momentum),
            ("optim.final_momentum", self.optim.final_momentum),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return bad(key, share.to_string(), "must lie between 0 and 1");
            }
        }
        if !(0.0..1.0).contains(&self.optim.drop_path) {
            return bad(
                "optim.drop_path",
                self.optim.drop_path.to_string(),
                "must lie between 0 and 1, 1 excluded",
            );
        }
        for (key, positive) in [
            ("optim.stretch", self.optim.stretch),
            ("optim.clip", self.optim.clip),
            ("optim.layer_decay", self.optim.layer_decay),
            ("optim.teacher_temperature", self.optim.teacher_temperature),
            ("optim.teacher_temperature_start", self.optim.teacher_temperature_start),
            ("loss.student_temperature", self.loss.student_temperature),
        ] {
            if !(positive.is_finite() && positive > 0.0) {
                return bad(key, positive.to_string(), "must be above 0");
            }
        }
        check_adam(self.optim.beta1, self.optim.beta2, self.optim.epsilon)?;
        if self.optim.stretch > 1.0 {
            return bad("optim.stretch", self.optim.stretch.to_string(), "must be at most 1");
        }
        Ok(())
    }

    /// The intact network's architecture. Channels that are not known yet count as three.
    pub fn architecture(&self) -> Architecture {
        let channels = self.data.channels.value().map_or(3, |&c| usize::from(c));
        self.parent.clone().with_input(channels, self.crops.globals.px as usize)
    }

    /// The intact network.
    ///
    /// # Errors
    /// If its numbers make none.
    pub fn network(&self) -> Result<Box<dyn Backbone>, NetworkError> {
        offshoot_zoo::backbone(&self.architecture())
    }

    /// The space of sub-networks.
    ///
    /// # Errors
    /// If its bounds do not fit the network.
    pub fn space(&self) -> Result<Space, NetworkError> {
        self.network()?.space(SpaceBounds {
            min_width: self.space.min_width,
            width_step: self.space.width_step.value().copied().unwrap_or(0),
            min_depths: self.space.min_depth.numbers(),
            depth_step: self.space.depth_step,
            ..SpaceBounds::default()
        })
    }

    /// The heads on `network`'s features.
    pub fn projection_heads(&self, network: &dyn Backbone) -> Heads {
        Heads {
            feature: network.feature(),
            hidden: self.heads.hidden,
            bottleneck: self.heads.bottleneck,
            prototypes: self.heads.prototypes.clone(),
        }
    }

    /// Steps of `epochs` epochs; 0 while the length of an epoch is not known.
    fn epochs(&self, epochs: f64) -> u64 {
        (epochs.max(0.0) * self.train.steps_per_epoch.value().copied().unwrap_or(0) as f64) as u64
    }

    /// Steps of the whole run; 0 while the length of an epoch is not known.
    pub fn steps(&self) -> u64 {
        self.train.epochs * self.train.steps_per_epoch.value().copied().unwrap_or(0)
    }

    /// How often things happen.
    pub fn cadence(&self) -> Cadence {
        Cadence {
            log_every: self.train.log_every,
            checkpoint_every: self.train.checkpoint_every.value().copied().unwrap_or(0),
            keep: self.train.keep,
            probe_every: self.train.probe_every.value().copied().unwrap_or(0),
        }
    }

    /// How an image becomes a child's input; none while the data is not known.
    pub fn preprocessing(&self) -> Option<Preprocessing> {
        Some(Preprocessing {
            resize: *self.data.resize.value()?,
            crop: self.crops.globals.px,
            channels: *self.data.channels.value()?,
            mean: self.data.mean.value()?.clone(),
            std: self.data.std.value()?.clone(),
        })
    }

    /// The schedules of a run of [`steps`](Self::steps).
    pub fn schedules(&self) -> Schedules {
        let optim = &self.optim;
        let peak = optim.lr.value().copied().unwrap_or(0.0);
        let cosine = |base, last, warmup, start| TruncatedCosine {
            base,
            last,
            warmup,
            start,
            total: self.steps(),
            stretch: optim.stretch,
        };
        Schedules {
            learning_rate: cosine(peak, optim.final_lr, self.epochs(optim.warmup_epochs), 0.0),
            weight_decay: cosine(optim.weight_decay, optim.final_weight_decay, 0, 0.0),
            momentum: cosine(optim.momentum, optim.final_momentum, 0, 0.0),
            teacher_temperature: WarmupConstant {
                start: optim.teacher_temperature_start,
                base: optim.teacher_temperature,
                warmup: self.epochs(optim.teacher_temperature_warmup_epochs),
            },
            frozen: self.epochs(optim.freeze_last_layer_epochs),
            layer_decay: optim.layer_decay,
            patch_embed_factor: optim.patch_embed_factor,
        }
    }
}

/// Everything that changes from step to step (elastic.md sections 4.2 and 4.3).
#[derive(Clone, Debug, PartialEq)]
pub struct Schedules {
    /// Learning rate at the top of the network.
    pub learning_rate: TruncatedCosine,
    /// Weight decay of decayed tensors.
    pub weight_decay: TruncatedCosine,
    /// Momentum of the teacher.
    pub momentum: TruncatedCosine,
    /// Temperature of the teacher.
    pub teacher_temperature: WarmupConstant,
    /// First steps, during which the last layer of every head is frozen.
    pub frozen: u64,
    layer_decay: f64,
    patch_embed_factor: f64,
}

impl Schedules {
    /// Factor on the learning rate of a tensor of a network of `layers` layers: `decay^(layers - id)`, where ids are those of
    /// the intact network, and tensors without an id are at the top.
    pub fn factor(&self, spec: &TensorSpec, layers: usize) -> f64 {
        let below = spec.layer.map_or(0, |layer| layers.saturating_sub(layer));
        let factor = self.layer_decay.powi(below as i32);
        if spec.patch_embed {
            factor * self.patch_embed_factor
        } else {
            factor
        }
    }

    /// Learning rate and weight decay of a tensor at `step`, its gradient as it is.
    pub fn rate(&self, spec: &TensorSpec, layers: usize, step: u64) -> Rate {
        let frozen = step < self.frozen && Heads::is_last_layer(&spec.name);
        Rate {
            learning_rate: if frozen {
                0.0
            } else {
                self.learning_rate.at(step) * self.factor(spec, layers)
            },
            weight_decay: if spec.decay { self.weight_decay.at(step) } else { 0.0 },
            gradient_scale: 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper() -> ElasticRecipe {
        let mut recipe = ElasticRecipe::default();
        recipe.train.steps_per_epoch = Auto::Value(800);
        recipe.resolve(None, 2).unwrap();
        recipe
    }

    /// elastic.md 8.2.
    #[test]
    fn the_default_is_the_papers_run() {
        let recipe = paper();
        assert_eq!(recipe.steps(), 276_800);
        assert_eq!(recipe.space().unwrap().count(), 143);
        let schedules = recipe.schedules();
        for (step, expected) in [
            (0, 0.0),
            (4000, 0.00250031),
            (7999, 0.005),
            (8000, 0.005),
            (100_000, 0.00418448),
            (276_799, 6.16970e-4),
        ] {
            assert!((schedules.learning_rate.at(step) - expected).abs() < 5e-9, "lr[{step}]");
        }
        assert!((schedules.weight_decay.at(200_000) - 0.255718).abs() < 5e-7);
        assert!((schedules.momentum.at(100_000) - 0.993449).abs() < 5e-7);
        assert!((schedules.teacher_temperature.at(12_000) - 0.0550006).abs() < 5e-8);
        assert_eq!(recipe.masks.from_step, 24_000);
        assert_eq!(recipe.masks.grid, (14, 14));
    }

    /// elastic.md 8.2: 0.2 * 0.9^25, 0.9^25, 0.9^24, 0.9 and 1.
    #[test]
    fn learning_rates_fall_towards_the_input() {
        let recipe = paper();
        let network = recipe.network().unwrap();
        let schedules = recipe.schedules();
        let specs = [network.specs(), recipe.projection_heads(network.as_ref()).specs()].concat();
        let factor = |name: &str| {
            let spec = specs.iter().find(|s| s.name == name).unwrap();
            schedules.factor(spec, network.layers())
        };
        for (name, expected) in [
            ("patch_embed.proj.weight", 0.0143580),
            ("patch_embed.proj.bias", 0.0143580),
            ("cls_token", 0.0717898),
            ("pos_embed", 0.0717898),
            ("mask_token", 0.0717898),
            ("blocks.0.attn.qkv.weight", 0.0797664),
            ("blocks.23.mlp.fc2.bias", 0.9),
            ("norm.weight", 1.0),
            ("heads.3.last_layer.weight_v", 1.0),
        ] {
            assert!((factor(name) - expected).abs() < 5e-8, "{name}: {}", factor(name));
        }
        // No decay on biases, norms and LayerScale; decay on tokens and the last layer.
        let decayed = |name: &str| specs.iter().find(|s| s.name == name).unwrap().decay;
        for name in [
            "blocks.3.norm1.weight",
            "blocks.3.ls1.gamma",
            "blocks.3.attn.qkv.bias",
            "norm.weight",
            "heads.0.mlp.0.bias",
        ] {
            assert!(!decayed(name), "{name}");
        }
        for name in [
            "cls_token",
            "pos_embed",
            "mask_token",
            "blocks.3.mlp.fc1.weight",
            "heads.0.last_layer.weight_g",
        ] {
            assert!(decayed(name), "{name}");
        }
        let last = specs.iter().find(|s| s.name == "heads.0.last_layer.weight_v").unwrap();
        assert_eq!(schedules.rate(last, network.layers(), 799).learning_rate, 0.0);
        assert!(schedules.rate(last, network.layers(), 800).learning_rate > 0.0);
    }

    #[test]
    fn crops_that_are_no_whole_patches_name_the_nearest() {
        let mut recipe = ElasticRecipe::default();
        recipe.crops.globals.px = 100;
        let error = recipe.resolve(None, 1).unwrap_err().to_string();
        assert!(error.contains("96 and 112"), "{error}");
    }
}
