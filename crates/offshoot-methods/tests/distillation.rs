//! In-place distillation of sub-networks of decoders against float64 loops that share no code with it: losses by the definition, and
//! gradients by central differences of that loss.
//!
//! With `--nocapture` it says how far off each case was.

#![expect(clippy::print_stdout, reason = "how far off it was, for whoever changes the step")]

use std::collections::BTreeMap;

use offshoot_family::{Architecture, Decoder, DecoderKind, RopeScaling, Shape, View};
use offshoot_methods::language::step::{Child, Distillation, Objective, Outcome};
use offshoot_zoo::materialize::{Plan, compile};
use offshoot_zoo::tensor::Device;
use offshoot_zoo::{DecoderNetwork, Network, Weight, Weights};

/// Largest difference of a loss, and of a gradient over the largest of its tensor.
const TOLERANCE: f64 = 1e-5;
/// Half the distance of two losses of a central difference.
const STEP: f64 = 2e-5;

/// Windows of several lengths, in no order of them.
const WINDOWS: [&[u32]; 4] = [&[3, 1, 4, 1, 5, 9], &[2, 6], &[5, 3, 5, 8, 9, 7], &[9, 3, 2]];
/// Tokens of them that are predicted.
const PREDICTED: usize = 13;

fn gpt2() -> Decoder {
    Decoder {
        kind: DecoderKind::Gpt2,
        width: 9,
        depth: 3,
        heads: 3,
        kv_heads: 3,
        head_dim: 3,
        hidden: 10,
        vocabulary: 10,
        context: 6,
        norm_eps: 1e-5,
        tied: true,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    }
}

/// Two heads of queries to each of keys, and an output layer of its own.
fn llama() -> Decoder {
    Decoder {
        kind: DecoderKind::Llama,
        heads: 6,
        head_dim: 4,
        tied: false,
        rope_theta: 50.0,
        ..gpt2()
    }
}

/// A tensor of a sub-network: for each element the place of the intact network's that it is, and the factor on all.
#[derive(Clone)]
struct Cut {
    name: String,
    of: String,
    places: Vec<usize>,
    gain: f64,
}

/// A network in float64, by its numbers, and how its tensors are cut out of the intact network's.
struct Plain {
    d: Decoder,
    cuts: Vec<Cut>,
}

type Tensors = BTreeMap<String, Vec<f64>>;

/// The first `kept` of `of`, as places.
fn first(kept: usize) -> Vec<usize> {
    (0..kept).collect()
}

impl Plain {
    /// The sub-network of `child`'s numbers that keeps `blocks`; with `gains` what reads fewer channels is scaled by how much fewer.
    fn new(d: &Decoder, child: &Decoder, blocks: &[usize], gains: bool) -> Self {
        let mut cuts = Vec::new();
        let mut cut = |name: String, of: String, rows: &[usize], columns: &[usize], width: usize, gain: f64| {
            let row = |r: &usize| columns.iter().map(move |c| r * width + c).collect::<Vec<_>>();
            cuts.push(Cut {
                name,
                of,
                places: rows.iter().flat_map(row).collect(),
                gain: if gains { gain } else { 1.0 },
            });
        };
        let gain = |of: usize, kept: usize| of as f64 / kept as f64;
        let (residual, hidden) = (first(child.width), first(child.hidden));
        let (dim, mixed) = (d.head_dim, first(child.heads * child.head_dim));
        // A packed row: queries, keys, values.
        let behind = |start: usize| {
            first(child.kv_heads * dim)
                .iter()
                .map(|c| start + c)
                .collect::<Vec<_>>()
        };
        let qkv = [
            mixed.clone(),
            behind(d.heads * dim),
            behind((d.heads + d.kv_heads) * dim),
        ]
        .concat();
        let both = [hidden.clone(), hidden.iter().map(|c| d.hidden + c).collect()].concat();
        let reads = gain(d.width, child.width);
        let same = |leaf: &str| (leaf.to_owned(), leaf.to_owned());
        let (name, of) = same("embed.weight");
        cut(name, of, &first(d.vocabulary), &residual, d.width, 1.0);
        let gpt2 = d.kind == DecoderKind::Gpt2;
        let mut vectors = vec![same("norm.weight")];
        if gpt2 {
            vectors.push(same("norm.bias"));
            let (name, of) = same("pos_embed");
            cut(name, of, &first(d.context), &residual, d.width, 1.0);
        }
        if !d.tied {
            let (name, of) = same("head.weight");
            cut(name, of, &first(d.vocabulary), &residual, d.width, reads);
        }
        for (to, from) in blocks.iter().enumerate() {
            let named = |leaf: &str| (format!("blocks.{to}.{leaf}"), format!("blocks.{from}.{leaf}"));
            let mut matrix = |leaf: &str, rows: &[usize], columns: &[usize], width, gain| {
                let (name, of) = named(&format!("{leaf}.weight"));
                cut(name, of, rows, columns, width, gain);
            };
            matrix("attn.qkv", &qkv, &residual, d.width, reads);
            let heads = gain(d.kv_heads, child.kv_heads);
            matrix("attn.proj", &residual, &mixed, d.heads * dim, heads);
            let (wide, last) = if gpt2 {
                ("mlp.fc1", "mlp.fc2")
            } else {
                ("mlp.gate_up", "mlp.down")
            };
            matrix(wide, if gpt2 { &hidden } else { &both }, &residual, d.width, reads);
            matrix(last, &residual, &hidden, d.hidden, gain(d.hidden, child.hidden));
            vectors.extend([named("norm1.weight"), named("norm2.weight")]);
            if gpt2 {
                for leaf in ["norm1.bias", "norm2.bias", "attn.proj.bias", "mlp.fc2.bias"] {
                    vectors.push(named(leaf));
                }
                for (leaf, rows) in [("attn.qkv.bias", &qkv), ("mlp.fc1.bias", &hidden)] {
                    let (name, of) = named(leaf);
                    cut(name, of, rows, &[0], 1, 1.0);
                }
            }
        }
        for (name, of) in vectors {
            cut(name, of, &residual, &[0], 1, 1.0);
        }
        Self { d: child.clone(), cuts }
    }

    /// Logits of every token of the windows, row after row.
    fn logits(&self, parent: &Tensors) -> Vec<Vec<f64>> {
        let own = |cut: &Cut| {
            let values = &parent[&cut.of];
            let values = cut.places.iter().map(|&at| cut.gain * values[at]);
            (cut.name.clone(), values.collect())
        };
        let own: Tensors = self.cuts.iter().map(own).collect();
        WINDOWS.iter().flat_map(|window| self.window(&own, window)).collect()
    }

    fn window(&self, own: &Tensors, window: &[u32]) -> Vec<Vec<f64>> {
        let d = &self.d;
        let gpt2 = d.kind == DecoderKind::Gpt2;
        let rows = |name: &str, row: usize| own[name][row * d.width..(row + 1) * d.width].to_vec();
        let mut x: Vec<Vec<f64>> = Vec::new();
        for (at, &token) in window.iter().enumerate() {
            let embedded = rows("embed.weight", token as usize);
            x.push(if gpt2 {
                sum(&embedded, &rows("pos_embed", at))
            } else {
                embedded
            });
        }
        for block in 0..d.depth {
            let name = |leaf: &str| format!("blocks.{block}.{leaf}");
            let linear = |leaf: &str, x: &[f64]| {
                let y = product(&own[&name(&format!("{leaf}.weight"))], x);
                match own.get(&name(&format!("{leaf}.bias"))) {
                    Some(bias) => sum(&y, bias),
                    None => y,
                }
            };
            let mut packed: Vec<Vec<f64>> = (x.iter())
                .map(|x| linear("attn.qkv", &self.norm(own, &name("norm1"), x)))
                .collect();
            if !gpt2 {
                packed.iter_mut().enumerate().for_each(|(at, row)| self.turn(row, at));
            }
            for (at, x) in x.iter_mut().enumerate() {
                *x = sum(x, &linear("attn.proj", &self.mixed(&packed, at)));
                let wide = self.norm(own, &name("norm2"), x);
                let (wide, last) = if gpt2 {
                    (linear("mlp.fc1", &wide).into_iter().map(gelu).collect(), "mlp.fc2")
                } else {
                    let both = linear("mlp.gate_up", &wide);
                    let (gate, up) = both.split_at(d.hidden);
                    let gated = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
                    (gated.collect::<Vec<f64>>(), "mlp.down")
                };
                *x = sum(x, &linear(last, &wide));
            }
        }
        let output = &own[if d.tied { "embed.weight" } else { "head.weight" }];
        let last = x.iter().map(|x| product(output, &self.norm(own, "norm", x)));
        last.collect()
    }

    /// LayerNorm or RMSNorm.
    fn norm(&self, own: &Tensors, name: &str, x: &[f64]) -> Vec<f64> {
        let scale = &own[&format!("{name}.weight")];
        let bias = own.get(&format!("{name}.bias"));
        let n = x.len() as f64;
        let mean = if bias.is_some() { x.iter().sum::<f64>() / n } else { 0.0 };
        let square = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let root = (square + self.d.norm_eps).sqrt();
        let each = x.iter().zip(scale).enumerate();
        each.map(|(i, (v, s))| (v - mean) / root * s + bias.map_or(0.0, |bias| bias[i]))
            .collect()
    }

    /// Turns queries and keys to their position: channel `i` of a head with channel `i + head_dim / 2`.
    fn turn(&self, row: &mut [f64], at: usize) {
        let (dim, half) = (self.d.head_dim, self.d.head_dim / 2);
        for head in row[..(self.d.heads + self.d.kv_heads) * dim].chunks_mut(dim) {
            for i in 0..half {
                let angle = at as f64 * self.d.rope_theta.powf(-2.0 * i as f64 / dim as f64);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = b * angle.cos() + a * angle.sin();
            }
        }
    }

    /// What the heads of token `at` make of the values of the tokens up to it.
    fn mixed(&self, packed: &[Vec<f64>], at: usize) -> Vec<f64> {
        let (d, dim) = (&self.d, self.d.head_dim);
        let part = |row: usize, head: usize| &packed[row][head * dim..(head + 1) * dim];
        let mut out = Vec::new();
        for head in 0..d.heads {
            let shared = head / (d.heads / d.kv_heads);
            let score = |row: usize| dot(part(at, head), part(row, d.heads + shared)) / (dim as f64).sqrt();
            let shares = softmax(&(0..=at).map(score).collect::<Vec<_>>(), 1.0);
            let value = |row: usize, i: usize| part(row, d.heads + d.kv_heads + shared)[i];
            out.extend((0..dim).map(|i| (0..=at).map(|row| shares[row] * value(row, i)).sum::<f64>()));
        }
        out
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// A matrix, (out, in), times `x`.
fn product(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|row| dot(row, x)).collect()
}

fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// Logarithms of the softmax of `x / temperature`.
fn log_softmax(x: &[f64], temperature: f64) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let all: f64 = x.iter().map(|v| ((v - most) / temperature).exp()).sum();
    x.iter().map(|v| (v - most) / temperature - all.ln()).collect()
}

fn softmax(x: &[f64], temperature: f64) -> Vec<f64> {
    log_softmax(x, temperature).into_iter().map(f64::exp).collect()
}

/// Each row that has a token behind it, with that token.
fn targets() -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut row = 0;
    for window in WINDOWS {
        found.extend((1..window.len()).map(|at| (row + at - 1, window[at] as usize)));
        row += window.len();
    }
    assert_eq!(found.len(), PREDICTED);
    found
}

/// The mean loss of the next tokens.
fn next_tokens(logits: &[Vec<f64>]) -> f64 {
    let each = targets()
        .into_iter()
        .map(|(row, token)| -log_softmax(&logits[row], 1.0)[token]);
    each.sum::<f64>() / PREDICTED as f64
}

/// The mean cross-entropy of two networks' softened distributions.
fn soft(teacher: &[Vec<f64>], logits: &[Vec<f64>], temperature: f64) -> f64 {
    let each = targets().into_iter().map(|(row, _)| {
        let wanted = softmax(&teacher[row], temperature);
        -dot(&wanted, &log_softmax(&logits[row], temperature))
    });
    each.sum::<f64>() / PREDICTED as f64
}

/// A decoder with two sub-networks, here and there.
struct Family {
    network: DecoderNetwork,
    weights: Weights,
    children: Vec<(DecoderNetwork, Plan)>,
    intact: Plain,
    plain: Vec<Plain>,
    tensors: Tensors,
}

/// Numbers without pattern in -1..1.
fn noise(at: usize) -> f64 {
    let x = (at as f64 * 12.9898 + 4.1).sin() * 43_758.545_3;
    2.0 * (x - x.floor()) - 1.0
}

impl Family {
    fn new(d: &Decoder, gains: bool) -> Self {
        d.check().unwrap();
        let network = DecoderNetwork::new(d.clone());
        let mut weights = Weights::new();
        let mut tensors = Tensors::new();
        for (number, spec) in network.specs().iter().enumerate() {
            // Large enough that every tensor matters; norms about 1.
            let shift = if spec.name.contains("norm") && spec.name.ends_with("weight") {
                1.0
            } else {
                0.0
            };
            let values = (0..spec.elements()).map(|i| (shift + 0.6 * noise(10_007 * number + i)) as f32);
            let values: Vec<f32> = values.collect();
            tensors.insert(spec.name.clone(), values.iter().map(|&v| f64::from(v)).collect());
            weights.insert(&spec.name, Weight::from_values(values, spec.shape(), &Device::flex()));
        }
        let mut children = Vec::new();
        let mut plain = Vec::new();
        // The first of three heads, first and last block; and two of them, the first block.
        for (width, hidden, depth, blocks) in [(3, 3, 2, vec![0, 2]), (6, 7, 1, vec![0])] {
            let shape = Shape::new([("width", width), ("hidden", hidden), ("depth", depth)]);
            let mut view: View = network.child(&shape, "").unwrap();
            assert!(!view.gains.is_empty());
            if !gains {
                view.gains.clear();
            }
            let Architecture::Decoder(child) = &view.child else {
                panic!("{:?}", view.child)
            };
            let own = DecoderNetwork::new(child.clone());
            let plan = compile(&network.specs(), Some(&own.specs()), &view).unwrap();
            plain.push(Plain::new(d, child, &blocks, gains));
            children.push((own, plan));
        }
        Self {
            intact: Plain::new(d, d, &first(d.depth), false),
            network,
            weights,
            children,
            plain,
            tensors,
        }
    }

    fn step(&self, distillation: Distillation, recompute: bool, at_once: usize) -> Outcome {
        let children = self.children.iter().map(|(network, plan)| Child { network, plan });
        let objective = Objective {
            network: &self.network,
            children: &children.collect::<Vec<_>>(),
            distillation,
            recompute,
        };
        objective.step(&self.weights, &WINDOWS, at_once, PREDICTED)
    }

    /// What is trained on, as the definition has it: no gradient goes through what the teacher says.
    fn total(&self, tensors: &Tensors, teacher: &[Vec<f64>], how: Distillation) -> f64 {
        let of_child = |child: &Plain| {
            let logits = child.logits(tensors);
            let taught = how.temperature.powi(2) * soft(teacher, &logits, how.temperature);
            how.share * taught + (1.0 - how.share) * next_tokens(&logits)
        };
        let children: f64 = self.plain.iter().map(of_child).sum();
        next_tokens(&self.intact.logits(tensors)) + children / self.plain.len() as f64
    }

    /// Gradients of the total, element by element.
    fn differences(&self, how: Distillation) -> Tensors {
        let teacher = self.intact.logits(&self.tensors);
        let mut tensors = self.tensors.clone();
        let mut found = Tensors::new();
        for (name, values) in &self.tensors {
            let mut gradient = Vec::new();
            for (at, &value) in values.iter().enumerate() {
                let mut moved = |by: f64| {
                    tensors.get_mut(name).unwrap()[at] = value + by;
                    self.total(&tensors, &teacher, how)
                };
                gradient.push((moved(STEP) - moved(-STEP)) / (2.0 * STEP));
                tensors.get_mut(name).unwrap()[at] = value;
            }
            found.insert(name.clone(), gradient);
        }
        found
    }

    fn check(&self, how: Distillation) {
        let expected = self.differences(how);
        let intact = next_tokens(&self.intact.logits(&self.tensors));
        let children: Vec<f64> = (self.plain.iter())
            .map(|child| next_tokens(&child.logits(&self.tensors)))
            .collect();
        for (recompute, at_once) in [false, true].into_iter().flat_map(|r| [(r, 1), (r, 3), (r, 4)]) {
            let outcome = self.step(how, recompute, at_once);
            let case = format!("{how:?}, recompute {recompute}, {at_once} windows at once");
            let mut off = (outcome.loss - intact).abs();
            assert_eq!(outcome.children.len(), children.len());
            for (found, expected) in outcome.children.iter().zip(&children) {
                off = off.max((found - expected).abs());
            }
            assert!(off <= TOLERANCE, "{case}: losses {off:e}");
            let names: Vec<&String> = outcome.gradients.keys().collect();
            assert_eq!(names, expected.keys().collect::<Vec<_>>());
            let mut worst = (0.0, "");
            for (name, expected) in &expected {
                let found: Vec<f32> = outcome.gradients[name].to_data().try_to_vec().unwrap();
                assert_eq!(found.len(), expected.len());
                let scale = expected.iter().fold(0.0f64, |most, v| most.max(v.abs()));
                assert!(scale > 1e-3, "{name} has no say");
                let each = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs());
                let relative = each.fold(0.0f64, |most, d| if d.is_nan() { d } else { most.max(d) }) / scale;
                assert!(relative <= TOLERANCE, "{case}: {name} {relative:e} of {scale:e}");
                if relative > worst.0 {
                    worst = (relative, name);
                }
            }
            println!("{case}: losses {off:.1e}, gradients {:.1e} ({})", worst.0, worst.1);
        }
    }
}

/// Shares and temperatures: half of the target softened, and the default.
const HOW: [(f64, f64); 2] = [(0.5, 2.0), (1.0, 1.0)];

fn check(d: &Decoder, gains: bool) {
    let family = Family::new(d, gains);
    for (share, temperature) in HOW {
        family.check(Distillation { share, temperature });
    }
}

#[test]
fn sub_networks_of_gpt2_learn_by_the_definition_blocks_kept_or_run_again() {
    check(&gpt2(), false);
}

#[test]
fn sub_networks_of_llama_learn_by_the_definition_blocks_kept_or_run_again() {
    check(&llama(), true);
}
