//! Which tokens begin, end and fill a text: what `config.json` and `tokenizer_config.json` say beside a `tokenizer.json`.

use serde_json::Value;

/// Tokens with a task, and what is put around a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// The token that ends a text.
    pub eos: Option<u32>,
    /// The token for what has none.
    pub unknown: Option<u32>,
    /// The token that fills.
    pub padding: Option<u32>,
    /// Whether the first is put in front of a text. When writing, none means what the `tokenizer.json` does.
    pub add_bos: Option<bool>,
    /// Whether the second is put behind it; likewise.
    pub add_eos: Option<bool>,
    /// How a conversation becomes a text, as a Jinja template.
    pub chat_template: Option<String>,
}

impl Special {
    /// What the files of a folder say: `tokenizer_config.json` by the tokens' text, `config.json` by their numbers. Of several ends the
    /// first is taken.
    pub fn of_files(tokenizer: &Value, config: Option<&Value>, tokenizer_config: Option<&Value>) -> Self {
        let named = |name: &str| {
            let token = tokenizer_config?.get(name)?;
            let text = token.get("content").unwrap_or(token).as_str()?;
            id_of(tokenizer, text)
        };
        let numbered = |name: &str| {
            let id = config?.get(name)?;
            let id = id.as_array().map_or(Some(id), |ids| ids.first())?;
            u32::try_from(id.as_u64()?).ok()
        };
        let flag = |name: &str| tokenizer_config?.get(name)?.as_bool();
        let template = |config: &Value| config.get("chat_template")?.as_str().map(str::to_owned);
        Self {
            bos: named("bos_token").or_else(|| numbered("bos_token_id")),
            eos: named("eos_token").or_else(|| numbered("eos_token_id")),
            unknown: named("unk_token").or_else(|| numbered("unk_token_id")),
            padding: named("pad_token").or_else(|| numbered("pad_token_id")),
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            chat_template: tokenizer_config.and_then(template),
        }
    }
}

/// The number of the token `text` of a `tokenizer.json`.
pub(super) fn id_of(tokenizer: &Value, text: &str) -> Option<u32> {
    let added = tokenizer.get("added_tokens").and_then(Value::as_array);
    let added = added.into_iter().flatten().find(|token| token["content"] == text);
    let id = match added {
        Some(token) => token.get("id")?.as_u64(),
        None => match tokenizer.get("model")?.get("vocab")? {
            Value::Object(vocab) => vocab.get(text)?.as_u64(),
            Value::Array(pieces) => pieces.iter().position(|piece| piece[0] == text).map(|i| i as u64),
            _ => None,
        },
    };
    u32::try_from(id?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_in_the_one_file_come_before_numbers_in_the_other() {
        let tokenizer = json!({
            "added_tokens": [{"id": 3, "content": "<|im_end|>"}],
            "model": {"vocab": {"<s>": 1, "a": 2}}
        });
        let config = json!({"bos_token_id": 7, "eos_token_id": [9, 8], "pad_token_id": 2});
        let names = json!({"bos_token": "<s>", "eos_token": {"content": "absent"}, "unk_token": null, "chat_template": "{{ x }}"});
        let special = Special::of_files(&tokenizer, Some(&config), Some(&names));
        assert_eq!(
            (special.bos, special.eos, special.unknown, special.padding),
            (Some(1), Some(9), None, Some(2))
        );
        assert_eq!(special.chat_template.as_deref(), Some("{{ x }}"));
        let names = json!({"eos_token": {"content": "<|im_end|>"}, "add_bos_token": true});
        let special = Special::of_files(&tokenizer, None, Some(&names));
        assert_eq!((special.bos, special.eos, special.add_bos), (None, Some(3), Some(true)));
        assert_eq!(Special::of_files(&tokenizer, None, None), Special::default());
    }
}
