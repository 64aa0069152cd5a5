//! `offshoot plan`: the paper's decisions from its costs, costs of this machine and of files, pages, and what it refuses.

use std::fs;

use serde_json::Value;

use crate::support::{Done, Workbench};

/// The paper's case: 126M parameters to use, 130 GPU-hours a domain, 600 before, a million tokens.
const PAPER: &str =
    "plan --inference 126M --specialization-hours 130 --pretraining-hours 600 --tokens 1M --costs paper";

fn planned(bench: &Workbench, more: &str) -> Value {
    bench.run(&format!("{PAPER} --json {more}")).succeeds().json()
}

fn other<'a>(plan: &'a Value, method: &str) -> &'a Value {
    let others = plan["others"].as_array().unwrap();
    others.iter().find(|other| other["method"] == method).unwrap()
}

#[test]
fn the_papers_costs_give_the_papers_decisions() {
    let bench = Workbench::bare();
    let one = planned(&bench, "--domains 1");
    assert_eq!(
        (&one["method"], one["hours"]["total"].as_f64()),
        (&"slm-is".into(), Some(130.0))
    );
    assert!((one["break_even_domains"].as_f64().unwrap() - 4.6).abs() < 0.05);
    let seven = planned(&bench, "--domains 7");
    assert_eq!(seven["method"], "slm-pn");
    let many = planned(&bench, "--domains 50");
    assert_eq!(many["method"], "slm-pn");
    assert!((many["hours"]["total"].as_f64().unwrap() - 600.9).abs() < 0.1);
    let sampled = other(&many, "slm-is");
    assert_eq!(
        (sampled["hours"]["total"].as_f64(), sampled["fits"].as_bool()),
        (Some(6500.0), Some(true))
    );
    assert!(
        sampled["reason"]
            .as_str()
            .unwrap()
            .contains("dearer from 4.6 domains on")
    );
    assert_eq!(many["parameters"]["pretraining"], 1_422_000_000_u64);
    assert_eq!(many["others"].as_array().unwrap().len(), 5);

    // The last of two equal options counts nowhere: each case is written out.
    let json = |words: &str| {
        bench
            .run(&format!("plan {words} --costs paper --json"))
            .succeeds()
            .json()
    };
    let large = json("--inference 1B --specialization-hours 1 --pretraining-hours 650 --tokens 1M --domains 9");
    assert_eq!(large["method"], "llm");
    let short = json("--inference 126M --specialization-hours 2min --pretraining-hours 27d --tokens 1M --domains 9");
    assert_eq!(
        (&short["method"], short["budgets"]["pretraining_hours"].as_f64()),
        (&"slm-pn".into(), Some(648.0))
    );
    let taught = json("--inference 126M --specialization-hours 1 --pretraining-hours 2000 --tokens 1M");
    assert_eq!(other(&taught, "slm-d")["hours"]["pretraining"].as_f64(), Some(1850.0));
}

#[test]
fn a_person_is_told_hours_break_even_and_why_not_the_others() {
    let bench = Workbench::bare();
    let told = bench.run(&format!("{PAPER} --domains 50 -o plan/page.html")).succeeds();
    for part in [
        "slm-pn: small experts projected",
        "1.42G parameters in pretraining, 126M to use",
        "600.9 hours over 50 domains",
        "break-even at 4.6 domains",
        "6,500.0",
        "why not the others:\n   slm-is  130.0 hours for each of 50 domains",
        "771M parameters to use, more than 126M",
        "not measured here",
    ] {
        assert!(told.out.contains(part), "{part}:\n{}", told.out);
    }
    let page = fs::read_to_string(bench.path("plan/page.html")).unwrap();
    for part in [
        "Total hours over the number of domains",
        "break-even: 4.6",
        "paper&#x27;s perplexity",
        "slm-mix",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(
        !page.contains("http://")
            || page.matches("http://").count() == page.matches("http://www.w3.org/2000/svg").count()
    );
}

#[test]
fn this_machine_is_timed_and_its_costs_can_be_kept() {
    let bench = Workbench::bare();
    let budgets =
        "plan --inference 1M --specialization-hours 9 --pretraining-hours 20 --tokens 100k --domains 3 --threads 2";
    let first = bench
        .run(&format!("{budgets} --json --save-costs costs.toml"))
        .succeeds();
    assert!(first.err.contains("timing training steps"), "{}", first.err);
    let measured = first.json();
    let rate = measured["costs"]["small"]["training"].as_f64().unwrap();
    assert!(rate > 1e-3 && rate < 1e6, "{rate}");
    assert!(
        measured["costs"]["source"]
            .as_str()
            .unwrap()
            .contains("in proportion to floating-point operations")
    );
    // What is kept decides the same, and nothing is timed for it.
    let again = bench.run(&format!("{budgets} --json --costs costs.toml")).succeeds();
    assert_eq!((again.err.as_str(), again.json()), ("", measured));
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let bench = Workbench::bare();
    let given = |inference: &str, each: &str, before: &str, tokens: &str, more: &str| -> Done {
        bench.run(&format!(
            "plan --inference {inference} --specialization-hours {each} --pretraining-hours {before} --tokens {tokens} {more}"
        ))
    };
    let paper = "--costs paper";
    given("five", "1", "1", "1M", paper).refuses_with_hint(&["`five` is not a count"], &["5M"]);
    given("0", "1", "1", "1M", paper).refuses_with_hint(&["--inference: 0"], &["126M"]);
    given("126M", "1", "1", "0", paper).refuses_with_hint(&["--tokens: 0"], &["1M"]);
    given("126M", "1", "1", "1e400", paper).refuses(&["`1e400`", "more than"]);
    given("126M", "-1", "1", "1M", paper).refuses_with_hint(&["`-1` is not a number of hours", "negative"], &["30min"]);
    given("126M", "soon", "1", "1M", paper).refuses(&["`soon` is not a number of hours"]);
    given("126M", "0", "1", "1M", paper).refuses_with_hint(&["--specialization-hours: 0"], &["tunes on its text"]);
    given("126M", "1", "1e20", "1M", paper).refuses(&["--pretraining-hours", "more than there are"]);
    given("126M", "1", "1", "1M", "--costs paper --domains 0").refuses(&["--domains: 0"]);
    given("126M", "1", "1", "1M", "--costs paper --small 5M").refuses_with_hint(&["--small"], &["calibrate"]);
    given("50M", "1", "1", "1M", paper)
        .refuses_with_hint(&["no method fits", "slm-pn  126M parameters"], &["--inference 126M"]);
    given("126M", "1s", "1", "1M", paper)
        .refuses_with_hint(&["no method fits", "one pass"], &["--specialization-hours"]);
    given("500", "1", "1", "1M", "").refuses(&["500 parameters are no decoder"]);
    given("5M", "1", "1", "1M", "--large 4M").refuses_with_hint(&["--large 4,000,000"], &["--large"]);

    given("126M", "1", "1", "1M", "--costs nowhere.toml").refuses(&["nowhere.toml"]);
    bench.write(
        "costs.toml",
        "source = \"us\"\nunit = \"hours\"\nclustering = 0.0\n[small]\nparameters = 5\n",
    );
    given("126M", "1", "1", "1M", "--costs costs.toml").refuses_with_hint(
        &[
            "costs.toml",
            "11 keys are missing: small.training, small.inference, large.parameters",
            "mixture.training",
        ],
        &["--save-costs"],
    );
    bench.write("costs.toml", "not a table");
    given("126M", "1", "1", "1M", "--costs costs.toml").refuses(&["costs.toml: not TOML"]);
    bench.write("costs.toml", vec![b'#'; 100_000]);
    given("126M", "1", "1", "1M", "--costs costs.toml").refuses(&["100000 bytes"]);
    assert!(!bench.path("page.html").exists());
}
