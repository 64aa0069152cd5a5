//! GroupNorm of images with what stands behind it in residual networks: a residual that is added, and a ReLU.
//!
//! Images lie in memory channel by channel. Loops run over the same pixels of all images at once, with one statistic for each
//! pixel, so that they fill vectors however small the maps are. A group of some images stays in the cache from the first read to
//! the last write. The gradient finds statistics again, and which outputs the ReLU let through.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::Shape;

use crate::convolution::by_image;
use crate::operation::Kernel;
use crate::slices::{tensor, values};
use crate::vector::{
    Blank, LANES, Pieces, RUN, Unwritten, arch, build_bundles, copied, filled, sum_of, vectorised, with_scratch,
};

/// How images of `[channels, batch, height, width]` are normalised (Wu and He 2018): the channels of each of `groups` runs
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
    /// Pixels of one channel of an image.
    plane: usize,
    epsilon: f32,
    relu: bool,
}

/// One group of the channels of some images: `pixels` of each of its channels lie side by side.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Its first channel.
    channel: usize,
    /// Its first pixel within each channel.
    first: usize,
    pixels: usize,
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
        let channels = x[0];
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
        let [channels, images, height, width] = shape.dims();
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

/// The pixels of one channel in some images, with the statistics of their groups.
#[derive(Clone, Copy)]
struct Line<'a> {
    x: &'a [f32],
    mean: &'a [f32],
    factor: &'a [f32],
    /// Empty if there is none.
    residual: &'a [f32],
    scale: f32,
    shift: f32,
}

impl Line<'_> {
    #[inline(always)]
    fn normed(&self, i: usize) -> f32 {
        (self.x[i] - self.mean[i]).mul_add(self.factor[i] * self.scale, self.shift)
    }

    #[inline(always)]
    fn sum(&self, i: usize) -> f32 {
        self.normed(i) + self.residual[i]
    }

    /// The sums that are the gradients of scale and shift, from the gradient of the sum; it times the scale is added to `alone`,
    /// and that times the normalised input to `along`.
    #[inline(always)]
    fn sums(&self, gradient: &[f32], alone: &mut [f32], along: &mut [f32]) -> [f32; 2] {
        let mut sums = [0.0; 2];
        let gradient = gradient.chunks(RUN);
        let given = self
            .x
            .chunks(RUN)
            .zip(self.mean.chunks(RUN))
            .zip(self.factor.chunks(RUN));
        let found = alone.chunks_mut(RUN).zip(along.chunks_mut(RUN));
        for ((d, ((x, mean), factor)), (alone, along)) in gradient.zip(given).zip(found) {
            let (d, d_rest) = d.as_chunks::<LANES>();
            let ((x, x_rest), (mean, mean_rest)) = (x.as_chunks::<LANES>(), mean.as_chunks::<LANES>());
            let (factor, factor_rest) = factor.as_chunks::<LANES>();
            let (alone, alone_rest) = alone.as_chunks_mut::<LANES>();
            let (along, along_rest) = along.as_chunks_mut::<LANES>();
            let mut lanes = [[0.0; LANES]; 2];
            let given = d.iter().zip(x).zip(mean).zip(factor);
            for ((((d, x), mean), factor), (alone, along)) in given.zip(alone.iter_mut().zip(along)) {
                for l in 0..LANES {
                    let normal = (x[l] - mean[l]) * factor[l];
                    let scaled = self.scale * d[l];
                    alone[l] += scaled;
                    along[l] = scaled.mul_add(normal, along[l]);
                    lanes[0][l] = d[l].mul_add(normal, lanes[0][l]);
                    lanes[1][l] += d[l];
                }
            }
            let given = d_rest.iter().zip(x_rest).zip(mean_rest).zip(factor_rest);
            for ((((d, x), mean), factor), (alone, along)) in given.zip(alone_rest.iter_mut().zip(along_rest)) {
                let normal = (x - mean) * factor;
                let scaled = self.scale * d;
                *alone += scaled;
                *along = scaled.mul_add(normal, *along);
                lanes[0][0] = d.mul_add(normal, lanes[0][0]);
                lanes[1][0] += d;
            }
            for (sum, lanes) in sums.iter_mut().zip(&lanes) {
                *sum += sum_of(
                    lanes,
                    #[inline(always)]
                    |x| x,
                );
            }
        }
        sums
    }
}

/// `value` where a ReLU lets `y` through, as it does a NaN, and zero elsewhere.
#[inline(always)]
fn through(y: f32, value: f32) -> f32 {
    if y > 0.0 || y.is_nan() { value } else { 0.0 }
}

impl Layout {
    /// A row for each group of each image.
    fn by_group(&self) -> Shape {
        let groups = self.images * self.channels / self.together.max(1);
        Shape::new([groups, self.together * self.plane])
    }

    /// Pixels of a channel in all images.
    fn row(&self) -> usize {
        self.images * self.plane
    }

    /// Images of one part: with what is made of them they are to stay in a core's second cache, and statistics in its first.
    fn run(&self) -> usize {
        const NUMBERS: usize = 1 << 16;
        const PIXELS: usize = 1 << 10;
        let together = (NUMBERS / self.together.max(1)).min(PIXELS);
        (together / self.plane.max(1)).clamp(1, self.images.max(1))
    }

    /// Runs of images.
    fn runs(&self) -> usize {
        self.images.div_ceil(self.run())
    }

    /// Groups of runs of images; none if there are no numbers at all.
    fn parts(&self) -> usize {
        match self.row() * self.together {
            0 => 0,
            _ => self.channels / self.together * self.runs(),
        }
    }

    /// Pixels of each channel in a run of images.
    fn pixels(&self, run: usize) -> usize {
        self.run().min(self.images - run * self.run()) * self.plane
    }

    /// The pixels of each channel and run of images, in the order of memory, for each of which there is a piece.
    fn pieces(&self) -> impl Iterator<Item = usize> {
        let runs = if self.parts() == 0 { 0 } else { self.runs() };
        (0..self.channels).flat_map(move |_| (0..runs).map(|run| self.pixels(run)))
    }

    /// The part that a [piece](Self::pieces) belongs to.
    fn part_of(&self, piece: usize) -> usize {
        let (channel, run) = (piece / self.runs(), piece % self.runs());
        channel / self.together * self.runs() + run
    }

    fn part(&self, part: usize) -> Part {
        let (group, run) = (part / self.runs(), part % self.runs());
        Part {
            channel: group * self.together,
            first: run * self.run() * self.plane,
            pixels: self.pixels(run),
        }
    }

    /// The pixels of the `c`-th channel of a part.
    #[inline(always)]
    fn of<'a>(&self, part: Part, c: usize, values: &'a [f32]) -> &'a [f32] {
        &values[(part.channel + c) * self.row() + part.first..][..part.pixels]
    }

    /// Mean and reciprocal deviation of the group in each image, at each of the image's pixels.
    #[inline(always)]
    fn statistics(&self, part: Part, x: &[f32], mean: &mut [f32], factor: &mut [f32]) {
        let n = (self.together * self.plane) as f32;
        mean.fill(0.0);
        for c in 0..self.together {
            for (sum, x) in mean.iter_mut().zip(self.of(part, c, x)) {
                *sum += x;
            }
        }
        self.spread(
            mean,
            #[inline(always)]
            |sum| sum / n,
        );
        factor.fill(0.0);
        for c in 0..self.together {
            for ((sum, mean), x) in factor.iter_mut().zip(&*mean).zip(self.of(part, c, x)) {
                let distance = x - mean;
                *sum = distance.mul_add(distance, *sum);
            }
        }
        let epsilon = self.epsilon;
        self.spread(
            factor,
            #[inline(always)]
            |sum| 1.0 / (sum / n + epsilon).sqrt(),
        );
    }

    /// What `value` makes of the sum over the pixels of each image, at each of its pixels.
    #[inline(always)]
    fn spread(&self, pixels: &mut [f32], value: impl Fn(f32) -> f32) {
        for image in pixels.chunks_exact_mut(self.plane) {
            let sum = sum_of(
                image,
                #[inline(always)]
                |x| x,
            );
            image.fill(value(sum));
        }
    }

    /// What the `c`-th channel of a part of the result is made from.
    #[inline(always)]
    fn line<'a>(&self, parts: Parts<'a>, part: Part, c: usize, (mean, factor): (&'a [f32], &'a [f32])) -> Line<'a> {
        let n = part.pixels;
        Line {
            x: &self.of(part, c, parts.x)[..n],
            mean: &mean[..n],
            factor: &factor[..n],
            residual: parts.residual.map_or(&[], |residual| &self.of(part, c, residual)[..n]),
            scale: parts.scale[part.channel + c],
            shift: parts.shift.get(part.channel + c).copied().unwrap_or_default(),
        }
    }

    /// A channel of a part of the result.
    #[inline(always)]
    fn channel<'a>(&self, line: Line<'_>, blank: &'a mut Blank) -> &'a mut [f32] {
        match (line.residual.is_empty(), self.relu) {
            (true, false) => filled(
                blank,
                #[inline(always)]
                |i| line.normed(i),
            ),
            (true, true) => filled(
                blank,
                #[inline(always)]
                |i| through(line.normed(i), line.normed(i)),
            ),
            (false, false) => filled(
                blank,
                #[inline(always)]
                |i| line.sum(i),
            ),
            (false, true) => filled(
                blank,
                #[inline(always)]
                |i| through(line.sum(i), line.sum(i)),
            ),
        }
    }

    /// The gradient behind the ReLU in the same channel, from that of the result.
    #[inline(always)]
    fn inner<'a>(&self, line: Line<'_>, dy: &[f32], blank: &'a mut Blank) -> &'a mut [f32] {
        match (line.residual.is_empty(), self.relu) {
            (_, false) => copied(blank, dy),
            (true, true) => filled(
                blank,
                #[inline(always)]
                |i| through(line.normed(i), dy[i]),
            ),
            (false, true) => filled(
                blank,
                #[inline(always)]
                |i| through(line.sum(i), dy[i]),
            ),
        }
    }

    /// One part of the result; needs memory for two lines.
    #[inline(always)]
    fn forward<'a>(
        &self,
        parts: Parts<'_>,
        part: Part,
        blanks: Pieces<'a, Unwritten, 1>,
        scratch: &mut [f32],
    ) -> Pieces<'a, f32, 1> {
        let (mean, factor) = scratch.split_at_mut(part.pixels);
        self.statistics(part, parts.x, mean, factor);
        let mut pieces = Vec::with_capacity(self.together);
        for (c, [blank]) in blanks.into_iter().enumerate() {
            let line = self.line(parts, part, c, (mean, factor));
            pieces.push([self.channel(line, blank)]);
        }
        pieces
    }

    /// One part of the gradients: `dx`, the gradient behind the ReLU where there is memory for it, and the sums that are those of
    /// scale and shift, from the gradient `dy` of the result. Needs memory for four lines.
    #[inline(always)]
    fn backward<'a>(
        &self,
        parts: Parts<'_>,
        dy: &[f32],
        part: Part,
        blanks: Pieces<'a, Unwritten, 3>,
        scratch: &mut [f32],
    ) -> Pieces<'a, f32, 3> {
        let n = (self.together * self.plane) as f32;
        let (mean, scratch) = scratch.split_at_mut(part.pixels);
        let (factor, scratch) = scratch.split_at_mut(part.pixels);
        let (alone, along) = scratch.split_at_mut(part.pixels);
        self.statistics(part, parts.x, mean, factor);
        // Sums of the scaled gradient over the group, alone and times the normalised input.
        alone.fill(0.0);
        along.fill(0.0);
        let mut pieces = Vec::with_capacity(self.together);
        for (c, [dx, inner, sums]) in blanks.into_iter().enumerate() {
            let line = self.line(parts, part, c, (mean, factor));
            let dx = self.inner(line, self.of(part, c, dy), dx);
            let [of_scale, of_shift] = line.sums(dx, alone, along);
            let inner = filled(
                inner,
                #[inline(always)]
                |i| dx[i],
            );
            let sums = filled(
                sums,
                #[inline(always)]
                |i| if i == 0 { of_scale } else { of_shift },
            );
            pieces.push([dx, inner, sums]);
        }
        for sums in [&mut *alone, &mut *along] {
            self.spread(
                sums,
                #[inline(always)]
                |sum| sum / n,
            );
        }
        for (c, [dx, ..]) in pieces.iter_mut().enumerate() {
            let x = self.of(part, c, parts.x);
            let scale = parts.scale[part.channel + c];
            let statistics = mean.iter().zip(&*factor).zip(&*alone).zip(&*along);
            for ((d, x), (((mean, factor), alone), along)) in dx.iter_mut().zip(x).zip(statistics) {
                let normal = (x - mean) * factor;
                *d = factor * scale.mul_add(*d, -normal.mul_add(*along, *alone));
            }
        }
        pieces
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
        let sizes: Vec<[usize; 1]> = layout.pieces().map(|pixels| [pixels]).collect();
        let arch = arch();
        let part_of = |piece| layout.part_of(piece);
        let [y] = build_bundles(&sizes, layout.parts(), part_of, |part, blanks| {
            let part = layout.part(part);
            with_scratch(2 * part.pixels, |scratch| {
                vectorised!(arch, layout.forward(parts, part, blanks, scratch))
            })
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
        let inner = usize::from(d_residual && self.relu);
        let sizes: Vec<[usize; 3]> = layout.pieces().map(|pixels| [pixels, inner * pixels, 2]).collect();
        let arch = arch();
        let part_of = |piece| layout.part_of(piece);
        let [dx, inner, sums] = build_bundles(&sizes, layout.parts(), part_of, |part, blanks| {
            let part = layout.part(part);
            with_scratch(4 * part.pixels, |scratch| {
                vectorised!(arch, layout.backward(parts, dy, part, blanks, scratch))
            })
        });
        // Those of each channel lie side by side, for runs of images in their order.
        let total = |which: usize| -> Vec<f32> {
            let runs = 2 * layout.runs();
            let of_channel = |c: usize| sums.iter().skip(c * runs).take(runs).skip(which).step_by(2).sum();
            (0..layout.channels).map(of_channel).collect()
        };
        let channels = [layout.channels];
        let d_residual = d_residual.then(|| match self.relu {
            true => tensor(inner, shape.clone()),
            false => gradient.clone(),
        });
        let mut gradients = vec![
            Some(tensor(dx, shape)),
            Some(tensor(total(0), channels)),
            Some(tensor(total(1), channels)),
        ];
        gradients.extend(d_residual.map(Some));
        gradients
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let y = by_image::<B>(self.plain_result::<B>(&tensors).0);
        if self.relu { B::relu(y) } else { y }
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let layout = self.layout(&gradient.shape());
        let (y, normal, factor) = self.plain_result::<B>(&tensors);
        let gradient = by_image::<B>(gradient);
        let shape = gradient.shape();
        let inner = if self.relu {
            B::relu_backward(B::relu(y), gradient)
        } else {
            gradient
        };
        let flat = |x: FloatTensor<B>| {
            let sums = B::float_sum_dim(B::float_sum_dim(B::float_sum_dim(x, 0), 2), 3);
            B::float_reshape(sums, Shape::new([layout.channels]))
        };
        let groups = layout.by_group();
        let d_scale = flat(B::float_mul(inner.clone(), normal.clone()));
        let d_shift = flat(inner.clone());
        let g = B::float_mul(inner.clone(), of_channels::<B>(tensors[1].clone()));
        let (g, normal) = (B::float_reshape(g, groups.clone()), B::float_reshape(normal, groups));
        let along = B::float_mean_dim(B::float_mul(g.clone(), normal.clone()), 1);
        let common = B::float_mean_dim(g.clone(), 1);
        let dx = B::float_sub(B::float_sub(g, common), B::float_mul(normal, along));
        let dx = by_image::<B>(B::float_reshape(B::float_mul(dx, factor), shape));
        let mut gradients = vec![Some(dx), Some(d_scale), Some(d_shift)];
        if wanted.len() > 3 {
            gradients.push(Some(by_image::<B>(inner)));
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
    /// each group of each image; all by images.
    fn plain_result<B: Backend>(self, tensors: &[FloatTensor<B>]) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let layout = self.layout(&tensors[0].shape());
        let x = by_image::<B>(tensors[0].clone());
        let shape = x.shape();
        let x = B::float_reshape(x, layout.by_group());
        let x = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
        let variance = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 1);
        let factor = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, self.epsilon.into())));
        let normal = B::float_reshape(B::float_mul(x, factor.clone()), shape);
        let mut y = B::float_mul(normal.clone(), of_channels::<B>(tensors[1].clone()));
        if let Some(shift) = tensors.get(2) {
            y = B::float_add(y, of_channels::<B>(shift.clone()));
        }
        if let Some(residual) = tensors.get(3) {
            y = B::float_add(y, by_image::<B>(residual.clone()));
        }
        (y, normal, factor)
    }
}
