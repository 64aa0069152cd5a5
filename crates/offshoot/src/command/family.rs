//! `offshoot family`: the table of all children.

use comfy_table::{CellAlignment, Table, TableStyle};
use offshoot_family::catalog::DataRef;
use offshoot_family::scorecard::written;
use offshoot_family::{Catalog, Child, Split};
use serde_json::{Map, Value, json};

use crate::args::Family;
use crate::failure::Failure;
use crate::terminal::say;

/// Runs the command.
pub fn run(args: &Family) -> Result<(), Failure> {
    let catalog = Catalog::open(&args.run)?;
    let columns = columns(&catalog);
    let mut rows: Vec<Map<String, Value>> = catalog.children.iter().map(|c| row(&catalog, c)).collect();
    for condition in &args.filter {
        let condition = Condition::parse(condition, &columns)?;
        rows.retain(|row| condition.holds(row));
    }
    if let Some(sort) = &args.sort {
        let (column, descending) = match sort.strip_prefix('-') {
            Some(column) => (column, true),
            None => (sort.as_str(), false),
        };
        let column = known(column, &columns)?;
        rows.sort_by(|a, b| {
            let order = compare(&a[column], &b[column]);
            // Rows without a value come last either way.
            let missing = a[column].is_null() || b[column].is_null();
            if descending && !missing { order.reverse() } else { order }
        });
    }
    if args.json {
        say(&serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    say(&table(&columns, &rows))?;
    say(&format!("{} of {} children", rows.len(), catalog.children.len()))?;
    let unscored = catalog
        .children
        .iter()
        .filter(|c| c.score(&catalog.score, Split::Val).is_none())
        .count();
    if unscored > 0 {
        let verb = catalog.score.split('@').next().unwrap_or_default();
        let command = format!("offshoot eval {verb} {}", args.run.display());
        let how = match &catalog.data {
            data if data.is_given() => command,
            DataRef::Images(_) => "it was imported without data; import it with --data PATH to score it".into(),
            DataRef::Text(_) => format!("it was imported without text: {command} --data NAME=PATH"),
        };
        say(&format!("not measured by {} yet: {unscored}; {how}", catalog.score))?;
    }
    Ok(())
}

/// Names of the columns.
fn columns(catalog: &Catalog) -> Vec<String> {
    let mut columns: Vec<String> = vec!["id".into(), "name".into()];
    if let Some(space) = &catalog.space {
        columns.extend(space.axes.iter().map(|axis| axis.name.clone()));
    }
    columns.extend(["parameters", "macs", "bytes"].map(String::from));
    columns.extend([Split::Val, Split::Test].map(|split| format!("{}/{split}", catalog.score)));
    columns.push("latency_ms".into());
    columns
}

/// One child as values by column.
fn row(catalog: &Catalog, child: &Child) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("id".into(), json!(child.id));
    row.insert("name".into(), json!(child.name));
    for (axis, size) in child.shape.iter() {
        row.insert(axis.into(), json!(size));
    }
    row.insert("parameters".into(), json!(child.parameters));
    row.insert("macs".into(), json!(child.macs));
    row.insert("bytes".into(), json!(child.bytes));
    for split in [Split::Val, Split::Test] {
        row.insert(
            format!("{}/{split}", catalog.score),
            json!(child.score(&catalog.score, split)),
        );
    }
    row.insert("latency_ms".into(), json!(child.latency_ms()));
    row
}

/// `wanted` if it is a column, by its name or the name before the slash.
fn known<'a>(wanted: &str, columns: &'a [String]) -> Result<&'a str, Failure> {
    let found = columns
        .iter()
        .find(|c| *c == wanted || c.split('/').next() == Some(wanted));
    found.map(String::as_str).ok_or_else(|| {
        Failure::input(
            format!("there is no column `{wanted}`"),
            format!("the columns are {}", columns.join(", ")),
        )
    })
}

fn compare(a: &Value, b: &Value) -> std::cmp::Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ if a.is_null() || b.is_null() => a.is_null().cmp(&b.is_null()),
        _ => a.as_str().cmp(&b.as_str()),
    }
}

/// `COLUMN OP VALUE`.
struct Condition {
    column: String,
    operator: &'static str,
    value: String,
}

impl Condition {
    fn parse(text: &str, columns: &[String]) -> Result<Self, Failure> {
        let wrong = || {
            let hint = "write it as COLUMN OP VALUE with one of <= >= != = < >, such as `width>=512`";
            Failure::input(format!("`{text}` is no condition"), hint)
        };
        let operator = ["<=", ">=", "!=", "=", "<", ">"]
            .into_iter()
            .find(|op| text.contains(op))
            .ok_or_else(wrong)?;
        let (column, value) = text.split_once(operator).ok_or_else(wrong)?;
        let column = known(column.trim(), columns)?.to_owned();
        if !["id", "name"].contains(&column.as_str()) && quantity(value.trim()).is_none() {
            let hint = format!("`{column}` is compared with numbers, such as 0.7 or 5M");
            return Err(Failure::input(
                format!("`{}` in `{text}` is no number", value.trim()),
                hint,
            ));
        }
        Ok(Self {
            column,
            operator,
            value: value.trim().to_owned(),
        })
    }

    fn holds(&self, row: &Map<String, Value>) -> bool {
        let found = &row[&self.column];
        let ordering = match (found.as_f64(), quantity(&self.value)) {
            (Some(found), Some(value)) => found.total_cmp(&value),
            _ => match found.as_str() {
                Some(found) => found.cmp(self.value.as_str()),
                None => return false,
            },
        };
        match self.operator {
            "<=" => ordering.is_le(),
            ">=" => ordering.is_ge(),
            "!=" => ordering.is_ne(),
            "=" => ordering.is_eq(),
            "<" => ordering.is_lt(),
            _ => ordering.is_gt(),
        }
    }
}

/// A number as people write it: 0.7, or 5M.
fn quantity(text: &str) -> Option<f64> {
    text.parse()
        .ok()
        .or_else(|| offshoot_family::quantity::parse_count(text).ok().map(|n| n as f64))
}

/// A table for people: short numbers, right-aligned.
pub fn table(columns: &[String], rows: &[Map<String, Value>]) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(columns);
    for row in rows {
        table.add_row(
            columns
                .iter()
                .map(|column| cell(column, row.get(column).unwrap_or(&Value::Null))),
        );
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        if i >= 2 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn cell(column: &str, value: &Value) -> String {
    match (column, value) {
        (_, Value::Null) => "-".into(),
        ("parameters" | "macs", value) => short(value.as_f64().unwrap_or(0.0), ""),
        ("bytes", value) => short(value.as_f64().unwrap_or(0.0), "B"),
        ("latency_ms", value) => format!("{:.2}", value.as_f64().unwrap_or(0.0)),
        (_, Value::String(text)) => text.clone(),
        (column, value) if column.contains('/') => written(column, value.as_f64().unwrap_or(0.0)),
        (_, value) => value.to_string(),
    }
}

/// `21.7M`.
pub fn short(value: f64, unit: &str) -> String {
    for (limit, suffix) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= limit {
            return format!("{:.1}{suffix}{unit}", value / limit);
        }
    }
    format!("{value:.0}{unit}")
}
