//! The shapes that an architecture can be cut to: a finite grid over named axes, each cell a valid, exportable child.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One cell of a space: a size for each axis, in the order of the space's axes, such as `width` 384 and `depth` 12.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape(Vec<(String, usize)>);

impl Shape {
    /// A shape from axis names and sizes.
    pub fn new<S: Into<String>>(sizes: impl IntoIterator<Item = (S, usize)>) -> Self {
        Self(sizes.into_iter().map(|(name, size)| (name.into(), size)).collect())
    }

    /// The size along the axis `name`.
    pub fn get(&self, name: &str) -> Option<usize> {
        self.0.iter().find(|(n, _)| n == name).map(|&(_, size)| size)
    }

    /// Axis names and sizes in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(name, size)| (name.as_str(), *size))
    }

    /// The sizes joined by `x`: `384x12`. It is safe as a file name and is the child's id.
    pub fn id(&self) -> String {
        self.0
            .iter()
            .map(|(_, size)| size.to_string())
            .collect::<Vec<_>>()
            .join("x")
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, size) in &self.0 {
            map.serialize_entry(name, size)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of axis names to sizes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                let mut sizes = Vec::new();
                while let Some(pair) = map.next_entry::<String, usize>()? {
                    sizes.push(pair);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// One axis of a space: its name and the sizes it can take, ascending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// Name, as in [`Shape`].
    pub name: String,
    /// Sizes, ascending; the last one is the parent's.
    pub sizes: Vec<usize>,
}

/// A finite space: every combination of the axes' sizes. The combination of the last sizes is the intact parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// The axes, the slowest-varying first.
    pub axes: Vec<Axis>,
}

impl Space {
    /// Number of shapes.
    pub fn count(&self) -> usize {
        self.axes.iter().map(|axis| axis.sizes.len()).product()
    }

    /// The largest shape: the parent itself.
    pub fn intact(&self) -> Shape {
        Shape(
            self.axes
                .iter()
                .map(|a| (a.name.clone(), *a.sizes.last().expect("an axis has a size")))
                .collect(),
        )
    }

    /// The smallest shape.
    pub fn smallest(&self) -> Shape {
        Shape(self.axes.iter().map(|a| (a.name.clone(), a.sizes[0])).collect())
    }

    /// The shape at the middle of every axis (the lower one of two).
    pub fn middle(&self) -> Shape {
        Shape(
            self.axes
                .iter()
                .map(|a| (a.name.clone(), a.sizes[(a.sizes.len() - 1) / 2]))
                .collect(),
        )
    }

    /// Whether `shape` names exactly this space's axes with sizes that they can take.
    pub fn contains(&self, shape: &Shape) -> bool {
        shape.0.len() == self.axes.len()
            && self
                .axes
                .iter()
                .zip(&shape.0)
                .all(|(axis, (name, size))| axis.name == *name && axis.sizes.contains(size))
    }

    /// All shapes, the last axis fastest.
    pub fn iter(&self) -> impl Iterator<Item = Shape> + '_ {
        (0..self.count()).map(|index| self.at(index))
    }

    /// The shape at `index` of [`iter`](Self::iter), for drawing one at random: `index < count()`.
    pub fn at(&self, mut index: usize) -> Shape {
        let mut sizes = Vec::with_capacity(self.axes.len());
        for axis in self.axes.iter().rev() {
            sizes.push((axis.name.clone(), axis.sizes[index % axis.sizes.len()]));
            index /= axis.sizes.len();
        }
        sizes.reverse();
        Shape(sizes)
    }

    /// Reads a shape written as `384x12`, the sizes in the order of the axes.
    ///
    /// # Errors
    /// Says what is wrong with the text and which sizes exist.
    pub fn parse(&self, text: &str) -> Result<Shape, String> {
        let sizes: Vec<usize> = text
            .split('x')
            .map(|part| {
                part.trim()
                    .parse()
                    .map_err(|_| format!("`{part}` in `{text}` is not a number"))
            })
            .collect::<Result<_, _>>()?;
        let names: Vec<&str> = self.axes.iter().map(|a| a.name.as_str()).collect();
        if sizes.len() != self.axes.len() {
            return Err(format!(
                "`{text}` has {} sizes; this family wants {}",
                sizes.len(),
                names.iter().map(|n| n.to_uppercase()).collect::<Vec<_>>().join("x")
            ));
        }
        for (axis, size) in self.axes.iter().zip(&sizes) {
            if !axis.sizes.contains(size) {
                let known: Vec<String> = axis.sizes.iter().map(usize::to_string).collect();
                return Err(format!(
                    "no child has {} {size}; there are {}",
                    axis.name,
                    known.join(", ")
                ));
            }
        }
        Ok(Shape::new(names.into_iter().zip(sizes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vit_l() -> Space {
        Space {
            axes: vec![
                Axis {
                    name: "width".into(),
                    sizes: (0..11).map(|i| 384 + 64 * i).collect(),
                },
                Axis {
                    name: "depth".into(),
                    sizes: (12..=24).collect(),
                },
            ],
        }
    }

    #[test]
    fn vit_l_has_143_shapes_and_every_one_is_contained() {
        let space = vit_l();
        assert_eq!(space.count(), 143);
        let all: Vec<Shape> = space.iter().collect();
        assert_eq!(all.len(), 143);
        assert!(all.iter().all(|s| space.contains(s)));
        assert_eq!(all[0], space.smallest());
        assert_eq!(all[142], space.intact());
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 143);
    }

    #[test]
    fn parse_reads_what_id_writes_and_refuses_the_rest() {
        let space = vit_l();
        for shape in space.iter() {
            assert_eq!(space.parse(&shape.id()).unwrap(), shape);
        }
        assert!(space.parse("390x12").unwrap_err().contains("384, 448"));
        assert!(space.parse("384").unwrap_err().contains("WIDTHxDEPTH"));
        assert!(space.parse("axb").is_err());
        assert!(!space.contains(&Shape::new([("depth", 12), ("width", 384)])));
    }

    #[test]
    fn shapes_survive_json_in_order() {
        let shape = Shape::new([("width", 384), ("depth", 12)]);
        let text = serde_json::to_string(&shape).unwrap();
        assert_eq!(text, r#"{"width":384,"depth":12}"#);
        assert_eq!(serde_json::from_str::<Shape>(&text).unwrap(), shape);
    }
}
