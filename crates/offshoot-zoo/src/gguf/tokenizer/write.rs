//! From a `tokenizer.json` to the metadata of a GGUF file.

use std::collections::HashMap;

use serde_json::Value;

use super::canonical::canonical;
use super::pre::{self, Pre};
use super::spaces::Spaces;
use super::special::{Special, id_of};
use super::template::Template;
use super::{Note, TokenType, TokenizerError, brief, byte_of, invalid, key, merges, padding, read};
use crate::gguf::value::{Metadata, Strings};

/// Most numbers below the largest that may have no token, where it is not known how many rows the embeddings have.
const MOST_GAPS: usize = 1 << 16;
/// The score of what is never taken.
const NEVER: f32 = -10_000.0;

/// Kinds of tokenizers, by what llama.cpp calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// BPE of bytes.
    Gpt2,
    /// BPE of characters with a byte for what is not among them.
    Llama,
    /// Unigram.
    T5,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::T5 => "t5",
        }
    }

    /// The token that llama.cpp takes to end a text if the file says none.
    fn assumed_end(self) -> u32 {
        match self {
            Self::Gpt2 => 11,
            Self::Llama => 2,
            Self::T5 => 1,
        }
    }

    fn of(tokenizer: &Value, model: &Value) -> Result<Self, TokenizerError> {
        let unsupported = |reason: &str| Err(TokenizerError::Unsupported(reason.to_owned()));
        let text = |name: &str| model.get(name).and_then(Value::as_str).unwrap_or("");
        // Old files do not say the type.
        let untyped = if model.get("merges").is_some() {
            "BPE"
        } else {
            "Unigram"
        };
        match model.get("type").map_or(Some(untyped), Value::as_str) {
            Some("BPE") if !text("continuing_subword_prefix").is_empty() || !text("end_of_word_suffix").is_empty() => {
                unsupported("its tokens have a mark at the start or the end of words")
            }
            Some("BPE") if flag(model, "byte_fallback") => Ok(Self::Llama),
            Some("BPE") if pre::has_bytes(part(tokenizer, "pre_tokenizer")) => Ok(Self::Gpt2),
            Some("BPE") => unsupported("its BPE has neither bytes nor a byte for unknown characters"),
            Some("Unigram") => Ok(Self::T5),
            other => unsupported(&format!("its model is `{}`", other.unwrap_or("of no type"))),
        }
    }
}

/// A part of a `tokenizer.json`; null if it is not there.
pub(super) fn part<'a>(of: &'a Value, name: &str) -> &'a Value {
    of.get(name).unwrap_or(&Value::Null)
}

pub(super) fn flag(of: &Value, name: &str) -> bool {
    part(of, name).as_bool().unwrap_or(false)
}

/// The pairs of a model's `merges`, in both ways in which files have them.
pub(super) fn pairs(model: &Value) -> Result<Vec<(&str, &str)>, TokenizerError> {
    fn pair(merge: &Value) -> Option<(&str, &str)> {
        match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(parts) => match parts.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left, right)),
                _ => None,
            },
            _ => None,
        }
    }
    let merges = part(model, "merges").as_array();
    let merges = merges.ok_or_else(|| invalid("`merges` is missing, or no list"))?;
    let all = merges.iter().map(|merge| pair(merge).ok_or(merge));
    all.collect::<Result<_, _>>()
        .map_err(|merge| invalid(format!("the merge {} is none", brief(merge))))
}

/// All tokens by their numbers, without a gap.
struct Vocabulary {
    tokens: Vec<(String, TokenType)>,
    /// Of unigram.
    scores: Vec<f32>,
    /// The number of the token for what has none.
    unknown: Option<u32>,
}

impl Vocabulary {
    fn of(tokenizer: &Value, kind: Kind, rows: Option<usize>) -> Result<Self, TokenizerError> {
        let model = part(tokenizer, "model");
        let number = |id: &Value| id.as_u64().and_then(|id| usize::try_from(id).ok());
        let mut entries: Vec<(&str, usize, TokenType)> = Vec::new();
        let mut scores = HashMap::new();
        let bytes = flag(model, "byte_fallback");
        let base = |text: &str| match byte_of(text) {
            Some(_) if bytes => TokenType::Byte,
            _ => TokenType::Normal,
        };
        match part(model, "vocab") {
            Value::Object(vocabulary) => {
                for (text, id) in vocabulary {
                    let id = number(id).ok_or_else(|| invalid(format!("the token `{text}` has no number")))?;
                    entries.push((text, id, base(text)));
                }
            }
            Value::Array(pieces) => {
                for (id, piece) in pieces.iter().enumerate() {
                    let pair = piece
                        .get(0)
                        .and_then(Value::as_str)
                        .zip(piece.get(1).and_then(Value::as_f64));
                    let (text, score) = pair.ok_or_else(|| invalid(format!("token {id} is no text with a score")))?;
                    entries.push((text, id, base(text)));
                    scores.insert(id, score as f32);
                }
            }
            _ => return Err(invalid("`vocab` is missing")),
        }
        if part(model, "vocab").is_array() != (kind == Kind::T5) {
            return Err(invalid("`vocab` is not of the kind that the model's type has"));
        }
        for token in part(tokenizer, "added_tokens").as_array().into_iter().flatten() {
            let pair = part(token, "content").as_str().zip(number(part(token, "id")));
            let (text, id) = pair.ok_or_else(|| invalid("an added token has no text or no number"))?;
            let kind = match flag(token, "special") {
                true => TokenType::Control,
                false => TokenType::UserDefined,
            };
            entries.push((text, id, kind));
        }
        let unknown = match kind {
            Kind::T5 => number(part(model, "unk_id")),
            _ => part(model, "unk_token")
                .as_str()
                .and_then(|text| Some(id_of(tokenizer, text)? as usize)),
        };
        let largest = entries.iter().map(|(_, id, _)| *id).max();
        let largest = largest.ok_or_else(|| invalid("it has no tokens"))?;
        let count = match rows {
            Some(rows) if largest >= rows => return Err(TokenizerError::Rows { token: largest, rows }),
            Some(rows) => rows,
            None if largest - largest.min(entries.len()) > MOST_GAPS => {
                return Err(invalid(format!("token {largest} is far beyond the others")));
            }
            None => largest + 1,
        };
        let mut tokens: Vec<Option<(String, TokenType)>> = vec![None; count];
        let mut seen = HashMap::new();
        for (text, id, kind) in entries {
            if *seen.entry(text).or_insert(id) != id {
                return Err(invalid(format!("the token `{text}` comes twice")));
            }
            match &tokens[id] {
                Some((other, _)) if other != text => {
                    return Err(invalid(format!(
                        "the tokens `{other}` and `{text}` have the same number {id}"
                    )));
                }
                _ => tokens[id] = Some((text.to_owned(), kind)),
            }
        }
        if let (Some(id), true) = (unknown, kind != Kind::Gpt2)
            && let Some(Some((_, kind))) = tokens.get_mut(id)
        {
            *kind = TokenType::Unknown;
        }
        let scores = (0..count).map(|id| scores.get(&id).copied().unwrap_or(NEVER)).collect();
        let tokens = tokens.into_iter().enumerate().map(|(id, token)| match token {
            Some(token) => Ok(token),
            None if seen.contains_key(padding(id).as_str()) => {
                Err(invalid(format!("the token `{}` is in the way", padding(id))))
            }
            None => Ok((padding(id), TokenType::Unused)),
        });
        let tokens = tokens.collect::<Result<_, _>>()?;
        let unknown = unknown.and_then(|id| u32::try_from(id).ok());
        Ok(Self {
            tokens,
            scores,
            unknown,
        })
    }
}

/// The metadata that say `tokenizer`, a `tokenizer.json`, and what llama.cpp will do otherwise. `rows` is the number of rows of
/// the embeddings, where there are more than tokens: the others are filled.
///
/// # Errors
/// If it is no tokenizer, of a kind that llama.cpp does not have, or has more tokens than rows.
pub fn tokenizer_metadata(
    tokenizer: &Value,
    special: &Special,
    rows: Option<usize>,
) -> Result<(Metadata, Vec<Note>), TokenizerError> {
    let model = tokenizer.get("model").ok_or_else(|| invalid("`model` is missing"))?;
    let kind = Kind::of(tokenizer, model)?;
    let vocabulary = Vocabulary::of(tokenizer, kind, rows)?;
    let mut notes = Vec::new();
    let mut metadata = Metadata::new();
    metadata.set(key::MODEL, kind.name());
    let pre = match kind {
        Kind::Gpt2 => pre_tokenizer(tokenizer, model, &mut notes),
        _ => "default",
    };
    metadata.set(key::PRE, pre);
    metadata.set(
        key::TOKENS,
        vocabulary.tokens.iter().map(|(text, _)| text).collect::<Strings>(),
    );
    match kind {
        Kind::Gpt2 => {
            let pairs = pairs(model)?;
            if let Some((left, right)) = pairs.iter().find(|(l, r)| l.contains(' ') || r.contains(' ')) {
                let reason = format!("the merge of `{left}` and `{right}` has a space in it");
                return Err(TokenizerError::Unsupported(reason));
            }
            let texts = pairs.iter().map(|(left, right)| format!("{left} {right}"));
            metadata.set(key::MERGES, texts.collect::<Strings>());
        }
        Kind::Llama => {
            metadata.set(key::SCORES, scores_of_merges(&vocabulary, &pairs(model)?, &mut notes));
        }
        Kind::T5 => {
            metadata.set(key::SCORES, vocabulary.scores.clone());
        }
    }
    let types = vocabulary.tokens.iter().map(|(_, kind)| kind.id());
    metadata.set(key::TYPES, types.collect::<Vec<i32>>());
    if kind != Kind::Gpt2 {
        spaces(tokenizer, kind, &mut metadata, &mut notes);
    }
    around(tokenizer, special, kind, &vocabulary, &mut metadata, &mut notes)?;
    added(tokenizer, &mut notes);
    if let Some(template) = &special.chat_template {
        metadata.set(key::CHAT_TEMPLATE, template.as_str());
    }
    let back = read::listed(&metadata).map(|(back, _, _)| canonical(&back));
    if back.as_ref() != Ok(&canonical(tokenizer)) {
        metadata.set(key::HUGGING_FACE, tokenizer.to_string());
    }
    Ok((metadata, notes))
}

/// llama.cpp's name for how text is cut into words.
fn pre_tokenizer(tokenizer: &Value, model: &Value, notes: &mut Vec<Note>) -> &'static str {
    let normalizer = part(tokenizer, "normalizer");
    if !normalizer.is_null() {
        notes.push(Note::Normalizer {
            found: brief(normalizer),
        });
    }
    let json = part(tokenizer, "pre_tokenizer");
    let ignore_merges = flag(model, "ignore_merges");
    if let Some(pre) = Pre::of_json(json, ignore_merges) {
        return pre.name;
    }
    let whole = if ignore_merges { ", with whole words first" } else { "" };
    let instead = Pre::of_json(json, !ignore_merges).map_or("gpt-2", |pre| pre.name);
    notes.push(Note::PreTokenizer {
        found: format!("{}{whole}", brief(json)),
        instead,
    });
    instead
}

/// Scores that make the same merges as far as scores can.
fn scores_of_merges(vocabulary: &Vocabulary, pairs: &[(&str, &str)], notes: &mut Vec<Note>) -> Vec<f32> {
    let texts = vocabulary.tokens.iter();
    let texts: Vec<_> = texts
        .map(|(text, kind)| (*kind == TokenType::Normal).then_some(text.as_str()))
        .collect();
    let scores = merges::scores(&texts, pairs);
    let scored: Vec<_> = texts
        .iter()
        .zip(&scores)
        .filter_map(|(text, score)| Some(((*text)?, Some(*score))))
        .collect();
    if !merges::of_scores(&scored).is_ok_and(|made| merges::same(&made, pairs)) {
        notes.push(Note::Merges);
    }
    scores
}

/// What happens to spaces and characters before tokens are looked for.
fn spaces(tokenizer: &Value, kind: Kind, metadata: &mut Metadata, notes: &mut Vec<Note>) {
    let (spaces, other, cut) = Spaces::of(part(tokenizer, "normalizer"), part(tokenizer, "pre_tokenizer"));
    metadata.set(key::ADD_PREFIX, spaces.prefix);
    if spaces.only_missing && !spaces.merged {
        notes.push(Note::Prefix);
    }
    let mut unknown: Vec<String> = other.into_iter().map(brief).collect();
    if kind == Kind::T5 {
        metadata.set(key::REMOVE_SPACES, spaces.merged);
        if let Some(table) = spaces.charsmap {
            metadata.set(key::CHARSMAP, table);
        }
        if flag(part(tokenizer, "model"), "byte_fallback") {
            notes.push(Note::Bytes);
        }
    } else {
        // llama.cpp's `llama` neither merges spaces nor changes characters.
        unknown.extend(spaces.charsmap.map(|_| "`Precompiled`".to_owned()));
        unknown.extend(spaces.merged.then(|| "merging of spaces".to_owned()));
    }
    if !unknown.is_empty() {
        notes.push(Note::Normalizer {
            found: unknown.join(" and "),
        });
    }
    if !cut.is_empty() {
        notes.push(Note::PreTokenizer {
            found: cut.into_iter().map(brief).collect::<Vec<_>>().join(" and "),
            instead: "default",
        });
    }
}

/// Tokens that begin, end and fill a text.
fn around(
    tokenizer: &Value,
    special: &Special,
    kind: Kind,
    vocabulary: &Vocabulary,
    metadata: &mut Metadata,
    notes: &mut Vec<Note>,
) -> Result<(), TokenizerError> {
    let template = Template::of(tokenizer);
    let (first, last) = match &template {
        Some(template) => (template.bos.as_ref().map(|t| t.1), template.eos.as_ref().map(|t| t.1)),
        None => (None, None),
    };
    // What stands in front of a text is what llama.cpp has to put there; what ends it may be said to be another token.
    let bos = first.or(special.bos);
    let eos = special.eos.or(last);
    if template.is_none() || last.is_some() && last != eos {
        notes.push(Note::Template {
            found: brief(part(tokenizer, "post_processor")),
        });
    }
    let ids = [
        (key::BOS, bos),
        (key::EOS, eos),
        (key::UNKNOWN, vocabulary.unknown.or(special.unknown)),
        (key::PADDING, special.padding),
    ];
    for (name, id) in ids {
        if let Some(id) = id {
            if id as usize >= vocabulary.tokens.len() {
                return Err(invalid(format!(
                    "`{name}` is {id}, but there are {} tokens",
                    vocabulary.tokens.len()
                )));
            }
            metadata.set(name, id);
        }
    }
    if eos.is_none() {
        notes.push(Note::NoEnd {
            taken: kind.assumed_end(),
        });
    }
    let add = |said: Option<bool>, found: bool, known: bool| said.unwrap_or(found) && known;
    metadata.set(key::ADD_BOS, add(special.add_bos, first.is_some(), bos.is_some()));
    metadata.set(
        key::ADD_EOS,
        add(special.add_eos, last.is_some() && last == eos, eos.is_some()),
    );
    Ok(())
}

/// Notes added tokens with rules that llama.cpp does not have.
fn added(tokenizer: &Value, notes: &mut Vec<Note>) {
    let tokens = part(tokenizer, "added_tokens").as_array().into_iter().flatten();
    let ruled: Vec<_> = tokens
        .filter(|token| ["lstrip", "rstrip", "single_word"].iter().any(|rule| flag(token, rule)))
        .collect();
    if let Some(first) = ruled.first() {
        notes.push(Note::AddedTokens {
            first: part(first, "content").as_str().unwrap_or_default().to_owned(),
            count: ruled.len(),
        });
    }
}
