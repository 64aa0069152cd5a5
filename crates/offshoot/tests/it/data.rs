//! `offshoot data`: the same images in several layouts, told alike.

use std::fs;

use offshoot_data::Image;
use offshoot_data::sheet::write_png;
use serde_json::{Value, json};

use crate::support::{CLASSES, IMAGES, SIDE, Workbench, idx, pgm, pixels};

/// Width and height of a PNG.
fn png_size(bytes: &[u8]) -> (u32, u32) {
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    assert_eq!(&bytes[12..16], b"IHDR");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn layouts_of_the_same_images_are_told_alike() {
    let bench = Workbench::new();
    for number in 0..IMAGES {
        bench.write(&format!("flat/{number:03}.pgm"), pgm(number));
        bench.write(&format!("deep/a/b-{}/c/{number}.pgm", number % 5), pgm(number));
    }
    bench.write("flat/readme.txt", "no image");
    let found = |words: &str| bench.run(&format!("data {words} --json --rows 0")).succeeds().json();
    let nested = found("images");
    assert_eq!(
        (&nested["kind"], &nested["count"], &nested["grey"], &nested["colour"]),
        (&json!("folder"), &json!(120), &json!(120), &json!(0))
    );
    assert_eq!(
        nested["sizes"],
        json!({"min": [16, 16], "median": [16, 16], "max": [16, 16], "distinct": 1})
    );
    assert_eq!(
        (&nested["classes"], &nested["skipped"], &nested["duplicates"]),
        (&json!([]), &json!(0), &json!(0))
    );
    assert_eq!(nested["damaged"], json!([]));
    assert_eq!(nested["fingerprint"].as_str().unwrap().len(), 64);

    let labelled = found("images --labels");
    assert_eq!(
        labelled["classes"],
        json!([["class-0", 40], ["class-1", 40], ["class-2", 40]])
    );
    let flat = found("flat");
    assert_eq!(flat["skipped"], 1);
    let deep = found("deep --labels");
    assert_eq!(
        deep["classes"],
        json!([["a", 120]]),
        "the first folder on the way is the class"
    );
    for other in [&labelled, &flat, &deep] {
        assert_eq!(
            other["fingerprint"], nested["fingerprint"],
            "names, places and labels are no content"
        );
    }

    // IDX stores pixels, not files: another content, the same count and classes, plain or not.
    let (images, labels) = idx();
    bench.write("idx/made-images-idx3-ubyte", &images);
    bench.write("idx/made-labels-idx1-ubyte", &labels);
    let plain = found("idx --labels");
    assert_eq!((&plain["kind"], &plain["count"]), (&json!("idx"), &json!(IMAGES)));
    assert_eq!(plain["classes"], json!([["0", 40], ["1", 40], ["2", 40]]));
    assert_eq!(found("idx/made-images-idx3-ubyte")["fingerprint"], plain["fingerprint"]);
    assert_eq!(found("idx")["classes"], json!([]));
    fs::rename(bench.path("idx/made-labels-idx1-ubyte"), bench.path("idx/lost")).unwrap();
    bench
        .run("data idx --labels")
        .refuses_with_hint(&["labels"], &["without labels"]);
    bench.write("short/made-images-idx3-ubyte", &images[..images.len() - 1]);
    bench.run("data short").refuses(&["short/made-images-idx3-ubyte"]);

    // What trains from files trains from IDX: the pixels are the same.
    bench
        .run("pretrain recipe.toml --out run data.path=idx data.labels=false train.epochs=1")
        .succeeds();
    let read: Value = bench.run("family run --json").succeeds().json();
    assert_eq!(read.as_array().unwrap().len(), 9);
}

#[test]
fn duplicates_and_damage_are_counted() {
    let bench = Workbench::new();
    bench.write("images/class-0/copy.pgm", pgm(0));
    bench.write("images/class-0/half.png", b"\x89PNG\r\n\x1a\n....");
    bench.write("images/class-0/empty.jpg", b"");
    bench.write("images/class-0/.hidden.pgm", pgm(1));
    let found = bench
        .run("data images --json --labels --sheet sheet.png")
        .succeeds()
        .json();
    assert_eq!((&found["count"], &found["duplicates"]), (&json!(123), &json!(1)));
    let damaged: Vec<&str> = found["damaged"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d[0].as_str().unwrap())
        .collect();
    assert_eq!(damaged.len(), 2);
    assert!(damaged.iter().any(|n| n.ends_with("half.png")) && damaged.iter().any(|n| n.ends_with("empty.jpg")));
    let told = bench.run("data images --rows 0").succeeds().out;
    assert!(told.contains("half.png") && told.contains("123") && told.contains(found["fingerprint"].as_str().unwrap()));
}

#[test]
fn a_sheet_shows_a_row_for_every_image_asked_for() {
    let bench = Workbench::new();
    let sheet = |words: &str| {
        bench
            .run(&format!("data images --sheet out/sheet.png {words}"))
            .succeeds();
        fs::read(bench.path("out/sheet.png")).unwrap()
    };
    let three = sheet("--rows 3");
    let six = sheet("--rows 6");
    let ((w3, h3), (w6, h6)) = (png_size(&three), png_size(&six));
    assert!(w3 == w6 && h6 > h3 && h6 < 2 * h3 + 16, "{w3}x{h3} and {w6}x{h6}");
    assert!(
        w3 > h3 && (200..4000).contains(&w3),
        "large enough to look at: {w3}x{h3}"
    );
    assert!(sheet("--rows 3") == three, "the same seed draws the same sheet");
    assert!(sheet("--rows 3 --seed 1") != three);
    // With the recipe: an original, two global and two local crops.
    let (width, height) = png_size(&sheet("--rows 3 --recipe recipe.toml"));
    assert!(width > height && width < 5 * 200, "{width}x{height}");
    bench
        .run("data images --recipe images --sheet out/sheet.png")
        .refuses(&["images"]);
    bench
        .run("data images --sheet recipe.toml/sheet.png")
        .refuses(&["recipe.toml"]);
}

#[test]
fn colour_is_kept() {
    let bench = Workbench::bare();
    for number in 0..6 {
        let grey = pixels(number);
        let pixels = grey.iter().flat_map(|&value| [value, 255 - value, 90]).collect();
        let image = Image {
            width: SIDE as u32,
            height: SIDE as u32,
            channels: 3,
            pixels,
        };
        write_png(&image, &bench.path(&format!("{}-{number}.png", number % CLASSES))).unwrap();
    }
    let found = bench.run("data . --json --sheet sheets/colour.png").succeeds().json();
    assert_eq!(
        (&found["colour"], &found["grey"], &found["count"]),
        (&json!(6), &json!(0), &json!(6))
    );
    let sheet = offshoot_data::open(&bench.path("sheets/colour.png"), offshoot_data::Labels::Ignore).unwrap();
    assert_eq!(sheet.read(0).unwrap().channels, 3);
}
