//! What stands beside the weights in a checkpoint folder: how an image or a text becomes the network's input.

use std::io::Read;
use std::path::Path;

use offshoot_family::catalog::Preprocessing;
use offshoot_family::files::write_atomic;
use serde_json::{Value, json};

use crate::checkpoint::{CheckpointError, read_json, write_json};
use crate::layout;

/// Name of a tokenizer's file in a folder.
pub const TOKENIZER: &str = "tokenizer.json";
/// Largest file of a tokenizer that is read, in bytes.
const MAX_FILE: u64 = 256 << 20;
/// Files that belong to a tokenizer, [`TOKENIZER`] apart, and to how a model is run.
const BESIDE: [&str; 9] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "vocab.txt",
];

/// How an example becomes the network's input.
#[derive(Clone, Debug, PartialEq)]
pub enum Preparation {
    /// An image: resized, cropped, normalised.
    Images(Preprocessing),
    /// A text, by a tokenizer.
    Text(TokenizerFiles),
}

impl Preparation {
    /// Writes the files that say so into a checkpoint folder.
    ///
    /// # Errors
    /// If one cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        match self {
            Self::Images(preprocessing) => write_json(
                &folder.join("preprocessor_config.json"),
                &layout::preprocessor(preprocessing),
            ),
            Self::Text(tokenizer) => tokenizer.write(folder),
        }
    }
}

/// The files of a tokenizer as they stand in a checkpoint folder, and the tokens that begin and end a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerFiles {
    files: Vec<(String, Vec<u8>)>,
    /// The token before a text, if there is one.
    pub bos: Option<u32>,
    /// The token behind a text, if there is one.
    pub eos: Option<u32>,
}

/// A special token: its id and its text.
pub type Special = Option<(u32, String)>;

impl TokenizerFiles {
    /// A folder's files for a tokenizer of ours: its `tokenizer.json`, the tokens before and behind a text, and the most tokens of a
    /// text.
    pub fn new(tokenizer: Vec<u8>, bos: Special, eos: Special, context: usize) -> Self {
        let text = |token: &Special| token.as_ref().map(|(_, text)| text.clone());
        let id = |token: &Special| token.as_ref().map(|(id, _)| *id);
        let mut described = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": false
        });
        for (key, token) in [("bos_token", &bos), ("eos_token", &eos)] {
            if let Some(text) = text(token) {
                described[key] = json!(text);
            }
        }
        let generation = json!({ "bos_token_id": id(&bos), "eos_token_id": id(&eos) });
        let pretty = |value: &Value| {
            let mut text = serde_json::to_vec_pretty(value).expect("text and numbers serialize");
            text.push(b'\n');
            text
        };
        Self {
            files: vec![
                (TOKENIZER.into(), tokenizer),
                ("tokenizer_config.json".into(), pretty(&described)),
                ("generation_config.json".into(), pretty(&generation)),
            ],
            bos: id(&bos),
            eos: id(&eos),
        }
    }

    /// The files of a checkpoint folder.
    ///
    /// # Errors
    /// If it has no `tokenizer.json`, or a file cannot be read.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let config = read_json(&folder.join("config.json"))?;
        Self::of_folder(folder, &config)?.ok_or_else(|| {
            let shown = folder.display();
            CheckpointError::Unsupported {
                path: folder.to_owned(),
                reason: "there is no tokenizer.json".into(),
                hint: format!(
                    "write one with transformers: python -c \"from transformers import AutoTokenizer as a; \
                     a.from_pretrained('{shown}').save_pretrained('{shown}')\""
                ),
            }
        })
    }

    /// The files of a checkpoint folder; none if it has no `tokenizer.json`. `config` is its `config.json`.
    ///
    /// # Errors
    /// If a file cannot be read, or is larger than a tokenizer can be.
    fn of_folder(folder: &Path, config: &Value) -> Result<Option<Self>, CheckpointError> {
        if !folder.join(TOKENIZER).is_file() {
            return Ok(None);
        }
        let mut files = Vec::new();
        for name in [TOKENIZER].into_iter().chain(BESIDE) {
            let path = folder.join(name);
            if path.is_file() {
                files.push((name.to_owned(), read(&path)?));
            }
        }
        // Several tokens may end a text; the first is the model's own.
        let id = |key: &str| {
            let value = config.get(key)?;
            let first = value.as_array().map_or(Some(value), |several| several.first())?;
            first.as_u64().and_then(|id| u32::try_from(id).ok())
        };
        Ok(Some(Self {
            files,
            bos: id("bos_token_id"),
            eos: id("eos_token_id"),
        }))
    }

    /// The bytes of `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        let file = self.files.iter().find(|(name, _)| name == TOKENIZER);
        file.map_or(&[], |(_, bytes)| bytes)
    }

    /// The object of `tokenizer_config.json`, if there is one.
    pub fn config(&self) -> Option<Value> {
        let (_, bytes) = self.files.iter().find(|(name, _)| name == "tokenizer_config.json")?;
        serde_json::from_slice(bytes).ok()
    }

    fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            write_atomic(&path, |out| out.write_all(bytes)).map_err(|source| CheckpointError::Io { path, source })?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CheckpointError::Config {
            path: path.to_owned(),
            reason: format!("larger than {} MiB", MAX_FILE >> 20),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_from_a_folder_as_they_were_written() {
        let base = tempfile::tempdir().unwrap();
        let end = Some((0, "<|endoftext|>".to_owned()));
        let files = TokenizerFiles::new(b"{}".to_vec(), None, end, 64);
        files.write(base.path()).unwrap();
        let config = json!({ "bos_token_id": null, "eos_token_id": 0 });
        let back = TokenizerFiles::of_folder(base.path(), &config).unwrap().unwrap();
        assert_eq!(back, files);
        assert_eq!((back.json(), back.bos, back.eos), (&b"{}"[..], None, Some(0)));
        let several = json!({ "eos_token_id": [7, 8] });
        assert_eq!(
            TokenizerFiles::of_folder(base.path(), &several).unwrap().unwrap().eos,
            Some(7)
        );
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(TokenizerFiles::of_folder(empty.path(), &config).unwrap(), None);
    }
}
