//! Small language models for domains under budgets ("Need a Small Specialized Language Model? Plan Early!", arXiv 2402.01093 v2).

pub mod costs;
pub mod plan;
pub mod published;
