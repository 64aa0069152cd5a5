//! What the commands on a family refuse: damaged, foreign and hostile folders, and wishes that no child can meet.

use std::fs;

use serde_json::{Value, json};

use crate::support::{IMAGES, Workbench, copy, files, names, pgm};

/// A family after a few steps.
fn family(more: &str) -> Workbench {
    let bench = Workbench::new();
    bench.trained(&format!("train.epochs=1 train.steps_per_epoch=3 {more}"));
    bench
}

/// Commands that read weights.
const READERS: [&str; 3] = [
    "eval agreement",
    "eval latency --repeats 1",
    "export --all --check --overwrite -o out",
];

#[test]
fn wishes_that_no_child_meets() {
    let bench = family("");
    bench
        .run("eval knn run --child 8x11")
        .refuses_with_hint(&["8x11"], &["8x1"]);
    bench
        .run("export run --child 24x4 -o out")
        .refuses_with_hint(&["24x4"], &["24x"]);
    bench
        .run("export run --size 24x4 -o out")
        .refuses_with_hint(&["depth 4", "1, 2, 3"], &["offshoot family"]);
    bench.run("export run --size 24 -o out").refuses(&["24"]);
    bench.run("export run --size big -o out").refuses(&["big"]);
    bench
        .run("export run --name vit-s -o out")
        .refuses_with_hint(&["vit-s"], &["offshoot family"]);
    bench
        .run("export run --pareto -o out")
        .refuses_with_hint(&["knn@20"], &["offshoot eval knn run"]);
    bench
        .run("pick run --params 1M")
        .refuses_with_hint(&["knn@20"], &["offshoot eval knn run"]);
    bench.run("eval knn run").succeeds();
    bench
        .run("pick run --params 1k")
        .refuses_with_hint(&["budget"], &["8x1", "1.1k"]);
    bench
        .run("pick run --ms 0.000001")
        .refuses_with_hint(&["budget"], &["8x1", " ms"]);
    bench
        .run("pick run --params 1M --by beauty")
        .refuses_with_hint(&["beauty"], &["knn@20"]);
    bench
        .run("pick run --params 1M --by linear")
        .refuses_with_hint(&["linear"], &["offshoot eval linear run"]);
    bench
        .run("eval knn run --device cuda")
        .refuses_with_hint(&["--features cuda"], &["--device cpu"]);
    bench.run("eval knn run --split sideways").refuses(&["sideways"]);
    bench
        .run("bench step --steps 0")
        .refuses_with_hint(&["--steps 0"], &["one step"]);

    let before = fs::read(bench.path("run/catalog.json")).unwrap();
    bench.write("mine/thesis.tex", "mine");
    bench
        .run("export run --child 8x1 -o mine")
        .refuses_with_hint(&["mine"], &["--overwrite"]);
    bench.write("all/16x2/thesis.tex", "mine");
    bench
        .run("export run --all -o all")
        .refuses_with_hint(&["16x2"], &["--overwrite"]);
    assert_eq!(
        (names(&bench.path("mine")), names(&bench.path("all"))),
        (vec!["thesis.tex".into()], vec!["16x2".into()])
    );
    bench.run("export run --child 8x1 -o mine --overwrite").succeeds();
    assert_eq!(names(&bench.path("mine")).len(), 5, "strangers' files stay");
    bench
        .run("export run --child 8x1 -o recipe.toml")
        .refuses(&["recipe.toml"]);
    for words in [
        "--child 8x1 -o run/parent",
        "--child 8x1 -o ./run/../run/parent --overwrite",
    ] {
        bench
            .run(&format!("export run {words}"))
            .refuses_with_hint(&["parent"], &["another folder"]);
    }
    assert!(
        fs::read(bench.path("run/catalog.json")).unwrap() == before,
        "no refusal writes into the catalog"
    );
}

#[test]
fn labels_that_are_not_there() {
    let bench = Workbench::bare();
    bench.write("recipe.toml", crate::support::RECIPE);
    for number in 0..IMAGES {
        bench.write(&format!("flat/{number:03}.pgm"), pgm(number));
    }
    bench.trained("train.epochs=1 train.steps_per_epoch=3 data.path=flat data.labels=false");
    for command in ["eval knn", "eval linear"] {
        bench
            .run(&format!("{command} run"))
            .refuses_with_hint(&["labels"], &["offshoot eval agreement", "data.labels=true"]);
    }
    bench.run("eval agreement run").succeeds();
    bench.run("pick run --params 1M --by knn@20").refuses(&["knn@20"]);
    bench.run("pick run --params 1M").succeeds();
}

#[test]
fn data_that_changed_after_training() {
    let bench = family("");
    let path = bench.path("images/class-0/000.pgm");
    let bytes = fs::read(&path).unwrap();
    for change in ["changed", "removed", "added", "moved"] {
        match change {
            "changed" => fs::write(&path, pgm(999)).unwrap(),
            "removed" => fs::remove_file(&path).unwrap(),
            "added" => fs::write(bench.path("images/class-0/new.pgm"), pgm(998)).unwrap(),
            _ => fs::rename(bench.path("images"), bench.path("elsewhere")).unwrap(),
        }
        for command in [
            "eval knn run",
            "eval agreement run",
            "export run --child 8x1 -o out --check --overwrite",
        ] {
            let done = bench.run(command).refuses(&["images"]);
            assert!(done.err.contains("hint:"), "{change}: {}", done.err);
        }
        match change {
            "changed" | "removed" => fs::write(&path, &bytes).unwrap(),
            "added" => fs::remove_file(bench.path("images/class-0/new.pgm")).unwrap(),
            _ => fs::rename(bench.path("elsewhere"), bench.path("images")).unwrap(),
        }
    }
    // Another name or place is no change of content.
    fs::rename(&path, bench.path("images/class-0/renamed.pgm")).unwrap();
    bench.run("eval knn run").succeeds();
}

#[test]
fn damaged_parents() {
    let bench = family("");
    bench
        .run("pretrain recipe.toml --out other seed=1 train.epochs=1 train.steps_per_epoch=3")
        .succeeds();
    let path = bench.path("run/parent/model.safetensors");
    let whole = fs::read(&path).unwrap();
    let refused = |why: &str, parts: &[&str]| {
        for command in READERS {
            let done = bench.run(&format!("{command} run")).refuses(parts);
            assert!(done.err.contains("hint:"), "{why}: {}", done.err);
        }
        let written = if bench.path("out").exists() {
            files(&bench.path("out"))
        } else {
            Default::default()
        };
        assert!(
            written.is_empty(),
            "{why}: something was exported: {:?}",
            written.keys()
        );
    };
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused("truncated", &["parent/model.safetensors"]);
    }
    fs::copy(bench.path("other/parent/model.safetensors"), &path).unwrap();
    refused("another run's", &["parent"]);
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&path, &flipped).unwrap();
    refused("one bit flipped", &["parent"]);
    let huge = [u64::MAX.to_le_bytes().to_vec(), b"{}".to_vec()].concat();
    fs::write(&path, huge).unwrap();
    refused("a header without end", &["parent/model.safetensors"]);
    fs::remove_file(&path).unwrap();
    refused("missing", &["parent/model.safetensors"]);
    fs::write(&path, &whole).unwrap();
    let config = fs::read_to_string(bench.path("run/parent/config.json")).unwrap();
    bench.write(
        "run/parent/config.json",
        config.replace("\"hidden_size\": 24", "\"hidden_size\": 32"),
    );
    bench
        .run("eval agreement run")
        .refuses(&["parent/config.json", "hidden_size"]);
    bench.write(
        "run/parent/config.json",
        config.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4"),
    );
    refused("another configuration", &["parent/model.safetensors"]);
    bench.write("run/parent/config.json", "{");
    bench.run("eval agreement run").refuses(&["parent/config.json"]);
    bench.write("run/parent/config.json", config);
    bench.run("eval agreement run").succeeds();
}

#[test]
fn damaged_catalogs() {
    let bench = family("");
    let text = fs::read_to_string(bench.path("run/catalog.json")).unwrap();
    let catalog: Value = serde_json::from_str(&text).unwrap();
    let commands = [
        "family",
        "eval agreement",
        "pick --params 1M",
        "export --all -o out",
        "report",
    ];
    let refused = |content: &str, parts: &[&str]| {
        bench.write("run/catalog.json", content);
        for command in commands {
            bench
                .run(&format!("{command} run"))
                .refuses(&["catalog.json"])
                .says(parts);
        }
        assert_eq!(fs::read_to_string(bench.path("run/catalog.json")).unwrap(), content);
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut changed = catalog.clone();
        change(&mut changed);
        changed.to_string()
    };
    refused("", &[]);
    refused(&text[..text.len() / 2], &[]);
    refused("[]", &["format"]);
    refused("{}", &["format"]);
    refused(&changed(&|c| c["format"] = json!(3)), &["newer", "format 3"]);
    refused(
        &changed(&|c| c["children"][1]["id"] = c["children"][0]["id"].clone()),
        &["twice"],
    );
    refused(
        &changed(&|c| c["children"][1]["id"] = json!("../../etc")),
        &["../../etc"],
    );
    refused(
        &changed(&|c| c["children"][1]["source"]["view"] = json!("../views/8x1.json")),
        &["../views/8x1.json"],
    );
    refused(
        &changed(&|c| c["children"][1]["source"]["view"] = json!("/etc/passwd")),
        &["/etc/passwd"],
    );
    refused(&changed(&|c| c["children"][1]["parameters"] = json!("many")), &["many"]);
    refused(&changed(&|c| c["flavour"] = json!("new")), &["flavour"]);
    refused(
        &changed(&|c| c["children"][0]["scorecards"] = json!([{"metric": "knn@20"}])),
        &[],
    );
    assert!(!bench.path("out").exists());

    // Where a number is a lie, what it is checked against says so.
    let lie = changed(&|c| c["parent"]["hash"] = json!("00"));
    bench.write("run/catalog.json", lie);
    for command in READERS {
        bench.run(&format!("{command} run")).refuses(&["parent"]);
    }
    bench.write("run/catalog.json", &text);
    bench.run("report run").succeeds();
}

#[test]
fn damaged_views() {
    let bench = family("");
    bench
        .run("pretrain recipe.toml --out other seed=1 train.epochs=1 train.steps_per_epoch=3")
        .succeeds();
    let path = bench.path("run/views/16x2.json");
    let whole = fs::read_to_string(&path).unwrap();
    let view: Value = serde_json::from_str(&whole).unwrap();
    let refused = |why: &str| {
        for command in READERS {
            let done = bench.run(&format!("{command} run")).ends_with(1);
            let named = done.err.contains("16x2") || done.err.contains("view");
            assert!(named && !done.err.contains("panicked"), "{why}: {}", done.err);
        }
        let _ = fs::remove_dir_all(bench.path("out"));
    };
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut changed = view.clone();
        change(&mut changed);
        fs::write(&path, changed.to_string()).unwrap();
    };
    fs::remove_file(&path).unwrap();
    refused("missing");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    refused("truncated");
    fs::copy(bench.path("other/views/16x2.json"), &path).unwrap();
    refused("for another parent");
    changed(&|v| v["blocks"] = json!([0, 99]));
    refused("a block that the parent has not");
    changed(&|v| v["blocks"] = json!([]));
    refused("no block");
    changed(&|v| v["child"]["width"] = json!(4096));
    refused("wider than the parent");
    changed(&|v| v["child"]["depth"] = json!(3));
    refused("deeper than its blocks");
    changed(&|v| v["axes"]["residual"] = json!({"op": "prefix", "size": 100_000}));
    refused("more channels than the parent has");
    changed(&|v| v["axes"]["residual"] = json!({"op": "select", "indices": [99_999]}));
    refused("channels that the parent has not");
    fs::write(&path, &whole).unwrap();
    bench.run("export run --child 16x2 -o out --check").succeeds();
}

/// A run folder can be copied elsewhere with everything in it.
#[test]
fn a_copied_run_is_a_run() {
    let bench = family("");
    bench.run("eval knn run").succeeds();
    copy(&bench.path("run"), &bench.path("elsewhere/copy"));
    let rows = bench.run("family run --json").succeeds().json();
    fs::remove_dir_all(bench.path("run")).unwrap();
    assert_eq!(bench.run("family elsewhere/copy --json").succeeds().json(), rows);
    bench.run("pick elsewhere/copy --params 9k").succeeds();
    bench.run("export elsewhere/copy --all -o out --check").succeeds();
    bench.run("report elsewhere/copy").succeeds();
    assert!(bench.path("elsewhere/copy/report.html").is_file());
}
