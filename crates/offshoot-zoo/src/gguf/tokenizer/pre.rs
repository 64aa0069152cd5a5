//! How byte-level tokenizers cut text into words before they merge bytes: llama.cpp knows some ways by name, `tokenizer.json`
//! spells them out.
//!
//! Both are brought to a list of patterns, each of which cuts out what it matches from the pieces of the one before.

use serde_json::{Value, json};

/// What GPT-2's `ByteLevel` cuts by.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// `Digits`, one by one and together.
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
/// `Punctuation` of neighbours together, which has ASCII's symbols, too.
const PUNCTUATION: &str = r"[\p{P}$+<=>^`|~]+";
const THREE: &str = "[0-9][0-9][0-9]";

/// One of llama.cpp's ways.
pub(super) struct Pre {
    /// The name that is written.
    pub(super) name: &'static str,
    /// Names that mean the same.
    aliases: &'static [&'static str],
    steps: &'static [&'static str],
    /// Whether a word that is a token is taken as it is, without merging.
    pub(super) ignore_merges: bool,
    /// Whether text starts with the first token unless the file says something else.
    pub(super) add_bos: bool,
}

/// Names as llama.cpp's list of them has them. The first that fits is written.
static KNOWN: [Pre; 9] = [
    Pre {
        name: "gpt-2",
        aliases: &[
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        steps: &[GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        name: "smollm",
        aliases: &[
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        steps: &[DIGIT, GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        name: "llama-bpe",
        aliases: &[
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        steps: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Pre {
        name: "dbrx",
        aliases: &["smaug-bpe", "chatglm-bpe"],
        steps: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        name: "qwen2",
        aliases: &[
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
        ],
        steps: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        name: "gpt-4o",
        aliases: &["llama4", "kanana2", "talkie", "minimax-m2"],
        steps: &[GPT4O],
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        name: "tekken",
        aliases: &[],
        steps: &[TEKKEN],
        ignore_merges: true,
        add_bos: true,
    },
    Pre {
        name: "falcon",
        aliases: &[],
        steps: &[PUNCTUATION, GPT2, THREE],
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        name: "default",
        aliases: &[],
        steps: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, THREE],
        ignore_merges: false,
        add_bos: false,
    },
];

impl Pre {
    /// The way of this name.
    pub(super) fn of_name(name: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|pre| pre.name == name || pre.aliases.contains(&name))
    }

    /// The way that a `pre_tokenizer` and the model's `ignore_merges` spell out.
    pub(super) fn of_json(pre_tokenizer: &Value, ignore_merges: bool) -> Option<&'static Self> {
        let steps = steps(pre_tokenizer)?;
        KNOWN
            .iter()
            .find(|pre| pre.steps == steps && pre.ignore_merges == ignore_merges)
    }

    /// It as a `pre_tokenizer`.
    pub(super) fn json(&self) -> Value {
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes = |by_words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": by_words});
        // The pattern of GPT-2 comes with `ByteLevel`, unless patterns that are not of plain digits follow.
        let inside = self.steps.last() == Some(&GPT2) || self.steps == [PUNCTUATION, GPT2, THREE];
        let mut parts: Vec<Value> = self
            .steps
            .iter()
            .map(|&step| match step {
                GPT2 if inside => bytes(true),
                DIGIT => json!({"type": "Digits", "individual_digits": true}),
                DIGITS => json!({"type": "Digits", "individual_digits": false}),
                PUNCTUATION => json!({"type": "Punctuation", "behavior": "Contiguous"}),
                pattern => split(pattern),
            })
            .collect();
        if !inside {
            parts.push(bytes(false));
        }
        match parts.len() {
            1 => parts.remove(0),
            _ => json!({"type": "Sequence", "pretokenizers": parts}),
        }
    }
}

/// The patterns of a `pre_tokenizer` that ends in bytes, if it consists of nothing else.
pub(super) fn steps(pre_tokenizer: &Value) -> Option<Vec<&str>> {
    let mut steps = Vec::new();
    let mut bytes = false;
    let parts = match pre_tokenizer.get("pretokenizers").and_then(Value::as_array) {
        Some(parts) => parts.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    for part in parts {
        let flag = |key: &str, default: bool| part.get(key).map_or(Some(default), Value::as_bool);
        let text = |key: &str| part.get(key).and_then(Value::as_str);
        match text("type")? {
            "ByteLevel" if !bytes => {
                if flag("add_prefix_space", true)? {
                    return None;
                }
                if flag("use_regex", true)? {
                    steps.push(GPT2);
                }
                bytes = true;
            }
            "Digits" => steps.push(if flag("individual_digits", false)? {
                DIGIT
            } else {
                DIGITS
            }),
            "Punctuation" if text("behavior") == Some("Contiguous") => steps.push(PUNCTUATION),
            // Both leave what the pattern matches as pieces; these patterns match all of a text.
            "Split"
                if matches!(
                    (text("behavior"), flag("invert", false)?),
                    (Some("Isolated"), false) | (Some("Removed"), true)
                ) =>
            {
                steps.push(part.get("pattern")?.get("Regex")?.as_str()?);
            }
            _ => return None,
        }
    }
    bytes.then_some(steps)
}

/// Whether a `pre_tokenizer` turns text into bytes.
pub(super) fn has_bytes(pre_tokenizer: &Value) -> bool {
    let inner = pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
    let is_bytes = |part: &Value| part.get("type").is_some_and(|kind| kind == "ByteLevel");
    is_bytes(pre_tokenizer) || inner.is_some_and(|parts| parts.iter().any(is_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_way_is_recognised_in_what_it_is_written_as() {
        for pre in &KNOWN {
            let found = Pre::of_json(&pre.json(), pre.ignore_merges).unwrap_or_else(|| panic!("{}", pre.name));
            assert_eq!(found.name, pre.name);
            for name in pre.aliases {
                assert_eq!(Pre::of_name(name).unwrap().name, pre.name);
            }
        }
        assert!(Pre::of_name("bloom").is_none());
    }

    #[test]
    fn published_configurations_are_recognised_and_others_are_not() {
        let bytes = |by_words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": by_words});
        let sequence = |parts: &[Value]| json!({"type": "Sequence", "pretokenizers": parts});
        let split = |pattern: &str, behavior: &str, invert: bool| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let name = |json: &Value, ignore_merges| Pre::of_json(json, ignore_merges).map(|pre| pre.name);
        assert_eq!(name(&bytes(true), false), Some("gpt-2"));
        assert_eq!(name(&sequence(&[digits, bytes(true)]), false), Some("smollm"));
        let llama3 = sequence(&[split(LLAMA3, "Isolated", false), bytes(false)]);
        assert_eq!(name(&llama3, true), Some("llama-bpe"));
        assert_eq!(name(&llama3, false), Some("dbrx"));
        assert_eq!(
            name(&sequence(&[split(QWEN2, "Removed", true), bytes(false)]), false),
            Some("qwen2")
        );
        for other in [
            bytes(false),
            json!({"type": "ByteLevel", "add_prefix_space": true}),
            sequence(&[split(LLAMA3, "Isolated", true), bytes(false)]),
            sequence(&[split(r"\w+", "Isolated", false), bytes(false)]),
            split(LLAMA3, "Isolated", false),
            json!({"type": "Whitespace"}),
            json!({"type": "Sequence", "pretokenizers": []}),
            Value::Null,
        ] {
            assert_eq!(name(&other, false), None, "{other}");
        }
    }
}
