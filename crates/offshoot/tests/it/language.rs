//! Language models from text to family, on the project's own documents: real text that is always at hand.

use std::fs;
use std::path::Path;

use offshoot_data::SplitShares;
use offshoot_data::text::{Tokenizer, split_of};
use offshoot_family::{Catalog, Ledger, Phase, Scorecard, Split};
use serde_json::{Value, json};

use crate::support::{Workbench, files};

/// A family of nine decoders that trains in seconds.
const RECIPE: &str = r#"
method = "language"
seed = 3

[data]
domains = { guide = "guide.jsonl", log = "log.jsonl" }
vocabulary = 400
val = 0.2
test = 0.1

[parent]
family = "decoder"
kind = "llama"
width = 48
depth = 3
heads = 6
kv_heads = 3
hidden = 96
context = 32

[space]
min_width = 16
min_depth = 1

[elastic]
distillation = 0.5

[optim]
lr = 3e-3
schedule = "cosine"
warmup_steps = 5
clip = 1.0

[train]
batch = 6
at_once = 4
steps = 24
log_every = 2
checkpoint_every = 7
probe_every = 10

[probe]
documents = 20
prompts = ["", "A child"]
tokens = 12
"#;

/// Paragraphs of the project's documents below `places`, as JSON lines.
fn documents(places: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut lines = String::new();
    for place in places {
        let path = root.join(place);
        let mut paths = vec![path.clone()];
        if path.is_dir() {
            paths = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            paths.retain(|path| path.extension().is_some_and(|end| end == "md"));
            paths.sort();
        }
        for path in paths {
            let text = fs::read_to_string(&path).unwrap();
            for paragraph in text.split("\n\n").filter(|paragraph| paragraph.len() > 80) {
                lines.push_str(&json!({ "text": paragraph }).to_string());
                lines.push('\n');
            }
        }
    }
    lines
}

fn bench() -> Workbench {
    let bench = Workbench::bare();
    bench.write(
        "guide.jsonl",
        documents(&["ARCHITECTURE.md", "CONTRIBUTING.md", "docs", "README.md"]),
    );
    bench.write(
        "log.jsonl",
        documents(&["docs/log", "CHANGELOG.md", "evidence/poa/README.md"]),
    );
    bench.write("recipe.toml", RECIPE);
    bench
}

/// The values of the last probe, by name.
fn probe(run: &Path) -> Vec<(String, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of = |line: Value| -> Vec<(String, f64)> {
        let values = line.as_object().unwrap().iter();
        values
            .filter(|(name, _)| name.starts_with("perplexity/"))
            .map(|(name, value)| (name.clone(), value.as_f64().unwrap()))
            .collect()
    };
    lines.map(of).rfind(|values| !values.is_empty()).unwrap()
}

#[test]
fn a_run_stopped_anywhere_and_resumed_gives_the_same_bytes() {
    let bench = bench();
    bench.run("pretrain recipe.toml --out whole").succeeds();
    let whole = files(&bench.path("whole"));
    for stops in [vec![1], vec![7, 8], vec![23]] {
        let name = format!("stopped-{}", stops[0]);
        for (i, stop) in stops.iter().enumerate() {
            let how = if i == 0 {
                format!("recipe.toml --out {name}")
            } else {
                format!("--resume {name}")
            };
            bench.run(&format!("pretrain {how} --stop-after {stop}")).succeeds();
        }
        bench.run(&format!("pretrain --resume {name}")).succeeds();
        let again = files(&bench.path(&name));
        let timed = |name: &str| {
            name.starts_with("events.")
                || ["timing.jsonl", "ledger.json"].contains(&name)
                || name.starts_with("checkpoints/")
        };
        for (file, bytes) in whole.iter().filter(|(file, _)| !timed(file)) {
            assert!(again.get(file) == Some(bytes), "{file} of {name} differs");
        }
        let last = "checkpoints/step-00000024/state.safetensors";
        assert!(whole[last] == again[last], "{name}: the last checkpoint differs");
    }
    let samples = String::from_utf8(whole["samples.jsonl"].clone()).unwrap();
    let samples: Vec<Value> = samples
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let steps: Vec<u64> = samples.iter().map(|sample| sample["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [10, 10, 20, 20, 24, 24]);
    assert!(samples[1]["prompt"] == "A child" && !samples[1]["text"].as_str().unwrap().is_empty());
    // From a corpus that was made before, another way to the same tokens.
    bench
        .run(
            "tokenize guide=guide.jsonl log=log.jsonl --tokenizer whole/corpus --val 0.2 --test 0.1 --seed 3 -o corpus",
        )
        .succeeds();
    let text = RECIPE.replace(
        "domains = { guide = \"guide.jsonl\", log = \"log.jsonl\" }",
        "corpus = \"corpus\"",
    );
    bench.write("apart.toml", text);
    bench.run("pretrain apart.toml --out apart").succeeds();
    let apart = files(&bench.path("apart"));
    assert!(whole["parent/model.safetensors"] == apart["parent/model.safetensors"]);
}

#[test]
fn children_are_the_better_the_larger_after_training_on_real_text() {
    let bench = bench();
    let words = "pretrain recipe.toml train.steps=300 train.batch=8 train.at_once=8 train.probe_every=0 --out run";
    bench.run(words).succeeds();
    let values = probe(&bench.path("run"));
    let of = |shape: &str| {
        values
            .iter()
            .find(|(name, _)| name == &format!("perplexity/{shape}"))
            .unwrap()
            .1
    };
    let (smallest, middle, intact) = (of("16x1"), of("32x2"), of("48x3"));
    // A token of 400 at random has a perplexity of 400.
    assert!(smallest < 200.0, "{values:?}");
    assert!(intact < middle && middle < smallest, "{values:?}");
    let each: Vec<&str> = values
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("perplexity/48x3/"))
        .collect();
    assert_eq!(each, ["guide", "log"]);
}

#[test]
fn what_cannot_be_trained_on_is_refused_before_anything_is_made() {
    let bench = bench();
    let refused = |overrides: &str, says: &[&str]| {
        bench
            .run(&format!("pretrain recipe.toml --out run {overrides}"))
            .refuses(says);
        assert!(!bench.path("run").exists(), "{overrides}");
    };
    refused("data.domains.more=missing.txt", &["missing.txt"]);
    refused("data.corpus=corpus", &["a corpus and domains", "data.domains"]);
    refused("parent.context=1", &["context = 1"]);
    refused("parent.heads=5", &["kv_heads"]);
    refused("parent.family=vit", &["a `vit` reads no text", "decoder"]);
    refused("space.min_width=20", &["min_width 20"]);
    refused("parent.vocabulary=100", &["parent.vocabulary = 100", "leave it out"]);
    refused("data.weights.other=1", &["data.weights = other"]);
    refused("method=elastic", &["no architecture `decoder` for images", "language"]);
    refused("method=other", &["no method `other`", "language"]);
    refused("data.val=2", &["val 2", "exceed 1"]);
    refused("data.val=-0.1", &["val -0.1"]);
    refused("data.vocabulary=256", &["256 is not between 257"]);
    refused("data.domains.GUIDE=log.jsonl", &["two are called"]);
    refused("data.domains.-/x=log.jsonl", &["is no name"]);
    refused("data.max_damaged=2", &["max_damaged"]);
    refused(
        "data.begin_of_text=true",
        &["data.begin_of_text = true", "no token that begins"],
    );
    refused(
        "data.packing=true data.end_of_text=false",
        &["data.packing = true", "the token that ends"],
    );
    refused("data.weights.guide=-1", &["data.weights = -1"]);
    refused(
        "parent.width=6144 parent.depth=1000 space.min_width=0 space.min_depth=0",
        &["of memory"],
    );
    refused("space.min_width=16 elastic.sampling_scale=0", &["sampling scale"]);
    bench.write("none.toml", "method = \"language\"\n");
    bench
        .run("pretrain none.toml --out run")
        .refuses_with_hint(&["names no text"], &["data.domains.NAME=PATH"]);
    let dry = bench.run("pretrain recipe.toml --dry-run").succeeds();
    assert!(
        dry.out.contains("FLOPs a token") && dry.out.contains("9 sub-networks"),
        "{}",
        dry.out
    );
}

#[test]
fn an_imported_decoder_is_a_parent_whose_tokenizer_counts() {
    let bench = bench();
    bench.run("pretrain recipe.toml train.steps=2 --out first").succeeds();
    bench.run("export first --child 32x2 -o model").succeeds();
    // With another tokenizer it is refused, with its own it goes on, as the network that it is.
    bench
        .run("tokenizer train guide.jsonl --vocabulary 300 -o other.json")
        .succeeds();
    bench.write("more.toml", RECIPE.split("[parent]").next().unwrap());
    let words = "pretrain more.toml --init model --out second train.steps=3 train.batch=2 probe.prompts=[]";
    bench
        .run(&format!("{words} data.tokenizer=other.json"))
        .refuses(&["another tokenizer"]);
    let done = bench.run(words).succeeds();
    done.says(&["1 children"]);
    let text = fs::read_to_string(bench.path("second/recipe.toml")).unwrap();
    assert!(text.contains("width = 32") && text.contains("kv_heads = 2"), "{text}");
    let third = bench.run("import model -o third").succeeds();
    assert!(third.out.contains("LlamaForCausalLM of transformers"), "{}", third.out);
    bench
        .run("export third --all --check -o four")
        .refuses_with_hint(&["--check"], &["eval perplexity"]);
    assert!(!bench.path("four").exists());
}

/// A perplexity as `offshoot eval perplexity` leaves it, of a value that a test needs.
fn scored(value: f64) -> Scorecard {
    Scorecard {
        metric: "perplexity".into(),
        value,
        split: Some(Split::Val),
        data: Some("f00d".into()),
        examples: 31,
        seed: 3,
        machine: "CPU".into(),
        version: "0".into(),
        details: serde_json::Map::new(),
    }
}

#[test]
fn a_family_of_text_is_listed_and_reported_by_perplexity_with_what_training_cost() {
    let bench = bench();
    bench
        .run("pretrain recipe.toml train.steps=12 train.log_every=1 train.probe_every=4 --out run")
        .succeeds();
    let run = bench.path("run");
    let mut catalog = Catalog::open(&run).unwrap();
    let cost = catalog.cost.unwrap();
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let tokens: f64 = lines.filter_map(|line| line["tokens"].as_f64()).sum();
    assert_eq!((cost.steps, cost.tokens as f64), (12, tokens));
    let ledger = Ledger::open(&run).unwrap();
    let generic = ledger.sum(&[Phase::Generic]);
    assert_eq!((generic.tokens, generic.flops), (cost.tokens, cost.flops));
    assert!(generic.seconds.is_some_and(|seconds| seconds > 0.0) && !ledger.spent[0].machine.is_empty());
    assert_eq!(ledger.sum(&Phase::ALL), generic);
    let alone = |id: &str| catalog.child(id).unwrap().training_flops_alone.unwrap();
    // The intact network, the smallest in every step, and one more in most.
    assert!(cost.flops > alone("48x3") + alone("16x1") && cost.flops < 2.0 * alone("48x3"));
    assert!(alone("16x1") < alone("32x2") && alone("32x2") < alone("48x3"));

    let listed = bench.run("family run").succeeds().out;
    assert!(listed.contains("perplexity/val"), "{listed}");
    let hint = "not measured by perplexity yet: 9; offshoot eval perplexity run";
    assert!(listed.contains(hint), "{listed}");
    let values = [1234.4, 123.44, 12.344];
    for (child, value) in catalog.children.iter_mut().zip(values.iter().cycle()) {
        child.record(scored(*value));
    }
    catalog.save(&run).unwrap();
    // The least is the best, and first where numbers ascend.
    let listed = bench.run("family run --sort perplexity").succeeds().out;
    let places =
        [" 12.34", " 123.4", " 1,234"].map(|value| listed.find(value).unwrap_or_else(|| panic!("{value}: {listed}")));
    assert!(places.is_sorted(), "{listed}");
    let few = bench.run("family run --filter perplexity<100 --json").succeeds().json();
    assert_eq!(few.as_array().unwrap().len(), 3);

    let sample = json!({"step": 8, "prompt": "The ", "text": "The </script><b>end"});
    bench.write("run/samples.jsonl", format!("{sample}\n{{\"step\": 12, \"te"));
    bench.run("report run").succeeds();
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    for part in [
        "less is better",
        "perplexity over training cost",
        "multiply-adds of one token",
        "Loss of sub-networks",
        "by domain",
        "after step 8; the bold words were given",
        "&lt;b&gt;end",
    ] {
        assert!(page.to_lowercase().contains(&part.to_lowercase()), "{part}");
    }
    assert!(!page.contains("one image"), "a page about text");
}

#[test]
fn what_begins_a_text_in_training_begins_it_in_every_score_and_every_export() {
    let bench = bench();
    bench
        .run("tokenizer train guide.jsonl --algorithm unigram --vocabulary 700 -o t.json")
        .succeeds();
    let score = |model: &str| {
        let words = format!("eval perplexity {model} --data log=log.jsonl --documents 9 --json");
        let found = bench.run(&words).succeeds().json();
        let cards = found[0]["scorecards"].as_array().unwrap();
        let card = cards.iter().find(|card| card["metric"] == "perplexity").unwrap();
        (
            card["value"].as_f64().unwrap(),
            card["details"]["begin_of_text"].clone(),
        )
    };
    let train = "pretrain recipe.toml data.tokenizer=t.json train.steps=2 probe.prompts=[]";
    bench
        .run(&format!("{train} data.begin_of_text=true --out begun"))
        .succeeds();
    bench.run(&format!("{train} --out plain")).succeeds();
    for (run, begin) in [("begun", json!(1)), ("plain", Value::Null)] {
        let expected = score(&format!("{run} --child 48x3"));
        assert_eq!(expected.1, begin, "{run}");
        bench.run(&format!("export {run} --child 48x3 -o {run}-hf")).succeeds();
        bench
            .run(&format!("export {run} --child 48x3 --format gguf -o {run}-gguf"))
            .succeeds();
        for model in [
            format!("{run}-hf"),
            format!("{run}-gguf/model.gguf"),
            format!("{run}/parent"),
        ] {
            let found = score(&model);
            assert_eq!(found.1, begin, "{model}");
            assert!(
                (found.0 / expected.0 - 1.0).abs() < 1e-5,
                "{model}: {found:?} for {expected:?}"
            );
        }
        // Where it goes on from such a model, it goes on in the same way.
        bench.write("more.toml", RECIPE.split("[parent]").next().unwrap());
        bench
            .run(&format!(
                "pretrain more.toml --init {run}-hf --out {run}-on train.steps=1 train.batch=2 probe.prompts=[]"
            ))
            .succeeds();
        let recipe = fs::read_to_string(bench.path(&format!("{run}-on/recipe.toml"))).unwrap();
        assert!(recipe.contains(&format!("begin_of_text = {}", begin == 1)), "{recipe}");
    }
}

/// What the old run holds is only taken away for a run that can start: with a corpus that is named, and with domains.
#[test]
fn what_cannot_start_overwrites_nothing() {
    let bench = bench();
    bench
        .run("pretrain recipe.toml --out run train.steps=1 probe.prompts=[]")
        .succeeds();
    bench
        .run("tokenize guide=guide.jsonl --tokenizer run/corpus --val 0.2 --test 0.1 -o corpus")
        .succeeds();
    bench
        .run("tokenizer train guide.jsonl --vocabulary 300 -o other.json")
        .succeeds();
    bench
        .run("tokenize guide=guide.jsonl --tokenizer other.json --val 0.2 --test 0 -o unlike")
        .succeeds();
    bench.write(
        "apart.toml",
        RECIPE.replace("domains = { guide = \"guide.jsonl\", log = \"log.jsonl\" }\n", ""),
    );
    let before = files(&bench.path("run"));
    for (wrong, says) in [
        ("recipe.toml data.val=2", "exceed 1"),
        ("recipe.toml data.vocabulary=200", "200 is not between 257"),
        ("recipe.toml data.domains.-x=missing.jsonl", "missing.jsonl"),
        ("recipe.toml data.packing=true data.end_of_text=false", "data.packing"),
        ("recipe.toml data.begin_of_text=true", "data.begin_of_text"),
        (
            "recipe.toml parent.width=6144 parent.depth=1000 space.min_width=0 space.min_depth=0",
            "memory",
        ),
        ("recipe.toml data.val=1e-9", "data.val"),
        ("recipe.toml train.batch=2000000", "train.batch"),
        ("recipe.toml data.tokenizer=run/corpus", "run/corpus"),
        ("recipe.toml data.domains.more=run/samples.jsonl", "run/samples.jsonl"),
        ("apart.toml data.corpus=typo", "typo"),
        ("apart.toml data.corpus=run/corpus", "run/corpus"),
        (
            "apart.toml data.corpus=corpus data.tokenizer=other.json",
            "another tokenizer",
        ),
        (
            "apart.toml data.corpus=corpus data.fingerprint=f00d",
            "its content has changed",
        ),
        ("apart.toml data.corpus=corpus data.weights.log=1", "no such domain"),
        (
            "apart.toml data.corpus=corpus data.begin_of_text=true",
            "data.begin_of_text",
        ),
        (
            "apart.toml data.corpus=corpus parent.vocabulary=300",
            "parent.vocabulary = 300",
        ),
        (
            "apart.toml data.corpus=corpus parent.width=6144 parent.depth=1000 space.min_width=0 space.min_depth=0",
            "memory",
        ),
        ("apart.toml --init run", "run/parent"),
    ] {
        let words = format!("pretrain {wrong} --out run --overwrite");
        bench.run(&words).refuses(&[says]);
        assert!(files(&bench.path("run")) == before, "{wrong}: the old run was touched");
    }
    // Somebody's corpus is no run of ours, in a folder with a recipe of theirs, too.
    fs::create_dir(bench.path("exp")).unwrap();
    fs::rename(bench.path("corpus"), bench.path("exp/corpus")).unwrap();
    let before = files(&bench.path("exp"));
    for words in [
        "pretrain apart.toml data.corpus=exp/corpus --out exp",
        "pretrain recipe.toml --out exp",
        "pretrain recipe.toml --out exp --overwrite",
        "import run/parent -o exp --overwrite",
    ] {
        bench.run(words).refuses(&["exp"]);
        assert!(files(&bench.path("exp")) == before, "{words}");
    }
    bench.write("exp/recipe.toml", RECIPE);
    bench
        .run("pretrain recipe.toml --out exp --overwrite")
        .refuses(&["no run was started in it"]);
    // A model to import stays where it is, and so does one below a folder of that name.
    fs::create_dir(bench.path("mine")).unwrap();
    fs::rename(bench.path("run/parent"), bench.path("mine/parent")).unwrap();
    let before = files(&bench.path("mine"));
    for overwrite in ["", "--overwrite"] {
        bench
            .run(&format!("import mine/parent -o mine {overwrite}"))
            .refuses_with_hint(&["mine/parent"], &["another folder"]);
        assert!(files(&bench.path("mine")) == before);
    }
}

/// Perplexity on a part without a document would fail at the end; that is told at the start.
#[test]
fn a_domain_of_which_nothing_is_held_out_is_refused() {
    let bench = bench();
    for (number, line) in fs::read_to_string(bench.path("guide.jsonl"))
        .unwrap()
        .lines()
        .take(3)
        .enumerate()
    {
        let line: Value = serde_json::from_str(line).unwrap();
        bench.write(&format!("few/{number}.txt"), line["text"].as_str().unwrap());
    }
    let train = "pretrain recipe.toml data.domains.few=few train.steps=1 probe.prompts=[] --out run";
    bench
        .run(&format!("{train} data.val=0.001 data.test=0"))
        .refuses_with_hint(
            &["domain `few`", "share of 0.001", "data.val"],
            &["raise `data.val`", ".jsonl", "share of 0"],
        );
    bench
        .run(&format!("{train} data.val=0 data.test=0.001"))
        .refuses_with_hint(&["domain `few`", "data.test"], &["raise `data.test`"]);
    assert!(!bench.path("run").exists());
    // One token is nothing to predict: with documents of one letter there are documents and no perplexity.
    let letters: Vec<String> = ('a'..='z')
        .map(|letter| json!({ "text": letter }).to_string())
        .collect();
    bench.write("letters.jsonl", letters.join("\n"));
    bench
        .run("pretrain recipe.toml data.domains.letters=letters.jsonl data.val=0.3 data.test=0.3 --out run")
        .refuses(&["domain `letters`", "two tokens or more"]);
    assert!(!bench.path("run").exists());
    bench
        .run("tokenizer train guide.jsonl --vocabulary 300 -o t.json")
        .succeeds();
    bench
        .run("tokenize few=few --tokenizer t.json --val 0.001 --test 0 -o corpus")
        .succeeds();
    let apart = RECIPE.replace("domains = { guide = \"guide.jsonl\", log = \"log.jsonl\" }\n", "");
    bench.write("apart.toml", apart);
    bench
        .run("pretrain apart.toml data.corpus=corpus --out run")
        .refuses_with_hint(&["domain `few`"], &["larger `--val`"]);
    assert!(!bench.path("run").exists());
    // Whoever holds nothing out gets that, and a note.
    let done = bench.run(&format!("{train} data.val=0 data.test=0")).succeeds();
    done.says(&["no text is held out to choose by", "no text is held out to judge by"]);
    assert!(
        !fs::read_to_string(bench.path("run/metrics.jsonl"))
            .unwrap()
            .contains("perplexity")
    );
}

/// A tokenizer that a run trains sees what the network sees, and no held-out document.
#[test]
fn no_held_out_document_has_a_word_in_the_tokenizer() {
    let bench = Workbench::bare();
    let shares = SplitShares { val: 0.3, test: 0.2 };
    // One word a document, so frequent in it that it would be a token.
    let letters: Vec<char> = ('a'..='z').collect();
    let words: Vec<String> = (0..40)
        .map(|n| {
            [n, n + 7, 3 * n + 1, 5 * n + n / 26, 11 * n]
                .map(|at| letters[at % 26])
                .iter()
                .collect()
        })
        .collect();
    let text = |word: &String| format!("{word} ").repeat(20).trim().to_owned();
    let lines: Vec<String> = words
        .iter()
        .map(|word| json!({ "text": text(word) }).to_string())
        .collect();
    bench.write("words.jsonl", lines.join("\n"));
    let recipe = RECIPE
        .replace(
            "{ guide = \"guide.jsonl\", log = \"log.jsonl\" }",
            "{ words = \"words.jsonl\" }",
        )
        .replace(
            "val = 0.2\ntest = 0.1",
            "val = 0.3\ntest = 0.2\nnear_duplicates = false",
        );
    bench.write("recipe.toml", recipe);
    for algorithm in ["bpe", "unigram"] {
        let words_of = format!(
            "pretrain recipe.toml train.steps=1 data.vocabulary=600 data.algorithm={algorithm} --out {algorithm}"
        );
        bench.run(&words_of).succeeds();
        let tokenizer = Tokenizer::open(&bench.path(&format!("{algorithm}/corpus"))).unwrap();
        let mut counts = [0; 3];
        for word in &words {
            let part = split_of(&text(word), shares, 3);
            counts[part as usize] += 1;
            let tokens = tokenizer.encode(&text(word)).unwrap().len();
            assert_eq!(
                tokens <= 21,
                part == offshoot_data::Split::Train,
                "{algorithm}: {word} has {tokens} tokens, {part:?}"
            );
        }
        assert!(counts.iter().all(|count| *count > 2), "{counts:?}");
    }
}

#[test]
fn what_a_run_leaves_out_and_how_often_it_sees_the_rest_is_told() {
    let bench = Workbench::bare();
    // Bytes are tokens: with the one that ends a text, 29 to 36 of them in windows of 8.
    let lines: Vec<String> = (0..80)
        .map(|n| json!({ "text": format!("{n:028}{}", "z".repeat(n % 8)) }).to_string())
        .collect();
    bench.write("a.jsonl", lines.join("\n"));
    let recipe = RECIPE.replace(
        "{ guide = \"guide.jsonl\", log = \"log.jsonl\" }",
        "{ a = \"a.jsonl\" }",
    );
    bench.write("recipe.toml", recipe);
    bench.write("plain.txt", "no word occurs twice");
    bench
        .run("tokenizer train plain.txt --vocabulary 257 -o bytes.json")
        .succeeds();
    let words = "pretrain recipe.toml data.tokenizer=bytes.json parent.context=8 train.steps=50 train.batch=8 train.probe_every=0 \
        probe.prompts=[] data.near_duplicates=false";
    let shares = SplitShares { val: 0.2, test: 0.1 };
    let (mut windows, mut left_out, mut tokens) = (0, 0, 0);
    for line in &lines {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap();
        if split_of(text, shares, 3) == offshoot_data::Split::Train {
            let length = text.len() + 1;
            tokens += length;
            (windows, left_out) = match length % 8 {
                1 => (windows + length / 8, left_out + 1),
                _ => (windows + length.div_ceil(8), left_out),
            };
        }
    }
    assert!(left_out > 2, "{left_out}");
    bench.run(&format!("{words} --out run")).succeeds().says(&[
        &format!("in {windows} windows of up to 8; {left_out} of one token are left out"),
        &format!("50 steps of 8 windows ({:.1} passes)", 400.0 / windows as f64),
    ]);
    bench
        .run(&format!("{words} data.packing=true --out packed"))
        .succeeds()
        .says(&[&format!(
            "in {} windows of up to 8{}",
            tokens / 8,
            if tokens % 8 == 0 {
                ""
            } else {
                "; 1 that would not be full are left out"
            }
        )]);
}

/// Unusual and fine, or refused: never a mistake of ours, whatever the numbers.
#[test]
fn odd_numbers_are_no_mistake_of_ours() {
    let bench = bench();
    bench
        .run("pretrain recipe.toml --out first train.steps=1 probe.prompts=[]")
        .succeeds();
    fs::rename(bench.path("first/corpus"), bench.path("corpus")).unwrap();
    let apart = "domains = { guide = \"guide.jsonl\", log = \"log.jsonl\" }";
    bench.write("apart.toml", RECIPE.replace(apart, "corpus = \"corpus\""));
    for (setting, refused) in [
        ("train.batch=1099511627776", "train.batch"),
        ("train.batch=0", "train.batch"),
        ("train.at_once=1048577", "train.at_once"),
        ("train.at_once=1000", ""),
        ("train.steps=0", "train.steps"),
        ("train.log_every=0", ""),
        ("train.checkpoint_every=0", ""),
        ("train.keep=0", ""),
        ("elastic.random=1000000000000", "elastic.random"),
        ("elastic.random=0", ""),
        ("elastic.random=1000", ""),
        ("elastic.temperature=1e-300", ""),
        ("elastic.distillation=nan", "elastic.distillation"),
        ("elastic.sampling_scale=1e300", "cycle"),
        ("optim.beta1=1", "optim.beta1"),
        ("optim.beta2=1", "optim.beta2"),
        ("optim.beta1=0 optim.beta2=0", ""),
        ("optim.epsilon=1e-300", "optim.epsilon"),
        ("optim.lr=1e30", ""),
        ("optim.lr=nan", "optim.lr"),
        ("optim.warmup_steps=18446744073709551615", ""),
        ("optim.weight_decay=inf", "optim.weight_decay"),
        ("optim.clip=0", "optim.clip"),
        ("parent.context=2", ""),
        ("parent.context=1000000000000", ""),
        ("parent.vocabulary=1000000000000", ""),
        ("space.min_width=17", "min_width"),
        ("space.depth_step=100", ""),
        ("space.width_step=7", ""),
        ("space.min_hidden=1", ""),
        ("probe.documents=0", ""),
        ("probe.documents=18446744073709551615", ""),
        ("probe.tokens=0 probe.prompts=[\"\"]", ""),
        ("probe.tokens=100000000000 probe.prompts=[\"\"]", ""),
        ("probe.temperature=0 probe.prompts=[\"a\"]", ""),
        ("data.weights={guide=1e300,log=1e-300}", ""),
        ("data.weights={guide=0,log=0}", "data.weights"),
        ("seed=9223372036854775807", ""),
    ] {
        let prompts = if setting.contains("probe.prompts") {
            ""
        } else {
            "probe.prompts=[]"
        };
        let words =
            format!("pretrain apart.toml --out run --overwrite train.steps=2 train.batch=2 {prompts} {setting}");
        let done = bench.run(&words);
        assert!(
            matches!(done.code, Some(0 | 1)),
            "{setting}: {:?}\n{}",
            done.code,
            done.err
        );
        assert!(!done.err.contains("panicked"), "{setting}\n{}", done.err);
        if !refused.is_empty() {
            done.refuses(&[refused]);
        }
    }
}

fn shipped(name: &str) -> String {
    format!("{}/../../recipes/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// As docs/language.md and the hint of `import` have it.
#[test]
fn an_imported_model_goes_on_by_the_recipe_that_comes_along() {
    let bench = bench();
    bench
        .run("pretrain recipe.toml train.steps=2 probe.prompts=[] --out first")
        .succeeds();
    bench.run("export first --child 32x2 -o model").succeeds();
    let imported = bench.run("import model -o base").succeeds();
    assert!(imported.out.contains("recipes/continue-lm.toml"), "{}", imported.out);
    let recipe = shipped("continue-lm.toml");
    for (init, out) in [("model", "on"), ("base", "again")] {
        bench
            .run(&format!(
                "pretrain {recipe} --init {init} data.domains.mine=guide.jsonl --out {out} train.steps=2 probe.tokens=4"
            ))
            .succeeds()
            .says(&["1 children"]);
        let written = fs::read_to_string(bench.path(&format!("{out}/recipe.toml"))).unwrap();
        assert!(
            written.contains("width = 32") && written.contains("vocabulary = 400"),
            "{written}"
        );
    }
    bench
        .run(&format!(
            "pretrain {} --init model data.domains.mine=guide.jsonl --out no",
            shipped("lm-small.toml")
        ))
        .refuses_with_hint(&["other numbers of the parent"], &["[parent]"]);
}
