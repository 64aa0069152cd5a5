//! A language model named on the command line: the children of a run, a folder of transformers or a GGUF file, with its tokenizer.

use std::path::{Path, PathBuf};

use offshoot_data::text::Tokenizer;
use offshoot_family::catalog::TextRef;
use offshoot_family::{Architecture, Catalog};
use offshoot_zoo::preparation::TOKENIZER;
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{CheckpointError, Network, Preparation, TokenizerFiles, Weights, generate, import, network};

use super::images::{self, Family};
use crate::args::BeginOfText;
use crate::failure::Failure;

/// The tokenizer of the model at `place`, a folder or a file, whose embedding has `vocabulary` rows.
///
/// # Errors
/// If it is none, or has tokens that the model has no row for: then it is another model's. Rows without a token are common.
pub fn tokenizer(files: &TokenizerFiles, place: &Path, vocabulary: usize) -> Result<Tokenizer, Failure> {
    let is_folder = place.is_dir();
    let place = if is_folder {
        place.join(TOKENIZER)
    } else {
        place.to_owned()
    };
    let tokenizer = Tokenizer::from_bytes(files.json().to_vec(), &place.display().to_string())?;
    if tokenizer.vocabulary() > vocabulary {
        return Err(Failure::input(
            format!(
                "{} has {} tokens, and the model's vocabulary only {vocabulary}",
                place.display(),
                tokenizer.vocabulary()
            ),
            if is_folder {
                "tokenizer.json belongs to another model: put the model's own into its folder"
            } else {
                "the file's list of tokens belongs to another model: convert the model again"
            },
        ));
    }
    Ok(tokenizer)
}

/// Language models that read the same tokens.
pub struct LanguageModels {
    place: PathBuf,
    source: Source,
    /// Their tokenizer.
    pub tokenizer: Tokenizer,
    /// Their begin-of-text token by `config.json`.
    begin: Option<u32>,
    /// The tokens that end a text of theirs.
    pub ends: Vec<u32>,
}

enum Source {
    Run(Box<Family>),
    Folder { weights: Weights, model: Box<dyn Network> },
}

impl LanguageModels {
    /// Opens a run, a model folder or a GGUF file, and loads its weights.
    ///
    /// # Errors
    /// If it is neither, is no language model, or lacks something.
    pub fn open(place: &Path, device: &Device) -> Result<Self, Failure> {
        let no_text = || {
            Failure::input(
                format!("{} holds no language model", place.display()),
                "name a run of language models, a folder of transformers' llama or gpt2, or a GGUF file of one",
            )
        };
        let (folder, source, preparation, vocabulary) = if place.join("catalog.json").is_file() {
            let catalog = Catalog::open(place)?;
            if catalog.data.text().is_none() {
                return Err(no_text());
            }
            let preparation = images::preparation(place, &catalog)?;
            let folder = place.join(&catalog.parent.path);
            let Architecture::Decoder(decoder) = &catalog.parent.architecture else {
                return Err(no_text());
            };
            let vocabulary = decoder.vocabulary;
            let source = Source::Run(Box::new(Family::open(place, device)?));
            (folder, source, preparation, vocabulary)
        } else {
            let model = import::open(place, None)?;
            let Ok(decoder) = model.checkpoint.decoder() else {
                return Err(no_text());
            };
            let vocabulary = decoder.decoder().vocabulary;
            let weights = model.checkpoint.weights(device)?;
            let network = same(model.checkpoint.network())?;
            let source = Source::Folder {
                weights,
                model: network,
            };
            (place.to_owned(), source, model.preparation, vocabulary)
        };
        let Preparation::Text(files) = preparation else {
            return Err(no_text());
        };
        let ends = if folder.is_dir() {
            generate::end_tokens(&folder)?
        } else {
            files.eos.into_iter().collect()
        };
        Ok(Self {
            place: place.to_owned(),
            source,
            tokenizer: tokenizer(&files, &folder, vocabulary)?,
            begin: files.bos,
            ends,
        })
    }

    /// What the run was trained and is measured on; none of a folder.
    pub fn text(&self) -> Option<&TextRef> {
        self.catalog().and_then(|catalog| catalog.data.text())
    }

    /// The catalog of a run.
    pub fn catalog(&self) -> Option<&Catalog> {
        match &self.source {
            Source::Run(family) => Some(&family.catalog),
            Source::Folder { .. } => None,
        }
    }

    /// Where they are.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Ids of the children that were `named`, or of all; a folder's model has the folder's name.
    ///
    /// # Errors
    /// If there is no such child.
    pub fn ids(&self, named: &[String]) -> Result<Vec<String>, Failure> {
        match self.catalog() {
            Some(catalog) if named.is_empty() => Ok(catalog.children.iter().map(|c| c.id.clone()).collect()),
            Some(catalog) => named.iter().map(|name| Ok(catalog.child(name)?.id.clone())).collect(),
            None if named.is_empty() => {
                let whole = std::path::absolute(&self.place).unwrap_or_else(|_| self.place.clone());
                let name = whole.file_name().map_or("model".into(), |name| name.to_string_lossy());
                Ok(vec![name.into_owned()])
            }
            None => Err(Failure::input(
                format!("{} is one model and has no children", self.place.display()),
                "leave out --child",
            )),
        }
    }

    /// The id of the child that was `named`, or of the largest.
    ///
    /// # Errors
    /// If there is no such child.
    pub fn one(&self, named: Option<&str>) -> Result<String, Failure> {
        let named: Vec<String> = named.map(str::to_owned).into_iter().collect();
        let largest = |catalog: &Catalog| {
            let largest = catalog.children.iter().max_by_key(|child| child.parameters);
            largest.map(|child| child.id.clone())
        };
        match self.catalog().and_then(largest).filter(|_| named.is_empty()) {
            Some(id) => Ok(id),
            None => Ok(self.ids(&named)?.into_iter().next().unwrap_or_default()),
        }
    }

    /// The network and weights of one of the [`ids`](Self::ids).
    ///
    /// # Errors
    /// If its view is missing or does not fit.
    pub fn model(&self, id: &str) -> Result<(Box<dyn Network>, Weights), Failure> {
        match &self.source {
            Source::Run(family) => family.child(&self.place, family.catalog.child(id)?),
            Source::Folder { weights, model } => Ok((same(model.as_ref())?, weights.clone())),
        }
    }

    /// Tokens that the largest of them sees.
    ///
    /// # Errors
    /// If it is no language model.
    pub fn context(&self) -> Result<usize, Failure> {
        let network = match &self.source {
            Source::Run(family) => family.parent().0,
            Source::Folder { model, .. } => model.as_ref(),
        };
        Ok(network::decoder(network)?.decoder().context)
    }

    /// The token that is put before a text, by the rule `when`.
    ///
    /// # Errors
    /// If one is asked for and there is none.
    pub fn begin(&self, when: BeginOfText) -> Result<Option<u32>, Failure> {
        match when {
            BeginOfText::No => Ok(None),
            BeginOfText::Auto => Ok(self.tokenizer.leading()?),
            BeginOfText::Yes => match self.known_begin() {
                Some(id) => Ok(Some(id)),
                None => Err(Failure::input(
                    format!("{} has no begin-of-text token", self.place.display()),
                    "leave out --begin-of-text yes, or name the token as bos_token_id in config.json",
                )),
            },
        }
    }

    /// The begin-of-text token, whether or not the tokenizer adds it.
    pub fn known_begin(&self) -> Option<u32> {
        self.begin.or(self.tokenizer.begin_of_text())
    }
}

/// Another network of the same numbers.
fn same(network: &dyn Network) -> Result<Box<dyn Network>, Failure> {
    Ok(offshoot_zoo::open(&network.architecture()).map_err(CheckpointError::from)?)
}
