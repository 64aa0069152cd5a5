//! What the page of a plan promises: both pictures, every method, escaped, the same every time, and calm about odd numbers.

use offshoot_report::{MethodFacts, PlanFacts, render_plan};

fn method(name: &str, generic: f64, each: f64) -> MethodFacts {
    MethodFacts {
        name: name.into(),
        words: format!("what {name} is"),
        cells: vec![format!("{generic} once")],
        reason: format!("why not {name}"),
        generic,
        each,
        fits: true,
        perplexities: vec![(100.0, 18.57), (200.0, 17.76), (600.0, 16.95)],
        promised: Some((600.0, 16.95)),
    }
}

fn facts() -> PlanFacts {
    let mut sampled = method("slm-is", 0.0, 130.0);
    (sampled.perplexities, sampled.promised) = (Vec::new(), Some((130.0, 14.5)));
    let mut chosen = method("slm-pn", 600.0, 0.017);
    chosen.reason.clear();
    let mut large = method("llm", 650.0, 0.12);
    large.fits = false;
    PlanFacts {
        lead: "slm-pn <takes> 600.9 hours".into(),
        domains: 50,
        break_even: Some(4.616),
        even: Some("break-even at 4.6 domains".into()),
        unit: "GPU-hours of an A100".into(),
        budgets: vec![("Inference".into(), "126M parameters".into())],
        columns: vec!["once".into()],
        methods: vec![chosen, sampled, large],
        notes: vec!["not measured here".into()],
        version: "0".into(),
    }
}

#[test]
fn both_pictures_and_every_method_are_there_and_the_network_is_not() {
    let page = render_plan(&facts()).unwrap();
    assert_eq!(page, render_plan(&facts()).unwrap());
    assert_eq!(page.matches("<svg ").count(), 4, "two pictures, wide and narrow");
    for part in [
        "slm-pn &lt;takes&gt; 600.9 hours",
        "break-even: 4.6",
        "planned: 50",
        "GPU-hours of an A100 (log scale)",
        "slm-is · 6500 hours over 50 domains: 0 once and 130 for each",
        "slm-pn · about 16.95 after 600 hours of pretraining",
        "why not llm",
        "the one to take",
        "not measured here",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(
        !page.contains("llm · 656 hours"),
        "what the budgets rule out is not drawn over domains"
    );
    assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("@import"));
}

#[test]
fn odd_plans_make_no_odd_pages() {
    for (generic, each) in [
        (f64::NAN, 1.0),
        (f64::INFINITY, 1.0),
        (0.0, 0.0),
        (1e300, 1e300),
        (-1.0, 0.5),
    ] {
        for domains in [0, 1, u64::MAX] {
            for break_even in [None, Some(f64::NAN), Some(f64::INFINITY), Some(1e-9)] {
                let mut plan = facts();
                (plan.domains, plan.break_even) = (domains, break_even);
                (plan.methods[0].generic, plan.methods[0].each) = (generic, each);
                plan.methods[0].promised = Some((generic, each));
                let page = render_plan(&plan).unwrap();
                let drawn: String = page
                    .split("points=\"")
                    .skip(1)
                    .map(|rest| rest.split('"').next().unwrap())
                    .collect();
                assert!(
                    !drawn.contains("NaN") && !drawn.contains("inf"),
                    "{generic} {each} {domains} {break_even:?}"
                );
            }
        }
    }
    let page = render_plan(&PlanFacts::default()).unwrap();
    assert!(page.contains("no method") && !page.contains("<svg"));
}
