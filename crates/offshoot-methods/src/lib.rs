//! The training loop and the methods that make and derive families.

pub mod elastic;
pub mod family;
pub mod language;
pub mod specialize;
pub mod train;
