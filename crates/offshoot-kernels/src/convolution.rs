//! Two-dimensional convolution, forward and backward, as matrix products.
//!
//! Images lie in memory channel by channel, `[channels, batch, height, width]`. So a window of one pixel is a product with the
//! images as they are, and those of all images are one product. For other windows the inputs that each output pixel sees become
//! a column ("im2col", Chellapilla et al. 2006) of a block that is small enough for a core's cache and is thrown away, so memory
//! does not grow with the window. The gradient of the input is the convolution of the gradient with the turned weight where the
//! window moves by one pixel, and is added up from columns otherwise; that of the weight is a sum over blocks in their order.
//! Windows of 3x3 that move by one pixel go by [tiles](winograd) instead, which need fewer multiplications.

mod winograd;

use std::ops::Range;

use burn::backend::ops::ConvOptions;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};

use crate::gemm::{Matrix, Threads, note, outer_product, product, product_in_rows, turn};
use crate::operation::Kernel;
use crate::slices::{tensor, values};
use crate::vector::{
    LANES, arch, build, build_bundles, build_pieces, filled, sum_of, vectorised, with_scratch, zeroed,
};

/// How the window of a convolution moves, the same way along both dimensions of the image. Every output sees all inputs: there
/// are no groups, and no gaps within the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pixels from one place of the window to the next.
    pub stride: usize,
    /// Zeros before the first and after the last pixel of each row and column.
    pub padding: usize,
}

impl Window {
    /// # Panics
    /// If a weight of `[out, in, height, width]` does not fit images of `[in, batch, height, width]`.
    pub(crate) fn check(self, x: [usize; 4], weight: [usize; 4], bias: Option<usize>) {
        assert!(self.stride > 0, "a window that moves by 0 pixels");
        assert_eq!(x[0], weight[1], "channels of the images and of the weight");
        for (size, window) in x[2..].iter().zip(&weight[2..]) {
            let padded = size + 2 * self.padding;
            assert!((1..=padded).contains(window), "a window of {window} pixels in {padded}");
        }
        if let Some(bias) = bias {
            assert_eq!(bias, weight[0], "numbers of the bias and outputs of the weight");
        }
    }

    fn options(self) -> ConvOptions<2> {
        ConvOptions::new([self.stride; 2], [self.padding; 2], [1; 2], 1)
    }
}

/// All sizes of a convolution of images in memory. `padding` is that before the first pixel; what is behind the last one
/// follows from the size of the output.
#[derive(Clone, Copy, Debug)]
struct Layout {
    images: usize,
    channels: usize,
    size: [usize; 2],
    outputs: usize,
    kernel: [usize; 2],
    stride: usize,
    padding: [usize; 2],
    out_size: [usize; 2],
}

/// Output pixels whose columns are made together: rows of one image, or all rows of several.
#[derive(Clone, Debug)]
struct Block {
    images: Range<usize>,
    rows: Range<usize>,
}

/// Values of the columns of one block: they and what they are multiplied with are to stay near a core.
const COLUMNS: usize = 1 << 20;
/// Pixels that make a product worth its preparation; of smaller images several go together.
const PIXELS: usize = 192;

impl Layout {
    fn new(window: Window, x: [usize; 4], weight: [usize; 4]) -> Self {
        let kernel = [weight[2], weight[3]];
        let size = [x[2], x[3]];
        let out = |d: usize| (size[d] + 2 * window.padding - kernel[d]) / window.stride + 1;
        Self {
            images: x[1],
            channels: x[0],
            size,
            outputs: weight[0],
            kernel,
            stride: window.stride,
            padding: [window.padding; 2],
            out_size: [out(0), out(1)],
        }
    }

    /// The convolution of output gradients with the turned weight that gives the gradient of the input; none if it is not one.
    fn turned(self) -> Option<Self> {
        let fits = self.stride == 1
            && self
                .padding
                .iter()
                .zip(&self.kernel)
                .all(|(padding, kernel)| padding < kernel);
        fits.then(|| Self {
            channels: self.outputs,
            size: self.out_size,
            outputs: self.channels,
            padding: std::array::from_fn(|d| self.kernel[d] - 1 - self.padding[d]),
            out_size: self.size,
            ..self
        })
    }

    /// Pixels of one channel of an input.
    fn plane(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Pixels of one channel of an output.
    fn out_plane(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    /// Places of the window.
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Inputs that an output sees.
    fn inputs(&self) -> usize {
        self.channels * self.taps()
    }

    /// Whether the columns of an image are the image itself.
    fn direct(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.padding == [0, 0]
    }

    /// Images of one piece of work.
    fn group(&self) -> usize {
        let wanted = PIXELS.div_ceil(self.out_plane().max(1)).clamp(1, self.images.max(1));
        // An even number of pieces, so that two threads end together.
        let pieces = self.images.div_ceil(wanted).max(1);
        let pieces = if pieces > 1 { pieces.next_multiple_of(2) } else { 1 };
        self.images.div_ceil(pieces).max(1)
    }

    /// The blocks of a run of images, for columns of `inputs` values.
    fn blocks(&self, images: Range<usize>, inputs: usize) -> Vec<Block> {
        let rows = self.out_size[0];
        let most = COLUMNS / (inputs * self.out_size[1]).max(1);
        let together = self.group().min(most / rows.max(1)).max(1);
        if together > 1 {
            let block = |first: usize| Block {
                images: first..(first + together).min(images.end),
                rows: 0..rows,
            };
            return images.clone().step_by(together).map(block).collect();
        }
        let count = rows.div_ceil(most.max(1)).max(1);
        let each = rows.div_ceil(count).max(1);
        let of_image = |image: usize| {
            (0..rows).step_by(each).map(move |first| Block {
                images: image..image + 1,
                rows: first..(first + each).min(rows),
            })
        };
        images.flat_map(of_image).collect()
    }

    /// Pixels of a block.
    fn pixels(&self, block: &Block) -> usize {
        block.images.len() * block.rows.len() * self.out_size[1]
    }

    /// One channel of one image of inputs.
    fn plane_of<'a>(&self, x: &'a [f32], channel: usize, image: usize) -> &'a [f32] {
        &x[(channel * self.images + image) * self.plane()..][..self.plane()]
    }

    /// The outputs of a block, `[outputs, pixels]`, where they lie; `y` is all of them.
    fn outputs<'a>(&self, y: &'a [f32], block: &Block) -> Matrix<'a> {
        let first = block.images.start * self.out_plane() + block.rows.start * self.out_size[1];
        let rows = (self.outputs, self.pixels(block));
        Matrix::strided(&y[first.min(y.len())..], rows, (self.images * self.out_plane(), 1))
    }

    /// The input row that a row of outputs sees at a place of the window.
    #[inline(always)]
    fn source(&self, row: usize, tap: usize) -> Option<usize> {
        let row = (row * self.stride + tap).checked_sub(self.padding[0])?;
        (row < self.size[0]).then_some(row)
    }

    /// The outputs of a row that see a pixel at a place of the window, and the first pixel that they see.
    #[inline(always)]
    fn inside(&self, tap: usize) -> (Range<usize>, usize) {
        let (padding, width) = (self.padding[1], self.size[1]);
        let first = padding.saturating_sub(tap).div_ceil(self.stride).min(self.out_size[1]);
        let last = (width + padding)
            .saturating_sub(tap)
            .div_ceil(self.stride)
            .min(self.out_size[1]);
        (
            first..last.max(first),
            (first * self.stride + tap).saturating_sub(padding),
        )
    }

    /// Writes the columns of a block for some channels, a row for each channel and place of the window.
    #[inline(always)]
    fn unfold(&self, x: &[f32], block: &Block, channels: Range<usize>, out: &mut [f32]) {
        let mut lines = out.chunks_exact_mut(self.pixels(block).max(1));
        for channel in channels {
            for tap in 0..self.taps() {
                let (down, right) = (tap / self.kernel[1], tap % self.kernel[1]);
                let Some(line) = lines.next() else { return };
                let each = block.rows.len() * self.out_size[1];
                for (image, out) in block.images.clone().zip(line.chunks_exact_mut(each.max(1))) {
                    let plane = self.plane_of(x, channel, image);
                    if self.stride == 1 && self.size[1] == self.out_size[1] {
                        self.shifted(plane, block.rows.clone(), (down, right), out);
                    } else {
                        self.picked(plane, block.rows.clone(), (down, right), out);
                    }
                }
            }
        }
    }

    /// One place of the window where output rows are as long as input rows: a single run of pixels, but for the edges.
    #[inline(always)]
    fn shifted(&self, plane: &[f32], rows: Range<usize>, (down, right): (usize, usize), out: &mut [f32]) {
        let width = self.size[1];
        // `out[i]` is `plane[i + forward - back]`.
        let (forward, back) = (
            (rows.start + down) * width + right,
            self.padding[0] * width + self.padding[1],
        );
        let first = back.saturating_sub(forward).min(out.len());
        let last = (plane.len() + back).saturating_sub(forward).clamp(first, out.len());
        out[..first].fill(0.0);
        out[last..].fill(0.0);
        if first < last {
            out[first..last].copy_from_slice(&plane[first + forward - back..][..last - first]);
        }
        let (inside, _) = self.inside(right);
        if inside.len() < width {
            for row in out.chunks_exact_mut(width) {
                row[..inside.start].fill(0.0);
                row[inside.end..].fill(0.0);
            }
        }
    }

    /// One place of the window, row by row.
    #[inline(always)]
    fn picked(&self, plane: &[f32], rows: Range<usize>, (down, right): (usize, usize), out: &mut [f32]) {
        let (inside, start) = self.inside(right);
        for (row, out) in rows.zip(out.chunks_exact_mut(self.out_size[1].max(1))) {
            let Some(source) = self.source(row, down).filter(|_| !inside.is_empty()) else {
                out.fill(0.0);
                continue;
            };
            out[..inside.start].fill(0.0);
            out[inside.end..].fill(0.0);
            let source = &plane[source * self.size[1]..][..self.size[1]][start..];
            let out = &mut out[inside.clone()];
            match self.stride {
                1 => out.copy_from_slice(&source[..out.len()]),
                2 => {
                    let pairs = source.chunks_exact(2);
                    // The last pixel of an odd row has no neighbour.
                    if let (Some(last), true) = (pairs.remainder().first(), pairs.len() < out.len()) {
                        out[pairs.len()] = *last;
                    }
                    out.iter_mut().zip(pairs).for_each(|(out, pair)| *out = pair[0]);
                }
                stride => out
                    .iter_mut()
                    .zip(source.iter().step_by(stride))
                    .for_each(|(out, x)| *out = *x),
            }
        }
    }

    /// Adds the columns of a block to the images that they came from; each channel of `x` begins with the image `from`.
    #[inline(always)]
    fn fold(&self, columns: &[f32], block: &Block, from: usize, x: &mut [[&mut [f32]; 1]]) {
        let each = block.rows.len() * self.out_size[1];
        for (i, line) in columns.chunks_exact(self.pixels(block).max(1)).enumerate() {
            let (channel, tap) = (i / self.taps(), i % self.taps());
            let (down, right) = (tap / self.kernel[1], tap % self.kernel[1]);
            let (inside, start) = self.inside(right);
            for (image, line) in block.images.clone().zip(line.chunks_exact(each.max(1))) {
                let plane = &mut x[channel][0][(image - from) * self.plane()..][..self.plane()];
                for (row, line) in block.rows.clone().zip(line.chunks_exact(self.out_size[1].max(1))) {
                    let Some(target) = self.source(row, down).filter(|_| !inside.is_empty()) else {
                        continue;
                    };
                    let target = &mut plane[target * self.size[1]..][..self.size[1]][start..];
                    let line = &line[inside.clone()];
                    if self.stride == 1 {
                        target.iter_mut().zip(line).for_each(|(x, d)| *x += d);
                    } else {
                        target
                            .iter_mut()
                            .step_by(self.stride)
                            .zip(line)
                            .for_each(|(x, d)| *x += d);
                    }
                }
            }
        }
    }

    /// Threads of one product, when there are so many pieces of work.
    fn threads(pieces: usize) -> Threads {
        if pieces == 1 { Threads::All } else { Threads::One }
    }

    /// The convolution of `x` with a weight of `[outputs, channels, height, width]`, the faster way.
    fn run(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let tiled = self.tiled().then(|| self.forward_tiled(x, weight, bias, false));
        let by_columns = || self.by_columns(x, Matrix::new(weight, self.outputs, self.inputs()), bias);
        tiled.flatten().unwrap_or_else(by_columns)
    }

    /// The gradient of the input of a layer by its [`turned`](Self::turned) layout, with the layer's weight.
    fn run_turned(&self, dy: &[f32], weight: &[f32]) -> Vec<f32> {
        if self.taps() == 1 {
            return self.by_columns(dy, Matrix::new(weight, self.channels, self.outputs).transposed(), None);
        }
        let tiled = self.tiled().then(|| self.forward_tiled(dy, weight, None, true));
        tiled.flatten().unwrap_or_else(|| {
            let weight = turned(weight, self.channels, self.outputs, self.taps());
            self.by_columns(dy, Matrix::new(&weight, self.outputs, self.inputs()), None)
        })
    }

    /// The convolution of `x` with a weight of `[outputs, inputs]`.
    fn by_columns(&self, x: &[f32], weight: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
        if self.direct() {
            return self.directly(x, weight, bias);
        }
        let (inputs, outputs) = (self.inputs(), self.outputs);
        let blocks = self.blocks(0..self.images, inputs);
        self.note(&blocks, (outputs, inputs), false);
        let threads = Self::threads(blocks.len());
        let sizes: Vec<[usize; 1]> = (0..outputs)
            .flat_map(|_| blocks.iter().map(|block| [self.pixels(block)]))
            .collect();
        let arch = arch();
        let block_of = |piece: usize| piece % blocks.len();
        let [y] = build_bundles(&sizes, blocks.len(), block_of, |b, pieces| {
            let pixels = self.pixels(&blocks[b]);
            with_scratch((inputs + outputs) * pixels, |scratch| {
                let (columns, y) = scratch.split_at_mut(inputs * pixels);
                vectorised!(arch, self.unfold(x, &blocks[b], 0..self.channels, columns));
                let columns = Matrix::new(columns, inputs, pixels);
                product_in_rows((&mut *y, pixels), false, weight, columns, threads);
                let rows = pieces.into_iter().zip(y.chunks_exact(pixels)).enumerate();
                let rows = rows.map(|(output, ([blank], row))| {
                    let bias = bias.map_or(0.0, |bias| bias[output]);
                    [filled(blank, |i| row[i] + bias)]
                });
                rows.collect()
            })
        });
        y
    }

    /// The same where the columns are the images.
    fn directly(&self, x: &[f32], weight: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
        let (outputs, pixels) = (self.outputs, self.images * self.plane());
        note((outputs, self.channels, pixels), (false, false), 1);
        let size = outputs * pixels;
        build(size, size, |_, blank| {
            let y = product(blank, weight, Matrix::new(x, self.channels, pixels), Threads::All);
            for (y, bias) in y.chunks_exact_mut(pixels).zip(bias.unwrap_or_default()) {
                y.iter_mut().for_each(|y| *y += bias);
            }
            y
        })
    }

    /// The gradient of the input, added up from columns.
    fn folded(&self, weight: Matrix<'_>, dy: &[f32]) -> Vec<f32> {
        let (inputs, plane) = (self.inputs(), self.plane());
        let group = self.group();
        let groups = self.images.div_ceil(group);
        let images = |g: usize| g * group..((g + 1) * group).min(self.images);
        self.note(&self.blocks(0..self.images, inputs), (inputs, self.outputs), false);
        let threads = Self::threads(groups);
        let sizes: Vec<[usize; 1]> = (0..self.channels * groups)
            .map(|piece| [images(piece % groups).len() * plane])
            .collect();
        let arch = arch();
        let group_of = |piece: usize| piece % groups;
        let [dx] = build_bundles(&sizes, groups, group_of, |g, pieces| {
            let mut dx: Vec<[&mut [f32]; 1]> = pieces.into_iter().map(|[blank]| [zeroed(blank)]).collect();
            for block in self.blocks(images(g), inputs) {
                let pixels = self.pixels(&block);
                with_scratch(inputs * pixels, |columns| {
                    let dy = self.outputs(dy, &block);
                    product_in_rows((&mut *columns, pixels), false, weight.transposed(), dy, threads);
                    vectorised!(arch, self.fold(columns, &block, images(g).start, &mut dx));
                });
            }
            dx
        });
        dx
    }

    /// The gradient of the weight, `[outputs, inputs]`. Pieces of work are shares of the images, each with a sum of its own,
    /// while those sums are small, and then channels.
    fn weight_gradient(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        const SUMS: usize = 1 << 20;
        const PIECES: usize = 8;
        let (inputs, outputs, taps, group) = (self.inputs(), self.outputs, self.taps(), self.group());
        let size = outputs * inputs;
        if size == 0 {
            return Vec::new();
        }
        let groups = self.images.div_ceil(group);
        let shares = (SUMS / size).clamp(1, 2 * PIECES).min(groups.max(1));
        let share = groups.div_ceil(shares) * group;
        let shares = self.images.div_ceil(share.max(1)).max(1);
        let parts = PIECES.div_ceil(shares).min(self.channels);
        let part = self.channels.div_ceil(parts);
        let parts = self.channels.div_ceil(part);
        let channels = |p: usize| p * part..((p + 1) * part).min(self.channels);
        self.note(&self.blocks(0..self.images, inputs), (outputs, inputs), true);
        // One side of a sum of products has to be turned: the gradient, and the sums in the end, or the columns.
        let pixels = self.images * self.out_plane();
        let by_input = outputs * parts * pixels + shares * size < inputs * pixels;
        let sizes: Vec<[usize; 1]> = (0..shares * parts)
            .map(|i| [outputs * channels(i % parts).len() * taps])
            .collect();
        let arch = arch();
        let [sums] = build_pieces(&sizes, |i, [blank]| {
            let (images, channels) = (i / parts * share, channels(i % parts));
            let images = images..(images + share).min(self.images);
            let own = channels.len() * taps;
            let sum = zeroed(blank);
            let mut add = |columns: Matrix<'_>, dy: Matrix<'_>| {
                if by_input {
                    outer_product(sum, true, columns, dy);
                } else {
                    outer_product(sum, true, dy, columns);
                }
            };
            if self.direct() {
                let plane = self.plane();
                let from = |row: usize| (row * self.images + images.start) * plane;
                let columns = (own, images.len() * plane);
                let strides = (self.images * plane, 1);
                let columns = Matrix::strided(&x[from(channels.start)..], columns, strides);
                let rows = (outputs, images.len() * plane);
                add(columns, Matrix::strided(&dy[from(0)..], rows, strides));
                return [sum];
            }
            for block in self.blocks(images, own) {
                let pixels = self.pixels(&block);
                with_scratch(own * pixels, |columns| {
                    vectorised!(arch, self.unfold(x, &block, channels.clone(), columns));
                    add(Matrix::new(columns, own, pixels), self.outputs(dy, &block));
                });
            }
            [sum]
        });
        if sizes.len() == 1 && !by_input {
            return sums;
        }
        // Rows of the gradient, each from its parts, and those as sums over the shares in their order.
        build(size, LANES * inputs, |i, blank| {
            let first = i * LANES;
            let count = blank.len() / inputs;
            let out = zeroed(blank);
            with_scratch(count * part * taps, |scratch| {
                for share in 0..shares {
                    for p in 0..parts {
                        let own = channels(p).len() * taps;
                        let at = channels(p).start * taps;
                        let sum = &sums[share * size + outputs * at..][..outputs * own];
                        let rows = if by_input {
                            vectorised!(arch, turn(&sum[first..], (own, count, outputs), scratch));
                            &*scratch
                        } else {
                            &sum[first * own..]
                        };
                        for (out, row) in out.chunks_exact_mut(inputs).zip(rows.chunks_exact(own)) {
                            let out = out[at..].iter_mut();
                            out.zip(row).for_each(|(out, sum)| *out += sum);
                        }
                    }
                }
            });
            out
        })
    }

    /// The gradient of the bias: sums over each channel.
    fn bias_gradient(&self, dy: &[f32]) -> Vec<f32> {
        let pixels = self.images * self.out_plane();
        let arch = arch();
        build(self.outputs, 1, |output, blank| {
            let row = &dy[output * pixels..][..pixels];
            vectorised!(
                arch,
                filled(
                    blank,
                    #[inline(always)]
                    |_| sum_of(
                        row,
                        #[inline(always)]
                        |x| x
                    )
                )
            )
        })
    }

    /// Counts the products of some blocks with a matrix of `rows` by `columns`, for the floor.
    fn note(&self, blocks: &[Block], (rows, columns): (usize, usize), of_weight: bool) {
        let Some(first) = blocks.first() else { return };
        let pixels = self.pixels(first);
        if of_weight {
            note((rows, pixels, columns), (false, true), blocks.len());
        } else {
            note((rows, columns, pixels), (false, false), blocks.len());
        }
    }
}

/// A weight of `[outputs, channels, height, width]` as `[channels, outputs, height, width]`, its windows turned by half a turn.
fn turned(weight: &[f32], outputs: usize, channels: usize, taps: usize) -> Vec<f32> {
    build(weight.len(), outputs * taps, |channel, blank| {
        let out = zeroed(blank);
        for (output, out) in out.chunks_exact_mut(taps).enumerate() {
            let window = &weight[(output * channels + channel) * taps..][..taps];
            out.iter_mut()
                .zip(window.iter().rev())
                .for_each(|(out, value)| *out = *value);
        }
        out
    })
}

impl Kernel for Window {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        let layout = Layout::new(self, tensors[0].shape().dims(), tensors[1].shape().dims());
        let [x, weight] = [0, 1].map(|i| values(&tensors[i]));
        let [height, width] = layout.out_size;
        let y = layout.run(x, weight, tensors.get(2).map(values));
        tensor(y, [layout.outputs, layout.images, height, width])
    }

    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let layout = Layout::new(self, tensors[0].shape().dims(), tensors[1].shape().dims());
        let (outputs, inputs) = (layout.outputs, layout.inputs());
        let (x, weight, dy) = (values(&tensors[0]), values(&tensors[1]), values(&gradient));
        let mut gradients = Vec::new();
        gradients.push(wanted[0].then(|| {
            let dx = match layout.turned() {
                Some(backward) => backward.run_turned(dy, weight),
                None => layout.folded(Matrix::new(weight, outputs, inputs), dy),
            };
            tensor(dx, tensors[0].shape())
        }));
        gradients.push(wanted[1].then(|| {
            let tiled = layout.tiled().then(|| layout.weight_gradient_tiled(x, dy)).flatten();
            let d_weight = tiled.unwrap_or_else(|| layout.weight_gradient(x, dy));
            tensor(d_weight, tensors[1].shape())
        }));
        if tensors.len() > 2 {
            gradients.push(Some(tensor(layout.bias_gradient(dy), [outputs])));
        }
        gradients
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().expect("images and a weight");
        let (x, weight) = (next(), next());
        by_image::<B>(B::conv2d(by_image::<B>(x), weight, tensors.next(), self.options()))
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let (x, weight) = (by_image::<B>(tensors[0].clone()), &tensors[1]);
        let dy = by_image::<B>(gradient);
        let of_input = || B::conv2d_x_backward(x.clone(), weight.clone(), dy.clone(), self.options());
        let of_weight = || B::conv2d_weight_backward(x.clone(), weight.clone(), dy.clone(), self.options());
        let mut gradients = vec![wanted[0].then(|| by_image::<B>(of_input())), wanted[1].then(of_weight)];
        if let Some(bias) = tensors.get(2) {
            gradients.push(Some(B::conv2d_bias_backward(x.clone(), bias.clone(), dy)));
        }
        gradients
    }
}

/// Images of `[channels, batch, ..]` as `[batch, channels, ..]`, or the other way round.
pub(crate) fn by_image<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_swap_dims(x, 0, 1)
}

#[cfg(test)]
mod tests;
