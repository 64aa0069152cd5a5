//! Stopped, interrupted or killed anywhere, and resumed: the same bytes as without.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::support::{Done, Random, Workbench, files, names};

/// `two` holds what `one` holds, but for clocks and for the checkpoints before the last.
#[track_caller]
fn same(one: &Path, two: &Path) {
    let older = |name: &str| name.starts_with("checkpoints/step-") && !name.starts_with("checkpoints/step-00000030/");
    let timed = |name: &str| name.starts_with("events.") || name == "timing.jsonl" || older(name);
    let (one, two) = (files(one), files(two));
    for (name, bytes) in one.iter().filter(|(name, _)| !timed(name)) {
        assert!(
            two.get(name) == Some(bytes),
            "{name} differs from the undisturbed run's"
        );
    }
    let more: Vec<&String> = two
        .keys()
        .filter(|name| !timed(name) && !one.contains_key(*name))
        .collect();
    assert!(more.is_empty(), "left over: {more:?}");
}

#[test]
fn stopped_after_any_step() {
    let bench = Workbench::new();
    let run = bench.trained("");
    // Before, at and after checkpoints and probes, in several bites, and after the last step but one.
    for stops in [vec![1], vec![4], vec![5, 6], vec![10], vec![3, 13, 23], vec![29]] {
        let name = format!("stopped-{stops:?}").replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-");
        for (i, stop) in stops.iter().enumerate() {
            let how = if i == 0 {
                format!("recipe.toml --out {name}")
            } else {
                format!("--resume {name}")
            };
            let done = bench.run(&format!("pretrain {how} --stop-after {stop}")).succeeds();
            done.says(&[&format!("offshoot pretrain --resume {name}")]);
            assert!(!bench.path(&name).join("catalog.json").exists());
            assert!(
                bench
                    .path(&name)
                    .join(format!("checkpoints/step-{stop:08}/state.safetensors"))
                    .is_file()
            );
        }
        bench
            .run(&format!("family {name}"))
            .refuses_with_hint(&["catalog.json"], &[&format!("--resume {name}")]);
        bench.run(&format!("pretrain --resume {name}")).succeeds();
        same(&run, &bench.path(&name));
    }
}

#[test]
fn killed_twenty_times() {
    let bench = Workbench::new();
    let began = Instant::now();
    let run = bench.trained("");
    let whole = began.elapsed();
    let mut random = Random(20);
    let (mut kills, mut runs) = (0, 0);
    while kills < 20 {
        runs += 1;
        assert!(runs <= 40, "runs are hardly ever killed in time");
        let name = format!("killed-{runs}");
        let folder = bench.path(&name);
        // Attempts of one run shorten what is left of it, so that it ends.
        for attempt in 0.. {
            assert!(attempt < 200, "{name} does not end");
            let resumes = folder.join("recipe.toml").is_file();
            let words = if resumes {
                format!("pretrain --resume {name}")
            } else {
                format!("pretrain recipe.toml --out {name}")
            };
            let mut child = bench.start(&words);
            std::thread::sleep(whole.mul_f64(0.05 + random.share()));
            if let Some(status) = child.try_wait().unwrap() {
                let done = Done::of(&words, child.wait_with_output().unwrap());
                assert!(status.success(), "{words}: {}", done.err);
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        assert!(folder.join("catalog.json").is_file());
        assert_eq!(names(&folder.join("checkpoints")), ["step-00000028", "step-00000030"]);
        same(&run, &folder);
    }
}

/// Sends a signal by name once the run has logged a step.
fn signalled(bench: &Workbench, words: &str, run: &str, signals: &[&str]) -> Done {
    let mut child = bench.start(words);
    wait_for_steps(&mut child, &bench.path(run));
    for signal in signals {
        assert!(
            Command::new("kill")
                .args([&format!("-{signal}"), &child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }
    Done::of(words, child.wait_with_output().unwrap())
}

fn wait_for_steps(child: &mut Child, run: &Path) {
    let began = Instant::now();
    while fs::metadata(run.join("metrics.jsonl")).map_or(0, |m| m.len()) == 0 {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before its first step was logged"
        );
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "no step was logged in a minute"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn interrupted_it_finishes_the_step_and_says_how_to_go_on() {
    const LONG: &str = "train.epochs=20 train.log_every=1 train.checkpoint_every=1000";
    let bench = Workbench::new();
    let run = bench.trained(LONG);
    for signals in [&["INT"][..], &["TERM"], &["INT", "INT"]] {
        let name = format!("interrupted-{}", signals.concat());
        let done = signalled(
            &bench,
            &format!("pretrain recipe.toml --out {name} {LONG}"),
            &name,
            signals,
        )
        .ends_with(130);
        let folder = bench.path(&name);
        if signals.len() == 1 {
            let done = done.says(&[&format!("offshoot pretrain --resume {name}")]);
            let saved = names(&folder.join("checkpoints"));
            let step: u64 = saved[0].strip_prefix("step-").unwrap().parse().unwrap();
            assert!(
                (1..300).contains(&step) && done.err.contains(&step.to_string()),
                "{}",
                done.err
            );
            let last = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
            let last: serde_json::Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
            assert_eq!(last["step"].as_u64(), Some(step), "what was logged was saved");
        }
        bench.run(&format!("pretrain --resume {name}")).succeeds();
        let checkpoints = |folder: &Path| fs::read(folder.join("checkpoints/step-00000300/state.safetensors")).unwrap();
        assert!(checkpoints(&run) == checkpoints(&folder));
        for kept in ["parent/model.safetensors", "metrics.jsonl", "catalog.json"] {
            assert!(
                fs::read(run.join(kept)).unwrap() == fs::read(folder.join(kept)).unwrap(),
                "{name}/{kept} differs"
            );
        }
    }
}

#[test]
fn what_a_killed_process_left_is_swept_away() {
    let bench = Workbench::new();
    let run = bench.trained("");
    bench.run("pretrain recipe.toml --out left --stop-after 6").succeeds();
    for place in ["", "checkpoints/", "parent/", "views/"] {
        bench.write(&format!("left/{place}.writing-x1y2z3"), "half of something");
    }
    bench.write("left/checkpoints/.writing-00000008/.writing-a", "half of a checkpoint");
    bench.write("left/checkpoints/.writing-00000008/state.json", "{");
    bench.run("pretrain --resume left").succeeds();
    same(&run, &bench.path("left"));

    // Killed after its last checkpoint, with an older one half removed.
    bench.write("left/checkpoints/step-00000024/state.json", "{}");
    fs::remove_file(bench.path("left/catalog.json")).unwrap();
    bench.run("pretrain --resume left").succeeds();
    assert_eq!(
        names(&bench.path("left/checkpoints")),
        ["step-00000028", "step-00000030"]
    );
    same(&run, &bench.path("left"));
}

#[test]
fn a_folder_whose_process_was_killed_before_its_first_step_is_taken_over() {
    let bench = Workbench::new();
    bench.write("run/lock", "");
    bench.write("run/.writing-abc", "method = ");
    bench.trained("train.epochs=1");
    bench.run("family run").succeeds();
}
