//! Where the numbers come from: the scorecards of the family, those of one measurement together.

use offshoot_family::{Catalog, Scorecard};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::units::{grouped, metric_name};

/// Scorecards that were measured alike.
#[derive(Serialize)]
pub(crate) struct Source {
    /// What was measured.
    pub(crate) metric: String,
    /// Its name in the catalog.
    pub(crate) key: String,
    /// On which part of the data; empty for measurements without data.
    pub(crate) split: String,
    /// Fingerprint of the data; empty as above.
    pub(crate) data: String,
    /// Examples scored.
    pub(crate) examples: String,
    /// Seed.
    pub(crate) seed: u64,
    /// Machine.
    pub(crate) machine: String,
    /// Version of offshoot.
    pub(crate) version: String,
    /// Scorecards.
    pub(crate) count: usize,
    /// How: the details that all of them share.
    pub(crate) how: String,
}

fn alike(a: &Scorecard, b: &Scorecard) -> bool {
    a.same_measurement(b)
        && a.examples == b.examples
        && a.seed == b.seed
        && a.machine == b.machine
        && a.version == b.version
}

/// One source per way of measuring, in the order of the catalog.
pub(crate) fn sources(catalog: &Catalog) -> Vec<Source> {
    let mut groups: Vec<(&Scorecard, usize, Map<String, Value>)> = Vec::new();
    for card in catalog.children.iter().flat_map(|child| &child.scorecards) {
        match groups.iter_mut().find(|(first, ..)| alike(first, card)) {
            Some((_, count, shared)) => {
                *count += 1;
                let different: Vec<String> = shared
                    .iter()
                    .filter(|(key, value)| card.details.get(*key) != Some(*value))
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in different {
                    shared.remove(&key);
                }
            }
            None => {
                let plain = card
                    .details
                    .iter()
                    .filter(|(_, value)| !value.is_array() && !value.is_object());
                groups.push((
                    card,
                    1,
                    plain.map(|(key, value)| (key.clone(), value.clone())).collect(),
                ));
            }
        }
    }
    groups
        .into_iter()
        .map(|(card, count, shared)| Source {
            metric: metric_name(&card.metric),
            key: card.metric.clone(),
            split: card.split.map(|split| split.to_string()).unwrap_or_default(),
            data: card.data.clone().unwrap_or_default(),
            examples: grouped(card.examples as u64),
            seed: card.seed,
            machine: card.machine.clone(),
            version: card.version.clone(),
            count,
            how: how(&shared),
        })
        .collect()
}

fn how(details: &Map<String, Value>) -> String {
    let pairs = details.iter().map(|(key, value)| match value {
        Value::String(text) => format!("{} {text}", key.replace('_', " ")),
        value => format!("{} {value}", key.replace('_', " ")),
    });
    pairs.collect::<Vec<_>>().join(", ")
}
