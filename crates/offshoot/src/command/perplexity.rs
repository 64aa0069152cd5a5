//! `offshoot eval perplexity`: language models on documents of several domains, by a sliding window.

use std::path::Path;

use anyhow::Context;
use offshoot_data::text::{Corpus, Document, Documents, Domain};
use offshoot_data::{DataError, Split as Part};
use offshoot_eval::{Perplexity as Score, Provenance, Sliding, TextScorer};
use offshoot_family::{Catalog, Scorecard, Split};
use offshoot_zoo::{Network, Weights, network};
use serde_json::json;

use super::corpus;
use super::family::table;
use super::pretrain::thousands;
use super::text::LanguageModels;
use crate::args::{self, BeginOfText, Perplexity};
use crate::failure::Failure;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::terminal::{complain, say};

/// Share of damaged documents that is allowed in text that is read for a score.
const MAX_DAMAGED: f64 = 0.01;
/// Bytes and documents that are tokenized at once.
const AT_ONCE: (usize, usize) = (4 << 20, 1024);

/// Runs the command.
pub fn run(args: &Perplexity) -> Result<(), Failure> {
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    let domains = domains(&args.data)?;
    let models = LanguageModels::open(&args.model.place, &machine.device)?;
    let ids = models.ids(&args.child)?;
    let split = match args.split {
        args::Part::Val => Split::Val,
        args::Part::Test => Split::Test,
    };
    let sliding = windows(&models, args.context, args.stride)?;
    let begin = models.begin(args.model.begin_of_text)?;
    let yardstick = Yardstick {
        text: Text::of(&models, domains, split)?,
        is_usual: sliding == windows(&models, None, None)? && begin == models.begin(BeginOfText::Auto)?,
        sliding,
        begin,
        documents: args.documents,
        split,
        models: &models,
        machine: &machine,
    };
    let measured = yardstick.measure(&ids)?;
    if yardstick.not_kept().is_none() {
        record(&args.model.place, &measured)?;
    }
    yardstick.print(args, &measured)
}

/// Measures the children `ids` of a run on its own text, whole, and records the scorecards.
///
/// # Errors
/// If the run, its text or a child cannot be used.
pub fn measure_children(
    run: &Path,
    ids: &[String],
    split: Split,
    machine: &Machine,
) -> Result<Vec<(String, Vec<Scorecard>)>, Failure> {
    let models = LanguageModels::open(run, &machine.device)?;
    let yardstick = Yardstick {
        text: Text::of(&models, Vec::new(), split)?,
        sliding: windows(&models, None, None)?,
        begin: models.begin(BeginOfText::Auto)?,
        is_usual: true,
        documents: 0,
        split,
        models: &models,
        machine,
    };
    let measured = yardstick.measure(ids)?;
    record(run, &measured)?;
    Ok(measured)
}

/// The domains that were named, each once.
fn domains(named: &[String]) -> Result<Vec<Domain>, Failure> {
    let domains = corpus::domains(named)?;
    for (number, domain) in domains.iter().enumerate() {
        let hint = "write it as --data NAME=PATH, the name of letters, digits, `-`, `_` and `.`";
        domain
            .check()
            .map_err(|e| Failure::input(format!("--data: {e}"), hint))?;
        if domains[..number].iter().any(|other| other.name == domain.name) {
            return Err(Failure::input(
                format!("--data: domain `{}` is there twice", domain.name),
                "give each domain a name of its own; a folder of several files is one domain",
            ));
        }
    }
    Ok(domains)
}

/// The windows that were asked for: without a context those of the run's training, or the whole of what the model sees.
fn windows(models: &LanguageModels, context: Option<usize>, stride: Option<usize>) -> Result<Sliding, Failure> {
    let most = models.context()?;
    let usual = models.text().map_or(most, |text| text.context);
    let usual = if (2..most).contains(&usual) { usual } else { most };
    Ok(Sliding::new(context.unwrap_or(usual), stride, most)?)
}

/// Documents to score.
enum Text {
    /// A part of a run's corpus.
    Corpus(Box<Corpus>, Part),
    /// What is read and tokenized on the way.
    Named(Vec<Domain>),
}

impl Text {
    /// The text that was named, or else the run's own.
    fn of(models: &LanguageModels, named: Vec<Domain>, split: Split) -> Result<Self, Failure> {
        if !named.is_empty() {
            return Ok(Self::Named(named));
        }
        let given = models.text().filter(|text| !text.corpus.is_empty());
        let Some(text) = given else {
            return Err(Failure::input(
                format!("{} has no text of its own to be scored on", models.place().display()),
                "name the text: --data NAME=PATH, once for each domain",
            ));
        };
        let folder = models.place().join(&text.corpus);
        let corpus = Corpus::open(&folder)?;
        if corpus.fingerprint() != text.fingerprint {
            return Err(Failure::input(
                format!(
                    "{} is not the corpus that the family was made with: its fingerprint is another",
                    folder.display()
                ),
                "put the corpus back as it was, or name the text by --data NAME=PATH",
            ));
        }
        if !corpus.tokenizer().reads_as(&models.tokenizer)? {
            return Err(Failure::input(
                format!("{}: its tokenizer is not that of the model", folder.display()),
                "put the tokenizer.json of the corpus back into the run's parent folder",
            ));
        }
        let part = match split {
            Split::Train => Part::Train,
            Split::Val => Part::Val,
            Split::Test => Part::Test,
        };
        Ok(Self::Corpus(Box::new(corpus), part))
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Corpus(corpus, _) => corpus
                .facts()
                .domains
                .iter()
                .map(|domain| domain.name.clone())
                .collect(),
            Self::Named(domains) => domains.iter().map(|domain| domain.name.clone()).collect(),
        }
    }
}

/// What every model is measured with.
struct Yardstick<'a> {
    models: &'a LanguageModels,
    machine: &'a Machine,
    text: Text,
    split: Split,
    sliding: Sliding,
    begin: Option<u32>,
    /// Whether windows and token are those that the run's numbers are measured with.
    is_usual: bool,
    /// Documents of each domain, at most; 0 for all.
    documents: u64,
}

/// How far a measurement is, in tokens of a corpus, documents that were asked for, or bytes of files.
struct Meter {
    progress: Progress,
    /// Units of the models and domains before.
    before: u64,
    what: String,
}

impl Meter {
    fn at(&mut self, done: u64) {
        self.progress.at(self.before + done, &self.what);
    }
}

impl Yardstick<'_> {
    /// Why the numbers do not go into the catalog: what is there is of all documents of the run's own text, or of any where it has
    /// none, and all in the windows of the run, so that its numbers compare.
    fn not_kept(&self) -> Option<&'static str> {
        let own = self.models.text().is_some_and(|text| !text.corpus.is_empty());
        if self.documents > 0 {
            Some("measured on a limited number of documents")
        } else if matches!(self.text, Text::Named(_)) && (own || self.models.catalog().is_none()) {
            Some("the text is not that of a run")
        } else if !self.is_usual {
            Some(
                "the windows or the begin-of-text token are not those of the run, with which its other numbers were measured",
            )
        } else {
            None
        }
    }

    /// Scorecards of the models `ids`.
    fn measure(&self, ids: &[String]) -> Result<Vec<(String, Vec<Scorecard>)>, Failure> {
        let sizes = self.sizes()?;
        let unit = match (&self.text, self.documents) {
            (Text::Corpus(..), _) => "tokens",
            (Text::Named(_), 0) => "bytes",
            (Text::Named(_), _) => "documents",
        };
        let total = sizes.iter().sum::<u64>() * ids.len() as u64;
        let mut meter = Meter {
            progress: Progress::new("perplexity", 0, total, unit),
            before: 0,
            what: String::new(),
        };
        let mut measured = Vec::with_capacity(ids.len());
        for (number, id) in ids.iter().enumerate() {
            let (network, weights) = self.models.model(id)?;
            let mut content = blake3::Hasher::new();
            content.update(b"offshoot text 1");
            let mut scores = Vec::new();
            for (domain, name) in self.text.names().into_iter().enumerate() {
                meter.what = format!("{id} {name}");
                let score = self.domain(
                    network.as_ref(),
                    &weights,
                    domain,
                    &mut meter,
                    &mut content,
                    number == 0,
                );
                let score = score.map_err(|failure| of_domain(&name, failure))?;
                meter.before += sizes[domain];
                scores.push((name, score));
            }
            let provenance = Provenance {
                split: self.split,
                data: match &self.text {
                    Text::Corpus(corpus, _) => corpus.fingerprint().to_owned(),
                    Text::Named(_) => content.finalize().to_hex().to_string(),
                },
                seed: self.models.text().map_or(0, |text| text.split_seed),
                machine: self.machine.description(),
                version: env!("CARGO_PKG_VERSION").into(),
            };
            let mut cards = provenance.perplexity(&scores, self.sliding, self.begin);
            // Text that is named is a part of nothing, but where a run has no other.
            if matches!(self.text, Text::Named(_)) && self.not_kept().is_some() {
                cards.iter_mut().for_each(|card| card.split = None);
            }
            measured.push((id.clone(), cards));
        }
        meter.progress.finish();
        Ok(measured)
    }

    /// Units of progress of each domain.
    fn sizes(&self) -> Result<Vec<u64>, Failure> {
        let most = if self.documents == 0 { u64::MAX } else { self.documents };
        match &self.text {
            Text::Corpus(corpus, part) => Ok((0..corpus.facts().domains.len())
                .filter_map(|domain| corpus.part(domain, *part))
                .map(|part| part.span(most.min(part.documents()).saturating_sub(1)).end)
                .collect()),
            Text::Named(domains) if self.documents == 0 => {
                let size = |domain: &Domain| {
                    let opened = Documents::open(&domain.path, MAX_DAMAGED).map_err(Failure::from);
                    Ok(opened
                        .map_err(|failure| of_domain(&domain.name, failure))?
                        .total_bytes())
                };
                domains.iter().map(size).collect()
            }
            Text::Named(domains) => Ok(vec![self.documents; domains.len()]),
        }
    }

    /// The score of one model on one domain. `content` hears of all text that is not a corpus'.
    fn domain(
        &self,
        network: &dyn Network,
        weights: &Weights,
        domain: usize,
        meter: &mut Meter,
        content: &mut blake3::Hasher,
        is_first: bool,
    ) -> Result<Score, Failure> {
        let decoder = network::decoder(network)?;
        let mut scorer = TextScorer::new(decoder, weights, self.sliding, self.begin)?;
        let most = if self.documents == 0 { u64::MAX } else { self.documents };
        match &self.text {
            Text::Corpus(corpus, part) => {
                let part = corpus
                    .part(domain, *part)
                    .context("a corpus has all parts of its domains")?;
                for document in 0..part.documents().min(most) {
                    scorer.add(&part.document(document)?, part.document_bytes(document))?;
                    meter.at(part.span(document).end);
                }
            }
            Text::Named(domains) => {
                let domain = &domains[domain];
                content.update(&(domain.name.len() as u64).to_le_bytes());
                content.update(domain.name.as_bytes());
                let mut source = Documents::open(&domain.path, MAX_DAMAGED)?;
                let mut left = most;
                loop {
                    let block = block(&mut source, &mut left)?;
                    if block.is_empty() {
                        break;
                    }
                    let texts: Vec<&str> = block.iter().map(|document| document.text.as_str()).collect();
                    let tokens = self.models.tokenizer.encode_all(&texts)?;
                    for (text, tokens) in texts.iter().zip(&tokens) {
                        content.update(&(text.len() as u64).to_le_bytes());
                        content.update(text.as_bytes());
                        scorer.add(tokens, text.len() as u64)?;
                        meter.at(match self.documents {
                            0 => source.done_bytes(),
                            _ => scorer.progress().0,
                        });
                    }
                }
                if is_first {
                    tell(&domain.name, &source);
                }
            }
        }
        Ok(scorer.finish()?)
    }

    fn print(&self, args: &Perplexity, measured: &[(String, Vec<Scorecard>)]) -> Result<(), Failure> {
        if args.json {
            let all: Vec<_> = measured
                .iter()
                .map(|(id, cards)| json!({ "child": id, "scorecards": cards }))
                .collect();
            say(&serde_json::to_string_pretty(&all)?)?;
        } else {
            say(&self.table(measured))?;
            say(&self.windows())?;
        }
        complain(&format!("measured with {}", self.machine.description()));
        complain(&match self.not_kept() {
            None => format!("written to {}", args.model.place.join("catalog.json").display()),
            Some(reason) => format!("not kept: {reason}"),
        });
        Ok(())
    }

    /// One row for each model and domain, and one for its mean over the domains.
    fn table(&self, measured: &[(String, Vec<Scorecard>)]) -> String {
        let columns = [
            "model",
            "domain",
            "documents",
            "tokens",
            "perplexity",
            "byte perplexity",
            "bits/byte",
        ];
        let columns: Vec<String> = columns.map(String::from).to_vec();
        let mut rows = Vec::new();
        for (id, cards) in measured {
            for pair in cards.chunks_exact(2) {
                let [token, byte] = pair else { continue };
                let domain = token.metric.split_once('/').map(|(_, domain)| domain);
                // The mean is the first of the scorecards and the last of the rows.
                let number = |key: &str| token.details[key].as_u64().unwrap_or(0);
                let values = [
                    id.clone(),
                    domain.unwrap_or("geometric mean").to_owned(),
                    thousands(token.examples as u64),
                    thousands(number("tokens")),
                    format!("{:.3}", token.value),
                    format!("{:.4}", byte.value),
                    format!("{:.4}", token.details["bits_per_byte"].as_f64().unwrap_or(f64::NAN)),
                ];
                rows.push(columns.iter().cloned().zip(values.map(|value| json!(value))).collect());
            }
            let own = rows.len() - cards.len() / 2;
            rows[own..].rotate_left(1);
        }
        table(&columns, &rows)
    }

    /// What is predicted from what, in words.
    fn windows(&self) -> String {
        let Sliding { context, stride } = self.sliding;
        let begin = match self.begin {
            Some(id) => format!("each document behind the begin-of-text token {id}, all of its tokens predicted"),
            None => "no begin-of-text token, all tokens of a document but its first predicted".to_owned(),
        };
        let least = context - stride;
        format!(
            "windows of {context} tokens, each beginning {stride} after the one before, read on their own; a token is predicted from all \
             before it, or from {least} to {} of them; {begin}; text is plain, whole documents",
            context - 1
        )
    }
}

/// What went wrong in a domain, with its name.
fn of_domain(name: &str, failure: Failure) -> Failure {
    Failure {
        error: failure.error.context(format!("domain `{name}`")),
        ..failure
    }
}

/// The next documents, `left` of them at most.
fn block(source: &mut Documents, left: &mut u64) -> Result<Vec<Document>, DataError> {
    let mut block = Vec::new();
    let mut bytes = 0;
    while bytes < AT_ONCE.0 && block.len() < AT_ONCE.1 && *left > 0 {
        let Some(document) = source.next().transpose()? else {
            break;
        };
        bytes += document.text.len();
        *left -= 1;
        block.push(document);
    }
    Ok(block)
}

/// Says what of a domain was left out.
fn tell(name: &str, source: &Documents) {
    let counts = source.counts();
    if counts.empty + counts.damaged > 0 {
        complain(&format!(
            "{name}: left out were {} documents of white space alone and {} damaged{}",
            counts.empty,
            counts.damaged,
            counts
                .first_damaged
                .iter()
                .map(|place| format!("; {place}"))
                .collect::<String>()
        ));
    }
}

/// Writes scorecards into the catalog of a run. Where it has no text of its own, older numbers of the same part were measured on some
/// other text, and go.
fn record(run: &Path, measured: &[(String, Vec<Scorecard>)]) -> Result<(), Failure> {
    let mut catalog = Catalog::open(run)?;
    let is_own = catalog.data.is_given();
    for (id, cards) in measured {
        let Some(child) = catalog.children.iter_mut().find(|child| child.id == *id) else {
            continue;
        };
        let of_text =
            |metric: &str| ["perplexity", "byte_perplexity"].contains(&metric.split('/').next().unwrap_or(""));
        let split = cards.first().and_then(|card| card.split);
        child
            .scorecards
            .retain(|card| is_own || !of_text(&card.metric) || card.split != split);
        cards.iter().for_each(|card| child.record(card.clone()));
    }
    Ok(catalog.save(run)?)
}
