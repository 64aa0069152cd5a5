//! One POA step: teacher targets, the intact and the elastic student, and every term of the loss (elastic.md sections 1 and 3).

use offshoot_zoo::materialize::{Plan, materialize};
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::tensor::{Bool, Device, Int, Tensor, TensorData, activation};
use offshoot_zoo::{DropPath, Network, Weights};
use serde::{Deserialize, Serialize};

use super::heads::Heads;
use super::losses::{cross_entropy, koleo, log_probabilities, sinkhorn};

/// Weights and temperatures of the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRecipe {
    /// Share of the intact student; the elastic one has the rest.
    pub lambda: f64,
    /// Temperature of both students.
    pub student_temperature: f64,
    /// Weight of the masked-patch term, once it is on.
    pub ibot_weight: f64,
    /// Weight of KoLeo; each of the four student crops has half of it.
    pub koleo_weight: f64,
    /// Rounds of Sinkhorn-Knopp.
    pub sinkhorn_iterations: usize,
}

impl Default for LossRecipe {
    fn default() -> Self {
        Self {
            lambda: 0.8,
            student_temperature: 0.1,
            ibot_weight: 1.0,
            koleo_weight: 0.1,
            sinkhorn_iterations: 3,
        }
    }
}

/// The crops of one step, on the device.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Images, `B`.
    pub images: usize,
    /// Local crops an image, `V`.
    pub views: usize,
    /// Global crops `[2B, channels, side, side]`, crop-major: the first crop of all images, then the second.
    pub globals: Tensor<4>,
    /// Local crops `[V * B, channels, side, side]`, crop-major; none if there are none.
    pub locals: Option<Tensor<4>>,
    /// Patches of the global crops that the students see as the mask token, `[2B, patches]`; none before iBOT is on.
    pub masks: Option<Tensor<2, Bool>>,
    /// Masked patches counted through `[2B * patches]`, ascending.
    masked: Vec<i64>,
    /// One over the number of masked patches of its image, for each masked patch.
    weights: Vec<f32>,
}

impl Batch {
    /// Puts the crops of `images` images on `device`. `globals` and `locals` are `[crops, channels, side, side]`, `masks` one
    /// byte a patch of every global crop; a batch without any masked patch is as good as one without masks.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn new(
        images: usize,
        globals: (Vec<f32>, [usize; 3]),
        locals: (Vec<f32>, [usize; 3]),
        masks: Option<&[u8]>,
        device: &Device,
    ) -> Self {
        let crops = |(values, [c, h, w]): (Vec<f32>, [usize; 3])| {
            let n = values.len() / (c * h * w);
            (n > 0).then(|| Tensor::<4>::from_data(TensorData::new(values, [n, c, h, w]), device))
        };
        let globals = crops(globals).expect("a batch has global crops");
        assert_eq!(globals.dims()[0], 2 * images, "global crops of {images} images");
        let locals = crops(locals);
        let views = locals.as_ref().map_or(0, |l| l.dims()[0] / images);
        let masks = masks.filter(|bytes| bytes.iter().any(|&b| b != 0));
        let patches = masks.map_or(1, |bytes| bytes.len() / (2 * images));
        let mut masked = Vec::new();
        let mut weights = Vec::new();
        for (image, row) in masks.unwrap_or_default().chunks(patches).enumerate() {
            let own = row
                .iter()
                .enumerate()
                .filter(|(_, b)| **b != 0)
                .map(|(t, _)| (image * patches + t) as i64);
            let before = masked.len();
            masked.extend(own);
            let count = masked.len() - before;
            weights.extend(std::iter::repeat_n(1.0 / count as f32, count));
        }
        let masks = masks.map(|bytes| {
            let marks: Vec<bool> = bytes.iter().map(|&b| b != 0).collect();
            Tensor::from_data(TensorData::new(marks, [2 * images, patches]), device)
        });
        Self {
            images,
            views,
            globals,
            locals,
            masks,
            masked,
            weights,
        }
    }

    /// `[masked, 1]` weights of the masked patches; none if there are none.
    fn token_weights(&self) -> Option<Tensor<2>> {
        let n = self.weights.len();
        (n > 0).then(|| Tensor::from_data(TensorData::new(self.weights.clone(), [n, 1]), &self.globals.device()))
    }
}

/// What does not change from step to step.
pub struct Objective<'a> {
    /// The intact network.
    pub network: &'a dyn Network,
    /// Its heads.
    pub heads: &'a Heads,
    /// Weights of the terms.
    pub loss: &'a LossRecipe,
}

/// The elastic student of one step.
pub struct Elastic<'a> {
    /// Its network.
    pub network: &'a dyn Network,
    /// How its backbone and heads are cut out of the intact student's.
    pub plan: &'a Plan,
}

/// Which forward pass asks for stochastic depth: each draws its own subsets (elastic.md pitfall 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Pass {
    IntactGlobal,
    IntactLocal,
    ElasticGlobal,
    ElasticLocal,
}

/// The loss of one step and its terms, still on the device.
pub struct Terms {
    /// What is differentiated.
    pub total: Tensor<1>,
    /// Every term by name: `head0.intact.local`, ..., `koleo`, `total`; unweighted but for `koleo`.
    pub named: Vec<(String, Tensor<1>)>,
}

impl Terms {
    /// Host values of the terms, with one read.
    pub fn values(&self) -> Vec<(String, f64)> {
        let all = self
            .named
            .iter()
            .map(|(_, value)| value.clone().without_autodiff())
            .collect();
        let values: Vec<f32> = Tensor::cat(all, 0).into_data().try_to_vec().expect("terms are f32");
        self.named
            .iter()
            .zip(values)
            .map(|((name, _), value)| (name.clone(), f64::from(value)))
            .collect()
    }
}

/// Features of one student: what its heads read, as rows in a fixed order.
struct Student {
    /// Class tokens of the global crops, `[2B, dim]`.
    global: Tensor<2>,
    /// All rows that a head reads: global class tokens, masked patch tokens, local class tokens.
    rows: Tensor<2>,
}

/// Row counts of [`Student::rows`].
#[derive(Clone, Copy)]
struct Rows {
    global: usize,
    masked: usize,
    local: usize,
}

impl Rows {
    fn parts(self, x: &Tensor<2>) -> [Tensor<2>; 3] {
        let [_, k] = x.dims();
        let cut = |start: usize, n: usize| x.clone().slice([start..start + n, 0..k]);
        [
            cut(0, self.global),
            cut(self.global, self.masked),
            cut(self.global + self.masked, self.local),
        ]
    }
}

impl Objective<'_> {
    /// The loss of one step. `student` holds backbone and heads and is tracked; `teacher` holds the same tensors, untracked.
    /// `batch` names masked patches only once the masked-patch term is on.
    pub fn losses(
        &self,
        student: &Weights,
        teacher: &Weights,
        elastic: &Elastic,
        batch: &Batch,
        teacher_temperature: f64,
        drop_path: &mut dyn FnMut(Pass) -> Box<dyn DropPath>,
    ) -> Terms {
        let images = batch.images;
        let cut = materialize(student, elastic.plan);
        let teacher_rows = self.teacher_rows(teacher, batch);
        let intact = forward(
            self.network,
            student,
            batch,
            [Pass::IntactGlobal, Pass::IntactLocal].map(&mut *drop_path),
        );
        let slim = forward(
            elastic.network,
            &cut,
            batch,
            [Pass::ElasticGlobal, Pass::ElasticLocal].map(drop_path),
        );
        let rows = Rows {
            global: 2 * images,
            masked: batch.masked.len(),
            local: batch.views * images,
        };
        let token_weights = batch.token_weights();

        let mut named = Vec::new();
        let mut weighted: Vec<Tensor<1>> = Vec::new();
        for i in 0..self.heads.prototypes.len() {
            let targets = self.targets(teacher, i, teacher_rows.clone(), rows, teacher_temperature);
            let prototypes = self.heads.prototypes(student, i).transpose();
            let logits = |weights: &Weights, x: &Student| {
                self.heads
                    .bottleneck(weights, i, x.rows.clone())
                    .matmul(prototypes.clone())
            };
            let intact_logits = logits(student, &intact);
            let temperature = self.loss.student_temperature;
            let taught = activation::softmax(intact_logits.clone().detach().div_scalar(temperature), 1);
            let intact_log_p = log_probabilities(intact_logits, temperature);
            let slim_log_p = log_probabilities(logits(&cut, &slim), temperature);
            let share = [
                ("intact", &intact_log_p, self.loss.lambda),
                ("elastic", &slim_log_p, 1.0 - self.loss.lambda),
            ];
            let per_head = 1.0 / self.heads.prototypes.len() as f64;
            for (name, log_p, share) in share {
                let terms = cross_view(&targets, log_p, rows, images, batch.views, token_weights.as_ref());
                for (term, weight, value) in terms {
                    let weight = if term == "patch" {
                        weight * self.loss.ibot_weight
                    } else {
                        weight
                    };
                    weighted.push(value.clone() * (weight * share * per_head));
                    named.push((format!("head{i}.{name}.{term}"), value));
                }
            }
            for (term, value) in same_view(taught, &slim_log_p, rows) {
                weighted.push(value.clone() * ((1.0 - self.loss.lambda) * per_head));
                named.push((format!("head{i}.same_view.{term}"), value));
            }
        }
        let koleo = koleo_of([&intact, &slim], images).mul_scalar(0.5 * self.loss.koleo_weight);
        weighted.push(koleo.clone());
        let total = Tensor::cat(weighted, 0).sum();
        named.push(("koleo".into(), koleo));
        named.push(("total".into(), total.clone()));
        Terms { total, named }
    }

    /// Teacher features of the unmasked global crops: class tokens, then the patch tokens that the students see masked.
    fn teacher_rows(&self, teacher: &Weights, batch: &Batch) -> Tensor<2> {
        let features = self.network.forward(teacher, batch.globals.clone(), None, &mut KeepAll);
        match masked_rows(features.patches, &batch.masked) {
            None => features.cls,
            Some(tokens) => Tensor::cat(vec![features.cls, tokens], 0),
        }
    }

    /// Sinkhorn-Knopp targets of head `i`: `[2B, K]` for the class tokens of both crops jointly, and for the masked tokens.
    fn targets(
        &self,
        teacher: &Weights,
        i: usize,
        features: Tensor<2>,
        rows: Rows,
        temperature: f64,
    ) -> [Tensor<2>; 2] {
        let logits = self.heads.logits(teacher, i, features);
        let [_, k] = logits.dims();
        let cls = logits.clone().slice([0..rows.global, 0..k]);
        let tokens = logits.slice([rows.global..rows.global + rows.masked, 0..k]);
        [cls, tokens].map(|logits| sinkhorn(logits, temperature, self.loss.sinkhorn_iterations))
    }
}

/// Runs one student on the global crops (masked) and on the local crops.
fn forward(network: &dyn Network, weights: &Weights, batch: &Batch, drop_path: [Box<dyn DropPath>; 2]) -> Student {
    let [mut for_globals, mut for_locals] = drop_path;
    let features = network.forward(
        weights,
        batch.globals.clone(),
        batch.masks.clone(),
        for_globals.as_mut(),
    );
    let mut rows = vec![features.cls.clone()];
    rows.extend(masked_rows(features.patches, &batch.masked));
    if let Some(locals) = &batch.locals {
        rows.push(network.forward(weights, locals.clone(), None, for_locals.as_mut()).cls);
    }
    Student {
        global: features.cls,
        rows: Tensor::cat(rows, 0),
    }
}

/// The rows `masked` of `[b, t, dim]` patch features, counted through the batch; none if there are none.
fn masked_rows(patches: Tensor<3>, masked: &[i64]) -> Option<Tensor<2>> {
    if masked.is_empty() {
        return None;
    }
    let [b, t, dim] = patches.dims();
    let index = Tensor::<1, Int>::from_data(TensorData::new(masked.to_vec(), [masked.len()]), &patches.device());
    Some(patches.reshape([b * t, dim]).select(0, index))
}

/// Cross-view terms of one student against the teacher, with their weights: local, global and masked-patch. Local and global
/// together average `2 * views + 2` pairs of views.
fn cross_view(
    [cls, tokens]: &[Tensor<2>; 2],
    log_p: &Tensor<2>,
    rows: Rows,
    images: usize,
    views: usize,
    token_weights: Option<&Tensor<2>>,
) -> Vec<(&'static str, f64, Tensor<1>)> {
    let [_, k] = cls.dims();
    let pairs = (2 * views + 2) as f64;
    let crop = |c: usize| cls.clone().slice([c * images..(c + 1) * images, 0..k]);
    let [global, masked, local] = rows.parts(log_p);
    let zero = || Tensor::zeros([1], &cls.device());
    // Every local view meets the targets of both global crops.
    let local_term = if views > 0 {
        let both = (crop(0) + crop(1)).unsqueeze_dim::<3>(0);
        // By row first: one flat sum over all prototypes would lose digits.
        (local.reshape([views, images, k]) * both).sum_dim(2).sum().neg() / (images as f64 * pairs)
    } else {
        zero()
    };
    // A global view meets the other crop's targets.
    let swapped = Tensor::cat(vec![crop(1), crop(0)], 0);
    let global_term = cross_entropy(swapped, global).mean() * (2.0 / pairs);
    let patch_term = match token_weights {
        Some(weights) => (cross_entropy(tokens.clone(), masked) * weights.clone()).sum() / (2 * images) as f64,
        None => zero(),
    };
    vec![
        ("local", 1.0, local_term),
        ("global", 1.0, global_term),
        ("patch", 1.0, patch_term),
    ]
}

/// Same-view terms: the elastic student against the intact student's own probabilities `taught`, on class tokens only.
fn same_view(taught: Tensor<2>, log_p: &Tensor<2>, rows: Rows) -> [(&'static str, Tensor<1>); 2] {
    let ([q_global, _, q_local], [global, _, local]) = (rows.parts(&taught), rows.parts(log_p));
    let local_term = if rows.local > 0 {
        cross_entropy(q_local, local).mean()
    } else {
        Tensor::zeros([1], &taught.device())
    };
    [
        ("global", cross_entropy(q_global, global).mean()),
        ("local", local_term),
    ]
}

/// KoLeo of both students and both global crops, summed.
fn koleo_of(students: [&Student; 2], images: usize) -> Tensor<1> {
    let crops = students.into_iter().flat_map(|s| {
        let [_, dim] = s.global.dims();
        (0..2).map(move |c| koleo(s.global.clone().slice([c * images..(c + 1) * images, 0..dim])))
    });
    Tensor::cat(crops.collect(), 0).sum()
}
