//! Families of networks by name and numbers, as plain data; what they compute is the zoo's business.

use serde::{Deserialize, Serialize};

/// A network by family name and numbers. The zoo has one module per variant and is the only place that tells them apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Architecture {
    /// A pre-norm vision transformer with LayerScale: the layout of Hugging Face's `Dinov2Model`.
    Vit(Vit),
}

/// The numbers of a vision transformer (POA section 3.1; DINOv2's layout).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vit {
    /// Channels of the residual stream; a whole number of heads.
    pub width: usize,
    /// Transformer blocks.
    pub depth: usize,
    /// Channels of one attention head; the attention scale is `head_dim^-1/2`.
    pub head_dim: usize,
    /// Hidden channels of the feed-forward layer over `width`.
    pub mlp_ratio: usize,
    /// Side of a square patch, in pixels.
    pub patch: usize,
    /// Native side of a square image, in pixels: the grid of the learned positions.
    pub image: usize,
    /// Image channels: 1 (grey) or 3 (colour).
    pub channels: usize,
    /// Added to the output side when positions are resampled: 0.1 for DINO's training crops, 0 for imported and exported
    /// models (transformers' rule).
    pub position_offset: f64,
    /// Epsilon of every LayerNorm.
    pub norm_eps: f64,
}

/// Why an architecture's numbers do not make a network.
#[derive(Debug, thiserror::Error)]
#[error("{name} = {value}: {reason}")]
pub struct ArchitectureError {
    /// The number at fault.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it and what would do.
    pub reason: String,
}

impl Vit {
    /// Attention heads of every block.
    pub fn heads(&self) -> usize {
        self.width / self.head_dim
    }

    /// Side of the patch grid at the native image size.
    pub fn grid(&self) -> usize {
        self.image / self.patch
    }

    /// Patches of a native image, without the class token.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Checks that the numbers make a network.
    ///
    /// # Errors
    /// Names the first number that does not fit the others.
    pub fn check(&self) -> Result<(), ArchitectureError> {
        let fail = |name, value: usize, reason: String| {
            Err(ArchitectureError {
                name,
                value: value.to_string(),
                reason,
            })
        };
        for (name, value) in [
            ("width", self.width),
            ("depth", self.depth),
            ("head_dim", self.head_dim),
            ("mlp_ratio", self.mlp_ratio),
            ("patch", self.patch),
            ("image", self.image),
        ] {
            if value == 0 || value > 1 << 20 {
                return fail(name, value, "must lie between 1 and 1048576".into());
            }
        }
        if !self.width.is_multiple_of(self.head_dim) {
            return fail(
                "width",
                self.width,
                format!("must be a whole number of heads of {} channels", self.head_dim),
            );
        }
        if !self.image.is_multiple_of(self.patch) {
            let below = (self.image / self.patch).max(1) * self.patch;
            let reason = format!(
                "must be a multiple of the patch {}; the nearest are {below} and {}",
                self.patch,
                below + self.patch
            );
            return fail("image", self.image, reason);
        }
        if self.channels != 1 && self.channels != 3 {
            return fail("channels", self.channels, "must be 1 (grey) or 3 (colour)".into());
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(ArchitectureError {
                name: "norm_eps",
                value: self.norm_eps.to_string(),
                reason: "must lie between 0 and 1".into(),
            });
        }
        Ok(())
    }
}
