//! The model card of one child: a Markdown page with the front matter that model hubs read.

use std::fmt::Write;

use offshoot_family::catalog::DataRef;
use offshoot_family::{Catalog, Child};

use crate::units;

/// What a card says of the network that lies beside it. The report knows no architecture: whoever makes a card says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardFacts<'a> {
    /// What the model is for, as model hubs name it: `image-feature-extraction`.
    pub task: &'a str,
    /// What the features `cls` and `patches` are, in words.
    pub features: &'a str,
    /// What opens the folder.
    pub opened_by: OpenedBy<'a>,
}

/// What a language model is for, as model hubs name it.
const TEXT: &str = "text-generation";

/// What opens the folder that a card lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenedBy<'a> {
    /// A Python library that reads weights and configuration.
    Library {
        /// Its name, as model hubs have it: `transformers`.
        name: &'a str,
        /// Lines of Python that make `features` of `image`.
        python: &'a str,
    },
    /// Any ONNX runtime.
    Onnx,
    /// llama.cpp, and whatever reads its files.
    Gguf,
}

/// The card of `child`. Every number in it is a number of the catalog.
pub fn model_card(catalog: &Catalog, child: &Child, facts: &CardFacts<'_>) -> String {
    let mut card = String::new();
    let name = child.name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    let sizes: Vec<String> = child
        .shape
        .iter()
        .map(|(axis, size)| format!("{} {size}", units::axis_words(axis)))
        .collect();
    let (input, unit) = match &catalog.data {
        DataRef::Images(images) => {
            let how = &images.preprocessing;
            let (channels, crop, resize) = (how.channels, how.crop, how.resize);
            let input = format!("{channels} x {crop} x {crop}, shorter side resized to {resize}");
            (input, "one image")
        }
        DataRef::Text(text) => (
            format!("up to {} tokens", text.context),
            "one token, on average over a full context",
        ),
    };
    let trained = if catalog.data.text().is_some() {
        "training"
    } else {
        "self-supervised"
    };
    let (tag, origin) = if catalog.method == "import" {
        let origin = format!(
            "A model of others, with {}, that was imported and written again.",
            sizes.join(" and ")
        );
        ("", origin)
    } else {
        let origin = format!(
            "One of {} models that come out of one {trained} run. This one has {}; it was cut out of the run's parent \
             without any further training and needs neither the parent nor offshoot.",
            catalog.children.len(),
            sizes.join(" and ")
        );
        (
            if trained == "training" {
                ""
            } else {
                "- self-supervised\n"
            },
            origin,
        )
    };
    // Writing to a string cannot fail.
    let _ = write!(
        card,
        "---\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- offshoot\n- {method}\n{tag}---\n\n\
         # {id}{name}\n\n{origin}\n\n\
         | | |\n|---|---|\n| parameters | {parameters} |\n| multiply-adds of {unit} | {macs} |\n| weights | {weights} |\n\
         | input | {input} |\n\n",
        task = facts.task,
        method = catalog.method,
        id = child.id,
        parameters = units::grouped(child.parameters),
        macs = units::grouped(child.macs),
        library = match facts.opened_by {
            OpenedBy::Library { name, .. } => name,
            OpenedBy::Onnx => "onnx",
            OpenedBy::Gguf => "gguf",
        },
        // The catalog knows the size of a folder's `model.safetensors`.
        weights = match facts.opened_by {
            OpenedBy::Library { .. } => format!("{} bytes, fp32", units::grouped(child.bytes)),
            OpenedBy::Onnx => "fp32".to_owned(),
            OpenedBy::Gguf => "as the file says".to_owned(),
        },
    );
    card.push_str("## Measured\n\n");
    if child.scorecards.is_empty() {
        card.push_str("Nothing yet.\n");
    } else {
        card.push_str("| metric | value | split | examples | machine |\n|---|---|---|---|---|\n");
        for score in &child.scorecards {
            let split = score.split.map_or("-".to_owned(), |split| split.to_string());
            let (metric, value, examples) = (&score.metric, score.value, score.examples);
            let _ = writeln!(
                card,
                "| {metric} | {value:.4} | {split} | {examples} | {} |",
                score.machine
            );
        }
    }
    let _ = write!(
        card,
        "\n## Use\n\n{usage}\n## Made by\n\noffshoot {version}, method {method}, seed {seed}; \
         {data}parent `{parent}`.\n",
        usage = match facts.opened_by {
            OpenedBy::Library { python, .. } => library_usage(python, facts),
            OpenedBy::Onnx => onnx_usage(&catalog.data, facts),
            OpenedBy::Gguf => gguf_usage(),
        },
        version = catalog.version,
        method = catalog.method,
        seed = catalog.seed,
        data = match catalog.data.fingerprint() {
            "" => String::new(),
            fingerprint => format!("data fingerprint `{fingerprint}`; "),
        },
        parent = catalog.parent.hash,
    );
    card
}

/// How to run the model: on an `image` of PIL's, or on a text.
fn library_usage(python: &str, facts: &CardFacts<'_>) -> String {
    let what = if facts.task == TEXT {
        ""
    } else {
        "`features` is `cls`, of which the scores are. "
    };
    format!("```python\n{python}```\n\n{what}{}.\n", facts.features)
}

/// How to run a language model that lies in one file with its tokenizer.
fn gguf_usage() -> String {
    "```sh\nllama-completion -m model.gguf -p \"Once upon a time\" -n 50 -no-cnv\n```\n\n\
     The tokenizer is in the file. It was trained on text, not on conversations.\n"
        .to_owned()
}

/// How to run a language model, one pass over whole sequences.
fn onnx_text_usage(facts: &CardFacts<'_>) -> String {
    format!(
        "```python\nimport onnxruntime, tokenizers\n\ntokenizer = tokenizers.Tokenizer.from_file(\"tokenizer.json\")\n\
         session = onnxruntime.InferenceSession(\"model.onnx\")\n\
         logits, = session.run([\"logits\"], {{\"input_ids\": [tokenizer.encode(\"Once upon a time\").ids]}})\n```\n\n\
         `input_ids` is `[batch, sequence]` in int64, for any batch and any sequence up to the context; `logits` is \
         `[batch, sequence, vocabulary]`. {features}.\n",
        features = facts.features,
    )
}

/// How to run the model, and what its input is made of: no processor comes with a runtime.
fn onnx_usage(data: &DataRef, facts: &CardFacts<'_>) -> String {
    let preparation = match data {
        DataRef::Images(images) => &images.preprocessing,
        DataRef::Text(_) => return onnx_text_usage(facts),
    };
    let (logits, output) = if facts.task == "image-classification" {
        ("logits, ", "\"logits\", ")
    } else {
        ("", "")
    };
    format!(
        "```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession(\"model.onnx\")\n\
         {logits}cls, patches = session.run([{output}\"cls\", \"patches\"], {{\"pixel_values\": pixel_values}})\n```\n\n\
         `pixel_values` is `[batch, {channels}, {crop}, {crop}]` in fp32, for any batch: {colour} image, its shorter side resized to \
         {resize} (bicubic), the centre {crop} x {crop} of it, each value divided by 255, then less the mean {mean:?} and divided by \
         the deviation {std:?}. The same numbers are in the model's metadata and in `preprocessor_config.json`. {features}.\n",
        channels = preparation.channels,
        crop = preparation.crop,
        colour = if preparation.channels == 3 { "an RGB" } else { "a grey" },
        resize = preparation.resize,
        mean = preparation.mean,
        std = preparation.std,
        features = facts.features,
    )
}
