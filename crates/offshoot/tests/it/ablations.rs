//! Runs that leave a part of the method out, and runs on data with a test part of its own.

use std::fs;

use offshoot_family::{Split, View};
use serde_json::Value;

use crate::support::{Workbench, pgm};

/// The lines of a run's log.
fn metrics(bench: &Workbench) -> Vec<serde_json::Map<String, Value>> {
    let text = fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_space_of_the_intact_shape_trains_alone() {
    let bench = Workbench::new();
    let told = bench
        .run("pretrain recipe.toml --dry-run space.min_width=24 space.min_depth=3")
        .succeeds();
    assert_eq!(told.out.matches("24x3").count(), 1, "{}", told.out);
    bench.trained("space.min_width=24 space.min_depth=3");
    assert_eq!(bench.catalog().children.len(), 1);
    for line in metrics(&bench) {
        let names: Vec<&String> = line.keys().collect();
        assert!(
            names
                .iter()
                .all(|name| !name.contains("elastic") && !name.contains("same_view")),
            "{names:?}"
        );
        if let Some(loss) = line.get("loss") {
            let of = |name: &str| line[name].as_f64().unwrap();
            let cross: f64 = ["local", "global", "patch"]
                .iter()
                .map(|term| (of(&format!("loss/head0.intact.{term}")) + of(&format!("loss/head1.intact.{term}"))) / 2.0)
                .sum();
            let expected = cross + of("loss/koleo");
            assert!((loss.as_f64().unwrap() - expected).abs() < 1e-4 * expected, "{line:?}");
        }
    }
    bench.run("eval knn run").succeeds();
}

#[test]
fn without_alpha_children_are_measured_as_they_were_trained() {
    let bench = Workbench::new();
    bench.trained("space.alpha=false");
    let view: View = serde_json::from_slice(&fs::read(bench.path("run/views/8x1.json")).unwrap()).unwrap();
    assert!(view.gains.is_empty() && !view.axes.is_empty());
    // The last probe looked at the same images through the network in training.
    bench.run("eval knn run").succeeds();
    let probed = metrics(&bench).pop().unwrap();
    let catalog = bench.catalog();
    for id in ["8x1", "16x2", "24x3"] {
        let score = catalog.child(id).unwrap().score("knn@20", Split::Val);
        assert_eq!(probed[&format!("knn@20/{id}")].as_f64(), score, "{id}");
    }
}

#[test]
fn without_same_view_terms_none_is_logged() {
    let bench = Workbench::new();
    bench.trained("loss.same_view=false");
    let lines = metrics(&bench);
    assert!(lines.iter().any(|line| line.contains_key("loss/head0.elastic.global")));
    assert!(
        lines
            .iter()
            .all(|line| !line.keys().any(|name| name.contains("same_view")))
    );
}

#[test]
fn a_test_path_is_what_the_final_number_is_measured_on() {
    let bench = Workbench::new();
    for number in 500..530 {
        bench.write(&format!("judge/class-{}/{number}.pgm", number % 3), pgm(number));
    }
    bench
        .run("pretrain recipe.toml --out run data.test_path=judge")
        .refuses_with_hint(&["data.test", "judge"], &["recipe"]);
    bench.trained("data.test_path=judge data.test=0");
    let stored = bench.catalog().data;
    let stored = stored.images().unwrap();
    assert_eq!(stored.test_path, Some(bench.path("judge").display().to_string()));
    bench.run("eval knn run --split test").succeeds();
    bench.run("eval linear run --split test --epochs 1").succeeds();
    for child in &bench.catalog().children {
        for metric in ["knn@20", "linear"] {
            assert_eq!(child.scorecard(metric, Split::Test).unwrap().examples, 30, "{metric}");
        }
    }
    bench.run("report run").succeeds();
    assert!(
        fs::read_to_string(bench.path("run/report.html"))
            .unwrap()
            .contains("judge")
    );
    // Other images under the same path are other data.
    bench.write("judge/class-0/more.pgm", pgm(900));
    bench.run("eval knn run").refuses(&["has changed"]);
}
