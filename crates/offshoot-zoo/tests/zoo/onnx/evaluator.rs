//! Runs ONNX models in the tests, in f64 loops written from the operators' specification (opset 20). Slow and strict: an operator,
//! attribute or shape that it does not expect is a panic.

use std::collections::BTreeMap;

use super::file::{Attribute, Model, Node, Tensor};

impl Tensor {
    fn new(shape: Vec<usize>, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>());
        Self { shape, values }
    }

    /// Every element by `f` of its position.
    fn fill(shape: Vec<usize>, f: impl FnMut(&[usize]) -> f64) -> Self {
        let values = positions(&shape).iter().map(|p| &p[..]).map(f).collect();
        Self { shape, values }
    }

    fn offset(&self, at: &[usize]) -> usize {
        assert_eq!(at.len(), self.shape.len());
        at.iter().zip(&self.shape).fold(0, |offset, (&i, &n)| {
            assert!(i < n);
            offset * n + i
        })
    }

    fn at(&self, at: &[usize]) -> f64 {
        self.values[self.offset(at)]
    }

    /// The element that stands at `at` after broadcasting to a shape of that rank.
    fn broadcast_at(&self, at: &[usize]) -> f64 {
        let own = &at[at.len() - self.shape.len()..];
        let own: Vec<usize> = own
            .iter()
            .zip(&self.shape)
            .map(|(&i, &n)| if n == 1 { 0 } else { i })
            .collect();
        self.at(&own)
    }

    fn integers(&self) -> Vec<i64> {
        self.values.iter().map(|v| *v as i64).collect()
    }

    /// Rows of the last dimension, each through `f`.
    fn rows(&self, f: impl Fn(&[f64]) -> Vec<f64>) -> Self {
        let values = self.values.chunks(*self.shape.last().unwrap()).flat_map(f).collect();
        Self::new(self.shape.clone(), values)
    }
}

fn positions(shape: &[usize]) -> Vec<Vec<usize>> {
    let n: usize = shape.iter().product();
    let position = |mut index: usize| {
        let mut at = vec![0; shape.len()];
        for (i, size) in shape.iter().enumerate().rev() {
            at[i] = index % size;
            index /= size;
        }
        at
    };
    (0..n).map(position).collect()
}

fn broadcast_shape(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let size = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    let one = |i| match (size(a, i), size(b, i)) {
        (x, y) if x == y || y == 1 => x,
        (1, y) => y,
        _ => panic!("{a:?} with {b:?}"),
    };
    (0..rank).map(one).collect()
}

fn binary(a: &Tensor, b: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
    Tensor::fill(broadcast_shape(&a.shape, &b.shape), |at| {
        f(a.broadcast_at(at), b.broadcast_at(at))
    })
}

/// Runs `model` on one input; outputs by name.
pub(crate) fn run(model: &Model, pixels: Tensor) -> BTreeMap<String, Tensor> {
    let mut known = model.initializers.clone();
    known.insert(model.inputs[0].0.clone(), pixels);
    for node in &model.nodes {
        let inputs: Vec<Tensor> = node.inputs.iter().map(|name| known[name].clone()).collect();
        let outputs = operator(node, &inputs.iter().collect::<Vec<_>>());
        assert_eq!(outputs.len(), node.outputs.len(), "{}", node.name);
        for (name, value) in node.outputs.iter().zip(outputs) {
            assert!(known.insert(name.clone(), value).is_none(), "`{name}` is made twice");
        }
    }
    let output = |(name, _): &(String, _)| (name.clone(), known[name].clone());
    model.outputs.iter().map(output).collect()
}

fn number(node: &Node, key: &str) -> f64 {
    match node.attributes[key] {
        Attribute::Number(value) => value,
        Attribute::Numbers(_) => panic!("{key} of {}", node.name),
    }
}

fn numbers(node: &Node, key: &str) -> Vec<usize> {
    match &node.attributes[key] {
        Attribute::Numbers(values) => values.iter().map(|v| *v as usize).collect(),
        Attribute::Number(_) => panic!("{key} of {}", node.name),
    }
}

fn operator(node: &Node, inputs: &[&Tensor]) -> Vec<Tensor> {
    let allowed: &[&str] = match &node.op[..] {
        "Gemm" => &["transB"],
        "LayerNormalization" => &["axis", "epsilon"],
        "InstanceNormalization" | "BatchNormalization" => &["epsilon"],
        "Softmax" | "Concat" | "Gather" => &["axis"],
        "Split" => &["axis", "num_outputs"],
        "Transpose" => &["perm"],
        "Shape" => &["start", "end"],
        "ReduceMean" => &["keepdims"],
        "Conv" | "MaxPool" => &["kernel_shape", "strides", "pads"],
        _ => &[],
    };
    assert!(
        node.attributes.keys().map(String::as_str).eq({
            let mut sorted = allowed.to_vec();
            sorted.sort_unstable();
            sorted
        }),
        "attributes of {}",
        node.name
    );
    let x = inputs[0];
    let one = match (&node.op[..], &inputs[1..]) {
        ("Identity", []) => x.clone(),
        ("Add", [y]) => binary(x, y, |a, b| a + b),
        ("Mul", [y]) => binary(x, y, |a, b| a * b),
        ("Relu", []) => Tensor::new(x.shape.clone(), x.values.iter().map(|v| v.max(0.0)).collect()),
        ("Gelu", []) => Tensor::new(x.shape.clone(), x.values.iter().map(|&v| gelu(v)).collect()),
        ("Softmax", []) => {
            assert_eq!(number(node, "axis"), -1.0);
            x.rows(|row| {
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.iter().map(|v| (v - largest).exp()).sum();
                row.iter().map(|v| (v - largest).exp() / sum).collect()
            })
        }
        ("LayerNormalization", [gamma, beta]) => {
            assert_eq!(number(node, "axis"), -1.0);
            let normal = x.rows(|row| normalised(row, number(node, "epsilon")));
            binary(&binary(&normal, gamma, |a, b| a * b), beta, |a, b| a + b)
        }
        ("InstanceNormalization", [gamma, beta]) => {
            let plane: usize = x.shape[2..].iter().product();
            let planes = x.values.chunks(plane).enumerate();
            let values = planes.flat_map(|(i, plane)| {
                let c = i % x.shape[1];
                let normal = normalised(plane, number(node, "epsilon"));
                normal.into_iter().map(move |v| (v, c)).collect::<Vec<_>>()
            });
            let values = values.map(|(v, c)| v * gamma.at(&[c]) + beta.at(&[c])).collect();
            Tensor::new(x.shape.clone(), values)
        }
        ("BatchNormalization", [gamma, beta, mean, variance]) => Tensor::fill(x.shape.clone(), |at| {
            let c = &at[1..2];
            let scale = gamma.at(c) / (variance.at(c) + number(node, "epsilon")).sqrt();
            (x.at(at) - mean.at(c)) * scale + beta.at(c)
        }),
        ("Gemm", [w, rest @ ..]) => {
            assert_eq!((number(node, "transB"), x.shape.len(), w.shape.len()), (1.0, 2, 2));
            assert_eq!(x.shape[1], w.shape[1]);
            let product = Tensor::fill(vec![x.shape[0], w.shape[0]], |at| {
                (0..x.shape[1]).map(|k| x.at(&[at[0], k]) * w.at(&[at[1], k])).sum()
            });
            match rest {
                [] => product,
                [bias] => binary(&product, bias, |a, b| a + b),
                _ => panic!("inputs of {}", node.name),
            }
        }
        ("MatMul", [y]) => matmul(x, y),
        ("Conv", [w, rest @ ..]) => convolution(node, x, w, rest.first().copied()),
        ("MaxPool", []) => max_pool(node, x),
        ("ReduceMean", [axes]) => {
            assert_eq!(number(node, "keepdims"), 0.0);
            mean(x, &axes.integers())
        }
        ("Shape", []) => {
            let (start, end) = (number(node, "start") as usize, number(node, "end") as usize);
            let sizes: Vec<f64> = x.shape[start..end].iter().map(|&n| n as f64).collect();
            Tensor::new(vec![sizes.len()], sizes)
        }
        ("Reshape", [sizes]) => {
            let mut sizes = sizes.integers();
            let known: i64 = sizes.iter().filter(|n| **n != -1).product();
            assert!(sizes.iter().filter(|n| **n == -1).count() <= 1 && !sizes.contains(&0));
            for n in &mut sizes {
                if *n == -1 {
                    assert_eq!(x.values.len() as i64 % known, 0, "{}", node.name);
                    *n = x.values.len() as i64 / known;
                }
            }
            Tensor::new(sizes.into_iter().map(|n| n as usize).collect(), x.values.clone())
        }
        ("Expand", [sizes]) => {
            let sizes: Vec<usize> = sizes.integers().into_iter().map(|n| n as usize).collect();
            Tensor::fill(broadcast_shape(&x.shape, &sizes), |at| x.broadcast_at(at))
        }
        ("Transpose", []) => {
            let perm = numbers(node, "perm");
            Tensor::fill(perm.iter().map(|&i| x.shape[i]).collect(), |at| {
                let mut from = vec![0; at.len()];
                for (&i, &position) in perm.iter().zip(at) {
                    from[i] = position;
                }
                x.at(&from)
            })
        }
        ("Gather", [indices]) => {
            let (axis, indices) = (number(node, "axis") as usize, indices.integers());
            along(x, axis, indices.len(), |i| Some(indices[i] as usize))
        }
        ("Slice", [start, end, axis]) => {
            let [start, end, axis] = [start, end, axis].map(|t| t.integers()[0] as usize);
            along(x, axis, end - start, |i| Some(start + i))
        }
        ("Pad", [pads]) => {
            let pads = pads.integers();
            let rank = x.shape.len();
            assert_eq!(pads.len(), 2 * rank);
            (0..rank).fold(x.clone(), |x, axis| {
                let (before, after) = (pads[axis] as usize, pads[rank + axis] as usize);
                let size = x.shape[axis];
                along(&x, axis, before + size + after, |i| {
                    i.checked_sub(before).filter(|i| *i < size)
                })
            })
        }
        ("Concat", _) => {
            let axis = number(node, "axis") as usize;
            inputs[1..].iter().fold(x.clone(), |a, b| {
                let mut shape = a.shape.clone();
                shape[axis] += b.shape[axis];
                Tensor::fill(shape, |at| match at[axis].checked_sub(a.shape[axis]) {
                    None => a.at(at),
                    Some(i) => {
                        let mut at = at.to_vec();
                        at[axis] = i;
                        b.at(&at)
                    }
                })
            })
        }
        ("Split", []) => {
            let (axis, parts) = (number(node, "axis") as usize, number(node, "num_outputs") as usize);
            let size = x.shape[axis] / parts;
            assert_eq!(size * parts, x.shape[axis]);
            return (0..parts)
                .map(|p| along(x, axis, size, |i| Some(p * size + i)))
                .collect();
        }
        (op, more) => panic!("{op} of {} inputs", 1 + more.len()),
    };
    vec![one]
}

/// `size` positions along `axis`, each from one of `x` or zero.
fn along(x: &Tensor, axis: usize, size: usize, from: impl Fn(usize) -> Option<usize>) -> Tensor {
    let mut shape = x.shape.clone();
    shape[axis] = size;
    Tensor::fill(shape, |at| {
        from(at[axis]).map_or(0.0, |i| {
            let mut at = at.to_vec();
            at[axis] = i;
            x.at(&at)
        })
    })
}

fn normalised(row: &[f64], epsilon: f64) -> Vec<f64> {
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    row.iter().map(|v| (v - mean) / (variance + epsilon).sqrt()).collect()
}

/// `x * Phi(x)`, with `Phi` as an integral: Simpson's rule over the density, 2000 pieces.
fn gelu(x: f64) -> f64 {
    let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let end = x.clamp(-9.0, 9.0);
    let pieces = 2000;
    let step = end / f64::from(pieces);
    let inside: f64 = (1..pieces)
        .map(|i| f64::from(2 + 2 * (i % 2)) * density(step * f64::from(i)))
        .sum();
    x * (0.5 + step / 3.0 * (density(0.0) + inside + density(end)))
}

fn matmul(a: &Tensor, b: &Tensor) -> Tensor {
    let outer = a.shape.len() - 2;
    assert_eq!(a.shape[..outer], b.shape[..outer]);
    assert_eq!(a.shape[outer + 1], b.shape[outer]);
    let mut shape = a.shape.clone();
    shape[outer + 1] = b.shape[outer + 1];
    Tensor::fill(shape, |at| {
        let (mut left, mut right) = (at.to_vec(), at.to_vec());
        let term = |k| {
            left[outer + 1] = k;
            right[outer] = k;
            a.at(&left) * b.at(&right)
        };
        (0..b.shape[outer]).map(term).sum()
    })
}

/// The pixels under a kernel at an output position: where they are in the kernel and in the image.
fn window(node: &Node, x: &Tensor, at: &[usize]) -> Vec<([usize; 2], [usize; 2])> {
    let (kernel, strides, pads) = (
        numbers(node, "kernel_shape"),
        numbers(node, "strides"),
        numbers(node, "pads"),
    );
    let taps = (0..kernel[0]).flat_map(|ky| (0..kernel[1]).map(move |kx| [ky, kx]));
    taps.filter_map(|[ky, kx]| {
        let y = (at[2] * strides[0] + ky).checked_sub(pads[0])?;
        let x_at = (at[3] * strides[1] + kx).checked_sub(pads[1])?;
        (y < x.shape[2] && x_at < x.shape[3]).then_some(([ky, kx], [y, x_at]))
    })
    .collect()
}

fn slid(node: &Node, x: &Tensor, channels: usize) -> Vec<usize> {
    let (kernel, strides, pads) = (
        numbers(node, "kernel_shape"),
        numbers(node, "strides"),
        numbers(node, "pads"),
    );
    let size = |i: usize| (x.shape[2 + i] + pads[i] + pads[2 + i] - kernel[i]) / strides[i] + 1;
    vec![x.shape[0], channels, size(0), size(1)]
}

fn convolution(node: &Node, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
    assert_eq!(x.shape[1], w.shape[1]);
    assert_eq!(w.shape[2..], numbers(node, "kernel_shape"));
    Tensor::fill(slid(node, x, w.shape[0]), |at| {
        let taps = window(node, x, at);
        let term = |c: usize| -> f64 {
            taps.iter()
                .map(|([ky, kx], [y, x_at])| w.at(&[at[1], c, *ky, *kx]) * x.at(&[at[0], c, *y, *x_at]))
                .sum()
        };
        (0..x.shape[1]).map(term).sum::<f64>() + bias.map_or(0.0, |b| b.at(&[at[1]]))
    })
}

fn max_pool(node: &Node, x: &Tensor) -> Tensor {
    Tensor::fill(slid(node, x, x.shape[1]), |at| {
        let pixels = window(node, x, at);
        let pixels = pixels.iter().map(|(_, [y, x_at])| x.at(&[at[0], at[1], *y, *x_at]));
        pixels.fold(f64::NEG_INFINITY, f64::max)
    })
}

fn mean(x: &Tensor, axes: &[i64]) -> Tensor {
    let kept: Vec<usize> = (0..x.shape.len()).filter(|i| !axes.contains(&(*i as i64))).collect();
    let shape: Vec<usize> = kept.iter().map(|&i| x.shape[i]).collect();
    let mut sums = Tensor::fill(shape, |_| 0.0);
    let count = x.values.len() / sums.values.len();
    for (at, value) in positions(&x.shape).iter().zip(&x.values) {
        let target: Vec<usize> = kept.iter().map(|&i| at[i]).collect();
        let offset = sums.offset(&target);
        sums.values[offset] += value / count as f64;
    }
    sums
}
