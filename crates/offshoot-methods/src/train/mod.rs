//! The training loop: schedules, logs and checkpoints.

pub mod events;
pub mod metrics;
pub mod schedule;
