//! Projected networks: what an expert is, both executors of a mix, its adjoint, and views that do not fit.

use std::collections::BTreeMap;

use offshoot_family::{Decoder, DecoderKind, Operator, Projected, RopeScaling, View};
use offshoot_zoo::checkpoint::{self, Checkpoint};
use offshoot_zoo::layout::Program;
use offshoot_zoo::materialize::{Plan, ViewError, compile, materialize, materialize_all, pull_back};
use offshoot_zoo::projected::{CODES, EXPERTS};
use offshoot_zoo::tensor::{Device, Tensor};
use offshoot_zoo::{Network, Preparation, ProjectedNetwork, TokenizerFiles, Weight, Weights, spec};

fn network(kind: DecoderKind, blocks: &[usize]) -> ProjectedNetwork {
    let decoder = Decoder {
        kind,
        width: 12,
        depth: 3,
        heads: 2,
        kv_heads: if kind == DecoderKind::Llama { 1 } else { 2 },
        head_dim: 6,
        hidden: 20,
        vocabulary: 17,
        context: 8,
        norm_eps: 1e-5,
        tied: true,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    };
    let projected = Projected {
        decoder,
        experts: 4,
        codes: 3,
        slices: 5,
        blocks: blocks.to_vec(),
    };
    let projected = projected.filled();
    projected.check().unwrap();
    ProjectedNetwork::new(projected)
}

fn weights(network: &ProjectedNetwork) -> Weights {
    offshoot_zoo::initialise(&network.specs(), 3, &Device::flex())
}

fn plan(network: &ProjectedNetwork, view: &View) -> Result<Plan, ViewError> {
    compile(&network.specs(), Some(&network.decoder().specs()), view)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn an_expert_is_the_sum_of_its_definition_and_shares_all_else() {
    for (kind, blocks) in [(DecoderKind::Gpt2, &[0usize, 2][..]), (DecoderKind::Llama, &[])] {
        let network = network(kind, blocks);
        let parent = weights(&network);
        let get = |name: &str| parent.get(name).unwrap().values();
        let codes = get(CODES);
        for expert in 0..4 {
            let child = materialize(&parent, &plan(&network, &network.expert(expert, "").unwrap()).unwrap());
            assert_eq!(child.mismatch(&network.decoder().specs()), None);
            let mut projected = 0;
            for (name, weight) in child.iter() {
                let Some(matrix) = name
                    .strip_suffix(".weight")
                    .filter(|m| parent.get(&format!("{m}.slices")).is_some())
                else {
                    assert_eq!(bits(&weight.values()), bits(&get(name)), "{name}");
                    continue;
                };
                projected += 1;
                let (slices, factors) = (get(&format!("{matrix}.slices")), get(&format!("{matrix}.mix")));
                let (elements, sections) = (slices.len() / 5, factors.len() / 15);
                assert_eq!(sections, if matrix.ends_with("gate_up") { 2 } else { 1 });
                for (at, found) in weight.values().into_iter().enumerate() {
                    let section = at / (elements / sections);
                    let c = |r: usize| -> f64 {
                        let term =
                            |q: usize| f64::from(codes[expert * 3 + q]) * f64::from(factors[(section * 3 + q) * 5 + r]);
                        (0..3).map(term).sum()
                    };
                    let expected: f64 = (0..5).map(|r| c(r) * f64::from(slices[r * elements + at])).sum();
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-7,
                        "{name} {at}: {found} for {expected}"
                    );
                }
            }
            assert_eq!(projected, 2 * network.projected().blocks.len());
        }
    }
}

#[test]
fn experts_made_together_alone_and_from_file_to_file_are_the_same_bytes() {
    let network = network(DecoderKind::Llama, &[]);
    let parent = weights(&network);
    let base = tempfile::tempdir().unwrap();
    let preparation = Preparation::Text(TokenizerFiles::new(b"{}".to_vec(), None, None, 8));
    let folder = base.path().join("parent");
    checkpoint::save(&network, &parent, &preparation, &folder).unwrap();
    let saved = Checkpoint::open(&folder).unwrap();
    assert_eq!(saved.network().architecture(), network.architecture());
    let views: Vec<View> = (0..4).map(|i| network.expert(i, "").unwrap()).collect();
    let plans: Vec<Plan> = views.iter().map(|view| plan(&network, view).unwrap()).collect();
    let together = materialize_all(&parent, &plans.iter().map(|plan| &plan[..]).collect::<Vec<_>>());
    for (number, (view, together)) in views.iter().zip(&together).enumerate() {
        let out = base.path().join(number.to_string());
        saved.export_child(view, Program::Usual, &preparation, &out).unwrap();
        let exported = Checkpoint::open(&out).unwrap();
        assert_eq!(exported.network().architecture(), view.child);
        let exported = exported.weights(&Device::flex()).unwrap();
        let alone = materialize(&parent, &plans[number]);
        for (name, weight) in alone.iter() {
            let expected = bits(&weight.values());
            assert_eq!(bits(&together.get(name).unwrap().values()), expected, "{name}");
            assert_eq!(bits(&exported.get(name).unwrap().values()), expected, "{name}");
        }
    }
}

/// A code with one slice, and both equal to 1, is a plain decoder.
#[test]
fn one_expert_of_one_slice_is_a_plain_decoder() {
    let mut projected = network(DecoderKind::Gpt2, &[]).projected().clone();
    (projected.experts, projected.codes, projected.slices) = (1, 1, 1);
    let network = ProjectedNetwork::new(projected);
    let ones = |weight: &Weight| {
        Weight::from_values(
            vec![1.0; weight.values().len()],
            weight.shape().to_vec(),
            &Device::flex(),
        )
    };
    let mut parent = weights(&network);
    let names: Vec<String> = parent.iter().map(|(name, _)| name.to_owned()).collect();
    for name in names.iter().filter(|name| *name == CODES || name.ends_with(".mix")) {
        let weight = ones(parent.get(name).unwrap());
        parent.insert(name, weight);
    }
    let child = materialize(&parent, &plan(&network, &network.expert(0, "").unwrap()).unwrap());
    let slices = parent.get("blocks.1.mlp.fc1.slices").unwrap().values();
    assert_eq!(
        bits(&child.get("blocks.1.mlp.fc1.weight").unwrap().values()),
        bits(&slices)
    );
    let counts = [&network.specs(), &network.decoder().specs()].map(|specs| spec::parameters(specs));
    assert_eq!(
        counts[0],
        counts[1] + 2 * 3 + 1,
        "a factor for each matrix, and the code"
    );
}

/// What `pull_back` gives is the derivative of the children along the parent, by central differences of their inner product with
/// fixed numbers; an expert that is not among them gets nothing.
#[test]
fn gradients_are_pulled_back_to_slices_factors_and_codes_of_the_experts_that_were_there() {
    let network = network(DecoderKind::Llama, &[1]);
    let parent = weights(&network);
    let plans: Vec<Plan> = [1, 3]
        .map(|i| plan(&network, &network.expert(i, "").unwrap()).unwrap())
        .into();
    let plans: Vec<_> = plans.iter().map(|plan| &plan[..]).collect();
    let directions: Vec<BTreeMap<String, Vec<f32>>> = materialize_all(&parent, &plans)
        .iter()
        .enumerate()
        .map(|(child, made)| {
            let wave = |n: usize| (0..n).map(|i| ((i * 7 + child * 3) as f32).sin()).collect();
            made.iter()
                .map(|(name, w)| (name.to_owned(), wave(w.values().len())))
                .collect()
        })
        .collect();
    let objective = |parent: &Weights| -> f64 {
        let children = materialize_all(parent, &plans);
        let each = children.iter().zip(&directions).flat_map(|(child, direction)| {
            child.iter().flat_map(|(name, w)| {
                let pairs: Vec<f64> = w
                    .values()
                    .iter()
                    .zip(&direction[name])
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .collect();
                pairs
            })
        });
        each.sum()
    };
    let tensor = |values: &Vec<f32>| Tensor::<1>::from_data(&values[..], &Device::flex());
    let gradients = directions
        .iter()
        .map(|d| d.iter().map(|(name, v)| (name.clone(), tensor(v))).collect());
    let found = pull_back(&parent, &plans, gradients.collect());
    for name in [
        CODES,
        "blocks.1.mlp.gate_up.mix",
        "blocks.1.mlp.down.mix",
        "blocks.1.mlp.down.slices",
        "norm.weight",
    ] {
        let gradient: Vec<f32> = found[name].clone().into_data().try_to_vec().unwrap();
        let weight = parent.get(name).unwrap();
        let values = weight.values();
        let largest = gradient.iter().fold(0.0f32, |most, g| most.max(g.abs()));
        for at in (0..values.len()).step_by((values.len() / 24).max(1)) {
            // Linear in each of them, so that a large step is exact but for rounding.
            let moved = |by: f32| {
                let mut values = values.clone();
                values[at] += by;
                let mut parent = parent.clone();
                parent.insert(
                    name,
                    Weight::from_values(values, weight.shape().to_vec(), &Device::flex()),
                );
                objective(&parent)
            };
            let expected = (moved(1.0) - moved(-1.0)) / 2.0;
            let off = (f64::from(gradient[at]) - expected).abs();
            assert!(
                off < 1e-4 * f64::from(largest),
                "{name} {at}: {} for {expected}",
                gradient[at]
            );
        }
    }
    let codes: Vec<f32> = found[CODES].clone().into_data().try_to_vec().unwrap();
    assert!(codes[..3].iter().chain(&codes[6..9]).all(|g| *g == 0.0), "{codes:?}");
    assert!(codes[3..6].iter().chain(&codes[9..]).all(|g| *g != 0.0), "{codes:?}");
}

#[test]
fn views_that_mix_what_is_not_there_are_refused() {
    let network = network(DecoderKind::Gpt2, &[]);
    let good = network.expert(2, "").unwrap();
    plan(&network, &good).unwrap();
    assert!(network.expert(4, "").is_err());
    let with = |axis: &str, operator: Operator| {
        let mut view = good.clone();
        view.axes.insert(axis.into(), operator);
        plan(&network, &view).unwrap_err()
    };
    let mix = |n: usize| Operator::Mix { weights: vec![0.5; n] };
    assert!(matches!(with(EXPERTS, mix(3)), ViewError::Operator { entries: 4, .. }));
    assert!(matches!(with(EXPERTS, Operator::All), ViewError::Operator { .. }));
    assert!(matches!(
        with(EXPERTS, Operator::Prefix { size: 2 }),
        ViewError::Operator { .. }
    ));
    let nan = Operator::Mix {
        weights: vec![f32::NAN; 4],
    };
    assert!(matches!(with(EXPERTS, nan), ViewError::Operator { .. }));
    assert!(matches!(with("residual", mix(12)), ViewError::Operator { .. }));
    let mut none = good.clone();
    none.axes.clear();
    assert!(plan(&network, &none).is_err());
}
