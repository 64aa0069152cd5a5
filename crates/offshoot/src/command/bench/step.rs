//! `offshoot bench step`: seconds of whole training steps on made-up crops, as one line of JSON.
//!
//! The work is that of `benches/rivals/poa_step.py`: the same shapes, losses, optimizer and average, and no data loading.

use std::collections::BTreeMap;

use offshoot_data::Rng;
use offshoot_family::{Architecture, ResNet, ResNetNorm, Shape, StrideOn, Swin};
use offshoot_methods::elastic::cost::{self, StepShape};
use offshoot_methods::elastic::heads::Heads;
use offshoot_methods::elastic::step::{Batch, Elastic, LossRecipe, Objective};
use offshoot_methods::train::optimizer::{self, AdamW, Rate};
use offshoot_zoo::Backbone;
use offshoot_zoo::materialize::compile;
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::tensor::Device;
use serde_json::json;

use super::{Timed, at_least_one, fits, rounded, vit};
use crate::args::{BenchStep, Case};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::terminal::say;

/// Learning rate, weight decay and momentum of the benchmark; they do not matter for time.
const RATE: Rate = Rate {
    learning_rate: 1e-3,
    weight_decay: 0.05,
    gradient_scale: 1.0,
};
const MOMENTUM: f64 = 0.99;
const TEACHER_TEMPERATURE: f64 = 0.05;

/// Numbers of one case.
struct Problem {
    name: &'static str,
    network: Box<dyn Backbone>,
    heads: Heads,
    shape: StepShape,
    /// The elastic student.
    elastic: Shape,
    /// One byte a patch of every global crop.
    masks: Vec<u8>,
}

/// What tells one case from another.
struct Numbers {
    name: &'static str,
    parent: Architecture,
    elastic: Shape,
    local_px: usize,
    views: usize,
    images: usize,
    /// Hidden and bottleneck width of the heads, and prototypes of the first of four; each further one has twice as many.
    heads: (usize, usize, usize),
}

impl Numbers {
    fn of(case: Case) -> Self {
        let of_vit = |numbers, image| Architecture::Vit(vit(numbers, image, 0.1));
        let square = |width, depth| Shape::new([("width", width), ("depth", depth)]);
        match case {
            Case::CpuS => Self {
                name: "cpu-s",
                parent: of_vit((192, 6, 32, 4), 32),
                elastic: square(128, 4),
                local_px: 16,
                views: 6,
                images: 32,
                heads: (512, 128, 512),
            },
            Case::CpuM => Self {
                name: "cpu-m",
                parent: of_vit((384, 12, 64, 4), 32),
                elastic: square(256, 8),
                local_px: 16,
                views: 6,
                images: 16,
                heads: (1024, 256, 1024),
            },
            Case::VitL => Self {
                name: "vit-l",
                parent: of_vit((1024, 24, 64, 16), 224),
                elastic: square(640, 17),
                local_px: 96,
                views: 8,
                images: 50,
                heads: (2048, 256, 8192),
            },
            Case::SwinS => Self {
                name: "swin-s",
                parent: Architecture::Swin(Swin {
                    width: 96,
                    depths: vec![2, 2, 6, 2],
                    head_dim: 16,
                    window: 4,
                    mlp_ratio: 4,
                    patch: 2,
                    image: 64,
                    channels: 3,
                    norm_eps: 1e-5,
                    classes: 0,
                }),
                elastic: Shape::new([("width", 64), ("depth3", 4)]),
                local_px: 32,
                views: 6,
                images: 8,
                heads: (512, 128, 512),
            },
            Case::ResNetS => Self {
                name: "resnet-s",
                parent: Architecture::ResNet(ResNet {
                    width: 64,
                    outputs: 256,
                    stem: 64,
                    depths: vec![2, 3, 6, 2],
                    norm: ResNetNorm::Group,
                    groups: 32,
                    stride_on: StrideOn::Second,
                    image: 64,
                    channels: 3,
                    norm_eps: 1e-5,
                    classes: 0,
                }),
                elastic: Shape::new([("width", 32), ("depth2", 2), ("depth3", 4)]),
                local_px: 32,
                views: 6,
                images: 8,
                heads: (512, 128, 512),
            },
        }
    }
}

impl Problem {
    fn new(case: Case) -> Result<Self, Failure> {
        let numbers = Numbers::of(case);
        let network = offshoot_zoo::backbone(&numbers.parent)?;
        let (hidden, bottleneck, first) = numbers.heads;
        let heads = Heads {
            feature: network.feature(),
            hidden,
            bottleneck,
            prototypes: (0..4).map(|i| first << i).collect(),
        };
        let masks = masks(numbers.images, network.mask_grid().pow(2));
        let shape = StepShape {
            images: numbers.images,
            global_px: network.image().1,
            local_px: numbers.local_px,
            views: numbers.views,
            masked: masks.iter().map(|&b| f64::from(b)).sum(),
        };
        Ok(Self {
            name: numbers.name,
            network,
            heads,
            shape,
            elastic: numbers.elastic,
            masks,
        })
    }

    fn batch(&self, device: &Device) -> Batch {
        let mut rng = Rng::for_example(0, "bench", 0, 0);
        let mut crops = |n: usize, px: usize| {
            (
                (0..n * 3 * px * px).map(|_| rng.normal() as f32).collect::<Vec<f32>>(),
                [3, px, px],
            )
        };
        let StepShape {
            images,
            global_px,
            local_px,
            views,
            ..
        } = self.shape;
        let globals = crops(2 * images, global_px);
        let locals = crops(views * images, local_px);
        Batch::new(images, globals, locals, Some(&self.masks), device)
    }
}

/// Every second crop is masked, from a tenth to a half of its patches, as the rival program does.
fn masks(images: usize, patches: usize) -> Vec<u8> {
    let mut masks = vec![0; 2 * images * patches];
    let mut rng = Rng::for_example(0, "bench.masks", 0, 0);
    for row in (0..2 * images).step_by(2) {
        let share = 0.1 + 0.4 * row as f64 / (2 * images) as f64;
        let count = ((patches as f64 * share) as usize).max(1);
        let mut order: Vec<usize> = (0..patches).collect();
        rng.shuffle(&mut order);
        order[..count]
            .iter()
            .for_each(|&patch| masks[row * patches + patch] = 1);
    }
    masks
}

/// Runs the command.
pub fn run(args: &BenchStep) -> Result<(), Failure> {
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    at_least_one("--steps", args.steps, "step")?;
    let problem = Problem::new(args.case)?;
    let network = problem.network.as_ref();
    let view = network.child(&problem.elastic, "")?;
    let child = offshoot_zoo::backbone(&view.child)?;
    let elastic = [(offshoot_zoo::backbone(&view.child)?, 1.0)];
    let cost = cost::step(network, &problem.heads, problem.shape, &elastic);
    if machine.name == "cpu" {
        fits(problem.name, cost.bytes(), "a smaller --case")?;
    }
    let device = &machine.device;
    let mut plan = compile(&network.specs(), Some(&child.specs()), &view)?;
    plan.extend(compile(&problem.heads.specs(), None, &view)?);
    let specs = [network.specs(), problem.heads.specs()].concat();
    let decayed: BTreeMap<&str, bool> = specs.iter().map(|s| (s.name.as_str(), s.decay)).collect();
    let mut student = offshoot_zoo::initialise(&specs, 0, device);
    let mut teacher = offshoot_zoo::initialise(&specs, 1, device);
    let mut adam = AdamW::new(0.9, 0.999, 1e-8);
    let loss = LossRecipe::default();
    let objective = Objective {
        network,
        heads: &problem.heads,
        loss: &loss,
    };
    let elastic = Elastic {
        network: child.as_ref(),
        plan: &plan,
    };
    let batch = problem.batch(device);
    let one_step = || -> Result<f64, Failure> {
        let tracked = student.tracked();
        let terms = objective.losses(
            &tracked,
            &teacher,
            Some(&elastic),
            &batch,
            TEACHER_TEMPERATURE,
            &mut |_| Box::new(KeepAll),
        );
        let total = terms.total.clone();
        let gradients = tracked.gradients(&mut total.backward());
        drop((tracked, terms));
        adam.update(&mut student, gradients, |name| Rate {
            weight_decay: if decayed[name] { RATE.weight_decay } else { 0.0 },
            ..RATE
        });
        optimizer::average(&mut teacher, &student, MOMENTUM);
        let value = f64::from(total.into_scalar::<f32>());
        device.sync().map_err(|e| anyhow::anyhow!("{e:?}"))?;
        Ok(value)
    };
    let timed = Timed::new(&machine, args.warmup, args.steps, one_step)?;
    let (seconds, floor) = (timed.seconds, timed.floor);
    let line = json!({
        "case": problem.name,
        "version": env!("CARGO_PKG_VERSION"),
        "device": machine.name,
        "threads": machine.threads,
        "dtype": "fp32",
        "compiled": false,
        "steps": seconds.count(),
        "median_s": seconds.median(),
        "min_s": seconds.min(),
        "peak_rss_mib": timed.peak,
        "loss": timed.last,
        "flops": cost.flops,
        "gemm_flops": floor.as_ref().map(|floor| floor.flops),
        "gemm_floor_s": floor.as_ref().map(|floor| rounded(floor.seconds)),
    });
    say(&line.to_string())?;
    Ok(())
}
