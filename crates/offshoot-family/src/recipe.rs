//! Recipes: everything a run needs as TOML, with overrides, refusals of unknown keys, and `auto` values to resolve.
//!
//! A recipe is any type with serde and a default. The default, written out, is the set of known keys, so a type used here
//! serializes each of its fields under the name that it reads. A table that is empty in the default (a map) takes any keys, and
//! so does a field that is none or a word there; what they hold is checked by the type itself, best with
//! `deny_unknown_fields`. A field that is none by default can be set but not unset, as TOML has no word for none: [`Auto`] has.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Known;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// A value that is given or left to be worked out: in TOML the word `auto` or a `T`. A `T` that is itself written as the word
/// `auto` cannot be told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auto<T> {
    /// To be worked out.
    #[default]
    Auto,
    /// Given, or worked out.
    Value(T),
}

impl<T> Auto<T> {
    /// The value, if it is given or was worked out.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Auto => None,
            Self::Value(value) => Some(value),
        }
    }

    /// Whether there is a value.
    pub fn resolved(&self) -> bool {
        self.value().is_some()
    }

    /// The value, which is worked out by `find` and kept if it is not there yet.
    pub fn resolve(&mut self, find: impl FnOnce() -> T) -> &T {
        if let Self::Auto = self {
            *self = Self::Value(find());
        }
        match self {
            Self::Value(value) => value,
            Self::Auto => unreachable!("a value was put in above"),
        }
    }
}

impl<T> From<T> for Auto<T> {
    fn from(value: T) -> Self {
        Self::Value(value)
    }
}

impl<T: fmt::Display> fmt::Display for Auto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(AUTO),
            Self::Value(value) => value.fmt(f),
        }
    }
}

const AUTO: &str = "auto";

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Value(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AutoVisitor(PhantomData))
    }
}

struct AutoVisitor<T>(PhantomData<T>);

/// Hands a plain value on to `T`, whose complaint then says that `auto` would do as well.
fn scalar<'de, T: Deserialize<'de>, E: serde::de::Error>(value: impl IntoDeserializer<'de, E>) -> Result<Auto<T>, E> {
    T::deserialize(value.into_deserializer())
        .map(Auto::Value)
        .map_err(|e| E::custom(format!("{} or `auto`", e.to_string().trim())))
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for AutoVisitor<T> {
    type Value = Auto<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or `auto`")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Auto<T>, E> {
        scalar(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Auto<T>, E> {
        scalar(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Auto<T>, E> {
        scalar(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Auto<T>, E> {
        scalar(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Auto<T>, E> {
        if value == AUTO {
            Ok(Auto::Auto)
        } else {
            scalar(value.to_owned())
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<Auto<T>, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(values)).map(Auto::Value)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Auto<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Auto::Value)
    }
}

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

/// Reads a recipe: the default of `R`, over it the TOML `text` (from `origin`, for messages), over it the `overrides`, each a
/// `key.of.table=value` whose value is TOML or else a bare string.
///
/// # Errors
/// If the text is not TOML, an override is not `key=value`, a key is unknown at any depth, or a value does not fit; every
/// error names the key in full and the line or override it was found in.
pub fn load<R: Serialize + DeserializeOwned + Default>(
    text: &str,
    origin: &str,
    overrides: &[String],
) -> Result<R, RecipeError> {
    let default = R::default();
    let known = serde_json::to_value(&default).map_err(|e| RecipeError::Unwritable(e.to_string()))?;
    let base = Table::try_from(&default).map_err(|e| RecipeError::Unwritable(one_line(&e)))?;

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
/// that [`load`] reads an equal one. Numbers have the fewest digits that read back the same, small and large ones an exponent.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Source {
        Folder,
        Parquet,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Recipe {
        optim: Optim,
        seed: u64,
        name: String,
        data: Data,
        heads: Heads,
        stages: Vec<Stage>,
        notes: BTreeMap<String, f64>,
        limit: Option<u32>,
        fast: bool,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Optim {
        lr: Auto<f64>,
        weight_decay: f64,
        betas: (f64, f64),
        eps: f32,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Data {
        path: String,
        source: Source,
        workers: Auto<usize>,
        crops: Auto<Vec<u32>>,
        kind: Auto<Source>,
        cut: Auto<Stage>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Heads {
        prototypes: Vec<usize>,
        empty: Vec<f64>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stage {
        width: usize,
        drop: f64,
    }

    impl Default for Recipe {
        fn default() -> Self {
            Self {
                optim: Optim {
                    lr: Auto::Auto,
                    weight_decay: 0.04,
                    betas: (0.9, 0.999),
                    eps: 1e-8,
                },
                seed: 0,
                name: String::new(),
                data: Data {
                    path: ".".into(),
                    source: Source::Folder,
                    workers: Auto::Auto,
                    crops: Auto::Value(vec![2, 8]),
                    kind: Auto::Auto,
                    cut: Auto::Auto,
                },
                heads: Heads {
                    prototypes: vec![8192],
                    empty: vec![],
                },
                stages: vec![Stage { width: 64, drop: 0.0 }],
                notes: BTreeMap::new(),
                limit: None,
                fast: false,
            }
        }
    }

    fn with(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        load(text, "recipe.toml", &overrides)
    }

    fn refused(text: &str, overrides: &[&str]) -> (String, Option<String>) {
        let error = with(text, overrides).unwrap_err();
        (error.to_string(), error.hint())
    }

    #[test]
    fn what_is_not_given_takes_the_default() {
        assert_eq!(with("", &[]).unwrap(), Recipe::default());
        let recipe = with("seed = 7\n[optim]\nlr = 1e-3\n", &[]).unwrap();
        assert_eq!(
            (recipe.seed, recipe.optim.lr, recipe.optim.weight_decay),
            (7, Auto::Value(1e-3), 0.04)
        );
        assert_eq!(recipe.data, Recipe::default().data);
    }

    #[test]
    fn overrides_win_and_read_as_toml_or_as_bare_strings() {
        let recipe = with(
            "[optim]\nlr = 1\n",
            &[
                "optim.lr=1e-3",
                "data.path=/x/y z",
                "heads.prototypes=[64,128]",
                "data.source=parquet",
                "data.kind = \"folder\"",
                "data.workers= 3",
                "data.crops=auto",
                "data.cut={width=3,drop=1}",
                "stages=[{width=1,drop=0.5},{width=2,drop=1}]",
                "notes.a=1",
                "notes.b=2.5",
                "limit=9",
                "name=123",
                "fast=true",
                "optim.betas=[0.5, 1]",
            ],
        )
        .unwrap();
        assert_eq!(recipe.optim.lr, Auto::Value(1e-3));
        assert_eq!(recipe.data.path, "/x/y z");
        assert_eq!(recipe.heads.prototypes, [64, 128]);
        assert_eq!(
            (recipe.data.source, recipe.data.kind),
            (Source::Parquet, Auto::Value(Source::Folder))
        );
        assert_eq!((recipe.data.workers, recipe.data.crops), (Auto::Value(3), Auto::Auto));
        assert_eq!(recipe.data.cut, Auto::Value(Stage { width: 3, drop: 1.0 }));
        assert_eq!(
            recipe.stages,
            [Stage { width: 1, drop: 0.5 }, Stage { width: 2, drop: 1.0 }]
        );
        assert_eq!(recipe.notes, BTreeMap::from([("a".into(), 1.0), ("b".into(), 2.5)]));
        assert_eq!(
            (recipe.limit, recipe.name.as_str(), recipe.fast),
            (Some(9), "123", true)
        );
        assert_eq!(recipe.optim.betas, (0.5, 1.0));
        for (text, name) in [
            ("name=2024-01-01", "2024-01-01"),
            ("name=true", "true"),
            ("name=", ""),
            ("name=a=b", "a=b"),
            ("name=3#x", "3#x"),
            ("name=a\nseed=3", "a\nseed=3"),
        ] {
            assert_eq!(with("", &[text]).unwrap().name, name);
        }
        // A table that is only known as a word by default is merged too.
        let recipe = with("[data.cut]\nwidth = 3\ndrop = 0\n", &["data.cut.drop=0.5"]).unwrap();
        assert_eq!(recipe.data.cut, Auto::Value(Stage { width: 3, drop: 0.5 }));
    }

    #[test]
    fn unknown_keys_are_refused_with_line_and_nearest() {
        let (text, hint) = refused("seed = 1\n\n[optim]\nlrr = 1\n", &[]);
        assert_eq!(text, "recipe.toml:4: unknown key `optim.lrr`");
        assert_eq!(hint.unwrap(), "did you mean `optim.lr`?");
        let (text, hint) = refused("", &["optim.wieght_decay=1"]);
        assert_eq!(
            text,
            "override `optim.wieght_decay=1`: unknown key `optim.wieght_decay`"
        );
        assert_eq!(hint.unwrap(), "did you mean `optim.weight_decay`?");
        // The right name at the wrong place, a wrong table, and something else altogether.
        assert_eq!(refused("lr = 1", &[]).1.unwrap(), "did you mean `optim.lr`?");
        assert_eq!(
            refused("[optm]\nlr = 1", &[]),
            (
                "recipe.toml:1: unknown key `optm`".into(),
                Some("did you mean `optim`?".into())
            )
        );
        let (text, hint) = refused("[optim]\n\"odd key\" = 1", &[]);
        assert_eq!(text, "recipe.toml:2: unknown key `optim.\"odd key\"`");
        assert_eq!(
            hint.unwrap(),
            "known here: optim.lr, optim.weight_decay, optim.betas, optim.eps"
        );
        let (text, hint) = refused("[[stages]]\nwidth = 1\ndrop = 0\n[[stages]]\nwidht = 1\n", &[]);
        assert_eq!(text, "recipe.toml:1: unknown key `stages[1].widht`");
        assert_eq!(hint.unwrap(), "did you mean `stages.width`?");
        assert_eq!(
            refused("optim = { lr = 1, lrr = 2 }", &[]).0,
            "recipe.toml:1: unknown key `optim.lrr`"
        );
        assert_eq!(
            refused("optim.lrr = 2", &[]).0,
            "recipe.toml:1: unknown key `optim.lrr`"
        );
        // Tables that the default does not show are checked by their type.
        assert!(
            refused("[data.cut]\nwidth = 3\ndrop = 0\nwidht = 3", &[])
                .0
                .contains("widht")
        );
    }

    #[test]
    fn values_of_the_wrong_kind_are_named() {
        for (text, overrides, wanted) in [
            (
                "\nseed = \"x\"",
                vec![],
                "recipe.toml:2: `seed`: invalid type: string \"x\", expected a whole number, not negative",
            ),
            (
                "seed = -1",
                vec![],
                "recipe.toml:1: `seed`: invalid value: integer `-1`, expected a whole number, not negative",
            ),
            (
                "seed = 1.5",
                vec![],
                "recipe.toml:1: `seed`: invalid type: floating point `1.5`, expected a whole number, not negative",
            ),
            (
                "",
                vec!["optim.lr=fast"],
                "override `optim.lr=fast`: `optim.lr`: invalid type: string \"fast\", expected a number or `auto`",
            ),
            (
                "",
                vec!["data.workers=-3"],
                "override `data.workers=-3`: `data.workers`: invalid value: integer `-3`, expected a whole number, not negative or `auto`",
            ),
            (
                "fast = 1",
                vec![],
                "recipe.toml:1: `fast`: invalid type: integer `1`, expected true or false",
            ),
            (
                "",
                vec!["heads.prototypes=[64,128"],
                "override `heads.prototypes=[64,128`: `heads.prototypes`: invalid type: string \"[64,128\", expected an array",
            ),
            (
                "",
                vec!["heads=3"],
                "override `heads=3`: `heads`: invalid type: integer `3`, expected a table",
            ),
            (
                "",
                vec!["seed.x=3"],
                "override `seed.x=3`: `seed`: invalid type: table, expected a whole number, not negative",
            ),
            (
                "",
                vec!["data.source=tar"],
                "override `data.source=tar`: `data.source`: unknown variant `tar`, expected `folder` or `parquet`",
            ),
            (
                "[notes]\na = \"x\"",
                vec![],
                "recipe.toml:2: `notes.a`: invalid type: string \"x\", expected a number",
            ),
            (
                "heads = 3",
                vec!["heads.prototypes=[1]"],
                "recipe.toml:1: `heads`: invalid type: integer `3`, expected a table",
            ),
            (
                "",
                vec!["stages=[{width=1}]"],
                "override `stages=[{width=1}]`: `stages`: missing field `drop`",
            ),
        ] {
            assert_eq!(refused(text, &overrides).0, wanted);
        }
    }

    #[test]
    fn what_is_not_toml_is_shown_with_its_place() {
        for (text, wanted) in [
            ("seed = \n", "recipe.toml:1:"),
            ("seed = 1\nseed = 2", "recipe.toml:2:1: duplicate key"),
            ("a\nb = [1,", "recipe.toml:1:"),
            ("seed = 99999999999999999999", "recipe.toml:1:8:"),
            ("[optim\n", "recipe.toml:1:"),
        ] {
            let (found, hint) = refused(text, &[]);
            assert!(found.starts_with(wanted), "{text:?}: {found}");
            assert!(hint.is_some() && !found.contains('\n'));
        }
        for (text, wanted) in [
            ("seed", "no `=`"),
            ("=3", "no key"),
            (" = ", "no key"),
            ("a..b=3", "is empty"),
            (".=3", "is empty"),
            ("", "no `=`"),
        ] {
            let (found, hint) = refused("", &[text]);
            assert!(
                found.contains(wanted) && hint.unwrap().contains("optim.lr=1e-3"),
                "{text:?}: {found}"
            );
        }
    }

    #[test]
    fn values_that_do_not_go_together_are_told() {
        #[derive(Debug, Default, Clone, Serialize, Deserialize)]
        #[serde(try_from = "Raw", into = "Raw")]
        struct Pair(Raw);
        #[derive(Debug, Default, Clone, Serialize, Deserialize)]
        struct Raw {
            low: u32,
            high: u32,
        }
        impl From<Pair> for Raw {
            fn from(pair: Pair) -> Self {
                pair.0
            }
        }
        impl TryFrom<Raw> for Pair {
            type Error = String;
            fn try_from(raw: Raw) -> Result<Self, String> {
                if raw.low + raw.high == 3 {
                    Err("low and high must not make 3".into())
                } else {
                    Ok(Self(raw))
                }
            }
        }
        let error = load::<Pair>("low = 1\nhigh = 2", "r.toml", &[]).unwrap_err();
        assert_eq!(
            error,
            RecipeError::Invalid {
                origin: "r.toml".into(),
                reason: "low and high must not make 3".into()
            }
        );
        let alone = load::<Pair>("low = 3", "r.toml", &[]).unwrap_err();
        assert_eq!(alone.to_string(), "r.toml:1: `low`: low and high must not make 3");
    }

    #[test]
    fn unresolved_lists_what_is_still_auto() {
        assert_eq!(
            unresolved(&Recipe::default()),
            ["optim.lr", "data.workers", "data.kind", "data.cut"]
        );
        let mut recipe = Recipe::default();
        assert!(!recipe.optim.lr.resolved() && recipe.optim.lr.value().is_none());
        assert_eq!(*recipe.optim.lr.resolve(|| 0.5), 0.5);
        assert_eq!(*recipe.optim.lr.resolve(|| 0.7), 0.5);
        assert_eq!(unresolved(&recipe), ["data.workers", "data.kind", "data.cut"]);
        assert_eq!(unresolved(&vec![Auto::Auto, Auto::Value(1)]), ["[0]"]);
        assert_eq!(format!("{} {}", Auto::from(3), Auto::<u8>::Auto), "3 auto");
    }

    #[test]
    fn toml_is_written_in_the_order_of_the_fields() {
        let text = to_toml(&Recipe::default()).unwrap();
        assert_eq!(
            text,
            r#"seed = 0
name = ""
fast = false

[optim]
lr = "auto"
weight_decay = 0.04
betas = [0.9, 0.999]
eps = 1e-8

[data]
path = "."
source = "folder"
workers = "auto"
crops = [2, 8]
kind = "auto"
cut = "auto"

[heads]
prototypes = [8192]
empty = []

[[stages]]
width = 64
drop = 0.0

[notes]
"#
        );
        assert_eq!(with(&text, &[]).unwrap(), Recipe::default());
        let large = Recipe {
            seed: u64::MAX,
            ..Recipe::default()
        };
        assert!(matches!(to_toml(&large), Err(RecipeError::Unwritable(_))));
    }

    fn number() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>().prop_filter("NaN equals nothing", |x| !x.is_nan()),
            Just(1e-5),
            Just(0.1f32 as f64),
            Just(-0.0),
            Just(1e22)
        ]
    }

    fn auto<T: std::fmt::Debug + Clone>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Auto<T>> {
        prop::option::of(value).prop_map(|value| value.map_or(Auto::Auto, Auto::Value))
    }

    prop_compose! {
        fn recipe()(
            lr in auto(number()),
            (weight_decay, beta, drop) in (number(), number(), number()),
            eps in any::<f32>().prop_filter("NaN equals nothing", |x| !x.is_nan()),
            seed in 0..=i64::MAX as u64,
            (name, path) in (".*", "\\PC*"),
            (workers, crops) in (auto(0usize..9), auto(prop::collection::vec(any::<u32>(), 0..4))),
            (kind, cut) in (auto(Just(Source::Parquet)), auto((0usize..9, number()))),
            prototypes in prop::collection::vec(0usize..1 << 40, 0..4),
            empty in prop::collection::vec(number(), 0..4),
            stages in prop::collection::vec((0usize..9, number()), 0..3),
            notes in prop::collection::btree_map(".*", number(), 0..3),
            (limit, fast) in (any::<Option<u32>>(), any::<bool>()),
        ) -> Recipe {
            let stage = |(width, drop)| Stage { width, drop };
            Recipe {
                optim: Optim { lr, weight_decay, betas: (beta, drop), eps },
                seed,
                name,
                data: Data { path, source: Source::Parquet, workers, crops, kind, cut: match cut {
                    Auto::Auto => Auto::Auto,
                    Auto::Value(value) => Auto::Value(stage(value)),
                } },
                heads: Heads { prototypes, empty },
                stages: stages.into_iter().map(stage).collect(),
                notes,
                limit,
                fast,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_equal(recipe in recipe()) {
            let text = to_toml(&recipe).unwrap();
            prop_assert_eq!(with(&text, &[]).unwrap(), recipe, "{}", text);
        }

        #[test]
        fn no_text_panics(text in ".*", key in "[a-z.]{0,8}", value in ".*") {
            let _ = with(&text, &[]);
            let _ = with("", &[&text]);
            let _ = with("", &[&format!("{key}={value}")]);
            let _ = with("", &[&format!("optim.lr={value}")]);
        }
    }
}
