//! The limits a user states (parameters, bytes, multiply-adds, milliseconds), how they are written, and the best child
//! within them.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Child};
use crate::quantity::grouped;
use crate::scorecard::{self, Split, written};

/// Limits that a child must keep; none where a field is none. A child exactly at a limit keeps it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Most parameters.
    pub parameters: Option<u64>,
    /// Most bytes of the exported fp32 weights file.
    pub bytes: Option<u64>,
    /// Most multiply-adds of one image at native size, or of one token of text.
    pub macs: Option<u64>,
    /// Most milliseconds for one image, or one token of text, measured on this machine.
    pub milliseconds: Option<f64>,
}

impl Budget {
    /// Whether no limit is stated, so that every child keeps it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Every limit that `child` breaks, with both numbers. A child whose latency was not measured breaks a limit of
    /// milliseconds.
    pub fn excesses(&self, child: &Child) -> Vec<Excess> {
        let over = |limit: Option<u64>, actual: u64| limit.filter(|&limit| actual > limit).map(|limit| (actual, limit));
        let mut excesses = Vec::new();
        if let Some((actual, limit)) = over(self.parameters, child.parameters) {
            excesses.push(Excess::Parameters { actual, limit });
        }
        if let Some((actual, limit)) = over(self.bytes, child.bytes) {
            excesses.push(Excess::Bytes { actual, limit });
        }
        if let Some((actual, limit)) = over(self.macs, child.macs) {
            excesses.push(Excess::Macs { actual, limit });
        }
        if let Some(limit) = self.milliseconds {
            let actual = child.latency_ms().filter(|ms| !ms.is_nan());
            if actual.is_none_or(|ms| ms > limit) {
                excesses.push(Excess::Milliseconds { actual, limit });
            }
        }
        excesses
    }

    /// Which limits `child` breaks, in words with both numbers; none if it keeps them all. A child whose latency was not
    /// measured breaks a limit of milliseconds.
    pub fn broken_by(&self, child: &Child) -> Option<String> {
        let excesses = self.excesses(child);
        (!excesses.is_empty()).then(|| joined(&excesses))
    }
}

/// One limit that a child breaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Excess {
    /// Too many parameters.
    Parameters {
        /// The child's.
        actual: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Too many bytes of exported fp32 weights.
    Bytes {
        /// The child's.
        actual: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Too many multiply-adds of one image.
    Macs {
        /// The child's.
        actual: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Too many milliseconds for one image, or nobody measured how many.
    Milliseconds {
        /// The child's; none if it was not measured.
        actual: Option<f64>,
        /// The most allowed.
        limit: f64,
    },
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counted = |actual: u64, limit: u64, unit: &str| {
            write!(
                f,
                "{} {unit}, {} over the limit of {}",
                grouped(actual),
                grouped(actual - limit),
                grouped(limit)
            )
        };
        match *self {
            Self::Parameters { actual, limit } => counted(actual, limit.min(actual), "parameters"),
            Self::Bytes { actual, limit } => counted(actual, limit.min(actual), "bytes"),
            Self::Macs { actual, limit } => counted(actual, limit.min(actual), "multiply-adds"),
            Self::Milliseconds { actual: None, limit } => write!(f, "latency not measured, the limit is {limit} ms"),
            Self::Milliseconds {
                actual: Some(actual),
                limit,
            } => {
                // Three decimals, unless they would hide the difference.
                let rounded = (actual * 1000.0).round() / 1000.0;
                let shown = if rounded > limit { rounded } else { actual };
                write!(f, "{shown} ms, over the limit of {limit} ms")
            }
        }
    }
}

fn joined(excesses: &[Excess]) -> String {
    excesses.iter().map(Excess::to_string).collect::<Vec<_>>().join("; ")
}

/// Why a child was not picked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// It keeps the budget and another scores better.
    LowerScore {
        /// What was measured.
        metric: String,
        /// The child's score.
        score: f64,
        /// The chosen one's score.
        best: f64,
    },
    /// It keeps the budget, scores the same as the chosen one and has more parameters, or as many and a later id.
    Tied {
        /// The score of both.
        score: f64,
        /// The child's parameters.
        parameters: u64,
        /// The chosen one's parameters.
        chosen: u64,
    },
    /// It keeps the budget, and the metric was not measured on that part of the data (or is not a number).
    NotMeasured {
        /// The metric asked for.
        metric: String,
        /// The part of the data asked for.
        split: Split,
    },
    /// It breaks these limits.
    OverBudget(Vec<Excess>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LowerScore { metric, score, best } => {
                // As scores are written, unless that would hide the difference.
                let short = (written(metric, *score), written(metric, *best));
                if short.0 == short.1 {
                    write!(f, "scores {score}, the best scores {best}")
                } else {
                    write!(f, "scores {}, the best scores {}", short.0, short.1)
                }
            }
            Self::Tied { parameters, chosen, .. } if parameters == chosen => {
                f.write_str("same score and as many parameters; the first id was taken")
            }
            Self::Tied { parameters, chosen, .. } => {
                let (more, fewer) = (grouped(*parameters), grouped(*chosen));
                write!(f, "same score with {more} parameters instead of {fewer}")
            }
            Self::NotMeasured { metric, split } => write!(f, "{metric} was not measured on {split}"),
            Self::OverBudget(excesses) => f.write_str(&joined(excesses)),
        }
    }
}

/// The outcome of [`pick`].
#[derive(Clone, Debug, PartialEq)]
pub struct Pick<'a> {
    /// The best measured child within the budget; none if there is none.
    pub chosen: Option<&'a Child>,
    /// Every other child with why it lost: first the runners-up, best first; then those not measured; then those over the
    /// budget, best first.
    pub losers: Vec<(&'a Child, Reason)>,
}

impl<'a> Pick<'a> {
    /// The children within the budget that were measured and lost, best first.
    pub fn runners_up(&self) -> impl Iterator<Item = &'a Child> + '_ {
        let ran = |reason: &Reason| matches!(reason, Reason::LowerScore { .. } | Reason::Tied { .. });
        self.losers
            .iter()
            .filter(move |(_, reason)| ran(reason))
            .map(|&(child, _)| child)
    }
}

/// The child of `catalog` that keeps `budget` and has the best `metric` on `split`, and why not the others. Of equal
/// scores the one with fewer parameters wins, then the smaller id. A score that is not a number counts as not measured.
pub fn pick<'a>(catalog: &'a Catalog, budget: &Budget, metric: &str, split: Split) -> Pick<'a> {
    let score = |child: &Child| child.score(metric, split).filter(|score| !score.is_nan());
    let merit = |child: &Child| score(child).map(|score| scorecard::merit(metric, score));
    let best_first = |a: &&Child, b: &&Child| {
        // `None` is below every score, so that what was not measured comes last.
        let by_score = merit(b).partial_cmp(&merit(a)).unwrap_or(Ordering::Equal);
        by_score
            .then(a.parameters.cmp(&b.parameters))
            .then_with(|| a.id.cmp(&b.id))
    };
    let mut children: Vec<&Child> = catalog.children.iter().collect();
    children.sort_by(best_first);
    let (within, over): (Vec<&Child>, Vec<&Child>) = children.into_iter().partition(|c| budget.excesses(c).is_empty());
    let mut losers = Vec::with_capacity(catalog.children.len());
    let mut chosen: Option<(&Child, f64)> = None;
    for child in within {
        let reason = match (score(child), chosen) {
            (None, _) => Reason::NotMeasured {
                metric: metric.to_owned(),
                split,
            },
            (Some(score), None) => {
                chosen = Some((child, score));
                continue;
            }
            (Some(score), Some((winner, best))) if score == best => Reason::Tied {
                score,
                parameters: child.parameters,
                chosen: winner.parameters,
            },
            (Some(score), Some((_, best))) => Reason::LowerScore {
                metric: metric.to_owned(),
                score,
                best,
            },
        };
        losers.push((child, reason));
    }
    losers.extend(
        over.into_iter()
            .map(|child| (child, Reason::OverBudget(budget.excesses(child)))),
    );
    Pick {
        chosen: chosen.map(|(child, _)| child),
        losers,
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::architecture::{Architecture, Vit};
    use crate::catalog::{ChildSource, DataRef, FORMAT, ImagesRef, ParentRef, Preprocessing};
    use crate::scorecard::Scorecard;
    use crate::space::Shape;

    fn card(metric: &str, value: f64, split: Option<Split>) -> Scorecard {
        Scorecard {
            metric: metric.into(),
            value,
            split,
            data: None,
            examples: 10,
            seed: 0,
            machine: "test".into(),
            version: "0".into(),
            details: serde_json::Map::new(),
        }
    }

    fn child(width: usize, parameters: u64, scores: &[Scorecard]) -> Child {
        let shape = Shape::new([("width", width)]);
        Child {
            id: shape.id(),
            name: None,
            source: ChildSource::View(format!("views/{width}.json")),
            shape,
            parameters,
            macs: parameters * 200,
            bytes: parameters * 4,
            training_flops_alone: None,
            scorecards: scores.to_vec(),
        }
    }

    fn catalog(children: Vec<Child>) -> Catalog {
        let vit = Vit {
            width: 64,
            depth: 2,
            head_dim: 16,
            mlp_ratio: 4,
            patch: 4,
            image: 32,
            channels: 3,
            position_offset: 0.0,
            layer_scale: 1e-5,
            classes: 0,
            norm_eps: 1e-6,
        };
        Catalog {
            format: FORMAT,
            version: "0".into(),
            method: "elastic".into(),
            seed: 0,
            parent: ParentRef {
                path: "parent".into(),
                hash: String::new(),
                architecture: Architecture::Vit(vit),
            },
            space: None,
            data: DataRef::Images(ImagesRef {
                path: "/data".into(),
                test_path: None,
                labels: true,
                fingerprint: String::new(),
                split_seed: 0,
                val: 0.1,
                test: 0.1,
                preprocessing: Preprocessing {
                    resize: 32,
                    crop: 32,
                    channels: 3,
                    mean: vec![0.5; 3],
                    std: vec![0.5; 3],
                },
            }),
            score: "knn@20".into(),
            cost: None,
            children,
        }
    }

    #[test]
    fn a_budget_names_every_broken_limit_with_both_numbers() {
        let it = child(384, 21_675_264, &[card("latency_ms", 6.2034, None)]);
        assert!(Budget::default().is_empty());
        assert_eq!(Budget::default().broken_by(&it), None);
        let exact = Budget {
            parameters: Some(21_675_264),
            milliseconds: Some(6.2034),
            ..Budget::default()
        };
        assert!(!exact.is_empty());
        assert_eq!(exact.broken_by(&it), None);
        let tight = Budget {
            parameters: Some(5_000_000),
            bytes: Some(20_000_000),
            macs: Some(1),
            milliseconds: Some(5.0),
        };
        assert_eq!(
            tight.broken_by(&it).unwrap(),
            "21,675,264 parameters, 16,675,264 over the limit of 5,000,000; \
             86,701,056 bytes, 66,701,056 over the limit of 20,000,000; \
             4,335,052,800 multiply-adds, 4,335,052,799 over the limit of 1; \
             6.203 ms, over the limit of 5 ms"
        );
        let unmeasured = child(384, 1, &[]);
        assert_eq!(
            tight.broken_by(&unmeasured).unwrap(),
            "200 multiply-adds, 199 over the limit of 1; latency not measured, the limit is 5 ms"
        );
        let close = Budget {
            milliseconds: Some(6.2033),
            ..Budget::default()
        };
        assert_eq!(close.broken_by(&it).unwrap(), "6.2034 ms, over the limit of 6.2033 ms");
    }

    #[test]
    fn pick_orders_the_losers_and_says_why() {
        let knn = |value| card("knn@20", value, Some(Split::Val));
        let family = catalog(vec![
            child(10, 100, &[knn(0.5)]),
            child(20, 200, &[knn(0.8)]),
            child(25, 200, &[knn(0.8)]),
            child(30, 300, &[knn(0.8)]),
            child(40, 400, &[]),
            child(45, 400, &[knn(f64::NAN)]),
            child(48, 450, &[card("knn@20", 0.9, Some(Split::Test))]),
            child(50, 5000, &[knn(0.9)]),
            child(60, 6000, &[knn(0.95)]),
        ]);
        let budget = Budget {
            parameters: Some(1000),
            ..Budget::default()
        };
        let picked = pick(&family, &budget, "knn@20", Split::Val);
        assert_eq!(picked.chosen.unwrap().id, "20");
        let order: Vec<&str> = picked.losers.iter().map(|(c, _)| c.id.as_str()).collect();
        assert_eq!(order, ["25", "30", "10", "40", "45", "48", "60", "50"]);
        let ran: Vec<&str> = picked.runners_up().map(|c| c.id.as_str()).collect();
        assert_eq!(ran, ["25", "30", "10"]);
        let why: Vec<String> = picked.losers.iter().map(|(_, r)| r.to_string()).collect();
        assert_eq!(why[0], "same score and as many parameters; the first id was taken");
        assert_eq!(why[1], "same score with 300 parameters instead of 200");
        assert_eq!(why[2], "scores 0.5000, the best scores 0.8000");
        assert_eq!(why[4], "knn@20 was not measured on val");
        assert_eq!(why[6], "6,000 parameters, 5,000 over the limit of 1,000");
        let close = Reason::LowerScore {
            metric: "knn@20".into(),
            score: 0.800_001,
            best: 0.800_002,
        };
        assert_eq!(close.to_string(), "scores 0.800001, the best scores 0.800002");

        // Of perplexities the least is the best.
        let perplexity = |value| card("perplexity", value, Some(Split::Val));
        let text = catalog(vec![
            child(10, 100, &[perplexity(30.0)]),
            child(20, 200, &[perplexity(20.0)]),
        ]);
        let picked = pick(&text, &budget, "perplexity", Split::Val);
        assert_eq!(picked.chosen.unwrap().id, "20");
        assert_eq!(picked.losers[0].1.to_string(), "scores 30.00, the best scores 20.00");
        let front = text.pareto(|c| Some(c.parameters as f64), |c| c.merit("perplexity", Split::Val));
        assert_eq!(front.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["10", "20"]);

        let none = pick(
            &family,
            &Budget {
                bytes: Some(0),
                ..Budget::default()
            },
            "knn@20",
            Split::Val,
        );
        assert!(none.chosen.is_none());
        assert_eq!(none.losers.len(), family.children.len());
        assert_eq!(
            pick(&catalog(vec![]), &budget, "knn@20", Split::Val),
            Pick {
                chosen: None,
                losers: vec![]
            }
        );
    }
}
