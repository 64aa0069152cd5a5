//! `offshoot cluster`: clusters of a corpus' windows, or the assignment of a corpus to those of another.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{CellAlignment, Table, TableStyle};
use offshoot_data::Split;
use offshoot_data::text::{Corpus, WindowOptions, Windows};
use offshoot_methods::specialize::cluster::{
    ClusterFolder, Clusters, Encoder, Facts, Outcome, Phase, Request, TfIdf, TfIdfSettings, Watch, assign, build,
};
use offshoot_methods::specialize::histogram;
use offshoot_zoo::tensor::kernels::on_workers;
use serde_json::{Value, json};

use super::pretrain::thousands;
use crate::args::{Cluster, CorpusPart};
use crate::failure::{Exit, Failure};
use crate::machine::Machine;
use crate::progress::Progress;
use crate::terminal::{complain, say};

/// Whether Ctrl-C was pressed.
static STOP: AtomicBool = AtomicBool::new(false);

/// Runs the command.
pub fn run(args: &Cluster) -> Result<Exit, Failure> {
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    let corpus = Arc::new(Corpus::open(&args.corpus)?);
    let part = match args.part {
        CorpusPart::Train => Split::Train,
        CorpusPart::Val => Split::Val,
        CorpusPart::Test => Split::Test,
    };
    // A second press ends the process at once: what is on disk is whole, or gone on with.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            #[expect(clippy::exit, reason = "the user will not wait")]
            std::process::exit(Exit::Interrupted as i32);
        }
        complain("\nstopping at the next block; press Ctrl-C again to stop at once");
    });
    let outcome = match &args.assign {
        Some(clusters) => assigned(args, &Clusters::open(clusters)?, corpus, part, &machine)?,
        None => built(args, corpus, part, &machine)?,
    };
    match outcome {
        Outcome::Done(facts) => {
            tell(args, &facts)?;
            Ok(Exit::Done)
        }
        Outcome::Stopped => {
            complain("stopped; the same command goes on with `--resume`");
            Ok(Exit::Interrupted)
        }
    }
}

fn folder(args: &Cluster, inputs: &[&PathBuf]) -> Result<ClusterFolder, Failure> {
    let mut paths = vec![args.corpus.as_path()];
    paths.extend(inputs.iter().map(|path| path.as_path()));
    Ok(if args.resume {
        ClusterFolder::resume(&args.out)?
    } else {
        ClusterFolder::create(&args.out, args.overwrite, &paths)?
    })
}

fn built(args: &Cluster, corpus: Arc<Corpus>, part: Split, machine: &Machine) -> Result<Outcome, Failure> {
    let mut options = WindowOptions::new(args.context, &corpus);
    (options.packing, options.begin_of_text) = (args.packing, args.begin_of_text);
    let windows = Windows::new(corpus, part, options)?;
    let encoder = match &args.encoder {
        Some(path) => Some((Encoder::open(path, &machine.device)?, path.display().to_string())),
        None => None,
    };
    let request = Request {
        windows: &windows,
        encoder: encoder.as_ref().map(|(encoder, path)| (encoder, path.clone())),
        terms: TfIdfSettings {
            dimensions: args.dimensions,
            ..TfIdfSettings::new(args.seed)
        },
        branches: args.k.clone(),
        sample: args.sample,
        steps: args.steps,
        balance: args.balance,
        seed: args.seed,
        keep_embeddings: args.keep_embeddings,
    };
    let inputs: Vec<&PathBuf> = args.encoder.iter().collect();
    // What cannot be met makes no folder.
    request.check()?;
    let folder = folder(args, &inputs)?;
    Ok(on_workers(|| build(&folder, &request, &mut Shown::default()))?)
}

fn assigned(
    args: &Cluster,
    clusters: &Clusters,
    corpus: Arc<Corpus>,
    part: Split,
    machine: &Machine,
) -> Result<Outcome, Failure> {
    let facts = clusters.facts();
    // Centroids that are not there are a better answer than the encoder that is missing with them.
    clusters.tree()?;
    let windows = Windows::new(corpus, part, WindowOptions::from(&facts.windows))?;
    let encoder = match (&args.encoder, facts.encoder.path.as_ref()) {
        (Some(path), _) => Encoder::open(path, &machine.device)?,
        (None, None) => Encoder::TfIdf(TfIdf::open(&clusters.encoder_folder())?),
        (None, Some(path)) => Encoder::open(path.as_ref(), &machine.device).map_err(|error| Failure {
            hint: Some("name the encoder's folder by --encoder".into()),
            ..Failure::from(error)
        })?,
    };
    let inputs: Vec<&PathBuf> = args.encoder.iter().chain(&args.assign).collect();
    let folder = folder(args, &inputs)?;
    let keep = args.keep_embeddings;
    Ok(on_workers(|| {
        assign(&folder, clusters, &encoder, &windows, keep, &mut Shown::default())
    })?)
}

/// Progress of the phase in hand.
#[derive(Default)]
struct Shown {
    phase: Option<(Phase, Progress)>,
}

impl Watch for Shown {
    fn at(&mut self, phase: Phase, done: u64, total: u64) {
        if self.phase.as_ref().is_none_or(|(shown, _)| *shown != phase) {
            let (what, unit) = match phase {
                Phase::Terms => ("terms".to_owned(), "windows"),
                Phase::Embed => ("embed".to_owned(), "windows"),
                Phase::Split(level) => (format!("split level {}", level + 1), "nodes"),
                Phase::Assign(level) => (format!("assign to level {}", level + 1), "windows"),
            };
            if let Some((_, progress)) = &self.phase {
                progress.finish();
            }
            self.phase = Some((phase, Progress::new(what, done, total, unit)));
            return;
        }
        if let Some((_, progress)) = &mut self.phase {
            progress.at(done, "");
            if done == total {
                progress.finish();
            }
        }
    }

    fn is_stopped(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

/// The largest share and the entropy in nats of a histogram; none without windows.
type Statistics = Option<(f64, f64)>;

/// Those of each level's histogram, of one domain or of all.
fn statistics(facts: &Facts, histogram: &[u64]) -> Vec<Statistics> {
    let level = |level: usize| {
        let shares = histogram::shares(&facts.at_level(histogram, level), "the domain").ok()?;
        Some((histogram::largest(&shares), histogram::entropy(&shares)))
    };
    (0..facts.levels.len()).map(level).collect()
}

/// Prints the table of the paper's section 3: the share of the largest cluster and the entropy in nats, for each level.
fn tell(args: &Cluster, facts: &Facts) -> Result<(), Failure> {
    let all = ("all".to_owned(), facts.windows.count, facts.histogram(None));
    let domains = facts.domains.iter();
    let each = domains.map(|domain| (domain.name.clone(), domain.windows, domain.histogram.clone()));
    let rows: Vec<(String, u64, Vec<Statistics>)> = each
        .chain((facts.domains.len() > 1).then_some(all))
        .map(|(name, windows, histogram)| (name, windows, statistics(facts, &histogram)))
        .collect();
    if args.json {
        let levels = |of: &[Statistics]| -> Vec<Value> {
            let of = facts.levels.iter().zip(of);
            of.map(|(level, numbers)| {
                let [largest, entropy] = [numbers.map(|n| n.0), numbers.map(|n| n.1)];
                json!({ "clusters": level.clusters, "largest": largest, "entropy": entropy })
            })
            .collect()
        };
        let rows = rows
            .iter()
            .map(|(name, windows, of)| json!({ "domain": name, "windows": windows, "levels": levels(of) }));
        let page = json!({
            "clustering": facts.clustering,
            "windows": facts.windows.count,
            "blank": facts.blank,
            "inertia": facts.inertia,
            "encoder": facts.encoder,
            "domains": rows.collect::<Vec<_>>(),
        });
        say(&page.to_string())?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    let mut header = vec!["domain".to_owned(), "windows".to_owned()];
    for level in &facts.levels {
        header.push(format!("largest of {}", level.clusters));
        header.push("nats".to_owned());
    }
    table.set_header(&header);
    for (name, windows, levels) in rows {
        let mut row = vec![name, thousands(windows)];
        for numbers in levels {
            row.extend(match numbers {
                Some((largest, entropy)) => [format!("{largest:.2}"), format!("{entropy:.2}")],
                None => ["-", "-"].map(str::to_owned),
            });
        }
        table.add_row(row);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        if i > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    say(&table.trim_fmt())?;
    let blank = match facts.blank {
        0 => String::new(),
        n => format!("; {} without a known term, all in one cluster", thousands(n)),
    };
    say(&format!(
        "{} windows of at most {} tokens, by {}; mean squared distance {:.4}{blank}",
        thousands(facts.windows.count),
        facts.windows.context,
        facts.encoder.kind,
        facts.inertia
    ))?;
    if facts.centroids.is_some() {
        say(&format!(
            "next: offshoot cluster CORPUS --assign {} -o DIR",
            args.out.display()
        ))?;
    }
    Ok(())
}
