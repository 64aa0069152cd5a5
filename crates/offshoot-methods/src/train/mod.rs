//! The training loop: runs, schedules, the optimizer, logs, checkpoints and exact resume, for every method that trains.

pub mod error;
pub mod events;
pub mod metrics;
pub mod optimizer;
pub mod run;
pub mod schedule;
pub mod state;
pub mod trainer;
