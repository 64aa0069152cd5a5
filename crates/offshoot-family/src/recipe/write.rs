//! A recipe as TOML that reads back equal, and what of it is still open.

use serde::Serialize;
use serde_json::Value as Known;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table};

use super::auto::AUTO;
use super::{RecipeError, dotted, one_line};

/// The dotted keys of `value` that are still the word `auto`, in the order of the fields: what has to be worked out before a
/// run starts and its recipe is written down. Nothing if `value` has keys that are not text.
pub fn unresolved(value: &impl Serialize) -> Vec<String> {
    fn walk(value: &Known, path: &mut Vec<String>, found: &mut Vec<String>) {
        match value {
            Known::String(text) if text == AUTO => found.push(dotted(path)),
            Known::Object(fields) => {
                for (key, value) in fields {
                    path.push(key.clone());
                    walk(value, path, found);
                    path.pop();
                }
            }
            Known::Array(values) => {
                let name = path.pop().unwrap_or_default();
                for (index, value) in values.iter().enumerate() {
                    path.push(format!("{name}[{index}]"));
                    walk(value, path, found);
                    path.pop();
                }
                path.push(name);
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    if let Ok(value) = serde_json::to_value(value) {
        walk(&value, &mut Vec::new(), &mut found);
    }
    found
}

/// Writes a recipe as TOML in the order of its fields (but the tables of a table after its other values, as TOML must), so
/// that [`load`](super::load) reads an equal one. Numbers have the fewest digits that read back the same, small and large ones an exponent.
///
/// # Errors
/// If the recipe holds what TOML has not, such as whole numbers above `i64::MAX`.
pub fn to_toml(recipe: &impl Serialize) -> Result<String, RecipeError> {
    let mut text = toml::to_string(recipe).map_err(|e| RecipeError::Unwritable(one_line(&e)))?;
    let mut floats = Vec::new();
    {
        let fail = |e: toml::de::Error| RecipeError::Unwritable(e.message().to_owned());
        toml::from_str::<Table>(&text).map_err(fail)?;
        let parsed = DeTable::parse(&text).map_err(fail)?;
        parsed
            .get_ref()
            .values()
            .for_each(|value| list_floats(value, &mut floats));
    }
    floats.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    for (span, value) in floats {
        let short = format!("{value:?}");
        if value.is_finite() && short.len() < span.len() {
            text.replace_range(span, &short);
        }
    }
    Ok(text)
}

/// Where floating-point numbers stand, and what they are.
fn list_floats(value: &Spanned<DeValue<'_>>, floats: &mut Vec<(std::ops::Range<usize>, f64)>) {
    match value.get_ref() {
        DeValue::Float(float) => floats.extend(float.as_str().parse().ok().map(|number| (value.span(), number))),
        DeValue::Array(values) => values.iter().for_each(|value| list_floats(value, floats)),
        DeValue::Table(table) => table.values().for_each(|value| list_floats(value, floats)),
        _ => {}
    }
}
