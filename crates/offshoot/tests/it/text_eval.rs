//! Language models as the binary's users score them and write with them: a tiny decoder whose tokens are bytes.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use offshoot_data::SplitShares;
use offshoot_data::text::{Corpus, CorpusOptions, Domain, Tokenizer, build};
use offshoot_family::catalog::{DataRef, TextRef};
use offshoot_family::{Decoder, DecoderKind, RopeScaling, Split};
use offshoot_methods::family::{self, Made};
use offshoot_zoo::decoder::Tokens;
use offshoot_zoo::network::SpaceBounds;
use offshoot_zoo::tensor::device;
use offshoot_zoo::{Checkpoint, DecoderNetwork, Network, Preparation, TokenizerFiles, Weight, Weights, checkpoint};
use serde_json::{Value, json};

use crate::support::{Done, Random, Workbench, copy, files};

/// Bytes, and the two tokens that begin and end a text.
const VOCABULARY: usize = 258;
const BEGIN: u32 = 256;
const END: u32 = 257;
const CONTEXT: usize = 48;

/// A `tokenizer.json` of byte-level BPE without merges: a token is a byte. `frames` puts the begin-of-text token before each text.
fn tokenizer(frames: bool) -> Vec<u8> {
    // GPT-2's letters for bytes: printable ones stand for themselves, the others follow from U+0100 on.
    let plain = |byte: u32| (33..127).contains(&byte) || (161..173).contains(&byte) || (174..256).contains(&byte);
    let mut vocabulary = serde_json::Map::new();
    let mut others = 0;
    for byte in 0..256u32 {
        let letter = if plain(byte) {
            byte
        } else {
            others += 1;
            255 + others
        };
        vocabulary.insert(char::from_u32(letter).unwrap().to_string(), json!(byte));
    }
    let special = |id: u32, name: &str| json!({ "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let sequence = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let frame = json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, sequence],
        "pair": [sequence, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [BEGIN], "tokens": ["<s>"] } },
    });
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(BEGIN, "<s>"), special(END, "<|endoftext|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": if frames { frame } else { Value::Null },
        "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": [] },
    });
    serde_json::to_vec(&tokenizer).unwrap()
}

fn preparation(frames: bool) -> Preparation {
    let (begin, end) = (Some((BEGIN, "<s>".into())), Some((END, "<|endoftext|>".into())));
    Preparation::Text(TokenizerFiles::new(tokenizer(frames), begin, end, CONTEXT))
}

fn network(kind: DecoderKind) -> DecoderNetwork {
    let decoder = Decoder {
        kind,
        width: 16,
        depth: 2,
        heads: 4,
        kv_heads: if kind == DecoderKind::Llama { 2 } else { 4 },
        head_dim: 4,
        hidden: 24,
        vocabulary: VOCABULARY,
        context: CONTEXT,
        norm_eps: 1e-5,
        tied: true,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    };
    decoder.check().unwrap();
    DecoderNetwork::new(decoder)
}

/// Weights large enough that predictions differ.
fn weights(network: &DecoderNetwork) -> Weights {
    let device = device("cpu").unwrap();
    offshoot_zoo::initialise(&network.specs(), 5, &device).map(|w| {
        let values = w.values().into_iter().map(|v| 6.0 * v).collect();
        Weight::from_values(values, w.shape().to_vec(), &device)
    })
}

/// A workbench with a decoder as `model` and two domains, `a.jsonl` and `b`.
fn bench(kind: DecoderKind) -> Workbench {
    let bench = Workbench::bare();
    let network = network(kind);
    checkpoint::save(&network, &weights(&network), &preparation(false), &bench.path("model")).unwrap();
    texts(&bench);
    bench
}

/// Words that look random, of so many letters in all.
fn words(random: &mut Random, letters: usize) -> String {
    let text = (0..letters).map(|_| match random.next() % 9 {
        0 => ' ',
        1 => 'é',
        n => (b'a' + n as u8) as char,
    });
    text.collect()
}

fn documents(seed: u64, count: usize, longest: usize) -> Vec<String> {
    let mut random = Random(seed);
    (0..count)
        .map(|number| format!("{}.", words(&mut random, 1 + number * 7 % longest)))
        .collect()
}

fn a() -> Vec<String> {
    documents(1, 40, 150)
}

fn b() -> Vec<String> {
    documents(2, 3, 11)
}

/// Domain `a` as JSON lines with one letter and blanks among them, and domain `b` as a folder of plain files.
fn texts(bench: &Workbench) {
    let mut lines: Vec<String> = a().iter().map(|text| json!({ "text": text }).to_string()).collect();
    lines.insert(3, json!({ "text": "x" }).to_string());
    lines.insert(5, json!({ "text": "  \n" }).to_string());
    bench.write("a.jsonl", lines.join("\n"));
    for (number, text) in b().iter().enumerate() {
        bench.write(&format!("b/{number}.txt"), text);
    }
}

/// A checkpoint in memory, for a loop of our own.
struct Opened {
    checkpoint: Checkpoint,
    weights: Weights,
}

impl Opened {
    fn new(folder: &Path) -> Self {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let weights = checkpoint.weights(&device("cpu").unwrap()).unwrap();
        Self { checkpoint, weights }
    }

    /// Scores behind each of `tokens`, in f64.
    fn scores(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let network = self.checkpoint.decoder().unwrap();
        let logits = network.logits(&self.weights, &Tokens::new(&[tokens]));
        let logits = logits.try_into_vec_as::<f32>().unwrap();
        let row = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect();
        logits.chunks(VOCABULARY).map(row).collect()
    }

    /// Nats and predicted tokens of documents in windows, one token after the other: each from the window that begins where the
    /// rule says.
    fn perplexity(&self, documents: &[Vec<u32>], context: usize, stride: usize) -> (f64, u64) {
        let (mut nats, mut count) = (0.0, 0);
        for document in documents {
            for at in 1..document.len() {
                let begin = if at < context {
                    0
                } else {
                    ((at - context) / stride + 1) * stride
                };
                let scores = self.scores(&document[begin..at]).pop().unwrap();
                let total: f64 = scores.iter().map(|score| score.exp()).sum();
                nats += total.ln() - scores[document[at] as usize];
                count += 1;
            }
        }
        (nats, count)
    }
}

fn bytes(documents: &[String], begin: Option<u32>) -> Vec<Vec<u32>> {
    let ids = |text: &String| begin.into_iter().chain(text.bytes().map(u32::from)).collect();
    documents.iter().map(ids).collect()
}

/// The scorecard of a metric in the JSON of one model.
#[track_caller]
fn card<'a>(found: &'a Value, metric: &str) -> &'a Value {
    let cards = found["scorecards"].as_array().unwrap();
    let card = cards.iter().find(|card| card["metric"] == metric);
    card.unwrap_or_else(|| panic!("no {metric} in {found}"))
}

#[track_caller]
fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!((found / expected - 1.0).abs() < 1e-4, "{found} for {expected}");
}

#[test]
fn a_folder_scores_as_a_loop_over_windows_says() {
    for kind in [DecoderKind::Gpt2, DecoderKind::Llama] {
        let bench = bench(kind);
        let opened = Opened::new(&bench.path("model"));
        for (options, context, stride, begin) in [
            ("", CONTEXT, CONTEXT - 1, None),
            ("--context 16 --stride 5", 16, 5, None),
            ("--context 2", 2, 1, None),
            ("--context 20 --begin-of-text yes", 20, 19, Some(BEGIN)),
        ] {
            let words = format!("eval perplexity model --data a=a.jsonl --data b=b {options} --json");
            let done = bench.run(&words).succeeds();
            let found = &done.json()[0];
            assert_eq!(found["child"], "model");
            let mut means = [0.0, 0.0];
            for (name, texts) in [("a", a()), ("b", b())] {
                let mut all = texts.clone();
                // One letter alone holds nothing to predict, but for a token before it.
                if name == "a" && begin.is_some() {
                    all.push("x".into());
                }
                let (nats, tokens) = opened.perplexity(&bytes(&all, begin), context, stride);
                let size: usize = all.iter().map(String::len).sum();
                let token = card(found, &format!("perplexity/{name}"));
                let byte = card(found, &format!("byte_perplexity/{name}"));
                close(&token["value"], (nats / tokens as f64).exp());
                close(&byte["value"], (nats / size as f64).exp());
                let details = &token["details"];
                close(&details["bits_per_byte"], nats / size as f64 / 2f64.ln());
                assert_eq!((&details["tokens"], &details["bytes"]), (&json!(tokens), &json!(size)));
                assert_eq!(
                    (&details["context"], &details["stride"]),
                    (&json!(context), &json!(stride))
                );
                assert_eq!((&token["examples"], &token["split"]), (&json!(all.len()), &Value::Null));
                let left_out = usize::from(name == "a" && begin.is_none());
                assert_eq!(details["left_out"], left_out);
                means[0] += nats / tokens as f64 / 2.0;
                means[1] += nats / size as f64 / 2.0;
            }
            close(&card(found, "perplexity")["value"], means[0].exp());
            close(&card(found, "byte_perplexity")["value"], means[1].exp());
            done.says(&[
                "not kept",
                "a: left out were 1 documents of white space alone and 0 damaged",
            ]);
        }
    }
}

#[test]
fn the_table_has_a_row_for_each_domain_and_one_for_their_mean() {
    let bench = bench(DecoderKind::Llama);
    let done = bench
        .run("eval perplexity model --data a=a.jsonl --data b=b --documents 2")
        .succeeds()
        .says(&["limited number of documents"]);
    let rows: Vec<&str> = done.out.lines().filter(|line| line.contains("model")).collect();
    assert_eq!(rows.len(), 4, "{}", done.out);
    for (row, part) in rows.iter().zip(["domain", " a ", " b ", "geometric mean"]) {
        assert!(row.contains(part), "{}", done.out);
    }
    for part in [
        "bits/byte",
        "windows of 48 tokens, each beginning 47 after",
        "no begin-of-text token",
    ] {
        assert!(done.out.contains(part), "{part}: {}", done.out);
    }
}

#[test]
fn a_tokenizer_that_adds_a_begin_of_text_token_is_followed() {
    let bench = bench(DecoderKind::Llama);
    let path = bench.path("model").join("tokenizer.json");
    std::fs::write(path, tokenizer(true)).unwrap();
    let perplexity = |options: &str| {
        let words = format!("eval perplexity model --data b=b --json {options}");
        let found = bench.run(&words).succeeds().json();
        let card = card(&found[0], "perplexity/b");
        (
            card["value"].as_f64().unwrap(),
            card["details"]["begin_of_text"].clone(),
        )
    };
    let usual = perplexity("");
    assert_eq!(usual.1, BEGIN);
    assert_eq!(usual, perplexity("--begin-of-text yes"));
    let without = perplexity("--begin-of-text no");
    assert!(without.0 != usual.0 && without.1.is_null());
    let made = bench
        .run("generate model --prompt ab --tokens 1 --json")
        .succeeds()
        .json();
    assert_eq!(made["prompt_tokens"], json!([BEGIN, 97, 98]));
}

/// A run of three children with a corpus of its own, as `run`.
fn run(bench: &Workbench) -> PathBuf {
    let bytes = tokenizer(false);
    let own = Tokenizer::from_bytes(bytes, "tokenizer").unwrap();
    let domains = ["a", "c"].map(|name| Domain {
        name: name.into(),
        path: bench.path(&format!("{name}.jsonl")),
    });
    let lines: Vec<String> = documents(3, 60, 90)
        .iter()
        .map(|text| json!({ "text": text }).to_string())
        .collect();
    bench.write("c.jsonl", lines.join("\n"));
    let options = CorpusOptions {
        shares: SplitShares { val: 0.3, test: 0.3 },
        near_duplicates: false,
        ..CorpusOptions::default()
    };
    let folder = bench.path("run");
    std::fs::create_dir_all(&folder).unwrap();
    build(&folder.join("corpus"), &domains, &own, &options, &mut |_, _| {}).unwrap();
    let corpus = Corpus::open(&folder.join("corpus")).unwrap();
    let network = network(DecoderKind::Llama);
    let bounds = SpaceBounds {
        min_width: 8,
        min_depths: vec![1],
        ..SpaceBounds::default()
    };
    let space = network.space(bounds).unwrap();
    let text = TextRef {
        corpus: "corpus".into(),
        domains: Vec::new(),
        fingerprint: corpus.fingerprint().into(),
        tokenizer: own.hash().into(),
        split_seed: 0,
        val: 0.3,
        test: 0.3,
        context: 24,
    };
    let made = Made {
        method: "elastic",
        space: &space,
        alpha: true,
        data: DataRef::Text(text),
        seed: 4,
        cost: None,
    };
    family::write(&folder, &network, &weights(&network), &preparation(false), made).unwrap();
    folder
}

/// The documents of one part of a domain of the run's corpus.
fn part(run: &Path, domain: &str, split: offshoot_data::Split) -> Vec<Vec<u32>> {
    let corpus = Corpus::open(&run.join("corpus")).unwrap();
    let part = corpus.part(corpus.domain(domain).unwrap(), split).unwrap();
    (0..part.documents())
        .map(|number| part.document(number).unwrap())
        .collect()
}

#[test]
fn a_run_is_scored_on_its_own_held_out_text_and_picked_by_it() {
    let bench = bench(DecoderKind::Llama);
    let run = run(&bench);
    bench.run("eval perplexity run").succeeds().says(&["written to"]);
    let catalog = bench.catalog();
    assert_eq!(catalog.children.len(), 4);
    let opened = Opened::new(&run.join("parent"));
    let whole = catalog.child("16x2").unwrap();
    let mut mean = 0.0;
    for domain in ["a", "c"] {
        let documents = part(&run, domain, offshoot_data::Split::Val);
        let (nats, tokens) = opened.perplexity(&documents, 24, 23);
        let found = whole.scorecard(&format!("perplexity/{domain}"), Split::Val).unwrap();
        close(&json!(found.value), (nats / tokens as f64).exp());
        let scored = documents.iter().filter(|document| document.len() > 1).count();
        assert_eq!((found.examples, &found.details["tokens"]), (scored, &json!(tokens)));
        assert_eq!(found.data.as_deref(), Some(catalog.data.fingerprint()));
        mean += nats / tokens as f64 / 2.0;
    }
    close(&json!(whole.score("perplexity", Split::Val).unwrap()), mean.exp());
    let values: BTreeSet<String> = catalog
        .children
        .iter()
        .map(|child| child.score("byte_perplexity", Split::Val).unwrap().to_string())
        .collect();
    assert_eq!(values.len(), 4);
    // Less is better.
    let best = catalog.children.iter().min_by(|a, b| {
        let score = |child: &offshoot_family::Child| child.score("perplexity", Split::Val).unwrap();
        score(a).total_cmp(&score(b))
    });
    let best = best.unwrap().id.clone();
    let done = bench.run("pick run --params 1G").succeeds();
    assert!(done.out.starts_with(&best), "{} of {best}", done.out);
    assert!(done.out.contains("test documents"), "{}", done.out);
    assert!(
        bench
            .catalog()
            .child(&best)
            .unwrap()
            .score("perplexity", Split::Test)
            .is_some()
    );
    bench.run("pick run --params 1G --by perplexity/c").succeeds();
    let table = bench.run("family run --sort perplexity/val").succeeds();
    assert!(table.out.contains("perplexity/test"), "{}", table.out);
}

#[test]
fn what_is_no_measurement_of_the_runs_text_is_not_kept() {
    let bench = bench(DecoderKind::Llama);
    let run = run(&bench);
    let before = files(&run);
    let limited = bench
        .run("eval perplexity run --child 8x1 --documents 2 --json")
        .succeeds();
    assert_eq!(card(&limited.json()[0], "perplexity/a")["examples"], 2);
    assert_eq!(card(&limited.json()[0], "perplexity")["split"], "val");
    let other = bench
        .run("eval perplexity run --child 8x1 --data b=b --json")
        .succeeds();
    assert_eq!(card(&other.json()[0], "perplexity")["split"], Value::Null);
    // What is measured in other windows does not compare with the numbers of the other children.
    for (options, context, stride) in [
        ("--context 10", 10, 9),
        ("--stride 5", 24, 5),
        ("--begin-of-text yes", 24, 23),
    ] {
        let done = bench
            .run(&format!(
                "eval perplexity run --child 8x1 --split test {options} --json"
            ))
            .succeeds();
        let found = done.json();
        let details = &card(&found[0], "perplexity")["details"];
        assert_eq!(
            (&details["context"], &details["stride"]),
            (&json!(context), &json!(stride))
        );
        done.says(&["not kept: the windows or the begin-of-text token"]);
    }
    assert_eq!(files(&run), before);
    bench
        .run("eval perplexity run --child 8x1 --split test --context 24 --stride 23")
        .succeeds()
        .says(&["written to"]);
    let catalog = bench.catalog();
    let child = catalog.child("8x1").unwrap();
    assert!(child.scorecard("perplexity", Split::Test).is_some());
    assert!(child.scorecard("perplexity", Split::Val).is_none());
}

#[test]
fn another_tokenizer_in_the_parents_folder_is_refused_wherever_it_is_read() {
    let bench = bench(DecoderKind::Llama);
    let run = run(&bench);
    // As many tokens, but not the same ones.
    std::fs::write(run.join("parent/tokenizer.json"), tokenizer(true)).unwrap();
    for words in [
        "eval perplexity run",
        "eval perplexity run --data a=a.jsonl",
        "generate run --prompt a",
        "export run --child 8x1 -o out",
    ] {
        bench
            .run(words)
            .refuses_with_hint(&["tokenizer.json is not the tokenizer"], &["put the file back"]);
    }
    assert!(!bench.path("out").exists());
}

#[test]
fn an_imported_model_is_scored_on_the_text_that_is_named() {
    let bench = bench(DecoderKind::Gpt2);
    bench.run("import model -o run").succeeds();
    bench
        .run("eval perplexity run")
        .refuses_with_hint(&["no text of its own"], &["--data NAME=PATH"]);
    bench
        .run("eval perplexity run --data a=a.jsonl --data b=b")
        .succeeds()
        .says(&["written to"]);
    let cards = |bench: &Workbench| bench.catalog().children[0].scorecards.clone();
    let first = cards(&bench);
    assert_eq!(first.len(), 6);
    bench.run("eval perplexity run --data a=a.jsonl --data b=b").succeeds();
    assert_eq!(cards(&bench), first);
    // Other text takes the place of the former, so that all numbers of a part are of one text.
    bench.run("eval perplexity run --data b=b").succeeds();
    let second = cards(&bench);
    assert_eq!(second.len(), 4);
    assert_ne!(second[0].data, first[0].data);
    bench.run("eval perplexity run --data b=b --split test").succeeds();
    assert_eq!(cards(&bench).len(), 8);
}

#[test]
fn a_token_is_timed_at_a_stated_context() {
    let bench = bench(DecoderKind::Llama);
    run(&bench);
    bench
        .run("eval latency run --repeats 3 --context 20 --child 16x2")
        .succeeds();
    let catalog = bench.catalog();
    let found = catalog.child("16x2").unwrap();
    assert!(found.latency_ms().unwrap() > 0.0);
    assert_eq!(found.scorecards[0].details["context"], 20);
    bench.run("eval latency run --repeats 1 --child 8x1").succeeds();
    assert_eq!(
        bench.catalog().child("8x1").unwrap().scorecards[0].details["context"],
        CONTEXT
    );
}

#[test]
fn text_and_windows_that_cannot_be_scored_are_refused() {
    let bench = bench(DecoderKind::Gpt2);
    let with = |options: &str| bench.run(&format!("eval perplexity model --data a=a.jsonl {options}"));
    with("--context 1").refuses(&["context = 1", "at least 2"]);
    with("--context 49").refuses(&["context = 49", "48"]);
    with("--context 8 --stride 8").refuses(&["stride = 8", "1 and 7"]);
    with("--stride 0").refuses(&["stride = 0"]);
    with("--data a=b").refuses_with_hint(&["`a`", "twice"], &["name of its own"]);
    with("--data nonsense").refuses(&["domain `nonsense`"]);
    with("--data n/=b").refuses_with_hint(&["n/"], &["NAME=PATH"]);
    with("--data a/b=b").refuses_with_hint(&["a/b"], &["letters"]);
    with("--data c=missing.jsonl").refuses(&["domain `c`", "missing.jsonl"]);
    with("--child 16x2").refuses_with_hint(&["one model"], &["--child"]);
    bench
        .run("eval perplexity model")
        .refuses_with_hint(&["no text of its own"], &["--data"]);
    bench.write("blank.jsonl", "{\"text\": \"  \"}\n");
    with("--data c=blank.jsonl").refuses(&["domain `c`", "two tokens"]);
    bench.write("letters.jsonl", "{\"text\": \"x\"}\n{\"text\": \"y\"}\n");
    with("--data c=letters.jsonl").refuses(&["domain `c`", "two tokens"]);
    bench.write("damaged.jsonl", "{\"text\": \"good\"}\n{\"text\": 3}\nno JSON\n");
    with("--data c=damaged.jsonl").refuses_with_hint(&["damaged.jsonl:2"], &["UTF-8"]);
    bench.write("latin.txt", b"caf\xe9");
    with("--data c=latin.txt").refuses(&["latin.txt"]);
    bench.write("picture.png", "no text");
    with("--data c=picture.png").refuses_with_hint(&["no text"], &[".jsonl"]);
    bench
        .run("eval perplexity nowhere --data a=a.jsonl")
        .refuses(&["nowhere"]);
    bench.run("eval knn model").refuses(&["catalog.json"]);
}

#[test]
fn models_without_their_tokenizer_or_of_images_are_refused() {
    let bench = bench(DecoderKind::Llama);
    copy(&bench.path("model"), &bench.path("bare"));
    std::fs::remove_file(bench.path("bare").join("tokenizer.json")).unwrap();
    let refused = |name: &str, parts: &[&str], hints: &[&str]| {
        bench
            .run(&format!("eval perplexity {name} --data b=b"))
            .refuses_with_hint(parts, hints);
        bench
            .run(&format!("generate {name} --prompt ab --tokens 2"))
            .refuses_with_hint(parts, hints);
    };
    refused("bare", &["tokenizer.json"], &["AutoTokenizer"]);
    // Of a larger vocabulary: its bytes have ids that the model does not know.
    copy(&bench.path("model"), &bench.path("other"));
    let mut other: Value = serde_json::from_slice(&tokenizer(false)).unwrap();
    for (_, id) in other["model"]["vocab"].as_object_mut().unwrap() {
        *id = json!(id.as_u64().unwrap() + 300);
    }
    bench.write("other/tokenizer.json", other.to_string());
    refused("other", &["556", "258"], &["tokenizer.json"]);
    bench.run("import other -o none").refuses(&["556", "258"]);
    assert!(!bench.path("none").exists());
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../offshoot-zoo/tests/fixtures/import/vit");
    copy(&images, &bench.path("images"));
    refused("images", &["no language model"], &["llama"]);
    bench.run("import images -o run").succeeds();
    refused("run", &["no language model"], &["llama"]);
    let run = Workbench::bare();
    texts(&run);
    let folder = self::run(&run);
    run.write("run/parent/tokenizer.json", tokenizer(true));
    run.run("eval perplexity run").refuses(&["tokenizer"]);
    run.write("run/parent/tokenizer.json", tokenizer(false));
    std::fs::remove_dir_all(folder.join("corpus")).unwrap();
    run.run("eval perplexity run").refuses(&["corpus"]);
}

/// The first of the best scores.
fn best(scores: &[f64]) -> u32 {
    let mut best = 0;
    for (id, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = id;
        }
    }
    best as u32
}

fn tokens(made: &Value, sample: usize) -> Vec<u32> {
    serde_json::from_value(made["samples"][sample]["tokens"].clone()).unwrap()
}

#[test]
fn greedy_text_is_that_of_a_loop_over_the_whole_text() {
    for kind in [DecoderKind::Gpt2, DecoderKind::Llama] {
        let bench = bench(kind);
        let opened = Opened::new(&bench.path("model"));
        for prompt in ["a", "Hello,world"] {
            let mut text: Vec<u32> = prompt.bytes().map(u32::from).collect();
            for _ in 0..30 {
                let next = best(&opened.scores(&text).pop().unwrap());
                text.push(next);
            }
            let words = format!("generate model --prompt {prompt} --tokens 30 --json");
            for options in [
                "--temperature 0",
                "--top-k 1",
                "--top-p 0.000001",
                "--temperature 0 --threads 3",
            ] {
                let made = bench.run(&format!("{words} {options}")).succeeds().json();
                let end = text.iter().position(|&id| id == END).unwrap_or(text.len());
                assert_eq!(tokens(&made, 0), text[prompt.len()..end], "{kind:?} {options}");
            }
        }
    }
}

#[test]
fn seeds_repeat_and_samples_differ() {
    let bench = bench(DecoderKind::Llama);
    let made = |options: &str| {
        let words = format!("generate model --prompt ab --tokens 20 --top-k 0 --samples 2 --json {options}");
        let made = bench.run(&words).succeeds().json();
        [tokens(&made, 0), tokens(&made, 1)]
    };
    let first = made("--seed 3");
    assert_eq!(first, made("--seed 3 --threads 1"));
    assert_eq!(first, made("--seed 3 --threads 3"));
    assert_ne!(first[0], first[1]);
    assert_ne!(first, made("--seed 4"));
    // Far above every other setting, the penalty takes what occurred out of the text.
    let made = made("--temperature 0 --repetition-penalty 1e6")[0].clone();
    let distinct: BTreeSet<u32> = made.iter().copied().collect();
    assert!(distinct.len() > made.len() / 2, "{made:?}");
}

/// A decoder in which nothing but the last token counts, and each byte of `cycle` is followed by the next of it.
fn cycling(bench: &Workbench, cycle: &str) {
    let decoder = Decoder {
        tied: false,
        ..network(DecoderKind::Llama).decoder().clone()
    };
    let network = DecoderNetwork::new(decoder);
    let width = network.decoder().width;
    let device = device("cpu").unwrap();
    let mut weights = Weights::new();
    for spec in network.specs() {
        let mut values = vec![0.0; spec.elements()];
        let bytes: Vec<u8> = cycle.bytes().collect();
        assert!(bytes.len() <= width && bytes.iter().collect::<BTreeSet<_>>().len() == bytes.len());
        for (number, &byte) in bytes.iter().enumerate() {
            let next = bytes[(number + 1) % bytes.len()];
            match spec.name.as_str() {
                "embed.weight" => values[usize::from(byte) * width + number] = 1.0,
                "head.weight" => values[usize::from(next) * width + number] = 5.0,
                _ => {}
            }
        }
        if spec.name.ends_with("norm.weight") || spec.name.contains("norm1") || spec.name.contains("norm2") {
            values.fill(1.0);
        }
        weights.insert(&spec.name, Weight::from_values(values, spec.shape(), &device));
    }
    checkpoint::save(&network, &weights, &preparation(false), &bench.path("model")).unwrap();
}

#[test]
fn text_comes_in_whole_characters() {
    let bench = Workbench::bare();
    let cycle = "é日🎉";
    cycling(&bench, cycle);
    let mut child = bench
        .command(&[
            "generate",
            "model",
            "--prompt",
            "é",
            "--tokens",
            "40",
            "--temperature",
            "0",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = String::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = out.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        text.push_str(std::str::from_utf8(&buffer[..read]).expect("whole characters"));
    }
    assert!(child.wait().unwrap().success());
    // 40 tokens behind the first character are four rounds of nine bytes, and the four of a last bit: two characters but one byte.
    let whole: String = cycle.chars().cycle().take(1 + 4 * 3).collect();
    let rest = text.strip_prefix(&whole).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(rest, "日\u{fffd}\n");
    let made = bench
        .run("generate model --prompt é --tokens 3 --temperature 0 --samples 2 --json")
        .succeeds()
        .json();
    for sample in 0..2 {
        assert_eq!(tokens(&made, sample), [0xe6, 0x97, 0xa5]);
        assert_eq!(made["samples"][sample]["text"], "日");
        assert_eq!(made["samples"][sample]["stopped_by"], "tokens");
    }
}

#[test]
fn prompts_come_from_words_files_and_standard_input() {
    let bench = bench(DecoderKind::Gpt2);
    bench.write("prompt.txt", "a b\nc");
    let of_file = bench
        .run("generate model --prompt-file prompt.txt --tokens 5 --json")
        .succeeds()
        .json();
    assert_eq!(of_file["prompt_tokens"], json!([97, 32, 98, 10, 99]));
    let mut child = bench
        .command(&["generate", "model", "--prompt-file", "-", "--tokens", "5", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a b\nc").unwrap();
    let piped = Done::of("generate", child.wait_with_output().unwrap())
        .succeeds()
        .json();
    assert_eq!(tokens(&piped, 0), tokens(&of_file, 0));
    // Names of special tokens are these tokens, and nothing at all is the beginning of a text.
    let made = bench
        .run("generate model --prompt a<s> --tokens 1 --json")
        .succeeds()
        .json();
    assert_eq!(made["prompt_tokens"], json!([97, BEGIN]));
    bench.write("empty.txt", "");
    let made = bench
        .run("generate model --prompt-file empty.txt --tokens 1 --json")
        .succeeds()
        .json();
    assert_eq!(made["prompt_tokens"], json!([BEGIN]));
    let full = bench
        .run("generate model --prompt ab --tokens 1000 --json")
        .succeeds()
        .json();
    if full["samples"][0]["stopped_by"] != "end" {
        assert_eq!(full["samples"][0]["stopped_by"], "context");
        assert_eq!(tokens(&full, 0).len(), CONTEXT - 2);
    }
}

#[test]
fn a_run_writes_with_its_largest_child_or_the_one_that_is_named() {
    let bench = bench(DecoderKind::Llama);
    run(&bench);
    let made = |options: &str| {
        bench.run(&format!(
            "generate run --prompt ab --tokens 8 --temperature 0 --json {options}"
        ))
    };
    let largest = made("").succeeds().json();
    assert_eq!(largest["model"], "16x2");
    assert_eq!(made("--child 16x2").succeeds().json()["samples"], largest["samples"]);
    assert_eq!(made("--child 8x1").succeeds().json()["model"], "8x1");
    made("--child 8x9").refuses_with_hint(&["8x9"], &["8x"]);
}

#[test]
fn prompts_and_settings_that_make_no_text_are_refused() {
    let bench = bench(DecoderKind::Gpt2);
    let with = |options: &str| bench.run(&format!("generate model --tokens 3 {options}"));
    with("--prompt ab --temperature -1").refuses(&["temperature"]);
    with("--prompt ab --top-p 0").refuses(&["top_p"]);
    with("--prompt ab --top-p 1.5").refuses(&["top_p"]);
    with("--prompt ab --repetition-penalty 0").refuses(&["repetition_penalty"]);
    with(&format!("--prompt {}", "x".repeat(CONTEXT))).refuses_with_hint(&["48 tokens"], &["shorter"]);
    with("--prompt-file missing.txt").refuses(&["missing.txt"]);
    bench.write("latin.txt", b"caf\xe9");
    with("--prompt-file latin.txt").refuses_with_hint(&["latin.txt", "byte 3"], &["UTF-8"]);
    with("--prompt ab --child 16x2").refuses(&["one model"]);
    with("").ends_with(1);
}
