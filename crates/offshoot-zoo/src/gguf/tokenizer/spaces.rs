//! What tokenizers of `llama` and `t5` do to spaces and characters before they look for tokens.

use serde_json::{Value, json};

use super::SPACE;

/// Two or more spaces, as Hugging Face's converter writes the pattern.
const SEVERAL: &str = " {2,}";

/// What becomes of a text first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spaces {
    /// It gets a space in front.
    pub(super) prefix: bool,
    /// But not if it starts with one.
    pub(super) only_missing: bool,
    /// Several spaces become one, and those at its ends none.
    pub(super) merged: bool,
    /// Characters become others by SentencePiece's compiled table.
    pub(super) charsmap: Option<Vec<u8>>,
}

/// A list of steps, or one of them.
fn parts<'a>(step: &'a Value, list: &str) -> Vec<&'a Value> {
    match step.get(list).and_then(Value::as_array) {
        Some(inner) => inner.iter().flat_map(|step| parts(step, list)).collect(),
        None if step.is_null() => Vec::new(),
        None => vec![step],
    }
}

impl Spaces {
    /// What a `normalizer` and a `pre_tokenizer` do, with those of their steps that do something else.
    pub(super) fn of<'a>(normalizer: &'a Value, pre_tokenizer: &'a Value) -> (Self, Vec<&'a Value>, Vec<&'a Value>) {
        let mut spaces = Self::default();
        let (mut other, mut cut) = (Vec::new(), Vec::new());
        let is = |step: &Value, key: &str, value: Value| step.get(key) == Some(&value);
        let steps = parts(normalizer, "normalizers");
        let several = |step: &Value| {
            is(step, "pattern", json!({"Regex": SEVERAL}))
                && (is(step, "content", json!(SPACE)) || is(step, "content", json!(" ")))
        };
        spaces.merged = steps.iter().any(|step| several(step));
        for step in steps {
            let known = match step.get("type").and_then(Value::as_str) {
                Some("Prepend") if is(step, "prepend", json!(SPACE)) => {
                    spaces.prefix = true;
                    true
                }
                Some("Replace") => {
                    let plain = is(step, "pattern", json!({"String": " "})) && is(step, "content", json!(SPACE));
                    plain || several(step)
                }
                // The converter writes it beside the pattern.
                Some("Strip") => spaces.merged && is(step, "strip_right", json!(true)),
                Some("Precompiled") => {
                    let text = step.get("precompiled_charsmap").and_then(Value::as_str);
                    spaces.charsmap = text.and_then(from_base64);
                    spaces.charsmap.is_some()
                }
                _ => false,
            };
            if !known {
                other.push(step);
            }
        }
        for step in parts(pre_tokenizer, "pretokenizers") {
            match step.get("type").and_then(Value::as_str) {
                Some("Metaspace") if step.get("replacement").is_none_or(|mark| mark == SPACE) => {
                    // Older files have a flag instead of the scheme.
                    let scheme = step.get("prepend_scheme").and_then(Value::as_str);
                    let flag = step.get("add_prefix_space").and_then(Value::as_bool);
                    let prefix = scheme.map_or(flag.unwrap_or(true), |scheme| scheme != "never");
                    spaces.only_missing |= prefix;
                    spaces.prefix |= prefix;
                }
                Some("WhitespaceSplit") => spaces.merged = true,
                _ => cut.push(step),
            }
        }
        (spaces, other, cut)
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The bytes that base64 stands for, if it is base64.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            bits = bits << 6 | DIGITS.iter().position(|&d| d == digit)? as u32;
        }
        match group.len() {
            4 => bytes.extend(&bits.to_be_bytes()[1..]),
            3 => bytes.extend(&(bits << 6).to_be_bytes()[1..3]),
            2 => bytes.extend(&(bits << 12).to_be_bytes()[1..2]),
            _ => return None,
        }
    }
    Some(bytes)
}

/// Base64 of `bytes`, with padding.
pub(super) fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, section 10.
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in vectors {
            assert_eq!(to_base64(plain.as_bytes()), coded);
            assert_eq!(from_base64(coded).unwrap(), plain.as_bytes());
        }
        assert_eq!(from_base64("Zm9-"), None);
        assert_eq!(from_base64("Z"), None);
    }

    #[test]
    fn llama_and_t5_are_understood_in_old_and_new_files() {
        let llama = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}
        ]});
        let null = Value::Null;
        let (spaces, other, cut) = Spaces::of(&llama, &null);
        assert!(spaces.prefix && !spaces.only_missing && !spaces.merged);
        assert!(other.is_empty() && cut.is_empty());
        let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false});
        let first = metaspace("first");
        let (spaces, _, _) = Spaces::of(&null, &first);
        assert!(spaces.prefix && spaces.only_missing);
        let never = metaspace("never");
        assert!(!Spaces::of(&null, &never).0.prefix);
        let old = json!({"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "\u{2581}", "add_prefix_space": true}
        ]});
        let compiled = json!({"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": "AQID"},
            {"type": "Strip", "strip_left": false, "strip_right": true},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u{2581}"},
            {"type": "NFKC"}
        ]});
        let (spaces, other, cut) = Spaces::of(&compiled, &old);
        assert!(spaces.prefix && spaces.merged && cut.is_empty());
        assert_eq!(spaces.charsmap, Some(vec![1, 2, 3]));
        assert_eq!(other, [&json!({"type": "NFKC"})]);
    }
}
