//! `offshoot demo` from nothing to a model folder, with a handful of steps in place of its minutes.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use offshoot_family::{Catalog, Split};
use offshoot_zoo::Checkpoint;

use crate::support::{Done, Workbench, names};

fn demo(words: &str, metric: &str) -> Workbench {
    let bench = Workbench::bare();
    let done = bench.run(&format!("demo --out here {words}")).succeeds();
    let here = bench.path("here");
    let catalog = Catalog::open(&here.join("run")).unwrap();
    assert_eq!(catalog.score, metric);
    assert!(
        catalog.children.iter().all(|c| c.score(metric, Split::Val).is_some()),
        "every child is measured"
    );
    let chosen: Vec<_> = catalog
        .children
        .iter()
        .filter(|c| c.score(metric, Split::Test).is_some())
        .collect();
    assert_eq!(chosen.len(), 1);
    assert!(chosen[0].parameters <= 500_000);
    let child = Checkpoint::open(&here.join("child")).unwrap();
    assert_eq!(
        offshoot_zoo::spec::parameters(&child.network().specs()),
        chosen[0].parameters
    );
    assert_eq!(
        fs::metadata(here.join("child/model.safetensors")).unwrap().len(),
        chosen[0].bytes
    );
    assert!(here.join("child/README.md").is_file() && here.join("contact-sheet.png").is_file());
    assert!(
        fs::read_to_string(here.join("report.html"))
            .unwrap()
            .contains(&chosen[0].id)
    );
    // What was made, where, and commands to try next that can be typed as they stand.
    for place in ["here/run", "here/child", "report.html"] {
        assert!(done.out.contains(place), "{place} is not told");
    }
    let next = done.out.rsplit_once("Next:").expect("the next commands are told").1;
    let commands: Vec<&str> = next
        .lines()
        .filter_map(|line| line.trim().strip_prefix("offshoot "))
        .collect();
    assert_eq!(commands.len(), 3, "{next}");
    bench
        .run(commands.iter().find(|c| c.starts_with("family")).unwrap())
        .succeeds();
    bench
}

#[test]
fn with_labels() {
    let bench = demo("--steps 2", "knn@20");
    let before = names(&bench.path("here"));
    bench
        .run("demo --out here --steps 1")
        .refuses_with_hint(&["here"], &["--out", "--overwrite"]);
    assert_eq!(names(&bench.path("here")), before);
    bench.write("mine/thesis.tex", "mine");
    bench.run("demo --out mine").refuses(&["mine"]);
    assert_eq!(names(&bench.path("mine")), ["thesis.tex"]);
}

#[test]
fn without_labels() {
    demo("--steps 1 --without-labels", "agreement@20");
}

/// Ctrl-C ends it while it measures, when there is no step to finish.
#[test]
fn interrupted_after_training() {
    let bench = Workbench::bare();
    let mut child = bench.start("demo --out here --steps 1 --without-labels");
    let began = Instant::now();
    while !bench.path("here/run/catalog.json").is_file() {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let done = Done::of("demo", child.wait_with_output().unwrap()).ends_with(130);
    assert!(!bench.path("here/child").exists(), "{}", done.out);
}
