//! Pre-training of language models: from a recipe and text to what the loop needs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_data::Split as Part;
use offshoot_data::text::{
    Algorithm, Batches, Corpus, CorpusOptions, Documents, Domain, Draw, Tokenizer, Training, WindowOptions, Windows,
    split_of,
};
use offshoot_data::{DataError, SplitShares};
use offshoot_family::catalog::{DataRef, DomainRef, TextRef};
use offshoot_family::recipe;
use offshoot_family::{Architecture, Catalog, Ledger, Phase, Spent, TrainingCost};
use offshoot_methods::elastic::recipe::InitRecipe;
use offshoot_methods::family::{self, Cost, Made};
use offshoot_methods::language::cost;
use offshoot_methods::language::pretrain::LanguageLearner;
use offshoot_methods::language::recipe::{CorpusFacts, LanguageRecipe, METHOD, TokenizerKind};
use offshoot_methods::train::run::RunFolder;
use offshoot_zoo::{Checkpoint, Network, Preparation, TokenizerFiles, import, spec};

use super::{Ready, thousands};
use crate::args::Pretrain;
use crate::command::corpus;
use crate::command::family::short;
use crate::command::images::checked_parent;
use crate::command::import::absolute;
use crate::command::report::timed_steps;
use crate::command::text;
use crate::failure::{Exit, Failure};
use crate::machine::Machine;
use crate::terminal::say;

/// The corpus of a run that made its own, in its folder.
const CORPUS: &str = "corpus";
/// What to do where no document of a domain is in the part PART.
const HOLD_OUT_MORE: &str = "raise `data.PART`";

/// A language model that a run starts from, checked and not loaded yet.
struct Start {
    path: PathBuf,
    checkpoint: Checkpoint,
    tokenizer: TokenizerFiles,
    hash: String,
}

impl Start {
    fn open(path: &Path) -> Result<Self, Failure> {
        let (checkpoint, tokenizer) = if path.join("catalog.json").is_file() {
            let catalog = Catalog::open(path)?;
            let checkpoint = checked_parent(path, &catalog)?;
            (checkpoint, TokenizerFiles::open(&path.join(&catalog.parent.path))?)
        } else {
            let model = import::open(path, None)?;
            match model.preparation {
                Preparation::Text(tokenizer) => (model.checkpoint, tokenizer),
                Preparation::Images(_) => {
                    return Err(Failure::input(
                        format!("{} is a model of images, and the recipe is for text", path.display()),
                        "start from a decoder, such as a folder of `gpt2` or `llama`",
                    ));
                }
            }
        };
        checkpoint.decoder()?;
        Ok(Self {
            path: path.to_owned(),
            hash: checkpoint.hash()?,
            checkpoint,
            tokenizer,
        })
    }

    /// The model of a recipe that was resolved.
    fn again(init: &InitRecipe) -> Result<Self, Failure> {
        let start = Self::open(Path::new(&init.path))?;
        if start.hash != init.hash {
            return Err(Failure::input(
                format!(
                    "{} is not the model that the run was started from: its content has changed",
                    init.path
                ),
                "put it back as it was, or start a new run",
            ));
        }
        Ok(start)
    }

    fn tokenizer(&self) -> Result<Tokenizer, Failure> {
        let vocabulary = self.checkpoint.decoder()?.decoder().vocabulary;
        let tokenizer = text::tokenizer(&self.tokenizer, &self.path, vocabulary)?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
        let (begin, end) = (text(self.tokenizer.bos), text(self.tokenizer.eos));
        Ok(tokenizer.with_text_tokens(begin.as_deref(), end.as_deref())?)
    }
}

/// What a run is made of besides its corpus.
struct Sources {
    machine: Machine,
    recipe: LanguageRecipe,
    start: Option<Start>,
    /// The tokenizer that is named, or that of the model to start from, if there is one.
    tokenizer: Option<Tokenizer>,
}

/// What stands before the run folder is made.
enum Checked {
    /// All of it: the corpus was there already.
    Ready(Box<Ready<LanguageLearner>>),
    /// All but the corpus, which will be made of domains in the run folder.
    Domains(Box<Sources>, Vec<Domain>),
}

/// A new run of the recipe at `path`.
///
/// # Errors
/// If the recipe, the model that it starts from, or the text cannot be used.
pub fn run(args: &Pretrain, path: &Path, text: &str, overrides: &[String]) -> Result<Exit, Failure> {
    let (recipe, start) = new_recipe(args, path, text, overrides)?;
    if args.dry_run {
        dry_run(recipe, args.rate)?;
        return Ok(Exit::Done);
    }
    super::launch(args, &inputs(&recipe), || check(args, recipe, start), ready)
}

/// What a run of the recipe reads.
fn inputs(recipe: &LanguageRecipe) -> Vec<PathBuf> {
    let data = &recipe.data;
    let named = [&data.corpus, &data.tokenizer].into_iter().chain(data.domains.values());
    let named = named.filter(|path| !path.is_empty()).map(PathBuf::from);
    super::initial(&recipe.init.path).chain(named).collect()
}

/// The run in `run` again.
///
/// # Errors
/// If it cannot go on.
pub fn resume(args: &Pretrain, run: &RunFolder, text: &str) -> Result<Exit, Failure> {
    let origin = run.path().join("recipe.toml").display().to_string();
    let recipe: LanguageRecipe = recipe::load(&LanguageRecipe::default(), text, &origin, &[])?;
    // Later its weights are in the checkpoints.
    let unsaved = offshoot_methods::train::state::list(&run.checkpoints()).is_empty();
    let start = (unsaved && !recipe.init.path.is_empty())
        .then(|| Start::again(&recipe.init))
        .transpose()?;
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    let corpus = Corpus::open(&run.path().join(&recipe.data.corpus))?;
    let sources = Sources {
        machine,
        recipe,
        start,
        tokenizer: None,
    };
    super::go(args, assemble(sources, corpus)?, run)
}

/// The recipe of a new run, and the model that it starts from: the option's, or the recipe's own.
fn new_recipe(
    args: &Pretrain,
    path: &Path,
    text: &str,
    overrides: &[String],
) -> Result<(LanguageRecipe, Option<Start>), Failure> {
    let origin = path.display().to_string();
    if let Some(family) = recipe::given(text, overrides, "parent.family").filter(|family| family != "decoder") {
        return Err(Failure::input(
            format!("{origin}: `parent.family`: a `{family}` reads no text"),
            "language models are of the family `decoder`, of the kind `gpt2` or `llama`",
        ));
    }
    let named = recipe::given(text, overrides, "init.path").filter(|path| !path.is_empty());
    let mut default = LanguageRecipe::default();
    let Some(init) = args.init.clone().or(named.map(Into::into)) else {
        return Ok((recipe::load(&default, text, &origin, overrides)?, None));
    };
    let start = Start::open(&init)?;
    default.parent = start.checkpoint.network().architecture();
    default.init = InitRecipe {
        path: absolute(&init),
        hash: start.hash.clone(),
    };
    let mut recipe: LanguageRecipe = recipe::load(&default, text, &origin, overrides)?;
    if recipe.init.hash != start.hash {
        return Err(Failure::input(
            format!("{} is not the model that `init.hash` is of", init.display()),
            "leave the hash out to start from this one, or name the model that it belongs to",
        ));
    }
    recipe.init.path.clone_from(&default.init.path);
    if recipe.parent != default.parent {
        return Err(Failure::input(
            format!(
                "{origin} or its overrides set other numbers of the parent than {} has",
                init.display()
            ),
            "leave `[parent]` out: with --init the parent's numbers are the model's",
        ));
    }
    Ok((recipe, Some(start)))
}

/// Looks at all that can be wrong before anything is made: with a corpus that is named that is everything, and without one all but
/// what only its tokens tell.
fn check(args: &Pretrain, mut recipe: LanguageRecipe, start: Option<Start>) -> Result<Checked, Failure> {
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    recipe.clone().resolve(None)?;
    let data = &mut recipe.data;
    let mut domains = Vec::new();
    match (data.corpus.is_empty(), data.domains.is_empty()) {
        (true, true) => {
            return Err(Failure::input(
                "the recipe names no text",
                "add `data.domains.NAME=PATH` to the command, or a corpus of `offshoot tokenize` by `data.corpus=DIR`",
            ));
        }
        (false, false) => {
            return Err(Failure::input(
                "the recipe names a corpus and domains",
                "leave one of `data.corpus` and `data.domains` out",
            ));
        }
        (false, true) => data.corpus = absolute(Path::new(&data.corpus)),
        (true, false) => {
            for (name, path) in &mut data.domains {
                *path = absolute(Path::new(path));
                domains.push(Domain {
                    name: name.clone(),
                    path: PathBuf::from(&*path),
                });
            }
        }
    }
    let mut tokenizer = start.as_ref().map(Start::tokenizer).transpose()?;
    if !data.tokenizer.is_empty() {
        data.tokenizer = absolute(Path::new(&data.tokenizer));
        let named = Tokenizer::open(Path::new(&data.tokenizer))?;
        if tokenizer.as_ref().is_some_and(|own| own.hash() != named.hash()) {
            return Err(Failure::input(
                format!(
                    "{} ({} tokens) is another tokenizer than that of the model to start from",
                    data.tokenizer,
                    named.vocabulary()
                ),
                "leave `data.tokenizer` out: the model's embeddings belong to its own",
            ));
        }
        tokenizer = Some(named);
    }
    let sources = Sources {
        machine,
        recipe,
        start,
        tokenizer,
    };
    if domains.is_empty() {
        let corpus = Corpus::open(Path::new(&sources.recipe.data.corpus))?;
        check_held_out(&corpus, "tokenize the text again with a larger `--PART`")?;
        return Ok(Checked::Ready(Box::new(assemble(sources, corpus)?)));
    }
    check_domains(&sources, &domains)?;
    Ok(Checked::Domains(Box::new(sources), domains))
}

/// Looks at all that can be wrong with a run on domains before a tokenizer is trained on them and a corpus is made.
fn check_domains(sources: &Sources, domains: &[Domain]) -> Result<(), Failure> {
    corpus_options(&sources.recipe).check(domains)?;
    let (facts, begins) = match &sources.tokenizer {
        Some(tokenizer) => (facts(tokenizer, String::new())?, tokenizer.begin_of_text().is_some()),
        None => {
            let training = training(&sources.recipe);
            training.check()?;
            // Text that is too small for as many tokens gives fewer.
            let facts = CorpusFacts {
                vocabulary: training.vocabulary,
                begin_of_text: false,
                end_of_text: true,
                fingerprint: String::new(),
            };
            (facts, training.algorithm == Algorithm::Unigram)
        }
    };
    let mut recipe = sources.recipe.clone();
    recipe.resolve(Some(&facts))?;
    check_tokens(&recipe, begins)?;
    check_step(&recipe, &sources.machine)?;
    domains.iter().try_for_each(|domain| check_documents(&recipe, domain))
}

/// Refuses a domain that has no document for a part that is to be held out. No more is read than it takes to find one of each.
fn check_documents(recipe: &LanguageRecipe, domain: &Domain) -> Result<(), Failure> {
    let shares = shares(recipe);
    let mut missing = wanted(shares);
    let mut documents = Documents::open(&domain.path, recipe.data.max_damaged)?;
    let mut is_empty = true;
    for document in &mut documents {
        let part = split_of(&document?.text, shares, recipe.seed);
        is_empty = false;
        missing.retain(|wanted| *wanted != part);
        if missing.is_empty() {
            break;
        }
    }
    if is_empty {
        return Err(DataError::NoText {
            place: domain.path.display().to_string(),
            found: "no document that is not blank".into(),
        }
        .into());
    }
    match missing.first() {
        None => Ok(()),
        Some(&part) => Err(none_held_out(&domain.name, part, shares, HOLD_OUT_MORE)),
    }
}

/// Refuses a corpus in which a domain has nothing to measure in a part that is held out: perplexity would fail on it later.
fn check_held_out(corpus: &Corpus, hint: &str) -> Result<(), Failure> {
    let facts = corpus.facts();
    let shares = facts.split.shares;
    for (number, domain) in facts.domains.iter().enumerate() {
        for part in wanted(shares) {
            let lengths = corpus.part(number, part).into_iter().flat_map(|documents| {
                (0..documents.documents()).map(|document| {
                    let span = documents.span(document);
                    span.end - span.start
                })
            });
            // One token has nothing before it to be predicted from.
            if !lengths.into_iter().any(|tokens| tokens > 1) {
                return Err(none_held_out(&domain.name, part, shares, hint));
            }
        }
    }
    Ok(())
}

/// The parts that are to be held out.
fn wanted(shares: SplitShares) -> Vec<Part> {
    let parts = [(Part::Val, shares.val), (Part::Test, shares.test)];
    parts
        .into_iter()
        .filter(|(_, share)| *share > 0.0)
        .map(|(part, _)| part)
        .collect()
}

fn none_held_out(domain: &str, part: Part, shares: SplitShares, hint: &str) -> Failure {
    let (share, purpose) = match part {
        Part::Test => (shares.test, "to judge by"),
        _ => (shares.val, "to choose by"),
    };
    let name = part.name();
    Failure::input(
        format!(
            "domain `{domain}` is too small: none of its documents of two tokens or more falls into the share of {share} that is held out \
             {purpose} (data.{name})"
        ),
        format!(
            "{}, or split the text into more documents: a plain file is one, a line of a .jsonl file is one; a share of 0 holds nothing \
             out, and there is no perplexity on {name}",
            hint.replace("PART", name)
        ),
    )
}

fn shares(recipe: &LanguageRecipe) -> SplitShares {
    SplitShares {
        val: recipe.data.val,
        test: recipe.data.test,
    }
}

fn corpus_options(recipe: &LanguageRecipe) -> CorpusOptions {
    CorpusOptions {
        seed: recipe.seed,
        shares: shares(recipe),
        max_damaged: recipe.data.max_damaged,
        near_duplicates: recipe.data.near_duplicates,
        ..CorpusOptions::default()
    }
}

/// How the tokenizer of a recipe is trained: on what is not held out, as the network is.
fn training(recipe: &LanguageRecipe) -> Training {
    let algorithm = match recipe.data.algorithm {
        TokenizerKind::Bpe => Algorithm::Bpe,
        TokenizerKind::Unigram => Algorithm::Unigram,
    };
    Training {
        seed: recipe.seed,
        shares: shares(recipe),
        max_damaged: recipe.data.max_damaged,
        ..Training::new(algorithm, recipe.data.vocabulary)
    }
}

/// Makes the corpus of a run in its folder.
fn made_corpus(sources: &Sources, domains: &[Domain], run: &Path) -> Result<Corpus, Failure> {
    let paths: Vec<PathBuf> = domains.iter().map(|domain| domain.path.clone()).collect();
    let trained;
    let tokenizer = match &sources.tokenizer {
        Some(tokenizer) => tokenizer,
        None => {
            trained = corpus::trained(&paths, &training(&sources.recipe))?;
            &trained
        }
    };
    let made = corpus::built(&run.join(CORPUS), domains, tokenizer, &corpus_options(&sources.recipe))?;
    corpus::tell(&made)?;
    Ok(made)
}

/// What a step needs; a corpus that is not there yet is made in the run folder.
fn ready(checked: Checked, run: &Path) -> Result<Ready<LanguageLearner>, Failure> {
    match checked {
        Checked::Ready(ready) => Ok(*ready),
        Checked::Domains(mut sources, domains) => {
            let corpus = made_corpus(&sources, &domains, run)?;
            sources.recipe.data.corpus = CORPUS.into();
            check_held_out(&corpus, HOLD_OUT_MORE)?;
            assemble(*sources, corpus)
        }
    }
}

/// Resolves a recipe on its corpus and makes everything that a step needs.
fn assemble(sources: Sources, corpus: Corpus) -> Result<Ready<LanguageLearner>, Failure> {
    let corpus = Arc::new(corpus);
    let Sources {
        machine,
        mut recipe,
        start,
        tokenizer,
    } = sources;
    check_corpus(&recipe, &corpus, tokenizer.as_ref())?;
    recipe.data.val = corpus.facts().split.shares.val;
    recipe.data.test = corpus.facts().split.shares.test;
    recipe.data.vocabulary = corpus.tokenizer().vocabulary();
    recipe.resolve(Some(&facts(corpus.tokenizer(), corpus.fingerprint().to_owned())?))?;
    super::refuse_open(&recipe)?;
    check_tokens(&recipe, corpus.tokenizer().begin_of_text().is_some())?;
    check_step(&recipe, &machine)?;
    // Whoever asks the file whether a text begins with the token hears how the family was trained.
    let begin = corpus.tokenizer().begin_of_text().filter(|_| recipe.begins());
    let tokenizer = corpus.tokenizer().beginning_with(begin)?;
    let options = WindowOptions {
        context: recipe.decoder()?.context,
        packing: recipe.data.packing,
        begin_of_text: recipe.begins(),
        end_of_text: recipe.data.end_of_text.value() == Some(&true),
    };
    let train = Windows::new(Arc::clone(&corpus), Part::Train, options)?;
    let draw = Draw {
        batch: recipe.train.batch,
        seed: recipe.seed,
        weights: weights(&recipe, &corpus)?,
    };
    let announcement = announcement(&recipe, &corpus, &train);
    let mut learner = LanguageLearner::new(&recipe, Batches::new(train, draw)?, &machine.device)?;
    let description = machine.description();
    if let Some(start) = start {
        learner.start_from(start.checkpoint.weights(&machine.device)?)?;
    }
    Ok(Ready {
        machine,
        recipe: recipe::to_toml(&recipe)?,
        cadence: recipe.cadence(),
        announcement,
        learner,
        family: Box::new(move |learner: &LanguageLearner, run: &RunFolder| {
            let cost = learner
                .predicted()
                .map(|predicted| cost::of_run(&recipe, recipe.train.steps, predicted))
                .transpose()?;
            if let Some(cost) = &cost {
                enter(run.path(), &cost.run, &description)?;
            }
            write(&recipe, &corpus, &tokenizer, learner, cost, run)
        }),
        tell: |_| {},
    })
}

/// A corpus must be what the recipe and the model to start from mean.
fn check_corpus(recipe: &LanguageRecipe, corpus: &Corpus, tokenizer: Option<&Tokenizer>) -> Result<(), Failure> {
    let place = corpus.folder().display();
    if let Some(tokenizer) = tokenizer
        && !corpus.tokenizer().reads_as(tokenizer)?
    {
        return Err(Failure::input(
            format!(
                "{place} was tokenized with another tokenizer ({} tokens) than the one that is asked for ({} tokens)",
                corpus.tokenizer().vocabulary(),
                tokenizer.vocabulary()
            ),
            "tokenize the text again with the model's own: offshoot tokenize NAME=PATH --tokenizer MODEL -o DIR",
        ));
    }
    let known = recipe.data.fingerprint.value();
    if known.is_some_and(|known| known != corpus.fingerprint()) {
        return Err(Failure::input(
            format!("{place} is not the corpus that the recipe was resolved with: its content has changed"),
            "put the files back as they were, or start a new run with `data.fingerprint=auto`",
        ));
    }
    Ok(())
}

/// Shares of the domains in their order; none where the recipe gives none.
fn weights(recipe: &LanguageRecipe, corpus: &Corpus) -> Result<Vec<f64>, Failure> {
    let given = &recipe.data.weights;
    if given.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = corpus.facts().domains.iter().map(|d| d.name.as_str()).collect();
    if let Some(unknown) = given.keys().find(|name| !names.contains(&name.as_str())) {
        return Err(Failure::input(
            format!("`data.weights.{unknown}`: the corpus has no such domain"),
            format!("its domains are {}", names.join(", ")),
        ));
    }
    Ok(names
        .iter()
        .map(|name| given.get(*name).copied().unwrap_or(0.0))
        .collect())
}

fn announcement(recipe: &LanguageRecipe, corpus: &Corpus, train: &Windows) -> Vec<String> {
    let facts = corpus.facts();
    let children = recipe.space().map_or(0, |space| space.count());
    let windows = train.len();
    let passes = recipe.train.steps as f64 * recipe.train.batch as f64 / windows.max(1) as f64;
    let left_out = match (train.left_out(), recipe.data.packing) {
        (0, _) => String::new(),
        (count, false) => format!("; {} of one token are left out", thousands(count)),
        (count, true) => format!("; {} that would not be full are left out", thousands(count)),
    };
    let mut lines = vec![
        format!(
            "{} tokens of {} domains to train on, in {} windows of up to {}{left_out}",
            thousands(facts.tokens(Part::Train)),
            facts.domains.len(),
            thousands(windows),
            train.context()
        ),
        format!(
            "{} steps of {} windows ({passes:.1} passes) for {children} children",
            recipe.train.steps, recipe.train.batch
        ),
    ];
    let shares = facts.split.shares;
    if shares.val == 0.0 {
        lines.push(
            "no text is held out to choose by (data.val = 0): training measures no perplexity, and `offshoot eval perplexity` needs other \
             text, by --data NAME=PATH"
                .into(),
        );
    }
    if shares.test == 0.0 {
        lines.push("no text is held out to judge by (data.test = 0)".into());
    }
    lines
}

/// Enters what training cost into the run's ledger.
fn enter(run: &Path, cost: &TrainingCost, machine: &str) -> Result<(), Failure> {
    let timed = timed_steps(run).filter(|(_, mean)| *mean > 0.0);
    let mut ledger = Ledger::default();
    ledger.record(Spent {
        phase: Phase::Generic,
        what: "parent".into(),
        tokens: cost.tokens,
        flops: cost.flops,
        seconds: timed.map(|(_, mean)| mean * cost.steps as f64),
        machine: timed.map_or(String::new(), |_| machine.to_owned()),
    });
    Ok(ledger.save(run)?)
}

/// Writes the family of a finished run.
fn write(
    recipe: &LanguageRecipe,
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    learner: &LanguageLearner,
    cost: Option<Cost>,
    run: &RunFolder,
) -> Result<Catalog, Failure> {
    let context = recipe.decoder()?.context;
    let special = |id: Option<u32>| id.and_then(|id| Some((id, tokenizer.token(id)?)));
    let (begin, end) = (special(tokenizer.begin_of_text()), special(tokenizer.end_of_text()));
    let files = TokenizerFiles::new(tokenizer.content().to_vec(), begin, end, context);
    let facts = corpus.facts();
    let domains = facts.domains.iter().map(|domain| DomainRef {
        name: domain.name.clone(),
        path: domain.path.clone(),
    });
    let data = TextRef {
        corpus: recipe.data.corpus.clone(),
        domains: domains.collect(),
        fingerprint: corpus.fingerprint().to_owned(),
        tokenizer: tokenizer.hash().to_owned(),
        split_seed: facts.split.seed,
        val: recipe.data.val,
        test: recipe.data.test,
        context,
    };
    let made = Made {
        method: METHOD,
        space: &recipe.space()?,
        alpha: recipe.space.alpha,
        data: DataRef::Text(data),
        seed: recipe.seed,
        cost,
    };
    Ok(family::write(
        run.path(),
        learner.network(),
        learner.weights(),
        &Preparation::Text(files),
        made,
    )?)
}

/// What a tokenizer and the fingerprint of a corpus say about open values of a recipe.
fn facts(tokenizer: &Tokenizer, fingerprint: String) -> Result<CorpusFacts, Failure> {
    Ok(CorpusFacts {
        vocabulary: tokenizer.vocabulary(),
        begin_of_text: tokenizer.leading()?.is_some(),
        end_of_text: tokenizer.end_of_text().is_some(),
        fingerprint,
    })
}

/// Refuses a resolved recipe that asks for tokens which its tokenizer does not have: whether it has one that begins a text is `begins`.
fn check_tokens(recipe: &LanguageRecipe, begins: bool) -> Result<(), Failure> {
    let (begin, end) = (recipe.begins(), recipe.data.end_of_text.value() == Some(&true));
    if begin && !begins {
        return Err(Failure::input(
            "`data.begin_of_text = true`: the tokenizer has no token that begins a text",
            "leave it out, or name the token: offshoot tokenize NAME=PATH --tokenizer PATH --begin-of-text TOKEN -o DIR",
        ));
    }
    if recipe.data.packing && !end {
        return Err(Failure::input(
            "`data.packing = true`: documents that are joined need the token that ends a text between them, and there is none",
            "leave `data.end_of_text` out with a tokenizer that has such a token, or do without packing",
        ));
    }
    Ok(())
}

/// Refuses a resolved recipe whose step cannot be made, or needs more memory than is free.
fn check_step(recipe: &LanguageRecipe, machine: &Machine) -> Result<(), Failure> {
    let cost = cost::of_recipe(recipe)?;
    if machine.name == "cpu" {
        let hint = "lower `train.at_once`, set `train.recompute=true`, or use a machine with more memory";
        super::check_memory(cost.bytes(), hint)?;
    }
    Ok(())
}

/// Prints what a run would be, do and cost. No model is allocated, no text is read but a corpus that is named.
fn dry_run(mut recipe: LanguageRecipe, rate: f64) -> Result<(), Failure> {
    super::check_rate(rate)?;
    let mut known = None;
    if !recipe.data.corpus.is_empty() {
        let corpus = Corpus::open(Path::new(&recipe.data.corpus))?;
        check_corpus(&recipe, &corpus, None)?;
        known = Some(facts(corpus.tokenizer(), corpus.fingerprint().to_owned())?);
    }
    recipe.resolve(known.as_ref())?;
    let network = recipe.network()?;
    let decoder = network.decoder();
    let parameters = spec::parameters(&network.specs());
    let mut lines = vec![
        Architecture::Decoder(decoder.clone()).summary(),
        format!(
            "{} parameters, {} of them outside of embeddings; vocabulary {}, context {}",
            thousands(parameters),
            thousands(network.inner_parameters()),
            thousands(decoder.vocabulary as u64),
            thousands(decoder.context as u64)
        ),
    ];
    lines.extend(paper(&network, parameters));
    let space = recipe.space()?;
    if space.count() > 1 {
        lines.push(format!("{} sub-networks", space.count()));
        for shape in [space.smallest(), space.middle(), space.intact()] {
            let child = offshoot_zoo::open(&network.child(&shape, "")?.child)?;
            let count = thousands(spec::parameters(&child.specs()));
            lines.push(format!("  {shape}: {count} parameters"));
        }
    }
    let cost = cost::of_recipe(&recipe)?;
    lines.push(format!(
        "{:.3e} FLOPs a token to train, {:.3e} to use, in windows of the whole context",
        cost.token_flops, cost.inference_flops
    ));
    lines.push(format!(
        "{} of memory a step with {} windows at once: {} of weights, moments and gradients, {} of activations and logits",
        short(cost.bytes(), "B"),
        recipe.train.at_once,
        short(cost.state_bytes, "B"),
        short(cost.activation_bytes, "B")
    ));
    let tokens = recipe.train.steps as f64 * (recipe.train.batch * decoder.context) as f64;
    let hours = cost.token_flops * tokens / (rate * 1e12) / 3600.0;
    lines.push(format!(
        "{} steps of up to {} tokens, {} in all: {hours:.1} hours at {rate} TFLOP/s (--rate)",
        thousands(recipe.train.steps),
        thousands((recipe.train.batch * decoder.context) as u64),
        short(tokens, "")
    ));
    let open = recipe::unresolved(&recipe);
    if !open.is_empty() {
        let open = open.join(", ");
        lines.push(format!("worked out from the text before the first step: {open}"));
    }
    say(&lines.join("\n"))?;
    Ok(())
}

/// How a model of the paper's numbers stands to what it reports (specialize.md section 2.1).
fn paper(network: &offshoot_zoo::DecoderNetwork, parameters: u64) -> Option<String> {
    let reported: u64 = match network.familiar_name()? {
        "slm" => 126_000_000,
        "llm" => 771_000_000,
        _ => return None,
    };
    let missing = (reported as f64 - parameters as f64) / network.decoder().width as f64;
    Some(format!(
        "the paper reports {}: {missing:+.0} rows of {} channels more than this; it states neither its positions nor its exact \
         vocabulary (32,768 tokens and 4,096 positions would give it), and a gated or untied model would be far larger",
        short(reported as f64, ""),
        network.decoder().width
    ))
}
