//! Small language models for domains under budgets ("Need a Small Specialized Language Model? Plan Early!", arXiv 2402.01093 v2): clusters
//! of a generic corpus, how they are drawn from, and which way is worth it.

pub mod cluster;
pub mod costs;
pub mod histogram;
pub mod plan;
pub mod published;
pub mod resample;
