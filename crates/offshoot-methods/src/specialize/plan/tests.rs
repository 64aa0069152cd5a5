//! Decisions against the paper's figures, and budgets that nothing fits.

use super::super::costs::Measured;
use super::*;

const BUDGETS: Budgets = Budgets {
    inference: 126_000_000,
    pretraining_hours: 600.0,
    specialization_hours: 130.0,
    tokens: 1_000_000,
    domains: 1,
};

fn chosen(budgets: &Budgets) -> Method {
    plan(budgets, &Costs::paper()).unwrap().chosen.method
}

fn of(plan: &Decision, method: Method) -> &Candidate {
    std::iter::once(&plan.chosen)
        .chain(plan.others.iter().map(|other| &other.0))
        .find(|c| c.method == method)
        .unwrap()
}

fn reason(plan: &Decision, method: Method) -> &str {
    &plan.others.iter().find(|other| other.0.method == method).unwrap().1
}

/// Equation 1 with 600 hours of pretraining for SLM-pn and 130 a domain for SLM-is, at 1, 7 and 50 domains (figure 6).
#[test]
fn totals_and_break_even_are_the_papers() {
    for (domains, pn, is) in [(1, "600.0", "130.0"), (7, "600.1", "910.0"), (50, "600.9", "6,500.0")] {
        let plan = plan(&Budgets { domains, ..BUDGETS }, &Costs::paper()).unwrap();
        let n = domains as f64;
        assert_eq!(told(of(&plan, Method::SlmPn).hours.total(n)), pn);
        assert_eq!(told(of(&plan, Method::SlmIs).hours.total(n)), is);
        let even = plan.break_even.unwrap();
        assert_eq!((even.shared, even.generic, even.each), (Method::SlmPn, 600.0, 130.0));
        assert!((even.domains - 4.616).abs() < 1e-3, "{even:?}");
    }
    let more = Budgets {
        pretraining_hours: 650.0,
        ..BUDGETS
    };
    let even = plan(&more, &Costs::paper()).unwrap().break_even.unwrap();
    assert!((even.domains - 5.0).abs() < 1e-2);
}

/// The decision diagram of section 1.
#[test]
fn decisions_are_those_of_the_papers_diagram() {
    let with = |change: &dyn Fn(&mut Budgets)| {
        let mut budgets = BUDGETS;
        change(&mut budgets);
        chosen(&budgets)
    };
    // Large inference: the large model, whatever the rest.
    for hours in [100.0, 400.0, 650.0, 5000.0] {
        for domains in [1, 50] {
            let large = |b: &mut Budgets| {
                (b.inference, b.pretraining_hours, b.domains) = (1_000_000_000, hours, domains);
            };
            assert_eq!(with(&large), Method::Llm);
        }
    }
    // Small inference, one domain with much for it: importance sampling, whatever could be shared.
    for hours in [0.0, 10.0, 100.0, 600.0, 1e6] {
        assert_eq!(with(&|b| b.pretraining_hours = hours), Method::SlmIs);
    }
    assert_eq!(with(&|b| b.specialization_hours = 100.0), Method::SlmIs);
    assert_eq!(with(&|b| b.tokens = 64_000_000), Method::SlmIs);
    // Up to the break-even number of domains, and then one pretraining for all.
    let decisions: Vec<Method> = (1..=8).map(|n| with(&|b| b.domains = n)).collect();
    assert_eq!(decisions[..4], [Method::SlmIs; 4]);
    assert_eq!(decisions[4..], [Method::SlmPn; 4]);
    // Little for a domain: projected experts, also for one domain; the mixture where table 8 has it ahead.
    assert_eq!(with(&|b| b.specialization_hours = 0.1), Method::SlmPn);
    assert_eq!(
        with(&|b| (b.specialization_hours, b.domains) = (0.1, 50)),
        Method::SlmPn
    );
    assert_eq!(
        with(&|b| (b.specialization_hours, b.tokens) = (0.5, 8_000_000)),
        Method::SlmMix
    );
    // The largest sets after the shortest pretraining: the plain small model.
    let plain = |b: &mut Budgets| (b.pretraining_hours, b.specialization_hours, b.tokens) = (100.0, 0.5, 64_000_000);
    assert_eq!(with(&plain), Method::Slm);
    // The large model is no longer one that has learnt, at a tenth of the paper's least.
    let short = |b: &mut Budgets| (b.inference, b.pretraining_hours) = (1_000_000_000, 10.0);
    assert_eq!(with(&short), Method::SlmIs);
}

#[test]
fn everyone_who_lost_is_told_why() {
    let many = plan(&Budgets { domains: 50, ..BUDGETS }, &Costs::paper()).unwrap();
    assert_eq!(many.others.len(), 5);
    let dear = reason(&many, Method::SlmIs);
    for part in [
        "130.0 hours for each of 50 domains",
        "6,500.0 in all",
        "slm-pn takes 600.9",
        "from 4.6 domains",
        "14.50",
    ] {
        assert!(dear.contains(part), "{part}: {dear}");
    }
    assert!(reason(&many, Method::Slm).contains("18.20 against 16.95 of slm-pn"));
    assert!(reason(&many, Method::SlmMix).contains("17.18 against 16.95"));
    assert!(reason(&many, Method::Llm).contains("771M parameters to use, more than 126M"));
    // The teacher's hours are the student's, too.
    assert!(reason(&many, Method::SlmD).contains("counting its teacher's, 600.0 hours"));
    let rich = plan(
        &Budgets {
            pretraining_hours: 5000.0,
            domains: 50,
            ..BUDGETS
        },
        &Costs::paper(),
    )
    .unwrap();
    assert_eq!(of(&rich, Method::SlmD).hours.pretraining, 1850.0);
    assert!(reason(&rich, Method::SlmD).contains("counting its teacher's, 1,850.0 hours"));
    let poor = plan(
        &Budgets {
            pretraining_hours: 300.0,
            ..BUDGETS
        },
        &Costs::paper(),
    )
    .unwrap();
    assert!(reason(&poor, Method::SlmD).contains("its teacher alone needs 276.0 hours"));
    let few = plan(
        &Budgets {
            specialization_hours: 10.0,
            ..BUDGETS
        },
        &Costs::paper(),
    )
    .unwrap();
    assert!(
        reason(&few, Method::SlmIs).contains("10.0 hours of pretraining a domain are too few against 600.0 shared")
    );
    let one = plan(
        &Budgets {
            tokens: 8_000_000,
            ..BUDGETS
        },
        &Costs::paper(),
    )
    .unwrap();
    assert!(reason(&one, Method::SlmPn).contains("figure 4"));
    assert!(one.notes.iter().any(|note| note.contains("no perplexity of slm-is")));
    let large = plan(
        &Budgets {
            inference: 1_000_000_000,
            ..BUDGETS
        },
        &Costs::paper(),
    )
    .unwrap();
    assert!(reason(&large, Method::SlmIs).contains("6th of its parameters"));
    assert!(reason(&large, Method::SlmPn).contains("16.95 against 14.50 of llm"));
}

#[test]
fn less_than_the_papers_tuning_is_allowed_down_to_one_pass() {
    let hours = |specialization_hours| {
        plan(
            &Budgets {
                specialization_hours,
                ..BUDGETS
            },
            &Costs::paper(),
        )
    };
    let short = hours(0.0034).unwrap();
    assert_eq!(
        (short.chosen.method, short.chosen.hours.specialization),
        (Method::SlmPn, 0.0034)
    );
    assert!(
        short
            .notes
            .iter()
            .any(|note| note.contains("20 % of the paper's tuning")),
        "{:?}",
        short.notes
    );
    assert!(hours(0.02).unwrap().notes.iter().all(|note| !note.contains("tuning")));
    assert!(hours(0.002).is_err());
}

#[test]
fn hours_stay_within_the_budgets() {
    for pretraining_hours in [0.0, 3.0, 250.0, 1e5] {
        for specialization_hours in [0.02, 1.0, 200.0] {
            for tokens in [10_000, 1_000_000, 20_000_000] {
                let budgets = Budgets {
                    pretraining_hours,
                    specialization_hours,
                    tokens,
                    ..BUDGETS
                };
                let mut costs = Costs::paper();
                costs.clustering = 0.3;
                let Ok(plan) = plan(&budgets, &costs) else { continue };
                for c in std::iter::once(&plan.chosen)
                    .chain(plan.others.iter().map(|o| &o.0))
                    .filter(|c| c.misfit.is_none())
                {
                    let (generic, each) = match c.method {
                        Method::SlmIs => (0.0, c.hours.clustering + c.hours.specialization),
                        _ => (c.hours.clustering + c.hours.pretraining, c.hours.specialization),
                    };
                    assert!(generic <= pretraining_hours * (1.0 + 1e-9), "{budgets:?}: {c:?}");
                    assert!(each <= specialization_hours * (1.0 + 1e-9), "{budgets:?}: {c:?}");
                }
            }
        }
    }
}

#[test]
fn what_nobody_has_is_refused_and_what_does_not_fit_says_what_would() {
    let costs = Costs::paper();
    let refused = |change: &dyn Fn(&mut Budgets)| {
        let mut budgets = BUDGETS;
        change(&mut budgets);
        let error = plan(&budgets, &costs).unwrap_err();
        (error.to_string(), error.hint().unwrap())
    };
    type Change<'a> = &'a dyn Fn(&mut Budgets);
    let cases: [(Change, &str); 9] = [
        (&|b| b.inference = 0, "--inference: 0"),
        (&|b| b.inference = u64::MAX, "--inference: 18,446"),
        (&|b| b.tokens = 0, "--tokens: 0"),
        (&|b| b.domains = 0, "--domains: 0"),
        (&|b| b.specialization_hours = 0.0, "--specialization-hours: 0 hours"),
        (&|b| b.specialization_hours = -1.0, "--specialization-hours: -1 hours"),
        (&|b| b.pretraining_hours = -1.0, "--pretraining-hours: -1 hours"),
        (&|b| b.pretraining_hours = f64::NAN, "--pretraining-hours: NaN"),
        (&|b| b.pretraining_hours = 1e300, "more than there are"),
    ];
    for (change, part) in cases {
        assert!(refused(change).0.contains(part), "{part}: {:?}", refused(change));
    }
    let (text, hint) = refused(&|b| b.inference = 50_000_000);
    assert!(text.contains("no method fits") && text.contains("slm-pn  126M parameters to use, more than 50M"));
    assert!(hint.contains("--inference 126M"));
    let (text, hint) = refused(&|b| b.specialization_hours = 0.001);
    assert!(
        text.contains("pass of tuning over 1M tokens takes 0.00220 hours, and 0.00100 of a domain are given"),
        "{text}"
    );
    assert!(hint.contains("--specialization-hours"));
}

/// Two cores at 40 GFLOP/s, for a model of 2M parameters: the same decisions, in hours of this machine.
#[test]
fn a_slow_machine_with_a_small_model_gets_the_same_decisions() {
    let measured = Measured {
        machine: "two cores".into(),
        parameters: 5_000_000,
        training_flops: 40e9,
        forward_flops: 45e9,
    };
    let costs = Costs::calibrated(&measured, 2_000_000, 12_000_000);
    let budgets = Budgets {
        inference: 2_000_000,
        pretraining_hours: 10.0,
        specialization_hours: 8.0,
        tokens: 100_000,
        domains: 1,
    };
    let one = plan(&budgets, &costs).unwrap();
    assert_eq!(one.chosen.method, Method::SlmIs);
    assert!(one.chosen.hours.clustering > 0.0 && one.notes.iter().any(|n| n.contains("ranked")));
    let many = plan(&Budgets { domains: 50, ..budgets }, &costs).unwrap();
    assert_eq!(many.chosen.method, Method::SlmPn, "{many:?}");
    let hurried = plan(
        &Budgets {
            pretraining_hours: 0.1,
            specialization_hours: 0.2,
            ..budgets
        },
        &costs,
    )
    .unwrap();
    assert!(
        hurried
            .notes
            .iter()
            .any(|n| n.contains("little is learnt") && n.contains("would do for"))
    );
    let large = plan(
        &Budgets {
            inference: 12_000_000,
            pretraining_hours: 100.0,
            ..budgets
        },
        &costs,
    )
    .unwrap();
    assert_eq!(large.chosen.method, Method::Llm);
}

#[test]
fn numbers_are_told_short() {
    assert_eq!(
        ["600.9", "6,500.0", "0.0170", "0", "12.3"],
        [600.85, 6500.0, 0.017, 0.0, 12.34]
            .map(told)
            .each_ref()
            .map(String::as_str)
    );
    assert_eq!(
        ["126M", "1.42G", "8", "999k", "1M"],
        [126_000_000, 1_422_000_000, 8, 999_000, 1_000_000]
            .map(count)
            .each_ref()
            .map(String::as_str)
    );
}
