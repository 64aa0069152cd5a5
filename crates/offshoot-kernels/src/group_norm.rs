//! GroupNorm of images with what stands behind it in residual networks: a residual that is added, and a ReLU.
//!
//! A group of channels lies in one piece of memory and stays in the cache from the first read to the last write. The gradient
//! finds statistics again, and which outputs the ReLU let through.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::Shape;

use crate::operation::Kernel;
use crate::slices::{tensor, values};
use crate::vector::{add_up, arch, build, build_pieces, rows_of, sum_of, sum_pairs, vectorised, zeroed};

/// How images of `[batch, channels, height, width]` are normalised (Wu and He 2018): the channels of each of `groups` runs
/// together, in each image for itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// Runs of channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
    /// Whether a ReLU comes last.
    pub relu: bool,
}

/// Sizes of images and their groups.
#[derive(Clone, Copy, Debug)]
struct Layout {
    images: usize,
    channels: usize,
    /// Channels of one group.
    together: usize,
    /// Pixels of one channel.
    plane: usize,
    epsilon: f32,
    relu: bool,
}

/// The tensors that the result is made from.
#[derive(Clone, Copy)]
struct Parts<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    residual: Option<&'a [f32]>,
}

impl GroupNorm {
    /// # Panics
    /// If there are no groups, or if the tensors do not fit.
    pub(crate) fn check(&self, x: [usize; 4], scale: usize, shift: usize, residual: Option<[usize; 4]>) {
        let channels = x[1];
        let whole = self.groups > 0 && channels.is_multiple_of(self.groups);
        assert!(whole, "{channels} channels in {} groups", self.groups);
        assert_eq!(
            [scale, shift],
            [channels; 2],
            "numbers of scale and shift, and channels"
        );
        if let Some(residual) = residual {
            assert_eq!(residual, x, "shapes of a residual and of the images");
        }
    }

    fn layout(&self, shape: &Shape) -> Layout {
        let [images, channels, height, width] = shape.dims();
        Layout {
            images,
            channels,
            together: channels / self.groups,
            plane: height * width,
            epsilon: self.epsilon as f32,
            relu: self.relu,
        }
    }
}

/// Whether a ReLU lets a number through; it does a NaN.
#[inline(always)]
fn passes(y: f32) -> bool {
    y > 0.0 || y.is_nan()
}

impl Layout {
    /// Numbers of one group.
    fn group(&self) -> usize {
        self.together * self.plane
    }

    fn groups(&self) -> usize {
        self.images * self.channels / self.together.max(1)
    }

    /// The first channel of a group, counted over all images.
    fn first(&self, group: usize) -> usize {
        group * self.together
    }

    /// Mean and reciprocal deviation of a group.
    #[inline(always)]
    fn statistics(&self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = sum_of(
            x,
            #[inline(always)]
            |x| x,
        ) / n;
        let variance = sum_of(
            x,
            #[inline(always)]
            |x| (x - mean) * (x - mean),
        ) / n;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }

    /// One channel of the result, before the ReLU.
    #[inline(always)]
    fn channel(&self, parts: Parts<'_>, channel: usize, (mean, factor): (f32, f32), out: &mut [f32]) {
        let (own, at) = (channel % self.channels, channel * self.plane);
        let x = &parts.x[at..][..self.plane];
        let (slope, shift) = (factor * parts.scale[own], parts.shift[own]);
        match parts.residual {
            Some(residual) => {
                let residual = &residual[at..][..self.plane];
                for ((y, &x), residual) in out.iter_mut().zip(x).zip(residual) {
                    *y = (x - mean).mul_add(slope, shift) + residual;
                }
            }
            None => {
                for (y, &x) in out.iter_mut().zip(x) {
                    *y = (x - mean).mul_add(slope, shift);
                }
            }
        }
    }

    /// Some groups of the result.
    #[inline(always)]
    fn forward(&self, parts: Parts<'_>, first: usize, out: &mut [f32]) {
        for (g, out) in out.chunks_exact_mut(self.group()).enumerate() {
            let group = first + g;
            let of_group = self.statistics(&parts.x[group * self.group()..][..self.group()]);
            for (c, out) in out.chunks_exact_mut(self.plane).enumerate() {
                self.channel(parts, self.first(group) + c, of_group, out);
                if self.relu {
                    out.iter_mut().for_each(|y| *y = if passes(*y) { *y } else { 0.0 });
                }
            }
        }
    }

    /// Some groups of the gradient: `dx` and the sums that are those of scale and shift, from the gradient `dy` of the result.
    /// The gradient behind the ReLU goes to `inner` where there is memory for it.
    #[inline(always)]
    fn backward(&self, parts: Parts<'_>, dy: &[f32], first: usize, [dx, inner, sums]: [&mut [f32]; 3]) {
        let size = self.group();
        let n = size as f32;
        for (g, dx) in dx.chunks_exact_mut(size).enumerate() {
            let (group, at) = (first + g, (first + g) * size);
            let (mean, factor) = self.statistics(&parts.x[at..][..size]);
            let sums = &mut sums[2 * g * self.together..][..2 * self.together];
            // Sums of the scaled gradient over the group, alone and times the distance from the mean.
            let (mut alone, mut along) = (0.0, 0.0);
            for (c, d) in dx.chunks_exact_mut(self.plane).enumerate() {
                let channel = self.first(group) + c;
                let at = channel * self.plane;
                let (x, dy) = (&parts.x[at..][..self.plane], &dy[at..][..self.plane]);
                if self.relu {
                    self.channel(parts, channel, (mean, factor), d);
                    d.iter_mut()
                        .zip(dy)
                        .for_each(|(d, dy)| *d = if passes(*d) { *dy } else { 0.0 });
                } else {
                    d.copy_from_slice(dy);
                }
                let sum = sum_of(
                    d,
                    #[inline(always)]
                    |d| d,
                );
                let product = sum_pairs(
                    d,
                    x,
                    #[inline(always)]
                    |d, x| d * (x - mean),
                );
                sums[2 * c] = product * factor;
                sums[2 * c + 1] = sum;
                let scale = parts.scale[channel % self.channels];
                alone += scale * sum;
                along += scale * product;
            }
            if !inner.is_empty() {
                inner[g * size..][..size].copy_from_slice(dx);
            }
            let (common, slope) = (factor * alone / n, factor * factor * factor * along / n);
            for (c, d) in dx.chunks_exact_mut(self.plane).enumerate() {
                let channel = self.first(group) + c;
                let x = &parts.x[channel * self.plane..][..self.plane];
                let factor = factor * parts.scale[channel % self.channels];
                for (d, &x) in d.iter_mut().zip(x) {
                    *d = factor.mul_add(*d, -(x - mean).mul_add(slope, common));
                }
            }
        }
    }
}

impl Kernel for GroupNorm {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        let shape = tensors[0].shape();
        let layout = self.layout(&shape);
        let parts = Parts {
            x: values(&tensors[0]),
            scale: values(&tensors[1]),
            shift: values(&tensors[2]),
            residual: tensors.get(3).map(values),
        };
        let piece = rows_of(layout.group());
        let arch = arch();
        let y = build(parts.x.len(), piece * layout.group(), |i, blank| {
            let out = zeroed(blank);
            vectorised!(arch, layout.forward(parts, i * piece, out));
            out
        });
        tensor(y, shape)
    }

    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let shape = tensors[0].shape();
        let layout = self.layout(&shape);
        let parts = Parts {
            x: values(&tensors[0]),
            scale: values(&tensors[1]),
            shift: tensors.get(2).map(values).unwrap_or_default(),
            residual: tensors.get(3).map(values),
        };
        let dy = values(&gradient);
        let d_residual = wanted.get(3) == Some(&true);
        let (size, groups) = (layout.group(), layout.groups());
        let piece = rows_of(size);
        let inner = usize::from(d_residual && self.relu);
        let pieces = if size == 0 { 0 } else { groups.div_ceil(piece) };
        let sizes: Vec<[usize; 3]> = (0..pieces)
            .map(|i| {
                let groups = piece.min(groups - i * piece);
                [groups * size, inner * groups * size, 2 * groups * layout.together]
            })
            .collect();
        let arch = arch();
        let [dx, inner, sums] = build_pieces(&sizes, |i, blanks| {
            let [dx, inner, sums] = blanks.map(zeroed);
            let all = [&mut *dx, &mut *inner, &mut *sums];
            vectorised!(arch, layout.backward(parts, dy, i * piece, all));
            [dx, inner, sums]
        });
        let mut sums = add_up(&sums, 2 * layout.channels).into_iter();
        let (mut d_scale, mut d_shift) = (Vec::new(), Vec::new());
        while let (Some(scale), Some(shift)) = (sums.next(), sums.next()) {
            d_scale.push(scale);
            d_shift.push(shift);
        }
        let channels = [layout.channels];
        let d_residual = d_residual.then(|| match self.relu {
            true => tensor(inner, shape.clone()),
            false => gradient.clone(),
        });
        let mut gradients = vec![
            Some(tensor(dx, shape)),
            Some(tensor(d_scale, channels)),
            Some(tensor(d_shift, channels)),
        ];
        gradients.extend(d_residual.map(Some));
        gradients
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let y = self.plain_result::<B>(&tensors).0;
        if self.relu { B::relu(y) } else { y }
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let shape = gradient.shape();
        let layout = self.layout(&shape);
        let (y, normal, factor) = self.plain_result::<B>(&tensors);
        let inner = if self.relu {
            B::relu_backward(B::relu(y), gradient)
        } else {
            gradient
        };
        let flat = |x: FloatTensor<B>| {
            let sums = B::float_sum_dim(B::float_sum_dim(B::float_sum_dim(x, 0), 2), 3);
            B::float_reshape(sums, Shape::new([layout.channels]))
        };
        let groups = Shape::new([layout.groups(), layout.group()]);
        let d_scale = flat(B::float_mul(inner.clone(), normal.clone()));
        let d_shift = flat(inner.clone());
        let g = B::float_mul(inner.clone(), of_channels::<B>(tensors[1].clone()));
        let (g, normal) = (B::float_reshape(g, groups.clone()), B::float_reshape(normal, groups));
        let along = B::float_mean_dim(B::float_mul(g.clone(), normal.clone()), 1);
        let common = B::float_mean_dim(g.clone(), 1);
        let dx = B::float_sub(B::float_sub(g, common), B::float_mul(normal, along));
        let dx = B::float_reshape(B::float_mul(dx, factor), shape);
        let mut gradients = vec![Some(dx), Some(d_scale), Some(d_shift)];
        if wanted.len() > 3 {
            gradients.push(Some(inner));
        }
        gradients
    }

    /// Shift and residual decide what the ReLU let through, and nothing else.
    fn kept(&self, count: usize) -> usize {
        if self.relu { count } else { 2 }
    }
}

/// `[channels]` as `[1, channels, 1, 1]`.
fn of_channels<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let n = x.shape().num_elements();
    B::float_reshape(x, Shape::new([1, n, 1, 1]))
}

impl GroupNorm {
    /// The result before the ReLU, as far as there are tensors for it; the normalised images; and the reciprocal deviation of
    /// each group of each image.
    fn plain_result<B: Backend>(self, tensors: &[FloatTensor<B>]) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let shape = tensors[0].shape();
        let layout = self.layout(&shape);
        let x = B::float_reshape(tensors[0].clone(), Shape::new([layout.groups(), layout.group()]));
        let x = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
        let variance = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 1);
        let factor = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, self.epsilon.into())));
        let normal = B::float_reshape(B::float_mul(x, factor.clone()), shape);
        let mut y = B::float_mul(normal.clone(), of_channels::<B>(tensors[1].clone()));
        if let Some(shift) = tensors.get(2) {
            y = B::float_add(y, of_channels::<B>(shift.clone()));
        }
        if let Some(residual) = tensors.get(3) {
            y = B::float_add(y, residual.clone());
        }
        (y, normal, factor)
    }
}
