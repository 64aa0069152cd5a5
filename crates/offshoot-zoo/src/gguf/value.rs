//! Metadata of a GGUF file: values with the format's types under names, in the order of the file.

use std::collections::HashMap;
use std::fmt;

/// One value of the metadata, with the type that it has in the file.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "these are the format's own types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// Several values of one type.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "these are the format's own types")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Text(Strings),
    /// Arrays in an array; each has its own type.
    Nested(Vec<Array>),
}

impl Value {
    /// What it is, in words.
    fn kind(&self) -> String {
        match self {
            Self::Array(array) => format!("an array of {} {}", array.len(), TYPES[array.id() as usize]),
            scalar => format!("one of type {}", TYPES[scalar.id() as usize]),
        }
    }

    /// It as a whole number that is not negative.
    fn size(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }
}

/// Hands the list of the plain numbers to the macro `$next`: the variant, the type, and its number in a file.
macro_rules! numbers {
    ($next:ident) => {
        $next! {
            U8 u8 0;
            I8 i8 1;
            U16 u16 2;
            I16 i16 3;
            U32 u32 4;
            I32 i32 5;
            F32 f32 6;
            U64 u64 10;
            I64 i64 11;
            F64 f64 12;
        }
    };
}
pub(crate) use numbers;

/// The number of truth values in a file.
pub(crate) const BOOL: u32 = 7;
/// The number of texts in a file.
pub(crate) const TEXT: u32 = 8;
/// The number of arrays in a file.
pub(crate) const ARRAY: u32 = 9;

macro_rules! ids {
    ($($variant:ident $type:ident $id:literal;)*) => {
        impl Value {
            /// The number of its type in a file.
            pub(crate) fn id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Bool(_) => BOOL,
                    Self::Text(_) => TEXT,
                    Self::Array(_) => ARRAY,
                }
            }
        }

        impl Array {
            /// The number of the type of its values in a file.
            pub(crate) fn id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Bool(_) => BOOL,
                    Self::Text(_) => TEXT,
                    Self::Nested(_) => ARRAY,
                }
            }

            /// How many values it has.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(v) => v.len(),)*
                    Self::Bool(v) => v.len(),
                    Self::Text(v) => v.len(),
                    Self::Nested(v) => v.len(),
                }
            }
        }

        $(
            impl From<$type> for Value {
                fn from(value: $type) -> Self {
                    Self::$variant(value)
                }
            }

            impl From<Vec<$type>> for Value {
                fn from(values: Vec<$type>) -> Self {
                    Self::Array(Array::$variant(values))
                }
            }
        )*
    };
}

numbers!(ids);

/// Names of the types by their numbers in a file.
const TYPES: [&str; 13] = [
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "text", "array", "u64", "i64", "f64",
];

impl Array {
    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its values as whole numbers that are not negative.
    fn sizes(&self) -> Option<Vec<u64>> {
        fn all<T: Copy + TryInto<u64>>(values: &[T]) -> Option<Vec<u64>> {
            values.iter().map(|&v| v.try_into().ok()).collect()
        }
        match self {
            Self::U8(v) => all(v),
            Self::I8(v) => all(v),
            Self::U16(v) => all(v),
            Self::I16(v) => all(v),
            Self::U32(v) => all(v),
            Self::I32(v) => all(v),
            Self::U64(v) => all(v),
            Self::I64(v) => all(v),
            _ => None,
        }
    }
}

/// Many short texts in one piece of memory, which is never larger than they are in a file.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    /// Where each text ends.
    ends: Vec<u32>,
}

impl Strings {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text number `i`, if there are as many.
    pub fn get(&self, i: usize) -> Option<&str> {
        let end = *self.ends.get(i)? as usize;
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        Some(&self.text[start..end])
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|i| self.get(i).expect("it is below the length"))
    }

    /// Adds one.
    ///
    /// # Panics
    /// Beyond 4 GiB of text, which is more than a reader takes.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends
            .push(self.text.len().try_into().expect("texts of a header are below 4 GiB"));
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T: AsRef<str>> FromIterator<T> for Strings {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let mut strings = Self::default();
        texts.into_iter().for_each(|text| strings.push(text.as_ref()));
        strings
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Strings> for Value {
    fn from(texts: Strings) -> Self {
        Self::Array(Array::Text(texts))
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Self::Array(array)
    }
}

/// A value of the metadata is not what its name asks for, or is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// It is not there.
    #[error("the metadata has no `{key}`")]
    Missing {
        /// Its name.
        key: String,
    },
    /// It is something else.
    #[error("`{key}` is {found}, not {wanted}")]
    Kind {
        /// Its name.
        key: String,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
}

/// Named values, in the order of the file. No name comes twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    places: HashMap<String, usize>,
}

impl Metadata {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names and values, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value `key`, if it is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.places.get(key).map(|&place| &self.entries[place].1)
    }

    /// Gives `key` this value: where it stood before, else at the end. Says what stood there.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Option<Value> {
        let value = value.into();
        match self.places.get(key) {
            Some(&place) => Some(std::mem::replace(&mut self.entries[place].1, value)),
            None => {
                self.places.insert(key.to_owned(), self.entries.len());
                self.entries.push((key.to_owned(), value));
                None
            }
        }
    }

    /// Takes over all values of `other`.
    pub fn extend(&mut self, other: Self) {
        for (key, value) in other.entries {
            self.set(&key, value);
        }
    }

    /// The text `key`, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, MetadataError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, other, "text")),
        }
    }

    /// The whole number `key`, of whatever integer type, if it is there.
    ///
    /// # Errors
    /// If it is something else, or negative.
    pub fn size(&self, key: &str) -> Result<Option<u64>, MetadataError> {
        let number = |value: &Value| {
            value
                .size()
                .ok_or_else(|| wrong(key, value, "a whole number from 0 on"))
        };
        self.get(key).map(number).transpose()
    }

    /// The whole numbers `key`, if they are there: an array, or one for all.
    ///
    /// # Errors
    /// If it is something else, or one is negative.
    pub fn sizes(&self, key: &str) -> Result<Option<Sizes>, MetadataError> {
        let numbers = |value: &Value| {
            let sizes = match value {
                Value::Array(array) => array.sizes().map(Sizes::Each),
                scalar => scalar.size().map(Sizes::All),
            };
            sizes.ok_or_else(|| wrong(key, value, "whole numbers from 0 on"))
        };
        self.get(key).map(numbers).transpose()
    }

    /// The number `key`, of whatever type, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>, MetadataError> {
        let number = |value: &Value| match *value {
            Value::F32(v) => Ok(v.into()),
            Value::F64(v) => Ok(v),
            ref other => match other.size() {
                Some(v) => Ok(v as f64),
                None => Err(wrong(key, other, "a number")),
            },
        };
        self.get(key).map(number).transpose()
    }

    /// The truth value `key`, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, MetadataError> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(key, other, "true or false")),
        }
    }

    /// The texts `key`, if they are there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn texts(&self, key: &str) -> Result<Option<&Strings>, MetadataError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Text(texts))) => Ok(Some(texts)),
            Some(other) => Err(wrong(key, other, "an array of text")),
        }
    }

    /// The numbers `key`, if they are there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>, MetadataError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32(numbers))) => Ok(Some(numbers.clone())),
            // The format's own readers take whole numbers for scores, too.
            Some(Value::Array(Array::I32(numbers))) => Ok(Some(numbers.iter().map(|&v| v as f32).collect())),
            Some(other) => Err(wrong(key, other, "an array of f32")),
        }
    }

    /// What must be there: the value of one of the methods above, or an error that it is missing.
    ///
    /// # Errors
    /// If there is none.
    pub fn required<T>(key: &str, value: Option<T>) -> Result<T, MetadataError> {
        value.ok_or_else(|| MetadataError::Missing { key: key.to_owned() })
    }
}

/// One size for all layers, or one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// The same for all.
    All(u64),
    /// One for each.
    Each(Vec<u64>),
}

fn wrong(key: &str, found: &Value, wanted: &'static str) -> MetadataError {
    MetadataError::Kind {
        key: key.to_owned(),
        found: found.kind(),
        wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stay_apart_and_empty_ones_count() {
        let texts = ["", "a", "", "\u{2581}b\n", ""];
        let strings: Strings = texts.iter().collect();
        assert_eq!(strings.iter().collect::<Vec<_>>(), texts);
        assert_eq!(strings.get(3), Some("\u{2581}b\n"));
        assert_eq!(strings.get(5), None);
    }

    #[test]
    fn a_value_is_read_as_what_it_is_and_otherwise_named() {
        let mut metadata = Metadata::new();
        metadata.set("n", 7u8);
        metadata.set("m", -7i32);
        metadata.set("each", vec![1u32, 2]);
        metadata.set("t", "text");
        assert_eq!(metadata.set("n", 8u64), Some(Value::U8(7)));
        assert_eq!(metadata.size("n"), Ok(Some(8)));
        assert_eq!(metadata.sizes("n"), Ok(Some(Sizes::All(8))));
        assert_eq!(metadata.sizes("each"), Ok(Some(Sizes::Each(vec![1, 2]))));
        assert_eq!(metadata.size("absent"), Ok(None));
        assert_eq!(
            metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            ["n", "m", "each", "t"]
        );
        let text = |e: MetadataError| e.to_string();
        assert_eq!(
            text(metadata.size("m").unwrap_err()),
            "`m` is one of type i32, not a whole number from 0 on"
        );
        assert_eq!(
            text(metadata.flag("each").unwrap_err()),
            "`each` is an array of 2 u32, not true or false"
        );
    }
}
