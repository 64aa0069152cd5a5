//! Elastic pre-training (POA, Ant Group, ECCV 2024): one self-supervised run trains a parent and every sub-network of its space.
//!
//! A teacher, an intact student and an elastic student see the same images. The elastic student is a *view* of the intact
//! one, drawn anew at every step; the teacher is the average of the intact student and becomes the parent of the family.

pub mod cost;
pub mod heads;
pub mod losses;
pub mod pretrain;
pub mod recipe;
pub mod sampling;
pub mod step;
