//! From the metadata of a GGUF file to a `tokenizer.json`.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::pre::Pre;
use super::spaces::to_base64;
use super::special::Special;
use super::template::Template;
use super::write::part;
use super::{Note, SPACE, TokenType, TokenizerError, byte_of, invalid, key, merges, padding};
use crate::gguf::value::{Array, Metadata, Sizes, Strings, Value as Entry};

/// Most tokens that are found in a text before the model is asked: each becomes an object of seven values, a kilobyte of memory. Models have
/// a few thousand.
const MOST_ADDED: usize = 1 << 16;

/// The `tokenizer.json` that `metadata` say, its tokens with a task, and what will be otherwise than in llama.cpp.
///
/// # Errors
/// If there is none, it is of a kind that Hugging Face's library does not have, or it contradicts itself.
pub fn tokenizer_json(metadata: &Metadata) -> Result<(Value, Special, Vec<Note>), TokenizerError> {
    let frame = Frame::of(metadata)?;
    let Some(text) = metadata.text(key::HUGGING_FACE)? else {
        return frame.whole(metadata);
    };
    match serde_json::from_str(text) {
        Ok(embedded) if fits(&embedded, metadata)? => Ok((embedded, frame.special, Vec::new())),
        _ => {
            let (listed, special, mut notes) = frame.whole(metadata)?;
            notes.push(Note::Embedded);
            Ok((listed, special, notes))
        }
    }
}

/// Whether all tokens of a `tokenizer.json` are those of the file's own list.
fn fits(tokenizer: &Value, metadata: &Metadata) -> Result<bool, TokenizerError> {
    let tokens = Metadata::required(key::TOKENS, metadata.texts(key::TOKENS)?)?;
    let is = |id: Option<usize>, text: Option<&str>| id.and_then(|id| tokens.get(id)) == text && text.is_some();
    let number = |id: &Value| id.as_u64().and_then(|id| usize::try_from(id).ok());
    let model = match part(part(tokenizer, "model"), "vocab") {
        Value::Object(vocabulary) => vocabulary.iter().all(|(text, id)| is(number(id), Some(text))),
        Value::Array(pieces) => {
            let piece = |(id, piece): (usize, &Value)| is(Some(id), piece.get(0).and_then(Value::as_str));
            pieces.iter().enumerate().all(piece)
        }
        _ => false,
    };
    let added = part(tokenizer, "added_tokens").as_array();
    let mut added = added.into_iter().flatten();
    Ok(model && added.all(|token| is(number(part(token, "id")), part(token, "content").as_str())))
}

/// The tokens of a file.
struct Tokens<'a> {
    texts: &'a Strings,
    types: Vec<TokenType>,
}

impl<'a> Tokens<'a> {
    fn of(metadata: &'a Metadata) -> Result<Self, TokenizerError> {
        let texts = Metadata::required(key::TOKENS, metadata.texts(key::TOKENS)?)?;
        let types = match metadata.sizes(key::TYPES)? {
            None => vec![TokenType::Normal; texts.len()],
            Some(Sizes::Each(types)) if types.len() == texts.len() => {
                let one = |id: u64| match id {
                    // Undefined, as old files have it.
                    0 => Some(TokenType::Normal),
                    id => TokenType::of_id(id.try_into().ok()?),
                };
                let types = types.into_iter().map(|id| one(id).ok_or(id)).collect::<Result<_, _>>();
                types.map_err(|id| invalid(format!("`{}` has the type {id}", key::TYPES)))?
            }
            Some(_) => return Err(invalid(format!("`{}` is not one type for each token", key::TYPES))),
        };
        let mut seen = HashSet::new();
        if let Some(twice) = texts.iter().find(|text| !seen.insert(*text)) {
            return Err(invalid(format!("the token `{twice}` comes twice")));
        }
        Ok(Self { texts, types })
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &'a str, TokenType)> {
        let texts = self.texts;
        let one = move |(id, &kind): (usize, &TokenType)| (id, texts.get(id).expect("as many texts as types"), kind);
        self.types.iter().enumerate().map(one)
    }

    /// Number and text of a token with a task.
    fn special(
        &self,
        metadata: &Metadata,
        name: &str,
        otherwise: Option<u32>,
    ) -> Result<Option<(String, u32)>, TokenizerError> {
        let id = match metadata.size(name)? {
            Some(id) => id,
            // What llama.cpp assumes, if there is such a token.
            None => match otherwise.filter(|&id| (id as usize) < self.texts.len()) {
                Some(id) => id.into(),
                None => return Ok(None),
            },
        };
        let text = usize::try_from(id).ok().and_then(|id| self.texts.get(id));
        match text.zip(u32::try_from(id).ok()) {
            Some((text, id)) => Ok(Some((text.to_owned(), id))),
            None => Err(invalid(format!(
                "`{name}` is {id}, but there are {} tokens",
                self.texts.len()
            ))),
        }
    }

    /// The numbers `name` of all tokens.
    fn scores(&self, metadata: &Metadata) -> Result<Vec<f32>, TokenizerError> {
        let scores = Metadata::required(key::SCORES, metadata.numbers(key::SCORES)?)?;
        if scores.len() != self.texts.len() || scores.iter().any(|score| score.is_nan()) {
            return Err(invalid(format!("`{}` is not one number for each token", key::SCORES)));
        }
        Ok(scores)
    }

    /// Whether a row of the embeddings has no token.
    fn is_padding(id: usize, text: &str, kind: TokenType) -> bool {
        kind == TokenType::Unused && text == padding(id)
    }

    /// Tokens that are found in a text before the model is asked.
    fn added(&self) -> Result<Vec<Value>, TokenizerError> {
        let found =
            |kind: &&TokenType| matches!(kind, TokenType::Control | TokenType::Unknown | TokenType::UserDefined);
        let count = self.types.iter().filter(found).count();
        if count > MOST_ADDED {
            return Err(invalid(format!(
                "`{}` has {count} control, unknown and user-defined tokens; at most {MOST_ADDED} are read",
                key::TYPES
            )));
        }
        let added = self.iter().filter_map(|(id, text, kind)| {
            let special = match kind {
                TokenType::Control | TokenType::Unknown => true,
                TokenType::UserDefined => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": special
            }))
        });
        Ok(added.collect())
    }

    /// Numbers by text.
    fn vocabulary(&self) -> Map<String, Value> {
        let tokens = self
            .iter()
            .filter(|&(id, text, kind)| !Self::is_padding(id, text, kind));
        tokens.map(|(id, text, _)| (text.to_owned(), json!(id))).collect()
    }

    /// Whether there is a token for every byte.
    fn has_bytes(&self) -> bool {
        let bytes = self.iter().filter(|(_, _, kind)| *kind == TokenType::Byte);
        bytes
            .filter_map(|(_, text, _)| byte_of(text))
            .collect::<HashSet<_>>()
            .len()
            == 256
    }
}

/// The tokenizer that llama.cpp's own keys say.
pub(super) fn listed(metadata: &Metadata) -> Result<(Value, Special, Vec<Note>), TokenizerError> {
    Frame::of(metadata)?.whole(metadata)
}

/// All of a tokenizer but its model: the tokens, those with a task, and what is put around a text.
struct Frame<'a> {
    model: &'a str,
    pre: Option<&'static Pre>,
    tokens: Tokens<'a>,
    /// Text of the token for what has none.
    unknown: Option<String>,
    template: Template,
    special: Special,
    notes: Vec<Note>,
}

impl<'a> Frame<'a> {
    fn of(metadata: &'a Metadata) -> Result<Self, TokenizerError> {
        let model = Metadata::required(key::MODEL, metadata.text(key::MODEL)?)?;
        let known = ["gpt2", "llama", "t5"];
        if !known.contains(&model) {
            return Err(TokenizerError::Unsupported(format!("`{}` is `{model}`", key::MODEL)));
        }
        let tokens = Tokens::of(metadata)?;
        let mut notes = Vec::new();
        let pre = match model {
            "gpt2" => Some(pre_tokenizer(metadata, &mut notes)?),
            _ => None,
        };
        // What llama.cpp assumes where the file is silent. Of `gpt2`, it assumes token 11 for both ends, which is nobody's intention.
        let (bos, eos, unknown) = match model {
            "llama" => (Some(1), Some(2), Some(0)),
            "t5" => (None, Some(1), Some(2)),
            _ => (None, None, None),
        };
        let bos = tokens.special(metadata, key::BOS, bos)?;
        let eos = tokens.special(metadata, key::EOS, eos)?;
        let unknown = tokens.special(metadata, key::UNKNOWN, unknown)?;
        let padding = tokens.special(metadata, key::PADDING, None)?;
        let assumed = model == "llama" || pre.is_some_and(|pre| pre.add_bos);
        let add_bos = metadata.flag(key::ADD_BOS)?.unwrap_or(assumed) && bos.is_some();
        let add_eos = metadata.flag(key::ADD_EOS)?.unwrap_or(model == "t5") && eos.is_some();
        let id = |token: &Option<(String, u32)>| token.as_ref().map(|(_, id)| *id);
        let special = Special {
            bos: id(&bos),
            eos: id(&eos),
            unknown: id(&unknown),
            padding: id(&padding),
            add_bos: Some(add_bos),
            add_eos: Some(add_eos),
            chat_template: metadata.text(key::CHAT_TEMPLATE)?.map(str::to_owned),
        };
        let template = Template {
            bos: bos.filter(|_| add_bos),
            eos: eos.filter(|_| add_eos),
        };
        Ok(Self {
            model,
            pre,
            tokens,
            unknown: unknown.map(|(text, _)| text),
            template,
            special,
            notes,
        })
    }

    /// With its model.
    fn whole(self, metadata: &Metadata) -> Result<(Value, Special, Vec<Note>), TokenizerError> {
        let added = self.tokens.added()?;
        let parts = match (self.model, self.pre) {
            (_, Some(pre)) => byte_level(metadata, &self.tokens, pre)?,
            ("llama", _) => characters(metadata, &self.tokens, self.unknown)?,
            _ => unigram(metadata, &self.tokens, self.special.unknown)?,
        };
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": self.template.json(),
            "decoder": parts.decoder,
            "model": parts.model
        });
        Ok((tokenizer, self.special, self.notes))
    }
}

/// What depends on the kind.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
}

/// How `gpt2` cuts text into words.
fn pre_tokenizer(metadata: &Metadata, notes: &mut Vec<Note>) -> Result<&'static Pre, TokenizerError> {
    let name = metadata.text(key::PRE)?;
    // A file without the key gets what llama.cpp takes then.
    let found = name.map_or_else(|| Pre::of_name("default"), Pre::of_name);
    Ok(found.unwrap_or_else(|| {
        notes.push(Note::PreTokenizer {
            found: format!("`{}`", name.unwrap_or_default()),
            instead: "gpt-2",
        });
        Pre::of_name("gpt-2").expect("it is in the table")
    }))
}

fn byte_level(metadata: &Metadata, tokens: &Tokens, pre: &Pre) -> Result<Parts, TokenizerError> {
    let merges = Metadata::required(key::MERGES, metadata.texts(key::MERGES)?)?;
    let vocabulary = tokens.vocabulary();
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges.iter() {
        // The first part has at least one character, which may be a space.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let cut = merge[first..].find(' ').map(|at| first + at);
        let pair = cut.map(|at| (&merge[..at], &merge[at + 1..]));
        let known = |text: &str| vocabulary.contains_key(text);
        match pair {
            Some((left, right)) if known(left) && known(right) && known(&format!("{left}{right}")) => {
                pairs.push(json!([left, right]));
            }
            _ => return Err(invalid(format!("the merge `{merge}` makes no token of two"))),
        }
    }
    Ok(Parts {
        normalizer: Value::Null,
        pre_tokenizer: pre.json(),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary,
            "merges": pairs
        }),
    })
}

fn characters(metadata: &Metadata, tokens: &Tokens, unknown: Option<String>) -> Result<Parts, TokenizerError> {
    let prefix = metadata.flag(key::ADD_PREFIX)?.unwrap_or(true);
    let scores = tokens.scores(metadata)?;
    let normal: Vec<_> = tokens
        .iter()
        .filter(|(_, _, kind)| *kind == TokenType::Normal)
        .map(|(id, text, _)| (text, Some(scores[id])))
        .collect();
    let merges = merges::of_scores(&normal)?;
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}),
        false => replace,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": tokens.has_bytes(),
            "ignore_merges": false,
            "vocab": tokens.vocabulary(),
            "merges": merges
        }),
    })
}

fn unigram(metadata: &Metadata, tokens: &Tokens, unknown: Option<u32>) -> Result<Parts, TokenizerError> {
    let prefix = metadata.flag(key::ADD_PREFIX)?.unwrap_or(true);
    let scores = tokens.scores(metadata)?;
    let last = tokens
        .iter()
        .rev()
        .find(|&(id, text, kind)| !Tokens::is_padding(id, text, kind));
    let count = last.map_or(0, |(id, _, _)| id + 1);
    let pieces: Vec<_> = tokens
        .iter()
        .take(count)
        .map(|(id, text, _)| json!([text, scores[id]]))
        .collect();
    let mut steps = Vec::new();
    match metadata.get(key::CHARSMAP) {
        None => (),
        Some(Entry::Array(Array::U8(table))) => {
            steps.push(json!({"type": "Precompiled", "precompiled_charsmap": to_base64(table)}));
        }
        Some(Entry::Array(Array::I8(table))) => {
            let table: Vec<u8> = table.iter().map(|&byte| byte as u8).collect();
            steps.push(json!({"type": "Precompiled", "precompiled_charsmap": to_base64(&table)}));
        }
        Some(_) => return Err(invalid(format!("`{}` is no array of bytes", key::CHARSMAP))),
    }
    if metadata.flag(key::REMOVE_SPACES)?.unwrap_or(false) {
        steps.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
        steps.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE}));
    }
    let scheme = if prefix { "always" } else { "never" };
    let metaspace = json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": true});
    Ok(Parts {
        normalizer: match steps.len() {
            0 => Value::Null,
            1 => steps.remove(0),
            _ => json!({"type": "Sequence", "normalizers": steps}),
        },
        pre_tokenizer: metaspace.clone(),
        decoder: metaspace,
        model: json!({
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": pieces,
            "byte_fallback": tokens.has_bytes()
        }),
    })
}
