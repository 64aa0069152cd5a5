//! What the page promises: complete, self-contained, escaped, exact, the same every time, and calm about odd families.

mod synthetic;

use offshoot_family::{Catalog, Shape, Split};
use offshoot_report::{CardFacts, OpenedBy, RunFacts, model_card, render};
use synthetic::{child, empty, facts, latency, line_family, resnet_family, score, space, vit_family};

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
    for (catalog, run) in [(vit_family(), facts()), (resnet_family(), RunFacts::default())] {
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
    catalog.data.path = evil("data");
    catalog.data.fingerprint = evil("fingerprint");
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

#[test]
fn every_scorecard_and_cost_is_in_the_page_exactly() {
    let catalog = vit_family();
    let page = page(&catalog, &facts());
    for child in &catalog.children {
        let start = page
            .find(&format!("<th scope=\"row\" data-v=\"{0}\">{0}</th>", child.id))
            .expect("a row");
        let row = &page[start..start + page[start..].find("</tr>").unwrap()];
        for card in &child.scorecards {
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
    let catalog = vit_family();
    let page = page(&catalog, &facts());
    let score = |child: &offshoot_family::Child| child.score("knn@20", Split::Val);
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
    for catalog in [vit_family(), resnet_family(), line_family(5)] {
        let page = page(&catalog, &facts());
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
    assert!(unscored.contains("offshoot eval scores them") && !unscored.contains("class=\"dot"));

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
