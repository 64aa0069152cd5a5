//! Linear layers with what stands before and after them: a norm or an activation of the input, the bias, LayerScale and the
//! residual.
//!
//! `y = residual + layer_scale * (entry(x) W^T + bias)`, in blocks of rows that stay in the cache from the first read to the
//! last write. Only `x` is kept for the gradient: `entry(x)` is cheap and found again. LayerScale costs no pass of its own in
//! the gradient either: with `G = dy^T entry(x)` it is `dW = layer_scale * G` and
//! `d layer_scale = rowsum(W * G) + bias * colsum(dy)`, so `entry(x) W^T + bias` is not needed again.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::Shape;

use crate::gemm::{Matrix, Threads, note, product, product_in_rows, turn};
use crate::gemv::row_product;
use crate::norm::Norm;
use crate::operation::Kernel;
use crate::slices::{tensor, values};
use crate::vector::{LANES, add_up, arch, build, build_pieces, copied, dot, rows_of, vectorised, with_scratch, zeroed};
use crate::{gelu, gelu_tanh, swiglu};

/// What a linear layer does to its input first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Entry {
    /// Nothing.
    #[default]
    Plain,
    /// Exact GELU.
    Gelu,
    /// GELU by a hyperbolic tangent, GPT-2's.
    GeluTanh,
    /// SwiGLU: a row of the input is `2 * in` numbers, the gate's and then the others, and becomes `silu(gate) * other`.
    SwiGlu,
    /// LayerNorm over the last dimension, with the norm's scale and shift.
    LayerNorm {
        /// Added to the variance.
        epsilon: f64,
    },
    /// RMSNorm over the last dimension, with the norm's scale.
    RmsNorm {
        /// Added to the mean square.
        epsilon: f64,
    },
}

/// What a fused linear layer consists of. Its tensors are handed over in this order: `x` of `[rows, in]`, or of `[rows, 2 * in]` if
/// that is entered by SwiGLU, the weight of `[out, in]`, the bias, the scale and shift of a norm, the LayerScale, and the residual of `[rows, out]`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Form {
    /// What happens to the input first.
    pub entry: Entry,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether there is a LayerScale.
    pub layer_scale: bool,
    /// Whether there is a residual.
    pub residual: bool,
}

/// The tensors of a [`Form`], or something that stands for each.
#[derive(Clone, Debug)]
struct Parts<T> {
    x: T,
    weight: T,
    bias: Option<T>,
    scale: Option<T>,
    shift: Option<T>,
    layer_scale: Option<T>,
    residual: Option<T>,
}

impl Form {
    fn norm(self) -> Option<Norm> {
        match self.entry {
            Entry::Plain | Entry::Gelu | Entry::GeluTanh | Entry::SwiGlu => None,
            Entry::LayerNorm { epsilon } => Some(Norm {
                centred: true,
                epsilon: epsilon as f32,
            }),
            Entry::RmsNorm { epsilon } => Some(Norm {
                centred: false,
                epsilon: epsilon as f32,
            }),
        }
    }

    /// # Panics
    /// If there are not as many as the form has.
    fn parts<T>(self, all: Vec<T>) -> Parts<T> {
        let mut all = all.into_iter();
        let mut next = |wanted: bool| wanted.then(|| all.next().expect("a tensor for each part of the form"));
        let norm = self.norm();
        Parts {
            x: next(true).expect("wanted"),
            weight: next(true).expect("wanted"),
            bias: next(self.bias),
            scale: next(norm.is_some()),
            shift: next(norm.is_some_and(|norm| norm.centred)),
            layer_scale: next(self.layer_scale),
            residual: next(self.residual),
        }
    }

    /// The parts that the gradient gets: all but the residual.
    fn kept_parts<T>(self, all: Vec<T>) -> Parts<T> {
        let residual = false;
        Form { residual, ..self }.parts(all)
    }

    /// Numbers of a row of `x` for each that the product sees.
    fn branches(self) -> usize {
        if self.entry == Entry::SwiGlu { 2 } else { 1 }
    }

    /// # Panics
    /// If a row of `x` has not the `width` that goes with a weight for `inputs` numbers.
    fn check(self, width: usize, inputs: usize) {
        let branches = self.branches();
        assert_eq!(width, branches * inputs, "a row for a weight with {inputs} inputs");
    }

    /// Writes `entry(x)` of some rows to `out`.
    #[inline(always)]
    fn enter(self, x: &[f32], (scale, shift): (Option<&[f32]>, Option<&[f32]>), inputs: usize, out: &mut [f32]) {
        match (self.entry, self.norm()) {
            (_, Some(norm)) => norm.forward(x, scale.unwrap_or_default(), shift, out),
            (Entry::Gelu, _) => gelu::values(x, out),
            (Entry::GeluTanh, _) => gelu_tanh::values(x, out),
            (Entry::SwiGlu, _) => swiglu::values(x, inputs, out),
            _ => out.copy_from_slice(x),
        }
    }

    /// The gradients that are wanted; that of LayerScale is made from that of the weight.
    fn wanted_parts(self, wanted: &[bool]) -> Parts<bool> {
        let mut wanted = self.parts(wanted.to_vec());
        wanted.weight |= wanted.layer_scale == Some(true);
        wanted
    }
}

impl<T> Parts<T> {
    fn map<U>(self, mut f: impl FnMut(T) -> U) -> Parts<U> {
        Parts {
            x: f(self.x),
            weight: f(self.weight),
            bias: self.bias.map(&mut f),
            scale: self.scale.map(&mut f),
            shift: self.shift.map(&mut f),
            layer_scale: self.layer_scale.map(&mut f),
            residual: self.residual.map(f),
        }
    }

    fn as_ref(&self) -> Parts<&T> {
        Parts {
            x: &self.x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            scale: self.scale.as_ref(),
            shift: self.shift.as_ref(),
            layer_scale: self.layer_scale.as_ref(),
            residual: self.residual.as_ref(),
        }
    }
}

/// Rows of one block of work: its input and its output are to stay in a core's second cache.
fn block(inputs: usize, outputs: usize) -> usize {
    ((1 << 17) / inputs.max(outputs).max(1)).clamp(64, 512)
}

/// Threads of the product of each block: few rows are one block, whose product all threads share.
fn threads(rows: usize, block: usize) -> Threads {
    if rows > block { Threads::One } else { Threads::All }
}

/// `[inputs, outputs]` from an `[outputs, inputs]` matrix.
fn turned(weight: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let arch = arch();
    build(inputs * outputs, LANES * outputs.max(1), |i, blank| {
        let first = i * LANES;
        let columns = LANES.min(inputs - first);
        let out = zeroed(blank);
        vectorised!(arch, turn(&weight[first..], (outputs, columns, inputs), out));
        out
    })
}

/// `y <- residual + layer_scale * (y + bias)` of one row.
#[inline(always)]
fn leave(y: &mut [f32], bias: Option<&[f32]>, layer_scale: Option<&[f32]>, residual: Option<&[f32]>) {
    if let Some(bias) = bias {
        for (y, bias) in y.iter_mut().zip(bias) {
            *y += bias;
        }
    }
    if let Some(layer_scale) = layer_scale {
        for (y, factor) in y.iter_mut().zip(layer_scale) {
            *y *= factor;
        }
    }
    if let Some(residual) = residual {
        for (y, residual) in y.iter_mut().zip(residual) {
            *y += residual;
        }
    }
}

/// `weight` with its rows multiplied by `factors`.
fn rows_scaled(weight: &[f32], inputs: usize, factors: &[f32]) -> Vec<f32> {
    let rows = rows_of(inputs);
    build(weight.len(), rows * inputs, |i, blank| {
        let scaled = copied(blank, &weight[i * rows * inputs..][..blank.len()]);
        for (row, factor) in scaled.chunks_exact_mut(inputs.max(1)).zip(&factors[i * rows..]) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
        scaled
    })
}

/// Multiplies the rows of `d_weight` by `factors`, and gives the product of each row with that of `weight` before.
fn scale_rows(d_weight: &mut [f32], weight: &[f32], inputs: usize, factors: &[f32]) -> Vec<f32> {
    let arch = arch();
    let rows = d_weight
        .chunks_exact_mut(inputs.max(1))
        .zip(weight.chunks_exact(inputs.max(1)));
    let along = rows.zip(factors).map(|((row, weight), factor)| {
        vectorised!(arch, {
            let along = dot(row, weight);
            row.iter_mut().for_each(|value| *value *= factor);
            along
        })
    });
    along.collect()
}

/// `[1, n]` from `[n]`.
fn row<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let n = x.shape().num_elements();
    B::float_reshape(x, Shape::new([1, n]))
}

/// `(x - mean) / deviation` by row, and `1 / deviation`.
fn plain_norm<B: Backend>(norm: Norm, x: FloatTensor<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let x = if norm.centred {
        B::float_sub(x.clone(), B::float_mean_dim(x, 1))
    } else {
        x
    };
    let variance = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 1);
    let factor = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, norm.epsilon.into())));
    (B::float_mul(x, factor.clone()), factor)
}

/// `entry(x)` in plain operations.
fn plain_entry<B: Backend>(form: Form, parts: &Parts<FloatTensor<B>>) -> FloatTensor<B> {
    let x = parts.x.clone();
    match (form.entry, form.norm()) {
        (_, Some(norm)) => {
            let mut y = plain_norm::<B>(norm, x).0;
            if let Some(scale) = &parts.scale {
                y = B::float_mul(y, row::<B>(scale.clone()));
            }
            match &parts.shift {
                Some(shift) => B::float_add(y, row::<B>(shift.clone())),
                None => y,
            }
        }
        (Entry::Gelu, _) => B::gelu(x),
        (Entry::GeluTanh, _) => gelu_tanh::plain::<B>(x),
        (Entry::SwiGlu, _) => swiglu::plain::<B>(x),
        _ => x,
    }
}

impl Kernel for Form {
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
        let parts = self.parts(tensors);
        let [rows, width] = parts.x.shape().dims();
        let [outputs, inputs] = parts.weight.shape().dims();
        self.check(width, inputs);
        let Parts {
            x,
            weight,
            bias,
            scale,
            shift,
            layer_scale,
            residual,
        } = parts.as_ref().map(values);
        note((rows, inputs, outputs), (false, true), 1);
        let block = block(inputs, outputs);
        let arch = arch();
        if rows == 1 {
            let y = with_scratch(inputs, |entered| {
                vectorised!(arch, self.enter(x, (scale, shift), inputs, entered));
                row_product(
                    entered,
                    weight,
                    outputs,
                    #[inline(always)]
                    |first, y| {
                        let [bias, layer_scale, residual] = [bias, layer_scale, residual].map(
                            #[inline(always)]
                            |values| values.map(|values| &values[first..][..y.len()]),
                        );
                        leave(y, bias, layer_scale, residual);
                    },
                )
            });
            return tensor(y, [rows, outputs]);
        }
        // Turned once, where each block would have to turn it for itself.
        let held;
        let weight = if rows > block {
            held = turned(weight, inputs, outputs);
            Matrix::new(&held, inputs, outputs)
        } else {
            Matrix::new(weight, outputs, inputs).transposed()
        };
        let threads = threads(rows, block);
        let y = build(rows * outputs, block * outputs, |i, blank| {
            let first = i * block;
            let n = blank.len() / outputs.max(1);
            let x = &x[first * width..][..n * width];
            let y = match self.entry {
                Entry::Plain => product(blank, Matrix::new(x, n, inputs), weight, threads),
                _ => with_scratch(n * inputs, |entered| {
                    vectorised!(arch, self.enter(x, (scale, shift), inputs, entered));
                    product(blank, Matrix::new(entered, n, inputs), weight, threads)
                }),
            };
            vectorised!(arch, {
                for (r, y) in y.chunks_exact_mut(outputs.max(1)).enumerate() {
                    let residual = residual.map(|residual| &residual[(first + r) * outputs..][..outputs]);
                    leave(y, bias, layer_scale, residual);
                }
            });
            y
        });
        tensor(y, [rows, outputs])
    }

    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>> {
        let wanted = self.wanted_parts(wanted);
        let d_residual = wanted.residual.unwrap_or_default().then(|| gradient.clone());
        let parts = self.kept_parts(tensors);
        let [rows, width] = parts.x.shape().dims();
        let [outputs, inputs] = parts.weight.shape().dims();
        self.check(width, inputs);
        let Parts {
            x,
            weight,
            bias,
            scale,
            shift,
            layer_scale,
            ..
        } = parts.as_ref().map(values);
        let dy = values(&gradient);
        let block = block(inputs, outputs);
        let arch = arch();
        let norm = self.norm();
        let held;
        let scaled = match layer_scale {
            Some(factors) => {
                held = rows_scaled(weight, inputs, factors);
                Matrix::new(&held, outputs, inputs)
            }
            None => Matrix::new(weight, outputs, inputs),
        };
        // In blocks of rows: the gradient of the input, the input as the product saw it, and sums over the block's rows, which are
        // those of dy and of the norm's scale and shift.
        let blocks = rows.div_ceil(block);
        let entered_again = self.entry != Entry::Plain && wanted.weight;
        let norm_sums = if norm.is_some() { 2 * inputs } else { 0 };
        let sums = outputs + norm_sums;
        let inner = usize::from(wanted.x || norm.is_some());
        if inner == 1 {
            note((rows, outputs, inputs), (false, false), 1);
        }
        let sizes: Vec<[usize; 3]> = (0..blocks)
            .map(|i| {
                let n = block.min(rows - i * block);
                [sums, inner * n * width, usize::from(entered_again) * n * inputs]
            })
            .collect();
        let [sums_of_blocks, dx, entered] = build_pieces(&sizes, |i, [sums, dx, entered]| {
            let first = i * block;
            let n = block.min(rows - first);
            let x = &x[first * width..][..n * width];
            let dy = &dy[first * outputs..][..n * outputs];
            let d_entered = Matrix::new(dy, n, outputs);
            // What is entered by two branches has a gradient of its own size first.
            let apart = inner * (self.branches() - 1) * n * inputs;
            with_scratch(apart, |d_apart| {
                let dx = match (inner, apart) {
                    (0, _) => zeroed(dx),
                    (_, 0) => product(dx, d_entered, scaled, threads(rows, block)),
                    _ => {
                        product_in_rows((&mut *d_apart, inputs), false, d_entered, scaled, threads(rows, block));
                        zeroed(dx)
                    }
                };
                let entered = zeroed(entered);
                let sums = zeroed(sums);
                vectorised!(arch, {
                    let (columns, norm_sums) = sums.split_at_mut(outputs);
                    for dy in dy.chunks_exact(outputs.max(1)) {
                        for (sum, dy) in columns.iter_mut().zip(dy) {
                            *sum += dy;
                        }
                    }
                    let again = entered_again.then_some(&mut *entered);
                    match (self.entry, norm) {
                        (_, Some(norm)) => {
                            let weights = (scale.unwrap_or_default(), shift);
                            norm.backward(x, weights, dx, norm_sums.split_at_mut(inputs), again);
                        }
                        (Entry::Gelu, _) if inner == 1 => gelu::gradient(x, dx, again),
                        (Entry::GeluTanh, _) if inner == 1 => gelu_tanh::gradient(x, dx, again),
                        (Entry::SwiGlu, _) if inner == 1 => swiglu::gradient(x, inputs, d_apart, dx, again),
                        _ => {
                            if let Some(again) = again {
                                self.enter(x, (None, None), inputs, again);
                            }
                        }
                    }
                });
                [sums, dx, entered]
            })
        });
        let sums = add_up(&sums_of_blocks, sums);
        let (columns, norm_sums) = sums.split_at(outputs);
        let mut gradients = Vec::new();
        gradients.push(wanted.x.then(|| tensor(dx, [rows, width])));
        let mut d_layer_scale = None;
        gradients.push(wanted.weight.then(|| {
            note((outputs, rows, inputs), (true, false), 1);
            let entered = if entered_again { &entered } else { x };
            let left = Matrix::new(dy, rows, outputs).transposed();
            let mut d_weight = build(outputs * inputs, outputs * inputs, |_, blank| {
                product(blank, left, Matrix::new(entered, rows, inputs), Threads::All)
            });
            if let Some(factors) = layer_scale {
                d_layer_scale = Some(scale_rows(&mut d_weight, weight, inputs, factors));
            }
            tensor(d_weight, [outputs, inputs])
        }));
        if let Some(bias) = bias {
            let factor = |o: usize| layer_scale.map_or(1.0, |factors| factors[o]);
            if let Some(d_layer_scale) = &mut d_layer_scale {
                for ((d, bias), sum) in d_layer_scale.iter_mut().zip(bias).zip(columns) {
                    *d += bias * sum;
                }
            }
            let d_bias = columns.iter().enumerate().map(|(o, sum)| sum * factor(o)).collect();
            gradients.push(Some(tensor(d_bias, [outputs])));
        }
        if norm.is_some() {
            let (d_scale, d_shift) = norm_sums.split_at(inputs);
            gradients.push(Some(tensor(d_scale.to_vec(), [inputs])));
            if shift.is_some() {
                gradients.push(Some(tensor(d_shift.to_vec(), [inputs])));
            }
        }
        if layer_scale.is_some() {
            gradients.push(d_layer_scale.map(|d| tensor(d, [outputs])));
        }
        if self.residual {
            gradients.push(d_residual);
        }
        gradients
    }

    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let parts = self.parts(tensors);
        let mut y = B::float_matmul(plain_entry::<B>(self, &parts), B::float_transpose(parts.weight));
        if let Some(bias) = parts.bias {
            y = B::float_add(y, row::<B>(bias));
        }
        if let Some(layer_scale) = parts.layer_scale {
            y = B::float_mul(y, row::<B>(layer_scale));
        }
        match parts.residual {
            Some(residual) => B::float_add(residual, y),
            None => y,
        }
    }

    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<B>>> {
        let wanted = self.wanted_parts(wanted);
        let d_residual = wanted.residual.unwrap_or_default().then(|| gradient.clone());
        let parts = self.kept_parts(tensors);
        let flat = |x: FloatTensor<B>| {
            let n = x.shape().num_elements();
            B::float_reshape(x, Shape::new([n]))
        };
        let column_sums = |x: FloatTensor<B>| flat(B::float_sum_dim(x, 0));
        let scaled = match &parts.layer_scale {
            Some(factors) => B::float_mul(gradient.clone(), row::<B>(factors.clone())),
            None => gradient.clone(),
        };
        let entered = plain_entry::<B>(self, &parts);
        let inner = B::float_matmul(scaled.clone(), parts.weight.clone());
        let d_weight = B::float_matmul(B::float_transpose(scaled.clone()), entered.clone());
        let (mut d_scale, mut d_shift) = (None, None);
        let d_x = match self.norm() {
            Some(norm) => {
                let (normal, factor) = plain_norm::<B>(norm, parts.x.clone());
                d_scale = Some(column_sums(B::float_mul(inner.clone(), normal.clone())));
                d_shift = Some(column_sums(inner.clone()));
                let g = match &parts.scale {
                    Some(scale) => B::float_mul(inner, row::<B>(scale.clone())),
                    None => inner,
                };
                let along = B::float_mean_dim(B::float_mul(g.clone(), normal.clone()), 1);
                let mut d = B::float_sub(g.clone(), B::float_mul(normal, along));
                if norm.centred {
                    d = B::float_sub(d, B::float_mean_dim(g, 1));
                }
                B::float_mul(d, factor)
            }
            None => match self.entry {
                Entry::Gelu => B::gelu_backward(parts.x.clone(), inner),
                Entry::GeluTanh => gelu_tanh::plain_backward::<B>(parts.x.clone(), inner),
                Entry::SwiGlu => swiglu::plain_backward::<B>(parts.x.clone(), inner),
                _ => inner,
            },
        };
        let mut gradients = vec![wanted.x.then_some(d_x), wanted.weight.then_some(d_weight)];
        if parts.bias.is_some() {
            gradients.push(Some(column_sums(scaled)));
        }
        if parts.scale.is_some() {
            gradients.push(d_scale);
        }
        if parts.shift.is_some() {
            gradients.push(d_shift);
        }
        if parts.layer_scale.is_some() {
            let mut y = B::float_matmul(entered, B::float_transpose(parts.weight));
            if let Some(bias) = parts.bias {
                y = B::float_add(y, row::<B>(bias));
            }
            gradients.push(Some(column_sums(B::float_mul(y, gradient))));
        }
        if self.residual {
            gradients.push(d_residual);
        }
        gradients
    }

    fn kept(&self, count: usize) -> usize {
        count - usize::from(self.residual)
    }
}
