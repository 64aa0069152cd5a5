//! The model card of one child: a Markdown page with the front matter that model hubs read.

use std::fmt::Write;

use offshoot_family::catalog::Preprocessing;
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
    let preparation = &catalog.data.preprocessing;
    let (tag, origin) = if catalog.method == "import" {
        let origin = format!(
            "A model of others, with {}, that was imported and written again.",
            sizes.join(" and ")
        );
        ("", origin)
    } else {
        let origin = format!(
            "One of {} models that come out of one self-supervised run. This one has {}; it was cut out of the run's parent \
             without any further training and needs neither the parent nor offshoot.",
            catalog.children.len(),
            sizes.join(" and ")
        );
        ("- self-supervised\n", origin)
    };
    // Writing to a string cannot fail.
    let _ = write!(
        card,
        "---\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- offshoot\n- {method}\n{tag}---\n\n\
         # {id}{name}\n\n{origin}\n\n\
         | | |\n|---|---|\n| parameters | {parameters} |\n| multiply-adds of one image | {macs} |\n| weights | {weights} |\n\
         | input | {channels} x {crop} x {crop}, shorter side resized to {resize} |\n\n",
        task = facts.task,
        method = catalog.method,
        id = child.id,
        parameters = units::grouped(child.parameters),
        macs = units::grouped(child.macs),
        library = match facts.opened_by {
            OpenedBy::Library { name, .. } => name,
            OpenedBy::Onnx => "onnx",
        },
        // The catalog knows the size of a folder's `model.safetensors`.
        weights = match facts.opened_by {
            OpenedBy::Library { .. } => format!("{} bytes, fp32", units::grouped(child.bytes)),
            OpenedBy::Onnx => "fp32".to_owned(),
        },
        channels = preparation.channels,
        crop = preparation.crop,
        resize = preparation.resize,
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
            OpenedBy::Library { python, .. } => library_usage(python, facts.features),
            OpenedBy::Onnx => onnx_usage(preparation, facts),
        },
        version = catalog.version,
        method = catalog.method,
        seed = catalog.seed,
        data = match &catalog.data.fingerprint[..] {
            "" => String::new(),
            fingerprint => format!("data fingerprint `{fingerprint}`; "),
        },
        parent = catalog.parent.hash,
    );
    card
}

/// How to run the model on an `image` of PIL's.
fn library_usage(python: &str, features: &str) -> String {
    format!("```python\n{python}```\n\n`features` is `cls`, of which the scores are. {features}.\n")
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
