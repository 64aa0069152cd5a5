//! Documents of plain files, JSON lines and Parquet: what is given out, left out, counted and refused.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use offshoot_data::DataError;
use offshoot_data::text::{Counts, Documents, MAX_DOCUMENT_BYTES};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::fixtures::*;

/// All documents with their places below `root`, and the counts.
fn read(root: &Path, name: &str, max_damaged: f64) -> Result<(Vec<(String, String)>, Counts), DataError> {
    let mut documents = Documents::open(&root.join(name), max_damaged)?;
    let mut found = Vec::new();
    for document in documents.by_ref() {
        let document = document?;
        let place = document.place.to_string();
        let place = place
            .trim_start_matches(&root.display().to_string())
            .trim_start_matches('/');
        found.push((place.to_owned(), document.text));
    }
    assert!(documents.next().is_none());
    assert_eq!(documents.done_bytes(), documents.total_bytes());
    Ok((found, documents.counts().clone()))
}

fn pairs(found: &[(&str, &str)]) -> Vec<(String, String)> {
    found.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

/// Reading this file fails, and says this.
fn says(name: &str, bytes: &[u8], expected: &str) {
    let root = TempDir::new().unwrap();
    put(root.path(), name, bytes);
    let error = read(root.path(), name, 0.01).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(name), "no place in: {text}");
    assert!(text.contains(expected), "{text}");
    assert!(error.hint().is_some(), "{text}");
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

#[test]
fn a_folder_gives_its_documents_in_the_order_of_paths_and_rows() {
    let root = TempDir::new().unwrap();
    let lines = json_lines(&["one", "two\r\n\u{0}\u{1F600}"]);
    put(root.path(), "d/b.jsonl", &lines);
    put(root.path(), "d/c/x.txt", b"plain\r\ntext");
    put(root.path(), "d/c/y.TEXT", b"\xEF\xBB\xBFmarked");
    put(root.path(), "d/e.jsonl.gz", &gzip(&lines));
    put(root.path(), "d/f.ndjson.zst", &zstd(&lines));
    put(root.path(), "d/g.txt.gz", &gzip(b"packed"));
    put(root.path(), "d/readme.md", b"passed over");
    put(root.path(), "d/.hidden.txt", b"passed over");
    parquet_of_texts(
        &root.path().join("d/p.parquet"),
        "text",
        &[Some(b"r0"), Some(b"r1"), Some(b"r2")],
        2,
    );
    let (found, counts) = read(root.path(), "d", 0.0).unwrap();
    let two = "two\r\n\u{0}\u{1F600}";
    let expected = [
        ("d/b.jsonl:1", "one"),
        ("d/b.jsonl:2", two),
        ("d/c/x.txt", "plain\r\ntext"),
        ("d/c/y.TEXT", "marked"),
        ("d/e.jsonl.gz:1", "one"),
        ("d/e.jsonl.gz:2", two),
        ("d/f.ndjson.zst:1", "one"),
        ("d/f.ndjson.zst:2", two),
        ("d/g.txt.gz", "packed"),
        ("d/p.parquet#0", "r0"),
        ("d/p.parquet#1", "r1"),
        ("d/p.parquet#2", "r2"),
    ];
    assert_eq!(found, pairs(&expected));
    assert_eq!(counts.documents, 12);
    assert_eq!(
        counts.bytes,
        expected.iter().map(|(_, text)| text.len() as u64).sum::<u64>()
    );
    assert_eq!(Documents::open(&root.path().join("d"), 0.0).unwrap().skipped(), 2);
}

#[test]
fn parts_of_a_gzip_file_follow_each_other() {
    let root = TempDir::new().unwrap();
    put(
        root.path(),
        "a.jsonl.gz",
        &[gzip(&json_lines(&["x"])), gzip(&json_lines(&["y"]))].concat(),
    );
    put(
        root.path(),
        "b.jsonl.zst",
        &[zstd(&json_lines(&["x"])), zstd(&json_lines(&["y"]))].concat(),
    );
    for name in ["a.jsonl.gz", "b.jsonl.zst"] {
        assert_eq!(read(root.path(), name, 0.0).unwrap().1.documents, 2, "{name}");
    }
}

#[test]
fn blank_documents_are_left_out_and_counted_and_blank_lines_are_nothing() {
    let root = TempDir::new().unwrap();
    let lines = b"\n{\"text\": \"a\"}\r\n   \n{\"text\": \"\"}\n{\"text\": \" \\n\\u3000\"}\n\n{\"text\": \"b\"}";
    put(root.path(), "d/a.jsonl", lines);
    put(root.path(), "d/b.txt", b" \n");
    put(root.path(), "d/c.txt", b"");
    let (found, counts) = read(root.path(), "d", 0.0).unwrap();
    assert_eq!(found, pairs(&[("d/a.jsonl:2", "a"), ("d/a.jsonl:7", "b")]));
    assert_eq!((counts.documents, counts.empty, counts.damaged), (2, 3, 0));
}

#[test]
fn damaged_documents_are_left_out_counted_and_named() {
    let root = TempDir::new().unwrap();
    let bad: [&[u8]; 10] = [
        b"[\"text\"]",
        b"{\"text\": 5}",
        b"{\"text\": null}",
        b"{\"other\": \"x\"}",
        b"{\"text\": \"cut",
        b"{\"text\": \"\\ud800\"}",
        b"{\"text\": \"\xFF\"}",
        b"plain words",
        b"{\"text\": {\"text\": \"x\"}}",
        b"\"text\"",
    ];
    let mut lines = json_lines(&["good"]);
    for line in bad {
        lines.extend_from_slice(line);
        lines.push(b'\n');
    }
    lines.extend(json_lines(&["good too"]));
    put(root.path(), "d/a.jsonl", &lines);
    put(root.path(), "d/binary.txt", &[0x7F, b'E', b'L', b'F', 0, 0xFE, 0xFF]);
    parquet_of_texts(
        &root.path().join("d/p.parquet"),
        "text",
        &[None, Some(b"r1"), Some(b"\xC0\x80")],
        9,
    );
    let (found, counts) = read(root.path(), "d", 0.9).unwrap();
    let expected = [
        ("d/a.jsonl:1", "good"),
        ("d/a.jsonl:12", "good too"),
        ("d/p.parquet#1", "r1"),
    ];
    assert_eq!(found, pairs(&expected));
    assert_eq!((counts.documents, counts.damaged), (3, 13));
    assert_eq!(counts.first_damaged.len(), 5);
    assert!(counts.first_damaged[0].contains("a.jsonl:2 (not an object with a string `text`"));

    let error = read(root.path(), "d", 0.8).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::TooManyDamagedDocuments {
                damaged: 13,
                of: 16,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("a.jsonl:2 (not an object"), "{error}");
    says("x.txt", b"\xFF\xFEb\0o\0m\0", "not UTF-8 text at byte 0");
    says(
        "x.jsonl",
        b"{\"text\": \"a\"}\n{\"text\": ",
        "1 of 2 documents are damaged",
    );
}

#[test]
fn the_share_of_damaged_documents_is_met_exactly() {
    let root = TempDir::new().unwrap();
    let mut lines = json_lines(&vec!["x"; 99]);
    lines.extend_from_slice(b"{}\n");
    put(root.path(), "a.jsonl", &lines);
    assert_eq!(read(root.path(), "a.jsonl", 0.01).unwrap().1.damaged, 1);
    assert!(read(root.path(), "a.jsonl", 0.0099).is_err());
    for share in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(
            read(root.path(), "a.jsonl", share),
            Err(DataError::Config { .. })
        ));
    }
}

#[test]
fn oddly_nested_json_is_read_past_without_recursion() {
    let root = TempDir::new().unwrap();
    let deep = format!(
        "{{\"x\": {}{}, \"text\": \"a\"}}\n",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let unclosed = format!("{{\"text\": \"b\", \"x\": {}\n", "{\"x\":".repeat(100_000));
    let twice = "{\"text\": \"a\", \"text\": \"b\"}\n";
    put(root.path(), "a.jsonl", format!("{deep}{unclosed}{twice}").as_bytes());
    let (found, counts) = read(root.path(), "a.jsonl", 1.0).unwrap();
    assert_eq!(found.len() as u64 + counts.damaged, 3);
    assert!(counts.damaged >= 2);
}

/// One line without an end, as many bytes of it as are asked for, which it counts.
struct EndlessLine {
    start: &'static [u8],
    left: u64,
    read: Arc<AtomicU64>,
}

impl Read for EndlessLine {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(usize::try_from(self.left).unwrap());
        buffer[..count].fill(b'a');
        let lead = self.start.len().min(count);
        buffer[..lead].copy_from_slice(&self.start[..lead]);
        self.start = &self.start[lead..];
        self.left -= count as u64;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[test]
fn a_line_of_a_gigabyte_is_refused_before_it_is_read() {
    let read = Arc::new(AtomicU64::new(0));
    let endless = EndlessLine {
        start: b"{\"text\": \"",
        left: 1 << 30,
        read: Arc::clone(&read),
    };
    let mut documents = Documents::lines(Path::new("big.jsonl"), BufReader::new(endless), 1.0).unwrap();
    let error = documents.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("big.jsonl:1"), "{error}");
    assert!(error.hint().is_some());
    assert!(read.load(Ordering::Relaxed) <= MAX_DOCUMENT_BYTES as u64 + (1 << 16));
    assert!(documents.next().is_none());
}

#[test]
fn a_plain_file_beyond_the_limit_is_refused() {
    let root = TempDir::new().unwrap();
    // 65 MiB of one letter in a few kilobytes.
    put(root.path(), "bomb.txt.zst", &zstd(&vec![b'a'; MAX_DOCUMENT_BYTES + 1]));
    let error = read(root.path(), "bomb.txt.zst", 1.0).unwrap_err();
    assert!(matches!(error, DataError::TooLarge { .. }), "{error}");
}

#[test]
fn compressed_files_that_end_early_or_are_none_are_named() {
    let lines = json_lines(&stories(40, 3));
    for (name, packed) in [("a.jsonl.gz", gzip(&lines)), ("a.jsonl.zst", zstd(&lines))] {
        says(name, &packed[..packed.len() / 2], "truncated or corrupt");
        says(name, &packed[..packed.len() - 1], "truncated or corrupt");
        says(name, b"no such thing at all", "truncated or corrupt");
        let mut flipped = packed.clone();
        for byte in flipped.iter_mut().skip(packed.len() / 2).take(40) {
            *byte ^= 0x55;
        }
        says(name, &flipped, name);
    }
}

#[test]
fn parquet_files_that_are_none_or_lack_the_column_are_named() {
    says("a.parquet", b"PAR1 but not really", "broken parquet");
    says("a.parquet", b"", "empty (0 bytes)");
    let root = TempDir::new().unwrap();
    parquet_of_texts(&root.path().join("a.parquet"), "body", &[Some(b"x")], 1);
    let error = read(root.path(), "a.parquet", 0.0).unwrap_err();
    assert!(
        error.to_string().contains("no column of strings is called `text`"),
        "{error}"
    );
    parquet_of_texts(
        &root.path().join("b.parquet"),
        "text",
        &[Some(&[b'x'; 5000]), Some(b"y")],
        1,
    );
    let whole = std::fs::read(root.path().join("b.parquet")).unwrap();
    for cut in [whole.len() - 1, whole.len() / 2, 100] {
        says("b.parquet", &whole[..cut], "b.parquet");
    }
}

#[test]
fn a_path_without_text_is_refused() {
    let root = TempDir::new().unwrap();
    put(root.path(), "d/picture.png", b"x");
    for name in ["d", "d/picture.png"] {
        let error = read(root.path(), name, 0.0).unwrap_err();
        assert!(matches!(error, DataError::NoText { .. }), "{error}");
        assert!(error.hint().unwrap().contains(".jsonl"));
    }
    assert!(matches!(
        read(root.path(), "none", 0.0),
        Err(DataError::Io { .. } | DataError::NoText { .. })
    ));
}

/// A reader that gives its bytes in pieces of odd sizes.
struct Pieces(Vec<u8>, usize);

impl Read for Pieces {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        unreachable!("lines are read by buffers")
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(self.1)])
    }

    fn consume(&mut self, amount: usize) {
        self.0.drain(..amount);
        self.1 = self.1 % 7 + 1;
    }
}

proptest! {
    #[test]
    fn json_lines_give_back_what_was_written(texts in prop::collection::vec("\\PC*|[\r\n\t\u{0} ]*|.*", 0..20)) {
        let reader = Pieces(json_lines(&texts), 3);
        let mut documents = Documents::lines(Path::new("x"), reader, 0.0).unwrap();
        let found: Vec<String> = documents.by_ref().map(|document| document.unwrap().text).collect();
        let expected: Vec<String> = texts.iter().filter(|text| !text.trim().is_empty()).cloned().collect();
        prop_assert_eq!(documents.counts().empty as usize, texts.len() - expected.len());
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_bytes_are_documents_or_damaged(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut documents = Documents::lines(Path::new("x"), io::Cursor::new(bytes), 1.0).unwrap();
        prop_assert!(documents.all(|document| document.is_ok()));
    }
}
