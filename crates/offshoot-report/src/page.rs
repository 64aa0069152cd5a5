//! The page: its sections in order, and the template that lays them out.

use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use offshoot_family::Catalog;
use offshoot_family::catalog::{DataRef, ImagesRef, TextRef};
use offshoot_family::quantity::{grouped, proportion};
use serde::Serialize;

use crate::curves::{Panel, curves};
use crate::figures::{Family, Figure, Picked, Swatch, Tile};
use crate::plan::PlanFacts;
use crate::provenance::{Source, sources};
use crate::samples::{Sample, latest};
use crate::score::{Cost, Score, axes, front, intact, training_cost};
use crate::spending::spending;
use crate::table::{Table, table};
use crate::{ReportError, RunFacts};

#[derive(Serialize)]
struct Page<'a> {
    css: &'static str,
    js: &'static str,
    title: &'a str,
    lead: String,
    tiles: Vec<Tile>,
    picked: Option<Picked<'a>>,
    scatters: Vec<Figure>,
    shades: Vec<Swatch>,
    shade_axis: String,
    map: Figure,
    map_title: String,
    unscored: String,
    lower: bool,
    spending: Option<Figure>,
    panels: Vec<Panel>,
    panels_left_out: usize,
    samples: Vec<Sample<'a>>,
    table: Table,
    notes: &'a [(String, String)],
    facts: Vec<(&'static str, String)>,
    recipe: &'a str,
    sources: Vec<Source>,
    mixed: bool,
    version: &'a str,
}

/// The templates, compiled once: they do not change.
fn environment() -> Result<&'static Environment<'static>, minijinja::Error> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    // The name ends in .html: everything that is not marked safe is escaped.
    environment.add_template("page.html", include_str!("assets/page.html"))?;
    environment.add_template("plan.html", include_str!("assets/plan.html"))?;
    Ok(ENVIRONMENT.get_or_init(|| environment))
}

/// Makes the page.
pub(crate) fn render(catalog: &Catalog, run: &RunFacts) -> Result<String, ReportError> {
    let score = Score::of(catalog);
    let fronts = Cost::ALL.map(|cost| front(catalog, &score, cost));
    let axes = axes(catalog);
    let picked = run.picked.as_ref().map(|(id, _)| id.as_str());
    let family = Family {
        catalog,
        score: &score,
        fronts: &fronts,
        axes: &axes,
        intact: intact(catalog),
        picked,
    };
    let spending = spending(catalog, &score, &run.metrics);
    let curves = curves(catalog, &run.metrics, spending.is_some());
    let names: Vec<String> = axes.iter().map(|axis| axis.name.clone()).collect();
    let (shades, shade_axis) = family.swatches();
    let (map_title, map) = family.map();
    let unscored = match score.split {
        Some(_) => String::new(),
        None => format!(
            "No child has been scored by {} yet, so there is nothing to draw; offshoot eval {} scores them.",
            score.name,
            score.metric.split(['@', '/']).next().unwrap_or_default()
        ),
    };
    let sources = sources(catalog);
    let mixed = family.mixed(&sources);
    let page = Page {
        css: include_str!("assets/page.css"),
        js: include_str!("assets/page.js"),
        title: if run.title.trim().is_empty() {
            "A family of models"
        } else {
            &run.title
        },
        lead: family.lead(),
        tiles: family.tiles(),
        picked: run.picked.as_ref().map(|(id, why)| family.picked(id, why)),
        scatters: Cost::ALL
            .into_iter()
            .zip(&fronts)
            .map(|(cost, front)| family.scatter(cost, front))
            .collect(),
        shades,
        shade_axis,
        map,
        map_title,
        unscored,
        lower: score.lower,
        spending,
        panels: curves.panels,
        panels_left_out: curves.left_out,
        samples: latest(&run.samples),
        table: table(catalog, &score, &names, &fronts, picked),
        notes: &run.notes,
        facts: facts(catalog),
        recipe: &run.recipe_toml,
        sources,
        mixed,
        version: &catalog.version,
    };
    Ok(environment()?
        .get_template("page.html")?
        .render(Value::from(Serde(&page)))?)
}

/// Makes the page of a plan.
pub(crate) fn render_plan(plan: &PlanFacts) -> Result<String, ReportError> {
    #[derive(Serialize)]
    struct Page<'a> {
        css: &'static str,
        plan: &'a PlanFacts,
        chosen: &'a str,
        figures: Vec<Figure>,
    }
    let page = Page {
        css: include_str!("assets/page.css"),
        plan,
        chosen: plan.methods.first().map_or("no method", |method| &method.name),
        figures: plan.figures(),
    };
    Ok(environment()?
        .get_template("plan.html")?
        .render(Value::from(Serde(&page)))?)
}

/// Images, and how they become a network's input.
fn image_facts(data: &ImagesRef, facts: &mut Vec<(&'static str, String)>) {
    if data.path.is_empty() {
        facts.push(("Data", "none".into()));
    } else {
        let held_out = match &data.test_path {
            Some(path) => format!(
                "{} val, split seed {}; all of {path} to test",
                data.val, data.split_seed
            ),
            None => format!("{} val, {} test, split seed {}", data.val, data.test, data.split_seed),
        };
        facts.extend([
            ("Data", data.path.clone()),
            ("Data fingerprint", data.fingerprint.clone()),
            ("Labels", if data.labels { "used" } else { "not used" }.into()),
            ("Held out", held_out),
        ]);
    }
    let input = &data.preprocessing;
    let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(", ");
    let colour = if input.channels == 1 { "grey" } else { "colour" };
    let mut how = format!("resize {}, crop {}, {colour}", input.resize, input.crop);
    if !input.mean.is_empty() {
        how.push_str(&format!(", mean {}, std {}", list(&input.mean), list(&input.std)));
    }
    facts.push(("Preprocessing", how));
}

/// Text, and how it becomes a network's input.
fn text_facts(data: &TextRef, facts: &mut Vec<(&'static str, String)>) {
    if data.corpus.is_empty() {
        facts.push(("Data", "none".into()));
    } else {
        let domains: Vec<String> = data
            .domains
            .iter()
            .map(|d| format!("{} ({})", d.name, d.path))
            .collect();
        facts.extend([
            ("Domains", domains.join(", ")),
            ("Data fingerprint", data.fingerprint.clone()),
            (
                "Held out",
                format!(
                    "{} val, {} test of the documents, split seed {}",
                    data.val, data.test, data.split_seed
                ),
            ),
        ]);
    }
    facts.push(("Tokenizer (blake3)", data.tokenizer.clone()));
    facts.push(("Window", format!("{} tokens", data.context)));
}

/// What stands in the catalog about the family as a whole.
fn facts(catalog: &Catalog) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("Method", catalog.method.clone()),
        ("Seed", catalog.seed.to_string()),
        ("Parent", catalog.parent.path.clone()),
        ("Parent weights (blake3)", catalog.parent.hash.clone()),
    ];
    match &catalog.data {
        DataRef::Images(images) => image_facts(images, &mut facts),
        DataRef::Text(text) => text_facts(text, &mut facts),
    }
    if let Some(cost) = training_cost(catalog) {
        facts.push((
            "Training",
            format!(
                "{} steps, {} predicted tokens, {} FLOP",
                grouped(cost.steps),
                grouped(cost.tokens),
                proportion(cost.flops, 4)
            ),
        ));
    }
    facts.push((
        "Catalog",
        format!("format {}, written by offshoot {}", catalog.format, catalog.version),
    ));
    facts
}
