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
/// Name of the file with how a conversation becomes a text.
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Name of the file that says which tokens have a task.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Name of the file that says how a model writes.
const GENERATION: &str = "generation_config.json";
/// Name of the file that says how images are prepared.
const PREPROCESSOR: &str = "preprocessor_config.json";
/// Largest file of a tokenizer that is read, in bytes.
const MAX_FILE: u64 = 256 << 20;
/// Files that belong to a tokenizer, [`TOKENIZER`] apart, and to how a model is run.
const BESIDE: [&str; 9] = [
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    GENERATION,
    CHAT_TEMPLATE,
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "vocab.txt",
];

/// All files that may stand beside the weights in a folder.
pub(crate) fn files() -> impl Iterator<Item = &'static str> {
    [TOKENIZER, PREPROCESSOR].into_iter().chain(BESIDE)
}

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
            Self::Images(preprocessing) => write_json(&folder.join(PREPROCESSOR), &layout::preprocessor(preprocessing)),
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
    /// Further tokens that end one, by `config.json`.
    other_ends: Vec<u32>,
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
        Self {
            files: vec![
                (TOKENIZER.into(), tokenizer),
                (TOKENIZER_CONFIG.into(), pretty(&described)),
                (GENERATION.into(), pretty(&generation)),
            ],
            bos: id(&bos),
            eos: id(&eos),
            other_ends: Vec::new(),
        }
    }

    /// The same with the tokens that fill a text and that stand for what has none, and how a conversation becomes a text.
    #[must_use]
    pub fn with(mut self, padding: Special, unknown: Special, chat_template: Option<String>) -> Self {
        self.say(GENERATION, "pad_token_id", padding.as_ref().map(|(id, _)| json!(id)));
        self.say(TOKENIZER_CONFIG, "pad_token", padding.map(|(_, text)| json!(text)));
        self.say(TOKENIZER_CONFIG, "unk_token", unknown.map(|(_, text)| json!(text)));
        if let Some(template) = chat_template {
            self.files.push((CHAT_TEMPLATE.into(), template.into_bytes()));
        }
        self
    }

    /// Puts `value`, if there is one, into the object that the file `name` is.
    fn say(&mut self, name: &str, key: &str, value: Option<Value>) {
        let file = self.files.iter_mut().find(|(file, _)| file == name);
        if let (Some((_, bytes)), Some(value)) = (file, value)
            && let Ok(Value::Object(mut object)) = serde_json::from_slice(bytes)
        {
            object.insert(key.to_owned(), value);
            *bytes = pretty(&Value::Object(object));
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
        let ids = |key: &str| -> Vec<u32> {
            let value = config.get(key);
            let several = value.and_then(Value::as_array).map(Vec::as_slice);
            let each = several.or(value.map(std::slice::from_ref)).unwrap_or_default();
            each.iter()
                .filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
                .collect()
        };
        // Several tokens may end a text; the first is the model's own.
        let mut ends = ids("eos_token_id").into_iter();
        Ok(Some(Self {
            files,
            bos: ids("bos_token_id").first().copied(),
            eos: ends.next(),
            other_ends: ends.collect(),
        }))
    }

    /// What `config.json` says of the tokens that end a text: nothing, one or several.
    pub(crate) fn ends(&self) -> Value {
        match &self.other_ends[..] {
            [] => json!(self.eos),
            others => json!(self.eos.iter().chain(others).collect::<Vec<_>>()),
        }
    }

    /// The bytes of `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        self.file(TOKENIZER).unwrap_or(&[])
    }

    /// The object of `tokenizer_config.json`, if there is one.
    pub fn config(&self) -> Option<Value> {
        serde_json::from_slice(self.file(TOKENIZER_CONFIG)?).ok()
    }

    /// The text of `chat_template.jinja`, if there is one.
    pub fn chat_template(&self) -> Option<&str> {
        std::str::from_utf8(self.file(CHAT_TEMPLATE)?).ok()
    }

    fn file(&self, name: &str) -> Option<&[u8]> {
        let file = self.files.iter().find(|(file, _)| file == name);
        file.map(|(_, bytes)| &bytes[..])
    }

    fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            write_atomic(&path, |out| out.write_all(bytes)).map_err(|source| CheckpointError::Io { path, source })?;
        }
        Ok(())
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("text and numbers serialize");
    text.push(b'\n');
    text
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
        let (fills, unknown) = (Some((3, "<pad>".to_owned())), Some((2, "<unk>".to_owned())));
        let files = TokenizerFiles::new(b"{}".to_vec(), None, end, 64).with(fills, unknown, Some("{{ x }}\n".into()));
        files.write(base.path()).unwrap();
        let config = json!({ "bos_token_id": null, "eos_token_id": 0 });
        let back = TokenizerFiles::of_folder(base.path(), &config).unwrap().unwrap();
        assert_eq!(back, files);
        assert_eq!((back.json(), back.bos, back.eos), (&b"{}"[..], None, Some(0)));
        assert_eq!(back.chat_template(), Some("{{ x }}\n"));
        let said = back.config().unwrap();
        assert_eq!(
            (&said["pad_token"], &said["unk_token"]),
            (&json!("<pad>"), &json!("<unk>"))
        );
        let generation: Value = serde_json::from_slice(back.file(GENERATION).unwrap()).unwrap();
        assert_eq!(
            generation,
            json!({ "bos_token_id": null, "eos_token_id": 0, "pad_token_id": 3 })
        );
        let several = json!({ "eos_token_id": [7, 8] });
        let several = TokenizerFiles::of_folder(base.path(), &several).unwrap().unwrap();
        assert_eq!((several.eos, several.ends()), (Some(7), json!([7, 8])));
        assert_eq!((files.ends(), files.bos), (json!(0), None));
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(TokenizerFiles::of_folder(empty.path(), &config).unwrap(), None);
    }
}
