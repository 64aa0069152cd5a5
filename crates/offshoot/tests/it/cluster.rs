//! Clusters as users of the binary meet them: made, shown, assigned to, and refused with the way out.

use std::fmt::Write as _;
use std::fs;

use serde_json::{Value, json};

use crate::support::Workbench;

/// Two corpora of two subjects each, and clusters of the first.
fn bench() -> Workbench {
    let bench = Workbench::bare();
    let subjects = [
        "court judge appeal statute plaintiff verdict jury",
        "protein gene enzyme receptor membrane tissue virus",
    ];
    for (name, share) in [("mixed", 2), ("law", 100)] {
        let mut lines = String::new();
        for number in 0..120 {
            let words: Vec<&str> = subjects[usize::from(number % share == 1)].split(' ').collect();
            let text: Vec<&str> = (0..30).map(|at| words[(number * 3 + at * at) % 7]).collect();
            writeln!(lines, "{}", json!({ "text": format!("{} {number}", text.join(" ")) })).unwrap();
        }
        bench.write(&format!("{name}.jsonl"), lines);
    }
    bench
        .run("tokenizer train mixed.jsonl --vocabulary 400 -o tokenizer.json")
        .succeeds();
    for name in ["mixed", "law"] {
        let words = format!("tokenize {name}={name}.jsonl --tokenizer tokenizer.json -o {name} --keep-near-duplicates");
        bench.run(&words).succeeds();
    }
    bench.run("cluster mixed --k 2 --context 64 -o clusters").succeeds();
    bench
}

#[test]
fn a_corpus_is_clustered_and_a_domain_is_found_in_one_of_the_clusters() {
    let bench = bench();
    let table = bench.run("cluster mixed --k 2,2 --context 64 -o tree").succeeds().out;
    for word in [
        "largest of 2",
        "largest of 4",
        "nats",
        "mixed",
        "tf-idf",
        "--assign tree",
    ] {
        assert!(table.contains(word), "{word} in {table}");
    }
    let done = bench.run("cluster law --assign clusters -o assigned --json").succeeds();
    let page: Value = serde_json::from_str(&done.out).unwrap();
    let level = &page["domains"][0]["levels"][0];
    assert_eq!(level["clusters"], 2);
    assert!(level["largest"].as_f64().unwrap() > 0.9, "{page}");
    assert!(level["entropy"].as_f64().unwrap() < 0.4, "{page}");
    let clustering = |folder: &str| {
        let text = fs::read_to_string(bench.path(folder).join("clusters.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["clustering"].clone()
    };
    assert_eq!(clustering("assigned"), clustering("clusters"));
    // What is done is shown again, and does not change.
    let before = fs::read(bench.path("tree/clusters.json")).unwrap();
    let again = bench
        .run("cluster mixed --k 2,2 --context 64 -o tree --resume")
        .succeeds()
        .out;
    assert_eq!(again, table);
    bench
        .run("cluster mixed --k 2,2 --context 64 -o tree --overwrite --threads 1")
        .succeeds();
    assert_eq!(fs::read(bench.path("tree/clusters.json")).unwrap(), before);
}

#[test]
fn what_cannot_be_clustered_is_refused_with_the_way_out() {
    let bench = bench();
    bench
        .run("cluster mixed --k 2 -o clusters")
        .refuses(&["already holds clusters", "--overwrite"]);
    bench
        .run("cluster mixed --k 100000 -o no")
        .refuses(&["100000 clusters of", "at most"]);
    bench
        .run("cluster mixed --k 2 -o no --balance 0.5")
        .refuses(&["`balance`"]);
    bench
        .run("cluster mixed --k 2 -o no --encoder law")
        .refuses(&["config.json"]);
    bench
        .run("cluster mixed --k 2 -o no --resume")
        .refuses(&["no clustering to resume", "--resume"]);
    bench
        .run("cluster mixed --k 2 -o mixed --overwrite")
        .refuses(&["mixed", "empty folder"]);
    bench
        .run("cluster law --assign mixed -o no")
        .refuses(&["clusters.json"]);
    bench.run("cluster nowhere --k 2 -o no").refuses(&["nowhere"]);
    assert!(!bench.path("no").exists());
    bench.write("mpnet/config.json", r#"{"model_type": "mpnet"}"#);
    bench
        .run("cluster mixed --k 2 -o no --encoder mpnet")
        .refuses(&["`model_type` is `mpnet`", "all-MiniLM-L6-v2"]);
    bench.run("cluster law --assign clusters -o law-clusters").succeeds();
    bench
        .run("cluster law --assign law-clusters -o other")
        .refuses(&["centroids of another folder", "--k"]);
}
