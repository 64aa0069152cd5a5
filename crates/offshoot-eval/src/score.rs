//! Results as scorecards: each number with what it was measured on and how.

use offshoot_family::{Scorecard, Split};
use serde_json::{Map, Value, json};

use crate::agreement::Agreement;
use crate::knn::Knn;
use crate::latency::Latency;
use crate::linear::LinearProbe;

/// Where numbers come from: what a scorecard says beside metric, value and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Provenance {
    /// The part of the data that was scored.
    pub split: Split,
    /// Fingerprint of the data.
    pub data: String,
    /// Seed of whatever is random in the measurement.
    pub seed: u64,
    /// CPU or GPU, threads, and kernel path.
    pub machine: String,
    /// Version of offshoot.
    pub version: String,
}

impl Provenance {
    /// One scorecard for each k: `knn@10`, `knn@20`, ... by the k that was asked for; `k` in the details is how many voted.
    pub fn knn(&self, knn: &Knn) -> Vec<Scorecard> {
        let card = |score: &crate::knn::KnnScore| {
            let how = json!({
                "k": score.used,
                "temperature": knn.temperature,
                "references": knn.references,
                "classes": knn.classes,
                "similarity": "cosine of CLS",
            });
            self.scorecard(format!("knn@{}", score.k), score.accuracy, knn.queries, how)
        };
        knn.scores.iter().map(card).collect()
    }

    /// `agreement@20` for 20 neighbours asked for; `k` in the details is how many were compared, `chance` what unrelated
    /// features would reach.
    pub fn agreement(&self, agreement: &Agreement) -> Scorecard {
        let how = json!({ "k": agreement.used, "chance": agreement.chance(), "similarity": "cosine of CLS" });
        self.scorecard(
            format!("agreement@{}", agreement.k),
            agreement.value,
            agreement.images,
            how,
        )
    }

    /// `linear`, with every cell of the grid and the best one.
    pub fn linear(&self, probe: &LinearProbe) -> Scorecard {
        let cell = |cell: &crate::linear::Cell| json!({ "input": cell.input.name(), "learning_rate": cell.learning_rate, "accuracy": cell.accuracy });
        let how = json!({
            "input": probe.best_setting.input.name(),
            "learning_rate": probe.best_setting.learning_rate,
            "references": probe.train,
            "classes": probe.classes,
            "epochs": probe.settings.epochs,
            "batch": probe.settings.batch,
            "steps": probe.steps,
            "grid": probe.grid.iter().map(cell).collect::<Vec<_>>(),
        });
        let card = self.scorecard("linear".into(), probe.best, probe.val, how);
        Scorecard {
            seed: probe.settings.seed,
            ..card
        }
    }

    /// `latency_ms`: the median, without split and data, over as many examples as runs were timed.
    pub fn latency(&self, latency: &Latency) -> Scorecard {
        let how = json!({ "min_ms": latency.min_ms, "repeats": latency.repeats, "statistic": "median", "batch": 1 });
        let card = self.scorecard("latency_ms".into(), latency.median_ms, latency.repeats, how);
        Scorecard {
            split: None,
            data: None,
            ..card
        }
    }

    fn scorecard(&self, metric: String, value: f64, examples: usize, how: Value) -> Scorecard {
        let details = match how {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        Scorecard {
            metric,
            value,
            split: Some(self.split),
            data: Some(self.data.clone()),
            examples,
            seed: self.seed,
            machine: self.machine.clone(),
            version: self.version.clone(),
            details,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knn::KnnScore;
    use crate::linear::{Cell, Input, ProbeSettings};

    fn provenance() -> Provenance {
        let (machine, version) = ("cpu, 2 threads".to_owned(), "0.1.0".to_owned());
        Provenance {
            split: Split::Val,
            data: "f00d".into(),
            seed: 7,
            machine,
            version,
        }
    }

    #[test]
    fn knn_is_named_by_what_was_asked_for_and_says_what_was_used() {
        let scores = vec![
            KnnScore {
                k: 10,
                used: 10,
                accuracy: 0.5,
            },
            KnnScore {
                k: 200,
                used: 64,
                accuracy: 0.25,
            },
        ];
        let cards = provenance().knn(&Knn {
            scores,
            temperature: 0.07,
            references: 64,
            queries: 12,
            classes: 3,
        });
        let names: Vec<&str> = cards.iter().map(|c| c.metric.as_str()).collect();
        assert_eq!(names, ["knn@10", "knn@200"]);
        let card = &cards[1];
        assert_eq!(
            (card.value, card.split, card.data.as_deref(), card.examples, card.seed),
            (0.25, Some(Split::Val), Some("f00d"), 12, 7)
        );
        assert_eq!(
            (&card.details["k"], &card.details["temperature"]),
            (&json!(64), &json!(0.07))
        );
        assert_eq!(card.details["references"], 64);
    }

    #[test]
    fn agreement_and_latency() {
        let card = provenance().agreement(&Agreement {
            value: 0.75,
            k: 20,
            used: 4,
            images: 5,
        });
        assert_eq!(
            (card.metric.as_str(), card.value, card.examples),
            ("agreement@20", 0.75, 5)
        );
        assert_eq!((&card.details["k"], &card.details["chance"]), (&json!(4), &json!(1.0)));
        let card = provenance().latency(&Latency {
            median_ms: 3.5,
            min_ms: 3.0,
            repeats: 9,
        });
        assert_eq!(
            (card.metric.as_str(), card.value, card.split, card.data),
            ("latency_ms", 3.5, None, None)
        );
        assert_eq!(
            (&card.details["min_ms"], &card.details["repeats"]),
            (&json!(3.0), &json!(9))
        );
    }

    #[test]
    fn linear_lists_its_grid() {
        let cell = |input, learning_rate, accuracy| Cell {
            input,
            learning_rate,
            accuracy,
        };
        let grid = vec![cell(Input::Cls, 0.1, 0.5), cell(Input::ClsAndPatches, 0.1, 0.625)];
        let probe = LinearProbe {
            best: 0.625,
            best_setting: grid[1],
            grid,
            settings: ProbeSettings {
                seed: 3,
                ..Default::default()
            },
            steps: 40,
            train: 100,
            val: 8,
            classes: 2,
        };
        let card = provenance().linear(&probe);
        assert_eq!(
            (card.metric.as_str(), card.value, card.examples, card.seed),
            ("linear", 0.625, 8, 3)
        );
        assert_eq!(card.details["input"], "cls+patches");
        assert_eq!(
            card.details["grid"][0],
            json!({ "input": "cls", "learning_rate": 0.1, "accuracy": 0.5 })
        );
        let text = serde_json::to_string(&card).unwrap();
        assert_eq!(serde_json::from_str::<Scorecard>(&text).unwrap(), card);
    }
}
