//! `offshoot bench`: what its lines say, and what it refuses. No time is asserted.

use std::fs;

use serde_json::Value;

use crate::support::{SIDE, Workbench, files, names};

/// Keys that every line has.
const KEYS: [&str; 9] = [
    "version", "device", "threads", "dtype", "passes", "median_s", "min_s", "checksum", "flops",
];

/// The one line that a command prints.
#[track_caller]
fn line(bench: &Workbench, words: &str) -> Value {
    let done = bench.run(words).succeeds();
    assert_eq!(done.out.lines().count(), 1, "{}", done.out);
    assert!(done.err.is_empty(), "{}", done.err);
    let line = done.json();
    let missing: Vec<&str> = KEYS.into_iter().filter(|&key| line.get(key).is_none()).collect();
    assert!(missing.is_empty(), "{words}: {missing:?} are not in {line}");
    assert!(line["min_s"].as_f64() <= line["median_s"].as_f64());
    line
}

#[test]
fn features_of_a_child_are_timed_and_summed() {
    let bench = Workbench::new();
    bench.trained("train.epochs=1 train.steps_per_epoch=3");
    bench.run("export run --child 8x1 -o child").succeeds();
    let before = files(&bench.path("child"));
    let first = line(
        &bench,
        "bench features child --images 5 --batch 2 --passes 3 --threads 1",
    );
    assert_eq!(
        (
            first["model"].as_str(),
            first["images"].as_u64(),
            first["batch"].as_u64()
        ),
        (Some("child"), Some(5), Some(2))
    );
    assert_eq!(
        (first["passes"].as_u64(), first["threads"].as_u64()),
        (Some(3), Some(1))
    );
    assert!(first["images_per_s"].as_f64().is_some_and(|rate| rate > 0.0));
    // Patches of 4 pixels: each costs more than its embedding alone.
    let patches = (SIDE / 4).pow(2) as f64;
    assert!(
        first["flops"]
            .as_f64()
            .is_some_and(|flops| flops > 5.0 * patches * 2.0 * 16.0 * 8.0)
    );

    // Neither batches, threads, passes nor warming up change what is computed.
    let sum = |line: &Value| line["checksum"].as_f64().unwrap();
    let other = line(
        &bench,
        "bench features child --images 5 --batch 9 --warmup 0 --threads 2",
    );
    assert!((sum(&first) - sum(&other)).abs() < 1e-4 && sum(&first) != 0.0);
    let fewer = line(&bench, "bench features child --images 4");
    assert!(
        (sum(&first) - sum(&fewer)).abs() > 1e-4,
        "the checksum sees every image"
    );
    assert!(files(&bench.path("child")) == before, "the child stays as it was");
}

#[test]
fn a_fresh_model_is_saved_as_a_child_that_gives_the_same() {
    let bench = Workbench::bare();
    let fresh = line(&bench, "bench features --case cpu-s --images 2 --save models/fresh");
    assert_eq!(fresh["model"], "cpu-s");
    assert_eq!(
        names(&bench.path("models/fresh")),
        ["config.json", "model.safetensors", "preprocessor_config.json"]
    );
    let again = line(&bench, "bench features models/fresh --images 2");
    assert_eq!(
        (&again["checksum"], &again["flops"]),
        (&fresh["checksum"], &fresh["flops"])
    );

    let before = files(&bench.path("models"));
    bench
        .run("bench features --case cpu-s --images 2 --save models/fresh")
        .refuses_with_hint(&["models/fresh", "not empty"], &["another folder"]);
    assert!(files(&bench.path("models")) == before);
}

#[test]
fn features_that_cannot_be_timed_are_refused() {
    let bench = Workbench::bare();
    for (option, one) in [("images", "one image"), ("batch", "one image"), ("passes", "one pass")] {
        bench
            .run(&format!("bench features --case cpu-s --{option} 0"))
            .refuses_with_hint(&[&format!("--{option} 0")], &[one]);
    }
    bench
        .run("bench features nowhere --images 1")
        .refuses_with_hint(&["nowhere"], &["config.json", "model.safetensors"]);
    bench
        .run("bench features --case cpu-s --images 1000000000000000")
        .refuses_with_hint(&["memory"], &["--images"]);
    bench.run("bench features").refuses(&["--case"]);
    bench.run("bench features --save here").refuses(&["--case"]);
    bench.run("bench features child --case cpu-s").refuses(&["--case"]);
    bench.run("bench features child --save here").refuses(&["--save"]);
    bench.run("bench features --case vit-l").refuses(&["vit-l", "vit-s16"]);
    assert!(names(&bench.path("")).is_empty(), "a refusal writes nothing");

    bench.write("broken/config.json", "{");
    bench
        .run("bench features broken --images 1")
        .refuses(&["broken", "config.json"]);
    fs::remove_file(bench.path("broken/config.json")).unwrap();
    bench.run("bench features broken --images 1").refuses(&["config.json"]);
}

#[test]
fn a_search_is_timed_and_summed() {
    let bench = Workbench::bare();
    let words = "bench knn --references 50 --queries 7 --dim 5 --k 3 --passes 2";
    let found = line(&bench, &format!("{words} --threads 1"));
    for (key, value) in [("references", 50), ("queries", 7), ("dim", 5), ("k", 3), ("passes", 2)] {
        assert_eq!(found[key], value, "{key}");
    }
    assert_eq!(found["flops"].as_f64(), Some(2.0 * 50.0 * 7.0 * 5.0));
    let mean = found["checksum"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&mean), "the nearest of 50 are similar: {mean}");
    assert_eq!(
        line(&bench, &format!("{words} --threads 2"))["checksum"],
        found["checksum"]
    );
    // All of them: the mean cosine of numbers around zero.
    let all = line(
        &bench,
        "bench knn --references 50 --queries 7 --dim 5 --k 50 --warmup 0",
    );
    assert!(all["checksum"].as_f64().unwrap() < mean);
}

#[test]
fn a_search_that_cannot_be_timed_is_refused() {
    let bench = Workbench::bare();
    for option in ["references", "queries", "dim", "k", "passes"] {
        bench
            .run(&format!("bench knn --{option} 0"))
            .refuses_with_hint(&[&format!("--{option} 0")], &["at least one"]);
    }
    bench
        .run("bench knn --references 20 --k 30")
        .refuses_with_hint(&["--k 30", "20 references"], &["--references"]);
    bench
        .run("bench knn --references 1000000000000")
        .refuses_with_hint(&["memory"], &["--references"]);
    bench.run("bench knn --device cuda").refuses(&["cuda"]);
}
