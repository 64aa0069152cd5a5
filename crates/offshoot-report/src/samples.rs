//! Samples of text that a run wrote: the last few, short.

use serde::Serialize;
use serde_json::{Map, Value};

/// Most samples of a page.
const MOST: usize = 4;
/// Most characters of a sample, and of its prompt.
const MOST_CHARACTERS: (usize, usize) = (400, 200);

/// A sample of the page.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Sample<'a> {
    /// The step it was written after.
    step: &'a Value,
    /// What it begins with; empty for nothing.
    prompt: String,
    /// What the model wrote behind it.
    text: String,
    /// Whether that was longer.
    cut: bool,
}

/// The last samples in their order. Lines that are none are passed over.
pub(crate) fn latest(lines: &[Map<String, Value>]) -> Vec<Sample<'_>> {
    let mut samples: Vec<Sample> = lines.iter().rev().filter_map(sample).take(MOST).collect();
    samples.reverse();
    samples
}

fn sample(line: &Map<String, Value>) -> Option<Sample<'_>> {
    let step = line.get("step").filter(|step| step.is_u64())?;
    let text = line.get("text")?.as_str()?;
    let prompt = line.get("prompt").and_then(Value::as_str).unwrap_or_default();
    let (text, cut) = short(text, MOST_CHARACTERS.0);
    let (prompt, _) = short(prompt, MOST_CHARACTERS.1);
    Some(Sample {
        step,
        prompt,
        text,
        cut,
    })
}

/// At most `most` characters of `text`, and whether it has more. What is no character for the eye is shown as one: control characters,
/// and those that turn the order of the others about.
fn short(text: &str, most: usize) -> (String, bool) {
    let shown = |c: char| {
        let turns =
            matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if turns || (c.is_control() && c != '\n' && c != '\t') {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    let mut characters = text.chars();
    let short = characters.by_ref().take(most).map(shown).collect();
    (short, characters.next().is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn the_last_samples_are_shown_with_all_that_was_written_behind_their_prompts() {
        // The first words of what is written may be those of the prompt once more.
        let mut lines: Vec<_> = (1..=9)
            .map(|step| line(json!({"step": step, "prompt": "The ", "text": format!("The end of {step}")})))
            .collect();
        lines.push(line(json!({"step": 10, "prompt": "", "text": 3})));
        lines.push(line(json!({"prompt": "", "text": "no step"})));
        let samples = latest(&lines);
        let texts: Vec<&str> = samples.iter().map(|sample| sample.text.as_str()).collect();
        assert_eq!(texts, ["The end of 6", "The end of 7", "The end of 8", "The end of 9"]);
        assert!(samples.iter().all(|sample| sample.prompt == "The " && !sample.cut));
    }

    #[test]
    fn long_and_odd_texts_are_made_short_and_plain() {
        let odd = [line(
            json!({"step": 1, "text": format!("a\u{0}b\u{202e}c\nd{}", "\u{e9}".repeat(900))}),
        )];
        let samples = latest(&odd);
        assert!(samples[0].text.starts_with("a\u{fffd}b\u{fffd}c\nd\u{e9}") && samples[0].cut);
        assert_eq!(samples[0].text.chars().count(), MOST_CHARACTERS.0);
    }
}
