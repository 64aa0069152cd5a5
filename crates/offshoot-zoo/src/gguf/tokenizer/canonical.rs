//! Two `tokenizer.json` files that encode and decode alike, brought to one form.

use serde_json::{Value, json};

use super::pre::{self, steps};
use super::template::Template;
use super::write::{flag, pairs, part};

/// What there is to compare of a `tokenizer.json`: everything but what has no effect, and how it may be said in two ways.
pub(super) fn canonical(tokenizer: &Value) -> Value {
    let model = part(tokenizer, "model");
    let normalizer = alone(part(tokenizer, "normalizer"), "normalizers");
    let added = part(tokenizer, "added_tokens").as_array();
    let mut added: Vec<_> = added
        .into_iter()
        .flatten()
        .map(|token| {
            let rules = ["single_word", "lstrip", "rstrip", "special"].map(|rule| flag(token, rule));
            // Without a normalizer there is nothing to be done to it.
            let normalized = !normalizer.is_null() && part(token, "normalized").as_bool().unwrap_or(!rules[3]);
            (
                part(token, "id").as_u64(),
                json!([part(token, "content"), rules, normalized]),
            )
        })
        .collect();
    added.sort_by_key(|(id, _)| *id);
    let bytes = pre::has_bytes(part(tokenizer, "pre_tokenizer"));
    let pre_tokenizer = match steps(part(tokenizer, "pre_tokenizer")) {
        Some(steps) => json!(steps),
        None => alone(part(tokenizer, "pre_tokenizer"), "pretokenizers").clone(),
    };
    let around = match Template::of(tokenizer) {
        Some(Template { bos, eos }) => json!([bos, eos]),
        None => part(tokenizer, "post_processor").clone(),
    };
    let decoder = part(tokenizer, "decoder");
    let decoder = match decoder.get("type").and_then(Value::as_str) {
        // Its flags are for the other direction.
        Some("ByteLevel") if bytes => json!("ByteLevel"),
        _ => decoder.clone(),
    };
    json!({
        "truncation": part(tokenizer, "truncation"),
        "padding": part(tokenizer, "padding"),
        "added": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "around": around,
        "decoder": decoder,
        "model": self::model(tokenizer, model)
    })
}

/// A list of one step is that step.
fn alone<'a>(step: &'a Value, list: &str) -> &'a Value {
    match step.get(list).and_then(Value::as_array).map(Vec::as_slice) {
        Some([one]) => one,
        Some([]) => &Value::Null,
        _ => step,
    }
}

fn model(tokenizer: &Value, model: &Value) -> Value {
    let added = part(tokenizer, "added_tokens").as_array();
    let added: std::collections::HashSet<&str> = added
        .into_iter()
        .flatten()
        .filter_map(|token| part(token, "content").as_str())
        .collect();
    // Added tokens are found before the model is asked; whether it has them, too, does not matter.
    let vocabulary = match part(model, "vocab") {
        Value::Object(tokens) => {
            let mut tokens: Vec<_> = tokens
                .iter()
                .filter(|(text, _)| !added.contains(text.as_str()))
                .collect();
            tokens.sort_by_key(|(text, _)| *text);
            json!(tokens)
        }
        Value::Array(pieces) => {
            let piece = |(id, piece): (usize, &Value)| {
                let text = part_at(piece, 0).as_str()?;
                // A file has scores in 32 bits.
                let score = part_at(piece, 1).as_f64()? as f32;
                (!added.contains(text)).then(|| json!([id, text, score]))
            };
            json!(pieces.iter().enumerate().filter_map(piece).collect::<Vec<_>>())
        }
        _ => Value::Null,
    };
    let text = |name: &str| part(model, name).as_str().filter(|text| !text.is_empty());
    let unknown = text("unk_token");
    json!({
        "vocabulary": vocabulary,
        "merges": pairs(model).ok(),
        "unknown": unknown,
        "unknown_id": part(model, "unk_id"),
        "fuse": unknown.is_some() && flag(model, "fuse_unk"),
        "bytes": flag(model, "byte_fallback"),
        "whole": flag(model, "ignore_merges"),
        "dropout": part(model, "dropout").as_f64().filter(|share| *share != 0.0),
        "marks": [text("continuing_subword_prefix"), text("end_of_word_suffix")]
    })
}

fn part_at(list: &Value, place: usize) -> &Value {
    list.get(place).unwrap_or(&Value::Null)
}
