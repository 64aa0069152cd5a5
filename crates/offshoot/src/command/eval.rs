//! `offshoot eval`: measures children and writes scorecards into the catalog.

use std::path::Path;

use offshoot_data::{Dataset, Prepared};
use offshoot_eval::agreement::K;
use offshoot_eval::knn::{KS, TEMPERATURE};
use offshoot_eval::{ChildFeatures, Labelled, ProbeSettings, Provenance};
use offshoot_family::{Catalog, Child, Scorecard, Split};
use offshoot_methods::train::trainer::Clock;
use offshoot_zoo::{Network, Weights, network};
use serde_json::json;

use super::images::{self, Family};
use super::perplexity;
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
    /// Perplexity on the run's own text.
    Perplexity,
    /// Milliseconds of one image, or of one token of text, from so many runs.
    Latency {
        /// Timed runs.
        repeats: usize,
        /// Tokens of text, with the one that is timed.
        context: usize,
    },
}

/// The latency that is measured where nothing else is asked for.
pub const LATENCY: Measure = Measure::Latency {
    repeats: 30,
    context: 256,
};

impl Measure {
    /// The measurement that gives the metric `name`, if one does.
    pub fn of_metric(name: &str) -> Option<Self> {
        match name.split(['@', '/']).next()? {
            "knn" => Some(Self::Knn),
            "agreement" => Some(Self::Agreement),
            "linear" => Some(Self::Linear(ProbeSettings::default())),
            "perplexity" | "byte_perplexity" => Some(Self::Perplexity),
            "latency_ms" => Some(LATENCY),
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
            Self::Perplexity => "perplexity",
            Self::Latency { .. } => "latency",
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
        Eval::Perplexity(args) => return perplexity::run(args),
        Eval::Latency(args) => {
            let (repeats, context) = (args.repeats, args.context);
            (&args.which, Measure::Latency { repeats, context })
        }
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
    if which.references > 0 {
        complain(&format!(
            "not kept: measured with at most {} references",
            which.references
        ));
    } else {
        complain(&format!("written to {}", which.run.join("catalog.json").display()));
    }
    Ok(())
}

/// Measures the children `ids` and, unless the references are limited, records the scorecards in the run's catalog.
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
    if matches!(measure, Measure::Perplexity) {
        return perplexity::measure_children(run, ids, split, machine);
    }
    let mut family = Family::open(run, &machine.device)?;
    let yardstick = Yardstick::new(&family, measure, split, references, machine)?;
    let mut progress = Progress::new(measure.name(), 0, ids.len() as u64, "children");
    let left_out = yardstick.left_out();
    let mut measured = Vec::with_capacity(ids.len());
    for (done, id) in ids.iter().enumerate() {
        let child = family.catalog.child(id)?;
        let (network, weights) = family.child(run, child)?;
        let mut cards = yardstick.measure(network.as_ref(), &weights)?;
        if left_out > 0 {
            let mut note = |card: &mut Scorecard| drop(card.details.insert("left_out".into(), json!(left_out)));
            cards.iter_mut().for_each(&mut note);
        }
        progress.at(
            done as u64 + 1,
            &format!("{id} {} {:.4}", cards[0].metric, cards[0].value),
        );
        measured.push((id.clone(), cards));
    }
    progress.finish();
    // Scores of fewer references would stand beside those of all as if they were the same.
    if references > 0 {
        return Ok(measured);
    }
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
    /// Side of its images, in pixels. An imported model may have been trained on others.
    side: usize,
    /// None for measurements without data.
    images: Option<Images>,
}

/// The images of one measurement.
struct Images {
    /// What votes or trains the probe; none without labels.
    train: Option<Prepared>,
    /// What is scored.
    queries: Prepared,
    /// Where the probe's setting is chosen, if not on the queries themselves.
    choose: Option<Prepared>,
    classes: usize,
    /// The parent's features of the queries, for agreement.
    parent: Option<ChildFeatures>,
}

impl Images {
    fn new(family: &Family, measure: &Measure, split: Split, references: usize) -> Result<Self, Failure> {
        let data = images::of(&family.catalog.data)?;
        if measure.needs_labels() && !data.labels {
            return Err(Failure::input(
                format!("{} needs labels, and this family was made without", measure.name()),
                "measure `offshoot eval agreement` instead, or make the family with labels (`data.labels=true`, `import --labels`)",
            ));
        }
        let dataset: Dataset = images::open(&family.catalog.data)?;
        let prepare = |indices: &[usize]| Prepared::new(&dataset, indices, &data.preprocessing);
        let train = images::at_most(&dataset.splits.train, references);
        // The best of a grid is chosen on val; the test split is not tuned on.
        let choose = matches!(measure, Measure::Linear(_)) && split == Split::Test;
        let images = Self {
            train: measure.needs_labels().then(|| prepare(&train)).transpose()?,
            queries: prepare(images::part(&dataset, split))?,
            choose: choose.then(|| prepare(&dataset.splits.val)).transpose()?,
            classes: dataset.source.classes().len(),
            parent: None,
        };
        images::tell_damaged(&images.damaged(), "left out");
        let (neighbours, of) = match measure {
            Measure::Agreement => (Some(20), images::part(&dataset, split).len().saturating_sub(1)),
            Measure::Knn => (Some(200), train.len()),
            Measure::Linear(_) | Measure::Perplexity | Measure::Latency { .. } => (None, 0),
        };
        if neighbours.is_some_and(|k| of <= k) {
            complain(&format!(
                "only {of} images to find neighbours among: scores of as many neighbours or more say nothing, agreement is then 1 for \
                 every model; hold more images out, or bring more"
            ));
        }
        Ok(images)
    }

    /// Images that could not be read, and why.
    fn damaged(&self) -> Vec<(String, String)> {
        let all = self.train.iter().chain([&self.queries]).chain(&self.choose);
        all.flat_map(|prepared| prepared.damaged.iter().cloned()).collect()
    }
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
                data: data.fingerprint().to_owned(),
                seed: data.split_seed(),
                machine: machine.description(),
                version: env!("CARGO_PKG_VERSION").into(),
            },
            side: data.images().map_or(0, |images| images.preprocessing.crop as usize),
            images: None,
        };
        if !matches!(measure, Measure::Latency { .. }) {
            let mut images = Images::new(family, measure, split, references)?;
            if matches!(measure, Measure::Agreement) {
                let (network, weights) = family.parent();
                images.parent = Some(yardstick.features(network, weights, &images.queries)?);
            }
            yardstick.images = Some(images);
        }
        Ok(yardstick)
    }

    /// How many images were left out.
    fn left_out(&self) -> usize {
        self.images.as_ref().map_or(0, |images| images.damaged().len())
    }

    fn features(&self, network: &dyn Network, weights: &Weights, images: &Prepared) -> Result<ChildFeatures, Failure> {
        let network = network::backbone(network)?;
        let (device, image) = (&self.machine.device, (network.image().0, self.side));
        Ok(offshoot_eval::extract(
            network,
            weights,
            device,
            images.batches(),
            image,
            &mut |_| {},
        )?)
    }

    fn measure(&self, network: &dyn Network, weights: &Weights) -> Result<Vec<Scorecard>, Failure> {
        let device = &self.machine.device;
        let Some(images) = &self.images else {
            let &Measure::Latency { repeats, context } = self.measure else {
                unreachable!("every other measurement has images")
            };
            let clock = ProcessClock::start();
            let time = |once: &mut dyn FnMut()| offshoot_eval::latency(once, &|| clock.elapsed(), 5, repeats);
            if let Some(decoder) = network.as_decoder() {
                let context = context.min(decoder.decoder().context);
                let mut once = offshoot_eval::latency::one_token(decoder, weights, context)?;
                return Ok(vec![self.provenance.token_latency(&time(&mut once)?, context)]);
            }
            let mut once = offshoot_eval::latency::one_image(network::backbone(network)?, weights, device)?;
            return Ok(vec![self.provenance.latency(&time(&mut once)?)]);
        };
        let queries = self.features(network, weights, &images.queries)?;
        let Some(train) = &images.train else {
            let parent = images.parent.as_ref().expect("agreement has the parent's features");
            let agreement = offshoot_eval::agreement(&parent.cls, &queries.cls, K, device)?;
            return Ok(vec![self.provenance.agreement(&agreement)]);
        };
        let references = self.features(network, weights, train)?;
        if let Measure::Linear(settings) = self.measure {
            return self.linear(network, weights, images, [&references, &queries], settings);
        }
        let references = Labelled {
            features: &references.cls,
            labels: &train.labels,
        };
        let queries = Labelled {
            features: &queries.cls,
            labels: &images.queries.labels,
        };
        let knn = offshoot_eval::knn(references, queries, images.classes, &KS, TEMPERATURE, device)?;
        Ok(self.provenance.knn(&knn))
    }

    /// The linear probe on the features of the training images and of the queries. Scored on test, its setting is chosen on val.
    fn linear(
        &self,
        network: &dyn Network,
        weights: &Weights,
        images: &Images,
        [train, queries]: [&ChildFeatures; 2],
        settings: &ProbeSettings,
    ) -> Result<Vec<Scorecard>, Failure> {
        let device = &self.machine.device;
        let labels = images.train.as_ref().map_or(&[][..], |t| &t.labels);
        let train = Labelled {
            features: train,
            labels,
        };
        let probe = |features: &ChildFeatures, of: &Prepared, settings: &ProbeSettings| {
            let queries = Labelled {
                features,
                labels: &of.labels,
            };
            offshoot_eval::linear_probe(train, queries, images.classes, settings, device, &mut |_, _| {})
        };
        let Some(choose) = &images.choose else {
            let probe = probe(queries, &images.queries, settings)?;
            return Ok(vec![self.provenance.linear(&probe)]);
        };
        let chosen = probe(&self.features(network, weights, choose)?, choose, settings)?;
        let best = chosen.best_setting;
        let settings = ProbeSettings {
            learning_rates: vec![best.learning_rate],
            ..settings.clone()
        };
        let scored = probe(queries, &images.queries, &settings)?;
        let cell = scored.grid.iter().find(|cell| cell.input == best.input);
        let mut card = self.provenance.linear(&chosen);
        card.value = cell.expect("both inputs are in every grid").accuracy;
        card.examples = scored.val;
        card.details.insert("chosen_on".into(), json!("val"));
        Ok(vec![card])
    }
}
