//! Tokenizers: what comes back from the metadata of a file is the `tokenizer.json` that went in, and what llama.cpp will do otherwise is
//! said.

use offshoot_zoo::gguf::GgufError;
use offshoot_zoo::gguf::tokenizer::{Note, Special, TokenizerError, tokenizer_json, tokenizer_metadata};
use offshoot_zoo::gguf::{Array, GgufFile, Metadata, Strings, Tensor, Value as Entry, write};
use serde_json::{Value, json};

use super::fixture;

const EMBEDDED: &str = "tokenizer.huggingface.json";

/// A tokenizer of Hugging Face's library that `interop/fixtures.py` wrote.
fn tokenizer(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// With both ends known, so that there is nothing to be said about them.
fn ends(bos: u32, eos: u32) -> Special {
    Special {
        bos: Some(bos),
        eos: Some(eos),
        ..Special::default()
    }
}

fn list<'a>(metadata: &'a Metadata, key: &str) -> Vec<&'a str> {
    metadata.texts(key).unwrap().unwrap().iter().collect()
}

fn types(metadata: &Metadata) -> &[i32] {
    match metadata.get("tokenizer.ggml.token_type") {
        Some(Entry::Array(Array::I32(types))) => types,
        other => panic!("{other:?}"),
    }
}

fn scores(metadata: &Metadata) -> Vec<f32> {
    metadata.numbers("tokenizer.ggml.scores").unwrap().unwrap()
}

/// Fails unless a tokenizer cuts, frames and joins text as the original does, and has its tokens.
#[track_caller]
pub(super) fn comes_back(back: &Value, original: &Value) {
    for part in [
        "added_tokens",
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
    ] {
        assert_eq!(back[part], original[part], "{part}");
    }
    assert_eq!(vocabulary(back), vocabulary(original));
}

/// The vocabulary without tokens that are found before the model is asked.
fn vocabulary(tokenizer: &Value) -> Vec<(String, f64)> {
    let added: Vec<_> = tokenizer["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["content"])
        .collect();
    let pairs: Vec<(String, f64)> = match &tokenizer["model"]["vocab"] {
        Value::Object(tokens) => tokens
            .iter()
            .map(|(text, id)| (text.clone(), id.as_f64().unwrap()))
            .collect(),
        Value::Array(pieces) => {
            let piece = |piece: &Value| (piece[0].as_str().unwrap().to_owned(), piece[1].as_f64().unwrap());
            pieces.iter().map(piece).collect()
        }
        other => panic!("{other}"),
    };
    let mut pairs: Vec<_> = pairs
        .into_iter()
        .filter(|(text, _)| !added.iter().any(|a| *a == text))
        .collect();
    pairs.sort_by(|a, b| a.partial_cmp(b).unwrap());
    pairs
}

#[test]
fn a_byte_level_tokenizer_comes_back_from_a_file() {
    let original = tokenizer("byte-level");
    let (metadata, notes) = tokenizer_metadata(&original, &ends(0, 0), None).unwrap();
    assert_eq!(notes, []);
    assert_eq!(metadata.text("tokenizer.ggml.model"), Ok(Some("gpt2")));
    assert_eq!(metadata.text("tokenizer.ggml.pre"), Ok(Some("gpt-2")));
    assert_eq!(list(&metadata, "tokenizer.ggml.merges")[..3], ["h e", "i n", "in g"]);
    let tokens = list(&metadata, "tokenizer.ggml.tokens");
    assert_eq!(
        (tokens[0], tokens[1], tokens[400]),
        ("<|endoftext|>", "!", "<|im_start|>")
    );
    assert_eq!(
        (types(&metadata)[0], types(&metadata)[1], types(&metadata)[400]),
        (3, 1, 3)
    );
    assert_eq!(metadata.get("tokenizer.ggml.bos_token_id"), Some(&Entry::U32(0)));
    assert_eq!(metadata.get("tokenizer.ggml.add_bos_token"), Some(&Entry::Bool(false)));
    assert_eq!(metadata.get("tokenizer.ggml.scores"), None);
    assert_eq!(metadata.get(EMBEDDED), None, "the keys of llama.cpp say it all");
    // Through a file.
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("x.gguf");
    write(&path, &metadata, &[] as &[Tensor], |_| Ok::<_, GgufError>(Vec::new())).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let (back, special, notes) = tokenizer_json(file.metadata()).unwrap();
    assert_eq!(notes, []);
    assert_eq!(
        (special.bos, special.eos, special.add_bos),
        (Some(0), Some(0), Some(false))
    );
    comes_back(&back, &original);
    assert_eq!(back["model"]["merges"], original["model"]["merges"]);
}

#[test]
fn a_sentencepiece_tokenizer_comes_back_merge_by_merge_from_its_scores() {
    let original = tokenizer("sentencepiece");
    let (metadata, notes) = tokenizer_metadata(&original, &ends(1, 2), None).unwrap();
    assert_eq!(notes, []);
    assert_eq!(metadata.text("tokenizer.ggml.model"), Ok(Some("llama")));
    assert_eq!(types(&metadata)[..4], [2, 3, 3, 6]);
    let tokens = list(&metadata, "tokenizer.ggml.tokens");
    assert_eq!((tokens[3], tokens[258], tokens[259]), ("<0x00>", "<0xFF>", "he"));
    let scores = scores(&metadata);
    assert_eq!((scores[259], scores[260]), (0.0, -1.0), "in the order of merges");
    assert!(
        scores[..259].iter().all(|s| *s < *scores[259..].last().unwrap()),
        "what is never merged comes last"
    );
    for (key, value) in [
        ("add_space_prefix", true),
        ("add_bos_token", true),
        ("add_eos_token", false),
    ] {
        assert_eq!(
            metadata.flag(&format!("tokenizer.ggml.{key}")),
            Ok(Some(value)),
            "{key}"
        );
    }
    assert_eq!(metadata.get("tokenizer.ggml.unknown_token_id"), Some(&Entry::U32(0)));
    assert_eq!(metadata.get(EMBEDDED), None);
    let (back, special, notes) = tokenizer_json(&metadata).unwrap();
    assert_eq!(notes, []);
    assert_eq!((special.bos, special.eos, special.unknown), (Some(1), Some(2), Some(0)));
    for part in ["added_tokens", "normalizer", "pre_tokenizer", "decoder", "model"] {
        assert_eq!(back[part], original[part], "{part}");
    }
    assert_eq!(back["post_processor"]["single"], original["post_processor"]["single"]);
}

#[test]
fn a_unigram_tokenizer_comes_back_with_its_scores() {
    let original = tokenizer("unigram");
    let (metadata, notes) = tokenizer_metadata(&original, &Special::default(), None).unwrap();
    assert_eq!(notes, [Note::Prefix]);
    assert_eq!(metadata.text("tokenizer.ggml.model"), Ok(Some("t5")));
    assert_eq!(types(&metadata)[..4], [2, 3, 3, 1]);
    for (key, value) in [
        ("add_space_prefix", true),
        ("remove_extra_whitespaces", false),
        ("add_bos_token", false),
        ("add_eos_token", true),
    ] {
        assert_eq!(
            metadata.flag(&format!("tokenizer.ggml.{key}")),
            Ok(Some(value)),
            "{key}"
        );
    }
    assert_eq!(metadata.get(EMBEDDED), None);
    let (back, special, notes) = tokenizer_json(&metadata).unwrap();
    assert_eq!(notes, []);
    assert_eq!((special.bos, special.eos, special.unknown), (None, Some(2), Some(0)));
    comes_back(&back, &original);
    assert_eq!(back["model"]["unk_id"], original["model"]["unk_id"]);
}

#[test]
fn rows_without_a_token_are_filled_and_emptied_again() {
    for (name, count) in [("byte-level", 401), ("unigram", 118)] {
        let original = tokenizer(name);
        let (metadata, _) = tokenizer_metadata(&original, &ends(0, 0), Some(416)).unwrap();
        let tokens = list(&metadata, "tokenizer.ggml.tokens");
        assert_eq!(tokens.len(), 416);
        assert_eq!((tokens[415], types(&metadata)[415]), ("[PAD415]", 5));
        assert_ne!(types(&metadata)[count - 1], 5);
        let (back, _, _) = tokenizer_json(&metadata).unwrap();
        assert_eq!(vocabulary(&back), vocabulary(&original));
        let error = tokenizer_metadata(&original, &Special::default(), Some(count - 1)).unwrap_err();
        assert_eq!(
            error,
            TokenizerError::Rows {
                token: count - 1,
                rows: count - 1
            }
        );
        assert!(error.hint().is_some());
    }
}

#[test]
fn what_llama_cpp_does_otherwise_is_said_and_the_file_carries_the_original() {
    let changed = |name: &str, pointer: &str, value: Value| {
        let mut changed = tokenizer(name);
        *changed.pointer_mut(pointer).unwrap() = value;
        changed
    };
    let nfc = json!({"type": "NFC"});
    let words = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Whitespace"}, {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}
    ]});
    let spaced = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let twice = json!({"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}
    ], "pair": [], "special_tokens": {}});
    type Said = fn(&Note) -> bool;
    let cases: [(&str, Value, Said); 9] = [
        ("normalizer", changed("byte-level", "/normalizer", nfc.clone()), |n| {
            matches!(n, Note::Normalizer { .. })
        }),
        ("words", changed("byte-level", "/pre_tokenizer", words), |n| {
            matches!(n, Note::PreTokenizer { instead: "gpt-2", .. })
        }),
        ("a space", changed("byte-level", "/pre_tokenizer", spaced), |n| {
            matches!(n, Note::PreTokenizer { .. })
        }),
        (
            "whole words",
            changed("byte-level", "/model/ignore_merges", json!(true)),
            |n| matches!(n, Note::PreTokenizer { .. }),
        ),
        (
            "merges",
            changed("sentencepiece", "/model/merges/2", json!(["w", "a"])),
            |n| *n == Note::Merges,
        ),
        ("NFC", changed("sentencepiece", "/normalizer", nfc), |n| {
            matches!(n, Note::Normalizer { .. })
        }),
        ("template", changed("sentencepiece", "/post_processor", twice), |n| {
            matches!(n, Note::Template { .. })
        }),
        ("bytes", changed("unigram", "/model/byte_fallback", json!(true)), |n| {
            *n == Note::Bytes
        }),
        (
            "spaces of tokens",
            changed("byte-level", "/added_tokens/1/lstrip", json!(true)),
            |n| {
                *n == Note::AddedTokens {
                    first: "<|im_start|>".into(),
                    count: 1,
                }
            },
        ),
    ];
    for (what, original, said) in cases {
        let (metadata, notes) = tokenizer_metadata(&original, &ends(1, 2), None).unwrap();
        assert!(notes.iter().any(said), "{what}: {notes:?}");
        assert!(notes.iter().all(|note| !note.to_string().is_empty()));
        assert_eq!(tokenizer_json(&metadata).unwrap().0, original, "{what}");
        // Passed over if it has other tokens than the list.
        let mut other = metadata.clone();
        let mut tokens = list(&metadata, "tokenizer.ggml.tokens");
        tokens[5] = "another";
        other.set("tokenizer.ggml.tokens", Strings::from_iter(tokens));
        if metadata.get("tokenizer.ggml.merges").is_none() {
            let (back, _, notes) = tokenizer_json(&other).unwrap();
            assert_ne!(back, original);
            assert!(notes.contains(&Note::Embedded), "{what}");
        }
    }
    let (metadata, notes) = tokenizer_metadata(&tokenizer("byte-level"), &Special::default(), None).unwrap();
    assert_eq!(notes, [Note::NoEnd { taken: 11 }]);
    assert_eq!(metadata.get("tokenizer.ggml.eos_token_id"), None);
    // Unknown names of ways to cut text.
    let mut metadata = metadata;
    metadata.set("tokenizer.ggml.pre", "of-tomorrow");
    let (_, _, notes) = tokenizer_json(&metadata).unwrap();
    assert!(matches!(&notes[..], [Note::PreTokenizer { found, instead: "gpt-2" }] if found == "`of-tomorrow`"));
}

#[test]
fn old_ways_to_write_a_tokenizer_are_read() {
    let original = tokenizer("byte-level");
    let (metadata, _) = tokenizer_metadata(&original, &ends(0, 0), None).unwrap();
    let mut old = original.clone();
    let merges = original["model"]["merges"].as_array().unwrap().iter();
    let joined = merges.map(|pair| json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())));
    old["model"]["merges"] = joined.collect();
    old["model"].as_object_mut().unwrap().remove("type");
    old["model"]["continuing_subword_prefix"] = json!("");
    let (same, notes) = tokenizer_metadata(&old, &ends(0, 0), None).unwrap();
    assert_eq!((same, notes), (metadata, vec![]));
}

#[test]
fn tokenizers_that_are_none_are_refused_in_words() {
    let with = |pointer: &str, value: Value| {
        let mut changed = tokenizer("byte-level");
        *changed.pointer_mut(pointer).unwrap() = value;
        changed
    };
    let merge = |pair: Value| with("/model/merges/0", pair);
    let token = |id: Value| json!([{"id": id, "content": "x y", "special": true}]);
    let cases = [
        (json!({}), "`model` is missing"),
        (
            json!({"model": {"type": "WordPiece", "vocab": {}}}),
            "its model is `WordPiece`",
        ),
        (json!({"model": {"type": 7}}), "of no type"),
        (with("/model/vocab", json!([["a", 0.0]])), "`vocab` is not of the kind"),
        (with("/model/vocab", Value::Null), "`vocab` is missing"),
        (with("/model/vocab/!", json!(-1)), "has no number"),
        (with("/model/vocab/!", json!(2)), "have the same number 2"),
        (
            with("/model/end_of_word_suffix", json!("</w>")),
            "a mark at the start or the end",
        ),
        (
            with("/pre_tokenizer", json!({"type": "Whitespace"})),
            "neither bytes nor a byte",
        ),
        (merge(json!("he")), "the merge \"he\" is none"),
        (merge(json!(["h"])), "is none"),
        (merge(json!(["h ", "e"])), "has a space in it"),
        (with("/model/merges", Value::Null), "`merges` is missing"),
        (with("/added_tokens", token(json!(1_000_000_000))), "is far beyond"),
        (with("/added_tokens", token(json!("1"))), "no number"),
        (with("/added_tokens/0/id", json!(1)), "comes twice"),
    ];
    for (value, reason) in cases {
        let error = tokenizer_metadata(&value, &Special::default(), None).unwrap_err();
        assert!(error.to_string().contains(reason), "{reason}: {error}");
    }
    let error = tokenizer_metadata(&tokenizer("byte-level"), &ends(0, 401), None).unwrap_err();
    assert!(
        error.to_string().contains("is 401, but there are 401 tokens"),
        "{error}"
    );
}

#[test]
fn metadata_that_contradict_themselves_are_refused_in_words() {
    let of = |name: &str| tokenizer_metadata(&tokenizer(name), &ends(1, 2), None).unwrap().0;
    let cases: [(&str, &str, Entry, &str); 14] = [
        ("byte-level", "model", "bert".into(), "`tokenizer.ggml.model` is `bert`"),
        ("byte-level", "model", 1u32.into(), "not text"),
        ("byte-level", "tokens", vec![1u32].into(), "not an array of text"),
        (
            "byte-level",
            "token_type",
            vec![1i32].into(),
            "not one type for each token",
        ),
        ("byte-level", "token_type", vec![7i32; 401].into(), "has the type 7"),
        ("byte-level", "token_type", vec![-1i32; 401].into(), "whole numbers"),
        (
            "byte-level",
            "merges",
            Strings::from_iter(["he"]).into(),
            "makes no token",
        ),
        (
            "byte-level",
            "merges",
            Strings::from_iter([" "]).into(),
            "makes no token",
        ),
        (
            "byte-level",
            "merges",
            Strings::from_iter(["", "x zz"]).into(),
            "makes no token",
        ),
        ("byte-level", "eos_token_id", 401u32.into(), "there are 401 tokens"),
        ("byte-level", "add_bos_token", 1u8.into(), "not true or false"),
        (
            "sentencepiece",
            "scores",
            vec![0f32; 3].into(),
            "not one number for each",
        ),
        (
            "unigram",
            "scores",
            vec![f32::NAN; 118].into(),
            "not one number for each",
        ),
        ("unigram", "precompiled_charsmap", "x".into(), "no array of bytes"),
    ];
    for (name, key, value, reason) in cases {
        let mut metadata = of(name);
        metadata.set(&format!("tokenizer.ggml.{key}"), value);
        let error = tokenizer_json(&metadata).unwrap_err();
        assert!(error.to_string().contains(reason), "{key}: {error}");
    }
    let mut twice = of("unigram");
    let mut tokens = list(&twice, "tokenizer.ggml.tokens");
    tokens[7] = tokens[8];
    let tokens = Strings::from_iter(tokens);
    twice.set("tokenizer.ggml.tokens", tokens);
    assert!(tokenizer_json(&twice).unwrap_err().to_string().contains("comes twice"));
    let empty = tokenizer_json(&Metadata::new()).unwrap_err();
    assert_eq!(empty.to_string(), "the metadata has no `tokenizer.ggml.model`");
}
