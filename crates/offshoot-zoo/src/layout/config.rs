//! Reading a `config.json`: numbers by key, with what is wrong with them in words.

use serde_json::Value;

/// The object of a `config.json`.
#[derive(Clone, Copy)]
pub(crate) struct Config<'a>(pub(crate) &'a Value);

impl<'a> Config<'a> {
    /// What stands at `key`; null counts as nothing.
    fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// The whole number at `key`, or `default` where there is none.
    ///
    /// # Errors
    /// If there is neither, or it is no whole number.
    pub(crate) fn size(self, key: &str, default: Option<usize>) -> Result<usize, String> {
        match self.get(key) {
            None => default.ok_or(format!("`{key}` is missing")),
            Some(value) => whole(key, value),
        }
    }

    /// The whole numbers at `key`.
    ///
    /// # Errors
    /// If they are missing, no list, or no whole numbers.
    pub(crate) fn sizes(self, key: &str) -> Result<Vec<usize>, String> {
        let value = self.0.get(key).ok_or(format!("`{key}` is missing"))?;
        let list = value.as_array().ok_or(format!("`{key}` is {value}, not a list"))?;
        list.iter().map(|value| whole(key, value)).collect()
    }

    /// The number at `key`, or `default` where there is none.
    ///
    /// # Errors
    /// If it is no number.
    pub(crate) fn number(self, key: &str, default: f64) -> Result<f64, String> {
        let value = self.get(key).map_or(Some(default), Value::as_f64);
        value.ok_or(format!("`{key}` is no number"))
    }

    /// Whether the value at `key` is true, or `default` where there is none.
    ///
    /// # Errors
    /// If it is neither true nor false.
    pub(crate) fn flag(self, key: &str, default: bool) -> Result<bool, String> {
        let value = self.get(key).map_or(Some(default), Value::as_bool);
        value.ok_or(format!("`{key}` is neither true nor false"))
    }

    /// The word at `key`, if there is one.
    ///
    /// # Errors
    /// If something else is there.
    pub(crate) fn text(self, key: &str) -> Result<Option<&'a str>, String> {
        let word = |value: &'a Value| value.as_str().ok_or_else(|| format!("`{key}` is {value}, not a word"));
        self.get(key).map(word).transpose()
    }

    /// The object at `key`, if there is one.
    ///
    /// # Errors
    /// If something else is there.
    pub(crate) fn object(self, key: &str) -> Result<Option<Self>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(value) if value.is_object() => Ok(Some(Config(value))),
            Some(value) => Err(format!("`{key}` is {value}, not an object")),
        }
    }

    /// Whether it has no keys.
    pub(crate) fn is_empty(self) -> bool {
        self.0.as_object().is_none_or(serde_json::Map::is_empty)
    }

    /// Refuses any value at `keys` but the one given; a key that is missing is taken to have it.
    ///
    /// # Errors
    /// Names the first that has another.
    pub(crate) fn only(self, keys: &[(&str, Value)]) -> Result<(), String> {
        let other = |(key, only): &&(&str, Value)| self.get(key).is_some_and(|value| value != only);
        match keys.iter().find(other) {
            None => Ok(()),
            Some((key, only)) => Err(format!("`{key}` is {}; only {only} is supported", self.0[*key])),
        }
    }
}

fn whole(key: &str, value: &Value) -> Result<usize, String> {
    // A ratio may be written as 4.0.
    let number = value.as_u64().or_else(|| {
        value
            .as_f64()
            .filter(|v| v.fract() == 0.0 && (0.0..1e15).contains(v))
            .map(|v| v as u64)
    });
    let number = number.ok_or(format!("`{key}` is {value}, not a whole number"))?;
    usize::try_from(number).map_err(|e| e.to_string())
}
