//! One POA step: teacher targets, the intact and the elastic student, and every term of the loss (elastic.md sections 1 and 3).

use offshoot_zoo::materialize::{Plan, materialize};
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::tensor::kernels::{SoftTargets, sinkhorn, soft_cross_entropy, tempered_softmax};
use offshoot_zoo::tensor::{Bool, Device, Int, Linear, Tensor, TensorData};
use offshoot_zoo::{Backbone, DropPath, Weights};
use serde::{Deserialize, Serialize};

use super::heads::Heads;
use super::losses::koleo;

/// Weights and temperatures of the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRecipe {
    /// Share of the intact student; the elastic one has the rest. A step without an elastic student has no shares.
    pub lambda: f64,
    /// Whether the elastic student is also compared with the intact one on the same views (the paper's ablation turns it off).
    pub same_view: bool,
    /// Temperature of both students.
    pub student_temperature: f64,
    /// Weight of the masked-patch term, once it is on.
    pub ibot_weight: f64,
    /// Weight of KoLeo; each global crop of each student has half of it.
    pub koleo_weight: f64,
    /// Rounds of Sinkhorn-Knopp.
    pub sinkhorn_iterations: usize,
}

impl Default for LossRecipe {
    fn default() -> Self {
        Self {
            lambda: 0.8,
            same_view: true,
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
}

/// What does not change from step to step.
pub struct Objective<'a> {
    /// The intact network.
    pub network: &'a dyn Backbone,
    /// Its heads.
    pub heads: &'a Heads,
    /// Weights of the terms.
    pub loss: &'a LossRecipe,
}

/// The elastic student of one step.
pub struct Elastic<'a> {
    /// Its network.
    pub network: &'a dyn Backbone,
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
    images: usize,
    masked: usize,
    views: usize,
}

impl Rows {
    fn all(self) -> usize {
        2 * self.images + self.masked + self.views * self.images
    }

    /// Row of `[image, crop]` of the class tokens of global crops, of a masked patch, or of `[image, view]` of local crops.
    fn each(self) -> impl Iterator<Item = Row> {
        let images = self.images;
        let of = move |i: usize| (i % images.max(1), i / images.max(1));
        let globals = (0..2 * images).map(move |i| Row::Global(of(i).0, of(i).1));
        let masked = (0..self.masked).map(Row::Masked);
        let locals = (0..self.views * images).map(move |i| Row::Local(of(i).0));
        globals.chain(masked).chain(locals)
    }
}

/// What a row of [`Student::rows`] is.
#[derive(Clone, Copy)]
enum Row {
    /// The class token of an image's global crop.
    Global(usize, usize),
    /// A masked patch, counted through the batch.
    Masked(usize),
    /// The class token of a local crop of an image.
    Local(usize),
}

/// How the cross-entropies of a student's rows with each set of targets make terms of the loss; the same for all heads.
struct Comparison {
    targets: SoftTargets,
    /// `[sets * rows, terms]`.
    weights: Tensor<2>,
    names: &'static [&'static str],
}

impl Comparison {
    /// The sets are the teacher's targets of the class tokens, those of the masked patches, the class tokens' two crops added up,
    /// and, if the student is compared with the `intact` one, that one's probabilities. Local and global terms against the
    /// teacher together average `2 * views + 2` pairs of views.
    fn new(rows: Rows, batch: &Batch, loss: &LossRecipe, intact: bool, device: &Device) -> Self {
        let names: &[&str] = if intact {
            &["local", "global", "patch", "global", "local"]
        } else {
            &["local", "global", "patch"]
        };
        let sets = if intact { 4 } else { 3 };
        let (images, views, all) = (rows.images as f64, rows.views as f64, rows.all());
        let pairs = 2.0 * views + 2.0;
        let mut asked = vec![vec![None; all]; sets];
        let mut weights = vec![0.0f32; sets * all * names.len()];
        for (r, row) in rows.each().enumerate() {
            let mut compare = |set: usize, target: usize, term: usize, weight: f64| {
                asked[set][r] = Some(target as u32);
                weights[(set * all + r) * names.len() + term] = weight as f32;
            };
            match row {
                Row::Global(image, crop) => {
                    // A global view meets the other crop's targets.
                    compare(0, (1 - crop) * rows.images + image, 1, 2.0 / pairs / (2.0 * images));
                    if intact {
                        compare(3, r, 3, 1.0 / (2.0 * images));
                    }
                }
                Row::Masked(i) => compare(1, i, 2, f64::from(batch.weights[i]) / (2.0 * images)),
                Row::Local(image) => {
                    // Every local view meets the targets of both global crops.
                    compare(2, image, 0, 1.0 / (images * pairs));
                    if intact {
                        compare(3, r, 4, 1.0 / (views * images));
                    }
                }
            }
        }
        Self {
            targets: SoftTargets {
                temperature: loss.student_temperature,
                rows: asked.into(),
            },
            weights: Tensor::from_data(TensorData::new(weights, [sets * all, names.len()]), device),
            names,
        }
    }

    /// The terms of `[rows, prototypes]` logits, `[1, terms]`.
    fn terms(&self, logits: Tensor<2>, targets: Vec<Tensor<2>>) -> Tensor<2> {
        let losses = soft_cross_entropy(self.targets.clone(), logits, targets);
        let all = losses.dims().iter().product::<usize>();
        losses.reshape([1, all]).matmul(self.weights.clone())
    }
}

impl Objective<'_> {
    /// The loss of one step. `student` holds backbone and heads and is tracked; `teacher` holds the same tensors, untracked.
    /// `batch` names masked patches only once the masked-patch term is on. Without an `elastic` student the intact one trains
    /// alone: its terms have full weight, and no other term is there.
    pub fn losses(
        &self,
        student: &Weights,
        teacher: &Weights,
        elastic: Option<&Elastic>,
        batch: &Batch,
        teacher_temperature: f64,
        drop_path: &mut dyn FnMut(Pass) -> Box<dyn DropPath>,
    ) -> Terms {
        let images = batch.images;
        let cut = elastic.map(|elastic| materialize(student, elastic.plan));
        let teacher_rows = self.teacher_rows(teacher, batch);
        let intact = forward(
            self.network,
            student,
            batch,
            [Pass::IntactGlobal, Pass::IntactLocal].map(&mut *drop_path),
        );
        let slim = elastic.zip(cut.as_ref()).map(|(elastic, cut)| {
            let passes = [Pass::ElasticGlobal, Pass::ElasticLocal].map(drop_path);
            (cut, forward(elastic.network, cut, batch, passes))
        });
        let rows = Rows {
            images,
            masked: batch.masked.len(),
            views: batch.views,
        };
        let device = batch.globals.device();
        let same_view = self.loss.same_view && slim.is_some();
        let compared = [false, same_view].map(|intact| Comparison::new(rows, batch, self.loss, intact, &device));
        let temperature = self.loss.student_temperature;
        let lambda = if slim.is_some() { self.loss.lambda } else { 1.0 };
        let per_head = 1.0 / self.heads.prototypes.len() as f64;

        let mut named = Vec::new();
        let mut weighted: Vec<Tensor<1>> = Vec::new();
        for i in 0..self.heads.prototypes.len() {
            let mut targets = self.targets(teacher, i, teacher_rows.clone(), rows, teacher_temperature);
            let prototypes = self.heads.prototypes(student, i);
            let logits = |weights: &Weights, x: &Student| {
                Linear::new(prototypes.clone()).forward(self.heads.bottleneck(weights, i, x.rows.clone()))
            };
            let intact_logits = logits(student, &intact);
            let taught = same_view.then(|| tempered_softmax(intact_logits.clone(), temperature));
            let mut students = vec![("intact", intact_logits, lambda)];
            if let Some((cut, slim)) = &slim {
                students.push(("elastic", logits(cut, slim), 1.0 - lambda));
            }
            for ((name, logits, share), comparison) in students.into_iter().zip(&compared) {
                if name == "elastic" {
                    targets.extend(taught.clone());
                }
                let terms = comparison.terms(logits, targets.clone());
                for (t, term) in comparison.names.iter().enumerate() {
                    let value = terms.clone().slice([0..1, t..t + 1]).reshape([1]);
                    // The first three are against the teacher, what follows is against the intact student.
                    let name = if t < 3 { name } else { "same_view" };
                    let weight = if *term == "patch" { self.loss.ibot_weight } else { 1.0 };
                    weighted.push(value.clone() * (weight * share * per_head));
                    named.push((format!("head{i}.{name}.{term}"), value));
                }
            }
        }
        let students = std::iter::once(&intact).chain(slim.as_ref().map(|(_, slim)| slim));
        let koleo = koleo_of(students, images).mul_scalar(0.5 * self.loss.koleo_weight);
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

    /// Sinkhorn-Knopp targets of head `i`: `[2B, K]` for the class tokens of both crops jointly, those for the masked tokens, and
    /// `[B, K]`, the sum of both crops' targets.
    fn targets(
        &self,
        teacher: &Weights,
        i: usize,
        features: Tensor<2>,
        rows: Rows,
        temperature: f64,
    ) -> Vec<Tensor<2>> {
        let logits = self.heads.logits(teacher, i, features);
        let [_, k] = logits.dims();
        let (images, globals) = (rows.images, 2 * rows.images);
        let part = |start: usize, n: usize| logits.clone().slice([start..start + n, 0..k]);
        let balanced = |logits: Tensor<2>| sinkhorn(logits, temperature, self.loss.sinkhorn_iterations);
        let cls = balanced(part(0, globals));
        let tokens = balanced(part(globals, rows.masked));
        let both = cls.clone().slice([0..images, 0..k]) + cls.clone().slice([images..globals, 0..k]);
        vec![cls, tokens, both]
    }
}

/// Runs one student on the global crops (masked) and on the local crops.
fn forward(network: &dyn Backbone, weights: &Weights, batch: &Batch, drop_path: [Box<dyn DropPath>; 2]) -> Student {
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

/// KoLeo of all students and both global crops, summed.
fn koleo_of<'a>(students: impl Iterator<Item = &'a Student>, images: usize) -> Tensor<1> {
    let crops = students.flat_map(|s| {
        let [_, dim] = s.global.dims();
        (0..2).map(move |c| koleo(s.global.clone().slice([c * images..(c + 1) * images, 0..dim])))
    });
    Tensor::cat(crops.collect(), 0).sum()
}
