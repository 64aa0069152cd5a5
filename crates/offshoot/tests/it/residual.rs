//! A residual network from images to an exported child, and the paper's run of one told without being allocated.

use std::fs;

use offshoot_zoo::Checkpoint;
use serde_json::Value;

use crate::support::{RECIPE, Workbench, files, names};

/// Eight children of a small parent, on crops that its last map sees as 2 x 2 cells and as one.
const PARENT: &str = r#"
[parent]
family = "resnet"
width = 16
outputs = 32
depths = [1, 2, 2, 1]
groups = 8

[space]
min_width = 8
min_depth = [1, 1, 1, 1]
sampling_scale = 2.0

[crops]
globals = { px = 64, scale = [0.4, 1.0], count = 2 }
locals = { px = 32, scale = [0.1, 0.4], count = 2 }
"#;

/// The recipe of the other tests with this parent.
fn recipe() -> String {
    let start = RECIPE.find("[parent]").unwrap();
    let end = RECIPE.find("blur = ").unwrap();
    let recipe = [&RECIPE[..start], PARENT, &RECIPE[end..]].concat();
    recipe
        .replace("drop_path = 0.1", "drop_path = 0.0")
        .replace("steps_per_epoch = 15", "steps_per_epoch = 6")
}

#[test]
fn a_residual_network_goes_the_whole_path() {
    let bench = Workbench::bare();
    bench.images("images");
    bench.write("recipe.toml", recipe());
    bench.trained("");
    bench
        .run("pretrain recipe.toml --out stopped --stop-after 7")
        .succeeds();
    bench.run("pretrain --resume stopped").succeeds();
    let weights = |run: &str| fs::read(bench.path(run).join("parent/model.safetensors")).unwrap();
    assert!(weights("run") == weights("stopped"), "stopped and resumed");

    let rows = bench.run("family run --json").succeeds().json();
    let ids: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].as_str().unwrap())
        .collect();
    let mut grid = Vec::new();
    for width in [8, 16] {
        grid.extend(["1x1", "1x2", "2x1", "2x2"].map(|depths| format!("{width}x{depths}")));
    }
    assert_eq!(ids, grid);
    bench.run("eval knn run").succeeds();
    let picked = bench.run("pick run --params 600k --json").succeeds().json();
    assert!(picked["val"].is_number() && picked["test"].is_number());

    bench.run("export run --all -o all --check").succeeds();
    assert_eq!(names(&bench.path("all")).len(), 8);
    for child in &bench.catalog().children {
        let folder = bench.path("all").join(&child.id);
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architecture"], "resnet50");
        let args = &config["model_args"];
        assert_eq!(args["layers"][1].as_u64(), child.shape.get("depth2").map(|d| d as u64));
        assert_eq!(
            args["base_width"].as_u64(),
            child.shape.get("width").map(|w| 64 * w as u64 / 8)
        );
        let network = Checkpoint::open(&folder).unwrap();
        assert_eq!(
            offshoot_zoo::spec::parameters(&network.network().specs()),
            child.parameters
        );
    }
    let whole = files(&bench.path("all/16x2x2"));
    assert!(
        whole["model.safetensors"] == weights("run"),
        "the full view is the parent"
    );
    bench.run("report run").succeeds();
    assert!(bench.path("run/report.html").is_file());
}

/// elastic.md sections 4.1, 4.2, 4.5 and 5.
#[test]
fn the_papers_resnet_is_told_without_being_allocated() {
    let bench = Workbench::bare();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/poa-resnet.toml");
    let told = bench.run(&format!("pretrain {recipe} --dry-run")).succeeds().out;
    for fact in [
        "465",
        "698",
        "resnet50",
        "resnet101",
        "resnet152",
        "23,508,096",
        "42,500,224",
        "58,143,872",
        "172,609,408",
        "692000",
        "0.0044721",
    ] {
        assert!(told.contains(fact), "{fact} is not in\n{told}");
    }
    assert!(names(&bench.path("")).is_empty(), "a dry run writes nothing");
}
