//! A folder of image files, flat or nested to any depth.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Labels, Source, file_name, has_extension, out_of_range};
use crate::error::DataError;
use crate::image::{Image, MAX_ENCODED_BYTES};

/// The extensions (in any case) by which a file counts as an image. Others are passed over and counted.
pub const EXTENSIONS: &[&str] = &[
    "jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "pgm", "ppm", "pbm", "pnm",
];

/// How deep folders may be nested.
const MAX_DEPTH: usize = 64;

/// Image files below one folder, in the order of their paths.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    /// Relative to `root`.
    files: Vec<PathBuf>,
    labels: Vec<u32>,
    classes: Vec<String>,
    skipped: usize,
}

impl Folder {
    /// Lists the images below `root`. With [`Labels::Use`] the first folder on the way to a file is its class, and the
    /// classes are those folders in sorted order. Links are followed; hidden files and folders are passed over.
    ///
    /// # Errors
    /// Where a folder cannot be read, there is no image, or an image lies in no class folder though labels are asked for.
    pub fn open(root: &Path, labels: Labels) -> Result<Self, DataError> {
        let mut found = Self {
            root: root.to_path_buf(),
            files: Vec::new(),
            labels: Vec::new(),
            classes: Vec::new(),
            skipped: 0,
        };
        let listing = list(root, &|path| has_extension(path, EXTENSIONS))?;
        (found.files, found.skipped) = (listing.files, listing.skipped);
        if found.files.is_empty() {
            let found = format!("{} other files", found.skipped);
            return Err(DataError::Empty {
                place: root.display().to_string(),
                found,
            });
        }
        if labels == Labels::Use {
            found.take_labels()?;
        }
        Ok(found)
    }

    /// A single image file as a source of one example.
    ///
    /// # Errors
    /// Where labels are asked for: a single file has none.
    pub fn single(path: &Path, labels: Labels) -> Result<Self, DataError> {
        if labels == Labels::Use {
            let reason = "a single image has no class folder".into();
            return Err(DataError::LabelsMissing {
                place: path.display().to_string(),
                reason,
            });
        }
        let root = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let files = vec![PathBuf::from(path.file_name().unwrap_or(path.as_os_str()))];
        Ok(Self {
            root,
            files,
            labels: Vec::new(),
            classes: Vec::new(),
            skipped: 0,
        })
    }

    fn take_labels(&mut self) -> Result<(), DataError> {
        for file in &self.files {
            let mut parts = file.components();
            let class = parts.next().map(|c| c.as_os_str().to_string_lossy().into_owned());
            let (Some(class), Some(_)) = (class, parts.next()) else {
                let place = self.root.join(file).display().to_string();
                return Err(DataError::LabelsMissing {
                    place,
                    reason: "the image lies in no class folder".into(),
                });
            };
            // Sorted paths keep each class together.
            if self.classes.last() != Some(&class) {
                self.classes.push(class);
            }
            self.labels.push(self.classes.len() as u32 - 1);
        }
        Ok(())
    }

    fn path(&self, index: usize) -> Result<PathBuf, DataError> {
        let file = self
            .files
            .get(index)
            .ok_or_else(|| out_of_range(&self.root, index, self.files.len()))?;
        Ok(self.root.join(file))
    }
}

/// What lies below a folder.
pub(crate) struct Listing {
    /// The files wanted, relative to the folder, in the order of their paths.
    pub(crate) files: Vec<PathBuf>,
    /// Other files.
    pub(crate) skipped: usize,
}

/// Lists the files below `root` whose path is wanted. Links are followed, but not round in circles; hidden files and
/// folders are passed over.
pub(crate) fn list(root: &Path, is_wanted: &dyn Fn(&Path) -> bool) -> Result<Listing, DataError> {
    let mut listing = Listing {
        files: Vec::new(),
        skipped: 0,
    };
    list_below(
        root,
        Path::new(""),
        &mut vec![canonical(root)?],
        is_wanted,
        &mut listing,
    )?;
    listing.files.sort();
    Ok(listing)
}

fn list_below(
    root: &Path,
    below: &Path,
    ancestors: &mut Vec<PathBuf>,
    is_wanted: &dyn Fn(&Path) -> bool,
    listing: &mut Listing,
) -> Result<(), DataError> {
    let folder = root.join(below);
    if ancestors.len() > MAX_DEPTH {
        let reason = format!("folders are nested more than {MAX_DEPTH} deep");
        return Err(DataError::damaged(folder.display().to_string(), reason));
    }
    for entry in fs::read_dir(&folder).map_err(|e| DataError::io(&folder, e))? {
        let entry = entry.map_err(|e| DataError::io(&folder, e))?;
        let relative = below.join(entry.file_name());
        let path = entry.path();
        let kind = entry.file_type().map_err(|e| DataError::io(&path, e))?;
        let is_hidden = file_name(&path).starts_with('.');
        let is_folder = if kind.is_symlink() {
            path.is_dir()
        } else {
            kind.is_dir()
        };
        if is_folder && !is_hidden {
            let target = canonical(&path)?;
            if !ancestors.contains(&target) {
                ancestors.push(target);
                list_below(root, &relative, ancestors, is_wanted, listing)?;
                ancestors.pop();
            }
        } else if !is_folder && !is_hidden && is_wanted(&path) {
            listing.files.push(relative);
        } else if !is_folder {
            listing.skipped += 1;
        }
    }
    Ok(())
}

fn canonical(path: &Path) -> Result<PathBuf, DataError> {
    fs::canonicalize(path).map_err(|e| DataError::io(path, e))
}

impl Source for Folder {
    fn kind(&self) -> &'static str {
        "folder"
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let path = self.path(index)?;
        let file = fs::File::open(&path).map_err(|e| DataError::io(&path, e))?;
        let mut bytes = Vec::new();
        file.take(MAX_ENCODED_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| DataError::io(&path, e))?;
        if bytes.len() as u64 > MAX_ENCODED_BYTES {
            let limit = format!("{} MiB", MAX_ENCODED_BYTES >> 20);
            return Err(DataError::TooLarge {
                place: path.display().to_string(),
                what: "an image file".into(),
                limit,
            });
        }
        Ok(bytes)
    }

    fn read(&self, index: usize) -> Result<Image, DataError> {
        Image::decode(&self.bytes(index)?, &self.path(index)?.display().to_string())
    }

    fn name(&self, index: usize) -> String {
        self.files
            .get(index)
            .map_or_else(String::new, |file| file.display().to_string())
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn skipped(&self) -> usize {
        self.skipped
    }
}
