//! The model card of one child: a Markdown page with the front matter that model hubs read.

use std::fmt::Write;

use offshoot_family::{Catalog, Child};

use crate::units;

/// The card of `child`. Every number in it is a number of the catalog.
pub fn model_card(catalog: &Catalog, child: &Child) -> String {
    let mut card = String::new();
    let name = child.name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    let sizes: Vec<String> = child
        .shape
        .iter()
        .map(|(axis, size)| format!("{axis} {size}"))
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
        "---\nlibrary_name: transformers\npipeline_tag: image-feature-extraction\ntags:\n- offshoot\n- {method}\n{tag}---\n\n\
         # {id}{name}\n\n{origin}\n\n\
         | | |\n|---|---|\n| parameters | {parameters} |\n| multiply-adds of one image | {macs} |\n| weights | {bytes} bytes, fp32 |\n\
         | input | {channels} x {crop} x {crop}, shorter side resized to {resize} |\n\n",
        method = catalog.method,
        id = child.id,
        parameters = units::grouped(child.parameters),
        macs = units::grouped(child.macs),
        bytes = units::grouped(child.bytes),
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
        "\n## Use\n\n```python\nfrom transformers import AutoModel\n\nmodel = AutoModel.from_pretrained(\"{id}\")\n\
         features = model(pixel_values).last_hidden_state[:, 0]\n```\n\n## Made by\n\noffshoot {version}, method {method}, seed {seed}; \
         data fingerprint `{data}`; parent `{parent}`.\n",
        id = child.id,
        version = catalog.version,
        method = catalog.method,
        seed = catalog.seed,
        data = catalog.data.fingerprint,
        parent = catalog.parent.hash,
    );
    card
}
