//! From images to an exported child, with labels and without: train, list, measure, pick, export, report.

use std::collections::BTreeSet;
use std::fs;

use offshoot_data::{Dataset, Labels, SplitShares, evaluation_batches};
use offshoot_eval::{EvalError, Labelled};
use offshoot_family::{Catalog, Child, Split};
use offshoot_zoo::Checkpoint;
use offshoot_zoo::tensor::device;
use serde_json::Value;

use crate::support::{IMAGES, Workbench, files, names, pgm};

/// Parameters of a ViT of this size on 8-pixel grey crops in 4-pixel patches.
fn parameters(width: u64, depth: u64) -> u64 {
    let tokens = 2 * width + 5 * width;
    let block = 12 * width * width + 15 * width;
    (16 * width + width) + tokens + depth * block + 2 * width
}

#[test]
fn with_labels() {
    let bench = Workbench::new();
    bench.trained("");
    whole_path(&bench, "knn", "knn@20");

    // The other measurements, of one child and of all.
    bench.run("eval agreement run --child 8x2 --json").succeeds();
    let probe = bench
        .run("eval linear run --child 16x1 --epochs 2 --json")
        .succeeds()
        .json();
    let card = &probe[0]["scorecards"][0];
    assert_eq!(
        (&probe[0]["child"], &card["metric"]),
        (&"16x1".into(), &"linear".into())
    );
    let grid = card["details"]["grid"]
        .as_array()
        .expect("the whole grid is in the scorecard");
    let best = grid
        .iter()
        .filter_map(|cell| cell["accuracy"].as_f64())
        .fold(0.0, f64::max);
    assert_eq!(card["value"].as_f64(), Some(best), "the best of the grid is reported");
    bench.run("pick run --params 1M --by linear").succeeds();
    let knn = bench.catalog();
    for k in [10, 20, 100, 200] {
        assert!(
            knn.children
                .iter()
                .all(|c| c.score(&format!("knn@{k}"), Split::Val).is_some()),
            "knn@{k}"
        );
    }
    scored_again(&bench);
}

#[test]
fn without_labels() {
    let bench = Workbench::new();
    for number in 0..IMAGES {
        bench.write(&format!("flat/{number:03}.pgm"), pgm(number));
    }
    bench.trained("data.labels=false data.path=flat");
    whole_path(&bench, "agreement", "agreement@20");
    let catalog = bench.catalog();
    let parent = catalog.child("24x3").unwrap().score("agreement@20", Split::Val);
    assert_eq!(parent, Some(1.0), "the parent agrees with itself");
    let others = catalog
        .children
        .iter()
        .map(|c| c.score("agreement@20", Split::Val).unwrap());
    assert!(others.clone().any(|score| score < 1.0) && others.clone().all(|score| (0.0..=1.0).contains(&score)));
}

/// Every command after training, on the folder `run`.
fn whole_path(bench: &Workbench, verb: &str, metric: &str) {
    family(bench, metric);
    let held_out = bench.run("pick run --params 1M");
    held_out.refuses_with_hint(&[metric], &[&format!("offshoot eval {verb} run")]);
    bench.run(&format!("eval {verb} run")).succeeds();
    let catalog = bench.catalog();
    assert_eq!(catalog.score, metric);
    for child in &catalog.children {
        let card = child.scorecard(metric, Split::Val).expect("every child was measured");
        assert_eq!(card.data.as_ref(), Some(&catalog.data.fingerprint().to_owned()));
        assert_eq!(card.examples, splits(&catalog).splits.val.len());
        assert!(!card.machine.is_empty() && !card.version.is_empty());
        assert!(
            child.score(metric, Split::Test).is_none(),
            "nothing is tested before the choice"
        );
    }
    pick(bench, metric);
    bench.run("eval latency run --repeats 3").succeeds();
    assert!(
        bench
            .catalog()
            .children
            .iter()
            .all(|c| c.latency_ms().is_some_and(|ms| ms > 0.0))
    );
    let fast = bench.run("pick run --ms 10000 --json").succeeds().json();
    assert!(fast["latency_ms"].as_f64().is_some_and(|ms| ms <= 10_000.0));
    export(bench);

    bench.run("report run").succeeds();
    let page = fs::read_to_string(bench.path("run/report.html")).unwrap();
    assert!(page.contains("</html>") && page.contains(metric));
    for reference in [
        "src=\"http",
        "href=\"http",
        "src='http",
        "href='http",
        "url(http",
        "@import",
        "<script src",
        "<link",
    ] {
        assert!(
            !page.contains(reference),
            "the page needs no network, yet has `{reference}`"
        );
    }
}

/// The table of all children, sorted and filtered.
fn family(bench: &Workbench, metric: &str) {
    let rows = |words: &str| -> Vec<Value> {
        bench
            .run(&format!("family run --json {words}"))
            .succeeds()
            .json()
            .as_array()
            .unwrap()
            .clone()
    };
    let all = rows("");
    let mut sizes = BTreeSet::new();
    for row in &all {
        let (width, depth) = (row["width"].as_u64().unwrap(), row["depth"].as_u64().unwrap());
        sizes.insert((width, depth));
        assert_eq!(row["id"], format!("{width}x{depth}"));
        assert_eq!(row["parameters"].as_u64(), Some(parameters(width, depth)));
        assert!(row["bytes"].as_u64().unwrap() > 4 * parameters(width, depth));
        assert!(row["macs"].as_u64().unwrap() > 0);
        for column in [format!("{metric}/val"), format!("{metric}/test"), "latency_ms".into()] {
            assert!(row[&column].is_null(), "{column} is there and not measured yet");
        }
    }
    let grid = [8, 16, 24]
        .into_iter()
        .flat_map(|width| (1..=3).map(move |depth| (width, depth)));
    assert_eq!(sizes, grid.collect());
    assert_eq!(all.len(), 9);

    let descending: Vec<u64> = rows("--sort -parameters")
        .iter()
        .map(|r| r["parameters"].as_u64().unwrap())
        .collect();
    assert!(descending.is_sorted_by(|a, b| a >= b) && descending.len() == 9);
    assert_eq!(rows("--filter width>=16 --filter depth!=2").len(), 4);
    assert_eq!(rows("--filter parameters<=10k").len(), 6);
    bench.run("family run").succeeds();
    bench
        .run("family run --sort girth")
        .refuses_with_hint(&["girth"], &["width", "parameters"]);
    bench
        .run("family run --filter width>=wide")
        .refuses_with_hint(&["wide"], &["numbers"]);
    bench
        .run("family run --filter nonsense")
        .refuses_with_hint(&["nonsense"], &["width>=512"]);
}

/// The best on val among those that `fits` lets through, fewer parameters first among equals.
fn best<'a>(catalog: &'a Catalog, metric: &str, fits: impl Fn(&Child) -> bool) -> &'a Child {
    let mut within: Vec<&Child> = catalog.children.iter().filter(|c| fits(c)).collect();
    within.sort_by(|a, b| {
        let score = |c: &Child| c.score(metric, Split::Val).unwrap();
        score(b).total_cmp(&score(a)).then(a.parameters.cmp(&b.parameters))
    });
    within[0]
}

/// A child within each kind of budget, the best of those on val, and scored on test after the choice.
fn pick(bench: &Workbench, metric: &str) {
    let before = bench.catalog();
    type Fits = fn(&Child) -> bool;
    let budgets: [(&str, Fits); 5] = [
        ("--params 9k", |c| c.parameters <= 9_000),
        ("--bytes 20kB", |c| c.bytes <= 20_000),
        ("--bytes 20KiB", |c| c.bytes <= 20 * 1024),
        ("--macs 40k", |c| c.macs <= 40_000),
        ("--params 12k --macs 14k", |c| {
            c.parameters <= 12_000 && c.macs <= 14_000
        }),
    ];
    let mut tested = BTreeSet::new();
    for (budget, fits) in budgets {
        let picked = bench.run(&format!("pick run {budget} --json")).succeeds().json();
        let wanted = best(&before, metric, fits);
        assert_eq!(picked["child"], wanted.id, "{budget}");
        assert_eq!(picked["metric"], metric);
        assert_eq!(picked["val"].as_f64(), wanted.score(metric, Split::Val));
        assert_eq!(picked["losers"].as_array().unwrap().len(), 8);
        let after = bench.catalog();
        let card = after
            .child(&wanted.id)
            .unwrap()
            .scorecard(metric, Split::Test)
            .expect("it was scored on test");
        assert_eq!(picked["test"].as_f64(), Some(card.value), "{budget}");
        assert_eq!(card.examples, splits(&after).splits.test.len());
        tested.insert(wanted.id.clone());
        let all = after
            .children
            .iter()
            .filter(|c| c.scorecards.iter().any(|s| s.split == Some(Split::Test)));
        assert_eq!(
            all.map(|c| c.id.clone()).collect::<BTreeSet<_>>(),
            tested,
            "only what was chosen is tested"
        );
    }
    // People read the same number.
    let said = bench.run("pick run --params 9k").succeeds();
    let chosen = best(&before, metric, |c| c.parameters <= 9_000);
    let test = bench
        .catalog()
        .child(&chosen.id)
        .unwrap()
        .score(metric, Split::Test)
        .unwrap();
    assert!(
        said.out.contains(&chosen.id) && said.out.contains(&format!("{test:.4}")),
        "{}",
        said.out
    );
}

/// Every way of naming children to export.
fn export(bench: &Workbench) {
    let catalog = bench.catalog();
    let all = bench.run("export run --all -o all --check").succeeds();
    assert!(!all.out.is_empty());
    let mut written = 0;
    for child in &catalog.children {
        let folder = bench.path("all").join(&child.id);
        assert_eq!(
            names(&folder),
            [
                "README.md",
                "config.json",
                "model.safetensors",
                "preprocessor_config.json"
            ]
        );
        let bytes = fs::metadata(folder.join("model.safetensors")).unwrap().len();
        assert_eq!(bytes, child.bytes, "{}", child.id);
        written += bytes;
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        assert_eq!(
            config["hidden_size"].as_u64(),
            child.shape.get("width").map(|w| w as u64)
        );
        assert_eq!(
            config["num_hidden_layers"].as_u64(),
            child.shape.get("depth").map(|d| d as u64)
        );
        let weights = Checkpoint::open(&folder).unwrap();
        assert_eq!(
            offshoot_zoo::spec::parameters(&weights.network().specs()),
            child.parameters
        );
    }
    assert_eq!(written, catalog.children.iter().map(|c| c.bytes).sum::<u64>());
    assert_eq!(names(&bench.path("all")).len(), 9);

    bench.run("export run --size 16x2 -o one").succeeds();
    assert_eq!(files(&bench.path("one")), files(&bench.path("all/16x2")));
    bench.run("export run --child 16x2 -o two --check").succeeds();
    assert_eq!(files(&bench.path("two")), files(&bench.path("all/16x2")));
    let parent = fs::read(bench.path("run/parent/model.safetensors")).unwrap();
    assert!(
        fs::read(bench.path("all/24x3/model.safetensors")).unwrap() == parent,
        "the full view is the parent"
    );

    bench.run("export run --pareto -o front").succeeds();
    let score = |c: &Child| c.score(&catalog.score, Split::Val).unwrap();
    let beaten = |c: &Child| {
        let beats = |o: &Child| {
            o.parameters <= c.parameters && score(o) >= score(c) && (o.parameters < c.parameters || score(o) > score(c))
        };
        catalog.children.iter().any(beats)
    };
    let front: BTreeSet<String> = catalog
        .children
        .iter()
        .filter(|c| !beaten(c))
        .map(|c| c.id.clone())
        .collect();
    assert_eq!(names(&bench.path("front")).into_iter().collect::<BTreeSet<_>>(), front);

    // None of these sizes is famous; a name that a child has is as good as its id.
    let mut named: Value = serde_json::from_slice(&fs::read(bench.path("run/catalog.json")).unwrap()).unwrap();
    named["children"][4]["name"] = "vit-xxs".into();
    let kept = fs::read(bench.path("run/catalog.json")).unwrap();
    bench.write("run/catalog.json", named.to_string());
    bench.run("export run --name vit-xxs -o three").succeeds();
    assert_eq!(
        fs::read(bench.path("three/model.safetensors")).unwrap(),
        fs::read(
            bench
                .path("all")
                .join(&catalog.children[4].id)
                .join("model.safetensors")
        )
        .unwrap()
    );
    bench.write("run/catalog.json", kept);
}

fn splits(catalog: &Catalog) -> Dataset {
    let data = catalog.data.images().unwrap();
    let labels = if data.labels { Labels::Use } else { Labels::Ignore };
    let shares = SplitShares {
        val: data.val,
        test: data.test,
    };
    Dataset::open(data.path.as_ref(), labels, data.split_seed, shares).unwrap()
}

/// An exported folder scores what the catalog says of the child.
fn scored_again(bench: &Workbench) {
    let catalog = bench.catalog();
    let dataset = splits(&catalog);
    let how = &catalog.data.images().unwrap().preprocessing;
    let device = device("cpu").unwrap();
    for child in ["8x1", "16x2", "24x3"].map(|id| catalog.child(id).unwrap()) {
        let exported = Checkpoint::open(&bench.path("all").join(&child.id)).unwrap();
        let weights = exported.weights(&device).unwrap();
        let features = |indices: &[usize]| {
            // In batches as large as the binary's: sums of another order could turn a close vote.
            let batches = evaluation_batches(dataset.source.as_ref(), indices, how, 64)
                .map(|batch| batch.map(|(values, indices)| (values, indices.len())))
                .map(|batch| Ok::<_, EvalError>(batch.unwrap()));
            let network = exported.backbone().unwrap();
            offshoot_eval::extract(network, &weights, &device, batches, network.image(), &mut |_| {})
                .unwrap()
                .cls
        };
        let parts = [&dataset.splits.train[..], &dataset.splits.val];
        let [(train, train_labels), (val, val_labels)] = parts.map(|part| (features(part), dataset.labels(part)));
        let knn = offshoot_eval::knn(
            Labelled {
                features: &train,
                labels: &train_labels,
            },
            Labelled {
                features: &val,
                labels: &val_labels,
            },
            dataset.source.classes().len(),
            &[10, 20],
            0.07,
            &device,
        );
        for score in &knn.unwrap().scores {
            let said = child.score(&format!("knn@{}", score.k), Split::Val).unwrap();
            assert!(
                (said - score.accuracy).abs() <= 1e-5,
                "{}: knn@{} {said} and {}",
                child.id,
                score.k,
                score.accuracy
            );
        }
    }
}
