//! Help, completions, manual pages, the dry run of the paper's recipe, and benchmarks that do not fit.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Done, Workbench, names};

/// Every command.
const COMMANDS: [&str; 21] = [
    "demo",
    "data",
    "pretrain",
    "family",
    "eval",
    "eval knn",
    "eval linear",
    "eval agreement",
    "eval latency",
    "pick",
    "plan",
    "export",
    "report",
    "bench",
    "bench step",
    "bench features",
    "bench knn",
    "bench cluster",
    "cluster",
    "completions",
    "man",
];

#[test]
fn every_command_has_help_and_a_manual_page() {
    let bench = Workbench::bare();
    let version = bench.run("--version").succeeds();
    assert!(version.out.contains(env!("CARGO_PKG_VERSION")));
    let overview = bench.run("--help").succeeds();
    for code in ["0", "1", "2", "130"] {
        assert!(overview.out.contains(code), "exit code {code} is explained");
    }
    bench.run("man --out pages").succeeds();
    let pages = names(&bench.path("pages"));
    assert!(pages.contains(&"offshoot.1".to_owned()));
    for command in COMMANDS {
        let help = bench.run(&format!("{command} --help")).succeeds();
        assert!(help.out.contains("Usage:") && help.err.is_empty(), "{command}");
        assert_eq!(bench.run(&format!("help {command}")).succeeds().out, help.out);
        if !command.contains(' ') {
            assert!(overview.out.contains(command), "{command} is not in the overview");
        }
        let page = format!("offshoot-{}.1", command.replace(' ', "-"));
        let text = fs::read_to_string(bench.path("pages").join(&page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".TH") && text.contains(".SH"), "{page} is a manual page");
    }
}

#[test]
fn shells_are_completed() {
    let bench = Workbench::bare();
    for shell in ["bash", "zsh", "fish"] {
        let script = bench.run(&format!("completions {shell}")).succeeds().out;
        assert!(script.contains("pretrain") && script.contains("overwrite"), "{shell}");
    }
    bench.run("completions abacus").refuses(&["abacus"]);
}

#[test]
fn a_closed_pipe_is_no_mistake() {
    let bench = Workbench::bare();
    let script = "$offshoot completions bash | head -n 1 > /dev/null; $offshoot completions zsh >&-; true";
    let output = Command::new("sh")
        .args(["-c", script])
        .env("offshoot", env!("CARGO_BIN_EXE_offshoot"))
        .output()
        .unwrap();
    assert!(!Done::of(script, output).err.contains("panicked"));
    drop(bench);
}

/// The paper's run, elastic.md 8.2 and the sizes of its family, told within seconds and without its gigabytes.
#[test]
fn the_papers_run_is_told_without_being_allocated() {
    let bench = Workbench::bare();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/poa-vit-l16.toml");
    // Address space for the program, its threads' stacks and nothing of the size of a ViT-L, whose weights take 1.2 GB.
    let limited = format!("ulimit -v 1000000; exec \"$offshoot\" pretrain '{recipe}' --dry-run");
    let began = Instant::now();
    let output = Command::new("sh")
        .args(["-c", &limited])
        .current_dir(bench.path(""))
        .env("offshoot", env!("CARGO_BIN_EXE_offshoot"))
        .output();
    let done = Done::of(&limited, output.unwrap()).succeeds();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    for number in [
        "143",
        "572",
        "21,675,264",
        "85,817,856",
        "303,351,808",
        "58,860,544",
        "276800",
        "TFLOP/s",
    ] {
        assert!(done.out.contains(number), "{number} is not in\n{}", done.out);
    }
    assert!(names(&bench.path("")).is_empty(), "a dry run writes nothing");

    // iteration, learning rate, weight decay, momentum, teacher temperature
    let rows: Vec<Vec<f64>> = done
        .out
        .lines()
        .map(|line| {
            line.split_whitespace()
                .map_while(|word| word.parse().ok())
                .collect::<Vec<f64>>()
        })
        .filter(|row| row.len() == 5)
        .collect();
    let check = |column: usize, iteration: f64, expected: f64, tolerance: f64| {
        let row = rows
            .iter()
            .find(|row| row[0] == iteration)
            .unwrap_or_else(|| panic!("{iteration} is not told"));
        assert!(
            (row[column] - expected).abs() <= tolerance,
            "[{iteration}] {} instead of {expected}",
            row[column]
        );
    };
    for (iteration, rate) in [
        (0.0, 0.0),
        (4_000.0, 0.002_500_31),
        (7_999.0, 0.005),
        (8_000.0, 0.005),
        (100_000.0, 0.004_184_48),
        (200_000.0, 0.002_093_31),
        (276_799.0, 6.169_70e-4),
    ] {
        check(1, iteration, rate, 5.1e-9);
    }
    for (iteration, decay, momentum) in [(100_000.0, 0.106_047, 0.993_449), (200_000.0, 0.255_718, 0.996_734)] {
        check(2, iteration, decay, 1.1e-6);
        check(3, iteration, momentum, 1.1e-6);
    }
    for (iteration, temperature) in [
        (0.0, 0.04),
        (12_000.0, 0.055_000_6),
        (23_999.0, 0.07),
        (276_799.0, 0.07),
    ] {
        check(4, iteration, temperature, 1.1e-7);
    }

    let faster = bench
        .run(&format!("pretrain {recipe} --dry-run --rate 400"))
        .succeeds()
        .out;
    let hours = |text: &str| -> f64 {
        let line = text.lines().find(|line| line.contains("hours")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        words[words.iter().position(|word| *word == "hours").unwrap() - 1]
            .parse()
            .unwrap()
    };
    assert!((hours(&done.out) / hours(&faster) - 4.0).abs() < 0.01);
    bench
        .run(&format!("pretrain {recipe} --dry-run crops.globals.px=100"))
        .refuses(&["crops.globals.px", "96 and 112"]);
}

/// The small model of arXiv 2402.01093 (specialize.md 2.1), told within seconds and without its gigabytes; and the other recipes of text.
#[test]
fn runs_of_language_models_are_told_without_being_allocated() {
    let bench = Workbench::bare();
    let told = |name: &str| {
        let recipe = format!("{}/../../recipes/{name}", env!("CARGO_MANIFEST_DIR"));
        // The step of the small model takes 8.9 GB.
        let limited = format!("ulimit -v 1000000; exec \"$offshoot\" pretrain '{recipe}' --dry-run");
        let began = Instant::now();
        let output = Command::new("sh")
            .args(["-c", &limited])
            .current_dir(bench.path(""))
            .env("offshoot", env!("CARGO_BIN_EXE_offshoot"))
            .output();
        let done = Done::of(&limited, output.unwrap()).succeeds();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        done.out
    };
    for (recipe, parts) in [
        (
            "slm-126m.toml",
            &[
                "122,778,624 parameters, 88,175,616 of them outside of embeddings; vocabulary 32,768, context 1,024",
                "the paper reports 126.0M",
                "7.739e8 FLOPs a token to train, 2.580e8 to use",
                "8.9GB of memory a step with 16 windows at once: 2.0GB of weights, moments and gradients, 6.9GB of activations and logits",
                "4,200,000 steps of up to 131,072 tokens, 550.5G in all: 1183.4 hours at 100 TFLOP/s",
            ][..],
        ),
        (
            "lm-small.toml",
            &[
                "1,071,872 parameters, 793,344 of them",
                "500 steps of up to 2,048 tokens",
            ],
        ),
        (
            "elastic-lm.toml",
            &[
                "12 sub-networks",
                "128x3: 1,127,296 parameters",
                "256x6: 5,868,800 parameters",
            ],
        ),
        (
            "continue-lm.toml",
            &["with 1 windows at once", "500 steps of up to 8,192 tokens"],
        ),
    ] {
        let out = told(recipe);
        for part in parts {
            assert!(out.contains(part), "{recipe}: {part} is not in\n{out}");
        }
    }
    assert!(names(&bench.path("")).is_empty(), "a dry run writes nothing");
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/slm-126m.toml");
    bench
        .run(&format!("pretrain {recipe} --dry-run data.corpus=typo"))
        .refuses_with_hint(&["typo"], &["check the path"]);
}

/// A case that does not fit the memory is refused with an estimate. Where it would fit, it is not waited for.
#[test]
fn a_benchmark_that_does_not_fit_is_refused() {
    let bench = Workbench::bare();
    let words = "bench step --case vit-l --steps 1 --warmup 0 --threads 1";
    let mut child = bench.start(words);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        if child.try_wait().unwrap().is_some() {
            let done = Done::of(words, child.wait_with_output().unwrap());
            done.refuses_with_hint(&["memory"], &["--case"]);
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
