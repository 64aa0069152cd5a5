//! What a child makes of images: one CLS vector and one mean of patch tokens an image, computed once for all scorers.

use offshoot_zoo::network::KeepAll;
use offshoot_zoo::tensor::{Device, Tensor, TensorData};
use offshoot_zoo::{Backbone, Weights};

use crate::error::{EvalError, enough, same};

/// One vector an image, `[rows, dim]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureMatrix {
    /// Images.
    pub rows: usize,
    /// Channels of each vector.
    pub dim: usize,
    /// `rows * dim` values, one image after the other.
    pub values: Vec<f32>,
}

impl FeatureMatrix {
    /// A matrix from its values.
    ///
    /// # Errors
    /// If there are not `rows * dim` values.
    pub fn new(rows: usize, dim: usize, values: Vec<f32>) -> Result<Self, EvalError> {
        let matrix = Self { rows, dim, values };
        matrix.check_size("features")?;
        Ok(matrix)
    }

    /// Each row divided by its Euclidean norm, or by 1e-12 where that is larger (`torch.nn.functional.normalize`): a row of
    /// zeros stays one.
    #[must_use]
    pub fn normalised(&self) -> Self {
        let mut values = self.values.clone();
        normalise(&mut values, self.dim);
        Self { values, ..*self }
    }

    fn check_size(&self, what: &'static str) -> Result<(), EvalError> {
        same(what, self.values.len(), self.rows.saturating_mul(self.dim))
    }

    /// Errors unless there are rows and channels, as many values as that makes, and all of them finite.
    pub(crate) fn check(&self, what: &'static str) -> Result<(), EvalError> {
        self.check_size(what)?;
        enough(what, self.rows, 1)?;
        enough("channels of the features", self.dim, 1)?;
        match self.values.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(i) => Err(EvalError::NotFinite {
                what,
                row: i / self.dim,
            }),
        }
    }
}

/// Divides each row of `dim` values by its norm, in place.
pub(crate) fn normalise(values: &mut [f32], dim: usize) {
    for row in values.chunks_mut(dim.max(1)) {
        let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(1e-12);
        for value in row {
            *value = (f64::from(*value) / norm) as f32;
        }
    }
}

/// A child's features of the same images, both behind its final norm.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildFeatures {
    /// The class token of each image (for networks without one, what they give in its place), `[images, dim]`.
    pub cls: FeatureMatrix,
    /// The mean over the patch tokens of each image, `[images, dim]`.
    pub mean_patches: FeatureMatrix,
}

/// Features with a class for each image.
#[derive(Debug)]
pub struct Labelled<'a, F> {
    /// The features, one row an image.
    pub features: &'a F,
    /// The class of each image, in the same order.
    pub labels: &'a [u32],
}

impl<F> Clone for Labelled<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Labelled<'_, F> {}

/// Errors unless there are `rows` labels, all below `classes`.
pub(crate) fn check_labels(what: &'static str, labels: &[u32], rows: usize, classes: usize) -> Result<(), EvalError> {
    same(what, labels.len(), rows)?;
    match labels.iter().position(|&label| label as usize >= classes) {
        None => Ok(()),
        Some(row) => Err(EvalError::Label {
            what,
            row,
            label: labels[row],
            classes,
        }),
    }
}

/// A `[rows, columns]` matrix on the device.
pub(crate) fn matrix(values: Vec<f32>, rows: usize, columns: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

/// Host copy of a tensor's elements in row-major order.
pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, EvalError> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|e| EvalError::Device(e.to_string()))
}

/// Errors unless `network` can run with `weights` on `[channels, side, side]` images.
pub(crate) fn check_network(
    network: &dyn Backbone,
    weights: &Weights,
    (channels, side): (usize, usize),
) -> Result<(), EvalError> {
    if let Some(reason) = weights.mismatch(&network.specs()) {
        return Err(EvalError::Weights(reason));
    }
    let (native_channels, _) = network.image();
    same("image channels", channels, native_channels)?;
    let stride = network.stride();
    if side == 0 || !side.is_multiple_of(stride) {
        return Err(EvalError::setting(
            "image",
            side,
            format!("the side must be a multiple of {stride} pixels"),
        ));
    }
    Ok(())
}

/// Runs `network` over all batches, without gradients and without stochastic depth.
///
/// Each batch is `images * channels * side * side` prepared pixel values (CHW, one image after the other) and the number of
/// its images; the last may be smaller. `device` is the one that `weights` are on. `progress` is called after each batch
/// with the number of images done so far.
///
/// # Errors
/// The first error of `batches`; weights that are not the network's; a batch or an image side that does not fit.
pub fn extract<E>(
    network: &dyn Backbone,
    weights: &Weights,
    device: &Device,
    batches: impl Iterator<Item = Result<(Vec<f32>, usize), E>>,
    image: (usize, usize),
    progress: &mut dyn FnMut(usize),
) -> Result<ChildFeatures, EvalError>
where
    EvalError: From<E>,
{
    check_network(network, weights, image)?;
    let (channels, side) = image;
    let device = device.clone().without_autodiff();
    let weights = weights.untracked();
    let dim = network.feature().size;
    let (mut images, mut cls, mut mean_patches) = (0, Vec::new(), Vec::new());
    for batch in batches {
        let (pixels, n) = batch?;
        let expected = [channels, side, side].iter().fold(n, |size, &d| size.saturating_mul(d));
        same("pixel values of a batch", pixels.len(), expected)?;
        if n == 0 {
            continue;
        }
        let pixels = Tensor::from_data(TensorData::new(pixels, [n, channels, side, side]), &device);
        let features = network.forward(&weights, pixels, None, &mut KeepAll);
        cls.extend(read(features.cls)?);
        mean_patches.extend(read(features.patches.mean_dim(1))?);
        images += n;
        progress(images);
    }
    Ok(ChildFeatures {
        cls: FeatureMatrix::new(images, dim, cls)?,
        mean_patches: FeatureMatrix::new(images, dim, mean_patches)?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use offshoot_family::{Architecture, Vit};
    use offshoot_zoo::Weight;

    use super::*;

    pub(crate) fn tiny() -> (Box<dyn Backbone>, Weights, Device) {
        let device = offshoot_zoo::tensor::device("cpu").unwrap();
        let vit = Vit {
            width: 8,
            depth: 2,
            head_dim: 4,
            mlp_ratio: 2,
            patch: 2,
            image: 6,
            channels: 1,
            position_offset: 0.0,
            layer_scale: 1e-5,
            classes: 0,
            norm_eps: 1e-6,
        };
        let network = offshoot_zoo::backbone(&Architecture::Vit(vit)).unwrap();
        let mut weights = Weights::new();
        for (t, spec) in network.specs().into_iter().enumerate() {
            let n: usize = spec.shape().iter().product();
            let values = (0..n).map(|i| ((i * 7 + t * 13) % 23) as f32 / 23.0 - 0.4).collect();
            weights.insert(&spec.name, Weight::from_values(values, spec.shape(), &device));
        }
        (network, weights, device)
    }

    fn pixels(images: usize) -> Vec<f32> {
        (0..images * 36).map(|i| ((i * 31) % 17) as f32 / 17.0 - 0.5).collect()
    }

    fn run(batches: Vec<(Vec<f32>, usize)>) -> (Result<ChildFeatures, EvalError>, Vec<usize>) {
        let (network, weights, device) = tiny();
        let mut done = Vec::new();
        let batches = batches.into_iter().map(Ok::<_, EvalError>);
        let features = extract(network.as_ref(), &weights, &device, batches, (1, 6), &mut |n| {
            done.push(n)
        });
        (features, done)
    }

    #[test]
    fn batching_changes_nothing_and_progress_counts_images() {
        let all = pixels(5);
        let (whole, done) = run(vec![(all.clone(), 5)]);
        assert_eq!(done, [5]);
        let (parts, done) = run(vec![(all[..72].to_vec(), 2), (vec![], 0), (all[72..].to_vec(), 3)]);
        assert_eq!(done, [2, 5]);
        let (whole, parts) = (whole.unwrap(), parts.unwrap());
        assert_eq!((whole.cls.rows, whole.cls.dim, whole.mean_patches.rows), (5, 8, 5));
        for (a, b) in [(&whole.cls, &parts.cls), (&whole.mean_patches, &parts.mean_patches)] {
            assert!(a.values.iter().zip(&b.values).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn features_are_the_networks_cls_and_the_mean_of_its_patches() {
        let (network, weights, device) = tiny();
        let (features, _) = run(vec![(pixels(3), 3)]);
        let features = features.unwrap();
        let images = Tensor::from_data(TensorData::new(pixels(3), [3, 1, 6, 6]), &device);
        let direct = network.forward(&weights, images, None, &mut KeepAll);
        assert_eq!(features.cls.values, read(direct.cls).unwrap());
        let patches = read(direct.patches).unwrap();
        for (i, &mean) in features.mean_patches.values.iter().enumerate() {
            let (image, channel) = (i / 8, i % 8);
            let by_hand: f32 = (0..9).map(|p| patches[(image * 9 + p) * 8 + channel]).sum::<f32>() / 9.0;
            assert!((mean - by_hand).abs() < 1e-5);
        }
    }

    #[test]
    fn tracked_weights_and_an_autodiff_device_give_the_same() {
        let (network, weights, device) = tiny();
        let one = |weights: &Weights, device: &Device| {
            let batches = std::iter::once(Ok::<_, EvalError>((pixels(2), 2)));
            extract(network.as_ref(), weights, device, batches, (1, 6), &mut |_| {}).unwrap()
        };
        assert_eq!(
            one(&weights, &device),
            one(&weights.tracked(), &device.clone().autodiff())
        );
    }

    #[test]
    fn no_images_make_no_features() {
        let (features, done) = run(vec![]);
        assert_eq!((features.unwrap().cls.rows, done.len()), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(matches!(
            run(vec![(pixels(2), 3)]).0,
            Err(EvalError::Size {
                found: 72,
                expected: 108,
                ..
            })
        ));
        assert!(matches!(
            run(vec![(pixels(2), usize::MAX)]).0,
            Err(EvalError::Size { .. })
        ));
        let (network, mut weights, device) = tiny();
        let with = |weights: &Weights, image| {
            let batches = std::iter::once(Ok::<_, EvalError>((pixels(1), 1)));
            extract(network.as_ref(), weights, &device, batches, image, &mut |_| {})
        };
        assert!(matches!(
            with(&weights, (3, 6)),
            Err(EvalError::Size {
                found: 3,
                expected: 1,
                ..
            })
        ));
        assert!(matches!(with(&weights, (1, 5)), Err(EvalError::Setting { .. })));
        assert!(matches!(with(&weights, (1, 0)), Err(EvalError::Setting { .. })));
        weights.insert("norm.bias", Weight::from_values(vec![0.0], vec![1], &device));
        assert!(matches!(with(&weights, (1, 6)), Err(EvalError::Weights(_))));
        let failing = std::iter::once(Err(EvalError::TooFew {
            what: "x",
            found: 0,
            needed: 1,
        }));
        let failed = extract(network.as_ref(), &tiny().1, &device, failing, (1, 6), &mut |_| {});
        assert!(matches!(failed, Err(EvalError::TooFew { .. })));
    }

    #[test]
    fn rows_are_normalised_and_zeros_stay() {
        let m = FeatureMatrix::new(3, 2, vec![3.0, 4.0, 0.0, 0.0, f32::MAX, f32::MAX])
            .unwrap()
            .normalised();
        assert_eq!(m.values[..4], [0.6, 0.8, 0.0, 0.0]);
        assert!((m.values[4] - 0.5f32.sqrt()).abs() < 1e-6);
        assert!(FeatureMatrix::new(2, 2, vec![0.0; 3]).is_err());
        assert!(FeatureMatrix::new(usize::MAX, 2, vec![]).is_err());
        let odd = FeatureMatrix {
            rows: 1,
            dim: 0,
            values: vec![1.0],
        };
        assert_eq!(odd.normalised().rows, 1);
    }
}
