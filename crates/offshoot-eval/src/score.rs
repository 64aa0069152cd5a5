//! Results as scorecards: each number with what it was measured on and how.

use offshoot_family::{Scorecard, Split};
use serde_json::{Map, Value, json};

use crate::agreement::Agreement;
use crate::knn::Knn;
use crate::latency::Latency;
use crate::linear::LinearProbe;
use crate::perplexity::{Means, Perplexity, Sliding};

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

    /// `latency_ms` of a decoder: of one token behind `context - 1` others, whose keys and values are kept.
    pub fn token_latency(&self, latency: &Latency, context: usize) -> Scorecard {
        let mut card = self.latency(latency);
        card.details.insert("of".into(), json!("one token"));
        card.details.insert("context".into(), json!(context));
        card
    }

    /// `perplexity` and `byte_perplexity`, geometric means over the domains, and both of each domain by its name
    /// (`perplexity/pubmed`). Examples are documents. `begin` is the token before each document.
    pub fn perplexity(&self, domains: &[(String, Perplexity)], sliding: Sliding, begin: Option<u32>) -> Vec<Scorecard> {
        let Some(means) = Means::of(domains.iter().map(|(_, domain)| domain)) else {
            return Vec::new();
        };
        let sum = |of: fn(&Perplexity) -> u64| domains.iter().map(|(_, domain)| of(domain)).sum::<u64>();
        let common = |mut how: Value| {
            how["context"] = json!(sliding.context);
            how["stride"] = json!(sliding.stride);
            how["begin_of_text"] = json!(begin);
            how
        };
        let names: Vec<&str> = domains.iter().map(|(name, _)| name.as_str()).collect();
        let how = common(json!({
            "mean": "geometric, over domains",
            "domains": names,
            "tokens": sum(|d| d.tokens),
            "bytes": sum(|d| d.bytes),
            "left_out": sum(|d| d.left_out),
            "bits_per_byte": means.bits_per_byte,
        }));
        let documents = sum(|d| d.documents) as usize;
        let mut cards = vec![
            self.scorecard("perplexity".into(), means.per_token, documents, how.clone()),
            self.scorecard("byte_perplexity".into(), means.per_byte, documents, how),
        ];
        for (name, domain) in domains {
            let how = common(json!({
                "tokens": domain.tokens,
                "bytes": domain.bytes,
                "left_out": domain.left_out,
                "nats": domain.nats,
                "bits_per_byte": domain.bits_per_byte(),
            }));
            let documents = domain.documents as usize;
            let token = self.scorecard(format!("perplexity/{name}"), domain.per_token(), documents, how.clone());
            let byte = self.scorecard(format!("byte_perplexity/{name}"), domain.per_byte(), documents, how);
            cards.extend([token, byte]);
        }
        cards
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
    fn perplexity_is_the_mean_over_domains_and_that_of_each() {
        let domain = |nats, tokens, documents| Perplexity {
            nats,
            tokens,
            bytes: 4 * tokens,
            documents,
            left_out: 1,
        };
        let domains = [
            ("a".to_owned(), domain(20.0 * 2f64.ln(), 20, 3)),
            ("b".to_owned(), domain(10.0 * 8f64.ln(), 10, 4)),
        ];
        let sliding = Sliding { context: 9, stride: 3 };
        let cards = provenance().perplexity(&domains, sliding, Some(5));
        let names: Vec<&str> = cards.iter().map(|c| c.metric.as_str()).collect();
        assert_eq!(
            names,
            [
                "perplexity",
                "byte_perplexity",
                "perplexity/a",
                "byte_perplexity/a",
                "perplexity/b",
                "byte_perplexity/b"
            ]
        );
        let examples: Vec<usize> = cards.iter().map(|c| c.examples).collect();
        assert_eq!(examples, [7, 7, 3, 3, 4, 4]);
        for (card, value) in cards
            .iter()
            .zip([4.0, 2f64.sqrt(), 2.0, 2f64.powf(0.25), 8.0, 8f64.powf(0.25)])
        {
            assert!((card.value - value).abs() < 1e-12, "{}: {}", card.metric, card.value);
            for (key, value) in [("context", 9), ("stride", 3), ("begin_of_text", 5)] {
                assert_eq!(card.details[key], value, "{key}");
            }
            assert_eq!((card.split, card.data.as_deref()), (Some(Split::Val), Some("f00d")));
        }
        let details = &cards[0].details;
        assert_eq!((&details["tokens"], &details["bytes"]), (&json!(30), &json!(120)));
        assert_eq!(details["domains"], json!(["a", "b"]));
        assert!(provenance().perplexity(&[], sliding, None).is_empty());
    }

    #[test]
    fn the_latency_of_a_token_says_behind_how_many_others() {
        let latency = Latency {
            median_ms: 3.5,
            min_ms: 3.0,
            repeats: 9,
        };
        let card = provenance().token_latency(&latency, 128);
        assert_eq!((card.metric.as_str(), card.value), ("latency_ms", 3.5));
        assert_eq!(
            (&card.details["of"], &card.details["context"]),
            (&json!("one token"), &json!(128))
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
