//! What recipes refuse, resolve and write.

use std::collections::BTreeMap;

use proptest::prelude::*;

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    Folder,
    Parquet,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    optim: Optim,
    seed: u64,
    name: String,
    data: Data,
    heads: Heads,
    stages: Vec<Stage>,
    notes: BTreeMap<String, f64>,
    limit: Option<u32>,
    fast: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Optim {
    lr: Auto<f64>,
    weight_decay: f64,
    betas: (f64, f64),
    eps: f32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Data {
    path: String,
    source: Source,
    workers: Auto<usize>,
    crops: Auto<Vec<u32>>,
    kind: Auto<Source>,
    cut: Auto<Stage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Heads {
    prototypes: Vec<usize>,
    empty: Vec<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    width: usize,
    drop: f64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            optim: Optim {
                lr: Auto::Auto,
                weight_decay: 0.04,
                betas: (0.9, 0.999),
                eps: 1e-8,
            },
            seed: 0,
            name: String::new(),
            data: Data {
                path: ".".into(),
                source: Source::Folder,
                workers: Auto::Auto,
                crops: Auto::Value(vec![2, 8]),
                kind: Auto::Auto,
                cut: Auto::Auto,
            },
            heads: Heads {
                prototypes: vec![8192],
                empty: vec![],
            },
            stages: vec![Stage { width: 64, drop: 0.0 }],
            notes: BTreeMap::new(),
            limit: None,
            fast: false,
        }
    }
}

fn with(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
    load(&Recipe::default(), text, "recipe.toml", &overrides)
}

fn refused(text: &str, overrides: &[&str]) -> (String, Option<String>) {
    let error = with(text, overrides).unwrap_err();
    (error.to_string(), error.hint())
}

#[test]
fn what_is_not_given_takes_the_default() {
    assert_eq!(with("", &[]).unwrap(), Recipe::default());
    let recipe = with("seed = 7\n[optim]\nlr = 1e-3\n", &[]).unwrap();
    assert_eq!(
        (recipe.seed, recipe.optim.lr, recipe.optim.weight_decay),
        (7, Auto::Value(1e-3), 0.04)
    );
    assert_eq!(recipe.data, Recipe::default().data);
}

#[test]
fn overrides_win_and_read_as_toml_or_as_bare_strings() {
    let recipe = with(
        "[optim]\nlr = 1\n",
        &[
            "optim.lr=1e-3",
            "data.path=/x/y z",
            "heads.prototypes=[64,128]",
            "data.source=parquet",
            "data.kind = \"folder\"",
            "data.workers= 3",
            "data.crops=auto",
            "data.cut={width=3,drop=1}",
            "stages=[{width=1,drop=0.5},{width=2,drop=1}]",
            "notes.a=1",
            "notes.b=2.5",
            "limit=9",
            "name=123",
            "fast=true",
            "optim.betas=[0.5, 1]",
        ],
    )
    .unwrap();
    assert_eq!(recipe.optim.lr, Auto::Value(1e-3));
    assert_eq!(recipe.data.path, "/x/y z");
    assert_eq!(recipe.heads.prototypes, [64, 128]);
    assert_eq!(
        (recipe.data.source, recipe.data.kind),
        (Source::Parquet, Auto::Value(Source::Folder))
    );
    assert_eq!((recipe.data.workers, recipe.data.crops), (Auto::Value(3), Auto::Auto));
    assert_eq!(recipe.data.cut, Auto::Value(Stage { width: 3, drop: 1.0 }));
    assert_eq!(
        recipe.stages,
        [Stage { width: 1, drop: 0.5 }, Stage { width: 2, drop: 1.0 }]
    );
    assert_eq!(recipe.notes, BTreeMap::from([("a".into(), 1.0), ("b".into(), 2.5)]));
    assert_eq!(
        (recipe.limit, recipe.name.as_str(), recipe.fast),
        (Some(9), "123", true)
    );
    assert_eq!(recipe.optim.betas, (0.5, 1.0));
    for (text, name) in [
        ("name=2024-01-01", "2024-01-01"),
        ("name=true", "true"),
        ("name=", ""),
        ("name=a=b", "a=b"),
        ("name=3#x", "3#x"),
        ("name=a\nseed=3", "a\nseed=3"),
    ] {
        assert_eq!(with("", &[text]).unwrap().name, name);
    }
    // A table that is only known as a word by default is merged too.
    let recipe = with("[data.cut]\nwidth = 3\ndrop = 0\n", &["data.cut.drop=0.5"]).unwrap();
    assert_eq!(recipe.data.cut, Auto::Value(Stage { width: 3, drop: 0.5 }));
}

#[test]
fn unknown_keys_are_refused_with_line_and_nearest() {
    let (text, hint) = refused("seed = 1\n\n[optim]\nlrr = 1\n", &[]);
    assert_eq!(text, "recipe.toml:4: unknown key `optim.lrr`");
    assert_eq!(hint.unwrap(), "did you mean `optim.lr`?");
    let (text, hint) = refused("", &["optim.wieght_decay=1"]);
    assert_eq!(
        text,
        "override `optim.wieght_decay=1`: unknown key `optim.wieght_decay`"
    );
    assert_eq!(hint.unwrap(), "did you mean `optim.weight_decay`?");
    // The right name at the wrong place, a wrong table, and something else altogether.
    assert_eq!(refused("lr = 1", &[]).1.unwrap(), "did you mean `optim.lr`?");
    assert_eq!(
        refused("[optm]\nlr = 1", &[]),
        (
            "recipe.toml:1: unknown key `optm`".into(),
            Some("did you mean `optim`?".into())
        )
    );
    let (text, hint) = refused("[optim]\n\"odd key\" = 1", &[]);
    assert_eq!(text, "recipe.toml:2: unknown key `optim.\"odd key\"`");
    assert_eq!(
        hint.unwrap(),
        "known here: optim.lr, optim.weight_decay, optim.betas, optim.eps"
    );
    let (text, hint) = refused("[[stages]]\nwidth = 1\ndrop = 0\n[[stages]]\nwidht = 1\n", &[]);
    assert_eq!(text, "recipe.toml:1: unknown key `stages[1].widht`");
    assert_eq!(hint.unwrap(), "did you mean `stages.width`?");
    assert_eq!(
        refused("optim = { lr = 1, lrr = 2 }", &[]).0,
        "recipe.toml:1: unknown key `optim.lrr`"
    );
    assert_eq!(
        refused("optim.lrr = 2", &[]).0,
        "recipe.toml:1: unknown key `optim.lrr`"
    );
    // Tables that the default does not show are checked by their type.
    assert!(
        refused("[data.cut]\nwidth = 3\ndrop = 0\nwidht = 3", &[])
            .0
            .contains("widht")
    );
}

#[test]
fn values_of_the_wrong_kind_are_named() {
    for (text, overrides, wanted) in [
        (
            "\nseed = \"x\"",
            vec![],
            "recipe.toml:2: `seed`: invalid type: string \"x\", expected a whole number, not negative",
        ),
        (
            "seed = -1",
            vec![],
            "recipe.toml:1: `seed`: invalid value: integer `-1`, expected a whole number, not negative",
        ),
        (
            "seed = 1.5",
            vec![],
            "recipe.toml:1: `seed`: invalid type: floating point `1.5`, expected a whole number, not negative",
        ),
        (
            "",
            vec!["optim.lr=fast"],
            "override `optim.lr=fast`: `optim.lr`: invalid type: string \"fast\", expected a number or `auto`",
        ),
        (
            "",
            vec!["data.workers=-3"],
            "override `data.workers=-3`: `data.workers`: invalid value: integer `-3`, expected a whole number, not negative or `auto`",
        ),
        (
            "fast = 1",
            vec![],
            "recipe.toml:1: `fast`: invalid type: integer `1`, expected true or false",
        ),
        (
            "",
            vec!["heads.prototypes=[64,128"],
            "override `heads.prototypes=[64,128`: `heads.prototypes`: invalid type: string \"[64,128\", expected an array",
        ),
        (
            "",
            vec!["heads=3"],
            "override `heads=3`: `heads`: invalid type: integer `3`, expected a table",
        ),
        (
            "",
            vec!["seed.x=3"],
            "override `seed.x=3`: `seed`: invalid type: table, expected a whole number, not negative",
        ),
        (
            "",
            vec!["data.source=tar"],
            "override `data.source=tar`: `data.source`: unknown variant `tar`, expected `folder` or `parquet`",
        ),
        (
            "[notes]\na = \"x\"",
            vec![],
            "recipe.toml:2: `notes.a`: invalid type: string \"x\", expected a number",
        ),
        (
            "heads = 3",
            vec!["heads.prototypes=[1]"],
            "recipe.toml:1: `heads`: invalid type: integer `3`, expected a table",
        ),
        (
            "",
            vec!["stages=[{width=1}]"],
            "override `stages=[{width=1}]`: `stages`: missing field `drop`",
        ),
    ] {
        assert_eq!(refused(text, &overrides).0, wanted);
    }
}

#[test]
fn what_is_not_toml_is_shown_with_its_place() {
    for (text, wanted) in [
        ("seed = \n", "recipe.toml:1:"),
        ("seed = 1\nseed = 2", "recipe.toml:2:1: duplicate key"),
        ("a\nb = [1,", "recipe.toml:1:"),
        ("seed = 99999999999999999999", "recipe.toml:1:8:"),
        ("[optim\n", "recipe.toml:1:"),
    ] {
        let (found, hint) = refused(text, &[]);
        assert!(found.starts_with(wanted), "{text:?}: {found}");
        assert!(hint.is_some() && !found.contains('\n'));
    }
    for (text, wanted) in [
        ("seed", "no `=`"),
        ("=3", "no key"),
        (" = ", "no key"),
        ("a..b=3", "is empty"),
        (".=3", "is empty"),
        ("", "no `=`"),
    ] {
        let (found, hint) = refused("", &[text]);
        assert!(
            found.contains(wanted) && hint.unwrap().contains("optim.lr=1e-3"),
            "{text:?}: {found}"
        );
    }
}

#[test]
fn values_that_do_not_go_together_are_told() {
    #[derive(Debug, Default, Clone, Serialize, Deserialize)]
    #[serde(try_from = "Raw", into = "Raw")]
    struct Pair(Raw);
    #[derive(Debug, Default, Clone, Serialize, Deserialize)]
    struct Raw {
        low: u32,
        high: u32,
    }
    impl From<Pair> for Raw {
        fn from(pair: Pair) -> Self {
            pair.0
        }
    }
    impl TryFrom<Raw> for Pair {
        type Error = String;
        fn try_from(raw: Raw) -> Result<Self, String> {
            if raw.low + raw.high == 3 {
                Err("low and high must not make 3".into())
            } else {
                Ok(Self(raw))
            }
        }
    }
    let error = load(&Pair::default(), "low = 1\nhigh = 2", "r.toml", &[]).unwrap_err();
    assert_eq!(
        error,
        RecipeError::Invalid {
            origin: "r.toml".into(),
            reason: "low and high must not make 3".into()
        }
    );
    let alone = load(&Pair::default(), "low = 3", "r.toml", &[]).unwrap_err();
    assert_eq!(alone.to_string(), "r.toml:1: `low`: low and high must not make 3");
}

#[test]
fn unresolved_lists_what_is_still_auto() {
    assert_eq!(
        unresolved(&Recipe::default()),
        ["optim.lr", "data.workers", "data.kind", "data.cut"]
    );
    let mut recipe = Recipe::default();
    assert!(!recipe.optim.lr.resolved() && recipe.optim.lr.value().is_none());
    assert_eq!(*recipe.optim.lr.resolve(|| 0.5), 0.5);
    assert_eq!(*recipe.optim.lr.resolve(|| 0.7), 0.5);
    assert_eq!(unresolved(&recipe), ["data.workers", "data.kind", "data.cut"]);
    assert_eq!(unresolved(&vec![Auto::Auto, Auto::Value(1)]), ["[0]"]);
    assert_eq!(format!("{} {}", Auto::from(3), Auto::<u8>::Auto), "3 auto");
}

#[test]
fn toml_is_written_in_the_order_of_the_fields() {
    let text = to_toml(&Recipe::default()).unwrap();
    assert_eq!(
        text,
        r#"seed = 0
name = ""
fast = false

[optim]
lr = "auto"
weight_decay = 0.04
betas = [0.9, 0.999]
eps = 1e-8

[data]
path = "."
source = "folder"
workers = "auto"
crops = [2, 8]
kind = "auto"
cut = "auto"

[heads]
prototypes = [8192]
empty = []

[[stages]]
width = 64
drop = 0.0

[notes]
"#
    );
    assert_eq!(with(&text, &[]).unwrap(), Recipe::default());
    let large = Recipe {
        seed: u64::MAX,
        ..Recipe::default()
    };
    assert!(matches!(to_toml(&large), Err(RecipeError::Unwritable(_))));
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>().prop_filter("NaN equals nothing", |x| !x.is_nan()),
        Just(1e-5),
        Just(0.1f32 as f64),
        Just(-0.0),
        Just(1e22)
    ]
}

fn auto<T: std::fmt::Debug + Clone>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Auto<T>> {
    prop::option::of(value).prop_map(|value| value.map_or(Auto::Auto, Auto::Value))
}

prop_compose! {
    fn recipe()(
        lr in auto(number()),
        (weight_decay, beta, drop) in (number(), number(), number()),
        eps in any::<f32>().prop_filter("NaN equals nothing", |x| !x.is_nan()),
        seed in 0..=i64::MAX as u64,
        (name, path) in (".*", "\\PC*"),
        (workers, crops) in (auto(0usize..9), auto(prop::collection::vec(any::<u32>(), 0..4))),
        (kind, cut) in (auto(Just(Source::Parquet)), auto((0usize..9, number()))),
        prototypes in prop::collection::vec(0usize..1 << 40, 0..4),
        empty in prop::collection::vec(number(), 0..4),
        stages in prop::collection::vec((0usize..9, number()), 0..3),
        notes in prop::collection::btree_map(".*", number(), 0..3),
        (limit, fast) in (any::<Option<u32>>(), any::<bool>()),
    ) -> Recipe {
        let stage = |(width, drop)| Stage { width, drop };
        Recipe {
            optim: Optim { lr, weight_decay, betas: (beta, drop), eps },
            seed,
            name,
            data: Data { path, source: Source::Parquet, workers, crops, kind, cut: match cut {
                Auto::Auto => Auto::Auto,
                Auto::Value(value) => Auto::Value(stage(value)),
            } },
            heads: Heads { prototypes, empty },
            stages: stages.into_iter().map(stage).collect(),
            notes,
            limit,
            fast,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back_equal(recipe in recipe()) {
        let text = to_toml(&recipe).unwrap();
        prop_assert_eq!(with(&text, &[]).unwrap(), recipe, "{}", text);
    }

    #[test]
    fn no_text_panics(text in ".*", key in "[a-z.]{0,8}", value in ".*") {
        let _ = with(&text, &[]);
        let _ = with("", &[&text]);
        let _ = with("", &[&format!("{key}={value}")]);
        let _ = with("", &[&format!("optim.lr={value}")]);
    }
}
