//! Which tokens begin, end and fill a text: what `tokenizer_config.json` and `chat_template.jinja` say beside a `tokenizer.json`.

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
    /// What the files of a folder say: `tokenizer_config.json`, and the text of `chat_template.jinja`, which transformers 5 writes and which
    /// comes before a template in the former. Of several templates there the one called `default` is taken.
    pub fn of_files(tokenizer: &Value, config: Option<&Value>, chat_template: Option<&str>) -> Self {
        let named = |name: &str| {
            let token = config?.get(name)?;
            let text = token.get("content").unwrap_or(token).as_str()?;
            id_of(tokenizer, text)
        };
        let flag = |name: &str| config?.get(name)?.as_bool();
        let template = |config: &Value| {
            let said = config.get("chat_template")?;
            let several = said.as_array().into_iter().flatten();
            let usual = several.into_iter().find(|template| template["name"] == "default");
            let text = usual.map_or(said, |template| &template["template"]);
            text.as_str().map(str::to_owned)
        };
        Self {
            bos: named("bos_token"),
            eos: named("eos_token"),
            unknown: named("unk_token"),
            padding: named("pad_token"),
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            chat_template: chat_template.map(str::to_owned).or_else(|| config.and_then(template)),
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
    fn tokens_are_named_by_their_text_and_a_template_of_its_own_comes_first() {
        let tokenizer = json!({
            "added_tokens": [{"id": 3, "content": "<|im_end|>"}],
            "model": {"vocab": {"<s>": 1, "a": 2}}
        });
        let config = json!({
            "bos_token": "<s>", "eos_token": {"content": "absent"}, "unk_token": null, "pad_token": "a", "chat_template": "{{ x }}"
        });
        let special = Special::of_files(&tokenizer, Some(&config), None);
        assert_eq!(
            (special.bos, special.eos, special.unknown, special.padding),
            (Some(1), None, None, Some(2))
        );
        assert_eq!(special.chat_template.as_deref(), Some("{{ x }}"));
        let special = Special::of_files(&tokenizer, Some(&config), Some("{{ y }}"));
        assert_eq!(special.chat_template.as_deref(), Some("{{ y }}"));
        let config = json!({"eos_token": {"content": "<|im_end|>"}, "add_bos_token": true, "chat_template": [
            {"name": "tool_use", "template": "{{ t }}"}, {"name": "default", "template": "{{ d }}"}
        ]});
        let special = Special::of_files(&tokenizer, Some(&config), None);
        assert_eq!((special.bos, special.eos, special.add_bos), (None, Some(3), Some(true)));
        assert_eq!(special.chat_template.as_deref(), Some("{{ d }}"));
        assert_eq!(Special::of_files(&tokenizer, None, None), Special::default());
    }
}
