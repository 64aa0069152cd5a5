//! Two sources as one: what trains, and after it what was set aside for the final number.

use std::path::Path;
use std::sync::Arc;

use super::{Source, out_of_range};
use crate::error::DataError;
use crate::image::Image;

/// The examples of one source, followed by those of another.
pub struct Joined {
    first: Arc<dyn Source>,
    second: Box<dyn Source>,
    /// The first source's class of each class of the second.
    classes: Vec<u32>,
}

impl Joined {
    /// Joins two sources. Classes are those of the `first`; the `second`'s are found among them by name. `place` is where the
    /// second lies.
    ///
    /// # Errors
    /// Where the second has a class that the first does not have.
    pub fn new(first: Arc<dyn Source>, second: Box<dyn Source>, place: &Path) -> Result<Self, DataError> {
        let found = |class: &String| {
            let at = first.classes().iter().position(|known| known == class);
            at.map(|at| at as u32).ok_or_else(|| DataError::LabelsMissing {
                place: place.display().to_string(),
                reason: format!("its class `{class}` is none of the classes that are trained on"),
            })
        };
        let classes = second.classes().iter().map(found).collect::<Result<_, _>>()?;
        Ok(Self { first, second, classes })
    }

    /// The source that holds example `index`, and its number there.
    fn at(&self, index: usize) -> (&dyn Source, usize) {
        match index.checked_sub(self.first.len()) {
            None => (self.first.as_ref(), index),
            Some(index) => (self.second.as_ref(), index),
        }
    }
}

impl Source for Joined {
    fn kind(&self) -> &'static str {
        self.first.kind()
    }

    fn len(&self) -> usize {
        self.first.len() + self.second.len()
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        self.checked(index)?;
        let (source, index) = self.at(index);
        source.bytes(index)
    }

    fn read(&self, index: usize) -> Result<Image, DataError> {
        self.checked(index)?;
        let (source, index) = self.at(index);
        source.read(index)
    }

    fn name(&self, index: usize) -> String {
        let (source, index) = self.at(index);
        source.name(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        if index < self.first.len() {
            return self.first.label(index);
        }
        let (source, index) = self.at(index);
        self.classes.get(source.label(index)? as usize).copied()
    }

    fn classes(&self) -> &[String] {
        self.first.classes()
    }

    fn skipped(&self) -> usize {
        self.first.skipped() + self.second.skipped()
    }
}

impl Joined {
    fn checked(&self, index: usize) -> Result<(), DataError> {
        if index < self.len() {
            return Ok(());
        }
        Err(out_of_range(Path::new("both parts"), index, self.len()))
    }
}
