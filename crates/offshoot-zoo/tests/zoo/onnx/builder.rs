//! Each function of the graph builder, run by tract, against its definition, written out in f64.

use offshoot_family::{Architecture, Shape, Space, View};
use offshoot_zoo::layout::Layout;
use offshoot_zoo::network::{NetworkError, SpaceBounds, StochasticDepth};
use offshoot_zoo::onnx::Extent::{Batch, Fixed};
use offshoot_zoo::onnx::{self, About, Graph, Heads, OnnxError, Outputs, Sliding, Value};
use offshoot_zoo::spec::Dim;
use offshoot_zoo::tensor::{Bool, Tensor};
use offshoot_zoo::vit::VitNetwork;
use offshoot_zoo::{Backbone, DropPath, Features, Network, TensorSpec, Weights};

use super::file::{Model, floats};
use crate::{numbers, preparation, small};

/// A network whose graph is whatever a test wants to see, on two-channel images of 4 x 4 pixels.
struct Custom {
    specs: Vec<TensorSpec>,
    build: fn(&mut Graph, Value) -> Value,
}

impl Network for Custom {
    fn architecture(&self) -> Architecture {
        Architecture::Vit(small())
    }

    fn specs(&self) -> Vec<TensorSpec> {
        self.specs.clone()
    }

    fn as_backbone(&self) -> Option<&dyn Backbone> {
        Some(self)
    }

    fn width_step(&self) -> usize {
        unreachable!("only the graph is asked for")
    }

    fn layers(&self) -> usize {
        unreachable!("only the graph is asked for")
    }

    fn space(&self, _: SpaceBounds) -> Result<Space, NetworkError> {
        unreachable!("only the graph is asked for")
    }

    fn child(&self, _: &Shape, _: &str) -> Result<View, NetworkError> {
        unreachable!("only the graph is asked for")
    }

    fn familiar_name(&self) -> Option<&'static str> {
        None
    }

    fn example_macs(&self) -> u64 {
        unreachable!("only the graph is asked for")
    }

    fn layout(&self) -> Layout {
        VitNetwork::new(small()).layout()
    }
}

impl Backbone for Custom {
    fn feature(&self) -> Dim {
        unreachable!("only the graph is asked for")
    }

    fn image(&self) -> (usize, usize) {
        (2, 4)
    }

    fn mask_grid(&self) -> usize {
        unreachable!("only the graph is asked for")
    }

    fn stride(&self) -> usize {
        unreachable!("only the graph is asked for")
    }

    fn stochastic_depth(&self) -> StochasticDepth {
        unreachable!("only the graph is asked for")
    }

    fn forward(&self, _: &Weights, _: Tensor<4>, _: Option<Tensor<2, Bool>>, _: &mut dyn DropPath) -> Features {
        unreachable!("only the graph is asked for")
    }

    fn macs(&self, _: usize) -> u64 {
        unreachable!("only the graph is asked for")
    }

    fn activations(&self, _: usize) -> u64 {
        unreachable!("only the graph is asked for")
    }

    /// What the test asks for, flat, as `cls`; the pixels as `patches`.
    fn graph(&self, graph: &mut Graph, pixels: Value) -> Outputs {
        let built = (self.build)(graph, pixels);
        let size: usize = graph
            .shape(built)
            .iter()
            .map(|extent| match extent {
                Fixed(n) | Batch(n) => *n,
                open => panic!("{open:?} of images"),
            })
            .product();
        Outputs {
            cls: graph.reshape(built, &[Batch(1), Fixed(size)]),
            patches: graph.reshape(pixels, &[Batch(1), Fixed(2), Fixed(16)]),
            logits: None,
        }
    }
}

/// The weight called `name` with these sizes, as the tests fill it.
fn weight(name: &str, shape: &[usize]) -> Vec<f64> {
    let seed = name.bytes().map(u64::from).sum();
    let n = shape.iter().product();
    numbers(seed, n).into_iter().map(f64::from).collect()
}

/// Runs what `build` makes of three images and compares with `expected` of one image, `[channel][row][column]`.
fn check(
    tensors: &[(&str, &[usize])],
    build: fn(&mut Graph, Value) -> Value,
    expected: impl Fn(&dyn Fn(usize, usize, usize) -> f64) -> Vec<f64>,
) {
    let spec =
        |(name, shape): &(&str, &[usize])| TensorSpec::new(*name, shape.iter().map(|n| Dim::fixed(*n)).collect());
    let network = Custom {
        specs: tensors.iter().map(spec).collect(),
        build,
    };
    let folder = tempfile::tempdir().unwrap();
    let about = About {
        id: "custom",
        parent: "",
        preparation: &preparation(&VitNetwork::new(small())),
    };
    onnx::write(&network, &about, folder.path(), onnx::EMBEDDED, |name| {
        let (_, shape) = tensors.iter().find(|(n, _)| *n == name).unwrap();
        Ok::<_, OnnxError>(weight(name, shape).into_iter().map(|v| v as f32).collect())
    })
    .unwrap();
    let pixels = numbers(9, 3 * 32);
    let model = Model::open(folder.path()).compile();
    let given = model.run([3, 2, 4, 4], &pixels);
    let pixel = |image: usize, c: usize, y: usize, x: usize| f64::from(pixels[((image * 2 + c) * 4 + y) * 4 + x]);
    let wanted = (0..3).flat_map(|image| expected(&|c, y, x| pixel(image, c, y, x)));
    let wanted: Vec<f64> = wanted.collect();
    assert_eq!(given["cls"].shape(), [3, wanted.len() / 3]);
    for (a, b) in floats(&given["cls"]).iter().zip(&wanted) {
        assert!((f64::from(*a) - b).abs() < 2e-6, "{a} for {b}");
    }
}

type Pixel<'a> = &'a dyn Fn(usize, usize, usize) -> f64;

fn each(size: [usize; 3], f: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
    let [channels, rows, columns] = size;
    let at = |i: usize| f(i / (rows * columns), i / columns % rows, i % columns);
    (0..channels * rows * columns).map(at).collect()
}

#[test]
fn a_convolution_has_stride_border_and_bias() {
    let kernel = weight("c.weight", &[3, 2, 3, 3]);
    let bias = weight("c.bias", &[3]);
    check(
        &[("c.weight", &[3, 2, 3, 3]), ("c.bias", &[3])],
        |graph, x| graph.convolution(x, "c", Sliding { stride: 2, padding: 1 }),
        |pixel: Pixel| {
            each([3, 2, 2], |o, y, x| {
                let mut sum = bias[o];
                for (c, ky, kx) in (0..18).map(|i| (i / 9, i / 3 % 3, i % 3)) {
                    let (py, px) = ((2 * y + ky).wrapping_sub(1), (2 * x + kx).wrapping_sub(1));
                    if py < 4 && px < 4 {
                        sum += kernel[((o * 2 + c) * 3 + ky) * 3 + kx] * pixel(c, py, px);
                    }
                }
                sum
            })
        },
    );
}

#[test]
fn a_convolution_of_single_pixels_skips_the_others() {
    let kernel = weight("c.weight", &[3, 2, 1, 1]);
    check(
        &[("c.weight", &[3, 2, 1, 1])],
        |graph, x| graph.convolution(x, "c", Sliding { stride: 3, padding: 0 }),
        |pixel: Pixel| {
            each([3, 2, 2], |o, y, x| {
                (0..2).map(|c| kernel[o * 2 + c] * pixel(c, 3 * y, 3 * x)).sum()
            })
        },
    );
}

#[test]
fn a_group_norm_has_moments_of_groups_and_scales_of_channels() {
    let (gamma, beta) = (weight("n.weight", &[2]), weight("n.bias", &[2]));
    for groups in [1, 2] {
        let build: fn(&mut Graph, Value) -> Value = match groups {
            1 => |graph, x| graph.group_norm(x, "n", 1, 1e-3),
            _ => |graph, x| graph.group_norm(x, "n", 2, 1e-3),
        };
        check(&[("n.weight", &[2]), ("n.bias", &[2])], build, |pixel: Pixel| {
            each([2, 4, 4], |c, y, x| {
                let members: Vec<f64> = each([2, 4, 4], |d, y, x| {
                    if groups == 1 || d == c {
                        pixel(d, y, x)
                    } else {
                        f64::NAN
                    }
                });
                let members: Vec<f64> = members.into_iter().filter(|v| !v.is_nan()).collect();
                let n = members.len() as f64;
                let mean = members.iter().sum::<f64>() / n;
                let variance = members.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
                (pixel(c, y, x) - mean) / (variance + f64::from(1e-3f32)).sqrt() * gamma[c] + beta[c]
            })
        });
    }
}

#[test]
fn pooling_takes_the_largest_and_the_mean() {
    check(
        &[],
        |graph, x| graph.max_pool(x, 3, Sliding { stride: 2, padding: 1 }),
        |pixel: Pixel| {
            each([2, 2, 2], |c, y, x| {
                let inside = (0..4).flat_map(|py| (0..4).map(move |px| (py, px)));
                let inside = inside.filter(|(py, px)| (2 * y).abs_diff(*py) < 2 && (2 * x).abs_diff(*px) < 2);
                inside.map(|(py, px)| pixel(c, py, px)).fold(f64::MIN, f64::max)
            })
        },
    );
    check(
        &[],
        |graph, x| {
            let x = graph.relu(x);
            graph.mean(x, &[2, 3])
        },
        |pixel: Pixel| {
            each([2, 1, 1], |c, _, _| {
                each([1, 4, 4], |_, y, x| pixel(c, y, x).max(0.0)).iter().sum::<f64>() / 16.0
            })
        },
    );
}

#[test]
fn pixels_are_picked_in_any_order_and_more_than_once() {
    check(
        &[],
        |graph, x| graph.gather(x, 3, &[3, 1, 0, 2, 2]),
        |pixel: Pixel| each([2, 4, 5], |c, y, x| pixel(c, y, [3, 1, 0, 2, 2][x])),
    );
}

/// Windows of 2 x 2 as Swin has them: two heads of one channel, a bias a head and pair, and a mask a window.
#[test]
fn windows_attend_with_a_bias_of_their_own() {
    let table = weight("table", &[2, 4, 4]);
    let qkv = weight("qkv.weight", &[6, 2]);
    check(
        &[("table", &[2, 4, 4]), ("qkv.weight", &[6, 2])],
        |graph, x| {
            // [b, c, 2, 2, 2, 2] to rows: window row, window column, row, column, channel.
            let x = graph.reshape(x, &[Batch(1), Fixed(2), Fixed(2), Fixed(2), Fixed(2), Fixed(2)]);
            let x = graph.transpose(x, &[0, 2, 4, 3, 5, 1]);
            let x = graph.reshape(x, &[Batch(16), Fixed(2)]);
            let x = graph.linear(x, "qkv");
            let table = graph.weight("table");
            let mask = graph.floats(
                (0..64).map(|i| if i == 21 { -100.0 } else { 0.0 }).collect(),
                &[4, 1, 4, 4],
            );
            let bias = graph.add(mask, table);
            let form = Heads {
                tokens: 4,
                heads: 2,
                head_dim: 1,
            };
            graph.attention(x, form, Some(bias))
        },
        |pixel: Pixel| {
            let mut all = Vec::new();
            for window in 0..4 {
                let token = |t: usize, c: usize| pixel(c, window / 2 * 2 + t / 2, window % 2 * 2 + t % 2);
                let project = |part: usize, head: usize, t: usize| {
                    let row = part * 2 + head;
                    qkv[row * 2] * token(t, 0) + qkv[row * 2 + 1] * token(t, 1)
                };
                for (query, head) in (0..8).map(|i| (i / 2, i % 2)) {
                    let score = |key: usize| {
                        let masked = window * 16 + query * 4 + key == 21;
                        project(0, head, query) * project(1, head, key)
                            + table[(head * 4 + query) * 4 + key]
                            + if masked { -100.0 } else { 0.0 }
                    };
                    let weights: Vec<f64> = (0..4).map(|key| score(key).exp()).collect();
                    let mixed: f64 = (0..4).map(|key| weights[key] * project(2, head, key)).sum();
                    all.push(mixed / weights.iter().sum::<f64>());
                }
            }
            all
        },
    );
}

#[test]
fn an_rms_norm_divides_by_the_root_of_the_mean_square() {
    let gamma = weight("n.weight", &[4]);
    check(
        &[("n.weight", &[4])],
        |graph, x| graph.rms_norm(x, "n", 1e-3),
        |pixel: Pixel| {
            each([2, 4, 4], |c, y, x| {
                let square = (0..4).map(|x| pixel(c, y, x).powi(2)).sum::<f64>() / 4.0;
                pixel(c, y, x) / (square + f64::from(1e-3f32)).sqrt() * gamma[x]
            })
        },
    );
}

/// Hendrycks & Gimpel 2016, and Shazeer 2020 with the gates before the values.
#[test]
fn a_gelu_by_tanh_and_a_swiglu_are_their_definitions() {
    check(
        &[],
        |graph, x| graph.gelu_tanh(x),
        |pixel: Pixel| {
            each([2, 4, 4], |c, y, x| {
                let x = pixel(c, y, x);
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            })
        },
    );
    check(
        &[],
        |graph, x| graph.swiglu(x),
        |pixel: Pixel| {
            each([2, 4, 2], |c, y, x| {
                let (gate, value) = (pixel(c, y, x), pixel(c, y, x + 2));
                gate / (1.0 + (-gate).exp()) * value
            })
        },
    );
}
