//! Generation against whole-text loops, and the rules of choosing a token.

use offshoot_family::{Decoder, DecoderKind, RopeScaling};

use super::*;
use crate::tensor::device;
use crate::weights::Weight;

const VOCABULARY: usize = 61;

fn network(kind: DecoderKind, context: usize) -> DecoderNetwork {
    let decoder = Decoder {
        kind,
        width: 24,
        depth: 2,
        heads: 6,
        kv_heads: if kind == DecoderKind::Llama { 2 } else { 6 },
        head_dim: 4,
        hidden: 40,
        vocabulary: VOCABULARY,
        context,
        norm_eps: 1e-5,
        tied: true,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    };
    decoder.check().unwrap();
    DecoderNetwork::new(decoder)
}

/// Weights large enough that predictions differ.
fn weights(network: &DecoderNetwork) -> Weights {
    let device = device("cpu").unwrap();
    crate::initialise(&network.specs(), 3, &device).map(|w| {
        let values = w.values().into_iter().map(|v| 8.0 * v).collect();
        Weight::from_values(values, w.shape().to_vec(), &device)
    })
}

fn generator<'a>(network: &'a DecoderNetwork, weights: &Weights, room: usize) -> Generator<'a> {
    Generator::new(network, weights, room).unwrap()
}

/// The scores behind `tokens`, by the whole network on all of them.
fn whole(network: &DecoderNetwork, weights: &Weights, tokens: &[u32]) -> Vec<f32> {
    let logits = network.logits(weights, &Tokens::new(&[tokens]));
    let all = logits.try_into_vec_as::<f32>().unwrap();
    all[(tokens.len() - 1) * VOCABULARY..].to_vec()
}

/// What is generated behind `prompt`, and why it ended.
fn text(generator: &mut Generator, prompt: &[u32], sampling: &Sampling, sample: u64, most: usize) -> (Vec<u32>, Stop) {
    generator.rewind(0);
    generator.read(prompt).unwrap();
    let mut found = Vec::new();
    let stop = generator.generate(sampling, sample, most, &[], &mut |token| {
        found.push(token);
        true
    });
    (found, stop.unwrap())
}

#[test]
fn a_token_after_the_other_scores_as_the_whole_text_does() {
    for kind in [DecoderKind::Gpt2, DecoderKind::Llama] {
        let network = network(kind, 32);
        let weights = weights(&network);
        let tokens: Vec<u32> = (0..32).map(|i| i * 17 % VOCABULARY as u32).collect();
        for prompt in [1, 2, 7, 31, 32] {
            let mut generator = generator(&network, &weights, 32);
            generator.read(&tokens[..prompt]).unwrap();
            for read in prompt..=32 {
                let expected = whole(&network, &weights, &tokens[..read]);
                let largest = expected.iter().fold(0.0f32, |most, score| most.max(score.abs()));
                assert_eq!(generator.scores().len(), expected.len());
                for (a, b) in generator.scores().iter().zip(&expected) {
                    let off = (a - b).abs() / largest;
                    assert!(off < 2e-5, "{kind:?} {prompt} {read}: {a} {b} of {largest}");
                }
                if read < 32 {
                    generator.read(&tokens[read..=read]).unwrap();
                }
            }
            assert_eq!(generator.tokens(), tokens);
        }
    }
}

#[test]
fn greedy_text_is_that_of_a_loop_without_a_cache() {
    for kind in [DecoderKind::Gpt2, DecoderKind::Llama] {
        let network = network(kind, 48);
        let weights = weights(&network);
        let mut generator = generator(&network, &weights, 48);
        for prompt in [vec![5], vec![1, 2, 3], vec![60; 20]] {
            let mut all = prompt.clone();
            while all.len() < 40 {
                all.push(best(&whole(&network, &weights, &all)).unwrap().0);
            }
            let most = 40 - prompt.len();
            let (found, stop) = text(&mut generator, &prompt, &Sampling::greedy(), 0, most);
            assert_eq!((&found[..], stop), (&all[prompt.len()..], Stop::Tokens));
            let only = Sampling {
                top_k: 1,
                ..Sampling::default()
            };
            assert_eq!(text(&mut generator, &prompt, &only, 5, most).0, found);
            let sure = Sampling {
                top_p: 1e-9,
                top_k: 0,
                ..Sampling::default()
            };
            assert_eq!(text(&mut generator, &prompt, &sure, 5, most).0, found);
        }
    }
}

#[test]
fn seed_and_sample_decide_the_text() {
    let network = network(DecoderKind::Llama, 40);
    let weights = weights(&network);
    let mut generator = generator(&network, &weights, 40);
    let mut run = |seed, sample| {
        let sampling = Sampling {
            seed,
            temperature: 2.0,
            ..Sampling::default()
        };
        text(&mut generator, &[1, 2], &sampling, sample, 30).0
    };
    let first = run(7, 0);
    assert_ne!(first, run(7, 1));
    assert_ne!(first, run(8, 0));
    assert_eq!(first, run(7, 0));
}

#[test]
fn a_text_ends_with_its_end_its_count_its_context_or_its_taker() {
    let network = network(DecoderKind::Gpt2, 12);
    let weights = weights(&network);
    let mut generator = generator(&network, &weights, 100);
    let (whole_text, stop) = text(&mut generator, &[1, 2, 3], &Sampling::greedy(), 0, 50);
    assert_eq!((whole_text.len(), stop), (9, Stop::Context));
    let end = whole_text[4];
    generator.rewind(0);
    generator.read(&[1, 2, 3]).unwrap();
    let mut found = Vec::new();
    let stop = generator.generate(&Sampling::greedy(), 0, 50, &[99, end], &mut |token| {
        found.push(token);
        true
    });
    let at = whole_text.iter().position(|token| *token == end).unwrap();
    assert_eq!((stop.unwrap(), &found[..]), (Stop::End(end), &whole_text[..at]));
    generator.rewind(2);
    generator.read(&[3]).unwrap();
    let stop = generator.generate(&Sampling::greedy(), 0, 50, &[], &mut |_| false);
    assert_eq!(stop.unwrap(), Stop::Taker);
    let none = generator.generate(&Sampling::greedy(), 0, 0, &[], &mut |_| true);
    assert_eq!(none.unwrap(), Stop::Tokens);
}

#[test]
fn what_cannot_be_read_or_sampled_is_refused() {
    let network = network(DecoderKind::Gpt2, 12);
    let weights = weights(&network);
    let mut generator = generator(&network, &weights, 100);
    let greedy = Sampling::greedy();
    let nothing = generator.generate(&greedy, 0, 1, &[], &mut |_| true);
    assert_eq!(nothing, Err(GenerateError::Empty));
    let outside = generator.read(&[3, 61]).unwrap_err();
    assert_eq!(outside.to_string(), "token 61 lies beyond the model's vocabulary of 61");
    assert!(outside.hint().unwrap().contains("tokenizer.json"));
    assert!(matches!(
        generator.read(&[0; 13]),
        Err(GenerateError::Room {
            tokens: 13,
            context: 12
        })
    ));
    assert!(generator.tokens().is_empty());
    let good = Sampling::default();
    for (name, wrong) in [
        (
            "temperature",
            Sampling {
                temperature: -1.0,
                ..good
            },
        ),
        (
            "temperature",
            Sampling {
                temperature: f64::NAN,
                ..good
            },
        ),
        ("top_p", Sampling { top_p: 0.0, ..good }),
        ("top_p", Sampling { top_p: 1.1, ..good }),
        (
            "repetition_penalty",
            Sampling {
                repetition_penalty: 0.0,
                ..good
            },
        ),
    ] {
        assert!(matches!(wrong.check(), Err(GenerateError::Setting { name: found, .. }) if found == name));
    }
    for scores in [[1.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
        assert_eq!(
            good.choose(&scores, &[], 0, 7),
            Err(GenerateError::NotFinite { position: 7 })
        );
    }
    let other = Generator::new(&network, &Weights::new(), 5);
    assert!(matches!(other.err(), Some(GenerateError::Weights(_))));
}

/// How often each token is drawn, of 20,000.
fn shares(sampling: &Sampling, scores: &[f32], seen: &[u32]) -> Vec<f64> {
    let mut counts = vec![0.0; scores.len()];
    for sample in 0..20_000 {
        counts[sampling.choose(scores, seen, sample, 3).unwrap() as usize] += 1.0 / 20_000.0;
    }
    counts
}

/// Probabilities of `scores` of which only `kept` are left, in f64.
fn softmax(scores: &[f64], kept: &[usize]) -> Vec<f64> {
    let weight = |i: usize| if kept.contains(&i) { scores[i].exp() } else { 0.0 };
    let total: f64 = (0..scores.len()).map(weight).sum();
    (0..scores.len()).map(|i| weight(i) / total).collect()
}

#[test]
fn draws_follow_penalty_temperature_top_k_and_top_p_in_transformers_order() {
    let scores = [1.0f32, -0.5, 2.0, 0.3, 2.0, -3.0];
    let free = Sampling {
        top_k: 0,
        ..Sampling::default()
    };
    let all = [0, 1, 2, 3, 4, 5];
    let wide = |f: &dyn Fn(f64) -> f64| scores.map(|score| f(f64::from(score)));
    let penalised = [1.0 / 1.5, -0.5 * 1.5, 2.0, 0.3, 2.0, -3.0];
    // The probabilities of the six are .139, .031, .379, .069, .379 and .003.
    let cases: [(Sampling, &[u32], Vec<f64>); 8] = [
        (free, &[], softmax(&wide(&|s| s), &all)),
        (
            Sampling {
                temperature: 0.5,
                ..free
            },
            &[],
            softmax(&wide(&|s| 2.0 * s), &all),
        ),
        (Sampling { top_k: 3, ..free }, &[], softmax(&wide(&|s| s), &[0, 2, 4])),
        (
            Sampling {
                top_k: 3,
                repetition_penalty: 2.0,
                ..free
            },
            &[0],
            softmax(&[0.5, -0.5, 2.0, 0.3, 2.0, -3.0], &[0, 2, 4]),
        ),
        (Sampling { top_k: 99, ..free }, &[], softmax(&wide(&|s| s), &all)),
        (Sampling { top_p: 0.8, ..free }, &[], softmax(&wide(&|s| s), &[2, 4, 0])),
        // At half the temperature the best two have .919 of the probability.
        (
            Sampling {
                top_p: 0.8,
                temperature: 0.5,
                ..free
            },
            &[],
            softmax(&wide(&|s| 2.0 * s), &[2, 4]),
        ),
        (
            Sampling {
                repetition_penalty: 1.5,
                ..free
            },
            &[1, 0, 1, 77],
            softmax(&penalised, &all),
        ),
    ];
    for (number, (sampling, seen, expected)) in cases.iter().enumerate() {
        let found = shares(sampling, &scores, seen);
        for (found, expected) in found.iter().zip(expected) {
            // Five deviations of a share of 20,000 draws.
            let allowed = 5.0 * (expected * (1.0 - expected) / 20_000.0).sqrt();
            assert!((found - expected).abs() <= allowed, "case {number}: {found} {expected}");
        }
    }
}

#[test]
fn top_p_finds_its_set_among_many_candidates() {
    // Nearly even: half of the probability takes about half of the tokens, far more than are sorted at first.
    let scores: Vec<f32> = (0..5000).map(|i| 1e-4 * ((i * 7919) % 5000) as f32).collect();
    let sampling = Sampling {
        top_k: 0,
        top_p: 0.5,
        ..Sampling::default()
    };
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let candidate = |(id, score): (usize, &f32)| Candidate {
        id: id as u32,
        score: score - most,
    };
    let mut left: Vec<Candidate> = scores.iter().enumerate().map(candidate).collect();
    sampling.keep_top_p(&mut left);
    let mut sorted: Vec<f64> = scores.iter().map(|&score| f64::from(score - most).exp()).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (half, mut above, mut expected) = (sorted.iter().sum::<f64>() / 2.0, 0.0, 0);
    while above < half {
        above += sorted[expected];
        expected += 1;
    }
    assert!(expected > SORTED && left.len() == expected, "{} {expected}", left.len());
    assert!(left.windows(2).all(|pair| pair[0].score >= pair[1].score));
}

#[test]
fn draws_are_spread_evenly() {
    let mean = (0..10_000).map(|i| uniform(1, i, 2)).sum::<f64>() / 10_000.0;
    // The mean of 10,000 uniform numbers has a deviation of 0.0029.
    assert!((mean - 0.5).abs() < 0.015, "{mean}");
    assert_eq!(uniform(1, 2, 3), uniform(1, 2, 3));
    assert_ne!(uniform(1, 2, 3), uniform(1, 3, 2));
}

#[test]
fn what_ends_a_text_is_read_as_transformers_does() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    assert!(end_tokens(folder.path()).is_err());
    write("config.json", r#"{ "eos_token_id": 7 }"#);
    assert_eq!(end_tokens(folder.path()).unwrap(), [7]);
    write("generation_config.json", r#"{ "bos_token_id": 1 }"#);
    assert!(end_tokens(folder.path()).unwrap().is_empty());
    write("generation_config.json", r#"{ "eos_token_id": [3, 4] }"#);
    assert_eq!(end_tokens(folder.path()).unwrap(), [3, 4]);
    write("generation_config.json", "{");
    assert!(end_tokens(folder.path()).is_err());
}
