//! DINOv2's linear probe: a grid of linear classifiers on frozen features, trained side by side in one pass.

use std::f64::consts::PI;

use offshoot_data::Rng;
use offshoot_zoo::tensor::{Device, Tensor, TensorData, activation};
use rayon::prelude::*;

use crate::error::{EvalError, same};
use crate::features::{ChildFeatures, Labelled, check_labels, matrix, read};

/// The learning rates of DINOv2's grid, each times `batch / 256`.
pub const LEARNING_RATES: [f64; 13] = [
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1,
];

const MOMENTUM: f64 = 0.9;
const INIT_STD: f64 = 0.01;
/// Most weights of all classifiers together: 4 GiB.
const MAX_WEIGHTS: usize = 1 << 30;

/// How the classifiers are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeSettings {
    /// Learning rates of the grid, before they are multiplied by `batch / 256`.
    pub learning_rates: Vec<f64>,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images of a step; all of them where there are fewer.
    pub batch: usize,
    /// Seed of the order of the images and of the first weights.
    pub seed: u64,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            learning_rates: LEARNING_RATES.to_vec(),
            epochs: 10,
            batch: 256,
            seed: 0,
        }
    }
}

/// What a classifier reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The CLS vector.
    Cls,
    /// The CLS vector followed by the mean of the patch tokens.
    ClsAndPatches,
}

impl Input {
    /// Both, in the order of the grid.
    pub const ALL: [Self; 2] = [Self::Cls, Self::ClsAndPatches];

    /// Its name in a scorecard.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::ClsAndPatches => "cls+patches",
        }
    }

    fn dim(self, features: &ChildFeatures) -> usize {
        match self {
            Self::Cls => features.cls.dim,
            Self::ClsAndPatches => features.cls.dim + features.mean_patches.dim,
        }
    }

    /// The inputs of these images, one after the other.
    fn rows(self, features: &ChildFeatures, images: &[usize]) -> Vec<f32> {
        let mut values = Vec::with_capacity(images.len() * self.dim(features));
        for &image in images {
            let mut push = |m: &crate::FeatureMatrix| values.extend_from_slice(&m.values[image * m.dim..][..m.dim]);
            push(&features.cls);
            if self == Self::ClsAndPatches {
                push(&features.mean_patches);
            }
        }
        values
    }
}

/// One classifier of the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// What it reads.
    pub input: Input,
    /// Its learning rate, before the multiplication by `batch / 256`.
    pub learning_rate: f64,
    /// Share of the validation images it classified right, in 0..1.
    pub accuracy: f64,
}

/// The outcome of [`linear_probe`].
#[derive(Clone, Debug, PartialEq)]
pub struct LinearProbe {
    /// Accuracy of the best classifier, in 0..1.
    pub best: f64,
    /// The best classifier; of equals the first of the grid.
    pub best_setting: Cell,
    /// Every classifier: CLS first, and by learning rate as given within each input.
    pub grid: Vec<Cell>,
    /// How they were trained; `batch` is the one that was used.
    pub settings: ProbeSettings,
    /// Steps they were trained for.
    pub steps: usize,
    /// Images they were trained on.
    pub train: usize,
    /// Images they were scored on.
    pub val: usize,
    /// Classes.
    pub classes: usize,
}

/// Linear probing after DINOv2 (elastic.md section 6.1; `eval/linear.py` of DINOv2).
///
/// Frozen features as the child gives them, not normalised; a linear classifier for each learning rate of the grid and each
/// [`Input`], weights from N(0, 0.01²) and biases 0; softmax cross-entropy; SGD with momentum 0.9 and no weight decay; the
/// learning rate, times `batch / 256`, falls to 0 along a cosine over all steps. All classifiers see the same batches: the
/// images in an order shuffled anew for every epoch, cut into full batches across the epochs' ends.
///
/// Three things differ from DINOv2. Features are computed once per image, so there is no random cropping or flipping; only
/// the last layer is read, not also four layers together; and the number of steps follows from `epochs`, where DINOv2 has
/// 12 500. As there, the best classifier is chosen on the images that it is scored on.
///
/// `progress` is called after each step with the number of steps done and of all steps.
///
/// # Errors
/// If there are no images, sizes do not agree, a feature is not finite, a label is no class, a setting is 0, no number, or
/// too large to be held in memory.
pub fn linear_probe(
    train: Labelled<'_, ChildFeatures>,
    val: Labelled<'_, ChildFeatures>,
    classes: usize,
    settings: &ProbeSettings,
    device: &Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LinearProbe, EvalError> {
    check(train, val, classes, settings)?;
    let images = train.labels.len();
    let batch = settings.batch.min(images);
    let settings = ProbeSettings {
        batch,
        ..settings.clone()
    };
    let steps = images.checked_mul(settings.epochs).map(|seen| seen.div_ceil(batch));
    let steps = steps.ok_or_else(|| EvalError::setting("epochs", settings.epochs, "too many"))?;
    let device = device.clone().without_autodiff();
    let mut grid = Input::ALL.map(|input| Classifiers::new(input, train.features, classes, &settings, &device));
    let mut order = Order::new(images, settings.seed);
    for step in 0..steps {
        let picked = order.next(batch);
        let labels: Vec<u32> = picked.iter().map(|&i| train.labels[i]).collect();
        let targets = one_hot(&labels, classes, &device);
        let cosine = 0.5 * (1.0 + (PI * step as f64 / steps as f64).cos());
        for classifiers in &mut grid {
            let inputs = matrix(
                classifiers.input.rows(train.features, &picked),
                batch,
                classifiers.dim,
                &device,
            );
            classifiers.step(inputs, targets.clone(), cosine);
        }
        progress(step + 1, steps);
    }
    let mut cells = Vec::new();
    for classifiers in &grid {
        let right = classifiers.right(val, &device)?;
        cells.extend(
            settings
                .learning_rates
                .iter()
                .zip(right)
                .map(|(&learning_rate, right)| Cell {
                    input: classifiers.input,
                    learning_rate,
                    accuracy: right as f64 / val.labels.len() as f64,
                }),
        );
    }
    let best = cells.iter().fold(
        cells[0],
        |best, &cell| if cell.accuracy > best.accuracy { cell } else { best },
    );
    Ok(LinearProbe {
        best: best.accuracy,
        best_setting: best,
        grid: cells,
        settings,
        steps,
        train: images,
        val: val.labels.len(),
        classes,
    })
}

fn check(
    train: Labelled<'_, ChildFeatures>,
    val: Labelled<'_, ChildFeatures>,
    classes: usize,
    settings: &ProbeSettings,
) -> Result<(), EvalError> {
    let (of_train, of_val) = (train.features, val.features);
    of_train.cls.check("CLS features of the training images")?;
    of_train.mean_patches.check("patch features of the training images")?;
    of_val.cls.check("CLS features of the validation images")?;
    of_val.mean_patches.check("patch features of the validation images")?;
    same("rows of patch features", of_train.mean_patches.rows, of_train.cls.rows)?;
    same("rows of patch features", of_val.mean_patches.rows, of_val.cls.rows)?;
    same("channels of the validation features", of_val.cls.dim, of_train.cls.dim)?;
    same(
        "channels of the validation features",
        of_val.mean_patches.dim,
        of_train.mean_patches.dim,
    )?;
    check_labels(
        "labels of the training images",
        train.labels,
        of_train.cls.rows,
        classes,
    )?;
    check_labels("labels of the validation images", val.labels, of_val.cls.rows, classes)?;
    for (name, value) in [("epochs", settings.epochs), ("batch", settings.batch)] {
        if value == 0 {
            return Err(EvalError::setting(name, value, "must be at least 1"));
        }
    }
    if settings.learning_rates.is_empty() {
        return Err(EvalError::setting("learning_rates", "[]", "at least one is needed"));
    }
    if let Some(rate) = settings.learning_rates.iter().find(|r| !(r.is_finite() && **r > 0.0)) {
        return Err(EvalError::setting("learning_rates", rate, "must be positive numbers"));
    }
    let columns = settings.learning_rates.len().checked_mul(classes);
    let weights = columns.and_then(|columns| columns.checked_mul(Input::ClsAndPatches.dim(of_train)));
    if weights.is_none_or(|weights| weights > MAX_WEIGHTS) {
        let reason = format!(
            "with {} learning rates that is too many weights",
            settings.learning_rates.len()
        );
        return Err(EvalError::setting("classes", classes, reason));
    }
    Ok(())
}

/// The classifiers of one input for all learning rates, side by side: column `r * classes + c` is class `c` at rate `r`.
struct Classifiers {
    input: Input,
    dim: usize,
    classes: usize,
    /// `[dim, rates * classes]`.
    weight: Tensor<2>,
    /// `[1, rates * classes]`.
    bias: Tensor<2>,
    weight_velocity: Tensor<2>,
    bias_velocity: Tensor<2>,
    /// Learning rate of each column, `[1, rates * classes]`.
    rates: Tensor<2>,
}

impl Classifiers {
    fn new(input: Input, features: &ChildFeatures, classes: usize, settings: &ProbeSettings, device: &Device) -> Self {
        let dim = input.dim(features);
        let columns = settings.learning_rates.len() * classes;
        let mut weight = vec![0.0; dim * columns];
        weight.par_chunks_mut(columns).enumerate().for_each(|(row, weights)| {
            let mut rng = Rng::for_example(settings.seed, "linear probe init", input as u64, row as u64);
            weights.fill_with(|| (INIT_STD * rng.normal()) as f32);
        });
        let scale = settings.batch as f64 / 256.0;
        let rates = settings.learning_rates.iter();
        let rates = rates
            .flat_map(|&rate| std::iter::repeat_n((rate * scale) as f32, classes))
            .collect();
        let zeros = |rows| Tensor::zeros([rows, columns], device);
        Self {
            input,
            dim,
            classes,
            weight: matrix(weight, dim, columns, device),
            bias: zeros(1),
            weight_velocity: zeros(dim),
            bias_velocity: zeros(1),
            rates: matrix(rates, 1, columns, device),
        }
    }

    /// `[n, dim]` inputs to `[n, rates * classes]` logits.
    fn logits(&self, inputs: Tensor<2>) -> Tensor<2> {
        inputs.matmul(self.weight.clone()) + self.bias.clone()
    }

    /// Gradients of the mean cross-entropy of each classifier with respect to its weights and biases, in closed form:
    /// `inputs^T (softmax - target) / n`. `targets` are one-hot, `[n, 1, classes]`.
    fn gradients(&self, inputs: Tensor<2>, targets: Tensor<3>) -> (Tensor<2>, Tensor<2>) {
        let logits = self.logits(inputs.clone());
        let [n, columns] = logits.dims();
        let shares = activation::softmax(logits.reshape([n, columns / self.classes, self.classes]), 2);
        let errors = (shares - targets).div_scalar(n as f64).reshape([n, columns]);
        (inputs.transpose().matmul(errors.clone()), errors.sum_dim(0))
    }

    /// One step of SGD with momentum as PyTorch has it: `v = 0.9 v + g; w -= rate v`.
    fn step(&mut self, inputs: Tensor<2>, targets: Tensor<3>, cosine: f64) {
        let (weight, bias) = self.gradients(inputs, targets);
        let rates = self.rates.clone().mul_scalar(cosine);
        let update = |value: &mut Tensor<2>, velocity: &mut Tensor<2>, gradient: Tensor<2>| {
            *velocity = velocity.clone().mul_scalar(MOMENTUM) + gradient;
            *value = value.clone() - velocity.clone() * rates.clone();
        };
        update(&mut self.weight, &mut self.weight_velocity, weight);
        update(&mut self.bias, &mut self.bias_velocity, bias);
    }

    /// How many images each learning rate's classifier gets right. Of equal logits the lowest class wins; logits that are
    /// no numbers are wrong.
    fn right(&self, val: Labelled<'_, ChildFeatures>, device: &Device) -> Result<Vec<usize>, EvalError> {
        let columns = self.rates.dims()[1];
        let mut total = vec![0; columns / self.classes];
        let images: Vec<usize> = (0..val.labels.len()).collect();
        for (images, labels) in images.chunks(256).zip(val.labels.chunks(256)) {
            let inputs = matrix(self.input.rows(val.features, images), images.len(), self.dim, device);
            let logits = read(self.logits(inputs))?;
            let right: Vec<Vec<bool>> = logits
                .par_chunks(columns)
                .zip(labels)
                .map(|(row, &label)| {
                    row.chunks(self.classes)
                        .map(|l| elected(l) == Some(label as usize))
                        .collect()
                })
                .collect();
            for row in right {
                total
                    .iter_mut()
                    .zip(row)
                    .for_each(|(total, right)| *total += usize::from(right));
            }
        }
        Ok(total)
    }
}

/// The index of the largest logit, the first of equals; none if one of them is not finite.
fn elected(logits: &[f32]) -> Option<usize> {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return None;
        }
        if logit > logits[best] {
            best = i;
        }
    }
    Some(best)
}

/// `[n, 1, classes]`: 1 at each label.
fn one_hot(labels: &[u32], classes: usize, device: &Device) -> Tensor<3> {
    let mut values = vec![0f32; labels.len() * classes];
    for (row, &label) in values.chunks_mut(classes).zip(labels) {
        row[label as usize] = 1.0;
    }
    Tensor::from_data(TensorData::new(values, [labels.len(), 1, classes]), device)
}

/// An endless stream of images: every one of them once an epoch, shuffled anew for each.
struct Order {
    seed: u64,
    epoch: u64,
    images: Vec<usize>,
    position: usize,
}

impl Order {
    fn new(images: usize, seed: u64) -> Self {
        let mut order = Self {
            seed,
            epoch: 0,
            images: (0..images).collect(),
            position: 0,
        };
        order.shuffle();
        order
    }

    fn shuffle(&mut self) {
        self.images.sort_unstable();
        Rng::for_example(self.seed, "linear probe order", self.epoch, 0).shuffle(&mut self.images);
    }

    fn next(&mut self, n: usize) -> Vec<usize> {
        let mut picked = Vec::with_capacity(n);
        while picked.len() < n {
            if self.position == self.images.len() {
                self.epoch += 1;
                self.position = 0;
                self.shuffle();
            }
            let end = self.images.len().min(self.position + n - picked.len());
            picked.extend_from_slice(&self.images[self.position..end]);
            self.position = end;
        }
        picked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FeatureMatrix;

    fn cpu() -> Device {
        offshoot_zoo::tensor::device("cpu").unwrap()
    }

    /// Normal features around a centre for each class at `spread` times a random direction.
    fn blobs(rows: usize, dim: usize, classes: usize, spread: f64, seed: u64) -> (ChildFeatures, Vec<u32>) {
        let mut rng = Rng::for_example(seed, "blobs", 0, 0);
        let labels: Vec<u32> = (0..rows).map(|_| rng.below(classes as u64) as u32).collect();
        let mut sample = |stream: &str| {
            let centres: Vec<f64> = {
                let mut rng = Rng::for_example(0, stream, 0, 0);
                (0..classes * dim).map(|_| spread * rng.normal()).collect()
            };
            let mut value = |i: usize| centres[labels[i / dim] as usize * dim + i % dim] + rng.normal();
            FeatureMatrix {
                rows,
                dim,
                values: (0..rows * dim).map(|i| value(i) as f32).collect(),
            }
        };
        (
            ChildFeatures {
                cls: sample("cls"),
                mean_patches: sample("patches"),
            },
            labels,
        )
    }

    fn probe(spread: f64, classes: usize, settings: &ProbeSettings) -> LinearProbe {
        let (train, val) = (blobs(600, 12, classes, spread, 1), blobs(400, 12, classes, spread, 2));
        let train = Labelled {
            features: &train.0,
            labels: &train.1,
        };
        let val = Labelled {
            features: &val.0,
            labels: &val.1,
        };
        let mut done = Vec::new();
        let probe = linear_probe(train, val, classes, settings, &cpu(), &mut |n, of| done.push((n, of))).unwrap();
        assert_eq!(done.len(), probe.steps);
        assert_eq!(done.last(), Some(&(probe.steps, probe.steps)));
        probe
    }

    #[test]
    fn separable_features_are_separated() {
        let found = probe(6.0, 5, &ProbeSettings::default());
        assert_eq!(found.best, 1.0);
        assert_eq!(
            (found.grid.len(), found.steps, found.train, found.val),
            (26, 24, 600, 400)
        );
        assert_eq!(
            (found.grid[0].input, found.grid[13].input),
            (Input::Cls, Input::ClsAndPatches)
        );
        assert_eq!(found.grid[25].learning_rate, 0.1);
    }

    #[test]
    fn noise_scores_chance() {
        let (train, val) = (blobs(600, 12, 4, 0.0, 1), blobs(10_000, 12, 4, 0.0, 2));
        let train = Labelled {
            features: &train.0,
            labels: &train.1,
        };
        let val = Labelled {
            features: &val.0,
            labels: &val.1,
        };
        let found = linear_probe(train, val, 4, &ProbeSettings::default(), &cpu(), &mut |_, _| {}).unwrap();
        // Four standard deviations of a share of 10 000.
        assert!(
            found.grid.iter().all(|cell| (cell.accuracy - 0.25).abs() < 0.018),
            "{found:?}"
        );
    }

    #[test]
    fn patches_help_where_cls_knows_nothing() {
        let (mut train, mut val) = (blobs(600, 12, 4, 3.0, 1), blobs(400, 12, 4, 3.0, 2));
        for features in [&mut train.0, &mut val.0] {
            features.cls.values.fill(1.0);
        }
        let train = Labelled {
            features: &train.0,
            labels: &train.1,
        };
        let val = Labelled {
            features: &val.0,
            labels: &val.1,
        };
        let found = linear_probe(train, val, 4, &ProbeSettings::default(), &cpu(), &mut |_, _| {}).unwrap();
        assert_eq!(found.best_setting.input, Input::ClsAndPatches);
        assert!(found.best > 0.95);
        // Constant features: every image gets the same class.
        let shares: Vec<f64> = (0..4u32)
            .map(|c| val.labels.iter().filter(|&&l| l == c).count() as f64 / 400.0)
            .collect();
        assert!(
            found.grid[..13].iter().all(|cell| shares.contains(&cell.accuracy)),
            "{found:?}"
        );
    }

    #[test]
    fn the_seed_decides_everything() {
        let settings = |seed| ProbeSettings {
            seed,
            epochs: 2,
            batch: 37,
            ..Default::default()
        };
        let once = probe(0.3, 3, &settings(1));
        assert_eq!(once, probe(0.3, 3, &settings(1)));
        assert_ne!(once.grid, probe(0.3, 3, &settings(2)).grid);
        assert_eq!(once.steps, 1200usize.div_ceil(37));
    }

    /// The mean cross-entropy of classifier `r` in f64.
    fn loss(weight: &[f64], bias: &[f64], inputs: &[f32], labels: &[u32], r: usize, classes: usize) -> f64 {
        let (columns, n) = (bias.len(), labels.len());
        let dim = weight.len() / columns;
        let one = |i: usize| {
            let logit = |c: usize| {
                let column = r * classes + c;
                let products = (0..dim).map(|d| f64::from(inputs[i * dim + d]) * weight[d * columns + column]);
                bias[column] + products.sum::<f64>()
            };
            (0..classes).map(|c| logit(c).exp()).sum::<f64>().ln() - logit(labels[i] as usize)
        };
        (0..n).map(one).sum::<f64>() / n as f64
    }

    #[test]
    fn gradients_are_those_of_the_loss() {
        let (classes, n) = (3, 7);
        let (features, labels) = blobs(n, 4, classes, 1.0, 9);
        let settings = ProbeSettings {
            learning_rates: vec![0.1, 0.2],
            batch: n,
            ..Default::default()
        };
        for input in Input::ALL {
            let mut classifiers = Classifiers::new(input, &features, classes, &settings, &cpu());
            classifiers.weight = classifiers.weight.mul_scalar(40.0);
            classifiers.bias = matrix((0..6).map(|i| i as f32 / 7.0).collect(), 1, 6, &cpu());
            let images: Vec<usize> = (0..n).collect();
            let inputs = input.rows(&features, &images);
            let on_device = matrix(inputs.clone(), n, classifiers.dim, &cpu());
            let (dw, db) = classifiers.gradients(on_device, one_hot(&labels, classes, &cpu()));
            let (dw, db) = (read(dw).unwrap(), read(db).unwrap());
            let f64s = |t: &Tensor<2>| {
                read(t.clone())
                    .unwrap()
                    .iter()
                    .map(|&v| f64::from(v))
                    .collect::<Vec<_>>()
            };
            let (weight, bias) = (f64s(&classifiers.weight), f64s(&classifiers.bias));
            let step = 1e-5;
            for (i, &gradient) in dw.iter().chain(&db).enumerate() {
                let at = |delta: f64| {
                    let (mut weight, mut bias) = (weight.clone(), bias.clone());
                    match weight.get_mut(i) {
                        Some(w) => *w += delta,
                        None => bias[i - weight.len()] += delta,
                    }
                    loss(&weight, &bias, &inputs, &labels, (i % 6) / classes, classes)
                };
                let slope = (at(step) - at(-step)) / (2.0 * step);
                assert!((slope - f64::from(gradient)).abs() < 1e-6, "{i}: {slope} {gradient}");
            }
        }
    }

    /// Two steps of momentum with a constant gradient: `w = w0 - r1 g - r2 (1.9 g)`, columns with their own rates.
    #[test]
    fn steps_follow_momentum_and_rates() {
        let features = ChildFeatures {
            cls: FeatureMatrix::new(1, 1, vec![0.0]).unwrap(),
            mean_patches: FeatureMatrix::new(1, 1, vec![0.0]).unwrap(),
        };
        // With inputs of 0 only the biases move: softmax of (0, 0) minus (1, 0) is (-0.5, 0.5).
        let settings = ProbeSettings {
            learning_rates: vec![1e-3, 2e-3],
            batch: 256,
            ..Default::default()
        };
        let mut classifiers = Classifiers::new(Input::Cls, &features, 2, &settings, &cpu());
        let before = read(classifiers.weight.clone()).unwrap();
        for cosine in [1.0, 0.5] {
            classifiers.step(matrix(vec![0.0], 1, 1, &cpu()), one_hot(&[0], 2, &cpu()), cosine);
        }
        let bias = read(classifiers.bias).unwrap();
        let expected = 0.5 * (1.0 + 0.5 * 1.9);
        for (found, rate) in bias.iter().zip([1e-3, -1e-3, 2e-3, -2e-3]) {
            assert!((f64::from(*found) - rate * expected).abs() < 2e-6, "{bias:?}");
        }
        assert_eq!(read(classifiers.weight).unwrap(), before);
    }

    #[test]
    fn every_image_comes_once_an_epoch() {
        let mut order = Order::new(10, 3);
        let all: Vec<usize> = (0..10).flat_map(|_| order.next(4)).collect();
        for epoch in all.chunks(10) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            assert_eq!(epoch, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[..10], all[10..20]);
        assert_eq!(order.next(25).len(), 25);
    }

    #[test]
    fn first_weights_are_small_and_spread() {
        let (features, _) = blobs(1, 64, 1, 0.0, 0);
        let classifiers = Classifiers::new(Input::Cls, &features, 50, &ProbeSettings::default(), &cpu());
        let weight = read(classifiers.weight).unwrap();
        let n = weight.len() as f64;
        let mean = weight.iter().map(|&w| f64::from(w)).sum::<f64>() / n;
        let std = (weight.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 2e-4 && (std - 0.01).abs() < 2e-4, "{mean} {std}");
    }

    #[test]
    fn bad_input_is_an_error() {
        let (features, labels) = blobs(20, 3, 2, 1.0, 1);
        let good = Labelled {
            features: &features,
            labels: &labels,
        };
        let ask = |train: Labelled<'_, ChildFeatures>, classes, settings: &ProbeSettings| {
            linear_probe(train, good, classes, settings, &cpu(), &mut |_, _| {})
        };
        let settings = ProbeSettings {
            epochs: 1,
            ..Default::default()
        };
        assert_eq!(ask(good, 2, &settings).unwrap().settings.batch, 20);
        for wrong in [
            ProbeSettings {
                epochs: 0,
                ..Default::default()
            },
            ProbeSettings {
                epochs: usize::MAX,
                ..Default::default()
            },
            ProbeSettings {
                batch: 0,
                ..Default::default()
            },
            ProbeSettings {
                learning_rates: vec![],
                ..Default::default()
            },
            ProbeSettings {
                learning_rates: vec![f64::NAN],
                ..Default::default()
            },
        ] {
            assert!(matches!(ask(good, 2, &wrong), Err(EvalError::Setting { .. })));
        }
        assert!(matches!(
            ask(good, usize::MAX, &settings),
            Err(EvalError::Setting { name: "classes", .. })
        ));
        assert!(matches!(ask(good, 1, &settings), Err(EvalError::Label { .. })));
        let few = Labelled {
            features: &features,
            labels: &labels[1..],
        };
        assert!(matches!(ask(few, 2, &settings), Err(EvalError::Size { .. })));
        let mut broken = features.clone();
        broken.mean_patches.values[0] = f32::INFINITY;
        let broken = Labelled {
            features: &broken,
            labels: &labels,
        };
        assert!(matches!(
            ask(broken, 2, &settings),
            Err(EvalError::NotFinite { row: 0, .. })
        ));
        let (narrow, labels) = blobs(20, 2, 2, 1.0, 1);
        assert!(matches!(
            ask(
                Labelled {
                    features: &narrow,
                    labels: &labels
                },
                2,
                &settings
            ),
            Err(EvalError::Size { .. })
        ));
        assert_eq!((elected(&[1.0, 2.0, 2.0]), elected(&[1.0, f32::NAN])), (Some(1), None));
    }
}
