//! The layers that only networks of text have: tokens looked up, positions of sequences of any length, causal attention whose heads
//! may share keys and values, and what GPT-2 and Llama normalise and gate with.
//!
//! A sequence's length is open, so nothing that depends on it is stored: positions, rotary angles and the causal mask are nodes,
//! made once and shared by all blocks.

use super::extent::Extent::{Batch, Fixed, Length, Rows};
use super::extent::broadcast;
use super::graph::{Element, Graph, Value};
use super::proto::{self, Attribute};

/// How packed rows of queries, keys and values are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, each of which serves `heads / kv_heads` consecutive heads of queries.
    pub kv_heads: usize,
    /// Channels of one head; scores are scaled by `head_dim^-1/2`.
    pub head_dim: usize,
}

/// Cosines and sines of rotary positions, `[sequence, head_dim]` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    cosines: Value,
    sines: Value,
}

impl Graph {
    /// The rows of the matrix called `name` that stand at `tokens`, `[batch, sequence]`: `[batch, sequence, width]`.
    pub fn embedding(&mut self, name: &str, tokens: Value) -> Value {
        let table = self.weight(name);
        let [Fixed(_), width] = *self.shape(table) else {
            panic!("`{name}` is no matrix")
        };
        assert_eq!(self.element(tokens), Element::Integer, "tokens are integers");
        let mut shape = self.shape(tokens).to_vec();
        shape.push(width);
        self.node("Gather", &[table, tokens], vec![Attribute::int("axis", 0)], shape)
    }

    /// The first rows of the matrix called `name`, one for each token of a sequence: `[sequence, width]`. A runtime refuses to add
    /// them to a sequence that is longer than the matrix.
    pub fn leading_rows(&mut self, name: &str) -> Value {
        let table = self.weight(name);
        let [Fixed(_), width] = *self.shape(table) else {
            panic!("`{name}` is no matrix")
        };
        let [start, axis] = [0, 0].map(|n| self.integers(vec![n]));
        let end = self.open_size(Length(1));
        self.node("Slice", &[table, start, end, axis], vec![], vec![Length(1), width])
    }

    /// The number of each token in its sequence, from 0: `[sequence]`, integers.
    pub fn positions(&mut self) -> Value {
        let length = self.open_size(Length(1));
        let axis = self.integers(vec![0]);
        let length = self.node("Squeeze", &[length, axis], vec![], vec![]);
        let (first, step) = (self.integer(0), self.integer(1));
        self.node("Range", &[first, length, step], vec![], vec![Length(1)])
    }

    /// What is added to the scores of `positions`: nothing for those before a token and its own, minus infinity for those behind it.
    /// `[sequence, sequence]`.
    pub fn causal_mask(&mut self, positions: Value) -> Value {
        let own = self.reshape(positions, &[Length(1), Fixed(1)]);
        let shape = broadcast(self.shape(positions), self.shape(own));
        let behind = self.node("Greater", &[positions, own], vec![], shape.clone());
        let hidden = self.floats(vec![f32::NEG_INFINITY], &[]);
        let seen = self.floats(vec![0.0], &[]);
        self.node("Where", &[behind, hidden, seen], vec![], shape)
    }

    /// The cosines and sines that turn heads to `positions`; `frequencies` are the angles of one position, one for each pair of
    /// channels, in radians.
    pub fn turn(&mut self, positions: Value, frequencies: &[f32]) -> Turn {
        let to = vec![Attribute::int("to", proto::FLOAT.into())];
        let shape = self.shape(positions).to_vec();
        let positions = self.node("Cast", &[positions], to, shape);
        let positions = self.reshape(positions, &[Length(1), Fixed(1)]);
        // The lower half of a head's channels is turned by minus the sine of the upper half's: of the angle turned around.
        let backwards = frequencies.iter().map(|frequency| -frequency);
        let all = backwards.chain(frequencies.iter().copied()).collect();
        let all = self.floats(all, &[2 * frequencies.len()]);
        let angles = self.multiply(positions, all);
        Turn {
            cosines: self.same("Cos", angles, vec![]),
            sines: self.same("Sin", angles, vec![]),
        }
    }

    /// Turns heads, `[batch, heads, sequence, head_dim]`: a pair is a channel of the lower half and its like of the upper half, as
    /// transformers' Llama has it.
    fn turned(&mut self, x: Value, by: Turn) -> Value {
        let halves = self.split(x, 3, 2);
        let swapped = self.concat(&[halves[1], halves[0]], 3);
        let along = self.multiply(x, by.cosines);
        let across = self.multiply(swapped, by.sines);
        self.add(along, across)
    }

    /// Causal attention on packed rows of all queries, then all keys, then all values: from `[rows, (heads + 2 kv_heads) *
    /// head_dim]` to `[rows, heads * head_dim]`. `mask` is a [`causal_mask`](Self::causal_mask); queries and keys are turned by
    /// `turn` first, if there is one.
    pub fn causal_attention(&mut self, packed: Value, form: Packed, mask: Value, turn: Option<Turn>) -> Value {
        let Packed {
            heads,
            kv_heads,
            head_dim,
        } = form;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{kv_heads} heads of keys for {heads} of queries"
        );
        let (group, all) = (heads / kv_heads, heads + 2 * kv_heads);
        assert_eq!(
            self.shape(packed),
            [Rows(1), Fixed(all * head_dim)],
            "packed rows of queries, keys and values"
        );
        let x = self.reshape(packed, &[Batch(1), Length(1), Fixed(all), Fixed(head_dim)]);
        let x = self.transpose(x, &[0, 2, 1, 3]);
        let value = self.slice(x, 1, heads + kv_heads, all);
        let x = match turn {
            Some(turn) => {
                let x = self.slice(x, 1, 0, heads + kv_heads);
                self.turned(x, turn)
            }
            None => x,
        };
        let query = self.slice(x, 1, 0, heads);
        let key = self.slice(x, 1, heads, heads + kv_heads);
        let query = self.scale(query, (head_dim as f32).sqrt().recip());
        // Heads of queries that share keys stand together, and the product repeats the keys for them.
        let by_group = |graph: &mut Self, x: Value, each: usize| {
            let shape = [Batch(1), Fixed(kv_heads), Fixed(each), Length(1), Fixed(head_dim)];
            graph.reshape(x, &shape)
        };
        let query = by_group(self, query, group);
        let key = by_group(self, key, 1);
        let value = by_group(self, value, 1);
        let key = self.transpose(key, &[0, 1, 2, 4, 3]);
        let scores = self.matmul(query, key);
        let scores = self.add(scores, mask);
        let probabilities = self.softmax(scores);
        let mixed = self.matmul(probabilities, value);
        let mixed = self.transpose(mixed, &[0, 3, 1, 2, 4]);
        self.reshape(mixed, &[Rows(1), Fixed(heads * head_dim)])
    }

    /// The RMSNorm called `layer`, over the last dimension: `x / sqrt(mean(x^2) + epsilon)` times its weight. Opset 20 has no
    /// operator for it; these are the nodes, in the order, that onnxruntime makes one of.
    pub fn rms_norm(&mut self, x: Value, layer: &str, epsilon: f64) -> Value {
        let shape = self.shape(x).to_vec();
        let last = shape.len() - 1;
        let weight = self.weight(&format!("{layer}.weight"));
        assert_eq!(self.shape(weight), &shape[last..], "channels of `{layer}`");
        let two = self.floats(vec![2.0], &[]);
        let squares = self.node("Pow", &[x, two], vec![], shape.clone());
        let mut one = shape.clone();
        one[last] = Fixed(1);
        let axis = self.integers(vec![-1]);
        let mean = self.node(
            "ReduceMean",
            &[squares, axis],
            vec![Attribute::int("keepdims", 1)],
            one.clone(),
        );
        let epsilon = self.floats(vec![epsilon as f32], &[]);
        let mean = self.add(mean, epsilon);
        let root = self.same("Sqrt", mean, vec![]);
        let x = self.node("Div", &[x, root], vec![], shape.clone());
        self.named_node(layer, "Mul", &[x, weight], vec![], shape)
    }

    /// `x * Phi(x)` by tanh, as GPT-2 has it.
    pub fn gelu_tanh(&mut self, x: Value) -> Value {
        self.same("Gelu", x, vec![Attribute::text("approximate", "tanh")])
    }

    /// SwiGLU of rows of all gates, then all values: `gate * sigmoid(gate) * value`, half as wide.
    pub fn swiglu(&mut self, x: Value) -> Value {
        let last = self.shape(x).len() - 1;
        let halves = self.split(x, last, 2);
        let (gate, value) = (halves[0], halves[1]);
        let open = self.same("Sigmoid", gate, vec![]);
        let gate = self.multiply(gate, open);
        self.multiply(gate, value)
    }
}
