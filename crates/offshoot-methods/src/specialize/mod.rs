//! Small models for one domain (arXiv 2402.01093 v2): clusters of a generic corpus, and how they are drawn from.

pub mod cluster;
pub mod histogram;
pub mod resample;
