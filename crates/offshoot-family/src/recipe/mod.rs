//! Recipes: everything a run needs as TOML, with overrides, refusals of unknown keys, and `auto` values to resolve.
//!
//! A recipe is any type with serde and a default. The default, written out, is the set of known keys, so a type used here
//! serializes each of its fields under the name that it reads. A table that is empty in the default (a map) takes any keys, and
//! so does a field that is none or a word there; what they hold is checked by the type itself, best with
//! `deny_unknown_fields`. A field that is none by default can be set but not unset, as TOML has no word for none: [`Auto`] has.

mod auto;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Known;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

pub use auto::Auto;
pub use write::{to_toml, unresolved};

/// Why a recipe cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// It is not TOML.
    #[error("{origin}:{line}:{column}: {reason}")]
    Syntax {
        /// Where the text is from, such as a path.
        origin: String,
        /// Line of the first thing that is wrong, from 1.
        line: usize,
        /// Column of it, from 1, in characters.
        column: usize,
        /// What is wrong.
        reason: String,
    },
    /// It has a key that no recipe of its kind has.
    #[error("{place}: unknown key `{key}`")]
    UnknownKey {
        /// `origin:line`, or the override.
        place: String,
        /// The key from the root, with dots.
        key: String,
        /// The known key that was probably meant.
        nearest: Option<String>,
        /// The keys that there are at this place, from the root, with dots.
        known: Vec<String>,
    },
    /// A key has a value that it cannot have.
    #[error("{place}: `{key}`: {reason}")]
    BadValue {
        /// `origin:line`, or the override.
        place: String,
        /// The key from the root, with dots.
        key: String,
        /// What was found and what is expected.
        reason: String,
    },
    /// An override is not `key=value`.
    #[error("override `{text}`: {reason}")]
    Override {
        /// The override.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Every value could stand, but not all of them together.
    #[error("{origin}: {reason}")]
    Invalid {
        /// Where the text is from, such as a path.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// The recipe's type cannot be written as TOML that reads back.
    #[error("the recipe cannot be written as TOML: {0}")]
    Unwritable(String),
}

impl RecipeError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Syntax { .. } => {
                Some("a recipe is TOML: `key = value` lines below `[table]` lines; text in quotes".into())
            }
            Self::UnknownKey {
                nearest: Some(nearest), ..
            } => Some(format!("did you mean `{nearest}`?")),
            Self::UnknownKey { known, .. } if known.is_empty() => None,
            Self::UnknownKey { known, .. } => Some(format!("known here: {}", known.join(", "))),
            Self::Override { .. } => Some("write it as `optim.lr=1e-3`".into()),
            Self::BadValue { .. } | Self::Invalid { .. } | Self::Unwritable(_) => None,
        }
    }
}

/// One thing that the user set: a key that is not split further, its value, and where it was set.
struct Given {
    path: Vec<String>,
    value: Value,
    place: String,
}

/// What a recipe's text and overrides together say of the dotted `key`, if they say a word there: for choosing the defaults to
/// [`load`] them over. Text that is not TOML says nothing; `load` tells what is wrong with it.
pub fn given(text: &str, overrides: &[String], key: &str) -> Option<String> {
    let of_text = || {
        let table: Table = toml::from_str(text).ok()?;
        let mut keys = key.split('.');
        let first = table.get(keys.next()?)?;
        let value = keys.try_fold(first, |value, key| value.get(key))?;
        value.as_str().map(str::to_owned)
    };
    let of_override = |text: &String| {
        let (path, raw) = split_override(text).ok()?;
        let value = raw.parse::<Value>().unwrap_or_else(|_| raw.into());
        let named = path.join(".") == key;
        named.then(|| value.as_str().map(str::to_owned)).flatten()
    };
    overrides.iter().rev().find_map(of_override).or_else(of_text)
}

/// Reads a recipe: `default`, over it the TOML `text` (from `origin`, for messages), over it the `overrides`, each a
/// `key.of.table=value` whose value is TOML or else a bare string.
///
/// # Errors
/// If the text is not TOML, an override is not `key=value`, a key is unknown at any depth, or a value does not fit; every
/// error names the key in full and the line or override it was found in.
pub fn load<R: Serialize + DeserializeOwned>(
    default: &R,
    text: &str,
    origin: &str,
    overrides: &[String],
) -> Result<R, RecipeError> {
    let known = serde_json::to_value(default).map_err(|e| RecipeError::Unwritable(e.to_string()))?;
    let base = Table::try_from(default).map_err(|e| RecipeError::Unwritable(one_line(&e)))?;

    let syntax = |e: toml::de::Error| {
        let (line, column) = position(text, e.span().map_or(0, |span| span.start));
        RecipeError::Syntax {
            origin: origin.into(),
            line,
            column,
            reason: e.message().into(),
        }
    };
    let spans = DeTable::parse(text).map_err(syntax)?;
    let table: Table = toml::from_str(text).map_err(syntax)?;
    let mut given = Vec::new();
    let mut walk = Walk {
        known: &known,
        path: Vec::new(),
        given: &mut given,
    };
    let line_of = |at: usize| format!("{origin}:{}", position(text, at).0);
    walk.table(&known, &table, Some(spans.get_ref()), &line_of)?;

    for text in overrides {
        let (path, raw) = split_override(text)?;
        let place = format!("override `{text}`");
        let parsed = raw.parse::<Value>().unwrap_or_else(|_| raw.into());
        let nested = |value: Value| {
            path.iter()
                .rev()
                .fold(value, |inner, key| Table::from_iter([(key.clone(), inner)]).into())
        };
        let mut chosen = nested(parsed.clone());
        // `name=123` and `date=2024-01-01` mean strings where only strings fit.
        if !matches!(parsed, Value::String(_) | Value::Array(_) | Value::Table(_)) {
            let bare = nested(raw.into());
            if read::<R>(&base, [&chosen]).is_err() && read::<R>(&base, [&bare]).is_ok() {
                chosen = bare;
            }
        }
        let mut walk = Walk {
            known: &known,
            path: Vec::new(),
            given: &mut given,
        };
        if let Value::Table(table) = &chosen {
            walk.table(&known, table, None, &|_| place.clone())?;
        }
    }

    let whole = |given: &Given| -> Value {
        given.path.iter().rev().fold(given.value.clone(), |inner, key| {
            Table::from_iter([(key.clone(), inner)]).into()
        })
    };
    let values: Vec<Value> = given.iter().map(whole).collect();
    read::<R>(&base, &values).map_err(|error| {
        // Which of the values is to blame shows when each is set alone.
        if let Err(error) = read::<R>(&base, []) {
            return RecipeError::Unwritable(format!("its default does not read back: {}", one_line(&error)));
        }
        for (given, value) in given.iter().zip(&values) {
            if let Err(error) = read::<R>(&base, [value]) {
                let key = inner_key(&error, &given.path).unwrap_or_else(|| dotted(&given.path));
                return RecipeError::BadValue {
                    place: given.place.clone(),
                    key,
                    reason: plain(error.message()),
                };
            }
        }
        RecipeError::Invalid {
            origin: origin.into(),
            reason: one_line(&error),
        }
    })
}

/// `base` with `values` merged over it in turn, as an `R`.
fn read<'v, R: DeserializeOwned>(
    base: &Table,
    values: impl IntoIterator<Item = &'v Value>,
) -> Result<R, toml::de::Error> {
    let mut merged = Value::Table(base.clone());
    for value in values {
        merge(&mut merged, value);
    }
    merged.try_into()
}

/// Tables are merged key by key; anything else is replaced.
fn merge(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Table(below), Value::Table(above)) => {
            for (key, value) in above {
                match below.get_mut(key) {
                    Some(under) => merge(under, value),
                    None => {
                        below.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (below, above) => *below = above.clone(),
    }
}

/// Goes through what the user set beside what is known.
struct Walk<'w> {
    /// The whole default.
    known: &'w Known,
    /// Where the walk is.
    path: Vec<String>,
    /// What was found so far.
    given: &'w mut Vec<Given>,
}

impl Walk<'_> {
    fn table(
        &mut self,
        known: &Known,
        table: &Table,
        spans: Option<&DeTable<'_>>,
        place: &dyn Fn(usize) -> String,
    ) -> Result<(), RecipeError> {
        for (key, value) in table {
            let found = spans.and_then(|spans| spans.iter().find(|(name, _)| name.get_ref() == key));
            let place_here = place(found.map_or(0, |(name, _)| name.span().start));
            self.path.push(key.clone());
            let below = match known.get(key) {
                Some(below) => below,
                // A map: its keys are the user's.
                None if known.as_object().is_some_and(serde_json::Map::is_empty) => &Known::Null,
                None => return Err(self.unknown(place_here)),
            };
            match (below, value) {
                (Known::Object(_), Value::Table(inner)) => {
                    let spans = found.and_then(|(_, value)| as_table(value));
                    self.table(below, inner, spans, place)?;
                }
                _ => {
                    if let (Known::Array(known), Value::Array(values)) = (below, value) {
                        self.elements(known, values, &place_here)?;
                    }
                    self.given.push(Given {
                        path: self.path.clone(),
                        value: value.clone(),
                        place: place_here,
                    });
                }
            }
            self.path.pop();
        }
        Ok(())
    }

    /// The keys of tables in an array are those of the tables in the default's array, where it has any.
    fn elements(&mut self, known: &[Known], values: &[Value], place: &str) -> Result<(), RecipeError> {
        let mut fields = serde_json::Map::new();
        for element in known {
            match element {
                Known::Object(element) => fields.extend(element.clone()),
                _ => return Ok(()),
            }
        }
        let fields = Known::Object(fields);
        let name = self.path.pop().unwrap_or_default();
        for (index, value) in values.iter().enumerate() {
            if let (Value::Table(table), false) = (value, known.is_empty()) {
                self.path.push(format!("{name}[{index}]"));
                // Only the keys are checked: an array is set as a whole.
                let mut ignored = Vec::new();
                let mut walk = Walk {
                    known: self.known,
                    path: self.path.clone(),
                    given: &mut ignored,
                };
                walk.table(&fields, table, None, &|_| place.to_owned())?;
                self.path.pop();
            }
        }
        self.path.push(name);
        Ok(())
    }

    /// The error for the key at the end of the path.
    fn unknown(&self, place: String) -> RecipeError {
        let mut all = Vec::new();
        list_keys(self.known, &mut Vec::new(), &mut all);
        let (key, parents) = self.path.split_last().expect("the walk is at a key");
        let plain = |name: &String| name.split('[').next().unwrap_or_default().to_owned();
        let parents: Vec<String> = parents.iter().map(plain).collect();
        let siblings: Vec<&Vec<String>> = all.iter().filter(|path| path[..path.len() - 1] == parents).collect();
        let far = |path: &[String]| strsim::damerau_levenshtein(path.last().map_or("", |k| k), key);
        let near = |path: &&Vec<String>| far(path) <= (key.chars().count() / 2).clamp(1, 3);
        // The same name elsewhere, a like name here, or a like name elsewhere.
        let nearest = (all.iter().find(|path| far(path) == 0))
            .or_else(|| siblings.iter().copied().filter(near).min_by_key(|path| far(path)))
            .or_else(|| all.iter().filter(near).min_by_key(|path| far(path)));
        RecipeError::UnknownKey {
            place,
            key: dotted(&self.path),
            nearest: nearest.map(|path| dotted(path)),
            known: siblings.into_iter().map(|path| dotted(path)).collect(),
        }
    }
}

fn as_table<'t, 'i>(value: &'t Spanned<DeValue<'i>>) -> Option<&'t DeTable<'i>> {
    match value.get_ref() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

/// Every key of `known`, tables and what is in them.
fn list_keys(known: &Known, path: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
    match known {
        Known::Object(fields) => {
            for (key, value) in fields {
                path.push(key.clone());
                if !all.contains(path) {
                    all.push(path.clone());
                }
                list_keys(value, path, all);
                path.pop();
            }
        }
        Known::Array(values) => values.iter().for_each(|value| list_keys(value, path, all)),
        _ => {}
    }
}

fn dotted(path: &[String]) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-[]".contains(c);
    let part = |key: &String| {
        if key.chars().all(bare) && !key.is_empty() {
            key.clone()
        } else {
            format!("{key:?}")
        }
    };
    path.iter().map(part).collect::<Vec<_>>().join(".")
}

/// Line and column, from 1, of a byte of `text`.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

fn split_override(text: &str) -> Result<(Vec<String>, &str), RecipeError> {
    let fail = |reason| {
        Err(RecipeError::Override {
            text: text.into(),
            reason,
        })
    };
    let Some((key, value)) = text.split_once('=') else {
        return fail("there is no `=`");
    };
    let path: Vec<String> = key.split('.').map(|part| part.trim().to_owned()).collect();
    if key.trim().is_empty() {
        return fail("there is no key before the `=`");
    }
    if path.iter().any(String::is_empty) {
        return fail("a part of the key is empty");
    }
    Ok((path, value.trim()))
}

/// The key that the error itself names, if it is deeper than `path`.
fn inner_key(error: &toml::de::Error, path: &[String]) -> Option<String> {
    let text = error.to_string();
    let named = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'))?;
    let inner = named.strip_prefix(&path.join("."))?;
    inner.starts_with('.').then(|| format!("{}{inner}", dotted(path)))
}

fn one_line(error: &impl fmt::Display) -> String {
    error.to_string().trim().replace('\n', " ")
}

/// A message of serde with Rust's types in the user's words.
fn plain(message: &str) -> String {
    let Some((found, expected)) = message.trim().rsplit_once("expected ") else {
        return message.trim().into();
    };
    let (expected, or) = match expected.split_once(" or `auto`") {
        Some((expected, _)) => (expected, " or `auto`"),
        None => (expected, ""),
    };
    let expected = match expected {
        "f64" | "f32" => "a number",
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => "a whole number, not negative",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" => "a table",
        table if table.starts_with("struct ") => "a table",
        other => other,
    };
    let found = found
        .replace("invalid type: map,", "invalid type: table,")
        .replace("type: sequence,", "type: array,");
    format!("{found}expected {expected}{or}")
}
