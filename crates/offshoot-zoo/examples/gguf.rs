//! Writes and reads GGUF files for comparison with other programs; `interop/check_gguf.py` calls this.
//!
//! `gguf write FOLDER FILE.gguf F32|F16|Q8_0`: FOLDER is a `GPT2LMHeadModel` or a `LlamaForCausalLM` with its `tokenizer.json`.
//! `gguf read FILE.gguf FOLDER`: FOLDER gets `tokenizer.json`, `listed.json`, which is the same from llama.cpp's keys alone, and
//! `tensors.safetensors` with all tensors under their names in the file,
//! queries and keys in Hugging Face's order. Both print notes, one a line.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};

use offshoot_zoo::gguf::tokenizer::{Note, Special, tokenizer_json, tokenizer_metadata};
use offshoot_zoo::gguf::{
    GgufFile, Leaf, Metadata, Model, Numbers, Order, Part, Presence, Role, Scaling, Sizes, Tensor, TensorType,
    file_type, halves, llama3_factors, pairs, transposed, write,
};
use offshoot_zoo::safetensors::{self, SafetensorsFile};
use serde_json::Value;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let words: Vec<&Path> = words.iter().map(PathBuf::as_path).collect();
    match words[..] {
        [command, folder, file, kind] if command == "write" => {
            let kind = TensorType::WRITTEN
                .into_iter()
                .find(|k| Some(k.name()) == kind.to_str());
            to_gguf(folder, file, kind.ok_or("the type is none of F32, F16 and Q8_0")?)
        }
        [command, file, folder] if command == "read" => of_gguf(file, folder),
        _ => Err("usage: gguf write FOLDER FILE.gguf F32|F16|Q8_0, or gguf read FILE.gguf FOLDER".into()),
    }
}

fn say(notes: &[Note]) -> Result<(), Failure> {
    for note in notes {
        writeln!(std::io::stdout(), "{note}")?;
    }
    Ok(())
}

fn json(path: &Path) -> Result<Value, Failure> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn to_gguf(folder: &Path, path: &Path, kind: TensorType) -> Result<(), Failure> {
    let config = json(&folder.join("config.json"))?;
    let weights = SafetensorsFile::open(&folder.join("model.safetensors"))?;
    let mut numbers = numbers(&config)?;
    numbers.file_type = file_type(kind);
    let mut metadata = numbers.metadata()?;
    let tokenizer = json(&folder.join("tokenizer.json"))?;
    let special = Special::of_files(
        &tokenizer,
        Some(&config),
        json(&folder.join("tokenizer_config.json")).ok().as_ref(),
    );
    let rows = numbers.vocab_size.map(|rows| rows as usize);
    let (tokens, notes) = tokenizer_metadata(&tokenizer, &special, rows)?;
    metadata.extend(tokens);
    say(&notes)?;
    let factors = rope_factors(&config, &numbers);
    let mut tensors = Vec::new();
    let mut sources = Vec::new();
    for role in Role::all(numbers.model, numbers.block_count as usize) {
        let name = theirs(numbers.model, role);
        let shape = match weights.shape(&name) {
            _ if role == Role::RopeFactors => factors.as_ref().map(|factors| vec![factors.len()]),
            Some(shape) if numbers.model.order(role) == Order::Transposed => {
                Some(shape.iter().rev().copied().collect())
            }
            shape => shape.map(<[usize]>::to_vec),
        };
        let Some(shape) = shape else {
            match numbers.model.presence(role) {
                Presence::Always => return Err(format!("no tensor `{name}`").into()),
                _ => continue,
            }
        };
        let short = role.stays_exact() || kind.bytes(*shape.last().unwrap_or(&1) as u64, 0).is_none();
        tensors.push(Tensor {
            name: role.name(),
            shape,
            kind: if short { TensorType::F32 } else { kind },
        });
        sources.push((role, name));
    }
    write(path, &metadata, &tensors, |i| {
        let (role, name) = &sources[i];
        if *role == Role::RopeFactors {
            return Ok(factors.clone().unwrap_or_default());
        }
        let values = weights.read(name)?;
        Ok::<_, Failure>(match numbers.model.order(*role) {
            Order::Same => values,
            Order::Transposed => transposed(&values, tensors[i].shape[1]),
            Order::QueryPairs => pairs(&values, tensors[i].shape[0], numbers.head_count.at(0) as usize),
            Order::KeyPairs => pairs(&values, tensors[i].shape[0], numbers.heads_kv(0) as usize),
        })
    })
}

fn numbers(config: &Value) -> Result<Numbers, Failure> {
    let size = |name: &str| {
        config
            .get(name)
            .and_then(Value::as_u64)
            .ok_or(format!("`{name}` is missing"))
    };
    let number = |name: &str| {
        config
            .get(name)
            .and_then(Value::as_f64)
            .ok_or(format!("`{name}` is missing"))
    };
    let gpt2 = config["model_type"] == "gpt2";
    let width = size(if gpt2 { "n_embd" } else { "hidden_size" })?;
    let rope = config
        .get("rope_parameters")
        .or(config.get("rope_scaling"))
        .unwrap_or(&Value::Null);
    let theta = rope
        .get("rope_theta")
        .or(config.get("rope_theta"))
        .and_then(Value::as_f64);
    let scaling = match rope.get("rope_type").and_then(Value::as_str) {
        Some(kind @ ("linear" | "yarn")) => Some(Scaling {
            factor: rope["factor"].as_f64().map(|factor| factor as f32),
            original_context_length: rope["original_max_position_embeddings"].as_u64(),
            ..Scaling::of(kind)
        }),
        _ => None,
    };
    let head = config.get("head_dim").and_then(Value::as_u64);
    Ok(match gpt2 {
        true => Numbers {
            model: Model::Gpt2,
            name: None,
            context_length: size("n_positions")?,
            embedding_length: width,
            block_count: size("n_layer")?,
            feed_forward_length: Sizes::All(size("n_inner").unwrap_or(4 * width)),
            head_count: Sizes::All(size("n_head")?),
            head_count_kv: None,
            key_length: None,
            value_length: None,
            norm_epsilon: number("layer_norm_epsilon")? as f32,
            rope_dimension_count: None,
            rope_freq_base: None,
            rope_scaling: None,
            vocab_size: Some(size("vocab_size")?),
            file_type: None,
        },
        false => Numbers {
            model: Model::Llama,
            name: None,
            context_length: size("max_position_embeddings")?,
            embedding_length: width,
            block_count: size("num_hidden_layers")?,
            feed_forward_length: Sizes::All(size("intermediate_size")?),
            head_count: Sizes::All(size("num_attention_heads")?),
            head_count_kv: Some(Sizes::All(size("num_key_value_heads")?)),
            key_length: head,
            value_length: head,
            norm_epsilon: number("rms_norm_eps")? as f32,
            rope_dimension_count: Some(head.unwrap_or(width / size("num_attention_heads")?)),
            rope_freq_base: theta.map(|theta| theta as f32),
            rope_scaling: scaling,
            vocab_size: Some(size("vocab_size")?),
            file_type: None,
        },
    })
}

fn rope_factors(config: &Value, numbers: &Numbers) -> Option<Vec<f32>> {
    let rope = config
        .get("rope_parameters")
        .filter(|rope| rope["rope_type"] == "llama3")?;
    Some(llama3_factors(
        numbers.rope_dimension_count? as usize,
        rope["rope_theta"].as_f64()?,
        rope["original_max_position_embeddings"].as_u64()?,
        rope["factor"].as_f64()?,
        rope["low_freq_factor"].as_f64()?,
        rope["high_freq_factor"].as_f64()?,
    ))
}

/// What transformers calls a tensor.
fn theirs(model: Model, role: Role) -> String {
    let leaf = |leaf| if leaf == Leaf::Weight { "weight" } else { "bias" };
    let (gpt2, llama) = match role {
        Role::Tokens => ("transformer.wte.weight".into(), "model.embed_tokens.weight".into()),
        Role::Positions => ("transformer.wpe.weight".into(), String::new()),
        Role::OutputNorm(l) => (format!("transformer.ln_f.{}", leaf(l)), "model.norm.weight".into()),
        Role::Output => ("lm_head.weight".into(), "lm_head.weight".into()),
        Role::RopeFactors => Default::default(),
        Role::Block(block, part, l) => {
            let (gpt2, llama) = match part {
                Part::AttentionNorm => ("ln_1", "input_layernorm"),
                Part::Qkv => ("attn.c_attn", "-"),
                Part::Query => ("-", "self_attn.q_proj"),
                Part::Key => ("-", "self_attn.k_proj"),
                Part::Value => ("-", "self_attn.v_proj"),
                Part::AttentionOutput => ("attn.c_proj", "self_attn.o_proj"),
                Part::FeedForwardNorm => ("ln_2", "post_attention_layernorm"),
                Part::Up => ("mlp.c_fc", "mlp.up_proj"),
                Part::Gate => ("-", "mlp.gate_proj"),
                Part::Down => ("mlp.c_proj", "mlp.down_proj"),
            };
            (
                format!("transformer.h.{block}.{gpt2}.{}", leaf(l)),
                format!("model.layers.{block}.{llama}.{}", leaf(l)),
            )
        }
    };
    match model {
        Model::Gpt2 => gpt2,
        Model::Llama => llama,
    }
}

fn of_gguf(path: &Path, folder: &Path) -> Result<(), Failure> {
    let file = GgufFile::open(path)?;
    std::fs::create_dir_all(folder)?;
    let (tokenizer, _, notes) = tokenizer_json(file.metadata())?;
    say(&notes)?;
    std::fs::write(folder.join("tokenizer.json"), serde_json::to_vec(&tokenizer)?)?;
    let mut listed = Metadata::new();
    for (key, value) in file
        .metadata()
        .iter()
        .filter(|(key, _)| *key != "tokenizer.huggingface.json")
    {
        listed.set(key, value.clone());
    }
    let (tokenizer, ..) = tokenizer_json(&listed)?;
    std::fs::write(folder.join("listed.json"), serde_json::to_vec(&tokenizer)?)?;
    let numbers = Numbers::of(file.metadata())?;
    let again = numbers.metadata()?;
    let differs = |metadata: &Metadata, key: &str| metadata.get(key) != again.get(key);
    if let Some((key, _)) = again.iter().find(|(key, _)| differs(file.metadata(), key)) {
        return Err(format!("`{key}` does not come back").into());
    }
    let tensors: Vec<_> = file
        .names()
        .map(|name| (name.to_owned(), file.shape(name).unwrap_or_default().to_vec()))
        .collect();
    safetensors::write(&folder.join("tensors.safetensors"), &tensors, |i| {
        let (name, shape) = &tensors[i];
        let values = file.read(name)?;
        let order = Role::of_name(name).map(|role| numbers.model.order(role));
        Ok::<_, Failure>(match order {
            Some(Order::QueryPairs) => halves(&values, shape[0], numbers.head_count.at(0) as usize),
            Some(Order::KeyPairs) => halves(&values, shape[0], numbers.heads_kv(0) as usize),
            _ => values,
        })
    })
}
