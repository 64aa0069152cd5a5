//! Sentence encoders against their definition in float64, and folders that are none.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use offshoot_zoo::SentenceEncoder;
use offshoot_zoo::tensor::Device;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const WIDTH: usize = 8;
const HEADS: usize = 2;
const HIDDEN: usize = 16;
const DEPTH: usize = 2;
const VOCABULARY: usize = 11;
const POSITIONS: usize = 9;
const EPSILON: f64 = 1e-12;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Made-up weights that are exact in half precision: multiples of 1/64 in -0.75..0.75, and around 1 for norms.
fn weights() -> Tensors {
    let mut all = Tensors::new();
    let mut state = 1u32;
    let mut add = |name: String, shape: &[usize]| {
        let base = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
        let values = (0..shape.iter().product()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            base + ((state >> 16) % 97) as f32 / 64.0 - 0.75
        });
        let values = values.collect();
        all.insert(name, (shape.to_vec(), values));
    };
    for (leaf, rows) in [
        ("word_embeddings", VOCABULARY),
        ("position_embeddings", POSITIONS),
        ("token_type_embeddings", 2),
    ] {
        add(format!("embeddings.{leaf}.weight"), &[rows, WIDTH]);
    }
    let mut norm = vec!["embeddings.LayerNorm".to_owned()];
    for block in 0..DEPTH {
        for (leaf, rows, columns) in [
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", HIDDEN, WIDTH),
            ("output.dense", WIDTH, HIDDEN),
        ] {
            add(format!("encoder.layer.{block}.{leaf}.weight"), &[rows, columns]);
            add(format!("encoder.layer.{block}.{leaf}.bias"), &[rows]);
        }
        norm.push(format!("encoder.layer.{block}.attention.output.LayerNorm"));
        norm.push(format!("encoder.layer.{block}.output.LayerNorm"));
    }
    for name in norm {
        add(format!("{name}.weight"), &[WIDTH]);
        add(format!("{name}.bias"), &[WIDTH]);
    }
    // What the forward pass has no use for.
    add("pooler.dense.weight".into(), &[WIDTH, WIDTH]);
    all
}

fn config() -> Value {
    json!({
        "model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
        "layer_norm_eps": EPSILON, "hidden_act": "gelu"
    })
}

fn write(folder: &Path, config: &Value, tensors: &Tensors, prefix: &str, half: bool) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = if half {
                values
                    .iter()
                    .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
                    .collect()
            } else {
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            };
            (format!("{prefix}{name}"), shape.clone(), bytes)
        })
        .collect();
    let kind = if half { Dtype::F16 } else { Dtype::F32 };
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(kind, shape.clone(), bytes).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("model.safetensors"), file).unwrap();
}

/// `last_hidden_state` of one sequence by the definition of Devlin et al. 2018, in float64.
fn hidden(tensors: &Tensors, tokens: &[u32]) -> Vec<Vec<f64>> {
    let get = |name: &str| -> Vec<f64> { tensors[name].1.iter().map(|&v| f64::from(v)).collect() };
    let linear = |name: &str, x: &[Vec<f64>]| -> Vec<Vec<f64>> {
        let (weight, bias) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        let row = |x: &Vec<f64>| {
            let each = bias.iter().enumerate();
            each.map(|(o, b)| b + x.iter().zip(&weight[o * x.len()..]).map(|(x, w)| x * w).sum::<f64>())
                .collect()
        };
        x.iter().map(row).collect()
    };
    let norm = |name: &str, x: Vec<Vec<f64>>| -> Vec<Vec<f64>> {
        let (scale, shift) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        x.into_iter()
            .map(|x| {
                let mean = x.iter().sum::<f64>() / WIDTH as f64;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WIDTH as f64;
                let factor = 1.0 / (variance + EPSILON).sqrt();
                (0..WIDTH)
                    .map(|i| (x[i] - mean) * factor * scale[i] + shift[i])
                    .collect()
            })
            .collect()
    };
    let add = |a: &[Vec<f64>], b: &[Vec<f64>]| -> Vec<Vec<f64>> {
        a.iter()
            .zip(b)
            .map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect())
            .collect()
    };
    let [words, positions, types] =
        ["word", "position", "token_type"].map(|n| get(&format!("embeddings.{n}_embeddings.weight")));
    let embedded = tokens.iter().enumerate().map(|(at, &token)| {
        let value = |i: usize| words[token as usize * WIDTH + i] + positions[at * WIDTH + i] + types[i];
        (0..WIDTH).map(value).collect()
    });
    let mut x = norm("embeddings.LayerNorm", embedded.collect());
    for block in 0..DEPTH {
        let name = |leaf: &str| format!("encoder.layer.{block}.{leaf}");
        let [q, k, v] = ["query", "key", "value"].map(|leaf| linear(&name(&format!("attention.self.{leaf}")), &x));
        let size = WIDTH / HEADS;
        let mut mixed = vec![vec![0.0; WIDTH]; tokens.len()];
        for head in 0..HEADS {
            let own = head * size..(head + 1) * size;
            for t in 0..tokens.len() {
                let score = |s: usize| own.clone().map(|i| q[t][i] * k[s][i]).sum::<f64>() / (size as f64).sqrt();
                let scores: Vec<f64> = (0..tokens.len()).map(|s| score(s).exp()).collect();
                let total: f64 = scores.iter().sum();
                for i in own.clone() {
                    mixed[t][i] = scores.iter().zip(&v).map(|(p, v)| p / total * v[i]).sum();
                }
            }
        }
        let attended = linear(&name("attention.output.dense"), &mixed);
        x = norm(&name("attention.output.LayerNorm"), add(&attended, &x));
        let mut inner = linear(&name("intermediate.dense"), &x);
        for value in inner.iter_mut().flatten() {
            *value *= 0.5 * (1.0 + erf(*value / 2f64.sqrt()));
        }
        x = norm(
            &name("output.LayerNorm"),
            add(&linear(&name("output.dense"), &inner), &x),
        );
    }
    x
}

/// The error function by its series.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}

fn unit(rows: &[Vec<f64>]) -> Vec<f64> {
    let mean: Vec<f64> = (0..WIDTH)
        .map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64)
        .collect();
    let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    mean.iter().map(|x| x / norm).collect()
}

const TEXTS: [&[u32]; 4] = [&[1, 5, 2], &[1, 2], &[1, 7, 7, 3, 10, 0, 4, 9, 2], &[1, 5, 2]];

fn texts() -> Vec<Vec<u32>> {
    TEXTS.iter().map(|text| text.to_vec()).collect()
}

#[test]
fn a_sentence_is_what_the_definition_makes_of_it_in_float64() {
    let base = tempfile::tempdir().unwrap();
    let tensors = weights();
    let mut found = Vec::new();
    for (prefix, half) in [("", false), ("bert.", false), ("", true)] {
        let folder = base.path().join(format!("{prefix}{half}"));
        write(&folder, &config(), &tensors, prefix, half);
        let encoder = SentenceEncoder::open(&folder, &Device::flex()).unwrap();
        assert_eq!((encoder.width(), encoder.max_tokens()), (WIDTH, POSITIONS));
        found.push(encoder.embed(&texts()).unwrap());
    }
    for (text, vector) in TEXTS.iter().zip(found[0].chunks(WIDTH)) {
        let expected = unit(&hidden(&tensors, text));
        for (a, b) in vector.iter().zip(&expected) {
            assert!((f64::from(*a) - b).abs() < 2e-6, "{vector:?} {expected:?}");
        }
    }
    assert_eq!(found[0][..WIDTH], found[0][3 * WIDTH..]);
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0], found[2]);
}

#[test]
fn modules_say_how_tokens_are_pooled_and_how_many_are_read() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let tensors = weights();
    write(folder, &config(), &tensors, "", false);
    let module = |kind: &str, path: &str| json!({"idx": 0, "name": "0", "path": path, "type": format!("sentence_transformers.models.{kind}")});
    let modules = |list: &[Value]| fs::write(folder.join("modules.json"), json!(list).to_string()).unwrap();
    fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    let pooling = |value: Value| fs::write(folder.join("1_Pooling/config.json"), value.to_string()).unwrap();
    modules(&[
        module("Transformer", ""),
        module("Pooling", "1_Pooling"),
        module("Normalize", "2_Normalize"),
    ]);
    pooling(
        json!({"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}),
    );
    fs::write(
        folder.join("sentence_bert_config.json"),
        r#"{"max_seq_length": 5, "do_lower_case": false}"#,
    )
    .unwrap();
    let open = || SentenceEncoder::open(folder, &Device::flex());
    let encoder = open().unwrap();
    assert_eq!(encoder.max_tokens(), 5);
    let found = encoder.embed(&texts()[..1]).unwrap();
    let expected = unit(&hidden(&tensors, TEXTS[0])[..1]);
    assert!(
        found
            .iter()
            .zip(&expected)
            .all(|(a, b)| (f64::from(*a) - b).abs() < 2e-6)
    );
    let first = encoder.hash().to_owned();
    pooling(json!({"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}));
    assert_ne!(open().unwrap().hash(), first);
    pooling(json!({"pooling_mode_max_tokens": true}));
    assert!(open().unwrap_err().to_string().contains("pooling_mode_max_tokens"));
    modules(&[module("Transformer", ""), module("Dense", "2_Dense")]);
    assert!(open().unwrap_err().to_string().contains("models.Dense"));
}

#[test]
fn folders_of_other_networks_are_refused_with_what_they_are() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let refused = |key: &str, value: Value, tensors: &Tensors| {
        let mut config = config();
        config[key] = value;
        write(folder, &config, tensors, "", false);
        SentenceEncoder::open(folder, &Device::flex()).unwrap_err().to_string()
    };
    let tensors = weights();
    assert!(refused("model_type", json!("mpnet"), &tensors).contains("`model_type` is `mpnet`"));
    assert!(refused("hidden_act", json!("relu"), &tensors).contains("`relu`"));
    assert!(refused("position_embedding_type", json!("relative_key"), &tensors).contains("only \"absolute\""));
    assert!(refused("num_attention_heads", json!(3), &tensors).contains("not a multiple of 3 heads"));
    assert!(refused("vocab_size", json!(12), &tensors).contains("[11, 8], not [12, 8]"));
    let mut missing = tensors.clone();
    missing.remove("encoder.layer.1.output.dense.bias");
    let error = refused("model_type", json!("bert"), &missing);
    assert!(
        error.contains("no tensor `encoder.layer.1.output.dense.bias`"),
        "{error}"
    );
}
