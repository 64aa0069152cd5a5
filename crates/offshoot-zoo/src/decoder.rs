//! The decoder language models: GPT-2 (LayerNorm, learned positions, GELU) and Llama (RMSNorm, rotary positions, SwiGLU).
//!
//! Both are one network whose kind decides what stands before and after each matrix. Tokens come as rows, the sequences of a batch
//! one after the other; a sequence may have any length up to the context, and nothing is padded. A child is a plain decoder of its
//! own numbers: nothing in the forward pass knows that it was cut out of a larger one.

use std::collections::BTreeMap;
use std::sync::Arc;

use offshoot_family::{Architecture, Decoder, DecoderKind, Operator, Shape, Space, View};

use crate::layout::{Layout, decoder_layout};
use crate::network::{Network, NetworkError, SpaceBounds, axis, kept_blocks};
use crate::onnx;
use crate::spec::{Dim, Init, TensorSpec};
use crate::tensor::kernels::Rows;
use crate::tensor::{Attention, Linear, Rotary, Tensor, attention, gather_rows, rotary};
use crate::weights::Weights;

/// Axis of the residual stream, shared by the whole network.
const RESIDUAL: &str = "residual";
/// Name of the embedding, which may be the output layer too.
pub const EMBEDDING: &str = "embed.weight";

/// The axis of a block's heads: an entry is one head of keys and values with the heads of queries that it serves.
fn heads_axis(block: usize) -> String {
    format!("blocks.{block}.heads")
}

/// The axis of a block's hidden channels.
fn ffn_axis(block: usize) -> String {
    format!("blocks.{block}.ffn")
}

/// A batch of sequences of tokens, their rows one after the other.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub(crate) ids: Rows,
    pub(crate) positions: Rows,
    /// Sequences and tokens of each, one pair for each run of sequences of equal length.
    pub(crate) sequences: Vec<(usize, usize)>,
    /// Number of the first token of every sequence.
    first: usize,
}

impl Tokens {
    /// The sequences `each`, from their first tokens on.
    ///
    /// # Panics
    /// If there are none, or one is empty.
    pub fn new<S: AsRef<[u32]>>(each: &[S]) -> Self {
        Self::from_position(each, 0)
    }

    /// Sequences that go on at position `first`.
    ///
    /// # Panics
    /// If there are none, or one is empty.
    pub fn from_position<S: AsRef<[u32]>>(each: &[S], first: usize) -> Self {
        assert!(!each.is_empty(), "a batch has at least one sequence");
        let mut sequences: Vec<(usize, usize)> = Vec::new();
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for sequence in each {
            let sequence = sequence.as_ref();
            assert!(!sequence.is_empty(), "a sequence has at least one token");
            ids.extend(sequence.iter().map(|&id| Some(id)));
            positions.extend((first..first + sequence.len()).map(|at| Some(at as u32)));
            match sequences.last_mut() {
                Some((count, tokens)) if *tokens == sequence.len() => *count += 1,
                _ => sequences.push((1, sequence.len())),
            }
        }
        Self {
            ids: ids.into(),
            positions: positions.into(),
            sequences,
            first,
        }
    }

    /// Rows: tokens of all sequences.
    pub fn rows(&self) -> usize {
        self.sequences.iter().map(|(count, tokens)| count * tokens).sum()
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.sequences.iter().map(|&(_, tokens)| tokens).max().unwrap_or(0)
    }
}

/// A decoder's forward pass and space.
#[derive(Clone, Debug)]
pub struct DecoderNetwork {
    decoder: Decoder,
    frequencies: Arc<[f32]>,
}

impl DecoderNetwork {
    /// The network of checked numbers.
    pub fn new(decoder: Decoder) -> Self {
        Self {
            frequencies: decoder.frequencies().into(),
            decoder,
        }
    }

    /// The numbers.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    fn gpt2(&self) -> bool {
        self.decoder.kind == DecoderKind::Gpt2
    }

    /// Name of the output layer's weight.
    pub fn output(&self) -> &'static str {
        if self.decoder.tied { EMBEDDING } else { "head.weight" }
    }

    /// A linear layer of a block after a norm.
    fn after_norm(&self, weights: &Weights, block: usize, leaf: &str, norm: &str) -> Linear {
        let linear = self.layer(weights, block, leaf);
        self.normed(weights, &format!("blocks.{block}.{norm}"), linear)
    }

    fn normed(&self, weights: &Weights, norm: &str, linear: Linear) -> Linear {
        let scale = weights.tensor(&format!("{norm}.weight"));
        if self.gpt2() {
            linear.layer_norm(scale, weights.tensor(&format!("{norm}.bias")), self.decoder.norm_eps)
        } else {
            linear.rms_norm(scale, self.decoder.norm_eps)
        }
    }

    fn layer(&self, weights: &Weights, block: usize, leaf: &str) -> Linear {
        let name = |end: &str| format!("blocks.{block}.{leaf}.{end}");
        let linear = Linear::new(weights.tensor(&name("weight")));
        if self.gpt2() {
            linear.bias(weights.tensor(&name("bias")))
        } else {
            linear
        }
    }

    /// How a packed row of queries, keys and values of `tokens` is read.
    pub(crate) fn form(&self, tokens: &Tokens) -> Attention {
        Attention {
            sequences: tokens.sequences.clone(),
            heads: self.decoder.heads,
            kv_heads: self.decoder.kv_heads,
            head_dim: self.decoder.head_dim,
            causal: true,
        }
    }

    /// Tokens to the residual stream, `[rows, width]`.
    ///
    /// # Panics
    /// If a token lies outside the vocabulary, or GPT-2 has no position for one.
    pub fn embed(&self, weights: &Weights, tokens: &Tokens) -> Tensor<2> {
        let x = gather_rows(weights.tensor(EMBEDDING), tokens.ids.clone());
        if !self.gpt2() {
            return x;
        }
        x + gather_rows(weights.tensor("pos_embed"), tokens.positions.clone())
    }

    /// Packed queries, keys and values of a block's input, `[rows, qkv]`, turned to their positions.
    pub(crate) fn qkv(&self, weights: &Weights, block: usize, tokens: &Tokens, x: Tensor<2>) -> Tensor<2> {
        let packed = self.after_norm(weights, block, "attn.qkv", "norm1").forward(x);
        if self.gpt2() {
            return packed;
        }
        let form = Rotary {
            sequences: tokens.sequences.clone(),
            first: tokens.first,
            heads: self.decoder.heads,
            kv_heads: self.decoder.kv_heads,
            head_dim: self.decoder.head_dim,
            frequencies: self.frequencies.clone(),
        };
        rotary(form, packed)
    }

    /// What a block makes of the mixed heads of its input: the attention's last layer and the feed-forward layer, each added.
    pub(crate) fn rest(&self, weights: &Weights, block: usize, x: Tensor<2>, mixed: Tensor<2>) -> Tensor<2> {
        let x = self.layer(weights, block, "attn.proj").residual(x).forward(mixed);
        let (first, last) = if self.gpt2() {
            ("mlp.fc1", self.layer(weights, block, "mlp.fc2").gelu_tanh())
        } else {
            ("mlp.gate_up", self.layer(weights, block, "mlp.down").swiglu())
        };
        let hidden = self.after_norm(weights, block, first, "norm2").forward(x.clone());
        last.residual(x).forward(hidden)
    }

    /// One block on the residual stream, `[rows, width]`.
    pub fn block(&self, weights: &Weights, block: usize, tokens: &Tokens, x: Tensor<2>) -> Tensor<2> {
        let packed = self.qkv(weights, block, tokens, x.clone());
        let mixed = attention(self.form(tokens), packed, None);
        self.rest(weights, block, x, mixed)
    }

    /// The last norm and the output layer: the residual stream to logits, `[rows, vocabulary]`.
    pub fn head(&self, weights: &Weights, x: Tensor<2>) -> Tensor<2> {
        self.normed(weights, "norm", Linear::new(weights.tensor(self.output())))
            .forward(x)
    }

    /// Tokens to the residual stream behind the last block, `[rows, width]`.
    pub fn residual(&self, weights: &Weights, tokens: &Tokens) -> Tensor<2> {
        let x = self.embed(weights, tokens);
        (0..self.decoder.depth).fold(x, |x, block| self.block(weights, block, tokens, x))
    }

    /// Tokens to logits of the tokens after them, `[rows, vocabulary]`.
    ///
    /// # Panics
    /// If a token lies outside the vocabulary, a sequence is longer than GPT-2's context, or weights do not match the specs.
    pub fn logits(&self, weights: &Weights, tokens: &Tokens) -> Tensor<2> {
        self.head(weights, self.residual(weights, tokens))
    }

    /// The forward pass as an ONNX graph, in the same steps and with weights by the same names: from `tokens`, `[batch, sequence]`, to
    /// logits of the tokens after them, `[batch, sequence, vocabulary]`. Sequences start at their first tokens and are of one
    /// length, which is open as the batch is; nothing is kept from one run to the next.
    pub fn graph(&self, graph: &mut onnx::Graph, tokens: onnx::Value) -> onnx::Value {
        use onnx::Extent::{Batch, Fixed, Length, Rows};
        let d = &self.decoder;
        let mut x = graph.embedding(EMBEDDING, tokens);
        let positions = graph.positions();
        let turn = if self.gpt2() {
            let learned = graph.leading_rows("pos_embed");
            x = graph.add(x, learned);
            None
        } else {
            Some(graph.turn(positions, &self.frequencies))
        };
        let mask = graph.causal_mask(positions);
        let form = onnx::Packed {
            heads: d.heads,
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
        };
        let mut x = graph.reshape(x, &[Rows(1), Fixed(d.width)]);
        for block in 0..d.depth {
            let name = |leaf: &str| format!("blocks.{block}.{leaf}");
            graph.at(format!("blocks.{block}"));
            let inner = self.normed_graph(graph, x, &name("norm1"));
            let packed = graph.linear(inner, &name("attn.qkv"));
            let mixed = graph.causal_attention(packed, form, mask, turn);
            let inner = graph.linear(mixed, &name("attn.proj"));
            x = graph.add(x, inner);
            let inner = self.normed_graph(graph, x, &name("norm2"));
            let inner = if self.gpt2() {
                let inner = graph.linear(inner, &name("mlp.fc1"));
                let inner = graph.gelu_tanh(inner);
                graph.linear(inner, &name("mlp.fc2"))
            } else {
                let inner = graph.linear(inner, &name("mlp.gate_up"));
                let inner = graph.swiglu(inner);
                graph.linear(inner, &name("mlp.down"))
            };
            x = graph.add(x, inner);
        }
        graph.at("");
        let x = self.normed_graph(graph, x, "norm");
        let logits = graph.linear(x, self.output().trim_end_matches(".weight"));
        graph.reshape(logits, &[Batch(1), Length(1), Fixed(d.vocabulary)])
    }

    /// The norm called `name` in the graph.
    fn normed_graph(&self, graph: &mut onnx::Graph, x: onnx::Value, name: &str) -> onnx::Value {
        if self.gpt2() {
            graph.layer_norm(x, name, self.decoder.norm_eps)
        } else {
            graph.rms_norm(x, name, self.decoder.norm_eps)
        }
    }

    /// Multiply-adds of one sequence of `tokens` tokens through the whole network, every token attending to those before it and
    /// itself; with or without the output layer.
    pub fn sequence_macs(&self, tokens: usize, output: bool) -> u64 {
        let d = &self.decoder;
        let t = tokens as u64;
        let [width, inner, qkv] = [d.width, d.heads * d.head_dim, d.qkv()].map(|n| n as u64);
        let matrices = if self.gpt2() { 2 } else { 3 };
        let block = width * (qkv + inner) + matrices * width * d.hidden as u64;
        let scores = t * (t + 1) / 2 * 2 * inner;
        let head = if output { width * d.vocabulary as u64 } else { 0 };
        d.depth as u64 * (t * block + scores) + t * head
    }

    /// Numbers that the forward pass of one token keeps for the backward pass, logits apart.
    pub fn token_activations(&self) -> u64 {
        let d = &self.decoder;
        let hidden = if self.gpt2() { d.hidden } else { 2 * d.hidden };
        // Of one block: what goes into either branch, queries with keys and values, mixed heads, and what goes into the activation.
        let block = 2 * d.width + d.qkv() + d.heads * d.head_dim + hidden;
        (d.depth * block + d.width) as u64
    }

    /// Parameters that are in no embedding, as scaling laws count them: neither the vocabulary's vectors nor learned positions.
    pub fn inner_parameters(&self) -> u64 {
        let counted = |spec: &&TensorSpec| ![EMBEDDING, "pos_embed", "head.weight"].contains(&spec.name.as_str());
        self.specs()
            .iter()
            .filter(counted)
            .map(|spec| spec.elements() as u64)
            .sum()
    }

    fn block_specs(&self, block: usize) -> Vec<TensorSpec> {
        let d = &self.decoder;
        let (heads, ffn) = (heads_axis(block), ffn_axis(block));
        let group = d.heads / d.kv_heads * d.head_dim;
        let residual = || Dim::writes(RESIDUAL, d.width);
        let reads = || Dim::reads(RESIDUAL, d.width);
        let qkv = || Dim::writes(&heads, d.qkv()).sections(&[group, d.head_dim, d.head_dim]);
        let mixed = || Dim::reads(&heads, d.heads * d.head_dim).entry(group);
        // GPT-2's start: residual outputs are smaller the more of them there are (Radford et al. 2019, section 2.3).
        let small = 0.02 / ((2 * d.depth) as f32).sqrt();
        let matrix =
            |leaf: &str, dims, sigma| TensorSpec::new(format!("{leaf}.weight"), dims).init(Init::Normal(sigma));
        let vector = |leaf: &str, dim| TensorSpec::new(leaf, vec![dim]).undecayed();
        let scale = |leaf: &str| vector(leaf, residual()).init(Init::Constant(1.0));
        let specs = if self.gpt2() {
            let hidden = || Dim::writes(&ffn, d.hidden);
            vec![
                scale("norm1.weight"),
                vector("norm1.bias", residual()),
                matrix("attn.qkv", vec![qkv(), reads()], 0.02),
                vector("attn.qkv.bias", qkv()),
                matrix("attn.proj", vec![residual(), mixed()], small),
                vector("attn.proj.bias", residual()),
                scale("norm2.weight"),
                vector("norm2.bias", residual()),
                matrix("mlp.fc1", vec![hidden(), reads()], 0.02),
                vector("mlp.fc1.bias", hidden()),
                matrix("mlp.fc2", vec![residual(), Dim::reads(&ffn, d.hidden)], small),
                vector("mlp.fc2.bias", residual()),
            ]
        } else {
            let both = Dim::writes(&ffn, 2 * d.hidden).sections(&[1, 1]);
            vec![
                scale("norm1.weight"),
                matrix("attn.qkv", vec![qkv(), reads()], 0.02),
                matrix("attn.proj", vec![residual(), mixed()], small),
                scale("norm2.weight"),
                matrix("mlp.gate_up", vec![both, reads()], 0.02),
                matrix("mlp.down", vec![residual(), Dim::reads(&ffn, d.hidden)], small),
            ]
        };
        let placed = specs.into_iter().map(|spec| TensorSpec {
            name: format!("blocks.{block}.{}", spec.name),
            block: Some(block),
            layer: Some(block + 1),
            ..spec
        });
        placed.collect()
    }
}

impl Network for DecoderNetwork {
    fn architecture(&self) -> Architecture {
        Architecture::Decoder(self.decoder.clone())
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let d = &self.decoder;
        let residual = || Dim::writes(RESIDUAL, d.width);
        let normal = Init::Normal(0.02);
        let input = |name: &str, rows| TensorSpec {
            layer: Some(0),
            ..TensorSpec::new(name, vec![Dim::fixed(rows), residual()]).init(normal)
        };
        let mut specs = vec![input(EMBEDDING, d.vocabulary)];
        specs.extend(self.gpt2().then(|| input("pos_embed", d.context)));
        specs.extend((0..d.depth).flat_map(|block| self.block_specs(block)));
        let last = |leaf: &str| TensorSpec::new(leaf, vec![residual()]).undecayed();
        specs.push(last("norm.weight").init(Init::Constant(1.0)));
        specs.extend(self.gpt2().then(|| last("norm.bias")));
        let output = vec![Dim::fixed(d.vocabulary), Dim::reads(RESIDUAL, d.width)];
        specs.extend((!d.tied).then(|| TensorSpec::new("head.weight", output).init(normal)));
        specs
    }

    fn as_decoder(&self) -> Option<&DecoderNetwork> {
        Some(self)
    }

    /// A head of keys and values with the queries that it serves is the least that can be cut off; as many channels of the residual
    /// stream go with it.
    fn width_step(&self) -> usize {
        let step = self.decoder.width / self.decoder.kv_heads;
        // Whole channels for any number of heads, or no narrower child.
        if step * self.decoder.kv_heads == self.decoder.width {
            step
        } else {
            self.decoder.width
        }
    }

    fn layers(&self) -> usize {
        self.decoder.depth + 1
    }

    /// Axes `width` (residual stream, heads, and the feed-forward layers unless they have an axis of their own), `hidden` where it
    /// is asked for, and `depth`.
    fn space(&self, bounds: SpaceBounds) -> Result<Space, NetworkError> {
        let d = &self.decoder;
        let min = bounds.depths(&[d.depth])?[0];
        let mut axes = vec![bounds.width(d.width, self.width_step(), "heads with their share of the width,")?];
        if bounds.min_hidden > 0 {
            let step = if bounds.hidden_step == 0 {
                d.hidden.div_ceil(4)
            } else {
                bounds.hidden_step
            };
            axes.push(axis("hidden".into(), "min_hidden", bounds.min_hidden, d.hidden, step)?);
        }
        axes.push(bounds.depth("depth".into(), min, d.depth)?);
        Ok(Space { axes })
    }

    /// Leading heads and hidden channels, evenly spaced blocks, as POA has it for a ViT (elastic.md 2.2). Reads of the residual
    /// stream, of heads and of hidden channels are scaled by how much fewer there are; a tied output layer is not, because it is the
    /// embedding too.
    fn child(&self, shape: &Shape, parent: &str) -> Result<View, NetworkError> {
        let bad = || NetworkError::Shape(shape.id());
        let d = &self.decoder;
        let (width, depth) = (shape.get("width").ok_or_else(bad)?, shape.get("depth").ok_or_else(bad)?);
        let step = self.width_step();
        let fits = width > 0 && width <= d.width && width.is_multiple_of(step) && depth > 0 && depth <= d.depth;
        if !fits {
            return Err(bad());
        }
        let groups = d.kv_heads * width / d.width;
        let hidden = match shape.get("hidden") {
            Some(hidden) if hidden == 0 || hidden > d.hidden => return Err(bad()),
            Some(hidden) => hidden,
            None => (d.hidden * width / d.width).max(1),
        };
        let child = Decoder {
            width,
            depth,
            heads: d.heads / d.kv_heads * groups,
            kv_heads: groups,
            hidden,
            ..d.clone()
        };
        let blocks = kept_blocks(d.depth, depth);
        let mut axes = BTreeMap::new();
        let mut gains = BTreeMap::new();
        let mut cut = |axis: String, size: usize, of: usize| {
            if size < of {
                axes.insert(axis.clone(), Operator::Prefix { size });
                gains.insert(axis, of as f64 / size as f64);
            }
        };
        cut(RESIDUAL.into(), width, d.width);
        for &block in &blocks {
            cut(heads_axis(block), groups, d.kv_heads);
            cut(ffn_axis(block), hidden, d.hidden);
        }
        Ok(View {
            parent: parent.into(),
            child: Architecture::Decoder(child),
            axes,
            blocks,
            gains,
        })
    }

    /// The paper's two (specialize.md section 2.1).
    fn familiar_name(&self) -> Option<&'static str> {
        let d = &self.decoder;
        match (d.kind, d.width, d.depth, d.heads, d.hidden) {
            (DecoderKind::Gpt2, 1024, 7, 8, 4096) => Some("slm"),
            (DecoderKind::Gpt2, 2816, 7, 22, 11_264) => Some("llm"),
            _ => None,
        }
    }

    fn example_macs(&self) -> u64 {
        let context = self.decoder.context;
        self.sequence_macs(context, true) / context as u64
    }

    fn layout(&self) -> Layout {
        decoder_layout(&self.decoder)
    }
}
