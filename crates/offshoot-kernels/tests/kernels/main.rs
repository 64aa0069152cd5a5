//! The operations as users of the crate see them, against plain loops in float64.

mod gradients;
mod numbers;
mod reference;
mod results;
mod wiring;
