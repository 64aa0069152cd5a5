//! What the tensors of `gpt2` and `llama` are called in a GGUF file, and the order of their rows there.
//!
//! Two orders differ from Hugging Face's. Its GPT-2 keeps matrices as (in, out), GGUF as (out, in): [`transposed`]. Its Llama
//! rotates element `i` of a head with element `i + half`, llama.cpp's `llama` element `2 i` with `2 i + 1`: the rows of queries and
//! keys are written as [`pairs`] and read as [`halves`].

use std::fmt;

/// A network that GGUF files describe and this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Model {
    /// Learned positions, LayerNorm, one matrix for queries, keys and values, GELU, biases everywhere.
    Gpt2,
    /// Rotary positions, RMSNorm, SwiGLU, perhaps fewer keys and values than queries.
    Llama,
}

impl Model {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Gpt2, Self::Llama];

    /// Its name in `general.architecture`, and in front of its numbers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
        }
    }

    /// The one of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|model| model.name() == name)
    }

    /// Whether its files have the tensor `role`, as llama.cpp asks for them.
    pub fn presence(self, role: Role) -> Presence {
        use Part::{AttentionNorm, AttentionOutput, Down, FeedForwardNorm, Gate, Key, Qkv, Query, Up, Value};
        use Presence::{Absent, Always, Perhaps};
        match (self, role) {
            (_, Role::Tokens) | (_, Role::OutputNorm(Leaf::Weight)) => Always,
            // Without it, the embeddings of tokens are the output, too.
            (_, Role::Output) => Perhaps,
            (Self::Gpt2, Role::Positions | Role::OutputNorm(Leaf::Bias)) => Always,
            (Self::Gpt2, Role::Block(_, part, _)) => match part {
                AttentionNorm | Qkv | AttentionOutput | FeedForwardNorm | Up | Down => Always,
                Query | Key | Value | Gate => Absent,
            },
            (Self::Llama, Role::RopeFactors) => Perhaps,
            (Self::Llama, Role::Block(_, part, leaf)) => match (part, leaf) {
                (AttentionNorm | FeedForwardNorm, Leaf::Bias) => Absent,
                (Query | Key | Value | AttentionOutput | Up | Gate | Down, Leaf::Bias) => Perhaps,
                // Old files have one matrix instead of three.
                (Qkv, _) => Perhaps,
                (_, Leaf::Weight) => Always,
            },
            (Self::Gpt2, Role::RopeFactors) | (Self::Llama, Role::Positions | Role::OutputNorm(Leaf::Bias)) => Absent,
        }
    }

    /// How the rows of the tensor `role` lie in Hugging Face's files and in GGUF's.
    pub fn order(self, role: Role) -> Order {
        let Role::Block(_, part, leaf) = role else {
            return Order::Same;
        };
        match (self, part, leaf) {
            (Self::Gpt2, Part::Qkv | Part::AttentionOutput | Part::Up | Part::Down, Leaf::Weight) => Order::Transposed,
            (Self::Llama, Part::Query, _) => Order::QueryPairs,
            (Self::Llama, Part::Key, _) => Order::KeyPairs,
            _ => Order::Same,
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a file has a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It must.
    Always,
    /// It may.
    Perhaps,
    /// It does not.
    Absent,
}

/// How the rows of a tensor lie in Hugging Face's files and in GGUF's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In the same order.
    Same,
    /// Rows there are columns here.
    Transposed,
    /// [`pairs`] here, halves there, with the heads of queries.
    QueryPairs,
    /// The same with the heads of keys and values.
    KeyPairs,
}

/// Weights or biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaf {
    /// A matrix, or the gain of a norm.
    Weight,
    /// What is added.
    Bias,
}

/// What a tensor is to the whole network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
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
pub enum Part {
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
    pub fn name(self) -> String {
        match self {
            Self::Block(block, part, leaf) => {
                format!("blk.{block}.{}.{}", found(&PARTS, &part), found(&LEAVES, &leaf))
            }
            whole => found(&WHOLE, &whole).to_owned(),
        }
    }

    /// The tensor of this name, if it is one that is known.
    pub fn of_name(name: &str) -> Option<Self> {
        if let Some((role, _)) = WHOLE.iter().find(|(_, whole)| *whole == name) {
            return Some(*role);
        }
        let mut words = name.strip_prefix("blk.")?.split('.');
        let (block, part, leaf) = (words.next()?, words.next()?, words.next()?);
        // One name for one tensor: no `01`, no `+1`.
        let number: usize = block.parse().ok().filter(|n: &usize| n.to_string() == block)?;
        let (part, _) = PARTS.iter().find(|(_, name)| *name == part)?;
        let (leaf, _) = LEAVES.iter().find(|(_, name)| *name == leaf)?;
        words.next().is_none().then_some(Self::Block(number, *part, *leaf))
    }

    /// The tensors that a file of `model` with this many blocks may have, in the order in which they are written.
    pub fn all(model: Model, blocks: usize) -> impl Iterator<Item = Self> {
        let whole = WHOLE.iter().map(|(role, _)| *role);
        let parts = move |block| {
            let leaves = |part| LEAVES.iter().map(move |&(leaf, _)| (part, leaf));
            let parts = PARTS.iter().flat_map(move |&(part, _)| leaves(part));
            parts.map(move |(part, leaf)| Self::Block(block, part, leaf))
        };
        whole
            .chain((0..blocks).flat_map(parts))
            .filter(move |role| model.presence(*role) != Presence::Absent)
    }

    /// Whether llama.cpp keeps it in 32 bits whatever the others are in: norms, biases, positions and factors.
    pub fn stays_exact(self) -> bool {
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
pub fn pairs(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
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
pub fn halves(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let half = half_of(rows, heads);
    taken(values, rows, |row| {
        let (head, within) = (row / (2 * half), row % (2 * half));
        head * 2 * half + within % half * 2 + within / half
    })
}

/// A matrix of `rows` rows with rows and columns exchanged.
///
/// # Panics
/// If `values` are not whole rows.
pub fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    assert!(rows > 0 && values.len().is_multiple_of(rows), "whole rows");
    let columns = values.len() / rows;
    (0..values.len())
        .map(|i| values[i % rows * columns + i / rows])
        .collect()
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
    fn every_name_leads_back_to_its_tensor_and_no_other_name_does() {
        for (model, tensors) in [(Model::Gpt2, 5 + 2 * 12), (Model::Llama, 4 + 2 * 18)] {
            let roles: Vec<_> = Role::all(model, 2).collect();
            assert_eq!(roles.len(), tensors, "{model}");
            for role in roles {
                assert_eq!(Role::of_name(&role.name()), Some(role));
            }
            assert_eq!(Model::of_name(model.name()), Some(model));
        }
        let names = |role: Role| role.name();
        assert_eq!(
            names(Role::Block(11, Part::AttentionOutput, Leaf::Weight)),
            "blk.11.attn_output.weight"
        );
        for other in [
            "blk.01.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.1.attn_q",
            "blk.1.attn_q.weight.x",
            "blk..attn_q.weight",
            "blk.1.attn_x.weight",
            "blk.99999999999999999999.attn_q.weight",
            "output.bias",
            "",
        ] {
            assert_eq!(Role::of_name(other), None, "{other}");
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

    #[test]
    fn a_transposed_matrix_has_its_columns_as_rows() {
        let matrix = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(transposed(&matrix, 2), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(transposed(&transposed(&matrix, 2), 3), matrix);
    }
}
