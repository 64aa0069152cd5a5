//! The model card of one child: a Markdown page with the front matter that model hubs read.

use std::fmt::Write;

use offshoot_family::catalog::{DataRef, Preprocessing};
use offshoot_family::scorecard::{is_perplexity, written};
use offshoot_family::{Catalog, Child};

use crate::score::training_cost;
use crate::units::{self, Unit};

/// What a card says of the network that lies beside it. The report knows no architecture: whoever makes a card says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardFacts<'a> {
    /// What the model is for, as model hubs name it: `image-feature-extraction`, `text-generation`.
    pub task: &'a str,
    /// What comes out of it, in words: of images the features `cls` and `patches`, of text the `logits`.
    pub features: &'a str,
    /// What opens the folder.
    pub opened_by: OpenedBy<'a>,
}

/// What opens the folder that a card lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenedBy<'a> {
    /// A Python library that reads weights and configuration.
    Library {
        /// Its name, as model hubs have it: `transformers`.
        name: &'a str,
        /// Lines of Python that make `features` of `image`, or go on with a text.
        python: &'a str,
    },
    /// Any ONNX runtime.
    Onnx,
    /// llama.cpp and what is built on it; language models only.
    Gguf {
        /// Name of the file.
        file: &'a str,
    },
}

impl OpenedBy<'_> {
    /// The library, as model hubs name it.
    fn library(&self) -> &str {
        match self {
            Self::Library { name, .. } => name,
            Self::Onnx => "onnx",
            Self::Gguf { .. } => "gguf",
        }
    }
}

/// The card of `child`. Every number in it is a number of the catalog.
pub fn model_card(catalog: &Catalog, child: &Child, facts: &CardFacts<'_>) -> String {
    let mut card = String::new();
    let name = child.name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    let (unit, input) = match &catalog.data {
        DataRef::Images(images) => {
            let how = &images.preprocessing;
            let (channels, crop, resize) = (how.channels, how.crop, how.resize);
            let input = format!("| input | {channels} x {crop} x {crop}, shorter side resized to {resize} |");
            ("one image", input)
        }
        DataRef::Text(text) => (
            "one token, on average over a full context",
            format!(
                "| context | {} tokens |\n| tokenizer | `{}` (blake3) |",
                units::grouped(text.context as u64),
                text.tokenizer
            ),
        ),
    };
    // Writing to a string cannot fail.
    let _ = write!(
        card,
        "---\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- offshoot\n- {method}\n{tag}---\n\n\
         # {id}{name}\n\n{origin}\n\n\
         | | |\n|---|---|\n| parameters | {parameters} |\n| multiply-adds of {unit} | {macs} |\n| weights | {weights} |\n\
         {input}\n\n",
        library = facts.opened_by.library(),
        task = facts.task,
        method = catalog.method,
        tag = if catalog.method == "elastic" {
            "- self-supervised\n"
        } else {
            ""
        },
        id = child.id,
        origin = origin(catalog, child),
        parameters = units::grouped(child.parameters),
        macs = units::grouped(child.macs),
        // The catalog knows the size of a folder's `model.safetensors`.
        weights = match facts.opened_by {
            OpenedBy::Library { .. } => format!("{} bytes, fp32", units::grouped(child.bytes)),
            OpenedBy::Onnx => "fp32".to_owned(),
            OpenedBy::Gguf { file } => format!("`{file}`, of the type that its metadata names"),
        },
    );
    card.push_str(&measured(catalog, child));
    card.push_str(&training(catalog, child));
    let _ = write!(
        card,
        "## Use\n\n{usage}\n## Made by\n\noffshoot {version}, method {method}, seed {seed}; \
         {data}parent `{parent}`.\n",
        usage = match (facts.opened_by, &catalog.data) {
            (OpenedBy::Library { python, .. }, data) => library_usage(data, python, facts),
            (OpenedBy::Onnx, DataRef::Images(images)) => onnx_usage(&images.preprocessing, facts),
            (OpenedBy::Onnx, DataRef::Text(text)) => onnx_text_usage(text.context, facts),
            (OpenedBy::Gguf { file }, data) => gguf_usage(file, data.text().map_or(0, |text| text.context)),
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

/// Where the model comes from, in two sentences.
fn origin(catalog: &Catalog, child: &Child) -> String {
    let sizes: Vec<String> = child
        .shape
        .iter()
        .map(|(axis, size)| format!("{} {size}", units::axis_words(axis)))
        .collect();
    let sizes = sizes.join(" and ");
    if catalog.method == "import" {
        return format!("A model of others, with {sizes}, that was imported and written again.");
    }
    let (what, run) = match &catalog.data {
        DataRef::Images(_) => ("models", "self-supervised run"),
        DataRef::Text(_) => ("language models", "training run"),
    };
    if catalog.children.len() == 1 {
        let what = what.trim_end_matches('s');
        return format!("A {what} with {sizes}, from one {run}; it does not need offshoot.");
    }
    format!(
        "One of {} {what} that come out of one {run}. This one has {sizes}; it was cut out of the run's parent without any further \
         training and needs neither the parent nor offshoot.",
        catalog.children.len(),
    )
}

/// What was measured, as a section.
fn measured(catalog: &Catalog, child: &Child) -> String {
    let mut section = "## Measured\n\n".to_owned();
    if child.scorecards.is_empty() {
        section.push_str("Nothing yet.\n\n");
        return section;
    }
    section.push_str("| metric | value | split | examples | machine |\n|---|---|---|---|---|\n");
    for score in &child.scorecards {
        let split = score.split.map_or("-".to_owned(), |split| split.to_string());
        let examples = match score.split {
            Some(_) => format!("{} {}", units::grouped(score.examples as u64), catalog.data.examples()),
            None => score.examples.to_string(),
        };
        // The name of a domain is the user's.
        let (metric, value) = (score.metric.replace('|', "\\|"), written(&score.metric, score.value));
        let _ = writeln!(
            section,
            "| {metric} | {value} | {split} | {examples} | {} |",
            score.machine
        );
    }
    section.push('\n');
    if child.scorecards.iter().any(|score| is_perplexity(&score.metric)) {
        section.push_str(
            "Perplexity is `exp` of the mean loss of a predicted token, in nats; per byte it compares models of different tokenizers. \
             Less is better. Without the name of a domain it is the geometric mean over all of them.\n\n",
        );
    }
    section
}

/// What a language model was trained on, as a section; nothing where that is not known.
fn training(catalog: &Catalog, child: &Child) -> String {
    let (Some(text), Some(cost)) = (catalog.data.text(), training_cost(catalog)) else {
        return String::new();
    };
    let domains: Vec<&str> = text.domains.iter().map(|domain| domain.name.as_str()).collect();
    let mut section = format!(
        "## Training\n\nTo predict the next token of text of {}: {} tokens in {} steps, {} in all.",
        domains.join(", "),
        units::grouped(cost.tokens),
        units::grouped(cost.steps),
        Unit::Flops.with_unit(cost.flops),
    );
    if catalog.children.len() > 1 {
        section.push_str(" That is the cost of the whole family.");
        if let Some(alone) = child.training_flops_alone {
            let _ = write!(
                section,
                " This model alone would have cost {} on the same tokens.",
                Unit::Flops.with_unit(alone)
            );
        }
    }
    section.push_str(" It goes on with a text; it was not taught to follow instructions.\n\n");
    section
}

/// How to run the model: on an `image` of PIL's, or on a text.
fn library_usage(data: &DataRef, python: &str, facts: &CardFacts<'_>) -> String {
    let what = match data {
        DataRef::Images(_) => "`features` is `cls`, of which the scores are. ",
        DataRef::Text(_) => "",
    };
    format!("```python\n{python}```\n\n{what}{}.\n", facts.features)
}

/// How to run a language model, one pass over the whole text a token.
fn onnx_text_usage(context: usize, facts: &CardFacts<'_>) -> String {
    format!(
        "```python\nimport numpy, onnxruntime, tokenizers\n\ntokenizer = tokenizers.Tokenizer.from_file(\"tokenizer.json\")\n\
         session = onnxruntime.InferenceSession(\"model.onnx\")\nids = tokenizer.encode(\"Once upon a time\").ids\n\
         for _ in range(50):\n    \
             logits, = session.run([\"logits\"], {{\"input_ids\": numpy.array([ids[-{context}:]], numpy.int64)}})\n    \
             ids.append(int(logits[0, -1].argmax()))\nprint(tokenizer.decode(ids))\n```\n\n\
         `input_ids` is `[batch, sequence]` in int64, for any batch and any sequence up to the context; `logits` is \
         `[batch, sequence, vocabulary]`. {features}.\n",
        features = facts.features,
    )
}

/// How to run a language model in llama.cpp, by way of Python.
fn gguf_usage(file: &str, context: usize) -> String {
    format!(
        "```python\nfrom llama_cpp import Llama\n\nmodel = Llama(\"{file}\", n_ctx={context})\n\
         print(model(\"Once upon a time\", max_tokens=50)[\"choices\"][0][\"text\"])\n```\n\n\
         `llama_cpp` is llama-cpp-python; whatever else is built on llama.cpp opens the file too. The tokenizer is in it.\n"
    )
}

/// How to run the model, and what its input is made of: no processor comes with a runtime.
fn onnx_usage(preparation: &Preprocessing, facts: &CardFacts<'_>) -> String {
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
