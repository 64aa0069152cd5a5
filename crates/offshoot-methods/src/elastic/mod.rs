//! Elastic pre-training: one parent and its sub-networks trained at once.

pub mod sampling;
