//! `offshoot eval`: measures children and writes scorecards into the catalog.

use std::path::Path;

use offshoot_data::Dataset;
use offshoot_eval::agreement::K;
use offshoot_eval::knn::{KS, TEMPERATURE};
use offshoot_eval::{ChildFeatures, Labelled, ProbeSettings, Provenance};
use offshoot_family::{Catalog, Child, Scorecard, Split};
use offshoot_methods::elastic::pretrain::Prepared;
use offshoot_methods::train::trainer::Clock;
use offshoot_zoo::{Network, Weights};
use serde_json::json;

use super::images::{self, Family};
use crate::args::{Eval, Part, Which};
use crate::failure::Failure;
use crate::machine::{Machine, ProcessClock};
use crate::progress::Progress;
use crate::terminal::{complain, say};

/// What to measure.
pub enum Measure {
    /// Weighted k-NN.
    Knn,
    /// Linear probe.
    Linear(ProbeSettings),
    /// Agreement with the parent.
    Agreement,
    /// Milliseconds of one image, from this many runs.
    Latency(usize),
}

impl Measure {
    /// The measurement that gives the metric `name`, if one does.
    pub fn of_metric(name: &str) -> Option<Self> {
        match name.split('@').next()? {
            "knn" => Some(Self::Knn),
            "agreement" => Some(Self::Agreement),
            "linear" => Some(Self::Linear(ProbeSettings::default())),
            "latency_ms" => Some(Self::Latency(30)),
            _ => None,
        }
    }

    fn needs_labels(&self) -> bool {
        matches!(self, Self::Knn | Self::Linear(_))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Knn => "k-NN",
            Self::Linear(_) => "linear probe",
            Self::Agreement => "agreement",
            Self::Latency(_) => "latency",
        }
    }
}

/// Runs the command.
pub fn run(args: &Eval) -> Result<(), Failure> {
    let (which, measure) = match args {
        Eval::Knn(which) => (which, Measure::Knn),
        Eval::Agreement(which) => (which, Measure::Agreement),
        Eval::Linear(args) => {
            let settings = ProbeSettings {
                epochs: args.epochs,
                batch: args.batch,
                seed: args.seed,
                ..ProbeSettings::default()
            };
            (&args.which, Measure::Linear(settings))
        }
        Eval::Latency(args) => (&args.which, Measure::Latency(args.repeats)),
    };
    let machine = Machine::new(&which.compute.device, which.compute.threads)?;
    let ids = ids(&Catalog::open(&which.run)?, &which.child)?;
    let measured = measure_children(&which.run, &ids, &measure, split(which), which.references, &machine)?;
    print(which, &measured)
}

fn split(which: &Which) -> Split {
    match which.split {
        Part::Val => Split::Val,
        Part::Test => Split::Test,
    }
}

/// Ids of the children that were named, or of all.
fn ids(catalog: &Catalog, named: &[String]) -> Result<Vec<String>, Failure> {
    if named.is_empty() {
        return Ok(catalog.children.iter().map(|c| c.id.clone()).collect());
    }
    named.iter().map(|name| Ok(catalog.child(name)?.id.clone())).collect()
}

fn print(which: &Which, measured: &[(String, Vec<Scorecard>)]) -> Result<(), Failure> {
    if which.json {
        let all: Vec<_> = measured
            .iter()
            .map(|(id, cards)| json!({ "child": id, "scorecards": cards }))
            .collect();
        say(&serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    for (id, cards) in measured {
        let values: Vec<String> = cards.iter().map(|c| format!("{} {:.4}", c.metric, c.value)).collect();
        say(&format!("{id:>12}  {}", values.join("  ")))?;
    }
    if let Some(card) = measured.first().and_then(|(_, cards)| cards.first()) {
        let split = card.split.map_or(String::new(), |s| {
            format!("{} images of the {s} split, ", card.examples)
        });
        complain(&format!("{split}seed {}, {}", card.seed, card.machine));
    }
    complain(&format!("written to {}", which.run.join("catalog.json").display()));
    Ok(())
}

/// Measures the children `ids` and records the scorecards in the run's catalog.
///
/// # Errors
/// If the run, the data or a child cannot be used, or labels are needed that are not there.
pub fn measure_children(
    run: &Path,
    ids: &[String],
    measure: &Measure,
    split: Split,
    references: usize,
    machine: &Machine,
) -> Result<Vec<(String, Vec<Scorecard>)>, Failure> {
    let mut family = Family::open(run, &machine.device)?;
    let yardstick = Yardstick::new(&family, measure, split, references, machine)?;
    let mut progress = Progress::new(measure.name(), 0, ids.len() as u64, "children");
    let mut measured = Vec::with_capacity(ids.len());
    for (done, id) in ids.iter().enumerate() {
        let child = family.catalog.child(id)?;
        let (network, weights) = family.child(run, child)?;
        let mut cards = yardstick.measure(network.as_ref(), &weights)?;
        if !yardstick.damaged.is_empty() {
            cards
                .iter_mut()
                .for_each(|c| drop(c.details.insert("left_out".into(), json!(yardstick.damaged.len()))));
        }
        progress.at(
            done as u64 + 1,
            &format!("{id} {} {:.4}", cards[0].metric, cards[0].value),
        );
        measured.push((id.clone(), cards));
    }
    progress.finish();
    for (id, cards) in &measured {
        let child: &mut Child = family
            .catalog
            .children
            .iter_mut()
            .find(|c| c.id == *id)
            .expect("it was just found");
        cards.iter().for_each(|card| child.record(card.clone()));
    }
    family.catalog.save(run)?;
    Ok(measured)
}

/// Images and settings that every child is measured with.
struct Yardstick<'a> {
    measure: &'a Measure,
    machine: &'a Machine,
    provenance: Provenance,
    train: Prepared,
    queries: Prepared,
    /// Where the probe's setting is chosen, if not on the queries themselves.
    choose: Option<Prepared>,
    classes: usize,
    /// The parent's features of the queries, for agreement.
    parent: Option<ChildFeatures>,
    /// Images that could not be read, and why.
    damaged: Vec<(String, String)>,
}

impl<'a> Yardstick<'a> {
    fn new(
        family: &Family,
        measure: &'a Measure,
        split: Split,
        references: usize,
        machine: &'a Machine,
    ) -> Result<Self, Failure> {
        let data = &family.catalog.data;
        let mut yardstick = Self {
            measure,
            machine,
            provenance: Provenance {
                split,
                data: data.fingerprint.clone(),
                seed: data.split_seed,
                machine: machine.description(),
                version: env!("CARGO_PKG_VERSION").into(),
            },
            train: Prepared::default(),
            queries: Prepared::default(),
            choose: None,
            classes: 0,
            parent: None,
            damaged: Vec::new(),
        };
        if matches!(measure, Measure::Latency(_)) {
            return Ok(yardstick);
        }
        if measure.needs_labels() && !data.labels {
            return Err(Failure::input(
                format!("{} needs labels, and this family was made without", measure.name()),
                "measure `offshoot eval agreement` instead, or train with `data.labels=true`",
            ));
        }
        let dataset: Dataset = images::open(data)?;
        yardstick.classes = dataset.source.classes().len();
        let mut damaged = Vec::new();
        let mut prepare = |indices: &[usize]| images::prepare(&dataset, indices, &data.preprocessing, &mut damaged);
        yardstick.queries = prepare(images::part(&dataset, split))?;
        if measure.needs_labels() {
            yardstick.train = prepare(&images::at_most(&dataset.splits.train, references))?;
            // The best of a grid is chosen on val; the test split is not tuned on.
            if matches!(measure, Measure::Linear(_)) && split == Split::Test {
                yardstick.choose = Some(prepare(&dataset.splits.val)?);
            }
        } else {
            let (network, weights) = family.parent();
            yardstick.parent = Some(yardstick.features(network, weights, &yardstick.queries)?);
        }
        images::tell_damaged(&damaged, "left out");
        yardstick.damaged = damaged;
        Ok(yardstick)
    }

    fn features(&self, network: &dyn Network, weights: &Weights, images: &Prepared) -> Result<ChildFeatures, Failure> {
        let batches = images.batches.iter().cloned().map(Ok::<_, offshoot_eval::EvalError>);
        let device = &self.machine.device;
        Ok(offshoot_eval::extract(
            network,
            weights,
            device,
            batches,
            network.image(),
            &mut |_| {},
        )?)
    }

    fn measure(&self, network: &dyn Network, weights: &Weights) -> Result<Vec<Scorecard>, Failure> {
        let device = &self.machine.device;
        if let Measure::Latency(repeats) = self.measure {
            let mut once = offshoot_eval::latency::one_image(network, weights, device)?;
            let clock = ProcessClock::start();
            let latency = offshoot_eval::latency(&mut once, &|| clock.elapsed(), 5, *repeats)?;
            return Ok(vec![self.provenance.latency(&latency)]);
        }
        let queries = self.features(network, weights, &self.queries)?;
        if let Some(parent) = &self.parent {
            let agreement = offshoot_eval::agreement(&parent.cls, &queries.cls, K, device)?;
            return Ok(vec![self.provenance.agreement(&agreement)]);
        }
        let train = self.features(network, weights, &self.train)?;
        if let Measure::Linear(settings) = self.measure {
            return self.linear(network, weights, &train, &queries, settings);
        }
        let train = Labelled {
            features: &train.cls,
            labels: &self.train.labels,
        };
        let queries = Labelled {
            features: &queries.cls,
            labels: &self.queries.labels,
        };
        let knn = offshoot_eval::knn(train, queries, self.classes, &KS, TEMPERATURE, device)?;
        Ok(self.provenance.knn(&knn))
    }

    /// The linear probe. Scored on test, its setting is chosen on val.
    fn linear(
        &self,
        network: &dyn Network,
        weights: &Weights,
        train: &ChildFeatures,
        queries: &ChildFeatures,
        settings: &ProbeSettings,
    ) -> Result<Vec<Scorecard>, Failure> {
        let device = &self.machine.device;
        let train = Labelled {
            features: train,
            labels: &self.train.labels,
        };
        let probe = |images: &ChildFeatures, labels: &[u32], settings: &ProbeSettings| {
            let images = Labelled {
                features: images,
                labels,
            };
            offshoot_eval::linear_probe(train, images, self.classes, settings, device, &mut |_, _| {})
        };
        let Some(choose) = &self.choose else {
            return Ok(vec![self.provenance.linear(&probe(
                queries,
                &self.queries.labels,
                settings,
            )?)]);
        };
        let chosen = probe(&self.features(network, weights, choose)?, &choose.labels, settings)?;
        let best = chosen.best_setting;
        let settings = ProbeSettings {
            learning_rates: vec![best.learning_rate],
            ..settings.clone()
        };
        let scored = probe(queries, &self.queries.labels, &settings)?;
        let cell = scored
            .grid
            .iter()
            .find(|cell| cell.input == best.input)
            .expect("both inputs are in every grid");
        let mut card = self.provenance.linear(&chosen);
        (card.value, card.examples) = (cell.accuracy, scored.val);
        card.details.insert("chosen_on".into(), json!("val"));
        Ok(vec![card])
    }
}
