//! What can be typed after `offshoot plan`.

use std::path::PathBuf;

use clap::Args;

use super::Compute;

/// `offshoot plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// Most parameters of the model that is used, such as 126M.
    #[arg(long, value_name = "COUNT", help_heading = "Budget")]
    pub inference: String,
    /// Hours for one domain, once it is known: 0.5, 30min, 130h, 3d.
    #[arg(long, value_name = "HOURS", allow_hyphen_values = true, help_heading = "Budget")]
    pub specialization_hours: String,
    /// Hours for pretraining before the domains are known, for all of them together; 0 for none.
    #[arg(long, value_name = "HOURS", allow_hyphen_values = true, help_heading = "Budget")]
    pub pretraining_hours: String,
    /// Tokens of one domain's text, such as 1M.
    #[arg(long, value_name = "COUNT", help_heading = "Budget")]
    pub tokens: String,
    /// Domains that a model is wanted for.
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Budget")]
    pub domains: String,
    /// What tokens cost, and what hours are of: `paper` for an A100 by the paper's tables, `calibrate` for this machine, which is timed for
    /// up to a minute, or a file.
    #[arg(
        long,
        value_name = "paper | calibrate | FILE",
        default_value = "calibrate",
        help_heading = "Costs"
    )]
    pub costs: String,
    /// Write the costs to this file, for --costs.
    #[arg(long, value_name = "TOML", help_heading = "Costs")]
    pub save_costs: Option<PathBuf>,
    /// Parameters of the small model to calibrate for; all that --inference allows without it, and 126M where a large one is allowed.
    #[arg(long, value_name = "COUNT", help_heading = "Costs")]
    pub small: Option<String>,
    /// Parameters of the large one; as in the paper 6.1 times those of the small one without it.
    #[arg(long, value_name = "COUNT", help_heading = "Costs")]
    pub large: Option<String>,
    /// Write a page with pictures of the trade-off.
    #[arg(short, long, value_name = "HTML")]
    pub out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub compute: Compute,
}
