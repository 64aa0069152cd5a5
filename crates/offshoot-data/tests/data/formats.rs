//! Every format is opened from files, and the same images come out of each.

use std::cell::RefCell;

use offshoot_data::summary::fingerprint;
use offshoot_data::{DataError, Image, Labels, Rng, Source, SplitShares, content_hashes, open, split, summarize};
use tempfile::TempDir;

use crate::fixtures::*;

fn images(source: &dyn Source) -> Vec<Image> {
    (0..source.len()).map(|i| source.read(i).unwrap()).collect()
}

fn labels(source: &dyn Source) -> Vec<u32> {
    (0..source.len()).map(|i| source.label(i).unwrap()).collect()
}

fn colours() -> Vec<Image> {
    (0..7).map(|i| picture(i, 32, 32, 3)).collect()
}

const CLASSES: [u32; 7] = [1, 0, 2, 2, 1, 0, 1];

fn pngs() -> Vec<Vec<u8>> {
    colours().iter().map(png).collect()
}

#[test]
fn a_folder_takes_labels_only_when_asked() {
    let root = TempDir::new().unwrap();
    for (i, bytes) in pngs().iter().enumerate() {
        put(root.path(), &format!("class{}/deep/{i}.PNG", CLASSES[i]), bytes);
    }
    put(root.path(), "class0/notes.txt", b"no image");
    put(root.path(), ".hidden/1.png", b"no image");
    put(root.path(), ".DS_Store", b"no image");
    let source = open(root.path(), Labels::Use).unwrap();
    assert_eq!((source.kind(), source.len(), source.skipped()), ("folder", 7, 2));
    assert_eq!(source.classes(), ["class0", "class1", "class2"]);
    assert_eq!(labels(&*source), [0, 0, 1, 1, 1, 2, 2]);
    assert_eq!(source.name(0).replace('\\', "/"), "class0/deep/1.PNG");
    assert_eq!(source.read(0).unwrap(), colours()[1]);
    let plain = open(root.path(), Labels::Ignore).unwrap();
    assert_eq!((plain.label(0), plain.classes().len()), (None, 0));
    assert_eq!(images(&*plain), images(&*source));
    assert!(matches!(
        source.read(7),
        Err(DataError::OutOfRange { index: 7, len: 7, .. })
    ));
}

#[test]
fn one_image_is_enough() {
    let root = TempDir::new().unwrap();
    put(root.path(), "only.png", &pngs()[0]);
    for path in [root.path().to_path_buf(), root.path().join("only.png")] {
        let source = open(&path, Labels::Ignore).unwrap();
        assert_eq!((source.len(), source.name(0).as_str()), (1, "only.png"));
        assert_eq!(source.read(0).unwrap(), colours()[0]);
        assert!(matches!(open(&path, Labels::Use), Err(DataError::LabelsMissing { .. })));
    }
}

#[test]
fn idx_is_read_plain_and_gzipped_grey_and_colour() {
    for (channels, rank) in [(1, 3), (3, 4)] {
        let all: Vec<Image> = (0..5).map(|i| picture(i, 9, 6, channels)).collect();
        let root = TempDir::new().unwrap();
        put(
            root.path(),
            &format!("train-images-idx{rank}-ubyte"),
            &idx_of(&all[..3]),
        );
        put(root.path(), "train-labels-idx1-ubyte", &idx(&[3], &[4, 0, 1]));
        put(
            root.path(),
            &format!("t10k-images-idx{rank}-ubyte.gz"),
            &gzip(&idx_of(&all[3..])),
        );
        put(root.path(), "t10k-labels-idx1-ubyte.gz", &gzip(&idx(&[2], &[2, 2])));
        let source = open(root.path(), Labels::Use).unwrap();
        assert_eq!((source.kind(), source.len()), ("idx", 5));
        assert_eq!(images(&*source), [&all[3..], &all[..3]].concat());
        assert_eq!(labels(&*source), [2, 2, 4, 0, 1]);
        assert_eq!(source.classes(), ["0", "1", "2", "3", "4"]);
        assert_eq!(source.name(3), format!("train-images-idx{rank}-ubyte#1"));
        let one = open(
            &root.path().join(format!("t10k-images-idx{rank}-ubyte.gz")),
            Labels::Use,
        )
        .unwrap();
        assert_eq!((one.len(), labels(&*one)), (2, vec![2, 2]));
    }
}

#[test]
fn cifar_ten_and_hundred_are_read() {
    let root = TempDir::new().unwrap();
    let all = colours();
    let label_bytes: Vec<[u8; 1]> = CLASSES.iter().map(|&c| [c as u8]).collect();
    let refs: Vec<&[u8]> = label_bytes.iter().map(|l| &l[..]).collect();
    put(root.path(), "data_batch_1.bin", &cifar(&all[..4], &refs[..4]));
    put(root.path(), "test_batch.bin", &cifar(&all[4..], &refs[4..]));
    put(
        root.path(),
        "batches.meta.txt",
        b"plane\ncar\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n",
    );
    let source = open(root.path(), Labels::Use).unwrap();
    assert_eq!(
        (source.kind(), source.len(), labels(&*source)),
        ("cifar", 7, CLASSES.to_vec())
    );
    assert_eq!(images(&*source), all);
    assert_eq!((source.classes().len(), source.classes()[1].as_str()), (10, "car"));

    let root = TempDir::new().unwrap();
    put(
        root.path(),
        "cifar-100-binary/train.bin",
        &cifar(&all[..2], &[&[3, 77], &[19, 99]]),
    );
    let source = open(root.path(), Labels::Use).unwrap();
    assert_eq!((images(&*source), labels(&*source)), (all[..2].to_vec(), vec![77, 99]));
    assert_eq!(source.classes()[99], "99");
}

#[test]
fn parquet_is_read_as_hugging_face_and_as_plain_column() {
    let root = TempDir::new().unwrap();
    let rows: Vec<Option<Vec<u8>>> = pngs().into_iter().map(Some).collect();
    let numbers: Vec<i64> = CLASSES.iter().map(|&c| c.into()).collect();
    let metadata = r#"{"info": {"features": {"image": {"_type": "Image"},
        "label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}}}}"#;
    parquet_of(
        &root.path().join("data-0.parquet"),
        &rows[..5],
        Some(&numbers[..5]),
        Layout::HuggingFace,
        2,
        Some(metadata),
    );
    parquet_of(
        &root.path().join("data-1.parquet"),
        &rows[5..],
        Some(&numbers[5..]),
        Layout::HuggingFace,
        9,
        Some(metadata),
    );
    let source = open(root.path(), Labels::Use).unwrap();
    assert_eq!((source.kind(), source.len()), ("parquet", 7));
    assert_eq!((images(&*source), labels(&*source)), (colours(), CLASSES.to_vec()));
    assert_eq!(source.classes(), ["ant", "bee", "cow"]);
    assert_eq!(source.name(6), "data-1.parquet#1");
    // In any order, and from many threads.
    for index in [6, 0, 3, 6, 1] {
        assert_eq!(source.read(index).unwrap(), colours()[index]);
    }
    let summary = summarize(&*source, None);
    assert_eq!(
        summary.classes,
        [("ant".into(), 2), ("bee".into(), 3), ("cow".into(), 2)]
    );

    let path = root.path().join("plain.parquet");
    parquet_of(&path, &rows, None, Layout::Plain, 3, None);
    let source = open(&path, Labels::Ignore).unwrap();
    assert_eq!(images(&*source), colours());
    assert!(matches!(open(&path, Labels::Use), Err(DataError::LabelsMissing { .. })));
}

#[test]
fn parquet_rows_larger_than_a_window_and_null_rows_are_told_apart() {
    let root = TempDir::new().unwrap();
    let mut noise = picture(1, 700, 700, 3);
    let mut rng = Rng::for_example(0, "noise", 0, 0);
    noise.pixels.iter_mut().for_each(|pixel| *pixel = rng.bits() as u8);
    // Ten times the same 1.5 MB are stored once, so that the column looks small and its windows are wide.
    let mut rows = vec![Some(png(&noise)); 10];
    rows.extend([None, Some(pngs()[2].clone())]);
    let path = root.path().join("x.parquet");
    parquet_of(&path, &rows, None, Layout::HuggingFace, 12, None);
    assert!(std::fs::metadata(&path).unwrap().len() < 8_000_000);
    let source = open(&path, Labels::Ignore).unwrap();
    for index in [0, 9, 4, 5] {
        assert!(source.read(index).unwrap() == noise, "row {index}");
    }
    assert_eq!(source.read(11).unwrap(), colours()[2]);
    let summary = summarize(&*source, None);
    assert_eq!((summary.damaged.len(), summary.duplicates), (1, 9));
    assert_eq!(summary.fingerprint, fingerprint(&content_hashes(&*source)));
    let error = source.read(10).unwrap_err().to_string();
    assert!(error.ends_with("x.parquet#10: the row holds no image bytes"), "{error}");
}

#[test]
fn webdataset_groups_members_by_basename() {
    let root = TempDir::new().unwrap();
    let bytes = pngs();
    let tenth = jpeg(&colours()[0]);
    tar_of(
        &root.path().join("a-0.tar"),
        &[
            ("cat/1.png", &bytes[0]),
            ("cat/1.cls", b"1\n"),
            ("cat/1.json", b"{}"),
            ("dog/1.cls", b"0"),
            ("dog/1.png", &bytes[1]),
        ],
    );
    tar_of(
        &root.path().join("a-1.tar"),
        &[("./cat/1.png", &bytes[2]), ("cat/1.cls", b"2"), ("z.txt", b"")],
    );
    let source = open(root.path(), Labels::Use).unwrap();
    assert_eq!((source.kind(), source.len(), source.skipped()), ("webdataset", 3, 2));
    assert_eq!(
        (images(&*source), labels(&*source)),
        (colours()[..3].to_vec(), vec![1, 0, 2])
    );
    assert_eq!(
        (source.name(0), source.name(2)),
        ("a-0.tar!cat/1.png".into(), "a-1.tar!cat/1.png".into())
    );

    let path = root.path().join("no-labels.tar");
    tar_of(&path, &[("1.jpg", &tenth)]);
    assert_eq!(open(&path, Labels::Ignore).unwrap().len(), 1);
    let error = open(&path, Labels::Use).err().unwrap();
    assert!(
        error.to_string().contains("no-labels.tar!1.cls: labels were asked for"),
        "{error}"
    );
    assert!(error.hint().is_some());
}

#[test]
fn the_same_images_come_out_of_every_format() {
    let root = TempDir::new().unwrap();
    let all = colours();
    let files: Vec<(String, Vec<u8>)> = pngs()
        .into_iter()
        .enumerate()
        .map(|(i, b)| (format!("{i}.png"), b))
        .collect();
    for (name, bytes) in &files {
        put(root.path(), &format!("folder/{name}"), bytes);
    }
    put(root.path(), "idx/train-images-idx4-ubyte.gz", &gzip(&idx_of(&all)));
    put(
        root.path(),
        "cifar/data_batch_1.bin",
        &cifar(&all, &[&[0u8] as &[u8]; 7]),
    );
    let members: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    put(root.path(), "tar/x", b"");
    tar_of(&root.path().join("tar/x.tar"), &members);
    put(root.path(), "parquet/data/readme", b"");
    let rows: Vec<Option<Vec<u8>>> = files.iter().map(|(_, bytes)| Some(bytes.clone())).collect();
    parquet_of(
        &root.path().join("parquet/data/x.parquet"),
        &rows,
        None,
        Layout::Plain,
        3,
        None,
    );
    let mut fingerprints = Vec::new();
    for kind in ["folder", "idx", "cifar", "tar", "parquet"] {
        let source = open(&root.path().join(kind), Labels::Ignore).unwrap();
        assert_eq!(images(&*source), all, "{kind}");
        fingerprints.push(summarize(&*source, None).fingerprint);
    }
    // Formats that hold the same encoded files have the same fingerprint.
    assert_eq!(fingerprints[0], fingerprints[3]);
    assert_eq!(fingerprints[0], fingerprints[4]);
}

#[test]
fn pixels_are_decoded_as_they_are_stored() {
    for image in [picture(2, 5, 3, 1), picture(3, 5, 3, 3), picture(4, 1, 1, 1)] {
        assert_eq!(Image::decode(&png(&image), "x").unwrap(), image);
    }
    let decoded = Image::decode(&jpeg(&picture(3, 40, 20, 3)), "x").unwrap();
    assert_eq!((decoded.width, decoded.height, decoded.channels), (40, 20, 3));
    // Alpha is dropped, not blended.
    let rgba = image::RgbaImage::from_pixel(2, 2, image::Rgba([10, 20, 30, 0]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    rgba.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    assert_eq!(
        Image::decode(&bytes.into_inner(), "x").unwrap().pixels,
        [10, 20, 30].repeat(4)
    );
}

#[test]
fn a_summary_counts_what_is_there() {
    let root = TempDir::new().unwrap();
    put(root.path(), "a/1.png", &png(&picture(1, 10, 20, 3)));
    put(root.path(), "a/2.png", &png(&picture(1, 10, 20, 3)));
    put(root.path(), "b/3.png", &png(&picture(2, 30, 30, 1)));
    put(root.path(), "b/4.png", b"this is no image");
    put(root.path(), "b/x.txt", b"nor this");
    let source = open(root.path(), Labels::Use).unwrap();
    let seen = RefCell::new(Vec::new());
    let summary = summarize(&*source, Some(&|done| seen.borrow_mut().push(done)));
    assert_eq!(seen.into_inner(), [4]);
    assert_eq!((summary.count, summary.skipped, summary.duplicates), (4, 1, 1));
    assert_eq!((summary.grey, summary.colour), (1, 2));
    let sizes = summary.sizes.unwrap();
    assert_eq!(
        (sizes.min, sizes.median, sizes.max, sizes.distinct),
        ((10, 20), (10, 20), (30, 30), 2)
    );
    assert_eq!(summary.classes, [("a".into(), 2), ("b".into(), 2)]);
    assert_eq!(summary.damaged.len(), 1);
    assert!(summary.damaged[0].0.ends_with("4.png"));
    // Names and order do not matter, content does.
    let again = TempDir::new().unwrap();
    put(again.path(), "9.png", &png(&picture(1, 10, 20, 3)));
    put(again.path(), "z/8.png", &png(&picture(1, 10, 20, 3)));
    put(again.path(), "7.png", &png(&picture(2, 30, 30, 1)));
    put(again.path(), "6.png", b"this is no image");
    let print = |root: &TempDir| summarize(&*open(root.path(), Labels::Ignore).unwrap(), None).fingerprint;
    assert_eq!(print(&again), summary.fingerprint);
    put(again.path(), "6.png", b"this is no image!");
    assert_ne!(print(&again), summary.fingerprint);
}

#[test]
fn equal_content_falls_on_one_side() {
    let root = TempDir::new().unwrap();
    for i in 0..40 {
        let bytes = png(&picture(i, 8, 8, 1));
        put(root.path(), &format!("a{i}.png"), &bytes);
        put(root.path(), &format!("b{i}.png"), &bytes);
    }
    let source = open(root.path(), Labels::Ignore).unwrap();
    let hashes = content_hashes(&*source);
    let splits = split(&hashes, 3, SplitShares { val: 0.3, test: 0.3 }).unwrap();
    for part in [&splits.train, &splits.val, &splits.test] {
        assert!(!part.is_empty());
        for &index in part {
            assert!(part.contains(&((index + 40) % 80)));
        }
    }
}
