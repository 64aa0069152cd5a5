//! Runs of the language method as the loop sees them: packed windows of weighted domains, one sub-network a step, probes and samples.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use offshoot_data::text::{Batches, Corpus, CorpusOptions, Domain, Draw, Tokenizer, WindowOptions, Windows, build};
use offshoot_data::{Split, SplitShares};
use offshoot_eval::{Means, Sliding, TextScorer};
use offshoot_family::recipe::Auto;
use offshoot_family::{Architecture, Decoder, DecoderKind, RopeScaling};
use offshoot_methods::language::pretrain::LanguageLearner;
use offshoot_methods::language::recipe::{CorpusFacts, LanguageRecipe, Rule};
use offshoot_methods::train::run::RunFolder;
use offshoot_methods::train::trainer::{self, Clock, Learner, Observer, Outcome, StepReport, train};
use offshoot_zoo::generate::{Generator, Sampling};
use offshoot_zoo::tensor::Device;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Tokens of a window.
const CONTEXT: usize = 12;
/// The domains, and their shares of the windows.
const DOMAINS: [(&str, f64); 2] = [("tales", 3.0), ("notes", 1.0)];
/// Words of the documents; the first three ids are special.
const WORDS: [&str; 21] = [
    "once", "upon", "a", "time", "there", "was", "child", "that", "went", "home", "and", "slept", "by", "the", "sea",
    "until", "light", "came", "back", "to", "it",
];

/// A tokenizer of whole words, each with the space before it, whose decoder takes the space away at the beginning of a text, as
/// Llama's does.
fn tokenizer() -> Tokenizer {
    let special = ["<unk>", "<s>", "</s>"];
    let words = WORDS.iter().map(|word| format!("\u{2581}{word}"));
    let all = special.iter().map(|&name| name.to_owned()).chain(words);
    let vocabulary: BTreeMap<String, usize> = all.enumerate().map(|(id, word)| (word, id)).collect();
    let added = special.iter().enumerate().map(|(id, name)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    });
    let space = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": space, "post_processor": null, "decoder": space,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    });
    Tokenizer::from_bytes(file.to_string().into_bytes(), "tokenizer").unwrap()
}

/// Documents of 1 to 30 words, a JSON line each.
fn documents(seed: usize) -> String {
    let mut lines = String::new();
    for number in 0..120 {
        let length = 1 + (number * 7 + seed) % 30;
        let words = (0..length).map(|at| WORDS[(number * number + seed * 5 + at * (number % 4 + 1)) % WORDS.len()]);
        let text = words.collect::<Vec<_>>().join(" ");
        writeln!(lines, "{}", json!({ "text": text })).unwrap();
    }
    lines
}

/// Makes the corpus of `DOMAINS` in the folder `corpus` of `root`.
fn make_corpus(root: &Path) {
    let domains: Vec<Domain> = (DOMAINS.iter().enumerate())
        .map(|(seed, (name, _))| {
            let path = root.join(format!("{name}.jsonl"));
            fs::write(&path, documents(seed)).unwrap();
            Domain {
                name: (*name).into(),
                path,
            }
        })
        .collect();
    let options = CorpusOptions {
        shares: SplitShares { val: 0.2, test: 0.1 },
        near_duplicates: false,
        ..CorpusOptions::default()
    };
    build(&root.join("corpus"), &domains, &tokenizer(), &options, &mut |_, _| {}).unwrap();
}

/// A family of six that trains in a moment: packed windows, each document with both of its ends, one sub-network a step.
fn recipe() -> LanguageRecipe {
    let mut recipe = LanguageRecipe {
        seed: 5,
        parent: Architecture::Decoder(Decoder {
            kind: DecoderKind::Llama,
            width: 24,
            depth: 2,
            heads: 6,
            kv_heads: 3,
            head_dim: 4,
            hidden: 40,
            vocabulary: 0,
            context: CONTEXT,
            norm_eps: 1e-5,
            tied: true,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
        }),
        ..LanguageRecipe::default()
    };
    recipe.data.weights = DOMAINS.iter().map(|&(name, share)| (name.to_owned(), share)).collect();
    recipe.data.packing = true;
    recipe.data.begin_of_text = Auto::Value(true);
    (recipe.space.min_width, recipe.space.min_depth) = (8, 1);
    recipe.elastic.rule = Rule::Poa;
    recipe.elastic.sampling_scale = 2.0;
    recipe.elastic.distillation = 0.5;
    recipe.elastic.temperature = 2.0;
    (recipe.optim.lr, recipe.optim.warmup_steps) = (1e-2, 3);
    (recipe.train.batch, recipe.train.steps, recipe.train.log_every) = (4, 14, 1);
    recipe.train.at_once = Auto::Value(3);
    recipe.train.checkpoint_every = Auto::Value(4);
    recipe.train.probe_every = Auto::Value(5);
    recipe.train.recompute = true;
    recipe.probe.documents = 9;
    recipe.probe.prompts = vec![String::new(), "once upon".into()];
    recipe.probe.tokens = 6;
    recipe
}

fn resolved(mut recipe: LanguageRecipe, corpus: &Corpus) -> LanguageRecipe {
    let facts = CorpusFacts {
        vocabulary: corpus.tokenizer().vocabulary(),
        begin_of_text: corpus.tokenizer().begin_of_text().is_some(),
        end_of_text: corpus.tokenizer().end_of_text().is_some(),
        fingerprint: corpus.fingerprint().to_owned(),
    };
    recipe.resolve(Some(&facts)).unwrap();
    recipe
}

/// The batches of a resolved recipe.
fn batches(recipe: &LanguageRecipe, corpus: &Arc<Corpus>) -> Batches {
    let options = WindowOptions {
        context: recipe.decoder().unwrap().context,
        packing: recipe.data.packing,
        begin_of_text: recipe.begins(),
        end_of_text: recipe.data.end_of_text.value() == Some(&true),
    };
    let windows = Windows::new(Arc::clone(corpus), Split::Train, options).unwrap();
    let draw = Draw {
        batch: recipe.train.batch,
        seed: recipe.seed,
        weights: (corpus.facts().domains.iter())
            .map(|domain| recipe.data.weights[&domain.name])
            .collect(),
    };
    Batches::new(windows, draw).unwrap()
}

/// The learner of `recipe` on the corpus in `root`, with the resolved recipe and the corpus.
fn learner(root: &Path, recipe: LanguageRecipe) -> (LanguageLearner, LanguageRecipe, Arc<Corpus>) {
    let corpus = Arc::new(Corpus::open(&root.join("corpus")).unwrap());
    let recipe = resolved(recipe, &corpus);
    let made = LanguageLearner::new(&recipe, batches(&recipe, &corpus), &Device::flex()).unwrap();
    (made, recipe, corpus)
}

/// Time that stands still, so that times are the same bytes too.
struct Still;

impl Clock for Still {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    fn wall_seconds(&self) -> f64 {
        1.7e9
    }
}

/// Asks to stop after a step, and counts what it hears.
struct Watch<'a> {
    after: u64,
    stop: &'a AtomicBool,
    probes: Vec<u64>,
}

impl Observer for Watch<'_> {
    fn stepped(&mut self, done: u64, _: u64, _: &StepReport, _: Duration) {
        if done == self.after {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn probed(&mut self, done: u64, values: &[(String, f64)]) {
        assert!(!values.is_empty());
        self.probes.push(done);
    }

    fn sampled(&mut self, _: u64, _: &[(String, String)]) {}

    fn saved(&mut self, _: u64) {}

    fn noted(&mut self, _: &str) {}
}

/// Trains into the folder `name`, from where it was stopped if it was, until `after` steps are done; the probes there were.
fn go(root: &Path, name: &str, recipe: LanguageRecipe, after: u64) -> Vec<u64> {
    let path = root.join(name);
    let run = if path.exists() {
        RunFolder::resume(&path).unwrap()
    } else {
        RunFolder::create(&path, false, &[]).unwrap()
    };
    let (mut learner, recipe, _) = learner(root, recipe);
    run.write_text("recipe.toml", &offshoot_family::recipe::to_toml(&recipe).unwrap())
        .unwrap();
    let stop = AtomicBool::new(false);
    let context = trainer::Context {
        run: &run,
        cadence: &recipe.cadence(),
        recipe: "recipe",
        machine: "machine",
        clock: &Still,
        stop: &stop,
    };
    let mut watch = Watch {
        after,
        stop: &stop,
        probes: Vec::new(),
    };
    let outcome = train(&mut learner, &context, &Device::flex(), &mut watch).unwrap();
    let steps = recipe.train.steps;
    let wanted = if after < steps {
        Outcome::Interrupted(after)
    } else {
        Outcome::Finished
    };
    assert_eq!(outcome, wanted);
    watch.probes
}

/// The lines of a file of JSON lines.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn packed_windows_of_weighted_domains_are_full_and_begin_documents_with_their_token() {
    let root = TempDir::new().unwrap();
    make_corpus(root.path());
    let (_, recipe, corpus) = learner(root.path(), recipe());
    let batches = batches(&recipe, &corpus);
    let (begin, end) = (corpus.tokenizer().begin_of_text(), corpus.tokenizer().end_of_text());
    assert_eq!((begin, end), (Some(1), Some(2)));
    let mut from = [0i64; 2];
    for step in 0..64 {
        for window in batches.batch(step).unwrap() {
            assert_eq!(window.tokens.len(), CONTEXT);
            from[window.domain] += 1;
            for pair in window.tokens.windows(2) {
                assert_eq!(
                    pair[0] == 2,
                    pair[1] == 1,
                    "an end and the beginning behind it: {pair:?}"
                );
            }
        }
    }
    // 256 draws without return of 4,096 places, of which 3 in 4 are tales: five deviations.
    assert_eq!(from[0] + from[1], 256);
    assert!((from[0] - 192).abs() <= 35, "{from:?}");
}

#[test]
fn a_run_with_packing_weights_and_one_sub_network_a_step_goes_on_as_if_it_had_not_stopped() {
    let root = TempDir::new().unwrap();
    make_corpus(root.path());
    assert_eq!(go(root.path(), "whole", recipe(), 14), [5, 10, 14]);
    for stops in [vec![6], vec![1, 9, 13]] {
        let name = format!("stopped-{}", stops[0]);
        for stop in stops {
            go(root.path(), &name, recipe(), stop);
        }
        go(root.path(), &name, recipe(), 14);
        for file in [
            "metrics.jsonl",
            "timing.jsonl",
            "samples.jsonl",
            "checkpoints/step-00000014/state.safetensors",
            "checkpoints/step-00000014/state.json",
        ] {
            let [whole, again] = ["whole", &name].map(|run| fs::read(root.path().join(run).join(file)).unwrap());
            assert!(whole == again, "{file} of {name} differs");
        }
    }
    let steps: Vec<Value> = lines(&root.path().join("whole/metrics.jsonl"));
    let steps: Vec<_> = steps.iter().filter(|line| line["loss"].is_f64()).collect();
    assert_eq!(steps.len(), 14);
    for line in &steps {
        let children = line.as_object().unwrap().keys().filter(|key| key.starts_with("loss/"));
        assert_eq!(children.count(), 1, "{line}");
        assert_eq!((&line["tokens"], &line["skipped"]), (&json!(44.0), &json!(0.0)));
    }
    // 24 tokens at random have a loss of 3.18.
    let loss = |at: usize| steps[at]["loss"].as_f64().unwrap();
    assert!(loss(0) > 3.0 && loss(13) < 2.9, "{} {}", loss(0), loss(13));
    // The parts of a step are summed in one order, so another cut of it gives other last bits and no other run.
    let mut apart = recipe();
    (apart.train.at_once, apart.train.recompute) = (Auto::Value(4), false);
    go(root.path(), "apart", apart, 14);
    let apart = lines(&root.path().join("apart/metrics.jsonl"));
    let last = apart.iter().rfind(|line| line["loss"].is_f64()).unwrap()["loss"]
        .as_f64()
        .unwrap();
    assert!((last - loss(13)).abs() < 1e-3, "{last} {}", loss(13));
}

#[test]
fn a_run_does_not_go_on_with_other_tokens_than_those_it_started_with() {
    let root = TempDir::new().unwrap();
    make_corpus(root.path());
    go(root.path(), "run", recipe(), 3);
    for file in ["train.tokens", "val.tokens"] {
        let path = root.path().join("corpus/domains/notes").join(file);
        let old = fs::read(&path).unwrap();
        let mut bytes = old.clone();
        // Another word of the vocabulary, so that nothing but the hash can tell.
        bytes[8] = if bytes[8] == 5 { 6 } else { 5 };
        fs::write(&path, bytes).unwrap();
        let corpus = Arc::new(Corpus::open(&root.path().join("corpus")).unwrap());
        let recipe = resolved(recipe(), &corpus);
        let refused = LanguageLearner::new(&recipe, batches(&recipe, &corpus), &Device::flex());
        let error = refused.err().expect("other tokens are refused");
        let said = error.to_string();
        assert!(
            said.contains(&path.display().to_string()) && said.contains("their hash differs"),
            "{said}"
        );
        assert!(
            error.hint().unwrap().contains("back as they were"),
            "{:?}",
            error.hint()
        );
        fs::write(&path, old).unwrap();
    }
    go(root.path(), "run", recipe(), 14);
}

#[test]
fn a_probe_scores_one_window_of_a_document_with_its_begin_token_in_front() {
    let root = TempDir::new().unwrap();
    make_corpus(root.path());
    for begins in [true, false] {
        let mut recipe = recipe();
        recipe.data.begin_of_text = Auto::Value(begins);
        let (mut learner, _, corpus) = learner(root.path(), recipe);
        let found = learner.probe().unwrap();
        let begin = corpus.tokenizer().begin_of_text().filter(|_| begins);
        let room = CONTEXT - usize::from(begins);
        let sliding = Sliding::new(CONTEXT, None, CONTEXT).unwrap();
        let mut scores = Vec::new();
        for domain in 0..DOMAINS.len() {
            let part = corpus.part(domain, Split::Val).unwrap();
            let count = part.documents();
            let mut scorer = TextScorer::new(learner.network(), learner.weights(), sliding, begin).unwrap();
            let mut predicted = 0;
            for number in (0..count.min(9)).map(|i| i * count / count.min(9)) {
                let mut tokens = part.document(number).unwrap();
                tokens.truncate(room);
                predicted += (tokens.len() + usize::from(begins)).saturating_sub(1).min(CONTEXT - 1) as u64;
                scorer.add(&tokens, part.document_bytes(number)).unwrap();
            }
            let score = scorer.finish().unwrap();
            assert_eq!(score.tokens, predicted);
            scores.push(score);
        }
        let mean = Means::of(&scores).unwrap().per_token;
        let named = found.iter().find(|(name, _)| name == "perplexity/24x2").unwrap();
        assert_eq!(named.1, mean, "begin of text: {begins}");
    }
}

#[test]
fn nothing_to_probe_is_nothing_to_log() {
    let root = TempDir::new().unwrap();
    make_corpus(root.path());
    let mut recipe = recipe();
    recipe.probe.documents = 0;
    assert_eq!(go(root.path(), "run", recipe, 14), [0; 0]);
    assert_eq!(lines(&root.path().join("run/metrics.jsonl")).len(), 14);
    assert_eq!(lines(&root.path().join("run/samples.jsonl")).len(), 6);
}

#[test]
fn a_sample_goes_on_behind_its_prompt_with_the_space_between_them() {
    let root = TempDir::new().unwrap();
    make_corpus(root.path());
    let mut recipe = recipe();
    recipe.probe.prompts = vec!["once upon".into(), String::new()];
    recipe.probe.temperature = 0.0;
    let (mut learner, ..) = learner(root.path(), recipe);
    // A network with fresh weights says the last token over and over.
    for step in 0..14 {
        learner.step(step, &Still).unwrap();
    }
    let samples = learner.samples().unwrap();
    let tokenizer = tokenizer();
    let prompts = [vec![1, 3, 4], vec![1]];
    for ((prompt, text), read) in samples.iter().zip(prompts) {
        // With all the room there is.
        let mut generator = Generator::new(learner.network(), learner.weights(), usize::MAX).unwrap();
        generator.read(&read).unwrap();
        let mut all = read.clone();
        let wanted = &mut |token| {
            all.push(token);
            true
        };
        generator.generate(&Sampling::greedy(), 0, 6, &[2], wanted).unwrap();
        assert!(all.len() > read.len() && !text.is_empty());
        assert_eq!(format!("{prompt}{text}"), tokenizer.decode(&all, false).unwrap());
        assert_eq!(text.starts_with(' '), !prompt.is_empty(), "{text:?}");
    }
    assert_eq!(samples.len(), 2);
}

#[test]
fn a_prompt_that_leaves_no_room_for_a_sample_is_refused_before_the_first_step() {
    let root = TempDir::new().unwrap();
    make_corpus(root.path());
    let corpus = Arc::new(Corpus::open(&root.path().join("corpus")).unwrap());
    let with = |words: usize| {
        let mut recipe = recipe();
        recipe.probe.prompts = vec!["sea ".repeat(words).trim_end().into()];
        let recipe = resolved(recipe, &corpus);
        LanguageLearner::new(&recipe, batches(&recipe, &corpus), &Device::flex())
    };
    // With the token that begins a text, and one to be written.
    assert!(with(CONTEXT - 2).is_ok());
    let error = with(CONTEXT - 1).err().expect("no room").to_string();
    assert!(
        error.contains("probe.prompts = sea") && error.contains("12 tokens leave no room"),
        "{error}"
    );
}

/// Keys and values of the whole context, 2^20 tokens of 2 x 32,768 numbers, would be 256 GiB.
#[test]
fn a_sample_takes_room_for_its_own_tokens_whatever_the_context() {
    let root = TempDir::new().unwrap();
    make_corpus(root.path());
    let mut recipe = recipe();
    let Architecture::Decoder(decoder) = &mut recipe.parent else {
        panic!("a decoder")
    };
    (decoder.width, decoder.depth, decoder.context) = (8, 1, 1 << 20);
    (decoder.heads, decoder.kv_heads, decoder.head_dim) = (1, 1, 1 << 15);
    (recipe.space.min_width, recipe.data.packing) = (0, false);
    let (mut learner, ..) = learner(root.path(), recipe);
    assert_eq!(learner.samples().unwrap().len(), 2);
}
