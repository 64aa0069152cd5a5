//! What tokens cost in hours: the paper's tables, a measurement of this machine, or a file.

use serde::{Deserialize, Serialize};
use toml::Table;

use super::published::SETS;

/// Tokens that a rate of hours is for.
pub const BILLION: f64 = 1e9;

/// Largest costs file that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 16;

/// Hours for a billion tokens, of each kind of network and phase, on one kind of machine.
///
/// The paper counts hours of one device, whatever their number; so does whoever writes such a table, and budgets are in the same hours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Where the numbers are from.
    pub source: String,
    /// What an hour is of: `GPU-hours of an A100`.
    pub unit: String,
    /// Hours to embed and cluster a billion generic tokens; 0 where it is not counted, as in the paper.
    pub clustering: f64,
    /// The small model, which fits the inference budget.
    pub small: Dense,
    /// The large model, the small one's teacher and rival.
    pub large: Dense,
    /// The projected network that small experts come out of (SLM-pn).
    pub projected: Experts,
    /// The hard mixture of small experts (SLM-mix).
    pub mixture: Experts,
    /// Hours of tuning on one domain; in a file that has none, the paper's tokens at this table's rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning: Option<Tuning>,
}

/// A plain network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dense {
    /// Parameters.
    pub parameters: u64,
    /// Hours to train on a billion tokens.
    pub training: f64,
    /// Hours to run over a billion tokens.
    pub inference: f64,
}

/// Many small experts in pretraining, of which one is tuned and used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Parameters of all of them together, or of what they are projected from.
    pub parameters: u64,
    /// Experts, one a cluster.
    pub experts: u64,
    /// Hours to train all of them on a billion tokens together, each on its share.
    pub training: f64,
}

/// Hours of tuning on the specialization set of one domain, of each size in [`SETS`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// The small model.
    pub small: [f64; 3],
    /// The large model.
    pub large: [f64; 3],
    /// The small model with the large one as its teacher, the teacher's own tuning included.
    pub distilled: [f64; 3],
}

/// Table 3's limits of tuning, in GPU-hours. Its 0.02 of a small model and 1M tokens is 0.017: one GPU-minute, as section 4 has it.
const PAPER_TUNING: Tuning = Tuning {
    small: [0.017, 0.07, 0.5],
    large: [0.12, 0.5, 3.5],
    distilled: [0.7, 2.8, 21.0],
};

/// Floating-point operations a parameter and token of a forward pass; training takes three times as many.
const FORWARD_FLOPS: f64 = 2.0;

/// Floating-point operations to embed one token of a corpus: a sentence encoder of 6 layers of width 384 (11.8M multiply-adds a token with
/// its attention over 256 tokens), which reads the first 256 of every 1,024. k-means adds under a thousandth.
const EMBEDDING_FLOPS: f64 = 2.0 * 11.8e6 * 256.0 / 1024.0;

/// What was measured on a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The machine, in words.
    pub machine: String,
    /// Parameters of the decoder that was timed.
    pub parameters: u64,
    /// Floating-point operations of training, a second.
    pub training_flops: f64,
    /// Floating-point operations of a forward pass, a second.
    pub forward_flops: f64,
}

/// Why a table of costs cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {reason}")]
pub struct CostsError {
    /// The file.
    pub origin: String,
    /// What is wrong, with the key.
    pub reason: String,
}

impl CostsError {
    /// How to come by a table that works.
    pub fn hint(&self) -> Option<String> {
        Some(
            "`offshoot plan --costs calibrate --save-costs FILE ...` measures this machine and writes such a file; docs/specialize.md lists its \
             keys"
                .into(),
        )
    }
}

impl Costs {
    /// The paper's: tables 1, 2 and 3 of arXiv 2402.01093 v2, one A100. Inference of small models is 0.61 whatever made them.
    pub fn paper() -> Self {
        Self {
            source: "tables 1, 2 and 3 of arXiv 2402.01093 v2".into(),
            unit: "GPU-hours of an A100".into(),
            clustering: 0.0,
            small: Dense {
                parameters: 126_000_000,
                training: 2.2,
                inference: 0.61,
            },
            large: Dense {
                parameters: 771_000_000,
                training: 7.7,
                inference: 2.54,
            },
            projected: Experts {
                parameters: 1_422_000_000,
                experts: 32,
                training: 3.6,
            },
            mixture: Experts {
                parameters: 2_016_000_000,
                experts: 16,
                training: 2.2,
            },
            tuning: Some(PAPER_TUNING),
        }
    }

    /// Those of a machine, for a small model of `small` parameters and a large one of `large`, extrapolated from what was measured by
    /// floating-point operations. That a projected network takes 3.6 / 2.2 of a plain one's time is the paper's, who measured it on eight
    /// GPUs; its size and the number of experts are the paper's in proportion.
    pub fn calibrated(measured: &Measured, small: u64, large: u64) -> Self {
        let paper = Self::paper();
        let hours = |parameters: u64, passes: f64, rate: f64| {
            passes * FORWARD_FLOPS * parameters as f64 * BILLION / rate / 3600.0
        };
        let dense = |parameters| Dense {
            parameters,
            training: hours(parameters, 3.0, measured.training_flops),
            inference: hours(parameters, 1.0, measured.forward_flops),
        };
        let experts = |of: Experts| Experts {
            parameters: (of.parameters as f64 / paper.small.parameters as f64 * small as f64) as u64,
            experts: of.experts,
            training: of.training / paper.small.training * dense(small).training,
        };
        Self {
            source: format!(
                "training steps and forward passes of a decoder of {:.1}M parameters, timed on {}, in proportion to floating-point operations",
                measured.parameters as f64 / 1e6,
                measured.machine
            ),
            unit: "hours of this machine".into(),
            clustering: EMBEDDING_FLOPS * BILLION / measured.forward_flops / 3600.0,
            small: dense(small),
            large: dense(large),
            projected: experts(paper.projected),
            mixture: experts(paper.mixture),
            tuning: None,
        }
    }

    /// Reads a table from TOML; `origin` is where the text is from, for messages.
    ///
    /// # Errors
    /// Names every key that is missing, else the first that is unknown or has a value that cannot be.
    pub fn parse(text: &str, origin: &str) -> Result<Self, CostsError> {
        let fail = |reason: String| CostsError {
            origin: origin.into(),
            reason,
        };
        let table: Table = toml::from_str(text).map_err(|e| fail(format!("not TOML: {}", e.message())))?;
        let missing = missing(&table);
        if !missing.is_empty() {
            let keys = if missing.len() == 1 { "key is" } else { "keys are" };
            return Err(fail(format!(
                "{} {keys} missing: {}",
                missing.len(),
                missing.join(", ")
            )));
        }
        let costs: Self = toml::from_str(text).map_err(|e| {
            let line = e
                .span()
                .map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count())
                + 1;
            fail(format!("line {line}: {}", e.message()))
        })?;
        costs.check().map_err(fail)?;
        Ok(costs)
    }

    /// The table as TOML, as [`Costs::parse`] reads it.
    ///
    /// # Errors
    /// If it holds a number that TOML cannot.
    pub fn to_toml(&self) -> Result<String, CostsError> {
        let text = toml::to_string(self);
        text.map(|text| format!("{}\n", text.trim_end()))
            .map_err(|e| CostsError {
                origin: self.source.clone(),
                reason: e.to_string(),
            })
    }

    /// Every number is one that a machine could have.
    fn check(&self) -> Result<(), String> {
        let rates = [
            ("small.training", self.small.training),
            ("small.inference", self.small.inference),
            ("large.training", self.large.training),
            ("large.inference", self.large.inference),
            ("projected.training", self.projected.training),
            ("mixture.training", self.mixture.training),
        ];
        let tuning = self.tuning.iter().flat_map(|t| {
            let of = |key, hours: [f64; 3]| hours.map(|hours| (key, hours));
            [
                of("tuning.small", t.small),
                of("tuning.large", t.large),
                of("tuning.distilled", t.distilled),
            ]
            .concat()
        });
        for (key, hours) in rates.into_iter().chain(tuning) {
            if !(hours.is_finite() && hours > 0.0 && hours < 1e15) {
                return Err(format!("`{key}` is {hours}; hours must be above 0 and below 1e15"));
            }
        }
        if !(self.clustering.is_finite() && (0.0..1e15).contains(&self.clustering)) {
            return Err(format!(
                "`clustering` is {}; hours must be 0 or more and below 1e15",
                self.clustering
            ));
        }
        for (key, count) in [
            ("small.parameters", self.small.parameters),
            ("projected.parameters", self.projected.parameters),
            ("projected.experts", self.projected.experts),
            ("mixture.parameters", self.mixture.parameters),
            ("mixture.experts", self.mixture.experts),
        ] {
            if count == 0 {
                return Err(format!("`{key}` is 0"));
            }
        }
        if self.large.parameters <= self.small.parameters {
            return Err(format!(
                "`large.parameters` is {}, and must be more than `small.parameters`, {}",
                self.large.parameters, self.small.parameters
            ));
        }
        Ok(())
    }

    /// Hours of tuning on [`SETS`]: as given, or the paper's tokens at this table's rates.
    pub fn tuning(&self) -> Tuning {
        let paper = Self::paper();
        let times = |hours: [f64; 3], factor: f64| hours.map(|hours| hours * factor);
        let small = self.small.training / paper.small.training;
        self.tuning.unwrap_or(Tuning {
            small: times(PAPER_TUNING.small, small),
            large: times(PAPER_TUNING.large, self.large.training / paper.large.training),
            distilled: times(PAPER_TUNING.distilled, small),
        })
    }
}

/// Hours at `tokens` tokens, of hours at [`SETS`]: on straight lines over both logarithms inside, and beyond the ends in proportion, as so many
/// passes.
pub fn at_tokens(hours: [f64; 3], tokens: f64) -> f64 {
    let last = SETS.len() - 1;
    if tokens <= SETS[0] {
        return hours[0] * tokens / SETS[0];
    }
    if tokens >= SETS[last] {
        return hours[last] * tokens / SETS[last];
    }
    let i = SETS.partition_point(|&set| set <= tokens) - 1;
    let share = (tokens / SETS[i]).ln() / (SETS[i + 1] / SETS[i]).ln();
    hours[i] * (hours[i + 1] / hours[i]).powf(share)
}

/// The keys that a table must have and does not, from the root, with dots.
fn missing(table: &Table) -> Vec<String> {
    const DENSE: &[&str] = &["parameters", "training", "inference"];
    const EXPERTS: &[&str] = &["parameters", "experts", "training"];
    let sections = [
        ("small", DENSE),
        ("large", DENSE),
        ("projected", EXPERTS),
        ("mixture", EXPERTS),
    ];
    let roots = ["source", "unit", "clustering"];
    let absent = roots
        .into_iter()
        .filter(|key| !table.contains_key(*key))
        .map(str::to_owned);
    let inner = sections.into_iter().flat_map(|(section, keys)| {
        let found = table.get(section);
        keys.iter()
            .filter(move |key| found.is_none_or(|found| found.is_table() && found.get(key).is_none()))
            .map(move |key| format!("{section}.{key}"))
    });
    absent.chain(inner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back_and_says_what_is_missing() {
        let paper = Costs::paper();
        let text = paper.to_toml().unwrap();
        assert_eq!(Costs::parse(&text, "costs.toml").unwrap(), paper);
        for (from, to, said) in [
            ("unit = ", "units = ", "1 key is missing: unit"),
            (
                "[large]",
                "[huge]",
                "3 keys are missing: large.parameters, large.training, large.inference",
            ),
            ("clustering = 0.0", "clustering = -1.0", "`clustering` is -1"),
            ("training = 3.6", "training = 0.0", "`projected.training` is 0"),
            ("training = 3.6", "training = nan", "`projected.training` is NaN"),
            ("training = 3.6", "training = \"fast\"", "line "),
            ("experts = 32", "experts = 32\ncolour = 1", "colour"),
            ("experts = 32", "experts = 0", "`projected.experts` is 0"),
            (
                "parameters = 771000000",
                "parameters = 1000",
                "`large.parameters` is 1000",
            ),
            ("parameters = 771000000", "parameters = -5", "line "),
            ("[small]", "[small", "not TOML"),
        ] {
            assert!(text.contains(from), "{from}");
            let error = Costs::parse(&text.replacen(from, to, 1), "costs.toml").unwrap_err();
            assert!(
                error.to_string().starts_with("costs.toml: ") && error.reason.contains(said),
                "{to}: {error}"
            );
            assert!(error.hint().is_some_and(|hint| hint.contains("--save-costs")));
        }
        assert!(
            Costs::parse("", "x")
                .unwrap_err()
                .reason
                .starts_with("15 keys are missing")
        );
    }

    #[test]
    fn tuning_follows_the_papers_sets_and_is_passes_beyond_them() {
        let small = Costs::paper().tuning().small;
        assert_eq!(SETS.map(|tokens| at_tokens(small, tokens)), [0.017, 0.07, 0.5]);
        assert!((at_tokens(small, 1e5) - 0.0017).abs() < 1e-12 && (at_tokens(small, 128e6) - 1.0).abs() < 1e-12);
        let middle = at_tokens(small, 3e6);
        assert!(middle > 0.017 && middle < 0.07);
    }

    /// A machine that trains the small model at 92 TFLOP/s is about the paper's: 2.2 hours a billion tokens, by 6 operations a parameter.
    #[test]
    fn a_machine_is_extrapolated_by_operations() {
        let measured = Measured {
            machine: "a machine".into(),
            parameters: 5_000_000,
            training_flops: 95.45e12,
            forward_flops: 100e12,
        };
        let costs = Costs::calibrated(&measured, 126_000_000, 771_000_000);
        assert!((costs.small.training - 2.2).abs() < 0.01, "{costs:?}");
        assert!((costs.small.inference - 0.7).abs() < 1e-9);
        assert!((costs.large.training / costs.small.training - 771.0 / 126.0).abs() < 1e-9);
        assert!((costs.projected.training / costs.small.training - 3.6 / 2.2).abs() < 1e-9);
        assert_eq!(
            (costs.projected.parameters, costs.mixture.parameters),
            (1_422_000_000, 2_016_000_000)
        );
        assert!((costs.tuning().small[1] - 0.07).abs() < 1e-3 && costs.clustering < 0.02 * costs.small.training);
        assert_eq!(Costs::parse(&costs.to_toml().unwrap(), "x").unwrap(), costs);
    }
}
