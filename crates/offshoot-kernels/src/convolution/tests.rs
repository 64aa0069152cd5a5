//! Convolution against loops in float64 and against the plain operation.

use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;

use super::*;
use crate::slices::contiguous;
use crate::tests::{Way, gradients, result};
use crate::vector::{Path, with_path};

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u64 * 2 + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// One layer with its input, and what is multiplied with its output.
#[derive(Clone, Debug)]
struct Case {
    x: [usize; 4],
    weight: [usize; 4],
    window: Window,
    bias: bool,
}

impl Case {
    /// Of `[batch, channels, height, width]`, which lies in memory channel by channel.
    fn new(
        [images, channels, height, width]: [usize; 4],
        outputs: usize,
        kernel: [usize; 2],
        (stride, padding): (usize, usize),
        bias: bool,
    ) -> Self {
        Self {
            x: [channels, images, height, width],
            weight: [outputs, channels, kernel[0], kernel[1]],
            window: Window { stride, padding },
            bias,
        }
    }

    fn out(&self) -> [usize; 4] {
        let [height, width] = Layout::new(self.window, self.x, self.weight).out_size;
        [self.weight[0], self.x[1], height, width]
    }

    fn values(&self) -> [Vec<f32>; 4] {
        let n = |shape: [usize; 4]| shape.iter().product();
        let bias = if self.bias { self.weight[0] } else { 0 };
        [
            numbers(n(self.x), 1),
            numbers(n(self.weight), 2),
            numbers(bias, 3),
            numbers(n(self.out()), 4),
        ]
    }

    fn primitives(&self) -> (Vec<FloatTensor<Flex>>, FloatTensor<Flex>) {
        let [x, weight, bias, dy] = self.values();
        let mut tensors = vec![tensor(x, self.x), tensor(weight, self.weight)];
        if self.bias {
            tensors.push(tensor(bias, [self.weight[0]]));
        }
        (tensors, tensor(dy, self.out()))
    }

    /// Output and gradients.
    fn run(&self, way: Way) -> Vec<Vec<f32>> {
        let (tensors, dy) = self.primitives();
        let y = result(way, self.window, tensors.clone());
        assert_eq!(y.shape().dims(), self.out());
        let gradients = gradients(way, self.window, tensors.clone(), dy);
        for (gradient, tensor) in gradients.iter().zip(&tensors) {
            assert_eq!(gradient.shape(), tensor.shape());
        }
        [y].into_iter()
            .chain(gradients)
            .map(|t| values(&contiguous(t)).to_vec())
            .collect()
    }

    fn ours(&self) -> Vec<Vec<f32>> {
        self.run(Way::Ours)
    }

    /// The same in loops over float64.
    fn exact(&self) -> Vec<Vec<f64>> {
        let [x, weight, bias, dy] = self.values().map(|v| v.into_iter().map(f64::from).collect::<Vec<_>>());
        let [c, n, h, w] = self.x;
        let [o, _, kh, kw] = self.weight;
        let [_, _, oh, ow] = self.out();
        let Window { stride, padding } = self.window;
        let mut y = vec![0.0; n * o * oh * ow];
        let (mut dx, mut d_weight) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        let mut d_bias = vec![0.0; bias.len()];
        for (at, y) in y.iter_mut().enumerate() {
            let (output, image, row, column) = (at / (n * oh * ow), at / (oh * ow) % n, at / ow % oh, at % ow);
            if let Some(bias) = bias.get(output) {
                *y += bias;
                d_bias[output] += dy[at];
            }
            for tap in 0..c * kh * kw {
                let (channel, down, right) = (tap / (kh * kw), tap / kw % kh, tap % kw);
                let (i, j) = (row * stride + down, column * stride + right);
                if i < padding || j < padding || i - padding >= h || j - padding >= w {
                    continue;
                }
                let from = ((channel * n + image) * h + i - padding) * w + j - padding;
                let factor = output * c * kh * kw + tap;
                *y += x[from] * weight[factor];
                dx[from] += dy[at] * weight[factor];
                d_weight[factor] += dy[at] * x[from];
            }
        }
        let mut all = vec![y, dx, d_weight];
        all.extend(self.bias.then_some(d_bias));
        all
    }

    /// How many products one number of each result is a sum of.
    fn terms(&self) -> [usize; 4] {
        let [_, n, oh, ow] = self.out();
        let [o, c, kh, kw] = self.weight;
        [c * kh * kw + 1, o * kh * kw, n * oh * ow, n * oh * ow]
    }

    fn check(&self, found: &[Vec<f32>]) {
        let exact = self.exact();
        assert_eq!(found.len(), exact.len());
        for ((found, exact), terms) in found.iter().zip(&exact).zip(self.terms()) {
            assert_eq!(found.len(), exact.len());
            // A unit in the last place of numbers up to 1, for each of them.
            let bound = 1.2e-7 * (terms + 8) as f64;
            for (found, exact) in found.iter().zip(exact) {
                assert!(
                    (f64::from(*found) - exact).abs() <= bound,
                    "{found} for {exact} in {self:?}"
                );
            }
        }
    }
}

/// What ResNets consist of, small, with sizes that fill no vector, and the odd ones.
fn cases() -> Vec<Case> {
    vec![
        Case::new([2, 3, 23, 20], 6, [7, 7], (2, 3), false),
        Case::new([2, 5, 9, 9], 7, [3, 3], (1, 1), true),
        Case::new([3, 5, 14, 13], 7, [3, 3], (2, 1), false),
        Case::new([9, 6, 3, 3], 8, [3, 3], (1, 1), false),
        Case::new([40, 3, 7, 7], 5, [3, 3], (1, 1), true),
        Case::new([40, 3, 7, 7], 5, [3, 3], (2, 1), true),
        Case::new([3, 16, 13, 13], 9, [1, 1], (1, 0), true),
        Case::new([40, 6, 4, 5], 9, [1, 1], (1, 0), true),
        Case::new([3, 6, 8, 9], 9, [1, 1], (2, 0), false),
        Case::new([1, 4, 60, 50], 3, [3, 3], (1, 1), true),
        // Blocks of rows, and sums over channels in parts.
        Case::new([2, 64, 40, 40], 16, [3, 3], (1, 1), false),
        Case::new([2, 64, 41, 40], 3, [3, 3], (2, 1), false),
        // Tiles: whole ones, cut ones, fewer and more than a vector in a row, and runs of images.
        Case::new([3, 16, 13, 13], 16, [3, 3], (1, 1), true),
        Case::new([2, 17, 7, 33], 18, [3, 3], (1, 1), true),
        Case::new([8, 128, 5, 5], 129, [3, 3], (1, 0), false),
        Case::new([1, 33, 5, 36], 16, [3, 3], (1, 2), true),
        Case::new([40, 16, 21, 20], 17, [3, 3], (1, 1), false),
        // Windows that are not square, jump over pixels, or see nothing but zeros.
        Case::new([2, 3, 6, 9], 4, [1, 4], (1, 0), true),
        Case::new([2, 3, 6, 9], 4, [4, 3], (1, 2), true),
        Case::new([2, 3, 11, 10], 4, [2, 3], (3, 1), true),
        Case::new([2, 3, 5, 5], 4, [1, 1], (1, 2), true),
        Case::new([2, 2, 1, 1], 3, [2, 2], (4, 5), true),
        Case::new([1, 1, 1, 1], 1, [1, 1], (1, 0), false),
    ]
}

#[test]
fn outputs_and_gradients_are_those_of_loops_in_float64_on_every_path() {
    for case in cases() {
        for path in Path::ALL.into_iter().filter(|path| path.is_available()) {
            with_path(path, || case.check(&case.ours()));
        }
    }
}

#[test]
fn the_plain_operations_are_those_of_loops_in_float64() {
    for case in cases() {
        case.check(&case.run(Way::Plain));
    }
}

proptest! {
    #[test]
    fn any_layer_and_its_plain_fallback_are_loops_in_float64(
        images in 1..5usize,
        channels in 1..6usize,
        outputs in 1..6usize,
        size in [1..14usize, 1..14usize],
        kernel in [1..6usize, 1..6usize],
        stride in 1..4usize,
        padding in 0..4usize,
        bias: bool,
    ) {
        prop_assume!((0..2).all(|d| kernel[d] <= size[d] + 2 * padding));
        let x = [images, channels, size[0], size[1]];
        let case = Case::new(x, outputs, kernel, (stride, padding), bias);
        case.check(&case.ours());
        case.check(&case.run(Way::Plain));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_tiles_give_what_loops_in_float64_give(
        images in 1..5usize,
        channels in 16..35usize,
        outputs in 16..35usize,
        size in [1..20usize, 13..40usize],
        padding in 0..4usize,
        bias: bool,
    ) {
        prop_assume!(size.iter().all(|size| size + 2 * padding >= 3));
        let case = Case::new([images, channels, size[0], size[1]], outputs, [3, 3], (1, padding), bias);
        case.check(&case.ours());
    }
}

#[test]
fn empty_layers_give_empty_results_and_zeros() {
    for (x, outputs) in [([0, 3, 5, 5], 4), ([2, 3, 5, 5], 0), ([2, 0, 5, 5], 4)] {
        let kernels = [([3, 3], (1, 1)), ([3, 3], (2, 1)), ([1, 1], (1, 0))];
        for (kernel, moves) in kernels {
            let case = Case::new(x, outputs, kernel, moves, true);
            case.check(&case.ours());
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    for case in cases() {
        let bytes = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            pool.install(|| case.ours().into_iter().map(bits).collect::<Vec<_>>())
        };
        let one = bytes(1);
        assert!(one == bytes(2) && one == bytes(3), "{case:?}");
    }
}

#[test]
fn what_is_no_number_goes_where_the_plain_operation_carries_it() {
    let kind = |values: &Vec<f32>| -> Vec<u8> {
        let kind = |v: &f32| {
            if v.is_nan() {
                1
            } else if *v == f32::INFINITY {
                2
            } else {
                u8::from(v.is_infinite()) * 3
            }
        };
        values.iter().map(kind).collect()
    };
    for case in cases() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let (tensors, dy) = case.primitives();
            let spoilt = |t: &FloatTensor<Flex>| {
                let mut all = values(t).to_vec();
                let middle = all.len() / 2;
                all[middle] = wrong;
                tensor(all, t.shape())
            };
            let tensors = [vec![spoilt(&tensors[0])], tensors[1..].to_vec()].concat();
            let ways = [Way::Ours, Way::Plain];
            let y = ways.map(|way| values(&contiguous(result(way, case.window, tensors.clone()))).to_vec());
            assert_eq!(kind(&y[0]), kind(&y[1]), "{case:?}");
            let gradients = ways.map(|way| {
                let found = gradients(way, case.window, tensors.clone(), spoilt(&dy));
                let found = found.into_iter().map(|t| kind(&values(&contiguous(t)).to_vec()));
                found.collect::<Vec<_>>()
            });
            assert_eq!(gradients[0], gradients[1], "{case:?}");
        }
    }
}

#[test]
fn gradients_of_tracked_tensors_are_those_of_the_tensor_library() {
    let device = Device::flex().autodiff();
    for case in cases() {
        let [x, weight, bias, dy] = case.values();
        let run = |ours: bool| {
            let x = Tensor::<4>::from_data(TensorData::new(x.clone(), case.x), &device).require_grad();
            let weight = Tensor::<4>::from_data(TensorData::new(weight.clone(), case.weight), &device).require_grad();
            let bias = case.bias.then(|| {
                Tensor::<1>::from_data(TensorData::new(bias.clone(), [case.weight[0]]), &device).require_grad()
            });
            let Window { stride, padding } = case.window;
            // Neither images nor weight lie in memory as they are numbered.
            let turn = |t: Tensor<4>| t.swap_dims(2, 3).mul_scalar(1.0).swap_dims(2, 3);
            let y = if ours {
                crate::convolution(turn(x.clone()), turn(weight.clone()), bias.clone(), stride, padding)
            } else {
                burn::tensor::module::conv2d(
                    x.clone().swap_dims(0, 1),
                    weight.clone(),
                    bias.clone(),
                    case.window.options(),
                )
                .swap_dims(0, 1)
            };
            let dy = Tensor::<4>::from_data(TensorData::new(dy.clone(), case.out()), &device);
            let gradients = (y.clone() * dy).sum().backward();
            let mut all = vec![y.into_data(), x.grad(&gradients).unwrap().into_data()];
            all.push(weight.grad(&gradients).unwrap().into_data());
            all.extend(bias.map(|bias| bias.grad(&gradients).unwrap().into_data()));
            all.into_iter()
                .map(|data| data.try_to_vec::<f32>().unwrap())
                .collect::<Vec<_>>()
        };
        case.check(&run(true));
        case.check(&run(false));
    }
}

#[test]
#[should_panic(expected = "a window of 4 pixels in 3")]
fn a_window_beyond_the_image_is_refused() {
    let device = Device::flex();
    crate::convolution(
        Tensor::zeros([1, 1, 5, 1], &device),
        Tensor::zeros([1, 1, 4, 4], &device),
        None,
        1,
        1,
    );
}

#[test]
#[should_panic(expected = "channels of the images and of the weight")]
fn groups_are_refused() {
    let device = Device::flex();
    crate::convolution(
        Tensor::zeros([4, 1, 5, 5], &device),
        Tensor::zeros([4, 2, 3, 3], &device),
        None,
        1,
        1,
    );
}
