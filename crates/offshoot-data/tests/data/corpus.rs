//! Corpora: the same bytes however they are made, clear of duplicates, and checked when they are opened.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_data::text::{Corpus, CorpusOptions, Domain, Tokenizer, WindowOptions, Windows, build};
use offshoot_data::{DataError, Split, SplitShares};
use tempfile::TempDir;

use crate::fixtures::*;

pub(crate) const SHARES: SplitShares = SplitShares { val: 0.15, test: 0.15 };

pub(crate) fn options() -> CorpusOptions {
    CorpusOptions {
        shares: SHARES,
        ..CorpusOptions::default()
    }
}

/// Domains of JSON lines below `root`.
pub(crate) fn domains(root: &Path, texts: &[(&str, Vec<String>)]) -> Vec<Domain> {
    let domain = |(name, texts): &(&str, Vec<String>)| {
        put(root, &format!("{name}.jsonl"), &json_lines(texts));
        Domain {
            name: (*name).into(),
            path: root.join(format!("{name}.jsonl")),
        }
    };
    texts.iter().map(domain).collect()
}

fn made(root: &Path, domains: &[Domain], options: &CorpusOptions) -> Result<Corpus, DataError> {
    build(&root.join("corpus"), domains, tokenizer(), options, &mut |_, _| {})
}

/// Every file below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(
                    path.strip_prefix(folder).unwrap().to_path_buf(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    found
}

/// The texts of a part, decoded.
fn texts(corpus: &Corpus, domain: usize, split: Split) -> Vec<String> {
    let part = corpus.part(domain, split).unwrap();
    (0..part.documents())
        .map(|document| {
            let ids = part.document(document).unwrap();
            let text = corpus.tokenizer().decode(&ids, true).unwrap();
            assert_eq!(part.document_bytes(document), text.len() as u64);
            text
        })
        .collect()
}

#[test]
fn every_document_is_in_one_part_with_its_tokens_and_bytes() {
    let root = TempDir::new().unwrap();
    let (a, b) = (stories(120, 1), stories(60, 2));
    let corpus = made(
        root.path(),
        &domains(root.path(), &[("a", a.clone()), ("b-2", b.clone())]),
        &options(),
    )
    .unwrap();
    for (domain, stories) in [a, b].into_iter().enumerate() {
        let facts = &corpus.facts().domains[domain];
        let mut all = Vec::new();
        for split in Split::ALL {
            let texts = texts(&corpus, domain, split);
            let (part, said) = (corpus.part(domain, split).unwrap(), facts.part(split));
            assert!(texts.len() > 3);
            assert_eq!(
                (said.documents, said.tokens, said.bytes),
                (part.documents(), part.tokens(), part.bytes())
            );
            // Documents of a part are in the order of the source.
            let mut rest = stories.iter();
            assert!(texts.iter().all(|text| rest.any(|story| story == text)));
            all.extend(texts);
        }
        let mut expected = stories;
        expected.sort();
        all.sort();
        assert_eq!(all, expected);
        assert_eq!(facts.documents, all.len() as u64);
        assert_eq!(facts.bytes, all.iter().map(|text| text.len() as u64).sum::<u64>());
    }
    assert_eq!(corpus.domain("b-2"), Some(1));
    assert_eq!(corpus.domain("c"), None);
    assert!(corpus.part(2, Split::Val).is_none());
    assert_eq!(corpus.facts().token_bytes, 2);
    corpus.verify().unwrap();
    assert!(!root.path().join(".writing-corpus").exists());
    assert_eq!(
        Corpus::open(&root.path().join("corpus")).unwrap().facts(),
        corpus.facts()
    );
}

#[test]
fn any_number_of_threads_and_any_block_writes_the_same_bytes() {
    let root = TempDir::new().unwrap();
    let mut long = stories(40, 3);
    long.push(stories(3000, 4).concat());
    let domains = domains(root.path(), &[("a", stories(150, 5)), ("b", long)]);
    let make = |threads: usize, block_bytes: u64, name: &str| {
        let folder = root.path().join(name);
        let options = CorpusOptions {
            block_bytes,
            ..options()
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let built = pool.install(|| build(&folder, &domains, tokenizer(), &options, &mut |_, _| {}));
        built.unwrap();
        files(&folder)
    };
    let first = make(1, 8 << 20, "first");
    assert_eq!(first.len(), 2 + 2 * 6);
    for (threads, block_bytes) in [(4, 8 << 20), (3, 1), (2, 10_000)] {
        assert!(
            first == make(threads, block_bytes, &format!("c{threads}")),
            "{threads} {block_bytes}"
        );
    }
}

#[test]
fn equal_texts_are_on_one_side_and_adding_documents_moves_no_other() {
    let root = TempDir::new().unwrap();
    let few = stories(100, 6);
    let mut more = few.clone();
    more.extend(stories(100, 7));
    more.extend(few.iter().map(|text| format!("\n  {}\r\n", text.trim())));
    let alone = domains(root.path(), &[("a", few.clone())]);
    let first = build(&root.path().join("1"), &alone, tokenizer(), &options(), &mut |_, _| {}).unwrap();
    let both = domains(root.path(), &[("b", more), ("a", few.clone())]);
    let second = build(&root.path().join("2"), &both, tokenizer(), &options(), &mut |_, _| {}).unwrap();
    for split in Split::ALL {
        assert_eq!(texts(&first, 0, split), texts(&second, 1, split));
        let trimmed = |corpus: &Corpus, domain: usize| -> Vec<String> {
            texts(corpus, domain, split)
                .iter()
                .map(|text| text.trim().to_owned())
                .collect()
        };
        for text in trimmed(&first, 0) {
            assert_eq!(trimmed(&second, 0).iter().filter(|own| **own == text).count(), 2);
        }
    }
    // Copies within a domain stay, and are counted.
    assert_eq!(second.facts().domains[0].repeated, 100);
    assert_eq!(second.facts().domains[0].removed.exact_duplicates, 0);
    let reseeded = CorpusOptions { seed: 1, ..options() };
    let third = build(&root.path().join("3"), &alone, tokenizer(), &reseeded, &mut |_, _| {}).unwrap();
    assert_ne!(texts(&third, 0, Split::Val), texts(&first, 0, Split::Val));
    assert_ne!(third.fingerprint(), first.fingerprint());
}

#[test]
fn training_documents_that_are_like_held_out_ones_of_any_domain_are_removed_and_counted() {
    let root = TempDir::new().unwrap();
    let stories = stories(300, 8);
    // One letter's case makes another document with the same words; two words of about 300 a near one.
    let shouted: Vec<String> = stories.iter().map(|text| format!("{}!", text.to_uppercase())).collect();
    let near: Vec<String> = stories
        .iter()
        .map(|text| format!("{text} {text} {text} and more"))
        .collect();
    let nearer: Vec<String> = stories
        .iter()
        .map(|text| format!("{text} {text} {text} or less"))
        .collect();
    let given = [
        ("a", stories.clone()),
        ("b", shouted.clone()),
        ("c", near),
        ("d", nearer),
    ];
    let domains = domains(root.path(), &given);
    let corpus = build(
        &root.path().join("1"),
        &domains,
        tokenizer(),
        &options(),
        &mut |_, _| {},
    )
    .unwrap();
    let held_out = |corpus: &Corpus, domain: usize| -> u64 {
        let facts = &corpus.facts().domains[domain];
        facts.val.documents + facts.test.documents
    };
    let facts = &corpus.facts().domains;
    for domain in facts {
        let kept = domain.train.documents + domain.val.documents + domain.test.documents;
        let removed = domain.removed.exact_duplicates + domain.removed.near_duplicates;
        assert_eq!(kept + removed, domain.documents);
    }
    // Each held-out story takes its twin of the other domain out of train, unless that is held out itself.
    let words = |text: &str| text.to_lowercase().replace(|c: char| !c.is_alphanumeric(), " ");
    let words = |text: &str| words(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let mut held: Vec<String> = Vec::new();
    for domain in 0..2 {
        for split in [Split::Val, Split::Test] {
            held.extend(texts(&corpus, domain, split).iter().map(|text| words(text)));
        }
    }
    let trained: Vec<String> = (0..2).flat_map(|domain| texts(&corpus, domain, Split::Train)).collect();
    assert!(trained.iter().all(|text| !held.contains(&words(text))));
    let exact = facts[0].removed.exact_duplicates + facts[1].removed.exact_duplicates;
    assert!(exact > 60, "{exact}");
    assert!(facts[2].removed.near_duplicates > 50, "{:?}", facts[2].removed);
    assert!(facts[3].removed.near_duplicates > 50, "{:?}", facts[3].removed);
    // Removing is left to the options, and changes nothing of what is held out.
    let kept = CorpusOptions {
        near_duplicates: false,
        ..options()
    };
    let other = build(&root.path().join("2"), &domains, tokenizer(), &kept, &mut |_, _| {}).unwrap();
    for domain in 0..4 {
        assert_eq!(other.facts().domains[domain].removed.near_duplicates, 0);
        assert_eq!(held_out(&other, domain), held_out(&corpus, domain));
    }
    assert_eq!(other.facts().near_duplicates, None);
    assert_ne!(other.fingerprint(), corpus.fingerprint());
}

#[test]
fn without_held_out_shares_all_is_for_training() {
    let root = TempDir::new().unwrap();
    let domains = domains(root.path(), &[("a", stories(30, 9))]);
    let options = CorpusOptions {
        shares: SplitShares { val: 0.0, test: 0.0 },
        ..options()
    };
    let corpus = made(root.path(), &domains, &options).unwrap();
    assert_eq!(corpus.facts().domains[0].train.documents, 30);
    assert_eq!(corpus.part(0, Split::Val).unwrap().documents(), 0);
    assert_eq!(corpus.part(0, Split::Val).unwrap().span(3), 0..0);
}

#[test]
fn empty_and_damaged_documents_are_counted_by_domain_and_too_many_are_an_error() {
    let root = TempDir::new().unwrap();
    let mut lines = json_lines(&stories(20, 1));
    lines.extend_from_slice(b"{\"text\": \" \"}\n{\"text\": 1}\n");
    put(root.path(), "a.jsonl", &lines);
    let domains = [Domain {
        name: "a".into(),
        path: root.path().join("a.jsonl"),
    }];
    let error = made(root.path(), &domains, &options()).unwrap_err();
    assert!(matches!(error, DataError::TooManyDamagedDocuments { .. }), "{error}");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "something half is left");
    let tolerant = CorpusOptions {
        max_damaged: 0.05,
        ..options()
    };
    let corpus = made(root.path(), &domains, &tolerant).unwrap();
    let facts = &corpus.facts().domains[0];
    assert_eq!(
        (facts.documents, facts.removed.empty, facts.removed.damaged),
        (20, 1, 1)
    );
    let [place] = &facts.removed.first_damaged[..] else {
        panic!("{:?}", facts.removed);
    };
    assert!(place.contains("a.jsonl:22"), "{place}");
}

#[test]
fn impossible_corpora_are_refused_and_leave_nothing() {
    let root = TempDir::new().unwrap();
    let good = domains(root.path(), &[("a", stories(5, 1))]);
    let refused = |domains: &[Domain], options: CorpusOptions, expected: &str| {
        let error = made(root.path(), domains, &options).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.hint().is_some(), "{error}");
        assert!(!root.path().join("corpus").exists() && !root.path().join(".writing-corpus").exists());
    };
    let named = |name: &str| Domain {
        name: name.into(),
        path: good[0].path.clone(),
    };
    refused(&[], options(), "name at least one");
    for name in ["", "a/b", "..", ".a", "a b", "ä", &"x".repeat(65)] {
        refused(&[named(name)], options(), "is no name");
    }
    refused(&[named("a"), named("A")], options(), "two are called");
    let shares = SplitShares { val: 0.7, test: 0.7 };
    refused(&good, CorpusOptions { shares, ..options() }, "nor exceed 1");
    let damaged = CorpusOptions {
        max_damaged: 2.0,
        ..options()
    };
    refused(&good, damaged, "max_damaged");
    let block = CorpusOptions {
        block_bytes: 0,
        ..options()
    };
    refused(&good, block, "block_bytes");
    put(root.path(), "blank.txt", b" \n ");
    let blank = Domain {
        name: "b".into(),
        path: root.path().join("blank.txt"),
    };
    refused(&[good[0].clone(), blank], options(), "no text found (1 blank");
    let missing = Domain {
        name: "b".into(),
        path: root.path().join("none.txt"),
    };
    refused(&[missing], options(), "none.txt");

    made(root.path(), &good, &options()).unwrap();
    let before = files(root.path());
    let error = made(root.path(), &good, &options()).unwrap_err();
    assert!(matches!(error, DataError::Exists { .. }), "{error}");
    assert!(before == files(root.path()));
}

#[test]
fn what_a_killed_process_left_is_in_nobodys_way() {
    let root = TempDir::new().unwrap();
    put(root.path(), ".writing-corpus/domains/a/train.tokens", b"half");
    let domains = domains(root.path(), &[("a", stories(5, 1))]);
    made(root.path(), &domains, &options()).unwrap();
    assert!(!root.path().join(".writing-corpus").exists());
}

#[test]
fn two_processes_do_not_write_one_corpus() {
    let root = TempDir::new().unwrap();
    let domains = domains(root.path(), &[("a", stories(5, 1))]);
    let other = fs::File::create(root.path().join(".writing-corpus.lock")).unwrap();
    other.lock().unwrap();
    put(root.path(), ".writing-corpus/domains/a/train.tokens", b"half");
    let error = made(root.path(), &domains, &options()).unwrap_err();
    assert!(matches!(error, DataError::Busy { .. }), "{error}");
    assert!(root.path().join(".writing-corpus/domains/a/train.tokens").is_file());
    drop(other);
    made(root.path(), &domains, &options()).unwrap();
    let left = fs::read_dir(root.path()).unwrap().count();
    assert_eq!(left, 2, "the text and the corpus");
}

#[test]
fn building_tells_how_far_it_is() {
    let root = TempDir::new().unwrap();
    let domains = domains(root.path(), &[("a", stories(50, 1)), ("b", stories(50, 2))]);
    let options = CorpusOptions {
        block_bytes: 5000,
        ..options()
    };
    let mut told = Vec::new();
    let folder = root.path().join("corpus");
    build(&folder, &domains, tokenizer(), &options, &mut |done, total| {
        told.push((done, total))
    })
    .unwrap();
    assert!(told.len() > 10 && told.is_sorted());
    let size: u64 = domains
        .iter()
        .map(|domain| fs::metadata(&domain.path).unwrap().len())
        .sum();
    assert_eq!(*told.last().unwrap(), (2 * size, 2 * size));
}

/// A vocabulary beyond 16 bits.
fn large_tokenizer() -> Tokenizer {
    let mut value: serde_json::Value = serde_json::from_slice(tokenizer().content()).unwrap();
    value["model"]["vocab"]["Ġlarge"] = serde_json::json!(70_000);
    Tokenizer::from_bytes(value.to_string().into_bytes(), "x").unwrap()
}

#[test]
fn large_vocabularies_take_four_bytes_a_token() {
    let root = TempDir::new().unwrap();
    let domains = domains(root.path(), &[("a", stories(40, 1))]);
    let large = large_tokenizer();
    let narrow = made(root.path(), &domains, &options()).unwrap();
    let wide = build(&root.path().join("wide"), &domains, &large, &options(), &mut |_, _| {}).unwrap();
    assert_eq!((narrow.facts().token_bytes, wide.facts().token_bytes), (2, 4));
    for split in Split::ALL {
        assert_eq!(texts(&narrow, 0, split), texts(&wide, 0, split));
    }
}

#[test]
fn named_text_tokens_are_part_of_the_corpus() {
    let root = TempDir::new().unwrap();
    let domains = domains(root.path(), &[("a", stories(10, 1))]);
    let named = Tokenizer::from_bytes(tokenizer().content().to_vec(), "x").unwrap();
    let named = named.with_text_tokens(Some("the"), Some("Ġ")).unwrap();
    build(&root.path().join("c"), &domains, &named, &options(), &mut |_, _| {}).unwrap();
    let corpus = Corpus::open(&root.path().join("c")).unwrap();
    assert_eq!(corpus.tokenizer().begin_of_text(), tokenizer().id("the"));
    assert_eq!(corpus.tokenizer().end_of_text(), tokenizer().id("Ġ"));
}

/// Changes one file of a fresh corpus, and gives what opening says then.
fn changed(name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<Corpus, DataError> {
    let root = TempDir::new().unwrap();
    let domains = domains(root.path(), &[("a", stories(40, 1))]);
    made(root.path(), &domains, &options()).unwrap();
    let path = root.path().join("corpus").join(name);
    let content = change(fs::read(&path).unwrap());
    fs::write(&path, content).unwrap();
    let opened = Corpus::open(&root.path().join("corpus"));
    if let Err(error) = &opened {
        assert!(
            error.to_string().contains(&root.path().display().to_string()),
            "{error}"
        );
        assert!(error.hint().is_some());
    }
    opened
}

#[test]
fn files_that_do_not_fit_the_description_are_refused() {
    let refused = |name: &str, expected: &str, change: fn(Vec<u8>) -> Vec<u8>| {
        let error = changed(name, change).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    let tokens = "domains/a/train.tokens";
    let index = "domains/a/train.index";
    refused(tokens, "truncated or too long", |mut bytes| {
        bytes.drain(..bytes.len() - 1).collect()
    });
    refused(tokens, "truncated or too long", |bytes| [bytes, vec![0, 0]].concat());
    refused(tokens, "truncated or too long", |_| Vec::new());
    refused(index, "truncated or too long", |mut bytes| bytes.drain(16..).collect());
    refused(index, "truncated or too long", |mut bytes| {
        bytes.drain(..bytes.len() - 3).collect()
    });
    refused(index, "document 1 ends at 0, after", |mut bytes| {
        bytes[16..24].fill(0);
        bytes
    });
    refused(index, "document 0 ends at 18446744073709551615", |mut bytes| {
        bytes[..8].fill(0xFF);
        bytes
    });
    refused(index, "bytes, corpus.json says", |mut bytes| {
        bytes[8] ^= 1;
        bytes
    });
    refused("tokenizer.json", "its hash differs", |bytes| {
        [bytes, vec![b'\n']].concat()
    });
    refused("tokenizer.json", "not a tokenizer", |_| b"{}".to_vec());
}

#[test]
fn descriptions_that_are_none_of_ours_are_refused() {
    let edit = |change: &dyn Fn(&mut serde_json::Value)| {
        changed("corpus.json", |bytes| {
            let mut value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            change(&mut value);
            value.to_string().into_bytes()
        })
        .unwrap_err()
    };
    let error = edit(&|value| value["format"] = 2.into());
    assert!(
        matches!(error, DataError::NewerFormat { found: 2, known: 1, .. }),
        "{error}"
    );
    let said = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
        let error = edit(change);
        assert!(error.to_string().contains(expected), "{error}");
    };
    said(&|value| value["format"] = "1".into(), "no format number");
    said(&|value| value["token_bytes"] = 3.into(), "tokens of 3 bytes");
    said(&|value| value["domains"][0]["name"] = "../x".into(), "is no name");
    said(&|value| value["split"]["seed"] = 9.into(), "its fingerprint is another");
    said(
        &|value| value["tokenizer"]["end_of_text"] = 400.into(),
        "beyond the vocabulary",
    );
    said(
        &|value| drop(value.as_object_mut().unwrap().remove("domains")),
        "no corpus of format 1",
    );
    for content in ["", "[]", "{\"format\": 1}", "\u{0}", &"[".repeat(100_000)] {
        assert!(changed("corpus.json", |_| content.into()).is_err(), "{content:.9}");
    }
    // Sizes that a file cannot have are no reason to allocate anything.
    let error = changed("corpus.json", |bytes| {
        let mut value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        value["domains"][0]["train"]["tokens"] = u64::MAX.into();
        value.to_string().into_bytes()
    });
    assert!(error.is_err());
}

#[test]
fn ids_beyond_the_vocabulary_are_an_error_where_they_are_read() {
    let corpus = changed("domains/a/train.tokens", |mut bytes| {
        bytes[20..22].copy_from_slice(&400u16.to_le_bytes());
        bytes
    });
    let corpus = Arc::new(corpus.unwrap());
    let error = corpus.verify().unwrap_err();
    assert!(error.to_string().contains("their hash differs"), "{error}");
    let part = corpus.part(0, Split::Train).unwrap();
    let error = part.document(0).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("token 10 has the id 400, beyond the vocabulary of 340"),
        "{error}"
    );
    assert!(part.document(1).is_ok());
    let windows = Windows::new(Arc::clone(&corpus), Split::Train, WindowOptions::new(8, &corpus)).unwrap();
    assert!(windows.get(0).is_ok() && windows.get(1).is_err() && windows.get(2).is_ok());
}

#[test]
fn the_fingerprint_covers_content_tokenizer_and_options_but_no_paths() {
    let root = TempDir::new().unwrap();
    let print = |name: &str, texts: Vec<String>, tokenizer: &Tokenizer, options: CorpusOptions| {
        let base = root.path().join(name);
        let domains = domains(&base, &[("a", texts)]);
        let corpus = build(&base.join("c"), &domains, tokenizer, &options, &mut |_, _| {}).unwrap();
        corpus.fingerprint().to_owned()
    };
    let texts = stories(30, 1);
    let first = print("1", texts.clone(), tokenizer(), options());
    assert_eq!(first, print("2", texts.clone(), tokenizer(), options()));
    let mut other = texts.clone();
    other[3].push('x');
    let seeded = CorpusOptions { seed: 5, ..options() };
    let all = [
        first,
        print("3", other, tokenizer(), options()),
        print("4", texts.clone(), &large_tokenizer(), options()),
        print("5", texts, tokenizer(), seeded),
    ];
    for (number, own) in all.iter().enumerate() {
        assert!(!all[..number].contains(own));
    }
}
