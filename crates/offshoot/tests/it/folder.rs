//! What a finished run leaves in its folder.

use std::fs;

use offshoot_family::View;
use serde_json::Value;

use crate::support::{Workbench, files, names};

/// Whether some value in a recipe still says `auto`.
fn open(value: &toml::Value) -> bool {
    match value {
        toml::Value::String(text) => text == "auto",
        toml::Value::Table(table) => table.values().any(open),
        toml::Value::Array(values) => values.iter().any(open),
        _ => false,
    }
}

#[test]
fn a_run_folder_holds_what_it_should() {
    let bench = Workbench::new();
    let run = bench.trained("optim.lr=auto data.workers=auto");
    let read = |name: &str| fs::read(run.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));

    let recipe: toml::Value = toml::from_str(std::str::from_utf8(&read("recipe.toml")).unwrap()).unwrap();
    assert!(!open(&recipe), "every `auto` is resolved");
    assert!(
        recipe["optim"]["lr"]
            .as_float()
            .is_some_and(|rate| (rate - 0.004 * (4f64 / 1024.0).sqrt()).abs() < 1e-12)
    );
    assert_eq!(
        recipe["data"]["path"].as_str().map(str::to_owned),
        bench.path("images").to_str().map(str::to_owned)
    );
    let resolved = recipe["data"]["fingerprint"].as_str().unwrap().to_owned();
    assert_eq!(
        bench.run("data images --json --rows 0").succeeds().json()["fingerprint"],
        resolved
    );

    let text = String::from_utf8(read("metrics.jsonl")).unwrap();
    assert!(text.ends_with('\n'));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let logged: Vec<u64> = lines
        .iter()
        .filter(|l| l.get("loss").is_some())
        .map(|l| l["step"].as_u64().unwrap())
        .collect();
    assert_eq!(
        logged,
        (1..=15).map(|i| 2 * i).collect::<Vec<_>>(),
        "one line every second step"
    );
    let probed: Vec<u64> = lines
        .iter()
        .filter(|l| l.get("loss").is_none())
        .map(|l| l["step"].as_u64().unwrap())
        .collect();
    assert_eq!(probed, [10, 20, 30]);
    assert!(lines.is_sorted_by_key(|l| l["step"].as_u64()));
    for line in &lines {
        let values = line.as_object().unwrap();
        assert!(values.values().all(Value::is_number), "nothing diverged: {line}");
        if values.contains_key("loss") {
            for name in [
                "learning_rate",
                "weight_decay",
                "momentum",
                "teacher_temperature",
                "elastic/width",
                "elastic/depth",
            ] {
                assert!(values.contains_key(name), "{name} is logged");
            }
        }
    }

    let all = names(&run);
    let events: Vec<&String> = all.iter().filter(|n| n.starts_with("events.out.tfevents.")).collect();
    assert_eq!(events.len(), 1);
    // A TFRecord of 24 bytes first: the event that names the format.
    let events = read(events[0]);
    assert_eq!(events[..8], 24u64.to_le_bytes());
    assert!(events[12..36].ends_with(b"brain.Event:2"));

    assert_eq!(
        names(&run.join("checkpoints")),
        ["step-00000028", "step-00000030"],
        "the last two"
    );
    assert_eq!(
        names(&run.join("parent")),
        ["config.json", "model.safetensors", "preprocessor_config.json"]
    );
    let catalog = bench.catalog();
    assert_eq!(
        catalog.parent.hash,
        blake3::hash(&read("parent/model.safetensors")).to_hex().to_string()
    );
    assert_eq!(catalog.data.fingerprint(), resolved);
    assert_eq!(names(&run.join("views")).len(), 9);
    for child in &catalog.children {
        let view: View = serde_json::from_slice(&read(&format!("views/{}.json", child.id))).unwrap();
        assert_eq!(view.parent, catalog.parent.hash);
        assert!(child.scorecards.is_empty());
    }
    let leftover = |name: &String| name.split('/').any(|part| part.starts_with(".writing-"));
    assert!(!files(&run).keys().any(leftover));
}

#[test]
fn the_same_recipe_gives_the_same_bytes() {
    let bench = Workbench::new();
    let run = bench.trained("");
    let same = |other: &str, recipe: bool| {
        let (one, two) = (files(&run), files(&bench.path(other)));
        let timed = |n: &str| n.starts_with("events.") || n == "timing.jsonl" || n.starts_with("checkpoints/");
        for (name, bytes) in one.iter().filter(|(n, _)| !timed(n) && (recipe || *n != "recipe.toml")) {
            assert!(two.get(name) == Some(bytes), "{other}/{name} differs");
        }
        let state = "checkpoints/step-00000030/state.safetensors";
        assert!(one[state] == two[state], "{other}: moments and averages differ");
    };
    bench.run("pretrain recipe.toml --out again").succeeds();
    same("again", true);
    for workers in [0, 3] {
        let out = format!("workers-{workers}");
        bench
            .run(&format!("pretrain recipe.toml --out {out} data.workers={workers}"))
            .succeeds();
        same(&out, false);
    }
    // The resolved recipe is a recipe.
    bench.run("pretrain run/recipe.toml --out resolved").succeeds();
    same("resolved", true);
    bench.run("pretrain recipe.toml --out other seed=8").succeeds();
    let parent = |run: &str| fs::read(bench.path(run).join("parent/model.safetensors")).unwrap();
    assert!(parent("run") != parent("other"), "another seed gives other weights");
}
