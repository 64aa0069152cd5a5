//! Bad GGUF files: each is a typed error that names the file, never a panic and never a large allocation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use offshoot_family::{Decoder, DecoderKind};
use offshoot_zoo::gguf::{self, GgufError, GgufFile, Strings};

use super::model::{Parts, Saved, gpt2};
use crate::hostile::frugal;

/// A GGUF file byte by byte, by nothing of ours.
#[derive(Clone)]
struct Raw {
    version: u32,
    counts: [u64; 2],
    /// Values and the list of tensors.
    body: Vec<u8>,
    alignment: usize,
    data: Vec<u8>,
}

impl Raw {
    fn new(tensors: u64, values: u64) -> Self {
        Self {
            version: 3,
            counts: [tensors, values],
            body: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        }
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.body.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.put(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.put(&value.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).put(text.as_bytes())
    }

    /// The name and the type of a value.
    fn key(self, key: &str, kind: u32) -> Self {
        self.text(key).u32(kind)
    }

    fn tensor(self, name: &str, dimensions: &[u64], kind: u32, start: u64) -> Self {
        let raw = self.text(name).u32(dimensions.len() as u32);
        dimensions.iter().fold(raw, |raw, &d| raw.u64(d)).u32(kind).u64(start)
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = vec![1; bytes];
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.counts.iter().flat_map(|c| c.to_le_bytes()));
        bytes.extend(&self.body);
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }
}

/// A value, an array of text, an array of arrays, and two tensors, the second in blocks.
fn honest() -> Raw {
    Raw::new(2, 4)
        .key("general.architecture", 8)
        .text("llama")
        .key("llama.block_count", 4)
        .u32(2)
        .key("tokens", 9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("")
        .key("nested", 9)
        .u32(9)
        .u64(2)
        .u32(0)
        .u64(1)
        .put(&[7])
        .u32(7)
        .u64(0)
        .tensor("plain", &[3, 1], 0, 0)
        .tensor("blocks", &[32, 2], 8, 32)
        .data(32 + 2 * 34)
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("x.gguf");
    (base, path)
}

fn refused(path: &Path, bytes: &[u8], what: &str) -> String {
    std::fs::write(path, bytes).unwrap();
    let error = frugal(|| GgufFile::open(path)).map(|_| ()).expect_err(what);
    assert!(matches!(error, GgufError::Invalid { .. }), "{what}: {error}");
    assert!(error.hint().is_some(), "{what}");
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "{what}: {text}");
    text
}

#[test]
fn an_honest_file_opens_and_is_refused_at_every_shorter_length() {
    let (_base, path) = place();
    let whole = honest().bytes();
    std::fs::write(&path, &whole).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["plain", "blocks"]);
    assert_eq!(file.shape("blocks"), Some(&[2, 32][..]));
    assert_eq!(file.read("plain").unwrap().len(), 3);
    assert_eq!(file.read("blocks").unwrap().len(), 64);
    for length in 0..whole.len() {
        let text = refused(&path, &whole[..length], &format!("the first {length} bytes"));
        assert!(length < 24 || text.contains("truncated"), "{length}: {text}");
    }
}

#[test]
fn a_file_cut_short_after_it_was_opened_is_an_error_of_reading() {
    let (_base, path) = place();
    std::fs::write(&path, honest().bytes()).unwrap();
    let file = GgufFile::open(&path).unwrap();
    std::fs::write(&path, &honest().bytes()[..200]).unwrap();
    assert!(matches!(file.read("blocks"), Err(GgufError::Io { .. })));
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused_before_anything_is_allocated() {
    let (_base, path) = place();
    let huge = [
        1 << 16,
        1 << 20,
        1 << 32,
        1 << 40,
        i64::MAX as u64,
        u64::MAX - 7,
        u64::MAX,
    ];
    for many in huge {
        let what = many.to_string();
        for counts in [[many, 4], [2, many], [many, many]] {
            let mut raw = honest();
            raw.counts = counts;
            refused(&path, &raw.bytes(), &what);
        }
        let value = |key: &str, kind| Raw::new(0, 1).key(key, kind);
        refused(&path, &Raw::new(0, 1).u64(many).bytes(), &what);
        refused(&path, &value("text", 8).u64(many).bytes(), &what);
        for kind in 0..13 {
            refused(&path, &value("array", 9).u32(kind).u64(many).bytes(), &what);
        }
        refused(&path, &value("array", 9).u32(8).u64(1).u64(many).bytes(), &what);
        refused(&path, &value("array", 9).u32(9).u64(1).u32(0).u64(many).bytes(), &what);
        refused(&path, &Raw::new(1, 0).u64(many).bytes(), &what);
        let tensor = |dimensions: &[u64], kind| Raw::new(1, 0).tensor("t", dimensions, kind, 0).data(64).bytes();
        for kind in [0, 8, 14] {
            refused(&path, &tensor(&[many], kind), &what);
            refused(&path, &tensor(&[many, many], kind), &what);
            refused(&path, &tensor(&[1, 1, many, many], kind), &what);
        }
        refused(&path, &Raw::new(1, 0).text("t").u32(many as u32 | 5).bytes(), &what);
    }
    // A sparse file that is long enough for the claims: limits hold nevertheless.
    for raw in [
        Raw::new(0, 1).key("text", 8).u64(1 << 36),
        Raw::new(0, 1).key("array", 9).u32(0).u64(1 << 36),
        Raw::new(0, 1).key("array", 9).u32(8).u64(1 << 33),
        Raw::new(0, 1).key("array", 9).u32(9).u64(1 << 30),
        Raw::new(0, 1 << 33),
        Raw::new(1 << 33, 0),
    ] {
        std::fs::write(&path, raw.bytes()).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 38).unwrap();
        assert!(frugal(|| GgufFile::open(&path)).is_err());
    }
}

#[test]
fn arrays_may_nest_but_not_without_end() {
    let (_base, path) = place();
    let nested = |levels: usize| {
        let raw = Raw::new(0, 1).key("n", 9);
        (1..levels).fold(raw, |raw, _| raw.u32(9).u64(1)).u32(4).u64(0).bytes()
    };
    for levels in 1..=8 {
        std::fs::write(&path, nested(levels)).unwrap();
        GgufFile::open(&path).unwrap();
    }
    for levels in [9, 100, 100_000] {
        let text = refused(&path, &nested(levels), "deep");
        assert!(text.contains("nested deeper than 8"), "{text}");
    }
    let wide = (0..70_000).fold(Raw::new(0, 1).key("n", 9).u32(9).u64(70_000), |raw, _| {
        raw.u32(4).u64(0)
    });
    let text = refused(&path, &wide.bytes(), "wide");
    assert!(text.contains("more than 65536 nested arrays"), "{text}");
}

#[test]
fn headers_that_lie_are_refused() {
    let (_base, path) = place();
    let one = |dimensions: &[u64], kind, start| Raw::new(1, 0).tensor("t", dimensions, kind, start).data(128);
    let two = |name: &str, start| {
        Raw::new(2, 0)
            .tensor("t", &[16], 0, 0)
            .tensor(name, &[16], 0, start)
            .data(128)
    };
    let value = |kind| Raw::new(0, 1).key("v", kind);
    let long = "n".repeat(64);
    let cases: Vec<(&str, Raw, &str)> = vec![
        (
            "a value twice",
            Raw::new(0, 2).key("v", 0).put(&[1]).key("v", 0).put(&[1]),
            "the value `v` comes twice",
        ),
        (
            "a value without a name",
            Raw::new(0, 1).key("", 0).put(&[1; 9]),
            "has no name",
        ),
        ("a type that is not one", value(13).put(&[0; 8]), "`v` is of type 13"),
        (
            "an array of such",
            value(9).u32(13).u64(0),
            "`v` is an array of type 13",
        ),
        ("a truth value of 2", value(7).put(&[2]), "truth value 2"),
        (
            "one in an array",
            value(9).u32(7).u64(2).put(&[1, 255]),
            "truth value 255",
        ),
        ("text that is not UTF-8", value(8).u64(2).put(&[0xff, 0xfe]), "`v`"),
        (
            "a name that is not",
            Raw::new(0, 1).u64(2).put(&[0xff, 0xfe]).u32(0).put(&[1]),
            "not UTF-8",
        ),
        ("a tensor twice", two("t", 64), "the tensor `t` comes twice"),
        ("tensors that overlap", two("u", 32), "tensors `t` and `u` overlap"),
        ("tensors in one place", two("u", 0), "overlap"),
        (
            "a tensor outside",
            two("u", 96),
            "tensor `u` has 64 bytes from byte 96 on",
        ),
        ("a tensor far outside", two("u", u64::MAX - 31), "tensor `u`"),
        ("a tensor that is not aligned", one(&[4], 0, 8), "no multiple of 32"),
        (
            "a tensor without a name",
            Raw::new(1, 0).tensor("", &[4], 0, 0).data(64),
            "has no name",
        ),
        (
            "a long name",
            Raw::new(1, 0).tensor(&long, &[4], 0, 0).data(64),
            "at most 63",
        ),
        ("no dimension", one(&[], 0, 0), "has 0 dimensions"),
        ("a dimension of 0", one(&[4, 0], 0, 0), "has a dimension of 0: [4, 0]"),
        ("five dimensions", one(&[1; 5], 0, 0), "has 5 dimensions"),
        (
            "a type of the past",
            one(&[32], 4, 0),
            "is of type 4, which is not known",
        ),
        ("a type of the future", one(&[32], 1000, 0), "is of type 1000"),
        ("rows of half a block", one(&[16, 2], 8, 0), "not whole blocks"),
        (
            "a product that overflows",
            one(&[1 << 32, 1 << 32, 2], 0, 0),
            "does not fit into the file",
        ),
    ];
    for (what, raw, reason) in cases {
        let text = refused(&path, &raw.bytes(), what);
        assert!(text.contains(reason), "{what}: {text}");
    }
}

#[test]
fn only_alignments_that_are_powers_of_two_are_taken() {
    let (_base, path) = place();
    let of = |kind: u32, bytes: &[u8], alignment: usize| {
        let mut raw = Raw::new(1, 1).key("general.alignment", kind).put(bytes);
        raw.alignment = alignment;
        raw.tensor("t", &[4], 0, 0).data(16).bytes()
    };
    for alignment in [1u32, 8, 32, 64, 4096] {
        std::fs::write(&path, of(4, &alignment.to_le_bytes(), alignment as usize)).unwrap();
        let values = GgufFile::open(&path).unwrap().read("t").unwrap();
        assert_eq!(values, [f32::from_bits(0x0101_0101); 4]);
    }
    for alignment in [0u32, 3, 24, u32::MAX, 1 << 31] {
        refused(&path, &of(4, &alignment.to_le_bytes(), 32), &alignment.to_string());
    }
    refused(&path, &of(10, &32u64.to_le_bytes(), 32), "of another type");
}

#[test]
fn other_versions_and_other_files_are_named() {
    let (_base, path) = place();
    let mut second = honest();
    second.version = 2;
    std::fs::write(&path, second.bytes()).unwrap();
    assert_eq!(GgufFile::open(&path).unwrap().version(), 2);
    let mut cases = vec![(
        b"PK\x03\x04 and what a zip file has".to_vec(),
        "does not start with `GGUF`",
    )];
    for (version, text) in [
        (1u32, "version 1"),
        (4, "version 4"),
        (3u32.swap_bytes(), "version 3 in big-endian order"),
        (0, "version 0"),
    ] {
        let mut raw = honest();
        raw.version = version;
        cases.push((raw.bytes(), text));
    }
    for (bytes, reason) in cases {
        std::fs::write(&path, &bytes).unwrap();
        let error = GgufFile::open(&path).unwrap_err();
        assert!(matches!(error, GgufError::Version { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.hint().unwrap().contains("versions 2 and 3"));
    }
    assert!(matches!(
        GgufFile::open(Path::new("/nowhere/x.gguf")),
        Err(GgufError::Io { .. })
    ));
    assert!(GgufFile::open(path.parent().unwrap()).is_err(), "a folder");
}

#[test]
fn no_change_of_a_byte_or_two_makes_a_panic() {
    let (_base, path) = place();
    let whole = honest().bytes();
    let header = whole.len() - 100;
    let mut number = 0u64;
    let mut next = |below: usize| {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (number >> 33) as usize % below
    };
    frugal(|| {
        for _ in 0..1500 {
            let mut bytes = whole.clone();
            for _ in 0..=next(2) {
                let place = next(header);
                bytes[place] = [0, 1, 0x7f, 0x80, 0xff, next(256) as u8][next(6)];
            }
            std::fs::write(&path, &bytes).unwrap();
            let opened = catch_unwind(AssertUnwindSafe(|| {
                let Ok(file) = GgufFile::open(&path) else { return };
                let names: Vec<_> = file.names().map(str::to_owned).collect();
                for name in names {
                    let _ = file.read(&name);
                }
            }));
            assert!(opened.is_ok(), "{bytes:?}");
        }
    });
}

/// A whole model of so many tokens, without a tokenizer.
fn model(tokens: usize) -> (Saved, PathBuf, Parts) {
    let saved = Saved::new(&Decoder {
        kind: DecoderKind::Llama,
        width: 4,
        depth: 1,
        heads: 2,
        kv_heads: 2,
        head_dim: 2,
        hidden: 3,
        vocabulary: tokens,
        ..gpt2()
    });
    let path = saved.whole();
    let mut parts = Parts::of(&path);
    parts.without("tokenizer.");
    (saved, path, parts)
}

/// The tokenizer `llama` of these tokens, all of one score.
fn llama(parts: &mut Parts, tokens: Strings) {
    parts.metadata.set("tokenizer.ggml.model", "llama");
    parts.metadata.set("tokenizer.ggml.scores", vec![0f32; tokens.len()]);
    parts.metadata.set("tokenizer.ggml.tokens", tokens);
}

fn refused_model(path: &Path, parts: &Parts) -> String {
    parts.write(path);
    let text = frugal(|| gguf::open(path)).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    text
}

#[test]
fn a_small_file_does_not_become_gigabytes_of_merges() {
    // `a`, `aa`, ... up to 1024 letters: half a megabyte of tokens, 523,776 merges of 358 MB.
    let letters = |n: usize| (1..=n).map(|length| "a".repeat(length)).collect::<Strings>();
    let (_saved, path, mut parts) = model(1024);
    llama(&mut parts, letters(1024));
    let text = refused_model(&path, &parts);
    assert!(text.contains("its 1024 tokens") && text.contains("16 MiB"), "{text}");
    assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    // Below the limit it is a tokenizer like any other.
    llama(&mut parts, letters(300));
    parts.write(&path);
    assert!(frugal(|| gguf::open(&path)).is_ok());
    // More tokens than embeddings, and tensors that do not fit, are seen before any merge is made.
    llama(&mut parts, letters(1025));
    let text = refused_model(&path, &parts);
    assert!(text.contains("the token 1024") && text.contains("1024 rows"), "{text}");
    parts.tensors.retain(|(tensor, _)| tensor.name != "blk.0.ffn_up.weight");
    let text = refused_model(&path, &parts);
    assert!(text.contains("`blk.0.ffn_up.weight` is missing"), "{text}");
}

#[test]
fn control_tokens_without_number_are_refused() {
    let (_saved, path, mut parts) = model(70_000);
    llama(&mut parts, (0..70_000).map(|i| format!("<{i}>")).collect());
    parts.metadata.set("tokenizer.ggml.token_type", vec![3i32; 70_000]);
    let text = refused_model(&path, &parts);
    assert!(
        text.contains("70000 control") && text.contains("at most 65536"),
        "{text}"
    );
}
