//! What is put around a text: a `post_processor`, as far as it is one token in front and one behind.

use serde_json::{Value, json};

use super::special::id_of;

/// The tokens around a text, by their text and number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) bos: Option<(String, u32)>,
    pub(super) eos: Option<(String, u32)>,
}

impl Template {
    /// What the `post_processor` of `tokenizer` puts around a text; none if it is more than two tokens.
    pub(super) fn of(tokenizer: &Value) -> Option<Self> {
        let mut template = Self::default();
        let Some(post) = tokenizer.get("post_processor").filter(|post| !post.is_null()) else {
            return Some(template);
        };
        let parts = match post.get("processors").and_then(Value::as_array) {
            Some(parts) => parts.as_slice(),
            None => std::slice::from_ref(post),
        };
        for part in parts {
            let found = match part.get("type")?.as_str()? {
                // It changes where tokens are said to be in the text, not which ones they are.
                "ByteLevel" => continue,
                "TemplateProcessing" => Self::of_template(tokenizer, part)?,
                "BertProcessing" | "RobertaProcessing" => {
                    let token = |name: &str| {
                        let pair = part.get(name)?;
                        Some((
                            pair.get(0)?.as_str()?.to_owned(),
                            pair.get(1)?.as_u64()?.try_into().ok()?,
                        ))
                    };
                    Self {
                        bos: Some(token("cls")?),
                        eos: Some(token("sep")?),
                    }
                }
                _ => return None,
            };
            if template != Self::default() {
                return None;
            }
            template = found;
        }
        Some(template)
    }

    fn of_template(tokenizer: &Value, part: &Value) -> Option<Self> {
        let token = |piece: &Value| {
            let text = piece.get("SpecialToken")?.get("id")?.as_str()?;
            let ids = part
                .get("special_tokens")
                .and_then(|tokens| tokens.get(text)?.get("ids")?.as_array());
            let id = match ids.map(Vec::as_slice) {
                Some([id]) => u32::try_from(id.as_u64()?).ok()?,
                Some(_) => return None,
                None => id_of(tokenizer, text)?,
            };
            Some((text.to_owned(), id))
        };
        let is_text = |piece: &Value| piece.get("Sequence").is_some();
        match part.get("single")?.as_array()?.as_slice() {
            [text] if is_text(text) => Some(Self::default()),
            [first, text] if is_text(text) => Some(Self {
                bos: Some(token(first)?),
                eos: None,
            }),
            [text, last] if is_text(text) => Some(Self {
                bos: None,
                eos: Some(token(last)?),
            }),
            [first, text, last] if is_text(text) => Some(Self {
                bos: Some(token(first)?),
                eos: Some(token(last)?),
            }),
            _ => None,
        }
    }

    /// It as a `post_processor`.
    pub(super) fn json(&self) -> Value {
        if self == &Self::default() {
            return Value::Null;
        }
        let around = |name: &str, kind: usize| {
            let special = |token: &Option<(String, u32)>| {
                let (text, _) = token.as_ref()?;
                Some(json!({"SpecialToken": {"id": text, "type_id": kind}}))
            };
            let text = Some(json!({"Sequence": {"id": name, "type_id": kind}}));
            [special(&self.bos), text, special(&self.eos)].into_iter().flatten()
        };
        let tokens = self.bos.iter().chain(&self.eos);
        let tokens = tokens.map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})));
        json!({
            "type": "TemplateProcessing",
            "single": around("A", 0).collect::<Vec<_>>(),
            "pair": around("A", 0).chain(around("B", 1)).collect::<Vec<_>>(),
            "special_tokens": tokens.collect::<serde_json::Map<_, _>>()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_around_a_text_come_back() {
        let token = |text: &str, id| Some((text.to_owned(), id));
        for (bos, eos) in [
            (None, None),
            (token("<s>", 1), None),
            (None, token("</s>", 2)),
            (token("<s>", 1), token("</s>", 2)),
        ] {
            let template = Template { bos, eos };
            let tokenizer = json!({"post_processor": template.json()});
            assert_eq!(Template::of(&tokenizer), Some(template.clone()));
            let two =
                json!({"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template.json()]}});
            if template != Template::default() {
                assert_eq!(Template::of(&two), Some(template));
            }
        }
        let roberta = json!({"post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}});
        let found = Template::of(&roberta).unwrap();
        assert_eq!((found.bos, found.eos), (token("<s>", 0), token("</s>", 2)));
        let more = json!({"post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "a"}}, {"SpecialToken": {"id": "b"}}, {"Sequence": {"id": "A"}}
        ]}});
        assert_eq!(Template::of(&more), None);
    }
}
