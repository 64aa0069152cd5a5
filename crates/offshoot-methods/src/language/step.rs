//! One step's loss and gradients: next tokens for the intact network, and in-place distillation for sub-networks of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use offshoot_zoo::decoder::{EMBEDDING, Tokens};
use offshoot_zoo::materialize::{Plan, TensorPlan, materialize, materialize_all, pull_back};
use offshoot_zoo::tensor::kernels::{self, SoftTargets, next_token_cross_entropy, soft_cross_entropy};
use offshoot_zoo::tensor::{Gradients as Found, Tensor};
use offshoot_zoo::{DecoderNetwork, Weights};

use crate::train::optimizer::Gradients;

/// Windows of tokens, and for each token the one behind it in its window.
#[derive(Clone, Debug)]
pub struct Batch {
    tokens: Tokens,
    targets: Arc<[Option<u32>]>,
}

impl Batch {
    /// A batch of windows, each of at least one token; of each the last token has no target.
    ///
    /// # Panics
    /// If there are none, or one is empty.
    pub fn new<W: AsRef<[u32]>>(windows: &[W]) -> Self {
        let behind = |window: &W| {
            let next = window.as_ref()[1..].iter().copied().map(Some);
            next.chain([None]).collect::<Vec<_>>()
        };
        Self {
            tokens: Tokens::new(windows),
            targets: windows.iter().flat_map(behind).collect(),
        }
    }

    /// Tokens that are predicted.
    pub fn predicted(&self) -> usize {
        self.targets.iter().flatten().count()
    }
}

/// A sub-network of a step.
pub struct Child<'a> {
    /// The child.
    pub network: &'a DecoderNetwork,
    /// How it is cut out of the intact network.
    pub plan: &'a Plan,
}

/// What sub-networks are trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// Share of the intact network's distribution in a child's target; the rest is the token itself.
    pub share: f64,
    /// Divides both networks' logits; the loss is multiplied by its square (Hinton et al. 2015, section 2).
    pub temperature: f64,
}

/// What a step is made of.
pub struct Objective<'a> {
    /// The intact network.
    pub network: &'a DecoderNetwork,
    /// The sub-networks of the step.
    pub children: &'a [Child<'a>],
    /// What they are trained on.
    pub distillation: Distillation,
    /// Whether blocks are run again for the gradient, so that a forward pass keeps one tensor a block.
    pub recompute: bool,
}

/// What a step of a projected network is made of: every window is read by one of its experts (SLM-pn, arXiv 2402.01093 v2 section
/// 5.4).
pub struct ExpertObjective<'a> {
    /// What every expert is.
    pub network: &'a DecoderNetwork,
    /// How each is mixed.
    pub experts: &'a [Plan],
    /// Whether blocks are run again for the gradient.
    pub recompute: bool,
}

impl ExpertObjective<'_> {
    /// Loss and gradients of `windows`, each read by the expert of the same place in `experts`, so many at once, of a step of `count`
    /// predicted tokens in all. Matrices are mixed once a step for all experts that it has.
    ///
    /// # Panics
    /// If there is not one expert for each window, or there is no such expert.
    pub fn step<W: AsRef<[u32]>>(
        &self,
        weights: &Weights,
        windows: &[W],
        experts: &[usize],
        at_once: usize,
        count: usize,
    ) -> Outcome {
        assert_eq!(windows.len(), experts.len(), "one expert for each window");
        let mut groups: BTreeMap<usize, Vec<&[u32]>> = BTreeMap::new();
        for (window, expert) in windows.iter().zip(experts) {
            groups.entry(*expert).or_default().push(window.as_ref());
        }
        let plans: Vec<&[TensorPlan]> = groups.keys().map(|expert| &self.experts[*expert][..]).collect();
        let objective = Objective {
            network: self.network,
            children: &[],
            distillation: Distillation {
                share: 0.0,
                temperature: 1.0,
            },
            recompute: self.recompute,
        };
        let own = materialize_all(weights, &plans);
        let each = own.iter().zip(groups.values());
        let (losses, found): (Vec<f64>, Vec<Gradients>) = each
            .map(|(own, windows)| {
                let part = objective.step(own, windows, at_once, count);
                (part.loss, part.gradients)
            })
            .unzip();
        Outcome {
            loss: losses.iter().sum(),
            children: Vec::new(),
            gradients: pull_back(weights, &plans, found),
        }
    }
}

/// The loss of a batch and its gradients.
#[derive(Debug)]
pub struct Outcome {
    /// Mean loss of the next tokens of the intact network, in nats, times the batch's share of the step.
    pub loss: f64,
    /// The same for each sub-network: its own loss of the next tokens, whatever it is trained on.
    pub children: Vec<f64>,
    /// Gradients of what is trained on: the intact network's loss plus the mean of the children's.
    pub gradients: Gradients,
}

impl Objective<'_> {
    /// Loss and gradients of `windows`, so many at once, of a step of `count` predicted tokens in all.
    pub fn step<W: AsRef<[u32]>>(&self, weights: &Weights, windows: &[W], at_once: usize, count: usize) -> Outcome {
        let mut sum = Outcome {
            loss: 0.0,
            children: vec![0.0; self.children.len()],
            gradients: Gradients::new(),
        };
        for piece in windows.chunks(at_once.max(1)) {
            let part = self.run(weights, &Batch::new(piece), count);
            sum.loss += part.loss;
            sum.children
                .iter_mut()
                .zip(part.children)
                .for_each(|(sum, part)| *sum += part);
            add(&mut sum.gradients, part.gradients);
        }
        sum
    }

    /// Loss and gradients of `batch`, which is part of a step of `count` predicted tokens in all. `weights` are the intact
    /// network's, without gradients.
    fn run(&self, weights: &Weights, batch: &Batch, count: usize) -> Outcome {
        let share = 1.0 / count.max(1) as f64;
        let intact = Pass {
            network: self.network,
            plan: None,
            recompute: self.recompute,
        };
        let target = Target {
            teacher: None,
            how: self.distillation,
            teach: !self.children.is_empty(),
        };
        let (loss, teacher, mut gradients) = intact.run(weights, batch, &target, share);
        let target = Target {
            teacher: teacher.as_ref(),
            teach: false,
            ..target
        };
        let each = share / self.children.len().max(1) as f64;
        let mut children = Vec::with_capacity(self.children.len());
        for child in self.children {
            let pass = Pass {
                network: child.network,
                plan: Some(child.plan),
                recompute: self.recompute,
            };
            let (loss, _, found) = pass.run(weights, batch, &target, each);
            children.push(loss * share / each);
            add(&mut gradients, found);
        }
        Outcome {
            loss,
            children,
            gradients,
        }
    }
}

/// What a network is to predict.
struct Target<'a> {
    /// The distribution of another network, `[rows, vocabulary]`, of which a share is in the target; none for the next tokens alone.
    teacher: Option<&'a Tensor<2>>,
    /// The share, and the temperature of that distribution.
    how: Distillation,
    /// Whether its own distribution is wanted, to teach others with.
    teach: bool,
}

impl Target<'_> {
    /// What is trained on, summed over the rows and times `factor`; the loss of the next tokens, likewise; and the distribution to
    /// teach with.
    fn loss(&self, logits: Tensor<2>, batch: &Batch, factor: f64) -> (Tensor<1>, f64, Option<Tensor<2>>) {
        let how = self.how;
        let hard = |logits| {
            let losses = next_token_cross_entropy(logits, batch.targets.clone());
            losses.sum().mul_scalar(factor)
        };
        let taught = self
            .teach
            .then(|| kernels::tempered_softmax(logits.clone(), how.temperature));
        let Some(teacher) = self.teacher else {
            let total = hard(logits);
            return (total.clone(), value(total), taught);
        };
        // Only told, where the teacher has the whole of the target.
        let own = hard(if how.share < 1.0 {
            logits.clone()
        } else {
            logits.clone().without_autodiff()
        });
        let loss = value(own.clone());
        let rows = batch.targets.iter().enumerate();
        let rows: Vec<Option<u32>> = rows.map(|(row, target)| target.map(|_| row as u32)).collect();
        let form = SoftTargets {
            temperature: how.temperature,
            rows: vec![rows].into(),
        };
        let soft = soft_cross_entropy(form, logits, vec![teacher.clone()]).sum();
        let soft = soft.mul_scalar(factor * how.share * how.temperature * how.temperature);
        let total = if how.share < 1.0 {
            soft + own.mul_scalar(1.0 - how.share)
        } else {
            soft
        };
        (total, loss, taught)
    }
}

fn value(x: Tensor<1>) -> f64 {
    f64::from(x.without_autodiff().into_scalar::<f32>())
}

/// One network on one batch.
struct Pass<'a> {
    network: &'a DecoderNetwork,
    /// How it is cut out of the weights; none for the network that they are of.
    plan: Option<&'a Plan>,
    recompute: bool,
}

impl Pass<'_> {
    /// The loss of the next tokens times `factor`, the distribution to teach with, and the gradients of the weights that the
    /// network is cut out of.
    fn run(
        &self,
        weights: &Weights,
        batch: &Batch,
        target: &Target<'_>,
        factor: f64,
    ) -> (f64, Option<Tensor<2>>, Gradients) {
        let Some(plan) = self.plan else {
            return self.own(weights, batch, target, factor);
        };
        let own = materialize(weights, plan);
        let (loss, taught, gradients) = self.own(&own, batch, target, factor);
        (loss, taught, pull_back(weights, &[plan], vec![gradients]))
    }

    /// The same for the network's own weights.
    fn own(
        &self,
        weights: &Weights,
        batch: &Batch,
        target: &Target<'_>,
        factor: f64,
    ) -> (f64, Option<Tensor<2>>, Gradients) {
        if self.recompute {
            return self.in_segments(weights, batch, target, factor);
        }
        let tracked = weights.tracked();
        let logits = self.network.logits(&tracked, &batch.tokens);
        let (total, loss, taught) = target.loss(logits, batch, factor);
        let mut found = total.backward();
        (loss, taught, tracked.gradients(&mut found))
    }

    /// The same with nothing kept but what goes into each block: blocks are run again, the last one first, and each hands the
    /// gradient of its input down (Chen et al. 2016, section 4, with one segment a block). The gradients are those of `weights`.
    fn in_segments(
        &self,
        weights: &Weights,
        batch: &Batch,
        target: &Target<'_>,
        factor: f64,
    ) -> (f64, Option<Tensor<2>>, Gradients) {
        let (network, tokens) = (self.network, &batch.tokens);
        let depth = network.decoder().depth;
        let mut inputs = vec![network.embed(weights, tokens)];
        for block in 0..depth {
            inputs.push(network.block(weights, block, tokens, inputs[block].clone()));
        }
        let segment = |wanted: &dyn Fn(&str) -> bool| weights.only(wanted).tracked();
        let top = segment(&|name| !name.starts_with("blocks.") && name != "pos_embed");
        let leaf = |x: Tensor<2>| x.autodiff().require_grad();
        let x = leaf(inputs.pop().expect("what the last block gave"));
        let (total, loss, taught) = target.loss(network.head(&top, x.clone()), batch, factor);
        let mut found = total.backward();
        let mut gradients = top.gradients(&mut found);
        let mut down = taken(&x, &mut found);
        for block in (0..depth).rev() {
            let prefix = format!("blocks.{block}.");
            let own = segment(&|name| name.starts_with(&prefix));
            let x = leaf(inputs.pop().expect("one input a block"));
            let y = network.block(&own, block, tokens, x.clone());
            let mut found = (y * down).sum().backward();
            add(&mut gradients, own.gradients(&mut found));
            down = taken(&x, &mut found);
        }
        let bottom = segment(&|name| name == EMBEDDING || name == "pos_embed");
        let mut found = (network.embed(&bottom, tokens) * down).sum().backward();
        add(&mut gradients, bottom.gradients(&mut found));
        (loss, taught, gradients)
    }
}

/// The gradient of a leaf that the loss reaches.
fn taken(leaf: &Tensor<2>, found: &mut Found) -> Tensor<2> {
    leaf.grad_remove(found)
        .expect("the loss depends on the residual stream")
}

/// Adds gradients of the same tensors.
pub fn add(sum: &mut Gradients, more: Gradients) {
    for (name, gradient) in more {
        let whole = match sum.remove(&name) {
            Some(old) => old + gradient,
            None => gradient,
        };
        sum.insert(name, whole);
    }
}
