//! A disk that is full: an error that names the file, nothing half written, and a run that goes on once there is room.

use std::fs;
use std::process::Command;

use crate::support::{Done, Workbench, files};

/// Runs a shell script in the workbench with `$offshoot` for the binary.
fn shell(bench: &Workbench, wrapper: &[&str], script: &str) -> Done {
    let mut command = Command::new(wrapper.first().copied().unwrap_or("sh"));
    if let Some(more) = wrapper.get(1..) {
        command.args(more).arg("sh");
    }
    let command = command
        .args(["-c", script])
        .current_dir(bench.path(""))
        .env("offshoot", env!("CARGO_BIN_EXE_offshoot"));
    Done::of(script, command.output().unwrap())
}

/// A shell in which file systems can be mounted that nobody else sees; none where that needs rights we lack.
fn private_mounts(bench: &Workbench) -> Option<&'static [&'static str]> {
    fs::create_dir_all(bench.path("small")).unwrap();
    let mount = "mount -t tmpfs -o size=16k tmpfs small";
    [&["unshare", "--mount"][..], &["unshare", "--mount", "--map-root-user"]]
        .into_iter()
        .find(|wrapper| {
            let tried = Command::new(wrapper[0])
                .args(&wrapper[1..])
                .args(["sh", "-c", mount])
                .current_dir(bench.path(""))
                .output();
            tried.is_ok_and(|output| output.status.success())
        })
}

#[expect(clippy::print_stderr, reason = "whoever reads the test's output should know")]
fn skip() {
    eprintln!("skipped: no file system can be mounted here");
}

#[test]
fn a_full_disk_while_training() {
    let bench = Workbench::new();
    let Some(wrapper) = private_mounts(&bench) else {
        return skip();
    };
    let run = bench.trained("");
    // Room for two checkpoints and half of a third.
    let script = "mount -t tmpfs -o size=1m tmpfs small
        $offshoot pretrain recipe.toml --out small/run; echo first $?
        find small/run > before.txt
        mount -o remount,size=64m small
        $offshoot pretrain --resume small/run; echo second $?
        cp -r small/run after";
    let done = shell(&bench, wrapper, script)
        .succeeds()
        .says(&["small/run/", "hint:", "resume"]);
    assert!(
        done.out.contains("first 1\n") && done.out.contains("second 0\n"),
        "{}\n{}",
        done.out,
        done.err
    );
    let before = fs::read_to_string(bench.path("before.txt")).unwrap();
    assert!(
        !before.contains("catalog.json") && !before.contains("small/run/parent/"),
        "{before}"
    );
    let (one, two) = (files(&run), files(&bench.path("after")));
    for (name, bytes) in one
        .iter()
        .filter(|(name, _)| !name.starts_with("events.") && *name != "timing.jsonl")
    {
        assert!(
            two.get(name) == Some(bytes),
            "{name} differs from the undisturbed run's"
        );
    }
    assert!(!two.keys().any(|name| name.contains(".writing-")));
}

#[test]
fn a_full_disk_while_exporting() {
    let bench = Workbench::new();
    let Some(wrapper) = private_mounts(&bench) else {
        return skip();
    };
    bench.trained("train.epochs=1 train.steps_per_epoch=2");
    let script = "mount -t tmpfs -o size=128k tmpfs small
        $offshoot export run --all -o small/all; echo first $?
        cp -r small/all before
        mount -o remount,size=64m small
        $offshoot export run --all -o small/all --overwrite --check; echo second $?
        cp -r small/all after";
    let done = shell(&bench, wrapper, script).succeeds().says(&["small/all/"]);
    assert!(
        done.out.contains("first 1\n") && done.out.contains("second 0\n"),
        "{}\n{}",
        done.out,
        done.err
    );
    let (before, after) = (files(&bench.path("before")), files(&bench.path("after")));
    assert!(
        before.keys().any(|name| name.ends_with("config.json")),
        "some children had room"
    );
    for (name, bytes) in &before {
        assert!(after.get(name) == Some(bytes), "{name} was half written");
    }
    assert_eq!(after.len(), 9 * 4);
}

#[test]
fn a_limit_on_the_size_of_files() {
    let bench = Workbench::new();
    let run = bench.trained("train.epochs=1");
    // In blocks of 512 bytes or of 1024, as the shell has it: too few for a checkpoint, enough for the logs.
    let limited = |command: &str| {
        shell(
            &bench,
            &[],
            &format!("trap '' XFSZ; ulimit -f 64; exec $offshoot {command}"),
        )
    };
    let done = limited("pretrain recipe.toml --out small train.epochs=1");
    done.refuses(&["small/checkpoints/"]);
    assert!(
        !files(&bench.path("small"))
            .keys()
            .any(|name| name.contains("/step-") || name.contains("catalog"))
    );
    bench.run("pretrain --resume small").succeeds();
    for name in ["parent/model.safetensors", "metrics.jsonl", "catalog.json"] {
        assert!(
            fs::read(run.join(name)).unwrap() == fs::read(bench.path("small").join(name)).unwrap(),
            "{name}"
        );
    }
    limited("export run --size 24x3 -o out").refuses(&["out/model.safetensors"]);
    assert!(!bench.path("out/model.safetensors").exists() && !bench.path("out/config.json").exists());
    assert!(!files(&bench.path("out")).keys().any(|name| name.contains(".writing-")));
}
