//! `offshoot tokenizer` and `offshoot tokenize`: from text to a tokenizer, and to a corpus that runs read.

use std::path::{Path, PathBuf};

use offshoot_data::SplitShares;
use offshoot_data::text::{self, Algorithm, Corpus, CorpusOptions, Domain, Tokenizer, Training};

use super::pretrain::thousands;
use crate::args::{Tokenize, TokenizerCommand, TokenizerKind, TrainTokenizer};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::terminal::say;

/// Bytes of one unit of progress.
const UNIT: u64 = 1 << 20;

/// Runs `offshoot tokenizer`.
pub fn tokenizer(command: &TokenizerCommand) -> Result<(), Failure> {
    match command {
        TokenizerCommand::Train(args) => train(args),
    }
}

fn train(args: &TrainTokenizer) -> Result<(), Failure> {
    if args.out.is_file() && !args.overwrite {
        return Err(Failure::input(
            format!("{} is there already", args.out.display()),
            "choose another file, or replace it by `--overwrite`",
        ));
    }
    let training = Training {
        seed: args.seed,
        ..Training::new(algorithm(args.algorithm), args.vocabulary)
    };
    let tokenizer = trained(&args.text, &training)?;
    tokenizer.save(&args.out)?;
    say(&format!(
        "wrote {}: {} tokens",
        args.out.display(),
        thousands(tokenizer.vocabulary() as u64)
    ))?;
    let out = args.out.display();
    say(&format!(
        "next: offshoot tokenize NAME=PATH --tokenizer {out} -o corpus"
    ))?;
    Ok(())
}

fn algorithm(kind: TokenizerKind) -> Algorithm {
    match kind {
        TokenizerKind::Bpe => Algorithm::Bpe,
        TokenizerKind::Unigram => Algorithm::Unigram,
    }
}

/// Trains a tokenizer on `paths`, with progress.
pub fn trained(paths: &[PathBuf], training: &Training) -> Result<Tokenizer, Failure> {
    let mut progress = bytes("tokenizer");
    let tokenizer = Tokenizer::train(paths, training, &mut progress)?;
    Ok(tokenizer)
}

/// Progress in bytes of files.
fn bytes(what: &'static str) -> impl FnMut(u64, u64) {
    let mut shown: Option<Progress> = None;
    move |done, total| {
        let progress = shown.get_or_insert_with(|| Progress::new(what, 0, total.div_ceil(UNIT), "MiB"));
        progress.at(done.div_ceil(UNIT), "");
        if done >= total {
            progress.finish();
        }
    }
}

/// Runs `offshoot tokenize`.
pub fn tokenize(args: &Tokenize) -> Result<(), Failure> {
    let domains = domains(&args.text)?;
    let tokenizer = Tokenizer::open(&args.tokenizer)?
        .with_text_tokens(args.begin_of_text.as_deref(), args.end_of_text.as_deref())?;
    let options = CorpusOptions {
        seed: args.seed,
        shares: SplitShares {
            val: args.val,
            test: args.test,
        },
        max_damaged: args.max_damaged,
        near_duplicates: !args.keep_near_duplicates,
        ..CorpusOptions::default()
    };
    let corpus = built(&args.out, &domains, &tokenizer, &options)?;
    tell(&corpus)?;
    say(&format!(
        "next: offshoot pretrain recipes/slm-126m.toml data.corpus={} --dry-run",
        args.out.display()
    ))?;
    Ok(())
}

/// Makes a corpus, with progress.
pub fn built(
    folder: &Path,
    domains: &[Domain],
    tokenizer: &Tokenizer,
    options: &CorpusOptions,
) -> Result<Corpus, Failure> {
    let mut progress = bytes("tokenize");
    Ok(text::build(folder, domains, tokenizer, options, &mut progress)?)
}

/// Domains as they are typed: `NAME=PATH`, or a path that gives the name.
pub fn domains(typed: &[String]) -> Result<Vec<Domain>, Failure> {
    typed.iter().map(|text| domain(text)).collect()
}

fn domain(typed: &str) -> Result<Domain, Failure> {
    if let Some((name, path)) = typed.split_once('=') {
        return Ok(Domain {
            name: name.to_owned(),
            path: path.into(),
        });
    }
    let path = PathBuf::from(typed);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name: String = name.split('.').next().unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(Failure::input(
            format!("`{typed}` gives no name to the domain"),
            "write it as NAME=PATH",
        ));
    }
    Ok(Domain { name, path })
}

/// Says what a corpus holds, and what was left out of it.
pub fn tell(corpus: &Corpus) -> Result<(), Failure> {
    let facts = corpus.facts();
    for domain in &facts.domains {
        let [train, val, test] = [&domain.train, &domain.val, &domain.test];
        say(&format!(
            "{}: {} documents, {} bytes; tokens {} to train on, {} to choose by, {} to judge by",
            domain.name,
            thousands(domain.documents),
            thousands(domain.bytes),
            thousands(train.tokens),
            thousands(val.tokens),
            thousands(test.tokens)
        ))?;
        let removed = &domain.removed;
        say(&format!(
            "  left out: {} empty, {} damaged; of those to train on {} equal and {} nearly equal to a held-out document",
            removed.empty, removed.damaged, removed.exact_duplicates, removed.near_duplicates
        ))?;
        for place in &removed.first_damaged {
            say(&format!("    damaged: {place}"))?;
        }
    }
    say(&format!("fingerprint {}", facts.fingerprint))?;
    Ok(())
}
