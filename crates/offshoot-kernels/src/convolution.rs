//! Two-dimensional convolution, forward and backward, as products with columns that are made a block at a time.
//!
//! Of a block of output pixels, the inputs that each of them sees become a column ("im2col", Chellapilla et al. 2006); then the
//! layer is a product with the weight. Blocks are small enough for a core's cache and are thrown away, so memory does not grow
//! with the window. The gradient of the input is the convolution of the gradient with the turned weight where the window moves
//! by one pixel, and is added up from columns otherwise; that of the weight is a sum over blocks in their order. Windows of 3x3
//! that move by one pixel go by [tiles](winograd) instead, which need fewer multiplications.

mod winograd;

use std::ops::Range;

use burn::backend::ops::ConvOptions;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};

use crate::gemm::{Matrix, Threads, note, product, product_in_rows};
use crate::operation::Kernel;
use crate::slices::{tensor, values};
use crate::vector::{add_up, arch, build, build_pieces, sum_of, vectorised, with_scratch, zeroed};

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
    /// If a weight of `[out, in, height, width]` does not fit images of `[batch, in, height, width]`.
    pub(crate) fn check(self, x: [usize; 4], weight: [usize; 4], bias: Option<usize>) {
        assert!(self.stride > 0, "a window that moves by 0 pixels");
        assert_eq!(x[1], weight[1], "channels of the images and of the weight");
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
            images: x[0],
            channels: x[1],
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

    /// Pixels of one piece of work, and pieces: the sizes of the products, for the floor.
    fn grouped(&self) -> (usize, usize) {
        let group = self.group();
        (group * self.out_plane(), self.images.div_ceil(group))
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
                    let plane = &x[(image * self.channels + channel) * self.plane()..][..self.plane()];
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

    /// Adds the columns of a block to the images that they came from; `x` begins with the image `from`.
    #[inline(always)]
    fn fold(&self, columns: &[f32], block: &Block, from: usize, x: &mut [f32]) {
        let each = block.rows.len() * self.out_size[1];
        for (i, line) in columns.chunks_exact(self.pixels(block).max(1)).enumerate() {
            let (channel, tap) = (i / self.taps(), i % self.taps());
            let (down, right) = (tap / self.kernel[1], tap % self.kernel[1]);
            let (inside, start) = self.inside(right);
            for (image, line) in block.images.clone().zip(line.chunks_exact(each.max(1))) {
                let plane = &mut x[((image - from) * self.channels + channel) * self.plane()..][..self.plane()];
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

    /// The outputs of a block of several images side by side, from where they lie; `y` is all of them.
    #[inline(always)]
    fn gather(&self, y: &[f32], block: &Block, out: &mut [f32]) {
        let (plane, pixels) = (self.out_plane(), self.pixels(block));
        for (output, line) in out.chunks_exact_mut(pixels.max(1)).enumerate() {
            for (image, line) in block.images.clone().zip(line.chunks_exact_mut(plane.max(1))) {
                line.copy_from_slice(&y[(image * self.outputs + output) * plane..][..plane]);
            }
        }
    }

    /// Outputs of a block: where they lie if they are of one image, else side by side in `scratch`.
    #[inline(always)]
    fn outputs<'a>(&self, y: &'a [f32], block: &Block, scratch: &'a mut [f32]) -> Matrix<'a> {
        let (plane, pixels) = (self.out_plane(), self.pixels(block));
        if block.images.len() == 1 {
            let first = block.images.start * self.outputs * plane + block.rows.start * self.out_size[1];
            Matrix::strided(&y[first.min(y.len())..], (self.outputs, pixels), (plane, 1))
        } else {
            self.gather(y, block, scratch);
            Matrix::new(scratch, self.outputs, pixels)
        }
    }

    /// Memory that [`outputs`](Self::outputs) needs.
    fn gathered(&self, block: &Block) -> usize {
        if block.images.len() == 1 {
            0
        } else {
            self.outputs * self.pixels(block)
        }
    }

    /// Threads of one product, when there are so many pieces of work.
    fn threads(pieces: usize) -> Threads {
        if pieces == 1 { Threads::All } else { Threads::One }
    }

    /// The convolution of `x` with a weight of `[outputs, channels, height, width]`, the faster way.
    fn run(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let tiled = self.tiled().then(|| self.forward_tiled(x, weight, bias)).flatten();
        tiled.unwrap_or_else(|| self.by_columns(x, Matrix::new(weight, self.outputs, self.inputs()), bias))
    }

    /// The convolution of `x` with a weight of `[outputs, inputs]`.
    fn by_columns(&self, x: &[f32], weight: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
        let (pixels, groups) = self.grouped();
        note((self.outputs, self.inputs(), pixels), (false, false), groups);
        let (plane, inputs, group) = (self.out_plane(), self.inputs(), self.group());
        let threads = Self::threads(self.images.div_ceil(group));
        let each = self.outputs * plane;
        let arch = arch();
        build(self.images * each, group * each, |piece, blank| {
            let first = piece * group;
            let images = first..first + blank.len() / each;
            if self.direct() && images.len() == 1 {
                let x = &x[first * inputs * plane..][..inputs * plane];
                let y = product(blank, weight, Matrix::new(x, inputs, plane), threads);
                for (y, bias) in y.chunks_exact_mut(plane).zip(bias.unwrap_or_default()) {
                    y.iter_mut().for_each(|y| *y += bias);
                }
                return y;
            }
            let y = zeroed(blank);
            for (y, bias) in y.chunks_exact_mut(plane).zip(bias.unwrap_or_default().iter().cycle()) {
                y.fill(*bias);
            }
            for block in self.blocks(images.clone(), inputs) {
                let pixels = self.pixels(&block);
                with_scratch(inputs * pixels + self.gathered(&block), |scratch| {
                    let (columns, side) = scratch.split_at_mut(inputs * pixels);
                    vectorised!(arch, self.unfold(x, &block, 0..self.channels, columns));
                    let columns = Matrix::new(columns, inputs, pixels);
                    if block.images.len() == 1 {
                        let y = &mut y[(block.images.start - first) * each + block.rows.start * self.out_size[1]..];
                        product_in_rows((y, plane), true, weight, columns, threads);
                        return;
                    }
                    product_in_rows((side, pixels), false, weight, columns, threads);
                    for (output, line) in side.chunks_exact(pixels).enumerate() {
                        for (image, line) in block.images.clone().zip(line.chunks_exact(plane)) {
                            let y = &mut y[(image - first) * each + output * plane..][..plane];
                            y.iter_mut().zip(line).for_each(|(y, line)| *y += line);
                        }
                    }
                });
            }
            y
        })
    }

    /// The gradient of the input, added up from columns.
    fn folded(&self, weight: Matrix<'_>, dy: &[f32]) -> Vec<f32> {
        let (inputs, group, each) = (self.inputs(), self.group(), self.channels * self.plane());
        let threads = Self::threads(self.images.div_ceil(group));
        let arch = arch();
        build(self.images * each, group * each, |piece, blank| {
            let first = piece * group;
            let images = first..first + blank.len() / each;
            let dx = zeroed(blank);
            for block in self.blocks(images, inputs) {
                let pixels = self.pixels(&block);
                with_scratch(inputs * pixels + self.gathered(&block), |scratch| {
                    let (columns, side) = scratch.split_at_mut(inputs * pixels);
                    let dy = self.outputs(dy, &block, side);
                    product_in_rows((&mut *columns, pixels), false, weight.transposed(), dy, threads);
                    vectorised!(arch, self.fold(columns, &block, first, dx));
                });
            }
            dx
        })
    }

    /// The gradient of the weight, `[outputs, inputs]`. Pieces of work are shares of the images, each with a sum of its own,
    /// while those sums are small, and then channels.
    fn weight_gradient(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        const SUMS: usize = 1 << 20;
        const PIECES: usize = 8;
        let (inputs, taps, group) = (self.inputs(), self.taps(), self.group());
        let size = self.outputs * inputs;
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
        let sizes: Vec<[usize; 1]> = (0..shares * parts)
            .map(|i| [self.outputs * channels(i % parts).len() * taps])
            .collect();
        let threads = Self::threads(sizes.len());
        let arch = arch();
        let [sums] = build_pieces(&sizes, |i, [blank]| {
            let (images, channels) = (i / parts * share, channels(i % parts));
            let images = images..(images + share).min(self.images);
            let own = channels.len() * taps;
            let sum = zeroed(blank);
            for block in self.blocks(images, own) {
                let pixels = self.pixels(&block);
                if self.direct() && block.images.len() == 1 {
                    let plane = self.plane();
                    let first = (block.images.start * self.channels + channels.start) * plane;
                    let first = first + block.rows.start * self.size[1];
                    let columns = Matrix::strided(&x[first..], (own, pixels), (plane, 1));
                    let dy = self.outputs(dy, &block, &mut []);
                    product_in_rows((&mut *sum, own), true, dy, columns.transposed(), threads);
                    continue;
                }
                with_scratch(own * pixels + self.gathered(&block), |scratch| {
                    let (columns, side) = scratch.split_at_mut(own * pixels);
                    vectorised!(arch, self.unfold(x, &block, channels.clone(), columns));
                    let dy = self.outputs(dy, &block, side);
                    let columns = Matrix::new(columns, own, pixels);
                    product_in_rows((&mut *sum, own), true, dy, columns.transposed(), threads);
                });
            }
            [sum]
        });
        if sizes.len() == 1 {
            return sums;
        }
        // Rows of the gradient, each from its parts, and those as sums over the shares in their order.
        let rows = crate::vector::rows_of(inputs);
        build(size, rows * inputs, |i, blank| {
            let out = zeroed(blank);
            for (r, out) in out.chunks_exact_mut(inputs).enumerate() {
                let output = i * rows + r;
                for share in 0..shares {
                    for p in 0..parts {
                        let own = channels(p).len() * taps;
                        let first = share * size + self.outputs * channels(p).start * taps + output * own;
                        let out = &mut out[channels(p).start * taps..][..own];
                        out.iter_mut()
                            .zip(&sums[first..][..own])
                            .for_each(|(out, sum)| *out += sum);
                    }
                }
            }
            out
        })
    }

    /// The gradient of the bias: sums over each channel of each image, and of those in their order.
    fn bias_gradient(&self, dy: &[f32]) -> Vec<f32> {
        let (outputs, plane) = (self.outputs, self.out_plane());
        let arch = arch();
        let sums = build(self.images * outputs, outputs, |image, blank| {
            let sums = zeroed(blank);
            vectorised!(arch, {
                for (sum, dy) in sums.iter_mut().zip(dy[image * outputs * plane..].chunks_exact(plane)) {
                    *sum = sum_of(
                        dy,
                        #[inline(always)]
                        |x| x,
                    );
                }
            });
            sums
        });
        add_up(&sums, outputs)
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
        tensor(y, [layout.images, layout.outputs, height, width])
    }

    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let layout = Layout::new(self, tensors[0].shape().dims(), tensors[1].shape().dims());
        let (outputs, inputs, (pixels, groups)) = (layout.outputs, layout.inputs(), layout.grouped());
        let (x, weight, dy) = (values(&tensors[0]), values(&tensors[1]), values(&gradient));
        let mut gradients = Vec::new();
        gradients.push(wanted[0].then(|| {
            let straight = Matrix::new(weight, outputs, inputs);
            let dx = match layout.turned() {
                Some(backward) if layout.taps() == 1 => backward.by_columns(dy, straight.transposed(), None),
                Some(backward) => backward.run(dy, &turned(weight, outputs, layout.channels, layout.taps()), None),
                None => {
                    note((inputs, outputs, pixels), (true, false), groups);
                    layout.folded(straight, dy)
                }
            };
            tensor(dx, tensors[0].shape())
        }));
        gradients.push(wanted[1].then(|| {
            let tiled = layout.tiled().then(|| layout.weight_gradient_tiled(x, dy)).flatten();
            let d_weight = tiled.unwrap_or_else(|| {
                note((outputs, pixels, inputs), (false, true), groups);
                layout.weight_gradient(x, dy)
            });
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
        B::conv2d(x, weight, tensors.next(), self.options())
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let (x, weight) = (&tensors[0], &tensors[1]);
        let mut gradients = Vec::new();
        gradients
            .push(wanted[0].then(|| B::conv2d_x_backward(x.clone(), weight.clone(), gradient.clone(), self.options())));
        gradients.push(
            wanted[1].then(|| B::conv2d_weight_backward(x.clone(), weight.clone(), gradient.clone(), self.options())),
        );
        if let Some(bias) = tensors.get(2) {
            gradients.push(Some(B::conv2d_bias_backward(x.clone(), bias.clone(), gradient)));
        }
        gradients
    }
}

#[cfg(test)]
mod tests;
