//! Values that are given or left to be worked out.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

pub(super) const AUTO: &str = "auto";

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
