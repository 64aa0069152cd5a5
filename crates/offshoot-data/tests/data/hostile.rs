//! Files that lie, end early or try to do harm give errors that name the place, and nothing else.

use std::path::Path;

use offshoot_data::{DataError, Image, Labels, open};
use tempfile::TempDir;

use crate::fixtures::*;

fn refused(path: &Path) -> DataError {
    match open(path, Labels::Ignore) {
        Ok(source) => panic!("{} was opened as {}", path.display(), source.kind()),
        Err(error) => error,
    }
}

/// Opening a file of this content fails, and says this.
fn says(name: &str, bytes: &[u8], expected: &str) {
    let root = TempDir::new().unwrap();
    put(root.path(), name, bytes);
    let error = refused(&root.path().join(name));
    let text = error.to_string();
    assert!(text.contains(name), "no place in: {text}");
    assert!(text.contains(expected), "{text}");
    assert!(error.hint().is_some(), "{text}");
}

#[test]
fn idx_headers_must_fit_their_files() {
    let whole = idx_of(&[picture(1, 9, 6, 1), picture(2, 9, 6, 1)]);
    says(
        "train-images-idx3-ubyte",
        &whole[..whole.len() - 1],
        "truncated: the IDX header promises 108 bytes",
    );
    says(
        "train-images-idx3-ubyte",
        &whole[..7],
        "truncated or corrupt within the IDX header",
    );
    says("train-images-idx3-ubyte", &[&whole[..], &[0]].concat(), "too long");
    says(
        "train-images-idx3-ubyte",
        &idx(&[u32::MAX, 28, 28], &[1, 2, 3]),
        "truncated",
    );
    says(
        "train-images-idx3-ubyte",
        &idx(&[u32::MAX, u32::MAX, u32::MAX], &[1]),
        "overflow",
    );
    says("train-images-idx3-ubyte", &idx(&[9, 0, 0], &[]), "are no images");
    says("train-images-idx3-ubyte", &idx(&[0, 28, 28], &[]), "counts 0 images");
    says(
        "train-images-idx3-ubyte",
        &[0, 0, 0x0D, 3, 0, 0, 0, 1],
        "only unsigned bytes",
    );
    says("train-images-idx3-ubyte", b"something else", "not an IDX file");
    says("train-images-idx3-ubyte", b"", "empty (0 bytes)");
    says("train-images-idx3-ubyte", &idx(&[2, 3], &[0; 6]), "are no images");
}

#[test]
fn gzip_may_hold_what_its_header_promises_and_no_more() {
    let whole = idx_of(&[picture(1, 9, 6, 1), picture(2, 9, 6, 1)]);
    let name = "t10k-images-idx3-ubyte.gz";
    let packed = gzip(&whole);
    says(name, &packed[..packed.len() / 2], "truncated or corrupt");
    says(name, &packed[..packed.len() - 4], "truncated or corrupt");
    says(name, &gzip(&whole[..whole.len() - 1]), "ends before the 108 bytes");
    // A bomb: 64 MiB of zeros behind a header that promises two images.
    says(
        name,
        &gzip(&[&whole[..], &vec![0; 64 << 20]].concat()),
        "goes on after the 108 bytes",
    );
    // The other bomb: a header that promises 3 TiB.
    says(name, &gzip(&idx(&[u32::MAX, 28, 28], &[0; 100])), "more than");
    let mut flipped = packed.clone();
    let last = flipped.len() - 6;
    flipped[last] ^= 1;
    says(name, &flipped, "corrupt gzip");
}

#[test]
fn labels_must_be_as_many_as_images() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("train-images-idx3-ubyte");
    put(
        root.path(),
        "train-images-idx3-ubyte",
        &idx_of(&[picture(1, 9, 6, 1), picture(2, 9, 6, 1)]),
    );
    let reason = |path: &Path| open(path, Labels::Use).err().unwrap().to_string();
    assert!(
        reason(&path).contains("no train-labels-idx1-ubyte[.gz] beside it"),
        "{}",
        reason(&path)
    );
    put(root.path(), "train-labels-idx1-ubyte", &idx(&[3], &[0, 1, 2]));
    assert!(
        reason(&path).contains("holds [3] labels for 2 images"),
        "{}",
        reason(&path)
    );
    put(root.path(), "train-labels-idx1-ubyte", &idx(&[2], &[0]));
    assert!(reason(&path).contains("truncated"), "{}", reason(&path));

    put(root.path(), "flat/1.png", &png(&picture(1, 2, 2, 1)));
    assert!(reason(&root.path().join("flat")).contains("lies in no class folder"));
}

#[test]
fn cifar_files_hold_whole_records() {
    let whole = cifar(&[picture(0, 32, 32, 3)], &[&[3]]);
    says(
        "data_batch_1.bin",
        &whole[..100],
        "truncated: record 0 has 100 of 3073 bytes",
    );
    let root = TempDir::new().unwrap();
    put(
        root.path(),
        "data_batch_1.bin",
        &cifar(&[picture(0, 32, 32, 3)], &[&[10]]),
    );
    let error = open(root.path(), Labels::Use).err().unwrap().to_string();
    assert!(error.contains("label 10 in record 0"), "{error}");
}

#[test]
fn tar_members_may_not_leave_the_archive() {
    let root = TempDir::new().unwrap();
    let bytes = png(&picture(0, 4, 4, 1));
    for (number, member) in ["../x.png", "/etc/x.png", "a/../../x.png", "a\\..\\..\\x.png"]
        .iter()
        .enumerate()
    {
        let path = root.path().join(format!("{number}.tar"));
        tar_of(&path, &[("fine.png", &bytes), (member, &bytes)]);
        let error = refused(&path);
        assert!(
            matches!(&error, DataError::UnsafeMember { member: name, .. } if name == member),
            "{error}"
        );
    }
    assert!(!root.path().join("x.png").exists() && !root.path().parent().unwrap().join("x.png").exists());
}

#[test]
fn broken_tars_are_named_with_the_place() {
    let root = TempDir::new().unwrap();
    let image = png(&picture(0, 64, 64, 3));
    let path = root.path().join("whole.tar");
    tar_of(&path, &[("1.png", &image), ("2.png", &image)]);
    let whole = std::fs::read(&path).unwrap();
    let second = 512 + image.len().next_multiple_of(512);
    says("cut.tar", &whole[..second + 512 + 10], "truncated: member `2.png`");
    says("cut.tar", &whole[..second + 100], "broken tar after `1.png`");
    let mut garbled = whole.clone();
    garbled[second + 3] ^= 0x55;
    says("garbled.tar", &garbled, "checksum");
    says("empty.tar", b"", "empty (0 bytes)");
    let other = root.path().join("other.tar");
    tar_of(&other, &[("readme.txt", b"no images here")]);
    assert!(matches!(refused(&other), DataError::Empty { .. }));
    tar_of(&other, &[("1.png", &image), ("1.jpg", &image)]);
    assert!(refused(&other).to_string().contains("twice"));
}

#[test]
fn broken_parquet_is_an_error() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("x.parquet");
    let rows: Vec<Option<Vec<u8>>> = (0..20).map(|i| Some(png(&picture(i, 16, 16, 3)))).collect();
    parquet_of(&path, &rows, None, Layout::HuggingFace, 10, None);
    let whole = std::fs::read(&path).unwrap();
    says("cut.parquet", &whole[..whole.len() - 1], "broken parquet");
    says("cut.parquet", &whole[..whole.len() / 2], "broken parquet");
    says("cut.parquet", b"PAR1", "broken parquet");
    says("empty.parquet", b"", "empty (0 bytes)");
    // Any byte may be wrong: an error or wrong pixels, never a panic that gets out or endless work.
    for at in (0..whole.len()).step_by(whole.len() / 97) {
        let mut garbled = whole.clone();
        garbled[at] ^= 0xFF;
        put(root.path(), "garbled.parquet", &garbled);
        if let Ok(source) = open(&root.path().join("garbled.parquet"), Labels::Ignore) {
            for index in 0..source.len().min(20) {
                let _ = source.read(index);
            }
        }
    }
}

/// A PNG that is nothing but a header of this size.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&chunk);
    let mut bytes = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d".to_vec();
    bytes.extend(chunk);
    bytes.extend(crc.sum().to_be_bytes());
    // An empty data chunk, since the decoder looks for one.
    bytes.extend([0, 0, 0, 0]);
    bytes.extend(b"IDAT");
    bytes.extend([0x35, 0xAF, 0x06, 0x1E]);
    bytes
}

#[test]
fn huge_images_are_refused_by_their_header() {
    for (width, height) in [(60_000, 60_000), (16_385, 1), (1, 16_385), (16_384, 16_384)] {
        let error = Image::decode(&png_header(width, height), "huge.png").unwrap_err();
        assert!(matches!(error, DataError::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains(&format!("{width} x {height}")), "{error}");
    }
}

#[test]
fn truncated_images_are_errors() {
    let original = picture(3, 64, 48, 3);
    for (name, whole) in [("x.png", png(&original)), ("x.jpg", jpeg(&original))] {
        for len in [
            0,
            1,
            10,
            whole.len() / 4,
            whole.len() / 2,
            whole.len() - 20,
            whole.len() - 13,
        ] {
            let error = Image::decode(&whole[..len], name).err();
            assert!(
                matches!(error, Some(DataError::Damaged { .. })),
                "{name} cut to {len}: {error:?}"
            );
        }
    }
    let whole = jpeg(&original);
    assert!(Image::decode(&whole[..whole.len() - 2], "x.jpg").is_err());
    // Bytes after the end are common and harmless.
    assert!(Image::decode(&[&whole[..], b"\0\0trailing"].concat(), "x.jpg").is_ok());
}

#[test]
fn empty_and_missing_places_are_explained() {
    let root = TempDir::new().unwrap();
    let error = refused(root.path());
    assert!(
        matches!(error, DataError::Empty { .. }) && error.hint().is_some(),
        "{error}"
    );
    put(root.path(), "readme.md", b"text");
    assert!(
        refused(root.path())
            .to_string()
            .contains("no images found (1 other files)")
    );
    assert!(
        refused(&root.path().join("nowhere"))
            .hint()
            .unwrap()
            .contains("check the path")
    );
    assert!(matches!(
        refused(&root.path().join("readme.md")),
        DataError::Unrecognized { .. }
    ));
    put(root.path(), "x.dat", b"");
    assert!(
        refused(&root.path().join("x.dat"))
            .to_string()
            .contains("empty (0 bytes)")
    );
    says("data.tar.gz", &gzip(b"some archive"), "not a format");
}

#[cfg(unix)]
#[test]
fn a_link_upwards_ends() {
    let root = TempDir::new().unwrap();
    put(root.path(), "a/1.png", &png(&picture(0, 4, 4, 1)));
    std::os::unix::fs::symlink(root.path(), root.path().join("a/loop")).unwrap();
    assert_eq!(open(root.path(), Labels::Ignore).unwrap().len(), 1);
}
