//! Tokenizers: trained the same for any number of threads, lossless, and read from hostile files.

use std::path::PathBuf;

use offshoot_data::DataError;
use offshoot_data::text::{Algorithm, Tokenizer, Training};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::fixtures::*;

fn with_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(run)
}

fn trained(texts: &[String], training: &Training) -> Result<Tokenizer, DataError> {
    let root = TempDir::new().unwrap();
    put(root.path(), "a.jsonl", &json_lines(texts));
    Tokenizer::train(&[root.path().join("a.jsonl")], training, &mut |_, _| {})
}

fn unigram() -> Tokenizer {
    let mut texts = stories(80, 2);
    texts.push("Ünïcödé \u{1F600} 漢字 rare: ∮ ξ Ж".into());
    trained(&texts, &Training::new(Algorithm::Unigram, 500)).unwrap()
}

#[test]
fn any_number_of_threads_trains_the_same_bytes() {
    // Rare characters of equal counts are what an unordered trainer would number at random.
    let mut texts = stories(60, 4);
    texts.extend((0..20).map(|i| format!("sign {} alone", char::from_u32(0x2200 + i).unwrap())));
    for (algorithm, vocabulary) in [(Algorithm::Bpe, 450), (Algorithm::Unigram, 480)] {
        let training = Training::new(algorithm, vocabulary);
        let first = with_threads(1, || trained(&texts, &training)).unwrap();
        for threads in [1, 2, 5] {
            let other = with_threads(threads, || trained(&texts, &training)).unwrap();
            assert!(first.content() == other.content(), "{algorithm:?} {threads}");
            assert_eq!(first.hash(), other.hash());
        }
    }
}

#[test]
fn a_trained_tokenizer_has_the_size_and_the_special_tokens_that_were_asked_for() {
    let bpe = tokenizer();
    assert_eq!(bpe.vocabulary(), 340);
    assert_eq!(bpe.id("<|endoftext|>"), Some(0));
    assert_eq!((bpe.begin_of_text(), bpe.end_of_text()), (None, Some(0)));
    let unigram = unigram();
    assert_eq!(unigram.vocabulary(), 500);
    assert_eq!(
        ["<unk>", "<s>", "</s>"].map(|name| unigram.id(name)),
        [Some(0), Some(1), Some(2)]
    );
    assert_eq!((unigram.begin_of_text(), unigram.end_of_text()), (Some(1), Some(2)));
    // Few words give fewer tokens.
    let small = trained(&["one two one two".into()], &Training::new(Algorithm::Bpe, 9000)).unwrap();
    assert!(small.vocabulary() < 300);
}

#[test]
fn text_that_spells_special_tokens_gives_none_of_their_names_to_words() {
    let texts = vec!["</s> </s> <unk> <0x41> <|endoftext|> over and over ".repeat(50); 20];
    for (algorithm, vocabulary) in [(Algorithm::Bpe, 300), (Algorithm::Unigram, 420)] {
        let tokenizer = trained(&texts, &Training::new(algorithm, vocabulary)).unwrap();
        let ids = tokenizer.encode(&texts[0]).unwrap();
        assert!(ids.iter().all(|&id| id > 2));
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), texts[0]);
        assert!(tokenizer.end_of_text().is_some_and(|id| id <= 2));
    }
}

#[test]
fn a_word_that_is_part_of_no_other_becomes_a_token() {
    let unigram = unigram();
    assert_eq!(unigram.encode("a quietly a").unwrap().len(), 3);
}

#[test]
fn a_saved_tokenizer_is_the_same_bytes() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("x/tokenizer.json");
    let tokenizer = tokenizer();
    tokenizer.save(&path).unwrap();
    for path in [path.as_path(), path.parent().unwrap()] {
        let read = Tokenizer::open(path).unwrap();
        assert!(read.content() == tokenizer.content());
        assert_eq!(read.hash(), tokenizer.hash());
        assert_eq!(
            read.encode("the old fox").unwrap(),
            tokenizer.encode("the old fox").unwrap()
        );
    }
}

#[test]
fn names_of_special_tokens_in_a_document_are_text_and_in_a_prompt_tokens() {
    let text = "a<|endoftext|>b</s> <s><unk><0x41>";
    for tokenizer in [tokenizer(), &unigram()] {
        let end = tokenizer.end_of_text().unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|&id| id > 2), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert!(tokenizer.encode_prompt(text).unwrap().contains(&end));
        let name = tokenizer.token(end).unwrap();
        assert_eq!(tokenizer.decode(&[end], true).unwrap(), name);
        assert_eq!(tokenizer.decode(&[end], false).unwrap(), "");
    }
}

#[test]
fn text_tokens_can_be_named() {
    let reread = || Tokenizer::from_bytes(tokenizer().content().to_vec(), "x").unwrap();
    let named = reread().with_text_tokens(Some("the"), None).unwrap();
    assert_eq!(named.begin_of_text(), tokenizer().id("the"));
    assert_eq!(named.end_of_text(), Some(0));
    let error = reread().with_text_tokens(None, Some("<none>")).unwrap_err();
    assert!(error.to_string().contains("no token `<none>`"), "{error}");
}

#[test]
fn a_file_can_be_made_to_put_a_token_before_a_text_or_none() {
    for tokenizer in [tokenizer(), &unigram()] {
        assert_eq!(tokenizer.leading().unwrap(), None);
        let same = tokenizer.beginning_with(None).unwrap();
        assert_eq!(same.content(), tokenizer.content());
        // Any token will do, one whose name is a template's sign, too.
        for id in [tokenizer.end_of_text().unwrap(), tokenizer.id(":").unwrap_or(3), 40] {
            let framed = tokenizer.beginning_with(Some(id)).unwrap();
            assert_eq!(framed.leading().unwrap(), Some(id));
            assert_ne!(framed.hash(), tokenizer.hash());
            let text = "A story: <s>, of naïve cats.";
            assert_eq!(framed.encode(text).unwrap(), tokenizer.encode(text).unwrap());
            assert_eq!(framed.end_of_text(), tokenizer.end_of_text());
            assert!(framed.reads_as(tokenizer).unwrap() && tokenizer.reads_as(&framed).unwrap());
            // Opened by itself, it is known to begin texts with the token.
            let again = Tokenizer::from_bytes(framed.content().to_vec(), "x").unwrap();
            assert_eq!(again.begin_of_text(), Some(id));
            assert_eq!(again.beginning_with(Some(id)).unwrap().content(), framed.content());
            assert_eq!(again.beginning_with(None).unwrap().leading().unwrap(), None);
        }
        let error = tokenizer.beginning_with(Some(1 << 20)).unwrap_err();
        assert!(error.to_string().contains("no token has id 1048576"), "{error}");
    }
    assert!(!unigram().reads_as(tokenizer()).unwrap());
}

#[test]
fn truncation_padding_and_dropout_of_the_file_are_not_applied() {
    let mut value: serde_json::Value = serde_json::from_slice(tokenizer().content()).unwrap();
    value["truncation"] = serde_json::json!({
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
    });
    value["padding"] = serde_json::json!({
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>"
    });
    value["model"]["dropout"] = serde_json::json!(0.5);
    let other = Tokenizer::from_bytes(value.to_string().into_bytes(), "x").unwrap();
    let text = &stories(1, 9)[0];
    assert_eq!(other.encode(text).unwrap(), tokenizer().encode(text).unwrap());
}

#[test]
fn long_documents_are_cut_without_a_trace() {
    let long: String = stories(4000, 7).join("\n\n  ");
    assert!(long.len() > 3 << 20);
    let one_word = "x".repeat(1_500_000);
    let unigram = unigram();
    // A tokenizer that puts a space before every text cannot be cut before words, and is not.
    let mut value: serde_json::Value = serde_json::from_slice(tokenizer().content()).unwrap();
    value["normalizer"] = serde_json::json!({"type": "Prepend", "prepend": "_"});
    let prepends = Tokenizer::from_bytes(value.to_string().into_bytes(), "x").unwrap();
    for tokenizer in [tokenizer(), &unigram, &prepends] {
        let library = tokenizers::Tokenizer::from_bytes(tokenizer.content()).unwrap();
        let expected = library.encode_fast(long.as_str(), false).unwrap();
        let ids = with_threads(3, || tokenizer.encode(&long)).unwrap();
        assert!(ids == expected.get_ids());
    }
    let ids = tokenizer().encode(&one_word).unwrap();
    assert_eq!(tokenizer().decode(&ids, false).unwrap(), one_word);
}

#[test]
fn documents_are_encoded_alone_and_in_order() {
    let texts = stories(40, 5);
    let all = with_threads(4, || tokenizer().encode_all(&texts)).unwrap();
    let each: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer().encode(text).unwrap()).collect();
    assert_eq!(all, each);
    assert!(tokenizer().encode_all::<&str>(&[]).unwrap().is_empty());
    assert!(tokenizer().encode("").unwrap().is_empty());
}

#[test]
fn a_sample_is_bounded_and_does_not_depend_on_order() {
    let texts = stories(400, 6);
    let training = Training {
        sample_bytes: 60_000,
        ..Training::new(Algorithm::Bpe, 350)
    };
    let mut reversed = texts.clone();
    reversed.reverse();
    let first = trained(&texts, &training).unwrap();
    assert_eq!(first.hash(), trained(&reversed, &training).unwrap().hash());
    let other = Training { seed: 1, ..training };
    assert_ne!(first.hash(), trained(&texts, &other).unwrap().hash());
}

#[test]
fn training_tells_how_far_it_is() {
    let root = TempDir::new().unwrap();
    put(root.path(), "a.jsonl", &json_lines(&stories(20, 1)));
    put(root.path(), "b.txt", b"words and words");
    let paths: Vec<PathBuf> = ["a.jsonl", "b.txt"].map(|name| root.path().join(name)).to_vec();
    let mut told = Vec::new();
    let training = Training::new(Algorithm::Bpe, 300);
    Tokenizer::train(&paths, &training, &mut |done, total| told.push((done, total))).unwrap();
    assert!(told.is_sorted());
    let (done, total) = *told.last().unwrap();
    assert_eq!(done, total);
}

#[test]
fn impossible_training_is_refused() {
    let texts = stories(5, 1);
    let refused = |training: Training, expected: &str| {
        let error = trained(&texts, &training).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.hint().is_some());
    };
    refused(Training::new(Algorithm::Bpe, 256), "not between 257");
    refused(Training::new(Algorithm::Unigram, 270), "too small");
    refused(Training::new(Algorithm::Bpe, usize::MAX), "not between");
    let special = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let with = |algorithm, names: &[&str]| Training {
        special: special(names),
        ..Training::new(algorithm, 400)
    };
    refused(with(Algorithm::Bpe, &["<|a|>", "<|a|>"]), "names must differ");
    refused(with(Algorithm::Bpe, &[" "]), "none may be blank");
    refused(with(Algorithm::Bpe, &["end"]), "could be a word");
    refused(with(Algorithm::Unigram, &["<s>"]), "needs `<unk>`");
    let blank = trained(&[" ".into()], &Training::new(Algorithm::Bpe, 300)).unwrap_err();
    assert!(matches!(blank, DataError::NoText { .. }), "{blank}");
    let sample = Training {
        sample_bytes: 0,
        ..Training::new(Algorithm::Bpe, 300)
    };
    refused(sample, "sample_bytes");
}

#[test]
fn files_that_are_no_tokenizer_are_refused() {
    let whole = tokenizer().content();
    let mut far: serde_json::Value = serde_json::from_slice(whole).unwrap();
    far["model"]["vocab"]["Ġfar"] = serde_json::json!(4_000_000_000u32);
    let far = far.to_string();
    let cases: [&[u8]; 7] = [
        b"",
        b"{}",
        b"[1]",
        b"\xFF\xFE",
        &whole[..whole.len() / 2],
        br#"{"version": "9.9", "model": {"type": "Unheard"}}"#,
        far.as_bytes(),
    ];
    for content in cases {
        let error = Tokenizer::from_bytes(content.to_vec(), "the/place").unwrap_err();
        assert!(matches!(error, DataError::Tokenizer { .. }), "{error}");
        assert!(error.to_string().starts_with("the/place"), "{error}");
        assert!(error.hint().is_some());
    }
    assert!(matches!(
        Tokenizer::open(&PathBuf::from("/none/tokenizer.json")),
        Err(DataError::Io { .. })
    ));
}

#[test]
fn streamed_text_comes_in_whole_characters() {
    let text = "the café \u{1F468}\u{200D}\u{1F469} naïve 漢字 \r\n end\u{FFFD}.";
    for tokenizer in [tokenizer(), &unigram()] {
        let mut decoding = tokenizer.decoding(false);
        let mut given = Vec::new();
        for id in tokenizer.encode(text).unwrap() {
            given.push(decoding.push(id).unwrap());
        }
        given.push(decoding.finish().unwrap());
        assert_eq!(given.concat(), text);
        assert!(given.iter().filter(|piece| !piece.is_empty()).count() > 10);
    }
    // Half a character comes out in the end only, and bytes that are no text are not held back without end.
    let letter = tokenizer().id("Ã").unwrap();
    let mut decoding = tokenizer().decoding(false);
    assert_eq!(decoding.push(letter).unwrap(), "");
    assert_eq!(decoding.finish().unwrap(), "\u{FFFD}");
    let mut decoding = tokenizer().decoding(false);
    let given: String = (0..40).map(|_| decoding.push(letter).unwrap()).collect();
    assert!(given.chars().count() >= 20, "{given}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_text_is_encoded_without_loss(text in "\\PC*|.*|[a-z \r\n\u{0}\t]*|(<s>|</s>|<0x0A>|<\\|endoftext\\|>| )*") {
        static UNIGRAM: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
        let ids = tokenizer().encode(&text).unwrap();
        prop_assert_eq!(tokenizer().decode(&ids, false).unwrap(), text.clone());
        let unigram = UNIGRAM.get_or_init(unigram);
        let ids = unigram.encode(&text).unwrap();
        prop_assert_eq!(unigram.decode(&ids, false).unwrap(), text.replace('\u{2581}', " "));
        prop_assert!(ids.iter().all(|&id| id > 2));
        let mut decoding = unigram.decoding(false);
        let mut given: String = ids.iter().map(|&id| decoding.push(id).unwrap()).collect();
        given.push_str(&decoding.finish().unwrap());
        prop_assert_eq!(given, text.replace('\u{2581}', " "));
    }
}
