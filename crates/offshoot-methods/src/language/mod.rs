//! Pre-training of decoder language models, alone or as an elastic family: next tokens for the intact network, in-place distillation
//! for sub-networks of it.

pub mod cost;
pub mod pretrain;
pub mod recipe;
pub mod step;
