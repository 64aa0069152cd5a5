//! Holds prose against the code: what the documents say of crates, imports, tests, files, recipes and keys is so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::Table;

/// Lines that a file may have before its tests.
const MAX_LINES: usize = 800;
/// Folders that hold nothing of ours.
const FOREIGN: [&str; 3] = ["target", ".git", ".venv"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All files below `folder` with this extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && !FOREIGN.contains(&name.as_str()) {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every member of the workspace and the siblings that it depends on.
fn crates() -> BTreeMap<String, BTreeSet<String>> {
    let entries = fs::read_dir(root().join("crates")).unwrap();
    let manifests = entries
        .map(|e| e.unwrap().path().join("Cargo.toml"))
        .filter(|path| path.is_file());
    manifests
        .map(|path| {
            let manifest: Table = read(&path).parse().unwrap();
            let name = manifest["package"]["name"].as_str().unwrap().to_owned();
            let all = manifest.get("dependencies").and_then(|d| d.as_table());
            let siblings = all
                .into_iter()
                .flat_map(Table::keys)
                .filter(|d| d.starts_with("offshoot"));
            (name, siblings.cloned().collect())
        })
        .collect()
}

/// The words between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The cells of the rows of the table under a heading.
fn table<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, section) = text
        .split_once(&format!("\n## {heading}"))
        .unwrap_or_else(|| panic!("no section `{heading}`"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section
        .lines()
        .skip_while(|l| !l.starts_with("| ---"))
        .skip(1)
        .take_while(|l| l.starts_with('|'));
    rows.map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// A document without its blocks of code.
fn prose(text: &str) -> String {
    let blocks = text.split("\n```").enumerate();
    blocks.filter(|(i, _)| i % 2 == 0).map(|(_, block)| block).collect()
}

#[test]
fn crates_import_what_the_architecture_says() {
    let text = read(&root().join("ARCHITECTURE.md"));
    let said: BTreeMap<String, BTreeSet<String>> = table(&text, "Crates")
        .iter()
        .map(|row| (quoted(row[0]).collect(), quoted(row[2]).map(str::to_owned).collect()))
        .collect();
    assert_eq!(said, crates(), "ARCHITECTURE.md on the left, Cargo.toml on the right");
}

#[test]
fn tests_that_guard_an_invariant_exist() {
    let text = read(&root().join("ARCHITECTURE.md"));
    let code: String = files(&root().join("crates"), "rs")
        .iter()
        .map(|path| read(path))
        .collect();
    let invariants = table(&text, "Invariants");
    assert!(invariants.len() > 10, "the table was not found");
    for row in invariants {
        let names: Vec<&str> = quoted(row[1]).collect();
        assert!(!names.is_empty(), "`{}` names no test", row[0]);
        for name in names {
            assert!(
                code.contains(&format!("fn {name}(")),
                "ARCHITECTURE.md: there is no test `{name}`"
            );
        }
    }
}

#[test]
fn files_say_what_they_are_for_and_stay_short() {
    for path in files(&root().join("crates"), "rs") {
        let text = read(&path);
        let file = path.display();
        let sentence: Vec<&str> = text.lines().map_while(|l| l.strip_prefix("//! ")).collect();
        let ends = sentence.last().is_some_and(|l| l.trim_end().ends_with(['.', ':']));
        assert!(ends, "{file}: must open with a `//!` sentence");
        let lines = text
            .split("\n#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default()
            .lines()
            .count();
        assert!(
            lines <= MAX_LINES,
            "{file}: {lines} lines before its tests, more than {MAX_LINES}"
        );
    }
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for path in files(&root(), "md") {
        let text = prose(&read(&path));
        let folder = path.parent().unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|t| !t.contains("://") && !t.starts_with('#')) {
            let file = target.split('#').next().unwrap_or_default();
            if !folder.join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn recipes_that_are_named_exist() {
    let mut named = BTreeSet::new();
    for path in files(&root(), "md") {
        let text = read(&path);
        for rest in text.split("recipes/").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
                .collect();
            if name.ends_with(".toml") {
                assert!(
                    root().join("recipes").join(&name).is_file(),
                    "{}: there is no recipes/{name}",
                    path.display()
                );
                named.insert(name);
            }
        }
    }
    assert!(!named.is_empty(), "no document names a recipe");
}

/// Fields of structs that recipes are made of, but for those that are filled in.
fn fields(file: &str, structs: &[&str]) -> Vec<String> {
    let code = read(&root().join("crates").join(file));
    let mut keys = Vec::new();
    for wanted in structs {
        let (_, body) = code
            .split_once(&format!("pub struct {wanted} {{"))
            .unwrap_or_else(|| panic!("no {wanted}"));
        let body = body.split("\n}").next().unwrap_or_default();
        let mut filled_in = false;
        for line in body.lines().map(str::trim) {
            filled_in |= line == "#[serde(skip)]";
            if let Some((key, _)) = line.strip_prefix("pub ").and_then(|l| l.split_once(':'))
                && !std::mem::take(&mut filled_in)
            {
                keys.push(key.to_owned());
            }
        }
    }
    keys
}

/// The keys that `document` does not name, as a key or as the end of one.
fn missing(document: &str, keys: Vec<String>) -> Vec<String> {
    let text = read(&root().join(document));
    let words: BTreeSet<&str> = quoted(&text)
        .flat_map(|word| [word, word.rsplit('.').next().unwrap_or(word)])
        .collect();
    keys.into_iter().filter(|key| !words.contains(key.as_str())).collect()
}

#[test]
fn every_recipe_key_is_in_the_table() {
    let keys = [
        fields(
            "offshoot-methods/src/elastic/recipe.rs",
            &[
                "InitRecipe",
                "DataRecipe",
                "SpaceRecipe",
                "HeadsRecipe",
                "OptimRecipe",
                "TrainRecipe",
                "ProbeRecipe",
            ],
        ),
        fields("offshoot-family/src/architecture/mod.rs", &["Vit", "Swin", "ResNet"]),
        fields("offshoot-methods/src/elastic/step.rs", &["LossRecipe"]),
        fields("offshoot-data/src/augment/mod.rs", &["MultiCrop"]),
        fields("offshoot-data/src/mask.rs", &["BlockMasks"]),
    ]
    .concat();
    assert!(keys.len() > 60, "{} keys found", keys.len());
    let missing = missing("docs/elastic.md", keys);
    assert!(missing.is_empty(), "docs/elastic.md does not name {missing:?}");
}

#[test]
fn every_key_of_a_language_models_recipe_is_in_the_table() {
    let sections = [
        "DataRecipe",
        "SpaceRecipe",
        "ElasticRecipe",
        "OptimRecipe",
        "TrainRecipe",
        "ProbeRecipe",
    ];
    let keys = [
        fields("offshoot-methods/src/language/recipe.rs", &sections),
        fields("offshoot-family/src/architecture/decoder.rs", &["Decoder"]),
    ]
    .concat();
    assert!(keys.len() > 50, "{} keys found", keys.len());
    let missing: Vec<String> = missing("docs/language.md", keys)
        .into_iter()
        .filter(|key| !["domains", "weights"].contains(&key.as_str()))
        .collect();
    assert!(missing.is_empty(), "docs/language.md does not name {missing:?}");
}

#[test]
fn libraries_do_not_print_exit_read_the_clock_or_open_the_network() {
    let banned = [
        "println!",
        "print!(",
        "process::exit",
        "SystemTime",
        "Instant::now",
        "std::net",
        "process::Command",
    ];
    for name in crates().keys().filter(|name| *name != "offshoot") {
        let source = root().join("crates").join(name).join("src");
        // Tests that have files of their own are no part of the library.
        let library = files(&source, "rs")
            .into_iter()
            .filter(|path| !path.starts_with(source.join("tests")));
        for path in library {
            let text = read(&path);
            for word in banned {
                assert!(!text.contains(word), "{}: `{word}` in a library", path.display());
            }
            if !["offshoot-zoo", "offshoot-kernels"].contains(&name.as_str()) {
                assert!(
                    !text.contains("burn::"),
                    "{}: reach the tensor library through the zoo",
                    path.display()
                );
            }
        }
    }
}
