//! Clusters of corpora on disk: stopped and resumed, by any number of threads, assigned to other corpora, and refused.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_data::text::{Corpus, CorpusOptions, Domain, Tokenizer, WindowOptions, Windows, build as build_corpus};
use offshoot_data::{Rng, Split, SplitShares};
use offshoot_methods::specialize::cluster::{
    ClusterError, ClusterFolder, Clusters, Encoder, Facts, Outcome, Phase, Request, TfIdf, TfIdfSettings, Watch,
    assign, build,
};
use offshoot_methods::specialize::histogram::{Resampling, Target};
use offshoot_methods::specialize::resample::ClusterDraw;
use offshoot_zoo::safetensors;
use offshoot_zoo::tensor::Device;
use serde_json::json;
use tempfile::TempDir;

/// Words of each of four subjects.
const SUBJECTS: [&str; 4] = [
    "court judge appeal law statute plaintiff verdict jury",
    "protein cell gene enzyme receptor membrane tissue virus",
    "ship sea captain harbour sail wind storm island",
    "kernel driver memory thread buffer device register interrupt",
];

/// A tokenizer of whole words.
fn tokenizer() -> Tokenizer {
    let words = SUBJECTS.iter().flat_map(|words| words.split(' '));
    let all = ["<unk>", "</s>"].into_iter().chain(words);
    let vocabulary: BTreeMap<&str, usize> = all.enumerate().map(|(id, word)| (word, id)).collect();
    let special = |id: usize, name: &str| json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0, "<unk>"), special(1, "</s>")],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    });
    Tokenizer::from_bytes(file.to_string().into_bytes(), "tokenizer").unwrap()
}

/// A corpus whose domain `d` has documents of the subjects `domains[d]` in turns.
fn corpus(root: &Path, name: &str, domains: &[&[usize]], documents: usize) -> Arc<Corpus> {
    let mut rng = Rng::for_example(0, name, 0, 0);
    let domains: Vec<Domain> = (domains.iter().enumerate())
        .map(|(d, subjects)| {
            let mut lines = String::new();
            for number in 0..documents {
                let words: Vec<&str> = SUBJECTS[subjects[number % subjects.len()]].split(' ').collect();
                let text: Vec<&str> = (0..6 + number % 20).map(|_| words[rng.range(0..words.len())]).collect();
                writeln!(lines, "{}", json!({ "text": text.join(" ") })).unwrap();
            }
            let path = root.join(format!("{name}-{d}.jsonl"));
            fs::write(&path, lines).unwrap();
            Domain {
                name: format!("d{d}"),
                path,
            }
        })
        .collect();
    let options = CorpusOptions {
        shares: SplitShares { val: 0.1, test: 0.1 },
        near_duplicates: false,
        ..CorpusOptions::default()
    };
    Arc::new(build_corpus(&root.join(name), &domains, &tokenizer(), &options, &mut |_, _| {}).unwrap())
}

fn windows(corpus: &Arc<Corpus>, split: Split) -> Windows {
    Windows::new(Arc::clone(corpus), split, WindowOptions::new(12, corpus)).unwrap()
}

fn request(windows: &Windows, branches: &[usize]) -> Request<'static> {
    // The windows live as long as the test.
    let windows: &'static Windows = Box::leak(Box::new(
        Windows::new(Arc::clone(windows.corpus()), windows.split(), windows.options()).unwrap(),
    ));
    Request {
        windows,
        encoder: None,
        terms: TfIdfSettings {
            dimensions: 8,
            ..TfIdfSettings::new(0)
        },
        branches: branches.to_vec(),
        sample: Some(200),
        steps: 8,
        balance: 1.5,
        seed: 5,
        keep_embeddings: false,
    }
}

/// Stops after so many calls.
struct StopAfter(u32);

impl Watch for StopAfter {
    fn at(&mut self, _: Phase, done: u64, total: u64) {
        assert!(done <= total);
        self.0 = self.0.saturating_sub(1);
    }

    fn is_stopped(&self) -> bool {
        self.0 == 0
    }
}

fn never() -> StopAfter {
    StopAfter(u32::MAX)
}

fn done(outcome: Result<Outcome, ClusterError>) -> Facts {
    match outcome {
        Ok(Outcome::Done(facts)) => *facts,
        other => panic!("{other:?}"),
    }
}

fn made(folder: &Path, request: &Request<'_>) -> Facts {
    let folder = ClusterFolder::create(folder, false, &[]).unwrap();
    done(build(&folder, request, &mut never()))
}

/// All files of a folder.
fn bytes(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                all.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    all
}

struct Made {
    base: TempDir,
    corpus: Arc<Corpus>,
}

fn four_subjects() -> Made {
    let base = tempfile::tempdir().unwrap();
    let corpus = corpus(base.path(), "generic", &[&[0, 1], &[2, 3], &[0, 1, 2, 3]], 400);
    Made { base, corpus }
}

#[test]
fn subjects_become_clusters_and_the_index_is_the_inverse_of_the_assignments() {
    let made_up = four_subjects();
    let windows = windows(&made_up.corpus, Split::Train);
    let folder = made_up.base.path().join("clusters");
    let facts = made(&folder, &request(&windows, &[4]));
    let clusters = Clusters::open(&folder).unwrap();
    clusters.check(&windows).unwrap();
    assert_eq!(clusters.facts(), &facts);
    assert_eq!((facts.clusters(), facts.windows.count), (4, windows.len()));
    // Every window of a subject lies in the subject's cluster.
    let tokenizer = made_up.corpus.tokenizer();
    let mut of_subject = BTreeMap::new();
    let mut histogram = [0; 4];
    for number in 0..windows.len() {
        let window = windows.get(number).unwrap();
        let word = tokenizer.token(window.tokens[0]).unwrap();
        let subject = SUBJECTS.iter().position(|words| words.split(' ').any(|w| w == word));
        let cluster = clusters.cluster(number).unwrap();
        assert_eq!(
            *of_subject.entry(subject).or_insert(cluster),
            cluster,
            "window {number}"
        );
        histogram[cluster as usize] += 1;
    }
    assert_eq!(of_subject.len(), 4);
    assert_eq!(facts.histogram(None), histogram);
    let own = facts.histogram(Some(&["d0"]));
    assert_eq!(own.iter().filter(|n| **n > 0).count(), 2);
    let members = clusters.members();
    let mut seen = 0;
    for cluster in 0..4 {
        for member in 0..members.len(cluster) {
            assert_eq!(clusters.cluster(members.get(cluster, member)).unwrap(), cluster);
            seen += 1;
        }
    }
    assert_eq!(seen, windows.len());
    assert!(clusters.cluster(windows.len()).is_err());
    // What was needed on the way is gone.
    let names: Vec<String> = bytes(&folder)
        .into_keys()
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(
        names,
        [
            "assignments.u32",
            "by-cluster.u32",
            "centroids.safetensors",
            "clusters.json",
            "encoder/terms.json",
            "encoder/tfidf.safetensors",
            "lock"
        ]
    );
}

#[test]
fn stopped_anywhere_and_resumed_by_any_number_of_threads_gives_the_same_bytes() {
    let made_up = four_subjects();
    let windows = windows(&made_up.corpus, Split::Train);
    let request = request(&windows, &[3, 2, 2]);
    let straight = made_up.base.path().join("straight");
    let facts = made(&straight, &request);
    assert_eq!(facts.levels.iter().map(|l| l.clusters).collect::<Vec<_>>(), [3, 6, 12]);
    let expected = bytes(&straight);
    let mut stops = 0;
    for after in 1..40 {
        let place = made_up.base.path().join(format!("stopped-{after}"));
        let folder = ClusterFolder::create(&place, false, &[]).unwrap();
        let outcome = build(&folder, &request, &mut StopAfter(after)).unwrap();
        drop(folder);
        if let Outcome::Done(_) = outcome {
            break;
        }
        stops += 1;
        assert!(matches!(Clusters::open(&place), Err(ClusterError::Unfinished(_))));
        assert!(matches!(
            ClusterFolder::create(&place, false, &[]),
            Err(ClusterError::Unfinished(_))
        ));
        // What a killed process leaves behind the vectors that were made safe.
        let vectors = place.join("embeddings.f32");
        if let Ok(mut content) = fs::read(&vectors) {
            content.extend_from_slice(&[7; 13]);
            fs::write(&vectors, content).unwrap();
        }
        let folder = ClusterFolder::resume(&place).unwrap();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1 + after as usize % 3)
            .build()
            .unwrap();
        pool.install(|| done(build(&folder, &request, &mut never())));
        drop(folder);
        assert!(bytes(&place) == expected, "stopped after {after}");
    }
    assert!(stops > 8, "{stops} stops");
    // Another request does not go on with what was begun, and a damaged file is found.
    let place = made_up.base.path().join("other");
    let folder = ClusterFolder::create(&place, false, &[]).unwrap();
    assert!(matches!(
        build(&folder, &request, &mut StopAfter(4)),
        Ok(Outcome::Stopped)
    ));
    let other = Request {
        seed: 6,
        terms: request.terms,
        branches: vec![3, 2, 2],
        ..request
    };
    let error = build(&folder, &other, &mut never()).unwrap_err().to_string();
    assert!(error.contains("was begun with another seed"), "{error}");
    let same = Request {
        seed: 5,
        branches: vec![3, 2, 2],
        ..other
    };
    let vectors = place.join("embeddings.f32");
    let mut content = fs::read(&vectors).unwrap();
    content[0] ^= 1;
    fs::write(&vectors, content).unwrap();
    let error = build(&folder, &same, &mut never()).unwrap_err().to_string();
    assert!(error.contains("cut short or changed"), "{error}");
}

#[test]
fn another_corpus_is_assigned_to_the_same_clusters_and_gives_the_histogram_to_draw_by() {
    let made_up = four_subjects();
    let generic = windows(&made_up.corpus, Split::Train);
    let place = made_up.base.path().join("clusters");
    let facts = made(&place, &request(&generic, &[4]));
    let clusters = Clusters::open(&place).unwrap();
    let domain = corpus(made_up.base.path(), "domain", &[&[2]], 60);
    let spec = windows(&domain, Split::Train);
    let out = made_up.base.path().join("assigned");
    let encoder = Encoder::TfIdf(TfIdf::open(&clusters.encoder_folder()).unwrap());
    let folder = ClusterFolder::create(&out, false, &[&place]).unwrap();
    let assigned = done(assign(&folder, &clusters, &encoder, &spec, true, &mut never()));
    assert_eq!(assigned.clustering, facts.clustering);
    let histogram = assigned.histogram(None);
    let own = histogram.iter().position(|count| *count > 0).unwrap();
    assert_eq!(histogram[own], spec.len());
    assert_eq!(
        fs::metadata(out.join("embeddings.f32")).unwrap().len(),
        spec.len() * 4 * encoder.width() as u64
    );

    // One cluster of the domain: the stream of a single expert (arXiv 2402.01093 v2, section 4).
    let target = Target::new(
        &histogram,
        &facts.histogram(None),
        &Resampling {
            draws: 1000,
            ..Resampling::default()
        },
    )
    .unwrap();
    let draw = ClusterDraw::new(clusters.members(), &target.shares, 100, 0).unwrap();
    for window in draw.numbers(3) {
        assert_eq!(clusters.cluster(window).unwrap() as usize, own);
    }

    // Assigning once more is refused, and so is what has no centroids, another encoder, and other windows.
    drop(folder);
    assert!(matches!(
        ClusterFolder::create(&out, false, &[]),
        Err(ClusterError::Used(_))
    ));
    let again = Clusters::open(&out).unwrap();
    let other = ClusterFolder::create(&made_up.base.path().join("no"), false, &[]).unwrap();
    let refused = assign(&other, &again, &encoder, &spec, false, &mut never()).unwrap_err();
    assert!(matches!(refused, ClusterError::NoCentroids(_)), "{refused}");
    let texts: Vec<String> = SUBJECTS.map(|words| format!("{words} {words}")).to_vec();
    let fitted = TfIdf::fit(&[texts.clone(), texts].concat(), &TfIdfSettings::new(1)).unwrap();
    let refused = assign(&other, &clusters, &Encoder::TfIdf(fitted), &spec, false, &mut never()).unwrap_err();
    assert!(matches!(refused, ClusterError::OtherEncoder { .. }), "{refused}");
    let refused = clusters.check(&spec).unwrap_err().to_string();
    assert!(refused.contains("made again since, or is another"), "{refused}");
    let val = clusters
        .check(&windows(&made_up.corpus, Split::Val))
        .unwrap_err()
        .to_string();
    assert!(val.contains("the train part was clustered"), "{val}");
    let shorter = Windows::new(
        Arc::clone(&made_up.corpus),
        Split::Train,
        WindowOptions::new(6, &made_up.corpus),
    )
    .unwrap();
    assert!(clusters.check(&shorter).unwrap_err().to_string().contains("cut as"));
}

#[test]
fn what_cannot_be_clustered_is_refused_before_anything_is_read() {
    let made_up = four_subjects();
    let own = windows(&made_up.corpus, Split::Train);
    let refused = |change: &dyn Fn(&mut Request<'_>)| {
        let mut request = request(&own, &[4]);
        change(&mut request);
        request.check().unwrap_err()
    };
    let n = own.len() as usize;
    let error = refused(&|r| r.branches = vec![n + 1]);
    assert_eq!(error.to_string(), format!("{} clusters of {n} windows", n + 1));
    assert!(error.hint().unwrap().contains("at most"));
    for branches in [vec![], vec![0], vec![4, 0], vec![1 << 20, 1 << 20]] {
        assert!(matches!(
            refused(&|r| r.branches = branches.clone()),
            ClusterError::Setting { field: "k", .. }
        ));
    }
    assert!(refused(&|r| r.sample = Some(3)).to_string().contains("`sample`"));
    assert!(refused(&|r| r.balance = 0.5).to_string().contains("`balance`"));
    assert!(refused(&|r| r.steps = 0).to_string().contains("`steps`"));
    // A part without text.
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("a.jsonl");
    fs::write(&path, "{\"text\": \"court judge law\"}\n").unwrap();
    let options = CorpusOptions {
        shares: SplitShares { val: 0.0, test: 0.0 },
        ..CorpusOptions::default()
    };
    let domain = Domain { name: "a".into(), path };
    let corpus = build_corpus(
        &base.path().join("c"),
        &[domain],
        &tokenizer(),
        &options,
        &mut |_, _| {},
    )
    .unwrap();
    let empty = windows(&Arc::new(corpus), Split::Val);
    let error = request(&empty, &[1]).check().unwrap_err();
    assert!(error.to_string().contains("the val part has no window"), "{error}");
    // Somebody's folder.
    let theirs = base.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("notes.txt"), "mine").unwrap();
    for overwrite in [false, true] {
        assert!(matches!(
            ClusterFolder::create(&theirs, overwrite, &[]),
            Err(ClusterError::Foreign { .. })
        ));
    }
    assert!(matches!(
        ClusterFolder::resume(&theirs),
        Err(ClusterError::NothingToResume(_))
    ));
}

/// A BERT of width 4 without blocks to speak of, whose weights can be spoilt.
fn bert(folder: &Path, spoil: bool, with_tokenizer: bool) {
    fs::create_dir_all(folder).unwrap();
    let config = json!({
        "model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4,
        "vocab_size": 40, "max_position_embeddings": 16
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    for (leaf, rows) in [("word", 40), ("position", 16), ("token_type", 2)] {
        tensors.push((format!("embeddings.{leaf}_embeddings.weight"), vec![rows, 4]));
    }
    for leaf in [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ] {
        tensors.push((format!("encoder.layer.0.{leaf}.weight"), vec![4, 4]));
        tensors.push((format!("encoder.layer.0.{leaf}.bias"), vec![4]));
    }
    for leaf in [
        "embeddings",
        "encoder.layer.0.attention.output",
        "encoder.layer.0.output",
    ] {
        tensors.push((format!("{leaf}.LayerNorm.weight"), vec![4]));
        tensors.push((format!("{leaf}.LayerNorm.bias"), vec![4]));
    }
    let values = |i: usize| {
        let count: usize = tensors[i].1.iter().product();
        let mut values: Vec<f32> = (0..count)
            .map(|v| ((v * 37 + i * 11) % 23) as f32 / 11.0 - 1.0)
            .collect();
        if spoil && i == 0 {
            // The word `ship`.
            values[4 * 18..4 * 19].fill(f32::NAN);
        }
        Ok::<_, safetensors::SafetensorsError>(values)
    };
    safetensors::write(&folder.join("model.safetensors"), &tensors, values).unwrap();
    if with_tokenizer {
        let mut file: serde_json::Value = serde_json::from_slice(tokenizer().content()).unwrap();
        file["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
        });
        fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    }
}

#[test]
fn an_encoder_without_tokenizer_or_with_spoilt_weights_is_refused_by_name() {
    let made_up = four_subjects();
    let place = made_up.base.path().join("encoder-folder");
    bert(&place, false, false);
    let error = Encoder::open(&place, &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("it has no tokenizer.json"), "{error}");
    assert!(error.hint().unwrap().contains("tokenizer.json"));
    tokenizer().save(&place.join("tokenizer.json")).unwrap();
    let error = Encoder::open(&place, &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("[CLS] and [SEP]"), "{error}");

    let own = windows(&made_up.corpus, Split::Train);
    bert(&place, false, true);
    let encoder = Encoder::open(&place, &Device::flex()).unwrap();
    let with = |encoder| Request {
        encoder: Some((encoder, "given".into())),
        ..request(&own, &[2])
    };
    let facts = made(&made_up.base.path().join("good"), &with(Box::leak(Box::new(encoder))));
    assert_eq!((facts.encoder.kind.as_str(), facts.encoder.width), ("bert", 4));
    assert!(facts.encoded_tokens > facts.windows.count && facts.encoder_operations > 0.0);

    bert(&place, true, true);
    let encoder = Encoder::open(&place, &Device::flex()).unwrap();
    let folder = ClusterFolder::create(&made_up.base.path().join("bad"), false, &[]).unwrap();
    let error = build(&folder, &with(Box::leak(Box::new(encoder))), &mut never()).unwrap_err();
    let ClusterError::NotFinite { window, domain } = &error else {
        panic!("{error}")
    };
    assert_eq!(domain, "d1");
    let words = made_up
        .corpus
        .tokenizer()
        .decode(&own.get(*window).unwrap().tokens, false)
        .unwrap();
    assert!(words.contains("ship"), "{words}");
}
