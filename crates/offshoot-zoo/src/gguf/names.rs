//! What the tensors of `gpt2` and `llama` are called in a GGUF file, and the order of their rows there.
//!
//! Matrices are (out, in), as ours. One order differs: we rotate element `i` of a head with element `i + half`, as Hugging Face's Llama
//! does, llama.cpp's `llama` element `2 i` with `2 i + 1`. The rows of queries and keys are written as [`pairs`] and read as [`halves`].

use std::fmt;

/// A network that GGUF files describe and this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Model {
    /// Learned positions, LayerNorm, one matrix for queries, keys and values, GELU, biases everywhere.
    Gpt2,
    /// Rotary positions, RMSNorm, SwiGLU, perhaps fewer keys and values than queries.
    Llama,
}

impl Model {
    /// All of them.
    pub(super) const ALL: [Self; 2] = [Self::Gpt2, Self::Llama];

    /// Its name in `general.architecture`, and in front of its numbers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
        }
    }

    /// The one of this name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|model| model.name() == name)
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Weights or biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Leaf {
    /// A matrix, or the gain of a norm.
    Weight,
    /// What is added.
    Bias,
}

/// What a tensor is to the whole network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// Embeddings of tokens, `[tokens, width]`.
    Tokens,
    /// Embeddings of positions, `[positions, width]`.
    Positions,
    /// The last norm, `[width]`.
    OutputNorm(Leaf),
    /// From the last norm to logits, `[tokens, width]`.
    Output,
    /// What frequencies of rotary positions are divided by, `[half a head]`.
    RopeFactors,
    /// A part of the block of this number.
    Block(usize, Part, Leaf),
}

/// What a tensor is to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// The norm before attention.
    AttentionNorm,
    /// Queries, keys and values below each other.
    Qkv,
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// What puts the heads together.
    AttentionOutput,
    /// The norm before the feed-forward network.
    FeedForwardNorm,
    /// Into the feed-forward network.
    Up,
    /// What its activations are multiplied with.
    Gate,
    /// Out of it.
    Down,
}

/// Names of parts behind `blk.N.`.
const PARTS: [(Part, &str); 10] = [
    (Part::AttentionNorm, "attn_norm"),
    (Part::Qkv, "attn_qkv"),
    (Part::Query, "attn_q"),
    (Part::Key, "attn_k"),
    (Part::Value, "attn_v"),
    (Part::AttentionOutput, "attn_output"),
    (Part::FeedForwardNorm, "ffn_norm"),
    (Part::Up, "ffn_up"),
    (Part::Gate, "ffn_gate"),
    (Part::Down, "ffn_down"),
];
/// Names of tensors of the whole network.
const WHOLE: [(Role, &str); 6] = [
    (Role::Tokens, "token_embd.weight"),
    (Role::Positions, "position_embd.weight"),
    (Role::OutputNorm(Leaf::Weight), "output_norm.weight"),
    (Role::OutputNorm(Leaf::Bias), "output_norm.bias"),
    (Role::Output, "output.weight"),
    (Role::RopeFactors, "rope_freqs.weight"),
];
const LEAVES: [(Leaf, &str); 2] = [(Leaf::Weight, "weight"), (Leaf::Bias, "bias")];

/// The second of the pair of `table` whose first is `key`.
fn found<A: PartialEq, B: Copy>(table: &[(A, B)], key: &A) -> B {
    let pair = table.iter().find(|(first, _)| first == key);
    pair.expect("the table has all of them").1
}

impl Role {
    /// The name of this tensor in a file.
    pub(super) fn name(self) -> String {
        match self {
            Self::Block(block, part, leaf) => {
                format!("blk.{block}.{}.{}", found(&PARTS, &part), found(&LEAVES, &leaf))
            }
            whole => found(&WHOLE, &whole).to_owned(),
        }
    }

    /// The tensors that a file of either network with this many blocks may have, in the order in which they are written.
    pub(super) fn all(blocks: usize) -> impl Iterator<Item = Self> {
        let parts = move |block| {
            let leaves = |part| LEAVES.iter().map(move |&(leaf, _)| (part, leaf));
            let parts = PARTS.iter().flat_map(move |&(part, _)| leaves(part));
            parts.map(move |(part, leaf)| Self::Block(block, part, leaf))
        };
        let whole = WHOLE.iter().map(|(role, _)| *role);
        whole.chain((0..blocks).flat_map(parts))
    }

    /// Whether llama.cpp keeps it in 32 bits whatever the others are in: norms, biases, positions and factors.
    pub(super) fn stays_exact(self) -> bool {
        match self {
            Self::Tokens | Self::Output => false,
            Self::Positions | Self::OutputNorm(_) | Self::RopeFactors => true,
            Self::Block(_, part, leaf) => {
                leaf == Leaf::Bias || matches!(part, Part::AttentionNorm | Part::FeedForwardNorm)
            }
        }
    }
}

/// Rows of queries or keys as llama.cpp's `llama` has them, from those of Hugging Face: within each of `heads` heads of `2 h` rows,
/// row `i` and row `i + h` come to stand next to each other. `values` are `rows` of equal length; a bias has rows of one.
///
/// # Panics
/// If the rows are no whole number of heads of an even number of rows.
pub(crate) fn pairs(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let half = half_of(rows, heads);
    taken(values, rows, |row| {
        let (head, within) = (row / (2 * half), row % (2 * half));
        head * 2 * half + within % 2 * half + within / 2
    })
}

/// The way back from [`pairs`].
///
/// # Panics
/// As [`pairs`].
pub(crate) fn halves(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let half = half_of(rows, heads);
    taken(values, rows, |row| {
        let (head, within) = (row / (2 * half), row % (2 * half));
        head * 2 * half + within % half * 2 + within / half
    })
}

fn half_of(rows: usize, heads: usize) -> usize {
    assert!(
        heads > 0 && rows > 0 && rows.is_multiple_of(2 * heads),
        "{heads} heads of {rows} rows"
    );
    rows / heads / 2
}

/// Row `from(i)` of `values` as row `i`, for all rows.
fn taken(values: &[f32], rows: usize, from: impl Fn(usize) -> usize) -> Vec<f32> {
    assert!(values.len().is_multiple_of(rows), "whole rows");
    let columns = values.len() / rows;
    (0..rows)
        .flat_map(|row| &values[from(row) * columns..][..columns])
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_formats_documents_and_none_comes_twice() {
        let names: Vec<String> = Role::all(12).map(Role::name).collect();
        assert_eq!(names.len(), 6 + 12 * 20);
        assert_eq!(names[0], "token_embd.weight");
        assert_eq!(names[6], "blk.0.attn_norm.weight");
        assert_eq!(names[6 + 11 * 20 + 11], "blk.11.attn_output.bias");
        let once: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(once.len(), names.len());
        for model in Model::ALL {
            assert_eq!(Model::of_name(model.name()), Some(model));
        }
    }

    #[test]
    fn pairs_are_the_order_of_the_formats_own_converter() {
        // numpy: arange(16).reshape(2, 2, 4, 1).swapaxes(1, 2).reshape(16, 1), two heads of eight rows.
        let rows: Vec<f32> = (0..16u8).map(f32::from).collect();
        let expected = [0u8, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15].map(f32::from);
        assert_eq!(pairs(&rows, 16, 2), expected);
        assert_eq!(halves(&pairs(&rows, 16, 2), 16, 2), rows);
        // Rows of two elements: one head of four rows, two of two.
        let matrix: Vec<f32> = (0..8u8).map(f32::from).collect();
        assert_eq!(pairs(&matrix, 4, 1), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        assert_eq!(pairs(&matrix, 4, 2), matrix);
        assert_eq!(halves(&pairs(&matrix, 4, 1), 4, 1), matrix);
    }
}
