//! A builder of ONNX graphs: values with known shapes, and the layers that networks are made of as nodes over them.
//!
//! The size of the batch is open, and of text the length of its sequences; everything else has a size, and every function checks its
//! operands' shapes. A wrong one is a mistake in a network's `graph`, so it panics with the function's rule. Nothing here holds a
//! weight: a weight is a name and a shape until the file is written. What only images or only text
//! need is in `image.rs` and `text.rs`.

use std::collections::{BTreeMap, BTreeSet};

use super::extent::Extent::{self, Batch, Fixed, Length};
use super::extent::{broadcast, product};
use super::proto::{self, Attribute};
use crate::spec::TensorSpec;

/// What a node gives or a tensor holds, in one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(usize);

/// What a network of images gives.
#[derive(Clone, Copy, Debug)]
pub struct Outputs {
    /// One vector an image, `[batch, dim]`.
    pub cls: Value,
    /// One vector a patch, `[batch, patches, dim]`, as [`Features`](crate::Features) has them.
    pub patches: Value,
    /// Scores of classes, `[batch, classes]`, of a network with a classifier.
    pub logits: Option<Value>,
}

/// Which numbers of the rows of a fused query, key and value belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Consecutive rows that attend to each other.
    pub tokens: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of one head; scores are scaled by `head_dim^-1/2`.
    pub head_dim: usize,
}

/// Names that belong to the model's inputs and outputs.
const PIXELS: &str = "pixel_values";
const TOKENS: &str = "input_ids";
const CLS: &str = "cls";
const PATCHES: &str = "patches";
const LOGITS: &str = "logits";

/// What is known of a value.
#[derive(Debug)]
struct Known {
    name: String,
    shape: Vec<Extent>,
    element: Element,
}

/// What a value is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// 32-bit floats.
    Float,
    /// 64-bit integers.
    Integer,
    /// True or false.
    Truth,
}

#[derive(Debug)]
struct Node {
    op: &'static str,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    attributes: Vec<Attribute>,
    name: String,
}

/// Numbers that are no weights, with their shape: sizes, axes, indices, masks.
#[derive(Clone, Debug, PartialEq)]
enum Constant {
    Integers(Vec<i64>, Vec<usize>),
    Floats(Vec<f32>, Vec<usize>),
}

/// A graph in the making.
#[derive(Debug)]
pub struct Graph {
    tensors: BTreeMap<String, Vec<usize>>,
    values: Vec<Known>,
    taken: BTreeSet<String>,
    nodes: Vec<Node>,
    weights: Vec<Value>,
    constants: Vec<(Constant, Value)>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// The size of the batch and the length of its sequences, as values of their own.
    open: [Option<Value>; 2],
    /// Shapes with more than one open dimension, as the values that reshape to them.
    sizes: Vec<(Vec<Extent>, Value)>,
    place: String,
}

impl Graph {
    /// An empty graph of a network with these tensors.
    pub fn new(specs: &[TensorSpec]) -> Self {
        let tensors: BTreeMap<_, _> = specs.iter().map(|s| (s.name.clone(), s.shape())).collect();
        let reserved = [PIXELS, TOKENS, CLS, PATCHES, LOGITS].map(String::from);
        Self {
            taken: tensors.keys().cloned().chain(reserved).collect(),
            tensors,
            values: Vec::new(),
            nodes: Vec::new(),
            weights: Vec::new(),
            constants: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            open: [None; 2],
            sizes: Vec::new(),
            place: String::new(),
        }
    }

    /// The images, `[batch, channels, side, side]`. Once a graph.
    pub fn pixels(&mut self, channels: usize, side: usize) -> Value {
        let shape = vec![Batch(1), Fixed(channels), Fixed(side), Fixed(side)];
        self.input(PIXELS, shape, Element::Float)
    }

    /// The tokens of sequences, `[batch, sequence]`, as 64-bit integers. Once a graph.
    pub fn tokens(&mut self) -> Value {
        self.input(TOKENS, vec![Batch(1), Length(1)], Element::Integer)
    }

    fn input(&mut self, name: &str, shape: Vec<Extent>, element: Element) -> Value {
        assert!(self.inputs.is_empty(), "a graph has one input");
        let value = self.known(name.into(), shape, element);
        self.inputs.push(value);
        value
    }

    /// Ends the graph with these outputs, which get their names by it.
    pub fn finish(&mut self, outputs: Outputs) {
        let Outputs { cls, patches, logits } = outputs;
        assert!(
            matches!(self.shape(cls), [Batch(1), Fixed(_)]),
            "cls is [batch, dim], not {:?}",
            self.shape(cls)
        );
        assert!(
            matches!(self.shape(patches), [Batch(1), Fixed(_), Fixed(_)]),
            "patches is [batch, patches, dim], not {:?}",
            self.shape(patches)
        );
        let named = [(Some(cls), CLS), (Some(patches), PATCHES), (logits, LOGITS)];
        self.end(named.into_iter().filter_map(|(value, name)| Some((value?, name))));
    }

    /// Ends the graph of a network of text with a score of every token of the vocabulary for the token after each, `[batch, sequence,
    /// vocabulary]`.
    pub fn finish_text(&mut self, logits: Value) {
        assert!(
            matches!(self.shape(logits), [Batch(1), Length(1), Fixed(_)]),
            "logits are [batch, sequence, vocabulary], not {:?}",
            self.shape(logits)
        );
        self.end([(logits, LOGITS)]);
    }

    fn end(&mut self, outputs: impl IntoIterator<Item = (Value, &'static str)>) {
        self.place.clear();
        for (value, name) in outputs {
            // A node of its own, so that one value can be two outputs; runtimes drop it.
            let shape = self.shape(value).to_vec();
            let output = self.known(name.into(), shape, self.element(value));
            let node = self.name("Identity");
            self.nodes.push(Node {
                op: "Identity",
                inputs: vec![value],
                outputs: vec![output],
                attributes: Vec::new(),
                name: node,
            });
            self.outputs.push(output);
        }
    }

    /// What the nodes that follow are part of, such as `blocks.3`; it stands in front of their names.
    pub fn at(&mut self, place: impl Into<String>) {
        self.place = place.into();
    }

    /// The shape of a value.
    pub fn shape(&self, value: Value) -> &[Extent] {
        &self.values[value.0].shape
    }

    pub(super) fn element(&self, value: Value) -> Element {
        self.values[value.0].element
    }

    /// The weight called `name`, as the network's specs have it.
    pub fn weight(&mut self, name: &str) -> Value {
        let shape = self.tensors.get(name);
        let shape = shape.unwrap_or_else(|| panic!("the network has no tensor `{name}`"));
        if let Some(&value) = self.weights.iter().find(|v| self.values[v.0].name == name) {
            return value;
        }
        let shape = shape.iter().map(|&n| Fixed(n)).collect();
        let value = self.known(name.into(), shape, Element::Float);
        self.weights.push(value);
        value
    }

    /// Constant numbers of a shape, row-major.
    pub fn floats(&mut self, values: Vec<f32>, shape: &[usize]) -> Value {
        assert_eq!(
            values.len(),
            shape.iter().product::<usize>(),
            "elements of a constant of shape {shape:?}"
        );
        self.constant(Constant::Floats(values, shape.to_vec()))
    }

    /// `a + b`, broadcast from the last dimension.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        let shape = broadcast(self.shape(a), self.shape(b));
        self.node("Add", &[a, b], vec![], shape)
    }

    /// `a * b`, broadcast from the last dimension.
    pub fn multiply(&mut self, a: Value, b: Value) -> Value {
        let shape = broadcast(self.shape(a), self.shape(b));
        self.node("Mul", &[a, b], vec![], shape)
    }

    /// Every element times `factor`.
    pub fn scale(&mut self, x: Value, factor: f32) -> Value {
        let factor = self.floats(vec![factor], &[]);
        self.multiply(x, factor)
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, x: Value) -> Value {
        self.same("Relu", x, vec![])
    }

    /// `x * Phi(x)` by the error function, not by tanh.
    pub fn gelu(&mut self, x: Value) -> Value {
        self.same("Gelu", x, vec![])
    }

    /// Softmax over the last dimension.
    pub fn softmax(&mut self, x: Value) -> Value {
        self.same("Softmax", x, vec![Attribute::int("axis", -1)])
    }

    /// The linear layer called `layer`: `x W^T + b` over the last dimension, with `W`, (out, in), and `b` the network's
    /// `layer.weight` and, if it has one, `layer.bias`.
    pub fn linear(&mut self, x: Value, layer: &str) -> Value {
        let weight = self.weight(&format!("{layer}.weight"));
        let [Fixed(outputs), Fixed(inputs)] = *self.shape(weight) else {
            panic!("`{layer}.weight` is no matrix")
        };
        let mut shape = self.shape(x).to_vec();
        let last = shape.pop();
        assert_eq!(last, Some(Fixed(inputs)), "inputs of `{layer}`");
        let rows = product(&shape);
        let flat = self.reshape(x, &[rows, Fixed(inputs)]);
        let mut operands = vec![flat, weight];
        operands.extend(self.weight_if_any(&format!("{layer}.bias")));
        let transposed = vec![Attribute::int("transB", 1)];
        let product = self.named_node(layer, "Gemm", &operands, transposed, vec![rows, Fixed(outputs)]);
        shape.push(Fixed(outputs));
        self.reshape(product, &shape)
    }

    /// The LayerNorm called `layer`, over the last dimension.
    pub fn layer_norm(&mut self, x: Value, layer: &str, epsilon: f64) -> Value {
        let operands = [
            x,
            self.weight(&format!("{layer}.weight")),
            self.weight(&format!("{layer}.bias")),
        ];
        let shape = self.shape(x).to_vec();
        assert_eq!(
            self.shape(operands[1]),
            &shape[shape.len() - 1..],
            "channels of `{layer}`"
        );
        let attributes = vec![Attribute::int("axis", -1), Attribute::float("epsilon", epsilon as f32)];
        self.named_node(layer, "LayerNormalization", &operands, attributes, shape)
    }

    /// Attention on the rows of a fused query, key and value, `[rows, 3 * heads * head_dim]`, each `tokens` of which are a
    /// sequence; to `[rows, heads * head_dim]`. `bias` is added to the scores: `[heads, tokens, tokens]`, or with the windows of
    /// an image in front.
    pub fn attention(&mut self, qkv: Value, form: Heads, bias: Option<Value>) -> Value {
        let Heads {
            tokens,
            heads,
            head_dim,
        } = form;
        let [Batch(rows), Fixed(three)] = *self.shape(qkv) else {
            panic!("attention is over rows, not {:?}", self.shape(qkv))
        };
        assert_eq!(three, 3 * heads * head_dim, "columns of query, key and value");
        assert!(
            rows.is_multiple_of(tokens),
            "{rows} rows an image in sequences of {tokens}"
        );
        let sequences = Batch(rows / tokens);
        let parts = self.split(qkv, 1, 3);
        let by_head = |graph: &mut Self, part: usize, order: [usize; 4]| {
            let x = graph.reshape(parts[part], &[sequences, Fixed(tokens), Fixed(heads), Fixed(head_dim)]);
            graph.transpose(x, &order)
        };
        let query = by_head(self, 0, [0, 2, 1, 3]);
        let key = by_head(self, 1, [0, 2, 3, 1]);
        let value = by_head(self, 2, [0, 2, 1, 3]);
        let query = self.scale(query, (head_dim as f32).sqrt().recip());
        let mut scores = self.matmul(query, key);
        if let Some(bias) = bias {
            let whole = self.shape(scores).to_vec();
            if let [Fixed(windows), ..] = *self.shape(bias)
                && self.shape(bias).len() == 4
            {
                assert!((rows / tokens).is_multiple_of(windows), "{windows} windows an image");
                let split = [
                    Batch(rows / tokens / windows),
                    Fixed(windows),
                    whole[1],
                    whole[2],
                    whole[3],
                ];
                scores = self.reshape(scores, &split);
            }
            scores = self.add(scores, bias);
            scores = self.reshape(scores, &whole);
        }
        let probabilities = self.softmax(scores);
        let mixed = self.matmul(probabilities, value);
        let mixed = self.transpose(mixed, &[0, 2, 1, 3]);
        self.reshape(mixed, &[Batch(rows), Fixed(heads * head_dim)])
    }

    /// Matrix products over the last two dimensions; all others are broadcast.
    pub fn matmul(&mut self, a: Value, b: Value) -> Value {
        let (left, right) = (self.shape(a), self.shape(b));
        let outer = left.len().max(2) - 2;
        assert!(
            left.len() == right.len() && left.len() >= 2 && left[outer + 1] == right[outer],
            "matrix product of {left:?} and {right:?}"
        );
        let mut shape = broadcast(&left[..outer], &right[..outer]);
        shape.extend([left[outer], right[outer + 1]]);
        self.node("MatMul", &[a, b], vec![], shape)
    }

    /// Mean over `axes`, which are dropped.
    pub fn mean(&mut self, x: Value, axes: &[usize]) -> Value {
        let all = self.shape(x);
        assert!(
            axes.iter().all(|&a| matches!(all.get(a), Some(Fixed(_)))),
            "mean over {axes:?} of {all:?}"
        );
        let kept = all.iter().enumerate().filter(|(i, _)| !axes.contains(i));
        let shape = kept.map(|(_, &extent)| extent).collect();
        let axes = self.integers(axes.iter().map(|&a| a as i64).collect());
        self.node("ReduceMean", &[x, axes], vec![Attribute::int("keepdims", 0)], shape)
    }

    /// The same elements in another shape; nothing, if it is the same.
    pub fn reshape(&mut self, x: Value, shape: &[Extent]) -> Value {
        if self.shape(x) == shape {
            return x;
        }
        assert_eq!(
            product(self.shape(x)),
            product(shape),
            "{:?} reshaped to {shape:?}",
            self.shape(x)
        );
        let sizes = self.sizes(x, shape);
        self.node("Reshape", &[x, sizes], vec![], shape.to_vec())
    }

    /// What tells a runtime to reshape `x` to `shape`: -1 stands for the size that is left over, 0 for that of `x` in the same place.
    fn sizes(&mut self, x: Value, shape: &[Extent]) -> Value {
        let open = |i: &usize| shape[*i].is_open();
        let last = (0..shape.len()).rev().find(open);
        let several = (0..shape.len()).filter(open).count() > 1;
        let kept = |i: usize| several && self.shape(x).get(i) == Some(&shape[i]);
        let size = |i: usize| match shape[i] {
            Fixed(n) => Some(n as i64),
            _ if kept(i) => Some(0),
            _ => (Some(i) == last).then_some(-1),
        };
        let sizes: Vec<_> = (0..shape.len()).map(size).collect();
        if let Some(sizes) = sizes.iter().copied().collect() {
            return self.integers(sizes);
        }
        if let Some((_, sizes)) = self.sizes.iter().find(|(known, _)| known == shape) {
            return *sizes;
        }
        // Not those of `x`, so that all that are reshaped like this can share them.
        let parts = (0..shape.len()).map(|i| match shape[i] {
            Fixed(n) => self.integers(vec![n as i64]),
            _ if Some(i) == last => self.integers(vec![-1]),
            extent => self.open_size(extent),
        });
        let parts: Vec<Value> = parts.collect();
        let sizes = self.concat(&parts, 0);
        self.sizes.push((shape.to_vec(), sizes));
        sizes
    }

    /// The size of the batch or the length of its sequences, `[1]`.
    pub(super) fn open_size(&mut self, extent: Extent) -> Value {
        let axis = match extent {
            Batch(1) => 0,
            Length(1) => 1,
            _ => panic!("{extent:?} is no size of the input"),
        };
        if let Some(size) = self.open[axis] {
            return size;
        }
        let input = *self.inputs.first().expect("the input comes first");
        assert_eq!(self.shape(input).get(axis), Some(&extent), "sizes of the input");
        let part = vec![
            Attribute::int("start", axis as i64),
            Attribute::int("end", axis as i64 + 1),
        ];
        let size = self.node("Shape", &[input], part, vec![Fixed(1)]);
        self.open[axis] = Some(size);
        size
    }

    /// Dimension `i` of the result is dimension `order[i]` of `x`.
    pub fn transpose(&mut self, x: Value, order: &[usize]) -> Value {
        let from = self.shape(x);
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        assert!(
            sorted.iter().copied().eq(0..from.len()),
            "{order:?} is no order of {from:?}"
        );
        let shape = order.iter().map(|&i| from[i]).collect();
        self.node(
            "Transpose",
            &[x],
            vec![Attribute::ints("perm", order.iter().copied())],
            shape,
        )
    }

    /// One after the other along `axis`.
    pub fn concat(&mut self, parts: &[Value], axis: usize) -> Value {
        let mut shape = self.shape(parts[0]).to_vec();
        let sizes = parts.iter().map(|&part| {
            let size = self.fixed(part, axis);
            let own = self.shape(part);
            let alike = own.len() == shape.len() && (0..own.len()).all(|i| i == axis || own[i] == shape[i]);
            assert!(alike, "{shape:?} and {own:?} joined along {axis}");
            size
        });
        let size = sizes.sum();
        shape[axis] = Fixed(size);
        self.node("Concat", parts, vec![Attribute::int("axis", axis as i64)], shape)
    }

    /// Positions `start..end` along `axis`.
    pub fn slice(&mut self, x: Value, axis: usize, start: usize, end: usize) -> Value {
        let size = self.fixed(x, axis);
        assert!(start < end && end <= size, "{start}..{end} of {size}");
        let mut shape = self.shape(x).to_vec();
        shape[axis] = Fixed(end - start);
        let [start, end, axis] = [start, end, axis].map(|n| self.integers(vec![n as i64]));
        self.node("Slice", &[x, start, end, axis], vec![], shape)
    }

    /// `parts` equal pieces along `axis`.
    pub fn split(&mut self, x: Value, axis: usize, parts: usize) -> Vec<Value> {
        let size = self.fixed(x, axis);
        assert!(parts > 0 && size.is_multiple_of(parts), "{size} in {parts} equal parts");
        let mut shape = self.shape(x).to_vec();
        shape[axis] = Fixed(size / parts);
        let name = self.name("Split");
        let outputs: Vec<Value> = (0..parts)
            .map(|part| self.known(format!("{name}.{part}"), shape.clone(), self.element(x)))
            .collect();
        self.nodes.push(Node {
            op: "Split",
            inputs: vec![x],
            outputs: outputs.clone(),
            attributes: vec![
                Attribute::int("axis", axis as i64),
                Attribute::int("num_outputs", parts as i64),
            ],
            name,
        });
        outputs
    }

    /// The positions `indices` along `axis`.
    pub fn gather(&mut self, x: Value, axis: usize, indices: &[usize]) -> Value {
        let size = self.fixed(x, axis);
        assert!(indices.iter().all(|&i| i < size), "an index beyond {size}");
        let mut shape = self.shape(x).to_vec();
        shape[axis] = Fixed(indices.len());
        let indices = self.integers(indices.iter().map(|&i| i as i64).collect());
        self.node(
            "Gather",
            &[x, indices],
            vec![Attribute::int("axis", axis as i64)],
            shape,
        )
    }

    /// `x` once for each image, as `[batch, shape]`; `x` may lack leading dimensions, and dimensions of 1 are repeated.
    pub fn for_each_image(&mut self, x: Value, shape: &[usize]) -> Value {
        let wide: Vec<Extent> = std::iter::once(Batch(1))
            .chain(shape.iter().map(|&n| Fixed(n)))
            .collect();
        assert_eq!(broadcast(&wide, self.shape(x)), wide, "repeated for each image");
        let batch = self.open_size(Batch(1));
        let rest = self.integers(shape.iter().map(|&n| n as i64).collect());
        let sizes = self.concat(&[batch, rest], 0);
        self.node("Expand", &[x, sizes], vec![], wide)
    }

    /// Weights in the order of their first use: names and shapes.
    pub(super) fn weights(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let name = |value: &Value| &self.values[value.0].name;
        self.weights
            .iter()
            .map(move |v| (name(v).as_str(), &self.tensors[name(v)][..]))
    }

    /// Everything but the weights, as it is written.
    pub(super) fn message(&self, name: &str) -> proto::Graph {
        assert!(!self.outputs.is_empty(), "a graph is finished before it is written");
        let names = |values: &[Value]| values.iter().map(|v| self.values[v.0].name.clone()).collect();
        let node = |node: &Node| proto::Node {
            input: names(&node.inputs),
            output: names(&node.outputs),
            name: node.name.clone(),
            op_type: node.op.into(),
            attribute: node.attributes.clone(),
        };
        let constant = |(constant, value): &(Constant, Value)| {
            let (shape, data_type, data) = match constant {
                Constant::Integers(values, shape) => {
                    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    (shape, proto::INT64, bytes)
                }
                Constant::Floats(values, shape) => {
                    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    (shape, proto::FLOAT, bytes)
                }
            };
            proto::Tensor {
                dims: shape.iter().map(|&n| n as i64).collect(),
                data_type,
                name: self.values[value.0].name.clone(),
                raw_data: Some(data),
                ..proto::Tensor::default()
            }
        };
        proto::Graph {
            node: self.nodes.iter().map(node).collect(),
            name: name.into(),
            initializer: self.constants.iter().map(constant).collect(),
            input: self.inputs.iter().map(|&v| self.declared(v)).collect(),
            output: self.outputs.iter().map(|&v| self.declared(v)).collect(),
        }
    }

    /// An input or output with its type.
    fn declared(&self, value: Value) -> proto::ValueInfo {
        let side = |extent: &Extent| match extent {
            Fixed(n) => proto::Side::Value(*n as i64),
            Batch(1) => proto::Side::Name("batch".into()),
            Length(1) => proto::Side::Name("sequence".into()),
            other => panic!("{other:?} is no size of an input or output"),
        };
        let dim = |extent| proto::Dimension {
            side: Some(side(extent)),
        };
        let tensor = proto::TensorType {
            elem_type: match self.element(value) {
                Element::Float => proto::FLOAT,
                Element::Integer => proto::INT64,
                Element::Truth => panic!("an input or output is numbers"),
            },
            shape: Some(proto::Shape {
                dim: self.shape(value).iter().map(dim).collect(),
            }),
        };
        proto::ValueInfo {
            name: self.values[value.0].name.clone(),
            kind: Some(proto::Type {
                tensor_type: Some(tensor),
            }),
        }
    }

    fn known(&mut self, name: String, shape: Vec<Extent>, element: Element) -> Value {
        self.values.push(Known { name, shape, element });
        Value(self.values.len() - 1)
    }

    pub(super) fn weight_if_any(&mut self, name: &str) -> Option<Value> {
        self.tensors.contains_key(name).then(|| self.weight(name))
    }

    pub(super) fn integers(&mut self, values: Vec<i64>) -> Value {
        let shape = vec![values.len()];
        self.constant(Constant::Integers(values, shape))
    }

    /// A whole number without dimensions.
    pub(super) fn integer(&mut self, value: i64) -> Value {
        self.constant(Constant::Integers(vec![value], Vec::new()))
    }

    /// A constant; equal ones are one.
    fn constant(&mut self, constant: Constant) -> Value {
        if let Some((_, value)) = self.constants.iter().find(|(c, _)| *c == constant) {
            return *value;
        }
        let (shape, element) = match &constant {
            Constant::Integers(_, shape) => (shape, Element::Integer),
            Constant::Floats(_, shape) => (shape, Element::Float),
        };
        let shape = shape.iter().map(|&n| Fixed(n)).collect();
        let name = self.unique("constant".into());
        let value = self.known(name, shape, element);
        self.constants.push((constant, value));
        value
    }

    /// The size of `x` along `axis`, which is not open.
    pub(super) fn fixed(&self, x: Value, axis: usize) -> usize {
        match self.shape(x).get(axis) {
            Some(Fixed(size)) => *size,
            _ => panic!("dimension {axis} of {:?} has no fixed size", self.shape(x)),
        }
    }

    pub(super) fn same(&mut self, op: &'static str, x: Value, attributes: Vec<Attribute>) -> Value {
        let shape = self.shape(x).to_vec();
        self.node(op, &[x], attributes, shape)
    }

    pub(super) fn node(
        &mut self,
        op: &'static str,
        inputs: &[Value],
        attributes: Vec<Attribute>,
        shape: Vec<Extent>,
    ) -> Value {
        let name = self.name(op);
        self.push(name, op, inputs, attributes, shape)
    }

    /// A node named after the layer that it is.
    pub(super) fn named_node(
        &mut self,
        layer: &str,
        op: &'static str,
        inputs: &[Value],
        attributes: Vec<Attribute>,
        shape: Vec<Extent>,
    ) -> Value {
        let name = self.unique(layer.into());
        self.push(name, op, inputs, attributes, shape)
    }

    fn push(
        &mut self,
        name: String,
        op: &'static str,
        inputs: &[Value],
        attributes: Vec<Attribute>,
        shape: Vec<Extent>,
    ) -> Value {
        let element = self.element_of(op, inputs);
        let output = self.known(name.clone(), shape, element);
        self.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: vec![output],
            attributes,
            name,
        });
        output
    }

    /// What an operator makes of these inputs.
    fn element_of(&self, op: &str, inputs: &[Value]) -> Element {
        match op {
            "Shape" | "Range" => Element::Integer,
            "Greater" => Element::Truth,
            "Cast" => Element::Float,
            "Reshape" | "Transpose" | "Concat" | "Slice" | "Gather" | "Expand" | "Squeeze" => self.element(inputs[0]),
            "Where" => self.element(inputs[1]),
            _ => {
                assert_eq!(self.element(inputs[0]), Element::Float, "{op} of integers");
                Element::Float
            }
        }
    }

    /// A name of its own for a node of this kind, here.
    fn name(&mut self, op: &str) -> String {
        let place = if self.place.is_empty() {
            op.to_owned()
        } else {
            format!("{}.{op}", self.place)
        };
        self.unique(place)
    }

    fn unique(&mut self, name: String) -> String {
        let mut own = name.clone();
        let mut number = 2;
        while !self.taken.insert(own.clone()) {
            own = format!("{name}_{number}");
            number += 1;
        }
        own
    }
}
