//! Cases for the kernels of the CPU against the plain operations, and against themselves in other circumstances.

mod layouts;
mod shapes;
mod specials;
mod ways;

use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;

use crate::operation::Kernel;
use crate::slices::contiguous;
use crate::{
    AdamStep, Attention, Entry, Form, Gather, Gelu, GroupNorm, Kernels, Mix, Operation, Rotary, SoftTargets, Tensors,
};

/// What computes an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// The CPU's own kernel.
    Ours,
    /// Operations that every backend has.
    Plain,
}

/// The result of an operation.
pub(crate) fn result(way: Way, operation: impl Into<Operation>, tensors: Vec<FlexTensor>) -> FlexTensor {
    match way {
        Way::Ours => Flex::run(operation.into(), Tensors(tensors)),
        Way::Plain => operation.into().plain::<Flex>(tensors),
    }
}

/// The gradients of an operation for all tensors that have one.
pub(crate) fn gradients(
    way: Way,
    operation: impl Into<Operation>,
    mut tensors: Vec<FlexTensor>,
    gradient: FlexTensor,
) -> Vec<FlexTensor> {
    let operation = operation.into();
    let wanted = vec![true; operation.tracked(tensors.len())];
    let count = wanted.len();
    tensors.truncate(operation.kept(tensors.len()));
    let found = match way {
        Way::Ours => Flex::gradients(operation, Tensors(tensors), gradient, wanted),
        Way::Plain => operation.plain_backward::<Flex>(tensors, gradient, &wanted),
    };
    let found: Vec<_> = found.into_iter().flatten().collect();
    assert_eq!(found.len(), count, "gradients that are wanted");
    found
}

type Run = Box<dyn Fn(Vec<FlexTensor>) -> Vec<FlexTensor> + Send + Sync>;

/// One operation, forward and backward where it has a gradient, on inputs of given shapes.
struct Case {
    name: String,
    inputs: Vec<FlexTensor>,
    /// On the CPU's own kernel.
    kernel: Run,
    /// In plain operations.
    plain: Run,
    /// Size of the terms that cancel in the results, where those can be smaller than what they are differences of.
    floor: f32,
    /// Whether an infinity never stands where the plain operations have NaN, nor the other way round.
    apart: bool,
    /// Whether the plain operations multiply by zero what the kernel does not look at.
    hides: bool,
}

impl Case {
    /// Fails unless kernel and plain operations agree to `tolerance` of the largest element of each result.
    fn agrees(&self, tolerance: f32) {
        let (ours, plain) = ((self.kernel)(self.inputs.clone()), (self.plain)(self.inputs.clone()));
        assert_eq!(ours.len(), plain.len(), "{}", self.name);
        for (i, (ours, plain)) in ours.into_iter().zip(plain).enumerate() {
            assert_eq!(
                ours.layout().shape(),
                plain.layout().shape(),
                "{}, result {i}",
                self.name
            );
            let (ours, plain) = (elements(ours), elements(plain));
            let largest = plain.iter().fold(self.floor, |most, x| most.max(x.abs()));
            for (e, (a, b)) in ours.iter().zip(&plain).enumerate() {
                let equal = (a - b).abs() <= tolerance * largest || a.is_nan() && b.is_nan();
                assert!(equal, "{}, result {i}, element {e}: {a:e} against {b:e}", self.name);
            }
        }
    }

    /// The bits of everything that the kernel gives, a NaN as any other.
    fn bits(&self) -> Vec<u32> {
        bits((self.kernel)(self.inputs.clone()))
    }
}

fn bits(results: Vec<FlexTensor>) -> Vec<u32> {
    let values = results.into_iter().flat_map(elements);
    values
        .map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() })
        .collect()
}

fn elements(tensor: FlexTensor) -> Vec<f32> {
    contiguous(tensor).as_slice::<f32>().unwrap().to_vec()
}

fn tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// Numbers that only depend on a seed (SplitMix64).
#[derive(Clone)]
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Even in `-range..range`.
    fn tensor(&mut self, shape: &[usize], range: f32) -> FlexTensor {
        let n = shape.iter().product();
        let one = |draw: &mut Self| ((draw.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * range;
        tensor((0..n).map(|_| one(self)).collect(), shape)
    }
}

impl Case {
    /// An operation on tensors and, behind them, the gradient of its result.
    fn of(operation: impl Into<Operation>, name: String, inputs: Vec<FlexTensor>) -> Self {
        let operation = operation.into();
        let run = |way| -> Run {
            let operation = operation.clone();
            Box::new(move |mut tensors| {
                let gradient = tensors.pop().unwrap();
                let mut all = vec![result(way, operation.clone(), tensors.clone())];
                all.extend(gradients(way, operation.clone(), tensors, gradient));
                all
            })
        };
        Self {
            name,
            inputs,
            kernel: run(Way::Ours),
            plain: run(Way::Plain),
            floor: 1.0,
            apart: true,
            hides: false,
        }
    }
}

/// All of a linear layer; its gradients as well, of everything.
fn linear(form: Form, [rows, inputs, outputs]: [usize; 3], seed: u64) -> Case {
    let mut draw = Draw(seed);
    let branches = if form.entry == Entry::SwiGlu { 2 } else { 1 };
    let mut tensors = vec![
        draw.tensor(&[rows, branches * inputs], 2.0),
        draw.tensor(&[outputs, inputs], 1.5 / (inputs.max(1) as f32).sqrt()),
    ];
    let norm_vectors = match form.entry {
        Entry::Plain | Entry::Gelu | Entry::GeluTanh | Entry::SwiGlu => 0,
        Entry::RmsNorm { .. } => 1,
        Entry::LayerNorm { .. } => 2,
    };
    tensors.extend(form.bias.then(|| draw.tensor(&[outputs], 1.0)));
    tensors.extend((0..norm_vectors).map(|_| draw.tensor(&[inputs], 1.5)));
    tensors.extend(form.layer_scale.then(|| draw.tensor(&[outputs], 1.0)));
    tensors.extend(form.residual.then(|| draw.tensor(&[rows, outputs], 1.0)));
    tensors.push(draw.tensor(&[rows, outputs], 1.0));
    let name = format!("linear {form:?} of {rows} x {inputs} x {outputs}, seed {seed}");
    Case {
        apart: !form.layer_scale,
        // Gradients of vectors are sums over all rows, which may come to almost nothing.
        floor: (rows as f32).sqrt().max(1.0),
        ..Case::of(form, name, tensors)
    }
}

/// Every [`Form`] there is.
fn forms() -> Vec<Form> {
    // Large enough that a row of two numbers that are almost the same does not decide about all digits.
    let epsilon = 0.01;
    let entries = [
        Entry::Plain,
        Entry::Gelu,
        Entry::GeluTanh,
        Entry::SwiGlu,
        Entry::LayerNorm { epsilon },
        Entry::RmsNorm { epsilon },
    ];
    let form = |entry, extras: u8| Form {
        entry,
        bias: extras & 1 != 0,
        layer_scale: extras & 2 != 0,
        residual: extras & 4 != 0,
    };
    entries
        .into_iter()
        .flat_map(|entry| (0..8).map(move |extras| form(entry, extras)))
        .collect()
}

/// Attention; `groups` of biases, or none.
fn attention(form: Attention, groups: usize, seed: u64) -> Case {
    let mut draw = Draw(seed);
    let rows = form.sequences.iter().map(|(count, tokens)| count * tokens).sum();
    let mut tensors = vec![draw.tensor(&[rows, (form.heads + 2 * form.kv_heads) * form.head_dim], 2.0)];
    if groups > 0 {
        let tokens = form.sequences[0].1;
        tensors.push(draw.tensor(&[groups, form.heads, tokens, tokens], 2.0));
    }
    tensors.push(draw.tensor(&[rows, form.heads * form.head_dim], 1.0));
    let name = format!("{form:?}, {groups} biases, seed {seed}");
    Case {
        hides: form.causal,
        ..Case::of(form, name, tensors)
    }
}

/// Cross-entropy against `sets` tensors of `own` rows of targets, where every third row of logits has none.
fn soft_cross_entropy([rows, columns, sets, own]: [usize; 4], temperature: f64, seed: u64) -> Case {
    let mut draw = Draw(seed);
    let asked = |draw: &mut Draw| (draw.below(3) > 0).then(|| draw.below(own) as u32);
    let form = SoftTargets {
        temperature,
        rows: (0..sets)
            .map(|_| (0..rows).map(|_| asked(&mut draw)).collect())
            .collect::<Arc<[_]>>(),
    };
    let mut tensors = vec![draw.tensor(&[rows, columns], 1.0)];
    // Rows that sum to about 1, as targets do.
    tensors.extend((0..sets).map(|_| draw.tensor(&[own, columns], 1.0)).map(|t| {
        let shape = t.layout().shape().clone();
        let values = elements(t)
            .into_iter()
            .map(|x| x.abs() * 2.0 / columns as f32)
            .collect();
        FlexTensor::from_data(TensorData::new(values, shape))
    }));
    tensors.push(draw.tensor(&[sets, rows], 1.0));
    let name = format!("cross-entropy of {rows} x {columns} against {sets} of {own} at {temperature}, seed {seed}");
    Case {
        floor: (0.1 / temperature) as f32,
        apart: false,
        ..Case::of(form, name, tensors)
    }
}

/// An operation of one input and one result.
fn unary(
    name: &str,
    input: FlexTensor,
    kernel: impl Fn(FlexTensor) -> FlexTensor + Send + Sync + 'static,
    plain: impl Fn(FlexTensor) -> FlexTensor + Send + Sync + 'static,
) -> Case {
    Case {
        name: format!("{name} of {:?}", input.layout().shape()),
        inputs: vec![input],
        kernel: Box::new(move |mut all| vec![kernel(all.remove(0))]),
        plain: Box::new(move |mut all| vec![plain(all.remove(0))]),
        floor: 0.0,
        apart: true,
        hides: false,
    }
}

fn tempered_softmax([rows, columns]: [usize; 2], temperature: f64, seed: u64) -> Case {
    unary(
        "softmax",
        Draw(seed).tensor(&[rows, columns], 1.0),
        move |x| Flex::tempered_softmax(x, temperature),
        move |x| crate::cross_entropy::plain_softmax::<Flex>(x, temperature),
    )
}

fn sinkhorn([rows, columns]: [usize; 2], (range, temperature): (f32, f64), rounds: usize, seed: u64) -> Case {
    unary(
        &format!("{rounds} rounds of Sinkhorn-Knopp over +-{range} at {temperature}"),
        Draw(seed).tensor(&[rows, columns], range),
        move |x| Flex::sinkhorn(x, temperature, rounds),
        move |x| crate::cross_entropy::plain_sinkhorn::<Flex>(x, temperature, rounds),
    )
}

fn gelu(shape: &[usize], seed: u64) -> Case {
    let mut draw = Draw(seed);
    let inputs = vec![draw.tensor(shape, 6.0), draw.tensor(shape, 1.0)];
    Case::of(Gelu, format!("GELU of {shape:?}, seed {seed}"), inputs)
}

/// Rotary positions, from a position on.
fn rotary(form: Attention, first: usize, seed: u64) -> Case {
    let Attention {
        sequences,
        heads,
        kv_heads,
        head_dim,
        ..
    } = form;
    let frequencies = (0..head_dim / 2).map(|i| 0.9f32.powi(i as i32)).collect();
    let form = Rotary {
        sequences,
        heads,
        kv_heads,
        head_dim,
        first,
        frequencies,
    };
    let rows = form.sequences.iter().map(|(count, tokens)| count * tokens).sum();
    let shape = [rows, (heads + 2 * kv_heads) * head_dim];
    let mut draw = Draw(seed);
    let inputs = vec![draw.tensor(&shape, 2.0), draw.tensor(&shape, 1.0)];
    let name = format!("{form:?}, seed {seed}");
    Case::of(form, name, inputs)
}

/// Mixes of slices of some elements a section.
fn mix(form: Mix, section: usize, seed: u64) -> Case {
    let mut draw = Draw(seed);
    let inputs = vec![
        draw.tensor(&[form.experts * form.sections * form.slices], 1.0),
        draw.tensor(&[form.slices * form.sections * section], 1.0),
        draw.tensor(&[form.experts * form.sections * section], 1.0),
    ];
    Case::of(form, format!("{form:?}, {section} elements, seed {seed}"), inputs)
}

/// Rows of a matrix, about one in five of them none.
fn gather([rows, height, width]: [usize; 3], seed: u64) -> Case {
    let mut draw = Draw(seed);
    let source = |draw: &mut Draw| (draw.below(5) > 0 && height > 0).then(|| draw.below(height) as u32);
    let sources: Vec<_> = (0..rows).map(|_| source(&mut draw)).collect();
    let inputs = vec![draw.tensor(&[height, width], 1.0), draw.tensor(&[rows, width], 1.0)];
    let name = format!("{rows} of {height} rows of {width}, seed {seed}");
    Case::of(Gather::new(sources.into(), [height, width]), name, inputs)
}

/// GroupNorm of `[channels, batch, height, width]` with all that may stand behind it.
fn group_norm(form: GroupNorm, shape: [usize; 4], residual: bool, seed: u64) -> Case {
    let mut draw = Draw(seed);
    let mut inputs = vec![draw.tensor(&shape, 2.0)];
    inputs.extend([1.5, 1.0].map(|range| draw.tensor(&[shape[0]], range)));
    inputs.extend(residual.then(|| draw.tensor(&shape, 1.0)));
    inputs.push(draw.tensor(&shape, 1.0));
    let name = format!("{form:?} of {shape:?}, residual {residual}, seed {seed}");
    Case {
        apart: false,
        ..Case::of(form, name, inputs)
    }
}

/// Each form of GroupNorm in some number of groups.
fn group_norms(groups: usize, shape: [usize; 4], seed: u64) -> impl Iterator<Item = Case> {
    [(false, false), (true, false), (true, true), (false, true)]
        .into_iter()
        .map(move |(relu, residual)| {
            let epsilon = 0.01;
            let form = GroupNorm { groups, epsilon, relu };
            group_norm(form, shape, residual, seed)
        })
}

/// AdamW of tensors of these sizes, the second of which is to keep its weight.
fn adamw(sizes: &[usize], seed: u64) -> Case {
    let mut draw = Draw(seed);
    let step = |i: usize| AdamStep {
        beta1: 0.9,
        beta2: 0.95 + 0.01 * i as f64,
        gradient_scale: 0.7,
        keep: 0.999,
        rate: if i == 1 { 0.0 } else { 0.01 },
        root_correction: 2.5,
        epsilon: 1e-8,
    };
    let steps: Vec<_> = (0..sizes.len()).map(step).collect();
    let plain_steps = steps.clone();
    let mut tensors = Vec::new();
    for kind in 0..4 {
        for &size in sizes {
            let drawn = draw.tensor(&[size], 1.0);
            // Second moments are mean squares.
            let square = |t| tensor(elements(t).into_iter().map(|x| x * x).collect(), &[size]);
            tensors.push(if kind == 2 { square(drawn) } else { drawn });
        }
    }
    Case {
        name: format!("AdamW of {sizes:?}, seed {seed}"),
        inputs: tensors,
        kernel: Box::new(move |all| Flex::adamw(steps.clone(), Tensors(all))),
        plain: Box::new(move |all| crate::update::plain_adamw::<Flex>(&plain_steps, all)),
        floor: 0.0,
        apart: true,
        hides: false,
    }
}

fn square_sums(sizes: &[usize], seed: u64) -> Case {
    let mut draw = Draw(seed);
    Case {
        name: format!("squares of {sizes:?}, seed {seed}"),
        inputs: sizes.iter().map(|&size| draw.tensor(&[size], 1.0)).collect(),
        kernel: Box::new(|all| vec![Flex::square_sums(Tensors(all))]),
        plain: Box::new(|all| vec![crate::update::plain_square_sums::<Flex>(all)]),
        floor: 0.0,
        apart: true,
        hides: false,
    }
}

fn average(sizes: &[usize], seed: u64) -> Case {
    let mut draw = Draw(seed);
    let twice = sizes.iter().chain(sizes);
    Case {
        name: format!("averages of {sizes:?}, seed {seed}"),
        inputs: twice.map(|&size| draw.tensor(&[size], 1.0)).collect(),
        kernel: Box::new(|all| Flex::average(0.99, Tensors(all))),
        plain: Box::new(|all| crate::update::plain_average::<Flex>(0.99, all)),
        floor: 0.0,
        apart: true,
        hides: false,
    }
}

/// Sequences of different lengths in which two heads share each key and value.
fn grouped(causal: bool) -> Attention {
    Attention {
        sequences: vec![(2, 5), (1, 101), (3, 1)],
        heads: 4,
        kv_heads: 2,
        head_dim: 7,
        causal,
    }
}

/// Windows with a bias for each of two places.
fn windows() -> Attention {
    Attention {
        sequences: vec![(6, 9)],
        heads: 3,
        kv_heads: 3,
        head_dim: 16,
        causal: false,
    }
}

/// Each operation in each form, of sizes with a remainder everywhere.
fn all() -> Vec<Case> {
    let mut cases: Vec<_> = forms().into_iter().map(|form| linear(form, [7, 19, 5], 1)).collect();
    cases.extend([false, true].map(|causal| attention(grouped(causal), 0, 2)));
    cases.extend([1, 2].map(|groups| attention(windows(), groups, 3)));
    cases.push(rotary(
        Attention {
            head_dim: 34,
            ..grouped(true)
        },
        3,
        25,
    ));
    cases.extend([1, 2].map(|sets| soft_cross_entropy([9, 37, sets, 4], 0.1, 4)));
    cases.push(tempered_softmax([5, 37], 0.07, 5));
    cases.extend([1, 3].map(|rounds| sinkhorn([9, 21], (1.0, 0.05), rounds, 6)));
    cases.push(gelu(&[5, 37], 7));
    cases.push(gather([23, 9, 19], 21));
    cases.push(mix(
        Mix {
            experts: 3,
            slices: 5,
            sections: 2,
        },
        37,
        28,
    ));
    cases.extend(group_norms(2, [6, 3, 5, 7], 23));
    cases.push(adamw(&[37, 5, 1], 8));
    cases.push(square_sums(&[37, 5, 1], 9));
    cases.push(average(&[37, 5, 1], 10));
    cases
}

/// Each operation of sizes that are split over threads.
fn large() -> Vec<Case> {
    let everything = |form: &Form| form.bias && form.layer_scale && form.residual;
    let mut cases: Vec<_> = forms()
        .into_iter()
        .filter(everything)
        .map(|form| linear(form, [1030, 67, 131], 11))
        .collect();
    let long = Attention {
        sequences: vec![(3, 197), (8, 37)],
        ..grouped(true)
    };
    let many = Attention {
        sequences: vec![(64, 9)],
        ..windows()
    };
    cases.push(rotary(
        Attention {
            head_dim: 34,
            ..long.clone()
        },
        3,
        26,
    ));
    // The gradient of so few is found by heads of keys.
    let few = Attention {
        sequences: vec![(2, 197), (1, 65)],
        ..grouped(true)
    };
    cases.extend([attention(long, 0, 12), attention(many, 2, 13), attention(few, 0, 27)]);
    cases.push(soft_cross_entropy([70, 1501, 2, 40], 0.1, 14));
    cases.push(tempered_softmax([70, 1501], 0.07, 15));
    cases.push(sinkhorn([70, 1501], (1.0, 0.05), 3, 16));
    cases.push(gelu(&[70_001], 17));
    cases.push(gather([2003, 1009, 67], 22));
    cases.push(mix(
        Mix {
            experts: 3,
            slices: 5,
            sections: 2,
        },
        5003,
        29,
    ));
    cases.extend(group_norms(4, [12, 5, 37, 41], 24));
    let sizes = [70_001, 5, 16_385];
    cases.extend([adamw(&sizes, 18), square_sums(&sizes, 19), average(&sizes, 20)]);
    cases
}
