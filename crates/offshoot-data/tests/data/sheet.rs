//! The contact sheet, and the PNG writer.

use std::sync::Arc;

use offshoot_data::augment::CropSpec;
use offshoot_data::sheet::{contact_sheet, write_png};
use offshoot_data::{BlockMasks, DataError, Image, LoaderConfig, MultiCrop};
use tempfile::TempDir;

use crate::fixtures::*;

fn config() -> LoaderConfig {
    LoaderConfig {
        crops: MultiCrop {
            globals: CropSpec {
                px: 28,
                scale: (0.32, 1.0),
                count: 2,
            },
            locals: CropSpec {
                px: 16,
                scale: (0.05, 0.32),
                count: 4,
            },
            channels: 1,
            mean: vec![0.5],
            std: vec![0.25],
            ..MultiCrop::default()
        },
        masks: Some(BlockMasks {
            grid: (7, 7),
            ..BlockMasks::default()
        }),
        ..LoaderConfig::default()
    }
}

fn source() -> Arc<Memory> {
    let images = vec![picture(0, 28, 28, 1), picture(1, 60, 3, 3), picture(2, 1, 90, 1)];
    Arc::new(Memory {
        images,
        damaged: vec![],
        panics_at: None,
    })
}

#[test]
fn a_sheet_has_a_row_for_each_image() {
    let sheet = contact_sheet(&*source(), &config(), 9, 5).unwrap();
    // Three rows of 112 px tiles (28 x 4): original, two globals, four locals of 112 px (16 x 7).
    assert_eq!(
        (sheet.width, sheet.height, sheet.channels),
        (4 + 7 * 116, 4 + 3 * 116, 1)
    );
    assert_eq!(sheet, contact_sheet(&*source(), &config(), 9, 5).unwrap());
    assert_ne!(sheet, contact_sheet(&*source(), &config(), 9, 6).unwrap());
    let unmasked = contact_sheet(
        &*source(),
        &LoaderConfig {
            masks: None,
            ..config()
        },
        9,
        5,
    )
    .unwrap();
    let differs = |x: usize| (0..348).any(|y| sheet.pixels[y * 816 + x] != unmasked.pixels[y * 816 + x]);
    assert!((0..120).all(|x| !differs(x)), "the originals are not shaded");
    assert!((120..352).any(differs), "masked global crops are shaded");
    assert!((352..816).all(|x| !differs(x)), "local crops are not shaded");
}

#[test]
fn a_sheet_that_would_be_too_large_is_refused() {
    let images = vec![picture(0, 2, 2, 1); 300];
    let error = contact_sheet(
        &Memory {
            images,
            ..Memory::default()
        },
        &config(),
        300,
        0,
    )
    .unwrap_err();
    assert!(matches!(error, DataError::Config { field: "n_images", .. }), "{error}");
    let images = vec![picture(0, 2, 2, 1)];
    let damaged = Memory {
        images,
        damaged: vec![0],
        panics_at: None,
    };
    assert!(matches!(
        contact_sheet(&damaged, &config(), 1, 0),
        Err(DataError::Damaged { .. })
    ));
}

#[test]
fn png_files_are_whole_or_not_there() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("sheet.png");
    for image in [picture(3, 30, 20, 3), picture(4, 7, 5, 1)] {
        write_png(&image, &path).unwrap();
        assert_eq!(
            Image::decode(&std::fs::read(&path).unwrap(), "sheet.png").unwrap(),
            image
        );
    }
    assert!(write_png(&picture(3, 3, 2, 3), &root.path().join("nowhere/sheet.png")).is_err());
    let short = Image {
        pixels: vec![0; 3],
        ..picture(3, 3, 2, 3)
    };
    assert!(write_png(&short, &path).is_err());
    // Nothing else was left behind.
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}
