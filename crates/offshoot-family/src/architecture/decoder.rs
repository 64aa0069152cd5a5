//! Decoder language models by their numbers: GPT-2 and Llama.

use serde::{Deserialize, Serialize};

use super::{ArchitectureError, MOST, epsilon, positive};

/// Which layout of a decoder: what is normalised how, where positions come in, and what the feed-forward layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecoderKind {
    /// LayerNorm, learned positions, GELU (its tanh form), biases, tied embeddings: the paper's SLM and LLM
    /// (specialize.md section 2.1).
    Gpt2,
    /// RMSNorm, rotary positions, SwiGLU, no biases, keys and values that heads may share.
    Llama,
}

/// The numbers of a decoder language model. Zeros in a recipe stand for what is usual.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoder {
    /// Its layout.
    pub kind: DecoderKind,
    /// Channels of the residual stream.
    pub width: usize,
    /// Transformer blocks.
    pub depth: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, each of which serves `heads / kv_heads` heads of queries. 0 in a recipe: as many as `heads`.
    #[serde(default)]
    pub kv_heads: usize,
    /// Channels of one head; scores are scaled by `head_dim^-1/2`. 0 in a recipe: `width / heads`.
    #[serde(default)]
    pub head_dim: usize,
    /// Hidden channels of the feed-forward layer. 0 in a recipe: `4 width`.
    #[serde(default)]
    pub hidden: usize,
    /// Tokens there are. 0 in a recipe: the tokenizer's.
    #[serde(default)]
    pub vocabulary: usize,
    /// Most tokens of one sequence.
    pub context: usize,
    /// Epsilon of every norm.
    pub norm_eps: f64,
    /// Whether the output layer is the embedding.
    #[serde(default = "yes")]
    pub tied: bool,
    /// Base of the rotary frequencies; only for Llama.
    #[serde(default = "usual_theta")]
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched for longer contexts than those of training; only for Llama.
    #[serde(default)]
    pub rope_scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3's: low frequencies divided by a factor, high ones kept, those between blended.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths longer than `original_context / low_freq_factor` are stretched whole.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context of training.
        original_context: usize,
    },
}

fn yes() -> bool {
    true
}

fn usual_theta() -> f64 {
    1e4
}

impl Decoder {
    /// The same with what is usual in place of zeros. The vocabulary is left alone.
    #[must_use]
    pub fn filled(mut self) -> Self {
        if self.kv_heads == 0 {
            self.kv_heads = self.heads;
        }
        if self.head_dim == 0 && self.heads > 0 {
            self.head_dim = self.width / self.heads;
        }
        if self.hidden == 0 {
            self.hidden = self.width.saturating_mul(4);
        }
        self
    }

    /// Checks that the numbers make a network, and one that transformers opens as `GPT2LMHeadModel` or `LlamaForCausalLM`.
    ///
    /// # Errors
    /// Names the first number that does not fit the others.
    pub fn check(&self) -> Result<(), ArchitectureError> {
        positive(&[
            ("width", self.width),
            ("depth", self.depth),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("hidden", self.hidden),
            ("context", self.context),
        ])?;
        let vocabulary = self.vocabulary;
        if !(2..=16 * MOST).contains(&vocabulary) {
            let reason = format!("must lie between 2 and {}", 16 * MOST);
            return Err(ArchitectureError::new("vocabulary", vocabulary, reason));
        }
        if self.context < 2 {
            let reason = "must be at least 2: one token to read and one to predict";
            return Err(ArchitectureError::new("context", self.context, reason));
        }
        epsilon(self.norm_eps)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            let reason = format!("must divide the {} heads of queries", self.heads);
            return Err(ArchitectureError::new("kv_heads", self.kv_heads, reason));
        }
        match self.kind {
            DecoderKind::Gpt2 => self.check_gpt2(),
            DecoderKind::Llama => self.check_llama(),
        }
    }

    fn check_gpt2(&self) -> Result<(), ArchitectureError> {
        if self.heads.checked_mul(self.head_dim) != Some(self.width) {
            let reason = format!(
                "must be {} heads of {} channels: GPT-2 has no other",
                self.heads, self.head_dim
            );
            return Err(ArchitectureError::new("width", self.width, reason));
        }
        if self.kv_heads != self.heads {
            let reason = format!("must be the {} of the queries: GPT-2 shares none", self.heads);
            return Err(ArchitectureError::new("kv_heads", self.kv_heads, reason));
        }
        if !self.tied {
            return Err(ArchitectureError::new(
                "tied",
                false,
                "GPT-2's output layer is its embedding",
            ));
        }
        if self.rope_scaling != RopeScaling::None {
            return Err(ArchitectureError::new(
                "rope_scaling",
                "given",
                "GPT-2 has learned positions",
            ));
        }
        Ok(())
    }

    fn check_llama(&self) -> Result<(), ArchitectureError> {
        if !self.head_dim.is_multiple_of(2) {
            let reason = "must be even: rotary positions turn pairs of channels";
            return Err(ArchitectureError::new("head_dim", self.head_dim, reason));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(ArchitectureError::new("rope_theta", self.rope_theta, "must be above 0"));
        }
        let above = |name, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(ArchitectureError::new(name, value, "must be above 0"))
        };
        match self.rope_scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => above("rope_scaling.factor", factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                above("rope_scaling.factor", factor)?;
                above("rope_scaling.low_freq_factor", low_freq_factor)?;
                positive(&[("rope_scaling.original_context", original_context)])?;
                if high_freq_factor > low_freq_factor && high_freq_factor.is_finite() {
                    return Ok(());
                }
                let reason = format!("must be above the low_freq_factor {low_freq_factor}");
                Err(ArchitectureError::new(
                    "rope_scaling.high_freq_factor",
                    high_freq_factor,
                    reason,
                ))
            }
        }
    }

    /// Numbers of a packed row of queries, keys and values.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Angle a position of each pair of a head's channels, `[head_dim / 2]`: `theta^(-2 i / head_dim)`, stretched by the rule.
    /// In single precision, as transformers has them.
    pub fn frequencies(&self) -> Vec<f32> {
        let dim = self.head_dim as f32;
        let theta = self.rope_theta as f32;
        let plain = (0..self.head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / dim));
        match self.rope_scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => plain
                .map(|f| {
                    let turns = original_context as f64 * f64::from(f) / std::f64::consts::TAU;
                    let slow = f64::from(f) / factor;
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    ((1.0 - kept) * slow + kept * f64::from(f)) as f32
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Decoder {
        Decoder {
            kind: DecoderKind::Llama,
            width: 576,
            depth: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            hidden: 1536,
            vocabulary: 49_152,
            context: 8192,
            norm_eps: 1e-5,
            tied: true,
            rope_theta: 1e5,
            rope_scaling: RopeScaling::None,
        }
    }

    #[test]
    fn zeros_are_filled_with_what_is_usual() {
        let open = Decoder {
            kind: DecoderKind::Gpt2,
            kv_heads: 0,
            head_dim: 0,
            hidden: 0,
            ..llama()
        };
        let filled = open.filled();
        assert_eq!((filled.kv_heads, filled.head_dim, filled.hidden), (9, 64, 2304));
        assert!(filled.check().is_ok());
    }

    #[test]
    fn numbers_that_no_program_opens_are_refused_by_name() {
        assert!(llama().check().is_ok());
        let refused = |change: fn(&mut Decoder)| {
            let mut decoder = llama();
            change(&mut decoder);
            decoder.check().unwrap_err().name
        };
        assert_eq!(refused(|d| d.kv_heads = 2), "kv_heads");
        assert_eq!(refused(|d| d.head_dim = 63), "head_dim");
        assert_eq!(refused(|d| d.vocabulary = 1), "vocabulary");
        assert_eq!(refused(|d| d.context = 1), "context");
        assert_eq!(refused(|d| d.depth = 0), "depth");
        assert_eq!(refused(|d| d.rope_theta = -1.0), "rope_theta");
        assert_eq!(
            refused(|d| d.rope_scaling = RopeScaling::Linear { factor: 0.0 }),
            "rope_scaling.factor"
        );
        let gpt2 = |change: fn(&mut Decoder)| {
            let mut decoder = Decoder {
                kind: DecoderKind::Gpt2,
                kv_heads: 9,
                ..llama()
            };
            change(&mut decoder);
            decoder.check().unwrap_err().name
        };
        assert_eq!(gpt2(|d| d.width = 512), "width");
        assert_eq!(gpt2(|d| d.kv_heads = 3), "kv_heads");
        assert_eq!(gpt2(|d| d.tied = false), "tied");
    }

    /// transformers 5.23, `LlamaRotaryEmbedding` and `_compute_llama3_parameters` of the numbers of Llama 3.2 with 8 channels.
    #[test]
    fn frequencies_are_transformers() {
        let eight = |rope_scaling| Decoder {
            head_dim: 8,
            rope_theta: 500_000.0,
            rope_scaling,
            ..llama()
        };
        let close = |found: Vec<f32>, expected: [f32; 4]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-6 * expected, "{found} for {expected}");
            }
        };
        close(
            eight(RopeScaling::None).frequencies(),
            [1.0, 0.037_606_03, 0.001_414_213_4, 5.318_295_7e-5],
        );
        close(
            eight(RopeScaling::Linear { factor: 4.0 }).frequencies(),
            [0.25, 0.009_401_508, 0.000_353_553_36, 1.329_573_9e-5],
        );
        let llama3 = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        close(
            eight(llama3).frequencies(),
            [1.0, 0.037_606_03, 0.000_429_556_7, 1.661_967_4e-6],
        );
    }
}
