//! `offshoot export --format onnx`: what it writes, and what it refuses.

use std::fs;

use crate::support::{Workbench, names};

const FILES: [&str; 3] = ["README.md", "model.onnx", "preprocessor_config.json"];

#[test]
fn children_become_onnx_folders() {
    let bench = Workbench::new();
    bench.trained("train.epochs=1 train.steps_per_epoch=3");
    let said = bench.run("export run --child 16x2 --format onnx -o one").succeeds();
    assert_eq!(names(&bench.path("one")), FILES);
    let model = fs::read(bench.path("one/model.onnx")).unwrap();
    assert!(said.out.contains(&format!("({} bytes", model.len())), "{}", said.out);
    let holds = |text: &str| model.windows(text.len()).any(|window| window == text.as_bytes());
    let parent = bench.catalog().parent.hash;
    for text in [
        &parent[..],
        "16x2",
        "pixel_values",
        "patches",
        "blocks.1.attn.qkv.weight",
    ] {
        assert!(holds(text), "{text}");
    }
    let card = fs::read_to_string(bench.path("one/README.md")).unwrap();
    assert!(
        card.contains("onnxruntime") && card.contains("library_name: onnx"),
        "{card}"
    );
    assert!(!card.contains("transformers"), "{card}");

    bench.run("export run --all --format onnx -o all").succeeds();
    assert_eq!(names(&bench.path("all")).len(), 9);
    for child in bench.catalog().children {
        assert_eq!(names(&bench.path("all").join(&child.id)), FILES);
    }
    assert!(
        fs::read(bench.path("all/16x2/model.onnx")).unwrap() == model,
        "the same bytes again"
    );

    bench
        .run("export run --child 8x1 --format onnx -o one")
        .refuses_with_hint(&["one"], &["--overwrite"]);
    assert!(fs::read(bench.path("one/model.onnx")).unwrap() == model);
    bench
        .run("export run --child 8x1 --format onnx -o one --overwrite")
        .succeeds();
    assert!(fs::read(bench.path("one/model.onnx")).unwrap() == fs::read(bench.path("all/8x1/model.onnx")).unwrap());

    bench
        .run("export run --child 8x1 --format onnx --check -o two")
        .refuses_with_hint(&["--check", "ONNX"], &["check_onnx.py", "--format hf"]);
    bench
        .run("export run --child 8x1 --format onnx -o run/parent --overwrite")
        .refuses_with_hint(&["parent"], &["another folder"]);
    bench
        .run("export run --child 9x9 --format onnx -o two")
        .refuses(&["9x9"]);
    bench
        .run("export run --child 8x1 --format gguf -o two")
        .refuses_with_hint(&["GGUF", "language models"], &["--format hf"]);
    assert!(!bench.path("two").exists(), "no refusal writes anything");
}
