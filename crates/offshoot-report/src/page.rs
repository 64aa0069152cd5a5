//! The page: what each section says, and the template that lays it out.

use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use offshoot_family::{Architecture, Axis, Catalog, Child};
use serde::Serialize;

use crate::chart::extent;
use crate::curves::{Panel, curves};
use crate::heat::{Cell, Heat, legend};
use crate::provenance::{Source, sources};
use crate::scatter::{Dot, Scatter};
use crate::score::{Cost, Score, axes, finite_latency, front, intact};
use crate::table::{Table, table};
use crate::units::{Unit, counted, grouped};
use crate::{ReportError, RunFacts};

/// Most tables of a heat map, one per size of the third axis.
const MOST_FACETS: usize = 12;

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
    panels: Vec<Panel>,
    panels_left_out: usize,
    table: Table,
    notes: &'a [(String, String)],
    facts: Vec<(&'static str, String)>,
    recipe: &'a str,
    sources: Vec<Source>,
    mixed: bool,
    version: &'a str,
}

#[derive(Serialize)]
struct Tile {
    name: String,
    value: String,
    detail: String,
    exact: String,
}

#[derive(Serialize)]
struct Picked<'a> {
    id: &'a str,
    why: &'a str,
    facts: String,
    anchor: Option<String>,
}

/// A chart at two sizes, or the sentence that stands in its place.
#[derive(Default, Serialize)]
struct Figure {
    title: String,
    wide: Vec<String>,
    narrow: Vec<String>,
    legend: String,
    caption: String,
    absent: String,
}

#[derive(Serialize)]
struct Swatch {
    class: String,
    name: String,
}

/// The only template, compiled once: it does not change.
fn environment() -> Result<&'static Environment<'static>, minijinja::Error> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    // The name ends in .html: everything that is not marked safe is escaped.
    environment.add_template("page.html", include_str!("assets/page.html"))?;
    Ok(ENVIRONMENT.get_or_init(|| environment))
}

/// Makes the page.
pub(crate) fn render(catalog: &Catalog, run: &RunFacts) -> Result<String, ReportError> {
    let score = Score::of(catalog);
    let fronts = Cost::ALL.map(|cost| front(catalog, &score, cost));
    let axes = axes(catalog);
    let picked = run.picked.as_ref().map(|(id, _)| id.as_str());
    let family = Family { catalog, score: &score, fronts: &fronts, axes: &axes, intact: intact(catalog), picked };
    let curves = curves(&run.metrics);
    let names: Vec<String> = axes.iter().map(|axis| axis.name.clone()).collect();
    let (shades, shade_axis) = family.swatches();
    let (map_title, map) = family.map();
    let sources = sources(catalog);
    let mixed = family.mixed(&sources);
    let page = Page {
        css: include_str!("assets/page.css"),
        js: include_str!("assets/page.js"),
        title: if run.title.trim().is_empty() { "A family of models" } else { &run.title },
        lead: family.lead(),
        tiles: family.tiles(),
        picked: run.picked.as_ref().map(|(id, why)| family.picked(id, why)),
        scatters: Cost::ALL.into_iter().zip(&fronts).map(|(cost, front)| family.scatter(cost, front)).collect(),
        shades,
        shade_axis,
        map,
        map_title,
        panels: curves.panels,
        panels_left_out: curves.left_out,
        table: table(catalog, &score, &names, &fronts, picked),
        notes: &run.notes,
        facts: facts(catalog),
        recipe: &run.recipe_toml,
        sources,
        mixed,
        version: &catalog.version,
    };
    Ok(environment()?.get_template("page.html")?.render(Value::from(Serde(&page)))?)
}

/// What stands in the catalog about the family as a whole.
fn facts(catalog: &Catalog) -> Vec<(&'static str, String)> {
    let data = &catalog.data;
    let input = &data.preprocessing;
    let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(", ");
    let mut facts = vec![
        ("Method", catalog.method.clone()),
        ("Seed", catalog.seed.to_string()),
        ("Parent", catalog.parent.path.clone()),
        ("Parent weights (blake3)", catalog.parent.hash.clone()),
        ("Data", data.path.clone()),
        ("Data fingerprint", data.fingerprint.clone()),
        ("Labels", if data.labels { "used" } else { "not used" }.into()),
        ("Held out", format!("{} val, {} test, split seed {}", data.val, data.test, data.split_seed)),
    ];
    let colour = if input.channels == 1 { "grey" } else { "colour" };
    let mut how = format!("resize {}, crop {}, {colour}", input.resize, input.crop);
    if !input.mean.is_empty() {
        how.push_str(&format!(", mean {}, std {}", list(&input.mean), list(&input.std)));
    }
    facts.push(("Preprocessing", how));
    facts.push(("Catalog", format!("format {}, written by offshoot {}", catalog.format, catalog.version)));
    facts
}

/// A catalog with what the sections share.
struct Family<'a> {
    catalog: &'a Catalog,
    score: &'a Score<'a>,
    fronts: &'a [Vec<usize>; 3],
    axes: &'a [Axis],
    intact: Option<usize>,
    picked: Option<&'a str>,
}

impl Family<'_> {
    fn children(&self) -> &[Child] {
        &self.catalog.children
    }

    /// How many children have a value.
    fn count(&self, value: impl Fn(&Child) -> Option<f64>) -> usize {
        self.children().iter().filter(|child| value(child).is_some()).count()
    }

    /// The one sentence at the top, with the real numbers.
    fn lead(&self) -> String {
        let n = self.children().len();
        let parent = match &self.catalog.parent.architecture {
            Architecture::Vit(vit) => format!("a vision transformer of width {} and depth {}", vit.width, vit.depth),
            _ => "a network".into(),
        };
        let size = self.intact.map(|i| format!(" ({} parameters)", Unit::Count.bare(self.children()[i].parameters as f64)));
        let labels = if self.catalog.data.labels { "with" } else { "without" };
        let (was, it) = if n == 1 { ("was", "it") } else { ("were", "they") };
        let scored = self.count(|child| self.score.value(child));
        let scores = match self.score.split {
            None => format!("their score, {}, has not been measured", self.score.name),
            Some(split) if scored == n => format!("{it} {was} scored by {} on the {split} split", self.score.name),
            Some(split) => {
                format!("{} of them scored by {} on the {split} split", grouped(scored as u64), self.score.name)
            }
        };
        format!(
            "One parent, {parent}{}, was trained once on {} {labels} labels; {} {was} derived from it by the {} method, and {scores}.",
            size.unwrap_or_default(),
            self.catalog.data.path,
            counted(n, "child", "children"),
            self.catalog.method,
        )
    }

    fn tiles(&self) -> Vec<Tile> {
        let mut tiles = Vec::new();
        let n = self.children().len();
        let timed = self.count(finite_latency);
        let scored = self.count(|child| self.score.value(child));
        let detail = format!("{} scored, {} timed", grouped(scored as u64), grouped(timed as u64));
        tiles.push(Tile { name: "Children".into(), value: grouped(n as u64), detail, exact: String::new() });
        let values = |value: &dyn Fn(&Child) -> Option<f64>| extent(self.children().iter().filter_map(value));
        let mut range = |name: &str, unit: Unit, ends: Option<(f64, f64)>, detail: String| {
            let (value, exact) = match ends {
                None => ("not measured".into(), String::new()),
                Some((low, high)) if low == high => (unit.with_unit(low), low.to_string()),
                Some((low, high)) => {
                    let low_text = if unit.suffix().is_empty() { unit.with_unit(low) } else { unit.bare(low) };
                    (format!("{low_text} – {}", unit.with_unit(high)), format!("{low} – {high}"))
                }
            };
            tiles.push(Tile { name: name.into(), value, detail, exact });
        };
        let best = self.children().iter().filter_map(|c| Some((self.score.value(c)?, c))).fold(None, |best, next| match best {
            Some((value, _)) if value >= next.0 => best,
            _ => Some(next),
        });
        let detail = best.map(|(_, child)| format!("best: {}", display_name(child))).unwrap_or_default();
        let metric = match self.score.split {
            Some(split) => format!("{} on {split}", capitalised(&self.score.name)),
            None => capitalised(&self.score.name),
        };
        range(&metric, self.score.unit, values(&|c| self.score.value(c)), detail);
        range("Parameters", Unit::Count, values(&|c| Some(c.parameters as f64)), "smallest to largest child".into());
        range("Multiply-adds", Unit::Count, values(&|c| Some(c.macs as f64)), "of one image".into());
        range("Latency", Unit::Milliseconds, values(&finite_latency), if timed == 0 { String::new() } else { "median of one image".into() });
        let front = self.fronts[0].len();
        if front > 0 {
            let detail = "no smaller child scores as high".into();
            tiles.push(Tile { name: "On the front".into(), value: grouped(front as u64), detail, exact: String::new() });
        }
        tiles
    }

    fn picked<'p>(&self, id: &'p str, why: &'p str) -> Picked<'p> {
        let found = self.children().iter().position(|child| child.id == id);
        let facts = match found {
            Some(index) => self.tip(&self.children()[index]),
            None => "this catalog does not list it".into(),
        };
        Picked { id, why, facts, anchor: found.map(|index| format!("child-{index}")) }
    }

    /// A child in one line.
    fn tip(&self, child: &Child) -> String {
        let mut parts = vec![display_name(child)];
        if let Some(value) = self.score.value(child) {
            parts.push(self.score.unit.with_unit(value));
        }
        parts.push(format!("{} parameters", Unit::Count.bare(child.parameters as f64)));
        parts.push(format!("{} MACs", Unit::Count.bare(child.macs as f64)));
        if let Some(latency) = finite_latency(child) {
            parts.push(Unit::Milliseconds.with_unit(latency));
        }
        parts.join(" · ")
    }

    /// The axis that colours the dots: the first along which the family varies.
    fn shade_axis(&self) -> Option<&Axis> {
        self.axes.iter().find(|axis| axis.sizes.len() > 1)
    }

    /// The step of the colour scale of the size at `index` of `n`; the palest ones would be lost on paper.
    fn dot_shade(index: usize, n: usize) -> usize {
        if n < 2 { 10 } else { 3 + (index * 12 + (n - 1) / 2) / (n - 1) }
    }

    fn swatches(&self) -> (Vec<Swatch>, String) {
        let Some(axis) = self.shade_axis() else { return (Vec::new(), String::new()) };
        let n = axis.sizes.len();
        let stride = n.div_ceil(14).max(1);
        let shown = (0..n).filter(|i| i % stride == 0 || i + 1 == n);
        let swatches = shown.map(|i| Swatch { class: format!("q{}", Self::dot_shade(i, n)), name: axis.sizes[i].to_string() });
        (swatches.collect(), axis.name.clone())
    }

    fn dot(&self, index: usize, cost: Cost) -> Option<Dot> {
        let child = self.children().get(index)?;
        let axis = self.shade_axis();
        let place = axis.and_then(|axis| axis.sizes.iter().position(|&size| Some(size) == child.shape.get(&axis.name)));
        let shade = Self::dot_shade(place.unwrap_or(0), axis.map_or(0, |axis| axis.sizes.len()));
        let intact = self.intact == Some(index);
        let picked = self.picked == Some(child.id.as_str());
        let mut name: Vec<&str> = child.name.as_deref().into_iter().collect();
        if intact {
            name.push("parent");
        }
        if picked {
            name.push("picked");
            if child.name.is_none() {
                name.insert(0, &child.id);
            }
        }
        Some(Dot {
            x: cost.of(child)?,
            y: self.score.value(child)?,
            shade,
            tip: self.tip(child),
            id: child.id.clone(),
            name: (!name.is_empty()).then(|| name.join(", ")),
            intact,
            picked,
        })
    }

    fn scatter(&self, cost: Cost, front: &[usize]) -> Figure {
        let title = format!("{} over {}", capitalised(&self.score.name), cost.name());
        let measured: Vec<(usize, Dot)> =
            (0..self.children().len()).filter_map(|index| Some((index, self.dot(index, cost)?))).collect();
        if measured.is_empty() {
            let absent = match (self.score.split, cost) {
                (None, _) => format!("No child has been scored by {} yet; `offshoot eval` does.", self.score.name),
                (Some(_), Cost::Latency) => "The latency of no scored child has been measured.".into(),
                _ => "This family has no children.".into(),
            };
            return Figure { title, absent, ..Figure::default() };
        }
        let front: Vec<usize> =
            front.iter().filter_map(|child| measured.iter().position(|(index, _)| index == child)).collect();
        let on_front: Vec<String> = front.iter().map(|&i| measured[i].1.id.clone()).collect();
        let dots: Vec<Dot> = measured.into_iter().map(|(_, dot)| dot).collect();
        let missing = self.children().len() - dots.len();
        let mut caption = format!("{} on the front", counted(front.len(), "child", "children"));
        if missing > 0 {
            caption.push_str(&format!("; {} not measured", counted(missing, "child", "children")));
        }
        caption.push('.');
        let description = format!(
            "{} of {}. On the Pareto front, from the cheapest: {}.",
            title,
            counted(dots.len(), "child", "children"),
            on_front.join(", ")
        );
        let id = cost.name();
        let y = self.score.axis_label();
        let chart = Scatter {
            id,
            title: &title,
            description: &description,
            x: (cost.unit(), cost.axis_label()),
            y: (self.score.unit, &y),
            dots: &dots,
            front: &front,
            joined: false,
        };
        let wide = if cost == Cost::Parameters { (1040.0, 460.0) } else { (504.0, 360.0) };
        let (wide, narrow) = (vec![chart.draw("wide", wide)], vec![chart.draw("narrow", (340.0, 320.0))]);
        Figure { title, wide, narrow, caption, ..Figure::default() }
    }

    /// Score over the family's axes: a heat map of two, one per size of a third, a curve along one.
    fn map(&self) -> (String, Figure) {
        let varying: Vec<&Axis> = self.axes.iter().filter(|axis| axis.sizes.len() > 1).collect();
        let names: Vec<&str> = varying.iter().map(|axis| axis.name.as_str()).collect();
        let over = if names.is_empty() { "shape".into() } else { names.join(" and ") };
        let title = format!("{} over {over}", capitalised(&self.score.name));
        let absent = |absent: &str| (title.clone(), Figure { absent: absent.into(), ..Figure::default() });
        if self.score.split.is_none() {
            return absent(&format!("No child has been scored by {} yet; `offshoot eval` does.", self.score.name));
        }
        let figure = match varying.as_slice() {
            [] => return absent("All children have one shape."),
            [axis] => self.along(axis),
            [first, second] if self.catalog.space.is_some() => self.heat(&[first, second], None),
            [first, second, third] if self.catalog.space.is_some() => {
                let mut axes = [*first, *second, *third];
                // The axis with the fewest sizes parts the tables.
                axes.sort_by_key(|axis| std::cmp::Reverse(axis.sizes.len()));
                if axes[2].sizes.len() > MOST_FACETS {
                    return absent("The three axes have too many sizes to be drawn; the table has every child.");
                }
                let apart = axes[2];
                let rest: Vec<&Axis> = varying.iter().copied().filter(|axis| axis.name != apart.name).collect();
                self.heat(&rest, Some(apart))
            }
            _ if self.catalog.space.is_none() => {
                return absent("The shapes of this family are not a grid; the table has every child.");
            }
            _ => return absent("The family has more than three axes; the table has every child."),
        };
        (title.clone(), Figure { title, ..figure })
    }

    /// A family along one axis: its score as a curve.
    fn along(&self, axis: &Axis) -> Figure {
        let dots: Vec<Dot> = (0..self.children().len())
            .filter_map(|index| {
                let dot = self.dot(index, Cost::Parameters)?;
                Some(Dot { x: self.children()[index].shape.get(&axis.name)? as f64, ..dot })
            })
            .collect();
        let title = format!("{} over {}", capitalised(&self.score.name), axis.name);
        let description = format!("{title} of {}.", counted(dots.len(), "child", "children"));
        let y = self.score.axis_label();
        let chart = Scatter {
            id: "along",
            title: &title,
            description: &description,
            x: (Unit::Count, &axis.name),
            y: (self.score.unit, &y),
            dots: &dots,
            front: &[],
            joined: true,
        };
        let (wide, narrow) = (chart.draw("wide", (1040.0, 360.0)), chart.draw("narrow", (340.0, 300.0)));
        Figure { wide: vec![wide], narrow: vec![narrow], ..Figure::default() }
    }

    fn heat(&self, axes: &[&Axis], apart: Option<&Axis>) -> Figure {
        let &[first, second] = axes else { return Figure::default() };
        let values = self.children().iter().filter_map(|child| self.score.value(child));
        let Some(range) = extent(values) else { return Figure::default() };
        let mut figure = Figure::default();
        let sizes: Vec<Option<usize>> = apart.map_or(vec![None], |axis| axis.sizes.iter().map(|&s| Some(s)).collect());
        for (facet, size) in sizes.into_iter().enumerate() {
            let cell = |x: usize, y: usize| {
                let fits = |child: &Child| {
                    child.shape.get(&first.name) == Some(x)
                        && child.shape.get(&second.name) == Some(y)
                        && apart.is_none_or(|axis| child.shape.get(&axis.name) == size)
                };
                let index = self.children().iter().position(fits)?;
                let child = &self.children()[index];
                Some(Cell {
                    value: self.score.value(child),
                    tip: self.tip(child),
                    front: self.fronts[0].contains(&index),
                    picked: self.picked == Some(child.id.as_str()),
                })
            };
            let of = match (apart, size) {
                (Some(axis), Some(size)) => format!(", {} {size}", axis.name),
                _ => String::new(),
            };
            let title = format!("{} over {} and {}{of}", capitalised(&self.score.name), first.name, second.name);
            let heat = Heat {
                id: format!("map-{facet}"),
                description: format!("{title}: one cell per child, its value printed where it fits. The table has the numbers."),
                title,
                axes: [first, second],
                cell: &cell,
                range,
                unit: self.score.unit,
            };
            let heading = match (apart, size) {
                (Some(axis), Some(size)) => format!("{} {size}", axis.name),
                _ => String::new(),
            };
            for (charts, class, width) in [(&mut figure.wide, "wide", 1040.0), (&mut figure.narrow, "narrow", 340.0)] {
                let chart = heat.draw(class, width);
                charts.push(match heading.as_str() {
                    "" => chart,
                    text => format!("<h4 class=\"{class}\">{}</h4>{chart}", crate::chart::escaped(text)),
                });
            }
        }
        figure.legend = legend("map-legend", &format!("Colours of {}", self.score.name), self.score.unit, range);
        figure.caption = "Outlined cells are on the front of score over parameters.".into();
        figure
    }

    /// Whether scores that stand side by side in the charts were measured in more than one way.
    fn mixed(&self, sources: &[Source]) -> bool {
        let split = self.score.split.map(|split| split.to_string()).unwrap_or_default();
        sources.iter().filter(|source| source.key == self.score.metric && source.split == split).count() > 1
    }
}

/// A child's id, with its familiar name where it has one.
fn display_name(child: &Child) -> String {
    match &child.name {
        Some(name) => format!("{} ({name})", child.id),
        None => child.id.clone(),
    }
}

/// The text with its first letter capital, but for words that are spelt with a small one.
fn capitalised(text: &str) -> String {
    if text.starts_with("k-NN") {
        return text.to_owned();
    }
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
