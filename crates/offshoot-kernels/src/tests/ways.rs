//! Results depend neither on the number of threads nor on the vector instructions.

use std::io::Write;
use std::process::Command;

use super::*;
use crate::vector::arch;
use crate::{PATH_VARIABLE, Path, with_path};

#[test]
fn the_number_of_threads_changes_no_bit() {
    let pools = [1, 2, 3, 5].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for case in large().iter().chain(&all()) {
        let expected = pools[0].install(|| case.bits());
        for pool in &pools[1..] {
            let same = pool.install(|| case.bits()) == expected;
            assert!(same, "{} on {} threads", case.name, pool.current_num_threads());
        }
    }
}

/// Products too: the `gemm` crate chooses its instructions by itself.
#[test]
fn the_vector_instructions_change_no_bit() {
    for case in large().iter().chain(&all()) {
        let expected = with_path(Path::Plain, || case.bits());
        for path in Path::ALL.into_iter().filter(|path| path.is_available()) {
            let same = with_path(path, || case.bits()) == expected;
            assert!(same, "{} on {}", case.name, path.name());
        }
    }
}

/// What the test below runs in a process of its own.
#[test]
#[ignore = "run by the test of the variable"]
fn child_names_its_path() {
    let chosen = match Path::chosen() {
        Ok(path) => path.name().to_owned(),
        Err(error) => error,
    };
    let used = Path::ALL
        .into_iter()
        .find(|path| with_path(*path, || format!("{:?}", arch())) == format!("{:?}", arch()));
    writeln!(std::io::stdout(), "chosen: {chosen}; used: {}.", used.unwrap().name()).unwrap();
}

#[test]
fn the_variable_chooses_the_path_of_a_process() {
    let asked = |name: Option<&str>| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "tests::ways::child_names_its_path",
            "--ignored",
            "--nocapture",
        ]);
        match name {
            Some(name) => child.env(PATH_VARIABLE, name),
            None => child.env_remove(PATH_VARIABLE),
        };
        let output = child.output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let line = &text[text.find("chosen: ").unwrap()..];
        line[..=line.find('.').unwrap()].to_owned()
    };
    let available: Vec<_> = Path::ALL
        .into_iter()
        .filter(|path| path.is_available())
        .map(Path::name)
        .collect();
    for name in &available {
        assert_eq!(asked(Some(name)), format!("chosen: {name}; used: {name}."));
    }
    assert_eq!(asked(None), format!("chosen: {0}; used: {0}.", available[0]));
    for wrong in ["avx3", "", "AVX2"] {
        let names = available.join(", ");
        let expected = format!("chosen: {PATH_VARIABLE}={wrong}: this CPU has {names}; used: plain.");
        assert_eq!(asked(Some(wrong)), expected);
    }
}
