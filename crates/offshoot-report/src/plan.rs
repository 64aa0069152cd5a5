//! A plan's pictures: what each method costs over the number of domains, and what the paper says it is worth over pretraining.

use serde::Serialize;

use crate::curves::MOST_SERIES;
use crate::figures::Figure;
use crate::lines::{Line, Lines, plain};
use crate::units::Unit;

/// Domains that the chart reaches at least.
const DOMAINS: f64 = 50.0;
/// Points of a line.
const POINTS: usize = 48;

/// What the page of a plan tells. Nothing is computed from it but totals over domains, `generic + N * each`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PlanFacts {
    /// The decision, in a sentence or two.
    pub lead: String,
    /// Domains that are planned for.
    pub domains: u64,
    /// Domains from which pretraining for each costs more than for all, where that is known.
    pub break_even: Option<f64>,
    /// The same in words.
    pub even: Option<String>,
    /// What an hour is of.
    pub unit: String,
    /// Budgets and other conditions, as names and texts.
    pub budgets: Vec<(String, String)>,
    /// Headings of what [`MethodFacts::cells`] hold.
    pub columns: Vec<String>,
    /// The methods; the first is the one to take.
    pub methods: Vec<MethodFacts>,
    /// What should be known with it.
    pub notes: Vec<String>,
    /// Version of offshoot that made it.
    pub version: String,
}

/// One method of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MethodFacts {
    /// Its name.
    pub name: String,
    /// What it is.
    pub words: String,
    /// Its row of the table.
    pub cells: Vec<String>,
    /// Why it lost; empty for the one to take.
    pub reason: String,
    /// Hours once, for all domains.
    pub generic: f64,
    /// Hours for each domain.
    pub each: f64,
    /// Whether it is within the budgets.
    pub fits: bool,
    /// Perplexities over hours of pretraining, where they are known for these hours.
    pub perplexities: Vec<(f64, f64)>,
    /// Hours and perplexity of the plan itself, where they are known.
    pub promised: Option<(f64, f64)>,
}

impl PlanFacts {
    /// The charts.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        [self.totals(), self.perplexities()].into_iter().flatten().collect()
    }

    /// Methods that can be drawn, with the class of their colour: by name, so that it does not hang on the decision.
    fn drawn(&self) -> Vec<(usize, &MethodFacts)> {
        let mut drawn: Vec<&MethodFacts> = self.methods.iter().collect();
        drawn.sort_by(|a, b| a.name.cmp(&b.name));
        drawn.into_iter().take(MOST_SERIES).enumerate().collect()
    }

    fn totals(&self) -> Option<Figure> {
        let domains = self.domains.max(1) as f64;
        let most = [
            DOMAINS,
            4.0 * domains,
            4.0 * self.break_even.filter(|n| n.is_finite()).unwrap_or(0.0),
        ];
        let most = most.into_iter().fold(0.0, f64::max).min(1e18);
        let places: Vec<f64> = (0..=POINTS).map(|i| most.powf(i as f64 / POINTS as f64)).collect();
        let lines: Vec<Line> = self
            .drawn()
            .into_iter()
            .filter(|(_, method)| method.fits && (method.generic + method.each).is_finite())
            .map(|(colour, method)| {
                let total = |n: f64| method.generic + n * method.each;
                let tip = format!(
                    "{} · {} hours over {} domains: {} once and {} for each",
                    method.name,
                    plain(total(domains)),
                    plain(domains),
                    plain(method.generic),
                    plain(method.each)
                );
                Line {
                    name: &method.name,
                    colour,
                    points: places.iter().map(|&n| (n, total(n))).collect(),
                    told: vec![((domains, total(domains)), tip)],
                }
            })
            .collect();
        if lines.is_empty() {
            return None;
        }
        let mut marks = vec![(domains, format!("planned: {}", plain(domains)))];
        marks.extend(self.break_even.map(|n| (n, format!("break-even: {n:.1}"))));
        let title = "Total hours over the number of domains";
        let names: Vec<&str> = lines.iter().map(|line| line.name).collect();
        let y_name = self.unit.clone();
        Some(figure(
            &Lines {
                id: "totals",
                title,
                description: &format!(
                    "{title}, of {}: hours once plus hours for each domain.",
                    names.join(", ")
                ),
                x: (Unit::Count, "domains"),
                y: (Unit::Count, &y_name),
                lines: &lines,
                marks: &marks,
            },
            "Hours before the domains are known, once, and hours for each of them: C_total(N) = C_generic + N C_spec (equation 1 of the paper). \
             Methods that the budgets rule out are not drawn.",
        ))
    }

    fn perplexities(&self) -> Option<Figure> {
        let lines: Vec<Line> = self
            .drawn()
            .into_iter()
            .filter(|(_, method)| method.perplexities.len() > 1 || method.promised.is_some())
            .map(|(colour, method)| {
                let promised = method.promised.map(|(hours, value)| {
                    let tip = format!(
                        "{} · about {} after {} hours of pretraining",
                        method.name,
                        Unit::Perplexity.with_unit(value),
                        plain(hours)
                    );
                    ((hours, value), tip)
                });
                let alone = method.promised.filter(|_| method.perplexities.is_empty());
                Line {
                    name: &method.name,
                    colour,
                    points: method.perplexities.iter().copied().chain(alone).collect(),
                    told: promised.into_iter().collect(),
                }
            })
            .collect();
        if lines.is_empty() {
            return None;
        }
        let title = "The paper's perplexity over hours of pretraining";
        let names: Vec<&str> = lines.iter().map(|line| line.name).collect();
        Some(figure(
            &Lines {
                id: "perplexities",
                title,
                description: &format!("{title}, after tuning on a domain, of {}.", names.join(", ")),
                x: (
                    Unit::Count,
                    "hours of pretraining, for all domains or, of slm-is, for each",
                ),
                y: (Unit::Perplexity, "perplexity, less is better"),
                lines: &lines,
                marks: &[],
            },
            "After tuning on this much text of a domain. The numbers are the paper's, of its models on its data (tables 4 and 8, on straight lines \
             between them); nothing of this was measured here. A dot is a method under these budgets; slm-is has no table, only a bound.",
        ))
    }
}

fn figure(lines: &Lines<'_>, caption: &str) -> Figure {
    Figure {
        title: lines.title.to_owned(),
        wide: vec![lines.draw("wide", (1040.0, 380.0))],
        narrow: vec![lines.draw("narrow", (340.0, 300.0))],
        caption: caption.into(),
        ..Figure::default()
    }
}
