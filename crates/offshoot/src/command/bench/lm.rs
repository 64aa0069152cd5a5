//! `offshoot bench lm`: whole training steps of a decoder on made-up tokens.

use offshoot_data::Rng;
use offshoot_family::{Decoder, DecoderKind, Projected, RopeScaling};
use offshoot_methods::language::recipe::LanguageRecipe;
use offshoot_methods::language::step::{Distillation, ExpertObjective, Objective, Outcome};
use offshoot_methods::train::optimizer::{self, AdamW, Rate};
use offshoot_zoo::decoder::Tokens;
use offshoot_zoo::materialize::{Plan, compile};
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{CheckpointError, DecoderNetwork, Network, ProjectedNetwork, Weights, spec};
use serde_json::json;

use super::{Timed, at_least_one, fits, rounded};
use crate::args::{BenchLm, LmArch, LmCase};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::terminal::say;

/// Adam at the paper's rate (specialize.md section 2.1).
const RATE: Rate = Rate {
    learning_rate: 1e-4,
    weight_decay: 0.0,
    gradient_scale: 1.0,
};
/// Largest L2 norm of the gradient.
const CLIP: f64 = 5.0;

/// A case: its name, windows of a step, and the network.
fn problem(case: LmCase, arch: LmArch) -> (&'static str, usize, Decoder) {
    let (name, batch, [width, depth, heads, hidden, vocabulary, context]) = match case {
        LmCase::Tiny => ("tiny", 4, [32, 2, 4, 64, 97, 24]),
        LmCase::CpuS => ("cpu-s", 16, [256, 4, 4, 1024, 8192, 256]),
        LmCase::Slm126m => ("slm-126m", 16, [1024, 7, 8, 4096, 32_768, 1024]),
    };
    let (kind, kv_heads, norm_eps) = match arch {
        LmArch::Gpt2 => (DecoderKind::Gpt2, heads, 1e-5),
        LmArch::Llama => (DecoderKind::Llama, heads / 2, 1e-6),
    };
    let decoder = Decoder {
        kind,
        width,
        depth,
        heads,
        kv_heads,
        head_dim: width / heads,
        hidden,
        vocabulary,
        context,
        norm_eps,
        tied: true,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    };
    (name, batch, decoder)
}

/// Training steps of a fresh decoder on made-up windows of its whole context.
pub struct Steps {
    network: DecoderNetwork,
    /// How each expert is mixed, where all feed-forward matrices are projected; windows go to them in turn.
    experts: Vec<Plan>,
    weights: Weights,
    adam: AdamW,
    windows: Vec<Vec<u32>>,
    recompute: bool,
    device: Device,
}

impl Steps {
    /// `batch` windows a step.
    fn new(network: DecoderNetwork, batch: usize, recompute: bool, device: &Device) -> Self {
        let (vocabulary, context) = (network.decoder().vocabulary, network.decoder().context);
        let mut rng = Rng::for_example(0, "bench.lm", 0, 0);
        let mut window = || -> Vec<u32> { (0..context).map(|_| rng.below(vocabulary as u64) as u32).collect() };
        let optim = LanguageRecipe::default().optim;
        Self {
            weights: offshoot_zoo::initialise(&network.specs(), 0, device),
            adam: AdamW::new(optim.beta1, optim.beta2, optim.epsilon),
            windows: (0..batch).map(|_| window()).collect(),
            recompute,
            device: device.clone(),
            experts: Vec::new(),
            network,
        }
    }

    /// The same steps of a projected network of so many experts, each of the network's numbers, with as many codes and slices.
    fn projected(mut self, experts: usize) -> Result<Self, Failure> {
        let projected = Projected {
            decoder: self.network.decoder().clone(),
            experts,
            codes: 0,
            slices: 0,
            blocks: Vec::new(),
        };
        let network = ProjectedNetwork::new(projected.filled());
        let specs = network.specs();
        let own = network.decoder().specs();
        for expert in 0..experts {
            let view = network.expert(expert, "").map_err(CheckpointError::from)?;
            let plan = compile(&specs, Some(&own), &view).map_err(CheckpointError::from)?;
            self.experts.push(plan);
        }
        self.weights = offshoot_zoo::initialise(&specs, 0, &self.device);
        Ok(self)
    }

    /// The GPT-2 of `cpu-s`, with so many windows a step.
    pub fn small(batch: usize, device: &Device) -> Self {
        let (_, _, decoder) = problem(LmCase::CpuS, LmArch::Gpt2);
        Self::new(DecoderNetwork::new(decoder), batch, false, device)
    }

    /// Parameters of the network.
    pub fn parameters(&self) -> u64 {
        spec::parameters(&self.network.specs())
    }

    /// Floating-point operations of one forward pass over all windows; a step has three times as many.
    pub fn forward_flops(&self) -> f64 {
        let context = self.network.decoder().context;
        2.0 * self.windows.len() as f64 * self.network.sequence_macs(context, true) as f64
    }

    /// One step: loss, backward, clipping and optimizer. The loss, in nats.
    pub fn step(&mut self) -> Result<f64, Failure> {
        let outcome = self.outcome();
        let [norm] = optimizer::norms(&outcome.gradients, |_| 0);
        let gradient_scale = optimizer::clip(norm, CLIP);
        self.adam.update(&mut self.weights, outcome.gradients, |_| Rate {
            gradient_scale,
            ..RATE
        });
        self.sync()?;
        Ok(outcome.loss)
    }

    fn outcome(&self) -> Outcome {
        let batch = self.windows.len();
        let count = batch * (self.network.decoder().context - 1);
        if !self.experts.is_empty() {
            let objective = ExpertObjective {
                network: &self.network,
                experts: &self.experts,
                recompute: self.recompute,
            };
            let of_windows: Vec<usize> = (0..batch).map(|window| window % self.experts.len()).collect();
            return objective.step(&self.weights, &self.windows, &of_windows, batch, count);
        }
        let objective = Objective {
            network: &self.network,
            children: &[],
            distillation: Distillation {
                share: 1.0,
                temperature: 1.0,
            },
            recompute: self.recompute,
        };
        objective.step(&self.weights, &self.windows, batch, count)
    }

    /// One forward pass over all windows.
    pub fn forward(&self) -> Result<(), Failure> {
        let logits = self.network.logits(&self.weights, &Tokens::new(&self.windows));
        self.sync()?;
        drop(logits);
        Ok(())
    }

    fn sync(&self) -> Result<(), Failure> {
        Ok(self.device.sync().map_err(|e| anyhow::anyhow!("{e:?}"))?)
    }
}

/// Runs the command.
pub fn run(args: &BenchLm) -> Result<(), Failure> {
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    at_least_one("--steps", args.steps, "step")?;
    let (name, batch, decoder) = problem(args.case, args.arch);
    let (vocabulary, context) = (decoder.vocabulary, decoder.context);
    let network = DecoderNetwork::new(decoder);
    if machine.name == "cpu" {
        let kept = (batch * context) as f64 * (network.token_activations() as f64 + vocabulary as f64);
        fits(
            name,
            16.0 * spec::parameters(&network.specs()) as f64 + 4.0 * kept,
            "a smaller --case",
        )?;
    }
    let mut steps = Steps::new(network, batch, args.recompute, &machine.device);
    if args.experts > 0 {
        steps = steps.projected(args.experts)?;
    }
    let flops = 3.0 * steps.forward_flops();
    let timed = Timed::new(&machine, args.warmup, args.steps, || steps.step())?;
    let (seconds, floor) = (timed.seconds, timed.floor);
    let line = json!({
        "case": name,
        "arch": args.arch.name(),
        "experts": args.experts,
        "version": env!("CARGO_PKG_VERSION"),
        "device": machine.name,
        "threads": machine.threads,
        "dtype": "fp32",
        "recompute": args.recompute,
        "steps": seconds.count(),
        "median_s": seconds.median(),
        "min_s": seconds.min(),
        "tokens_per_s": (batch * context) as f64 / seconds.median(),
        "peak_rss_mib": timed.peak,
        "loss": timed.last,
        "flops": flops,
        "gemm_flops": floor.as_ref().map(|floor| floor.flops),
        "gemm_floor_s": floor.as_ref().map(|floor| rounded(floor.seconds)),
    });
    say(&line.to_string())?;
    Ok(())
}
