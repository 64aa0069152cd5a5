//! Windows and batches: every rule of cutting, joining and drawing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use offshoot_data::text::{Batches, Corpus, CorpusOptions, Draw, Tokenizer, WindowOptions, Windows, build};
use offshoot_data::{DataError, Split, SplitShares};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::corpus::domains;
use crate::fixtures::*;

/// All for training.
fn all() -> CorpusOptions {
    CorpusOptions {
        shares: SplitShares { val: 0.0, test: 0.0 },
        ..CorpusOptions::default()
    }
}

fn corpus_of(root: &Path, given: &[(&str, Vec<String>)], tokenizer: &Tokenizer) -> Arc<Corpus> {
    let domains = domains(root, given);
    Arc::new(build(&root.join("corpus"), &domains, tokenizer, &all(), &mut |_, _| {}).unwrap())
}

fn with_begin() -> Tokenizer {
    let tokenizer = Tokenizer::from_bytes(tokenizer().content().to_vec(), "x").unwrap();
    tokenizer.with_text_tokens(Some("the"), None).unwrap()
}

fn windows_of(corpus: &Arc<Corpus>, options: WindowOptions) -> Vec<(usize, Vec<u32>)> {
    let windows = Windows::new(Arc::clone(corpus), Split::Train, options).unwrap();
    let each = (0..windows.len()).map(|number| windows.get(number).unwrap());
    each.map(|window| (window.domain, window.tokens)).collect()
}

/// The rules once more, in lists: the windows, and how many were left out.
fn expected(corpus: &Corpus, options: WindowOptions) -> (Vec<(usize, Vec<u32>)>, u64) {
    let (mut windows, mut left_out) = (Vec::new(), 0);
    for domain in 0..corpus.facts().domains.len() {
        let part = corpus.part(domain, Split::Train).unwrap();
        let mut joined = Vec::new();
        for document in 0..part.documents() {
            let mut tokens = Vec::new();
            tokens.extend(
                options
                    .begin_of_text
                    .then(|| corpus.tokenizer().begin_of_text().unwrap()),
            );
            tokens.extend(part.document(document).unwrap());
            tokens.extend(options.end_of_text.then(|| corpus.tokenizer().end_of_text().unwrap()));
            if options.packing {
                joined.extend(tokens);
                continue;
            }
            for chunk in tokens.chunks(options.context) {
                if chunk.len() < 2 {
                    left_out += 1;
                } else {
                    windows.push((domain, chunk.to_vec()));
                }
            }
        }
        for chunk in joined.chunks(options.context) {
            if chunk.len() < options.context {
                left_out += 1;
            } else {
                windows.push((domain, chunk.to_vec()));
            }
        }
    }
    (windows, left_out)
}

fn check_against_lists(corpus: &Arc<Corpus>, contexts: &[usize]) {
    for &context in contexts {
        for (packing, begin_of_text, end_of_text) in [
            (false, false, false),
            (false, false, true),
            (false, true, false),
            (false, true, true),
            (true, false, true),
            (true, true, true),
        ] {
            let options = WindowOptions {
                context,
                packing,
                begin_of_text,
                end_of_text,
            };
            let (list, left_out) = expected(corpus, options);
            assert!(windows_of(corpus, options) == list, "{options:?}");
            let windows = Windows::new(Arc::clone(corpus), Split::Train, options).unwrap();
            assert_eq!(
                (windows.len(), windows.left_out()),
                (list.len() as u64, left_out),
                "{options:?}"
            );
            for (domain, range) in windows.domains() {
                assert!(range.clone().all(|number| list[number as usize].0 == domain));
                assert_eq!(
                    range.end - range.start,
                    list.iter().filter(|own| own.0 == domain).count() as u64
                );
            }
            assert!(matches!(windows.get(windows.len()), Err(DataError::OutOfRange { .. })));
        }
    }
}

#[test]
fn windows_are_those_of_the_rules() {
    let root = TempDir::new().unwrap();
    // More documents than the distance of kept counts; one token, empty after nothing, long ones.
    let mut short: Vec<String> = (0..700)
        .map(|i| ["the", "a", "fox sees"][i % 3].to_owned() + &"x".repeat(i % 5))
        .collect();
    short.push("e".into());
    let given = [
        ("a", short),
        ("b", stories(30, 1)),
        ("c", vec!["x".into()]),
        ("d", stories(3, 2)),
    ];
    let corpus = corpus_of(root.path(), &given, &with_begin());
    check_against_lists(&corpus, &[2, 3, 7, 64, 100_000]);
}

#[test]
fn by_default_a_document_ends_with_the_end_of_text_and_windows_never_cross_documents() {
    let root = TempDir::new().unwrap();
    let corpus = corpus_of(root.path(), &[("a", stories(20, 1))], tokenizer());
    let options = WindowOptions::new(16, &corpus);
    assert!(options.end_of_text && !options.begin_of_text && !options.packing);
    let end = tokenizer().end_of_text().unwrap();
    for (_, tokens) in windows_of(&corpus, options) {
        assert!(
            tokens
                .iter()
                .position(|&id| id == end)
                .is_none_or(|at| at == tokens.len() - 1)
        );
    }
}

#[test]
fn impossible_windows_are_refused() {
    let root = TempDir::new().unwrap();
    let corpus = corpus_of(
        root.path(),
        &[("a", stories(5, 1)), ("b", vec!["e".into()])],
        tokenizer(),
    );
    let options = WindowOptions::new(8, &corpus);
    let refused = |domains: &[usize], options: WindowOptions, expected: &str| {
        let found = Windows::of_domains(Arc::clone(&corpus), Split::Train, domains, options);
        let error = found.err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.hint().is_some());
    };
    for context in [0, 1] {
        refused(&[0], WindowOptions { context, ..options }, "setting `context`");
    }
    let packing = WindowOptions {
        packing: true,
        end_of_text: false,
        ..options
    };
    refused(&[0], packing, "setting `packing`");
    let begin = WindowOptions {
        begin_of_text: true,
        ..options
    };
    refused(&[0], begin, "no such token");
    refused(&[2], options, "domain 2 of 2");
    refused(&[1, 1], options, "twice");

    // Part `val` is empty; domain `b` has one token and no end.
    let draw = Draw {
        batch: 4,
        seed: 0,
        weights: Vec::new(),
    };
    let bare = WindowOptions {
        end_of_text: false,
        ..options
    };
    for (split, domain) in [(Split::Val, 0), (Split::Train, 1)] {
        let windows = Windows::of_domains(Arc::clone(&corpus), split, &[domain], bare).unwrap();
        assert!(windows.is_empty());
        assert!(windows.get(0).is_err());
        let error = Batches::new(windows, draw.clone()).err().unwrap();
        assert!(error.to_string().contains("no window of 2 tokens or more"), "{error}");
    }
    let windows = || Windows::new(Arc::clone(&corpus), Split::Train, bare).unwrap();
    let zero = Draw {
        batch: 0,
        ..draw.clone()
    };
    assert!(Batches::new(windows(), zero).is_err());
    for weights in [vec![1.0], vec![1.0, 1.0], vec![-1.0, 0.0], vec![0.0, 0.0]] {
        let draw = Draw {
            weights,
            ..draw.clone()
        };
        assert!(Batches::new(windows(), draw.clone()).is_err(), "{draw:?}");
    }
}

fn batches(corpus: &Arc<Corpus>, draw: Draw) -> Batches {
    let windows = Windows::new(Arc::clone(corpus), Split::Train, WindowOptions::new(12, corpus)).unwrap();
    Batches::new(windows, draw).unwrap()
}

#[test]
fn a_pass_meets_every_window_once_and_the_next_in_another_order() {
    let root = TempDir::new().unwrap();
    let corpus = corpus_of(root.path(), &[("a", stories(12, 1)), ("b", stories(5, 2))], tokenizer());
    let drawing = |batch, seed| {
        let draw = Draw {
            batch,
            seed,
            weights: Vec::new(),
        };
        batches(&corpus, draw)
    };
    let len = drawing(1, 0).windows().len() as usize;
    assert!(len > 100);
    // Passes end within batches.
    let batch = if len.is_multiple_of(7) { 8 } else { 7 };
    let batches = drawing(batch, 3);
    let drawn: Vec<u64> = (0..(len.div_ceil(batch) * 4) as u64)
        .flat_map(|step| batches.numbers(step))
        .collect();
    let passes: Vec<&[u64]> = drawn.chunks(len).take(3).collect();
    for pass in &passes {
        let mut sorted = pass.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..len as u64).collect::<Vec<_>>());
        assert!(!pass.is_sorted());
    }
    assert_ne!(passes[0], passes[1]);
    let other = drawing(batch, 4);
    assert_ne!(other.numbers(0), batches.numbers(0));
}

#[test]
fn a_resumed_run_draws_what_a_straight_one_does() {
    let root = TempDir::new().unwrap();
    let corpus = corpus_of(root.path(), &[("a", stories(12, 1)), ("b", stories(5, 2))], tokenizer());
    for weights in [Vec::new(), vec![1.0, 2.5]] {
        let draw = Draw {
            batch: 64,
            seed: 3,
            weights,
        };
        let straight = batches(&corpus, draw.clone());
        let all: Vec<_> = (0..200).map(|step| straight.batch(step).unwrap()).collect();
        for start in [1, 63, 64, 65, 150] {
            let resumed = batches(&corpus, draw.clone());
            for step in start..200 {
                assert_eq!(resumed.batch(step).unwrap(), all[step as usize]);
            }
        }
        // Backwards too, and at steps that no run reaches.
        assert_eq!(straight.batch(5).unwrap(), all[5]);
        assert_eq!(straight.batch(u64::MAX).unwrap().len(), 64);
    }
}

#[test]
fn weights_decide_the_shares_of_domains_and_each_domain_goes_through_its_windows() {
    let root = TempDir::new().unwrap();
    let given = [("a", stories(20, 1)), ("b", stories(4, 2)), ("c", stories(4, 3))];
    let corpus = corpus_of(root.path(), &given, tokenizer());
    let draw = Draw {
        batch: 256,
        seed: 3,
        weights: vec![1.0, 3.0, 0.0],
    };
    let batches = batches(&corpus, draw);
    let ranges: Vec<_> = batches.windows().domains().map(|(_, range)| range).collect();
    let mut drawn: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for step in 0..32 {
        for number in batches.numbers(step) {
            let domain = ranges.iter().position(|range| range.contains(&number)).unwrap();
            assert_eq!(batches.windows().get(number).unwrap().domain, domain);
            drawn.entry(domain).or_default().push(number);
        }
    }
    // 32 batches of 256 are two cycles of 4,096.
    assert_eq!(drawn[&0].len(), 2 * 1024);
    assert_eq!(drawn[&1].len(), 2 * 3072);
    assert!(!drawn.contains_key(&2));
    for (domain, drawn) in drawn {
        let len = (ranges[domain].end - ranges[domain].start) as usize;
        for pass in drawn.chunks_exact(len) {
            let mut sorted = pass.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, ranges[domain].clone().collect::<Vec<_>>());
        }
    }
}

#[test]
fn any_number_of_threads_draws_the_same() {
    let root = TempDir::new().unwrap();
    let corpus = corpus_of(root.path(), &[("a", stories(12, 1)), ("b", stories(5, 2))], tokenizer());
    let draw = Draw {
        batch: 100,
        seed: 3,
        weights: vec![1.0, 1.0],
    };
    let batches = batches(&corpus, draw);
    let alone: Vec<_> = (0..100).map(|step| batches.numbers(step)).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (batches, alone) = (&batches, &alone);
            scope.spawn(move || {
                for step in (0..100).map(|i| (i * 37 + thread * 11) % 100) {
                    assert_eq!(batches.numbers(step as u64), alone[step]);
                }
            });
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn windows_of_odd_documents_are_those_of_the_rules(
        texts in prop::collection::vec("[ab \u{0}\r\n\u{1F600}é]{0,12}|\\PC{0,40}", 1..30),
        context in 2usize..9,
    ) {
        prop_assume!(texts.iter().any(|text| !text.trim().is_empty()));
        let root = TempDir::new().unwrap();
        let corpus = corpus_of(root.path(), &[("a", texts)], &with_begin());
        check_against_lists(&corpus, &[context]);
    }
}
