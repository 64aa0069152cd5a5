//! Data that comes with a test part of its own.

use std::path::Path;

use offshoot_data::{DataError, Dataset, Image, Labels, SplitShares};
use tempfile::TempDir;

use crate::fixtures::*;

const SHARES: SplitShares = SplitShares { val: 0.3, test: 0.0 };

/// Pictures in one folder a class below `part`.
fn folders(root: &Path, part: &str, images: &[(usize, &str)]) {
    for (i, (number, class)) in images.iter().enumerate() {
        let image: Image = picture(*number, 8, 8, 3);
        put(root, &format!("{part}/{class}/{i}.png"), &png(&image));
    }
}

fn opened(root: &Path, shares: SplitShares) -> Result<Dataset, DataError> {
    Dataset::open_with_test(&root.join("train"), &root.join("test"), Labels::Use, 3, shares)
}

#[test]
fn the_test_part_is_the_test_path_and_nothing_of_it_is_trained_on() {
    let root = TempDir::new().unwrap();
    let train: Vec<(usize, &str)> = (0..40).map(|i| (i, ["cat", "dog", "owl"][i % 3])).collect();
    folders(root.path(), "train", &train);
    // Two new images, of classes that are numbered otherwise here, and two that training has too.
    folders(
        root.path(),
        "test",
        &[(100, "owl"), (101, "dog"), (5, "owl"), (6, "dog")],
    );
    let dataset = opened(root.path(), SHARES).unwrap();
    assert_eq!(dataset.source.len(), 44);
    assert_eq!(dataset.splits.test, [40, 41, 42, 43]);
    let classes: Vec<&str> = dataset
        .labels(&dataset.splits.test)
        .iter()
        .map(|&l| dataset.source.classes()[l as usize].as_str())
        .collect();
    // Sources go through their files by name: dog, dog, owl, owl.
    assert_eq!(classes, ["dog", "dog", "owl", "owl"]);
    let judged: Vec<Image> = dataset
        .splits
        .test
        .iter()
        .map(|&i| dataset.source.read(i).unwrap())
        .collect();
    let others = [&dataset.splits.train[..], &dataset.splits.val].concat();
    assert_eq!(others.len(), 38, "the two that are in both are only judged by");
    assert!(
        others
            .iter()
            .all(|&i| !judged.contains(&dataset.source.read(i).unwrap()))
    );
    // The others are where they would be without a test part of their own.
    let alone = Dataset::open(&root.path().join("train"), Labels::Use, 3, SHARES).unwrap();
    assert!(dataset.splits.val.iter().all(|i| alone.splits.val.contains(i)) && !dataset.splits.val.is_empty());
    assert!(dataset.source.read(44).is_err() && dataset.source.bytes(44).is_err());
}

#[test]
fn an_image_that_changes_sides_changes_the_fingerprint() {
    let fingerprint = |train: usize, test: usize| {
        let root = TempDir::new().unwrap();
        folders(root.path(), "train", &[(0, "a"), (1, "b"), (train, "a")]);
        folders(root.path(), "test", &[(3, "a"), (test, "b")]);
        opened(root.path(), SHARES).unwrap().fingerprint
    };
    assert_eq!(fingerprint(8, 9), fingerprint(8, 9));
    assert_ne!(fingerprint(8, 9), fingerprint(9, 8));
}

#[test]
fn two_test_parts_and_unknown_classes_are_refused() {
    let root = TempDir::new().unwrap();
    folders(root.path(), "train", &[(0, "cat"), (1, "dog")]);
    folders(root.path(), "test", &[(2, "cat"), (3, "emu")]);
    let error = opened(root.path(), SplitShares { val: 0.3, test: 0.1 }).err().unwrap();
    assert!(
        error.to_string().contains("data.test") && error.hint().is_some(),
        "{error}"
    );
    let error = opened(root.path(), SHARES).err().unwrap();
    assert!(error.to_string().contains("`emu`"), "{error}");
    // Without labels nobody asks for classes.
    let path = |part: &str| root.path().join(part);
    assert!(Dataset::open_with_test(&path("train"), &path("test"), Labels::Ignore, 3, SHARES).is_ok());
    let missing = Dataset::open_with_test(&path("train"), &path("none"), Labels::Ignore, 3, SHARES);
    assert!(missing.err().unwrap().to_string().contains("none"));
}
