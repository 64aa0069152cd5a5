//! The tensors of a checkpoint by name: one safetensors file, several that an index brings together, or a GGUF file.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use offshoot_family::files::content_hash;
use serde_json::Value;

use crate::checkpoint::{CheckpointError, read_json};
use crate::gguf::GgufFile;
use crate::safetensors::SafetensorsFile;

/// Most files that one index may name.
const MOST: usize = 1000;

/// The weights files of a checkpoint, open, with every name in one place.
#[derive(Debug)]
pub struct WeightFiles {
    /// What the user would look at: the only file, or the index.
    path: PathBuf,
    files: Files,
    /// The number of the file that a tensor is in.
    places: HashMap<String, usize>,
}

#[derive(Debug)]
enum Files {
    Safetensors(Vec<SafetensorsFile>),
    Gguf(Box<GgufFile>),
}

impl WeightFiles {
    /// One file.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn single(path: &Path) -> Result<Self, CheckpointError> {
        let file = SafetensorsFile::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            places: file.names().into_iter().map(|name| (name, 0)).collect(),
            files: Files::Safetensors(vec![file]),
        })
    }

    /// One GGUF file.
    pub fn gguf(file: GgufFile) -> Self {
        Self {
            path: file.path().to_owned(),
            places: file.names().map(|name| (name.to_owned(), 0)).collect(),
            files: Files::Gguf(Box::new(file)),
        }
    }

    /// The files that `index`, a `model.safetensors.index.json`, names beside itself.
    ///
    /// # Errors
    /// If it is none, names a file of another folder, or the files hold other tensors than it says.
    pub fn indexed(index: &Path) -> Result<Self, CheckpointError> {
        let wrong = |reason: String| CheckpointError::Config {
            path: index.to_owned(),
            reason,
        };
        let text = read_json(index)?;
        let map = text.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| wrong("`weight_map` is missing".into()))?;
        let mut files: Vec<SafetensorsFile> = Vec::new();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut places = HashMap::new();
        for (tensor, file) in map {
            let name = file
                .as_str()
                .ok_or_else(|| wrong(format!("`{tensor}` is in {file}, which is no file name")))?;
            let number = match numbers.get(name) {
                Some(&number) => number,
                None => {
                    let mut parts = Path::new(name).components();
                    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                        return Err(wrong(format!("`{name}` is no file of the same folder")));
                    }
                    if files.len() == MOST {
                        return Err(wrong(format!("names more than {MOST} files")));
                    }
                    files.push(SafetensorsFile::open(&index.with_file_name(name))?);
                    numbers.insert(name, files.len() - 1);
                    files.len() - 1
                }
            };
            if files[number].shape(tensor).is_none() {
                return Err(wrong(format!("`{tensor}` is not in `{name}`")));
            }
            places.insert(tensor.clone(), number);
        }
        if files.is_empty() {
            return Err(wrong("`weight_map` names no tensor".into()));
        }
        for (number, file) in files.iter().enumerate() {
            if let Some(name) = file.names().into_iter().find(|name| places.get(name) != Some(&number)) {
                let shard = file.path().display();
                return Err(wrong(format!("`{name}` is in {shard}, but the index says otherwise")));
            }
        }
        Ok(Self {
            path: index.to_owned(),
            files: Files::Safetensors(files),
            places,
        })
    }

    /// The file, or the index of several.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.places.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Number of tensors.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Shape of the tensor `name`, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let &place = self.places.get(name)?;
        match &self.files {
            Files::Safetensors(files) => files[place].shape(name),
            Files::Gguf(file) => file.shape(name),
        }
    }

    /// Makes sure that the tensor `name` is there and of a type that is read as numbers.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, name: &str) -> Result<(), CheckpointError> {
        match &self.files {
            Files::Safetensors(files) => Ok(files[self.place(name)].check(name)?),
            Files::Gguf(file) => Ok(file.check(name)?),
        }
    }

    /// The elements of the tensor `name` as f32, row-major.
    ///
    /// # Errors
    /// If it is not there, not numbers, or cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        match &self.files {
            Files::Safetensors(files) => Ok(files[self.place(name)].read(name)?),
            Files::Gguf(file) => Ok(file.read(name)?),
        }
    }

    /// The number of the file that says of `name` what it has to say; the first where none has it.
    fn place(&self, name: &str) -> usize {
        self.places.get(name).copied().unwrap_or(0)
    }

    /// Content hash, hex: of the file, or of the hashes of several one after the other.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn hash(&self) -> Result<String, CheckpointError> {
        let hash = |path: &Path| {
            content_hash(path).map_err(|source| CheckpointError::Io {
                path: path.to_owned(),
                source,
            })
        };
        let files = match &self.files {
            Files::Gguf(file) => return hash(file.path()),
            Files::Safetensors(files) => files,
        };
        if let [file] = &files[..] {
            return hash(file.path());
        }
        let mut all = String::new();
        for file in files {
            all.push_str(&hash(file.path())?);
        }
        Ok(blake3::hash(all.as_bytes()).to_hex().to_string())
    }
}
