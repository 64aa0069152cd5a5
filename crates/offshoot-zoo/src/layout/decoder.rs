//! Decoders as transformers' `GPT2LMHeadModel` and `LlamaForCausalLM`.

use offshoot_family::{Decoder, DecoderKind, RopeScaling};
use serde_json::{Value, json};

use super::config::Config;
use super::usage::Usage;
use super::{Layout, LayoutTensor, Order};

/// The layout of transformers' class for a decoder.
pub(crate) fn decoder_layout(decoder: &Decoder) -> Layout {
    let (class, tensors, config) = match decoder.kind {
        DecoderKind::Gpt2 => ("GPT2LMHeadModel", gpt2_tensors(decoder), gpt2_config(decoder)),
        DecoderKind::Llama => ("LlamaForCausalLM", llama_tensors(decoder), llama_config(decoder)),
    };
    Layout {
        tensors,
        config,
        class,
        usage: Usage::decoder(),
    }
}

/// GPT-2's linear layers are `Conv1D`, (in, out) in the file; queries, keys and values are one there as they are here.
fn gpt2_tensors(d: &Decoder) -> Vec<LayoutTensor> {
    let base = |leaf: &str| format!("transformer.{leaf}");
    let mut tensors = vec![
        LayoutTensor::whole(base("wte.weight"), vec![d.vocabulary, d.width], "embed.weight"),
        LayoutTensor::whole(base("wpe.weight"), vec![d.context, d.width], "pos_embed"),
    ];
    for i in 0..d.depth {
        let theirs = |leaf: &str| format!("transformer.h.{i}.{leaf}");
        let ours = |leaf: &str| format!("blocks.{i}.{leaf}");
        let mut norm = |theirs_name: &str, ours_name: &str| {
            for leaf in ["weight", "bias"] {
                let name = theirs(&format!("{theirs_name}.{leaf}"));
                tensors.push(LayoutTensor::whole(
                    name,
                    vec![d.width],
                    ours(&format!("{ours_name}.{leaf}")),
                ));
            }
        };
        norm("ln_1", "norm1");
        norm("ln_2", "norm2");
        for (layer, our, inputs, outputs) in [
            ("attn.c_attn", "attn.qkv", d.width, 3 * d.width),
            ("attn.c_proj", "attn.proj", d.width, d.width),
            ("mlp.c_fc", "mlp.fc1", d.width, d.hidden),
            ("mlp.c_proj", "mlp.fc2", d.hidden, d.width),
        ] {
            tensors.push(LayoutTensor {
                order: Order::Transposed,
                ..LayoutTensor::whole(
                    theirs(&format!("{layer}.weight")),
                    vec![inputs, outputs],
                    ours(&format!("{our}.weight")),
                )
            });
            tensors.push(LayoutTensor::whole(
                theirs(&format!("{layer}.bias")),
                vec![outputs],
                ours(&format!("{our}.bias")),
            ));
        }
    }
    for leaf in ["weight", "bias"] {
        tensors.push(LayoutTensor::whole(
            base(&format!("ln_f.{leaf}")),
            vec![d.width],
            format!("norm.{leaf}"),
        ));
    }
    tensors
}

fn llama_tensors(d: &Decoder) -> Vec<LayoutTensor> {
    let mut tensors = vec![LayoutTensor::whole(
        "model.embed_tokens.weight",
        vec![d.vocabulary, d.width],
        "embed.weight",
    )];
    let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    for i in 0..d.depth {
        let theirs = |leaf: &str| format!("model.layers.{i}.{leaf}.weight");
        let ours = |leaf: &str| format!("blocks.{i}.{leaf}.weight");
        tensors.push(LayoutTensor::whole(
            theirs("input_layernorm"),
            vec![d.width],
            ours("norm1"),
        ));
        tensors.push(LayoutTensor::whole(
            theirs("post_attention_layernorm"),
            vec![d.width],
            ours("norm2"),
        ));
        let mut rows = |of: &str, total: usize, parts: &[(&str, usize)]| {
            let mut first = 0;
            for (layer, size) in parts {
                tensors.push(LayoutTensor {
                    rows: Some((first, first + size, total)),
                    ..LayoutTensor::whole(theirs(layer), vec![*size, d.width], ours(of))
                });
                first += size;
            }
        };
        let attention = [
            ("self_attn.q_proj", queries),
            ("self_attn.k_proj", keys),
            ("self_attn.v_proj", keys),
        ];
        rows("attn.qkv", d.qkv(), &attention);
        let both = [("mlp.gate_proj", d.hidden), ("mlp.up_proj", d.hidden)];
        rows("mlp.gate_up", 2 * d.hidden, &both);
        tensors.push(LayoutTensor::whole(
            theirs("self_attn.o_proj"),
            vec![d.width, queries],
            ours("attn.proj"),
        ));
        tensors.push(LayoutTensor::whole(
            theirs("mlp.down_proj"),
            vec![d.width, d.hidden],
            ours("mlp.down"),
        ));
    }
    tensors.push(LayoutTensor::whole("model.norm.weight", vec![d.width], "norm.weight"));
    if !d.tied {
        tensors.push(LayoutTensor::whole(
            "lm_head.weight",
            vec![d.vocabulary, d.width],
            "head.weight",
        ));
    }
    tensors
}

fn gpt2_config(d: &Decoder) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": d.vocabulary,
        "n_positions": d.context,
        "n_embd": d.width,
        "n_layer": d.depth,
        "n_head": d.heads,
        "n_inner": d.hidden,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": d.norm_eps,
        "tie_word_embeddings": true,
        "scale_attn_weights": true,
        "scale_attn_by_inverse_layer_idx": false,
        "reorder_and_upcast_attn": false,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
        "dtype": "float32",
        "torch_dtype": "float32"
    })
}

fn llama_config(d: &Decoder) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": d.vocabulary,
        "max_position_embeddings": d.context,
        "hidden_size": d.width,
        "intermediate_size": d.hidden,
        "num_hidden_layers": d.depth,
        "num_attention_heads": d.heads,
        "num_key_value_heads": d.kv_heads,
        "head_dim": d.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": d.norm_eps,
        "tie_word_embeddings": d.tied,
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "use_cache": true,
        "rope_theta": d.rope_theta,
        "dtype": "float32",
        "torch_dtype": "float32"
    });
    // Older readers want the rule apart from its base, newer ones both in one place.
    let rule = match d.rope_scaling {
        RopeScaling::None => json!({ "rope_type": "default" }),
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context
        }),
    };
    let mut both = rule.clone();
    both["rope_theta"] = json!(d.rope_theta);
    config["rope_scaling"] = if d.rope_scaling == RopeScaling::None {
        Value::Null
    } else {
        rule
    };
    config["rope_parameters"] = both;
    config
}

/// The numbers that a `config.json` of `model_type` `gpt2` describes.
///
/// # Errors
/// Names the key that is missing or has a value that no network here takes.
pub(super) fn gpt2_architecture(config: &Value) -> Result<Decoder, String> {
    let config = Config(config);
    config.only(&[
        ("tie_word_embeddings", json!(true)),
        ("scale_attn_weights", json!(true)),
        ("scale_attn_by_inverse_layer_idx", json!(false)),
        ("add_cross_attention", json!(false)),
    ])?;
    let tanh = ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"];
    let activation = config.text("activation_function")?.unwrap_or("gelu_new");
    if !tanh.contains(&activation) {
        let known = tanh.join(", ");
        return Err(format!(
            "`activation_function` is `{activation}`; supported are {known}"
        ));
    }
    let (width, heads) = (config.size("n_embd", Some(768))?, config.size("n_head", Some(12))?);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("`n_embd` {width} is no multiple of `n_head` {heads}"));
    }
    checked(Decoder {
        kind: DecoderKind::Gpt2,
        width,
        depth: config.size("n_layer", Some(12))?,
        heads,
        kv_heads: heads,
        head_dim: width / heads,
        hidden: config.size("n_inner", Some(width.saturating_mul(4)))?,
        vocabulary: config.size("vocab_size", Some(50_257))?,
        context: config.size("n_positions", Some(1024))?,
        norm_eps: config.number("layer_norm_epsilon", 1e-5)?,
        tied: true,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    })
}

/// The numbers that a `config.json` of `model_type` `llama` describes. Rotary positions are in `rope_theta` and
/// `rope_scaling` where the folder is older than transformers 5, and else in `rope_parameters`; where both stand, `rope_scaling` is the
/// rule, as transformers has it.
///
/// # Errors
/// Names the key that is missing or has a value that no network here takes.
pub(super) fn llama_architecture(config: &Value) -> Result<Decoder, String> {
    let config = Config(config);
    config.only(&[
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("mlp_bias", json!(false)),
    ])?;
    let (width, heads) = (
        config.size("hidden_size", Some(4096))?,
        config.size("num_attention_heads", Some(32))?,
    );
    if heads == 0 {
        return Err("`num_attention_heads` is 0".into());
    }
    let theta = config.number("rope_theta", 1e4)?;
    let old = config.object("rope_scaling")?.filter(|rule| !rule.is_empty());
    let rule = old.or(config.object("rope_parameters")?);
    let rope_theta = rule.map_or(Ok(theta), |rule| rule.number("rope_theta", theta))?;
    checked(Decoder {
        kind: DecoderKind::Llama,
        width,
        depth: config.size("num_hidden_layers", Some(32))?,
        heads,
        kv_heads: config.size("num_key_value_heads", Some(heads))?,
        head_dim: config.size("head_dim", Some(width / heads))?,
        hidden: config.size("intermediate_size", Some(11_008))?,
        vocabulary: config.size("vocab_size", Some(32_000))?,
        context: config.size("max_position_embeddings", Some(2048))?,
        norm_eps: config.number("rms_norm_eps", 1e-6)?,
        tied: config.flag("tie_word_embeddings", false)?,
        rope_theta,
        rope_scaling: rule.map_or(Ok(RopeScaling::None), scaling)?,
    })
}

fn scaling(rule: Config<'_>) -> Result<RopeScaling, String> {
    let name = rule.text("rope_type")?.or(rule.text("type")?).unwrap_or("default");
    let required = |key: &str| -> Result<f64, String> {
        let number = rule.number(key, f64::NAN)?;
        if number.is_nan() {
            return Err(format!("`{key}` of the rotary positions is missing"));
        }
        Ok(number)
    };
    match name {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: required("factor")?,
        }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_context: rule.size("original_max_position_embeddings", None)?,
        }),
        other => Err(format!(
            "`rope_type` is `{other}`; supported are default, linear and llama3"
        )),
    }
}

fn checked(decoder: Decoder) -> Result<Decoder, String> {
    decoder.check().map_err(|e| e.to_string())?;
    Ok(decoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama(scaling: RopeScaling) -> Decoder {
        Decoder {
            kind: DecoderKind::Llama,
            width: 48,
            depth: 2,
            heads: 6,
            kv_heads: 2,
            head_dim: 16,
            hidden: 40,
            vocabulary: 101,
            context: 32,
            norm_eps: 1e-6,
            tied: false,
            rope_theta: 5e5,
            rope_scaling: scaling,
        }
    }

    #[test]
    fn a_configuration_reads_back_as_the_numbers_that_it_was_written_for() {
        let llama3 = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 16,
        };
        for scaling in [RopeScaling::None, RopeScaling::Linear { factor: 2.5 }, llama3] {
            let decoder = llama(scaling);
            assert_eq!(llama_architecture(&llama_config(&decoder)).unwrap(), decoder);
            // As folders older than transformers 5 have it, and as newer ones do.
            for key in ["rope_parameters", "rope_scaling"] {
                let mut config = llama_config(&decoder);
                config.as_object_mut().unwrap().remove(key);
                assert_eq!(llama_architecture(&config).unwrap(), decoder, "without {key}");
            }
            let mut newer = llama_config(&decoder);
            for older in ["rope_theta", "rope_scaling"] {
                newer.as_object_mut().unwrap().remove(older);
            }
            assert_eq!(llama_architecture(&newer).unwrap(), decoder);
        }
        // Somebody stretched a folder by the older key: transformers follows it.
        let mut both = llama_config(&llama(RopeScaling::None));
        both["rope_scaling"] = json!({ "rope_type": "linear", "factor": 2.0 });
        let stretched = llama(RopeScaling::Linear { factor: 2.0 });
        assert_eq!(llama_architecture(&both).unwrap(), stretched);
        both["rope_scaling"] = json!({});
        assert_eq!(llama_architecture(&both).unwrap(), llama(RopeScaling::None));
        let gpt2 = Decoder {
            kind: DecoderKind::Gpt2,
            kv_heads: 6,
            head_dim: 8,
            tied: true,
            rope_theta: 1e4,
            ..llama(RopeScaling::None)
        };
        assert_eq!(gpt2_architecture(&gpt2_config(&gpt2)).unwrap(), gpt2);
    }

    /// What transformers 5.23 writes for `GPT2Config()` and `LlamaConfig()`.
    #[test]
    fn what_is_left_out_or_null_is_the_classes_default() {
        let gpt2 = gpt2_architecture(&json!({ "model_type": "gpt2", "n_inner": null })).unwrap();
        let numbers = (
            gpt2.width,
            gpt2.depth,
            gpt2.heads,
            gpt2.hidden,
            gpt2.vocabulary,
            gpt2.context,
        );
        assert_eq!(numbers, (768, 12, 12, 3072, 50_257, 1024));
        let config =
            json!({ "model_type": "llama", "num_key_value_heads": null, "head_dim": null, "rope_scaling": null });
        let llama = llama_architecture(&config).unwrap();
        assert_eq!(
            (llama.kv_heads, llama.head_dim, llama.hidden, llama.tied),
            (32, 128, 11_008, false)
        );
        assert_eq!(llama.rope_theta, 1e4);
    }

    #[test]
    fn what_no_network_here_has_is_refused_by_key() {
        let refused = |key: &str, value: Value| {
            let mut config = llama_config(&llama(RopeScaling::None));
            config[key] = value;
            llama_architecture(&config).unwrap_err()
        };
        assert!(refused("attention_bias", json!(true)).contains("attention_bias"));
        assert!(refused("rope_scaling", json!("yarn")).contains("rope_scaling"));
        assert!(refused("rope_parameters", json!([])).contains("rope_parameters"));
        let word = gpt2_architecture(&json!({ "activation_function": ["relu"] })).unwrap_err();
        assert!(word.contains("activation_function"), "{word}");
        assert!(refused("hidden_act", json!("relu")).contains("hidden_act"));
        assert!(refused("rope_parameters", json!({ "rope_type": "yarn" })).contains("yarn"));
        assert!(refused("rope_parameters", json!({ "rope_type": "linear" })).contains("factor"));
        assert!(refused("num_key_value_heads", json!(4)).contains("kv_heads"));
        assert!(
            gpt2_architecture(&json!({ "activation_function": "relu" }))
                .unwrap_err()
                .contains("relu")
        );
        assert!(
            gpt2_architecture(&json!({ "n_embd": 100, "n_head": 3 }))
                .unwrap_err()
                .contains("n_head")
        );
        let uneven = json!({ "scale_attn_by_inverse_layer_idx": true });
        assert!(gpt2_architecture(&uneven).unwrap_err().contains("inverse_layer"));
    }
}
