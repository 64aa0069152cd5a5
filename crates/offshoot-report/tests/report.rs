//! What the page promises: complete, self-contained, escaped, exact, the same every time, and calm about odd families.

mod synthetic;

use offshoot_family::catalog::{DataRef, DomainRef};
use offshoot_family::{Catalog, Shape, Split};
use offshoot_report::{CardFacts, OpenedBy, RunFacts, model_card, render};
use serde_json::{Map, Value};
use synthetic::{
    child, empty, facts, language_facts, language_family, latency, line_family, resnet_family, score, space, vit_family,
};

fn page(catalog: &Catalog, run: &RunFacts) -> String {
    let page = render(catalog, run).unwrap();
    check_tags(&page);
    assert!(
        !page.contains("NaN") && !page.contains("\"inf") && !page.contains(",inf"),
        "a number is not one"
    );
    page
}

/// Every element is closed in order; scripts and styles are passed over.
fn check_tags(page: &str) {
    let void = ["meta", "br", "input", "!doctype"];
    let mut open: Vec<String> = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let mut quoted = false;
        let end = rest
            .find(|c| {
                quoted ^= c == '"';
                c == '>' && !quoted
            })
            .expect("a tag ends");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        assert!(!tag.contains('<'), "`<` inside <{tag}>");
        let name: String = tag
            .split([' ', '\n', '/'])
            .find(|part| !part.is_empty())
            .unwrap()
            .into();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "at </{name}>");
        } else if !tag.ends_with('/') && !void.contains(&name.as_str()) {
            if name == "script" || name == "style" {
                let close = format!("</{name}>");
                rest = &rest[rest.find(&close).expect("it is closed") + close.len()..];
            } else {
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "not closed: {open:?}");
}

#[test]
fn the_page_asks_the_network_for_nothing() {
    for (catalog, run) in [
        (vit_family(), facts()),
        (resnet_family(), RunFacts::default()),
        (language_family(), language_facts()),
    ] {
        let page = page(&catalog, &run).replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for reference in [
            "http:", "https:", "src=", "@import", "url(", "<link", "<img", "<iframe", "fetch(", "XMLHttp",
        ] {
            assert!(!page.contains(reference), "{reference}");
        }
        assert!(page.contains("default-src 'none'"));
        assert_eq!(page.matches("href=").count(), page.matches("href=\"#").count());
    }
}

#[test]
fn whatever_comes_from_outside_is_escaped() {
    let evil = |tag: &str| format!("{tag}\"><script>alert(1)</script>'<b onclick=x>&");
    let mut catalog = vit_family();
    catalog.method = evil("method");
    catalog.version = evil("version");
    catalog.score = evil("score");
    catalog.parent.path = evil("path");
    catalog.parent.hash = evil("hash");
    if let DataRef::Images(images) = &mut catalog.data {
        images.path = evil("data");
        images.fingerprint = evil("fingerprint");
    }
    for axis in &mut catalog.space.as_mut().unwrap().axes {
        axis.name = evil(&axis.name);
    }
    for (i, child) in catalog.children.iter_mut().enumerate() {
        child.id = evil(&format!("child{i}"));
        child.name = Some(evil("name"));
        child.shape = Shape::new(
            child
                .shape
                .iter()
                .map(|(name, size)| (evil(name), size))
                .collect::<Vec<_>>(),
        );
        for card in &mut child.scorecards {
            if card.metric == "knn@20" {
                card.metric = evil("score");
            }
            card.machine = evil("machine");
            card.version = evil("version");
            card.data = card.data.as_ref().map(|_| evil("data"));
            card.details.insert(evil("key"), evil("value").into());
        }
        child.record(score(&evil("metric"), Split::Val, 0.5));
    }
    let mut run = facts();
    run.title = evil("title");
    run.recipe_toml = evil("recipe");
    run.notes.push((evil("note"), evil("text")));
    run.picked = Some((catalog.children[3].id.clone(), evil("why")));
    for line in &mut run.metrics {
        line.insert(evil("field"), 1.into());
        line.insert(format!("probe@3/{}", evil("child")), 1.into());
    }
    let page = page(&catalog, &run);
    assert_eq!(page.matches("<script").count(), 1);
    assert!(!page.contains("<b onclick"));
    for tag in [
        "method", "score", "machine", "title", "recipe", "note", "why", "field", "child5", "width", "metric", "key",
    ] {
        assert!(page.contains(&format!("{tag}&quot;&gt;&lt;script&gt;")), "{tag}");
    }
}

/// Numbers of the catalog that are not in their child's row of the page.
fn check_rows(catalog: &Catalog, page: &str, most: usize) {
    for child in &catalog.children {
        let start = page
            .find(&format!("<th scope=\"row\" data-v=\"{0}\">{0}</th>", child.id))
            .expect("a row");
        let row = &page[start..start + page[start..].find("</tr>").unwrap()];
        for card in child.scorecards.iter().take(most) {
            assert!(
                row.contains(&format!("title=\"{}\"", card.value)),
                "{} {}",
                child.id,
                card.metric
            );
        }
        let costs = [
            (child.parameters, "parameters"),
            (child.macs, "multiply-adds"),
            (child.bytes, "bytes"),
        ];
        for (value, noun) in costs {
            assert!(row.contains(&format!("data-v=\"{value}\"")), "{} {noun}", child.id);
            let title = row
                .split("title=\"")
                .find(|part| part.split('"').next().unwrap().ends_with(noun))
                .unwrap();
            let digits: String = title
                .split('"')
                .next()
                .unwrap()
                .chars()
                .filter(char::is_ascii_digit)
                .collect();
            assert_eq!(digits, value.to_string());
        }
    }
}

#[test]
fn every_scorecard_and_cost_is_in_the_page_exactly() {
    let text = language_family();
    let page_of_text = page(&text, &language_facts());
    check_rows(&text, &page_of_text, 2);
    for child in &text.children {
        let alone = child.training_flops_alone.unwrap();
        assert!(page_of_text.contains(&format!("title=\"{alone}\"")), "{}", child.id);
        let of_pubmed = child.score("perplexity/pubmed", Split::Val).unwrap();
        assert!(page_of_text.contains(&format!("title=\"{of_pubmed}\"")), "{}", child.id);
    }
    let catalog = vit_family();
    let page = page(&catalog, &facts());
    check_rows(&catalog, &page, usize::MAX);
    for text in [
        "50,000",
        "b3:5f1c0de2a97d44e0b3c6",
        "CPU, 2 threads, avx512",
        "epochs = 346",
        "temperature 0.07",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("cells [1"));
}

#[test]
fn the_front_is_the_catalogs() {
    check_fronts(&vit_family(), &facts());
    check_fronts(&language_family(), &language_facts());
}

fn check_fronts(catalog: &Catalog, run: &RunFacts) {
    let page = page(catalog, run);
    let score = |child: &offshoot_family::Child| child.merit(&catalog.score, Split::Val);
    let fronts = [
        ("parameters", catalog.pareto(|c| Some(c.parameters as f64), score)),
        ("multiply-adds", catalog.pareto(|c| Some(c.macs as f64), score)),
        ("latency", catalog.pareto(|c| c.latency_ms(), score)),
    ];
    for (cost, front) in &fronts {
        let start = page.find(&format!("aria-labelledby=\"{cost}-wide-t")).expect("a chart");
        let chart = &page[start..start + page[start..].find("</svg>").unwrap()];
        let ids: Vec<&str> = front.iter().map(|child| child.id.as_str()).collect();
        assert!(
            chart.contains(&format!("from the cheapest: {}.</desc>", ids.join(", "))),
            "{cost}"
        );
        assert_eq!(chart.matches(" best").count(), front.len(), "{cost}");
    }
    assert_eq!(page.matches("class=\"onfront").count(), {
        let on = |child: &&offshoot_family::Child| {
            fronts
                .iter()
                .any(|(_, front)| front.iter().any(|other| other.id == child.id))
        };
        catalog.children.iter().filter(on).count()
    });
}

#[test]
fn the_same_family_gives_the_same_bytes() {
    assert_eq!(page(&vit_family(), &facts()), page(&vit_family(), &facts()));
}

#[test]
fn ids_in_the_page_are_unique() {
    for (catalog, run) in [
        (vit_family(), facts()),
        (resnet_family(), facts()),
        (line_family(5), facts()),
        (language_family(), language_facts()),
    ] {
        let page = page(&catalog, &run);
        let mut ids: Vec<&str> = page
            .split(" id=\"")
            .skip(1)
            .filter_map(|part| part.split('"').next())
            .collect();
        let n = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), n);
    }
}

#[test]
fn odd_families_make_calm_pages() {
    assert!(page(&empty(None), &RunFacts::default()).contains("This family has no children."));
    assert!(page(&empty(Some(space(&[]))), &RunFacts::default()).contains("has not been measured"));
    page(&empty(Some(space(&[("width", vec![])]))), &facts());
    assert!(page(&line_family(1), &facts()).contains("1 child was derived"));
    assert!(page(&line_family(4), &facts()).contains("over depth"));
    assert!(page(&line_family(4), &facts()).contains("this catalog does not list it"));

    let mut unscored = vit_family();
    unscored.children.iter_mut().for_each(|child| child.scorecards.clear());
    let unscored = page(&unscored, &RunFacts::default());
    assert!(unscored.contains("offshoot eval knn scores them") && !unscored.contains("class=\"dot"));

    let mut equal = vit_family();
    for child in &mut equal.children {
        child.scorecards = vec![score("knn@20", Split::Val, 0.5), latency(3.0)];
    }
    assert!(page(&equal, &facts()).contains("1 child on the front"));

    let mut broken = vit_family();
    for (child, value) in broken
        .children
        .iter_mut()
        .zip([f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1e300].iter().cycle())
    {
        child.scorecards = vec![score("knn@20", Split::Val, *value), latency(*value)];
        (child.parameters, child.macs, child.bytes) = (0, u64::MAX, u64::MAX);
    }
    page(&broken, &facts());
}

#[test]
fn odd_shapes_make_calm_pages() {
    let mut mixed = empty(None);
    for shape in [
        Shape::new([("width", 4)]),
        Shape::new([("depth", 3), ("heads", 2)]),
        Shape::new::<String>([]),
    ] {
        mixed.children.push(child(shape, 10, 100));
    }
    mixed
        .children
        .iter_mut()
        .for_each(|child| child.record(score("perplexity", Split::Test, 12.5)));
    mixed.score = "perplexity".into();
    let page_of_mixed = page(&mixed, &RunFacts::default());
    assert!(page_of_mixed.contains("perplexity on the test split"));

    let mut loose = vit_family();
    loose.space = None;
    assert!(page(&loose, &facts()).contains("not a grid"));

    let four = [
        ("a", vec![1, 2]),
        ("b", vec![1, 2]),
        ("c", vec![1, 2]),
        ("d", vec![1, 2]),
    ];
    let mut many = empty(Some(space(&four)));
    let shapes: Vec<Shape> = many.space.as_ref().unwrap().iter().collect();
    many.children = shapes.into_iter().map(|shape| child(shape, 5, 6)).collect();
    many.children[0].record(score("knn@20", Split::Val, 0.1));
    assert!(page(&many, &facts()).contains("more than three axes"));

    let three = page(&resnet_family(), &facts());
    assert!(three.contains("<h4 class=\"wide\">mid 96</h4>"));
    assert_eq!(three.matches("class=\"cell q").count(), 2 * 465);
}

#[test]
fn scores_measured_in_two_ways_are_called_out() {
    let warning = "not all measured in the same way";
    let mut catalog = vit_family();
    assert!(!page(&catalog, &facts()).contains(warning));
    catalog.children[0].scorecards[0].data = Some("other data".into());
    assert!(page(&catalog, &facts()).contains(warning));
}

#[test]
fn long_runs_stay_small() {
    let mut run = facts();
    run.metrics = synthetic::metrics(200_000, 1);
    let page = page(&line_family(3), &run);
    assert!(page.len() < 400_000, "{}", page.len());
}

#[test]
fn a_card_says_what_opens_its_folder_and_what_the_features_are() {
    let mut catalog = empty(Some(space(&[("width", vec![32]), ("depth3", vec![2])])));
    catalog.children = catalog
        .space
        .iter()
        .flat_map(|s| s.iter())
        .map(|s| child(s, 5, 6))
        .collect();
    let python = "import timm\n\nfeatures = timm.create_model(\"local-dir:32x2\")(image)\n";
    let card = |opened_by| {
        let facts = CardFacts {
            task: "image-classification",
            features: "`cls` is the mean over the last map",
            opened_by,
        };
        model_card(&catalog, &catalog.children[0], &facts)
    };
    let folder = card(OpenedBy::Library { name: "timm", python });
    for part in [
        "library_name: timm\n",
        "pipeline_tag: image-classification\n",
        "width 32 and stage 3 depth 2",
        &format!("```python\n{python}```"),
        "`cls` is the mean over the last map.",
    ] {
        assert!(folder.contains(part), "{part} is not in\n{folder}");
    }
    let onnx = card(OpenedBy::Onnx);
    assert!(
        onnx.contains("library_name: onnx\n") && onnx.contains("`cls` is the mean over the last map."),
        "{onnx}"
    );
    assert!(!onnx.contains("timm"), "{onnx}");
}

/// The part of the page from `start` to `end`.
fn between<'a>(page: &'a str, start: &str, end: &str) -> &'a str {
    let from = page.find(start).unwrap_or_else(|| panic!("{start} is not in the page"));
    &page[from..from + page[from..].find(end).expect("it ends")]
}

#[test]
fn of_perplexities_the_least_is_the_best_everywhere() {
    let catalog = language_family();
    let page = page(&catalog, &language_facts());
    let merit = |child: &offshoot_family::Child| child.merit("perplexity", Split::Val).unwrap();
    let best = catalog
        .children
        .iter()
        .max_by(|a, b| merit(a).total_cmp(&merit(b)))
        .unwrap();
    let worst = catalog
        .children
        .iter()
        .min_by(|a, b| merit(a).total_cmp(&merit(b)))
        .unwrap();
    assert_eq!((best.id.as_str(), worst.id.as_str()), ("256x6", "128x3"));
    assert!(page.contains("best: 256x6"));
    // The darkest cell is the best child, and the front is the lower edge of the cloud: it falls from left to right.
    let map = between(&page, "aria-labelledby=\"map-0-wide-t", "</svg>");
    let shade_of = |id: &str| {
        let end = map.find(&format!("<title>{id} ·")).expect("a cell");
        let start = map[..end].rfind("class=\"cell q").expect("its class");
        map[start..end]
            .trim_start_matches("class=\"cell q")
            .split('"')
            .next()
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    assert_eq!((shade_of("256x6"), shade_of("128x3")), (15, 0));
    let legend = between(&page, "aria-labelledby=\"map-legend-t", "</svg>");
    let ends: Vec<f64> = legend
        .split("<text")
        .skip(1)
        .map(|text| {
            text[text.find('>').unwrap() + 1..text.find('<').unwrap()]
                .parse()
                .unwrap()
        })
        .collect();
    assert!(ends[0] > ends[1], "{ends:?}");
    let chart = between(&page, "aria-labelledby=\"parameters-wide-t", "</svg>");
    assert!(chart.contains("perplexity on val, less is better"));
    let points = chart.split("class=\"front\" points=\"").nth(1).expect("a front");
    let heights: Vec<f64> = points
        .split('"')
        .next()
        .unwrap()
        .split(' ')
        .map(|p| p.split(',').nth(1).unwrap().parse().unwrap())
        .collect();
    assert!(
        heights.is_sorted() && heights[0] < heights[heights.len() - 1],
        "{heights:?}"
    );
    // The first click on a column of perplexities puts the least on top, on one of parameters the most.
    for column in [
        "perplexity val",
        "perplexity&#x2f;pubmed val",
        "byte_perplexity val",
        "latency, ms",
    ] {
        let head = between(&page, "<thead><tr>", "</tr>");
        let cell = head
            .split("<th ")
            .find(|cell| cell.ends_with(&format!(">{column}</th>")))
            .unwrap_or_else(|| panic!("{column}: {head}"));
        assert!(cell.contains("data-best=\"least\""), "{column}");
    }
    for (column, least) in [("parameters", false), ("knn@20 val, %", false)] {
        let head = synthetic_head(&vit_family());
        let cell = head
            .split("<th ")
            .find(|cell| cell.ends_with(&format!(">{column}</th>")))
            .unwrap();
        assert_eq!(cell.contains("data-best"), least, "{column}");
    }
}

fn synthetic_head(catalog: &Catalog) -> String {
    between(&page(catalog, &facts()), "<thead><tr>", "</tr>").to_owned()
}

#[test]
fn costs_are_those_of_one_token_and_perplexities_no_shares() {
    let mut catalog = language_family();
    let of_text = page(&catalog, &language_facts());
    for text in [
        "multiply-adds of one token",
        "latency of one token, ms",
        "median of one token",
        "perplexity 14.",
    ] {
        assert!(of_text.contains(text), "{text}");
    }
    assert!(
        !of_text.contains(" %") && !of_text.contains("one image"),
        "an image or a share on a page of text"
    );
    let of_images = page(&vit_family(), &facts());
    assert!(of_images.contains("multiply-adds of one image") && !of_images.contains("one token"));
    assert!(!of_images.contains("less is better") && of_images.contains("scores as well. The diamond"));
    // A model that has learnt nothing: as many as there are tokens.
    for child in &mut catalog.children {
        for card in &mut child.scorecards {
            card.value *= 97.0;
        }
    }
    let untrained = page(&catalog, &language_facts());
    let value = catalog.children[0].score("perplexity", Split::Val).unwrap();
    let digits = (value.round() as u64).to_string();
    assert!(
        untrained.contains(&format!(">{},{}</td>", &digits[..1], &digits[1..])),
        "{value}"
    );
}

#[test]
fn what_training_cost_is_told_where_it_is_known() {
    let catalog = language_family();
    let cost = catalog.cost.unwrap();
    let with = page(&catalog, &language_facts());
    let chart = between(&with, "aria-labelledby=\"spending-wide-t", "</svg>");
    // The last probe is at the end of training: all that the run cost.
    for (id, text) in [("256x6", "step 2,000"), ("192x4", "step 2,000"), ("128x3", "step 100")] {
        assert!(
            chart
                .split("<title>")
                .any(|tip| tip.starts_with(&format!("{id} · perplexity")) && tip.contains(text)),
            "{id}"
        );
    }
    assert!(chart.contains("7.80 M tokens · step 2,000"));
    assert!(with.contains(&format!("title=\"{}\"", cost.flops)) && with.contains("7,800,000 predicted tokens"));
    assert!(with.contains("Each child trained alone"));
    assert_eq!(with.matches("Probe: perplexity<").count(), 0, "it is drawn over cost");

    let mut without = catalog.clone();
    without.cost = None;
    without
        .children
        .iter_mut()
        .for_each(|child| child.training_flops_alone = None);
    let without = page(&without, &language_facts());
    assert!(!without.contains("FLOP") && without.contains("Probe: perplexity<"));
    // Known costs without probes, and odd ones, make no chart.
    let bare = page(&catalog, &RunFacts::default());
    assert!(bare.contains("Each child trained alone") && !bare.contains("spending-wide"));
    for (tokens, flops) in [(0, 1.0), (5, f64::NAN), (5, f64::INFINITY), (5, 0.0), (5, -1.0)] {
        let mut odd = catalog.clone();
        let cost = odd.cost.as_mut().unwrap();
        (cost.tokens, cost.flops) = (tokens, flops);
        assert!(!page(&odd, &language_facts()).contains("spending-wide"));
    }
}

#[test]
fn text_that_a_model_wrote_is_shown_short_and_cannot_break_the_page() {
    let catalog = language_family();
    let mut run = language_facts();
    let shown = page(&catalog, &run);
    assert_eq!(shown.matches("<blockquote").count(), 4);
    assert!(shown.contains("after step 1800; the bold words were given") && !shown.contains("after step 600"));
    let sample = |step: Value, prompt: &str, text: &str| {
        let mut line = Map::new();
        line.insert("step".into(), step);
        line.insert("prompt".into(), prompt.into());
        line.insert("text".into(), text.into());
        line
    };
    let hostile = "</blockquote></main><script>alert(1)</script><!-- ]]> {{ title }} {% if %} \u{0}\u{1b}\u{202e}\u{feff}\" onload='x'";
    run.samples = vec![
        sample(1.into(), hostile, &hostile.repeat(2)),
        sample(2.into(), "", &"a".repeat(100_000)),
        sample("<script>".into(), "", "the step is no number"),
        sample((-1).into(), "", "nor is this one"),
        Map::new(),
    ];
    let page = page(&catalog, &run);
    assert_eq!(
        (page.matches("<script").count(), page.matches("<blockquote").count()),
        (1, 2)
    );
    assert!(page.contains("&lt;script&gt;alert(1)&lt;") && page.contains("{{ title }} {% if %}"));
    assert!(!page.contains('\u{0}') && !page.contains('\u{1b}') && !page.contains('\u{202e}'));
    assert!(!page.contains(&"a".repeat(401)) && !page.contains("no number"));
}

#[test]
fn names_of_domains_are_escaped_and_long_ones_kept() {
    let evil = "x\"><script>alert(1)</script>";
    let mut catalog = language_family();
    if let DataRef::Text(text) = &mut catalog.data {
        text.domains = vec![DomainRef {
            name: evil.into(),
            path: evil.into(),
        }];
        text.tokenizer = evil.into();
    }
    catalog.children[0].record(score(&format!("perplexity/{evil}"), Split::Val, 3.0));
    let mut run = language_facts();
    for line in &mut run.metrics {
        line.insert(format!("perplexity/256x6/{evil}"), 3.0.into());
        line.insert(format!("loss/{evil}"), 3.0.into());
    }
    let page = page(&catalog, &run);
    assert_eq!(page.matches("<script").count(), 1);
}

#[test]
fn a_card_of_a_language_model_says_how_text_comes_out_of_it() {
    let catalog = language_family();
    let child = catalog.children.iter().find(|child| child.id == "192x5").unwrap();
    let python = "from transformers import AutoModelForCausalLM\n";
    let card = |opened_by| {
        let facts = CardFacts {
            task: "text-generation",
            features: "`logits` are scores of the next token",
            opened_by,
        };
        model_card(&catalog, child, &facts)
    };
    let folder = card(OpenedBy::Library {
        name: "transformers",
        python,
    });
    for part in [
        "library_name: transformers\npipeline_tag: text-generation\n",
        "width 192 and depth 5",
        "| context | 256 tokens |",
        "| tokenizer | `77aa0de2a97d44e0b3c6` (blake3) |",
        "multiply-adds of one token",
        "| perplexity | ",
        "| val | 1,234 documents |",
        &format!("```python\n{python}```"),
        "`logits` are scores of the next token.",
        "7,800,000 tokens",
        "pubmed, email, kernel docs",
    ] {
        assert!(folder.contains(part), "{part} is not in\n{folder}");
    }
    assert!(
        !folder.contains("self-supervised") && !folder.contains("image") && !folder.contains("`cls`"),
        "{folder}"
    );
    let onnx = card(OpenedBy::Onnx);
    assert!(
        onnx.contains("library_name: onnx\n") && onnx.contains("tokenizer.json") && !onnx.contains("pixel"),
        "{onnx}"
    );
    let gguf = card(OpenedBy::Gguf { file: "model.gguf" });
    assert!(
        gguf.contains("library_name: gguf\n") && gguf.contains("Llama(\"model.gguf\", n_ctx=256)"),
        "{gguf}"
    );
}
