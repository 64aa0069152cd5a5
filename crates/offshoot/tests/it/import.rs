//! Models of others as the binary's users meet them: checked, imported, scored, and trained on.

use std::path::{Path, PathBuf};

use offshoot_family::Split;

use crate::support::{Workbench, copy, files};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../offshoot-zoo/tests/fixtures/import")
        .join(name)
}

/// A workbench with images and one imported fixture as `model`.
fn bench(name: &str) -> Workbench {
    let bench = Workbench::bare();
    bench.images("images");
    copy(&fixture(name), &bench.path("model"));
    bench
}

/// Two steps that leave the teacher where it is.
const RECIPE: &str = r#"
method = "elastic"
seed = 7

[data]
path = "images"
labels = true
val = 0.3
test = 0.25
workers = 1

[space]
min_width = 8
min_depth = 1

[crops]
globals = { px = 8, scale = [0.4, 1.0], count = 2 }
locals = { px = 4, scale = [0.1, 0.4], count = 2 }
blur = "off"

[masks]
ratio = [0.1, 0.5]
min_block = 1

[heads]
hidden = 16
bottleneck = 8
prototypes = [8]

[optim]
momentum = 1.0
final_momentum = 1.0
drop_path = 0.0

[train]
batch = 4
epochs = 1
steps_per_epoch = 2
probe_every = 0
"#;

#[test]
fn a_model_is_checked_without_writing_and_imported_as_a_run_of_one_child() {
    let bench = bench("vit-classifier");
    let done = bench.run("import model").succeeds();
    for part in [
        "ViTForImageClassification",
        "width 24",
        "5 classes",
        "`vit.embeddings",
        "mask_token",
    ] {
        assert!(
            part == "`vit.embeddings" || done.out.contains(part),
            "{part}: {}",
            done.out
        );
    }
    assert!(!bench.path("run").exists());
    bench.run("import model -o run").succeeds();
    let catalog = bench.catalog();
    assert_eq!((catalog.method.as_str(), catalog.children.len()), ("import", 1));
    assert_eq!(catalog.children[0].id, "24x2");
    bench.run("family run").succeeds();
    bench
        .run("eval knn run")
        .refuses_with_hint(&["without images"], &["--data PATH"]);
    bench.run("eval latency run --repeats 1").succeeds();
    bench.run("report run").succeeds();
    bench.run("export run --child 24x2 -o out").succeeds();
    assert_eq!(
        files(&bench.path("out"))["model.safetensors"],
        files(&bench.path("run/parent"))["model.safetensors"]
    );
    bench
        .run("import model -o run")
        .refuses_with_hint(&["already holds a run"], &["--overwrite"]);
    bench
        .run("import model -o run --overwrite --data images --labels --px 8 --val 0.3 --test 0.25")
        .succeeds();
    bench.run("eval knn run").succeeds();
    bench.run("pick run --params 5M").succeeds();
    bench
        .run("import model --px 9")
        .refuses_with_hint(&["9", "multiple of 4"], &["8 and 12"]);
    bench
        .run("import model --arch vit_tiny_patch16_224")
        .refuses_with_hint(&["config.json"], &["leave out"]);
    bench.run("import images").refuses(&["config.json"]);
    bench.run("import nothing").refuses(&["nothing"]);
}

/// The parent of a run that starts from a model is the model, and is scored like it, on images larger than the crops and on
/// images of their size.
#[test]
fn a_run_that_starts_from_a_model_has_its_score_before_it_has_learnt_anything() {
    for px in [8, 16] {
        let bench = bench("dinov2");
        bench.write("recipe.toml", RECIPE);
        let data = "--data images --labels --val 0.3 --test 0.25 --seed 7";
        bench
            .run(&format!("import model -o imported --px {px} {data}"))
            .succeeds();
        bench.run("eval knn imported").succeeds();
        let crops = format!("crops.globals.px={px} crops.locals.px={}", px / 2);
        let said = bench
            .run(&format!("pretrain recipe.toml {crops} --init model --out run"))
            .succeeds();
        assert!(said.err.contains("width 24 and depth 2"), "{}", said.err);
        bench.run("eval knn run").succeeds();
        let catalog = bench.catalog();
        assert_eq!(catalog.children.len(), 6);
        let imported = offshoot_family::Catalog::open(&bench.path("imported")).unwrap();
        let how = |catalog: &offshoot_family::Catalog| catalog.data.images().unwrap().preprocessing.clone();
        assert_eq!(how(&catalog), how(&imported));
        let score = |catalog: &offshoot_family::Catalog| {
            let intact = catalog.children.iter().find(|child| child.id == "24x2").unwrap();
            ["knn@10", "knn@20"].map(|metric| intact.score(metric, Split::Val).unwrap())
        };
        assert_eq!(score(&catalog), score(&imported), "{px}");
        // The recipe that is kept says where it came from.
        let kept = String::from_utf8(files(&bench.path("run"))["recipe.toml"].clone()).unwrap();
        assert!(
            kept.contains("[init]") && kept.contains("model") && kept.contains("hash"),
            "{kept}"
        );
        // The teacher's tensors are the model's, to the bit, but for positions of another grid.
        let theirs = safetensors_of(&bench.path("model/model.safetensors"));
        let ours = safetensors_of(&bench.path("run/parent/model.safetensors"));
        for (name, bytes) in &theirs {
            let resampled = name.contains("position") && px != 16;
            assert!(resampled || ours[name] == *bytes, "{name}");
        }
    }
}

fn safetensors_of(path: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let file = offshoot_zoo::safetensors::SafetensorsFile::open(path).unwrap();
    let names = file.names().into_iter();
    names
        .map(|name| (name.clone(), file.read_bytes(&name).unwrap()))
        .collect()
}

#[test]
fn a_run_needs_its_model_only_once_and_may_start_from_another_run() {
    let bench = bench("dinov2");
    bench.write("recipe.toml", RECIPE);
    let words = "pretrain recipe.toml optim.momentum=0.9 --init model";
    bench.run(&format!("{words} --out whole")).succeeds();
    bench.run(&format!("{words} --out run --stop-after 1")).succeeds();
    std::fs::remove_dir_all(bench.path("model")).unwrap();
    bench.run("pretrain --resume run").succeeds();
    for file in ["parent/model.safetensors", "metrics.jsonl"] {
        assert_eq!(
            files(&bench.path("run"))[file],
            files(&bench.path("whole"))[file],
            "{file}"
        );
    }
    // A run, its parent, or an exported child.
    bench.run("export run --child 8x1 -o small").succeeds();
    bench.run("pretrain recipe.toml --init run --out next").succeeds();
    bench
        .run("pretrain recipe.toml --init run/parent --out parent")
        .succeeds();
    bench.run("pretrain recipe.toml --init small --out smaller").succeeds();
    // Stopped before anything was saved, it does need it, and says so.
    let text = std::fs::read_to_string(bench.path("next/recipe.toml")).unwrap();
    bench.write("broken/recipe.toml", text.replace("/run\"", "/gone\""));
    bench.run("pretrain --resume broken").refuses(&["gone"]);
}

#[test]
fn a_recipe_that_asks_for_another_parent_than_the_model_is_refused() {
    let bench = bench("dinov2");
    bench.write("recipe.toml", RECIPE);
    let refuses = |words: &str, parts: &[&str]| {
        let words = format!("pretrain recipe.toml {words} --init model --out run");
        bench.run(&words).refuses(parts);
    };
    refuses(
        "parent.width=48 parent.depth=3",
        &["parent.width = 48", "parent.depth = 3", "model"],
    );
    refuses("parent.family=resnet", &["parent.family = resnet"]);
    refuses("data.channels=1", &["data.channels"]);
    refuses(
        "crops.globals.px=10",
        &["crops.globals.px", "multiple of the patch 4", "8 and 12"],
    );
    bench
        .run("pretrain recipe.toml parent.width=24 --init model --dry-run")
        .succeeds();
    bench
        .run("pretrain recipe.toml --init images --out run")
        .refuses(&["config.json"]);
}
